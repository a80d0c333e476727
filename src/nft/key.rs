//! What a rule looks at (nft(8): payload, meta and conntrack expressions) and the data types of sets.

use crate::net::addr::Family;
use crate::net::protocol::Protocol;

/// A value that the kernel compares: up to 16 bytes. Numbers are big-endian here whatever the kernel wants; the
/// netlink form turns those of host byte order around ([`DataType::host_order`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Datum {
    length: u8,
    bytes: [u8; 16],
}

impl Datum {
    /// A value of at most 16 bytes; what is longer is cut (no key is longer).
    pub fn new(value: &[u8]) -> Self {
        let length = value.len().min(16);
        let mut bytes = [0; 16];
        bytes[..length].copy_from_slice(&value[..length]);
        Self { length: length as u8, bytes }
    }

    /// An interface name or kind, padded with zeros to 16 bytes as the kernel keeps it.
    pub fn name(name: &str) -> Self {
        let mut padded = [0; 16];
        let length = name.len().min(15);
        padded[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self { length: 16, bytes: padded }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The bytes as a big-endian number.
    pub fn number(&self) -> u128 {
        self.bytes().iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
    }

    /// A number in `size` big-endian bytes.
    pub fn from_number(number: u128, size: usize) -> Self {
        Self::new(&number.to_be_bytes()[16 - size.min(16)..])
    }

    /// The text of a name, without its padding.
    pub fn as_name(&self) -> String {
        String::from_utf8_lossy(self.bytes()).trim_end_matches('\0').to_owned()
    }
}

impl std::fmt::Debug for Datum {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "0x")?;
        self.bytes().iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl From<u8> for Datum {
    fn from(value: u8) -> Self {
        Self::new(&value.to_be_bytes())
    }
}
impl From<u16> for Datum {
    fn from(value: u16) -> Self {
        Self::new(&value.to_be_bytes())
    }
}
impl From<u32> for Datum {
    fn from(value: u32) -> Self {
        Self::new(&value.to_be_bytes())
    }
}
impl From<u64> for Datum {
    fn from(value: u64) -> Self {
        Self::new(&value.to_be_bytes())
    }
}
impl From<u128> for Datum {
    fn from(value: u128) -> Self {
        Self::new(&value.to_be_bytes())
    }
}

/// A data type of nft(8) "DATA TYPES".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DataType {
    /// `nf_proto`
    NfProto,
    /// `ipv4_addr`
    Ipv4Addr,
    /// `ipv6_addr`
    Ipv6Addr,
    /// `inet_proto`
    InetProto,
    /// `inet_service`
    InetService,
    /// `icmp_type`
    IcmpType,
    /// `icmp_code`
    IcmpCode,
    /// `icmpv6_type`
    Icmpv6Type,
    /// `icmpv6_code`
    Icmpv6Code,
    /// `ifname`: interface names, and the kinds of `iifkind`
    Ifname,
    /// `iface_type`: the ARP hardware type
    IfaceType,
    /// `ct_state`: a bit mask
    CtState,
    /// An integer of one byte without a name of its own: the hop limit
    Integer,
    /// `mark`: the packet mark, a bit mask
    Mark,
    /// `uid`
    Uid,
    /// `gid`
    Gid,
    /// `cgroupsv2`: the id of a control group, 8 bytes
    Cgroup,
}

impl DataType {
    /// Every type.
    pub const ALL: [Self; 17] = [
        Self::NfProto,
        Self::Ipv4Addr,
        Self::Ipv6Addr,
        Self::InetProto,
        Self::InetService,
        Self::IcmpType,
        Self::IcmpCode,
        Self::Icmpv6Type,
        Self::Icmpv6Code,
        Self::Ifname,
        Self::IfaceType,
        Self::CtState,
        Self::Integer,
        Self::Mark,
        Self::Uid,
        Self::Gid,
        Self::Cgroup,
    ];

    /// Its number in nft's `enum datatypes` (include/datatype.h): what `NFTA_SET_KEY_TYPE` carries so that nft can print
    /// the set. The kernel does not read it.
    pub const fn id(self) -> u32 {
        match self {
            Self::NfProto => 2,
            Self::Integer => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::IcmpType => 14,
            Self::Mark => 19,
            Self::IfaceType => 21,
            Self::Uid => 24,
            Self::Gid => 25,
            Self::CtState => 26,
            Self::Icmpv6Type => 29,
            Self::IcmpCode => 32,
            Self::Icmpv6Code => 33,
            Self::Ifname => 41,
            Self::Cgroup => 46,
        }
    }

    /// Its name in nft(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::NfProto => "nf_proto",
            Self::Integer => "integer",
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::IcmpType => "icmp_type",
            Self::IfaceType => "iface_type",
            Self::CtState => "ct_state",
            Self::Icmpv6Type => "icmpv6_type",
            Self::IcmpCode => "icmp_code",
            Self::Icmpv6Code => "icmpv6_code",
            Self::Ifname => "ifname",
            Self::Mark => "mark",
            Self::Uid => "uid",
            Self::Gid => "gid",
            Self::Cgroup => "cgroupsv2",
        }
    }

    /// Its size in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::NfProto
            | Self::InetProto
            | Self::IcmpType
            | Self::IcmpCode
            | Self::Icmpv6Type
            | Self::Icmpv6Code
            | Self::Integer => 1,
            Self::InetService | Self::IfaceType => 2,
            Self::Ipv4Addr | Self::CtState | Self::Mark | Self::Uid | Self::Gid => 4,
            Self::Cgroup => 8,
            Self::Ipv6Addr | Self::Ifname => 16,
        }
    }

    /// Whether the kernel keeps it in host byte order.
    pub const fn host_order(self) -> bool {
        matches!(self, Self::CtState | Self::IfaceType | Self::Mark | Self::Uid | Self::Gid | Self::Cgroup)
    }
}

/// The source or the destination of a packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// What a rule looks at. Like nft(8), and unlike the kernel, a key brings its protocol with it: `IpAddr(V4, ..)` matches
/// IPv4 packets only, `Port(Some(TCP), ..)` TCP packets only. The netlink form adds the comparisons that this takes
/// once per rule and takes them off again when it reads a rule back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// `meta nfproto`
    NfProto,
    /// `meta l4proto`
    L4Proto,
    /// `iifname` or, in output, `oifname`: [`Side::Source`] is the input interface
    InterfaceName(Side),
    /// `meta iiftype` / `meta oiftype`
    InterfaceType(Side),
    /// `meta iifkind` / `meta oifkind`
    InterfaceKind(Side),
    /// `ct state`
    CtState,
    /// `ip saddr`, `ip6 daddr` and so on
    IpAddr(Family, Side),
    /// `ip6 hoplimit`
    HopLimit,
    /// `tcp dport`, `udp sport`; `th dport` without a protocol
    Port(Option<Protocol>, Side),
    /// `icmp type`
    IcmpType,
    /// `icmp code`
    IcmpCode,
    /// `icmpv6 type`
    Icmpv6Type,
    /// `icmpv6 code`
    Icmpv6Code,
    /// `meta mark`
    Mark,
    /// `meta skuid`: the user of the local socket; no packet without one has it
    SocketUser,
    /// `meta skgid`
    SocketGroup,
    /// `socket cgroupv2 level N`: the control group of the local socket, or the one above it at this level, counted from the root
    SocketCgroup(u8),
}

impl Key {
    /// The type of its values.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::NfProto => DataType::NfProto,
            Self::L4Proto => DataType::InetProto,
            Self::InterfaceName(_) | Self::InterfaceKind(_) => DataType::Ifname,
            Self::InterfaceType(_) => DataType::IfaceType,
            Self::CtState => DataType::CtState,
            Self::IpAddr(Family::V4, _) => DataType::Ipv4Addr,
            Self::IpAddr(Family::V6, _) => DataType::Ipv6Addr,
            Self::HopLimit => DataType::Integer,
            Self::Port(..) => DataType::InetService,
            Self::IcmpType => DataType::IcmpType,
            Self::IcmpCode => DataType::IcmpCode,
            Self::Icmpv6Type => DataType::Icmpv6Type,
            Self::Icmpv6Code => DataType::Icmpv6Code,
            Self::Mark => DataType::Mark,
            Self::SocketUser => DataType::Uid,
            Self::SocketGroup => DataType::Gid,
            Self::SocketCgroup(_) => DataType::Cgroup,
        }
    }

    /// The IP version that a packet must have for this key to exist. ICMP is IPv4's and ICMPv6 is IPv6's, as with nft in an
    /// inet table.
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::IpAddr(family, _) => Some(family),
            Self::IcmpType | Self::IcmpCode => Some(Family::V4),
            Self::HopLimit | Self::Icmpv6Type | Self::Icmpv6Code => Some(Family::V6),
            _ => None,
        }
    }

    /// The transport protocol that a packet must have for this key to exist.
    pub const fn transport(self) -> Option<Protocol> {
        match self {
            Self::Port(protocol, _) => protocol,
            Self::IcmpType | Self::IcmpCode => Some(Protocol::ICMP),
            Self::Icmpv6Type | Self::Icmpv6Code => Some(Protocol::ICMPV6),
            _ => None,
        }
    }
}
