//! The state machine, without I/O: events in, effects out. Whatever happens, what it asks for is one of: the newest valid
//! policy on the newest facts, the last good one on the newest facts, the lockdown, or to leave the kernel as it is.

pub mod drift;
mod emergency;
mod expiry;
mod life;
mod members;
pub mod selftest;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::compile::{compile, compile_noting};
use crate::net::facts::{Cgroup, Facts};
use crate::net::interface::{Direction, Role};
use crate::net::rail::Rails;
use crate::nft::ir::Ruleset;
use crate::policy::addresses::Named;
use crate::policy::coverage::{self, Coverage};
use crate::policy::effective::{Effective, Interface};
use crate::policy::guards;
use crate::policy::local::LocalNames;
use crate::policy::model::{Mode, NamedSet, Policy};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;
use crate::revoke::Revocation;
use crate::text::finding::{Finding, Severity};
use crate::text::place::Place;
pub use emergency::effective as effective_in_emergency;
pub use life::{Confirmation, Emergency, Keep, Memory, Pending, Pin, Record, Term, Texts, Trial, Version};
use selftest::{Probe, Tried};
use trial::{Held, Testing};
pub use trial::{Progress, SelfTest};

/// What was loaded from the sources.
#[derive(Clone, PartialEq, Debug)]
pub struct Documents {
    /// Every valid document, merged.
    pub policy: Policy,
    /// The settings.
    pub settings: NodeSettings,
    /// What is wrong with the others.
    pub findings: Vec<Finding>,
    /// What a self-test tries beside what is built in.
    pub probes: Vec<Probe>,
    /// Their texts.
    pub texts: Texts,
    /// How they have to be confirmed once they are in force; `None`: they need not be.
    pub trial: Option<Trial>,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The kernel was looked at, at the start and for an [`Effect::Look`]: whether our table is there.
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
    /// The wall clock was read: seconds since 1970-01-01 UTC. Comes before every other event, at the time of an
    /// [`Effect::Expiry`], and when somebody set the clock.
    Clock(u64),
    /// The time for a confirmation is over.
    DeadlineDue,
    /// The time of a break-glass is over.
    BreakGlassDue,
    /// The sources were read.
    DocumentsLoaded(Documents),
    /// These sets of the documents in place, which are as they were otherwise, hold something else. The documents themselves come
    /// later, with [`Event::DocumentsLoaded`].
    MembersChanged(BTreeMap<String, NamedSet>),
    /// The machine was looked at.
    FactsChanged(Facts),
    /// The kernel answered an [`Effect::Apply`].
    Applied(Result<Done, String>),
    /// The time of an [`Effect::Retry`] is over.
    RetryDue,
    /// Somebody else may have changed our table.
    Drifted,
    /// The probes of an [`Effect::SelfTest`] were tried.
    SelfTested {
        /// Its ticket.
        ticket: u64,
        /// What came of them.
        results: Vec<Tried>,
        /// Milliseconds since 1970-01-01 UTC.
        now: u64,
    },
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
    /// Make the kernel have this, which differs from what it has in what these sets hold; answered as [`Effect::Apply`] is, and one of
    /// both at a time.
    ChangeMembers {
        /// What is in force then.
        ruleset: Arc<Ruleset>,
        /// The sets.
        sets: BTreeSet<String>,
    },
    /// Load the documents: what changed in them takes more than other elements.
    Reload,
    /// Look whether the kernel still has this, and mend it where not; answered as [`Effect::Apply`] is, and one of both at a time.
    Repair(Arc<Ruleset>),
    /// Look whether our table is there, and send [`Event::KernelSeen`].
    Look,
    /// Send [`Event::RetryDue`] after this time, instead of any earlier one.
    Retry(Duration),
    /// No retry is wanted any more.
    ForgetRetry,
    /// Write this to disk, in order and only as long as it works, and send [`Event::Kept`] with the ticket.
    Keep(u64, Vec<Keep>),
    /// Send [`Event::DeadlineDue`] after this time, instead of any earlier one; `None`: never.
    Deadline(Option<Duration>),
    /// After this time try these probes and send [`Event::SelfTested`] with the ticket; whatever of an earlier one is under way
    /// is of no use any more.
    SelfTest {
        /// It.
        ticket: u64,
        /// What to try.
        probes: Vec<Probe>,
        /// When.
        after: Duration,
    },
    /// Send [`Event::BreakGlassDue`] after this time, instead of any earlier one; `None`: never.
    BreakGlass(Option<Duration>),
    /// Send [`Event::Clock`] when the wall clock has this time, in seconds since 1970-01-01 UTC, instead of any earlier one, and
    /// when it is set; `None`: never.
    Expiry(Option<u64>),
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
    /// Sets hold something else.
    Members {
        /// The generation whose they are.
        generation: u64,
        /// How many changes it took.
        changes: usize,
    },
    /// A generation waits for its confirmation.
    Unconfirmed {
        /// Its number.
        generation: u64,
        /// How long it has.
        left: Duration,
        /// Whether it is confirmed by a self-test.
        selftest: bool,
    },
    /// A change waits, as its self-test would say nothing yet.
    Held {
        /// Until what.
        until: &'static str,
    },
    /// The self-test of a generation fails at something, or at something else than before, and goes on.
    SelfTest {
        /// Its number.
        generation: u64,
        /// At what, and why.
        failing: String,
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
    /// The time of a policy is over.
    Expired {
        /// Its name.
        policy: String,
        /// Its `expires`, in seconds since 1970-01-01 UTC.
        at: u64,
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
    /// What is to be remembered of rails.
    pub rails: Rails,
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
    /// The time from which on it no longer exists, in seconds since 1970-01-01 UTC.
    pub expires: Option<u64>,
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
    /// What a boot has in its place; the same where the policy has nothing that a boot could not know.
    boot: Arc<Ruleset>,
    /// How many rules it has.
    rules: usize,
    summary: Arc<Summary>,
    /// What it was compiled from.
    effective: Arc<Effective>,
    members: Arc<Membership>,
    lockdown: bool,
    /// Whether it lets everything through.
    open: bool,
    /// The generation; 0 for what is none: the lockdown and emergencies.
    number: u64,
    /// Which flows it ends; none at all where the settings say so, and in the lockdown and in emergencies, which must not make a
    /// bad day worse.
    revocation: Option<Arc<Revocation>>,
}

/// Where the contents of sets are in a ruleset.
#[derive(Clone, PartialEq, Debug, Default)]
struct Membership {
    /// See [`Effective::named`].
    named: Arc<Named>,
    /// The names of those whose contents stand elsewhere as well.
    mapped: BTreeSet<String>,
}

/// A request that is not answered yet. What is answered with a yes is in force and on disk, so that a crash takes nothing back.
#[derive(Clone, Debug)]
struct Asked {
    wanted: Wanted,
    /// The yes.
    text: String,
    /// What the disk has to have written, once it is in force.
    ticket: Option<u64>,
}

/// What somebody asked for.
#[derive(Clone, PartialEq, Debug)]
enum Wanted {
    /// Documents that are not judged yet.
    Documents,
    /// A generation.
    Generation(u64),
    /// An emergency, or its end.
    Emergency(Option<Emergency>),
    /// That a generation is confirmed.
    Confirmation,
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
    /// What of that the disk has or was given, and whether it did not take it.
    recorded: (Record, bool),
    /// The digest of the documents in place, as they were loaded last.
    documents: String,
    /// Whether sets hold something else since.
    ahead: bool,
    /// Whether the documents in place came into force on trial, so that each change of them does.
    on_trial: bool,
    /// Sets that hold something else, until something is done about it.
    members: BTreeMap<String, NamedSet>,
    /// What of the generation in force is on disk: its number, and what a boot loads.
    kept: Option<(u64, Arc<Ruleset>)>,
    /// The number of the last ticket.
    ticket: u64,
    /// No generation goes to the kernel before the disk has answered this ticket: what may have to be undone after a crash is
    /// written before it is done. Emergencies do not wait.
    awaited: Option<u64>,
    /// The last ticket that the disk answered, and why it did not take that one.
    written: (u64, Option<String>),
    /// Why the disk did not take what it should have.
    not_kept: Option<String>,
    asked: Option<Asked>,
    /// Documents that are not judged before it is known how their self-test goes without them.
    held: Option<Held>,
    /// The number of the last ticket for probes.
    probing: u64,
    testing: Option<Testing>,
    tested: Option<SelfTest>,
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
    /// The wall clock when it was last read, in seconds since 1970-01-01 UTC.
    clock: u64,
    /// When the next policy is over.
    wake: Option<u64>,
    /// Whether to look at the kernel although nothing changed.
    forced: bool,
    /// Whether the target changed meanwhile, or a reload asked for another look.
    again: bool,
    /// Whether somebody else may have changed our table since the kernel was last given or asked something.
    drifted: bool,
    /// Whether what is on its way is a repair.
    repairing: bool,
    /// Whether it is only other elements of sets.
    refilling: bool,
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
        Event::KernelSeen { table } => {
            state.table_found = Some(table);
            if state.in_force.is_none() {
                keep_again(state, &mut effects);
            }
        }
        Event::DocumentsLoaded(documents) => {
            in_place(state, documents.texts.digest());
            state.on_trial = documents.trial.is_some();
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
        Event::EmergencyRequested { emergency, by } => {
            if emergency.is_none() && state.record.emergency.is_none() {
                effects.push(Effect::Answer(Err("neither panic nor break-glass is on".to_owned())));
                return effects;
            }
            let text = switch(state, emergency.clone(), &by, &mut effects);
            state.asked = Some(Asked { wanted: Wanted::Emergency(emergency), text, ticket: None });
        }
        Event::DeadlineDue => {
            let why = trial::overdue(state);
            give_up(state, &why, &why, &mut effects);
            return effects;
        }
        Event::BreakGlassDue => {
            if !matches!(state.record.emergency, Some(Emergency::BreakGlass { .. })) {
                return effects;
            }
            switch(state, None, "the end of its time", &mut effects);
        }
        Event::Clock(now) => {
            if !expiry::clock(state, now) {
                return effects;
            }
        }
        Event::MembersChanged(sets) => {
            members::changed(state, sets, &mut effects);
            return effects;
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
            members::go(state, &mut effects);
            trial::baseline(state, &mut effects);
            return effects;
        }
        Event::RetryDue => {
            launch(state, &mut effects);
            return effects;
        }
        Event::Drifted => {
            // What was found in the kernel is not ours by doing, and nobody knows what it should be; but it should be.
            state.drifted = state.in_force.is_some() || state.flying.is_some();
            if !state.drifted && state.table_found == Some(true) {
                effects.push(Effect::Look);
            }
            repair(state, &mut effects);
            return effects;
        }
        Event::SelfTested { ticket, results, now } => {
            trial::tested(state, ticket, results, now, &mut effects);
            return effects;
        }
    }
    decide(state, &mut effects);
    effects
}

/// Documents with this digest are in place. What was said of those in place while it was not known took them to be these.
fn in_place(state: &mut State, digest: String) {
    if std::mem::take(&mut state.ahead) {
        let pinned = state.record.pin.as_mut().map(|pin| &mut pin.documents);
        let pending = state.record.pending.as_mut().map(|pending| &mut pending.documents);
        let held = state.held.as_mut().map(|held| &mut held.in_place);
        for documents in [pinned, pending, held].into_iter().flatten().filter(|documents| documents.is_empty()) {
            documents.clone_from(&digest);
        }
    }
    state.documents = digest;
    // They are in the documents.
    state.members.clear();
}

/// The digest of the documents in place; empty while it is not known.
fn digest_in_place(state: &State) -> String {
    if state.ahead { String::new() } else { state.documents.clone() }
}

/// Works out the target and sends it to the kernel where it has to go there.
fn decide(state: &mut State, effects: &mut Vec<Effect>) {
    retarget(state, effects);
    trial::baseline(state, effects);
}

fn retarget(state: &mut State, effects: &mut Vec<Effect>) {
    // Nothing is touched before everything is known: until then what is in the kernel stays.
    let (Some(facts), Some(_), true) = (state.facts.clone(), state.table_found, state.is_read()) else {
        return;
    };
    let unjudged = state.unjudged.take().and_then(|documents| trial::admit(state, documents, &facts, effects));
    let reloaded = std::mem::take(&mut state.forced) || unjudged.is_some();
    let mut effective = None;
    if let Some(documents) = unjudged {
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
    let policy = effective.map(|mut effective| {
        expiry::pass(state, &mut effective, effects);
        let new = target(effective, false, number);
        let revocation = revoke.then(|| Arc::new(Revocation::new(Arc::clone(&new.effective), &facts)));
        Target { revocation, ..new }
    });
    if let (Some(policy), true) = (&policy, state.unwritten) {
        write_ahead(state, policy, &facts, effects);
    }
    let new = match (&state.record.emergency, &state.settings) {
        (Some(emergency), Some(settings)) => {
            // Settings with errors may have lost the way in that the operator comes by.
            let settings = state.good.as_ref().map_or(settings, |version| &version.settings);
            let open = matches!(emergency, Emergency::BreakGlass { .. });
            Some(Target { open, ..target(emergency::effective(emergency, settings, &facts), false, 0) })
        }
        (None, Some(settings)) if policy.is_none() && state.good.is_none() && !state.is_found() => {
            let (effective, _) = resolve(&Policy::with_builtin_tiers(), settings, &facts);
            Some(target(effective, true, 0))
        }
        _ => policy,
    };
    let Some(new) = new else {
        if state.good.is_none() {
            stay(state, effects);
        }
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
        Some(old) if same => {
            let boot = if Arc::ptr_eq(&new.boot, &new.ruleset) { Arc::clone(&old.ruleset) } else { new.boot };
            Target { ruleset: old.ruleset, boot, ..new }
        }
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

/// What was found in the kernel is as good as it gets; an emergency that the kernel refused, and that is over, is not tried again.
fn stay(state: &mut State, effects: &mut Vec<Effect>) {
    if state.target.take().is_some() {
        (state.failed, state.attempts) = (None, 0);
        effects.push(Effect::ForgetRetry);
    }
    if let Some(asked) = &mut state.asked {
        asked.ticket.get_or_insert(state.ticket);
    }
    fulfil(state, effects);
}

/// Whether documents are good; what they come to, if they are, or what the last good ones come to, if they are not.
fn judge(state: &mut State, documents: Documents, facts: &Facts, effects: &mut Vec<Effect>) -> Option<Effective> {
    let elsewhere = state.elsewhere.take();
    let Documents { policy, settings, mut findings, probes, texts, trial } = documents;
    // Asked for by name, documents that were given up count again.
    let asked = state.asked.as_ref().is_some_and(|asked| asked.wanted == Wanted::Documents);
    if !asked
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
    if let (Some(error), true) = (&error, asked) {
        respond(state, Err(format!("{error}; nothing was changed")), effects);
    }
    if elsewhere.is_some() && error.is_some() {
        // What somebody tried says nothing about the documents in place.
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
        adopt(state, (policy, settings, probes, texts), trial, elsewhere, effects);
        state.unresolved = None;
        return Some(effective);
    }
    let instead = match &state.good {
        Some(_) => Instead::LastGood,
        None if state.is_found() => Instead::Found,
        None => Instead::Lockdown,
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

fn target(effective: Effective, lockdown: bool, number: u64) -> Target {
    let (ruleset, mapped) = compile_noting(&effective);
    let (ruleset, summary) = (Arc::new(ruleset), Arc::new(summary(&effective)));
    let members = Arc::new(Membership::of(&effective, mapped));
    let boot = effective.at_boot().map_or_else(|| Arc::clone(&ruleset), |boot| Arc::new(compile(&boot)));
    let (rules, effective) = (rules(&ruleset), Arc::new(effective));
    Target { rules, ruleset, boot, summary, effective, members, lockdown, open: false, number, revocation: None }
}

/// Sends the target to the kernel, now or as soon as the kernel has answered.
fn launch(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(target) = &state.target else { return };
    // An emergency does not wait for a disk.
    if state.awaited.is_some() && target.number != 0 {
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

/// Asks for what is in force to be there again, as soon as nothing is on its way. Where the kernel refuses the target, or the target
/// waits for the disk, what is in force is something else, and that comes back; but not a break-glass that is over.
fn repair(state: &mut State, effects: &mut Vec<Effect>) {
    if !state.drifted || state.flying.is_some() {
        return;
    }
    state.drifted = false;
    let Some(in_force) = &state.in_force else { return };
    let over = in_force.open && !matches!(state.record.emergency, Some(Emergency::BreakGlass { .. }));
    let waits = state.awaited.is_some() && state.target.as_ref().is_some_and(|target| target.number != 0);
    let old = waits || (state.failed.is_some() && !over);
    let Some(target) = (if old { Some(in_force) } else { state.target.as_ref() }).cloned() else { return };
    effects.push(Effect::Repair(Arc::clone(&target.ruleset)));
    state.flying = Some(target);
    state.repairing = true;
}

/// The kernel answered.
fn answered(state: &mut State, answer: Result<Done, String>, effects: &mut Vec<Effect>) {
    let Some(landed) = state.flying.take() else { return };
    let repaired = std::mem::take(&mut state.repairing);
    let refilled = std::mem::take(&mut state.refilling);
    let is_target = state.target.as_ref().is_some_and(|target| Arc::ptr_eq(&target.ruleset, &landed.ruleset));
    match answer {
        Ok(done) => {
            // What a repair mended is told as drift.
            let known = refilled || state.in_force.as_ref().is_some_and(|old| old.ruleset == landed.ruleset);
            let renumbered = state.in_force.as_ref().is_none_or(|old| old.number != landed.number);
            if refilled {
                let report = Report::Members { generation: landed.number, changes: done.changes };
                effects.push(Effect::Report(report));
            } else if !known || renumbered || (done.changes > 0 && !repaired) {
                effects.push(Effect::Report(Report::InForce {
                    generation: landed.number,
                    rules: landed.rules,
                    changes: done.changes,
                    lockdown: landed.lockdown,
                }));
            }
            state.in_force = Some(landed);
            if is_target {
                if let (Some(in_force), Some(target)) = (&mut state.in_force, &state.target) {
                    in_force.summary = target.summary.clone();
                    in_force.number = target.number;
                    in_force.boot = Arc::clone(&target.boot);
                }
                state.failed = None;
                state.attempts = 0;
                effects.push(Effect::ForgetRetry);
                keep_in_force(state, effects);
                if let Some(asked) = state.asked.as_mut().filter(|asked| asked.wanted != Wanted::Documents) {
                    asked.ticket.get_or_insert(state.ticket);
                }
                fulfil(state, effects);
                trial::begin(state, effects);
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
            let waits = |asked: &Asked| asked.ticket.is_none() && asked.wanted != Wanted::Documents;
            if is_target && state.asked.as_ref().is_some_and(waits) {
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
            // The lockdown in place of a target that the kernel refused was refused, too, and the retry is under way; or what should
            // be there instead of it came meanwhile, and need not wait.
            state.failed = Some(error);
            if state.again {
                launch(state, effects);
            }
        }
    }
}

/// With nothing of ours in the kernel, and the kernel refusing what should be there, the lockdown is better than nothing.
fn lock_down(state: &mut State, effects: &mut Vec<Effect>) {
    if state.in_force.is_some() || state.is_found() || state.target.as_ref().is_none_or(|t| t.lockdown) {
        return;
    }
    let (Some(facts), Some(settings)) = (&state.facts, &state.settings) else { return };
    let (effective, _) = resolve(&Policy::with_builtin_tiers(), settings, facts);
    let lockdown = target(effective, true, 0);
    effects.push(Effect::Apply(Arc::clone(&lockdown.ruleset)));
    state.flying = Some(lockdown);
}

/// What was on disk at the start.
fn remembered(state: &mut State, memory: Memory, effects: &mut Vec<Effect>) {
    let Memory { record, next, confirmed, older, meant, pending_left, emergency_left } = memory;
    (state.next, state.record, state.confirmed) = (next, record, confirmed);
    // Should the documents in place be bad, this is the last good policy; unless the kernel may have a later one.
    if !(older && state.table_found == Some(true)) {
        state.good.clone_from(&state.confirmed);
    }
    let before = state.record.clone();
    state.recorded = (before.clone(), false);
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
        } else if let (Some(left), Some(version), Some(_)) = (pending_left, meant, &state.confirmed) {
            state.good = Some(version);
            effects.push(Effect::Deadline(Some(left)));
            let selftest = pending.before.is_some();
            effects.push(Effect::Report(Report::Unconfirmed { generation: number, left, selftest }));
        } else {
            let why = match &pending.before {
                Some(_) => "its self-test had not passed when its time was over or the host was started again",
                None => "nobody confirmed it before its time was over or the host was started again",
            };
            turn_down(state, pending, why, effects);
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
    state.recorded = (state.record.clone(), false);
    state.ticket += 1;
    effects.push(Effect::Keep(state.ticket, what));
    state.ticket
}

/// The disk answered.
fn kept(state: &mut State, ticket: u64, result: Result<(), String>, effects: &mut Vec<Effect>) {
    if let Err(error) = &result {
        effects.push(Effect::Report(Report::NotKept { error: error.clone() }));
    }
    state.written = (ticket, result.clone().err());
    match &result {
        Err(error) => {
            // All of it is written again with what comes into force next.
            (state.not_kept, state.kept, state.recorded.1) = (Some(error.clone()), None, true);
        }
        Ok(()) if ticket == state.ticket && state.kept.is_some() => state.not_kept = None,
        Ok(()) => {}
    }
    fulfil(state, effects);
    if state.awaited == Some(ticket) {
        state.awaited = None;
        match result {
            Ok(()) if state.not_kept.is_some() => {
                // What was written before it was not, and that is the way back.
                state.unwritten = true;
                decide(state, effects);
            }
            Ok(()) => launch(state, effects),
            Err(error) => {
                // Without a way back that outlives us, nothing that needs one.
                let why = format!("it could not be written to disk ({error})");
                give_up(state, &why, &format!("{error}; nothing was changed"), effects);
            }
        }
    }
}

/// Answers the request when what it asked for is in force and on disk.
fn fulfil(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(Asked { wanted, text, ticket: Some(ticket) }) = &state.asked else { return };
    let (answered, error) = &state.written;
    if answered < ticket {
        return;
    }
    let holds = match wanted {
        Wanted::Documents => false,
        Wanted::Generation(number) => state.generation() == *number,
        Wanted::Emergency(emergency) => state.record.emergency == *emergency,
        Wanted::Confirmation => true,
    };
    let answer = match error {
        _ if !holds => Err("something else came in between, and is in force instead".to_owned()),
        Some(error) => Err(format!("{text}; but this is not on disk, and a restart takes it back: {error}")),
        None => Ok(text.clone()),
    };
    respond(state, answer, effects);
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
    let refusal = if state.record.emergency.is_some() {
        Some("panic or break-glass is on; end it first".to_owned())
    } else if documents.trial.is_some() && state.confirmed.is_none() {
        Some("there is no confirmed generation to go back to".to_owned())
    } else if state.facts.is_none() || state.table_found.is_none() || !state.is_read() {
        Some("nodewall is starting; try again".to_owned())
    } else {
        None
    };
    if let Some(refusal) = refusal {
        effects.push(Effect::Answer(Err(refusal)));
        return false;
    }
    let digest = documents.texts.digest();
    let known = state.confirmed.as_ref().is_some_and(|confirmed| confirmed.texts.digest() == digest);
    if documents.trial.is_some() && known {
        let refusal = "these documents are confirmed already, so there is nothing to go back from";
        effects.push(Effect::Answer(Err(refusal.to_owned())));
        return false;
    }
    if elsewhere.is_none() {
        in_place(state, digest);
    }
    state.asked = Some(Asked { wanted: Wanted::Documents, text: String::new(), ticket: None });
    trial::forget_order(state);
    state.elsewhere = elsewhere;
    state.unjudged = Some(documents);
    true
}

/// What somebody is told whose documents are in force.
fn applied(pending: Option<&Pending>) -> String {
    let Some(Pending { term, before, .. }) = pending else { return "in force".to_owned() };
    let unless = match before {
        Some(_) => "its self-test, which runs now, passes; see `nodewall status`",
        None => "`nodewall confirm` is run",
    };
    format!("in force, unconfirmed: it goes in {} s unless {unless}", term.whole().as_secs())
}

/// Good documents become what is meant to be in force.
fn adopt(
    state: &mut State,
    (policy, settings, probes, texts): (Policy, NodeSettings, Vec<Probe>, Texts),
    trial: Option<Trial>,
    elsewhere: Option<String>,
    effects: &mut Vec<Effect>,
) {
    if elsewhere.is_some() {
        // The documents in place are dealt with, until they are others.
        state.held = None;
    }
    let digest = texts.digest();
    let same = |version: &&Version| version.texts.digest() == digest;
    let known = state.good.iter().chain(&state.confirmed).find(same).map(|version| version.number);
    let number = known.unwrap_or_else(|| {
        let number = state.next.max(1);
        state.next = number.saturating_add(1);
        number
    });
    let confirmed = state.confirmed() == Some(number);
    let known = state.good.as_ref().is_some_and(|version| version.number == number);
    let wanted = trial.map(|Trial { term, confirmation }| match confirmation {
        Confirmation::Operator => (term, None),
        Confirmation::SelfTest { before } => (term, Some(before.unwrap_or_default())),
    });
    // What comes while another one waits for its confirmation has no more time than that one, is held against what was before that
    // one, and is not confirmed by a self-test unless both would be.
    let wanted = match (&state.record.pending, wanted) {
        (Some(pending), Some((_, None))) => Some((pending.term, None)),
        (Some(pending), _) => Some((pending.term, pending.before.clone())),
        (None, wanted) => wanted,
    };
    let before = state.record.clone();
    let why = elsewhere.as_ref().map(|place| format!("it was applied from {place}"));
    state.record.pin =
        why.map(|why| Pin { generation: number, documents: digest_in_place(state), why, expired: false });
    match wanted {
        Some((term, tried)) if !confirmed && state.confirmed.is_some() => {
            if state.record.pending.is_none() {
                let (left, selftest) = (term.whole(), tried.is_some());
                effects.push(Effect::Deadline(Some(left)));
                effects.push(Effect::Report(Report::Unconfirmed { generation: number, left, selftest }));
            }
            let documents = digest_in_place(state);
            state.record.pending = Some(Pending { generation: number, documents, term, before: tried });
            state.unwritten = !known || state.record != before;
        }
        _ => {
            if state.record.pending.take().is_some() {
                effects.push(Effect::Deadline(None));
                (state.awaited, state.unwritten) = (None, false);
            }
            if state.record != before && confirmed {
                keep(state, Vec::new(), effects);
            }
        }
    }
    if let Some(asked) = state.asked.as_mut().filter(|asked| asked.wanted == Wanted::Documents) {
        let text = applied(state.record.pending.as_ref());
        *asked = Asked { wanted: Wanted::Generation(number), text, ticket: None };
    }
    let origin = elsewhere.unwrap_or_else(|| "files".to_owned());
    state.good = Some(Version { number, origin, policy, settings, probes, texts });
}

/// Writes what may have to be undone before it is done.
fn write_ahead(state: &mut State, new: &Target, facts: &Facts, effects: &mut Vec<Effect>) {
    state.unwritten = false;
    let Some(version) = &state.good else { return };
    let mut what = Vec::new();
    if let (Some(confirmed), Some(_)) = (&state.confirmed, &state.not_kept) {
        // The way back has to be there, too, and the disk may not have it.
        let (effective, _) = resolve(&confirmed.policy, &confirmed.settings, facts);
        let Target { ruleset, boot, .. } = target(effective, false, confirmed.number);
        what.push(generation(confirmed, &ruleset, &boot));
        what.push(Keep::Confirmed(confirmed.number));
    }
    what.push(generation(version, &new.ruleset, &new.boot));
    state.kept = Some((version.number, Arc::clone(&new.boot)));
    let ticket = keep(state, what, effects);
    state.awaited = Some(ticket);
}

fn generation(version: &Version, ruleset: &Arc<Ruleset>, boot: &Arc<Ruleset>) -> Keep {
    Keep::Generation {
        number: version.number,
        origin: version.origin.clone(),
        texts: version.texts.clone(),
        ruleset: Arc::clone(ruleset),
        boot: Arc::clone(boot),
    }
}

/// What came into force is kept, and confirmed unless it waits for that.
fn keep_in_force(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(in_force) = &state.in_force else { return };
    let meant = state.good.as_ref().filter(|version| version.number == in_force.number && in_force.number != 0);
    let Some(version) = meant else {
        return keep_again(state, effects);
    };
    let pending = state.record.pending.as_ref().is_some_and(|pending| pending.generation == version.number);
    let known = state.kept.as_ref().is_some_and(|(number, ruleset)| {
        *number == version.number
            && (Arc::ptr_eq(ruleset, &in_force.boot) || !life::boots_otherwise(ruleset, &in_force.boot))
    });
    let confirm = !pending && (state.confirmed() != Some(version.number) || state.not_kept.is_some());
    if known && !confirm {
        return keep_again(state, effects);
    }
    let mut what = vec![generation(version, &in_force.ruleset, &in_force.boot)];
    if confirm {
        what.push(Keep::Confirmed(version.number));
        state.confirmed = Some(version.clone());
    }
    state.kept = Some((version.number, Arc::clone(&in_force.boot)));
    keep(state, what, effects);
}

/// Writes the record where the disk has another one.
fn keep_again(state: &mut State, effects: &mut Vec<Effect>) {
    let (recorded, lost) = &state.recorded;
    if *lost || *recorded != state.record {
        keep(state, Vec::new(), effects);
    }
}

/// Somebody says that the host is still reachable.
fn confirm(state: &mut State, by: &str, effects: &mut Vec<Effect>) {
    let Some(pending) = state.record.pending.clone() else {
        return effects.push(Effect::Answer(Err("nothing waits for a confirmation".to_owned())));
    };
    let number = pending.generation;
    if state.generation() != number || state.good.as_ref().is_none_or(|version| version.number != number) {
        return effects.push(Effect::Answer(Err(format!("generation {number} is not in force"))));
    }
    let ticket = confirmed(state, by, effects);
    let text = format!("generation {number} is confirmed");
    state.asked = Some(Asked { wanted: Wanted::Confirmation, text, ticket: Some(ticket) });
}

/// The generation in force, which waits for it, is confirmed; the ticket of the disk.
fn confirmed(state: &mut State, by: &str, effects: &mut Vec<Effect>) -> u64 {
    let generation = state.generation();
    state.confirmed.clone_from(&state.good);
    state.record.pending = None;
    effects.push(Effect::Deadline(None));
    effects.push(Effect::Report(Report::Confirmed { generation, by: by.to_owned() }));
    keep(state, vec![Keep::Confirmed(generation)], effects)
}

/// Somebody goes back.
fn rollback(state: &mut State, version: Option<Version>, by: &str, effects: &mut Vec<Effect>) {
    let refuse = |why: String| Effect::Answer(Err(why));
    if state.record.emergency.is_some() {
        return effects.push(refuse("panic or break-glass is on; end it first".to_owned()));
    }
    let (Some(facts), Some(_), true) = (&state.facts, state.table_found, state.is_read()) else {
        return effects.push(refuse("nodewall is starting; try again".to_owned()));
    };
    let version = match (version, &state.record.pending) {
        (Some(version), _) => version,
        (None, Some(_)) => match state.confirmed.clone() {
            Some(version) => version,
            None => return effects.push(refuse("there is no confirmed generation".to_owned())),
        },
        (None, None) => return effects.push(refuse("there is no earlier generation".to_owned())),
    };
    let (_, findings) = resolve(&version.policy, &version.settings, facts);
    if let Some(error) = first_error(&findings) {
        return effects.push(refuse(format!("{error}; nothing was changed")));
    }
    let number = version.number;
    state.held = None;
    if state.record.pending.take().is_some() {
        effects.push(Effect::Deadline(None));
    }
    (state.awaited, state.unwritten, state.unjudged) = (None, false, None);
    let why = format!("it was brought back by {by}");
    let pin = Pin { generation: number, documents: digest_in_place(state), why: why.clone(), expired: false };
    state.record.pin = Some(pin);
    state.settings = Some(version.settings.clone());
    (state.good, state.refused) = (Some(version), None);
    effects.push(Effect::Report(Report::RolledBack { to: number, why }));
    keep(state, Vec::new(), effects);
    let text = format!("generation {number} is in force until the documents change");
    state.asked = Some(Asked { wanted: Wanted::Generation(number), text, ticket: None });
    state.forced = true;
    decide(state, effects);
}

/// What nobody confirmed goes, and what was confirmed comes back.
fn give_up(state: &mut State, why: &str, answer: &str, effects: &mut Vec<Effect>) {
    let Some(pending) = state.record.pending.clone() else { return };
    if state.asked.as_ref().is_some_and(|asked| asked.wanted == Wanted::Generation(pending.generation)) {
        respond(state, Err(answer.to_owned()), effects);
    }
    effects.push(Effect::Deadline(None));
    turn_down(state, pending, why, effects);
    keep(state, Vec::new(), effects);
    state.forced = true;
    decide(state, effects);
}

fn turn_down(state: &mut State, pending: Pending, why: &str, effects: &mut Vec<Effect>) {
    (state.record.pending, state.awaited, state.unwritten) = (None, None, false);
    trial::given_up(state, pending.generation);
    // Only documents that something can be gone back from get a deadline; a damaged disk may have lost it since.
    let Some(confirmed) = state.confirmed.clone() else {
        state.record.pin = None;
        return;
    };
    let to = confirmed.number;
    let why = format!("generation {} was given up: {why}", pending.generation);
    effects.push(Effect::Report(Report::RolledBack { to, why: why.clone() }));
    state.record.pin = Some(Pin { generation: to, documents: pending.documents, why, expired: true });
    state.good = Some(confirmed);
}

/// An emergency begins or ends; what that is, in words.
fn switch(state: &mut State, emergency: Option<Emergency>, by: &str, effects: &mut Vec<Effect>) -> String {
    trial::interrupt(state);
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
    state.forced = true;
    words
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
            expires: policy.expires,
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
    let (interfaces, rails) = (effective.interfaces.clone(), effective.remembered.clone());
    Summary { mode: effective.mode, interfaces, policies, failsafe, rails }
}

impl State {
    /// Which flows the ruleset that is on its way to the kernel ends.
    pub fn revocation(&self) -> Option<Arc<Revocation>> {
        self.flying.as_ref()?.revocation.clone()
    }

    /// What explains what goes on: the policy in force, the facts, and the sets that peers may be named by; `None` as long as nothing
    /// of our doing is in force.
    pub fn scene(&self) -> Option<(Arc<Effective>, &Facts, &BTreeMap<String, NamedSet>)> {
        static NONE: BTreeMap<String, NamedSet> = BTreeMap::new();
        let sets = self.good.as_ref().map_or(&NONE, |version| &version.policy.sets);
        let in_force = self.in_force.as_ref()?;
        // Facts that need no other rules come to a target that is never sent.
        let newest = self.target.as_ref().filter(|target| Arc::ptr_eq(&target.ruleset, &in_force.ruleset));
        Some((Arc::clone(&newest.unwrap_or(in_force).effective), self.facts.as_ref()?, sets))
    }

    /// Whether the kernel has the table that was there at the start, in place of anything of this process' doing.
    fn is_found(&self) -> bool {
        self.table_found == Some(true) && self.in_force.is_none() && self.flying.is_none()
    }

    /// Whether the documents in place were read, so that it is known what should be in force.
    fn is_read(&self) -> bool {
        self.unjudged.is_some() || self.settings.is_some()
    }

    /// The state in one word.
    pub fn phase(&self) -> Phase {
        let lockdown = self.in_force.as_ref().is_some_and(|target| target.lockdown);
        let expired = self.record.pin.as_ref().is_some_and(|pin| pin.expired);
        if self.refused.is_some() || self.unresolved.is_some() || self.failed.is_some() || lockdown {
            Phase::Degraded
        } else if (self.flying.is_some() && !self.repairing)
            || (self.awaited.is_some() && self.record.emergency.is_none())
        {
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

    /// The accounts and units that somebody has to look up on this node for what holds or may hold again: those of the documents
    /// and of the generations that are known here.
    pub fn local_names(&self) -> LocalNames {
        let versions = self.good.iter().chain(&self.confirmed).map(|version| &version.policy);
        let mut names = LocalNames::default();
        for policy in versions.chain(self.unjudged.as_ref().map(|documents| &documents.policy)) {
            names.add(LocalNames::of(policy));
        }
        names
    }

    /// The control groups of the units that policies name, while they run.
    pub fn units(&self) -> BTreeMap<String, BTreeSet<Cgroup>> {
        self.facts.as_ref().map(|facts| facts.units.clone()).unwrap_or_default()
    }

    /// How far rules reach on what has no interface here, by name.
    pub fn elsewhere(&self) -> BTreeMap<String, Coverage> {
        self.facts.as_ref().map(coverage::elsewhere).unwrap_or_default()
    }

    /// The number of the generation in force; 0 when it is none: the lockdown, an emergency, nothing.
    pub fn generation(&self) -> u64 {
        self.in_force.as_ref().map_or(0, |target| target.number)
    }

    /// The documents of the generation in force; `None` when none is.
    pub fn version_in_force(&self) -> Option<&Version> {
        let number = self.generation();
        self.good.as_ref().filter(|version| version.number == number && number != 0)
    }

    /// Why the kernel does not have what it should.
    pub fn not_applied(&self) -> Option<&str> {
        self.failed.as_deref()
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
        self.in_force.as_ref().or(self.target.as_ref()).map(|target| &*target.summary)
    }

    /// What is to be remembered of rails: by a generation in force, since emergencies and the lockdown know nothing that documents say.
    pub fn rails(&self) -> Option<&Rails> {
        self.in_force.as_ref().filter(|target| target.number > 0).map(|target| &target.summary.rails)
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
                let rules = self.in_force.as_ref().map_or(0, |target| target.rules);
                let audit = if summary.mode == Mode::Audit { ", audit only" } else { "" };
                let trial = if phase == Phase::Unconfirmed { ", unconfirmed" } else { "" };
                format!(
                    "in force{trial}: {} policies, {rules} rules, {} interfaces{audit}",
                    summary.policies.iter().filter(|policy| !guards::is_built_in(&policy.place)).count(),
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
pub(crate) mod tests;
