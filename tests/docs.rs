//! The documents in docs/: what they show is run, what they name is there, and what cannot be run here is known.
//!
//! A fenced block says what it is:
//!
//! * `toml file=/etc/...`: an operator's file. It is written, and `nodewall check` has nothing against it.
//! * `toml policy`, `toml settings`: a file of its own, which `nodewall check` has nothing against.
//! * `console`: commands after `$ ` or `# `, run one after the other on a host of the document's own (a namespace of each kind, its own
//!   /etc, /run, /usr/lib and /var/lib, the program as /usr/sbin/nodewall, and a stand-in for systemctl). What stands below a command is
//!   its output: `...` is any number of lines, and within a line any text. A command may end in `# exit status N`.
//! * `console outside`: the same on another machine, behind the host's management interface.
//! * `objects`: of Kubernetes, which `nodewall convert` takes.
//! * `text`: something that is nothing of this.
//! * a comment `<!-- host: COMMAND -->` is what has happened there, and is not shown.
//! * with `not-run` in the end: what cannot be run here. [`NOT_RUN`] knows each, so that none is forgotten.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The first lines of what no test runs, by document.
const NOT_RUN: &[(&str, &str)] = &[
    // A boot, and a journal.
    ("break-glass.md", "# journalctl -b -u nodewall-boot -u nodewall"),
    // A package: `make test-systemd` installs it.
    ("first-hour.md", "# apt install ./nodewall_*.deb"),
    // Somebody's copies of machines, and a cluster.
    ("fleet.md", "$ nodewall check --strict --policy-dir policy.d --root machines/dgx-h100"),
    ("fleet.md", "$ nodewall fleet status"),
    ("kubernetes.md", "$ kubectl apply --server-side -k packaging/kubernetes"),
    ("kubernetes.md", "$ kubeadm token create --groups system:bootstrappers:nodewall > token"),
    (
        "moving.md",
        "$ kubectl get globalnetworkpolicies,globalnetworksets,hostendpoints,tiers,felixconfigurations -o yaml > calico.yaml",
    ),
];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A fenced block.
#[derive(Clone, Debug)]
struct Block {
    /// What stands behind the fence.
    info: String,
    text: String,
    /// The line of the fence.
    line: usize,
}

impl Block {
    fn is(&self, kind: &str) -> bool {
        self.info == kind
    }

    fn file(&self) -> Option<&str> {
        self.info.strip_prefix("toml file=")
    }

    fn is_run(&self) -> bool {
        !self.info.ends_with("not-run")
    }
}

fn documents() -> Vec<String> {
    let names = fs::read_dir(at("docs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    names
}

fn text(document: &str) -> String {
    fs::read_to_string(at("docs").join(document)).unwrap()
}

fn blocks(document: &str) -> Vec<Block> {
    let text = text(document);
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("<!-- host: ").and_then(|rest| rest.strip_suffix(" -->")) {
            blocks.push(Block { info: "host".to_owned(), text: command.to_owned(), line: number + 1 });
            continue;
        }
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some(Block { info: info.to_owned(), text: String::new(), line: number + 1 }),
            (Some(block), None) => {
                block.text += line;
                block.text += "\n";
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{document}: a block has no end");
    blocks
}

/// A command of a console, what it prints, and its exit status.
struct Step {
    command: String,
    expected: Vec<String>,
    status: i32,
    line: usize,
    outside: bool,
}

fn steps(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, line) in block.text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")) {
            let (command, status) = command.split_once("# exit status ").unwrap_or((command, "0"));
            steps.push(Step {
                command: command.trim_end().to_owned(),
                expected: Vec::new(),
                status: status.trim().parse().unwrap(),
                line: block.line + number + 1,
                outside: block.is("console outside"),
            });
            continue;
        }
        let step = steps.last_mut().unwrap_or_else(|| panic!("line {}: a console begins with a command", block.line));
        match line.strip_prefix("> ") {
            Some(more) => step.command += &format!("\n{more}"),
            None => step.expected.push(line.to_owned()),
        }
    }
    steps
}

/// Whether a line is as it was shown: `...` is any text.
fn line_fits(shown: &str, line: &str) -> bool {
    let Some((before, rest)) = shown.split_once("...") else { return shown == line.trim_end() };
    let Some(after) = line.strip_prefix(before) else { return false };
    (0..=after.len()).filter(|at| after.is_char_boundary(*at)).any(|at| line_fits(rest, &after[at..]))
}

/// Whether lines are as they were shown: a line of `...` is any number of them.
fn fits(shown: &[String], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first.trim() == "..." => (0..=lines.len()).any(|at| fits(rest, &lines[at..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, lines)| line_fits(first, line) && fits(rest, lines))
        }
    }
}

/// A host in namespaces: `$1` is an empty directory, `$2` this checkout, `$3` the program, `$4` what is to be run there.
const HOST: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 tmpfs "$1"
for directory in etc usr/lib usr/sbin var/lib root; do
    mkdir -p "$1/$directory/up" "$1/$directory/work"
    mount -t overlay overlay -o "lowerdir=/$directory,upperdir=$1/$directory/up,workdir=$1/$directory/work" "/$directory"
done
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t sysfs sysfs /sys
rm -f /etc/nftables.conf
install -d -m 0755 /etc/nodewall/policy.d /usr/lib/nodewall/policy.d /run/nodewall
install -m 0644 "$2"/config/nodewall.toml /etc/nodewall/
install -m 0644 "$2"/config/policy.d/*.toml /usr/lib/nodewall/policy.d/
cp "$3" /usr/sbin/nodewall
hostname gpu-17
ip link set lo up
ip netns add outside
ip link add eth0 type veth peer name eth0 netns outside
ip addr add 192.0.2.17/24 dev eth0
ip link set eth0 up
ip route add default via 192.0.2.1
ip netns exec outside sh -ec 'ip link set lo up; ip addr add 192.0.2.1/24 dev eth0; ip addr add 198.51.100.7/32 dev eth0; ip link set eth0 up'
# What a GPU node has that listens: SSH, the kubelet, DCGM's exporter.
for port in 22 10250 9400; do
    python3 -c "
import socket
listener = socket.create_server(('0.0.0.0', $port))
while True: listener.accept()[0].close()" &
    for _ in $(seq 300); do ss -Hltn "sport = :$port" | grep -q . && break; sleep 0.1; done
done
# systemd, as far as documents ask for it.
mkdir "$1/bin"
cat >"$1/bin/systemctl" <<'END'
#!/bin/sh
running() { [ -s /run/nodewall.pid ] && kill -0 "$(cat /run/nodewall.pid)" 2>/dev/null; }
start() {
    nodewall run >>/run/nodewall.log 2>&1 &
    echo $! >/run/nodewall.pid
    for _ in $(seq 300); do nodewall status 2>&1 | grep -q '^state.*in force' && return; sleep 0.1; done
    cat /run/nodewall.log; exit 1
}
stop() { running && kill "$(cat /run/nodewall.pid)"; while running; do sleep 0.1; done; rm -f /run/nodewall.pid; }
case "$*" in
    "start nodewall" | "enable --now nodewall" | "enable --now nodewall-boot nodewall") start ;;
    "stop nodewall") stop ;;
    "restart nodewall") stop; start ;;
    "reload nodewall") nodewall reload ;;
    "is-active nodewall") running ;;
    *) echo "no systemd here: systemctl $*" >&2; exit 99 ;;
esac
END
chmod 0755 "$1/bin/systemctl"
export PATH="$1/bin:/usr/sbin:/usr/bin:/sbin:/bin" NO_COLOR=1 HOME=/root
cd /root
bash "$4" </dev/null
"#;

/// Runs all that a document shows, on one host.
fn run(document: &str) {
    let blocks = blocks(document);
    let mut script = String::new();
    let mut all = Vec::new();
    for block in blocks.iter().filter(|block| block.is_run()) {
        if let Some(file) = block.file() {
            let _ = write!(script, "mkdir -p $(dirname {file})\ncat >{file} <<'@@END'\n{}@@END\n", block.text);
            // A daemon takes it like any other file of an operator's.
            let check = "nodewall check && { ! systemctl is-active nodewall || sleep 2; }".to_owned();
            let line = block.line;
            all.push(Step { command: check, expected: vec!["...".to_owned()], status: 0, line, outside: false });
            let _ = writeln!(script, "{}", shown(all.len(), all.last().unwrap()));
        }
        if block.is("host") {
            let _ = writeln!(script, "{{ {}\n}} >/dev/null 2>&1", block.text);
        }
        if block.is("console") || block.is("console outside") {
            for step in steps(block) {
                all.push(step);
                let _ = writeln!(script, "{}", shown(all.len(), all.last().unwrap()));
            }
        }
    }
    assert!(!all.is_empty(), "{document} shows nothing that is run");
    let folder = tempfile::tempdir().unwrap();
    let (place, commands) = (folder.path().join("host"), folder.path().join("commands"));
    fs::create_dir(&place).unwrap();
    fs::write(&commands, script).unwrap();
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--uts",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-c",
            HOST,
            "host",
        ])
        .args([&place, &at(""), Path::new(env!("CARGO_BIN_EXE_nodewall")), &commands])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let mut wrong = String::new();
    for (number, step) in all.iter().enumerate() {
        let (begin, end) = (format!("@@{}\n", number + 1), format!("@@{} ends with ", number + 1));
        let answer = printed.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
        let Some((answer, rest)) = answer else {
            let _ = writeln!(wrong, "line {}: `{}` was not run", step.line, step.command);
            continue;
        };
        let status = rest.lines().next().unwrap_or_default();
        let lines: Vec<&str> = answer.lines().collect();
        // Who shows nothing of what is printed, shows nothing.
        let fine = step.expected.is_empty() || fits(&step.expected, &lines);
        if !fine || status != step.status.to_string() {
            let shown = step.expected.join("\n");
            let _ = writeln!(
                wrong,
                "line {}: `{}` ends with {status} and prints\n{answer}where the document has {}\n{shown}",
                step.line, step.command, step.status
            );
        }
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(wrong.is_empty(), "docs/{document}\n{wrong}\n{errors}");
}

fn shown(number: usize, step: &Step) -> String {
    let command = match step.outside {
        // The words as they are: quotes and all are for the other machine's shell.
        true => format!("ip netns exec outside bash -c '{}'", step.command.replace('\'', r"'\''")),
        false => step.command.clone(),
    };
    format!("echo @@{number}\n{{ {command}\n}} 2>&1\necho \"@@{number} ends with $?\"")
}

fn is_run(document: &str) {
    if lab::may_run(document) {
        run(document);
    }
}

#[test]
fn the_first_hour_is_as_it_is_told() {
    is_run("first-hour.md");
}

#[test]
fn a_fleet_is_as_it_is_told() {
    is_run("fleet.md");
}

#[test]
fn kubernetes_is_as_it_is_told() {
    is_run("kubernetes.md");
}

#[test]
fn moving_is_as_it_is_told() {
    is_run("moving.md");
}

#[test]
fn breaking_glass_is_as_it_is_told() {
    is_run("break-glass.md");
}

#[test]
fn the_runbook_and_the_index_have_nothing_to_run() {
    for document in ["README.md", "metrics.md", "runbook.md", "systems.md"] {
        assert!(blocks(document).iter().all(|block| block.is("text")), "{document}: give it a test that runs it");
    }
    let known = ["first-hour.md", "fleet.md", "kubernetes.md", "moving.md", "break-glass.md"];
    let run: BTreeSet<&str> =
        known.into_iter().chain(["README.md", "metrics.md", "runbook.md", "systems.md"]).collect();
    assert_eq!(documents().iter().map(String::as_str).collect::<BTreeSet<_>>(), run, "give it a test that runs it");
}

#[test]
fn every_block_says_what_it_is_and_what_is_not_run_is_known() {
    let mut not_run = Vec::new();
    for document in documents() {
        for block in blocks(&document) {
            let kind = block.info.strip_suffix(" not-run").unwrap_or(&block.info);
            let known = ["console", "console outside", "toml policy", "toml settings", "objects", "text", "host"];
            assert!(
                known.contains(&kind) || kind.starts_with("toml file=/"),
                "{document}, line {}: \"{}\" is no kind of block",
                block.line,
                block.info
            );
            if !block.is_run() {
                not_run.push((document.clone(), block.text.lines().next().unwrap_or_default().to_owned()));
            }
        }
    }
    let known: Vec<_> = NOT_RUN.iter().map(|(document, line)| ((*document).to_owned(), (*line).to_owned())).collect();
    assert_eq!(not_run, known, "what is not run, in the order of the documents, is NOT_RUN");
}

/// `nodewall check` of files that stand for themselves, and `nodewall convert` of objects.
#[test]
fn files_that_stand_for_themselves_are_right() {
    let mut looked_at = 0;
    for document in documents() {
        for block in blocks(&document) {
            let folder = tempfile::tempdir().unwrap();
            let file = |name: &str| {
                let path = folder.path().join(name);
                fs::write(&path, &block.text).unwrap();
                path.display().to_string()
            };
            let root = at("tests/fixtures/dgx-h100").display().to_string();
            let arguments: Vec<String> = match block.info.as_str() {
                "toml policy" => ["--root", &root, "check", &file("policy.toml")].map(str::to_owned).into(),
                "toml settings" => ["--config", &file("nodewall.toml"), "check"].map(str::to_owned).into(),
                "objects" => ["convert", "--to", "toml", &file("objects.yaml")].map(str::to_owned).into(),
                _ => continue,
            };
            let output = Command::new(env!("CARGO_BIN_EXE_nodewall")).args(arguments).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{document}, line {}: {errors}", block.line);
            looked_at += 1;
        }
    }
    assert!(looked_at >= 3, "{looked_at}");
}

/// Links lead somewhere, and commands and options that are named in passing exist.
#[test]
fn what_documents_name_is_there() {
    let command = nodewall::cli::command();
    let mut commands = 0;
    for document in documents() {
        let text = text(&document);
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let path = link.split('#').next().unwrap();
            let there = link.starts_with("https://") || path.is_empty() || at("docs").join(path).exists();
            assert!(there, "{document}: {link} leads nowhere");
        }
        let prose: String = text.split("```").step_by(2).collect();
        let shown = blocks(&document).into_iter().filter(|block| block.info.starts_with("console"));
        let lines = shown.flat_map(|block| steps(&block)).map(|step| step.command).collect::<Vec<_>>();
        for code in prose.split('`').skip(1).step_by(2).map(str::to_owned).chain(lines) {
            let mut words = code.split_whitespace().skip_while(|word| *word == "sudo");
            if words.next() != Some("nodewall") {
                continue;
            }
            let mut part = &command;
            for word in words.take_while(|word| !["|", "&&", ">", ";"].contains(word)) {
                if let Some(long) = word.strip_prefix("--") {
                    let long = long.split('=').next().unwrap();
                    let known = [part, &command]
                        .iter()
                        .any(|part| part.get_arguments().any(|known| known.get_long() == Some(long)));
                    assert!(known || ["help", "version"].contains(&long), "{document}: `{code}`: there is no --{long}");
                } else if let Some(sub) = part.find_subcommand(word) {
                    part = sub;
                }
            }
            assert!(!std::ptr::eq(part, &command) || code.contains("--"), "{document}: `{code}` is no command");
            commands += 1;
        }
    }
    assert!(commands >= 50, "{commands}");
}

/// Every finding and remark that the program has.
#[test]
fn every_finding_is_in_the_runbook() {
    let runbook = text("runbook.md");
    let mut codes: BTreeSet<String> =
        nodewall::text::finding::Code::ALL.iter().map(|code| code.name().to_owned()).collect();
    assert!(codes.len() >= 29);
    // What `check --host` and `audit` have are words in the source.
    for file in fs::read_dir(at("src/host")).unwrap().map(|entry| entry.unwrap().path()) {
        if !file.is_file() {
            continue;
        }
        let source = fs::read_to_string(file).unwrap();
        codes.extend(source.split("code: \"").skip(1).map(|rest| rest.split_once('"').unwrap().0.to_owned()));
    }
    let source = fs::read_to_string(at("src/exposure/finding.rs")).unwrap();
    let body = source.split_once("const fn code(self)").unwrap().1.split_once("\n    }\n").unwrap().0;
    codes.extend(body.split("=> \"").skip(1).map(|rest| rest.split_once('"').unwrap().0.to_owned()));
    assert!(codes.contains("flush-ruleset") && codes.contains("only-the-policy"), "{codes:?}");
    let entries: BTreeSet<String> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(code, _)| code.to_owned())
        .collect();
    assert_eq!(entries, codes, "an entry for each, and no other");
}
