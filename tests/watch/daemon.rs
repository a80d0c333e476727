//! `monitor` and `top` with the real daemon and real packets.

use std::fs::File;
use std::net::IpAddr;

use super::lab::daemon::Node;
use super::lab::isolated;
use super::lab::net::{Host, Probe, What, probe, wire};
use super::stand_in::{eventually, text};
use super::tmux::Tmux;

const POLICY: &str = r#"
[[set]]
name = "clients"
cidrs = ["10.9.0.0/24"]

[[policy]]
name = "services"
order = 20
interfaces = "all()"
ingress = [
  { action = "allow", from = { sets = ["clients"] }, protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "tcp", ports = [9000], log = "not here" },
]
"#;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn what_packets_meet_is_on_the_screen() {
    isolated("monitor and top with the daemon", || {
        let (here, client) = (Host::this(), Host::new());
        wire((&here, "mgmt0", &["10.9.0.1/24"]), (&client, "c0", &["10.9.0.2/24"]));
        here.sh("ip route add default via 10.9.0.2");
        let mut node = Node::new(&[("10-services.toml", POLICY)]);
        node.run();
        node.until("in force, and seen", |_, status| {
            status["state"] == "in-force" && status["traffic"]["packets_error"].is_null()
        });
        let send = |what| {
            probe(&[Probe { from: client.clone(), source: ip("10.9.0.2"), destination: ip("10.9.0.1"), what }]);
        };

        let out = File::create(node.path("out")).unwrap();
        let filter = ["monitor", "--denied", "--peer", "clients", "--policy", "services", "--count", "1"];
        let mut monitor = node.command(&filter).stdout(out).spawn().unwrap();
        // The first may come before it watches.
        assert!(eventually(|| {
            send(What::Tcp(9000));
            monitor.try_wait().unwrap().is_some()
        }));
        assert_eq!(monitor.wait().unwrap().code(), Some(0));
        let line = text(&node.path("out"));
        for part in [
            " denied ",
            " in  mgmt0 ",
            " tcp 10.9.0.2:",
            " > 10.9.0.1:9000 set:clients services#2 10-services.toml:12 ",
            "\"not here\"\n",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }

        let Some(tmux) = Tmux::new("top with the daemon", (100, 30), "screen") else { return };
        let (binary, config) = (env!("CARGO_BIN_EXE_nodewall"), node.path("nodewall.toml"));
        tmux.line(&format!("clear; {binary} --config {} top; echo ended $?", config.display()));
        tmux.until("policies", |text| text.contains("services") && text.contains("q quit"));
        // Whatever else is denied meanwhile stands above it.
        tmux.keys(&["/"]);
        tmux.run(&["send-keys", "-l", "services"]);
        tmux.keys(&["Enter", "Enter"]);
        tmux.until("a rate", |text| {
            send(What::Tcp(9000));
            let line = text.lines().find(|line| line.starts_with("services#2")).unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words.as_slice(), [_, "denied", "10-services.toml:12", rate, ..] if *rate != "0")
        });
        tmux.keys(&["/", "#", "2", "Enter", "Enter"]);
        let shown = tmux.until("the rule", |text| text.contains("LAST EVENTS") && text.contains("> 10.9.0.1:9000"));
        assert!(shown.contains(">   12   { action = \"deny\", protocol = \"tcp\""), "{shown}");
        let away = ["BSpace"; "services#2".len()];
        tmux.keys(&[&["/"], &away[..], &["Enter", "3"]].concat());
        let shown = tmux.until("the peer", |text| text.contains("PEER ") && text.contains("10.9.0.2"));
        assert!(shown.contains("set:clients"), "{shown}");
        tmux.keys(&["q"]);
        tmux.sane_after("ended 0");
    });
}
