//! The store of flow records: one SQLite database with bounds in time and on disk, which outlives power cuts.
//!
//! ```text
//! flows/                    0750 root:nodewall
//!   flows.sqlite            0640; record, text (strings, once each), batch (a write), span (when somebody watched), fact
//!   flows.sqlite-wal, -shm  SQLite's; they stay when the daemon ends, so that those who may only read can read
//!   flows.sqlite.aside      the last one that was damaged or of another version
//! ```
//!
//! A record takes about 70 bytes on disk, plus its strings where nobody had them yet. Rows are in the order in which they were
//! written, and a batch knows between which times its rows are, so there is no index over rows: writing is appending, and
//! the oldest go in runs.

mod database;
mod files;
mod reader;
mod row;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::ErrorCode;

pub use reader::{Reader, Scan};
pub use writer::{Store, Written};

/// The name of the database in its directory.
pub const FILE: &str = "flows.sqlite";
/// The group whose members may read.
pub const READERS: &str = "nodewall";

/// The directory of the store in the state directory.
pub fn directory(state: &Path) -> PathBuf {
    state.join("flows")
}

/// How many bytes the store in this directory has on disk: the database and its write-ahead log. 0 where there is none.
pub fn size(directory: &Path) -> u64 {
    let of = |name: String| std::fs::metadata(directory.join(name)).map_or(0, |metadata| metadata.len());
    of(FILE.to_owned()).saturating_add(of(format!("{FILE}-wal")))
}

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// For how long records are kept.
    pub keep: Duration,
    /// How many bytes the database and its write-ahead log take on disk at most; less than 2 MiB is taken for 2 MiB.
    pub bytes: u64,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no store.
    #[error("no flows are stored in {}", directory.display())]
    Missing {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// SQLite refused.
    #[error("cannot {attempt} the flows in {}: {source}", path.display())]
    Database {
        /// What was tried.
        attempt: &'static str,
        /// The database.
        path: PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// It is not a store of this version.
    #[error("{}: {why}", path.display())]
    Foreign {
        /// The database.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// Somebody began to write while it was read without locks.
    #[error("{} was written to meanwhile; ask again", path.display())]
    Changed {
        /// The database.
        path: PathBuf,
    },
}

impl Error {
    /// Whether this user may not read it.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Disk { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Database { source, .. } => source.sqlite_error_code() == Some(ErrorCode::PermissionDenied),
            Self::Missing { .. } | Self::Foreign { .. } | Self::Changed { .. } => false,
        }
    }

    /// Whether the file is not what was written, so that only another one helps.
    fn is_damage(&self) -> bool {
        match self {
            Self::Foreign { .. } => true,
            Self::Database { source, .. } => !is_of_the_system(source),
            Self::Missing { .. } | Self::Disk { .. } | Self::Changed { .. } => false,
        }
    }
}

/// Whether the system is in the way: what is in the file may be as it should. Everything else (a number where a name was, a number
/// that is there already, a table that is not) is no answer to what a writer asks of a database that is whole.
fn is_of_the_system(error: &rusqlite::Error) -> bool {
    use ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, NoLargeFileSupport, OutOfMemory,
        PermissionDenied, ReadOnly, SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | NoLargeFileSupport
                | OutOfMemory
                | PermissionDenied
                | ReadOnly
                | SystemIoFailure
        )
    )
}

/// Whether SQLite itself says so.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}
