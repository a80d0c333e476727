//! The policy's meaning by example: one policy in, one packet in, what happens and why.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::IpAddr;

use ConntrackState::{Established, Invalid, New, Related, Untracked};
use Outcome::{Accepted, Dropped, Rejected};

use super::*;
use crate::net::addr::{AddrSet, Family};
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::effective::{
    Addresses, EffectiveFailsafe, EffectivePolicy, EffectiveRule, EffectiveTier, Expected, Interface, Pattern,
    ProcessMatch, RuleId,
};
use crate::policy::model::{Action, Mode, Stage, TierDefault};
use crate::policy::selector::{Labels, Selector};
use crate::policy::settings::{Default, LogSettings};
use crate::text::place::Place;

fn labels(role: Role) -> Labels {
    [("role".to_owned(), role.name().to_owned())].into()
}

pub(super) fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).unwrap()
}

/// eth0 is mgmt and ib0 a rail; cali* will be pods; ingress is denied by default but for pods, egress allowed.
pub(super) fn node(tiers: Vec<EffectiveTier>) -> Effective {
    let interface = |index: u32, text: &str, role: Role| Interface {
        name: name(text),
        index,
        role,
        why: "example".to_owned(),
        labels: labels(role),
        coverage: std::collections::BTreeMap::new(),
    };
    let default = |role: Role, direction: Direction| {
        let allow = role == Role::Pod || direction == Direction::Egress;
        ((role, direction), if allow { Default::Allow } else { Default::Deny })
    };
    Effective {
        rails: std::collections::BTreeMap::new(),
        remembered: std::collections::BTreeMap::new(),
        mode: Mode::Enforce,
        interfaces: vec![
            interface(2, "eth0", Role::Mgmt),
            interface(3, "ib0", Role::Rail),
            interface(1, "lo", Role::Loopback),
        ],
        expected: vec![
            Expected { pattern: Pattern::Name(name("cali0")), role: Role::Overlay, labels: labels(Role::Overlay) },
            Expected { pattern: Pattern::Prefix("cali".to_owned()), role: Role::Pod, labels: labels(Role::Pod) },
            Expected { pattern: Pattern::Kind("veth".to_owned()), role: Role::Pod, labels: labels(Role::Pod) },
        ],
        unknown: labels(Role::Unknown),
        failsafe: Vec::new(),
        tiers,
        named: std::sync::Arc::default(),
        defaults: Role::ALL
            .iter()
            .flat_map(|role| Direction::BOTH.map(|direction| default(*role, direction)))
            .collect(),
        early: std::collections::BTreeSet::new(),
        accept_mark: 0x10,
        drop_invalid: true,
        log: LogSettings { group: 1, denied: false, rate: 1, burst: 1 },
    }
}

pub(super) fn tier(name: &str, default: TierDefault, policies: Vec<EffectivePolicy>) -> EffectiveTier {
    EffectiveTier { name: name.to_owned(), default, policies }
}

/// Governs ingress on every interface.
pub(super) fn policy(name: &str, rules: &[EffectiveRule]) -> EffectivePolicy {
    let rules = (1..).zip(rules).map(|(number, rule)| EffectiveRule { id: id(name, number), ..rule.clone() });
    EffectivePolicy {
        name: name.to_owned(),
        stage: Stage::Host,
        mode: Mode::Enforce,
        expires: None,
        interfaces: Selector::All,
        ingress: Some(rules.collect()),
        egress: None,
        place: Place::file("example.toml"),
    }
}

fn audit(policy: EffectivePolicy) -> EffectivePolicy {
    EffectivePolicy { mode: Mode::Audit, ..policy }
}

fn id(policy: &str, number: u32) -> RuleId {
    RuleId { policy: policy.into(), number }
}

/// A rule for every packet.
pub(super) fn rule(action: Action) -> EffectiveRule {
    EffectiveRule {
        id: id("unnamed", 1),
        place: Place::file("example.toml"),
        action,
        from: Addresses::Any,
        to: Addresses::Any,
        l4: L4Match::Any,
        source_ports: None,
        family: None,
        process: None,
        limit: None,
        log: None,
    }
}

pub(super) fn tcp(action: Action, port: u16) -> EffectiveRule {
    EffectiveRule { l4: only(Protocol::TCP, L4Detail::Ports(RangeSet::single(port))), ..rule(action) }
}

fn only(protocol: Protocol, detail: L4Detail) -> L4Match {
    L4Match::Only([(protocol, detail)].into())
}

/// New TCP to 10.0.0.1:22 on eth0.
fn packet() -> Packet {
    Packet {
        direction: Direction::Ingress,
        interface: name("eth0"),
        kind: None,
        source: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        protocol: Some(Protocol::TCP),
        ports: Some((40_000, 22)),
        icmp: None,
        hop_limit: 64,
        state: New,
        forward: None,
        translated: None,
        origin: Origin::Kernel,
    }
}

fn out(packet: Packet) -> Packet {
    Packet { direction: Direction::Egress, ..packet }
}

fn v6(packet: Packet) -> Packet {
    let (source, destination) = ("fe80::9".parse().unwrap(), "fd00::1".parse().unwrap());
    Packet { source, destination, ..packet }
}

fn icmp(protocol: Protocol, kind: u8, code: u8, hop_limit: u8) -> Packet {
    let packet = Packet { protocol: Some(protocol), ports: None, icmp: Some((kind, code)), hop_limit, ..packet() };
    if protocol == Protocol::ICMPV6 { v6(packet) } else { packet }
}

fn udp(source: u16, destination: u16) -> Packet {
    Packet { protocol: Some(Protocol::UDP), ports: Some((source, destination)), ..packet() }
}

fn decided(effective: &Effective, packet: &Packet) -> (Outcome, Reason) {
    let decision = decide(effective, packet);
    (decision.outcome, decision.reason)
}

/// Denies everything in and out, in the first tier.
fn wall() -> Effective {
    let both = EffectivePolicy { egress: Some(vec![rule(Action::Deny)]), ..policy("wall", &[rule(Action::Deny)]) };
    node(vec![tier("platform", TierDefault::Pass, vec![both])])
}

#[test]
fn no_policy_breaks_an_essential() {
    let dhcp6 = |packet: Packet, source: &str| Packet { source: source.parse().unwrap(), ..v6(packet) };
    let (v4, v6_) = (Protocol::ICMP, Protocol::ICMPV6);
    let examples = [
        ("loopback", Packet { interface: name("lo"), ..packet() }, true),
        ("established", Packet { state: Established, ..packet() }, true),
        ("related", Packet { state: Related, ..packet() }, true),
        ("untracked is nothing special", Packet { state: Untracked, ..packet() }, false),
        ("router advertisement in", icmp(v6_, 134, 0, 255), true),
        ("router advertisement out", out(icmp(v6_, 134, 0, 255)), false),
        ("neighbour solicitation in", icmp(v6_, 135, 0, 255), true),
        ("neighbour solicitation out", out(icmp(v6_, 135, 0, 255)), true),
        ("neighbour solicitation from beyond the link", icmp(v6_, 135, 0, 254), false),
        ("redirect", icmp(v6_, 137, 0, 255), false),
        ("listener query in", icmp(v6_, 130, 0, 1), true),
        ("listener query out", out(icmp(v6_, 130, 0, 1)), false),
        ("listener report out", out(icmp(v6_, 143, 0, 1)), true),
        ("ICMPv6 in IPv4 has no hop limit", Packet { source: packet().source, ..icmp(v6_, 135, 0, 255) }, false),
        ("type 135 of ICMP is another thing", icmp(v4, 135, 0, 255), false),
        ("fragmentation needed", icmp(v4, 3, 4, 64), true),
        ("host unreachable", icmp(v4, 3, 1, 64), false),
        ("packet too big", out(icmp(v6_, 2, 0, 64)), true),
        ("DHCP offer", udp(67, 68), true),
        ("DHCP request", out(udp(68, 67)), true),
        ("DHCP request to us", udp(68, 67), false),
        ("DHCP ports of TCP", Packet { ports: Some((67, 68)), ..packet() }, false),
        ("DHCPv6 reply", dhcp6(udp(547, 546), "fe80::1"), true),
        ("DHCPv6 reply from afar", dhcp6(udp(547, 546), "fd00::2"), false),
        ("DHCPv6 request", out(dhcp6(udp(546, 547), "fe80::1")), true),
        ("DHCPv4 ports in IPv6", dhcp6(udp(67, 68), "fe80::1"), false),
    ];
    for (what, packet, accepted) in examples {
        let (outcome, reason) = decided(&wall(), &packet);
        assert_eq!(outcome, if accepted { Accepted } else { Dropped }, "{what}: {reason:?}");
        assert_eq!(matches!(reason, Reason::Essential(_)), accepted, "{what}: {reason:?}");
    }
}

#[test]
fn loopback_addresses_come_from_loopback_only() {
    let open = node(vec![tier("platform", TierDefault::Pass, vec![policy("open", &[rule(Action::Allow)])])]);
    let to = |address: &str| {
        let destination: IpAddr = address.parse().unwrap();
        let source = if destination.is_ipv4() { packet().source } else { "fd00::9".parse().unwrap() };
        Packet { source, destination, ..packet() }
    };
    for address in ["127.0.0.1", "127.255.255.255", "::1"] {
        assert_eq!(decide(&open, &to(address)).outcome, Dropped, "{address}");
        let reversed = Packet { source: to(address).destination, destination: to(address).source, ..packet() };
        assert_eq!(decide(&open, &reversed).outcome, Dropped, "from {address}");
        assert_eq!(
            decide(&open, &Packet { interface: name("lo"), ..to(address) }).outcome,
            Accepted,
            "{address} on lo"
        );
        assert_eq!(decide(&open, &out(to(address))).outcome, Accepted, "out to {address}");
    }
    for address in ["126.255.255.255", "128.0.0.1", "::2"] {
        assert_eq!(decide(&open, &to(address)).outcome, Accepted, "{address}");
    }
    // The guard stands before the essentials that accept, and after established flows.
    let lease = Packet { destination: "127.0.0.1".parse().unwrap(), ..udp(67, 68) };
    assert_eq!(decide(&open, &lease).outcome, Dropped);
    assert_eq!(decide(&open, &Packet { state: Established, ..to("127.0.0.1") }).outcome, Accepted);
}

#[test]
fn invalid_packets_are_dropped_unless_switched_off() {
    let mut open = node(vec![tier("platform", TierDefault::Pass, vec![policy("open", &[rule(Action::Allow)])])]);
    let invalid = Packet { state: Invalid, ..packet() };
    assert_eq!(decided(&open, &invalid), (Dropped, Reason::Essential("invalid packet")));
    open.drop_invalid = false;
    assert_eq!(decided(&open, &invalid), (Accepted, Reason::Rule(id("open", 1))));
}

#[test]
fn failsafe_holds_before_the_first_tier_and_only_where_it_says() {
    let mut effective = wall();
    effective.failsafe = vec![EffectiveFailsafe {
        name: "ssh".to_owned(),
        direction: Direction::Ingress,
        interfaces: Selector::Equals("role".to_owned(), "mgmt".to_owned()),
        rule: EffectiveRule { id: id("failsafe:ssh", 1), ..tcp(Action::Allow, 22) },
        replies: vec![EffectiveRule { source_ports: Some(PortSet::single(22)), ..rule(Action::Allow) }],
    }];
    assert_eq!(decided(&effective, &packet()), (Accepted, Reason::Rule(id("failsafe:ssh", 1))));
    assert_eq!(decide(&effective, &Packet { ports: Some((1, 23)), ..packet() }).outcome, Dropped);
    assert_eq!(decide(&effective, &Packet { interface: name("ib0"), ..packet() }).outcome, Dropped);
    assert_eq!(decide(&effective, &out(packet())).outcome, Dropped);
    // The answers need it only where no flows are known; what begins a flow from there is asked about later.
    let answer = out(Packet { ports: Some((22, 40_000)), state: Established, ..packet() });
    let shut = EffectivePolicy { ingress: Some(vec![]), egress: Some(vec![rule(Action::Deny)]), ..policy("shut", &[]) };
    for stage in [Stage::Untracked, Stage::Host] {
        let failsafe = effective.failsafe.clone();
        let effective = Effective { failsafe, ..one_tier(vec![at(stage, shut.clone())]) };
        assert_eq!(decide(&effective, &answer).outcome, Accepted, "{stage:?}");
        let begins = Packet { state: New, ..answer.clone() };
        assert_eq!(decide(&effective, &begins).outcome == Accepted, stage == Stage::Untracked, "{stage:?}");
        let other = Packet { ports: Some((23, 40_000)), ..answer.clone() };
        assert_eq!(decide(&effective, &other).outcome == Accepted, stage == Stage::Host, "{stage:?}");
    }
}

#[test]
fn the_first_matching_rule_decides() {
    let rules = [tcp(Action::Log, 22), tcp(Action::Reject, 22), tcp(Action::Allow, 22), rule(Action::Deny)];
    let effective = node(vec![tier("platform", TierDefault::Pass, vec![policy("p", &rules)])]);
    let decision = decide(&effective, &packet());
    assert_eq!((decision.outcome, decision.reason), (Rejected, Reason::Rule(id("p", 2))));
    assert_eq!(decision.logged, [id("p", 1)]);
    let other = Packet { ports: Some((1, 80)), ..packet() };
    assert_eq!(decided(&effective, &other), (Dropped, Reason::Rule(id("p", 4))));
}

#[test]
fn pass_goes_to_the_next_tier_past_the_default_of_its_own() {
    let passing = policy("passing", &[tcp(Action::Pass, 22)]);
    let after = policy("after", &[rule(Action::Reject)]);
    let next = policy("next", &[rule(Action::Allow)]);
    let effective = node(vec![
        tier("platform", TierDefault::Deny, vec![passing, after]),
        tier("default", TierDefault::Pass, vec![next]),
    ]);
    assert_eq!(decided(&effective, &packet()), (Accepted, Reason::Rule(id("next", 1))));
    let other = Packet { ports: Some((1, 80)), ..packet() };
    assert_eq!(decided(&effective, &other), (Rejected, Reason::Rule(id("after", 1))));
}

#[test]
fn a_tier_denies_by_default_only_what_an_enforcing_policy_of_it_governed() {
    let with = |policies| node(vec![tier("t", TierDefault::Deny, policies)]);
    let pod = Packet { interface: name("cali7"), ..packet() };
    let denied = (Dropped, Reason::TierDefault("t".to_owned()));
    let untouched = (Accepted, Reason::InterfaceDefault);
    assert_eq!(decided(&with(vec![policy("p", &[])]), &pod), denied);
    assert_eq!(decided(&with(vec![audit(policy("p", &[]))]), &pod), untouched);
    assert_eq!(decided(&with(Vec::new()), &pod), untouched);
    let of_rails = Selector::Equals("role".to_owned(), "rail".to_owned());
    assert_eq!(decided(&with(vec![EffectivePolicy { interfaces: of_rails, ..policy("p", &[]) }]), &pod), untouched);
    let egress_only = EffectivePolicy { ingress: None, egress: Some(Vec::new()), ..policy("p", &[]) };
    assert_eq!(decided(&with(vec![egress_only.clone()]), &pod), untouched);
    assert_eq!(decided(&with(vec![egress_only]), &out(pod)), denied);
}

#[test]
fn an_audit_policy_says_what_it_would_have_done_and_changes_nothing() {
    let audited = audit(policy("a", &[tcp(Action::Log, 22), tcp(Action::Deny, 22), rule(Action::Allow)]));
    let passing = audit(policy("b", &[rule(Action::Pass)]));
    let effective =
        node(vec![tier("t", TierDefault::Pass, vec![audited, passing, policy("c", &[rule(Action::Allow)])])]);
    let decision = decide(&effective, &packet());
    assert_eq!((decision.outcome, decision.reason), (Accepted, Reason::Rule(id("c", 1))));
    assert_eq!(decision.audited, [(Reason::Rule(id("a", 2)), Dropped), (Reason::Rule(id("b", 1)), Accepted)]);
    assert_eq!(decision.logged, [id("a", 1)]);
}

#[test]
fn node_wide_audit_lets_everything_through_and_says_what_it_let_through() {
    let effective = Effective { mode: Mode::Audit, ..wall() };
    for (packet, reason) in [
        (packet(), Reason::Rule(id("wall", 1))),
        (Packet { state: Invalid, ..packet() }, Reason::Essential("invalid packet")),
    ] {
        let decision = decide(&effective, &packet);
        assert_eq!((decision.outcome, &decision.audited[..]), (Accepted, &[(reason, Dropped)][..]));
    }
    let accepted = decide(&effective, &Packet { state: Established, ..packet() });
    assert_eq!((accepted.outcome, accepted.audited.len()), (Accepted, 0));
}

#[test]
fn an_interface_is_known_or_expected_or_unknown() {
    let effective = node(Vec::new());
    for (interface, kind, role) in [
        ("eth0", Some("veth"), Role::Mgmt),
        ("cali0", None, Role::Overlay),
        ("cali01", None, Role::Pod),
        ("other0", Some("veth"), Role::Pod),
        ("other0", Some("bond"), Role::Unknown),
        ("cal", None, Role::Unknown),
    ] {
        let packet = Packet { interface: name(interface), kind: kind.map(str::to_owned), ..packet() };
        assert_eq!(recognise(&effective, &packet.interface, packet.kind.as_deref()).role, role, "{interface}");
        let outcome = if role == Role::Pod { Accepted } else { Dropped };
        assert_eq!(decided(&effective, &packet), (outcome, Reason::InterfaceDefault), "{interface}");
    }
    // The loopback device is loopback even if an override calls it something else.
    let mut odd = wall();
    odd.interfaces.iter_mut().for_each(|interface| interface.role = Role::Mgmt);
    assert_eq!(decide(&odd, &Packet { interface: name("lo"), ..packet() }).outcome, Accepted);
}

#[test]
fn every_condition_of_a_rule_must_hold() {
    let ten: AddrSet = ["10.0.0.0/8".parse::<ipnet::IpNet>().unwrap()].into_iter().collect();
    let named = |set: &AddrSet| Addresses::Named("s".to_owned(), set.clone());
    let base = rule(Action::Allow);
    let unreadable = Packet { ports: None, ..packet() };
    let ping = |kind| icmp(Protocol::ICMP, kind, 0, 64);
    let echo = only(Protocol::ICMP, L4Detail::Icmp([(8, RangeSet::single(0))].into()));
    let of_icmp = only(Protocol::ICMP, L4Detail::All);
    let sport = |rule: &EffectiveRule| EffectiveRule { source_ports: Some(RangeSet::single(40_000)), ..rule.clone() };
    let gre = Packet { protocol: Some(Protocol(47)), ports: None, ..packet() };
    let with_l4 = |l4: &L4Match| EffectiveRule { l4: l4.clone(), ..base.clone() };
    let examples = [
        ("everything", base.clone(), packet(), Ok(())),
        ("a family", EffectiveRule { family: Some(Family::V6), ..base.clone() }, packet(), Err(Mismatch::Family)),
        ("a source", EffectiveRule { from: named(&ten), ..base.clone() }, packet(), Ok(())),
        (
            "no source of that family",
            EffectiveRule { from: named(&ten), ..base.clone() },
            v6(packet()),
            Err(Mismatch::From),
        ),
        (
            "an empty set matches nothing",
            EffectiveRule { to: named(&AddrSet::default()), ..base.clone() },
            packet(),
            Err(Mismatch::To),
        ),
        ("a port", tcp(Action::Allow, 22), packet(), Ok(())),
        ("another port", tcp(Action::Allow, 23), packet(), Err(Mismatch::Ports)),
        ("ports nobody can read", tcp(Action::Allow, 22), unreadable.clone(), Err(Mismatch::Ports)),
        ("another protocol", tcp(Action::Allow, 22), udp(40_000, 22), Err(Mismatch::Protocol)),
        ("all of TCP, readable or not", with_l4(&only(Protocol::TCP, L4Detail::All)), unreadable.clone(), Ok(())),
        ("a source port", sport(&base), packet(), Ok(())),
        ("a source port nobody can read", sport(&base), unreadable, Err(Mismatch::SourcePorts)),
        ("a source port where there is none", sport(&base), gre, Err(Mismatch::SourcePorts)),
        ("source and destination port", sport(&tcp(Action::Allow, 22)), packet(), Ok(())),
        ("an ICMP type", with_l4(&echo), ping(8), Ok(())),
        ("another ICMP type", with_l4(&echo), ping(0), Err(Mismatch::Icmp)),
        ("a type nobody can read", with_l4(&echo), Packet { icmp: None, ..ping(8) }, Err(Mismatch::Icmp)),
        ("ICMPv6 is another protocol", with_l4(&of_icmp), icmp(Protocol::ICMPV6, 8, 0, 64), Err(Mismatch::Protocol)),
        ("ICMP in IPv6 is ICMP", with_l4(&of_icmp), v6(ping(8)), Ok(())),
    ];
    for (what, rule, packet, expected) in examples {
        assert_eq!(matches(&rule, &packet), expected, "{what}");
    }
}

#[test]
fn the_trace_has_every_step() {
    let rails = EffectivePolicy {
        interfaces: Selector::Equals("role".to_owned(), "rail".to_owned()),
        ..policy("rails", &[rule(Action::Deny)])
    };
    let ssh = policy("ssh", &[tcp(Action::Allow, 2222), tcp(Action::Pass, 22)]);
    let effective = node(vec![tier("t", TierDefault::Deny, vec![rails, ssh])]);
    let packet = packet();
    let trace = trace(&effective, &packet);
    let words: Vec<String> = trace
        .steps
        .iter()
        .map(|step| match step {
            Step::Interface(recognised) => format!("{} {:?}", recognised.role, recognised.how),
            Step::Essential(words, outcome) => format!("{words} {outcome:?}"),
            Step::NoEssential => "no essential".to_owned(),
            Step::Failsafe(entry, step) => format!("failsafe {} {step:?}", entry.name),
            Step::Tier(tier) => format!("tier {}", tier.name),
            Step::Policy(policy, step) => format!("{} {step:?}", policy.name),
            Step::Rule(rule, step) => format!("{} {step:?}", rule.id),
            Step::TierEnd(tier, end) => format!("end of {} {end:?}", tier.name),
            Step::InterfaceDefault(role, direction, default) => format!("default {role} {direction} {default:?}"),
            Step::NodeAudit(outcome) => format!("audit {outcome:?}"),
            Step::Early => "early".to_owned(),
            Step::Stage(stage, direction, recognised) => format!("{} {direction} on {}", stage.name(), recognised.role),
            Step::StageEnd(stage, end) => format!("end of {} {end:?}", stage.name()),
        })
        .collect();
    assert_eq!(
        words,
        [
            "mgmt Known(\"example\")",
            "host ingress on mgmt",
            "no essential",
            "tier t",
            "rails OtherInterface",
            "ssh Considered",
            "ssh#1 Mismatch(Ports)",
            "ssh#2 Passed",
            "end of t Passed",
            "default mgmt ingress Deny",
        ]
    );
    assert_eq!(trace.decision, decide(&effective, &packet));
}

/// The same policy in another stage.
fn at(stage: Stage, policy: EffectivePolicy) -> EffectivePolicy {
    EffectivePolicy { stage, ..policy }
}

/// Arrives on eth0 and leaves by cali7.
fn forwarded(packet: Packet) -> Packet {
    Packet { forward: Some(Exit { interface: name("cali7"), kind: Some("veth".to_owned()) }), ..packet }
}

fn one_tier(policies: Vec<EffectivePolicy>) -> Effective {
    node(vec![tier("t", TierDefault::Pass, policies)])
}

#[test]
fn what_an_early_stage_allows_later_ones_do_not_ask() {
    for stage in [Stage::Untracked, Stage::Prednat] {
        let early = at(stage, policy("early", &[tcp(Action::Allow, 22)]));
        let effective = one_tier(vec![early, policy("late", &[rule(Action::Deny)])]);
        let decision = decide(&effective, &packet());
        assert_eq!((decision.outcome, decision.reason), (Accepted, Reason::Rule(id("early", 1))));
        let other = Packet { ports: Some((1, 23)), ..packet() };
        assert_eq!(decide(&effective, &other).reason, Reason::Rule(id("late", 1)), "nothing early decided");
        // What goes before everything else goes before that, too.
        let to_loopback = Packet { translated: Some(("127.0.0.1".parse().unwrap(), 22)), ..packet() };
        assert_eq!(decide(&effective, &to_loopback).outcome, Dropped);
    }
}

#[test]
fn an_early_stage_denies_whatever_is_behind_and_has_no_default() {
    let early = |stage| {
        one_tier(vec![at(stage, policy("early", &[tcp(Action::Deny, 22)])), policy("late", &[rule(Action::Allow)])])
    };
    for stage in [Stage::Untracked, Stage::Prednat] {
        assert_eq!(decide(&early(stage), &packet()).reason, Reason::Rule(id("early", 1)));
        assert_eq!(decide(&early(stage), &forwarded(packet())).outcome, Dropped);
        let other = forwarded(Packet { ports: Some((1, 23)), ..packet() });
        assert_eq!(decide(&early(stage), &other).reason, Reason::NoPolicy);
    }
    // Before connection tracking there is no flow that could be established.
    let established = Packet { state: Established, ..packet() };
    assert_eq!(decide(&early(Stage::Untracked), &established).outcome, Dropped);
    assert_eq!(decide(&early(Stage::Prednat), &established).outcome, Accepted);
}

#[test]
fn prednat_sees_what_the_sender_wrote_and_later_stages_what_it_became() {
    let prednat = at(Stage::Prednat, policy("nodeport", &[tcp(Action::Deny, 30_080)]));
    let forward = at(Stage::Forward, policy("pods", &[tcp(Action::Deny, 8080)]));
    let pod = ("10.1.0.7".parse().unwrap(), 8080);
    let packet = |port| forwarded(Packet { ports: Some((40_000, port)), translated: Some(pod), ..packet() });
    let both = one_tier(vec![prednat.clone(), forward]);
    assert_eq!(decide(&both, &packet(30_080)).reason, Reason::Rule(id("nodeport", 1)));
    assert_eq!(decide(&both, &packet(30_081)).reason, Reason::Rule(id("pods", 1)));
    assert_eq!(decide(&one_tier(vec![prednat]), &packet(30_081)).reason, Reason::NoPolicy);
}

#[test]
fn what_a_process_sends_to_a_service_is_decided_by_its_endpoint_except_before_connection_tracking() {
    let egress = |stage, port| {
        let out = at(stage, policy("out", &[tcp(Action::Deny, port)]));
        let rules = out.ingress.clone();
        one_tier(vec![EffectivePolicy { ingress: None, egress: rules, ..out }])
    };
    let pod = ("10.1.0.7".parse().unwrap(), 8080);
    let packet = out(Packet { ports: Some((40_000, 80)), translated: Some(pod), ..packet() });
    let outcome = |stage, port| decide(&egress(stage, port), &packet).outcome;
    assert_eq!((outcome(Stage::Host, 8080), outcome(Stage::Host, 80)), (Dropped, Accepted));
    assert_eq!((outcome(Stage::Untracked, 8080), outcome(Stage::Untracked, 80)), (Accepted, Dropped));
}

#[test]
fn a_forwarded_packet_needs_the_consent_of_both_sides() {
    let ingress = |action| at(Stage::Forward, policy("in", &[tcp(action, 22)]));
    let egress = |action| {
        let out = policy("out", &[tcp(action, 22)]);
        let rules = out.ingress.clone();
        at(Stage::Forward, EffectivePolicy { ingress: None, egress: rules, ..out })
    };
    for (one, other, outcome) in [
        (Action::Allow, Action::Allow, Accepted),
        (Action::Allow, Action::Deny, Dropped),
        (Action::Deny, Action::Allow, Dropped),
        (Action::Allow, Action::Reject, Rejected),
    ] {
        let effective = one_tier(vec![ingress(one), egress(other)]);
        assert_eq!(decide(&effective, &forwarded(packet())).outcome, outcome, "{one:?} {other:?}");
        // For the host's own packets it is not there.
        assert_eq!(decide(&effective, &packet()).reason, Reason::InterfaceDefault);
    }
}

#[test]
fn rules_of_local_processes_ask_for_the_sender() {
    let mut user = tcp(Action::Deny, 22);
    user.process = Some(ProcessMatch { users: Some(RangeSet::range(1000, 1999)), ..ProcessMatch::default() });
    let out_policy = policy("users", &[user]);
    let rules = out_policy.ingress.clone();
    let effective = one_tier(vec![EffectivePolicy { ingress: None, egress: rules, ..out_policy }]);
    let of = |origin| decide(&effective, &out(Packet { origin, ..packet() }));
    let process = |uid| Origin::Process(Socket { uid, ..Socket::default() });
    assert_eq!(of(process(1500)).outcome, Dropped);
    assert_eq!(of(process(0)).outcome, Accepted);
    assert_eq!((of(Origin::Kernel).outcome, of(Origin::Kernel).unsure), (Accepted, false));
    assert_eq!((of(Origin::Unknown).outcome, of(Origin::Unknown).unsure), (Accepted, true));
}

#[test]
fn soft_roce_is_never_dropped_on_its_way_out() {
    let deny = policy("deny", &[rule(Action::Deny)]);
    let rules = deny.ingress.clone();
    let effective = one_tier(vec![EffectivePolicy { egress: rules, ..deny }]);
    let roce = |origin| Packet { protocol: Some(Protocol::UDP), ports: Some((50_000, 4791)), origin, ..packet() };
    assert_eq!(decide(&effective, &out(roce(Origin::Kernel))).outcome, Accepted);
    assert_eq!(decide(&effective, &out(roce(Origin::Process(Socket::default())))).outcome, Dropped);
    assert_eq!(decide(&effective, &roce(Origin::Kernel)).outcome, Dropped, "where it arrives it is");
}
