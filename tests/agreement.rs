//! The compiled rules mean what the policy means: generated policies and packets, decided by `simulate::decide` and by
//! running the compiled ruleset, with the same end. The kernel is asked by tests/oracle.rs.
//!
//! `NODEWALL_SEED=N` repeats a run, `NODEWALL_CASES=N` makes it longer; both are printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod generate;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use generate::Trial;
use generate::packet::{Points, Sketch, sketch};
use generate::policy::{NAMES, POOL_V4, POOL_V6, deny_everything, effective, labels};
use nodewall::compile::stats::{Place as Stop, Row, stats};
use nodewall::compile::{compile, rule_of};
use nodewall::net::addr::AddrSet;
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::protocol::{L4Detail, L4Match, Protocol};
use nodewall::nft::ir::{Reject, Ruleset};
use nodewall::nft::longest::Met;
use nodewall::nft::text;
use nodewall::policy::effective::{
    Addresses, Effective, EffectivePolicy, EffectiveRule, EffectiveTier, Expected, Pattern, RuleId,
};
use nodewall::policy::model::{Action, Mode, Stage, TierDefault};
use nodewall::policy::selector::Selector;
use nodewall::policy::settings::{Default as InterfaceDefault, LogSettings};
use nodewall::simulate::ruleset::{End, Run, travel};
use nodewall::simulate::view::View;
use nodewall::simulate::{
    ConntrackState, Decision, FailsafeStep, How, Origin, Outcome, Packet, Reason, RuleStep, StageEnd, Step, decide,
    is_loopback, recognise, trace,
};
use nodewall::text::place::Place;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// How many packets are tried on each policy.
const PACKETS: usize = 24;
/// How many policies a plain run tries.
const CASES: u32 = 400;

#[test]
fn compiled_rules_decide_as_the_policy_does() {
    let Trial { seed, cases, mut runner } = Trial::of(CASES);
    println!("seed {seed}, {cases} policies, {PACKETS} packets each");
    let case = (effective(), prop::collection::vec(sketch(), PACKETS));
    let seen = RefCell::new(BTreeMap::new());
    let count = |what: &'static str| *seen.borrow_mut().entry(what).or_insert(0u32) += 1;
    let result = runner.run(&case, |(effective, sketches)| {
        let ruleset = compile(&effective);
        let points = Points::of(&effective);
        let rows = stats(&effective, &ruleset);
        // IPoIB has no Ethernet header, and kernels read one that is not there (CVE-2026-53131).
        prop_assert!(!text::render(&ruleset).contains("ether"));
        if ruleset.sets.iter().any(|(name, set)| set.map && !name.contains("_interfaces/")) {
            count("policies with a verdict map");
        }
        for (kind, word) in [
            ("policies told apart by sources", ".sources_4-"),
            ("policies told apart by destinations", ".destinations_4-"),
            ("policies told apart by ports", "-ports-"),
            ("policies told apart by source ports", "-source-ports-"),
            ("policies told apart by users", ".users-"),
            ("policies told apart by groups", ".groups-"),
            ("policies told apart by units", ".units-"),
        ] {
            if ruleset.chains.keys().any(|name| name.contains(word)) {
                count(kind);
            }
        }
        for sketch in &sketches {
            let (decision, ran) = agree(&effective, &ruleset, &points, sketch)?;
            if within_stats(&effective, &rows, &points.packet(&effective, sketch), &ran)? {
                count("as long a way as the figures say");
            }
            count(match (&decision.reason, decision.outcome) {
                (Reason::Essential(_), _) => "essential",
                (Reason::Rule(_), Outcome::Accepted) => "rule accepted",
                (Reason::Rule(_), Outcome::Dropped) => "rule dropped",
                (Reason::Rule(_), Outcome::Rejected) => "rule rejected",
                (Reason::TierDefault(_), _) => "tier default",
                (Reason::InterfaceDefault, _) => "interface default",
                (Reason::NoPolicy, _) => "no policy",
            });
            for step in trace(&effective, &points.packet(&effective, sketch)).steps {
                match step {
                    Step::Stage(Stage::Untracked, ..) => count("stage untracked"),
                    Step::Stage(Stage::Prednat, ..) => count("stage prednat"),
                    Step::Stage(Stage::Forward, ..) => count("stage forward"),
                    Step::StageEnd(_, StageEnd::Skipped) => count("stage skipped"),
                    Step::Early => count("early"),
                    Step::Rule(_, RuleStep::Mismatch(_)) => {}
                    Step::Rule(rule, _) if rule.process.is_some() => count("rule of a process"),
                    Step::Rule(rule, _) if rule.limit.is_some() => count("rule with a limit"),
                    _ => {}
                }
            }
            if !decision.audited.is_empty() {
                count("audited");
            }
        }
        Ok(())
    });
    println!("{:#?}", seen.borrow());
    if let Err(failure) = result {
        panic!("seed {seed}: {failure}");
    }
    // Agreement about packets that never get past the essentials would say little.
    let seen = seen.into_inner();
    let enough = |what: &str| cases / if what.starts_with("policies told apart") { 100 } else { 20 };
    assert!(seen.len() == 24 && seen.iter().all(|(what, times)| *times >= enough(what)), "{seen:#?}");
}

/// Router advertisements and answers of DHCP servers, of which it is the guards' business on which interfaces they are essentials.
#[test]
fn what_guards_keep_from_the_essentials_is_decided_alike() {
    let Trial { seed, cases, mut runner } = Trial::of(CASES / 2);
    let seen = RefCell::new(BTreeMap::new());
    let result = runner.run(&effective(), |effective| {
        let ruleset = compile(&effective);
        for name in &NAMES[1..] {
            for (word, packet) in of_links(name) {
                let (decision, _) = agree_on(&effective, &ruleset, &packet, &View::new(&effective, &packet))?;
                let known = recognise(&effective, &packet.interface, None);
                let withheld = effective.withheld(known.labels);
                let withheld = if word == "advertisement" { withheld.advertisements } else { withheld.dhcp };
                let essential =
                    matches!(decision.reason, Reason::Essential(_)) && decision.outcome == Outcome::Accepted;
                prop_assert!(!withheld || !essential, "{decision:?} {packet:?}");
                let what = match (withheld, decision.outcome) {
                    (false, _) => "an essential",
                    (true, Outcome::Accepted) => "let in by a guard or after it",
                    (true, _) => "refused by a guard or after it",
                };
                *seen.borrow_mut().entry((word, what)).or_insert(0u32) += 1;
            }
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("seed {seed}: {failure}");
    }
    let seen = seen.into_inner();
    println!("seed {seed}, {cases} policies: {seen:#?}");
    assert!(seen.len() == 9 && seen.values().all(|times| *times >= cases / 40), "{seen:#?}");
}

/// One packet of each kind that may be an essential on one link and none on another.
fn of_links(name: &str) -> [(&'static str, Packet); 3] {
    let packet = |source: &str, destination: &str, protocol| Packet {
        direction: Direction::Ingress,
        interface: InterfaceName::new(name).unwrap(),
        kind: None,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: Some(protocol),
        ports: None,
        icmp: None,
        hop_limit: 255,
        state: ConntrackState::New,
        translated: None,
        forward: None,
        origin: Origin::Kernel,
    };
    let advertisement = Packet {
        icmp: Some((134, 0)),
        state: ConntrackState::Untracked,
        ..packet("fe80::1", "ff02::1", Protocol::ICMPV6)
    };
    let lease = Packet { ports: Some((67, 68)), ..packet("10.0.0.1", "255.255.255.255", Protocol::UDP) };
    let lease6 = Packet { ports: Some((547, 546)), ..packet("fe80::1", "fe80::2", Protocol::UDP) };
    [("advertisement", advertisement), ("lease", lease), ("lease of IPv6", lease6)]
}

/// A TCP packet that comes in by an interface.
fn tcp_in(name: &'static str, kind: Option<&'static str>) -> Sketch {
    Sketch {
        direction: Direction::Ingress,
        v4: true,
        name,
        kind,
        protocol: 6,
        readable: true,
        hop_limit: 64,
        state: ConntrackState::New,
        numbers: (3, 3, 5, 5, 0, 0, 0),
        exit: None,
        translated: None,
        origin: 0,
    }
}

/// Found by seed 20260731: the compiler left out a pattern that leads to the unknown interface's chain, and a wider one
/// behind it took the interface.
#[test]
fn a_pattern_for_unknown_interfaces_shadows_the_wider_one_behind_it() {
    let expected = |pattern, role| Expected { pattern, role, labels: labels(role, false) };
    let narrow = Pattern::Name(InterfaceName::new("cali1").unwrap());
    let allow_mgmt = |(role, direction)| {
        let default = if role == Role::Mgmt { InterfaceDefault::Allow } else { InterfaceDefault::Deny };
        ((role, direction), default)
    };
    let keys = Role::ALL.iter().flat_map(|role| Direction::BOTH.map(|direction| (*role, direction)));
    let effective = Effective {
        rails: std::collections::BTreeMap::new(),
        remembered: std::collections::BTreeMap::new(),
        mode: Mode::Enforce,
        interfaces: Vec::new(),
        expected: vec![
            expected(narrow, Role::Unknown),
            expected(Pattern::Prefix("cali".to_owned()), Role::Mgmt),
            expected(Pattern::Kind("veth".to_owned()), Role::Unknown),
        ],
        unknown: labels(Role::Unknown, false),
        failsafe: Vec::new(),
        tiers: Vec::new(),
        named: std::sync::Arc::default(),
        defaults: keys.map(allow_mgmt).collect(),
        early: std::collections::BTreeSet::new(),
        accept_mark: 0x10,
        drop_invalid: true,
        log: LogSettings { group: 1, denied: false, rate: 1, burst: 1 },
    };
    let sketch = tcp_in("cali1", Some("veth"));
    let (ruleset, points) = (compile(&effective), Points::of(&effective));
    for (name, outcome) in [("cali1", Outcome::Dropped), ("cali12", Outcome::Accepted), ("veth9", Outcome::Dropped)] {
        let sketch = Sketch { name, ..sketch.clone() };
        assert_eq!(decide(&effective, &points.packet(&effective, &sketch)).outcome, outcome, "{name}");
        agree(&effective, &ruleset, &points, &sketch).unwrap();
    }
}

/// Ten rules of which each names hundreds of ranges make an address map that is cut into shards; who is in none of a shard's ranges
/// comes back for the rules behind.
#[test]
fn long_lists_of_peers_decide_as_their_rules_do() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let rules: Vec<EffectiveRule> = (0..14u32)
        .map(|number| {
            let v4 = (0..300).map(|_| next(60_000) as u32).map(|at| (POOL_V4 + at, POOL_V4 + at + at % 7));
            let v4 = v4.collect();
            let v6 =
                (0..300).map(|_| u128::from(next(60_000))).map(|at| (POOL_V6 + at, POOL_V6 + at + at % 5)).collect();
            let action = [Action::Allow, Action::Deny, Action::Reject, Action::Pass][number as usize % 4];
            let id = RuleId { policy: "long".into(), number: number + 1 };
            EffectiveRule {
                id,
                action,
                from: Addresses::Named(format!("peers-{number}"), AddrSet { v4, v6 }),
                ..deny_everything()
            }
        })
        .chain([EffectiveRule {
            id: RuleId { policy: "long".into(), number: 15 },
            action: Action::Allow,
            l4: L4Match::Only([(Protocol::TCP, L4Detail::All)].into()),
            ..deny_everything()
        }])
        .collect();
    let policy = EffectivePolicy {
        name: "long".to_owned(),
        stage: Stage::Host,
        expires: None,
        mode: Mode::Enforce,
        interfaces: Selector::All,
        ingress: Some(rules),
        egress: None,
        place: Place::file("generated.toml"),
    };
    let tier = EffectiveTier { name: "tier".to_owned(), default: TierDefault::Pass, policies: vec![policy] };
    let keys = Role::ALL.iter().flat_map(|role| Direction::BOTH.map(|direction| (*role, direction)));
    let effective = Effective {
        rails: std::collections::BTreeMap::new(),
        remembered: std::collections::BTreeMap::new(),
        mode: Mode::Enforce,
        interfaces: Vec::new(),
        expected: Vec::new(),
        unknown: labels(Role::Unknown, false),
        failsafe: Vec::new(),
        tiers: vec![tier],
        named: std::sync::Arc::default(),
        defaults: keys.map(|key| (key, InterfaceDefault::Deny)).collect(),
        early: BTreeSet::new(),
        accept_mark: 0x10,
        drop_invalid: true,
        log: LogSettings { group: 1, denied: false, rate: 1, burst: 1 },
    };
    let (ruleset, points) = (compile(&effective), Points::of(&effective));
    let shards = ruleset.sets.values().filter(|set| set.map && set.interval).count();
    assert!(shards > 8, "{shards}");
    assert!(ruleset.sets.values().all(|set| set.elements.len() <= 512 || !set.map));
    let sketch = tcp_in("eth1", None);
    for _ in 0..4000 {
        let numbers = (next(1_000_000) as usize, 3, 5, 5, 0, 0, 0);
        let protocol = if next(2) == 0 { 6 } else { 47 };
        agree(&effective, &ruleset, &points, &Sketch { v4: next(2) == 0, protocol, numbers, ..sketch.clone() })
            .unwrap();
    }
}

fn agree(
    effective: &Effective,
    ruleset: &Ruleset,
    points: &Points,
    sketch: &Sketch,
) -> Result<(Decision, Run), TestCaseError> {
    let packet = points.packet(effective, sketch);
    let mut view = View::new(effective, &packet);
    if packet.protocol.is_some_and(|protocol| !protocol.has_ports()) {
        // What no policy can have meant: bytes of another header that read like one of its ports.
        view.words = view.words.map(|(first, _)| {
            let first = if packet.icmp.is_some() { first } else { points.port(sketch.numbers.5) };
            (first, points.port(sketch.numbers.6))
        });
    }
    agree_on(effective, ruleset, &packet, &view)
}

/// The policy and its rules agree on a packet.
fn agree_on(
    effective: &Effective,
    ruleset: &Ruleset,
    packet: &Packet,
    view: &View,
) -> Result<(Decision, Run), TestCaseError> {
    let decision = decide(effective, packet);
    let ran = travel(ruleset, view).map_err(|broken| TestCaseError::fail(broken.to_string()))?;
    let outcome = match ran.end {
        End::Accepted => Outcome::Accepted,
        End::Dropped => Outcome::Dropped,
        End::Rejected(_) => Outcome::Rejected,
    };
    prop_assert_eq!(decision.outcome, outcome, "{:?}\nrules: {:?}\n{:?}\n{:?}", decision, ran, packet, view);
    // A reset answers TCP and nothing else (nft_reject_inet.c sends none for another protocol).
    if let End::Rejected(reject) = ran.end {
        prop_assert_eq!(reject == Reject::TcpReset, packet.protocol == Some(Protocol::TCP), "{:?}", packet);
    }
    // Counters and logs name the rules that the trace names, in the same order and each once.
    let matched = matched_rules(effective, packet);
    let counted: Vec<RuleId> = ran.counted.iter().filter_map(|comment| rule_of(comment)).collect();
    let ids: Vec<RuleId> = matched.iter().map(|(id, _)| id.clone()).collect();
    prop_assert_eq!(ids, counted, "{:?}\nrules: {:?}\n{:?}", decision, ran, packet);
    let logged: Vec<RuleId> = ran.logged.iter().filter_map(|prefix| rule_of(prefix)).collect();
    let ids: Vec<RuleId> = matched.into_iter().filter(|(_, logs)| *logs).map(|(id, _)| id).collect();
    prop_assert_eq!(ids, logged, "{:?}\nrules: {:?}\n{:?}", decision, ran, packet);
    Ok((decision, ran))
}

/// A new packet never meets more than `render --stats` says; whether it met as many rules.
fn within_stats(effective: &Effective, rows: &[Row], packet: &Packet, ran: &Run) -> Result<bool, TestCaseError> {
    if packet.state != ConntrackState::New || is_loopback(effective, packet) {
        return Ok(false);
    }
    // Where there is nothing of ours there is no row.
    let met = |stop, direction, name, kind: Option<&str>| {
        let words = match recognise(effective, name, kind).how {
            How::Known(_) => name.to_string(),
            How::Expected(Pattern::Name(name)) => name.to_string(),
            How::Expected(Pattern::Prefix(prefix)) => format!("{prefix}*"),
            How::Expected(Pattern::Kind(kind)) => format!("kind {kind}"),
            How::Unknown => "any other".to_owned(),
        };
        let row =
            rows.iter().find(|row| row.place == stop && row.direction == direction && row.interfaces.contains(&words));
        row.map_or(Met::default(), |row| row.met)
    };
    let (name, kind) = (&packet.interface, packet.kind.as_deref());
    let mut most = met(Stop::Stage(Stage::Untracked), packet.direction, name, kind);
    if packet.direction == Direction::Ingress {
        for stop in [Stop::EarlyHook, Stop::Early, Stop::Stage(Stage::Prednat)] {
            most = most.then(met(stop, Direction::Ingress, name, kind), 0);
        }
    }
    let last = match &packet.forward {
        None => met(Stop::Stage(Stage::Host), packet.direction, name, kind),
        Some(exit) => {
            let forward = Stop::Stage(Stage::Forward);
            let by_input = met(forward, Direction::Ingress, name, kind);
            prop_assert!(ran.met.rules <= most.then(by_input, 0).rules);
            met(forward, Direction::Egress, &exit.interface, exit.kind.as_deref())
        }
    };
    most = most.then(last, 0);
    let Met { chains, rules, lookups, depth } = ran.met;
    let within = chains <= most.chains && rules <= most.rules && lookups <= most.lookups && depth <= most.depth;
    prop_assert!(within, "met {:?}, at most {:?}\n{:?}", ran.met, most, packet);
    Ok(rules == most.rules)
}

/// The rules that matched on the way, and whether each of them logs: if it asks for it, or if it would have denied had
/// it not been for audit.
fn matched_rules(effective: &Effective, packet: &Packet) -> Vec<(RuleId, bool)> {
    let mut matched = Vec::new();
    for step in trace(effective, packet).steps {
        let (rule, audited) = match step {
            Step::Failsafe(entry, FailsafeStep::Accepted) => (&entry.rule, false),
            Step::Rule(rule, RuleStep::Audited(_)) => (rule, true),
            Step::Rule(rule, RuleStep::Decided(_) | RuleStep::Passed | RuleStep::Logged) => (rule, false),
            _ => continue,
        };
        let denies = matches!(rule.action, Action::Deny | Action::Reject);
        let would_deny = denies && (audited || effective.mode == Mode::Audit);
        matched.push((rule.id.clone(), rule.action == Action::Log || rule.log.is_some() || would_deny));
    }
    matched
}
