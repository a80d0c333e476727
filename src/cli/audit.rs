//! `nodewall audit`: what of this host can be reached, from where, and what of that is dangerous.

mod diff;
mod html;
mod report;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Options;
use super::exit::{self, Exit};
use super::output::Output;
use super::subject::{self, Subject};
use crate::config::Config;
use crate::driver::{self, Kernel, Netlink, Read};
use crate::exposure::{self, Exposure, Surroundings};
use crate::host::listeners::{Listeners, listeners};
use crate::host::{coexistence, ipvs};
use crate::net::facts::Facts;
use crate::net::interface::InterfaceName;
use crate::net::published::{Published, Target};
use crate::policy::model::{Mode, Policy};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;
use report::{Basis, Report};

/// Arguments of `audit`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories to hold it against, instead of the policy in force
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print one HTML file with everything in it
    #[arg(long, conflicts_with_all = ["json", "diff"])]
    html: bool,
    /// Compare with what an earlier `audit --json` printed into this file; exit code 1 if more can be reached
    #[arg(long, value_name = "FILE")]
    diff: Option<PathBuf>,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let before = match arguments.diff.as_deref().map(diff::read).transpose() {
        Ok(before) => before,
        Err(why) => {
            output.message(&why);
            return Exit::Failure;
        }
    };
    let (basis, subject) = match held_against(options, arguments, output) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let report = look(options, basis, &subject);
    for trouble in &report.troubles {
        output.message(trouble);
    }
    if let Some(before) = before {
        let diff = diff::Diff::of(&before, &report);
        let printed = if output.json { output.json(&diff) } else { output.data(&diff.text()) };
        return if printed == Exit::Ok && !diff.new.is_empty() { Exit::Failure } else { printed };
    }
    if arguments.html {
        output.data(&html::page(&report))
    } else if output.json {
        output.json(&report)
    } else {
        output.data(&text::of(&report))
    }
}

/// What listeners are held against: documents where somebody names some, else what is in force.
fn held_against(options: &Options, arguments: &Arguments, output: &Output) -> Result<(Basis, Subject), Exit> {
    if !arguments.paths.is_empty() || !options.policy_directories.is_empty() || options.root.is_some() {
        let subject = subject::documents(options, &arguments.paths, output)?;
        return Ok((Basis::Documents, subject));
    }
    let loaded = subject::loaded(options, output)?;
    let table = table_exists()
        .map_err(|error| output.message(&format!("{}; taken to be as the daemon left it", exit::chain(&error))));
    match (loaded, table) {
        (Some(subject), Ok(true) | Err(())) => Ok((Basis::Generation, subject)),
        (None, Ok(true)) => {
            output.message("the rules in force are not the daemon's; taken to be those of the documents");
            Ok((Basis::Documents, subject::documents(options, &[], output)?))
        }
        (_, Ok(false) | Err(())) => Ok((Basis::Nothing, nothing(options, output))),
    }
}

fn table_exists() -> Result<bool, driver::Error> {
    Ok(Netlink::open()?.load(&Read::Only(Vec::new()))?.exists)
}

/// A host on which nodewall decides nothing.
fn nothing(options: &Options, output: &Output) -> Subject {
    let policy = Policy::with_builtin_tiers();
    let facts = super::examine::links(options.root.as_deref(), output);
    let settings = NodeSettings { mode: Mode::Audit, ..Config::shipped().settings };
    let (effective, _) = resolve(&policy, &settings, &facts);
    Subject { policy, effective, facts, texts: BTreeMap::new(), generation: None, emergency: None }
}

fn look(options: &Options, basis: Basis, subject: &Subject) -> Report {
    let root = options.root.as_deref().unwrap_or(Path::new("/"));
    let Listeners { all, users, loopback_open, mut troubles } = listeners(root, &subject.facts);
    let published = published(options.root.is_none(), root, &subject.facts, &mut troubles);
    let around = Surroundings {
        facts: &subject.facts,
        sets: exposure::sets(&subject.policy),
        loopback_open: &loopback_open,
        ways: ways(options.root.is_none(), &subject.facts, &published),
    };
    let exposure = Exposure::new(&subject.effective, around);
    Report::of((basis, subject), &exposure, (&all, &users), &published, troubles)
}

/// The interfaces by which this host sends to where ports are published from.
fn ways(here: bool, facts: &Facts, published: &[Published]) -> BTreeMap<IpAddr, InterfaceName> {
    let targets: BTreeSet<IpAddr> = published
        .iter()
        .filter_map(|published| match published.target {
            Target::There(address, _) => address,
            Target::Here(_) | Target::Several => None,
        })
        .collect();
    let asked = if here { driver::ways(&targets).unwrap_or_default() } else { BTreeMap::new() };
    let way = |address: IpAddr| {
        let on_link = || facts.links.values().find(|link| link.addresses.iter().any(|net| net.contains(&address)));
        let link = asked.get(&address).and_then(|index| facts.links.get(index)).or_else(on_link)?;
        Some((address, link.name.clone()))
    };
    targets.into_iter().filter_map(way).collect()
}

/// What others publish on this host; what cannot be read of it is told.
fn published(here: bool, root: &Path, facts: &Facts, troubles: &mut Vec<String>) -> Vec<Published> {
    let own = facts.local_addresses();
    let ipvs::Ipvs { mut published, unread } = ipvs::published(root, &own);
    troubles.extend(unread);
    troubles.extend(coexistence::legacy_nat(root));
    // A copy of another machine's files says nothing about its rules.
    if here {
        match Netlink::open().and_then(|mut netlink| driver::published(&mut netlink, &own)) {
            Ok(exposed) => {
                published.extend(exposed.published);
                troubles.extend(exposed.unread);
            }
            Err(error) => troubles.push(format!("published ports are not known: {}", exit::chain(&error))),
        }
    }
    published
}
