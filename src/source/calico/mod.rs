//! Calico's policies for hosts as documents of ours, with the meaning that Calico documents for host endpoints. Pure.
//!
//! Each policy is resolved against the host endpoints that were read: where it selects them, it becomes a policy for these nodes and
//! interfaces. What cannot be said is a finding; where leaving it out would allow more, an error.

mod endpoint;
mod in_place;
mod object;
mod rule;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use self::endpoint::Scope;
pub use self::in_place::{InPlace, Kind as CalicoKind, PREFIX, Stored, Versions, in_place};
use self::object::{Action, Failsafe, HostEndpoint, Objects, Pods, Policy, Rule, Stages};
use self::rule::{KIND_LABEL, SetNames, World};
pub(in crate::source) use self::rule::{nets, ports, protocol};
use super::object::Kind;
use super::object::convert::{self, Document};
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::policy::model::Stage;
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::read::{Reader, quoted};
use crate::text::tree::Source;
use crate::text::yaml;

/// The longest name of a document.
const LONGEST_NAME: usize = 63;

/// The profile that allows everything.
const ALLOWING_PROFILE: &str = "projectcalico-default-allow";

/// Felix's failsafe ports (felix/config/config_params.go).
const TCP_FAILSAFE: [u16; 7] = [179, 2379, 2380, 5473, 6443, 6666, 6667];

/// The documents that mean what these texts of Calico's objects mean together. With an error among the findings there are none.
pub fn convert(sources: &[Source]) -> (Vec<Document>, Vec<Finding>) {
    let mut objects = Objects::default();
    let mut findings = Vec::new();
    for source in sources {
        let (nodes, said) = yaml::parse(source);
        findings.extend(said);
        let mut reader = Reader::new(source);
        for node in &nodes {
            object::read(&mut reader, node, &mut objects);
        }
        let errors = reader.errors();
        let said = reader.into_findings();
        if errors > 0 && !has_errors(&said) {
            // Of very many findings only the first are kept, and what was refused must not look converted.
            let message = format!("{errors} errors come after more findings than are shown");
            let help = "convert what is about hosts only: globalnetworkpolicies,globalnetworksets,hostendpoints,tiers";
            findings.push(Finding::error(Code::NotConverted, &Place::file(source.file.clone()), message).help(help));
        }
        findings.extend(said);
    }
    findings.extend(twice(&objects));
    if has_errors(&findings) {
        return (Vec::new(), findings);
    }
    let (documents, said) = documents(&objects, Manner::TEXT);
    findings.extend(said);
    findings.extend(refused(&documents));
    if has_errors(&findings) { (Vec::new(), findings) } else { (documents, findings) }
}

/// What we write has to load: what would not.
fn refused(documents: &[Document]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (document, object) in documents.iter().zip(convert::to_objects(documents)) {
        let said = super::object::read(&object).map_or_else(|said| said, |read| read.findings);
        for finding in said.iter().filter(|finding| finding.severity == Severity::Error) {
            let message =
                format!("{} {} would be refused: {}", document.kind.name(), quoted(&document.name), finding.message);
            findings.push(Finding::error(Code::NotConverted, &document.place, message).help(finding.help.clone()));
        }
    }
    findings
}

/// What documents are called, and how rules mean sets.
#[derive(Clone, Copy)]
struct Manner<'a> {
    /// What names of tiers, and of policies that are none of Calico's, begin with.
    prefix: &'static str,
    /// What names of policies and sets begin with.
    names: &'static str,
    /// The order of the first tier: behind those that are built in.
    first_order: i64,
    /// The node for which objects are followed where they are; `None`: they are converted once, for all nodes, into what people go on
    /// with.
    in_place: Option<&'a str>,
}

impl<'a> Manner<'a> {
    const TEXT: Self = Self { prefix: "calico-", names: "", first_order: 20_000, in_place: None };

    /// Behind what was converted once.
    const fn in_place(node: &'a str) -> Self {
        Self { prefix: PREFIX, names: PREFIX, first_order: 30_000, in_place: Some(node) }
    }
}

fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// Objects that were read twice: in both of Calico's API versions, say.
fn twice(objects: &Objects) -> Vec<Finding> {
    let policies = objects.policies.iter().map(|policy| {
        let kind = if policy.staged { "StagedGlobalNetworkPolicy" } else { "GlobalNetworkPolicy" };
        (kind, policy.name.as_str(), &policy.place)
    });
    let sets = objects.sets.iter().map(|set| ("GlobalNetworkSet", set.name.as_str(), &set.place));
    let endpoints = objects.endpoints.iter().map(|endpoint| ("HostEndpoint", endpoint.name.as_str(), &endpoint.place));
    let tiers = objects.tiers.iter().map(|tier| ("Tier", tier.name.as_str(), &tier.place));
    let failsafes = objects.failsafes.iter().map(|failsafes| ("FelixConfiguration", "default", &failsafes.place));
    let mut first: BTreeMap<(&str, &str), &Place> = BTreeMap::new();
    let mut findings = Vec::new();
    for (kind, name, place) in policies.chain(sets).chain(endpoints).chain(tiers).chain(failsafes) {
        match first.get(&(kind, name)) {
            Some(earlier) => findings.push(
                Finding::error(Code::DuplicateName, place, format!("{kind} {} is there twice", quoted(name)))
                    .related(earlier, "the first")
                    .help("leave one of them out"),
            ),
            None => drop(first.insert((kind, name), place)),
        }
    }
    findings
}

/// A tier while its policies are collected.
struct Tier {
    name: String,
    deny: bool,
    place: Place,
    policies: Vec<Draft>,
}

/// A policy without its place in the tier.
struct Draft {
    name: String,
    stage: Stage,
    order: Option<f64>,
    fields: Map<String, Json>,
    place: Place,
}

/// What a policy says, apart from where.
struct Said<'r> {
    name: String,
    order: Option<f64>,
    stage: Stage,
    staged: bool,
    place: &'r Place,
    ingress: Option<Vec<Json>>,
    egress: Option<Vec<Json>>,
}

/// Names that documents have.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    /// The name, cut and numbered so that no other has it.
    fn unique(&mut self, name: &str) -> String {
        let suffixes = std::iter::once(String::new()).chain((2_u64..).map(|number| format!("-{number}")));
        let mut cut = name.to_owned();
        for suffix in suffixes {
            let least = name.char_indices().map(|(at, _)| at).take_while(|at| at + suffix.len() <= LONGEST_NAME).last();
            let end = if name.len() + suffix.len() <= LONGEST_NAME { name.len() } else { least.unwrap_or(0) };
            cut = format!("{}{suffix}", name.get(..end).unwrap_or_default());
            if self.0.insert(cut.clone()) {
                break;
            }
        }
        cut
    }
}

fn documents(objects: &Objects, manner: Manner<'_>) -> (Vec<Document>, Vec<Finding>) {
    let (in_force, findings) = endpoint::in_force(&objects.endpoints, manner.in_place);
    let set_names = set_names(objects, manner);
    let mut world = World::new(objects, manner.in_place.map(|_| &set_names), findings);
    if let (true, Some(policy)) = (in_force.is_empty(), objects.policies.first()) {
        let message = "there is no HostEndpoint among these, so nothing says for which interfaces the policies are";
        let help = "add the output of kubectl get hostendpoints -o yaml";
        world.findings.push(Finding::error(Code::NotConverted, &policy.place, message).help(help));
        return (Vec::new(), world.findings);
    }
    world.findings.extend(differences(&in_force));
    let (mut names, mut tier_names) = (Names::default(), Names::default());
    let every = endpoint::scopes(&in_force, &in_force);
    let with_names: Vec<&HostEndpoint> =
        in_force.iter().copied().filter(|endpoint| endpoint.interface.is_some()).collect();
    let with_names = endpoint::scopes(&with_names, &in_force);
    let failsafe = FailsafePorts::of(objects, tier_names.unique(&format!("{}failsafe", manner.prefix)));
    let mut tiers: Vec<Tier> =
        in_force.first().map(|first| failsafe.tier(&every, &first.place, &mut names)).into_iter().collect();
    let profiles_tier = tier_names.unique(&format!("{}profiles", manner.prefix));
    for group in by_tier(objects, &mut world.findings) {
        let late = tier_names.unique(&format!("{}{}", manner.prefix, group.name));
        let early = tier_names.unique(&format!("{late}-early"));
        let [mut early, late] = tier(&group, [early, late], &in_force, &mut world, &mut names, manner);
        for (stage, scopes) in [(Stage::Prednat, &every), (Stage::Untracked, &with_names)] {
            if early.policies.iter().any(|policy| policy.stage == stage) {
                failsafe.ahead(stage, scopes, &mut early, &mut names);
            }
        }
        tiers.extend([early, late]);
    }
    tiers.extend(profiles(profiles_tier, &in_force, &mut world, &mut names, manner));
    let World { named, guarded, findings, .. } = world;
    let mut documents = sets(objects, &set_names, &named, guarded, manner);
    let mut policies = Vec::new();
    for (index, tier) in (0..).zip(tiers.into_iter().filter(|tier| !tier.policies.is_empty())) {
        let fields =
            json!({ "order": manner.first_order + 10 * index, "default": if tier.deny { "deny" } else { "pass" } });
        let orders = orders(&tier.policies);
        for (draft, order) in tier.policies.into_iter().zip(orders) {
            let mut fields = Map::from_iter([
                ("tier".to_owned(), Json::from(tier.name.clone())),
                ("order".to_owned(), order.into()),
            ]);
            fields.extend(draft.fields);
            if manner.in_place.is_some() {
                // All of it is for one node, whatever that is called by its label.
                fields.remove("nodes");
            }
            policies.push(Document { kind: Kind::HostPolicy, name: draft.name, fields, place: draft.place });
        }
        documents.push(document(Kind::HostTier, tier.name, fields, tier.place));
    }
    documents.extend(policies);
    (documents, findings)
}

fn document(kind: Kind, name: String, fields: Json, place: Place) -> Document {
    let fields = if let Json::Object(fields) = fields { fields } else { Map::new() };
    Document { kind, name, fields, place }
}

/// Where nodewall and Calico differ whatever the policies say.
fn differences(in_force: &[&HostEndpoint]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(first) = in_force.first() {
        let message = "on interfaces of host endpoints Calico drops IPv6 neighbour discovery unless a policy allows it; nodewall never does";
        let help = "what nodewall's essentials and its own [failsafe] let through, it lets through before these policies: see nodewall-policy(5)";
        findings.push(Finding::warning(Code::NotConverted, &first.place, message).help(help));
    }
    if let Some(every) = in_force.iter().find(|endpoint| endpoint.interface.is_none()) {
        let message =
            "Calico's policies for interfaceName \"*\" hold on loopback as well; nodewall never filters loopback";
        findings.push(Finding::warning(Code::NotConverted, &every.place, message));
    }
    findings
}

/// What the sets of objects are called.
fn set_names(objects: &Objects, manner: Manner<'_>) -> SetNames {
    let mut names = Names::default();
    let mut called = |name: &str, kind: &str| names.unique(&format!("{}{kind}{name}", manner.names));
    let sets = objects.sets.iter().map(|set| (set.name.clone(), called(&set.name, ""))).collect();
    let endpoints =
        objects.endpoints.iter().map(|endpoint| (endpoint.name.clone(), called(&endpoint.name, "host-"))).collect();
    SetNames { sets, endpoints }
}

/// The sets that rules mean: those of Calico, and the addresses of host endpoints that a rule means.
fn sets(
    objects: &Objects,
    names: &SetNames,
    named: &BTreeSet<&str>,
    guarded: bool,
    manner: Manner<'_>,
) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut add =
        |name: Option<&String>, labels: &BTreeMap<String, String>, nets: &[ipnet::IpNet], kind: &str, place: &Place| {
            let Some(name) = name else { return };
            let mut labels = labels.clone();
            if guarded {
                labels.insert(KIND_LABEL.to_owned(), kind.to_owned());
            }
            let mut fields = Map::new();
            if !labels.is_empty() && manner.in_place.is_none() {
                fields.insert("labels".to_owned(), json!(labels));
            }
            fields.insert("cidrs".to_owned(), rule::nets(nets));
            let (name, place) = (name.clone(), place.clone());
            documents.push(Document { kind: Kind::HostNetworkSet, name, fields, place });
        };
    for set in &objects.sets {
        add(names.sets.get(&set.name), &set.labels, &set.nets, "GlobalNetworkSet", &set.place);
    }
    for endpoint in objects.endpoints.iter().filter(|endpoint| named.contains(endpoint.name.as_str())) {
        let name = names.endpoints.get(&endpoint.name);
        add(name, &endpoint.labels, &endpoint.addresses, "HostEndpoint", &endpoint.place);
    }
    documents
}

/// The orders of the policies of a tier: those that they have, where these are whole numbers and all differ, else others in their order.
fn orders(policies: &[Draft]) -> Vec<i64> {
    let whole = |order: f64| (order.fract() == 0.0 && order.abs() < 1e15).then_some(order as i64);
    let own: Option<Vec<i64>> = policies.iter().map(|policy| policy.order.and_then(whole)).collect();
    match own {
        Some(own) if own.is_sorted_by(|one, other| one < other) => own,
        _ => (1..).zip(policies).map(|(number, _)| 10 * number).collect(),
    }
}

/// What has no order goes last; names decide between equals.
fn before(one: (Option<f64>, &str), other: (Option<f64>, &str)) -> Ordering {
    let order = |order: Option<f64>| order.unwrap_or(f64::INFINITY);
    order(one.0).total_cmp(&order(other.0)).then_with(|| one.1.cmp(other.1))
}

/// A tier of Calico's with its policies, both in order.
struct Group<'o> {
    name: &'o str,
    order: Option<f64>,
    deny: bool,
    place: &'o Place,
    policies: Vec<&'o Policy>,
}

fn by_tier<'o>(objects: &'o Objects, findings: &mut Vec<Finding>) -> Vec<Group<'o>> {
    let built_in = object::built_in_tiers();
    let mut groups: BTreeMap<&str, Group<'o>> = BTreeMap::new();
    for policy in &objects.policies {
        let written = objects.tiers.iter().find(|tier| tier.name == policy.tier);
        let known = match (written, built_in.get(policy.tier.as_str())) {
            (Some(tier), _) => Some((tier.order, tier.deny, &tier.place)),
            (None, Some((order, deny))) => Some((Some(*order), *deny, &policy.place)),
            (None, None) => None,
        };
        let Some((order, deny, place)) = known else {
            let message = format!(
                "the Tier {} of this policy is not among what was read, so its place is not known",
                quoted(&policy.tier)
            );
            let help = "add the output of kubectl get tiers -o yaml";
            findings.push(Finding::error(Code::UnknownName, &policy.place, message).help(help));
            continue;
        };
        let group = Group { name: &policy.tier, order, deny, place, policies: Vec::new() };
        groups.entry(&policy.tier).or_insert(group).policies.push(policy);
    }
    let mut groups: Vec<Group<'o>> = groups.into_values().collect();
    groups.sort_by(|one, other| before((one.order, one.name), (other.order, other.name)));
    for group in &mut groups {
        // What is staged for a policy of its name is tried before that one decides.
        group.policies.sort_by(|one, other| {
            before((one.order, &one.name), (other.order, &other.name)).then(other.staged.cmp(&one.staged))
        });
    }
    groups
}

/// The tiers that a tier of Calico's becomes: its end counts for the host and for what is forwarded, and not in the stages before.
fn tier(
    group: &Group<'_>,
    [early, late]: [String; 2],
    in_force: &[&HostEndpoint],
    world: &mut World<'_>,
    names: &mut Names,
    manner: Manner<'_>,
) -> [Tier; 2] {
    let new = |name: String, deny| Tier { name, deny, place: group.place.clone(), policies: Vec::new() };
    let (mut early, mut late) = (new(early, false), new(late, group.deny));
    for policy in &group.policies {
        let selected = selected(policy, in_force, world);
        if selected.is_empty() {
            continue;
        }
        let rules = |world: &mut World<'_>, rules: &Option<Vec<Rule>>| {
            rules.as_ref().map(|rules| rules.iter().flat_map(|rule| world.convert(rule)).collect::<Vec<_>>())
        };
        let (ingress, egress) = (rules(world, &policy.ingress), rules(world, &policy.egress));
        only_logs(policy, group.deny, world);
        let stages: &[Stage] = match policy.stages {
            Stages::Host => &[Stage::Host],
            Stages::Both => &[Stage::Host, Stage::Forward],
            Stages::Prednat => &[Stage::Prednat],
            Stages::Untracked => &[Stage::Untracked],
        };
        let scopes = endpoint::scopes(&selected, in_force);
        for stage in stages {
            let staged = if policy.staged { "-staged" } else { "" };
            let suffix = if *stage == Stage::Forward { "-forward" } else { "" };
            let said = Said {
                name: format!("{}{}{staged}{suffix}", manner.names, policy.name),
                order: policy.order,
                stage: *stage,
                staged: policy.staged,
                place: &policy.place,
                ingress: ingress.clone(),
                egress: egress.clone(),
            };
            let tier = if matches!(stage, Stage::Host | Stage::Forward) { &mut late } else { &mut early };
            write(&said, &scopes, tier, names);
        }
    }
    [early, late]
}

/// The host endpoints that a policy is for.
fn selected<'e>(policy: &Policy, in_force: &[&'e HostEndpoint], world: &mut World<'_>) -> Vec<&'e HostEndpoint> {
    let (name, place) = (quoted(&policy.name), &policy.place);
    if let Some(Pods { place: pods, perhaps_hosts }) = &policy.pods {
        if *perhaps_hosts {
            let message =
                "this selector holds for what has no namespace as well, so it is unclear whether hosts are meant";
            let help = "write namespaceSelector: global() where hosts are, or one that asks for a label";
            world.findings.push(Finding::error(Code::NotConverted, pods, message).help(help));
            return Vec::new();
        }
        let message =
            format!("policy {name} is left out: it selects namespaces or service accounts, so pods and no host");
        world.findings.push(Finding::warning(Code::SelectsNothing, pods, message));
        return Vec::new();
    }
    let mut selected: Vec<&HostEndpoint> =
        in_force.iter().copied().filter(|endpoint| policy.selector.matches(&endpoint.labels)).collect();
    if selected.is_empty() {
        let message = format!("policy {name} is left out: it selects none of the host endpoints that are in force");
        let help = "an endpoint that it should select has to be among what is read";
        world.findings.push(Finding::warning(Code::SelectsNothing, place, message).help(help));
    } else if policy.stages == Stages::Untracked && selected.iter().any(|endpoint| endpoint.interface.is_none()) {
        let message = format!(
            "policy {name} is without effect on host endpoints for \"*\", as in Calico: doNotTrack is for named interfaces"
        );
        world.findings.push(Finding::warning(Code::NotConverted, place, message));
        selected.retain(|endpoint| endpoint.interface.is_some());
    }
    selected
}

/// A policy that only logs is no harmless one: what it governs is denied at the end of its tier.
fn only_logs(policy: &Policy, deny: bool, world: &mut World<'_>) {
    let logs = |rules: &Option<Vec<Rule>>| {
        rules.as_ref().is_some_and(|rules| !rules.is_empty() && rules.iter().all(|rule| rule.action == Action::Log))
    };
    let ends = matches!(policy.stages, Stages::Host | Stages::Both) && deny && !policy.staged;
    if ends && (logs(&policy.ingress) || logs(&policy.egress)) {
        let message = format!(
            "policy {} only logs, and what no other policy of tier {} decides is denied at its end, as in Calico",
            quoted(&policy.name),
            quoted(&policy.tier)
        );
        let help = "a rule `action: Pass` at its end lets the next tier decide";
        world.findings.push(Finding::warning(Code::NotConverted, &policy.place, message).help(help));
    }
}

/// The rules of a direction that is governed, which one without any is not here.
fn some(rules: Vec<Json>) -> Option<Vec<Json>> {
    (!rules.is_empty()).then_some(rules)
}

/// Writes what a policy says for each of the scopes; nothing where it governs no direction.
fn write(said: &Said<'_>, scopes: &[Scope], tier: &mut Tier, names: &mut Names) {
    if said.ingress.is_none() && said.egress.is_none() {
        return;
    }
    for scope in scopes {
        let apart = said.ingress.is_some() && said.egress.is_some() && scope.ingress != scope.egress;
        let both = [(&said.ingress, &said.egress, "")];
        let each = [(&said.ingress, &None, ""), (&None, &said.egress, "-egress")];
        for (ingress, egress, suffix) in if apart { &each[..] } else { &both[..] } {
            let interfaces = if ingress.is_some() { &scope.ingress } else { &scope.egress };
            let mut fields = Map::new();
            fields.insert("interfaces".to_owned(), interfaces.to_string().into());
            fields.insert("nodes".to_owned(), scope.nodes.to_string().into());
            if said.stage != Stage::Host {
                fields.insert("stage".to_owned(), said.stage.name().into());
            }
            if said.staged {
                fields.insert("mode".to_owned(), "audit".into());
            }
            for (direction, rules) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
                fields.extend(rules.as_ref().map(|rules| (direction.name().to_owned(), Json::from(rules.clone()))));
            }
            tier.policies.push(Draft {
                name: names.unique(&format!("{}{suffix}", said.name)),
                stage: said.stage,
                order: said.order,
                fields,
                place: said.place.clone(),
            });
        }
    }
}

/// The failsafe ports that hold: what a FelixConfiguration says, else what Felix has by default.
struct FailsafePorts<'o> {
    /// What the tier is called, and its policy.
    name: String,
    inbound: Vec<Failsafe>,
    outbound: Vec<Failsafe>,
    place: Option<&'o Place>,
}

impl<'o> FailsafePorts<'o> {
    fn of(objects: &'o Objects, name: String) -> Self {
        let written = &objects.failsafes;
        let shipped = |more: [(Protocol, u16); 2]| {
            let tcp = TCP_FAILSAFE.map(|port| (Protocol::TCP, port));
            let all = more.into_iter().chain(tcp);
            all.map(|(protocol, port)| Failsafe { protocol, port, net: None }).collect::<Vec<_>>()
        };
        let inbound = written.iter().find_map(|written| written.inbound.clone());
        let outbound = written.iter().find_map(|written| written.outbound.clone());
        Self {
            name,
            inbound: inbound.unwrap_or_else(|| shipped([(Protocol::TCP, 22), (Protocol::UDP, 68)])),
            outbound: outbound.unwrap_or_else(|| shipped([(Protocol::UDP, 53), (Protocol::UDP, 67)])),
            place: written.first().map(|written| &written.place),
        }
    }

    /// The tier before all others: what is for this host's own sockets is allowed.
    fn tier(&self, every: &[Scope], place: &Place, names: &mut Names) -> Tier {
        let place = self.place.unwrap_or(place);
        let mut tier = Tier { name: self.name.clone(), deny: false, place: place.clone(), policies: Vec::new() };
        let ingress = failsafe_rules("allow", &self.inbound, Peer::Source, false);
        let egress = failsafe_rules("allow", &self.outbound, Peer::Destination, false);
        let name = self.name.clone();
        let (ingress, egress) = (some(ingress), some(egress));
        let said = Said { name, order: None, stage: Stage::Host, staged: false, place, ingress, egress };
        write(&said, every, &mut tier, names);
        tier
    }

    /// At the head of a tier of the stages before: what is let through there goes on, and is no more than undecided (Felix accepts it in
    /// the raw and mangle tables, and filters it afterwards). Before connection tracking, answers need rules as well.
    fn ahead(&self, stage: Stage, every: &[Scope], tier: &mut Tier, names: &mut Names) {
        let mut ingress = failsafe_rules("pass", &self.inbound, Peer::Source, false);
        let mut egress = Vec::new();
        if stage == Stage::Untracked {
            ingress.extend(failsafe_rules("pass", &self.outbound, Peer::Source, true));
            egress = failsafe_rules("pass", &self.outbound, Peer::Destination, false);
            egress.extend(failsafe_rules("pass", &self.inbound, Peer::Destination, true));
        }
        let place = tier.place.clone();
        let mut ahead = Tier { name: String::new(), deny: false, place: place.clone(), policies: Vec::new() };
        let name = format!("{}-failsafe-{}", tier.name, stage.name());
        let (ingress, egress) = (some(ingress), some(egress));
        let said = Said { name, order: None, stage, staged: false, place: &place, ingress, egress };
        write(&said, every, &mut ahead, names);
        tier.policies.splice(0..0, ahead.policies);
    }
}

/// Which end of a packet is the other host's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Source,
    Destination,
}

/// Rules for failsafe ports: one for each protocol and network. The ports are those that a packet goes to, or in answers comes from.
fn failsafe_rules(action: &str, entries: &[Failsafe], peer: Peer, answers: bool) -> Vec<Json> {
    let mut grouped: BTreeMap<(Protocol, Option<ipnet::IpNet>), BTreeSet<u16>> = BTreeMap::new();
    for Failsafe { protocol, port, net } in entries {
        grouped.entry((*protocol, *net)).or_default().insert(*port);
    }
    let mut rules = Vec::new();
    for ((protocol, net), numbers) in grouped {
        let numbers = rule::ports(&numbers.into_iter().map(|port| (port, port)).collect());
        let cidrs = net.map(|net| ("cidrs".to_owned(), rule::nets(&[net])));
        let (mut from, mut to) = (Map::new(), Map::new());
        if peer == Peer::Source { &mut from } else { &mut to }.extend(cidrs);
        let mut said = Map::from_iter([("action".to_owned(), Json::from(action))]);
        if answers {
            from.insert("ports".to_owned(), numbers.clone());
        }
        for (key, entity) in [("from", from), ("to", to)] {
            if !entity.is_empty() {
                said.insert(key.to_owned(), Json::Object(entity));
            }
        }
        said.insert("protocol".to_owned(), rule::protocol(protocol));
        if !answers {
            said.insert("ports".to_owned(), numbers);
        }
        rules.push(Json::Object(said));
    }
    rules
}

/// What no tier decided: the profiles of an endpoint, and then it denies.
fn profiles(
    tier: String,
    in_force: &[&HostEndpoint],
    world: &mut World<'_>,
    names: &mut Names,
    manner: Manner<'_>,
) -> Option<Tier> {
    let (mut allowing, mut denying) = (Vec::new(), Vec::new());
    for endpoint in in_force {
        let allows = endpoint.profiles.iter().any(|(name, _)| name == ALLOWING_PROFILE);
        for (name, place) in endpoint.profiles.iter().take_while(|(name, _)| name != ALLOWING_PROFILE) {
            let message = format!(
                "the rules and labels of profile {} are not read, and what it denies would be allowed",
                quoted(name)
            );
            let help = "take it out of the host endpoint, and write its rules as a policy";
            world.findings.push(Finding::error(Code::NotConverted, place, message).help(help));
        }
        if allows { &mut allowing } else { &mut denying }.push(*endpoint);
    }
    let place = in_force.first()?.place.clone();
    let mut tier = Tier { name: tier, deny: false, place, policies: Vec::new() };
    for (name, action, endpoints) in [("default-allow", "allow", allowing), ("default-deny", "deny", denying)] {
        if let Some(first) = endpoints.first() {
            let rules = || Some(vec![json!({ "action": action })]);
            let said = Said {
                name: format!("{}{name}", manner.prefix),
                order: None,
                stage: Stage::Host,
                staged: false,
                place: &first.place,
                ingress: rules(),
                egress: rules(),
            };
            write(&said, &endpoint::scopes(&endpoints, in_force), &mut tier, names);
        }
    }
    Some(tier)
}
