//! Words of the IR on packets: which of them a rule counts in the real kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::net::{Answer, Host, Probe, What, probe, wire};
use nodewall::driver::{Kernel, Netlink, Read, apply};
use nodewall::net::addr::Family;
use nodewall::net::protocol::Protocol;
use nodewall::nft::ir::*;
use nodewall::nft::key::{DataType, Datum, Key, Side};
use nodewall::nft::netlink::canonical;

const PORT: u16 = 9;
const DPORT: Key = Key::Port(Some(Protocol::UDP), Side::Destination);
const SADDR: Key = Key::IpAddr(Family::V4, Side::Source);

/// A rule that counts the packets to our port that it is about, under a name.
fn counts(name: &str, statements: &[Statement]) -> Rule {
    let to_port = is(DPORT, PORT);
    let statements = [&[to_port], statements, &[Statement::Counter]].concat();
    Rule { statements, comment: Some(name.to_owned()) }
}

fn is(key: Key, value: impl Into<Datum>) -> Statement {
    matches(key, Value::Is(value.into()))
}

fn range(key: Key, start: u32, end: u32) -> Statement {
    matches(key, Value::Range(start.into(), end.into()))
}

fn matches(key: Key, value: Value) -> Statement {
    Statement::Match { key, negated: false, value }
}

fn within(keys: &[Key], set: SetRef) -> Statement {
    Statement::Lookup { keys: keys.to_vec(), negated: false, set }
}

fn elements<const N: usize, const M: usize>(elements: [[(u32, u32); N]; M], types: [DataType; N]) -> Elements {
    let datum = |data_type: DataType, number: u32| Datum::from_number(number.into(), data_type.size());
    let key = |element: [(u32, u32); N]| {
        let fields = element.into_iter().zip(types);
        ElementKey(fields.map(|((start, end), kind)| (datum(kind, start), datum(kind, end))).collect())
    };
    Elements::Keys(elements.into_iter().map(|element| (key(element), None)).collect())
}

fn chain(hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = BaseChain { hook, priority, policy: ChainPolicy::Accept, device: None };
    Chain { base: Some(base), rules }
}

/// How long a packet may be on its way to a rule at most; on a quiet machine it is there before the send returns.
const PATIENCE: Duration = Duration::from_secs(5);

/// Puts chains in force, lets `work` send, and compares how many packets each rule counted.
fn check(chains: Vec<(&str, Chain)>, sets: Vec<(&str, Set)>, work: impl FnOnce(), expected: &[(&str, u64)]) {
    let ruleset = Ruleset {
        chains: chains.into_iter().map(|(name, chain)| (name.to_owned(), chain)).collect(),
        sets: sets.into_iter().map(|(name, set)| (name.to_owned(), set)).collect(),
    };
    let mut kernel = Netlink::open().unwrap();
    apply(&mut kernel, &ruleset, None).unwrap();
    work();
    let expected: BTreeMap<String, u64> = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let start = Instant::now();
    loop {
        let loaded = kernel.load(&Read::Everything).unwrap();
        assert!(loaded.ruleset == canonical(&ruleset), "packets changed the rules");
        let rules = loaded.ruleset.chains.iter().flat_map(|(name, chain)| chain.rules.iter().zip(&loaded.rules[name]));
        let counted: BTreeMap<String, u64> =
            rules.filter_map(|(rule, state)| Some((rule.comment.clone()?, state.counter?.0))).collect();
        if counted == expected || start.elapsed() > PATIENCE {
            assert_eq!(counted, expected);
            return;
        }
    }
}

/// Sends one datagram to our port.
fn send(from: &str, to: &str) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    // What a rule drops on the way out says EPERM, and nobody listens on the other side.
    let _ = socket.send_to(b"x", (to, PORT));
}

/// The command that does so.
fn sender() -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("echo x > /dev/udp/127.0.0.1/{PORT}")]);
    command
}

#[test]
fn local_users_and_groups_are_numbers_in_every_kind_of_lookup() {
    lab::isolated("local_users_and_groups_are_numbers_in_every_kind_of_lookup", || {
        let (user, group) = (Key::SocketUser, Key::SocketGroup);
        let plain = |key: &[DataType], elements: Elements| Set {
            key: key.to_vec(),
            interval: elements.needs_interval(),
            map: false,
            dynamic: None,
            elements,
        };
        let named = |name: &str| SetRef::Named(name.to_owned());
        let (uid, gid, port) = (DataType::Uid, DataType::Gid, DataType::InetService);
        let port_number = u32::from(PORT);
        // 1500 is 0x5dc: turned around it would be more than 1600, and 258 (0x102) more than 513 (0x201).
        let rules = vec![
            counts("is", &[is(user, 1500u32)]),
            counts("not", &[is(user, 0u32)]),
            counts("range", &[range(user, 1400, 1600)]),
            counts("below", &[range(user, 256, 1499)]),
            counts("above", &[range(user, 1501, 0xdc05_0000)]),
            counts("prefix", &[matches(user, Value::Prefix(0x500u32.into(), 24))]),
            counts("group", &[is(group, 258u32)]),
            counts("groups", &[range(group, 257, 513)]),
            counts("no group", &[range(group, 512, 513)]),
            counts("either", &[within(&[user], SetRef::Anonymous(elements([[(0, 0)], [(1500, 1500)]], [uid])))]),
            counts("ranges", &[within(&[user], SetRef::Anonymous(elements([[(0, 9)], [(1000, 1999)]], [uid])))]),
            counts("no range", &[within(&[user], SetRef::Anonymous(elements([[(0, 9)], [(1501, 9999)]], [uid])))]),
            counts("set", &[within(&[user], named("users"))]),
            counts("ranges of a set", &[within(&[user], named("ranges"))]),
            counts("with port", &[within(&[user, DPORT], named("with-port"))]),
            counts("ranges with port", &[within(&[group, DPORT], named("ranges-with-port"))]),
            counts("others with port", &[within(&[group, DPORT], named("others-with-port"))]),
        ];
        let sets = vec![
            ("users", plain(&[uid], elements([[(5, 5)], [(1500, 1500)]], [uid]))),
            ("ranges", plain(&[uid], elements([[(5, 5)], [(1400, 1600)]], [uid]))),
            ("with-port", plain(&[uid, port], elements([[(1500, 1500), (port_number, port_number)]], [uid, port]))),
            ("ranges-with-port", plain(&[gid, port], elements([[(257, 300), (1, 99)]], [gid, port]))),
            ("others-with-port", plain(&[gid, port], elements([[(259, 70_000), (1, 99)]], [gid, port]))),
        ];
        let expected = [
            ("is", 1),
            ("not", 0),
            ("range", 1),
            ("below", 0),
            ("above", 0),
            ("prefix", 1),
            ("group", 1),
            ("groups", 1),
            ("no group", 0),
            ("either", 1),
            ("ranges", 1),
            ("no range", 0),
            ("set", 1),
            ("ranges of a set", 1),
            ("with port", 1),
            ("ranges with port", 1),
            ("others with port", 0),
        ];
        check(
            vec![("output", chain(Hook::Output, 0, rules))],
            sets,
            || {
                assert!(sender().uid(1500).gid(258).status().unwrap().success());
            },
            &expected,
        );
    });
}

#[test]
fn bits_of_the_mark_are_set_cleared_and_told_apart() {
    lab::isolated("bits_of_the_mark_are_set_cleared_and_told_apart", || {
        let any = |bits| matches(Key::Mark, Value::Flags(bits));
        let none = |bits| Statement::Match { key: Key::Mark, negated: true, value: Value::Flags(bits) };
        let does = |statement: Statement| Rule { statements: vec![statement], comment: None };
        let rules = vec![
            counts("unmarked", &[none(u32::MAX)]),
            does(Statement::MarkSet(0x100)),
            does(Statement::MarkSet(0x8000_0001)),
            counts("all three", &[is(Key::Mark, 0x8000_0101u32)]),
            counts("one of them", &[any(0x0100)]),
            counts("one of them or another", &[any(0x0300)]),
            counts("none of others", &[none(0x0200)]),
            counts("another", &[any(0x0200)]),
            does(Statement::MarkClear(0x8000_0000)),
            counts("two left", &[range(Key::Mark, 0x101, 0x101)]),
            counts("as a number", &[range(Key::Mark, 0x100, 0x1ff)]),
            counts("not as bytes", &[range(Key::Mark, 0x102, 0xffff)]),
            does(Statement::MarkClear(u32::MAX)),
            counts("unmarked again", &[is(Key::Mark, 0u32)]),
        ];
        let expected = [
            ("unmarked", 1),
            ("all three", 1),
            ("one of them", 1),
            ("one of them or another", 1),
            ("none of others", 1),
            ("another", 0),
            ("two left", 1),
            ("as a number", 1),
            ("not as bytes", 0),
            ("unmarked again", 1),
        ];
        check(vec![("output", chain(Hook::Output, 0, rules))], vec![], || send("127.0.0.1", "127.0.0.1"), &expected);
    });
}

#[test]
fn what_is_not_tracked_is_untracked_further_on() {
    lab::isolated("what_is_not_tracked_is_untracked_further_on", || {
        let state = |name, bit| counts(name, &[matches(Key::CtState, Value::Flags(bit))]);
        let raw = Rule { statements: vec![is(SADDR, loopback(2)), Statement::Notrack], comment: None };
        let chains = vec![
            ("raw", chain(Hook::Output, -300, vec![raw])),
            (
                "output",
                chain(Hook::Output, 0, vec![state("untracked", ct_state::UNTRACKED), state("new", ct_state::NEW)]),
            ),
        ];
        check(
            chains,
            vec![],
            || {
                send("127.0.0.2", "127.0.0.1");
                send("127.0.0.3", "127.0.0.1");
                send("127.0.0.2", "127.0.0.1");
            },
            &[("untracked", 2), ("new", 1)],
        );
    });
}

fn loopback(last: u8) -> Datum {
    Ipv4Addr::new(127, 0, 0, last).to_bits().into()
}

#[test]
fn every_client_has_a_bucket_of_its_own_as_far_as_there_is_room() {
    lab::isolated("every_client_has_a_bucket_of_its_own_as_far_as_there_is_room", || {
        let limit = Limit { rate: 1, seconds: 86_400, burst: 3 };
        let meter = |set: &str| Statement::Meter { keys: vec![SADDR], set: set.to_owned(), limit };
        let set = |size| Set {
            key: vec![DataType::Ipv4Addr],
            interval: false,
            map: false,
            dynamic: Some(Dynamic { timeout: 3600, size }),
            elements: Elements::V4(Default::default()),
        };
        let rules = vec![
            counts("each", &[meter("clients")]),
            counts("of one", &[is(SADDR, loopback(2)), meter("of-one")]),
            counts("first only", &[meter("full")]),
            counts("all together", &[Statement::Limit(limit)]),
        ];
        let sets = vec![("clients", set(100)), ("of-one", set(100)), ("full", set(1))];
        check(
            vec![("output", chain(Hook::Output, 0, rules))],
            sets,
            || {
                for _ in 0..5 {
                    send("127.0.0.2", "127.0.0.1");
                    send("127.0.0.3", "127.0.0.1");
                }
                send("127.0.0.4", "127.0.0.1");
            },
            &[("each", 3 + 3 + 1), ("of one", 3), ("first only", 3), ("all together", 3)],
        );
    });
}

#[test]
fn a_chain_at_ingress_sees_its_device_before_anything_else() {
    if !lab::may_run("a_chain_at_ingress_sees_its_device_before_anything_else") {
        return;
    }
    let (here, there) = (Host::new(), Host::new());
    for (name, address, peer) in [("one", "10.0.1.1/24", "10.0.1.2/24"), ("two", "10.0.2.1/24", "10.0.2.2/24")] {
        wire((&here, name, &[address]), (&there, name, &[peer]));
    }
    // Until neighbours know each other, packets wait.
    let echo = here.serve(&[], &[7]);
    let answers = probe(&["1", "2"].map(|wire| Probe {
        from: there.clone(),
        source: format!("10.0.{wire}.2").parse().unwrap(),
        destination: format!("10.0.{wire}.1").parse().unwrap(),
        what: What::Udp(7),
    }));
    assert_eq!(answers, [Answer::Allowed; 2]);
    drop(echo);
    here.enter(|| {
        let device = Some(Datum::name("one"));
        let base = BaseChain { hook: Hook::Ingress, priority: -500, policy: ChainPolicy::Accept, device };
        let seen = counts("seen", &[]);
        let mut dropped = counts("dropped", &[is(SADDR, Ipv4Addr::new(10, 0, 1, 2).to_bits())]);
        dropped.statements.push(Statement::Verdict(Verdict::Drop));
        let raw = chain(Hook::Prerouting, -300, vec![counts("later", &[])]);
        let early = Chain { base: Some(base), rules: vec![seen, dropped] };
        check(
            vec![("early", early), ("raw", raw)],
            vec![],
            || {
                for (from, to) in [("10.0.1.2", "10.0.1.1"), ("10.0.2.2", "10.0.2.1"), ("10.0.2.2", "10.0.2.1")] {
                    there.enter(|| send(from, to));
                }
            },
            &[("seen", 1), ("dropped", 1), ("later", 2)],
        );
    });
}

/// Where control groups of version 2 are, wherever it is mounted.
fn control_groups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2")?;
    Some(PathBuf::from(mount[1]))
}

/// A control group that is gone with the test.
struct Group(PathBuf);

impl Group {
    fn new(parent: &Path, name: &str) -> Option<Self> {
        let path = parent.join(name);
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }

    fn id(&self) -> Datum {
        fs::metadata(&self.0).unwrap().ino().into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_is_known_at_its_level_and_those_above_at_theirs() {
    let name = "a_control_group_is_known_at_its_level_and_those_above_at_theirs";
    let unique = format!("nodewall-test-{}", std::process::id());
    lab::isolated(name, move || {
        let groups = control_groups().and_then(|root| {
            let slice = Group::new(&root, &unique)?;
            let unit = Group::new(&slice.0, "unit")?;
            let other = Group::new(&slice.0, "other")?;
            Some((slice, unit, other))
        });
        let Some((slice, unit, other)) = groups else {
            println!("SKIPPED {name}: no control groups of version 2 to write to");
            return;
        };
        let level = Key::SocketCgroup;
        let set = |interval, key: &[DataType], elements| Set {
            key: key.to_vec(),
            interval,
            map: false,
            dynamic: None,
            elements,
        };
        let key = |fields: &[(Datum, Datum)]| Elements::Keys([(ElementKey(fields.to_vec()), None)].into());
        let one = |datum: Datum| (datum, datum);
        let ports = (Datum::from(1u16), Datum::from(99u16));
        let rules = vec![
            counts("slice", &[is(level(1), slice.id())]),
            counts("unit", &[is(level(2), unit.id())]),
            counts("other", &[is(level(2), other.id())]),
            counts("unit at another level", &[is(level(1), unit.id())]),
            counts("set", &[within(&[level(2)], SetRef::Named("units".to_owned()))]),
            counts("set with ports", &[within(&[level(2), DPORT], SetRef::Named("units-ports".to_owned()))]),
        ];
        let sets = vec![
            ("units", set(false, &[DataType::Cgroup], key(&[one(unit.id())]))),
            ("units-ports", set(true, &[DataType::Cgroup, DataType::InetService], key(&[one(unit.id()), ports]))),
        ];
        let expected =
            [("slice", 1), ("unit", 1), ("other", 0), ("unit at another level", 0), ("set", 1), ("set with ports", 1)];
        check(
            vec![("output", chain(Hook::Output, 0, rules))],
            sets,
            || {
                let join = format!("echo $$ > {}/cgroup.procs && echo x > /dev/udp/127.0.0.1/{PORT}", unit.0.display());
                assert!(Command::new("bash").args(["-c", &join]).status().unwrap().success());
            },
            &expected,
        );
    });
}
