//! Who of several controllers works: the election by a Lease, as client-go has it. Decides, and does nothing.
//!
//! No clock is compared with another's. That a holder is gone is seen by this: its Lease has not changed for the time that it is for,
//! by our own clock, since we saw it change. Times are from a monotonic clock that counts suspend, too.

use std::time::Duration;

/// How long others wait after the last sign of the holder.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// So often the holder gives a sign.
pub(super) const RENEW: Duration = Duration::from_secs(5);
/// A holder that could give none for so long stops working: before others may begin.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// So often those who wait look.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// The pause after an attempt that came to nothing.
const AGAIN: Duration = Duration::from_secs(1);

/// What a Lease says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Record {
    /// Who holds it; empty: nobody.
    pub(super) holder: String,
    /// For how long after its last sign, in seconds.
    pub(super) seconds: u64,
    /// Since when: RFC 3339 with microseconds, of the holder's clock.
    pub(super) acquired: String,
    /// When the last sign was.
    pub(super) renewed: String,
    /// How often the holder changed.
    pub(super) transitions: u64,
}

/// What to do now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// To read the Lease.
    Read,
    /// To make it.
    Create(Record),
    /// To put this in the place of this version.
    Replace(String, Record),
    /// Nothing, for so long.
    Wait(Duration),
}

/// What is known of the Lease.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Known {
    /// It has to be read.
    Nothing,
    /// There is none.
    Absent,
    /// This version.
    Version(String),
}

/// One who wants to work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Election {
    me: String,
    known: Known,
    record: Record,
    /// The version that was seen last: a clock that stands still writes the same record again.
    seen: String,
    /// When that was seen first.
    changed: Duration,
    /// When the last sign of ours was sent that got there.
    sign: Option<Duration>,
    /// Not before this.
    not_before: Duration,
}

impl Election {
    /// Of somebody with this name, which nobody else has or had.
    pub(super) fn new(me: String) -> Self {
        let (known, record, seen) = (Known::Nothing, Record::default(), String::new());
        Self { me, known, record, seen, changed: Duration::ZERO, sign: None, not_before: Duration::ZERO }
    }

    /// How long to work at most without another sign; `None`: not at all.
    pub(super) fn left(&self, now: Duration) -> Option<Duration> {
        (self.sign? + DEADLINE).checked_sub(now).filter(|left| !left.is_zero())
    }

    /// What to do; `wall` is the time of day, for people who read the Lease.
    pub(super) fn step(&self, now: Duration, wall: &str) -> Step {
        if now < self.not_before {
            return Step::Wait(self.not_before - now);
        }
        let version = match &self.known {
            Known::Nothing => return Step::Read,
            Known::Absent => return Step::Create(self.taken(wall)),
            Known::Version(version) => version.clone(),
        };
        if self.record.holder == self.me {
            let due = self.sign.map_or(now, |sign| sign + RENEW);
            if now < due {
                return Step::Wait(due - now);
            }
            return Step::Replace(version, Record { renewed: wall.to_owned(), ..self.record.clone() });
        }
        // Less than the usual time is nobody's word; a released one has no holder.
        let patience = Duration::from_secs(self.record.seconds).max(LEASE);
        if self.record.holder.is_empty() || now >= self.changed + patience {
            return Step::Replace(version, self.taken(wall));
        }
        Step::Read
    }

    /// The Lease was read.
    pub(super) fn read(&mut self, found: Option<(String, Record)>, now: Duration) {
        match found {
            None => {
                self.known = Known::Absent;
                self.record = Record::default();
            }
            Some((version, record)) => {
                self.see(version, record, now);
                if self.record.holder != self.me && !self.is_free(now) {
                    self.not_before = now + LOOK;
                }
            }
        }
        if self.record.holder != self.me {
            self.sign = None;
        }
    }

    /// What was written is there, in this version; it was sent at `sent`.
    pub(super) fn wrote(&mut self, version: String, record: Record, sent: Duration) {
        self.seen.clone_from(&version);
        self.known = Known::Version(version);
        // From when it was sent: others count from when they see it, which is later.
        self.sign = (record.holder == self.me).then_some(sent);
        self.record = record;
        self.changed = sent;
    }

    /// It could not be read or written, or somebody else was quicker.
    pub(super) fn failed(&mut self, now: Duration) {
        self.known = Known::Nothing;
        self.not_before = now + AGAIN;
    }

    /// What to write to let others begin at once; `None`: we hold nothing.
    pub(super) fn release(&self, wall: &str) -> Option<(String, Record)> {
        let Known::Version(version) = &self.known else { return None };
        let held = self.record.holder == self.me;
        held.then(|| {
            let record = Record { holder: String::new(), seconds: 1, renewed: wall.to_owned(), ..self.record.clone() };
            (version.clone(), record)
        })
    }

    fn is_free(&self, now: Duration) -> bool {
        let patience = Duration::from_secs(self.record.seconds).max(LEASE);
        self.record.holder.is_empty() || now >= self.changed + patience
    }

    fn see(&mut self, version: String, record: Record, now: Duration) {
        if self.seen != version {
            self.changed = now;
            self.seen.clone_from(&version);
        }
        self.record = record;
        self.known = Known::Version(version);
    }

    /// The record when we take it.
    fn taken(&self, wall: &str) -> Record {
        Record {
            holder: self.me.clone(),
            seconds: LEASE.as_secs(),
            acquired: wall.to_owned(),
            renewed: wall.to_owned(),
            transitions: match &self.known {
                Known::Version(_) => self.record.transitions + 1,
                Known::Nothing | Known::Absent => 0,
            },
        }
    }
}

#[cfg(test)]
mod tests;
