//! The manual pages know every command, option, exit code and key, and mandoc has nothing against them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn page(name: &str) -> String {
    fs::read_to_string(at("man").join(name)).unwrap()
}

/// The words that a page has as `Ic`: its keys.
fn keys(page: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with(".Ic ") || line.starts_with(".It Ic ")) {
        let words = line.trim_start_matches(".It").trim_start_matches(['.', ' ']).trim_start_matches("Ic ");
        keys.extend(words.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned));
    }
    keys
}

/// The keys that a decoder asks for: the literals in its calls.
fn asked_for(source: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(at(source)).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    let calls = ["get(\"", "entry(\"", "need(reader, \"", "&mut log, \"", "word(reader, \"", "checked(reader, \""];
    calls
        .iter()
        .flat_map(|call| code.split(call).skip(1))
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect()
}

#[test]
fn every_command_option_and_exit_code_is_in_nodewall_8() {
    let page = page("nodewall.8");
    let mut command = nodewall::cli::command();
    command.build();
    let mut missing = Vec::new();
    for (parent, part) in
        command.get_subcommands().flat_map(|parent| parent.get_subcommands().map(move |part| (parent, part)))
    {
        let known = page.contains(&format!(".It Cm {} Cm {}", parent.get_name(), part.get_name()));
        if !known && ![parent.get_name(), part.get_name()].contains(&"help") {
            missing.push(format!("{} {}", parent.get_name(), part.get_name()));
        }
    }
    let nested = command.get_subcommands().flat_map(clap::Command::get_subcommands);
    for part in nested {
        let options = part.get_arguments().filter_map(|argument| argument.get_long());
        missing.extend(options.filter(|long| !page.contains(&format!("Fl -{long}"))).map(|long| format!("--{long}")));
    }
    for part in std::iter::once(&command).chain(command.get_subcommands()) {
        if part.get_name() != "nodewall" && !page.contains(&format!(".It Cm {}", part.get_name())) {
            missing.push(part.get_name().to_owned());
        }
        let options = part.get_arguments().filter_map(|argument| argument.get_long());
        missing.extend(options.filter(|long| !page.contains(&format!("Fl -{long}"))).map(|long| format!("--{long}")));
    }
    let help = command.get_after_help().unwrap().to_string();
    let codes: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    assert!(codes.len() >= 9 && codes.contains(&"0"), "{codes:?}");
    missing
        .extend(codes.iter().filter(|code| !page.contains(&format!("\n.It {code}\n"))).map(|code| (*code).to_owned()));
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_key_of_nodewall_toml_is_in_its_page() {
    let mut asked = asked_for("src/config/decode.rs");
    asked.extend(asked_for("src/config/selftest.rs"));
    asked.extend(asked_for("src/config/guards.rs"));
    asked.extend(asked_for("src/config/clusters.rs"));
    asked.extend(asked_for("src/config/metrics.rs"));
    assert!(asked.contains("listen"), "{asked:?}");
    // Keys that are read in a loop or by a helper of their decoder.
    asked.extend(["rules", "exposed", "certificate", "key", "client_ca", "token_file"].map(str::to_owned));
    assert!(asked.contains("contribute") && asked.contains("believe_empty"), "{asked:?}");
    assert!(asked.contains("command") && asked.contains("motd"), "{asked:?}");
    assert!(asked.contains("mode") && asked.contains("drop_invalid") && asked.contains("rate"), "{asked:?}");
    let missing: Vec<_> = asked.difference(&keys(&page("nodewall.toml.5"))).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_key_of_a_policy_is_in_its_page() {
    let mut asked = asked_for("src/source/document.rs");
    asked.extend(asked_for("src/source/process.rs"));
    asked.extend(asked_for("src/policy/parse.rs"));
    assert!(asked.contains("interfaces") && asked.contains("cidrs") && asked.contains("pci"), "{asked:?}");
    let missing: Vec<_> = asked.difference(&keys(&page("nodewall-policy.5"))).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_examples_of_the_policy_page_are_policies() {
    let page = page("nodewall-policy.5");
    let examples: Vec<&str> =
        page.split("\n.Bd -literal").skip(1).filter_map(|rest| rest.split("\n.Ed").next()).collect();
    assert!(examples.len() >= 2, "{examples:?}");
    for example in examples {
        let text = example.split_once('\n').unwrap().1.replace("\\&", "");
        let sourced = nodewall::source::decode_text("example.toml", &text);
        assert_eq!(sourced.findings, [], "{text}");
        assert!(!sourced.policy.policies.is_empty(), "{text}");
    }
}

#[test]
fn mandoc_has_nothing_against_the_pages() {
    let pages: Vec<PathBuf> = fs::read_dir(at("man")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(pages.len(), 3);
    match Command::new("mandoc").args(["-Tlint", "-Wwarning"]).args(&pages).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "mandoc: {error}");
            println!("SKIPPED mandoc_has_nothing_against_the_pages: {error}");
        }
    }
}
