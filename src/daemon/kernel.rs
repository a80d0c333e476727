//! The thread that talks to nf_tables, so that a long transaction or a long dump never stops the loop.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::revoke::Revoker;
use super::status::{BaseChainRecord, TableRecord, counters};
use crate::driver::{self, Kernel, Read};
use crate::nft;
use crate::nft::change::{Change, Loaded};
use crate::nft::ir::{Chain, Ruleset};
use crate::nft::netlink::canonical_set;
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
    /// The base chains of others.
    pub(super) others: Vec<BaseChainRecord>,
}

/// A ruleset that is in force.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) changes: usize,
    /// SHA-256 of its nft(8) text.
    pub(super) hash: String,
    /// What the kernel had otherwise, where it was a repair.
    pub(super) difference: Vec<String>,
    /// How long the kernel and we were busy with it.
    pub(super) spent: Duration,
}

enum Request {
    Exists(oneshot::Sender<Result<bool, driver::Error>>),
    Apply(Arc<Ruleset>, Option<Arc<Revocation>>, oneshot::Sender<Result<Applied, driver::Error>>),
    Repair(Arc<Ruleset>, Depth, oneshot::Sender<Result<Applied, driver::Error>>),
    Look(Option<Arc<Ruleset>>, oneshot::Sender<Result<Look, driver::Error>>),
}

/// How much of the kernel's table is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// All of it.
    Everything,
    /// Nothing, if no transaction of anybody's came after ours; else all but the elements of large sets, which take the kernel long.
    Cheap,
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

    /// Looks whether the kernel has a ruleset, and mends it where not.
    pub(super) async fn repair(&self, ruleset: Arc<Ruleset>, depth: Depth) -> Result<Applied, Error> {
        self.ask(|reply| Request::Repair(ruleset, depth, reply)).await
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
    let mut missing = Missing::default();
    // Whoever asked may have given up waiting meanwhile; then nobody needs the answer.
    while let Ok(request) = requests.recv() {
        match request {
            Request::Exists(reply) => {
                let _ = reply.send(kernel.load(&Read::Only(Vec::new())).map(|loaded| loaded.exists));
            }
            Request::Apply(ruleset, revocation, reply) => {
                let start = Instant::now();
                let answer = driver::apply(kernel.as_mut(), &ruleset, known.as_ref());
                let mut deferred = Vec::new();
                let answer = answer.map(|applied| {
                    known = Some(applied.loaded);
                    deferred = applied.deferred;
                    missing.are(applied.without);
                    if applied.changes > 0 {
                        revoker.changed(revocation);
                    }
                    let (hash, spent) = (hash(&ruleset), start.elapsed());
                    Applied { changes: applied.changes, hash, difference: Vec::new(), spent }
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
            Request::Repair(ruleset, depth, reply) => {
                let start = Instant::now();
                let answer = repair(kernel.as_mut(), &ruleset, depth, &mut known, &mut missing);
                let _ = reply.send(answer.map(|(changes, difference)| Applied {
                    changes,
                    hash: hash(&ruleset),
                    difference,
                    spent: start.elapsed(),
                }));
            }
            Request::Look(wanted, reply) => {
                let wanted = wanted.as_deref().map(|wanted| missing.left_out_of(wanted));
                let _ = reply.send(look(kernel.as_mut(), wanted.as_deref()));
            }
        }
    }
}

/// The chains of the last ruleset that are not in force because their device is not there: no difference as long as it stays away.
#[derive(Debug, Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Takes note of what an apply had to do without; tells it when it changes.
    fn are(&mut self, chains: Vec<String>) {
        if !chains.is_empty() && chains != self.0 {
            let chains = chains.join(", ");
            tracing::warn!(
                "not in force as long as their device is not there: {chains}; other chains decide the same later"
            );
        }
        self.0 = chains;
    }

    /// What can be in force of a ruleset.
    fn left_out_of<'a>(&self, ruleset: &'a Ruleset) -> Cow<'a, Ruleset> {
        if self.0.is_empty() {
            return Cow::Borrowed(ruleset);
        }
        let mut ruleset = ruleset.clone();
        ruleset.chains.retain(|name, _| !self.0.contains(name));
        Cow::Owned(ruleset)
    }
}

/// Sets with more elements are left out of a cheap look: the kernel takes ever longer to list them (`nf_tables.md` section 3).
const LARGEST_SET_OF_A_CHEAP_LOOK: usize = 16_384;

/// How many changes it took to have the ruleset in the kernel again, and what was otherwise before.
fn repair(
    kernel: &mut dyn Kernel,
    ruleset: &Ruleset,
    depth: Depth,
    known: &mut Option<Loaded>,
    missing: &mut Missing,
) -> Result<(usize, Vec<String>), driver::Error> {
    // Where something is missing its device may have come meanwhile.
    if depth == Depth::Cheap && missing.0.is_empty() {
        // Before Linux 6.16 a chain goes with its device, and the generation stays.
        let on_device = |chain: &Chain| chain.base.is_some_and(|base| base.device.is_some());
        if let Some(known) = known
            && !ruleset.chains.values().any(on_device)
            && known.generation == kernel.generation()?
        {
            return Ok((0, Vec::new()));
        }
        if !differs_cheaply(kernel, ruleset)? {
            return Ok((0, Vec::new()));
        }
    }
    *known = None;
    let loaded = kernel.load(&Read::Everything)?;
    let mut answer = driver::apply(kernel, ruleset, Some(&loaded));
    for _ in 1..REPAIR_ATTEMPTS {
        match answer {
            // Whoever changed the table did it again before it was read back.
            Err(driver::Error::Differs(_)) => answer = driver::apply(kernel, ruleset, None),
            _ => break,
        }
    }
    let applied = answer?;
    driver::verify(kernel, ruleset, &applied.deferred)?;
    // The words come after the deed. Nothing was sent when others put back what they had changed.
    missing.are(applied.without);
    let difference = if applied.changes == 0 { Vec::new() } else { drift(&loaded, &missing.left_out_of(ruleset)) };
    *known = Some(applied.loaded);
    Ok((applied.changes, difference))
}

/// How often a repair is done again when the table is changed right after it; then that is told, and tried again later.
const REPAIR_ATTEMPTS: usize = 4;

/// Whether the kernel has something else, the elements of large sets aside.
fn differs_cheaply(kernel: &mut dyn Kernel, ruleset: &Ruleset) -> Result<bool, driver::Error> {
    let small =
        |set: &&String| ruleset.sets.get(*set).is_some_and(|set| set.elements.len() <= LARGEST_SET_OF_A_CHEAP_LOOK);
    let mut loaded = kernel.load(&Read::Only(ruleset.sets.keys().filter(small).cloned().collect()))?;
    for name in std::mem::take(&mut loaded.unread) {
        match (loaded.ruleset.sets.get_mut(&name), ruleset.sets.get(&name)) {
            (Some(set), Some(wanted)) => set.elements = canonical_set(wanted).elements,
            // A set of somebody else's.
            _ => return Ok(true),
        }
    }
    Ok(plan(&loaded, ruleset).is_some())
}

/// Reads the whole table and compares it with what should be there.
pub(super) fn look(kernel: &mut dyn Kernel, wanted: Option<&Ruleset>) -> Result<Look, driver::Error> {
    let loaded = kernel.load(&Read::Everything)?;
    let drift = wanted.map(|wanted| drift(&loaded, wanted)).unwrap_or_default();
    let others = driver::others(&kernel.chains()?).iter().map(BaseChainRecord::of).collect();
    Ok(Look { table: TableRecord::of(&loaded), counters: counters(&loaded), drift, others })
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
