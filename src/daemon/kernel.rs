//! The thread that talks to nf_tables, so that a long transaction or a long dump never stops the loop.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::revoke::Revoker;
use super::status::{TableRecord, counters};
use crate::driver::{self, Kernel, Read};
use crate::nft;
use crate::nft::change::{Change, Loaded};
use crate::nft::ir::Ruleset;
use crate::plan::plan;
use crate::revoke::Revocation;

/// The way to the kernel's thread. Requests are answered one after the other.
#[derive(Clone, Debug)]
pub(super) struct KernelThread {
    requests: mpsc::Sender<Request>,
}

/// What a look at the kernel told.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) table: TableRecord,
    pub(super) counters: BTreeMap<String, (u64, u64)>,
    /// What the kernel has otherwise than wanted; empty when in sync.
    pub(super) drift: Vec<String>,
}

/// A ruleset that is in force.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) changes: usize,
    /// SHA-256 of its nft(8) text.
    pub(super) hash: String,
}

enum Request {
    Exists(oneshot::Sender<Result<bool, driver::Error>>),
    Apply(Arc<Ruleset>, Option<Arc<Revocation>>, oneshot::Sender<Result<Applied, driver::Error>>),
    Look(Option<Arc<Ruleset>>, oneshot::Sender<Result<Look, driver::Error>>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Driver(#[from] driver::Error),
    /// The thread is gone.
    #[error("the thread that talks to the kernel is gone")]
    Gone,
}

impl KernelThread {
    /// Starts the thread; it ends when the last of these values is gone.
    pub(super) fn start(kernel: Box<dyn Kernel>) -> io::Result<Self> {
        let (requests, receiver) = mpsc::channel();
        let revoker = Revoker::start()?;
        thread::Builder::new().name("nf_tables".to_owned()).spawn(move || serve(kernel, &receiver, &revoker))?;
        Ok(Self { requests })
    }

    /// Whether our table is in the kernel.
    pub(super) async fn exists(&self) -> Result<bool, Error> {
        self.ask(Request::Exists).await
    }

    /// Makes the kernel have a ruleset; then, in the background, ends the flows that it denies.
    pub(super) async fn apply(
        &self,
        ruleset: Arc<Ruleset>,
        revocation: Option<Arc<Revocation>>,
    ) -> Result<Applied, Error> {
        self.ask(|reply| Request::Apply(ruleset, revocation, reply)).await
    }

    /// Reads the whole table with its counters, and compares it with what should be there.
    pub(super) async fn look(&self, wanted: Option<Arc<Ruleset>>) -> Result<Look, Error> {
        self.ask(|reply| Request::Look(wanted, reply)).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, driver::Error>>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| Error::Gone)?;
        Ok(answer.await.map_err(|_| Error::Gone)??)
    }
}

fn serve(mut kernel: Box<dyn Kernel>, requests: &mpsc::Receiver<Request>, revoker: &Revoker) {
    // What the kernel had after our last transaction; the driver believes it only while the generation id is the same.
    let mut known: Option<Loaded> = None;
    // Whoever asked may have given up waiting meanwhile; then nobody needs the answer.
    while let Ok(request) = requests.recv() {
        match request {
            Request::Exists(reply) => {
                let _ = reply.send(kernel.load(&Read::Only(Vec::new())).map(|loaded| loaded.exists));
            }
            Request::Apply(ruleset, revocation, reply) => {
                let answer = driver::apply(kernel.as_mut(), &ruleset, known.as_ref());
                let mut deferred = Vec::new();
                let answer = answer.map(|applied| {
                    known = Some(applied.loaded);
                    deferred = applied.deferred;
                    if applied.changes > 0 {
                        revoker.changed(revocation);
                    }
                    Applied { changes: applied.changes, hash: hash(&ruleset) }
                });
                if answer.is_err() {
                    known = None;
                }
                let _ = reply.send(answer);
                if !deferred.is_empty()
                    && let Err(error) = driver::verify(kernel.as_mut(), &ruleset, &deferred)
                {
                    known = None;
                    tracing::error!(sets = deferred.join(" "), "cannot confirm what was loaded: {error}");
                }
            }
            Request::Look(wanted, reply) => {
                let _ = reply.send(look(kernel.as_mut(), wanted.as_deref()));
            }
        }
    }
}

/// Reads the whole table and compares it with what should be there.
pub(super) fn look(kernel: &mut dyn Kernel, wanted: Option<&Ruleset>) -> Result<Look, driver::Error> {
    let loaded = kernel.load(&Read::Everything)?;
    let drift = wanted.map(|wanted| drift(&loaded, wanted)).unwrap_or_default();
    Ok(Look { table: TableRecord::of(&loaded), counters: counters(&loaded), drift })
}

/// How many differences are named one by one.
const DIFFERENCES_NAMED: usize = 10;

fn drift(loaded: &Loaded, wanted: &Ruleset) -> Vec<String> {
    if !loaded.exists {
        return vec![format!("table {} is gone", nft::TABLE)];
    }
    let Some(batch) = plan(loaded, wanted) else { return Vec::new() };
    let mut differences: Vec<String> = loaded.foreign.iter().map(|thing| format!("{thing} is not ours")).collect();
    for change in &batch.changes {
        let subject = change.subject();
        let difference = match change {
            Change::AddTable => continue,
            Change::AddChain { .. } | Change::AddRule { .. } | Change::AddSet { .. } => {
                format!("{subject} is missing or was changed")
            }
            Change::DeleteTable | Change::DeleteChain { .. } | Change::DeleteRule { .. } | Change::DeleteSet { .. } => {
                format!("{subject} should not be there")
            }
            Change::FlushChain { .. } => format!("{subject} has other rules"),
            Change::AddElements { set, .. } => format!("{subject} lacks {} elements", set.elements.len()),
            Change::DeleteElements { set, .. } => {
                format!("{subject} has {} elements that should not be there", set.elements.len())
            }
        };
        if !differences.contains(&difference) {
            differences.push(difference);
        }
    }
    let more = differences.len().saturating_sub(DIFFERENCES_NAMED);
    if more > 0 {
        differences.truncate(DIFFERENCES_NAMED);
        differences.push(format!("and {more} more differences"));
    }
    if differences.is_empty() {
        differences.push("the table differs from the policy in force".to_owned());
    }
    differences
}

/// SHA-256 of a ruleset's nft(8) text, in hexadecimal.
pub(super) fn hash(ruleset: &Ruleset) -> String {
    Sha256::digest(nft::text::render(ruleset)).iter().map(|byte| format!("{byte:02x}")).collect()
}
