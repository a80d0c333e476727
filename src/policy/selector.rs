//! Label selectors with Calico's grammar (projectcalico/calico `libcalico-go/lib/selector`): `all()`, `has(k)`, `==`,
//! `!=`, `in {}`, `not in {}`, `contains`, `starts with`, `ends with`, `!`, `&&`, `||` and parentheses.

use std::collections::{BTreeMap, BTreeSet};

/// The labels that a selector looks at.
pub type Labels = BTreeMap<String, String>;

/// A parsed selector.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Selector {
    /// `all()`: everything.
    All,
    /// `has(k)`: the label is there, whatever its value.
    Has(String),
    /// `k == 'v'`.
    Equals(String, String),
    /// `k != 'v'`; true when the label is absent.
    NotEquals(String, String),
    /// `k in {'a', 'b'}`.
    In(String, BTreeSet<String>),
    /// `k not in {'a', 'b'}`; true when the label is absent.
    NotIn(String, BTreeSet<String>),
    /// `k contains 's'`.
    Contains(String, String),
    /// `k starts with 's'`.
    StartsWith(String, String),
    /// `k ends with 's'`.
    EndsWith(String, String),
    /// `!s`.
    Not(Box<Selector>),
    /// `a && b`.
    And(Vec<Selector>),
    /// `a || b`.
    Or(Vec<Selector>),
}

impl Selector {
    /// Whether the labels satisfy the selector.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = |key: &String| labels.get(key);
        match self {
            Self::All => true,
            Self::Has(key) => labels.contains_key(key),
            Self::Equals(key, wanted) => value(key) == Some(wanted),
            Self::NotEquals(key, wanted) => value(key) != Some(wanted),
            Self::In(key, wanted) => value(key).is_some_and(|found| wanted.contains(found)),
            Self::NotIn(key, wanted) => value(key).is_none_or(|found| !wanted.contains(found)),
            Self::Contains(key, part) => value(key).is_some_and(|found| found.contains(part.as_str())),
            Self::StartsWith(key, part) => value(key).is_some_and(|found| found.starts_with(part.as_str())),
            Self::EndsWith(key, part) => value(key).is_some_and(|found| found.ends_with(part.as_str())),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(labels)),
        }
    }
}
