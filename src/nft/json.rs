//! libnftables JSON of the IR (libnftables-json(5)).

use super::ir::Ruleset;

/// The ruleset as `nft -j list table inet nodewall` prints it, less handles, counters and the metainfo object.
pub fn render(ruleset: &Ruleset) -> serde_json::Value {
    let _ = ruleset;
    todo!()
}
