//! Sorts the nodes of a fleet into groups of the same meaning, and finds what is amiss.

use std::collections::{BTreeMap, BTreeSet};

use super::api::{Api, peers};
use super::difference::{Behind, Difference, behind};
use super::packets::{self, Compared};
use super::{Condition, Member, Members, Report, State, names};

/// More groups than these are not compared packet by packet: where so many differ, something else is wrong.
const MOST_COMPARED: usize = 16;

/// How it is with a fleet.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Survey {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them are in each state.
    pub states: BTreeMap<State, usize>,
    /// Those that say what they have in force, the largest group first.
    pub groups: Vec<Group>,
    /// How many kinds of nodes policies tell apart, among those nodes.
    pub pools: usize,
    /// How many nodes have another policy than most nodes that are to have the same.
    pub differ: usize,
    /// How many nodes have something else in force than the API says for them.
    pub behind: usize,
    /// How many nodes have each version of nodewall.
    pub versions: BTreeMap<String, usize>,
    /// What there is to say about single nodes, the worst first.
    pub troubles: Vec<Trouble>,
}

/// Nodes that are meant to have the same policies, and on which these mean the same.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// Their names, sorted.
    pub nodes: Vec<String>,
    /// The hash of what is in force; `None`: nothing is, or it is not known.
    pub hash: Option<String>,
    /// "enforce" or "audit".
    pub mode: Option<String>,
    /// The versions of nodewall.
    pub versions: BTreeSet<String>,
    /// Which nodes are meant to have the same: the number of the group that stands for them, which is the largest.
    pub reference: usize,
    /// How it differs from that one.
    pub difference: Option<Difference>,
    /// What that means to packets.
    pub packets: Option<Compared>,
    /// What the API says for these nodes and they do not have.
    pub behind: Vec<Behind>,
    /// Policies that are in no object of the API.
    pub local: Vec<String>,
}

/// Something about some nodes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Trouble {
    /// Which kind.
    pub kind: TroubleKind,
    /// What it is, for people.
    pub what: String,
    /// Since when (RFC 3339).
    pub since: Option<String>,
    /// When the nodes wrote that (RFC 3339).
    pub written: Option<String>,
    /// On which nodes, sorted.
    pub nodes: Vec<String>,
}

/// The kinds of troubles, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TroubleKind {
    /// There is no HostState.
    Without,
    /// No policy is in force.
    NotReady,
    /// The kernel has something else.
    OutOfSync,
    /// Not the newest policy is in force, or something is away.
    Degraded,
    /// What is in force goes unless it is confirmed.
    Unconfirmed,
    /// Others changed our table.
    Drift,
    /// There is a HostState and no Node.
    NoNode,
}

impl TroubleKind {
    /// The word for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Without => "without-nodewall",
            Self::NotReady => "not-ready",
            Self::OutOfSync => "out-of-sync",
            Self::Degraded => "degraded",
            Self::Unconfirmed => "unconfirmed",
            Self::Drift => "drift",
            Self::NoNode => "no-node",
        }
    }
}

impl Survey {
    /// Looks at these of a fleet, in which policies may name the others, too.
    pub fn of(members: &Members, fleet: &Members, api: &Api) -> Self {
        let mut survey = Self::default();
        let mut by_meaning: BTreeMap<(Vec<bool>, Option<&str>), Vec<&String>> = BTreeMap::new();
        // What is left of a node that is gone is none.
        for (name, member) in members.iter().filter(|(_, member)| member.labels.is_some()) {
            survey.nodes += 1;
            *survey.states.entry(member.state()).or_default() += 1;
            let Some(report) = &member.report else { continue };
            by_meaning.entry((api.pool(name, member), report.hash.as_deref())).or_default().push(name);
            let version = report.version.clone().unwrap_or_else(|| "unknown".to_owned());
            *survey.versions.entry(version).or_default() += 1;
        }
        let mut sorted: Vec<(Vec<bool>, Vec<String>)> = by_meaning
            .into_iter()
            .map(|((pool, _), nodes)| {
                let mut nodes: Vec<String> = nodes.into_iter().cloned().collect();
                nodes.sort_by(|one, other| names::compare(one, other));
                (pool, nodes)
            })
            .collect();
        // One that has nothing in force stands for no others that do.
        let hash = |nodes: &[String]| first(members, nodes).and_then(|(_, _, report)| report.hash.as_deref());
        sorted.sort_by(|(_, one), (_, other)| {
            let key = |nodes: &[String]| (std::cmp::Reverse(nodes.len()), hash(nodes).is_none());
            key(one).cmp(&key(other)).then_with(|| names::compare(&one[0], &other[0]))
        });
        let mut references: BTreeMap<Vec<bool>, usize> = BTreeMap::new();
        for with_policy in [true, false] {
            for (number, (pool, nodes)) in sorted.iter().enumerate() {
                if hash(nodes).is_some() == with_policy {
                    references.entry(pool.clone()).or_insert(number);
                }
            }
        }
        survey.pools = references.len();
        let mut nodes_as_peers = None;
        let mut compared = 0;
        for (number, (pool, nodes)) in sorted.iter().enumerate() {
            let reference = references.get(pool).copied().unwrap_or(number);
            let Some((name, member, report)) = first(members, nodes) else { continue };
            let mut group = Group::new(nodes, reference, (name, member, report), members, api);
            let stands_for = sorted.get(reference).and_then(|(_, others)| first(members, others));
            if let Some((_, _, other)) = stands_for.filter(|_| reference != number) {
                let difference = Difference::between(report, other, api);
                if report.hash.is_some() && other.hash.is_some() && compared < MOST_COMPARED {
                    compared += 1;
                    let peers = nodes_as_peers.get_or_insert_with(|| peers(fleet).into());
                    let example = nodes.iter().filter_map(|name| Some((name, members.get(name)?)));
                    let example =
                        example.max_by_key(|(name, member)| (known_interfaces(member), std::cmp::Reverse(*name)));
                    group.packets =
                        example.map(|example| packets::compare(&difference, (report, other), example, peers, api));
                }
                group.difference = Some(difference);
                // Of the others it is not known.
                survey.differ += if report.hash.is_some() { nodes.len() } else { 0 };
            } else if !group.behind.is_empty() {
                survey.behind += nodes.len();
            }
            survey.groups.push(group);
        }
        survey.troubles = troubles(members);
        survey
    }

    /// Whether everything is in force and as it is meant.
    pub fn is_well(&self) -> bool {
        let in_force = self.states.get(&State::InForce).copied().unwrap_or(0);
        let alike = self.groups.iter().all(|group| group.difference.is_none());
        in_force == self.nodes && alike && self.behind == 0
    }
}

/// What the first of the nodes of a group says, for all of them.
fn first<'a>(members: &'a Members, nodes: &[String]) -> Option<(&'a String, &'a Member, &'a Report)> {
    let (name, member) = members.get_key_value(nodes.first()?)?;
    Some((name, member, member.report.as_ref()?))
}

fn known_interfaces(member: &Member) -> usize {
    member.report.as_ref().map_or(0, |report| report.interfaces.len())
}

impl Group {
    fn new(
        nodes: &[String],
        reference: usize,
        (name, member, report): (&String, &Member, &Report),
        members: &Members,
        api: &Api,
    ) -> Self {
        let reports = || nodes.iter().filter_map(|name| members.get(name)?.report.as_ref());
        let in_no_object = |name: &&String| api.known && api.hash(name).is_none();
        let behind = match &report.hash {
            Some(_) => behind(report, &api.meant_for(name, member), api),
            None => Vec::new(),
        };
        Self {
            nodes: nodes.to_vec(),
            hash: report.hash.clone(),
            mode: report.mode.clone(),
            versions: reports().filter_map(|report| report.version.clone()).collect(),
            reference,
            difference: None,
            packets: None,
            behind,
            local: report.policies.keys().filter(in_no_object).cloned().collect(),
        }
    }
}

/// What there is to say about single nodes; the same about several is said once.
fn troubles(members: &Members) -> Vec<Trouble> {
    let mut found: BTreeMap<Trouble, Vec<String>> = BTreeMap::new();
    for (name, member) in members {
        let mut add = |kind: TroubleKind, what: String, since: Option<&str>, written: Option<&String>| {
            let since = since.filter(|since| !since.is_empty()).map(str::to_owned);
            let trouble = Trouble { kind, what, since, written: written.cloned(), nodes: Vec::new() };
            found.entry(trouble).or_default().push(name.clone());
        };
        if member.labels.is_none() {
            let what = "there is a HostState and no Node of this name: a node that is gone";
            let written = member.report.as_ref().and_then(|report| report.written.as_ref());
            add(TroubleKind::NoNode, what.to_owned(), None, written);
            continue;
        }
        let Some(report) = &member.report else {
            let what = "there is no HostState: nodewall does not run there, or does not report to this cluster";
            add(TroubleKind::Without, what.to_owned(), None, None);
            continue;
        };
        let written = report.written.as_ref();
        let words = |word: &str, condition: &Condition| {
            format!("{word}: {}: {}", condition.reason, condition.message.trim_end_matches('.'))
        };
        let since = |condition: &Condition| condition.since.clone();
        match report.condition("Ready") {
            Some(ready) if ready.status == "True" => {}
            Some(ready) => add(TroubleKind::NotReady, words("not ready", ready), Some(&since(ready)), written),
            None => add(TroubleKind::NotReady, "not ready: it does not say what is in force".to_owned(), None, written),
        }
        let degraded = report.condition("Degraded").filter(|condition| condition.status == "True");
        let in_sync = report.condition("InSync").filter(|condition| condition.status == "False");
        if let Some(sync) = in_sync.filter(|sync| degraded.is_none_or(|degraded| degraded.reason != sync.reason)) {
            add(TroubleKind::OutOfSync, words("not in sync", sync), Some(&since(sync)), written);
        }
        if let Some(degraded) = degraded {
            add(TroubleKind::Degraded, words("degraded", degraded), Some(&since(degraded)), written);
        }
        if let Some(trial) = report.condition("Unconfirmed").filter(|condition| condition.status == "True") {
            let what = format!("unconfirmed: {}", trial.message);
            add(TroubleKind::Unconfirmed, what, Some(&since(trial)), written);
        }
        if report.drifts > 0 {
            let times = if report.drifts == 1 { "once".to_owned() } else { format!("{} times", report.drifts) };
            let what = format!("drift: others changed its table {times}, and it was repaired");
            add(TroubleKind::Drift, what, report.drifted.as_deref(), written);
        }
    }
    let trouble = |(trouble, mut nodes): (Trouble, Vec<String>)| {
        nodes.sort_by(|one, other| names::compare(one, other));
        Trouble { nodes, ..trouble }
    };
    let mut troubles: Vec<Trouble> = found.into_iter().map(trouble).collect();
    troubles
        .sort_by(|one, other| one.kind.cmp(&other.kind).then_with(|| names::compare(&one.nodes[0], &other.nodes[0])));
    troubles
}
