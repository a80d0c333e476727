//! What explains packets and connections: the policy in force, the links, and the names of peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::event::{Event, Kind};
use super::names::Names;
use super::record::{Decider, PeerName, Verdict};
use crate::compile::{Logged, LoggedBy};
use crate::net::addr::AddrSet;
use crate::net::facts::{Facts, Link};
use crate::net::flow::Flow;
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;
use crate::policy::effective::{Effective, EffectiveRule, RuleId};
use crate::policy::model::{Action, Mode, NamedSet};
use crate::simulate::wire::Headers;
use crate::simulate::{First, Outcome, Reason, decide, recognise};

/// How many answers are remembered: a few megabytes, however many connections there are.
const REMEMBERED: usize = 1 << 14;

/// What explains what goes on, at one moment.
#[derive(Clone, Debug)]
pub struct Scene {
    effective: Arc<Effective>,
    links: BTreeMap<u32, (Link, Role)>,
    local: AddrSet,
    owners: BTreeMap<IpAddr, u32>,
    connected: Vec<(IpNet, u32)>,
    rules: BTreeMap<(RuleId, Direction), Written>,
    names: Names,
    /// Whether a rule looks at source ports.
    source_ports: bool,
    answers: BTreeMap<(First, u32), Answer>,
}

/// Where a rule stands.
#[derive(Clone, Debug)]
struct Written {
    tier: Option<String>,
    place: String,
}

/// What became of something, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// What became of it, or would have.
    pub verdict: Verdict,
    /// What decided.
    pub decider: Decider,
    /// The tier of the policy that decided.
    pub tier: Option<String>,
    /// "FILE:LINE".
    pub place: Option<String>,
}

/// A connection with what explains it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explained {
    /// Its first packet.
    pub first: First,
    /// The interface that it most likely uses.
    pub interface: Option<(InterfaceName, Role)>,
    /// What the peer is called.
    pub names: BTreeSet<PeerName>,
    /// What let it through.
    pub answer: Answer,
}

/// A logged packet, as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen<'a> {
    /// When: microseconds since 1970-01-01 UTC.
    pub time: u64,
    /// The hook (include/uapi/linux/netfilter.h): 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u8,
    /// The indices of the interfaces it came and leaves by.
    pub interfaces: (Option<u32>, Option<u32>),
    /// Its headers.
    pub headers: &'a Headers<'a>,
    /// Its length in bytes, from the IP header on.
    pub length: u32,
    /// What the rule said.
    pub logged: Logged,
}

/// From this port on, source ports are told apart only by rules with source ports.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
/// `NF_INET_LOCAL_OUT` and `NF_INET_POST_ROUTING`.
const LEAVING: [u8; 2] = [3, 4];

impl Scene {
    /// What explains what goes on under `effective` on the node of `facts`, where peers are named by `sets`.
    pub fn new(effective: Arc<Effective>, facts: &Facts, sets: &BTreeMap<String, NamedSet>) -> Self {
        let role = |link: &Link| recognise(&effective, &link.name, link.kind.as_deref()).role;
        let links: BTreeMap<u32, (Link, Role)> =
            facts.links.iter().map(|(index, link)| (*index, (link.clone(), role(link)))).collect();
        let mut owners = BTreeMap::new();
        let mut connected = Vec::new();
        for (index, (link, role)) in &links {
            for net in link.addresses.iter().filter(|_| *role != Role::Loopback) {
                owners.entry(net.addr()).or_insert(*index);
                if net.prefix_len() < net.max_prefix_len() {
                    connected.push((*net, *index));
                }
            }
        }
        let rules = written(&effective);
        let any = |says: &dyn Fn(&EffectiveRule) -> bool| every_rule(&effective).any(|(_, _, rule)| says(rule));
        let source_ports = any(&|rule| rule.source_ports.is_some());
        let local = facts.local_addresses();
        let names = Names::new(sets, &facts.nodes);
        let answers = BTreeMap::new();
        Self { links, local, owners, connected, rules, names, source_ports, answers, effective }
    }

    /// What an address is called.
    pub fn names_of(&mut self, address: IpAddr) -> BTreeSet<PeerName> {
        self.names.of(address)
    }

    /// The first packet of a connection of this host; `None` of one that is forwarded, in another zone than 0, or from this host to
    /// itself.
    pub fn first(&self, flow: &Flow) -> Option<First> {
        (flow.zone == 0).then(|| First::of(flow, &|address| self.is_local(address)))?
    }

    /// The event of a logged packet.
    pub fn packet(&mut self, seen: &Seen<'_>) -> Event {
        let Seen { time, hook, interfaces: (into, out), headers, length, logged } = seen;
        let direction = if LEAVING.contains(hook) { Direction::Egress } else { Direction::Ingress };
        let index = match direction {
            Direction::Ingress => *into,
            Direction::Egress => *out,
        };
        let at = |index: Option<u32>| index.and_then(|index| self.links.get(&index));
        let interface = at(index).map(|(link, role)| (link.name.clone(), *role));
        let out = at(out.filter(|_| direction == Direction::Ingress)).map(|(link, _)| link.name.clone());
        let (source, destination) = (headers.source, headers.destination);
        let answer = self.answer_of(logged, direction);
        let peer = if direction == Direction::Ingress { source } else { destination };
        Event {
            time: *time,
            kind: Kind::Packet,
            direction,
            role: interface.as_ref().map(|(_, role)| *role),
            interface: interface.map(|(name, _)| name),
            out,
            source,
            destination,
            protocol: headers.protocol,
            ports: headers.ports().filter(|_| headers.protocol.is_some_and(Protocol::has_ports)),
            icmp: headers.icmp(),
            length: Some(*length),
            names: self.names.of(peer),
            verdict: answer.verdict,
            decider: answer.decider,
            tier: answer.tier,
            place: answer.place,
            text: logged.text.clone(),
            actor: None,
        }
    }

    fn answer_of(&self, logged: &Logged, direction: Direction) -> Answer {
        let verdict = match (logged.action, logged.would) {
            (Action::Deny, false) => Verdict::Denied,
            (Action::Deny, true) => Verdict::WouldDeny,
            (Action::Reject, false) => Verdict::Rejected,
            (Action::Reject, true) => Verdict::WouldReject,
            (Action::Allow, _) => Verdict::Allowed,
            (Action::Pass | Action::Log, _) => Verdict::Logged,
        };
        match &logged.by {
            LoggedBy::Rule(id) => self.by_rule(verdict, id, direction),
            LoggedBy::Tier(name) => self.by(verdict, Decider::Tier(name.as_str().into()), Some(name.clone())),
            LoggedBy::Default => self.by(verdict, Decider::Default, None),
        }
    }

    /// What let a connection through that has begun, or has ended. `route` is the interface by which this host sends to the peer.
    pub fn explain(&mut self, first: &First, route: Option<u32>) -> Explained {
        let (local, remote) = first.ends();
        let beside = || self.connected.iter().find(|(net, _)| net.contains(&remote)).map(|(_, index)| *index);
        let index = route.or_else(beside).or_else(|| self.owners.get(&local).copied());
        let names = self.names.of(remote);
        let Some((link, role)) = index.and_then(|index| self.links.get(&index)) else {
            let answer = Answer { verdict: Verdict::Allowed, decider: Decider::Unknown, tier: None, place: None };
            return Explained { first: *first, interface: None, names, answer };
        };
        let interface = Some((link.name.clone(), *role));
        let mut alike = *first;
        if let Some((source, _)) = &mut alike.ports
            && !self.source_ports
            && *source >= FIRST_UNPRIVILEGED_PORT
        {
            // Nothing tells these apart; one answer serves for all.
            *source = u16::MAX;
        }
        let key = (alike, index.unwrap_or_default());
        if let Some(answer) = self.answers.get(&key) {
            return Explained { first: *first, interface, names, answer: answer.clone() };
        }
        let packet = alike.packet(link.name.clone(), link.kind.clone());
        let decision = decide(&self.effective, &packet);
        let audited = self.effective.mode == Mode::Audit;
        let would = decision.audited.last().map(|(_, outcome)| *outcome).filter(|_| audited);
        let answer = match (decision.outcome, would, decision.unsure) {
            // It is there, so that nothing has denied it: the policy or the interface was another one.
            (Outcome::Dropped | Outcome::Rejected, _, _) | (_, _, true) => {
                self.by(Verdict::Allowed, Decider::Unknown, None)
            }
            (Outcome::Accepted, would, false) => {
                let verdict = match would {
                    Some(Outcome::Dropped) => Verdict::WouldDeny,
                    Some(Outcome::Rejected) => Verdict::WouldReject,
                    Some(Outcome::Accepted) | None => Verdict::Allowed,
                };
                match decision.reason {
                    Reason::Rule(id) => self.by_rule(verdict, &id, first.direction),
                    Reason::TierDefault(name) => {
                        self.by(verdict, Decider::Tier(name.as_str().into()), Some(name.clone()))
                    }
                    Reason::InterfaceDefault => self.by(verdict, Decider::Default, None),
                    Reason::Essential(words) => self.by(verdict, Decider::Essential(words.into()), None),
                    Reason::NoPolicy => self.by(verdict, Decider::Nothing, None),
                }
            }
        };
        if self.answers.len() >= REMEMBERED {
            self.answers.clear();
        }
        self.answers.insert(key, answer.clone());
        Explained { first: *first, interface, names, answer }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.contains(address)
    }

    fn by(&self, verdict: Verdict, decider: Decider, tier: Option<String>) -> Answer {
        Answer { verdict, decider, tier, place: None }
    }

    fn by_rule(&self, verdict: Verdict, id: &RuleId, direction: Direction) -> Answer {
        // A forwarded packet meets the rules of the other direction, too.
        let other = Direction::BOTH.into_iter().find(|other| *other != direction);
        let at = |direction: Direction| self.rules.get(&(id.clone(), direction));
        let written = at(direction).or_else(|| other.and_then(at));
        Answer {
            verdict,
            decider: Decider::Rule(id.clone()),
            tier: written.and_then(|written| written.tier.clone()),
            place: written.map(|written| written.place.clone()),
        }
    }
}

/// Every rule, with its tier and direction.
fn every_rule(effective: &Effective) -> impl Iterator<Item = (Option<&str>, Direction, &EffectiveRule)> {
    let failsafe = effective.failsafe.iter().map(|entry| (None, entry.direction, &entry.rule));
    let policies = effective.tiers.iter().flat_map(|tier| tier.policies.iter().map(move |policy| (tier, policy)));
    let rules = policies.flat_map(|(tier, policy)| {
        Direction::BOTH.into_iter().flat_map(move |direction| {
            policy
                .rules(direction)
                .unwrap_or_default()
                .iter()
                .map(move |rule| (Some(tier.name.as_str()), direction, rule))
        })
    });
    failsafe.chain(rules)
}

fn written(effective: &Effective) -> BTreeMap<(RuleId, Direction), Written> {
    every_rule(effective)
        .map(|(tier, direction, rule)| {
            let place = match rule.place.line {
                0 => rule.place.file.to_string(),
                line => format!("{}:{line}", rule.place.file),
            };
            ((rule.id.clone(), direction), Written { tier: tier.map(str::to_owned), place })
        })
        .collect()
}
