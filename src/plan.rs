//! Current table + desired ruleset -> one transaction that changes as little as it can.

use crate::nft::change::{Batch, Loaded};
use crate::nft::ir::Ruleset;

/// The transaction that turns what is loaded into `desired`; `None` when nothing is to be done.
///
/// Unchanged rules keep their counters, unchanged sets are not sent, changed contents of a set are sent as elements.
pub fn plan(current: &Loaded, desired: &Ruleset) -> Option<Batch> {
    let _ = (current, desired);
    todo!()
}
