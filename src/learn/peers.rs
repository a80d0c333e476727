//! Who is meant: addresses that were seen, as sets of the policy, nodes of clusters and prefixes, as far as these say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Generalise;
use crate::net::addr::AddrSet;
use crate::net::facts::Facts;
use crate::net::interface::Role;
use crate::net::node::Node;
use crate::policy::model::Policy;

/// A peer of a rule, in words of the policy language.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Peers {
    /// Sets of the policy, by name.
    pub(super) sets: BTreeSet<String>,
    /// A selector over nodes of clusters, and the role of the interfaces whose addresses are meant.
    pub(super) nodes: Option<(String, Option<Role>)>,
    /// Addresses and prefixes that no name was found for.
    pub(super) literals: BTreeSet<IpNet>,
    /// The addresses of all these today.
    pub(super) addresses: AddrSet,
}

/// A name for several addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Named {
    what: What,
    addresses: AddrSet,
    /// How many addresses those are.
    size: u128,
    /// Whether one of its prefixes is wider than [`WIDEST`].
    wide: bool,
}

/// In the order in which one is preferred to the other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum What {
    Set(String),
    /// How plain the label is, selector, role.
    Nodes(usize, String, Option<Role>),
}

/// A set with wider prefixes than these says little of who is meant ...
const WIDEST: (u8, u8) = (16, 48);
/// ... unless so many of its addresses were seen.
const MANY: usize = 8;
/// A set of at most so many addresses is meant by each of them.
const SMALL: u128 = 256;
/// So many peers make a prefix.
const LEAST_IN_PREFIX: usize = 4;
/// An IPv4 prefix has at most so many addresses for each that was seen.
const SPARSEST: u128 = 64;

/// Whom names are found for.
#[derive(Clone, Debug)]
pub(super) struct Names<'a> {
    sets: Vec<Named>,
    /// Whose each address is: cluster, name, node, role.
    owners: BTreeMap<IpAddr, Vec<Owner<'a>>>,
    /// All nodes with their clusters.
    nodes: Vec<(&'a str, &'a Node)>,
}

#[derive(Clone, Copy, Debug)]
struct Owner<'a> {
    cluster: &'a str,
    name: &'a str,
    node: &'a Node,
    role: Option<Role>,
}

impl<'a> Names<'a> {
    /// The sets of the policy, and the nodes of clusters.
    pub(super) fn new(policy: &Policy, facts: &'a Facts) -> Self {
        let set = |(name, set): (&String, &crate::policy::model::NamedSet)| {
            let addresses: AddrSet = set.cidrs.iter().copied().collect();
            let limit = |net: &IpNet| if net.addr().is_ipv4() { WIDEST.0 } else { WIDEST.1 };
            let wide = set.cidrs.iter().any(|net| net.prefix_len() < limit(net));
            Named { what: What::Set(name.clone()), size: size(&addresses), addresses, wide }
        };
        let mut owners: BTreeMap<IpAddr, Vec<Owner<'a>>> = BTreeMap::new();
        let mut nodes = Vec::new();
        for (cluster, of_cluster) in facts.nodes.iter() {
            for (name, node) in of_cluster.iter() {
                nodes.push((cluster.as_str(), &**node));
                for address in &node.addresses {
                    let owner = Owner { cluster, name, node, role: address.role };
                    owners.entry(address.address).or_default().push(owner);
                }
            }
        }
        Self { sets: policy.sets.iter().map(set).collect(), owners, nodes }
    }

    /// Whether two addresses have a name in common that means few others: a set that is small, or labels of nodes.
    pub(super) fn circle(&self, peer: IpAddr) -> Option<String> {
        let small = |named: &&Named| !named.wide && named.size <= SMALL && named.addresses.contains(peer);
        let set = self.sets.iter().filter(small).min_by_key(|named| (named.size, named.what.clone()));
        let name = |named: &Named| match &named.what {
            What::Set(name) | What::Nodes(_, name, _) => format!("set {name}"),
        };
        set.map(name).or_else(|| self.owners.get(&peer)?.first().map(|owner| format!("cluster {}", owner.cluster)))
    }

    /// The peers in words. None of `strangers` is in a prefix that is chosen.
    pub(super) fn cover(
        &self,
        peers: &BTreeSet<IpAddr>,
        generalise: Generalise,
        strangers: &BTreeSet<IpAddr>,
    ) -> Peers {
        let mut found = Peers::default();
        let mut left = peers.clone();
        if generalise != Generalise::None {
            self.named(peers, &mut left, &mut found);
        }
        if let Generalise::Prefixes(v4, v6) = generalise {
            let (fours, sixes): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = left.iter().partition(|peer| peer.is_ipv4());
            let mut prefixes = Vec::new();
            for (of_family, length) in [(fours, v4), (sixes, v6)] {
                for (root, members) in by_prefix(&of_family, length) {
                    split(root, &members, strangers, &mut prefixes);
                }
            }
            left.retain(|peer| !prefixes.iter().any(|prefix| prefix.contains(peer)));
            found.literals.extend(prefixes);
        }
        found.literals.extend(left.into_iter().map(IpNet::from));
        found.addresses = found.addresses.union(&found.literals.iter().copied().collect());
        found
    }

    fn named(&self, peers: &BTreeSet<IpAddr>, left: &mut BTreeSet<IpAddr>, found: &mut Peers) {
        let hits = |named: &Named, among: &BTreeSet<IpAddr>| {
            among.iter().filter(|peer| named.addresses.contains(**peer)).count()
        };
        // First the names of which most are seen, those with the most peers before others.
        let nodes = self.nodes_of(peers);
        let most = |named: &&Named| hits(named, peers) as u128 * 2 >= named.size;
        let mut pool: Vec<&Named> = self.sets.iter().filter(most).chain(nodes.iter().filter(most)).collect();
        let mut chosen: Vec<&Named> = Vec::new();
        loop {
            let ranked = pool.iter().map(|named| (hits(named, left), *named)).filter(|(hits, _)| *hits > 0);
            let best = ranked.min_by_key(|(hits, named)| (usize::MAX - hits, named.size, named.what.clone()));
            let Some((_, best)) = best else { break };
            left.retain(|peer| !best.addresses.contains(*peer));
            chosen.push(best);
            if matches!(best.what, What::Nodes(..)) {
                // An entity has one selector.
                pool.retain(|named| matches!(named.what, What::Set(_)));
            }
        }
        // Then sets that say who is meant all the same, the narrowest first.
        let mut sets: Vec<&Named> = self.sets.iter().collect();
        sets.sort_by_key(|named| (named.size, named.what.clone()));
        for named in sets {
            let seen = hits(named, left);
            let means = seen >= 2 || (seen == 1 && named.size <= SMALL);
            if means && (!named.wide || seen >= MANY) {
                left.retain(|peer| !named.addresses.contains(*peer));
                chosen.push(named);
            }
        }
        // What the others say is not said twice.
        let mut index = 0;
        while let Some(named) = chosen.get(index) {
            let others = |peer: &IpAddr| {
                chosen.iter().enumerate().any(|(other, named)| other != index && named.addresses.contains(*peer))
            };
            match peers.iter().filter(|peer| named.addresses.contains(**peer)).all(others) {
                true => drop(chosen.remove(index)),
                false => index += 1,
            }
        }
        for named in chosen {
            found.addresses = found.addresses.union(&named.addresses);
            match &named.what {
                What::Set(name) => drop(found.sets.insert(name.clone())),
                What::Nodes(_, selector, role) => found.nodes = Some((selector.clone(), *role)),
            }
        }
    }

    /// Selectors for those of the peers that are nodes.
    fn nodes_of(&self, peers: &BTreeSet<IpAddr>) -> Vec<Named> {
        let owners: Vec<&Owner<'_>> = peers.iter().filter_map(|peer| self.owners.get(peer)?.first()).collect();
        let names: BTreeSet<(&str, &str)> = owners.iter().map(|owner| (owner.cluster, owner.name)).collect();
        if names.len() < 2 {
            return Vec::new();
        }
        let roles: BTreeSet<Option<Role>> = owners.iter().map(|owner| owner.role).collect();
        let pairs = owners.iter().flat_map(|owner| {
            let own = owner.node.labels().into_iter();
            own.chain([("cluster".to_owned(), owner.cluster.to_owned())])
        });
        let pairs: BTreeSet<(String, String)> = pairs.filter(|(key, value)| is_plain(key) && is_plain(value)).collect();
        let mut found = Vec::new();
        for role in roles {
            for (key, value) in &pairs {
                let has = |(cluster, node): &&(&str, &Node)| match key.as_str() {
                    "cluster" => *cluster == value,
                    _ => node.label(key) == Some(value.as_str()),
                };
                let addresses: AddrSet =
                    self.nodes.iter().filter(has).flat_map(|(_, node)| node.addresses_of(role)).collect();
                // A label that says what nodes are for is more likely to be meant than one that happens to be alike.
                let plain = if key.contains("pool") || key.contains("role") { 0 } else { key.len() };
                let what = What::Nodes(plain, format!("{key} == '{value}'"), role);
                let hits = peers.iter().filter(|peer| addresses.contains(**peer)).count();
                if hits >= 2 {
                    found.push(Named { what, size: size(&addresses), addresses, wide: false });
                }
            }
        }
        found
    }
}

/// What a selector can be written with, without quoting.
fn is_plain(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.chars().all(|next| next.is_ascii_alphanumeric() || matches!(next, '_' | '.' | '/' | '-'))
}

/// How many addresses there are.
fn size(addresses: &AddrSet) -> u128 {
    let v4 = addresses.v4.wide().into_iter();
    let ranges = v4.chain(addresses.v6.wide());
    ranges.fold(0, |sum: u128, (first, last)| sum.saturating_add(last - first).saturating_add(1))
}

/// Peers by the prefix of a length that they are in.
fn by_prefix(peers: &BTreeSet<IpAddr>, length: u8) -> BTreeMap<IpNet, Vec<IpAddr>> {
    let mut groups: BTreeMap<IpNet, Vec<IpAddr>> = BTreeMap::new();
    for peer in peers {
        let Ok(net) = IpNet::new(*peer, length) else { continue };
        groups.entry(net.trunc()).or_default().push(*peer);
    }
    groups
}

/// The narrowest prefixes within `root` that many of its members share.
fn split(root: IpNet, members: &[IpAddr], strangers: &BTreeSet<IpAddr>, found: &mut Vec<IpNet>) {
    let (Some(first), Some(last)) = (members.first(), members.last()) else { return };
    if members.len() < LEAST_IN_PREFIX {
        return;
    }
    let tight = common(*first, *last).filter(|tight| tight.prefix_len() >= root.prefix_len()).unwrap_or(root);
    let bits = tight.max_prefix_len() - tight.prefix_len();
    let sparse = tight.addr().is_ipv4() && (1_u128 << bits) > SPARSEST * members.len() as u128;
    if !sparse && !strangers.iter().any(|stranger| tight.contains(stranger)) {
        found.push(tight);
        return;
    }
    let Ok(halves) = tight.subnets(tight.prefix_len() + 1) else { return };
    for half in halves {
        let inside: Vec<IpAddr> = members.iter().copied().filter(|member| half.contains(member)).collect();
        split(half, &inside, strangers, found);
    }
}

/// The longest prefix that has both.
fn common(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (address, length): (IpAddr, u32) = match (first, last) {
        (IpAddr::V4(one), IpAddr::V4(two)) => {
            (Ipv4Addr::from_bits(one.to_bits()).into(), (one.to_bits() ^ two.to_bits()).leading_zeros())
        }
        (IpAddr::V6(one), IpAddr::V6(two)) => {
            (Ipv6Addr::from_bits(one.to_bits()).into(), (one.to_bits() ^ two.to_bits()).leading_zeros())
        }
        _ => return None,
    };
    IpNet::new(address, u8::try_from(length).ok()?).ok().map(|net| net.trunc())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::net::node::{ClusterNodes, NodeAddress};
    use crate::policy::model::NamedSet;
    use crate::text::place::Place;

    fn policy() -> Policy {
        let set = |(name, cidrs): (&str, &[&str])| {
            let cidrs = cidrs.iter().map(|cidr| crate::net::addr::parse_prefix(cidr).unwrap()).collect();
            (
                name.to_owned(),
                NamedSet { name: name.to_owned(), labels: BTreeMap::new(), cidrs, place: Place::file("t") },
            )
        };
        let sets = [
            ("bastions", ["10.9.0.0/29"].as_slice()),
            ("jump", &["10.9.0.1"]),
            ("monitoring", &["10.0.0.20", "10.0.0.21", "fd00::20"]),
            ("office", &["10.7.0.0/16"]),
            ("private", &["10.0.0.0/8"]),
        ];
        Policy { sets: sets.into_iter().map(set).collect(), ..Policy::default() }
    }

    /// Eight training nodes at 10.2.0.1 on, two of another pool at 10.2.0.101 on, each with a rail address in 10.3.0.
    fn facts() -> Facts {
        let node = |number: u8| {
            let pool = if number > 100 { "login" } else { "training" };
            let address = |role, third| NodeAddress { role, address: [10, third, 0, number].into() };
            let node = Node {
                shared: Arc::new(
                    [("pool", pool), ("kubernetes.io/os", "linux")]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                own: [("evil".to_owned(), "' || all() || x == '".to_owned())].into(),
                addresses: [address(None, 2), address(Some(Role::Rail), 3)].into(),
            };
            (format!("gpu-{number}"), Arc::new(node))
        };
        let nodes: ClusterNodes = (1..=8).chain(101..=102).map(node).collect();
        Facts { nodes: Arc::new([("training".to_owned(), Arc::new(nodes))].into()), ..Facts::default() }
    }

    fn words(seen: &[&str], generalise: Generalise, strangers: &[&str]) -> String {
        let (policy, facts) = (policy(), facts());
        let names = Names::new(&policy, &facts);
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let peers = names.cover(&set(seen), generalise, &set(strangers));
        for peer in set(seen) {
            assert!(peers.addresses.contains(peer), "{peer}");
        }
        let role = |role: &Option<Role>| role.map(|role| format!(" on {role}")).unwrap_or_default();
        let nodes = peers.nodes.iter().map(|(selector, of)| format!("nodes {selector}{}", role(of)));
        let literals = peers.literals.iter().map(|net| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string(),
            false => net.to_string(),
        });
        peers.sets.iter().cloned().chain(nodes).chain(literals).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn names_go_first_and_prefixes_only_as_far_as_they_may() {
        let wide = Generalise::Prefixes(24, 64);
        let rails = ["10.3.0.1", "10.3.0.2", "10.3.0.3", "10.3.0.4", "10.3.0.5", "10.3.0.6", "10.3.0.7", "10.3.0.8"];
        for (seen, generalise, expected) in [
            (["10.0.0.20", "10.0.0.21"].as_slice(), wide, "monitoring"),
            (&["10.0.0.20", "10.0.0.21"], Generalise::Sets, "monitoring"),
            (&["10.0.0.20", "10.0.0.21"], Generalise::None, "10.0.0.20; 10.0.0.21"),
            (&["10.0.0.20", "fd00::20"], wide, "monitoring"),
            // A set of which few are seen, but a small one; a set within it says no more.
            (&["10.9.0.1"], wide, "jump"),
            (&["10.9.0.1", "10.9.0.3"], wide, "bastions"),
            // Of a large one a single address says nothing, and a very large one is no name at all.
            (&["10.7.1.1"], wide, "10.7.1.1"),
            (&["10.7.1.1", "10.7.2.1"], wide, "office"),
            (&["10.55.1.1", "10.66.2.1"], wide, "10.55.1.1; 10.66.2.1"),
            (&rails, wide, "nodes pool == 'training' on rail"),
            (&rails[..6], wide, "nodes pool == 'training' on rail"),
            (&rails[..1], Generalise::Sets, "10.3.0.1"),
            (&["10.3.0.1", "10.0.0.20"], Generalise::Sets, "monitoring; 10.3.0.1"),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.5"], wide, "192.0.2.1; 192.0.2.2; 192.0.2.5"),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.5", "192.0.2.7"], wide, "192.0.2.0/29"),
            (
                &["192.0.2.1", "192.0.2.2", "192.0.2.5", "192.0.2.7"],
                Generalise::Sets,
                "192.0.2.1; 192.0.2.2; 192.0.2.5; 192.0.2.7",
            ),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.5", "192.0.3.7"], wide, "192.0.2.1; 192.0.2.2; 192.0.2.5; 192.0.3.7"),
            (
                &["192.0.2.1", "192.0.2.2", "192.0.2.5", "192.0.3.7"],
                Generalise::Prefixes(16, 64),
                "192.0.2.1; 192.0.2.2; 192.0.2.5; 192.0.3.7",
            ),
            (&["2001:db8::1", "2001:db8::2", "2001:db8::a", "2001:db8::b"], wide, "2001:db8::/124"),
            (
                &["2001:db8::1", "2001:db8:0:1::2", "2001:db8:0:2::a", "2001:db8:0:3::b"],
                wide,
                "2001:db8::1; 2001:db8:0:1::2; 2001:db8:0:2::a; 2001:db8:0:3::b",
            ),
        ] {
            assert_eq!(words(seen, generalise, &[]), expected, "{seen:?}");
        }
        // All of both pools are nodes of the cluster, and nobody's label can add to the selector.
        let both = [rails.as_slice(), &["10.3.0.101", "10.3.0.102"]].concat();
        assert_eq!(words(&both, wide, &[]), "nodes cluster == 'training' on rail");
    }

    #[test]
    fn a_prefix_has_no_stranger_in_it() {
        let seen: Vec<String> = (1..=8).map(|last| format!("192.0.2.{last}")).collect();
        let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
        assert_eq!(words(&seen, Generalise::Prefixes(24, 64), &["192.0.2.9"]), "192.0.2.0/29; 192.0.2.8");
        assert_eq!(words(&seen, Generalise::Prefixes(24, 64), &["192.0.2.200"]), "192.0.2.0/28");
    }
}
