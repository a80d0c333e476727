//! The clusters that documents come from: who is followed, what each says, and what of that goes together with everything else.
//!
//! What does not go together never stops the files or the other clusters: new versions of objects that others do not fit are set
//! aside, and where that is not enough, the cluster stays as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::documents::Documents;
use super::status::{ClusterRecord, Status};
use super::{Daemon, Input, clock, seed};
use crate::identity::Renewer;
use crate::net::facts::Facts;
use crate::policy::clusters::Cluster;
use crate::policy::resolve::{labels_of_node, resolve};
use crate::policy::selector::Labels;
use crate::source::kube::{Health, Holding, Holdings, Pace, Reach, Source, Told, name};
use crate::store::{Directory, Disk, Store};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::time;
use crate::textfile;

/// At the start, documents wait so long for a cluster of which nothing is known; then it is a finding.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Default)]
pub(super) struct Clusters {
    /// Those that the newest settings without an error name.
    wanted: Vec<Cluster>,
    running: BTreeMap<String, Running>,
    /// What each says, or said when it was last heard of.
    holdings: Holdings,
    /// What of that was in documents without an error last.
    used: Holdings,
    /// What is set aside.
    aside: Aside,
    /// Whether the load that is to come, or under way, is another attempt with something else set aside.
    settling: bool,
    /// Changes with what is set aside, and what it was when the load under way began.
    attempt: u64,
    under_way: u64,
    /// Whether documents wait for the machine to be looked at.
    postponed: bool,
    /// How often a thread was started.
    started: u64,
}

/// What does not go together with the rest.
#[derive(Clone, PartialEq, Debug, Default)]
struct Aside {
    /// Versions of objects, by what they are called.
    versions: BTreeMap<String, Arc<str>>,
    /// Clusters that stay as they were.
    frozen: BTreeSet<String>,
    /// Why.
    findings: Vec<Finding>,
}

/// A cluster that is followed.
struct Running {
    cluster: Cluster,
    node: Labels,
    /// Which start this is: what an earlier one tells does not count.
    number: u64,
    began: Instant,
    health: Option<Health>,
    /// Since when it is reached so.
    since: SystemTime,
    /// `None`: the system refuses a thread.
    renewer: Option<Renewer>,
    _source: Source,
}

/// What is to be done with documents.
enum Judgement {
    /// To go on with them.
    Good,
    /// To load again, with something set aside.
    Again,
    /// To wait until then, as there is something to come.
    Wait(Instant),
}

/// What renews the certificate of the node, where it has one of its own.
fn renewer(cluster: &Cluster) -> Option<Renewer> {
    Renewer::start(&cluster.kubeconfig, seed())
        .inspect_err(|error| {
            tracing::error!(
                "cannot start the thread that renews the certificate for cluster \"{}\": {error}",
                cluster.name
            );
        })
        .ok()
}

/// Two troubles as one text.
fn together(first: Option<String>, second: Option<String>) -> Option<String> {
    match (first, second) {
        (Some(first), Some(second)) => Some(format!("{first}; {second}")),
        (first, second) => first.or(second),
    }
}

/// What a store has of what clusters say, and what is wrong with it.
pub(super) fn read<D: Disk>(store: &Store<D>, clusters: &[Cluster]) -> (Holdings, Vec<String>) {
    let (mut holdings, mut troubles) = (Holdings::new(), Vec::new());
    for Cluster { name, .. } in clusters {
        let kept = store.cluster(name).map_err(|error| error.to_string());
        let restored = kept.and_then(|text| text.map(|text| Holding::restore(&text)).transpose());
        match restored {
            Ok(Some(holding)) => drop(holdings.insert(name.clone(), Arc::new(holding))),
            Ok(None) => {}
            Err(error) => troubles.push(format!("what cluster \"{name}\" said: {error}")),
        }
    }
    (holdings, troubles)
}

/// The same from the state directory of a daemon, which need not run.
pub(super) fn kept(directory: &Path, clusters: &[Cluster]) -> (Holdings, Vec<String>) {
    if clusters.is_empty() {
        return (Holdings::new(), Vec::new());
    }
    read(&Store::new(Directory::existing(directory)), clusters)
}

impl Clusters {
    /// What was kept on disk, for clusters that have not spoken yet.
    pub(super) fn remember(&mut self, kept: Holdings) {
        for (name, holding) in kept {
            self.holdings.entry(name.clone()).or_insert_with(|| Arc::clone(&holding));
            self.used.entry(name).or_insert(holding);
        }
    }

    /// What a load is to take; one that is no other attempt begins without prejudice.
    pub(super) fn for_a_load(&mut self) -> Holdings {
        if !std::mem::take(&mut self.settling) && self.aside != Aside::default() {
            self.aside = Aside::default();
            self.attempt += 1;
        }
        self.under_way = self.attempt;
        self.fitting()
    }

    /// Which attempt the load under way is.
    pub(super) fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Whether documents waited for the machine to be looked at.
    pub(super) fn was_postponed(&mut self) -> bool {
        std::mem::take(&mut self.postponed)
    }

    /// What clusters say, without what is set aside.
    pub(super) fn fitting(&self) -> Holdings {
        let fitting = |(name, holding): (&String, &Arc<Holding>)| {
            let before = self.used.get(name);
            let fitting = match before.filter(|_| self.aside.frozen.contains(name)) {
                Some(before) => Arc::clone(before),
                None if self.aside.versions.is_empty() => Arc::clone(holding),
                None => Arc::new(holding.without(name, &self.aside.versions, before.map(|before| &**before))),
            };
            (name.clone(), fitting)
        };
        self.holdings.iter().map(fitting).collect()
    }

    /// Whether documents go together, on a node with these facts.
    fn judge(&mut self, documents: &mut Documents, facts: &Facts, now: Instant) -> Judgement {
        let unheard = |cluster: &&Cluster| !self.holdings.get(&cluster.name).is_some_and(|holding| holding.heard);
        let patience = self.wanted.iter().filter(unheard).filter_map(|cluster| {
            let running = self.running.get(&cluster.name)?;
            Some(running.began + FIRST_WORD).filter(|until| *until > now)
        });
        if let Some(until) = patience.min() {
            return Judgement::Wait(until);
        }
        let (_, resolved) = resolve(&documents.policy, &documents.config.settings, facts);
        let wrong = documents.findings.iter().chain(&resolved).filter(|finding| finding.severity == Severity::Error);
        let wrong: Vec<Finding> = wrong.cloned().collect();
        if wrong.is_empty() {
            self.used = self.fitting();
        } else if self.set_aside(&wrong) {
            self.settling = true;
            self.attempt += 1;
            return Judgement::Again;
        }
        documents.findings.extend(self.aside.findings.iter().cloned());
        Judgement::Good
    }

    /// Sets aside what may be the reason of these errors; whether there was anything left to set aside.
    fn set_aside(&mut self, wrong: &[Finding]) -> bool {
        let fitting = self.fitting();
        // What is only more takes nothing away on which others stand.
        let is_less = |name: &str| {
            let (Some(before), Some(now)) = (self.used.get(name), fitting.get(name)) else { return false };
            !Arc::ptr_eq(before, now) && before.objects.iter().any(|(key, file)| now.objects.get(key) != Some(file))
        };
        let mut blamed: BTreeSet<String> = BTreeSet::new();
        let mut versions = BTreeMap::new();
        for finding in wrong {
            let places = std::iter::once(&finding.place).chain(finding.related.iter().map(|(place, _)| place));
            for place in places {
                // A field of an object is told by a space: names of objects have none.
                let Some((cluster, kind, object)) = name::parse(&place.file) else { continue };
                let object = object.split(' ').next().unwrap_or(object);
                let called = format!("{}: {}/{object}", name::of_cluster(cluster), kind.name());
                blamed.insert(cluster.to_owned());
                let now = fitting.get(cluster).and_then(|holding| holding.text(&called));
                let before = self.used.get(cluster).and_then(|holding| holding.text(&called));
                if let Some(now) = now.filter(|now| before != Some(*now)) {
                    versions.insert(called, Arc::clone(now));
                }
            }
        }
        let reasons = |instead: &str| {
            let told = |finding: &Finding| {
                let help = match finding.help.as_str() {
                    "" => instead.to_owned(),
                    help => format!("{help}; {instead}"),
                };
                Finding { severity: Severity::Warning, help, ..finding.clone() }
            };
            wrong.iter().map(told).collect::<Vec<_>>()
        };
        if !versions.is_empty() {
            self.aside.findings.extend(reasons("until it goes together with the rest, its version before counts"));
            self.aside.versions.extend(versions);
            return true;
        }
        let mut frozen: BTreeSet<String> = blamed.into_iter().filter(|name| is_less(name)).collect();
        if frozen.is_empty() {
            frozen = fitting.keys().filter(|name| is_less(name)).cloned().collect();
        }
        if frozen.is_empty() {
            return false;
        }
        let names = frozen.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let place = Place::file(name::of_cluster(frozen.iter().next().map_or("", String::as_str)));
        let message =
            format!("what cluster {names} says does not go together with the rest: it counts as it was before");
        self.aside.findings.extend(reasons("what was before counts"));
        self.aside.findings.push(Finding::warning(Code::Cluster, &place, message));
        self.aside.frozen.extend(frozen);
        true
    }

    /// Adds how it is with them.
    pub(super) fn add_to(&self, status: &mut Status) {
        let record = |cluster: &Cluster| {
            let mut record = ClusterRecord { name: cluster.name.clone(), ..ClusterRecord::default() };
            let known = self.holdings.get(&cluster.name);
            record.objects = known.map_or(0, |holding| holding.objects.len());
            record.state = Reach::Connecting.name().to_owned();
            let Some(running) = self.running.get(&cluster.name) else { return record };
            record.since = clock::rfc3339(running.since);
            let identity = running.renewer.as_ref().map(Renewer::standing).unwrap_or_default();
            record.certificate_until = identity.until.map(time::rfc3339);
            record.error.clone_from(&identity.error);
            let Some(health) = &running.health else { return record };
            record.state = health.reach.name().to_owned();
            record.revision = health.revision;
            record.elsewhere = health.elsewhere;
            record.invalid.clone_from(&health.invalid);
            record.error = together(identity.error, health.error.clone());
            record
        };
        status.clusters = self.wanted.iter().map(record).collect();
    }
}

impl Daemon {
    /// Follows the clusters that the settings name, as soon as it is known which node this is.
    pub(super) fn follow_clusters(&mut self) {
        let (Some(facts), Some(settings)) = (&self.facts, &self.node_settings) else { return };
        let node = labels_of_node(settings, facts);
        let wanted = &self.clusters.wanted;
        self.clusters.running.retain(|name, running| {
            wanted.iter().any(|cluster| cluster.name == *name && *cluster == running.cluster) && running.node == node
        });
        for cluster in self.clusters.wanted.clone() {
            if self.clusters.running.contains_key(&cluster.name) {
                continue;
            }
            self.clusters.started += 1;
            let (number, name, inbox) = (self.clusters.started, cluster.name.clone(), self.inbox.clone());
            let before = self.clusters.holdings.get(&cluster.name).cloned().unwrap_or_default();
            let tell = move |told| {
                // The loop is gone only when the process ends.
                let _ = inbox.send(Input::Cluster(name.clone(), number, Box::new(told)));
            };
            match Source::start(cluster.clone(), node.clone(), &before, Pace::SHIPPED, seed(), tell) {
                Ok(source) => {
                    let (began, since) = (Instant::now(), SystemTime::now());
                    let node = node.clone();
                    let renewer = renewer(&cluster);
                    let running = Running {
                        cluster: cluster.clone(),
                        node,
                        number,
                        began,
                        health: None,
                        since,
                        renewer,
                        _source: source,
                    };
                    self.clusters.running.insert(cluster.name, running);
                }
                Err(error) => tracing::error!("cannot start the thread of cluster \"{}\": {error}", cluster.name),
            }
        }
    }

    /// A cluster was heard of, or is not any more.
    pub(super) fn cluster_told(&mut self, name: &str, number: u64, told: Told) {
        let Some(running) = self.clusters.running.get_mut(name).filter(|running| running.number == number) else {
            return;
        };
        let Told { holding, health } = told;
        let before = running.health.as_ref().map(|health| health.reach);
        if before != Some(health.reach) {
            running.since = SystemTime::now();
            let (state, revision) = (health.reach.name(), health.revision);
            match &health.error {
                Some(error) => tracing::warn!("cluster \"{name}\" is {state}: {error}; what it said stays in force"),
                None => tracing::info!(revision, "cluster \"{name}\" is {state}"),
            }
        }
        running.health = Some(health);
        if let Some(holding) = holding {
            self.clusters.holdings.insert(name.to_owned(), holding);
            self.reading.cluster_changed();
        }
    }

    /// Whether documents can be handed on; if not, they are loaded again when there is something else to say.
    pub(super) fn goes_together(&mut self, documents: &mut Documents, attempt: u64) -> bool {
        // Broken settings say nothing about clusters, and are refused.
        if self.clusters.wanted.is_empty() || !self.has_good_settings(documents) {
            return true;
        }
        if attempt != self.clusters.attempt {
            // Other documents are on their way.
            return false;
        }
        let Some(facts) = self.known_facts() else {
            // It is not known yet which node this is.
            self.clusters.postponed = true;
            return false;
        };
        let before = self.clusters.used.clone();
        match self.clusters.judge(documents, &facts, Instant::now()) {
            Judgement::Good => {
                self.keep_clusters(&before);
                true
            }
            Judgement::Again => {
                self.load();
                false
            }
            Judgement::Wait(until) => {
                self.reading.load_at = Some(self.reading.load_at.map_or(until, |at| at.min(until)));
                false
            }
        }
    }

    /// The settings name these clusters.
    pub(super) fn wants_clusters(&mut self, documents: &Documents) {
        if self.has_good_settings(documents) {
            self.clusters.wanted.clone_from(&documents.config.clusters);
            self.node_settings = Some(documents.config.settings.clone());
        }
        self.follow_clusters();
    }

    /// Whether nodewall.toml has no error.
    pub(super) fn has_good_settings(&self, documents: &Documents) -> bool {
        let settings = textfile::name(&self.options.whereabouts.config);
        let is_error = |finding: &Finding| finding.severity == Severity::Error && finding.place.file == settings;
        !documents.findings.iter().any(is_error)
    }

    /// Writes what clusters say and is in force, where it is something else than before.
    fn keep_clusters(&self, before: &Holdings) {
        let Some(disk) = &self.disk else { return };
        for (name, holding) in &self.clusters.used {
            let is_same = |before: &Arc<Holding>| Arc::ptr_eq(before, holding) || before == holding;
            if !holding.heard || before.get(name).is_some_and(is_same) {
                continue;
            }
            let (name, holding, disk) = (name.clone(), Arc::clone(holding), disk.clone());
            tokio::spawn(async move {
                if let Err(error) = disk.keep_cluster(&name, holding).await {
                    tracing::error!("what cluster \"{name}\" says is not on disk: {error}");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
