//! Golden cases: operator's text in (with the presets that the file `presets` of a case names), nft text and findings out, one folder each in `tests/cases/good`. The nft program is
//! the second judge: it takes the text, and what it lists is what we render, both for its own load and for ours by netlink.
//!
//! `UPDATE=1 cargo test --test golden` rewrites the expected files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "lab/mod.rs"]
mod lab;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::driver::{self, Kernel, Netlink, Read};
use nodewall::net;
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{InterfaceName, Role};
use nodewall::net::node::NodeAddress;
use nodewall::nft::ir::Ruleset;
use nodewall::nft::{json, text};
use nodewall::policy::expiry;
use nodewall::policy::resolve::resolve;
use nodewall::source;
use nodewall::text::finding::Severity;
use nodewall::textfile::Trust;

/// A training node with one of everything.
fn node() -> Facts {
    let link = |index: u32, name: &str, change: &dyn Fn(&mut Link)| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        change(&mut link);
        (index, link)
    };
    let kind = |name: &'static str| move |link: &mut Link| link.kind = Some(name.to_owned());
    let rail = |address: &'static str| {
        move |link: &mut Link| {
            link.driver = Some("mlx5_core".to_owned());
            link.rdma = Some("mlx5_0".to_owned());
            link.addresses = [address.parse().unwrap()].into();
        }
    };
    let links = [
        link(1, "lo", &|link| {
            link.hardware = 772;
            link.addresses = ["127.0.0.1/8".parse().unwrap(), "::1/128".parse().unwrap()].into();
        }),
        link(2, "mgmt0", &|link| {
            link.default_route = true;
            link.driver = Some("igb".to_owned());
            link.addresses = ["10.0.0.5/24".parse().unwrap(), "fd00::5/64".parse().unwrap()].into();
        }),
        link(3, "rail0", &rail("10.100.0.5/24")),
        link(4, "rail1", &rail("10.100.1.5/24")),
        link(5, "stor0", &|link| link.driver = Some("bnxt_en".to_owned())),
        link(6, "docker0", &kind("bridge")),
        link(7, "cali0a1b2c", &kind("veth")),
        link(8, "vxlan.calico", &kind("vxlan")),
    ];
    let peer = |name: &str, pool: &str, addresses: &[(Option<Role>, &str)]| {
        let address =
            |(role, address): &(Option<Role>, &str)| NodeAddress { role: *role, address: address.parse().unwrap() };
        let shared = Arc::new([("pool".to_owned(), pool.to_owned())].into());
        let addresses = addresses.iter().map(address).collect();
        (name.to_owned(), Arc::new(net::node::Node { shared, addresses, ..net::node::Node::default() }))
    };
    let rails = |last: u8| [format!("10.100.0.{last}"), format!("10.100.1.{last}"), format!("fd00::{last}")];
    let training = |name: &str, last: u8| {
        let [first, second, plain] = rails(last);
        peer(name, "training", &[(Some(Role::Rail), &first), (Some(Role::Rail), &second), (None, &plain)])
    };
    let nodes = [training("node-1", 5), training("node-2", 6), peer("login", "login", &[(None, "10.0.0.77")])];
    Facts {
        node: "node-1".to_owned(),
        nodes: Arc::new([("training".to_owned(), Arc::new(nodes.into()))].into()),
        links: links.into(),
        api_servers: [("10.0.0.10".parse().unwrap(), 6443)].into(),
        ..Facts::default()
    }
}

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/good");
    let entries = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = entries.filter(|path| path.join("policy.toml").is_file()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "the golden cases are gone");
    cases
}

/// The time of these tests: 2026-11-23T21:09:54Z.
const NOW: u64 = 1_795_468_194;

/// A case compiled, and its findings in the form for logs.
fn compiled(case: &Path) -> (Ruleset, String) {
    let policy = case.join("policy.toml");
    let mut sourced = match std::fs::read_to_string(case.join("presets")) {
        Ok(presets) => {
            // Relative, so that findings say the same on every machine.
            let mut paths = vec![PathBuf::from("config/policy.d/00-services.toml")];
            paths.extend(presets.split_whitespace().map(|name| format!("config/presets/{name}.toml").into()));
            paths.push(policy.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_owned());
            source::load_paths(&paths, Trust::Anyone)
        }
        Err(_) => source::decode_text("policy.toml", &std::fs::read_to_string(&policy).unwrap()),
    };
    // A case may have settings of its own.
    let config = match std::fs::read_to_string(case.join("nodewall.toml")) {
        Ok(text) => {
            let (config, findings) = nodewall::config::decode_text("nodewall.toml", &text);
            assert!(findings.is_empty(), "{}: {findings:#?}", case.display());
            config
        }
        Err(_) => Config::shipped(),
    };
    // The others are about what is written there and nothing else.
    if case.ends_with("guards") {
        sourced.policy.guard(source::guards::shipped(), &config.guards);
    }
    let (mut effective, resolved) = resolve(&sourced.policy, &config.settings, &node());
    let over = effective.expire(|policy| policy.is_over(NOW));
    let over = over.iter().map(expiry::finding);
    let findings: Vec<_> = sourced.findings.into_iter().chain(resolved).chain(over).collect();
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{}: {findings:#?}", case.display());
    let lines: Vec<String> = findings.iter().map(nodewall::text::render::line).collect();
    let lines = if lines.is_empty() { String::new() } else { lines.join("\n") + "\n" };
    (compile(&effective), lines)
}

fn same(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if found != expected {
        let difference = found.lines().zip(expected.lines()).position(|(left, right)| left != right);
        let line = difference.unwrap_or(found.lines().count().min(expected.lines().count()));
        panic!(
            "{}:{}: expected\n  {}\nfound\n  {}\nUPDATE=1 rewrites it",
            path.display(),
            line + 1,
            expected.lines().nth(line).unwrap_or("(end)"),
            found.lines().nth(line).unwrap_or("(end)"),
        );
    }
}

#[test]
fn policies_compile_to_what_is_written_down() {
    for case in cases() {
        let (ruleset, findings) = compiled(&case);
        same(&case.join("expected.nft"), &text::render(&ruleset));
        same(&case.join("expected.findings"), &findings);
        assert_eq!(compile_again(&case), text::render(&ruleset), "the same input gave other bytes");
    }
}

fn compile_again(case: &Path) -> String {
    text::render(&compiled(case).0)
}

fn nft(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn listed() -> serde_json::Value {
    json::normalise(serde_json::from_str(&nft(&["-j", "list", "table", "inet", "nodewall"], "")).unwrap())
}

/// Makes the devices that chains at ingress are on: before Linux 6.16 there is no such chain without.
fn add_devices(ruleset: &Ruleset) {
    let bases = ruleset.chains.values().filter_map(|chain| chain.base);
    for name in bases.filter_map(|base| base.device).map(|device| device.as_name()) {
        lab::sh(&format!("ip link show {name} >/dev/null 2>&1 || ip link add {name} type veth"));
    }
}

/// A table of somebody else's, which has to be byte-identical afterwards.
const FOREIGN: &str = "table ip other {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n\n\tchain c {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tip saddr @s drop\n\t}\n}\n";

#[test]
fn nft_lists_what_we_render_and_what_we_send() {
    lab::isolated("nft_lists_what_we_render_and_what_we_send", || {
        nft(&["-f", "-"], FOREIGN);
        let foreign = nft(&["list", "table", "ip", "other"], "");
        let mut kernel = Netlink::open().unwrap();
        for case in cases() {
            let name = case.display();
            let (ruleset, _) = compiled(&case);
            let rendered = json::normalise(json::render(&ruleset));
            add_devices(&ruleset);
            let written = text::render(&ruleset);
            nft(&["-f", "-"], &written);
            // What nft cannot read, the numbers of control groups, is a comment there.
            if !written.contains("\n\t\t# ") {
                assert_eq!(listed(), rendered, "{name}: loaded by nft");
            }
            nft(&["delete", "table", "inet", "nodewall"], "");
            let applied = driver::apply(&mut kernel, &ruleset, None).unwrap();
            assert!(applied.changes > 0);
            assert_eq!(listed(), rendered, "{name}: sent by netlink");
            let again = driver::apply(&mut kernel, &ruleset, None).unwrap();
            assert_eq!(again.changes, 0, "{name}: nothing was to be done");
        }
        assert_eq!(nft(&["list", "table", "ip", "other"], ""), foreign, "a foreign table changed");
    });
}

/// From every golden case to every other in turn: what is loaded is always exactly the last one.
#[test]
fn any_case_follows_any_other() {
    lab::isolated("any_case_follows_any_other", || {
        let rulesets: Vec<Ruleset> = cases().iter().map(|case| compiled(case).0).collect();
        let mut kernel = Netlink::open().unwrap();
        let mut known = None;
        for step in 1..rulesets.len() {
            for start in 0..rulesets.len() {
                let ruleset = &rulesets[(start * step) % rulesets.len()];
                add_devices(ruleset);
                let applied = driver::apply(&mut kernel, ruleset, known.as_ref()).unwrap();
                let loaded = kernel.load(&Read::Everything).unwrap();
                assert_eq!(text::render(&loaded.ruleset), text::render(ruleset), "step {step}, start {start}");
                for (name, chain) in &ruleset.chains {
                    assert_eq!(
                        loaded.ruleset.chains.get(name),
                        Some(chain),
                        "chain {name}: step {step}, start {start}"
                    );
                }
                assert!(loaded.ruleset == *ruleset, "step {step}, start {start}");
                known = Some(applied.loaded);
            }
        }
    });
}
