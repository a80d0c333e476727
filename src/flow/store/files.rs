//! The files of the store: who may read them, and how one that is of no use is set aside.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::{Gid, Group};

use super::{Error, FILE, READERS};
use crate::textfile;

/// What SQLite puts behind the name of the database.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];

/// Makes the directory and an empty database, unless they are there, and gives both to their readers.
///
/// # Errors
/// The file system's, and what has the name of the database and is no file.
pub(super) fn prepare(directory: &Path) -> Result<PathBuf, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(failed("create the directory", directory))?;
    let readers = Group::from_name(READERS).ok().flatten().map(|group| group.gid);
    share(directory, 0o750, readers)?;
    if let (Some(_), Some(state)) = (readers, directory.parent()) {
        let_through(state, readers)?;
    }
    let path = directory.join(FILE);
    match OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("create", &path)(error)),
    }
    // SQLite gives its other files the owner, group and mode of the database.
    let found = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
    if !found.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(failed("use", &path)(source));
    }
    share(&path, 0o640, readers)?;
    for companion in COMPANIONS.map(|suffix| beside(&path, suffix)).iter().filter(|path| path.exists()) {
        share(companion, 0o640, readers)?;
    }
    Ok(path)
}

/// Lets readers through the state directory, which is for root only: not what else is in it, whose files have modes of their own, nor
/// its list of names. One that somebody has opened further, or shut, is left as it is.
fn let_through(state: &Path, readers: Option<Gid>) -> Result<(), Error> {
    let mode = fs::metadata(state).map_err(failed("look at", state))?.permissions().mode() & 0o7777;
    if [0o700, 0o710].contains(&mode) { share(state, 0o710, readers) } else { Ok(()) }
}

/// Gives a file its mode and group. Whoever is not root has no group to give, which is no reason to store nothing.
fn share(path: &Path, mode: u32, readers: Option<Gid>) -> Result<(), Error> {
    if let Some(readers) = readers
        && nix::unistd::geteuid().is_root()
    {
        textfile::give_group(path, readers).map_err(failed("give the group", path))?;
    }
    let now = fs::metadata(path).map_err(failed("look at", path))?.permissions().mode() & 0o7777;
    if now == mode {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("set the mode of", path))
}

/// Renames a database that is of no use, in place of the one before; returns its new name. Its log goes with it.
///
/// # Errors
/// The file system's.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let aside = aside(path);
    for old in std::iter::once(aside.clone()).chain(COMPANIONS.map(|suffix| beside(&aside, suffix))) {
        remove(&old)?;
    }
    // First the log: a database with a log that is not its own would be damaged by it.
    let log = beside(path, "-wal");
    if log.exists() {
        fs::rename(&log, beside(&aside, "-wal")).map_err(failed("rename", &log))?;
    }
    remove(&beside(path, "-shm"))?;
    fs::rename(path, &aside).map_err(failed("rename", path))?;
    Ok(aside)
}

/// Removes what was set aside longer than `keep` ago.
pub(super) fn forget_aside(path: &Path, keep: Duration) {
    let aside = aside(path);
    // The time of the last change: a rename changes the inode.
    let age = fs::symlink_metadata(&aside).ok().and_then(|found| {
        let changed = u64::try_from(std::os::unix::fs::MetadataExt::ctime(&found)).ok()?;
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(changed)).ok()
    });
    if age.is_some_and(|age| age > keep) {
        for old in std::iter::once(aside.clone()).chain(COMPANIONS.map(|suffix| beside(&aside, suffix))) {
            // It is looked at again after the next start.
            let _ = remove(&old);
        }
    }
}

/// The length and the time of the last change of a file, by which a reader knows that somebody wrote.
pub(super) fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let found = fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()?))
}

/// A file that belongs to another one.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn aside(path: &Path) -> PathBuf {
    beside(path, ".aside")
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The error of the file system about a path.
pub(super) fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { attempt, path, source }
}
