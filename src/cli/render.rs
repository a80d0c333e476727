//! `nodewall render`: the rules that would be loaded.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Options;
use super::boot::LockdownArguments;
use super::examine::{Examined, examine};
use super::exit::Exit;
use super::output::Output;
use super::status::{names, table};
use crate::compile::stats::{Row, stats};
use crate::compile::{compile, size};
use crate::daemon::documents;
use crate::nft;
use crate::nft::ir::Ruleset;
use crate::nft::longest::Met;
use crate::source::Trust;

/// Arguments of `render`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// nft(8) syntax, or the JSON of `nft -j`; `--json` means the latter
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Print the lockdown, which `nodewall boot` loads when there is no generation, and no policy
    #[arg(long, conflicts_with = "paths")]
    lockdown: bool,
    #[command(flatten)]
    of_lockdown: LockdownArguments,
    /// Instead of the rules, how many of them a new packet meets at most, by interface, direction and stage
    #[arg(long, conflicts_with_all = ["format", "lockdown"])]
    stats: bool,
}

/// How to write the rules.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    if arguments.lockdown {
        return print(&arguments.of_lockdown.lockdown().ruleset(), arguments, output);
    }
    if arguments.of_lockdown.given() {
        output.message("--ssh-port and --ssh-from belong to --lockdown");
        return Exit::Usage;
    }
    let Examined { documents, effective, findings, .. } = examine(options, &arguments.paths, Trust::Anyone, output);
    output.findings(&findings, &documents.texts);
    if documents::errors(&findings) > 0 {
        output.message("the policy has errors; it would not be loaded");
        return Exit::InvalidPolicy;
    }
    let ruleset = compile(&effective);
    if arguments.stats {
        return figures(&ruleset, &stats(&effective, &ruleset), output);
    }
    print(&ruleset, arguments, output)
}

fn print(ruleset: &Ruleset, arguments: &Arguments, output: &Output) -> Exit {
    match arguments.format.unwrap_or(if output.json { Format::Json } else { Format::Text }) {
        Format::Text => output.data(&nft::text::render(ruleset)),
        Format::Json => output.json(&nft::json::render(ruleset)),
    }
}

/// What `render --stats --json` prints.
#[derive(Serialize)]
struct Figures {
    version: u32,
    chains: usize,
    rules: usize,
    sets: usize,
    elements: usize,
    /// What a new packet meets at most.
    classes: Vec<Class>,
}

/// Interfaces that are treated alike in one stage and direction.
#[derive(Serialize)]
struct Class {
    /// A stage, or "early" and "early-hook" for what comes before them.
    stage: &'static str,
    direction: &'static str,
    interfaces: Vec<String>,
    /// Whether these are interfaces that are there, and not patterns for those that may come.
    there: bool,
    /// The chain in which what is special to them begins.
    chain: Option<String>,
    chains: usize,
    rules: usize,
    lookups: usize,
    jumps: usize,
}

impl From<&Row> for Class {
    fn from(row: &Row) -> Self {
        let Met { chains, rules, lookups, depth } = row.met;
        Self {
            stage: row.place.name(),
            direction: row.direction.name(),
            interfaces: row.interfaces.clone(),
            there: row.there,
            chain: row.class.clone(),
            chains,
            rules,
            lookups,
            jumps: depth,
        }
    }
}

fn figures(ruleset: &Ruleset, rows: &[Row], output: &Output) -> Exit {
    let sizes = size(ruleset);
    let of = |what: &str| sizes.get(what).copied().unwrap_or_default();
    let figures = Figures {
        version: 1,
        chains: of("chains"),
        rules: of("rules"),
        sets: of("sets"),
        elements: of("elements"),
        classes: rows.iter().map(Class::from).collect(),
    };
    if output.json {
        return output.json(&figures);
    }
    let Figures { chains, rules, sets, elements, classes, .. } = figures;
    let mut text = format!("{chains} chains, {rules} rules, {sets} sets with {elements} elements\n");
    let cells = classes.into_iter().map(|class| {
        [
            format!("{} {}", class.stage, class.direction),
            class.chain.unwrap_or_else(|| "-".to_owned()),
            class.chains.to_string(),
            class.rules.to_string(),
            class.lookups.to_string(),
            class.jumps.to_string(),
            names(&class.interfaces),
        ]
    });
    table(
        &mut text,
        ["STAGE", "CLASS", "CHAINS", "RULES", "LOOKUPS", "JUMPS", "INTERFACES"],
        &[false, false, true, true, true, true, false],
        cells.collect(),
    );
    output.data(&text)
}
