//! The parts that policy documents and settings have in common, from a text's tree to the model: names, labels, prefixes,
//! ports, protocols, services' ports, ICMP types, selectors, entities.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::model::{Entity, IcmpMatch, ServicePort};
use super::nodes::NodePeers;
use super::selector::Selector;
use crate::net::addr::{Family, PrefixError, parse_prefix};
use crate::net::interface::Role;
use crate::net::protocol::{ICMP_TYPES, ICMPV6_TYPES, IcmpSet, PortSet, Protocol, icmp_type, icmpv6_type};
use crate::net::range::RangeSet;
use crate::text::finding::Code;
use crate::text::place::Place;
use crate::text::read::{Reader, nearest, quoted, suggestion};
use crate::text::tree::{Node, Span, Value};

/// The longest name of an object: it becomes part of identifiers in the kernel (`NFT_NAME_MAXLEN` is 256) and of log lines.
const MAX_NAME_LENGTH: usize = 63;

/// The longest label name and value.
const MAX_LABEL_LENGTH: usize = 512;

/// A finding for something that the language has and this version does not enforce. The document with it is refused: a
/// condition that is not enforced would make a rule match more than it says.
pub fn unsupported(reader: &mut Reader<'_>, span: Span, what: &str) {
    let help = "take it out to use the document with this version";
    reader.error_with_help(Code::Unsupported, span, format!("{what} is not supported yet"), help);
}

/// The name of an object: 1 to 63 letters, digits, `.`, `_` and `-`, the first a letter or digit.
pub fn name(reader: &mut Reader<'_>, node: &Node<'_>, what: &str) -> Option<String> {
    let Value::String(text) = &node.value else {
        let message = format!("{what} must be a string, not {}", node.value.kind());
        reader.error(Code::Type, node.span, message);
        return None;
    };
    let fits = (1..=MAX_NAME_LENGTH).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|next| next.is_ascii_alphanumeric() || matches!(next, '.' | '_' | '-'));
    if !fits {
        let message = format!("{} cannot be {what}", quoted(text));
        let help =
            format!("1 to {MAX_NAME_LENGTH} letters, digits, \".\", \"_\" and \"-\", the first a letter or digit");
        reader.error_with_help(Code::Value, node.span, message, help);
        return None;
    }
    Some(text.to_string())
}

/// Names of objects, each with its place. An empty list is an error: it would select nothing and looks like everything.
pub fn names<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str, each: &str) -> Vec<(String, Place)> {
    let mut found = Vec::new();
    for item in some(reader, node, what) {
        if let Some(name) = name(reader, item, each) {
            found.push((name, reader.place(item.span)));
        }
    }
    found
}

/// Labels: names of letters, digits, `_`, `.`, `/` and `-` with text values.
pub fn labels<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let Some(fields) = reader.table(node, what) else { return labels };
    for entry in fields.entries() {
        let key = &entry.key;
        let fits = (1..=MAX_LABEL_LENGTH).contains(&key.len())
            && key.chars().all(|next| next.is_ascii_alphanumeric() || matches!(next, '_' | '.' | '/' | '-'));
        if !fits {
            let help = "letters, digits, \"_\", \".\", \"/\" and \"-\"; quote a name with \".\" in TOML";
            reader.error_with_help(Code::Value, entry.span, format!("{} cannot be a label", quoted(key)), help);
            continue;
        }
        let Some(value) = reader.string(&entry.node, "a label's value") else { continue };
        if value.len() > MAX_LABEL_LENGTH {
            let message = format!("a label's value longer than {MAX_LABEL_LENGTH} bytes");
            reader.error(Code::Value, entry.node.span, message);
            continue;
        }
        labels.insert(key.to_string(), value.to_owned());
    }
    labels
}

/// Addresses and prefixes; the list may be empty.
pub fn prefixes<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> Vec<IpNet> {
    let Some(items) = reader.list(node, what) else { return Vec::new() };
    let mut found = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = reader.string(item, "an address or prefix") else { continue };
        match parse_prefix(text) {
            Ok(prefix) => found.push(prefix),
            Err(error) => {
                let message = match &error {
                    PrefixError::Syntax(text) => format!("{} is not an IP address or prefix", quoted(text)),
                    other => other.to_string(),
                };
                reader.error(Code::Value, item.span, message);
            }
        }
    }
    found
}

/// Ports: numbers and "a-b", both ends counted.
pub fn ports<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> PortSet {
    let mut ranges = Vec::new();
    for item in some(reader, node, what) {
        match &item.value {
            Value::Integer(number) => match number.and_then(|number| u16::try_from(number).ok()) {
                Some(port) => ranges.push((port, port)),
                None => {
                    let shown = number.map_or_else(|| "this number".to_owned(), |number| number.to_string());
                    reader.error(Code::Value, item.span, format!("{shown} is not a port: ports go from 0 to 65535"));
                }
            },
            Value::String(text) => match port_range(text) {
                Ok(range) => ranges.push(range),
                Err(message) => reader.error(Code::Value, item.span, message),
            },
            other => {
                let message = format!("a port must be a number or \"a-b\", not {}", other.kind());
                reader.error(Code::Type, item.span, message);
            }
        }
    }
    ranges.into_iter().collect()
}

/// "80" or "30000-32767".
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let port = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        match (digits, part.parse::<u16>()) {
            (true, Ok(port)) => Ok(port),
            (true, Err(_)) => Err(format!("{} is not a port: ports go from 0 to 65535", quoted(part))),
            (false, _) => Err(format!("{} is not a port or a range like \"8000-8010\"", quoted(text))),
        }
    };
    let (start, end) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((start, end)) => (port(start)?, port(end)?),
    };
    if start > end {
        return Err(format!("the range {} ends before it starts", quoted(text)));
    }
    Ok((start, end))
}

/// A protocol by name or number.
pub fn protocol<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> Option<Protocol> {
    if let Value::Integer(_) = node.value {
        return reader.integer(node, what, 0, 255).and_then(|number| u8::try_from(number).ok()).map(Protocol);
    }
    let text = reader.string(node, what)?;
    match named_protocol(text) {
        Ok(protocol) => Some(protocol),
        Err((message, help)) => {
            reader.error_with_help(Code::Value, node.span, message, help);
            None
        }
    }
}

fn named_protocol(text: &str) -> Result<Protocol, (String, String)> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text
            .parse()
            .map_err(|_| (format!("{} is not a protocol number", quoted(text)), "from 0 to 255".to_owned()));
        return number.map(Protocol);
    }
    Protocol::by_name(text).ok_or_else(|| {
        let names: Vec<&str> = Protocol::names().collect();
        (format!("{} is not a protocol", quoted(text)), suggestion(text, &names))
    })
}

/// A service's ports: "tcp/10250", "udp/30000-32767", "icmp/echo-request", "esp".
pub fn service_ports<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> Vec<ServicePort> {
    let mut found = Vec::new();
    for item in some(reader, node, what) {
        let Some(text) = reader.string(item, "a service's port") else { continue };
        match service_port(text) {
            Ok(port) => found.push(port),
            Err((message, help)) => reader.error_with_help(Code::Value, item.span, message, help),
        }
    }
    found
}

/// One of a service's ports.
///
/// # Errors
/// What is wrong with it, and what to do (may be empty).
pub fn service_port(text: &str) -> Result<ServicePort, (String, String)> {
    let (name, detail) = match text.split_once('/') {
        Some((name, detail)) => (name, Some(detail)),
        None => (text, None),
    };
    let starts_with_digit = |text: &str| text.starts_with(|first: char| first.is_ascii_digit());
    if detail.is_some_and(|detail| Protocol::by_name(detail).is_some()) && starts_with_digit(name) {
        let message = format!("{} has port and protocol the wrong way round", quoted(text));
        return Err((message, "write \"tcp/443\"".to_owned()));
    }
    let protocol = named_protocol(name)?;
    let Some(detail) = detail else { return Ok(ServicePort::Protocol(protocol)) };
    if protocol.has_ports() {
        let (start, end) = port_range(detail).map_err(|message| (message, String::new()))?;
        return Ok(ServicePort::Ports(protocol, RangeSet::range(start, end)));
    }
    let (known, number, other) = match protocol {
        Protocol::ICMP => (ICMP_TYPES, icmp_type(detail), icmpv6_type(detail).map(|_| "icmpv6")),
        Protocol::ICMPV6 => (ICMPV6_TYPES, icmpv6_type(detail), icmp_type(detail).map(|_| "icmp")),
        _ => return Err((format!("{protocol} has no ports"), format!("write \"{protocol}\" alone"))),
    };
    let kind = number.or_else(|| type_number(detail)).ok_or_else(|| {
        let help = match other {
            Some(other) => format!("{other} has it: \"{other}/{detail}\""),
            None => icmp_suggestion(detail, known),
        };
        (format!("{} is not a type of {protocol}", quoted(detail)), help)
    })?;
    Ok(ServicePort::Icmp(protocol, [(kind, RangeSet::full())].into()))
}

fn icmp_suggestion(text: &str, known: &[(&str, u8)]) -> String {
    match nearest(text, known.iter().map(|(name, _)| *name)) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => "a name as in nft(8), like \"echo-request\", or a number from 0 to 255".to_owned(),
    }
}

fn type_number(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `icmp { type, code }`. The protocol of the rule, or else its family, says whether ICMP or ICMPv6 is meant; without either
/// a type's name counts in each that knows it, and a number says too little.
pub fn icmp<'t>(
    reader: &mut Reader<'t>,
    node: &Node<'t>,
    protocol: Option<Protocol>,
    family: Option<Family>,
) -> Option<IcmpMatch> {
    let mut fields = reader.table(node, "icmp")?;
    let kind = fields.need(reader, "type", "icmp");
    let code = fields.get("code");
    fields.finish(reader, "icmp");
    let (v4, v6) = match (protocol, family) {
        (Some(Protocol::ICMP), _) | (None, Some(Family::V4)) => (true, false),
        (Some(Protocol::ICMPV6), _) | (None, Some(Family::V6)) => (false, true),
        (None, None) => (true, true),
        (Some(other), _) => {
            let help = "use protocol \"icmp\" or \"icmpv6\", or leave `protocol` out";
            reader.error_with_help(Code::Conflict, node.span, format!("icmp cannot stand with protocol {other}"), help);
            return None;
        }
    };
    let codes = match code {
        None => RangeSet::full(),
        Some(code) => RangeSet::single(u8::try_from(reader.integer(code, "code", 0, 255)?).ok()?),
    };
    let kind = kind?;
    let (in_v4, in_v6) = match &kind.value {
        Value::String(text) => match type_number(text) {
            Some(number) => numbered(reader, kind, number, (v4, v6))?,
            None => {
                let found = (icmp_type(text).filter(|_| v4), icmpv6_type(text).filter(|_| v6));
                if found == (None, None) {
                    let known: Vec<(&str, u8)> = match (v4, v6) {
                        (true, false) => ICMP_TYPES.to_vec(),
                        (false, true) => ICMPV6_TYPES.to_vec(),
                        _ => [ICMP_TYPES, ICMPV6_TYPES].concat(),
                    };
                    let what = if v4 && v6 {
                        "ICMP"
                    } else if v4 {
                        "ICMP (IPv4)"
                    } else {
                        "ICMPv6"
                    };
                    let message = format!("{} is not a type of {what}", quoted(text));
                    reader.error_with_help(Code::Value, kind.span, message, icmp_suggestion(text, &known));
                    return None;
                }
                found
            }
        },
        Value::Integer(_) => {
            let number = u8::try_from(reader.integer(kind, "type", 0, 255)?).ok()?;
            numbered(reader, kind, number, (v4, v6))?
        }
        other => {
            reader.error(Code::Type, kind.span, format!("type must be a name or a number, not {}", other.kind()));
            return None;
        }
    };
    let set = |number: Option<u8>| number.map(|number| (number, codes.clone())).into_iter().collect::<IcmpSet>();
    Some(IcmpMatch { v4: set(in_v4), v6: set(in_v6) })
}

/// A type by number: for one family only.
fn numbered(
    reader: &mut Reader<'_>,
    node: &Node<'_>,
    number: u8,
    (v4, v6): (bool, bool),
) -> Option<(Option<u8>, Option<u8>)> {
    if v4 && v6 {
        let message = "a type number means different things in ICMP and in ICMPv6";
        reader.error_with_help(
            Code::Conflict,
            node.span,
            message,
            "add protocol = \"icmp\" or \"icmpv6\", or `family`",
        );
        return None;
    }
    Some((v4.then_some(number), v6.then_some(number)))
}

/// A selector; an error in it is reported at its column inside the string.
pub fn selector<'t>(reader: &mut Reader<'t>, node: &Node<'t>, what: &str) -> Option<Selector> {
    let text = reader.string(node, what)?;
    match Selector::parse(text) {
        Ok(selector) => Some(selector),
        Err(error) => {
            let span = reader.source().inside(node.span, error.offset, error.len);
            reader.error(Code::Selector, span, format!("{what}: {}", error.message));
            None
        }
    }
}

/// Where an entity stands; it decides what the entity may say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntityPlace {
    /// `from` or `to` of a rule.
    Rule,
    /// `except` of another entity.
    Except,
    /// `peers` of a failsafe entry.
    Peers,
}

/// `from`, `to`, `except` or `peers`. An entity that names nothing is an error: "any address" is said by leaving it out.
pub fn entity<'t>(reader: &mut Reader<'t>, node: &Node<'t>, key: &str, stands: EntityPlace) -> Option<Entity> {
    let what = format!("`{key}`");
    let before = reader.errors();
    let mut fields = reader.table(node, &what)?;
    let mut entity = Entity { place: Some(reader.place(node.span)), ..Entity::default() };
    if fields.is_empty() {
        let message = format!("{what} names nothing");
        reader.error_with_help(Code::Value, node.span, message, format!("leave {what} out for any address"));
        return None;
    }
    if let Some(cidrs) = fields.get("cidrs") {
        entity.cidrs = prefixes(reader, cidrs, "cidrs");
        if matches!(&cidrs.value, Value::Array(items) if items.is_empty()) {
            nothing(reader, cidrs.span, "cidrs");
        }
    }
    if let Some(sets) = fields.get("sets") {
        entity.sets = names(reader, sets, "sets", "the name of a set");
    }
    if let Some(select) = fields.get("select") {
        entity.select = selector(reader, select, "select");
    }
    if let Some(local) = fields.get("local") {
        match reader.boolean(local, "local") {
            Some(true) => entity.local = true,
            Some(false) => reader.error_with_help(Code::Value, local.span, "local can only be true", "leave it out"),
            None => {}
        }
    }
    if let Some(ports_node) = fields.get("ports") {
        let found = ports(reader, ports_node, "ports");
        match stands {
            EntityPlace::Rule => entity.ports = Some(found),
            EntityPlace::Except => reader.error_with_help(
                Code::Conflict,
                ports_node.span,
                "`except` takes addresses away, not ports",
                "use `not = { ports = [..] }` in the rule",
            ),
            EntityPlace::Peers => reader.error_with_help(
                Code::Conflict,
                ports_node.span,
                "`peers` are addresses",
                "`ports` belongs beside `peers`",
            ),
        }
    }
    if let Some(except) = fields.get("except") {
        entity.except = self::entity(reader, except, "except", EntityPlace::Except).map(Box::new);
    }
    if let Some(domains_node) = fields.entry("domains") {
        domains(reader, &domains_node.node);
        unsupported(reader, domains_node.span, "`domains`");
    }
    let role = fields.get("role");
    let nodes = fields.get("nodes");
    if let (None, Some(role)) = (nodes, role) {
        let help = "`role` says which addresses of `nodes` are meant";
        reader.error_with_help(Code::Conflict, role.span, "`role` without `nodes`", help);
    }
    let role = role.and_then(|role| role_name(reader, role));
    if let Some(nodes) = nodes
        && let Some(selector) = selector(reader, nodes, "nodes")
    {
        entity.nodes = Some(NodePeers { selector, role, cluster: None });
    }
    fields.finish(reader, &what);
    (reader.errors() == before).then_some(entity)
}

/// A role of interfaces.
pub fn role_name<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Role> {
    let words: Vec<(&str, Role)> = Role::ALL.iter().map(|role| (role.name(), *role)).collect();
    reader.word(node, "role", &words)
}

/// Domain names: exact, or `*.suffix`. Checked only, as nothing uses them yet.
pub fn domains<'t>(reader: &mut Reader<'t>, node: &Node<'t>) {
    for item in some(reader, node, "domains") {
        let Some(text) = reader.string(item, "a domain") else { continue };
        let host = text.strip_prefix("*.").unwrap_or(text);
        let fits = (1..=253).contains(&host.len())
            && host.split('.').all(|part| {
                (1..=63).contains(&part.len())
                    && !part.starts_with('-')
                    && !part.ends_with('-')
                    && part.chars().all(|next| next.is_ascii_alphanumeric() || matches!(next, '-' | '_'))
            });
        if !fits {
            let message = format!("{} is not a domain name", quoted(text));
            reader.error_with_help(Code::Value, item.span, message, "a name like \"example.org\" or \"*.example.org\"");
        }
    }
}

/// The items of a list that must not be empty.
pub fn some<'n, 't>(reader: &mut Reader<'t>, node: &'n Node<'t>, what: &str) -> &'n [Node<'t>] {
    let items = reader.list(node, what);
    if items.is_some_and(<[_]>::is_empty) {
        nothing(reader, node.span, what);
    }
    items.unwrap_or_default()
}

fn nothing(reader: &mut Reader<'_>, span: Span, what: &str) {
    let message = format!("`{what}` is empty and would match nothing");
    reader.error_with_help(Code::Value, span, message, format!("leave `{what}` out if it should not count"));
}
