//! Netlink messages and attributes as they come, one after the other; what is cut short ends the walk.

use netlink_packet_core::NlasIterator;

/// Bytes of `struct nlmsghdr` (netlink(7)): length, type, flags, sequence, port.
pub(super) const HEADER_BYTES: usize = 16;

/// One message of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// The type.
    pub kind: u16,
    /// The flags.
    pub flags: u16,
    /// The sequence number.
    pub sequence: u32,
    /// What comes after the header.
    pub payload: &'a [u8],
}

/// The messages of a datagram, as far as they are whole.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<HEADER_BYTES>()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let payload = rest.get(HEADER_BYTES..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = word(8);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, payload })
    })
}

/// The attributes of one level.
#[derive(Clone, Default)]
pub(super) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        // The iterator knows where an attribute begins and ends; the value's bytes are taken from ours.
        let mut at = 0;
        let attributes = NlasIterator::new(bytes).map_while(|attribute| {
            let attribute = attribute.ok()?;
            let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
            let value = bytes.get(at + 4..at + length)?;
            at += length.next_multiple_of(4);
            Some((kind, value))
        });
        Self(attributes.collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.0.iter().copied()
    }

    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(known, _)| *known == kind).map(|(_, value)| *value)
    }

    pub(super) fn u8(&self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    pub(super) fn u16(&self, kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    pub(super) fn u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_ne_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A string without its terminator.
    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        let value = self.get(kind)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        std::str::from_utf8(&value[..end]).ok()
    }
}

/// An attribute with its padding, for a request.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Values of requests are names and numbers.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A message, for a request.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_ends_the_walk_and_what_came_before_counts() {
        let whole =
            [message(7, 2, 9, &attribute(3, b"abc\0")), message(8, 0, 9, &attribute(4, &5u32.to_ne_bytes()))].concat();
        let found: Vec<Message<'_>> = messages(&whole).collect();
        assert_eq!(
            found.iter().map(|message| (message.kind, message.flags, message.sequence)).collect::<Vec<_>>(),
            [(7, 2, 9), (8, 0, 9)]
        );
        assert_eq!(Attributes::of(found[0].payload).text(3), Some("abc"));
        assert_eq!(Attributes::of(found[1].payload).u32(4), Some(5));
        assert_eq!(Attributes::of(found[1].payload).u16(4), None, "another width");
        for end in 0..whole.len() {
            assert_eq!(messages(&whole[..end]).count(), usize::from(end >= 24), "{end}");
        }
        assert_eq!(Attributes::of(&[3, 0, 1, 0]).iter().count(), 0, "shorter than its header");
    }
}
