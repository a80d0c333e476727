//! libnftables JSON of the IR (libnftables-json(5)), in one normal form for what we render and for what `nft -j` lists.
//!
//! The `nftables` crate's types write what they have right. Verdicts in maps, set types, `!` on flags, masks of more
//! than one bit, `notrack`, what is done to elements of a set and `socket cgroupv2` are written here, because crate 0.6.3 has them wrong or not at all; the tests below hold the crate to
//! each of these faults, so that we notice when one is gone.

use nftables::expr::{CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range};
use nftables::schema;
use nftables::stmt;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::TABLE_NAME;
use super::ir::{
    Chain, ChainPolicy, Dynamic, Elements, Hook, Limit, Reject, Rule, Ruleset, Set, SetRef, Statement, Value, Verdict,
};
use super::key::{DataType, Datum, Key, Side};
use super::normal;
use super::words::{self, Span};
use crate::net::addr::Family;
use crate::net::protocol::Protocol;

pub use super::normal::normalise;

/// The ruleset as `nft -j list table inet nodewall` prints it, less handles, counters and the metainfo object, and in
/// the form of [`normalise`], but with what nft 1.0.6 leaves out, as later versions print it: the device of a chain at ingress and
/// the level of `socket cgroupv2`.
pub fn render(ruleset: &Ruleset) -> Json {
    let mut objects = vec![value(schema::NfListObject::Table(schema::Table {
        family: NfFamily::INet,
        name: TABLE_NAME.into(),
        handle: None,
    }))];
    objects.extend(ruleset.sets.iter().map(|(name, set)| named_set(name, set)));
    objects.extend(ruleset.chains.iter().map(|(name, chain)| self::chain(name, chain)));
    for (name, chain) in &ruleset.chains {
        objects.extend(chain.rules.iter().map(|rule| self::rule(name, rule)));
    }
    normal::tidy(json!({ "nftables": objects }))
}

/// The crate's types have string keys only and no failing serialiser, so that nothing can go wrong here.
fn value(object: impl Serialize) -> Json {
    serde_json::to_value(object).unwrap_or_default()
}

fn chain(name: &str, chain: &Chain) -> Json {
    let base = chain.base.as_ref();
    value(schema::NfListObject::Chain(schema::Chain {
        family: NfFamily::INet,
        table: TABLE_NAME.into(),
        name: name.into(),
        _type: base.map(|_| NfChainType::Filter),
        hook: base.map(|base| match base.hook {
            Hook::Ingress => NfHook::Ingress,
            Hook::Prerouting => NfHook::Prerouting,
            Hook::Input => NfHook::Input,
            Hook::Forward => NfHook::Forward,
            Hook::Output => NfHook::Output,
            Hook::Postrouting => NfHook::Postrouting,
        }),
        prio: base.map(|base| base.priority),
        policy: base.map(|base| match base.policy {
            ChainPolicy::Accept => NfChainPolicy::Accept,
            ChainPolicy::Drop => NfChainPolicy::Drop,
        }),
        dev: base.and_then(|base| base.device).map(|device| device.as_name().into()),
        ..Default::default()
    }))
}

/// By hand: the crate's set type is a closed enum of seven, without `verdict`.
fn named_set(name: &str, set: &Set) -> Json {
    let mut object = Map::new();
    object.insert("family".into(), json!("inet"));
    object.insert("name".into(), json!(name));
    object.insert("table".into(), json!(TABLE_NAME));
    object.insert(
        "type".into(),
        match &set.key[..] {
            [one] => json!(one.name()),
            many => many.iter().map(|data_type| json!(data_type.name())).collect(),
        },
    );
    if set.map {
        object.insert("map".into(), json!("verdict"));
    }
    if set.interval || set.elements.needs_interval() {
        object.insert("flags".into(), json!(["interval"]));
    }
    if let Some(Dynamic { timeout, size }) = set.dynamic {
        // nft 1.0.6 neither prints "dynamic" nor reads it; the rule that fills the set makes it so.
        object.insert("flags".into(), json!(["timeout"]));
        object.insert("timeout".into(), json!(timeout));
        object.insert("size".into(), json!(size));
    }
    if !set.elements.is_empty() {
        object.insert("elem".into(), elements(&set.key, &set.elements));
    }
    json!({ if set.map { "map" } else { "set" }: object })
}

fn rule(chain: &str, rule: &Rule) -> Json {
    let mut object = Map::new();
    object.insert("family".into(), json!("inet"));
    object.insert("table".into(), json!(TABLE_NAME));
    object.insert("chain".into(), json!(chain));
    if let Some(comment) = &rule.comment {
        object.insert("comment".into(), json!(comment));
    }
    object.insert("expr".into(), rule.statements.iter().map(statement).collect());
    json!({ "rule": object })
}

fn statement(statement: &Statement) -> Json {
    match statement {
        Statement::Match { key, negated, value } => matched(*key, *negated, *value),
        Statement::Lookup { keys, negated, set } => {
            comparison(left(keys), if *negated { "!=" } else { "==" }, set_ref(keys, set))
        }
        Statement::Vmap { keys, map } => json!({ "vmap": { "key": left(keys), "data": set_ref(keys, map) } }),
        Statement::Counter => value(stmt::Statement::Counter(stmt::Counter::Anonymous(None))),
        Statement::Limit(limit) => self::limit(limit),
        // By hand: the crate drops what is done to an element.
        Statement::Meter { keys, set, limit } => json!({ "set": {
            "op": "update",
            "elem": left(keys),
            "set": format!("@{set}"),
            "stmt": [self::limit(limit)],
        } }),
        // By hand: the crate writes a string.
        Statement::Notrack => json!({ "notrack": null }),
        Statement::MarkSet(0) | Statement::MarkClear(0) => set_mark(key(Key::Mark)),
        Statement::MarkSet(bits) => set_mark(json!({ "|": [key(Key::Mark), bits] })),
        Statement::MarkClear(bits) => set_mark(json!({ "&": [key(Key::Mark), !bits] })),
        Statement::Log { prefix, group } => value(stmt::Statement::Log(Some(stmt::Log {
            prefix: (!prefix.is_empty()).then(|| prefix.as_str().into()),
            group: Some(u32::from(*group)),
            snaplen: None,
            queue_threshold: None,
            level: None,
            flags: None,
        }))),
        Statement::Reject(reject) => value(stmt::Statement::Reject(Some(match reject {
            Reject::TcpReset => stmt::Reject::new(Some(stmt::RejectType::TCPReset), None),
            Reject::AdminProhibited => {
                stmt::Reject::new(Some(stmt::RejectType::ICMPX), Some(nftables::types::RejectCode::AdminProhibited))
            }
        }))),
        Statement::Verdict(verdict) => self::verdict(verdict),
        // nft has no JSON for what it does not know either; an object under a name of ours equals nothing it prints.
        Statement::Foreign(words) => json!({ "foreign": words }),
    }
}

fn limit(Limit { rate, seconds, burst }: &Limit) -> Json {
    value(stmt::Statement::Limit(stmt::Limit {
        rate: *rate,
        rate_unit: None,
        per: words::unit(*seconds).map(Into::into),
        burst: Some(*burst),
        burst_unit: None,
        inv: None,
    }))
}

fn set_mark(to: Json) -> Json {
    json!({ "mangle": { "key": key(Key::Mark), "value": to } })
}

/// By the crate's statements: its verdict expressions are wrong (`"accept"` instead of `{"accept": null}`).
fn verdict(verdict: &Verdict) -> Json {
    let target = |chain: &String| stmt::JumpTarget { target: chain.clone().into() };
    value(match verdict {
        Verdict::Accept => stmt::Statement::Accept(None),
        Verdict::Drop => stmt::Statement::Drop(None),
        Verdict::Return => stmt::Statement::Return(None),
        Verdict::Jump(chain) => stmt::Statement::Jump(target(chain)),
        Verdict::Goto(chain) => stmt::Statement::Goto(target(chain)),
    })
}

fn matched(key: Key, negated: bool, value: Value) -> Json {
    let data_type = key.data_type();
    let (op, right) = match value {
        Value::Is(datum) => (if negated { "!=" } else { "==" }, spell(data_type, datum.number())),
        Value::Prefix(datum, bits) if data_type == DataType::Ifname => {
            (if negated { "!=" } else { "==" }, wildcard(datum, bits / 8))
        }
        Value::Prefix(datum, bits) => {
            let host = u32::try_from(data_type.size() * 8).unwrap_or(0).saturating_sub(bits.into());
            let mask = 1u128.checked_shl(host).map_or(u128::MAX, |power| power - 1);
            let (start, end) = (datum.number() & !mask, datum.number() | mask);
            (if negated { "!=" } else { "==" }, spell_span(data_type, start, end))
        }
        Value::Range(start, end) => {
            (if negated { "!=" } else { "==" }, spell_span(data_type, start.number(), end.number()))
        }
        Value::Flags(mask) if data_type == DataType::CtState => (if negated { "!" } else { "in" }, flag_list(mask)),
        // Without such a shorthand the mask is in full.
        Value::Flags(mask) => {
            let masked = json!({ "&": [left(&[key]), mask] });
            return comparison(masked, if negated { "==" } else { "!=" }, json!(0));
        }
    };
    // A name that ends in a real star is written with a backslash in a rule, and without one in a set.
    let right = match right {
        Json::String(name) if matches!(value, Value::Is(_)) && data_type == DataType::Ifname && name.ends_with('*') => {
            json!(format!("{}\\*", &name[..name.len() - 1]))
        }
        other => other,
    };
    comparison(left(&[key]), op, right)
}

/// By hand: the crate has no `!`, and its right sides no masks as nft nests them.
fn comparison(left: Json, op: &str, right: Json) -> Json {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn left(keys: &[Key]) -> Json {
    match keys {
        [one] => self::key(*one),
        many => json!({ "concat": many.iter().map(|key| self::key(*key)).collect::<Vec<_>>() }),
    }
}

fn key(key: Key) -> Json {
    let meta = |key| Expression::Named(NamedExpression::Meta(Meta { key }));
    let payload = |protocol: &'static str, field: &'static str| {
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
            protocol: protocol.into(),
            field: field.into(),
        })))
    };
    value(match key {
        // By hand: the crate has no levels.
        Key::SocketCgroup(level) => return json!({ "socket": { "key": "cgroupv2", "level": level } }),
        Key::NfProto => meta(MetaKey::Nfproto),
        Key::L4Proto => meta(MetaKey::L4proto),
        Key::InterfaceName(Side::Source) => meta(MetaKey::Iifname),
        Key::InterfaceName(Side::Destination) => meta(MetaKey::Oifname),
        Key::InterfaceType(Side::Source) => meta(MetaKey::Iiftype),
        Key::InterfaceType(Side::Destination) => meta(MetaKey::Oiftype),
        Key::InterfaceKind(Side::Source) => meta(MetaKey::Iifkind),
        Key::InterfaceKind(Side::Destination) => meta(MetaKey::Oifkind),
        Key::CtState => Expression::Named(NamedExpression::CT(CT { key: "state".into(), family: None, dir: None })),
        Key::IpAddr(family, side) => payload(
            if family == Family::V4 { "ip" } else { "ip6" },
            if side == Side::Source { "saddr" } else { "daddr" },
        ),
        Key::HopLimit => payload("ip6", "hoplimit"),
        Key::Port(protocol, side) => payload(
            protocol.filter(|protocol| protocol.has_ports()).and_then(Protocol::name).unwrap_or("th"),
            if side == Side::Source { "sport" } else { "dport" },
        ),
        Key::IcmpType => payload("icmp", "type"),
        Key::IcmpCode => payload("icmp", "code"),
        Key::Icmpv6Type => payload("icmpv6", "type"),
        Key::Icmpv6Code => payload("icmpv6", "code"),
        Key::Mark => meta(MetaKey::Mark),
        Key::SocketUser => meta(MetaKey::Skuid),
        Key::SocketGroup => meta(MetaKey::Skgid),
    })
}

fn set_ref(keys: &[Key], set: &SetRef) -> Json {
    match set {
        SetRef::Named(name) => json!(format!("@{name}")),
        SetRef::Anonymous(elements) => {
            let types: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
            json!({ "set": self::elements(&types, elements) })
        }
    }
}

fn elements(types: &[DataType], elements: &Elements) -> Json {
    match elements {
        Elements::V4(ranges) => ranges
            .ranges()
            .iter()
            .map(|(start, end)| spell_span(DataType::Ipv4Addr, u128::from(*start), u128::from(*end)))
            .collect(),
        Elements::V6(ranges) => {
            ranges.ranges().iter().map(|(start, end)| spell_span(DataType::Ipv6Addr, *start, *end)).collect()
        }
        Elements::Keys(keys) => keys
            .iter()
            .map(|(key, verdict)| {
                let mut fields = key.0.iter().zip(types).map(|((start, end), data_type)| {
                    if *data_type == DataType::Ifname {
                        return match words::span(*data_type, *start, *end) {
                            Span::Prefix(datum, bytes) => wildcard(datum, bytes),
                            Span::Single(datum) => json!(datum.as_name()),
                            Span::Range(start, end) => json!({ "range": [start.as_name(), end.as_name()] }),
                        };
                    }
                    spell_span(*data_type, start.number(), end.number())
                });
                let key = match types {
                    [_] => fields.next().unwrap_or_default(),
                    _ => json!({ "concat": fields.collect::<Vec<_>>() }),
                };
                match verdict {
                    Some(verdict) => json!([key, self::verdict(verdict)]),
                    None => key,
                }
            })
            .collect(),
    }
}

fn wildcard(datum: Datum, bytes: u8) -> Json {
    let bytes = &datum.bytes()[..usize::from(bytes).min(datum.bytes().len())];
    json!(format!("{}*", String::from_utf8_lossy(bytes).trim_end_matches('\0')))
}

/// One value or one range as nft prints it in a set.
pub(super) fn spell_span(data_type: DataType, start: u128, end: u128) -> Json {
    let datum = |number| Datum::from_number(number, data_type.size());
    match words::span(data_type, datum(start), datum(end)) {
        Span::Single(_) => spell(data_type, start),
        Span::Prefix(_, bits) => {
            let prefix = Prefix { addr: Box::new(address(data_type, start)), len: bits.into() };
            value(NamedExpression::Prefix(prefix))
        }
        Span::Range(..) if matches!(data_type, DataType::Ipv4Addr | DataType::Ipv6Addr) => {
            value(Range { range: [address(data_type, start), address(data_type, end)] })
        }
        Span::Range(..) => json!({ "range": [spell(data_type, start), spell(data_type, end)] }),
    }
}

fn address(data_type: DataType, number: u128) -> Expression<'static> {
    Expression::String(match data_type {
        DataType::Ipv6Addr => std::net::Ipv6Addr::from_bits(number).to_string().into(),
        _ => std::net::Ipv4Addr::from_bits(number as u32).to_string().into(),
    })
}

/// One value as nft prints it: a name where nft has one.
pub(super) fn spell(data_type: DataType, number: u128) -> Json {
    match data_type {
        DataType::Ipv4Addr | DataType::Ipv6Addr => value(address(data_type, number)),
        DataType::Ifname => json!(Datum::from_number(number, data_type.size()).as_name()),
        DataType::InetProto => words::protocol_name(number).map_or_else(|| json!(number as u64), |name| json!(name)),
        DataType::CtState => normal::mask(flag_values(number as u32)),
        // A path, or the number as text.
        DataType::Cgroup => json!(number.to_string()),
        _ => words::symbol(data_type, number).map_or_else(|| json!(number as u64), |name| json!(name)),
    }
}

fn flag_values(mask: u32) -> Vec<Json> {
    words::flags(mask).map(|(bit, name)| name.map_or_else(|| json!(bit), |name| json!(name))).collect()
}

/// The right side of `in` and `!`: one flag alone, several in a list.
fn flag_list(mask: u32) -> Json {
    let mut flags = flag_values(mask);
    match flags.len() {
        0 => json!(0),
        1 => flags.remove(0),
        _ => Json::Array(flags),
    }
}

/// The faults of crate `nftables` 0.6.3 that this module works around. A test that fails here is good news: the
/// workaround can go.
#[cfg(test)]
mod crate_faults {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nftables::expr::{SetItem, Verdict as CrateVerdict};

    #[test]
    fn verdicts_in_maps_are_strings() {
        let item = SetItem::Mapping(Expression::Number(22), Expression::Verdict(CrateVerdict::Accept));
        assert_eq!(value(item), json!([22, "accept"]));
        assert_eq!(verdict(&Verdict::Accept), json!({ "accept": null }));
    }

    #[test]
    fn set_types_are_a_closed_list() {
        for missing in
            ["verdict", "icmp_type", "icmpv6_type", "icmp_code", "ct_state", "iface_type", "nf_proto", "integer"]
        {
            assert!(serde_json::from_value::<schema::SetType>(json!(missing)).is_err(), "{missing}");
        }
        let map = json!({ "map": { "family": "inet", "name": "m", "table": "t", "type": "ifname", "map": "verdict",
            "elem": [["eth0", { "accept": null }]] } });
        assert!(serde_json::from_value::<schema::NfListObject<'_>>(map).is_err(), "named verdict maps");
    }

    #[test]
    fn none_of_these_flags_has_no_operator() {
        let none_of = json!({ "match": { "op": "!", "left": { "ct": { "key": "state" } }, "right": "new" } });
        assert!(serde_json::from_value::<stmt::Statement<'_>>(none_of).is_err());
    }

    #[test]
    fn notrack_is_a_string() {
        assert_eq!(value(stmt::Statement::Notrack), json!("notrack"));
    }

    #[test]
    fn less_and_greater_are_swapped() {
        assert_eq!(value(stmt::Operator::LT), json!(">"));
        assert_eq!(value(stmt::Operator::GT), json!("<"));
    }

    #[test]
    fn statements_on_set_elements_are_dropped() {
        let add = json!({ "set": { "op": "add", "elem": { "payload": { "protocol": "ip", "field": "saddr" } },
            "set": "@s", "stmt": [{ "limit": { "rate": 5, "per": "second" } }] } });
        let parsed: stmt::Statement<'_> = serde_json::from_value(add).unwrap();
        assert!(value(parsed)["set"].get("stmt").is_none());
    }

    #[test]
    fn the_level_of_a_control_group_is_dropped() {
        let socket = json!({ "socket": { "key": "cgroupv2", "level": 2 } });
        let parsed: NamedExpression<'_> = serde_json::from_value(socket).unwrap();
        assert_eq!(value(parsed), json!({ "socket": { "key": "cgroupv2" } }));
    }

    #[test]
    fn limits_beyond_32_bits_do_not_parse() {
        let handle = json!({ "table": { "family": "inet", "name": "t", "handle": 1u64 << 32 } });
        assert!(serde_json::from_value::<schema::NfListObject<'_>>(handle).is_err());
    }
}
