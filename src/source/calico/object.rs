//! Calico's objects as they are read: `projectcalico.org/v3`, and `crd.projectcalico.org/v1` as an API server stores them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::Value as Json;

use crate::net::addr::Family;
use crate::net::protocol::{PortSet, Protocol};
use crate::policy::parse;
use crate::policy::selector::{Labels, Selector};
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::read::{Fields, Reader, quoted};
use crate::text::tree::{Node, Value};

/// Groups and versions of Calico's objects.
const API_VERSIONS: [(&str, bool); 2] = [("projectcalico.org/v3", false), ("crd.projectcalico.org/v1", true)];

/// Where libcalico-go keeps labels and annotations of an object that it stores in a CRD.
pub(super) const STORED_METADATA: &str = "projectcalico.org/metadata";

/// The objects of all texts, in the order in which they were read.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub policies: Vec<Policy>,
    pub sets: Vec<NetworkSet>,
    pub endpoints: Vec<HostEndpoint>,
    pub tiers: Vec<Tier>,
    pub failsafes: Vec<Failsafes>,
    /// Whether errors do not take a policy with them. A rule with one is left out if it allows or logs, else it denies everything; what
    /// else cannot be read counts as what is most: all endpoints, both directions.
    pub replacing: bool,
}

/// GlobalNetworkPolicy or StagedGlobalNetworkPolicy.
#[derive(Debug)]
pub(super) struct Policy {
    pub name: String,
    pub place: Place,
    pub staged: bool,
    pub tier: String,
    pub order: Option<f64>,
    pub selector: Selector,
    /// A namespace or service account selector: only pods have these labels.
    pub pods: Option<Pods>,
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
    pub stages: Stages,
    /// How many errors stand in rules that were replaced (see [`Objects::replacing`]).
    pub replaced: usize,
}

/// A selector over namespaces or service accounts.
#[derive(Debug)]
pub(super) struct Pods {
    pub place: Place,
    /// Whether it also holds for what has no label of theirs: `!has(x)`, `x != 'y'`.
    pub perhaps_hosts: bool,
}

/// Where a policy is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stages {
    /// Packets of the host's own sockets.
    Host,
    /// These, and what is forwarded (`applyOnForward`).
    Both,
    /// `preDNAT`.
    Prednat,
    /// `doNotTrack`.
    Untracked,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Allow,
    Deny,
    Log,
    Pass,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub place: Place,
    pub action: Action,
    pub family: Option<Family>,
    pub protocol: Option<Protocol>,
    pub not_protocol: Option<Protocol>,
    pub icmp: Option<Icmp>,
    pub not_icmp: Option<Icmp>,
    pub source: Entity,
    pub destination: Entity,
    pub http: Option<Place>,
    pub comment: Option<String>,
}

impl Policy {
    /// Takes out what it allows and lets pass: it is not known to be meant so.
    pub(super) fn close(&mut self) {
        for rules in [&mut self.ingress, &mut self.egress].into_iter().flatten() {
            rules.retain(|rule| rule.action != Action::Allow);
            for rule in rules.iter_mut().filter(|rule| rule.action == Action::Pass) {
                rule.action = Action::Deny;
            }
        }
    }
}

impl Rule {
    /// A rule that denies everything.
    pub(super) fn denying_all(place: &Place) -> Self {
        Self {
            place: place.clone(),
            action: Action::Deny,
            family: None,
            protocol: None,
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source: Entity::default(),
            destination: Entity::default(),
            http: None,
            comment: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Icmp {
    pub kind: i64,
    pub code: Option<i64>,
}

/// All that is there must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Entity {
    pub nets: Vec<IpNet>,
    pub not_nets: Vec<IpNet>,
    pub selector: Option<(Selector, Place)>,
    pub not_selector: Option<(Selector, Place)>,
    pub namespaces: Option<Namespaces>,
    pub ports: Option<Ports>,
    pub not_ports: Option<Ports>,
    /// `serviceAccounts` or `services`: what Kubernetes knows and the host does not.
    pub elsewhere: Option<(&'static str, Place)>,
}

#[derive(Clone, Debug)]
pub(super) enum Namespaces {
    /// `global()`: nothing that is in a namespace, so no pod.
    Global,
    /// Pods only.
    Some(Place),
}

#[derive(Clone, Debug)]
pub(super) struct Ports {
    pub numbers: PortSet,
    pub names: Vec<(String, Place)>,
}

/// GlobalNetworkSet.
#[derive(Debug)]
pub(super) struct NetworkSet {
    pub name: String,
    pub place: Place,
    pub labels: Labels,
    pub nets: Vec<IpNet>,
    /// Whether these are not all that it has: the others cannot be read.
    pub is_broken: bool,
}

/// HostEndpoint with an interface.
#[derive(Debug)]
pub(super) struct HostEndpoint {
    pub name: String,
    pub place: Place,
    pub labels: Labels,
    pub node: String,
    /// `None` is `*`.
    pub interface: Option<String>,
    pub addresses: Vec<IpNet>,
    pub profiles: Vec<(String, Place)>,
    /// Name, protocol and number.
    pub ports: Vec<(String, Protocol, u16)>,
}

#[derive(Debug)]
pub(super) struct Tier {
    pub name: String,
    pub place: Place,
    pub order: Option<f64>,
    pub deny: bool,
}

/// The failsafe ports of a FelixConfiguration; `None` is what Felix has by default.
#[derive(Debug)]
pub(super) struct Failsafes {
    pub place: Place,
    pub inbound: Option<Vec<Failsafe>>,
    pub outbound: Option<Vec<Failsafe>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Failsafe {
    pub protocol: Protocol,
    pub port: u16,
    pub net: Option<IpNet>,
}

/// Reads what stands in one node: an object, or a list of them.
pub(super) fn read<'t>(reader: &mut Reader<'t>, node: &Node<'t>, objects: &mut Objects) {
    if let Value::Table(entries) = &node.value {
        let find = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node);
        let is_list =
            find("kind").is_some_and(|kind| matches!(&kind.value, Value::String(kind) if kind.ends_with("List")));
        if let (true, Some(items)) = (is_list, find("items")) {
            for item in reader.list(items, "items").unwrap_or_default() {
                read(reader, item, objects);
            }
            return;
        }
    }
    object(reader, node, objects);
}

/// Name, labels and place of an object.
struct Head {
    name: String,
    labels: Labels,
    place: Place,
}

fn object<'t>(reader: &mut Reader<'t>, node: &Node<'t>, objects: &mut Objects) -> Option<()> {
    let mut fields = reader.table(node, "an object")?;
    let version = fields.need(reader, "apiVersion", "an object");
    let stored = version.and_then(|version| reader.word(version, "apiVersion of Calico", &API_VERSIONS))?;
    let kind = fields.need(reader, "kind", "an object");
    let kind = kind.and_then(|kind| reader.string(kind, "kind"))?;
    let metadata = fields.need(reader, "metadata", "an object");
    let head = metadata.and_then(|metadata| self::metadata(reader, metadata, stored));
    let spec = get(&mut fields, "spec");
    get(&mut fields, "status");
    fields.finish(reader, "an object");
    let (name, labels) = head?;
    let head = Head { name, labels, place: reader.place(node.span) };
    if !matches!(
        kind,
        "GlobalNetworkPolicy"
            | "StagedGlobalNetworkPolicy"
            | "GlobalNetworkSet"
            | "HostEndpoint"
            | "Tier"
            | "FelixConfiguration"
    ) {
        let (message, help) = match kind {
            "NetworkPolicy" | "NetworkSet" | "StagedNetworkPolicy" | "StagedKubernetesNetworkPolicy" => (
                format!(
                    "{kind} {} is left out: what is in a namespace is about pods, never about hosts",
                    quoted(&head.name)
                ),
                "keep it in Calico",
            ),
            "KubeControllersConfiguration" => (
                format!(
                    "{kind} {} is left out: host endpoints that it makes are read as HostEndpoint only",
                    quoted(&head.name)
                ),
                "add the output of kubectl get hostendpoints -o yaml",
            ),
            _ => (format!("{kind} {} is left out: it is no policy for hosts", quoted(&head.name)), ""),
        };
        reader.report(Finding::warning(Code::NotConverted, &head.place, message).help(help));
        return None;
    }
    let Some(spec) = spec else {
        reader.error(Code::MissingKey, node.span, format!("{kind} has no `spec`"));
        return None;
    };
    let mut spec = reader.table(spec, "spec")?;
    match kind {
        "GlobalNetworkPolicy" => objects.policies.extend(policy(reader, &mut spec, head, false, objects.replacing)),
        "StagedGlobalNetworkPolicy" => {
            objects.policies.extend(policy(reader, &mut spec, head, true, objects.replacing))
        }
        "GlobalNetworkSet" => objects.sets.extend(set(reader, &mut spec, head)),
        "HostEndpoint" => objects.endpoints.extend(endpoint(reader, &mut spec, head)),
        "Tier" => objects.tiers.extend(tier(reader, &mut spec, head)),
        _ => {
            objects.failsafes.extend(failsafes(reader, &mut spec, head));
            // What else Felix is told was reported as a whole.
            return Some(());
        }
    }
    spec.finish(reader, &format!("the spec of a {kind}"));
    Some(())
}

/// The value of a key, unless it is null, which is how Kubernetes prints what is not there.
fn get<'n, 't>(fields: &mut Fields<'n, 't>, key: &'static str) -> Option<&'n Node<'t>> {
    fields.get(key).filter(|node| node.value != Value::Null)
}

/// Name and labels. An object of a CRD has labels of Calico's in an annotation, too.
fn metadata<'t>(reader: &mut Reader<'t>, node: &Node<'t>, stored: bool) -> Option<(String, Labels)> {
    let mut fields = reader.table(node, "metadata")?;
    let name = fields.need(reader, "name", "metadata");
    let name = name.and_then(|name| reader.string(name, "name"))?.to_owned();
    let mut labels =
        get(&mut fields, "labels").map(|labels| parse::labels(reader, labels, "labels")).unwrap_or_default();
    let annotations = get(&mut fields, "annotations").and_then(|node| reader.table(node, "annotations"));
    let kept =
        annotations.and_then(|annotations| annotations.entries().iter().find(|entry| entry.key == STORED_METADATA));
    if let (true, Some(kept)) = (stored, kept) {
        let text = reader.string(&kept.node, STORED_METADATA)?;
        let of_calico: Result<Json, _> = serde_json::from_str(text);
        let Ok(of_calico) = of_calico else {
            reader.error(Code::Value, kept.node.span, format!("{STORED_METADATA} is not JSON"));
            return None;
        };
        labels.extend(stored_labels(&of_calico));
    }
    Some((name, labels))
}

/// The labels in [`STORED_METADATA`].
pub(super) fn stored_labels(kept: &Json) -> Labels {
    let labels = kept.get("labels").and_then(Json::as_object).into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// A number that may have a fraction.
fn order<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>) -> Option<f64> {
    let node = get(fields, "order")?;
    let written = reader.source().text.get(node.span.start as usize..node.span.end as usize);
    let number = match node.value {
        Value::Integer(_) | Value::Float => {
            written.and_then(|text| text.trim().parse::<f64>().ok()).filter(|number| number.is_finite())
        }
        _ => None,
    };
    if number.is_none() {
        reader.error(Code::Type, node.span, "order must be a number");
    }
    number
}

/// A selector; an empty one is `all()`.
fn selector<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, key: &'static str) -> Option<(Selector, Place)> {
    let node = get(fields, key)?;
    if matches!(&node.value, Value::String(text) if text.trim().is_empty()) {
        return None;
    }
    Some((parse::selector(reader, node, key)?, reader.place(node.span)))
}

/// Whether a selector over namespaces is `global()`; `None` when there is none.
fn namespaces<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, key: &'static str) -> Option<Namespaces> {
    let node = get(fields, key)?;
    let text: String = reader.string(node, key)?.split_whitespace().collect();
    match text.as_str() {
        "" => None,
        "global()" => Some(Namespaces::Global),
        _ => Some(Namespaces::Some(reader.place(node.span))),
    }
}

fn flag<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, key: &'static str) -> bool {
    get(fields, key).and_then(|node| reader.boolean(node, key)).unwrap_or(false)
}

fn policy<'t>(
    reader: &mut Reader<'t>,
    spec: &mut Fields<'_, 't>,
    head: Head,
    staged: bool,
    replacing: bool,
) -> Option<Policy> {
    let before = reader.errors();
    let mut replaced = 0;
    let tier = get(spec, "tier").and_then(|tier| reader.string(tier, "tier")).filter(|tier| !tier.is_empty());
    let tier = tier.unwrap_or("default").to_owned();
    let order = order(reader, spec);
    let selector = self::selector(reader, spec, "selector").map_or(Selector::All, |(selector, _)| selector);
    let mut pods = None;
    for key in ["namespaceSelector", "serviceAccountSelector"] {
        let Some((node, text)) = get(spec, key).and_then(|node| Some((node, reader.string(node, key)?))) else {
            continue;
        };
        let plain: String = text.split_whitespace().collect();
        if plain.is_empty() || (key == "namespaceSelector" && plain == "global()") {
            continue;
        }
        let selector = parse::selector(reader, node, key);
        if selector.is_none() && !replacing {
            return None;
        }
        // all() is every namespace, and nothing that is in none.
        let perhaps_hosts =
            selector.is_none_or(|selector| selector != Selector::All && selector.matches(&Labels::new()));
        pods = pods.or_else(|| Some(Pods { place: reader.place(node.span), perhaps_hosts }));
    }
    if let Some(node) = get(spec, "performanceHints") {
        let message = "`performanceHints` has no counterpart and changes no verdict";
        reader.report(Finding::warning(Code::NotConverted, &reader.place(node.span), message));
    }
    let action = get(spec, "stagedAction").and_then(|node| Some((node, reader.string(node, "stagedAction")?)));
    let nodes = [get(spec, "ingress"), get(spec, "egress")];
    let has_rules = |node: Option<&Node<'t>>| matches!(node.map(|node| &node.value), Some(Value::Array(items)) if !items.is_empty());
    let types = match get(spec, "types") {
        Some(types) => {
            let items = reader.list(types, "types");
            let words = [("Ingress", 0), ("Egress", 1)];
            let items = items.or(replacing.then_some(&[]))?;
            let found: Vec<usize> =
                items.iter().filter_map(|item| reader.word(item, "type of a policy", &words)).collect();
            match (found.len() < items.len(), replacing) {
                (true, false) => return None,
                (true, true) => vec![0, 1],
                (false, _) => found,
            }
        }
        None => Vec::new(),
    };
    let types = if types.is_empty() {
        match nodes.map(has_rules) {
            [false, true] => vec![1],
            [true, true] => vec![0, 1],
            [_, false] => vec![0],
        }
    } else {
        types
    };
    let mut direction = |index: usize, key: &str| {
        let node = nodes.get(index).copied().flatten();
        let listed = node.map(|node| (node, reader.list(node, key)));
        let rules: Vec<Rule> = match listed {
            Some((node, None)) if replacing => vec![Rule::denying_all(&reader.place(node.span))],
            Some((_, Some(rules))) => {
                rules.iter().filter_map(|node| rule_or_instead(reader, node, replacing, &mut replaced)).collect()
            }
            Some((_, None)) | None => Vec::new(),
        };
        if let (false, Some(node), false) = (types.contains(&index), node, rules.is_empty()) {
            let message = format!("these rules count for nothing, in Calico as well: `types` does not have {key}");
            reader.report(Finding::warning(Code::NotConverted, &reader.place(node.span), message));
        }
        types.contains(&index).then_some(rules)
    };
    let (ingress, egress) = (direction(0, "ingress"), direction(1, "egress"));
    let (forward, prednat, untracked) =
        (flag(reader, spec, "applyOnForward"), flag(reader, spec, "preDNAT"), flag(reader, spec, "doNotTrack"));
    if prednat && untracked {
        reader.error(Code::Conflict, spec.span, "`preDNAT` and `doNotTrack` cannot stand in one policy");
    } else if (prednat || untracked) && !forward {
        let key = if prednat { "preDNAT" } else { "doNotTrack" };
        reader.error(Code::Conflict, spec.span, format!("`{key}` needs `applyOnForward: true`"));
    }
    let stages = match (forward, prednat, untracked) {
        (_, _, true) => Stages::Untracked,
        (_, true, false) => Stages::Prednat,
        (true, false, false) => Stages::Both,
        (false, false, false) => Stages::Host,
    };
    if stages == Stages::Prednat && egress.is_some() {
        reader.error(Code::Conflict, spec.span, "a policy with `preDNAT` has no egress");
    }
    match action {
        Some((node, "Delete" | "Ignore")) if staged => {
            let message = format!(
                "staged policy {} is left out: nodewall has no preview of a policy that goes away",
                quoted(&head.name)
            );
            reader.report(Finding::warning(Code::NotConverted, &reader.place(node.span), message));
            return None;
        }
        Some((node, word)) if !staged || !matches!(word, "Set" | "Learn") => {
            reader.error(Code::Value, node.span, format!("{} is not a `stagedAction` here", quoted(word)));
        }
        _ => {}
    }
    let Head { name, place, .. } = head;
    (replacing || reader.errors() == before).then_some(Policy {
        name,
        place,
        staged,
        tier,
        order,
        selector,
        pods,
        ingress,
        egress,
        stages,
        replaced,
    })
}

/// A rule, or where `replacing` says so what counts in the place of one with an error.
fn rule_or_instead<'t>(
    reader: &mut Reader<'t>,
    node: &Node<'t>,
    replacing: bool,
    replaced: &mut usize,
) -> Option<Rule> {
    let before = reader.errors();
    let read = rule(reader, node);
    if read.is_some() || !replacing {
        return read;
    }
    *replaced += reader.errors() - before;
    (!is_harmless(node)).then(|| Rule::denying_all(&reader.place(node.span)))
}

/// Whether leaving out what should have been a rule cannot allow more: it allows or logs.
fn is_harmless(node: &Node<'_>) -> bool {
    let Value::Table(entries) = &node.value else { return false };
    let action = entries.iter().find(|entry| entry.key == "action").map(|entry| &entry.node.value);
    matches!(action, Some(Value::String(action)) if ["Allow", "Log"].contains(&&**action))
}

fn rule<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Rule> {
    let before = reader.errors();
    let mut fields = reader.table(node, "a rule")?;
    let actions = [("Allow", Action::Allow), ("Deny", Action::Deny), ("Log", Action::Log), ("Pass", Action::Pass)];
    let action = fields.need(reader, "action", "a rule").and_then(|word| reader.word(word, "action", &actions));
    let family = get(&mut fields, "ipVersion").and_then(|node| match &node.value {
        Value::Integer(Some(4)) => Some(Family::V4),
        Value::Integer(Some(6)) => Some(Family::V6),
        _ => {
            reader.error(Code::Value, node.span, "ipVersion must be 4 or 6");
            None
        }
    });
    let protocol = get(&mut fields, "protocol").and_then(|node| self::protocol(reader, node));
    let not_protocol = get(&mut fields, "notProtocol").and_then(|node| self::protocol(reader, node));
    let icmp = get(&mut fields, "icmp").and_then(|node| self::icmp(reader, node, protocol));
    let not_icmp = get(&mut fields, "notICMP").and_then(|node| self::icmp(reader, node, protocol));
    let source =
        get(&mut fields, "source").and_then(|node| entity(reader, node, "source", protocol)).unwrap_or_default();
    let destination = get(&mut fields, "destination")
        .and_then(|node| entity(reader, node, "destination", protocol))
        .unwrap_or_default();
    let http = get(&mut fields, "http").map(|node| reader.place(node.span));
    let comment = get(&mut fields, "metadata").and_then(|node| annotations(reader, node));
    fields.finish(reader, "a rule");
    let place = reader.place(node.span);
    let action = action?;
    (reader.errors() == before).then_some(Rule {
        place,
        action,
        family,
        protocol,
        not_protocol,
        icmp,
        not_icmp,
        source,
        destination,
        http,
        comment,
    })
}

/// The annotations of a rule as words.
fn annotations<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<String> {
    let mut fields = reader.table(node, "metadata")?;
    let annotations = get(&mut fields, "annotations").and_then(|node| reader.table(node, "annotations"));
    fields.finish(reader, "the metadata of a rule");
    let entries = annotations?.entries();
    let words = entries
        .iter()
        .filter_map(|entry| Some(format!("{}: {}", entry.key, reader.string(&entry.node, "an annotation")?)));
    Some(words.collect::<Vec<_>>().join("; ")).filter(|words| !words.is_empty())
}

fn protocol<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Protocol> {
    let text = match &node.value {
        Value::String(text) => text.to_ascii_lowercase(),
        _ => return u8::try_from(reader.integer(node, "protocol", 1, 255)?).ok().map(Protocol),
    };
    let number = text.parse::<u8>().ok().filter(|number| *number > 0).map(Protocol);
    let known = ["tcp", "udp", "icmp", "icmpv6", "sctp", "udplite"].contains(&text.as_str());
    let found = number.or_else(|| Protocol::by_name(&text).filter(|_| known));
    if found.is_none() {
        let help = "TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or a number from 1 to 255";
        reader.error_with_help(Code::Value, node.span, format!("{} is not a protocol", quoted(&text)), help);
    }
    found
}

/// `icmp` and `notICMP`; without a type it says nothing.
fn icmp<'t>(reader: &mut Reader<'t>, node: &Node<'t>, protocol: Option<Protocol>) -> Option<Icmp> {
    let mut fields = reader.table(node, "icmp")?;
    let kind = get(&mut fields, "type").and_then(|node| reader.integer(node, "type", 0, 254));
    let code = get(&mut fields, "code").and_then(|node| reader.integer(node, "code", 0, 255));
    fields.finish(reader, "icmp");
    if !matches!(protocol, Some(Protocol::ICMP | Protocol::ICMPV6)) {
        reader.error(Code::Conflict, node.span, "icmp needs `protocol: ICMP` or `protocol: ICMPv6`");
    }
    if kind.is_none() {
        reader.error(Code::MissingKey, node.span, "icmp has no `type`");
    }
    Some(Icmp { kind: kind?, code })
}

fn entity<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str, protocol: Option<Protocol>) -> Option<Entity> {
    let mut fields = reader.table(node, what)?;
    let mut nets = |reader: &mut Reader<'t>, key: &'static str| {
        get(&mut fields, key).map(|node| self::nets(reader, node)).unwrap_or_default()
    };
    let (nets, not_nets) = (nets(reader, "nets"), nets(reader, "notNets"));
    let selector = self::selector(reader, &mut fields, "selector");
    let not_selector = self::selector(reader, &mut fields, "notSelector");
    let namespaces = namespaces(reader, &mut fields, "namespaceSelector");
    let mut ports = |reader: &mut Reader<'t>, key: &'static str| {
        let node = get(&mut fields, key)?;
        let found = self::ports(reader, node, key)?;
        if !protocol.is_some_and(Protocol::has_ports) {
            reader.error(Code::Conflict, node.span, format!("`{key}` needs a protocol with ports: TCP, UDP or SCTP"));
        }
        Some(found)
    };
    let (ports, not_ports) = (ports(reader, "ports"), ports(reader, "notPorts"));
    let mut elsewhere = None;
    for key in ["serviceAccounts", "services"] {
        if let Some(node) = get(&mut fields, key) {
            elsewhere = Some((key, reader.place(node.span)));
        }
    }
    if let Some(node) = get(&mut fields, "domains") {
        elsewhere = Some(("domains", reader.place(node.span)));
    }
    fields.finish(reader, what);
    Some(Entity { nets, not_nets, selector, not_selector, namespaces, ports, not_ports, elsewhere })
}

/// Prefixes. Calico takes one with host bits for the network that it is in.
fn nets<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<IpNet> {
    let mut found = Vec::new();
    for item in reader.list(node, "nets").unwrap_or_default() {
        found.extend(net(reader, item));
    }
    found
}

fn net<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<IpNet> {
    let text = reader.string(node, "a network")?;
    let net = text.parse::<IpNet>().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)));
    let Some(net) = net else {
        reader.error(Code::Value, node.span, format!("{} is not an IP address or prefix", quoted(text)));
        return None;
    };
    Some(net.trunc())
}

/// Numbers, "lo:hi" and names. `None` for an empty list, which is as good as none.
fn ports<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> Option<Ports> {
    let items = reader.list(node, what)?;
    let (mut ranges, mut names) = (Vec::new(), Vec::new());
    for item in items {
        match &item.value {
            Value::Integer(number) => match number.and_then(|number| u16::try_from(number).ok()) {
                Some(port) => ranges.push((port, port)),
                None => reader.error(Code::Value, item.span, "ports go from 0 to 65535"),
            },
            Value::String(text) => {
                let number = |text: &str| text.parse::<u16>().ok();
                let range = match text.split_once(':') {
                    Some((start, end)) => number(start).zip(number(end)).filter(|(start, end)| start <= end),
                    None => number(text).map(|port| (port, port)),
                };
                match range {
                    Some(range) => ranges.push(range),
                    None if text.starts_with(|first: char| first.is_ascii_alphabetic()) && !text.contains(':') => {
                        names.push((text.to_string(), reader.place(item.span)));
                    }
                    None => reader.error(
                        Code::Value,
                        item.span,
                        format!("{} is not a port, a range like \"8000:8010\" or a name", quoted(text)),
                    ),
                }
            }
            other => {
                reader.error(Code::Type, item.span, format!("a port must be a number or text, not {}", other.kind()))
            }
        }
    }
    (!items.is_empty()).then(|| Ports { numbers: ranges.into_iter().collect(), names })
}

fn set<'t>(reader: &mut Reader<'t>, spec: &mut Fields<'_, 't>, head: Head) -> Option<NetworkSet> {
    let before = reader.errors();
    let nets = get(spec, "nets").map(|node| self::nets(reader, node)).unwrap_or_default();
    if let Some(node) = get(spec, "allowedEgressDomains") {
        parse::unsupported(reader, node.span, "`allowedEgressDomains`");
    }
    let Head { name, labels, place } = head;
    (reader.errors() == before).then_some(NetworkSet { name, place, labels, nets, is_broken: false })
}

fn endpoint<'t>(reader: &mut Reader<'t>, spec: &mut Fields<'_, 't>, head: Head) -> Option<HostEndpoint> {
    let before = reader.errors();
    let node =
        spec.need(reader, "node", "a HostEndpoint").and_then(|node| reader.string(node, "node")).map(str::to_owned);
    let interface = get(spec, "interfaceName")
        .and_then(|name| reader.string(name, "interfaceName"))
        .filter(|name| !name.is_empty());
    let addresses = get(spec, "expectedIPs").map(|node| nets(reader, node)).unwrap_or_default();
    if interface.is_none() {
        let message =
            format!("HostEndpoint {} finds its interface by address, which nodewall does not", quoted(&head.name));
        let help = "write interfaceName: \"eth0\" into it; without, its interface would be left open";
        reader.report(Finding::error(Code::NotConverted, &head.place, message).help(help));
    }
    let profiles = get(spec, "profiles").and_then(|node| reader.list(node, "profiles")).unwrap_or_default();
    let profiles = profiles
        .iter()
        .filter_map(|node| Some((reader.string(node, "a profile")?.to_owned(), reader.place(node.span))))
        .collect();
    let mut ports = Vec::new();
    for item in get(spec, "ports").and_then(|node| reader.list(node, "ports")).unwrap_or_default() {
        let Some(mut fields) = reader.table(item, "a port") else { continue };
        let name =
            fields.need(reader, "name", "a port").and_then(|node| reader.string(node, "name")).map(str::to_owned);
        let protocol = fields.need(reader, "protocol", "a port").and_then(|node| self::protocol(reader, node));
        let number = fields.need(reader, "port", "a port").and_then(|node| reader.integer(node, "port", 1, 65_535));
        fields.finish(reader, "a port");
        let number = number.and_then(|number| u16::try_from(number).ok());
        if let (Some(name), Some(protocol), Some(number)) = (name, protocol, number) {
            ports.push((name, protocol, number));
        }
    }
    let interface = interface.filter(|name| *name != "*").map(str::to_owned);
    let Head { name, labels, place } = head;
    let node = node?;
    (reader.errors() == before).then_some(HostEndpoint {
        name,
        place,
        labels,
        node,
        interface,
        addresses,
        profiles,
        ports,
    })
}

fn tier<'t>(reader: &mut Reader<'t>, spec: &mut Fields<'_, 't>, head: Head) -> Option<Tier> {
    let before = reader.errors();
    let order = order(reader, spec);
    let words = [("Deny", true), ("Pass", false)];
    let deny = match get(spec, "defaultAction") {
        Some(node) => reader.word(node, "default action", &words)?,
        None => true,
    };
    (reader.errors() == before).then_some(Tier { name: head.name, place: head.place, order, deny })
}

fn failsafes<'t>(reader: &mut Reader<'t>, spec: &mut Fields<'_, 't>, head: Head) -> Option<Failsafes> {
    let inbound = get(spec, "failsafeInboundHostPorts");
    let outbound = get(spec, "failsafeOutboundHostPorts");
    let ours = ["failsafeInboundHostPorts", "failsafeOutboundHostPorts"];
    let others: Vec<&str> = spec.entries().iter().map(|entry| &*entry.key).filter(|key| !ours.contains(key)).collect();
    if !others.is_empty() {
        let message = format!(
            "of FelixConfiguration {} these say nothing to nodewall: {}",
            quoted(&head.name),
            others.join(", ")
        );
        let help = "nodewall.toml(5) has what there is to set; pods may reach this host as its policies say, whatever defaultEndpointToHostAction is";
        reader.report(Finding::warning(Code::NotConverted, &head.place, message).help(help));
    }
    if inbound.is_none() && outbound.is_none() {
        return None;
    }
    if head.name != "default" {
        let message = format!(
            "failsafe ports of some nodes only (FelixConfiguration {}) cannot be converted",
            quoted(&head.name)
        );
        let help = "convert the objects of these nodes by themselves, with the configuration as \"default\"";
        reader.report(Finding::error(Code::NotConverted, &head.place, message).help(help));
    }
    let inbound = inbound.map(|node| failsafe_list(reader, node));
    let outbound = outbound.map(|node| failsafe_list(reader, node));
    Some(Failsafes { place: head.place, inbound, outbound })
}

fn failsafe_list<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<Failsafe> {
    let mut found = Vec::new();
    for item in reader.list(node, "failsafe ports").unwrap_or_default() {
        let Some(mut fields) = reader.table(item, "a failsafe port") else { continue };
        let protocol = get(&mut fields, "protocol").map_or(Some(Protocol::TCP), |node| self::protocol(reader, node));
        let port =
            fields.need(reader, "port", "a failsafe port").and_then(|node| reader.integer(node, "port", 0, 65_535));
        let net = get(&mut fields, "net");
        let net = net.map(|node| self::net(reader, node));
        fields.finish(reader, "a failsafe port");
        if net == Some(None) {
            continue;
        }
        if let (Some(protocol), Some(port)) = (protocol, port.and_then(|port| u16::try_from(port).ok())) {
            found.push(Failsafe { protocol, port, net: net.flatten() });
        }
    }
    found
}

/// The tiers that Calico always has: order, and whether it denies at its end.
pub(super) fn built_in_tiers() -> BTreeMap<&'static str, (f64, bool)> {
    [("default", (1_000_000.0, true)), ("kube-admin", (1_000.0, false)), ("kube-baseline", (10_000_000.0, false))]
        .into()
}
