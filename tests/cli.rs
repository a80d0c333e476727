//! The command line as scripts use it: exit codes, what goes to stdout and what to stderr, JSON.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::path::Path;
use std::process::{Command, Stdio};

use lab::{isolated, sh};
use serde_json::Value;

const GOOD: &str = "[[policy]]\nname = \"kubelet\"\norder = 1\ninterfaces = \"all()\"\ningress = [\n  { action = \"deny\", protocol = \"tcp\", ports = [10250] },\n]\n";

/// Exit code, stdout and stderr.
fn nodewall(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "nodewall.toml", "--policy-dir", "policy.d"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn folder(policy: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("policy.d")).unwrap();
    std::fs::write(folder.path().join("policy.d/10-kubelet.toml"), policy).unwrap();
    let settings = format!("socket = \"{}\"\n", folder.path().join("nodewall.sock").display());
    std::fs::write(folder.path().join("nodewall.toml"), settings).unwrap();
    folder
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn usage_and_help() {
    let here = folder(GOOD);
    let (code, stdout, _) = nodewall(here.path(), &["--version"]);
    assert_eq!((code, stdout.as_str()), (0, concat!("nodewall ", env!("CARGO_PKG_VERSION"), "\n")));
    let (code, stdout, _) = nodewall(here.path(), &["--help"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("Exit codes:") && stdout.contains("disarm"), "{stdout}");
    let (code, stdout, stderr) = nodewall(here.path(), &["aply"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("similar subcommand"), "{stderr}");
}

#[test]
fn check_prints_findings_to_stdout_and_says_by_its_exit_code_how_bad_they_are() {
    let here = folder(GOOD);
    let (code, stdout, stderr) = nodewall(here.path(), &["check", "--color", "never"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "a warning alone is no failure");
    assert!(
        stdout.contains("warning[open-failsafe]") && stdout.ends_with("1 policy in 1 file: 0 errors, 1 warning\n"),
        "{stdout}"
    );
    assert_eq!(nodewall(here.path(), &["check", "--strict"]).0, 1);
    assert!(nodewall(here.path(), &["check", "--color", "always"]).1.contains('\u{1b}'));

    let bad = folder(&GOOD.replace("10250", "70000"));
    let (code, stdout, _) = nodewall(bad.path(), &["check"]);
    assert_eq!(code, 5);
    assert!(stdout.contains("policy.d/10-kubelet.toml:6:") && !stdout.contains('\u{1b}'), "{stdout}");
    let (code, stdout, _) = nodewall(bad.path(), &["check", "--json"]);
    assert_eq!(code, 5);
    let report = json(&stdout);
    assert_eq!((&report["version"], &report["errors"]), (&1.into(), &1.into()));
    let error = report["findings"].as_array().unwrap().iter().find(|finding| finding["severity"] == "error").unwrap();
    assert_eq!((&error["file"], &error["line"]), (&"policy.d/10-kubelet.toml".into(), &6.into()));
    // A name that nothing has is one mistake, not two.
    let unknown = GOOD.replace("protocol = \"tcp\", ports = [10250]", "services = [\"kublet\"]");
    std::fs::write(bad.path().join("unknown.toml"), unknown).unwrap();
    let report = json(&nodewall(bad.path(), &["check", "--json", "unknown.toml"]).1);
    let codes: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["open-failsafe", "unknown-name"]);
    // Paths replace the directories.
    std::fs::write(bad.path().join("other.toml"), GOOD).unwrap();
    assert_eq!(nodewall(bad.path(), &["check", "other.toml"]).0, 0);
}

#[test]
fn render_prints_rules_to_stdout_and_nothing_but_findings_to_stderr() {
    let here = folder(GOOD);
    let (code, text, stderr) = nodewall(here.path(), &["render"]);
    assert_eq!(code, 0);
    assert!(text.contains("kubelet#1 10-kubelet.toml:6"), "{text}");
    assert!(stderr.contains("open-failsafe"), "{stderr}");
    let (code, text, _) = nodewall(here.path(), &["render", "--format", "json"]);
    assert_eq!(code, 0);
    assert!(json(&text)["nftables"].is_array());
    assert_eq!(nodewall(here.path(), &["render", "--json"]).1, text);
    let bad = folder("x = 1\n");
    let (code, stdout, _) = nodewall(bad.path(), &["render"]);
    assert_eq!((code, stdout.as_str()), (5, ""));
}

#[test]
fn a_closed_pipe_is_no_failure_and_no_panic() {
    let here = folder(GOOD);
    let mut child = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "nodewall.toml", "--policy-dir", "policy.d", "render"])
        .current_dir(here.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

#[test]
fn apply_status_and_disarm_without_a_daemon() {
    isolated("apply", || {
        sh("nft add table inet other; nft add chain inet other c");
        let other = sh("nft -a list table inet other");
        let here = folder(GOOD);
        let (code, stdout, stderr) = nodewall(here.path(), &["status"]);
        assert_eq!((code, stdout.as_str()), (3, "nothing of nodewall's is in force\n"));
        assert!(stderr.contains("not running"), "{stderr}");

        let (code, stdout, _) = nodewall(here.path(), &["apply"]);
        assert_eq!(code, 0);
        assert!(stdout.starts_with("in force: "), "{stdout}");
        assert!(sh("nft list table inet nodewall").contains("kubelet#1"));
        let (code, stdout, _) = nodewall(here.path(), &["apply", "--json"]);
        assert_eq!((code, &json(&stdout)["changes"]), (0, &0.into()), "nothing to do the second time");

        let bad = folder("x = 1\n");
        let before = sh("nft -a list table inet nodewall");
        let (code, stdout, stderr) = nodewall(bad.path(), &["apply"]);
        assert_eq!((code, stdout.as_str()), (5, ""));
        assert!(stderr.contains("nothing was changed"), "{stderr}");
        assert_eq!(sh("nft -a list table inet nodewall"), before);

        let (code, stdout, _) = nodewall(here.path(), &["status", "--json"]);
        let status = json(&stdout);
        assert_eq!((code, &status["running"], &status["state"]), (3, &false.into(), &"not-running".into()));
        assert_eq!(status["table"]["exists"], true);

        let (code, stdout, _) = nodewall(here.path(), &["disarm"]);
        assert_eq!((code, stdout.as_str()), (0, "table inet nodewall removed; nodewall protects nothing now\n"));
        assert!(!sh("nft list tables").contains("nodewall"));
        assert_eq!(sh("nft -a list table inet other"), other, "only ours");
        let (code, stdout, _) = nodewall(here.path(), &["disarm", "--json"]);
        assert_eq!((code, &json(&stdout)["removed"]), (0, &false.into()));
    });
}

#[test]
fn diff_says_by_policy_and_by_rule_what_apply_would_change() {
    isolated("diff", || {
        sh("ip link add mgmt0 type veth peer name peer0; ip link set mgmt0 up; ip addr add 10.77.0.2/24 dev mgmt0");
        sh("ip route add default via 10.77.0.3");
        let here = folder(GOOD);
        let (code, stdout, _) = nodewall(here.path(), &["diff", "--color", "never"]);
        assert_eq!(code, 1);
        assert!(stdout.starts_with("--- in the kernel (nothing of nodewall's)\n+++ by the policy\n"), "{stdout}");
        assert!(stdout.contains("\nkubelet         added    +8 -0  10-kubelet.toml:6\n"), "{stdout}");
        assert!(!stdout.lines().any(|line| line.starts_with("- ")), "{stdout}");
        assert!(!sh("nft list tables").contains("nodewall"), "nothing is changed");

        assert_eq!(nodewall(here.path(), &["apply"]).0, 0);
        assert_eq!(
            nodewall(here.path(), &["diff"]),
            (0, "no difference: the policy is in force\n".to_owned(), nodewall(here.path(), &["render"]).2)
        );
        // What apply would do is what diff says, and then there is nothing more to say.
        let other = "[[set]]\nname = \"hosts\"\ncidrs = [\"10.0.0.0/30\"]\n".to_owned()
            + &GOOD.replace("\"deny\"", "\"reject\"")
            + "[[policy]]\nname = \"new\"\norder = 2\ninterfaces = \"all()\"\ningress = [\n  { action = \"allow\", protocol = \"tcp\", ports = [9100], from = { sets = [\"hosts\"] } },\n]\n";
        std::fs::write(here.path().join("policy.d/10-kubelet.toml"), other).unwrap();
        let before = sh("nft -a list table inet nodewall");
        let (code, stdout, _) = nodewall(here.path(), &["diff", "--color", "never"]);
        assert_eq!(code, 1);
        for wanted in [
            "--- in the kernel\n+++ by the policy\n",
            "\nkubelet  changed  ",
            "\nnew      added    ",
            "\n@@ hosts_4: set ipv4_addr, added: 0 -> 1 element @@\n+ 10.0.0.0/30\n",
            "\n@@ chain in_mgmt: changed @@\n",
            "\n- tcp dport 10250 counter drop",
            "\n+ tcp dport 10250 counter reject with tcp reset",
            "0 live flows would end\n",
        ] {
            assert!(stdout.contains(wanted), "{wanted:?} is not in\n{stdout}");
        }
        assert!(nodewall(here.path(), &["diff", "--color", "always"]).1.contains("\u{1b}[32m+ "));
        let (code, stdout, _) = nodewall(here.path(), &["diff", "--json"]);
        let report = json(&stdout);
        assert_eq!((code, &report["version"], &report["differs"]), (1, &1.into(), &true.into()));
        let changes: Vec<(&str, &str)> = report["policies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|policy| (policy["name"].as_str().unwrap(), policy["change"].as_str().unwrap()))
            .collect();
        assert_eq!(changes, [("kubelet", "changed"), ("new", "added")]);
        assert_eq!(report["sets"][0]["added"], serde_json::json!(["10.0.0.0/30"]));
        assert_eq!(report["flows"]["ended"], 0);
        let (code, short, _) = nodewall(here.path(), &["apply", "--dry-run"]);
        assert!(code == 1 && short.contains("+ rule new#1 "), "{short}");
        assert_eq!(sh("nft -a list table inet nodewall"), before, "neither changes anything");
        assert_eq!(nodewall(here.path(), &["apply"]).0, 0);
        assert_eq!(nodewall(here.path(), &["diff"]).0, 0);
        // A line that moves a rule down is told as that.
        let moved = std::fs::read_to_string(here.path().join("policy.d/10-kubelet.toml")).unwrap();
        std::fs::write(here.path().join("policy.d/10-kubelet.toml"), format!("# A comment.\n{moved}")).unwrap();
        let report = json(&nodewall(here.path(), &["diff", "--json"]).1);
        assert!(report["policies"].as_array().unwrap().iter().all(|policy| policy["change"] == "moved"), "{report:#}");
        // Somebody else's chain goes.
        sh("nft add chain inet nodewall mine; nft add rule inet nodewall mine drop");
        let stdout = nodewall(here.path(), &["diff", "--color", "never"]).1;
        assert!(stdout.contains("@@ chain mine: removed @@\n- drop\n"), "{stdout}");

        std::fs::write(here.path().join("policy.d/10-kubelet.toml"), "x = 1\n").unwrap();
        let (code, stdout, stderr) = nodewall(here.path(), &["diff"]);
        assert_eq!((code, stdout.as_str()), (5, ""));
        assert!(stderr.contains("would not be applied"), "{stderr}");
    });
}

#[test]
fn without_the_privilege_the_kernel_says_no_and_so_do_we() {
    isolated("privilege", || {
        let here = folder(GOOD);
        let binary = env!("CARGO_BIN_EXE_nodewall");
        let run = |subcommand: &str| {
            let script = format!(
                "cd {}; setpriv --inh-caps=-all --bounding-set=-all {binary} --config nodewall.toml --policy-dir policy.d {subcommand}",
                here.path().display()
            );
            Command::new("sh").args(["-c", &script]).output().unwrap()
        };
        let output = run("apply");
        assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(run("check").status.code(), Some(0));
        assert_eq!(run("render").status.code(), Some(0));
        assert_eq!(run("disarm").status.code(), Some(4));
        assert_eq!(run("diff").status.code(), Some(4));
    });
}
