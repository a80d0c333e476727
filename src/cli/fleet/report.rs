//! `nodewall fleet status --json`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fleet::api::Api;
use crate::fleet::difference::{Behind, Pair, PolicyDifference};
use crate::fleet::survey::{Group, Survey, Trouble};
use crate::fleet::{State, words};
use crate::net::interface::Direction;

/// The version of this record: keys may be added within a version; none goes or changes its meaning.
const VERSION: u32 = 1;

#[derive(Serialize)]
pub(super) struct Record {
    version: u32,
    /// Whether everything is in force and as it is meant.
    well: bool,
    /// The same in one line.
    summary: String,
    nodes: usize,
    in_force: usize,
    degraded: usize,
    not_ready: usize,
    without_nodewall: usize,
    /// How many nodes differ from most of those that are meant to have the same policies.
    differ: usize,
    /// How many more have something else in force than the API says for them.
    behind: usize,
    /// How many kinds of nodes policies tell apart.
    pools: usize,
    versions: BTreeMap<String, usize>,
    groups: Vec<GroupRecord>,
    troubles: Vec<TroubleRecord>,
    /// What could not be read.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct GroupRecord {
    number: usize,
    nodes: Vec<String>,
    hash: Option<String>,
    mode: Option<String>,
    versions: Vec<String>,
    /// The number of the group that it is compared with: the largest of nodes that are meant to have the same policies.
    reference: usize,
    difference: Option<DifferenceRecord>,
    behind: Vec<BehindRecord>,
    /// Policies in force that are in no object of the API.
    local: Vec<String>,
}

#[derive(Serialize)]
struct DifferenceRecord {
    /// In words.
    lines: Vec<String>,
    mode: Option<PairRecord>,
    defaults: Option<PairRecord>,
    failsafe: Option<PairRecord>,
    policies: Vec<PolicyRecord>,
    /// Policies that are not told apart, as a HostState has no room for them.
    untold: u64,
    /// `null`: packets were not compared.
    packets: Option<PacketsRecord>,
}

#[derive(Serialize)]
struct PairRecord {
    here: Option<String>,
    there: Option<String>,
}

#[derive(Serialize)]
struct PolicyRecord {
    name: String,
    /// "lacking", "additional" or "other".
    change: &'static str,
    here: Option<String>,
    there: Option<String>,
    api: Option<String>,
}

#[derive(Serialize)]
struct PacketsRecord {
    /// The node whose interfaces and addresses were taken.
    node: String,
    contrasts: Vec<ContrastRecord>,
    /// Policies of which only hashes are known.
    unknown: Vec<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct ContrastRecord {
    /// "ingress" or "egress".
    direction: &'static str,
    peers: Vec<String>,
    what: String,
    interfaces: Vec<String>,
    /// Whether these nodes let it through; those of the other group then do not.
    allowed_here: bool,
    text: String,
}

#[derive(Serialize)]
struct BehindRecord {
    name: String,
    here: Option<String>,
    api: String,
}

#[derive(Serialize)]
struct TroubleRecord {
    /// "without-nodewall", "not-ready", "out-of-sync", "degraded", "unconfirmed", "drift" or "no-node".
    kind: &'static str,
    what: String,
    since: Option<String>,
    /// When the HostState was written the last time.
    written: Option<String>,
    nodes: Vec<String>,
}

impl Record {
    pub(super) fn of(survey: &Survey, api: &Api, notes: Vec<String>) -> Self {
        let state = |state: State| survey.states.get(&state).copied().unwrap_or(0);
        Self {
            version: VERSION,
            well: survey.is_well(),
            summary: words::whole(survey),
            nodes: survey.nodes,
            in_force: state(State::InForce),
            degraded: state(State::Degraded),
            not_ready: state(State::NotReady),
            without_nodewall: state(State::Without),
            differ: survey.differ,
            behind: survey.behind,
            pools: survey.pools,
            versions: survey.versions.clone(),
            groups: (1..).zip(&survey.groups).map(|(number, group)| GroupRecord::of(number, group, api)).collect(),
            troubles: survey.troubles.iter().map(TroubleRecord::of).collect(),
            notes,
        }
    }
}

impl GroupRecord {
    fn of(number: usize, group: &Group, api: &Api) -> Self {
        Self {
            number,
            nodes: group.nodes.clone(),
            hash: group.hash.clone(),
            mode: group.mode.clone(),
            versions: group.versions.iter().cloned().collect(),
            reference: group.reference + 1,
            difference: DifferenceRecord::of(group, api),
            behind: group.behind.iter().map(BehindRecord::of).collect(),
            local: group.local.clone(),
        }
    }
}

impl DifferenceRecord {
    fn of(group: &Group, api: &Api) -> Option<Self> {
        let difference = group.difference.as_ref()?;
        let pair = |pair: &Option<Pair>| pair.clone().map(|(here, there)| PairRecord { here, there });
        let packets = group.packets.as_ref().map(|compared| PacketsRecord {
            node: compared.node.clone(),
            contrasts: compared
                .contrasts
                .iter()
                .map(|contrast| ContrastRecord {
                    direction: match contrast.direction {
                        Direction::Ingress => "ingress",
                        Direction::Egress => "egress",
                    },
                    peers: contrast.peers.iter().map(ToString::to_string).collect(),
                    what: words::traffic(&contrast.what),
                    interfaces: contrast.zones.clone(),
                    allowed_here: !contrast.first_allows,
                    text: words::contrast(contrast, group.reference, api),
                })
                .collect(),
            unknown: compared.unknown.clone(),
            notes: compared.notes.clone(),
        });
        Some(Self {
            lines: words::difference(group, api),
            mode: pair(&difference.mode),
            defaults: pair(&difference.defaults),
            failsafe: pair(&difference.failsafe),
            policies: difference.policies.iter().map(PolicyRecord::of).collect(),
            untold: difference.untold,
            packets,
        })
    }
}

impl PolicyRecord {
    fn of(policy: &PolicyDifference) -> Self {
        let PolicyDifference { name, here, there, api, is_apis: _ } = policy.clone();
        let change = match (&here, &there) {
            (None, _) => "lacking",
            (_, None) => "additional",
            _ => "other",
        };
        Self { name, change, here, there, api }
    }
}

impl BehindRecord {
    fn of(behind: &Behind) -> Self {
        let Behind { name, here, api } = behind.clone();
        Self { name, here, api }
    }
}

impl TroubleRecord {
    fn of(trouble: &Trouble) -> Self {
        let Trouble { kind, what, since, written, nodes } = trouble.clone();
        Self { kind: kind.name(), what, since, written, nodes }
    }
}
