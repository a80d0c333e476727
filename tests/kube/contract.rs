//! What holds with every server: the stand-in here, and unchanged a real one (see [`super::server`]).

use nodewall::source::kube::Reach;
use nodewall::source::object::Kind;
use nodewall::source::object::status::{DriftCount, HostStateStatus, InterfaceState};
use serde_json::{Value as Json, json};

use super::follower::{Follower, cluster};
use super::report::{self, Written, state};
use super::server::{Admin, Server};

/// An object of each kind, and a change of it.
fn objects() -> Vec<(Kind, &'static str, Json, Json)> {
    vec![
        (Kind::HostTier, "first", json!({ "order": 5, "default": "pass" }), json!({ "order": 7 })),
        (
            Kind::HostNetworkSet,
            "model-store",
            json!({ "cidrs": ["10.9.0.0/16"] }),
            json!({ "cidrs": ["10.9.0.0/16", "fd00:9::/64"] }),
        ),
        (Kind::HostService, "scrape", json!({ "ports": ["tcp/9100"] }), json!({ "ports": ["tcp/9100-9110"] })),
        (
            Kind::HostPolicy,
            "model-store",
            json!({ "tier": "platform", "order": 10, "interfaces": "all()", "egress": [{ "action": "deny", "to": { "sets": ["model-store"] } }] }),
            json!({ "order": 20 }),
        ),
        (
            Kind::HostInterface,
            "rails",
            json!({ "match": { "name": "rail*" }, "role": "rail" }),
            json!({ "labels": { "pool": "a" } }),
        ),
        (Kind::HostExpectation, "store-is-known", json!({ "set": "model-store" }), json!({ "set": "other" })),
    ]
}

#[test]
fn what_is_held_is_what_the_objects_say() {
    let server = Server::any();
    let admin = Admin::new(server.kubeconfig());
    assert!(admin.specs().is_empty(), "the server is to have nothing of ours");
    for (kind, name, spec, _) in objects().into_iter().take(2) {
        admin.create(kind, name, &spec);
    }
    let mut follower = Follower::new(cluster(&server.kubeconfig()));
    follower.until("what was there", |it| it.specs() == admin.specs() && it.health().reach == Reach::Synced);
    assert!(follower.holding().heard);
    for (kind, name, spec, _) in objects().into_iter().skip(2) {
        admin.create(kind, name, &spec);
        follower.until(name, |it| it.specs() == admin.specs());
    }
    assert_eq!(follower.specs().len(), 6);
    for (kind, name, _, change) in objects() {
        admin.change(kind, name, &change);
        follower.until(name, |it| it.specs() == admin.specs());
    }
    for (kind, name, _, _) in objects() {
        admin.delete(kind, name);
        follower.until(name, |it| it.specs() == admin.specs());
    }
    assert!(follower.specs().is_empty(), "deleted one by one, all are gone");
    assert_eq!(follower.holding().findings, []);
}

#[test]
fn a_server_that_is_killed_is_followed_when_it_is_back() {
    let server = Server::any();
    let admin = Admin::new(server.kubeconfig());
    let set = |name: &str, cidr: &str| (name.to_owned(), json!({ "cidrs": [cidr] }));
    for (name, spec) in [set("a", "10.0.0.1"), set("b", "10.0.0.2")] {
        admin.create(Kind::HostNetworkSet, &name, &spec);
    }
    let mut follower = Follower::new(cluster(&server.kubeconfig()));
    follower.until("what was there", |it| it.specs() == admin.specs() && it.health().reach == Reach::Synced);
    for number in 0..3 {
        if !server.restart() {
            println!("NOT RUN: nothing says how to restart this server (NODEWALL_TEST_RESTART)");
            break;
        }
        let (_, spec) = set("a", &format!("10.0.1.{number}"));
        admin.change(Kind::HostNetworkSet, "a", &spec);
        let took = follower.until("the change", |it| it.specs() == admin.specs());
        println!("followed {} ms after the change that came after the restart", took.as_millis());
        assert!(follower.specs().contains_key(&("hostnetworksets".to_owned(), "b".to_owned())));
    }
    for name in ["a", "b"] {
        admin.delete(Kind::HostNetworkSet, name);
        follower.until("the end of it", |it| it.specs() == admin.specs());
    }
    assert!(follower.specs().is_empty());
}

#[test]
fn a_server_takes_the_state_and_gives_it_back() {
    let server = Server::any();
    let admin = Admin::new(server.kubeconfig());
    let it = Written::new(&server.kubeconfig(), report::QUICK);
    let whole = HostStateStatus {
        mode: Some("enforce".to_owned()),
        hash: Some("0".repeat(32)),
        policies: [("default/web".to_owned(), "01234567".to_owned())].into(),
        policies_omitted: Some(3),
        in_sync: Some(true),
        coverage: [("partial".to_owned(), 8)].into(),
        drift: Some(DriftCount { count: 1, last: Some("2026-11-26T05:00:00Z".to_owned()) }),
        error: Some("no such device".to_owned()),
        interfaces: vec![InterfaceState {
            name: "rail0".to_owned(),
            role: "rail".to_owned(),
            rail: Some("rail0".to_owned()),
            coverage: Some("partial".to_owned()),
            addresses: vec!["10.0.0.1/24".to_owned()],
        }],
        ..state(1)
    };
    let last = HostStateStatus {
        policies: [("default/other".to_owned(), "76543210".to_owned())].into(),
        coverage: [("enforced".to_owned(), 1)].into(),
        drift: Some(DriftCount::default()),
        ..state(2)
    };
    for said in [whole, last] {
        it.reporter.say(said.clone());
        it.next().unwrap();
        let object = admin.get(Kind::HostState, "node-7");
        assert_eq!(object["spec"], json!({ "node": "node-7" }));
        let mut expected = json!(said);
        // It was true all the time.
        expected["conditions"][0]["lastTransitionTime"] = json!("2026-11-26T05:00:01Z");
        assert_eq!(object["status"], expected);
    }
    admin.delete(Kind::HostState, "node-7");
}
