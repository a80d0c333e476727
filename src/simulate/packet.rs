//! A packet as the host stage sees it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::net::addr::Family;
use crate::net::facts::Cgroup;
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;

/// A packet as the host stage sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// To this host or from it.
    pub direction: Direction,
    /// The interface it arrives on or leaves by.
    pub interface: InterfaceName,
    /// The kind of that interface (`IFLA_INFO_KIND`), for one that the policy does not know yet.
    pub kind: Option<String>,
    /// Source address; of the same family as `destination`.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Source and destination port, for a protocol with ports whose header could be read.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code, for ICMP and ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// The IPv4 time to live or IPv6 hop limit.
    pub hop_limit: u8,
    /// What conntrack says of it.
    pub state: ConntrackState,
    /// Where it leaves this host if it is forwarded; `direction` is ingress then.
    pub forward: Option<Exit>,
    /// The destination address and port after DNAT by somebody else's rules, which only the stages `host` and `forward` see.
    pub translated: Option<(IpAddr, u16)>,
    /// The local socket that sends it.
    pub socket: Option<Socket>,
    /// When it is sent or received, in seconds since 1970-01-01 UTC.
    pub time: u64,
}

/// The interface by which a forwarded packet leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Its name.
    pub interface: InterfaceName,
    /// Its kind (`IFLA_INFO_KIND`).
    pub kind: Option<String>,
}

/// What is known of the local socket that sends a packet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Socket {
    /// The user who owns it.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The control group it belongs to and all above it.
    pub cgroups: BTreeSet<Cgroup>,
}

/// `ct state`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConntrackState {
    /// The first packet of a flow.
    New,
    /// Part of a flow that has seen packets both ways.
    Established,
    /// An ICMP error or helper flow that belongs to another flow.
    Related,
    /// Nothing conntrack can place.
    Invalid,
    /// Not tracked.
    Untracked,
}

impl Packet {
    /// The IP version, by the source address.
    pub fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Source and destination port, if the protocol has ports and they could be read.
    pub fn ports(&self) -> Option<(u16, u16)> {
        self.ports.filter(|_| self.protocol.has_ports())
    }

    /// Type and code, if this is a packet of that ICMP and they could be read: ICMP in IPv4, ICMPv6 in IPv6. The number of
    /// one in the other's packets is a protocol like any other.
    pub fn icmp_of(&self, protocol: Protocol) -> Option<(u8, u8)> {
        let family = if protocol == Protocol::ICMP { Family::V4 } else { Family::V6 };
        self.icmp.filter(|_| self.protocol == protocol && self.family() == family)
    }
}
