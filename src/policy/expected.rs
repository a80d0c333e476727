//! Sets that an `[[expect]]` names: what there is to say while nobody has filled them, and which rules may do without.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::model::{Action, Entity, ExpectedSet, Policy};
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;

/// What a set could hold where nobody gave an example: documentation addresses (RFC 5737, RFC 3849).
const EXAMPLE: [&str; 2] = ["192.0.2.0/28", "2001:db8::/64"];

/// One finding for each expected set that is not there or holds nothing: an error if any of those who expect it say so.
pub(super) fn missing(policy: &Policy) -> Vec<Finding> {
    let mut by_set: BTreeMap<&str, Vec<&ExpectedSet>> = BTreeMap::new();
    for expected in &policy.expected_sets {
        let filled = policy.sets.get(&expected.set).is_some_and(|set| !set.cidrs.is_empty());
        if !filled {
            by_set.entry(&expected.set).or_default().push(expected);
        }
    }
    by_set.into_iter().filter_map(|(set, all)| finding(policy, set, &all)).collect()
}

fn finding(policy: &Policy, set: &str, all: &[&ExpectedSet]) -> Option<Finding> {
    let first = all.first()?;
    let (what, label) = match policy.sets.get(set) {
        None => ("is missing", "nobody defines it"),
        Some(_) => ("holds nothing", "its `cidrs` is empty"),
    };
    let message = format!("the set \"{set}\" {what}: {}", first.name);
    let new = if all.iter().any(|expected| expected.enforce) { Finding::error } else { Finding::warning };
    let example = all.iter().find(|expected| !expected.example.is_empty());
    let example = example.map_or_else(
        || EXAMPLE.map(|net| format!("\"{net}\"")).join(", "),
        |expected| expected.example.iter().map(written).collect::<Vec<_>>().join(", "),
    );
    let mut help = format!("write a [[set]] with name = \"{set}\" and cidrs = [{example}], with your own addresses");
    if !all.iter().any(|expected| expected.enforce) {
        help.push_str("; until then the rules that need it let nobody in or out");
    }
    let mut finding = new(Code::MissingSet, &first.place, message).label(label).help(help);
    for other in all.iter().skip(1) {
        finding = finding.related(&other.place, other.name.clone());
    }
    Some(finding)
}

/// A prefix as people write it: a single address without its length.
fn written(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { format!("\"{}\"", net.addr()) } else { format!("\"{net}\"") }
}

/// Whether a rule may name a set that is expected and not there: only where an empty set lets less through. An empty set of those who
/// are denied, or of those who are taken away from who is allowed, would let more through; so may one of `pass`, which leaves the
/// denials of its tier behind.
pub(super) fn may_be_missing(action: Action, entity: &Entity, place: &Place) -> bool {
    lets_less_through(action, is_taken_away(entity, place))
}

/// The same of nodes, while nobody says who they are.
pub(super) fn nodes_may_be_missing(action: Action, entity: &Entity) -> bool {
    let (mut entity, mut taken_away, mut may) = (Some(entity), false, true);
    while let Some(here) = entity {
        may &= here.nodes.is_none() || lets_less_through(action, taken_away);
        (entity, taken_away) = (here.except.as_deref(), !taken_away);
    }
    may
}

/// Whether a rule lets less through when nothing is in what it names, or in what is taken away from that.
fn lets_less_through(action: Action, taken_away: bool) -> bool {
    match (action, taken_away) {
        (Action::Log, _) | (Action::Allow, false) | (Action::Deny | Action::Reject, true) => true,
        (Action::Pass, _) | (Action::Allow, true) | (Action::Deny | Action::Reject, false) => false,
    }
}

/// Whether the name of a set at `place` stands in an `except`, or in the `except` of an `except` of one.
fn is_taken_away(entity: &Entity, place: &Place) -> bool {
    let named = |entity: &Entity| entity.sets.iter().any(|(_, at)| at == place);
    let Some(except) = &entity.except else { return false };
    if named(entity) {
        return false;
    }
    named(except) || !is_taken_away(except, place)
}

/// Whether everything that an entity names is expected sets without contents, which have a finding of their own.
pub(super) fn is_all_missing(entity: &Entity, policy: &Policy) -> bool {
    let only_sets = entity.cidrs.is_empty()
        && entity.select.is_none()
        && entity.nodes.is_none()
        && !entity.local
        && !entity.sets.is_empty();
    let expected = |name: &str| policy.expected_sets.iter().any(|expected| expected.set == name);
    let empty = |name: &str| policy.sets.get(name).is_none_or(|set| set.cidrs.is_empty());
    only_sets && entity.sets.iter().all(|(name, _)| expected(name) && empty(name))
}
