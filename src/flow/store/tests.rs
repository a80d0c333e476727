//! Generated records come back, and what is damaged is passed over.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;
use crate::policy::effective::RuleId;
use crate::traffic::{Actor, Decider, Key, PeerName, Record, Service, Verdict};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: u64 = 1024 * 1024;
const NOW: u64 = 1_795_468_194_000_000;

fn limits() -> Limits {
    Limits { keep: DAY, bytes: 8 * MIB }
}

fn all(directory: &Path) -> (Vec<Record>, Scan) {
    let mut records = Vec::new();
    let scan = Reader::open(directory)
        .unwrap()
        .records(0, u64::MAX, &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        })
        .unwrap();
    (records, scan)
}

fn service() -> impl Strategy<Value = Service> {
    prop_oneof![
        any::<u16>().prop_map(Service::Port),
        any::<(u8, u8)>().prop_map(|(kind, code)| Service::Icmp(kind, code)),
        Just(Service::Whole),
        Just(Service::Many),
    ]
}

fn decider() -> impl Strategy<Value = Decider> {
    prop_oneof![
        ("[a-z:-]{1,20}", any::<u32>())
            .prop_map(|(policy, number)| Decider::Rule(RuleId { policy: policy.as_str().into(), number })),
        "[a-z]{1,9}".prop_map(|name| Decider::Tier(name.as_str().into())),
        Just(Decider::Default),
        Just(Decider::Nothing),
        Just(Decider::Unknown),
    ]
}

fn actor() -> impl Strategy<Value = Actor> {
    (".{0,15}", proptest::option::of(".{1,20}"), proptest::option::of(".{1,9}"), proptest::option::of(".{1,9}"))
        .prop_map(|(process, unit, pod, user)| Actor { process, unit, pod, user })
}

fn name() -> impl Strategy<Value = PeerName> {
    prop_oneof![
        "[a-z]{1,9}".prop_map(|name| PeerName::Set(name.as_str().into())),
        "[a-z]{1,9}".prop_map(|name| PeerName::Node(name.as_str().into()))
    ]
}

prop_compose! {
    fn key()(
        direction in prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)],
        interface in proptest::option::of("[a-z0-9]{1,15}"),
        role in proptest::option::of(proptest::sample::select(Role::ALL)),
        peer in proptest::option::of(any::<std::net::IpAddr>()),
        protocol in proptest::option::of(any::<u8>().prop_map(Protocol)),
        service in service(),
        verdict in proptest::sample::select(&Verdict::ALL[..]),
        decider in decider(),
    ) -> Key {
        let interface = interface.and_then(|name| InterfaceName::new(&name));
        Key { direction, interface, role, peer, protocol, service, verdict, decider }
    }
}

prop_compose! {
    fn record()(
        key in key(),
        local in proptest::option::of(any::<std::net::IpAddr>()),
        names in proptest::collection::btree_set(name(), 0..4),
        tier in proptest::option::of("[a-z]{1,9}"),
        place in proptest::option::of(".{1,40}"),
        actors in proptest::collection::btree_set(actor(), 0..3),
        connections in 0..u64::MAX / 2,
        packets in proptest::option::of(0..u64::MAX / 2),
        bytes in proptest::option::of(0..u64::MAX / 2),
        ago in 0..3_600_000_000u64,
        span in 0..10_000_000u64,
    ) -> Record {
        let first = NOW - ago - span;
        Record { key, local, names, tier, place, actors, connections, packets, bytes, first, last: first + span }
    }
}

/// A record of a peer that counts up.
fn plain(number: u32, time: u64) -> Record {
    Record {
        key: Key {
            direction: Direction::Ingress,
            interface: InterfaceName::new("eth0"),
            role: Some(Role::Mgmt),
            peer: Some(std::net::Ipv4Addr::from(0x0a00_0000 + number).into()),
            protocol: Some(Protocol::TCP),
            service: Service::Port(22),
            verdict: Verdict::Denied,
            decider: Decider::Rule(RuleId { policy: "ssh".into(), number: 2 }),
        },
        local: Some(std::net::Ipv4Addr::new(10, 0, 0, 1).into()),
        names: [PeerName::Set("office".into())].into(),
        tier: Some("default".to_owned()),
        place: Some("10-ssh.toml:7".to_owned()),
        actors: [Actor { process: "sshd".to_owned(), ..Actor::default() }].into(),
        connections: 3,
        packets: Some(6),
        bytes: Some(4000),
        first: time - 1_000_000,
        last: time,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back_as_they_were(batches in proptest::collection::vec(proptest::collection::vec(record(), 0..20), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        for batch in &batches {
            let mut store = Store::open(folder.path(), limits()).unwrap();
            let written = store.write(batch, NOW).unwrap();
            prop_assert_eq!(written, Written { stored: batch.len() as u64, left_out: 0 });
            prop_assert_eq!(store.told(), Vec::<String>::new());
        }
        prop_assert_eq!(all(folder.path()), (batches.concat(), Scan::default()));
    }
}

#[test]
fn only_the_time_that_is_asked_for_is_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits()).unwrap();
    for minute in 0..60 {
        let time = NOW + minute * 60_000_000;
        store.write(&[plain(minute as u32, time)], time).unwrap();
    }
    let reader = Reader::open(folder.path()).unwrap();
    let (since, until) = (NOW + 600_000_000, NOW + 1_200_000_000);
    let mut times = Vec::new();
    reader
        .records(since, until, &mut |record| {
            times.push((record.last - NOW) / 60_000_000);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(times, (10..=20).collect::<Vec<_>>(), "the last began a second before");
    let mut some = 0;
    reader
        .records(0, u64::MAX, &mut |_| {
            some += 1;
            if some == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(some, 5);
}

#[test]
fn what_is_older_than_it_may_be_goes_and_takes_its_strings_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), Limits { keep: Duration::from_secs(100), bytes: 8 * MIB }).unwrap();
    for round in 0..40u64 {
        let time = NOW + round * 10_000_000;
        let mut records: Vec<Record> = (0..500).map(|number| plain(number, time)).collect();
        for (number, record) in records.iter_mut().enumerate() {
            record.place = Some(format!("{round}.toml:{number}"));
        }
        store.write(&records, time).unwrap();
    }
    let (records, _) = all(folder.path());
    let last = NOW + 390_000_000;
    assert_eq!(records.len(), 11 * 500);
    assert!(records.iter().all(|record| record.last >= last - 100_000_000));
    let connection = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    let texts: i64 = connection.query_row("SELECT count(*) FROM text", [], |row| row.get(0)).unwrap();
    assert!(texts < 11 * 500 + 8192 + 600, "{texts}");
    let seen = Reader::open(folder.path()).unwrap().seen(0, u64::MAX).unwrap();
    assert_eq!(seen.spans.len(), 1);
}

#[test]
fn pauses_losses_and_what_space_cost_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits()).unwrap();
    store.write(&[plain(1, NOW)], NOW).unwrap();
    store.write(&[], NOW + 10_000_000).unwrap();
    drop(store);
    let mut store = Store::open(folder.path(), limits()).unwrap();
    store.lost(7, 2);
    store.write(&[], NOW + 100_000_000).unwrap();
    store.write(&[], NOW + 110_000_000).unwrap();
    let seen = Reader::open(folder.path()).unwrap().seen(0, u64::MAX).unwrap();
    let spans: Vec<_> = seen.spans.iter().map(|span| (span.from + 1_000_000 - NOW, span.until - NOW)).collect();
    assert_eq!(spans, [(0, 10_000_000), (101_000_000, 110_000_000)]);
    assert_eq!((seen.left_out, seen.lost_packets, seen.lost_connections), (0, 7, 2));
    let seen = Reader::open(folder.path()).unwrap().seen(NOW, NOW + 50_000_000).unwrap();
    assert_eq!((seen.spans.len(), seen.lost_packets), (1, 0));
}

#[test]
fn rows_that_nobody_wrote_are_counted_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits()).unwrap();
    store.write(&(0..10).map(|number| plain(number, NOW)).collect::<Vec<_>>(), NOW).unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    for wrong in ["verdict = 9", "peer = x'01'", "decider = 999", "service = 999999", "span = -5", "names = 1"] {
        let changed = format!("UPDATE record SET {wrong} WHERE id = (SELECT min(id) FROM record WHERE direction = 0)");
        assert_eq!(connection.execute(&changed, []).unwrap(), 1);
        connection
            .execute("UPDATE record SET direction = 1 WHERE id = (SELECT min(id) FROM record WHERE direction = 0)", [])
            .unwrap();
    }
    drop(connection);
    let (records, scan) = all(folder.path());
    assert_eq!((records.len(), scan.damaged), (4, 6));
}
