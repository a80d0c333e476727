//! What operators wrote, from all the places where it is: nodewall.toml, the policy files, the kubeconfig. One way of
//! loading for the daemon and for every subcommand.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{self, Config};
use crate::host;
use crate::net::facts::Facts;
use crate::policy::model::Policy;
use crate::source::{self, Texts, Trust};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;

/// Where to look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whereabouts {
    /// nodewall.toml.
    pub config: PathBuf,
    /// Policy directories instead of those that nodewall.toml names; empty: those.
    pub directories: Vec<PathBuf>,
    /// Policy files and directories instead of all policy directories; empty: the directories.
    pub paths: Vec<PathBuf>,
}

/// What was found there.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The settings.
    pub config: Config,
    /// Every document that is valid by itself, merged.
    pub policy: Policy,
    /// What is wrong with settings, documents and kubeconfig.
    pub findings: Vec<Finding>,
    /// The texts that findings point into.
    pub texts: Texts,
    /// The directories or paths that were looked at.
    pub looked_at: Vec<PathBuf>,
    /// The policy files that were read or should have been.
    pub files: Vec<PathBuf>,
    /// The cluster API servers that the kubeconfig names.
    pub api_servers: BTreeSet<(IpAddr, u16)>,
}

/// Loads everything. What is wrong is a finding, and the rest is loaded all the same.
pub fn load(whereabouts: &Whereabouts, trust: Trust) -> Documents {
    let (config, mut findings, text) = config::load(&whereabouts.config, trust);
    let (looked_at, sourced) = if !whereabouts.paths.is_empty() {
        (whereabouts.paths.clone(), source::load_paths(&whereabouts.paths, trust))
    } else {
        let directories =
            if whereabouts.directories.is_empty() { &config.policy_directories } else { &whereabouts.directories };
        (directories.clone(), source::load_directories(directories, trust))
    };
    let mut texts = sourced.texts;
    texts.insert(whereabouts.config.display().to_string().into(), Arc::from(text));
    findings.extend(sourced.findings);
    let api_servers = match &config.kubeconfig {
        None => BTreeSet::new(),
        // Most hosts are no cluster nodes, and the shipped settings name the kubelet's usual file all the same.
        Some(path) if !path.exists() => BTreeSet::new(),
        Some(path) => host::api_servers(path).unwrap_or_else(|error| {
            let place = Place::file(path.display().to_string());
            findings.push(
                Finding::warning(Code::Unreadable, &place, error.to_string())
                    .help("until then the failsafe for the cluster API lets nothing through"),
            );
            BTreeSet::new()
        }),
    };
    Documents { policy: sourced.policy, findings, texts, looked_at, files: sourced.files, api_servers, config }
}

impl Documents {
    /// The facts of a node with what these documents say about it.
    pub fn complete(&self, mut facts: Facts) -> Facts {
        facts.api_servers.clone_from(&self.api_servers);
        facts
    }
}

/// How many of the findings are errors.
pub fn errors(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.severity == Severity::Error).count()
}
