//! The daemon's memory and wake-ups: the real binary in a namespace of its own, read from /proc.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use support::daemon::{Daemon, start};

/// How long wake-ups are counted.
const IDLE_SECONDS: u64 = 10;

fn switches(daemon: &Daemon) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    tasks
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default())
        .flat_map(|text| {
            text.lines().filter(|line| line.contains("_ctxt_switches")).map(str::to_owned).collect::<Vec<_>>()
        })
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn main() {
    // cargo passes --bench; there is nothing here for criterion to repeat.
    support::enter_namespace();
    support::run("ip", &["link", "add", "mgmt0", "type", "veth", "peer", "name", "peer0"]);
    support::run("ip", &["addr", "add", "10.77.0.2/24", "dev", "mgmt0"]);
    support::run("ip", &["link", "set", "mgmt0", "up"]);
    support::run("ip", &["route", "add", "default", "via", "10.77.0.1"]);

    let shipped: Vec<(String, String)> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy.d"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap()))
            .collect();
    assert!(!shipped.is_empty(), "the shipped policy is gone");
    let shipped: Vec<(&str, String)> = shipped.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    let daemon = start(shipped);
    std::thread::sleep(Duration::from_secs(2));
    let before = switches(&daemon);
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let woken = switches(&daemon) - before;
    let idle = daemon.status("VmRSS") as f64 / 1024.0;
    drop(daemon);
    support::run("nft", &["delete", "table", "inet", "nodewall"]);

    let large = start([("large.toml", support::fifty_rules(100_000))]);
    // The sets are read back after READY, and a reload holds the old policy beside the new one.
    std::thread::sleep(Duration::from_secs(3));
    let pid = nix::unistd::Pid::from_raw(large.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let peak = large.status("VmHWM") as f64 / 1024.0;
    drop(large);

    println!();
    support::figure("idle with the shipped policy: resident memory", idle, "MiB", "< 16", idle < 16.0);
    support::figure(&format!("  wake-ups in {IDLE_SECONDS} s without a watchdog"), woken as f64, "", "0", woken == 0);
    support::figure("100,000 prefixes, read back and reloaded: peak resident memory", peak, "MiB", "< 64", peak < 64.0);
}
