//! `nodewall learn verify`: what would have been denied with a draft in place and everything enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::super::Options;
use super::super::examine::facts;
use super::super::exit::Exit;
use super::super::output::{Output, count};
use super::super::status::table;
use super::stored::{Lost, Stored, learned};
use super::{Habit, words};
use crate::config;
use crate::daemon::clock;
use crate::daemon::documents;
use crate::learn::Apart;
use crate::learn::text::reason;
use crate::learn::verify::{self, Denied};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;
use crate::source::{self, Sourced, Trust};
use crate::text::finding::Finding;
use crate::text::time::rfc3339;
use crate::textfile::{self, Unread};

/// Arguments of `learn verify`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The draft, as one or more policy files
    #[arg(value_name = "DRAFT", required = true)]
    drafts: Vec<PathBuf>,
    #[command(flatten)]
    habit: Habit,
    /// Exit with 1 also when a one-off would be denied
    #[arg(long)]
    strict: bool,
}

/// What `learn verify --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    records: u64,
    connections: u64,
    allowed: u64,
    unsure: u64,
    lost: Lost,
    denied: Vec<Line>,
}

/// Something that would have been denied.
#[derive(Serialize)]
struct Line {
    /// Why it is no surprise: "scan", "one-off" and so on; nothing where it looks as if it were needed.
    apart: Option<&'static str>,
    direction: String,
    interface: Option<String>,
    role: Option<String>,
    peer: Option<String>,
    service: String,
    connections: u64,
    first: String,
    last: String,
    /// What would deny it: a rule, "tier NAME", "default".
    rule: String,
    processes: Vec<String>,
}

impl From<&Denied> for Line {
    fn from(denied: &Denied) -> Self {
        Self {
            apart: denied.apart.as_ref().map(Apart::name),
            direction: denied.flow.direction.to_string(),
            interface: denied.flow.interface.as_ref().map(ToString::to_string),
            role: denied.role.map(|role| role.to_string()),
            peer: denied.flow.peer.map(|peer| peer.to_string()),
            service: words::service(&denied.flow),
            connections: denied.seen.all(),
            first: rfc3339(denied.seen.first / 1_000_000),
            last: rfc3339(denied.seen.last / 1_000_000),
            rule: words::decider(&denied.reason),
            processes: words::processes(&denied.seen),
        }
    }
}

/// The documents of this node with drafts, by name and text, in place of files of the same name or beside them, and its settings.
pub(super) fn with_drafts(options: &Options, drafts: &[(String, String)]) -> (Sourced, NodeSettings) {
    let documents = documents::load(&options.whereabouts(&[]), Trust::Anyone);
    let base = |name: &str| Path::new(name).file_name().map(|name| name.to_string_lossy().into_owned());
    let replaced: BTreeSet<String> = drafts.iter().filter_map(|(name, _)| base(name)).collect();
    let mut kept = documents.kept.policy;
    kept.retain(|key, _| {
        let name = key.splitn(3, ' ').nth(2).and_then(base);
        name.is_none_or(|name| !replaced.contains(&name))
    });
    // As if they were in /etc, which is the second of the directories.
    for (number, (name, text)) in drafts.iter().enumerate() {
        kept.insert(format!("{:06} 1 {name}", 900_000 + number), Arc::from(text.as_str()));
    }
    let mut sourced = source::decode_kept(&kept);
    sourced.policy.guard(source::guards::shipped(), &documents.config.guards);
    (sourced, documents.config.settings)
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let mut drafts = Vec::new();
    for path in &arguments.drafts {
        match textfile::read(path, Trust::Anyone) {
            Ok(text) => drafts.push((textfile::name(path).to_string(), text)),
            Err(Unread::Missing) => {
                output.message(&format!("{} does not exist", path.display()));
                return Exit::Failure;
            }
            Err(Unread::Refused(finding)) => {
                output.message(&format!("{}: {}", path.display(), finding.message));
                return Exit::Failure;
            }
        }
    }
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    let (sourced, settings) = with_drafts(options, &drafts);
    let documents = documents::load(&options.whereabouts(&[]), Trust::Anyone);
    let facts = documents.complete(facts(options, &sourced.policy, &config.state_directory, output));
    let (_, resolved) = resolve(&sourced.policy, &settings, &facts);
    let findings: Vec<Finding> = sourced.findings.iter().cloned().chain(resolved).collect();
    if documents::errors(&findings) > 0 {
        output.findings(&findings, &sourced.texts);
        output.message("the policy would have errors with it");
        return Exit::InvalidPolicy;
    }
    let (_, stored) = match learned(&config.state_directory, arguments.habit.since, clock::now(), output) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let names: BTreeSet<&str> = drafts.iter().map(|(name, _)| name.as_str()).collect();
    let of_draft = sourced.policy.policies.iter().filter(|policy| names.contains(&*policy.place.file));
    let of_draft: BTreeSet<String> = of_draft.map(|policy| policy.name.clone()).collect();
    let wanted = arguments.habit.options();
    let found = verify::verify(&stored.gathered, &sourced.policy, &of_draft, &settings, &facts, &wanted);
    let printed = if output.json {
        output.json(&Report {
            version: 1,
            records: stored.gathered.records,
            connections: stored.gathered.connections,
            allowed: found.allowed,
            unsure: found.unsure,
            lost: stored.lost(),
            denied: found.denied.iter().map(Line::from).collect(),
        })
    } else {
        output.data(&text(&found, &stored))
    };
    let one_offs = found.denied.iter().any(|denied| denied.apart == Some(Apart::OneOff));
    match printed {
        Exit::Ok if found.surprises().next().is_some() || (arguments.strict && one_offs) => Exit::Failure,
        other => other,
    }
}

/// More lines than these are only counted.
const MOST_LINES: usize = 50;

fn text(found: &verify::Report, stored: &Stored) -> String {
    let gathered = &stored.gathered;
    let mut text = format!(
        "{} in {}; {}\nwould be let through: {}\n",
        words::number(gathered.connections, "connection"),
        words::number(gathered.records, "record"),
        stored.lost().words(),
        words::number(found.allowed, "connection")
    );
    if found.unsure > 0 {
        let _ = writeln!(text, "depends on the process: {}", words::number(found.unsure, "connection"));
    }
    let lines: Vec<Line> = found.surprises().map(Line::from).collect();
    match lines.as_slice() {
        [] => text.push_str("would be denied although it looks needed: nothing\n"),
        lines => {
            let connections = lines.iter().fold(0_u64, |sum, line| sum.saturating_add(line.connections));
            let _ = writeln!(
                text,
                "would be denied although it looks needed: {}\n",
                words::number(connections, "connection")
            );
            let rows = lines.iter().take(MOST_LINES).map(|line| {
                let way = if line.direction == "ingress" { "from" } else { "to" };
                [
                    line.connections.to_string(),
                    format!("{way} {}", line.peer.as_deref().unwrap_or("many")),
                    line.role.clone().unwrap_or_else(|| "-".to_owned()),
                    line.service.clone(),
                    line.rule.clone(),
                    line.processes.first().cloned().unwrap_or_else(|| "-".to_owned()),
                ]
            });
            let heads = ["CONNECTIONS", "PEER", "ROLE", "SERVICE", "BY", "PROCESS"];
            table(&mut text, heads, &[true, false, false, false, false, false], rows.collect());
            if lines.len() > MOST_LINES {
                let _ = writeln!(text, "and {} more", lines.len() - MOST_LINES);
            }
        }
    }
    let mut apart: BTreeMap<&Apart, Vec<&Denied>> = BTreeMap::new();
    for denied in &found.denied {
        if let Some(why) = &denied.apart {
            apart.entry(why).or_default().push(denied);
        }
    }
    if !apart.is_empty() {
        text.push_str("\nwould be denied, and was set apart:\n");
    }
    for (why, denied) in apart {
        let peers = verify::peers(denied.iter().copied());
        let shown: Vec<String> = peers.iter().take(3).map(ToString::to_string).collect();
        let more = if peers.len() > shown.len() { ", ..." } else { "" };
        let what = format!("{} of {}", count(denied.len(), "service"), count(peers.len(), "peer"));
        let _ = writeln!(text, "  {}: {what} ({}{more})", reason(why), shown.join(", "));
    }
    text
}
