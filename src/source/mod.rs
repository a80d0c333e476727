//! Where policy comes from: TOML files in three directories.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::policy::model::Policy;
use crate::text::finding::Finding;

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
}

/// Whether files must be owned by root and not writable by others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// They must: what the daemon and `apply` enforce.
    Required,
    /// Any readable file will do: `check` and `render`.
    Anyone,
}

/// Loads `*.toml` of directories, lowest precedence first (`policy.md` section 6): a file in a later directory replaces
/// the one of the same name in an earlier one, and a link to /dev/null masks it. A directory that does not exist is empty.
pub fn load_directories(directories: &[PathBuf], trust: Trust) -> Sourced {
    let _ = (directories, trust);
    todo!()
}

/// Loads exactly these files, and the `*.toml` of these directories.
pub fn load_paths(paths: &[PathBuf], trust: Trust) -> Sourced {
    let _ = (paths, trust);
    todo!()
}
