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
use crate::metrics::snapshot as measured;
use crate::net::facts::Facts;
use crate::net::node::{ClusterNodes, Nodes};
use crate::policy::clusters::{Cluster, Contribution};
use crate::policy::resolve::{labels_of_node, node_name, resolve};
use crate::policy::selector::Labels;
use crate::source::kube::{Health, Holding, Holdings, Me, Pace, Reach, Source, Told, name, restore_nodes};
use crate::store::{Directory, Disk, Store};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::time;
use crate::textfile;

/// At the start, documents wait so long for a cluster of which nothing is known; then it is a finding.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Who the nodes of a cluster are is written at most this often, for a start without the API, for each of so many nodes...
const KEEP_NODES: Duration = Duration::from_secs(1);
const KEPT_AT_ONCE: usize = 100;
/// ... but not less often than this.
const KEEP_NODES_AT_LEAST: Duration = Duration::from_secs(60);

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
    /// Who the nodes are of those that say so.
    nodes: Arc<Nodes>,
    /// When that was written last, and what is to be written again.
    nodes_kept: BTreeMap<String, Instant>,
    nodes_waiting: BTreeSet<String>,
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
    me: Me,
    /// Whether it was asked before for a node with other labels.
    relabelled: bool,
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

/// What a store has of what clusters say.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Kept {
    /// Their documents.
    pub(super) holdings: Holdings,
    /// Their nodes.
    pub(super) nodes: Nodes,
    /// What is wrong with either.
    pub(super) troubles: Vec<String>,
}

/// What a store has of what clusters say.
pub(super) fn read<D: Disk>(store: &Store<D>, clusters: &[Cluster]) -> Kept {
    let mut kept = Kept::default();
    for cluster in clusters {
        let name = &cluster.name;
        let text = store.cluster(name).map_err(|error| error.to_string());
        let restored = text.and_then(|text| text.map(|text| Holding::restore(&text)).transpose());
        let mut holding = match restored {
            Ok(Some(holding)) => holding,
            Ok(None) => continue,
            Err(error) => {
                kept.troubles.push(format!("what cluster \"{name}\" said: {error}"));
                continue;
            }
        };
        if cluster.contribute.contains(&Contribution::Nodes) {
            let text = store.nodes(name).map_err(|error| error.to_string());
            match text.and_then(|text| text.map(|text| restore_nodes(&text)).transpose()) {
                Ok(Some(nodes)) => drop(kept.nodes.insert(name.clone(), Arc::new(nodes))),
                // A policy that denies nodes would deny nobody without them.
                Ok(None) => holding.heard = false,
                Err(error) => {
                    holding.heard = false;
                    kept.troubles.push(format!("who the nodes of cluster \"{name}\" are: {error}"));
                }
            }
        }
        kept.holdings.insert(name.clone(), Arc::new(holding));
    }
    kept
}

/// The same from the state directory of a daemon, which need not run.
pub(super) fn kept(directory: &Path, clusters: &[Cluster]) -> Kept {
    if clusters.is_empty() {
        return Kept::default();
    }
    read(&Store::new(Directory::existing(directory)), clusters)
}

/// The cluster of which this node is one: the first that says who its nodes are.
pub(super) fn home(clusters: &[Cluster]) -> Option<&Cluster> {
    clusters.iter().find(|cluster| cluster.contribute.contains(&Contribution::Nodes))
}

/// The labels of this node in the cluster of which it is one.
pub(super) fn own_labels(clusters: &[Cluster], nodes: &Nodes, name: &str) -> Labels {
    let node = home(clusters).and_then(|cluster| nodes.get(&cluster.name)?.get(name));
    node.map(|node| node.labels()).unwrap_or_default()
}

impl Clusters {
    /// The names of those that say who their nodes are.
    fn with_nodes(&self) -> impl Iterator<Item = &String> {
        self.of_this_node().map(|cluster| &cluster.name)
    }

    /// What was kept on disk, for clusters that have not spoken yet.
    pub(super) fn remember(&mut self, kept: Kept) {
        for (name, nodes) in kept.nodes {
            Arc::make_mut(&mut self.nodes).entry(name).or_insert(nodes);
        }
        for (name, holding) in kept.holdings {
            self.holdings.entry(name.clone()).or_insert_with(|| Arc::clone(&holding));
            self.used.entry(name).or_insert(holding);
        }
    }

    /// Adds what they say about nodes, of which one has this name.
    pub(super) fn add_nodes(&self, facts: &mut Facts, name: &str) {
        facts.labels = own_labels(&self.wanted, &self.nodes, name);
        facts.nodes = Arc::clone(&self.nodes);
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
        let awaited = |cluster: &&Cluster| {
            // What it said was said to a node with other labels.
            let asked_anew = |running: &Running| running.relabelled && running.health.is_none();
            unheard(cluster) || self.running.get(&cluster.name).is_some_and(asked_anew)
        };
        let patience = self.wanted.iter().filter(awaited).filter_map(|cluster| {
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

    /// Those that say who their nodes are, of which this is one.
    pub(super) fn of_this_node(&self) -> impl Iterator<Item = &Cluster> {
        self.wanted.iter().filter(|cluster| cluster.contribute.contains(&Contribution::Nodes))
    }

    /// How it is with them, as numbers.
    pub(super) fn measure(&self) -> Vec<measured::Cluster> {
        let cluster = |cluster: &Cluster| {
            let objects = self.holdings.get(&cluster.name).map_or(0, |holding| holding.objects.len() as u64);
            let state = Reach::Connecting.name().to_owned();
            let mut numbers = measured::Cluster { name: cluster.name.clone(), state, objects, ..Default::default() };
            let Some(running) = self.running.get(&cluster.name) else { return numbers };
            numbers.state_age = running.since.elapsed().ok().map(|age| age.as_secs_f64());
            let identity = running.renewer.as_ref().map(Renewer::standing).unwrap_or_default();
            numbers.certificate_until = identity.until.map(|until| until as f64);
            let Some(health) = &running.health else { return numbers };
            numbers.state = health.reach.name().to_owned();
            numbers.invalid = health.invalid.len() as u64;
            numbers.nodes = cluster.contribute.contains(&Contribution::Nodes).then_some(health.nodes as u64);
            numbers
        };
        self.wanted.iter().map(cluster).collect()
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
            record.nodes = cluster.contribute.contains(&Contribution::Nodes).then_some(health.nodes);
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
        let name = node_name(settings, facts);
        let home = home(&self.clusters.wanted).map(|cluster| cluster.name.clone());
        let elsewhere = own_labels(&self.clusters.wanted, &self.clusters.nodes, name);
        let me = |cluster: &Cluster| {
            let is_home = home.as_ref() == Some(&cluster.name);
            // There, the labels come with what else it says.
            let labels = if is_home { Labels::new() } else { elsewhere.clone() };
            let labels = labels_of_node(settings, &Facts { labels, node: facts.node.clone(), ..Facts::default() });
            Me { name: name.to_owned(), labels, node: is_home.then(|| name.to_owned()) }
        };
        let wanted: Vec<(Cluster, Me)> =
            self.clusters.wanted.iter().map(|cluster| (cluster.clone(), me(cluster))).collect();
        let mut relabelled = BTreeSet::new();
        self.clusters.running.retain(|name, running| {
            let same = wanted.iter().find(|(cluster, _)| cluster.name == *name && *cluster == running.cluster);
            if same.is_some_and(|(_, me)| *me != running.me) {
                relabelled.insert(name.clone());
            }
            same.is_some_and(|(_, me)| *me == running.me)
        });
        for (cluster, me) in wanted {
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
            let nodes = self.clusters.nodes.get(&cluster.name).cloned().unwrap_or_default();
            let before = (&*before, &*nodes);
            match Source::start(cluster.clone(), me.clone(), before, Pace::SHIPPED, seed(), tell) {
                Ok(source) => {
                    let (began, since) = (Instant::now(), SystemTime::now());
                    let relabelled = relabelled.contains(&cluster.name);
                    let (cluster_name, renewer) = (cluster.name.clone(), renewer(&cluster));
                    let running = Running {
                        cluster,
                        me,
                        relabelled,
                        number,
                        began,
                        health: None,
                        since,
                        renewer,
                        _source: source,
                    };
                    self.clusters.running.insert(cluster_name, running);
                }
                Err(error) => tracing::error!("cannot start the thread of cluster \"{}\": {error}", cluster.name),
            }
        }
        self.follow_reports();
    }

    /// A cluster was heard of, or is not any more.
    pub(super) fn cluster_told(&mut self, name: &str, number: u64, told: Told) {
        let Some(running) = self.clusters.running.get_mut(name).filter(|running| running.number == number) else {
            return;
        };
        let Told { holding, nodes, health } = told;
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
        if let Some(nodes) = nodes {
            self.nodes_told(name, nodes);
        }
        if let Some(holding) = holding {
            self.clusters.holdings.insert(name.to_owned(), holding);
            self.reading.cluster_changed();
        }
    }

    /// The nodes of a cluster are others than before: that is a fact, as what this host has for interfaces is.
    fn nodes_told(&mut self, name: &str, nodes: Arc<ClusterNodes>) {
        let hundreds = u32::try_from(nodes.len() / KEPT_AT_ONCE).unwrap_or(u32::MAX);
        let pause = KEEP_NODES.saturating_mul(hundreds.max(1)).min(KEEP_NODES_AT_LEAST);
        Arc::make_mut(&mut self.clusters.nodes).insert(name.to_owned(), nodes);
        let is_due = self.clusters.nodes_kept.get(name).is_none_or(|kept| kept.elapsed() >= pause);
        if is_due {
            self.keep_nodes(name);
        } else if self.clusters.nodes_waiting.insert(name.to_owned()) {
            let (name, inbox) = (name.to_owned(), self.inbox.clone());
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                let _ = inbox.send(Input::KeepNodes(name));
            });
        }
        // Clusters that ask for the labels of this node may have to be asked again.
        self.follow_clusters();
        self.tell_facts();
    }

    /// Writes who the nodes of a cluster are.
    pub(super) fn keep_nodes(&mut self, name: &str) {
        self.clusters.nodes_waiting.remove(name);
        let (Some(disk), Some(nodes)) = (self.disk.clone(), self.clusters.nodes.get(name).cloned()) else { return };
        self.clusters.nodes_kept.insert(name.to_owned(), Instant::now());
        let name = name.to_owned();
        tokio::spawn(async move {
            if let Err(error) = disk.keep_nodes(&name, nodes).await {
                tracing::error!("who the nodes of cluster \"{name}\" are is not on disk: {error}");
            }
        });
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
            // A cluster that has yet to speak has no nodes, and not those of others.
            let known = |name: &String| (name.clone(), self.clusters.nodes.get(name).cloned().unwrap_or_default());
            self.clusters.nodes = Arc::new(self.clusters.with_nodes().map(known).collect());
            // Before the documents, as these name nodes.
            self.tell_facts();
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
