//! Rules of Calico's policies to rules of ours.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::{Map, Value as Json, json};

use super::object::{Action, Entity, HostEndpoint, Icmp, Namespaces, NetworkSet, Objects, Ports, Rule};
use crate::net::addr::Family;
use crate::net::protocol::{PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::selector::{Labels, Selector};
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::read::quoted;

/// The label by which sets that come from Calico are told from others.
pub(super) const KIND_LABEL: &str = "calico/kind";

/// What rules can refer to, and what they did.
pub(super) struct World<'a> {
    pub sets: &'a [NetworkSet],
    pub endpoints: &'a [HostEndpoint],
    /// The host endpoints whose addresses a selector means, by name: they need sets.
    pub named: BTreeSet<&'a str>,
    /// Whether a selector could mean sets that are none of Calico's, so that the label for it is needed.
    pub guarded: bool,
    /// What sets are called, where rules mean them by name: labels of a cluster would be in the selectors of others as well.
    pub names: Option<&'a SetNames>,
    /// Of rules that deny more than they mean, as they cannot be said: why.
    pub unsaid: Vec<Finding>,
    pub findings: Vec<Finding>,
}

/// What the sets of objects are called, by the names of these.
#[derive(Debug, Default)]
pub(super) struct SetNames {
    pub sets: BTreeMap<String, String>,
    pub endpoints: BTreeMap<String, String>,
}

/// What a selector comes to.
enum Selected {
    /// A part of an entity.
    Part(&'static str, Json),
    /// No address at all.
    Nothing,
}

/// Why a rule cannot be said as it is.
struct Cannot {
    place: Place,
    why: String,
}

fn cannot<T>(place: &Place, why: impl Into<String>) -> Result<T, Cannot> {
    Err(Cannot { place: place.clone(), why: why.into() })
}

/// Ports and addresses that go together: a named port is a number at the addresses that have it.
type Alternative = (Option<PortSet>, Vec<IpNet>);

impl<'a> World<'a> {
    /// What rules can refer to among these objects.
    pub(super) fn new(objects: &'a Objects, names: Option<&'a SetNames>, findings: Vec<Finding>) -> Self {
        let (sets, endpoints) = (&objects.sets, &objects.endpoints);
        Self { sets, endpoints, named: BTreeSet::new(), guarded: false, names, unsaid: Vec::new(), findings }
    }

    /// The rules that say what this one says.
    pub(super) fn convert(&mut self, rule: &Rule) -> Vec<Json> {
        match self.rules(rule) {
            Ok(rules) => rules,
            Err(Cannot { place, why }) => {
                let said = match rule.action {
                    Action::Allow => Finding::warning(
                        Code::NotConverted,
                        &place,
                        format!("{why}; the rule is left out, so that less is allowed"),
                    ),
                    Action::Log => Finding::warning(
                        Code::NotConverted,
                        &place,
                        format!("{why}; the rule is left out, so that less is logged"),
                    ),
                    Action::Deny | Action::Pass if self.names.is_some() => {
                        let message = format!("{why}; without this rule more could be allowed");
                        let said = Finding::warning(Code::NotConverted, &place, message);
                        self.unsaid.push(said.help("write it as addresses"));
                        // What is wider asks for nothing that cannot be said.
                        let wider = self.rules(&wider(rule));
                        return wider.unwrap_or_else(|_| vec![json!({ "action": "deny" })]);
                    }
                    Action::Deny | Action::Pass => {
                        let message = format!("{why}; without this rule more could be allowed");
                        Finding::error(Code::NotConverted, &place, message)
                            .help("write it as addresses, or keep the policy in Calico")
                    }
                };
                self.findings.push(said);
                Vec::new()
            }
        }
    }

    fn rules(&mut self, rule: &Rule) -> Result<Vec<Json>, Cannot> {
        if let Some(place) = &rule.http {
            return cannot(place, "`http` is seen by a proxy, never by a host's firewall");
        }
        let (from, to) = (self.addresses(rule, &rule.source)?, self.addresses(rule, &rule.destination)?);
        let (Some(from), Some(to)) = (from, to) else { return Ok(Vec::new()) };
        let sources = self.alternatives(rule, &rule.source)?;
        let destinations = self.alternatives(rule, &rule.destination)?;
        let mut rules = Vec::new();
        for (source_ports, source_nets) in &sources {
            for (ports, nets) in &destinations {
                let mut said = Map::new();
                let word = match rule.action {
                    Action::Allow => "allow",
                    Action::Deny => "deny",
                    Action::Log => "log",
                    Action::Pass => "pass",
                };
                said.insert("action".to_owned(), word.into());
                let mut from = from_parts(&from, source_nets);
                if let Some(ports) = source_ports {
                    from.insert("ports".to_owned(), self::ports(ports));
                }
                for (key, entity) in [("from", from), ("to", from_parts(&to, nets))] {
                    if !entity.is_empty() {
                        said.insert(key.to_owned(), Json::Object(entity));
                    }
                }
                if let Some(protocol) = rule.protocol {
                    said.insert("protocol".to_owned(), self::protocol(protocol));
                }
                if let Some(ports) = ports {
                    said.insert("ports".to_owned(), self::ports(ports));
                }
                if let Some(icmp) = rule.icmp {
                    said.insert("icmp".to_owned(), self::icmp(icmp));
                }
                if let Some(family) = rule.family {
                    said.insert("family".to_owned(), if family == Family::V4 { 4 } else { 6 }.into());
                }
                let mut not = Map::new();
                not.extend(rule.not_protocol.map(|protocol| ("protocol".to_owned(), self::protocol(protocol))));
                not.extend(rule.not_icmp.map(|icmp| ("icmp".to_owned(), self::icmp(icmp))));
                if !not.is_empty() {
                    said.insert("not".to_owned(), Json::Object(not));
                }
                said.extend(rule.comment.clone().map(|comment| ("comment".to_owned(), Json::from(comment))));
                rules.push(Json::Object(said));
            }
        }
        if rules.is_empty() {
            let message = "the rule is left out: its ports leave nothing that it could match";
            self.findings.push(Finding::warning(Code::NotConverted, &rule.place, message));
        }
        Ok(rules)
    }

    /// The addresses of a side; empty for any address, `None` for no address at all. Calico's conditions all hold, the parts of an
    /// entity of ours are united.
    fn addresses(&mut self, rule: &Rule, entity: &Entity) -> Result<Option<Map<String, Json>>, Cannot> {
        if let Some((key, place)) = &entity.elsewhere {
            return cannot(place, format!("`{key}` is nothing that the host knows the addresses of"));
        }
        let no_pods = match &entity.namespaces {
            Some(Namespaces::Some(place)) => {
                return cannot(place, "`namespaceSelector` means pods, whose addresses the host does not know");
            }
            Some(Namespaces::Global) => true,
            None => false,
        };
        // Less than is meant is safe in a condition of an allow, and in an exception of a deny.
        let fewer_is_less = |excluded: bool| match rule.action {
            Action::Allow => !excluded,
            Action::Deny => excluded,
            Action::Log => true,
            Action::Pass => false,
        };
        let denies = matches!(rule.action, Action::Deny | Action::Pass);
        let select = match &entity.selector {
            Some((selector, place)) => Some(self.select(selector, place, no_pods, (denies, fewer_is_less(false)))?),
            None if no_pods => Some(self.select(&Selector::All, &rule.place, true, (denies, true))?),
            None => None,
        };
        let not_select = match &entity.not_selector {
            // The namespaces are a condition on `selector` only.
            Some((selector, place)) => Some(self.select(selector, place, false, (denies, fewer_is_less(true)))?),
            None => None,
        };
        let mut except = Map::new();
        if !entity.not_nets.is_empty() {
            except.insert("cidrs".to_owned(), nets(&entity.not_nets));
        }
        if let Some(Selected::Part(key, value)) = not_select {
            except.insert(key.to_owned(), value);
        }
        let select = match select {
            Some(Selected::Nothing) => return Ok(None),
            Some(Selected::Part(key, value)) => Some((key.to_owned(), value)),
            None => None,
        };
        let mut said = Map::new();
        match (entity.nets.is_empty(), select) {
            (true, None) => {}
            (true, Some(select)) => said.extend([select]),
            (false, None) => drop(said.insert("cidrs".to_owned(), nets(&entity.nets))),
            (false, Some((key, value))) if except.is_empty() => {
                // What is in both: the networks, but what is not in the sets.
                said.insert("cidrs".to_owned(), nets(&entity.nets));
                let others = json!({ "cidrs": ["0.0.0.0/0", "::/0"], "except": { key: value } });
                said.insert("except".to_owned(), others);
            }
            (false, Some(_)) => {
                return cannot(
                    &rule.place,
                    "`nets` and `selector` with `notNets` or `notSelector` is more than an entity can say",
                );
            }
        }
        if !except.is_empty() {
            said.insert("except".to_owned(), Json::Object(except));
        }
        Ok(Some(said))
    }

    /// The selector over our sets for a selector over Calico's endpoints. What it may mean besides, pods, is not among our sets.
    fn select(
        &mut self,
        selector: &Selector,
        place: &Place,
        no_pods: bool,
        (denies, fewer_is_less): (bool, bool),
    ) -> Result<Selected, Cannot> {
        let sets: Vec<&NetworkSet> = self.sets.iter().filter(|set| selector.matches(&set.labels)).collect();
        if let (Some(set), false) = (sets.iter().find(|set| set.is_broken), fewer_is_less) {
            return cannot(
                place,
                format!("this selector means GlobalNetworkSet {}, which is wrong", quoted(&set.name)),
            );
        }
        let with_addresses = self.endpoints.iter().filter(|endpoint| !endpoint.addresses.is_empty());
        let endpoints: Vec<&HostEndpoint> =
            with_addresses.filter(|endpoint| selector.matches(&endpoint.labels)).collect();
        self.named.extend(endpoints.iter().map(|endpoint| endpoint.name.as_str()));
        let known = !sets.is_empty() || !endpoints.is_empty();
        // Without a label of its own it also means whatever has none.
        let broad = selector.matches(&Labels::new());
        // In place, sets come and go: one that is deleted must not make a denial of everything out of a denial of it.
        let comes_and_goes = self.names.is_some() && denies;
        if !no_pods && !fewer_is_less && (broad || !(known || comes_and_goes)) {
            return cannot(place, "this selector may mean pods, whose addresses the host does not know");
        }
        if !known {
            let message = "this selector means none of the GlobalNetworkSets and HostEndpoints with expectedIPs that were read, so no address";
            self.findings.push(Finding::warning(Code::EmptyEntity, place, message));
        } else if !no_pods {
            let message = "pods that this selector means are left out: the host does not know their addresses";
            self.findings.push(
                Finding::warning(Code::NotConverted, place, message)
                    .help("with namespaceSelector: global() no pod is meant"),
            );
        }
        if let Some(names) = self.names {
            let sets = sets.iter().filter_map(|set| names.sets.get(&set.name));
            let endpoints = endpoints.iter().filter_map(|endpoint| names.endpoints.get(&endpoint.name));
            let all: BTreeSet<&String> = sets.chain(endpoints).collect();
            return Ok(if all.is_empty() { Selected::Nothing } else { Selected::Part("sets", json!(all)) });
        }
        if !broad {
            return Ok(Selected::Part("select", selector.to_string().into()));
        }
        self.guarded = true;
        let ours = Selector::Has(KIND_LABEL.to_owned());
        let guarded = match selector {
            Selector::All => ours,
            Selector::And(parts) => Selector::And([vec![ours], parts.clone()].concat()),
            other => Selector::And(vec![ours, other.clone()]),
        };
        Ok(Selected::Part("select", guarded.to_string().into()))
    }

    /// The ports of a side. Named ones are numbers at the addresses of the host endpoints that have them.
    fn alternatives(&self, rule: &Rule, entity: &Entity) -> Result<Vec<Alternative>, Cannot> {
        let excluded = match &entity.not_ports {
            None => RangeSet::empty(),
            Some(ports) => match ports.names.first() {
                Some((name, place)) => return cannot(place, format!("a named port in `notPorts` ({})", quoted(name))),
                None => ports.numbers.clone(),
            },
        };
        let Some(ports) = &entity.ports else {
            let left = RangeSet::full().difference(&excluded);
            return Ok(match (excluded.is_empty(), left.is_empty()) {
                (true, _) => vec![(None, Vec::new())],
                (false, true) => Vec::new(),
                (false, false) => vec![(Some(left), Vec::new())],
            });
        };
        let mut found = Vec::new();
        let numbers = ports.numbers.difference(&excluded);
        if !numbers.is_empty() {
            found.push((Some(numbers), Vec::new()));
        }
        for (name, place) in &ports.names {
            if matches!(rule.action, Action::Deny | Action::Pass) {
                return cannot(place, format!("the named port {} may be one of pods, too", quoted(name)));
            }
            let alone = entity.nets.is_empty() && entity.not_nets.is_empty() && entity.selector.is_none();
            if !alone || entity.not_selector.is_some() || entity.namespaces.is_some() {
                return cannot(place, format!("the named port {} together with addresses", quoted(name)));
            }
            let mut addresses: BTreeMap<u16, BTreeSet<IpNet>> = BTreeMap::new();
            for endpoint in self.endpoints {
                for (_, _, number) in
                    endpoint.ports.iter().filter(|(own, of, _)| own == name && Some(*of) == rule.protocol)
                {
                    addresses.entry(*number).or_default().extend(&endpoint.addresses);
                }
            }
            addresses.retain(|number, nets| !nets.is_empty() && !excluded.contains(*number));
            if addresses.is_empty() {
                return cannot(place, format!("no HostEndpoint with expectedIPs has the port {}", quoted(name)));
            }
            found.extend(
                addresses
                    .into_iter()
                    .map(|(number, nets)| (Some(RangeSet::single(number)), nets.into_iter().collect())),
            );
        }
        Ok(found)
    }
}

/// A rule that denies what this one may mean, and more.
fn wider(rule: &Rule) -> Rule {
    let by_number = |ports: &Option<Ports>| ports.clone().filter(|ports| ports.names.is_empty());
    let any_address = |entity: &Entity| Entity {
        ports: by_number(&entity.ports),
        not_ports: by_number(&entity.not_ports),
        ..Entity::default()
    };
    let (source, destination) = (any_address(&rule.source), any_address(&rule.destination));
    Rule { action: Action::Deny, source, destination, http: None, ..rule.clone() }
}

/// An entity with the addresses of a named port, which stand alone where they are.
fn from_parts(entity: &Map<String, Json>, of_port: &[IpNet]) -> Map<String, Json> {
    let mut entity = entity.clone();
    if !of_port.is_empty() {
        entity.insert("cidrs".to_owned(), nets(of_port));
    }
    entity
}

/// Prefixes; one of a single address is written as the address.
pub(in crate::source) fn nets(nets: &[IpNet]) -> Json {
    nets.iter()
        .map(|net| {
            Json::from(if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() })
        })
        .collect()
}

pub(in crate::source) fn ports(ports: &PortSet) -> Json {
    let range =
        |(start, end): &(u16, u16)| if start == end { Json::from(*start) } else { format!("{start}-{end}").into() };
    ports.ranges().iter().map(range).collect()
}

pub(in crate::source) fn protocol(protocol: Protocol) -> Json {
    protocol.name().map_or_else(|| Json::from(protocol.0), Json::from)
}

fn icmp(icmp: Icmp) -> Json {
    match icmp.code {
        Some(code) => json!({ "type": icmp.kind, "code": code }),
        None => json!({ "type": icmp.kind }),
    }
}
