//! Reads ufw's files: rules as iptables-restore takes them, and the defaults, in the chains that `ufw-init` makes of them. Pure.

use super::iptables::Tables;
use super::model::{Ruleset, Verdict};
use crate::net::addr::Family;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::tree::{Source, Span};

/// What the files are called, in the order in which ufw loads them.
const RULES: [&str; 3] = ["before", "after", "user"];

/// A setting with its place.
struct Setting {
    value: String,
    place: Place,
}

/// What ufw does with these files.
pub(super) fn read(sources: &[Source]) -> Ruleset {
    let named = |wanted: &str| sources.iter().find(|source| file_name(source) == wanted);
    let mut tables = Tables::default();
    let mut findings = Vec::new();
    let place = Place::file(sources.first().map_or("ufw", |source| source.file.as_ref()));
    let mut missing = |name: &str, help: &str| {
        let message = format!("there is no {name} among these files of ufw");
        findings.push(Finding::error(Code::NotConverted, &place, message).help(help));
    };
    let Some(defaults) = sources.iter().find(|source| is_defaults(source)) else {
        missing(
            "default/ufw",
            "its policies are in /etc/default/ufw: give that file as well, or the directory /etc/ufw beside it",
        );
        return Ruleset { findings, ..Ruleset::default() };
    };
    let v6 = setting(defaults, "IPV6").is_some_and(|setting| setting.value.eq_ignore_ascii_case("yes"));
    for family in [Family::V4, Family::V6] {
        let six = if family == Family::V6 { "6" } else { "" };
        if family == Family::V6 && !v6 {
            // ufw-init: "IPv6 support disabled but available in the kernel, so default DROP".
            for chain in ["INPUT", "FORWARD", "OUTPUT"] {
                let setting = setting(defaults, "IPV6");
                let place = setting.map_or_else(|| Place::file(defaults.file.clone()), |setting| setting.place);
                tables.policy(family, chain, Verdict::Drop, &place, "IPV6 is not \"yes\"");
            }
            continue;
        }
        for chain in ["INPUT", "OUTPUT", "FORWARD"] {
            let key = format!("DEFAULT_{chain}_POLICY");
            let Some(setting) = setting(defaults, &key) else {
                let message = format!("{key} is not there");
                findings.push(Finding::error(Code::MissingKey, &Place::file(defaults.file.clone()), message));
                continue;
            };
            skeleton(&mut tables, family, chain, six, &setting, &key);
        }
        for which in RULES {
            let name = format!("{which}{six}.rules");
            match named(&name) {
                Some(source) => tables.read_as(source, family),
                None => findings.push(
                    Finding::error(Code::NotConverted, &place, format!("there is no {name} among these files of ufw"))
                        .help("give the directory /etc/ufw, which has them all"),
                ),
            }
        }
        for chain in ["input", "output", "forward"] {
            tables.append(family, &format!("-A ufw{six}-before-{chain} -j ufw{six}-user-{chain}"), &place);
        }
    }
    let mut ruleset = tables.ruleset();
    let enabled = named("ufw.conf").and_then(|source| setting(source, "ENABLED"));
    if let Some(setting) = enabled.filter(|setting| !setting.value.eq_ignore_ascii_case("yes")) {
        ruleset.warn(&setting.place, "ufw is not enabled: what is converted is what it would do", "");
    }
    for name in ["before.init", "after.init"] {
        if let Some(source) = named(name) {
            let message = format!("{name} is a script, which is not looked at");
            ruleset.warn(
                &Place::file(source.file.clone()),
                message,
                "where it is executable, ufw runs it: see whether it changes rules",
            );
        }
    }
    ruleset.findings.splice(0..0, findings);
    ruleset
}

/// The chains that ufw-init makes.
fn skeleton(tables: &mut Tables, family: Family, chain: &str, six: &str, setting: &Setting, key: &str) {
    let lower = chain.to_ascii_lowercase();
    let verdict = if setting.value == "ACCEPT" { Verdict::Accept } else { Verdict::Drop };
    let text = format!("{key}=\"{}\"", setting.value);
    tables.policy(family, chain, verdict, &setting.place, &text);
    let prefix = format!("ufw{six}");
    for part in ["before-logging", "before", "after", "after-logging", "reject", "track"] {
        tables.declare(family, &format!("{prefix}-{part}-{lower}"));
        tables.append(family, &format!("-A {chain} -j {prefix}-{part}-{lower}"), &setting.place);
    }
    for part in ["user", "user-logging", "skip-to-policy"] {
        tables.declare(family, &format!("{prefix}-{part}-{lower}"));
    }
    for name in ["logging-deny", "logging-allow", "user-limit", "user-limit-accept"] {
        tables.declare(family, &format!("{prefix}-{name}"));
    }
    let word = match setting.value.as_str() {
        word @ ("ACCEPT" | "REJECT") => word,
        _ => "DROP",
    };
    tables.append(family, &format!("-A {prefix}-skip-to-policy-{lower} -j {word}"), &setting.place);
    if word == "REJECT" {
        tables.append(family, &format!("-A {prefix}-reject-{lower} -j REJECT"), &setting.place);
    }
}

fn file_name(source: &Source) -> &str {
    source.file.rsplit('/').next().unwrap_or_default()
}

/// Whether this is /etc/default/ufw.
fn is_defaults(source: &Source) -> bool {
    file_name(source) == "ufw" || source.text.lines().any(|line| line.starts_with("DEFAULT_INPUT_POLICY="))
}

/// A setting of a file that a shell reads; the last one counts.
fn setting(source: &Source, key: &str) -> Option<Setting> {
    let (mut at, mut found) = (0_u32, None);
    for line in source.text.split_inclusive('\n') {
        let span = Span { start: at, end: at + line.trim_end().len() as u32 };
        at += line.len() as u32;
        let value = line.trim().strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
        if let Some(value) = value {
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            found = Some(Setting { value, place: source.place(span) });
        }
    }
    found
}
