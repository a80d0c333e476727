//! Parts of the schemas of objects that Rust types do not say: words, patterns, bounds, and rules in CEL over several fields.
//!
//! They refuse at the API server what the walker of documents would refuse here. Where a schema cannot say it, the walker does.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::Kind;
use crate::net::interface::Role;
use crate::net::protocol::Protocol;
use crate::policy::model::{Action, Stage};

/// Items of a list of addresses at most: an object is 1.5 MiB at most, and an IPv6 prefix about 30 bytes.
pub(super) const MOST_PREFIXES: usize = 65_536;
/// Rules of one direction at most; what CEL may cost depends on it.
pub(super) const MOST_RULES: usize = 4096;
/// Items of other lists at most.
pub(super) const MOST_ITEMS: usize = 1024;
/// Users, groups and units at most (`policy::processes`).
pub(super) const MOST_NAMES: usize = 256;
/// The longest selector. The walker bounds its depth and labels only.
const LONGEST_SELECTOR: usize = 4096;
/// The name of an object of the policy language (`policy::parse::name`).
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
/// Addresses and prefixes, as far as a pattern can tell; host bits are for the walker.
const PREFIX: &str = "^([0-9]{1,3}(\\.[0-9]{1,3}){3}(/([0-9]|[12][0-9]|3[0-2]))?|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))?)$";
/// A port as text, in a pattern.
const PORT: &str = "0*([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
/// A number up to 255 as text, in a pattern.
const BYTE: &str = "0*([0-9]{1,2}|1[0-9]{2}|2[0-4][0-9]|25[0-5])";
/// Times of RFC 3339. Kubernetes' own format for them has no leap seconds.
const TIME: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$";
/// Domain names, and `*.suffix`.
const DOMAIN: &str =
    "^(\\*\\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$";

/// One of these words.
fn words<'w>(words: impl IntoIterator<Item = &'w str>) -> Schema {
    let words: Vec<&str> = words.into_iter().collect();
    json_schema!({ "type": "string", "enum": words })
}

fn list(item: Value, least: usize, most: usize) -> Schema {
    match least {
        0 => json_schema!({ "type": "array", "items": item, "maxItems": most }),
        _ => json_schema!({ "type": "array", "items": item, "minItems": least, "maxItems": most }),
    }
}

pub(super) fn action(_: &mut SchemaGenerator) -> Schema {
    let actions = Action::ALL;
    words(actions.map(Action::name))
}

pub(super) fn role(_: &mut SchemaGenerator) -> Schema {
    words(Role::ALL.iter().map(|role| role.name()))
}

/// Addresses by role, and those of a Node under "node"; roles of later versions as well.
pub(super) fn addresses_by_role(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "type": "array", "maxItems": 1024, "items": { "type": "string", "maxLength": 45 } },
    })
}

/// Loopback is what the kernel says, and nothing else can be given that role.
pub(super) fn given_role(_: &mut SchemaGenerator) -> Schema {
    words(Role::ALL.iter().filter(|role| **role != Role::Loopback).map(|role| role.name()))
}

pub(super) fn coverage(_: &mut SchemaGenerator) -> Schema {
    words(["bypassed"])
}

pub(super) fn link(_: &mut SchemaGenerator) -> Schema {
    words(["ethernet", "infiniband", "loopback", "other"])
}

pub(super) fn transport(_: &mut SchemaGenerator) -> Schema {
    with_default(words(["ip", "rdma"]), json!("ip"))
}

pub(super) fn tier_default(_: &mut SchemaGenerator) -> Schema {
    words(["deny", "pass"])
}

pub(super) fn stage(_: &mut SchemaGenerator) -> Schema {
    with_default(words(["host", "forward", "prednat", "untracked"]), json!(Stage::default().name()))
}

pub(super) fn mode(_: &mut SchemaGenerator) -> Schema {
    with_default(words(["enforce", "audit"]), json!("enforce"))
}

pub(super) fn expect_mode(_: &mut SchemaGenerator) -> Schema {
    with_default(words(["enforce", "warn"]), json!("enforce"))
}

pub(super) fn verdict(_: &mut SchemaGenerator) -> Schema {
    words(["allow", "deny", "reject"])
}

pub(super) fn acknowledge(_: &mut SchemaGenerator) -> Schema {
    words(["bypass"])
}

pub(super) fn per(_: &mut SchemaGenerator) -> Schema {
    words(["source"])
}

pub(super) fn tier(_: &mut SchemaGenerator) -> Schema {
    with_default(json_schema!({ "type": "string", "maxLength": 63, "pattern": NAME }), json!("default"))
}

fn with_default(mut schema: Schema, default: Value) -> Schema {
    schema.insert("default".to_owned(), default);
    schema
}

pub(super) fn order(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64" })
}

pub(super) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 63, "pattern": NAME })
}

pub(super) fn names(_: &mut SchemaGenerator) -> Schema {
    list(json!({ "type": "string", "maxLength": 63, "pattern": NAME }), 1, MOST_ITEMS)
}

pub(super) fn selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": LONGEST_SELECTOR })
}

pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 512 },
    })
}

/// Addresses that may be none.
pub(super) fn prefixes(_: &mut SchemaGenerator) -> Schema {
    list(prefix(), 0, MOST_PREFIXES)
}

/// Addresses of an entity: an empty list would match nothing.
pub(super) fn some_prefixes(_: &mut SchemaGenerator) -> Schema {
    list(prefix(), 1, MOST_PREFIXES)
}

fn prefix() -> Value {
    json!({ "type": "string", "maxLength": 49, "pattern": PREFIX })
}

pub(super) fn domains(_: &mut SchemaGenerator) -> Schema {
    list(json!({ "type": "string", "maxLength": 255, "pattern": DOMAIN }), 1, MOST_ITEMS)
}

pub(super) fn ports(_: &mut SchemaGenerator) -> Schema {
    let port = json!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maximum": 65_535,
        "pattern": format!("^{PORT}(-{PORT})?$"),
    });
    list(port, 1, MOST_ITEMS)
}

pub(super) fn service_ports(_: &mut SchemaGenerator) -> Schema {
    let ported = "tcp|udp|sctp|udplite|dccp|6|17|33|132|136";
    let names: Vec<&str> = Protocol::names().collect();
    let pattern =
        format!("^((?i:{ported})/{PORT}(-{PORT})?|(?i:icmp|icmpv6|1|58)/[a-z0-9-]+|(?i:{BYTE}|{}))$", names.join("|"));
    let port = json!({ "type": "string", "maxLength": 64, "pattern": pattern });
    list(port, 1, MOST_ITEMS)
}

pub(super) fn protocol(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<&str> = Protocol::names().collect();
    number_or_text(0, 255, &format!("^(?i:{BYTE}|{})$", names.join("|")))
}

pub(super) fn icmp_type(_: &mut SchemaGenerator) -> Schema {
    number_or_text(0, 255, "^[a-z0-9-]{1,48}$")
}

pub(super) fn icmp_code(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": 255 })
}

pub(super) fn rate(_: &mut SchemaGenerator) -> Schema {
    number_or_text(1, 1_000_000, "^[0-9]{1,7}(/(second|minute|hour|day))?$")
}

pub(super) fn burst(_: &mut SchemaGenerator) -> Schema {
    let burst = json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65_535 });
    with_default(burst, json!(5))
}

fn number_or_text(least: i64, most: i64, pattern: &str) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": least,
        "maximum": most,
        "pattern": pattern,
    })
}

pub(super) fn family(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "enum": [4, 6] })
}

pub(super) fn accounts(_: &mut SchemaGenerator) -> Schema {
    let account = json!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maximum": 4_294_967_294_i64,
        "pattern": "^[^/:,]{1,255}$",
    });
    list(account, 1, MOST_NAMES)
}

pub(super) fn units(_: &mut SchemaGenerator) -> Schema {
    list(json!({ "type": "string", "minLength": 1, "maxLength": 4096 }), 1, MOST_NAMES)
}

/// True or text: a structural schema has no type for either, so this one field has none.
pub(super) fn log(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-preserve-unknown-fields": true,
        "maxLength": 48,
        "pattern": "^[ !#-~]*$",
        "maxItems": 0,
        "maxProperties": 0,
        // No number is both.
        "minimum": 1,
        "maximum": 0,
    })
}

pub(super) fn local(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "boolean", "enum": [true] })
}

pub(super) fn expires(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 64, "pattern": TIME })
}

pub(super) fn word(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[^\\s]+$" })
}

pub(super) fn glob(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[^\\s/\\\\{}]+$" })
}

pub(super) fn pci(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\\.[0-7]$" })
}

pub(super) fn mac(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": "^[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}(([:-][0-9a-fA-F]{2}){14})?$" })
}

pub(super) fn interface_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 15, "pattern": "^[^\\s/:]+$" })
}

/// Words for people.
pub(super) fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "maxLength": 1024 })
}

/// Protocols with ports, by name and by number, as CEL lists.
const WITH_PORTS: [&str; 2] = [
    "[6, 17, 33, 132, 136]",
    "['tcp', 'udp', 'sctp', 'udplite', 'dccp', 'TCP', 'UDP', 'SCTP', 'UDPLITE', 'DCCP', '6', '17', '33', '132', '136']",
];

/// Whether `self.protocol` has ports. The type has to be asked for first: CEL does not compare numbers with text.
fn has_ports() -> String {
    let [numbers, names] = WITH_PORTS;
    format!(
        "(has(self.protocol) && (type(self.protocol) == int ? self.protocol in {numbers} : self.protocol in {names}))"
    )
}

fn rule(rule: impl Into<String>, message: &str) -> Value {
    json!({ "rule": rule.into(), "message": message })
}

/// What a rule and a match of an expectation must be.
pub(super) fn match_rules() -> Value {
    let ports = has_ports();
    let from_ports = "has(self.from) && has(self.from.ports)";
    let to_ports = "has(self.to) && has(self.to.ports)";
    let not_ports = "has(self.not) && has(self.not.ports)";
    let needs = "needs `protocol`, and one with ports: tcp, udp, sctp, udplite, dccp";
    let icmp = |protocol: &str| {
        let (number, names) = match protocol {
            "icmp" => ("1", "['icmp', 'ICMP', '1']"),
            _ => ("58", "['icmpv6', 'ICMPV6', 'ICMPv6', '58']"),
        };
        format!("(type(self.protocol) == int ? self.protocol == {number} : self.protocol in {names})")
    };
    let (v4, v6) = (icmp("icmp"), icmp("icmpv6"));
    json!([
        rule(format!("!has(self.ports) || {ports}"), &format!("`ports` {needs}")),
        rule(format!("!({from_ports}) || {ports}"), &format!("`from.ports` {needs}")),
        rule(format!("!({to_ports}) || {ports}"), &format!("`to.ports` {needs}")),
        rule(format!("!({not_ports}) || {ports}"), &format!("`not.ports` {needs}")),
        rule(
            format!("!has(self.ports) || !({to_ports})"),
            "`ports` and `to.ports` say the same thing twice; keep one of them"
        ),
        rule(
            format!(
                "!has(self.services) || !(has(self.protocol) || has(self.ports) || has(self.icmp) || ({from_ports}) || ({to_ports}))"
            ),
            "`services` stands without `protocol`, `ports`, `icmp`, `from.ports` and `to.ports`; write two rules"
        ),
        rule(
            format!("!has(self.icmp) || !has(self.protocol) || {v4} || {v6}"),
            "`icmp` needs protocol icmp or icmpv6, or none"
        ),
        rule(
            format!("!has(self.not) || !has(self.not.icmp) || !has(self.protocol) || {v4} || {v6}"),
            "`not.icmp` needs protocol icmp or icmpv6, or none"
        ),
        rule(
            "!has(self.icmp) || type(self.icmp.type) != int || has(self.protocol) || has(self.family)",
            "a type number means different things in ICMP and in ICMPv6: add `protocol` or `family`"
        ),
        rule(
            format!("!has(self.family) || !has(self.protocol) || !(self.family == 6 ? {v4} : {v6})"),
            "protocol icmp is of IPv4, icmpv6 of IPv6"
        ),
    ])
}

/// What a policy must be.
pub(super) fn policy_rules() -> Value {
    let process = "(has(r.users) || has(r.groups) || has(r.units))";
    json!([
        rule(
            "has(self.ingress) || has(self.egress)",
            "one of `ingress` and `egress` must be there; ingress: [] governs a direction without a rule of its own"
        ),
        rule(
            "!has(self.stage) || self.stage != 'prednat' || !has(self.egress)",
            "stage \"prednat\" has no egress: it sees packets as they arrive, before any DNAT"
        ),
        rule(
            format!("!has(self.ingress) || self.ingress.all(r, !{process})"),
            "`users`, `groups` and `units` name local processes, which only egress has"
        ),
        rule(
            format!("!has(self.stage) || self.stage == 'host' || !has(self.egress) || self.egress.all(r, !{process})"),
            "`users`, `groups` and `units` name local processes, which only stage \"host\" sees"
        ),
    ])
}

/// What an entity must be.
pub(super) fn entity_rules() -> Value {
    json!([rule("!has(self.role) || has(self.nodes)", "`role` says which addresses of `nodes` are meant")])
}

/// What an expectation must be.
pub(super) fn expect_rules() -> Value {
    json!([
        rule(
            "has(self.set) || has(self.ingress) || has(self.egress)",
            "one of `set`, `ingress` and `egress` must be there"
        ),
        rule(
            "!has(self.set) || !(has(self.ingress) || has(self.egress) || has(self.verdict))",
            "`set` stands without `ingress`, `egress` and `verdict`; write two expectations"
        ),
        rule("!(has(self.ingress) && has(self.egress))", "`ingress` and `egress` cannot stand in one expectation"),
        rule("!has(self.example) || has(self.set)", "`example` needs `set`"),
        rule("has(self.set) || has(self.verdict)", "an expectation about packets needs `verdict`"),
    ])
}

/// What a set must be.
pub(super) fn set_rules() -> Value {
    json!([rule(
        "has(self.cidrs) || has(self.domains)",
        "`cidrs` must be there; cidrs: [] is a set that holds nothing yet"
    )])
}

/// What an object must be as a whole.
pub(super) fn object_rules(kind: Kind) -> Value {
    match kind {
        Kind::HostState => {
            json!([rule("self.spec.node == self.metadata.name", "a HostState has the name of its node")])
        }
        // Those of nodes are told by their names, too.
        Kind::HostPeers => json!([rule("size(self.metadata.name) <= 253", "names have 253 characters at most")]),
        _ => json!([rule("size(self.metadata.name) <= 63", "names have 63 characters at most")]),
    }
}

/// What the state of a node must be.
pub(super) fn state_rules() -> Value {
    json!([rule("self.node == oldSelf.node", "a HostState stays the one of its node")])
}
