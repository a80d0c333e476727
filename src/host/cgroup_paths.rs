//! Where control groups are, by their numbers, as the kernel names them for sockets.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The directories of the unified hierarchy, by number.
#[derive(Debug)]
pub(super) struct CgroupPaths {
    /// Where the hierarchy is mounted; `None` where there is none.
    root: Option<PathBuf>,
    /// The paths from there.
    by_id: HashMap<u64, PathBuf>,
    walked: Option<Instant>,
}

/// How many directories are looked at. A node of 250 pods has about a thousand.
const MOST_DIRECTORIES: usize = 16 << 10;
/// A walk through a thousand directories takes some ten milliseconds; there is at most one in this time.
const BETWEEN_WALKS: Duration = Duration::from_secs(1);

impl CgroupPaths {
    /// Knows none yet.
    pub(super) fn new(root: Option<PathBuf>) -> Self {
        Self { root, by_id: HashMap::new(), walked: None }
    }

    /// The whole path of the directory, and that from the root of the hierarchy. Who is not known is looked for, unless that was done just
    /// now: then `None` may mean that it is too early to say.
    pub(super) fn find(&mut self, id: u64, now: Instant) -> Option<(PathBuf, &Path)> {
        if !self.by_id.contains_key(&id) && self.may_walk(now) {
            self.walk(now);
        }
        let path = self.by_id.get(&id)?;
        Some((self.root.as_ref()?.join(path), path))
    }

    /// Whether one that is not known would be looked for.
    pub(super) fn may_walk(&self, now: Instant) -> bool {
        self.root.is_some() && self.walked.is_none_or(|walked| now.duration_since(walked) >= BETWEEN_WALKS)
    }

    fn walk(&mut self, now: Instant) {
        let Some(root) = &self.root else { return };
        self.walked = Some(now);
        self.by_id.clear();
        if let Ok(metadata) = fs::metadata(root) {
            self.by_id.insert(metadata.ino(), PathBuf::new());
        }
        // Breadth first, so that units go before what runs deep inside them when there are too many.
        let mut waiting = VecDeque::from([PathBuf::new()]);
        while let Some(directory) = waiting.pop_front() {
            for entry in fs::read_dir(root.join(&directory)).into_iter().flatten().flatten() {
                // Type and number are in the directory; asking for each of the many files would take ten times as long.
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if self.by_id.len() >= MOST_DIRECTORIES {
                    return;
                }
                let path = directory.join(entry.file_name());
                self.by_id.insert(entry.ino(), path.clone());
                waiting.push_back(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_comes_later_is_found_later_and_not_sooner() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            fs::create_dir_all(root.path().join(path)).unwrap();
            fs::metadata(root.path().join(path)).unwrap().ino()
        };
        let ssh = make("system.slice/ssh.service");
        let mut paths = CgroupPaths::new(Some(root.path().to_owned()));
        let start = Instant::now();
        let (whole, from_root) = paths.find(ssh, start).unwrap();
        assert_eq!(from_root, Path::new("system.slice/ssh.service"));
        assert_eq!(whole, root.path().join("system.slice/ssh.service"));
        let ray = make("system.slice/ray.service");
        assert!(paths.find(ray, start).is_none() && !paths.may_walk(start), "it was looked just now");
        assert!(paths.find(ray, start + BETWEEN_WALKS).is_some());
        let own = fs::metadata(root.path()).unwrap().ino();
        assert_eq!(paths.find(own, start).unwrap().1, Path::new(""));
        assert!(CgroupPaths::new(None).find(ssh, start).is_none());
    }
}
