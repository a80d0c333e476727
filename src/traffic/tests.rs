//! What goes on, put together: counts, bounds and measures.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};

use super::tell::{ALIKE_MICROS, Teller};
use super::window::{MOST_KEYS, Window};
use super::{Decider, Event, Kind, Service, Verdict};
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;
use crate::policy::effective::RuleId;

fn peer(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

fn denied(number: u32, ports: (u16, u16)) -> Event {
    Event {
        time: 1_000_000,
        kind: Kind::Packet,
        direction: Direction::Ingress,
        interface: InterfaceName::new("mgmt0"),
        role: Some(Role::Mgmt),
        out: None,
        source: peer(number),
        destination: Ipv4Addr::new(10, 9, 0, 1).into(),
        protocol: Some(Protocol::TCP),
        ports: Some(ports),
        icmp: None,
        length: Some(60),
        names: [].into(),
        verdict: Verdict::Denied,
        decider: Decider::Rule(RuleId { policy: "ssh".into(), number: 2 }),
        tier: None,
        place: None,
        text: String::new(),
        actor: None,
    }
}

#[test]
fn a_packet_that_is_sent_again_is_no_other_connection() {
    let mut window = Window::default();
    for (port, times) in [(40_000, 4), (40_001, 1), (40_002, 2)] {
        for time in 0..times {
            window.add(&Event { time: time * 1_000_000, ..denied(1, (port, 22)) });
        }
    }
    let records = window.take();
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((record.connections, record.packets, record.bytes), (3, Some(7), Some(420)));
    assert_eq!((record.first, record.last), (0, 3_000_000));
    // In the next window it is still known.
    window.add(&denied(1, (40_000, 22)));
    window.add(&denied(1, (40_009, 22)));
    assert_eq!(window.take()[0].connections, 1);
    // And forgotten in the one after that, where it was not seen.
    window.add(&denied(1, (40_001, 22)));
    assert_eq!(window.take()[0].connections, 1);
    assert!(window.is_empty() && window.take().is_empty());
}

#[test]
fn an_audited_connection_and_its_packet_are_one() {
    for order in [[Kind::Packet, Kind::Connection], [Kind::Connection, Kind::Packet]] {
        let mut window = Window::default();
        for port in [1, 2, 3] {
            for kind in order {
                window.add(&Event { kind, verdict: Verdict::WouldDeny, ..denied(1, (port, 22)) });
            }
        }
        let records = window.take();
        assert_eq!((records.len(), records[0].connections, records[0].packets), (1, 3, None), "{order:?}");
    }
    let mut window = Window::default();
    for _ in 0..3 {
        window.add(&Event { kind: Kind::Connection, verdict: Verdict::Allowed, ..denied(1, (7, 22)) });
    }
    assert_eq!(window.take()[0].connections, 3, "a port that is used again");
}

#[test]
fn a_flood_takes_no_more_room() {
    let mut window = Window::default();
    let few = 200u32;
    for number in 0..few {
        for port in 0..300 {
            window.add(&denied(number, (1, port)));
        }
    }
    for number in few..few + 20_000 {
        window.add(&denied(number, (1, 22)));
    }
    let records = window.take();
    assert!(records.len() <= MOST_KEYS + 2 * 1024 + 24, "{}", records.len());
    let all: u64 = records.iter().map(|record| record.packets.unwrap()).sum();
    assert_eq!(all, u64::from(few) * 300 + 20_000, "everything is counted somewhere");
    assert!(records.iter().any(|record| record.key.peer.is_none()));
    let folded = |record: &&super::Record| record.key.service == Service::Many && record.key.peer.is_some();
    assert!(records.iter().any(|record| folded(&record)));
}

#[test]
fn the_journal_hears_of_the_first_and_then_of_numbers() {
    let mut teller = Teller::default();
    assert_eq!(teller.summary_at(), None);
    let told = (0..1000).filter(|number| teller.tells(&denied(1, (*number, 22)))).count();
    assert_eq!(told, 1, "they are alike");
    assert!(teller.tells(&denied(2, (1, 22))), "another peer");
    let others = (3..1000).filter(|number| teller.tells(&denied(*number, (1, 22)))).count();
    assert_eq!(others, 18, "a rule has twenty lines at once");
    let other_rule = Event { decider: Decider::Default, ..denied(1, (1, 22)) };
    assert!(teller.tells(&other_rule), "and another rule has its own");
    let at = teller.summary_at().unwrap();
    assert_eq!(at, 1_000_000 + ALIKE_MICROS);
    let left_out = teller.summary(at);
    assert_eq!(left_out.len(), 1);
    assert_eq!(left_out[0].packets, 999 + 997 - 18);
    assert_eq!(teller.silent(), left_out[0].packets);
    assert_eq!((teller.summary_at(), teller.summary(at)), (None, Vec::new()));
    let later = Event { time: at, ..denied(1, (1, 22)) };
    assert!(teller.tells(&later) && !teller.tells(&later));
}
