//! What the benchmarks share: a network namespace of their own, policies of a given size, and ratios read from criterion's
//! results of the same run.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod daemon;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::InterfaceName;
use nodewall::policy::effective::Effective;
use nodewall::policy::model::Policy;
use nodewall::policy::settings::NodeSettings;

/// Moves this thread, and what it starts from now on, into a fresh network namespace. Nothing here ever touches the
/// machine's own.
pub fn enter_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("benchmarks need root for a network namespace");
    run("ip", &["link", "set", "lo", "up"]);
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Feeds a ruleset to `nft -f -`, as other firewalls do.
pub fn nft(text: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A node with one management interface.
pub fn facts() -> Facts {
    let link = |index, name: &str, hardware, default_route| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        link.hardware = hardware;
        link.default_route = default_route;
        (index, link)
    };
    let links = [link(1, "lo", 772, false), link(2, "mgmt0", 1, true)];
    Facts { node: "bench".to_owned(), links: links.into(), ..Facts::default() }
}

/// The settings as shipped.
pub fn settings() -> NodeSettings {
    nodewall::config::Config::shipped().settings
}

/// A policy text parsed, resolved on [`facts`].
pub fn effective(text: &str) -> Effective {
    let sourced = nodewall::source::decode_text("bench.toml", text);
    assert!(sourced.findings.is_empty(), "{:?}", sourced.findings);
    resolve(&sourced.policy)
}

/// A policy resolved on [`facts`].
pub fn resolve(policy: &Policy) -> Effective {
    nodewall::policy::resolve::resolve(policy, &settings(), &facts()).0
}

/// The same on a node about which these facts are known.
pub fn resolve_on(policy: &Policy, facts: &Facts) -> Effective {
    nodewall::policy::resolve::resolve(policy, &settings(), facts).0
}

/// 50 rules that do not merge and one set of `prefixes` prefixes that one of them looks up.
pub fn fifty_rules(prefixes: usize) -> String {
    let mut text = String::from("[[set]]\nname = \"big\"\ncidrs = [");
    for index in 0..prefixes {
        // Every second /30, so that no two are neighbours and become one range.
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + (index as u32) * 8);
        write!(text, "\"{address}/30\",").unwrap();
    }
    text.push_str("]\n[[policy]]\nname = \"rules\"\norder = 1\ninterfaces = \"role == 'mgmt'\"\ningress = [\n");
    text.push_str("{ action = \"allow\", from = { sets = [\"big\"] } },\n");
    for index in 1..50 {
        let protocol = ["tcp", "udp"][index % 2];
        let third = index % 250;
        let (port, from) = (1000 + index, 30_000 + index);
        writeln!(
            text,
            "{{ action = \"allow\", from = {{ cidrs = [\"192.168.{third}.0/24\"], ports = [{from}] }}, protocol = \"{protocol}\", ports = [\"{port}-{}\"] }},",
            port + 100,
        )
        .unwrap();
    }
    text.push_str("]\n");
    text
}

/// Median nanoseconds of every benchmark of a group, from criterion's results of this run.
pub fn medians(group: &str) -> BTreeMap<String, f64> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let mut found = BTreeMap::new();
    let root = target.join("criterion").join(group);
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() == "new" {
                let text = std::fs::read_to_string(path.join("estimates.json")).unwrap_or_default();
                if let Ok(estimates) = serde_json::from_str::<serde_json::Value>(&text) {
                    let name = folder.strip_prefix(&root).unwrap().display().to_string();
                    found.insert(name, estimates["median"]["point_estimate"].as_f64().unwrap_or(f64::NAN));
                }
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// One line of the summary: a figure, what was asked, and whether it holds.
pub fn figure(what: &str, value: f64, unit: &str, wanted: &str, holds: bool) {
    let mark = if holds { "ok  " } else { "MISS" };
    println!("{mark}  {what:<66} {value:>9.2} {unit:<6} wanted {wanted}");
}
