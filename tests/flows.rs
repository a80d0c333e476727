//! `nodewall flows` and `nodewall audit-report` on a store that the test has written, without a daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nodewall::flow::store::{FILE, Limits, Store, directory};
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::protocol::Protocol;
use nodewall::policy::effective::RuleId;
use nodewall::traffic::{Actor, Decider, Key, PeerName, Record, Service, Verdict};
use serde_json::Value;

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
const POLICY: &str = r#"
[[set]]
name = "office"
cidrs = ["10.1.0.0/16"]

[[service]]
name = "our-ssh"
ports = ["tcp/22"]

[[policy]]
name = "ssh"
mode = "audit"
order = 10
interfaces = "all()"
ingress = [
  { action = "deny", from = { sets = ["office"] }, services = ["our-ssh"] },
  { action = "deny", protocol = "tcp" },
]

[[policy]]
name = "closed"
order = 20
interfaces = "all()"
ingress = [{ action = "deny", protocol = "udp" }]
"#;

struct Here {
    folder: tempfile::TempDir,
    now: u64,
}

impl Here {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policy.d")).unwrap();
        std::fs::write(folder.path().join("policy.d/10-ssh.toml"), POLICY).unwrap();
        std::fs::write(
            folder.path().join("nodewall.toml"),
            format!("state_directory = \"{}\"\n", folder.path().join("state").display()),
        )
        .unwrap();
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
        Self { folder, now }
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    /// Watches for so many hours until now, with these records.
    fn watch(&self, hours: u64, mut records: Vec<Record>) -> Store {
        let limits = Limits { keep: Duration::from_secs(48 * 3600), bytes: 8 << 20 };
        let mut store = Store::open(&directory(&self.state()), limits).unwrap();
        records.sort_by_key(|record| record.last);
        for step in (0..=hours * 12).rev() {
            let time = self.now - step * HOUR / 12;
            let due = records.iter().take_while(|record| record.last <= time).count();
            let due: Vec<Record> = records.drain(..due).collect();
            assert_eq!(store.write(&due, time).unwrap().left_out, 0);
        }
        assert!(records.is_empty());
        store
    }

    fn nodewall(&self, arguments: &[&str]) -> (i32, String, String) {
        run(self.folder.path(), arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (code, stdout, stderr) = self.nodewall(&[arguments, &["--json"]].concat());
        assert!(code <= 1, "{code} {stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout} {stderr}"))
    }

    fn record(&self, peer: &str, service: Service, verdict: Verdict, rule: (&str, u32), ago: u64) -> Record {
        let protocol = match service {
            Service::Icmp(..) => Protocol::ICMP,
            _ => Protocol::TCP,
        };
        let last = self.now - ago;
        Record {
            key: Key {
                direction: Direction::Ingress,
                interface: InterfaceName::new("eth0"),
                role: Some(Role::Mgmt),
                peer: Some(peer.parse().unwrap()),
                protocol: Some(protocol),
                service,
                verdict,
                decider: Decider::Rule(RuleId { policy: rule.0.into(), number: rule.1 }),
            },
            local: Some("10.0.0.1".parse().unwrap()),
            names: if peer.starts_with("10.1.") { [PeerName::Set("office".into())].into() } else { [].into() },
            tier: Some("default".to_owned()),
            place: Some(format!("10-ssh.toml:{}", 16 + rule.1)),
            actors: [Actor {
                process: "sshd".to_owned(),
                unit: Some("ssh.service".to_owned()),
                user: Some("root".to_owned()),
                ..Actor::default()
            }]
            .into(),
            connections: 3,
            packets: (verdict != Verdict::Allowed).then_some(6),
            bytes: (verdict != Verdict::Allowed).then_some(2048),
            first: last - SECOND,
            last,
        }
    }
}

fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "nodewall.toml", "--policy-dir", "policy.d"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn flows_shows_what_is_asked_for_without_a_daemon() {
    let here = Here::new();
    let denied = |peer: &str, ago| here.record(peer, Service::Port(22), Verdict::Denied, ("closed", 1), ago);
    let allowed = here.record("2001:db8::7", Service::Port(443), Verdict::Allowed, ("web", 1), 600 * SECOND);
    let ping = here.record("192.0.2.9", Service::Icmp(8, 0), Verdict::WouldDeny, ("ssh", 2), 900 * SECOND);
    let old = denied("10.1.0.9", 2 * HOUR);
    let store = here.watch(
        3,
        vec![
            denied("10.1.0.7", 600 * SECOND),
            denied("10.1.0.7", 1200 * SECOND),
            denied("192.0.2.4", 700 * SECOND),
            allowed,
            ping,
            old,
        ],
    );

    let (code, text, stderr) = here.nodewall(&["flows"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("VERDICT") && lines[0].ends_with("PROCESS"), "{text}");
    let first: Vec<&str> = lines[1].split_whitespace().collect();
    let wanted = "denied in eth0 10.1.0.7 (set:office) tcp/22 closed#1 (10-ssh.toml:17) 6 12 4.0 KiB";
    assert!(first.join(" ").starts_with(wanted), "{text}");
    assert!(lines[1].ends_with("sshd (ssh.service)"), "{text}");
    assert!(text.contains("4 flows, 15 connections: 3 allowed, 9 denied, 3 would-deny"), "{text}");
    assert!(text.contains("peers by connections: set:office 6, "), "{text}");
    assert!(text.contains("services by connections: tcp/22 9, "), "{text}");
    assert!(text.contains("packets and bytes of 3 connections are not counted"), "{text}");
    assert!(!text.contains("nobody"), "{text}");

    // While the writer is there, and when it is gone.
    let peers = |arguments: &[&str]| -> Vec<String> {
        let report = here.json(&[&["flows"], arguments].concat());
        assert_eq!(report["version"], 1);
        let flows = report["flows"].as_array().unwrap();
        let mut peers: Vec<String> = flows.iter().map(|flow| flow["peer"].as_str().unwrap().to_owned()).collect();
        peers.sort();
        peers
    };
    let all = ["10.1.0.7", "192.0.2.4", "192.0.2.9", "2001:db8::7"];
    assert_eq!(peers(&[]), all);
    drop(store);
    assert_eq!(peers(&[]), all);
    for (arguments, wanted) in [
        (vec!["--denied"], vec!["10.1.0.7", "192.0.2.4"]),
        (vec!["--audited"], vec!["192.0.2.9"]),
        (vec!["--denied", "--audited"], vec!["10.1.0.7", "192.0.2.4", "192.0.2.9"]),
        (vec!["--verdict", "allowed"], vec!["2001:db8::7"]),
        (vec!["--peer", "office"], vec!["10.1.0.7"]),
        (vec!["--peer", "192.0.2.0/24"], vec!["192.0.2.4", "192.0.2.9"]),
        (vec!["--service", "our-ssh"], vec!["10.1.0.7", "192.0.2.4"]),
        (vec!["--service", "tcp/443"], vec!["2001:db8::7"]),
        (vec!["--service", "icmp"], vec!["192.0.2.9"]),
        (vec!["--service", "443"], vec!["2001:db8::7"]),
        (vec!["--interface", "eth1"], vec![]),
        (vec!["--policy", "web"], vec!["2001:db8::7"]),
        (vec!["--policy", "ssh#2"], vec!["192.0.2.9"]),
        (vec!["--direction", "out"], vec![]),
        (vec!["--since", "3h", "--until", "90m"], vec!["10.1.0.9"]),
        (vec!["--limit", "1"], vec!["10.1.0.7"]),
    ] {
        assert_eq!(peers(&arguments), wanted, "{arguments:?}");
    }
    let report = here.json(&["flows", "--peer", "10.1.0.7"]);
    let flow = &report["flows"][0];
    assert_eq!(
        (&flow["rule"], &flow["place"], &flow["connections"]),
        (&"closed#1".into(), &"10-ssh.toml:17".into(), &6.into())
    );
    assert_eq!((&flow["processes"][0]["unit"], &flow["names"][0]), (&"ssh.service".into(), &"set:office".into()));

    let (code, text, _) = here.nodewall(&["flows", "--limit", "1"]);
    assert!(code == 0 && text.contains("... and 3 more"), "{text}");
    let (code, text, _) = here.nodewall(&["flows", "--policy", "none", "--since", "24h"]);
    assert!(code == 0 && text.starts_with("no flows from ") && text.contains("flows are known since"), "{text}");
    for wrong in [
        &["flows", "--since", "soon"][..],
        &["flows", "--service", "our-shh"],
        &["flows", "--peer", "10.0.0.1/8"],
        &["flows", "--verdict", "dropped"],
        &["flows", "--since", "1h", "--until", "2h"],
    ] {
        let (code, stdout, stderr) = here.nodewall(wrong);
        assert_eq!((code, stdout.as_str()), (2, ""), "{wrong:?} {stderr}");
    }
    assert!(here.nodewall(&["flows", "--service", "our-shh"]).2.contains("our-ssh"));
}

#[test]
fn flows_says_why_there_are_none() {
    let here = Here::new();
    let (code, stdout, stderr) = here.nodewall(&["flows"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("no flows are stored in"), "{stderr}");
    let file = directory(&here.state()).join(FILE);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "not a database at all, but long enough to be looked at as one").unwrap();
    let (code, _, stderr) = here.nodewall(&["flows"]);
    assert!(code == 1 && stderr.contains("not a database"), "{stderr}");
}

#[test]
fn the_report_says_whether_a_policy_is_ready() {
    let here = Here::new();
    let would = |peer: &str, rule, ago| here.record(peer, Service::Port(22), Verdict::WouldDeny, ("ssh", rule), ago);
    let meant = would("10.1.0.7", 1, HOUR / 2);
    let store = here.watch(24, vec![meant, would("192.0.2.4", 2, 5 * HOUR)]);
    let (code, text, stderr) = here.nodewall(&["audit-report", "ssh"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{text}");
    assert!(text.starts_with("policy ssh (10-ssh.toml:10) is in audit mode\n"), "{text}");
    assert!(text.contains("ready to enforce\n") && !text.contains("not ready"), "{text}");
    assert!(text.contains("3 connections by rules that say whom they deny"), "{text}");
    assert!(text.contains("10-ssh.toml:18"), "{text}");

    // A peer that has a name and that no rule is about.
    drop(store);
    drop(here.watch(0, vec![would("10.1.0.8", 2, 0), would("192.0.2.5", 2, 0)]));
    let report = here.json(&["audit-report", "ssh"]);
    assert_eq!((&report["version"], &report["ready"], &report["mode"]), (&1.into(), &false.into(), &"audit".into()));
    let against: Vec<&str> = report["reasons"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|reason| reason["against"] == true)
        .map(|reason| reason["text"].as_str().unwrap())
        .collect();
    assert!(
        against.len() == 2 && against[0].contains("sets and nodes") && against[1].contains("unknown addresses"),
        "{against:?}"
    );
    assert_eq!(report["flows"].as_array().unwrap().len(), 4);
    assert_eq!(here.nodewall(&["audit-report", "ssh"]).0, 1);

    let (code, text, _) = here.nodewall(&["audit-report", "closed"]);
    assert!(code == 0 && text.contains("is enforced") && text.contains("it denied nothing"), "{text}");
    let (code, _, stderr) = here.nodewall(&["audit-report", "shh"]);
    assert!(code == 2 && stderr.contains("did you mean \"ssh\"?"), "{stderr}");
}
