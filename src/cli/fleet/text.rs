//! `nodewall fleet status` for people: the fleet in one line, the groups, how they differ, and what is amiss.

use std::fmt::Write as _;

use super::super::output::count;
use super::super::status::table;
use crate::fleet::api::Api;
use crate::fleet::survey::{Group, Survey, Trouble};
use crate::fleet::{names, words};

/// More groups, and differences between them, than these are only counted.
const MOST_GROUPS: usize = 10;
/// More lines about packets of one group than these are only counted.
const MOST_CONTRASTS: usize = 8;
/// More lines about nodes than these are only counted.
const MOST_TROUBLES: usize = 20;
/// How much of a hash is shown.
const HASH: usize = 12;

/// Cuts a list, unless all of it is wanted; says how many more there are.
fn cut<T>(list: &[T], most: usize, all: bool) -> (&[T], usize) {
    let shown = if all { list.len() } else { list.len().min(most) };
    (&list[..shown], list.len() - shown)
}

fn named(nodes: &[String], all: bool) -> String {
    if all { nodes.join(", ") } else { names::short(nodes) }
}

pub(super) fn text(survey: &Survey, api: &Api, notes: &[String], all: bool, colored: bool) -> String {
    let paint = |text: &str, code: &str| if colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let first = words::whole(survey);
    // Writing to a String does not fail.
    let mut out = format!("{}\n", paint(&first, if survey.is_well() { "32" } else { "33" }));
    if survey.pools > 1 {
        let _ = writeln!(
            out,
            "`nodes` of policies tells {} kinds of them apart; each is compared with its own",
            survey.pools
        );
    }
    if survey.versions.len() > 1 {
        let versions: Vec<String> =
            survey.versions.iter().map(|(version, nodes)| format!("{version} on {nodes}")).collect();
        let _ = writeln!(out, "versions of nodewall: {}", versions.join(", "));
    }
    for note in notes {
        let _ = writeln!(out, "{}", paint(note, "33"));
    }
    let (shown, more) = cut(&survey.groups, MOST_GROUPS, all);
    let dash = || "-".to_owned();
    let rows = shown.iter().enumerate().map(|(number, group)| {
        let hash = group.hash.as_deref().map_or_else(dash, |hash| hash.get(..HASH).unwrap_or(hash).to_owned());
        let versions: Vec<&str> = group.versions.iter().map(String::as_str).collect();
        let version = if versions.is_empty() { dash() } else { versions.join(" ") };
        let mode = group.mode.clone().unwrap_or_else(dash);
        [(number + 1).to_string(), group.nodes.len().to_string(), mode, version, hash, named(&group.nodes, all)]
    });
    let right = [true, true, false, false, false, false];
    table(&mut out, ["GROUP", "NODES", "MODE", "VERSION", "HASH", "WHICH"], &right, rows.collect());
    if more > 0 {
        let _ = writeln!(out, "and {} (--all shows them)", count(more, "more group"));
    }
    let differ: Vec<(usize, &Group)> =
        survey.groups.iter().enumerate().filter(|(_, group)| group.difference.is_some()).collect();
    let (shown, more) = cut(&differ, MOST_GROUPS, all);
    for (number, group) in shown {
        let _ = writeln!(
            out,
            "\ngroup {} differs from group {}: {}",
            number + 1,
            group.reference + 1,
            named(&group.nodes, all)
        );
        lines(&mut out, group, api, all);
    }
    if more > 0 {
        let _ = writeln!(out, "\nand {} that differ (--all shows them)", count(more, "more group"));
    }
    for (number, group) in survey.groups.iter().enumerate() {
        if group.difference.is_none() && !group.behind.is_empty() {
            let _ = writeln!(out, "\ngroup {} is not what the API says for it:", number + 1);
            for behind in &group.behind {
                let _ = writeln!(out, "  {}", words::behind(behind));
            }
        }
    }
    let (shown, more) = cut(&survey.troubles, MOST_TROUBLES, all);
    let rows = shown.iter().map(|trouble| {
        let Trouble { what, since, written, nodes, kind: _ } = trouble;
        [named(nodes, all), since.clone().unwrap_or_else(dash), written.clone().unwrap_or_else(dash), what.clone()]
    });
    table(&mut out, ["NODES", "SINCE", "WRITTEN", "WHAT"], &[false; 4], rows.collect());
    if more > 0 {
        let _ = writeln!(out, "and {} (--all shows them)", count(more, "more line"));
    }
    out
}

/// How a group differs.
fn lines(out: &mut String, group: &Group, api: &Api, all: bool) {
    for line in words::difference(group, api) {
        let _ = writeln!(out, "  {line}");
    }
    let Some(compared) = &group.packets else {
        if group.hash.is_some() {
            let _ = writeln!(out, "  packets were not compared: too many groups differ");
        }
        return;
    };
    if !compared.unknown.is_empty() {
        let names = compared.unknown.join(", ");
        let _ = writeln!(out, "  what that means to packets is not known where only a hash is: {names}");
    }
    let (shown, more) = cut(&compared.contrasts, MOST_CONTRASTS, all);
    if !shown.is_empty() {
        let _ = writeln!(out, "  new flows, by the interfaces of {}:", compared.node);
    }
    for contrast in shown {
        let _ = writeln!(out, "    {}", words::contrast(contrast, group.reference, api));
    }
    if more > 0 {
        let _ = writeln!(out, "    and {} (--all shows them)", count(more, "more line"));
    }
    for note in &compared.notes {
        let _ = writeln!(out, "  {note}");
    }
}
