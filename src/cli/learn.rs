//! `nodewall learn`: a draft of a policy from what went on, and a draft held against it.

mod drafting;
mod replay;
mod state;
mod stored;
mod words;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Options;
use super::examine::examine;
use super::exit::Exit;
use super::output::{Output, count};
use super::status::{ask, table};
use crate::config::{self, Config, duration};
use crate::daemon::clock;
use crate::daemon::socket::Request;
use crate::learn::{self, Generalise, Ground, settled};
use crate::policy::model::Mode;
use crate::source::Trust;
use crate::text::time::rfc3339;
use state::Learning;
use stored::learned;

/// Arguments of `learn`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Note that what goes on from now on is learned from, and look whether it is recorded at all
    Start(Start),
    /// Say what was seen since, and whether there is still something new
    Status,
    /// Print a policy that lets through what went on, for review
    Draft(drafting::Arguments),
    /// Say what of that a draft would have denied
    Verify(replay::Arguments),
}

#[derive(Args, Debug)]
struct Start {
    /// For how long
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse, default_value = "24h")]
    time: Duration,
}

/// What `draft` and `verify` are asked to look at, and what counts as a habit.
#[derive(Args, Debug)]
struct Habit {
    /// What happened in this time until now ("12h"), instead of what happened since `learn start`
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    since: Option<Duration>,
    /// How many connections make a habit and no one-off
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    seen: u64,
    /// How far peers may be widened: none, sets, or lengths of prefixes like /24,/64
    #[arg(long, value_name = "HOW", default_value_t = learn::SHIPPED, value_parser = Generalise::parse)]
    generalise: Generalise,
    /// Also what this host begins, where it may begin everything
    #[arg(long)]
    egress: bool,
    /// Also what a policy in force denied
    #[arg(long)]
    denied: bool,
}

impl Habit {
    fn options(&self) -> learn::Options {
        let Self { seen, generalise, egress, denied, .. } = self;
        learn::Options { generalise: *generalise, seen: *seen, egress: *egress, denied: *denied }
    }
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    match &arguments.action {
        Action::Start(wanted) => start(options, wanted.time, output),
        Action::Status => status(options, output),
        Action::Draft(arguments) => drafting::run(options, arguments, output),
        Action::Verify(arguments) => replay::run(options, arguments, output),
    }
}

/// What `learn start --json` prints.
#[derive(Serialize)]
struct Started {
    version: u32,
    started: String,
    until: String,
    by: String,
    /// What makes it less than it could be.
    remarks: Vec<String>,
}

fn start(options: &Options, time: Duration, output: &Output) -> Exit {
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    if !nix::unistd::geteuid().is_root() {
        output.message("only root may start learning");
        return Exit::NotAuthorised;
    }
    if let Err(why) = is_recorded(&config, time) {
        output.message(&why);
        return Exit::Failure;
    }
    let remarks = remarks(&config);
    let started = clock::now();
    let learning = Learning { started, until: started.saturating_add(time.as_secs()), by: state::somebody() };
    if let Err(error) = state::write(&config.state_directory, &learning) {
        let path = state::path(&config.state_directory);
        output.message(&format!("cannot write {}: {}", path.display(), crate::textfile::reason(&error)));
        return if error.kind() == ErrorKind::PermissionDenied { Exit::NotAuthorised } else { Exit::Failure };
    }
    let (started, until) = (rfc3339(learning.started), rfc3339(learning.until));
    if output.json {
        return output.json(&Started { version: 1, started, until, by: learning.by, remarks });
    }
    for remark in remarks {
        output.message(&remark);
    }
    output.data(&format!(
        "learning from {started} until {until}; `nodewall learn status` says what was seen, `nodewall learn draft` drafts\n"
    ))
}

/// Whether what goes on is kept, and long enough.
fn is_recorded(config: &Config, time: Duration) -> Result<(), String> {
    let flows = &config.flows;
    if !flows.store || !flows.connections {
        let key = if flows.store { "connections" } else { "store" };
        return Err(format!(
            "{key} is false in [flows] of nodewall.toml, so that nothing is kept to learn from: set it to true"
        ));
    }
    if flows.keep < time {
        let hours = time.as_secs().div_ceil(3600);
        let kept = flows.keep.as_secs() / 3600;
        return Err(format!(
            "flows are kept for {kept}h only: set keep = \"{hours}h\" in [flows] of nodewall.toml, or learn for less"
        ));
    }
    Ok(())
}

/// What makes learning less than it could be.
fn remarks(config: &Config) -> Vec<String> {
    let mut remarks = Vec::new();
    if config.settings.mode == Mode::Enforce {
        remarks.push(
            "this node enforces its policy: of what is denied only the attempt is seen, and not what would follow; \
             mode = \"audit\" in nodewall.toml shows all of it"
                .to_owned(),
        );
    }
    if !config.flows.processes {
        remarks.push("processes is false in [flows]: services without a name are called after their ports".to_owned());
    }
    if !config.flows.accounting {
        remarks.push("accounting is false in [flows]: what nobody answers may be taken for a service".to_owned());
    }
    if ask(&config.socket, &Request::new("status")).is_err() {
        remarks.push("nodewall does not answer: nothing is recorded unless it runs".to_owned());
    }
    remarks
}

/// What `learn status --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    /// "learning", "over" or "not started".
    state: &'static str,
    started: Option<String>,
    until: Option<String>,
    by: Option<String>,
    records: u64,
    connections: u64,
    peers: usize,
    /// Peers that began something, and services of this host that they asked for.
    clients: usize,
    services: usize,
    /// For how long flows were recorded, in seconds.
    recorded_seconds: u64,
    lost: stored::Lost,
    hours: Vec<Hour>,
    settled: bool,
}

/// What was new in an hour.
#[derive(Serialize)]
struct Hour {
    from: String,
    peers: usize,
    services: usize,
}

/// More hours than these are not shown to people.
const MOST_HOURS: usize = 12;

fn status(options: &Options, output: &Output) -> Exit {
    let examined = examine(options, &[], Trust::Anyone, output);
    let config = &examined.documents.config;
    let now = clock::now();
    let (learning, stored) = match learned(&config.state_directory, None, now, output) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let ground = Ground::new(&examined.documents.policy, &config.settings, &examined.facts);
    let gathered = &stored.gathered;
    let news = settled::news(gathered, &ground);
    let (clients, services) = settled::totals(&news);
    let first = gathered.first.unwrap_or_default() / 1_000_000;
    let hour = |(number, news): (u64, &settled::News)| Hour {
        from: rfc3339(first.saturating_add(number * 3600)),
        peers: news.peers,
        services: news.services,
    };
    let report = Report {
        version: 1,
        state: match &learning {
            None => "not started",
            Some(learning) if learning.until <= now => "over",
            Some(_) => "learning",
        },
        started: learning.as_ref().map(|learning| rfc3339(learning.started)),
        until: learning.as_ref().map(|learning| rfc3339(learning.until)),
        by: learning.as_ref().map(|learning| learning.by.clone()),
        records: gathered.records,
        connections: gathered.connections,
        peers: settled::peers(gathered),
        clients,
        services,
        recorded_seconds: stored.seen.watched() / 1_000_000,
        lost: stored.lost(),
        hours: (0..).zip(&news).map(hour).collect(),
        settled: settled::is_settled(&news),
    };
    if output.json { output.json(&report) } else { output.data(&text(&report)) }
}

fn text(report: &Report) -> String {
    let mut text = match (&report.started, &report.until, &report.by) {
        (Some(started), Some(until), Some(by)) if report.state == "learning" => {
            format!("learning since {started} until {until}, started by {}\n", learn::text::clean(by))
        }
        (Some(started), Some(until), _) => format!("learned from {started} until {until}\n"),
        _ => "learning was not started; this is about all that is kept\n".to_owned(),
    };
    let (hours, minutes) = (report.recorded_seconds / 3600, report.recorded_seconds / 60 % 60);
    text.push_str(&format!(
        "{} in {}, recorded for {hours}h {minutes}m; {}\n{} asked for {} of this host\n",
        words::number(report.connections, "connection"),
        words::number(report.records, "record"),
        report.lost.words(),
        count(report.clients, "peer"),
        count(report.services, "service"),
    ));
    let skip = report.hours.len().saturating_sub(MOST_HOURS);
    let rows = report.hours.iter().skip(skip);
    let rows = rows.map(|hour| [hour.from.clone(), hour.peers.to_string(), hour.services.to_string()]);
    table(&mut text, ["HOUR", "NEW PEERS", "NEW SERVICES"], &[false, true, true], rows.collect());
    text.push_str(match report.settled {
        true => "\nsettled: nothing was new in the last hours\n",
        false => "\nnot settled: there was something new in the last hours, or there were too few of them\n",
    });
    text
}

/// Where a draft must not be written: where it would be live.
fn live_directories(options: &Options, config: &Config) -> Vec<PathBuf> {
    config.policy_directories.iter().chain(&options.policy_directories).cloned().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_not_kept_cannot_be_learned_from() {
        let day = Duration::from_secs(24 * 3600);
        let with = |text: &str| config::decode_text("nodewall.toml", text).0;
        assert_eq!(is_recorded(&with(""), day), Ok(()));
        for (text, wanted) in [
            ("[flows]\nstore = false\n", "store is false"),
            ("[flows]\nconnections = false\n", "connections is false"),
            ("[flows]\nkeep = \"12h\"\n", "keep = \"24h\""),
        ] {
            let why = is_recorded(&with(text), day).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
        assert!(is_recorded(&with(""), day * 2).unwrap_err().contains("keep = \"48h\""));
    }
}
