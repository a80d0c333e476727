//! Effective policy -> ruleset.
//!
//! ```text
//! input ── loopback ── established ── guards ── essentials ── iifname vmap @in_interfaces ─┬─> in_mgmt ── failsafe, first tier
//!                                                             iifname "cali*" ─────────────┤     └─> in_mgmt/default ── next tier
//!                                                             iifkind "veth" ──────────────┤           └─> … ── role's default
//!                                                             anything else ───────────────┴─> in_unknown
//! ```
//!
//! Every tier of a class is a chain; `pass` goes to the next one's. A chain ends with the goto to the next tier or with the
//! role's default, so evaluation always ends in a verdict of ours.

mod base;
mod class;
mod comment;
mod emit;
mod flat;
mod lower;
mod names;

use std::collections::BTreeMap;

pub use comment::rule_of;

use crate::net::interface::{Direction, Role};
use crate::nft::ir::{
    BaseChain, Chain, ChainPolicy, ElementKey, Elements, Hook, Rule, Ruleset, Set, SetRef, Statement, Value, Verdict,
};
use crate::nft::key::{DataType, Datum, Key, Side};
use crate::policy::effective::{Effective, EffectivePolicy, EffectiveRule, Pattern};
use crate::policy::model::{Action, Mode, TierDefault};
use crate::policy::settings::Default;

use class::ClassKey;
use lower::{Effect, Line, Target};

/// Priority of `input` and `output` (nft(8): `filter`).
const FILTER_PRIORITY: i32 = 0;

/// The ruleset that enforces the policy.
pub fn compile(effective: &Effective) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for direction in Direction::BOTH {
        Compiler { effective, direction, ruleset: &mut ruleset }.run();
    }
    ruleset
}

struct Compiler<'a> {
    effective: &'a Effective,
    direction: Direction,
    ruleset: &'a mut Ruleset,
}

impl Compiler<'_> {
    fn run(mut self) {
        let classes = class::classes(self.effective, self.direction);
        for (name, class) in &classes.chains {
            self.class(name, class);
        }
        let side = match self.direction {
            Direction::Ingress => Side::Source,
            Direction::Egress => Side::Destination,
        };
        let (hook, base, map) = match self.direction {
            Direction::Ingress => (Hook::Input, "input", "in_interfaces"),
            Direction::Egress => (Hook::Output, "output", "out_interfaces"),
        };
        // Interfaces come and go as elements of one map; where there are other chains to go to than before, it is another map,
        // so that no packet that is on its way through the old rules is sent to a chain that they do not have.
        let chains: Vec<&str> = classes.chains.keys().map(String::as_str).collect();
        let map = format!("{map}/{}", names::digest_text(&chains.join(" ")));
        let mut rules = base::preamble(self.direction, self.effective.drop_invalid, &self.deny());
        rules.push(self.dispatch(&map, side, &classes.interfaces));
        for (index, (pattern, chain)) in classes.expected.iter().enumerate() {
            // What the last rule would do with it anyway needs no rule of its own, unless a wider pattern stands between.
            if classes.expected[index..].iter().any(|(_, other)| *other != classes.unknown) {
                let statements = vec![expected(pattern, side)];
                let goto = Statement::Verdict(Verdict::Goto(chain.clone()));
                rules.push(Rule { statements: statements.into_iter().chain([goto]).collect(), comment: None });
            }
        }
        rules.push(base::rule(Vec::new(), Verdict::Goto(classes.unknown), "interface not known"));
        // Nothing reaches the end of the chain; if ever it did, closed is the side to err on, except that a host must be able
        // to answer and under audit nothing may change.
        let policy = match (self.direction, self.effective.mode) {
            (Direction::Ingress, Mode::Enforce) => ChainPolicy::Drop,
            _ => ChainPolicy::Accept,
        };
        let base_chain = BaseChain { hook, priority: FILTER_PRIORITY, policy, device: None };
        self.ruleset.chains.insert(base.to_owned(), Chain { base: Some(base_chain), rules });
        let essentials = base::essentials(self.direction);
        self.ruleset.chains.insert(base::essentials_name(self.direction).to_owned(), essentials);
    }

    /// The verdict of everything that denies.
    fn deny(&self) -> Verdict {
        match self.effective.mode {
            Mode::Enforce => Verdict::Drop,
            Mode::Audit => Verdict::Accept,
        }
    }

    fn dispatch(
        &mut self,
        map: &str,
        side: Side,
        interfaces: &[(crate::net::interface::InterfaceName, String)],
    ) -> Rule {
        let elements = interfaces
            .iter()
            .map(|(name, chain)| (ElementKey::of([Datum::name(name.as_str())]), Some(Verdict::Goto(chain.clone()))))
            .collect();
        let set = Set {
            key: vec![DataType::Ifname],
            interval: false,
            map: true,
            dynamic: None,
            elements: Elements::Keys(elements),
        };
        self.ruleset.sets.insert(map.to_owned(), set);
        let keys = vec![Key::InterfaceName(side)];
        Rule { statements: vec![Statement::Vmap { keys, map: SetRef::Named(map.to_owned()) }], comment: None }
    }

    /// The chains of one class, from its last tier to its first: each has to know where the next one is.
    fn class(&mut self, name: &str, class: &ClassKey) {
        let governed: Vec<(usize, &Vec<usize>)> =
            class.policies.iter().enumerate().filter(|(_, policies)| !policies.is_empty()).collect();
        let mut next = self.interface_default(class.role);
        for (position, (tier, policies)) in governed.iter().enumerate().rev() {
            let tier = &self.effective.tiers[*tier];
            let policies: Vec<&EffectivePolicy> = policies.iter().map(|index| &tier.policies[*index]).collect();
            let first = position == 0;
            let chain = if first { name.to_owned() } else { format!("{name}/{}", tier.name) };
            let mut rules = if first { self.failsafe(name, class) } else { Vec::new() };
            rules.extend(self.tier(&chain, &policies, &next));
            let enforced = policies.iter().any(|policy| policy.mode == Mode::Enforce);
            match tier.default {
                TierDefault::Deny if enforced => {
                    rules.extend(self.end(Default::Deny, &format!("tier {} denies by default", tier.name)));
                }
                _ => rules.extend(next.rules.iter().cloned()),
            }
            self.ruleset.chains.insert(chain.clone(), Chain { base: None, rules });
            let goto = Verdict::Goto(chain);
            let rule = Rule { statements: vec![Statement::Verdict(goto.clone())], comment: None };
            next = Next { verdict: goto, rules: vec![rule] };
        }
        if governed.is_empty() {
            let mut rules = self.failsafe(name, class);
            rules.extend(next.rules);
            self.ruleset.chains.insert(name.to_owned(), Chain { base: None, rules });
        }
    }

    fn interface_default(&self, role: Role) -> Next {
        let default = self.effective.defaults.get(&(role, self.direction)).copied().unwrap_or(Default::Deny);
        let (verdict, word) = match default {
            Default::Allow => (Verdict::Accept, "allow"),
            Default::Deny => (self.deny(), "deny"),
        };
        Next { verdict, rules: self.end(default, &format!("default of {role} {}: {word}", self.direction)) }
    }

    /// The end of evaluation: count and decide, and under audit log what would have been denied.
    fn end(&self, default: Default, comment: &str) -> Vec<Rule> {
        let comment = comment::fit(comment.to_owned());
        let verdict = match default {
            Default::Allow => Verdict::Accept,
            Default::Deny => self.deny(),
        };
        let mut rules = Vec::new();
        if default == Default::Deny && self.effective.mode == Mode::Audit {
            let log = self.effective.log;
            let prefix = comment::fit(format!("would deny: {comment} "));
            let statements = vec![
                Statement::Limit(crate::nft::ir::Limit { rate: log.rate, seconds: 1, burst: log.burst }),
                Statement::Log { prefix, group: log.group },
            ];
            rules.push(Rule { statements, comment: Some(comment::fit(format!("{comment} log"))) });
        }
        let statements = vec![Statement::Counter, Statement::Verdict(verdict)];
        rules.push(Rule { statements, comment: Some(comment) });
        rules
    }

    fn failsafe(&mut self, chain: &str, class: &ClassKey) -> Vec<Rule> {
        let effective = self.effective;
        let lines: Vec<Line> = class
            .failsafe
            .iter()
            .flat_map(|index| {
                lines(&effective.failsafe[*index].rule, |_| Effect::Verdict(Verdict::Accept), Mode::Enforce)
            })
            .collect();
        self.target().lower(&format!("{chain}.failsafe"), &lines)
    }

    /// The rules of one tier: enforcing policies as one list, so that runs may span them; an audit policy is a visit to a
    /// chain that always comes back.
    fn tier(&mut self, chain: &str, policies: &[&EffectivePolicy], next: &Next) -> Vec<Rule> {
        let node_mode = self.effective.mode;
        let deny = self.deny();
        let effect = |rule: &EffectiveRule| match rule.action {
            Action::Allow => Effect::Verdict(Verdict::Accept),
            Action::Deny => Effect::Verdict(deny.clone()),
            Action::Reject if node_mode == Mode::Audit => Effect::Verdict(Verdict::Accept),
            Action::Reject => Effect::Reject,
            Action::Pass => Effect::Verdict(next.verdict.clone()),
            Action::Log => Effect::Continue,
        };
        let mut rules = Vec::new();
        let mut pending: Vec<Line> = Vec::new();
        let mut part = 0;
        for policy in policies {
            let of_direction = policy.rules(self.direction).unwrap_or_default();
            if policy.mode == Mode::Enforce {
                pending.extend(of_direction.iter().flat_map(|rule| lines(rule, effect, node_mode)));
                continue;
            }
            rules.extend(self.part(chain, &mut part, &mut pending));
            let audit = self.audit(policy, of_direction);
            rules.push(base::rule(
                Vec::new(),
                Verdict::Jump(audit),
                &comment::fit(format!("audit of {}", policy.name)),
            ));
        }
        rules.extend(self.part(chain, &mut part, &mut pending));
        rules
    }

    fn part(&mut self, chain: &str, part: &mut usize, pending: &mut Vec<Line>) -> Vec<Rule> {
        if pending.is_empty() {
            return Vec::new();
        }
        *part += 1;
        let name = if *part == 1 { chain.to_owned() } else { format!("{chain}.part{part}") };
        self.target().lower(&name, &std::mem::take(pending))
    }

    /// The chain of a policy in audit mode, shared by all interfaces: what would decide counts, logs and returns.
    fn audit(&mut self, policy: &EffectivePolicy, rules: &[EffectiveRule]) -> String {
        let direction = match self.direction {
            Direction::Ingress => "in",
            Direction::Egress => "out",
        };
        let name = format!("audit_{direction}/{}", policy.name);
        if !self.ruleset.chains.contains_key(&name) {
            let effect = |rule: &EffectiveRule| match rule.action {
                Action::Log => Effect::Continue,
                _ => Effect::Verdict(Verdict::Return),
            };
            let lines: Vec<Line> = rules.iter().flat_map(|rule| lines(rule, effect, Mode::Audit)).collect();
            let rules = self.target().linear(&lines);
            self.ruleset.chains.insert(name.clone(), Chain { base: None, rules });
        }
        name
    }

    fn target(&mut self) -> Target<'_> {
        Target { ruleset: self.ruleset, log: self.effective.log }
    }
}

/// Where evaluation goes on after a tier: the next tier's chain, or the interface's default.
struct Next {
    /// What `pass` does.
    verdict: Verdict,
    /// The end of the chain before.
    rules: Vec<Rule>,
}

/// The lines of one rule. Under audit what would deny is logged, whether the rule asks for it or not.
fn lines(rule: &EffectiveRule, effect: impl Fn(&EffectiveRule) -> Effect, mode: Mode) -> Vec<Line> {
    let verb = rule.action.name();
    let denies = matches!(rule.action, Action::Deny | Action::Reject);
    let log = match (mode, rule.action, &rule.log) {
        (Mode::Audit, _, text) if denies => {
            Some(comment::log_prefix(rule, &format!("would {verb}"), text.as_deref().unwrap_or_default()))
        }
        (_, Action::Log, text) => Some(comment::log_prefix(rule, verb, text.as_deref().unwrap_or_default())),
        (_, _, Some(text)) => Some(comment::log_prefix(rule, verb, text)),
        _ => None,
    };
    flat::flatten(rule)
        .into_iter()
        .map(|flat| Line {
            flat,
            effect: effect(rule),
            comment: comment::of_rule(rule),
            log: log.clone(),
            slug: slug(rule),
        })
        .collect()
}

/// The rule in the words of a chain name.
fn slug(rule: &EffectiveRule) -> String {
    let policy: String =
        rule.id.policy.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    format!("{policy}-{}", rule.id.number)
}

/// The match that recognises an interface which the dispatch map does not know yet.
fn expected(pattern: &Pattern, side: Side) -> Statement {
    let (key, value) = match pattern {
        Pattern::Name(name) => (Key::InterfaceName(side), Value::Is(Datum::name(name.as_str()))),
        Pattern::Prefix(prefix) => {
            let bits = u8::try_from(prefix.len() * 8).unwrap_or(u8::MAX);
            (Key::InterfaceName(side), Value::Prefix(Datum::name(prefix), bits))
        }
        Pattern::Kind(kind) => (Key::InterfaceKind(side), Value::Is(Datum::name(kind))),
    };
    Statement::Match { key, negated: false, value }
}

/// How many rules, elements and chains a ruleset has: for logs and status.
pub fn size(ruleset: &Ruleset) -> BTreeMap<&'static str, usize> {
    [
        ("chains", ruleset.chains.len()),
        ("rules", ruleset.chains.values().map(|chain| chain.rules.len()).sum()),
        ("sets", ruleset.sets.len()),
        ("elements", ruleset.sets.values().map(|set| set.elements.len()).sum()),
    ]
    .into()
}
