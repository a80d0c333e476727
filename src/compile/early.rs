//! Denials as a packet arrives ([`crate::policy::early`]): one chain for each class of interfaces, which is entered from each interface's
//! ingress hook, and once more before connection tracking. The first is the cheap one, and sees no packet that still has a VLAN tag
//! (stacked priority tags, CVE-2021-27853) nor an interface that came since; the second sees them all.

use std::collections::{BTreeMap, BTreeSet};

use super::lower::{Effect, Room, Target};
use super::point::Point;
use super::{base, comment, expected, lines, names};
use crate::net::interface::{Direction, Role};
use crate::nft::ir::{
    BaseChain, Chain, ChainPolicy, ElementKey, Elements, Hook, Rule, Ruleset, Set, SetRef, Statement, Verdict,
};
use crate::nft::key::{DataType, Datum, Key, Side};
use crate::policy::early;
use crate::policy::effective::{Effective, EffectiveRule};
use crate::policy::guards::Withheld;
use crate::policy::model::{Mode, Stage};
use crate::policy::selector::Labels;
use crate::policy::settings::LogSettings;

/// Where it stands as everybody else sees it.
const POINT: Point = Point { stage: Stage::Untracked, direction: Direction::Ingress };
/// The base chain in prerouting.
pub(super) const CHAIN: &str = "early";
/// Before the untracked stage (-300), after reassembly (-400).
const PREROUTING_PRIORITY: i32 = -310;
/// nft(8): `filter`.
const INGRESS_PRIORITY: i32 = 0;

/// Adds the chains, if any interface has early rules.
pub(super) fn add(effective: &Effective, withheld: Withheld, ruleset: &mut Ruleset, room: &mut Room) {
    let mut classes = Classes { effective, withheld, ruleset, room, by_key: BTreeMap::new() };
    let interfaces: Vec<_> = effective
        .interfaces
        .iter()
        .filter(|interface| interface.role != Role::Loopback)
        .filter_map(|interface| Some((&interface.name, classes.chain(interface.role, &interface.labels)?)))
        .collect();
    let patterns: Vec<_> =
        effective.expected.iter().map(|other| (&other.pattern, classes.chain(other.role, &other.labels))).collect();
    let unknown = classes.chain(Role::Unknown, &effective.unknown);
    if classes.by_key.is_empty() {
        return;
    }
    let chains: BTreeSet<String> = classes.by_key.into_values().collect();
    let chains = chains.into_iter().collect::<Vec<_>>().join(" ");
    let way = |chain: Option<&String>| chain.map_or(Verdict::Accept, |chain| Verdict::Goto(chain.clone()));
    for (name, chain) in &interfaces {
        let device = Datum::name(name.as_str());
        let base = BaseChain {
            hook: Hook::Ingress,
            priority: INGRESS_PRIORITY,
            policy: ChainPolicy::Accept,
            device: Some(device),
        };
        let rules = vec![Rule { statements: vec![Statement::Verdict(way(Some(chain)))], comment: None }];
        ruleset.chains.insert(hook_chain(name.as_str()), Chain { base: Some(base), rules });
    }
    // Every interface there is has its entry, so that no pattern takes it for another.
    let elements: BTreeMap<ElementKey, Option<Verdict>> = effective
        .interfaces
        .iter()
        .filter(|interface| interface.role != Role::Loopback)
        .map(|interface| {
            let chain = interfaces.iter().find(|(name, _)| **name == interface.name).map(|(_, chain)| chain);
            (ElementKey::of([Datum::name(interface.name.as_str())]), Some(way(chain)))
        })
        .collect();
    let elements = Elements::Keys(elements.into());
    // As with the stages: other chains to go to are another map.
    let map = format!("early_interfaces/{}", names::digest_text(&chains));
    let keys = vec![Key::InterfaceName(Side::Source)];
    let dispatch = Statement::Vmap { keys, map: SetRef::Named(map.clone()) };
    let set = Set { key: vec![DataType::Ifname], interval: false, map: true, dynamic: None, elements };
    ruleset.sets.insert(map, set);
    let mut rules = vec![base::loopback(POINT), Rule { statements: vec![dispatch], comment: None }];
    let unknown = way(unknown.as_ref());
    for (index, (pattern, chain)) in patterns.iter().enumerate() {
        // What the last rule would do with it anyway needs no rule of its own, unless a wider pattern stands between.
        if patterns[index..].iter().any(|(_, other)| way(other.as_ref()) != unknown) {
            let statements = vec![expected(pattern, Side::Source), Statement::Verdict(way(chain.as_ref()))];
            rules.push(Rule { statements, comment: None });
        }
    }
    rules.push(base::rule(Vec::new(), unknown, "interface not known"));
    let base =
        BaseChain { hook: Hook::Prerouting, priority: PREROUTING_PRIORITY, policy: ChainPolicy::Accept, device: None };
    ruleset.chains.insert(CHAIN.to_owned(), Chain { base: Some(base), rules });
}

/// The base chain in an interface's ingress hook.
pub(super) fn hook_chain(interface: &str) -> String {
    format!("{CHAIN}/{interface}")
}

/// Interfaces with the same early rules and failsafe entries share a chain.
struct Classes<'a, 'r> {
    effective: &'a Effective,
    /// What is an essential on some interfaces only.
    withheld: Withheld,
    ruleset: &'r mut Ruleset,
    room: &'r mut Room,
    by_key: BTreeMap<(Vec<usize>, Vec<String>, Withheld), String>,
}

impl Classes<'_, '_> {
    fn chain(&mut self, role: Role, labels: &Labels) -> Option<String> {
        let rules = early::rules(self.effective, role, labels);
        if rules.is_empty() {
            return None;
        }
        let failsafe: Vec<usize> = self
            .effective
            .failsafe
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.interfaces.matches(labels))
            .map(|(index, _)| index)
            .collect();
        let has = self.withheld.without(self.effective.withheld(labels));
        let key = (failsafe, rules.iter().map(|rule| rule.id.to_string()).collect(), has);
        if let Some(chain) = self.by_key.get(&key) {
            return Some(chain.clone());
        }
        let mut name = format!("{CHAIN}_{role}");
        let mut number = 2;
        while self.ruleset.chains.contains_key(&name) {
            name = format!("{CHAIN}_{role}.{number}");
            number += 1;
        }
        let statements = self.rules(&name, &key.0, has, &rules);
        self.ruleset.chains.insert(name.clone(), Chain { base: None, rules: statements });
        self.by_key.insert(key, name.clone());
        Some(name)
    }

    fn rules(&mut self, name: &str, failsafe: &[usize], has: Withheld, rules: &[&EffectiveRule]) -> Vec<Rule> {
        let effective = self.effective;
        let (log, alike) = (effective.log, POINT.alike());
        // Made to be cheap under a flood: only what a rule asks for is logged.
        let asked = LogSettings { denied: false, ..log };
        let mut target = Target { ruleset: self.ruleset, log, prefix: CHAIN, alike, room: self.room };
        let accept = |_: &EffectiveRule| Effect::Verdict(Verdict::Accept);
        let entries = failsafe.iter().filter_map(|index| effective.failsafe.get(*index));
        // No flows are known yet, so that answers to what failsafe lets out need it as well. They are logged, and counted, where they
        // decide.
        let entries = entries.flat_map(|entry| entry.rules(Direction::Ingress));
        let entries = entries.map(|rule| EffectiveRule { log: None, ..rule.clone() });
        let ways_in: Vec<_> = entries.flat_map(|rule| lines(&rule, accept, Mode::Enforce, asked)).collect();
        let drop = |_: &EffectiveRule| Effect::Verdict(Verdict::Drop);
        let denials: Vec<_> = rules.iter().flat_map(|rule| lines(rule, drop, Mode::Enforce, asked)).collect();
        let mut rules = vec![base::essentials_jump(POINT)];
        rules.extend(base::withheld_jump(has));
        rules.extend(target.linear(&ways_in).into_iter().map(uncounted));
        rules.extend(target.lower(name, &denials));
        rules.push(base::rule(Vec::new(), Verdict::Accept, &comment::fit("not denied early".to_owned())));
        rules
    }
}

fn uncounted(rule: Rule) -> Rule {
    let keeps = |statement: &Statement| !matches!(statement, Statement::Counter);
    Rule { statements: rule.statements.into_iter().filter(keeps).collect(), ..rule }
}
