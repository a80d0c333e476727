//! What each interface is for: the first `[[interface]]` that matches, else built-in detection.

use super::effective::{Expected, Interface};
use super::model::InterfaceOverride;
use super::selector::Labels;
use crate::net::facts::Facts;

/// The interfaces of this node with role and labels, sorted by name.
pub fn classify(overrides: &[InterfaceOverride], facts: &Facts) -> Vec<Interface> {
    let _ = (overrides, facts);
    todo!()
}

/// How interfaces that are not there yet are recognised, first match wins.
pub fn expected(overrides: &[InterfaceOverride]) -> Vec<Expected> {
    let _ = overrides;
    todo!()
}

/// The labels of an interface about which nothing is known.
pub fn unknown_labels() -> Labels {
    [("role".to_owned(), "unknown".to_owned())].into()
}
