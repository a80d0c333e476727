//! Sets and their elements, to attributes and back.

use super::attribute::{Attributes, Malformed, Walk, Writer};
use super::constant::*;
use super::expression::{data_verdict, verdict_of};
use crate::nft::TABLE_NAME;
use crate::nft::ir::{Dynamic, ElementKey, Elements, Set, Verdict};
use crate::nft::key::{DataType, Datum};

/// What a set is, without what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape<'a> {
    pub(super) key: &'a [DataType],
    pub(super) interval: bool,
    pub(super) map: bool,
    pub(super) dynamic: Option<Dynamic>,
}

impl<'a> Shape<'a> {
    pub(super) fn of(set: &'a Set) -> Self {
        Self { key: &set.key, interval: set.interval, map: set.map, dynamic: set.dynamic }
    }

    /// The bytes of one value as the set keeps them. One with ranges is ordered by its bytes, so that they have to come largest first:
    /// nft turns around what the kernel has otherwise, in the set and, by a `byteorder` expression, before the lookup.
    fn to_wire(&self, data_type: DataType, bytes: &[u8]) -> Vec<u8> {
        if self.interval { bytes.to_vec() } else { to_wire(data_type, bytes) }
    }

    fn concatenated(&self) -> bool {
        self.key.len() > 1
    }
}

/// The size that a field takes in registers: whole ones of four bytes.
pub(super) fn padded(data_type: DataType) -> usize {
    data_type.size().next_multiple_of(4)
}

/// The bytes of one value as the kernel keeps them.
pub(super) fn to_wire(data_type: DataType, bytes: &[u8]) -> Vec<u8> {
    let mut wire = bytes.to_vec();
    if data_type.host_order() && cfg!(target_endian = "little") {
        wire.reverse();
    }
    wire
}

/// A value from the bytes that the kernel keeps.
pub(super) fn from_wire(data_type: DataType, bytes: &[u8]) -> Datum {
    Datum::new(&to_wire(data_type, bytes))
}

/// One NEWSET message's attributes. `id` names an anonymous set inside its batch; the kernel fills in its `%d`.
pub(super) fn put_set(writer: &mut Writer, name: &str, shape: &Shape<'_>, id: u32, anonymous: Option<usize>) {
    let mut flags = 0;
    flags |= if anonymous.is_some() { NFT_SET_ANONYMOUS | NFT_SET_CONSTANT } else { 0 };
    flags |= if shape.interval { NFT_SET_INTERVAL } else { 0 };
    flags |= if shape.map { NFT_SET_MAP } else { 0 };
    flags |= if shape.dynamic.is_some() { NFT_SET_EVAL | NFT_SET_TIMEOUT } else { 0 };
    // Without this flag the kernel takes an interval set of several fields for one of a single long field.
    let described = shape.interval && shape.concatenated();
    flags |= if described { NFT_SET_CONCAT } else { 0 };
    writer.put_text(NFTA_SET_TABLE, TABLE_NAME);
    writer.put_text(NFTA_SET_NAME, name);
    writer.put_u32(NFTA_SET_FLAGS, flags);
    writer.put_u32(NFTA_SET_KEY_TYPE, shape.key.iter().fold(0, |id, part| id << TYPE_BITS | part.id()));
    let length: usize =
        if let [single] = shape.key { single.size() } else { shape.key.iter().map(|part| padded(*part)).sum() };
    writer.put_u32(NFTA_SET_KEY_LEN, length as u32);
    if shape.map {
        writer.put_u32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT);
        writer.put_u32(NFTA_SET_DATA_LEN, 0);
    }
    writer.put_u32(NFTA_SET_ID, id);
    if described || anonymous.is_some() || shape.dynamic.is_some() {
        writer.nest(NFTA_SET_DESC, |desc| {
            if let Some(dynamic) = shape.dynamic {
                desc.put_u32(NFTA_SET_DESC_SIZE, dynamic.size);
            }
            if let Some(count) = anonymous {
                // A range of a single field is two elements, its start and its end.
                let size = if shape.interval && !shape.concatenated() { 2 * count + 1 } else { count };
                desc.put_u32(NFTA_SET_DESC_SIZE, size as u32);
            }
            if described {
                desc.nest(NFTA_SET_DESC_CONCAT, |fields| {
                    for part in shape.key {
                        fields.nest(NFTA_LIST_ELEM, |field| field.put_u32(NFTA_SET_FIELD_LEN, part.size() as u32));
                    }
                });
            }
        });
    }
    if let Some(dynamic) = shape.dynamic {
        writer.put_u64(NFTA_SET_TIMEOUT, u64::from(dynamic.timeout) * MILLISECONDS);
    }
    if let [single] = shape.key {
        // nft prints the elements of a set by this note.
        // Names are strings to nft, which it keeps in host order.
        let host = single.host_order() || *single == DataType::Ifname;
        let order = if host { BYTEORDER_HOST_ENDIAN } else { BYTEORDER_BIG_ENDIAN };
        writer.put(NFTA_SET_USERDATA, &note(NFTNL_UDATA_SET_KEYBYTEORDER, order));
    }
}

/// In a second: the kernel counts timeouts in them.
const MILLISECONDS: u64 = 1000;

/// The bits that each type takes in the type of a concatenation (nft, include/datatype.h `TYPE_BITS`).
const TYPE_BITS: u32 = 6;

/// A number in nft's userdata: type, length, value in host order.
fn note(kind: u8, value: u32) -> Vec<u8> {
    let mut bytes = vec![kind, 4];
    bytes.extend_from_slice(&value.to_ne_bytes());
    bytes
}

/// One element as the kernel takes it.
enum Wire {
    /// A value, the start of a range of a single field, or a range of several fields.
    Element { key: Vec<u8>, end: Option<Vec<u8>>, verdict: Option<Verdict>, open: bool },
    /// The first value after a range of a single field.
    End(Vec<u8>),
}

/// Calls `put` with runs of elements, each small enough for one message: the length of an attribute has 16 bits.
pub(super) fn chunks(shape: &Shape<'_>, elements: &Elements, mut put: impl FnMut(&[u8])) {
    let mut list = Writer::default();
    let mut count = 0;
    for_each(shape, elements, |wires| {
        for wire in wires {
            put_element(&mut list, wire);
        }
        count += 1;
        if count == CHUNK_INTERVALS || list.bytes.len() > CHUNK_BYTES {
            put(&list.bytes);
            list.bytes.clear();
            count = 0;
        }
    });
    if count > 0 {
        put(&list.bytes);
    }
}

/// Intervals in one NEWSETELEM message.
const CHUNK_INTERVALS: usize = 1600;
/// Bytes after which a message is full; one more element of the largest kind still fits into 64 KiB.
const CHUNK_BYTES: usize = 60_000;

fn for_each(shape: &Shape<'_>, elements: &Elements, mut each: impl FnMut(&[Wire])) {
    match elements {
        Elements::V4(ranges) => {
            for (start, end) in ranges.ranges() {
                let after = end.checked_add(1).map(|after| after.to_be_bytes().to_vec());
                each(&span(shape, start.to_be_bytes().to_vec(), after, start == end, None));
            }
        }
        Elements::V6(ranges) => {
            for (start, end) in ranges.ranges() {
                let after = end.checked_add(1).map(|after| after.to_be_bytes().to_vec());
                each(&span(shape, start.to_be_bytes().to_vec(), after, start == end, None));
            }
        }
        Elements::Keys(keys) => {
            for (key, verdict) in keys {
                if let ([data_type], [(start, end)]) = (shape.key, key.0.as_slice()) {
                    let after = after(end).map(|after| shape.to_wire(*data_type, after.bytes()));
                    each(&span(shape, shape.to_wire(*data_type, start.bytes()), after, start == end, verdict.clone()));
                } else {
                    let mut from = Vec::new();
                    let mut to = Vec::new();
                    for (data_type, (start, end)) in shape.key.iter().zip(&key.0) {
                        from.extend(shape.to_wire(*data_type, start.bytes()));
                        from.resize(from.len().next_multiple_of(4), 0);
                        to.extend(shape.to_wire(*data_type, end.bytes()));
                        to.resize(to.len().next_multiple_of(4), 0);
                    }
                    let end = (shape.interval || from != to).then_some(to);
                    each(&[Wire::Element { key: from, end, verdict: verdict.clone(), open: false }]);
                }
            }
        }
    }
}

/// A value or a range of a single field. The kernel keeps a range as its start and the first value after it; nothing
/// comes after a range that ends at the largest value.
fn span(
    shape: &Shape<'_>,
    start: Vec<u8>,
    after: Option<Vec<u8>>,
    single: bool,
    verdict: Option<Verdict>,
) -> Vec<Wire> {
    if !shape.interval && single {
        return vec![Wire::Element { key: start, end: None, verdict, open: false }];
    }
    let mut wires = vec![Wire::Element { key: start, end: None, verdict, open: after.is_none() }];
    wires.extend(after.map(Wire::End));
    wires
}

/// The value after this one, as a big-endian number; `None` after the largest.
fn after(datum: &Datum) -> Option<Datum> {
    let size = datum.bytes().len();
    let next = datum.number().checked_add(1)?;
    (size == 16 || next >> (8 * size) == 0).then(|| Datum::from_number(next, size))
}

fn before(datum: &Datum) -> Option<Datum> {
    Some(Datum::from_number(datum.number().checked_sub(1)?, datum.bytes().len()))
}

fn put_element(list: &mut Writer, wire: &Wire) {
    list.nest(NFTA_LIST_ELEM, |element| match wire {
        Wire::Element { key, end, verdict, open } => {
            element.nest(NFTA_SET_ELEM_KEY, |data| data.put(NFTA_DATA_VALUE, key));
            if let Some(end) = end {
                element.nest(NFTA_SET_ELEM_KEY_END, |data| data.put(NFTA_DATA_VALUE, end));
            }
            if let Some(verdict) = verdict {
                element.nest(NFTA_SET_ELEM_DATA, |data| data_verdict(data, verdict));
            }
            if *open {
                element.put(NFTA_SET_ELEM_USERDATA, &note(NFTNL_UDATA_SET_ELEM_FLAGS, NFTNL_SET_ELEM_F_INTERVAL_OPEN));
            }
        }
        Wire::End(key) => {
            element.put_u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            element.nest(NFTA_SET_ELEM_KEY, |data| data.put(NFTA_DATA_VALUE, key));
        }
    });
}

/// The attributes of one element list (the inside of `NFTA_SET_ELEM_LIST_ELEMENTS`).
pub(super) fn put_list(writer: &mut Writer, name: &str, id: Option<u32>, list: &[u8]) {
    writer.put_text(NFTA_SET_ELEM_LIST_TABLE, TABLE_NAME);
    writer.put_text(NFTA_SET_ELEM_LIST_SET, name);
    if let Some(id) = id {
        writer.put_u32(NFTA_SET_ELEM_LIST_SET_ID, id);
    }
    writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |elements| elements.bytes.extend_from_slice(list));
}

/// A set as it was read.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) name: String,
    pub(super) anonymous: bool,
    /// Whether it has ranges.
    pub(super) interval: bool,
    /// What it is; `Err` in words for one that the IR cannot say.
    pub(super) set: Result<Set, String>,
}

/// Reads a NEWSET message.
pub(super) fn read_set(attributes: &Attributes<'_>) -> Result<Read, Malformed> {
    let name = attributes.text(NFTA_SET_NAME);
    let flags = attributes.u32(NFTA_SET_FLAGS)?.unwrap_or(0);
    let type_id = attributes.u32(NFTA_SET_KEY_TYPE)?.unwrap_or(0);
    let length = attributes.u32(NFTA_SET_KEY_LEN)?.unwrap_or(0) as usize;
    let data_type = attributes.u32(NFTA_SET_DATA_TYPE)?;
    let known = NFT_SET_ANONYMOUS
        | NFT_SET_CONSTANT
        | NFT_SET_INTERVAL
        | NFT_SET_MAP
        | NFT_SET_CONCAT
        | NFT_SET_TIMEOUT
        | NFT_SET_EVAL;
    let anonymous = flags & NFT_SET_ANONYMOUS != 0;
    let map = flags & NFT_SET_MAP != 0;
    let interval = flags & NFT_SET_INTERVAL != 0;
    let dynamic = dynamic(flags, anonymous, attributes)?;
    let set = match key_types(type_id) {
        _ if flags & !known != 0 => Err(format!("set {name} with flags {:#x}", flags & !known)),
        _ if flags & NFT_SET_CONSTANT != 0 && !anonymous => Err(format!("constant set {name}")),
        _ if dynamic.is_err() => Err(format!("set {name} with limits of its own or filled otherwise than ours")),
        _ if map && data_type != Some(NFT_DATA_VERDICT) => Err(format!("map {name} to something else than verdicts")),
        None => Err(format!("set {name} of type {type_id}")),
        Some(key) => {
            let single = key.len() == 1;
            let size: usize = key.iter().map(|part| if single { part.size() } else { padded(*part) }).sum();
            if size == length {
                Ok(Set { elements: empty(&key, map), key, interval, map, dynamic: dynamic.unwrap_or(None) })
            } else {
                Err(format!("set {name} with keys of {length} bytes"))
            }
        }
    };
    Ok(Read { name, anonymous, interval, set })
}

/// What makes a set dynamic, if it is; `Err` for what the IR has no words for.
fn dynamic(flags: u32, anonymous: bool, attributes: &Attributes<'_>) -> Result<Result<Option<Dynamic>, ()>, Malformed> {
    let timeout = attributes.u64(NFTA_SET_TIMEOUT)?.unwrap_or(0);
    let size = attributes.nested(NFTA_SET_DESC)?.u32(NFTA_SET_DESC_SIZE)?;
    let sweeps = attributes.u32(NFTA_SET_GC_INTERVAL)?.unwrap_or(0);
    if sweeps != 0 || attributes.get(NFTA_SET_EXPR).or(attributes.get(NFTA_SET_EXPRESSIONS)).is_some() {
        return Ok(Err(()));
    }
    // How many elements an anonymous set has is known to the kernel, and of no use to us.
    Ok(match (flags & !NFT_SET_CONCAT, size) {
        (flags, size) if flags & (NFT_SET_TIMEOUT | NFT_SET_EVAL) == 0 => {
            if timeout == 0 && (anonymous || size.is_none()) { Ok(None) } else { Err(()) }
        }
        (flags, Some(size)) if flags == NFT_SET_TIMEOUT | NFT_SET_EVAL && timeout % MILLISECONDS == 0 => {
            let timeout = u32::try_from(timeout / MILLISECONDS).ok().filter(|timeout| *timeout > 0);
            timeout.map(|timeout| Some(Dynamic { timeout, size })).ok_or(())
        }
        _ => Err(()),
    })
}

/// No elements, in the kind that a set of this shape has.
fn empty(key: &[DataType], map: bool) -> Elements {
    match key {
        [DataType::Ipv4Addr] if !map => Elements::V4(Default::default()),
        [DataType::Ipv6Addr] if !map => Elements::V6(Default::default()),
        _ => Elements::Keys(Default::default()),
    }
}

fn key_types(mut id: u32) -> Option<Vec<DataType>> {
    let mut types = Vec::new();
    while id != 0 {
        let low = id & ((1 << TYPE_BITS) - 1);
        types.push(*DataType::ALL.iter().find(|data_type| data_type.id() == low)?);
        id >>= TYPE_BITS;
    }
    types.reverse();
    (!types.is_empty()).then_some(types)
}

/// The elements of one set as they come in, in any number of messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathered {
    raw: Vec<Raw>,
    /// What the IR cannot say about them.
    pub(super) foreign: Vec<String>,
}

#[derive(Clone, Debug)]
struct Raw {
    key: Bytes,
    key_end: Option<Box<[u8]>>,
    end: bool,
    verdict: Option<Box<Verdict>>,
}

/// A key in little room: a set of 100,000 ranges comes as twice as many elements, and few keys are longer than an address.
#[derive(Clone, Debug)]
enum Bytes {
    Short(Datum),
    Long(Box<[u8]>),
}

impl Bytes {
    fn of(bytes: &[u8]) -> Self {
        if bytes.len() <= 16 { Self::Short(Datum::new(bytes)) } else { Self::Long(bytes.into()) }
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::Short(datum) => datum.bytes(),
            Self::Long(bytes) => bytes,
        }
    }
}

impl Gathered {
    /// Reads the element list of a NEWSETELEM message.
    pub(super) fn read(&mut self, list: &[u8]) -> Result<(), Malformed> {
        for element in Walk::new(list) {
            let (_, element) = element?;
            let element = Attributes::parse(element)?;
            let flags = element.u32(NFTA_SET_ELEM_FLAGS)?.unwrap_or(0);
            if flags & !NFT_SET_ELEM_INTERVAL_END != 0 {
                self.foreign.push("a catch-all element".to_owned());
                continue;
            }
            for (kind, words) in [
                (NFTA_SET_ELEM_TIMEOUT, "an element with a timeout"),
                (NFTA_SET_ELEM_EXPR, "an element with a statement"),
                (NFTA_SET_ELEM_EXPRESSIONS, "an element with statements"),
            ] {
                if element.get(kind).is_some() {
                    self.foreign.push(words.to_owned());
                }
            }
            let key = element.nested(NFTA_SET_ELEM_KEY)?.need(NFTA_DATA_VALUE)?;
            let key_end = match element.get(NFTA_SET_ELEM_KEY_END) {
                Some(data) => Some(Attributes::parse(data)?.need(NFTA_DATA_VALUE)?.into()),
                None => None,
            };
            let mut verdict = None;
            if let Some(data) = element.nested(NFTA_SET_ELEM_DATA)?.get(NFTA_DATA_VERDICT) {
                match verdict_of(data)? {
                    Ok(read) => verdict = Some(read),
                    Err(words) => self.foreign.push(words),
                }
            }
            let (key, verdict) = (Bytes::of(key), verdict.map(Box::new));
            self.raw.push(Raw { key, key_end, end: flags & NFT_SET_ELEM_INTERVAL_END != 0, verdict });
        }
        Ok(())
    }

    /// The elements of a set of this shape, and in words what they have that the IR cannot say.
    pub(super) fn finish(mut self, set: &Set) -> Result<(Elements, Vec<String>), Malformed> {
        let length = |raw: &Raw| raw.key_end.as_ref().is_none_or(|end| end.len() == raw.key.get().len());
        let size: usize =
            if let [single] = *set.key { single.size() } else { set.key.iter().map(|part| padded(*part)).sum() };
        if !self.raw.iter().all(|raw| raw.key.get().len() == size && length(raw)) {
            return Err(Malformed::new("an element's key has another length than its set's"));
        }
        let [data_type] = *set.key else {
            let keys = self.raw.iter().map(|raw| {
                let fields = fields(set, raw.key.get());
                let ends = raw.key_end.as_deref().map_or_else(|| fields.clone(), |end| self::fields(set, end));
                (ElementKey(fields.into_iter().zip(ends).collect()), raw.verdict.as_deref().cloned())
            });
            return Ok((Elements::Keys(keys.collect()), self.foreign));
        };
        if self.raw.iter().any(|raw| raw.key_end.is_some()) {
            self.foreign.push("a range in one element".to_owned());
        }
        let mut spans: Vec<(Datum, Datum, Option<Verdict>)> = Vec::with_capacity(self.raw.len());
        if set.interval {
            // The kernel walks a tree whose order is its own; at one value, the end of a range comes before a start.
            self.raw.sort_unstable_by(|a, b| (a.key.get(), !a.end).cmp(&(b.key.get(), !b.end)));
            let mut open: Option<(Datum, Option<Verdict>)> = None;
            for raw in self.raw {
                let value = Datum::new(raw.key.get());
                if let Some((start, verdict)) = open.take() {
                    // A start without an end before it: nft leaves an end out where the next range follows at once.
                    let Some(end) = before(&value) else {
                        return Err(Malformed::new("a range that ends before the smallest value"));
                    };
                    spans.push((start, end, verdict));
                }
                if !raw.end {
                    open = Some((value, raw.verdict.map(|verdict| *verdict)));
                }
            }
            if let Some((start, verdict)) = open {
                spans.push((start, Datum::new(&[0xff; 16][..start.bytes().len()]), verdict));
            }
        } else {
            for raw in self.raw {
                let value = from_wire(data_type, raw.key.get());
                spans.push((value, value, raw.verdict.map(|verdict| *verdict)));
            }
        }
        let elements = match (data_type, set.map) {
            (DataType::Ipv4Addr, false) => {
                let count = spans.len();
                let ranges: crate::net::range::RangeSet<u32> =
                    spans.iter().map(|(start, end, _)| (start.number() as u32, end.number() as u32)).collect();
                if set.interval && ranges.ranges().len() != count {
                    self.foreign.push("ranges that touch".to_owned());
                }
                Elements::V4(ranges)
            }
            (DataType::Ipv6Addr, false) => {
                let count = spans.len();
                let ranges: crate::net::range::RangeSet<u128> =
                    spans.iter().map(|(start, end, _)| (start.number(), end.number())).collect();
                if set.interval && ranges.ranges().len() != count {
                    self.foreign.push("ranges that touch".to_owned());
                }
                Elements::V6(ranges)
            }
            _ => Elements::Keys(
                spans.into_iter().map(|(start, end, verdict)| (ElementKey(vec![(start, end)]), verdict)).collect(),
            ),
        };
        Ok((elements, self.foreign))
    }
}

/// The fields of a concatenated key; its length was checked.
fn fields(set: &Set, mut key: &[u8]) -> Vec<Datum> {
    let mut fields = Vec::with_capacity(set.key.len());
    for data_type in &set.key {
        let (field, rest) = key.split_at_checked(padded(*data_type)).unwrap_or((key, &[]));
        fields.push(Datum::new(&Shape::of(set).to_wire(*data_type, &field[..data_type.size().min(field.len())])));
        key = rest;
    }
    fields
}
