//! `nodewall history`: the generations that are kept, newest first; from the disk, so it needs no daemon.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;

use super::Options;
use super::exit::Exit;
use super::output::Output;
use crate::config;
use crate::source::Trust;
use crate::store::{Directory, Entry, Error, Store};

/// What `history --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    confirmed: Option<u64>,
    generations: Vec<Line>,
}

/// One generation.
#[derive(Serialize)]
struct Line {
    generation: u64,
    time: Option<String>,
    source: Option<String>,
    hash: Option<String>,
    policy_files: usize,
    /// Why it cannot be used.
    error: Option<String>,
}

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    let store = Store::new(Directory::existing(&config.state_directory));
    let entries = match store.history() {
        Ok(entries) => entries,
        Err(Error::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            output.message(&format!("{}: {error}", config.state_directory.display()));
            let denied =
                matches!(&error, Error::Disk { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
            return if denied { Exit::NotAuthorised } else { Exit::Failure };
        }
    };
    let report =
        Report { version: 1, confirmed: store.confirmed_number(), generations: entries.iter().map(line).collect() };
    if output.json { output.json(&report) } else { output.data(&text(&report)) }
}

fn line(entry: &Entry) -> Line {
    let generation = entry.number;
    match &entry.generation {
        Ok(kept) => Line {
            generation,
            time: Some(kept.time.clone()),
            source: Some(kept.source.clone()),
            hash: Some(kept.hash.clone()),
            policy_files: kept.policy.len(),
            error: None,
        },
        Err(error) => {
            Line { generation, time: None, source: None, hash: None, policy_files: 0, error: Some(error.to_string()) }
        }
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    if report.generations.is_empty() {
        return "no generations are kept\n".to_owned();
    }
    for line in &report.generations {
        let confirmed = if report.confirmed == Some(line.generation) { "  confirmed" } else { "" };
        let what = match (&line.time, &line.source, &line.hash, &line.error) {
            (Some(time), Some(source), Some(hash), _) => {
                format!("{time}  {}  {source}", hash.get(..12).unwrap_or(hash))
            }
            (.., Some(error)) => format!("unusable: {error}"),
            _ => String::new(),
        };
        // Writing to a String does not fail.
        let _ = writeln!(out, "{:>6}  {what}{confirmed}", line.generation);
    }
    out
}
