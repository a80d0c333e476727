//! Rules of other firewalls of a host, converted: the policy files that come out, what is said, and what becomes of packets in the kernel.
//!
//! `tests/foreign/cases/FIREWALL-*` has the files of one host each. `UPDATE=1 cargo test --test foreign` rewrites what is expected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod generate;
mod kernel;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../testbed/node.rs"]
#[allow(dead_code, unreachable_pub)]
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nodewall::source;
use nodewall::source::foreign::{Firewall, convert};
use nodewall::source::object::convert::to_toml;
use nodewall::text::finding::Severity;
use nodewall::text::render::line;
use nodewall::text::tree::Source;
use proptest::prelude::*;

const FIREWALLS: [Firewall; 4] = [Firewall::Iptables, Firewall::Nft, Firewall::Ufw, Firewall::Firewalld];

/// A host's files.
struct Case {
    name: String,
    firewall: Firewall,
    sources: Vec<Source>,
    folder: PathBuf,
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // /usr before /etc, as the program reads them.
    entries.sort_by_key(|path| (path.ends_with("etc"), path.clone()));
    for path in entries {
        if path.is_dir() { below(&path, found) } else { found.push(path) }
    }
}

fn cases() -> Vec<Case> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir("tests/foreign/cases").unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let case = |folder: PathBuf| {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let firewall = *FIREWALLS.iter().find(|firewall| name.starts_with(firewall.name())).unwrap();
        let mut files = Vec::new();
        below(&folder, &mut files);
        files.retain(|file| !file.file_name().unwrap().to_str().unwrap().starts_with("expected."));
        if files.iter().any(|file| file.ends_with("ruleset.json")) {
            // Beside it is what nft made it of.
            files.retain(|file| file.ends_with("ruleset.json"));
        }
        let source = |file: &PathBuf| {
            let name = file.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
            Source::new(name, fs::read_to_string(file).unwrap())
        };
        let sources = files.iter().map(source).collect();
        Case { name, firewall, sources, folder }
    };
    folders.into_iter().map(case).collect()
}

#[test]
fn policy_files_and_reports_are_as_written_down() {
    let (mut converted, mut refused) = (0, 0);
    for case in cases() {
        let (documents, findings) = convert(case.firewall, &case.sources);
        let report: String = findings
            .iter()
            .map(|finding| {
                let help = if finding.help.is_empty() { String::new() } else { format!("  {}\n", finding.help) };
                let also: String = finding
                    .related
                    .iter()
                    .map(|(place, _)| format!("  also {}:{}\n", place.file, place.line))
                    .collect();
                format!("{}\n{also}{help}", line(finding))
            })
            .collect();
        let has_errors = findings.iter().any(|finding| finding.severity == Severity::Error);
        assert_eq!(has_errors, documents.is_empty(), "{}: {report}", case.name);
        let toml = if has_errors { String::new() } else { to_toml(&documents) };
        let loaded = source::decode_text("converted.toml", &toml);
        assert_eq!(loaded.findings, [], "{}\n{toml}", case.name);
        for (name, text) in [("expected.toml", &toml), ("expected.txt", &report)] {
            let path = case.folder.join(name);
            if std::env::var_os("UPDATE").is_some() {
                if text.is_empty() {
                    let _ = fs::remove_file(&path);
                } else {
                    fs::write(&path, text).unwrap();
                }
            }
            assert_eq!(*text, fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
        }
        if has_errors { refused += 1 } else { converted += 1 }
    }
    assert!(converted >= 9 && refused >= 3, "{converted} converted, {refused} refused");
}

/// Exit code, stdout and stderr of the program.
fn nodewall(arguments: &[&str], input: &str) -> (i32, String, String) {
    use std::io::Write as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who has files to read does not read this.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_reads_directories_files_and_its_input_and_says_by_its_exit_code_what_it_refuses() {
    let cases = "tests/foreign/cases";
    let convert = |from: &str, more: &[&str], input: &str| {
        nodewall(&[&["convert", "--color", "never", "--from", from], more].concat(), input)
    };
    let folder = tempfile::tempdir().unwrap();
    for (from, path) in [("ufw", "ufw-server/etc/ufw"), ("firewalld", "firewalld-zones/etc/firewalld")] {
        let (code, stdout, stderr) = convert(from, &[&format!("{cases}/{path}")], "");
        assert_eq!(code, 0, "{stderr}");
        let expected =
            fs::read_to_string(format!("{cases}/{}/expected.toml", path.split('/').next().unwrap())).unwrap();
        assert_eq!(stdout.lines().count(), expected.lines().count(), "{stdout}");
        let file = folder.path().join(format!("{from}.toml"));
        fs::write(&file, &stdout).unwrap();
        let (code, _, stderr) = nodewall(&["check", "--color", "never", file.to_str().unwrap()], "");
        assert!(code == 0 || code == 1, "{code} {stderr}");
        assert!(!stderr.contains("error["), "{stderr}");
    }
    let both = ["rules.v4", "rules.v6"].map(|name| format!("{cases}/iptables-allow-list/{name}"));
    let texts = both.each_ref().map(|file| fs::read_to_string(file).unwrap());
    let (code, apart, stderr) = convert("iptables", &[&both[0], &both[1]], "");
    assert_eq!(code, 0, "{stderr}");
    let (code, stream, _) = convert("iptables", &["-"], &texts.concat());
    assert_eq!(code, 0);
    let rules = |text: &str| text.lines().filter(|line| line.contains("action")).count();
    assert_eq!(rules(&apart), rules(&stream));
    let (code, json, _) = convert("iptables", &["--json"], &texts.concat());
    assert!(code == 0 && json.contains("\"HostPolicy\""), "{json}");
    let (code, yaml, _) = convert("iptables", &["--to", "yaml"], &texts.concat());
    assert!(code == 0 && yaml.contains("kind: HostPolicy"), "{yaml}");
    let (code, stdout, stderr) = convert("nft", &[&format!("{cases}/nft-text/nftables.conf")], "");
    assert_eq!((code, stdout.as_str()), (5, ""));
    assert!(stderr.contains("nft -j list ruleset"), "{stderr}");
    let (code, stdout, stderr) = convert("iptables", &["nowhere"], "");
    assert_eq!((code, stdout.as_str()), (5, ""));
    assert!(stderr.contains("does not exist"), "{stderr}");
}

/// Nothing is passed over: a line, a match, a target and a statement that nobody knows are told or refused.
#[test]
fn what_nobody_knows_is_said() {
    let said = |firewall: Firewall, text: &str| -> (usize, String) {
        let (documents, findings) = convert(firewall, &[Source::new("a", text)]);
        (documents.len(), findings.iter().map(line).collect::<Vec<_>>().join("\n"))
    };
    let table = |rule: &str| format!("*filter\n:INPUT DROP [0:0]\n{rule}\nCOMMIT\n");
    let (some, words) = said(Firewall::Iptables, &table("-A INPUT -m unheard --of 1 -j ACCEPT"));
    assert!(some > 0 && words.contains("--of 1") && words.contains("left out"), "{words}");
    let (some, words) = said(Firewall::Iptables, &table("-A INPUT -p tcp -m unheard --of 1 -j DROP"));
    assert!(some > 0 && words.contains("denies what it matches without that"), "{words}");
    let (some, words) = said(Firewall::Iptables, &table("-A INPUT -m unheard --of 1 -j DROP"));
    assert!(some > 0 && words.contains("denied in any case"), "{words}");
    let open = |text: &str| text.replace("INPUT DROP", "INPUT ACCEPT").replace("\"drop\"}}", "\"accept\"}}");
    let (none, words) = said(Firewall::Iptables, &open(&table("-A INPUT -m unheard --of 1 -j DROP")));
    assert!(none == 0 && words.contains("would deny everything"), "{words}");
    let (some, words) = said(Firewall::Iptables, &table("-A INPUT -p tcp -j UNHEARD"));
    assert!(some > 0 && words.contains("no chain \"UNHEARD\""), "{words}");
    let (none, words) = said(Firewall::Iptables, &table("iptables -A INPUT -j ACCEPT"));
    assert!(none == 0 && words.contains("a script is run first") || words.contains("begins a line"), "{words}");
    let rule = |expr: &str| {
        format!(
            "{{\"nftables\": [{{\"table\": {{\"family\": \"inet\", \"name\": \"t\"}}}}, {{\"chain\": {{\"family\": \"inet\", \"table\": \"t\", \"name\": \"i\", \"type\": \"filter\", \"hook\": \"input\", \"prio\": 0, \"policy\": \"drop\"}}}}, {{\"rule\": {{\"family\": \"inet\", \"table\": \"t\", \"chain\": \"i\", \"handle\": 7, \"expr\": {expr}}}}}]}}"
        )
    };
    let (some, words) = said(Firewall::Nft, &rule("[{\"unheard\": {}}, {\"accept\": null}]"));
    assert!(some > 0 && words.contains("inet t i handle 7") && words.contains("unheard"), "{words}");
    let (none, words) = said(Firewall::Nft, &open(&rule("[{\"unheard\": {}}, {\"drop\": null}]")));
    assert!(none == 0 && words.contains("would deny everything"), "{words}");
    let (none, words) = said(Firewall::Nft, "{\"nftables\": [{\"unheard\": {}}]}");
    assert!(none == 0 && words.contains("unheard"), "{words}");
    let (none, words) = said(Firewall::Firewalld, "<zone><unheard/></zone>");
    assert!(none == 0 && words.contains("no zone \"public\""), "{words}");
    let (none, words) = said(Firewall::Ufw, "*filter\nCOMMIT\n");
    assert!(none == 0 && words.contains("default/ufw"), "{words}");
}

/// Chains that jump to each other for ever, and chains whose `return`s multiply what comes after them, end in an error.
#[test]
fn what_has_no_end_ends() {
    let mut text = "*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n-A INPUT -j A\n-A A -p tcp -j A\n-A A -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n".to_owned();
    let (documents, findings) = convert(Firewall::Iptables, &[Source::new("a", text.as_str())]);
    assert!(documents.is_empty() && findings.iter().any(|one| one.severity == Severity::Error), "{findings:?}");
    text = "*filter\n:INPUT DROP [0:0]\n".to_owned();
    for chain in 0..30 {
        text += &format!(":C{chain} - [0:0]\n-A INPUT -j C{chain}\n");
        for port in 0..40 {
            text += &format!("-A C{chain} -s 10.{chain}.{port}.0/24 -p tcp --dport {port} -j RETURN\n");
        }
        text += &format!("-A C{chain} -s 10.{chain}.0.0/16 -j DROP\n");
    }
    text += "COMMIT\n";
    let (documents, findings) = convert(Firewall::Iptables, &[Source::new("a", text.as_str())]);
    assert!(documents.is_empty() && findings.iter().any(|one| one.severity == Severity::Error), "{findings:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever stands in a text, nothing breaks, and what is converted loads.
    #[test]
    fn what_is_converted_loads_whatever_was_written(
        which in any::<proptest::sample::Index>(),
        file in any::<proptest::sample::Index>(),
        cuts in prop::collection::vec((any::<proptest::sample::Index>(), 0..12_usize, "[-a-zA-Z0-9:{}\\[\\] '\"*!/.<>=,]{0,6}"), 1..6),
    ) {
        let cases = cases();
        let case = which.get(&cases);
        let mut sources = case.sources.clone();
        let at = file.index(sources.len());
        let mut text: Vec<char> = sources[at].text.chars().collect();
        for (at, length, with) in cuts {
            let at = at.index(text.len().max(1)).min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, with.chars());
        }
        let text: String = text.into_iter().collect();
        sources[at] = Source::new(sources[at].file.clone(), text);
        let (documents, _) = convert(case.firewall, &sources);
        let loaded = source::decode_text("a.toml", &to_toml(&documents));
        let errors: Vec<_> = loaded.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
        prop_assert!(errors.is_empty(), "{:?}\n{}", errors, to_toml(&documents));
    }

    /// Bytes that are no rules at all.
    #[test]
    fn any_text_ends_in_documents_or_findings(text in ".{0,200}") {
        for firewall in FIREWALLS {
            let (documents, findings) = convert(firewall, &[Source::new("a", text.as_str())]);
            prop_assert!(!documents.is_empty() || !findings.is_empty());
        }
    }
}
