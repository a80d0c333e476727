//! Captures frame by frame under a policy.

#![allow(clippy::unwrap_used)]

use super::super::tests::{name, node, policy, rule, tcp, tier};
use super::super::wire::tests::{seal, v4, v6};
use super::*;
use crate::policy::effective::{EffectivePolicy, EffectiveTier};
use crate::policy::model::{Action, TierDefault};

/// 10.0.0.1 is this host. SSH comes in; whatever is not decided is denied on the way in and allowed on the way out.
fn ssh_only() -> Effective {
    with(vec![policy("ssh", &[tcp(Action::Allow, 22)])])
}

fn with(policies: Vec<EffectivePolicy>) -> Effective {
    let tier: EffectiveTier = tier("default", TierDefault::Pass, policies);
    node(vec![tier])
}

fn way() -> Way {
    Way {
        interface: name("eth0"),
        kind: None,
        direction: Direction::Ingress,
        exit: None,
        local: AddrSet::from_iter(["10.0.0.1".parse::<IpAddr>().unwrap()]),
        vlans: Vec::new(),
        origin: Origin::Unknown,
    }
}

const CLIENT: [u8; 4] = [10, 0, 0, 9];
const HOST: [u8; 4] = [10, 0, 0, 1];

fn ip(mut bytes: Vec<u8>, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    bytes[12..16].copy_from_slice(&source);
    bytes[16..20].copy_from_slice(&destination);
    seal(&mut bytes);
    bytes
}

fn segment(flags: u8, source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0; 8], &[0x50, flags], &[0; 6]].concat()
}

/// SYN from the client, SYN+ACK from the host.
fn syn(port: u16) -> Vec<u8> {
    ip(v4(6, 0, &[], &segment(2, 40_000, port)), CLIENT, HOST)
}

fn syn_ack(port: u16) -> Vec<u8> {
    ip(v4(6, 0, &[], &segment(18, port, 40_000)), HOST, CLIENT)
}

fn ethernet(header: &[u8], packet: &[u8]) -> Vec<u8> {
    [&[2; 12], header, packet].concat()
}

/// What becomes of frames, in words.
fn run_as(effective: &Effective, way: Way, link: LinkType, frames: &[(Vec<u8>, Option<Seen>)]) -> Vec<String> {
    let mut replay = Replay::new(effective, way);
    let words = |(bytes, seen): &(Vec<u8>, Option<Seen>)| {
        let (_, answer) = replay.next(&Captured { link, bytes, length: bytes.len(), seen: *seen });
        match answer {
            Answer::Decided(decided) => {
                let packet = &decided.packet;
                let exit = packet.forward.as_ref().map(|exit| format!(">{}", exit.interface)).unwrap_or_default();
                let outcome = decided.trace.decision.outcome;
                format!("{outcome:?} {} {}{exit} {:?}", packet.direction, packet.interface, packet.state)
            }
            Answer::Fragment { first, .. } => format!("Fragment {first:?}"),
            Answer::Malformed(error) => format!("Malformed {error:?}"),
            Answer::Skipped(skipped) => format!("Skipped {skipped:?}"),
        }
    };
    frames.iter().map(words).collect()
}

fn run(effective: &Effective, packets: &[Vec<u8>]) -> Vec<String> {
    let frames: Vec<_> = packets.iter().map(|bytes| (bytes.clone(), None)).collect();
    run_as(effective, way(), LinkType::Raw, &frames)
}

#[test]
fn both_sides_of_a_connection_are_decided_each_its_way() {
    assert_eq!(
        run(&ssh_only(), &[syn(22), syn_ack(22), syn(23), syn_ack(23)]),
        [
            "Accepted ingress eth0 New",
            "Accepted egress eth0 Established",
            "Dropped ingress eth0 New",
            "Dropped egress eth0 Invalid",
        ]
    );
}

#[test]
fn which_way_a_packet_goes_the_capture_knows_best() {
    let strange = ip(v4(6, 0, &[], &segment(2, 1, 22)), [172, 16, 0, 1], [172, 16, 0, 2]);
    let frames = |seen| vec![(strange.clone(), seen), (syn(22), seen)];
    let go = |way: Way, seen| run_as(&ssh_only(), way, LinkType::Raw, &frames(seen));
    assert_eq!(go(way(), None), ["Accepted ingress eth0 New", "Accepted ingress eth0 New"]);
    let out = || Way { direction: Direction::Egress, ..way() };
    assert_eq!(go(out(), None), ["Accepted egress eth0 New", "Accepted ingress eth0 New"], "to our own address");
    assert_eq!(go(out(), Some(Seen::Arriving)), ["Accepted ingress eth0 New", "Accepted ingress eth0 New"]);
    assert_eq!(go(way(), Some(Seen::Leaving)), ["Accepted egress eth0 New", "Accepted egress eth0 New"]);
    assert_eq!(go(way(), Some(Seen::ForOthers)), ["Skipped ForOthers", "Skipped ForOthers"]);
}

#[test]
fn forwarded_packets_come_back_by_the_same_two_interfaces() {
    let through = Way { exit: Some(Exit { interface: name("cali7"), kind: None }), ..way() };
    let frames = [(syn(22), None), (syn_ack(22), None), (syn_ack(80), Some(Seen::Leaving))];
    assert_eq!(
        run_as(&with(Vec::new()), through, LinkType::Raw, &frames),
        [
            "Accepted ingress eth0>cali7 New",
            "Accepted ingress cali7>eth0 Established",
            "Accepted ingress cali7>eth0 Invalid"
        ]
    );
}

#[test]
fn a_fragment_goes_the_way_of_its_first() {
    let fragment = |flags: u16, id: u8, payload: &[u8]| {
        let mut bytes = ip(v4(6, flags, &[], payload), CLIENT, HOST);
        bytes[5] = id;
        seal(&mut bytes);
        bytes
    };
    let first = |id, port| fragment(0x2000, id, &segment(2, 40_000, port));
    assert_eq!(
        run(
            &ssh_only(),
            &[first(1, 22), fragment(3, 1, &[0; 8]), first(2, 23), fragment(3, 2, &[0; 8]), fragment(3, 9, &[0; 8])]
        ),
        [
            "Accepted ingress eth0 New",
            "Fragment Some((1, Accepted))",
            "Dropped ingress eth0 New",
            "Fragment Some((3, Dropped))",
            "Fragment None",
        ]
    );
    // RFC 1858: a first fragment without the ports is a whole header after reassembly.
    assert_eq!(
        run(&ssh_only(), &[fragment(0x2000, 3, &[0, 1]), fragment(1, 3, &[0; 8])]),
        ["Skipped SplitHeader", "Fragment None"]
    );
}

#[test]
fn fragments_of_long_ago_are_forgotten_and_those_of_just_now_are_not() {
    let effective = with(Vec::new());
    let mut replay = Replay::new(&effective, way());
    let mut next =
        |bytes: &[u8]| replay.next(&Captured { link: LinkType::Raw, bytes, length: bytes.len(), seen: None }).1;
    let packet = |flags: u16, source: u32| {
        let mut bytes = ip(v4(47, flags, &[], &[0; 8]), source.to_be_bytes(), HOST);
        seal(&mut bytes);
        bytes
    };
    let many = u32::try_from(FRAGMENTS_REMEMBERED * 3).unwrap();
    for source in 0..many {
        next(&packet(0x2000, source));
    }
    let first = |answer| match answer {
        Answer::Fragment { first, .. } => first,
        _ => None,
    };
    assert_eq!(first(next(&packet(1, 0))), None);
    let last = many - 1;
    assert_eq!(first(next(&packet(1, last))), Some((u64::from(many), Outcome::Dropped)));
}

#[test]
fn frames_of_other_vlans_are_for_other_interfaces() {
    let packet = syn(22);
    let untagged = ethernet(&[8, 0], &packet);
    let priority = ethernet(&[0x81, 0, 0xe0, 0, 8, 0], &packet);
    let tagged = ethernet(&[0x81, 0, 0, 7, 8, 0], &packet);
    let arp = ethernet(&[8, 6], &[0; 28]);
    let frames = [untagged, priority, tagged, arp].map(|bytes| (bytes, None));
    let go = |vlans| run_as(&ssh_only(), Way { vlans, ..way() }, LinkType::Ethernet, &frames);
    let accepted = "Accepted ingress eth0 New";
    assert_eq!(go(vec![]), [accepted, accepted, "Skipped Vlan([7])", "Skipped NotIp(Ethertype(2054))"]);
    assert_eq!(go(vec![7]), ["Skipped Vlan([])", "Skipped Vlan([])", accepted, "Skipped NotIp(Ethertype(2054))"]);
}

#[test]
fn what_arrives_malformed_never_meets_a_rule() {
    let mut wrong = syn(22);
    wrong[8] = 1;
    let leaving = Way { local: AddrSet::from_iter(["10.0.0.9".parse::<IpAddr>().unwrap()]), ..way() };
    assert_eq!(run(&ssh_only(), &[wrong.clone()]), ["Malformed Checksum"]);
    assert_eq!(
        run_as(&ssh_only(), leaving, LinkType::Raw, &[(wrong, None)]),
        ["Accepted egress eth0 New"],
        "what leaves is checked by whoever gets it"
    );
    let packet = syn(22);
    let effective = ssh_only();
    let cut = |there: usize| {
        let mut replay = Replay::new(&effective, way());
        let bytes = &packet[..there];
        replay.next(&Captured { link: LinkType::Raw, bytes, length: packet.len(), seen: None }).1
    };
    assert_eq!(cut(23), Answer::Skipped(Skipped::Cut));
    assert_eq!(cut(0), Answer::Skipped(Skipped::Cut));
    assert_eq!(cut(24).outcome(), Some(Outcome::Accepted));
    assert_eq!(run(&ssh_only(), &[packet[..24].to_vec()]), ["Malformed Length { said: 40, there: 24 }"]);
}

#[test]
fn what_is_allowed_without_tracking_leaves_no_flow() {
    let untracked = EffectivePolicy { stage: Stage::Untracked, ..policy("rails", &[rule(Action::Allow)]) };
    assert_eq!(
        run(&with(vec![untracked]), &[syn(22), syn(22), syn_ack(22)]),
        ["Accepted ingress eth0 New", "Accepted ingress eth0 New", "Dropped egress eth0 Invalid"]
    );
}

#[test]
fn neighbour_discovery_is_untracked_and_gets_through() {
    let solicit = v6(58, &[135, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(run(&ssh_only(), &[solicit]), ["Accepted ingress eth0 Untracked"]);
}
