//! The evaluation itself: essentials, failsafe, tiers, the interface's default, in the order of `policy.md` section 3.

use super::decision::{Decision, Outcome, Reason};
use super::essential::essential;
use super::interface::{Recognised, recognise};
use super::matching::matches;
use super::packet::Packet;
use super::trace::{FailsafeStep, PolicyStep, RuleStep, Step, TierEnd, Trace};
use crate::policy::effective::{Effective, EffectivePolicy, EffectiveRule, EffectiveTier, RuleId};
use crate::policy::model::{Action, Mode, TierDefault};
use crate::policy::settings::Default;

/// Evaluates a packet and keeps every step.
pub fn trace<'a>(effective: &'a Effective, packet: &Packet) -> Trace<'a> {
    let mut evaluation =
        Evaluation { effective, packet, interface: recognise(effective, packet), notes: Notes::default() };
    let (reason, outcome) = evaluation.run();
    let Notes { mut steps, mut audited, logged } = evaluation.notes;
    let decision = match effective.mode {
        Mode::Enforce => Decision { outcome, reason, audited, logged },
        Mode::Audit => {
            if outcome != Outcome::Accepted {
                steps.push(Step::NodeAudit(outcome));
                audited.push((reason.clone(), outcome));
            }
            Decision { outcome: Outcome::Accepted, reason, audited, logged }
        }
    };
    Trace { steps, decision }
}

struct Evaluation<'a, 'p> {
    effective: &'a Effective,
    packet: &'p Packet,
    interface: Recognised<'a>,
    notes: Notes<'a>,
}

#[derive(Default)]
struct Notes<'a> {
    steps: Vec<Step<'a>>,
    audited: Vec<(Reason, Outcome)>,
    logged: Vec<RuleId>,
}

/// Where a policy or tier leads.
enum Way {
    Decided(Reason, Outcome),
    NextTier,
    NextPolicy,
}

impl<'a> Evaluation<'a, '_> {
    fn run(&mut self) -> (Reason, Outcome) {
        self.step(Step::Interface(self.interface));
        if let Some((words, outcome)) = essential(self.effective, self.packet) {
            self.step(Step::Essential(words, outcome));
            return (Reason::Essential(words), outcome);
        }
        self.step(Step::NoEssential);
        if let Some(decided) = self.failsafe() {
            return decided;
        }
        for tier in &self.effective.tiers {
            if let Some(decided) = self.tier(tier) {
                return decided;
            }
        }
        self.interface_default()
    }

    fn step(&mut self, step: Step<'a>) {
        self.notes.steps.push(step);
    }

    fn failsafe(&mut self) -> Option<(Reason, Outcome)> {
        for entry in &self.effective.failsafe {
            if entry.direction != self.packet.direction {
                continue;
            }
            let step = if !entry.interfaces.matches(self.interface.labels) {
                FailsafeStep::OtherInterface
            } else {
                match matches(&entry.rule, self.packet) {
                    Err(mismatch) => FailsafeStep::Mismatch(mismatch),
                    Ok(()) => FailsafeStep::Accepted,
                }
            };
            self.step(Step::Failsafe(entry, step));
            if step == FailsafeStep::Accepted {
                return Some((Reason::Rule(entry.rule.id.clone()), Outcome::Accepted));
            }
        }
        None
    }

    fn tier(&mut self, tier: &'a EffectiveTier) -> Option<(Reason, Outcome)> {
        self.step(Step::Tier(tier));
        // A policy in audit mode changes no verdict, so it does not bring the tier's default down on anybody either.
        let mut governed = false;
        for policy in &tier.policies {
            let Some(rules) = self.considered(policy) else { continue };
            governed |= policy.mode == Mode::Enforce;
            match self.rules(policy, rules) {
                Way::Decided(reason, outcome) => return Some((reason, outcome)),
                Way::NextTier => {
                    self.step(Step::TierEnd(tier, TierEnd::Passed));
                    return None;
                }
                Way::NextPolicy => {}
            }
        }
        self.step(Step::TierEnd(tier, if governed { TierEnd::Default(tier.default) } else { TierEnd::NotGoverned }));
        (governed && tier.default == TierDefault::Deny)
            .then(|| (Reason::TierDefault(tier.name.clone()), Outcome::Dropped))
    }

    fn considered(&mut self, policy: &'a EffectivePolicy) -> Option<&'a [EffectiveRule]> {
        let rules = policy.rules(self.packet.direction);
        let step = match rules {
            _ if !policy.interfaces.matches(self.interface.labels) => PolicyStep::OtherInterface,
            None => PolicyStep::OtherDirection,
            Some(_) => PolicyStep::Considered,
        };
        self.step(Step::Policy(policy, step));
        rules.filter(|_| step == PolicyStep::Considered)
    }

    fn rules(&mut self, policy: &'a EffectivePolicy, rules: &'a [EffectiveRule]) -> Way {
        for rule in rules {
            if let Err(mismatch) = matches(rule, self.packet) {
                self.step(Step::Rule(rule, RuleStep::Mismatch(mismatch)));
                continue;
            }
            let outcome = match rule.action {
                Action::Log => {
                    self.step(Step::Rule(rule, RuleStep::Logged));
                    self.notes.logged.push(rule.id.clone());
                    continue;
                }
                Action::Allow | Action::Pass => Outcome::Accepted,
                Action::Deny => Outcome::Dropped,
                Action::Reject => Outcome::Rejected,
            };
            let reason = Reason::Rule(rule.id.clone());
            if policy.mode == Mode::Audit {
                self.step(Step::Rule(rule, RuleStep::Audited(outcome)));
                self.notes.audited.push((reason, outcome));
                return Way::NextPolicy;
            }
            if rule.action == Action::Pass {
                self.step(Step::Rule(rule, RuleStep::Passed));
                return Way::NextTier;
            }
            self.step(Step::Rule(rule, RuleStep::Decided(outcome)));
            return Way::Decided(reason, outcome);
        }
        Way::NextPolicy
    }

    fn interface_default(&mut self) -> (Reason, Outcome) {
        let (role, direction) = (self.interface.role, self.packet.direction);
        // Every role and direction has a default; should one be missing, the shut side is the safe one.
        let default = self.effective.defaults.get(&(role, direction)).copied().unwrap_or(Default::Deny);
        self.step(Step::InterfaceDefault(role, direction, default));
        let outcome = match default {
            Default::Allow => Outcome::Accepted,
            Default::Deny => Outcome::Dropped,
        };
        (Reason::InterfaceDefault, outcome)
    }
}
