//! Metrics: what the loop counts and knows, and the thread that serves it.
//!
//! ```text
//! peers ── server (a thread of its own) ── book ─┬─> the loop: what it knows, without a look at the kernel
//!                                                ├─> the kernel's thread: rules with their counters
//!                                                ├─> /proc/self
//!                                                └─> `nodewall audit`, a process of its own, every few minutes
//! ```

mod book;
mod credentials;
mod exposed;
mod gate;
mod log;
mod own;
mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::host::Features;
use super::kernel::{Applied, Error, KernelThread};
use super::status::FeatureRecord;
use super::{Daemon, Options, disk};
use crate::config::metrics::MetricsSettings;
use crate::metrics::histogram::{Histogram, WORK};
use crate::metrics::snapshot::{Policy, Snapshot, Work};
use crate::metrics::verdicts::Verdicts;
use crate::net::interface::Direction;
use crate::nft::ir::Ruleset;
use crate::policy::coverage;
use crate::policy::model::Mode;
use crate::reconcile::{Phase, State};
use crate::text::finding::Severity;
pub use log::LogMeter;
use server::Server;

/// How often the loop looks at its own clock.
const TICK: Duration = Duration::from_secs(1);

/// What the loop tells of itself when somebody wants metrics.
pub(super) struct Told {
    /// All but what only a look at the kernel, at /proc or at sockets tells.
    snapshot: Snapshot,
    /// What is in force.
    in_force: Option<Arc<Ruleset>>,
    kernel: KernelThread,
    settings: MetricsSettings,
}

/// A question to the loop.
pub(super) type Ask = oneshot::Sender<Told>;

/// What the loop counts.
pub(super) struct Meters {
    applies: Histogram,
    results: BTreeMap<&'static str, u64>,
    lag: Histogram,
    /// When the loop looks at its clock again; `None` while nobody can ask for metrics.
    pub(super) tick_at: Option<Instant>,
    settings: Option<MetricsSettings>,
    server: Option<Server>,
    /// The way to the loop, and the kernel's counters as they were at the start, until the server has them.
    start: Option<(mpsc::Sender<Ask>, oneshot::Receiver<Verdicts>)>,
    /// Where what the packet log and the flow records come to is counted.
    pub(super) log: LogMeter,
}

impl Meters {
    /// Nothing counted yet. What the kernel's rules counted before is none of this daemon's, so that a restart counts no packet twice.
    /// The receiver is for the loop: who asks there wants [`Daemon::measured`].
    pub(super) fn start(kernel: KernelThread) -> (Self, mpsc::Receiver<Ask>) {
        let (told, first) = oneshot::channel();
        tokio::spawn(async move {
            let mut verdicts = Verdicts::default();
            if let Ok(loaded) = kernel.rules().await {
                verdicts.begin(&loaded);
            }
            // Nobody may want it.
            let _ = told.send(verdicts);
        });
        // One question at a time: the answer is kept for a second.
        let (asks, asked) = mpsc::channel(1);
        let meters = Self {
            applies: Histogram::new(WORK),
            results: [("changed", 0), ("unchanged", 0), ("failed", 0)].into(),
            lag: Histogram::new(WORK),
            tick_at: None,
            settings: None,
            server: None,
            start: Some((asks, first)),
            log: LogMeter::default(),
        };
        (meters, asked)
    }

    /// Serves by these settings from now on.
    pub(super) fn configure(&mut self, settings: &MetricsSettings, options: &Options) {
        if self.settings.as_ref() == Some(settings) {
            return;
        }
        self.settings = Some(settings.clone());
        let wanted = settings.socket.is_some() || settings.listen.is_some();
        self.tick_at = wanted.then(|| Instant::now() + TICK);
        if let (None, true, Some((asks, first))) = (&self.server, wanted, self.start.take()) {
            // Another machine's files say nothing about the sockets of this one.
            let here = options.root == Path::new("/");
            let config = here.then(|| options.whereabouts.config.clone());
            match Server::start(asks, first, config) {
                Ok(server) => self.server = Some(server),
                Err(error) => tracing::error!("cannot start the thread that serves metrics: {error}"),
            }
        }
        if let Some(server) = &self.server {
            server.configure(settings.clone());
        }
    }

    /// The loop comes to its timer.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        if let Some(due) = self.tick_at.replace(now + TICK) {
            self.lag.observe(now - due);
        }
    }

    /// An apply is over.
    pub(super) fn applied(&mut self, answer: &Result<Applied, Error>) {
        let result = match answer {
            Ok(applied) if applied.changes > 0 => "changed",
            Ok(_) => "unchanged",
            Err(_) => "failed",
        };
        if let Ok(applied) = answer {
            self.applies.observe(applied.spent);
        }
        let count = self.results.entry(result).or_default();
        *count = count.saturating_add(1);
    }

    /// Why metrics cannot be read somewhere where they should.
    pub(super) fn trouble(&self) -> Option<String> {
        self.server.as_ref().and_then(Server::trouble)
    }

    /// Removes the unix socket.
    pub(super) fn stop(&self) {
        if let Some(path) = self.settings.as_ref().and_then(|settings| settings.socket.as_ref())
            && self.server.as_ref().is_some_and(Server::has_socket)
        {
            // A leftover socket is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Daemon {
    /// Somebody wants metrics: what the loop knows, at once.
    pub(super) fn measured(&self, ask: Ask) {
        let Some(settings) = self.meters.settings.clone() else { return };
        let mut work = Work {
            applies: self.meters.applies.clone(),
            results: self.meters.results.clone(),
            lag: self.meters.lag.clone(),
            ..Work::default()
        };
        self.drift.measure(&mut work);
        let mut clusters = self.clusters.measure();
        self.reports.measure(&mut clusters);
        let mut findings = BTreeMap::from([("error", 0), ("warning", 0)]);
        for finding in self.state.findings() {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            *findings.entry(severity).or_default() += 1;
        }
        let snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            policy: self.policy_measured(),
            work,
            clusters,
            findings,
            coverage: covered(&self.state),
            log: self.meters.log.now(),
            ..Snapshot::default()
        };
        let in_force = self.state.in_force().cloned();
        // Who asked may have given up.
        let _ = ask.send(Told { snapshot, in_force, kernel: self.kernel.clone(), settings });
    }

    fn policy_measured(&self) -> Policy {
        let state = &self.state;
        let left = state.record().pending.as_ref().map(|pending| pending.term.left(disk::now()).unwrap_or_default());
        let lacks = match &self.features {
            Features::Known(missing) => Some(missing.iter().map(lack).collect()),
            _ => None,
        };
        Policy {
            state: state.phase().name(),
            states: PHASES.map(Phase::name).to_vec(),
            mode: state.summary().map(|summary| match summary.mode {
                Mode::Enforce => "enforce",
                Mode::Audit => "audit",
            }),
            generation: state.generation(),
            confirmed: state.confirmed(),
            since: self.since.and_then(|since| Some(since.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())),
            unconfirmed_left: left.map(|left| left.as_secs_f64()),
            store_error: state.not_kept().is_some(),
            store_damages: self.damages.len() as u64,
            kernel_read: false,
            kernel_lacks: lacks,
        }
    }
}

/// The name of a feature, and whether nothing works without it.
fn lack(feature: &FeatureRecord) -> (String, bool) {
    (feature.feature.clone(), feature.needed)
}

/// Every state that there is.
const PHASES: [Phase; 7] = [
    Phase::Waiting,
    Phase::Applying,
    Phase::InForce,
    Phase::Unconfirmed,
    Phase::Panic,
    Phase::BreakGlass,
    Phase::Degraded,
];

/// How far rules reach, by state.
fn covered(state: &State) -> BTreeMap<&'static str, u64> {
    let elsewhere = state.elsewhere();
    let interfaces = state.summary().map(|summary| summary.interfaces.as_slice()).unwrap_or_default();
    let here = interfaces.iter().filter_map(|interface| interface.coverage.get(&Direction::Ingress));
    let counts = coverage::counts(here.chain(elsewhere.values()));
    counts.into_iter().map(|(state, count)| (state.name(), count as u64)).collect()
}
