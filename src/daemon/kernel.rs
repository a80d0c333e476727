//! The thread that talks to nf_tables, so that a long transaction or a long dump never stops the loop.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::revoke::{Progress, Revoker};
use super::rules::{self, RuleRecord};
use super::status::{RevocationRecord, TableRecord, counters};
use super::verify::Verifier;
use crate::driver::{self, Kernel, Read};
use crate::nft;
use crate::nft::change::{Change, Loaded};
use crate::nft::ir::{Ruleset, Set};
use crate::nft::netlink::{TouchedSets, canonical_set};
use crate::plan::plan;
use crate::revoke::Revocation;

/// The way to the kernel's thread. Requests are answered one after the other.
#[derive(Clone, Debug)]
pub(super) struct KernelThread {
    requests: mpsc::Sender<Request>,
    revocation: Progress,
}

/// What a look at the kernel told.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) table: TableRecord,
    pub(super) counters: BTreeMap<String, (u64, u64)>,
    pub(super) rules: Vec<RuleRecord>,
    /// What the kernel has otherwise than wanted; empty when in sync.
    pub(super) drift: Vec<String>,
    /// SHA-256 of the nft(8) text of what is in force.
    pub(super) hash: Option<String>,
}

/// A ruleset that is in force.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) changes: usize,
    /// What the kernel had otherwise than we had left it: somebody else's change, and no longer there.
    pub(super) difference: Vec<String>,
    /// How long the kernel and we were busy with it.
    pub(super) spent: Duration,
}

enum Request {
    Exists(oneshot::Sender<Result<bool, driver::Error>>),
    Apply(Arc<Ruleset>, Option<Arc<Revocation>>, oneshot::Sender<Result<Applied, driver::Error>>),
    Repair(Arc<Ruleset>, Depth, Option<Arc<Revocation>>, oneshot::Sender<Result<Applied, driver::Error>>),
    ChangeMembers(
        Arc<Ruleset>,
        BTreeSet<String>,
        Option<Arc<Revocation>>,
        oneshot::Sender<Result<Applied, driver::Error>>,
    ),
    Look(Wanted, oneshot::Sender<Result<Look, driver::Error>>),
    Rules(oneshot::Sender<Result<Loaded, driver::Error>>),
}

/// What a look at the kernel is for.
struct Wanted {
    /// What the kernel should have.
    wanted: Option<Arc<Ruleset>>,
    /// What is in force.
    in_force: Option<Arc<Ruleset>>,
}

/// How much of the kernel's table is read before it is mended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Depth {
    /// Everything but the elements of large sets that nobody touched.
    Touched(TouchedSets),
    /// Nothing, if no transaction of anybody's came after ours; else everything but the elements of very large sets.
    Unasked,
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
    /// Starts the thread; it ends when the last of these values is gone. The names of sets that were found to hold something
    /// else, when there was time to read them, come out of the receiver.
    pub(super) fn start(kernel: Box<dyn Kernel>) -> io::Result<(Self, UnboundedReceiver<String>)> {
        let (requests, receiver) = mpsc::channel();
        let revoker = Revoker::start()?;
        let revocation = revoker.progress();
        let (verifier, otherwise) = Verifier::start()?;
        let mut work = Work {
            kernel,
            revoker,
            verifier,
            left: None,
            known: None,
            missing: Missing::default(),
            hashed: None,
            owed: false,
        };
        thread::Builder::new().name("nf_tables".to_owned()).spawn(move || work.serve(&receiver))?;
        Ok((Self { requests, revocation }, otherwise))
    }

    /// How far the ending of flows has come.
    pub(super) fn revocation(&self) -> Option<RevocationRecord> {
        self.revocation.record()
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

    /// Looks whether the kernel has a ruleset, and mends it where not; then, in the background, ends the flows that it denies and
    /// that may have begun meanwhile.
    pub(super) async fn repair(
        &self,
        ruleset: Arc<Ruleset>,
        depth: Depth,
        revocation: Option<Arc<Revocation>>,
    ) -> Result<Applied, Error> {
        self.ask(|reply| Request::Repair(ruleset, depth, revocation, reply)).await
    }

    /// Makes the kernel have a ruleset that differs from what it has in what these sets hold; the flows that it denies are ended with
    /// the next [`KernelThread::apply`].
    pub(super) async fn change_members(
        &self,
        ruleset: Arc<Ruleset>,
        sets: BTreeSet<String>,
        revocation: Option<Arc<Revocation>>,
    ) -> Result<Applied, Error> {
        self.ask(|reply| Request::ChangeMembers(ruleset, sets, revocation, reply)).await
    }

    /// Reads the whole table with its counters, and compares it with what should be there.
    pub(super) async fn look(
        &self,
        wanted: Option<Arc<Ruleset>>,
        in_force: Option<Arc<Ruleset>>,
    ) -> Result<Look, Error> {
        self.ask(|reply| Request::Look(Wanted { wanted, in_force }, reply)).await
    }

    /// Reads the rules with their counters, and what no set holds.
    pub(super) async fn rules(&self) -> Result<Loaded, Error> {
        self.ask(Request::Rules).await
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

/// What the thread works with.
struct Work {
    kernel: Box<dyn Kernel>,
    revoker: Revoker,
    verifier: Verifier,
    /// The ruleset that our last transaction put in force.
    left: Option<Arc<Ruleset>>,
    /// What the kernel had after our last transaction; the driver believes it only while the generation id is the same.
    known: Option<Loaded>,
    missing: Missing,
    /// The last ruleset with its hash, which takes longer than a small repair.
    hashed: Option<(Arc<Ruleset>, String)>,
    /// Whether members of sets changed since flows were judged.
    owed: bool,
}

impl Work {
    fn serve(&mut self, requests: &mpsc::Receiver<Request>) {
        // Whoever asked may have given up waiting meanwhile; then nobody needs the answer.
        while let Ok(request) = requests.recv() {
            match request {
                Request::Exists(reply) => {
                    let _ = reply.send(self.kernel.load(&Read::Only(Vec::new())).map(|loaded| loaded.exists));
                }
                Request::Rules(reply) => {
                    let _ = reply.send(self.kernel.load(&Read::Only(Vec::new())));
                }
                Request::Apply(ruleset, revocation, reply) => {
                    let _ = reply.send(self.apply(&ruleset, revocation));
                }
                Request::Repair(ruleset, depth, revocation, reply) => {
                    let _ = reply.send(self.repair(&ruleset, &depth, revocation));
                }
                Request::ChangeMembers(ruleset, sets, revocation, reply) => {
                    let _ = reply.send(self.change_members(&ruleset, &sets, revocation));
                }
                Request::Look(Wanted { wanted, in_force }, reply) => {
                    let wanted = wanted.as_deref().map(|wanted| self.missing.left_out_of(wanted));
                    let look = look(self.kernel.as_mut(), wanted.as_deref());
                    let hash = in_force.map(|in_force| self.hash(&in_force));
                    let _ = reply.send(look.map(|look| Look { hash, ..look }));
                }
            }
        }
    }

    fn apply(&mut self, ruleset: &Arc<Ruleset>, revocation: Option<Arc<Revocation>>) -> Result<Applied, driver::Error> {
        let start = Instant::now();
        let (known, difference) = self.look_before()?;
        let driver::Applied { loaded, changes, deferred, without } =
            driver::apply(self.kernel.as_mut(), ruleset, known.as_ref())?;
        self.missing.are(without);
        self.known = Some(loaded);
        self.left = Some(Arc::clone(ruleset));
        if std::mem::take(&mut self.owed) || changes > 0 {
            self.revoker.changed(revocation);
        }
        self.verifier.later(ruleset, deferred);
        Ok(Applied { changes, difference, spent: start.elapsed() })
    }

    /// What the kernel has before a change, if that is known, and what of it is somebody else's doing: the change mends that as well,
    /// and there will be nothing left to see for the repair that the notification asks for.
    fn look_before(&mut self) -> Result<(Option<Loaded>, Vec<String>), driver::Error> {
        let Some(known) = self.known.take() else { return Ok((None, Vec::new())) };
        let Some(left) = self.left.take() else {
            return Ok((Some(known), Vec::new()));
        };
        if known.generation == self.kernel.generation()? {
            return Ok((Some(known), Vec::new()));
        }
        let loaded = self.kernel.load(&Read::Everything)?;
        // A chain that went with its device is nobody's doing.
        let difference = if goes_with_devices(&left) { Vec::new() } else { drift(&loaded, &left) };
        Ok((Some(loaded), difference))
    }

    fn change_members(
        &mut self,
        ruleset: &Arc<Ruleset>,
        sets: &BTreeSet<String>,
        revocation: Option<Arc<Revocation>>,
    ) -> Result<Applied, driver::Error> {
        let start = Instant::now();
        let Some(known) = &mut self.known else { return self.apply(ruleset, revocation) };
        let changed = driver::change_members(self.kernel.as_mut(), ruleset, sets, known);
        self.owed = true;
        match changed {
            Ok(changes) => {
                self.left = Some(Arc::clone(ruleset));
                self.verifier.later(ruleset, Vec::new());
                Ok(Applied { changes, difference: Vec::new(), spent: start.elapsed() })
            }
            Err(error) => {
                tracing::debug!("members of sets take the whole table: {error}");
                let applied = self.apply(ruleset, revocation);
                // The flows that the new members deny are for the policy that has them.
                self.owed = true;
                applied
            }
        }
    }

    fn repair(
        &mut self,
        ruleset: &Arc<Ruleset>,
        depth: &Depth,
        revocation: Option<Arc<Revocation>>,
    ) -> Result<Applied, driver::Error> {
        let start = Instant::now();
        let mut changes = 0;
        let mut difference = Vec::new();
        // Before Linux 6.16 a chain goes with its device, and the generation stays; and where one is missing, its device may have come.
        let may_go = !self.missing.0.is_empty() || goes_with_devices(ruleset);
        if *depth != Depth::Unasked || may_go || !self.is_known()? {
            self.known = None;
            let (loaded, mut assumed) = load_mostly(self.kernel.as_mut(), ruleset, depth)?;
            let applied = mend(self.kernel.as_mut(), ruleset, &loaded)?;
            self.missing.are(applied.without);
            if applied.changes > 0 {
                self.revoker.repaired(revocation);
                // The words come after the deed.
                difference = drift(&loaded, &self.missing.left_out_of(ruleset));
            }
            changes = applied.changes;
            self.known = Some(applied.loaded);
            self.left = Some(Arc::clone(ruleset));
            if *depth == Depth::Unasked && changes == 0 {
                assumed.clear();
            }
            assumed.extend(applied.deferred);
            self.verifier.later(ruleset, assumed);
        }
        Ok(Applied { changes, difference, spent: start.elapsed() })
    }

    /// Whether no transaction of anybody's came after our last one.
    fn is_known(&mut self) -> Result<bool, driver::Error> {
        match &self.known {
            Some(known) => Ok(known.generation == self.kernel.generation()?),
            None => Ok(false),
        }
    }

    fn hash(&mut self, ruleset: &Arc<Ruleset>) -> String {
        if let Some((known, hash)) = &self.hashed
            && Arc::ptr_eq(known, ruleset)
        {
            return hash.clone();
        }
        let hash = hash(ruleset);
        self.hashed = Some((Arc::clone(ruleset), hash.clone()));
        hash
    }
}

/// Whether there are chains that before Linux 6.16 go when their device goes.
fn goes_with_devices(ruleset: &Ruleset) -> bool {
    ruleset.chains.values().any(|chain| chain.base.is_some_and(|base| base.device.is_some()))
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

/// Larger sets are read before a repair only if they were touched: one of 10,000 elements takes the kernel longer to list than all
/// that a rule in front of ours takes to repair.
const LARGEST_SET_OF_A_REPAIR: usize = 2048;
/// Larger sets are left out of an unasked look: the kernel takes ever longer to list them (`nf_tables.md` section 3).
const LARGEST_SET_OF_A_LOOK: usize = 16_384;

/// Our table, and the sets of it that were not read but taken to hold what they should.
fn load_mostly(
    kernel: &mut dyn Kernel,
    ruleset: &Ruleset,
    depth: &Depth,
) -> Result<(Loaded, Vec<String>), driver::Error> {
    let read = |(name, set): &(&String, &Set)| match depth {
        Depth::Touched(TouchedSets::Any) => true,
        Depth::Touched(TouchedSets::These(touched)) => {
            touched.contains(*name) || set.elements.len() <= LARGEST_SET_OF_A_REPAIR
        }
        Depth::Unasked => set.elements.len() <= LARGEST_SET_OF_A_LOOK,
    };
    let names = ruleset.sets.iter().filter(read).map(|(name, _)| name.clone()).collect();
    let mut loaded = kernel.load(&Read::Only(names))?;
    let mut assumed = Vec::new();
    for name in std::mem::take(&mut loaded.unread) {
        // A set of somebody else's goes, whatever it holds.
        if let (Some(set), Some(wanted)) = (loaded.ruleset.sets.get_mut(&name), ruleset.sets.get(&name)) {
            set.elements = canonical_set(wanted).elements;
            assumed.push(name);
        }
    }
    Ok((loaded, assumed))
}

/// Makes the kernel have the ruleset again.
fn mend(kernel: &mut dyn Kernel, ruleset: &Ruleset, loaded: &Loaded) -> Result<driver::Applied, driver::Error> {
    let mut answer = driver::apply(kernel, ruleset, Some(loaded));
    for _ in 1..REPAIR_ATTEMPTS {
        match answer {
            // Whoever changed the table did it again before it was read back.
            Err(driver::Error::Differs(_)) => answer = driver::apply(kernel, ruleset, None),
            _ => break,
        }
    }
    answer
}

/// How often a repair is done again when the table is changed right after it; then that is told, and tried again later.
const REPAIR_ATTEMPTS: usize = 4;

/// Reads the whole table and compares it with what should be there.
pub(super) fn look(kernel: &mut dyn Kernel, wanted: Option<&Ruleset>) -> Result<Look, driver::Error> {
    let loaded = kernel.load(&Read::Everything)?;
    let drift = wanted.map(|wanted| drift(&loaded, wanted)).unwrap_or_default();
    let (table, counters, rules) = (TableRecord::of(&loaded), counters(&loaded), rules::counted(&loaded));
    Ok(Look { table, counters, rules, drift, hash: None })
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

#[cfg(test)]
mod tests;
