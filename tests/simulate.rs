//! `nodewall simulate` by example: policy and packet in, text and JSON out, one folder each in `tests/cases/simulate`, on the
//! training node of `tests/fixtures`.
//!
//! `UPDATE=1 cargo test --test simulate` rewrites the expected files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nodewall::store::{Directory, Generation, Store};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Exit code, stdout and stderr.
fn nodewall(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall")).args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn training_node() -> String {
    format!("{ROOT}/tests/fixtures/training-node")
}

/// Settings without entries: those that are built in.
fn empty() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nodewall.toml"), "").unwrap();
    folder
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(ROOT).join("tests/cases/simulate")).unwrap();
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 20, "the golden cases are gone");
    cases
}

fn same(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, found).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "{}: expected\n{expected}\nfound\n{found}\nUPDATE=1 rewrites it", path.display());
}

/// A capture written down as hexadecimal frames, as a pcap file.
fn pcap(text: &str) -> Vec<u8> {
    let mut bytes = [0xa1b2_c3d4u32.to_le_bytes(), 0x0004_0002u32.to_le_bytes()].concat();
    bytes.extend([0; 8]);
    bytes.extend(65_535u32.to_le_bytes());
    let (link, frames) = text.split_once('\n').unwrap();
    bytes.extend(link.strip_prefix("link ").unwrap().parse::<u32>().unwrap().to_le_bytes());
    for frame in frames.split("\n# ").skip(1) {
        let digits: String = frame.lines().skip(1).collect();
        let frame: Vec<u8> =
            (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        bytes.extend([[0; 4], [0; 4], length, length].concat());
        bytes.extend(frame);
    }
    bytes
}

#[test]
fn packets_end_as_is_written_down() {
    let (settings, root) = (empty(), training_node());
    let capture = settings.path().join("packets.pcap");
    let mut codes = Vec::new();
    for case in cases() {
        let own = case.join("nodewall.toml");
        let settings = if own.exists() { own } else { settings.path().join("nodewall.toml") };
        let words = fs::read_to_string(case.join("args")).unwrap();
        if case.join("capture").exists() {
            fs::write(&capture, pcap(&fs::read_to_string(case.join("capture")).unwrap())).unwrap();
        }
        let words: Vec<&str> = words
            .split_whitespace()
            .map(|word| if word == "CAPTURE" { capture.to_str().unwrap() } else { word })
            .collect();
        let all = |more: &[&str]| {
            let first = ["--config", settings.to_str().unwrap(), "--root", &root, "simulate"];
            nodewall(&case, &[&first[..], &words, more, &["policy.toml"]].concat())
        };
        let (code, text, stderr) = all(&[]);
        assert_eq!(stderr, "", "{}", case.display());
        same(&case.join("expected.txt"), &format!("{text}(exit status {code})\n"));
        let (json_code, json, _) = all(&["--json"]);
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((json_code, &value["version"]), (code, &1.into()), "{}", case.display());
        let path = capture.to_str().unwrap();
        same(&case.join("expected.json"), &json.replace(path, "CAPTURE"));
        assert!(all(&["--color", "always"]).1.contains("\x1b[3"), "{}", case.display());
        codes.push(code);
    }
    assert!(codes.contains(&0) && codes.contains(&1) && codes.iter().all(|code| *code < 2), "{codes:?}");
}

#[test]
fn wrong_usage_says_what_to_do_and_is_no_answer() {
    let (settings, root) = (empty(), training_node());
    let folder = settings.path();
    fs::write(folder.join("policy.toml"), "").unwrap();
    fs::write(folder.join("broken.toml"), "x = 1\n").unwrap();
    fs::write(folder.join("not.pcap"), "x = 1\n").unwrap();
    let run = |words: &str| {
        let first = ["--config", "nodewall.toml", "--root", &root, "simulate"];
        let words: Vec<&str> = words.split_whitespace().collect();
        nodewall(folder, &[&first[..], &words].concat())
    };
    for (words, code, message) in [
        ("--dport 22 policy.toml", 2, "say by which interface: --in IFACE"),
        ("--in eno1 policy.toml", 2, "say what it is: --proto tcp --dport 22"),
        ("--in eno1 --dport 70000 policy.toml", 2, "70000 is not in 0..=65535"),
        ("--in eno1/2 --dport 22 policy.toml", 2, "not a name that an interface can have"),
        ("--in eno1 --from host policy.toml", 2, "write an address like 10.0.0.1"),
        ("--in eno1 --proto tpc --dport 1 policy.toml", 2, "did you mean \"tcp\"?"),
        ("--in eno1 --dport 22 --user root policy.toml", 2, "--out without --in"),
        (
            "--out eno1 --to 10.0.0.9:1 --user nobody-here policy.toml",
            2,
            "there is no user nobody-here; write a number",
        ),
        ("--out eno1 --to 10.0.0.9:1 --user 7 policy.toml", 2, "say in which group"),
        ("--out eno1 --to 10.0.0.9:1 --user 7 --kernel policy.toml", 2, "cannot be used with"),
        ("--in eno1 --dport 22 --pcap not.pcap policy.toml", 2, "cannot be used with"),
        ("--pcap not.pcap policy.toml", 2, "say on which interface it was captured"),
        ("--in eno1 --vlan 7 --dport 22 policy.toml", 2, "--pcap"),
        ("--in eno1 --vlan 4095 --pcap not.pcap policy.toml", 2, "a VLAN's number from 1 to 4094"),
        ("--in eno1 --dport 22 --loaded policy.toml", 2, "cannot be used with"),
        ("--in eno1 --pcap not.pcap policy.toml", 1, "not.pcap: neither pcap nor pcapng"),
        ("--in eno1 --pcap missing.pcap policy.toml", 1, "missing.pcap: cannot be read: No such file"),
        ("--in eno1 --dport 22 broken.toml", 5, "broken.toml:1:1"),
        ("--in eno1 --dport 22 broken.toml", 5, "the policy has errors; it would not be loaded"),
    ] {
        let (found, stdout, stderr) = run(words);
        assert_eq!(found, code, "{words}: {stdout}{stderr}");
        assert!(stderr.contains(message), "{words}: {stderr}");
        let summary = words.contains("--pcap") && code == 1;
        assert_eq!(stdout.is_empty(), !summary, "{words}: {stdout}");
    }
}

#[test]
fn users_and_groups_of_another_machine_are_those_of_its_files() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nslurm:x:64030:64031:a:b:c\n").unwrap();
    fs::write(root.path().join("etc/group"), "render:x:105:slurm\n").unwrap();
    let settings = empty();
    fs::write(settings.path().join("policy.toml"), "").unwrap();
    let sender = |words: &str| {
        let first = ["--config", "nodewall.toml", "--json", "--root", root.path().to_str().unwrap(), "simulate"];
        let packet = ["--out", "eth0", "--from", "10.0.0.1", "--to", "10.0.0.9:1", "policy.toml"];
        let words: Vec<&str> = words.split_whitespace().collect();
        let (_, stdout, stderr) = nodewall(settings.path(), &[&first[..], &packet, &words].concat());
        let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{words:?}: {stderr}"));
        let process = &report["packet"]["sender"]["process"];
        (process["user"].as_u64().unwrap(), process["group"].as_u64().unwrap())
    };
    assert_eq!(sender("--user slurm"), (64_030, 64_031));
    assert_eq!(sender("--user 64030"), (64_030, 64_031));
    assert_eq!(sender("--user slurm --group render"), (64_030, 105));
    assert_eq!(sender("--user 7 --group 8"), (7, 8));
    assert_eq!(sender("--unit sshd.service"), (0, 0));
}

#[test]
fn a_unit_is_in_its_control_group_and_in_those_above_it() {
    let root = tempfile::tempdir().unwrap();
    for unit in ["system.slice/ollama.service", "system.slice/sshd.service", "user.slice"] {
        fs::create_dir_all(root.path().join("sys/fs/cgroup").join(unit)).unwrap();
    }
    let settings = empty();
    let policy = "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\negress = [\n  \
        { action = \"reject\", units = [\"ollama.service\"] },\n  { action = \"deny\", units = [\"system.slice\"] },\n]\n";
    fs::write(settings.path().join("policy.toml"), policy).unwrap();
    let answer = |unit: &str| {
        let first = ["--config", "nodewall.toml", "--root", root.path().to_str().unwrap(), "simulate"];
        let packet = ["--out", "eth0", "--from", "10.0.0.1", "--to", "10.0.0.9:1", "--unit", unit, "policy.toml"];
        let (_, stdout, stderr) = nodewall(settings.path(), &[&first[..], &packet].concat());
        assert_eq!(stderr, "");
        stdout
    };
    assert!(answer("ollama.service").starts_with("rejected  p#1"), "{}", answer("ollama.service"));
    assert!(answer("sshd.service").starts_with("dropped   p#2"), "{}", answer("sshd.service"));
    assert!(answer("system.slice/ollama.service").starts_with("rejected  p#1"));
    assert!(answer("user.slice").starts_with("accepted  default of unknown egress"));
    let gone = answer("vllm.service");
    assert!(
        gone.starts_with("accepted") && gone.contains("no control group, as vllm.service does not run here"),
        "{gone}"
    );
}

/// A state directory as the daemon leaves it, and settings that name it.
struct State {
    folder: tempfile::TempDir,
}

impl State {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!("state_directory = \"{}\"\n", folder.path().join("state").display());
        fs::write(folder.path().join("nodewall.toml"), settings).unwrap();
        Self { folder }
    }

    fn store(&self) -> Store<Directory> {
        Store::new(Directory::open(&self.folder.path().join("state")).unwrap())
    }

    /// A generation that says one thing about port 8080.
    fn generation(&self, number: u64, action: &str) {
        let policy = format!(
            "[[policy]]\nname = \"p{number}\"\ninterfaces = \"all()\"\ningress = [\n  {{ action = \"{action}\", protocol = \"tcp\", ports = [8080] }},\n]\n"
        );
        let generation = Generation {
            number,
            time: "2026-11-23T20:00:00Z".to_owned(),
            source: "files".to_owned(),
            hash: String::new(),
            policy: [("000000 1 /etc/nodewall/policy.d/10-p.toml".to_owned(), policy)].into(),
            settings: String::new(),
            batch: Vec::new(),
        };
        self.store().write(&generation).unwrap();
    }

    fn remember(&self, record: &str) {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        self.store().remember(&format!("{{\"boot\":\"{}\",\"record\":{record}}}", boot.trim())).unwrap();
    }

    fn simulate(&self) -> (i32, String, String) {
        let root = training_node();
        let first = ["--config", "nodewall.toml", "--root", &root, "simulate", "--loaded"];
        nodewall(self.folder.path(), &[&first[..], &["--in", "eno1", "--dport", "8080"]].concat())
    }
}

#[test]
fn what_is_loaded_is_the_generation_that_the_daemon_left_on_disk() {
    let state = State::new();
    let (code, stdout, stderr) = state.simulate();
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("the daemon left no generation there"), "{stderr}");
    state.generation(1, "allow");
    state.generation(2, "deny");
    assert_eq!(state.simulate().0, 1, "nothing is confirmed, so nothing is in force as far as the disk tells");
    state.store().confirm(1).unwrap();
    let (code, stdout, stderr) = state.simulate();
    assert_eq!((code, stderr.as_str()), (0, ""));
    let expected = "\
accepted  p1#1 (allow), /etc/nodewall/policy.d/10-p.toml:5
          { action = \"allow\", protocol = \"tcp\", ports = [8080] }
packet    tcp 198.51.100.77:40000 -> 10.0.1.21:8080, new
in        eno1, mgmt: default route
taken     --proto tcp, --from 198.51.100.77, --to 10.0.1.21, --sport 40000
under     generation 1
";
    assert_eq!(stdout, expected);
}

#[test]
fn what_waits_for_a_confirmation_is_in_force_and_so_is_what_somebody_went_back_to() {
    let state = State::new();
    for (number, action) in [(1, "allow"), (2, "deny"), (3, "reject")] {
        state.generation(number, action);
    }
    state.store().confirm(1).unwrap();
    let under = || state.simulate().1.lines().rfind(|line| line.starts_with("under")).unwrap().to_owned();
    let pending = |until: u64| {
        format!(
            "{{\"pending\":{{\"generation\":2,\"documents\":\"\",\"term\":{{\"until\":{until},\"period\":60000}}}}}}"
        )
    };
    state.remember(&pending(u64::MAX));
    assert_eq!(under(), "under     generation 2");
    state.remember(&pending(1));
    assert_eq!(under(), "under     generation 1", "its time is over");
    state.remember("{\"pin\":{\"generation\":3,\"documents\":\"\",\"why\":\"\",\"expired\":false}}");
    assert_eq!(under(), "under     generation 3");
    state.remember("{\"emergency\":{\"Panic\":{\"by\":\"me\",\"reason\":\"drill\"}}}");
    let (code, stdout, _) = state.simulate();
    assert_eq!(code, 1);
    assert!(stdout.starts_with("dropped   default of mgmt ingress: deny\n"), "{stdout}");
    assert!(
        stdout.contains(
            "under     generation 1\n          PANIC: only essentials and failsafe are let through, by me: drill\n"
        ),
        "{stdout}"
    );
    fs::write(state.folder.path().join("state/record"), "nonsense").unwrap();
    let (code, _, stderr) = state.simulate();
    assert_eq!(code, 0);
    assert!(stderr.contains("record: "), "{stderr}");
}

#[test]
fn a_state_directory_that_is_not_ours_to_read_is_said_to_be() {
    let binary = env!("CARGO_BIN_EXE_nodewall");
    let nobody = |arguments: &[&str], folder: &Path| {
        let words = [&["--reuid=65534", "--regid=65534", "--clear-groups", binary], arguments].concat();
        Command::new("setpriv").args(words).current_dir(folder).output().unwrap()
    };
    let state = State::new();
    state.generation(1, "allow");
    fs::set_permissions(state.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let root = training_node();
    let words =
        ["--config", "nodewall.toml", "--root", &root, "simulate", "--loaded", "--in", "eno1", "--dport", "8080"];
    let output = nobody(&words, state.folder.path());
    if !nix::unistd::geteuid().is_root() || output.status.code() == Some(126) {
        println!(
            "SKIPPED a_state_directory_that_is_not_ours_to_read_is_said_to_be: needs root, and a binary for everybody"
        );
        return;
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("state: cannot list the generations: Permission denied"), "{stderr}");
}

#[test]
fn a_reader_who_has_seen_enough_ends_a_capture() {
    let settings = empty();
    fs::write(settings.path().join("policy.toml"), "").unwrap();
    let frame = format!("\n# a packet\n{}{}\n", "02".repeat(12), "0806");
    fs::write(settings.path().join("many.pcap"), pcap(&format!("link 1\n{}", frame.repeat(20_000)))).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "nodewall.toml", "simulate", "--in", "eth0", "--pcap", "many.pcap", "policy.toml"])
        .current_dir(settings.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn figures_of_the_rules_are_a_table_and_json() {
    let (settings, root) = (empty(), training_node());
    let run = |case: &str, settings: &str, words: &[&str]| {
        let policy = format!("{ROOT}/tests/cases/simulate/{case}/policy.toml");
        let first = ["--config", settings, "--root", &root, "render", "--stats", &policy];
        nodewall(Path::new(ROOT), &[&first[..], words].concat())
    };
    let empty = settings.path().join("nodewall.toml");
    let early = "tests/cases/simulate/early/nodewall.toml";
    for (case, settings) in [("denied", empty.to_str().unwrap()), ("early", early), ("forwarded", early)] {
        let (code, text, _) = run(case, settings, &[]);
        assert_eq!(code, 0);
        same(&Path::new(ROOT).join("tests/cases/simulate").join(case).join("stats.txt"), &text);
    }
    let (code, json, _) = run("early", early, &["--json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &report["version"]), (0, &1.into()));
    let of = |stage: &str, chain: &str| {
        let classes = report["classes"].as_array().unwrap();
        classes.iter().find(|class| class["stage"] == stage && class["chain"] == chain).unwrap().clone()
    };
    assert_eq!(of("host", "in_mgmt")["interfaces"], serde_json::json!(["eno1"]));
    assert_eq!(of("early-hook", "early_mgmt")["chains"], 4);
    assert_eq!(run("early", early, &["--format", "text"]).0, 2);
}
