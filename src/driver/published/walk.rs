//! The way of a packet through the rules of one table, for all packets at once: which of them have their destination rewritten. Pure.
//!
//! What is not understood makes the answer wider: a condition that is unknown holds, and a verdict that may take a packet away
//! leaves it. Both are noted ([`Published::partly`]).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::Exposed;
use crate::driver::foreign::owner_of_chain;
use crate::net::addr::{AddrSet, Family};
use crate::net::protocol::{PortSet, Protocol};
use crate::net::published::{Interfaces, Published, Target, Via};
use crate::net::range::{Point, RangeSet};
use crate::nft::ir::Verdict;
use crate::nft::netlink::Family as TableFamily;
use crate::nft::netlink::nat::{Element, Field, NatRule, Operand, Part, RTN_LOCAL, Rewrite, SetShape, Step, To, What};

/// A table as it was read.
pub(super) struct Table<'a> {
    pub(super) family: TableFamily,
    pub(super) name: &'a str,
    /// Whose it is, if it is one agent's alone.
    pub(super) owner: Option<&'static str>,
    pub(super) chains: &'a BTreeMap<String, Vec<NatRule>>,
}

/// A set with what is in it.
pub(super) struct Content {
    pub(super) shape: SetShape,
    pub(super) elements: Vec<Element>,
}

/// More steps than these are not gone, over all ways through a table.
const MOST_STEPS: usize = 2_000_000;
/// Chains inside chains. The kernel takes 16 jumps, and any number of `goto`.
const MOST_DEPTH: usize = 64;
/// Elements of a set of several fields that are followed one by one where no verdict depends on them.
const MOST_BRANCHES: usize = 1024;
/// Packets that left early which are remembered; after more, all that follows is in doubt.
const MOST_GONE: usize = 1024;
/// Protocols that are told one by one.
const MOST_PROTOCOLS: usize = 8;

/// What the base chains `roots`, in this order, publish. `sets` reads a set by its name.
pub(super) fn walk(
    table: &Table<'_>,
    roots: &[String],
    own: &AddrSet,
    sets: &mut dyn FnMut(&str) -> Option<Content>,
) -> Exposed {
    walk_within(MOST_STEPS, table, roots, own, sets)
}

/// The same in so many steps.
fn walk_within(
    most: usize,
    table: &Table<'_>,
    roots: &[String],
    own: &AddrSet,
    sets: &mut dyn FnMut(&str) -> Option<Content>,
) -> Exposed {
    let mut walk = Walk {
        most,
        table,
        own,
        sets,
        known: BTreeMap::new(),
        path: Vec::new(),
        gone: Vec::new(),
        doubt: false,
        steps: 0,
        rewrites: 0,
        found: BTreeMap::new(),
        unread: BTreeSet::new(),
    };
    let family = match table.family {
        TableFamily::Ip => Some(Family::V4),
        TableFamily::Ip6 => Some(Family::V6),
        _ => None,
    };
    for root in roots {
        walk.chain(root, &Condition::of(family));
    }
    let unread = walk.unread.iter().map(|what| format!("table {} {}: {what}", table.family.name(), table.name));
    Exposed { unread: unread.collect(), published: together(walk.found) }
}

/// Which packets are meant.
#[derive(Clone, Debug)]
struct Condition {
    family: Option<Family>,
    protocols: RangeSet<u8>,
    addresses: AddrSet,
    ports: PortSet,
    interfaces: Interfaces,
    partly: bool,
    /// The chain that asked for the port, and what it says about it.
    label: Option<(Rc<str>, Option<Rc<str>>)>,
    /// What rules have put into registers, by the first slot.
    registers: BTreeMap<usize, Rc<[u8]>>,
}

impl Condition {
    fn of(family: Option<Family>) -> Self {
        Self {
            family,
            protocols: RangeSet::full(),
            addresses: AddrSet::full(),
            ports: PortSet::full(),
            interfaces: Interfaces::default(),
            partly: false,
            label: None,
            registers: BTreeMap::new(),
        }
    }

    /// Whether it can be met after it is met only by packets of this version.
    fn restrict_family(&mut self, family: Family) -> bool {
        let fits = self.family.is_none_or(|known| known == family);
        self.family = Some(family);
        fits
    }

    /// Whether it can be met after a field has to have one of these values; no address is met that is not one of this host.
    fn restrict(&mut self, field: Field, values: &RangeSet<u128>, own: &AddrSet) -> bool {
        match field {
            Field::Protocol => {
                self.protocols = self.protocols.intersection(&narrow(values));
                !self.protocols.is_empty()
            }
            Field::Port => {
                self.ports = self.ports.intersection(&narrow(values));
                !self.ports.is_empty()
            }
            Field::Address(Family::V4) => {
                self.addresses.v4 = self.addresses.v4.intersection(&narrow(values));
                self.restrict_family(Family::V4) && !self.addresses.v4.is_disjoint(&own.v4)
            }
            Field::Address(Family::V6) => {
                self.addresses.v6 = self.addresses.v6.intersection(values);
                self.restrict_family(Family::V6) && !self.addresses.v6.is_disjoint(&own.v6)
            }
        }
    }

    /// Whether a packet may meet both.
    fn meets(&self, other: &Self) -> bool {
        self.family.is_none_or(|family| other.family.is_none_or(|other| family == other))
            && !self.protocols.is_disjoint(&other.protocols)
            && !self.ports.is_disjoint(&other.ports)
            && !self.addresses.is_disjoint(&other.addresses)
            && self.interfaces.meets(&other.interfaces)
    }

    /// Its addresses among those of the host; `None` for all of the host's, loopback's possibly apart.
    fn addresses_of(&self, own: &AddrSet) -> Option<AddrSet> {
        let family = self.family?;
        let loopback: AddrSet = [IpAddr::V6(Ipv6Addr::LOCALHOST)].into_iter().collect();
        let loopback = AddrSet { v4: RangeSet::range(0x7f00_0000, 0x7fff_ffff), ..loopback };
        let outside = own.difference(&loopback);
        // A condition that is about more than this host's addresses, and holds for all of these, is about none of them in particular.
        let any = match family {
            Family::V4 => {
                outside.v4.difference(&self.addresses.v4).is_empty()
                    && !self.addresses.v4.difference(&own.v4).is_empty()
            }
            Family::V6 => {
                outside.v6.difference(&self.addresses.v6).is_empty()
                    && !self.addresses.v6.difference(&own.v6).is_empty()
            }
        };
        let here = self.addresses.intersection(own);
        (!any).then(|| match family {
            Family::V4 => AddrSet { v6: RangeSet::empty(), ..here },
            Family::V6 => AddrSet { v4: RangeSet::empty(), ..here },
        })
    }
}

/// Values of a field of fewer bits; those that it cannot have are left out.
fn narrow<T: Point + TryFrom<u128> + Into<u128>>(values: &RangeSet<u128>) -> RangeSet<T> {
    let fits = |start: u128, end: u128| Some((T::try_from(start).ok()?, T::try_from(end.min(T::MAX.into())).ok()?));
    values.ranges().iter().filter_map(|(start, end)| fits(*start, *end)).collect()
}

/// What makes two entries the same but for where they lead.
type Key =
    (Option<Protocol>, PortSet, Option<Family>, Option<AddrSet>, Interfaces, Option<&'static str>, Option<String>, Via);

struct Walk<'a> {
    table: &'a Table<'a>,
    own: &'a AddrSet,
    sets: &'a mut dyn FnMut(&str) -> Option<Content>,
    known: BTreeMap<String, Option<Rc<Content>>>,
    /// The chains on the way to here.
    path: Vec<String>,
    /// Packets that have left, of which later rules may see fewer than they say.
    gone: Vec<Condition>,
    /// More left than are remembered.
    doubt: bool,
    /// How many steps may be gone, and how many were.
    most: usize,
    steps: usize,
    /// How many rewrites were met.
    rewrites: usize,
    found: BTreeMap<Key, (Target, bool)>,
    unread: BTreeSet<String>,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &str, condition: &Condition) {
        let table = self.table;
        let Some(rules) = table.chains.get(name) else { return };
        if self.path.iter().any(|before| before == name) {
            return;
        }
        if self.path.len() >= MOST_DEPTH {
            self.unread.insert(format!("chain {name} is too many jumps away"));
            return;
        }
        self.path.push(name.to_owned());
        let mut returned = Vec::new();
        for rule in rules {
            self.rule(rule, &rule.steps, condition.clone(), &mut returned);
        }
        self.path.pop();
    }

    /// The steps of a rule for packets that have come so far. `returned` gets those that leave this chain.
    fn rule(&mut self, rule: &'a NatRule, steps: &'a [Step], mut condition: Condition, returned: &mut Vec<Condition>) {
        for (index, step) in steps.iter().enumerate() {
            if self.is_far() {
                return;
            }
            match step {
                Step::Asks => condition.partly = true,
                Step::Local(true) => {}
                Step::Local(false) => return,
                Step::Family(family) => {
                    if !condition.restrict_family(*family) {
                        return;
                    }
                }
                Step::Over(name) => {
                    if !condition.interfaces.restrict([name.clone()].into()) {
                        return;
                    }
                }
                Step::NotOver(name) => {
                    if !condition.interfaces.exclude([name.clone()].into()) {
                        return;
                    }
                }
                Step::Only(field, values) => {
                    if !self.restrict(rule, &mut condition, *field, values, None) {
                        return;
                    }
                }
                Step::Put(slot, bytes) => {
                    condition.registers.insert(*slot, bytes.as_slice().into());
                }
                Step::Rewrite(rewrite) => return self.rewrite(rule, rewrite, &condition, returned),
                Step::Verdict(verdict) => return self.verdict(verdict, &condition, returned),
                Step::Lookup { set, key, negated, to } => {
                    let Some(content) = self.set(set) else {
                        condition.partly = true;
                        if *to == To::Verdict {
                            self.unread.insert(format!("set {set}, whose verdicts lead on, cannot be read"));
                        }
                        continue;
                    };
                    let rest = steps.get(index + 1..).unwrap_or_default();
                    let key = of_size(key, content.shape.key_size);
                    match (*to, *negated) {
                        (To::Nothing, false) if key.len() == 1 || content.shape.dynamic => {
                            if !self.member(rule, &mut condition, &key, &content) {
                                return;
                            }
                        }
                        (To::Nothing, false) if key.is_empty() || content.elements.len() > MOST_BRANCHES => {
                            condition.partly = true;
                        }
                        (To::Nothing, true) => {
                            if !self.no_member(rule, &mut condition, &key, &content) {
                                return;
                            }
                        }
                        (to, _) => {
                            self.each(rule, rest, &condition, &key, &content, to, returned);
                            if to != To::Verdict {
                                return;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes one step more; whether that is one too many.
    fn is_far(&mut self) -> bool {
        self.steps += 1;
        if self.steps > self.most {
            self.unread.insert(format!("more than {} steps through its rules were not followed", self.most));
        }
        self.steps > self.most
    }

    fn set(&mut self, name: &str) -> Option<Rc<Content>> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let content = (self.sets)(name).map(Rc::new);
        self.known.insert(name.to_owned(), content.clone());
        content
    }

    /// Restricts a field, and notes which rule asked for the port.
    fn restrict(
        &self,
        rule: &NatRule,
        condition: &mut Condition,
        field: Field,
        values: &RangeSet<u128>,
        comment: Option<&str>,
    ) -> bool {
        let ports = (field == Field::Port).then(|| condition.ports.clone());
        let left = condition.restrict(field, values, self.own);
        if left && ports.is_some_and(|before| before != condition.ports) {
            let comment = comment.or(rule.comment.as_deref());
            condition.label = Some((rule.chain.as_str().into(), comment.map(Into::into)));
        }
        left
    }

    /// The packets whose one field is in the set.
    fn member(&self, rule: &NatRule, condition: &mut Condition, key: &[Part], content: &Content) -> bool {
        if content.shape.dynamic {
            condition.partly |= key.iter().any(|part| part.what != What::Anything) || key.is_empty();
            return true;
        }
        let keys = || content.elements.iter().filter_map(|element| element.keys.as_ref());
        match key {
            _ if content.elements.iter().any(|element| element.keys.is_none()) => true,
            [Part { what: What::Field(field), .. }] => {
                let values = keys().map(|(first, last)| (number(first), number(last))).collect();
                self.restrict(rule, condition, *field, &values, None)
            }
            [Part { what: What::Interface, .. }] => {
                condition.interfaces.restrict(keys().map(|(first, last)| interface(first, last)).collect())
            }
            [Part { what: What::AddressKind, .. }] => keys().any(|(first, last)| may_be_local(first, last)),
            [Part { what: What::Anything, .. }] => true,
            _ => {
                condition.partly = true;
                true
            }
        }
    }

    /// The packets that are not in the set.
    fn no_member(&self, rule: &NatRule, condition: &mut Condition, key: &[Part], content: &Content) -> bool {
        let keys = || content.elements.iter().filter_map(|element| element.keys.as_ref());
        let plain = !content.shape.dynamic && content.elements.iter().all(|element| element.keys.is_some());
        match key {
            [Part { what: What::Field(field), .. }] if plain => {
                let values: RangeSet<u128> = keys().map(|(first, last)| (number(first), number(last))).collect();
                self.restrict(rule, condition, *field, &values.complement(), None)
            }
            [Part { what: What::Interface, .. }] if plain => {
                condition.interfaces.exclude(keys().map(|(first, last)| interface(first, last)).collect())
            }
            [Part { what: What::AddressKind, .. }] if plain => {
                !keys().any(|(first, last)| first == last && may_be_local(first, last))
            }
            [Part { what: What::Anything, .. }] => true,
            _ => {
                condition.partly = true;
                true
            }
        }
    }

    /// Each element by itself: what it asks for, and then its verdict, or the rest of the rule with its data.
    fn each(
        &mut self,
        rule: &'a NatRule,
        rest: &'a [Step],
        condition: &Condition,
        key: &[Part],
        content: &Content,
        to: To,
        returned: &mut Vec<Condition>,
    ) {
        for element in &content.elements {
            if self.is_far() {
                return;
            }
            let mut condition = condition.clone();
            // What is in it now says little about it later.
            condition.partly |= content.shape.dynamic;
            if !self.element(rule, &mut condition, key, element) {
                continue;
            }
            match (to, &element.verdict, &element.data) {
                (To::Verdict, Some(verdict), _) => {
                    if let (Verdict::Jump(chain) | Verdict::Goto(chain), Some((_, comment @ None))) =
                        (verdict, &mut condition.label)
                    {
                        *comment = service(self.table.owner, chain);
                    }
                    self.verdict(verdict, &condition, returned);
                }
                (To::Registers(slot), _, Some(data)) => {
                    condition.registers.retain(|start, _| *start < slot);
                    condition.registers.insert(slot, data.as_slice().into());
                    self.rule(rule, rest, condition, returned);
                }
                (To::Nothing, ..) => self.rule(rule, rest, condition, returned),
                _ => {}
            }
        }
    }

    fn element(&self, rule: &NatRule, condition: &mut Condition, key: &[Part], element: &Element) -> bool {
        let Some((mut first, mut last)) = element.keys.as_ref().map(|(first, last)| (&first[..], &last[..])) else {
            return true;
        };
        if key.is_empty() {
            condition.partly = true;
        }
        for part in key {
            let (Some((from, more)), Some((to, more_last))) = (split(first, part.size), split(last, part.size)) else {
                condition.partly = true;
                break;
            };
            (first, last) = (more, more_last);
            let left = match part.what {
                What::Field(field) => {
                    let values = RangeSet::range(number(from), number(to));
                    self.restrict(rule, condition, field, &values, element.comment.as_deref())
                }
                What::Interface => condition.interfaces.restrict([interface(from, to)].into()),
                What::AddressKind => may_be_local(from, to),
                What::Anything => true,
                What::Unknown => {
                    condition.partly = true;
                    true
                }
            };
            if !left {
                return false;
            }
        }
        true
    }

    fn verdict(&mut self, verdict: &Verdict, condition: &Condition, returned: &mut Vec<Condition>) {
        match verdict {
            Verdict::Accept | Verdict::Drop => self.leaves(condition),
            Verdict::Return => remember(returned, condition, &mut self.doubt),
            Verdict::Jump(chain) => self.inside(chain, condition, returned),
            Verdict::Goto(chain) => {
                let before = self.rewrites;
                self.inside(chain, condition, returned);
                if self.rewrites == before {
                    // Nothing there took them, and they do not come back here.
                    remember(returned, condition, &mut self.doubt);
                }
            }
        }
    }

    fn inside(&mut self, chain: &str, condition: &Condition, returned: &[Condition]) {
        let mut condition = condition.clone();
        condition.registers.clear();
        condition.partly |= self.doubt || returned.iter().any(|gone| gone.meets(&condition));
        self.chain(chain, &condition);
    }

    fn leaves(&mut self, condition: &Condition) {
        remember(&mut self.gone, condition, &mut self.doubt);
    }

    fn rewrite(&mut self, rule: &NatRule, rewrite: &Rewrite, condition: &Condition, returned: &[Condition]) {
        self.rewrites += 1;
        let meets = |gone: &[Condition]| gone.iter().any(|gone| gone.meets(condition));
        let partly = condition.partly || self.doubt || meets(&self.gone) || meets(returned);
        let target = target(rewrite, condition);
        let (chain, comment) = match &condition.label {
            Some((chain, comment)) => (chain.as_ref(), comment.as_deref()),
            None => (rule.chain.as_str(), rule.comment.as_deref()),
        };
        let via =
            Via::Chain { family: self.table.family.name(), table: self.table.name.to_owned(), chain: chain.to_owned() };
        let owner = self.table.owner.or_else(|| self.path.iter().find_map(|name| owner_of_chain(name)));
        let addresses = condition.addresses_of(self.own);
        for protocol in protocols(&condition.protocols) {
            let key = (
                protocol,
                condition.ports.clone(),
                condition.family,
                addresses.clone(),
                condition.interfaces.clone(),
                owner,
                comment.map(ToOwned::to_owned),
                via.clone(),
            );
            self.found
                .entry(key)
                .and_modify(|(before, doubt)| {
                    *doubt &= partly;
                    if *before != target {
                        *before = Target::Several;
                    }
                })
                .or_insert_with(|| (target.clone(), partly));
        }
    }
}

fn remember(gone: &mut Vec<Condition>, condition: &Condition, doubt: &mut bool) {
    if gone.len() < MOST_GONE {
        gone.push(condition.clone());
    } else {
        *doubt = true;
    }
}

/// The parts of a key that are this many bytes; none if they do not come to that.
fn of_size(key: &[Part], size: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut left = size;
    for part in key {
        if left == 0 {
            break;
        }
        // A key of one part is as long as that.
        let taken = if parts.is_empty() && part.size == left { part.size } else { part.size.next_multiple_of(4) };
        let Some(rest) = left.checked_sub(taken) else { return Vec::new() };
        left = rest;
        parts.push(*part);
    }
    if left == 0 { parts } else { Vec::new() }
}

/// The first bytes, and those after them and what fills them up to four.
fn split(bytes: &[u8], size: usize) -> Option<(&[u8], &[u8])> {
    Some((bytes.get(..size)?, bytes.get(size.next_multiple_of(4)..).unwrap_or_default()))
}

/// Bytes, largest first, as a number.
fn number(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// A name, or the beginning of names where the element is a range.
fn interface(first: &[u8], last: &[u8]) -> String {
    let end = first.iter().position(|byte| *byte == 0).unwrap_or(first.len());
    let name = String::from_utf8_lossy(&first[..end]);
    if first == last { name.into_owned() } else { format!("{name}*") }
}

fn may_be_local(first: &[u8], last: &[u8]) -> bool {
    first != last || first == RTN_LOCAL.to_ne_bytes()
}

/// The protocols one by one, where they are few.
fn protocols(set: &RangeSet<u8>) -> Vec<Option<Protocol>> {
    let singles = || set.ranges().iter().flat_map(|(first, last)| *first..=*last);
    if set.is_full() || singles().nth(MOST_PROTOCOLS).is_some() {
        return vec![None];
    }
    singles().map(|number| Some(Protocol(number))).collect()
}

/// The bytes that a rewrite takes.
fn bytes<'a>(operand: &'a Operand, condition: &'a Condition, size: usize) -> Option<&'a [u8]> {
    match operand {
        Operand::Bytes(bytes) => bytes.get(..size),
        Operand::Register(slot) => {
            let (start, held) = condition.registers.range(..=*slot).next_back()?;
            held.get(4 * (slot - start)..)?.get(..size)
        }
        Operand::Unknown => None,
    }
}

fn target(rewrite: &Rewrite, condition: &Condition) -> Target {
    let port = |operand: &Operand| {
        bytes(operand, condition, 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes)
    };
    let ports = match &rewrite.ports {
        None => None,
        Some((first, last)) => match (port(first), port(last)) {
            (Some(first), Some(last)) => Some((first, last)),
            _ => Some((0, u16::MAX)),
        },
    };
    if rewrite.here {
        return Target::Here(ports);
    }
    let Some((first, last)) = &rewrite.addresses else { return Target::Here(ports) };
    let size = if condition.family == Some(Family::V6) { 16 } else { 4 };
    let (first, last) = (bytes(first, condition, size), bytes(last, condition, size));
    let address = first.filter(|_| condition.family.is_some() && first == last).and_then(|bytes| match size {
        4 => bytes.try_into().ok().map(|bytes: [u8; 4]| IpAddr::V4(Ipv4Addr::from(bytes))),
        _ => bytes.try_into().ok().map(|bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes))),
    });
    Target::There(address, ports)
}

/// The service that a chain of kube-proxy's nftables mode is for: "external-HASH-namespace/name/protocol/port".
fn service(owner: Option<&str>, chain: &str) -> Option<Rc<str>> {
    if owner != Some("kube-proxy") {
        return None;
    }
    let rest = chain.strip_prefix("external-").or_else(|| chain.strip_prefix("service-"))?;
    let (_, name) = rest.split_once('-')?;
    let mut parts = name.split('/');
    let (namespace, service, _, port) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let port = if port.is_empty() { String::new() } else { format!(":{port}") };
    Some(format!("{namespace}/{service}{port}").into())
}

/// Ports that are alike in everything else, together; but several endpoints need not be the same ones.
fn together(found: BTreeMap<Key, (Target, bool)>) -> Vec<Published> {
    let mut ports: BTreeMap<Published, PortSet> = BTreeMap::new();
    let mut published = Vec::new();
    for ((protocol, these, family, addresses, interfaces, owner, comment, via), (target, partly)) in found {
        let alike = Published {
            protocol,
            ports: PortSet::empty(),
            family,
            addresses,
            interfaces,
            target,
            owner,
            comment,
            via,
            partly,
        };
        if alike.target == Target::Several {
            published.push(Published { ports: these, ..alike });
            continue;
        }
        let entry = ports.entry(alike).or_insert_with(PortSet::empty);
        *entry = entry.union(&these);
    }
    published.extend(ports.into_iter().map(|(alike, ports)| Published { ports, ..alike }));
    published.sort();
    published
}
