//! Effective policy -> ruleset.
//!
//! ```text
//! raw_prerouting (-300) ── prednat (-110) ─┬─> input ── loopback ── established ── guards ── allowed before? ── essentials ── dispatch
//!   only where such policies exist         └─> forward ── dispatch by iifname ── forward_out ── dispatch by oifname
//! raw_output (-300) ──────────────────────────> output ── ... ── dispatch
//!
//! dispatch ── iifname vmap @in_interfaces ─┬─> in_mgmt ── failsafe, first tier
//!             iifname "cali*" ─────────────┤     └─> in_mgmt/default ── next tier
//!             iifkind "veth" ──────────────┤           └─> … ── role's default
//!             anything else ───────────────┴─> in_unknown
//! ```
//!
//! A point is a stage and a direction in it. Every tier of a class of interfaces is a chain; `pass` goes to the next one's. A chain ends
//! with the goto to the next tier, or with what becomes of a packet that no policy decided: in the host stage the role's default,
//! elsewhere the packet goes on.

mod base;
mod branch;
mod class;
mod comment;
pub mod counted;
mod depth;
mod early;
mod emit;
mod flat;
mod lower;
mod names;
mod point;
mod shards;
pub mod stats;

use std::collections::{BTreeMap, BTreeSet};

pub use comment::{Logged, LoggedBy, logged, rule_of};
pub use emit::address_sets;

use crate::net::interface::{Direction, InterfaceName, Role};
use crate::nft::ir::{Chain, ElementKey, Elements, Rule, Ruleset, Set, SetRef, Statement, Value, Verdict};
use crate::nft::key::{DataType, Datum, Key, Side};
use crate::policy::effective::{Effective, EffectivePolicy, EffectiveRule, Pattern};
use crate::policy::guards::Withheld;
use crate::policy::model::{Action, Mode, Stage, TierDefault};
use crate::policy::settings::{Default, LogSettings};

use base::Marks;
use class::ClassKey;
use lower::{Effect, Limited, Line, Room, Target};
use point::{ACCEPT_EARLY, ACCEPT_UNTRACKED, Point};

/// The ruleset that enforces the policy.
pub fn compile(effective: &Effective) -> Ruleset {
    compile_noting(effective).0
}

/// The same, and the named sets (without the family suffix) whose contents stand not only in the kernel's sets of their names.
pub fn compile_noting(effective: &Effective) -> (Ruleset, BTreeSet<String>) {
    Room::fitting(|room| compile_in(effective, room))
}

fn compile_in(effective: &Effective, room: &mut Room) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let withheld = effective.withheld_anywhere();
    for (name, chain) in base::withheld_essentials(withheld) {
        ruleset.chains.insert(name.to_owned(), chain);
    }
    let mut points: Vec<Point> = Point::ALL.into_iter().filter(|point| point.exists(effective)).collect();
    // Forwarded packets come to the one side by way of the other.
    let forward = |direction| Point { stage: Stage::Forward, direction };
    for (side, other) in Direction::BOTH.map(|direction| (direction, opposite(direction))) {
        if points.contains(&forward(other)) && !points.contains(&forward(side)) {
            points.push(forward(side));
        }
    }
    for point in &points {
        let marks = marks(*point, &points, effective.accept_mark);
        Compiler { effective, point: *point, marks, withheld, ruleset: &mut ruleset, room }.run();
    }
    accepting(effective, &points, &mut ruleset);
    early::add(effective, withheld, &mut ruleset, room);
    ruleset
}

const fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Ingress => Direction::Egress,
        Direction::Egress => Direction::Ingress,
    }
}

/// Who may have set the mark before a point, and whether it is the first that sees a packet.
fn marks(point: Point, points: &[Point], bit: u32) -> Marks {
    let there = |stage, direction| points.contains(&Point { stage, direction });
    let raw_in = there(Stage::Untracked, Direction::Ingress);
    let raw_out = there(Stage::Untracked, Direction::Egress);
    let prednat = there(Stage::Prednat, Direction::Ingress);
    let (clear, read) = match (point.stage, point.direction) {
        (Stage::Untracked, _) => (true, false),
        (Stage::Prednat, _) => (!raw_in, raw_in),
        (Stage::Host | Stage::Forward, Direction::Ingress) => (false, raw_in || prednat),
        (Stage::Host | Stage::Forward, Direction::Egress) => (false, raw_out),
    };
    Marks { bit, clear, read }
}

/// The chains to which early stages send what they let through.
fn accepting(effective: &Effective, points: &[Point], ruleset: &mut Ruleset) {
    let early = points.iter().any(|point| matches!(point.stage, Stage::Untracked | Stage::Prednat));
    let untracked = points.iter().any(|point| point.stage == Stage::Untracked);
    let mut add = |name: &str, statements: Vec<Statement>| {
        let rule = base::rule(statements, Verdict::Accept, "allowed: later stages do not ask");
        ruleset.chains.insert(name.to_owned(), Chain { base: None, rules: vec![rule] });
    };
    let mark = Statement::MarkSet(effective.accept_mark);
    if early {
        add(ACCEPT_EARLY, vec![mark.clone()]);
    }
    if untracked && effective.mode == Mode::Enforce {
        add(ACCEPT_UNTRACKED, vec![Statement::Notrack, mark]);
    }
}

struct Compiler<'a> {
    effective: &'a Effective,
    point: Point,
    marks: Marks,
    /// What is an essential on some interfaces only.
    withheld: Withheld,
    ruleset: &'a mut Ruleset,
    /// See [`Target::room`].
    room: &'a mut Room,
}

impl Compiler<'_> {
    fn run(mut self) {
        let point = self.point;
        let classes = class::classes(self.effective, point);
        for (name, class) in &classes.chains {
            self.class(name, class);
        }
        // Interfaces come and go as elements of one map; where there are other chains to go to than before, it is another map,
        // so that no packet that is on its way through the old rules is sent to a chain that they do not have.
        let chains: Vec<&str> = classes.chains.keys().map(String::as_str).collect();
        let map = format!("{}_interfaces/{}", point.prefix(), names::digest_text(&chains.join(" ")));
        let mut rules = base::preamble(point, self.marks, self.effective.drop_invalid, &self.deny());
        let unknown = self.way_of(classes.unknown.as_deref());
        let patterns: Vec<(&Pattern, Verdict)> =
            classes.expected.iter().map(|(pattern, chain)| (pattern, self.way_of(chain.as_deref()))).collect();
        // Where what is not known goes on, an interface that goes on as well needs no entry.
        let shadowed = patterns.iter().any(|(_, way)| *way != point.go_on()) || unknown != point.go_on();
        let interfaces: Vec<(&InterfaceName, Verdict)> = classes
            .interfaces
            .iter()
            .filter(|(_, chain)| shadowed || chain.is_some())
            .map(|(name, chain)| (name, self.way_of(chain.as_deref())))
            .collect();
        if !interfaces.is_empty() || point.stage == Stage::Host {
            rules.push(self.dispatch(&map, &interfaces));
        }
        for (index, (pattern, way)) in patterns.iter().enumerate() {
            // What the last rule would do with it anyway needs no rule of its own, unless a wider pattern stands between.
            if patterns[index..].iter().any(|(_, other)| *other != unknown) {
                let statements = vec![expected(pattern, point.side()), Statement::Verdict(way.clone())];
                rules.push(Rule { statements, comment: None });
            }
        }
        let comment = if classes.unknown.is_some() { "interface not known" } else { "no policy of this stage" };
        rules.push(base::rule(Vec::new(), unknown, comment));
        let chain = Chain { base: point.base(self.effective.mode), rules };
        self.ruleset.chains.insert(point.chain().to_owned(), chain);
        let withheld = self.withheld;
        let essentials = || base::essentials(point, withheld);
        self.ruleset.chains.entry(base::essentials_name(point).to_owned()).or_insert_with(essentials);
    }

    /// Where the packets of an interface go.
    fn way_of(&self, chain: Option<&str>) -> Verdict {
        chain.map_or_else(|| self.point.go_on(), |chain| Verdict::Goto(chain.to_owned()))
    }

    /// The verdict of everything that denies.
    fn deny(&self) -> Verdict {
        self.point.deny(self.effective.mode)
    }

    fn dispatch(&mut self, map: &str, interfaces: &[(&InterfaceName, Verdict)]) -> Rule {
        let elements = interfaces
            .iter()
            .map(|(name, way)| (ElementKey::of([Datum::name(name.as_str())]), Some(way.clone())))
            .collect();
        let elements = Elements::Keys(elements);
        let set = Set { key: vec![DataType::Ifname], interval: false, map: true, dynamic: None, elements };
        self.ruleset.sets.insert(map.to_owned(), set);
        let keys = vec![Key::InterfaceName(self.point.side())];
        Rule { statements: vec![Statement::Vmap { keys, map: SetRef::Named(map.to_owned()) }], comment: None }
    }

    /// The chains of one class, from its last tier to its first: each has to know where the next one is.
    fn class(&mut self, name: &str, class: &ClassKey) {
        let governed: Vec<(usize, &Vec<usize>)> =
            class.policies.iter().enumerate().filter(|(_, policies)| !policies.is_empty()).collect();
        let mut next = self.undecided(class.role);
        for (position, (tier, policies)) in governed.iter().enumerate().rev() {
            let tier = &self.effective.tiers[*tier];
            let policies: Vec<&EffectivePolicy> = policies.iter().map(|index| &tier.policies[*index]).collect();
            let first = position == 0;
            let chain = if first { name.to_owned() } else { format!("{name}/{}", tier.name) };
            let mut rules = if first { self.beginning(name, class) } else { Vec::new() };
            rules.extend(self.tier(&chain, &policies, &next));
            let enforced = policies.iter().any(|policy| policy.mode == Mode::Enforce);
            match tier.default {
                TierDefault::Deny if enforced => {
                    let what = format!("{}{}", comment::TIER, tier.name);
                    rules.extend(self.end(Default::Deny, &what, &format!("{what} denies by default")));
                }
                _ => rules.extend(next.rules.iter().cloned()),
            }
            self.ruleset.chains.insert(chain.clone(), Chain { base: None, rules });
            let goto = Verdict::Goto(chain);
            let rule = Rule { statements: vec![Statement::Verdict(goto.clone())], comment: None };
            next = Next { verdict: goto, rules: vec![rule] };
        }
        if governed.is_empty() {
            let mut rules = self.beginning(name, class);
            rules.extend(next.rules);
            self.ruleset.chains.insert(name.to_owned(), Chain { base: None, rules });
        }
    }

    /// What becomes of a packet that no tier decided.
    fn undecided(&self, role: Role) -> Next {
        if self.point.stage != Stage::Host {
            let verdict = self.point.go_on();
            return Next { rules: vec![base::rule(Vec::new(), verdict.clone(), "no policy decided")], verdict };
        }
        let direction = self.point.direction;
        let default = self.effective.defaults.get(&(role, direction)).copied().unwrap_or(Default::Deny);
        let (verdict, word) = match default {
            Default::Allow => (Verdict::Accept, "allow"),
            Default::Deny => (self.deny(), "deny"),
        };
        let what = format!("{}{role} {direction}", comment::DEFAULT_OF);
        Next { verdict, rules: self.end(default, &what, &format!("{what}: {word}")) }
    }

    /// The end of evaluation by a default: count and decide, and log what is denied, or would be under audit.
    fn end(&self, default: Default, what: &str, comment: &str) -> Vec<Rule> {
        let comment = comment::fit(comment.to_owned());
        let verdict = match default {
            Default::Allow => Verdict::Accept,
            Default::Deny => self.deny(),
        };
        let mut rules = Vec::new();
        let log = self.effective.log;
        let audit = self.effective.mode == Mode::Audit;
        if default == Default::Deny && (audit || log.denied) {
            let prefix = comment::default_prefix(what, audit);
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

    /// What goes before the tiers in the first chain of a class.
    fn beginning(&mut self, chain: &str, class: &ClassKey) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.point.stage != Stage::Host {
            // The host stage has them before its dispatch; another stage leaves interfaces alone that it does not govern.
            rules.extend(base::guards(self.point, self.effective.drop_invalid, &self.deny()));
            rules.push(base::essentials_jump(self.point));
        }
        if self.point.direction == Direction::Ingress && self.point.stage != Stage::Forward {
            rules.extend(base::withheld_jump(self.withheld.without(class.withheld)));
        }
        rules.extend(self.failsafe(chain, class));
        rules
    }

    fn failsafe(&mut self, chain: &str, class: &ClassKey) -> Vec<Rule> {
        let (effective, accept) = (self.effective, self.point.go_on());
        let lines: Vec<Line> = class
            .failsafe
            .iter()
            .flat_map(|index| effective.failsafe[*index].rules(self.point.direction))
            .flat_map(|rule| lines(rule, |_| Effect::Verdict(accept.clone()), Mode::Enforce, effective.log))
            .collect();
        self.target().lower(&format!("{chain}.failsafe"), &lines)
    }

    /// The rules of one tier: enforcing policies as one list, so that runs may span them; an audit policy is a visit to a
    /// chain that always comes back.
    fn tier(&mut self, chain: &str, policies: &[&EffectivePolicy], next: &Next) -> Vec<Rule> {
        let node_mode = self.effective.mode;
        let (allow, deny) = (self.point.allow(node_mode), self.deny());
        let effect = |rule: &EffectiveRule| match rule.action {
            Action::Allow => Effect::Verdict(allow.clone()),
            Action::Deny => Effect::Verdict(deny.clone()),
            Action::Reject if node_mode == Mode::Audit => Effect::Verdict(deny.clone()),
            Action::Reject => Effect::Reject,
            Action::Pass => Effect::Verdict(next.verdict.clone()),
            Action::Log => Effect::Continue,
        };
        let mut rules = Vec::new();
        let mut pending: Vec<Line> = Vec::new();
        let mut part = 0;
        for policy in policies {
            let of_direction = policy.rules(self.point.direction).unwrap_or_default();
            if policy.mode == Mode::Enforce {
                pending.extend(of_direction.iter().flat_map(|rule| lines(rule, effect, node_mode, self.effective.log)));
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
        let name = format!("audit_{}/{}", self.point.prefix(), policy.name);
        if !self.ruleset.chains.contains_key(&name) {
            let effect = |rule: &EffectiveRule| match rule.action {
                Action::Log => Effect::Continue,
                _ => Effect::Verdict(Verdict::Return),
            };
            let lines: Vec<Line> =
                rules.iter().flat_map(|rule| lines(rule, effect, Mode::Audit, self.effective.log)).collect();
            let rules = self.target().linear(&lines);
            self.ruleset.chains.insert(name.clone(), Chain { base: None, rules });
        }
        name
    }

    fn target(&mut self) -> Target<'_> {
        Target {
            ruleset: self.ruleset,
            log: self.effective.log,
            prefix: self.point.prefix(),
            alike: self.point.alike(),
            room: self.room,
        }
    }
}

/// Where evaluation goes on after a tier: the next tier's chain, or the interface's default.
struct Next {
    /// What `pass` does.
    verdict: Verdict,
    /// The end of the chain before.
    rules: Vec<Rule>,
}

/// The lines of one rule. What denies, or would under audit, is logged whether the rule asks for it or not, under audit always.
fn lines(
    rule: &EffectiveRule,
    effect: impl Fn(&EffectiveRule) -> Effect,
    mode: Mode,
    settings: LogSettings,
) -> Vec<Line> {
    let verb = rule.action.name();
    let denies = matches!(rule.action, Action::Deny | Action::Reject);
    let log = match (mode, rule.action, &rule.log) {
        (Mode::Audit, _, text) if denies => {
            Some(comment::log_prefix(rule, &format!("would {verb}"), text.as_deref().unwrap_or_default()))
        }
        (_, _, None) if denies && settings.denied => Some(comment::log_prefix(rule, verb, "")),
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
            limit: rule.limit.map(|limit| Limited::of(&limit)),
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
