//! `nodewall apply`: put the policy in force once, without the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::check::facts;
use super::exit::{self, Exit};
use super::output::Output;
use super::status::daemon_answers;
use crate::compile::compile;
use crate::daemon::documents;
use crate::driver::{self, Conntrack, Netlink, Revoked};
use crate::policy::resolve::resolve;
use crate::revoke::Revocation;
use crate::source::Trust;

/// Arguments of `apply`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// What `apply --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    changes: usize,
    chains: usize,
    rules: usize,
    sets: usize,
    /// How many flows the change ended; absent where none were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    flows_ended: Option<usize>,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
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
    let mut flows_ended = None;
    if applied.changes > 0 && documents.config.settings.revoke {
        let revocation = Revocation::new(Arc::new(effective), &facts);
        match Conntrack::open().and_then(|mut conntrack| conntrack.revoke(&revocation, &|| false)) {
            Ok(Revoked { ended, .. }) => flows_ended = Some(ended),
            Err(error) => {
                let error = exit::chain(&error);
                output.message(&format!("{error}; flows that the policy denies may go on"));
            }
        }
    }
    let report = Report {
        version: 1,
        changes: applied.changes,
        chains: ruleset.chains.len(),
        rules: ruleset.chains.values().map(|chain| chain.rules.len()).sum(),
        sets: ruleset.sets.len(),
        flows_ended,
    };
    if output.json {
        return output.json(&report);
    }
    let Report { changes, chains, rules, sets, .. } = report;
    let flows = match flows_ended {
        Some(1) => "1 flow ended\n".to_owned(),
        Some(ended) if ended > 0 => format!("{ended} flows ended\n"),
        _ => String::new(),
    };
    match changes {
        0 => output.data(&format!("already in force: {chains} chains, {rules} rules, {sets} sets\n")),
        _ => output.data(&format!("in force: {chains} chains, {rules} rules, {sets} sets ({changes} changes)\n{flows}")),
    }
}
