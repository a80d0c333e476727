//! What the counters of a compiled ruleset count: for which interfaces a chain is, and what a rule says of what it matched.

use std::collections::{BTreeMap, BTreeSet};

use super::comment::{self, Logged, LoggedBy};
use super::point::{Point, is_accepting};
use super::{base, early};
use crate::net::interface::{Direction, Role};
use crate::nft::ir::{Chain, Elements, Rule, Ruleset, SetRef, Statement, Value, Verdict};
use crate::nft::key::Key;
use crate::policy::effective::RuleId;
use crate::policy::model::Action;

/// What of the packets of an interface, and of which interfaces, a chain sees.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Served {
    /// The direction; `None` for a chain that both come to.
    pub direction: Option<Direction>,
    /// The role of all the interfaces; `None` where they have several.
    pub role: Option<Role>,
    /// The only interface. The kernel's counters do not tell those apart that share a chain, and a chain that takes interfaces which
    /// are not known yet has no only one.
    pub interface: Option<String>,
}

/// What became of the packets that a rule counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Counted {
    /// Let through.
    Allowed,
    /// Dropped.
    Denied,
    /// Dropped, and the sender told.
    Rejected,
    /// Handed on to the next tier.
    Passed,
    /// Logged only.
    Logged,
    /// Audit mode kept a rule from dropping them.
    WouldDeny,
    /// Audit mode kept a rule from rejecting them.
    WouldReject,
    /// A rule of a policy in audit mode would have let them through, or handed them on.
    WouldAllow,
}

impl Counted {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Allowed,
        Self::Denied,
        Self::Rejected,
        Self::Passed,
        Self::Logged,
        Self::WouldDeny,
        Self::WouldReject,
        Self::WouldAllow,
    ];

    /// The name for people and scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Rejected => "rejected",
            Self::Passed => "passed",
            Self::Logged => "logged",
            Self::WouldDeny => "would-deny",
            Self::WouldReject => "would-reject",
            Self::WouldAllow => "would-allow",
        }
    }
}

/// What counters of a ruleset mean.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meaning {
    chains: BTreeMap<String, Served>,
    /// What rules would do without audit mode, by direction.
    would: BTreeMap<(Option<Direction>, RuleId), Action>,
}

impl Meaning {
    /// Whom a chain serves; nothing is known of one that is not in the ruleset.
    pub fn served(&self, chain: &str) -> Served {
        self.chains.get(chain).cloned().unwrap_or_default()
    }

    /// Which policy a rule of a chain belongs to, its number there, and what became of what it counted; `None` where it counts
    /// nothing. What is no policy is called "failsafe:NAME", "tier:NAME", "default:ROLE", "built-in:essential", "built-in:invalid" or
    /// "built-in:loopback-address": no policy has a name with a colon.
    pub fn counted(&self, chain: &str, rule: &Rule) -> Option<(String, Option<u32>, Counted)> {
        rule.statements.contains(&Statement::Counter).then_some(())?;
        let comment = rule.comment.as_deref().unwrap_or_default();
        let ends = ending(rule);
        if let Some(id) = comment::rule_of(comment) {
            let direction = self.chains.get(chain).and_then(|served| served.direction);
            let would = self.would.get(&(direction, id.clone()));
            let counted = match (ends, would) {
                (Some(ending), _) if ending != Counted::Allowed && ending != Counted::WouldAllow => ending,
                (_, Some(Action::Deny)) => Counted::WouldDeny,
                (_, Some(Action::Reject)) => Counted::WouldReject,
                (Some(ending), _) => ending,
                (None, _) => Counted::Logged,
            };
            return Some((id.policy.to_string(), Some(id.number), counted));
        }
        let denies = |denies: bool| match ends {
            Some(Counted::Allowed) if denies => Counted::WouldDeny,
            Some(ending) => ending,
            None => Counted::Logged,
        };
        if let Some(what) = comment.strip_prefix(comment::DEFAULT_OF) {
            let role = what.split(' ').next().unwrap_or_default();
            return Some((format!("default:{role}"), None, denies(what.ends_with(": deny"))));
        }
        if let Some(what) = comment.strip_prefix(comment::TIER) {
            let tier = what.split(' ').next().unwrap_or_default();
            return Some((format!("tier:{tier}"), None, denies(true)));
        }
        let (what, is_guard) = match comment {
            base::INVALID => ("invalid", true),
            base::LOOPBACK_ADDRESS => ("loopback-address", true),
            _ => ("essential", false),
        };
        Some((format!("built-in:{what}"), None, denies(is_guard)))
    }
}

/// What becomes of a packet at the end of a rule, as far as that rule tells; `None` of one that only counts or logs.
pub fn ending(rule: &Rule) -> Option<Counted> {
    rule.statements.iter().rev().find_map(|statement| match statement {
        Statement::Reject(_) => Some(Counted::Rejected),
        Statement::Verdict(Verdict::Drop) => Some(Counted::Denied),
        Statement::Verdict(Verdict::Accept) => Some(Counted::Allowed),
        // Only policies in audit mode come back.
        Statement::Verdict(Verdict::Return) => Some(Counted::WouldAllow),
        Statement::Verdict(Verdict::Goto(chain)) if is_accepting(chain) => Some(Counted::Allowed),
        Statement::Verdict(Verdict::Goto(_) | Verdict::Jump(_)) => Some(Counted::Passed),
        _ => None,
    })
}

/// What the counters of a ruleset that [`super::compile`] made mean.
pub fn meaning(ruleset: &Ruleset) -> Meaning {
    let roots = roots(ruleset);
    let is_root = |name: &str| is_accepting(name) || roots.iter().any(|root| root.chain == name);
    // By chain: the directions, roles and interfaces from which packets come to it. `None` stands for any.
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    for root in &roots {
        let Some(chain) = ruleset.chains.get(root.chain) else { continue };
        seen.entry(root.chain).or_default().add(root.direction, &[None], None);
        let mut entries: BTreeMap<&str, BTreeSet<Option<String>>> = BTreeMap::new();
        for rule in &chain.rules {
            for (interface, target) in entries_of(ruleset, chain, rule) {
                entries.entry(target).or_default().insert(interface);
            }
        }
        for (entry, interfaces) in entries.into_iter().filter(|(entry, _)| !is_root(entry)) {
            let interfaces: Vec<Option<String>> = interfaces.into_iter().collect();
            let role = role_of(root.prefix, entry);
            for name in below(ruleset, entry, &is_root) {
                seen.entry(name).or_default().add(root.direction, &interfaces, role);
            }
        }
    }
    let chains: BTreeMap<String, Served> =
        seen.into_iter().map(|(name, seen)| (name.to_owned(), seen.served())).collect();
    let mut would = BTreeMap::new();
    for (name, chain) in ruleset.chains.iter() {
        let direction = chains.get(name).and_then(|served| served.direction);
        for prefix in chain.rules.iter().flat_map(|rule| &rule.statements).filter_map(|statement| match statement {
            Statement::Log { prefix, .. } => Some(prefix),
            _ => None,
        }) {
            if let Some(Logged { by: LoggedBy::Rule(id), action, would: true, .. }) = comment::logged(prefix) {
                would.insert((direction, id), action);
            }
        }
    }
    Meaning { chains, would }
}

/// A chain at which interfaces are told apart.
struct Root<'a> {
    chain: &'a str,
    direction: Direction,
    /// What the names of the chains of classes begin with.
    prefix: &'a str,
}

fn roots(ruleset: &Ruleset) -> Vec<Root<'_>> {
    let points = Point::ALL.into_iter().filter(|point| ruleset.chains.contains_key(point.chain()));
    let mut roots: Vec<Root<'_>> =
        points.map(|point| Root { chain: point.chain(), direction: point.direction, prefix: point.prefix() }).collect();
    let hooked = |name: &&String| *name == early::CHAIN || name.starts_with(&early::hook_chain(""));
    roots.extend(ruleset.chains.keys().filter(hooked).map(|name| Root {
        chain: name,
        direction: Direction::Ingress,
        prefix: early::CHAIN,
    }));
    roots
}

/// From where packets come to a chain.
#[derive(Default)]
struct Seen {
    directions: BTreeSet<Direction>,
    roles: BTreeSet<Option<Role>>,
    interfaces: BTreeSet<Option<String>>,
}

impl Seen {
    fn add(&mut self, direction: Direction, interfaces: &[Option<String>], role: Option<Role>) {
        self.directions.insert(direction);
        self.roles.insert(role);
        self.interfaces.extend(interfaces.iter().cloned());
    }

    fn served(self) -> Served {
        Served {
            direction: only(self.directions),
            role: only(self.roles).flatten(),
            interface: only(self.interfaces).flatten(),
        }
    }
}

fn only<T>(all: BTreeSet<T>) -> Option<T> {
    (all.len() == 1).then(|| all.into_iter().next()).flatten()
}

/// Where a rule of a root leads, with the interface where it asks for one.
fn entries_of<'r>(ruleset: &'r Ruleset, chain: &Chain, rule: &'r Rule) -> Vec<(Option<String>, &'r str)> {
    let device = chain.base.and_then(|base| base.device);
    // An interface that is not there yet is recognised by its name.
    let named = rule.statements.iter().find_map(|statement| match statement {
        Statement::Match { key: Key::InterfaceName(_), negated: false, value: Value::Is(name) } => Some(*name),
        _ => None,
    });
    let only = named.or(device).map(|name| name.as_name());
    let mut entries = Vec::new();
    for statement in &rule.statements {
        if let Statement::Vmap { keys, map: SetRef::Named(name) } = statement
            && let [Key::InterfaceName(_)] = keys.as_slice()
            && let Some(Elements::Keys(elements)) = ruleset.sets.get(name).map(|set| &set.elements)
        {
            entries.extend(elements.iter().filter_map(|(key, verdict)| {
                let interface = key.0.first().map(|(first, _)| first.as_name());
                Some((interface, target(verdict.as_ref()?)?))
            }));
        } else {
            entries.extend(targets(ruleset, statement).into_iter().map(|target| (only.clone(), target)));
        }
    }
    entries
}

fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

/// The chains that a statement leads to.
fn targets<'r>(ruleset: &'r Ruleset, statement: &'r Statement) -> Vec<&'r str> {
    let elements = match statement {
        Statement::Verdict(verdict) => return target(verdict).into_iter().collect(),
        Statement::Vmap { map: SetRef::Anonymous(elements), .. } => elements,
        Statement::Vmap { map: SetRef::Named(name), .. } => match ruleset.sets.get(name) {
            Some(set) => &set.elements,
            None => return Vec::new(),
        },
        _ => return Vec::new(),
    };
    match elements {
        Elements::Keys(keys) => keys.values().flatten().filter_map(target).collect(),
        Elements::V4(_) | Elements::V6(_) => Vec::new(),
    }
}

/// A chain and all that it leads to, short of where another point begins.
fn below<'r>(ruleset: &'r Ruleset, entry: &'r str, is_root: &impl Fn(&str) -> bool) -> BTreeSet<&'r str> {
    let mut found = BTreeSet::from([entry]);
    let mut ahead = vec![entry];
    while let Some(name) = ahead.pop() {
        let rules = ruleset.chains.get(name).map(|chain| chain.rules.as_slice()).unwrap_or_default();
        for target in rules.iter().flat_map(|rule| &rule.statements).flat_map(|statement| targets(ruleset, statement)) {
            if !is_root(target) && found.insert(target) {
                ahead.push(target);
            }
        }
    }
    found
}

/// The role that the chain of a class is named after.
fn role_of(prefix: &str, chain: &str) -> Option<Role> {
    let rest = chain.strip_prefix(prefix)?.strip_prefix('_')?;
    Role::ALL.iter().copied().find(|role| {
        rest.strip_prefix(role.name()).is_some_and(|after| !after.starts_with(|c: char| c.is_ascii_alphanumeric()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::point::ACCEPT_EARLY;
    use super::*;

    #[test]
    fn chains_are_named_after_their_role() {
        for (prefix, chain, role) in [
            ("in", "in_mgmt", Some(Role::Mgmt)),
            ("in", "in_rail.eth1", Some(Role::Rail)),
            ("forward_out", "forward_out_pod/default", Some(Role::Pod)),
            ("early", "early_bmc.2", Some(Role::Bmc)),
            ("in", "in_railway", None),
            ("in", "essential_in", None),
        ] {
            assert_eq!(role_of(prefix, chain), role, "{chain}");
        }
    }

    #[test]
    fn the_end_of_a_rule_says_what_became_of_it() {
        let rule = |statements: Vec<Statement>| Rule { statements, comment: Some("a#1 f.toml:1".to_owned()) };
        let meaning = Meaning::default();
        for (statements, counted) in [
            (vec![Statement::Counter, Statement::Verdict(Verdict::Drop)], Counted::Denied),
            (vec![Statement::Counter, Statement::Verdict(Verdict::Accept)], Counted::Allowed),
            (vec![Statement::Counter, Statement::Verdict(Verdict::Goto(ACCEPT_EARLY.to_owned()))], Counted::Allowed),
            (vec![Statement::Counter, Statement::Verdict(Verdict::Goto("in_mgmt/node".to_owned()))], Counted::Passed),
            (vec![Statement::Counter, Statement::Verdict(Verdict::Return)], Counted::WouldAllow),
            (vec![Statement::Counter], Counted::Logged),
        ] {
            let found = meaning.counted("in_mgmt", &rule(statements)).unwrap();
            assert_eq!(found, ("a".to_owned(), Some(1), counted));
        }
        assert_eq!(meaning.counted("in_mgmt", &rule(vec![Statement::Verdict(Verdict::Drop)])), None);
    }
}
