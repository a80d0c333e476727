//! The thread that keeps generations on disk, so that a disk that hangs never stops the loop.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{clock, clusters, kernel, rails};
use crate::config;
use crate::net::node::ClusterNodes;
use crate::net::rail::Rails;
use crate::plan::boot_batch;
use crate::policy::clusters::Cluster;
use crate::reconcile::{Emergency, Keep, Memory, Record, Texts, Version};
use crate::source;
use crate::source::kube::{Holding, text_of_nodes};
use crate::store::{Directory, Disk, Generation, Store};
use crate::text::finding::Severity;

/// A start does not wait longer for a disk: the documents in place come into force without it.
const START_TIME: Duration = Duration::from_secs(5);
/// Which start of the host this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The way to the thread. Requests are answered one after the other.
#[derive(Clone, Debug)]
pub(super) struct DiskThread {
    requests: mpsc::Sender<Request>,
}

enum Request {
    Remember(oneshot::Sender<(Memory, Vec<String>)>),
    Keep(Vec<Keep>, oneshot::Sender<Result<(), String>>),
    Read(Wanted, oneshot::Sender<Result<Version, String>>),
    Rails(oneshot::Sender<Result<Rails, String>>),
    KeepRails(String, oneshot::Sender<Result<(), String>>),
    Clusters(Vec<Cluster>, oneshot::Sender<Result<clusters::Kept, String>>),
    KeepNodes(String, Arc<ClusterNodes>, oneshot::Sender<Result<(), String>>),
    KeepCluster(String, Arc<Holding>, oneshot::Sender<Result<(), String>>),
}

/// Which generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// The one of this number.
    Number(u64),
    /// The last whole one before this.
    Before(u64),
}

/// What is written beside the record: a record of another start of the host has no deadlines any more.
#[derive(serde::Serialize, serde::Deserialize)]
struct Remembered {
    boot: String,
    record: Record,
}

impl DiskThread {
    /// Starts the thread; it ends when the last of these values is gone.
    pub(super) fn start(directory: PathBuf) -> io::Result<Self> {
        let (requests, receiver) = mpsc::channel();
        thread::Builder::new().name("store".to_owned()).spawn(move || serve(&directory, &receiver))?;
        Ok(Self { requests })
    }

    /// What is on disk, and what is wrong with it.
    pub(super) async fn remember(&self) -> (Memory, Vec<String>) {
        let (reply, answer) = oneshot::channel();
        let gone = |why: &str| (Memory::default(), vec![why.to_owned()]);
        if self.requests.send(Request::Remember(reply)).is_err() {
            return gone("the thread of the store is gone");
        }
        match timeout(START_TIME, answer).await {
            Ok(Ok(remembered)) => remembered,
            Ok(Err(_)) => gone("the thread of the store is gone"),
            Err(_) => gone("the disk does not answer; going on without what is on it"),
        }
    }

    /// Writes, after everything that was to be written before.
    pub(super) fn keep(&self, what: Vec<Keep>) -> impl Future<Output = Result<(), String>> + use<> {
        self.ask(|reply| Request::Keep(what, reply))
    }

    /// Reads one generation.
    pub(super) async fn read(&self, wanted: Wanted) -> Result<Version, String> {
        self.ask(|reply| Request::Read(wanted, reply)).await
    }

    /// The numbers of rails.
    pub(super) async fn rails(&self) -> Result<Rails, String> {
        match timeout(START_TIME, self.ask(Request::Rails)).await {
            Ok(answer) => answer,
            Err(_) => Err("the disk does not answer; the numbers of rails may be others".to_owned()),
        }
    }

    /// What clusters said, and what is wrong with that.
    pub(super) async fn clusters(&self, clusters: Vec<Cluster>) -> Result<clusters::Kept, String> {
        if clusters.is_empty() {
            return Ok(clusters::Kept::default());
        }
        match timeout(START_TIME, self.ask(|reply| Request::Clusters(clusters, reply))).await {
            Ok(answer) => answer,
            Err(_) => Err("the disk does not answer; what clusters said is known when they answer".to_owned()),
        }
    }

    /// Writes what a cluster says.
    pub(super) fn keep_cluster(
        &self,
        name: &str,
        holding: Arc<Holding>,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let name = name.to_owned();
        self.ask(|reply| Request::KeepCluster(name, holding, reply))
    }

    /// Writes who the nodes of a cluster are.
    pub(super) fn keep_nodes(
        &self,
        name: &str,
        nodes: Arc<ClusterNodes>,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let name = name.to_owned();
        self.ask(|reply| Request::KeepNodes(name, nodes, reply))
    }

    /// Writes the numbers of rails.
    pub(super) fn keep_rails(&self, text: String) -> impl Future<Output = Result<(), String>> + use<> {
        self.ask(|reply| Request::KeepRails(text, reply))
    }

    /// The request is in the queue when this returns, so that requests are done in the order in which they were made.
    fn ask<T, F>(&self, request: F) -> impl Future<Output = Result<T, String>> + use<T, F>
    where
        F: FnOnce(oneshot::Sender<Result<T, String>>) -> Request,
    {
        let (reply, answer) = oneshot::channel();
        let gone = || "the thread of the store is gone".to_owned();
        let sent = self.requests.send(request(reply)).map_err(|_| gone());
        async move {
            sent?;
            answer.await.map_err(|_| gone())?
        }
    }
}

/// When something is read or written, and in which start of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Moment {
    /// The kernel's boot id; "" where it cannot be read.
    boot: String,
    /// Milliseconds since 1970-01-01 UTC.
    now: u64,
}

impl Moment {
    fn this() -> Self {
        Self { boot: fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned(), now: now() }
    }
}

/// Milliseconds since 1970-01-01 UTC.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn serve(directory: &std::path::Path, requests: &mpsc::Receiver<Request>) {
    // Whoever asked may have given up waiting meanwhile; then nobody needs the answer.
    while let Ok(request) = requests.recv() {
        // Opened each time: a file system that was not there may be there now.
        let store = Directory::open(directory)
            .map(Store::new)
            .map_err(|error| format!("cannot use {}: {error}", directory.display()));
        match request {
            Request::Remember(reply) => {
                let _ = reply.send(match store {
                    Ok(store) => remember(&store, &Moment::this()),
                    Err(error) => (Memory::default(), vec![error]),
                });
            }
            Request::Keep(what, reply) => {
                let _ = reply.send(store.and_then(|mut store| write(&mut store, what, &Moment::this())));
            }
            Request::Read(wanted, reply) => {
                let _ = reply.send(store.and_then(|store| read(&store, wanted)));
            }
            Request::Rails(reply) => {
                let _ = reply.send(store.and_then(|store| rails::read(&store)));
            }
            Request::Clusters(wanted, reply) => {
                let _ = reply.send(store.map(|store| clusters::read(&store, &wanted)));
            }
            Request::KeepCluster(name, holding, reply) => {
                let kept = |mut store: Store<Directory>| {
                    let text = holding.to_text(&name)?;
                    store.keep_cluster(&name, &text).map_err(|error| error.to_string())
                };
                let _ = reply.send(store.and_then(kept));
            }
            Request::KeepNodes(name, nodes, reply) => {
                let kept = |mut store: Store<Directory>| {
                    let text = text_of_nodes(&nodes)?;
                    store.keep_nodes(&name, &text).map_err(|error| error.to_string())
                };
                let _ = reply.send(store.and_then(kept));
            }
            Request::KeepRails(text, reply) => {
                let kept = |mut store: Store<Directory>| store.keep_rails(&text).map_err(|error| error.to_string());
                let _ = reply.send(store.and_then(kept));
            }
        }
    }
}

fn remember<D: Disk>(store: &Store<D>, moment: &Moment) -> (Memory, Vec<String>) {
    let mut troubles = Vec::new();
    let next = store.next_number().unwrap_or_else(|error| {
        troubles.push(error.to_string());
        1
    });
    let (generation, passed) = store.confirmed();
    troubles.extend(passed.iter().map(ToString::to_string));
    let mut version = |generation: &Generation| match decode(generation) {
        Ok(version) => Some(version),
        Err(error) => {
            troubles.push(error);
            None
        }
    };
    let confirmed = generation.as_ref().and_then(&mut version);
    let older = generation.is_some_and(|generation| store.confirmed_number() != Some(generation.number));
    let remembered = store.remembered().map_err(|error| error.to_string()).and_then(|text| {
        text.map(|text| serde_json::from_str::<Remembered>(&text)).transpose().map_err(|error| error.to_string())
    });
    let Remembered { boot: written, record } = match remembered {
        Ok(Some(remembered)) => remembered,
        Ok(None) => Remembered { boot: String::new(), record: Record::default() },
        Err(error) => {
            troubles.push(error);
            Remembered { boot: String::new(), record: Record::default() }
        }
    };
    let same_boot = !written.is_empty() && written == moment.boot;
    let meant = record.pending.as_ref().map(|pending| pending.generation);
    let meant = meant.or(record.pin.as_ref().map(|pin| pin.generation));
    let meant =
        meant.and_then(|number| match store.read(number).map_err(|error| error.to_string()).and_then(|g| decode(&g)) {
            Ok(version) => Some(version),
            Err(error) => {
                troubles.push(error);
                None
            }
        });
    let pending_left = record.pending.as_ref().filter(|_| same_boot).and_then(|pending| pending.term.left(moment.now));
    let emergency_left = match &record.emergency {
        Some(Emergency::BreakGlass { term, .. }) if same_boot => term.left(moment.now),
        _ => None,
    };
    (Memory { record, next, confirmed, older, meant, pending_left, emergency_left }, troubles)
}

/// What the disk says is in force.
#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    /// The generation: the one that waits for its confirmation, the one that somebody went back to, or the confirmed one.
    pub version: Version,
    /// An emergency that stands above it.
    pub emergency: Option<Emergency>,
    /// Policies that are over, by name and `expires`, whatever the clock says now.
    pub expired: BTreeSet<(String, u64)>,
    /// What is wrong with other things on the disk.
    pub troubles: Vec<String>,
}

/// What is in force, as the daemon left it on disk; `None` where it left nothing. Needs no daemon, and the right to read the
/// directory.
///
/// # Errors
/// The directory cannot be listed.
pub fn stored(directory: &std::path::Path) -> Result<Option<Stored>, crate::store::Error> {
    let store = Store::new(Directory::existing(directory));
    store.numbers()?;
    let (memory, troubles) = remember(&store, &Moment::this());
    let Memory { record, confirmed, meant, pending_left, emergency_left, .. } = memory;
    let meant = if record.pending.is_some() { meant.filter(|_| pending_left.is_some()) } else { meant };
    let emergency = match record.emergency {
        Some(Emergency::BreakGlass { .. }) if emergency_left.is_none() => None,
        other => other,
    };
    let expired = record.expired;
    Ok(meant.or(confirmed).map(|version| Stored { version, emergency, expired, troubles }))
}

/// The documents of a generation, decoded again.
fn decode(generation: &Generation) -> Result<Version, String> {
    let number = generation.number;
    let policy = generation.policy.iter().map(|(name, text)| (name.clone(), Arc::from(text.as_str()))).collect();
    let texts = Texts { policy, settings: Arc::from(generation.settings.as_str()) };
    let sourced = source::decode_kept(&texts.policy);
    let (config, mut findings) = config::decode_text("nodewall.toml", &texts.settings);
    findings.extend(sourced.findings);
    if let Some(finding) = findings.iter().find(|finding| finding.severity == Severity::Error) {
        let (place, message) = (&finding.place, &finding.message);
        return Err(format!("this version cannot use generation {number}: {place}: {message}"));
    }
    let origin = generation.source.clone();
    let config::Config { settings, probes, guards, .. } = config;
    let mut policy = sourced.policy;
    policy.guard(source::guards::shipped(), &guards);
    Ok(Version { number, origin, policy, settings, probes, texts })
}

fn write<D: Disk>(store: &mut Store<D>, what: Vec<Keep>, moment: &Moment) -> Result<(), String> {
    for keep in what {
        match keep {
            Keep::Generation { number, origin, texts, ruleset, boot } => store.write(&Generation {
                number,
                time: clock::of_milliseconds(moment.now),
                source: origin,
                hash: kernel::hash(&ruleset),
                policy: texts.policy.iter().map(|(name, text)| (name.clone(), text.to_string())).collect(),
                settings: texts.settings.to_string(),
                batch: boot_batch(&boot),
            }),
            Keep::Confirmed(number) => store.confirm(number),
            Keep::Record(record) => {
                let remembered = Remembered { boot: moment.boot.clone(), record };
                store.remember(&serde_json::to_string(&remembered).map_err(|error| error.to_string())?)
            }
        }
        .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn read<D: Disk>(store: &Store<D>, wanted: Wanted) -> Result<Version, String> {
    let read =
        |number| store.read(number).map_err(|error| error.to_string()).and_then(|generation| decode(&generation));
    match wanted {
        Wanted::Number(number) => read(number),
        Wanted::Before(number) => {
            let numbers = store.numbers().map_err(|error| error.to_string())?;
            let earlier = numbers.into_iter().rev().filter(|earlier| *earlier < number);
            earlier.map(read).find_map(Result::ok).ok_or_else(|| "there is no earlier generation".to_owned())
        }
    }
}

#[cfg(test)]
mod tests;
