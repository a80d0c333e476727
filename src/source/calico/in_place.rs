//! Calico's objects where they are: what those of a cluster mean on one node, whatever is wrong with some of them. Pure.
//!
//! An object with an error counts as its last good version. Without one, what it may deny is denied, as Calico does itself with a
//! ClusterNetworkPolicy: of rules that cannot be understood or said, those that allow or log are left out, and the others deny all that
//! they may mean. Where it is not a rule that is wrong, the policy allows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value as Json, json};

use super::object::{self, HostEndpoint, NetworkSet, Objects, Pods, Policy, Rule, Stages, Tier};
use super::rule::{SetNames, World};
use super::{ALLOWING_PROFILE, Manner, documents, endpoint, refused};
use crate::net::protocol::Protocol;
use crate::policy::selector::{Labels, Selector};
use crate::source::object::Kind as Ours;
use crate::source::object::convert::to_objects;
use crate::text::fields;
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::read::{Reader, quoted};

/// What names of documents that come from Calico's objects begin with. No object of Kubernetes can have such a name.
pub const PREFIX: &str = "calico_";

/// The longest name of an interface.
const LONGEST_INTERFACE: usize = 15;

/// What is so instead of a version that is wrong.
const LAST_GOOD: &str = "its last good version stays in force";

/// A kind of Calico's objects that says something about hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// What may pass.
    GlobalNetworkPolicy,
    /// What would.
    StagedGlobalNetworkPolicy,
    /// Addresses.
    GlobalNetworkSet,
    /// An interface of a node.
    HostEndpoint,
    /// In which order policies are asked.
    Tier,
    /// Failsafe ports.
    FelixConfiguration,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::GlobalNetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::GlobalNetworkSet,
        Self::HostEndpoint,
        Self::Tier,
        Self::FelixConfiguration,
    ];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::GlobalNetworkSet => "GlobalNetworkSet",
            Self::HostEndpoint => "HostEndpoint",
            Self::Tier => "Tier",
            Self::FelixConfiguration => "FelixConfiguration",
        }
    }

    /// What it is called in the path of a request.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::GlobalNetworkPolicy => "globalnetworkpolicies",
            Self::StagedGlobalNetworkPolicy => "stagedglobalnetworkpolicies",
            Self::GlobalNetworkSet => "globalnetworksets",
            Self::HostEndpoint => "hostendpoints",
            Self::Tier => "tiers",
            Self::FelixConfiguration => "felixconfigurations",
        }
    }

    /// The kind of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// An object in one spelling, whatever form it was stored in: name, labels where selectors look at them, and spec. Nothing else of
    /// it is kept.
    pub fn text(self, name: &str, labels: &Labels, annotations: &BTreeMap<String, String>, spec: Json) -> Arc<str> {
        let mut metadata = serde_json::Map::from_iter([("name".to_owned(), Json::from(name))]);
        let mut version = "projectcalico.org/v3";
        if self.has_labels() {
            let mut labels = labels.clone();
            let kept = annotations.get(object::STORED_METADATA);
            match kept.map(|text| serde_json::from_str::<Json>(text)) {
                Some(Ok(kept)) => labels.extend(object::stored_labels(&kept)),
                // That it cannot be read is for the reader to say.
                Some(Err(_)) => {
                    version = "crd.projectcalico.org/v1";
                    metadata.insert("annotations".to_owned(), json!({ object::STORED_METADATA: kept }));
                }
                None => {}
            }
            if !labels.is_empty() {
                metadata.insert("labels".to_owned(), json!(labels));
            }
        }
        let mut object = json!({ "apiVersion": version, "kind": self.name(), "metadata": metadata });
        if let (Json::Object(fields), false) = (&mut object, spec.is_null()) {
            fields.insert("spec".to_owned(), spec);
        }
        object.sort_all_objects();
        object.to_string().into()
    }

    /// Whether selectors look at its labels.
    const fn has_labels(self) -> bool {
        matches!(self, Self::HostEndpoint | Self::GlobalNetworkSet)
    }
}

/// What is held of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versions {
    /// As it is, a text of [`Kind::text`].
    pub newest: Arc<str>,
    /// As it was when it could be honoured last.
    pub good: Option<Arc<str>>,
}

/// Calico's objects of a cluster.
pub type Stored = BTreeMap<(Kind, String), Versions>;

/// What they mean on a node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct InPlace {
    /// Our documents, each by kind and name with the text of an object; `None` where what there is must stay.
    pub documents: Option<BTreeMap<(Ours, String), Arc<str>>>,
    /// What to say, all of it warnings: each stands at a field of an object of Calico's.
    pub findings: Vec<Finding>,
    /// The objects whose newest version is not honoured as a whole.
    pub bad: BTreeSet<(Kind, String)>,
}

/// What Calico's objects of a cluster mean on the node that is called so.
pub fn in_place(cluster: &str, stored: &Stored, node: &str) -> InPlace {
    let mut here = Here {
        cluster,
        node,
        objects: Objects::default(),
        by_address: BTreeSet::new(),
        said: Vec::new(),
        bad: BTreeSet::new(),
    };
    for (key, versions) in stored {
        match key.0 {
            Kind::GlobalNetworkSet => here.set(key, versions),
            Kind::HostEndpoint => here.endpoint(key, versions),
            Kind::Tier => here.tier(key, versions),
            Kind::FelixConfiguration => here.felix(key, versions),
            // When it is known what they may select.
            Kind::GlobalNetworkPolicy | Kind::StagedGlobalNetworkPolicy => {}
        }
    }
    here.settle_by_address();
    // What a node has for itself goes before what all have.
    here.objects.failsafes.sort_by_key(|failsafes| failsafes.place.file.ends_with("/default"));
    let place = Place::file(format!("cluster {cluster}"));
    let (on_node, said) = endpoint::in_force(&here.objects.endpoints, Some(node));
    if on_node.is_empty() {
        let mut findings = said;
        findings.append(&mut here.said);
        let message = format!("no HostEndpoint of Calico is for node \"{node}\", so its policies say nothing here");
        let help =
            "spec.node of a HostEndpoint is to be the name of the node; `node` in nodewall.toml says it otherwise";
        findings.push(Finding::warning(Code::SelectsNothing, &place, message).help(help));
        return InPlace { documents: Some(BTreeMap::new()), findings: warnings(findings), bad: here.bad };
    }
    let labels: Vec<Labels> = on_node.iter().map(|endpoint| endpoint.labels.clone()).collect();
    for (key, versions) in stored {
        if matches!(key.0, Kind::GlobalNetworkPolicy | Kind::StagedGlobalNetworkPolicy) {
            here.policy(key, versions, &labels);
        }
    }
    here.missing_tiers();
    if !stored.contains_key(&(Kind::FelixConfiguration, "default".to_owned())) {
        let message =
            "FelixConfiguration \"default\" is not there, or not to be read: Calico's own failsafe ports hold";
        here.said.push(Finding::warning(Code::NotConverted, &place, message));
    }
    let Here { objects, mut said, bad, .. } = here;
    let (documents, more) = documents(&objects, Manner::in_place(node));
    said.extend(more);
    let refused = refused(&documents);
    let documents = refused.is_empty().then(|| {
        let texts = to_objects(&documents).into_iter().map(|mut object| {
            object.sort_all_objects();
            Arc::from(object.to_string())
        });
        documents.iter().map(|document| (document.kind, document.name.clone())).zip(texts).collect()
    });
    said.extend(refused);
    InPlace { documents, findings: warnings(said), bad }
}

/// Nothing that is wrong with one object is an error of the others.
fn warnings(findings: Vec<Finding>) -> Vec<Finding> {
    findings.into_iter().map(|finding| Finding { severity: Severity::Warning, ..finding }).collect()
}

/// What is read so far.
struct Here<'a> {
    cluster: &'a str,
    node: &'a str,
    objects: Objects,
    /// Host endpoints of this node that find their interface by address, and count for all of them instead.
    by_address: BTreeSet<String>,
    said: Vec<Finding>,
    bad: BTreeSet<(Kind, String)>,
}

/// A version that was read.
struct Read {
    objects: Objects,
    findings: Vec<Finding>,
    errors: usize,
}

impl Read {
    fn is_good(&self) -> bool {
        self.errors == 0
    }
}

impl Here<'_> {
    fn called(&self, (kind, name): &(Kind, String)) -> String {
        format!("cluster {}: {}/{name}", self.cluster, kind.name())
    }

    /// A version; rules with an error are replaced where `replacing` says so.
    fn read(&self, key: &(Kind, String), text: &str, replacing: bool) -> Read {
        let called = self.called(key);
        let mut objects = Objects { replacing, ..Objects::default() };
        let (json, unread) = match serde_json::from_str::<Json>(text) {
            Ok(json) => (json, None),
            Err(error) => (Json::Null, Some(format!("not JSON: {error}"))),
        };
        if let Some(why) = unread {
            let findings = vec![Finding::error(Code::Syntax, &Place::file(called.as_str()), why)];
            return Read { objects, findings, errors: 1 };
        }
        match fields::tree(&called, &json) {
            Ok((source, node)) => {
                let mut reader = Reader::new(&source);
                object::read(&mut reader, &node, &mut objects);
                let errors = reader.errors();
                Read { objects, findings: reader.into_findings(), errors }
            }
            Err(finding) => Read { objects, findings: vec![*finding], errors: 1 },
        }
    }

    /// The newest version if it is good, else the last that was, with what is wrong with the newest; `None`: there is none.
    fn choose(
        &mut self,
        key: &(Kind, String),
        versions: &Versions,
        otherwise: &str,
        is_good: impl Fn(&mut Read) -> bool,
    ) -> Option<Objects> {
        let mut newest = self.read(key, &versions.newest, false);
        if newest.is_good() && is_good(&mut newest) {
            self.said.append(&mut newest.findings);
            return Some(newest.objects);
        }
        self.bad.insert(key.clone());
        let mut last = versions.good.as_ref().map(|text| self.read(key, text, false));
        let last = last.take_if(|last| last.is_good() && is_good(last));
        let otherwise = format!("it never had a good version: {otherwise}");
        self.say(newest.findings, if last.is_some() { LAST_GOOD } else { &otherwise });
        last.map(|last| last.objects)
    }

    fn say(&mut self, findings: Vec<Finding>, instead: &str) {
        self.said.extend(findings.into_iter().map(|finding| {
            let help = match finding.help.as_str() {
                "" => instead.to_owned(),
                help => format!("{help}; {instead}"),
            };
            Finding { help, ..finding }
        }));
    }

    fn set(&mut self, key: &(Kind, String), versions: &Versions) {
        let otherwise = "rules that deny by it deny all that they may mean";
        if let Some(read) = self.choose(key, versions, otherwise, |_| true) {
            self.objects.sets.extend(read.sets);
            return;
        }
        let parts = Parts::of(&versions.newest);
        let (labels, nets) = (parts.labels(), parts.nets("nets"));
        let place = Place::file(self.called(key));
        self.objects.sets.push(NetworkSet { name: key.1.clone(), place, labels, nets, is_broken: true });
    }

    fn endpoint(&mut self, key: &(Kind, String), versions: &Versions) {
        let parts = Parts::of(&versions.newest);
        let interface = parts.spec("interfaceName").unwrap_or_default();
        let fits = !["", "*"].contains(&interface) && interface.len() <= LONGEST_INTERFACE;
        let rough = HostEndpoint {
            name: key.1.clone(),
            place: Place::file(self.called(key)),
            labels: parts.labels(),
            node: parts.spec("node").unwrap_or_default().to_owned(),
            interface: fits.then(|| interface.to_owned()),
            addresses: parts.nets("expectedIPs"),
            profiles: Vec::new(),
            ports: parts.ports(),
        };
        if !rough.node.eq_ignore_ascii_case(self.node) {
            // Of another node's only addresses matter, and there may be very many; it is that node that says what is wrong.
            self.objects.endpoints.push(rough);
            return;
        }
        let otherwise = if interface.is_empty() {
            "it counts for all interfaces that no other HostEndpoint of this node names, and denies at its end"
        } else {
            "it denies at its end"
        };
        let chosen = self.choose(key, versions, otherwise, |read| {
            let profiles = read.objects.endpoints.iter().flat_map(|endpoint| &endpoint.profiles);
            let unknown = profiles.take_while(|(name, _)| name != ALLOWING_PROFILE).next();
            let said = unknown.map(|(name, place)| {
                let message = format!("the rules and labels of profile {} are not read", quoted(name));
                let help = "take it out of the host endpoint, and write its rules as a policy";
                Finding::warning(Code::NotConverted, place, message).help(help)
            });
            read.findings.extend(said.clone());
            said.is_none()
        });
        let chosen = chosen.and_then(|read| read.endpoints.into_iter().next());
        if chosen.is_none() && interface.is_empty() {
            self.by_address.insert(key.1.clone());
        }
        let endpoint = chosen.unwrap_or(rough);
        // As our selectors call it.
        self.objects.endpoints.push(HostEndpoint { node: self.node.to_owned(), ..endpoint });
    }

    fn tier(&mut self, key: &(Kind, String), versions: &Versions) {
        let otherwise = "its order and end are what can be read of it, else the last, and to deny";
        if let Some(read) = self.choose(key, versions, otherwise, |_| true) {
            self.objects.tiers.extend(read.tiers);
            return;
        }
        let parts = Parts::of(&versions.newest);
        let deny = parts.spec("defaultAction") != Some("Pass");
        let place = Place::file(self.called(key));
        self.objects.tiers.push(Tier { name: key.1.clone(), place, order: parts.number("order"), deny });
    }

    /// The configuration of all nodes, and this node's own.
    fn felix(&mut self, key: &(Kind, String), versions: &Versions) {
        let own = key.1.strip_prefix("node.").is_some_and(|name| name.eq_ignore_ascii_case(self.node));
        if !own && key.1 != "default" {
            return;
        }
        // The walker refuses one of a single node, as it cannot know which that is.
        let as_default = |text: &Arc<str>| {
            let Ok(mut json) = serde_json::from_str::<Json>(text) else { return Arc::clone(text) };
            if let Some(name) = json.pointer_mut("/metadata/name") {
                *name = "default".into();
            }
            Arc::from(json.to_string())
        };
        let versions = Versions { newest: as_default(&versions.newest), good: versions.good.as_ref().map(as_default) };
        if let Some(read) = self.choose(key, &versions, "Calico's own failsafe ports hold", |_| true) {
            self.objects.failsafes.extend(read.failsafes);
        }
    }

    /// A policy, if it selects one of this node's host endpoints.
    fn policy(&mut self, key: &(Kind, String), versions: &Versions, labels: &[Labels]) {
        let selects = |policy: &Policy| {
            policy.pods.as_ref().is_none_or(|pods| pods.perhaps_hosts)
                && labels.iter().any(|labels| policy.selector.matches(labels))
        };
        let newest = self.read(key, &versions.newest, true);
        let (errors, mut findings) = (newest.errors, newest.findings);
        let policy = newest.objects.policies.into_iter().next();
        if errors == 0 && policy.is_none() {
            // It is about something else, and that is said.
            self.said.extend(findings);
            return;
        }
        let mut policy = policy.unwrap_or_else(|| self.stand_in(key, &versions.newest));
        if errors > policy.replaced {
            policy.close();
        }
        if !selects(&policy) {
            return;
        }
        let trouble = self.trouble(&mut policy);
        if errors == 0 && trouble.is_empty() {
            self.said.extend(findings);
            self.objects.policies.push(policy);
            return;
        }
        findings.extend(trouble);
        self.bad.insert(key.clone());
        let last = versions.good.as_ref().map(|text| self.read(key, text, false)).filter(Read::is_good);
        let last = last.and_then(|read| read.objects.policies.into_iter().next());
        if let Some(mut last) = last
            && self.trouble(&mut last).is_empty()
        {
            self.say(findings, LAST_GOOD);
            if selects(&last) {
                self.objects.policies.push(last);
            }
        } else if policy.staged {
            self.say(findings, "it is left out: it changes no verdict");
        } else {
            self.say(
                findings,
                "it never had a good version: rules that cannot be understood deny all that they may mean",
            );
            self.objects.policies.push(policy);
        }
    }

    /// What of a policy that was read cannot be honoured; where it is unclear whether hosts are meant, it allows nothing from here on.
    fn trouble(&self, policy: &mut Policy) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(Pods { place, perhaps_hosts: true }) = policy.pods.take_if(|pods| pods.perhaps_hosts) {
            let message =
                "this selector holds for what has no namespace as well, so it is unclear whether hosts are meant";
            let help = "write namespaceSelector: global() where hosts are, or one that asks for a label";
            findings.push(Finding::warning(Code::NotConverted, &place, message).help(help));
            policy.close();
        }
        let names = SetNames::default();
        let mut world = World::new(&self.objects, Some(&names), Vec::new());
        for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
            world.convert(rule);
        }
        findings.append(&mut world.unsaid);
        findings
    }

    /// A policy that denies all that one may be about which is hardly one.
    fn stand_in(&self, key: &(Kind, String), text: &str) -> Policy {
        let parts = Parts::of(text);
        let place = Place::file(self.called(key));
        let selector = match parts.spec("selector").map(str::trim) {
            None | Some("") => Selector::All,
            Some(text) => Selector::parse(text).unwrap_or(Selector::All),
        };
        let types: Vec<&str> = parts
            .list("types")
            .iter()
            .filter_map(Json::as_str)
            .filter(|word| ["Ingress", "Egress"].contains(word))
            .collect();
        let rules = |word: &str| (types.is_empty() || types.contains(&word)).then(|| vec![Rule::denying_all(&place)]);
        let forward = parts.json.pointer("/spec/applyOnForward").and_then(Json::as_bool).unwrap_or(false);
        Policy {
            name: key.1.clone(),
            staged: key.0 == Kind::StagedGlobalNetworkPolicy,
            tier: parts.spec("tier").filter(|tier| !tier.is_empty()).unwrap_or("default").to_owned(),
            order: parts.number("order"),
            selector,
            pods: None,
            ingress: rules("Ingress"),
            egress: rules("Egress"),
            stages: if forward { Stages::Both } else { Stages::Host },
            replaced: 0,
            place,
        }
    }

    /// One that is meant for all interfaces is not displaced by one that only counts for them.
    fn settle_by_address(&mut self) {
        let is_for_all = |endpoint: &&HostEndpoint| endpoint.node == self.node && endpoint.interface.is_none();
        let meant = |endpoint: &&HostEndpoint| !self.by_address.contains(&endpoint.name);
        let Some(every) = self.objects.endpoints.iter().filter(is_for_all).find(meant) else { return };
        let every = (every.name.clone(), every.place.clone());
        for left_out in self.objects.endpoints.extract_if(.., |endpoint| self.by_address.contains(&endpoint.name)) {
            let message = format!(
                "HostEndpoint {} is left out: it finds its interface by address, and there holds what holds for {}",
                quoted(&left_out.name),
                quoted(&every.0)
            );
            let finding = Finding::warning(Code::NotConverted, &left_out.place, message);
            self.said.push(finding.related(&every.1, "this one counts"));
        }
    }

    /// A policy may name a tier that is not there: then it is asked last, and denies at its end.
    fn missing_tiers(&mut self) {
        let built_in = object::built_in_tiers();
        for policy in &self.objects.policies {
            let is_known = self.objects.tiers.iter().any(|tier| tier.name == policy.tier);
            if is_known || built_in.contains_key(policy.tier.as_str()) {
                continue;
            }
            let (name, place) = (policy.tier.clone(), policy.place.clone());
            let message = format!("there is no Tier {}: it counts as the last one, as in Calico", quoted(&name));
            self.said.push(Finding::warning(Code::UnknownName, &place, message));
            self.objects.tiers.push(Tier { name, place, order: None, deny: true });
        }
    }
}

/// What can be read of an object with an error.
struct Parts {
    json: Json,
}

impl Parts {
    fn of(text: &str) -> Self {
        Self { json: serde_json::from_str(text).unwrap_or_default() }
    }

    fn spec(&self, key: &str) -> Option<&str> {
        self.json.get("spec")?.get(key)?.as_str()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.json.get("spec")?.get(key)?.as_f64()
    }

    fn list(&self, key: &str) -> &[Json] {
        self.json.get("spec").and_then(|spec| spec.get(key)).and_then(Json::as_array).map_or(&[], Vec::as_slice)
    }

    fn labels(&self) -> Labels {
        let labels = self.json.pointer("/metadata/labels").and_then(Json::as_object);
        let text = |(key, value): (&String, &Json)| Some((key.clone(), value.as_str()?.to_owned()));
        labels.into_iter().flatten().filter_map(text).collect()
    }

    /// Named ports, with protocol and number.
    fn ports(&self) -> Vec<(String, Protocol, u16)> {
        let port = |port: &Json| {
            let protocol = Protocol::by_name(&port.get("protocol")?.as_str()?.to_ascii_lowercase())?;
            let number = u16::try_from(port.get("port")?.as_u64()?).ok()?;
            Some((port.get("name")?.as_str()?.to_owned(), protocol, number))
        };
        self.list("ports").iter().filter_map(port).collect()
    }

    fn nets(&self, key: &str) -> Vec<IpNet> {
        let net = |text: &str| text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)));
        self.list(key).iter().filter_map(Json::as_str).filter_map(net).map(|net: IpNet| net.trunc()).collect()
    }
}
