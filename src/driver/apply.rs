//! From one generation to the next: read, plan, commit, read back, compare.

use std::collections::BTreeSet;

use super::{Applied, Error, Kernel, Read};
use crate::nft::change::{Batch, Change, Loaded};
use crate::nft::ir::{Elements, Ruleset, Set};
use crate::nft::netlink::canonical;
use crate::plan::plan_canonical;

/// How often we plan anew when other transactions come between. kube-proxy commits a few times a second at most; a
/// plan and a commit take milliseconds.
const ATTEMPTS: usize = 10;

/// Makes our table be `desired`: reads what is there (or believes `known`, if its generation is still the current one),
/// plans, commits, reads back and compares. Plans again when another transaction came between.
///
/// # Errors
/// The kernel's; the old generation is then still in force, except with [`Error::Differs`].
pub fn apply(kernel: &mut dyn Kernel, desired: &Ruleset, known: Option<&Loaded>) -> Result<Applied, Error> {
    let desired = canonical(desired);
    let mut known = known.filter(|known| known.unread.is_empty());
    for _ in 0..ATTEMPTS {
        let current = match known.take() {
            Some(known) if kernel.generation()? == known.generation => known.clone(),
            _ => kernel.load(&Read::Everything)?,
        };
        let Some(batch) = plan_canonical(&current, &desired) else {
            return Ok(Applied { loaded: current, changes: 0 });
        };
        match kernel.commit(&batch) {
            Ok(()) => return read_back(kernel, &desired, &current, &batch),
            Err(Error::Contended) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Contended)
}

/// Reads back the rules, and of the sets those that were written, and compares them with what was meant. Where only a
/// few elements of a set were written, those are looked up instead.
fn read_back(kernel: &mut dyn Kernel, desired: &Ruleset, before: &Loaded, batch: &Batch) -> Result<Applied, Error> {
    let (mut whole, mut single): (BTreeSet<&str>, Vec<(&str, Set, bool)>) = Default::default();
    for change in &batch.changes {
        match change {
            Change::AddSet { name, .. } => drop(whole.insert(name)),
            Change::AddElements { name, set } | Change::DeleteElements { name, set } => {
                let there = matches!(change, Change::AddElements { .. });
                match singles(set) {
                    Some(elements) => {
                        single.extend(elements.into_iter().map(|element| (name.as_str(), element, there)));
                    }
                    None => drop(whole.insert(name)),
                }
            }
            _ => {}
        }
    }
    // A range that is split leaves its first and last value in place as ends of others, and only ends can be looked up:
    // where something new begins at the start of something deleted, the set is read.
    let starts: BTreeSet<(&str, u128)> =
        single.iter().filter(|(.., there)| *there).map(|(name, element, _)| (*name, start(element))).collect();
    for (name, element, there) in &single {
        if !there && starts.contains(&(name, start(element))) {
            whole.insert(name);
        }
    }
    single.retain(|(name, ..)| !whole.contains(name));
    let mut loaded = kernel.load(&Read::Only(whole.into_iter().map(str::to_owned).collect()))?;
    for (name, element, there) in &single {
        if kernel.has_element(name, element)? != *there {
            let words = if *there { "without an element that was added" } else { "with an element that was deleted" };
            return Err(Error::Differs(format!("set {name} {words}")));
        }
    }
    if !single.is_empty() && kernel.generation()? != loaded.generation {
        // Another transaction came in between: the elements and the rest were read at different times.
        loaded = kernel.load(&Read::Everything)?;
    }
    for name in std::mem::take(&mut loaded.unread) {
        // A set that was not written holds what it held before, and one of which single elements were written and
        // found holds what it should: the kernel takes a batch as a whole.
        let written = single.iter().any(|(single, ..)| *single == name);
        let there = if written { desired.sets.get(&name) } else { before.ruleset.sets.get(&name) };
        match (loaded.ruleset.sets.get_mut(&name), there) {
            (Some(set), Some(there)) => set.elements = there.elements.clone(),
            _ => loaded.unread.push(name),
        }
    }
    match difference(&loaded, desired) {
        None => Ok(Applied { loaded, changes: batch.changes.len() }),
        Some(words) => Err(Error::Differs(words)),
    }
}

/// The first address of a set of addresses.
fn start(set: &Set) -> u128 {
    match &set.elements {
        Elements::V4(ranges) => ranges.ranges().first().map_or(0, |(start, _)| u128::from(*start)),
        Elements::V6(ranges) => ranges.ranges().first().map_or(0, |(start, _)| *start),
        Elements::Keys(_) => 0,
    }
}

/// How many elements are looked up one by one; more than that, and the set is read.
const SINGLE_ELEMENTS: usize = 32;

/// The elements one by one, if there are few and each can be looked up: of a range without end the kernel does not say
/// where it ends.
fn singles(set: &Set) -> Option<Vec<Set>> {
    if set.elements.len() > SINGLE_ELEMENTS {
        return None;
    }
    match &set.elements {
        Elements::V4(ranges) => {
            let closed = ranges.ranges().iter().all(|(_, end)| *end < u32::MAX);
            let each = ranges.ranges().iter().map(|range| set.with(Elements::V4([*range].into_iter().collect())));
            closed.then(|| each.collect())
        }
        Elements::V6(ranges) => {
            let closed = ranges.ranges().iter().all(|(_, end)| *end < u128::MAX);
            let each = ranges.ranges().iter().map(|range| set.with(Elements::V6([*range].into_iter().collect())));
            closed.then(|| each.collect())
        }
        Elements::Keys(_) => None,
    }
}

/// The first difference, in words.
fn difference(loaded: &Loaded, desired: &Ruleset) -> Option<String> {
    if let Some(foreign) = loaded.foreign.first() {
        return Some(foreign.clone());
    }
    if let Some(unread) = loaded.unread.first() {
        return Some(format!("set {unread}, which was not sent"));
    }
    let there = &loaded.ruleset;
    for name in there.sets.keys().chain(desired.sets.keys()) {
        match (there.sets.get(name), desired.sets.get(name)) {
            (None, _) => return Some(format!("no set {name}")),
            (_, None) => return Some(format!("set {name}, which was not sent")),
            (Some(there), Some(desired)) if there.elements.len() != desired.elements.len() => {
                let (has, wanted) = (there.elements.len(), desired.elements.len());
                return Some(format!("set {name} with {has} elements instead of {wanted}"));
            }
            (Some(there), Some(desired)) if there != desired => return Some(format!("another set {name}")),
            _ => {}
        }
    }
    for name in there.chains.keys().chain(desired.chains.keys()) {
        match (there.chains.get(name), desired.chains.get(name)) {
            (None, _) => return Some(format!("no chain {name}")),
            (_, None) => return Some(format!("chain {name}, which was not sent")),
            (Some(there), Some(desired)) if there != desired => {
                let same =
                    there.rules.iter().zip(&desired.rules).take_while(|(there, desired)| there == desired).count();
                return Some(match desired.rules.get(same).and_then(|rule| rule.comment.as_ref()) {
                    Some(comment) => format!("another chain {name}, from its rule {} on ({comment})", same + 1),
                    None => format!("another chain {name}, from its rule {} on", same + 1),
                });
            }
            _ => {}
        }
    }
    None
}
