//! Host endpoints: which are in force, and selectors of nodewall's for the interfaces that some of them are.

use std::collections::{BTreeMap, BTreeSet};

use super::object::HostEndpoint;
use crate::policy::selector::Selector;
use crate::text::finding::{Code, Finding};
use crate::text::read::quoted;

/// What Felix gives workload interfaces for a name; it takes none of them for a host's.
const WORKLOAD_PREFIX: &str = "cali";

/// Interfaces of nodes, as selectors of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Scope {
    /// `nodes`.
    pub nodes: Selector,
    /// `interfaces` for what arrives.
    pub ingress: Selector,
    /// `interfaces` for what leaves: a host may always talk to its own pods, so for `*` theirs are none of these.
    pub egress: Selector,
}

/// The endpoints that are in force, on this node only if there is one, and findings about the others: of those for one interface the
/// first by name counts.
pub(super) fn in_force<'e>(endpoints: &'e [HostEndpoint], node: Option<&str>) -> (Vec<&'e HostEndpoint>, Vec<Finding>) {
    let mut findings = Vec::new();
    let is_here = |endpoint: &&HostEndpoint| node.is_none_or(|node| endpoint.node == node);
    let mut sorted: Vec<&HostEndpoint> = endpoints.iter().filter(is_here).collect();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    let mut taken: BTreeMap<(&str, Option<&str>), &HostEndpoint> = BTreeMap::new();
    for endpoint in sorted {
        let key = (endpoint.node.as_str(), endpoint.interface.as_deref());
        let name = quoted(&endpoint.name);
        if key.1.is_some_and(|interface| interface.starts_with(WORKLOAD_PREFIX)) {
            let message = format!(
                "HostEndpoint {name} is left out: it is never in force, as Calico takes {WORKLOAD_PREFIX}* for pods'"
            );
            findings.push(Finding::warning(Code::NotConverted, &endpoint.place, message));
            continue;
        }
        match taken.get(&key) {
            None => {
                taken.insert(key, endpoint);
            }
            Some(first) => {
                let message = format!(
                    "HostEndpoint {name} is left out: {} is for the same interface, and first by name",
                    quoted(&first.name)
                );
                findings.push(
                    Finding::warning(Code::NotConverted, &endpoint.place, message)
                        .related(&first.place, "this one counts"),
                );
            }
        }
    }
    (taken.into_values().collect(), findings)
}

/// The interfaces that these endpoints are, given all that are in force: one for a named interface goes before a `*`.
pub(super) fn scopes(selected: &[&HostEndpoint], in_force: &[&HostEndpoint]) -> Vec<Scope> {
    let mut nodes_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut without: BTreeMap<BTreeSet<&str>, BTreeSet<&str>> = BTreeMap::new();
    for endpoint in selected {
        let node = endpoint.node.as_str();
        match &endpoint.interface {
            Some(interface) => {
                nodes_of.entry(interface).or_default().insert(node);
            }
            None => {
                let others = in_force.iter().filter(|other| other.node == node);
                let named = others.filter_map(|other| other.interface.as_deref()).collect();
                without.entry(named).or_default().insert(node);
            }
        }
    }
    let mut named: BTreeMap<BTreeSet<&str>, BTreeSet<&str>> = BTreeMap::new();
    for (interface, nodes) in nodes_of {
        named.entry(nodes).or_default().insert(interface);
    }
    let named = named.iter().map(|(nodes, interfaces)| {
        let interfaces = among(interfaces);
        Scope { nodes: among(nodes), ingress: interfaces.clone(), egress: interfaces }
    });
    let every = without.iter().map(|(excluded, nodes)| {
        let excluded = (!excluded.is_empty()).then(|| not_among(excluded));
        let pods = Selector::NotEquals("role".to_owned(), "pod".to_owned());
        let egress = match &excluded {
            None => pods,
            Some(excluded) => Selector::And(vec![excluded.clone(), pods]),
        };
        Scope { nodes: among(nodes), ingress: excluded.unwrap_or(Selector::All), egress }
    });
    named.chain(every).collect()
}

/// The label `name` is one of these.
fn among(names: &BTreeSet<&str>) -> Selector {
    let key = "name".to_owned();
    match names.first() {
        Some(name) if names.len() == 1 => Selector::Equals(key, (*name).to_owned()),
        _ => Selector::In(key, names.iter().map(|name| (*name).to_owned()).collect()),
    }
}

fn not_among(names: &BTreeSet<&str>) -> Selector {
    Selector::NotIn("name".to_owned(), names.iter().map(|name| (*name).to_owned()).collect())
}
