//! The thread that ends flows which a new generation denies. It is apart from the one that talks to nf_tables, so that
//! neither the next change nor a status waits for a large connection tracking table.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use crate::driver::{Conntrack, Error, Revoked};
use crate::revoke::Revocation;

/// The way to the thread; it ends when this is gone.
#[derive(Debug)]
pub(super) struct Revoker {
    jobs: mpsc::Sender<Job>,
    /// The number of the newest job.
    newest: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Job {
    number: u64,
    revocation: Option<Arc<Revocation>>,
}

impl Revoker {
    /// Starts the thread, in the network namespace of the caller.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel();
        let newest = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&newest);
        thread::Builder::new().name("conntrack".to_owned()).spawn(move || serve(&waiting, &told))?;
        Ok(Self { jobs, newest })
    }

    /// A generation is in force that has changed the kernel. Whatever an earlier one still had to end is judged anew.
    pub(super) fn changed(&self, revocation: Option<Arc<Revocation>>) {
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        // Should the thread be gone, flows go on, which is no reason to do without the new rules.
        let _ = self.jobs.send(Job { number, revocation });
    }
}

fn serve(jobs: &mpsc::Receiver<Job>, newest: &AtomicU64) {
    // Kept open: closing an nfnetlink socket makes the kernel clean up.
    let mut conntrack = None;
    while let Ok(job) = jobs.recv() {
        let superseded = || newest.load(Ordering::Relaxed) != job.number;
        let Some(revocation) = job.revocation.as_deref().filter(|revocation| revocation.enforces()) else { continue };
        if superseded() {
            continue;
        }
        let start = Instant::now();
        match revoke(&mut conntrack, revocation, &superseded) {
            Ok(Revoked { superseded: true, ended, .. }) => {
                tracing::info!(
                    ended,
                    "ended {ended} flows until a newer policy was in force, which decides about the others"
                );
            }
            Ok(Revoked { seen, ended, .. }) if ended > 0 => {
                let milliseconds = start.elapsed().as_millis() as u64;
                tracing::info!(
                    ended,
                    seen,
                    milliseconds,
                    "ended {ended} of {seen} flows, which the policy denies, in {milliseconds} ms"
                );
            }
            Ok(Revoked { seen, .. }) => tracing::debug!(seen, "no flow is denied by the policy"),
            Err(error) => {
                conntrack = None;
                tracing::warn!("cannot end flows that the policy denies, they go on: {error}");
            }
        }
    }
}

fn revoke(
    conntrack: &mut Option<Conntrack>,
    revocation: &Revocation,
    superseded: &dyn Fn() -> bool,
) -> Result<Revoked, Error> {
    let conntrack = match conntrack {
        Some(conntrack) => conntrack,
        None => conntrack.insert(Conntrack::open()?),
    };
    conntrack.revoke(revocation, superseded)
}
