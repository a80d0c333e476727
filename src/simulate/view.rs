//! A packet as the kernel's expressions read it: each [`Key`] either has bytes or breaks the rule.

use std::net::IpAddr;

use super::interface::is_loopback;
use super::packet::{ConntrackState, Origin, Packet, Socket};
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

/// An interface as the kernel's expressions read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND`; `None` for hardware.
    pub kind: Option<String>,
    /// The ARP hardware type.
    pub hardware: u16,
}

/// What the kernel can read of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The interface by which it came; `None` for one that this host sends.
    pub input: Option<Device>,
    /// The interface by which it leaves; `None` for one that comes to this host.
    pub output: Option<Device>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address, as it is before any DNAT.
    pub destination: IpAddr,
    /// Destination address and port after somebody else's DNAT, which is what input, forward, and output's later chains see.
    pub translated: Option<(IpAddr, u16)>,
    /// IPv4 time to live or IPv6 hop limit.
    pub hop_limit: u8,
    /// The transport protocol, if it can be read.
    pub protocol: Option<Protocol>,
    /// The first two 16-bit words of the transport header, if it can be read: ports where there are ports. `th dport`
    /// reads the second one whatever the protocol is (kernel `nft_payload.c`): of ICMP, the checksum.
    pub words: Option<(u16, u16)>,
    /// ICMP type and code, if this is ICMP or ICMPv6 and they can be read.
    pub icmp: Option<(u8, u8)>,
    /// The bytes of a transport header that breaks off within its first four: a source port without a destination port, an ICMP type
    /// without a code. The kernel reads the one and not the other, a policy neither; to connection tracking the packet is invalid.
    pub broken_off: Vec<u8>,
    /// The bit of `ct state` (see [`ct_state`]) from connection tracking on.
    pub state: u32,
    /// The packet mark.
    pub mark: u32,
    /// The socket that sends it, if it is a process's.
    pub socket: Option<Socket>,
}

impl View {
    /// The packet as the rules see it. What a [`Packet`] does not say of the transport header (the ICMP checksum, anything of
    /// a protocol without ports) is zero; set [`View::words`] to try other values.
    pub fn new(effective: &Effective, packet: &Packet) -> Self {
        let icmp = packet.icmp_of(Protocol::ICMP).or(packet.icmp_of(Protocol::ICMPV6));
        let words = match packet.protocol {
            None => None,
            Some(protocol) if protocol.has_ports() => packet.ports,
            Some(Protocol::ICMP | Protocol::ICMPV6) => icmp.map(|(kind, code)| (u16::from_be_bytes([kind, code]), 0)),
            Some(_) => Some((0, 0)),
        };
        let hardware = if is_loopback(effective, packet) { LOOPBACK } else { ETHERNET };
        let device = Device { name: packet.interface.as_str().to_owned(), kind: packet.kind.clone(), hardware };
        let (input, output) = match (packet.direction, &packet.forward) {
            (Direction::Egress, _) => (None, Some(device)),
            (Direction::Ingress, None) => (Some(device), None),
            (Direction::Ingress, Some(exit)) => {
                let name = exit.interface.as_str().to_owned();
                (Some(device), Some(Device { name, kind: exit.kind.clone(), hardware: ETHERNET }))
            }
        };
        Self {
            input,
            output,
            source: packet.source,
            destination: packet.destination,
            translated: packet.translated,
            hop_limit: packet.hop_limit,
            protocol: packet.protocol,
            words,
            icmp,
            broken_off: Vec::new(),
            state: match packet.state {
                ConntrackState::New => ct_state::NEW,
                ConntrackState::Established => ct_state::ESTABLISHED,
                ConntrackState::Related => ct_state::RELATED,
                ConntrackState::Invalid => ct_state::INVALID,
                ConntrackState::Untracked => ct_state::UNTRACKED,
            },
            mark: 0,
            socket: match &packet.origin {
                Origin::Process(socket) if packet.direction == Direction::Egress => Some(socket.clone()),
                _ => None,
            },
        }
    }

    /// The hooks that it passes, in order.
    pub fn hooks(&self) -> &'static [Hook] {
        match (&self.input, &self.output) {
            (Some(_), Some(_)) => &[Hook::Ingress, Hook::Prerouting, Hook::Forward],
            (Some(_), None) => &[Hook::Ingress, Hook::Prerouting, Hook::Input],
            (None, _) => &[Hook::Output],
        }
    }

    /// It as the first chains of a hook see it: before routing there is no output interface, and DNAT is done at prerouting and,
    /// for what this host sends, at output.
    pub(super) fn at(&self, hook: Hook) -> Self {
        let mut view = self.clone();
        match hook {
            Hook::Ingress | Hook::Prerouting => view.output = None,
            Hook::Output => {}
            _ => view.translate(),
        }
        view
    }

    /// DNAT by somebody else's rules.
    pub(super) fn translate(&mut self) {
        if let Some((address, port)) = self.translated {
            self.destination = address;
            self.words = self.words.map(|(source, _)| (source, port));
        }
    }

    /// The value of a key; `None` where the kernel says `NFT_BREAK`, which ends the rule (for `!=` too).
    pub fn read(&self, key: Key) -> Option<Datum> {
        if key.family().is_some_and(|family| family != self.family())
            || key.transport().is_some_and(|protocol| Some(protocol) != self.protocol)
        {
            return None;
        }
        let device = |side: Side| match side {
            Side::Source => self.input.as_ref(),
            Side::Destination => self.output.as_ref(),
        };
        match key {
            // NFPROTO_IPV4 and NFPROTO_IPV6 (linux/netfilter.h).
            Key::NfProto => Some(Datum::from(if self.family() == Family::V4 { 2u8 } else { 10u8 })),
            Key::L4Proto => self.protocol.map(|protocol| Datum::from(protocol.0)),
            // nft_meta.c: without a device the name is empty; type and kind break the rule instead.
            Key::InterfaceName(side) => Some(Datum::name(device(side).map_or("", |device| device.name.as_str()))),
            Key::InterfaceType(side) => device(side).map(|device| Datum::from(device.hardware)),
            Key::InterfaceKind(side) => device(side)?.kind.as_deref().map(Datum::name),
            Key::CtState => Some(Datum::from(self.state)),
            Key::IpAddr(_, Side::Source) => Some(address(self.source)),
            Key::IpAddr(_, Side::Destination) => Some(address(self.destination)),
            Key::HopLimit => Some(Datum::from(self.hop_limit)),
            Key::Port(_, Side::Source) => match (self.words, self.broken_off.as_slice()) {
                (Some((first, _)), _) => Some(Datum::from(first)),
                (None, [high, low, ..]) => Some(Datum::from(u16::from_be_bytes([*high, *low]))),
                (None, _) => None,
            },
            Key::Port(_, Side::Destination) => self.words.map(|(_, second)| Datum::from(second)),
            Key::IcmpType | Key::Icmpv6Type => {
                self.icmp.map(|(kind, _)| kind).or(self.broken_off.first().copied()).map(Datum::from)
            }
            Key::IcmpCode | Key::Icmpv6Code => {
                self.icmp.map(|(_, code)| code).or(self.broken_off.get(1).copied()).map(Datum::from)
            }
            Key::Mark => Some(Datum::from(self.mark)),
            Key::SocketUser => self.socket.as_ref().map(|socket| Datum::from(socket.uid)),
            Key::SocketGroup => self.socket.as_ref().map(|socket| Datum::from(socket.gid)),
            // nft_socket.c: the ancestor at the level; a socket that is less deep has none.
            Key::SocketCgroup(level) => {
                let mut cgroups = self.socket.as_ref()?.cgroups.iter();
                let found = cgroups.find(|cgroup| cgroup.level == level)?;
                Some(Datum::from_number(u128::from(found.id), 8))
            }
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
