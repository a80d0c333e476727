//! A draft held against what went on: which of it would have been denied with the draft in place and everything enforced.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Options;
use super::gather::{Flow, Gathered, Seen};
use super::ground::{Ground, packet};
use super::peers::Names;
use super::triage::{Apart, Fate, triage};
use crate::net::facts::Facts;
use crate::net::interface::Role;
use crate::policy::effective::Effective;
use crate::policy::model::{Mode, Policy};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;
use crate::simulate::{Outcome, Reason, decide};

/// What the replay came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Connections that would have been let through.
    pub allowed: u64,
    /// Connections of which nobody can tell: a rule asks for the process, or too much was put together.
    pub unsure: u64,
    /// What would have been denied; those that were not set apart first, then by number of connections.
    pub denied: Vec<Denied>,
}

/// Something that would have been denied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// Why it is no surprise, if it is none.
    pub apart: Option<Apart>,
    /// What it is.
    pub flow: Flow,
    /// The role of its interface.
    pub role: Option<Role>,
    /// How it was seen.
    pub seen: Seen,
    /// What would have denied it.
    pub reason: Reason,
}

impl Report {
    /// What would have been denied although it looks as if it were needed.
    pub fn surprises(&self) -> impl Iterator<Item = &Denied> {
        self.denied.iter().filter(|denied| denied.apart.is_none())
    }
}

/// The documents with those policies enforced that the draft brings.
pub fn enforced(policy: &Policy, of_draft: &BTreeSet<String>) -> Policy {
    let mut policy = policy.clone();
    for one in policy.policies.iter_mut().filter(|one| of_draft.contains(&one.name)) {
        one.mode = Mode::Enforce;
    }
    policy
}

/// Replays what was gathered under `policy`, which has the draft's documents in it, on a node that enforces.
pub fn verify(
    gathered: &Gathered,
    policy: &Policy,
    of_draft: &BTreeSet<String>,
    settings: &NodeSettings,
    facts: &Facts,
    options: &Options,
) -> Report {
    let enforcing = NodeSettings { mode: Mode::Enforce, ..settings.clone() };
    let policy = enforced(policy, of_draft);
    let (mut effective, _) = resolve(&policy, &enforcing, facts);
    // Temporary access will be over.
    effective.expire(|policy| policy.expires.is_some());
    let ground = Ground::new(&policy, &enforcing, facts);
    let names = Names::new(&policy, facts);
    let mut report = Report::default();
    for one in triage(gathered, &ground, &names, options) {
        let connections = one.seen.connections;
        match replay(&effective, facts, one.flow, one.seen) {
            // Too much was put together, or the interface is gone.
            None => report.unsure = report.unsure.saturating_add(connections),
            Some((Outcome::Accepted, ..)) => report.allowed = report.allowed.saturating_add(connections),
            Some((_, _, true)) => report.unsure = report.unsure.saturating_add(connections),
            Some((_, reason, false)) => {
                let by_draft = matches!(&reason, Reason::Rule(id) if of_draft.contains(&*id.policy));
                let apart = match one.fate {
                    // A rule that the draft brings is what is on trial.
                    Fate::Apart(Apart::ByRule(_)) if by_draft => None,
                    Fate::Apart(apart) => Some(apart),
                    Fate::Covered | Fate::NotAsked | Fate::Wanted(_) => None,
                };
                let (flow, seen) = (one.flow.clone(), one.seen.clone());
                report.denied.push(Denied { apart, flow, role: one.role, seen, reason });
            }
        }
    }
    let rank = |denied: &Denied| (denied.apart.clone(), u64::MAX - denied.seen.all(), denied.flow.clone());
    report.denied.sort_by_cached_key(rank);
    report
}

/// What becomes of a flow, why, and whether nobody can tell.
fn replay(effective: &Effective, facts: &Facts, flow: &Flow, seen: &Seen) -> Option<(Outcome, Reason, bool)> {
    let decision = decide(effective, &packet(effective, facts, flow, seen)?);
    Some((decision.outcome, decision.reason, decision.unsure))
}

/// The peers of what would have been denied, for a summary.
pub fn peers<'r>(denied: impl Iterator<Item = &'r Denied>) -> BTreeSet<IpAddr> {
    denied.filter_map(|denied| denied.flow.peer).collect()
}
