//! The boot: the last confirmed generation from disk into the kernel, else a lockdown, within a bounded time, whatever fails.
//!
//! Nothing here reads a policy or a settings file, and nothing waits for another service: what a boot depends on can keep it from
//! being protected. The work is done on threads that can be left behind, because neither a disk nor a kernel call that hangs can be
//! called off.

mod lockdown;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

pub use lockdown::{Lockdown, SSH_PORT};

use crate::driver::{self, Kernel, Netlink, Read};
use crate::nft::TABLE;
use crate::nft::ir::Hook;
use crate::plan::boot_batch;
use crate::store::{Directory, Disk, Store};

/// What a boot needs to know; none of it comes from a file that could be broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the generations are.
    pub state_directory: PathBuf,
    /// What to do when the time is up.
    pub fail_mode: FailMode,
    /// How long all of it may take.
    pub limit: Duration,
    /// The lockdown.
    pub lockdown: Lockdown,
}

/// What to do when no generation is in force in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailMode {
    /// Load the lockdown in the time that is left.
    Lockdown,
    /// Leave the host without rules of ours until the daemon starts.
    Open,
}

/// What is in force after a boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InForce {
    /// Our table was there already, and was left alone.
    Already,
    /// A generation from disk.
    Generation {
        /// Its number.
        number: u64,
        /// When it first came into force, RFC 3339.
        time: String,
        /// Where it came from, for people.
        source: String,
    },
    /// The lockdown.
    Lockdown,
}

/// Why nothing of ours is in force.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The kernel refused the lockdown too.
    #[error(transparent)]
    Kernel(#[from] driver::Error),
    /// The time was up.
    #[error("no rules were in force after {0:?}")]
    Time(Duration),
    /// There was no thread to be had.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// The kernel as far as a boot needs it.
pub trait Table {
    /// Whether our table is in force: there, with a base chain that sees what comes in, and with nothing of others in it.
    ///
    /// # Errors
    /// The kernel's.
    fn in_force(&mut self) -> Result<bool, driver::Error>;
    /// Puts a stored batch in force.
    ///
    /// # Errors
    /// The kernel's; the table is then as it was.
    fn commit_bytes(&mut self, bytes: &[u8]) -> Result<(), driver::Error>;
}

impl Table for Netlink {
    fn in_force(&mut self) -> Result<bool, driver::Error> {
        let loaded = self.load(&Read::Only(Vec::new()))?;
        let filters = |hook: Hook| {
            let at_hook = |chain: &&crate::nft::ir::Chain| chain.base.is_some_and(|base| base.hook == hook);
            loaded.ruleset.chains.values().filter(at_hook).any(|chain| !chain.rules.is_empty())
        };
        Ok(loaded.exists && loaded.foreign.is_empty() && filters(Hook::Input))
    }

    fn commit_bytes(&mut self, bytes: &[u8]) -> Result<(), driver::Error> {
        Self::commit_bytes(self, bytes)
    }
}

/// Puts the last confirmed generation in force, or else the lockdown. `open` opens the kernel, on the thread that then uses it;
/// `report` is told what went otherwise than hoped for, as it happens. Returns within `options.limit`, always.
///
/// # Errors
/// Nothing of ours is in force.
pub fn boot<T: Table>(
    options: &Options,
    open: impl Fn() -> Result<T, driver::Error> + Clone + Send + 'static,
    mut report: impl FnMut(&str),
) -> Result<InForce, Failed> {
    let start = Instant::now();
    let directory = options.state_directory.clone();
    let opener = open.clone();
    // What is left of the limit belongs to the lockdown.
    let generation = bounded(start + options.limit * 3 / 4, &mut report, move |note| {
        let mut table = opener()?;
        if table.in_force()? {
            return Ok(Some(InForce::Already));
        }
        Ok(newest(&mut table, &directory, note))
    });
    match generation {
        Ok(Some(in_force)) => return Ok(in_force),
        // No generation, or none that can be used.
        Ok(None) => {}
        Err(Failed::Time(_)) if options.fail_mode == FailMode::Open => {
            report(&format!("fail mode open: the time is up after {:?}, and nothing is loaded", start.elapsed()));
            return Err(Failed::Time(start.elapsed()));
        }
        Err(failed) => report(&format!("no generation is in force: {}", chain(&failed))),
    }
    report("loading the lockdown: only essentials and SSH come in until the daemon takes over");
    let lockdown = boot_batch(&options.lockdown.ruleset());
    bounded(start + options.limit, &mut report, move |_| {
        let mut table = open()?;
        // Whatever was slow may have come through meanwhile, and is better than a lockdown.
        if table.in_force()? {
            return Ok(InForce::Already);
        }
        load(&mut table, &lockdown)?;
        Ok(InForce::Lockdown)
    })
}

/// What a working thread says.
enum Said<R> {
    Note(String),
    Done(Result<R, driver::Error>),
}

/// Runs `work` on a thread of its own, and leaves that thread behind when the deadline passes.
fn bounded<R: Send + 'static>(
    deadline: Instant,
    report: &mut impl FnMut(&str),
    work: impl FnOnce(&mut dyn FnMut(String)) -> Result<R, driver::Error> + Send + 'static,
) -> Result<R, Failed> {
    let start = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().name("boot".to_owned()).spawn(move || {
        // Nobody may be listening any more; then there is nobody to tell.
        let mut note = |text| drop(sender.send(Said::Note(text)));
        let done = work(&mut note);
        let _ = sender.send(Said::Done(done));
    });
    spawned.map_err(Failed::Thread)?;
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Said::Note(text)) => report(&text),
            Ok(Said::Done(done)) => return Ok(done?),
            Err(RecvTimeoutError::Timeout) => return Err(Failed::Time(start.elapsed())),
            // The thread has died: it said why on stderr.
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failed::Thread(io::Error::other("it ended before its time")));
            }
        }
    }
}

/// Loads the confirmed generation, or the newest before it that can be read and that the kernel takes.
fn newest(table: &mut impl Table, directory: &Path, note: &mut dyn FnMut(String)) -> Option<InForce> {
    let store = Store::new(Directory::existing(directory));
    for number in candidates(&store, directory, note) {
        let generation = match store.read(number) {
            Ok(generation) => generation,
            Err(error) => {
                note(format!("generation {number} cannot be used: {}", chain(&error)));
                continue;
            }
        };
        match load(table, &generation.batch) {
            Ok(()) => {
                let (time, source) = (generation.time, generation.source);
                return Some(InForce::Generation { number, time, source });
            }
            Err(error) => note(format!("generation {number} cannot be loaded: {}", chain(&error))),
        }
    }
    None
}

/// The generations to try, the confirmed one first, then older ones: newer ones were never confirmed.
fn candidates<D: Disk>(store: &Store<D>, directory: &Path, note: &mut dyn FnMut(String)) -> Vec<u64> {
    let numbers = match store.numbers() {
        Ok(numbers) => numbers,
        Err(error) => {
            note(format!("{}: {}", directory.display(), chain(&error)));
            return Vec::new();
        }
    };
    let Some(confirmed) = store.confirmed_number() else {
        let count = numbers.len();
        note(match count {
            0 => format!("no generation in {}", directory.display()),
            _ => format!("none of the {count} generations in {} is marked as confirmed", directory.display()),
        });
        return Vec::new();
    };
    if !numbers.contains(&confirmed) {
        note(format!("generation {confirmed}, the confirmed one, is not in {}", directory.display()));
    }
    numbers.into_iter().rev().filter(|number| *number <= confirmed).collect()
}

fn load(table: &mut impl Table, batch: &[u8]) -> Result<(), driver::Error> {
    table.commit_bytes(batch)?;
    if table.in_force()? {
        return Ok(());
    }
    Err(driver::Error::Differs(format!("table {TABLE} without what was loaded")))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Of a cause that the error has spelled out already, nothing is said again.
        if !text.ends_with(&error.to_string()) {
            text.push_str(": ");
            text.push_str(&error.to_string());
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
