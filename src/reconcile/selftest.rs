//! The self-test of a generation on trial, without I/O: which probes there are, what is known without any, and what all of it
//! means when it is held against what the same probes said before the change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::net::addr::{AddrSet, Family};
use crate::net::facts::{Facts, Link};
use crate::net::interface::{Direction, Role};
use crate::net::protocol::{L4Detail, L4Match, Protocol};
use crate::policy::effective::{Addresses, Effective, EffectiveFailsafe, EffectiveRule, Interface};
use crate::simulate::{ConntrackState, Origin, Outcome as Verdict, Packet, decide};

/// How long a probe may take when nobody says otherwise.
pub const PROBE_TIME: Duration = Duration::from_secs(2);
/// Where the kubelet says whether it is well, unless its `healthzPort` says otherwise.
const KUBELET: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10248);
/// How many addresses and ports of a failsafe entry are tried for somebody who listens.
const LISTENERS_TRIED: usize = 16;
/// From how many ranges of peers, or to how many ranges of ports, a failsafe entry is looked at.
const RANGES_LOOKED_AT: usize = 64;
/// The source port of packets that are only thought of: one that clients use.
const CLIENT_PORT: u16 = 40_000;
/// Who "anyone" is for packets that are only thought of (RFC 5737, RFC 3849).
const ANYONE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ANYONE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Something to try on the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Its name; those that are built in have a space in theirs, so that nobody's own has the same.
    pub name: String,
    /// What is tried.
    pub what: Attempt,
    /// How long it may take.
    pub timeout: Duration,
    /// Nobody listens: is there nothing to try then, rather than something wrong?
    pub optional: bool,
}

/// What a probe does. Every one makes new connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// A TCP connection to one of these at least.
    Tcp(Vec<SocketAddr>),
    /// An HTTP GET that one of these at least answers with a status of 200 to 299.
    Http {
        /// Whom to ask.
        servers: Vec<SocketAddr>,
        /// The `Host` of the request.
        host: String,
        /// What to ask for.
        path: String,
    },
    /// A program with its arguments that ends with exit code 0. Not empty.
    Command(Vec<String>),
}

/// What a probe came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// The name of the probe.
    pub probe: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It is as it should be.
    Passed,
    /// It is not; why.
    Failed(String),
    /// There is nothing to try here; why.
    Absent(String),
}

/// What a probe means for the generation on trial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It is as it should be.
    Passed,
    /// It is not, and nobody knows that it was not before; why. The generation is not confirmed.
    Failed(String),
    /// It is not, but neither was it before the change, which therefore is not to blame; why.
    FailedBefore(String),
    /// There is nothing to try here, and there was not before; why.
    Absent(String),
}

impl Judgement {
    /// The word of `nodewall status --json`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::FailedBefore(_) => "failed-before-too",
            Self::Absent(_) => "absent",
        }
    }

    /// Why it has not passed.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(why) | Self::FailedBefore(why) | Self::Absent(why) => Some(why),
        }
    }
}

/// The probes of a generation, built-in ones first: the cluster API, somebody who listens for each failsafe entry, the kubelet,
/// and those of `[selftest]`.
pub(super) fn probes(named: &[Probe], effective: &Effective, facts: &Facts) -> Vec<Probe> {
    let built_in = |name: String, what, optional| Probe { name, what, timeout: PROBE_TIME, optional };
    let mut probes = Vec::new();
    if !facts.api_servers.is_empty() {
        let servers = facts.api_servers.iter().map(|(address, port)| SocketAddr::new(*address, *port)).collect();
        probes.push(built_in("cluster API".to_owned(), Attempt::Tcp(servers), false));
    }
    for entry in ways_in(effective) {
        let listeners = listeners(entry, effective, facts);
        if !listeners.is_empty() {
            // It takes the way over loopback, where every packet is let through: it tells of the server, not of the rules.
            probes.push(built_in(format!("listener {}", entry.name), Attempt::Tcp(listeners), true));
        }
    }
    let kubelet = Attempt::Http { servers: vec![KUBELET], host: KUBELET.to_string(), path: "/healthz".to_owned() };
    probes.push(built_in("kubelet healthz".to_owned(), kubelet, true));
    probes.extend(named.iter().cloned());
    probes
}

fn ways_in(effective: &Effective) -> impl Iterator<Item = &EffectiveFailsafe> {
    effective.failsafe.iter().filter(|entry| entry.direction == Direction::Ingress)
}

/// The links that an entry holds on, loopback apart.
fn links<'a>(
    entry: &'a EffectiveFailsafe,
    effective: &'a Effective,
    facts: &'a Facts,
) -> impl Iterator<Item = (&'a Interface, &'a Link)> {
    effective
        .interfaces
        .iter()
        .filter(|interface| interface.role != Role::Loopback && entry.interfaces.matches(&interface.labels))
        .filter_map(|interface| Some((interface, facts.links.get(&interface.index)?)))
}

/// The addresses of a link to which others come. Link-local ones mean nothing without their link.
fn addresses(link: &Link) -> impl Iterator<Item = IpAddr> {
    link.addresses.iter().map(IpNet::addr).filter(|address| !is_link_local(*address))
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether this host can have been reached by anybody yet.
pub(super) fn has_network(facts: &Facts) -> bool {
    facts.links.values().any(|link| link.up && link.link_layer() != "loopback" && addresses(link).next().is_some())
}

/// Where somebody should listen for what an entry lets in.
fn listeners(entry: &EffectiveFailsafe, effective: &Effective, facts: &Facts) -> Vec<SocketAddr> {
    let L4Match::Only(protocols) = &entry.rule.l4 else { return Vec::new() };
    let Some(L4Detail::Ports(ports)) = protocols.get(&Protocol::TCP) else { return Vec::new() };
    let ports: Vec<u16> = ports.ranges().iter().filter(|(start, end)| start == end).map(|(port, _)| *port).collect();
    links(entry, effective, facts)
        .flat_map(|(_, link)| addresses(link))
        .flat_map(|address| ports.iter().map(move |port| SocketAddr::new(address, *port)))
        .take(LISTENERS_TRIED)
        .collect()
}

/// Whether the policy lets in what each failsafe entry is to let in: a new packet from each range of peers to each range of ports,
/// on every interface that the entry selects, to its first address of each family.
pub(super) fn simulated(effective: &Effective, facts: &Facts) -> Vec<Tried> {
    let tried = |entry: &EffectiveFailsafe| Tried {
        probe: format!("failsafe {}", entry.name),
        outcome: way_in(entry, effective, facts),
    };
    ways_in(effective).map(tried).collect()
}

fn way_in(entry: &EffectiveFailsafe, effective: &Effective, facts: &Facts) -> Outcome {
    let mut any = false;
    for (interface, link) in links(entry, effective, facts) {
        for family in [Family::V4, Family::V6] {
            let Some(destination) = addresses(link).find(|address| address.is_ipv4() == (family == Family::V4)) else {
                continue;
            };
            for Header { protocol, ports, icmp } in headers(&entry.rule, family) {
                for source in sources(&entry.rule.from, family) {
                    any = true;
                    let packet = Packet {
                        direction: Direction::Ingress,
                        interface: interface.name.clone(),
                        kind: link.kind.clone(),
                        source,
                        destination,
                        protocol: Some(protocol),
                        ports,
                        icmp,
                        hop_limit: 64,
                        state: ConntrackState::New,
                        forward: None,
                        translated: None,
                        origin: Origin::Kernel,
                    };
                    if decide(effective, &packet).outcome != Verdict::Accepted {
                        let port = ports.map(|(_, port)| format!(" port {port}")).unwrap_or_default();
                        return Outcome::Failed(format!(
                            "{protocol}{port} from {source} would not be let in on {}",
                            interface.name
                        ));
                    }
                }
            }
        }
    }
    match any {
        true => Outcome::Passed,
        false => Outcome::Absent("it holds on no interface with an address".to_owned()),
    }
}

/// What a packet that is only thought of has after its addresses.
struct Header {
    protocol: Protocol,
    ports: Option<(u16, u16)>,
    icmp: Option<(u8, u8)>,
}

/// One for each thing that a rule looks for.
fn headers(rule: &EffectiveRule, family: Family) -> Vec<Header> {
    let to = |protocol: Protocol, port: u16| Header { protocol, ports: Some((CLIENT_PORT, port)), icmp: None };
    let L4Match::Only(protocols) = &rule.l4 else { return vec![to(Protocol::TCP, 1)] };
    let other = if family == Family::V4 { Protocol::ICMPV6 } else { Protocol::ICMP };
    let mut found = Vec::new();
    for (protocol, detail) in protocols.iter().filter(|(protocol, _)| **protocol != other) {
        let protocol = *protocol;
        match detail {
            L4Detail::All if protocol.has_ports() => found.push(to(protocol, 1)),
            L4Detail::All => found.push(Header { protocol, ports: None, icmp: None }),
            L4Detail::Ports(ports) => {
                found.extend(ports.ranges().iter().take(RANGES_LOOKED_AT).map(|(port, _)| to(protocol, *port)));
            }
            L4Detail::Icmp(types) => found.extend(types.iter().filter_map(|(kind, codes)| {
                let icmp = Some((*kind, codes.ranges().first()?.0));
                Some(Header { protocol, ports: None, icmp })
            })),
        }
    }
    found
}

/// One address of each range of peers. Loopback addresses come from nowhere else.
fn sources(peers: &Addresses, family: Family) -> Vec<IpAddr> {
    let set: &AddrSet = match peers {
        Addresses::Any => return vec![if family == Family::V4 { ANYONE_V4.into() } else { ANYONE_V6.into() }],
        Addresses::Literal(set) | Addresses::Named(_, set) => set,
    };
    let first: Vec<IpAddr> = match family {
        Family::V4 => set.v4.ranges().iter().map(|(start, _)| Ipv4Addr::from_bits(*start).into()).collect(),
        Family::V6 => set.v6.ranges().iter().map(|(start, _)| Ipv6Addr::from_bits(*start).into()).collect(),
    };
    first.into_iter().filter(|address| !address.is_loopback()).take(RANGES_LOOKED_AT).collect()
}

/// Holds what came of the probes against what the same ones said before the change. What failed before does not stand in the way
/// of a change: with an API server that is broken, none could be made. What was not tried before does.
pub(super) fn judge(before: &[Tried], now: Vec<Tried>) -> Vec<(String, Judgement)> {
    let judged = |Tried { probe, outcome }: Tried| {
        let before = before.iter().find(|tried| tried.probe == probe).map(|tried| &tried.outcome);
        let judgement = match (outcome, before) {
            (Outcome::Passed, _) => Judgement::Passed,
            (Outcome::Failed(why), Some(Outcome::Failed(_) | Outcome::Absent(_))) => Judgement::FailedBefore(why),
            (Outcome::Failed(why), _) | (Outcome::Absent(why), Some(Outcome::Passed)) => Judgement::Failed(why),
            (Outcome::Absent(why), _) => Judgement::Absent(why),
        };
        (probe, judgement)
    };
    now.into_iter().map(judged).collect()
}

/// What was found, in words: "cluster API, failsafe ssh passed; model-store failed before too: no answer within 2 s". Without
/// what there is nothing of.
pub fn words(judged: &[(String, Judgement)]) -> String {
    let passed: Vec<&str> =
        judged.iter().filter(|(_, judgement)| *judgement == Judgement::Passed).map(|(name, _)| name.as_str()).collect();
    let passed = (!passed.is_empty()).then(|| format!("{} passed", passed.join(", ")));
    let others = judged.iter().filter_map(|(name, judgement)| match judgement {
        Judgement::Failed(why) => Some(format!("{name} failed: {why}")),
        Judgement::FailedBefore(why) => Some(format!("{name} failed before too: {why}")),
        Judgement::Passed | Judgement::Absent(_) => None,
    });
    let all: Vec<String> = passed.into_iter().chain(others).collect();
    if all.is_empty() { "there was nothing to try".to_owned() } else { all.join("; ") }
}

/// Those that stand in the way, in words.
pub(super) fn failing(judged: &[(String, Judgement)]) -> Option<String> {
    let failing: Vec<String> = judged
        .iter()
        .filter_map(|(name, judgement)| match judgement {
            Judgement::Failed(why) => Some(format!("{name}: {why}")),
            _ => None,
        })
        .collect();
    (!failing.is_empty()).then(|| failing.join("; "))
}

#[cfg(test)]
mod tests;
