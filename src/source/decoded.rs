//! Files as they were decoded last: what did not change need not be decoded again, and of what did, whether it is only the members
//! of sets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::document::{Documents, decode};
use super::kube::name;
use super::object;
use crate::policy::model::NamedSet;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::tree::Source;
use crate::textfile::{self, Trust};

/// The files of a load, by path.
pub type Decoded = BTreeMap<PathBuf, Arc<DecodedFile>>;

/// A file and its documents.
#[derive(Clone, PartialEq, Debug)]
pub struct DecodedFile {
    /// Its text.
    pub text: Arc<str>,
    pub(super) documents: Documents,
    pub(super) findings: Vec<Finding>,
}

impl DecodedFile {
    pub(super) fn new(name: Arc<str>, text: impl Into<Arc<str>>) -> Self {
        let source = Source::new(name, text);
        let (documents, findings) = decode(&source);
        Self { text: source.text, documents, findings }
    }

    /// An object of a cluster, as `kube::item` writes it.
    pub(super) fn of_object(called: &str, text: Arc<str>) -> Self {
        let read = serde_json::from_str(&text)
            .map_err(|error| vec![Finding::error(Code::Syntax, &Place::file(called), format!("not JSON: {error}"))])
            .and_then(|json| object::read_called(called, &json));
        match read {
            Ok(mut object) => {
                if let Some((cluster, _, _)) = name::parse(called) {
                    object.documents.written_in(cluster);
                }
                Self { text, documents: object.documents, findings: object.findings }
            }
            Err(findings) => Self { text, documents: Documents::default(), findings },
        }
    }

    /// The sets that hold something else in `newer`, if the two files differ in nothing else and there is nothing to say about either.
    pub fn members_changed(&self, newer: &Self) -> Option<BTreeMap<String, NamedSet>> {
        let Documents { interfaces, sets: _, services, tiers, policies, expected_sets, broken } = &self.documents;
        let (old, new) = (&self.documents, &newer.documents);
        let silent = self.findings.is_empty() && newer.findings.is_empty();
        let same = *interfaces == new.interfaces
            && *services == new.services
            && *tiers == new.tiers
            && *policies == new.policies
            && *expected_sets == new.expected_sets
            && *broken == new.broken;
        if !(silent && same) || old.sets.len() != new.sets.len() {
            return None;
        }
        let mut changed = BTreeMap::new();
        for (old, new) in old.sets.iter().zip(&new.sets) {
            if (&old.name, &old.labels) != (&new.name, &new.labels) {
                return None;
            }
            if old.cidrs != new.cidrs {
                changed.insert(new.name.clone(), new.clone());
            }
        }
        Some(changed)
    }
}

/// Reads one file again; `None` where it cannot be read or is not trusted, which is for a load of all files to say.
pub fn reread(path: &Path, trust: Trust) -> Option<DecodedFile> {
    if trust == Trust::Required {
        textfile::trusted_directory(path.parent()?).ok()?;
    }
    let text = textfile::read(path, trust).ok()?;
    Some(DecodedFile::new(textfile::name(path), text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(text: &str) -> DecodedFile {
        DecodedFile::new("10-sets.toml".into(), text)
    }

    #[test]
    fn only_members_of_sets_may_differ() {
        let before = file("[[set]]\nname = \"a\"\ncidrs = [\"10.0.0.1\"]\n[[set]]\nname = \"b\"\ncidrs = []\n");
        let changed = |text: &str| before.members_changed(&file(text)).map(|sets| sets.into_keys().collect::<Vec<_>>());
        let a = "[[set]]\nname = \"a\"\ncidrs = [\"10.0.0.1\",\n  \"10.0.0.2\"]\n";
        let b = "[[set]]\nname = \"b\"\ncidrs = []\n";
        assert_eq!(changed(&format!("{a}{b}")), Some(vec!["a".to_owned()]));
        assert_eq!(changed(&format!("# said\n{}", before.text)), Some(Vec::new()));
        for otherwise in [
            a.to_owned(),
            format!("{b}{a}"),
            format!("{a}{b}labels = {{ x = \"y\" }}\n"),
            format!("{a}{b}[[service]]\nname = \"s\"\nports = [\"tcp/1\"]\n"),
            format!("{a}{b}oops = 1\n"),
            format!("{a}{b}["),
        ] {
            assert_eq!(changed(&otherwise), None, "{otherwise}");
        }
    }
}
