//! Expressions of a rule back to statements. What we do not write becomes [`Statement::Foreign`].

use std::collections::BTreeMap;

use super::super::attribute::{Attributes, Malformed, Walk, text};
use super::super::constant::*;
use super::super::set::{from_wire, padded};
use super::{Known, Load, Needed, key_of, load_of, prefix_mask, slot, verdict_of};
use crate::nft::change::RuleState;
use crate::nft::ir::{Elements, Limit, Reject, Rule, SetRef, Statement, Value};
use crate::nft::key::{DataType, Datum, Key};
use crate::nft::words;

/// A set that a rule uses.
pub(in super::super) struct Used {
    /// What is in it, if it is an anonymous one.
    pub(in super::super) elements: Option<Elements>,
    /// Whether it has ranges.
    pub(in super::super) interval: bool,
}

/// Reads a NEWRULE message: the rule and what the kernel keeps about it. `sets` tells of a set by its name or, of an anonymous one,
/// its id in the batch.
pub(in super::super) fn read_rule(
    attributes: &Attributes<'_>,
    sets: &dyn Fn(&str, Option<u32>) -> Used,
) -> Result<(Rule, RuleState), Malformed> {
    let mut reader = Reader {
        statements: Vec::new(),
        before: Vec::new(),
        known: Known::default(),
        registers: BTreeMap::new(),
        pending: Vec::new(),
        half: None,
        counter: None,
        sets,
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
pub(in super::super) fn comment(mut userdata: &[u8]) -> Option<String> {
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
    /// What it was masked with, and the bits that were flipped then.
    bits: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether it was turned from host order to network order.
    turned: bool,
}

impl Content {
    /// Whether the value is as it was loaded.
    fn untouched(&self) -> bool {
        self.bits.is_none() && !self.turned
    }

    /// Whether it compares as a number, as values of this type have to for ranges of them.
    fn ordered(&self, data_type: DataType) -> bool {
        self.bits.is_none() && self.turned == data_type.host_order()
    }
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
    sets: &'a dyn Fn(&str, Option<u32>) -> Used,
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
                self.registers.insert(slot, Content { load, bits: None, turned: false });
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
            "meta" => match (data.u32(NFTA_META_KEY)?, data.u32(NFTA_META_DREG)?, data.u32(NFTA_META_SREG)?) {
                (Some(key), register @ Some(_), None) => self.load(register, Load::Meta(key)),
                (Some(NFT_META_MARK), None, Some(register)) => self.mark(register),
                _ => self.foreign("meta set"),
            },
            "socket" => match (data.u32(NFTA_SOCKET_KEY)?, data.u32(NFTA_SOCKET_LEVEL)?) {
                (Some(NFT_SOCKET_CGROUPV2), Some(level)) => {
                    self.load(data.u32(NFTA_SOCKET_DREG)?, Load::Socket(level));
                }
                _ => self.foreign("socket"),
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
            "byteorder" => self.byteorder(data)?,
            "cmp" => self.cmp(data)?,
            "range" => self.range(data)?,
            "lookup" => self.lookup(data)?,
            "dynset" => self.meter(data)?,
            "notrack" => {
                self.settle();
                self.push(Statement::Notrack);
            }
            "counter" => {
                self.settle();
                let number = |kind| data.u64(kind).map(|number| number.unwrap_or(0));
                self.counter.get_or_insert((number(NFTA_COUNTER_PACKETS)?, number(NFTA_COUNTER_BYTES)?));
                self.push(Statement::Counter);
            }
            "limit" => {
                self.settle();
                match limit_of(data)? {
                    Ok(limit) => self.push(Statement::Limit(limit)),
                    Err(words) => self.foreign(words),
                }
            }
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
        let flips = data.nested(NFTA_BITWISE_XOR)?.get(NFTA_DATA_VALUE).unwrap_or_default().to_vec();
        let plain = operation == NFT_BITWISE_MASK_XOR && source == target;
        match source.and_then(|slot| self.registers.get_mut(&slot)) {
            Some(content) if plain && content.untouched() => content.bits = Some((mask, flips)),
            _ => self.foreign("bitwise"),
        }
        Ok(())
    }

    fn byteorder(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let source = data.u32(NFTA_BYTEORDER_SREG)?.and_then(slot);
        let target = data.u32(NFTA_BYTEORDER_DREG)?.and_then(slot);
        let to_network = data.u32(NFTA_BYTEORDER_OP)? == Some(NFT_BYTEORDER_HTON);
        let sizes = (data.u32(NFTA_BYTEORDER_LEN)?, data.u32(NFTA_BYTEORDER_SIZE)?);
        let known = self.known;
        match source.and_then(|slot| self.registers.get_mut(&slot)) {
            Some(content) if to_network && source == target && content.untouched() => {
                // Once, as a whole, and only what the kernel has in host order.
                let size = key_of(content.load, known).map(Key::data_type).filter(|data_type| data_type.host_order());
                let size = size.and_then(|data_type| u32::try_from(data_type.size()).ok());
                if size.is_some() && sizes == (size, size) {
                    content.turned = true;
                } else {
                    self.foreign("byteorder");
                }
            }
            _ => self.foreign("byteorder"),
        }
        Ok(())
    }

    /// `meta mark set` from a register, which has to hold the mark with some bits changed.
    fn mark(&mut self, register: u32) {
        let loaded = slot(register).filter(|slot| self.pending == [*slot]).and_then(|slot| self.registers.get(&slot));
        let bits = loaded.filter(|content| content.load == Load::Meta(NFT_META_MARK) && !content.turned);
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_ne_bytes);
        let bits = bits.and_then(|content| content.bits.as_ref());
        let statement = match bits.and_then(|(mask, flips)| number(mask).zip(number(flips))) {
            Some((mask, set)) if set == !mask => Statement::MarkSet(set),
            Some((mask, 0)) => Statement::MarkClear(!mask),
            _ => return self.foreign("meta mark set to something else than itself with bits set or cleared"),
        };
        self.pending.clear();
        self.settle();
        self.push(statement);
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
            (NFT_CMP_GTE, None) if whole && content.ordered(data_type) => {
                self.half = Some((slot, Datum::new(&bytes)));
            }
            (NFT_CMP_LTE, Some((from, low))) if from == slot && whole && content.ordered(data_type) => {
                let value = Value::Range(low, Datum::new(&bytes));
                self.with_keys(&[key], Statement::Match { key, negated: false, value });
            }
            (NFT_CMP_EQ | NFT_CMP_NEQ, None) if !content.turned => {
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
        match &content.bits {
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
            Some((mask, flips)) if mask.len() == size && bytes.len() == size && flips.iter().all(|byte| *byte == 0) => {
                let mask = from_wire(data_type, mask);
                let value = from_wire(data_type, bytes);
                // Of these the masks that we write are flags; prefixes we write as ranges.
                if data_type.host_order() {
                    let flags = matches!(data_type, DataType::CtState | DataType::Mark) && value.number() == 0;
                    return flags.then_some(Value::Flags(mask.number() as u32));
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
                if content.ordered(key.data_type())
                    && operation <= NFT_RANGE_NEQ
                    && from.len() == key.data_type().size()
                    && to.len() == from.len() =>
            {
                let value = Value::Range(Datum::new(&from), Datum::new(&to));
                self.with_keys(&[key], Statement::Match { key, negated: operation == NFT_RANGE_NEQ, value });
            }
            _ => self.foreign("range of something else than we compare"),
        }
        Ok(())
    }

    /// The keys that were loaded one after the other from a register on and that nothing has looked at yet, with what became of them.
    fn fields(&mut self, first: Option<u32>) -> Option<Vec<(Key, Content)>> {
        let mut next = first.and_then(slot);
        let mut fields = Vec::new();
        for slot in std::mem::take(&mut self.pending) {
            let content = self.registers.get(&slot).filter(|content| content.bits.is_none() && Some(slot) == next)?;
            let key = key_of(content.load, self.known).filter(|key| load_of(*key) == content.load)?;
            next = Some(slot + padded(key.data_type()) / 4);
            fields.push((key, content.clone()));
        }
        (!fields.is_empty()).then_some(fields)
    }

    fn lookup(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let name = data.text(NFTA_LOOKUP_SET);
        let flags = data.u32(NFTA_LOOKUP_FLAGS)?.unwrap_or(0);
        let target = data.u32(NFTA_LOOKUP_DREG)?;
        let used = (self.sets)(&name, data.u32(NFTA_LOOKUP_SET_ID)?);
        let ordered =
            |(key, content): &(Key, Content)| content.turned == (used.interval && key.data_type().host_order());
        let Some(fields) = self.fields(data.u32(NFTA_LOOKUP_SREG)?).filter(|fields| fields.iter().all(ordered)) else {
            self.foreign(format!("lookup of something else than we look up in {name}"));
            return Ok(());
        };
        let keys: Vec<Key> = fields.into_iter().map(|(key, _)| key).collect();
        let set = match used.elements {
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

    fn meter(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let set = data.text(NFTA_DYNSET_SET_NAME);
        let fields = self.fields(data.u32(NFTA_DYNSET_SREG_KEY)?);
        let fields = fields.filter(|fields| fields.iter().all(|(_, content)| !content.turned));
        let plain = data.u32(NFTA_DYNSET_OP)? == Some(NFT_DYNSET_OP_UPDATE)
            && data.u64(NFTA_DYNSET_TIMEOUT)?.unwrap_or(0) == 0
            && data.u32(NFTA_DYNSET_FLAGS)?.unwrap_or(0) == 0
            && data.get(NFTA_DYNSET_SREG_DATA).is_none();
        let mut expressions: Vec<&[u8]> = data.get(NFTA_DYNSET_EXPR).into_iter().collect();
        for element in Walk::new(data.get(NFTA_DYNSET_EXPRESSIONS).unwrap_or_default()) {
            expressions.push(element?.1);
        }
        let mut limits = Vec::new();
        for expression in expressions {
            let expression = Attributes::parse(expression)?;
            limits.push(match expression.text(NFTA_EXPR_NAME).as_str() {
                "limit" => limit_of(&expression.nested(NFTA_EXPR_DATA)?)?,
                other => Err(other.to_owned()),
            });
        }
        match (fields, limits.as_slice()) {
            (Some(fields), [Ok(limit)]) if plain => {
                let keys: Vec<Key> = fields.into_iter().map(|(key, _)| key).collect();
                let relied = keys.clone();
                self.with_keys(&relied, Statement::Meter { keys, set, limit: *limit });
            }
            _ => self.foreign(format!("what we do not fill set {set} with")),
        }
        Ok(())
    }
}

/// The inside of a limit expression; `Err` in words for one that the IR does not have.
fn limit_of(data: &Attributes<'_>) -> Result<Result<Limit, String>, Malformed> {
    let rate = data.u64(NFTA_LIMIT_RATE)?.unwrap_or(0);
    let unit = data.u64(NFTA_LIMIT_UNIT)?.unwrap_or(0);
    let burst = data.u32(NFTA_LIMIT_BURST)?.unwrap_or(0);
    let kind = data.u32(NFTA_LIMIT_TYPE)?.unwrap_or(0);
    let flags = data.u32(NFTA_LIMIT_FLAGS)?.unwrap_or(0);
    let seconds = u32::try_from(unit).ok().filter(|seconds| words::unit(*seconds).is_some());
    Ok(match (u32::try_from(rate), seconds, kind, flags) {
        (Ok(rate), Some(seconds), NFT_LIMIT_PKTS, 0) => Ok(Limit { rate, seconds, burst }),
        _ => Err(format!("limit of {rate} in {unit} s, type {kind}, flags {flags}")),
    })
}
