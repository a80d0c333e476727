//! The house rules, held against the source: who may import whom, and what the floors that decide must not touch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of `design.md` section 2, times ten. A module imports from strictly lower floors and from its own folder.
const FLOORS: &[(&str, u8)] = &[
    ("net", 0),
    ("text", 0),
    ("policy", 10),
    ("nft", 10),
    ("compile", 20),
    ("simulate", 20),
    ("plan", 20),
    ("analyze", 30),
    ("exposure", 30),
    ("revoke", 30),
    ("traffic", 30),
    ("metrics", 30),
    ("reconcile", 40),
    ("fleet", 40),
    ("learn", 40),
    // One text file, read with care: what `config` and `source` share stands below both.
    ("textfile", 45),
    // Clients of API servers, for `source` and `identity`.
    ("connect", 45),
    ("config", 50),
    ("source", 50),
    ("host", 50),
    ("driver", 50),
    ("store", 50),
    ("flow", 50),
    ("capture", 50),
    ("identity", 50),
    ("boot", 60),
    ("daemon", 60),
    ("controller", 60),
    ("cli", 70),
    // The program is the top of its floor: it calls `cli`.
    ("main", 80),
];

/// The last floor that only computes.
const LAST_PURE: u8 = 40;

/// Paths that name the clock, files, processes, the environment and tasks.
const IMPURE_PATHS: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "process"],
    &["std", "env"],
    &["std", "thread"],
    &["std", "os"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["tokio"],
    &["nix"],
];

/// Names that need no path to be wrong: sockets, clocks, containers without an order, and those of the standard library
/// that look a host name up.
const IMPURE_NAMES: &[&str] = &[
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "ToSocketAddrs",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
];

#[test]
fn every_file_keeps_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    assert!(files.len() > 20, "only {} files found under {}", files.len(), root.display());
    let tests: BTreeSet<PathBuf> = files.iter().flat_map(|file| test_files(file)).collect();
    let mut broken = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let is_test = tests.iter().any(|test| file.starts_with(test) || file.with_extension("") == *test);
        let text = fs::read_to_string(file).unwrap();
        broken.extend(check(name, &text, is_test).into_iter().map(|what| format!("src/{name}: {what}")));
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_module_is_public_in_lib_and_stands_on_a_floor() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = strip(&fs::read_to_string(root.join("lib.rs")).unwrap());
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if module == "lib" {
            continue;
        }
        assert!(floor(&module).is_some(), "src/{module} stands on no floor of tests/layers.rs");
        if module != "main" {
            assert!(lib.contains(&format!("pub mod {module};")), "src/{module} is not listed in lib.rs");
        }
    }
}

/// A checker that finds nothing proves nothing: each of these must be found.
#[test]
fn the_checker_sees_what_is_wrong() {
    let bad: &[(&str, &str, &str)] = &[
        ("net/a.rs", "use crate::policy::model::Rule;", "imports policy"),
        ("net/a.rs", "use crate::{text::place::Place, net::addr};", "imports text"),
        ("plan.rs", "fn f() { crate::simulate::decide(); }", "imports simulate"),
        ("compile/mod.rs", "use super::simulate::decide;", "imports simulate"),
        ("compile/deep.rs", "use super::super::{plan::plan, net::addr};", "imports plan"),
        ("daemon/mod.rs", "use nodewall::cli::main;", "imports cli"),
        ("config/mod.rs", "use crate::source::load;", "imports source"),
        ("textfile.rs", "use crate::config::Config;", "imports config"),
        ("net/a.rs", "macro_rules! m { () => { $crate::nft::ir::Rule } }", "imports nft"),
        ("net/a.rs", "use crate::stranger::Thing;", "imports stranger"),
        ("plan.rs", "#[cfg(test)]\nmod tests { use crate::config::Config; }", "imports config"),
        ("plan.rs", "#[cfg(test)]\nfn f() {}\nuse crate::cli::main;", "imports cli"),
        ("plan.rs", "use std::{collections::BTreeMap, fs};", "std::fs"),
        ("plan.rs", "use std::net::{IpAddr, TcpStream};", "TcpStream"),
        ("plan.rs", "fn f() -> std::time::Instant { todo() }", "std::time::Instant"),
        ("plan.rs", "use std::collections::HashMap;", "HashMap"),
        ("plan.rs", "use tokio::net as n;", "tokio"),
        ("plan.rs", "let _ = ::nix::unistd::getpid();", "nix"),
        ("policy/model.rs", "#[derive(Debug, serde::Serialize)] struct A;", "serde"),
        ("nft/ir.rs", "use serde::Deserialize;", "serde"),
        ("cli/mod.rs", "fn f() { unsafe { g() } }", "unsafe"),
    ];
    for (name, text, wanted) in bad {
        let found = check(name, &format!("//! A file.\n{text}\n"), false);
        assert!(found.iter().any(|what| what.contains(wanted)), "{name}: {text}: found {found:?}");
    }
    assert_eq!(
        check("plan.rs", "use crate::net::addr;\n", false),
        ["does not open with a //! line that says what it is for"]
    );
    let good: &[(&str, &str)] = &[
        ("plan.rs", "use crate::nft::ir::Ruleset;\nuse crate::{net::addr::AddrSet, policy::model};"),
        ("compile/flat.rs", "use super::emit::among;\nuse crate::compile::comment;"),
        (
            "plan.rs",
            "// crate::cli is above us, and std::fs too\n/* HashMap */ const A: &str = \"unsafe crate::cli::main\";",
        ),
        ("plan.rs", "const A: char = '\"'; const B: &str = r#\"std::fs \" unsafe\"#; const C: u8 = b'\\'';"),
        ("plan.rs", "fn f<'a>(a: &'a str) -> std::time::Duration { a.into() }"),
        ("plan.rs", "use std::net::{IpAddr, SocketAddr};\nlet stdx = my::nix();"),
        ("plan.rs", "#[cfg(test)]\nmod tests { use super::*; use crate::simulate::decide; use std::fs; }"),
        ("config/mod.rs", "use serde::Deserialize;\nuse std::fs;\nuse crate::policy::settings::NodeSettings;"),
    ];
    for (name, text) in good {
        assert_eq!(check(name, &format!("//! A file.\n{text}\n"), false), Vec::<String>::new(), "{name}: {text}");
    }
}

/// What is wrong with a file; `name` is its path under src, `is_test` whether it is compiled for tests only.
fn check(name: &str, text: &str, is_test: bool) -> Vec<String> {
    let mut broken = Vec::new();
    let opens =
        text.lines().next().and_then(|line| line.strip_prefix("//! ")).is_some_and(|line| !line.trim().is_empty());
    if !opens {
        broken.push("does not open with a //! line that says what it is for".to_owned());
    }
    let stripped = strip(text);
    if words(&stripped).any(|word| word == "unsafe") {
        broken.push("says unsafe".to_owned());
    }
    let path: Vec<&str> = name.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
    let module = path[0];
    let Some(own) = floor(module) else { return broken };
    let (code, test_code) = if is_test { (String::new(), stripped) } else { split_tests(&stripped) };
    // Inside `mod tests { }`, `super` is the file itself.
    let inner = path.iter().copied().chain((!is_test).then_some("tests")).collect::<Vec<_>>();
    for (part, place, highest) in [(&code, &path, own.checked_sub(1)), (&test_code, &inner, Some(own))] {
        for other in imports(part, place) {
            let allowed =
                other == module || floor(&other).is_some_and(|floor| highest.is_some_and(|most| floor <= most));
            if !allowed {
                broken.push(format!("imports {other}, which is not below {module}"));
            }
        }
    }
    if own <= LAST_PURE {
        broken.extend(impure(&code));
    }
    // json.rs is a spelling of the IR, not the IR: what it serializes is its own.
    if matches!(module, "net" | "policy" | "nft") && name != "nft/json.rs" {
        broken.extend(serialized(&code));
    }
    broken
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The modules of the crate that a piece of code in the module `place` names, by `crate::`, `nodewall::` or `super::`.
fn imports(code: &str, place: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in paths(code) {
        let supers = path.iter().take_while(|segment| *segment == "super").count();
        let target = match path.first().map(String::as_str) {
            Some("crate" | "nodewall") => path.get(1),
            Some("super") if supers == place.len() => path.get(supers),
            Some("self") if place == ["lib"] => path.get(1),
            _ => None,
        };
        // An item of the crate root itself (`crate::VERSION`) would be a capital or a function; there are none.
        found.extend(target.filter(|target| *target != "*" && *target != "self").cloned());
    }
    found
}

fn impure(code: &str) -> Vec<String> {
    let all = paths(code);
    let named = IMPURE_PATHS
        .iter()
        .filter(|wrong| {
            all.iter().any(|path| path.len() >= wrong.len() && path.iter().zip(**wrong).all(|(a, b)| a == b))
        })
        .map(|wrong| format!("names {}, which floors 0 to 4 must not", wrong.join("::")));
    let found: BTreeSet<&str> = words(code).filter(|word| IMPURE_NAMES.contains(word)).collect();
    named.chain(found.iter().map(|word| format!("names {word}, which floors 0 to 4 must not"))).collect()
}

fn serialized(code: &str) -> Option<String> {
    words(code)
        .any(|word| matches!(word, "serde" | "Serialize" | "Deserialize"))
        .then(|| "names serde: what is read and written has types of its own".to_owned())
}

/// Every path in the code, as its segments; a `use` tree gives one path per leaf.
fn paths(code: &str) -> Vec<Vec<String>> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_word(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next == "::") {
            at = tree(&tokens, at, &mut Vec::new(), &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path or `use` tree from `at` and returns where it ends.
fn tree(tokens: &[String], mut at: usize, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let depth = before.len();
    while let Some(token) = tokens.get(at) {
        if token == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                let from = at;
                at = tree(tokens, at, before, found);
                // `as name`, commas and whatever is not a path.
                at += usize::from(at == from);
            }
            before.truncate(depth);
            return at + 1;
        }
        if !is_word(token) && token != "*" {
            break;
        }
        before.push(token.clone());
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        at += 1;
    }
    if before.len() > depth {
        found.push(before.clone());
    }
    before.truncate(depth);
    at
}

fn is_word(token: &str) -> bool {
    token.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_')
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn tokens(code: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            let mut word = String::from(c);
            while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '_') {
                word.push(next);
            }
            tokens.push(word);
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            tokens.push("::".to_owned());
        } else if !c.is_whitespace() {
            tokens.push(c.to_string());
        }
    }
    tokens
}

/// The code without comments, and with nothing between the quotes of its strings and characters.
fn strip(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let is = |at: usize, wanted: char| chars.get(at) == Some(&wanted);
    while at < chars.len() {
        match chars[at] {
            '/' if is(at + 1, '/') => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if is(at + 1, '*') => {
                let mut depth = 1;
                at += 2;
                while at < chars.len() && depth > 0 {
                    let (opens, closes) = (is(at, '/') && is(at + 1, '*'), is(at, '*') && is(at + 1, '/'));
                    depth += i32::from(opens) - i32::from(closes);
                    at += if opens || closes { 2 } else { 1 };
                }
            }
            '"' => {
                let hashes = chars[..at].iter().rev().take_while(|c| **c == '#').count();
                let raw = at > hashes && chars[at - hashes - 1] == 'r';
                at += 1;
                if raw {
                    while at < chars.len() && !(is(at, '"') && (1..=hashes).all(|more| is(at + more, '#'))) {
                        at += 1;
                    }
                } else {
                    while at < chars.len() && chars[at] != '"' {
                        at += if chars[at] == '\\' { 2 } else { 1 };
                    }
                }
                out.push_str("\"\"");
                at += 1;
            }
            // A character, not a lifetime.
            '\'' if is(at + 1, '\\') || is(at + 2, '\'') => {
                at += if is(at + 1, '\\') { 3 } else { 2 };
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                out.push_str("''");
                at += 1;
            }
            other => {
                out.push(other);
                at += 1;
            }
        }
    }
    out
}

/// Stripped code as what always compiles and what is under `#[cfg(test)]`.
fn split_tests(stripped: &str) -> (String, String) {
    const MARK: &str = "#[cfg(test)]";
    let (mut code, mut tests) = (String::new(), String::new());
    let mut rest = stripped;
    while let Some(start) = rest.find(MARK) {
        code.push_str(&rest[..start]);
        let item = &rest[start + MARK.len()..];
        let mut depth = 0;
        let end = item
            .char_indices()
            .find(|(_, c)| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth == 0 && matches!(c, '}' | ';')
            })
            .map_or(item.len(), |(at, c)| at + c.len_utf8());
        tests.push_str(&item[..end]);
        rest = &item[end..];
    }
    code.push_str(rest);
    (code, tests)
}

/// The files, without extension, that a file declares with `#[cfg(test)] mod name;`.
fn test_files(file: &Path) -> Vec<PathBuf> {
    let (_, tests) = split_tests(&strip(&fs::read_to_string(file).unwrap()));
    let folder = match file.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" | "main" => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    };
    let tokens = tokens(&tests);
    let declared = tokens.windows(3).filter(|window| window[0] == "mod" && window[2] == ";");
    declared.map(|window| folder.join(&window[1])).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
