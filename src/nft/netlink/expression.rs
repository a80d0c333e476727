//! Rules to nf_tables expressions and back.
//!
//! A key brings its protocol (`nft/key.rs`): before the first use of `tcp dport` the rule gets `meta l4proto tcp`, before
//! `ip saddr` it gets `meta nfproto ipv4`, once per rule, as nft does. Reading back, exactly those comparisons go away again.

use std::collections::BTreeMap;

use super::attribute::{Attributes, Malformed, Walk, Writer, text};
use super::constant::*;
use super::encode::{anonymous, anonymous_name};
use super::set::{from_wire, padded, to_wire};
use crate::net::addr::Family;
use crate::net::protocol::Protocol;
use crate::nft::change::RuleState;
use crate::nft::ir::{Elements, Limit, Reject, Rule, SetRef, Statement, Value, Verdict};
use crate::nft::key::{DataType, Datum, Key, Side};

/// The rule in the one form in which the kernel gives it back.
#[must_use]
pub fn canonical_rule(rule: &Rule) -> Rule {
    let mut writer = Writer::default();
    let sets: Vec<Elements> = rule
        .statements
        .iter()
        .filter_map(anonymous)
        .map(|(keys, elements, map)| {
            let types: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
            super::canonical_elements(&types, map, elements)
        })
        .collect();
    let ids: Vec<u32> = (0..sets.len() as u32).collect();
    put_rule(&mut writer, rule, &ids);
    let read = Attributes::parse(&writer.bytes).and_then(|attributes| {
        read_rule(&attributes, &|_, id| id.and_then(|id| sets.get(usize::try_from(id).ok()?)).cloned())
    });
    match read {
        Ok((canonical, _)) => canonical,
        // Our own encoding always reads back; a statement that cannot be said stays what it was.
        Err(_) => rule.clone(),
    }
}

/// The most bytes of a rule's comment (nft, include/nftables.h `NFTNL_UDATA_COMMENT_MAXLEN` less its terminator).
const COMMENT_BYTES: usize = 127;

/// Expressions and comment of a rule. `ids` are those of its anonymous sets, in order.
pub(super) fn put_rule(writer: &mut Writer, rule: &Rule, ids: &[u32]) {
    writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
        let mut list = List { writer: list, known: Known::default(), ids: ids.iter() };
        for statement in &rule.statements {
            list.statement(statement);
        }
    });
    if let Some(comment) = &rule.comment {
        let comment = cut(comment, COMMENT_BYTES);
        let mut note = vec![NFTNL_UDATA_RULE_COMMENT, (comment.len() + 1) as u8];
        note.extend_from_slice(comment.as_bytes());
        note.push(0);
        writer.put(NFTA_RULE_USERDATA, &note);
    }
}

/// The text's beginning, of at most so many bytes and of whole characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A verdict inside a data attribute.
pub(super) fn data_verdict(data: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    data.nest(NFTA_DATA_VERDICT, |verdict| {
        verdict.put_u32(NFTA_VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            verdict.put_text(NFTA_VERDICT_CHAIN, chain);
        }
    });
}

/// Reads the inside of `NFTA_DATA_VERDICT`; `Err` in words for a verdict that the IR does not have.
pub(super) fn verdict_of(bytes: &[u8]) -> Result<Result<Verdict, String>, Malformed> {
    let attributes = Attributes::parse(bytes)?;
    let code = attributes.u32(NFTA_VERDICT_CODE)?.unwrap_or(0) as i32;
    let chain = || attributes.text(NFTA_VERDICT_CHAIN);
    Ok(match code {
        NF_ACCEPT => Ok(Verdict::Accept),
        NF_DROP => Ok(Verdict::Drop),
        NFT_RETURN => Ok(Verdict::Return),
        NFT_JUMP => Ok(Verdict::Jump(chain())),
        NFT_GOTO => Ok(Verdict::Goto(chain())),
        other => Err(format!("verdict {other}")),
    })
}

/// What a rule has compared so far: the protocols that later keys can rely on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Known {
    family: Option<Family>,
    transport: Option<Protocol>,
}

/// One comparison that a key relies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needed {
    Family(Family),
    Transport(Protocol),
}

impl Known {
    /// What has to be compared before `keys` can be looked at, in order; it is known afterwards.
    fn need(&mut self, keys: &[Key]) -> Vec<Needed> {
        let mut needed = Vec::new();
        for key in keys {
            if let Some(family) = Key::family(*key).filter(|family| self.family != Some(*family)) {
                self.family = Some(family);
                needed.push(Needed::Family(family));
            }
            if let Some(transport) = key.transport().filter(|transport| self.transport != Some(*transport)) {
                self.transport = Some(transport);
                needed.push(Needed::Transport(transport));
            }
        }
        needed
    }

    /// Takes note of a comparison.
    fn learn(&mut self, needed: Needed) {
        match needed {
            Needed::Family(family) => self.family = Some(family),
            Needed::Transport(transport) => self.transport = Some(transport),
        }
    }
}

impl Needed {
    /// The comparison that this statement makes, if it is one.
    fn of(statement: &Statement) -> Option<Self> {
        let Statement::Match { key, negated: false, value: Value::Is(datum) } = statement else { return None };
        match (key, datum.bytes()) {
            (Key::NfProto, [NFPROTO_IPV4]) => Some(Self::Family(Family::V4)),
            (Key::NfProto, [NFPROTO_IPV6]) => Some(Self::Family(Family::V6)),
            (Key::L4Proto, [protocol]) => Some(Self::Transport(Protocol(*protocol))),
            _ => None,
        }
    }

    fn statement(self) -> Statement {
        let (key, number) = match self {
            Self::Family(Family::V4) => (Key::NfProto, NFPROTO_IPV4),
            Self::Family(Family::V6) => (Key::NfProto, NFPROTO_IPV6),
            Self::Transport(protocol) => (Key::L4Proto, protocol.0),
        };
        Statement::Match { key, negated: false, value: Value::Is(Datum::from(number)) }
    }
}

/// Where the kernel gets a value from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
    Meta(u32),
    Conntrack(u32),
    Socket(u8),
    Payload { base: u32, offset: u32, length: u32 },
}

/// Where a key's value is. IPv4 header: RFC 791 section 3.1; IPv6: RFC 8200 section 3; ports and ICMP: the first bytes
/// of the transport header.
fn load_of(key: Key) -> Load {
    let network = |offset, length| Load::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, length };
    let transport = |offset, length| Load::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset, length };
    match key {
        Key::NfProto => Load::Meta(NFT_META_NFPROTO),
        Key::L4Proto => Load::Meta(NFT_META_L4PROTO),
        Key::InterfaceName(Side::Source) => Load::Meta(NFT_META_IIFNAME),
        Key::InterfaceName(Side::Destination) => Load::Meta(NFT_META_OIFNAME),
        Key::InterfaceType(Side::Source) => Load::Meta(NFT_META_IIFTYPE),
        Key::InterfaceType(Side::Destination) => Load::Meta(NFT_META_OIFTYPE),
        Key::InterfaceKind(Side::Source) => Load::Meta(NFT_META_IIFKIND),
        Key::InterfaceKind(Side::Destination) => Load::Meta(NFT_META_OIFKIND),
        Key::CtState => Load::Conntrack(NFT_CT_STATE),
        Key::IpAddr(Family::V4, Side::Source) => network(12, 4),
        Key::IpAddr(Family::V4, Side::Destination) => network(16, 4),
        Key::IpAddr(Family::V6, Side::Source) => network(8, 16),
        Key::IpAddr(Family::V6, Side::Destination) => network(24, 16),
        Key::HopLimit => network(7, 1),
        Key::Port(_, Side::Source) => transport(0, 2),
        Key::Port(_, Side::Destination) => transport(2, 2),
        Key::IcmpType | Key::Icmpv6Type => transport(0, 1),
        Key::IcmpCode | Key::Icmpv6Code => transport(1, 1),
        Key::Mark => Load::Meta(NFT_META_MARK),
        Key::SocketUser => Load::Meta(NFT_META_SKUID),
        Key::SocketGroup => Load::Meta(NFT_META_SKGID),
        Key::SocketCgroup(level) => Load::Socket(level),
    }
}

/// The key whose value, or the first bytes of it, a load gets, given what the rule has compared before.
fn key_of(load: Load, known: Known) -> Option<Key> {
    let mut candidates = vec![Key::NfProto, Key::L4Proto, Key::CtState];
    // Of ICMP too: its first bytes are no ports, but a rule may ask for them, and is then read as it was written.
    candidates.extend([Key::Port(known.transport, Side::Source), Key::Port(known.transport, Side::Destination)]);
    for side in [Side::Source, Side::Destination] {
        candidates.extend([Key::InterfaceName(side), Key::InterfaceType(side), Key::InterfaceKind(side)]);
    }
    match known.transport {
        Some(Protocol::ICMP) => candidates.extend([Key::IcmpType, Key::IcmpCode]),
        Some(Protocol::ICMPV6) => candidates.extend([Key::Icmpv6Type, Key::Icmpv6Code]),
        _ => {}
    }
    if let Some(family) = known.family {
        candidates.extend([Key::IpAddr(family, Side::Source), Key::IpAddr(family, Side::Destination)]);
        if family == Family::V6 {
            candidates.push(Key::HopLimit);
        }
    }
    let partly = |key: &Key| match (load, load_of(*key)) {
        (
            Load::Payload { base, offset, length },
            Load::Payload { base: whole_base, offset: whole_offset, length: whole },
        ) => {
            let address = matches!(key, Key::IpAddr(..));
            (base, offset) == (whole_base, whole_offset) && (length == whole || address && (1..whole).contains(&length))
        }
        (load, whole) => load == whole,
    };
    candidates.into_iter().find(partly)
}

/// Writes one rule's expressions.
struct List<'a> {
    writer: &'a mut Writer,
    known: Known,
    ids: std::slice::Iter<'a, u32>,
}

impl List<'_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Writer)) {
        self.writer.nest(NFTA_LIST_ELEM, |element| {
            element.put_text(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, fill);
        });
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match { key, negated, value } => self.compare(*key, *negated, value),
            Statement::Lookup { keys, negated, set } => self.lookup(keys, *negated, set, false),
            Statement::Vmap { keys, map } => self.lookup(keys, false, map, true),
            Statement::Counter => self.expression("counter", |counter| {
                counter.put_u64(NFTA_COUNTER_BYTES, 0);
                counter.put_u64(NFTA_COUNTER_PACKETS, 0);
            }),
            Statement::Limit(Limit { rate, seconds, burst }) => self.expression("limit", |limit| {
                // The kernel takes a burst of nothing for its default.
                let burst = if *burst == 0 { NFT_LIMIT_PKT_BURST_DEFAULT } else { *burst };
                limit.put_u64(NFTA_LIMIT_RATE, u64::from(*rate));
                limit.put_u64(NFTA_LIMIT_UNIT, u64::from(*seconds));
                limit.put_u32(NFTA_LIMIT_BURST, burst);
                limit.put_u32(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS);
                limit.put_u32(NFTA_LIMIT_FLAGS, 0);
            }),
            Statement::Log { prefix, group } => self.expression("log", |log| {
                log.put_u16(NFTA_LOG_GROUP, *group);
                if !prefix.is_empty() {
                    log.put_text(NFTA_LOG_PREFIX, cut(prefix, LOG_PREFIX_BYTES));
                }
            }),
            Statement::Reject(reject) => self.expression("reject", |writer| {
                let (kind, code) = match reject {
                    Reject::TcpReset => (NFT_REJECT_TCP_RST, 0),
                    Reject::AdminProhibited => (NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_ADMIN_PROHIBITED),
                };
                writer.put_u32(NFTA_REJECT_TYPE, kind);
                writer.put(NFTA_REJECT_ICMP_CODE, &[code]);
            }),
            Statement::Verdict(verdict) => self.expression("immediate", |immediate| {
                immediate.put_u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                immediate.nest(NFTA_IMMEDIATE_DATA, |data| data_verdict(data, verdict));
            }),
            // Left out, the rule would match more than it says; the kernel refuses an expression that it does not know.
            Statement::Meter { .. }
            | Statement::Notrack
            | Statement::MarkSet(_)
            | Statement::MarkClear(_)
            | Statement::Foreign(_) => self.expression("foreign", |_| {}),
        }
    }

    /// The comparisons that these keys rely on and that the rule has not made yet.
    fn rely(&mut self, keys: &[Key]) {
        for needed in self.known.need(keys) {
            self.statement(&needed.statement());
        }
    }

    fn load(&mut self, load: Load, slot: usize) {
        let register = register(slot);
        match load {
            Load::Meta(key) => self.expression("meta", |meta| {
                meta.put_u32(NFTA_META_KEY, key);
                meta.put_u32(NFTA_META_DREG, register);
            }),
            Load::Conntrack(key) => self.expression("ct", |ct| {
                ct.put_u32(NFTA_CT_KEY, key);
                ct.put_u32(NFTA_CT_DREG, register);
            }),
            Load::Socket(level) => self.expression("socket", |socket| {
                socket.put_u32(NFTA_SOCKET_KEY, NFT_SOCKET_CGROUPV2);
                socket.put_u32(NFTA_SOCKET_DREG, register);
                socket.put_u32(NFTA_SOCKET_LEVEL, u32::from(level));
            }),
            Load::Payload { base, offset, length } => self.expression("payload", |payload| {
                payload.put_u32(NFTA_PAYLOAD_DREG, register);
                payload.put_u32(NFTA_PAYLOAD_BASE, base);
                payload.put_u32(NFTA_PAYLOAD_OFFSET, offset);
                payload.put_u32(NFTA_PAYLOAD_LEN, length);
            }),
        }
    }

    fn cmp(&mut self, negated: bool, value: &[u8]) {
        self.expression("cmp", |cmp| {
            cmp.put_u32(NFTA_CMP_SREG, NFT_REG_1);
            cmp.put_u32(NFTA_CMP_OP, if negated { NFT_CMP_NEQ } else { NFT_CMP_EQ });
            cmp.nest(NFTA_CMP_DATA, |data| data.put(NFTA_DATA_VALUE, value));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |bitwise| {
            bitwise.put_u32(NFTA_BITWISE_SREG, NFT_REG_1);
            bitwise.put_u32(NFTA_BITWISE_DREG, NFT_REG_1);
            bitwise.put_u32(NFTA_BITWISE_LEN, mask.len() as u32);
            bitwise.put_u32(NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR);
            bitwise.nest(NFTA_BITWISE_MASK, |data| data.put(NFTA_DATA_VALUE, mask));
            bitwise.nest(NFTA_BITWISE_XOR, |data| data.put(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, key: Key, negated: bool, value: &Value) {
        let data_type = key.data_type();
        let size = data_type.size();
        self.rely(&[key]);
        if !negated && let Some(learned) = Needed::of(&Statement::Match { key, negated, value: *value }) {
            self.known.learn(learned);
        }
        match value {
            Value::Is(datum) => {
                self.load(load_of(key), 0);
                self.cmp(negated, &to_wire(data_type, datum.bytes()));
            }
            Value::Prefix(datum, bits) if data_type == DataType::Ifname => {
                self.load(load_of(key), 0);
                self.cmp(negated, &datum.bytes()[..usize::from(*bits / 8).min(datum.bytes().len())]);
            }
            Value::Prefix(datum, bits) => {
                let bits = usize::from(*bits).min(8 * size);
                let mask = prefix_mask(bits, size);
                let network: Vec<u8> = datum.bytes().iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
                match load_of(key) {
                    _ if bits == 8 * size => {
                        self.load(load_of(key), 0);
                        self.cmp(negated, &to_wire(data_type, datum.bytes()));
                    }
                    // Whole bytes need no mask: fewer of them are loaded, as nft does.
                    Load::Payload { base, offset, .. }
                        if matches!(key, Key::IpAddr(..)) && bits > 0 && bits % 8 == 0 =>
                    {
                        self.load(Load::Payload { base, offset, length: (bits / 8) as u32 }, 0);
                        self.cmp(negated, network.get(..bits / 8).unwrap_or(&network));
                    }
                    load => {
                        self.load(load, 0);
                        self.mask(&to_wire(data_type, &mask));
                        self.cmp(negated, &to_wire(data_type, &network));
                    }
                }
            }
            Value::Range(from, to) => {
                self.load(load_of(key), 0);
                self.expression("range", |range| {
                    range.put_u32(NFTA_RANGE_SREG, NFT_REG_1);
                    range.put_u32(NFTA_RANGE_OP, if negated { NFT_RANGE_NEQ } else { NFT_RANGE_EQ });
                    let (from, to) = (to_wire(data_type, from.bytes()), to_wire(data_type, to.bytes()));
                    range.nest(NFTA_RANGE_FROM_DATA, |data| data.put(NFTA_DATA_VALUE, &from));
                    range.nest(NFTA_RANGE_TO_DATA, |data| data.put(NFTA_DATA_VALUE, &to));
                });
            }
            Value::Flags(flags) => {
                self.load(load_of(key), 0);
                let flags = Datum::from_number(u128::from(*flags), size);
                self.mask(&to_wire(data_type, flags.bytes()));
                self.cmp(!negated, &vec![0; size]);
            }
        }
    }

    fn lookup(&mut self, keys: &[Key], negated: bool, set: &SetRef, map: bool) {
        self.rely(keys);
        let mut slot = 0;
        for key in keys {
            self.load(load_of(*key), slot);
            slot += padded(key.data_type()) / 4;
        }
        let (name, id) = match set {
            SetRef::Named(name) => (name.as_str(), None),
            SetRef::Anonymous(_) => (anonymous_name(map), self.ids.next().copied()),
        };
        self.expression("lookup", |lookup| {
            lookup.put_u32(NFTA_LOOKUP_SREG, register(0));
            if map {
                lookup.put_u32(NFTA_LOOKUP_DREG, NFT_REG_VERDICT);
            }
            lookup.put_text(NFTA_LOOKUP_SET, name);
            if let Some(id) = id {
                lookup.put_u32(NFTA_LOOKUP_SET_ID, id);
            }
            if negated {
                lookup.put_u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
            }
        });
    }
}

/// The most bytes of a log prefix (kernel `NF_LOG_PREFIXLEN` less its terminator).
const LOG_PREFIX_BYTES: usize = 127;

/// The number of the register that begins at this slot of four bytes.
fn register(slot: usize) -> u32 {
    let slot = slot as u32;
    if slot.is_multiple_of(4) { NFT_REG_1 + slot / 4 } else { NFT_REG32_00 + slot }
}

/// The slot at which a register begins; `None` for the verdict register and numbers that are none.
fn slot(register: u32) -> Option<usize> {
    match register {
        NFT_REG_1..=NFT_REG_4 => Some(4 * (register - NFT_REG_1) as usize),
        NFT_REG32_00..=NFT_REG32_15 => Some((register - NFT_REG32_00) as usize),
        _ => None,
    }
}

fn prefix_mask(bits: usize, size: usize) -> Vec<u8> {
    (0..size)
        .map(|index| match bits.saturating_sub(8 * index) {
            0 => 0,
            left @ 1..8 => !(0xff >> left),
            _ => 0xff,
        })
        .collect()
}

/// Reads a NEWRULE message: the rule and what the kernel keeps about it. `elements` gives those of an anonymous set by
/// its name or its id in the batch, and nothing for a named one.
pub(super) fn read_rule(
    attributes: &Attributes<'_>,
    elements: &dyn Fn(&str, Option<u32>) -> Option<Elements>,
) -> Result<(Rule, RuleState), Malformed> {
    let mut reader = Reader {
        statements: Vec::new(),
        before: Vec::new(),
        known: Known::default(),
        registers: BTreeMap::new(),
        pending: Vec::new(),
        half: None,
        counter: None,
        elements,
    };
    for element in Walk::new(attributes.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes::parse(element?.1)?;
        reader.expression(&expression.text(NFTA_EXPR_NAME), &expression.nested(NFTA_EXPR_DATA)?)?;
    }
    reader.settle();
    let comment = attributes.get(NFTA_RULE_USERDATA).and_then(comment);
    let state = RuleState { handle: attributes.u64(NFTA_RULE_HANDLE)?.unwrap_or(0), counter: reader.counter };
    Ok((Rule { statements: reader.statements, comment }, state))
}

/// The comment in a rule's userdata, which is a list of type, length and value of a byte each.
fn comment(mut userdata: &[u8]) -> Option<String> {
    loop {
        let ([kind, length], rest) = userdata.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            return Some(text(value));
        }
        userdata = rest;
    }
}

/// What a register holds.
#[derive(Clone, Debug)]
struct Content {
    load: Load,
    mask: Option<Vec<u8>>,
}

/// Reads one rule's expressions.
struct Reader<'a> {
    statements: Vec<Statement>,
    /// What was known before each statement.
    before: Vec<Known>,
    known: Known,
    registers: BTreeMap<usize, Content>,
    /// Slots loaded and not yet used, in order.
    pending: Vec<usize>,
    /// The `>=` half of a range.
    half: Option<(usize, Datum)>,
    counter: Option<(u64, u64)>,
    elements: &'a dyn Fn(&str, Option<u32>) -> Option<Elements>,
}

impl Reader<'_> {
    fn push(&mut self, statement: Statement) {
        self.before.push(self.known);
        if let Some(learned) = Needed::of(&statement) {
            self.known.learn(learned);
        }
        self.statements.push(statement);
    }

    fn foreign(&mut self, words: impl Into<String>) {
        self.pending.clear();
        self.half = None;
        self.push(Statement::Foreign(words.into()));
    }

    /// Takes off the comparisons that `keys` rely on, if they are the last statements and nothing before needed them.
    fn take_off(&mut self, keys: &[Key]) {
        let trailing = self.statements.iter().rev().map_while(Needed::of).count();
        for count in (1..=trailing).rev() {
            let first = self.statements.len() - count;
            let found: Vec<Needed> = self.statements[first..].iter().filter_map(Needed::of).collect();
            if self.before[first].clone().need(keys) == found {
                self.statements.truncate(first);
                self.before.truncate(first);
                return;
            }
        }
    }

    fn with_keys(&mut self, keys: &[Key], statement: Statement) {
        self.take_off(keys);
        self.push(statement);
    }

    /// Anything begun that no expression finished.
    fn settle(&mut self) {
        if self.half.take().is_some() {
            self.foreign("a comparison with >=");
        }
        if !self.pending.is_empty() {
            self.foreign("a value that nothing is compared with");
        }
    }

    fn load(&mut self, register: Option<u32>, load: Load) {
        match register.and_then(slot) {
            Some(slot) => {
                self.registers.insert(slot, Content { load, mask: None });
                self.pending.push(slot);
            }
            None => self.foreign("a value without a register"),
        }
    }

    fn expression(&mut self, name: &str, data: &Attributes<'_>) -> Result<(), Malformed> {
        if self.half.is_some() && name != "cmp" {
            self.settle();
        }
        match name {
            "meta" => match data.u32(NFTA_META_KEY)? {
                Some(key) if data.get(NFTA_META_DREG).is_some() => {
                    self.load(data.u32(NFTA_META_DREG)?, Load::Meta(key))
                }
                _ => self.foreign("meta set"),
            },
            "ct" => match data.u32(NFTA_CT_KEY)? {
                Some(key) if data.get(NFTA_CT_DREG).is_some() && data.get(NFTA_CT_DIRECTION).is_none() => {
                    self.load(data.u32(NFTA_CT_DREG)?, Load::Conntrack(key));
                }
                _ => self.foreign("ct set"),
            },
            "payload" => {
                let load = Load::Payload {
                    base: data.u32(NFTA_PAYLOAD_BASE)?.unwrap_or(u32::MAX),
                    offset: data.u32(NFTA_PAYLOAD_OFFSET)?.unwrap_or(u32::MAX),
                    length: data.u32(NFTA_PAYLOAD_LEN)?.unwrap_or(0),
                };
                match data.u32(NFTA_PAYLOAD_DREG)? {
                    Some(register) => self.load(Some(register), load),
                    None => self.foreign("payload set"),
                }
            }
            "bitwise" => self.bitwise(data)?,
            "cmp" => self.cmp(data)?,
            "range" => self.range(data)?,
            "lookup" => self.lookup(data)?,
            "counter" => {
                self.settle();
                let number = |kind| data.u64(kind).map(|number| number.unwrap_or(0));
                self.counter.get_or_insert((number(NFTA_COUNTER_PACKETS)?, number(NFTA_COUNTER_BYTES)?));
                self.push(Statement::Counter);
            }
            "limit" => self.limit(data)?,
            "log" => self.log(data)?,
            "reject" => {
                self.settle();
                let code = data.get(NFTA_REJECT_ICMP_CODE).and_then(|code| code.first()).copied();
                match (data.u32(NFTA_REJECT_TYPE)?, code) {
                    (Some(NFT_REJECT_TCP_RST), _) => self.push(Statement::Reject(Reject::TcpReset)),
                    (Some(NFT_REJECT_ICMPX_UNREACH), Some(NFT_REJECT_ICMPX_ADMIN_PROHIBITED)) => {
                        self.push(Statement::Reject(Reject::AdminProhibited));
                    }
                    (kind, code) => {
                        let (kind, code) = (kind.unwrap_or(0), code.unwrap_or(0));
                        self.foreign(format!("reject of type {kind} with code {code}"));
                    }
                }
            }
            "immediate" => {
                self.settle();
                let verdict = data.nested(NFTA_IMMEDIATE_DATA)?.get(NFTA_DATA_VERDICT).map(verdict_of).transpose()?;
                match verdict {
                    Some(Ok(verdict)) => self.push(Statement::Verdict(verdict)),
                    Some(Err(words)) => self.foreign(words),
                    None => self.foreign("immediate value"),
                }
            }
            other => self.foreign(other),
        }
        Ok(())
    }

    fn limit(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        self.settle();
        let rate = data.u64(NFTA_LIMIT_RATE)?.unwrap_or(0);
        let unit = data.u64(NFTA_LIMIT_UNIT)?.unwrap_or(0);
        let burst = data.u32(NFTA_LIMIT_BURST)?.unwrap_or(0);
        let kind = data.u32(NFTA_LIMIT_TYPE)?.unwrap_or(0);
        let flags = data.u32(NFTA_LIMIT_FLAGS)?.unwrap_or(0);
        match (u32::try_from(rate), unit, kind, flags) {
            (Ok(rate), 1, NFT_LIMIT_PKTS, 0) => self.push(Statement::Limit(Limit { rate, seconds: 1, burst })),
            _ => self.foreign(format!("limit of {rate} in {unit} s, type {kind}, flags {flags}")),
        }
        Ok(())
    }

    fn log(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        self.settle();
        let plain = data.u32(NFTA_LOG_SNAPLEN)?.unwrap_or(0) == 0
            && data.u16(NFTA_LOG_QTHRESHOLD)?.unwrap_or(0) == 0
            && data.u32(NFTA_LOG_FLAGS)?.unwrap_or(0) == 0
            && data.get(NFTA_LOG_LEVEL).is_none();
        match data.u16(NFTA_LOG_GROUP)? {
            Some(group) if plain => self.push(Statement::Log { prefix: data.text(NFTA_LOG_PREFIX), group }),
            _ => self.foreign("log with other options than prefix and group"),
        }
        Ok(())
    }

    fn bitwise(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let source = data.u32(NFTA_BITWISE_SREG)?.and_then(slot);
        let target = data.u32(NFTA_BITWISE_DREG)?.and_then(slot);
        let operation = data.u32(NFTA_BITWISE_OP)?.unwrap_or(NFT_BITWISE_MASK_XOR);
        let mask = data.nested(NFTA_BITWISE_MASK)?.get(NFTA_DATA_VALUE).unwrap_or_default().to_vec();
        let flips = data.nested(NFTA_BITWISE_XOR)?.get(NFTA_DATA_VALUE).unwrap_or_default();
        let plain = operation == NFT_BITWISE_MASK_XOR && flips.iter().all(|byte| *byte == 0) && source == target;
        match source.and_then(|slot| self.registers.get_mut(&slot)) {
            Some(content) if plain && content.mask.is_none() => content.mask = Some(mask),
            _ => self.foreign("bitwise"),
        }
        Ok(())
    }

    /// The key in a register that one comparison looks at, and whether the load was of whole values.
    fn source(&mut self, register: Option<u32>) -> Option<(usize, Key, Content)> {
        let slot = register.and_then(slot)?;
        let content = self.registers.get(&slot)?.clone();
        let key = key_of(content.load, self.known)?;
        self.pending.retain(|pending| *pending != slot);
        self.pending.is_empty().then_some((slot, key, content))
    }

    fn cmp(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let operation = data.u32(NFTA_CMP_OP)?.unwrap_or(u32::MAX);
        let bytes = data.nested(NFTA_CMP_DATA)?.get(NFTA_DATA_VALUE).unwrap_or_default().to_vec();
        let Some((slot, key, content)) = self.source(data.u32(NFTA_CMP_SREG)?) else {
            self.foreign("comparison of something else than we compare");
            return Ok(());
        };
        let data_type = key.data_type();
        let whole = bytes.len() == data_type.size();
        let half = self.half.take();
        match (operation, half) {
            (NFT_CMP_GTE, None) if whole && content.mask.is_none() => {
                self.half = Some((slot, from_wire(data_type, &bytes)));
            }
            (NFT_CMP_LTE, Some((from, low))) if from == slot && whole && content.mask.is_none() => {
                let value = Value::Range(low, from_wire(data_type, &bytes));
                self.with_keys(&[key], Statement::Match { key, negated: false, value });
            }
            (NFT_CMP_EQ | NFT_CMP_NEQ, None) => {
                let different = operation == NFT_CMP_NEQ;
                match self.value(data_type, &content, &bytes) {
                    Some(value) => {
                        // Flags match when the masked value is not zero.
                        let negated = different != matches!(value, Value::Flags(_));
                        self.with_keys(&[key], Statement::Match { key, negated, value });
                    }
                    None => self.foreign("comparison with a mask"),
                }
            }
            _ => self.foreign("comparison other than = and !="),
        }
        Ok(())
    }

    fn value(&self, data_type: DataType, content: &Content, bytes: &[u8]) -> Option<Value> {
        let size = data_type.size();
        match &content.mask {
            None if bytes.len() == size => Some(Value::Is(from_wire(data_type, bytes))),
            None if bytes.len() < size && !bytes.is_empty() => {
                let mut padded = bytes.to_vec();
                padded.resize(size, 0);
                let length = bytes.len() as u8;
                match (data_type, content.load) {
                    (DataType::Ifname, _) => Some(Value::Prefix(Datum::new(&padded), 8 * length)),
                    (_, Load::Payload { length: loaded, .. }) if loaded as usize == bytes.len() => {
                        Some(Value::Prefix(Datum::new(&padded), 8 * length))
                    }
                    _ => None,
                }
            }
            Some(mask) if mask.len() == size && bytes.len() == size => {
                let mask = from_wire(data_type, mask);
                let value = from_wire(data_type, bytes);
                if data_type == DataType::CtState {
                    return (value.number() == 0).then_some(Value::Flags(mask.number() as u32));
                }
                let bits = mask.bytes().iter().map(|byte| byte.leading_ones() as usize).sum::<usize>();
                (prefix_mask(bits, size) == mask.bytes() && value.number() & !mask.number() == 0)
                    .then_some(Value::Prefix(value, bits as u8))
            }
            _ => None,
        }
    }

    fn range(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let operation = data.u32(NFTA_RANGE_OP)?.unwrap_or(u32::MAX);
        let from = data.nested(NFTA_RANGE_FROM_DATA)?.get(NFTA_DATA_VALUE).unwrap_or_default().to_vec();
        let to = data.nested(NFTA_RANGE_TO_DATA)?.get(NFTA_DATA_VALUE).unwrap_or_default().to_vec();
        let source = self.source(data.u32(NFTA_RANGE_SREG)?);
        match source {
            Some((_, key, content))
                if content.mask.is_none()
                    && operation <= NFT_RANGE_NEQ
                    && from.len() == key.data_type().size()
                    && to.len() == from.len() =>
            {
                let data_type = key.data_type();
                let value = Value::Range(from_wire(data_type, &from), from_wire(data_type, &to));
                self.with_keys(&[key], Statement::Match { key, negated: operation == NFT_RANGE_NEQ, value });
            }
            _ => self.foreign("range of something else than we compare"),
        }
        Ok(())
    }

    fn lookup(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let name = data.text(NFTA_LOOKUP_SET);
        let flags = data.u32(NFTA_LOOKUP_FLAGS)?.unwrap_or(0);
        let target = data.u32(NFTA_LOOKUP_DREG)?;
        let first = data.u32(NFTA_LOOKUP_SREG)?.and_then(slot);
        let id = data.u32(NFTA_LOOKUP_SET_ID)?;
        let pending = std::mem::take(&mut self.pending);
        let mut next = first;
        let mut keys = Vec::with_capacity(pending.len());
        for slot in pending {
            let content = self.registers.get(&slot).filter(|content| content.mask.is_none() && Some(slot) == next);
            let key = content
                .and_then(|content| Some((key_of(content.load, self.known)?, content.load)))
                .filter(|(key, load)| load_of(*key) == *load);
            let Some((key, _)) = key else {
                self.foreign(format!("lookup of something else than we look up in {name}"));
                return Ok(());
            };
            next = Some(slot + padded(key.data_type()) / 4);
            keys.push(key);
        }
        if keys.is_empty() {
            self.foreign(format!("lookup of nothing in {name}"));
            return Ok(());
        }
        let set = match (self.elements)(&name, id) {
            Some(elements) => SetRef::Anonymous(elements),
            None => SetRef::Named(name),
        };
        let relied = keys.clone();
        match (target, flags) {
            (None, 0 | NFT_LOOKUP_F_INV) => {
                self.with_keys(&relied, Statement::Lookup { keys, negated: flags == NFT_LOOKUP_F_INV, set });
            }
            (Some(NFT_REG_VERDICT), 0) => self.with_keys(&relied, Statement::Vmap { keys, map: set }),
            _ => self.foreign("lookup of a value"),
        }
        Ok(())
    }
}
