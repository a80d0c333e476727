//! Who can reach a place on this host under a policy, for all addresses and not for examples: addresses that no rule tells apart are
//! asked about once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::classes::{self, Class};
use crate::net::addr::AddrSet;
use crate::net::facts::{Facts, Link};
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::early;
use crate::policy::effective::{Addresses, Effective, EffectivePolicy, EffectiveRule, Interface};
use crate::policy::model::{Action, Mode, Stage};
use crate::policy::selector::{Labels, Selector};
use crate::simulate::{ConntrackState, Exit, Origin, Outcome, Packet, decide};

/// Interfaces that the policy treats alike: each of its selectors takes all of them or none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone {
    /// The role that they have.
    pub role: Role,
    /// Their names, sorted.
    pub interfaces: Vec<InterfaceName>,
    /// What stands for them.
    example: Interface,
    /// The link-local addresses that they have.
    link_local: BTreeSet<IpAddr>,
}

/// What is asked for: a port at which packets of a new flow arrive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Door {
    /// Their protocol.
    pub protocol: Protocol,
    /// Their destination port.
    pub port: u16,
    /// Their destination, one of which is enough.
    pub addresses: BTreeSet<IpAddr>,
    /// The only interface by which they come.
    pub device: Option<InterfaceName>,
    /// Where they go from there.
    pub target: Target,
}

/// Where packets go that came to a door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// To a socket that listens there.
    Socket,
    /// To this address and port of this host, by somebody's DNAT.
    Here(IpAddr, u16),
    /// To another host or a pod, by somebody's DNAT; by which interface they leave.
    There(IpAddr, u16, Exit),
    /// Somewhere else, nobody knows where. What is denied later than before the DNAT is not counted on.
    Elsewhere,
}

impl Target {
    fn exit(&self) -> Option<&Exit> {
        match self {
            Self::There(_, _, exit) => Some(exit),
            Self::Socket | Self::Here(..) | Self::Elsewhere => None,
        }
    }

    fn translated(&self) -> Option<(IpAddr, u16)> {
        match self {
            Self::Here(address, port) | Self::There(address, port, _) => Some((*address, *port)),
            Self::Socket | Self::Elsewhere => None,
        }
    }
}

/// A policy on a host, ready to be asked.
#[derive(Clone, Debug)]
pub struct Ground<'a> {
    effective: &'a Effective,
    zones: Vec<Zone>,
    own: BTreeSet<IpAddr>,
    world: AddrSet,
}

impl<'a> Ground<'a> {
    /// Sorts the interfaces by which packets come in: not loopback, and not the ports of a bridge or bond, whose packets come in by that.
    pub fn new(effective: &'a Effective, facts: &Facts) -> Self {
        let selectors = selectors(effective);
        let arrives = |link: &Link| {
            let master = link.master.as_ref().and_then(|name| facts.link(name.as_str()));
            let port = master.is_some_and(|master| matches!(master.kind.as_deref(), Some("bridge" | "bond" | "team")));
            link.hardware != LOOPBACK && !port
        };
        let mut zones: BTreeMap<(Role, Vec<bool>), Zone> = BTreeMap::new();
        for interface in effective.interfaces.iter().filter(|interface| interface.role != Role::Loopback) {
            let Some(link) = facts.links.get(&interface.index).filter(|link| arrives(link)) else { continue };
            let taken = selectors.iter().map(|selector| selector.matches(&interface.labels)).collect();
            let zone = zones.entry((interface.role, taken)).or_insert_with(|| Zone {
                role: interface.role,
                interfaces: Vec::new(),
                example: interface.clone(),
                link_local: BTreeSet::new(),
            });
            zone.interfaces.push(interface.name.clone());
            zone.link_local.extend(link.addresses.iter().map(ipnet::IpNet::addr).filter(is_link_local));
        }
        let own: BTreeSet<IpAddr> =
            facts.links.values().flat_map(|link| link.addresses.iter().map(ipnet::IpNet::addr)).collect();
        let world = AddrSet::full().difference(&no_peers()).difference(&own.iter().copied().collect());
        Self { effective, zones: zones.into_values().collect(), own, world }
    }

    /// The kinds of interfaces, by role.
    pub fn zones(&self) -> &[Zone] {
        &self.zones
    }

    /// This host's own addresses, without those of loopback.
    pub fn own(&self) -> impl Iterator<Item = IpAddr> {
        self.own.iter().copied().filter(|address| !address.is_loopback())
    }

    /// These ports, sorted by which of them rules tell apart.
    pub(super) fn unlike_ports(&self, protocol: Protocol, ports: &PortSet) -> Vec<PortSet> {
        let of_rule = |rule: &'a EffectiveRule| match &rule.l4 {
            L4Match::Only(protocols) => match protocols.get(&protocol) {
                Some(L4Detail::Ports(ports)) => Some(ports),
                _ => None,
            },
            L4Match::Any => None,
        };
        let sets: BTreeSet<&PortSet> = rules(self.effective).filter_map(of_rule).collect();
        classes::of_ports(ports, &sets.into_iter().collect::<Vec<_>>())
    }

    /// Everybody who can come by a zone, of the families that a door has there.
    pub(super) fn world(&self, zone: &Zone, door: &Door) -> AddrSet {
        let mut world = self.world.clone();
        let addresses = self.destinations(zone, door);
        if !addresses.iter().any(IpAddr::is_ipv4) {
            world.v4 = AddrSet::default().v4;
        }
        if !addresses.iter().any(IpAddr::is_ipv6) {
            world.v6 = AddrSet::default().v6;
        }
        world
    }

    /// Who can reach the door by a zone.
    ///
    /// A rule that denies up to a limit is none that keeps anybody out; one that allows up to a limit lets somebody in.
    pub(super) fn reached(&self, zone: &Zone, door: &Door) -> AddrSet {
        let world = self.world(zone, door);
        let destinations = self.destinations(zone, door);
        let mut reached: Vec<AddrSet> = Vec::new();
        if world.is_empty() || door.device.as_ref().is_some_and(|device| !zone.interfaces.contains(device)) {
            return AddrSet::default();
        }
        let interface = door.device.as_ref().unwrap_or(&zone.example.name);
        for with_limits in [true, false] {
            let effective = pruned(self.effective, zone, door, with_limits);
            let rules: Vec<&EffectiveRule> = rules(&effective).collect();
            let sets: Vec<&AddrSet> = rules.iter().filter_map(|rule| addresses(&rule.from)).collect();
            let destinations = unlike(&destinations, &rules);
            let asked_for: Vec<_> = rules.iter().filter_map(|rule| rule.source_ports.as_ref()).collect();
            let kinds = classes::of_ports(&RangeSet::range(1, u16::MAX), &asked_for);
            // The last of a kind: an ephemeral port, where there is one.
            let ports: Vec<u16> = kinds.iter().filter_map(|kind| Some(kind.ranges().last()?.1)).collect();
            for Class { example, addresses } in classes::of_addresses(&world, &distinct(sets)) {
                let mut packets = destinations
                    .iter()
                    .filter(|to| to.is_ipv4() == example.is_ipv4())
                    .flat_map(|to| ports.iter().map(|port| packet(door, interface, (example, *port), *to)));
                if packets.any(|packet| decide(&effective, &packet).outcome == Outcome::Accepted) {
                    reached.push(addresses);
                }
            }
            if !rules.iter().any(|rule| rule.limit.is_some()) {
                break;
            }
        }
        AddrSet {
            v4: reached.iter().flat_map(|set| set.v4.ranges().iter().copied()).collect(),
            v6: reached.iter().flat_map(|set| set.v6.ranges().iter().copied()).collect(),
        }
    }

    /// The destinations at which the door is on a zone: a link-local address is there on its own interface only.
    fn destinations(&self, zone: &Zone, door: &Door) -> BTreeSet<IpAddr> {
        let there = |address: &&IpAddr| !is_link_local(address) || zone.link_local.contains(*address);
        door.addresses.iter().filter(there).copied().collect()
    }
}

/// `ARPHRD_LOOPBACK`, include/uapi/linux/if_arp.h.
const LOOPBACK: u16 = 772;

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Addresses that no packet of a peer comes from: the kernel drops them as martians (net/ipv4/route.c, `ip_route_input_slow`;
/// net/ipv6/ip6_input.c, `ip6_rcv_core`).
pub(super) fn no_peers() -> AddrSet {
    let v4 = [(0, 0x00ff_ffff), (0x7f00_0000, 0x7fff_ffff), (0xe000_0000, u32::MAX)];
    let multicast = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).to_bits();
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0).to_bits();
    let v6 = [(0, 1), (mapped, mapped + u128::from(u32::MAX)), (multicast, u128::MAX)];
    AddrSet { v4: v4.into_iter().collect(), v6: v6.into_iter().collect() }
}

/// Whatever asks for labels of interfaces.
pub(super) fn selectors(effective: &Effective) -> Vec<&Selector> {
    let policies = effective.tiers.iter().flat_map(|tier| &tier.policies).map(|policy| &policy.interfaces);
    let mut all: Vec<&Selector> = policies.chain(effective.failsafe.iter().map(|entry| &entry.interfaces)).collect();
    all.dedup();
    all
}

pub(super) fn addresses(addresses: &Addresses) -> Option<&AddrSet> {
    match addresses {
        Addresses::Any => None,
        Addresses::Literal(set) | Addresses::Named(_, set) => Some(set),
    }
}

pub(super) fn distinct(sets: Vec<&AddrSet>) -> Vec<&AddrSet> {
    sets.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Of destinations that no rule tells apart, one of each family.
fn unlike(destinations: &BTreeSet<IpAddr>, rules: &[&EffectiveRule]) -> Vec<IpAddr> {
    let sets = distinct(rules.iter().filter_map(|rule| addresses(&rule.to)).collect());
    let mut found: BTreeMap<(bool, bool, Vec<bool>), IpAddr> = BTreeMap::new();
    for address in destinations {
        let within = sets.iter().map(|set| set.contains(*address)).collect();
        found.entry((address.is_ipv4(), address.is_loopback(), within)).or_insert(*address);
    }
    found.into_values().collect()
}

fn packet(door: &Door, interface: &InterfaceName, (source, port): (IpAddr, u16), to: IpAddr) -> Packet {
    Packet {
        direction: Direction::Ingress,
        interface: interface.clone(),
        kind: None,
        source,
        destination: to,
        protocol: Some(door.protocol),
        ports: Some((port, door.port)),
        icmp: None,
        hop_limit: 64,
        state: ConntrackState::New,
        forward: match &door.target {
            Target::Elsewhere => Some(Exit { interface: interface.clone(), kind: None }),
            target => target.exit().cloned(),
        },
        translated: door.target.translated(),
        origin: Origin::Kernel,
    }
}

fn rules(effective: &Effective) -> impl Iterator<Item = &EffectiveRule> {
    let policies = effective.tiers.iter().flat_map(|tier| &tier.policies);
    let of_policies = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    of_policies.chain(effective.failsafe.iter().map(|entry| &entry.rule))
}

/// The policy with what can matter to packets of this door on this zone: the rest would only take time.
fn pruned(effective: &Effective, zone: &Zone, door: &Door, with_limits: bool) -> Effective {
    let ports = [Some(door.port), door.target.translated().map(|(_, port)| port)];
    let fits = |rule: &EffectiveRule| ports.iter().flatten().any(|port| may_match(&rule.l4, door.protocol, *port));
    let counts = |rule: &EffectiveRule| {
        let denies = matches!(rule.action, Action::Deny | Action::Reject);
        fits(rule) && rule.action != Action::Log && (rule.limit.is_none() || (with_limits && !denies))
    };
    // What comes after a rule that may let something in is not early, whether that rule is about this door or not.
    let ends_early = |rule: &EffectiveRule| EffectiveRule {
        action: Action::Allow,
        from: Addresses::Literal(AddrSet::default()),
        ..rule.clone()
    };
    let kept = |tier: &str, rules: &Option<Vec<EffectiveRule>>| {
        let mut early = effective.early.contains(&zone.role);
        let kept = rules.as_ref()?.iter().filter_map(|rule| {
            let ends = early && early::ends(tier, rule);
            early &= !ends;
            if counts(rule) { Some(rule.clone()) } else { ends.then(|| ends_early(rule)) }
        });
        Some(kept.collect::<Vec<_>>())
    };
    let leaves =
        door.target.exit().and_then(|exit| effective.interfaces.iter().find(|known| known.name == exit.interface));
    let selects = |selector: &Selector| {
        let matches = |labels: &Labels| selector.matches(labels);
        matches(&zone.example.labels)
            || leaves.map_or(door.target.exit().is_some(), |interface| matches(&interface.labels))
    };
    let policies = |tier: &str, policy: &EffectivePolicy| {
        let asked = door.target != Target::Elsewhere || matches!(policy.stage, Stage::Untracked | Stage::Prednat);
        (asked && selects(&policy.interfaces) && policy.mode == Mode::Enforce).then(|| EffectivePolicy {
            ingress: kept(tier, &policy.ingress),
            egress: kept(tier, &policy.egress),
            name: policy.name.clone(),
            interfaces: policy.interfaces.clone(),
            place: policy.place.clone(),
            stage: policy.stage,
            expires: policy.expires,
            mode: policy.mode,
        })
    };
    let tiers = effective.tiers.iter().map(|tier| crate::policy::effective::EffectiveTier {
        name: tier.name.clone(),
        default: tier.default,
        policies: tier.policies.iter().filter_map(|policy| policies(&tier.name, policy)).collect(),
    });
    let device =
        door.device.as_ref().and_then(|device| effective.interfaces.iter().find(|known| known.name == *device));
    let mut interfaces = vec![zone.example.clone()];
    interfaces.extend(device.cloned());
    interfaces.extend(leaves.cloned());
    interfaces.sort_by(|one, other| one.name.cmp(&other.name));
    interfaces.dedup_by(|one, other| one.name == other.name);
    Effective {
        tiers: tiers.collect(),
        interfaces,
        failsafe: effective
            .failsafe
            .iter()
            .filter(|entry| entry.rules(Direction::Ingress).iter().any(fits))
            .cloned()
            .collect(),
        mode: effective.mode,
        rails: BTreeMap::new(),
        remembered: effective.remembered.clone(),
        expected: effective.expected.clone(),
        unknown: effective.unknown.clone(),
        named: effective.named.clone(),
        defaults: effective.defaults.clone(),
        early: effective.early.clone(),
        accept_mark: effective.accept_mark,
        drop_invalid: effective.drop_invalid,
        log: effective.log,
    }
}

/// Whether a packet of this protocol to this port can match.
fn may_match(l4: &L4Match, protocol: Protocol, port: u16) -> bool {
    match l4 {
        L4Match::Only(protocols) => match protocols.get(&protocol) {
            Some(L4Detail::Ports(ports)) => ports.contains(port),
            Some(L4Detail::All) => true,
            Some(L4Detail::Icmp(_)) | None => false,
        },
        L4Match::Any => true,
    }
}
