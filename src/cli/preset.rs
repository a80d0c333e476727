//! `nodewall preset`: the policies that come with nodewall, and a node's copies of them.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Options;
use super::examine::{Examined, examine};
use super::exit::Exit;
use super::output::Output;
use crate::config;
use crate::daemon::documents;
use crate::policy::preset::{self, Preset, State};
use crate::source::Trust;
use crate::text::finding::{Finding, Severity};
use crate::text::read::nearest;
use crate::textfile::{self, Unread};

/// Arguments of `preset`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// List the presets, and which of them this node has; needs no root
    List,
    /// Print the policy file of a preset; needs no root
    Show {
        /// Its name, as in `preset list`
        name: String,
    },
    /// Copy a preset into the policy directory, or remove the copy
    Enable(Enable),
}

#[derive(Args, Debug)]
struct Enable {
    /// Its name, as in `preset list`
    name: String,
    /// Remove the copy instead
    #[arg(long)]
    disable: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// What `preset list --json` prints.
#[derive(Serialize)]
struct List {
    version: u32,
    directory: String,
    presets: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    kind: &'static str,
    /// "enabled", "outdated", "edited", "unreadable", or "disabled" where there is no copy.
    state: &'static str,
    summary: String,
}

/// What `preset enable --json` prints.
#[derive(Serialize)]
struct Done {
    version: u32,
    name: &'static str,
    file: String,
    /// What was done, or would be: "written", "removed" or "nothing".
    change: &'static str,
    dry_run: bool,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    match &arguments.action {
        Action::List => list(options, output),
        Action::Show { name } => named(name, output).map_or(Exit::Usage, |preset| output.data(preset.text)),
        Action::Enable(wanted) => match named(&wanted.name, output) {
            Some(preset) => enable(options, preset, wanted, output),
            None => Exit::Usage,
        },
    }
}

fn named(name: &str, output: &Output) -> Option<&'static Preset> {
    let found = preset::find(name);
    if found.is_none() {
        let near = nearest(name, preset::ALL.iter().map(|preset| preset.name));
        let help = near.map_or_else(
            || "`nodewall preset list` has them all".to_owned(),
            |near| format!("did you mean \"{near}\"?"),
        );
        output.message(&format!("there is no preset \"{name}\"; {help}"));
    }
    found
}

/// Where copies go: the last directory of the command line, else the administrator's among those of the settings.
fn directory(options: &Options) -> PathBuf {
    if let Some(last) = options.policy_directories.last() {
        return last.clone();
    }
    // What is wrong with the settings is for `check`; what they name besides counts all the same.
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    let mut directories = config.policy_directories;
    let ours = directories.iter().position(|directory| directory.starts_with("/etc"));
    ours.map(|at| directories.swap_remove(at)).or_else(|| directories.pop()).unwrap_or_default()
}

/// What stands where a preset's copy would, if anything does.
fn found(path: &Path, preset: &Preset) -> Result<Option<State>, Box<Finding>> {
    // A link is somebody's decision: to /dev/null it masks the file.
    if fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink()) {
        return Ok(Some(State::Edited));
    }
    match textfile::read(path, Trust::Anyone) {
        Ok(text) => Ok(Some(preset.state(&text))),
        Err(Unread::Missing) => Ok(None),
        Err(Unread::Refused(finding)) => Err(finding),
    }
}

fn list(options: &Options, output: &Output) -> Exit {
    let directory = directory(options);
    let row = |preset: &Preset| Row {
        name: preset.name,
        kind: preset.kind.name(),
        state: match found(&directory.join(preset.file_name()), preset) {
            Ok(state) => state.map_or("disabled", State::name),
            Err(_) => "unreadable",
        },
        summary: preset.summary(),
    };
    let presets: Vec<Row> = preset::ALL.iter().map(row).collect();
    if output.json {
        return output.json(&List { version: 1, directory: directory.display().to_string(), presets });
    }
    let width = presets.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let mut text = format!("{:width$}  KIND   STATE       FOR\n", "PRESET");
    for row in presets {
        let state = if row.state == "disabled" { "-" } else { row.state };
        text.push_str(&format!("{:width$}  {:5}  {state:10}  {}\n", row.name, row.kind, row.summary));
    }
    output.data(&text)
}

fn enable(options: &Options, preset: &'static Preset, wanted: &Enable, output: &Output) -> Exit {
    let directory = directory(options);
    let path = directory.join(preset.file_name());
    if !wanted.dry_run && !nix::unistd::geteuid().is_root() {
        output.message("only root may enable or disable a preset; --dry-run says what would be done");
        return Exit::NotAuthorised;
    }
    if !directory.is_dir() {
        output.message(&format!("there is no directory {}; create it first", directory.display()));
        return Exit::Failure;
    }
    let state = match found(&path, preset) {
        Ok(state) => state,
        Err(finding) => {
            output.message(&format!("{}: {}; move it away first", path.display(), finding.message));
            return Exit::Failure;
        }
    };
    let (change, words) = match (state, wanted.disable) {
        (Some(State::Edited), _) => {
            let why = "was edited, and is left as it is";
            output.message(&format!("{} {why}: remove it or give it another name first", path.display()));
            return Exit::Failure;
        }
        (Some(State::Enabled), false) => ("nothing", "is enabled already"),
        (None, true) => ("nothing", "is not enabled"),
        (None | Some(State::Outdated), false) => ("written", "enabled"),
        (Some(_), true) => ("removed", "disabled"),
    };
    let mut told = Exit::Ok;
    if !wanted.dry_run {
        let done = match change {
            "written" => add(options, &directory, &path, preset, output),
            "removed" => remove(&directory, &path).map(|()| Exit::Ok),
            _ => Ok(Exit::Ok),
        };
        match done {
            Ok(exit) => told = exit,
            Err(error) => {
                output.message(&format!("cannot change {}: {}", path.display(), textfile::reason(&error)));
                return if error.kind() == ErrorKind::PermissionDenied { Exit::NotAuthorised } else { Exit::Failure };
            }
        }
    }
    if told == Exit::InvalidPolicy {
        output.message(&format!("{} is not enabled: the policy would have errors with it", preset.name));
        return told;
    }
    if output.json {
        let file = path.display().to_string();
        output.json(&Done { version: 1, name: preset.name, file, change, dry_run: wanted.dry_run })
    } else {
        let (name, path) = (preset.name, path.display());
        output.data(&match (change, wanted.dry_run) {
            ("nothing", _) => format!("{name} {words}\n"),
            (_, true) => format!("{name} would be {words}: {path}\n"),
            (_, false) => format!("{name} {words}: {path}\n"),
        })
    }
}

/// Writes the copy and says what it asks for; with errors that it brings, everything is as it was before.
fn add(options: &Options, directory: &Path, path: &Path, preset: &Preset, output: &Output) -> io::Result<Exit> {
    let before = fs::read(path).ok();
    let errors = documents::errors(&examine(options, &[], Trust::Anyone, output).findings);
    textfile::replace(path, preset.copy().as_bytes())?;
    let Examined { documents, findings, .. } = examine(options, &[], Trust::Anyone, output);
    let file = textfile::name(path);
    let in_copy =
        |finding: &Finding| finding.place.file == file || finding.related.iter().any(|(place, _)| place.file == file);
    let concerns = |finding: &&Finding| finding.severity == Severity::Error || in_copy(finding);
    let concerning: Vec<Finding> = findings.iter().filter(concerns).cloned().collect();
    output.findings(&concerning, &documents.texts);
    if documents::errors(&findings) <= errors {
        return Ok(Exit::Ok);
    }
    match before {
        Some(bytes) => textfile::replace(path, &bytes)?,
        None => remove(directory, path)?,
    }
    Ok(Exit::InvalidPolicy)
}

fn remove(directory: &Path, path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    File::open(directory)?.sync_all()
}
