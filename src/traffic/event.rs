//! Events: one packet that was logged, or one connection that began, with all that is known of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::record::{Actor, Decider, PeerName, Service, Verdict};
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;

/// What an event is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A packet of the packet log.
    Packet,
    /// A connection that connection tracking has seen begin.
    Connection,
}

impl Kind {
    /// The name for people and scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Connection => "connection",
        }
    }
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, in microseconds since 1970-01-01 UTC.
    pub time: u64,
    /// What it is of.
    pub kind: Kind,
    /// [`Direction::Ingress`]: to this host, or through it; [`Direction::Egress`]: from it.
    pub direction: Direction,
    /// The interface it came or left by.
    pub interface: Option<InterfaceName>,
    /// The role of that interface.
    pub role: Option<Role>,
    /// The interface by which a forwarded packet leaves.
    pub out: Option<InterfaceName>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The IP protocol; `None` where it is not legible.
    pub protocol: Option<Protocol>,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// The length of the packet in bytes, from the IP header on; `None` for connections.
    pub length: Option<u32>,
    /// What the peer is called.
    pub names: BTreeSet<PeerName>,
    /// What became of it.
    pub verdict: Verdict,
    /// What decided.
    pub decider: Decider,
    /// The tier of the policy that decided.
    pub tier: Option<String>,
    /// Where what decided is written, "FILE:LINE".
    pub place: Option<String>,
    /// The text of the rule's `log`; empty without.
    pub text: String,
    /// Who on this host has the socket, as far as that could be found out.
    pub actor: Option<Actor>,
}

impl Event {
    /// The other side: where a packet to this host comes from, or one from it goes to.
    pub const fn peer(&self) -> IpAddr {
        match self.direction {
            Direction::Ingress => self.source,
            Direction::Egress => self.destination,
        }
    }

    /// This host's side.
    pub const fn local(&self) -> IpAddr {
        match self.direction {
            Direction::Ingress => self.destination,
            Direction::Egress => self.source,
        }
    }

    /// What is asked for.
    pub fn service(&self) -> Service {
        Service::of(self.ports, self.icmp)
    }
}
