//! `nodewall learn` from a store on disk to a draft that `check` takes, and back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nodewall::flow::store::{Limits, Store, directory};
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::protocol::Protocol;
use nodewall::traffic::{Actor, Decider, Key, Record, Service, Verdict};
use serde_json::Value;

/// A node from a copy of a machine's files, with its settings, policy and state in a directory of their own.
struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new(flows: &str) -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap() };
        for name in ["policy.d", "state"] {
            fs::create_dir(node.at(name)).unwrap();
        }
        let catalogue = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy.d/00-services.toml");
        fs::copy(catalogue, node.at("policy.d/00-services.toml")).unwrap();
        let sets = "[[set]]\nname = \"monitoring\"\ncidrs = [\"10.0.0.20\", \"10.0.0.21\"]\n";
        fs::write(node.at("policy.d/10-sets.toml"), sets).unwrap();
        let at = |name: &str| node.at(name).display().to_string();
        let settings = format!(
            "mode = \"audit\"\npolicy_directories = [\"{}\"]\nstate_directory = \"{}\"\nsocket = \"{}\"\n{flows}",
            at("policy.d"),
            at("state"),
            at("socket")
        );
        fs::write(node.at("nodewall.toml"), settings).unwrap();
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn keep(&self, records: &[Record]) {
        let limits = Limits { keep: Duration::from_secs(86_400), bytes: 64 << 20 };
        let mut store = Store::open(&directory(&self.at("state")), limits).unwrap();
        store.write(records, now()).unwrap();
    }

    fn nodewall(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training-node");
        command.arg("--config").arg(self.at("nodewall.toml")).arg("--root").arg(root).args(arguments);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }
}

/// Microseconds since 1970-01-01 UTC.
fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn record(peer: &str, port: u16, connections: u64, process: &str) -> Record {
    let at = now() - 2 * 3_600_000_000;
    let actor = Actor { process: process.to_owned(), ..Actor::default() };
    Record {
        key: Key {
            direction: Direction::Ingress,
            interface: InterfaceName::new("eno1"),
            role: Some(Role::Mgmt),
            peer: Some(peer.parse().unwrap()),
            protocol: Some(Protocol::TCP),
            service: Service::Port(port),
            verdict: Verdict::WouldDeny,
            decider: Decider::Default,
        },
        local: Some("10.0.0.5".parse().unwrap()),
        names: BTreeSet::new(),
        tier: None,
        place: None,
        actors: if process.is_empty() { BTreeSet::new() } else { [actor].into() },
        connections,
        packets: Some(connections * if process.is_empty() { 2 } else { 20 }),
        bytes: None,
        first: at,
        last: at + 1_000_000,
    }
}

fn some_hours() -> Vec<Record> {
    let mut records = vec![
        record("10.0.0.20", 9100, 100, "node_exporter"),
        record("10.0.0.21", 9100, 100, "node_exporter"),
        record("10.0.7.9", 10_250, 7, "kubelet"),
        record("198.51.100.9", 10_250, 1, "kubelet"),
    ];
    records.extend((100..140).map(|port| record("192.0.2.66", port, 1, "")));
    records
}

#[test]
fn a_draft_is_made_from_the_store_checked_and_replayed() {
    let node = Node::new("");
    node.keep(&some_hours());
    let (code, draft, errors) = node.nodewall(&["learn", "draft"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{draft}");
    for part in ["from = { sets = [\"monitoring\"] }", "services = [\"kubelet\"]", "\"10.0.7.9\"", "from 192.0.2.66"] {
        assert!(draft.contains(part), "{part}\n{draft}");
    }
    // Never where it would be live.
    let live = node.at("policy.d/50-learned.toml");
    let (code, _, errors) = node.nodewall(&["learn", "draft", "--output", live.to_str().unwrap()]);
    assert!(code == 1 && errors.contains("would be live") && !live.exists(), "{errors}");
    let file = node.at("50-learned.toml");
    let (code, ..) = node.nodewall(&["learn", "draft", "--output", file.to_str().unwrap()]);
    assert_eq!((code, fs::read_to_string(&file).unwrap()), (0, draft.clone()));
    let (code, _, errors) = node.nodewall(&["learn", "draft", "--output", file.to_str().unwrap()]);
    assert!(code == 1 && errors.contains("is there already"), "{errors}");
    // Everything but the scan and the one-off gets through.
    let file = file.to_str().unwrap();
    let (code, told, errors) = node.nodewall(&["learn", "verify", file]);
    assert_eq!((code, errors.as_str()), (0, ""), "{told}");
    assert!(told.contains("although it looks needed: nothing") && told.contains("192.0.2.66"), "{told}");
    assert_eq!(node.nodewall(&["learn", "verify", file, "--strict"]).0, 1);
    let (_, json, _) = node.nodewall(&["--json", "learn", "verify", file]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((report["version"].as_u64(), report["allowed"].as_u64()), (Some(1), Some(207)));
    let apart = |why: &str| report["denied"].as_array().unwrap().iter().filter(|one| one["apart"] == why).count();
    assert_eq!((apart("scan"), apart("one-off")), (40, 1));
    // A draft without a rule that is needed.
    fs::write(file, draft.replace("\"10.0.7.9\"", "\"10.0.7.10\"")).unwrap();
    let (code, told, _) = node.nodewall(&["learn", "verify", file]);
    assert!(code == 1 && told.contains("from 10.0.7.9") && told.contains("kubelet"), "{told}");
    fs::write(file, format!("{draft}\n[[policy]]\nname = 3\n")).unwrap();
    assert_eq!(node.nodewall(&["learn", "verify", file]).0, 5);
    // In place, it is taken as it is, and leaves nothing to draft.
    fs::write(&live, &draft).unwrap();
    let (code, told, errors) = node.nodewall(&["check"]);
    assert!(code == 0 && !told.contains("50-learned"), "{told}{errors}");
    let (_, json, _) = node.nodewall(&["--json", "learn", "draft"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((report["rules"].as_u64(), report["version"].as_u64()), (Some(0), Some(1)), "{json}");
    // The file of the same name stands in for it.
    fs::write(file, draft.replace("\"10.0.7.9\"", "\"10.0.7.10\"")).unwrap();
    assert_eq!(node.nodewall(&["learn", "verify", file]).0, 1);
}

#[test]
fn learning_is_started_where_something_is_recorded_and_says_what_was_seen() {
    let node = Node::new("");
    let (code, _, errors) = node.nodewall(&["learn", "draft"]);
    assert!(code == 1 && errors.contains("no flows are stored"), "{errors}");
    if !nix::unistd::geteuid().is_root() {
        assert_eq!(node.nodewall(&["learn", "start"]).0, 4);
        println!(
            "SKIPPED the rest of learning_is_started_where_something_is_recorded_and_says_what_was_seen: not root"
        );
        return;
    }
    let (code, _, errors) = node.nodewall(&["learn", "start", "--for", "48h"]);
    assert!(code == 1 && errors.contains("keep = \"48h\""), "{errors}");
    let (code, _, errors) = Node::new("[flows]\nstore = false\n").nodewall(&["learn", "start"]);
    assert!(code == 1 && errors.contains("store is false"), "{errors}");
    node.keep(&some_hours());
    let (code, told, errors) = node.nodewall(&["learn", "start", "--for", "1h"]);
    assert!(code == 0 && told.starts_with("learning from ") && errors.contains("does not answer"), "{told}{errors}");
    // What was before the start does not count.
    let (_, json, _) = node.nodewall(&["--json", "learn", "status"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((report["state"].as_str(), report["connections"].as_u64()), (Some("learning"), Some(0)));
    assert_eq!(report["settled"], false);
    let (code, draft, _) = node.nodewall(&["learn", "draft", "--since", "3h"]);
    assert!(code == 0 && draft.contains("monitoring"), "{draft}");
    fs::remove_file(node.at("state/learn.json")).unwrap();
    let (code, told, _) = node.nodewall(&["learn", "status"]);
    assert!(code == 0 && told.contains("not started") && told.contains("248 connections"), "{told}");
    assert!(told.contains("4 peers asked for 2 services"), "{told}");
}
