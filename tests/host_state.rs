//! What a node says of itself in its cluster: the same as long as nothing happens, small on every host, and with hashes by which nodes
//! on which policies mean the same are told from others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use ipnet::IpNet;
use nodewall::config::Config;
use nodewall::daemon::host_state::{Known, MOST, compose};
use nodewall::daemon::status::{ClusterRecord, DriftRecord, FindingRecord, PolicyRecord, Status};
use nodewall::host::collect_fixture;
use nodewall::net::facts::{Cgroup, Facts};
use nodewall::policy::meaning::{Meaning, meaning};
use nodewall::policy::resolve::resolve;
use nodewall::policy::settings::NodeSettings;
use nodewall::reconcile::{Documents, Done, Event, State, Texts, step, summary};
use nodewall::source;
use nodewall::source::object::status::{Condition, HostStateStatus};

const NOW: &str = "2026-11-26T05:00:00Z";
const LATER: &str = "2026-11-26T05:01:00Z";

const POLICY: &str = r#"
[[set]]
name = "admins"
cidrs = ["10.1.0.0/16", "fd00:1::/64"]
[[service]]
name = "web"
ports = ["tcp/80", "tcp/443"]
[[policy]]
name = "web"
order = 10
interfaces = "all()"
ingress = [
  { action = "allow", from = { sets = ["admins"] }, services = ["web"] },
  { action = "deny", from = { local = true }, protocol = "udp", ports = [9] },
]
[[policy]]
name = "out"
tier = "platform"
order = 10
interfaces = "role == 'mgmt'"
egress = [{ action = "allow", protocol = "tcp", ports = [443], users = ["nobody"], units = ["sshd.service"] }]
"#;

fn fixture(name: &str) -> Facts {
    collect_fixture(&Path::new("tests/fixtures").join(name))
}

/// A host with so many addresses of each family on each link.
fn addressed(name: &str, addresses: u32) -> Facts {
    let mut facts = fixture(name);
    for (number, link) in facts.links.values_mut().enumerate() {
        for address in 0..addresses {
            let v4: IpNet = format!("100.100.{}.{}/24", 100 + number % 100, 100 + address).parse().unwrap();
            let v6: IpNet =
                format!("fd00:1234:5678:9abc:{:04x}:1111:2222:{:04x}/64", 0x1000 + number, 0x1000 + address)
                    .parse()
                    .unwrap();
            link.addresses.extend([v4, v6]);
        }
        link.addresses
            .extend(["fe80::1234:5678:9abc:def0/64", "169.254.10.1/16"].map(|net| net.parse::<IpNet>().unwrap()));
    }
    facts
}

/// What a node on which this policy is in force knows.
fn in_force(policy: &str, facts: &Facts) -> (State, Status) {
    let sourced = source::decode_text("10.toml", policy);
    assert_eq!(sourced.findings, []);
    let documents = Documents {
        policy: sourced.policy,
        settings: Config::shipped().settings,
        findings: Vec::new(),
        probes: Vec::new(),
        texts: Texts::default(),
        trial: None,
    };
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts.clone()));
    step(&mut state, Event::DocumentsLoaded(documents));
    step(&mut state, Event::Applied(Ok(Done { changes: 1 })));
    assert_eq!(state.generation(), 1, "{}", state.status_line());
    let status = Status { in_sync: Some(true), since: Some(NOW.to_owned()), ..Status::of(&state) };
    (state, status)
}

fn meaning_of(state: &State) -> Meaning {
    let (version, summary) = (state.version_in_force().unwrap(), state.summary().unwrap());
    let here = summary.policies.iter().map(|policy| (policy.tier.as_str(), policy.name.as_str()));
    meaning(&version.policy, &version.settings, here)
}

fn say(status: &Status, facts: &Facts, before: Option<&HostStateStatus>, now: &str) -> HostStateStatus {
    compose(Known { status, facts, meaning: None, before, now })
}

fn condition<'a>(said: &'a HostStateStatus, kind: &str) -> &'a Condition {
    said.conditions.iter().find(|condition| condition.kind == kind).unwrap()
}

fn words(said: &HostStateStatus) -> BTreeMap<&str, (&str, &str)> {
    said.conditions.iter().map(|one| (one.kind.as_str(), (one.status.as_str(), one.reason.as_str()))).collect()
}

fn bytes(said: &HostStateStatus) -> usize {
    serde_json::to_string(said).unwrap().len()
}

#[test]
fn what_is_in_force_is_said_with_interfaces_in_the_order_of_what_they_are_for() {
    let facts = addressed("dgx-h100", 1);
    let (state, status) = in_force(POLICY, &facts);
    let meaning = meaning_of(&state);
    let said = compose(Known { status: &status, facts: &facts, meaning: Some(&meaning), before: None, now: NOW });
    assert_eq!((said.mode.as_deref(), said.generation, said.in_sync), (Some("enforce"), Some(1), Some(true)));
    assert_eq!(said.since.as_deref(), Some(NOW));
    let expected = [
        ("Ready", ("True", "PolicyInForce")),
        ("InSync", ("True", "InSync")),
        ("Degraded", ("False", "AsWanted")),
        ("Unconfirmed", ("False", "NoTrial")),
    ];
    assert_eq!(words(&said), expected.into());
    assert!(said.conditions.iter().all(|condition| condition.last_transition_time == NOW));
    assert_eq!(said.hash.as_deref(), Some(meaning.whole.as_str()));
    assert_eq!(said.policies, meaning.policies.iter().cloned().collect());
    assert!(said.policies.contains_key("default/web") && said.policies.contains_key("platform/out"));
    assert_eq!(said.policies_omitted, None);
    let roles: Vec<&str> = said.interfaces.iter().map(|interface| interface.role.as_str()).collect();
    assert!(roles.iter().filter(|role| **role == "rail").count() >= 8, "{roles:?}");
    assert!(!roles.contains(&"loopback") && !roles.contains(&"pod"), "{roles:?}");
    let order = ["mgmt", "rail", "fabric", "storage", "ipoib", "dpu", "bmc", "unknown", "overlay", "representor"];
    let place = |role: &&str| order.iter().position(|known| known == role).unwrap();
    assert!(roles.iter().map(place).is_sorted(), "{roles:?}");
    let rail = said.interfaces.iter().find(|interface| interface.role == "rail").unwrap();
    assert!(rail.rail.as_deref().unwrap().starts_with("rail"));
    assert_eq!(rail.coverage.as_deref(), Some("partial"));
    let is_local = |net: &String| net.starts_with("fe80:") || net.starts_with("169.254.");
    assert!(rail.addresses.len() >= 2 && !rail.addresses.iter().any(is_local), "{:?}", rail.addresses);
    let counted = said.interfaces.len() + status.elsewhere.len();
    assert_eq!(said.coverage.values().sum::<i64>(), i64::try_from(counted).unwrap());
    assert!(["enforced", "partial", "bypassed"].iter().all(|state| said.coverage.contains_key(*state)));
}

#[test]
fn the_same_is_said_as_long_as_nothing_happens() {
    let facts = addressed("dgx-h100", 1);
    let (_, mut status) = in_force(POLICY, &facts);
    status.confirm_until = Some(LATER.to_owned());
    status.confirm_seconds = Some(60);
    status.clusters = vec![ClusterRecord {
        name: "hub".to_owned(),
        state: "away".to_owned(),
        revision: 7,
        ..ClusterRecord::default()
    }];
    let first = say(&status, &facts, None, NOW);
    status.confirm_seconds = Some(1);
    status.pid = Some(77);
    status.clusters[0].revision = 8;
    status.clusters[0].error = Some("another word for the same".to_owned());
    status.clusters[0].report = Some("written".to_owned());
    for policy in &mut status.policies {
        (policy.packets, policy.bytes) = (Some(10), Some(1000));
    }
    let mut facts = facts;
    for link in facts.links.values_mut() {
        link.addresses.insert("fe80::77/64".parse().unwrap());
    }
    assert_eq!(say(&status, &facts, Some(&first), LATER), first);
}

#[test]
fn links_of_pods_come_and_go_without_a_word() {
    let facts = addressed("sriov-pods", 1);
    let (_, status) = in_force(POLICY, &facts);
    let said = say(&status, &facts, None, NOW);
    let mut more = status.clone();
    let mut pod = more.interfaces[0].clone();
    (pod.name, pod.role, pod.index) = ("cali12345".to_owned(), "pod".to_owned(), 4711);
    pod.labels.insert("coverage".to_owned(), "enforced".to_owned());
    more.interfaces.push(pod);
    *more.coverage.entry("enforced".to_owned()).or_default() += 1;
    assert_eq!(say(&more, &facts, Some(&said), LATER), said);
}

#[test]
fn times_of_conditions_move_only_when_these_do() {
    let facts = fixture("edge-gpu");
    let (_, mut status) = in_force(POLICY, &facts);
    let first = say(&status, &facts, None, NOW);
    status.drift_events = 1;
    status.drift_last = Some(DriftRecord { time: LATER.to_owned(), ..DriftRecord::default() });
    status.in_sync = Some(false);
    status.drift = vec!["no such device".to_owned()];
    status.state = "degraded".to_owned();
    let second = say(&status, &facts, Some(&first), LATER);
    assert_eq!(words(&second)["InSync"], ("False", "ApplyFailed"));
    assert_eq!(words(&second)["Degraded"], ("True", "ApplyFailed"));
    assert_eq!(second.error.as_deref(), Some("no such device"));
    let drift = second.drift.as_ref().unwrap();
    assert_eq!((drift.count, drift.last.as_deref()), (1, Some(LATER)));
    let times = |said: &HostStateStatus| {
        ["Ready", "InSync", "Degraded"].map(|kind| condition(said, kind).last_transition_time.clone())
    };
    assert_eq!(times(&second), [NOW, LATER, LATER]);
    // Another reason for the same, and then its end.
    status.drift_storm = true;
    let third = say(&status, &facts, Some(&second), "2026-11-26T05:02:00Z");
    assert_eq!((words(&third)["InSync"], times(&third)), (("False", "Drifting"), times(&second)));
    (status.drift_storm, status.in_sync, status.state) = (false, Some(true), "in-force".to_owned());
    let fourth = say(&status, &facts, Some(&third), "2026-11-26T05:03:00Z");
    assert_eq!(times(&fourth), [NOW, "2026-11-26T05:03:00Z", "2026-11-26T05:03:00Z"]);
    assert_eq!(fourth.error.as_deref(), Some("no such device"), "the last thing that went wrong");
}

#[test]
fn what_is_amiss_is_a_condition() {
    let facts = fixture("edge-gpu");
    let (_, good) = in_force(POLICY, &facts);
    let error = FindingRecord { severity: "error".to_owned(), ..FindingRecord::default() };
    let cluster = |state: &str, invalid: &[&str]| ClusterRecord {
        name: "hub".to_owned(),
        state: state.to_owned(),
        since: NOW.to_owned(),
        invalid: invalid.iter().map(|name| (*name).to_owned()).collect(),
        ..ClusterRecord::default()
    };
    let refused = Status {
        state: "degraded".to_owned(),
        reason: Some("10.toml:3: no such set; the last good policy stays in force".to_owned()),
        findings: vec![error],
        ..good.clone()
    };
    let given_up =
        Status { state: "degraded".to_owned(), reason: Some("generation 2 was given up".to_owned()), ..good.clone() };
    let lockdown = Status { generation: 0, ..refused.clone() };
    let panic = Status { state: "panic".to_owned(), generation: 0, ..good.clone() };
    let waiting = Status { state: "waiting".to_owned(), generation: 0, in_sync: None, ..good.clone() };
    let trial = Status {
        confirm_until: Some(LATER.to_owned()),
        confirm_by: Some("self-test".to_owned()),
        state: "unconfirmed".to_owned(),
        ..good.clone()
    };
    let away = Status { clusters: vec![cluster("away", &[])], ..good.clone() };
    let bad_object = Status { clusters: vec![cluster("in-sync", &["HostPolicy/a"])], ..good.clone() };
    let full = Status { store_error: Some("no space left on device".to_owned()), ..good.clone() };
    let (ready, fine) = (("True", "PolicyInForce"), ("False", "AsWanted"));
    for (status, expected_ready, degraded, part) in [
        (&good, ready, fine, "nothing is amiss"),
        (&refused, ready, ("True", "PolicyRefused"), "no such set"),
        (&given_up, ready, ("True", "PolicyNotInForce"), "given up"),
        (&lockdown, ("False", "NoPolicy"), ("True", "PolicyRefused"), "no such set"),
        (&panic, ("False", "Panic"), fine, "nothing is amiss"),
        (&waiting, ("False", "Starting"), fine, "nothing is amiss"),
        (&trial, ready, fine, "nothing is amiss"),
        (&away, ready, ("True", "ClusterAway"), "since 2026-11-26T05:00:00Z"),
        (&bad_object, ready, ("True", "ObjectRefused"), "HostPolicy/a"),
        (&full, ready, ("True", "NotKept"), "no space left"),
    ] {
        let said = say(status, &facts, None, NOW);
        assert_eq!((words(&said)["Ready"], words(&said)["Degraded"]), (expected_ready, degraded));
        let message = &condition(&said, "Degraded").message;
        assert!(message.contains(part), "{message}");
    }
    let said = say(&trial, &facts, None, NOW);
    assert_eq!(words(&said)["Unconfirmed"], ("True", "Trial"));
    assert_eq!(
        condition(&said, "Unconfirmed").message,
        "what is in force goes at 2026-11-26T05:01:00Z unless its self-test passes"
    );
}

/// The worst that sixteen cards with long names, two addresses and trouble come to, and a host of which nothing is small.
#[test]
fn it_is_small_on_every_host() {
    let trouble = |status: &Status| Status {
        reason: Some("HostPolicy/kubelet spec.ingress[12]: \"10.0.0.1/8\" has \u{1b} host bits set; ".repeat(20)),
        state: "degraded".to_owned(),
        in_sync: Some(false),
        drift: vec!["rule \"é\" is \\ missing".repeat(100)],
        drift_events: 1000,
        drift_last: Some(DriftRecord { time: NOW.to_owned(), ..DriftRecord::default() }),
        store_error: Some("x".repeat(5000)),
        ..status.clone()
    };
    let mut sixteen = fixture("dgx-h100");
    let rails: Vec<u32> = sixteen.links.values().filter(|link| link.rdma.is_some()).map(|link| link.index).collect();
    let template = sixteen.links[&rails[0]].clone();
    sixteen.links.retain(|index, link| rails.contains(index) || link.hardware == 772);
    let (_, status) = in_force(POLICY, &sixteen);
    let mut status = trouble(&status);
    status.interfaces.retain(|record| record.role == "rail");
    let record = status.interfaces[0].clone();
    (status.interfaces, sixteen.links) = Default::default();
    for number in 0..16u32 {
        let name = format!("enp{}s0f{:02}np0", 193 + number, number);
        let mut link = nodewall::net::facts::Link { index: 100 + number, ..template.clone() };
        link.addresses = [
            format!("100.100.{}.105/24", 100 + number),
            format!("fd00:1234:5678:9abc:{:04x}:1111:2222:3333/64", 0x1000 + number),
        ]
        .map(|net| net.parse::<IpNet>().unwrap())
        .into();
        sixteen.links.insert(link.index, link);
        let mut one = nodewall::daemon::status::InterfaceRecord { name, index: 100 + number, ..record.clone() };
        one.labels.insert("rail".to_owned(), format!("rail{number}"));
        status.interfaces.push(one);
    }
    let policies: Vec<(String, String)> =
        (0..200).map(|number| (format!("platform/policy-{number:03}"), "01234567".to_owned())).collect();
    let meaning = Meaning { whole: "0".repeat(32), policies, defaults: "0".repeat(8), failsafe: "0".repeat(8) };
    let said = compose(Known { status: &status, facts: &sixteen, meaning: Some(&meaning), before: None, now: NOW });
    assert!(bytes(&said) < MOST, "{} bytes", bytes(&said));
    assert_eq!((said.interfaces.len(), said.omitted), (16, None), "{} bytes", bytes(&said));
    assert!(said.interfaces.iter().all(|interface| interface.addresses.len() == 2));
    println!("16 NICs with two addresses each, 200 policies and trouble: {} bytes", bytes(&said));
    let shown = i64::try_from(said.policies.len()).unwrap();
    assert!(shown >= 40, "{shown}");
    assert_eq!(said.policies_omitted, Some(200 - shown));

    for (name, addresses) in [("dgx-h100", 1), ("dgx-h100", 60), ("sriov-pods", 60), ("roce-lag", 20)] {
        let facts = addressed(name, addresses);
        let (_, status) = in_force(POLICY, &facts);
        let mut status = trouble(&status);
        // Names of policies as long as they get.
        let long =
            |number: u32| PolicyRecord { name: format!("{number}{}", "n".repeat(250)), ..PolicyRecord::default() };
        status.policies = (0..500).map(long).collect();
        let policies: Vec<_> =
            status.policies.iter().map(|policy| (policy.name.clone(), "01234567".to_owned())).collect();
        let meaning = Meaning { policies, ..meaning.clone() };
        let said = compose(Known { status: &status, facts: &facts, meaning: Some(&meaning), before: None, now: NOW });
        assert!(bytes(&said) <= MOST, "{name}: {} bytes", bytes(&said));
        let shown = said.interfaces.len() + usize::try_from(said.omitted.unwrap_or(0)).unwrap();
        let all =
            say(&Status { interfaces: status.interfaces.clone(), ..Status::default() }, &fixture(name), None, NOW);
        assert_eq!(shown, all.interfaces.len() + usize::try_from(all.omitted.unwrap_or(0)).unwrap(), "{name}");
        assert!(said.conditions.iter().all(|condition| condition.message.chars().all(|next| !next.is_control())));
    }
}

fn meant(policy: &str, settings: &NodeSettings, facts: &Facts) -> Meaning {
    let sourced = source::decode_text("somewhere.toml", policy);
    assert_eq!(sourced.findings, []);
    let (effective, _) = resolve(&sourced.policy, settings, facts);
    let summary = summary(&effective);
    let here = summary.policies.iter().map(|policy| (policy.tier.as_str(), policy.name.as_str()));
    meaning(&sourced.policy, settings, here)
}

#[test]
fn nodes_on_which_policies_mean_the_same_have_the_same_hashes() {
    let settings = Config::shipped().settings;
    let mut one = addressed("dgx-h100", 1);
    let first = meant(POLICY, &settings, &one);
    // Other interfaces, addresses, accounts, control groups, servers.
    let mut two = addressed("edge-gpu", 3);
    two.node = "other".to_owned();
    two.users.insert("nobody".to_owned(), 99);
    two.units.insert("sshd.service".to_owned(), [Cgroup { level: 2, id: 77 }].into());
    two.api_servers.insert(("10.0.0.1".parse().unwrap(), 6443));
    assert_eq!(meant(POLICY, &settings, &two), first);
    // Where and how it was written.
    let spelled = POLICY
        .replace("services = [\"web\"]", "protocol = \"tcp\", ports = [443, 80], comment = \"as ever\"")
        .replace("\"10.1.0.0/16\", \"fd00:1::/64\"", "\"fd00:1::/64\", \"10.1.0.0/17\", \"10.1.128.0/17\"")
        .replace("[[set]]\nname = \"admins\"", "# A comment\n\n[[set]]\nname = \"people\"")
        .replace("sets = [\"admins\"]", "sets = [\"people\"]");
    assert_eq!(meant(&spelled, &settings, &one), first);
    // Labels that no policy looks at.
    one.labels.insert("rack".to_owned(), "7".to_owned());
    assert_eq!(meant(POLICY, &settings, &one), first);
}

/// Each is another policy, and which of them differ is told.
#[test]
fn whatever_changes_a_verdict_changes_the_hash_of_that_policy_and_of_the_whole() {
    let (settings, facts) = (Config::shipped().settings, fixture("edge-gpu"));
    let first = meant(POLICY, &settings, &facts);
    let mut wholes = vec![first.whole.clone()];
    let changes = [
        ("web", "\"10.1.0.0/16\"", "\"10.2.0.0/16\""),
        ("web", "\"tcp/80\"", "\"tcp/81\""),
        ("web", "action = \"allow\", from", "action = \"reject\", from"),
        ("web", "interfaces = \"all()\"", "interfaces = \"has(rail)\""),
        ("web", "local = true", "cidrs = [\"10.9.9.9\"]"),
        ("web", "ports = [9]", "ports = [9], log = \"nine\""),
        ("web", "ports = [9]", "ports = [9], limit = { rate = \"5/second\" }"),
        ("web", "ports = [9]", "ports = [9], family = 4"),
        ("web", "interfaces = \"all()\"", "interfaces = \"all()\"\nmode = \"audit\""),
        ("web", "interfaces = \"all()\"", "interfaces = \"all()\"\nstage = \"forward\""),
        ("web", "interfaces = \"all()\"", "interfaces = \"all()\"\nexpires = \"2099-01-01T00:00:00Z\""),
        ("out", "\"nobody\"", "\"root\""),
        ("out", "\"sshd.service\"", "\"cron.service\""),
        ("out", "ports = [443]", "ports = [444]"),
    ];
    for (name, old, new) in changes {
        let text = POLICY.replace(old, new);
        assert_ne!(text, POLICY, "{old}");
        let other = meant(&text, &settings, &facts);
        let differing: Vec<&str> = first
            .policies
            .iter()
            .zip(&other.policies)
            .filter(|(one, another)| one != another)
            .map(|((name, _), _)| name.split('/').nth(1).unwrap())
            .collect();
        assert_eq!(differing, [name], "{new}");
        assert_eq!((&other.defaults, &other.failsafe), (&first.defaults, &first.failsafe));
        wholes.push(other.whole);
    }
    // Order and tiers are no part of a policy, but of the whole.
    let later = POLICY.replace("[[policy]]\nname = \"out\"", "[[policy]]\nname = \"more\"\norder = 20\ninterfaces = \"all()\"\ningress = [{ action = \"allow\" }]\n[[policy]]\nname = \"out\"");
    wholes.push(meant(&later, &settings, &facts).whole);
    wholes.push(meant(&later.replace("order = 20", "order = 5"), &settings, &facts).whole);
    let tier = format!("{POLICY}[[tier]]\nname = \"default\"\norder = 1000\ndefault = \"deny\"\n");
    wholes.push(meant(&tier, &settings, &facts).whole);
    let elsewhere = POLICY
        .replace("order = 10\ninterfaces = \"all()\"", "order = 10\ninterfaces = \"all()\"\nnodes = \"pool == 'x'\"");
    let other = meant(&elsewhere, &settings, &facts);
    assert!(!other.policies.iter().any(|(name, _)| name == "default/web"));
    wholes.push(other.whole);
    // Settings.
    let audit = NodeSettings { mode: nodewall::policy::model::Mode::Audit, ..settings.clone() };
    wholes.push(meant(POLICY, &audit, &facts).whole);
    let other = meant(POLICY, &NodeSettings { drop_invalid: !settings.drop_invalid, ..settings.clone() }, &facts);
    assert!(other.defaults != first.defaults && other.failsafe == first.failsafe && other.policies == first.policies);
    wholes.push(other.whole);
    let other = meant(POLICY, &NodeSettings { failsafe: Vec::new(), ..settings.clone() }, &facts);
    assert!(other.defaults == first.defaults && other.failsafe != first.failsafe && other.policies == first.policies);
    wholes.push(other.whole);
    let count = wholes.len();
    wholes.sort();
    wholes.dedup();
    assert_eq!(wholes.len(), count, "two of them are the same");
}
