//! `nodewall check`: what is wrong with settings and policy.

use std::io;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::examine::{Examined, examine};
use super::exit::Exit;
use super::output::Output;
use crate::daemon::documents::Documents;
use crate::daemon::status::FindingRecord;
use crate::policy::guards;
use crate::source::Trust;
use crate::text::render;

/// Arguments of `check`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Exit with 1 when there are warnings
    #[arg(long)]
    strict: bool,
    /// Instead of the policy, look at what else on this machine decides about packets
    #[arg(long, conflicts_with = "paths")]
    host: bool,
}

/// What `check --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    errors: usize,
    warnings: usize,
    policies: usize,
    findings: Vec<FindingRecord>,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    if arguments.host {
        return super::host::run(options.root.as_deref(), arguments.strict, output);
    }
    let Examined { documents, findings, .. } = examine(options, &arguments.paths, Trust::Anyone, output);
    let sorted = render::sorted(&findings);
    let errors = sorted.iter().filter(|finding| finding.severity == crate::text::finding::Severity::Error).count();
    let warnings = sorted.len() - errors;
    let printed = if output.json {
        let findings = sorted.iter().map(|finding| FindingRecord::of(finding)).collect();
        output.json(&Report { version: 1, errors, warnings, policies: policies(&documents), findings })
    } else {
        let mut text = render::render(&findings, &documents.texts, output.colored(&io::stdout()));
        text.push_str(&summary(&documents, errors, warnings));
        output.data(&text)
    };
    match (errors, warnings) {
        (1.., _) => Exit::InvalidPolicy,
        (0, 1..) if arguments.strict => Exit::Failure,
        _ => printed,
    }
}

/// How many policies there are beside the built-in ones.
fn policies(documents: &Documents) -> usize {
    documents.policy.policies.iter().filter(|policy| !guards::is_built_in(&policy.place)).count()
}

fn summary(documents: &Documents, errors: usize, warnings: usize) -> String {
    let count = |number: usize, one: &str, many: &str| match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    };
    let documents = format!(
        "{} in {}",
        count(policies(documents), "policy", "policies"),
        count(documents.files.len(), "file", "files")
    );
    match (errors, warnings) {
        (0, 0) => format!("{documents}: no findings\n"),
        _ => format!("{documents}: {}, {}\n", count(errors, "error", "errors"), count(warnings, "warning", "warnings")),
    }
}
