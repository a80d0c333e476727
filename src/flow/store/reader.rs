//! What commands read with: without a daemon, beside one, and without the right to write.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::database::check;
use super::row::{Row, TEXTS};
use super::{Error, FILE, files, is_damage};
use crate::traffic::Record;
use crate::traffic::seen::{Seen, Span};

/// So many strings are remembered at a time.
const MOST_REMEMBERED: usize = 4096;
/// A reader waits so long for another process that is about to mend the log.
const PATIENCE: Duration = Duration::from_secs(2);

/// The store, for one who reads.
pub struct Reader {
    connection: Connection,
    path: PathBuf,
    /// Where it is read without locks: how the file was then.
    unlocked: Option<(u64, SystemTime)>,
}

/// How a look through the records ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// So many rows were not what was written, and were passed over.
    pub damaged: u64,
}

/// Records that were written together.
struct Batch {
    from: i64,
    records: i64,
}

impl Reader {
    /// Opens the store in its [`directory`](super::directory).
    ///
    /// # Errors
    /// There is none ([`Error::Missing`]), this user may not read it ([`Error::is_denied`]), or it is not one of this version.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(FILE);
        let missing = || Error::Missing { directory: directory.to_owned() };
        match fs::File::open(&path).and_then(|file| file.metadata()) {
            // A store that is about to be made.
            Ok(found) if found.len() == 0 && !files::beside(&path, "-wal").exists() => return Err(missing()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(files::failed("read", &path)(error)),
        }
        match Self::with_locks(&path) {
            // Without a log, one who may not write cannot take part in the locking; nor is there anybody to lock out.
            Err(Error::Database { source, .. }) if cannot_lock(&source) => Self::without_locks(&path),
            other => other,
        }
    }

    fn with_locks(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Database { attempt: "read", path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(PATIENCE).map_err(failed)?;
        check(&connection, path)?;
        Ok(Self { connection, path: path.to_owned(), unlocked: None })
    }

    fn without_locks(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Database { attempt: "read", path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let unlocked = files::stamp(path);
        let mut uri = "file:".to_owned();
        for byte in std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()) {
            match byte {
                b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => uri.push(char::from(*byte)),
                other => uri.push_str(&format!("%{other:02X}")),
            }
        }
        uri.push_str("?immutable=1");
        let connection = Connection::open_with_flags(uri, flags).map_err(failed)?;
        check(&connection, path)?;
        Ok(Self { connection, path: path.to_owned(), unlocked })
    }

    /// Hands over each record that has to do with the time from `since` until before `until`, in microseconds since 1970-01-01
    /// UTC, in the order in which they were written; a [`ControlFlow::Break`] ends that. They are as they were when it began.
    ///
    /// # Errors
    /// The store cannot be read at all; what is damaged in it is passed over.
    pub fn records(
        &self,
        since: u64,
        until: u64,
        each: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<Scan, Error> {
        let done = self.scan(since, until, each).map_err(|source| self.failed(source))?;
        self.unchanged()?;
        Ok(done)
    }

    /// What was seen of the time from `since` until before `until`, and what was lost in it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn seen(&self, since: u64, until: u64) -> Result<Seen, Error> {
        let done = self.seen_in(narrow(since), narrow(until)).map_err(|source| self.failed(source))?;
        self.unchanged()?;
        Ok(done)
    }

    fn failed(&self, source: rusqlite::Error) -> Error {
        Error::Database { attempt: "read", path: self.path.clone(), source }
    }

    /// Who reads without locks sees a mixture when somebody writes.
    fn unchanged(&self) -> Result<(), Error> {
        let changed = self
            .unlocked
            .is_some_and(|stamp| files::stamp(&self.path) != Some(stamp) || files::beside(&self.path, "-wal").exists());
        if changed { Err(Error::Changed { path: self.path.clone() }) } else { Ok(()) }
    }

    fn seen_in(&self, since: i64, until: i64) -> rusqlite::Result<Seen> {
        let transaction = self.connection.unchecked_transaction()?;
        let forgotten: Option<i64> = transaction
            .query_row("SELECT value FROM fact WHERE name = 'forgotten'", [], |row| row.get(0))
            .optional()?;
        let from = since.max(forgotten.unwrap_or(0));
        let mut spans = Vec::new();
        let mut statement =
            transaction.prepare("SELECT begun, ended FROM span WHERE ended >= ?1 AND begun < ?2 ORDER BY begun")?;
        let mut rows = statement.query([from, until])?;
        while let Some(row) = rows.next()? {
            let (begun, ended): (i64, i64) = (row.get(0)?, row.get(1)?);
            let span = Span { from: wide(begun.max(from)), until: wide(ended.min(until)) };
            match spans.last_mut() {
                // A clock that went back: what was seen twice counts once.
                Some(Span { until, .. }) if *until >= span.from => *until = span.until.max(*until),
                _ => spans.push(span),
            }
        }
        transaction.query_row(
            "SELECT coalesce(sum(left_out), 0), coalesce(sum(lost_packets), 0), coalesce(sum(lost_connections), 0)
             FROM batch WHERE last >= ?1 AND first < ?2",
            [since, until],
            |row| {
                Ok(Seen {
                    spans,
                    left_out: wide(row.get(0)?),
                    lost_packets: wide(row.get(1)?),
                    lost_connections: wide(row.get(2)?),
                })
            },
        )
    }

    fn scan(&self, since: u64, until: u64, each: &mut dyn FnMut(Record) -> ControlFlow<()>) -> rusqlite::Result<Scan> {
        let transaction = self.connection.unchecked_transaction()?;
        let (since, until) = (narrow(since), narrow(until));
        let mut batches = Vec::new();
        {
            let mut statement = transaction.prepare(
                "SELECT from_id, records FROM batch WHERE last >= ?1 AND first < ?2 AND records > 0 ORDER BY from_id",
            )?;
            let mut rows = statement.query([since, until])?;
            while let Some(row) = rows.next()? {
                batches.push(Batch { from: row.get(0)?, records: row.get(1)? });
            }
        }
        let mut scan = Scan::default();
        let texts = Texts { connection: &transaction, known: RefCell::new(HashMap::new()) };
        let mut statement = transaction.prepare(
            "SELECT id, first, span, direction, verdict, protocol, service, peer, local, connections, packets, bytes,
             role, interface, decider, tier, place, names, actors
             FROM record WHERE id >= ?1 AND id < ?2 AND first < ?4 AND first + span >= ?3",
        )?;
        for Batch { from, records } in batches {
            let end = from.saturating_add(records);
            let mut rows = statement.query(params![from, end, since, until])?;
            let mut at = from;
            loop {
                match rows.next() {
                    Ok(Some(row)) => {
                        at = row.get::<_, i64>(0).unwrap_or(at).saturating_add(1);
                        let Some(record) = texts.row(row).and_then(|row| row.record()) else {
                            scan.damaged += 1;
                            continue;
                        };
                        if each(record).is_break() {
                            return Ok(scan);
                        }
                    }
                    Ok(None) => break,
                    // The page of these rows; those of later batches may be whole.
                    Err(error) if is_damage(&error) => {
                        scan.damaged += wide(end.saturating_sub(at));
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(scan)
    }
}

struct Texts<'a> {
    connection: &'a Connection,
    known: RefCell<HashMap<i64, Option<Arc<str>>>>,
}

impl Texts<'_> {
    /// The row; nothing when a value in it is of another kind than was written.
    fn row(&self, row: &rusqlite::Row<'_>) -> Option<Row> {
        let mut texts: [Option<Arc<str>>; TEXTS] = std::array::from_fn(|_| None);
        for (index, text) in texts.iter_mut().enumerate() {
            if let Some(id) = row.get::<_, Option<i64>>(12 + index).ok()? {
                *text = Some(self.text(id)?);
            }
        }
        Some(Row {
            first: row.get(1).ok()?,
            span: row.get(2).ok()?,
            direction: row.get(3).ok()?,
            verdict: row.get(4).ok()?,
            protocol: row.get(5).ok()?,
            service: row.get(6).ok()?,
            peer: row.get(7).ok()?,
            local: row.get(8).ok()?,
            connections: row.get(9).ok()?,
            packets: row.get(10).ok()?,
            bytes: row.get(11).ok()?,
            texts,
        })
    }

    fn text(&self, id: i64) -> Option<Arc<str>> {
        if let Some(known) = self.known.borrow().get(&id) {
            return known.clone();
        }
        let found: Option<Arc<str>> = self
            .connection
            .prepare_cached("SELECT text FROM text WHERE id = ?1")
            .and_then(|mut statement| statement.query_row([id], |row| row.get(0)))
            .ok();
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST_REMEMBERED {
            known.clear();
        }
        known.insert(id, found.clone());
        found
    }
}

/// What SQLite says when it cannot make the log's files, which it needs for its locks.
fn cannot_lock(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
}

fn narrow(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn wide(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
