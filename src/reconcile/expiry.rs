//! Policies that are over: out of what is meant to be in force, for good, and when to look again.

use super::life::Version;
use super::{Effect, Report, State, keep};
use crate::policy::effective::{Effective, EffectivePolicy};
use crate::policy::expiry;
use crate::text::finding::Code;

/// Takes in what time it is, in seconds since 1970-01-01 UTC; whether a policy in force may be over by now.
pub(super) fn clock(state: &mut State, now: u64) -> bool {
    state.clock = now;
    state.wake.is_some_and(|at| at <= now)
}

/// Takes the policies that are over out of what a version comes to. Once over, a policy stays so under this name and with this
/// `expires`, whatever the clock says later: one that was wrong, or that a reboot has lost, must not open anything again.
pub(super) fn pass(state: &mut State, effective: &mut Effective, effects: &mut Vec<Effect>) {
    let (now, known) = (state.clock, &state.record.expired);
    let is_over = |policy: &EffectivePolicy| policy.is_over(now) || key(policy).is_some_and(|key| known.contains(&key));
    let over = effective.expire(is_over);
    let before = known.clone();
    for policy in &over {
        if let Some((name, at)) = key(policy)
            && state.record.expired.insert((name.clone(), at))
        {
            effects.push(Effect::Report(Report::Expired { policy: name, at }));
        }
    }
    // What no version has any more need not be remembered.
    let versions: Vec<&Version> = state.good.iter().chain(&state.confirmed).collect();
    let exists = |(name, at): &(String, u64)| {
        let mut policies = versions.iter().flat_map(|version| &version.policy.policies);
        policies.any(|policy| policy.name == *name && policy.expires == Some(*at))
    };
    state.record.expired.retain(exists);
    state.findings.retain(|finding| finding.code != Code::Expired);
    state.findings.extend(over.iter().map(expiry::finding));
    if state.record.expired != before {
        keep(state, Vec::new(), effects);
    }
    let next = effective.next_expiry();
    if state.wake != next {
        state.wake = next;
        effects.push(Effect::Expiry(next));
    }
}

fn key(policy: &EffectivePolicy) -> Option<(String, u64)> {
    Some((policy.name.clone(), policy.expires?))
}

#[cfg(test)]
mod tests;
