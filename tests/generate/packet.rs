//! Packets as the simulator knows them, on the edges of what a policy names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::{L4Detail, L4Match, Protocol};
use nodewall::policy::effective::{Addresses, Effective};
use nodewall::simulate::{ConntrackState, Exit, Origin, Packet, Socket};
use proptest::prelude::*;
use proptest::sample::select;

use super::policy::{ICMP_TYPES, KINDS, NAMES, PROTOCOLS, cgroup};

/// A packet before it is fitted to a policy: numbers that choose among that policy's own boundaries.
#[derive(Clone, Debug)]
pub struct Sketch {
    pub direction: Direction,
    pub v4: bool,
    pub name: &'static str,
    pub kind: Option<&'static str>,
    pub protocol: u8,
    pub readable: bool,
    pub hop_limit: u8,
    pub state: ConntrackState,
    /// Choices: source, destination, source port, destination port, ICMP, and two of other headers.
    pub numbers: (usize, usize, usize, usize, usize, usize, usize),
    /// Forwarded by this interface.
    pub exit: Option<(&'static str, Option<&'static str>)>,
    /// Another destination address and port by somebody's DNAT.
    pub translated: Option<(usize, usize)>,
    /// Which process sends it; 0 is none.
    pub origin: usize,
}

pub fn sketch() -> impl Strategy<Value = Sketch> {
    use ConntrackState::{Established, Invalid, New, Related, Untracked};
    let state = prop_oneof![
        12 => Just(New), 1 => Just(Established), 1 => Just(Related), 2 => Just(Invalid), 2 => Just(Untracked)
    ];
    let choice = || 0..1_000_000usize;
    let numbers = (choice(), choice(), choice(), choice(), choice(), choice(), choice());
    let protocol = prop_oneof![
        6 => Just(6u8), 5 => Just(17u8), 3 => Just(1u8), 3 => Just(58u8), 4 => select(PROTOCOLS.to_vec()), 1 => any::<u8>()
    ];
    let name = prop_oneof![8 => select(NAMES[1..].to_vec()), 1 => Just("lo")];
    let kind = prop_oneof![2 => Just(None), 1 => select(KINDS.to_vec()).prop_map(Some)];
    let hop_limit = prop_oneof![Just(255u8), Just(64u8)];
    let readable = prop::bool::weighted(0.9);
    let direction = select(Direction::BOTH.to_vec());
    let exit = (select(NAMES[1..].to_vec()), prop_oneof![Just(None), select(KINDS.to_vec()).prop_map(Some)]);
    let more = (prop::option::weighted(0.35, exit), prop::option::weighted(0.3, (choice(), choice())), choice());
    (direction, any::<bool>(), name, kind, protocol, readable, hop_limit, state, numbers, more).prop_map(
        |(direction, v4, name, kind, protocol, readable, hop_limit, state, numbers, (exit, translated, origin))| {
            Sketch {
                exit,
                translated,
                origin,
                direction,
                v4,
                name,
                kind,
                protocol,
                readable,
                hop_limit,
                state,
                numbers,
            }
        },
    )
}

/// Where a policy's answers can change: the edges of everything it names, and one beyond.
pub struct Points {
    pub v4: Vec<u32>,
    pub v6: Vec<u128>,
    pub ports: Vec<u16>,
}

impl Points {
    pub fn of(effective: &Effective) -> Self {
        let mut points = Self {
            v4: vec![0x7f00_0001, 0x7eff_ffff, 0x8000_0000, 0x0808_0808, 0, u32::MAX],
            v6: vec![1, 0, 2, 0xfe80 << 112 | 5, 0xfec0 << 112, 0xff02 << 112 | 1, u128::MAX],
            ports: vec![0, 67, 68, 546, 547, 53, 65_535],
        };
        let policies = effective.tiers.iter().flat_map(|tier| &tier.policies);
        let rules = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
        for rule in rules.chain(effective.failsafe.iter().map(|entry| &entry.rule)) {
            for addresses in [&rule.from, &rule.to] {
                if let Addresses::Literal(set) | Addresses::Named(_, set) = addresses {
                    for (start, end) in set.v4.ranges() {
                        points.v4.extend([*start, *end, start.wrapping_sub(1), end.wrapping_add(1)]);
                    }
                    for (start, end) in set.v6.ranges() {
                        points.v6.extend([*start, *end, start.wrapping_sub(1), end.wrapping_add(1)]);
                    }
                }
            }
            let details: Vec<&L4Detail> = match &rule.l4 {
                L4Match::Any => Vec::new(),
                L4Match::Only(protocols) => protocols.values().collect(),
            };
            let of_details = details.into_iter().filter_map(|detail| match detail {
                L4Detail::Ports(ports) => Some(ports),
                L4Detail::All | L4Detail::Icmp(_) => None,
            });
            for (start, end) in of_details.chain(&rule.source_ports).flat_map(|set| set.ranges()) {
                points.ports.extend([*start, *end, start.wrapping_sub(1), end.wrapping_add(1)]);
            }
        }
        points
    }

    pub fn port(&self, choice: usize) -> u16 {
        self.ports[choice % self.ports.len()]
    }

    pub fn address(&self, v4: bool, choice: usize) -> IpAddr {
        if v4 {
            Ipv4Addr::from_bits(self.v4[choice % self.v4.len()]).into()
        } else {
            Ipv6Addr::from_bits(self.v6[choice % self.v6.len()]).into()
        }
    }

    pub fn packet(&self, effective: &Effective, sketch: &Sketch) -> Packet {
        let (source, destination, source_port, port, icmp, other, _) = sketch.numbers;
        // Half of the packets use an interface that the policy knows, if it knows one.
        let known = effective.interfaces.get(other % (2 * effective.interfaces.len()).max(1));
        let protocol = Protocol(sketch.protocol);
        // Extension headers that break off hide the protocol of a packet, and only IPv6 has them.
        let hidden = !sketch.v4 && !sketch.readable && icmp % 2 == 0;
        let ingress = sketch.direction == Direction::Ingress;
        let arrives = known.map_or(sketch.name, |known| known.name.as_str());
        let is_icmp = matches!(protocol, Protocol::ICMP | Protocol::ICMPV6);
        let dhcp = [(67, 68), (68, 67), (546, 547), (547, 546)];
        let ports = match source_port % 12 {
            0 => dhcp[port % dhcp.len()],
            _ => (self.port(source_port), self.port(port)),
        };
        Packet {
            direction: sketch.direction,
            interface: known.map_or_else(|| InterfaceName::new(sketch.name).unwrap(), |known| known.name.clone()),
            kind: sketch.kind.filter(|_| sketch.name != "lo").map(str::to_owned),
            source: self.address(sketch.v4, source),
            destination: self.address(sketch.v4, destination),
            protocol: (!hidden).then_some(protocol),
            ports: (sketch.readable && protocol.has_ports()).then_some(ports),
            icmp: (sketch.readable && is_icmp).then(|| (ICMP_TYPES[icmp % ICMP_TYPES.len()], (icmp / 16 % 7) as u8)),
            hop_limit: sketch.hop_limit,
            state: sketch.state,
            forward: sketch.exit.filter(|_| ingress && arrives != "lo").map(|(name, kind)| Exit {
                interface: InterfaceName::new(name).unwrap(),
                kind: kind.map(str::to_owned),
            }),
            translated: sketch
                .translated
                .filter(|_| arrives != "lo")
                .map(|(address, port)| (self.address(sketch.v4, address), self.port(port))),
            origin: match sketch.origin % 5 {
                _ if ingress => Origin::Kernel,
                0 => Origin::Kernel,
                choice => {
                    let (uid, gid) = ((sketch.origin / 5 % 7) as u32, (sketch.origin / 35 % 7) as u32);
                    let id = (sketch.origin / 245 % 3) as u64;
                    let cgroups = (1..choice as u8).map(|level| cgroup((level, id))).collect();
                    Origin::Process(Socket { uid, gid, cgroups })
                }
            },
        }
    }
}
