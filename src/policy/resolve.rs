//! Policy + settings + facts -> [`Effective`]: every name looked up, every set filled, everything in order.

use super::effective::Effective;
use super::model::Policy;
use super::settings::NodeSettings;
use crate::net::facts::Facts;
use crate::text::finding::Finding;

/// What the policy comes to on this node, and what there is to say about it. Policies with an error finding are left out
/// of the result.
pub fn resolve(policy: &Policy, settings: &NodeSettings, facts: &Facts) -> (Effective, Vec<Finding>) {
    let _ = (policy, settings, facts);
    todo!()
}
