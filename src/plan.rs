//! Current table + desired ruleset -> one transaction that changes as little as it can.

pub mod difference;

use std::collections::{BTreeMap, BTreeSet};

use crate::net::range::RangeSet;
use crate::nft::change::{Batch, Change, Loaded, next_generation};
use crate::nft::ir::{
    BaseChain, Chain, ChainPolicy, Dynamic, ElementKey, Elements, Rule, Ruleset, Set, SetRef, Statement, Verdict,
};
use crate::nft::key::DataType;
use crate::nft::netlink::{canonical, encode};

/// The transaction that turns what is loaded into `desired`; `None` when nothing is to be done.
///
/// Unchanged rules keep their counters, unchanged sets are not sent, changed contents of a set are sent as elements.
/// A set that goes, and that rules in force use, goes with the next plan: the kernel marks its elements as gone at once, and a
/// packet that is half-way through the old rules would find it empty. So a plan may take a second one to be complete.
/// Sets whose elements were not read (`Loaded::unread`) are taken to hold what they should.
pub fn plan(current: &Loaded, desired: &Ruleset) -> Option<Batch> {
    plan_canonical(current, &canonical(desired))
}

/// [`plan`] for a ruleset that is in the canonical form already.
pub(crate) fn plan_canonical(current: &Loaded, desired: &Ruleset) -> Option<Batch> {
    let changes = if !current.exists {
        create(desired)
    } else if !current.foreign.is_empty() {
        // What we have no words for we cannot remove by name: the whole table goes, and comes anew, in one transaction.
        let mut changes = vec![Change::DeleteTable];
        changes.extend(create(desired));
        changes
    } else {
        Difference::new(current, desired).changes()
    };
    (!changes.is_empty()).then_some(Batch { generation: Some(current.generation), changes })
}

/// The netlink batch that puts a ruleset in force whatever is there of our table: for the disk, and for a boot that has nothing but
/// these bytes. It is bound to no generation id of the kernel's, and its numbers are given when it is sent
/// ([`crate::nft::netlink::replay`]).
///
/// Chains on a device are left out: at boot the device may not be there yet, and before Linux 6.16 that would cost the whole batch. They
/// only do earlier what other chains do as well.
pub fn boot_batch(desired: &Ruleset) -> Vec<u8> {
    let mut desired = canonical(desired);
    desired.chains.retain(|_, chain| chain.base.is_none_or(|base| base.device.is_none()));
    // A table that is made before it is deleted is there to be deleted.
    let mut changes = vec![Change::AddTable, Change::DeleteTable];
    changes.extend(create(&desired));
    encode(&Batch { generation: None, changes }, 0).bytes
}

/// The transaction before the one of [`plan`], if one is needed: new sets with intervals, and the chains that their elements
/// lead to, still without rules. Nothing in force uses them yet. The kernel publishes the contents of such a set at the end of a
/// commit, after the rules have changed (`nft_set_commit_update` in nf_tables_commit): were they sent together, the first packets
/// would find the set empty.
pub(crate) fn preparation(current: &Loaded, desired: &Ruleset) -> Option<Batch> {
    if !current.foreign.is_empty() {
        return None;
    }
    let new: Vec<(&String, &Set)> = desired
        .sets
        .iter()
        .filter(|(name, set)| set.interval && !set.elements.is_empty() && !current.ruleset.sets.contains_key(*name))
        .collect();
    if new.is_empty() {
        return None;
    }
    let mut changes = Vec::new();
    if !current.exists {
        changes.push(Change::AddTable);
    }
    let chains: BTreeSet<String> = new.iter().flat_map(|(_, set)| chains_of(&set.elements)).collect();
    let chains = chains.into_iter().filter(|name| !current.ruleset.chains.contains_key(name));
    changes.extend(chains.map(|name| Change::AddChain { name, base: None }));
    changes.extend(new.into_iter().map(|(name, set)| Change::AddSet { name: name.clone(), set: set.clone() }));
    Some(Batch { generation: Some(current.generation), changes })
}

/// What is loaded when the transaction of [`preparation`] is in force, and nothing else came between.
pub(crate) fn prepared(current: &Loaded, preparation: &Batch) -> Loaded {
    let mut loaded = Loaded { generation: next_generation(current.generation), exists: true, ..current.clone() };
    for change in &preparation.changes {
        match change {
            Change::AddChain { name, base } => {
                loaded.ruleset.chains.insert(name.clone(), Chain { base: *base, rules: Vec::new() });
                loaded.rules.insert(name.clone(), Vec::new());
            }
            Change::AddSet { name, set } => drop(loaded.ruleset.sets.insert(name.clone(), set.clone())),
            _ => {}
        }
    }
    loaded
}

/// The whole table from nothing: chains, then the sets whose elements may jump to them, then the rules that use both.
fn create(desired: &Ruleset) -> Vec<Change> {
    let mut changes = vec![Change::AddTable];
    changes.extend(desired.chains.iter().map(|(name, chain)| new_chain(name, chain)));
    changes.extend(desired.sets.iter().map(|(name, set)| Change::AddSet { name: name.clone(), set: set.clone() }));
    for (name, chain) in &desired.chains {
        changes.extend(append(name, &chain.rules, desired));
    }
    changes.extend(desired.chains.iter().filter_map(|(name, chain)| closing(name, chain)));
    changes
}

/// A chain that is new comes with the policy accept, and [`closing`] makes that drop. The kernel hooks a base chain in while it reads
/// the batch, before any rule of the batch holds (nf_tables_addchain; nf_tables_commit takes in rules and changed policies): until the
/// commit only the first policy decides, and drop would cut the host off for that long.
fn new_chain(name: &str, chain: &Chain) -> Change {
    let base = chain.base.map(|base| BaseChain { policy: ChainPolicy::Accept, ..base });
    Change::AddChain { name: name.to_owned(), base }
}

/// What makes the policy of a new chain drop at the commit.
fn closing(name: &str, chain: &Chain) -> Option<Change> {
    let base = chain.base.filter(|base| base.policy == ChainPolicy::Drop)?;
    Some(Change::AddChain { name: name.to_owned(), base: Some(base) })
}

fn append<'a>(chain: &'a str, rules: &'a [Rule], desired: &'a Ruleset) -> impl Iterator<Item = Change> + 'a {
    rules.iter().map(move |rule| add_rule(chain, rule, None, desired))
}

fn add_rule(chain: &str, rule: &Rule, before: Option<u64>, desired: &Ruleset) -> Change {
    let turned = |set: &Set| set.interval && set.key.iter().any(|data_type| data_type.host_order());
    let interval = |name: &&str| desired.sets.get(*name).is_some_and(turned);
    let interval_sets = sets_of(rule).filter(interval).map(str::to_owned).collect();
    Change::AddRule { chain: chain.to_owned(), rule: rule.clone(), before, interval_sets }
}

/// The transaction in the order in which every step is legal for the kernel: first everything that refers to something
/// goes, then what it referred to; then new things come, and last what refers to them.
#[derive(Default)]
struct Difference {
    rules_gone: Vec<Change>,
    elements_gone: Vec<Change>,
    sets_gone: Vec<Change>,
    chains_gone: Vec<Change>,
    chains_new: Vec<Change>,
    sets_new: Vec<Change>,
    rules_new: Vec<Change>,
    /// The policies of new chains that are to drop.
    closing: Vec<Change>,
}

impl Difference {
    fn changes(self) -> Vec<Change> {
        let Self { rules_gone, elements_gone, sets_gone, chains_gone, chains_new, sets_new, rules_new, closing } = self;
        [rules_gone, elements_gone, sets_gone, chains_gone, chains_new, sets_new, rules_new, closing].concat()
    }

    fn new(current: &Loaded, desired: &Ruleset) -> Self {
        let mut difference = Self::default();
        let remade = difference.sets(current, desired);
        // A map that goes with the next plan holds on to the chains it leads to until then.
        let lingering = current.ruleset.sets.iter().filter(|(name, _)| {
            let gone = Change::DeleteSet { name: (*name).clone() };
            !desired.sets.contains_key(*name) && !difference.sets_gone.contains(&gone)
        });
        let held: BTreeSet<String> = lingering.flat_map(|(_, set)| chains_of(&set.elements)).collect();
        for (name, chain) in &current.ruleset.chains {
            let kept = desired.chains.get(name).filter(|wanted| same_place(chain, wanted));
            match kept {
                Some(wanted) => difference.kept_chain(name, wanted, current, desired, &remade),
                None => {
                    if !chain.rules.is_empty() {
                        difference.rules_gone.push(Change::FlushChain { name: name.clone() });
                    }
                    if !held.contains(name) {
                        difference.chains_gone.push(Change::DeleteChain { name: name.clone() });
                    }
                }
            }
        }
        for (name, chain) in &desired.chains {
            if current.ruleset.chains.get(name).is_none_or(|there| !same_place(there, chain)) {
                difference.chains_new.push(new_chain(name, chain));
                difference.closing.extend(closing(name, chain));
                difference.rules_new.extend(append(name, &chain.rules, desired));
            }
        }
        difference
    }

    /// Plans the sets and names those that go and come again, because the kernel cannot change what a set is.
    fn sets<'a>(&mut self, current: &'a Loaded, desired: &Ruleset) -> BTreeSet<&'a str> {
        let mut remade = BTreeSet::new();
        let used: BTreeSet<&str> =
            current.ruleset.chains.values().flat_map(|chain| &chain.rules).flat_map(sets_of).collect();
        for (name, there) in &current.ruleset.sets {
            let Some(wanted) = desired.sets.get(name) else {
                let leads_to_remade =
                    chains_of(&there.elements).iter().any(|chain| remade_chain(current, desired, chain));
                if !used.contains(name.as_str()) || leads_to_remade {
                    self.sets_gone.push(Change::DeleteSet { name: name.clone() });
                }
                continue;
            };
            if shape(there) != shape(wanted) {
                remade.insert(name.as_str());
                self.sets_gone.push(Change::DeleteSet { name: name.clone() });
                self.sets_new.push(Change::AddSet { name: name.clone(), set: wanted.clone() });
            } else if wanted.dynamic.is_none() && !current.unread.contains(name) {
                for change in elements(name, there, wanted) {
                    match change {
                        Change::DeleteElements { .. } => self.elements_gone.push(change),
                        _ => self.sets_new.push(change),
                    }
                }
            }
        }
        for (name, set) in &desired.sets {
            if !current.ruleset.sets.contains_key(name) {
                self.sets_new.push(Change::AddSet { name: name.clone(), set: set.clone() });
            }
        }
        remade
    }

    fn kept_chain(&mut self, name: &str, wanted: &Chain, current: &Loaded, desired: &Ruleset, remade: &BTreeSet<&str>) {
        let Some(there) = current.ruleset.chains.get(name) else { return };
        if there.base != wanted.base {
            self.chains_new.push(Change::AddChain { name: name.to_owned(), base: wanted.base });
        }
        let states = current.rules.get(name).map_or(&[][..], Vec::as_slice);
        let may_stay: Vec<bool> = there.rules.iter().map(|rule| stays(rule, remade)).collect();
        let kept = common(&there.rules, &wanted.rules, &may_stay);
        if states.len() != there.rules.len() {
            // Handles that do not belong to the rules are of no use: the chain is written anew.
            self.rules_gone.push(Change::FlushChain { name: name.to_owned() });
            self.rules_new.extend(append(name, &wanted.rules, desired));
            return;
        }
        let kept_there: BTreeSet<usize> = kept.iter().map(|(there, _)| *there).collect();
        for (index, state) in states.iter().enumerate() {
            if !kept_there.contains(&index) {
                self.rules_gone.push(Change::DeleteRule { chain: name.to_owned(), handle: state.handle });
            }
        }
        let mut kept = kept.into_iter().peekable();
        for (index, rule) in wanted.rules.iter().enumerate() {
            if kept.next_if(|(_, wanted)| *wanted == index).is_some() {
                continue;
            }
            let before = kept.peek().map(|(there, _)| states[*there].handle);
            self.rules_new.push(add_rule(name, rule, before, desired));
        }
    }
}

/// Whether a chain goes and comes again under its name, because the kernel cannot move it.
fn remade_chain(current: &Loaded, desired: &Ruleset, name: &str) -> bool {
    let both = (current.ruleset.chains.get(name), desired.chains.get(name));
    matches!(both, (Some(there), Some(wanted)) if !same_place(there, wanted))
}

/// Whether a chain can stay in place: the kernel changes a base chain's policy, but neither its hook nor its priority; and to a chain
/// on a device it would only add another.
fn same_place(there: &Chain, wanted: &Chain) -> bool {
    let place = |chain: &Chain| chain.base.map(|base| (base.hook, base.priority, base.device));
    place(there) == place(wanted)
}

/// What a set is, which the kernel cannot change.
pub(crate) fn shape(set: &Set) -> (&[DataType], bool, bool, Option<Dynamic>) {
    (&set.key, set.interval, set.map, set.dynamic)
}

/// Whether a rule can stay: it uses no set that goes and comes again, and has nothing that the IR cannot say.
fn stays(rule: &Rule, remade: &BTreeSet<&str>) -> bool {
    let foreign = rule.statements.iter().any(|statement| matches!(statement, Statement::Foreign(_)));
    !foreign && sets_of(rule).all(|name| !remade.contains(name))
}

/// The named sets and maps that a rule uses.
fn sets_of(rule: &Rule) -> impl Iterator<Item = &str> {
    rule.statements.iter().filter_map(|statement| match statement {
        Statement::Lookup { set: SetRef::Named(name), .. }
        | Statement::Vmap { map: SetRef::Named(name), .. }
        | Statement::Meter { set: name, .. } => Some(name.as_str()),
        _ => None,
    })
}

/// The chains that the elements of a map lead to.
fn chains_of(elements: &Elements) -> BTreeSet<String> {
    let Elements::Keys(keys) = elements else { return BTreeSet::new() };
    keys.values()
        .filter_map(|verdict| match verdict {
            Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
            _ => None,
        })
        .collect()
}

/// The rules that stay, as pairs of indices, ascending in both: the common beginning and end, and of the rules between
/// the longest ascending run of equal ones. The n-th of several equal rules is paired with the n-th, so that the cost
/// is that of sorting.
fn common(there: &[Rule], wanted: &[Rule], may_stay: &[bool]) -> Vec<(usize, usize)> {
    let same = |a: usize, b: usize| may_stay[a] && there[a] == wanted[b];
    let least = there.len().min(wanted.len());
    let head = (0..least).take_while(|index| same(*index, *index)).count();
    let tail = (1..=least - head).take_while(|back| same(there.len() - back, wanted.len() - back)).count();

    let mut places: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for index in (head..there.len() - tail).rev().filter(|index| may_stay[*index]) {
        places.entry(identity(&there[index])).or_default().push(index);
    }
    let mut pairs = Vec::new();
    for (index, rule) in wanted.iter().enumerate().take(wanted.len() - tail).skip(head) {
        if let Some(place) = places.get_mut(&identity(rule)).and_then(Vec::pop) {
            pairs.push((place, index));
        }
    }
    let mut kept: Vec<(usize, usize)> = (0..head).map(|index| (index, index)).collect();
    kept.extend(longest_ascending(&pairs));
    kept.extend((1..=tail).rev().map(|back| (there.len() - back, wanted.len() - back)));
    kept
}

/// A text that two rules share exactly when they are equal.
fn identity(rule: &Rule) -> String {
    format!("{rule:?}")
}

/// The longest run of pairs, in order, whose first members ascend (the second ones do already).
fn longest_ascending(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // For each length, the pair with the smallest first member that ends a run of it; and who came before each pair.
    let mut ends: Vec<usize> = Vec::new();
    let mut previous: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (index, (place, _)) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs[*end].0 < *place);
        previous.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        if length == ends.len() {
            ends.push(index);
        } else {
            ends[length] = index;
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut next = ends.last().copied();
    while let Some(index) = next {
        run.push(pairs[index]);
        next = previous[index];
    }
    run.reverse();
    run
}

/// What makes of a set one that holds what another one of its kind does: the elements that go, then those that come.
pub(crate) fn elements(name: &str, there: &Set, wanted: &Set) -> Vec<Change> {
    let (gone, new) = delta(&there.elements, &wanted.elements);
    let mut changes = Vec::new();
    if !gone.is_empty() {
        changes.push(Change::DeleteElements { name: name.to_owned(), set: wanted.with(gone) });
    }
    if !new.is_empty() {
        changes.push(Change::AddElements { name: name.to_owned(), set: wanted.with(new) });
    }
    changes
}

/// What has to be deleted and what added, as whole elements: the kernel knows a range only by its own two ends.
fn delta(there: &Elements, wanted: &Elements) -> (Elements, Elements) {
    match (there, wanted) {
        (Elements::V4(there), Elements::V4(wanted)) => (
            Elements::V4(only_left(there.ranges(), wanted.ranges())),
            Elements::V4(only_left(wanted.ranges(), there.ranges())),
        ),
        (Elements::V6(there), Elements::V6(wanted)) => (
            Elements::V6(only_left(there.ranges(), wanted.ranges())),
            Elements::V6(only_left(wanted.ranges(), there.ranges())),
        ),
        (Elements::Keys(there), Elements::Keys(wanted)) => {
            (Elements::Keys(only_left_keys(there, wanted).into()), Elements::Keys(only_left_keys(wanted, there).into()))
        }
        _ => (there.clone(), wanted.clone()),
    }
}

/// The ranges of the first list that are not in the second; none of them touch, since they are of one set.
fn only_left<T: crate::net::range::Point>(left: &[(T, T)], right: &[(T, T)]) -> RangeSet<T> {
    let mut right = right.iter().peekable();
    let missing = left.iter().filter(|range| {
        while right.next_if(|there| there < range).is_some() {}
        right.peek() != Some(range)
    });
    missing.copied().collect()
}

type Keys = BTreeMap<ElementKey, Option<Verdict>>;

fn only_left_keys(left: &Keys, right: &Keys) -> Keys {
    let missing = left.iter().filter(|(key, verdict)| right.get(*key) != Some(*verdict));
    missing.map(|(key, verdict)| (key.clone(), verdict.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::ir::Hook;

    /// The kernel's order of things within one batch is told in [`new_chain`].
    #[test]
    fn a_new_base_chain_drops_only_from_the_commit_on() {
        let base = |policy, priority| Some(BaseChain { hook: Hook::Input, priority, policy, device: None });
        let chain = |base| Chain { base, rules: Vec::new() };
        let ruleset = |base| Ruleset {
            chains: [("input".to_owned(), chain(base)), ("jumped_to".to_owned(), chain(None))].into(),
            ..Ruleset::default()
        };
        let desired = ruleset(base(ChainPolicy::Drop, 0));
        let nothing = Loaded::default();
        let foreign = Loaded { exists: true, foreign: vec!["object x".to_owned()], ..Loaded::default() };
        let elsewhere = Loaded { exists: true, ruleset: ruleset(base(ChainPolicy::Drop, 5)), ..Loaded::default() };
        for current in [nothing, foreign, elsewhere] {
            let batch = plan(&current, &desired).unwrap_or_default();
            let policies: Vec<ChainPolicy> = batch
                .changes
                .iter()
                .filter_map(|change| match change {
                    Change::AddChain { base: Some(base), .. } => Some(base.policy),
                    _ => None,
                })
                .collect();
            assert_eq!(policies, [ChainPolicy::Accept, ChainPolicy::Drop], "{:?}", batch.changes);
        }
        // One that is in place is only told its policy.
        let open = Loaded { exists: true, ruleset: ruleset(base(ChainPolicy::Accept, 0)), ..Loaded::default() };
        let add = Change::AddChain { name: "input".to_owned(), base: base(ChainPolicy::Drop, 0) };
        assert_eq!(plan(&open, &desired).map(|batch| batch.changes), Some(vec![add]));
    }
}
