//! Capture files byte by byte: what is read of them, whole, cut off and damaged.

#![allow(clippy::unwrap_used)]

use std::io::Write;

use proptest::prelude::*;

use super::*;

/// Frames with their link type, length on the wire and direction; then how reading ended.
type Frames = (Vec<(LinkType, Vec<u8>, usize, Option<Seen>)>, Result<(), String>);

fn read_bytes(bytes: &[u8]) -> Frames {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let mut frames = Vec::new();
    let end = read(file.path(), &mut |captured| {
        frames.push((captured.link, captured.bytes.to_vec(), captured.length, captured.seen));
        true
    });
    (frames, end.map_err(|error| error.to_string()))
}

/// Numbers in the byte order of the machine that captured.
#[derive(Clone, Copy)]
struct Order {
    big: bool,
}

impl Order {
    fn u16(self, number: u16) -> Vec<u8> {
        if self.big { number.to_be_bytes().to_vec() } else { number.to_le_bytes().to_vec() }
    }

    fn u32(self, number: u32) -> Vec<u8> {
        if self.big { number.to_be_bytes().to_vec() } else { number.to_le_bytes().to_vec() }
    }

    fn pcap(self, magic: u32, link: u32, packets: &[(&[u8], u32)]) -> Vec<u8> {
        let mut bytes =
            [self.u32(magic), self.u16(2), self.u16(4), self.u32(0), self.u32(0), self.u32(65_535), self.u32(link)]
                .concat();
        for (packet, length) in packets {
            let captured = u32::try_from(packet.len()).unwrap();
            bytes.extend([self.u32(1), self.u32(2), self.u32(captured), self.u32(*length)].concat());
            bytes.extend_from_slice(packet);
        }
        bytes
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let length = self.u32(u32::try_from(padded + 12).unwrap());
        let mut body = body.to_vec();
        body.resize(padded, 0);
        [self.u32(kind), length.clone(), body, length].concat()
    }

    fn section(self) -> Vec<u8> {
        let body = [self.u32(0x1a2b_3c4d), self.u16(1), self.u16(0), vec![0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body)
    }

    fn interface(self, link: u16) -> Vec<u8> {
        self.block(1, &[self.u16(link), self.u16(0), self.u32(0)].concat())
    }

    fn enhanced(self, interface: u32, packet: &[u8], length: u32, flags: Option<u32>) -> Vec<u8> {
        let captured = u32::try_from(packet.len()).unwrap();
        let mut body = [self.u32(interface), self.u32(0), self.u32(0), self.u32(captured), self.u32(length)].concat();
        body.extend_from_slice(packet);
        body.resize(20 + packet.len().next_multiple_of(4), 0);
        if let Some(flags) = flags {
            body.extend([self.u16(2), self.u16(4), self.u32(flags), self.u16(0), self.u16(0)].concat());
        }
        self.block(6, &body)
    }
}

const ORDERS: [Order; 2] = [Order { big: true }, Order { big: false }];
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;

#[test]
fn pcap_of_either_byte_order_and_resolution() {
    for order in ORDERS {
        for magic in [MICROSECONDS, NANOSECONDS] {
            let (frames, end) = read_bytes(&order.pcap(magic, 1, &[(b"one", 3), (b"two!", 60)]));
            assert_eq!(end, Ok(()));
            let ethernet = LinkType::Ethernet;
            assert_eq!(frames, [(ethernet, b"one".to_vec(), 3, None), (ethernet, b"two!".to_vec(), 60, None)]);
        }
        let (frames, end) = read_bytes(&order.pcap(MICROSECONDS, 1, &[]));
        assert_eq!((frames.len(), end), (0, Ok(())));
        // The length of a frame check sequence stands in the upper bits.
        assert_eq!(read_bytes(&order.pcap(MICROSECONDS, 0x2400_0001, &[(b"x", 1)])).0.len(), 1);
    }
}

#[test]
fn pcapng_with_several_interfaces_and_sections() {
    for order in ORDERS {
        let other = Order { big: !order.big };
        let bytes = [
            order.section(),
            order.interface(1),
            order.interface(101),
            order.enhanced(1, b"raw", 3, Some(0b01)),
            order.block(5, &[0; 12]),
            order.enhanced(0, b"frame", 90, Some(0b10)),
            order.enhanced(0, b"none", 4, None),
            order.block(3, &[order.u32(3), b"spb".to_vec()].concat()),
            other.section(),
            other.interface(113),
            other.enhanced(0, b"cooked", 6, Some(0b10)),
        ];
        let (frames, end) = read_bytes(&bytes.concat());
        assert_eq!(end, Ok(()));
        let expected = [
            (LinkType::Raw, b"raw".to_vec(), 3, Some(Seen::Arriving)),
            (LinkType::Ethernet, b"frame".to_vec(), 90, Some(Seen::Leaving)),
            (LinkType::Ethernet, b"none".to_vec(), 4, None),
            (LinkType::Ethernet, b"spb".to_vec(), 3, None),
            (LinkType::Cooked, b"cooked".to_vec(), 6, Some(Seen::Leaving)),
        ];
        assert_eq!(frames, expected);
    }
}

#[test]
fn what_is_no_capture_or_is_damaged_says_so_after_what_could_be_read() {
    let order = Order { big: false };
    for text in [&b""[..], b"x", b"[[policy]]\nname = \"p\"\n", &[0; 100]] {
        let (frames, end) = read_bytes(text);
        assert_eq!((frames.len(), end.unwrap_err().as_str()), (0, "neither pcap nor pcapng"));
    }
    let whole = order.pcap(MICROSECONDS, 1, &[(b"one", 3), (b"two", 3)]);
    for length in 24..whole.len() {
        let (frames, end) = read_bytes(&whole[..length]);
        match length {
            24 => assert_eq!((frames.len(), end), (0, Ok(()))),
            43 => assert_eq!((frames.len(), end), (1, Ok(()))),
            _ => {
                assert_eq!(frames.len(), usize::from(length > 43), "{length}");
                assert_eq!(end.unwrap_err(), "the file ends in the middle of a packet", "{length}");
            }
        }
    }
    let mut damaged = whole.clone();
    damaged[43 + 8..43 + 12].fill(0xff);
    let (frames, end) = read_bytes(&[damaged, vec![0; 40 << 20]].concat());
    assert_eq!((frames.len(), end.unwrap_err().as_str()), (1, "damaged after packet 1"));
    let (_, end) = read_bytes(&order.pcap(MICROSECONDS, 147, &[(b"x", 1)]));
    assert!(end.unwrap_err().starts_with("link type 147 is not supported; Ethernet"));
    let nobody = [order.section(), order.enhanced(0, b"raw", 3, None)].concat();
    assert_eq!(read_bytes(&nobody).1.unwrap_err(), "damaged after packet 0");
    let missing = read(Path::new("/nonexistent/file"), &mut |_| true).unwrap_err();
    assert!(matches!(missing, Error::Read(error) if error.kind() == io::ErrorKind::NotFound));
    assert!(matches!(read(Path::new("/"), &mut |_| true), Err(Error::Read(_))));
}

#[test]
fn large_packets_and_many_of_them_are_read_in_little_memory() {
    let order = Order { big: false };
    let large = vec![7; 600_000];
    let small = vec![8; 1000];
    let mut packets: Vec<(&[u8], u32)> = vec![(&small, 1000); 1500];
    packets[700] = (&large, 600_000);
    let (frames, end) = read_bytes(&order.pcap(MICROSECONDS, 101, &packets));
    assert_eq!((frames.len(), end), (1500, Ok(())));
    assert_eq!(frames[700].1, large);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&order.pcap(MICROSECONDS, 101, &packets)).unwrap();
    let mut seen = 0;
    read(file.path(), &mut |_| {
        seen += 1;
        seen < 3
    })
    .unwrap();
    assert_eq!(seen, 3, "no more than somebody wants");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_file_holds_reading_ends(
        big in any::<bool>(), ng in any::<bool>(), at in 0..200usize, with in prop::collection::vec(any::<u8>(), 1..8)
    ) {
        let order = Order { big };
        let mut bytes = match ng {
            true => [order.section(), order.interface(1), order.enhanced(0, &[1; 50], 50, Some(1)), order.enhanced(0, &[2; 30], 30, None)].concat(),
            false => order.pcap(MICROSECONDS, 1, &[(&[1; 50], 50), (&[2; 30], 30)]),
        };
        for (place, byte) in bytes.iter_mut().skip(at).zip(with) {
            *place = byte;
        }
        let (frames, _) = read_bytes(&bytes);
        prop_assert!(frames.len() <= 8);
        prop_assert!(frames.iter().all(|(_, bytes, length, _)| bytes.len() <= *length));
    }
}
