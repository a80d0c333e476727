//! Names for those who can reach something: sets as documents call them, and prefixes only where no name fits.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::net::addr::{AddrSet, Family};
use crate::net::range::RangeSet;

/// Some of those who can reach something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// Everybody; of one family only, where the other may not.
    Anyone(Option<Family>),
    /// Everybody but those in these sets and prefixes.
    AnyoneBut(Vec<String>),
    /// Everybody in this set.
    Set(String),
    /// Some of this set.
    PartOf(String),
    /// The addresses of this prefix.
    Prefix(IpNet),
    /// So many prefixes more.
    More(usize),
    /// Whoever is on the fabric: RDMA that no rule sees.
    Fabric,
}

impl Peer {
    /// Whether this is everybody, or nearly.
    pub fn is_anyone(&self) -> bool {
        matches!(self, Self::Anyone(_) | Self::AnyoneBut(_) | Self::Fabric)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone(None) => formatter.write_str("anyone"),
            Self::Anyone(Some(Family::V4)) => formatter.write_str("anyone (IPv4)"),
            Self::Anyone(Some(Family::V6)) => formatter.write_str("anyone (IPv6)"),
            Self::AnyoneBut(names) => write!(formatter, "anyone but {}", names.join(", ")),
            Self::Set(name) => formatter.write_str(name),
            Self::PartOf(name) => write!(formatter, "part of {name}"),
            Self::Prefix(prefix) => write!(formatter, "{prefix}"),
            Self::More(1) => formatter.write_str("1 more prefix"),
            Self::More(more) => write!(formatter, "{more} more prefixes"),
            Self::Fabric => formatter.write_str("anyone on the fabric (rules do not see RDMA)"),
        }
    }
}

/// A set by the name that documents give it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The name.
    pub name: String,
    /// What is in it.
    pub addresses: AddrSet,
}

/// More prefixes than these are only counted.
const MOST_PREFIXES: usize = 4;

/// Names those who are `reached` among all of `world`.
pub(super) fn name(reached: &AddrSet, world: &AddrSet, sets: &[Named]) -> Vec<Peer> {
    let mut peers = Vec::new();
    if reached.is_empty() {
        return peers;
    }
    if reached == world {
        return vec![Peer::Anyone(None)];
    }
    if let Some(peer) = all_but(reached, world, &within(sets, world)) {
        return vec![peer];
    }
    let (mut reached, mut world) = (reached.clone(), world.clone());
    if !reached.v4.is_empty() && reached.v4 == world.v4 {
        peers.push(Peer::Anyone(Some(Family::V4)));
        (reached.v4, world.v4) = (RangeSet::empty(), RangeSet::empty());
    } else if !reached.v6.is_empty() && reached.v6 == world.v6 {
        peers.push(Peer::Anyone(Some(Family::V6)));
        (reached.v6, world.v6) = (RangeSet::empty(), RangeSet::empty());
    }
    let known = within(sets, &world);
    if let Some(peer) = all_but(&reached, &world, &known) {
        peers.push(peer);
        return peers;
    }
    let whole = |set: &&Named| set.addresses.difference(&reached).is_empty();
    let wholes: Vec<&Named> = known.iter().filter(whole).collect();
    let mut left = reached.clone();
    for (index, set) in wholes.iter().enumerate() {
        // A set within another one that is named says nothing more; of equal ones the first is named.
        let within = |(at, other): (usize, &&Named)| {
            at != index
                && set.addresses.difference(&other.addresses).is_empty()
                && (set.addresses != other.addresses || at < index)
        };
        if !wholes.iter().enumerate().any(within) {
            peers.push(Peer::Set(set.name.clone()));
        }
        left = left.difference(&set.addresses);
    }
    for set in &known {
        if !left.is_disjoint(&set.addresses) {
            peers.push(Peer::PartOf(set.name.clone()));
            left = left.difference(&set.addresses);
        }
    }
    let mut prefixes = prefixes(&left);
    peers.extend(prefixes.by_ref().take(MOST_PREFIXES).map(Peer::Prefix));
    let more = prefixes.count();
    peers.extend((more > 0).then_some(Peer::More(more)));
    peers
}

/// What of the sets is in the world, without those of which nothing is.
fn within(sets: &[Named], world: &AddrSet) -> Vec<Named> {
    let within = |set: &Named| Named { name: set.name.clone(), addresses: set.addresses.intersection(world) };
    sets.iter().map(within).filter(|set| !set.addresses.is_empty()).collect()
}

/// Everybody but some, where all who are in no set are reached.
fn all_but(reached: &AddrSet, world: &AddrSet, known: &[Named]) -> Option<Peer> {
    let strangers = known.iter().fold(world.clone(), |left, set| left.difference(&set.addresses));
    if strangers.is_empty() || !strangers.difference(reached).is_empty() {
        return None;
    }
    let mut out = world.difference(reached);
    let mut names = Vec::new();
    for set in known.iter().filter(|set| set.addresses.is_disjoint(reached)) {
        names.push(set.name.clone());
        out = out.difference(&set.addresses);
    }
    for set in known {
        if !out.is_disjoint(&set.addresses) {
            names.push(format!("part of {}", set.name));
            out = out.difference(&set.addresses);
        }
    }
    Some(Peer::AnyoneBut(names))
}

/// The prefixes that a set of addresses is made of.
fn prefixes(addresses: &AddrSet) -> impl Iterator<Item = IpNet> {
    let v4 = addresses.v4.ranges().iter().flat_map(|(start, end)| {
        Ipv4Subnets::new(Ipv4Addr::from_bits(*start), Ipv4Addr::from_bits(*end), 0).map(IpNet::from)
    });
    let v6 = addresses.v6.ranges().iter().flat_map(|(start, end)| {
        Ipv6Subnets::new(Ipv6Addr::from_bits(*start), Ipv6Addr::from_bits(*end), 0).map(IpNet::from)
    });
    v4.chain(v6).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(prefixes: &[&str]) -> AddrSet {
        prefixes.iter().map(|prefix| prefix.parse::<IpNet>().unwrap()).collect()
    }

    fn words(reached: &AddrSet) -> String {
        let named = |(name, prefixes): (&str, &[&str])| Named { name: name.to_owned(), addresses: set(prefixes) };
        let sets = [
            ("admin", ["10.0.0.0/24", "fd00:1::/64"].as_slice()),
            ("all-nodes", &["10.0.0.0/16"]),
            ("jumphosts", &["10.0.0.8/29"]),
            ("pods", &["10.244.0.0/16"]),
            ("storage", &["10.9.0.0/24"]),
        ];
        let peers = name(reached, &AddrSet::full(), &sets.map(named));
        peers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn sets_are_named_and_prefixes_only_where_no_set_fits() {
        let full = AddrSet::full();
        for (reached, expected) in [
            (set(&[]), ""),
            (full.clone(), "anyone"),
            (AddrSet { v6: RangeSet::empty(), ..full.clone() }, "anyone (IPv4)"),
            (AddrSet { v4: set(&["10.9.0.0/24"]).v4, ..full.clone() }, "anyone (IPv6); storage"),
            (set(&["10.0.0.0/24", "fd00:1::/64"]), "admin"),
            (set(&["10.0.0.0/16"]), "all-nodes"),
            (set(&["10.0.0.8/29"]), "jumphosts"),
            (set(&["10.0.0.0/24"]), "jumphosts; part of admin"),
            (set(&["10.244.0.0/17"]), "part of pods"),
            (set(&["192.0.2.0/24", "10.9.0.0/24"]), "storage; 192.0.2.0/24"),
            (
                set(&["192.0.2.1/32", "192.0.2.3/32", "192.0.2.5/32", "192.0.2.7/32", "192.0.2.9/32", "192.0.2.11/32"]),
                "192.0.2.1/32; 192.0.2.3/32; 192.0.2.5/32; 192.0.2.7/32; 2 more prefixes",
            ),
            (full.difference(&set(&["10.244.0.0/16"])), "anyone but pods"),
            (full.difference(&set(&["10.244.0.0/17"])), "anyone but part of pods"),
        ] {
            assert_eq!(words(&reached), expected);
        }
    }
}
