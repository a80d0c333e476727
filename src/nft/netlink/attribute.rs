//! Netlink attributes: type, length and value, aligned to four bytes (include/uapi/linux/netlink.h `struct nlattr`).

use super::constant::NLA_TYPE_MASK;

/// Bytes that are not netlink as the kernel writes it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// The nested flag of an attribute's type (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;

/// Appends attributes to a message.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    /// An attribute with a plain value. A value never comes near the 64 KiB that a length can say: element lists are
    /// chunked, and everything else is small.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
    }

    pub(super) fn put_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string with its terminator.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) {
        let mut value = Vec::with_capacity(text.len() + 1);
        value.extend_from_slice(text.as_bytes());
        value.push(0);
        self.put(kind, &value);
    }

    /// An attribute that holds attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Reads attributes one after the other.
#[derive(Clone)]
pub(super) struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        // Fewer bytes than a header are padding: the kernel aligns, and so do we.
        let (header, _) = self.0.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let bytes = std::mem::take(&mut self.0);
        let Some(value) = bytes.get(4..length) else {
            return Some(Err(Malformed::new(format!("attribute {kind} of {length} bytes in {}", bytes.len()))));
        };
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((kind, value)))
    }
}

/// The attributes of one level; of an attribute that comes twice, the last.
pub(super) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Walk::new(bytes).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().rev().find(|(known, _)| *known == kind).map(|(_, value)| *value)
    }

    pub(super) fn need(&self, kind: u16) -> Result<&'a [u8], Malformed> {
        self.get(kind).ok_or_else(|| Malformed::new(format!("attribute {kind} is missing")))
    }

    pub(super) fn u32(&self, kind: u16) -> Result<Option<u32>, Malformed> {
        self.get(kind).map(|value| number(kind, value).map(u32::from_be_bytes)).transpose()
    }

    pub(super) fn u16(&self, kind: u16) -> Result<Option<u16>, Malformed> {
        self.get(kind).map(|value| number(kind, value).map(u16::from_be_bytes)).transpose()
    }

    pub(super) fn u64(&self, kind: u16) -> Result<Option<u64>, Malformed> {
        self.get(kind).map(|value| number(kind, value).map(u64::from_be_bytes)).transpose()
    }

    /// A value of exactly this many bytes, which must be there.
    pub(super) fn bytes<const N: usize>(&self, kind: u16) -> Result<[u8; N], Malformed> {
        number(kind, self.need(kind)?)
    }

    /// A string without its terminator; empty when it is not there.
    pub(super) fn text(&self, kind: u16) -> String {
        self.get(kind).map(text).unwrap_or_default()
    }

    /// The attributes inside one; none when it is not there.
    pub(super) fn nested(&self, kind: u16) -> Result<Self, Malformed> {
        Self::parse(self.get(kind).unwrap_or_default())
    }
}

/// A string without its terminator.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn number<const N: usize>(kind: u16, value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| Malformed::new(format!("attribute {kind} has {} bytes instead of {N}", value.len())))
}
