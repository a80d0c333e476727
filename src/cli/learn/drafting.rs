//! `nodewall learn draft`: a policy for review.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::super::Options;
use super::super::exit::Exit;
use super::super::output::Output;
use super::super::subject;
use super::replay::with_drafts;
use super::stored::learned;
use super::{Habit, live_directories};
use crate::config;
use crate::daemon::clock;
use crate::daemon::documents;
use crate::learn::draft::LeftOut;
use crate::learn::{Draft, Ground, draft, text};
use crate::policy::resolve::{node_name, resolve};
use crate::source::Trust;
use crate::text::time::rfc3339;
use crate::textfile;

/// Arguments of `learn draft`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    habit: Habit,
    /// Write it to this new file, which may not be in a policy directory, instead of to stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What `learn draft --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    /// The policy file.
    draft: String,
    rules: usize,
    policies: Vec<String>,
    left_out: Vec<Left>,
}

/// Something that is not included.
#[derive(Serialize)]
struct Left {
    why: &'static str,
    direction: String,
    role: Option<String>,
    peers: Vec<String>,
    services: Vec<String>,
    more_services: usize,
    connections: u64,
    first: Option<String>,
    last: Option<String>,
}

impl From<&LeftOut> for Left {
    fn from(left: &LeftOut) -> Self {
        let when = |micros: u64| rfc3339(micros / 1_000_000);
        Self {
            why: left.why.name(),
            direction: left.direction.to_string(),
            role: left.role.map(|role| role.to_string()),
            peers: left.evidence.peers.iter().map(ToString::to_string).collect(),
            services: left.services.clone(),
            more_services: left.more,
            connections: left.evidence.connections,
            first: left.evidence.first.map(when),
            last: left.evidence.last.map(when),
        }
    }
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    if let Some(file) = &arguments.output
        && let Err(why) = may_write(file, &live_directories(options, &config))
    {
        output.message(&why);
        return Exit::Failure;
    }
    let subject = match subject::documents(options, &[], output) {
        Ok(subject) => subject,
        Err(exit) => return exit,
    };
    let (_, stored) = match learned(&config.state_directory, arguments.habit.since, clock::now(), output) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    if stored.gathered.records == 0 {
        output.message("nothing was recorded in that time");
    }
    let wanted = arguments.habit.options();
    let ground = Ground::new(&subject.policy, &config.settings, &subject.facts);
    let draft = draft(&stored.gathered, &ground, &wanted);
    let about = stored.about(node_name(&config.settings, &subject.facts));
    let text = text::render(&draft, &stored.gathered, &wanted, &about);
    if let Err(exit) = is_valid(options, &text, &subject.facts, output) {
        return exit;
    }
    if let Some(file) = &arguments.output {
        return match textfile::replace(file, text.as_bytes()) {
            Ok(()) => output.data(&format!("{}: review it, and try it with `nodewall learn verify`\n", file.display())),
            Err(error) => {
                output.message(&format!("cannot write {}: {}", file.display(), textfile::reason(&error)));
                if error.kind() == ErrorKind::PermissionDenied { Exit::NotAuthorised } else { Exit::Failure }
            }
        };
    }
    if output.json { output.json(&report(&draft, text)) } else { output.data(&text) }
}

fn report(draft: &Draft, text: String) -> Report {
    Report {
        version: 1,
        draft: text,
        rules: draft.policies.iter().flat_map(|policy| policy.rules.values()).map(Vec::len).sum(),
        policies: draft.policies.iter().map(|policy| policy.name.clone()).collect(),
        left_out: draft.left_out.iter().map(Left::from).collect(),
    }
}

/// A draft that `check` would have something against is a bug of ours, and nobody else's to find.
fn is_valid(options: &Options, text: &str, facts: &crate::net::facts::Facts, output: &Output) -> Result<(), Exit> {
    let (sourced, settings) = with_drafts(options, &[("draft.toml".to_owned(), text.to_owned())]);
    let (_, mut findings) = resolve(&sourced.policy, &settings, facts);
    findings.extend(sourced.findings.iter().cloned());
    findings.retain(|finding| &*finding.place.file == "draft.toml");
    if documents::errors(&findings) == 0 {
        return Ok(());
    }
    output.findings(&findings, &sourced.texts);
    output.message("the draft would not be loaded; this is a bug of nodewall, please report it");
    Err(Exit::Failure)
}

/// Whether a draft may be written there: where it is not live, and nothing is lost.
fn may_write(file: &Path, live: &[PathBuf]) -> Result<(), String> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real = fs::canonicalize(parent)
        .map_err(|error| format!("cannot write to {}: {}", parent.display(), textfile::reason(&error)))?;
    let is_within =
        |directory: &&PathBuf| fs::canonicalize(directory).is_ok_and(|directory| real.starts_with(directory));
    if let Some(directory) = live.iter().find(is_within) {
        let why = "a draft would be live there";
        return Err(format!("{} is in the policy directory {}: {why}", file.display(), directory.display()));
    }
    if fs::symlink_metadata(file).is_ok() {
        return Err(format!("{} is there already: remove it, or name another file", file.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_draft_is_never_written_where_it_is_live_or_something_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("policy.d")).unwrap();
        std::os::unix::fs::symlink(at("policy.d"), at("link")).unwrap();
        fs::write(at("old.toml"), "").unwrap();
        let live = [at("policy.d"), at("missing")];
        assert_eq!(may_write(&at("new.toml"), &live), Ok(()));
        for (file, wanted) in [
            ("policy.d/new.toml", "would be live"),
            ("link/new.toml", "would be live"),
            ("old.toml", "is there already"),
            ("link", "is there already"),
            ("nowhere/new.toml", "cannot write"),
        ] {
            let why = may_write(&at(file), &live).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
    }
}
