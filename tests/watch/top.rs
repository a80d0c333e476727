//! `nodewall top` in a real tmux, with a control socket that says what a test wants.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stand_in::{StandIn, event, eventually, text};
use super::tmux::Tmux;

const POLICY: &str = "\
[[policy]]
name = \"kubelet\"
order = 10
interfaces = \"all()\"
ingress = [
  { action = \"allow\", from = \"api-servers\" },
  { action = \"deny\", ports = [10250] },
]
";

/// A status: what rules have counted after so many looks.
fn status(folder: &Path, looks: u64) -> Value {
    let rule = |rule: &str, place: &str, verdict: &str, packets: u64| json!({ "rule": rule, "place": place, "verdict": verdict, "packets": packets * looks, "bytes": 60 * packets * looks });
    let policy = folder.join("20-kubelet.toml").display().to_string();
    json!({
        "version": 1, "running": true, "state": "in-force", "mode": "enforce", "generation": 12,
        "table": { "exists": true, "chains": 9, "rules": 41, "sets": 4, "elements": 12 },
        "policies": [
            { "name": "kubelet", "tier": "platform", "mode": "enforce", "interfaces": ["eth0"], "rules": 2, "place": format!("{policy}:1:1") },
            { "name": "nccl", "tier": "application", "mode": "audit", "interfaces": ["ib0", "ib1"], "rules": 1, "place": "/nowhere/30-nccl.toml:1:1" }
        ],
        "rules": [
            rule("default of mgmt ingress", "", "denied", 3),
            rule("kubelet#1", "20-kubelet.toml:6", "allowed", 200),
            rule("kubelet#2", "20-kubelet.toml:7", "denied", 40),
            rule("nccl#1", "30-nccl.toml:9", "would-deny", 10)
        ]
    })
}

/// A node where something goes on.
fn node() -> StandIn {
    let ops = json!({ "names": ["node:gpu-17", "set:ops"], "place": "20-kubelet.toml:7" });
    let scan = json!({ "peer": "203.0.113.66", "source": "203.0.113.66", "names": [], "rule": "default", "policy": null,
        "place": null, "destination_port": 23, "process": { "name": "in\u{1b}[2Jetd", "unit": null, "pod": null, "user": null } });
    let ssh = json!({ "kind": "connection", "verdict": "allowed", "interface": "ib0", "role": "rail", "length": null,
        "peer": "fd00::17", "source": "fd00::17", "rule": "ssh#1", "policy": "ssh", "place": "10-ssh.toml:3",
        "destination_port": 22, "names": ["node:gpu-18"] });
    let daemon = StandIn::new(&[event(ops), event(scan), event(ssh), json!({ "version": 1, "missed": 4 })]);
    std::fs::write(daemon.path("20-kubelet.toml"), POLICY).unwrap();
    daemon.set_status(status);
    daemon
}

/// What to type for `top`, with how it ended said afterwards.
fn top(daemon: &StandIn, before: &str) -> String {
    let binary = env!("CARGO_BIN_EXE_nodewall");
    let (config, pid) = (daemon.path("nodewall.toml"), daemon.path("pid"));
    format!(
        "clear; {before} sh -c 'echo $$ > {}; exec {binary} --config {} top'; echo ended $?",
        pid.display(),
        config.display()
    )
}

fn pid(daemon: &StandIn) -> Pid {
    Pid::from_raw(text(&daemon.path("pid")).trim().parse().unwrap())
}

#[test]
fn from_policies_to_the_text_of_a_rule_and_back() {
    let Some(tmux) = Tmux::new("top in tmux", (80, 24), "tmux-256color") else { return };
    let daemon = node();
    tmux.line(&top(&daemon, ""));
    let text =
        tmux.until("rates", |text| text.contains("deny ") && !text.contains("deny 0/s") && text.contains("/s  would "));
    assert!(text.contains("in force  generation 12") && text.contains("1 policies"), "{text}");
    for part in ["POLICY", "ALLOW/s", "kubelet", "platform, eth0", "audit, application", "(defaults)", "q quit"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    tmux.keys(&["Enter"]);
    tmux.until("rules", |text| text.contains("kubelet#1") && text.contains("denied 20-kubelet.toml:7"));
    tmux.keys(&["Down", "Enter"]);
    let text = tmux.until("the source", |text| text.contains("as it is on disk now"));
    for part in [
        ">    7   { action = \"deny\", ports = [10250] },",
        "     6   { action = \"allow\", from = \"api-servers\" },",
        "LAST EVENTS",
        "08:20:19.123 denied eth0 tcp 10.0.7.9:40122 > 10.0.0.5:10250",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    tmux.keys(&["Escape"]);
    tmux.until("rules again", |text| text.contains("VERDICT, PLACE") && !text.contains("LAST EVENTS"));
    tmux.keys(&["3"]);
    let text = tmux.until("peers", |text| text.contains("203.0.113.66"));
    assert!(text.contains("fd00::17") && text.contains("seen: 3 events") && text.contains("4 missed"), "{text}");
    tmux.keys(&["/", "6", "6", "Enter"]);
    tmux.until("the filter", |text| text.contains("/66") && !text.contains("fd00::17"));
    tmux.keys(&["Enter"]);
    tmux.until("the peer", |text| text.contains("in tcp 23") && text.contains("default of mgmt ingress"));
    tmux.keys(&["Down", "Enter"]);
    let text = tmux.until("the default", |text| text.contains("a default has no text"));
    assert!(text.contains("in\\u{1b}[2Jetd"), "{text}");
    tmux.keys(&["?"]);
    tmux.until("help", |text| text.contains("q, Ctrl-C       quit"));
    tmux.keys(&["x", "2"]);
    tmux.until("interfaces", |text| text.contains("INTERFACE") && text.contains("rail"));
    tmux.keys(&["q"]);
    tmux.sane_after("ended 0");
}

#[test]
fn what_cannot_be_read_is_said() {
    let Some(tmux) = Tmux::new("top without the file", (80, 24), "screen") else { return };
    let daemon = node();
    tmux.line(&top(&daemon, ""));
    tmux.until("policies", |text| text.contains("nccl"));
    tmux.keys(&["/", "n", "c", "c", "Enter", "Enter"]);
    tmux.until("rules", |text| text.contains("nccl#1"));
    tmux.keys(&["Enter"]);
    tmux.until("the reason", |text| text.contains("cannot read /nowhere/30-nccl.toml: No such file"));
    tmux.keys(&["C-c"]);
    tmux.sane_after("ended 0");
}

#[test]
fn it_fits_whatever_size_the_terminal_comes_to() {
    let Some(tmux) = Tmux::new("top in small", (80, 24), "xterm") else { return };
    let daemon = node();
    tmux.line(&top(&daemon, ""));
    tmux.until("policies", |text| text.contains("q quit"));
    for (width, height) in [(30, 8), (12, 3), (132, 43), (2, 2), (80, 24)] {
        tmux.run(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]);
        tmux.until(&format!("{width}x{height}"), |text| match (width, height) {
            (2, 2) => text.starts_with("P~") && text.contains("\nk~"),
            (12, 3) => text.starts_with("POLICY") && text.contains("kubelet"),
            (30, 8) => text.contains("kubelet") && text.contains("q quit") && !text.contains("WOULD/s"),
            _ => text.contains("kubelet") && text.contains("q quit") && text.contains("WOULD/s"),
        });
    }
    tmux.keys(&["q"]);
    tmux.sane_after("ended 0");
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    for (signal, term) in [(Signal::SIGTERM, "linux"), (Signal::SIGHUP, "screen-256color"), (Signal::SIGINT, "vt100")] {
        let Some(tmux) = Tmux::new("top and signals", (80, 24), term) else { return };
        let daemon = node();
        tmux.line(&top(&daemon, ""));
        tmux.until("policies", |text| text.contains("q quit"));
        assert_eq!(tmux.word("#{alternate_on}"), "1");
        kill(pid(&daemon), signal).unwrap();
        tmux.sane_after("ended 0");
    }
}

#[test]
fn a_terminal_that_goes_away_takes_it_along() {
    let Some(tmux) = Tmux::new("top without its terminal", (80, 24), "screen") else { return };
    let daemon = node();
    tmux.line(&top(&daemon, ""));
    tmux.until("policies", |text| text.contains("q quit"));
    let pid = pid(&daemon);
    tmux.run(&["kill-server"]);
    assert!(eventually(|| kill(pid, None).is_err()), "it goes on without a terminal");
}

#[test]
fn a_daemon_that_is_away_is_told_and_found_again() {
    let Some(tmux) = Tmux::new("top without the daemon", (80, 24), "screen") else { return };
    let daemon = node();
    tmux.line(&top(&daemon, ""));
    tmux.until("policies", |text| text.contains("q quit"));
    let (socket, aside) = (daemon.path("nodewall.sock"), daemon.path("aside"));
    std::fs::rename(&socket, &aside).unwrap();
    daemon.close();
    tmux.until("that it is away", |text| text.contains("the daemon is not running"));
    std::fs::rename(&aside, &socket).unwrap();
    tmux.until("that it is back", |text| text.contains("counters of the kernel"));
    tmux.keys(&["3"]);
    // The stand-in tells its events to everybody who comes.
    tmux.until("events", |text| text.contains("seen: 6 events"));
    tmux.keys(&["q"]);
    tmux.sane_after("ended 0");
}

#[test]
fn colours_are_there_unless_they_are_not_wanted() {
    let Some(tmux) = Tmux::new("top in colours", (80, 24), "screen") else { return };
    let daemon = node();
    for (before, colored) in [("", true), ("NO_COLOR=1", false)] {
        tmux.line(&top(&daemon, before));
        tmux.until("rates", |text| text.contains("deny ") && !text.contains("deny 0/s") && text.contains("q quit"));
        let raw = tmux.run(&["capture-pane", "-p", "-e"]);
        assert_eq!(raw.contains("\u{1b}[31m") || raw.contains("\u{1b}[38;5;1m"), colored, "{raw:?}");
        tmux.keys(&["q"]);
        tmux.sane_after("ended 0");
    }
}

#[test]
fn without_a_terminal_it_says_so() {
    let daemon = node();
    let run = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = run(&mut daemon.command(&["top"]));
    assert_eq!(code, 2);
    assert!(told.starts_with("nodewall: top needs a terminal, and stdout is none"), "{told}");
    let Some(tmux) = Tmux::new("top on a dumb terminal", (80, 24), "dumb") else { return };
    tmux.line(&top(&daemon, ""));
    tmux.until("the reason", |text| text.contains("TERM names none that can be drawn on") && text.contains("ended 2"));
    std::fs::remove_file(daemon.path("nodewall.sock")).unwrap();
    tmux.line(&top(&daemon, "TERM=screen"));
    tmux.until("the reason", |text| text.contains("the daemon is not running") && text.contains("ended 3"));
}
