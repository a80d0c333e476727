//! `nodewall fleet`: what the nodes of a cluster have in force, as they say it to its API.

mod report;
mod text;

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::Options;
use super::exit::Exit;
use super::output::{Output, count};
use crate::config::{self, Config};
use crate::daemon::clock;
use crate::fleet::api::Api;
use crate::fleet::survey::Survey;
use crate::policy::clusters::{Cluster, Contribution};
use crate::policy::selector::Selector;
use crate::source::kube::fleet::{Fleet, NotRead, read};
use crate::source::{self, Trust};
use crate::text::finding::Severity;

/// What our manifests have nodes call their cluster.
const SHIPPED_NAME: &str = "own";

/// Arguments of `fleet`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Group the nodes of a cluster by what their policy means, and say how the groups differ; needs no root
    Status(Status),
}

/// Arguments of `fleet status`.
#[derive(Args, Debug)]
struct Status {
    /// How to reach the API; without it $KUBECONFIG, ~/.kube/config or the first [[source.cluster]] with "nodes" says
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Only nodes whose labels are so: "pool == 'training'"
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    selector: Option<Selector>,
    /// Show every name, group and line
    #[arg(long)]
    all: bool,
}

fn selector(text: &str) -> Result<Selector, String> {
    Selector::parse(text).map_err(|error| error.to_string())
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let Command::Status(arguments) = &arguments.command;
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    let home = config.clusters.iter().find(|cluster| cluster.contribute.contains(&Contribution::Nodes));
    let Some(kubeconfigs) = kubeconfigs(arguments.kubeconfig.as_deref(), home) else {
        output.message("it is not known how to reach an API: name a file with --kubeconfig, or in KUBECONFIG");
        return Exit::Usage;
    };
    let fleet = match read(&kubeconfigs) {
        Ok(fleet) => fleet,
        Err(NotRead::Unreachable(error)) => {
            output.message(&format!("the API cannot be asked: {error}"));
            return Exit::Failure;
        }
        Err(NotRead::NotAuthorised(error)) => {
            output.message(&format!("not authorised to list {error}"));
            return Exit::NotAuthorised;
        }
        Err(NotRead::NoDefinitions) => {
            output.message("this API has no HostStates; `nodewall crd` prints the definitions");
            return Exit::Failure;
        }
        Err(NotRead::Refused(error)) => {
            output.message(&format!("the API refuses to list {error}"));
            return Exit::Failure;
        }
    };
    let mut notes = notes(&fleet);
    let api = api(&fleet, &config, home, &mut notes);
    let mut members = fleet.members.clone();
    if let Some(selector) = &arguments.selector {
        members.retain(|name, member| selector.matches(&member.labels_called(name)));
    }
    let survey = Survey::of(&members, &fleet.members, &api);
    let printed = if output.json {
        output.json(&report::Record::of(&survey, &api, notes))
    } else {
        output.data(&text::text(&survey, &api, &notes, arguments.all, output.colored(&io::stdout())))
    };
    match printed {
        Exit::Ok if !survey.is_well() => Exit::Failure,
        other => other,
    }
}

/// The kubeconfigs to read: as kubectl, and where it has none, as the daemon.
fn kubeconfigs(named: Option<&Path>, home: Option<&Cluster>) -> Option<Vec<PathBuf>> {
    if let Some(path) = named {
        return Some(vec![path.to_owned()]);
    }
    if let Some(list) = env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        let paths: Vec<PathBuf> = env::split_paths(&list).filter(|path| path.exists()).collect();
        // None of them is there: the first one says so.
        return Some(if paths.is_empty() { env::split_paths(&list).take(1).collect() } else { paths });
    }
    let usual = env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config")).filter(|path| path.exists());
    Some(vec![usual.or_else(|| home.map(|cluster| cluster.kubeconfig.clone()))?])
}

/// What could not be read.
fn notes(fleet: &Fleet) -> Vec<String> {
    let mut notes: Vec<String> = fleet
        .unread
        .iter()
        .map(|unread| format!("documents cannot be read, so that only hashes are compared: {unread}"))
        .collect();
    if !fleet.not_understood.is_empty() {
        let names = fleet.not_understood.join(", ");
        notes.push(format!("{} not understood here: {names}", count(fleet.not_understood.len(), "HostState")));
    }
    notes
}

/// What the documents of the API mean, with the guards and settings of this machine's nodewall.toml, or else the shipped ones.
fn api(fleet: &Fleet, config: &Config, home: Option<&Cluster>, notes: &mut Vec<String>) -> Api {
    let known = fleet.unread.is_empty();
    let sourced = source::object::decode(if known { &fleet.documents } else { &[] });
    for finding in sourced.findings.iter().filter(|finding| finding.severity == Severity::Error) {
        notes.push(format!("an object of the API cannot be used: {}: {}", finding.place, finding.message));
    }
    let mut policy = sourced.policy;
    if known {
        policy.guard(source::guards::shipped(), &config.guards);
    }
    let mut clusters: Vec<String> = home.into_iter().map(|cluster| cluster.name.clone()).collect();
    clusters.extend(config.clusters.iter().map(|cluster| cluster.name.clone()));
    clusters.push(SHIPPED_NAME.to_owned());
    Api::new(known, policy, config.settings.clone(), &clusters, clock::now())
}
