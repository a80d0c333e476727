//! Random rulesets: netlink and back, plans in memory and in the real kernel, and the one against the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use nix::sched::{CloneFlags, unshare};
use nodewall::driver::{Error, Kernel, Memory, Netlink, Read, apply};
use nodewall::net::addr::Family;
use nodewall::net::protocol::Protocol;
use nodewall::nft::change::{Batch, Change};
use nodewall::nft::ir::*;
use nodewall::nft::key::{DataType, Datum, Key, Side};
use nodewall::nft::netlink::{Malformed, Snapshot, acknowledgement, canonical, canonical_rule, encode, messages};
use nodewall::plan::plan;
use proptest::prelude::*;

/// A small generator (splitmix64): the same seed, the same ruleset.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    fn datum(&mut self, data_type: DataType) -> Datum {
        match data_type {
            DataType::NfProto => Datum::from(*self.pick(&[2u8, 10])),
            DataType::Ifname => Datum::name(self.pick::<&str>(&["eth0", "eth1", "lo", "cali0123456789a", "ib0"])),
            DataType::CtState => Datum::from(*self.pick(&[1u32, 2, 4, 8, 64])),
            DataType::InetProto => Datum::from(*self.pick(&[6u8, 17, 1, 58, 132, 255, 0])),
            other => {
                let size = other.size();
                // Small values, the edges, and anything.
                let number = match self.below(4) {
                    0 => u128::from(self.below(12)),
                    1 => u128::MAX,
                    2 => u128::MAX - u128::from(self.below(12)),
                    _ => u128::from(self.next()) << 64 | u128::from(self.next()),
                };
                Datum::from_number(number, size)
            }
        }
    }

    fn range(&mut self, data_type: DataType) -> (Datum, Datum) {
        let (a, b) = (self.datum(data_type), self.datum(data_type));
        (a.min(b), a.max(b))
    }

    fn key(&mut self) -> Key {
        let side = *self.pick(&[Side::Source, Side::Destination]);
        let family = *self.pick(&[Family::V4, Family::V6]);
        let protocol = *self.pick(&[None, Some(Protocol::TCP), Some(Protocol::UDP), Some(Protocol::SCTP)]);
        match self.below(18) {
            14 => Key::Mark,
            15 => Key::SocketUser,
            16 => Key::SocketGroup,
            17 => Key::SocketCgroup(1 + self.below(5) as u8),
            0 => Key::NfProto,
            1 => Key::L4Proto,
            2 => Key::InterfaceName(Side::Source),
            3 => Key::InterfaceType(Side::Source),
            4 => Key::InterfaceKind(Side::Source),
            5 => Key::CtState,
            6 | 7 => Key::IpAddr(family, side),
            8 => Key::HopLimit,
            9 => Key::IcmpType,
            10 => Key::Icmpv6Type,
            11 => *self.pick(&[Key::IcmpCode, Key::Icmpv6Code]),
            _ => Key::Port(protocol, side),
        }
    }

    fn value(&mut self, key: Key) -> Value {
        let data_type = key.data_type();
        let datum = self.datum(data_type);
        match (data_type, self.below(3)) {
            (DataType::CtState, 0 | 1) => Value::Flags(1 + self.below(127) as u32),
            (DataType::Mark, 0 | 1) => Value::Flags(1 + self.below(u64::from(u32::MAX)) as u32),
            (DataType::Uid | DataType::Gid | DataType::IfaceType, 0) => Value::Prefix(datum, self.below(40) as u8),
            (DataType::Uid | DataType::Gid | DataType::IfaceType | DataType::Cgroup, 1) => {
                let (from, to) = self.range(data_type);
                Value::Range(from, to)
            }
            (DataType::Ifname, 0) => Value::Prefix(datum, 8 * (1 + self.below(15) as u8)),
            (DataType::Ipv4Addr | DataType::Ipv6Addr | DataType::InetService, 0) => {
                Value::Prefix(datum, self.below(data_type.size() as u64 * 8 + 1) as u8)
            }
            (DataType::InetService | DataType::Ipv4Addr | DataType::Integer | DataType::IcmpType, 1) => {
                let (from, to) = self.range(data_type);
                Value::Range(from, to)
            }
            _ => Value::Is(datum),
        }
    }

    fn verdict(&mut self, targets: &[String]) -> Verdict {
        match self.below(5) {
            0 => Verdict::Drop,
            1 if !targets.is_empty() => Verdict::Jump(self.pick(targets).clone()),
            2 if !targets.is_empty() => Verdict::Goto(self.pick(targets).clone()),
            3 => Verdict::Return,
            _ => Verdict::Accept,
        }
    }

    /// Elements that the kernel takes: no two alike, and none that overlap.
    fn elements(&mut self, key: &[DataType], interval: bool, map: bool, targets: &[String]) -> Elements {
        let count = self.below(6);
        let mut elements: BTreeMap<ElementKey, Option<Verdict>> = BTreeMap::new();
        for _ in 0..count {
            let fields = key.iter().map(|data_type| {
                let ranged = interval && *data_type != DataType::CtState;
                if ranged && self.chance(2) {
                    self.range(*data_type)
                } else {
                    let value = self.datum(*data_type);
                    (value, value)
                }
            });
            let element = ElementKey(fields.collect());
            if !elements.keys().any(|there| overlap(there, &element)) {
                let verdict = map.then(|| self.verdict(targets));
                elements.insert(element, verdict);
            }
        }
        let ranges = || elements.keys().map(|key| (key.0[0].0.number(), key.0[0].1.number()));
        match key {
            [DataType::Ipv4Addr] if !map => {
                let ranges =
                    ranges().map(|(a, b)| (a as u32, b as u32)).collect::<nodewall::net::range::RangeSet<u32>>();
                // Values that touch would merge into a range, which a set without ranges cannot hold.
                if interval || ranges.is_discrete() { Elements::V4(ranges) } else { Elements::V4(Default::default()) }
            }
            [DataType::Ipv6Addr] if !map => {
                let ranges = ranges().collect::<nodewall::net::range::RangeSet<u128>>();
                if interval || ranges.is_discrete() { Elements::V6(ranges) } else { Elements::V6(Default::default()) }
            }
            _ => Elements::Keys(elements.into()),
        }
    }

    fn shape(&mut self) -> (Vec<Key>, bool) {
        let port = Key::Port(Some(Protocol::TCP), Side::Destination);
        let source4 = Key::IpAddr(Family::V4, Side::Source);
        let keys = match self.below(12) {
            8 => vec![*self.pick(&[Key::SocketUser, Key::SocketGroup, Key::Mark])],
            9 => vec![Key::SocketUser, port],
            10 => vec![Key::SocketCgroup(1 + self.below(3) as u8)],
            11 => vec![Key::InterfaceType(Side::Source), Key::SocketCgroup(2), source4],
            0 => vec![source4],
            1 => vec![Key::IpAddr(Family::V6, Side::Destination)],
            2 => vec![port],
            3 => vec![Key::InterfaceName(Side::Source)],
            4 => vec![source4, port],
            5 => vec![Key::L4Proto, Key::Port(None, Side::Destination)],
            6 => vec![Key::InterfaceName(Side::Source), source4, port],
            _ => vec![Key::IcmpType, Key::IcmpCode],
        };
        (keys, self.chance(2))
    }

    fn limit(&mut self) -> Limit {
        let seconds = *self.pick(&[1, 60, 3600, 86_400]);
        Limit { rate: 1 + self.below(1000) as u32, seconds, burst: 1 + self.below(50) as u32 }
    }

    /// A set that rules fill, in words that are in one of no other kind.
    fn dynamic(&mut self) -> (Vec<Key>, Set) {
        let (keys, _) = self.shape();
        let key: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
        let dynamic = Some(Dynamic { timeout: 1 + self.below(5) as u32, size: 1 + self.below(3) as u32 });
        let elements = self.elements(&key, false, false, &[]);
        let elements = match elements {
            Elements::V4(_) => Elements::V4(Default::default()),
            Elements::V6(_) => Elements::V6(Default::default()),
            Elements::Keys(_) => Elements::Keys(Default::default()),
        };
        (keys, Set { key, interval: false, map: false, dynamic, elements })
    }

    fn rule(&mut self, sets: &Usable, targets: &[String]) -> Rule {
        let mut statements = Vec::new();
        for _ in 0..self.below(4) {
            let negated = self.chance(3);
            match self.below(5) {
                0 if sets.iter().any(|(_, _, kind)| *kind == Kind::Plain) => {
                    let plain: Vec<_> = sets.iter().filter(|(_, _, kind)| *kind == Kind::Plain).collect();
                    let (name, keys, _) = (*self.pick(&plain)).clone();
                    statements.push(Statement::Lookup { keys, negated, set: SetRef::Named(name) });
                }
                1 => {
                    let (keys, interval) = self.shape();
                    let types: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
                    let elements = self.elements(&types, interval, false, &[]);
                    statements.push(Statement::Lookup { keys, negated, set: SetRef::Anonymous(elements) });
                }
                _ => {
                    let key = self.key();
                    statements.push(Statement::Match { key, negated, value: self.value(key) });
                }
            }
        }
        if self.chance(3) {
            statements.push(Statement::Counter);
        }
        if self.chance(4) {
            let bits = self.below(1 << 32) as u32;
            statements.push(match self.below(4) {
                0 => Statement::Notrack,
                1 => Statement::MarkSet(bits),
                2 => Statement::MarkClear(bits),
                _ => Statement::Counter,
            });
        }
        let meters: Vec<_> = sets.iter().filter(|(_, _, kind)| *kind == Kind::Dynamic).collect();
        if !meters.is_empty() && self.chance(2) {
            let (name, keys, _) = (*self.pick(&meters)).clone();
            statements.push(Statement::Meter { keys, set: name, limit: self.limit() });
        }
        if self.chance(4) {
            statements.push(Statement::Limit(self.limit()));
            let prefix = (*self.pick(&["", "nw ", "nodewall: "])).to_owned();
            statements.push(Statement::Log { prefix, group: self.below(65536) as u16 });
        }
        match self.below(5) {
            0 => {
                let maps: Vec<_> = sets.iter().filter(|(_, _, kind)| *kind == Kind::Map).collect();
                if maps.is_empty() {
                    let (keys, interval) = self.shape();
                    let types: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
                    let elements = self.elements(&types, interval, true, targets);
                    statements.push(Statement::Vmap { keys, map: SetRef::Anonymous(elements) });
                } else {
                    let (name, keys, _) = (*self.pick(&maps)).clone();
                    statements.push(Statement::Vmap { keys, map: SetRef::Named(name) });
                }
            }
            1 => statements.push(Statement::Reject(*self.pick(&[Reject::AdminProhibited, Reject::TcpReset]))),
            _ => statements.push(Statement::Verdict(self.verdict(targets))),
        }
        let comment = self.chance(2).then(|| format!("p#{} file.toml:{}", self.below(3), self.below(3)));
        Rule { statements, comment }
    }

    /// A ruleset that the kernel takes: chains jump to later ones only, and no base chain is jumped to.
    fn ruleset(&mut self) -> Ruleset {
        let chains: Vec<String> = (0..self.below(5)).map(|index| format!("c{index}")).collect();
        let mut ruleset = Ruleset::default();
        let mut sets = Vec::new();
        for index in 0..self.below(6) {
            let (keys, interval) = self.shape();
            let map = self.chance(3);
            let name = format!("s{index}");
            if self.chance(5) {
                let (keys, set) = self.dynamic();
                ruleset.sets.insert(name.clone(), set);
                sets.push((name, keys, Kind::Dynamic));
                continue;
            }
            let key: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
            // Maps jump to the last chain only, which jumps nowhere: no loop through a map.
            let targets = chains.last().map(std::slice::from_ref).unwrap_or_default();
            let elements = self.elements(&key, interval, map, targets);
            ruleset.sets.insert(name.clone(), Set { key, interval, map, dynamic: None, elements });
            sets.push((name, keys, if map { Kind::Map } else { Kind::Plain }));
        }
        let plain: Vec<_> = sets.iter().filter(|(_, _, kind)| *kind != Kind::Map).cloned().collect();
        for (index, name) in chains.iter().enumerate() {
            let last = index + 1 == chains.len();
            let usable = if last { &plain } else { &sets };
            let count = self.below(7);
            let rules = (0..count).map(|_| self.rule(usable, &chains[index + 1..])).collect();
            ruleset.chains.insert(name.clone(), Chain { base: None, rules });
        }
        for hook in [Hook::Input, Hook::Output] {
            if self.chance(4) {
                continue;
            }
            let policy = *self.pick(&[ChainPolicy::Accept, ChainPolicy::Drop]);
            let base = BaseChain { hook, priority: *self.pick(&[0, -10]), policy, device: None };
            let count = self.below(10);
            let rules = (0..count).map(|_| self.rule(&sets, &chains)).collect();
            ruleset.chains.insert(hook.name().to_owned(), Chain { base: Some(base), rules });
        }
        if self.chance(2) {
            // Nothing that needs a socket, which no packet has there yet.
            let device = Some(Datum::name(self.pick::<&str>(&["lo", "gone0"])));
            let base = BaseChain { hook: Hook::Ingress, priority: -500, policy: ChainPolicy::Accept, device };
            let rules = (0..self.below(4)).map(|_| self.rule(&Vec::new(), &[]));
            let rules = rules.filter(|rule| !format!("{rule:?}").contains("SocketCgroup")).collect();
            ruleset.chains.insert("early".to_owned(), Chain { base: Some(base), rules });
        }
        ruleset
    }

    /// A ruleset that differs from `from` here and there.
    fn neighbour(&mut self, from: &Ruleset) -> Ruleset {
        let mut next = from.clone();
        for chain in next.chains.values_mut() {
            for _ in 0..self.below(3) {
                if chain.rules.is_empty() {
                    break;
                }
                let (a, b) =
                    (self.below(chain.rules.len() as u64) as usize, self.below(chain.rules.len() as u64) as usize);
                match self.below(3) {
                    0 => drop(chain.rules.remove(a)),
                    1 => chain.rules.swap(a, b),
                    _ => chain.rules.insert(a, chain.rules[b].clone()),
                }
            }
            if let Some(base) = &mut chain.base
                && self.chance(3)
            {
                base.policy = ChainPolicy::Drop;
            }
        }
        for set in next.sets.values_mut() {
            if let Some(dynamic) = &mut set.dynamic {
                dynamic.size += u32::from(self.chance(4));
            } else if self.chance(2) {
                set.elements = self.elements(&set.key, set.interval, set.map, &[]);
            } else if self.chance(3) && !set.elements.needs_interval() {
                set.interval = !set.interval;
            }
        }
        next
    }
}

/// Whether two elements have a value in common.
fn overlap(one: &ElementKey, other: &ElementKey) -> bool {
    one.0.iter().zip(&other.0).all(|(a, b)| a.0.number() <= b.1.number() && b.0.number() <= a.1.number())
}

/// The elements one by one.
fn entries(elements: &Elements) -> Vec<ElementKey> {
    match elements {
        Elements::V4(ranges) => {
            ranges.ranges().iter().map(|(start, end)| ElementKey(vec![((*start).into(), (*end).into())])).collect()
        }
        Elements::V6(ranges) => {
            ranges.ranges().iter().map(|(start, end)| ElementKey(vec![((*start).into(), (*end).into())])).collect()
        }
        Elements::Keys(keys) => keys.keys().cloned().collect(),
    }
}

/// The sets that a rule may use, with the keys that are looked up in them.
type Usable = Vec<(String, Vec<Key>, Kind)>;

/// What a set is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Map,
    Dynamic,
}

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

/// Whether the IR has a shorter word for a part of the rule: only such rules read back in another spelling.
fn has_synonym(rule: &Rule) -> bool {
    let compared = |key: Key| {
        rule.statements.iter().any(|statement| {
            matches!(statement,
        Statement::Match { key: there, negated: false, value: Value::Is(_) } if *there == key)
        })
    };
    let keys = || {
        rule.statements.iter().flat_map(|statement| match statement {
            Statement::Match { key, .. } => std::slice::from_ref(key),
            Statement::Lookup { keys, .. } | Statement::Vmap { keys, .. } | Statement::Meter { keys, .. } => keys,
            _ => &[],
        })
    };
    let transport = compared(Key::L4Proto) || keys().any(|key| key.transport().is_some());
    let portless = keys().any(|key| matches!(key, Key::Port(None, _)));
    compared(Key::NfProto)
        || compared(Key::L4Proto)
        || transport && portless
        || rule.statements.iter().any(|statement| match statement {
            // To leave all bits is to set or to clear none.
            Statement::MarkClear(0) => true,
            // A prefix of a number is read as a range.
            Statement::Match { key, value: Value::Prefix(..), .. } if key.data_type().host_order() => true,
            Statement::Match { value: Value::Prefix(datum, bits), .. } => {
                let size = datum.bytes().len();
                let end = usize::from(*bits).div_ceil(8);
                let spare = 8 * end - usize::from(*bits);
                let tail = datum.bytes()[end..].iter().any(|byte| *byte != 0)
                    || end > 0 && datum.bytes()[end - 1].trailing_zeros() < spare as u32;
                tail || usize::from(*bits) == 8 * size
            }
            _ => false,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A rule says the same after netlink and back, and its canonical form is one.
    #[test]
    fn a_rule_comes_back_as_it_was(seed: u64) {
        let mut random = Random(seed);
        let keys = vec![Key::L4Proto, Key::Port(None, Side::Source)];
        let sets = vec![("s".to_owned(), keys.clone(), Kind::Plain), ("d".to_owned(), keys, Kind::Dynamic)];
        let rule = random.rule(&sets, &["c".to_owned()]);
        let once = canonical_rule(&rule);
        prop_assert_eq!(&canonical_rule(&once), &once);
        prop_assert!(!once.statements.iter().any(|statement| matches!(statement, Statement::Foreign(_))), "{:?} {:?}", rule, once);
        if !has_synonym(&rule) {
            prop_assert_eq!(&once, &rule);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any plan from any ruleset to any other is legal step by step and ends where it should.
    #[test]
    fn a_plan_leads_where_it_should(seed: u64) {
        let mut random = Random(seed);
        let mut memory = Memory::default();
        let mut ruleset = random.ruleset();
        for step in 0..3 {
            let before = memory.load(&Read::Everything).unwrap();
            let mut after = before;
            // A second plan removes what packets could still have been on their way through.
            for _ in 0..2 {
                if let Some(batch) = plan(&after, &ruleset) {
                    let failed = |error| TestCaseError::fail(format!("step {step}: {error} in {batch:#?}"));
                    memory.commit(&batch).map_err(failed)?;
                }
                after = memory.load(&Read::Everything).unwrap();
            }
            prop_assert_eq!(&after.ruleset, &canonical(&ruleset));
            prop_assert_eq!(plan(&after, &ruleset), None);
            ruleset = if random.chance(2) { random.neighbour(&ruleset) } else { random.ruleset() };
        }
    }
}

/// Reads bytes as a dump of our table.
fn read(bytes: &[u8]) -> Result<nodewall::nft::change::Loaded, Malformed> {
    let mut snapshot = Snapshot::default();
    for message in messages(bytes)? {
        acknowledgement(&message)?;
        snapshot.take(&message)?;
    }
    let sets = snapshot.sets_to_read(|_| true);
    snapshot.finish(1, &sets)
}

/// What we send has the form of what the kernel dumps. Whatever becomes of its bytes, reading them ends, in a table or
/// an error.
#[test]
fn bytes_that_are_not_netlink_are_an_error() {
    let (mut fine, mut refused) = (0, 0);
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut ruleset = random.ruleset();
        // Anonymous sets have their names from the kernel, so that without it they are all alike.
        for chain in ruleset.chains.values_mut() {
            chain.rules.retain(|rule| !format!("{rule:?}").contains("Anonymous"));
        }
        let batch = plan(&nodewall::nft::change::Loaded::default(), &ruleset).unwrap();
        let sent = encode(&batch, 7).bytes;
        // For the fuzzer to begin with.
        if let Some(corpus) = std::env::var_os("CORPUS") {
            std::fs::create_dir_all(&corpus).unwrap();
            std::fs::write(std::path::Path::new(&corpus).join(format!("sent-{seed}")), &sent).unwrap();
        }
        let whole = read(&sent).unwrap();
        assert_eq!(whole.ruleset.sets, canonical(&ruleset).sets);
        assert_eq!(whole.foreign, Vec::<String>::new());
        for _ in 0..200 {
            let mut bytes = sent.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = match random.below(3) {
                    0 => bytes[at] ^ 1 << random.below(8),
                    1 => random.next() as u8,
                    _ => *random.pick(&[0, 1, 4, 0x7f, 0xff]),
                };
            }
            if random.chance(4) {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            match read(&bytes) {
                Ok(_) => fine += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(fine > 100 && refused > 100, "{fine} read, {refused} refused");
}

/// The kernel takes what memory takes, and has afterwards what memory has.
#[test]
fn the_kernel_and_memory_agree_on_plans() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        for seed in 0..60 {
            let mut random = Random(seed);
            let mut ruleset = random.ruleset();
            for step in 0..4 {
                let applied = apply(&mut kernel, &ruleset, None).unwrap_or_else(|error| {
                    let there = kernel.load(&Read::Everything).unwrap();
                    let chains = (&there.ruleset.chains, &canonical(&ruleset).chains);
                    panic!("seed {seed} step {step}: {error} {:#?} {chains:#?}", std::error::Error::source(&error))
                });
                let mut memory = Memory::default();
                apply(&mut memory, &ruleset, None).unwrap();
                let memory = memory.load(&Read::Everything).unwrap();
                assert_eq!(applied.loaded.ruleset, memory.ruleset, "seed {seed} step {step}");
                let again = apply(&mut kernel, &ruleset, Some(&applied.loaded)).unwrap();
                assert_eq!(again.changes, 0);
                ruleset = if random.chance(2) { random.neighbour(&ruleset) } else { random.ruleset() };
            }
        }
    });
}

/// Single changes, legal or not: both say the same of each, and have the same afterwards.
#[test]
fn the_kernel_and_memory_refuse_the_same() {
    in_namespace(|| {
        let mut kernel = Netlink::open().unwrap();
        let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
        for seed in 0..60 {
            let mut random = Random(seed);
            let mut memory = Memory::default();
            let start = random.ruleset();
            // From nothing, so that both count handles by the same order of rules.
            let _ = kernel.commit(&Batch { generation: None, changes: vec![Change::DeleteTable] });
            for kernel in [&mut kernel as &mut dyn Kernel, &mut memory] {
                apply(kernel, &start, None).unwrap();
            }
            for step in 0..30 {
                let kinds = random.next();
                let mut answers = Vec::new();
                let mut said = Vec::new();
                for kernel in [&mut kernel as &mut dyn Kernel, &mut memory] {
                    let loaded = kernel.load(&Read::Everything).unwrap();
                    let change = Random(kinds).change(&loaded);
                    said.push(format!("{change:?}"));
                    answers.push(
                        match kernel.commit(&Batch { generation: Some(loaded.generation), changes: vec![change] }) {
                            Ok(()) => "taken".to_owned(),
                            Err(Error::Refused { errno, .. }) => format!("{errno:?}"),
                            Err(error) => panic!("seed {seed} step {step}: {error}"),
                        },
                    );
                }
                assert_eq!(answers[0], answers[1], "seed {seed} step {step}: {said:#?}");
                *refusals.entry(answers[0].clone()).or_default() += 1;
                let (there, here) = (kernel.load(&Read::Everything).unwrap(), memory.load(&Read::Everything).unwrap());
                assert_eq!(there.ruleset, here.ruleset, "seed {seed} step {step}: {said:#?}");
            }
        }
        println!("{refusals:?}");
        assert!(refusals["taken"] > 100 && refusals.len() >= 5, "{refusals:?}");
    });
}

impl Random {
    /// One change to what is loaded: often one that cannot be.
    fn change(&mut self, loaded: &nodewall::nft::change::Loaded) -> Change {
        let chains: Vec<String> = ["c0", "c1", "c2", "input", "output", "nowhere"].map(str::to_owned).to_vec();
        let sets: Vec<String> = ["s0", "s1", "s2", "nothing"].map(str::to_owned).to_vec();
        let chain = self.pick(&chains).clone();
        let name = self.pick(&sets).clone();
        let handles: Vec<u64> =
            loaded.rules.get(&chain).map(|rules| rules.iter().map(|rule| rule.handle).collect()).unwrap_or_default();
        let there = loaded.ruleset.sets.get(&name).cloned();
        let dynamic = there.as_ref().is_some_and(|set| set.dynamic.is_some());
        let handle = if handles.is_empty() { None } else { Some(*self.pick(&handles)) };
        match self.below(14) {
            11 => Change::AddSet { name, set: self.dynamic().1 },
            12 => {
                let hook = *self.pick(&Hook::ALL);
                // Without a device later kernels take a chain at ingress, and earlier ones do not.
                let device = (hook == Hook::Ingress || self.chance(3)).then(|| Datum::name("lo"));
                let base = BaseChain { hook, priority: 3, policy: ChainPolicy::Accept, device };
                Change::AddChain { name: format!("base_{}", hook.name()), base: Some(base) }
            }
            // Rules go into chains of any hook, some of which have no socket.
            13 => {
                let key = *self.pick(&[Key::IpAddr(Family::V4, Side::Source), Key::SocketCgroup(2), Key::SocketUser]);
                let meter = Statement::Meter { keys: vec![key], set: name, limit: self.limit() };
                let is = Statement::Match { key, negated: false, value: Value::Is(self.datum(key.data_type())) };
                let jump = Statement::Verdict(Verdict::Jump((*self.pick(&["c0", "c1"])).to_owned()));
                let reject = Statement::Reject(Reject::AdminProhibited);
                let statement = self.pick(&[meter, is, jump, reject, Statement::Notrack]).clone();
                let base = self.pick(&Hook::ALL).name();
                let chain = if self.chance(2) { chain } else { format!("base_{base}") };
                let rule = Rule { statements: vec![statement], comment: None };
                Change::AddRule { chain, rule, before: None, interval_sets: Default::default() }
            }
            0 => Change::AddTable,
            1 => Change::AddChain { name: chain, base: None },
            2 => Change::DeleteChain { name: chain },
            3 => Change::FlushChain { name: chain },
            4 | 5 => {
                let statements = match self.below(3) {
                    0 => vec![Statement::Verdict(Verdict::Jump(self.pick(&chains).clone()))],
                    1 => vec![Statement::Lookup {
                        keys: vec![Key::IpAddr(Family::V4, Side::Source)],
                        negated: false,
                        set: SetRef::Named(name),
                    }],
                    _ => vec![Statement::Counter],
                };
                Change::AddRule {
                    chain,
                    rule: Rule { statements, comment: None },
                    before: handle.filter(|_| self.chance(2)),
                    interval_sets: Default::default(),
                }
            }
            6 => Change::DeleteRule { chain, handle: handle.unwrap_or(1 << 40) },
            7 => Change::AddSet {
                name,
                set: Set {
                    key: vec![DataType::Ipv4Addr],
                    interval: true,
                    map: false,
                    dynamic: None,
                    elements: Elements::V4([(5, 9)].into_iter().collect()),
                },
            },
            8 => Change::DeleteSet { name },
            9 | 10 if dynamic => Change::AddTable,
            9 => {
                let set = there.unwrap_or(Set {
                    key: vec![DataType::Ipv4Addr],
                    interval: true,
                    map: false,
                    dynamic: None,
                    elements: Elements::V4(Default::default()),
                });
                let old = set.elements.clone();
                let mut set = set.with(self.elements(&set.key, set.interval, set.map, &[]));
                if set.elements.is_empty() {
                    set.elements = Elements::V4(Default::default());
                }
                // The kernel notices an overlap of concatenated ranges only where an end of the new one is in the old one, and takes
                // one without an end for one up to the next.
                let (there, added) = (entries(&old), entries(&set.elements));
                let overlaps = |key: &ElementKey| there.iter().any(|known| overlap(known, key));
                let open = |key: &ElementKey| key.0.iter().any(|(_, end)| end.bytes().iter().all(|byte| *byte == 0xff));
                let hidden = |key: &ElementKey| overlaps(key) && (key.0.len() > 1 || open(key));
                let unnoticed = set.interval && added.iter().any(hidden);
                if set.elements.is_empty() || unnoticed { Change::AddTable } else { Change::AddElements { name, set } }
            }
            _ => match there {
                Some(set) if !set.elements.is_empty() => Change::DeleteElements { name, set },
                _ => Change::AddTable,
            },
        }
    }
}
