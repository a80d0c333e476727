//! The nodes of clusters, as others know them: labels, and addresses by the role of the interface that has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::interface::Role;

/// The nodes of every cluster that says who they are, by the cluster's name in nodewall.toml. A cluster without nodes is here, too.
pub type Nodes = BTreeMap<String, Arc<ClusterNodes>>;

/// The nodes of one cluster by their names.
pub type ClusterNodes = BTreeMap<String, Arc<Node>>;

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Labels that it shares with others; nodes with the same share these.
    pub shared: Arc<BTreeMap<String, String>>,
    /// Labels of its own, which go before those.
    pub own: BTreeMap<String, String>,
    /// Its addresses.
    pub addresses: BTreeSet<NodeAddress>,
}

/// An address of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeAddress {
    /// The role of the interface that has it; `None` where only the address is known.
    pub role: Option<Role>,
    /// The address.
    pub address: IpAddr,
}

impl Node {
    /// The value of one of its labels.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.own.get(key).or_else(|| self.shared.get(key)).map(String::as_str)
    }

    /// All its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::clone(&self.shared);
        labels.extend(self.own.clone());
        labels
    }

    /// Its addresses on interfaces of a role; without one, all but those that other nodes have as well, or that lead nowhere from
    /// there: of pods, overlays and loopback.
    pub fn addresses_of(&self, role: Option<Role>) -> impl Iterator<Item = IpAddr> + '_ {
        let inner = |role: Option<Role>| matches!(role, Some(Role::Pod | Role::Overlay | Role::Loopback));
        let wanted = move |address: &&NodeAddress| match role {
            Some(role) => address.role == Some(role),
            None => !inner(address.role),
        };
        self.addresses.iter().filter(wanted).map(|address| address.address)
    }
}

/// Whether an address can be that of a node for others: neither link-local nor loopback, multicast or unspecified.
pub fn is_of_a_node(address: IpAddr) -> bool {
    let inner = address.is_loopback() || address.is_multicast() || address.is_unspecified();
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    !inner && !local
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn without_a_role_only_addresses_count_that_others_can_reach() {
        let address = |role: Option<Role>, last: u8| NodeAddress { role, address: [10, 0, 0, last].into() };
        let roles = [None, Some(Role::Rail), Some(Role::Pod), Some(Role::Overlay), Some(Role::Mgmt)];
        let addresses = (1..).zip(roles).map(|(last, role)| address(role, last)).collect();
        let node = Node { addresses, ..Node::default() };
        let of = |role| node.addresses_of(role).map(|address| address.to_string()).collect::<Vec<_>>();
        assert_eq!(of(None), ["10.0.0.1", "10.0.0.5", "10.0.0.2"]);
        assert_eq!(of(Some(Role::Rail)), ["10.0.0.2"]);
        assert_eq!(of(Some(Role::Pod)), ["10.0.0.3"]);
        assert_eq!(of(Some(Role::Bmc)), Vec::<String>::new());
    }

    #[test]
    fn what_every_node_has_is_the_address_of_none() {
        let is = |address: &str| is_of_a_node(address.parse().unwrap());
        assert!(["10.0.0.1", "fd00::1", "2001:db8::1", "203.0.113.9"].into_iter().all(is));
        let not =
            ["127.0.0.1", "::1", "fe80::1", "169.254.1.1", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "::ffff:10.0.0.1"];
        assert!(!not.into_iter().any(is));
    }
}
