//! Groups, their differences, and what these are to packets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nodewall::config::Config;
use nodewall::fleet::api::Api;
use nodewall::fleet::survey::{Survey, TroubleKind};
use nodewall::fleet::{Condition, Interface, Member, Members, Report, words};
use nodewall::net::interface::Role;
use nodewall::policy::guards::Guards;
use nodewall::source;
use serde_json::{Value as Json, json};

const NOW: u64 = 1_800_000_000;

pub fn object(kind: &str, name: &str, spec: &Json) -> Json {
    json!({ "apiVersion": "nodewall.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

/// The set dev, who may reach Jupyter; a policy for all, and one for a pool.
pub fn documents() -> Vec<Json> {
    vec![
        object("HostNetworkSet", "dev", &json!({ "cidrs": ["10.0.9.0/24"] })),
        object(
            "HostPolicy",
            "jupyter",
            &json!({
                "order": 10, "interfaces": "role == 'mgmt'",
                "ingress": [{ "action": "allow", "from": { "sets": ["dev"] }, "protocol": "tcp", "ports": [8888] }],
            }),
        ),
        object(
            "HostPolicy",
            "web",
            &json!({
                "order": 20, "interfaces": "all()",
                "ingress": [{ "action": "allow", "protocol": "tcp", "ports": [80, 443] }],
            }),
        ),
        object(
            "HostPolicy",
            "nfs",
            &json!({
                "order": 30, "interfaces": "role == 'mgmt'", "nodes": "pool == 'storage'",
                "ingress": [{ "action": "allow", "protocol": "tcp", "ports": [2049] }],
            }),
        ),
    ]
}

pub fn api(documents: &[Json], clusters: &[&str]) -> Api {
    let sourced = source::object::decode(documents);
    assert!(sourced.findings.is_empty(), "{:?}", sourced.findings);
    let mut policy = sourced.policy;
    policy.guard(source::guards::shipped(), &Guards::default());
    let clusters: Vec<String> = clusters.iter().map(|name| (*name).to_owned()).collect();
    Api::new(true, policy, Config::shipped().settings, &clusters, NOW)
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        since: "2026-11-26T05:00:00Z".to_owned(),
    }
}

/// A node of a pool that has in force what the API says, but for what `change` does to the hashes of its policies.
fn member(api: &Api, number: usize, pool: &str, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Member {
    let labels = BTreeMap::from([("pool".to_owned(), pool.to_owned())]);
    let mut member = Member { labels: Some(labels), ..Member::default() };
    let meant = api.meant_for("x", &member);
    let mut policies: BTreeMap<String, String> =
        meant.iter().map(|name| (name.clone(), api.hash(name).unwrap().to_owned())).collect();
    policies.extend(all_of(api));
    change(&mut policies);
    let hash: Vec<String> = policies.iter().map(|(name, hash)| format!("{name}={hash}")).collect();
    let address = format!("10.1.{}.{}/16", number / 250, number % 250 + 1);
    member.report = Some(Report {
        version: Some("0.1.0".to_owned()),
        mode: Some("enforce".to_owned()),
        hash: Some(hash.join(" ")),
        policies,
        defaults: Some(api.settings_mean.defaults.clone()),
        failsafe: Some(api.settings_mean.failsafe.clone()),
        conditions: vec![
            condition("Ready", "True", "PolicyInForce", ""),
            condition("InSync", "True", "InSync", ""),
            condition("Degraded", "False", "AsWanted", ""),
        ],
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            role: Role::Mgmt,
            rail: None,
            coverage: Some("enforced".to_owned()),
            addresses: vec![address.parse().unwrap()],
        }],
        ..Report::default()
    });
    member
}

fn fleet(api: &Api, nodes: usize) -> Members {
    (1..=nodes).map(|number| (format!("gpu-{number:05}"), member(api, number, "training", |_| {}))).collect()
}

/// With the guards, which no object says.
fn all_of(api: &Api) -> BTreeMap<String, String> {
    let guards = api.policy.policies.iter().filter(|policy| policy.tier == "guards");
    let names = guards.map(|policy| format!("{}/{}", policy.tier, policy.name));
    names.map(|name| (name.clone(), api.hash(&name).unwrap().to_owned())).collect()
}

/// The lines about packets of a group.
fn packets(survey: &Survey, group: usize, api: &Api) -> Vec<String> {
    let group = &survey.groups[group];
    let compared = group.packets.as_ref().unwrap();
    compared.contrasts.iter().map(|contrast| words::contrast(contrast, group.reference, api)).collect()
}

fn difference(survey: &Survey, group: usize, api: &Api) -> Vec<String> {
    words::difference(&survey.groups[group], api)
}

#[test]
fn a_fleet_in_which_all_is_as_meant_is_one_group_for_each_kind_of_nodes() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 20);
    let survey = Survey::of(&members, &members, &api);
    assert_eq!(words::whole(&survey), "20 nodes: 20 in force; none differs in what its policy means");
    assert!(survey.is_well() && survey.groups.len() == 1 && survey.troubles.is_empty());
    // Another pool has another policy, as it is meant to.
    members.insert("nas-1".to_owned(), member(&api, 900, "storage", |_| {}));
    let survey = Survey::of(&members, &members, &api);
    assert!(survey.is_well(), "{survey:?}");
    assert_eq!((survey.groups.len(), survey.pools, survey.differ), (2, 2, 0));
}

#[test]
fn three_nodes_that_differ_are_said_with_what_that_is_to_packets() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 512);
    for number in [7, 8, 9] {
        let lacking = member(&api, number, "training", |policies| drop(policies.remove("default/jupyter").unwrap()));
        members.insert(format!("gpu-{number:05}"), lacking);
    }
    let survey = Survey::of(&members, &members, &api);
    assert_eq!(words::whole(&survey), "512 nodes: 512 in force; 3 differ in what their policy means");
    assert!(!survey.is_well());
    assert_eq!(difference(&survey, 1, &api), ["lacks policy default/jupyter"]);
    assert_eq!(
        packets(&survey, 1, &api),
        ["from set dev (10.0.9.0/24) to tcp/8888 on mgmt: allowed in group 1, denied here"]
    );
    assert_eq!(survey.groups[1].packets.as_ref().unwrap().notes, Vec::<String>::new());
}

#[test]
fn a_policy_that_only_some_have_is_told_from_both_sides() {
    let mut documents = documents();
    documents.push(object(
        "HostPolicy",
        "no-mail",
        &json!({
            "order": 1, "interfaces": "all()", "nodes": "pool == 'nowhere' || name == 'gpu-00001' || has(pool)",
            "egress": [{ "action": "deny", "to": { "cidrs": ["192.0.2.0/24"] }, "protocol": "tcp", "ports": [25] }],
            "ingress": [{ "action": "allow", "protocol": "icmp", "icmp": { "type": "timestamp-request" } }],
        }),
    ));
    let api = api(&documents, &["own"]);
    let mut members: Members = (1..=5)
        .map(|number| {
            let without =
                member(&api, number, "training", |policies| drop(policies.remove("default/no-mail").unwrap()));
            (format!("gpu-{number:05}"), without)
        })
        .collect();
    members.insert("gpu-00006".to_owned(), member(&api, 6, "training", |_| {}));
    let survey = Survey::of(&members, &members, &api);
    assert_eq!(difference(&survey, 1, &api), ["has policy default/no-mail besides"]);
    assert_eq!(
        packets(&survey, 1, &api),
        [
            "from anyone to icmp/timestamp-request on mgmt: denied in group 1, allowed here",
            "to tcp/25 of 192.0.2.0/24 by mgmt: allowed in group 1, denied here",
        ]
    );
    // The five are behind the API, which says so for all of them.
    assert_eq!((survey.differ, survey.behind), (1, 5));
    assert_eq!(
        words::behind(&survey.groups[0].behind[0]),
        "policy default/no-mail of the API is for them and not in force"
    );
}

#[test]
fn where_only_hashes_are_known_that_is_said_and_no_packets_are_made_up() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 5);
    let older = |policies: &mut BTreeMap<String, String>| {
        policies.insert("default/web".to_owned(), "ab12cd34".to_owned());
        policies.insert("default/mine".to_owned(), "00000001".to_owned());
    };
    members.insert("gpu-00003".to_owned(), member(&api, 3, "training", older));
    let survey = Survey::of(&members, &members, &api);
    let apis = api.hash("default/web").unwrap();
    assert_eq!(
        difference(&survey, 1, &api),
        [
            "has policy default/mine besides, which is in no object of the API: a local file, or converted".to_owned(),
            format!("has an older or local version of policy default/web (its hash ab12cd34; the API's is {apis})"),
        ]
    );
    let compared = survey.groups[1].packets.as_ref().unwrap();
    assert_eq!(
        (compared.contrasts.len(), &compared.unknown[..]),
        (0, &["default/mine".to_owned(), "default/web".to_owned()][..])
    );
    assert_eq!(survey.groups[1].local, ["default/mine"]);
}

#[test]
fn a_guard_that_settings_switch_off_is_a_difference_and_nothing_that_the_api_says() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 3);
    let off = |policies: &mut BTreeMap<String, String>| drop(policies.remove("guards/guard-metadata").unwrap());
    members.insert("gpu-00003".to_owned(), member(&api, 3, "training", off));
    let survey = Survey::of(&members, &members, &api);
    assert_eq!((survey.differ, survey.behind), (1, 0));
    assert_eq!(difference(&survey, 1, &api), ["lacks policy guards/guard-metadata"]);
    let lines = packets(&survey, 1, &api);
    // DNS and NTP have a failsafe.
    let what = "tcp/1-52,54-65535, udp/1-52,54-122,124-65535, icmp, other protocols";
    assert_eq!(lines, [format!("to {what} of 169.254.169.254 by mgmt: denied in group 1, allowed here")]);
}

#[test]
fn a_policy_about_nodes_is_the_apis_whatever_nodes_call_the_cluster() {
    let mut documents = documents();
    documents.push(object(
        "HostPolicy",
        "peers",
        &json!({
            "order": 1, "interfaces": "role == 'mgmt'",
            "ingress": [{ "action": "allow", "from": { "nodes": "pool == 'training'", "role": "mgmt" }, "protocol": "udp", "ports": [7000] }],
        }),
    ));
    // As a node says it that calls the cluster "hub".
    let theirs = api(&documents, &["hub"]);
    let ours = api(&documents, &["own", "hub"]);
    let mut members = fleet(&theirs, 3);
    let lacking = member(&theirs, 4, "training", |policies| drop(policies.remove("default/peers").unwrap()));
    members.insert("gpu-00004".to_owned(), lacking);
    let survey = Survey::of(&members, &members, &ours);
    assert_eq!(survey.groups[0].behind, []);
    let lines = packets(&survey, 1, &ours);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("from 10.1.0.2") && lines[0].contains("to udp/7000 on mgmt"), "{lines:?}");
    let alone = Survey::of(&members, &members, &api(&documents, &["own"]));
    assert_eq!(alone.groups[0].behind.len(), 1, "it is not known what nodes call this cluster");
}

#[test]
fn modes_defaults_failsafe_and_order_are_differences_of_their_own() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 6);
    let mut set = |name: &str, change: fn(&mut Report)| {
        let report = members.get_mut(name).unwrap().report.as_mut().unwrap();
        report.hash = Some(format!("of {name}"));
        change(report);
    };
    set("gpu-00001", |report| report.mode = Some("audit".to_owned()));
    set("gpu-00002", |report| report.defaults = Some("11111111".to_owned()));
    set("gpu-00003", |report| report.failsafe = Some("22222222".to_owned()));
    set("gpu-00004", |_| {});
    let survey = Survey::of(&members, &members, &api);
    let group = |name: &str| survey.groups.iter().position(|group| group.nodes == [name]).unwrap();
    let line = |name: &str| difference(&survey, group(name), &api).concat();
    assert_eq!(line("gpu-00001"), "has another mode (audit here, enforce there)");
    assert!(line("gpu-00002").starts_with("has other defaults"), "{}", line("gpu-00002"));
    assert!(line("gpu-00003").starts_with("has another failsafe (22222222 here"), "{}", line("gpu-00003"));
    assert_eq!(line("gpu-00004"), "has the same policies in another order, or with another default of their tiers");
    assert_eq!(survey.differ, 4);
}

#[test]
fn what_is_amiss_is_listed_the_worst_first_and_the_same_once() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 10);
    let mut set = |name: &str, change: &dyn Fn(&mut Report)| {
        change(members.get_mut(name).unwrap().report.as_mut().unwrap());
    };
    set("gpu-00001", &|report| report.conditions[0] = condition("Ready", "False", "Panic", "only essentials"));
    set("gpu-00002", &|report| report.conditions[1] = condition("InSync", "False", "Drifting", "a rule is gone"));
    for name in ["gpu-00003", "gpu-00004"] {
        let away = condition("Degraded", "True", "ClusterAway", "cluster \"own\" does not answer");
        set(name, &|report| report.conditions[2] = away.clone());
    }
    set("gpu-00005", &|report| report.conditions.push(condition("Unconfirmed", "True", "Trial", "until 06:00")));
    set("gpu-00006", &|report| report.drifts = 3);
    members.get_mut("gpu-00007").unwrap().report = None;
    members.get_mut("gpu-00008").unwrap().report = None;
    members.get_mut("gpu-00009").unwrap().labels = None;
    members.get_mut("gpu-00010").unwrap().report = Some(Report::default());
    let survey = Survey::of(&members, &members, &api);
    assert_eq!(
        words::whole(&survey),
        "9 nodes: 2 in force, 3 degraded, 2 not ready, 2 without nodewall; none differs in what its policy means"
    );
    let kinds: Vec<(TroubleKind, usize)> =
        survey.troubles.iter().map(|trouble| (trouble.kind, trouble.nodes.len())).collect();
    use TroubleKind::{Degraded, Drift, NoNode, NotReady, OutOfSync, Unconfirmed, Without};
    assert_eq!(
        kinds,
        [
            (Without, 2),
            (NotReady, 1),
            (NotReady, 1),
            (OutOfSync, 1),
            (Degraded, 2),
            (Unconfirmed, 1),
            (Drift, 1),
            (NoNode, 1)
        ]
    );
    assert!(!survey.is_well() && survey.groups.iter().any(|group| group.hash.is_none() && group.difference.is_some()));
    assert_eq!(survey.troubles[4].what, "degraded: ClusterAway: cluster \"own\" does not answer");
}

#[test]
fn what_a_node_that_is_gone_has_left_is_no_node() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 2);
    members.get_mut("gpu-00002").unwrap().labels = None;
    let survey = Survey::of(&members, &members, &api);
    assert_eq!(words::whole(&survey), "1 node: 1 in force; none differs in what its policy means");
    assert!(survey.is_well() && survey.troubles.len() == 1, "{survey:?}");
}

#[test]
fn policies_that_there_was_no_room_for_are_not_taken_to_be_missing() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 3);
    let cut = |policies: &mut BTreeMap<String, String>| drop(policies.remove("default/web").unwrap());
    let mut without = member(&api, 3, "training", cut);
    without.report.as_mut().unwrap().omitted = 1;
    members.insert("gpu-00003".to_owned(), without);
    let survey = Survey::of(&members, &members, &api);
    assert_eq!(
        difference(&survey, 1, &api),
        ["1 more policies are not told apart: there is no room for them in a HostState"]
    );
    assert_eq!(survey.groups[1].behind, []);
}

#[test]
fn ten_thousand_nodes_take_seconds() {
    let api = api(&documents(), &["own"]);
    let mut members = fleet(&api, 10_000);
    for number in 1..=500 {
        let other = |policies: &mut BTreeMap<String, String>| {
            policies.insert("default/web".to_owned(), format!("{number:08x}"));
            policies.remove("default/jupyter");
        };
        members.insert(format!("gpu-{number:05}"), member(&api, number, "training", other));
    }
    let start = Instant::now();
    let survey = Survey::of(&members, &members, &api);
    let took = start.elapsed();
    assert_eq!((survey.groups.len(), survey.differ), (501, 500));
    assert_eq!(survey.groups.iter().filter(|group| group.packets.is_some()).count(), 16);
    // Far more than it takes, and far less than one comparison of each with each would.
    assert!(took < Duration::from_secs(60), "{took:?}");
    eprintln!("10,000 nodes in 501 groups: {took:?}");
}

#[test]
fn a_large_policy_is_compared_in_seconds() {
    let mut documents = documents();
    for number in 0..200 {
        let cidrs: Vec<String> =
            (0..20).map(|host| format!("10.{}.{number}.{}/32", 10 + number % 7, 2 * host)).collect();
        let rules: Vec<Json> = (0..5)
            .map(|rule| json!({ "action": "allow", "from": { "cidrs": cidrs }, "protocol": "tcp", "ports": [1024 + number * 5 + rule] }))
            .collect();
        let spec = json!({ "order": 100 + number, "interfaces": "role == 'mgmt'", "ingress": rules });
        documents.push(object("HostPolicy", &format!("many-{number}"), &spec));
    }
    let api = api(&documents, &["own"]);
    let mut members = fleet(&api, 10);
    let lacking = |policies: &mut BTreeMap<String, String>| drop(policies.remove("default/many-7").unwrap());
    members.insert("gpu-00003".to_owned(), member(&api, 3, "training", lacking));
    let start = Instant::now();
    let survey = Survey::of(&members, &members, &api);
    let took = start.elapsed();
    let lines = packets(&survey, 1, &api);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(" to tcp/1059-1063 on mgmt: allowed in group 1, denied here"), "{lines:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    eprintln!("one difference in 200 policies: {took:?}");
}
