//! `nodewall render`: the rules that would be loaded.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Options;
use super::check::facts;
use super::exit::Exit;
use super::output::Output;
use crate::compile::compile;
use crate::daemon::documents;
use crate::nft;
use crate::policy::resolve::resolve;
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
}

/// How to write the rules.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let documents = documents::load(&options.whereabouts(&arguments.paths), Trust::Anyone);
    let facts = documents.complete(facts(options.root.as_deref(), output));
    let (effective, resolved) = resolve(&documents.policy, &documents.config.settings, &facts);
    let mut findings = documents.findings.clone();
    findings.extend(resolved);
    output.findings(&findings, &documents.texts);
    if documents::errors(&findings) > 0 {
        output.message("the policy has errors; it would not be loaded");
        return Exit::InvalidPolicy;
    }
    let ruleset = compile(&effective);
    match arguments.format.unwrap_or(if output.json { Format::Json } else { Format::Text }) {
        Format::Text => output.data(&nft::text::render(&ruleset)),
        Format::Json => output.json(&nft::json::render(&ruleset)),
    }
}
