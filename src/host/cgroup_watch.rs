//! Units that start and stop, by inotify(7) on the directories in which theirs come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::sync::mpsc;

use super::cgroup::{self, Interest, Scan};

/// Says that a wanted unit may have started or stopped; which one, is for [`Scanner::scan`] to see.
pub struct CgroupWatch {
    scanner: Scanner,
    changes: mpsc::Receiver<()>,
}

/// Looks for units and has the directories watched in which they would come or go. Blocks, so not for the loop; clones work on
/// the same watches, one at a time.
#[derive(Clone)]
pub struct Scanner(Arc<Shared>);

struct Shared {
    inotify: Inotify,
    /// The root of the hierarchy, if there is one.
    root: Option<PathBuf>,
    watched: Mutex<BTreeMap<WatchDescriptor, Interest>>,
    scanning: Mutex<()>,
}

impl CgroupWatch {
    /// Starts to watch nothing in the hierarchy of the machine below `root`.
    ///
    /// # Errors
    /// The system has no more of inotify instances or threads.
    pub fn open(root: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC)?,
            root: cgroup::find(root),
            watched: Mutex::default(),
            scanning: Mutex::default(),
        });
        // One wish to look again is as good as many.
        let (sender, changes) = mpsc::channel(1);
        let reader = Arc::clone(&shared);
        // The reading blocks in a thread of its own, for want of a safe way to have tokio wait for a descriptor.
        thread::Builder::new().name("cgroups".to_owned()).spawn(move || {
            loop {
                match reader.inotify.read_events() {
                    Ok(events) => {
                        // Each is looked at, as some say that a watch is gone.
                        let matters = events.iter().filter(|event| reader.matters(event)).count() > 0;
                        if matters && let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                            return;
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(error) => {
                        tracing::error!("cannot watch control groups any more: {error}; `units` in policies go stale");
                        return;
                    }
                }
            }
        })?;
        Ok(Self { scanner: Scanner(shared), changes })
    }

    /// What looks for units.
    pub fn scanner(&self) -> Scanner {
        self.scanner.clone()
    }

    /// Waits until a wanted unit may have started or stopped.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The thread has given up and said so.
            future::pending().await
        }
    }
}

impl Scanner {
    /// The control groups of these units now; from here on [`CgroupWatch::changed`] is about these.
    pub fn scan(&self, units: &BTreeSet<String>) -> Scan {
        let Shared { inotify, root, scanning, .. } = &*self.0;
        let _alone = scanning.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(root) = root else {
            let incomplete = (!units.is_empty()).then(|| "no hierarchy of cgroup v2 is mounted".to_owned());
            return Scan { incomplete, ..Scan::default() };
        };
        let mut seen = BTreeSet::new();
        let scan = cgroup::scan_and(root, units, &mut |path, interest| match inotify.add_watch(path, mask()) {
            Ok(descriptor) => {
                seen.insert(descriptor);
                self.0.watched().insert(descriptor, interest);
                Ok(())
            }
            // Gone again since it was found: then the directory above says so.
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(Errno::ENOSPC) => Err("inotify has no watches left; raise fs.inotify.max_user_watches".to_owned()),
            Err(error) => Err(format!("cannot watch {}: {error}", path.display())),
        });
        let mut watched = self.0.watched();
        for descriptor in watched.keys().filter(|descriptor| !seen.contains(descriptor)) {
            // Fails when the directory is gone, and the watch with it.
            let _ = inotify.rm_watch(*descriptor);
        }
        watched.retain(|descriptor, _| seen.contains(descriptor));
        scan
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, BTreeMap<WatchDescriptor, Interest>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        // What was lost may have mattered.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        let mut watched = self.watched();
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            // The directory is gone, unless it was us who do not want it watched any more.
            return watched.remove(&event.wd).is_some();
        }
        match (watched.get(&event.wd), &event.name) {
            (Some(interest), Some(name)) => interest.is_in(name),
            (Some(_), None) => true,
            // Watched since a moment ago, or no longer.
            (None, _) => true,
        }
    }
}

fn mask() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_ONLYDIR
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);
    const SOON: Duration = Duration::from_millis(100);

    fn set(units: &[&str]) -> BTreeSet<String> {
        units.iter().map(|unit| (*unit).to_owned()).collect()
    }

    /// The hierarchy of a machine, with `system.slice` and `kubepods.slice`.
    fn machine() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("sys/fs/cgroup");
        for slice in ["system.slice", "kubepods.slice"] {
            fs::create_dir_all(tree.join(slice)).unwrap();
        }
        (root, tree)
    }

    async fn seen(watch: &mut CgroupWatch) -> bool {
        timeout(PATIENCE, watch.changed()).await.is_ok()
    }

    /// Takes what is queued, so that the next change is seen by itself.
    async fn quiet(watch: &mut CgroupWatch) -> bool {
        let quiet = timeout(SOON, watch.changed()).await.is_err();
        while timeout(SOON, watch.changed()).await.is_ok() {}
        quiet
    }

    #[tokio::test]
    async fn units_are_followed_and_other_directories_wake_nobody() {
        let (root, tree) = machine();
        let mut watch = CgroupWatch::open(root.path()).unwrap();
        let scanner = watch.scanner();
        let units = set(&["a.service", "kubepods.slice/pod1/b.scope"]);
        let scan = || scanner.scan(&units);
        assert_eq!(scan(), Scan::default());

        fs::create_dir(tree.join("system.slice/a.service")).unwrap();
        assert!(seen(&mut watch).await, "a unit starts");
        let first = scan().units["a.service"].clone();
        assert_eq!(first.len(), 1);
        fs::remove_dir(tree.join("system.slice/a.service")).unwrap();
        assert!(seen(&mut watch).await, "it stops");
        assert!(scan().units.is_empty());

        quiet(&mut watch).await;
        for other in ["system.slice/b.service", "system.slice/docker-1.scope", "kubepods.slice/pod2"] {
            fs::create_dir(tree.join(other)).unwrap();
            fs::remove_dir(tree.join(other)).unwrap();
        }
        assert!(quiet(&mut watch).await, "others");

        fs::create_dir_all(tree.join("gpu.slice/gpu-train.slice/a.service")).unwrap();
        assert!(seen(&mut watch).await, "a slice comes with it");
        assert_eq!(scan().units["a.service"].first().unwrap().level, 3);
        quiet(&mut watch).await;
        fs::create_dir_all(tree.join("kubepods.slice/pod1")).unwrap();
        assert!(seen(&mut watch).await, "what a path leads through");
        assert_eq!(scan().units.len(), 1);
        quiet(&mut watch).await;
        fs::create_dir_all(tree.join("kubepods.slice/pod1/b.scope")).unwrap();
        assert!(seen(&mut watch).await, "its end");
        let id = fs::metadata(tree.join("kubepods.slice/pod1/b.scope")).unwrap().ino();
        assert_eq!(scan().units["kubepods.slice/pod1/b.scope"].first().unwrap().id, id);

        assert_eq!(scanner.scan(&set(&[])), Scan::default());
        quiet(&mut watch).await;
        fs::remove_dir_all(&tree).unwrap();
        assert!(quiet(&mut watch).await, "nothing is wanted any more");
    }

    #[tokio::test]
    async fn what_happens_during_a_scan_is_not_missed() {
        let (root, tree) = machine();
        let mut watch = CgroupWatch::open(root.path()).unwrap();
        let (scanner, units) = (watch.scanner(), set(&["a.service"]));
        for round in 0..200 {
            let unit = tree.join(format!("system.slice/x{}.slice", round % 7)).join("a.service");
            let make = thread::spawn(move || {
                fs::create_dir_all(&unit).unwrap();
                unit
            });
            let mut found = scanner.scan(&units);
            let unit = make.join().unwrap();
            while found.units.is_empty() {
                assert!(seen(&mut watch).await, "round {round}");
                found = scanner.scan(&units);
            }
            fs::remove_dir(&unit).unwrap();
            fs::remove_dir(unit.parent().unwrap()).unwrap();
        }
    }

    #[tokio::test]
    async fn events_that_the_kernel_dropped_are_a_reason_to_look() {
        let (root, tree) = machine();
        let mut watch = CgroupWatch::open(root.path()).unwrap();
        let scanner = watch.scanner();
        scanner.scan(&set(&["a.service"]));
        let overflow = InotifyEvent {
            wd: inotify_descriptor(&scanner),
            mask: AddWatchFlags::IN_Q_OVERFLOW,
            cookie: 0,
            name: None,
        };
        assert!(scanner.0.matters(&overflow));
        fs::create_dir(tree.join("system.slice/a.service")).unwrap();
        assert!(seen(&mut watch).await);
    }

    fn inotify_descriptor(scanner: &Scanner) -> WatchDescriptor {
        *scanner.0.watched().first_key_value().unwrap().0
    }

    #[test]
    fn a_machine_without_the_hierarchy_says_so() {
        let root = tempfile::tempdir().unwrap();
        let watch = CgroupWatch::open(root.path()).unwrap();
        assert_eq!(watch.scanner().scan(&set(&[])).incomplete, None);
        assert!(watch.scanner().scan(&set(&["a.service"])).incomplete.unwrap().contains("no hierarchy"));
    }
}
