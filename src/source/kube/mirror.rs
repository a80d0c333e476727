//! What is held of a cluster, and what to do next: decides, and does nothing. Times are answers, randomness comes from the caller.
//!
//! A pass lists every kind, then all are watched from there. Whatever goes wrong ends in another pass, and until that has an answer
//! everything is held as it was: no refusal, no silence and no error of a server makes anything less.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::calico::{self, Calico};
use super::item::{Item, decode};
use super::name;
use super::peers::Peers;
use super::resource::{Form, Resource};
use super::{Health, Holding, Me, Reach};
use crate::net::node::ClusterNodes;
use crate::policy::clusters::{Cluster, Contribution};
use crate::policy::selector::Labels;
use crate::source::calico::CalicoKind;
use crate::source::decoded::DecodedFile;
use crate::source::object::Kind;
use crate::source::object::peers::INDEX;
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;

/// The first pause after something went wrong; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer: a policy of the fleet is not to come much later than the server.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// After so many failures in a row, a refusal that a server means, or one of some kinds only, is no passing trouble...
const PASSING: u32 = 8;
/// ... and it is asked only this often.
const LASTING_PAUSE: Duration = Duration::from_secs(30);
/// Everything is listed again after about this time, whatever the watches say: one can miss what happened for good
/// (kubernetes#107457).
const PERIOD: Duration = Duration::from_secs(600);

/// Why a request came to nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The server answered so.
    Refused {
        /// The HTTP status, or the code in the stream.
        code: u16,
        /// Its words.
        message: String,
    },
    /// There was no answer, or not a whole one.
    Broken(String),
}

impl Failure {
    /// The revision to go on from is no longer there.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Refused { code: 410, .. })
    }

    /// The server, or the way to it, is in trouble: what else is asked now would get the same answer.
    pub fn is_general(&self) -> bool {
        !matches!(self, Self::Refused { code: 200 | 403 | 404 | 410, .. })
    }

    /// A refusal that passes only when somebody changes something: rights, definitions, credentials.
    fn is_meant(&self) -> bool {
        matches!(self, Self::Refused { code: 200 | 401 | 403 | 404, .. })
    }

    /// The server does not know the kind.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { code, message } => write!(formatter, "{code}: {message}"),
            Self::Broken(why) => formatter.write_str(why),
        }
    }
}

/// All objects of a kind.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Listing {
    /// The revision at which this was so.
    pub revision: String,
    /// They.
    pub items: Vec<Item>,
    /// Those that are as they were known to be, by name.
    pub same: BTreeSet<String>,
}

/// What to do after a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What to watch, and from which revision on.
    pub watch: Vec<(Resource, String)>,
    /// When to begin another pass.
    pub again: Duration,
    /// Whether something else is held than before.
    pub changed: bool,
    /// Whether the nodes are others than before.
    pub nodes: bool,
}

/// What an event of a watch came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Noticed {
    /// Whether something else is held than before.
    pub changed: bool,
    /// Whether the nodes are others than before.
    pub nodes: bool,
    /// Whether another pass is wanted at once.
    pub list: bool,
}

/// One object.
#[derive(Clone, PartialEq, Debug)]
struct Held {
    /// The newest version, good or not; empty for one of other nodes.
    text: Arc<str>,
    /// The last good version.
    good: Option<Arc<DecodedFile>>,
    /// What is wrong with the newest.
    findings: Vec<Finding>,
    /// Whether it is for other nodes only.
    elsewhere: bool,
}

impl Held {
    /// One that is for other nodes only.
    fn elsewhere() -> Self {
        Self { text: "".into(), good: None, findings: Vec::new(), elsewhere: true }
    }
}

/// Whether a document is for a node with these labels.
fn is_for(node: &Labels, file: &DecodedFile) -> bool {
    file.documents.policies.iter().all(|policy| policy.nodes.matches(node))
}

/// What is held of a cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct Mirror {
    cluster: Cluster,
    me: Me,
    /// Whether digests of nodes are asked for.
    digests: bool,
    /// The labels of this node.
    node: Labels,
    peers: Peers,
    held: BTreeMap<(Kind, String), Held>,
    /// Calico's objects, where the cluster is asked for them.
    calico: Option<Calico>,
    /// From where each watch goes on.
    revisions: BTreeMap<Resource, String>,
    /// The highest revision that there was.
    seen: u64,
    /// The revision before the cluster went back to an older state.
    rewound: Option<u64>,
    /// Whether its word, that there is nothing any more, is doubted.
    doubted: bool,
    /// Whether the same is doubted of its nodes.
    deserted: bool,
    /// Whether everything was there once.
    heard: bool,
    reach: Reach,
    failures: u32,
    error: Option<String>,
}

impl Mirror {
    /// What was held of the cluster and its nodes when it was last heard of.
    pub fn new(cluster: Cluster, me: Me, (before, nodes): (&Holding, &ClusterNodes)) -> Self {
        let peers = Peers::new(cluster.node_addresses.clone(), nodes);
        let mut mirror = Self {
            cluster,
            node: me.labels_with(peers.all()),
            me,
            digests: true,
            peers,
            held: BTreeMap::new(),
            calico: None,
            revisions: BTreeMap::new(),
            seen: 0,
            rewound: None,
            doubted: false,
            deserted: false,
            heard: before.heard,
            reach: Reach::Connecting,
            failures: 0,
            error: None,
        };
        mirror.calico = mirror.cluster.calico.then(|| Calico::new(&mirror.cluster.name, &mirror.me.name, before));
        for ((kind, name), file) in before.objects.iter().filter(|((_, name), _)| !calico::is_ours(name)) {
            mirror.keep(*kind, name, Arc::clone(&file.text), file.as_ref().clone());
        }
        mirror
    }

    /// A mirror of the Nodes and HostStates of a cluster, and of nothing else.
    pub(super) fn of_nodes() -> Self {
        let cluster = Cluster {
            name: String::new(),
            kubeconfig: PathBuf::new(),
            contribute: [Contribution::Nodes].into(),
            tiers: BTreeSet::new(),
            believe_empty: false,
            node_addresses: Vec::new(),
            calico: false,
        };
        let mirror = Self::new(cluster, Me::default(), (&Holding::default(), &ClusterNodes::new()));
        Self { digests: false, ..mirror }
    }

    /// What the cluster may have, in the order in which it is asked for: digests of nodes make the rest about nodes needless.
    pub fn resources(&self) -> Vec<Resource> {
        let kinds = |contribution: &Contribution| match contribution {
            Contribution::Policies => &[Kind::HostPolicy, Kind::HostService, Kind::HostExpectation][..],
            Contribution::Sets => &[Kind::HostNetworkSet],
            Contribution::Tiers => &[Kind::HostTier],
            Contribution::Interfaces => &[Kind::HostInterface],
            Contribution::EarlyStages | Contribution::Nodes => &[],
        };
        let documents: BTreeSet<Kind> = self.cluster.contribute.iter().flat_map(kinds).copied().collect();
        let mut resources: Vec<Resource> = documents.into_iter().map(Resource::Object).collect();
        if self.cluster.contribute.contains(&Contribution::Nodes) {
            if self.digests {
                resources.insert(0, Resource::Object(Kind::HostPeers));
            }
            resources.extend([Resource::Node, Resource::Object(Kind::HostState)]);
        }
        if self.cluster.calico {
            resources.extend(CalicoKind::ALL.map(|kind| Resource::Calico(kind, Form::Stored)));
        }
        resources
    }

    /// Whether this need not be asked for, after what these lists say.
    pub fn is_needless(&self, resource: Resource, lists: &[(Resource, Result<Listing, Failure>)]) -> bool {
        let digests = lists.iter().find(|(listed, _)| *listed == Resource::Object(Kind::HostPeers));
        let there = match digests {
            Some((_, Ok(list))) => {
                list.same.contains(INDEX) || list.items.iter().any(|item| item.metadata.name == INDEX)
            }
            Some((_, Err(failure))) => !failure.is_unknown() && self.peers.has_digests(),
            None => false,
        };
        there && matches!(resource, Resource::Node | Resource::Object(Kind::HostState))
    }

    /// All was listed, or could not be.
    pub fn passed(&mut self, lists: Vec<(Resource, Result<Listing, Failure>)>, dice: u64) -> Plan {
        let mut failed: Vec<(Resource, Failure)> = Vec::new();
        let mut listed: Vec<(Kind, Listing)> = Vec::new();
        let mut nodes: BTreeMap<Resource, Listing> = BTreeMap::new();
        let mut of_calico: Vec<(Resource, CalicoKind, Listing)> = Vec::new();
        for (resource, list) in lists {
            if let Resource::Calico(kind, _) = resource {
                match list {
                    Ok(list) => of_calico.push((resource, kind, list)),
                    Err(failure) if self.may_lack(kind, &failure) => {}
                    Err(failure) => failed.push((resource, failure)),
                }
                continue;
            }
            match (resource.document(), list) {
                (Some(kind), Ok(list)) => listed.push((kind, list)),
                (None, Ok(list)) => drop(nodes.insert(resource, list)),
                // A server without digests or states of nodes is one on which there are none.
                (None, Err(failure)) if failure.is_unknown() && resource != Resource::Node => {}
                (_, Err(failure)) => failed.push((resource, failure)),
            }
        }
        let before = (self.doubted, self.deserted, self.rewound, self.heard);
        let trouble = failed.first().map(|(resource, failure)| format!("{}: {failure}", resource.plural()));
        if listed.is_empty() && nodes.is_empty() && of_calico.is_empty() && !failed.is_empty() {
            self.reach = Reach::Away;
            self.error = trouble;
            let again = match failed.first() {
                Some((_, failure)) => self.pause_after(failure, dice),
                None => self.pause(dice),
            };
            return Plan { watch: Vec::new(), again, changed: false, nodes: false };
        }
        let gone = |kind: &Kind| self.held.keys().any(|(held, _)| held == kind);
        let gone_of_calico = |kind| self.calico.as_ref().is_some_and(|calico| calico.has(kind));
        let nothing = listed.iter().all(|(_, list)| list.items.is_empty())
            && of_calico.iter().all(|(_, _, list)| list.items.is_empty());
        let had =
            listed.iter().any(|(kind, _)| gone(kind)) || of_calico.iter().any(|(_, kind, _)| gone_of_calico(*kind));
        self.doubted = nothing && had && !self.cluster.believe_empty;
        let known = |(resource, failure): &(Resource, Failure)| {
            failure.is_unknown() && resource.document().is_some_and(|kind| !gone(&kind))
        };
        let complete = failed.iter().all(known);
        let revisions = listed.iter().map(|(_, list)| list).chain(nodes.values());
        let revisions = revisions.chain(of_calico.iter().map(|(_, _, list)| list));
        let newest = revisions.filter_map(|list| list.revision.parse().ok()).max().unwrap_or(self.seen);
        if newest < self.seen {
            self.rewound = Some(self.seen);
            // What comes is counted from here.
            self.seen = newest;
        }
        self.rewound = self.rewound.filter(|before| newest < *before);
        let mut watch = Vec::new();
        // Which node this is says which policies are for it.
        let others = self.nodes_listed(nodes, &mut watch);
        let node = self.me.labels_with(self.peers.all());
        let relabelled = node != self.node;
        let mut changed = relabelled;
        self.node = node;
        if relabelled {
            let others = |held: &Held| held.good.as_ref().is_some_and(|file| !is_for(&self.node, file));
            for held in self.held.values_mut().filter(|held| others(held)) {
                *held = Held::elsewhere();
            }
        }
        for (kind, Listing { revision, items, .. }) in listed {
            self.revisions.insert(Resource::Object(kind), revision.clone());
            watch.push((Resource::Object(kind), revision));
            if self.doubted {
                continue;
            }
            let names: BTreeSet<String> = items.iter().map(|item| item.metadata.name.clone()).collect();
            let before = self.held.len();
            self.held.retain(|(held, name), _| *held != kind || names.contains(name));
            changed |= self.held.len() != before;
            for item in items {
                changed |= self.put(kind, item);
            }
        }
        for (resource, kind, Listing { revision, items, .. }) in of_calico {
            self.revisions.insert(resource, revision.clone());
            watch.push((resource, revision));
            if let (Some(calico), false) = (&mut self.calico, self.doubted) {
                changed |= calico.listed(kind, items);
            }
        }
        self.seen = self.seen.max(newest);
        self.heard |= complete && !self.doubted;
        changed |= before != (self.doubted, self.deserted, self.rewound, self.heard);
        self.error = trouble;
        let again = if failed.is_empty() {
            self.reach = if self.doubted || self.deserted { Reach::Doubted } else { Reach::Synced };
            jittered(PERIOD, dice)
        } else {
            self.reach = if self.doubted || self.deserted { Reach::Doubted } else { Reach::Partial };
            let pause = self.pause(dice);
            if self.failures > PASSING || complete { jittered(LASTING_PAUSE, dice) } else { pause }
        };
        Plan { watch, again, changed, nodes: others }
    }

    /// What is about nodes was listed; whether they are others than before.
    fn nodes_listed(&mut self, lists: BTreeMap<Resource, Listing>, watch: &mut Vec<(Resource, String)>) -> bool {
        let empty = |list: &Listing| list.items.is_empty() && list.same.is_empty();
        let says = |resource| lists.get(&resource).map(empty);
        // A cluster without nodes is none in which this program runs.
        let none = says(Resource::Node) == Some(true) && says(Resource::Object(Kind::HostPeers)) != Some(false);
        self.deserted = none && !self.cluster.believe_empty && !self.peers.all().is_empty();
        let mut items = BTreeMap::new();
        let mut same = BTreeSet::new();
        for (resource, Listing { revision, items: list, same: unchanged }) in lists {
            self.revisions.insert(resource, revision.clone());
            watch.push((resource, revision));
            items.insert(resource, list);
            same.extend(unchanged);
        }
        !self.deserted && !items.is_empty() && self.peers.listed(items, &same)
    }

    /// A watch told that an object was made or changed.
    pub fn stored(&mut self, resource: Resource, item: Item) -> Noticed {
        self.follows(resource, &item.metadata.resource_version);
        // The cluster has something: then it is as it says.
        let told = |list| Noticed { list, ..Noticed::default() };
        if let Resource::Calico(kind, _) = resource {
            return match &mut self.calico {
                Some(calico) if !self.doubted => Noticed { changed: calico.put(kind, item), ..Noticed::default() },
                _ => told(self.doubted),
            };
        }
        match resource.document() {
            Some(_) if self.doubted => told(true),
            Some(kind) => Noticed { changed: self.put(kind, item), ..Noticed::default() },
            None if self.deserted => told(true),
            None => self.about_nodes(|peers| peers.stored(resource, item)),
        }
    }

    /// A watch told that an object was deleted.
    pub fn deleted(&mut self, resource: Resource, item: &Item) -> Noticed {
        self.follows(resource, &item.metadata.resource_version);
        let name = &item.metadata.name;
        if let Resource::Calico(kind, _) = resource {
            let calico = self.calico.as_mut().filter(|_| !self.doubted);
            let changed = calico.is_some_and(|calico| calico.remove(kind, name));
            return Noticed { changed, ..Noticed::default() };
        }
        match resource.document() {
            Some(kind) => {
                let changed = !self.doubted && self.held.remove(&(kind, name.clone())).is_some();
                Noticed { changed, ..Noticed::default() }
            }
            None if self.deserted => Noticed::default(),
            None => self.about_nodes(|peers| peers.deleted(resource, name)),
        }
    }

    /// Something is said about nodes. Where digests come or go, and where this node gets other labels, all is listed again.
    fn about_nodes(&mut self, change: impl FnOnce(&mut Peers) -> bool) -> Noticed {
        let digests = self.peers.has_digests();
        let nodes = change(&mut self.peers);
        let list = self.peers.has_digests() != digests || nodes && self.me.labels_with(self.peers.all()) != self.node;
        Noticed { changed: false, nodes, list }
    }

    /// A watch told how far it is.
    pub fn follows(&mut self, kind: Resource, revision: &str) {
        self.failures = 0;
        if let Ok(number) = revision.parse::<u64>() {
            self.seen = self.seen.max(number);
        }
        if !revision.is_empty() {
            self.revisions.insert(kind, revision.to_owned());
        }
    }

    /// A watch ended when its time was over; from where it goes on.
    pub fn goes_on(&mut self, kind: Resource) -> String {
        self.failures = 0;
        self.revisions.get(&kind).cloned().unwrap_or_default()
    }

    /// A watch broke; when to begin another pass.
    pub fn broke(&mut self, kind: Resource, failure: &Failure, dice: u64) -> Duration {
        self.error = Some(format!("{}: {failure}", kind.plural()));
        if failure.is_expired() {
            // The server is there and in order: only what it remembers is too short.
            return jittered(FIRST_PAUSE, dice) / 2;
        }
        self.reach = Reach::Away;
        self.pause_after(failure, dice)
    }

    /// The client could not even be made: no kubeconfig, or not a good one.
    pub fn unable(&mut self, why: String, dice: u64) -> Duration {
        self.reach = Reach::Away;
        self.error = Some(why);
        self.pause(dice)
    }

    /// What a cluster may lack without anything being wrong: a kind that it never had, and failsafe ports that nobody is to see.
    fn may_lack(&self, kind: CalicoKind, failure: &Failure) -> bool {
        let is_none = failure.is_unknown()
            || kind == CalicoKind::FelixConfiguration && matches!(failure, Failure::Refused { code: 403, .. });
        is_none && !self.calico.as_ref().is_some_and(|calico| calico.has(kind))
    }

    /// Comes to what is held of all that was told: once for many events.
    pub fn settle(&mut self) {
        if let Some(calico) = &mut self.calico {
            calico.refresh();
        }
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let of_calico = self.calico.iter().flat_map(Calico::invalid);
        Health {
            reach: self.reach,
            revision: self.seen,
            nodes: self.peers.all().len(),
            objects: self.held.values().filter(|held| held.good.is_some()).count()
                + self.calico.as_ref().map_or(0, Calico::documents),
            elsewhere: self.held.values().filter(|held| held.elsewhere).count(),
            invalid: self
                .invalid()
                .map(|((kind, name), _)| format!("{}/{name}", kind.name()))
                .chain(of_calico)
                .collect(),
            error: self.error.clone(),
        }
    }

    /// What it says, as it was settled last.
    pub fn holding(&self) -> Holding {
        let objects = self.held.iter().filter_map(|(key, held)| Some((key.clone(), Arc::clone(held.good.as_ref()?))));
        let hidden = self.held.iter().filter(|(_, held)| held.good.is_none()).map(|(key, _)| key.clone());
        let mut findings: Vec<Finding> = self.invalid().flat_map(|(_, held)| held.findings.clone()).collect();
        let place = Place::file(name::of_cluster(&self.cluster.name));
        if self.doubted {
            let message = format!("cluster \"{}\" has no objects any more, which is not believed", self.cluster.name);
            let help = "what it had stays in force until it has an object again, or until believe_empty = true";
            findings.push(Finding::warning(Code::Cluster, &place, message).help(help));
        }
        if self.deserted {
            let message = format!("cluster \"{}\" has no nodes any more, which is not believed", self.cluster.name);
            let help = "those that it had count until it has a node again, or until believe_empty = true";
            findings.push(Finding::warning(Code::Cluster, &place, message).help(help));
        }
        if let Some(before) = self.rewound {
            let (name, now) = (&self.cluster.name, self.seen);
            let message = format!("cluster \"{name}\" went back from revision {before} to an older state, now {now}");
            let help = "it is followed; if nobody restored a backup, look at the cluster's etcd";
            findings.push(Finding::warning(Code::Cluster, &place, message).help(help));
        }
        let (objects, hidden) = (objects.collect(), hidden.collect());
        let mut holding = Holding { heard: self.heard, objects, hidden, findings, calico: None };
        if let Some(calico) = &self.calico {
            calico.add_to(&mut holding);
        }
        holding
    }

    /// The digests of nodes that are known, by name, with what is in each.
    pub fn digests(&self) -> BTreeMap<String, String> {
        self.peers.digests()
    }

    /// Who its nodes are.
    pub fn nodes(&self) -> &ClusterNodes {
        self.peers.all()
    }

    fn invalid(&self) -> impl Iterator<Item = (&(Kind, String), &Held)> {
        self.held.iter().filter(|(_, held)| !held.findings.is_empty())
    }

    fn put(&mut self, kind: Kind, item: Item) -> bool {
        let name = item.metadata.name.clone();
        if calico::is_ours(&name) {
            // A server that has such an object is none of Kubernetes', and wants what it is not given.
            return false;
        }
        let text = item.text(kind);
        if self.held.get(&(kind, name.clone())).is_some_and(|held| held.text == text) {
            return false;
        }
        let file = decode(&self.cluster.name, kind, &name, Arc::clone(&text));
        self.keep(kind, &name, text, file)
    }

    /// Takes a version in; whether something else is held then.
    fn keep(&mut self, kind: Kind, name: &str, text: Arc<str>, file: DecodedFile) -> bool {
        let key = (kind, name.to_owned());
        let before = self.held.get(&key);
        let good = file.findings.iter().all(|finding| finding.severity != Severity::Error);
        let elsewhere = !is_for(&self.node, &file);
        let held = if !good {
            let last = before.and_then(|held| held.good.clone());
            let instead = match (&last, before.is_some_and(|held| held.elsewhere)) {
                (Some(_), _) => "its last good version stays in force",
                (None, true) => "its last good version was for other nodes",
                (None, false) => "it never had a good version, and counts for nothing",
            };
            let told = |finding: Finding| {
                let help = match finding.help.as_str() {
                    "" => instead.to_owned(),
                    help => format!("{help}; {instead}"),
                };
                Finding { severity: Severity::Warning, help, ..finding }
            };
            let findings = file.findings.into_iter().map(told).collect();
            Held { text, good: last, findings, elsewhere: false }
        } else if elsewhere {
            Held::elsewhere()
        } else {
            Held { text, good: Some(Arc::new(file)), findings: Vec::new(), elsewhere: false }
        };
        let changed = before != Some(&held);
        self.held.insert(key, held);
        changed
    }

    /// The pause after one more failure of this kind.
    fn pause_after(&mut self, failure: &Failure, dice: u64) -> Duration {
        let pause = self.pause(dice);
        if failure.is_meant() && self.failures > PASSING { jittered(LASTING_PAUSE, dice) } else { pause }
    }

    /// The pause after one more failure.
    fn pause(&mut self, dice: u64) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        jittered(doubled.min(LONGEST_PAUSE), dice)
    }
}

/// From 3/4 of a time to all of it.
fn jittered(time: Duration, dice: u64) -> Duration {
    let quarter = time / 4;
    let millis = u64::try_from(quarter.as_millis()).unwrap_or(u64::MAX);
    time - quarter + Duration::from_millis(dice % millis.saturating_add(1))
}

#[cfg(test)]
mod tests;
