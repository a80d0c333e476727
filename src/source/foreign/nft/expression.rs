//! One rule of nft: its matches as conjunctions, and its verdicts.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value as Json;

use crate::net::addr::AddrSet;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::policy::model::Limit;
use crate::source::foreign::cube::{
    ALL_KINDS, BROADCAST, Cube, IcmpTypes, LOCAL, MULTICAST, NEW, UNTRACKED, has_ports, icmp_types,
};
use crate::source::foreign::iptables;
use crate::source::foreign::model::Verdict;
use crate::source::foreign::names::{Names, Pattern};
use crate::source::foreign::words;

/// The most conjunctions that one match comes to.
const MOST_CUBES: usize = 4096;

/// An element of a set, with the verdict of a map.
#[derive(Clone, Debug)]
pub(super) struct Element {
    key: Json,
    verdict: Option<Json>,
}

impl Element {
    /// The addresses that it is, if it is addresses.
    pub(super) fn addresses(&self) -> Option<AddrSet> {
        if self.verdict.is_some() { None } else { address_set(&self.key) }
    }
}

/// The elements of a list: of a set, or pairs of a map.
pub(super) fn elements(list: &Json) -> Vec<Element> {
    let bare = |key: &Json| key.get("elem").and_then(|elem| elem.get("val")).unwrap_or(key).clone();
    let one = |item: &Json| match item.as_array().map(Vec::as_slice) {
        Some([key, verdict]) => Element { key: bare(key), verdict: Some(verdict.clone()) },
        _ => Element { key: bare(item), verdict: None },
    };
    match list {
        Json::Array(items) => items.iter().map(one).collect(),
        Json::Null => Vec::new(),
        item => vec![one(item)],
    }
}

/// What rules are read with.
pub(super) struct Reading<'a> {
    /// The elements of a set or map that does not change by itself.
    pub(super) set: &'a dyn Fn(&str) -> Option<&'a [Element]>,
    /// Whether a set changes by itself.
    pub(super) moves: &'a dyn Fn(&str) -> bool,
    /// The chain of a name.
    pub(super) chain: &'a dyn Fn(&str) -> Option<usize>,
}

/// What a rule comes to.
#[derive(Default)]
pub(super) struct ReadRule {
    /// Rules of one conjunction each, in order.
    pub(super) parts: Vec<(Cube, Verdict)>,
    /// Packets that it makes untracked.
    pub(super) untracked: Vec<Cube>,
    /// It looks at TCP flags.
    pub(super) flags: bool,
}

impl<'a> Reading<'a> {
    /// Reads the statements of a rule of these families.
    pub(super) fn rule(&self, expressions: &Json, families: Cube) -> ReadRule {
        let mut read = ReadRule::default();
        let mut cubes = vec![families];
        let mut opaque = false;
        for statement in expressions.as_array().into_iter().flatten() {
            let Some((kind, value)) = statement.as_object().and_then(|fields| fields.iter().next()) else {
                opaque = true;
                continue;
            };
            let end = |read: &mut ReadRule, cubes: &[Cube], verdict: Verdict| {
                read.parts.extend(cubes.iter().map(|cube| (cube.clone(), verdict.clone())));
            };
            match kind.as_str() {
                "match" => {
                    read.flags |= is_flags(value);
                    let known = cubes.first().map(|cube| cube.protocols.clone()).unwrap_or_default();
                    let matched = self.matched(value, &known);
                    cubes = product(&cubes, &matched);
                }
                "vmap" => {
                    let key = value.get("key").unwrap_or(&Json::Null);
                    let Some((elements, unknown)) = self.listed(value.get("data").unwrap_or(&Json::Null)) else {
                        // What is in it is not known: any of its verdicts, or none.
                        let words = format!("what is in the map {}", name_of(value.get("data")));
                        end(&mut read, &product(&cubes, &[Cube::unknown(words)]), Verdict::Drop);
                        return read;
                    };
                    let (some, any): (Vec<&Element>, Vec<&Element>) =
                        elements.iter().partition(|element| element.key != "*");
                    for element in some.into_iter().chain(any) {
                        let mut matched = self.value(key, &element.key, "==", &RangeSet::full());
                        if element.key == "*" {
                            matched = vec![Cube::full()];
                        }
                        if let Some(words) = &unknown {
                            matched = product(&matched, &[Cube::unknown(words.clone())]);
                        }
                        let verdict = element.verdict.as_ref().and_then(|verdict| self.verdict(verdict));
                        let verdict = verdict.unwrap_or_else(|| Verdict::Other("a map without verdicts".to_owned()));
                        end(&mut read, &product(&cubes, &matched), verdict);
                    }
                    // What is not in the map goes on with the rule.
                }
                "counter" | "mangle" | "flow" | "dup" | "tee" | "ct helper" | "ct timeout" | "secmark"
                | "quota_ref" | "comment" => {}
                "log" => {
                    let prefix = value.get("prefix").and_then(Json::as_str).unwrap_or_default();
                    end(&mut read, &cubes, Verdict::Log(prefix.to_owned()));
                }
                "limit" => cubes = product(&cubes, &[limited(value, false)]),
                "set" | "meter" => cubes = product(&cubes, &[self.metered(value)]),
                "notrack" => {
                    read.untracked.extend(cubes.iter().map(|cube| Cube {
                        unknown: BTreeSet::new(),
                        limit: None,
                        over: None,
                        ..cube.clone()
                    }));
                }
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "continue" => {
                    let verdict = self.verdict(statement);
                    let verdict =
                        verdict.unwrap_or_else(|| Verdict::Other("it goes to a chain that is not here".to_owned()));
                    let several = cubes.len() > 1;
                    if several {
                        // Each would have a bucket of its own.
                        for cube in cubes.iter_mut().filter(|cube| cube.limit.is_some() || cube.over.is_some()) {
                            cube.unknown.insert(crate::source::foreign::cube::SHARED_LIMIT.to_owned());
                        }
                    }
                    end(&mut read, &cubes, verdict);
                    return read;
                }
                "tproxy" => end(&mut read, &cubes, Verdict::Accept),
                "queue" | "synproxy" | "fwd" => {
                    end(&mut read, &cubes, Verdict::Other(format!("nodewall has nothing like the statement {kind}")));
                    return read;
                }
                "xt" => {
                    let name = value.get("name").and_then(Json::as_str).unwrap_or("of iptables");
                    match (value.get("type").and_then(Json::as_str), name) {
                        (_, "comment") => {}
                        (Some("match"), _) => {
                            cubes = product(&cubes, &[Cube::unknown(format!("the match {name} of iptables"))]);
                        }
                        (Some("watcher"), _) | (_, "LOG" | "NFLOG") => {}
                        (_, "MARK" | "CONNMARK" | "TCPMSS" | "DSCP" | "TOS" | "CHECKSUM" | "CT" | "SET") => {}
                        _ => {
                            cubes = product(&cubes, &[Cube::unknown("what nft does not show of a rule of iptables")]);
                            opaque = true;
                        }
                    }
                }
                other => cubes = product(&cubes, &[Cube::unknown(format!("the statement {other}"))]),
            }
            if read.parts.len() > MOST_CUBES {
                return read;
            }
        }
        if opaque {
            let words = "nft does not show what this rule of iptables does (give what iptables-save prints with --from iptables)";
            read.parts.extend(cubes.iter().map(|cube| (cube.clone(), Verdict::Other(words.to_owned()))));
        }
        read
    }

    fn verdict(&self, statement: &Json) -> Option<Verdict> {
        let (kind, value) = match statement {
            Json::Object(fields) => fields.iter().next()?,
            _ => return None,
        };
        let target = || value.get("target").and_then(Json::as_str).and_then(|name| (self.chain)(name));
        Some(match kind.as_str() {
            "accept" => Verdict::Accept,
            "drop" => Verdict::Drop,
            "reject" => Verdict::Reject,
            "return" => Verdict::Return,
            "continue" => Verdict::Nothing,
            "jump" => Verdict::Jump(target()?),
            "goto" => Verdict::Goto(target()?),
            _ => return None,
        })
    }

    /// The elements of what stands on the right: a named set, a list, or one value. With words where they may have changed.
    fn listed(&self, right: &Json) -> Option<(Vec<Element>, Option<String>)> {
        if let Some(name) = right.as_str().and_then(|name| name.strip_prefix('@')) {
            if (self.moves)(name) {
                return None;
            }
            return Some(((self.set)(name)?.to_vec(), None));
        }
        let list = right.get("set").unwrap_or(right);
        Some((elements(list), None))
    }

    /// A match, as conjunctions of which one holds.
    fn matched(&self, value: &Json, known: &RangeSet<u8>) -> Vec<Cube> {
        let null = Json::Null;
        let (left, right) = (value.get("left").unwrap_or(&null), value.get("right").unwrap_or(&null));
        let op = value.get("op").and_then(Json::as_str).unwrap_or("==");
        if let Some(name) = right.as_str().and_then(|name| name.strip_prefix('@')) {
            let Some((elements, _)) = self.listed(right) else {
                return vec![Cube::unknown(format!("what is in the set {name}"))];
            };
            let list = Json::Array(elements.into_iter().map(|element| element.key).collect());
            return self.value(left, &serde_json::json!({ "set": list }), op, known);
        }
        self.value(left, right, op, known)
    }

    /// What is asked of a packet, as conjunctions of which one holds.
    fn value(&self, left: &Json, right: &Json, op: &str, known: &RangeSet<u8>) -> Vec<Cube> {
        if let Some(parts) = left.get("concat").and_then(Json::as_array) {
            return self.concatenated(parts, right, op, known);
        }
        match one(left, right, op, known) {
            Some(cube) => vec![cube],
            None => {
                let text =
                    super::words::rule(&serde_json::json!([{ "match": { "op": op, "left": left, "right": right } }]));
                vec![Cube::unknown(format!("`{text}`"))]
            }
        }
    }

    fn concatenated(&self, parts: &[Json], right: &Json, op: &str, known: &RangeSet<u8>) -> Vec<Cube> {
        let list = elements(right.get("set").unwrap_or(right));
        if !matches!(op, "==" | "in") || list.len() > MOST_CUBES {
            return vec![Cube::unknown("a concatenation that is negated or very long")];
        }
        let mut cubes = Vec::new();
        for element in &list {
            let Some(values) = element.key.get("concat").and_then(Json::as_array) else {
                return vec![Cube::unknown("a concatenation")];
            };
            if values.len() != parts.len() {
                return vec![Cube::unknown("a concatenation")];
            }
            let mut all = vec![Cube::full()];
            for (part, value) in parts.iter().zip(values) {
                let known = all.first().map_or_else(|| known.clone(), |cube: &Cube| cube.protocols.intersection(known));
                all = product(&all, &self.value(part, value, "==", &known));
            }
            cubes.extend(all);
        }
        cubes
    }

    /// `add @set { ip saddr limit rate over ... }`: a bucket for each source.
    fn metered(&self, value: &Json) -> Cube {
        let statements = value.get("stmt").map(|stmt| match stmt {
            Json::Array(list) => list.clone(),
            one => vec![one.clone()],
        });
        let statements = statements.unwrap_or_default();
        let key = value.get("elem").or_else(|| value.get("key")).unwrap_or(&Json::Null);
        let key = key.get("elem").and_then(|elem| elem.get("val")).unwrap_or(key);
        let payload = key.get("payload").unwrap_or(&Json::Null);
        let (protocol, field) =
            (payload.get("protocol").and_then(Json::as_str), payload.get("field").and_then(Json::as_str));
        let families = match (protocol, field) {
            (Some("ip"), Some("saddr")) => Some(Cube::of(true, false)),
            (Some("ip6"), Some("saddr")) => Some(Cube::of(false, true)),
            _ => None,
        };
        match (statements.as_slice(), families) {
            ([], Some(families)) => families,
            // The packet is noted; what key it has says which packets have it.
            ([], None) => Cube::full(),
            ([only], Some(families)) => match only.get("limit") {
                Some(limit) => families.and(&limited(limit, true)),
                None if only.get("counter").is_some() => families,
                None => Cube::unknown("what is counted for each source"),
            },
            _ => Cube::unknown("what is counted for each key of a set"),
        }
    }
}

/// The name of a set or map in a statement.
fn name_of(value: Option<&Json>) -> String {
    value.and_then(Json::as_str).unwrap_or("of this rule").trim_start_matches('@').to_owned()
}

/// Whether a match looks at TCP flags.
fn is_flags(value: &Json) -> bool {
    let left = value.get("left").unwrap_or(&Json::Null);
    tcp_flags(left).is_some() || left.get("&").and_then(|parts| parts.get(0)).and_then(tcp_flags).is_some()
}

fn tcp_flags(value: &Json) -> Option<()> {
    let payload = value.get("payload")?;
    let is = payload.get("protocol")?.as_str()? == "tcp" && payload.get("field")?.as_str()? == "flags";
    is.then_some(())
}

/// Every pair of conjunctions, as far as something can be in both.
fn product(ones: &[Cube], others: &[Cube]) -> Vec<Cube> {
    let mut all = Vec::new();
    for one in ones {
        for other in others {
            let both = one.and(other);
            if !both.is_empty() {
                all.push(both);
            }
            if all.len() > MOST_CUBES {
                return all;
            }
        }
    }
    all
}

fn limited(value: &Json, per_source: bool) -> Cube {
    let number = |key: &str| value.get(key).and_then(Json::as_u64).and_then(|number| u32::try_from(number).ok());
    let seconds = match value.get("per").and_then(Json::as_str).unwrap_or("second") {
        "second" => Some(1),
        "minute" => Some(60),
        "hour" => Some(3600),
        "day" => Some(86_400),
        _ => None,
    };
    let bytes = value.get("rate_unit").and_then(Json::as_str).is_some_and(|unit| unit != "packets");
    // A burst of none is one of 5 packets (`nft_limit_init`).
    let burst = number("burst").filter(|burst| *burst > 0).unwrap_or(5);
    let limit: Option<Limit> =
        number("rate").zip(seconds).filter(|_| !bytes).and_then(|rate| words::limit(rate, burst, per_source));
    match (limit, value.get("inv").and_then(Json::as_bool).unwrap_or(false)) {
        (Some(limit), true) => Cube { over: Some(limit), ..Cube::full() },
        (Some(limit), false) => Cube { limit: Some(limit), ..Cube::full() },
        (None, _) => Cube::unknown("this limit"),
    }
}

/// The values on the right as a list.
fn values(right: &Json) -> Vec<Json> {
    match right.get("set").unwrap_or(right) {
        Json::Array(items) => {
            items.iter().map(|item| item.get("elem").and_then(|elem| elem.get("val")).unwrap_or(item).clone()).collect()
        }
        one => vec![one.clone()],
    }
}

fn address_set(value: &Json) -> Option<AddrSet> {
    let nets: Vec<IpNet> = if let Some(text) = value.as_str() {
        if text == "*" {
            return Some(AddrSet::full());
        }
        vec![words::prefix(text)?]
    } else if let Some(prefix) = value.get("prefix") {
        let (address, length) = (prefix.get("addr")?.as_str()?, prefix.get("len")?.as_u64()?);
        vec![IpNet::new(address.parse().ok()?, u8::try_from(length).ok()?).ok()?.trunc()]
    } else {
        let ends = value.get("range")?.as_array()?;
        iptables::range(ends.first()?.as_str()?, ends.get(1)?.as_str()?)?
    };
    Some(nets.into_iter().collect())
}

/// Numbers, ranges of numbers, and names that this knows.
fn numbers(right: &Json, named: &dyn Fn(&str) -> Option<u16>) -> Option<RangeSet<u16>> {
    let number = |value: &Json| match value {
        Json::String(text) => named(text),
        other => other.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    let mut ranges = Vec::new();
    for value in values(right) {
        if value == "*" {
            return Some(RangeSet::full());
        }
        match value.get("range").and_then(Json::as_array) {
            Some(ends) => ranges.push((number(ends.first()?)?, number(ends.get(1)?)?)),
            None => {
                let one = number(&value)?;
                ranges.push((one, one));
            }
        }
    }
    Some(ranges.into_iter().collect())
}

/// A set of numbers, as the operator asks for it.
fn compared(set: RangeSet<u16>, op: &str, most: u16) -> Option<RangeSet<u16>> {
    let only = set.only();
    Some(match op {
        "==" | "in" => set,
        "!=" => RangeSet::range(0, most).difference(&set),
        "<" => only?.checked_sub(1).map_or_else(RangeSet::empty, |end| RangeSet::range(0, end)),
        "<=" => RangeSet::range(0, only?),
        ">" => only?.checked_add(1).map_or_else(RangeSet::empty, |start| RangeSet::range(start, most)),
        ">=" => RangeSet::range(only?, most),
        _ => return None,
    })
}

fn bytes(set: &RangeSet<u16>) -> RangeSet<u8> {
    RangeSet::narrowed(set.wide().into_iter().filter(|(start, _)| *start <= 255))
}

/// Words of a list, where all of it is words.
fn strings(right: &Json) -> Option<Vec<String>> {
    values(right).iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

/// One condition, if it can be said.
fn one(left: &Json, right: &Json, op: &str, known: &RangeSet<u8>) -> Option<Cube> {
    let (kind, inner) = left.as_object()?.iter().next()?;
    let key = inner.get("key").and_then(Json::as_str).unwrap_or_default();
    let negated = op == "!=";
    let plain = matches!(op, "==" | "in" | "!=");
    match kind.as_str() {
        "payload" => payload(inner, right, op, known),
        "meta" => match key {
            "iif" | "iifname" | "oif" | "oifname" if plain => {
                let wildcard = if key.ends_with("name") { '*' } else { '\0' };
                let names = strings(right)?;
                let good = |name: &String| words::is_interface(name.strip_suffix(wildcard).unwrap_or(name));
                let names = Names::any_of(
                    names.iter().all(good).then(|| names.iter().map(|name| Pattern::with_wildcard(name, wildcard)))?,
                );
                let names = if negated { names.complement()? } else { names };
                Some(if key.starts_with('i') {
                    Cube { input: names, ..Cube::full() }
                } else {
                    Cube { output: names, ..Cube::full() }
                })
            }
            "l4proto" => {
                let set = numbers(right, &|name| words::protocol(name).map(|protocol| u16::from(protocol.0)))?;
                Some(Cube { protocols: bytes(&compared(set, op, 255)?), ..Cube::full() })
            }
            "nfproto" | "protocol" if plain => {
                let mut families = (false, false);
                for word in strings(right)? {
                    match word.as_str() {
                        "ipv4" | "ip" => families.0 = true,
                        "ipv6" | "ip6" => families.1 = true,
                        _ => return None,
                    }
                }
                Some(if negated { Cube::of(!families.0, !families.1) } else { Cube::of(families.0, families.1) })
            }
            "skuid" | "skgid" if matches!(op, "==" | "in") => {
                let name = |value: &Json| match value {
                    Json::String(name) => Some(name.clone()),
                    other => other.as_u64().map(|number| number.to_string()),
                };
                let names: BTreeSet<String> = values(right).iter().map(name).collect::<Option<_>>()?;
                Some(if key == "skuid" {
                    Cube { users: Some(names), ..Cube::full() }
                } else {
                    Cube { groups: Some(names), ..Cube::full() }
                })
            }
            _ => None,
        },
        "ct" if key == "state" && inner.get("dir").is_none() && plain => {
            let (mut bits, words) = (0, strings(right)?);
            for word in &words {
                match word.as_str() {
                    "new" => bits |= NEW,
                    "untracked" => bits |= UNTRACKED,
                    "established" | "related" | "invalid" => {}
                    _ => return None,
                }
            }
            Some(Cube { states: if negated { (NEW | UNTRACKED) & !bits } else { bits }, ..Cube::full() })
        }
        "fib" if plain => {
            let flags = inner.get("flags")?;
            let is_destination =
                flags == "daddr" || flags.as_array().is_some_and(|flags| flags.len() == 1 && flags[0] == "daddr");
            if inner.get("result")?.as_str()? != "type" || !is_destination {
                return None;
            }
            let mut kinds = 0;
            for word in strings(right)? {
                kinds |= match word.as_str() {
                    "local" => LOCAL,
                    "multicast" => MULTICAST,
                    "broadcast" => BROADCAST,
                    _ => return None,
                };
            }
            Some(Cube { kinds: if negated { ALL_KINDS & !kinds } else { kinds }, ..Cube::full() })
        }
        "&" => {
            let parts = inner.as_array()?;
            tcp_flags(parts.first()?)?;
            let (mask, wanted) = (flag_bits(parts.get(1)?)?, flag_bits(right)?);
            opening(match op {
                "==" => 0x02 & mask == wanted,
                "!=" => 0x02 & mask != wanted,
                _ => return None,
            })
        }
        _ => None,
    }
}

/// TCP, of the packet that opens a connection: all of them or none.
fn opening(holds: bool) -> Option<Cube> {
    let tcp = Cube::protocol(Protocol::TCP);
    Some(if holds { tcp } else { Cube { protocols: RangeSet::empty(), ..tcp } })
}

/// TCP flags as the bits of the header, however they are put together.
fn flag_bits(value: &Json) -> Option<u8> {
    match value {
        Json::String(name) => Some(match name.as_str() {
            "fin" => 1,
            "syn" => 2,
            "rst" => 4,
            "psh" => 8,
            "ack" => 16,
            "urg" => 32,
            "ecn" => 64,
            "cwr" => 128,
            _ => return None,
        }),
        Json::Array(items) => items.iter().try_fold(0, |all, item| Some(all | flag_bits(item)?)),
        Json::Object(_) => value.get("|")?.as_array()?.iter().try_fold(0, |all, item| Some(all | flag_bits(item)?)),
        other => other.as_u64().and_then(|number| u8::try_from(number).ok()),
    }
}

/// A field of a header, which makes the packet one of the header's protocol.
fn payload(inner: &Json, right: &Json, op: &str, known: &RangeSet<u8>) -> Option<Cube> {
    let (protocol, field) = (inner.get("protocol")?.as_str()?, inner.get("field")?.as_str()?);
    let plain = matches!(op, "==" | "in" | "!=");
    match (protocol, field) {
        ("ip" | "ip6", "saddr" | "daddr") if plain => {
            let v4 = protocol == "ip";
            let mut set = AddrSet::default();
            for value in values(right) {
                set = set.union(&address_set(&value)?);
            }
            let set = if op == "!=" { AddrSet::full().difference(&set) } else { set };
            let families = Cube::of(v4, !v4);
            let mut cube =
                if field == "saddr" { Cube { source: set, ..families } } else { Cube { destination: set, ..families } };
            cube.v4 &= !cube.source.v4.is_empty() && !cube.destination.v4.is_empty();
            cube.v6 &= !cube.source.v6.is_empty() && !cube.destination.v6.is_empty();
            cube.tidy();
            Some(cube)
        }
        ("ip", "protocol") => {
            let set = numbers(right, &|name| words::protocol(name).map(|protocol| u16::from(protocol.0)))?;
            Some(Cube { protocols: bytes(&compared(set, op, 255)?), ..Cube::of(true, false) })
        }
        ("tcp" | "udp" | "udplite" | "sctp" | "dccp" | "th", "sport" | "dport") => {
            let named =
                |name: &str| words::port_range(name).filter(|(start, end)| start == end).map(|(start, _)| start);
            let ports = compared(numbers(right, &named)?, op, u16::MAX)?;
            let of = match protocol {
                "th" if has_ports(known) => Cube::full(),
                "th" => return None,
                name => Cube::protocol(Protocol::by_name(name)?),
            };
            Some(if field == "sport" { Cube { sports: ports, ..of } } else { Cube { dports: ports, ..of } })
        }
        ("tcp", "flags") => {
            let wanted = flag_bits(right)?;
            // `tcp flags syn` holds where one of the flags is there, and `tcp flags == syn` where these are all.
            opening(match op {
                "in" => wanted & 0x02 != 0,
                "==" => wanted == 0x02,
                "!=" => wanted != 0x02,
                _ => return None,
            })
        }
        ("icmp" | "icmpv6", "type" | "code") => {
            let v6 = protocol == "icmpv6";
            let named = |name: &str| {
                if field == "type" {
                    words::icmp(name, v6).and_then(|types| types.ranges().first().map(|(start, _)| start >> 8))
                } else {
                    code(name, v6)
                }
            };
            let set = compared(numbers(right, &named)?, op, 255)?;
            let of = |number: u16| u8::try_from(number).ok();
            let mut types: IcmpTypes = RangeSet::empty();
            for number in (0..=255_u16).filter(|number| set.contains(*number)) {
                let number = of(number)?;
                if field == "type" {
                    types = types.union(&icmp_types(number, None));
                } else {
                    let codes: IcmpTypes = (0..=u8::MAX)
                        .map(|kind| {
                            (u16::from(kind) << 8 | u16::from(number), u16::from(kind) << 8 | u16::from(number))
                        })
                        .collect();
                    types = types.union(&codes);
                }
            }
            let families = Cube::of(!v6, v6);
            let typed = if v6 {
                Cube { icmpv6: types, ..Cube::protocol(Protocol::ICMPV6) }
            } else {
                Cube { icmp: types, ..Cube::protocol(Protocol::ICMP) }
            };
            Some(families.and(&typed))
        }
        // The kernel itself takes neighbour discovery with 255 only; who asks for that, asks for nothing more.
        _ => None,
    }
}

/// ICMP codes by their names in nft(8).
fn code(name: &str, v6: bool) -> Option<u16> {
    let v4_names = [
        ("net-unreachable", 0),
        ("host-unreachable", 1),
        ("prot-unreachable", 2),
        ("port-unreachable", 3),
        ("frag-needed", 4),
        ("net-prohibited", 9),
        ("host-prohibited", 10),
        ("admin-prohibited", 13),
    ];
    let v6_names = [
        ("no-route", 0),
        ("admin-prohibited", 1),
        ("addr-unreachable", 3),
        ("port-unreachable", 4),
        ("policy-fail", 5),
        ("reject-route", 6),
    ];
    let names: &[(&str, u16)] = if v6 { &v6_names } else { &v4_names };
    names.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}
