//! What happens to one packet under a policy: the executable form of `policy.md` section 3.

use std::net::IpAddr;

use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;
use crate::policy::effective::{Effective, RuleId};

/// A packet as the host stage sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// To this host or from it.
    pub direction: Direction,
    /// The interface it arrives on or leaves by.
    pub interface: InterfaceName,
    /// The kind of that interface (`IFLA_INFO_KIND`), for one that the policy does not know yet.
    pub kind: Option<String>,
    /// Source address; of the same family as `destination`.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Source and destination port, for a protocol with ports whose header could be read.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code, for ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// The IPv4 time to live or IPv6 hop limit.
    pub hop_limit: u8,
    /// What conntrack says of it.
    pub state: ConntrackState,
}

/// `ct state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConntrackState {
    /// The first packet of a flow.
    New,
    /// Part of a flow that has seen packets both ways.
    Established,
    /// An ICMP error or helper flow that belongs to another flow.
    Related,
    /// Nothing conntrack can place.
    Invalid,
    /// Not tracked.
    Untracked,
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes on to the socket or the wire.
    Accepted,
    /// It is gone without a word.
    Dropped,
    /// It is gone and its sender told.
    Rejected,
}

/// What decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// An essential (`policy.md` section 3.1), in words.
    Essential(&'static str),
    /// A failsafe entry, a policy's rule.
    Rule(RuleId),
    /// The default of a tier.
    TierDefault(String),
    /// The default of the interface's role.
    InterfaceDefault,
}

/// The answer for one packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What happens.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Rules of audit-mode policies that would have decided, in order; under node-wide audit, what would have happened.
    pub audited: Vec<(Reason, Outcome)>,
    /// Rules that matched and only logged.
    pub logged: Vec<RuleId>,
}

/// Evaluates a packet.
pub fn decide(effective: &Effective, packet: &Packet) -> Decision {
    let _ = (effective, packet);
    todo!()
}
