//! Every step of an evaluation, as data: what `nodewall simulate -v` prints.

use super::decision::{Decision, Outcome};
use super::interface::Recognised;
use super::matching::Mismatch;
use crate::net::interface::{Direction, Role};
use crate::policy::effective::{EffectiveFailsafe, EffectivePolicy, EffectiveRule, EffectiveTier};
use crate::policy::model::{Stage, TierDefault};
use crate::policy::settings::Default;

/// An evaluation from the first step to the decision.
#[derive(Clone, PartialEq, Debug)]
pub struct Trace<'a> {
    /// The steps in order.
    pub steps: Vec<Step<'a>>,
    /// Where they led.
    pub decision: Decision,
}

/// One step. Each carries the thing it looked at, so that its place and text can be shown.
#[derive(Clone, PartialEq, Debug)]
pub enum Step<'a> {
    /// What the policy knows of the interface.
    Interface(Recognised<'a>),
    /// The interface's role asks deny sets as a packet arrives ([`crate::policy::early`]): those rules follow.
    Early,
    /// A stage begins in which a policy has a say, or the host stage, in which the interface's default has one; with the interface
    /// that counts in it.
    Stage(Stage, Direction, Recognised<'a>),
    /// A stage ended, and the packet goes on.
    StageEnd(Stage, StageEnd),
    /// An essential decided.
    Essential(&'static str, Outcome),
    /// No essential decided.
    NoEssential,
    /// A failsafe entry for this direction was looked at.
    Failsafe(&'a EffectiveFailsafe, FailsafeStep),
    /// A tier begins.
    Tier(&'a EffectiveTier),
    /// A policy of the tier was looked at; its rules follow if it is considered.
    Policy(&'a EffectivePolicy, PolicyStep),
    /// A rule was looked at.
    Rule(&'a EffectiveRule, RuleStep),
    /// A tier ended without a decision.
    TierEnd(&'a EffectiveTier, TierEnd),
    /// No tier decided: the default of the interface's role.
    InterfaceDefault(Role, Direction, Default),
    /// Node-wide audit: it would have ended so, and was let through.
    NodeAudit(Outcome),
}

/// What became of a failsafe entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailsafeStep {
    /// It does not hold on this interface.
    OtherInterface,
    /// It did not match.
    Mismatch(Mismatch),
    /// It let the packet through.
    Accepted,
}

/// Whether a policy has a say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyStep {
    /// It does not select the interface.
    OtherInterface,
    /// It does not govern the direction.
    OtherDirection,
    /// Its rules are looked at.
    Considered,
}

/// What became of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleStep {
    /// It did not match.
    Mismatch(Mismatch),
    /// It decided the packet.
    Decided(Outcome),
    /// It sends the packet to the next tier.
    Passed,
    /// It logs, and evaluation goes on.
    Logged,
    /// It would have decided so if its policy were not in audit mode; the rest of the policy is skipped.
    Audited(Outcome),
}

/// How a stage let a packet go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StageEnd {
    /// A rule or a failsafe entry allowed it.
    Allowed,
    /// An earlier stage allowed it, so that this one does not ask.
    Skipped,
    /// Nothing in it decided.
    GoesOn,
}

/// How a tier ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TierEnd {
    /// An enforcing policy governed the packet: the tier's default holds.
    Default(TierDefault),
    /// No enforcing policy governed the packet: the next tier goes on.
    NotGoverned,
    /// A rule said `pass`.
    Passed,
}
