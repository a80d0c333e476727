//! From a captured frame to the IP packet in it: the link-layer headers of captures (<https://www.tcpdump.org/linktypes.html>).

use std::fmt;

/// What the frames of a capture begin with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LinkType {
    /// BSD loopback: an address family in four bytes, in the byte order of the machine that captured.
    Null,
    /// OpenBSD loopback: the same in network byte order.
    Loop,
    /// Ethernet, with any VLAN tags.
    Ethernet,
    /// An IP packet without anything before it.
    Raw,
    /// Linux "cooked" capture, as by `tcpdump -i any`.
    Cooked,
    /// The second version of that.
    Cooked2,
    /// IP over InfiniBand (RFC 4391).
    Ipoib,
}

impl LinkType {
    /// The type of this number in a capture file, if it can be read here.
    pub fn by_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Null),
            1 => Some(Self::Ethernet),
            // 12 and 14 are what some systems write for 101.
            12 | 14 | 101 | 228 | 229 => Some(Self::Raw),
            108 => Some(Self::Loop),
            113 => Some(Self::Cooked),
            242 => Some(Self::Ipoib),
            276 => Some(Self::Cooked2),
            _ => None,
        }
    }
}

/// What a frame carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Its VLAN tags that are not 0, outermost first. The kernel takes VLAN 0, which only says a priority, for no tag at all; any
    /// other frame arrives on the interface of its VLAN (`__netif_receive_skb_core`, net/core/dev.c).
    pub vlans: Vec<u16>,
    /// How the machine that captured saw it, if the capture says.
    pub seen: Option<Seen>,
    /// From the IP header on, with whatever the link added at the end.
    pub packet: &'a [u8],
    /// How many bytes came before that.
    pub before: usize,
}

/// How the machine that captured a frame saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It came in.
    Arriving,
    /// It went out.
    Leaving,
    /// It came in and was for somebody else (`PACKET_OTHERHOST`): the kernel drops it before any rule.
    ForOthers,
}

/// Why a frame has no IP packet for us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NoPacket {
    /// It ends in its own header.
    Short,
    /// It carries another protocol, by its EtherType.
    Ethertype(u16),
    /// It carries another protocol, by its length field or address family.
    Other,
}

impl fmt::Display for NoPacket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => formatter.write_str("the frame is not all there"),
            Self::Ethertype(0x0806) => formatter.write_str("ARP, not IP"),
            Self::Ethertype(0x8847 | 0x8848) => formatter.write_str("MPLS, not IP"),
            Self::Ethertype(0x8863 | 0x8864) => formatter.write_str("PPPoE, not IP"),
            Self::Ethertype(0x88cc) => formatter.write_str("LLDP, not IP"),
            Self::Ethertype(0x8915) => formatter.write_str("RoCE version 1, not IP"),
            Self::Ethertype(number) => write!(formatter, "EtherType {number:#06x}, not IP"),
            Self::Other => formatter.write_str("not IP"),
        }
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// The tags that the kernel takes off (`eth_type_vlan`, include/linux/if_vlan.h): 802.1Q and 802.1ad.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Smaller numbers in its place are the length of an 802.3 frame.
const SMALLEST_ETHERTYPE: u16 = 0x0600;
/// `PACKET_OTHERHOST` and `PACKET_OUTGOING` (linux/if_packet.h).
const OTHER_HOST: u16 = 3;
const OUTGOING: u16 = 4;

/// The IP packet in a frame.
///
/// # Errors
/// There is none: [`NoPacket`].
pub fn frame(link: LinkType, bytes: &[u8]) -> Result<Frame<'_>, NoPacket> {
    match link {
        LinkType::Raw => finish(bytes, 0, Vec::new(), None),
        LinkType::Null | LinkType::Loop => {
            let family: [u8; 4] = at(bytes, 0)?;
            let (big, little) = (u32::from_be_bytes(family), u32::from_le_bytes(family));
            // AF_INET is 2 everywhere, AF_INET6 another number on each system.
            if [big, little].iter().any(|family| matches!(family, 2 | 10 | 24 | 28 | 30)) {
                finish(bytes, 4, Vec::new(), None)
            } else {
                Err(NoPacket::Other)
            }
        }
        LinkType::Ethernet => tagged(bytes, 12, None),
        LinkType::Cooked => {
            let seen = seen(u16::from_be_bytes(at(bytes, 0)?));
            tagged(bytes, 14, Some(seen))
        }
        LinkType::Cooked2 => {
            let [kind] = at(bytes, 10)?;
            // The EtherType stands at the front.
            let ethertype = u16::from_be_bytes(at(bytes, 0)?);
            let (start, vlans) = untag(bytes, ethertype, 20)?;
            finish(bytes, start, vlans, Some(seen(u16::from(kind))))
        }
        LinkType::Ipoib => {
            // Four bytes, an EtherType and two zeros; Linux may put the hardware address of 20 bytes before them, and others a global
            // routing header of 40.
            let starts = |start: &usize| {
                let header = at::<4>(bytes, *start).ok();
                matches!(header, Some([0x08, 0x00, 0, 0] | [0x86, 0xdd, 0, 0]))
            };
            let start = [0, 20, 40].into_iter().find(starts).ok_or(NoPacket::Other)?;
            finish(bytes, start + 4, Vec::new(), None)
        }
    }
}

/// What follows an EtherType, behind any tags.
fn tagged(bytes: &[u8], start: usize, seen: Option<Seen>) -> Result<Frame<'_>, NoPacket> {
    let ethertype = u16::from_be_bytes(at(bytes, start)?);
    let (start, vlans) = untag(bytes, ethertype, start + 2)?;
    finish(bytes, start, vlans, seen)
}

/// Where the packet begins, and the tags before it.
fn untag(bytes: &[u8], ethertype: u16, start: usize) -> Result<(usize, Vec<u16>), NoPacket> {
    let (mut ethertype, mut start, mut vlans) = (ethertype, start, Vec::new());
    while TAGS.contains(&ethertype) {
        let [a, b, c, d] = at(bytes, start)?;
        let vlan = u16::from_be_bytes([a, b]) & 0x0fff;
        if vlan != 0 {
            vlans.push(vlan);
        }
        ethertype = u16::from_be_bytes([c, d]);
        start += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Ok((start, vlans)),
        length if length < SMALLEST_ETHERTYPE => Err(NoPacket::Other),
        other => Err(NoPacket::Ethertype(other)),
    }
}

fn seen(kind: u16) -> Seen {
    match kind {
        OTHER_HOST => Seen::ForOthers,
        OUTGOING => Seen::Leaving,
        _ => Seen::Arriving,
    }
}

fn finish(bytes: &[u8], before: usize, vlans: Vec<u16>, seen: Option<Seen>) -> Result<Frame<'_>, NoPacket> {
    let packet = bytes.get(before..).ok_or(NoPacket::Short)?;
    Ok(Frame { vlans, seen, packet, before })
}

fn at<const N: usize>(bytes: &[u8], start: usize) -> Result<[u8; N], NoPacket> {
    let found = start.checked_add(N).and_then(|end| bytes.get(start..end));
    found.and_then(|found| found.try_into().ok()).ok_or(NoPacket::Short)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn joined(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    const ADDRESSES: &[u8] = &[2; 12];
    const PACKET: &[u8] = &[0x45, 1, 2, 3];

    /// The packet's place, tags and direction.
    fn read(link: LinkType, bytes: &[u8]) -> Result<(usize, Vec<u16>, Option<Seen>), NoPacket> {
        frame(link, bytes).map(|frame| {
            assert_eq!(frame.packet, PACKET);
            (frame.before, frame.vlans, frame.seen)
        })
    }

    #[test]
    fn ethernet_with_and_without_tags() {
        let ethernet = |header: &[u8]| read(LinkType::Ethernet, &joined(&[ADDRESSES, header, PACKET]));
        assert_eq!(ethernet(&[8, 0]), Ok((14, vec![], None)));
        assert_eq!(ethernet(&[0x81, 0, 0xe0, 7, 8, 0]), Ok((18, vec![7], None)), "priority and VLAN 7");
        assert_eq!(ethernet(&[0x81, 0, 0xe0, 0, 0x86, 0xdd]), Ok((18, vec![], None)), "VLAN 0 is a priority only");
        assert_eq!(ethernet(&[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7, 8, 0]), Ok((22, vec![9, 7], None)));
        assert_eq!(ethernet(&[0x81, 0, 0, 0, 0x81, 0, 0, 7, 8, 0]), Ok((22, vec![7], None)));
        assert_eq!(ethernet(&[0x91, 0, 0, 7, 8, 0]), Err(NoPacket::Ethertype(0x9100)), "no tag that the kernel knows");
        assert_eq!(ethernet(&[8, 6]).unwrap_err().to_string(), "ARP, not IP");
        assert_eq!(ethernet(&[0, 38]), Err(NoPacket::Other), "802.3 with a length");
        assert_eq!(frame(LinkType::Ethernet, &joined(&[ADDRESSES, &[0x81, 0, 0]])), Err(NoPacket::Short));
        assert_eq!(frame(LinkType::Ethernet, &[]), Err(NoPacket::Short));
    }

    #[test]
    fn cooked_frames_say_which_way_they_go() {
        for (kind, expected) in [(0, Seen::Arriving), (1, Seen::Arriving), (3, Seen::ForOthers), (4, Seen::Leaving)] {
            let first = joined(&[&[0, kind, 0, 1, 0, 6], &[9; 8], &[8, 0], PACKET]);
            assert_eq!(read(LinkType::Cooked, &first), Ok((16, vec![], Some(expected))));
            let second = joined(&[&[8, 0, 0, 0, 0, 0, 0, 2, 0, 1, kind, 6], &[9; 8], PACKET]);
            assert_eq!(read(LinkType::Cooked2, &second), Ok((20, vec![], Some(expected))));
        }
        let tagged = joined(&[&[0x81, 0, 0, 0, 0, 0, 0, 2, 0, 1, 4, 6], &[9; 8], &[0, 5, 8, 0], PACKET]);
        assert_eq!(read(LinkType::Cooked2, &tagged), Ok((24, vec![5], Some(Seen::Leaving))));
    }

    #[test]
    fn others() {
        assert_eq!(read(LinkType::Raw, PACKET), Ok((0, vec![], None)));
        for family in [[2, 0, 0, 0], [0, 0, 0, 2], [30, 0, 0, 0], [0, 0, 0, 10]] {
            assert_eq!(read(LinkType::Null, &joined(&[&family, PACKET])), Ok((4, vec![], None)));
        }
        assert_eq!(read(LinkType::Loop, &joined(&[&[0, 0, 0, 7], PACKET])), Err(NoPacket::Other));
        for before in [0, 20, 40] {
            let bytes = joined(&[&vec![0xff; before], &[8, 0, 0, 0], PACKET]);
            assert_eq!(read(LinkType::Ipoib, &bytes), Ok((before + 4, vec![], None)));
        }
        assert_eq!(read(LinkType::Ipoib, &joined(&[&[8, 6, 0, 0], PACKET])), Err(NoPacket::Other));
        for number in [0, 1, 12, 101, 108, 113, 228, 229, 242, 276] {
            assert!(LinkType::by_number(number).is_some());
        }
        assert_eq!(LinkType::by_number(247), None, "InfiniBand without IP over it");
    }
}
