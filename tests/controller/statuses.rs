//! What is wrong with an object is in its status.

use serde_json::{Value as Json, json};

use super::api::Api;
use super::lab::may_run;
use super::run::{Controller, log, until};

const POLICIES: &str = "/apis/nodewall.dev/v1alpha1/hostpolicies";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn policy(ports: Json) -> Json {
    json!({
        "apiVersion": "nodewall.dev/v1alpha1",
        "kind": "HostPolicy",
        "spec": { "order": 10, "interfaces": "all()", "ingress": [{ "action": "allow", "protocol": "tcp", "ports": ports }] },
    })
}

#[test]
fn what_is_wrong_with_an_object_is_in_its_status_once_and_in_an_event() {
    if !may_run("what_is_wrong_with_an_object_is_in_its_status_once_and_in_an_event") {
        return;
    }
    let api = Api::start();
    api.put(POLICIES, "good", policy(json!([443])));
    api.put(POLICIES, "bad", policy(json!([70_000])));
    let status = |name: &str| api.get(POLICIES, name).unwrap()["status"].clone();
    let controller = Controller::start(&api, "controller-a");
    until("both", || !status("good").is_null() && !status("bad").is_null());
    let (good, bad) = (status("good"), status("bad"));
    assert_eq!(
        (good["accepted"].as_bool(), good["message"].as_str(), good["observedGeneration"].as_i64()),
        (Some(true), None, Some(1))
    );
    assert_eq!(
        (bad["accepted"].as_bool(), bad["conditions"][0]["type"].as_str(), bad["conditions"][0]["status"].as_str()),
        (Some(false), Some("Accepted"), Some("False"))
    );
    assert!(bad["message"].as_str().unwrap().starts_with("spec.ingress[0].ports[0]: "), "{bad}");
    let events = api.all(EVENTS);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (events[0]["reason"].as_str(), events[0]["regarding"]["name"].as_str()),
        (Some("PolicyRefused"), Some("bad"))
    );
    // Whoever looks again, and whoever comes next, has nothing to write.
    let looks = |who: &str| api.requests(&["GET", "hostpolicies?", who]);
    let before = looks("by controller-a");
    until("two more looks", || looks("by controller-a") >= before + 2);
    assert_eq!(controller.end(), Some(0));
    let _next = Controller::start(&api, "controller-b");
    until("two looks of another", || looks("by controller-b") >= 2);
    assert_eq!(api.requests(&["PATCH", POLICIES]), 2, "{}", log(&api, "controller-b"));
    assert_eq!(api.requests(&["GET", "hostpolicies/"]), 4, "each once by each, as nothing changes");
    // Another generation is judged anew.
    api.change(POLICIES, "bad", policy(json!([8443]))["spec"].clone());
    until("the good word", || status("bad")["accepted"] == true);
    api.change(POLICIES, "bad", policy(json!([70_001]))["spec"].clone());
    until("the bad word", || status("bad")["accepted"] == false);
    assert_eq!((status("bad")["observedGeneration"].as_i64(), api.all(EVENTS).len()), (Some(3), 2));
    assert_eq!(api.requests(&["PATCH", POLICIES]), 4);
    // What a policy names comes and goes without a change of the policy.
    let mut named = policy(json!([443]));
    named["spec"]["ingress"][0]["from"] = json!({ "sets": ["store"] });
    api.put(POLICIES, "named", named);
    let resolved = |wanted: &str| {
        let conditions = status("named")["conditions"].clone();
        conditions
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["type"] == "ResolvedRefs" && one["status"] == wanted))
    };
    until("the word that it is missing", || resolved("False"));
    assert_eq!((status("named")["accepted"].as_bool(), api.all(EVENTS).len()), (Some(true), 2));
    let sets = "/apis/nodewall.dev/v1alpha1/hostnetworksets";
    api.put(
        sets,
        "store",
        json!({ "apiVersion": "nodewall.dev/v1alpha1", "kind": "HostNetworkSet", "spec": { "cidrs": ["10.0.0.0/8"] } }),
    );
    until("the word that it is there", || resolved("True"));
    api.delete(sets, "store");
    until("the word that it is gone", || resolved("False"));
}
