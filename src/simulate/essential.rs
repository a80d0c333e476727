//! Essentials (`policy.md` section 3.1): what no policy can break, and what is dropped before any policy is asked.

use std::net::IpAddr;

use super::interface::is_loopback;
use super::packet::{ConntrackState, Origin, Packet};
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::policy::effective::Effective;
use crate::policy::guards::Withheld;
use crate::policy::model::Stage;
use crate::policy::selector::Labels;

/// Soft-RoCE's port (`ROCE_V2_UDP_DPORT`, include/rdma/ib_verbs.h).
const ROCE_V2_PORT: u16 = 4791;
/// ICMPv6 router advertisement (RFC 4861 section 4.2).
const ROUTER_ADVERTISEMENT: u8 = 134;

/// What goes before everything else in a stage, marks of earlier stages included: loopback, and flows that are there already.
pub(super) fn followed(effective: &Effective, packet: &Packet, stage: Stage) -> Option<&'static str> {
    if is_loopback(effective, packet) {
        return Some("loopback");
    }
    // Before connection tracking there are no flows.
    let tracked = stage != Stage::Untracked;
    let followed = matches!(packet.state, ConntrackState::Established | ConntrackState::Related);
    (tracked && followed).then_some("established or related flow")
}

/// What is dropped before any policy is asked. It goes before every accept that follows: none of them may carry a packet to a
/// service that listens on loopback only.
pub(super) fn guard(effective: &Effective, packet: &Packet, at: (Stage, Direction)) -> Option<&'static str> {
    let (stage, direction) = at;
    if stage != Stage::Untracked && packet.state == ConntrackState::Invalid && effective.drop_invalid {
        return Some("invalid packet");
    }
    (direction == Direction::Ingress && (loops(packet.source) || loops(packet.destination)))
        .then_some("loopback address from outside (CVE-2020-8558)")
}

/// What a stage lets through whatever the policy says, on an interface with these labels.
pub(super) fn essential(
    effective: &Effective,
    labels: &Labels,
    packet: &Packet,
    (stage, direction): (Stage, Direction),
) -> Option<&'static str> {
    if path_mtu(packet) {
        return Some("path MTU discovery (RFC 1191, RFC 8201)");
    }
    // The others are spoken with this host only.
    if stage == Stage::Forward {
        return None;
    }
    let withheld = match direction {
        Direction::Ingress => effective.withheld(labels),
        Direction::Egress => Withheld::default(),
    };
    let advertised = packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| kind == ROUTER_ADVERTISEMENT);
    if neighbour_discovery(packet, direction) && !(advertised && withheld.advertisements) {
        Some("neighbour discovery (RFC 4861)")
    } else if multicast_listener(packet, direction) {
        Some("multicast listener discovery (RFC 3810)")
    } else if dhcp_client(packet, direction) && !withheld.dhcp {
        Some("DHCP client (RFC 2131, RFC 8415)")
    } else if direction == Direction::Egress && soft_roce(packet) {
        Some("Soft-RoCE is decided where it arrives")
    } else {
        None
    }
}

/// rdma_rxe spins when its packets are dropped on the way out (`domain.md` section 1.2), so that they are decided where they arrive.
/// It sends from a socket of the kernel's; what a process sends to that port is like any other UDP.
fn soft_roce(packet: &Packet) -> bool {
    packet.origin == Origin::Kernel
        && packet.protocol == Some(Protocol::UDP)
        && packet.ports().is_some_and(|(_, port)| port == ROCE_V2_PORT)
}

fn loops(address: IpAddr) -> bool {
    address.is_loopback()
}

/// RFC 4861 section 7: hop limit 255 proves that no router forwarded it. A host sends no router advertisements (134); redirects (137) are not needed to reach anybody.
fn neighbour_discovery(packet: &Packet, direction: Direction) -> bool {
    packet.hop_limit == 255
        && packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| match direction {
            Direction::Ingress => matches!(kind, 133..=136),
            Direction::Egress => matches!(kind, 133 | 135 | 136),
        })
}

/// A switch that snoops forwards neighbour solicitations only to those who reported that they listen (RFC 4861 section
/// 7.2.1, RFC 3810). A host answers queries (130) and sends none.
fn multicast_listener(packet: &Packet, direction: Direction) -> bool {
    packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| match direction {
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
fn dhcp_client(packet: &Packet, direction: Direction) -> bool {
    if packet.protocol != Some(Protocol::UDP) {
        return false;
    }
    let Some(ports) = packet.ports() else { return false };
    match (direction, packet.source) {
        (Direction::Ingress, IpAddr::V4(_)) => ports == (67, 68),
        (Direction::Ingress, IpAddr::V6(source)) => ports == (547, 546) && source.is_unicast_link_local(),
        (Direction::Egress, IpAddr::V4(_)) => ports == (68, 67),
        (Direction::Egress, IpAddr::V6(_)) => ports == (546, 547),
    }
}
