//! From a flow of connection tracking back to the packet that began it.

use std::net::IpAddr;

use super::packet::{ConntrackState, Origin, Packet};
use crate::net::flow::{Detail, Flow};
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;

/// The first packet of a flow of this host, as the input and output hooks see it, without its interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct First {
    /// To this host or from it.
    pub direction: Direction,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The IP protocol.
    pub protocol: Protocol,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// See [`Packet::translated`].
    pub translated: Option<(IpAddr, u16)>,
}

impl First {
    /// The first packet of a flow; `None` if it is not this host's: forwarded, or from this host to itself.
    pub fn of(flow: &Flow, is_local: &dyn Fn(IpAddr) -> bool) -> Option<Self> {
        // Destinations are translated before our hooks, sources after them.
        let (source, destination) = (flow.original.source, flow.reply.source);
        let direction = match (is_local(source), is_local(destination)) {
            (false, true) => Direction::Ingress,
            (true, false) => Direction::Egress,
            (true, true) | (false, false) => return None,
        };
        let real_port = flow.reply.ports().map(|(real, _)| real);
        let (ports, icmp) = match flow.original.detail {
            Detail::Ports(source, destination) => (Some((source, destination)), None),
            Detail::Icmp { kind, code, .. } => (None, Some((kind, code))),
            Detail::None => (None, None),
        };
        let written = (flow.original.destination, ports.map(|(_, port)| port));
        let translated = (direction == Direction::Ingress && written != (destination, real_port.or(written.1)))
            .then(|| (destination, real_port.unwrap_or_default()));
        let (destination, ports) = match direction {
            // What the sender wrote, for the stage before DNAT.
            Direction::Ingress => (flow.original.destination, ports),
            Direction::Egress => (destination, ports.map(|(source, port)| (source, real_port.unwrap_or(port)))),
        };
        Some(Self { direction, source, destination, protocol: flow.original.protocol, ports, icmp, translated })
    }

    /// The same if the other side had begun.
    pub fn reversed(self) -> Self {
        let (destination, ports) = match self.translated {
            Some((address, port)) => (address, self.ports.map(|(source, _)| (source, port))),
            None => (self.destination, self.ports),
        };
        Self {
            translated: None,
            direction: match self.direction {
                Direction::Ingress => Direction::Egress,
                Direction::Egress => Direction::Ingress,
            },
            source: destination,
            destination: self.source,
            ports: ports.map(|(source, destination)| (destination, source)),
            ..self
        }
    }

    /// On an interface of that name and kind (`IFLA_INFO_KIND`).
    pub fn packet(&self, interface: InterfaceName, kind: Option<String>) -> Packet {
        Packet {
            direction: self.direction,
            interface,
            kind,
            source: self.source,
            destination: self.destination,
            protocol: Some(self.protocol),
            ports: self.ports,
            icmp: self.icmp,
            hop_limit: 64,
            state: ConntrackState::New,
            forward: None,
            translated: self.translated,
            // Connection tracking does not know processes.
            origin: Origin::Unknown,
        }
    }

    /// This host's address and the other side's.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        match self.direction {
            Direction::Ingress => (self.translated.map_or(self.destination, |(address, _)| address), self.source),
            Direction::Egress => (self.source, self.destination),
        }
    }
}
