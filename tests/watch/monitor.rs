//! `nodewall monitor` as people and scripts use it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stand_in::{PATIENCE, StandIn, event, eventually, text};

/// Exit code, stdout and stderr.
fn output(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// The exit code of a process that ends while there is patience.
#[track_caller]
fn ended(mut child: Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn some() -> Vec<Value> {
    vec![
        event(json!({})),
        event(json!({ "kind": "connection", "verdict": "allowed", "interface": "ib0", "length": null,
            "destination_port": 22, "rule": "ssh#1", "policy": "ssh", "place": "10-ssh.toml:3",
            "process": { "name": "sshd", "unit": "ssh.service", "pod": null, "user": "root" } })),
        json!({ "version": 1, "missed": 3 }),
        event(
            json!({ "verdict": "would-deny", "peer": "fd00::9", "source": "fd00::9", "names": [], "text": "audit me" }),
        ),
        json!({ "version": 1, "lost": { "packets": 7, "connections": 2 } }),
    ]
}

#[test]
fn each_event_is_a_line_and_what_was_missed_is_told_where_it_is_missed() {
    let daemon = StandIn::new(&some());
    let (code, stdout, stderr) = output(daemon.command(&["monitor", "--count", "3"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(
        stdout,
        "\
08:20:19.123456 denied       in  eth0 60   tcp 10.0.7.9:40122 > 10.0.0.5:10250 node:gpu-17,set:ops kubelet#2 20-kubelet.toml:14
08:20:19.123456 allowed      in  ib0  new  tcp 10.0.7.9:40122 > 10.0.0.5:22    node:gpu-17,set:ops ssh#1 10-ssh.toml:3          sshd (ssh.service, user root)
-- 3 events missed here, as this reader is too slow
08:20:19.123456 would-deny   in  eth0 60   tcp [fd00::9]:40122 > 10.0.0.5:10250 -                   kubelet#2 20-kubelet.toml:14 \"audit me\"
"
    );
}

#[test]
fn a_daemon_that_ends_is_an_exit_code_after_all_that_it_told() {
    let daemon = StandIn::new(&some());
    let child = daemon
        .command(&["monitor", "--denied"])
        .stdout(File::create(daemon.path("out")).unwrap())
        .stderr(File::create(daemon.path("err")).unwrap())
        .spawn()
        .unwrap();
    daemon.watched();
    assert!(eventually(|| text(&daemon.path("out")).contains("-- lost since the daemon's start: 7 logged packets")));
    daemon.close();
    assert_eq!(ended(child), Some(3));
    assert_eq!(text(&daemon.path("out")).lines().count(), 3, "{}", text(&daemon.path("out")));
    let told = "nodewall: the daemon closed the stream of events: it was stopped or started again\n";
    assert_eq!(text(&daemon.path("err")), told);
}

#[test]
fn who_asks_for_some_gets_these() {
    let daemon = StandIn::new(&some());
    for (arguments, wanted) in [
        (vec!["--denied"], "kubelet#2"),
        (vec!["--audited"], "would-deny"),
        (vec!["--verdict", "allowed"], "sshd"),
        (vec!["--denied", "--verdict", "would-deny", "--peer", "fd00::/16"], "would-deny"),
        (vec!["--interface", "ib0"], "ssh#1"),
        (vec!["--policy", "ssh"], "ssh#1"),
        (vec!["--peer", "ops", "--connections"], "ssh#1"),
        (vec!["--packets", "--policy", "kubelet#2"], "kubelet#2"),
    ] {
        let arguments: Vec<&str> = ["monitor", "--count", "1"].into_iter().chain(arguments).collect();
        let (code, stdout, stderr) = output(daemon.command(&arguments));
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        let events: Vec<&str> = stdout.lines().filter(|line| !line.starts_with("--")).collect();
        assert!(matches!(events.as_slice(), [line] if line.contains(wanted)), "{arguments:?}: {stdout}");
    }
    for arguments in
        [["--verdict", "dropped"], ["--peer", "10.0.0.0/33"], ["--count", "0"], ["--connections", "--packets"]]
    {
        let arguments: Vec<&str> = ["monitor"].into_iter().chain(arguments).collect();
        assert_eq!(output(daemon.command(&arguments)).0, 2, "{arguments:?}");
    }
}

#[test]
fn json_is_what_the_daemon_sent_without_what_a_terminal_obeys() {
    let mut lines = some();
    lines.push(event(json!({ "verdict": "logged", "text": "\u{1b}[2J\u{9b}31m", "new-key": 1 })));
    let daemon = StandIn::new(&lines);
    let (code, stdout, _) = output(daemon.command(&["monitor", "--json", "--count", "4"]));
    assert_eq!(code, 0);
    let printed: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, lines);
    assert!(stdout.chars().all(|next| next == '\n' || !next.is_control()), "{stdout:?}");
}

#[test]
fn colours_are_for_terminals_and_those_who_want_them() {
    let daemon = StandIn::new(&some());
    let colored = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = daemon.command(&[&["monitor", "--count", "1"], arguments].concat());
        command.envs(environment.iter().copied());
        output(command).1.contains("\u{1b}[31mdenied")
    };
    assert!(!colored(&[], &[]) && colored(&["--color", "always"], &[]));
    assert!(!colored(&["--color", "never"], &[]) && !colored(&[], &[("NO_COLOR", "1")]));
}

#[test]
fn interrupted_or_terminated_it_ends_well() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let daemon = StandIn::new(&some());
        let out = File::create(daemon.path("out")).unwrap();
        let err = File::create(daemon.path("err")).unwrap();
        let child = daemon.command(&["monitor"]).stdout(out).stderr(err).spawn().unwrap();
        assert!(eventually(|| text(&daemon.path("out")).lines().count() == 5));
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(ended(child), Some(0));
        assert_eq!(text(&daemon.path("err")), "");
        assert_eq!(text(&daemon.path("out")).lines().count(), 5);
    }
}

#[test]
fn interrupted_twice_it_ends_although_nobody_takes_what_it_prints() {
    let many: Vec<Value> = (0..2000).map(|_| event(json!({}))).collect();
    let daemon = StandIn::new(&many);
    let mut child = daemon.command(&["monitor"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut full = BufReader::new(child.stdout.take().unwrap());
    full.read_line(&mut String::new()).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    // Each may come before the process waits for it; pending ones of a kind are one.
    assert!(eventually(|| {
        let _ = kill(pid, Signal::SIGINT);
        child.try_wait().unwrap().is_some()
    }));
    assert_eq!(ended(child), Some(0));
    drop(full);
}

#[test]
fn a_pipe_that_is_closed_is_no_failure() {
    let daemon = StandIn::new(&some());
    let mut child = daemon
        .command(&["monitor"])
        .stdout(Stdio::piped())
        .stderr(File::create(daemon.path("err")).unwrap())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);
    // It is noticed with the next event.
    assert!(eventually(|| !daemon.say(&[event(json!({}))])));
    assert_eq!(ended(child), Some(0));
    assert_eq!(text(&daemon.path("err")), "");
}

#[test]
fn who_may_not_and_who_finds_nobody_are_told() {
    let daemon = StandIn::new(&[]);
    daemon.refuse("not-authorised", "only root and group nodewall may request this");
    let (code, stdout, stderr) = output(daemon.command(&["monitor"]));
    let told = "nodewall: only root and group nodewall may request this\n";
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (4, "", told));
    daemon.refuse("unavailable", "too many watch");
    assert_eq!(output(daemon.command(&["monitor"])).0, 1);
    std::fs::remove_file(daemon.path("nodewall.sock")).unwrap();
    let (code, _, stderr) = output(daemon.command(&["monitor"]));
    assert_eq!(code, 3);
    assert!(stderr.contains("the daemon is not running (nobody answers on "), "{stderr}");
}
