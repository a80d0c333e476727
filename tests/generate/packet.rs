//! Packets as the simulator knows them, on the edges of what a policy names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use nodewall::net::addr::Family;
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use nodewall::net::range::RangeSet;
use nodewall::policy::effective::{Addresses, Effective, EffectiveRule, ProcessMatch};
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
#[derive(Default)]
pub struct Points {
    pub v4: Vec<u32>,
    pub v6: Vec<u128>,
    pub ports: Vec<u16>,
    /// What each rule names of them, and its direction.
    pub rules: Vec<(Direction, Aim)>,
}

/// The points of one rule: places in those of its policy, four for each range, of which the first two are within.
#[derive(Clone, Debug, Default)]
pub struct Aim {
    pub family: Option<Family>,
    /// Who has to send.
    pub process: Option<ProcessMatch>,
    /// Source and destination.
    pub v4: [Range<usize>; 2],
    /// The same of IPv6.
    pub v6: [Range<usize>; 2],
    pub source_ports: Range<usize>,
    pub protocols: Vec<AimL4>,
}

/// A protocol of a rule.
#[derive(Clone, Debug)]
pub struct AimL4 {
    pub protocol: Protocol,
    /// Destination ports.
    pub ports: Range<usize>,
    /// ICMP types, each with a code.
    pub icmp: Vec<(u8, u8)>,
}

/// One of the places of a rule's ranges, mostly within; `None` if the rule names no range.
pub fn within(places: &Range<usize>, choice: usize) -> Option<usize> {
    let ranges = places.len() / 4;
    let place = [0, 1, 0, 1, 0, 1, 2, 3][choice % 8];
    (ranges > 0).then(|| places.start + choice / 8 % ranges * 4 + place)
}

impl Points {
    pub fn of(effective: &Effective) -> Self {
        let mut points = Self {
            v4: vec![0x7f00_0001, 0x7eff_ffff, 0x8000_0000, 0x0808_0808, 0, u32::MAX],
            v6: vec![1, 0, 2, 0xfe80 << 112 | 5, 0xfec0 << 112, 0xff02 << 112 | 1, u128::MAX],
            ports: vec![0, 67, 68, 546, 547, 53, 65_535],
            rules: Vec::new(),
        };
        let policies = effective.tiers.iter().flat_map(|tier| &tier.policies);
        let rules = policies.flat_map(|policy| {
            let of = |direction, rules: &'_ Option<Vec<EffectiveRule>>| {
                rules.iter().flatten().map(|rule| (direction, rule.clone())).collect::<Vec<_>>()
            };
            [of(Direction::Ingress, &policy.ingress), of(Direction::Egress, &policy.egress)].concat()
        });
        let failsafe = effective.failsafe.iter().map(|entry| (entry.direction, entry.rule.clone()));
        for (direction, rule) in rules.chain(failsafe) {
            let aim = points.add(&rule);
            points.rules.push((direction, aim));
        }
        points
    }

    fn add(&mut self, rule: &EffectiveRule) -> Aim {
        let mut aim = Aim { family: rule.family, process: rule.process.clone(), ..Aim::default() };
        for (end, addresses) in [&rule.from, &rule.to].into_iter().enumerate() {
            let (v4, v6) = (self.v4.len(), self.v6.len());
            if let Addresses::Literal(set) | Addresses::Named(_, set) = addresses {
                for (start, end) in set.v4.ranges() {
                    self.v4.extend([*start, *end, start.wrapping_sub(1), end.wrapping_add(1)]);
                }
                for (start, end) in set.v6.ranges() {
                    self.v6.extend([*start, *end, start.wrapping_sub(1), end.wrapping_add(1)]);
                }
                aim.family = match (set.v4.is_empty(), set.v6.is_empty()) {
                    (false, true) => Some(Family::V4),
                    (true, false) => Some(Family::V6),
                    _ => aim.family,
                };
            }
            (aim.v4[end], aim.v6[end]) = (v4..self.v4.len(), v6..self.v6.len());
        }
        if let L4Match::Only(protocols) = &rule.l4 {
            for (protocol, detail) in protocols {
                let at = self.ports.len();
                let mut types = Vec::new();
                match detail {
                    L4Detail::Ports(ports) => self.add_ports(ports),
                    L4Detail::Icmp(icmp) => {
                        let first = |codes: &RangeSet<u8>| codes.ranges().first().map(|(code, _)| *code);
                        types.extend(icmp.iter().filter_map(|(kind, codes)| Some((*kind, first(codes)?))));
                    }
                    L4Detail::All => {}
                }
                aim.protocols.push(AimL4 { protocol: *protocol, ports: at..self.ports.len(), icmp: types });
            }
        }
        let at = self.ports.len();
        if let Some(ports) = &rule.source_ports {
            self.add_ports(ports);
        }
        aim.source_ports = at..self.ports.len();
        aim
    }

    fn add_ports(&mut self, ports: &PortSet) {
        for (start, end) in ports.ranges() {
            self.ports.extend([*start, *end, start.wrapping_sub(1), end.wrapping_add(1)]);
        }
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
