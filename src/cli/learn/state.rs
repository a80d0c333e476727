//! Since when is learned, and until when: a small file in the state directory.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::unistd::{User, getuid};
use serde::{Deserialize, Serialize};

use crate::textfile;

/// The file's name.
const FILE: &str = "learn.json";
/// What this program writes and reads.
const VERSION: u32 = 1;
/// Nothing that we wrote is longer.
const LONGEST: u64 = 64 * 1024;

/// A time in which is learned, in seconds since 1970-01-01 UTC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Learning {
    pub(super) started: u64,
    pub(super) until: u64,
    /// Who started it.
    pub(super) by: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    started: u64,
    until: u64,
    by: String,
}

pub(super) fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// The user, also behind sudo.
pub(super) fn somebody() -> String {
    let real = || User::from_uid(getuid()).ok().flatten().map(|user| user.name);
    let name = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty()).or_else(real);
    name.unwrap_or_else(|| getuid().to_string()).chars().take(64).collect()
}

/// What was noted, if anything was.
///
/// # Errors
/// A sentence that names the file.
pub(super) fn read(state: &Path) -> Result<Option<Learning>, String> {
    let path = path(state);
    let failed = |error: &io::Error| format!("cannot read {}: {}", path.display(), textfile::reason(error));
    match fs::metadata(&path) {
        Ok(found) if found.len() > LONGEST => {
            return Err(format!("{} is not ours: start learning again", path.display()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    }
    let text = fs::read(&path).map_err(|error| failed(&error))?;
    match serde_json::from_slice::<Kept>(&text) {
        Ok(Kept { version: VERSION, started, until, by }) => Ok(Some(Learning { started, until, by })),
        Ok(_) => Err(format!("{} is of another version: start learning again", path.display())),
        Err(error) => Err(format!("{} is damaged ({error}): start learning again", path.display())),
    }
}

/// Notes it: as a whole or not at all, also after a crash.
///
/// # Errors
/// The state directory cannot be written.
pub(super) fn write(state: &Path, learning: &Learning) -> io::Result<()> {
    let Learning { started, until, by } = learning.clone();
    let text = serde_json::to_string(&Kept { version: VERSION, started, until, by })?;
    textfile::replace(&path(state), format!("{text}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_noted_is_read_back_and_damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), Ok(None));
        let learning = Learning { started: 5, until: 9, by: "root".to_owned() };
        write(directory.path(), &learning).unwrap();
        assert_eq!(read(directory.path()), Ok(Some(learning)));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        for text in ["", "{", "{\"version\":2,\"started\":1,\"until\":2,\"by\":\"x\"}"] {
            fs::write(path(directory.path()), text).unwrap();
            let why = read(directory.path()).unwrap_err();
            assert!(why.contains("start learning again"), "{why}");
        }
    }
}
