//! Lines that differ in one key -> for each value of the key, the lines that can match it, in order and without the key.
//!
//! Unlike a verdict map over one address, in which each value belongs to the first line that names it, the lines may ask for more than
//! the key: another address, a port, a process, a limit. A packet goes to the lines of its value and nowhere else, so that it comes by
//! each of them once.

use std::collections::BTreeSet;

use super::flat::{Flat, FlatCgroups, FlatL4, FlatProcess, Peer, PeerRanges};
use super::lower::{Effect, Line, MOST_RANGES_OF_A_PEER_IN_A_MAP};
use super::shards::{self, Lists};
use crate::net::addr::Family;
use crate::net::protocol::Protocol;
use crate::net::range::{Point, RangeSet};
use crate::nft::key::{Key, Side};

/// What lines may differ in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Dimension {
    /// The port of one side.
    Port(Side),
    /// The address of one side.
    Address(Side),
    /// The user of the socket.
    User,
    /// The group of the socket.
    Group,
    /// The control group of the socket, at this level.
    Cgroup(u8),
}

/// A map over one key.
pub(super) struct Map {
    /// The key.
    pub(super) key: Key,
    /// What it tells apart, as a word for names: "sources_4", "tcp-source-ports".
    pub(super) word: String,
    /// The lines without the key; none is there that no packet with the key can match.
    pub(super) lines: Vec<Line>,
    /// Which of them each value has, as far as one is reached.
    pub(super) lists: Lists,
    /// The named sets whose addresses are the values.
    pub(super) sets: BTreeSet<String>,
}

impl Map {
    /// The most lines that a value has.
    pub(super) fn longest(&self) -> usize {
        self.lists.lists.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Whether each value has half of the lines at most.
    pub(super) fn tells_apart(&self) -> bool {
        self.longest() * 2 <= self.lines.len()
    }

    /// How many bits a value has.
    pub(super) const fn bits(&self) -> u32 {
        self.key.data_type().size() as u32 * 8
    }
}

impl Dimension {
    /// The ways in which a line may differ from others; what changes with a policy only goes before addresses, which change with sets,
    /// and before control groups, which change with units.
    pub(super) fn of(line: &Line) -> Vec<Self> {
        let sides = [Side::Destination, Side::Source];
        let mut all: Vec<Self> = sides.map(Self::Port).into();
        all.extend([Self::User, Self::Group]);
        all.extend(sides.map(Self::Address));
        let cgroups = line.flat.process.as_ref().and_then(|process| process.cgroups.as_ref());
        all.extend(cgroups.map(|cgroups| Self::Cgroup(cgroups.level)));
        all.retain(|dimension| dimension.is_asked(&line.flat));
        all
    }

    /// Whether a flat rule asks for it, and for no more of it than is worth a place in a map.
    pub(super) fn is_asked(self, flat: &Flat) -> bool {
        let process = flat.process.as_ref();
        match self {
            Self::Port(Side::Source) => flat.source_ports.is_some(),
            Self::Port(Side::Destination) => matches!(flat.l4, FlatL4::Ports(_)),
            Self::Address(Side::Source) => flat.from.as_ref().is_some_and(fits),
            Self::Address(Side::Destination) => flat.to.as_ref().is_some_and(fits),
            Self::User => process.is_some_and(|process| process.users.is_some()),
            Self::Group => process.is_some_and(|process| process.groups.is_some()),
            Self::Cgroup(level) => {
                process.and_then(|process| process.cgroups.as_ref()).is_some_and(|cgroups| cgroups.level == level)
            }
        }
    }

    /// The maps that tell these lines apart, which all ask for it: one for each family or protocol, of which a packet has one. `None` if
    /// they would have more than so many pairs of a value and a line.
    pub(super) fn maps(self, lines: &[Line], most: usize) -> Option<Vec<Map>> {
        let mut maps = Vec::new();
        for (key, word) in self.keys(lines) {
            let mut reduced = Vec::new();
            let (mut ranges, mut sets) = (Vec::new(), BTreeSet::new());
            for line in lines {
                let Some((flat, values)) = without(&line.flat, key, line.effect == Effect::Reject) else { continue };
                let index = reduced.len();
                sets.extend(named(&line.flat, key).cloned());
                ranges.extend(values.into_iter().map(|(start, end)| (start, end, index)));
                reduced.push(Line { flat, ..line.clone() });
            }
            let lists = shards::lists(ranges, most, |index| reduced.get(index).is_some_and(Line::ends))?;
            maps.push(Map { key, word, lines: reduced, lists, sets });
        }
        let pairs: usize = maps.iter().map(|map| map.lists.pairs).sum();
        (pairs <= most).then_some(maps)
    }

    /// The keys that it takes for these lines, with words.
    fn keys(self, lines: &[Line]) -> Vec<(Key, String)> {
        let of_side = |side, [source, destination]: [&'static str; 2]| match side {
            Side::Source => source,
            Side::Destination => destination,
        };
        match self {
            Self::Address(side) => [(Family::V4, "_4"), (Family::V6, "_6")]
                .into_iter()
                .filter(|(family, _)| lines.iter().any(|line| line.flat.family == Some(*family)))
                .map(|(family, suffix)| {
                    let word = of_side(side, ["sources", "destinations"]);
                    (Key::IpAddr(family, side), format!("{word}{suffix}"))
                })
                .collect(),
            Self::Port(side) => (0..=u8::MAX)
                .map(Protocol)
                .filter(|protocol| protocol.has_ports())
                .filter(|protocol| lines.iter().any(|line| has_ports_of(&line.flat.l4, *protocol)))
                .map(|protocol| {
                    let word = of_side(side, ["source-ports", "ports"]);
                    (Key::Port(Some(protocol), side), format!("{protocol}-{word}"))
                })
                .collect(),
            Self::User => vec![(Key::SocketUser, "users".to_owned())],
            Self::Group => vec![(Key::SocketGroup, "groups".to_owned())],
            Self::Cgroup(level) => vec![(Key::SocketCgroup(level), format!("units-{level}"))],
        }
    }
}

/// The named set that a flat rule's address is in, where the key is that address.
fn named(flat: &Flat, key: Key) -> Option<&String> {
    match key {
        Key::IpAddr(_, Side::Source) => flat.from.as_ref()?.set.as_ref(),
        Key::IpAddr(_, Side::Destination) => flat.to.as_ref()?.set.as_ref(),
        _ => None,
    }
}

fn fits(peer: &Peer) -> bool {
    peer.addresses.len() <= MOST_RANGES_OF_A_PEER_IN_A_MAP
}

/// Whether a condition that asks for ports can hold for packets of a protocol.
fn has_ports_of(l4: &FlatL4, protocol: Protocol) -> bool {
    match l4 {
        FlatL4::Ports(ports) => ports.contains_key(&protocol),
        FlatL4::Protocols(protocols) => protocols.contains(protocol.0),
        FlatL4::Any | FlatL4::Icmp(_) | FlatL4::Icmpv6(_) => false,
    }
}

/// The flat rule for a packet that has the key, and the values of the key for which it can hold; `None` if it holds for none. Whether a
/// reject answers TCP has to stay known.
fn without(flat: &Flat, key: Key, rejects: bool) -> Option<(Flat, Vec<(u128, u128)>)> {
    let mut rest = flat.clone();
    let values = match key {
        Key::IpAddr(family, side) => {
            let peer = match side {
                Side::Source => rest.from.take(),
                Side::Destination => rest.to.take(),
            };
            // The other address says which family it is, and so does the key.
            if rest.family != Some(family) {
                return None;
            }
            if rest.from.is_none() && rest.to.is_none() {
                rest.family = None;
            }
            match peer?.addresses {
                PeerRanges::V4(set) => wide(&set),
                PeerRanges::V6(set) => set.ranges().to_vec(),
            }
        }
        Key::Port(Some(protocol), side) => {
            if !has_ports_of(&rest.l4, protocol) {
                return None;
            }
            let known = if rejects { FlatL4::Protocols(RangeSet::single(protocol.0)) } else { FlatL4::Any };
            match (side, rest.l4) {
                (Side::Source, FlatL4::Ports(mut ports)) => {
                    ports.retain(|other, _| *other == protocol);
                    rest.l4 = FlatL4::Ports(ports);
                    wide(&rest.source_ports.take()?)
                }
                (Side::Source, _) => {
                    rest.l4 = known;
                    wide(&rest.source_ports.take()?)
                }
                (Side::Destination, FlatL4::Ports(ports)) => {
                    // A source port is read as the protocol's.
                    let named = rest.source_ports.is_some();
                    rest.l4 = if named { FlatL4::Protocols(RangeSet::single(protocol.0)) } else { known };
                    wide(ports.get(&protocol)?)
                }
                (Side::Destination, _) => return None,
            }
        }
        Key::SocketUser => wide(&rest.process.as_mut()?.users.take()?),
        Key::SocketGroup => wide(&rest.process.as_mut()?.groups.take()?),
        Key::SocketCgroup(_) => {
            let FlatCgroups { ids, .. } = rest.process.as_mut()?.cgroups.take()?;
            ids.into_iter().map(|id| (u128::from(id), u128::from(id))).collect()
        }
        _ => return None,
    };
    let nothing = FlatProcess { users: None, groups: None, cgroups: None };
    rest.process = rest.process.filter(|process| *process != nothing);
    Some((rest, values))
}

/// The ranges of a set as numbers of any size.
fn wide<T: Point + Into<u128>>(set: &RangeSet<T>) -> Vec<(u128, u128)> {
    set.ranges().iter().map(|(start, end)| ((*start).into(), (*end).into())).collect()
}
