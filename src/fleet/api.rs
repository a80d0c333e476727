//! What the documents of an API mean, and for which nodes they are.

use std::collections::{BTreeMap, BTreeSet};

use super::{Member, Members};
use crate::net::node::{ClusterNodes, Node, NodeAddress, is_of_a_node};
use crate::policy::guards;
use crate::policy::meaning::{Meaning, meaning};
use crate::policy::model::{HostPolicy, Policy};
use crate::policy::selector::Selector;
use crate::policy::settings::NodeSettings;

/// The documents of an API.
#[derive(Clone, PartialEq, Debug)]
pub struct Api {
    /// Whether they could be read.
    pub known: bool,
    /// They, as this cluster's, with the guards.
    pub policy: Policy,
    /// The settings that nodes are taken to have.
    pub settings: NodeSettings,
    /// What those settings mean.
    pub settings_mean: Meaning,
    /// What nodes are taken to call this cluster.
    pub cluster: String,
    /// The hashes of each policy by "tier/name": one for each name that nodes may have for this cluster.
    hashes: BTreeMap<String, BTreeSet<String>>,
    /// What is asked of labels of nodes.
    selectors: Vec<Selector>,
}

/// The name of a policy in a HostState.
fn called(policy: &HostPolicy) -> String {
    format!("{}/{}", policy.tier, policy.name)
}

impl Api {
    /// The documents with guards, which nodes call those of one of these clusters: the first name is used where one is needed. What is
    /// over at `now` (seconds since 1970-01-01 UTC) is left out.
    pub fn new(known: bool, mut policy: Policy, settings: NodeSettings, clusters: &[String], now: u64) -> Self {
        policy.policies.retain(|policy| policy.expires.is_none_or(|expires| expires > now));
        let mut hashes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for cluster in clusters.iter().rev() {
            write_in(&mut policy, cluster);
            let here = policy.policies.iter().map(|policy| (policy.tier.as_str(), policy.name.as_str()));
            for (name, hash) in meaning(&policy, &settings, here).policies {
                hashes.entry(name).or_default().insert(hash);
            }
        }
        let mut selectors: Vec<Selector> = Vec::new();
        for policy in &policy.policies {
            if policy.nodes != Selector::All && !selectors.contains(&policy.nodes) {
                selectors.push(policy.nodes.clone());
            }
        }
        let settings_mean = meaning(&policy, &settings, std::iter::empty());
        let cluster = clusters.first().cloned().unwrap_or_default();
        Self { known, policy, settings, settings_mean, cluster, hashes, selectors }
    }

    /// Which of the things that policies ask of nodes hold for this one: nodes with the same are meant to have the same policies.
    pub fn pool(&self, name: &str, member: &Member) -> Vec<bool> {
        let labels = member.labels_called(name);
        self.selectors.iter().map(|selector| selector.matches(&labels)).collect()
    }

    /// The policies that are for this node, by "tier/name"; guards are none of the API's.
    pub fn meant_for(&self, name: &str, member: &Member) -> BTreeSet<String> {
        let labels = member.labels_called(name);
        let policies = self.policy.policies.iter().filter(|policy| !guards::is_built_in(&policy.place));
        policies.filter(|policy| policy.nodes.matches(&labels)).map(called).collect()
    }

    /// The hash of a policy; `None` where the API has none of this name.
    pub fn hash(&self, called: &str) -> Option<&str> {
        self.hashes.get(called)?.first().map(String::as_str)
    }

    /// Whether a policy of this name and hash is the API's.
    pub fn is(&self, called: &str, hash: &str) -> bool {
        self.hashes.get(called).is_some_and(|known| known.contains(hash))
    }

    /// The documents with these policies only, on whatever node.
    pub(super) fn only(&self, names: &BTreeSet<String>) -> Policy {
        let mut policy = self.policy.clone();
        policy.policies.retain(|policy| names.contains(&called(policy)));
        for policy in &mut policy.policies {
            policy.nodes = Selector::All;
        }
        policy
    }
}

fn write_in(policy: &mut Policy, cluster: &str) {
    let directions = policy.policies.iter_mut().flat_map(|policy| [&mut policy.ingress, &mut policy.egress]);
    for rule in directions.flatten().flatten() {
        [&mut rule.from, &mut rule.to].into_iter().flatten().for_each(|entity| entity.written_in(cluster));
    }
}

/// The nodes as peers of each other.
pub fn peers(members: &Members) -> ClusterNodes {
    let node = |(name, member): (&String, &Member)| {
        let plain = member.addresses.iter().map(|address| NodeAddress { role: None, address: *address });
        let interfaces = member.report.iter().flat_map(|report| &report.interfaces);
        let with_role = interfaces.flat_map(|interface| {
            let role = Some(interface.role);
            interface.addresses.iter().map(move |net| NodeAddress { role, address: net.addr() })
        });
        let addresses = plain.chain(with_role).filter(|each| is_of_a_node(each.address)).collect();
        let own = member.labels.clone()?;
        Some((name.clone(), Node { own, addresses, ..Node::default() }.into()))
    };
    members.iter().filter_map(node).collect()
}
