//! Calico's objects in place, from the server to what is held, and to packets.

use std::collections::BTreeSet;

use nodewall::policy::clusters::{Cluster, Contribution};
use nodewall::source::kube::{Holding, Reach};
use nodewall::text::render::line;
use serde_json::{Value as Json, json};

use super::daemon::{settings, until};
use super::follower::{Follower, cluster};
use super::lab::daemon::{Node, Prober};
use super::lab::{isolated, sh};
use super::stand_in::StandIn;

const CRD: &str = "crd.projectcalico.org/v1";
const V3: &str = "projectcalico.org/v3";

/// What the nodes of these tests are called.
const NODE: &str = "n1";

fn calico(server: &StandIn) -> Cluster {
    Cluster { calico: true, contribute: [Contribution::Sets].into(), ..cluster(&server.kubeconfig()) }
}

/// An object as each form has it: in a CRD, Calico keeps its labels in an annotation.
fn labelled(group: &str, labels: &Json, spec: &Json) -> Json {
    let kept = json!({ "labels": labels, "uid": "7" }).to_string();
    let metadata = match group {
        CRD => json!({ "annotations": { "projectcalico.org/metadata": kept } }),
        _ => json!({ "labels": labels, "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" } }),
    };
    json!({ "apiVersion": group, "metadata": metadata, "spec": spec })
}

fn endpoint(group: &str, node: &str) -> Json {
    labelled(group, &json!({ "role": "gpu" }), &json!({ "node": node, "interfaceName": "*" }))
}

fn web(group: &str, rules: &Json) -> Json {
    let spec = json!({ "selector": "role == 'gpu'", "order": 10, "ingress": rules });
    json!({ "apiVersion": group, "metadata": {}, "spec": spec })
}

fn allow(port: u16) -> Json {
    json!([{ "action": "Allow", "protocol": "TCP", "destination": { "ports": [port] } }])
}

/// The rules of a document that came from a policy of Calico's.
fn rules(follower: &Follower, name: &str) -> Option<String> {
    let specs = follower.specs();
    specs.get(&("hostpolicies".to_owned(), name.to_owned())).map(|spec| spec["ingress"].to_string())
}

fn has(follower: &Follower, name: &str, part: &str) -> bool {
    rules(follower, name).is_some_and(|rules| rules.contains(part))
}

fn findings(holding: &Holding) -> Vec<String> {
    holding.findings.iter().map(line).collect()
}

#[test]
fn objects_of_either_form_become_documents_and_go_with_them() {
    for (serves, group) in [(&[CRD][..], CRD), (&[V3][..], V3), (&[V3, CRD][..], CRD)] {
        let server = StandIn::start();
        serves.iter().for_each(|group| server.serve(group));
        server.put("hostendpoints", "h", endpoint(group, "N1"));
        server.put("felixconfigurations", "default", json!({ "spec": { "failsafeInboundHostPorts": [] } }));
        let mut follower = Follower::named(calico(&server), &Holding::default(), NODE);
        follower.until("the endpoint", |it| {
            it.holding().heard && rules(it, "calico_default-deny").is_some() && it.health().reach == Reach::Synced
        });
        server.put("globalnetworkpolicies", "web", web(group, &allow(8080)));
        follower.until("a policy", |it| has(it, "calico_web", "8080"));
        server.put("globalnetworkpolicies", "web", web(group, &allow(8081)));
        follower.until("its change", |it| has(it, "calico_web", "8081"));
        let set = labelled(group, &json!({ "threat": "x" }), &json!({ "nets": ["203.0.113.0/24"] }));
        server.put("globalnetworksets", "feed", set);
        let deny = json!([{ "action": "Deny", "source": { "selector": "has(threat)" } }]);
        server.put("globalnetworkpolicies", "feed", web(group, &deny));
        follower.until("a set", |it| has(it, "calico_feed", "calico_feed"));
        // What selectors look at is a change, and nothing else that a server writes beside the spec.
        server.put(
            "hostendpoints",
            "h",
            labelled(group, &json!({ "role": "other" }), &json!({ "node": "n1", "interfaceName": "*" })),
        );
        follower.until("a label", |it| rules(it, "calico_web").is_none());
        server.put("hostendpoints", "h", endpoint(group, "n1"));
        follower.until("a label", |it| has(it, "calico_web", "8081"));
        server.remove("globalnetworkpolicies", "web");
        follower.until("its end", |it| rules(it, "calico_web").is_none() && rules(it, "calico_feed").is_some());
        server.remove("hostendpoints", "h");
        follower.until("the end of all", |it| it.specs().is_empty());
        let other = if group == CRD { V3 } else { CRD };
        let asked = |kind: &str| server.requests(&format!("/apis/{other}/{kind}"));
        assert_eq!(
            asked("hostendpoints"),
            usize::from(group == V3),
            "{serves:?}: the other form is asked for once, and only first"
        );
    }
}

#[test]
fn a_wrong_object_counts_as_before_also_over_a_restart_and_stops_nothing_else() {
    let server = StandIn::start();
    server.serve(CRD);
    server.put("hostendpoints", "h", endpoint(CRD, NODE));
    server.put("hostendpoints", "other", endpoint(CRD, "n2"));
    server.put("globalnetworkpolicies", "web", web(CRD, &allow(8080)));
    let mut follower = Follower::named(calico(&server), &Holding::default(), NODE);
    follower.until("the policy", |it| has(it, "calico_web", "8080"));
    let wrong = || {
        let rules =
            json!([{ "action": "Deny", "source": { "serviceAccounts": { "names": ["a"] } } }, { "action": "Allow" }]);
        web(CRD, &rules)
    };
    server.put("globalnetworkpolicies", "web", wrong());
    server.put("globalnetworkpolicies", "next", web(CRD, &allow(9090)));
    follower.until("the next", |it| has(it, "calico_next", "9090") && !it.health().invalid.is_empty());
    let is_told = |holding: &Holding| {
        let said = findings(holding);
        let place = "cluster hub: GlobalNetworkPolicy/web spec.ingress[0]";
        said.iter().any(|line| line.contains(place) && line.contains("serviceAccounts"))
    };
    assert_eq!(follower.health().invalid, ["GlobalNetworkPolicy/web"]);
    assert!(has(&follower, "calico_web", "8080") && is_told(follower.holding()), "{:#?}", findings(follower.holding()));

    // From the disk, without the server, and with it.
    let kept = follower.holding().to_text("hub").unwrap();
    let restored = Holding::restore(&kept).unwrap();
    assert_eq!(restored.objects, follower.holding().objects);
    assert_eq!(restored.calico, follower.holding().calico);
    assert!(is_told(&restored), "it is said without a daemon as well");
    drop(follower);
    server.black_hole(true);
    let mut follower = Follower::named(calico(&server), &restored, NODE);
    follower.until("its absence", |it| it.health().reach == Reach::Away);
    assert!(has(&follower, "calico_web", "8080"));
    server.black_hole(false);
    follower.until("the server", |it| it.health().reach == Reach::Synced);
    assert!(has(&follower, "calico_web", "8080") && has(&follower, "calico_next", "9090"));
    server.put("globalnetworkpolicies", "web", web(CRD, &allow(8082)));
    follower.until("a good one", |it| has(it, "calico_web", "8082") && it.health().invalid.is_empty());

    // For another node, the same objects are other documents.
    let mut other = Follower::named(calico(&server), &restored, "n3");
    other.until("that there is nothing", |it| it.holding().heard && it.specs().is_empty());
    assert!(findings(other.holding()).iter().any(|line| line.contains("no HostEndpoint of Calico is for node \"n3\"")));
}

#[test]
fn kinds_that_are_not_there_are_no_trouble_and_a_staged_policy_is_in_audit_mode() {
    let server = StandIn::start();
    server.serve(CRD);
    for kind in ["stagedglobalnetworkpolicies", "tiers"] {
        server.refuse_kind(kind, Some(404));
    }
    server.refuse_kind("felixconfigurations", Some(403));
    server.put("hostendpoints", "h", endpoint(CRD, NODE));
    server.put("globalnetworkpolicies", "web", web(CRD, &allow(8080)));
    let mut follower = Follower::named(calico(&server), &Holding::default(), NODE);
    follower.until("the policy", |it| has(it, "calico_web", "8080"));
    follower.until("that all is well", |it| it.health().reach == Reach::Synced);
    assert_eq!(follower.health().error, None);
    let said = findings(follower.holding());
    assert!(said.iter().any(|line| line.contains("Calico's own failsafe ports hold")), "{said:#?}");

    // What was there once and is refused stays, and that is trouble.
    server.refuse_kind("stagedglobalnetworkpolicies", None);
    server.restart();
    server.put("stagedglobalnetworkpolicies", "web", web(CRD, &json!([{ "action": "Deny" }])));
    let staged = |it: &Follower| {
        let specs = it.specs();
        specs.get(&("hostpolicies".to_owned(), "calico_web-staged".to_owned())).map(|spec| spec["mode"].clone())
    };
    follower.until("the staged policy", |it| staged(it) == Some(json!("audit")));
    server.refuse_kind("stagedglobalnetworkpolicies", Some(403));
    server.restart();
    follower.until("the refusal", |it| it.health().reach == Reach::Partial);
    assert_eq!(staged(&follower), Some(json!("audit")));
}

/// An object of ours cannot take the name of a document of Calico's, and the permission that goes with it.
#[test]
fn an_object_with_a_name_of_calico_s_documents_is_not_taken() {
    let server = StandIn::start();
    server.serve(V3);
    let tier = json!({ "spec": { "order": 1, "default": "deny" } });
    server.put("hosttiers", "calico_first", tier.clone());
    server.put("hosttiers", "first", tier);
    let all = Cluster { contribute: Contribution::ALL.into(), ..calico(&server) };
    let mut follower = Follower::named(all, &Holding::default(), NODE);
    follower.until("the tier", |it| !it.specs().is_empty() && it.health().reach == Reach::Synced);
    let names: BTreeSet<String> = follower.specs().into_keys().map(|(_, name)| name).collect();
    assert_eq!(names, ["first".to_owned()].into());
}

#[test]
fn a_global_network_policy_decides_packets_of_an_endpoint_for_every_interface() {
    isolated("a_global_network_policy_decides_packets_of_an_endpoint_for_every_interface", || {
        let prober = Prober::new();
        let server = StandIn::start();
        server.serve(CRD);
        server.put("hostendpoints", "h", endpoint(CRD, NODE));
        server.put("globalnetworkpolicies", "web", web(CRD, &allow(8080)));
        let mut node = Node::new(&[]);
        let text = format!("node = \"{NODE}\"\n{}", settings(&node, &[("hub", &server, "calico = true")]));
        node.write("nodewall.toml", &text);
        node.run();
        until(&node, "the policy", || prober.connects());
        assert!(sh("nft list table inet nodewall").contains("calico_web"));
        let denied = json!([{ "action": "Deny", "protocol": "TCP" }]);
        server.put("globalnetworkpolicies", "web", web(CRD, &denied));
        until(&node, "the denial", || !prober.connects());
        // A tier before it decides first.
        server.put("tiers", "first", json!({ "spec": { "order": 5 } }));
        let spec = json!({ "tier": "first", "selector": "all()", "ingress": allow(8080) });
        server.put("globalnetworkpolicies", "first.web", json!({ "spec": spec }));
        until(&node, "the tier", || prober.connects());
        // A version that nobody can read changes nothing, and `status` says so.
        let mut wrong = json!({ "spec": spec });
        wrong["spec"]["ingress"][0]["unheardOf"] = json!(1);
        server.put("globalnetworkpolicies", "first.web", wrong);
        let place = "cluster hub: GlobalNetworkPolicy/first.web spec.ingress[0].unheardOf";
        node.until("the finding", |_, status| status["findings"].to_string().contains(place));
        assert!(prober.connects());
        // All of it is on disk.
        server.black_hole(true);
        node.kill();
        sh("nft delete table inet nodewall");
        node.run();
        until(&node, "what was on disk", || sh("nft list table inet nodewall").contains("calico_first.web"));
        assert!(prober.connects());
        server.black_hole(false);
        server.remove("globalnetworkpolicies", "first.web");
        until(&node, "the end of the tier", || !prober.connects());
        // Without an endpoint there is no policy, and nodewall's own default denies.
        server.remove("hostendpoints", "h");
        until(&node, "the end of the endpoint", || !sh("nft list table inet nodewall").contains("calico_"));
        assert!(!prober.connects());
    });
}
