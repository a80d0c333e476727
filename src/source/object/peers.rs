//! Digests of a cluster's nodes as objects: what a node has to know of the others, in some hundred objects instead of two for each
//! node. `nodewall controller` keeps them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::schema;
use crate::net::interface::Role;
use crate::net::node::{ClusterNodes, Node, NodeAddress, is_of_a_node};

/// The object that is there when all others are: without it, digests do not count.
pub const INDEX: &str = "index";

/// The annotation that says what is in a digest, so that who has it already need not be sent it: [`HostPeersSpec::fingerprint`].
pub const FINGERPRINT: &str = "nodewall.dev/fingerprint";

/// The key for addresses of which no role is known.
const ANY: &str = "node";

/// Some of the nodes of a cluster.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostPeers",
    plural = "hostpeers",
    shortname = "hpe",
    category = "nodewall",
    derive = "PartialEq",
    doc = "A digest of some of the cluster's nodes: labels, and addresses by role. `nodewall controller` keeps these, so that each node need not watch every Node and every HostState; nobody else should write them. The object \"index\" is there when all of them are.",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(default)]
pub struct HostPeersSpec {
    /// Sets of labels that nodes share.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub labels: Vec<BTreeMap<String, String>>,
    /// The nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub nodes: Vec<PeerNode>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PeerNode {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Which of the sets of labels it has, from 0.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1023))]
    pub shares: i64,
    /// Labels of its own, which go before those.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub own: BTreeMap<String, String>,
    /// Its addresses by the role of the interface that has them; those of its Node are under "node".
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16), schema_with = "schema::addresses_by_role")]
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl HostPeersSpec {
    /// The digest of some nodes.
    pub fn of<'a>(nodes: impl IntoIterator<Item = (&'a String, &'a Arc<Node>)>) -> Self {
        let mut spec = Self::default();
        let mut known: BTreeMap<&BTreeMap<String, String>, i64> = BTreeMap::new();
        for (name, node) in nodes {
            let shares = *known.entry(&*node.shared).or_insert_with(|| {
                spec.labels.push(BTreeMap::clone(&node.shared));
                i64::try_from(spec.labels.len() - 1).unwrap_or(i64::MAX)
            });
            let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            for NodeAddress { role, address } in &node.addresses {
                addresses.entry(role.map_or(ANY, Role::name).to_owned()).or_default().push(*address);
            }
            spec.nodes.push(PeerNode { name: name.clone(), shares, own: node.own.clone(), addresses });
        }
        spec
    }

    /// The same for the same content, and for no other: 32 hexadecimal digits.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn fingerprint(&self) -> Result<String, serde_json::Error> {
        let hash = Sha256::digest(serde_json::to_vec(self)?);
        Ok(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The nodes in it. Roles that are not known here are left out.
    pub fn nodes(&self) -> ClusterNodes {
        let shared: Vec<_> = self.labels.iter().map(|labels| Arc::new(labels.clone())).collect();
        let nodes = self.nodes.iter().map(|node| {
            let shared = usize::try_from(node.shares).ok().and_then(|index| shared.get(index)).cloned();
            let addresses = node.addresses.iter().filter_map(|(role, addresses)| {
                let role = if role == ANY { None } else { Some(*Role::ALL.iter().find(|known| known.name() == role)?) };
                Some(addresses.iter().map(move |address| NodeAddress { role, address: *address }))
            });
            let addresses = addresses.flatten().filter(|each| is_of_a_node(each.address)).collect();
            let (shared, own) = (shared.unwrap_or_default(), node.own.clone());
            (node.name.clone(), Arc::new(Node { shared, own, addresses }))
        });
        nodes.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_holds_what_it_was_made_of_and_labels_once() {
        let shared = Arc::new(BTreeMap::from([("pool".to_owned(), "training".to_owned())]));
        let node = |last: u8| Node {
            // Equal, though not the same.
            shared: Arc::new(BTreeMap::clone(&shared)),
            own: [("kubernetes.io/hostname".to_owned(), format!("n{last}"))].into(),
            addresses: [(None, 0), (Some(Role::Rail), 1), (Some(Role::Rail), 2)]
                .map(|(role, third)| NodeAddress { role, address: [10, 0, third, last].into() })
                .into(),
        };
        let nodes: ClusterNodes = (1..=3).map(|last| (format!("n{last}"), Arc::new(node(last)))).collect();
        let spec = HostPeersSpec::of(&nodes);
        assert_eq!(spec.labels.len(), 1);
        assert_eq!(
            serde_json::to_value(&spec.nodes[0]).unwrap(),
            json!({ "name": "n1", "shares": 0, "own": { "kubernetes.io/hostname": "n1" },
                    "addresses": { "node": ["10.0.0.1"], "rail": ["10.0.1.1", "10.0.2.1"] } })
        );
        assert_eq!(spec.nodes(), nodes);
        let read: HostPeersSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(read.fingerprint().unwrap(), spec.fingerprint().unwrap());
        assert_ne!(read.fingerprint().unwrap(), HostPeersSpec::default().fingerprint().unwrap());
    }

    #[test]
    fn what_is_not_known_here_is_left_out() {
        let spec: HostPeersSpec = serde_json::from_value(json!({
            "nodes": [{ "name": "a", "shares": 7, "addresses": { "quantum": ["10.0.0.1"], "rail": ["127.0.0.1", "10.0.0.2"] } }],
            "later": true,
        }))
        .unwrap();
        let nodes = spec.nodes();
        let addresses: Vec<String> =
            nodes["a"].addresses_of(Some(Role::Rail)).map(|address| address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.2"]);
        assert_eq!((nodes["a"].addresses.len(), nodes["a"].labels().len()), (1, 0));
    }
}
