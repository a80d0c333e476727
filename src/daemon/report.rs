//! What this node says of itself to the clusters it is a node of: when there may be something else to say, what it is, and how the
//! writing goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::host_state::{Known, compose};
use super::status::Status;
use super::{Daemon, Input, clock, seed};
use crate::metrics::snapshot as measured;
use crate::policy::meaning::{Meaning, meaning};
use crate::policy::resolve::node_name;
use crate::reconcile::{Phase, State, Summary};
use crate::source::kube::damping::ReportPace;
use crate::source::kube::report::{Reported, Reporter};
use crate::source::object::status::HostStateStatus;

/// What happens comes in several events, and the first of them are often taken back by the next.
const SETTLE: Duration = Duration::from_millis(500);
/// What is on its way to the kernel is given this long before it is told as such.
const APPLYING: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Default)]
pub(super) struct Reports {
    running: BTreeMap<String, Running>,
    /// When to look what there is to say.
    pub(super) at: Option<Instant>,
    /// Since when something is on its way to the kernel.
    applying: Option<Instant>,
    /// What was said last.
    said: Option<HostStateStatus>,
    /// What a generation means, once that was worked out.
    meant: Option<Meant>,
    /// How often a thread was started.
    started: u64,
}

/// What a generation means.
struct Meant {
    number: u64,
    /// The policies that existed here, by tier and name.
    here: Vec<(String, String)>,
    meaning: Meaning,
}

/// A cluster to which this node is reported.
struct Running {
    kubeconfig: PathBuf,
    node: String,
    /// Which start this is: what an earlier one tells does not count.
    number: u64,
    reporter: Reporter,
    /// What became of the last write, and when that was.
    last: Option<(Reported, SystemTime)>,
}

impl Reports {
    /// Something happened, so that there may be something else to say soon.
    pub(super) fn may_differ(&mut self) {
        if !self.running.is_empty() {
            self.at.get_or_insert_with(|| Instant::now() + SETTLE);
        }
    }

    /// The same as numbers.
    pub(super) fn measure(&self, clusters: &mut [measured::Cluster]) {
        for cluster in clusters {
            let last = self.running.get(&cluster.name).and_then(|running| running.last.as_ref());
            cluster.report_written = last.map(|(answer, _)| answer.is_ok());
            let written = last.filter(|(answer, _)| answer.is_ok());
            cluster.report_age = written.and_then(|(_, at)| Some(at.elapsed().ok()?.as_secs_f64()));
        }
    }

    /// Adds how it is with them.
    pub(super) fn add_to(&self, status: &mut Status) {
        for record in &mut status.clusters {
            let last = self.running.get(&record.name).and_then(|running| running.last.as_ref());
            record.report = last.map(|(answer, at)| match answer {
                Ok(()) => format!("written {}", clock::rfc3339(*at)),
                Err(error) => format!("not written: {error}"),
            });
        }
    }

    /// What the generation in force means; worked out once for each.
    fn meaning_of(&mut self, state: &State) -> Option<&Meaning> {
        let (version, summary) = (state.version_in_force()?, state.summary()?);
        let (number, here) = (version.number, here(summary));
        if self.meant.as_ref().is_none_or(|meant| meant.number != number || meant.here != here) {
            let names = here.iter().map(|(tier, name)| (tier.as_str(), name.as_str()));
            let meaning = meaning(&version.policy, &version.settings, names);
            self.meant = Some(Meant { number, here, meaning });
        }
        self.meant.as_ref().map(|meant| &meant.meaning)
    }
}

/// The policies that exist here, by tier and name.
fn here(summary: &Summary) -> Vec<(String, String)> {
    summary.policies.iter().map(|policy| (policy.tier.clone(), policy.name.clone())).collect()
}

impl Daemon {
    /// Reports to the clusters that say who their nodes are, as soon as it is known which node this is.
    pub(super) fn follow_reports(&mut self) {
        let (Some(facts), Some(settings)) = (&self.facts, &self.node_settings) else { return };
        let node = node_name(settings, facts).to_owned();
        let wanted: BTreeMap<String, PathBuf> =
            self.clusters.of_this_node().map(|cluster| (cluster.name.clone(), cluster.kubeconfig.clone())).collect();
        self.reports
            .running
            .retain(|name, running| wanted.get(name) == Some(&running.kubeconfig) && running.node == node);
        for (name, kubeconfig) in wanted {
            if self.reports.running.contains_key(&name) {
                continue;
            }
            self.reports.started += 1;
            let (number, called, inbox) = (self.reports.started, name.clone(), self.inbox.clone());
            let tell = move |answer| {
                // The loop is gone only when the process ends.
                let _ = inbox.send(Input::Reported(called.clone(), number, answer));
            };
            match Reporter::start(kubeconfig.clone(), node.clone(), ReportPace::SHIPPED, seed(), tell) {
                Ok(reporter) => {
                    if let Some(said) = &self.reports.said {
                        reporter.say(said.clone());
                    }
                    let running = Running { kubeconfig, node: node.clone(), number, reporter, last: None };
                    self.reports.running.insert(name, running);
                    self.reports.may_differ();
                }
                Err(error) => tracing::error!("cannot start the thread that reports to cluster \"{name}\": {error}"),
            }
        }
    }

    /// Says what there is to say.
    pub(super) fn report(&mut self) {
        self.reports.at = None;
        let now = Instant::now();
        if self.state.phase() == Phase::Applying {
            let since = *self.reports.applying.get_or_insert(now);
            if now < since + APPLYING {
                self.reports.at = Some(now + SETTLE);
                return;
            }
        } else {
            self.reports.applying = None;
        }
        let Some(facts) = &self.facts else { return };
        let mut status = Status::of(&self.state);
        self.drift.add_to(&mut status);
        self.clusters.add_to(&mut status);
        status.since = self.since.map(clock::rfc3339);
        (status.in_sync, status.drift) = match (self.state.not_applied(), self.state.in_force()) {
            (Some(error), _) => (Some(false), vec![error.to_owned()]),
            (None, Some(_)) if status.drift_storm => {
                let by = status.drift_last.as_ref().and_then(|drift| drift.process.as_deref()).unwrap_or("somebody");
                (Some(false), vec![format!("{by} keeps changing our table, and repairs wait up to a second")])
            }
            // Whatever else others do to it is repaired within milliseconds.
            (None, Some(_)) => (Some(true), Vec::new()),
            (None, None) => (None, Vec::new()),
        };
        let before = self.reports.said.take();
        let known = Known {
            status: &status,
            facts,
            meaning: self.reports.meaning_of(&self.state),
            before: before.as_ref(),
            now: &clock::rfc3339(SystemTime::now()),
        };
        let said = compose(known);
        for running in self.reports.running.values() {
            running.reporter.say(said.clone());
        }
        self.reports.said = Some(said);
    }

    /// The writer of a cluster has an answer.
    pub(super) fn reported(&mut self, name: &str, number: u64, answer: Reported) {
        let Some(running) = self.reports.running.get_mut(name).filter(|running| running.number == number) else {
            return;
        };
        let before = running.last.as_ref().map(|(answer, _)| answer.is_ok());
        match &answer {
            Err(error) if before != Some(false) => {
                tracing::warn!("HostState/{} is not written to cluster \"{name}\": {error}", running.node);
            }
            Ok(()) if before != Some(true) => {
                tracing::info!("HostState/{} is written to cluster \"{name}\"", running.node);
            }
            _ => {}
        }
        running.last = Some((answer, SystemTime::now()));
    }
}
