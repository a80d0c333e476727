//! What goes on at this node: from the packet log and connection tracking to the journal, to who watches, and to the store.
//!
//! A thread of its own reads and explains ([`reader`]), another one writes to disk ([`keeper`]); the loop only says what is wanted and
//! what is in force. Neither is ever waited for.

mod journal;
mod keeper;
mod people;
mod reader;
pub mod record;
mod watchers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::UnboundedSender;

use super::metrics::LogMeter;
use super::{Daemon, Input};
use crate::config::Config;
use crate::config::flows::FlowSettings;
use crate::net::facts::Facts;
use crate::policy::effective::Effective;
use crate::policy::model::NamedSet;
pub(super) use watchers::Watchers;

/// What a scene is made of.
pub(super) type Scenery = (Arc<Effective>, Facts, BTreeMap<String, NamedSet>);

/// What is wanted of the threads.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wanted {
    group: u16,
    flows: FlowSettings,
    /// The state directory.
    directory: PathBuf,
    /// Where /proc and /sys are.
    root: PathBuf,
}

/// What is counted: since the daemon's start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Numbers {
    /// Logged packets that were read.
    pub packets: u64,
    /// Logged packets that the kernel had no room for, or that are not legible.
    pub lost_packets: u64,
    /// Logged packets that are not of rules of ours.
    pub foreign: u64,
    /// Connections that were seen to begin.
    pub connections: u64,
    /// How often the kernel had no room for events of connections: each time an unknown number was lost.
    pub connection_overruns: u64,
    /// Logged packets that had no line of their own in the journal.
    pub silent: u64,
    /// Records that were written.
    pub stored: u64,
    /// Records that were not written: the disk does not take them, or a reader of the store is in the way.
    pub left_out: u64,
    /// How many bytes the store has on disk.
    pub store_bytes: u64,
    /// Why the packet log is not read.
    pub log_error: Option<String>,
    /// Why connections are not seen.
    pub connections_error: Option<String>,
    /// Why records are not kept.
    pub store_error: Option<String>,
    /// Whether connection tracking counts packets and bytes; `None` while that is not known.
    pub accounting: Option<bool>,
}

/// What the loop and the threads share.
#[derive(Debug)]
struct Shared {
    wanted: Mutex<Option<Wanted>>,
    /// Counts what changes the scene.
    scene: AtomicU64,
    wake: EventFd,
    /// Whether the daemon ends.
    ending: AtomicBool,
    numbers: Mutex<Numbers>,
}

/// How long the end of the daemon waits for what was gathered to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The loop's side.
#[derive(Debug)]
pub(super) struct Traffic {
    shared: Arc<Shared>,
    watchers: Watchers,
    /// Closed once everything is written.
    written: Receiver<()>,
}

impl Shared {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> MutexGuard<'_, Option<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakes(&self) {
        // Full means that it is awake.
        let _ = self.wake.write(1);
    }
}

impl Traffic {
    /// Starts the threads, in the network namespace of the caller; they wait until they are told what is wanted.
    pub(super) fn start(inbox: UnboundedSender<Input>, meter: LogMeter) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            scene: AtomicU64::new(0),
            wake,
            ending: AtomicBool::new(false),
            numbers: Mutex::default(),
        });
        let watchers = Watchers::default();
        let (keeper, written) = keeper::start(Arc::clone(&shared))?;
        let mut reader = reader::Reader::new(Arc::clone(&shared), watchers.clone(), inbox, keeper, meter);
        thread::Builder::new().name("traffic".to_owned()).spawn(move || reader.serve())?;
        Ok(Self { shared, watchers, written })
    }

    /// Reads and keeps what the settings say.
    fn follow(&self, config: &Config, root: PathBuf) {
        let wanted = Wanted {
            group: config.settings.log.group,
            flows: config.flows,
            directory: config.state_directory.clone(),
            root,
        };
        let mut known = self.shared.wanted();
        if known.as_ref() != Some(&wanted) {
            *known = Some(wanted);
            drop(known);
            self.shared.wakes();
        }
    }

    /// Something else is in force, or the facts are others: what comes from now on is explained by that.
    pub(super) fn scene_changed(&self) {
        self.shared.scene.fetch_add(1, Ordering::Release);
        // It may be waiting for its first one, and packets with it.
        self.shared.wakes();
    }

    /// Who watches.
    pub(super) const fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// Has what was gathered written, and waits for that, but not for a disk that hangs.
    pub(super) fn end(self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wakes();
        // Nothing is ever sent: it ends with the thread that writes, or with the time.
        let _ = self.written.recv_timeout(LAST_WORDS);
    }

    /// What was counted.
    pub(super) fn numbers(&self) -> Numbers {
        self.shared.numbers().clone()
    }
}

impl Daemon {
    /// The settings may be others.
    pub(super) fn follow_traffic(&self, config: &Config) {
        if let Some(traffic) = &self.traffic {
            traffic.follow(config, self.options.root.clone());
        }
    }

    /// What explains what goes on.
    pub(super) fn scenery(&self) -> Option<Scenery> {
        let (effective, facts, sets) = self.state.scene()?;
        Some((effective, facts.clone(), sets.clone()))
    }
}
