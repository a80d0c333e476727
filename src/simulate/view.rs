//! A packet as the kernel's expressions read it: each [`Key`] either has bytes or breaks the rule.

use std::net::IpAddr;

use super::interface::is_loopback;
use super::packet::{ConntrackState, Packet};
use crate::net::addr::Family;
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::nft::ir::{Hook, ct_state};
use crate::nft::key::{Datum, Key, Side};
use crate::policy::effective::Effective;

/// ARPHRD_ETHER (linux/if_arp.h).
pub const ETHERNET: u16 = 1;
/// ARPHRD_LOOPBACK (linux/if_arp.h).
pub const LOOPBACK: u16 = 772;

/// What the kernel can read of a packet. The interface is that of the hook: in input the packet has no output interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// `iifname` in input, `oifname` in output.
    pub interface: String,
    /// `IFLA_INFO_KIND`; `None` for hardware.
    pub kind: Option<String>,
    /// The ARP hardware type of the interface.
    pub hardware: u16,
    /// The hook side of the interface: [`Side::Source`] for a packet to this host.
    pub side: Side,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IPv4 time to live or IPv6 hop limit.
    pub hop_limit: u8,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The first two 16-bit words of the transport header, if it can be read: ports where there are ports. `th dport`
    /// reads the second one whatever the protocol is (kernel `nft_payload.c`): of ICMP, the checksum.
    pub words: Option<(u16, u16)>,
    /// ICMP type and code, if this is ICMP or ICMPv6 and they can be read.
    pub icmp: Option<(u8, u8)>,
    /// The bit of `ct state` (see [`ct_state`]).
    pub state: u32,
}

impl View {
    /// The packet as the rules see it. What a [`Packet`] does not say of the transport header (the ICMP checksum, anything of
    /// a protocol without ports) is zero; set [`View::words`] to try other values.
    pub fn new(effective: &Effective, packet: &Packet) -> Self {
        let icmp = packet.icmp_of(Protocol::ICMP).or(packet.icmp_of(Protocol::ICMPV6));
        let words = match packet.protocol {
            protocol if protocol.has_ports() => packet.ports,
            Protocol::ICMP | Protocol::ICMPV6 => icmp.map(|(kind, code)| (u16::from_be_bytes([kind, code]), 0)),
            _ => Some((0, 0)),
        };
        Self {
            interface: packet.interface.as_str().to_owned(),
            kind: packet.kind.clone(),
            hardware: if is_loopback(effective, packet) { LOOPBACK } else { ETHERNET },
            side: match packet.direction {
                Direction::Ingress => Side::Source,
                Direction::Egress => Side::Destination,
            },
            source: packet.source,
            destination: packet.destination,
            hop_limit: packet.hop_limit,
            protocol: packet.protocol,
            words,
            icmp,
            state: match packet.state {
                ConntrackState::New => ct_state::NEW,
                ConntrackState::Established => ct_state::ESTABLISHED,
                ConntrackState::Related => ct_state::RELATED,
                ConntrackState::Invalid => ct_state::INVALID,
                ConntrackState::Untracked => ct_state::UNTRACKED,
            },
        }
    }

    /// The value of a key; `None` where the kernel says `NFT_BREAK`, which ends the rule (for `!=` too).
    pub fn read(&self, key: Key) -> Option<Datum> {
        if key.family().is_some_and(|family| family != self.family())
            || key.transport().is_some_and(|protocol| protocol != self.protocol)
        {
            return None;
        }
        match key {
            // NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
            Key::NfProto => Some(Datum::from(if self.family() == Family::V4 { 2u8 } else { 10u8 })),
            Key::L4Proto => Some(Datum::from(self.protocol.0)),
            // nft_meta.c: without a device the name is empty; type and kind break the rule instead.
            Key::InterfaceName(side) => Some(Datum::name(if side == self.side { &self.interface } else { "" })),
            Key::InterfaceType(side) => (side == self.side).then(|| Datum::from(self.hardware)),
            Key::InterfaceKind(side) => self.kind.as_deref().filter(|_| side == self.side).map(Datum::name),
            Key::CtState => Some(Datum::from(self.state)),
            Key::IpAddr(_, Side::Source) => Some(address(self.source)),
            Key::IpAddr(_, Side::Destination) => Some(address(self.destination)),
            Key::HopLimit => Some(Datum::from(self.hop_limit)),
            Key::Port(_, Side::Source) => self.words.map(|(first, _)| Datum::from(first)),
            Key::Port(_, Side::Destination) => self.words.map(|(_, second)| Datum::from(second)),
            Key::IcmpType | Key::Icmpv6Type => self.icmp.map(|(kind, _)| Datum::from(kind)),
            Key::IcmpCode | Key::Icmpv6Code => self.icmp.map(|(_, code)| Datum::from(code)),
            Key::Mark | Key::SocketUser | Key::SocketGroup | Key::SocketCgroup(_) => None,
        }
    }

    /// The hook at which the host stage sees it.
    pub fn hook(&self) -> Hook {
        match self.side {
            Side::Source => Hook::Input,
            Side::Destination => Hook::Output,
        }
    }

    fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

fn address(address: IpAddr) -> Datum {
    match address {
        IpAddr::V4(v4) => Datum::from(v4.to_bits()),
        IpAddr::V6(v6) => Datum::from(v6.to_bits()),
    }
}
