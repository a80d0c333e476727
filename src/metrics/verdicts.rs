//! Verdict counters that never go back: the kernel's begin anew whenever a rule is replaced, so that only what they grow by counts.

use std::collections::{BTreeMap, BTreeSet};

use super::bounded::Bounded;
use crate::compile::counted::{Counted, Meaning, Served};
use crate::nft::change::Loaded;

/// The most series by policy. 200 policies in both directions on 5 kinds of interfaces fit.
pub const MOST_SERIES: usize = 2_000;
/// The most series by rule, where rules are asked for.
pub const MOST_RULE_SERIES: usize = 5_000;

/// What is counted apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Series {
    /// For whom.
    pub served: Served,
    /// The policy, or what it is that is none ([`Meaning::counted`]).
    pub policy: String,
    /// The number of the rule, where rules are told apart; 0 of what has none.
    pub rule: Option<u32>,
    /// What became of the packets.
    pub counted: Counted,
}

/// Packets and bytes since the daemon's start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdicts {
    /// What the kernel had when it was looked at last, by the handle of the rule.
    last: BTreeMap<u64, (u64, u64)>,
    /// Whether that is known.
    began: bool,
    policies: Bounded<Series, 2>,
    rules: Bounded<Series, 2>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            last: BTreeMap::new(),
            began: false,
            policies: Bounded::new(MOST_SERIES),
            rules: Bounded::new(MOST_RULE_SERIES),
        }
    }
}

impl Verdicts {
    /// What the counters were when the daemon started: it belongs to those who ran before.
    pub fn begin(&mut self, loaded: &Loaded) {
        self.began = true;
        self.last = counters(loaded).map(|(_, _, handle, counter)| (handle, counter)).collect();
    }

    /// Takes in what the kernel has now. Without [`Self::begin`] before, all of it is new.
    pub fn take(&mut self, meaning: &Meaning, loaded: &Loaded, by_rule: bool) {
        self.began = true;
        let mut now = BTreeMap::new();
        let mut there = BTreeSet::new();
        let mut grown: Vec<(Series, [u64; 2])> = Vec::new();
        for (chain, rule, handle, counter) in counters(loaded) {
            now.insert(handle, counter);
            let Some((policy, number, counted)) = meaning.counted(chain, rule) else { continue };
            let last = self.last.get(&handle).copied().unwrap_or_default();
            // A counter that went back is another one of the same handle: the table was made anew.
            let more = if counter.0 < last.0 || counter.1 < last.1 {
                [counter.0, counter.1]
            } else {
                [counter.0 - last.0, counter.1 - last.1]
            };
            let rule = Some(number.unwrap_or_default());
            let series = Series { served: meaning.served(chain), policy, rule, counted };
            there.insert(series.clone());
            grown.push((series, more));
        }
        self.last = now;
        let whole = |series: &Series| Series { rule: None, ..series.clone() };
        let policies: BTreeSet<Series> = there.iter().map(whole).collect();
        self.policies.make_room(|series| policies.contains(series));
        if by_rule {
            self.rules.make_room(|series| there.contains(series));
        } else {
            self.rules = Bounded::new(MOST_RULE_SERIES);
        }
        for (series, more) in grown {
            self.policies.add(&whole(&series), more);
            if by_rule {
                self.rules.add(&series, more);
            }
        }
    }

    /// Whether anything was taken in.
    pub const fn began(&self) -> bool {
        self.began
    }

    /// Packets and bytes by policy.
    pub const fn policies(&self) -> &Bounded<Series, 2> {
        &self.policies
    }

    /// Packets and bytes by rule; none where they were not asked for.
    pub const fn rules(&self) -> &Bounded<Series, 2> {
        &self.rules
    }
}

/// Chain, rule, handle and counter of every rule that has one.
fn counters(loaded: &Loaded) -> impl Iterator<Item = (&str, &crate::nft::ir::Rule, u64, (u64, u64))> {
    loaded.ruleset.chains.iter().flat_map(|(name, chain)| {
        let states = loaded.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        let counted = chain.rules.iter().zip(states);
        counted.filter_map(move |(rule, state)| Some((name.as_str(), rule, state.handle, state.counter?)))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nft::change::RuleState;
    use crate::nft::ir::{Chain, Rule, Ruleset, Statement, Verdict};

    fn loaded(rules: &[(&str, u64, u64)]) -> Loaded {
        let rule = |comment: &str| Rule {
            statements: vec![Statement::Counter, Statement::Verdict(Verdict::Drop)],
            comment: Some(comment.to_owned()),
        };
        let chain = Chain { base: None, rules: rules.iter().map(|(comment, _, _)| rule(comment)).collect() };
        let states = rules
            .iter()
            .map(|(_, handle, packets)| RuleState { handle: *handle, counter: Some((*packets, 60 * packets)) });
        let mut ruleset = Ruleset::default();
        ruleset.chains.insert("in_mgmt".to_owned(), chain);
        Loaded { exists: true, rules: [("in_mgmt".to_owned(), states.collect())].into(), ruleset, ..Loaded::default() }
    }

    fn packets(verdicts: &Verdicts) -> Vec<(String, u64)> {
        verdicts.policies().iter().map(|(series, counts)| (series.policy.clone(), counts[0])).collect()
    }

    #[test]
    fn counters_that_begin_anew_never_make_a_series_go_back() {
        let (mut verdicts, meaning) = (Verdicts::default(), Meaning::default());
        verdicts.begin(&loaded(&[("a#1 f:1", 1, 100)]));
        let expected = |count| [("a".to_owned(), count)];
        for (rules, count) in [
            (vec![("a#1 f:1", 1, 100)], 0),
            (vec![("a#1 f:1", 1, 107)], 7),
            // Replaced: another handle, from zero.
            (vec![("a#1 f:2", 9, 3)], 10),
            (vec![("a#1 f:2", 9, 5), ("a#2 f:3", 10, 1)], 13),
            // The table was made anew: handles begin again.
            (vec![("a#1 f:2", 9, 2)], 15),
            (vec![], 15),
        ] {
            verdicts.take(&meaning, &loaded(&rules), true);
            assert_eq!(packets(&verdicts), expected(count), "{rules:?}");
        }
        let rules: Vec<_> = verdicts.rules().iter().map(|(series, counts)| (series.rule, *counts)).collect();
        assert_eq!(rules, [(Some(1), [14, 840]), (Some(2), [1, 60])]);
        verdicts.take(&meaning, &loaded(&[]), false);
        assert_eq!(verdicts.rules().iter().count(), 0);
    }

    #[test]
    fn more_series_than_there_is_room_for_are_one() {
        let mut verdicts = Verdicts::default();
        let names: Vec<String> = (0..MOST_SERIES + 10).map(|number| format!("p{number:05}#1 f:1")).collect();
        let rules: Vec<(&str, u64, u64)> =
            names.iter().zip(1..).map(|(name, handle)| (name.as_str(), handle, 2)).collect();
        verdicts.take(&Meaning::default(), &loaded(&rules), false);
        assert_eq!((verdicts.policies().iter().count(), verdicts.policies().cut()), (MOST_SERIES, 10));
        assert_eq!(verdicts.policies().rest().unwrap(), &[20, 1200]);
        // When others go, there is room.
        verdicts.take(&Meaning::default(), &loaded(&rules[5..]), false);
        assert_eq!(verdicts.policies().cut(), 5);
    }
}
