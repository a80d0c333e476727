//! What a rule of anybody's does to the destination of packets on their way in, and of which packets it does: enough to tell which ports
//! lead elsewhere. A condition that is not understood is a step of its own ([`Step::Asks`]) and never narrows anything.

mod sets;
#[cfg(test)]
mod tests;
mod xt;

use std::collections::BTreeMap;

use super::attribute::{Attributes, Malformed, Walk};
use super::base_chain::Family as TableFamily;
use super::constant::*;
use super::decode::Message;
use super::expression::{comment, slot, verdict_of};
use crate::net::addr::Family;
use crate::net::range::RangeSet;
use crate::nft::ir::Verdict;

pub use sets::{Element, SetShape, elements, list_elements, list_sets, set_shape};

/// A rule, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NatRule {
    /// The chain that it is in.
    pub chain: String,
    /// Its comment, of nft or of iptables.
    pub comment: Option<String>,
    /// What it asks and does, in order.
    pub steps: Vec<Step>,
}

/// What a packet is asked for, as a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The protocol above IP.
    Protocol,
    /// The destination address; packets of the other IP version do not match.
    Address(Family),
    /// The destination port.
    Port,
}

impl Field {
    /// How many bytes it has in a packet.
    pub const fn size(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Address(Family::V4) => 4,
            Self::Address(Family::V6) => 16,
            Self::Port => 2,
        }
    }
}

/// One thing that a rule asks or does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The packet goes on if the field has one of these values.
    Only(Field, RangeSet<u128>),
    /// It goes on if it is of this IP version.
    Family(Family),
    /// It goes on if its destination is an address of this host, or if it is none.
    Local(bool),
    /// It goes on if it came over this interface; a name that ends in `*` stands for all that begin so.
    Over(String),
    /// It goes on if it did not come over it.
    NotOver(String),
    /// It goes on if something holds that is not understood.
    Asks,
    /// A set or a map is looked at.
    Lookup {
        /// Its name.
        set: String,
        /// What the registers hold from the first one on; the set's key may be shorter.
        key: Vec<Part>,
        /// The packet goes on if it is not in there.
        negated: bool,
        /// What is made of what is found.
        to: To,
    },
    /// Bytes are put into registers, from this slot of four bytes on.
    Put(usize, Vec<u8>),
    /// The end of the rule for all packets that came so far.
    Verdict(Verdict),
    /// The destination is rewritten, and that is the end.
    Rewrite(Rewrite),
}

/// What is made of an element that is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// Nothing: the packet goes on.
    Nothing,
    /// Its verdict is taken.
    Verdict,
    /// Its data is put into registers, from this slot on.
    Registers(usize),
}

/// A part of a set's key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// How many bytes were loaded.
    pub size: usize,
    /// What they are.
    pub what: What,
}

/// What a part of a key is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A field as it is.
    Field(Field),
    /// The name of the interface that the packet came over.
    Interface,
    /// The kind of the destination address (`RTN_LOCAL` and others).
    AddressKind,
    /// What every packet may have, such as a random number.
    Anything,
    /// Not understood.
    Unknown,
}

/// A rewrite of the destination.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rewrite {
    /// To an address of this host (`redirect`).
    pub here: bool,
    /// The first and the last address; `None` where it stays.
    pub addresses: Option<(Operand, Operand)>,
    /// The first and the last port; `None` where it stays.
    pub ports: Option<(Operand, Operand)>,
}

/// A value of a rewrite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operand {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What is in the registers, from this slot on.
    Register(usize),
    /// Something that is not understood.
    Unknown,
}

/// `RTN_LOCAL` (include/uapi/linux/rtnetlink.h): an address of this host.
pub const RTN_LOCAL: u32 = 2;

// include/uapi/linux/netfilter/nf_tables.h
const NFT_CMP_LT: u32 = 2;
const NFT_CMP_GT: u32 = 4;
const NFT_META_PRANDOM: u32 = 24;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFTA_FIB_F_IIF: u32 = 8;
const NFTA_NG_DREG: u16 = 1;
const NFTA_HASH_DREG: u16 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
const NFT_NAT_DNAT: u32 = 1;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
const NFTA_REDIR_REG_PROTO_MAX: u16 = 2;

/// The rule in a message; `None` when it is about something else.
///
/// # Errors
/// A message that is not as the kernel writes it.
pub fn nat_rule(message: &Message<'_>) -> Result<Option<NatRule>, Malformed> {
    if message.nft() != Some(NFT_MSG_NEWRULE) {
        return Ok(None);
    }
    let attributes = message.attributes()?;
    let family = match message.payload.first().copied().and_then(TableFamily::of) {
        Some(TableFamily::Ip) => Some(Family::V4),
        Some(TableFamily::Ip6) => Some(Family::V6),
        _ => None,
    };
    let comment = attributes.get(NFTA_RULE_USERDATA).and_then(comment);
    let mut reader = Reader { family, comment, registers: BTreeMap::new(), put: false, steps: Vec::new() };
    for element in Walk::new(attributes.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let (_, expression) = element?;
        let expression = Attributes::parse(expression)?;
        reader.expression(&expression.text(NFTA_EXPR_NAME), &expression.nested(NFTA_EXPR_DATA)?)?;
    }
    Ok(Some(NatRule { chain: attributes.text(NFTA_RULE_CHAIN), comment: reader.comment, steps: reader.steps }))
}

/// What a register was loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
    /// Bytes of a packet: which header, and from where.
    Payload(u32, usize),
    Protocol,
    Family,
    Interface,
    AddressKind,
    Anything,
    Unknown,
}

#[derive(Clone, Debug)]
struct Content {
    size: usize,
    load: Load,
    mask: Option<Vec<u8>>,
}

struct Reader {
    /// The IP version, as soon as it is known.
    family: Option<Family>,
    comment: Option<String>,
    registers: BTreeMap<usize, Content>,
    /// The rule has put something into registers that is not of the packet.
    put: bool,
    steps: Vec<Step>,
}

impl Reader {
    fn load(&mut self, register: Option<u32>, size: usize, load: Load) {
        match register.and_then(slot) {
            Some(slot) => {
                // What it lies over is gone.
                let end = slot + size.div_ceil(4).max(1);
                self.registers
                    .retain(|start, content| *start >= end || start + content.size.div_ceil(4).max(1) <= slot);
                self.registers.insert(slot, Content { size, load, mask: None });
                if self.put {
                    // What a rule has put there is no longer what a rewrite takes.
                    self.steps.push(Step::Put(slot, Vec::new()));
                }
            }
            None => self.registers.clear(),
        }
    }

    fn expression(&mut self, name: &str, data: &Attributes<'_>) -> Result<(), Malformed> {
        match name {
            "meta" => {
                let register = data.u32(NFTA_META_DREG)?;
                let (size, load) = match data.u32(NFTA_META_KEY)? {
                    // It sets something.
                    _ if register.is_none() => return Ok(()),
                    Some(NFT_META_L4PROTO) => (1, Load::Protocol),
                    Some(NFT_META_NFPROTO) => (1, Load::Family),
                    Some(NFT_META_IIFNAME) => (16, Load::Interface),
                    Some(NFT_META_PRANDOM) => (4, Load::Anything),
                    Some(NFT_META_IIFKIND | NFT_META_OIFKIND | NFT_META_OIFNAME) => (16, Load::Unknown),
                    _ => (4, Load::Unknown),
                };
                self.load(register, size, load);
            }
            "payload" => {
                let base = data.u32(NFTA_PAYLOAD_BASE)?.unwrap_or(u32::MAX);
                let offset = data.u32(NFTA_PAYLOAD_OFFSET)?.unwrap_or(0) as usize;
                let size = data.u32(NFTA_PAYLOAD_LEN)?.unwrap_or(0) as usize;
                match data.u32(NFTA_PAYLOAD_DREG)? {
                    Some(register) if size <= 64 => self.load(Some(register), size, Load::Payload(base, offset)),
                    Some(_) => self.registers.clear(),
                    None => {}
                }
            }
            "fib" => self.fib(data)?,
            // Only first packets come to a chain of type nat.
            "ct" => match (data.u32(NFTA_CT_KEY)?, data.u32(NFTA_CT_DREG)?) {
                (_, None) => {}
                (Some(NFT_CT_STATE), register) => self.load(register, 4, Load::Anything),
                (_, register) => self.load(register, 4, Load::Unknown),
            },
            "numgen" => self.load(data.u32(NFTA_NG_DREG)?, 4, Load::Anything),
            "hash" => self.load(data.u32(NFTA_HASH_DREG)?, 4, Load::Anything),
            "bitwise" => self.bitwise(data)?,
            "byteorder" => {
                let size = data.u32(NFTA_BYTEORDER_LEN)?.unwrap_or(4) as usize;
                let source = data.u32(NFTA_BYTEORDER_SREG)?.and_then(slot);
                let anything = source
                    .and_then(|slot| self.registers.get(&slot))
                    .is_some_and(|content| content.load == Load::Anything);
                let load = if anything { Load::Anything } else { Load::Unknown };
                self.load(data.u32(NFTA_BYTEORDER_DREG)?, size.min(64), load);
            }
            "cmp" => self.cmp(data)?,
            "range" => self.range(data)?,
            "lookup" => self.lookup(data)?,
            "immediate" => self.immediate(data)?,
            "nat" if data.u32(NFTA_NAT_TYPE)? == Some(NFT_NAT_DNAT) => {
                match data.u32(NFTA_NAT_FAMILY)?.map(|family| family as u8) {
                    Some(NFPROTO_IPV4) => self.steps.push(Step::Family(Family::V4)),
                    Some(NFPROTO_IPV6) => self.steps.push(Step::Family(Family::V6)),
                    _ => {}
                }
                let rewrite = Rewrite {
                    here: false,
                    addresses: operands(data, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_ADDR_MAX)?,
                    ports: operands(data, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_REG_PROTO_MAX)?,
                };
                self.steps.push(Step::Rewrite(rewrite));
            }
            "redir" => {
                let ports = operands(data, NFTA_REDIR_REG_PROTO_MIN, NFTA_REDIR_REG_PROTO_MAX)?;
                self.steps.push(Step::Rewrite(Rewrite { here: true, addresses: None, ports }));
            }
            "match" => xt::matches(self, data)?,
            "target" => {
                self.steps.extend(xt::target(self.family, data)?.map(Step::Rewrite));
            }
            "reject" => self.steps.push(Step::Verdict(Verdict::Drop)),
            // They let every packet go on, at least some of the time.
            "counter" | "log" | "limit" | "notrack" | "dynset" | "objref" | "nat" | "masq" | "last" | "dup" => {}
            _ => {
                // It may have loaded any register.
                self.registers.clear();
                self.steps.push(Step::Asks);
            }
        }
        Ok(())
    }

    fn fib(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let flags = data.u32(NFTA_FIB_FLAGS)?.unwrap_or(0);
        let of_destination = flags & !NFTA_FIB_F_IIF == NFTA_FIB_F_DADDR;
        if data.u32(NFTA_FIB_RESULT)? == Some(NFT_FIB_RESULT_ADDRTYPE) && of_destination {
            if flags & NFTA_FIB_F_IIF != 0 {
                // An address of the interface that the packet came over: fewer than all of this host's.
                self.steps.push(Step::Asks);
            }
            self.load(data.u32(NFTA_FIB_DREG)?, 4, Load::AddressKind);
        } else {
            self.load(data.u32(NFTA_FIB_DREG)?, 16, Load::Unknown);
        }
        Ok(())
    }

    fn bitwise(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let source = data.u32(NFTA_BITWISE_SREG)?.and_then(slot);
        let size = data.u32(NFTA_BITWISE_LEN)?.unwrap_or(4) as usize;
        let plain = data.u32(NFTA_BITWISE_OP)?.unwrap_or(NFT_BITWISE_MASK_XOR) == NFT_BITWISE_MASK_XOR;
        let mask = data.nested(NFTA_BITWISE_MASK)?.get(NFTA_DATA_VALUE).unwrap_or_default();
        let flips = data.nested(NFTA_BITWISE_XOR)?.get(NFTA_DATA_VALUE).unwrap_or_default();
        let content = source.and_then(|slot| self.registers.get(&slot)).cloned();
        let register = data.u32(NFTA_BITWISE_DREG)?;
        match content {
            Some(Content { load: Load::Anything, size, .. }) => self.load(register, size, Load::Anything),
            Some(content)
                if plain
                    && content.mask.is_none()
                    && mask.len() == content.size
                    && flips.iter().all(|byte| *byte == 0) =>
            {
                self.load(register, content.size, content.load);
                if let Some(content) = register.and_then(slot).and_then(|slot| self.registers.get_mut(&slot)) {
                    content.mask = Some(mask.to_vec());
                }
            }
            _ => self.load(register, size.min(64), Load::Unknown),
        }
        Ok(())
    }

    fn content(&self, register: Option<u32>) -> Content {
        let found = register.and_then(slot).and_then(|slot| self.registers.get(&slot));
        found.cloned().unwrap_or(Content { size: 0, load: Load::Unknown, mask: None })
    }

    fn cmp(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let content = self.content(data.u32(NFTA_CMP_SREG)?);
        let operation = data.u32(NFTA_CMP_OP)?.unwrap_or(u32::MAX);
        let bytes = data.nested(NFTA_CMP_DATA)?.get(NFTA_DATA_VALUE).unwrap_or_default();
        let equal = operation == NFT_CMP_EQ;
        match content.load {
            Load::Anything => {}
            Load::Interface if content.mask.is_none() && (equal || operation == NFT_CMP_NEQ) => {
                let name = interface(bytes);
                self.steps.push(if equal { Step::Over(name) } else { Step::NotOver(name) });
            }
            Load::AddressKind if content.mask.is_none() && (equal || operation == NFT_CMP_NEQ) => {
                match (bytes == RTN_LOCAL.to_ne_bytes(), equal) {
                    (true, equal) => self.steps.push(Step::Local(equal)),
                    (false, true) => self.steps.push(Step::Local(false)),
                    (false, false) => {}
                }
            }
            Load::Family if content.mask.is_none() && (equal || operation == NFT_CMP_NEQ) => {
                let family = match (bytes, equal) {
                    ([NFPROTO_IPV4], true) | ([NFPROTO_IPV6], false) => Family::V4,
                    ([NFPROTO_IPV6], true) | ([NFPROTO_IPV4], false) => Family::V6,
                    _ => {
                        self.steps.push(Step::Asks);
                        return Ok(());
                    }
                };
                self.family = self.family.or(Some(family));
                self.steps.push(Step::Family(family));
            }
            _ => self.compare(&content, operation, bytes),
        }
        Ok(())
    }

    /// A comparison of bytes of the packet.
    fn compare(&mut self, content: &Content, operation: u32, bytes: &[u8]) {
        let size = bytes.len();
        if size == 0 || size > content.size {
            self.steps.push(Step::Asks);
            return;
        }
        let mask = content.mask.clone().unwrap_or_else(|| vec![0xff; size]);
        let whole = self.field(content).filter(|field| field.size() == size);
        match (operation, whole) {
            (NFT_CMP_EQ, _) => self.equal(content.load, bytes, &mask[..size.min(mask.len())]),
            (NFT_CMP_NEQ, _) => {
                let from = self.steps.len();
                self.equal(content.load, bytes, &mask[..size.min(mask.len())]);
                // Only of one condition alone is the opposite known.
                let opposite = match &self.steps[from..] {
                    [Step::Only(field, values)] => Step::Only(*field, values.complement()),
                    _ => Step::Asks,
                };
                self.steps.truncate(from);
                self.steps.push(opposite);
            }
            (NFT_CMP_LT | NFT_CMP_LTE | NFT_CMP_GT | NFT_CMP_GTE, Some(field)) => {
                let value = number(bytes);
                let values = match operation {
                    NFT_CMP_LT => value.checked_sub(1).map_or_else(RangeSet::empty, |last| RangeSet::range(0, last)),
                    NFT_CMP_LTE => RangeSet::range(0, value),
                    NFT_CMP_GT => RangeSet::range(0, value).complement(),
                    _ => RangeSet::range(value, u128::MAX),
                };
                self.steps.push(Step::Only(field, values));
            }
            _ => self.steps.push(Step::Asks),
        }
    }

    /// The field that a register holds as a whole and without a mask.
    fn field(&self, content: &Content) -> Option<Field> {
        if content.mask.is_some() {
            return None;
        }
        match content.load {
            Load::Protocol => Some(Field::Protocol),
            Load::Payload(base, offset) => {
                let fields = fields(self.family, base);
                let exact = |(start, field): &&(usize, Field)| (*start, field.size()) == (offset, content.size);
                fields.iter().find(exact).map(|(_, field)| *field)
            }
            _ => None,
        }
    }

    /// Bytes that have to be equal where the mask has bits. They may be of several fields: nft puts neighbours together.
    fn equal(&mut self, load: Load, bytes: &[u8], mask: &[u8]) {
        let (base, offset) = match load {
            Load::Payload(base, offset) => (base, offset),
            Load::Protocol => {
                match values(Field::Protocol, 0, bytes, mask) {
                    Some(values) => self.steps.push(Step::Only(Field::Protocol, values)),
                    None => self.steps.push(Step::Asks),
                }
                return;
            }
            _ => return self.steps.push(Step::Asks),
        };
        let (mut understood, end) = (0, offset.saturating_add(bytes.len()));
        let asked = |from: usize, to: usize| {
            mask.get(from - offset..to - offset).unwrap_or_default().iter().filter(|byte| **byte != 0).count()
        };
        for (start, field) in fields(self.family, base) {
            let (from, to) = (offset.max(*start), end.min(start + field.size()));
            if from >= to || asked(from, to) == 0 {
                continue;
            }
            let range = from - offset..to - offset;
            if let (Some(bytes), Some(mask)) = (bytes.get(range.clone()), mask.get(range))
                && let Some(values) = values(*field, from - start, bytes, mask)
            {
                understood += asked(from, to);
                self.steps.push(Step::Only(*field, values));
            }
        }
        if understood < asked(offset, end.min(offset + mask.len())) {
            self.steps.push(Step::Asks);
        }
    }

    fn range(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let content = self.content(data.u32(NFTA_RANGE_SREG)?);
        let from = data.nested(NFTA_RANGE_FROM_DATA)?.get(NFTA_DATA_VALUE).unwrap_or_default();
        let to = data.nested(NFTA_RANGE_TO_DATA)?.get(NFTA_DATA_VALUE).unwrap_or_default();
        let operation = data.u32(NFTA_RANGE_OP)?.unwrap_or(NFT_RANGE_EQ);
        let field = self.field(&content).filter(|field| field.size() == from.len() && field.size() == to.len());
        self.steps.extend(match (content.load, field) {
            (Load::Anything, _) => None,
            (_, Some(field)) if operation == NFT_RANGE_EQ || operation == NFT_RANGE_NEQ => {
                let values = RangeSet::range(number(from), number(to));
                let negated = operation == NFT_RANGE_NEQ;
                Some(Step::Only(field, if negated { values.complement() } else { values }))
            }
            _ => Some(Step::Asks),
        });
        Ok(())
    }

    fn lookup(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let mut key = Vec::new();
        let mut next = data.u32(NFTA_LOOKUP_SREG)?.and_then(slot);
        while let Some(content) = next.and_then(|slot| self.registers.get(&slot)) {
            let what = match (content.load, self.field(content)) {
                (_, Some(field)) => What::Field(field),
                (Load::Anything, _) => What::Anything,
                (Load::Interface, _) if content.mask.is_none() => What::Interface,
                (Load::AddressKind, _) if content.mask.is_none() => What::AddressKind,
                _ => What::Unknown,
            };
            key.push(Part { size: content.size, what });
            next = next.map(|slot| slot + content.size.div_ceil(4).max(1));
        }
        let to = match data.u32(NFTA_LOOKUP_DREG)? {
            None => To::Nothing,
            Some(NFT_REG_VERDICT) => To::Verdict,
            Some(register) => match slot(register) {
                Some(slot) => {
                    // What the map says, not anything of the packet.
                    self.registers.retain(|start, _| *start < slot);
                    self.put = true;
                    To::Registers(slot)
                }
                None => To::Nothing,
            },
        };
        let negated = data.u32(NFTA_LOOKUP_FLAGS)?.unwrap_or(0) & NFT_LOOKUP_F_INV != 0;
        self.steps.push(Step::Lookup { set: data.text(NFTA_LOOKUP_SET), key, negated, to });
        Ok(())
    }

    fn immediate(&mut self, data: &Attributes<'_>) -> Result<(), Malformed> {
        let register = data.u32(NFTA_IMMEDIATE_DREG)?;
        let value = data.nested(NFTA_IMMEDIATE_DATA)?;
        if register == Some(NFT_REG_VERDICT) {
            // What is left is "continue".
            if let Some(verdict) = value.get(NFTA_DATA_VERDICT)
                && let Ok(verdict) = verdict_of(verdict)?
            {
                self.steps.push(Step::Verdict(verdict));
            }
        } else if let (Some(slot), Some(bytes)) = (register.and_then(slot), value.get(NFTA_DATA_VALUE)) {
            self.load(register, bytes.len(), Load::Unknown);
            self.steps.push(Step::Put(slot, bytes.to_vec()));
            self.put = true;
        }
        Ok(())
    }
}

/// The fields of a header that are known, with where they begin. The network header's depend on the IP version.
const fn fields(family: Option<Family>, base: u32) -> &'static [(usize, Field)] {
    match (base, family) {
        (NFT_PAYLOAD_NETWORK_HEADER, Some(Family::V4)) => &[(9, Field::Protocol), (16, Field::Address(Family::V4))],
        (NFT_PAYLOAD_NETWORK_HEADER, Some(Family::V6)) => &[(6, Field::Protocol), (24, Field::Address(Family::V6))],
        (NFT_PAYLOAD_TRANSPORT_HEADER, _) => &[(2, Field::Port)],
        _ => &[],
    }
}

/// The values of a field whose bytes from `from` on are these where the mask has bits; `None` where that is no one range.
fn values(field: Field, from: usize, bytes: &[u8], mask: &[u8]) -> Option<RangeSet<u128>> {
    let mut wanted = [0; 16];
    let mut fixed = [0; 16];
    let size = field.size();
    let first = 16 - size + from;
    wanted.get_mut(first..first + bytes.len())?.copy_from_slice(bytes);
    fixed.get_mut(first..first + mask.len())?.copy_from_slice(mask);
    let all = u128::MAX >> (128 - 8 * size);
    let (wanted, open) = (u128::from_be_bytes(wanted), all & !u128::from_be_bytes(fixed));
    // The open bits have to be the last ones.
    (open & open.wrapping_add(1) == 0).then(|| RangeSet::range(wanted & !open, (wanted & !open) | open))
}

/// Bytes, largest first, as a number; those beyond 16 do not count.
fn number(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// The name in a comparison of interface names: as long as it is without a terminator, it is the beginning of others.
fn interface(bytes: &[u8]) -> String {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => String::from_utf8_lossy(&bytes[..end]).into_owned(),
        None => format!("{}*", String::from_utf8_lossy(bytes)),
    }
}

/// The registers of a first and a last value; without a last one it is the first.
fn operands(data: &Attributes<'_>, first: u16, last: u16) -> Result<Option<(Operand, Operand)>, Malformed> {
    let operand = |register: u32| slot(register).map_or(Operand::Unknown, Operand::Register);
    let first = data.u32(first)?.map(operand);
    let last = data.u32(last)?.map(operand);
    Ok(first.map(|first| (first.clone(), last.unwrap_or(first))))
}
