//! The netlink spelling of the IR: batches to bytes, dumps to [`Loaded`](super::change::Loaded). Pure: no socket here.
//!
//! The layout is that of include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h. Rules and sets are spelled as nft
//! spells them, so that `nft list table inet nodewall` prints them the natural way.

mod attribute;
mod base_chain;
pub mod conntrack;
pub mod constant;
mod decode;
mod effect;
mod encode;
mod event;
mod expression;
pub mod log;
pub mod nat;
pub mod probe;
mod replay;
mod set;

pub use attribute::Malformed;
pub use base_chain::{AnyChain, BaseHook, Family, any_chain};
pub use decode::{Acknowledgement, Message, Snapshot, acknowledgement, elements_of, generation, messages};
pub use effect::{Effect, effect, list_rules};
pub use encode::{Encoded, encode, get_elements, request, request_of_all_families};
pub use event::{Commit, Process, TouchedSets, Touches};
pub use expression::canonical_rule;
pub use replay::{Replay, replay};

use super::ir::{Elements, Ruleset, Set};
use super::key::DataType;
use crate::net::range::RangeSet;

/// The same ruleset in the one form in which the kernel gives it back: a `/32` is an address, `meta l4proto tcp th dport
/// 22` is `tcp dport 22`, a plain set of addresses is kept as ranges. What is loaded compares equal to this form.
#[must_use]
pub fn canonical(ruleset: &Ruleset) -> Ruleset {
    let mut canonical = ruleset.clone();
    for set in canonical.sets.values_mut() {
        *set = canonical_set(set);
    }
    for chain in canonical.chains.values_mut() {
        for rule in &mut chain.rules {
            *rule = canonical_rule(rule);
        }
    }
    canonical
}

/// The same set with its elements in the canonical form.
#[must_use]
pub fn canonical_set(set: &Set) -> Set {
    set.with(canonical_elements(&set.key, set.map, &set.elements))
}

/// Address ranges for plain sets of one address type, keys for everything else.
fn canonical_elements(types: &[DataType], map: bool, elements: &Elements) -> Elements {
    let Elements::Keys(keys) = elements else { return elements.clone() };
    if map {
        return elements.clone();
    }
    let ranges = || keys.keys().filter_map(|key| key.0.first()).map(|(start, end)| (start.number(), end.number()));
    match types {
        [DataType::Ipv4Addr] => Elements::V4(ranges().map(|(start, end)| (start as u32, end as u32)).collect()),
        [DataType::Ipv6Addr] => Elements::V6(ranges().collect::<RangeSet<u128>>()),
        _ => elements.clone(),
    }
}
