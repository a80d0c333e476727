//! `nodewall diff`: what `apply` would change, beforehand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::examine::{Examined, examine};
use super::exit::{self, Exit};
use super::output::{Output, count};
use super::status::table;
use crate::compile::{compile, rule_of};
use crate::daemon::documents;
use crate::driver::{self, Conntrack, Kernel as _, Netlink, Read};
use crate::nft::change::{Change, Loaded};
use crate::nft::ir::{Rule, Ruleset};
use crate::nft::text;
use crate::plan::difference::{ChainDifference, Difference, Line, SetDifference, Sign};
use crate::plan::plan;
use crate::revoke::Revocation;
use crate::simulate::Reason;
use crate::source::Trust;

/// Arguments of `diff`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What an apply would meet and do.
pub(super) struct Ahead {
    /// The table as it is.
    pub(super) loaded: Loaded,
    /// What would be changed.
    pub(super) planned: Vec<Change>,
    /// How many live flows would end, by what denies them.
    pub(super) flows: Vec<(String, usize)>,
}

/// Looks at the kernel and at its live flows, and changes nothing.
///
/// # Errors
/// The kernel's.
pub(super) fn look(ruleset: &Ruleset, revocation: Option<&Revocation>) -> Result<Ahead, driver::Error> {
    let loaded = Netlink::open()?.load(&Read::Everything)?;
    let planned = plan(&loaded, ruleset).map(|batch| batch.changes).unwrap_or_default();
    let mut flows: BTreeMap<String, usize> = BTreeMap::new();
    if let Some(revocation) = revocation.filter(|_| !planned.is_empty()) {
        for flow in Conntrack::open()?.denied(revocation)?.0 {
            *flows.entry(reason(revocation.reason(&flow).as_ref())).or_default() += 1;
        }
    }
    let mut flows: Vec<(String, usize)> = flows.into_iter().collect();
    flows.sort_by(|(one, many), (other, more)| more.cmp(many).then_with(|| one.cmp(other)));
    Ok(Ahead { loaded, planned, flows })
}

fn reason(reason: Option<&Reason>) -> String {
    match reason {
        Some(Reason::Rule(id)) => id.policy.to_string(),
        Some(Reason::TierDefault(tier)) => format!("the default of tier {tier}"),
        Some(Reason::Essential(words)) => (*words).to_owned(),
        Some(Reason::InterfaceDefault | Reason::NoPolicy) | None => "the interface's default".to_owned(),
    }
}

/// What `diff --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    differs: bool,
    policies: &'a [PolicyRecord],
    sets: Vec<SetRecord<'a>>,
    chains: Vec<ChainRecord<'a>>,
    /// What is in our table and not ours; it goes.
    foreign: &'a [String],
    flows: FlowsRecord<'a>,
}

/// A policy whose rules change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct PolicyRecord {
    name: String,
    /// "added", "removed", "changed", or "moved" where only its place in its file is another one.
    change: &'static str,
    /// How many of its rules in the kernel come and go.
    rules_added: usize,
    rules_removed: usize,
    /// Where its first rule was or will be written: FILE:LINE.
    place: String,
}

#[derive(Serialize)]
struct SetRecord<'a> {
    name: &'a str,
    /// Its name until now, where that says what it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<&'a str>,
    change: &'static str,
    kind: &'a str,
    elements_before: usize,
    elements_after: usize,
    added: &'a [String],
    removed: &'a [String],
}

#[derive(Serialize)]
struct ChainRecord<'a> {
    name: &'a str,
    change: &'static str,
    added: Vec<String>,
    removed: Vec<String>,
}

#[derive(Serialize)]
struct FlowsRecord<'a> {
    /// How many live flows would end.
    ended: usize,
    /// The same by the policy that denies them.
    by: BTreeMap<&'a str, usize>,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    if options.root.is_some() {
        output.message(
            "--root looks at another machine, and diff compares with the kernel of this one; use check or render",
        );
        return Exit::Usage;
    }
    // Nothing is put in force, so that anybody's file will do.
    let Examined { documents, facts, effective, findings } = examine(options, &arguments.paths, Trust::Anyone, output);
    output.findings(&findings, &documents.texts);
    if documents::errors(&findings) > 0 {
        output.message("the policy has errors; it would not be applied");
        return Exit::InvalidPolicy;
    }
    let ruleset = compile(&effective);
    let revocation = documents.config.settings.revoke.then(|| Revocation::new(Arc::new(effective), &facts));
    let ahead = match look(&ruleset, revocation.as_ref()) {
        Ok(ahead) => ahead,
        Err(error) => {
            output.message(&exit::chain(&error));
            return exit::of_kernel(&error);
        }
    };
    let differs = !ahead.planned.is_empty();
    let difference = Difference::new(&ahead.loaded.ruleset, &ruleset);
    let policies = policies(&ahead.loaded.ruleset, &ruleset);
    let printed = if output.json {
        output.json(&Report {
            version: 1,
            differs,
            policies: &policies,
            sets: difference.sets.iter().map(set_record).collect(),
            chains: difference.chains.iter().map(chain_record).collect(),
            foreign: &ahead.loaded.foreign,
            flows: FlowsRecord {
                ended: ahead.flows.iter().map(|(_, count)| count).sum(),
                by: ahead.flows.iter().map(|(name, count)| (name.as_str(), *count)).collect(),
            },
        })
    } else if differs {
        output.data(&text(&ahead, &difference, &policies, output.colored(&io::stdout())))
    } else {
        output.data("no difference: the policy is in force\n")
    };
    match printed {
        Exit::Ok if differs => Exit::Failure,
        other => other,
    }
}

/// The rules of every policy: their texts, sorted, and the place of the first.
fn by_policy(ruleset: &Ruleset) -> BTreeMap<String, (Vec<(String, String)>, String)> {
    let mut found: BTreeMap<String, (Vec<(String, String)>, String)> = BTreeMap::new();
    for (name, chain) in &ruleset.chains {
        for Rule { statements, comment } in &chain.rules {
            let Some(comment) = comment else { continue };
            let Some(id) = rule_of(comment) else { continue };
            let place = comment.split_once(' ').map_or("", |(_, place)| place);
            let (rules, first) = found.entry(id.policy.to_string()).or_insert_with(|| (Vec::new(), place.to_owned()));
            let rule = Rule { statements: statements.clone(), comment: None };
            // What it does, and how it is told; the place is no part of the first.
            rules.push((format!("{name} {}", text::rule(&rule)), comment.clone()));
            if id.number == 1 {
                first.replace_range(.., place);
            }
        }
    }
    for (rules, _) in found.values_mut() {
        rules.sort();
    }
    found
}

/// The policies whose rules change, by name.
fn policies(there: &Ruleset, wanted: &Ruleset) -> Vec<PolicyRecord> {
    let (there, wanted) = (by_policy(there), by_policy(wanted));
    let names: BTreeSet<&String> = there.keys().chain(wanted.keys()).collect();
    let mut records = Vec::new();
    for name in names {
        let none = (Vec::new(), String::new());
        let (old, was) = there.get(name).unwrap_or(&none);
        let (new, place) = wanted.get(name).unwrap_or(&none);
        if old == new {
            continue;
        }
        let (rules_removed, rules_added) = (left_over(old, new), left_over(new, old));
        let change = match (old.is_empty(), new.is_empty()) {
            (true, _) => "added",
            (_, true) => "removed",
            _ if rules_removed + rules_added == 0 => "moved",
            _ => "changed",
        };
        let place = if new.is_empty() { was } else { place };
        records.push(PolicyRecord { name: name.clone(), change, rules_added, rules_removed, place: place.clone() });
    }
    records
}

/// How many of the first rules are not among the second ones, which are sorted by what they do.
fn left_over(one: &[(String, String)], other: &[(String, String)]) -> usize {
    let mut rest = other.iter().map(|(text, _)| text).peekable();
    one.iter()
        .filter(|(text, _)| {
            while rest.next_if(|there| *there < text).is_some() {}
            rest.next_if(|there| *there == text).is_none()
        })
        .count()
}

const fn change(sign: Sign) -> &'static str {
    match sign {
        Sign::Same => "unchanged",
        Sign::Gone => "removed",
        Sign::New => "added",
        Sign::Changed => "changed",
    }
}

fn set_record(set: &SetDifference) -> SetRecord<'_> {
    SetRecord {
        name: &set.name,
        was: set.was.as_deref(),
        change: change(set.sign),
        kind: &set.kind,
        elements_before: set.before,
        elements_after: set.after,
        added: &set.new,
        removed: &set.gone,
    }
}

fn chain_record(chain: &ChainDifference) -> ChainRecord<'_> {
    let lines = |sign| chain.lines.iter().filter(|line| line.sign == sign).map(|line| whole(line, 0)).collect();
    ChainRecord { name: &chain.name, change: change(chain.sign), added: lines(Sign::New), removed: lines(Sign::Gone) }
}

/// A line with its comment, which begins at this column or behind the rule.
fn whole(line: &Line, column: usize) -> String {
    match &line.comment {
        Some(comment) => format!("{:<column$} comment \"{comment}\"", line.text),
        None => line.text.clone(),
    }
}

/// How many lines that stay are shown before and behind one that does not.
const CONTEXT: usize = 2;
/// How many elements that come or go are shown of a set.
const ELEMENTS_SHOWN: usize = 10;
/// Comments of longer rules than this are not lined up with the others.
const LONGEST_ALIGNED: usize = 90;

fn text(ahead: &Ahead, difference: &Difference, policies: &[PolicyRecord], colored: bool) -> String {
    let paint = |sign: Sign, text: &str| match sign {
        _ if !colored => text.to_owned(),
        Sign::Same => text.to_owned(),
        Sign::Gone => format!("\x1b[31m{text}\x1b[0m"),
        Sign::New => format!("\x1b[32m{text}\x1b[0m"),
        Sign::Changed => format!("\x1b[36m{text}\x1b[0m"),
    };
    let mut out = String::new();
    // Writing to a String does not fail.
    let mut put = |sign: Sign, text: &str| {
        let _ = writeln!(out, "{}", paint(sign, text));
    };
    put(
        Sign::Gone,
        if ahead.loaded.exists { "--- in the kernel" } else { "--- in the kernel (nothing of nodewall's)" },
    );
    put(Sign::New, "+++ by the policy");
    for thing in &ahead.loaded.foreign {
        put(Sign::Gone, &format!("- {thing} (not ours: the whole table comes anew)"));
    }
    let rows: Vec<[String; 4]> = policies
        .iter()
        .map(|policy| {
            let rules = format!("+{} -{}", policy.rules_added, policy.rules_removed);
            [policy.name.clone(), policy.change.to_owned(), rules, policy.place.clone()]
        })
        .collect();
    let mut summary = String::new();
    table(&mut summary, ["POLICY", "CHANGE", "RULES", "FILE"], &[false, false, true, false], rows);
    for (line, policy) in summary.lines().zip([None, None].into_iter().chain(policies.iter().map(Some))) {
        let sign = match policy.map(|policy| policy.change) {
            Some("added") => Sign::New,
            Some("removed") => Sign::Gone,
            Some("changed") => Sign::Changed,
            _ => Sign::Same,
        };
        put(sign, line);
    }
    for set in &difference.sets {
        put(Sign::Same, "");
        let was = set.was.as_ref().map(|was| format!(" (was {was})")).unwrap_or_default();
        let SetDifference { name, kind, before, after, sign, .. } = set;
        let words = format!("@@ {name}{was}: {kind}, {}: {before} -> {} @@", change(*sign), count(*after, "element"));
        put(Sign::Changed, &words);
        for (sign, mark, elements) in [(Sign::Gone, '-', &set.gone), (Sign::New, '+', &set.new)] {
            for element in elements.iter().take(ELEMENTS_SHOWN) {
                put(sign, &format!("{mark} {element}"));
            }
            if let Some(more) = elements.len().checked_sub(ELEMENTS_SHOWN).filter(|more| *more > 0) {
                put(sign, &format!("{mark} ... and {} more", count(more, "element")));
            }
        }
    }
    for chain in &difference.chains {
        put(Sign::Same, "");
        put(Sign::Changed, &format!("@@ chain {}: {} @@", chain.name, change(chain.sign)));
        for hunk in hunks(&chain.lines) {
            let Some(lines) = hunk else {
                put(Sign::Changed, "@@ ... @@");
                continue;
            };
            let fits = lines.iter().filter(|line| line.comment.is_some()).map(|line| line.text.chars().count());
            let column = fits.filter(|width| *width <= LONGEST_ALIGNED).max().unwrap_or(0);
            for line in lines {
                let mark = match line.sign {
                    Sign::Gone => '-',
                    Sign::New => '+',
                    Sign::Same | Sign::Changed => ' ',
                };
                put(line.sign, &format!("{mark} {}", whole(line, column)));
            }
        }
    }
    put(Sign::Same, "");
    put(Sign::Same, &last_line(ahead, difference, policies));
    out
}

fn last_line(ahead: &Ahead, difference: &Difference, policies: &[PolicyRecord]) -> String {
    let (policies, sets) = (policies.len(), count(difference.sets.len(), "set"));
    let policies = if policies == 1 { "1 policy".to_owned() } else { format!("{policies} policies") };
    let chains = count(difference.chains.len(), "chain");
    let total: usize = ahead.flows.iter().map(|(_, count)| count).sum();
    let by: Vec<String> = ahead.flows.iter().map(|(name, count)| format!("{count} by {name}")).collect();
    let by = if by.is_empty() { String::new() } else { format!(" ({})", by.join(", ")) };
    format!("{policies}, {sets} and {chains} differ; {} would end{by}", count(total, "live flow"))
}

/// The lines of a chain that are shown; `None` stands for lines between them that are not.
fn hunks(lines: &[Line]) -> Vec<Option<&[Line]>> {
    let mut hunks = Vec::new();
    let mut next = 0;
    while let Some(first) = (next..lines.len()).find(|index| lines[*index].sign != Sign::Same) {
        let start = first.saturating_sub(CONTEXT).max(next);
        let mut end = first + 1;
        // Hunks whose contexts touch are one.
        while let Some(more) =
            (end..lines.len().min(end + 2 * CONTEXT + 1)).find(|index| lines[*index].sign != Sign::Same)
        {
            end = more + 1;
        }
        let stop = lines.len().min(end + CONTEXT);
        if start > next {
            hunks.push(None);
        }
        hunks.push(Some(&lines[start..stop]));
        next = stop;
    }
    if next > 0 && next < lines.len() {
        hunks.push(None);
    }
    hunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::ir::{Chain, Statement, Verdict};

    fn ruleset(rules: &[(Verdict, &str)]) -> Ruleset {
        let rules = rules.iter().map(|(verdict, comment)| Rule {
            statements: vec![Statement::Counter, Statement::Verdict(verdict.clone())],
            comment: Some((*comment).to_owned()),
        });
        Ruleset {
            chains: [("in".to_owned(), Chain { base: None, rules: rules.collect() })].into(),
            ..Ruleset::default()
        }
    }

    #[test]
    fn policies_are_added_removed_changed_or_only_moved() {
        let there = ruleset(&[
            (Verdict::Accept, "same#1 a.toml:1"),
            (Verdict::Accept, "moved#1 a.toml:2"),
            (Verdict::Accept, "changed#1 a.toml:3"),
            (Verdict::Drop, "changed#2 a.toml:4"),
            (Verdict::Drop, "gone#1 a.toml:5"),
            (Verdict::Drop, "default of mgmt ingress: deny"),
        ]);
        let wanted = ruleset(&[
            (Verdict::Accept, "same#1 a.toml:1"),
            (Verdict::Accept, "moved#1 a.toml:3"),
            (Verdict::Drop, "changed#1 a.toml:4"),
            (Verdict::Drop, "changed#2 a.toml:5"),
            (Verdict::Drop, "new#1 b.toml:1"),
            (Verdict::Accept, "default of mgmt ingress: allow"),
        ]);
        let lines: Vec<String> = policies(&there, &wanted)
            .iter()
            .map(|record| {
                let PolicyRecord { name, change, rules_added, rules_removed, place } = record;
                format!("{name} {change} +{rules_added} -{rules_removed} {place}")
            })
            .collect();
        assert_eq!(
            lines,
            [
                "changed changed +1 -1 a.toml:4",
                "gone removed +0 -1 a.toml:5",
                "moved moved +0 -0 a.toml:3",
                "new added +1 -0 b.toml:1",
            ]
        );
        assert_eq!(policies(&wanted, &wanted), []);
    }

    #[test]
    fn hunks_show_two_lines_around_and_leave_the_rest_out() {
        let shown = |signs: &str| {
            let lines: Vec<Line> = signs
                .chars()
                .map(|mark| Line {
                    sign: if mark == '.' { Sign::Same } else { Sign::New },
                    text: String::new(),
                    comment: None,
                })
                .collect();
            hunks(&lines).iter().map(|hunk| hunk.map_or(0, <[Line]>::len)).collect::<Vec<_>>()
        };
        assert_eq!(shown("....."), Vec::<usize>::new());
        assert_eq!(shown("+"), [1]);
        assert_eq!(shown("..+.."), [5]);
        assert_eq!(shown("...+..."), [0, 5, 0]);
        assert_eq!(shown("+....+"), [6], "contexts that touch");
        assert_eq!(shown("+.....+"), [3, 0, 3]);
    }

    #[test]
    fn the_text_is_unified_aligned_and_coloured() {
        let there = ruleset(&[
            (Verdict::Accept, "a#1 a.toml:1"),
            (Verdict::Drop, "a#2 a.toml:2"),
            (Verdict::Goto("elsewhere".to_owned()), "end"),
        ]);
        let wanted = ruleset(&[(Verdict::Accept, "a#1 a.toml:1"), (Verdict::Goto("elsewhere".to_owned()), "end")]);
        let ahead = Ahead {
            loaded: Loaded { exists: true, ruleset: there.clone(), ..Loaded::default() },
            planned: Vec::new(),
            flows: vec![("a".to_owned(), 2), ("the interface's default".to_owned(), 1)],
        };
        let difference = Difference::new(&there, &wanted);
        let expected = "\
--- in the kernel
+++ by the policy

POLICY  CHANGE   RULES  FILE
a       changed  +0 -1  a.toml:1

@@ chain in: changed @@
  counter accept         comment \"a#1 a.toml:1\"
- counter drop           comment \"a#2 a.toml:2\"
  counter goto elsewhere comment \"end\"

1 policy, 0 sets and 1 chain differ; 3 live flows would end (2 by a, 1 by the interface's default)
";
        let policies = policies(&there, &wanted);
        assert_eq!(text(&ahead, &difference, &policies, false), expected);
        let colored = text(&ahead, &difference, &policies, true);
        assert!(colored.contains("\x1b[31m- counter drop           comment \"a#2 a.toml:2\"\x1b[0m\n"), "{colored:?}");
    }
}
