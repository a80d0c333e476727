//! Records: what a peer and a service had to do with each other in a stretch of time, and what decided it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;
use crate::policy::effective::RuleId;

/// What became of packets, or would have become of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// Let through.
    Allowed,
    /// Dropped without a word.
    Denied,
    /// Dropped, and the sender told.
    Rejected,
    /// Let through; without audit mode they would have been dropped.
    WouldDeny,
    /// Let through; without audit mode they would have been rejected.
    WouldReject,
    /// Logged by a rule that does not decide.
    Logged,
}

impl Verdict {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Allowed, Self::Denied, Self::Rejected, Self::WouldDeny, Self::WouldReject, Self::Logged];

    /// The name for people and scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Rejected => "rejected",
            Self::WouldDeny => "would-deny",
            Self::WouldReject => "would-reject",
            Self::Logged => "logged",
        }
    }

    /// The verdict of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }

    /// Whether the packets were stopped.
    pub const fn denies(self) -> bool {
        matches!(self, Self::Denied | Self::Rejected)
    }

    /// Whether audit mode alone let the packets through.
    pub const fn is_audited(self) -> bool {
        matches!(self, Self::WouldDeny | Self::WouldReject)
    }
}

/// What decided.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Decider {
    /// A rule of a policy, of a guard or of a failsafe entry.
    Rule(RuleId),
    /// The default of this tier.
    Tier(Arc<str>),
    /// The default of the interface's role.
    Default,
    /// An essential (`policy.md` section 3.1), in words.
    Essential(Arc<str>),
    /// No policy: the stages that see it let it go on.
    Nothing,
    /// It is not known: the policy or the interfaces changed meanwhile, or there was too much to find out.
    Unknown,
}

impl Decider {
    /// The policy, guard or failsafe entry, if a rule decided.
    pub fn policy(&self) -> Option<&str> {
        match self {
            Self::Rule(id) => Some(&id.policy),
            _ => None,
        }
    }

    /// What [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "default" => return Some(Self::Default),
            "no policy" => return Some(Self::Nothing),
            "unknown" => return Some(Self::Unknown),
            _ => {}
        }
        if let Some(tier) = text.strip_prefix("tier ") {
            return Some(Self::Tier(tier.into()));
        }
        if let Some(words) = text.strip_prefix("essential ") {
            return Some(Self::Essential(words.into()));
        }
        let (policy, number) = text.rsplit_once('#')?;
        Some(Self::Rule(RuleId { policy: policy.into(), number: number.parse().ok()? }))
    }
}

impl fmt::Display for Decider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(id) => write!(formatter, "{id}"),
            Self::Tier(name) => write!(formatter, "tier {name}"),
            Self::Default => formatter.write_str("default"),
            Self::Essential(words) => write!(formatter, "essential {words}"),
            Self::Nothing => formatter.write_str("no policy"),
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

/// What is asked for: at this host, or at the peer where this host began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Service {
    /// A destination port of a protocol with ports.
    Port(u16),
    /// Type and code of ICMP or ICMPv6.
    Icmp(u8, u8),
    /// The protocol as a whole.
    Whole,
    /// More than were told apart: a scan, or a flood.
    Many,
}

impl Service {
    /// What is asked for by a packet, or the first one of a connection, with these ports, or this type and code.
    pub fn of(ports: Option<(u16, u16)>, icmp: Option<(u8, u8)>) -> Self {
        match (ports, icmp) {
            (Some((_, port)), _) => Self::Port(port),
            (None, Some((kind, code))) => Self::Icmp(kind, code),
            (None, None) => Self::Whole,
        }
    }
}

/// What the connections of a record have in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// [`Direction::Ingress`]: the peer began; [`Direction::Egress`]: this host did.
    pub direction: Direction,
    /// The interface, where it is known.
    pub interface: Option<InterfaceName>,
    /// The role of the interface.
    pub role: Option<Role>,
    /// The other side; `None`: more than were told apart (a flood from made-up addresses).
    pub peer: Option<IpAddr>,
    /// The IP protocol; `None`: not legible, or more than one with [`Service::Many`].
    pub protocol: Option<Protocol>,
    /// What was asked for.
    pub service: Service,
    /// What became of it.
    pub verdict: Verdict,
    /// What decided.
    pub decider: Decider,
}

/// A name of a peer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PeerName {
    /// A set of the policy that has its address.
    Set(Arc<str>),
    /// A node of a cluster.
    Node(Arc<str>),
}

impl PeerName {
    /// What [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("set", name) => Some(Self::Set(name.into())),
            ("node", name) => Some(Self::Node(name.into())),
            _ => None,
        }
    }
}

impl fmt::Display for PeerName {
    /// "set:ops", "node:gpu-17".
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(name) => write!(formatter, "set:{name}"),
            Self::Node(name) => write!(formatter, "node:{name}"),
        }
    }
}

/// Who on this host has the socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Actor {
    /// The name of the process, at most 15 bytes (proc_pid_comm(5)); any process may choose its own. Empty: not known.
    pub process: String,
    /// The systemd service or scope.
    pub unit: Option<String>,
    /// The pod: "namespace/name" where the node tells, else its UID.
    pub pod: Option<String>,
    /// The user: a name where this host has one for it, else the number.
    pub user: Option<String>,
}

/// What happened between a peer and a service in one stretch of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Whom and what it is about.
    pub key: Key,
    /// This host's address, one of them if there were several.
    pub local: Option<IpAddr>,
    /// What the peer is called.
    pub names: BTreeSet<PeerName>,
    /// The tier of the policy that decided.
    pub tier: Option<String>,
    /// Where what decided is written, "FILE:LINE".
    pub place: Option<String>,
    /// Who had the sockets on this host, as far as that could be found out; at most [`Record::MOST_ACTORS`].
    pub actors: BTreeSet<Actor>,
    /// How many connections began, or were tried; packets that are no connection's (ICMP) count by their identifier.
    pub connections: u64,
    /// How many packets there were: of what was stopped, those that were logged; of connections, both ways, when they ended; `None`
    /// where connection tracking does not count (`net.netfilter.nf_conntrack_acct`).
    pub packets: Option<u64>,
    /// How many bytes, likewise.
    pub bytes: Option<u64>,
    /// The first of them, in microseconds since 1970-01-01 UTC.
    pub first: u64,
    /// The last of them.
    pub last: u64,
}

impl Record {
    /// How many [`Actor`]s a record holds at most.
    pub const MOST_ACTORS: usize = 8;

    /// Takes another record of the same key in.
    pub fn add(&mut self, other: &Self) {
        let sum = |one: Option<u64>, two: Option<u64>| match (one, two) {
            (Some(one), Some(two)) => Some(one.saturating_add(two)),
            (one, two) => one.or(two),
        };
        // What was known last counts.
        if other.last >= self.last {
            self.place.clone_from(&other.place);
            self.tier.clone_from(&other.tier);
            self.names.clone_from(&other.names);
        }
        self.local = self.local.or(other.local);
        for actor in &other.actors {
            if self.actors.len() >= Self::MOST_ACTORS {
                break;
            }
            self.actors.insert(actor.clone());
        }
        self.connections = self.connections.saturating_add(other.connections);
        self.packets = sum(self.packets, other.packets);
        self.bytes = sum(self.bytes, other.bytes);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read_back() {
        let rule = Decider::Rule(RuleId { policy: "failsafe:ssh".into(), number: 3 });
        let others =
            [Decider::Tier("node".into()), Decider::Default, Decider::Essential("ping".into()), Decider::Nothing];
        for decider in others.into_iter().chain([rule, Decider::Unknown]) {
            assert_eq!(Decider::parse(&decider.to_string()).unwrap(), decider);
        }
        assert_eq!(Decider::parse("kubelet"), None);
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::named(verdict.name()), Some(verdict));
        }
        for name in ["set:a:b", "node:gpu-1"] {
            assert_eq!(PeerName::parse(name).unwrap().to_string(), name);
        }
    }
}
