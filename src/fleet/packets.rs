//! What a difference between two nodes is to packets: who may reach what on one and not on the other, as far as the documents that
//! explain it are in the API.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::api::Api;
use super::difference::{Difference, PolicyDifference};
use super::{Member, Report};
use crate::exposure::contrast::{Contrast, contrast};
use crate::exposure::sets;
use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;
use crate::net::node::ClusterNodes;
use crate::policy::effective::{Effective, EffectiveRule};
use crate::policy::model::{Mode, Stage};
use crate::policy::resolve::resolve;
use crate::policy::settings::NodeSettings;

/// What a difference is to packets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Compared {
    /// The node whose interfaces and addresses were taken.
    pub node: String,
    /// Packets that only the others let through (`first_allows`), or only these.
    pub contrasts: Vec<Contrast>,
    /// Policies that differ, and of which only hashes are known.
    pub unknown: Vec<String>,
    /// What is not counted, or was taken for granted.
    pub notes: Vec<String>,
}

/// Compares what `here` and `there` have in force, on the interfaces of one of the nodes here.
pub fn compare(
    difference: &Difference,
    (here, there): (&Report, &Report),
    (name, member): (&String, &Member),
    peers: &Arc<ClusterNodes>,
    api: &Api,
) -> Compared {
    let (known, unknown): (Vec<&PolicyDifference>, Vec<_>) =
        difference.policies.iter().partition(|policy| policy.is_known());
    let mut compared = Compared { node: name.clone(), ..Compared::default() };
    compared.unknown = unknown.iter().map(|policy| policy.name.clone()).collect();
    if known.is_empty() {
        return compared;
    }
    let differs = |name: &String| compared.unknown.contains(name);
    let of = |report: &Report| -> BTreeSet<String> {
        let in_api = |(name, hash): &(&String, &String)| api.is(name, hash) && !differs(name);
        report.policies.iter().filter(in_api).map(|(name, _)| name.clone()).collect()
    };
    let facts = facts(member, name, peers, api);
    let [first, second] = [there, here].map(|report| effective(&of(report), member, &facts, api));
    compared.notes = notes(&known, (here, there), (&first, &second), api);
    if facts.links.values().all(|link| link.addresses.is_empty()) {
        compared.notes.push("its packets are not known: no address of its interfaces is in its HostState".to_owned());
        return compared;
    }
    compared.contrasts = contrast(&first, &second, &facts, &sets(&api.policy));
    if compared.contrasts.is_empty() {
        compared.notes.push("no packet of a new flow to or from the node meets another verdict".to_owned());
    }
    compared
}

/// The node as its HostState has it.
fn facts(member: &Member, name: &str, peers: &Arc<ClusterNodes>, api: &Api) -> Facts {
    let interfaces = member.report.iter().flat_map(|report| &report.interfaces);
    let link = |(index, interface): (u32, &super::Interface)| {
        let mut link = Link::named(index, InterfaceName::new(&interface.name)?);
        link.addresses = interface.addresses.iter().copied().collect();
        Some((index, link))
    };
    Facts {
        node: name.to_owned(),
        labels: member.labels_called(name),
        links: (2..).zip(interfaces).filter_map(link).collect(),
        nodes: Arc::new([(api.cluster.clone(), Arc::clone(peers))].into()),
        ..Facts::default()
    }
}

/// These policies of the API on a node, whose roles are those that it says.
fn effective(names: &BTreeSet<String>, member: &Member, facts: &Facts, api: &Api) -> Effective {
    let settings = NodeSettings { mode: Mode::Enforce, ..api.settings.clone() };
    let (mut effective, _) = resolve(&api.only(names), &settings, facts);
    let said = member.report.iter().flat_map(|report| &report.interfaces);
    for said in said {
        let named = |interface: &&mut crate::policy::effective::Interface| interface.name.as_str() == said.name;
        let Some(interface) = effective.interfaces.iter_mut().find(named) else { continue };
        interface.role = said.role;
        interface.labels.insert("role".to_owned(), said.role.name().to_owned());
        for (label, value) in [("rail", &said.rail), ("coverage", &said.coverage)] {
            match value {
                Some(value) => drop(interface.labels.insert(label.to_owned(), value.clone())),
                None => drop(interface.labels.remove(label)),
            }
        }
    }
    effective
}

/// What the answer leaves out.
fn notes(
    known: &[&PolicyDifference],
    (here, there): (&Report, &Report),
    (first, second): (&Effective, &Effective),
    api: &Api,
) -> Vec<String> {
    let mut notes = Vec::new();
    let both = here.policies.iter().filter(|(name, hash)| there.policies.get(*name) == Some(*hash));
    let left_out: Vec<&str> = both.filter(|(name, hash)| !api.is(name, hash)).map(|(name, _)| name.as_str()).collect();
    if !left_out.is_empty() {
        notes.push(format!("left out, as the API does not have them as they are in force: {}", left_out.join(", ")));
    }
    let other = |ours: &str, theirs: &Option<String>| theirs.as_deref().is_some_and(|theirs| theirs != ours);
    if other(&api.settings_mean.defaults, &here.defaults) || other(&api.settings_mean.defaults, &there.defaults) {
        notes.push("defaults are taken to be those of the settings here, and the nodes have others".to_owned());
    }
    if other(&api.settings_mean.failsafe, &here.failsafe) || other(&api.settings_mean.failsafe, &there.failsafe) {
        notes.push("failsafe is taken to be that of the settings here, and the nodes have another".to_owned());
    }
    let policies = || {
        first.tiers.iter().chain(&second.tiers).flat_map(|tier| tier.policies.iter().map(move |policy| (tier, policy)))
    };
    let mut add = |what: &str, holds: &dyn Fn(&crate::policy::effective::EffectivePolicy) -> bool| {
        let concerned = |difference: &&&PolicyDifference| {
            policies()
                .any(|(tier, policy)| difference.name == format!("{}/{}", tier.name, policy.name) && holds(policy))
        };
        let names: Vec<&str> = known.iter().filter(concerned).map(|difference| difference.name.as_str()).collect();
        if !names.is_empty() {
            notes.push(format!("{what} not compared: {}", names.join(", ")));
        }
    };
    let any = |policy: &crate::policy::effective::EffectivePolicy, holds: fn(&EffectiveRule) -> bool| {
        policy.ingress.iter().chain(&policy.egress).flatten().any(holds)
    };
    add("forwarded packets are", &|policy| policy.stage == Stage::Forward);
    add("what local processes may is", &|policy| any(policy, |rule| rule.process.is_some()));
    add("limits are", &|policy| any(policy, |rule| rule.limit.is_some()));
    let missing = known.iter().filter(|difference| {
        !policies().any(|(tier, policy)| difference.name == format!("{}/{}", tier.name, policy.name))
    });
    let missing: Vec<&str> = missing.map(|difference| difference.name.as_str()).collect();
    if !missing.is_empty() {
        notes.push(format!("the API's version has errors: {}", missing.join(", ")));
    }
    notes
}
