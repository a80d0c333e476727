//! Conversations packet by packet, and what connection tracking says of each.

#![allow(clippy::unwrap_used)]

use ConntrackState::{Established, Invalid, New, Related, Untracked};

use super::super::wire::packet;
use super::super::wire::tests::{seal, v4, v6};
use super::*;

const HERE: [u8; 4] = [10, 0, 0, 5];
const THERE: [u8; 4] = [192, 0, 2, 1];

/// From there to here, or back.
fn between(mut bytes: Vec<u8>, back: bool) -> Vec<u8> {
    let (source, destination) = if back { (HERE, THERE) } else { (THERE, HERE) };
    bytes[12..16].copy_from_slice(&source);
    bytes[16..20].copy_from_slice(&destination);
    seal(&mut bytes);
    bytes
}

fn ports(back: bool) -> [u8; 4] {
    if back { [0, 22, 0x9c, 0x40] } else { [0x9c, 0x40, 0, 22] }
}

fn tcp(flags: u8, back: bool) -> Vec<u8> {
    let header = [&ports(back)[..], &[0; 8], &[0x50, flags], &[0; 6]].concat();
    between(v4(6, 0x4000, &[], &header), back)
}

fn udp(back: bool) -> Vec<u8> {
    between(v4(17, 0, &[], &[&ports(back)[..], &[0, 8, 0, 0]].concat()), back)
}

fn icmp(kind: u8, back: bool) -> Vec<u8> {
    between(v4(1, 0, &[], &[kind, 0, 0, 0, 0, 7, 0, 1]), back)
}

/// What is said of each packet, all of them being let through.
fn states(packets: &[Vec<u8>]) -> Vec<ConntrackState> {
    let mut flows = Flows::default();
    let see = |bytes: &Vec<u8>| {
        let sight = flows.see(&packet(bytes).unwrap());
        flows.confirm(sight);
        sight.state
    };
    packets.iter().map(see).collect()
}

const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;

#[test]
fn a_flow_is_new_until_somebody_answers() {
    let handshake = [tcp(SYN, false), tcp(SYN, false), tcp(SYN_ACK, true), tcp(ACK, false), tcp(ACK, true)];
    assert_eq!(states(&handshake), [New, New, Established, Established, Established]);
    assert_eq!(states(&[udp(false), udp(false), udp(true), udp(false)]), [New, New, Established, Established]);
    assert_eq!(states(&[icmp(8, false), icmp(0, true), icmp(8, false)]), [New, Established, Established]);
}

#[test]
fn what_was_dropped_begins_no_flow() {
    let mut flows = Flows::default();
    let dropped = flows.see(&packet(&tcp(SYN, false)).unwrap());
    assert_eq!((dropped.state, dropped.reply), (New, false));
    assert_eq!(flows.see(&packet(&tcp(SYN_ACK, true)).unwrap()).state, Invalid);
    assert_eq!(flows.see(&packet(&udp(true)).unwrap()).state, New, "it begins at the other end");
    assert_eq!(flows, Flows::default());
}

#[test]
fn a_connection_is_picked_up_in_its_middle_only() {
    for (flags, state) in
        [(ACK, New), (ACK | 8, New), (SYN_ACK, Invalid), (FIN_ACK, Invalid), (RST, Invalid), (RST | ACK, Invalid)]
    {
        assert_eq!(states(&[tcp(flags, false)]), [state], "{flags:#b}");
    }
    for flags in [0, FIN, SYN | FIN, SYN | RST, FIN | RST | ACK, 8, 0x3f, URG] {
        assert_eq!(states(&[tcp(flags, false)]), [Invalid], "{flags:#b} is no segment");
    }
    assert_eq!(states(&[tcp(SYN | URG | 0xc0, false)]), [New], "ECE and CWR ask for ECN");
}

#[test]
fn after_its_end_a_connection_can_begin_anew() {
    let open = [tcp(SYN, false), tcp(SYN_ACK, true), tcp(ACK, false)];
    let with = |more: &[Vec<u8>]| states(&[&open[..], more].concat())[3..].to_vec();
    assert_eq!(with(&[tcp(SYN, false)]), [Established], "a SYN in between is one of its packets");
    assert_eq!(with(&[tcp(FIN_ACK, false), tcp(SYN, false)]), [Established, Established], "half closed");
    assert_eq!(
        with(&[tcp(FIN_ACK, false), tcp(FIN_ACK, true), tcp(ACK, false), tcp(SYN, false)]),
        [Established, Established, Established, New]
    );
    assert_eq!(
        with(&[tcp(RST, true), tcp(ACK, false), tcp(SYN, false), tcp(SYN_ACK, true)]),
        [Established, Established, New, Established]
    );
}

#[test]
fn an_icmp_error_belongs_to_the_flow_that_it_quotes() {
    let error = |kind: u8, quote: &[u8], back: bool| {
        between(v4(1, 0, &[], &[&[kind, 3, 0, 0, 0, 0, 0, 0], quote].concat()), back)
    };
    let sent = udp(false);
    // Of what was quoted 28 bytes are enough, and of its transport header four.
    assert_eq!(states(&[udp(false), error(3, &sent, true)]), [New, Related]);
    assert_eq!(states(&[udp(false), error(11, &sent[..24], true)]), [New, Related]);
    assert_eq!(states(&[udp(false), error(3, &sent[..23], true)]), [New, Invalid]);
    assert_eq!(states(&[udp(false), udp(true), error(3, &udp(true), false)]), [New, Established, Related]);
    assert_eq!(states(&[error(3, &sent, true)]), [Invalid], "of a flow that nobody knows");
    assert_eq!(states(&[udp(false), error(3, &sent, false)]), [New, Invalid], "to somebody who did not send it");
    assert_eq!(
        states(&[udp(false), error(3, &error(3, &sent, true), true)]),
        [New, Invalid],
        "an error about an error"
    );
    assert_eq!(states(&[udp(false), between(v4(1, 0, &[], &[3, 3]), true)]), [New, Invalid]);
    let reply = Flows::default();
    assert_eq!(reply.known.len(), 0);
}

#[test]
fn icmp_without_a_question_is_invalid() {
    for kind in [0, 14, 9, 10, 19, 255] {
        assert_eq!(states(&[icmp(kind, false)]), [Invalid], "type {kind}");
    }
    let short = between(v4(1, 0, &[], &[8, 0, 0, 0]), false);
    assert_eq!(states(&[short]), [Invalid]);
    let v6_of = |kind: u8| v6(58, &[kind, 0, 0, 0, 0, 7, 0, 1]);
    assert_eq!(states(&[v6_of(128)]), [New]);
    assert_eq!(states(&[v6_of(129)]), [Invalid]);
    for kind in [130, 133, 134, 135, 136, 143] {
        assert_eq!(states(&[v6_of(kind)]), [Untracked], "type {kind}");
    }
    assert_eq!(states(&[v6_of(137)]), [Invalid], "a redirect");
    assert_eq!(states(&[v6_of(1)]), [Invalid], "an error about nothing");
}

#[test]
fn truncated_headers_are_invalid() {
    let cut = |protocol: u8, length: usize| {
        let full = [&ports(false)[..], &[0, 30, 0, 0], &[0; 4], &[0x50, SYN], &[0; 20]].concat();
        states(&[between(v4(protocol, 0, &[], &full[..length]), false)])[0]
    };
    for (protocol, whole) in [(6, 20), (17, 30), (33, 12), (132, 12), (136, 8)] {
        assert_eq!(cut(protocol, whole), New, "protocol {protocol}");
        assert_eq!(cut(protocol, whole - 1), Invalid, "protocol {protocol}");
    }
    let mut odd = tcp(SYN, false);
    odd[32] = 0x40;
    assert_eq!(states(&[odd.clone()]), [Invalid], "a header of 16 bytes");
    odd[32] = 0x60;
    assert_eq!(states(&[odd]), [Invalid], "a header longer than the segment");
    assert_eq!(states(&[v6(60, &[])]), [Invalid], "a broken chain");
    assert_eq!(states(&[v6(59, &[])]), [Invalid], "no next header");
    assert_eq!(states(&[between(v4(50, 0, &[], &[]), false)]), [New], "ESP has nothing to be read");
    // In a first fragment the rest may come later.
    assert_eq!(states(&[between(v4(6, 0x2000, &[], &ports(false)), false)]), [New]);
}
