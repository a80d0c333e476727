//! Where policy comes from: TOML files in three directories, and objects of clusters.

pub mod calico;
mod decoded;
mod document;
mod file;
pub mod foreign;
pub mod guards;
pub mod kube;
mod merge;
pub mod object;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::policy::clusters::Cluster;
use crate::policy::model::Policy;
use crate::text::finding::Finding;
pub use crate::textfile::Trust;
pub use decoded::{Decoded, DecodedFile, reread};
use kube::Holdings;

/// The texts of files that findings point into, by the name that [`crate::text::place::Place`] gives the file.
pub type Texts = BTreeMap<Arc<str>, Arc<str>>;

/// What was loaded.
#[derive(Clone, Debug, Default)]
pub struct Sourced {
    /// Every document that is valid by itself, merged.
    pub policy: Policy,
    /// What is wrong with the others.
    pub findings: Vec<Finding>,
    /// For printing the findings.
    pub texts: Texts,
    /// The files that were read or should have been, in order of precedence.
    pub files: Vec<PathBuf>,
    /// The texts in the form that [`decode_kept`] takes.
    pub kept: BTreeMap<String, Arc<str>>,
    /// The files as they were decoded, where they were loaded to be loaded again.
    pub decoded: Decoded,
}

/// Loads `*.toml` of directories, lowest precedence first (`policy.md` section 6): a file in a later directory replaces
/// the one of the same name in an earlier one, and a link to /dev/null masks it. A directory that does not exist is empty.
pub fn load_directories(directories: &[PathBuf], trust: Trust) -> Sourced {
    file::load_directories(directories, trust, None, (&[], &Holdings::new()))
}

/// The same, with what clusters say; a file that has not changed since it was decoded `before` is not decoded again.
pub fn load_directories_after(
    directories: &[PathBuf],
    trust: Trust,
    before: Option<&Decoded>,
    clusters: (&[Cluster], &Holdings),
) -> Sourced {
    file::load_directories(directories, trust, before, clusters)
}

/// Loads exactly these files, and the `*.toml` of these directories.
pub fn load_paths(paths: &[PathBuf], trust: Trust) -> Sourced {
    file::load_paths(paths, trust, None, (&[], &Holdings::new()))
}

/// The same, as [`load_directories_after`].
pub fn load_paths_after(
    paths: &[PathBuf],
    trust: Trust,
    before: Option<&Decoded>,
    clusters: (&[Cluster], &Holdings),
) -> Sourced {
    file::load_paths(paths, trust, before, clusters)
}

/// Whether a directory's file of this name counts.
pub fn counts(name: &str) -> bool {
    file::counts(name)
}

/// The documents of texts that were loaded once ([`Sourced::kept`]), merged as they were then. Pure.
pub fn decode_kept(kept: &BTreeMap<String, Arc<str>>) -> Sourced {
    file::decode_kept(kept)
}

/// The documents of one text, as if a file of this name held it. Pure: for tests, fuzzing and policies that come from elsewhere.
pub fn decode_text(file: &str, text: &str) -> Sourced {
    file::decode_text(file, text)
}
