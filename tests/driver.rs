//! The driver against the real kernel, in network namespaces of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nodewall::driver::{Error, Kernel, Memory, Netlink, Read, apply, coexisting};
use nodewall::net::addr::Family;
use nodewall::net::protocol::Protocol;
use nodewall::net::shared::Shared;
use nodewall::nft::change::{Batch, Change};
use nodewall::nft::ir::*;
use nodewall::nft::key::{DataType, Datum, Key, Side};
use nodewall::nft::netlink::canonical;
use nodewall::plan::{boot_batch, plan};

/// Runs `body` on a thread in a network namespace of its own; processes that it starts are in it too.
fn in_namespace(body: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "the kernel tests need root");
        println!("skipped: the kernel tests need root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        body();
    });
    if let Err(cause) = thread.join() {
        std::panic::resume_unwind(cause);
    }
}

/// What a command prints; it must succeed.
fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn list() -> String {
    run(&["nft", "list", "table", "inet", "nodewall"])
}

fn is(key: Key, value: impl Into<Datum>) -> Statement {
    Statement::Match { key, negated: false, value: Value::Is(value.into()) }
}

fn rule<const N: usize>(comment: &str, statements: [Statement; N]) -> Rule {
    Rule { statements: statements.into(), comment: (!comment.is_empty()).then(|| comment.to_owned()) }
}

const TCP: Option<Protocol> = Some(Protocol::TCP);
const ACCEPT: Statement = Statement::Verdict(Verdict::Accept);
const DROP: Statement = Statement::Verdict(Verdict::Drop);

fn v4(text: &str) -> u32 {
    text.parse::<std::net::Ipv4Addr>().unwrap().to_bits()
}

fn v6(text: &str) -> u128 {
    text.parse::<std::net::Ipv6Addr>().unwrap().to_bits()
}

fn keys<const N: usize>(elements: [(ElementKey, Option<Verdict>); N]) -> Elements {
    Elements::Keys(elements.into())
}

fn input(rules: Vec<Rule>) -> Chain {
    let base = BaseChain { hook: Hook::Input, priority: 0, policy: ChainPolicy::Drop, device: None };
    Chain { base: Some(base), rules }
}

fn range(key: Key, start: u32, end: u32) -> Statement {
    Statement::Match { key, negated: false, value: Value::Range(start.into(), end.into()) }
}

fn any_of(key: Key, bits: u32) -> Statement {
    Statement::Match { key, negated: false, value: Value::Flags(bits) }
}

fn found(keys: &[Key], set: &str) -> Statement {
    Statement::Lookup { keys: keys.to_vec(), negated: false, set: SetRef::Named(set.to_owned()) }
}

fn meter(keys: &[Key], set: &str) -> Statement {
    Statement::Meter { keys: keys.to_vec(), set: set.to_owned(), limit: Limit { rate: 5, seconds: 60, burst: 3 } }
}

fn dynamic(key: &[DataType], timeout: u32, size: u32) -> Set {
    let elements = match key {
        [DataType::Ipv4Addr] => Elements::V4(Default::default()),
        _ => keys([]),
    };
    Set { key: key.to_vec(), interval: false, map: false, dynamic: Some(Dynamic { timeout, size }), elements }
}

/// A chain at the ingress of a device.
fn early(device: &str) -> Chain {
    let device = Some(Datum::name(device));
    let base = BaseChain { hook: Hook::Ingress, priority: -500, policy: ChainPolicy::Accept, device };
    let drop = rule("e#1", [is(Key::IpAddr(Family::V4, Side::Source), v4("192.0.2.1")), DROP]);
    Chain { base: Some(base), rules: vec![drop] }
}

/// A ruleset with everything that the IR has.
fn everything() -> Ruleset {
    let prefix = |key, datum: Datum, bits| Statement::Match { key, negated: false, value: Value::Prefix(datum, bits) };
    let source4 = Key::IpAddr(Family::V4, Side::Source);
    let source6 = Key::IpAddr(Family::V6, Side::Source);
    let port = Key::Port(TCP, Side::Destination);
    let name = |text: &str| Datum::name(text);
    let single = |value: Datum| ElementKey::of([value]);
    let named = |name: &str| SetRef::Named(name.to_owned());
    let jump = || Verdict::Jump("services".to_owned());
    let rules = vec![
        rule("kubelet#1 20-kubelet.toml:14", [is(port, 22u16), ACCEPT]),
        rule("", [prefix(source4, v4("10.0.0.0").into(), 8), ACCEPT]),
        rule("", [prefix(source4, v4("10.128.0.0").into(), 9), Statement::Counter, DROP]),
        rule("", [prefix(source6, v6("fe80::").into(), 10), is(Key::HopLimit, 255u8), ACCEPT]),
        rule("", [is(Key::IcmpType, 8u8), ACCEPT]),
        rule("", [is(Key::Icmpv6Type, 135u8), is(Key::Icmpv6Code, 0u8), ACCEPT]),
        rule(
            "",
            [Statement::Vmap {
                keys: vec![Key::CtState],
                map: SetRef::Anonymous(keys([
                    (single(ct_state::ESTABLISHED.into()), Some(Verdict::Accept)),
                    (single(ct_state::RELATED.into()), Some(jump())),
                    (single(ct_state::INVALID.into()), Some(Verdict::Drop)),
                ])),
            }],
        ),
        rule(
            "",
            [
                Statement::Match {
                    key: Key::CtState,
                    negated: false,
                    value: Value::Flags(ct_state::ESTABLISHED | ct_state::RELATED),
                },
                ACCEPT,
            ],
        ),
        rule(
            "",
            [Statement::Vmap {
                keys: vec![Key::L4Proto, Key::Port(None, Side::Destination)],
                map: named("services_by_port"),
            }],
        ),
        rule("", [Statement::Vmap { keys: vec![Key::InterfaceName(Side::Source)], map: named("interfaces") }]),
        rule("", [prefix(Key::InterfaceName(Side::Source), name("cali"), 32), DROP]),
        rule("", [is(Key::InterfaceName(Side::Source), name("eth0")), ACCEPT]),
        rule("", [is(Key::InterfaceKind(Side::Source), name("veth")), ACCEPT]),
        rule("", [is(Key::InterfaceType(Side::Source), 772u16), ACCEPT]),
        rule("", [Statement::Lookup { keys: vec![source4], negated: false, set: named("pool4") }, ACCEPT]),
        rule("", [Statement::Lookup { keys: vec![source6], negated: true, set: named("pool6") }, DROP]),
        rule("", [Statement::Lookup { keys: vec![source4, port], negated: false, set: named("pairs") }, ACCEPT]),
        rule(
            "",
            [
                Statement::Lookup {
                    keys: vec![port],
                    negated: false,
                    set: SetRef::Anonymous(keys([
                        (single(22u16.into()), None),
                        (ElementKey(vec![(80u16.into(), 90u16.into())]), None),
                        (ElementKey(vec![(60000u16.into(), u16::MAX.into())]), None),
                    ])),
                },
                ACCEPT,
            ],
        ),
        rule(
            "",
            [
                Statement::Match { key: port, negated: false, value: Value::Range(1u16.into(), 1024u16.into()) },
                Statement::Match {
                    key: source4,
                    negated: true,
                    value: Value::Range(v4("10.0.0.1").into(), v4("10.0.0.5").into()),
                },
                ACCEPT,
            ],
        ),
        rule(
            "",
            [
                Statement::Limit(Limit { rate: 10, seconds: 60, burst: 20 }),
                Statement::Log { prefix: "nodewall drop: ".to_owned(), group: 5 },
            ],
        ),
        rule("", [is(Key::SocketUser, 0u32), ACCEPT]),
        rule("", [range(Key::SocketUser, 1000, 2000), ACCEPT]),
        rule("", [range(Key::SocketGroup, 255, 256), DROP]),
        rule("", [any_of(Key::Mark, 0x30), ACCEPT]),
        rule("", [is(Key::Mark, 0x10u32), DROP]),
        rule("", [range(Key::Mark, 1, 0x1_0000), DROP]),
        rule("", [Statement::MarkSet(0x10)]),
        rule("", [Statement::MarkClear(0x8000_0001), ACCEPT]),
        rule("", [Statement::Notrack]),
        rule("", [is(Key::SocketCgroup(2), 4711u64), DROP]),
        rule("", [found(&[Key::SocketUser], "users"), ACCEPT]),
        rule("", [found(&[Key::SocketGroup], "groups"), ACCEPT]),
        rule("", [found(&[Key::SocketUser, port], "users_ports"), ACCEPT]),
        rule("", [found(&[Key::SocketGroup, port], "groups_ports"), ACCEPT]),
        rule("", [found(&[Key::SocketCgroup(3)], "units"), ACCEPT]),
        rule("", [found(&[Key::SocketCgroup(1), port], "units_ports"), ACCEPT]),
        rule(
            "",
            [Statement::Lookup {
                keys: vec![Key::SocketUser],
                negated: true,
                set: SetRef::Anonymous(keys([
                    (single(7u32.into()), None),
                    (ElementKey(vec![(256u32.into(), 65_535u32.into())]), None),
                ])),
            }],
        ),
        rule("", [Statement::Limit(Limit { rate: 3, seconds: 86_400, burst: 5 }), DROP]),
        rule("", [meter(&[source4], "clients"), ACCEPT]),
        rule("", [is(Key::L4Proto, 6u8), Statement::Counter, meter(&[source6, port], "clients6"), ACCEPT]),
        rule("", [is(Key::L4Proto, 6u8), Statement::Reject(Reject::TcpReset)]),
        rule("", [Statement::Reject(Reject::AdminProhibited)]),
    ];
    let set =
        |key: &[DataType], interval, map, elements| Set { key: key.to_vec(), interval, map, dynamic: None, elements };
    let sets = [
        (
            "pool4",
            set(
                &[DataType::Ipv4Addr],
                true,
                false,
                Elements::V4(
                    [(0, 5), (v4("10.0.0.0"), v4("10.255.255.255")), (v4("255.0.0.0"), u32::MAX)].into_iter().collect(),
                ),
            ),
        ),
        (
            "pool6",
            set(
                &[DataType::Ipv6Addr],
                true,
                false,
                Elements::V6([(0, 0), (v6("fd00::"), v6("fd00::ffff")), (u128::MAX, u128::MAX)].into_iter().collect()),
            ),
        ),
        (
            "hosts4",
            set(
                &[DataType::Ipv4Addr],
                false,
                false,
                Elements::V4([(1, 1), (u32::MAX, u32::MAX)].into_iter().collect()),
            ),
        ),
        ("all4", set(&[DataType::Ipv4Addr], true, false, Elements::V4(nodewall::net::range::RangeSet::full()))),
        ("empty", set(&[DataType::Ipv6Addr], true, false, Elements::V6(Default::default()))),
        (
            "pairs",
            set(
                &[DataType::Ipv4Addr, DataType::InetService],
                true,
                false,
                keys([
                    (
                        ElementKey(vec![
                            (v4("10.0.0.0").into(), v4("10.0.0.255").into()),
                            (80u16.into(), 90u16.into()),
                        ]),
                        None,
                    ),
                    (ElementKey::of([v4("1.2.3.4").into(), 22u16.into()]), None),
                ]),
            ),
        ),
        (
            "services_by_port",
            set(
                &[DataType::InetProto, DataType::InetService],
                false,
                true,
                keys([
                    (ElementKey::of([6u8.into(), 22u16.into()]), Some(Verdict::Accept)),
                    (ElementKey::of([17u8.into(), 53u16.into()]), Some(jump())),
                ]),
            ),
        ),
        (
            "interfaces",
            set(
                &[DataType::Ifname],
                true,
                true,
                keys([
                    (single(name("eth0")), Some(Verdict::Accept)),
                    (
                        ElementKey(vec![(
                            name("lxc"),
                            Datum::new(b"lxc\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
                        )]),
                        Some(jump()),
                    ),
                ]),
            ),
        ),
    ];
    let span = |start: u32, end: u32| (Datum::from(start), Datum::from(end));
    let local = [
        (
            "users",
            set(
                &[DataType::Uid],
                true,
                false,
                keys([(single(0u32.into()), None), (ElementKey(vec![span(255, 256)]), None)]),
            ),
        ),
        ("groups", set(&[DataType::Gid], false, false, keys([(single(0x0102_0304u32.into()), None)]))),
        (
            "users_ports",
            set(
                &[DataType::Uid, DataType::InetService],
                true,
                false,
                keys([
                    (ElementKey(vec![span(1000, 1255), (22u16.into(), 22u16.into())]), None),
                    (ElementKey(vec![span(5, 5), (80u16.into(), 90u16.into())]), None),
                ]),
            ),
        ),
        (
            "groups_ports",
            set(
                &[DataType::Gid, DataType::InetService],
                false,
                false,
                keys([(ElementKey::of([1000u32.into(), 22u16.into()]), None)]),
            ),
        ),
        (
            "units",
            set(&[DataType::Cgroup], false, false, keys([(single(4711u64.into()), None), (single(1u64.into()), None)])),
        ),
        (
            "units_ports",
            set(
                &[DataType::Cgroup, DataType::InetService],
                true,
                false,
                keys([(
                    ElementKey(vec![(0x1_0000_0002u64.into(), 0x1_0000_0002u64.into()), (1u16.into(), 9u16.into())]),
                    None,
                )]),
            ),
        ),
        ("clients", dynamic(&[DataType::Ipv4Addr], 60, 65_536)),
        ("clients6", dynamic(&[DataType::Ipv6Addr, DataType::InetService], 3600, 10)),
    ];
    Ruleset {
        sets: sets.into_iter().chain(local).map(|(name, set)| (name.to_owned(), set)).collect(),
        chains: Shared::from([
            ("early".to_owned(), early("lo")),
            ("input".to_owned(), input(rules)),
            (
                "services".to_owned(),
                Chain { base: None, rules: vec![rule("s#1 x.toml:1", [is(port, 443u16), ACCEPT])] },
            ),
        ]),
    }
}

#[test]
fn the_kernel_gives_back_what_it_was_given_and_nft_prints_it_the_natural_way() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let desired = everything();
        let applied = apply(&mut kernel, &desired, None).unwrap();
        assert_eq!(applied.loaded.ruleset, desired);
        assert_eq!(canonical(&desired), desired);
        let printed = list();
        for line in [
            "tcp dport 22 accept comment \"kubelet#1 20-kubelet.toml:14\"",
            "ip saddr 10.0.0.0/8 accept",
            "ip saddr 10.128.0.0/9 counter packets 0 bytes 0 drop",
            "ip6 saddr fe80::/10 ip6 hoplimit 255 accept",
            "icmp type echo-request accept",
            "icmpv6 type nd-neighbor-solicit icmpv6 code no-route accept",
            "ct state vmap { invalid : drop, established : accept, related : jump services }",
            "ct state established,related accept",
            "meta l4proto . th dport vmap @services_by_port",
            "iifname vmap @interfaces",
            "iifname \"cali*\" drop",
            "iifname \"eth0\" accept",
            "meta iifkind \"veth\" accept",
            "meta iiftype loopback accept",
            "ip saddr @pool4 accept",
            "ip6 saddr != @pool6 drop",
            "ip saddr . tcp dport @pairs accept",
            "tcp dport { 22, 80-90, 60000-65535 } accept",
            "tcp dport 1-1024 ip saddr != 10.0.0.1-10.0.0.5 accept",
            "limit rate 10/minute burst 20 packets log prefix \"nodewall drop: \" group 5",
            "meta l4proto tcp reject with tcp reset",
            "reject with icmpx admin-prohibited",
            "elements = { 0.0.0.0/0 }",
            "\"lxc*\" : jump services",
            "type filter hook ingress device \"lo\" priority -500; policy accept;",
            "ip saddr 192.0.2.1 drop comment \"e#1\"",
            "meta skuid 0 accept",
            "meta skuid 1000-2000 accept",
            "meta skgid 255-256 drop",
            "meta mark & 0x00000030 != 0x00000000 accept",
            "meta mark 0x00000010 drop",
            "meta mark 0x00000001-0x00010000 drop",
            "meta mark set meta mark | 0x00000010",
            "meta mark set meta mark & 0x7ffffffe accept",
            "notrack",
            "socket cgroupv2 level 2 4711 drop",
            "meta skuid @users accept",
            "elements = { 0, 255-256 }",
            "elements = { 16909060 }",
            "meta skuid . tcp dport @users_ports accept",
            "1000-1255 . 22",
            "5 . 80-90",
            "elements = { 1000 . 22 }",
            "socket cgroupv2 level 3 @units accept",
            "socket cgroupv2 level 1 . tcp dport @units_ports accept",
            "elements = { 4294967298 . 1-9 }",
            "meta skuid != { 7, 256-65535 }",
            "limit rate 3/day drop",
            "size 65536\n\t\tflags dynamic,timeout\n\t\ttimeout 1m\n",
            "update @clients { ip saddr limit rate 5/minute burst 3 packets } accept",
            "counter packets 0 bytes 0 update @clients6 { ip6 saddr . tcp dport limit rate 5/minute burst 3 packets } accept",
        ] {
            assert!(printed.contains(line), "{line} is not in\n{printed}");
        }
    });
}

/// A ruleset of one base chain that looks its sources up in one set.
fn pool(interval: bool, ranges: impl IntoIterator<Item = (u32, u32)>) -> Ruleset {
    let elements = Elements::V4(ranges.into_iter().collect());
    let lookup = Statement::Lookup {
        keys: vec![Key::IpAddr(Family::V4, Side::Source)],
        negated: false,
        set: SetRef::Named("pool".to_owned()),
    };
    Ruleset {
        sets: BTreeMap::from([(
            "pool".to_owned(),
            Set { key: vec![DataType::Ipv4Addr], interval, map: false, dynamic: None, elements },
        )]),
        chains: Shared::from([(
            "input".to_owned(),
            input(vec![
                rule("first", [is(Key::Port(TCP, Side::Destination), 22u16), Statement::Counter, ACCEPT]),
                rule("second", [lookup, DROP]),
            ]),
        )]),
    }
}

#[test]
fn large_sets_come_and_go() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let spread = |count: u32| (0..count).map(|index| (index * 16, index * 16 + 7));
        let mut known = None;
        for count in [0, 65_536, 0, 100_000, 99_999, 1] {
            let applied = apply(&mut kernel, &pool(true, spread(count)), known.as_ref()).unwrap();
            assert_eq!(applied.loaded.ruleset.sets["pool"].elements.len(), count as usize);
            known = Some(applied.loaded);
        }
        // The whole space, its ends, what overlaps and what touches: one range each.
        for ranges in [
            vec![(0, u32::MAX)],
            vec![(0, 0), (u32::MAX, u32::MAX)],
            vec![(1, u32::MAX)],
            vec![(0, u32::MAX - 1)],
            vec![(5, 9), (7, 20), (21, 30), (5, 9)],
            vec![(5, 31)],
            // Split, grown at either end, and joined again.
            vec![(5, 10), (12, 31)],
            vec![(5, 11), (13, 31)],
            vec![(4, 31)],
            vec![],
        ] {
            let applied = apply(&mut kernel, &pool(true, ranges), known.as_ref()).unwrap();
            known = Some(applied.loaded);
        }
        assert_eq!(kernel.load(&Read::Everything).unwrap(), known.unwrap());
    });
}

#[test]
fn a_set_of_hosts_becomes_one_of_ranges_and_back() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        apply(&mut kernel, &pool(false, [(1, 1), (9, 9)]), None).unwrap();
        let before = kernel.load(&Read::Everything).unwrap();
        apply(&mut kernel, &pool(true, [(1, 1), (9, 90)]), None).unwrap();
        let after = kernel.load(&Read::Everything).unwrap();
        // The rule that does not use the set is the same one as before; the other had to come anew.
        assert_eq!(before.rules["input"][0].handle, after.rules["input"][0].handle);
        assert_ne!(before.rules["input"][1].handle, after.rules["input"][1].handle);
        apply(&mut kernel, &pool(false, [(1, 1)]), None).unwrap();
    });
}

#[test]
fn unchanged_rules_keep_their_handles() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let rules = |ports: &[u16]| {
            let rules = ports.iter().map(|port| {
                rule(&format!("p#{port}"), [is(Key::Port(TCP, Side::Destination), *port), Statement::Counter, ACCEPT])
            });
            Ruleset { chains: Shared::from([("input".to_owned(), input(rules.collect()))]), ..Ruleset::default() }
        };
        let first = apply(&mut kernel, &rules(&[1, 2, 3, 4, 5]), None).unwrap().loaded;
        let second = apply(&mut kernel, &rules(&[9, 1, 3, 8, 4, 7]), None).unwrap();
        let handle = |index: usize| first.rules["input"][index].handle;
        let kept: Vec<u64> = second.loaded.rules["input"].iter().map(|rule| rule.handle).collect();
        assert_eq!([kept[1], kept[2], kept[4]], [handle(0), handle(2), handle(3)]);
        // Rules 2 and 5 went, rules 9, 8 and 7 came.
        assert_eq!(second.changes, 5);
    });
}

#[test]
fn a_refused_batch_changes_nothing_and_names_its_rule() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        apply(&mut kernel, &pool(true, [(1, 5)]), None).unwrap();
        let before = kernel.load(&Read::Everything).unwrap();
        let mut broken = pool(true, [(1, 6)]);
        let chain = broken.chains.get_mut("input").unwrap();
        chain.rules.push(rule("ssh#2 10-ssh.toml:7", [Statement::Verdict(Verdict::Jump("nowhere".to_owned()))]));
        let error = apply(&mut kernel, &broken, None).unwrap_err();
        let Error::Refused { subject, errno } = &error else { panic!("{error}") };
        assert!(subject.starts_with("rule ssh#2 10-ssh.toml:7 in chain input"), "{subject}");
        assert_eq!(*errno, nix::errno::Errno::ENOENT);
        assert_eq!(kernel.load(&Read::Everything).unwrap(), before);
        // A statement that we only ever read must not be left out of a rule that is sent.
        let foreign = rule("", [Statement::Foreign("nat".to_owned()), ACCEPT]);
        let change = Change::AddRule {
            chain: "input".to_owned(),
            rule: foreign,
            before: None,
            interval_sets: Default::default(),
        };
        assert!(kernel.commit(&Batch { generation: None, changes: vec![change] }).is_err());
        assert_eq!(kernel.load(&Read::Everything).unwrap(), before);
    });
}

#[test]
fn a_stale_plan_is_refused_and_made_again() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let applied = apply(&mut kernel, &pool(true, [(1, 5)]), None).unwrap();
        run(&["nft", "add", "table", "ip", "other"]);
        let batch = Batch {
            generation: Some(applied.loaded.generation),
            changes: vec![Change::FlushChain { name: "input".to_owned() }],
        };
        assert!(matches!(kernel.commit(&batch), Err(Error::Contended)));
        let again = apply(&mut kernel, &pool(true, [(1, 6)]), Some(&applied.loaded)).unwrap();
        assert_eq!(again.changes, 2);
    });
}

#[test]
fn what_others_do_to_our_table_is_seen_and_undone_and_their_tables_stay() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let other = "table ip other {
            set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
            chain nodewall { type filter hook input priority 100; ip saddr @s drop; }
        }
        table inet nodewall2 { chain input { type filter hook input priority 5; counter; }; }";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), other.replace(";}", "}").replace("; }", "\n}")).unwrap();
        run(&["nft", "-f", file.path().to_str().unwrap()]);
        let theirs =
            || run(&["nft", "list", "table", "ip", "other"]) + &run(&["nft", "list", "table", "inet", "nodewall2"]);
        let before = theirs();
        let desired = everything();
        apply(&mut kernel, &desired, None).unwrap();
        for deed in [
            "add rule inet nodewall input meta mark set 1 counter",
            "insert rule inet nodewall services tcp dport 1-5 ip saddr { 1.2.3.4, 1.2.3.6-1.2.3.9 } quota 5 mbytes accept",
            "add set inet nodewall marks { type mark; elements = { 1, 2 }; }",
            "add set inet nodewall slow { type ipv4_addr; flags timeout; elements = { 1.2.3.4 timeout 1h }; }",
            "add counter inet nodewall c",
            "add chain inet nodewall nat { type nat hook prerouting priority -100; }",
            "add element inet nodewall pool4 { 11.0.0.0/8 }",
            "delete element inet nodewall interfaces { eth0 }",
            "flush chain inet nodewall input",
            "add map inet nodewall marks { type ipv4_addr : mark; }",
            "delete table inet nodewall",
            "add table inet nodewall { flags dormant; }",
        ] {
            run(&["nft", deed]);
            let loaded = kernel.load(&Read::Everything).unwrap();
            assert!(loaded.ruleset != desired || !loaded.foreign.is_empty(), "{deed}");
            let applied = apply(&mut kernel, &desired, None).unwrap_or_else(|error| panic!("{deed}: {error}"));
            assert!(applied.changes > 0, "{deed}");
            assert_eq!(applied.loaded.ruleset, desired, "{deed}");
            assert_eq!(theirs(), before, "{deed}");
        }
    });
}

#[test]
fn a_flush_by_another_is_repaired_and_our_removal_is_only_ours() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let desired = everything();
        apply(&mut kernel, &desired, None).unwrap();
        run(&["nft", "flush", "ruleset"]);
        assert!(!kernel.load(&Read::Everything).unwrap().exists);
        run(&["nft", "add", "table", "inet", "other"]);
        assert_eq!(apply(&mut kernel, &desired, None).unwrap().loaded.ruleset, desired);
        kernel.commit(&Batch { generation: None, changes: vec![Change::DeleteTable] }).unwrap();
        assert_eq!(run(&["nft", "list", "ruleset"]), "table inet other {\n}\n");
    });
}

#[test]
fn single_elements_are_found_exactly() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let mut memory = Memory::default();
        let shape = |ranges: &[(u32, u32)]| pool(true, ranges.iter().copied()).sets["pool"].clone();
        let desired = pool(true, [(10, 20), (30, 30), (40, 49), (51, 60)]);
        for kernel in [&mut kernel as &mut dyn Kernel, &mut memory] {
            apply(kernel, &desired, None).unwrap();
            for (range, there) in [
                ((10, 20), true),
                ((30, 30), true),
                ((40, 49), true),
                ((10, 19), false),
                ((11, 20), false),
                ((12, 15), false),
                ((9, 20), false),
                ((10, 21), false),
                ((1, 2), false),
                ((70, 80), false),
            ] {
                assert_eq!(kernel.has_element("pool", &shape(&[range])).unwrap(), there, "{range:?}");
            }
        }
    });
}

#[test]
fn a_foreign_ruleset_of_thousands_is_left_aside() {
    in_namespace(|| {
        let mut text = String::from("table ip kube-proxy {\n");
        for chain in 0..500 {
            text += &format!("chain c{chain} {{\n");
            for port in 0..5 {
                text += &format!("tcp dport {port} counter accept\n");
            }
            text += "}\n";
        }
        text += "}\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        run(&["nft", "-f", file.path().to_str().unwrap()]);
        let mut kernel = Netlink::open().unwrap();
        let applied = apply(&mut kernel, &everything(), None).unwrap();
        assert_eq!(applied.loaded.ruleset, everything());
        assert_eq!(applied.loaded.rules.len(), everything().chains.len());
    });
}

/// Rules that nft wrote are read in the same words as our own.
#[test]
fn what_nft_wrote_is_read_as_our_own() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let mut desired = everything();
        // nft looks at neighbouring fields of a header at once ("icmpv6 type 135 icmpv6 code 0" is one comparison of two
        // bytes), which we never write: such a rule is foreign to us and is replaced by our own.
        desired.chains.get_mut("input").unwrap().rules.remove(5);
        // Of control groups nft reads only the paths of those that are there.
        let of_group = is(Key::SocketCgroup(2), 4711u64);
        desired.chains.get_mut("input").unwrap().rules.retain(|rule| !rule.statements.contains(&of_group));
        for set in desired.sets.values_mut().filter(|set| set.key.contains(&DataType::Cgroup)) {
            set.elements = keys([]);
        }
        apply(&mut kernel, &desired, None).unwrap();
        let text = list();
        run(&["nft", "delete", "table", "inet", "nodewall"]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run(&["nft", "-f", file.path().to_str().unwrap()]);
        let loaded = kernel.load(&Read::Everything).unwrap();
        assert_eq!(loaded.foreign, Vec::<String>::new());
        let rules = |ruleset: &Ruleset, chain: &str| ruleset.chains[chain].rules.clone();
        for (index, (there, here)) in
            rules(&loaded.ruleset, "input").into_iter().zip(rules(&desired, "input")).enumerate()
        {
            assert_eq!(there, here, "rule {index}");
        }
        assert_eq!(loaded.ruleset, desired);
    });
}

/// One bucket for each client of a port, and another rule beside it.
fn metered(size: u32, rules: &[&str]) -> Ruleset {
    let rules = rules.iter().map(|comment| match *comment {
        "meter" => rule("meter", [meter(&[Key::IpAddr(Family::V4, Side::Source)], "clients"), ACCEPT]),
        other => rule(other, [is(Key::Port(TCP, Side::Destination), 22u16), Statement::Counter, DROP]),
    });
    Ruleset {
        sets: BTreeMap::from([("clients".to_owned(), dynamic(&[DataType::Ipv4Addr], 3600, size))]),
        chains: Shared::from([("input".to_owned(), input(rules.collect()))]),
    }
}

#[test]
fn a_dynamic_set_keeps_what_rules_put_into_it() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        apply(&mut kernel, &metered(100, &["meter"]), None).unwrap();
        run(&["nft", "add element inet nodewall clients { 192.0.2.1, 192.0.2.2 timeout 5h }"]);
        let there = || list().matches("192.0.2.").count();
        assert_eq!(there(), 2);
        // It is read as empty, is no drift, and rules around it come and go.
        let loaded = kernel.load(&Read::Everything).unwrap();
        assert_eq!(loaded.ruleset, metered(100, &["meter"]));
        assert_eq!((loaded.unread.len(), loaded.foreign.len()), (0, 0));
        assert!(kernel.load(&Read::Only(Vec::new())).unwrap().unread.is_empty());
        assert_eq!(apply(&mut kernel, &metered(100, &["meter"]), None).unwrap().changes, 0);
        for rules in [&["before", "meter"][..], &["before"], &[], &["meter", "after"]] {
            apply(&mut kernel, &metered(100, rules), None).unwrap();
            assert_eq!(there(), 2, "{rules:?}");
        }
        // Another size takes another set.
        apply(&mut kernel, &metered(50, &["meter", "after"]), None).unwrap();
        assert_eq!(there(), 0);
        assert!(list().contains("size 50"));
    });
}

fn on_device(device: &str) -> Ruleset {
    let chains = [("input".to_owned(), input(vec![])), (format!("early_{device}"), early(device))];
    Ruleset { chains: chains.into(), ..Ruleset::default() }
}

#[test]
fn a_chain_goes_with_its_device_to_another() {
    in_namespace(|| {
        run(&["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]);
        let mut kernel = Netlink::open().unwrap();
        let mut desired = on_device("one");
        apply(&mut kernel, &desired, None).unwrap();
        assert!(list().contains("hook ingress device \"one\" priority -500; policy accept;"));
        // Its policy is changed in place, its device is not.
        let base = |ruleset: &mut Ruleset, change: &dyn Fn(&mut BaseChain)| {
            change(ruleset.chains.get_mut("early_one").unwrap().base.as_mut().unwrap());
        };
        base(&mut desired, &|base| base.policy = ChainPolicy::Drop);
        assert_eq!(apply(&mut kernel, &desired, None).unwrap().changes, 1);
        base(&mut desired, &|base| base.device = Some(Datum::name("two")));
        let batch = plan(&kernel.load(&Read::Everything).unwrap(), &desired).unwrap();
        assert!(batch.changes.contains(&Change::DeleteChain { name: "early_one".to_owned() }), "{:?}", batch.changes);
        apply(&mut kernel, &desired, None).unwrap();
        assert!(list().contains("device \"two\"") && !list().contains("device \"one\""), "{}", list());
        // Whether the kernel keeps a chain without its device or not, the rest is as it was and can be changed.
        run(&["ip", "link", "delete", "one"]);
        let applied = apply(&mut kernel, &desired, None).unwrap();
        let kept = applied.loaded.ruleset.chains.contains_key("early_one");
        assert_eq!(applied.without, if kept { vec![] } else { vec!["early_one".to_owned()] });
        apply(&mut kernel, &on_device("one"), None).unwrap();
    });
}

/// Linux before 6.16.
#[test]
fn a_device_that_is_not_there_costs_only_its_own_chain() {
    let mut kernel = Memory::default();
    kernel.set_devices(["eth0"]);
    let mut desired = everything();
    desired.chains.insert("early".to_owned(), early("eth0"));
    desired.chains.insert("early_ib0".to_owned(), early("ib0"));
    desired.chains.insert("early_ib1".to_owned(), early("ib1"));
    let applied = apply(&mut kernel, &desired, None).unwrap();
    assert_eq!(applied.without, ["early_ib0", "early_ib1"]);
    let all = desired.clone();
    let in_force = |kernel: &mut Memory, missing: &[&str]| {
        let mut expected = all.clone();
        expected.chains.retain(|name, _| !missing.contains(&name.as_str()));
        assert_eq!(kernel.load(&Read::Everything).unwrap().ruleset, expected);
    };
    in_force(&mut kernel, &["early_ib0", "early_ib1"]);
    let again = apply(&mut kernel, &desired, Some(&applied.loaded)).unwrap();
    assert_eq!((again.changes, again.without), (0, applied.without));
    // One comes and another goes.
    kernel.set_devices(["ib1"]);
    let applied = apply(&mut kernel, &desired, None).unwrap();
    assert_eq!(applied.without, ["early", "early_ib0"]);
    in_force(&mut kernel, &["early", "early_ib0"]);
    kernel.set_devices(["eth0", "ib0", "ib1"]);
    let applied = apply(&mut kernel, &desired, None).unwrap();
    assert!(applied.without.is_empty());
    in_force(&mut kernel, &[]);
    // A device goes, and the kernel says nothing of it: what is known of before is not believed to the end.
    kernel.set_devices(["eth0", "ib1"]);
    desired.chains.remove("early_ib0");
    let applied = apply(&mut kernel, &desired, Some(&applied.loaded)).unwrap();
    assert_eq!((applied.loaded.ruleset, applied.without.len()), (desired, 0));
}

#[test]
fn a_stored_batch_has_no_chain_that_takes_a_device() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let desired = everything();
        kernel.commit_bytes(&boot_batch(&desired)).unwrap();
        let mut expected = desired.clone();
        assert!(expected.chains.remove("early").is_some());
        assert_eq!(kernel.load(&Read::Everything).unwrap().ruleset, expected);
        // What is missing comes with the first apply, and is all that comes.
        let applied = apply(&mut kernel, &desired, None).unwrap();
        assert_eq!((applied.changes, applied.loaded.ruleset), (2, desired));
    });
}

#[test]
fn other_chains_at_ingress_are_told_by_their_devices() {
    in_namespace(|| {
        run(&["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]);
        let mut kernel = Netlink::open().unwrap();
        apply(&mut kernel, &on_device("one"), None).unwrap();
        for table in ["netdev t", "inet t"] {
            run(&["nft", &format!("add table {table}")]);
            for (chain, devices) in
                [("same", "device one"), ("other", "device two"), ("both", "devices = { one, two }")]
            {
                let chain = format!(
                    "add chain {table} {chain} {{ type filter hook ingress {devices} priority 0; policy drop; }}"
                );
                run(&["nft", &chain]);
            }
        }
        let found = coexisting(&mut kernel).unwrap();
        let told: Vec<String> = found
            .iter()
            .filter(|chain| chain.after_ours)
            .map(|chain| format!("{} {} on {}", chain.family.name(), chain.name, chain.base.devices.join(" ")))
            .collect();
        assert_eq!(told, ["inet both on one two", "inet same on one", "netdev both on one two", "netdev same on one"]);
        assert_eq!(found.len(), 6);
        assert_eq!(apply(&mut kernel, &on_device("one"), None).unwrap().changes, 0);
    });
}

/// Everything near to our words and not one of them.
#[test]
fn what_we_never_write_is_foreign() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let desired = everything();
        apply(&mut kernel, &desired, None).unwrap();
        for words in [
            "meta mark set 0x10",
            "meta mark set meta mark ^ 0x10",
            "meta mark set meta mark & 0xf0 | 0x01",
            "meta mark set ct mark",
            "ct mark set meta mark",
            "meta mark & 0x30 == 0x10",
            "meta skuid & 0x1 != 0",
            "meta priority set 1:2",
            "meta nftrace set 1",
            "socket wildcard 1",
            "socket transparent 1",
            "limit rate over 5/second",
            "limit rate 5/week",
            "limit rate 5 kbytes/second",
            "add @clients { ip saddr limit rate 5/minute }",
            "update @clients { ip saddr timeout 5s limit rate 5/minute }",
            "update @clients { ip saddr limit rate over 5/minute }",
            "update @clients { ip saddr limit rate 5/minute counter }",
            "update @clients { ip saddr counter }",
            "update @clients { ip saddr }",
            "delete @clients { ip saddr }",
            "ip saddr & 0.0.0.255 == 0.0.0.1",
            "meta mark < 5",
        ] {
            run(&["nft", &format!("add rule inet nodewall services {words}")]);
            let loaded = kernel.load(&Read::Everything).unwrap();
            let last = loaded.ruleset.chains["services"].rules.last().unwrap();
            let foreign = last.statements.iter().any(|statement| matches!(statement, Statement::Foreign(_)));
            assert!(foreign, "{words}: {:?}", last.statements);
        }
        assert_eq!(apply(&mut kernel, &desired, None).unwrap().loaded.ruleset, desired);
        for words in [
            "set x { type ipv4_addr; flags dynamic; size 5; }",
            "set x { type ipv4_addr; flags timeout; }",
            "set x { type ipv4_addr; flags dynamic,timeout; size 5; }",
            "set x { type ipv4_addr; flags dynamic,timeout; timeout 1500ms; size 5; }",
            "set x { type ipv4_addr; flags dynamic,timeout; timeout 5s; gc-interval 3s; size 5; }",
            "set x { type ipv4_addr; flags dynamic,timeout; timeout 5s; size 5; counter; }",
            "set x { type ipv4_addr; size 5; }",
            "set x { type ipv4_addr; counter; }",
            "set x { type ipv4_addr; timeout 5s; }",
            "chain x { type filter hook ingress devices = { one, two } priority 0; }",
        ] {
            run(&["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]);
            run(&["nft", &format!("add {words}").replace(" x ", " inet nodewall x ")]);
            let loaded = kernel.load(&Read::Everything).unwrap();
            assert_eq!(loaded.foreign.len(), 1, "{words}: {:?}", loaded.foreign);
            assert_eq!(apply(&mut kernel, &desired, None).unwrap().loaded.ruleset, desired, "{words}");
            run(&["ip", "link", "delete", "one"]);
        }
    });
}
