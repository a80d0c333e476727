//! The state of a node in its cluster: written when there is news, never in a storm, and harmless where it cannot be.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hyper::Method;
use nodewall::source::kube::damping::ReportPace;
use nodewall::source::kube::report::{Reported, Reporter};
use nodewall::source::object::Kind;
use nodewall::source::object::status::{Condition, HostStateStatus};
use serde_json::{Value as Json, json};

use super::lab::daemon::{Node, PATIENCE, management_link};
use super::lab::{isolated, sh};
use super::server::Admin;
use super::stand_in::StandIn;

const MS: Duration = Duration::from_millis(1);

/// Everything in a hundredth of the time.
pub const QUICK: ReportPace = ReportPace {
    gather: Duration::from_millis(100),
    between: Duration::from_millis(100),
    spread: Duration::from_millis(25),
    refresh: Duration::from_secs(6),
    refresh_spread: Duration::from_millis(600),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(600),
    back_spread: Duration::from_millis(100),
    refused: Duration::from_secs(3),
    answer: Duration::from_secs(2),
};

/// Requests for the state alone, and those that make the object.
const STATUS: &str = "PATCH /apis/nodewall.dev/v1alpha1/hoststates/node-7/status?";
const OBJECT: &str = "PATCH /apis/nodewall.dev/v1alpha1/hoststates/node-7?";

/// Something to say.
pub fn state(generation: i64) -> HostStateStatus {
    let condition = Condition {
        kind: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: "PolicyInForce".to_owned(),
        message: format!("generation {generation} is in force"),
        last_transition_time: format!("2026-11-26T05:00:{:02}Z", generation % 60),
        observed_generation: None,
    };
    HostStateStatus { generation: Some(generation), conditions: vec![condition], ..HostStateStatus::default() }
}

/// A writer of the state of node-7, and what it told.
pub struct Written {
    pub reporter: Reporter,
    told: mpsc::Receiver<Reported>,
}

impl Written {
    pub fn new(kubeconfig: &Path, pace: ReportPace) -> Self {
        let (tell, told) = mpsc::channel();
        let tell = move |answer| drop(tell.send(answer));
        let reporter = Reporter::start(kubeconfig.to_owned(), "node-7".to_owned(), pace, 7, tell).unwrap();
        Self { reporter, told }
    }

    /// What the next write came to.
    #[track_caller]
    pub fn next(&self) -> Reported {
        self.told.recv_timeout(PATIENCE).expect("an answer")
    }
}

fn generation(server: &StandIn) -> Option<i64> {
    server.object("hoststates", "node-7")?["status"]["generation"].as_i64()
}

#[track_caller]
fn until(what: &str, wanted: impl Fn() -> bool) {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(2 * MS);
    }
}

#[test]
fn the_object_is_made_and_then_only_news_is_written() {
    let server = StandIn::start();
    let it = Written::new(&server.kubeconfig(), ReportPace { between: Duration::from_secs(1), ..QUICK });
    it.reporter.say(state(1));
    it.next().unwrap();
    let object = server.object("hoststates", "node-7").unwrap();
    assert_eq!((&object["kind"], &object["spec"]), (&json!("HostState"), &json!({ "node": "node-7" })));
    assert_eq!(object["status"], json!(state(1)));
    assert_eq!((server.requests(OBJECT), server.requests(STATUS)), (1, 1));
    // The same again is no news, and of two in a row the last one is.
    it.reporter.say(state(1));
    it.reporter.say(state(2));
    it.reporter.say(state(3));
    it.next().unwrap();
    assert_eq!(generation(&server), Some(3));
    assert_eq!((server.requests(OBJECT), server.requests(STATUS)), (1, 2));
    let ready = &server.object("hoststates", "node-7").unwrap()["status"]["conditions"][0];
    assert_eq!(ready["lastTransitionTime"], "2026-11-26T05:00:01Z", "it was true all the time");
    std::thread::sleep(500 * MS);
    assert_eq!(server.requests("hoststates"), 3);
}

#[test]
fn what_is_taken_back_before_it_is_written_is_no_news() {
    let server = StandIn::start();
    let it = Written::new(&server.kubeconfig(), ReportPace { between: Duration::from_secs(3), ..QUICK });
    it.reporter.say(state(1));
    it.next().unwrap();
    it.reporter.say(state(2));
    it.reporter.say(state(1));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((server.requests(OBJECT), server.requests(STATUS)), (1, 1));
}

#[test]
fn a_storm_of_news_is_a_write_now_and_then_and_the_last_word_comes() {
    let server = StandIn::start();
    let it = Written::new(&server.kubeconfig(), ReportPace { gather: Duration::ZERO, ..QUICK });
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < Duration::from_secs(2) {
        number += 1;
        it.reporter.say(state(number));
        std::thread::sleep(MS);
    }
    let took = start.elapsed();
    until("the last word", || generation(&server) == Some(number));
    // However long this thread was kept waiting: one at once, one for each 100 ms, and the last.
    let most = 2 + usize::try_from((start.elapsed().max(took)).as_millis() / 100).unwrap();
    let writes = server.requests(STATUS);
    assert!(number > 100 && writes > 3 && writes <= most, "{writes} writes of {number}, {most} at most");
    assert_eq!(server.requests(OBJECT), 1);
}

#[test]
fn what_somebody_deleted_is_back_with_the_next_news_or_the_next_refresh() {
    let server = StandIn::start();
    let it = Written::new(&server.kubeconfig(), ReportPace { refresh: 700 * MS, ..QUICK });
    it.reporter.say(state(1));
    it.next().unwrap();
    server.delete("hoststates", "node-7");
    until("the refresh", || generation(&server) == Some(1));
    let it = Written::new(&server.kubeconfig(), ReportPace { refresh: Duration::from_secs(600), ..QUICK });
    it.reporter.say(state(1));
    it.next().unwrap();
    server.delete("hoststates", "node-7");
    it.reporter.say(state(2));
    it.next().unwrap();
    assert_eq!(generation(&server), Some(2));
}

#[test]
fn a_new_start_keeps_the_times_of_what_is_as_it_was() {
    let server = StandIn::start();
    for start in 1..=2 {
        let it = Written::new(&server.kubeconfig(), QUICK);
        it.reporter.say(state(start));
        it.next().unwrap();
        let status = server.object("hoststates", "node-7").unwrap()["status"].clone();
        assert_eq!(status["generation"], start);
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-11-26T05:00:01Z");
    }
}

#[test]
fn refusals_are_told_and_asked_about_rarely_and_a_server_that_is_away_is_waited_for() {
    let server = StandIn::start();
    for (asked, code) in [(1, 403), (4, 404)] {
        let it = Written::new(&server.kubeconfig(), QUICK);
        server.forbid(Some((Method::PATCH, code)));
        it.reporter.say(state(1));
        assert!(it.next().unwrap_err().starts_with(&code.to_string()), "a refusal");
        it.reporter.say(state(2));
        std::thread::sleep(500 * MS);
        assert_eq!(server.requests("PATCH"), asked);
        server.forbid(None);
        it.next().unwrap();
        assert_eq!(generation(&server), Some(2));
    }

    let it = Written::new(&server.kubeconfig(), QUICK);
    server.forbid(Some((Method::PATCH, 503)));
    it.reporter.say(state(3));
    for _ in 0..3 {
        assert!(it.next().unwrap_err().starts_with("503"), "trouble");
    }
    server.forbid(None);
    until("the state", || generation(&server) == Some(3));
    // A kubeconfig that comes later.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let it = Written::new(&path, QUICK);
    it.reporter.say(state(4));
    assert!(it.next().unwrap_err().contains("does not exist"));
    for name in ["ca.crt", "token", "kubeconfig"] {
        std::fs::copy(server.as_ref().join(name), folder.path().join(name)).unwrap();
    }
    until("the state", || generation(&server) == Some(4));
}

/// nodewall.toml of a node of a cluster.
fn settings(node: &Node, server: &StandIn) -> String {
    let (path, contribute) = (server.kubeconfig(), "[\"policies\", \"sets\", \"nodes\"]");
    let cluster = format!("[[source.cluster]]\nname = \"own\"\nkubeconfig = \"{}\"\n", path.display());
    format!("{}node = \"node-7\"\n{cluster}contribute = {contribute}\n", node.settings())
}

fn interface<'a>(state: &'a Json, name: &str) -> Option<&'a Json> {
    state["status"]["interfaces"].as_array()?.iter().find(|interface| interface["name"] == name)
}

#[test]
fn a_daemon_says_what_it_has_in_force_and_what_changes() {
    isolated("a_daemon_says_what_it_has_in_force_and_what_changes", || {
        management_link();
        let server = StandIn::start();
        let admin = Admin::new(server.kubeconfig());
        let spec = json!({
            "order": 10, "interfaces": "all()",
            "ingress": [{ "action": "allow", "protocol": "tcp", "ports": [8080] }],
        });
        admin.create(Kind::HostPolicy, "web", &spec);
        let mut node = Node::new(&[]);
        node.write("nodewall.toml", &settings(&node, &server));
        node.run();
        let state = || server.object("hoststates", "node-7").unwrap_or_default();
        let with_policy = || state()["status"]["policies"]["default/web"].is_string();
        // The first write may have been before the object was in force, and the next is ten seconds later.
        let start = Instant::now();
        while !with_policy() || interface(&state(), "mgmt0").is_none() {
            assert!(start.elapsed() < 3 * PATIENCE, "no state: {:#}\n{}", state(), node.log());
            std::thread::sleep(10 * MS);
        }
        let said = state();
        assert_eq!(said["spec"], json!({ "node": "node-7" }));
        assert_eq!((&said["status"]["mode"], &said["status"]["inSync"]), (&json!("enforce"), &json!(true)));
        assert!(said["status"]["generation"].as_i64().unwrap() >= 1 && said["status"]["hash"].is_string());
        let management = interface(&said, "mgmt0").unwrap();
        assert_eq!((&management["role"], &management["addresses"]), (&json!("mgmt"), &json!(["10.77.0.2/24"])));
        assert!(interface(&said, "lo").is_none(), "{said:#}");
        let (_, status) = node.status();
        assert!(status["clusters"][0]["report"].as_str().unwrap().starts_with("written 20"), "{status:#}");

        sh("ip addr add 10.88.0.7/24 dev mgmt0");
        let start = Instant::now();
        let is_there = |state: &Json| {
            interface(state, "mgmt0").is_some_and(|it| it["addresses"] == json!(["10.77.0.2/24", "10.88.0.7/24"]))
        };
        while !is_there(&state()) {
            assert!(start.elapsed() < 3 * PATIENCE, "no address: {:#}\n{}", state(), node.log());
            std::thread::sleep(10 * MS);
        }
    });
}

#[test]
fn a_cluster_that_takes_no_state_is_told_of_and_changes_nothing_else() {
    isolated("a_cluster_that_takes_no_state_is_told_of_and_changes_nothing_else", || {
        management_link();
        let server = StandIn::start();
        server.forbid(Some((Method::PATCH, 403)));
        let mut node = Node::new(&[]);
        node.write("nodewall.toml", &settings(&node, &server));
        node.run();
        let status = node.until("the refusal", |_, status| status["clusters"][0]["report"].is_string());
        let report = status["clusters"][0]["report"].as_str().unwrap();
        assert!(report.starts_with("not written: 403"), "{report}");
        assert_eq!(status["state"], "in-force");
        node.logs("HostState/node-7 is not written to cluster \"own\": 403");
        assert_eq!(server.requests("PATCH"), 1);
    });
}
