//! Who is meant by `from` and `to`: the addresses of an entity, and the name that they have in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::model::{Entity, NamedSet};
use crate::net::addr::AddrSet;
use crate::net::facts::Facts;
use crate::net::node::Nodes;
use crate::text::place::Place;

/// The kernel name of the set of this host's own addresses. Names of documents have no '/', so it is nobody else's.
const LOCAL_SET: &str = "host/local";
/// Longer set names than this are cut and get a hash: nf_tables takes 255 bytes, people fewer.
const LONGEST_SET_NAME: usize = 80;

/// What there is to look up entities in.
pub(super) struct Book<'a> {
    documents: &'a BTreeMap<String, NamedSet>,
    /// What is in the sets.
    contents: BTreeMap<&'a str, AddrSet>,
    /// This host's own addresses.
    local: AddrSet,
    nodes: Arc<Nodes>,
}

/// Addresses of an entity, and the words that name them in the kernel if they come from sets.
pub(super) struct Resolved {
    /// The addresses.
    pub(super) addresses: AddrSet,
    /// Empty when everything was written out as prefixes; never depends on the contents of a set.
    names: BTreeSet<String>,
}

impl<'a> Book<'a> {
    /// All sets, and the addresses of the host.
    pub(super) fn new(documents: &'a BTreeMap<String, NamedSet>, facts: &Facts) -> Self {
        Self::of((documents, documents), &documents.keys().map(String::as_str).collect(), facts)
    }

    /// The same with the contents of these sets only, each as it is in the first of the two that has it.
    fn of(
        (changed, documents): (&BTreeMap<String, NamedSet>, &'a BTreeMap<String, NamedSet>),
        names: &BTreeSet<&'a str>,
        facts: &Facts,
    ) -> Self {
        let set = |name: &'a str| Some((name, changed.get(name).or_else(|| documents.get(name))?));
        let contents = names.iter().filter_map(|name| set(name));
        let contents = contents.map(|(name, set)| (name, set.cidrs.iter().copied().collect())).collect();
        Self { documents, contents, local: facts.local_addresses(), nodes: Arc::clone(&facts.nodes) }
    }

    /// The addresses of an entity; `unknown` is told of each set that there is not.
    pub(super) fn look_up(&self, entity: &Entity, unknown: &mut dyn FnMut(&str, &Place)) -> Resolved {
        let mut addresses: AddrSet = entity.cidrs.iter().copied().collect();
        let mut names = BTreeSet::new();
        if !entity.names_addresses() {
            addresses = AddrSet::full();
        }
        for (name, place) in &entity.sets {
            match self.contents.get(name.as_str()) {
                Some(contents) => {
                    addresses = addresses.union(contents);
                    names.insert(name.clone());
                }
                None => unknown(name, place),
            }
        }
        if let Some(selector) = &entity.select {
            for set in self.documents.values().filter(|set| selector.matches(&set.labels)) {
                if let Some(contents) = self.contents.get(set.name.as_str()) {
                    addresses = addresses.union(contents);
                }
            }
            names.insert(format!("select/{}", digest(&format!("{selector:?}"))));
        }
        if let Some(nodes) = &entity.nodes {
            addresses = addresses.union(&nodes.addresses(&self.nodes));
            names.insert(format!("nodes/{}", digest(&format!("{nodes:?}"))));
        }
        if entity.local {
            addresses = addresses.union(&self.local);
            names.insert(LOCAL_SET.to_owned());
        }
        if !names.is_empty() && !entity.cidrs.is_empty() {
            names.insert(format!("cidrs/{}", digest(&format!("{:?}", entity.cidrs))));
        }
        let Some(except) = &entity.except else { return Resolved { addresses, names } };
        let taken = self.look_up(except, unknown);
        addresses = addresses.difference(&taken.addresses);
        if !names.is_empty() || !taken.names.is_empty() {
            // The contents of a set on either side may change, so the difference is a set of its own.
            let word = |names: &BTreeSet<String>, written: &Entity| match names.is_empty() {
                false => names.iter().cloned().collect::<Vec<_>>().join("/"),
                true if written.cidrs.is_empty() => "any".to_owned(),
                true => format!("cidrs/{}", digest(&format!("{:?}", written.cidrs))),
            };
            names = [format!("{}/except/{}", word(&names, entity), word(&taken.names, except))].into();
        }
        Resolved { addresses, names }
    }
}

impl Resolved {
    /// The name of a set in the kernel, after what it holds: nft(8) identifiers begin with a letter. `None` where everything was
    /// written out.
    pub(super) fn kernel_name(&self) -> Option<String> {
        if self.names.is_empty() {
            return None;
        }
        let mut name = self.names.iter().cloned().collect::<Vec<_>>().join("/");
        if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
            name.insert_str(0, "set/");
        }
        if name.len() > LONGEST_SET_NAME {
            let hash = digest(&name);
            name.truncate(LONGEST_SET_NAME - hash.len() - 1);
            name.push('/');
            name.push_str(&hash);
        }
        Some(name)
    }
}

/// Entities whose addresses come from sets.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Named {
    /// By the name that they have in the kernel.
    entities: BTreeMap<String, Entity>,
    /// Which of them have a hand in each set.
    uses: BTreeMap<String, Vec<String>>,
}

impl Named {
    pub(super) fn new(entities: BTreeMap<String, Entity>, sets: &BTreeMap<String, NamedSet>) -> Self {
        let mut uses: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, entity) in &entities {
            for set in mentioned(entity, sets) {
                uses.entry(set.to_owned()).or_default().push(name.clone());
            }
        }
        Self { entities, uses }
    }

    /// The addresses, before and after, of those that have one of the changed sets, by kernel name. The changed sets have the labels
    /// that they have among all `sets`.
    pub fn of_changed(
        &self,
        sets: &BTreeMap<String, NamedSet>,
        changed: &BTreeMap<String, NamedSet>,
        facts: &Facts,
    ) -> BTreeMap<String, (AddrSet, AddrSet)> {
        let names: BTreeSet<&String> = changed.keys().filter_map(|set| self.uses.get(set)).flatten().collect();
        let concerned: Vec<(&String, &Entity)> =
            names.into_iter().filter_map(|name| self.entities.get_key_value(name)).collect();
        let names: BTreeSet<&str> = concerned.iter().flat_map(|(_, entity)| mentioned(entity, sets)).collect();
        let (before, after) = (Book::of((sets, sets), &names, facts), Book::of((changed, sets), &names, facts));
        // Whoever named a set that there is not was told so when the whole policy was looked up.
        let addresses = |book: &Book<'_>, entity: &Entity| book.look_up(entity, &mut |_, _| {}).addresses;
        let both = |entity: &Entity| (addresses(&before, entity), addresses(&after, entity));
        concerned.into_iter().map(|(name, entity)| (name.clone(), both(entity))).collect()
    }
}

/// The sets that an entity is made of.
fn mentioned<'a>(entity: &'a Entity, sets: &'a BTreeMap<String, NamedSet>) -> BTreeSet<&'a str> {
    let mut names: BTreeSet<&str> = entity.sets.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(selector) = &entity.select {
        names.extend(sets.values().filter(|set| selector.matches(&set.labels)).map(|set| set.name.as_str()));
    }
    if let Some(except) = &entity.except {
        names.extend(mentioned(except, sets));
    }
    names
}

/// Eight hexadecimal digits that stand for a text.
fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
