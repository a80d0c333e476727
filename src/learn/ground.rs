//! The node on which is learned: its policy as it is meant, and what that says of a flow today.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::gather::{Flow, Seen};
use crate::net::facts::Facts;
use crate::net::interface::{Direction, Role};
use crate::net::protocol::{PortSet, Protocol};
use crate::policy::effective::{Effective, RuleId};
use crate::policy::model::{Action, Mode, Policy, Rule};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;
use crate::simulate::{ConntrackState, Origin, Outcome, Packet, Reason, decide};
use crate::traffic::Service;

/// A node with its policy.
#[derive(Clone, Debug)]
pub struct Ground<'a> {
    /// The documents.
    pub(super) policy: &'a Policy,
    /// The node.
    pub(super) facts: &'a Facts,
    /// What the documents come to, everything enforced and nothing that ends by itself.
    meant: Effective,
    /// The ports from which this host makes connections, and on which listeners sit that ask for none.
    pub(super) ephemeral: PortSet,
}

/// What the policy, as it is meant, says of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It lets it through by a rule, a failsafe entry or an essential, or on an interface that is another's to filter.
    Covered,
    /// Nothing denies it, and nothing allows it but a default.
    ByDefault,
    /// A default, or a rule for everything, denies it.
    Open(Reason),
    /// A rule that asks for something denies it.
    Rule(RuleId),
    /// An essential denies it.
    Never,
    /// No interface of its role is there.
    Nowhere,
}

/// Linux's own choice (Documentation/networking/ip-sysctl.rst, `ip_local_port_range`).
const EPHEMERAL: (u16, u16) = (32_768, 60_999);
/// A source port that no rule is likely to mean.
pub(super) const SOURCE_PORT: u16 = 40_000;
/// What most systems send with (IANA, "IP Option Numbers", recommends 64).
const HOP_LIMIT: u8 = 64;

impl<'a> Ground<'a> {
    /// A node with its documents and settings, whatever of that is in audit mode today.
    pub fn new(policy: &'a Policy, settings: &NodeSettings, facts: &'a Facts) -> Self {
        let settings = NodeSettings { mode: Mode::Enforce, ..settings.clone() };
        let (mut meant, _) = resolve(policy, &settings, facts);
        // Temporary access is no reason to leave anything out of what is to last.
        meant.expire(|policy| policy.expires.is_some());
        for policy in meant.tiers.iter_mut().flat_map(|tier| &mut tier.policies) {
            policy.mode = Mode::Enforce;
        }
        let shipped = || PortSet::range(EPHEMERAL.0, EPHEMERAL.1);
        let ephemeral = facts.ports.ephemeral.clone().filter(|ports| !ports.is_empty()).unwrap_or_else(shipped);
        Self { policy, facts, meant, ephemeral }
    }

    /// The role that counts for a flow: that of its interface today, or else as it was recorded.
    pub(super) fn role(&self, flow: &Flow) -> Option<Role> {
        let name = flow.interface.as_ref();
        let known = name.and_then(|name| self.meant.interfaces.iter().find(|interface| interface.name == *name));
        known.map(|interface| interface.role).or(flow.role)
    }

    /// What the policy says of a flow.
    pub(super) fn standing(&self, flow: &Flow, seen: &Seen) -> Standing {
        let Some(packet) = packet(&self.meant, self.facts, flow, seen) else { return Standing::Nowhere };
        let decision = decide(&self.meant, &packet);
        match (decision.outcome, decision.reason) {
            (Outcome::Accepted, Reason::InterfaceDefault) => match self.role(flow) {
                Some(Role::Pod | Role::Overlay | Role::Loopback) => Standing::Covered,
                _ => Standing::ByDefault,
            },
            (Outcome::Accepted, _) => Standing::Covered,
            (_, Reason::Rule(id)) if !self.is_for_everything(&id, flow.direction) => Standing::Rule(id),
            (_, Reason::Essential(_)) => Standing::Never,
            (_, reason) => Standing::Open(reason),
        }
    }

    /// Whether a rule denies whatever comes to it: the end of a policy.
    fn is_for_everything(&self, id: &RuleId, direction: Direction) -> bool {
        self.rule(id, direction).is_some_and(|rule| {
            let Rule { action, from, to, protocol, ports, services, icmp, family, not, process, limit, .. } = rule;
            let asks_nothing = from.is_none() && to.is_none() && protocol.is_none() && ports.is_none();
            let asks_no_more = services.is_empty() && icmp.is_none() && family.is_none() && not.is_none();
            let always = process.is_none() && limit.is_none();
            matches!(action, Action::Deny | Action::Reject) && asks_nothing && asks_no_more && always
        })
    }

    fn rule(&self, id: &RuleId, direction: Direction) -> Option<&Rule> {
        let policy = self.policy.policies.iter().find(|policy| policy.name == *id.policy)?;
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        rules.as_ref()?.get(usize::try_from(id.number).ok()?.checked_sub(1)?)
    }
}

/// The first packet of a flow; `None` where it says too little, or no interface is there by which it could go.
pub(super) fn packet(effective: &Effective, facts: &Facts, flow: &Flow, seen: &Seen) -> Option<Packet> {
    let (peer, protocol) = (flow.peer?, flow.protocol?);
    let there =
        |name: &&crate::net::interface::InterfaceName| effective.interfaces.iter().any(|known| known.name == **name);
    let interface = flow.interface.as_ref().filter(there).or_else(|| {
        let of_role = |interface: &&crate::policy::effective::Interface| Some(interface.role) == flow.role;
        effective.interfaces.iter().find(of_role).map(|interface| &interface.name)
    })?;
    let link = facts.link(interface.as_str());
    let own = link.into_iter().flat_map(|link| &link.addresses).map(ipnet::IpNet::addr);
    let of_family = |address: &IpAddr| address.is_ipv4() == peer.is_ipv4();
    let unspecified = || if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let local = seen.local.into_iter().chain(own).find(of_family).unwrap_or_else(unspecified);
    let (source, destination) = match flow.direction {
        Direction::Ingress => (peer, local),
        Direction::Egress => (local, peer),
    };
    let (ports, icmp) = match flow.service {
        Service::Port(port) => (Some((SOURCE_PORT, port)), None),
        Service::Icmp(kind, code) => (None, Some((kind, code))),
        Service::Whole => (None, None),
        Service::Many => return None,
    };
    Some(Packet {
        direction: flow.direction,
        interface: interface.clone(),
        kind: link.and_then(|link| link.kind.clone()),
        source,
        destination,
        protocol: Some(protocol),
        ports: ports.filter(|_| protocol.has_ports()),
        icmp: icmp.filter(|_| matches!(protocol, Protocol::ICMP | Protocol::ICMPV6)),
        hop_limit: HOP_LIMIT,
        state: ConntrackState::New,
        forward: None,
        translated: None,
        // Records know processes by name, rules by number; a rule that would have to know makes the answer unsure.
        origin: Origin::Unknown,
    })
}
