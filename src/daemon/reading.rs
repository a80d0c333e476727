//! When documents are read again. A file that was written as a whole and differs in the members of sets only goes ahead of the rest:
//! what it changes is in force in milliseconds, and all documents are read when that costs little.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::files::Changed;
use super::{Daemon, Input, Work, documents};
use crate::reconcile::Event;
use crate::source::{self, Decoded, DecodedFile, Trust};

/// Several writes of one change, and several changes of one configuration run, are one reload.
const SETTLE: Duration = Duration::from_millis(200);
/// What clusters say settles before it comes here; several of them are one load.
const CLUSTERS_SETTLE: Duration = Duration::from_millis(5);
/// It is loaded after as many times as long as the last load took.
const CLUSTERS_COST: u32 = 2;
/// A file that is written without a pause is read all the same after this time.
const SETTLE_AT_MOST: Duration = Duration::from_secs(2);
/// What went ahead is followed by the documents after this time, ...
const FOLLOW: Duration = Duration::from_secs(1);
/// ... or as many times as long as the last time that they took, so that members that change all the time cost this part of a core...
const FOLLOW_COST: u32 = 10;
/// ... but never later than this.
const FOLLOW_AT_MOST: Duration = Duration::from_secs(60);

/// What is known of the files, and what is still to be read.
#[derive(Default)]
pub(super) struct Reading {
    /// The files as they are in force, or were read last.
    files: Decoded,
    /// Files that are looked at by themselves.
    rereading: BTreeMap<PathBuf, Work>,
    /// Files that changed and went ahead, since the last load began.
    ahead: BTreeMap<PathBuf, Arc<DecodedFile>>,
    /// Files that changed and were not looked at since.
    unread: BTreeSet<PathBuf>,
    /// Whether something changed that only a load of everything can see.
    other: bool,
    /// Whether a cluster has something new to say, which has settled already.
    cluster: bool,
    /// When that is loaded.
    cluster_at: Option<Instant>,
    /// When the first of that came.
    since: Option<Instant>,
    /// When what went ahead is to be followed.
    follow_at: Option<Instant>,
    /// When the last load began, and how long it took from there until it was in force.
    began: Option<Instant>,
    cost: Duration,
    /// When the last load began by the clock of files.
    pub(super) read_at: Option<SystemTime>,
    /// When to load.
    pub(super) load_at: Option<Instant>,
}

/// What a look at one file came to.
pub(super) struct Reread {
    path: PathBuf,
    before: Arc<DecodedFile>,
    /// `None` if it cannot be used.
    now: Option<DecodedFile>,
}

impl Reading {
    /// A load begins, and sees all that changed until now.
    pub(super) fn begins(&mut self) {
        let Self { files, rereading, cost, .. } = std::mem::take(self);
        *self = Self {
            files,
            rereading,
            cost,
            began: Some(Instant::now()),
            read_at: Some(SystemTime::now()),
            ..Self::default()
        };
    }

    /// What was loaded is in force, or refused.
    pub(super) fn ends(&mut self) {
        if let Some(began) = self.began.take() {
            self.cost = began.elapsed();
        }
    }

    /// The files of a load; what went ahead while it was under way is in them as well.
    pub(super) fn loaded(&mut self, documents: &mut documents::Documents) {
        // What went ahead while a load was under way is in it, one way or the other.
        let lost = std::mem::take(&mut self.ahead).iter().filter(|(path, file)| !documents.follow(path, file)).count();
        self.other |= lost > 0;
        self.follow_at = None;
        self.files = std::mem::take(&mut documents.decoded);
        self.plan();
    }

    pub(super) fn files(&self) -> Decoded {
        self.files.clone()
    }

    /// Somebody else reads everything that changed until now.
    pub(super) fn is_done_for(&mut self) {
        self.unread.clear();
        (self.other, self.since, self.follow_at, self.load_at) = (false, None, None, None);
        (self.cluster, self.cluster_at) = (false, None);
    }

    /// Something changed that only a load of everything can see.
    pub(super) fn all_changed(&mut self) {
        self.other = true;
        self.plan();
    }

    /// A cluster has something new to say.
    pub(super) fn cluster_changed(&mut self) {
        self.cluster = true;
        self.plan();
    }

    fn changed(&mut self, path: &Path) {
        if self.files.contains_key(path) {
            self.unread.insert(path.to_owned());
        } else {
            self.other = true;
        }
        self.plan();
    }

    /// A file went ahead.
    fn went_ahead(&mut self, path: PathBuf, file: DecodedFile) {
        let file = Arc::new(file);
        self.unread.remove(&path);
        self.files.insert(path.clone(), Arc::clone(&file));
        self.ahead.insert(path, file);
        let after = FOLLOW.max(self.cost.saturating_mul(FOLLOW_COST)).min(FOLLOW_AT_MOST);
        self.follow_at.get_or_insert(Instant::now() + after);
        self.plan();
    }

    fn plan(&mut self) {
        let now = Instant::now();
        if self.other || !self.unread.is_empty() {
            let latest = *self.since.get_or_insert(now) + SETTLE_AT_MOST;
            self.load_at = Some((now + SETTLE).min(latest));
        } else {
            self.since = None;
            self.load_at = self.follow_at;
        }
        if self.cluster {
            // Objects that change all the time leave most of the core to others.
            let soon = now + CLUSTERS_SETTLE.max(self.cost.saturating_mul(CLUSTERS_COST)).min(SETTLE_AT_MOST);
            let soon = *self.cluster_at.get_or_insert(soon);
            self.load_at = Some(self.load_at.map_or(soon, |at| at.min(soon)));
        }
    }
}

impl Daemon {
    pub(super) fn files_changed(&mut self, changed: Changed) {
        match changed {
            Changed::Anything => self.reading.all_changed(),
            Changed::Touched(path) if counts(&path) => self.reading.changed(&path),
            Changed::Written(path) if counts(&path) => {
                self.reading.changed(&path);
                self.reread(path);
            }
            Changed::Touched(_) | Changed::Written(_) => {}
        }
    }

    /// Looks at one file that is known, off the loop.
    fn reread(&mut self, path: PathBuf) {
        let Some(before) = self.reading.files.get(&path).cloned() else { return };
        if !self.reading.rereading.entry(path.clone()).or_default().begin() {
            return;
        }
        let inbox = self.inbox.clone();
        tokio::task::spawn_blocking(move || {
            let now = source::reread(&path, Trust::Required);
            let _ = inbox.send(Input::Reread(Box::new(Reread { path, before, now })));
        });
    }

    pub(super) fn reread_one(&mut self, reread: Reread) {
        let Reread { path, before, now } = reread;
        let again = self.reading.rereading.remove(&path).is_some_and(|mut work| work.end());
        let is_known = self.reading.files.get(&path).is_some_and(|known| Arc::ptr_eq(known, &before));
        if again || !is_known {
            return self.reread(path);
        }
        // Anything else is for the load that comes.
        let Some(now) = now else { return };
        let Some(sets) = before.members_changed(&now) else { return };
        self.reading.went_ahead(path, now);
        if !sets.is_empty() {
            self.happened(Event::MembersChanged(sets));
        }
    }
}

/// What editors and package managers leave beside a file is nobody's business.
fn counts(path: &Path) -> bool {
    path.file_name().is_some_and(|name| source::counts(&name.to_string_lossy()))
}
