//! The longest way that a packet can take through the rules: how many chains, rules and lookups it meets at most.

use std::collections::{BTreeMap, BTreeSet};

use super::ir::{Chain, ElementKey, Elements, Rule, Ruleset, SetRef, Statement, Value, Verdict};
use super::key::{Datum, Key};

/// What is known about the packets: the value of a key, or `None` for one that such a packet does not have, so that a rule that reads
/// it ends there. Other keys may have any value.
pub type Known = BTreeMap<Key, Option<Datum>>;

/// How much a packet meets. Each is a maximum of its own: no packet meets more, and the way that has most of one may have less of
/// another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Met {
    /// Chains entered, each time counted.
    pub chains: usize,
    /// Rules whose first statement is evaluated.
    pub rules: usize,
    /// Lookups in sets, maps and meters.
    pub lookups: usize,
    /// Jumps that are open at once.
    pub depth: usize,
}

impl Met {
    /// First this, then the other, with so many jumps open.
    #[must_use]
    pub fn then(self, other: Self, open: usize) -> Self {
        Self {
            chains: self.chains + other.chains,
            rules: self.rules + other.rules,
            lookups: self.lookups + other.lookups,
            depth: self.depth.max(other.depth + open),
        }
    }

    /// The one or the other.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            chains: self.chains.max(other.chains),
            rules: self.rules.max(other.rules),
            lookups: self.lookups.max(other.lookups),
            depth: self.depth.max(other.depth),
        }
    }
}

/// The most that a packet about which this is known meets from the beginning of a chain on; `None` where the rules lead in a circle or
/// to a chain that is not there, which the kernel would not have loaded.
pub fn longest(ruleset: &Ruleset, chain: &str, known: &Known) -> Option<Met> {
    let mut walk = Walk { ruleset, known, done: BTreeMap::new(), open: BTreeSet::new() };
    let ways = walk.chain(chain)?;
    Some(ways.back.map_or(ways.ended, |back| back.or(ways.ended)))
}

/// The chain to which a chain's rules send every packet about which this is known, by nothing else than that; `None` if other things
/// count.
pub fn leads_to<'a>(ruleset: &'a Ruleset, chain: &str, known: &Known) -> Option<&'a str> {
    for rule in &ruleset.chains.get(chain)?.rules {
        let mut keys = rule.statements.iter().flat_map(keys_of);
        if !keys.all(|key| known.contains_key(&key)) {
            continue;
        }
        for statement in &rule.statements {
            match statement {
                Statement::Vmap { keys, map } => match find(ruleset, keys, map, known) {
                    Look::Found(Some(Verdict::Goto(chain))) => return Some(chain),
                    _ => break,
                },
                Statement::Verdict(Verdict::Goto(chain)) => return Some(chain),
                Statement::Verdict(Verdict::Accept | Verdict::Drop | Verdict::Return) => return None,
                Statement::Match { key, negated, value } if holds(*key, *negated, value, known) == Some(true) => {}
                Statement::Counter => {}
                _ => break,
            }
        }
    }
    None
}

fn keys_of(statement: &Statement) -> Vec<Key> {
    match statement {
        Statement::Match { key, .. } => vec![*key],
        Statement::Lookup { keys, .. } | Statement::Vmap { keys, .. } | Statement::Meter { keys, .. } => keys.clone(),
        _ => Vec::new(),
    }
}

/// The ways through a chain.
#[derive(Clone, Copy, Default)]
struct Ways {
    /// The most of those that come back to the rule after the jump; `None` if none does.
    back: Option<Met>,
    /// The most of those that end in a verdict.
    ended: Met,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    known: &'a Known,
    done: BTreeMap<&'a str, Ways>,
    open: BTreeSet<&'a str>,
}

/// What a rule does next: how much was met on the ways that go on with the next rule.
type Next = Option<Met>;

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &str) -> Option<Ways> {
        let (name, chain): (&'a str, &'a Chain) =
            self.ruleset.chains.get_key_value(name).map(|(n, c)| (n.as_str(), c))?;
        if let Some(ways) = self.done.get(name) {
            return Some(*ways);
        }
        if !self.open.insert(name) {
            return None;
        }
        let mut ways = Ways::default();
        let mut here: Next = Some(Met { chains: 1, ..Met::default() });
        for rule in &chain.rules {
            let Some(met) = here else { break };
            here = self.rule(rule, met, &mut ways)?;
        }
        ways.back = either(ways.back, here);
        self.open.remove(name);
        self.done.insert(name, ways);
        Some(ways)
    }

    /// One rule after so much; `None` for rules that the kernel would not have loaded.
    fn rule(&mut self, rule: &Rule, before: Met, ways: &mut Ways) -> Option<Next> {
        let mut met = before.then(Met { rules: 1, ..Met::default() }, 0);
        let mut next: Next = None;
        for statement in &rule.statements {
            let looks =
                matches!(statement, Statement::Lookup { .. } | Statement::Vmap { .. } | Statement::Meter { .. });
            // The kernel reads the keys before it looks them up.
            if keys_of(statement).iter().any(|key| self.known.get(key) == Some(&None)) {
                return Some(either(next, Some(met)));
            }
            met.lookups += usize::from(looks);
            match statement {
                Statement::Match { key, negated, value } => match holds(*key, *negated, value, self.known) {
                    Some(true) => {}
                    Some(false) => return Some(either(next, Some(met))),
                    None => next = either(next, Some(met)),
                },
                Statement::Lookup { keys, negated, set } => match find(self.ruleset, keys, set, self.known) {
                    Look::Unknown => next = either(next, Some(met)),
                    look if matches!(look, Look::Found(_)) == *negated => return Some(either(next, Some(met))),
                    _ => {}
                },
                Statement::Vmap { keys, map } => {
                    match find(self.ruleset, keys, map, self.known) {
                        Look::Nothing => next = either(next, Some(met)),
                        Look::Found(verdict) => {
                            let verdict = verdict?.clone();
                            next = either(next, self.verdict(&verdict, met, ways)?);
                        }
                        Look::Unknown => {
                            next = either(next, Some(met));
                            for verdict in verdicts(self.ruleset, map)? {
                                next = either(next, self.verdict(verdict, met, ways)?);
                            }
                        }
                    }
                    return Some(next);
                }
                Statement::Limit(_) | Statement::Meter { .. } => next = either(next, Some(met)),
                Statement::Reject(_) => {
                    ways.ended = ways.ended.or(met);
                    return Some(next);
                }
                Statement::Verdict(verdict) => {
                    return Some(either(next, self.verdict(verdict, met, ways)?));
                }
                Statement::Counter
                | Statement::Notrack
                | Statement::MarkSet(_)
                | Statement::MarkClear(_)
                | Statement::Log { .. }
                | Statement::Foreign(_) => {}
            }
        }
        Some(either(next, Some(met)))
    }

    fn verdict(&mut self, verdict: &Verdict, met: Met, ways: &mut Ways) -> Option<Next> {
        match verdict {
            Verdict::Accept | Verdict::Drop => {
                ways.ended = ways.ended.or(met);
                Some(None)
            }
            Verdict::Return => {
                ways.back = either(ways.back, Some(met));
                Some(None)
            }
            Verdict::Jump(chain) => {
                let there = self.chain(chain)?;
                // The jump itself is open even in a chain without rules.
                let opened = Met { depth: met.depth.max(1), ..met };
                ways.ended = ways.ended.or(opened.then(there.ended, 1));
                Some(there.back.map(|back| opened.then(back, 1)))
            }
            Verdict::Goto(chain) => {
                let there = self.chain(chain)?;
                ways.ended = ways.ended.or(met.then(there.ended, 0));
                ways.back = either(ways.back, there.back.map(|back| met.then(back, 0)));
                Some(None)
            }
        }
    }
}

fn either(one: Option<Met>, other: Option<Met>) -> Option<Met> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.or(other)),
        (one, other) => one.or(other),
    }
}

/// Whether a comparison holds; `None` if nobody knows.
fn holds(key: Key, negated: bool, value: &Value, known: &Known) -> Option<bool> {
    let read = (*known.get(&key)?)?;
    let equal = match value {
        Value::Is(wanted) => read == *wanted,
        Value::Prefix(wanted, bits) => {
            let width = u32::try_from(read.bytes().len() * 8).ok()?;
            let shift = width.checked_sub(u32::from(*bits))?;
            let high = |datum: Datum| datum.number().checked_shr(shift).unwrap_or(0);
            high(read) == high(*wanted)
        }
        Value::Range(start, end) => (start.bytes()..=end.bytes()).contains(&read.bytes()),
        Value::Flags(bits) => read.number() & u128::from(*bits) != 0,
    };
    Some(equal != negated)
}

/// What a lookup comes to.
enum Look<'a> {
    Unknown,
    Nothing,
    Found(Option<&'a Verdict>),
}

fn find<'a>(ruleset: &'a Ruleset, keys: &[Key], set: &'a SetRef, known: &Known) -> Look<'a> {
    let read: Option<Vec<Datum>> = keys.iter().map(|key| known.get(key).copied().flatten()).collect();
    let (Some(read), Some(Elements::Keys(elements))) = (read, elements(ruleset, set)) else { return Look::Unknown };
    let covers = |key: &ElementKey| {
        key.0.len() == read.len()
            && key
                .0
                .iter()
                .zip(&read)
                .all(|((start, end), datum)| (start.bytes()..=end.bytes()).contains(&datum.bytes()))
    };
    match elements.iter().find(|(key, _)| covers(key)) {
        Some((_, verdict)) => Look::Found(verdict.as_ref()),
        None => Look::Nothing,
    }
}

fn elements<'a>(ruleset: &'a Ruleset, set: &'a SetRef) -> Option<&'a Elements> {
    match set {
        SetRef::Named(name) => Some(&ruleset.sets.get(name)?.elements),
        SetRef::Anonymous(elements) => Some(elements),
    }
}

/// Every verdict of a map, once.
fn verdicts<'a>(ruleset: &'a Ruleset, map: &'a SetRef) -> Option<BTreeSet<&'a Verdict>> {
    match elements(ruleset, map)? {
        Elements::Keys(keys) => Some(keys.values().flatten().collect()),
        Elements::V4(_) | Elements::V6(_) => Some(BTreeSet::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::ir::{BaseChain, ChainPolicy, Hook};
    use super::super::key::Side;
    use super::*;

    fn rule(statements: Vec<Statement>) -> Rule {
        Rule { statements, comment: None }
    }

    fn verdict(verdict: Verdict) -> Statement {
        Statement::Verdict(verdict)
    }

    fn jump(chain: &str) -> Verdict {
        Verdict::Jump(chain.to_owned())
    }

    fn goto(chain: &str) -> Verdict {
        Verdict::Goto(chain.to_owned())
    }

    fn tcp() -> Statement {
        Statement::Match { key: Key::L4Proto, negated: false, value: Value::Is(6u8.into()) }
    }

    fn vmap(key: Key, elements: Vec<(Datum, Verdict)>) -> Statement {
        let keys = elements.into_iter().map(|(value, verdict)| (ElementKey::of([value]), Some(verdict))).collect();
        Statement::Vmap { keys: vec![key], map: SetRef::Anonymous(Elements::Keys(keys)) }
    }

    fn ruleset(chains: Vec<(&str, Vec<Rule>)>) -> Ruleset {
        let base = BaseChain { hook: Hook::Input, priority: 0, policy: ChainPolicy::Accept, device: None };
        let chain = |(name, rules): (&str, Vec<Rule>)| {
            (name.to_owned(), Chain { base: (name == "input").then_some(base), rules })
        };
        Ruleset { chains: chains.into_iter().map(chain).collect(), sets: BTreeMap::new() }
    }

    /// Chains, rules, lookups, depth.
    fn met(ruleset: &Ruleset, known: &Known) -> [usize; 4] {
        let Met { chains, rules, lookups, depth } = longest(ruleset, "input", known).unwrap();
        [chains, rules, lookups, depth]
    }

    #[test]
    fn a_jump_comes_back_and_a_goto_does_not() {
        let any = Known::new();
        let one = ruleset(vec![
            ("input", vec![rule(vec![tcp(), verdict(jump("a"))]), rule(vec![verdict(goto("b"))]), rule(vec![])]),
            ("a", vec![rule(vec![]), rule(vec![tcp(), verdict(Verdict::Return)]), rule(vec![])]),
            ("b", vec![rule(vec![verdict(Verdict::Accept)]), rule(vec![])]),
        ]);
        assert_eq!(met(&one, &any), [3, 2 + 3 + 1, 0, 1]);
        let never_back = ruleset(vec![
            ("input", vec![rule(vec![verdict(jump("a"))]), rule(vec![]), rule(vec![])]),
            ("a", vec![rule(vec![verdict(goto("b"))])]),
            ("b", vec![rule(vec![verdict(Verdict::Drop)])]),
        ]);
        assert_eq!(met(&never_back, &any), [3, 3, 0, 1]);
        let empty = ruleset(vec![("input", vec![rule(vec![verdict(jump("a"))])]), ("a", vec![])]);
        assert_eq!(met(&empty, &any), [2, 1, 0, 1]);
    }

    #[test]
    fn of_a_map_the_longest_target_counts_unless_the_key_is_known() {
        let key = Key::InterfaceName(Side::Source);
        let name = Datum::name;
        let one = ruleset(vec![
            ("input", vec![rule(vec![vmap(key, vec![(name("eth0"), goto("short")), (name("ib0"), goto("long"))])])]),
            ("short", vec![rule(vec![verdict(Verdict::Accept)])]),
            ("long", vec![rule(vec![]), rule(vec![tcp(), verdict(Verdict::Accept)]), rule(vec![])]),
        ]);
        assert_eq!(met(&one, &Known::new()), [2, 4, 1, 0]);
        assert_eq!(met(&one, &[(key, Some(name("eth0")))].into()), [2, 2, 1, 0]);
        assert_eq!(met(&one, &[(key, Some(name("x")))].into()), [1, 1, 1, 0], "a miss");
        assert_eq!(met(&one, &[(key, None)].into()), [1, 1, 0, 0], "no such key");
        assert_eq!(leads_to(&one, "input", &[(key, Some(name("ib0")))].into()), Some("long"));
        assert_eq!(leads_to(&one, "input", &[(key, Some(name("x")))].into()), None);
        assert_eq!(leads_to(&one, "input", &Known::new()), None);
    }

    #[test]
    fn what_is_known_decides_matches() {
        let tcp_only: Known = [(Key::L4Proto, Some(6u8.into()))].into();
        let udp_only: Known = [(Key::L4Proto, Some(17u8.into()))].into();
        let accept = || rule(vec![tcp(), verdict(Verdict::Accept)]);
        let one = ruleset(vec![("input", vec![accept(), rule(vec![])])]);
        assert_eq!(met(&one, &tcp_only), [1, 1, 0, 0]);
        assert_eq!(met(&one, &udp_only), [1, 2, 0, 0]);
        let limited = Statement::Limit(super::super::ir::Limit { rate: 1, seconds: 1, burst: 1 });
        let two = ruleset(vec![("input", vec![rule(vec![limited, verdict(Verdict::Drop)]), rule(vec![])])]);
        assert_eq!(met(&two, &tcp_only), [1, 2, 0, 0], "a limit may be used up");
    }

    #[test]
    fn circles_and_missing_chains_have_no_length() {
        let circle =
            ruleset(vec![("input", vec![rule(vec![verdict(goto("a"))])]), ("a", vec![rule(vec![verdict(jump("a"))])])]);
        assert_eq!(longest(&circle, "input", &Known::new()), None);
        let missing = ruleset(vec![("input", vec![rule(vec![tcp(), verdict(goto("a"))])])]);
        assert_eq!(longest(&missing, "input", &Known::new()), None);
        assert_eq!(longest(&missing, "nope", &Known::new()), None);
    }
}
