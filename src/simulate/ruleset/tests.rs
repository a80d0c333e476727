//! The kernel's rules of evaluation by example.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::super::view::Device;
use super::*;
use crate::net::addr::Family;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::nft::ir::{BaseChain, Chain, Set, ct_state};
use crate::nft::key::{DataType, Side};

/// New TCP from 10.0.0.9:40000 to 10.0.0.1:22 on eth0.
fn view() -> View {
    View {
        input: Some(Device { name: "eth0".to_owned(), kind: Some("veth".to_owned()), hardware: 1 }),
        output: None,
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        translated: None,
        hop_limit: 64,
        protocol: Some(Protocol::TCP),
        words: Some((40_000, 22)),
        icmp: None,
        broken_off: Vec::new(),
        state: ct_state::NEW,
        mark: 0,
        socket: None,
    }
}

fn v6() -> View {
    View { source: "fd00::9".parse().unwrap(), destination: "fd00::1".parse().unwrap(), ..view() }
}

fn base(priority: i32, policy: ChainPolicy) -> Option<BaseChain> {
    Some(BaseChain { hook: Hook::Input, priority, policy, device: None })
}

fn verdict(verdict: Verdict) -> Statement {
    Statement::Verdict(verdict)
}

fn jump(chain: &str) -> Statement {
    verdict(Verdict::Jump(chain.to_owned()))
}

fn goto(chain: &str) -> Statement {
    verdict(Verdict::Goto(chain.to_owned()))
}

/// Counts under a name, then does the rest.
fn counting(comment: &str, rest: Vec<Statement>) -> Rule {
    let statements = std::iter::once(Statement::Counter).chain(rest).collect();
    Rule { statements, comment: Some(comment.to_owned()) }
}

fn ruleset(chains: Vec<(&str, Option<BaseChain>, Vec<Rule>)>) -> Ruleset {
    let chains = chains.into_iter().map(|(name, base, rules)| (name.to_owned(), Chain { base, rules })).collect();
    Ruleset { chains, sets: BTreeMap::new() }
}

fn ran(ruleset: &Ruleset) -> (End, String) {
    let run = run(ruleset, Hook::Input, &view()).unwrap();
    (run.end, run.counted.join(" "))
}

/// Whether a statement lets the packet reach what stands behind it.
fn holds(statement: Statement, view: &View) -> Result<bool, Broken> {
    let rules = vec![Rule { statements: vec![statement, verdict(Verdict::Drop)], comment: None }];
    let ruleset = ruleset(vec![("input", base(0, ChainPolicy::Accept), rules)]);
    run(&ruleset, Hook::Input, view).map(|run| run.end == End::Dropped)
}

fn test(key: Key, negated: bool, value: Value) -> Statement {
    Statement::Match { key, negated, value }
}

fn is(key: Key, value: impl Into<Datum>) -> Statement {
    test(key, false, Value::Is(value.into()))
}

#[test]
fn accept_ends_one_base_chain_and_drop_ends_all() {
    let accept = vec![counting("first", vec![verdict(Verdict::Accept)]), counting("never", vec![])];
    let both = ruleset(vec![
        ("a_late", base(10, ChainPolicy::Accept), vec![counting("late", vec![verdict(Verdict::Drop)])]),
        ("b_early", base(-10, ChainPolicy::Drop), accept),
    ]);
    assert_eq!(ran(&both), (End::Dropped, "first late".to_owned()));
    let dropped = ruleset(vec![
        ("a_late", base(10, ChainPolicy::Accept), vec![counting("late", vec![])]),
        ("b_early", base(-10, ChainPolicy::Drop), vec![]),
    ]);
    assert_eq!(ran(&dropped), (End::Dropped, String::new()));
    assert_eq!(ran(&Ruleset::default()), (End::Accepted, String::new()));
    // Another hook sees none of it.
    assert_eq!(run(&dropped, Hook::Output, &view()).unwrap().end, End::Accepted);
}

#[test]
fn jump_comes_back_and_goto_goes_back_to_the_last_jump() {
    let chains = ruleset(vec![
        (
            "input",
            base(0, ChainPolicy::Drop),
            vec![counting("1", vec![jump("a")]), counting("5", vec![verdict(Verdict::Accept)])],
        ),
        ("a", None, vec![counting("2", vec![jump("b")]), counting("4", vec![goto("c")]), counting("never", vec![])]),
        ("b", None, vec![counting("3", vec![verdict(Verdict::Return)]), counting("never", vec![])]),
        ("c", None, vec![counting("c", vec![])]),
    ]);
    assert_eq!(ran(&chains), (End::Accepted, "1 2 3 4 c 5".to_owned()));
    // Return in a base chain, and the end of a chain that it went to, leave the policy of the base chain.
    for last in [verdict(Verdict::Return), goto("c")] {
        let rules = vec![counting("1", vec![last]), counting("never", vec![verdict(Verdict::Accept)])];
        let chains = ruleset(vec![("input", base(0, ChainPolicy::Drop), rules), ("c", None, vec![])]);
        assert_eq!(ran(&chains), (End::Dropped, "1".to_owned()));
    }
}

#[test]
fn statements_run_from_left_to_right_until_one_fails() {
    let log = || Statement::Log { prefix: "word".to_owned(), group: 1 };
    let limit = Statement::Limit(crate::nft::ir::Limit { rate: 1, seconds: 1, burst: 1 });
    let udp = is(Key::L4Proto, 17u8);
    let rules = vec![
        Rule { statements: vec![Statement::Counter, udp, log(), verdict(Verdict::Drop)], comment: Some("a".into()) },
        Rule {
            statements: vec![limit, log(), Statement::Reject(Reject::TcpReset), Statement::Counter],
            comment: Some("b".into()),
        },
    ];
    let ruleset = ruleset(vec![("input", base(0, ChainPolicy::Accept), rules)]);
    let run = run(&ruleset, Hook::Input, &view()).unwrap();
    assert_eq!(run.end, End::Rejected(Reject::TcpReset));
    assert_eq!((run.counted, run.logged), (vec!["a".to_owned()], vec!["word".to_owned()]));
}

#[test]
fn a_key_that_the_packet_does_not_have_breaks_the_rule_negated_or_not() {
    let port = |protocol| Key::Port(protocol, Side::Destination);
    let unreadable = View { words: None, ..view() };
    let udp = View { protocol: Some(Protocol::UDP), ..view() };
    let hardware = View { input: view().input.map(|device| Device { kind: None, ..device }), ..view() };
    let absent = [
        (Key::IpAddr(Family::V6, Side::Source), view()),
        (Key::IpAddr(Family::V4, Side::Source), v6()),
        (Key::HopLimit, view()),
        (port(Some(Protocol::TCP)), udp),
        (port(Some(Protocol::TCP)), unreadable.clone()),
        (port(None), unreadable),
        (Key::IcmpType, view()),
        (Key::Icmpv6Code, View { protocol: Some(Protocol::ICMPV6), icmp: None, ..v6() }),
        (Key::Icmpv6Type, View { protocol: Some(Protocol::ICMP), icmp: Some((8, 0)), ..view() }),
        (Key::InterfaceKind(Side::Source), hardware),
        (Key::InterfaceType(Side::Destination), view()),
    ];
    for (key, view) in absent {
        let zero = Datum::from_number(0, key.data_type().size());
        for negated in [false, true] {
            assert_eq!(holds(test(key, negated, Value::Is(zero)), &view), Ok(false), "{key:?} {negated}");
            let set = SetRef::Anonymous(Elements::Keys(Default::default()));
            assert_eq!(holds(Statement::Lookup { keys: vec![key], negated, set }, &view), Ok(false), "{key:?}");
        }
    }
    // Without a device the name is empty, which is a value.
    let no_name = test(Key::InterfaceName(Side::Destination), false, Value::Is(Datum::name("")));
    assert_eq!(holds(no_name, &view()), Ok(true));
    // And `th dport` reads whatever stands there: here, an ICMP checksum.
    let ping = View { protocol: Some(Protocol::ICMP), words: Some((0x0800, 22)), icmp: Some((8, 0)), ..view() };
    assert_eq!(holds(is(port(None), 22u16), &ping), Ok(true));
}

#[test]
fn values_compare_as_nft_writes_them() {
    let source = Key::IpAddr(Family::V4, Side::Source);
    let name = Key::InterfaceName(Side::Source);
    let v6_source = Key::IpAddr(Family::V6, Side::Source);
    let flags = Value::Flags(ct_state::NEW | ct_state::INVALID);
    let dport = Key::Port(Some(Protocol::TCP), Side::Destination);
    let examples = [
        (source, Value::Prefix(0x0a00_0000u32.into(), 8), true),
        (source, Value::Prefix(0x0a00_0000u32.into(), 29), false),
        (source, Value::Prefix(0u32.into(), 0), true),
        (source, Value::Range(0x0a00_0009u32.into(), 0x0a00_0009u32.into()), true),
        (source, Value::Range(0x0a00_000au32.into(), 0x0a00_00ffu32.into()), false),
        (v6_source, Value::Prefix((0xfd00u128 << 112).into(), 8), true),
        (v6_source, Value::Prefix(0u128.into(), 0), true),
        (name, Value::Prefix(Datum::name("eth"), 24), true),
        (name, Value::Prefix(Datum::name("eth1"), 32), false),
        (name, Value::Is(Datum::name("eth")), false),
        (Key::CtState, flags, true),
        (Key::CtState, Value::Flags(ct_state::ESTABLISHED), false),
        (dport, Value::Range(22u16.into(), 23u16.into()), true),
        (Key::NfProto, Value::Is(2u8.into()), true),
        (Key::InterfaceKind(Side::Source), Value::Is(Datum::name("veth")), true),
    ];
    for (key, value, expected) in examples {
        let view = if key == v6_source { v6() } else { view() };
        assert_eq!(holds(test(key, false, value), &view), Ok(expected), "{key:?} {value:?}");
        assert_eq!(holds(test(key, true, value), &view), Ok(!expected), "{key:?} != {value:?}");
    }
}

#[test]
fn sets_and_maps_are_looked_up() {
    let keys = vec![Key::L4Proto, Key::Port(None, Side::Destination)];
    let single = |value: u8| (Datum::from(value), Datum::from(value));
    let element = |ports: (u16, u16)| ElementKey(vec![single(6), (Datum::from(ports.0), Datum::from(ports.1))]);
    let set = |ports| SetRef::Anonymous(Elements::Keys([(element(ports), None)].into()));
    let lookup = |set, negated| Statement::Lookup { keys: keys.clone(), negated, set };
    assert_eq!(holds(lookup(set((20, 30)), false), &view()), Ok(true));
    assert_eq!(holds(lookup(set((20, 30)), true), &view()), Ok(false));
    assert_eq!(holds(lookup(set((23, 30)), false), &view()), Ok(false));
    assert_eq!(holds(lookup(set((23, 30)), true), &view()), Ok(true));

    let map = |port| SetRef::Anonymous(Elements::Keys([(element((port, port)), Some(Verdict::Drop))].into()));
    let vmap = |port| Statement::Vmap { keys: keys.clone(), map: map(port) };
    let rules = |port| {
        let first = Rule { statements: vec![vmap(port), Statement::Counter], comment: Some("behind".into()) };
        ruleset(vec![("input", base(0, ChainPolicy::Accept), vec![first, counting("next", vec![])])])
    };
    assert_eq!(ran(&rules(22)), (End::Dropped, String::new()));
    // A miss ends the rule, not the chain.
    assert_eq!(ran(&rules(23)), (End::Accepted, "next".to_owned()));
}

#[test]
fn what_the_kernel_would_not_load_is_an_error() {
    let source = Key::IpAddr(Family::V4, Side::Source);
    let named =
        |name: &str| Statement::Lookup { keys: vec![source], negated: false, set: SetRef::Named(name.to_owned()) };
    let one = |statement| {
        let rules = vec![Rule { statements: vec![statement], comment: None }];
        let mut ruleset = ruleset(vec![("input", base(0, ChainPolicy::Accept), rules)]);
        let elements = Elements::V6(RangeSet::full());
        let set = Set { key: vec![DataType::Ipv6Addr], interval: true, map: false, dynamic: None, elements };
        ruleset.sets.insert("six".to_owned(), set);
        run(&ruleset, Hook::Input, &view()).map(|run| run.end)
    };
    assert_eq!(one(jump("nowhere")), Err(Broken::Chain("nowhere".to_owned())));
    assert_eq!(one(named("nothing")), Err(Broken::Set("nothing".to_owned())));
    assert_eq!(one(named("six")), Err(Broken::Fit("six".to_owned())));
    assert_eq!(one(is(source, 1u16)), Err(Broken::Length(String::new())));
    assert_eq!(one(jump("input")), Err(Broken::Depth("input".to_owned())));
    assert_eq!(one(goto("input")), Err(Broken::Depth("input".to_owned())));
    assert_eq!(one(Statement::Foreign("masquerade".to_owned())), Err(Broken::Foreign("masquerade".to_owned())));
    let plain = SetRef::Anonymous(Elements::V4(RangeSet::full()));
    assert_eq!(one(Statement::Vmap { keys: vec![source], map: plain }), Err(Broken::Fit("{ ... }".to_owned())));
}
