//! Policy documents from a text's tree to the model: `[[interface]]`, `[[set]]`, `[[service]]`, `[[tier]]`, `[[policy]]`,
//! `[[expect]]` (`policy.md` section 2). A document with an error is left out; the others load.

use std::collections::BTreeSet;

use super::process::local_process;
use crate::net::addr::Family;
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::{PortSet, Protocol};
use crate::policy::model::{
    Action, Entity, ExpectedSet, HostPolicy, IcmpMatch, InterfaceMatch, InterfaceOverride, Limit, Mode, NamedSet, Not,
    Rule, Service, Stage, Tier, TierDefault, Transport,
};
use crate::policy::parse::{self, EntityPlace, unsupported};
use crate::policy::selector::Selector;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::read::{Fields, Reader, quoted};
use crate::text::time;
use crate::text::tree::{Node, Source, Span, Value, parse as parse_toml};

/// The longest text of `log`, in bytes: the kernel's prefix has 127 (`NF_LOG_PREFIXLEN`), and the rule's name goes in front.
const MAX_LOG_TEXT: usize = 48;

/// The documents of one text.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Documents {
    /// `[[interface]]` without errors, in order.
    pub interfaces: Vec<InterfaceOverride>,
    /// `[[set]]` without errors, in order.
    pub sets: Vec<NamedSet>,
    /// `[[service]]` without errors, in order.
    pub services: Vec<Service>,
    /// `[[tier]]` without errors, in order.
    pub tiers: Vec<Tier>,
    /// `[[policy]]` without errors, in order.
    pub policies: Vec<HostPolicy>,
    /// `[[expect]]` about sets without errors, in order.
    pub expected_sets: Vec<ExpectedSet>,
    /// Kind and name of documents with errors: an object of the same name and lower precedence must not come back in
    /// their place.
    pub broken: BTreeSet<(&'static str, String)>,
}

impl Documents {
    /// Notes that they were written in this cluster.
    pub(super) fn written_in(&mut self, cluster: &str) {
        let directions = self.policies.iter_mut().flat_map(|policy| [&mut policy.ingress, &mut policy.egress]);
        for rule in directions.flatten().flatten() {
            [&mut rule.from, &mut rule.to].into_iter().flatten().for_each(|entity| entity.written_in(cluster));
        }
    }
}

/// Decodes the documents of a TOML text. A text with syntax errors yields no documents, as it is unclear where one ends and
/// the next begins, but the other findings in it all the same.
pub(super) fn decode(source: &Source) -> (Documents, Vec<Finding>) {
    let (root, mut findings) = parse_toml(source);
    let Some(root) = root else { return (Documents::default(), findings) };
    let mut reader = Reader::new(source);
    let mut documents = Documents::default();
    if let Some(mut fields) = reader.table(&root, "a policy file") {
        let reader = &mut reader;
        let broken = &mut documents.broken;
        documents.interfaces = all(reader, &mut fields, "interface", broken, interface);
        documents.sets = all(reader, &mut fields, "set", broken, set);
        documents.services = all(reader, &mut fields, "service", broken, service);
        documents.tiers = all(reader, &mut fields, "tier", broken, tier);
        documents.policies = all(reader, &mut fields, "policy", broken, policy);
        documents.expected_sets = all(reader, &mut fields, "expect", broken, expect);
        fields.finish(reader, "a policy file");
    }
    if findings.is_empty() {
        return (documents, reader.into_findings());
    }
    // What a syntax error swallowed is not missing, and what stands on its line is its echo.
    let lines: BTreeSet<u32> = findings.iter().map(|finding| finding.place.line).collect();
    let apart = |finding: &Finding| finding.code != Code::MissingKey && !lines.contains(&finding.place.line);
    findings.extend(reader.into_findings().into_iter().filter(apart));
    let mut broken = documents.broken;
    broken.extend(documents.interfaces.into_iter().map(|document| ("interface", document.name)));
    broken.extend(documents.sets.into_iter().map(|document| ("set", document.name)));
    broken.extend(documents.services.into_iter().map(|document| ("service", document.name)));
    broken.extend(documents.tiers.into_iter().map(|document| ("tier", document.name)));
    broken.extend(documents.policies.into_iter().map(|document| ("policy", document.name)));
    broken.extend(documents.expected_sets.into_iter().map(|document| ("expect", document.name)));
    (Documents { broken, ..Documents::default() }, findings)
}

/// All documents of a kind that have no error.
fn all<'t, T>(
    reader: &mut Reader<'t>,
    root: &mut Fields<'_, 't>,
    kind: &'static str,
    broken: &mut BTreeSet<(&'static str, String)>,
    read: impl Fn(&mut Reader<'t>, &mut Fields<'_, 't>, Named<'_>) -> Option<T>,
) -> Vec<T> {
    let Some(entry) = root.entry(kind) else { return Vec::new() };
    let Value::Array(items) = &entry.node.value else {
        let message = format!("`{kind}` must be a list of tables, not {}", entry.node.value.kind());
        reader.error_with_help(Code::Type, entry.span, message, format!("write [[{kind}]]"));
        return Vec::new();
    };
    let what = format!("[[{kind}]]");
    let mut documents = Vec::new();
    for item in items {
        let before = reader.errors();
        let Some(mut fields) = reader.table(item, &what) else { continue };
        let node = fields.need(reader, "name", &what);
        let name = node.and_then(|node| self::name(reader, node, kind));
        // A document without a name is read all the same, for what else is wrong with it.
        let document = read(reader, &mut fields, Named { name: name.clone().unwrap_or_default(), what: &what });
        fields.finish(reader, &what);
        match document {
            Some(document) if reader.errors() == before => documents.push(document),
            _ => broken.extend(name.map(|name| (kind, name))),
        }
    }
    documents
}

/// The name of a document of a kind.
fn name<'t>(reader: &mut Reader<'t>, node: &Node<'t>, kind: &'static str) -> Option<String> {
    match kind {
        // What is expected is said in a sentence, and nothing refers to it.
        "expect" => reader.string(node, "the name of an expect").map(str::to_owned),
        _ => parse::name(reader, node, &format!("the name of a {kind}")),
    }
}

/// What a document is, beside its fields.
struct Named<'w> {
    /// Its name; empty where that is in error.
    name: String,
    /// What a person calls it where it stands: "[[policy]]", "HostPolicy".
    what: &'w str,
}

/// Decodes a document of a kind (the name of its table in TOML) that stands by itself: `body` has its fields but `name`, and `what`
/// is what people call it there. An `expect` may have a `name` of its own, in words.
pub(super) fn decode_body<'t>(
    reader: &mut Reader<'t>,
    kind: &'static str,
    what: &str,
    name: &Node<'t>,
    body: &Node<'t>,
) -> Documents {
    let before = reader.errors();
    let mut documents = Documents::default();
    let Some(mut fields) = reader.table(body, what) else {
        documents.broken.extend(self::name(reader, name, kind).map(|name| (kind, name)));
        return documents;
    };
    let own = if kind == "expect" { fields.get("name") } else { None };
    let name = self::name(reader, own.unwrap_or(name), kind);
    let named = Named { name: name.clone().unwrap_or_default(), what };
    let fields_of = &mut fields;
    match kind {
        "interface" => documents.interfaces.extend(interface(reader, fields_of, named)),
        "set" => documents.sets.extend(set(reader, fields_of, named)),
        "service" => documents.services.extend(service(reader, fields_of, named)),
        "tier" => documents.tiers.extend(tier(reader, fields_of, named)),
        "policy" => documents.policies.extend(policy(reader, fields_of, named)),
        _ => documents.expected_sets.extend(expect(reader, fields_of, named)),
    }
    fields.finish(reader, what);
    if reader.errors() == before {
        return documents;
    }
    Documents { broken: name.map(|name| (kind, name)).into_iter().collect(), ..Documents::default() }
}

fn interface<'t>(
    reader: &mut Reader<'t>,
    fields: &mut Fields<'_, 't>,
    Named { name, what }: Named<'_>,
) -> Option<InterfaceOverride> {
    let place = reader.place(fields.span);
    let matches = fields.need(reader, "match", what);
    let role_node = fields.get("role");
    let role = role_node.and_then(|role| parse::role_name(reader, role));
    if let (Some(node), Some(Role::Loopback)) = (role_node, role) {
        let help = "the kernel says what is loopback; it is trusted, so nothing else can be given that role";
        reader.error_with_help(Code::Value, node.span, "an interface cannot be given the role loopback", help);
    }
    let labels = fields.get("labels");
    if let Some(Value::Table(entries)) = labels.map(|labels| &labels.value) {
        for entry in entries.iter().filter(|entry| BUILT_IN_LABELS.contains(&&*entry.key)) {
            let message = format!("\"{}\" is a built-in label and cannot be set", entry.key);
            let help = if entry.key == "role" { "write role = \"...\" beside `labels`" } else { "choose another name" };
            reader.error_with_help(Code::Conflict, entry.span, message, help);
        }
    }
    let labels = labels.map(|labels| parse::labels(reader, labels, "labels")).unwrap_or_default();
    let bypassed = fields.get("coverage").map(|word| reader.word(word, "coverage to declare", &[("bypassed", true)]));
    let matches = interface_match(reader, matches?)?;
    Some(InterfaceOverride { name, matches, role, labels, bypassed: bypassed.unwrap_or(Some(false))?, place })
}

/// Every interface has these (`policy.md` section 2).
const BUILT_IN_LABELS: [&str; 8] = ["name", "role", "kind", "driver", "rail", "rdma", "link", "coverage"];

fn interface_match<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<InterfaceMatch> {
    let mut fields = reader.table(node, "match")?;
    if fields.is_empty() {
        let help = "at least one of: bus, driver, kind, link, mac, master, name, pci, rdma";
        reader.error_with_help(Code::Value, node.span, "`match` is empty and would match every interface", help);
        return None;
    }
    let mut word = |reader: &mut Reader<'t>, key: &'static str| {
        let node = fields.get(key)?;
        let text = reader.string(node, key)?;
        if text.is_empty() || text.len() > 128 || text.chars().any(|next| next.is_control() || next.is_whitespace()) {
            reader.error(Code::Value, node.span, format!("{} cannot be a {key}", quoted(text)));
            return None;
        }
        Some((text.to_owned(), node.span))
    };
    let mut matches = InterfaceMatch {
        kind: word(reader, "kind").map(|(text, _)| text),
        driver: word(reader, "driver").map(|(text, _)| text),
        bus: word(reader, "bus").map(|(text, _)| text),
        rdma: word(reader, "rdma").map(|(text, _)| text),
        ..InterfaceMatch::default()
    };
    let mut checked = |reader: &mut Reader<'t>, key, check: fn(&str) -> Option<String>, help: &str| {
        let (text, span) = word(reader, key)?;
        let fits = check(&text);
        if fits.is_none() {
            reader.error_with_help(Code::Value, span, format!("{} cannot be a {key}", quoted(&text)), help);
        }
        fits
    };
    let glob_help = "a glob of *, ? and [a-z], of at most 64 bytes, without \"/\"";
    matches.name = checked(reader, "name", glob, glob_help);
    matches.pci = checked(reader, "pci", pci_address, "a PCI address like \"0000:c1:00.0\"");
    matches.mac = checked(reader, "mac", mac_address, "a hardware address like \"02:42:ac:11:00:02\"");
    let master_help = "the name of an interface: 1 to 15 bytes without \"/\" and \":\"";
    matches.master = checked(reader, "master", |text| Some(InterfaceName::new(text)?.to_string()), master_help);
    matches.link = fields.get("link").and_then(|link| {
        let words = ["ethernet", "infiniband", "loopback", "other"].map(|word| (word, word));
        reader.word(link, "link layer", &words).map(str::to_owned)
    });
    fields.finish(reader, "`match`");
    Some(matches)
}

/// The text, if it is a glob: `*`, `?`, `[abc]`, `[a-z]`, `[!a-z]`.
fn glob(text: &str) -> Option<String> {
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '[' => {
                let (class, after) = rest.as_str().split_once(']')?;
                let class: Vec<char> = class.strip_prefix(['!', '^']).unwrap_or(class).chars().collect();
                let backwards = class.windows(3).any(|range| matches!(range, [from, '-', to] if from > to));
                if class.is_empty() || class.contains(&'[') || backwards {
                    return None;
                }
                rest = after.chars();
            }
            ']' | '/' | '\\' | '{' | '}' => return None,
            _ => {}
        }
    }
    (text.len() <= 64).then(|| text.to_owned())
}

/// `[domain:]bus:device.function` in the spelling of sysfs: lower case, with the domain.
fn pci_address(text: &str) -> Option<String> {
    let hex = |part: &str, least: usize, most: usize| {
        (least..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let lower = text.to_ascii_lowercase();
    let (front, function) = lower.rsplit_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (domain, bus) = front.split_once(':').unwrap_or(("0000", front));
    let fits = hex(domain, 4, 8) && hex(bus, 2, 2) && hex(device, 2, 2) && matches!(function.as_bytes(), [b'0'..=b'7']);
    fits.then(|| format!("{domain}:{bus}:{device}.{function}"))
}

/// A hardware address in lower case with colons: 6 bytes, or 20 for IP over InfiniBand.
fn mac_address(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase().replace('-', ":");
    let parts: Vec<&str> = lower.split(':').collect();
    let fits = matches!(parts.len(), 6 | 20)
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
    fits.then_some(lower)
}

fn set<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, Named { name, what }: Named<'_>) -> Option<NamedSet> {
    let place = reader.place(fields.span);
    let labels = fields.get("labels").map(|labels| parse::labels(reader, labels, "labels")).unwrap_or_default();
    let cidrs = fields.get("cidrs");
    let domains = fields.entry("domains");
    if let Some(domains) = domains {
        parse::domains(reader, &domains.node);
        unsupported(reader, domains.span, "`domains`");
    } else if cidrs.is_none() {
        let message = format!("{what} has no `cidrs`");
        reader.error_with_help(Code::MissingKey, fields.span, message, "cidrs = [] is a set that holds nothing yet");
    }
    let cidrs = parse::prefixes(reader, cidrs?, "cidrs");
    Some(NamedSet { name, labels, cidrs, place })
}

fn service<'t>(
    reader: &mut Reader<'t>,
    fields: &mut Fields<'_, 't>,
    Named { name, what }: Named<'_>,
) -> Option<Service> {
    let place = reader.place(fields.span);
    let ports = fields.need(reader, "ports", what);
    let ports = ports.map(|ports| parse::service_ports(reader, ports, "ports"));
    let words = [("ip", Transport::Ip), ("rdma", Transport::Rdma)];
    let transport = fields.get("transport").map(|word| reader.word(word, "transport", &words));
    Some(Service { name, ports: ports?, transport: transport.unwrap_or(Some(Transport::Ip))?, place })
}

fn tier<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>, Named { name, what }: Named<'_>) -> Option<Tier> {
    let place = reader.place(fields.span);
    let order = fields.need(reader, "order", what);
    let order = order.and_then(|order| reader.integer(order, "order", i64::MIN, i64::MAX));
    let words = [("deny", TierDefault::Deny), ("pass", TierDefault::Pass)];
    let default = fields.need(reader, "default", what);
    let default = default.and_then(|word| reader.word(word, "default of a tier", &words));
    Some(Tier { name, order: order?, default: default?, place })
}

fn policy<'t>(
    reader: &mut Reader<'t>,
    fields: &mut Fields<'_, 't>,
    Named { name, what }: Named<'_>,
) -> Option<HostPolicy> {
    let place = reader.place(fields.span);
    let tier = fields.get("tier");
    let tier_place = tier.map_or_else(|| place.clone(), |tier| reader.place(tier.span));
    let tier = match tier {
        None => Some("default".to_owned()),
        Some(tier) => parse::name(reader, tier, "the name of a tier"),
    };
    let order = fields.get("order").and_then(|order| reader.integer(order, "order", i64::MIN, i64::MAX));
    let interfaces = fields.get("interfaces");
    if interfaces.is_none() {
        let help = "interfaces = \"all()\" selects every interface";
        reader.error_with_help(Code::MissingKey, fields.span, format!("{what} has no `interfaces`"), help);
    }
    let interfaces = interfaces.and_then(|node| parse::selector(reader, node, "interfaces"));
    let nodes = match fields.get("nodes") {
        None => Some(Selector::All),
        Some(node) => parse::selector(reader, node, "nodes"),
    };
    let mode = match fields.get("mode") {
        None => Some(Mode::Enforce),
        Some(mode) => reader.word(mode, "mode", &[("enforce", Mode::Enforce), ("audit", Mode::Audit)]),
    };
    let stages = Stage::ALL.map(|stage| (stage.name(), stage));
    let stage = fields.get("stage");
    let stage = stage.map_or(Some(Stage::Host), |node| reader.word(node, "stage", &stages));
    let expires = fields.get("expires").map(|node| expiry(reader, node));
    let acknowledge =
        fields.get("acknowledge").map(|node| reader.word(node, "thing to acknowledge", &[("bypass", ())]));
    // Where the stage is in error, that is said there.
    let at = stage.unwrap_or(Stage::Host);
    let ingress = fields.get("ingress").map(|node| rules(reader, node, (Direction::Ingress, at)));
    let egress = fields.entry("egress");
    if let (Some(Stage::Prednat), Some(entry)) = (stage, egress) {
        let message = "stage \"prednat\" has no egress: it sees packets as they arrive, before any DNAT";
        let help = "write egress rules in a policy of stage \"host\" or \"forward\"";
        reader.error_with_help(Code::Conflict, entry.span, message, help);
    }
    let egress = egress.map(|entry| rules(reader, &entry.node, (Direction::Egress, at)));
    if ingress.is_none() && egress.is_none() {
        let help = "ingress = [] governs a direction without a rule of its own";
        let message = format!("{what} has neither `ingress` nor `egress` and would govern nothing");
        reader.error_with_help(Code::MissingKey, fields.span, message, help);
    }
    Some(HostPolicy {
        name,
        tier: tier?,
        order,
        interfaces: interfaces?,
        nodes: nodes?,
        stage: stage?,
        mode: mode?,
        expires: expires.map_or(Some(None), |expires| expires.map(Some))?,
        acknowledges_bypass: acknowledge.map_or(Some(false), |word| word.map(|()| true))?,
        ingress,
        egress,
        place,
        tier_place,
    })
}

/// The seconds since 1970-01-01 UTC of an RFC 3339 time, as a date of TOML or as text. A fraction of a second is left out and a
/// leap second is the one before it, so that nothing lasts longer than it says; what was before 1970 is 0.
fn expiry<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<u64> {
    let date = match &node.value {
        Value::Datetime(date) => Some(*date),
        Value::String(text) => text.parse::<toml::value::Datetime>().ok(),
        other => {
            reader.error(Code::Type, node.span, format!("expires must be a time, not {}", other.kind()));
            return None;
        }
    };
    let seconds = date.and_then(|date| {
        let (date, time, offset) = (date.date?, date.time?, date.offset?);
        let minutes = match offset {
            toml::value::Offset::Z => 0,
            toml::value::Offset::Custom { minutes } => i64::from(minutes),
        };
        let days = time::days_to(date.year, date.month, date.day);
        let of_day = i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second?.min(59));
        Some(days * 86_400 + of_day - minutes * 60)
    });
    if seconds.is_none() {
        let help = "date, time and offset, like 2027-01-31T18:00:00Z";
        reader.error_with_help(Code::Value, node.span, "expires is not an RFC 3339 time", help);
    }
    Some(u64::try_from(seconds?).unwrap_or(0))
}

fn rules<'t>(reader: &mut Reader<'t>, node: &Node<'t>, at: (Direction, Stage)) -> Vec<Rule> {
    let Some(items) = reader.list(node, at.0.name()) else { return Vec::new() };
    items.iter().filter_map(|item| rule(reader, item, at)).collect()
}

fn rule<'t>(reader: &mut Reader<'t>, node: &Node<'t>, at: (Direction, Stage)) -> Option<Rule> {
    let place = reader.place(node.span);
    let mut fields = reader.table(node, "a rule")?;
    let actions = Action::ALL.map(|a| (a.name(), a));
    let action = fields.need(reader, "action", "a rule");
    let action = action.and_then(|word| reader.word(word, "action", &actions));
    let matched = packet_match(reader, &mut fields);
    let not = fields.get("not").and_then(|not| self::not(reader, not, &matched));
    let log = fields.get("log").and_then(|log| log_text(reader, log));
    let comment = fields.get("comment").and_then(|text| reader.string(text, "comment")).map(str::to_owned);
    let process = local_process(reader, &mut fields, at);
    let limit = fields.get("limit").map(|node| self::limit(reader, node));
    fields.finish(reader, "a rule");
    let Matched { from, to, protocol, ports, services, icmp, family, .. } = matched;
    Some(Rule {
        action: action?,
        from,
        to,
        protocol,
        ports,
        services,
        icmp,
        family,
        not,
        process,
        limit: match limit {
            None => None,
            // A rule whose limit is in error must not become one without.
            Some(limit) => Some(limit?),
        },
        log,
        comment,
        place,
    })
}

/// What rules and expectations have in common: the packets.
struct Matched {
    from: Option<Entity>,
    to: Option<Entity>,
    protocol: Option<Protocol>,
    /// A protocol is written, though it may not be a good one.
    protocol_written: bool,
    ports: Option<PortSet>,
    services: Vec<(String, Place)>,
    services_written: bool,
    icmp: Option<IcmpMatch>,
    family: Option<Family>,
}

fn packet_match<'t>(reader: &mut Reader<'t>, fields: &mut Fields<'_, 't>) -> Matched {
    let from_node = fields.get("from");
    let to_node = fields.get("to");
    let from = from_node.and_then(|node| parse::entity(reader, node, "from", EntityPlace::Rule));
    let mut to = to_node.and_then(|node| parse::entity(reader, node, "to", EntityPlace::Rule));

    let protocol_node = fields.get("protocol");
    let protocol = protocol_node.and_then(|node| parse::protocol(reader, node, "protocol"));
    let services_entry = fields.entry("services");
    let services = services_entry
        .map(|entry| parse::names(reader, &entry.node, "services", "the name of a service"))
        .unwrap_or_default();

    let family_node = fields.get("family");
    let family = family_node.and_then(|node| self::family(reader, node));
    let other_family = match (protocol, family) {
        (Some(Protocol::ICMP), Some(Family::V6)) => Some("protocol icmp is of IPv4; IPv6 has icmpv6"),
        (Some(Protocol::ICMPV6), Some(Family::V4)) => Some("protocol icmpv6 is of IPv6; IPv4 has icmp"),
        _ => None,
    };
    if let (Some(message), Some(node)) = (other_family, family_node) {
        reader.error(Code::Conflict, node.span, message);
    }

    let ports_entry = fields.entry("ports");
    let mut ports = ports_entry.map(|entry| parse::ports(reader, &entry.node, "ports"));
    let icmp_entry = fields.entry("icmp");
    let written = Matched {
        from,
        to: None,
        protocol,
        protocol_written: protocol_node.is_some(),
        ports: None,
        services,
        services_written: services_entry.is_some(),
        icmp: None,
        family,
    };
    // Ports of `from` and `to`: where they stand in the text, whether or not the entity is good.
    let inner_ports = |node: Option<&Node<'t>>| match node.map(|node| &node.value) {
        Some(Value::Table(entries)) => entries.iter().find(|entry| entry.key == "ports").map(|entry| entry.span),
        _ => None,
    };
    let (from_ports, to_ports) = (inner_ports(from_node), inner_ports(to_node));
    if let (Some(span), Some(entry)) = (to_ports, ports_entry) {
        let finding = Finding::error(
            Code::Conflict,
            &reader.place(entry.span),
            "`ports` and `to.ports` say the same thing twice",
        )
        .related(&reader.place(span), "destination ports")
        .help("keep one of them");
        reader.report(finding);
    }
    let icmp = if written.services_written {
        let parts = [
            ("protocol", protocol_node.map(|node| node.span)),
            ("ports", ports_entry.map(|entry| entry.span).or(to_ports)),
            ("from.ports", from_ports),
            ("icmp", icmp_entry.map(|entry| entry.span)),
        ];
        for (key, span) in parts {
            if let Some(span) = span {
                let message = format!("`services` and `{key}` cannot stand in one rule");
                reader.error_with_help(Code::Conflict, span, message, "write two rules");
            }
        }
        None
    } else {
        for (key, span) in
            [("ports", ports_entry.map(|entry| entry.span)), ("to.ports", to_ports), ("from.ports", from_ports)]
        {
            if let Some(span) = span {
                needs_ports(reader, span, key, &written);
            }
        }
        icmp_entry.and_then(|entry| icmp_of(reader, &entry.node, &written))
    };

    // `to.ports` is another way to write `ports`; what comes after has one way to look at them.
    if let Some(entity) = &mut to
        && let Some(moved) = entity.ports.take()
    {
        ports = Some(moved);
        if !entity.names_addresses() && entity.except.is_none() {
            to = None;
        }
    }
    Matched { to, ports, icmp, ..written }
}

/// `icmp`, unless the protocol it depends on is itself in error.
fn icmp_of<'t>(reader: &mut Reader<'t>, node: &Node<'t>, matched: &Matched) -> Option<IcmpMatch> {
    if matched.protocol_written && matched.protocol.is_none() {
        return None;
    }
    parse::icmp(reader, node, matched.protocol, matched.family)
}

/// Ports are only read in protocols that have them.
fn needs_ports(reader: &mut Reader<'_>, span: Span, key: &str, matched: &Matched) {
    let help = "protocols with ports: tcp, udp, sctp, udplite, dccp";
    match matched.protocol {
        Some(protocol) if protocol.has_ports() => {}
        Some(protocol) => {
            let message = format!("`{key}` cannot stand with protocol {protocol}, which has no ports");
            reader.error_with_help(Code::Conflict, span, message, help);
        }
        // The protocol is in error; that is said where it stands.
        None if matched.protocol_written => {}
        None => reader.error_with_help(Code::Conflict, span, format!("`{key}` needs `protocol`"), help),
    }
}

fn family<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Family> {
    match &node.value {
        Value::Integer(Some(4)) => Some(Family::V4),
        Value::Integer(Some(6)) => Some(Family::V6),
        Value::Integer(_) => {
            reader.error(Code::Value, node.span, "family must be 4 or 6");
            None
        }
        other => {
            reader.error(Code::Type, node.span, format!("family must be 4 or 6, not {}", other.kind()));
            None
        }
    }
}

/// `not { protocol, ports, icmp }`
fn not<'t>(reader: &mut Reader<'t>, node: &Node<'t>, matched: &Matched) -> Option<Not> {
    let mut fields = reader.table(node, "`not`")?;
    if fields.is_empty() {
        reader.error_with_help(Code::Value, node.span, "`not` takes nothing away", "leave it out");
        return None;
    }
    let protocol = fields.get("protocol").and_then(|node| parse::protocol(reader, node, "protocol"));
    let ports = fields.entry("ports").map(|entry| {
        needs_ports(reader, entry.span, "not.ports", matched);
        parse::ports(reader, &entry.node, "ports")
    });
    let icmp = fields.get("icmp").and_then(|node| icmp_of(reader, node, matched));
    fields.finish(reader, "`not`");
    Some(Not { protocol, ports, icmp })
}

/// `log = true` or `log = "text"`.
fn log_text<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<String> {
    match &node.value {
        Value::Boolean(wanted) => wanted.then(String::new),
        Value::String(text) => {
            let fits = text.len() <= MAX_LOG_TEXT
                && text.chars().all(|next| next == ' ' || next.is_ascii_graphic())
                && !text.contains('"');
            if !fits {
                let help = format!("at most {MAX_LOG_TEXT} printable ASCII characters without quotes");
                reader.error_with_help(Code::Value, node.span, format!("{} cannot be a log text", quoted(text)), help);
            }
            fits.then(|| text.to_string())
        }
        other => {
            reader.error(Code::Type, node.span, format!("log must be true, false or text, not {}", other.kind()));
            None
        }
    }
}

/// The burst of a limit that says none, as nft(8) has it.
const DEFAULT_BURST: u32 = 5;

/// `limit { rate, burst, per }`
fn limit<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Limit> {
    let mut fields = reader.table(node, "limit")?;
    let rate = fields.need(reader, "rate", "limit").and_then(|node| rate(reader, node));
    let burst = match fields.get("burst") {
        None => Some(DEFAULT_BURST),
        Some(burst) => reader.integer(burst, "burst", 1, 65_535).and_then(|burst| u32::try_from(burst).ok()),
    };
    let per_source = match fields.get("per") {
        None => Some(false),
        Some(per) => reader.word(per, "thing to count by", &[("source", true)]),
    };
    fields.finish(reader, "limit");
    let (rate, seconds) = rate?;
    Some(Limit { rate, seconds, burst: burst?, per_source: per_source? })
}

/// Packets in so many seconds: a number (a second's), or "10/second", "5/minute".
fn rate<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<(u32, u32)> {
    let Value::String(text) = &node.value else {
        let rate = reader.integer(node, "rate", 1, i64::from(MOST_PACKETS))?;
        return Some((u32::try_from(rate).ok()?, 1));
    };
    let (number, unit) = text.split_once('/').unwrap_or((text, "second"));
    let number = number.parse::<u32>().ok().filter(|number| (1..=MOST_PACKETS).contains(number));
    let units = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)];
    let seconds = units.iter().find(|(name, _)| *name == unit).map(|(_, seconds)| *seconds);
    let rate = number.zip(seconds);
    if rate.is_none() {
        let help = format!("from 1 to {MOST_PACKETS} packets, like \"10/second\" or \"5/minute\"");
        reader.error_with_help(Code::Value, node.span, format!("{} is not a rate", quoted(text)), help);
    }
    rate
}

/// The largest rate of a limit.
const MOST_PACKETS: u32 = 1_000_000;

/// `[[expect]]`: about a set, or about packets, which is checked only.
fn expect<'t>(
    reader: &mut Reader<'t>,
    fields: &mut Fields<'_, 't>,
    Named { name, what }: Named<'_>,
) -> Option<ExpectedSet> {
    let set = fields.entry("set");
    let (ingress, egress) = (fields.entry("ingress"), fields.entry("egress"));
    for entry in [ingress, egress].into_iter().flatten() {
        let Some(mut packets) = reader.table(&entry.node, "a match") else { continue };
        if let Some(interfaces) = packets.get("interfaces") {
            parse::selector(reader, interfaces, "interfaces");
        }
        let matched = packet_match(reader, &mut packets);
        if let Some(not) = packets.get("not") {
            self::not(reader, not, &matched);
        }
        packets.finish(reader, "a match");
    }
    let (verdict, example) = (fields.entry("verdict"), fields.entry("example"));
    if let Some(verdict) = verdict {
        reader.word(&verdict.node, "verdict", &[("allow", ()), ("deny", ()), ("reject", ())]);
    }
    let mode = fields.get("mode");
    let mode = mode.map(|mode| reader.word(mode, "mode of an expectation", &[("warn", false), ("enforce", true)]));
    let Some(set) = set else {
        if let Some(example) = example {
            reader.error(Code::Conflict, example.span, "`example` needs `set`");
        }
        match (ingress, egress) {
            (None, None) => {
                let help = "set = \"admin\" expects that somebody defines that set";
                let message = format!("{what} has none of `set`, `ingress` and `egress`");
                reader.error_with_help(Code::MissingKey, fields.span, message, help);
            }
            (Some(_), Some(second)) => {
                let help = "write two expectations";
                let message = format!("{what} has both `ingress` and `egress`");
                reader.error_with_help(Code::Conflict, second.span, message, help);
            }
            _ => {}
        }
        if verdict.is_none() {
            reader.error(Code::MissingKey, fields.span, format!("{what} has no `verdict`"));
        }
        unsupported(reader, fields.span, &format!("{what} about packets"));
        return None;
    };
    for (key, entry) in [("ingress", ingress), ("egress", egress), ("verdict", verdict)] {
        if let Some(entry) = entry {
            let message = format!("`set` and `{key}` cannot stand in one {what}");
            reader.error_with_help(Code::Conflict, entry.span, message, "write two expectations");
        }
    }
    // The name alone: an expectation may be a long line.
    let place = reader.place(set.node.span);
    let set = parse::name(reader, &set.node, "the name of a set");
    let example = example.map(|example| parse::prefixes(reader, &example.node, "example"));
    Some(ExpectedSet {
        name,
        set: set?,
        example: example.unwrap_or_default(),
        enforce: mode.unwrap_or(Some(true))?,
        place,
    })
}
