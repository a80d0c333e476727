//! Where the thread that reads the packet log counts, and the loop reads.

use std::sync::{Arc, Mutex, PoisonError};

use crate::metrics::snapshot::{Log, LogSeries, Losses};
use crate::traffic::{Decider, Event, Verdict};

/// Shared counts; a clone is the same counts.
#[derive(Clone, Debug, Default)]
pub struct LogMeter(Arc<Mutex<Option<Log>>>);

impl LogMeter {
    /// Counts logged packets that were seen.
    pub fn saw<'e>(&self, events: impl IntoIterator<Item = &'e Event>) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let log = log.get_or_insert_default();
        for event in events {
            log.events.add(&series(event), [1]);
        }
    }

    /// What was lost since the daemon's start.
    pub fn lost(&self, losses: Losses) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().losses = losses;
    }

    /// What was counted; `None` while nobody counts.
    pub(super) fn now(&self) -> Option<Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What an event is counted by: the policy is called as in verdict counters.
fn series(event: &Event) -> LogSeries {
    let role = || event.role.map_or("*", |role| role.name());
    let policy = match &event.decider {
        Decider::Rule(id) => id.policy.to_string(),
        Decider::Tier(tier) => format!("tier:{tier}"),
        Decider::Default => format!("default:{}", role()),
        Decider::Essential(_) => "built-in:essential".to_owned(),
        Decider::Nothing => "no-policy".to_owned(),
        Decider::Unknown => "unknown".to_owned(),
    };
    LogSeries {
        interface: event.interface.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string),
        direction: event.direction.name(),
        policy,
        verdict: Verdict::name(event.verdict),
    }
}
