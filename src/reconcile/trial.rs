//! The way of a change that confirms itself: how the probes go without it, the change, how they go with it.
//!
//! ```text
//! documents ── hold ── baseline, what is in force goes on ── adopt ── in force ── round ──┬─ nothing failed: confirmed
//!                                                                          ^             └─ else, a second later
//!                                                                          └─────────────────────┘   … until the deadline
//! ```

use std::time::Duration;

use super::life::{Confirmation, Pending, Trial};
use super::selftest::{self, Judgement, Outcome, Tried};
use super::{Documents, Effect, Report, State, Term, confirmed, decide, first_error, respond};
use crate::net::facts::Facts;
use crate::policy::resolve::resolve;

/// The pause between two rounds of probes.
const AGAIN: Duration = Duration::from_secs(1);
/// A probe has failed before the change when it did so this often: a lost packet must not count as a server that is down.
const BASELINE_ROUNDS: u8 = 2;

/// Documents that wait until it is known how their self-test goes without them.
#[derive(Clone, Debug)]
pub(super) struct Held {
    documents: Documents,
    elsewhere: Option<String>,
    /// The digest of the documents in place when these came.
    pub(super) in_place: String,
    /// The probes that are under way.
    ticket: Option<u64>,
    rounds: u8,
    results: Vec<Tried>,
}

/// Probes of the generation in force that are under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Testing {
    ticket: u64,
    generation: u64,
}

/// How the self-test of the newest change that has one goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SelfTest {
    /// The generation; `None` while it has no number yet.
    pub generation: Option<u64>,
    /// Where it stands.
    pub progress: Progress,
    /// How often the probes were tried with the change.
    pub rounds: u32,
    /// What the last ones came to.
    pub results: Vec<(String, Judgement)>,
}

/// Where a self-test stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The change waits: for an address of this host, for the end of an emergency, for what is on its way to the kernel.
    Waiting,
    /// The probes are tried without the change.
    Before,
    /// They are tried with it, or will be as soon as it is in force.
    Running,
    /// The generation was confirmed by it.
    Passed,
    /// The generation was given up because of it.
    Failed,
    /// Somebody confirmed the generation or went back from it before, or newer documents came.
    Ended,
}

impl Progress {
    /// The word of `nodewall status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Before => "before",
            Self::Running => "running",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// Lets documents go on, or holds them until it is known how their self-test goes without them.
pub(super) fn admit(
    state: &mut State,
    documents: Documents,
    facts: &Facts,
    effects: &mut Vec<Effect>,
) -> Option<Documents> {
    if !wants_baseline(state, &documents, facts) {
        // Other documents in place take the place of what waits. Those from elsewhere may have errors; and a look at the same ones
        // says nothing about what somebody asked for from elsewhere.
        let same = |held: &Held| held.elsewhere.is_some() && held.in_place == state.documents;
        if state.elsewhere.is_none() && state.held.as_ref().is_some_and(|held| !same(held)) {
            drop_held(state, effects);
        }
        return Some(documents);
    }
    drop_held(state, effects);
    if let (None, Some(good)) = (&state.settings, &state.good) {
        // An emergency or a lockdown does not wait for them.
        state.settings = Some(good.settings.clone());
    }
    if let Some(until) = waits_until(state, facts) {
        effects.push(Effect::Report(Report::Held { until }));
        if state.in_force.is_some() && state.flying.is_none() {
            effects.push(Effect::Ready);
        }
    }
    state.held = Some(Held {
        documents,
        elsewhere: state.elsewhere.take(),
        in_place: super::digest_in_place(state),
        ticket: None,
        rounds: 0,
        results: Vec::new(),
    });
    None
}

/// Whether these documents begin a trial that ends by a self-test.
fn wants_baseline(state: &State, documents: &Documents, facts: &Facts) -> bool {
    let Some(Trial { confirmation: Confirmation::SelfTest { before: None }, .. }) = &documents.trial else {
        return false;
    };
    let Some(confirmed) = &state.confirmed else { return false };
    // What comes during a trial is judged by what was before that trial.
    if state.record.pending.is_some() || confirmed.texts.digest() == documents.texts.digest() {
        return false;
    }
    let dealt_with = state.good.as_ref().is_some_and(|good| state.record.holds(good.number, &state.documents));
    if state.elsewhere.is_none() && dealt_with {
        return false;
    }
    // What has errors is refused, and does not wait for that.
    let resolved = resolve(&documents.policy, &documents.settings, facts).1;
    first_error(&documents.findings).or_else(|| first_error(&resolved)).is_none()
}

/// Nothing waits any more, as something newer is there. Who ordered it from elsewhere is told.
fn drop_held(state: &mut State, effects: &mut Vec<Effect>) {
    if let Some(Held { elsewhere: Some(_), .. }) = state.held.take() {
        respond(state, Err("the documents in place changed meanwhile; try again".to_owned()), effects);
    }
}

/// What probes have to wait for before they say anything.
fn waits_until(state: &State, facts: &Facts) -> Option<&'static str> {
    if state.record.emergency.is_some() {
        return Some("the emergency is over");
    }
    // Nothing can be reached before, and a change that cuts the host off would not be told from one that does not.
    (!selftest::has_network(facts)).then_some("this host has an address")
}

/// Tries the probes without the documents that wait, as soon as that says something.
pub(super) fn baseline(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(facts) = &state.facts else { return };
    if state.held.is_none() {
        return;
    }
    let busy = state.flying.is_some() || state.awaited.is_some() || state.record.pending.is_some();
    if busy || waits_until(state, facts).is_some() {
        return;
    }
    let Some(held) = state.held.as_mut().filter(|held| held.ticket.is_none()) else { return };
    let (effective, _) = resolve(&held.documents.policy, &held.documents.settings, facts);
    let probes = selftest::probes(&held.documents.probes, &effective, facts);
    state.probing += 1;
    held.ticket = Some(state.probing);
    let after = if held.rounds == 0 { Duration::ZERO } else { AGAIN };
    effects.push(Effect::SelfTest { ticket: state.probing, probes, after });
}

/// Begins the self-test of the generation in force, if it waits for one.
pub(super) fn begin(state: &mut State, effects: &mut Vec<Effect>) {
    let Some(Pending { generation, before: Some(_), .. }) = &state.record.pending else { return };
    let generation = *generation;
    let under_way = state.testing.is_some_and(|testing| testing.generation == generation);
    if state.generation() != generation || under_way {
        return;
    }
    state.tested =
        Some(SelfTest { generation: Some(generation), progress: Progress::Running, rounds: 0, results: Vec::new() });
    round(state, generation, Duration::ZERO, effects);
}

fn round(state: &mut State, generation: u64, after: Duration, effects: &mut Vec<Effect>) {
    let (Some(good), Some(facts)) = (&state.good, &state.facts) else { return };
    let (effective, _) = resolve(&good.policy, &good.settings, facts);
    let probes = selftest::probes(&good.probes, &effective, facts);
    state.probing += 1;
    state.testing = Some(Testing { ticket: state.probing, generation });
    effects.push(Effect::SelfTest { ticket: state.probing, probes, after });
}

/// The probes of this ticket were tried. `now` is in milliseconds since 1970-01-01 UTC.
pub(super) fn tested(state: &mut State, ticket: u64, results: Vec<Tried>, now: u64, effects: &mut Vec<Effect>) {
    if state.held.as_ref().is_some_and(|held| held.ticket == Some(ticket)) {
        return tested_before(state, results, now, effects);
    }
    let Some(testing) = state.testing.filter(|testing| testing.ticket == ticket) else { return };
    state.testing = None;
    let Some(Pending { generation, before: Some(before), .. }) = &state.record.pending else { return };
    let (generation, before) = (*generation, before.clone());
    // Of what is in force now these say nothing; when it is the generation's turn again, they are tried again.
    if testing.generation != generation || state.generation() != generation {
        return;
    }
    let (Some(good), Some(facts)) = (&state.good, &state.facts) else { return };
    let (effective, _) = resolve(&good.policy, &good.settings, facts);
    let mut all = selftest::simulated(&effective, facts);
    all.extend(results);
    let judged = selftest::judge(&before, all);
    let earlier = state.tested.take().filter(|tested| tested.generation == Some(generation));
    let rounds = earlier.as_ref().map_or(0, |tested| tested.rounds).saturating_add(1);
    let failing = selftest::failing(&judged);
    let progress = if failing.is_some() { Progress::Running } else { Progress::Passed };
    // The same again every second helps nobody.
    let names = |judged: &[(String, Judgement)]| -> Vec<String> {
        let failed = judged.iter().filter(|(_, judgement)| matches!(judgement, Judgement::Failed(_)));
        failed.map(|(name, _)| name.clone()).collect()
    };
    let changed = earlier.is_none_or(|earlier| names(&earlier.results) != names(&judged));
    state.tested = Some(SelfTest { generation: Some(generation), progress, rounds, results: judged });
    match failing {
        Some(failing) => {
            if changed {
                effects.push(Effect::Report(Report::SelfTest { generation, failing }));
            }
            round(state, generation, AGAIN, effects);
        }
        None => {
            let found = state.tested.as_ref().map(|tested| selftest::words(&tested.results)).unwrap_or_default();
            confirmed(state, &format!("self-test: {found}"), effects);
        }
    }
}

fn tested_before(state: &mut State, results: Vec<Tried>, now: u64, effects: &mut Vec<Effect>) {
    let Some(held) = &mut state.held else { return };
    held.ticket = None;
    held.rounds = held.rounds.saturating_add(1);
    for tried in results {
        match held.results.iter_mut().find(|earlier| earlier.probe == tried.probe) {
            Some(earlier) if earlier.outcome == Outcome::Passed => {}
            Some(earlier) => *earlier = tried,
            None => held.results.push(tried),
        }
    }
    let failed = held.results.iter().any(|tried| matches!(tried.outcome, Outcome::Failed(_)));
    if failed && held.rounds < BASELINE_ROUNDS {
        return baseline(state, effects);
    }
    let Some(held) = state.held.take() else { return };
    let Held { mut documents, elsewhere, results: mut before, .. } = held;
    if let (Some(good), Some(facts)) = (&state.good, &state.facts) {
        let (effective, _) = resolve(&good.policy, &good.settings, facts);
        before.extend(selftest::simulated(&effective, facts));
    }
    if let Some(trial) = &mut documents.trial {
        // The time is for the change, not for what was before it.
        trial.term = Term::new(now, trial.term.whole());
        trial.confirmation = Confirmation::SelfTest { before: Some(before) };
    }
    (state.elsewhere, state.unjudged) = (elsewhere, Some(documents));
    decide(state, effects);
}

/// Why a generation goes whose time is over.
pub(super) fn overdue(state: &State) -> String {
    let Some(pending) = &state.record.pending else { return String::new() };
    if pending.before.is_none() {
        return "nobody confirmed it in time".to_owned();
    }
    let tested = state.tested.as_ref().filter(|tested| tested.generation == Some(pending.generation));
    match tested.and_then(|tested| selftest::failing(&tested.results)) {
        Some(failing) => format!("its self-test failed: {failing}"),
        None if state.generation() != pending.generation => "it was not in force when its time was over".to_owned(),
        None => "its self-test did not end in time".to_owned(),
    }
}

/// A generation is given up.
pub(super) fn given_up(state: &mut State, generation: u64) {
    state.testing = None;
    if let Some(tested) = state.tested.as_mut().filter(|tested| tested.generation == Some(generation)) {
        tested.progress = Progress::Failed;
    }
}

impl State {
    /// How the self-test of the newest change that has one goes, or went.
    pub fn selftest(&self) -> Option<SelfTest> {
        if let Some(held) = &self.held {
            let progress = if held.ticket.is_some() { Progress::Before } else { Progress::Waiting };
            return Some(SelfTest { generation: None, progress, rounds: 0, results: Vec::new() });
        }
        let waits = self.record.pending.as_ref().filter(|pending| pending.before.is_some());
        let waits = waits.map(|pending| pending.generation);
        match (&self.tested, waits) {
            (tested, Some(generation)) if tested.as_ref().is_none_or(|t| t.generation != Some(generation)) => {
                Some(SelfTest {
                    generation: Some(generation),
                    progress: Progress::Running,
                    rounds: 0,
                    results: Vec::new(),
                })
            }
            (Some(tested), None) if tested.progress == Progress::Running => {
                Some(SelfTest { progress: Progress::Ended, ..tested.clone() })
            }
            (tested, _) => tested.clone(),
        }
    }
}

/// What somebody ordered from elsewhere waits no more: there is another order, and so nobody who waits for its answer.
pub(super) fn forget_order(state: &mut State) {
    if matches!(state.held, Some(Held { elsewhere: Some(_), .. })) {
        state.held = None;
    }
}

/// An emergency begins or ends: what is under way says nothing about what is in force from now on. What somebody ordered is not
/// brought back later, when nobody thinks of it any more.
pub(super) fn interrupt(state: &mut State) {
    forget_order(state);
    if let Some(held) = &mut state.held {
        (held.ticket, held.rounds) = (None, 0);
        held.results.clear();
    }
}
