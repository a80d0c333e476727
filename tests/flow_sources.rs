//! What the kernel tells of packets and connections: the packet log and the events of connection tracking, from real packets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lab::may_run;
use lab::net::{Host, Probe, What, probe, wire};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nodewall::compile::logged;
use nodewall::flow::{Connections, Error, PacketLog};
use nodewall::net::protocol::Protocol;
use nodewall::nft::netlink::Message;
use nodewall::nft::netlink::conntrack::{ConnectionEvent, Phase};
use nodewall::nft::netlink::constant::{NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT};
use nodewall::nft::netlink::log::{LONGEST_PAYLOAD, LoggedPacket, logged_packet};
use nodewall::simulate::wire::{beginning, packet};
use proptest::prelude::*;

/// How long a test waits for what has to come; it comes in a tenth of a second, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Whether there is something to read within a time.
fn ready(socket: &impl AsFd, milliseconds: u16) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(milliseconds)).unwrap() > 0
}

/// Reads until `enough` says so.
fn packets_until(log: &mut PacketLog, mut enough: impl FnMut(&[LoggedPacket]) -> bool) -> Vec<LoggedPacket> {
    let (mut found, end) = (Vec::new(), Instant::now() + PATIENCE);
    while !enough(&found) {
        assert!(Instant::now() < end, "{} packets, {} lost: {found:#?}", found.len(), log.lost());
        ready(log, 50);
        while log.read(64, &mut found).unwrap() {}
    }
    found
}

fn events_until(
    connections: &mut Connections,
    mut enough: impl FnMut(&[ConnectionEvent]) -> bool,
) -> Vec<ConnectionEvent> {
    let (mut found, end) = (Vec::new(), Instant::now() + PATIENCE);
    while !enough(&found) {
        assert!(Instant::now() < end, "{found:#?}");
        ready(connections, 50);
        while connections.read(64, &mut found).unwrap() {}
    }
    found
}

/// The index of an interface.
fn index(host: &Host, name: &str) -> u32 {
    host.enter(|| nix::net::if_::if_nametoindex(name).unwrap())
}

/// What is said of a packet: prefix, hook, interfaces by which it came and leaves, user, protocol, and destination port or ICMP type.
type Said = (String, u8, Option<u32>, Option<u32>, Option<u32>, u8, u16);

fn said(logged: &LoggedPacket) -> Said {
    // Of a short packet the whole is there.
    let headers = packet(&logged.payload).unwrap();
    assert_eq!(beginning(&logged.payload, logged.payload.len()).unwrap(), headers);
    assert_eq!(logged.frame_protocol, if headers.source.is_ipv4() { 0x0800 } else { 0x86dd });
    let detail = headers.ports().map(|ports| ports.1).or(headers.icmp().map(|(kind, _)| kind.into())).unwrap();
    let protocol = headers.protocol.unwrap().0;
    (logged.prefix.clone(), logged.hook, logged.indev, logged.outdev, logged.uid, protocol, detail)
}

#[test]
fn packets_are_told_at_each_hook_with_interfaces_user_and_headers() {
    if !may_run("packet log") {
        return;
    }
    let (node, client, far) = (Host::new(), Host::new(), Host::new());
    wire((&node, "mgmt0", &["10.1.0.1/24", "fd01::1/64"]), (&client, "c0", &["10.1.0.2/24", "fd01::2/64"]));
    wire((&node, "pod0", &["10.2.0.1/24", "fd02::1/64"]), (&far, "f0", &["10.2.0.2/24", "fd02::2/64"]));
    node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    client.sh("ip route add default via 10.1.0.1; ip -6 route add default via fd01::1");
    node.sh(r#"nft 'table inet t {
        chain input { type filter hook input priority 0;
            tcp dport 22 meta mark set 0x77 log prefix "in#1 deny " group 7 drop
            udp dport 53 log prefix "in#2 deny " group 7 drop
            icmp type echo-request log prefix "in#3 deny: ping " group 7 drop
            icmpv6 type echo-request log prefix "in#3 deny: ping " group 7 drop
        }
        chain forward { type filter hook forward priority 0;
            meta l4proto { tcp, udp } log prefix "through#1 deny " group 7 drop
        }
        chain output { type filter hook output priority 0;
            meta l4proto { tcp, udp } log prefix "out#1 deny " group 7 drop
        }
    }'"#);
    let mut log = node.enter(|| PacketLog::open(7)).unwrap();
    assert!(!ready(&log, 0) && !log.read(10, &mut Vec::new()).unwrap(), "nothing was logged yet");

    let (mgmt, pod) = (Some(index(&node, "mgmt0")), Some(index(&node, "pod0")));
    let (mut wanted, mut probes) = (BTreeSet::<Said>::new(), Vec::new());
    for (from_client, to_node, to_far) in [("10.1.0.2", "10.1.0.1", "10.2.0.2"), ("fd01::2", "fd01::1", "fd02::2")] {
        let mut from = |host: &Host, source: &str, destination: &str, what| {
            probes.push(Probe { from: host.clone(), source: ip(source), destination: ip(destination), what });
        };
        from(&client, from_client, to_node, What::Tcp(22));
        from(&client, from_client, to_node, What::Udp(53));
        from(&client, from_client, to_node, What::Echo);
        from(&client, from_client, to_far, What::Tcp(443));
        from(&client, from_client, to_far, What::Udp(4433));
        from(&node, to_node, from_client, What::Tcp(80));
        from(&node, to_node, from_client, What::Udp(123));
        let echo = if ip(from_client).is_ipv4() { (Protocol::ICMP.0, 8) } else { (Protocol::ICMPV6.0, 128) };
        let (tcp, udp, me) = (Protocol::TCP.0, Protocol::UDP.0, Some(nix::unistd::geteuid().as_raw()));
        for (prefix, hook, indev, outdev, uid, (protocol, detail)) in [
            ("in#1 deny ", NF_INET_LOCAL_IN, mgmt, None, None, (tcp, 22)),
            ("in#2 deny ", NF_INET_LOCAL_IN, mgmt, None, None, (udp, 53)),
            ("in#3 deny: ping ", NF_INET_LOCAL_IN, mgmt, None, None, echo),
            ("through#1 deny ", NF_INET_FORWARD, mgmt, pod, None, (tcp, 443)),
            ("through#1 deny ", NF_INET_FORWARD, mgmt, pod, None, (udp, 4433)),
            ("out#1 deny ", NF_INET_LOCAL_OUT, None, mgmt, me, (tcp, 80)),
            ("out#1 deny ", NF_INET_LOCAL_OUT, None, mgmt, me, (udp, 123)),
        ] {
            wanted.insert((prefix.to_owned(), hook, indev, outdev, uid, protocol, detail));
        }
    }
    probe(&probes);
    let of = |packets: &[LoggedPacket]| packets.iter().map(said).collect::<BTreeSet<Said>>();
    let found = packets_until(&mut log, |packets| of(packets).len() >= wanted.len());
    assert_eq!(of(&found), wanted);
    let families: BTreeSet<u8> = found.iter().map(|packet| packet.family).collect();
    assert_eq!(families, BTreeSet::from([2, 10]));
    for packet in &found {
        assert_eq!(packet.mark, if packet.prefix.starts_with("in#1") { 0x77 } else { 0 });
        assert_eq!(packet.gid.is_some(), packet.uid.is_some());
        let year_2020 = 1_577_836_800_000_000;
        assert!(packet.time_micros.is_none_or(|time| time > year_2020), "{packet:?}");
        assert!(packet.hook == NF_INET_LOCAL_OUT || packet.time_micros.is_some(), "{packet:?}");
    }
    let numbers: Vec<u32> = found.iter().filter_map(|packet| packet.sequence).collect();
    assert_eq!(numbers, (0..found.len() as u32).collect::<Vec<_>>());
    assert_eq!((log.lost(), log.overruns()), (0, 0));
}

#[test]
fn of_a_long_packet_the_beginning_is_told() {
    if !may_run("a long packet") {
        return;
    }
    let node = Host::new();
    node.sh(
        r#"nft 'table inet t { chain output { type filter hook output priority 0; udp dport 9 log prefix "x" group 3; }; }'"#,
    );
    let mut log = node.enter(|| PacketLog::open(3)).unwrap();
    node.enter(|| {
        use nix::sys::socket::{setsockopt, sockopt};
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        // The largest packet that loopback takes whole.
        let _ = setsockopt(&socket, sockopt::Ipv6DontFrag, &true);
        socket.send_to(&[7; 60_000], "[::1]:9").unwrap();
    });
    let found = packets_until(&mut log, |packets| !packets.is_empty());
    assert_eq!(found[0].payload.len(), 192);
    let length = 40 + 8 + 60_000;
    let headers = beginning(&found[0].payload, length).unwrap();
    assert_eq!((headers.protocol, headers.ports().unwrap().1, headers.cut), (Some(Protocol::UDP), 9, true));
}

#[test]
fn what_is_lost_under_a_flood_is_counted_to_the_last_packet_and_reading_is_bounded() {
    if !may_run("losses") {
        return;
    }
    let node = Host::new();
    node.sh(
        r#"nft 'table inet t {
            chain output { type filter hook output priority 0; udp dport 9 counter log prefix "flood#1 deny " group 5 drop; };
        }'"#,
    );
    // The kernel has a least size, which is less than two pieces of 64 packets.
    let mut log = node.enter(|| PacketLog::open_with_room(5, 1)).unwrap();
    let sent = 5_000;
    let socket = node.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let send = |count: usize| {
        for _ in 0..count {
            // A drop in the output hook says EPERM.
            let _ = socket.send_to(b"x", "127.0.0.1:9");
        }
    };
    send(sent);
    let mut found = Vec::new();
    // One piece, however little is asked for, and nothing where nothing is.
    log.read(1, &mut found).unwrap();
    assert!(found.len() <= 64, "{}", found.len());
    assert!(log.read(0, &mut Vec::new()).unwrap());
    while log.read(64, &mut found).unwrap() {}
    assert!(log.overruns() > 0);
    // The last piece waits in the kernel for more, a tenth of a second at most.
    let patient = |log: &mut PacketLog, found: &mut Vec<LoggedPacket>, enough: usize| {
        let end = Instant::now() + PATIENCE;
        while found.len() < enough {
            assert!(Instant::now() < end, "{} of {enough}", found.len());
            ready(log, 50);
            while log.read(64, found).unwrap() {}
        }
    };
    ready(&log, 300);
    while log.read(64, &mut found).unwrap() {}
    // Those that were lost last are known when one more comes.
    send(1);
    let before = found.len();
    patient(&mut log, &mut found, before + 1);
    let (got, lost) = (found.len() as u64, log.lost());
    println!("{got} of {} came, {lost} were lost, {} overruns", sent + 1, log.overruns());
    assert!(lost > 0);
    assert_eq!(got + lost, sent as u64 + 1);
    let counted = node.sh("nft list table inet t");
    assert!(counted.contains(&format!("counter packets {} ", sent + 1)), "{counted}");
    // And it goes on as if nothing had been.
    found.clear();
    send(10);
    patient(&mut log, &mut found, 10);
    assert_eq!((found.len(), log.lost()), (10, lost));
}

#[test]
fn a_group_has_one_reader_and_whoever_comes_second_is_told_who_it_is() {
    if !may_run("one reader") {
        return;
    }
    let (node, other) = (Host::new(), Host::new());
    let first = node.enter(|| PacketLog::open(5)).unwrap();
    let refused = node.enter(|| PacketLog::open(5)).err().unwrap();
    assert!(matches!(refused, Error::Taken { group: 5, port: Some(_) }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.starts_with("another program reads group 5 of the packet log (netlink port "), "{text}");
    assert!(text.contains("write another group in [log] of nodewall.toml"), "{text}");
    // Another group, and the same in another network namespace, are others.
    let _second = node.enter(|| PacketLog::open(6)).unwrap();
    let _third = other.enter(|| PacketLog::open(5)).unwrap();
    drop(first);
    node.enter(|| PacketLog::open(5)).unwrap();
}

/// A connection to a server, and what the kernel counts of it.
fn talk(from: &Host, server: &TcpListener) -> u16 {
    from.enter(|| {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        stream.write_all(&[1; 1000]).unwrap();
        let mut buffer = [0; 1000];
        accepted.read_exact(&mut buffer).unwrap();
        stream.local_addr().unwrap().port()
    })
}

#[test]
fn connections_are_told_when_they_begin_and_when_they_end_with_what_was_counted() {
    if !may_run("connection events") {
        return;
    }
    let (node, client) = (Host::new(), Host::new());
    wire((&node, "n0", &["10.1.0.1/24", "fd01::1/64"]), (&client, "c0", &["10.1.0.2/24", "fd01::2/64"]));
    // Connection tracking works where a rule asks for it.
    node.sh(r#"nft 'table inet t { chain input { type filter hook input priority 0; ct state invalid drop; tcp dport 9 drop; }; }'"#);
    for counted in [false, true] {
        let both = u8::from(counted);
        node.sh(&format!(
            "sysctl -qw net.netfilter.nf_conntrack_acct={both} net.netfilter.nf_conntrack_timestamp={both}"
        ));
        let mut connections = node.enter(Connections::open).unwrap();
        for address in ["10.1.0.1", "fd01::1"] {
            let server = node.enter(|| TcpListener::bind(SocketAddr::new(ip(address), 0))).unwrap();
            let port = server.local_addr().unwrap().port();
            let from = talk(&client, &server);
            let of = |event: &ConnectionEvent| event.flow.original.ports() == Some((from, port));
            let began = events_until(&mut connections, |events| events.iter().any(of));
            let began: Vec<&ConnectionEvent> = began.iter().filter(|event| of(event)).collect();
            assert_eq!(began.len(), 1, "{began:#?}");
            assert_eq!((began[0].kind, began[0].packets, began[0].bytes), (Phase::Began, None, None));
            assert_eq!(began[0].flow.original.destination, ip(address));
            assert_eq!(began[0].flow.original.protocol, Protocol::TCP);
            // It is over when it is forgotten.
            let id = began[0].flow.id;
            node.enter(lab::conntrack::flush);
            let ended = |event: &ConnectionEvent| of(event) && event.kind == Phase::Ended;
            let events = events_until(&mut connections, |events| events.iter().any(ended));
            let ended = events.iter().find(|event| ended(event)).unwrap();
            assert_eq!(ended.flow.id, id);
            if counted {
                // At least the handshake and the thousand bytes.
                assert!(ended.packets.unwrap() >= 4 && ended.bytes.unwrap() > 1000 + 4 * 40, "{ended:?}");
                assert!(ended.began_micros.unwrap() <= ended.ended_micros.unwrap(), "{ended:?}");
            } else {
                assert_eq!(
                    (ended.packets, ended.bytes, ended.began_micros, ended.ended_micros),
                    (None, None, None, None)
                );
            }
        }
        // What is dropped never was a connection.
        let probes =
            [Probe { from: client.clone(), source: ip("10.1.0.2"), destination: ip("10.1.0.1"), what: What::Tcp(9) }];
        probe(&probes);
        let server = node.enter(|| TcpListener::bind("10.1.0.1:0")).unwrap();
        let (from, port) = (talk(&client, &server), server.local_addr().unwrap().port());
        let events = events_until(&mut connections, |events| {
            events.iter().any(|event| event.flow.original.ports() == Some((from, port)))
        });
        assert!(events.iter().all(|event| event.flow.original.ports().is_none_or(|ports| ports.1 != 9)), "{events:#?}");
        assert_eq!(connections.overruns(), 0);
    }
}

#[test]
fn connection_events_that_found_no_room_are_noticed_and_reading_is_bounded() {
    if !may_run("connection overruns") {
        return;
    }
    let node = Host::new();
    node.sh(r#"nft 'table inet t { chain output { type filter hook output priority 0; ct state invalid drop; }; }'"#);
    let mut connections = node.enter(|| Connections::open_with_room(1)).unwrap();
    let entries: Vec<_> =
        (1..=2000).map(|port| lab::conntrack::plain(Protocol::TCP, ip("10.0.0.1"), port, ip("10.0.0.2"), 80)).collect();
    node.enter(|| lab::conntrack::inject(&entries));
    let mut found = Vec::new();
    assert!(connections.read(1, &mut found).unwrap());
    assert!(found.len() <= 1);
    while connections.read(64, &mut found).unwrap() {}
    assert!(!found.is_empty() && found.len() < entries.len(), "{} of {}", found.len(), entries.len());
    assert!(connections.overruns() > 0);
    // What comes after that is heard.
    found.clear();
    let after = lab::conntrack::plain(Protocol::UDP, ip("fd00::1"), 5, ip("fd00::2"), 53);
    node.enter(|| lab::conntrack::inject(&[after]));
    let found = events_until(&mut connections, |events| !events.is_empty());
    assert_eq!(found[0].flow.original, after.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// From the message to headers and the rule: attributes that fit around bytes that need not.
    #[test]
    fn made_up_packets_do_no_harm(
        attributes in proptest::collection::vec((1u16..16, proptest::collection::vec(any::<u8>(), 0..90)), 0..6),
        version in prop::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60, 0x00]),
        rest in proptest::collection::vec(prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 58, 60, 255]), 0..700),
        prefix in "(would )?(deny: )?(tier |default of )?[a-z:]{0,9}(#[0-9]{1,12})? (allow|deny|x)?.{0,9}",
    ) {
        let mut payload = vec![2, 0, 0, 5];
        let mut put = |kind: u16, value: &[u8]| {
            payload.extend((value.len() as u16 + 4).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        };
        put(1, &[8, 0, 1, 0]);
        put(9, &[&[version][..], &rest].concat());
        put(10, prefix.as_bytes());
        for (kind, value) in &attributes {
            put(*kind, value);
        }
        let message = Message { kind: 4 << 8, flags: 0, sequence: 0, port: 0, payload: &payload };
        if let Ok(Some(found)) = logged_packet(&message) {
            prop_assert!(found.payload.len() <= LONGEST_PAYLOAD);
            let _ = logged(&found.prefix);
            for headers in [packet(&found.payload), beginning(&found.payload, 65_535)].into_iter().flatten() {
                prop_assert!(headers.ports().is_none() || headers.icmp().is_none());
            }
        } else {
            prop_assert!(!attributes.is_empty(), "it is a packet without them");
        }
    }
}
