//! Essentials (`policy.md` section 3.1): what no policy can break, and what is dropped before any policy is asked.

use std::net::IpAddr;

use super::decision::Outcome;
use super::interface::is_loopback;
use super::packet::{ConntrackState, Packet};
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::policy::effective::Effective;

/// The essential that decides the packet, in words, if one does.
pub(super) fn essential(effective: &Effective, packet: &Packet) -> Option<(&'static str, Outcome)> {
    if is_loopback(effective, packet) {
        return Some(("loopback", Outcome::Accepted));
    }
    match packet.state {
        ConntrackState::Established | ConntrackState::Related => {
            return Some(("established or related flow", Outcome::Accepted));
        }
        ConntrackState::Invalid if effective.drop_invalid => return Some(("invalid packet", Outcome::Dropped)),
        ConntrackState::Invalid | ConntrackState::New | ConntrackState::Untracked => {}
    }
    // Before every accept below: none of them may carry a packet to a service that listens on loopback only.
    if packet.direction == Direction::Ingress && (loops(packet.source) || loops(packet.destination)) {
        return Some(("loopback address from outside (CVE-2020-8558)", Outcome::Dropped));
    }
    let accepted = if neighbour_discovery(packet) {
        "neighbour discovery (RFC 4861)"
    } else if multicast_listener(packet) {
        "multicast listener discovery (RFC 3810)"
    } else if path_mtu(packet) {
        "path MTU discovery (RFC 1191, RFC 8201)"
    } else if dhcp_client(packet) {
        "DHCP client (RFC 2131, RFC 8415)"
    } else {
        return None;
    };
    Some((accepted, Outcome::Accepted))
}

fn loops(address: IpAddr) -> bool {
    address.is_loopback()
}

/// RFC 4861 section 7: hop limit 255 proves that no router forwarded it. A host sends no router advertisements (134); redirects (137) are not needed to reach anybody.
fn neighbour_discovery(packet: &Packet) -> bool {
    packet.hop_limit == 255
        && packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| match packet.direction {
            Direction::Ingress => matches!(kind, 133..=136),
            Direction::Egress => matches!(kind, 133 | 135 | 136),
        })
}

/// A switch that snoops forwards neighbour solicitations only to those who reported that they listen (RFC 4861 section
/// 7.2.1, RFC 3810). A host answers queries (130) and sends none.
fn multicast_listener(packet: &Packet) -> bool {
    packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| match packet.direction {
        Direction::Ingress => matches!(kind, 130 | 131 | 132 | 143),
        Direction::Egress => matches!(kind, 131 | 132 | 143),
    })
}

/// ICMP "fragmentation needed" (RFC 1191) and ICMPv6 "packet too big" (RFC 8201).
fn path_mtu(packet: &Packet) -> bool {
    packet.icmp_of(Protocol::ICMP) == Some((3, 4))
        || packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| kind == 2)
}

/// A lease is asked for before conntrack could know the answer, which comes to a broadcast or from another address.
fn dhcp_client(packet: &Packet) -> bool {
    if packet.protocol != Protocol::UDP {
        return false;
    }
    let Some(ports) = packet.ports() else { return false };
    match (packet.direction, packet.source) {
        (Direction::Ingress, IpAddr::V4(_)) => ports == (67, 68),
        (Direction::Ingress, IpAddr::V6(source)) => ports == (547, 546) && source.is_unicast_link_local(),
        (Direction::Egress, IpAddr::V4(_)) => ports == (68, 67),
        (Direction::Egress, IpAddr::V6(_)) => ports == (546, 547),
    }
}
