//! Which of the flows there are a policy ends: those whose first packet it would deny today.
//!
//! Only flows of this host itself count: their real ends are an address of this host and one that is not. A flow between
//! two others (forwarded, or translated to a pod) passes other hooks than ours, and one from this host to itself is never
//! touched. Nor is one in another zone than 0, where the same addresses may be somebody else's; nor one that another flow
//! announced (`IPS_EXPECTED`), whose first packet was "related" and as such let through by the essentials.
//!
//! A TCP connection that was there before connection tracking was has no known beginning, and ends only if it is denied
//! in both directions. Nor does anybody know any more which process began a flow: where a rule would have to, the flow goes on.
//!
//! Connection tracking does not know interfaces, and a policy may deny on one what it allows on another. A flow ends only
//! if it is denied on every interface that it can use: the one with the local address, those whose network the other side
//! is in, the one that the kernel's routes name for this pair of addresses, every interface with a default route if that
//! one has it, and the bonds, bridges and VRFs that those belong to. When the kernel knows no route, that is every
//! interface. An interface that is not known yet keeps its flows.

pub mod pace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::addr::AddrSet;
use crate::net::facts::{Facts, Link};
use crate::net::flow::Flow;
use crate::net::interface::Direction;
use crate::policy::effective::{Effective, EffectivePolicy};
use crate::policy::model::Mode;
use crate::simulate::{First, Outcome, Packet, Reason, decide};

/// A policy with what of the node decides which flows it is about.
#[derive(Clone, Debug)]
pub struct Revocation {
    effective: Arc<Effective>,
    /// The addresses of this host.
    local: AddrSet,
    /// Every link but loopback, by interface index.
    links: BTreeMap<u32, Link>,
    /// The links that have an address.
    owners: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// The networks that links are in.
    connected: Vec<(IpNet, u32)>,
    /// Whether a rule looks at source ports.
    source_ports: bool,
}

/// Below this, a source port can be one that an essential looks at (DHCP); above it, only rules with source ports do.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

impl Revocation {
    /// The flows that `effective` ends on the node of `facts`.
    pub fn new(effective: Arc<Effective>, facts: &Facts) -> Self {
        let is_loopback = |link: &Link| link.name.as_str() == "lo" || link.link_layer() == "loopback";
        let links: BTreeMap<u32, Link> = facts
            .links
            .iter()
            .filter(|(_, link)| !is_loopback(link))
            .map(|(index, link)| (*index, link.clone()))
            .collect();
        let mut owners: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        let mut connected = Vec::new();
        for (index, link) in &links {
            for net in &link.addresses {
                owners.entry(net.addr()).or_default().insert(*index);
                if net.prefix_len() < net.max_prefix_len() {
                    connected.push((*net, *index));
                }
            }
        }
        let source_ports = effective
            .tiers
            .iter()
            .flat_map(|tier| &tier.policies)
            .flat_map(rules)
            .chain(effective.failsafe.iter().map(|entry| &entry.rule))
            .any(|rule| rule.source_ports.is_some());
        Self { effective, local: facts.local_addresses(), links, owners, connected, source_ports }
    }

    /// Whether it can end anything: a node in audit mode denies nothing.
    pub fn enforces(&self) -> bool {
        self.effective.mode == Mode::Enforce
    }

    /// What denies a flow that this ends, as far as one of its interfaces tells; `None` where nothing does.
    pub fn reason(&self, flow: &Flow) -> Option<Reason> {
        let first = self.first_packet(flow)?;
        let (local, remote) = first.ends();
        let owners = self.owners.get(&local).into_iter().flatten().copied();
        let connected = self.connected.iter().filter(|(net, _)| net.contains(&remote)).map(|(_, index)| *index);
        owners.chain(connected).chain(self.links.keys().copied()).find_map(|index| {
            let decision = decide(&self.effective, &packet_on(&first, self.links.get(&index)?));
            (decision.outcome != Outcome::Accepted).then_some(decision.reason)
        })
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.contains(address)
    }

    /// The first packet of a flow that a policy can end.
    fn first_packet(&self, flow: &Flow) -> Option<First> {
        if flow.zone != 0 || flow.status & Flow::EXPECTED != 0 {
            return None;
        }
        First::of(flow, &|address| self.is_local(address))
    }
}

fn rules(policy: &EffectivePolicy) -> impl Iterator<Item = &crate::policy::effective::EffectiveRule> {
    Direction::BOTH.into_iter().filter_map(|direction| policy.rules(direction)).flatten()
}

/// Asks the kernel's routes: from this host's address to the other side's, the index of the interface, if there is a route.
pub type Route<'a> = dyn FnMut(IpAddr, IpAddr) -> Option<u32> + 'a;

/// Judges the flows of one moment. It remembers what it found, since most flows of a server are alike.
pub struct Judge<'a> {
    revocation: &'a Revocation,
    route: &'a mut Route<'a>,
    ended: BTreeMap<First, bool>,
    routes: BTreeMap<(IpAddr, IpAddr), Option<u32>>,
}

impl<'a> Judge<'a> {
    /// A judge for the flows that there are now.
    pub fn new(revocation: &'a Revocation, route: &'a mut Route<'a>) -> Self {
        Self { revocation, route, ended: BTreeMap::new(), routes: BTreeMap::new() }
    }

    /// Whether the policy ends this flow.
    pub fn ends(&mut self, flow: &Flow) -> bool {
        if !self.revocation.enforces() {
            return false;
        }
        let Some(first) = self.revocation.first_packet(flow) else { return false };
        self.is_denied(first) && (!flow.picked_up || self.is_denied(first.reversed()))
    }

    fn is_denied(&mut self, mut first: First) -> bool {
        if let Some((source, _)) = &mut first.ports
            && !self.revocation.source_ports
            && *source >= FIRST_UNPRIVILEGED_PORT
        {
            // Nothing tells these apart; one answer serves for all.
            *source = u16::MAX;
        }
        if let Some(ended) = self.ended.get(&first) {
            return *ended;
        }
        let ended = self.denied_everywhere(&first);
        forget(&mut self.ended);
        self.ended.insert(first, ended);
        ended
    }

    fn denied_everywhere(&mut self, first: &First) -> bool {
        let revocation = self.revocation;
        let (local, remote) = first.ends();
        let mut interfaces = revocation.owners.get(&local).cloned().unwrap_or_default();
        let link_local = is_link_local(remote);
        if !link_local {
            let connected = revocation.connected.iter().filter(|(net, _)| net.contains(&remote));
            interfaces.extend(connected.map(|(_, index)| *index));
        }
        if !interfaces.iter().all(|index| self.denied(first, *index)) {
            return false;
        }
        let mut more = BTreeSet::new();
        if !link_local {
            match self.route(local, remote) {
                None => more.extend(revocation.links.keys()),
                Some(index) => {
                    more.insert(index);
                    if revocation.links.get(&index).is_some_and(|link| link.default_route) {
                        let defaults = revocation.links.iter().filter(|(_, link)| link.default_route);
                        more.extend(defaults.map(|(index, _)| *index));
                    }
                }
            }
        }
        interfaces.extend(&more);
        for index in &interfaces {
            let master = revocation.links.get(index).and_then(|link| link.master.as_ref());
            let found = revocation.links.iter().find(|(_, link)| Some(&link.name) == master);
            more.extend(found.map(|(index, _)| *index));
        }
        // With no interface at all there is nothing to go by.
        !interfaces.is_empty() && more.iter().all(|index| self.denied(first, *index))
    }

    fn route(&mut self, local: IpAddr, remote: IpAddr) -> Option<u32> {
        if let Some(known) = self.routes.get(&(local, remote)) {
            return *known;
        }
        let route = (self.route)(local, remote);
        forget(&mut self.routes);
        self.routes.insert((local, remote), route);
        route
    }

    fn denied(&self, first: &First, index: u32) -> bool {
        let Some(link) = self.revocation.links.get(&index) else { return false };
        let decision = decide(&self.revocation.effective, &packet_on(first, link));
        decision.outcome != Outcome::Accepted && !decision.unsure
    }
}

/// How many answers are remembered: a few megabytes, however many flows there are.
const REMEMBERED: usize = 1 << 16;

/// Makes room for one more.
fn forget<K, V>(answers: &mut BTreeMap<K, V>) {
    if answers.len() >= REMEMBERED {
        answers.clear();
    }
}

fn packet_on(first: &First, link: &Link) -> Packet {
    first.packet(link.name.clone(), link.kind.clone())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

impl std::fmt::Debug for Judge<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Judge").field("judged", &self.ended.len()).finish_non_exhaustive()
    }
}
