//! `nodewall apply`: put the policy in force once, without the daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::check::facts;
use super::exit::{self, Exit};
use super::order;
use super::output::Output;
use super::status::daemon_answers;
use crate::compile::compile;
use crate::config::{self, duration};
use crate::daemon::documents;
use crate::daemon::socket::Request;
use crate::driver::{self, Netlink};
use crate::policy::resolve::resolve;
use crate::source::Trust;

/// Arguments of `apply`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Let the daemon do it, and go back after this time ("2m") unless `nodewall confirm` is run before
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    confirm: Option<Duration>,
}

/// What `apply --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    changes: usize,
    chains: usize,
    rules: usize,
    sets: usize,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    if let Some(confirm) = arguments.confirm {
        return under_confirm(options, arguments, confirm, output);
    }
    let documents = documents::load(&options.whereabouts(&arguments.paths), Trust::Required);
    let facts = documents.complete(facts(options.root.as_deref(), output));
    let (effective, resolved) = resolve(&documents.policy, &documents.config.settings, &facts);
    let mut findings = documents.findings.clone();
    findings.extend(resolved);
    output.findings(&findings, &documents.texts);
    if documents::errors(&findings) > 0 {
        output.message("the policy has errors; nothing was changed");
        return Exit::InvalidPolicy;
    }
    let ruleset = compile(&effective);
    let applied = Netlink::open().and_then(|mut kernel| {
        let applied = driver::apply(&mut kernel, &ruleset, None)?;
        driver::verify(&mut kernel, &ruleset, &applied.deferred)?;
        Ok(applied)
    });
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            output.message(&format!("{}; what was in force stays in force", exit::chain(&error)));
            return exit::of_kernel(&error);
        }
    };
    if daemon_answers(&documents.config.socket) {
        output.message("nodewall is running: it will put its own policy in force again at the next change it sees");
    }
    let report = Report {
        version: 1,
        changes: applied.changes,
        chains: ruleset.chains.len(),
        rules: ruleset.chains.values().map(|chain| chain.rules.len()).sum(),
        sets: ruleset.sets.len(),
    };
    if output.json {
        return output.json(&report);
    }
    let Report { changes, chains, rules, sets, .. } = report;
    match changes {
        0 => output.data(&format!("already in force: {chains} chains, {rules} rules, {sets} sets\n")),
        _ => output.data(&format!("in force: {chains} chains, {rules} rules, {sets} sets ({changes} changes)\n")),
    }
}

/// The daemon owns the time, so that it goes by whatever happens to this process and its terminal.
fn under_confirm(options: &Options, arguments: &Arguments, confirm: Duration, output: &Output) -> Exit {
    // What is wrong is shown with its place in the text, as only we have a terminal; the daemon decides all the same.
    let documents = documents::load(&options.whereabouts(&arguments.paths), Trust::Required);
    output.findings(&documents.findings, &documents.texts);
    if documents::errors(&documents.findings) > 0 {
        output.message("the policy has errors; nothing was changed");
        return Exit::InvalidPolicy;
    }
    let mut paths = Vec::new();
    for path in &arguments.paths {
        match std::path::absolute(path) {
            Ok(path) => paths.push(path),
            Err(error) => {
                output.message(&format!("{}: {error}", path.display()));
                return Exit::Failure;
            }
        }
    }
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    order::send(&config.socket, &Request { seconds: Some(confirm.as_secs()), paths, ..Request::new("apply") }, output)
}
