//! What becomes of records: each decision, one by one.
#![allow(clippy::unwrap_used)]

use super::super::triage::tests::{answered, record};
use super::super::{Generalise, verify};
use super::*;
use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;
use crate::policy::model::{
    Action, Entity, HostPolicy, Mode, NamedSet, Rule, Service as Named, Stage, TierDefault, Transport,
};
use crate::policy::selector::Selector;
use crate::policy::settings::{ACCEPT_MARK, LogSettings, NodeSettings};
use crate::text::place::Place;
use crate::traffic::{Decider, Record, Verdict};

/// A node in audit mode without failsafe entries.
pub(in crate::learn) fn settings() -> NodeSettings {
    NodeSettings {
        mode: Mode::Audit,
        node: None,
        labels: BTreeMap::new(),
        failsafe: Vec::new(),
        defaults: BTreeMap::new(),
        early: BTreeSet::new(),
        accept_mark: ACCEPT_MARK,
        drop_invalid: true,
        revoke: true,
        log: LogSettings { group: 5, denied: true, rate: 1000, burst: 1000 },
    }
}

fn facts() -> Facts {
    let mut link = Link::named(2, InterfaceName::new("eth0").unwrap());
    link.default_route = true;
    link.addresses = ["10.0.0.5/24".parse().unwrap()].into();
    Facts { node: "gpu-1".to_owned(), links: [(2, link)].into(), ..Facts::default() }
}

fn service(name: &str, ports: &[(Protocol, u16, u16)]) -> (String, Named) {
    let range = |(protocol, first, last): &(Protocol, u16, u16)| {
        ServicePort::Ports(*protocol, crate::net::range::RangeSet::range(*first, *last))
    };
    let ports = ports.iter().map(range).collect();
    (name.to_owned(), Named { name: name.to_owned(), ports, transport: Transport::Ip, place: Place::file("t") })
}

fn policy() -> Policy {
    let tcp = |port: u16| (Protocol::TCP, port, port);
    let set = NamedSet {
        name: "monitoring".to_owned(),
        labels: BTreeMap::new(),
        cidrs: ["10.0.0.20/32".parse().unwrap(), "10.0.0.21/32".parse().unwrap()].to_vec(),
        place: Place::file("t"),
    };
    Policy {
        sets: [("monitoring".to_owned(), set)].into(),
        services: [
            service("ssh", &[tcp(22)]),
            service("node-exporter", &[tcp(9100)]),
            service("dcgm-exporter", &[tcp(9400)]),
            service("torchrun", &[tcp(29_400), tcp(29_500)]),
            service("imex", &[tcp(50_000), tcp(50_005)]),
            service("nccl-peers", &[(Protocol::TCP, 32_768, 60_999)]),
        ]
        .into(),
        ..Policy::with_builtin_tiers()
    }
}

fn rule(action: Action, services: &[&str], set: Option<&str>) -> Rule {
    let place = || Place::file("t");
    let from = set.map(|set| Entity { sets: vec![(set.to_owned(), place())], ..Entity::default() });
    Rule {
        action,
        from,
        to: None,
        protocol: None,
        ports: None,
        services: services.iter().map(|name| ((*name).to_owned(), place())).collect(),
        icmp: None,
        family: None,
        not: None,
        process: None,
        limit: None,
        log: None,
        comment: None,
        place: place(),
    }
}

fn host_policy(name: &str, tier: &str, order: Option<i64>, ingress: Vec<Rule>) -> HostPolicy {
    HostPolicy {
        name: name.to_owned(),
        tier: tier.to_owned(),
        order,
        interfaces: Selector::All,
        nodes: Selector::All,
        stage: Stage::Host,
        mode: Mode::Audit,
        expires: None,
        acknowledges_bypass: false,
        ingress: Some(ingress),
        egress: None,
        place: Place::file("t"),
        tier_place: Place::file("t"),
    }
}

fn drafted(records: &[Record], policy: &Policy, options: &Options) -> Draft {
    let facts = facts();
    let ground = Ground::new(policy, &settings(), &facts);
    let mut gathered = Gathered::default();
    records.iter().for_each(|record| gathered.push(record));
    draft(&gathered, &ground, options)
}

/// Each rule in a line, then what was left out in a line each.
fn lines(draft: &Draft) -> Vec<String> {
    let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join("+");
    let mut lines = Vec::new();
    for policy in &draft.policies {
        for (direction, rules) in &policy.rules {
            for rule in rules {
                let roles: Vec<&str> = policy.roles.iter().map(|role| role.name()).collect();
                lines.push(format!("{} {direction} {} {}", roles.join("+"), join(&rule.sets), join(&rule.services)));
            }
        }
    }
    for set in &draft.sets {
        let members: Vec<String> = set.members.keys().map(|net| net.addr().to_string()).collect();
        lines.push(format!("set {} {}", set.name, members.join(" ")));
    }
    for service in &draft.services {
        lines.push(format!("service {} {}", service.name, service.ports.join(" ")));
    }
    for left in &draft.left_out {
        let peers: Vec<String> = left.evidence.peers.iter().map(ToString::to_string).collect();
        lines.push(format!("{} {} {} +{}", left.why.name(), peers.join(" "), left.services.join(" "), left.more));
    }
    lines
}

fn of(records: &[Record]) -> Vec<String> {
    lines(&drafted(records, &policy(), &Options::default()))
}

#[test]
fn services_with_the_same_peers_are_one_rule() {
    let records = [
        answered("10.0.0.20", 9100, 100, "node_exporter"),
        answered("10.0.0.21", 9100, 100, "node_exporter"),
        answered("10.0.0.20", 9400, 90, "dcgm-exporter"),
        answered("10.0.0.21", 9400, 90, "dcgm-exporter"),
        answered("10.0.0.9", 22, 4, "sshd"),
    ];
    assert_eq!(
        of(&records),
        [
            "mgmt ingress monitoring dcgm-exporter+node-exporter",
            "mgmt ingress learned-ssh-clients ssh",
            "set learned-ssh-clients 10.0.0.9",
        ]
    );
}

#[test]
fn a_service_without_a_name_is_called_after_who_listens() {
    let records = [answered("10.0.0.20", 8443, 100, "nginx"), answered("10.0.0.21", 8443, 1, "nginx")];
    assert_eq!(of(&records), ["mgmt ingress monitoring nginx", "service nginx tcp/8443"]);
}

#[test]
fn once_is_no_habit_but_an_hour_is() {
    let mut long = answered("10.0.0.9", 22, 1, "sshd");
    long.last = long.first + 3600 * 1_000_000;
    assert_eq!(of(&[answered("10.0.0.9", 22, 1, "sshd")]), ["one-off 10.0.0.9 tcp/22 +0"]);
    assert_eq!(of(&[long]), ["mgmt ingress learned-ssh-clients ssh", "set learned-ssh-clients 10.0.0.9"]);
    // Once each of those that share a name is one.
    let once = ["10.0.0.20", "10.0.0.21"].map(|peer| answered(peer, 9100, 1, "node_exporter"));
    assert_eq!(of(&once), ["mgmt ingress monitoring node-exporter"]);
    let narrow = Options { generalise: Generalise::None, ..Options::default() };
    let left = lines(&drafted(&once, &policy(), &narrow));
    assert_eq!(left, ["one-off 10.0.0.20 tcp/9100 +0", "one-off 10.0.0.21 tcp/9100 +0"]);
    let thrice = Options { seen: 3, ..Options::default() };
    assert_eq!(
        lines(&drafted(&[answered("10.0.0.9", 22, 2, "sshd")], &policy(), &thrice)),
        ["one-off 10.0.0.9 tcp/22 +0"]
    );
}

#[test]
fn what_nobody_answers_is_set_apart() {
    let closed = Record { packets: Some(20), ..record("10.0.0.9", 8080, 10) };
    assert_eq!(of(&[closed]), ["unanswered 10.0.0.9 tcp/8080 +0"]);
    // A connection that nobody has ended yet, of a kernel's listener: nothing speaks against it.
    let open = record("10.0.0.9", 22, 10);
    assert_eq!(of(&[open])[0], "mgmt ingress learned-ssh-clients ssh");
}

#[test]
fn a_scanner_gets_nothing_but_what_it_asks_for_far_more_often() {
    let mut records: Vec<Record> =
        (1..=40).map(|port| Record { packets: Some(2), ..record("10.0.0.20", port, 1) }).collect();
    // It found SSH, too.
    records.push(answered("10.0.0.20", 22, 2, "sshd"));
    records.push(answered("10.0.0.21", 9100, 50, "node_exporter"));
    let only_scan = [
        "mgmt ingress learned-node-exporter-clients node-exporter",
        "set learned-node-exporter-clients 10.0.0.21",
        "scan 10.0.0.20 tcp/1 tcp/2 tcp/3 tcp/4 tcp/5 tcp/6 +34",
    ];
    let sets = Policy { sets: BTreeMap::new(), ..policy() };
    assert_eq!(lines(&drafted(&records, &sets, &Options::default())), only_scan);
    // A monitoring host that somebody scanned from once goes on being one.
    let mut daily = answered("10.0.0.20", 9100, 500, "node_exporter");
    daily.last = daily.first + 20 * 3600 * 1_000_000;
    records.push(daily);
    let found = of(&records);
    assert_eq!(found[0], "mgmt ingress monitoring node-exporter");
    assert!(found.iter().any(|line| line.starts_with("scan 10.0.0.20")), "{found:?}");
    assert!(!found.iter().any(|line| line.contains("ssh")), "{found:?}");
}

#[test]
fn high_ports_of_which_nothing_is_known_are_a_job_only_if_both_sides_began() {
    let mut records: Vec<Record> = (0..30).map(|port| record("10.2.0.1", 40_000 + port, 2)).collect();
    assert_eq!(of(&records), ["scan 10.2.0.1 tcp/40000 tcp/40001 tcp/40002 tcp/40003 tcp/40004 tcp/40005 +24"]);
    let mut back = record("10.2.0.1", 45_000, 2);
    back.key.direction = Direction::Egress;
    records.push(back);
    assert_eq!(of(&records)[0], "mgmt ingress learned-nccl-peers-clients nccl-peers");
}

#[test]
fn more_than_was_told_apart_is_a_scan_of_one_and_a_flood_of_many() {
    let many = |peer: Option<&str>| {
        let mut many = Record { packets: Some(5000), ..record("10.0.0.9", 1, 5000) };
        (many.key.service, many.key.protocol) = (Service::Many, None);
        many.key.peer = peer.map(|peer| peer.parse().unwrap());
        many
    };
    assert_eq!(of(&[many(Some("10.0.0.9")), answered("10.0.0.9", 22, 3, "sshd")]), ["scan 10.0.0.9 many tcp/22 +0"]);
    assert_eq!(of(&[many(None)]), ["flood  many +0"]);
}

#[test]
fn ports_that_change_are_one_rule_for_the_peers_of_a_job() {
    let mut records = Vec::new();
    for (number, peer) in ["10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4"].iter().enumerate() {
        for port in 0..6 {
            records.push(answered(peer, 40_000 + 100 * number as u16 + port, 1, "python3"));
        }
        records.push(answered(peer, 29_500, 2, "python3"));
    }
    // One fixed port in the same range, of somebody else, stays that port.
    records.push(answered("10.0.0.9", 50_051, 30, "grpc"));
    records.push(answered("10.0.0.9", 50_000, 30, "nvidia-imex"));
    assert_eq!(
        of(&records),
        [
            "mgmt ingress learned-imex-clients grpc+imex",
            "mgmt ingress learned-torchrun-clients nccl-peers+torchrun",
            "set learned-imex-clients 10.0.0.9",
            "set learned-torchrun-clients 10.2.0.0",
            "service grpc tcp/50051",
        ]
    );
    // Where this host has other ephemeral ports, the catalogue's range is not meant.
    let mut facts = facts();
    facts.ports.ephemeral = Some(crate::net::range::RangeSet::range(20_000, 65_000));
    let policy = policy();
    let ground = Ground::new(&policy, &settings(), &facts);
    let mut gathered = Gathered::default();
    records.iter().for_each(|record| gathered.push(record));
    let found = lines(&draft(&gathered, &ground, &Options::default()));
    assert!(found.contains(&"service job-peers-tcp tcp/20000-65000".to_owned()), "{found:?}");
}

#[test]
fn what_is_covered_is_not_repeated_and_a_draft_in_place_covers_all_of_itself() {
    let records =
        [answered("10.0.0.20", 9100, 100, "node_exporter"), answered("10.0.0.20", 9400, 100, "dcgm-exporter")];
    let with = |rules: Vec<Rule>| Policy { policies: vec![host_policy("mine", "default", None, rules)], ..policy() };
    // In audit mode today, but meant.
    let half = with(vec![rule(Action::Allow, &["node-exporter"], Some("monitoring"))]);
    let found = drafted(&records, &half, &Options::default());
    assert!(
        lines(&found)[0].ends_with("dcgm-exporter") && !lines(&found)[0].contains("node-exporter"),
        "{:?}",
        lines(&found)
    );
    assert_eq!(found.covered, 100);
    let all = with(vec![rule(Action::Allow, &["node-exporter", "dcgm-exporter"], Some("monitoring"))]);
    assert_eq!(lines(&drafted(&records, &all, &Options::default())), Vec::<String>::new());
    // Access for a while is none to last.
    let mut temporary = all.clone();
    temporary.policies[0].expires = Some(4_000_000_000);
    assert_eq!(drafted(&records, &temporary, &Options::default()).covered, 0);
}

#[test]
fn what_somebody_denies_is_proposed_only_when_asked_for() {
    let records = [answered("10.0.0.9", 22, 9, "sshd")];
    let asked = Options { denied: true, ..Options::default() };
    let denies = Policy {
        policies: vec![host_policy("no-ssh", "platform", Some(100), vec![rule(Action::Deny, &["ssh"], None)])],
        ..policy()
    };
    assert_eq!(lines(&drafted(&records, &denies, &Options::default())), ["denied-by-rule 10.0.0.9 tcp/22 +0"]);
    let proposed = drafted(&records, &denies, &asked);
    let first = &proposed.policies[0];
    assert_eq!((first.tier.as_str(), first.order), ("platform", 99));
    let mut stopped = record("10.0.0.9", 22, 9);
    stopped.key.verdict = Verdict::Denied;
    stopped.key.decider = Decider::Default;
    assert_eq!(of(std::slice::from_ref(&stopped)), ["denied 10.0.0.9 tcp/22 +0"]);
    assert_eq!(lines(&drafted(&[stopped], &policy(), &asked))[0], "mgmt ingress learned-ssh-clients ssh");
}

#[test]
fn a_draft_comes_before_what_denies_everything_else() {
    let records = [answered("10.0.0.9", 22, 9, "sshd")];
    let place = |tier: &str, order, rules| {
        let policy = Policy { policies: vec![host_policy("end", tier, order, rules)], ..policy() };
        let found = drafted(&records, &policy, &Options::default());
        let first = &found.policies[0];
        (first.tier.clone(), first.order)
    };
    let close = || vec![rule(Action::Deny, &[], None)];
    assert_eq!(place("platform", Some(7), close()), ("platform".to_owned(), 6));
    assert_eq!(place("platform", None, close()), ("platform".to_owned(), 1000));
    assert_eq!(place("baseline", Some(7), close()), ("default".to_owned(), 1000));
    assert_eq!(place("platform", Some(7), Vec::new()), ("default".to_owned(), 1000));
    let mut tiers = policy();
    tiers.policies = vec![host_policy("end", "platform", Some(7), Vec::new())];
    tiers.tiers.get_mut("platform").unwrap().default = TierDefault::Deny;
    let found = drafted(&records, &tiers, &Options::default());
    assert_eq!((found.policies[0].tier.as_str(), found.policies[0].order), ("platform", 1007));
}

#[test]
fn what_this_host_begins_is_drafted_when_asked_for_or_where_it_is_closed() {
    let mut out = Record { packets: Some(900), ..record("10.0.0.20", 9100, 9) };
    out.key.direction = Direction::Egress;
    out.key.verdict = Verdict::Allowed;
    let records = [out];
    assert_eq!(of(&records), Vec::<String>::new());
    let asked = Options { egress: true, ..Options::default() };
    let expected =
        ["mgmt egress learned-node-exporter-servers node-exporter", "set learned-node-exporter-servers 10.0.0.20"];
    let sets = Policy { sets: BTreeMap::new(), ..policy() };
    assert_eq!(lines(&drafted(&records, &sets, &asked)), expected);
    let facts = facts();
    let mut closed = settings();
    closed.defaults.insert((Role::Mgmt, Direction::Egress), crate::policy::settings::Default::Deny);
    let ground = Ground::new(&sets, &closed, &facts);
    let mut gathered = Gathered::default();
    records.iter().for_each(|record| gathered.push(record));
    assert_eq!(lines(&draft(&gathered, &ground, &Options::default())), expected);
}

#[test]
fn what_goes_through_or_came_by_an_interface_that_is_gone_is_said() {
    let mut through = answered("10.0.0.9", 80, 9, "");
    through.actors.clear();
    (through.key.decider, through.key.verdict) = (Decider::Nothing, Verdict::Allowed);
    assert_eq!(of(&[through]), ["forwarded 10.0.0.9 tcp/80 +0"]);
    let mut gone = answered("10.0.0.9", 22, 9, "sshd");
    gone.key.interface = InterfaceName::new("eth7");
    gone.key.role = Some(Role::Storage);
    assert_eq!(of(&[gone]), ["no-interface 10.0.0.9 tcp/22 +0"]);
}

#[test]
fn names_that_there_are_already_get_a_number() {
    let mut known = policy();
    known.services.extend([service("nginx", &[(Protocol::TCP, 80, 80)])]);
    known.policies.push(host_policy("learned-mgmt", "default", None, Vec::new()));
    let found = drafted(
        &[answered("10.0.0.20", 8443, 100, "nginx"), answered("10.0.0.21", 8443, 1, "nginx")],
        &known,
        &Options::default(),
    );
    assert_eq!(found.policies[0].name, "learned-mgmt-2");
    assert_eq!(found.services[0].name, "nginx-8443");
}

#[test]
fn ports_of_a_named_service_that_were_not_seen_are_told() {
    let found = drafted(
        &[answered("10.0.0.20", 29_500, 5, "python3"), answered("10.0.0.21", 29_500, 5, "python3")],
        &policy(),
        &Options::default(),
    );
    assert_eq!(found.policies[0].rules[&Direction::Ingress][0].unseen, ["tcp/29400"]);
}

#[test]
fn a_replay_tells_surprises_from_what_was_set_apart() {
    let mut records = vec![
        answered("10.0.0.20", 9100, 100, "node_exporter"),
        answered("10.0.0.9", 22, 9, "sshd"),
        answered("10.0.0.30", 22, 1, "sshd"),
    ];
    records.extend((100..=140).map(|port| Record { packets: Some(2), ..record("10.0.0.66", port, 1) }));
    let mut gathered = Gathered::default();
    records.iter().for_each(|record| gathered.push(record));
    let allows =
        host_policy("draft", "default", None, vec![rule(Action::Allow, &["node-exporter"], Some("monitoring"))]);
    let with = Policy { policies: vec![allows], ..policy() };
    let of_draft: BTreeSet<String> = ["draft".to_owned()].into();
    let report = verify::verify(&gathered, &with, &of_draft, &settings(), &facts(), &Options::default());
    assert_eq!(report.allowed, 100);
    let surprises: Vec<String> = report.surprises().map(|denied| denied.flow.peer.unwrap().to_string()).collect();
    assert_eq!(surprises, ["10.0.0.9"]);
    let of = |apart: &Apart| report.denied.iter().filter(|denied| denied.apart.as_ref() == Some(apart)).count();
    assert_eq!((of(&Apart::Scan), of(&Apart::OneOff)), (41, 1));
    // A rule of the draft that denies what is in use is a surprise.
    let denies = host_policy("draft", "default", None, vec![rule(Action::Deny, &["node-exporter"], None)]);
    let with = Policy { policies: vec![denies], ..policy() };
    let report = verify::verify(&gathered, &with, &of_draft, &settings(), &facts(), &Options::default());
    let surprises: BTreeSet<String> = report.surprises().map(|denied| denied.flow.peer.unwrap().to_string()).collect();
    assert_eq!(surprises, ["10.0.0.20", "10.0.0.9"].map(str::to_owned).into());
}
