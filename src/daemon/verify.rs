//! The thread that reads large sets back: the kernel takes longer to list them than to load them, and neither a repair nor the next
//! change waits for that. It has a socket of its own.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::driver::{self, Error, Netlink};
use crate::nft::ir::Ruleset;

/// The way to the thread; it ends when this is gone.
#[derive(Debug)]
pub(super) struct Verifier {
    jobs: mpsc::Sender<Job>,
}

/// Sets to look at, and what they should hold.
#[derive(Debug)]
struct Job {
    ruleset: Arc<Ruleset>,
    sets: Vec<String>,
}

/// What is left to do.
#[derive(Default)]
struct Left {
    ruleset: Arc<Ruleset>,
    sets: BTreeSet<String>,
}

/// Somebody changes sets all the time, so that none could be read: it is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

impl Verifier {
    /// Starts the thread, in the network namespace of the caller; the names of sets that hold something else come out of the
    /// receiver. One may be a false alarm, where something newer came into force meanwhile.
    pub(super) fn start() -> io::Result<(Self, UnboundedReceiver<String>)> {
        let (jobs, waiting) = mpsc::channel();
        let (found, otherwise) = unbounded_channel();
        thread::Builder::new().name("read-back".to_owned()).spawn(move || serve(&waiting, &found))?;
        Ok((Self { jobs }, otherwise))
    }

    /// This ruleset is in force, and these sets of it were not read. Sets of before that are not read yet still will be.
    pub(super) fn later(&self, ruleset: &Arc<Ruleset>, sets: Vec<String>) {
        // Should the thread be gone, the table is in force all the same.
        let _ = self.jobs.send(Job { ruleset: Arc::clone(ruleset), sets });
    }
}

impl Left {
    fn take(&mut self, job: Job) {
        self.ruleset = job.ruleset;
        self.sets.extend(job.sets);
        self.sets.retain(|name| self.ruleset.sets.contains_key(name));
    }
}

fn serve(jobs: &mpsc::Receiver<Job>, otherwise: &UnboundedSender<String>) {
    let mut kernel = None;
    let mut left = Left::default();
    let mut pause = Duration::ZERO;
    loop {
        let Some(name) = left.sets.first().cloned() else {
            match jobs.recv() {
                Ok(job) => left.take(job),
                Err(_) => return,
            }
            continue;
        };
        match jobs.recv_timeout(pause) {
            Ok(job) => {
                left.take(job);
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => pause = Duration::ZERO,
        }
        let read = verify(&mut kernel, &left.ruleset, &name);
        if let Ok(job) = jobs.try_recv() {
            // What was read may be of before or of after it.
            left.take(job);
            continue;
        }
        match read {
            Err(Error::Contended) => pause = AGAIN,
            read => {
                left.sets.remove(&name);
                match read {
                    Ok(()) => {}
                    Err(Error::Differs(_)) => {
                        // The loop is gone only when the process ends.
                        let _ = otherwise.send(name);
                    }
                    Err(error) => {
                        kernel = None;
                        tracing::error!(set = name, "cannot confirm what set {name} holds: {error}");
                    }
                }
            }
        }
    }
}

fn verify(kernel: &mut Option<Netlink>, ruleset: &Ruleset, name: &str) -> Result<(), Error> {
    // Kept open: closing an nfnetlink socket makes the kernel clean up.
    let kernel = match kernel {
        Some(kernel) => kernel,
        None => kernel.insert(Netlink::open()?),
    };
    driver::verify(kernel, ruleset, &[name.to_owned()])
}
