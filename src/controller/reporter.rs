//! Tells as Events what happens to nodes, as `seen` and `events` say.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::sleep;

use super::api::{Api, elapsed};
use super::events::Events;
use super::judge::{EVENTS, collection, version};
use super::pace::spread;
use super::seen::{Seen, Subject};
use super::{Trouble, wall};
use crate::identity::client::Failure;
use crate::net::splitmix;
use crate::source::object::Kind;
use crate::source::object::news::News;

/// More changed states than this are listed, not asked for one by one, where they are one of [`SHARE`] of all as well: a state has
/// some KiB.
const FEW: usize = 16;
const SHARE: usize = 20;
/// So many Events at most wait for an API server that does not take them.
const MOST_WAITING: usize = 200;

/// Works until it is dropped, with looks so far apart.
pub(super) async fn run(api: Api, every: Duration) {
    let (changes, waiting) = (Vec::new(), Vec::new());
    let mut reporter = Reporter {
        api,
        seen: Seen::default(),
        events: Events::default(),
        changes,
        waiting,
        trouble: Trouble::default(),
    };
    let mut trouble = Trouble::default();
    for turn in 0.. {
        trouble.say("what happens to nodes cannot be told", reporter.round().await);
        sleep(spread(every, splitmix::nth(u64::from(elapsed().subsec_nanos()), turn))).await;
    }
}

struct Reporter {
    api: Api,
    seen: Seen,
    events: Events,
    /// What was seen and not thought about.
    changes: Vec<(Subject, Vec<News>)>,
    /// What was not taken yet.
    waiting: Vec<Json>,
    /// With single Events.
    trouble: Trouble,
}

impl Reporter {
    async fn round(&mut self) -> Result<(), Failure> {
        // What was seen before a look broke off is told, as it will not be seen again.
        let looked = self.look().await;
        let now = wall();
        for report in self.events.round(std::mem::take(&mut self.changes), elapsed()) {
            tracing::info!("HostState/{}: {}: {}", report.subject.name, report.reason, report.note);
            self.waiting.push(report.event(&now, &self.api.instance));
        }
        if let Some(more) = self.waiting.len().checked_sub(MOST_WAITING).filter(|more| *more > 0) {
            tracing::warn!("{more} Events are dropped, as the API server does not take them");
            self.waiting.drain(..more);
        }
        while let Some(event) = self.waiting.first() {
            match self.api.create(EVENTS, event).await {
                Err(failure) if failure.passes() => return Err(failure),
                // 409: it got there the last time.
                Err(failure) if !failure.is(409) => self.trouble.say("an Event is not taken", Err(failure)),
                _ => self.trouble.say("an Event is not taken", Ok(())),
            }
            self.waiting.remove(0);
        }
        looked
    }

    async fn look(&mut self) -> Result<(), Failure> {
        let states = collection(Kind::HostState);
        let (mut names, mut changed) = (BTreeSet::new(), Vec::new());
        let metadata = |object: Json| {
            let Some(name) = object.pointer("/metadata/name").and_then(Json::as_str) else { return };
            if !self.seen.has(name, version(&object)) {
                changed.push(name.to_owned());
            }
            names.insert(name.to_owned());
        };
        match self.api.each_metadata(&states, metadata).await {
            // The definition is not installed.
            Err(failure) if failure.is(404) => return Ok(()),
            other => other?,
        }
        if changed.len() > FEW.max(names.len() / SHARE) {
            // Page by page: all of them at once would be a hundred times what is kept.
            let state = |object: Json| {
                self.changes.extend(self.seen.see(&object));
                // It may have come since.
                names.extend(object.pointer("/metadata/name").and_then(Json::as_str).map(str::to_owned));
            };
            self.api.each(&states, state).await?;
        } else {
            for name in changed {
                match self.api.get(&states, &name).await {
                    Ok(object) => self.changes.extend(self.seen.see(&object)),
                    // The next look does not find it any more.
                    Err(failure) if failure.is(404) => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
        self.seen.settle(&names);
        self.events.settle(&names);
        Ok(())
    }
}
