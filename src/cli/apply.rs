//! `nodewall apply`: put the policy in force once, without the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::diff::{self, Ahead};
use super::examine::{Examined, examine};
use super::exit::{self, Exit};
use super::order;
use super::output::{Output, count};
use super::status::daemon_answers;
use crate::compile::compile;
use crate::config;
use crate::config::confirm::{self, Confirm};
use crate::daemon::documents;
use crate::daemon::socket::Request;
use crate::driver::{self, Conntrack, Netlink, Revoked};
use crate::nft::change::Change;
use crate::nft::ir::Ruleset;
use crate::revoke::Revocation;
use crate::source::Trust;
use crate::text::time;

/// Arguments of `apply`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Change nothing; print what would change and how many live flows would end. Exit code 1 if anything would
    #[arg(long)]
    dry_run: bool,
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Let the daemon do it, and go back after this time ("2m") unless `nodewall confirm` is run before; "auto" or "auto:30s":
    /// unless its self-test passes before
    #[arg(long, value_name = "TIME", value_parser = confirm::parse)]
    confirm: Option<Confirm>,
    /// With `--confirm auto`: wait until the self-test has passed, or the change is gone again (exit code 7)
    #[arg(long, requires = "confirm")]
    wait: bool,
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
    if options.root.is_some() {
        output.message("--root looks at another machine, and apply changes this one; use check or render");
        return Exit::Usage;
    }
    if arguments.wait && !matches!(arguments.confirm, Some(Confirm::SelfTest(_))) {
        output.message("--wait waits for a self-test; use it with --confirm auto");
        return Exit::Usage;
    }
    if let Some(confirm) = arguments.confirm {
        return under_confirm(options, arguments, confirm, output);
    }
    let Examined { documents, facts, effective, findings } =
        examine(options, &arguments.paths, Trust::Required, output);
    output.findings(&findings, &documents.texts);
    if documents::errors(&findings) > 0 {
        output.message("the policy has errors; nothing was changed");
        return Exit::InvalidPolicy;
    }
    let (ruleset, next_expiry) = (compile(&effective), effective.next_expiry());
    let revoke = documents.config.settings.revoke;
    if arguments.dry_run {
        let revocation = revoke.then(|| Revocation::new(Arc::new(effective), &facts));
        return dry_run(&ruleset, revocation.as_ref(), output);
    }
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
    if !applied.without.is_empty() {
        let chains = applied.without.join(", ");
        output.message(&format!(
            "not in force, as their device is not there: {chains}; other chains decide the same later"
        ));
    }
    if daemon_answers(&documents.config.socket) {
        output.message("nodewall is running: it will put its own policy in force again at the next change it sees");
    } else if let Some(at) = next_expiry {
        let at = time::rfc3339(at);
        output.message(&format!("a policy expires at {at}, and without the daemon nothing ends it then"));
    }
    let mut flows_ended = None;
    if applied.changes > 0 && revoke {
        let revocation = Revocation::new(Arc::new(effective), &facts);
        match Conntrack::open().and_then(|mut conntrack| conntrack.revoke(&revocation, &mut |_| true)) {
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
        Some(ended) if ended > 0 => format!("{} ended\n", count(ended, "flow")),
        _ => String::new(),
    };
    match changes {
        0 => output.data(&format!("already in force: {chains} chains, {rules} rules, {sets} sets\n")),
        _ => {
            output.data(&format!("in force: {chains} chains, {rules} rules, {sets} sets ({changes} changes)\n{flows}"))
        }
    }
}

/// The daemon owns the time, so that it goes by whatever happens to this process and its terminal.
fn under_confirm(options: &Options, arguments: &Arguments, confirm: Confirm, output: &Output) -> Exit {
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
    let (seconds, selftest) = (Some(confirm.time().as_secs()), matches!(confirm, Confirm::SelfTest(_)));
    let request = Request { seconds, selftest, paths, ..Request::new("apply") };
    match arguments.wait {
        true => order::send_and_wait(&config.socket, &request, confirm.time(), output),
        false => order::send(&config.socket, &request, output),
    }
}

/// What `apply --dry-run --json` prints.
#[derive(Serialize)]
struct Preview {
    version: u32,
    changes: Vec<String>,
    /// How many live flows would end.
    flows_ended: usize,
}

/// Says what an apply would do to the kernel as it is now, in short. Like diff(1): exit code 0 for nothing, 1 for something.
fn dry_run(ruleset: &Ruleset, revocation: Option<&Revocation>, output: &Output) -> Exit {
    let Ahead { loaded, planned, flows } = match diff::look(ruleset, revocation) {
        Ok(ahead) => ahead,
        Err(error) => {
            output.message(&exit::chain(&error));
            return exit::of_kernel(&error);
        }
    };
    let changes: Vec<String> = planned.iter().filter_map(|change| words(change, loaded.exists)).collect();
    let differs = !changes.is_empty();
    let flows_ended = flows.iter().map(|(_, count)| count).sum();
    let printed = if output.json {
        output.json(&Preview { version: 1, changes, flows_ended })
    } else if differs {
        let mut text: String = changes.iter().map(|change| format!("{change}\n")).collect();
        let (changes, flows) = (count(changes.len(), "change"), count(flows_ended, "live flow"));
        text.push_str(&format!("{changes}; {flows} would end\n"));
        output.data(&text)
    } else {
        output.data("already in force: nothing would change\n")
    };
    match printed {
        Exit::Ok if differs => Exit::Failure,
        other => other,
    }
}

/// A change in a line like those of diff(1); `None` for the table that is there already and that every batch begins with.
fn words(change: &Change, exists: bool) -> Option<String> {
    let sign = match change {
        Change::AddTable if exists => return None,
        Change::AddTable
        | Change::AddChain { .. }
        | Change::AddRule { .. }
        | Change::AddSet { .. }
        | Change::AddElements { .. } => '+',
        Change::DeleteTable
        | Change::DeleteChain { .. }
        | Change::FlushChain { .. }
        | Change::DeleteRule { .. }
        | Change::DeleteSet { .. }
        | Change::DeleteElements { .. } => '-',
    };
    let elements = match change {
        Change::AddElements { set, .. } | Change::DeleteElements { set, .. } => {
            format!(": {}", count(set.elements.len(), "element"))
        }
        _ => String::new(),
    };
    Some(format!("{sign} {}{elements}", change.subject()))
}
