//! What addresses are called: the sets of the policy that have them, and the nodes of clusters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::record::PeerName;
use crate::net::addr::AddrSet;
use crate::net::node::Nodes;
use crate::policy::model::NamedSet;

/// The most names that an address is given; who is in more sets has the first of them by name.
const MOST_NAMES: usize = 8;
/// How many answers are remembered: a flood from made-up addresses must not take memory.
const REMEMBERED: usize = 1 << 14;

/// The names that there are.
#[derive(Clone, Debug, Default)]
pub struct Names {
    sets: Vec<(Arc<str>, AddrSet)>,
    nodes: BTreeMap<IpAddr, Arc<str>>,
    known: BTreeMap<IpAddr, BTreeSet<PeerName>>,
}

impl Names {
    /// The names of sets and nodes. Sets that have every address of a family name nobody.
    pub fn new(sets: &BTreeMap<String, NamedSet>, nodes: &Nodes) -> Self {
        let contents = |set: &NamedSet| set.cidrs.iter().copied().collect::<AddrSet>();
        let all = |addresses: &AddrSet| addresses.v4.is_full() || addresses.v6.is_full();
        let sets = sets.iter().map(|(name, set)| (Arc::from(name.as_str()), contents(set)));
        let of_node = |(name, node): (&String, &Arc<crate::net::node::Node>)| {
            let name: Arc<str> = name.as_str().into();
            node.addresses_of(None).map(|address| (address, Arc::clone(&name))).collect::<Vec<_>>()
        };
        Self {
            sets: sets.filter(|(_, addresses)| !addresses.is_empty() && !all(addresses)).collect(),
            nodes: nodes.values().flat_map(|nodes| nodes.iter().flat_map(of_node)).collect(),
            known: BTreeMap::new(),
        }
    }

    /// What an address is called.
    pub fn of(&mut self, address: IpAddr) -> BTreeSet<PeerName> {
        if let Some(known) = self.known.get(&address) {
            return known.clone();
        }
        let node = self.nodes.get(&address).map(|name| PeerName::Node(Arc::clone(name)));
        let sets = self.sets.iter().filter(|(_, addresses)| addresses.contains(address));
        let names: BTreeSet<PeerName> =
            node.into_iter().chain(sets.map(|(name, _)| PeerName::Set(Arc::clone(name)))).take(MOST_NAMES).collect();
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(address, names.clone());
        names
    }
}
