//! nft(8) syntax of the IR, as `nft -f` reads it.

use super::ir::Ruleset;

/// The ruleset as one file that replaces our table in one transaction when `nft -f` loads it.
pub fn render(ruleset: &Ruleset) -> String {
    let _ = ruleset;
    todo!()
}
