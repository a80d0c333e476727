//! From one generation to the next: read, plan, commit, read back, compare.

use std::borrow::Cow;
use std::collections::BTreeSet;

use nix::errno::Errno;

use super::{Applied, Error, Kernel, Read};
use crate::nft::change::{Change, Loaded};
use crate::nft::ir::{Elements, Ruleset, Set};
use crate::nft::netlink::canonical;
use crate::plan::{plan_canonical, preparation, prepared};

/// How often we plan anew when other transactions come between. kube-proxy commits a few times a second at most; a
/// plan and a commit take milliseconds.
const ATTEMPTS: usize = 10;

/// Reading a set back takes the kernel longer than writing it, and more than in proportion (`nf_tables.md` section 3: 7 ms for
/// 10,000 elements, 760 ms for 100,000). Larger new sets than this are read when the rest is in force and was read back.
const LARGEST_SET_READ_AT_ONCE: usize = 2048;

/// Makes our table be `desired`: reads what is there (or believes `known`, if its generation is still the current one),
/// plans, commits, reads back and compares. Plans again when another transaction came between, and without the chains whose device is
/// not there.
///
/// # Errors
/// The kernel's; the old generation is then still in force, except with [`Error::Differs`].
pub fn apply(kernel: &mut dyn Kernel, desired: &Ruleset, known: Option<&Loaded>) -> Result<Applied, Error> {
    let mut desired = canonical(desired);
    let mut known = known.filter(|known| known.unread.is_empty()).map(Cow::Borrowed);
    let (mut sent, mut without): (Vec<Change>, Vec<String>) = (Vec::new(), Vec::new());
    let mut looked = false;
    for _ in 0..ATTEMPTS {
        let current = match known.take() {
            Some(known) if kernel.generation()? == known.generation => known.into_owned(),
            _ => {
                looked = true;
                kernel.load(&Read::Everything)?
            }
        };
        let preparation = preparation(&current, &desired);
        let current = match &preparation {
            Some(batch) => prepared(&current, batch),
            None => current,
        };
        let planned = plan_canonical(&current, &desired);
        let committed = match (&preparation, &planned) {
            (None, None) => {
                return Ok(Applied { loaded: current, changes: sent.len(), deferred: Vec::new(), without });
            }
            (Some(batch), None) | (None, Some(batch)) => kernel.commit(batch),
            (Some(first), Some(second)) => kernel.commit_both(first, second),
        };
        match committed {
            Ok(()) => {}
            Err(Error::Contended) => continue,
            // What such a chain does others do as well, only later: the rest must not wait for it.
            Err(Error::NoDevice { chains }) => {
                desired.chains.retain(|name, _| !chains.contains(name));
                without.extend(chains);
                // The preparation is in force, and has no such chains.
                sent.extend(preparation.into_iter().flat_map(|batch| batch.changes));
                known = Some(Cow::Owned(current));
                continue;
            }
            // Before Linux 6.16 a chain goes with its device and the generation stays: what was known may not be so any more.
            Err(Error::Refused { errno: Errno::ENOENT, .. }) if !looked => continue,
            Err(error) => return Err(error),
        }
        let mut changes = sent;
        changes.extend([preparation, planned].into_iter().flatten().flat_map(|batch| batch.changes));
        let (loaded, deferred) = read_back(kernel, &desired, &current, &changes)?;
        let loaded = clean_up(kernel, &desired, loaded)?;
        return match difference(&loaded, &desired) {
            None => Ok(Applied { loaded, changes: changes.len(), deferred, without }),
            Some(words) => Err(Error::Differs(words)),
        };
    }
    Err(Error::Contended)
}

/// Reads sets that [`apply`] wrote and did not read back, and compares them with what was meant.
///
/// # Errors
/// The kernel's, and [`Error::Differs`].
pub fn verify(kernel: &mut dyn Kernel, desired: &Ruleset, sets: &[String]) -> Result<(), Error> {
    if sets.is_empty() {
        return Ok(());
    }
    let desired = canonical(desired);
    let loaded = kernel.load(&Read::Only(sets.to_vec()))?;
    for name in sets {
        if loaded.ruleset.sets.get(name) != desired.sets.get(name) {
            return Err(Error::Differs(format!("another set {name}")));
        }
    }
    Ok(())
}

/// Removes what the transaction before left behind because packets could still be on their way through it. Nothing that is in
/// force depends on it, so another transaction that comes between is no reason to fail.
fn clean_up(kernel: &mut dyn Kernel, desired: &Ruleset, loaded: Loaded) -> Result<Loaded, Error> {
    let mut loaded = loaded;
    for _ in 0..ATTEMPTS {
        let Some(batch) = plan_canonical(&loaded, desired) else { return Ok(loaded) };
        let leftovers = |change: &Change| {
            matches!(change, Change::DeleteSet { .. } | Change::DeleteChain { .. } | Change::FlushChain { .. })
        };
        if !batch.changes.iter().all(leftovers) {
            return Ok(loaded);
        }
        match kernel.commit(&batch) {
            Ok(()) | Err(Error::Contended) => {}
            Err(error) => return Err(error),
        }
        let fresh = kernel.load(&Read::Only(Vec::new()))?;
        loaded = with_known_sets(fresh, &loaded.ruleset, &Ruleset::default());
    }
    Ok(loaded)
}

/// A reading without elements, with those that are known: of what was read before, else of what was sent.
fn with_known_sets(mut fresh: Loaded, before: &Ruleset, sent: &Ruleset) -> Loaded {
    for name in std::mem::take(&mut fresh.unread) {
        let known = before.sets.get(&name).or_else(|| sent.sets.get(&name));
        match (fresh.ruleset.sets.get_mut(&name), known) {
            (Some(set), Some(known)) => set.elements = known.elements.clone(),
            _ => fresh.unread.push(name),
        }
    }
    fresh
}

/// Reads back the rules, and of the sets those that were written; large new ones are left for [`verify`] and named. Where
/// only a few elements of a set were written, those are looked up instead.
fn read_back(
    kernel: &mut dyn Kernel,
    desired: &Ruleset,
    before: &Loaded,
    changes: &[Change],
) -> Result<(Loaded, Vec<String>), Error> {
    let Written { whole, single, deferred } = Written::of(changes);
    let mut loaded = kernel.load(&Read::Only(whole.into_iter().collect()))?;
    single.iter().try_for_each(|single| single.look(kernel))?;
    if !single.is_empty() && kernel.generation()? != loaded.generation {
        // Another transaction came in between: the elements and the rest were read at different times.
        loaded = kernel.load(&Read::Everything)?;
    }
    for name in std::mem::take(&mut loaded.unread) {
        // A set that was not written holds what it held before, and one of which single elements were written and
        // found holds what it should: the kernel takes a batch as a whole.
        let written = single.iter().any(|single| single.name == name) || deferred.contains(&name);
        let there = if written { desired.sets.get(&name) } else { before.ruleset.sets.get(&name) };
        match (loaded.ruleset.sets.get_mut(&name), there) {
            (Some(set), Some(there)) => set.elements = there.elements.clone(),
            _ => loaded.unread.push(name),
        }
    }
    Ok((loaded, deferred.into_iter().collect()))
}

/// What a batch wrote into sets, and how to find out whether it is there.
pub(super) struct Written {
    /// Sets to read.
    pub(super) whole: BTreeSet<String>,
    /// Elements to look up.
    pub(super) single: Vec<Single>,
    /// Sets that are too large to be read at once.
    deferred: BTreeSet<String>,
}

/// One element that was written.
pub(super) struct Single {
    name: String,
    element: Set,
    /// Whether it was added; else it was deleted.
    there: bool,
}

impl Written {
    pub(super) fn of(changes: &[Change]) -> Self {
        let mut deferred = BTreeSet::new();
        let (mut whole, mut single): (BTreeSet<String>, Vec<Single>) = Default::default();
        for change in changes {
            match change {
                Change::AddSet { name, set } if set.elements.len() > LARGEST_SET_READ_AT_ONCE => {
                    deferred.insert(name.clone());
                }
                Change::AddSet { name, .. } => drop(whole.insert(name.clone())),
                Change::AddElements { name, set } | Change::DeleteElements { name, set } => {
                    let there = matches!(change, Change::AddElements { .. });
                    match singles(set) {
                        Some(elements) => {
                            let each = |element| Single { name: name.clone(), element, there };
                            single.extend(elements.into_iter().map(each));
                        }
                        None => drop(whole.insert(name.clone())),
                    }
                }
                _ => {}
            }
        }
        // A range that is split leaves its first and last value in place as ends of others, and only ends can be looked up:
        // where something new begins at the start of something deleted, the set is read.
        let added = single.iter().filter(|single| single.there);
        let starts: BTreeSet<(&str, u128)> =
            added.map(|single| (single.name.as_str(), start(&single.element))).collect();
        let split = single
            .iter()
            .filter(|single| !single.there && starts.contains(&(single.name.as_str(), start(&single.element))));
        whole.extend(split.map(|single| single.name.clone()).collect::<Vec<_>>());
        single.retain(|single| !whole.contains(&single.name));
        Self { whole, single, deferred }
    }
}

impl Single {
    /// Asks the kernel.
    pub(super) fn look(&self, kernel: &mut dyn Kernel) -> Result<(), Error> {
        let Self { name, element, there } = self;
        if kernel.has_element(name, element)? == *there {
            return Ok(());
        }
        let words = if *there { "without an element that was added" } else { "with an element that was deleted" };
        Err(Error::Differs(format!("set {name} {words}")))
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
