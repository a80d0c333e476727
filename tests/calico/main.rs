//! Calico's documented examples for hosts, converted: what becomes of packets, what is said, and the policy files that come out.
//!
//! `tests/calico/examples/*.txt` has the examples; the first says how they are written. `UPDATE=1 cargo test --test calico` rewrites the policy files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod example;
mod in_place;
mod selectors;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use example::{Example, all};
use nodewall::simulate::{Outcome, decide};
use nodewall::source;
use nodewall::source::calico::convert;
use nodewall::source::object::convert::to_toml;
use nodewall::text::finding::{Finding, Severity};
use nodewall::text::render::line;
use nodewall::text::tree::Source;
use proptest::prelude::*;

/// What is said of every conversion, whatever the policies are.
const ALWAYS: [&str; 2] = ["IPv6 neighbour discovery unless", "nodewall never filters loopback"];

fn words(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(line).filter(|line| !ALWAYS.iter().any(|always| line.contains(always))).collect()
}

/// The policy file of an example, after its findings were held against what is expected.
fn converted(example: &Example) -> Option<String> {
    let source = Source::new("calico.yaml", example.yaml.as_str());
    let (documents, findings) = convert(&[source]);
    let said = words(&findings);
    let title = &example.title;
    assert_eq!(said.len(), example.findings.len(), "{title}: {said:#?}");
    for (said, expected) in said.iter().zip(&example.findings) {
        assert!(said.contains(expected.as_str()), "{title}: {said}\nis not: {expected}");
    }
    let refused = findings.iter().any(|finding| finding.severity == Severity::Error);
    assert_eq!(refused, documents.is_empty(), "{title}");
    assert!(findings.iter().all(|finding| finding.place.line > 0), "{title}: {findings:#?}");
    (!refused).then(|| to_toml(&documents))
}

#[test]
fn packets_meet_what_calico_says() {
    let examples = all();
    let mut wrong = Vec::new();
    let (mut converts, mut packets) = (0, 0);
    for example in &examples {
        let Some(toml) = converted(example) else {
            assert!(example.packets.is_empty(), "{}: refused", example.title);
            continue;
        };
        converts += 1;
        let loaded = source::decode_text("calico.toml", &toml);
        assert_eq!(loaded.findings, [], "{}\n{toml}", example.title);
        let outcomes: Vec<bool> = example.packets.iter().map(|packet| packet.allowed).collect();
        assert!(outcomes.contains(&true) && outcomes.contains(&false), "{}: one verdict only", example.title);
        for asked in &example.packets {
            let effective = example::node(&asked.node, &loaded.policy);
            let decision = decide(&effective, &asked.packet);
            packets += 1;
            let allowed = decision.outcome == Outcome::Accepted;
            let as_said = allowed == asked.allowed
                && (!asked.logged || !decision.logged.is_empty())
                && asked.audited != decision.audited.is_empty();
            if !as_said {
                wrong.push(format!("{}: {}\n  {decision:?}\n{toml}", example.title, asked.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(converts >= 60 && packets >= 250, "{converts} examples with {packets} packets");
}

#[test]
fn policy_files_are_as_written_down() {
    let mut some = 0;
    for example in all().iter().filter(|example| example.golden) {
        let toml = converted(example).unwrap();
        let name: String =
            example.title.chars().map(|next| if next.is_ascii_alphanumeric() { next } else { '-' }).collect();
        let path = Path::new("tests/calico/expected").join(format!("{}.toml", name.to_lowercase()));
        if std::env::var_os("UPDATE").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &toml).unwrap();
        }
        assert_eq!(toml, fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
        some += 1;
    }
    assert!(some >= 8, "{some}");
}

/// Exit code, stdout and stderr of the program, given this on its standard input.
fn nodewall(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who has refused its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_converts_and_says_by_its_exit_code_what_it_refuses() {
    let examples = all();
    let good = examples.iter().find(|example| example.golden).unwrap();
    let from = ["convert", "--color", "never", "--from", "calico"];
    let (code, stdout, stderr) = nodewall(&from, &good.yaml);
    assert_eq!((code, stdout), (0, converted(good).unwrap()), "{stderr}");
    assert!(stderr.contains("standard input:") && stderr.contains("neighbour discovery"), "{stderr}");
    let (code, stdout, _) = nodewall(&[&from[..], &["--to", "yaml"]].concat(), &good.yaml);
    assert!(code == 0 && stdout.contains("kind: HostPolicy"), "{stdout}");
    let (code, stdout, _) = nodewall(&[&from[..], &["--json"]].concat(), &good.yaml);
    assert!(code == 0 && stdout.contains("\"HostPolicy\""), "{stdout}");
    let refused = examples.iter().find(|example| example.packets.is_empty()).unwrap();
    let (code, stdout, stderr) = nodewall(&from, &refused.yaml);
    assert_eq!((code, stdout.as_str()), (5, ""), "{stderr}");
    assert!(stderr.contains("error["), "{stderr}");
    assert_eq!(nodewall(&[&from[..], &["policy.toml"]].concat(), "").0, 5);
    let (code, _, stderr) = nodewall(&from, "[[tier]]\nname = \"a\"\n");
    assert_eq!((code, stderr.as_str()), (2, "nodewall: standard input: a policy file is none of Calico's\n"));
}

#[test]
fn one_text_a_list_and_several_files_mean_the_same() {
    let examples = all();
    let example =
        examples.iter().find(|example| example.golden && example.yaml.contains("GlobalNetworkPolicy")).unwrap();
    let whole = converted(example).unwrap();
    let documents: Vec<&str> = example.yaml.split("---\n").filter(|text| !text.trim().is_empty()).collect();
    assert!(documents.len() > 1);
    let apart: Vec<Source> = documents.iter().map(|text| Source::new("part.yaml", *text)).collect();
    assert_eq!(to_toml(&convert(&apart).0), whole);
    let indented: Vec<String> =
        documents.iter().map(|text| format!("- {}", text.trim_end().replace('\n', "\n  "))).collect();
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}\n", indented.join("\n"));
    assert_eq!(to_toml(&convert(&[Source::new("list.yaml", list)]).0), whole);
    let stored = example.yaml.replace("projectcalico.org/v3", "crd.projectcalico.org/v1");
    assert_eq!(to_toml(&convert(&[Source::new("stored.yaml", stored)]).0), whole);
}

/// No field of Calico's is passed over: one that nobody knows is an error wherever it stands.
#[test]
fn a_field_that_nobody_knows_is_refused() {
    let endpoint = "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: h}\nspec: {node: n1, interfaceName: eth0 X}\n";
    let policy = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec: {selector: all() Y, ingress: [{action: Allow Z, source: {nets: [10.0.0.0/8] W}, protocol: TCP}]}\n";
    let set = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: s}\nspec: {nets: [] V}\n";
    let tier = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: t}\nspec: {order: 1 U}\n";
    let all = [endpoint, policy, set, tier].join("---\n");
    for place in ["X", "Y", "Z", "W", "V", "U"] {
        let mut text = all.replace(&format!(" {place}"), ", unheardOf: 1");
        for other in ["X", "Y", "Z", "W", "V", "U"] {
            text = text.replace(&format!(" {other}"), "");
        }
        let (documents, findings) = convert(&[Source::new("a.yaml", text)]);
        assert!(documents.is_empty(), "{place}");
        assert!(findings.iter().any(|finding| finding.message.contains("\"unheardOf\"")), "{place}: {findings:?}");
    }
}

/// What differs for any policy is said once, with the place of the host endpoint that it is about.
#[test]
fn what_always_differs_is_said() {
    let endpoint = |interface: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: h}}\nspec: {{node: n1, interfaceName: '{interface}'}}\n"
        )
    };
    let said = |interface: &str| -> Vec<String> {
        convert(&[Source::new("a.yaml", endpoint(interface))]).1.iter().map(line).collect()
    };
    let [named, every] = ["eth0", "*"].map(said);
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].starts_with("a.yaml:1:1: warning") && named[0].contains(ALWAYS[0]), "{named:?}");
    assert_eq!(every.len(), 2, "{every:?}");
    assert!(every[1].contains(ALWAYS[1]), "{every:?}");
}

/// A mistake is not lost among very many warnings.
#[test]
fn an_error_after_a_flood_of_warnings_is_an_error() {
    let object = |kind: &str, name: &str, spec: &str| {
        format!("---\napiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
    };
    let mut text = object("HostEndpoint", "h", "{node: n1, interfaceName: eth0}");
    (0..300).for_each(|number| text += &object("NetworkPolicy", &format!("p{number}"), "{}"));
    assert!(!convert(&[Source::new("a.yaml", text.as_str())]).0.is_empty());
    text += &object("GlobalNetworkPolicy", "p", "{selector: all(), ingress: [{action: Deny, unheardOf: 1}]}");
    let (documents, findings) = convert(&[Source::new("a.yaml", text)]);
    assert!(documents.is_empty());
    assert!(findings.iter().any(|finding| finding.message.contains("1 errors come after")), "{}", findings.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever stands in a text, nothing breaks, and what is converted loads.
    #[test]
    fn what_is_converted_loads_whatever_was_written(
        which in any::<proptest::sample::Index>(),
        cuts in prop::collection::vec((any::<proptest::sample::Index>(), 0..12_usize, "[a-z0-9:{}\\[\\] '*-]{0,6}"), 1..4),
    ) {
        let examples = all();
        let mut text: Vec<char> = which.get(&examples).yaml.chars().collect();
        for (at, length, with) in cuts {
            let at = at.index(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, with.chars());
        }
        let text: String = text.into_iter().collect();
        let (documents, _) = convert(&[Source::new("a.yaml", text.as_str())]);
        let loaded = source::decode_text("a.toml", &to_toml(&documents));
        prop_assert_eq!(&loaded.findings, &[], "{}\n{}", text, to_toml(&documents));
    }
}
