//! The thread that ends flows which a new generation denies. It is apart from the one that talks to nf_tables, so that
//! neither the next change nor a status waits for a large connection tracking table.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::clock;
use super::status::RevocationRecord;
use crate::driver::{Conntrack, Error, Revoked};
use crate::revoke::Revocation;
use crate::revoke::pace::{BUDGET, Pace};

/// The way to the thread; it ends when this is gone.
#[derive(Debug)]
pub(super) struct Revoker {
    jobs: mpsc::Sender<Job>,
    /// The number of the newest generation.
    newest: Arc<AtomicU64>,
    progress: Progress,
}

/// How far the work under way has come, or how the last one went; shared with who shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<Option<RevocationRecord>>>);

#[derive(Debug)]
struct Job {
    number: u64,
    revocation: Option<Arc<Revocation>>,
    why: Why,
}

/// Why flows are judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    /// A generation came into force.
    Changed,
    /// The table was not as it should be for a while.
    Repaired,
}

/// Repairs come in bursts. Flows are judged when there was none for so long, ...
const QUIET: Duration = Duration::from_millis(500);
/// ... or so long after the first one.
const QUIET_AT_MOST: Duration = Duration::from_secs(5);
/// How often the journal hears of work that takes long.
const TELL_EVERY: Duration = Duration::from_secs(30);

impl Revoker {
    /// Starts the thread, in the network namespace of the caller.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel();
        let (newest, progress) = (Arc::new(AtomicU64::new(0)), Progress::default());
        let mut thread = Thread { waiting, newest: Arc::clone(&newest), progress: progress.clone(), conntrack: None };
        thread::Builder::new().name("conntrack".to_owned()).spawn(move || thread.serve())?;
        Ok(Self { jobs, newest, progress })
    }

    /// A generation is in force that has changed the kernel. Whatever an earlier one still had to end is judged anew.
    pub(super) fn changed(&self, revocation: Option<Arc<Revocation>>) {
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        self.send(Job { number, revocation, why: Why::Changed });
    }

    /// The generation in force was repaired: flows may have begun that it denies. What is under way is not judged anew, so that
    /// somebody who keeps changing our table does not keep flows from ending.
    pub(super) fn repaired(&self, revocation: Option<Arc<Revocation>>) {
        let number = self.newest.load(Ordering::Relaxed);
        self.send(Job { number, revocation, why: Why::Repaired });
    }

    /// How far it has come.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    fn send(&self, job: Job) {
        // Should the thread be gone, flows go on, which is no reason to do without the new rules.
        let _ = self.jobs.send(job);
    }
}

impl Progress {
    /// What there is to show; `None` when no flow was judged so far.
    pub(super) fn record(&self) -> Option<RevocationRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, record: RevocationRecord) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    }
}

/// What the thread works with.
struct Thread {
    waiting: mpsc::Receiver<Job>,
    newest: Arc<AtomicU64>,
    progress: Progress,
    /// Kept open: closing an nfnetlink socket makes the kernel clean up.
    conntrack: Option<Conntrack>,
}

impl Thread {
    fn serve(&mut self) {
        while let Ok(job) = self.waiting.recv() {
            let Some(job) = self.settled(job) else { return };
            if let Some(revocation) = job.revocation.as_deref().filter(|revocation| revocation.enforces()) {
                self.work(revocation, &job);
            }
        }
    }

    /// The last one of a burst of jobs; `None` when the daemon ends.
    fn settled(&self, first: Job) -> Option<Job> {
        let latest = Instant::now() + QUIET_AT_MOST;
        let mut job = first;
        loop {
            let wait = match job.why {
                Why::Changed => Duration::ZERO,
                Why::Repaired => QUIET.min(latest.saturating_duration_since(Instant::now())),
            };
            match self.waiting.recv_timeout(wait) {
                // What is judged at full speed stays so: a repair that comes right after a change means the same flows.
                Ok(newer) if job.why == Why::Changed && newer.why == Why::Repaired => {
                    job = Job { why: Why::Changed, ..newer };
                }
                Ok(newer) => job = newer,
                Err(RecvTimeoutError::Timeout) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn work(&mut self, revocation: &Revocation, job: &Job) {
        let started = clock::rfc3339(SystemTime::now());
        let start = Instant::now();
        let record = |revoked: &Revoked, running: bool| RevocationRecord {
            started: started.clone(),
            running,
            judged: revoked.judged,
            ended: revoked.ended,
            left: revoked.left(),
            milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let mut pace = match job.why {
            Why::Changed => Pace::swift(),
            Why::Repaired => Pace::gentle(),
        };
        let (newest, progress) = (Arc::clone(&self.newest), self.progress.clone());
        let mut tell_at = BUDGET;
        let mut go_on = |revoked: &Revoked| {
            let now = start.elapsed();
            progress.set(record(revoked, true));
            if now >= tell_at {
                tell_at = now + TELL_EVERY;
                let Revoked { judged, ended, .. } = *revoked;
                let left = revoked.left();
                tracing::info!(
                    judged,
                    ended,
                    left,
                    "ending flows that the policy denies takes long, it goes on with pauses: {judged} judged, {ended} ended, \
                     {left} left so far"
                );
            }
            thread::sleep(pace.pause(now));
            newest.load(Ordering::Relaxed) == job.number
        };
        if !go_on(&Revoked::default()) {
            return;
        }
        match revoke(&mut self.conntrack, revocation, &mut go_on) {
            Ok(revoked) => {
                self.progress.set(record(&revoked, false));
                tell(&revoked, start.elapsed());
            }
            Err(error) => {
                self.conntrack = None;
                if let Some(last) = self.progress.record() {
                    self.progress.set(RevocationRecord { running: false, ..last });
                }
                tracing::warn!("cannot end flows that the policy denies, they go on: {error}");
            }
        }
    }
}

fn tell(revoked: &Revoked, took: Duration) {
    let Revoked { judged, ended, stopped, .. } = *revoked;
    let (left, milliseconds) = (revoked.left(), took.as_millis() as u64);
    if stopped {
        tracing::info!(
            judged,
            ended,
            left,
            "ended {ended} flows until a newer policy was in force, which decides about the others"
        );
    } else if ended > 0 {
        tracing::info!(
            judged,
            ended,
            left,
            milliseconds,
            "ended {ended} of {judged} flows, which the policy denies, in {milliseconds} ms"
        );
    } else {
        tracing::debug!(judged, "no flow is denied by the policy");
    }
}

fn revoke(
    conntrack: &mut Option<Conntrack>,
    revocation: &Revocation,
    go_on: &mut dyn FnMut(&Revoked) -> bool,
) -> Result<Revoked, Error> {
    let conntrack = match conntrack {
        Some(conntrack) => conntrack,
        None => conntrack.insert(Conntrack::open()?),
    };
    conntrack.revoke(revocation, go_on)
}
