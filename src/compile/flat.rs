//! Rules of the policy -> flat rules: each a conjunction that one nft rule can test, of one address family where it looks at
//! addresses.

use std::collections::{BTreeMap, BTreeSet};

use crate::net::addr::{AddrSet, Family};
use crate::net::protocol::{IcmpSet, L4Detail, L4Match, PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::effective::{Addresses, EffectiveRule, ProcessMatch, Units};

/// A conjunction of conditions, each absent or one nft statement.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Flat {
    /// The IP version; present when an address is, and then that address's.
    pub(super) family: Option<Family>,
    /// The source address.
    pub(super) from: Option<Peer>,
    /// The destination address.
    pub(super) to: Option<Peer>,
    /// The transport header.
    pub(super) l4: FlatL4,
    /// The source port.
    pub(super) source_ports: Option<PortSet>,
    /// The process that sends it.
    pub(super) process: Option<FlatProcess>,
}

impl Flat {
    /// Whether it holds for every packet.
    pub(super) fn is_always(&self) -> bool {
        let Self { family, from, to, l4, source_ports, process } = self;
        family.is_none()
            && from.is_none()
            && to.is_none()
            && *l4 == FlatL4::Any
            && source_ports.is_none()
            && process.is_none()
    }

    /// Whether it can hold for packets of this family.
    pub(super) fn has_packets_of(&self, family: Family) -> bool {
        self.family.is_none_or(|own| own == family) && exists_in(&self.l4, Some(family))
    }
}

/// What a flat rule asks of the local socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FlatProcess {
    /// One of these users.
    pub(super) users: Option<RangeSet<u32>>,
    /// One of these groups.
    pub(super) groups: Option<RangeSet<u32>>,
    /// In one of these control groups of one level.
    pub(super) cgroups: Option<FlatCgroups>,
}

/// Control groups of one level.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FlatCgroups {
    /// The kernel set that holds them.
    pub(super) set: String,
    /// The level.
    pub(super) level: u8,
    /// Their ids.
    pub(super) ids: BTreeSet<u64>,
}

/// Addresses of one family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Peer {
    /// The kernel set that holds them, without the family suffix; `None` for literal addresses.
    pub(super) set: Option<String>,
    /// The addresses.
    pub(super) addresses: PeerRanges,
}

/// The ranges of a [`Peer`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum PeerRanges {
    /// IPv4.
    V4(RangeSet<u32>),
    /// IPv6.
    V6(RangeSet<u128>),
}

impl PeerRanges {
    /// How many ranges.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.ranges().len(),
            Self::V6(ranges) => ranges.ranges().len(),
        }
    }
}

/// The transport condition of a flat rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FlatL4 {
    /// None.
    Any,
    /// One of these protocols.
    Protocols(RangeSet<u8>),
    /// One of these destination ports of these protocols.
    Ports(BTreeMap<Protocol, PortSet>),
    /// One of these ICMP types.
    Icmp(IcmpSet),
    /// One of these ICMPv6 types.
    Icmpv6(IcmpSet),
}

/// The flat rules that together match what the rule matches. None overlaps in meaning with a later rule of another verdict,
/// so their order among themselves does not count.
pub(super) fn flatten(rule: &EffectiveRule) -> Vec<Flat> {
    let transports = transports(&rule.l4, rule.source_ports.as_ref());
    let processes = processes(rule.process.as_ref());
    let mut flats = Vec::new();
    for (family, from, to) in peers(rule) {
        for l4 in transports.iter().filter(|l4| exists_in(l4, family)) {
            flats.extend(processes.iter().map(|process| Flat {
                family,
                from: from.clone(),
                to: to.clone(),
                l4: l4.clone(),
                source_ports: rule.source_ports.clone(),
                process: process.clone(),
            }));
        }
    }
    flats
}

/// The process part: once where no process is looked at, not at all where none can be meant, and once for each level of control groups.
fn processes(process: Option<&ProcessMatch>) -> Vec<Option<FlatProcess>> {
    let Some(ProcessMatch { users, groups, units }) = process else { return vec![None] };
    let none = |ids: &Option<RangeSet<u32>>| ids.as_ref().is_some_and(RangeSet::is_empty);
    if none(users) || none(groups) {
        return Vec::new();
    }
    let of = |cgroups| Some(FlatProcess { users: users.clone(), groups: groups.clone(), cgroups });
    let Some(Units { name, cgroups }) = units else { return vec![of(None)] };
    let mut levels: BTreeMap<u8, BTreeSet<u64>> = BTreeMap::new();
    for cgroup in cgroups {
        levels.entry(cgroup.level).or_default().insert(cgroup.id);
    }
    levels
        .into_iter()
        .map(|(level, ids)| of(Some(FlatCgroups { set: format!("{name}/{level}"), level, ids })))
        .collect()
}

/// Whether the transport condition can hold in packets of the family: ICMP is IPv4's and ICMPv6 is IPv6's, and nft(8) does
/// not even have words for a rule that looks for one in the other.
fn exists_in(l4: &FlatL4, family: Option<Family>) -> bool {
    match l4 {
        FlatL4::Icmp(_) => family != Some(Family::V6),
        FlatL4::Icmpv6(_) => family != Some(Family::V4),
        _ => true,
    }
}

/// The address part: once for both families when no address is looked at, else once per family that can match.
fn peers(rule: &EffectiveRule) -> Vec<(Option<Family>, Option<Peer>, Option<Peer>)> {
    let any = |addresses: &Addresses| match addresses {
        Addresses::Any => true,
        Addresses::Literal(set) => set.is_full(),
        Addresses::Named(..) => false,
    };
    if any(&rule.from) && any(&rule.to) {
        return vec![(rule.family, None, None)];
    }
    [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| rule.family.is_none_or(|wanted| wanted == *family))
        .filter_map(|family| {
            let from = peer(&rule.from, family)?;
            let to = peer(&rule.to, family)?;
            Some((Some(family), from, to))
        })
        .collect()
}

/// The addresses of one family: `None` when there is none, `Some(None)` when all of them are meant.
fn peer(addresses: &Addresses, family: Family) -> Option<Option<Peer>> {
    let ranges = |set: &AddrSet| match family {
        Family::V4 => (!set.v4.is_empty()).then(|| (PeerRanges::V4(set.v4.clone()), set.v4.is_full())),
        Family::V6 => (!set.v6.is_empty()).then(|| (PeerRanges::V6(set.v6.clone()), set.v6.is_full())),
    };
    match addresses {
        Addresses::Any => Some(None),
        Addresses::Literal(set) => {
            let (addresses, all) = ranges(set)?;
            Some((!all).then_some(Peer { set: None, addresses }))
        }
        Addresses::Named(name, set) => {
            let (addresses, _) = ranges(set)?;
            Some(Some(Peer { set: Some(name.clone()), addresses }))
        }
    }
}

/// The transport part: whole protocols, ports and ICMP types take a flat rule each.
fn transports(l4: &L4Match, source_ports: Option<&PortSet>) -> Vec<FlatL4> {
    let protocols = match l4 {
        L4Match::Any if source_ports.is_none() => return vec![FlatL4::Any],
        L4Match::Any => return with_ports(RangeSet::full()).into_iter().map(FlatL4::Protocols).collect(),
        L4Match::Only(protocols) => protocols,
    };
    let mut whole = Vec::new();
    let mut ports: BTreeMap<Protocol, PortSet> = BTreeMap::new();
    let mut flats = Vec::new();
    for (protocol, detail) in protocols {
        match detail {
            L4Detail::All => whole.push((protocol.0, protocol.0)),
            L4Detail::Ports(set) if !set.is_empty() => {
                ports.insert(*protocol, set.clone());
            }
            L4Detail::Ports(_) => {}
            L4Detail::Icmp(types) => {
                let types: IcmpSet = types
                    .iter()
                    .filter(|(_, codes)| !codes.is_empty())
                    .map(|(kind, codes)| (*kind, codes.clone()))
                    .collect();
                // A source port is asked for, and ICMP has none.
                if types.is_empty() || source_ports.is_some() {
                    continue;
                }
                flats.push(if *protocol == Protocol::ICMP { FlatL4::Icmp(types) } else { FlatL4::Icmpv6(types) });
            }
        }
    }
    let whole: RangeSet<u8> = whole.into_iter().collect();
    let whole = if source_ports.is_some() { with_ports(whole) } else { Some(whole).filter(|set| !set.is_empty()) };
    if !ports.is_empty() {
        flats.insert(0, FlatL4::Ports(ports));
    }
    flats.extend(whole.map(FlatL4::Protocols));
    flats
}

/// Those of the protocols that have ports.
fn with_ports(protocols: RangeSet<u8>) -> Option<RangeSet<u8>> {
    let having: RangeSet<u8> =
        (0..=u8::MAX).filter(|number| Protocol(*number).has_ports()).map(|number| (number, number)).collect();
    Some(protocols.intersection(&having)).filter(|set| !set.is_empty())
}
