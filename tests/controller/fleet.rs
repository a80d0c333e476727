//! What the controller does for a fleet: Events about what happens to nodes, and states of nodes that are gone.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nodewall::controller::{Intervals, Options, run};
use serde_json::{Value as Json, json};
use tokio::task::AbortHandle;

use super::api::Api;
use super::lab::may_run;
use super::run::{Controller, until, within};

const STATES: &str = "/apis/nodewall.dev/v1alpha1/hoststates";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const NODES: &str = "/api/v1/nodes";

/// The controller as a part of this process, with other intervals than people have; it ends with this, as if its host were gone.
struct Quick(AbortHandle, Option<JoinHandle<()>>);

impl Quick {
    /// With this token, and a Lease of its own: it need not wait until that of another is over.
    fn start(api: &Api, token: &str, intervals: Intervals) -> Self {
        let options = Options {
            kubeconfig: Some(api.kubeconfig(token)),
            namespace: "nodewall".to_owned(),
            lease: token.to_owned(),
            host: token.to_owned(),
            intervals,
        };
        let (sender, receiver) = channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let task = runtime.spawn(run(options));
            sender.send(task.abort_handle()).unwrap();
            if let Ok(ended) = runtime.block_on(task) {
                panic!("it ended: {ended:?}");
            }
        });
        Self(receiver.recv().unwrap(), Some(thread))
    }
}

impl Drop for Quick {
    fn drop(&mut self) {
        self.0.abort();
        let ended = self.1.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

fn quick(changes: u64, leftovers: u64) -> Intervals {
    Intervals { changes: Duration::from_millis(changes), leftovers: Duration::from_millis(leftovers) }
}

/// The state of a node that is in order, or not; with how often its table was changed.
fn state(node: &str, degraded: &str, message: &str, drifts: u64) -> Json {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-11-26T06:00:00Z",
        })
    };
    let amiss = if degraded == "AsWanted" { "False" } else { "True" };
    let ready = condition("Ready", "True", "PolicyInForce", "generation 7 is in force");
    json!({
        "apiVersion": "nodewall.dev/v1alpha1",
        "kind": "HostState",
        "spec": { "node": node },
        "status": {
            "conditions": [ready, condition("Degraded", amiss, degraded, message)],
            "drift": { "count": drifts, "last": format!("2026-11-26T06:00:{drifts:02}Z") },
        },
    })
}

fn good(api: &Api, node: &str, drifts: u64) {
    api.put(STATES, node, state(node, "AsWanted", "all is as wanted", drifts));
}

fn refused(api: &Api, node: &str) {
    api.put(STATES, node, state(node, "PolicyRefused", "HostPolicy/web: there is no set \"stroe\"", 0));
}

/// How many lists of the metadata of states were begun; who keeps digests of nodes lists everything.
fn lists(api: &Api, who: &str) -> usize {
    // Pages that are not the first one have a token.
    let these = ["GET", "hoststates?", "of=metadata", who];
    api.requests(&these) - api.requests(&[&these[..], &["continue="]].concat())
}

/// Waits until all that is there was looked at. A look is a list of metadata, and of the states where many changed, which is over when the
/// next begins; at the start there is one by who looks for leftovers as well.
fn settled(api: &Api, who: &str) {
    let before = lists(api, who);
    until("a whole look", || lists(api, who) >= before + 3);
}

fn told(api: &Api) -> BTreeSet<(String, String)> {
    let text = |event: &Json, pointer: &str| event.pointer(pointer).and_then(Json::as_str).unwrap().to_owned();
    api.all(EVENTS).iter().map(|event| (text(event, "/regarding/name"), text(event, "/reason"))).collect()
}

#[test]
fn what_happens_to_nodes_is_told_once_and_by_one_event_where_it_happens_to_many() {
    if !may_run("what_happens_to_nodes_is_told_once_and_by_one_event_where_it_happens_to_many") {
        return;
    }
    let api = Api::start();
    // More than a page; one of them has been amiss for long.
    let names: Vec<String> = (0..620).map(|number| format!("gpu-{number:03}")).collect();
    names.iter().for_each(|name| good(&api, name, 3));
    refused(&api, "gpu-619");
    let controller = Quick::start(&api, "controller-a", quick(300, 600_000));
    settled(&api, "by controller-a");
    assert_eq!(told(&api), BTreeSet::new(), "what was so before is no news");
    assert!(api.requests(&["hoststates?", "limit=500&continue=500"]) > 0);
    good(&api, "gpu-600", 5);
    until("the Event", || !told(&api).is_empty());
    let event = &api.all(EVENTS)[0];
    assert_eq!(
        (&event["reason"], &event["type"], &event["related"]),
        (&json!("DriftRepaired"), &json!("Warning"), &json!({ "apiVersion": "v1", "kind": "Node", "name": "gpu-600" }))
    );
    assert!(event["note"].as_str().unwrap().contains("2 times"), "{event}");
    assert_eq!(event["regarding"]["uid"], api.get(STATES, "gpu-600").unwrap()["metadata"]["uid"]);
    assert_eq!(api.requests(&["GET", "hoststates/"]), 1, "what changed is asked for, and nothing else");
    settled(&api, "by controller-a");
    assert_eq!(api.all(EVENTS).len(), 1);
    // At once, so that no look comes in between.
    api.put_all(
        STATES,
        names[..100]
            .iter()
            .map(|name| (name.clone(), state(name, "PolicyRefused", "HostPolicy/web: there is no set \"stroe\"", 3))),
    );
    until("the next Event", || told(&api).len() == 2);
    settled(&api, "by controller-a");
    let events = api.all(EVENTS);
    assert_eq!(events.len(), 2, "{events:?}");
    let event = events.iter().find(|event| event["reason"] == "PolicyRefused").unwrap();
    assert_eq!(
        event["note"],
        "100 nodes: gpu-000, gpu-001, gpu-002, ...: PolicyRefused: HostPolicy/web: there is no set \"stroe\""
    );
    // Whoever comes next tells nothing of it again, and goes on.
    drop(controller);
    let _next = Quick::start(&api, "controller-b", quick(300, 600_000));
    settled(&api, "by controller-b");
    assert_eq!(api.requests(&["POST", EVENTS]), 2);
    good(&api, "gpu-000", 3);
    until("the good word", || told(&api).contains(&("gpu-000".to_owned(), "BackInOrder".to_owned())));
}

#[test]
fn a_state_without_a_node_goes_at_the_second_look_and_nothing_goes_while_there_are_no_nodes() {
    if !may_run("a_state_without_a_node_goes_at_the_second_look_and_nothing_goes_while_there_are_no_nodes") {
        return;
    }
    let api = Api::start();
    let names: Vec<String> = (0..30).map(|number| format!("gpu-{number:02}")).collect();
    names.iter().for_each(|name| good(&api, name, 0));
    let _controller = Quick::start(&api, "controller-a", quick(600_000, 1000));
    let looks = || api.requests(&["GET", "/api/v1/nodes?", "of=metadata"]);
    until("three looks", || looks() >= 3);
    assert_eq!(api.requests(&["DELETE"]), 0, "a list without Nodes is not believed");
    // All but one have a Node, before the next look and from then on.
    api.put_all(NODES, names[1..].iter().map(|name| (name.clone(), json!({ "apiVersion": "v1", "kind": "Node" }))));
    let before = looks();
    until("the end of the state", || api.get(STATES, "gpu-00").is_none());
    assert!(looks() >= before + 2, "not at the first look");
    assert_eq!((api.all(STATES).len(), api.requests(&["DELETE"])), (29, 1));
    // All but two are gone: one in ten goes at a look.
    names[1..28].iter().for_each(|name| api.delete(NODES, name));
    until("the first ones", || api.all(STATES).len() < 29);
    until("two thirds", || api.all(STATES).len() <= 20);
    let lists = looks();
    assert!(lists >= before + 5, "{lists} looks, {before} of them before");
}

#[test]
fn the_program_looks_at_states_and_nodes() {
    if !may_run("the_program_looks_at_states_and_nodes") {
        return;
    }
    let api = Api::start();
    good(&api, "gpu-1", 0);
    good(&api, "gone", 0);
    api.put(NODES, "gpu-1", json!({ "apiVersion": "v1", "kind": "Node" }));
    let _controller = Controller::start(&api, "controller-a");
    until("a look at both", || {
        lists(&api, "by controller-a") >= 2 && api.requests(&["GET", "/api/v1/nodes?", "of=metadata"]) == 1
    });
    // The first look tells nothing, and has asked, but may have yet to take in what it was answered. The next one is after ten seconds.
    std::thread::sleep(Duration::from_secs(3));
    refused(&api, "gpu-1");
    let wanted = || told(&api) == [("gpu-1".to_owned(), "PolicyRefused".to_owned())].into();
    within(Duration::from_secs(60), "the Event", wanted);
    assert_eq!(api.all(STATES).len(), 2, "ten minutes are not over");
}
