//! Policies that exist until a time.

use super::effective::{Effective, EffectivePolicy};
use crate::text::finding::{Code, Finding};
use crate::text::time;

impl EffectivePolicy {
    /// Whether it no longer exists at this time, in seconds since 1970-01-01 UTC.
    pub fn is_over(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

impl Effective {
    /// Takes out the policies that are over, and returns them.
    pub fn expire(&mut self, is_over: impl Fn(&EffectivePolicy) -> bool) -> Vec<EffectivePolicy> {
        let mut over = Vec::new();
        for tier in &mut self.tiers {
            let (gone, left) = std::mem::take(&mut tier.policies).into_iter().partition(&is_over);
            over.extend::<Vec<_>>(gone);
            tier.policies = left;
        }
        over
    }

    /// When the next of its policies ends, in seconds since 1970-01-01 UTC.
    pub fn next_expiry(&self) -> Option<u64> {
        self.tiers.iter().flat_map(|tier| &tier.policies).filter_map(|policy| policy.expires).min()
    }
}

/// What there is to say about a policy that is over.
pub fn finding(policy: &EffectivePolicy) -> Finding {
    let when = policy.expires.map(time::rfc3339).unwrap_or_default();
    Finding::warning(Code::Expired, &policy.place, format!("policy \"{}\" expired at {when}", policy.name))
        .label("no longer exists")
        .help("remove it, or give it another time in `expires`")
}
