//! The guards as they are shipped: a policy file in the program.

use std::sync::LazyLock;

use super::document::decode;
use crate::policy::guards::FILE;
use crate::policy::model::HostPolicy;
use crate::text::tree::Source;

/// Their text, for printing what stands at their places.
pub const TEXT: &str = include_str!("guards.toml");

static GUARDS: LazyLock<Vec<HostPolicy>> = LazyLock::new(|| decode(&Source::new(FILE, TEXT)).0.policies);

/// The guards, for [`crate::policy::model::Policy::guard`].
pub fn shipped() -> &'static [HostPolicy] {
    &GUARDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::guards::{NAMES, TIER};

    #[test]
    fn the_guards_are_valid_policies_of_their_tier_with_the_known_names() {
        let (documents, findings) = decode(&Source::new(FILE, TEXT));
        assert_eq!(findings, []);
        assert!(documents.broken.is_empty() && documents.policies.iter().all(|policy| policy.tier == TIER));
        let names: Vec<&str> = shipped().iter().map(|policy| policy.name.as_str()).collect();
        assert_eq!(names, NAMES);
        let mut orders: Vec<_> = shipped().iter().map(|policy| policy.order).collect();
        orders.dedup();
        assert_eq!(orders.len(), NAMES.len());
    }
}
