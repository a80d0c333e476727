//! `nodewall check`: what is wrong with settings and policy.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::Options;
use super::exit::{self, Exit};
use super::output::Output;
use crate::daemon::documents::{self, Documents};
use crate::daemon::status::FindingRecord;
use crate::host;
use crate::net::facts::Facts;
use crate::policy::resolve::resolve;
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
    let documents = documents::load(&options.whereabouts(&arguments.paths), Trust::Anyone);
    let facts = documents.complete(facts(options.root.as_deref(), output));
    let (_, resolved) = resolve(&documents.policy, &documents.config.settings, &facts);
    let mut findings = documents.findings.clone();
    findings.extend(resolved);
    findings.extend(options.absent());
    let sorted = render::sorted(&findings);
    let errors = sorted.iter().filter(|finding| finding.severity == crate::text::finding::Severity::Error).count();
    let warnings = sorted.len() - errors;
    let printed = if output.json {
        let findings = sorted.iter().map(|finding| FindingRecord::of(finding)).collect();
        output.json(&Report { version: 1, errors, warnings, policies: documents.policy.policies.len(), findings })
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

fn summary(documents: &Documents, errors: usize, warnings: usize) -> String {
    let count = |number: usize, one: &str, many: &str| match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    };
    let documents = format!(
        "{} in {}",
        count(documents.policy.policies.len(), "policy", "policies"),
        count(documents.files.len(), "file", "files")
    );
    match (errors, warnings) {
        (0, 0) => format!("{documents}: no findings\n"),
        _ => format!("{documents}: {}, {}\n", count(errors, "error", "errors"), count(warnings, "warning", "warnings")),
    }
}

/// The facts of the machine below `root`, or of this one. Where rtnetlink may not be asked, sysfs and procfs have to do.
pub(super) fn facts(root: Option<&Path>, output: &Output) -> Facts {
    if let Some(root) = root {
        return host::collect_fixture(root);
    }
    let slash = Path::new("/");
    let collected = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| host::Error::Netlink { attempt: "start a task for questions", source })
        .and_then(|runtime| runtime.block_on(host::collect(slash)));
    collected.unwrap_or_else(|error| {
        output.message(&format!("{}; looking at /sys and /proc instead", exit::chain(&error)));
        host::collect_fixture(slash)
    })
}
