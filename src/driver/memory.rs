//! A table in memory that refuses what the kernel refuses, for tests and dry runs.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{Error, Kernel, Read};
use crate::net::range::{Point, RangeSet};
use crate::nft::TABLE;
use crate::nft::change::{Batch, Change, Loaded, RuleState, next_generation};
use crate::nft::ir::{BaseChain, Chain, ElementKey, Elements, Hook, Limit, Rule, Set, SetRef, Statement, Verdict};
use crate::nft::key::{DataType, Datum, Key};
use crate::nft::netlink::{canonical_rule, canonical_set};

/// A table in memory, for tests and dry runs. Counters stay at nothing.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    generation: u32,
    handle: u64,
    table: Option<Table>,
    /// The devices that there are, for a kernel that refuses chains on others; `None` for one in which such chains wait.
    devices: Option<BTreeSet<Datum>>,
}

#[derive(Clone, Debug, Default)]
struct Table {
    chains: BTreeMap<String, MemoryChain>,
    sets: BTreeMap<String, Set>,
}

#[derive(Clone, Debug, Default)]
struct MemoryChain {
    base: Option<BaseChain>,
    rules: Vec<(u64, Rule)>,
}

impl Kernel for Memory {
    fn generation(&mut self) -> Result<u32, Error> {
        Ok(self.generation)
    }

    fn load(&mut self, read: &Read) -> Result<Loaded, Error> {
        let mut loaded = Loaded { generation: self.generation, ..Loaded::default() };
        let Some(table) = &self.table else { return Ok(loaded) };
        loaded.exists = true;
        for (name, chain) in &table.chains {
            let rules = chain.rules.iter().map(|(_, rule)| rule.clone()).collect();
            loaded.ruleset.chains.insert(name.clone(), Chain { base: chain.base, rules });
            let states = chain.rules.iter().map(|(handle, rule)| RuleState {
                handle: *handle,
                counter: rule.statements.contains(&Statement::Counter).then_some((0, 0)),
            });
            loaded.rules.insert(name.clone(), states.collect());
        }
        for (name, set) in &table.sets {
            let wanted = match read {
                // What is in it is none of ours.
                _ if set.dynamic.is_some() => false,
                Read::Everything => true,
                Read::Only(names) => names.contains(name),
            };
            if wanted {
                loaded.ruleset.sets.insert(name.clone(), set.clone());
            } else {
                loaded.ruleset.sets.insert(name.clone(), set.with(none_like(&set.elements)));
                if set.dynamic.is_none() {
                    loaded.unread.push(name.clone());
                }
            }
        }
        Ok(loaded)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.generation.is_some_and(|generation| generation != self.generation) {
            return Err(Error::Contended);
        }
        let missing: BTreeSet<&String> =
            batch.changes.iter().filter_map(|change| self.on_missing_device(change)).collect();
        if !missing.is_empty() {
            return Err(Error::NoDevice { chains: missing.into_iter().cloned().collect() });
        }
        let mut next = self.clone();
        for change in &batch.changes {
            next.change(change).map_err(|errno| Error::Refused { subject: change.subject(), errno })?;
        }
        if let Some(Err(errno)) = next.table.as_ref().map(Table::validate) {
            return Err(Error::Refused { subject: format!("table {TABLE}"), errno });
        }
        // The kernel counts no generation for a batch of nothing.
        if !batch.changes.is_empty() {
            next.generation = next_generation(next.generation);
        }
        *self = next;
        Ok(())
    }
}

/// No elements, of the same kind.
fn none_like(elements: &Elements) -> Elements {
    match elements {
        Elements::V4(_) => Elements::V4(RangeSet::empty()),
        Elements::V6(_) => Elements::V6(RangeSet::empty()),
        Elements::Keys(_) => Elements::Keys(Default::default()),
    }
}

impl Memory {
    /// From now on it is one of before Linux 6.16 that has these devices: it refuses a chain on another one, and what was there on
    /// such a one is gone.
    pub fn set_devices<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let devices: BTreeSet<Datum> = names.into_iter().map(Datum::name).collect();
        if let Some(table) = &mut self.table {
            let device = |chain: &MemoryChain| chain.base.and_then(|base| base.device);
            table.chains.retain(|_, chain| device(chain).is_none_or(|device| devices.contains(&device)));
        }
        self.devices = Some(devices);
    }

    /// The chain that a change puts on a device that is not there.
    fn on_missing_device<'a>(&self, change: &'a Change) -> Option<&'a String> {
        let Change::AddChain { name, base: Some(BaseChain { device: Some(device), .. }) } = change else { return None };
        self.devices.as_ref().is_some_and(|devices| !devices.contains(device)).then_some(name)
    }

    fn change(&mut self, change: &Change) -> Result<(), Errno> {
        if *change == Change::AddTable {
            self.table.get_or_insert_default();
            return Ok(());
        }
        let table = self.table.as_mut().ok_or(Errno::ENOENT)?;
        match change {
            Change::AddTable => {}
            Change::DeleteTable => self.table = None,
            Change::AddChain { name, base } => match (table.chains.get_mut(name), base) {
                (_, Some(base)) if base.device.is_some() != (base.hook == Hook::Ingress) => {
                    // Later kernels take a chain at ingress without a device, which sees nothing.
                    return Err(if base.device.is_some() { Errno::EOPNOTSUPP } else { Errno::EINVAL });
                }
                (None, base) => {
                    table.chains.insert(name.clone(), MemoryChain { base: *base, rules: Vec::new() });
                }
                (Some(_), None) => {}
                (Some(MemoryChain { base: Some(there), .. }), Some(base))
                    if (there.hook, there.priority, there.device) == (base.hook, base.priority, base.device) =>
                {
                    there.policy = base.policy;
                }
                (Some(_), Some(_)) => return Err(Errno::EEXIST),
            },
            Change::DeleteChain { name } => {
                if !table.chains.contains_key(name) {
                    return Err(Errno::ENOENT);
                }
                // The kernel deletes the chain's rules with it, but counts what leads to it before, the chain itself included.
                if table.references(name) {
                    return Err(Errno::EBUSY);
                }
                table.chains.remove(name);
            }
            Change::FlushChain { name } => {
                table.chains.get_mut(name).ok_or(Errno::ENOENT)?.rules.clear();
            }
            Change::AddRule { chain, rule, before, .. } => {
                table.chains.get(chain).ok_or(Errno::ENOENT)?;
                table.check_rule(rule)?;
                self.handle += 1;
                let added = (self.handle, canonical_rule(rule));
                let rules = &mut table.chains.get_mut(chain).ok_or(Errno::ENOENT)?.rules;
                let index = match before {
                    Some(handle) => rules.iter().position(|(there, _)| there == handle).ok_or(Errno::ENOENT)?,
                    None => rules.len(),
                };
                rules.insert(index, added);
            }
            Change::DeleteRule { chain, handle } => {
                let rules = &mut table.chains.get_mut(chain).ok_or(Errno::ENOENT)?.rules;
                let index = rules.iter().position(|(there, _)| there == handle).ok_or(Errno::ENOENT)?;
                rules.remove(index);
            }
            Change::AddSet { name, set } => {
                if table.sets.contains_key(name) {
                    return Err(Errno::EEXIST);
                }
                let set = canonical_set(set);
                // The kernel's trees, in which ranges are, cannot be filled by rules.
                if set.dynamic.is_some() && set.interval {
                    return Err(Errno::EOPNOTSUPP);
                }
                table.check_elements(&set)?;
                table.sets.insert(name.clone(), set);
            }
            Change::DeleteSet { name } => {
                if !table.sets.contains_key(name) {
                    return Err(Errno::ENOENT);
                }
                if table.uses_set(name) {
                    return Err(Errno::EBUSY);
                }
                table.sets.remove(name);
            }
            Change::AddElements { name, set } => {
                let there = table.sets.get(name).ok_or(Errno::ENOENT)?;
                let added = canonical_set(&there.with(set.elements.clone()));
                table.check_elements(&added)?;
                let elements = joined(&there.elements, &added.elements)?;
                if let Some(there) = table.sets.get_mut(name) {
                    there.elements = elements;
                }
            }
            Change::DeleteElements { name, set } => {
                let there = table.sets.get_mut(name).ok_or(Errno::ENOENT)?;
                let gone = canonical_set(&there.with(set.elements.clone()));
                there.elements = without(&there.elements, &gone.elements)?;
            }
        }
        Ok(())
    }
}

impl Table {
    /// Whether a rule or a map leads to the chain.
    fn references(&self, name: &str) -> bool {
        let mut rules = self.chains.values().flat_map(|chain| &chain.rules);
        let from_rules = rules.any(|(_, rule)| targets(rule).contains(name));
        from_rules || self.sets.values().any(|set| element_targets(&set.elements).contains(name))
    }

    fn uses_set(&self, name: &str) -> bool {
        self.chains.values().flat_map(|chain| &chain.rules).any(|(_, rule)| named_sets(rule).any(|used| used == name))
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), Errno> {
        for statement in &rule.statements {
            match statement {
                Statement::Foreign(_) => return Err(Errno::ENOENT),
                Statement::Lookup { keys, set: SetRef::Anonymous(elements), .. }
                | Statement::Vmap { keys, map: SetRef::Anonymous(elements) } => {
                    let key = keys.iter().map(|key| key.data_type()).collect();
                    let map = matches!(statement, Statement::Vmap { .. });
                    let interval = elements.needs_interval();
                    self.check_elements(&Set { key, interval, map, dynamic: None, elements: elements.clone() })?;
                }
                Statement::Limit(limit) => check_limit(limit)?,
                _ => {}
            }
        }
        // What earlier statements wrote into registers a later lookup may read: the kernel knows no more of a key.
        let mut written = 0;
        for statement in &rule.statements {
            let (keys, named) = match statement {
                Statement::Match { key, .. } => (std::slice::from_ref(key), None),
                Statement::Lookup { keys, set, .. } => (keys.as_slice(), Some((set, false))),
                Statement::Vmap { keys, map } => (keys.as_slice(), Some((map, true))),
                Statement::Meter { keys, .. } => (keys.as_slice(), None),
                Statement::MarkSet(_) | Statement::MarkClear(_) => (&[Key::Mark][..], None),
                _ => continue,
            };
            written = written.max(width_of(keys).next_multiple_of(4));
            if let Statement::Meter { set, limit, .. } = statement {
                let set = self.sets.get(set).ok_or(Errno::ENOENT)?;
                // The kernel's trees and bitmaps, which are what sets with ranges and of short keys are, take nothing from rules.
                if set.interval || set.dynamic.is_none() && !set.map && width(&set.key) <= 2 {
                    return Err(Errno::EOPNOTSUPP);
                }
                if width(&set.key) > written {
                    return Err(Errno::ENODATA);
                }
                if set.map || set.dynamic.is_none() {
                    return Err(Errno::EINVAL);
                }
                check_limit(limit)?;
            }
            if let Some((SetRef::Named(name), map)) = named {
                let set = self.sets.get(name).ok_or(Errno::ENOENT)?;
                if width(&set.key) > written {
                    return Err(Errno::ENODATA);
                }
                if map && !set.map {
                    return Err(Errno::EINVAL);
                }
            }
        }
        for target in targets(rule) {
            self.check_target(&target)?;
        }
        Ok(())
    }

    fn check_target(&self, name: &str) -> Result<(), Errno> {
        match self.chains.get(name) {
            None => Err(Errno::ENOENT),
            Some(chain) if chain.base.is_some() => Err(Errno::EOPNOTSUPP),
            Some(_) => Ok(()),
        }
    }

    /// The elements by themselves: of one kind, no two alike or overlapping, to chains that are there.
    fn check_elements(&self, set: &Set) -> Result<(), Errno> {
        if !set.interval && set.elements.needs_interval() {
            return Err(Errno::EINVAL);
        }
        if let Elements::Keys(keys) = &set.elements {
            if keys.iter().any(|(key, verdict)| key.0.len() != set.key.len() || verdict.is_some() != set.map) {
                return Err(Errno::EINVAL);
            }
            let all: Vec<&ElementKey> = keys.keys().collect();
            if set.interval
                && all.iter().enumerate().any(|(index, key)| all[..index].iter().any(|there| overlap(there, key)))
            {
                return Err(Errno::EEXIST);
            }
        }
        element_targets(&set.elements).iter().try_for_each(|target| self.check_target(target))
    }

    /// Whether what base chains lead to works at their hooks, and jumps go no deeper than the kernel's stack, as those of a loop do.
    fn validate(&self) -> Result<(), Errno> {
        let mut depths = BTreeMap::new();
        for (name, chain) in &self.chains {
            let Some(base) = chain.base else { continue };
            if self.depth(name, &mut BTreeSet::new(), &mut depths).is_none_or(|depth| depth > JUMP_STACK) {
                return Err(Errno::EMLINK);
            }
            let mut reached = BTreeSet::new();
            self.reach(name, &mut reached);
            let rules = reached.iter().filter_map(|name| self.chains.get(name)).flat_map(|chain| &chain.rules);
            if !rules.flat_map(|(_, rule)| &rule.statements).all(|statement| works_at(statement, base.hook)) {
                return Err(Errno::EOPNOTSUPP);
            }
        }
        Ok(())
    }

    /// This chain and those that packets get to from it.
    fn reach(&self, name: &str, reached: &mut BTreeSet<String>) {
        if reached.insert(name.to_owned()) {
            self.next(name).iter().for_each(|next| self.reach(next, reached));
        }
    }

    /// The chains that the rules of a chain lead to.
    fn next(&self, name: &str) -> BTreeSet<String> {
        let mut next: BTreeSet<String> = BTreeSet::new();
        for (_, rule) in self.chains.get(name).map(|chain| &chain.rules).into_iter().flatten() {
            next.extend(targets(rule));
            // In the kernel's eyes a lookup in a map leads where its verdicts lead, even if the rule does not ask for them.
            let sets = named_sets(rule).filter_map(|name| self.sets.get(name));
            sets.for_each(|set| next.extend(element_targets(&set.elements)));
        }
        next
    }

    /// How many chains follow each other at most from this one on; `None` for a loop.
    fn depth<'a>(
        &'a self,
        name: &'a str,
        path: &mut BTreeSet<&'a str>,
        depths: &mut BTreeMap<&'a str, usize>,
    ) -> Option<usize> {
        if let Some(depth) = depths.get(name) {
            return Some(*depth);
        }
        if !path.insert(name) {
            return None;
        }
        let mut depth = 0;
        for target in &self.next(name) {
            if let Some((target, _)) = self.chains.get_key_value(target) {
                depth = depth.max(1 + self.depth(target, path, depths)?);
            }
        }
        path.remove(name);
        depths.insert(name, depth);
        Some(depth)
    }
}

/// How deep jumps may go (include/net/netfilter/nf_tables.h `NFT_JUMP_STACK_SIZE`, less the base chain).
const JUMP_STACK: usize = 15;

/// Whether a statement has what it needs at a hook (nft_socket_validate, nft_reject_inet_validate).
fn works_at(statement: &Statement, hook: Hook) -> bool {
    let keys = match statement {
        Statement::Reject(_) => return hook != Hook::Postrouting,
        Statement::Match { key, .. } => std::slice::from_ref(key),
        Statement::Lookup { keys, .. } | Statement::Vmap { keys, .. } | Statement::Meter { keys, .. } => keys,
        _ => return true,
    };
    let socket = keys.iter().any(|key| matches!(key, Key::SocketCgroup(_)));
    !socket || matches!(hook, Hook::Prerouting | Hook::Input | Hook::Output)
}

/// What the kernel demands of a bucket (nft_limit_init): a rate, and less than 2^64 ns in it.
fn check_limit(limit: &Limit) -> Result<(), Errno> {
    const NANOSECONDS: u64 = 1_000_000_000;
    let each = (u64::from(limit.seconds) * NANOSECONDS).checked_div(limit.rate.into()).ok_or(Errno::EINVAL)?;
    each.checked_mul(limit.burst.into()).map(|_| ()).ok_or(Errno::EOVERFLOW)
}

fn overlap(a: &ElementKey, b: &ElementKey) -> bool {
    a.0.iter().zip(&b.0).all(|((a_start, a_end), (b_start, b_end))| {
        a_start.bytes() <= b_end.bytes() && b_start.bytes() <= a_end.bytes()
    })
}

fn target(verdict: &Verdict) -> Option<&String> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

fn element_targets(elements: &Elements) -> BTreeSet<String> {
    let Elements::Keys(keys) = elements else { return BTreeSet::new() };
    keys.values().flatten().filter_map(target).cloned().collect()
}

/// The chains that a rule itself names, in its verdicts and in maps written into it.
fn targets(rule: &Rule) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for statement in &rule.statements {
        match statement {
            Statement::Verdict(verdict) => found.extend(target(verdict).cloned()),
            Statement::Vmap { map: SetRef::Anonymous(elements), .. } => found.extend(element_targets(elements)),
            _ => {}
        }
    }
    found
}

/// The named sets that a rule uses.
fn named_sets(rule: &Rule) -> impl Iterator<Item = &String> {
    rule.statements.iter().filter_map(|statement| match statement {
        Statement::Lookup { set: SetRef::Named(name), .. }
        | Statement::Vmap { map: SetRef::Named(name), .. }
        | Statement::Meter { set: name, .. } => Some(name),
        _ => None,
    })
}

/// The length of a set's key as the kernel counts it.
fn width(types: &[DataType]) -> usize {
    match types {
        [single] => single.size(),
        _ => types.iter().map(|part| part.size().next_multiple_of(4)).sum(),
    }
}

fn width_of(keys: &[Key]) -> usize {
    width(&keys.iter().map(|key| key.data_type()).collect::<Vec<_>>())
}

fn joined(there: &Elements, added: &Elements) -> Result<Elements, Errno> {
    fn ranges<T: Point>(there: &RangeSet<T>, added: &RangeSet<T>) -> Result<RangeSet<T>, Errno> {
        there.is_disjoint(added).then(|| there.union(added)).ok_or(Errno::EEXIST)
    }
    match (there, added) {
        (Elements::V4(there), Elements::V4(added)) => Ok(Elements::V4(ranges(there, added)?)),
        (Elements::V6(there), Elements::V6(added)) => Ok(Elements::V6(ranges(there, added)?)),
        (Elements::Keys(there), Elements::Keys(added)) => {
            if added.keys().any(|key| there.keys().any(|known| overlap(known, key))) {
                return Err(Errno::EEXIST);
            }
            let both = there.iter().chain(added).map(|(key, verdict)| (key.clone(), verdict.clone()));
            Ok(Elements::Keys(both.collect()))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// What is left of the elements; an error if one of `gone` is not among them exactly.
pub(super) fn without(there: &Elements, gone: &Elements) -> Result<Elements, Errno> {
    fn ranges<T: Point>(there: &RangeSet<T>, gone: &RangeSet<T>) -> Result<RangeSet<T>, Errno> {
        let known = |range| there.ranges().binary_search(range).is_ok();
        gone.ranges().iter().all(known).then(|| there.difference(gone)).ok_or(Errno::ENOENT)
    }
    match (there, gone) {
        (Elements::V4(there), Elements::V4(gone)) => Ok(Elements::V4(ranges(there, gone)?)),
        (Elements::V6(there), Elements::V6(gone)) => Ok(Elements::V6(ranges(there, gone)?)),
        (Elements::Keys(there), Elements::Keys(gone)) => {
            let mut left = there.clone();
            for key in gone.keys() {
                left.remove(key).ok_or(Errno::ENOENT)?;
            }
            Ok(Elements::Keys(left))
        }
        _ => Err(Errno::EINVAL),
    }
}
