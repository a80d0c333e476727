//! ARCHITECTURE.md's table of what holds when: every row says what is in force and names tests, and the tests are there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What the table must have a row for: a word of each situation.
const SITUATIONS: [&str; 20] = [
    "stopped, or killed",
    "middle of a change",
    "upgrade",
    "bad policy",
    "cluster API",
    "full or read-only",
    "store is damaged",
    "clock",
    "boot without a store",
    "boot with a damaged store",
    "hang at a boot",
    "flushes or deletes",
    "keeps at it",
    "only found",
    "kernel refuses",
    "no nf_tables",
    "cuts the operator off",
    "reboot during a trial",
    "panic",
    "break-glass",
];

/// The rows of the table below a heading: their cells.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with('|'));
    // The head of the table and the line below it.
    let rows =
        lines.skip(2).map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect());
    rows.collect()
}

/// The names between backticks.
fn names(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The functions marked as tests in a file.
fn tests(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let (Some(rest), true) = (line.strip_prefix("fn "), marked) {
            found.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
            marked = false;
        }
    }
    found
}

fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        // The trees of other machines have links in a circle, as sysfs does.
        if entry.file_type().unwrap().is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(tests(&fs::read_to_string(path).unwrap()));
        }
    }
}

/// What is wrong with a table, given the tests there are.
fn wrong(rows: &[Vec<String>], there: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in rows {
        let [when, in_force, shown_by] = row.as_slice() else {
            wrong.push(format!("{row:?} has not three cells"));
            continue;
        };
        let named = names(shown_by);
        if in_force.is_empty() || named.is_empty() {
            wrong.push(format!("\"{when}\" says not what is in force or not what shows it"));
        }
        let missing = named.iter().filter(|name| !there.contains(**name));
        wrong.extend(missing.map(|name| format!("\"{when}\" names {name}, and there is no such test")));
    }
    wrong
}

#[test]
fn every_row_of_what_holds_when_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let rows = rows(&text, "What holds when");
    let mut there = BTreeSet::new();
    collect(&root.join("tests"), &mut there);
    collect(&root.join("src"), &mut there);
    assert!(there.len() > 100, "only {} tests found", there.len());
    assert_eq!(wrong(&rows, &there), Vec::<String>::new());
    let whens: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let missing: Vec<&&str> =
        SITUATIONS.iter().filter(|situation| !whens.iter().any(|when| when.contains(**situation))).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

/// A checker that finds nothing proves nothing.
#[test]
fn the_checker_sees_what_is_wrong() {
    let text = "# A\n\n## What holds when\n\n| when | in force | shown by |\n|---|---|---|\n| rain | roof | `wet`, `dry` |\n| sun |  | `dry` |\n| snow | roof | nobody |\n| hail | roof |\n\n## Other\n\n| a | b | `c` |\n";
    let there = tests("#[test]\nfn dry() {\n}\nfn wet() {}\n");
    let found = wrong(&rows(text, "What holds when"), &there);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert_eq!(found[0], "\"rain\" names wet, and there is no such test");
    assert!(found[1].starts_with("\"sun\" says") && found[2].starts_with("\"snow\" says"), "{found:?}");
    assert!(found[3].contains("three cells"), "{found:?}");
}
