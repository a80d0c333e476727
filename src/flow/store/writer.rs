//! What the daemon writes with: it opens the database when it can, and begins a new one when the old one is of no use.

use std::path::{Path, PathBuf};

use super::database::{Database, Missing};
use super::{Error, FILE, Limits, files};
use crate::traffic::Record;

/// The store, for its one writer.
///
/// Calls block on the disk, which may hang: they are for a thread of their own. What is in memory is bounded: a cache of 1 MiB, the
/// pages of one transaction (2 MiB at most) and some thousand strings.
pub struct Store {
    directory: PathBuf,
    limits: Limits,
    /// Nothing after an error: a database that could not be written is opened anew.
    database: Option<Database>,
    missing: Missing,
    told: Vec<String>,
}

/// What became of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// So many are on the medium.
    pub stored: u64,
    /// So many are not: somebody has been reading for so long that the log is full, or they are too large for the store.
    pub left_out: u64,
}

impl Store {
    /// Opens the store in its [`directory`](super::directory), or begins one. A database that is damaged or of another version is
    /// set aside ([`Store::told`]).
    ///
    /// # Errors
    /// The directory or the database cannot be made or written.
    pub fn open(directory: &Path, limits: Limits) -> Result<Self, Error> {
        let mut store = Self {
            directory: directory.to_owned(),
            limits,
            database: None,
            missing: Missing::default(),
            told: Vec::new(),
        };
        store.database = Some(store.begin()?);
        Ok(store)
    }

    /// Writes records, oldest first, in one transaction, or in several if they are many: what is on the medium when this
    /// returns outlives a power cut. `now` is in microseconds since 1970-01-01 UTC. Call it at least every ten minutes,
    /// with no records too: it also notes that somebody watches.
    ///
    /// # Errors
    /// The disk is full or read-only, for example. What was not written counts as left out from then on, and the next call tries
    /// anew.
    pub fn write(&mut self, records: &[Record], now: u64) -> Result<Written, Error> {
        let mut written = Written::default();
        let mut done = self.attempt(records, now, &mut written);
        if let Err(error) = &done
            && error.is_damage()
        {
            // It was good enough to be opened, and will not get better.
            self.database = None;
            let rest = &records[at(&written, records)..];
            done =
                self.set_aside(&self.directory.join(FILE), error).and_then(|()| self.attempt(rest, now, &mut written));
        }
        if done.is_err() {
            self.database = None;
            let rest = u64::try_from(records.len() - at(&written, records)).unwrap_or(u64::MAX);
            self.missing.left_out = self.missing.left_out.saturating_add(rest);
        }
        done.map(|()| written)
    }

    /// Counts what was lost on the way to the daemon since the last call: logged packets, and how often events of connection
    /// tracking were lost. The next [`Store::write`] writes it.
    pub fn lost(&mut self, packets: u64, connections: u64) {
        self.missing.lost_packets = self.missing.lost_packets.saturating_add(packets);
        self.missing.lost_connections = self.missing.lost_connections.saturating_add(connections);
    }

    /// What is to be told: which database was set aside and why. Each is told once.
    pub fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    fn attempt(&mut self, records: &[Record], now: u64, written: &mut Written) -> Result<(), Error> {
        let mut database = match self.database.take().filter(|database| !database.is_gone()) {
            Some(database) => database,
            None => self.begin()?,
        };
        let path = database.path().to_owned();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let done = append(&mut database, records, now, &mut self.missing, written);
        done.map_err(|source| Error::Database { attempt: "write", path, source })?;
        self.database = Some(database);
        Ok(())
    }

    fn begin(&mut self) -> Result<Database, Error> {
        let path = files::prepare(&self.directory)?;
        files::forget_aside(&path, self.limits.keep);
        match Database::open(&path, self.limits) {
            Err(error) if error.is_damage() => {
                self.set_aside(&path, &error)?;
                Database::open(&files::prepare(&self.directory)?, self.limits)
            }
            other => other,
        }
    }

    fn set_aside(&mut self, path: &Path, why: &Error) -> Result<(), Error> {
        let aside = files::set_aside(path)?;
        self.told.push(format!("{why}; it is {} now, and a new one begins", aside.display()));
        Ok(())
    }
}

/// How many records are done with.
fn at(written: &Written, records: &[Record]) -> usize {
    usize::try_from(written.stored + written.left_out).map_or(records.len(), |done| done.min(records.len()))
}

fn append(
    database: &mut Database,
    records: &[Record],
    now: i64,
    missing: &mut Missing,
    written: &mut Written,
) -> rusqlite::Result<()> {
    database.prune_by_age(now)?;
    let mut rest = records;
    loop {
        let Some(stored) = database.append(rest, *missing, now)? else {
            let left_out = u64::try_from(rest.len()).unwrap_or(u64::MAX);
            written.left_out += left_out;
            missing.left_out = missing.left_out.saturating_add(left_out);
            return Ok(());
        };
        written.stored += u64::try_from(stored).unwrap_or(0);
        *missing = Missing::default();
        rest = &rest[stored..];
        if rest.is_empty() {
            return Ok(());
        }
    }
}
