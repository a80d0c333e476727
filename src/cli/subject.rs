//! Under what packets are simulated: the documents, or the generation in force as it is on disk.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Options;
use super::examine::{Examined, examine, facts};
use super::exit::Exit;
use super::output::Output;
use crate::config;
use crate::daemon::documents::Documents;
use crate::daemon::{self, Stored, clock};
use crate::net::facts::Facts;
use crate::policy::effective::Effective;
use crate::policy::model::Policy;
use crate::policy::resolve::resolve;
use crate::reconcile::{Version, effective_in_emergency};
use crate::source::{self, Texts, Trust};
use crate::store;
use crate::text::finding::{Finding, Severity};

/// What packets are held against.
pub(super) struct Subject {
    /// The documents.
    pub(super) policy: Policy,
    /// What they come to on this node.
    pub(super) effective: Effective,
    /// The node.
    pub(super) facts: Facts,
    /// The texts that places point into.
    pub(super) texts: Texts,
    /// The generation, if it is one.
    pub(super) generation: Option<u64>,
    /// An emergency that stands above the policy, in words.
    pub(super) emergency: Option<String>,
}

/// The documents that the options name, or these paths, if they have no errors.
pub(super) fn documents(options: &Options, paths: &[PathBuf], output: &Output) -> Result<Subject, Exit> {
    let Examined { documents, facts, effective, findings } = examine(options, paths, Trust::Anyone, output);
    refuse_errors(&findings, &documents.texts, output)?;
    let Documents { policy, texts, .. } = documents;
    Ok(Subject { policy, effective, facts, texts, generation: None, emergency: None })
}

/// Warnings are for `check` to tell.
fn refuse_errors(findings: &[Finding], texts: &Texts, output: &Output) -> Result<(), Exit> {
    let errors: Vec<Finding> = findings.iter().filter(|finding| finding.severity == Severity::Error).cloned().collect();
    if errors.is_empty() {
        return Ok(());
    }
    output.findings(&errors, texts);
    output.message("the policy has errors; it would not be loaded");
    Err(Exit::InvalidPolicy)
}

/// The generation that the daemon left on disk, if it left one that can be read.
pub(super) fn loaded(options: &Options, output: &Output) -> Result<Option<Subject>, Exit> {
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    let directory = &config.state_directory;
    let Stored { version, emergency, expired, troubles } = match daemon::stored(directory) {
        Ok(Some(stored)) => stored,
        Ok(None) => return Ok(None),
        Err(store::Error::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            output.message(&format!("{}: {error}", directory.display()));
            let denied =
                matches!(&error, store::Error::Disk { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
            return Err(if denied { Exit::NotAuthorised } else { Exit::Failure });
        }
    };
    for trouble in troubles {
        output.message(&trouble);
    }
    let Version { number, policy, settings, texts, .. } = version;
    let of_settings: BTreeMap<_, _> = [(Arc::from("nodewall.toml"), Arc::clone(&texts.settings))].into();
    let mut shown = source::decode_kept(&texts.policy).texts;
    shown.extend(of_settings);
    let (config, _) = config::decode_text("nodewall.toml", &texts.settings);
    let facts = Facts {
        api_servers: daemon::documents::api_servers(&config, Trust::Anyone, &mut Vec::new()),
        ..facts(options, &policy, directory, output)
    };
    let (mut effective, findings) = resolve(&policy, &settings, &facts);
    refuse_errors(&findings, &shown, output)?;
    let now = clock::now();
    effective.expire(|policy| {
        let known = policy.expires.is_some_and(|expires| expired.contains(&(policy.name.clone(), expires)));
        known || policy.is_over(now)
    });
    let (effective, emergency) = match emergency {
        Some(emergency) => (effective_in_emergency(&emergency, &settings, &facts), Some(emergency.words())),
        None => (effective, None),
    };
    Ok(Some(Subject { policy, effective, facts, texts: shown, generation: Some(number), emergency }))
}
