//! A packet as the stages see it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::net::addr::Family;
use crate::net::facts::Cgroup;
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;

/// A packet as the stages see it: reassembled, as the kernel hands it to nf_tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// To this host or from it.
    pub direction: Direction,
    /// The interface it arrives on or leaves by. Where DNAT gives a packet of this host another destination, it is the one by which it
    /// would have left without: `oifname` stays what it was when the packet came to the output hook.
    pub interface: InterfaceName,
    /// The kind of that interface (`IFLA_INFO_KIND`), for one that the policy does not know yet.
    pub kind: Option<String>,
    /// Source address; of the same family as `destination`.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport protocol; `None` where IPv6 extension headers are broken off before it, so that no rule can tell.
    pub protocol: Option<Protocol>,
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
    /// The destination address and port after DNAT by somebody else's rules, at the prerouting or the output hook, which only the
    /// stages `host` and `forward` see.
    pub translated: Option<(IpAddr, u16)>,
    /// Who sends it, of a packet from this host.
    pub origin: Origin,
}

/// The interface by which a forwarded packet leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Its name.
    pub interface: InterfaceName,
    /// Its kind (`IFLA_INFO_KIND`).
    pub kind: Option<String>,
}

/// Who on this host sends a packet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Origin {
    /// The kernel by itself: a reset, an ICMP error, Soft-RoCE. It has no user and no control group.
    #[default]
    Kernel,
    /// A process.
    Process(Socket),
    /// Nobody knows: a rule that looks at processes does not match, and [`super::Decision::unsure`] says so.
    Unknown,
}

/// The local socket that sends a packet.
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
        self.ports.filter(|_| self.protocol.is_some_and(Protocol::has_ports))
    }

    /// Type and code, if this is a packet of that ICMP and they could be read: ICMP in IPv4, ICMPv6 in IPv6. The number of
    /// one in the other's packets is a protocol like any other.
    pub fn icmp_of(&self, protocol: Protocol) -> Option<(u8, u8)> {
        let family = if protocol == Protocol::ICMP { Family::V4 } else { Family::V6 };
        self.icmp.filter(|_| self.protocol == Some(protocol) && self.family() == family)
    }

    /// The packet after somebody else's DNAT, as the stages `host` and `forward` see it.
    pub(super) fn after_nat(&self) -> Self {
        let mut packet = self.clone();
        if let Some((address, port)) = packet.translated.take() {
            packet.destination = address;
            packet.ports = packet.ports.map(|(source, _)| (source, port));
        }
        packet
    }
}
