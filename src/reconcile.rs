//! The state machine, without I/O: events in, effects out. Whatever happens, what it asks for is one of: the newest valid
//! policy on the newest facts, the last good one on the newest facts, the lockdown, or to leave the kernel as it is.

use std::sync::Arc;
use std::time::Duration;

use crate::compile::compile;
use crate::net::facts::Facts;
use crate::net::interface::{Direction, Role};
use crate::nft::ir::Ruleset;
use crate::policy::effective::{Effective, Interface};
use crate::policy::model::{Mode, Policy};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;
use crate::revoke::Revocation;
use crate::text::finding::{Finding, Severity};
use crate::text::place::Place;

/// What was loaded from the sources.
#[derive(Clone, PartialEq, Debug)]
pub struct Documents {
    /// Every valid document, merged.
    pub policy: Policy,
    /// The settings.
    pub settings: NodeSettings,
    /// What is wrong with the others.
    pub findings: Vec<Finding>,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The kernel was looked at, once at the start: whether our table is there.
    KernelSeen {
        /// Whether it is.
        table: bool,
    },
    /// The sources were read.
    DocumentsLoaded(Documents),
    /// The machine was looked at.
    FactsChanged(Facts),
    /// The kernel answered an [`Effect::Apply`].
    Applied(Result<Done, String>),
    /// The time of an [`Effect::Retry`] is over.
    RetryDue,
}

/// What an apply came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// How many changes were sent; 0 when the kernel had it all already.
    pub changes: usize,
}

/// Something is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Make the kernel have this. There is never a second one before the first is answered.
    Apply(Arc<Ruleset>),
    /// Send [`Event::RetryDue`] after this time, instead of any earlier one.
    Retry(Duration),
    /// No retry is wanted any more.
    ForgetRetry,
    /// The newest documents are dealt with: in force, or refused with the last good ones in force.
    Ready,
    /// Tell the operator.
    Report(Report),
}

/// What an operator cares about.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// A generation is in force.
    InForce {
        /// Its number.
        generation: u64,
        /// How many rules it has.
        rules: usize,
        /// How many changes it took.
        changes: usize,
        /// Whether it is the lockdown.
        lockdown: bool,
    },
    /// The newest documents have errors and are not applied.
    Refused {
        /// All findings.
        findings: Vec<Finding>,
        /// What is in force instead.
        instead: Instead,
    },
    /// The newest documents have warnings.
    Warned {
        /// All findings.
        findings: Vec<Finding>,
    },
    /// The kernel did not take a ruleset.
    Failed {
        /// What it said.
        error: String,
        /// How often in a row.
        attempt: u32,
        /// When it is tried again.
        again: Duration,
    },
    /// An interface came, or has another role than before.
    Interface {
        /// Its name.
        name: String,
        /// Its role.
        role: Role,
        /// Why it has that role.
        why: String,
    },
    /// An interface is gone.
    InterfaceGone {
        /// Its name.
        name: String,
    },
}

/// What holds while the newest documents do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instead {
    /// The last good documents of this process.
    LastGood,
    /// The table that was in the kernel when this process started.
    Found,
    /// The built-in lockdown: essentials, failsafe, interface defaults.
    Lockdown,
}

impl Instead {
    /// In words, for messages.
    pub const fn words(self) -> &'static str {
        match self {
            Self::LastGood => "the last good policy stays in force",
            Self::Found => "the table found in the kernel stays in force",
            Self::Lockdown => "the built-in lockdown is in force (essentials, failsafe, interface defaults)",
        }
    }
}

/// The state in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Not everything is known yet; the kernel is as it was found.
    Waiting,
    /// A ruleset is on its way to the kernel.
    Applying,
    /// The newest documents are in force.
    InForce,
    /// Something else than the newest documents is in force.
    Degraded,
}

impl Phase {
    /// The word of `nodewall status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Applying => "applying",
            Self::InForce => "in-force",
            Self::Degraded => "degraded",
        }
    }
}

/// What is shown about the policy on this node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Summary {
    /// The node-wide mode.
    pub mode: Mode,
    /// The interfaces with their roles, sorted by name.
    pub interfaces: Vec<Interface>,
    /// The policies in order of evaluation.
    pub policies: Vec<PolicySummary>,
    /// The failsafe entries in order.
    pub failsafe: Vec<FailsafeSummary>,
}

/// What is shown about a policy.
#[derive(Clone, PartialEq, Debug)]
pub struct PolicySummary {
    /// Its name.
    pub name: String,
    /// The name of its tier.
    pub tier: String,
    /// Enforce or audit.
    pub mode: Mode,
    /// How many rules it has in both directions.
    pub rules: usize,
    /// The interfaces there are that it selects.
    pub interfaces: Vec<String>,
    /// Where it was written.
    pub place: Place,
}

/// What is shown about a failsafe entry.
#[derive(Clone, PartialEq, Debug)]
pub struct FailsafeSummary {
    /// Its name.
    pub name: String,
    /// To this host or from it.
    pub direction: Direction,
    /// The interfaces there are that it holds on.
    pub interfaces: Vec<String>,
}

/// A ruleset with what it came from.
#[derive(Clone, Debug)]
struct Target {
    ruleset: Arc<Ruleset>,
    summary: Summary,
    lockdown: bool,
    /// Which flows it ends; none at all where the settings say so, and in the lockdown, which must not make a bad day worse.
    revocation: Option<Arc<Revocation>>,
}

/// Everything the daemon knows about what it does.
#[derive(Clone, Debug, Default)]
pub struct State {
    table_found: Option<bool>,
    facts: Option<Facts>,
    /// The newest documents, until they are judged.
    unjudged: Option<Documents>,
    /// The last documents without errors.
    good: Option<(Policy, NodeSettings)>,
    /// The settings that came with the newest documents, for the lockdown.
    settings: Option<NodeSettings>,
    /// What there is to say about the newest documents.
    findings: Vec<Finding>,
    /// Why the newest documents are not in force.
    refused: Option<String>,
    /// Why the last good documents cannot be worked out on the newest facts.
    unresolved: Option<String>,
    /// Why the kernel does not have the target.
    failed: Option<String>,
    /// What should be in force.
    target: Option<Target>,
    /// What is in force by our doing.
    in_force: Option<Target>,
    /// What is on its way to the kernel.
    flying: Option<Target>,
    /// Whether the target changed meanwhile, or a reload asked for another look.
    again: bool,
    generation: u64,
    attempts: u32,
}

/// The first pause after a failed apply; each further one is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Takes in what happened; what is to be done about it, in order.
pub fn step(state: &mut State, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    match event {
        Event::KernelSeen { table } => state.table_found = Some(table),
        Event::DocumentsLoaded(documents) => state.unjudged = Some(documents),
        Event::FactsChanged(facts) => {
            if state.facts.as_ref() == Some(&facts) {
                return effects;
            }
            state.facts = Some(facts);
        }
        Event::Applied(answer) => {
            answered(state, answer, &mut effects);
            return effects;
        }
        Event::RetryDue => {
            launch(state, &mut effects);
            return effects;
        }
    }
    decide(state, &mut effects);
    effects
}

/// Works out the target and sends it to the kernel where it has to go there.
fn decide(state: &mut State, effects: &mut Vec<Effect>) {
    // Nothing is touched before everything is known: until then what is in the kernel stays.
    let (Some(facts), Some(table_found)) = (state.facts.clone(), state.table_found) else {
        return;
    };
    let reloaded = state.unjudged.is_some();
    let mut effective = None;
    if let Some(documents) = state.unjudged.take() {
        effective = judge(state, documents, &facts, effects);
    } else if let Some((policy, settings)) = &state.good {
        let (resolved, findings) = resolve(policy, settings, &facts);
        // Facts can make good documents bad. What is in force was right until then, and stays.
        state.unresolved = first_error(&findings);
        effective = state.unresolved.is_none().then_some(resolved);
    }
    let new = match (effective, &state.good, &state.settings) {
        (Some(effective), good, _) => {
            let revoke = good.as_ref().is_some_and(|(_, settings)| settings.revoke);
            let new = target(&effective, false);
            let revocation = revoke.then(|| Arc::new(Revocation::new(Arc::new(effective), &facts)));
            Some(Target { revocation, ..new })
        }
        (None, None, Some(settings)) if !table_found => {
            let (effective, _) = resolve(&Policy::with_builtin_tiers(), settings, &facts);
            Some(target(&effective, true))
        }
        _ => None,
    };
    let Some(new) = new else {
        if reloaded {
            effects.push(Effect::Ready);
        }
        return;
    };
    if let Some(old) = &state.target {
        report_interfaces(&old.summary.interfaces, &new.summary.interfaces, effects);
    }
    let same = state.target.as_ref().is_some_and(|old| old.ruleset == new.ruleset);
    state.target = Some(match state.target.take() {
        // The very same allocation, so that it is recognised when it comes back from the kernel.
        Some(old) if same => Target { ruleset: old.ruleset, ..new },
        _ => new,
    });
    if same
        && !reloaded
        && let (Some(in_force), Some(target)) = (&mut state.in_force, &state.target)
        && Arc::ptr_eq(&in_force.ruleset, &target.ruleset)
    {
        in_force.summary = target.summary.clone();
        return;
    }
    // A reload looks at the kernel even when nothing changed: it is what an operator does about a doubt.
    launch(state, effects);
}

/// Whether documents are good; what they come to, if they are, or what the last good ones come to, if they are not.
fn judge(state: &mut State, documents: Documents, facts: &Facts, effects: &mut Vec<Effect>) -> Option<Effective> {
    let Documents { policy, settings, mut findings } = documents;
    let (effective, resolved) = resolve(&policy, &settings, facts);
    findings.extend(resolved);
    let error = first_error(&findings);
    state.findings.clone_from(&findings);
    state.settings = Some(settings.clone());
    state.refused.clone_from(&error);
    if error.is_none() {
        if !findings.is_empty() {
            effects.push(Effect::Report(Report::Warned { findings }));
        }
        state.good = Some((policy, settings));
        state.unresolved = None;
        return Some(effective);
    }
    let instead = match (&state.good, state.table_found) {
        (Some(_), _) => Instead::LastGood,
        (None, Some(true)) => Instead::Found,
        (None, _) => Instead::Lockdown,
    };
    effects.push(Effect::Report(Report::Refused { findings, instead }));
    let (policy, settings) = state.good.as_ref()?;
    let (effective, findings) = resolve(policy, settings, facts);
    state.unresolved = first_error(&findings);
    state.unresolved.is_none().then_some(effective)
}

fn first_error(findings: &[Finding]) -> Option<String> {
    let mut errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let first = errors.next()?;
    let others = match errors.count() {
        0 => String::new(),
        1 => " (and 1 more error)".to_owned(),
        more => format!(" (and {more} more errors)"),
    };
    Some(format!("{}: {}{others}", first.place, first.message))
}

fn target(effective: &Effective, lockdown: bool) -> Target {
    Target { ruleset: Arc::new(compile(effective)), summary: summary(effective), lockdown, revocation: None }
}

/// Sends the target to the kernel, now or as soon as the kernel has answered.
fn launch(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(target) = &state.target else { return };
    if state.flying.is_some() {
        state.again = true;
        return;
    }
    effects.push(Effect::Apply(Arc::clone(&target.ruleset)));
    state.flying = Some(target.clone());
    state.again = false;
}

/// The kernel answered.
fn answered(state: &mut State, answer: Result<Done, String>, effects: &mut Vec<Effect>) {
    let Some(landed) = state.flying.take() else { return };
    let is_target = state.target.as_ref().is_some_and(|target| Arc::ptr_eq(&target.ruleset, &landed.ruleset));
    match answer {
        Ok(done) => {
            let known = state.in_force.as_ref().is_some_and(|old| old.ruleset == landed.ruleset);
            if !known {
                state.generation += 1;
            }
            if !known || done.changes > 0 {
                effects.push(Effect::Report(Report::InForce {
                    generation: state.generation,
                    rules: rules(&landed.ruleset),
                    changes: done.changes,
                    lockdown: landed.lockdown,
                }));
            }
            state.in_force = Some(landed);
            if is_target {
                if let (Some(in_force), Some(target)) = (&mut state.in_force, &state.target) {
                    in_force.summary = target.summary.clone();
                }
                state.failed = None;
                state.attempts = 0;
                effects.push(Effect::ForgetRetry);
            }
            let dealt_with = !state.again || state.in_force.as_ref().is_some_and(|target| target.lockdown);
            if state.again {
                launch(state, effects);
            }
            if dealt_with {
                effects.push(Effect::Ready);
            }
        }
        Err(error) if is_target || !landed.lockdown => {
            state.attempts = state.attempts.saturating_add(1);
            let again = pause(state.attempts);
            state.failed = Some(error.clone());
            effects.push(Effect::Report(Report::Failed { error, attempt: state.attempts, again }));
            if state.again {
                // Something newer is there: it need not wait for what failed.
                launch(state, effects);
            } else {
                effects.push(Effect::Retry(again));
                lock_down(state, effects);
                if state.in_force.is_some() || state.table_found == Some(true) {
                    effects.push(Effect::Ready);
                }
            }
        }
        Err(error) => {
            // The lockdown in place of a target that the kernel refused was refused, too; the retry is under way.
            state.failed = Some(error);
        }
    }
}

/// With nothing of ours in the kernel, and the kernel refusing what should be there, the lockdown is better than nothing.
fn lock_down(state: &mut State, effects: &mut Vec<Effect>) {
    if state.in_force.is_some() || state.table_found == Some(true) || state.target.as_ref().is_none_or(|t| t.lockdown) {
        return;
    }
    let (Some(facts), Some(settings)) = (&state.facts, &state.settings) else { return };
    let (effective, _) = resolve(&Policy::with_builtin_tiers(), settings, facts);
    let lockdown = target(&effective, true);
    effects.push(Effect::Apply(Arc::clone(&lockdown.ruleset)));
    state.flying = Some(lockdown);
}

fn pause(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    FIRST_RETRY.saturating_mul(1 << doublings).min(LONGEST_RETRY)
}

fn rules(ruleset: &Ruleset) -> usize {
    ruleset.chains.values().map(|chain| chain.rules.len()).sum()
}

fn report_interfaces(old: &[Interface], new: &[Interface], effects: &mut Vec<Effect>) {
    for interface in new {
        if !old.iter().any(|known| known.name == interface.name && known.role == interface.role) {
            effects.push(Effect::Report(Report::Interface {
                name: interface.name.to_string(),
                role: interface.role,
                why: interface.why.clone(),
            }));
        }
    }
    for gone in old.iter().filter(|known| !new.iter().any(|interface| interface.name == known.name)) {
        effects.push(Effect::Report(Report::InterfaceGone { name: gone.name.to_string() }));
    }
}

/// What is shown about an effective policy.
pub fn summary(effective: &Effective) -> Summary {
    let selected = |selector: &crate::policy::selector::Selector| -> Vec<String> {
        effective
            .interfaces
            .iter()
            .filter(|interface| selector.matches(&interface.labels))
            .map(|interface| interface.name.to_string())
            .collect()
    };
    let policies = effective
        .tiers
        .iter()
        .flat_map(|tier| tier.policies.iter().map(move |policy| (tier, policy)))
        .map(|(tier, policy)| PolicySummary {
            name: policy.name.clone(),
            tier: tier.name.clone(),
            mode: policy.mode,
            rules: Direction::BOTH.iter().filter_map(|direction| policy.rules(*direction)).map(<[_]>::len).sum(),
            interfaces: selected(&policy.interfaces),
            place: policy.place.clone(),
        })
        .collect();
    let failsafe = effective
        .failsafe
        .iter()
        .map(|entry| FailsafeSummary {
            name: entry.name.clone(),
            direction: entry.direction,
            interfaces: selected(&entry.interfaces),
        })
        .collect();
    Summary { mode: effective.mode, interfaces: effective.interfaces.clone(), policies, failsafe }
}

impl State {
    /// Which flows the ruleset that is on its way to the kernel ends.
    pub fn revocation(&self) -> Option<Arc<Revocation>> {
        self.flying.as_ref()?.revocation.clone()
    }

    /// The state in one word.
    pub fn phase(&self) -> Phase {
        let lockdown = self.in_force.as_ref().is_some_and(|target| target.lockdown);
        if self.refused.is_some() || self.unresolved.is_some() || self.failed.is_some() || lockdown {
            Phase::Degraded
        } else if self.flying.is_some() {
            Phase::Applying
        } else if self.in_force.is_some() {
            Phase::InForce
        } else {
            Phase::Waiting
        }
    }

    /// Why the phase is [`Phase::Degraded`], in one sentence.
    pub fn reason(&self) -> Option<String> {
        let instead = match &self.in_force {
            Some(target) if target.lockdown => Instead::Lockdown.words(),
            Some(_) => Instead::LastGood.words(),
            None if self.table_found == Some(true) => Instead::Found.words(),
            None => "nothing of ours is in force",
        };
        let reason = self.refused.as_ref().or(self.unresolved.as_ref()).or(self.failed.as_ref())?;
        Some(format!("{reason}; {instead}"))
    }

    /// The number of the generation in force: how many different rulesets this process has put in force.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the newest documents were found to have.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What is in force by our doing.
    pub fn in_force(&self) -> Option<&Arc<Ruleset>> {
        self.in_force.as_ref().map(|target| &target.ruleset)
    }

    /// What the kernel has when it has dealt with all that was asked of it: what is on its way, else what is in force.
    pub fn last_sent(&self) -> Option<&Arc<Ruleset>> {
        self.flying.as_ref().or(self.in_force.as_ref()).map(|target| &target.ruleset)
    }

    /// What is shown about what is in force, or about what should be.
    pub fn summary(&self) -> Option<&Summary> {
        self.in_force.as_ref().or(self.target.as_ref()).map(|target| &target.summary)
    }

    /// The line for `systemctl status`.
    pub fn status_line(&self) -> String {
        let what = match (self.phase(), self.summary()) {
            (Phase::Waiting, _) => "waiting for policy and interfaces".to_owned(),
            (Phase::Applying, _) => "applying".to_owned(),
            (Phase::Degraded, _) => return format!("degraded: {}", self.reason().unwrap_or_default()),
            (Phase::InForce, None) => "in force".to_owned(),
            (Phase::InForce, Some(summary)) => {
                let rules = self.in_force().map_or(0, |ruleset| rules(ruleset));
                let audit = if summary.mode == Mode::Audit { ", audit only" } else { "" };
                format!(
                    "in force: {} policies, {rules} rules, {} interfaces{audit}",
                    summary.policies.len(),
                    summary.interfaces.len()
                )
            }
        };
        match self.generation {
            0 => what,
            generation => format!("generation {generation} {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::net::facts::Link;
    use crate::net::interface::InterfaceName;
    use crate::policy::model::{HostPolicy, Tier, TierDefault};
    use crate::policy::selector::Selector;
    use crate::policy::settings::LogSettings;
    use crate::text::finding::Code;

    fn place(file: &str) -> Place {
        Place { line: 3, column: 1, ..Place::file(file) }
    }

    /// Documents with one policy of this name that denies everything on the interfaces of a role.
    fn documents(name: &str) -> Documents {
        let mut policy = Policy::with_builtin_tiers();
        let tier = Tier { name: name.into(), order: 1, default: TierDefault::Deny, place: place("10.toml") };
        policy.tiers.insert(name.to_owned(), tier);
        policy.policies.push(HostPolicy {
            name: name.to_owned(),
            tier: name.to_owned(),
            order: None,
            interfaces: Selector::All,
            nodes: Selector::All,
            mode: Mode::Enforce,
            ingress: Some(Vec::new()),
            egress: None,
            place: place("10.toml"),
            tier_place: place("10.toml"),
        });
        let settings = NodeSettings {
            mode: Mode::Enforce,
            labels: Default::default(),
            failsafe: Vec::new(),
            defaults: Default::default(),
            drop_invalid: true,
            revoke: false,
            log: LogSettings { group: 5, rate: 1, burst: 1 },
        };
        Documents { policy, settings, findings: Vec::new() }
    }

    fn bad(name: &str) -> Documents {
        let finding = Finding::error(Code::UnknownKey, &place("20.toml"), "\"x\" is not a key");
        Documents { findings: vec![finding], ..documents(name) }
    }

    fn facts(names: &[&str]) -> Facts {
        let link = |(index, name): (usize, &&str)| {
            (index as u32 + 1, Link::named(index as u32 + 1, InterfaceName::new(name).unwrap()))
        };
        Facts { links: names.iter().enumerate().map(link).collect(), ..Facts::default() }
    }

    /// The effects in one word each.
    fn words(effects: &[Effect]) -> Vec<String> {
        effects
            .iter()
            .map(|effect| match effect {
                Effect::Apply(_) => "apply".to_owned(),
                Effect::Retry(after) => format!("retry {after:?}"),
                Effect::ForgetRetry => "forget".to_owned(),
                Effect::Ready => "ready".to_owned(),
                Effect::Report(Report::InForce { generation, lockdown, .. }) => {
                    format!("{} {generation}", if *lockdown { "lockdown" } else { "in-force" })
                }
                Effect::Report(Report::Refused { instead, .. }) => format!("refused, {instead:?}"),
                Effect::Report(Report::Warned { .. }) => "warned".to_owned(),
                Effect::Report(Report::Failed { attempt, .. }) => format!("failed {attempt}"),
                Effect::Report(Report::Interface { name, role, .. }) => format!("{name} is {role}"),
                Effect::Report(Report::InterfaceGone { name }) => format!("{name} is gone"),
            })
            .collect()
    }

    #[track_caller]
    fn check(state: &mut State, event: Event, expected: &[&str], phase: Phase) {
        let effects = step(state, event);
        assert_eq!(words(&effects), expected);
        assert_eq!(state.phase(), phase, "{:?}", state.reason());
    }

    fn done() -> Event {
        Event::Applied(Ok(Done { changes: 7 }))
    }

    /// A state in which the policy "a" is in force on eth0.
    fn in_force() -> State {
        let mut state = State::default();
        for event in [
            Event::KernelSeen { table: false },
            Event::FactsChanged(facts(&["eth0"])),
            Event::DocumentsLoaded(documents("a")),
            done(),
        ] {
            step(&mut state, event);
        }
        assert_eq!(state.phase(), Phase::InForce);
        state
    }

    #[test]
    fn nothing_is_touched_before_everything_is_known_in_whatever_order_it_comes() {
        let events = [
            Event::KernelSeen { table: true },
            Event::FactsChanged(facts(&["eth0"])),
            Event::DocumentsLoaded(documents("a")),
        ];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut state = State::default();
            check(&mut state, events[order[0]].clone(), &[], Phase::Waiting);
            check(&mut state, events[order[1]].clone(), &[], Phase::Waiting);
            check(&mut state, events[order[2]].clone(), &["apply"], Phase::Applying);
            check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
        }
    }

    #[test]
    fn facts_that_are_the_same_are_no_work() {
        let mut state = in_force();
        check(&mut state, Event::FactsChanged(facts(&["eth0"])), &[], Phase::InForce);
        check(&mut state, Event::FactsChanged(facts(&["eth0", "cali1"])), &["cali1 is pod", "apply"], Phase::Applying);
        check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
        check(&mut state, Event::FactsChanged(facts(&["eth0"])), &["cali1 is gone", "apply"], Phase::Applying);
    }

    #[test]
    fn one_transaction_at_a_time_and_the_newest_afterwards() {
        let mut state = in_force();
        check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &["a1 is unknown", "apply"], Phase::Applying);
        check(&mut state, Event::FactsChanged(facts(&["eth0", "a1", "a2"])), &["a2 is unknown"], Phase::Applying);
        check(
            &mut state,
            Event::FactsChanged(facts(&["eth0", "a1", "a3"])),
            &["a3 is unknown", "a2 is gone"],
            Phase::Applying,
        );
        check(&mut state, done(), &["in-force 2", "apply"], Phase::Applying);
        check(&mut state, done(), &["in-force 3", "forget", "ready"], Phase::InForce);
        assert_eq!(state.summary().unwrap().interfaces.len(), 3);
    }

    #[test]
    fn a_reload_looks_at_the_kernel_even_when_nothing_changed() {
        let mut state = in_force();
        check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
        check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
        assert_eq!(state.generation(), 1);
    }

    #[test]
    fn bad_documents_leave_the_last_good_ones_in_force_which_follow_the_links() {
        let mut state = in_force();
        check(&mut state, Event::DocumentsLoaded(bad("b")), &["refused, LastGood", "apply"], Phase::Degraded);
        check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::Degraded);
        assert_eq!(
            state.reason().as_deref(),
            Some("20.toml:3:1: \"x\" is not a key; the last good policy stays in force")
        );
        check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &["a1 is unknown", "apply"], Phase::Degraded);
        check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::Degraded);
        assert_eq!(state.summary().unwrap().policies[0].name, "a");
        check(&mut state, Event::DocumentsLoaded(documents("b")), &["apply"], Phase::Applying);
        check(&mut state, done(), &["in-force 3", "forget", "ready"], Phase::InForce);
    }

    #[test]
    fn bad_documents_at_the_first_start_lock_down_or_keep_what_is_there() {
        let mut state = State::default();
        step(&mut state, Event::KernelSeen { table: false });
        step(&mut state, Event::FactsChanged(facts(&["eth0"])));
        check(&mut state, Event::DocumentsLoaded(bad("a")), &["refused, Lockdown", "apply"], Phase::Degraded);
        check(&mut state, done(), &["lockdown 1", "forget", "ready"], Phase::Degraded);
        assert!(state.summary().unwrap().policies.is_empty());
        check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Degraded);
        check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);

        let mut state = State::default();
        step(&mut state, Event::KernelSeen { table: true });
        step(&mut state, Event::FactsChanged(facts(&["eth0"])));
        check(&mut state, Event::DocumentsLoaded(bad("a")), &["refused, Found", "ready"], Phase::Degraded);
        check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &[], Phase::Degraded);
        assert!(state.reason().unwrap().ends_with("; the table found in the kernel stays in force"));
    }

    #[test]
    fn a_failed_apply_is_tried_again_ever_more_slowly_and_what_is_in_force_stays() {
        let mut state = in_force();
        let refused = || Event::Applied(Err("the kernel refused chain input: EBUSY".to_owned()));
        step(&mut state, Event::DocumentsLoaded(documents("b")));
        for (attempt, pause) in
            [(1, "100ms"), (2, "200ms"), (3, "400ms"), (4, "800ms"), (5, "1.6s"), (6, "3.2s"), (7, "5s"), (8, "5s")]
        {
            let (failed, retry) = (format!("failed {attempt}"), format!("retry {pause}"));
            check(&mut state, refused(), &[&failed, &retry, "ready"], Phase::Degraded);
            check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
        }
        assert_eq!(state.summary().unwrap().policies[0].name, "a");
        check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
    }

    #[test]
    fn a_first_apply_that_fails_locks_down_and_goes_on_trying() {
        let mut state = State::default();
        step(&mut state, Event::KernelSeen { table: false });
        step(&mut state, Event::FactsChanged(facts(&["eth0"])));
        step(&mut state, Event::DocumentsLoaded(documents("a")));
        let refused = || Event::Applied(Err("no".to_owned()));
        check(&mut state, refused(), &["failed 1", "retry 100ms", "apply"], Phase::Degraded);
        check(&mut state, done(), &["lockdown 1", "ready"], Phase::Degraded);
        check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
        check(&mut state, refused(), &["failed 2", "retry 200ms", "ready"], Phase::Degraded);
        check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
        check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
    }
}
