//! Calico's objects in place: the same examples as `convert` has, one node at a time, and what wrong objects come to.

use std::collections::BTreeMap;
use std::sync::Arc;

use nodewall::policy::model::Policy;
use nodewall::simulate::{Outcome, decide};
use nodewall::source::calico::{CalicoKind, InPlace, Stored, Versions, in_place};
use nodewall::source::object;
use nodewall::text::render::line;
use nodewall::text::tree::{Node, Source, Value};
use nodewall::text::yaml;
use serde_json::{Value as Json, json};

use super::example::{self, Example, all};

fn json_of(source: &Source, node: &Node<'_>) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::String(text) => json!(text),
        Value::Integer(number) => json!(number),
        Value::Boolean(value) => json!(value),
        Value::Float => source.text[node.span.start as usize..node.span.end as usize].parse::<f64>().unwrap().into(),
        Value::Datetime(_) => unreachable!("YAML has none"),
        Value::Array(items) => items.iter().map(|item| json_of(source, item)).collect(),
        Value::Table(entries) => {
            entries.iter().map(|entry| (entry.key.to_string(), json_of(source, &entry.node))).collect()
        }
    }
}

/// The objects of a YAML text as a cluster would have them, newest and never good.
fn stored(text: &str) -> Stored {
    let source = Source::new("a.yaml", text);
    let (nodes, findings) = yaml::parse(&source);
    assert_eq!(findings, [], "{text}");
    let mut stored = Stored::new();
    for node in &nodes {
        let object = json_of(&source, node);
        let Some(kind) = object["kind"].as_str().and_then(CalicoKind::by_name) else { continue };
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let texts = |key: &str| -> BTreeMap<String, String> {
            let map = object["metadata"][key].as_object().cloned().unwrap_or_default();
            map.into_iter().map(|(key, value)| (key, value.as_str().unwrap().to_owned())).collect()
        };
        let newest = kind.text(&name, &texts("labels"), &texts("annotations"), object["spec"].clone());
        stored.insert((kind, name), Versions { newest, good: None });
    }
    stored
}

/// The policy that documents are; they load without a finding.
fn policy(found: &InPlace) -> Policy {
    let objects: Vec<Json> =
        found.documents.as_ref().unwrap().values().map(|text| serde_json::from_str(text).unwrap()).collect();
    let loaded = object::decode(&objects);
    assert_eq!(loaded.findings, [], "{objects:#?}");
    loaded.policy
}

fn lines(found: &InPlace) -> Vec<String> {
    found.findings.iter().map(line).collect()
}

#[test]
fn every_example_means_the_same_in_place() {
    let (mut packets, mut wrong) = (0, Vec::new());
    for Example { title, yaml, packets: asked, .. } in &all() {
        let stored = stored(yaml);
        for asked in asked {
            let found = in_place("hub", &stored, &asked.node);
            assert!(found.bad.is_empty(), "{title}: {:#?}", lines(&found));
            let decision = decide(&example::node(&asked.node, &policy(&found)), &asked.packet);
            packets += 1;
            let allowed = decision.outcome == Outcome::Accepted;
            let as_said = allowed == asked.allowed
                && (!asked.logged || !decision.logged.is_empty())
                && asked.audited != decision.audited.is_empty();
            if !as_said {
                wrong.push(format!("{title}: {}\n  {decision:?}\n{:#?}", asked.text, found.documents));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(packets >= 250, "{packets}");
}

/// What rules mean of another node is its addresses and ports, however its interface is found.
#[test]
fn endpoints_of_other_nodes_are_addresses() {
    let text = [
        EVERY,
        "---\nkind: HostEndpoint\nmetadata: {name: other, labels: {role: store}}\nspec: {node: n2, expectedIPs: [203.0.113.9], ports: [{name: blocks, protocol: TCP, port: 4420}]}\n",
        &global("p", "selector: all(), egress: [{action: Allow, protocol: TCP, destination: {ports: [blocks]}}, {action: Deny, protocol: TCP}, {action: Deny, destination: {selector: role == 'store'}}, {action: Allow}]"),
    ]
    .concat();
    let found = in_place("hub", &stored(&text), "n1");
    assert!(found.bad.is_empty(), "{:#?}", lines(&found));
    for (packet, allowed) in [
        ("203.0.113.9 tcp/4420", true),
        ("203.0.113.8 tcp/4420", false),
        ("203.0.113.9 udp/9", false),
        ("203.0.113.8 udp/9", true),
    ] {
        assert_eq!(allows(&found, "n1", &format!("out eth0 >{packet}")), allowed, "{packet} {found:#?}");
    }
}

/// Whether a packet like in the examples is allowed on a node.
fn allows(found: &InPlace, node: &str, packet: &str) -> bool {
    decide(&example::node(node, &policy(found)), &example::asked(&format!("{packet} allow")).packet).outcome
        == Outcome::Accepted
}

const EVERY: &str = "---\nkind: HostEndpoint\nmetadata: {name: every, labels: {role: server}}\nspec: {node: n1, interfaceName: '*', profiles: [projectcalico-default-allow]}\n";

fn global(name: &str, spec: &str) -> String {
    format!("---\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// Neither a cluster's labels get into selectors of others, nor others' into Calico's: rules name the sets.
#[test]
fn sets_are_meant_by_name_and_no_document_has_a_name_that_an_object_can_have() {
    let text = format!(
        "{EVERY}---\nkind: GlobalNetworkSet\nmetadata: {{name: feed, labels: {{threat: x}}}}\nspec: {{nets: [203.0.113.0/24]}}\n{}",
        global("p", "selector: all(), ingress: [{action: Deny, source: {selector: has(threat)}}, {action: Allow}]")
    );
    let found = in_place("hub", &stored(&text), "n1");
    let policy = policy(&found);
    assert!(policy.sets.values().all(|set| set.labels.is_empty()));
    assert_eq!(policy.sets.keys().collect::<Vec<_>>(), ["calico_feed"]);
    let documents = found.documents.clone().unwrap();
    assert!(documents.keys().all(|(_, name)| name.starts_with("calico_")), "{documents:#?}");
    assert!(documents.values().all(|text| !text.contains("\"select\"")), "{documents:#?}");
    assert!(!allows(&found, "n1", "in eth0 203.0.113.9 tcp/80"));
    assert!(allows(&found, "n1", "in eth0 198.51.100.9 tcp/80"));
    // A set that is deleted denies nothing any more, rather than everything.
    let mut without = stored(&text);
    without.remove(&(CalicoKind::GlobalNetworkSet, "feed".to_owned()));
    let found = in_place("hub", &without, "n1");
    assert!(allows(&found, "n1", "in eth0 203.0.113.9 tcp/80") && found.bad.is_empty());
    assert!(
        lines(&found).iter().any(|line| line.contains("means none of the GlobalNetworkSets")),
        "{:#?}",
        lines(&found)
    );
}

#[test]
fn policies_that_select_no_endpoint_of_the_node_say_nothing_and_are_not_judged() {
    let text = [
        EVERY,
        &global("pods", "selector: app == 'x', ingress: [{action: Deny, source: {serviceAccounts: {names: [a]}}}]"),
        &global("named", "selector: all(), namespaceSelector: has(x), ingress: [{action: Deny, unheardOf: 1}]"),
        "---\nkind: HostEndpoint\nmetadata: {name: other, labels: {app: x}}\nspec: {node: n2, interfaceName: eth0}\n",
    ]
    .concat();
    let found = in_place("hub", &stored(&text), "N1");
    assert!(found.documents.as_ref().unwrap().keys().all(|(_, name)| !name.contains("pods")), "{found:#?}");
    assert!(found.bad.is_empty(), "{:#?}", lines(&found));
    let found = in_place("hub", &stored(&text), "n3");
    assert_eq!(found.documents, Some(BTreeMap::new()));
    let nothing = in_place("hub", &Stored::new(), "n3");
    assert!(lines(&nothing)[0].contains("no HostEndpoint"), "no Calico at all is said as well");
    assert!(lines(&found)[0].contains("no HostEndpoint of Calico is for node \"n3\""), "{:#?}", lines(&found));
}

/// Bad versions of a policy after a good one, and without: (spec, what the finding says, a packet that may pass, one that may not).
const BAD: [(&str, &str, &str, &str); 6] = [
    (
        "selector: all(), ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}, {action: Deny, protocol: TCP, destination: {ports: [22, 81]}, source: {serviceAccounts: {names: [a]}}}, {action: Allow}]",
        "spec.ingress[1]",
        "tcp/80 tcp/82",
        "tcp/81",
    ),
    (
        "selector: all(), ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}, {action: Deny, protocol: TCP, unheardOf: 1}, {action: Allow}]",
        "spec.ingress[1]",
        "tcp/80",
        "tcp/81 udp/9",
    ),
    (
        "selector: all(), ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}, {action: Allow, unheardOf: 1}]",
        "spec.ingress[1]",
        "tcp/80",
        "tcp/81",
    ),
    ("selector: all(), unheardOf: 1, ingress: [{action: Allow}]", "spec", "", "tcp/80 udp/9"),
    ("selector: role = server, ingress: [{action: Allow}]", "spec.selector", "", "tcp/80"),
    (
        "selector: all(), namespaceSelector: '!has(x)', ingress: [{action: Allow}]",
        "spec.namespaceSelector",
        "",
        "tcp/80",
    ),
];

#[test]
fn a_policy_that_cannot_be_honoured_keeps_its_last_good_version_or_denies_what_it_may_deny() {
    for (spec, place, passes, denied) in BAD {
        let mut stored = stored(&format!("{EVERY}{}", global("p", spec)));
        let key = (CalicoKind::GlobalNetworkPolicy, "p".to_owned());
        let found = in_place("hub", &stored, "n1");
        assert!(found.bad.contains(&key), "{spec}");
        let said = lines(&found);
        let called = format!("cluster hub: GlobalNetworkPolicy/p {place}");
        let about = said.iter().find(|line| line.contains(&called)).unwrap_or_else(|| panic!("{spec}: {said:#?}"));
        assert!(about.contains("warning["), "{about}");
        for packet in passes.split_whitespace() {
            assert!(allows(&found, "n1", &format!("in eth0 198.51.100.7 {packet}")), "{spec}: {packet} {found:#?}");
        }
        for packet in denied.split_whitespace() {
            assert!(!allows(&found, "n1", &format!("in eth0 198.51.100.7 {packet}")), "{spec}: {packet} {found:#?}");
        }
        // Failsafe ports go before it.
        assert!(allows(&found, "n1", "in eth0 198.51.100.7 tcp/22"), "{spec}");
        let good = CalicoKind::GlobalNetworkPolicy.text(
            "p",
            &BTreeMap::new(),
            &BTreeMap::new(),
            json!({ "selector": "all()", "ingress": [{ "action": "Deny", "protocol": "UDP" }, { "action": "Allow" }] }),
        );
        stored.get_mut(&key).unwrap().good = Some(Arc::clone(&good));
        let found = in_place("hub", &stored, "n1");
        assert!(found.bad.contains(&key) && allows(&found, "n1", "in eth0 198.51.100.7 tcp/81"), "{spec}");
        assert!(!allows(&found, "n1", "in eth0 198.51.100.7 udp/9"), "{spec}");
        let helps: Vec<&str> = found.findings.iter().map(|finding| finding.help.as_str()).collect();
        assert!(helps.iter().any(|help| help.contains("last good version stays in force")), "{spec}: {helps:#?}");
        stored.get_mut(&key).unwrap().newest = good;
        assert!(in_place("hub", &stored, "n1").bad.is_empty(), "{spec}");
    }
}

#[test]
fn a_wrong_set_endpoint_or_tier_opens_nothing() {
    let allow = global(
        "p",
        "selector: all(), ingress: [{action: Deny, protocol: TCP, source: {selector: has(threat)}}, {action: Allow, source: {selector: has(threat) || has(friend)}}]",
    );
    let feed = "---\nkind: GlobalNetworkSet\nmetadata: {name: feed, labels: {threat: x}}\nspec: {nets: [203.0.113.0/24, oops]}\n";
    let found = in_place("hub", &stored(&[EVERY, &allow, feed].concat()), "n1");
    assert_eq!(found.bad.len(), 2, "{:#?}", lines(&found));
    assert!(!allows(&found, "n1", "in eth0 198.51.100.7 tcp/80"), "it may be in the set");
    assert!(allows(&found, "n1", "in eth0 203.0.113.7 udp/80") && !allows(&found, "n1", "in eth0 198.51.100.7 udp/80"));

    // An endpoint that is found by address counts for every interface, and one with a profile of its own denies at its end.
    for spec in [
        "node: n1, expectedIPs: [192.0.2.1]",
        "node: n1, interfaceName: eth0, profiles: [mine, projectcalico-default-allow]",
    ] {
        let text =
            format!("---\nkind: HostEndpoint\nmetadata: {{name: h, labels: {{role: server}}}}\nspec: {{{spec}}}\n");
        let web = global(
            "web",
            "selector: role == 'server', ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]",
        );
        let found = in_place("hub", &stored(&format!("{text}{web}")), "n1");
        assert_eq!(found.bad.len(), 1, "{spec}");
        assert!(allows(&found, "n1", "in eth0 198.51.100.7 tcp/80"), "{spec}");
        assert!(!allows(&found, "n1", "in eth0 198.51.100.7 tcp/81"), "{spec}");
        assert!(!allows(&found, "n1", "out eth0 >198.51.100.7 tcp/443"), "{spec}");
    }
    // It does not take the place of one that is meant for every interface.
    let by_address =
        "---\nkind: HostEndpoint\nmetadata: {name: a, labels: {free: x}}\nspec: {node: n1, expectedIPs: [192.0.2.1]}\n";
    let free = global("free", "selector: has(free), ingress: [{action: Allow}]");
    let closed = global("closed", "selector: role == 'server', ingress: [{action: Deny}]");
    let found = in_place("hub", &stored(&[EVERY, by_address, &free, &closed].concat()), "n1");
    assert!(!allows(&found, "n1", "in eth0 198.51.100.7 tcp/80"), "{found:#?}");
    assert!(lines(&found).iter().any(|line| line.contains("\"a\" is left out")), "{:#?}", lines(&found));
    // A tier that is not there is the last one; one that cannot be read denies at its end.
    let policy = |tier: &str| global("q", &format!("tier: {tier}, selector: all(), ingress: [{{action: Log}}]"));
    let tier = "---\nkind: Tier\nmetadata: {name: t}\nspec: {order: 5, defaultAction: Perhaps}\n";
    for text in [policy("nowhere"), format!("{tier}{}", policy("t"))] {
        let found = in_place("hub", &stored(&format!("{EVERY}{text}")), "n1");
        assert!(!allows(&found, "n1", "in eth0 198.51.100.7 tcp/80"), "{text}");
        assert!(allows(&found, "n1", "out eth0 >198.51.100.7 tcp/80"), "{text}");
    }
}

#[test]
fn a_node_has_its_own_failsafe_ports_and_without_a_configuration_calico_s() {
    let own = |name: &str, port: u16| {
        format!(
            "---\nkind: FelixConfiguration\nmetadata: {{name: {name}}}\nspec: {{failsafeInboundHostPorts: [{{protocol: tcp, port: {port}}}]}}\n"
        )
    };
    let endpoint = "---\nkind: HostEndpoint\nmetadata: {name: h}\nspec: {node: n1, interfaceName: eth0}\n";
    let reached = |text: &str| {
        let found = in_place("hub", &stored(text), "n1");
        assert!(found.bad.is_empty(), "{:#?}", lines(&found));
        let ports = [22_u16, 2222, 2223].into_iter();
        let ports: Vec<u16> =
            ports.filter(|port| allows(&found, "n1", &format!("in eth0 198.51.100.7 tcp/{port}"))).collect();
        (ports, lines(&found).iter().any(|line| line.contains("own failsafe ports hold")))
    };
    assert_eq!(reached(endpoint), (vec![22], true));
    assert_eq!(reached(&[endpoint, &own("default", 2222)].concat()), (vec![2222], false));
    let all = [endpoint, &own("default", 2222), &own("node.n1", 2223), &own("node.n2", 22)].concat();
    assert_eq!(reached(&all), (vec![2223], false));
}

#[test]
fn staged_policies_are_audited_and_a_wrong_one_changes_nothing() {
    let staged =
        |spec: &str| format!("{EVERY}---\nkind: StagedGlobalNetworkPolicy\nmetadata: {{name: s}}\nspec: {{{spec}}}\n");
    let good = in_place("hub", &stored(&staged("selector: all(), ingress: [{action: Deny}]")), "n1");
    let modes =
        |found: &InPlace| found.documents.as_ref().unwrap().values().filter(|text| text.contains("\"audit\"")).count();
    assert_eq!((modes(&good), good.bad.len()), (1, 0));
    assert!(allows(&good, "n1", "in eth0 198.51.100.7 tcp/80"));
    let bad = in_place("hub", &stored(&staged("selector: all(), ingress: [{action: Deny, unheardOf: 1}]")), "n1");
    assert_eq!((modes(&bad), bad.bad.len()), (0, 1));
    assert!(allows(&bad, "n1", "in eth0 198.51.100.7 tcp/80"));
}

/// The traps of Calico that are documented are said, each at its object.
#[test]
fn traps_are_said_at_their_objects() {
    let text = format!("{EVERY}{}", global("only-logs", "selector: all(), types: [Ingress], ingress: [{action: Log}]"));
    let said = lines(&in_place("hub", &stored(&text), "n1"));
    for (object, words) in [
        ("HostEndpoint/every", "neighbour discovery"),
        ("HostEndpoint/every", "loopback"),
        ("GlobalNetworkPolicy/only-logs", "only logs"),
    ] {
        let is_it = |line: &&String| line.contains(&format!("cluster hub: {object}")) && line.contains(words);
        assert!(said.iter().any(|line| is_it(&line)), "{object} {words}: {said:#?}");
    }
}

/// Every place in a JSON value where an object could have one more field.
fn objects_in(value: &Json, path: &str, into: &mut Vec<String>) {
    match value {
        Json::Object(fields) => {
            into.push(path.to_owned());
            fields.iter().for_each(|(key, value)| objects_in(value, &format!("{path}/{key}"), into));
        }
        Json::Array(items) => {
            (0..).zip(items).for_each(|(index, value)| objects_in(value, &format!("{path}/{index}"), into));
        }
        _ => {}
    }
}

/// Whatever field of a policy, set, endpoint or tier of the examples nobody knows: it is said, what comes of it loads, and no packet
/// passes that did not before.
#[test]
fn an_object_that_was_never_good_opens_nothing() {
    let (mut spoilt, mut closed) = (0, 0);
    for Example { title, yaml, packets: asked, .. } in all().iter().filter(|example| !example.packets.is_empty()) {
        let good = stored(yaml);
        let allowed = |stored: &Stored| -> Vec<bool> {
            let mut nodes = BTreeMap::new();
            let ask = |asked: &example::Asked| {
                let effective = nodes
                    .entry(asked.node.clone())
                    .or_insert_with_key(|node| example::node(node, &policy(&in_place("hub", stored, node))));
                decide(effective, &asked.packet).outcome == Outcome::Accepted
            };
            asked.iter().map(ask).collect()
        };
        let before = allowed(&good);
        for (key, versions) in good.iter().filter(|((kind, _), _)| *kind != CalicoKind::FelixConfiguration) {
            let object: Json = serde_json::from_str(&versions.newest).unwrap();
            let mut places = Vec::new();
            objects_in(&object["spec"], "/spec", &mut places);
            for place in places {
                let mut object = object.clone();
                object.pointer_mut(&place).unwrap()["unheardOf"] = json!(1);
                let mut bad = good.clone();
                bad.get_mut(key).unwrap().newest = object.to_string().into();
                let after = allowed(&bad);
                let opened = after.iter().zip(&before).position(|(after, before)| *after && !before);
                assert_eq!(opened.map(|at| &asked[at].text), None, "{title}: {key:?} {place}");
                spoilt += 1;
                closed += usize::from(after != before);
            }
        }
    }
    assert!(spoilt > 300 && closed > 100, "{spoilt} of which {closed} closed something");
}
