//! Changes of nodewall.toml and of the policy directories, by inotify(7).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::mpsc;

/// Says that a file may have changed; which one and how, is for loading to see.
pub(super) struct FileWatch {
    inotify: Arc<Inotify>,
    events: mpsc::Receiver<InotifyEvent>,
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    watched: BTreeMap<WatchDescriptor, Interest>,
}

/// What may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Changed {
    /// Anything.
    Anything,
    /// This file of a watched directory, and somebody may still be at it.
    Touched(PathBuf),
    /// This file of a watched directory, by somebody who is done with it.
    Written(PathBuf),
}

/// What counts in a watched directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Interest {
    /// Every name: the directory as it is named in the settings.
    all: Option<PathBuf>,
    /// These names, when they come, go or are written.
    files: BTreeSet<OsString>,
    /// These names, when they come or go.
    directories: BTreeSet<OsString>,
}

/// How many events wait for the loop; more wait in the kernel, which reports it when it loses some.
const QUEUED_EVENTS: usize = 64;

impl FileWatch {
    /// Starts to watch nothing.
    pub(super) fn open() -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
        let (sender, events) = mpsc::channel(QUEUED_EVENTS);
        let reader = Arc::clone(&inotify);
        // The reading blocks in a thread of its own, for want of a safe way to have tokio wait for a descriptor.
        thread::Builder::new().name("inotify".to_owned()).spawn(move || {
            loop {
                match reader.read_events() {
                    Ok(events) => {
                        for event in events {
                            if sender.blocking_send(event).is_err() {
                                return;
                            }
                        }
                    }
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => {
                        tracing::error!("cannot watch files any more: {error}; reload with SIGHUP after a change");
                        return;
                    }
                }
            }
        })?;
        Ok(Self { inotify, events, directories: Vec::new(), files: Vec::new(), watched: BTreeMap::new() })
    }

    /// Watches these from now on. They need not exist. Whether one of them changed since a time at which it was not watched yet.
    pub(super) fn set(&mut self, directories: &[PathBuf], files: &[PathBuf], since: SystemTime) -> bool {
        let absolute = |paths: &[PathBuf]| -> Vec<PathBuf> {
            paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
        };
        self.directories = absolute(directories);
        self.files = absolute(files);
        let before: Vec<WatchDescriptor> = self.watched.keys().copied().collect();
        self.resync();
        let is_new = self.watched.keys().any(|descriptor| !before.contains(descriptor));
        is_new && self.directories.iter().chain(&self.files).any(|path| changed_since(path, since))
    }

    /// Waits until something may have changed.
    pub(super) async fn changed(&mut self) -> Changed {
        loop {
            let Some(event) = self.events.recv().await else {
                // The thread has given up and said so.
                return std::future::pending().await;
            };
            match self.judge(&event) {
                Some(Changed::Anything) => {
                    // A directory may be there now that was not before, or another one under its name.
                    self.resync();
                    return Changed::Anything;
                }
                Some(changed) => return changed,
                None => {}
            }
        }
    }

    /// What an event means; `None`: nothing.
    fn judge(&self, event: &InotifyEvent) -> Option<Changed> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Changed::Anything);
        }
        let interest = self.watched.get(&event.wd)?;
        let itself = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_UNMOUNT
            | AddWatchFlags::IN_IGNORED;
        if event.mask.intersects(itself) {
            return Some(Changed::Anything);
        }
        let name = event.name.as_ref();
        let besides = name.is_some_and(|name| {
            interest.files.contains(name)
                || (interest.directories.contains(name) && event.mask.intersects(comings_and_goings()))
        });
        match (&interest.all, name) {
            (Some(directory), Some(name)) if !besides && !event.mask.contains(AddWatchFlags::IN_ISDIR) => {
                let path = directory.join(name);
                let done = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
                Some(if event.mask.intersects(done) { Changed::Written(path) } else { Changed::Touched(path) })
            }
            (Some(_), _) => Some(Changed::Anything),
            (None, _) => besides.then_some(Changed::Anything),
        }
    }

    /// Makes the watches be those that are wanted now.
    fn resync(&mut self) {
        let mut watched: BTreeMap<WatchDescriptor, Interest> = BTreeMap::new();
        for (path, interest) in wanted(&self.directories, &self.files) {
            let mut mask = comings_and_goings()
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_ONLYDIR;
            if interest.all.is_some() || !interest.files.is_empty() {
                mask |= AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB;
            }
            match self.inotify.add_watch(&path, mask) {
                Ok(descriptor) => {
                    watched.insert(descriptor, interest);
                }
                // Gone again since it was looked up: then its parent says so.
                Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
                Err(error) => {
                    tracing::warn!("cannot watch {}: {error}; reload with SIGHUP after a change there", path.display())
                }
            }
        }
        for descriptor in self.watched.keys().filter(|descriptor| !watched.contains_key(descriptor)) {
            // Fails when the directory is gone, and the watch with it.
            let _ = self.inotify.rm_watch(*descriptor);
        }
        self.watched = watched;
    }
}

/// The clock of files may be this much behind: it goes by ticks of the kernel's.
const TICK: Duration = Duration::from_millis(20);

/// Whether a file or directory was written, or what leads to it, at this time or later.
fn changed_since(path: &Path, since: SystemTime) -> bool {
    let newer = |metadata: io::Result<std::fs::Metadata>| {
        metadata.and_then(|metadata| metadata.modified()).is_ok_and(|modified| modified + TICK >= since)
    };
    newer(std::fs::metadata(path)) || newer(std::fs::symlink_metadata(path))
}

fn comings_and_goings() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE
}

/// The directories to watch, each under its real path. A directory that exists is watched with its parent, in which it
/// may be replaced; of one that does not, the deepest directory above it that does.
fn wanted(directories: &[PathBuf], files: &[PathBuf]) -> BTreeMap<PathBuf, Interest> {
    let mut wanted: BTreeMap<PathBuf, Interest> = BTreeMap::new();
    let real = |path: &Path| std::fs::canonicalize(path).ok().filter(|path| path.is_dir());
    for directory in directories {
        if let Some(path) = real(directory) {
            wanted.entry(path).or_default().all = Some(directory.clone());
        }
        if let Some((path, name, _)) = nearest(directory, real) {
            wanted.entry(path).or_default().directories.insert(name);
        }
    }
    // Most files are in few directories.
    let known: RefCell<BTreeMap<PathBuf, Option<PathBuf>>> = RefCell::default();
    let real = |path: &Path| known.borrow_mut().entry(path.to_owned()).or_insert_with(|| real(path)).clone();
    // A file of a directory that is watched needs nothing more, but where it leads to does.
    let watched = |file: &Path| file.parent().is_some_and(|parent| directories.iter().any(|known| known == parent));
    for file in files.iter().flat_map(|file| hops(file)).filter(|file| !watched(file)) {
        if let Some((path, name, is_parent)) = nearest(&file, real) {
            let interest = wanted.entry(path).or_default();
            if is_parent {
                interest.files.insert(name)
            } else {
                interest.directories.insert(name)
            };
        }
    }
    wanted
}

/// How many links lead on from a file at most: more than that and the kernel does not open it either (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A file and what it leads to, link by link: inotify(7) tells of the directory in which something changed, and a link has
/// its target in another.
fn hops(file: &Path) -> Vec<PathBuf> {
    let mut hops = vec![file.to_owned()];
    let mut here = file.to_owned();
    while hops.len() <= MOST_LINKS
        && let (Ok(target), Some(parent)) = (std::fs::read_link(&here), here.parent())
    {
        here = parent.join(target);
        hops.push(here.clone());
    }
    hops
}

/// The deepest existing directory above a path, the name that leads on from there, and whether it is the path's parent.
fn nearest(path: &Path, real: impl Fn(&Path) -> Option<PathBuf>) -> Option<(PathBuf, OsString, bool)> {
    let mut below = path;
    let mut is_parent = true;
    while let Some(parent) = below.parent() {
        if let Some(directory) = real(parent) {
            return Some((directory, below.file_name()?.to_owned(), is_parent));
        }
        is_parent = false;
        below = parent;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    /// Whether a change is seen within a second.
    async fn seen(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.is_ok()
    }

    /// Takes what is queued, so that the next change is seen by itself.
    async fn settle(watch: &mut FileWatch) {
        while tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_ok() {}
    }

    #[tokio::test]
    async fn changes_are_seen_in_directories_that_are_there_and_that_come_later() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/nodewall");
        let run = root.path().join("run/nodewall/policy.d");
        fs::create_dir_all(etc.join("policy.d")).unwrap();
        let mut watch = FileWatch::open().unwrap();
        watch.set(&[etc.join("policy.d"), run.clone()], &[etc.join("nodewall.toml")], SystemTime::now());

        fs::write(etc.join("policy.d/10-a.toml"), "").unwrap();
        assert!(seen(&mut watch).await, "a file in a directory");
        settle(&mut watch).await;
        fs::write(etc.join("nodewall.toml"), "").unwrap();
        assert!(seen(&mut watch).await, "the settings");
        settle(&mut watch).await;
        fs::create_dir_all(&run).unwrap();
        assert!(seen(&mut watch).await, "a directory that comes");
        settle(&mut watch).await;
        fs::write(run.join("50-b.toml"), "").unwrap();
        assert!(seen(&mut watch).await, "a file in a directory that came");
        settle(&mut watch).await;
        fs::rename(etc.join("policy.d"), etc.join("old.d")).unwrap();
        assert!(seen(&mut watch).await, "a directory that goes");
        settle(&mut watch).await;
        fs::create_dir(etc.join("policy.d")).unwrap();
        assert!(seen(&mut watch).await, "a directory that comes again");
        settle(&mut watch).await;
        fs::write(etc.join("policy.d/10-a.toml"), "").unwrap();
        assert!(seen(&mut watch).await, "a file in the new directory");
        settle(&mut watch).await;
        fs::write(etc.join("unrelated"), "").unwrap();
        fs::write(root.path().join("etc/unrelated"), "").unwrap();
        assert!(!seen(&mut watch).await, "other files are nobody's business");
    }

    #[tokio::test]
    async fn changes_are_seen_behind_links() {
        let root = tempfile::tempdir().unwrap();
        let (etc, opt) = (root.path().join("etc"), root.path().join("opt"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&opt).unwrap();
        fs::write(opt.join("a.toml"), "").unwrap();
        std::os::unix::fs::symlink("../opt/b.toml", etc.join("a.toml")).unwrap();
        std::os::unix::fs::symlink(opt.join("a.toml"), opt.join("b.toml")).unwrap();
        std::os::unix::fs::symlink("loop.toml", etc.join("loop.toml")).unwrap();
        let mut watch = FileWatch::open().unwrap();
        watch.set(std::slice::from_ref(&etc), &[etc.join("a.toml"), etc.join("loop.toml")], SystemTime::now());

        fs::write(opt.join("a.toml"), "# changed").unwrap();
        assert!(seen(&mut watch).await, "a target that is written");
        settle(&mut watch).await;
        fs::write(opt.join("new"), "").unwrap();
        assert!(!seen(&mut watch).await, "other files are nobody's business");
        fs::rename(opt.join("new"), opt.join("a.toml")).unwrap();
        assert!(seen(&mut watch).await, "a target that is replaced");
        settle(&mut watch).await;
        fs::remove_file(opt.join("b.toml")).unwrap();
        assert!(seen(&mut watch).await, "a link on the way that goes");
    }

    #[tokio::test]
    async fn what_changed_before_it_was_watched_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("nodewall.toml");
        fs::write(&file, "").unwrap();
        let mut watch = FileWatch::open().unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        assert!(!watch.set(&[], std::slice::from_ref(&file), later), "older than that");
        let mut watch = FileWatch::open().unwrap();
        let before = SystemTime::now() - Duration::from_secs(60);
        assert!(watch.set(&[], std::slice::from_ref(&file), before));
        assert!(!watch.set(&[], std::slice::from_ref(&file), before), "it is watched");
    }
}
