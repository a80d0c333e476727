//! nft(8) syntax of the IR, as `nft -f` reads it.
//!
//! Text is a view and a test's second opinion, never the write path. What nft's grammar has no words for is spelled as
//! a comment or as its nearest neighbour:
//! - a chain or set named like a keyword of nft gets underscores behind its name (the grammar has no quoted identifiers);
//! - a control group is spelled by its number, as nft lists one that is gone, and what it stands in is a comment: nft reads only the
//!   paths of control groups that are there;
//! - `"` and control characters in comments become `'` and blanks, in log prefixes also `$` becomes `_` (nft would look
//!   for a variable), and both are cut at the kernel's 127 bytes;
//! - a rule with a [`Statement::Foreign`], an empty anonymous set (which nft refuses) or an interface name with `"`
//!   becomes a comment line as a whole, so that no weaker rule stands in its place; of a base chain on a device with such a name, the
//!   line that makes it one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::TABLE;
use super::ir::{
    BaseChain, Chain, ChainPolicy, Dynamic, ElementKey, Elements, Limit, Reject, Rule, Ruleset, Set, SetRef, Statement,
    Value, Verdict,
};
use super::key::{DataType, Datum, Key, Side};
use super::words::{self, Span};
use crate::net::addr::Family;
use crate::net::protocol::Protocol;

/// The ruleset as one file that replaces our table in one transaction when `nft -f` loads it.
pub fn render(ruleset: &Ruleset) -> String {
    // "add" lets "delete" succeed on a machine that has no such table yet.
    format!("add table {TABLE}\ndelete table {TABLE}\n{}", body(ruleset))
}

/// The table alone, as `nft list table inet nodewall` would show it: sets and maps, base chains in the order in which
/// a packet meets them, then the other chains by name.
pub fn body(ruleset: &Ruleset) -> String {
    let names = Names::of(ruleset);
    let mut out = format!("table {TABLE} {{\n");
    let mut first = true;
    let mut gap = |out: &mut String| {
        if !std::mem::take(&mut first) {
            out.push('\n');
        }
    };
    for (name, set) in &ruleset.sets {
        gap(&mut out);
        write_set(&mut out, &names, name, set);
    }
    let mut chains: Vec<(&String, &Chain)> = ruleset.chains.iter().collect();
    chains.sort_by_key(|(name, chain)| {
        let base = chain.base.as_ref();
        (base.is_none(), base.map(|base| (base.hook, base.priority)), *name)
    });
    for (name, chain) in chains {
        gap(&mut out);
        write_chain(&mut out, &names, name, chain);
    }
    out.push_str("}\n");
    out
}

/// One rule, with its names as they are and without its comment.
pub fn rule(rule: &Rule) -> String {
    let mut out = String::new();
    write_rule(&mut out, &Names(BTreeMap::new()), &Rule { statements: rule.statements.clone(), comment: None });
    out
}

/// Where a base chain hooks in, and its policy; `None` for another chain.
pub fn base(chain: &Chain) -> Option<String> {
    let BaseChain { hook, priority, policy, device } = chain.base?;
    let policy = match policy {
        ChainPolicy::Accept => "accept",
        ChainPolicy::Drop => "drop",
    };
    let device = device.as_ref().map(Datum::as_name);
    // A star at the end is any device that begins so to some versions of nft.
    let unspeakable =
        device.as_ref().is_some_and(|name| name.is_empty() || name.ends_with('*') || name.contains(['"', '\u{fffd}']));
    let device = device.map(|name| format!(" device \"{name}\"")).unwrap_or_default();
    let comment = if unspeakable { "# " } else { "" };
    Some(format!("{comment}type filter hook {}{device} priority {priority}; policy {policy};", hook.name()))
}

/// The elements of a set or map, each by itself.
pub fn elements(set: &Set) -> Vec<String> {
    let mut texts = Vec::with_capacity(set.elements.len());
    each_element(&Names(BTreeMap::new()), &set.key, &set.elements, |element| {
        texts.push(match element {
            Ok(text) | Err(text) => text.to_owned(),
        });
    });
    texts
}

/// Whether nft's grammar takes the word for a keyword where a chain's or a set's name is expected.
pub fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

/// A value that nft's grammar cannot spell; the caller makes a comment of what it stands in.
struct Unspeakable;

type Spelled = Result<(), Unspeakable>;

/// The names of chains and sets that cannot be written as they are.
struct Names<'a>(BTreeMap<&'a str, String>);

impl<'a> Names<'a> {
    fn of(ruleset: &'a Ruleset) -> Self {
        let mut taken: BTreeSet<String> = ruleset.chains.keys().chain(ruleset.sets.keys()).cloned().collect();
        let mut names = BTreeMap::new();
        let targets = ruleset.chains.keys().chain(ruleset.sets.keys()).filter(|name| is_keyword(name));
        for name in targets {
            let mut free = format!("{name}_");
            while !taken.insert(free.clone()) {
                free.push('_');
            }
            names.insert(name.as_str(), free);
        }
        Self(names)
    }

    fn spell<'s>(&'s self, name: &'s str) -> &'s str {
        self.0.get(name).map_or(name, String::as_str)
    }
}

fn write_chain(out: &mut String, names: &Names<'_>, name: &str, chain: &Chain) {
    let _ = writeln!(out, "\tchain {} {{", names.spell(name));
    if let Some(base) = base(chain) {
        let _ = writeln!(out, "\t\t{base}");
    }
    for rule in &chain.rules {
        out.push_str("\t\t");
        write_rule(out, names, rule);
        out.push('\n');
    }
    out.push_str("\t}\n");
}

fn write_rule(out: &mut String, names: &Names<'_>, rule: &Rule) {
    let start = out.len();
    let mut spelled = Ok(());
    for (index, statement) in rule.statements.iter().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        if write_statement(out, names, statement).is_err() {
            spelled = Err(Unspeakable);
        }
    }
    if rule.statements.is_empty() {
        // The kernel has rules without expressions; nft's grammar does not.
        spelled = Err(Unspeakable);
        out.push_str("no statements");
    }
    if let Some(comment) = &rule.comment {
        let _ = write!(out, " comment \"{}\"", quotable(comment));
    }
    if spelled.is_err() {
        let text = out.split_off(start);
        out.push_str("# ");
        out.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
}

fn write_statement(out: &mut String, names: &Names<'_>, statement: &Statement) -> Spelled {
    match statement {
        Statement::Match { key, negated, value } => write_match(out, *key, *negated, *value),
        Statement::Lookup { keys, negated, set } => {
            write_keys(out, keys);
            out.push_str(if *negated { " != " } else { " " });
            write_set_ref(out, names, keys, set)
        }
        Statement::Vmap { keys, map } => {
            write_keys(out, keys);
            out.push_str(" vmap ");
            write_set_ref(out, names, keys, map)
        }
        Statement::Counter => write_text(out, "counter"),
        Statement::Limit(limit) => write_limit(out, limit),
        Statement::Meter { keys, set, limit } => {
            let _ = write!(out, "update @{} {{ ", names.spell(set));
            write_keys(out, keys);
            out.push(' ');
            let spelled = write_limit(out, limit);
            out.push_str(" }");
            spelled
        }
        Statement::Notrack => write_text(out, "notrack"),
        // No bits at all is nothing that nft would write.
        Statement::MarkSet(0) | Statement::MarkClear(0) => write_text(out, "meta mark set meta mark"),
        Statement::MarkSet(bits) => write_text(out, &format!("meta mark set meta mark | {bits:#010x}")),
        Statement::MarkClear(bits) => write_text(out, &format!("meta mark set meta mark & {:#010x}", !bits)),
        Statement::Log { prefix, group } if prefix.is_empty() => write_text(out, &format!("log group {group}")),
        Statement::Log { prefix, group } => {
            let prefix = quotable(prefix).replace('$', "_");
            write_text(out, &format!("log prefix \"{prefix}\" group {group}"))
        }
        Statement::Reject(Reject::TcpReset) => write_text(out, "reject with tcp reset"),
        Statement::Reject(Reject::AdminProhibited) => write_text(out, "reject with icmpx admin-prohibited"),
        Statement::Verdict(verdict) => {
            write_verdict(out, names, verdict);
            Ok(())
        }
        Statement::Foreign(words) => {
            out.push_str(words);
            Err(Unspeakable)
        }
    }
}

fn write_limit(out: &mut String, Limit { rate, seconds, burst }: &Limit) -> Spelled {
    // A burst of 0 means the default to the kernel (nft_limit.c, NFT_LIMIT_PKT_BURST_DEFAULT), and nft refuses it.
    let burst = if *burst == 0 { 5 } else { *burst };
    let unit = words::unit(*seconds);
    let _ = write!(out, "limit rate {rate}/{} burst {burst} packets", unit.unwrap_or("?"));
    unit.map(|_| ()).ok_or(Unspeakable)
}

fn write_text(out: &mut String, text: &str) -> Spelled {
    out.push_str(text);
    Ok(())
}

fn write_verdict(out: &mut String, names: &Names<'_>, verdict: &Verdict) {
    match verdict {
        Verdict::Accept => out.push_str("accept"),
        Verdict::Drop => out.push_str("drop"),
        Verdict::Return => out.push_str("return"),
        Verdict::Jump(chain) => {
            let _ = write!(out, "jump {}", names.spell(chain));
        }
        Verdict::Goto(chain) => {
            let _ = write!(out, "goto {}", names.spell(chain));
        }
    }
}

fn write_match(out: &mut String, key: Key, negated: bool, value: Value) -> Spelled {
    let data_type = key.data_type();
    write_key(out, key);
    if let Value::Flags(mask) = value {
        return write_flags(out, data_type, negated, mask);
    }
    out.push(' ');
    if negated {
        out.push_str("!= ");
    } else if data_type == DataType::CtState {
        // Without an operator nft takes it for "any of these bits".
        out.push_str("== ");
    }
    match value {
        Value::Is(datum) => write_single(out, data_type, datum),
        Value::Prefix(datum, bits) => write_prefix(out, data_type, datum, bits),
        Value::Range(start, end) => write_range(out, data_type, start, end),
        Value::Flags(_) => Ok(()),
    }
}

/// `ct state new,related`, `ct state ! new,related`; for other keys, which have no such shorthand, the mask in full:
/// `meta mark & 0x00000010 != 0x00000000`.
fn write_flags(out: &mut String, data_type: DataType, negated: bool, mask: u32) -> Spelled {
    if data_type != DataType::CtState {
        out.push_str(" & ");
        write_number(out, data_type, mask.into());
        out.push_str(if negated { " == " } else { " != " });
        write_number(out, data_type, 0);
        return Ok(());
    }
    out.push_str(if negated { " ! " } else { " " });
    if mask == 0 {
        out.push('0');
    }
    for (index, (bit, name)) in words::flags(mask).enumerate() {
        if index > 0 {
            out.push(',');
        }
        match name {
            Some(name) => out.push_str(name),
            None => {
                let _ = write!(out, "{bit:#x}");
            }
        }
    }
    Ok(())
}

fn write_keys(out: &mut String, keys: &[Key]) {
    for (index, key) in keys.iter().enumerate() {
        if index > 0 {
            out.push_str(" . ");
        }
        write_key(out, *key);
    }
}

fn write_key(out: &mut String, key: Key) {
    let word = match key {
        Key::NfProto => "meta nfproto",
        Key::L4Proto => "meta l4proto",
        Key::InterfaceName(Side::Source) => "iifname",
        Key::InterfaceName(Side::Destination) => "oifname",
        Key::InterfaceType(Side::Source) => "meta iiftype",
        Key::InterfaceType(Side::Destination) => "meta oiftype",
        Key::InterfaceKind(Side::Source) => "meta iifkind",
        Key::InterfaceKind(Side::Destination) => "meta oifkind",
        Key::CtState => "ct state",
        Key::IpAddr(Family::V4, Side::Source) => "ip saddr",
        Key::IpAddr(Family::V4, Side::Destination) => "ip daddr",
        Key::IpAddr(Family::V6, Side::Source) => "ip6 saddr",
        Key::IpAddr(Family::V6, Side::Destination) => "ip6 daddr",
        Key::HopLimit => "ip6 hoplimit",
        Key::Port(protocol, side) => {
            let header = protocol.filter(|protocol| protocol.has_ports()).and_then(Protocol::name).unwrap_or("th");
            let field = if side == Side::Source { "sport" } else { "dport" };
            let _ = write!(out, "{header} {field}");
            return;
        }
        Key::IcmpType => "icmp type",
        Key::IcmpCode => "icmp code",
        Key::Icmpv6Type => "icmpv6 type",
        Key::Icmpv6Code => "icmpv6 code",
        Key::Mark => "meta mark",
        Key::SocketUser => "meta skuid",
        Key::SocketGroup => "meta skgid",
        Key::SocketCgroup(level) => {
            let _ = write!(out, "socket cgroupv2 level {level}");
            return;
        }
    };
    out.push_str(word);
}

fn write_set_ref(out: &mut String, names: &Names<'_>, keys: &[Key], set: &SetRef) -> Spelled {
    match set {
        SetRef::Named(name) => {
            let _ = write!(out, "@{}", names.spell(name));
            Ok(())
        }
        SetRef::Anonymous(elements) if elements.is_empty() => {
            out.push_str("{ }");
            Err(Unspeakable)
        }
        SetRef::Anonymous(elements) => {
            let types: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
            let mut spelled = Ok(());
            out.push_str("{ ");
            let mut first = true;
            each_element(names, &types, elements, |element| {
                if !std::mem::take(&mut first) {
                    out.push_str(", ");
                }
                match element {
                    Ok(text) | Err(text) => out.push_str(text),
                }
                if element.is_err() {
                    spelled = Err(Unspeakable);
                }
            });
            out.push_str(" }");
            spelled
        }
    }
}

/// Lines of a set's element list end at about this column, as in `nft list`.
const ELEMENTS_WIDTH: usize = 100;

fn write_set(out: &mut String, names: &Names<'_>, name: &str, set: &Set) {
    let _ = writeln!(out, "\t{} {} {{", if set.map { "map" } else { "set" }, names.spell(name));
    // "type integer" says no size, so that nft refuses it; typeof takes it from a key.
    let by_key = set.key.contains(&DataType::Integer);
    out.push_str(if by_key { "\t\ttypeof " } else { "\t\ttype " });
    for (index, data_type) in set.key.iter().enumerate() {
        if index > 0 {
            out.push_str(" . ");
        }
        out.push_str(if by_key { example_key(*data_type) } else { data_type.name() });
    }
    out.push_str(if set.map { " : verdict\n" } else { "\n" });
    if set.interval || set.elements.needs_interval() {
        out.push_str("\t\tflags interval\n");
    }
    if let Some(Dynamic { timeout, size }) = set.dynamic {
        let _ = writeln!(out, "\t\tsize {size}\n\t\tflags dynamic,timeout\n\t\ttimeout {}", words::duration(timeout));
    }
    let (mut list, mut unspeakable) = (String::new(), Vec::new());
    let mut column = 0;
    each_element(names, &set.key, &set.elements, |element| match element {
        Ok(text) => {
            if list.is_empty() {
                list.push_str("\t\telements = { ");
            } else if column + text.len() > ELEMENTS_WIDTH {
                list.push_str(",\n\t\t\t     ");
                column = 0;
            } else {
                list.push_str(", ");
                column += 2;
            }
            list.push_str(text);
            column += text.len();
        }
        Err(text) => unspeakable.push(text.to_owned()),
    });
    for element in unspeakable {
        let _ = writeln!(out, "\t\t# {element}");
    }
    if !list.is_empty() {
        let _ = writeln!(out, "{list} }}");
    }
    out.push_str("\t}\n");
}

/// A key whose values are of the type.
const fn example_key(data_type: DataType) -> &'static str {
    match data_type {
        DataType::NfProto => "meta nfproto",
        DataType::Ipv4Addr => "ip saddr",
        DataType::Ipv6Addr => "ip6 saddr",
        DataType::InetProto => "meta l4proto",
        DataType::InetService => "th dport",
        DataType::IcmpType => "icmp type",
        DataType::IcmpCode => "icmp code",
        DataType::Icmpv6Type => "icmpv6 type",
        DataType::Icmpv6Code => "icmpv6 code",
        DataType::Ifname => "iifname",
        DataType::IfaceType => "meta iiftype",
        DataType::CtState => "ct state",
        DataType::Integer => "ip6 hoplimit",
        DataType::Mark => "meta mark",
        DataType::Uid => "meta skuid",
        DataType::Gid => "meta skgid",
        DataType::Cgroup => "socket cgroupv2 level 1",
    }
}

/// Calls `emit` with the text of every element, as an error where nft could not read it.
fn each_element(names: &Names<'_>, types: &[DataType], elements: &Elements, mut emit: impl FnMut(Result<&str, &str>)) {
    let mut text = String::new();
    let mut one = |write: &dyn Fn(&mut String) -> Spelled| {
        text.clear();
        let spelled = write(&mut text);
        emit(if spelled.is_ok() { Ok(&text) } else { Err(&text) });
    };
    match elements {
        Elements::V4(ranges) => {
            for (start, end) in ranges.ranges() {
                one(&|out| write_span(out, DataType::Ipv4Addr, (*start).into(), (*end).into()));
            }
        }
        Elements::V6(ranges) => {
            for (start, end) in ranges.ranges() {
                one(&|out| write_span(out, DataType::Ipv6Addr, (*start).into(), (*end).into()));
            }
        }
        Elements::Keys(keys) => {
            for (key, verdict) in keys {
                one(&|out| {
                    let spelled = write_element_key(out, types, key);
                    if let Some(verdict) = verdict {
                        out.push_str(" : ");
                        write_verdict(out, names, verdict);
                    }
                    spelled
                });
            }
        }
    }
}

fn write_element_key(out: &mut String, types: &[DataType], key: &ElementKey) -> Spelled {
    let mut spelled = Ok(());
    for (index, ((start, end), data_type)) in key.0.iter().zip(types).enumerate() {
        if index > 0 {
            out.push_str(" . ");
        }
        if write_span(out, *data_type, *start, *end).is_err() {
            spelled = Err(Unspeakable);
        }
    }
    spelled
}

fn write_span(out: &mut String, data_type: DataType, start: Datum, end: Datum) -> Spelled {
    match words::span(data_type, start, end) {
        Span::Single(datum) => write_single(out, data_type, datum),
        Span::Prefix(datum, bytes) if data_type == DataType::Ifname => write_name(out, datum, Some(bytes)),
        Span::Prefix(datum, bits) => write_prefix(out, data_type, datum, bits),
        Span::Range(start, end) => write_range(out, data_type, start, end),
    }
}

fn write_single(out: &mut String, data_type: DataType, datum: Datum) -> Spelled {
    let number = datum.number();
    match data_type {
        DataType::Ifname => return write_name(out, datum, None),
        DataType::InetProto => match words::portable_protocol_name(number) {
            Some(name) => out.push_str(name),
            None => write_number(out, data_type, number),
        },
        // Codes have names that depend on the type beside them (code 1 of a redirect is not "host-unreachable").
        DataType::IcmpCode | DataType::Icmpv6Code => write_number(out, data_type, number),
        DataType::Cgroup => {
            write_number(out, data_type, number);
            return Err(Unspeakable);
        }
        _ => match words::symbol(data_type, number) {
            Some(name) => out.push_str(name),
            None => write_number(out, data_type, number),
        },
    }
    Ok(())
}

fn write_range(out: &mut String, data_type: DataType, start: Datum, end: Datum) -> Spelled {
    if data_type == DataType::Ifname {
        let _ = write!(out, "\"{}\"-\"{}\"", start.as_name(), end.as_name());
        return Err(Unspeakable);
    }
    // Numbers, since names contain hyphens.
    write_number(out, data_type, start.number());
    out.push('-');
    write_number(out, data_type, end.number());
    if data_type == DataType::Cgroup { Err(Unspeakable) } else { Ok(()) }
}

fn write_prefix(out: &mut String, data_type: DataType, datum: Datum, bits: u8) -> Spelled {
    match data_type {
        DataType::Ifname => return write_name(out, datum, Some(bits / 8)),
        DataType::Ipv4Addr | DataType::Ipv6Addr => {
            write_number(out, data_type, datum.number());
            let _ = write!(out, "/{bits}");
        }
        // nft has prefixes of addresses only; elsewhere the range is the same thing.
        _ => {
            let host = u32::try_from(data_type.size() * 8).unwrap_or(0).saturating_sub(bits.into());
            let mask = 1u128.checked_shl(host).map_or(u128::MAX, |power| power - 1);
            let end = |number| Datum::from_number(number, data_type.size());
            return write_range(out, data_type, end(datum.number() & !mask), end(datum.number() | mask));
        }
    }
    Ok(())
}

fn write_number(out: &mut String, data_type: DataType, number: u128) {
    let _ = match data_type {
        DataType::Ipv4Addr => write!(out, "{}", Ipv4Addr::from_bits(number as u32)),
        DataType::Ipv6Addr => write!(out, "{}", Ipv6Addr::from_bits(number)),
        DataType::CtState => write!(out, "{number:#x}"),
        DataType::Mark => write!(out, "{number:#010x}"),
        _ => write!(out, "{number}"),
    };
}

/// An interface name or kind in quotes, with a `*` behind so many bytes of it.
fn write_name(out: &mut String, datum: Datum, wildcard_after: Option<u8>) -> Spelled {
    let name = match wildcard_after {
        Some(bytes) => String::from_utf8_lossy(&datum.bytes()[..usize::from(bytes).min(datum.bytes().len())])
            .trim_end_matches('\0')
            .to_owned(),
        None => datum.as_name(),
    };
    let literal_star = wildcard_after.is_none() && name.ends_with('*');
    let written = if literal_star { format!("{}\\*", &name[..name.len() - 1]) } else { name.clone() };
    let _ = write!(out, "\"{written}{}\"", if wildcard_after.is_some() { "*" } else { "" });
    let unspeakable = name.is_empty() || name.contains(['"', '\u{fffd}']) || (literal_star && name.len() == 1);
    if unspeakable { Err(Unspeakable) } else { Ok(()) }
}

/// Text for between two `"`: nft knows no escapes there. Cut at 127 bytes, the kernel's limit for comments in rule
/// userdata (nft's `NFTNL_UDATA_COMMENT_MAXLEN`) and for log prefixes (`NF_LOG_PREFIXLEN` less its terminator).
fn quotable(text: &str) -> String {
    let mut cut = text.len().min(127);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text[..cut]
        .chars()
        .map(|c| match c {
            '"' => '\'',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}

/// Words of nft's scanner (src/scanner.l, 1.0.2 to 1.1.x) that are no identifiers in front of a chain or a set.
const KEYWORDS: &[&str] = &[
    "accept",
    "add",
    "ah",
    "all",
    "and",
    "arp",
    "auto-merge",
    "bridge",
    "cgroup",
    "chain",
    "comment",
    "comp",
    "constant",
    "continue",
    "counter",
    "cpu",
    "create",
    "ct",
    "day",
    "dccp",
    "define",
    "delete",
    "describe",
    "destroy",
    "device",
    "devices",
    "dnat",
    "drop",
    "dst",
    "dup",
    "dynamic",
    "ecn",
    "element",
    "elements",
    "eq",
    "esp",
    "ether",
    "exists",
    "expires",
    "export",
    "exthdr",
    "fib",
    "flags",
    "flow",
    "flowtable",
    "flush",
    "frag",
    "fwd",
    "gc-interval",
    "ge",
    "geneve",
    "goto",
    "gre",
    "gretap",
    "gt",
    "handle",
    "hbh",
    "hook",
    "hour",
    "ibriport",
    "ibrname",
    "icmp",
    "icmpv6",
    "igmp",
    "iif",
    "iifgroup",
    "iifname",
    "iiftype",
    "import",
    "include",
    "inet",
    "inner",
    "insert",
    "interval",
    "ip",
    "ip6",
    "ipsec",
    "jhash",
    "jump",
    "last",
    "le",
    "limit",
    "list",
    "log",
    "lshift",
    "lt",
    "map",
    "mark",
    "masquerade",
    "meta",
    "meter",
    "mh",
    "missing",
    "monitor",
    "ne",
    "netdev",
    "nftrace",
    "not",
    "notrack",
    "numgen",
    "obriport",
    "obrname",
    "oif",
    "oifgroup",
    "oifname",
    "oiftype",
    "or",
    "osf",
    "pkttype",
    "policy",
    "priority",
    "queue",
    "quota",
    "random",
    "redefine",
    "redirect",
    "reject",
    "rename",
    "replace",
    "reset",
    "return",
    "rshift",
    "rt",
    "rt0",
    "rt2",
    "rt4",
    "rtclassid",
    "rule",
    "ruleset",
    "sctp",
    "secmark",
    "set",
    "size",
    "skgid",
    "skuid",
    "snat",
    "socket",
    "srh",
    "symhash",
    "synproxy",
    "table",
    "tcp",
    "th",
    "time",
    "timeout",
    "tproxy",
    "type",
    "typeof",
    "udp",
    "udplite",
    "undefine",
    "update",
    "vlan",
    "vmap",
    "vxlan",
    "xfrm",
    "xor",
    "xt",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rule(statements: Vec<Statement>) -> Ruleset {
        let chain = Chain { base: None, rules: vec![Rule { statements, comment: None }] };
        Ruleset { chains: [("c".to_owned(), chain)].into(), ..Default::default() }
    }

    fn line(statements: Vec<Statement>) -> String {
        let text = body(&rule(statements));
        let line = text.lines().nth(2).unwrap().trim().to_owned();
        assert_eq!(text, format!("table inet nodewall {{\n\tchain c {{\n\t\t{line}\n\t}}\n}}\n"));
        line
    }

    fn name_match(name: &str) -> Statement {
        Statement::Match { key: Key::InterfaceName(Side::Source), negated: false, value: Value::Is(Datum::name(name)) }
    }

    #[test]
    fn what_nft_cannot_read_becomes_a_comment_and_never_a_weaker_rule() {
        let accept = || Statement::Verdict(Verdict::Accept);
        assert_eq!(line(vec![name_match("eth0"), accept()]), "iifname \"eth0\" accept");
        assert_eq!(line(vec![name_match("e\"0"), accept()]), "# iifname \"e\"0\" accept");
        assert_eq!(line(vec![name_match(""), accept()]), "# iifname \"\" accept");
        assert_eq!(line(vec![name_match("eth*"), accept()]), "iifname \"eth\\*\" accept");
        assert_eq!(line(vec![Statement::Foreign("quota over\n5".into()), accept()]), "# quota over 5 accept");
        let empty = SetRef::Anonymous(Elements::Keys(Default::default()));
        let lookup = Statement::Lookup { keys: vec![Key::L4Proto], negated: false, set: empty };
        assert_eq!(line(vec![lookup, accept()]), "# meta l4proto { } accept");
        assert_eq!(line(vec![]), "# no statements");
        let group = |value| Statement::Match { key: Key::SocketCgroup(2), negated: false, value };
        assert_eq!(line(vec![group(Value::Is(4711u64.into())), accept()]), "# socket cgroupv2 level 2 4711 accept");
        assert_eq!(line(vec![group(Value::Range(1u64.into(), 9u64.into()))]), "# socket cgroupv2 level 2 1-9");
        let week = Limit { rate: 1, seconds: 604_800, burst: 1 };
        assert_eq!(line(vec![Statement::Limit(week)]), "# limit rate 1/? burst 1 packets");
    }

    #[test]
    fn control_groups_in_sets_and_devices_that_nft_cannot_read_are_comments() {
        let elements = [4711u64, 5].map(|id| (ElementKey::of([Datum::from(id)]), None));
        let set = Set {
            key: vec![DataType::Cgroup],
            interval: false,
            map: false,
            dynamic: None,
            elements: Elements::Keys(elements.into()),
        };
        let chain = |device| Chain {
            base: Some(BaseChain {
                hook: crate::nft::ir::Hook::Ingress,
                priority: -500,
                policy: ChainPolicy::Accept,
                device: Some(Datum::name(device)),
            }),
            rules: Vec::new(),
        };
        let chains =
            [("a", "eth0"), ("b", "eth*"), ("c", "e\"0")].map(|(name, device)| (name.to_owned(), chain(device)));
        let text = body(&Ruleset { sets: [("units".to_owned(), set)].into(), chains: chains.into() });
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.ends_with(['{', '}']) && !line.is_empty()).collect();
        let base = |device: &str| format!("type filter hook ingress device \"{device}\" priority -500; policy accept;");
        let (eth0, star, quote) = (base("eth0"), base("eth*"), base("e\"0"));
        assert_eq!(lines, ["type cgroupsv2", "# 5", "# 4711", &eth0, &format!("# {star}"), &format!("# {quote}")]);
    }

    #[test]
    fn keywords_are_written_with_an_underscore_wherever_they_are_named() {
        let mut ruleset = rule(vec![Statement::Verdict(Verdict::Jump("log".into()))]);
        ruleset.chains.insert("log".into(), Chain::default());
        ruleset.chains.insert("log_".into(), Chain::default());
        let text = body(&ruleset);
        assert!(text.contains("jump log__\n") && text.contains("chain log__ {") && text.contains("chain log_ {"));
    }

    #[test]
    fn quoted_text_keeps_to_the_grammar_and_the_kernel() {
        assert_eq!(quotable("a \"b\"\n$c"), "a 'b' $c");
        assert_eq!(quotable(&"ä".repeat(70)), "ä".repeat(63));
        let log = Statement::Log { prefix: "a$b: ".into(), group: 3 };
        assert_eq!(line(vec![log]), "log prefix \"a_b: \" group 3");
    }

    /// Replacing the table whole is what makes the file safe to load twice, and on a machine that has no table yet.
    #[test]
    fn the_file_replaces_the_table() {
        let text = render(&Ruleset::default());
        assert_eq!(text, "add table inet nodewall\ndelete table inet nodewall\ntable inet nodewall {\n}\n");
    }
}
