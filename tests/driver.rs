//! The driver against the real kernel, in network namespaces of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nodewall::driver::{Error, Kernel, Memory, Netlink, Read, apply};
use nodewall::net::addr::Family;
use nodewall::net::protocol::Protocol;
use nodewall::nft::change::{Batch, Change};
use nodewall::nft::ir::*;
use nodewall::nft::key::{DataType, Datum, Key, Side};
use nodewall::nft::netlink::canonical;

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
    Elements::Keys(BTreeMap::from(elements))
}

fn input(rules: Vec<Rule>) -> Chain {
    let base = BaseChain { hook: Hook::Input, priority: 0, policy: ChainPolicy::Drop };
    Chain { base: Some(base), rules }
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
        rule("", [prefix(Key::InterfaceName(Side::Source), name("cali"), 4), DROP]),
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
                Statement::Limit { rate: 10, burst: 20 },
                Statement::Log { prefix: "nodewall drop: ".to_owned(), group: 5 },
            ],
        ),
        rule("", [is(Key::L4Proto, 6u8), Statement::Reject(Reject::TcpReset)]),
        rule("", [Statement::Reject(Reject::AdminProhibited)]),
    ];
    let set = |key: &[DataType], interval, map, elements| Set { key: key.to_vec(), interval, map, elements };
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
                Elements::V4(
                    [(1, 1), (u32::MAX, u32::MAX), (0, 0)]
                        .into_iter()
                        .filter(|_| true)
                        .collect::<nodewall::net::range::RangeSet<u32>>()
                        .difference(&nodewall::net::range::RangeSet::single(0)),
                ),
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
    Ruleset {
        sets: sets.into_iter().map(|(name, set)| (name.to_owned(), set)).collect(),
        chains: BTreeMap::from([
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
        let applied = match apply(&mut kernel, &desired, None) {
            Ok(applied) => applied,
            Err(error) => {
                panic!("{error}\n{}\n{:#?}", list(), kernel.load(&Read::Everything))
            }
        };
        assert_eq!(applied.loaded.ruleset, canonical(&desired));
        assert_eq!(kernel.load(&Read::Everything).unwrap().ruleset, desired);
        println!("{}", list());
    });
}
