//! IP protocols and what is matched inside them: ports and ICMP types, by number and by name.

use std::collections::BTreeMap;
use std::fmt;

use super::range::RangeSet;

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(1);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// DCCP (RFC 4340).
    pub const DCCP: Self = Self(33);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);
    /// UDP-Lite (RFC 3828).
    pub const UDPLITE: Self = Self(136);

    /// Whether source and destination port are the first four bytes of its header.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::DCCP | Self::SCTP | Self::UDPLITE)
    }

    /// The name that policy files use, if it has one.
    pub fn name(self) -> Option<&'static str> {
        PROTOCOL_NAMES.iter().find(|(_, number)| *number == self.0).map(|(name, _)| *name)
    }

    /// The protocol of this name; letter case does not count.
    pub fn by_name(name: &str) -> Option<Self> {
        PROTOCOL_NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, number)| Self(*number))
    }

    /// Every name that [`Protocol::by_name`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROTOCOL_NAMES.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "{}", self.0),
        }
    }
}

/// Names as in IANA's registry, in the spelling of nft(8).
const PROTOCOL_NAMES: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

/// A set of destination or source ports.
pub type PortSet = RangeSet<u16>;

/// ICMP or ICMPv6 types, each with its codes.
pub type IcmpSet = BTreeMap<u8, RangeSet<u8>>;

/// The number of an ICMP (v4) type by its name in nft(8).
pub fn icmp_type(name: &str) -> Option<u8> {
    ICMP_TYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The number of an ICMPv6 type by its name in nft(8).
pub fn icmpv6_type(name: &str) -> Option<u8> {
    ICMPV6_TYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The name of an ICMP (v4) type in nft(8).
pub fn icmp_type_name(number: u8) -> Option<&'static str> {
    ICMP_TYPES.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// The name of an ICMPv6 type in nft(8).
pub fn icmpv6_type_name(number: u8) -> Option<&'static str> {
    ICMPV6_TYPES.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// nft(8), "ICMP TYPE TYPE".
pub const ICMP_TYPES: &[(&str, u8)] = &[
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
    ("info-request", 15),
    ("info-reply", 16),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
];

/// nft(8), "ICMPV6 TYPE TYPE".
pub const ICMPV6_TYPES: &[(&str, u8)] = &[
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("mld-listener-query", 130),
    ("mld-listener-report", 131),
    ("mld-listener-done", 132),
    ("nd-router-solicit", 133),
    ("nd-router-advert", 134),
    ("nd-neighbor-solicit", 135),
    ("nd-neighbor-advert", 136),
    ("nd-redirect", 137),
    ("router-renumbering", 138),
    ("ind-neighbor-solicit", 141),
    ("ind-neighbor-advert", 142),
    ("mld2-listener-report", 143),
];

/// What is matched of the transport header, as a set over (protocol, its destination ports or ICMP types):
/// positive only, because a negation in a policy is a subtraction here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum L4Match {
    /// Every packet, whatever its protocol; one without a readable transport header too.
    Any,
    /// Only these protocols.
    Only(BTreeMap<Protocol, L4Detail>),
}

/// What is matched inside one protocol.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum L4Detail {
    /// Every packet of the protocol, one with a truncated header too.
    All,
    /// Packets with one of these destination ports; a packet whose ports cannot be read has none.
    Ports(PortSet),
    /// Packets with one of these ICMP types and codes.
    Icmp(IcmpSet),
}

impl L4Match {
    /// Whether no packet can match.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Any => false,
            Self::Only(protocols) => protocols.values().all(|detail| match detail {
                L4Detail::All => false,
                L4Detail::Ports(ports) => ports.is_empty(),
                L4Detail::Icmp(types) => types.values().all(RangeSet::is_empty),
            }),
        }
    }
}
