//! The daemon's memory and wake-ups, and how soon it follows a link: the real binary in a namespace of its own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use nodewall::driver::{Kernel, Netlink, Read};
use nodewall::nft::ir::{ElementKey, Elements};
use nodewall::nft::key::Datum;
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

/// How often a link is renamed.
const RENAMES: usize = 41;

/// Whether the rules know an interface by name.
fn is_known(netlink: &mut Netlink, interface: &str) -> bool {
    let sets = netlink.load(&Read::Everything).unwrap().ruleset.sets;
    let map = sets.iter().find(|(name, _)| name.starts_with("in_interfaces/")).map(|(_, set)| &set.elements);
    matches!(map, Some(Elements::Keys(keys)) if keys.contains_key(&ElementKey::of([Datum::name(interface)])))
}

/// From the start of ip(8), which renames a link, until its new name and not the old one is seen in the rules: the median, in ms.
fn until_renamed() -> f64 {
    support::run("ip", &["link", "add", "one0", "type", "veth", "peer", "name", "other0"]);
    let mut netlink = Netlink::open().unwrap();
    let mut times: Vec<Duration> = (0..RENAMES)
        .map(|round| {
            let (from, to) = if round % 2 == 0 { ("one0", "two0") } else { ("two0", "one0") };
            while !is_known(&mut netlink, from) {}
            let start = Instant::now();
            support::run("ip", &["link", "set", from, "name", to]);
            while !is_known(&mut netlink, to) || is_known(&mut netlink, from) {}
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RENAMES / 2].as_secs_f64() * 1e3
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
    let renamed = until_renamed();
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
    support::figure("a renamed link under the rules of its new name: median", renamed, "ms", "< 100", renamed < 100.0);
    support::figure("100,000 prefixes, read back and reloaded: peak resident memory", peak, "MiB", "< 64", peak < 64.0);
}
