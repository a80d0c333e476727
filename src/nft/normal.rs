//! The normal form of libnftables JSON: what nft adds, hides, reorders or spells in two ways, made one.

use serde_json::{Map, Value as Json, json};

use super::json::{spell, spell_span};
use super::key::DataType;
use super::words;

/// Brings a listing of our table (`nft -j list table inet nodewall`) to the form in which two listings of equal
/// rulesets are equal values. Applying it twice is applying it once.
///
/// - no metainfo, handles, counter values; defaults of the kernel are written out
/// - sets, chains and rules by name (of the chain), rules of a chain in order; set elements ascending
/// - values by name where nft has one, ranges of addresses as prefixes where they are one
/// - nothing of what nft 1.0.6 does not say: the devices of chains, that a set is dynamic, the level of `socket cgroupv2`; and nothing
///   of what rules put into a dynamic set
/// - as nft lists rules, though the kernel may have more: an anonymous set of one value is that value; `meta l4proto` and
///   `meta nfproto` are left out where a later match implies them, and a `th` port has the name of its protocol
pub fn normalise(listing: Json) -> Json {
    let mut tidy = tidy(listing);
    for object in tidy.get_mut("nftables").and_then(Json::as_array_mut).into_iter().flatten() {
        forget(object);
    }
    tidy
}

/// Takes away what nft 1.0.6 does not say.
fn forget(object: &mut Json) {
    if let Some(chain) = object.get_mut("chain").and_then(Json::as_object_mut) {
        chain.remove("dev");
    }
    if let Some(set) = object.get_mut("set").and_then(Json::as_object_mut) {
        let flags = set.get_mut("flags").and_then(Json::as_array_mut);
        if flags.is_some_and(|flags| {
            flags.retain(|flag| flag != "dynamic");
            flags.iter().any(|flag| flag == "timeout")
        }) {
            set.remove("elem");
        }
    }
    if let Some(rule) = object.get_mut("rule") {
        forget_levels(rule);
    }
}

fn forget_levels(value: &mut Json) {
    match value {
        Json::Array(values) => values.iter_mut().for_each(forget_levels),
        Json::Object(object) => {
            if let Some(socket) = object.get_mut("socket").and_then(Json::as_object_mut) {
                socket.remove("level");
            }
            object.values_mut().for_each(forget_levels);
        }
        _ => {}
    }
}

/// [`normalise`] without forgetting what only some versions of nft say.
pub(super) fn tidy(listing: Json) -> Json {
    let Json::Object(mut document) = listing else { return listing };
    let Some(Json::Array(objects)) = document.remove("nftables") else { return Json::Object(document) };
    let mut objects: Vec<Json> =
        objects.into_iter().filter(|object| object.get("metainfo").is_none()).map(normal_object).collect();
    // The sort is stable: rules keep their order within a chain.
    objects.sort_by_cached_key(order);
    json!({ "nftables": objects })
}

/// Kind and name of an object; rules by the name of their chain.
/// nft lists what was made first, and we make interval sets before the rest (`plan::preparation`).
fn order(object: &Json) -> (u8, bool, String) {
    const KINDS: [(&str, u8); 5] = [("table", 0), ("set", 1), ("map", 1), ("chain", 2), ("rule", 3)];
    let (kind, rank) = KINDS.into_iter().find(|(kind, _)| object.get(kind).is_some()).unwrap_or(("", 9));
    let body = object.get(kind);
    let name = body.and_then(|body| body.get(if kind == "rule" { "chain" } else { "name" }));
    let interval = body
        .filter(|body| body.get("elem").is_some())
        .and_then(|body| body.get("flags"))
        .and_then(Json::as_array)
        .is_some_and(|flags| flags.iter().any(|flag| flag == "interval"));
    (rank, !interval, name.and_then(Json::as_str).unwrap_or_default().to_owned())
}

fn normal_object(mut object: Json) -> Json {
    for (kind, body) in object.as_object_mut().into_iter().flatten() {
        let Some(body) = body.as_object_mut() else { continue };
        body.remove("handle");
        match kind.as_str() {
            "set" | "map" => normal_set(body),
            "rule" => {
                if let Some(Json::Array(statements)) = body.remove("expr") {
                    body.insert("expr".into(), Json::Array(normal_rule(statements)));
                }
            }
            _ => {}
        }
    }
    object
}

fn normal_set(set: &mut Map<String, Json>) {
    let types: Vec<Option<DataType>> = match set.get("type") {
        Some(Json::Array(types)) => types.iter().map(data_type_named).collect(),
        Some(one) => vec![data_type_named(one)],
        None => Vec::new(),
    };
    if let Some(Json::Array(elements)) = set.remove("elem")
        && !elements.is_empty()
    {
        set.insert("elem".into(), Json::Array(sorted_elements(&types, elements)));
    }
}

fn data_type_named(name: &Json) -> Option<DataType> {
    let name = name.as_str()?;
    DataType::ALL.into_iter().find(|data_type| data_type.name() == name)
}

fn normal_rule(mut statements: Vec<Json>) -> Vec<Json> {
    let mut transport: Option<String> = None;
    for statement in &mut statements {
        let Some((kind, body)) = statement.as_object_mut().and_then(|object| object.iter_mut().next()) else {
            continue;
        };
        match kind.as_str() {
            "match" => {
                if let Some(left) = body.get_mut("left") {
                    name_transport(left, &mut transport);
                }
                normal_match(body);
                if let Some(protocol) = body_is(body, "l4proto").filter(|protocol| PORT_PROTOCOLS.contains(protocol)) {
                    transport = Some(protocol.to_owned());
                }
            }
            "vmap" => {
                if let Some(key) = body.get_mut("key") {
                    name_transport(key, &mut transport);
                }
                let types = body.get("key").map(data_types_of).unwrap_or_default();
                if let Some(Json::Array(elements)) = body.pointer_mut("/data/set").map(Json::take) {
                    body["data"]["set"] = Json::Array(sorted_elements(&types, elements));
                }
            }
            "set" => {
                if let Some(key) = body.get_mut("elem") {
                    name_transport(key, &mut transport);
                }
                for limit in body.get_mut("stmt").and_then(Json::as_array_mut).into_iter().flatten() {
                    limit.get_mut("limit").into_iter().for_each(normal_limit);
                }
            }
            "counter" if body.is_object() => *body = Json::Null,
            "log" => {
                if let Some(log) = body.as_object_mut()
                    && log.get("prefix").and_then(Json::as_str) == Some("")
                {
                    log.remove("prefix");
                }
            }
            "limit" => normal_limit(body),
            _ => {}
        }
    }
    drop_implied(&mut statements);
    order_fields(&mut statements);
    statements
}

fn normal_limit(limit: &mut Json) {
    // NFT_LIMIT_PKT_BURST_DEFAULT, net/netfilter/nft_limit.c
    if limit.get("burst") == Some(&json!(0)) {
        limit["burst"] = json!(5);
    }
}

const PORT_PROTOCOLS: [&str; 5] = ["tcp", "udp", "dccp", "sctp", "udplite"];

/// The scalar that a positive match of a meta key compares with.
fn body_is<'a>(body: &'a Json, meta_key: &str) -> Option<&'a str> {
    let key = body.pointer("/left/meta/key")?.as_str()?;
    (key == meta_key && body.get("op")?.as_str()? == "==").then(|| body.get("right")?.as_str()).flatten()
}

/// Gives `th` ports the name of the protocol that an earlier match has established, and learns one from the other
/// payloads.
fn name_transport(left: &mut Json, transport: &mut Option<String>) {
    if let Some(Json::Array(fields)) = left.get_mut("concat") {
        fields.iter_mut().for_each(|field| name_transport(field, transport));
        return;
    }
    let Some(Json::String(protocol)) = left.pointer_mut("/payload/protocol") else { return };
    if protocol == "th" {
        if let Some(known) = transport {
            protocol.clone_from(known);
        }
    } else if PORT_PROTOCOLS.contains(&protocol.as_str()) {
        *transport = Some(protocol.clone());
    }
}

fn normal_match(body: &mut Json) {
    // That none of the highest bits is set nft lists as a range.
    if let Some(mask) = body.pointer("/left/&/1").and_then(Json::as_u64).and_then(|mask| u32::try_from(mask).ok())
        && mask.leading_ones() == mask.count_ones()
        && mask != 0
        && body.get("right") == Some(&json!(0))
    {
        body["left"] = body["left"]["&"][0].take();
        body["right"] = if mask == u32::MAX { json!(0) } else { json!({ "range": [0, !mask] }) };
    }
    let types = body.get("left").map(data_types_of).unwrap_or_default();
    let Some(right) = body.get_mut("right") else { return };
    if let Some(Json::Array(elements)) = right.get_mut("set").map(Json::take) {
        let mut elements = sorted_elements(&types, merged(&types, elements));
        let single = types.len() == 1 && elements.len() == 1;
        if single && let Some(element) = elements.pop() {
            // nft turns { x } into x when it loads a rule, and with flags that is "any of" instead of "equal".
            *right = element;
            if types == [Some(DataType::CtState)] && right.is_string() && body["op"] == "==" {
                body["op"] = json!("in");
            }
        } else {
            *right = json!({ "set": elements });
        }
    } else if let [data_type] = types[..] {
        *right = normal_value(data_type, right.take());
    }
}

/// Adjacent ranges as one, which nft does in anonymous sets with intervals.
fn merged(types: &[Option<DataType>], elements: Vec<Json>) -> Vec<Json> {
    let [Some(data_type)] = types[..] else { return elements };
    let is_interval = elements.iter().any(|element| element.get("range").is_some() || element.get("prefix").is_some());
    let bounds: Option<Vec<(u128, u128)>> = elements.iter().map(|element| self::bounds(data_type, element)).collect();
    let Some(mut bounds) = bounds.filter(|_| is_interval) else { return elements };
    bounds.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (start, end) in bounds {
        match merged.last_mut() {
            Some(last) if last.1.checked_add(1).is_none_or(|next| start <= next) => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged.into_iter().map(|(start, end)| spell_span(data_type, start, end)).collect()
}

/// The types of the values that a left side has: several for a concatenation, `None` for what we never emit.
fn data_types_of(left: &Json) -> Vec<Option<DataType>> {
    if let Some(Json::Array(fields)) = left.get("concat") {
        return fields.iter().flat_map(data_types_of).collect();
    }
    // Flags in full: the type of the value that is masked.
    if let Some(Json::Array(masked)) = left.get("&") {
        return masked.first().map(data_types_of).unwrap_or_default();
    }
    let text = |pointer| left.pointer(pointer).and_then(Json::as_str).unwrap_or_default();
    if text("/socket/key") == "cgroupv2" {
        return vec![Some(DataType::Cgroup)];
    }
    let data_type = match (text("/meta/key"), text("/ct/key"), text("/payload/protocol"), text("/payload/field")) {
        ("nfproto", ..) => DataType::NfProto,
        ("l4proto", ..) => DataType::InetProto,
        ("iifname" | "oifname" | "iifkind" | "oifkind", ..) => DataType::Ifname,
        ("iiftype" | "oiftype", ..) => DataType::IfaceType,
        ("mark", ..) => DataType::Mark,
        ("skuid", ..) => DataType::Uid,
        ("skgid", ..) => DataType::Gid,
        (_, "state", ..) => DataType::CtState,
        (_, _, "ip", "saddr" | "daddr") => DataType::Ipv4Addr,
        (_, _, "ip6", "saddr" | "daddr") => DataType::Ipv6Addr,
        (_, _, "ip6", "hoplimit") => DataType::Integer,
        (_, _, _, "sport" | "dport") => DataType::InetService,
        (_, _, "icmp", "type") => DataType::IcmpType,
        (_, _, "icmp", "code") => DataType::IcmpCode,
        (_, _, "icmpv6", "type") => DataType::Icmpv6Type,
        (_, _, "icmpv6", "code") => DataType::Icmpv6Code,
        _ => return vec![None],
    };
    vec![Some(data_type)]
}

/// Elements with their values in normal form, ascending.
fn sorted_elements(types: &[Option<DataType>], elements: Vec<Json>) -> Vec<Json> {
    let mut elements: Vec<Json> = elements.into_iter().map(|element| normal_element(types, element)).collect();
    elements.sort_by_cached_key(|element| {
        let key = match element {
            Json::Array(pair) => pair.first().unwrap_or(element),
            other => other,
        };
        let fields: Vec<&Json> = match key.get("concat") {
            Some(Json::Array(fields)) => fields.iter().collect(),
            _ => vec![key],
        };
        let numbers: Vec<(Option<(u128, u128)>, String)> = fields
            .into_iter()
            .enumerate()
            .map(|(index, field)| match types.get(index).copied().flatten() {
                // nft keeps names in host order and sorts them as numbers: the last byte counts most.
                Some(DataType::Ifname) => {
                    let mut bytes = [0; 16];
                    for (byte, letter) in bytes.iter_mut().zip(field.as_str().unwrap_or_default().bytes().take(15)) {
                        *byte = letter;
                    }
                    let number = u128::from_le_bytes(bytes);
                    (Some((number, number)), field.to_string())
                }
                Some(data_type) => match bounds(data_type, field) {
                    Some(bounds) => (Some(bounds), String::new()),
                    None => (None, field.to_string()),
                },
                _ => (None, field.to_string()),
            })
            .collect();
        numbers
    });
    elements
}

fn normal_element(types: &[Option<DataType>], element: Json) -> Json {
    match element {
        Json::Array(mut pair) => {
            if let Some(key) = pair.first_mut() {
                *key = normal_element(types, key.take());
            }
            Json::Array(pair)
        }
        Json::Object(mut object) if object.contains_key("concat") => {
            if let Some(Json::Array(fields)) = object.remove("concat") {
                let fields = fields
                    .into_iter()
                    .enumerate()
                    .map(|(index, field)| normal_value(types.get(index).copied().flatten(), field));
                object.insert("concat".into(), fields.collect());
            }
            Json::Object(object)
        }
        other => normal_value(types.first().copied().flatten(), other),
    }
}

fn normal_value(data_type: Option<DataType>, value: Json) -> Json {
    let Some(data_type) = data_type.filter(|data_type| *data_type != DataType::Ifname) else { return value };
    match &value {
        Json::Array(flags) => flags.iter().map(|flag| normal_value(Some(data_type), flag.clone())).collect(),
        _ => match bounds(data_type, &value) {
            Some((start, end)) if start == end => spell(data_type, start),
            Some((start, end)) => spell_span(data_type, start, end),
            None => value,
        },
    }
}

/// The numbers that a value, range, prefix or mask stands for.
fn bounds(data_type: DataType, value: &Json) -> Option<(u128, u128)> {
    if let Some(Json::Array(ends)) = value.get("range") {
        let [start, end] = &ends[..] else { return None };
        return Some((number(data_type, start)?, number(data_type, end)?));
    }
    if let Some(prefix) = value.get("prefix") {
        let start = number(data_type, prefix.get("addr")?)?;
        let length = u32::try_from(prefix.get("len")?.as_u64()?).ok()?;
        let host = u32::try_from(data_type.size() * 8).ok()?.checked_sub(length)?;
        return Some((start, start | 1u128.checked_shl(host).map_or(u128::MAX, |power| power - 1)));
    }
    number(data_type, value).map(|number| (number, number))
}

fn number(data_type: DataType, value: &Json) -> Option<u128> {
    match value {
        Json::Number(number) => number.as_u64().map(u128::from),
        Json::String(name) => match data_type {
            DataType::Ipv4Addr => name.parse().ok().map(|addr: std::net::Ipv4Addr| addr.to_bits().into()),
            DataType::Ipv6Addr => name.parse().ok().map(|addr: std::net::Ipv6Addr| addr.to_bits()),
            DataType::InetProto => words::protocol_number(name),
            DataType::Cgroup => name.parse().ok(),
            // Every other type has values of one or two bytes, or is the flags of conntrack below 256.
            _ => (0..=u128::from(u16::MAX)).find(|number| words::symbol(data_type, *number) == Some(name)),
        },
        Json::Object(object) => match object.get("|") {
            Some(Json::Array(flags)) => {
                flags.iter().map(|flag| number(data_type, flag)).try_fold(0, |mask, flag| Some(mask | flag?))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Flags as nft prints a mask: `a`, `{"|": [a, b]}`, `{"|": [{"|": [a, b]}, c]}`.
pub(super) fn mask(flags: Vec<Json>) -> Json {
    flags.into_iter().reduce(|mask, flag| json!({ "|": [mask, flag] })).unwrap_or_else(|| json!(0))
}

/// Leaves out the matches on the protocol that a later match implies; nft does not list them, and does not say whether
/// the kernel has them twice.
fn drop_implied(statements: &mut Vec<Json>) {
    let mut index = 0;
    while index < statements.len() {
        if is_implied(&statements[index], &statements[index + 1..]) {
            statements.remove(index);
        } else {
            index += 1;
        }
    }
}

fn is_implied(statement: &Json, after: &[Json]) -> bool {
    let Some(body) = statement.get("match") else { return false };
    let (l4proto, nfproto) = (body_is(body, "l4proto"), body_is(body, "nfproto"));
    if l4proto.or(nfproto).is_none() {
        return false;
    }
    let mut protocols = Vec::new();
    for statement in after {
        let left = ["/match/left", "/vmap/key", "/set/elem"].into_iter().find_map(|path| statement.pointer(path));
        // A statement that does something must go on doing it to the packets that come this far.
        let Some(left) = left else { break };
        payload_protocols(left, &mut protocols);
        if statement.get("set").is_some() {
            break;
        }
    }
    protocols.into_iter().any(|protocol| match (l4proto, nfproto) {
        (Some("ipv6-icmp"), _) => protocol == "icmpv6",
        (Some(wanted), _) => protocol == wanted,
        (_, Some("ipv4")) => matches!(protocol, "ip" | "icmp"),
        (_, Some("ipv6")) => matches!(protocol, "ip6" | "icmpv6"),
        _ => false,
    })
}

fn payload_protocols<'a>(left: &'a Json, protocols: &mut Vec<&'a str>) {
    match left.get("concat") {
        Some(Json::Array(fields)) => fields.iter().for_each(|field| payload_protocols(field, protocols)),
        _ => protocols.extend(left.pointer("/payload/protocol").and_then(Json::as_str)),
    }
}

/// Puts neighbouring fields of one header in their order on the wire: nft loads `udp dport 53 udp sport 5` as one match
/// of both and lists it the other way around.
fn order_fields(statements: &mut [Json]) {
    for index in 1..statements.len() {
        let (before, after) = (field(&statements[index - 1]), field(&statements[index]));
        if let (Some((one, later)), Some((other, earlier))) = (before, after)
            && one == other
            && matches!((earlier, later), ("sport", "dport") | ("type", "code"))
        {
            statements.swap(index - 1, index);
        }
    }
}

/// Protocol and field of a match with one value.
fn field(statement: &Json) -> Option<(&str, &str)> {
    let body = statement.get("match")?;
    let right = body.get("right")?;
    let is_value = right.is_number() || right.as_str().is_some_and(|text| !text.starts_with('@'));
    (is_value && body.get("op")? == "==").then_some(())?;
    Some((body.pointer("/left/payload/protocol")?.as_str()?, body.pointer("/left/payload/field")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `nft -j` says of one rule, and its normal form.
    fn rule(statements: Json) -> Json {
        let listing = json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "rule": { "family": "inet", "table": "nodewall", "chain": "c", "handle": 7, "expr": statements } },
        ] });
        let normal = normalise(listing);
        assert_eq!(normalise(normal.clone()), normal, "applying it twice is applying it once");
        assert!(normal["nftables"][0]["rule"].get("handle").is_none());
        normal["nftables"][0]["rule"]["expr"].clone()
    }

    fn meta(key: &str, right: Json) -> Json {
        json!({ "match": { "op": "==", "left": { "meta": { "key": key } }, "right": right } })
    }

    fn payload(protocol: &str, field: &str, right: Json) -> Json {
        let left = json!({ "payload": { "protocol": protocol, "field": field } });
        json!({ "match": { "op": "==", "left": left, "right": right } })
    }

    #[test]
    fn what_a_later_match_implies_is_left_out_unless_something_happens_between() {
        let (tcp, port) = (meta("l4proto", json!("tcp")), payload("tcp", "dport", json!(22)));
        assert_eq!(rule(json!([tcp, port])), json!([port]));
        assert_eq!(rule(json!([tcp, payload("th", "dport", json!(22))])), json!([port]));
        let counter = json!({ "counter": { "packets": 5, "bytes": 9 } });
        assert_eq!(rule(json!([tcp, counter, port])), json!([tcp, { "counter": null }, port]));
        let udp = meta("l4proto", json!("udp"));
        assert_eq!(rule(json!([udp, { "reject": null }])), json!([udp, { "reject": null }]));
    }

    #[test]
    fn one_spelling_for_one_meaning() {
        assert_eq!(rule(json!([meta("l4proto", json!(58))])), json!([meta("l4proto", json!("ipv6-icmp"))]));
        let range = json!({ "range": ["10.0.0.0", "10.0.0.255"] });
        let prefix = json!({ "prefix": { "addr": "10.0.0.0", "len": 24 } });
        assert_eq!(
            rule(json!([payload("ip", "saddr", range.clone())])),
            json!([payload("ip", "saddr", prefix.clone())])
        );
        assert_eq!(
            rule(json!([payload("ip", "saddr", json!({ "set": [range] }))])),
            json!([payload("ip", "saddr", prefix)])
        );
        let ports = json!({ "set": [{ "range": [82, 84] }, 80, 81] });
        assert_eq!(
            rule(json!([payload("tcp", "dport", ports)])),
            json!([payload("tcp", "dport", json!({ "range": [80, 84] }))])
        );
        let (code, kind) = (payload("icmp", "code", json!(4)), payload("icmp", "type", json!(3)));
        let named =
            [payload("icmp", "type", json!("destination-unreachable")), payload("icmp", "code", json!("frag-needed"))];
        assert_eq!(rule(json!([code, kind])), json!(named));
    }

    #[test]
    fn set_elements_are_sorted_by_value_and_not_by_spelling() {
        let set = json!({ "nftables": [{ "set": { "family": "inet", "name": "s", "table": "nodewall", "type": "ipv4_addr",
            "handle": 3, "elem": ["10.0.0.1", "9.0.0.1", { "prefix": { "addr": "9.0.0.128", "len": 25 } }] } }] });
        let elements = normalise(set)["nftables"][0]["set"]["elem"].clone();
        assert_eq!(elements, json!(["9.0.0.1", { "prefix": { "addr": "9.0.0.128", "len": 25 } }, "10.0.0.1"]));
    }

    #[test]
    fn what_is_no_listing_is_left_alone() {
        for odd in [json!(null), json!([1]), json!({ "nftables": 5 }), json!({})] {
            normalise(odd);
        }
        assert_eq!(rule(json!(["notrack", { "xt": null }, {}])), json!(["notrack", { "xt": null }, {}]));
    }
}
