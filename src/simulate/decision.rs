//! The answer for one packet: what happens to it and what decided.

use crate::policy::effective::RuleId;

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
    /// No policy of the stages that see a forwarded packet decided it: it goes on.
    NoPolicy,
}

/// The answer for one packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What happens.
    pub outcome: Outcome,
    /// Why: what decided, or would have decided if it were not for node-wide audit.
    pub reason: Reason,
    /// Rules of audit-mode policies that would have decided, in order (a `pass` stands here as accepted, since it
    /// refuses nothing); then, under node-wide audit, what would have happened to a packet that was let through.
    pub audited: Vec<(Reason, Outcome)>,
    /// Rules that matched and only logged.
    pub logged: Vec<RuleId>,
    /// Whether a rule would have had to know the process that sends the packet, and it is not known
    /// ([`super::Origin::Unknown`]): with some process the answer may be another.
    pub unsure: bool,
}
