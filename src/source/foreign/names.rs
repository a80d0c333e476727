//! Which interfaces a rule of another firewall is for: names and beginnings of names, some of them taken away.

use std::collections::BTreeSet;

use crate::policy::selector::Selector;

/// The loopback device, which nodewall never filters.
const LOOPBACK: &str = "lo";

/// A name, or the beginning of one (`eth+` of iptables, `eth*` of nft).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Pattern {
    /// This name.
    Exact(String),
    /// Every name that begins so.
    Prefix(String),
}

impl Pattern {
    /// A name that ends in this character if it is the beginning of one.
    pub(super) fn with_wildcard(name: &str, wildcard: char) -> Self {
        match name.strip_suffix(wildcard) {
            Some(prefix) => Self::Prefix(prefix.to_owned()),
            None => Self::Exact(name.to_owned()),
        }
    }

    /// Whether every name of the other is one of this.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(one), Self::Exact(other)) => one == other,
            (Self::Exact(_), Self::Prefix(_)) => false,
            (Self::Prefix(prefix), Self::Exact(name) | Self::Prefix(name)) => name.starts_with(prefix.as_str()),
        }
    }

    fn selector(&self) -> Selector {
        match self {
            Self::Exact(name) => Selector::Equals("name".to_owned(), name.clone()),
            Self::Prefix(prefix) => Selector::StartsWith("name".to_owned(), prefix.clone()),
        }
    }
}

/// A set of interface names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Names {
    /// One of these; `None` is any.
    any_of: Option<BTreeSet<Pattern>>,
    /// And none of these.
    none_of: BTreeSet<Pattern>,
}

impl Names {
    /// Names that match one of these patterns.
    pub(super) fn any_of(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        Self { any_of: Some(patterns.into_iter().collect()), none_of: BTreeSet::new() }.tidy()
    }

    /// Every other name; `None` where that is no set of this kind.
    pub(super) fn complement(&self) -> Option<Self> {
        match (&self.any_of, self.none_of.is_empty()) {
            (Some(patterns), true) => Some(Self { any_of: None, none_of: patterns.clone() }.tidy()),
            (None, false) => Some(Self::any_of(self.none_of.iter().cloned())),
            (None, true) => Some(Self::any_of([])),
            (Some(_), false) => None,
        }
    }

    pub(super) fn is_any(&self) -> bool {
        self.any_of.is_none() && self.none_of.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.any_of, Some(patterns) if patterns.is_empty())
    }

    /// The names in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let any_of = match (&self.any_of, &other.any_of) {
            (None, either) | (either, None) => either.clone(),
            (Some(ones), Some(others)) => {
                let mut both = BTreeSet::new();
                for one in ones {
                    for other in others {
                        if one.covers(other) {
                            both.insert(other.clone());
                        } else if other.covers(one) {
                            both.insert(one.clone());
                        }
                    }
                }
                Some(both)
            }
        };
        Self { any_of, none_of: self.none_of.union(&other.none_of).cloned().collect() }.tidy()
    }

    /// The same without the loopback device.
    pub(super) fn without_loopback(&self) -> Self {
        let loopback = Pattern::Exact(LOOPBACK.to_owned());
        let mut names = self.clone();
        if let Some(patterns) = &mut names.any_of {
            patterns.remove(&loopback);
        }
        names.none_of.remove(&loopback);
        names
    }

    /// The single names that it asks for.
    pub(super) fn exact(&self) -> impl Iterator<Item = &str> {
        self.any_of.iter().flatten().filter_map(|pattern| match pattern {
            Pattern::Exact(name) => Some(name.as_str()),
            Pattern::Prefix(_) => None,
        })
    }

    /// The selector over labels of interfaces.
    pub(super) fn selector(&self) -> Selector {
        let mut parts = Vec::new();
        if let Some(patterns) = &self.any_of {
            let exact: BTreeSet<String> = self.exact().map(str::to_owned).collect();
            let mut alternatives = Vec::new();
            match exact.len() {
                0 => {}
                1 => alternatives.extend(exact.into_iter().map(|name| Selector::Equals("name".to_owned(), name))),
                _ => alternatives.push(Selector::In("name".to_owned(), exact)),
            }
            let prefixes = patterns.iter().filter(|pattern| matches!(pattern, Pattern::Prefix(_)));
            alternatives.extend(prefixes.map(Pattern::selector));
            match (alternatives.len(), alternatives.pop()) {
                (1, Some(only)) => parts.push(only),
                (_, Some(last)) => {
                    alternatives.push(last);
                    parts.push(Selector::Or(alternatives));
                }
                (_, None) => {}
            }
        }
        parts.extend(self.none_of.iter().map(|pattern| match pattern {
            Pattern::Exact(name) => Selector::NotEquals("name".to_owned(), name.clone()),
            Pattern::Prefix(_) => Selector::Not(Box::new(pattern.selector())),
        }));
        match (parts.len(), parts.pop()) {
            (1, Some(only)) => only,
            (_, Some(last)) => {
                parts.push(last);
                Selector::And(parts)
            }
            (_, None) => Selector::All,
        }
    }

    /// Without what says nothing: exclusions of what is not in it, patterns within others.
    fn tidy(mut self) -> Self {
        if let Some(patterns) = &mut self.any_of {
            let none_of = &self.none_of;
            patterns.retain(|pattern| !none_of.iter().any(|other| other.covers(pattern)));
            let all = patterns.clone();
            patterns.retain(|pattern| !all.iter().any(|other| other != pattern && other.covers(pattern)));
            self.none_of.retain(|other| all.iter().any(|pattern| pattern.covers(other)));
        }
        let all = self.none_of.clone();
        self.none_of.retain(|pattern| !all.iter().any(|other| other != pattern && other.covers(pattern)));
        self
    }
}
