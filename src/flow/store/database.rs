//! The database as the writer has it: its tables, what an append and a removal cost, and the bounds that hold on disk.
//!
//! A transaction is kept so small that the pages it changes fit into what is left of the log: SQLite writes each of them once, when
//! it commits (`cache_spill` is off). After each, the log is written back to the database, and begins anew if nobody reads from it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, FileControl, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::row::{Row, TEXTS};
use super::{Error, Limits};
use crate::traffic::Record;

/// "nwfl": what file(1) and we know the database by (`PRAGMA application_id`).
pub(super) const APPLICATION: i32 = 0x6e77_666c;
/// The version of the tables (`PRAGMA user_version`).
pub(super) const VERSION: i32 = 1;

const SCHEMA: &str = "
CREATE TABLE text(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, used INTEGER NOT NULL) STRICT;
CREATE TABLE record(
  id INTEGER PRIMARY KEY, first INTEGER NOT NULL, span INTEGER NOT NULL, direction INTEGER NOT NULL, verdict INTEGER NOT NULL,
  protocol INTEGER, service INTEGER, peer BLOB, local BLOB, connections INTEGER NOT NULL, packets INTEGER, bytes INTEGER,
  role INTEGER, interface INTEGER, decider INTEGER, tier INTEGER, place INTEGER, names INTEGER, actors INTEGER) STRICT;
CREATE TABLE batch(
  id INTEGER PRIMARY KEY, from_id INTEGER NOT NULL, records INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  left_out INTEGER NOT NULL, lost_packets INTEGER NOT NULL, lost_connections INTEGER NOT NULL) STRICT;
CREATE TABLE span(id INTEGER PRIMARY KEY, begun INTEGER NOT NULL, ended INTEGER NOT NULL) STRICT;
CREATE TABLE fact(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
";

/// Bytes of a page, and of its frame in the log.
pub(super) const PAGE: u64 = 4096;
const FRAME: u64 = PAGE + 24;
/// The index of the log in shared memory: 32 KiB for every 4096 frames, and what the file system rounds up.
const INDEX: u64 = 128 * 1024;
const LEAST: u64 = 2 * 1024 * 1024;
/// Most of what one transaction changes, in pages: they are in memory until it commits.
const MOST_PAGES: u64 = 512;
/// What any transaction may change beside the rows it is about: the first page, the ends and middles of the trees, free lists.
const MARGIN: u64 = 24;
/// So many rows fill a page at least: one has 130 bytes at most, its strings apart.
const ROWS_IN_PAGE: u64 = 28;
/// So many rows go at a time.
const SLICE: i64 = 2048;
/// When a string was last used is known to so many records.
const LAG: i64 = 8192;
/// So often strings are swept for one removal.
const MOST_SWEEPS: usize = 16;
/// So many strings are remembered with their numbers.
const MOST_REMEMBERED: usize = 8192;
/// So many spans are remembered: a daemon that starts over and over makes many.
const MOST_SPANS: i64 = 10_000;
/// A write after a longer pause begins a new span: nobody waits longer for a window (`[flows]`), twice.
const LONGEST_PAUSE: i64 = 600_000_000;

/// What came with records and is written with them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Missing {
    pub(super) left_out: u64,
    pub(super) lost_packets: u64,
    pub(super) lost_connections: u64,
}

/// A string that has a number.
#[derive(Clone, Copy)]
struct Text {
    id: i64,
    /// No newer record than [`LAG`] after this one uses it.
    used: i64,
}

/// An open database.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
    limits: Limits,
    most_pages: u64,
    most_frames: u64,
    /// The number of the next record.
    next: i64,
    texts: HashMap<Arc<str>, Text>,
    /// The span that goes on.
    span: Option<i64>,
}

impl Database {
    /// Opens the database that [`super::files::prepare`] made room for, and makes it keep its bounds.
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self, Error> {
        let failed = |attempt| move |source| Error::Database { attempt, path: path.to_owned(), source };
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // The directory may be reached by a link; the database itself is none.
        let real = path.parent().and_then(|parent| parent.canonicalize().ok());
        let real = real.map_or_else(|| path.to_owned(), |parent| parent.join(super::FILE));
        let connection = Connection::open_with_flags(real, flags).map_err(failed("open"))?;
        let bytes = limits.bytes.max(LEAST);
        let log = (bytes / 4).min(4 * 1024 * 1024);
        let mut database = Self {
            connection,
            path: path.to_owned(),
            limits,
            most_pages: (bytes - log - INDEX) / PAGE,
            most_frames: log / FRAME,
            next: 1,
            texts: HashMap::new(),
            span: None,
        };
        database.set_up().map_err(failed("open"))?;
        check(&database.connection, path)?;
        database.start().map_err(failed("open"))?;
        Ok(database)
    }

    fn set_up(&mut self) -> rusqlite::Result<()> {
        let connection = &mut self.connection;
        connection.busy_timeout(Duration::from_secs(1))?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_prepared_statement_cache_capacity(32);
        // Before the first page is written; later they change nothing.
        connection.execute_batch(&format!("PRAGMA page_size = {PAGE}; PRAGMA auto_vacuum = INCREMENTAL;"))?;
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA cache_size = -1024; PRAGMA cache_spill = OFF; PRAGMA temp_store = MEMORY;",
        )?;
        connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
        let mut persist = 1;
        connection.file_control(Some("main"), FileControl::PersistWal(&mut persist))?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            transaction
                .execute_batch(&format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"))?;
            transaction.commit()?;
        }
        Ok(())
    }

    fn start(&mut self) -> rusqlite::Result<()> {
        self.next = self.connection.query_row(
            "SELECT 1 + max(coalesce((SELECT max(id) FROM record), 0), coalesce((SELECT max(from_id + records - 1) FROM batch), 0),
              coalesce((SELECT max(used) FROM text), 0))",
            [],
            |row| row.get(0),
        )?;
        // What an earlier writer left of the log, under other limits perhaps.
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.bound()
    }

    /// The last line: SQLite itself goes no further. It is never less than what is there.
    fn bound(&self) -> rusqlite::Result<()> {
        self.connection.query_row(&format!("PRAGMA max_page_count = {}", self.most_pages), [], |_| Ok(()))
    }

    /// The database.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody removed or renamed the database, so that nobody would find what is written.
    pub(super) fn is_gone(&self) -> bool {
        let mut moved = 0;
        let asked = self.connection.file_control(Some("main"), FileControl::HasMoved(&mut moved));
        asked.is_err() || moved != 0
    }

    /// How many pages a transaction may change now, after what is in the log has been written back as far as readers let it.
    fn room(&self) -> rusqlite::Result<u64> {
        // Nobody waits for a reader: it may never go.
        self.connection.busy_timeout(Duration::ZERO)?;
        let asked = self
            .connection
            .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        self.connection.busy_timeout(Duration::from_secs(1))?;
        let (busy, frames) = asked?;
        // Where nobody was in the way, the next transaction begins at the beginning.
        let used = if busy == 0 { 0 } else { u64::try_from(frames).unwrap_or(0) };
        Ok(self.most_frames.saturating_sub(used).min(MOST_PAGES))
    }

    /// Pages there are and pages that are free.
    fn pages(&self) -> rusqlite::Result<(u64, u64)> {
        let number = |pragma: &str| self.connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
        let (all, free) = (number("PRAGMA page_count")?, number("PRAGMA freelist_count")?);
        Ok((u64::try_from(all).unwrap_or(0), u64::try_from(free).unwrap_or(0)))
    }

    /// Removes what is older than it may be. What was written before something that is too old is too old as well: the clock
    /// may have been ahead.
    pub(super) fn prune_by_age(&mut self, now: i64) -> rusqlite::Result<()> {
        let keep = i64::try_from(self.limits.keep.as_micros()).unwrap_or(i64::MAX);
        let horizon = now.saturating_sub(keep);
        let old: Option<i64> = self
            .connection
            .prepare_cached("SELECT max(id) FROM batch WHERE last < ?1")?
            .query_row([horizon], |row| row.get(0))?;
        let Some(old) = old else { return Ok(()) };
        let upto: i64 = self
            .connection
            .prepare_cached("SELECT from_id + records FROM batch WHERE id = ?1")?
            .query_row([old], |row| row.get(0))?;
        while self.room()? > MARGIN * 2 {
            let oldest = self.oldest()?.filter(|oldest| *oldest < upto);
            let end = oldest.map_or(upto, |oldest| upto.min(oldest.saturating_add(SLICE)));
            self.remove(end, None, horizon)?;
            if oldest.is_none() || end == upto {
                break;
            }
        }
        Ok(())
    }

    /// Makes room for so many pages, by the oldest records if need be; false if that cannot be done now.
    pub(super) fn make_space(&mut self, pages: u64) -> rusqlite::Result<bool> {
        let mut before = (0, None);
        loop {
            let (all, free) = self.pages()?;
            if self.most_pages.saturating_sub(all) + free >= pages && all <= self.most_pages {
                return Ok(true);
            }
            if self.room()? <= MARGIN * 2 {
                return Ok(false);
            }
            if all > self.most_pages && free > 0 {
                self.shrink((all - self.most_pages).min(free))?;
                if before == (all, None) {
                    break;
                }
                before = (all, None);
                continue;
            }
            let Some(oldest) = self.oldest()?.filter(|oldest| before.1 != Some(*oldest)) else { break };
            before = (0, Some(oldest));
            let end = oldest.saturating_add(SLICE).min(self.next);
            let last: Option<i64> = self
                .connection
                .prepare_cached("SELECT max(last) FROM batch WHERE from_id < ?1")?
                .query_row([end], |row| row.get(0))?;
            self.remove(end, last, i64::MIN)?;
        }
        // By its own counts it is full of nothing, or what is removed stays.
        Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), None))
    }

    fn oldest(&self) -> rusqlite::Result<Option<i64>> {
        self.connection.prepare_cached("SELECT min(id) FROM record")?.query_row([], |row| row.get(0))
    }

    /// Gives free pages back to the file system.
    fn shrink(&mut self, pages: u64) -> rusqlite::Result<()> {
        // Each page that moves changes two more.
        let pages = pages.min(64).min(self.room()?.saturating_sub(MARGIN) / 3);
        self.connection.execute_batch(&format!("PRAGMA incremental_vacuum({pages})"))?;
        self.room()?;
        self.bound()
    }

    /// Removes the records before `end`, with what only they needed. `forgotten` is until when they reach, if they go for want of space.
    fn remove(&mut self, end: i64, forgotten: Option<i64>, horizon: i64) -> rusqlite::Result<()> {
        let transaction = Transaction::new(&mut self.connection, TransactionBehavior::Immediate)?;
        transaction.prepare_cached("DELETE FROM record WHERE id < ?1")?.execute([end])?;
        transaction.prepare_cached("DELETE FROM batch WHERE from_id + records <= ?1")?.execute([end])?;
        transaction.prepare_cached("DELETE FROM span WHERE ended < ?1")?.execute([horizon])?;
        transaction
            .prepare_cached("DELETE FROM span WHERE id <= (SELECT max(id) FROM span) - ?1")?
            .execute([MOST_SPANS])?;
        if let Some(forgotten) = forgotten {
            put(&transaction, "forgotten", forgotten)?;
        }
        transaction.commit()?;
        self.sweep(end.saturating_sub(LAG))
    }

    /// Removes strings that no record uses any more.
    fn sweep(&mut self, before: i64) -> rusqlite::Result<()> {
        for _ in 0..MOST_SWEEPS {
            // A string is a row, and another one in an index.
            let most = i64::try_from(self.room()?.saturating_sub(MARGIN * 2) / 3).unwrap_or(0);
            let transaction = Transaction::new(&mut self.connection, TransactionBehavior::Immediate)?;
            let gone = transaction
                .prepare_cached("DELETE FROM text WHERE id IN (SELECT id FROM text WHERE used < ?1 LIMIT ?2)")?
                .execute([before, most])?;
            transaction.commit()?;
            if gone > 0 {
                self.texts.clear();
            }
            if i64::try_from(gone).unwrap_or(i64::MAX) < most || most == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Writes as many records as one transaction may, and what was missing before them; how many they were. None means that
    /// there is no room for any.
    pub(super) fn append(&mut self, records: &[Record], missing: Missing, now: i64) -> rusqlite::Result<Option<usize>> {
        let room = self.room()?;
        let wanted = MARGIN * 4 + u64::try_from(records.len()).unwrap_or(u64::MAX) / 8;
        let most = wanted.min(room);
        if room < MARGIN * 4 || !self.make_space(most)? {
            return Ok(None);
        }
        let known = self.span;
        let transaction = Transaction::new(&mut self.connection, TransactionBehavior::Immediate)?;
        let mut cost = Cost { rows: 0, pages: MARGIN };
        let mut next = self.next;
        let (mut first, mut last) = (now, 0);
        let mut texts = Texts { known: &mut self.texts, added: Vec::new() };
        let mut written = 0;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            )?;
            for record in records {
                let row = Row::of(record);
                if cost.rows > 0 && cost.total() + Cost::of(&row) > most {
                    break;
                }
                let mut ids = [None; TEXTS];
                for (id, text) in ids.iter_mut().zip(&row.texts) {
                    let Some(text) = text else { continue };
                    let (number, pages) = texts.number(&transaction, text, next)?;
                    *id = Some(number);
                    cost.pages += pages;
                }
                let [role, interface, decider, tier, place, names, actors] = ids;
                insert.execute(params![
                    next,
                    row.first,
                    row.span,
                    row.direction,
                    row.verdict,
                    row.protocol,
                    row.service,
                    row.peer,
                    row.local,
                    row.connections,
                    row.packets,
                    row.bytes,
                    role,
                    interface,
                    decider,
                    tier,
                    place,
                    names,
                    actors
                ])?;
                first = first.min(row.first);
                last = last.max(row.first.saturating_add(row.span));
                cost.rows += 1;
                next += 1;
                written += 1;
            }
        }
        if last == 0 {
            last = now;
        }
        if written > 0 || missing != Missing::default() {
            let wide = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            transaction
                .prepare_cached(
                    "INSERT INTO batch(from_id, records, first, last, left_out, lost_packets, lost_connections)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    self.next,
                    next - self.next,
                    first,
                    last,
                    wide(missing.left_out),
                    wide(missing.lost_packets),
                    wide(missing.lost_connections)
                ])?;
        }
        let span = go_on(&transaction, known, first, now)?;
        let added = texts.added;
        if let Err(error) = transaction.commit() {
            for text in added {
                self.texts.remove(&text);
            }
            return Err(error);
        }
        self.span = Some(span);
        self.next = next;
        self.room()?;
        if self.texts.len() > MOST_REMEMBERED {
            self.texts.clear();
        }
        Ok(Some(written))
    }
}

/// What a transaction changes, at most.
struct Cost {
    rows: u64,
    pages: u64,
}

impl Cost {
    fn total(&self) -> u64 {
        self.pages + self.rows / ROWS_IN_PAGE
    }

    /// Of one more row, if none of its strings is known: one leaf each in the table and in its index, which may split, and what is
    /// too long for a page.
    fn of(row: &Row) -> u64 {
        1 + row.texts.iter().flatten().map(|text| pages_of(text)).sum::<u64>()
    }
}

fn pages_of(text: &str) -> u64 {
    3 + 2 * u64::try_from(text.len()).unwrap_or(u64::MAX / 4) / (PAGE / 2)
}

/// The strings that have numbers.
struct Texts<'a> {
    known: &'a mut HashMap<Arc<str>, Text>,
    added: Vec<Arc<str>>,
}

impl Texts<'_> {
    /// The number of a string that record `id` has, and how many pages were changed for it.
    fn number(&mut self, transaction: &Transaction<'_>, text: &Arc<str>, id: i64) -> rusqlite::Result<(i64, u64)> {
        let found = match self.known.get(text) {
            Some(found) => Some(*found),
            None => transaction
                .prepare_cached("SELECT id, used FROM text WHERE text = ?1")?
                .query_row([&**text], |row| Ok(Text { id: row.get(0)?, used: row.get(1)? }))
                .optional()?,
        };
        let (entry, pages) = match found {
            Some(found) if found.used.saturating_add(LAG / 2) >= id => (found, 0),
            Some(found) => {
                transaction.prepare_cached("UPDATE text SET used = ?2 WHERE id = ?1")?.execute([found.id, id])?;
                (Text { used: id, ..found }, 1)
            }
            None => {
                transaction
                    .prepare_cached("INSERT INTO text(text, used) VALUES (?1, ?2)")?
                    .execute(params![&**text, id])?;
                (Text { id: transaction.last_insert_rowid(), used: id }, pages_of(text))
            }
        };
        if pages > 0 {
            self.added.push(Arc::clone(text));
        }
        self.known.insert(Arc::clone(text), entry);
        Ok((entry.id, pages))
    }
}

/// Notes that somebody watches still: makes the span longer, or begins one.
fn go_on(transaction: &Transaction<'_>, span: Option<i64>, first: i64, now: i64) -> rusqlite::Result<i64> {
    if let Some(span) = span {
        let longer = transaction
            .prepare_cached("UPDATE span SET ended = ?2 WHERE id = ?1 AND ended <= ?2 AND ended >= ?2 - ?3")?
            .execute([span, now, LONGEST_PAUSE])?;
        if longer > 0 {
            return Ok(span);
        }
    }
    // What is older than a window was recorded before, and did not find its way to the disk.
    let begun = first.max(now.saturating_sub(LONGEST_PAUSE)).min(now);
    transaction.prepare_cached("INSERT INTO span(begun, ended) VALUES (?1, ?2)")?.execute([begun, now])?;
    Ok(transaction.last_insert_rowid())
}

fn put(transaction: &Transaction<'_>, name: &str, value: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO fact VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = max(value, ?2)")?
        .execute(params![name, value])
        .map(|_| ())
}

/// Whether it is a store of this version.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), Error> {
    let number = |pragma: &str| {
        connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).map_err(|source| Error::Database {
            attempt: "read",
            path: path.to_owned(),
            source,
        })
    };
    let foreign = |why: String| Err(Error::Foreign { path: path.to_owned(), why });
    if number("PRAGMA application_id")? != i64::from(APPLICATION) {
        return foreign("not a store of flows".to_owned());
    }
    let version = number("PRAGMA user_version")?;
    if version != i64::from(VERSION) {
        return foreign(format!("a store of version {version}, and this is nodewall for version {VERSION}"));
    }
    Ok(())
}
