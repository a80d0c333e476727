//! What a trace says, in words: what decided, and every step with the place of the thing that was looked at.

use super::decision::{Outcome, Reason};
use super::interface::{How, Recognised};
use super::trace::{FailsafeStep, PolicyStep, RuleStep, StageEnd, Step, TierEnd, Trace};
use crate::net::interface::{Direction, Role};
use crate::policy::effective::{EffectiveRule, Pattern};
use crate::policy::model::{Mode, Stage, TierDefault};
use crate::policy::settings::Default;
use crate::text::place::Place;

/// What decided a packet.
#[derive(Clone, PartialEq, Debug)]
pub struct Because<'a> {
    /// A word for scripts: "rule", "failsafe", "essential", "tier-default", "interface-default" or "no-policy".
    pub kind: &'static str,
    /// For people.
    pub words: String,
    /// The rule, also that of a failsafe entry.
    pub rule: Option<&'a EffectiveRule>,
}

impl Because<'_> {
    /// Where what decided was written, if it stands in a file.
    pub fn place(&self) -> Option<&Place> {
        self.rule.map(|rule| &rule.place).filter(|place| place.line > 0)
    }
}

/// The outcome as a word.
pub const fn verdict(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted => "accepted",
        Outcome::Dropped => "dropped",
        Outcome::Rejected => "rejected",
    }
}

/// What decided, would have decided or was audited.
pub fn because<'a>(trace: &Trace<'a>, reason: &Reason) -> Because<'a> {
    let other = |kind, words| Because { kind, words, rule: None };
    match reason {
        Reason::Essential(words) => {
            let drops = |step: &Step<'_>| matches!(step, Step::Essential(found, Outcome::Dropped) if found == words);
            let prefix = if trace.steps.iter().any(drops) { "" } else { "essential: " };
            other("essential", format!("{prefix}{words}"))
        }
        Reason::Rule(id) => {
            let mut kind = "rule";
            // From the end: a policy's rules for both directions of a forwarded packet have the same numbers.
            let rule = trace.steps.iter().rev().find_map(|step| match step {
                Step::Rule(rule, RuleStep::Decided(_) | RuleStep::Audited(_) | RuleStep::Logged) if rule.id == *id => {
                    Some(*rule)
                }
                Step::Failsafe(entry, FailsafeStep::Accepted) if entry.rule.id == *id => {
                    kind = "failsafe";
                    Some(&entry.rule)
                }
                _ => None,
            });
            let words = match rule {
                Some(rule) if kind == "rule" => format!("{id} ({})", rule.action.name()),
                _ => id.policy.replace(':', " "),
            };
            Because { kind, words, rule }
        }
        Reason::TierDefault(tier) => other("tier-default", format!("default of tier {tier}: deny")),
        Reason::InterfaceDefault => {
            let words = trace.steps.iter().find_map(|step| match step {
                Step::InterfaceDefault(role, direction, default) => Some(default_of(*role, *direction, *default)),
                _ => None,
            });
            other("interface-default", words.unwrap_or_else(|| "default of the interface".to_owned()))
        }
        Reason::NoPolicy => other("no-policy", "no policy decides what is forwarded here: it goes on".to_owned()),
    }
}

fn default_of(role: Role, direction: Direction, default: Default) -> String {
    let word = match default {
        Default::Allow => "allow",
        Default::Deny => "deny",
    };
    format!("default of {role} {direction}: {word}")
}

/// How an interface was recognised.
pub fn recognised(interface: &Recognised<'_>) -> String {
    let role = interface.role;
    match interface.how {
        How::Known(why) => format!("{role}: {why}"),
        How::Expected(pattern) => format!("not there; {role} by {}", pattern_words(pattern)),
        How::Unknown => format!("not there, and no pattern knows it: {role}"),
    }
}

fn pattern_words(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Name(name) => format!("its name {name}"),
        Pattern::Prefix(prefix) => format!("names like {prefix}*"),
        Pattern::Kind(kind) => format!("its kind {kind}"),
    }
}

/// A step for people and for scripts.
#[derive(Clone, PartialEq, Debug)]
pub struct Line<'a> {
    /// What was looked at: "interface", "early", "essentials", "failsafe", "tier", "policy", "rule", "default", "end", "audit". A stage begins
    /// with [`Part`].
    pub kind: &'static str,
    /// Its name; empty for what has none.
    pub name: String,
    /// What came of it; empty where the next lines say it.
    pub result: String,
    /// Where it was written, if it stands in a file.
    pub place: Option<&'a Place>,
    /// What it did to the packet, or would have done.
    pub outcome: Option<Outcome>,
}

/// The steps of one stage; what concerns the packet before the first stage and after the last has none.
#[derive(Clone, PartialEq, Debug)]
pub struct Part<'a> {
    /// Stage, direction and interface.
    pub stage: Option<(Stage, Direction, Recognised<'a>)>,
    /// Its steps.
    pub lines: Vec<Line<'a>>,
}

/// All steps of a trace.
pub fn parts<'a>(trace: &Trace<'a>) -> Vec<Part<'a>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    for step in &trace.steps {
        match step {
            Step::Stage(stage, direction, interface) => {
                parts.push(Part { stage: Some((*stage, *direction, *interface)), lines: Vec::new() });
            }
            // What concerns the whole packet stands for itself.
            Step::Interface(_) | Step::Early | Step::NodeAudit(_) => {
                parts.push(Part { stage: None, lines: vec![line(step)] })
            }
            _ => match parts.last_mut() {
                Some(part) => part.lines.push(line(step)),
                None => parts.push(Part { stage: None, lines: vec![line(step)] }),
            },
        }
    }
    parts
}

fn line<'a>(step: &Step<'a>) -> Line<'a> {
    let of =
        |kind, name: &str, result: String| Line { kind, name: name.to_owned(), result, place: None, outcome: None };
    let written = |place: &'a Place| Some(place).filter(|place| place.line > 0);
    match step {
        Step::Interface(interface) => of("interface", "", recognised(interface)),
        Step::Early => of("early", "", "deny sets are asked as it arrives".to_owned()),
        // Stages are parts.
        Step::Stage(stage, ..) => of("stage", stage.name(), String::new()),
        Step::StageEnd(_, end) => of(
            "end",
            "",
            match end {
                StageEnd::Allowed => "allowed",
                StageEnd::Skipped => "skipped: an earlier stage allowed it",
                StageEnd::GoesOn => "nothing decided: it goes on",
            }
            .to_owned(),
        ),
        Step::Essential(words, outcome) => {
            Line { outcome: Some(*outcome), ..of("essentials", "", format!("{}: {words}", verdict(*outcome))) }
        }
        Step::NoEssential => of("essentials", "", "none applies".to_owned()),
        Step::Failsafe(entry, step) => {
            let (result, outcome) = match step {
                FailsafeStep::OtherInterface => ("another interface", None),
                FailsafeStep::Mismatch(mismatch) => (mismatch.words(), None),
                FailsafeStep::Accepted => ("lets it through", Some(Outcome::Accepted)),
            };
            let place = written(&entry.rule.place);
            Line { place, outcome, ..of("failsafe", &entry.name, result.to_owned()) }
        }
        Step::Tier(tier) => of("tier", &tier.name, String::new()),
        Step::Policy(policy, step) => {
            let audit = if policy.mode == Mode::Audit { "in audit mode" } else { "" };
            let result = match step {
                PolicyStep::OtherInterface => "selects other interfaces",
                PolicyStep::OtherDirection => "does not govern this direction",
                PolicyStep::Considered => audit,
            };
            Line { place: written(&policy.place), ..of("policy", &policy.name, result.to_owned()) }
        }
        Step::Rule(rule, step) => {
            let (result, outcome) = match step {
                RuleStep::Mismatch(mismatch) => (mismatch.words().to_owned(), None),
                RuleStep::Decided(outcome) => (verdict(*outcome).to_owned(), Some(*outcome)),
                RuleStep::Passed => ("passed to the next tier".to_owned(), None),
                RuleStep::Logged => ("logged".to_owned(), None),
                RuleStep::Audited(outcome) => (format!("would be {}", verdict(*outcome)), Some(*outcome)),
            };
            let name = format!("#{} {}", rule.id.number, rule.action.name());
            Line { place: written(&rule.place), outcome, ..of("rule", &name, result) }
        }
        Step::TierEnd(tier, end) => {
            let denies = *end == TierEnd::Default(TierDefault::Deny);
            let result = match end {
                TierEnd::Default(TierDefault::Deny) => "dropped: the tier's default",
                TierEnd::Default(TierDefault::Pass) => "nothing decided: the next tier",
                TierEnd::NotGoverned => "nothing governs it: the next tier",
                TierEnd::Passed => "the next tier",
            };
            Line { outcome: denies.then_some(Outcome::Dropped), ..of("end", &tier.name, result.to_owned()) }
        }
        Step::InterfaceDefault(role, direction, default) => {
            let outcome = match default {
                Default::Allow => Outcome::Accepted,
                Default::Deny => Outcome::Dropped,
            };
            let result = format!("{}: {}", verdict(outcome), default_of(*role, *direction, *default));
            Line { outcome: Some(outcome), ..of("default", "", result) }
        }
        Step::NodeAudit(outcome) => {
            let result = format!("the node is in audit mode: it would be {}, and goes through", verdict(*outcome));
            Line { outcome: Some(*outcome), ..of("audit", "", result) }
        }
    }
}
