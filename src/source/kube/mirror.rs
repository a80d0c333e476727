//! What is held of a cluster, and what to do next: decides, and does nothing. Times are answers, randomness comes from the caller.
//!
//! A pass lists every kind, then all are watched from there. Whatever goes wrong ends in another pass, and until that has an answer
//! everything is held as it was: no refusal, no silence and no error of a server makes anything less.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::item::{Item, decode};
use super::name;
use super::{Health, Holding, Reach};
use crate::policy::clusters::{Cluster, Contribution};
use crate::policy::selector::Labels;
use crate::source::decoded::DecodedFile;
use crate::source::object::Kind;
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
    fn is_unknown(&self) -> bool {
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
}

/// What to do after a pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What to watch, and from which revision on.
    pub watch: Vec<(Kind, String)>,
    /// When to begin another pass.
    pub again: Duration,
    /// Whether something else is held than before.
    pub changed: bool,
}

/// What an event of a watch came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Noticed {
    /// Whether something else is held than before.
    pub changed: bool,
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

/// What is held of a cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct Mirror {
    cluster: Cluster,
    node: Labels,
    held: BTreeMap<(Kind, String), Held>,
    /// From where each watch goes on.
    revisions: BTreeMap<Kind, String>,
    /// The highest revision that there was.
    seen: u64,
    /// The revision before the cluster went back to an older state.
    rewound: Option<u64>,
    /// Whether its word, that there is nothing any more, is doubted.
    doubted: bool,
    /// Whether everything was there once.
    heard: bool,
    reach: Reach,
    failures: u32,
    error: Option<String>,
}

impl Mirror {
    /// What was held of the cluster when it was last heard of, on a node with these labels.
    pub fn new(cluster: Cluster, node: Labels, before: &Holding) -> Self {
        let mut mirror = Self {
            cluster,
            node,
            held: BTreeMap::new(),
            revisions: BTreeMap::new(),
            seen: 0,
            rewound: None,
            doubted: false,
            heard: before.heard,
            reach: Reach::Connecting,
            failures: 0,
            error: None,
        };
        for ((kind, name), file) in &before.objects {
            mirror.keep(*kind, name, Arc::clone(&file.text), file.as_ref().clone());
        }
        mirror
    }

    /// The kinds that the cluster may have.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        let kinds = |contribution: &Contribution| match contribution {
            Contribution::Policies => &[Kind::HostPolicy, Kind::HostService, Kind::HostExpectation][..],
            Contribution::Sets => &[Kind::HostNetworkSet],
            Contribution::Tiers => &[Kind::HostTier],
            Contribution::Interfaces => &[Kind::HostInterface],
            Contribution::EarlyStages | Contribution::Nodes => &[],
        };
        self.cluster.contribute.iter().flat_map(kinds).copied().collect()
    }

    /// Every kind was listed, or could not be.
    pub fn passed(&mut self, lists: Vec<(Kind, Result<Listing, Failure>)>, dice: u64) -> Plan {
        let mut failed: Vec<(Kind, Failure)> = Vec::new();
        let mut listed: Vec<(Kind, Listing)> = Vec::new();
        for (kind, list) in lists {
            match list {
                Ok(list) => listed.push((kind, list)),
                Err(failure) => failed.push((kind, failure)),
            }
        }
        let before = (self.doubted, self.rewound, self.heard);
        let trouble = failed.first().map(|(kind, failure)| format!("{}: {failure}", kind.plural()));
        if listed.is_empty() && !failed.is_empty() {
            self.reach = Reach::Away;
            self.error = trouble;
            let again = match failed.first() {
                Some((_, failure)) => self.pause_after(failure, dice),
                None => self.pause(dice),
            };
            return Plan { watch: Vec::new(), again, changed: false };
        }
        let gone = |kind: &Kind| self.held.keys().any(|(held, _)| held == kind);
        let nothing = listed.iter().all(|(_, list)| list.items.is_empty());
        self.doubted = nothing && !self.cluster.believe_empty && listed.iter().any(|(kind, _)| gone(kind));
        let known = |(kind, failure): &(Kind, Failure)| failure.is_unknown() && !gone(kind);
        let complete = failed.iter().all(known);
        let newest = listed.iter().filter_map(|(_, list)| list.revision.parse().ok()).max().unwrap_or(self.seen);
        if newest < self.seen {
            self.rewound = Some(self.seen);
            // What comes is counted from here.
            self.seen = newest;
        }
        self.rewound = self.rewound.filter(|before| newest < *before);
        let mut changed = false;
        let mut watch = Vec::new();
        for (kind, Listing { revision, items }) in listed {
            self.revisions.insert(kind, revision.clone());
            watch.push((kind, revision));
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
        self.seen = self.seen.max(newest);
        self.heard |= complete && !self.doubted;
        changed |= before != (self.doubted, self.rewound, self.heard);
        self.error = trouble;
        let again = if failed.is_empty() {
            self.reach = if self.doubted { Reach::Doubted } else { Reach::Synced };
            jittered(PERIOD, dice)
        } else {
            self.reach = if self.doubted { Reach::Doubted } else { Reach::Partial };
            let pause = self.pause(dice);
            if self.failures > PASSING || complete { jittered(LASTING_PAUSE, dice) } else { pause }
        };
        Plan { watch, again, changed }
    }

    /// A watch told that an object was made or changed.
    pub fn stored(&mut self, kind: Kind, item: Item) -> Noticed {
        self.follows(kind, &item.metadata.resource_version);
        if self.doubted {
            // The cluster has something: then it is as it says.
            return Noticed { changed: false, list: true };
        }
        Noticed { changed: self.put(kind, item), list: false }
    }

    /// A watch told that an object was deleted.
    pub fn deleted(&mut self, kind: Kind, item: &Item) -> Noticed {
        self.follows(kind, &item.metadata.resource_version);
        let changed = !self.doubted && self.held.remove(&(kind, item.metadata.name.clone())).is_some();
        Noticed { changed, list: false }
    }

    /// A watch told how far it is.
    pub fn follows(&mut self, kind: Kind, revision: &str) {
        self.failures = 0;
        if let Ok(number) = revision.parse::<u64>() {
            self.seen = self.seen.max(number);
        }
        if !revision.is_empty() {
            self.revisions.insert(kind, revision.to_owned());
        }
    }

    /// A watch ended when its time was over; from where it goes on.
    pub fn goes_on(&mut self, kind: Kind) -> String {
        self.failures = 0;
        self.revisions.get(&kind).cloned().unwrap_or_default()
    }

    /// A watch broke; when to begin another pass.
    pub fn broke(&mut self, kind: Kind, failure: &Failure, dice: u64) -> Duration {
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

    /// How it is.
    pub fn health(&self) -> Health {
        Health {
            reach: self.reach,
            revision: self.seen,
            objects: self.held.values().filter(|held| held.good.is_some()).count(),
            elsewhere: self.held.values().filter(|held| held.elsewhere).count(),
            invalid: self.invalid().map(|((kind, name), _)| format!("{}/{name}", kind.name())).collect(),
            error: self.error.clone(),
        }
    }

    /// What it says.
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
        if let Some(before) = self.rewound {
            let (name, now) = (&self.cluster.name, self.seen);
            let message = format!("cluster \"{name}\" went back from revision {before} to an older state, now {now}");
            let help = "it is followed; if nobody restored a backup, look at the cluster's etcd";
            findings.push(Finding::warning(Code::Cluster, &place, message).help(help));
        }
        Holding {
            heard: self.heard,
            objects: objects.collect(),
            hidden: hidden.collect(),
            findings,
            ..Holding::default()
        }
    }

    fn invalid(&self) -> impl Iterator<Item = (&(Kind, String), &Held)> {
        self.held.iter().filter(|(_, held)| !held.findings.is_empty())
    }

    fn put(&mut self, kind: Kind, item: Item) -> bool {
        let name = item.metadata.name.clone();
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
        let elsewhere = file.documents.policies.iter().any(|policy| !policy.nodes.matches(&self.node));
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
            Held { text: "".into(), good: None, findings: Vec::new(), elsewhere: true }
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
