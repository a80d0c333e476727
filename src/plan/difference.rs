//! What a change of the table comes to, object by object and line by line, for people: the lines that go, those that come, and
//! those that stay between them.

use std::collections::{BTreeMap, BTreeSet};

use super::common;
use crate::nft::ir::{Chain, Ruleset, Set};
use crate::nft::netlink::canonical;
use crate::nft::text;

/// Two rulesets side by side.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// The sets and maps that differ, by name.
    pub sets: Vec<SetDifference>,
    /// The chains that differ, by name.
    pub chains: Vec<ChainDifference>,
}

/// What becomes of an object or of a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Sign {
    /// It stays as it is.
    Same,
    /// It goes.
    Gone,
    /// It comes.
    New,
    /// It stays, and is changed.
    Changed,
}

/// A set or map that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetDifference {
    /// Its name.
    pub name: String,
    /// Its name until now, where its name says what it holds.
    pub was: Option<String>,
    /// What becomes of it.
    pub sign: Sign,
    /// What it is: "set ipv4_addr", "map ifname : verdict".
    pub kind: String,
    /// How many elements it has now.
    pub before: usize,
    /// How many it will have.
    pub after: usize,
    /// The elements that go.
    pub gone: Vec<String>,
    /// The elements that come.
    pub new: Vec<String>,
}

/// A chain that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainDifference {
    /// Its name.
    pub name: String,
    /// What becomes of it.
    pub sign: Sign,
    /// All its lines, those that stay among them; the first may say where it hooks in.
    pub lines: Vec<Line>,
}

/// A line of a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// What becomes of it.
    pub sign: Sign,
    /// A rule in the syntax of nft(8), without its comment.
    pub text: String,
    /// The rule's comment.
    pub comment: Option<String>,
}

impl Difference {
    /// What `there` and `wanted` differ in; nothing where they are equal.
    pub fn new(there: &Ruleset, wanted: &Ruleset) -> Self {
        let (there, wanted) = (canonical(there), canonical(wanted));
        Self { sets: sets(&there.sets, &wanted.sets), chains: chains(&there.chains, &wanted.chains) }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.chains.is_empty()
    }
}

/// The names of both, sorted.
fn names<'a, T>(one: &'a BTreeMap<String, T>, other: &'a BTreeMap<String, T>) -> BTreeSet<&'a str> {
    one.keys().chain(other.keys()).map(String::as_str).collect()
}

fn sets(there: &BTreeMap<String, Set>, wanted: &BTreeMap<String, Set>) -> Vec<SetDifference> {
    let renamed = renamed(there, wanted);
    let mut found = Vec::new();
    for name in names(there, wanted) {
        let (old, new) = (there.get(name), wanted.get(name));
        if old == new || renamed.values().any(|was| *was == name) {
            continue;
        }
        let was = renamed.get(name).copied();
        let old = was.and_then(|was| there.get(was)).or(old);
        found.push(set(name, was, old, new));
    }
    found
}

/// Sets that are named after what they hold: of one that goes and one that comes, and are called the same up to that, the new name
/// to the old one.
fn renamed<'a>(there: &'a BTreeMap<String, Set>, wanted: &'a BTreeMap<String, Set>) -> BTreeMap<&'a str, &'a str> {
    let only = |one: &'a BTreeMap<String, Set>, other: &BTreeMap<String, Set>| {
        let mut by_stem: BTreeMap<&'a str, Vec<&'a str>> = BTreeMap::new();
        for name in one.keys().filter(|name| !other.contains_key(*name)) {
            if let Some((stem, _)) = name.rsplit_once('/') {
                by_stem.entry(stem).or_default().push(name);
            }
        }
        by_stem
    };
    let (gone, new) = (only(there, wanted), only(wanted, there));
    new.into_iter()
        .filter_map(|(stem, new)| match (new.as_slice(), gone.get(stem)?.as_slice()) {
            ([new], [old]) if kind(&wanted[*new]) == kind(&there[*old]) => Some((*new, *old)),
            _ => None,
        })
        .collect()
}

fn set(name: &str, was: Option<&str>, old: Option<&Set>, new: Option<&Set>) -> SetDifference {
    let texts = |set: Option<&Set>| set.map(text::elements).unwrap_or_default();
    let (before, after) = (texts(old), texts(new));
    let (known, wanted): (BTreeSet<&String>, BTreeSet<&String>) = (before.iter().collect(), after.iter().collect());
    let missing = |from: &[String], other: &BTreeSet<&String>| {
        from.iter().filter(|element| !other.contains(element)).cloned().collect()
    };
    SetDifference {
        name: name.to_owned(),
        was: was.map(str::to_owned),
        sign: sign(old.is_some(), new.is_some()),
        kind: new.or(old).map(kind).unwrap_or_default(),
        before: before.len(),
        after: after.len(),
        gone: missing(&before, &wanted),
        new: missing(&after, &known),
    }
}

fn kind(set: &Set) -> String {
    let types: Vec<&str> = set.key.iter().map(|data_type| data_type.name()).collect();
    let types = types.join(" . ");
    if set.map { format!("map {types} : verdict") } else { format!("set {types}") }
}

const fn sign(old: bool, new: bool) -> Sign {
    match (old, new) {
        (true, true) => Sign::Changed,
        (true, false) => Sign::Gone,
        (false, _) => Sign::New,
    }
}

fn chains(there: &BTreeMap<String, Chain>, wanted: &BTreeMap<String, Chain>) -> Vec<ChainDifference> {
    let none = Chain::default();
    names(there, wanted)
        .into_iter()
        .filter(|name| there.get(*name) != wanted.get(*name))
        .map(|name| {
            let (old, new) = (there.get(name), wanted.get(name));
            let sign = sign(old.is_some(), new.is_some());
            ChainDifference { name: name.to_owned(), sign, lines: lines(old.unwrap_or(&none), new.unwrap_or(&none)) }
        })
        .collect()
}

fn lines(old: &Chain, new: &Chain) -> Vec<Line> {
    let mut lines = Vec::new();
    let base = |chain: &Chain, sign| {
        let text = text::base(chain)?;
        Some(Line { sign, text, comment: None })
    };
    if old.base == new.base {
        lines.extend(base(new, Sign::Same));
    } else {
        lines.extend(base(old, Sign::Gone));
        lines.extend(base(new, Sign::New));
    }
    let kept = common(&old.rules, &new.rules, &vec![true; old.rules.len()]);
    let line = |rule: &crate::nft::ir::Rule, sign| Line { sign, text: text::rule(rule), comment: rule.comment.clone() };
    let (mut at, mut to) = (0, 0);
    for (stays, place) in kept.into_iter().chain([(old.rules.len(), new.rules.len())]) {
        lines.extend(old.rules[at..stays].iter().map(|rule| line(rule, Sign::Gone)));
        lines.extend(new.rules[to..place].iter().map(|rule| line(rule, Sign::New)));
        lines.extend(new.rules.get(place).map(|rule| line(rule, Sign::Same)));
        (at, to) = (stays + 1, place + 1);
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nft::ir::{BaseChain, ChainPolicy, Elements, Hook, Rule, Statement, Verdict};
    use crate::nft::key::DataType;

    fn rule(verdict: Verdict, comment: &str) -> Rule {
        Rule { statements: vec![Statement::Counter, Statement::Verdict(verdict)], comment: Some(comment.to_owned()) }
    }

    fn chain(rules: Vec<Rule>) -> Chain {
        Chain { base: None, rules }
    }

    fn words(difference: &Difference) -> Vec<String> {
        let mut words = Vec::new();
        for set in &difference.sets {
            words.push(format!(
                "{:?} {} {:?} {}: {} {:?} {} {:?}",
                set.sign, set.name, set.was, set.kind, set.before, set.gone, set.after, set.new
            ));
        }
        for chain in &difference.chains {
            words.push(format!("{:?} {}", chain.sign, chain.name));
            for line in &chain.lines {
                let comment = line.comment.as_deref().unwrap_or("-");
                words.push(format!("  {:?} {} {comment}", line.sign, line.text));
            }
        }
        words
    }

    #[test]
    fn rules_that_stay_stand_between_those_that_go_and_come() {
        let keep = || rule(Verdict::Accept, "keep#1 a:1");
        let there = Ruleset {
            chains: [
                ("a".to_owned(), chain(vec![keep(), rule(Verdict::Drop, "old#1 a:2"), rule(Verdict::Return, "end")])),
                ("gone".to_owned(), chain(vec![keep()])),
                ("same".to_owned(), chain(vec![keep()])),
            ]
            .into(),
            ..Ruleset::default()
        };
        let base = BaseChain { hook: Hook::Input, priority: 0, policy: ChainPolicy::Drop, device: None };
        let wanted = Ruleset {
            chains: [
                ("a".to_owned(), chain(vec![rule(Verdict::Drop, "new#1 a:1"), keep(), rule(Verdict::Return, "end")])),
                ("new".to_owned(), Chain { base: Some(base), rules: vec![] }),
                ("same".to_owned(), chain(vec![keep()])),
            ]
            .into(),
            ..Ruleset::default()
        };
        assert_eq!(
            words(&Difference::new(&there, &wanted)),
            [
                "Changed a",
                "  New counter drop new#1 a:1",
                "  Same counter accept keep#1 a:1",
                "  Gone counter drop old#1 a:2",
                "  Same counter return end",
                "Gone gone",
                "  Gone counter accept keep#1 a:1",
                "New new",
                "  New type filter hook input priority 0; policy drop; -",
            ]
        );
        assert!(Difference::new(&wanted, &wanted).is_empty());
    }

    #[test]
    fn a_set_that_is_named_after_what_it_holds_is_one_that_changed() {
        let set = |addresses: &[(u32, u32)]| Set {
            key: vec![DataType::Ipv4Addr],
            interval: true,
            map: false,
            dynamic: None,
            elements: Elements::V4(addresses.iter().copied().collect()),
        };
        let ruleset = |sets: &[(&str, Set)]| Ruleset {
            sets: sets.iter().map(|(name, set)| ((*name).to_owned(), set.clone())).collect(),
            ..Ruleset::default()
        };
        let there = ruleset(&[
            ("addresses/aa_4", set(&[(1, 1), (3, 3)])),
            ("big_4", set(&[(1, 4)])),
            ("x/1", set(&[(1, 1)])),
            ("x/2", set(&[(2, 2)])),
        ]);
        let wanted =
            ruleset(&[("addresses/bb_4", set(&[(1, 1), (5, 5)])), ("big_4", set(&[(1, 5)])), ("x/3", set(&[(3, 3)]))]);
        assert_eq!(
            words(&Difference::new(&there, &wanted)),
            [
                r#"Changed addresses/bb_4 Some("addresses/aa_4") set ipv4_addr: 2 ["0.0.0.3"] 2 ["0.0.0.5"]"#,
                r#"Changed big_4 None set ipv4_addr: 1 ["0.0.0.1-0.0.0.4"] 1 ["0.0.0.1-0.0.0.5"]"#,
                r#"Gone x/1 None set ipv4_addr: 1 ["0.0.0.1"] 0 []"#,
                r#"Gone x/2 None set ipv4_addr: 1 ["0.0.0.2"] 0 []"#,
                r#"New x/3 None set ipv4_addr: 0 [] 1 ["0.0.0.3"]"#,
            ]
        );
    }
}
