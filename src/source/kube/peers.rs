//! Who the nodes of a cluster are, from Node and HostState, or from the digests of these in HostPeers. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::item::Item;
use super::resource::Resource;
use crate::net::interface::Role;
use crate::net::node::{ClusterNodes, Node, NodeAddress, is_of_a_node};
use crate::source::object::Kind;
use crate::source::object::peers::{FINGERPRINT, HostPeersSpec, INDEX};

/// The label that the kubelet gives each node, and no other node has.
const HOST_NAME: &str = "kubernetes.io/hostname";
/// More interfaces or addresses than this are not those of a node.
const MOST_ADDRESSES: usize = 1024;

/// What is known of the nodes, part by part.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Peers {
    /// Where their addresses may be; empty: anywhere.
    within: Vec<IpNet>,
    /// What their Nodes say.
    nodes: ClusterNodes,
    /// What their HostStates say.
    states: BTreeMap<String, BTreeSet<NodeAddress>>,
    /// The digests.
    digests: BTreeMap<String, Digest>,
    /// What that comes to.
    all: ClusterNodes,
    /// Labels that several have.
    shared: BTreeSet<Arc<BTreeMap<String, String>>>,
}

/// One of the digests.
#[derive(Clone, PartialEq, Debug, Default)]
struct Digest {
    /// What is in it, as its writer says.
    fingerprint: Option<String>,
    nodes: ClusterNodes,
}

impl Digest {
    fn of(item: Item) -> Self {
        // What is not understood says nothing.
        let spec = serde_json::from_value::<HostPeersSpec>(item.spec);
        let nodes = spec.map(|spec| spec.nodes()).unwrap_or_default();
        Self { fingerprint: item.metadata.annotations.get(FINGERPRINT).cloned(), nodes }
    }
}

impl Peers {
    /// What was known before, until the cluster says something.
    pub(super) fn new(within: Vec<IpNet>, before: &ClusterNodes) -> Self {
        let mut peers = Self { within, all: before.clone(), ..Self::default() };
        for (name, node) in before {
            let (plain, state) = node.addresses.iter().partition(|each| each.role.is_none());
            let (shared, own) = (Arc::clone(&node.shared), node.own.clone());
            peers.nodes.insert(name.clone(), Arc::new(Node { shared, own, addresses: plain }));
            peers.states.insert(name.clone(), state);
        }
        peers
    }

    /// The nodes.
    pub(super) fn all(&self) -> &ClusterNodes {
        &self.all
    }

    /// Whether digests say all that there is to say.
    pub(super) fn has_digests(&self) -> bool {
        self.digests.contains_key(INDEX)
    }

    /// The digests that are known, by name, with what is in each.
    pub(super) fn digests(&self) -> BTreeMap<String, String> {
        let known = |(name, digest): (&String, &Digest)| Some((name.clone(), digest.fingerprint.clone()?));
        self.digests.iter().filter_map(known).collect()
    }

    /// Every kind was listed, or those that are not here could not be; these digests are the `same` as before. What follows is worked
    /// out anew; whether the nodes are others than before.
    pub(super) fn listed(&mut self, lists: BTreeMap<Resource, Vec<Item>>, same: &BTreeSet<String>) -> bool {
        for (resource, items) in lists {
            let parts = items.into_iter().map(|item| (item.metadata.name.clone(), item));
            match resource {
                Resource::Object(Kind::HostPeers) => {
                    self.digests.retain(|name, _| same.contains(name));
                    self.digests.extend(parts.map(|(name, item)| (name, Digest::of(item))));
                }
                Resource::Node => {
                    let parts: Vec<_> = parts.map(|(name, item)| (name, self.node(item))).collect();
                    self.nodes = parts.into_iter().collect();
                }
                Resource::Object(Kind::HostState) => {
                    self.states = parts.map(|(name, item)| (name, state(item))).collect()
                }
                Resource::Object(_) | Resource::Calico(..) => {}
            }
        }
        let before = std::mem::take(&mut self.all);
        if self.has_digests() {
            // What they are a digest of is not followed any more.
            (self.nodes, self.states) = Default::default();
            let digests = std::mem::take(&mut self.digests);
            digests.values().flat_map(|digest| &digest.nodes).for_each(|(name, node)| self.keep(name, node));
            self.digests = digests;
        } else {
            let nodes = std::mem::take(&mut self.nodes);
            nodes.iter().for_each(|(name, node)| self.join(name, node));
            self.nodes = nodes;
        }
        self.shared.retain(|labels| Arc::strong_count(labels) > 1);
        self.all != before
    }

    /// An object was made or changed; whether the nodes are others than before.
    pub(super) fn stored(&mut self, resource: Resource, item: Item) -> bool {
        let name = item.metadata.name.clone();
        match resource {
            Resource::Object(Kind::HostPeers) => {
                let digest = Digest::of(item);
                let newer = digest.nodes.clone();
                let older = self.digests.insert(name, digest).unwrap_or_default().nodes;
                if !self.has_digests() {
                    return false;
                }
                let gone = older.keys().filter(|name| !newer.contains_key(*name));
                let gone = gone.filter(|name| self.leaves(name)).count() > 0;
                newer.iter().fold(gone, |changed, (name, node)| {
                    let before = self.all.get(name).cloned();
                    self.keep(name, node);
                    changed | (self.all.get(name) != before.as_ref())
                })
            }
            Resource::Node => {
                let node = self.node(item);
                self.nodes.insert(name.clone(), node);
                self.refresh(&name)
            }
            Resource::Object(Kind::HostState) => {
                self.states.insert(name.clone(), state(item));
                self.refresh(&name)
            }
            Resource::Object(_) | Resource::Calico(..) => false,
        }
    }

    /// An object was deleted; whether the nodes are others than before.
    pub(super) fn deleted(&mut self, resource: Resource, name: &str) -> bool {
        match resource {
            Resource::Object(Kind::HostPeers) => {
                let had = self.has_digests();
                let nodes = self.digests.remove(name).unwrap_or_default().nodes;
                had && nodes.keys().filter(|name| self.leaves(name)).count() > 0
            }
            Resource::Node => {
                self.nodes.remove(name);
                self.refresh(name)
            }
            Resource::Object(Kind::HostState) => {
                self.states.remove(name);
                self.refresh(name)
            }
            Resource::Object(_) | Resource::Calico(..) => false,
        }
    }

    /// A node is no longer in a digest, nor in all, unless it is in another one; whether it was.
    fn leaves(&mut self, name: &str) -> bool {
        let elsewhere = self.digests.values().any(|digest| digest.nodes.contains_key(name));
        !elsewhere && self.all.remove(name).is_some()
    }

    /// Works out one node anew; whether it is another than before.
    fn refresh(&mut self, name: &str) -> bool {
        if self.has_digests() {
            return false;
        }
        let before = self.all.remove(name);
        if let Some(node) = self.nodes.get(name).cloned() {
            self.join(name, &node);
        }
        self.all.get(name) != before.as_ref()
    }

    /// A node is what its Node and its HostState say. A state without a Node is that of no node of the cluster.
    fn join(&mut self, name: &str, node: &Arc<Node>) {
        match self.states.get(name).filter(|state| !state.is_empty()) {
            None => self.keep(name, node),
            Some(state) => {
                // What has a role is not there once more without one.
                let known: BTreeSet<IpAddr> = state.iter().map(|each| each.address).collect();
                let plain = node.addresses.iter().filter(|each| !known.contains(&each.address));
                let addresses = plain.chain(state).copied().collect();
                let joined = Node { shared: Arc::clone(&node.shared), own: node.own.clone(), addresses };
                self.keep(name, &Arc::new(joined));
            }
        }
    }

    fn keep(&mut self, name: &str, node: &Arc<Node>) {
        let counts =
            |each: &NodeAddress| self.within.is_empty() || self.within.iter().any(|net| net.contains(&each.address));
        let node = if node.addresses.iter().all(counts) {
            Arc::clone(node)
        } else {
            let addresses = node.addresses.iter().copied().filter(counts).collect();
            Arc::new(Node { shared: Arc::clone(&node.shared), own: node.own.clone(), addresses })
        };
        self.all.insert(name.to_owned(), node);
    }

    fn node(&mut self, item: Item) -> Arc<Node> {
        let mut labels = item.metadata.labels;
        let own = labels.remove_entry(HOST_NAME).into_iter().collect();
        let labels = Arc::new(labels);
        let shared = match self.shared.get(&labels) {
            Some(shared) => Arc::clone(shared),
            None => {
                self.shared.insert(Arc::clone(&labels));
                labels
            }
        };
        let counts = |each: &&super::item::NodeStatusAddress| matches!(each.kind.as_str(), "InternalIP" | "ExternalIP");
        let addresses = item.status.addresses.iter().take(MOST_ADDRESSES).filter(counts);
        let addresses = addresses.filter_map(|each| each.address.parse().ok()).filter(|address| is_of_a_node(*address));
        let addresses = addresses.map(|address| NodeAddress { role: None, address }).collect();
        Arc::new(Node { shared, own, addresses })
    }
}

fn state(item: Item) -> BTreeSet<NodeAddress> {
    let addresses = item.status.interfaces.iter().flat_map(|interface| {
        let role = Role::ALL.iter().copied().find(|role| role.name() == interface.role);
        interface.addresses.iter().filter_map(move |written| {
            let address = written.split('/').next().unwrap_or(written).parse().ok()?;
            Some(NodeAddress { role: Some(role?), address })
        })
    });
    addresses.filter(|each| is_of_a_node(each.address)).take(MOST_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value as Json, json};

    use super::*;

    fn item(object: Json) -> Item {
        serde_json::from_value(object).unwrap()
    }

    fn node(name: &str, pool: &str, address: &str) -> Item {
        item(json!({
            "metadata": { "name": name, "labels": { "pool": pool, HOST_NAME: name },
                          "managedFields": [{ "manager": "kubelet" }] },
            "spec": { "podCIDR": "10.244.1.0/24" },
            "status": { "addresses": [{ "type": "InternalIP", "address": address },
                                      { "type": "Hostname", "address": name }],
                        "images": [{ "names": ["large"] }] },
        }))
    }

    fn state(name: &str, rail: &str) -> Item {
        item(json!({
            "metadata": { "name": name },
            "status": { "interfaces": [
                { "name": "rail0", "role": "rail", "addresses": [format!("{rail}/24"), "fe80::1/64"] },
                { "name": "later", "role": "quantum", "addresses": ["10.9.9.9/24"] },
            ] },
        }))
    }

    fn addresses(peers: &Peers, name: &str) -> Vec<String> {
        let written = |each: &NodeAddress| format!("{} {}", each.role.map_or("-", Role::name), each.address);
        peers.all().get(name).map(|node| node.addresses.iter().map(written).collect()).unwrap_or_default()
    }

    const STATE: Resource = Resource::Object(Kind::HostState);
    const PEERS: Resource = Resource::Object(Kind::HostPeers);

    #[test]
    fn a_node_is_what_its_node_and_its_state_say() {
        let mut peers = Peers::default();
        assert!(peers.listed(
            [(Resource::Node, vec![node("a", "x", "10.0.0.1"), node("b", "x", "10.0.0.2")])].into(),
            &BTreeSet::new()
        ));
        assert!(Arc::ptr_eq(&peers.all()["a"].shared, &peers.all()["b"].shared), "what is the same is there once");
        assert_eq!(peers.all()["a"].label(HOST_NAME), Some("a"));
        assert!(peers.stored(STATE, state("a", "10.1.0.1")));
        assert_eq!(addresses(&peers, "a"), ["- 10.0.0.1", "rail 10.1.0.1"]);
        // The same again, and whatever else changes in it.
        assert!(
            !peers.stored(STATE, state("a", "10.1.0.1")) && !peers.stored(Resource::Node, node("a", "x", "10.0.0.1"))
        );
        // A role is told by the state.
        assert!(peers.stored(STATE, state("a", "10.0.0.1")));
        assert_eq!(addresses(&peers, "a"), ["rail 10.0.0.1"]);
        assert!(peers.deleted(STATE, "a"));
        assert_eq!(addresses(&peers, "a"), ["- 10.0.0.1"]);
        assert!(!peers.stored(STATE, state("stranger", "10.7.0.1")), "nobody's state");
        assert!(peers.deleted(Resource::Node, "a") && !peers.deleted(Resource::Node, "a"));
        assert_eq!(peers.all().len(), 1);
    }

    #[test]
    fn addresses_outside_of_what_a_cluster_may_say_do_not_count() {
        let mut peers = Peers::new(vec!["10.0.0.0/15".parse().unwrap()], &ClusterNodes::new());
        peers.listed(
            [(Resource::Node, vec![node("a", "x", "10.0.0.1")]), (STATE, vec![state("a", "192.0.2.1")])].into(),
            &BTreeSet::new(),
        );
        assert_eq!(addresses(&peers, "a"), ["- 10.0.0.1"]);
        assert!(peers.stored(STATE, state("a", "10.1.0.9")));
        assert_eq!(addresses(&peers, "a"), ["- 10.0.0.1", "rail 10.1.0.9"]);
    }

    #[test]
    fn digests_count_when_all_are_there_and_are_followed_one_by_one() {
        let mut direct = Peers::default();
        let nodes = vec![node("a", "x", "10.0.0.1"), node("b", "x", "10.0.0.2"), node("c", "y", "10.0.0.3")];
        direct.listed([(Resource::Node, nodes), (STATE, vec![state("a", "10.1.0.1")])].into(), &BTreeSet::new());
        let digest = |name: &str, nodes: &[&str]| {
            let of = direct.all().iter().filter(|(name, _)| nodes.contains(&name.as_str()));
            item(json!({ "metadata": { "name": name }, "spec": HostPeersSpec::of(of) }))
        };
        let index = || item(json!({ "metadata": { "name": INDEX }, "spec": {} }));
        let mut peers = Peers::default();
        assert!(!peers.listed([(PEERS, vec![digest("0", &["a"])])].into(), &BTreeSet::new()) && !peers.has_digests());
        assert!(
            peers.listed(
                [(PEERS, vec![digest("0", &["a", "b"]), digest("1", &["c"]), index()])].into(),
                &BTreeSet::new()
            )
        );
        assert!(peers.has_digests());
        assert_eq!(peers.all(), direct.all());
        assert!(!peers.stored(PEERS, digest("0", &["a", "b"])));
        assert!(peers.stored(PEERS, digest("0", &["b"])));
        assert_eq!(peers.all().keys().collect::<Vec<_>>(), ["b", "c"]);
        // Nodes that moved from one digest to another are there in between.
        assert!(!peers.stored(PEERS, digest("1", &["b", "c"])));
        assert!(peers.deleted(PEERS, "1") && !peers.deleted(PEERS, "1"));
        assert_eq!(peers.all().keys().collect::<Vec<_>>(), ["b"]);
        // What is the same need not be sent again.
        let mut dressed = digest("0", &["b"]);
        dressed.metadata.annotations.insert(FINGERPRINT.to_owned(), "f".to_owned());
        peers.stored(PEERS, dressed);
        assert_eq!(peers.digests(), [("0".to_owned(), "f".to_owned())].into());
        let same = ["0".to_owned(), INDEX.to_owned()].into();
        assert!(!peers.listed([(PEERS, vec![])].into(), &same) && peers.has_digests());
        // Without the index, the Nodes themselves count again.
        peers.deleted(PEERS, INDEX);
        assert!(!peers.has_digests());
        assert!(
            peers
                .listed([(PEERS, vec![]), (Resource::Node, vec![node("c", "y", "10.0.0.3")])].into(), &BTreeSet::new())
        );
        assert_eq!(peers.all().keys().collect::<Vec<_>>(), ["c"]);
    }
}
