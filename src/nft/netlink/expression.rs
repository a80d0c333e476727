//! Rules to nf_tables expressions and back.
//!
//! A key brings its protocol (`nft/key.rs`): before the first use of `tcp dport` the rule gets `meta l4proto tcp`, before
//! `ip saddr` it gets `meta nfproto ipv4`, once per rule, as nft does. Reading back, exactly those comparisons go away again.

mod read;

pub(super) use read::{Used, comment, read_rule};

use super::attribute::{Attributes, Malformed, Writer};
use super::constant::*;
use super::encode::{anonymous, anonymous_name};
use super::set::{padded, to_wire};
use crate::net::addr::Family;
use crate::net::protocol::Protocol;
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
    // Which named sets have ranges shows in the bytes, and not in the rule that is read from them.
    put_rule(&mut writer, rule, &ids, &|_| false);
    let read = Attributes::parse(&writer.bytes).and_then(|attributes| {
        read_rule(&attributes, &|_, id| {
            let elements = id.and_then(|id| sets.get(usize::try_from(id).ok()?)).cloned();
            Used { interval: elements.as_ref().is_some_and(Elements::needs_interval), elements }
        })
    });
    match read {
        Ok((canonical, _)) => canonical,
        // Our own encoding always reads back; a statement that cannot be said stays what it was.
        Err(_) => rule.clone(),
    }
}

/// The most bytes of a rule's comment (nft, include/nftables.h `NFTNL_UDATA_COMMENT_MAXLEN` less its terminator).
const COMMENT_BYTES: usize = 127;

/// Expressions and comment of a rule. `ids` are those of its anonymous sets, in order; `has_ranges` says of a named set whether it
/// is one with `flags interval`.
pub(super) fn put_rule(writer: &mut Writer, rule: &Rule, ids: &[u32], has_ranges: &dyn Fn(&str) -> bool) {
    writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
        let mut list = List { writer: list, known: Known::default(), ids: ids.iter(), has_ranges };
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
    /// The control group of the packet's socket at a level.
    Socket(u32),
    Payload {
        base: u32,
        offset: u32,
        length: u32,
    },
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
        Key::SocketCgroup(level) => Load::Socket(u32::from(level)),
    }
}

/// The key whose value, or the first bytes of it, a load gets, given what the rule has compared before.
fn key_of(load: Load, known: Known) -> Option<Key> {
    let mut candidates = vec![Key::NfProto, Key::L4Proto, Key::CtState, Key::Mark, Key::SocketUser, Key::SocketGroup];
    if let Load::Socket(level) = load {
        candidates.extend(u8::try_from(level).map(Key::SocketCgroup));
    }
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
    has_ranges: &'a dyn Fn(&str) -> bool,
}

impl List<'_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Writer)) {
        self.writer.nest(NFTA_LIST_ELEM, |element| {
            element.put_text(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, fill);
        });
    }

    fn expression_without_data(&mut self, name: &str) {
        self.writer.nest(NFTA_LIST_ELEM, |element| element.put_text(NFTA_EXPR_NAME, name));
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
            Statement::Limit(limit) => self.expression("limit", |writer| put_limit(writer, limit)),
            Statement::Meter { keys, set, limit } => self.meter(keys, set, limit),
            Statement::Notrack => self.expression_without_data("notrack"),
            Statement::MarkSet(bits) => self.mark(*bits, *bits),
            Statement::MarkClear(bits) => self.mark(*bits, 0),
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
            Statement::Foreign(_) => self.expression("foreign", |_| {}),
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
                socket.put_u32(NFTA_SOCKET_LEVEL, level);
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
        self.bitwise(mask, &vec![0; mask.len()]);
    }

    fn bitwise(&mut self, mask: &[u8], flips: &[u8]) {
        self.expression("bitwise", |bitwise| {
            bitwise.put_u32(NFTA_BITWISE_SREG, NFT_REG_1);
            bitwise.put_u32(NFTA_BITWISE_DREG, NFT_REG_1);
            bitwise.put_u32(NFTA_BITWISE_LEN, mask.len() as u32);
            bitwise.put_u32(NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR);
            bitwise.nest(NFTA_BITWISE_MASK, |data| data.put(NFTA_DATA_VALUE, mask));
            bitwise.nest(NFTA_BITWISE_XOR, |data| data.put(NFTA_DATA_VALUE, flips));
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
            // A mask of numbers would be read as flags; as a range nft writes it, too.
            Value::Prefix(datum, bits) if data_type.host_order() => {
                let host = (8 * size).saturating_sub(usize::from(*bits));
                let rest = 1u128.checked_shl(host as u32).map_or(u128::MAX, |power| power - 1);
                let number = |number| Datum::from_number(number, size);
                let value = match (datum.number() & !rest, datum.number() | rest) {
                    (from, to) if from == to => Value::Is(*datum),
                    (from, to) => Value::Range(number(from), number(to)),
                };
                self.compare(key, negated, &value);
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
                self.largest_first(data_type, 0);
                self.expression("range", |range| {
                    range.put_u32(NFTA_RANGE_SREG, NFT_REG_1);
                    range.put_u32(NFTA_RANGE_OP, if negated { NFT_RANGE_NEQ } else { NFT_RANGE_EQ });
                    range.nest(NFTA_RANGE_FROM_DATA, |data| data.put(NFTA_DATA_VALUE, from.bytes()));
                    range.nest(NFTA_RANGE_TO_DATA, |data| data.put(NFTA_DATA_VALUE, to.bytes()));
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

    /// Turns around what the kernel has in host order, so that values compare as numbers.
    fn largest_first(&mut self, data_type: DataType, slot: usize) {
        if data_type.host_order() {
            self.expression("byteorder", |byteorder| {
                byteorder.put_u32(NFTA_BYTEORDER_SREG, register(slot));
                byteorder.put_u32(NFTA_BYTEORDER_DREG, register(slot));
                byteorder.put_u32(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON);
                byteorder.put_u32(NFTA_BYTEORDER_LEN, data_type.size() as u32);
                byteorder.put_u32(NFTA_BYTEORDER_SIZE, data_type.size() as u32);
            });
        }
    }

    /// Loads the fields of a key one after the other.
    fn load_all(&mut self, keys: &[Key], largest_first: bool) {
        self.rely(keys);
        let mut slot = 0;
        for key in keys {
            self.load(load_of(*key), slot);
            if largest_first {
                self.largest_first(key.data_type(), slot);
            }
            slot += padded(key.data_type()) / 4;
        }
    }

    fn meter(&mut self, keys: &[Key], set: &str, limit: &Limit) {
        self.load_all(keys, false);
        self.expression("dynset", |dynset| {
            dynset.put_text(NFTA_DYNSET_SET_NAME, set);
            dynset.put_u32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
            dynset.put_u32(NFTA_DYNSET_SREG_KEY, register(0));
            dynset.nest(NFTA_DYNSET_EXPR, |expression| {
                expression.put_text(NFTA_EXPR_NAME, "limit");
                expression.nest(NFTA_EXPR_DATA, |writer| put_limit(writer, limit));
            });
        });
    }

    /// Of the packet's mark, `bits` become those of `set`.
    fn mark(&mut self, bits: u32, set: u32) {
        self.load(Load::Meta(NFT_META_MARK), 0);
        self.bitwise(&(!bits).to_ne_bytes(), &set.to_ne_bytes());
        self.expression("meta", |meta| {
            meta.put_u32(NFTA_META_KEY, NFT_META_MARK);
            meta.put_u32(NFTA_META_SREG, NFT_REG_1);
        });
    }

    fn lookup(&mut self, keys: &[Key], negated: bool, set: &SetRef, map: bool) {
        let (name, id, has_ranges) = match set {
            SetRef::Named(name) => (name.as_str(), None, (self.has_ranges)(name)),
            SetRef::Anonymous(elements) => (anonymous_name(map), self.ids.next().copied(), elements.needs_interval()),
        };
        self.load_all(keys, has_ranges);
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

fn put_limit(writer: &mut Writer, limit: &Limit) {
    // The kernel takes a burst of nothing for its default.
    let burst = if limit.burst == 0 { NFT_LIMIT_PKT_BURST_DEFAULT } else { limit.burst };
    writer.put_u64(NFTA_LIMIT_RATE, u64::from(limit.rate));
    writer.put_u64(NFTA_LIMIT_UNIT, u64::from(limit.seconds));
    writer.put_u32(NFTA_LIMIT_BURST, burst);
    writer.put_u32(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS);
    writer.put_u32(NFTA_LIMIT_FLAGS, 0);
}

/// The most bytes of a log prefix (kernel `NF_LOG_PREFIXLEN` less its terminator).
const LOG_PREFIX_BYTES: usize = 127;

/// The number of the register that begins at this slot of four bytes.
fn register(slot: usize) -> u32 {
    let slot = slot as u32;
    if slot.is_multiple_of(4) { NFT_REG_1 + slot / 4 } else { NFT_REG32_00 + slot }
}

/// The slot at which a register begins; `None` for the verdict register and numbers that are none.
pub(super) fn slot(register: u32) -> Option<usize> {
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
