//! What is in the store, gathered.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::super::exit::{Exit, chain};
use super::super::output::Output;
use super::state::{self, Learning};
use super::words;
use crate::flow::store::{Error, Reader, directory};
use crate::learn::Gathered;
use crate::learn::text::About;
use crate::traffic::seen::Seen;

/// A stretch of time, in microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    from: u64,
    until: u64,
}

impl Range {
    /// The last stretch of this length, or else the time in which is learned, or else all.
    fn of(since: Option<Duration>, learning: Option<&Learning>, now: u64) -> Self {
        let micros = |seconds: u64| seconds.saturating_add(1).saturating_mul(1_000_000);
        let (from, until) = match (since, learning) {
            (Some(since), _) => (now.saturating_sub(since.as_secs()), now),
            (None, Some(learning)) => (learning.started, learning.until.min(now)),
            (None, None) => (0, now),
        };
        Self { from: from.saturating_mul(1_000_000), until: micros(until) }
    }
}

/// What was in the store.
pub(super) struct Stored {
    pub(super) gathered: Gathered,
    pub(super) seen: Seen,
    damaged: u64,
}

/// What is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Lost {
    /// Logged packets.
    packets: u64,
    /// How often events of connections were lost.
    connections: u64,
    /// Records that were not kept, or not as they were written.
    records: u64,
}

impl Lost {
    pub(super) fn words(self) -> String {
        match self {
            Self { packets: 0, connections: 0, records: 0 } => "nothing was lost".to_owned(),
            Self { packets, connections, records } => format!(
                "lost: {}, events of connections {}, {}",
                words::number(packets, "logged packet"),
                words::number(connections, "time"),
                words::number(records, "record")
            ),
        }
    }
}

/// The store cannot be read.
struct Unreadable(Error);

impl Unreadable {
    fn tell(&self, output: &Output) -> Exit {
        let text = chain(&self.0);
        match &self.0 {
            Error::Missing { .. } => {
                output.message(&format!("{text}: nodewall keeps them while it runs, with [flows] store = true"));
                Exit::Failure
            }
            error => {
                output.message(&text);
                if error.is_denied() { Exit::NotAuthorised } else { Exit::Failure }
            }
        }
    }
}

/// Since when is learned, where that was noted, and what the store has of the time that counts; why not is told.
pub(super) fn learned(
    state: &Path,
    since: Option<Duration>,
    now: u64,
    output: &Output,
) -> Result<(Option<Learning>, Stored), Exit> {
    let learning = state::read(state).map_err(|why| {
        output.message(&why);
        Exit::Failure
    })?;
    let stored = Stored::gather(state, Range::of(since, learning.as_ref(), now)).map_err(|error| error.tell(output))?;
    Ok((learning, stored))
}

impl Stored {
    /// Reads what a state directory has of a stretch of time.
    fn gather(state: &Path, Range { from, until }: Range) -> Result<Self, Unreadable> {
        let reader = Reader::open(&directory(state)).map_err(Unreadable)?;
        let mut gathered = Gathered::default();
        let mut each = |record| {
            gathered.push(&record);
            ControlFlow::Continue(())
        };
        let scan = reader.records(from, until, &mut each).map_err(Unreadable)?;
        let seen = reader.seen(from, until).map_err(Unreadable)?;
        Ok(Self { gathered, seen, damaged: scan.damaged })
    }

    pub(super) fn lost(&self) -> Lost {
        let Seen { left_out, lost_packets, lost_connections, .. } = &self.seen;
        Lost { packets: *lost_packets, connections: *lost_connections, records: left_out.saturating_add(self.damaged) }
    }

    /// What a draft says of itself.
    pub(super) fn about(&self, node: &str) -> About {
        let Lost { packets, connections, records } = self.lost();
        About { node: node.to_owned(), lost_packets: packets, lost_connections: connections, lost_records: records }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_counts_is_what_was_asked_for_or_that_of_learning() {
        let learning = Learning { started: 1000, until: 5000, by: String::new() };
        let of = |since: Option<u64>, learning, now| {
            let Range { from, until } = Range::of(since.map(Duration::from_secs), learning, now);
            (from / 1_000_000, until / 1_000_000)
        };
        assert_eq!(of(None, Some(&learning), 3000), (1000, 3001));
        assert_eq!(of(None, Some(&learning), 9000), (1000, 5001));
        assert_eq!(of(Some(100), Some(&learning), 9000), (8900, 9001));
        assert_eq!(of(None, None, 9000), (0, 9001));
    }
}
