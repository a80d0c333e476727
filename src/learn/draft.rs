//! The draft: which rules would let through what went on, in as few as say it, and what was left out of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Options;
use super::gather::{Flow, Gathered, Seen};
use super::ground::Ground;
use super::peers::{Names, Peers};
use super::services::{self, Question};
use super::triage::{Apart, Fate, Judged, triage};
use crate::net::interface::{Direction, Role};
use crate::net::protocol::Protocol;
use crate::policy::model::{Policy, ServicePort};
use crate::simulate::Reason;
use crate::traffic::{Actor, Service};

/// A policy for review.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Draft {
    /// Sets that the policy does not have yet.
    pub sets: Vec<NewSet>,
    /// Services that the policy does not have yet.
    pub services: Vec<NewService>,
    /// One policy for each kind of interface.
    pub policies: Vec<NewPolicy>,
    /// What is not allowed by it, and why; sorted.
    pub left_out: Vec<LeftOut>,
    /// How many connections the policy of today lets through already.
    pub covered: u64,
}

/// Addresses that no set has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewSet {
    /// Its name.
    pub name: String,
    /// Its members, each with the connections that were seen.
    pub members: BTreeMap<IpNet, u64>,
}

/// Ports that no service has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewService {
    /// Its name.
    pub name: String,
    /// Its ports, as documents have them: "tcp/9000".
    pub ports: Vec<String>,
}

/// Rules for interfaces of some roles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewPolicy {
    /// Its name.
    pub name: String,
    /// Its tier: one in which it comes before what denies today.
    pub tier: String,
    /// Its place in the tier: two policies without one would be an error.
    pub order: i64,
    /// The roles.
    pub roles: BTreeSet<Role>,
    /// Its rules, by direction; a direction without rules is not governed.
    pub rules: BTreeMap<Direction, Vec<NewRule>>,
}

/// A rule that allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRule {
    /// The names of services.
    pub services: BTreeSet<String>,
    /// Sets, those of the draft among them.
    pub sets: BTreeSet<String>,
    /// A selector over nodes, with a role.
    pub nodes: Option<(String, Option<Role>)>,
    /// What it is for.
    pub evidence: Evidence,
    /// Ports of its services that were not seen.
    pub unseen: Vec<String>,
}

/// What was seen of something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Evidence {
    /// Who.
    pub peers: BTreeSet<IpAddr>,
    /// How many connections.
    pub connections: u64,
    /// The first, in microseconds since 1970-01-01 UTC.
    pub first: Option<u64>,
    /// The last.
    pub last: Option<u64>,
    /// The processes of this host, or their units and pods.
    pub processes: BTreeSet<String>,
}

/// Something that the draft does not allow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LeftOut {
    /// Why.
    pub why: Apart,
    /// Who began.
    pub direction: Direction,
    /// The role of the interface.
    pub role: Option<Role>,
    /// What was asked for, at most [`MOST_WORDS`] of it: "tcp/22".
    pub services: Vec<String>,
    /// How much more was asked for.
    pub more: usize,
    /// Who and how often.
    pub evidence: Evidence,
}

/// How many services of something that is left out are named.
pub const MOST_WORDS: usize = 6;
/// So far behind the others of its tier a policy stands that has nothing to go before: more than there are roles.
const LAST_ORDER: i64 = 1000;
/// More addresses than these nobody reviews.
const MOST_LITERALS: usize = 512;

impl Evidence {
    fn add(&mut self, peer: Option<IpAddr>, seen: &Seen) {
        self.peers.extend(peer);
        self.connections = self.connections.saturating_add(seen.all());
        self.first = Some(self.first.map_or(seen.first, |first| first.min(seen.first)));
        self.last = Some(self.last.map_or(seen.last, |last| last.max(seen.last)));
        self.processes.extend(seen.actors.iter().map(called).filter(|name| !name.is_empty()));
    }

    fn join(&mut self, other: &Self) {
        self.peers.extend(&other.peers);
        self.connections = self.connections.saturating_add(other.connections);
        self.first = self.first.into_iter().chain(other.first).min();
        self.last = self.last.max(other.last);
        self.processes.extend(other.processes.iter().cloned());
    }
}

/// A process in one word.
fn called(actor: &Actor) -> String {
    match (actor.process.is_empty(), &actor.unit, &actor.pod) {
        (false, ..) => actor.process.clone(),
        (true, Some(name), _) | (true, None, Some(name)) => name.clone(),
        (true, None, None) => String::new(),
    }
}

/// What a rule is about before it is known who its peers are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    /// A service of the policy.
    Named(String),
    /// One that has to be made.
    New(Protocol, Service),
    /// The ephemeral ports of a protocol.
    Moving(Protocol),
}

/// Flows that become one rule, or part of one.
#[derive(Clone, Debug, Default)]
struct Purpose {
    peers: BTreeMap<IpAddr, u64>,
    ports: BTreeSet<(Protocol, u16)>,
    actors: BTreeSet<Actor>,
    evidence: Evidence,
}

/// Drafts a policy that lets through what is wanted of what was gathered.
pub fn draft(gathered: &Gathered, ground: &Ground<'_>, options: &Options) -> Draft {
    let names = Names::new(ground.policy, ground.facts);
    let judged = triage(gathered, ground, &names, options);
    let strangers: BTreeSet<IpAddr> = judged
        .iter()
        .filter(|one| matches!(one.fate, Fate::Apart(Apart::Scan | Apart::Denied | Apart::ByRule(_))))
        .filter_map(|one| one.flow.peer)
        .collect();
    let mut work = Work { ground, draft: Draft::default(), taken: Taken::of(ground.policy) };
    let mut too_many = Vec::new();
    let mut pieces = Vec::new();
    for ((direction, role, what), purpose) in work.purposes(&judged) {
        let peers: BTreeSet<IpAddr> = purpose.peers.keys().copied().collect();
        let peers = names.cover(&peers, options.generalise, &strangers);
        if peers.literals.len() > MOST_LITERALS {
            too_many.push((direction, role, what, purpose));
            continue;
        }
        pieces.push(Piece { direction, role, what, purpose, peers });
    }
    let placement = placement(&judged, ground.policy);
    work.leave_out(&judged, &pieces, too_many);
    work.rules(pieces, &placement);
    let covered = judged.iter().filter(|one| one.fate == Fate::Covered);
    work.draft.covered = covered.fold(0, |sum, one| sum.saturating_add(one.seen.connections));
    work.draft
}

struct Piece {
    direction: Direction,
    role: Role,
    what: What,
    purpose: Purpose,
    peers: Peers,
}

/// The names of documents that there are.
struct Taken {
    sets: BTreeSet<String>,
    services: BTreeSet<String>,
    policies: BTreeSet<String>,
}

impl Taken {
    fn of(policy: &Policy) -> Self {
        Self {
            sets: policy.sets.keys().cloned().collect(),
            services: policy.services.keys().cloned().collect(),
            policies: policy.policies.iter().map(|policy| policy.name.clone()).collect(),
        }
    }
}

/// A name that nobody has: this one, or with a number.
fn unique(taken: &mut BTreeSet<String>, wanted: &str) -> String {
    let wanted: String = wanted.chars().take(56).collect();
    let numbered = (2_u32..).map(|number| format!("{wanted}-{number}"));
    let free = std::iter::once(wanted.clone()).chain(numbered).find(|name| !taken.contains(name)).unwrap_or(wanted);
    taken.insert(free.clone());
    free
}

/// The rules of one policy to be, by what makes them one: direction, services, sets, nodes.
type Shape = (Direction, BTreeSet<String>, BTreeSet<String>, Option<(String, Option<Role>)>);

struct Work<'w, 'a> {
    ground: &'w Ground<'a>,
    draft: Draft,
    taken: Taken,
}

impl Work<'_, '_> {
    /// What is wanted, by direction, role and service.
    fn purposes(&self, judged: &[Judged<'_>]) -> BTreeMap<(Direction, Role, What), Purpose> {
        let wanted = || judged.iter().filter(|one| matches!(one.fate, Fate::Wanted(_)));
        // Names depend on all that is at a port, whoever it was.
        type Port = (Direction, Role, Protocol, Service);
        let port = |one: &Judged<'_>| -> Option<Port> {
            Some((one.flow.direction, one.role?, one.flow.protocol?, one.flow.service))
        };
        let mut at: BTreeMap<Port, (BTreeSet<Actor>, BTreeSet<IpAddr>)> = BTreeMap::new();
        let mut beside: BTreeMap<(Direction, Role, Protocol), BTreeSet<u16>> = BTreeMap::new();
        for one in wanted().filter(|one| !one.moving) {
            let Some(port @ (direction, role, protocol, service)) = port(one) else { continue };
            let (actors, peers) = at.entry(port).or_default();
            actors.extend(one.seen.actors.iter().cloned());
            peers.extend(one.flow.peer);
            if let Service::Port(port) = service {
                beside.entry((direction, role, protocol)).or_default().insert(port);
            }
        }
        let nothing = BTreeSet::new();
        let what: BTreeMap<Port, What> = at
            .iter()
            .map(|(port @ (direction, role, protocol, service), (actors, peers))| {
                let beside = beside.get(&(*direction, *role, *protocol)).unwrap_or(&nothing);
                let (direction, role, protocol, service) = (*direction, *role, *protocol, *service);
                let question = Question { direction, role, protocol, service, actors, peers, beside };
                let found = services::find(self.ground.policy, &question);
                (*port, found.map_or(What::New(protocol, service), |found| What::Named(found.name.clone())))
            })
            .collect();
        let mut purposes: BTreeMap<(Direction, Role, What), Purpose> = BTreeMap::new();
        for one in wanted() {
            let (Some(port @ (direction, role, protocol, service)), Some(peer)) = (port(one), one.flow.peer) else {
                continue;
            };
            let what = if one.moving { Some(What::Moving(protocol)) } else { what.get(&port).cloned() };
            let Some(what) = what else { continue };
            let purpose = purposes.entry((direction, role, what)).or_default();
            let connections = purpose.peers.entry(peer).or_default();
            *connections = connections.saturating_add(one.seen.all());
            if let Service::Port(port) = service {
                purpose.ports.insert((protocol, port));
            }
            purpose.actors.extend(one.seen.actors.iter().cloned());
            purpose.evidence.add(Some(peer), one.seen);
        }
        purposes
    }

    /// Notes what is set apart, but for one-offs that a rule lets through after all.
    fn leave_out(&mut self, judged: &[Judged<'_>], pieces: &[Piece], too_many: Vec<(Direction, Role, What, Purpose)>) {
        let allowed = |one: &Judged<'_>, peer: IpAddr| {
            pieces.iter().any(|piece| {
                let there = piece.direction == one.flow.direction && Some(piece.role) == one.role;
                there && piece.peers.addresses.contains(peer) && self.is(&piece.what, one.flow)
            })
        };
        // A line is about a peer, or about a service.
        type About = (Apart, Direction, Option<Role>, Option<IpAddr>, Option<String>);
        type Asked = BTreeSet<(Option<Protocol>, Service)>;
        let mut left: BTreeMap<About, (Asked, Evidence)> = BTreeMap::new();
        for one in judged {
            let Fate::Apart(why) = &one.fate else { continue };
            let by_peer = matches!(why, Apart::Scan | Apart::OneOff);
            let spared = matches!(why, Apart::OneOff | Apart::Unanswered | Apart::Flood);
            if spared && one.flow.peer.is_some_and(|peer| allowed(one, peer)) {
                continue;
            }
            // A scanner or a stranger is a line, and so is a service that many tried in vain.
            let service = (!by_peer).then(|| words(one.flow));
            let peer = one.flow.peer.filter(|_| by_peer);
            let role = one.role.filter(|_| *why != Apart::Scan);
            let (services, evidence) = left.entry((why.clone(), one.flow.direction, role, peer, service)).or_default();
            services.insert((one.flow.protocol, one.flow.service));
            evidence.add(one.flow.peer, one.seen);
        }
        for ((why, direction, role, _, _), (services, evidence)) in left {
            let more = services.len().saturating_sub(MOST_WORDS);
            let named = services.iter().take(MOST_WORDS).map(|(protocol, service)| service_words(*protocol, *service));
            let services = named.collect();
            self.draft.left_out.push(LeftOut { why, direction, role, services, more, evidence });
        }
        for (direction, role, what, purpose) in too_many {
            let services = vec![match what {
                What::Named(name) => name,
                What::New(protocol, service) => services::port_words(protocol, service),
                What::Moving(protocol) => format!("{protocol}, ephemeral"),
            }];
            let evidence = purpose.evidence;
            self.draft.left_out.push(LeftOut {
                why: Apart::TooMany,
                direction,
                role: Some(role),
                services,
                more: 0,
                evidence,
            });
        }
        self.draft.left_out.sort();
    }

    /// Whether a flow is of what a rule lets through.
    fn is(&self, what: &What, flow: &Flow) -> bool {
        match (what, flow.protocol) {
            (What::Moving(of), Some(protocol)) => {
                *of == protocol && matches!(flow.service, Service::Port(port) if self.ground.ephemeral.contains(port))
            }
            // Many at once are of peers of a job, if of anything.
            (What::Moving(_), None) => flow.service == Service::Many,
            (What::New(of, service), Some(protocol)) => *of == protocol && *service == flow.service,
            (What::Named(name), Some(protocol)) => self.ground.policy.services.get(name).is_some_and(|service| {
                service.ports.iter().any(|port| match (port, flow.service) {
                    (ServicePort::Ports(of, ports), Service::Port(port)) => *of == protocol && ports.contains(port),
                    (ServicePort::Icmp(of, types), Service::Icmp(kind, _)) => {
                        *of == protocol && types.contains_key(&kind)
                    }
                    (ServicePort::Protocol(of), _) => *of == protocol,
                    _ => false,
                })
            }),
            (_, None) => false,
        }
    }

    /// Puts pieces together: services with the same peers are a rule, and roles with the same rules a policy.
    fn rules(&mut self, pieces: Vec<Piece>, placement: &Placement) {
        let services = self.services(&pieces);
        // Services with the same peers on the same role.
        let mut by_peers: BTreeMap<(Direction, Role, Peers), Vec<(String, Piece)>> = BTreeMap::new();
        for (name, piece) in services.into_iter().zip(pieces) {
            by_peers.entry((piece.direction, piece.role, piece.peers.clone())).or_default().push((name, piece));
        }
        let mut by_shape: BTreeMap<Shape, (BTreeSet<Role>, Evidence, BTreeSet<String>)> = BTreeMap::new();
        for ((direction, role, peers), parts) in by_peers {
            let services: BTreeSet<String> = parts.iter().map(|(name, _)| name.clone()).collect();
            let mut sets = peers.sets.clone();
            if !peers.literals.is_empty() {
                sets.insert(self.set(direction, &parts, &peers));
            }
            let shape = (direction, services, sets, peers.nodes.clone());
            let (roles, evidence, unseen) = by_shape.entry(shape).or_default();
            roles.insert(role);
            for (_, piece) in &parts {
                evidence.join(&piece.purpose.evidence);
                unseen.extend(self.unseen(piece));
            }
        }
        let mut policies: BTreeMap<BTreeSet<Role>, BTreeMap<Direction, Vec<NewRule>>> = BTreeMap::new();
        for ((direction, services, sets, nodes), (roles, evidence, unseen)) in by_shape {
            let rule = NewRule { services, sets, nodes, evidence, unseen: unseen.into_iter().collect() };
            policies.entry(roles).or_default().entry(direction).or_default().push(rule);
        }
        for (number, (roles, rules)) in (0_i64..).zip(policies) {
            let of_roles: Vec<&str> = roles.iter().map(|role| role.name()).collect();
            let name = unique(&mut self.taken.policies, &format!("learned-{}", of_roles.join("-")));
            let order = placement.first.saturating_sub(number);
            self.draft.policies.push(NewPolicy { name, tier: placement.tier.clone(), order, roles, rules });
        }
    }

    /// The name of each piece's service; those that there are not yet are made.
    fn services(&mut self, pieces: &[Piece]) -> Vec<String> {
        let mut made: BTreeMap<(Protocol, Service), String> = BTreeMap::new();
        let mut ranges: BTreeMap<Protocol, String> = BTreeMap::new();
        let mut found = Vec::new();
        for piece in pieces {
            let name = match &piece.what {
                What::Named(name) => name.clone(),
                What::New(protocol, service) => match made.get(&(*protocol, *service)) {
                    Some(name) => name.clone(),
                    None => {
                        let wanted = services::invent(*protocol, *service, &piece.purpose.actors);
                        let wanted = match (self.taken.services.contains(&wanted), service) {
                            (true, Service::Port(port)) => format!("{wanted}-{port}"),
                            _ => wanted,
                        };
                        let name = unique(&mut self.taken.services, &wanted);
                        let ports = vec![services::port_words(*protocol, *service)];
                        self.draft.services.push(NewService { name: name.clone(), ports });
                        made.insert((*protocol, *service), name.clone());
                        name
                    }
                },
                What::Moving(protocol) => {
                    let range = &self.ground.ephemeral;
                    let known = services::of_range(self.ground.policy, *protocol, range, &piece.purpose.actors);
                    match (known, ranges.get(protocol)) {
                        (Some(known), _) => known.name.clone(),
                        (None, Some(name)) => name.clone(),
                        (None, None) => {
                            let name = unique(&mut self.taken.services, &format!("job-peers-{protocol}"));
                            let port = |(first, last): &(u16, u16)| format!("{protocol}/{first}-{last}");
                            let ports = range.ranges().iter().map(port).collect();
                            self.draft.services.push(NewService { name: name.clone(), ports });
                            ranges.insert(*protocol, name.clone());
                            name
                        }
                    }
                }
            };
            found.push(name);
        }
        found
    }

    /// The set for addresses without a name: one for each collection of them.
    fn set(&mut self, direction: Direction, parts: &[(String, Piece)], peers: &Peers) -> String {
        let mut members: BTreeMap<IpNet, u64> = peers.literals.iter().map(|net| (*net, 0)).collect();
        for (_, piece) in parts {
            for (peer, connections) in &piece.purpose.peers {
                if let Some((_, sum)) = members.iter_mut().find(|(net, _)| net.contains(peer)) {
                    *sum = sum.saturating_add(*connections);
                }
            }
        }
        let same = |set: &&mut NewSet| set.members.keys().eq(members.keys());
        if let Some(known) = self.draft.sets.iter_mut().find(same) {
            for (net, connections) in members {
                let sum = known.members.entry(net).or_default();
                *sum = sum.saturating_add(connections);
            }
            return known.name.clone();
        }
        let first = parts.first().map_or("peers", |(name, _)| name.as_str());
        let what = if direction == Direction::Egress { "servers" } else { "clients" };
        let name = unique(&mut self.taken.sets, &format!("learned-{first}-{what}"));
        self.draft.sets.push(NewSet { name: name.clone(), members });
        name
    }

    /// Ports of a service of the policy that a rule opens and that were not seen.
    fn unseen(&self, piece: &Piece) -> Vec<String> {
        let What::Named(name) = &piece.what else { return Vec::new() };
        let Some(service) = self.ground.policy.services.get(name) else { return Vec::new() };
        let seen = |port: &&ServicePort| match port {
            ServicePort::Ports(protocol, ports) => {
                !piece.purpose.ports.iter().any(|(of, port)| of == protocol && ports.contains(*port))
            }
            ServicePort::Icmp(..) | ServicePort::Protocol(_) => false,
        };
        let ports = service.ports.iter().filter(seen).cloned().collect();
        services::ports_of(&crate::policy::model::Service { ports, ..service.clone() })
    }
}

fn words(flow: &Flow) -> String {
    service_words(flow.protocol, flow.service)
}

fn service_words(protocol: Option<Protocol>, service: Service) -> String {
    match protocol {
        Some(protocol) => services::port_words(protocol, service),
        None => "many".to_owned(),
    }
}

/// Where the draft's policies stand, so that they come before what denies today.
struct Placement {
    tier: String,
    /// The order of the first of them; further ones go down from there.
    first: i64,
}

fn placement(judged: &[Judged<'_>], policy: &Policy) -> Placement {
    let deniers = judged.iter().filter_map(|one| match &one.fate {
        Fate::Wanted(Some(reason)) => Some(reason),
        _ => None,
    });
    let order_of = |tier: &str| policy.tiers.get(tier).map(|tier| tier.order);
    let mut tier = ("default".to_owned(), order_of("default").unwrap_or(i64::MAX));
    let mut rules: BTreeSet<&str> = BTreeSet::new();
    for reason in deniers {
        let name = match reason {
            Reason::TierDefault(name) => Some(name.as_str()),
            Reason::Rule(id) => {
                rules.insert(&id.policy);
                policy.policies.iter().find(|policy| policy.name == *id.policy).map(|policy| policy.tier.as_str())
            }
            _ => None,
        };
        if let Some((name, order)) = name.and_then(|name| Some((name, order_of(name)?)))
            && order < tier.1
        {
            tier = (name.to_owned(), order);
        }
    }
    let (tier, _) = tier;
    let in_tier = || policy.policies.iter().filter(|policy| policy.tier == tier);
    let before = in_tier().filter(|policy| rules.contains(policy.name.as_str()));
    let taken: BTreeSet<i64> = in_tier().filter_map(|policy| policy.order).collect();
    let first = match before.filter_map(|policy| policy.order).min() {
        // Nobody else's order is among those that are counted down from here.
        Some(_) => taken.first().map_or(LAST_ORDER, |first| first.saturating_sub(1)),
        // What has no order goes last.
        None => taken.last().map_or(LAST_ORDER, |last| last.saturating_add(LAST_ORDER)),
    };
    Placement { tier, first }
}

#[cfg(test)]
pub(super) mod tests;
