//! What operators wrote, from all the places where it is: nodewall.toml, the policy files, the kubeconfig. One way of
//! loading for the daemon and for every subcommand.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::clusters::{self, Kept};
use crate::config::{self, Config, kubeconfig};
use crate::net::facts::Facts;
use crate::net::node::Nodes;
use crate::policy::guards::FILE;
use crate::policy::model::{NamedSet, Policy};
use crate::policy::resolve::node_name;
use crate::reconcile;
use crate::source::kube::Holdings;
use crate::source::{self, Decoded, DecodedFile, Texts, Trust};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::textfile::{self, Unread};

/// Where to look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whereabouts {
    /// nodewall.toml.
    pub config: PathBuf,
    /// Policy directories instead of those that nodewall.toml names; empty: those.
    pub directories: Vec<PathBuf>,
    /// Policy files and directories instead of all policy directories; empty: the directories.
    pub paths: Vec<PathBuf>,
    /// What this node is called in its cluster, before all that nodewall.toml says.
    pub node: Option<String>,
}

/// What was found there.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The settings.
    pub config: Config,
    /// Every document that is valid by itself, merged, and the guards.
    pub policy: Policy,
    /// What is wrong with settings, documents and kubeconfig.
    pub findings: Vec<Finding>,
    /// The texts that findings point into.
    pub texts: Texts,
    /// The texts as generations keep them.
    pub kept: reconcile::Texts,
    /// The directories or paths that were looked at.
    pub looked_at: Vec<PathBuf>,
    /// The policy files that were read or should have been.
    pub files: Vec<PathBuf>,
    /// The cluster API servers that the kubeconfig names.
    pub api_servers: BTreeSet<(IpAddr, u16)>,
    /// Who the nodes of clusters were when the daemon last wrote that down.
    pub nodes: Arc<Nodes>,
    /// The policy files as they were decoded, where they were loaded to be loaded again.
    pub decoded: Decoded,
}

/// Loads everything. What is wrong is a finding, and the rest is loaded all the same.
/// What clusters say is what the daemon kept of it on disk.
pub fn load(whereabouts: &Whereabouts, trust: Trust) -> Documents {
    load_from(whereabouts, trust, None, None)
}

/// The same with what clusters say; a file that has not changed since it was decoded `before` is not decoded again.
pub fn load_after(whereabouts: &Whereabouts, trust: Trust, before: Option<&Decoded>, holdings: &Holdings) -> Documents {
    load_from(whereabouts, trust, before, Some(holdings))
}

fn load_from(
    whereabouts: &Whereabouts,
    trust: Trust,
    before: Option<&Decoded>,
    holdings: Option<&Holdings>,
) -> Documents {
    let (mut config, mut findings, text) = config::load(&whereabouts.config, trust);
    if whereabouts.node.is_some() {
        config.settings.node.clone_from(&whereabouts.node);
    }
    let Kept { holdings: kept, nodes, troubles } = match holdings {
        Some(holdings) => Kept { holdings: holdings.clone(), ..Kept::default() },
        None => clusters::kept(&config.state_directory, &config.clusters),
    };
    let place = Place::file(textfile::name(&config.state_directory));
    findings.extend(troubles.into_iter().map(|trouble| Finding::warning(Code::Unreadable, &place, trouble)));
    let clusters = (&config.clusters[..], &kept);
    let Whereabouts { directories, paths, .. } = whereabouts;
    let (looked_at, sourced) = if !paths.is_empty() {
        (paths, source::load_paths_after(paths, trust, before, clusters))
    } else {
        let directories = if directories.is_empty() { &config.policy_directories } else { directories };
        (directories, source::load_directories_after(directories, trust, before, clusters))
    };
    let looked_at = looked_at.clone();
    let mut policy = sourced.policy;
    policy.guard(source::guards::shipped(), &config.guards);
    let mut texts = sourced.texts;
    texts.insert(Arc::from(FILE), Arc::from(source::guards::TEXT));
    let settings: Arc<str> = Arc::from(text);
    texts.insert(textfile::name(&whereabouts.config), Arc::clone(&settings));
    let kept = reconcile::Texts { policy: sourced.kept, settings };
    // Where files are only looked at, what clusters say may well be unknown.
    let looked = |finding: Finding| match finding.code {
        Code::Cluster if trust == Trust::Anyone => Finding { severity: Severity::Warning, ..finding },
        _ => finding,
    };
    findings.extend(sourced.findings.into_iter().map(looked));
    let api_servers = api_servers(&config, trust, &mut findings);
    Documents {
        policy,
        findings,
        texts,
        kept,
        looked_at,
        files: sourced.files,
        api_servers,
        nodes: Arc::new(nodes),
        decoded: sourced.decoded,
        config,
    }
}

/// The addresses of the cluster APIs that the kubeconfig and those of the cluster sources name. Most hosts have none, and the shipped settings name the kubelet's
/// usual file all the same; one that cannot be read is no reason to refuse a policy.
pub fn api_servers(config: &Config, trust: Trust, findings: &mut Vec<Finding>) -> BTreeSet<(IpAddr, u16)> {
    let mut servers = BTreeSet::new();
    let sources: BTreeSet<&PathBuf> = config.clusters.iter().map(|cluster| &cluster.kubeconfig).collect();
    for path in config.kubeconfig.iter().filter(|path| !sources.contains(path)).chain(sources.iter().copied()) {
        match textfile::read(path, trust) {
            Ok(text) => servers.extend(kubeconfig::api_servers(&text)),
            Err(Unread::Missing) => {}
            Err(Unread::Refused(finding)) => findings.push(Finding { severity: Severity::Warning, ..*finding }),
        }
    }
    servers
}

impl Documents {
    /// The facts of a node with what these documents say about it.
    pub fn complete(&self, mut facts: Facts) -> Facts {
        facts.api_servers.clone_from(&self.api_servers);
        let name = node_name(&self.config.settings, &facts);
        facts.labels = clusters::own_labels(&self.config.clusters, &self.nodes, name);
        facts.nodes = Arc::clone(&self.nodes);
        facts
    }

    /// Takes in that a file has other members of sets than when it was loaded; whether that is all that is different.
    pub fn follow(&mut self, path: &Path, newer: &Arc<DecodedFile>) -> bool {
        let Some(known) = self.decoded.get_mut(path) else { return false };
        let Some(sets) = known.members_changed(newer) else { return false };
        let name = textfile::name(path);
        let in_force = |set: &NamedSet, there: &NamedSet| there.place.file == set.place.file;
        for set in sets.into_values() {
            if let Some(there) = self.policy.sets.get_mut(&set.name).filter(|there| in_force(&set, there)) {
                *there = set;
            }
        }
        *known = Arc::clone(newer);
        self.texts.insert(Arc::clone(&name), Arc::clone(&newer.text));
        let named = |kept: &str| kept.splitn(3, ' ').nth(2) == Some(&*name);
        if let Some((_, text)) = self.kept.policy.iter_mut().find(|(kept, _)| named(kept)) {
            *text = Arc::clone(&newer.text);
        }
        true
    }
}

/// How many of the findings are errors.
pub fn errors(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.severity == Severity::Error).count()
}
