//! Who reaches a port, worked out for all addresses at once, is whoever gets in when each is asked about by itself: generated policies,
//! listeners and published ports, under the whole policy and not only what matters to them.
//!
//! `NODEWALL_SEED=N` repeats a run, `NODEWALL_CASES=N` makes it longer; both are printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod generate;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use generate::Trial;
use generate::packet::Points;
use generate::policy::{POOL_V4, POOL_V6, effective};
use nodewall::exposure::peers::{Named, Peer};
use nodewall::exposure::{Exposure, Reach, Surroundings};
use nodewall::net::addr::{AddrSet, Family};
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::listener::{Endpoint, Holders, Listener, Transport};
use nodewall::net::protocol::Protocol;
use nodewall::net::published::{Interfaces, Published, Target, Via};
use nodewall::net::range::RangeSet;
use nodewall::policy::effective::{Effective, EffectiveRule};
use nodewall::simulate::{ConntrackState, Exit, Origin, Outcome, Packet, decide};
use proptest::prelude::*;

/// How many policies a plain run tries.
const CASES: u32 = 250;
/// This host's own addresses, which rules of the generator know.
const OWN: [u32; 2] = [POOL_V4 + 3, POOL_V4 + 20];
const OWN_V6: u128 = POOL_V6 + 3;

/// The interfaces of the policy as links; the first has the addresses.
fn facts(effective: &Effective) -> Facts {
    let mut links: BTreeMap<u32, Link> = effective
        .interfaces
        .iter()
        .map(|interface| (interface.index, Link::named(interface.index, interface.name.clone())))
        .collect();
    if let Some(link) = links.values_mut().next() {
        let v4 = OWN.map(|own| format!("{}/32", std::net::Ipv4Addr::from_bits(own)));
        let v6 = format!("{}/128", std::net::Ipv6Addr::from_bits(OWN_V6));
        link.addresses = v4.iter().chain([&v6]).map(|net| net.parse().unwrap()).collect();
    }
    Facts { links, ..Facts::default() }
}

/// Sources of both families: all that the policy tells apart, and some that are nothing to it.
fn sources(points: &Points) -> BTreeSet<IpAddr> {
    let v4 = points.v4.iter().map(|bits| IpAddr::from(std::net::Ipv4Addr::from_bits(*bits)));
    let v6 = points.v6.iter().map(|bits| IpAddr::from(std::net::Ipv6Addr::from_bits(*bits)));
    let own: BTreeSet<IpAddr> = own().collect();
    // What no packet of a peer comes from is not asked about.
    let comes = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets()[0] != 0 && v4.octets()[0] != 127 && v4.octets()[0] < 224,
        IpAddr::V6(v6) => v6.to_bits() > 1 && !v6.is_multicast() && v6.to_ipv4_mapped().is_none(),
    };
    v4.chain(v6).filter(comes).filter(|address| !own.contains(address)).collect()
}

fn own() -> impl Iterator<Item = IpAddr> {
    let v4 = OWN.into_iter().map(|own| IpAddr::from(std::net::Ipv4Addr::from_bits(own)));
    v4.chain([IpAddr::from(std::net::Ipv6Addr::from_bits(OWN_V6))])
}

/// Whether an address is among those who are named; the sets are one address each, named after it.
fn is_among(peers: &[Peer], address: IpAddr) -> bool {
    peers.iter().any(|peer| match peer {
        Peer::Anyone(None) => true,
        Peer::Anyone(Some(family)) => (*family == Family::V4) == address.is_ipv4(),
        Peer::AnyoneBut(names) => {
            assert!(names.iter().all(|name| name.parse::<IpAddr>().is_ok()), "{names:?}");
            !names.contains(&address.to_string())
        }
        Peer::Set(name) => *name == address.to_string(),
        Peer::Prefix(prefix) => prefix.contains(&address),
        // Prefixes that are only counted are none of the sets'.
        Peer::More(_) => false,
        Peer::PartOf(_) | Peer::Fabric => panic!("{peer:?}"),
    })
}

/// Every source port at which some answer may change.
fn source_ports(effective: &Effective) -> BTreeSet<u16> {
    let rules = effective.tiers.iter().flat_map(|tier| &tier.policies);
    let rules = rules.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    let failsafe = effective.failsafe.iter().flat_map(|entry| std::iter::once(&entry.rule).chain(&entry.replies));
    let ranges =
        |rule: &EffectiveRule| rule.source_ports.iter().flat_map(|ports| ports.ranges().to_vec()).collect::<Vec<_>>();
    let edges = rules
        .chain(failsafe)
        .flat_map(ranges)
        .flat_map(|(start, end)| [start, end, start.saturating_sub(1).max(1), end.saturating_add(1)]);
    edges.chain([1, 40_000, u16::MAX]).filter(|port| *port != 0).collect()
}

/// What is asked about.
#[derive(Clone, Debug)]
struct Place {
    protocol: Protocol,
    port: usize,
    /// Of a published port, where it leads: an address of another's and its port, and by which of the interfaces.
    leads: Option<(u8, usize, usize)>,
}

fn place() -> impl Strategy<Value = Place> {
    let protocol = prop::sample::select(vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP]);
    let leads = prop::option::of((any::<u8>(), any::<usize>(), any::<usize>()));
    (protocol, any::<usize>(), leads).prop_map(|(protocol, port, leads)| Place { protocol, port, leads })
}

fn limited(effective: &Effective) -> bool {
    let rules = effective.tiers.iter().flat_map(|tier| &tier.policies);
    let mut rules = rules.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    rules.any(|rule| rule.limit.is_some())
}

#[test]
fn who_reaches_a_port_is_whoever_gets_in_when_asked_about() {
    let Trial { seed, cases, mut runner } = Trial::of(CASES);
    println!("seed {seed}, {cases} policies");
    let (asked, open, sent_on) = (Cell::new(0u64), Cell::new(0u64), Cell::new(0u64));
    let case = (effective(), prop::collection::vec(place(), 1..4));
    let result = runner.run(&case, |(effective, places)| {
        let facts = facts(&effective);
        let points = Points::of(&effective);
        let sources = sources(&points);
        let named = |source: &IpAddr| Named { name: source.to_string(), addresses: [*source].into_iter().collect() };
        let loopback_open = BTreeSet::new();
        let elsewhere = |last: u8| IpAddr::from([10, 99, 0, last]);
        for place in &places {
            let port = points.port(place.port).max(1);
            let leads = place.leads.and_then(|(last, port, exit)| {
                let exit = effective.interfaces.get(exit % effective.interfaces.len().max(1))?;
                Some((elsewhere(last), points.port(port).max(1), exit.name.clone()))
            });
            let around = Surroundings {
                facts: &facts,
                sets: sources.iter().map(named).collect(),
                loopback_open: &loopback_open,
                ways: leads.iter().map(|(address, _, exit)| (*address, exit.clone())).collect(),
            };
            let exposure = Exposure::new(&effective, around);
            let reach: Vec<Reach> = match &leads {
                None => exposure.of_listener(&Listener {
                    endpoint: Endpoint {
                        transport: Transport::Ip(place.protocol),
                        port,
                        address: "::".parse().unwrap(),
                        both_families: true,
                        device: None,
                    },
                    uid: None,
                    holders: Holders::Unknown,
                    rdma: BTreeSet::new(),
                }),
                Some((address, to, _)) => {
                    let parts = exposure.of_published(&Published {
                        protocol: Some(place.protocol),
                        ports: RangeSet::single(port),
                        family: Some(Family::V4),
                        addresses: None,
                        interfaces: Interfaces::default(),
                        target: Target::There(Some(*address), Some((*to, *to))),
                        owner: None,
                        comment: None,
                        via: Via::Chain { family: "ip", table: String::new(), chain: String::new() },
                        partly: false,
                    });
                    parts.into_iter().flat_map(|(_, reach)| reach).collect()
                }
            };
            let zones = exposure.zones();
            for interface in effective.interfaces.iter().filter(|interface| interface.role != Role::Loopback) {
                let is_it = |reach: &&Reach| reach.role == interface.role && reach.interfaces.contains(&interface.name);
                prop_assert!(zones.iter().any(|zone| is_it(&zone)), "every interface is in a zone");
                let peers: Vec<Peer> =
                    reach.iter().filter(is_it).flat_map(|reach| reach.peers.iter().cloned()).collect();
                for source in sources.iter().filter(|source| leads.is_none() || source.is_ipv4()) {
                    let said = is_among(&peers, *source);
                    let packet = |to: IpAddr, source_port: u16| Packet {
                        direction: Direction::Ingress,
                        interface: interface.name.clone(),
                        kind: None,
                        source: *source,
                        destination: to,
                        protocol: Some(place.protocol),
                        ports: Some((source_port, port)),
                        icmp: None,
                        hop_limit: 64,
                        state: ConntrackState::New,
                        forward: leads.as_ref().map(|(_, _, exit)| Exit { interface: exit.clone(), kind: None }),
                        translated: leads.as_ref().map(|(address, to, _)| (*address, *to)),
                        origin: Origin::Kernel,
                    };
                    let gets_in =
                        |to: IpAddr, port: u16| decide(&effective, &packet(to, port)).outcome == Outcome::Accepted;
                    let ports = source_ports(&effective);
                    let mut tos = own().filter(|to| to.is_ipv4() == source.is_ipv4());
                    let real = tos.any(|to| ports.iter().any(|port| gets_in(to, *port)));
                    // A limit may let in more than it seems, and never fewer.
                    let right = said == real || (said && limited(&effective));
                    prop_assert!(
                        right,
                        "{place:?} by {} from {source}: said {said}, real {real}, {reach:?}",
                        interface.name
                    );
                    asked.set(asked.get() + 1);
                    open.set(open.get() + u64::from(real));
                    sent_on.set(sent_on.get() + u64::from(real && leads.is_some()));
                }
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("seed {seed}: {error}");
    }
    let (asked, open, sent_on) = (asked.get(), open.get(), sent_on.get());
    println!("{asked} questions, {open} get in, {sent_on} of them are sent on");
    assert!(cases < CASES || (asked > 10_000 && open > asked / 20 && sent_on > 300), "{asked} {open} {sent_on}");
}

#[test]
fn a_set_of_many_prefixes_is_one_name() {
    // The rules tell none of its 20,000 prefixes apart from the others.
    let prefixes: AddrSet = (0..20_000u32)
        .map(|index| ipnet::IpNet::from(ipnet::Ipv4Net::new((0x0a00_0000 + index * 4).into(), 31).unwrap()))
        .collect();
    let sourced = nodewall::source::decode_text(
        "big.toml",
        "[[set]]\nname = \"big\"\ncidrs = [\"10.0.0.0/31\"]\n[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\n\
         ingress = [{ action = \"allow\", from = { sets = [\"big\"] }, protocol = \"tcp\", ports = [80] }]\n",
    );
    let mut policy = sourced.policy;
    let set = policy.sets.get_mut("big").unwrap();
    set.cidrs = prefixes
        .v4
        .ranges()
        .iter()
        .map(|(start, _)| ipnet::Ipv4Net::new((*start).into(), 31).unwrap().into())
        .collect();
    let link = Link {
        addresses: ["192.0.2.1/24".parse().unwrap()].into(),
        default_route: true,
        ..Link::named(2, InterfaceName::new("eth0").unwrap())
    };
    let facts = Facts { links: [(2, link)].into(), ..Facts::default() };
    let settings = nodewall::config::Config::shipped().settings;
    let (effective, _) = nodewall::policy::resolve::resolve(&policy, &settings, &facts);
    let loopback_open = BTreeSet::new();
    let around = Surroundings {
        facts: &facts,
        sets: nodewall::exposure::sets(&policy),
        loopback_open: &loopback_open,
        ways: BTreeMap::new(),
    };
    let exposure = Exposure::new(&effective, around);
    let reach = exposure.of_listener(&Listener {
        endpoint: Endpoint {
            transport: Transport::Ip(Protocol::TCP),
            port: 80,
            address: "0.0.0.0".parse().unwrap(),
            both_families: false,
            device: None,
        },
        uid: None,
        holders: Holders::Unknown,
        rdma: BTreeSet::new(),
    });
    assert_eq!(reach.len(), 1);
    assert_eq!(reach[0].peers, [Peer::Set("big".to_owned())]);
}
