//! Changes of our table by others: what was noticed, what was done about it, and what is told of it.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::kernel::{Applied, Depth, Error};
use super::status::{DriftRecord, Status};
use super::{clock, log};
use crate::driver::Touch;
use crate::metrics::histogram::{Histogram, WORK};
use crate::metrics::snapshot::Work;
use crate::nft::TABLE;
use crate::nft::netlink::{Commit, Process, TouchedSets};
use crate::reconcile::drift::{Damper, until_next_look};

/// A change that was noticed and is not repaired yet.
#[derive(Clone, Debug)]
struct Noticed {
    at: Instant,
    by: Option<Process>,
    sets: TouchedSets,
}

/// What is known about others' changes.
pub(super) struct Drift {
    started: Instant,
    /// Spreads the unasked looks of many nodes.
    seed: u64,
    round: u64,
    damper: Damper,
    /// The first change that no repair was begun for.
    noticed: Option<Noticed>,
    /// What the repair under way is for; `None` for an unasked look.
    under_way: Option<Noticed>,
    /// When to begin a repair that has to wait.
    pub(super) repair_at: Option<Instant>,
    /// When to look unasked.
    pub(super) look_at: Instant,
    /// Whether repairs are being spaced out.
    storm: bool,
    storm_repairs: u64,
    events: u64,
    /// How long repairs took from the notification on.
    repairs: Histogram,
    last: Option<DriftRecord>,
    /// Nobody knew yet who did what was mended last.
    by_whom: bool,
}

impl Drift {
    pub(super) fn new(seed: u64) -> Self {
        let started = Instant::now();
        Self {
            started,
            seed,
            round: 0,
            damper: Damper::default(),
            noticed: None,
            under_way: None,
            repair_at: None,
            look_at: started + until_next_look(seed, 0),
            storm: false,
            storm_repairs: 0,
            events: 0,
            repairs: Histogram::new(WORK),
            last: None,
            by_whom: false,
        }
    }

    /// Takes in a notification; whether to repair now. Later is [`Self::repair_at`].
    pub(super) fn touched(&mut self, touch: Touch) -> bool {
        match touch {
            Touch::By(Commit { process, sets, .. }) => self.noticed(process, sets),
            Touch::Overrun => self.noticed(None, TouchedSets::Any),
        }
    }

    /// These sets do not hold what they should, or something else is not as it should be; whether to repair now.
    pub(super) fn noticed(&mut self, by: Option<Process>, sets: TouchedSets) -> bool {
        let at = Instant::now();
        if let Some(noticed) = &mut self.noticed {
            // One repair mends both. The first process that is known is named.
            noticed.by = noticed.by.take().or(by);
            noticed.sets = std::mem::replace(&mut noticed.sets, TouchedSets::NONE).or(sets);
            // Without a time it waits for what is on its way to the kernel, and that may have failed since.
            return self.repair_at.is_none();
        }
        self.noticed = Some(Noticed { at, by, sets });
        let pause = self.damper.pause(at - self.started);
        self.repair_at = (!pause.is_zero()).then(|| at + pause);
        pause.is_zero()
    }

    /// An unasked look is due: plans the next one.
    pub(super) fn looking(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.look_at = Instant::now() + until_next_look(self.seed, self.round);
    }

    /// A repair begins; how much has to be read.
    pub(super) fn begin(&mut self) -> Depth {
        self.repair_at = None;
        self.under_way = self.noticed.take();
        match &self.under_way {
            Some(noticed) => Depth::Touched(noticed.sets.clone()),
            None => Depth::Unasked,
        }
    }

    /// Nothing of ours is in force: what was noticed is no drift.
    pub(super) fn forget(&mut self) {
        (self.noticed, self.repair_at) = (None, None);
    }

    /// A repair is done.
    pub(super) fn repaired(&mut self, answer: &Result<Applied, Error>) {
        let noticed = self.under_way.take();
        let now = Instant::now();
        let took = noticed.as_ref().map_or(Duration::ZERO, |noticed| now - noticed.at);
        let difference = match answer {
            Ok(applied) if applied.changes == 0 => {
                self.name(noticed.and_then(|noticed| noticed.by));
                return tracing::debug!("table {TABLE} was touched and is as it should be");
            }
            Ok(applied) => applied.difference.clone(),
            Err(error) => vec![format!("it cannot be repaired: {error}")],
        };
        let spent = answer.as_ref().map_or(took, |applied| applied.spent);
        self.mended(noticed, difference, spent, now);
    }

    /// A change of ours is in force; it may have mended one of somebody else's that no repair was begun for.
    pub(super) fn mended_by_the_way(&mut self, applied: &Applied) {
        if !applied.difference.is_empty() {
            let noticed = self.noticed.clone();
            self.by_whom = noticed.as_ref().is_none_or(|noticed| noticed.by.is_none());
            self.mended(noticed, applied.difference.clone(), applied.spent, Instant::now());
        }
    }

    /// The notification of what was mended by the way tells who did it.
    fn name(&mut self, by: Option<Process>) {
        if let (true, Some(by), Some(last)) = (std::mem::take(&mut self.by_whom), by, &mut self.last) {
            (last.process, last.pid) = (Some(by.name), Some(by.pid));
        }
    }

    fn mended(&mut self, noticed: Option<Noticed>, difference: Vec<String>, spent: Duration, now: Instant) {
        self.damper.repaired(now - self.started, spent);
        self.events = self.events.saturating_add(1);
        if let Some(noticed) = &noticed {
            self.repairs.observe(now - noticed.at);
        }
        let repair_ms = noticed.as_ref().map(|noticed| ((now - noticed.at).as_secs_f64() * 1e6).round() / 1e3);
        let by = noticed.and_then(|noticed| noticed.by);
        self.tell(by.as_ref(), &difference, repair_ms, now);
        self.last = Some(DriftRecord {
            time: clock::rfc3339(SystemTime::now()),
            process: by.as_ref().map(|process| process.name.clone()),
            pid: by.as_ref().map(|process| process.pid),
            difference,
            repair_ms,
        });
    }

    fn tell(&mut self, by: Option<&Process>, difference: &[String], repair_ms: Option<f64>, now: Instant) {
        let message_id = log::message_id::DRIFT;
        let who = by.map_or_else(|| "somebody".to_owned(), |by| format!("{} (process {})", by.name, by.pid));
        let process = by.map(|by| by.name.as_str());
        let pid = by.map(|by| by.pid);
        let storm = self.damper.is_storm(now - self.started);
        self.storm_repairs = if storm { self.storm_repairs.saturating_add(1) } else { 0 };
        if storm && !self.storm {
            tracing::warn!(
                message_id,
                process,
                pid,
                "{who} keeps changing table {TABLE}: repairs now wait up to a second; stop what does this"
            );
        }
        self.storm = storm;
        // In a storm ever fewer lines: the same one five times a second helps nobody.
        if !storm || self.storm_repairs.is_power_of_two() {
            let events = self.events;
            let took = repair_ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
            tracing::warn!(
                message_id,
                process,
                pid,
                events,
                repair_ms,
                "{who} changed table {TABLE}, repaired{took}: {}",
                difference.join("; ")
            );
        }
    }

    /// Adds what is known to metrics.
    pub(super) fn measure(&self, work: &mut Work) {
        work.drifts = self.events;
        work.storm = self.damper.is_storm(Instant::now() - self.started);
        work.repairs = self.repairs.clone();
    }

    /// Adds what is known to a status.
    pub(super) fn add_to(&self, status: &mut Status) {
        status.drift_events = self.events;
        status.drift_last.clone_from(&self.last);
        status.drift_storm = self.damper.is_storm(Instant::now() - self.started);
    }
}
