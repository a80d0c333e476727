//! `nodes` in `from` and `to`: addresses of the nodes of clusters (`policy.md` section 2).

use super::selector::{Labelled, Selector};
use crate::net::addr::AddrSet;
use crate::net::interface::Role;
use crate::net::node::{Node, Nodes};

/// The label that is the name of a node.
const NAME: &str = "name";
/// The label that is the name of its cluster.
const CLUSTER: &str = "cluster";

/// Which nodes, and which of their addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodePeers {
    /// A selector over their labels, of which `name` and `cluster` are what they are called and where.
    pub selector: Selector,
    /// Only addresses on interfaces of this role.
    pub role: Option<Role>,
    /// The cluster in which this was written. One that says who its nodes are means its own.
    pub cluster: Option<String>,
}

impl NodePeers {
    /// The addresses.
    pub fn addresses(&self, nodes: &Nodes) -> AddrSet {
        self.clusters(nodes)
            .flat_map(|(cluster, nodes)| nodes.iter().map(move |(name, node)| Called { cluster, name, node }))
            .filter(|called| self.selector.matches(called))
            .flat_map(|called| called.node.addresses_of(self.role))
            .collect()
    }

    /// The clusters whose nodes are meant.
    fn clusters<'a>(
        &'a self,
        nodes: &'a Nodes,
    ) -> impl Iterator<Item = (&'a String, &'a std::sync::Arc<crate::net::node::ClusterNodes>)> {
        let own = self.cluster.as_ref().filter(|cluster| nodes.contains_key(*cluster));
        nodes.iter().filter(move |(cluster, _)| own.is_none_or(|own| own == *cluster))
    }
}

/// A node with what it is called.
struct Called<'a> {
    cluster: &'a String,
    name: &'a String,
    node: &'a Node,
}

impl Labelled for Called<'_> {
    fn label(&self, key: &str) -> Option<&str> {
        match key {
            // A node chooses its labels, but not who it is.
            NAME => Some(self.name),
            CLUSTER => Some(self.cluster),
            _ => self.node.label(key),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::net::node::{ClusterNodes, NodeAddress};

    fn cluster(pools: &[(&str, &str, u8)]) -> Arc<ClusterNodes> {
        let node = |(name, pool, last): &(&str, &str, u8)| {
            let address = |role, third| NodeAddress { role, address: [10, 0, third, *last].into() };
            let node = Node {
                shared: Arc::new([("pool".to_owned(), (*pool).to_owned())].into()),
                own: [("cluster".to_owned(), "training".to_owned())].into(),
                addresses: [address(None, 0), address(Some(Role::Rail), 1)].into(),
            };
            ((*name).to_owned(), Arc::new(node))
        };
        Arc::new(pools.iter().map(node).collect())
    }

    fn addresses(selector: &str, role: Option<Role>, written: Option<&str>) -> Vec<String> {
        let nodes: Nodes = [
            ("dev".to_owned(), cluster(&[("c", "training", 3)])),
            ("training".to_owned(), cluster(&[("a", "training", 1), ("b", "login", 2)])),
        ]
        .into();
        let selector = Selector::parse(selector).unwrap();
        let peers = NodePeers { selector, role, cluster: written.map(str::to_owned) };
        let alone = |(first, last): &(u32, u32)| {
            assert_eq!(first, last);
            std::net::Ipv4Addr::from(*first).to_string()
        };
        peers.addresses(&nodes).v4.ranges().iter().map(alone).collect()
    }

    #[test]
    fn nodes_are_selected_by_labels_name_and_cluster() {
        assert_eq!(addresses("pool == 'login'", None, None), ["10.0.0.2", "10.0.1.2"]);
        assert_eq!(addresses("pool == 'training'", Some(Role::Rail), None), ["10.0.1.1", "10.0.1.3"]);
        assert_eq!(addresses("name == 'b'", Some(Role::Rail), None), ["10.0.1.2"]);
        // Whatever its labels say.
        assert_eq!(addresses("cluster == 'training' && name == 'c'", None, None), Vec::<String>::new());
    }

    #[test]
    fn a_cluster_means_its_own_nodes_where_it_says_who_they_are() {
        let rails = |written| addresses("pool == 'training'", Some(Role::Rail), Some(written));
        assert_eq!(rails("training"), ["10.0.1.1"]);
        assert_eq!(rails("dev"), ["10.0.1.3"]);
        assert_eq!(rails("hub"), ["10.0.1.1", "10.0.1.3"]);
    }
}
