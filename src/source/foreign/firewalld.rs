//! Reads firewalld's files: zones with what they let in, services, ipsets and the default zone, in the order in which firewalld's
//! nftables backend asks (`firewall/core/nftables.py`, `build_policy_chain_rules`). Pure.

use std::collections::BTreeMap;

use ipnet::IpNet;
use roxmltree::{Document, Node, ParsingOptions};

use super::cube::Cube;
use super::iptables;
use super::model::{Base, Chain, Hook, Rule, Ruleset, Verdict};
use super::names::{Names, Pattern};
use super::words;
use crate::net::addr::AddrSet;
use crate::net::protocol::Protocol;
use crate::text::place::Place;
use crate::text::read::quoted;
use crate::text::tree::{Source, Span};

/// The most elements of a file.
const MOST_NODES: u32 = 500_000;
/// How deep services include each other.
const MOST_INCLUDES: usize = 8;
/// The policy that comes with firewalld: neighbour discovery, which nodewall's essentials have.
const SHIPPED_POLICY: &str = "allow-host-ipv6";
/// The longest text of a rule.
const LONGEST: usize = 200;

/// A file of one kind, by its name without the ending.
struct File<'a> {
    source: &'a Source,
    document: Document<'a>,
}

impl File<'_> {
    fn root(&self) -> Node<'_, '_> {
        self.document.root_element()
    }

    fn place(&self, node: Node<'_, '_>) -> Place {
        let range = node.range();
        let text = self.source.text.get(range.clone()).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default().len();
        self.source.place(Span { start: range.start as u32, end: (range.start + line) as u32 })
    }

    /// An element as it is written, on one line.
    fn text(&self, node: Node<'_, '_>) -> String {
        let text = self.source.text.get(node.range()).unwrap_or_default();
        let mut cut: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if cut.chars().count() > LONGEST {
            cut = cut.chars().take(LONGEST).collect();
        }
        cut
    }
}

type Files<'a> = BTreeMap<String, File<'a>>;

/// What firewalld does with these files.
pub(super) fn read(sources: &[Source]) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let (mut zones, mut services, mut sets, mut policies) = (Files::new(), Files::new(), Files::new(), Files::new());
    let (mut default, mut rpfilter) = (None, None);
    for source in sources {
        let file = source.file.rsplit('/').next().unwrap_or_default();
        let place = Place::file(source.file.clone());
        if file.ends_with(".conf") {
            default = setting(source, "DefaultZone").or(default);
            rpfilter = setting(source, "IPv6_rpfilter").or(rpfilter);
            continue;
        }
        let options = ParsingOptions { allow_dtd: false, nodes_limit: MOST_NODES, ..ParsingOptions::default() };
        let document = match Document::parse_with_options(&source.text, options) {
            Ok(document) => document,
            Err(error) => {
                ruleset.refuse(&place, format!("not an XML file of firewalld: {error}"), "");
                continue;
            }
        };
        let name = file.strip_suffix(".xml").unwrap_or(file).to_owned();
        let kind = document.root_element().tag_name().name().to_owned();
        let file = File { source, document };
        match kind.as_str() {
            "zone" => drop(zones.insert(name, file)),
            "service" => drop(services.insert(name, file)),
            "ipset" => drop(sets.insert(name, file)),
            "policy" => drop(policies.insert(name, file)),
            "direct" => {
                if let Some(rule) =
                    file.root().children().find(|node| matches!(node.tag_name().name(), "rule" | "passthrough"))
                {
                    let message = "direct rules are not converted, and may deny";
                    let help =
                        "convert them with --from iptables as what iptables-save prints, and take direct.xml out";
                    ruleset.refuse(&file.place(rule), message, help);
                }
            }
            other => ruleset.refuse(&place, format!("{} is no kind of file of firewalld", quoted(other)), ""),
        }
    }
    let mut world = World { services, sets, ruleset };
    world.zones(&zones, default.as_deref(), sources);
    world.policies(&policies);
    world.forward(&zones);
    if rpfilter.as_deref() != Some("no") && !zones.is_empty() {
        let place = Place::file(
            sources
                .iter()
                .find(|source| source.file.ends_with(".conf"))
                .map_or("firewalld", |source| source.file.as_ref()),
        );
        let message = "firewalld drops IPv6 packets whose source would not be answered by the interface that they come by (IPv6_rpfilter), and packets to IPv4 addresses in 6to4: nodewall has nothing like that";
        world.ruleset.warn(&place, message, "deny sources that cannot be by the interface in a policy of your own");
    }
    world.ruleset
}

/// Which packets, and what becomes of them, in order.
type Rules = Vec<(Cube, Verdict)>;

/// A setting of firewalld.conf.
fn setting(source: &Source, key: &str) -> Option<String> {
    let mut values =
        source.text.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('=').map(str::trim));
    values.next_back().map(str::to_owned)
}

struct World<'a> {
    services: Files<'a>,
    sets: Files<'a>,
    ruleset: Ruleset,
}

impl World<'_> {
    /// The chain of what comes in: by source, by interface, then the default zone.
    fn zones(&mut self, zones: &Files<'_>, default: Option<&str>, sources: &[Source]) {
        let default_name = default.unwrap_or("public");
        let Some(default) = zones.get(default_name) else {
            let place = Place::file(sources.first().map_or("firewalld", |source| source.file.as_ref()));
            let message = format!("there is no zone {} here, which is the default zone", quoted(default_name));
            self.ruleset.refuse(
                &place,
                message,
                "give the directory /etc/firewalld beside /usr/lib/firewalld, or the file of that zone",
            );
            return;
        };
        self.ruleset.chains.push(Chain { name: "input".to_owned(), ..Chain::default() });
        let mut rules = Vec::new();
        let mut chains = BTreeMap::new();
        for (name, zone) in zones {
            let root = zone.root();
            let is_used = root.children().any(|node| matches!(node.tag_name().name(), "interface" | "source"));
            if is_used || name == default_name {
                if root.attribute("ingress-priority").is_some() {
                    self.ruleset.refuse(&zone.place(root), "priorities among zones are not converted", "");
                }
                chains.insert(name.clone(), self.zone(name, zone));
            }
        }
        for kind in ["source", "interface"] {
            for (name, zone) in zones {
                let Some(chain) = chains.get(name) else { continue };
                for node in zone.root().children().filter(|node| node.tag_name().name() == kind) {
                    let cube = if kind == "source" { self.source(node) } else { interface(node) };
                    rules.push(Rule {
                        cube,
                        verdict: Verdict::Goto(*chain),
                        place: zone.place(node),
                        text: zone.text(node),
                    });
                }
            }
        }
        if let Some(chain) = chains.get(default_name) {
            let (place, text) = (default.place(default.root()), format!("DefaultZone={default_name}"));
            rules.push(Rule {
                cube: Cube::full(),
                verdict: Verdict::Goto(*chain),
                place: place.clone(),
                text: text.clone(),
            });
            self.ruleset.bases.push(Base {
                chain: 0,
                hook: Hook::Input,
                priority: 0,
                v4: true,
                v6: true,
                policy: Verdict::Reject,
                place,
                text,
            });
        }
        if let Some(input) = self.ruleset.chains.first_mut() {
            input.rules = rules;
        }
        if !zones.values().any(|zone| zone.root().children().any(|node| node.tag_name().name() == "interface")) {
            let message = "no zone names an interface in these files: where NetworkManager puts interfaces into zones, that is not seen";
            self.ruleset.warn(
                &default.place(default.root()),
                message,
                "see firewall-cmd --get-active-zones, and add <interface name=\"...\"/> to the zones before converting",
            );
        }
    }

    /// The chain of a zone: before, denials, what is let in, after, ICMP, and the target.
    fn zone(&mut self, name: &str, zone: &File<'_>) -> usize {
        let root = zone.root();
        let target = root.attribute("target").unwrap_or("default");
        let inverted = root.children().any(|node| node.tag_name().name() == "icmp-block-inversion");
        let (mut early, mut logs, mut denies, mut allows, mut late) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for node in root.children().filter(Node::is_element) {
            let kind = node.tag_name().name();
            match kind {
                "short" | "description" | "interface" | "source" | "icmp-block-inversion" => {}
                "forward" => {}
                "service" | "port" | "protocol" | "source-port" => {
                    let cubes = self.element(zone, node);
                    allows.extend(cubes.into_iter().map(|cube| (cube, Verdict::Accept, node)));
                }
                "icmp-block" => {
                    let cubes = self.element(zone, node);
                    let (list, verdict) =
                        if inverted { (&mut allows, Verdict::Accept) } else { (&mut denies, Verdict::Reject) };
                    list.extend(cubes.into_iter().map(|cube| (cube, verdict.clone(), node)));
                }
                "masquerade" | "forward-port" => self.ruleset.warn(
                    &zone.place(node),
                    format!(
                        "{} is not converted: nodewall translates no addresses, and what is forwarded so is denied",
                        quoted(kind)
                    ),
                    "keep it where it is, and allow what it needs in a policy of stage \"forward\" of your own",
                ),
                "rule" => {
                    let priority: i32 = node.attribute("priority").and_then(|text| text.parse().ok()).unwrap_or(0);
                    let (log, action) = self.rich(zone, node);
                    let verdict = action.first().map(|(_, verdict)| verdict.clone());
                    let placed = |parts: Vec<(Cube, Verdict)>| {
                        parts.into_iter().map(move |(cube, verdict)| (cube, verdict, node))
                    };
                    match (priority, verdict) {
                        (0, verdict) => {
                            logs.extend(placed(log));
                            let list = if matches!(verdict, Some(Verdict::Accept | Verdict::Nothing)) {
                                &mut allows
                            } else {
                                &mut denies
                            };
                            list.extend(placed(action));
                        }
                        (priority, _) => {
                            let list = if priority < 0 { &mut early } else { &mut late };
                            list.push((priority, placed(log).chain(placed(action)).collect::<Vec<_>>()));
                        }
                    }
                }
                _ => self.ruleset.refuse(
                    &zone.place(node),
                    format!("{} is nothing that is known of a zone", quoted(kind)),
                    "",
                ),
            }
        }
        early.sort_by_key(|(priority, _)| *priority);
        late.sort_by_key(|(priority, _)| *priority);
        let early = early.into_iter().flat_map(|(_, parts)| parts);
        let late = late.into_iter().flat_map(|(_, parts)| parts);
        let parts = early.chain(logs).chain(denies).chain(allows).chain(late);
        let mut rules: Vec<Rule> = parts
            .map(|(cube, verdict, node)| Rule { cube, verdict, place: zone.place(node), text: zone.text(node) })
            .collect();
        let (place, text) = (zone.place(root), format!("target of zone {name}: {target}"));
        if target == "default" || target == "ACCEPT" && inverted {
            let verdict = if inverted { Verdict::Reject } else { Verdict::Accept };
            for protocol in [Protocol::ICMP, Protocol::ICMPV6] {
                let v4 = protocol == Protocol::ICMP;
                // What is of the other version is no ICMP to those who let it in, and denied all the same.
                let families = if verdict == Verdict::Accept { Cube::of(v4, !v4) } else { Cube::full() };
                let cube = families.and(&Cube::protocol(protocol));
                let text = format!("ICMP in zone {name}");
                rules.push(Rule { cube, verdict: verdict.clone(), place: place.clone(), text });
            }
        }
        let verdict = match target {
            "ACCEPT" => Verdict::Accept,
            "DROP" => Verdict::Drop,
            _ => Verdict::Reject,
        };
        rules.push(Rule { cube: Cube::full(), verdict, place, text });
        let index = self.ruleset.chains.len();
        self.ruleset.chains.push(Chain { name: format!("zone {name}"), rules, owner: None });
        index
    }

    /// Who is in a zone by its address.
    fn source(&self, node: Node<'_, '_>) -> Cube {
        if let Some(mac) = node.attribute("mac") {
            return Cube::unknown(format!("the hardware address {mac}"));
        }
        self.addresses(node, false)
    }

    /// Addresses of an element, by themselves or by a set.
    fn addresses(&self, node: Node<'_, '_>, is_destination: bool) -> Cube {
        let set = match (node.attribute("address"), node.attribute("ipset")) {
            (Some(text), _) if text.strip_prefix("ipset:").is_none() => match words::prefix(text) {
                Some(net) => std::iter::once(net).collect::<AddrSet>(),
                None => return Cube::unknown(format!("the address {}", quoted(text))),
            },
            (text, set) => {
                let name = set.or(text.and_then(|text| text.strip_prefix("ipset:"))).unwrap_or_default();
                match self.members(name) {
                    Some(set) => set,
                    None => return Cube::unknown(format!("what is in ipset {}", quoted(name))),
                }
            }
        };
        // A prefix is of one version, also where it is negated.
        let families = Cube::of(!set.v4.is_empty(), !set.v6.is_empty());
        let negated = matches!(node.attribute("invert"), Some("yes" | "true" | "True"));
        let set = if negated { AddrSet::full().difference(&set) } else { set };
        let addresses = if is_destination {
            Cube { destination: set, ..Cube::full() }
        } else {
            Cube { source: set, ..Cube::full() }
        };
        families.and(&addresses)
    }

    /// The addresses of an ipset whose members are in its file.
    fn members(&self, name: &str) -> Option<AddrSet> {
        let file = self.sets.get(name)?;
        let root = file.root();
        if !matches!(root.attribute("type")?, "hash:ip" | "hash:net") {
            return None;
        }
        let moves =
            root.children().any(|node| node.tag_name().name() == "option" && node.attribute("name") == Some("timeout"));
        let mut nets: Vec<IpNet> = Vec::new();
        for node in root.children().filter(|node| node.tag_name().name() == "entry") {
            let text = node.text().unwrap_or_default().trim();
            match words::prefix(text) {
                Some(net) => nets.push(net),
                None => nets.extend(text.split_once('-').and_then(|(start, end)| iptables::range(start, end))?),
            }
        }
        (!moves && !nets.is_empty()).then(|| nets.into_iter().collect())
    }

    /// What an element of a zone or of a rich rule matches; of a service, each of its ports.
    fn element(&mut self, file: &File<'_>, node: Node<'_, '_>) -> Vec<Cube> {
        let attribute = |name: &str| node.attribute(name).unwrap_or_default();
        match node.tag_name().name() {
            "service" => self.service(attribute("name"), MOST_INCLUDES).unwrap_or_else(|| {
                let message = format!("there is no service {} here", quoted(attribute("name")));
                self.ruleset.warn(
                    &file.place(node),
                    message,
                    "give the directory of firewalld beside /usr/lib/firewalld/services",
                );
                vec![Cube::unknown(format!("what the service {} is", quoted(attribute("name"))))]
            }),
            "port" => vec![ports(attribute("protocol"), attribute("port"), false)],
            "source-port" => vec![ports(attribute("protocol"), attribute("port"), true)],
            "protocol" => vec![protocol(attribute("value"))],
            "icmp-block" | "icmp-type" => icmp(attribute("name")),
            other => vec![Cube::unknown(format!("the element {other}"))],
        }
    }

    /// What a service is, with those that it includes.
    fn service(&self, name: &str, depth: usize) -> Option<Vec<Cube>> {
        let file = self.services.get(name)?;
        let children = || file.root().children().filter(Node::is_element);
        let mut destinations = vec![Cube::full()];
        if let Some(node) = children().find(|node| node.tag_name().name() == "destination") {
            destinations.clear();
            for key in ["ipv4", "ipv6"] {
                let Some(text) = node.attribute(key) else { continue };
                let Some(net) = words::prefix(text) else {
                    return Some(vec![Cube::unknown(format!("the destination {text}"))]);
                };
                let families = Cube::of(matches!(net, IpNet::V4(_)), matches!(net, IpNet::V6(_)));
                destinations.push(families.and(&Cube { destination: std::iter::once(net).collect(), ..Cube::full() }));
            }
        }
        let mut cubes = Vec::new();
        for node in children() {
            let attribute = |name: &str| node.attribute(name).unwrap_or_default();
            let cube = match node.tag_name().name() {
                "port" if attribute("port").is_empty() => protocol(attribute("protocol")),
                "port" => ports(attribute("protocol"), attribute("port"), false),
                "source-port" => ports(attribute("protocol"), attribute("port"), true),
                "protocol" => protocol(attribute("value")),
                "include" if depth > 0 => {
                    cubes.extend(self.service(attribute("service"), depth - 1).unwrap_or_default());
                    continue;
                }
                // Helpers of connection tracking make flows related, which nodewall lets through.
                _ => continue,
            };
            cubes.extend(destinations.iter().map(|to| to.and(&cube)).filter(|cube| !cube.is_empty()));
        }
        Some(cubes)
    }

    /// A rich rule: what it logs, and what it does.
    fn rich(&mut self, zone: &File<'_>, node: Node<'_, '_>) -> (Rules, Rules) {
        let mut base = match node.attribute("family") {
            Some("ipv4") => Cube::of(true, false),
            Some("ipv6") => Cube::of(false, true),
            _ => Cube::full(),
        };
        let mut elements = vec![Cube::full()];
        let (mut log, mut action) = (None, None);
        let limit = |node: Node<'_, '_>| {
            let Some(limit) = node.children().find(|node| node.tag_name().name() == "limit") else {
                return Cube::full();
            };
            let burst = limit.attribute("burst").and_then(|text| text.parse().ok()).unwrap_or(5);
            let limit =
                limit.attribute("value").and_then(words::rate).and_then(|rate| words::limit(rate, burst, false));
            limit.map_or_else(|| Cube::unknown("this limit"), |limit| Cube { limit: Some(limit), ..Cube::full() })
        };
        for part in node.children().filter(Node::is_element) {
            match part.tag_name().name() {
                "source" => base = base.and(&self.source_of_rule(part)),
                "destination" => base = base.and(&self.addresses(part, true)),
                "service" | "port" | "protocol" | "source-port" | "icmp-type" => elements = self.element(zone, part),
                "icmp-block" => {
                    elements = self.element(zone, part);
                    action = Some((Verdict::Reject, Cube::full()));
                }
                "log" | "nflog" => {
                    let prefix = part.attribute("prefix").unwrap_or_default();
                    log = Some((Verdict::Log(prefix.to_owned()), limit(part)));
                }
                "accept" => action = Some((Verdict::Accept, limit(part))),
                "reject" => action = Some((Verdict::Reject, limit(part))),
                "drop" => action = Some((Verdict::Drop, limit(part))),
                "mark" => action = Some((Verdict::Nothing, Cube::full())),
                "audit" | "tcp-mss-clamp" => {}
                "masquerade" | "forward-port" => {
                    let message = "rich rules that translate addresses are not converted";
                    self.ruleset.warn(&zone.place(part), message, "keep them where they are");
                    return (Vec::new(), Vec::new());
                }
                other => {
                    let message = format!("{} is nothing that is known of a rich rule", quoted(other));
                    self.ruleset.refuse(&zone.place(part), message, "");
                }
            }
        }
        let all = |part: Option<(Verdict, Cube)>| {
            let (verdict, condition) = part?;
            let cubes =
                elements.iter().map(|element| base.and(element).and(&condition)).filter(|cube| !cube.is_empty());
            Some(cubes.map(|cube| (cube, verdict.clone())).collect::<Vec<_>>())
        };
        (all(log).unwrap_or_default(), all(action).unwrap_or_default())
    }

    fn source_of_rule(&self, node: Node<'_, '_>) -> Cube {
        self.source(node)
    }

    /// Policies between zones: those that only let through are left out.
    fn policies(&mut self, policies: &Files<'_>) {
        for (name, policy) in policies {
            if name == SHIPPED_POLICY {
                continue;
            }
            let root = policy.root();
            let target = root.attribute("target").unwrap_or("CONTINUE");
            let denies = matches!(target, "DROP" | "REJECT" | "%%REJECT%%")
                || root.descendants().any(|node| matches!(node.tag_name().name(), "drop" | "reject" | "icmp-block"));
            let place = policy.place(root);
            if denies {
                let message = format!(
                    "policy {} of firewalld denies, and policies between zones are not converted",
                    quoted(name)
                );
                self.ruleset.refuse(
                    &place,
                    message,
                    "write what it denies as a policy of nodewall, and take its file out",
                );
            } else {
                let message = format!(
                    "policy {} of firewalld is left out, so that less is allowed: policies between zones are not converted",
                    quoted(name)
                );
                self.ruleset.warn(&place, message, "allow what it is for in a policy of your own");
            }
        }
    }

    /// What is forwarded: firewalld rejects what no zone lets through, and who is let through is nothing that can be said.
    fn forward(&mut self, zones: &Files<'_>) {
        let Some(first) = self.ruleset.bases.first().cloned() else { return };
        let chain = self.ruleset.chains.len();
        self.ruleset.chains.push(Chain { name: "forward".to_owned(), ..Chain::default() });
        let text = "what is forwarded between zones".to_owned();
        self.ruleset.bases.push(Base { chain, hook: Hook::Forward, text, ..first.clone() });
        let lets = zones.values().find_map(|zone| {
            let forwards =
                |node: &Node<'_, '_>| matches!(node.tag_name().name(), "forward" | "masquerade" | "forward-port");
            let found = zone.root().children().find(forwards);
            found
                .or_else(|| (zone.root().attribute("target") == Some("ACCEPT")).then(|| zone.root()))
                .map(|node| zone.place(node))
        });
        if let Some(place) = lets {
            let message =
                "what zones forward is left out, so that nothing is: that is decided by both interfaces together";
            let help = "where this host forwards (containers, virtual machines, NAT), remove the policy firewalld-forward, or allow what is needed before it";
            self.ruleset.warn(&place, message, help);
        }
    }
}

fn interface(node: Node<'_, '_>) -> Cube {
    let name = node.attribute("name").unwrap_or_default();
    if !words::is_interface(name.strip_suffix('+').unwrap_or(name)) {
        return Cube::unknown(format!("the interface {}", quoted(name)));
    }
    Cube { input: Names::any_of([Pattern::with_wildcard(name, '+')]), ..Cube::full() }
}

fn protocol(name: &str) -> Cube {
    words::protocol(name).map_or_else(|| Cube::unknown(format!("the protocol {}", quoted(name))), Cube::protocol)
}

fn ports(protocol: &str, text: &str, is_source: bool) -> Cube {
    let known = words::protocol(protocol).filter(|protocol| protocol.has_ports()).zip(words::ports(text));
    match known {
        Some((protocol, ports)) if is_source => Cube { sports: ports, ..Cube::protocol(protocol) },
        Some((protocol, ports)) => Cube { dports: ports, ..Cube::protocol(protocol) },
        None => Cube::unknown(format!("the port {text}/{protocol}")),
    }
}

/// An ICMP type of both versions, as far as they have it.
fn icmp(name: &str) -> Vec<Cube> {
    let v4 = words::icmp(name, false)
        .map(|types| Cube::of(true, false).and(&Cube { icmp: types, ..Cube::protocol(Protocol::ICMP) }));
    let v6 = words::icmp(name, true)
        .map(|types| Cube::of(false, true).and(&Cube { icmpv6: types, ..Cube::protocol(Protocol::ICMPV6) }));
    let cubes: Vec<Cube> = v4.into_iter().chain(v6).collect();
    if cubes.is_empty() { vec![Cube::unknown(format!("the ICMP type {}", quoted(name)))] } else { cubes }
}
