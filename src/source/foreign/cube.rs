//! The packets that a rule of another firewall means: a conjunction of sets, one for each thing that a rule can look at.

use std::collections::BTreeSet;

use super::names::Names;
use crate::net::addr::AddrSet;
use crate::net::protocol::{PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::model::Limit;

/// ICMP types and codes, as `type << 8 | code`.
pub(super) type IcmpTypes = RangeSet<u16>;

/// One ICMP type with all its codes, or with one.
pub(super) fn icmp_types(kind: u8, code: Option<u8>) -> IcmpTypes {
    let kind = u16::from(kind) << 8;
    code.map_or_else(|| RangeSet::range(kind, kind | 0xff), |code| RangeSet::single(kind | u16::from(code)))
}

/// Connection states, as bits: only of packets that nodewall asks its policies about. What is established, related or invalid is
/// decided before, so that conditions on these are left out of the set.
pub(super) const NEW: u8 = 1;
/// Not tracked: by `notrack`, or because connection tracking passes a kind of ICMPv6 by.
pub(super) const UNTRACKED: u8 = 2;

/// What a destination is to this host, as bits: one of its own addresses,
pub(super) const LOCAL: u8 = 1;
/// a multicast group,
pub(super) const MULTICAST: u8 = 2;
/// a broadcast address, which IPv6 has none of,
pub(super) const BROADCAST: u8 = 4;
/// or anything else: other hosts, and the anycast addresses of IPv6.
pub(super) const OTHER: u8 = 8;

/// Every kind of destination.
pub(super) const ALL_KINDS: u8 = LOCAL | MULTICAST | BROADCAST | OTHER;

/// Packets. Each field is a condition, and all of them hold.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Cube {
    /// IPv4 packets are among them.
    pub(super) v4: bool,
    /// IPv6 packets are among them.
    pub(super) v6: bool,
    /// The interface on which they arrive.
    pub(super) input: Names,
    /// The interface by which they leave.
    pub(super) output: Names,
    /// Bits of [`NEW`] and [`UNTRACKED`].
    pub(super) states: u8,
    /// Protocols by number.
    pub(super) protocols: RangeSet<u8>,
    /// Source addresses.
    pub(super) source: AddrSet,
    /// Destination addresses.
    pub(super) destination: AddrSet,
    /// What the destination is: bits of [`LOCAL`], [`MULTICAST`], [`BROADCAST`] and [`OTHER`].
    pub(super) kinds: u8,
    /// Source ports, of protocols that have them.
    pub(super) sports: PortSet,
    /// Destination ports.
    pub(super) dports: PortSet,
    /// Types of ICMP.
    pub(super) icmp: IcmpTypes,
    /// Types of ICMPv6.
    pub(super) icmpv6: IcmpTypes,
    /// Users who own the sending socket; `None` is anybody.
    pub(super) users: Option<BTreeSet<String>>,
    /// Groups of the sending socket.
    pub(super) groups: Option<BTreeSet<String>>,
    /// Only so often.
    pub(super) limit: Option<Limit>,
    /// Only what is over this limit.
    pub(super) over: Option<Limit>,
    /// Conditions that nobody here can say, in words. Fewer packets than the rest of the fields describe.
    pub(super) unknown: BTreeSet<String>,
}

/// An unknown condition that only takes packets away from what has one limit: who denies or logs may do without it.
pub(super) const TWO_LIMITS: &str = "two limits at once";
/// The same: each rule gets a bucket of its own.
pub(super) const SHARED_LIMIT: &str = "a limit that several rules share";

impl Cube {
    /// Every packet.
    pub(super) fn full() -> Self {
        Self {
            v4: true,
            v6: true,
            input: Names::default(),
            output: Names::default(),
            states: NEW | UNTRACKED,
            protocols: RangeSet::full(),
            source: AddrSet::full(),
            destination: AddrSet::full(),
            kinds: ALL_KINDS,
            sports: RangeSet::full(),
            dports: RangeSet::full(),
            icmp: RangeSet::full(),
            icmpv6: RangeSet::full(),
            users: None,
            groups: None,
            limit: None,
            over: None,
            unknown: BTreeSet::new(),
        }
    }

    /// Every packet of these families.
    pub(super) fn of(v4: bool, v6: bool) -> Self {
        Self { v4, v6, ..Self::full() }
    }

    /// A condition that nobody here can say.
    pub(super) fn unknown(words: impl Into<String>) -> Self {
        Self { unknown: BTreeSet::from([words.into()]), ..Self::full() }
    }

    /// Packets of this protocol.
    pub(super) fn protocol(protocol: Protocol) -> Self {
        Self { protocols: RangeSet::single(protocol.0), ..Self::full() }
    }

    /// Whether no packet is in it, whatever its unknown conditions are.
    pub(super) fn is_empty(&self) -> bool {
        let empty = |set: &AddrSet| (!self.v4 || set.v4.is_empty()) && (!self.v6 || set.v6.is_empty());
        let only = self.protocols.only();
        !(self.v4 || self.v6)
            || self.input.is_empty()
            || self.output.is_empty()
            || self.states == 0
            || self.kinds == 0
            || self.protocols.is_empty()
            || empty(&self.source)
            || empty(&self.destination)
            || self.sports.is_empty()
            || self.dports.is_empty()
            || only == Some(Protocol::ICMP.0) && self.icmp.is_empty()
            || only == Some(Protocol::ICMPV6.0) && self.icmpv6.is_empty()
            || self.users.as_ref().is_some_and(BTreeSet::is_empty)
            || self.groups.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// Packets that are in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        let mut unknown: BTreeSet<String> = self.unknown.union(&other.unknown).cloned().collect();
        let names = |one: &Option<BTreeSet<String>>, other: &Option<BTreeSet<String>>| match (one, other) {
            (None, either) | (either, None) => either.clone(),
            (Some(one), Some(other)) => Some(one.intersection(other).cloned().collect()),
        };
        let mut limit = |one: Option<Limit>, other: Option<Limit>| match (one, other) {
            (None, either) | (either, None) => either,
            (Some(one), Some(_)) => {
                unknown.insert(TWO_LIMITS.to_owned());
                Some(one)
            }
        };
        let (limited, over) = (limit(self.limit, other.limit), limit(self.over, other.over));
        let mut both = Self {
            v4: self.v4 && other.v4,
            v6: self.v6 && other.v6,
            input: self.input.intersection(&other.input),
            output: self.output.intersection(&other.output),
            states: self.states & other.states,
            protocols: self.protocols.intersection(&other.protocols),
            source: self.source.intersection(&other.source),
            destination: self.destination.intersection(&other.destination),
            kinds: self.kinds & other.kinds,
            sports: self.sports.intersection(&other.sports),
            dports: self.dports.intersection(&other.dports),
            icmp: self.icmp.intersection(&other.icmp),
            icmpv6: self.icmpv6.intersection(&other.icmpv6),
            users: names(&self.users, &other.users),
            groups: names(&self.groups, &other.groups),
            limit: limited,
            over,
            unknown,
        };
        // A family of which no address is left has no packets.
        both.v4 &= !both.source.v4.is_empty() && !both.destination.v4.is_empty();
        both.v6 &= !both.source.v6.is_empty() && !both.destination.v6.is_empty();
        both.tidy();
        both
    }

    /// The same packets, said in one way: what says nothing of any packet that is in it is as in [`Self::full`].
    pub(super) fn tidy(&mut self) {
        if !self.v4 {
            self.source.v4 = RangeSet::full();
            self.destination.v4 = RangeSet::full();
        }
        if !self.v6 {
            self.source.v6 = RangeSet::full();
            self.destination.v6 = RangeSet::full();
        }
        if !self.v4 || !self.protocols.contains(Protocol::ICMP.0) {
            self.icmp = RangeSet::full();
        }
        if !self.v6 || !self.protocols.contains(Protocol::ICMPV6.0) {
            self.icmpv6 = RangeSet::full();
        }
    }

    /// Whether nothing but sets is in it, which have a complement.
    fn is_plain(&self) -> bool {
        self.users.is_none()
            && self.groups.is_none()
            && self.limit.is_none()
            && self.over.is_none()
            && self.unknown.is_empty()
    }

    /// Whether every packet of the other is in it for sure.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let both = other.and(&Self { unknown: BTreeSet::new(), ..self.clone() });
        self.is_plain() && both == *other
    }

    /// The packets that are not in the other, where that is one conjunction again.
    pub(super) fn without(&self, other: &Self) -> Option<Self> {
        if !other.is_plain() {
            return None;
        }
        let both = self.and(other);
        let mut left = self.clone();
        let mut differs = 0;
        let (lost_v4, lost_v6) = (self.v4 && !both.v4, self.v6 && !both.v6);
        macro_rules! sets {
            ($($field:ident),*) => {$(
                if self.$field != both.$field {
                    left.$field = self.$field.difference(&both.$field);
                    differs += 1;
                }
            )*};
        }
        if lost_v4 || lost_v6 {
            // What the other family's packets are is not asked there: they stay.
            let same = |one: &AddrSet, other: &AddrSet| if lost_v4 { one.v6 == other.v6 } else { one.v4 == other.v4 };
            match (same(&self.source, &both.source), same(&self.destination, &both.destination)) {
                (true, true) => (left.v4, left.v6) = (lost_v4, lost_v6),
                (false, true) if lost_v4 => left.source.v6 = self.source.v6.difference(&both.source.v6),
                (false, true) => left.source.v4 = self.source.v4.difference(&both.source.v4),
                (true, false) if lost_v4 => left.destination.v6 = self.destination.v6.difference(&both.destination.v6),
                (true, false) => left.destination.v4 = self.destination.v4.difference(&both.destination.v4),
                (false, false) => return None,
            }
            differs += 1;
        } else {
            sets!(source, destination);
        }
        if self.input != both.input {
            left.input = self.input.intersection(&both.input.complement()?);
            differs += 1;
        }
        if self.output != both.output {
            left.output = self.output.intersection(&both.output.complement()?);
            differs += 1;
        }
        if self.states != both.states {
            left.states = self.states & !both.states;
            differs += 1;
        }
        if self.kinds != both.kinds {
            left.kinds = self.kinds & !both.kinds;
            differs += 1;
        }
        let only = self.protocols.only();
        // A packet without ports is not of another port, and one of another protocol not of another type.
        if (self.sports != both.sports || self.dports != both.dports) && !has_ports(&self.protocols)
            || self.icmp != both.icmp && (only != Some(Protocol::ICMP.0) || self.v6)
            || self.icmpv6 != both.icmpv6 && (only != Some(Protocol::ICMPV6.0) || self.v4)
        {
            return None;
        }
        sets!(protocols, sports, dports, icmp, icmpv6);
        left.v4 &= !left.source.v4.is_empty() && !left.destination.v4.is_empty();
        left.v6 &= !left.source.v6.is_empty() && !left.destination.v6.is_empty();
        left.tidy();
        (differs == 1).then_some(left)
    }
}

/// Whether all these protocols have ports.
pub(super) fn has_ports(protocols: &RangeSet<u8>) -> bool {
    let with: RangeSet<u8> =
        (0..=u8::MAX).filter(|number| Protocol(*number).has_ports()).map(|number| (number, number)).collect();
    protocols.difference(&with).is_empty()
}
