//! What is held of Calico's objects in a cluster, and the documents that they come to on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
            stored: before.calico.clone(),
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

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.stored.len()
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

    /// Drops the objects of a kind that are not among these; whether there were any.
    pub(super) fn retain(&mut self, kind: CalicoKind, names: &BTreeSet<String>) -> bool {
        let before = self.stored.len();
        self.stored.retain(|(held, name), _| *held != kind || names.contains(name));
        let changed = self.stored.len() != before;
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
        holding.calico = self.stored.clone();
    }

    /// Which objects have a newest version that cannot be honoured as a whole.
    pub(super) fn invalid(&self) -> impl Iterator<Item = String> {
        self.bad.iter().map(|(kind, name)| format!("{}/{name}", kind.name()))
    }
}
