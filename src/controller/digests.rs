//! What digests of a cluster's nodes there are to be, and how fast they may change. Decides, and does nothing.
//!
//! Each digest has the nodes whose names fall into it, so that a change of one node is a change of one small object, and many changes
//! within a while are one event for each digest. Every node of the cluster is sent every event: what is written is bounded by that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::net::node::{ClusterNodes, Node};
use crate::net::splitmix;
use crate::source::object::peers::HostPeersSpec;

/// So many nodes are in a digest on the average. Fewer make more objects to list, more make larger events.
const NODES_IN_EACH: usize = 8;
/// Digests at least and at most.
const FEWEST: usize = 16;
const MOST: usize = 1024;
/// A label with more values than this in the cluster is written with each node: else what nodes share would be there once for each
/// combination of such values.
const FEW_VALUES: usize = 2;
/// What all API servers together are to send at most because of digests, in bytes a second.
const FAN_OUT: u64 = 50_000_000;
/// What an event has beside the digest, in bytes: metadata, managed fields.
const ENVELOPE: u64 = 600;

/// How nodes are digested. It changes as little as it can, as every change of it is one of all digests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    /// How many digests: a power of two; 0: not decided.
    count: usize,
    /// Labels that are each node's own.
    own: BTreeSet<String>,
}

impl Layout {
    /// Follows what there is.
    pub fn follow(&mut self, nodes: &ClusterNodes) {
        let wanted = (nodes.len() / NODES_IN_EACH).next_power_of_two().clamp(FEWEST, MOST);
        // Between half and four times of what is best, it stays.
        if wanted > self.count.saturating_mul(2) || wanted < self.count / 4 || self.count == 0 {
            self.count = wanted;
        }
        let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for node in nodes.values() {
            for (key, value) in node.shared.iter() {
                let known = values.entry(key).or_default();
                if known.len() <= FEW_VALUES {
                    known.insert(value);
                }
            }
        }
        let many = values.into_iter().filter(|(_, values)| values.len() > FEW_VALUES);
        self.own.extend(many.map(|(key, _)| key.to_owned()));
    }

    /// The digests by name. Those without nodes are not there.
    pub fn digests(&self, nodes: &ClusterNodes) -> BTreeMap<String, HostPeersSpec> {
        let mut parts: BTreeMap<usize, Vec<(&String, Arc<Node>)>> = BTreeMap::new();
        for (name, node) in nodes {
            parts.entry(self.place(name)).or_default().push((name, self.split(node)));
        }
        let digest = |(place, nodes): (usize, Vec<(&String, Arc<Node>)>)| {
            let name = format!("{place:04}-of-{:04}", self.count);
            (name, HostPeersSpec::of(nodes.iter().map(|(name, node)| (*name, node))))
        };
        parts.into_iter().map(digest).collect()
    }

    fn place(&self, name: &str) -> usize {
        let hash = name.bytes().fold(0, |hash: u64, byte| splitmix::nth(hash ^ u64::from(byte), 1));
        usize::try_from(hash % self.count.max(1) as u64).unwrap_or(0)
    }

    /// A node with its own labels apart.
    fn split(&self, node: &Arc<Node>) -> Arc<Node> {
        if !node.shared.keys().any(|key| self.own.contains(key)) {
            return Arc::clone(node);
        }
        let (own, shared): (BTreeMap<_, _>, _) = node
            .shared
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .partition(|(key, _)| self.own.contains(key));
        let own = own.into_iter().chain(node.own.clone()).collect();
        Arc::new(Node { shared: Arc::new(shared), own, addresses: node.addresses.clone() })
    }
}

/// How long nothing else is to be written after an object of so many bytes, which is sent to so many.
pub fn pause(bytes: usize, watchers: usize) -> Duration {
    let sent = (bytes as u64 + ENVELOPE).saturating_mul(watchers as u64);
    Duration::from_micros(sent.saturating_mul(1_000_000) / FAN_OUT)
}

/// What is otherwise than wanted, from the one after `last` on: what was written last comes last, so that none waits for ever.
pub(super) fn otherwise(
    wanted: &BTreeMap<String, String>,
    written: &BTreeMap<String, String>,
    last: &str,
) -> Vec<String> {
    let differs = |name: &&String| wanted.get(*name) != written.get(*name);
    let names: BTreeSet<&String> = wanted.keys().chain(written.keys()).collect();
    let (before, after): (Vec<&String>, Vec<&String>) =
        names.into_iter().filter(differs).partition(|name| name.as_str() <= last);
    after.into_iter().chain(before).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interface::Role;
    use crate::net::node::NodeAddress;

    fn nodes(count: u32) -> ClusterNodes {
        let node = |number: u32| {
            let shared =
                [("pool", "training".to_owned()), ("zone", format!("z{}", number % 4)), ("id", format!("i-{number}"))];
            let address = |role, third: u32| NodeAddress {
                role,
                address: std::net::Ipv4Addr::from((10 << 24) + (third << 16) + number).into(),
            };
            Node {
                shared: Arc::new(shared.map(|(key, value)| (key.to_owned(), value)).into()),
                own: [("kubernetes.io/hostname".to_owned(), format!("gpu-{number:05}"))].into(),
                addresses: (0..9).map(|third| address((third > 0).then_some(Role::Rail), third)).collect(),
            }
        };
        (0..count).map(|number| (format!("gpu-{number:05}"), Arc::new(node(number)))).collect()
    }

    fn layout(nodes: &ClusterNodes) -> Layout {
        let mut layout = Layout::default();
        layout.follow(nodes);
        layout
    }

    #[test]
    fn digests_say_what_nodes_say_and_labels_that_differ_are_each_nodes_own() {
        let nodes = nodes(300);
        let digests = layout(&nodes).digests(&nodes);
        let back: ClusterNodes = digests.values().flat_map(HostPeersSpec::nodes).collect();
        assert_eq!(back.len(), 300);
        for (name, node) in &nodes {
            assert_eq!((back[name].labels(), &back[name].addresses), (node.labels(), &node.addresses));
        }
        assert!(digests.values().all(|digest| digest.labels.len() == 1), "a label with many values is not shared");
        assert!(digests.keys().all(|name| name.ends_with("-of-0064")), "{:?}", digests.keys().next());
    }

    #[test]
    fn a_change_of_one_node_is_a_change_of_one_digest_and_new_ones_change_no_others() {
        let mut all = nodes(300);
        let layout_before = layout(&all);
        let before = layout_before.digests(&all);
        let changed = |after: &BTreeMap<String, HostPeersSpec>| {
            after.iter().filter(|(name, digest)| before.get(*name) != Some(*digest)).count()
        };
        let mut node = Node::clone(&all["gpu-00007"]);
        node.addresses.clear();
        all.insert("gpu-00007".to_owned(), Arc::new(node));
        assert_eq!(changed(&layout_before.digests(&all)), 1);
        let mut grown = layout_before.clone();
        let more = nodes(320);
        grown.follow(&more);
        assert_eq!(grown, layout_before, "a few more change nothing about how it is done");
    }

    #[test]
    fn ten_thousand_nodes_are_digests_of_some_kilobytes() {
        let nodes = nodes(10_000);
        let digests = layout(&nodes).digests(&nodes);
        let sizes: Vec<usize> =
            digests.values().map(|digest| serde_json::to_vec(digest).map_or(0, |bytes| bytes.len())).collect();
        let (all, largest) = (sizes.iter().sum::<usize>(), sizes.iter().max().copied().unwrap_or_default());
        assert_eq!(digests.len(), 1024);
        assert!(all < 4_000_000 && largest < 16_384, "{all} bytes, the largest {largest}");
        // One change, seen by all, and all of them.
        assert!(pause(all / 1024, 10_000) < Duration::from_secs(1), "{:?}", pause(all / 1024, 10_000));
        let sweep: Duration = sizes.iter().map(|bytes| pause(*bytes, 10_000)).sum();
        assert!(sweep < Duration::from_secs(900), "{sweep:?}");
        assert!(pause(largest, 100) < Duration::from_millis(50));
    }

    #[test]
    fn what_waits_longest_comes_first_and_what_is_not_wanted_goes() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let wanted = map(&[("a", "2"), ("b", "1"), ("c", "2"), ("d", "1")]);
        let written = map(&[("a", "1"), ("b", "1"), ("c", "1"), ("e", "1")]);
        assert_eq!(otherwise(&wanted, &written, ""), ["a", "c", "d", "e"]);
        assert_eq!(otherwise(&wanted, &written, "c"), ["d", "e", "a", "c"]);
        assert!(otherwise(&wanted, &wanted, "").is_empty());
    }
}
