//! Which packets of new flows two policies treat otherwise on one host: for all addresses and ports, as rules do not tell most of them
//! apart. Forwarded packets, local processes and limits are not asked about.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::classes::{self, Class};
use super::peers::{self, Named, Peer};
use super::reach::{addresses, distinct, no_peers, selectors};
use crate::net::addr::AddrSet;
use crate::net::facts::Facts;
use crate::net::interface::{Direction, Role};
use crate::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::effective::{Addresses, Effective, EffectivePolicy, EffectiveRule, EffectiveTier, Interface};
use crate::policy::guards;
use crate::policy::model::{Mode, Stage, TierDefault};
use crate::simulate::{ConntrackState, Origin, Outcome, Packet, decide};

/// Packets that one of two policies lets through and the other does not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Contrast {
    /// To the host or from it.
    pub direction: Direction,
    /// What they carry.
    pub what: Vec<Traffic>,
    /// With whom.
    pub peers: Vec<Peer>,
    /// Whether it is the first policy that lets them through.
    pub first_allows: bool,
    /// By which interfaces: roles, with names where others of the role are treated otherwise.
    pub zones: Vec<String>,
    /// The addresses of those peers, on any of these interfaces.
    pub addresses: AddrSet,
}

/// What packets carry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// These destination ports of a protocol.
    Ports(Protocol, PortSet),
    /// One type of ICMP or ICMPv6.
    Icmp(Protocol, u8),
    /// A protocol; of ICMP, the types that no rule names.
    Protocol(Protocol),
    /// Every protocol that no rule names.
    Others,
}

/// Nobody's protocol (`IPPROTO_253`, RFC 3692), and a type of ICMP and ICMPv6 for experiments (RFC 4727): they stand for the rest.
const EXPERIMENT: Protocol = Protocol(253);
const ICMP_EXPERIMENT: u8 = 253;
const ICMPV6_EXPERIMENT: u8 = 200;

/// Interfaces that both policies treat alike.
struct Zone {
    role: Role,
    interfaces: Vec<Interface>,
    own: BTreeSet<IpAddr>,
}

/// What two policies on the interfaces of `facts` treat otherwise. Both have the same interfaces.
pub fn contrast(first: &Effective, second: &Effective, facts: &Facts, sets: &[Named]) -> Vec<Contrast> {
    let zones = zones(first, second, facts);
    let own: AddrSet = zones.iter().flat_map(|zone| &zone.own).copied().collect();
    let world = AddrSet::full().difference(&no_peers()).difference(&own);
    let mut found: Vec<Contrast> = Vec::new();
    for zone in &zones {
        let alone = zones.iter().filter(|other| other.role == zone.role).count() == 1;
        for direction in Direction::BOTH {
            for mut new in of_zone((first, second), zone, direction, &world, sets) {
                match found.iter_mut().find(|known| known.is_like(&new)) {
                    Some(known) => {
                        known.zones.push(zone.name(alone));
                        known.addresses = known.addresses.union(&new.addresses);
                    }
                    None => {
                        new.zones.push(zone.name(alone));
                        found.push(new);
                    }
                }
            }
        }
    }
    found.sort();
    found
}

impl Contrast {
    /// Whether another one says the same of other interfaces.
    fn is_like(&self, other: &Self) -> bool {
        let Self { direction, what, peers, first_allows, zones: _, addresses: _ } = self;
        *direction == other.direction
            && *what == other.what
            && *peers == other.peers
            && *first_allows == other.first_allows
    }
}

impl Zone {
    fn name(&self, alone: bool) -> String {
        if alone {
            return self.role.to_string();
        }
        let names: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        format!("{} ({})", self.role, names.join(", "))
    }
}

fn zones(first: &Effective, second: &Effective, facts: &Facts) -> Vec<Zone> {
    let mut asked = selectors(first);
    asked.extend(selectors(second));
    let mut zones: BTreeMap<(Role, Vec<bool>), Zone> = BTreeMap::new();
    for interface in first.interfaces.iter().filter(|interface| interface.role != Role::Loopback) {
        let taken = asked.iter().map(|selector| selector.matches(&interface.labels)).collect();
        let new = || Zone { role: interface.role, interfaces: Vec::new(), own: BTreeSet::new() };
        let zone = zones.entry((interface.role, taken)).or_insert_with(new);
        zone.interfaces.push(interface.clone());
        let link = facts.links.get(&interface.index);
        zone.own.extend(link.into_iter().flat_map(|link| link.addresses.iter().map(ipnet::IpNet::addr)));
    }
    zones.into_values().collect()
}

/// What differs by the interfaces of a zone.
fn of_zone(
    (first, second): (&Effective, &Effective),
    zone: &Zone,
    direction: Direction,
    world: &AddrSet,
    sets: &[Named],
) -> Vec<Contrast> {
    let Some(example) = zone.interfaces.first() else { return Vec::new() };
    let mut world = world.clone();
    if !zone.own.iter().any(IpAddr::is_ipv4) {
        world.v4 = RangeSet::empty();
    }
    if !zone.own.iter().any(IpAddr::is_ipv6) {
        world.v6 = RangeSet::empty();
    }
    let (first, second) = (Narrow::new(first, example, direction), Narrow::new(second, example, direction));
    let rules: Vec<&EffectiveRule> =
        [first.policy, second.policy].into_iter().flat_map(|policy| rules(policy, example, direction)).collect();
    let mut found: BTreeMap<(AddrSet, bool), Vec<Traffic>> = BTreeMap::new();
    for traffic in kinds(&rules) {
        let rules: Vec<&EffectiveRule> = rules.iter().copied().filter(|rule| traffic.may_match(&rule.l4)).collect();
        let question = Question { zone, example, direction, traffic: &traffic, rules: &rules };
        let (one, other) = (first.tiers(&question), second.tiers(&question));
        if one == other && first.rest == second.rest {
            continue;
        }
        let (one, other) = (first.with(one), second.with(other));
        let [one, other] = question.ask([&one, &other], &world);
        for (more, less, first_allows) in [(&one, &other, true), (&other, &one, false)] {
            let only = more.difference(less);
            if !only.is_empty() {
                found.entry((only, first_allows)).or_default().push(traffic.clone());
            }
        }
    }
    let contrast = |((addresses, first_allows), mut what): ((AddrSet, bool), Vec<Traffic>)| {
        // Each family has its own.
        what.retain(|traffic| match traffic.protocol() {
            Protocol::ICMP => !addresses.v4.is_empty(),
            Protocol::ICMPV6 => !addresses.v6.is_empty(),
            _ => true,
        });
        let peers = peers::name(&addresses, &world, sets);
        let zones = Vec::new();
        (!what.is_empty()).then(|| Contrast { direction, what: joined(what), peers, first_allows, zones, addresses })
    };
    found.into_iter().filter_map(contrast).collect()
}

/// Ports of one protocol together.
fn joined(traffic: Vec<Traffic>) -> Vec<Traffic> {
    let mut ports: BTreeMap<Protocol, PortSet> = BTreeMap::new();
    let mut rest = Vec::new();
    for one in traffic {
        match one {
            Traffic::Ports(protocol, more) => {
                let known = ports.entry(protocol).or_insert_with(PortSet::empty);
                *known = known.union(&more);
            }
            other => rest.push(other),
        }
    }
    rest.sort();
    ports.into_iter().map(|(protocol, ports)| Traffic::Ports(protocol, ports)).chain(rest).collect()
}

/// The rules that may decide about packets of an interface.
fn rules<'a>(
    effective: &'a Effective,
    interface: &Interface,
    direction: Direction,
) -> impl Iterator<Item = &'a EffectiveRule> {
    let labels = interface.labels.clone();
    let policies = effective.tiers.iter().flat_map(|tier| &tier.policies).filter(move |policy| {
        policy.mode == Mode::Enforce && policy.stage != Stage::Forward && policy.interfaces.matches(&labels)
    });
    let of_policies = policies.flat_map(move |policy| policy.rules(direction).into_iter().flatten());
    of_policies.chain(effective.failsafe.iter().flat_map(move |entry| entry.rules(direction)))
}

/// Everything that there is, in kinds that no rule tells apart.
fn kinds(rules: &[&EffectiveRule]) -> Vec<Traffic> {
    let mut with_ports = BTreeMap::from([(Protocol::TCP, BTreeSet::new()), (Protocol::UDP, BTreeSet::new())]);
    let mut types = BTreeMap::from([(Protocol::ICMP, BTreeSet::new()), (Protocol::ICMPV6, BTreeSet::new())]);
    let mut whole = BTreeSet::new();
    for rule in rules {
        let L4Match::Only(protocols) = &rule.l4 else { continue };
        for (protocol, detail) in protocols {
            match detail {
                L4Detail::Ports(ports) => drop(with_ports.entry(*protocol).or_default().insert(ports)),
                L4Detail::Icmp(of) => types.entry(*protocol).or_default().extend(of.keys().copied()),
                L4Detail::All => drop(whole.insert(*protocol)),
            }
        }
    }
    let mut kinds = Vec::new();
    for (protocol, sets) in &with_ports {
        let sets: Vec<&PortSet> = sets.iter().copied().collect();
        let ports = classes::of_ports(&PortSet::range(1, u16::MAX), &sets);
        kinds.extend(ports.into_iter().map(|ports| Traffic::Ports(*protocol, ports)));
    }
    for (protocol, types) in &types {
        kinds.extend(types.iter().map(|kind| Traffic::Icmp(*protocol, *kind)));
        kinds.push(Traffic::Protocol(*protocol));
    }
    let told = |protocol: &Protocol| with_ports.contains_key(protocol) || types.contains_key(protocol);
    kinds.extend(whole.into_iter().filter(|protocol| !told(protocol)).map(Traffic::Protocol));
    kinds.push(Traffic::Others);
    kinds
}

impl Traffic {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Ports(protocol, _) | Self::Icmp(protocol, _) | Self::Protocol(protocol) => *protocol,
            Self::Others => EXPERIMENT,
        }
    }

    /// The source port, which is given, and the destination port of a packet.
    fn ports(&self, from: u16) -> Option<(u16, u16)> {
        match self {
            Self::Ports(_, ports) => ports.ranges().first().map(|(first, _)| (from, *first)),
            Self::Protocol(protocol) if protocol.has_ports() => Some((from, 1)),
            Self::Icmp(..) | Self::Protocol(_) | Self::Others => None,
        }
    }

    /// The type and code of a packet.
    fn icmp(&self) -> Option<(u8, u8)> {
        match self {
            Self::Icmp(_, kind) => Some((*kind, 0)),
            Self::Protocol(Protocol::ICMP) => Some((ICMP_EXPERIMENT, 0)),
            Self::Protocol(Protocol::ICMPV6) => Some((ICMPV6_EXPERIMENT, 0)),
            Self::Ports(..) | Self::Protocol(_) | Self::Others => None,
        }
    }

    fn may_match(&self, l4: &L4Match) -> bool {
        let L4Match::Only(protocols) = l4 else { return true };
        match (self, protocols.get(&self.protocol())) {
            (_, None) => false,
            (Self::Ports(_, asked), Some(L4Detail::Ports(ports))) => !asked.is_disjoint(ports),
            (Self::Icmp(_, kind), Some(L4Detail::Icmp(types))) => types.contains_key(kind),
            (Self::Protocol(_), Some(L4Detail::Icmp(_))) => false,
            _ => true,
        }
    }
}

/// A policy for packets of one interface in one direction.
struct Narrow<'a> {
    policy: &'a Effective,
    /// The policies that count there.
    tiers: Vec<(&'a EffectiveTier, Vec<&'a EffectivePolicy>)>,
    /// All but the tiers.
    rest: Effective,
}

impl<'a> Narrow<'a> {
    fn new(policy: &'a Effective, example: &Interface, direction: Direction) -> Self {
        let counts = |policy: &&EffectivePolicy| {
            let decides = policy.mode == Mode::Enforce && policy.stage != Stage::Forward;
            decides && policy.rules(direction).is_some() && policy.interfaces.matches(&example.labels)
        };
        // A guard takes essentials away, whatever its direction.
        let guards = |tier: &EffectiveTier| tier.name == guards::TIER;
        let of_tier = |tier: &'a EffectiveTier| {
            (tier, tier.policies.iter().filter(|policy| guards(tier) || counts(policy)).collect())
        };
        let rest = Effective {
            mode: policy.mode,
            interfaces: vec![example.clone()],
            rails: BTreeMap::new(),
            remembered: policy.remembered.clone(),
            expected: Vec::new(),
            unknown: policy.unknown.clone(),
            failsafe: policy.failsafe.clone(),
            tiers: Vec::new(),
            // What sets are called in the kernel is nothing to a packet.
            named: Arc::default(),
            defaults: policy.defaults.clone(),
            early: policy.early.clone(),
            accept_mark: policy.accept_mark,
            drop_invalid: policy.drop_invalid,
            log: policy.log,
        };
        Self { policy, tiers: policy.tiers.iter().map(of_tier).collect(), rest }
    }

    /// The tiers with what can matter to such packets: the rest would only take time.
    fn tiers(&self, question: &Question<'_>) -> Vec<EffectiveTier> {
        // What is early depends on rules about other packets.
        let all = self.rest.early.contains(&question.zone.role);
        let of_direction = |rules: &Option<Vec<EffectiveRule>>| {
            let matters = |rule: &&EffectiveRule| all || question.traffic.may_match(&rule.l4);
            rules.as_ref().map(|rules| rules.iter().filter(matters).cloned().collect::<Vec<_>>())
        };
        let of_policy = |tier: &EffectiveTier, policy: &EffectivePolicy| {
            let (ingress, egress) = (of_direction(&policy.ingress), of_direction(&policy.egress));
            let of_this = if question.direction == Direction::Ingress { &ingress } else { &egress };
            let has_rules = of_this.as_ref().is_some_and(|rules| !rules.is_empty());
            // Without a rule it still governs, which counts where the tier denies, or where a stage is there by it.
            let governs = tier.default == TierDefault::Deny || policy.stage != Stage::Host;
            (has_rules || governs || tier.name == guards::TIER).then(|| EffectivePolicy {
                name: policy.name.clone(),
                stage: policy.stage,
                expires: policy.expires,
                mode: policy.mode,
                interfaces: policy.interfaces.clone(),
                ingress,
                egress,
                place: policy.place.clone(),
            })
        };
        let tiers = self.tiers.iter().map(|(tier, policies)| EffectiveTier {
            name: tier.name.clone(),
            default: tier.default,
            policies: policies.iter().filter_map(|policy| of_policy(tier, policy)).collect(),
        });
        tiers.filter(|tier| !tier.policies.is_empty()).collect()
    }

    fn with(&self, tiers: Vec<EffectiveTier>) -> Effective {
        Effective { tiers, ..self.rest.clone() }
    }
}

/// One side of a rule.
type Side = fn(&EffectiveRule) -> &Addresses;

/// One kind of packets by one kind of interfaces.
struct Question<'a> {
    zone: &'a Zone,
    example: &'a Interface,
    direction: Direction,
    traffic: &'a Traffic,
    /// The rules that may decide about it.
    rules: &'a [&'a EffectiveRule],
}

impl Question<'_> {
    /// The peers with which each of the policies lets such packets through, to or from at least one of the host's own addresses.
    fn ask(&self, policies: [&Effective; 2], world: &AddrSet) -> [AddrSet; 2] {
        let (peer, own): (Side, Side) = match self.direction {
            Direction::Ingress => (|rule| &rule.from, |rule| &rule.to),
            Direction::Egress => (|rule| &rule.to, |rule| &rule.from),
        };
        let sets = |side: Side| distinct(self.rules.iter().filter_map(|rule| addresses(side(rule))).collect());
        let told_apart = sets(own);
        let mut unlike: BTreeMap<(bool, Vec<bool>), IpAddr> = BTreeMap::new();
        for address in &self.zone.own {
            let within = told_apart.iter().map(|set| set.contains(*address)).collect();
            unlike.entry((address.is_ipv4(), within)).or_insert(*address);
        }
        let asked_for: Vec<&PortSet> = self.rules.iter().filter_map(|rule| rule.source_ports.as_ref()).collect();
        let ports = classes::of_ports(&PortSet::range(1, u16::MAX), &asked_for);
        // The last of a kind: an ephemeral port, where there is one.
        let ports: Vec<u16> = ports.iter().filter_map(|kind| Some(kind.ranges().last()?.1)).collect();
        let classes = classes::of_addresses(world, &sets(peer));
        policies.map(|effective| {
            let mut reached: Vec<&AddrSet> = Vec::new();
            for Class { example, addresses } in &classes {
                let own = unlike.values().filter(|own| own.is_ipv4() == example.is_ipv4());
                let mut packets = own.flat_map(|own| ports.iter().map(|port| self.packet(*own, *example, *port)));
                if packets.any(|packet| decide(effective, &packet).outcome == Outcome::Accepted) {
                    reached.push(addresses);
                }
            }
            AddrSet {
                v4: reached.iter().flat_map(|set| set.v4.ranges().iter().copied()).collect(),
                v6: reached.iter().flat_map(|set| set.v6.ranges().iter().copied()).collect(),
            }
        })
    }

    fn packet(&self, own: IpAddr, peer: IpAddr, from: u16) -> Packet {
        let (source, destination) = match self.direction {
            Direction::Ingress => (peer, own),
            Direction::Egress => (own, peer),
        };
        Packet {
            direction: self.direction,
            interface: self.example.name.clone(),
            kind: None,
            source,
            destination,
            protocol: Some(self.traffic.protocol()),
            ports: self.traffic.ports(from),
            icmp: self.traffic.icmp(),
            hop_limit: 64,
            state: ConntrackState::New,
            forward: None,
            translated: None,
            origin: Origin::Kernel,
        }
    }
}
