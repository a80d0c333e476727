//! What `check`, `render`, `simulate` and `apply` begin with: the documents, this node, and what the policy comes to on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Options;
use super::exit;
use super::output::Output;
use crate::daemon::documents::{self, Documents};
use crate::daemon::{self, clock};
use crate::host;
use crate::net::facts::Facts;
use crate::net::rail::Rails;
use crate::policy::effective::Effective;
use crate::policy::expiry;
use crate::policy::local::{LocalNames, not_running};
use crate::policy::model::Policy;
use crate::policy::resolve::resolve;
use crate::source::Trust;
use crate::text::finding::Finding;

/// Nobody waits longer for a name service.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Documents on a node.
pub(super) struct Examined {
    /// What was read.
    pub(super) documents: Documents,
    /// The node.
    pub(super) facts: Facts,
    /// What the policy comes to there now, without what is over.
    pub(super) effective: Effective,
    /// Everything there is to say: about the documents, about their meaning here, and about the command line.
    pub(super) findings: Vec<Finding>,
}

/// Reads the documents and resolves them on the node that the options name; `paths` are those of the subcommand.
pub(super) fn examine(options: &Options, paths: &[PathBuf], trust: Trust, output: &Output) -> Examined {
    let documents = documents::load(&options.whereabouts(paths), trust);
    let facts = documents.complete(facts(options, &documents.policy, &documents.config.state_directory, output));
    let settings = &documents.config.settings;
    let (mut effective, resolved) = resolve(&documents.policy, settings, &facts);
    let now = clock::now();
    let over = effective.expire(|policy| policy.is_over(now));
    let mut findings = documents.findings.clone();
    findings.extend(resolved);
    findings.extend(not_running(&documents.policy, settings, &facts));
    findings.extend(over.iter().map(expiry::finding));
    findings.extend(options.absent());
    Examined { documents, facts, effective, findings }
}

/// The numbers of rails that a daemon left on the machine that the options name.
fn rails(options: &Options, directory: &Path, output: &Output) -> Rails {
    let directory = match &options.root {
        Some(root) => root.join(directory.strip_prefix("/").unwrap_or(directory)),
        None => directory.to_owned(),
    };
    // Whoever may not look there has the numbers of a first start; `interfaces` says so.
    let unreadable = directory.read_dir().is_err();
    daemon::rails::remembered(&directory).unwrap_or_else(|error| {
        if !unreadable {
            output.message(&format!("the numbers of rails are those of a first start: {error}"));
        }
        Rails::new()
    })
}

/// The facts of the machine that the options name, with what the policy needs to know of accounts and units, and the numbers of
/// rails that a daemon left in its state directory.
pub(super) fn facts(options: &Options, policy: &Policy, state: &Path, output: &Output) -> Facts {
    let mut facts = links(options.root.as_deref(), output);
    facts.rails = rails(options, state, output);
    let root = options.root.as_deref().unwrap_or(Path::new("/"));
    for trouble in host::add_local(&mut facts, root, &LocalNames::of(policy), ANSWER_TIME) {
        output.message(&trouble);
    }
    facts
}

/// The facts of the machine below `root`, or of this one. Where rtnetlink may not be asked, sysfs and procfs have to do.
fn links(root: Option<&Path>, output: &Output) -> Facts {
    if let Some(root) = root {
        return host::collect_fixture(root);
    }
    let slash = Path::new("/");
    let collected = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| host::Error::Netlink { attempt: "start a task for questions", source })
        .and_then(|runtime| runtime.block_on(host::collect(slash)));
    collected.unwrap_or_else(|error| {
        output.message(&format!("{}; looking at /sys and /proc instead", exit::chain(&error)));
        host::collect_fixture(slash)
    })
}
