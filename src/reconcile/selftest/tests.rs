//! Which probes a host has, what is known of its ways in without any, and what results mean.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::net::interface::InterfaceName;
use crate::net::range::RangeSet;
use crate::policy::model::{Entity, HostPolicy, Mode, Policy, ServicePort, Stage, Tier, TierDefault};
use crate::policy::resolve::resolve;
use crate::policy::selector::Selector;
use crate::policy::settings::{Failsafe, NodeSettings};
use crate::reconcile::tests::settings;
use crate::text::place::Place;

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A link with addresses; eth0 has the default route.
fn link(index: u32, name: &str, addresses: &[&str]) -> Link {
    Link {
        default_route: name == "eth0",
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..Link::named(index, InterfaceName::new(name).unwrap())
    }
}

fn facts(links: Vec<Link>) -> Facts {
    Facts { links: links.into_iter().map(|link| (link.index, link)).collect(), ..Facts::default() }
}

/// A way in on management interfaces.
fn ssh(ports: &[ServicePort], peers: &[&str]) -> Failsafe {
    let cidrs = peers.iter().map(|cidr| cidr.parse().unwrap()).collect();
    Failsafe {
        name: "ssh".to_owned(),
        direction: Direction::Ingress,
        ports: ports.to_vec(),
        peers: (!peers.is_empty()).then(|| Entity { cidrs, ..Entity::default() }),
        interfaces: Selector::Equals("role".to_owned(), "mgmt".to_owned()),
        cluster_api: false,
        place: Place::file("nodewall.toml"),
    }
}

fn tcp(ports: &[(u16, u16)]) -> ServicePort {
    ServicePort::Ports(Protocol::TCP, ports.iter().copied().collect::<RangeSet<u16>>())
}

/// A node whose policy denies everything that comes in, with these failsafe entries.
fn effective(failsafe: Vec<Failsafe>, facts: &Facts) -> Effective {
    let mut policy = Policy::with_builtin_tiers();
    let place = Place::file("10.toml");
    policy.tiers.insert(
        "first".to_owned(),
        Tier { name: "first".to_owned(), order: 1, default: TierDefault::Deny, place: place.clone() },
    );
    policy.policies.push(HostPolicy {
        name: "closed".to_owned(),
        tier: "first".to_owned(),
        order: None,
        interfaces: Selector::All,
        nodes: Selector::All,
        stage: Stage::Host,
        mode: Mode::Enforce,
        expires: None,
        acknowledges_bypass: false,
        ingress: Some(Vec::new()),
        egress: None,
        place: place.clone(),
        tier_place: place,
    });
    let settings = NodeSettings { failsafe, ..settings() };
    resolve(&policy, &settings, facts).0
}

#[test]
fn a_host_has_the_probes_that_its_facts_and_settings_say() {
    let mut facts =
        facts(vec![link(1, "eth0", &["10.0.0.2/24", "fd00::2/64", "fe80::2/64"]), link(2, "eth1", &["10.1.0.2/24"])]);
    let entry = ssh(&[tcp(&[(22, 22), (2222, 2222), (6000, 6010)])], &[]);
    let effective = effective(vec![entry], &facts);
    facts.api_servers = [("10.0.0.10".parse().unwrap(), 6443), ("10.0.0.11".parse().unwrap(), 6443)].into();
    let own = Probe {
        name: "own".to_owned(),
        what: Attempt::Command(vec!["/x".to_owned()]),
        timeout: PROBE_TIME,
        optional: false,
    };
    let all = probes(std::slice::from_ref(&own), &effective, &facts);
    let names: Vec<&str> = all.iter().map(|probe| probe.name.as_str()).collect();
    assert_eq!(names, ["cluster API", "listener ssh", "kubelet healthz", "own"]);
    assert_eq!(all[0].what, Attempt::Tcp(vec![end("10.0.0.10:6443"), end("10.0.0.11:6443")]));
    assert!(!all[0].optional && all[1].optional && all[2].optional);
    let listeners = ["10.0.0.2:22", "10.0.0.2:2222", "[fd00::2]:22", "[fd00::2]:2222"].map(end);
    assert_eq!(all[1].what, Attempt::Tcp(listeners.to_vec()));
    assert_eq!(all[3], own);
    facts.api_servers.clear();
    assert_eq!(probes(&[], &effective, &facts).len(), 2);
}

#[track_caller]
fn way_in_of(entry: Failsafe, links: Vec<Link>) -> Outcome {
    let facts = facts(links);
    let tried = simulated(&effective(vec![entry], &facts), &facts);
    assert_eq!(tried.len(), 1);
    assert_eq!(tried[0].probe, "failsafe ssh");
    tried[0].outcome.clone()
}

#[test]
fn a_way_in_is_one_where_it_holds_on_an_interface_with_an_address() {
    let ports = [tcp(&[(22, 22)]), ServicePort::Icmp(Protocol::ICMP, [(8, RangeSet::full())].into())];
    let eth0 = || link(1, "eth0", &["10.0.0.2/24", "fd00::2/64"]);
    assert_eq!(way_in_of(ssh(&ports, &[]), vec![eth0()]), Outcome::Passed);
    assert_eq!(
        way_in_of(ssh(&ports, &["192.0.2.0/24", "2001:db8::/32", "127.0.0.0/8"]), vec![eth0()]),
        Outcome::Passed
    );
    let absent = Outcome::Absent("it holds on no interface with an address".to_owned());
    // The interface is there and is not what the entry is for any more.
    assert_eq!(way_in_of(ssh(&ports, &[]), vec![link(2, "eth1", &["10.1.0.2/24"])]), absent);
    assert_eq!(way_in_of(ssh(&ports, &[]), vec![link(1, "eth0", &["fe80::2/64"])]), absent);
    // Peers of a family that the host does not speak.
    assert_eq!(way_in_of(ssh(&ports, &["2001:db8::/32"]), vec![link(1, "eth0", &["10.0.0.2/24"])]), absent);
}

#[test]
fn a_way_in_that_the_policy_closes_is_found() {
    let facts = facts(vec![link(1, "eth0", &["10.0.0.2/24"])]);
    let mut effective = effective(vec![ssh(&[tcp(&[(22, 22)])], &[])], &facts);
    // No document can say so: a failsafe entry stands before every policy. It would take a mistake of ours.
    let entry = effective.failsafe.remove(0);
    let outcome = way_in(&entry, &effective, &facts);
    assert_eq!(outcome, Outcome::Failed("tcp port 22 from 192.0.2.1 would not be let in on eth0".to_owned()));
}

#[test]
fn a_host_has_a_network_with_an_address_that_is_not_its_own_alone() {
    let lo = Link { hardware: 772, ..link(1, "lo", &["127.0.0.1/8", "::1/128"]) };
    let with = |other: Link| has_network(&facts(vec![lo.clone(), other]));
    assert!(!has_network(&facts(vec![lo.clone()])));
    assert!(!with(link(2, "eth0", &[])));
    assert!(!with(link(2, "eth0", &["fe80::1/64", "169.254.1.1/16"])));
    assert!(!with(Link { up: false, ..link(2, "eth0", &["10.0.0.2/24"]) }));
    assert!(with(link(2, "eth0", &["10.0.0.2/24"])));
    assert!(with(link(2, "eth0", &["fe80::1/64", "2001:db8::1/64"])));
}

#[test]
fn results_are_held_against_what_was_before() {
    let (passed, failed, absent) =
        (|| Outcome::Passed, || Outcome::Failed("no".to_owned()), || Outcome::Absent("nobody".to_owned()));
    let no = "no".to_owned();
    for (before, now, expected) in [
        (Some(passed()), passed(), Judgement::Passed),
        (Some(failed()), passed(), Judgement::Passed),
        (None, passed(), Judgement::Passed),
        (Some(passed()), failed(), Judgement::Failed(no.clone())),
        (None, failed(), Judgement::Failed(no.clone())),
        (Some(failed()), failed(), Judgement::FailedBefore(no.clone())),
        (Some(absent()), failed(), Judgement::FailedBefore(no)),
        (Some(passed()), absent(), Judgement::Failed("nobody".to_owned())),
        (Some(absent()), absent(), Judgement::Absent("nobody".to_owned())),
        (Some(failed()), absent(), Judgement::Absent("nobody".to_owned())),
        (None, absent(), Judgement::Absent("nobody".to_owned())),
    ] {
        let tried = |outcome| Tried { probe: "x".to_owned(), outcome };
        let before: Vec<Tried> = before.map(tried).into_iter().collect();
        let judged = judge(&before, vec![tried(now.clone())]);
        assert_eq!(judged, [("x".to_owned(), expected)], "{before:?} {now:?}");
    }
}

#[test]
fn what_was_found_is_told_in_one_line() {
    let all = [
        ("a".to_owned(), Judgement::Passed),
        ("b".to_owned(), Judgement::Absent("nobody".to_owned())),
        ("c".to_owned(), Judgement::Failed("no answer within 2 s".to_owned())),
        ("d".to_owned(), Judgement::FailedBefore("connection refused".to_owned())),
        ("e".to_owned(), Judgement::Passed),
    ];
    assert_eq!(words(&all), "a, e passed; c failed: no answer within 2 s; d failed before too: connection refused");
    assert_eq!(failing(&all).as_deref(), Some("c: no answer within 2 s"));
    assert_eq!(words(&all[1..2]), "there was nothing to try");
    assert_eq!(failing(&all[..2]), None);
}
