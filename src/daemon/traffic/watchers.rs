//! Who watches what goes on, over the control socket. Nobody who reads slowly holds anybody up: what has no room is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use super::record::{EventRecord, Line, LostRecord, VERSION};
use crate::traffic::Event;

/// How many lines wait for a watcher: a few seconds of 1,000 events, some 2 MiB at most.
const WAITING: usize = 4096;
/// How many may watch.
const MOST: usize = 16;

/// All who watch.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Watchers(Arc<Mutex<Vec<Watcher>>>, Arc<AtomicU64>);

#[derive(Debug)]
struct Watcher {
    lines: Sender<Arc<[u8]>>,
    missed: u64,
    /// The losses that it was told of.
    lost: LostRecord,
}

impl Watchers {
    /// One more; `None` when there are too many.
    pub(in crate::daemon) fn enter(&self) -> Option<Receiver<Arc<[u8]>>> {
        let mut watchers = self.all();
        watchers.retain(|watcher| !watcher.lines.is_closed());
        if watchers.len() >= MOST {
            return None;
        }
        let (lines, receiver) = channel(WAITING);
        watchers.push(Watcher { lines, missed: 0, lost: LostRecord::default() });
        Some(receiver)
    }

    /// Tells all of an event.
    pub(super) fn tell(&self, event: &Event) {
        let mut watchers = self.all();
        if watchers.is_empty() {
            return;
        }
        let record = Line { version: VERSION, event: Some(EventRecord::of(event)), ..Line::default() };
        let Some(line) = text(&record) else { return };
        watchers.retain_mut(|watcher| watcher.give(&line, &self.1));
    }

    /// Tells all of losses that have grown.
    pub(super) fn tell_lost(&self, lost: LostRecord) {
        let mut watchers = self.all();
        let Some(line) = text(&Line { version: VERSION, lost: Some(lost), ..Line::default() }) else { return };
        watchers.retain_mut(|watcher| {
            if watcher.lost == lost {
                return true;
            }
            watcher.lost = lost;
            watcher.give(&line, &self.1)
        });
    }

    /// How many events all who watched have missed.
    pub(super) fn missed(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Gives a line where there is room, after what was missed before it; false once the watcher is gone.
    fn give(&mut self, line: &Arc<[u8]>, missed: &AtomicU64) -> bool {
        if self.missed > 0 {
            let before = Line { version: VERSION, missed: Some(self.missed), ..Line::default() };
            match text(&before).map(|before| self.lines.try_send(before)) {
                Some(Ok(())) => self.missed = 0,
                Some(Err(TrySendError::Closed(_))) => return false,
                Some(Err(TrySendError::Full(_))) | None => {
                    self.misses(missed);
                    return true;
                }
            }
        }
        match self.lines.try_send(Arc::clone(line)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.misses(missed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

impl Watcher {
    fn misses(&mut self, all: &AtomicU64) {
        self.missed = self.missed.saturating_add(1);
        all.fetch_add(1, Ordering::Relaxed);
    }
}

fn text(line: &Line) -> Option<Arc<[u8]>> {
    let mut text = serde_json::to_vec(line).ok()?;
    text.push(b'\n');
    Some(text.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_reads_slowly_is_told_how_much_it_missed_and_who_is_gone_is_forgotten() {
        let watchers = Watchers::default();
        let lost = |packets| LostRecord { packets, connections: 0 };
        let mut slow = watchers.enter().unwrap();
        let gone = watchers.enter().unwrap();
        drop(gone);
        for packets in 1..=WAITING as u64 + 3 {
            watchers.tell_lost(lost(packets));
        }
        assert_eq!(watchers.all().len(), 1);
        let read = |line: Arc<[u8]>| serde_json::from_slice::<Line>(&line).unwrap();
        assert_eq!(read(slow.try_recv().unwrap()).lost, Some(lost(1)));
        assert_eq!(read(slow.try_recv().unwrap()).lost, Some(lost(2)));
        watchers.tell_lost(lost(1 << 20));
        let rest: Vec<Line> = std::iter::from_fn(|| slow.try_recv().ok()).map(read).collect();
        assert_eq!(rest.iter().find_map(|line| line.missed), Some(3));
        assert_eq!(rest.last().unwrap().lost, Some(lost(1 << 20)));
        let many: Vec<_> = (0..MOST + 1).map(|_| watchers.enter()).collect();
        assert_eq!(many.iter().filter(|place| place.is_some()).count(), MOST - 1);
    }
}
