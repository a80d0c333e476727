//! Of two controllers one works, and the other takes over.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::api::Api;
use super::lab::may_run;
use super::run::{Controller, log, until, within};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/nodewall/leases";
const SETS: &str = "/apis/nodewall.dev/v1alpha1/hostnetworksets";

fn set(cidr: &str) -> Json {
    json!({ "apiVersion": "nodewall.dev/v1alpha1", "kind": "HostNetworkSet", "spec": { "cidrs": [cidr] } })
}

fn holder(api: &Api) -> String {
    api.get(LEASES, "nodewall-controller")
        .map_or_else(String::new, |lease| lease["spec"]["holderIdentity"].as_str().unwrap().to_owned())
}

fn judged(api: &Api, name: &str) -> bool {
    api.get(SETS, name).is_some_and(|object| !object["status"]["accepted"].is_null())
}

#[test]
fn of_two_controllers_one_works_and_the_other_takes_over_when_it_is_killed_or_ends() {
    if !may_run("of_two_controllers_one_works_and_the_other_takes_over_when_it_is_killed_or_ends") {
        return;
    }
    let api = Api::start();
    let mut first = Controller::start(&api, "controller-a");
    until("a leader", || log(&api, "controller-a").contains("this controller leads"));
    let second = Controller::start(&api, "controller-b");
    api.put(SETS, "one", set("10.0.0.0/8"));
    until("the judgement", || judged(&api, "one"));
    until("the other's looks", || api.requests(&["GET", LEASES, "by controller-b"]) >= 3);
    assert_eq!(api.requests(&["PATCH", "by controller-b"]), 0);
    assert_eq!(api.requests(&["GET", SETS, "by controller-b"]), 0, "who waits does not look");
    assert!(!log(&api, "controller-b").contains("leads"));
    let before = holder(&api);
    first.kill();
    let killed = Instant::now();
    api.put(SETS, "two", set("10.1.0.0/16"));
    within(Duration::from_secs(20), "the next leader", || log(&api, "controller-b").contains("this controller leads"));
    println!("another leads {:.1} s after the kill", killed.elapsed().as_secs_f32());
    until("the next judgement", || judged(&api, "two"));
    assert_ne!(holder(&api), before);
    assert_eq!(api.get(LEASES, "nodewall-controller").unwrap()["spec"]["leaseTransitions"], 1);
    assert_eq!(api.requests(&["PATCH", "sets/one"]), 1, "what was judged is not judged again");
    // One that is ended in good order keeps nobody waiting.
    let third = Controller::start(&api, "controller-a");
    until("its looks", || api.requests(&["GET", LEASES, "by controller-a"]) >= 3);
    assert_eq!(second.end(), Some(0));
    let ended = Instant::now();
    within(Duration::from_secs(10), "the third leader", || log(&api, "controller-a").contains("this controller leads"));
    println!("another leads {:.1} s after a good end", ended.elapsed().as_secs_f32());
    assert_eq!(third.end(), Some(0));
    assert_eq!(holder(&api), "");
}

#[test]
fn a_leader_whose_lease_somebody_takes_stops() {
    if !may_run("a_leader_whose_lease_somebody_takes_stops") {
        return;
    }
    let api = Api::start();
    let _controller = Controller::start(&api, "controller-a");
    until("a leader", || log(&api, "controller-a").contains("this controller leads"));
    api.change(LEASES, "nodewall-controller", json!({ "holderIdentity": "somebody", "leaseDurationSeconds": 3600 }));
    until("its end", || log(&api, "controller-a").contains("does not lead any more"));
    api.put(SETS, "one", set("10.0.0.0/8"));
    let looks = api.requests(&["GET", LEASES]);
    until("more looks", || api.requests(&["GET", LEASES]) >= looks + 3);
    assert!(!judged(&api, "one") && holder(&api) == "somebody");
}
