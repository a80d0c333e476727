//! The real daemon in a network namespace of its own: what it tells systemd, what it does to the kernel, and what it leaves there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::time::{Duration, Instant};

use lab::conntrack::{inject, plain};
use lab::daemon::{Node, PATIENCE, management_link};
use lab::{isolated, sh};
use nix::sys::signal::Signal;
use nodewall::driver::{Conntrack, Kernel, Netlink, Read};
use nodewall::net::interface::InterfaceName;
use nodewall::net::protocol::Protocol;
use nodewall::nft::ir::{ElementKey, Elements, Verdict};
use nodewall::nft::key::Datum;
use serde_json::Value;

const KUBELET: &str = r#"
[[set]]
name = "control-plane"
cidrs = ["10.0.0.10", "fd00::10"]

[[policy]]
name = "kubelet"
order = 100
interfaces = "role in {'mgmt', 'pod'}"
ingress = [
  { action = "allow", from = { sets = ["control-plane"] }, protocol = "tcp", ports = [10250] },
  { action = "deny", protocol = "tcp", ports = [10250] },
]
"#;

/// A node with a management link; nothing runs yet.
fn node() -> Node {
    management_link();
    Node::new(&[("20-kubelet.toml", KUBELET)])
}

/// The table with handles and without the counters, which count what the machine's own links send.
fn table() -> String {
    let text = sh("nft -a list table inet nodewall");
    let words: Vec<&str> = text.split(' ').collect();
    let counted = |index: usize| index > 0 && matches!(words[index - 1], "packets" | "bytes");
    words.iter().enumerate().map(|(index, word)| if counted(index) { "N" } else { *word }).collect::<Vec<_>>().join(" ")
}

/// The chain that the input dispatch map has for an interface.
fn chain_of(interface: &str) -> Option<String> {
    let loaded = Netlink::open().unwrap().load(&Read::Everything).unwrap();
    let Elements::Keys(keys) =
        &loaded.ruleset.sets.iter().find(|(name, _)| name.starts_with("in_interfaces/")).unwrap().1.elements
    else {
        panic!("no map of names")
    };
    let name = InterfaceName::new(interface).unwrap();
    keys.iter().find_map(|(key, verdict)| match verdict {
        Some(Verdict::Goto(chain) | Verdict::Jump(chain)) if *key == ElementKey::of([Datum::name(name.as_str())]) => {
            Some(chain.clone())
        }
        _ => None,
    })
}

/// The policies in a status; the guards are apart.
fn own(status: &Value) -> Vec<&Value> {
    let guards = status["guards"].as_array().unwrap();
    assert!(guards.iter().any(|guard| guard["name"] == "guard-metadata"), "{guards:?}");
    status["policies"].as_array().unwrap().iter().collect()
}

#[test]
fn ready_comes_with_the_rules_and_the_watchdog_is_fed() {
    isolated("ready", || {
        let mut node = node();
        node.start();
        let message = node.told("READY=1");
        assert!(table().contains("kubelet#1 20-kubelet.toml:"), "ready means in force");
        assert!(message.contains("STATUS=generation 1 in force: 1 policies"), "{message}");
        node.told("WATCHDOG=1");
        let first = Instant::now();
        node.told("WATCHDOG=1");
        node.told("WATCHDOG=1");
        let two = first.elapsed();
        assert!((Duration::from_millis(200)..Duration::from_secs(4)).contains(&two), "{two:?} for two of 200 ms");

        let (code, status) = node.status();
        assert_eq!(code, 0);
        assert_eq!(status["version"], 1);
        assert_eq!((&status["state"], &status["in_sync"]), (&"in-force".into(), &true.into()));
        assert_eq!(status["hash"].as_str().unwrap().len(), 64);
        assert!(status["since"].as_str().unwrap().ends_with('Z'));
        let mgmt = status["interfaces"].as_array().unwrap().iter().find(|link| link["name"] == "mgmt0").unwrap();
        assert_eq!((&mgmt["role"], &mgmt["why"]), (&"mgmt".into(), &"default route".into()));
        let policy = own(&status)[0];
        assert_eq!((&policy["name"], &policy["rules"]), (&"kubelet".into(), &2.into()));
        let (code, text, _) = node.nodewall(&["status"]);
        assert_eq!(code, 0);
        assert!(text.starts_with("state      in force\ngeneration 1 since 20"), "{text}");
    });
}

#[test]
fn sighup_reloads_and_tells_when_it_is_done() {
    isolated("sighup", || {
        let mut node = node();
        node.run();
        node.signal(Signal::SIGHUP);
        let reloading = node.told("RELOADING=1");
        let stamp = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(stamp.parse::<u64>().unwrap() > 0);
        node.told("READY=1");
    });
}

#[test]
fn a_reload_waits_for_its_end_and_fails_when_the_documents_are_refused() {
    isolated("reload", || {
        let mut node = node();
        assert_eq!(node.nodewall(&["reload"]).0, 3, "nobody is there to be asked");
        node.run();
        node.write("policy.d/20-kubelet.toml", &KUBELET.replace("10250", "10255"));
        let (code, said, errors) = node.nodewall(&["reload"]);
        assert!(code == 0 && said.starts_with("generation 2 in force"), "{code} {said} {errors}");
        assert!(table().contains("10255") && !table().contains("10250"));
        node.write("policy.d/20-kubelet.toml", "[[policy]]\nname = 1\n");
        let (code, said, errors) = node.nodewall(&["reload"]);
        assert!(code == 9 && said.is_empty() && errors.contains("20-kubelet.toml:2:8"), "{code} {said} {errors}");
        assert!(table().contains("10255"), "what was in force stays");
        node.write("policy.d/20-kubelet.toml", KUBELET);
        let (code, said, _) = node.nodewall(&["reload", "--json"]);
        assert!(code == 0 && said.contains("\"outcome\""), "{said}");
        assert!(table().contains("10250"));
    });
}

#[test]
fn changed_files_are_in_force_without_being_told() {
    isolated("files", || {
        let mut node = node();
        node.run();
        node.write("policy.d/20-kubelet.toml", &KUBELET.replace("10250", "10255"));
        node.until("the new port", |_, status| status["generation"] == 2);
        assert!(table().contains("10255") && !table().contains("10250"));
        node.write(
            "policy.d/30-more.toml.new",
            "[[policy]]\nname = \"more\"\norder = 5\ninterfaces = \"all()\"\ningress = []\n",
        );
        std::fs::rename(node.path("policy.d/30-more.toml.new"), node.path("policy.d/30-more.toml")).unwrap();
        node.until("one more policy", |_, status| own(status).len() == 2);
        std::fs::remove_dir_all(node.path("policy.d")).unwrap();
        node.until("no policy", |_, status| own(status).is_empty());
        std::fs::create_dir(node.path("policy.d")).unwrap();
        node.write("policy.d/20-kubelet.toml", KUBELET);
        node.until("the policy again", |_, status| own(status).len() == 1);
    });
}

#[test]
fn a_link_is_under_its_roles_rules_within_100_ms_of_coming_and_of_being_renamed() {
    isolated("links", || {
        let mut node = node();
        node.write(
            "policy.d/10-nics.toml",
            "[[interface]]\nname = \"rails\"\nmatch = { name = \"rail*\" }\nrole = \"rail\"\n",
        );
        node.run();
        let within = |what: &str, interface: &str, wanted: Option<&str>| {
            let start = Instant::now();
            while chain_of(interface).as_deref() != wanted {
                assert!(
                    start.elapsed() < PATIENCE,
                    "{what}: {interface} has {:?}\n{}",
                    chain_of(interface),
                    node.log()
                );
            }
            start.elapsed()
        };
        let mut times = Vec::new();
        for round in 0..5 {
            sh(&format!("ip link add x{round} type veth peer name y{round}"));
            times.push(within("a new veth", &format!("x{round}"), Some("in_pod")));
            sh(&format!("ip link set x{round} name rail{round}"));
            times.push(within("a renamed one", &format!("rail{round}"), Some("in_rail")));
            within("its old name", &format!("x{round}"), None);
        }
        times.sort();
        println!("until the chain was seen by reading the map again and again: {times:?}");
        assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
    });
}

#[test]
fn bad_files_leave_the_last_good_generation_in_force_and_links_are_followed_all_the_same() {
    isolated("bad files", || {
        let mut node = node();
        node.run();
        let before = table();
        node.write(
            "policy.d/30-bad.toml",
            "[[policy]]\nname = \"open\"\ninterfaces = \"all()\"\ningress = []\ncolour = 1\n",
        );
        let status = node.until("degraded", |code, _| code == 9);
        assert_eq!(status["state"], "degraded");
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.contains("30-bad.toml:5:1") && reason.contains("last good policy"), "{reason}");
        assert!(status["findings"].to_string().contains("unknown-key"));
        assert_eq!(table(), before);
        node.told("STATUS=degraded: ");
        sh("ip link add pod0 type veth peer name pod0p");
        node.until("the new link", |_, status| status["interfaces"].to_string().contains("\"pod0\""));
        assert_eq!(chain_of("pod0").as_deref(), Some("in_pod"));
        // A reload that is refused is over, too.
        node.signal(Signal::SIGHUP);
        node.told("READY=1");
        std::fs::remove_file(node.path("policy.d/30-bad.toml")).unwrap();
        node.until("in force", |code, _| code == 0);
    });
}

#[test]
fn sigterm_and_sigkill_leave_the_rules_and_a_restart_adopts_them() {
    isolated("restart", || {
        let mut node = node();
        node.run();
        let before = table();
        node.signal(Signal::SIGTERM);
        assert_eq!(node.ended().code(), Some(0));
        assert_eq!(table(), before);
        let (code, text, messages) = node.nodewall(&["status"]);
        assert_eq!(code, 3);
        assert!(text.starts_with("the table it left is in force: "), "{text}");
        assert!(messages.contains("not running"), "{messages}");

        node.run();
        assert_eq!(table(), before, "handles and counters as they were");
        node.signal(Signal::SIGKILL);
        node.ended();
        assert_eq!(table(), before);
        node.run();
        assert_eq!(table(), before, "the leftover socket is no obstacle");
        assert_eq!(node.status().0, 0);
    });
}

#[test]
fn a_first_start_with_bad_files_locks_down_or_keeps_what_it_finds() {
    isolated("first start", || {
        let mut node = node();
        node.write("policy.d/20-kubelet.toml", "this is not toml");
        node.run();
        let status = node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("lockdown"), "{status}");
        assert!(table().contains("failsafe:ssh#1"));
        assert!(table().contains("default of mgmt ingress: deny"));
        node.signal(Signal::SIGTERM);
        node.ended();

        node.write("policy.d/20-kubelet.toml", KUBELET);
        assert_eq!(node.nodewall(&["apply"]).0, 0);
        let before = table();
        node.write("policy.d/20-kubelet.toml", "this is not toml");
        node.run();
        let status = node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("found in the kernel"), "{status}");
        assert_eq!(table(), before);
        node.write("policy.d/20-kubelet.toml", KUBELET);
        node.until("in force", |code, _| code == 0);
        assert_eq!(table(), before, "adopted as it was");
    });
}

#[test]
fn a_second_daemon_is_refused() {
    isolated("second", || {
        let mut node = node();
        node.run();
        let (code, _, messages) = node.nodewall(&["run"]);
        assert_eq!(code, 1);
        assert!(messages.contains("another nodewall answers on"), "{messages}");
        assert_eq!(node.status().0, 0);
    });
}

#[test]
fn disarm_says_that_a_running_daemon_would_put_the_table_back() {
    isolated("disarm", || {
        let mut node = node();
        node.run();
        let (code, stdout, messages) = node.nodewall(&["disarm"]);
        assert_eq!((code, stdout.as_str()), (0, "table inet nodewall removed; nodewall protects nothing now\n"));
        assert!(messages.contains("nodewall is running: it puts the table back"), "{messages}");
        node.until("the table again", |code, _| code == 0);
    });
}

#[test]
fn the_control_socket_takes_one_short_line_and_has_a_mode_for_its_readers() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    isolated("socket", || {
        let mut node = node();
        node.run();
        let socket = node.path("run/nodewall.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        let ask = |request: &[u8]| -> Value {
            let mut stream = UnixStream::connect(&socket).unwrap();
            let _ = stream.write_all(request);
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            serde_json::from_str(&reply).unwrap()
        };
        for (request, code) in [
            (&b"{\"version\":1,\"request\":\"status\"}\n"[..], None),
            (b"{\"version\":2,\"request\":\"status\"}\n", Some("bad-request")),
            (b"{\"version\":1,\"request\":\"format\"}\n", Some("bad-request")),
            (b"\xff\xfe\n", Some("bad-request")),
            (b"no line end", Some("bad-request")),
        ] {
            assert_eq!(ask(request)["error"]["code"].as_str(), code, "{request:?}");
        }
        let reloaded = ask(b"{\"version\":1,\"request\":\"reload\"}\n");
        assert!(reloaded["outcome"].as_str().unwrap().starts_with("generation 1 in force"), "{reloaded}");
        node.told("RELOADING=1");
        node.told("READY=1");
    });
}

#[test]
fn a_new_policy_ends_the_flows_that_it_denies() {
    isolated("revoke", || {
        let mut node = node();
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let flow = |from, port| plain(Protocol::TCP, ip(from), 40_000, ip("10.77.0.2"), port);
        let ports = || -> Vec<u16> {
            let flows = Conntrack::open().unwrap().flows(&mut |_| true).unwrap();
            flows.iter().filter_map(|flow| Some(flow.original.ports()?.1)).collect()
        };
        node.run();
        inject(&[flow("10.0.0.10", 10250), flow("10.9.0.1", 22)]);
        // What changes no rule ends nothing.
        node.signal(Signal::SIGHUP);
        node.told("READY=1");
        node.write("policy.d/20-kubelet.toml", &KUBELET.replace("\"10.0.0.10\", ", ""));
        node.until("the new policy", |_, status| status["generation"] == 2);
        let deadline = Instant::now() + PATIENCE;
        while ports() != [22] {
            assert!(Instant::now() < deadline, "{:?}\n{}", ports(), node.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        while !node.log().contains("ended 1 of 2 flows, which the policy denies") {
            assert!(Instant::now() < deadline, "{}", node.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        // And not where it is switched off.
        node.write(
            "nodewall.toml",
            &format!(
                "socket = \"{}\"\nstate_directory = \"{}\"\n[conntrack]\nrevoke = false\n",
                node.path("run/nodewall.sock").display(),
                node.path("state").display()
            ),
        );
        node.signal(Signal::SIGHUP);
        node.told("READY=1");
        inject(&[flow("10.0.0.10", 10250)]);
        node.write(
            "policy.d/30-more.toml",
            "[[policy]]\nname = \"more\"\norder = 5\ninterfaces = \"all()\"\ningress = [{ action = \"deny\", protocol = \"udp\" }]\n",
        );
        node.until("one more policy", |_, status| status["generation"] == 3);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(ports().len(), 2);
    });
}

/// Addresses of TEST-NET-1 answer nobody (RFC 5737).
#[test]
fn a_cluster_api_that_is_away_is_nothing_that_the_daemon_waits_for() {
    isolated("no cluster api", || {
        let mut node = node();
        let kubeconfig = node.path("kubelet.conf");
        node.write("kubelet.conf", "clusters:\n- cluster:\n    server: https://192.0.2.1:6443\n  name: here\n");
        node.write("nodewall.toml", &format!("{}kubeconfig = \"{}\"\n", node.settings(), kubeconfig.display()));
        node.run();
        let status = node.until("in force", |code, _| code == 0);
        assert_eq!(status["state"], "in-force");
        assert!(table().contains("192.0.2.1"), "and it may be asked as soon as it is back");
        node.write("policy.d/20-kubelet.toml", &KUBELET.replace("10250", "10255"));
        node.until("the new port", |_, status| status["generation"] == 2);
    });
}
