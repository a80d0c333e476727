//! A file that tells who logs in of what holds for the moment only: a change that nobody has confirmed, panic, break-glass.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use super::clock::of_milliseconds;
use crate::reconcile::{Emergency, State};

/// The way to the thread that writes the file, so that a disk that hangs never stops the loop.
#[derive(Debug, Default)]
pub(super) struct Motd {
    jobs: Option<mpsc::Sender<Job>>,
    path: Option<PathBuf>,
    text: Option<String>,
    /// Whether the file at the path is as it should be, or was told to be.
    told: bool,
}

#[derive(Debug)]
struct Job {
    path: PathBuf,
    /// What it is to hold; `None`: it is not to be there.
    text: Option<String>,
}

impl Motd {
    /// Where the file is from now on.
    pub(super) fn at(&mut self, path: Option<PathBuf>) {
        if self.path == path {
            return;
        }
        if let Some(path) = self.path.take() {
            self.job(Job { path, text: None });
        }
        (self.path, self.told) = (path, false);
    }

    /// What it is to say from now on.
    pub(super) fn say(&mut self, text: Option<String>) {
        let Some(path) = self.path.clone() else { return };
        if self.told && self.text == text {
            return;
        }
        (self.text, self.told) = (text.clone(), true);
        self.job(Job { path, text });
    }

    fn job(&mut self, job: Job) {
        if self.jobs.is_none() {
            let (jobs, waiting) = mpsc::channel();
            match thread::Builder::new().name("motd".to_owned()).spawn(move || serve(&waiting)) {
                Ok(_) => self.jobs = Some(jobs),
                Err(error) => return tracing::warn!("cannot start the thread that writes the motd: {error}"),
            }
        }
        if let Some(jobs) = &self.jobs {
            // It ends with the process only.
            let _ = jobs.send(job);
        }
    }
}

fn serve(jobs: &mpsc::Receiver<Job>) {
    while let Ok(Job { path, text }) = jobs.recv() {
        let done = match &text {
            Some(text) => write(&path, text),
            None => remove(&path),
        };
        if let Err(error) = done {
            tracing::warn!("cannot keep {} as it should be: {error}", path.display());
        }
    }
}

/// Whole or not at all, for whoever logs in meanwhile.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no path of a file"));
    };
    if !directory.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    let new = directory.join(new);
    // One that a crash left behind.
    remove(&new)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    // Whatever the umask is: it is for everybody to read.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What there is to tell, if there is anything: what holds, until when, and which commands there are.
pub(super) fn text(state: &State) -> Option<String> {
    let record = state.record();
    let (what, commands) = match (&record.emergency, &record.pending) {
        (Some(emergency), _) => {
            let (until, end) = match emergency {
                Emergency::BreakGlass { term, .. } => {
                    (format!(", until {}", of_milliseconds(term.until)), "nodewall break-glass --end")
                }
                Emergency::Panic { .. } => (String::new(), "nodewall panic off"),
            };
            (format!("{}{until}", emergency.words()), vec![("end it", end)])
        }
        (None, Some(pending)) => {
            let back = state.confirmed().map(|number| format!(" to generation {number}")).unwrap_or_default();
            let unless = if pending.before.is_some() { " unless its self-test passes" } else { "" };
            let until = of_milliseconds(pending.term.until);
            let number = pending.generation;
            let what = format!("generation {number} is not confirmed: it goes back{back} at {until}{unless}");
            (what, vec![("keep it", "nodewall confirm"), ("go back now", "nodewall rollback")])
        }
        (None, None) => return None,
    };
    let mut text = format!("nodewall: {what}\n");
    for (label, command) in commands.into_iter().chain([("see more", "nodewall status")]) {
        text.push_str(&format!("  {label:<12}{command}\n"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_is_written_whole_for_everybody_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("motd.d/nodewall");
        remove(&path).unwrap();
        write(&path, "one\n").unwrap();
        fs::write(folder.path().join("motd.d/.nodewall.new"), "half").unwrap();
        write(&path, "two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(folder.path().join("motd.d")).unwrap().count(), 1);
        remove(&path).unwrap();
        assert!(!path.exists());
        // A link under the name is replaced, and what it leads to stays as it is.
        let other = folder.path().join("other");
        fs::write(&other, "theirs").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        write(&path, "three\n").unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
        assert!(write(&other.join("x"), "").is_err());
    }

    #[test]
    fn nothing_is_told_when_nothing_is_for_the_moment_only() {
        assert_eq!(text(&State::default()), None);
    }
}
