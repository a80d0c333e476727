//! The evaluation itself: stage by stage essentials, failsafe, tiers and the interface's default, in the order of `policy.md`
//! section 3.

use super::decision::{Decision, Outcome, Reason};
use super::essential::{essential, followed, guard};
use super::interface::{Recognised, is_loopback, recognise};
use super::matching::{Mismatch, matches};
use super::packet::{ConntrackState, Origin, Packet};
use super::trace::{FailsafeStep, PolicyStep, RuleStep, StageEnd, Step, TierEnd, Trace};
use crate::net::interface::Direction;
use crate::policy::early;
use crate::policy::effective::{Effective, EffectivePolicy, EffectiveRule, EffectiveTier, RuleId};
use crate::policy::model::{Action, Mode, Stage, TierDefault};
use crate::policy::settings::Default;

/// Evaluates a packet and keeps every step.
pub fn trace<'a>(effective: &'a Effective, packet: &Packet) -> Trace<'a> {
    let mut evaluation = Evaluation { effective, notes: Notes::default() };
    let (reason, outcome) = evaluation.run(packet);
    let Notes { mut steps, mut audited, logged, unsure } = evaluation.notes;
    let decision = match effective.mode {
        Mode::Enforce => Decision { outcome, reason, audited, logged, unsure },
        Mode::Audit => {
            if outcome != Outcome::Accepted {
                steps.push(Step::NodeAudit(outcome));
                audited.push((reason.clone(), outcome));
            }
            Decision { outcome: Outcome::Accepted, reason, audited, logged, unsure }
        }
    };
    Trace { steps, decision }
}

struct Evaluation<'a> {
    effective: &'a Effective,
    notes: Notes<'a>,
}

#[derive(Default)]
struct Notes<'a> {
    steps: Vec<Step<'a>>,
    audited: Vec<(Reason, Outcome)>,
    logged: Vec<RuleId>,
    unsure: bool,
}

/// A packet in one stage.
struct Visit<'a, 'p> {
    stage: Stage,
    direction: Direction,
    interface: Recognised<'a>,
    packet: &'p Packet,
}

/// Where a stage, tier or policy leads.
enum Way {
    Decided(Reason, Outcome),
    NextTier,
    GoOn,
}

/// How a stage ends.
enum End {
    /// Denied, or in the stages of a packet's end accepted: nothing comes after it.
    Final(Reason, Outcome),
    /// Allowed by a rule: in an early stage later ones are skipped.
    Allowed(Reason),
    /// The next stage decides.
    GoOn,
}

impl<'a> Evaluation<'a> {
    fn run(&mut self, packet: &Packet) -> (Reason, Outcome) {
        let arrives = recognise(self.effective, &packet.interface, packet.kind.as_deref());
        self.step(Step::Interface(arrives));
        if packet.direction == Direction::Ingress
            && let Some(reason) = self.early(arrives, packet)
        {
            return (reason, Outcome::Dropped);
        }
        let translated = packet.after_nat();
        let mut stages = vec![(Stage::Untracked, packet.direction, arrives, packet)];
        match (packet.direction, &packet.forward) {
            (Direction::Egress, _) => stages.push((Stage::Host, Direction::Egress, arrives, &translated)),
            (Direction::Ingress, None) => {
                stages.push((Stage::Prednat, Direction::Ingress, arrives, packet));
                stages.push((Stage::Host, Direction::Ingress, arrives, &translated));
            }
            (Direction::Ingress, Some(exit)) => {
                let leaves = recognise(self.effective, &exit.interface, exit.kind.as_deref());
                stages.push((Stage::Prednat, Direction::Ingress, arrives, packet));
                stages.push((Stage::Forward, Direction::Ingress, arrives, &translated));
                stages.push((Stage::Forward, Direction::Egress, leaves, &translated));
            }
        }
        let mut allowed: Option<Reason> = None;
        let (mut skipping, mut untracked) = (false, false);
        for (stage, direction, interface, packet) in stages {
            let visit = Visit { stage, direction, interface, packet };
            if stage != Stage::Host && !self.governs(&visit) {
                continue;
            }
            self.step(Step::Stage(stage, direction, interface));
            if skipping {
                if let Some(words) = self.dropped_all_the_same(&visit, untracked) {
                    self.step(Step::Essential(words, Outcome::Dropped));
                    return (Reason::Essential(words), Outcome::Dropped);
                }
                self.step(Step::StageEnd(stage, StageEnd::Skipped));
                continue;
            }
            match self.stage(&visit) {
                End::Final(reason, outcome) => return (reason, outcome),
                End::Allowed(reason) => {
                    self.step(Step::StageEnd(stage, StageEnd::Allowed));
                    skipping = matches!(stage, Stage::Untracked | Stage::Prednat);
                    untracked = stage == Stage::Untracked && self.effective.mode == Mode::Enforce;
                    allowed = Some(reason);
                }
                End::GoOn => self.step(Step::StageEnd(stage, StageEnd::GoesOn)),
            }
        }
        (allowed.unwrap_or(Reason::NoPolicy), Outcome::Accepted)
    }

    /// The denials that hold as a packet arrives.
    fn early(&mut self, interface: Recognised<'a>, packet: &Packet) -> Option<Reason> {
        let rules = early::rules(self.effective, interface.role, interface.labels);
        let at = (Stage::Untracked, Direction::Ingress);
        let essential = || essential(self.effective, interface.labels, packet, at);
        if rules.is_empty() || is_loopback(self.effective, packet) || essential().is_some() {
            return None;
        }
        self.step(Step::Early);
        let entries = self.effective.failsafe.iter().filter(|entry| entry.interfaces.matches(interface.labels));
        let mut ways_in = entries.flat_map(|entry| entry.rules(Direction::Ingress));
        if ways_in.any(|rule| matches(rule, packet).is_ok()) {
            return None;
        }
        for rule in rules {
            match matches(rule, packet) {
                Err(mismatch) => self.step(Step::Rule(rule, RuleStep::Mismatch(mismatch))),
                Ok(()) => {
                    self.step(Step::Rule(rule, RuleStep::Decided(Outcome::Dropped)));
                    return Some(Reason::Rule(rule.id.clone()));
                }
            }
        }
        None
    }

    /// What was allowed by an earlier stage is still dropped by what the host stage drops before anything else.
    fn dropped_all_the_same(&self, visit: &Visit<'a, '_>, untracked: bool) -> Option<&'static str> {
        let state = if untracked { ConntrackState::Untracked } else { visit.packet.state };
        let packet = Packet { state, ..visit.packet.clone() };
        (visit.stage == Stage::Host && followed(self.effective, &packet, visit.stage).is_none())
            .then(|| guard(self.effective, &packet, (visit.stage, visit.direction)))
            .flatten()
    }

    fn step(&mut self, step: Step<'a>) {
        self.notes.steps.push(step);
    }

    /// Whether a policy of the stage has a say on the interface and direction; without one the stage is not there.
    fn governs(&self, visit: &Visit<'a, '_>) -> bool {
        let mut policies = self.effective.tiers.iter().flat_map(|tier| &tier.policies);
        policies.any(|policy| {
            policy.stage == visit.stage
                && policy.rules(visit.direction).is_some()
                && policy.interfaces.matches(visit.interface.labels)
        })
    }

    fn stage(&mut self, visit: &Visit<'a, '_>) -> End {
        let at = (visit.stage, visit.direction);
        // In the early stages an essential is no more than the end of the stage; those after it have their own.
        let accept = |words| match visit.stage {
            Stage::Untracked | Stage::Prednat => End::GoOn,
            Stage::Host | Stage::Forward => End::Final(Reason::Essential(words), Outcome::Accepted),
        };
        if let Some(words) = followed(self.effective, visit.packet, visit.stage) {
            self.step(Step::Essential(words, Outcome::Accepted));
            return accept(words);
        }
        if let Some(words) = guard(self.effective, visit.packet, at) {
            self.step(Step::Essential(words, Outcome::Dropped));
            return End::Final(Reason::Essential(words), Outcome::Dropped);
        }
        if let Some(words) = essential(self.effective, visit.interface.labels, visit.packet, at) {
            self.step(Step::Essential(words, Outcome::Accepted));
            return accept(words);
        }
        self.step(Step::NoEssential);
        if let Some(reason) = self.failsafe(visit) {
            return match visit.stage {
                Stage::Host => End::Final(reason, Outcome::Accepted),
                Stage::Untracked | Stage::Prednat => End::GoOn,
                Stage::Forward => End::Allowed(reason),
            };
        }
        let effective = self.effective;
        for tier in &effective.tiers {
            match self.tier(tier, visit) {
                Some((reason, Outcome::Accepted)) if visit.stage != Stage::Host => return End::Allowed(reason),
                Some((reason, outcome)) => return End::Final(reason, outcome),
                None => {}
            }
        }
        match visit.stage {
            Stage::Host => self.interface_default(visit),
            Stage::Untracked | Stage::Prednat | Stage::Forward => End::GoOn,
        }
    }

    fn failsafe(&mut self, visit: &Visit<'a, '_>) -> Option<Reason> {
        for entry in &self.effective.failsafe {
            // Only before connection tracking do the answers need it.
            if entry.direction != visit.direction && visit.stage != Stage::Untracked {
                continue;
            }
            if !entry.interfaces.matches(visit.interface.labels) {
                self.step(Step::Failsafe(entry, FailsafeStep::OtherInterface));
                continue;
            }
            for rule in entry.rules(visit.direction) {
                match matches(rule, visit.packet) {
                    Err(mismatch) => self.step(Step::Failsafe(entry, FailsafeStep::Mismatch(mismatch))),
                    Ok(()) => {
                        self.step(Step::Failsafe(entry, FailsafeStep::Accepted));
                        return Some(Reason::Rule(rule.id.clone()));
                    }
                }
            }
        }
        None
    }

    fn tier(&mut self, tier: &'a EffectiveTier, visit: &Visit<'a, '_>) -> Option<(Reason, Outcome)> {
        self.step(Step::Tier(tier));
        // A policy in audit mode changes no verdict, so it does not bring the tier's default down on anybody either.
        let mut governed = false;
        for policy in tier.policies.iter().filter(|policy| policy.stage == visit.stage) {
            let Some(rules) = self.considered(policy, visit) else { continue };
            governed |= policy.mode == Mode::Enforce;
            match self.rules(policy, rules, visit.packet) {
                Way::Decided(reason, outcome) => return Some((reason, outcome)),
                Way::NextTier => {
                    self.step(Step::TierEnd(tier, TierEnd::Passed));
                    return None;
                }
                Way::GoOn => {}
            }
        }
        self.step(Step::TierEnd(tier, if governed { TierEnd::Default(tier.default) } else { TierEnd::NotGoverned }));
        (governed && tier.default == TierDefault::Deny)
            .then(|| (Reason::TierDefault(tier.name.clone()), Outcome::Dropped))
    }

    fn considered(&mut self, policy: &'a EffectivePolicy, visit: &Visit<'a, '_>) -> Option<&'a [EffectiveRule]> {
        let rules = policy.rules(visit.direction);
        let step = match rules {
            _ if !policy.interfaces.matches(visit.interface.labels) => PolicyStep::OtherInterface,
            None => PolicyStep::OtherDirection,
            Some(_) => PolicyStep::Considered,
        };
        self.step(Step::Policy(policy, step));
        rules.filter(|_| step == PolicyStep::Considered)
    }

    fn rules(&mut self, policy: &'a EffectivePolicy, rules: &'a [EffectiveRule], packet: &Packet) -> Way {
        for rule in rules {
            if let Err(mismatch) = matches(rule, packet) {
                self.notes.unsure |= mismatch == Mismatch::Process && packet.origin == Origin::Unknown;
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
                return Way::GoOn;
            }
            if rule.action == Action::Pass {
                self.step(Step::Rule(rule, RuleStep::Passed));
                return Way::NextTier;
            }
            self.step(Step::Rule(rule, RuleStep::Decided(outcome)));
            return Way::Decided(reason, outcome);
        }
        Way::GoOn
    }

    fn interface_default(&mut self, visit: &Visit<'a, '_>) -> End {
        let (role, direction) = (visit.interface.role, visit.direction);
        // Every role and direction has a default; should one be missing, the shut side is the safe one.
        let default = self.effective.defaults.get(&(role, direction)).copied().unwrap_or(Default::Deny);
        self.step(Step::InterfaceDefault(role, direction, default));
        let outcome = match default {
            Default::Allow => Outcome::Accepted,
            Default::Deny => Outcome::Dropped,
        };
        End::Final(Reason::InterfaceDefault, outcome)
    }
}
