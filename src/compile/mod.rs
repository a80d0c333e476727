//! Effective policy -> ruleset.

use crate::nft::ir::Ruleset;
use crate::policy::effective::Effective;

/// The ruleset that enforces the policy.
pub fn compile(effective: &Effective) -> Ruleset {
    let _ = effective;
    todo!()
}
