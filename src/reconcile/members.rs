//! The short way of a change that is in what some sets hold and in nothing else: elements of sets in the kernel, in force in
//! milliseconds however large the policy is. It runs ahead of the documents, which are loaded, judged and kept all the same when
//! there is time, and must come to the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Effect, Membership, State, Target};
use crate::compile::address_sets;
use crate::net::addr::AddrSet;
use crate::net::range::{Point, RangeSet};
use crate::nft::ir::Ruleset;
use crate::policy::effective::Effective;
use crate::policy::model::{NamedSet, Policy};

impl Membership {
    pub(super) fn of(effective: &Effective, mapped: BTreeSet<String>) -> Self {
        Self { named: Arc::clone(&effective.named), mapped }
    }
}

/// These sets hold something else.
pub(super) fn changed(state: &mut State, sets: BTreeMap<String, NamedSet>, effects: &mut Vec<Effect>) {
    state.members.extend(sets);
    go(state, effects);
}

/// Sends what waits, as soon as nothing is on its way. What cannot go the short way takes the long one.
pub(super) fn go(state: &mut State, effects: &mut Vec<Effect>) {
    if state.members.is_empty() || state.flying.is_some() {
        return;
    }
    let sets = std::mem::take(&mut state.members);
    let Some((ruleset, names)) = refilled(state, &sets) else { return effects.push(Effect::Reload) };
    if let Some(good) = &mut state.good {
        good.policy.sets.extend(sets);
        state.ahead = true;
    }
    let Some(target) = state.target.as_mut().filter(|_| !names.is_empty()) else { return };
    target.ruleset = Arc::new(ruleset);
    effects.push(Effect::ChangeMembers { ruleset: Arc::clone(&target.ruleset), sets: names });
    state.flying = Some(target.clone());
    state.refilling = true;
}

/// The ruleset with the new contents, and the names of the sets in the kernel that change; `None` where more has to change than
/// elements, or where something else is in force than the documents in place say.
fn refilled(state: &State, sets: &BTreeMap<String, NamedSet>) -> Option<(Ruleset, BTreeSet<String>)> {
    let under_way = [state.unjudged.is_some(), state.held.is_some(), state.awaited.is_some(), state.unwritten];
    let bad = [state.refused.is_some(), state.unresolved.is_some(), state.failed.is_some()];
    let wanted = [state.on_trial, state.drifted, state.again, state.forced];
    let quiet = !under_way.into_iter().chain(bad).chain(wanted).any(|is| is);
    let record = &state.record;
    let plain = record.emergency.is_none() && record.pending.is_none() && record.pin.is_none();
    let (target, in_force, good) = (state.target.as_ref()?, state.in_force.as_ref()?, state.good.as_ref()?);
    let current = Arc::ptr_eq(&target.ruleset, &in_force.ruleset) && target.number == good.number && good.number != 0;
    let same = || sets.values().all(|set| replaces(&good.policy, set));
    if !(quiet && plain && current && same()) {
        return None;
    }
    let facts = state.facts.as_ref()?;
    let Target { ruleset, members, .. } = target;
    let concerned = members.named.of_changed(&good.policy.sets, sets, facts);
    let plain = |(name, (before, after)): (&String, &(AddrSet, AddrSet))| {
        !members.mapped.contains(name) && kind(before) == kind(after)
    };
    if !concerned.iter().all(plain) {
        return None;
    }
    let mut ruleset = Ruleset::clone(ruleset);
    let names = concerned.iter().flat_map(|(name, (_, after))| refill(&mut ruleset, name, after)).collect();
    Some((ruleset, names))
}

/// Whether a set is the one of its name that is in force, but for what it holds.
fn replaces(policy: &Policy, set: &NamedSet) -> bool {
    let there = policy.sets.get(&set.name);
    there.is_some_and(|there| there.place.file == set.place.file && there.labels == set.labels)
}

/// What rules depend on beside the elements: whether there are any, whether all of them are addresses of hosts, and whether they are
/// everything there is.
fn kind(addresses: &AddrSet) -> [(bool, bool, bool); 2] {
    fn of<T: Point>(ranges: &RangeSet<T>) -> (bool, bool, bool) {
        (ranges.is_empty(), ranges.is_discrete(), ranges.is_full())
    }
    [of(&addresses.v4), of(&addresses.v6)]
}

/// Fills the sets of a name; those that hold something else now.
fn refill(ruleset: &mut Ruleset, name: &str, addresses: &AddrSet) -> Vec<String> {
    let mut changed = Vec::new();
    for (name, elements) in address_sets(name, addresses) {
        if let Some(set) = ruleset.sets.get_mut(&name).filter(|set| set.elements != elements) {
            set.elements = elements;
            changed.push(name);
        }
    }
    changed
}
