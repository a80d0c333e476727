//! The manual pages know every command, option, exit code and key, and mandoc has nothing against them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "manual/reference.rs"]
mod reference;

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

/// Holds a page to what its generated parts should be, or writes it anew.
fn is_current(name: &str, part: &dyn Fn(&str) -> String, expected: &BTreeSet<String>) {
    let page = page(name);
    let (made, names) = reference::regenerated(&page, part);
    assert_eq!(names, *expected, "the page has these parts, and should have those");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(at("man").join(name), &made).unwrap();
        return;
    }
    let old = page.lines().zip(made.lines()).find(|(is, should)| is != should);
    assert_eq!(old, None, "`UPDATE=1 cargo nextest run --test manual` writes it anew");
    assert_eq!(page.lines().count(), made.lines().count(), "`UPDATE=1 cargo nextest run --test manual` writes it anew");
}

#[test]
fn the_reference_in_nodewall_8_is_what_the_program_says() {
    let mut command = nodewall::cli::command();
    command.build();
    let part = |name: &str| reference::part(name, &command, nodewall::cli::exit_codes());
    is_current("nodewall.8", &part, &reference::expected(&command));
    assert_eq!(reference::left_out(&page("nodewall.8"), &command), Vec::<String>::new());
}

#[test]
fn the_table_in_nodewall_nftables_7_is_what_is_rendered() {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--root", "../fixtures/edge-node", "render", "20-ssh.toml"])
        .current_dir(at("tests/manual"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let part = |name: &str| match name {
        "example policy" => reference::literal(&fs::read_to_string(at("tests/manual/20-ssh.toml")).unwrap()),
        "example table" => {
            let objects = ["set admin_4", "map in_interfaces/6218bf", "chain input", "chain in_mgmt"];
            reference::literal(&reference::excerpt(&table, &objects))
        }
        _ => panic!("nobody knows how to make \"{name}\""),
    };
    is_current("nodewall-nftables.7", &part, &["example policy", "example table"].map(str::to_owned).into());
}

/// The table of hooks in nodewall-nftables(7) against chains as they are compiled.
#[test]
fn the_hooks_in_nodewall_nftables_7_are_those_of_the_compiler() {
    let page = page("nodewall-nftables.7");
    let mut compiled = BTreeSet::new();
    for case in fs::read_dir(at("tests/cases/good")).unwrap() {
        let Ok(table) = fs::read_to_string(case.unwrap().path().join("expected.nft")) else { continue };
        let mut chain = String::new();
        for line in table.lines().map(str::trim) {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["chain", name, "{"] => chain = (*name).to_owned(),
                ["type", "filter", "hook", hook, .., "priority", priority, "policy", _] => {
                    let name = if *hook == "ingress" { "early/IFACE" } else { &chain };
                    compiled.insert(format!("{hook} {} {name}", priority.trim_end_matches(';')));
                }
                _ => {}
            }
        }
    }
    let rows = page.lines().filter_map(|line| line.strip_prefix(".It ")).filter_map(|row| {
        let cells: Vec<&str> = row.split(" Ta ").collect();
        (cells.len() == 4 && !row.contains("Sy ")).then(|| cells[..3].join(" "))
    });
    assert_eq!(rows.collect::<BTreeSet<_>>(), compiled);
}

/// Twelve options that are known by heart: what makes the reference could leave something out, and compare that with itself.
#[test]
fn nodewall_8_has_what_is_known_to_be_there() {
    let page = page("nodewall.8");
    for known in [
        ".It Cm check Oo Fl -strict Oc",
        ".It Cm preset Cm enable",
        ".It Cm boot Oo Fl -state-directory Ar dir Oc",
        ".It Cm break-glass",
        ".It Fl -config Ar file",
        ".It Fl -fail-mode Ar mode",
        ".Cm lockdown\nand\n.Cm open .",
        ".Ql /var/lib/nodewall .",
        ".Ev NODEWALL_NODE",
        ".It Cm audit-report Oo Fl -since Ar time Oc Ar policy\n",
        ".It 0\n",
        ".It 9\nDegraded",
    ] {
        assert!(page.contains(known), "{known}");
    }
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

/// What a page shows word for word.
fn literals(page: &str) -> Vec<&str> {
    page.split("\n.Bd -literal").skip(1).filter_map(|rest| rest.split("\n.Ed").next()).collect()
}

#[test]
fn the_examples_of_the_policy_page_are_policies() {
    let (policy, rdma) = (page("nodewall-policy.5"), page("nodewall-rdma.7"));
    let mut examples = literals(&policy);
    assert!(examples.len() >= 2, "{examples:?}");
    examples.extend(literals(&rdma).into_iter().filter(|example| example.contains("[[")));
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        let text = example.split_once('\n').unwrap().1.replace("\\&", "");
        let sourced = nodewall::source::decode_text("example.toml", &text);
        assert_eq!(sourced.findings, [], "{text}");
        assert!(!sourced.policy.policies.is_empty(), "{text}");
    }
}

#[test]
fn the_example_of_the_settings_page_is_settings() {
    let page = page("nodewall.toml.5");
    let example = literals(&page)[0].split_once('\n').unwrap().1.replace("\\&", "");
    let (config, findings) = nodewall::config::decode_text("example.toml", &example);
    assert_eq!(findings, []);
    assert_eq!(config.clusters.len(), 2);
}

/// Whoever reads one page finds the others.
#[test]
fn every_page_names_every_other_page() {
    let pages = ["nodewall-policy 5", "nodewall.toml 5", "nodewall-nftables 7", "nodewall-rdma 7", "nodewall 8"];
    for own in pages {
        let text = page(&own.replace(' ', "."));
        let see_also = text.split(".Sh SEE ALSO").nth(1).unwrap();
        let missing: Vec<_> = pages.iter().filter(|other| **other != own && !see_also.contains(*other)).collect();
        assert_eq!(missing, Vec::<&&str>::new(), "{own}");
    }
}

#[test]
fn mandoc_has_nothing_against_the_pages() {
    let pages: Vec<PathBuf> = fs::read_dir(at("man")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(pages.len(), 5);
    match Command::new("mandoc").args(["-Tlint", "-Wwarning"]).args(&pages).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "mandoc: {error}");
            println!("SKIPPED mandoc_has_nothing_against_the_pages: {error}");
        }
    }
}
