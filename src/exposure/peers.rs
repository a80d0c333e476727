//! Names for those who can reach something: sets as documents call them, and prefixes only where no name fits.

use std::collections::{BTreeMap, BTreeSet};
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
    if reached.is_empty() {
        return Vec::new();
    }
    let mut pieces = pieces(reached, world, sets);
    if pieces.iter().all(|piece| piece.reached) {
        return vec![Peer::Anyone(None)];
    }
    if let Some(peer) = all_but(&pieces, sets) {
        return vec![peer];
    }
    let mut peers = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut of_family = pieces.iter().filter(|piece| piece.family == family).peekable();
        if of_family.peek().is_some() && of_family.all(|piece| piece.reached) {
            peers.push(Peer::Anyone(Some(family)));
            pieces.retain(|piece| piece.family != family);
            break;
        }
    }
    match all_but(&pieces, sets) {
        Some(peer) => peers.push(peer),
        None => peers.extend(some(&pieces, sets)),
    }
    peers
}

/// Addresses next to each other of which all are in the same sets, and all are reached or none.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Piece {
    family: Family,
    start: u128,
    end: u128,
    reached: bool,
    /// The numbers of the sets.
    sets: Vec<usize>,
}

/// The world in pieces, in order.
fn pieces(reached: &AddrSet, world: &AddrSet, sets: &[Named]) -> Vec<Piece> {
    let v4 = sets.iter().map(|set| set.addresses.v4.wide()).collect::<Vec<_>>();
    let v6 = sets.iter().map(|set| set.addresses.v6.wide()).collect::<Vec<_>>();
    let mut pieces = cut(Family::V4, &reached.v4.wide(), &world.v4.wide(), &v4);
    pieces.extend(cut(Family::V6, &reached.v6.wide(), &world.v6.wide(), &v6));
    pieces
}

/// What a border is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    World,
    Reached,
    Set(usize),
}

fn cut(family: Family, reached: &[(u128, u128)], world: &[(u128, u128)], sets: &[Vec<(u128, u128)>]) -> Vec<Piece> {
    let named = sets.iter().enumerate().map(|(number, ranges)| (Of::Set(number), ranges.as_slice()));
    let all = [(Of::World, world), (Of::Reached, reached)].into_iter().chain(named);
    let mut borders: Vec<(u128, Of)> = all
        .flat_map(|(of, ranges)| {
            let ends = ranges.iter().filter_map(move |(_, end)| Some((end.checked_add(1)?, of)));
            ranges.iter().map(move |(start, _)| (*start, of)).chain(ends)
        })
        .collect();
    borders.sort_unstable();
    let mut inside: BTreeSet<Of> = BTreeSet::new();
    let mut pieces = Vec::new();
    let mut borders = borders.into_iter().peekable();
    while let Some((start, of)) = borders.next() {
        // Each border of a set is the other one of its two: in, or out.
        if !inside.remove(&of) {
            inside.insert(of);
        }
        let next = borders.peek().map(|(next, _)| *next);
        if next == Some(start) || !inside.contains(&Of::World) {
            continue;
        }
        let number = |of: &Of| match of {
            Of::Set(number) => Some(*number),
            Of::World | Of::Reached => None,
        };
        pieces.push(Piece {
            family,
            start,
            end: next.map_or(u128::MAX, |next| next - 1),
            reached: inside.contains(&Of::Reached),
            sets: inside.iter().filter_map(number).collect(),
        });
    }
    pieces
}

/// How a set stands to those who are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Standing {
    reached: usize,
    left_out: usize,
}

fn standings(pieces: &[Piece], sets: usize) -> Vec<Standing> {
    let mut standings = vec![Standing::default(); sets];
    for piece in pieces {
        for number in &piece.sets {
            let standing = &mut standings[*number];
            *(if piece.reached { &mut standing.reached } else { &mut standing.left_out }) += 1;
        }
    }
    standings
}

/// Everybody but some, where all who are in no set are reached.
fn all_but(pieces: &[Piece], sets: &[Named]) -> Option<Peer> {
    let mut strangers = pieces.iter().filter(|piece| piece.sets.is_empty()).peekable();
    if strangers.peek().is_none() || !strangers.all(|piece| piece.reached) {
        return None;
    }
    let standings = standings(pieces, sets.len());
    let out = |number: &usize| standings[*number].reached == 0;
    let mut names: Vec<String> = (0..sets.len())
        .filter(|number| standings[*number].left_out > 0 && out(number))
        .map(|number| sets[number].name.clone())
        .collect();
    names.extend(parts(pieces, |piece| !piece.reached, out).map(|number| format!("part of {}", sets[number].name)));
    Some(Peer::AnyoneBut(names))
}

/// Sets of which all are reached, those of which some are, and prefixes of those who are in no set.
fn some(pieces: &[Piece], sets: &[Named]) -> Vec<Peer> {
    let standings = standings(pieces, sets.len());
    let whole = |number: &usize| standings[*number].left_out == 0;
    // How many pieces two sets have in common.
    let mut common: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for piece in pieces.iter().filter(|piece| piece.reached) {
        for one in piece.sets.iter().filter(|number| whole(number)) {
            for other in piece.sets.iter().filter(|number| whole(number) && *number != one) {
                *common.entry((*one, *other)).or_default() += 1;
            }
        }
    }
    // A set within another one that is named says nothing more; of equal ones the first is named.
    let within: BTreeSet<usize> = common
        .iter()
        .filter(|((one, other), count)| {
            let size = |number: &usize| standings[*number].reached;
            **count == size(one) && (size(one) < size(other) || other < one)
        })
        .map(|((one, _), _)| *one)
        .collect();
    let wholes = (0..sets.len()).filter(|number| standings[*number].reached > 0 && whole(number));
    let mut peers: Vec<Peer> =
        wholes.filter(|number| !within.contains(number)).map(|number| Peer::Set(sets[number].name.clone())).collect();
    peers.extend(parts(pieces, |piece| piece.reached, whole).map(|number| Peer::PartOf(sets[number].name.clone())));
    let strangers = pieces.iter().filter(|piece| piece.reached && piece.sets.is_empty());
    let mut prefixes = prefixes(strangers);
    peers.extend(prefixes.by_ref().take(MOST_PREFIXES).map(Peer::Prefix));
    let more = prefixes.count();
    peers.extend((more > 0).then_some(Peer::More(more)));
    peers
}

/// The sets, one for each piece, in which such pieces are that are in none of those that are named as a whole.
fn parts(
    pieces: &[Piece],
    such: impl Fn(&Piece) -> bool,
    named: impl Fn(&usize) -> bool,
) -> impl Iterator<Item = usize> {
    let of_others = pieces.iter().filter(|piece| such(piece) && !piece.sets.iter().any(&named));
    of_others.filter_map(|piece| piece.sets.first().copied()).collect::<BTreeSet<usize>>().into_iter()
}

/// The prefixes that pieces are made of; those next to each other are one.
fn prefixes<'a>(pieces: impl Iterator<Item = &'a Piece>) -> impl Iterator<Item = IpNet> {
    let (v4, v6): (Vec<&Piece>, Vec<&Piece>) = pieces.partition(|piece| piece.family == Family::V4);
    let v4 = RangeSet::<u32>::narrowed(v4.iter().map(|piece| (piece.start, piece.end)));
    let v6: RangeSet<u128> = v6.iter().map(|piece| (piece.start, piece.end)).collect();
    let of_v4 = |(start, end): &(u32, u32)| Ipv4Subnets::new(Ipv4Addr::from_bits(*start), Ipv4Addr::from_bits(*end), 0);
    let of_v6 =
        |(start, end): &(u128, u128)| Ipv6Subnets::new(Ipv6Addr::from_bits(*start), Ipv6Addr::from_bits(*end), 0);
    let v4: Vec<IpNet> = v4.ranges().iter().flat_map(of_v4).map(IpNet::from).collect();
    v4.into_iter().chain(v6.ranges().iter().flat_map(of_v6).map(IpNet::from).collect::<Vec<_>>())
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
