//! What is held of Calico's objects in a cluster, and the documents that they come to on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Holding;
use super::item::{Item, decode};
use crate::source::calico::{self, CalicoKind, PREFIX, Stored, Versions};
use crate::source::decoded::DecodedFile;
use crate::source::object::Kind;
use crate::text::finding::Finding;

/// Whether a document of this name comes from Calico's objects.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Calico's objects of a cluster, and the node for which they are looked at.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OnNode {
    /// What it is called.
    pub node: String,
    /// They.
    pub stored: Stored,
}

impl OnNode {
    /// What there is to say of them.
    pub(super) fn findings(&self, cluster: &str) -> Vec<Finding> {
        calico::in_place(cluster, &self.stored, &self.node).findings
    }
}

/// The same on disk.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptCalico {
    cluster: String,
    node: String,
    objects: BTreeMap<String, KeptVersions>,
}

/// The versions of an object on disk.
#[derive(Serialize, Deserialize)]
struct KeptVersions {
    newest: String,
    /// Whether that is good.
    is_good: bool,
    /// The last good one, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<String>,
}

impl KeptCalico {
    pub(super) fn of(cluster: &str, held: &OnNode) -> Self {
        let object = |((kind, name), versions): (&(CalicoKind, String), &Versions)| {
            let Versions { newest, good } = versions;
            let is_good = good.as_ref() == Some(newest);
            let before = good.as_ref().filter(|_| !is_good).map(|text| text.to_string());
            (format!("{}/{name}", kind.name()), KeptVersions { newest: newest.to_string(), is_good, before })
        };
        Self { cluster: cluster.to_owned(), node: held.node.clone(), objects: held.stored.iter().map(object).collect() }
    }

    /// The cluster and what was of it; the error is what is called like no object of Calico's.
    pub(super) fn restore(self) -> Result<(String, OnNode), String> {
        let mut held = OnNode { node: self.node, stored: Stored::new() };
        for (called, KeptVersions { newest, is_good, before }) in self.objects {
            let key =
                called.split_once('/').and_then(|(kind, name)| Some((CalicoKind::by_name(kind)?, name.to_owned())));
            let Some(key) = key else { return Err(called) };
            let newest: Arc<str> = newest.into();
            let good = if is_good { Some(Arc::clone(&newest)) } else { before.map(Arc::from) };
            held.stored.insert(key, Versions { newest, good });
        }
        Ok((self.cluster, held))
    }
}

/// Calico's objects of a cluster that is asked for them.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Calico {
    cluster: String,
    node: String,
    stored: Stored,
    /// Whether the rest is of other objects than these.
    stale: bool,
    documents: BTreeMap<(Kind, String), Arc<DecodedFile>>,
    findings: Vec<Finding>,
    bad: BTreeSet<(CalicoKind, String)>,
}

impl Calico {
    /// What was held of a cluster when it was last heard of, on the node that is called so.
    pub(super) fn new(cluster: &str, node: &str, before: &Holding) -> Self {
        let documents = before.objects.iter().filter(|((_, name), _)| is_ours(name));
        let mut calico = Self {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
            stored: before.calico.as_ref().map(|held| held.stored.clone()).unwrap_or_default(),
            stale: true,
            documents: documents.map(|(key, file)| (key.clone(), Arc::clone(file))).collect(),
            findings: Vec::new(),
            bad: BTreeSet::new(),
        };
        calico.refresh();
        calico
    }

    /// Whether there is an object of a kind.
    pub(super) fn has(&self, kind: CalicoKind) -> bool {
        self.stored.keys().any(|(held, _)| *held == kind)
    }

    /// How many documents the objects come to.
    pub(super) fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Takes in all objects of a kind; whether they are others than before.
    pub(super) fn listed(&mut self, kind: CalicoKind, items: Vec<Item>) -> bool {
        let names: BTreeSet<String> = items.iter().map(|item| item.metadata.name.clone()).collect();
        let before = self.stored.len();
        self.stored.retain(|(held, name), _| *held != kind || names.contains(name));
        let mut changed = self.stored.len() != before;
        self.stale |= changed;
        for item in items {
            changed |= self.put(kind, item);
        }
        changed
    }

    /// Takes the newest version of an object in; whether that is another one.
    pub(super) fn put(&mut self, kind: CalicoKind, item: Item) -> bool {
        let name = item.metadata.name.clone();
        let newest = item.calico_text(kind);
        let held = self.stored.entry((kind, name));
        let mut changed = false;
        let versions = held.or_insert_with(|| {
            changed = true;
            Versions { newest: Arc::clone(&newest), good: None }
        });
        changed |= versions.newest != newest;
        versions.newest = newest;
        self.stale |= changed;
        changed
    }

    /// Drops an object; whether there was one.
    pub(super) fn remove(&mut self, kind: CalicoKind, name: &str) -> bool {
        let changed = self.stored.remove(&(kind, name.to_owned())).is_some();
        self.stale |= changed;
        changed
    }

    /// Makes the documents again where the objects are others: once for many changes, as it is about all of them.
    pub(super) fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let found = calico::in_place(&self.cluster, &self.stored, &self.node);
        for (key, versions) in &mut self.stored {
            if !found.bad.contains(key) {
                versions.good = Some(Arc::clone(&versions.newest));
            }
        }
        if let Some(documents) = found.documents {
            let mut before = std::mem::take(&mut self.documents);
            let file = |((kind, name), text): ((Kind, String), Arc<str>)| {
                let key = (kind, name);
                // What did not change is the same one, so that nobody compares it again.
                let file = match before.remove(&key).filter(|file| file.text == text) {
                    Some(file) => file,
                    None => Arc::new(decode(&self.cluster, key.0, &key.1, text)),
                };
                (key, file)
            };
            self.documents = documents.into_iter().map(file).collect();
        }
        self.findings = found.findings;
        self.bad = found.bad;
    }

    /// Adds objects, documents and findings to what is held.
    pub(super) fn add_to(&self, holding: &mut Holding) {
        let documents = self.documents.iter().map(|(key, file)| (key.clone(), Arc::clone(file)));
        holding.objects.extend(documents);
        holding.findings.extend(self.findings.iter().cloned());
        holding.calico = Some(OnNode { node: self.node.clone(), stored: self.stored.clone() });
    }

    /// Which objects have a newest version that cannot be honoured as a whole.
    pub(super) fn invalid(&self) -> impl Iterator<Item = String> {
        self.bad.iter().map(|(kind, name)| format!("{}/{name}", kind.name()))
    }
}
