//! What happens to one packet: under a policy (the executable form of `policy.md` section 3), and in the rules that it was
//! compiled to ([`ruleset`]), so that the one can be held against the other.

mod decision;
mod essential;
mod evaluate;
mod first;
pub mod flows;
mod interface;
pub mod link;
mod matching;
mod packet;
pub mod question;
pub mod replay;
pub mod ruleset;
#[cfg(test)]
mod tests;
mod trace;
pub mod view;
pub mod wire;
pub mod words;

pub use decision::{Decision, Outcome, Reason};
pub use evaluate::trace;
pub use first::First;
pub use interface::{How, Recognised, is_loopback, recognise};
pub use matching::{Mismatch, matches};
pub use packet::{ConntrackState, Exit, Origin, Packet, Socket};
pub use trace::{FailsafeStep, PolicyStep, RuleStep, StageEnd, Step, TierEnd, Trace};

use crate::policy::effective::Effective;

/// Evaluates a packet: the last line of its [`trace`].
pub fn decide(effective: &Effective, packet: &Packet) -> Decision {
    trace(effective, packet).decision
}
