//! Flows as connection tracking knows them.

use std::net::IpAddr;

use super::protocol::Protocol;

/// One entry of the connection tracking table (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The first packet as it came, before any address translation.
    pub original: Tuple,
    /// What an answer is expected to look like: with address translation, its source is the real destination.
    pub reply: Tuple,
    /// The zone (`ct zone`); 0 unless rules set one.
    pub zone: u16,
    /// `CTA_ID`: tells this flow from an earlier or later one of the same addresses and ports.
    pub id: u32,
    /// `IPS_` bits (include/uapi/linux/netfilter/nf_conntrack_common.h).
    pub status: u32,
    /// A TCP connection that was under way when connection tracking first saw it (`nf_conntrack_tcp_loose`): `original` is
    /// then the direction of whichever packet came first, and need not be that of who began it.
    pub picked_up: bool,
}

impl Flow {
    /// `IPS_EXPECTED`: the flow was announced by another one, and its first packet was "related".
    pub const EXPECTED: u32 = 1;
    /// `IPS_SEEN_REPLY`: packets went both ways.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// `IPS_SRC_NAT`: its source address or port is translated.
    pub const SOURCE_NAT: u32 = 1 << 4;
    /// `IPS_DST_NAT`: its destination address or port is translated.
    pub const DESTINATION_NAT: u32 = 1 << 5;
}

/// What makes the packets of one direction of a flow alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the same family.
    pub destination: IpAddr,
    /// The IP protocol.
    pub protocol: Protocol,
    /// What the protocol adds.
    pub detail: Detail,
}

/// What a protocol adds to the addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Detail {
    /// Source and destination port; the two keys of GRE are here too.
    Ports(u16, u16),
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier of an echo.
        id: u16,
    },
    /// Nothing.
    None,
}

impl Tuple {
    /// Source and destination port, if it has them.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.detail {
            Detail::Ports(source, destination) => Some((source, destination)),
            Detail::Icmp { .. } | Detail::None => None,
        }
    }
}
