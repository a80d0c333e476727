//! Completions, as real shells get them: bash and zsh at a terminal, fish by its own `complete -C`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const POLICY: &str = r#"
[[set]]
name  = "admin"
cidrs = ["192.0.2.8/29"]

[[set]]
name  = "rail-peers"
cidrs = ["10.20.0.0/16"]

[[policy]]
name       = "kubelet"
order      = 1
interfaces = "all()"
ingress    = [{ action = "allow", from = { sets = ["admin"] }, services = ["ours"] }]

[[service]]
name  = "ours"
ports = ["tcp/10250"]
"#;

/// What is written, and what may come of it; in the words of the folder's files where "FOLDER" stands for it.
const LINES: &[(&str, &[&str])] = &[
    // Commands and options.
    ("nodewall si", &["simulate"]),
    ("nodewall compl", &["completions"]),
    ("nodewall preset ", &["enable", "help", "list", "show"]),
    ("nodewall --json fleet s", &["status"]),
    (
        "nodewall check --",
        &["--color", "--config", "--help", "--host", "--json", "--node", "--policy-dir", "--root", "--strict"],
    ),
    // One that is given, or that goes against one that is given, is not offered again.
    ("nodewall check --strict --s", &[]),
    ("nodewall monitor --connections --pa", &[]),
    ("nodewall monitor --verdict denied --ver", &["--verdict"]),
    // Values that are words of the program.
    ("nodewall --color=", &["always", "auto", "never"]),
    ("nodewall boot --fail-mode ", &["lockdown", "open"]),
    ("nodewall completions ", &["bash", "fish", "zsh"]),
    ("nodewall flows --verdict wo", &["would-deny", "would-reject"]),
    ("nodewall panic o", &["off", "on"]),
    ("nodewall preset show inference-", &["inference-cluster", "inference-edge"]),
    ("nodewall crd HostP", &["HostPeers", "HostPolicy"]),
    // Values of this host and its configuration, which the line itself may name.
    ("nodewall --root FOLDER/host simulate --in ", &["eth0", "lo", "rail0"]),
    ("nodewall simulate --root=FOLDER/host --in=ra", &["rail0"]),
    ("nodewall --policy-dir FOLDER/policy.d audit-report k", &["kubelet"]),
    ("nodewall --policy-dir FOLDER/policy.d flows --policy ku", &["kubelet"]),
    ("nodewall --policy-dir FOLDER/policy.d monitor --peer ", &["admin", "rail-peers"]),
    ("nodewall --policy-dir FOLDER/policy.d monitor --peer set:r", &["set:rail-peers"]),
    ("nodewall --policy-dir FOLDER/policy.d flows --service=ou", &["ours"]),
    ("nodewall --config FOLDER/nodewall.toml audit-report k", &["kubelet"]),
    ("nodewall --root FOLDER/host simulate --user r", &["root", "ray"]),
    // Files, which shells know.
    ("nodewall check FOLDER/pol", &["FOLDER/policy.d"]),
    ("nodewall --config=FOLDER/nodewall.t", &["FOLDER/nodewall.toml"]),
    ("nodewall --root FOLDER/", &["FOLDER/host", "FOLDER/policy.d"]),
    // What nobody can guess, and what is wrong.
    ("nodewall simulate --from ", &[]),
    ("nodewall nonsense ", &[]),
    ("nodewall --config FOLDER/broken.toml --policy-dir FOLDER/none audit-report kub", &[]),
];

/// No shell takes so long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with documents and the copy of a host.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    for link in ["eth0", "lo", "rail0"] {
        fs::create_dir_all(at("host/sys/class/net").join(link)).unwrap();
    }
    fs::create_dir_all(at("host/etc")).unwrap();
    fs::write(at("host/etc/passwd"), "root:x:0:0::/:\nray:x:10:10::/:\nslurm:x:11:11::/:\n").unwrap();
    fs::create_dir(at("policy.d")).unwrap();
    fs::write(at("policy.d/10-kubelet.toml"), POLICY).unwrap();
    fs::write(at("policy.d/20-broken.toml"), "[[set]\n").unwrap();
    fs::write(at("broken.toml"), "mode = \n").unwrap();
    let settings = format!(
        "policy_directories = [\"{0}/policy.d\"]\nsocket = \"{0}/nobody.sock\"\nstate_directory = \"{0}/none\"\n",
        folder.path().display()
    );
    fs::write(at("nodewall.toml"), settings).unwrap();
    folder
}

/// PATH with this build's program first.
fn path() -> String {
    let ours = Path::new(env!("CARGO_BIN_EXE_nodewall")).parent().unwrap().display().to_string();
    format!("{ours}:{}", std::env::var("PATH").unwrap())
}

/// False, with a word about it, where a shell is missing; a failure under CI.
fn is_there(shell: &str) -> bool {
    let there = Command::new(shell).arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "{shell} is missing");
    if !there {
        println!("SKIPPED completions of {shell}: it is missing");
    }
    there
}

fn script(shell: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall")).args(["completions", shell]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a shell at a terminal wrote to `out` after somebody typed each line and a tab: words by line. The shell's start-up file is
/// there already; it has the prompt "READY> ", and begins an answer by "== " and the line, and ends it by "==end".
fn typed(folder: &Path, shell: &str, lines: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let out = folder.join("out");
    fs::write(&out, "").unwrap();
    let mut terminal = Command::new("script")
        .args(["-qec", shell, "/dev/null"])
        .env("PATH", path())
        .env("ZDOTDIR", folder)
        .env("OUT", &out)
        .env("TERM", "dumb")
        .env_remove("BASH_ENV")
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = terminal.stdin.take().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length) = screen.read(&mut bytes) {
            if length == 0 || tell.send(String::from_utf8_lossy(&bytes[..length]).into_owned()).is_err() {
                return;
            }
        }
    });
    // What is typed before that, the terminal takes apart by itself.
    let mut shown = String::new();
    while !shown.contains("READY> ") {
        shown += &told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no prompt: {shown}"));
    }
    for line in lines {
        keyboard.write_all(format!("{line}\t").as_bytes()).unwrap();
        let began = Instant::now();
        let answered = || {
            let answers = fs::read_to_string(&out).unwrap();
            answers.split("== ").any(|answer| answer.starts_with(&format!("{line}\n")) && answer.ends_with("==end\n"))
        };
        while !answered() {
            let shown: String = told.try_iter().collect();
            assert!(began.elapsed() < PATIENCE, "no answer to {line}: {shown}");
            thread::sleep(Duration::from_millis(10));
        }
        // Ctrl-U takes the line away again.
        keyboard.write_all(b"\x15").unwrap();
    }
    keyboard.write_all(b"exit\n").unwrap();
    terminal.wait().unwrap();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for answer in fs::read_to_string(&out).unwrap().split("== ").skip(1) {
        let (line, words) = answer.split_once('\n').unwrap();
        let words = words.lines().filter(|word| !word.is_empty() && *word != "==end").map(str::to_owned);
        found.entry(line.to_owned()).or_default().extend(words);
    }
    found
}

/// Compares what a shell offered with what is expected; `found` has a line's words.
fn compare(shell: &str, folder: &Path, found: impl Fn(&str) -> BTreeSet<String>) {
    let here = folder.display().to_string();
    let mut wrong = String::new();
    for (line, expected) in LINES {
        let line = line.replace("FOLDER", &here);
        // Some shells complete the whole word, and some what stands behind its last break; some mark directories.
        let tail = |word: &str| {
            let word = word.strip_suffix('/').unwrap_or(word);
            word.rsplit(['=', ':', '/']).next().unwrap_or_default().to_owned()
        };
        let expected: BTreeSet<String> = expected.iter().map(|word| tail(word)).collect();
        let found: BTreeSet<String> = found(&line).iter().map(|word| tail(word)).collect();
        if found != expected {
            wrong.push_str(&format!("{shell}: {line}\n  expected {expected:?}\n  found    {found:?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn lines(folder: &Path) -> Vec<String> {
    let here = folder.display().to_string();
    LINES.iter().map(|(line, _)| line.replace("FOLDER", &here)).collect()
}

#[test]
fn bash_completes_what_is_typed() {
    if !is_there("bash") {
        return;
    }
    let folder = folder();
    let start = r#"
probe() {
    _nodewall "$@"
    { echo "== $COMP_LINE"; printf '%s\n' "${COMPREPLY[@]}"; echo ==end; } >>"$OUT"
}
complete -F probe nodewall
PS1='READY> '
unset HISTFILE
"#;
    fs::write(folder.path().join("bashrc"), script("bash") + start).unwrap();
    let found = typed(folder.path(), "bash --noprofile --rcfile bashrc -i", &lines(folder.path()));
    compare("bash", folder.path(), |line| found[line].clone());
}

#[test]
fn zsh_completes_what_is_typed() {
    if !is_there("zsh") {
        return;
    }
    let folder = folder();
    fs::write(folder.path().join("_nodewall"), script("zsh")).unwrap();
    // `compadd` is what all words go through that a shell offers.
    let start = r#"
fpath=("$ZDOTDIR" $fpath)
autoload -Uz compinit
compinit -u -D
unsetopt auto_list auto_menu list_ambiguous
PS1='READY> '
probe() {
    print -r -- "== $BUFFER" >>"$OUT"
    _nodewall "$@"
    local -i ended=$?
    print -r -- '==end' >>"$OUT"
    return ended
}
compdef probe nodewall
compadd() {
    # These ask what would be offered, and offer nothing.
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
        builtin compadd "$@"
        return
    fi
    local -a offered
    builtin compadd -A offered "$@"
    print -rl -- $offered >>"$OUT"
    builtin compadd "$@"
}
"#;
    fs::write(folder.path().join(".zshrc"), start).unwrap();
    let found = typed(folder.path(), "zsh -d -i", &lines(folder.path()));
    compare("zsh", folder.path(), |line| found[line].clone());
}

#[test]
fn fish_completes_what_is_typed() {
    if !is_there("fish") {
        return;
    }
    let folder = folder();
    fs::write(folder.path().join("nodewall.fish"), script("fish")).unwrap();
    let ask = "source nodewall.fish; for line in $argv; echo \"== $line\"; complete -C $line; end";
    let output = Command::new("fish")
        .args(["--no-config", "-c", ask])
        .args(lines(folder.path()))
        .env("PATH", path())
        .env("HOME", folder.path())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let words = |line: &str| -> BTreeSet<String> {
        let answer =
            told.split("== ").find_map(|answer| answer.strip_prefix(line)?.strip_prefix('\n')).unwrap_or_default();
        answer.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    };
    compare("fish", folder.path(), words);
}

/// `nodewall complete`, as scripts ask it.
fn asked(words: &[&str]) -> (Output, Duration) {
    let began = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall")).args(["complete", "--"]).args(words).output().unwrap();
    (output, began.elapsed())
}

#[test]
fn a_completer_has_no_errors_and_does_not_hang() {
    let folder = folder();
    let at = |path: &str| folder.path().join(path).display().to_string();
    // Nobody ever writes into this one: whoever opens it waits.
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    fs::create_dir(at("pipes.d")).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipes.d/10.toml")).status().unwrap().success());
    let (broken, pipe, pipes, none) = (at("broken.toml"), at("pipe"), at("pipes.d"), at("none"));
    for words in [
        &[][..],
        &["--config", &broken, "audit-report", ""],
        &["--config", &pipe, "audit-report", ""],
        &["--policy-dir", &pipes, "flows", "--peer", ""],
        &["--policy-dir", &none, "flows", "--service", ""],
        &["--root", &none, "simulate", "--in", ""],
        &["--config", &none, "rollback", ""],
        &["--no-such", "x", "--", "--", "-"],
        &["help", "help", "help", ""],
        &["simulate", "--in="],
        &["--=", "-"],
        &["boot", "--lim"],
    ] {
        let (output, time) = asked(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert!(time < Duration::from_secs(20), "{words:?} took {time:?}");
    }
}

#[test]
fn a_name_that_a_shell_would_take_apart_is_not_offered() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("host/sys/class/net/$(reboot)")).unwrap();
    fs::create_dir_all(folder.path().join("host/sys/class/net/a b")).unwrap();
    let root = folder.path().join("host").display().to_string();
    let (output, _) = asked(&["--root", &root, "simulate", "--in", ""]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "words\neth0\t\nlo\t\nrail0\t\n");
}
