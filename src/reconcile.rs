//! The state machine, without I/O: events in, effects out. Whatever happens, what it asks for is one of: the newest valid
//! policy on the newest facts, the last good one on the newest facts, the lockdown, or to leave the kernel as it is.

pub mod drift;
mod emergency;
mod life;

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
pub use emergency::effective as effective_in_emergency;
pub use life::{Emergency, Keep, Memory, Pending, Pin, Record, Term, Texts, Version};

/// What was loaded from the sources.
#[derive(Clone, PartialEq, Debug)]
pub struct Documents {
    /// Every valid document, merged.
    pub policy: Policy,
    /// The settings.
    pub settings: NodeSettings,
    /// What is wrong with the others.
    pub findings: Vec<Finding>,
    /// Their texts.
    pub texts: Texts,
    /// Until when they have to be confirmed once they are in force; `None`: they need not be.
    pub trial: Option<Term>,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The kernel was looked at, once at the start: whether our table is there.
    KernelSeen {
        /// Whether it is.
        table: bool,
    },
    /// The disk was read, once at the start, before the documents.
    Remembered(Box<Memory>),
    /// The disk answered the [`Effect::Keep`] of this ticket.
    Kept(u64, Result<(), String>),
    /// Somebody asks to put documents in force, which the disk's [`Documents::trial`] says how. Answered by [`Effect::Answer`],
    /// as are the next ones.
    ApplyRequested {
        /// The documents.
        documents: Documents,
        /// Where they are from when it is not where the daemon looks by itself.
        elsewhere: Option<String>,
    },
    /// Somebody confirms the generation in force.
    ConfirmRequested {
        /// Who.
        by: String,
    },
    /// Somebody asks for an earlier generation; `None`: the confirmed one, while another waits for its confirmation.
    RollbackRequested {
        /// It.
        version: Option<Version>,
        /// Who.
        by: String,
    },
    /// Somebody begins or ends an emergency.
    EmergencyRequested {
        /// What it is from now on; `None` ends it.
        emergency: Option<Emergency>,
        /// Who.
        by: String,
    },
    /// The time for a confirmation is over.
    DeadlineDue,
    /// The time of a break-glass is over.
    BreakGlassDue,
    /// The sources were read.
    DocumentsLoaded(Documents),
    /// The machine was looked at.
    FactsChanged(Facts),
    /// The kernel answered an [`Effect::Apply`].
    Applied(Result<Done, String>),
    /// The time of an [`Effect::Retry`] is over.
    RetryDue,
    /// Somebody else may have changed our table.
    Drifted,
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
    /// Look whether the kernel still has this, and mend it where not; answered as [`Effect::Apply`] is, and one of both at a time.
    Repair(Arc<Ruleset>),
    /// Send [`Event::RetryDue`] after this time, instead of any earlier one.
    Retry(Duration),
    /// No retry is wanted any more.
    ForgetRetry,
    /// Write this to disk, in order and only as long as it works, and send [`Event::Kept`] with the ticket.
    Keep(u64, Vec<Keep>),
    /// Send [`Event::DeadlineDue`] after this time, instead of any earlier one; `None`: never.
    Deadline(Option<Duration>),
    /// Send [`Event::BreakGlassDue`] after this time, instead of any earlier one; `None`: never.
    BreakGlass(Option<Duration>),
    /// What the last request came to.
    Answer(Result<String, String>),
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
    /// A generation waits for its confirmation.
    Unconfirmed {
        /// Its number.
        generation: u64,
        /// How long it has.
        left: Duration,
    },
    /// A generation was confirmed by somebody.
    Confirmed {
        /// Its number.
        generation: u64,
        /// Who.
        by: String,
    },
    /// A generation goes and another one comes back.
    RolledBack {
        /// The one that comes back.
        to: u64,
        /// Why.
        why: String,
    },
    /// An emergency begins or ends.
    Emergency {
        /// A sentence about it.
        words: String,
        /// Whether it is on.
        on: bool,
    },
    /// The disk does not take what is to be kept.
    NotKept {
        /// Why.
        error: String,
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
    /// They are, and go unless somebody confirms them.
    Unconfirmed,
    /// An operator let only essentials and failsafe through.
    Panic,
    /// An operator let everything through.
    BreakGlass,
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
            Self::Unconfirmed => "unconfirmed",
            Self::Panic => "panic",
            Self::BreakGlass => "break-glass",
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
    /// The generation; 0 for what is none: the lockdown and emergencies.
    number: u64,
    /// Which flows it ends; none at all where the settings say so, and in the lockdown and in emergencies, which must not make a
    /// bad day worse.
    revocation: Option<Arc<Revocation>>,
}

/// When a request is answered, and how.
#[derive(Clone, Debug)]
enum Asked {
    /// When what it asked for is in force.
    InForce(String),
    /// When the disk has it.
    Kept(u64, String),
}

/// Everything the daemon knows about what it does.
#[derive(Clone, Debug, Default)]
pub struct State {
    table_found: Option<bool>,
    facts: Option<Facts>,
    /// The newest documents, until they are judged.
    unjudged: Option<Documents>,
    /// What is meant to be in force: the last documents without errors, or what somebody went back to.
    good: Option<Version>,
    /// The generation that a boot loads.
    confirmed: Option<Version>,
    /// The number of the next new generation.
    next: u64,
    /// What is kept beside the generations.
    record: Record,
    /// The digest of the documents in place.
    documents: String,
    /// What of the generation in force is on disk.
    kept: Option<(u64, Arc<Ruleset>)>,
    /// The number of the last ticket.
    ticket: u64,
    /// Nothing goes to the kernel before the disk has answered this ticket: what may have to be undone after a crash is
    /// written before it is done.
    awaited: Option<u64>,
    /// Why the disk did not take what it should have.
    not_kept: Option<String>,
    asked: Option<Asked>,
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
    /// Where the unjudged documents are from, when it is not the place where documents are.
    elsewhere: Option<String>,
    /// Whether the version that is meant to be in force has to be on disk before it goes to the kernel, and is not yet.
    unwritten: bool,
    /// Whether to look at the kernel although nothing changed.
    forced: bool,
    /// Whether the target changed meanwhile, or a reload asked for another look.
    again: bool,
    /// Whether somebody else may have changed our table since the kernel was last given or asked something.
    drifted: bool,
    /// Whether what is on its way is a repair.
    repairing: bool,
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
        Event::DocumentsLoaded(documents) => {
            state.documents = documents.texts.digest();
            state.unjudged = Some(documents);
        }
        Event::Remembered(memory) => {
            remembered(state, *memory, &mut effects);
            return effects;
        }
        Event::Kept(ticket, answer) => {
            kept(state, ticket, answer, &mut effects);
            return effects;
        }
        Event::ApplyRequested { documents, elsewhere } => {
            if !apply_requested(state, documents, elsewhere, &mut effects) {
                return effects;
            }
        }
        Event::ConfirmRequested { by } => {
            confirm(state, &by, &mut effects);
            return effects;
        }
        Event::RollbackRequested { version, by } => {
            rollback(state, version, &by, &mut effects);
            return effects;
        }
        Event::EmergencyRequested { emergency, by } => switch(state, emergency, &by, &mut effects),
        Event::DeadlineDue => {
            give_up(state, "nobody confirmed it in time", &mut effects);
            return effects;
        }
        Event::BreakGlassDue => {
            if !matches!(state.record.emergency, Some(Emergency::BreakGlass { .. })) {
                return effects;
            }
            switch(state, None, "the end of its time", &mut effects);
        }
        Event::FactsChanged(facts) => {
            if state.facts.as_ref() == Some(&facts) {
                return effects;
            }
            state.facts = Some(facts);
        }
        Event::Applied(answer) => {
            answered(state, answer, &mut effects);
            repair(state, &mut effects);
            return effects;
        }
        Event::RetryDue => {
            launch(state, &mut effects);
            return effects;
        }
        Event::Drifted => {
            // What was found in the kernel is not ours by doing, and nobody knows what it should be.
            state.drifted = state.in_force.is_some() || state.flying.is_some();
            repair(state, &mut effects);
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
    let reloaded = std::mem::take(&mut state.forced) || state.unjudged.is_some();
    let mut effective = None;
    if let Some(documents) = state.unjudged.take() {
        effective = judge(state, documents, &facts, effects);
    } else if let Some(Version { number, policy, settings, .. }) = &state.good {
        let (resolved, findings) = resolve(policy, settings, &facts);
        // Facts can make good documents bad. What is in force was right until then, and stays; but not when it is what
        // somebody goes back from: then the policies without errors are better than it.
        let other = state.in_force.as_ref().is_some_and(|in_force| in_force.number != *number);
        state.unresolved = first_error(&findings);
        effective = (other || state.unresolved.is_none()).then_some(resolved);
    }
    let number = state.good.as_ref().map_or(0, |version| version.number);
    let revoke = state.good.as_ref().is_some_and(|version| version.settings.revoke);
    let policy = effective.map(|effective| {
        let new = target(&effective, false, number);
        let revocation = revoke.then(|| Arc::new(Revocation::new(Arc::new(effective), &facts)));
        Target { revocation, ..new }
    });
    if let (Some(policy), true) = (&policy, state.unwritten) {
        write_ahead(state, policy, effects);
    }
    let new = match (&state.record.emergency, &state.settings) {
        (Some(emergency), Some(settings)) => Some(target(&emergency::effective(emergency, settings, &facts), false, 0)),
        (None, Some(settings)) if policy.is_none() && state.good.is_none() && !table_found => {
            let (effective, _) = resolve(&Policy::with_builtin_tiers(), settings, &facts);
            Some(target(&effective, true, 0))
        }
        _ => policy,
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
    let elsewhere = state.elsewhere.take();
    let Documents { policy, settings, mut findings, texts, trial } = documents;
    if elsewhere.is_none()
        && let Some(Version { number, policy, settings: held, .. }) = &state.good
        && state.record.holds(*number, &state.documents)
    {
        // These documents are dealt with: somebody, or the lack of a confirmation, put something else in their place.
        let (effective, resolved) = resolve(policy, held, facts);
        state.unresolved = first_error(&resolved);
        (state.findings, state.refused, state.settings) = (findings, None, Some(settings));
        return Some(effective);
    }
    let (effective, resolved) = resolve(&policy, &settings, facts);
    findings.extend(resolved);
    let error = first_error(&findings);
    if elsewhere.is_some()
        && let Some(error) = error
    {
        // What somebody tried says nothing about the documents in place.
        respond(state, Err(format!("{error}; nothing was changed")), effects);
        let Version { policy, settings, .. } = state.good.as_ref()?;
        return Some(resolve(policy, settings, facts).0);
    }
    state.findings.clone_from(&findings);
    state.settings = Some(settings.clone());
    state.refused.clone_from(&error);
    if error.is_none() {
        if !findings.is_empty() {
            effects.push(Effect::Report(Report::Warned { findings }));
        }
        adopt(state, (policy, settings, texts), trial, elsewhere, effects);
        state.unresolved = None;
        return Some(effective);
    }
    if let Some(error) = error {
        respond(state, Err(format!("{error}; nothing was changed")), effects);
    }
    let instead = match (&state.good, state.table_found) {
        (Some(_), _) => Instead::LastGood,
        (None, Some(true)) => Instead::Found,
        (None, _) => Instead::Lockdown,
    };
    effects.push(Effect::Report(Report::Refused { findings, instead }));
    let Version { policy, settings, .. } = state.good.as_ref()?;
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

fn target(effective: &Effective, lockdown: bool, number: u64) -> Target {
    let (ruleset, summary) = (Arc::new(compile(effective)), summary(effective));
    Target { ruleset, summary, lockdown, number, revocation: None }
}

/// Sends the target to the kernel, now or as soon as the kernel has answered.
fn launch(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(target) = &state.target else { return };
    if state.awaited.is_some() {
        return;
    }
    if state.flying.is_some() {
        state.again = true;
        return;
    }
    effects.push(Effect::Apply(Arc::clone(&target.ruleset)));
    state.flying = Some(target.clone());
    state.again = false;
}

/// Asks for what is in force to be there again, as soon as nothing is on its way. Where the kernel refuses the target, what is in
/// force is something else, and that comes back.
fn repair(state: &mut State, effects: &mut Vec<Effect>) {
    if !state.drifted || state.flying.is_some() {
        return;
    }
    state.drifted = false;
    let wanted = if state.failed.is_some() { state.in_force.as_ref() } else { state.target.as_ref() };
    let Some(target) = wanted.filter(|_| state.in_force.is_some()).cloned() else { return };
    effects.push(Effect::Repair(Arc::clone(&target.ruleset)));
    state.flying = Some(target);
    state.repairing = true;
}

/// The kernel answered.
fn answered(state: &mut State, answer: Result<Done, String>, effects: &mut Vec<Effect>) {
    let Some(landed) = state.flying.take() else { return };
    let repaired = std::mem::take(&mut state.repairing);
    let is_target = state.target.as_ref().is_some_and(|target| Arc::ptr_eq(&target.ruleset, &landed.ruleset));
    match answer {
        Ok(done) => {
            let known = state.in_force.as_ref().is_some_and(|old| old.ruleset == landed.ruleset);
            let renumbered = state.in_force.as_ref().is_none_or(|old| old.number != landed.number);
            // What a repair mended is told as drift.
            if !known || renumbered || (done.changes > 0 && !repaired) {
                effects.push(Effect::Report(Report::InForce {
                    generation: landed.number,
                    rules: rules(&landed.ruleset),
                    changes: done.changes,
                    lockdown: landed.lockdown,
                }));
            }
            state.in_force = Some(landed);
            if is_target {
                if let (Some(in_force), Some(target)) = (&mut state.in_force, &state.target) {
                    in_force.summary = target.summary.clone();
                    in_force.number = target.number;
                }
                state.failed = None;
                state.attempts = 0;
                effects.push(Effect::ForgetRetry);
                keep_in_force(state, effects);
                if let Some(Asked::InForce(text)) = &state.asked {
                    let text = text.clone();
                    respond(state, Ok(text), effects);
                }
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
            effects.push(Effect::Report(Report::Failed { error: error.clone(), attempt: state.attempts, again }));
            if matches!(state.asked, Some(Asked::InForce(_))) {
                respond(
                    state,
                    Err(format!("{error}; what was in force stays in force, and it is tried again")),
                    effects,
                );
            }
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
    let lockdown = target(&effective, true, 0);
    effects.push(Effect::Apply(Arc::clone(&lockdown.ruleset)));
    state.flying = Some(lockdown);
}

/// What was on disk at the start.
fn remembered(state: &mut State, memory: Memory, effects: &mut Vec<Effect>) {
    let Memory { record, next, confirmed, meant, pending_left, emergency_left } = memory;
    (state.next, state.record, state.confirmed) = (next, record, confirmed);
    // Should the documents in place be bad, this is the last good policy.
    state.good.clone_from(&state.confirmed);
    let before = state.record.clone();
    if let Some(pending) = state.record.pending.clone() {
        let number = pending.generation;
        let meant = meant.filter(|version| version.number == number);
        if state.confirmed() == Some(number) {
            // The end came between the two halves of a confirmation.
            state.record.pending = None;
            state.record.pin = Some(Pin {
                generation: number,
                documents: pending.documents,
                why: "it was confirmed".to_owned(),
                expired: false,
            });
        } else if let (Some(left), Some(version)) = (pending_left, meant) {
            state.good = Some(version);
            effects.push(Effect::Deadline(Some(left)));
            effects.push(Effect::Report(Report::Unconfirmed { generation: number, left }));
        } else {
            turn_down(
                state,
                pending,
                "nobody confirmed it before its time was over or the host was started again",
                effects,
            );
        }
    } else if let Some(pin) = &state.record.pin {
        let meant = meant.filter(|version| version.number == pin.generation);
        match meant.or_else(|| state.confirmed.clone()) {
            Some(version) => {
                if let Some(pin) = &mut state.record.pin {
                    pin.generation = version.number;
                }
                state.good = Some(version);
            }
            None => state.record.pin = None,
        }
    }
    match (&state.record.emergency, emergency_left) {
        (Some(Emergency::BreakGlass { .. }), Some(left)) => effects.push(Effect::BreakGlass(Some(left))),
        (Some(Emergency::BreakGlass { .. }), None) => {
            state.record.emergency = None;
            let words = "break-glass is over: its time ended, or the host was started again".to_owned();
            effects.push(Effect::Report(Report::Emergency { words, on: false }));
        }
        _ => {}
    }
    if let Some(emergency) = &state.record.emergency {
        effects.push(Effect::Report(Report::Emergency { words: emergency.words(), on: true }));
    }
    if state.record != before {
        keep(state, Vec::new(), effects);
    }
}

/// Writes these and the record; the ticket.
fn keep(state: &mut State, mut what: Vec<Keep>, effects: &mut Vec<Effect>) -> u64 {
    what.push(Keep::Record(state.record.clone()));
    state.ticket += 1;
    effects.push(Effect::Keep(state.ticket, what));
    state.ticket
}

/// The disk answered.
fn kept(state: &mut State, ticket: u64, result: Result<(), String>, effects: &mut Vec<Effect>) {
    if let Err(error) = &result {
        effects.push(Effect::Report(Report::NotKept { error: error.clone() }));
    }
    match &result {
        Err(error) => {
            // All of it is written again with what comes into force next.
            (state.not_kept, state.kept) = (Some(error.clone()), None);
        }
        Ok(()) if ticket == state.ticket && state.kept.is_some() => state.not_kept = None,
        Ok(()) => {}
    }
    if let Some(Asked::Kept(wanted, text)) = &state.asked
        && *wanted == ticket
    {
        let text = text.clone();
        respond(state, result.clone().map(|()| text), effects);
    }
    if state.awaited == Some(ticket) {
        state.awaited = None;
        match result {
            Ok(()) => launch(state, effects),
            Err(error) => {
                // Without a way back that outlives us, nothing that needs one.
                respond(state, Err(format!("{error}; nothing was changed")), effects);
                give_up(state, &format!("it could not be written to disk ({error})"), effects);
            }
        }
    }
}

fn respond(state: &mut State, result: Result<String, String>, effects: &mut Vec<Effect>) {
    if state.asked.take().is_some() {
        effects.push(Effect::Answer(result));
    }
}

/// Whether to go on with what somebody wants applied.
fn apply_requested(
    state: &mut State,
    documents: Documents,
    elsewhere: Option<String>,
    effects: &mut Vec<Effect>,
) -> bool {
    state.asked = Some(Asked::InForce(String::new()));
    let refusal = if state.record.emergency.is_some() {
        Some("panic or break-glass is on; end it first".to_owned())
    } else if documents.trial.is_some() && state.confirmed.is_none() {
        Some("there is no confirmed generation to go back to".to_owned())
    } else if state.facts.is_none() || state.table_found.is_none() {
        Some("nodewall is starting; try again".to_owned())
    } else {
        None
    };
    if let Some(refusal) = refusal {
        respond(state, Err(refusal), effects);
        return false;
    }
    let digest = documents.texts.digest();
    let known = state.confirmed.as_ref().is_some_and(|confirmed| confirmed.texts.digest() == digest);
    if documents.trial.is_some() && known {
        let refusal = "these documents are confirmed already, so there is nothing to go back from";
        respond(state, Err(refusal.to_owned()), effects);
        return false;
    }
    if elsewhere.is_none() {
        state.documents.clone_from(&digest);
        // Asked for by name, documents that were given up count again.
        if state.record.pin.take().is_some() {
            state.forced = true;
        }
    }
    let text = match documents.trial {
        Some(trial) => {
            format!("in force, unconfirmed: it goes in {} s unless `nodewall confirm` is run", trial.whole().as_secs())
        }
        None => "in force".to_owned(),
    };
    state.asked = Some(Asked::InForce(text));
    state.elsewhere = elsewhere;
    state.unjudged = Some(documents);
    true
}

/// Good documents become what is meant to be in force.
fn adopt(
    state: &mut State,
    (policy, settings, texts): (Policy, NodeSettings, Texts),
    trial: Option<Term>,
    elsewhere: Option<String>,
    effects: &mut Vec<Effect>,
) {
    let digest = texts.digest();
    let same = |version: &&Version| version.texts.digest() == digest;
    let known = state.good.iter().chain(&state.confirmed).find(same).map(|version| version.number);
    let number = known.unwrap_or_else(|| {
        state.next = state.next.max(1);
        state.next += 1;
        state.next - 1
    });
    let confirmed = state.confirmed() == Some(number);
    let known = state.good.as_ref().is_some_and(|version| version.number == number);
    // What comes while another one waits for its confirmation has no more time than that one.
    let term = match &state.record.pending {
        Some(pending) => Some(pending.term),
        None => trial,
    };
    let before = state.record.clone();
    let why = elsewhere.as_ref().map(|place| format!("it was applied from {place}"));
    state.record.pin =
        why.map(|why| Pin { generation: number, documents: state.documents.clone(), why, expired: false });
    match term {
        Some(term) if !confirmed && state.confirmed.is_some() => {
            if state.record.pending.is_none() {
                effects.push(Effect::Deadline(Some(term.whole())));
                effects.push(Effect::Report(Report::Unconfirmed { generation: number, left: term.whole() }));
            }
            state.record.pending = Some(Pending { generation: number, documents: state.documents.clone(), term });
            state.unwritten = !known || state.record != before;
        }
        _ => {
            if state.record.pending.take().is_some() {
                effects.push(Effect::Deadline(None));
            }
            if state.record != before && confirmed {
                keep(state, Vec::new(), effects);
            }
        }
    }
    let origin = elsewhere.unwrap_or_else(|| "files".to_owned());
    state.good = Some(Version { number, origin, policy, settings, texts });
}

/// Writes what may have to be undone before it is done.
fn write_ahead(state: &mut State, target: &Target, effects: &mut Vec<Effect>) {
    state.unwritten = false;
    let Some(version) = &state.good else { return };
    let generation = Keep::Generation {
        number: version.number,
        origin: version.origin.clone(),
        texts: version.texts.clone(),
        ruleset: Arc::clone(&target.ruleset),
    };
    state.kept = Some((version.number, Arc::clone(&target.ruleset)));
    let ticket = keep(state, vec![generation], effects);
    state.awaited = Some(ticket);
}

/// What came into force is kept, and confirmed unless it waits for that.
fn keep_in_force(state: &mut State, effects: &mut Vec<Effect>) {
    let (Some(in_force), Some(version)) = (&state.in_force, &state.good) else { return };
    if in_force.number != version.number || in_force.number == 0 {
        return;
    }
    let pending = state.record.pending.as_ref().is_some_and(|pending| pending.generation == version.number);
    let known = state.kept.as_ref().is_some_and(|(number, ruleset)| {
        *number == version.number
            && (Arc::ptr_eq(ruleset, &in_force.ruleset) || !life::boots_otherwise(ruleset, &in_force.ruleset))
    });
    let confirm = !pending && (state.confirmed() != Some(version.number) || state.not_kept.is_some());
    if known && !confirm {
        return;
    }
    let mut what = vec![Keep::Generation {
        number: version.number,
        origin: version.origin.clone(),
        texts: version.texts.clone(),
        ruleset: Arc::clone(&in_force.ruleset),
    }];
    if confirm {
        what.push(Keep::Confirmed(version.number));
        state.confirmed = Some(version.clone());
    }
    state.kept = Some((version.number, Arc::clone(&in_force.ruleset)));
    keep(state, what, effects);
}

/// Somebody says that the host is still reachable.
fn confirm(state: &mut State, by: &str, effects: &mut Vec<Effect>) {
    state.asked = Some(Asked::InForce(String::new()));
    let Some(pending) = state.record.pending.clone() else {
        return respond(state, Err("nothing waits for a confirmation".to_owned()), effects);
    };
    let number = pending.generation;
    if state.generation() != number || state.good.as_ref().is_none_or(|version| version.number != number) {
        return respond(state, Err(format!("generation {number} is not in force")), effects);
    }
    state.confirmed.clone_from(&state.good);
    state.record.pending = None;
    effects.push(Effect::Deadline(None));
    effects.push(Effect::Report(Report::Confirmed { generation: number, by: by.to_owned() }));
    let ticket = keep(state, vec![Keep::Confirmed(number)], effects);
    state.asked = Some(Asked::Kept(ticket, format!("generation {number} is confirmed")));
}

/// Somebody goes back.
fn rollback(state: &mut State, version: Option<Version>, by: &str, effects: &mut Vec<Effect>) {
    state.asked = Some(Asked::InForce(String::new()));
    if state.record.emergency.is_some() {
        return respond(state, Err("panic or break-glass is on; end it first".to_owned()), effects);
    }
    let (Some(facts), Some(_)) = (&state.facts, state.table_found) else {
        return respond(state, Err("nodewall is starting; try again".to_owned()), effects);
    };
    let version = match (version, &state.record.pending) {
        (Some(version), _) => version,
        (None, Some(_)) => match state.confirmed.clone() {
            Some(version) => version,
            None => return respond(state, Err("there is no confirmed generation".to_owned()), effects),
        },
        (None, None) => return respond(state, Err("there is no earlier generation".to_owned()), effects),
    };
    let (_, findings) = resolve(&version.policy, &version.settings, facts);
    if let Some(error) = first_error(&findings) {
        return respond(state, Err(format!("{error}; nothing was changed")), effects);
    }
    let number = version.number;
    if state.record.pending.take().is_some() {
        effects.push(Effect::Deadline(None));
    }
    (state.awaited, state.unwritten, state.unjudged) = (None, false, None);
    let why = format!("it was brought back by {by}");
    let pin = Pin { generation: number, documents: state.documents.clone(), why: why.clone(), expired: false };
    state.record.pin = Some(pin);
    state.settings = Some(version.settings.clone());
    (state.good, state.refused) = (Some(version), None);
    effects.push(Effect::Report(Report::RolledBack { to: number, why }));
    keep(state, Vec::new(), effects);
    state.asked = Some(Asked::InForce(format!("generation {number} is in force until the documents change")));
    state.forced = true;
    decide(state, effects);
}

/// What nobody confirmed goes, and what was confirmed comes back.
fn give_up(state: &mut State, why: &str, effects: &mut Vec<Effect>) {
    let Some(pending) = state.record.pending.clone() else { return };
    respond(state, Err(why.to_owned()), effects);
    effects.push(Effect::Deadline(None));
    turn_down(state, pending, why, effects);
    keep(state, Vec::new(), effects);
    state.forced = true;
    decide(state, effects);
}

fn turn_down(state: &mut State, pending: Pending, why: &str, effects: &mut Vec<Effect>) {
    (state.record.pending, state.awaited, state.unwritten) = (None, None, false);
    // Only documents that something can be gone back from get a deadline; a damaged disk may have lost it since.
    let Some(confirmed) = state.confirmed.clone() else { return };
    let to = confirmed.number;
    let why = format!("generation {} was given up: {why}", pending.generation);
    effects.push(Effect::Report(Report::RolledBack { to, why: why.clone() }));
    state.record.pin = Some(Pin { generation: to, documents: pending.documents, why, expired: true });
    state.good = Some(confirmed);
}

/// An emergency begins or ends.
fn switch(state: &mut State, emergency: Option<Emergency>, by: &str, effects: &mut Vec<Effect>) {
    state.asked = Some(Asked::InForce(String::new()));
    if emergency.is_none() && state.record.emergency.is_none() {
        return respond(state, Err("neither panic nor break-glass is on".to_owned()), effects);
    }
    // It does not wait for a disk.
    state.awaited = None;
    let left = match &emergency {
        Some(Emergency::BreakGlass { term, .. }) => Some(term.whole()),
        _ => None,
    };
    effects.push(Effect::BreakGlass(left));
    let words = match &emergency {
        Some(emergency) => emergency.words(),
        None => format!("the emergency was ended by {by}"),
    };
    effects.push(Effect::Report(Report::Emergency { words: words.clone(), on: emergency.is_some() }));
    state.record.emergency = emergency;
    keep(state, Vec::new(), effects);
    state.asked = Some(Asked::InForce(words));
    state.forced = true;
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
        let expired = self.record.pin.as_ref().is_some_and(|pin| pin.expired);
        if self.refused.is_some() || self.unresolved.is_some() || self.failed.is_some() || lockdown {
            Phase::Degraded
        } else if (self.flying.is_some() && !self.repairing) || self.awaited.is_some() {
            Phase::Applying
        } else if let Some(emergency) = &self.record.emergency {
            match emergency {
                Emergency::Panic { .. } => Phase::Panic,
                Emergency::BreakGlass { .. } => Phase::BreakGlass,
            }
        } else if expired {
            Phase::Degraded
        } else if self.record.pending.is_some() {
            Phase::Unconfirmed
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
        let Some(reason) = self.refused.as_ref().or(self.unresolved.as_ref()).or(self.failed.as_ref()) else {
            return self.record.words();
        };
        Some(format!("{reason}; {instead}"))
    }

    /// The number of the generation in force; 0 when it is none: the lockdown, an emergency, nothing.
    pub fn generation(&self) -> u64 {
        self.in_force.as_ref().map_or(0, |target| target.number)
    }

    /// What is kept beside the generations.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The number of the confirmed generation.
    pub fn confirmed(&self) -> Option<u64> {
        self.confirmed.as_ref().map(|version| version.number)
    }

    /// Why the disk does not have what it should.
    pub fn not_kept(&self) -> Option<&str> {
        self.not_kept.as_deref()
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
            (Phase::Panic, _) => return "PANIC: only essentials and failsafe are let through".to_owned(),
            (Phase::BreakGlass, _) => return "BREAK-GLASS: everything is let through".to_owned(),
            (Phase::InForce | Phase::Unconfirmed, None) => "in force".to_owned(),
            (phase @ (Phase::InForce | Phase::Unconfirmed), Some(summary)) => {
                let rules = self.in_force().map_or(0, |ruleset| rules(ruleset));
                let audit = if summary.mode == Mode::Audit { ", audit only" } else { "" };
                let trial = if phase == Phase::Unconfirmed { ", unconfirmed" } else { "" };
                format!(
                    "in force{trial}: {} policies, {rules} rules, {} interfaces{audit}",
                    summary.policies.len(),
                    summary.interfaces.len()
                )
            }
        };
        match self.generation() {
            0 => what,
            generation => format!("generation {generation} {what}"),
        }
    }
}

#[cfg(test)]
mod tests;
