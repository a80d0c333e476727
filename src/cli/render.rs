//! `nodewall render`: the rules that would be loaded.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Options;
use super::boot::LockdownArguments;
use super::examine::{Examined, examine};
use super::exit::Exit;
use super::output::Output;
use crate::compile::compile;
use crate::daemon::documents;
use crate::nft;
use crate::nft::ir::Ruleset;
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
    print(&compile(&effective), arguments, output)
}

fn print(ruleset: &Ruleset, arguments: &Arguments, output: &Output) -> Exit {
    match arguments.format.unwrap_or(if output.json { Format::Json } else { Format::Text }) {
        Format::Text => output.data(&nft::text::render(ruleset)),
        Format::Json => output.json(&nft::json::render(ruleset)),
    }
}
