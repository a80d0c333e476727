//! Packets by hand, byte by byte: what rules read of them, and what never gets to a rule.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// An IPv4 header with options and the right checksum before a payload; `flags` is the word with the fragment offset.
pub(in crate::simulate) fn v4(protocol: u8, flags: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let total = u16::try_from(header + payload.len()).unwrap();
    let mut bytes = vec![0x40 | (header / 4) as u8, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(flags.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 192, 0, 2, 1, 10, 0, 0, 5]);
    bytes.extend(options);
    seal(&mut bytes);
    bytes.extend(payload);
    bytes
}

/// Puts the right checksum into an IPv4 header.
pub(in crate::simulate) fn seal(bytes: &mut [u8]) {
    let length = header_length(bytes);
    bytes[10..12].fill(0);
    let sum: u32 = bytes[..length].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    bytes[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
}

/// An IPv6 header before a payload.
pub(in crate::simulate) fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    bytes.extend("fd00::5".parse::<Ipv6Addr>().unwrap().octets());
    bytes.extend(payload);
    bytes
}

/// From port 40000 to port 22, as any protocol with ports.
const PORTS: [u8; 8] = [0x9c, 0x40, 0, 22, 1, 2, 3, 4];

/// An extension header of 8 bytes: the options of hop-by-hop and destination headers are padding.
fn extension(kind: u8, next: u8) -> Vec<u8> {
    match kind {
        HOP_BY_HOP | DESTINATION => vec![next, 0, 1, 4, 0, 0, 0, 0],
        ROUTING => vec![next, 0, 4, 0, 0, 0, 0, 0],
        FRAGMENT => vec![next, 0, 0, 0, 0, 0, 0, 9],
        // Its length counts words of four bytes, less two.
        AUTHENTICATION => vec![next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        _ => unreachable!(),
    }
}

/// A chain of extension headers before a TCP header.
fn chained(kinds: &[u8]) -> Vec<u8> {
    let nexts = kinds.iter().skip(1).chain(&[6]);
    let payload: Vec<u8> = kinds.iter().zip(nexts).flat_map(|(kind, next)| extension(*kind, *next)).collect();
    v6(kinds.first().copied().unwrap_or(6), &[payload, PORTS.to_vec()].concat())
}

/// Protocol, ports, offset of a fragment.
type Read = (Option<u8>, Option<(u16, u16)>, Option<u16>);

fn summary(headers: &Headers<'_>) -> Read {
    let protocol = headers.protocol.map(|protocol| protocol.0);
    (protocol, headers.ports(), headers.fragment.map(|fragment| fragment.offset))
}

fn reads(bytes: &[u8]) -> Result<Read, WireError> {
    packet(bytes).map(|headers| summary(&headers))
}

fn arrives(bytes: &[u8]) -> Result<Read, WireError> {
    arriving(bytes, bytes.len()).map(|headers| summary(&headers))
}

const SSH: Read = (Some(6), Some((40_000, 22)), None);

#[test]
fn a_plain_packet_of_each_version() {
    let bytes = v4(6, 0x4000, &[], &PORTS);
    let headers = arriving(&bytes, bytes.len()).unwrap();
    assert_eq!(summary(&headers), SSH);
    assert_eq!((headers.source, headers.destination), ("192.0.2.1".parse().unwrap(), "10.0.0.5".parse().unwrap()));
    assert_eq!((headers.hop_limit, headers.icmp(), headers.transport), (64, None, Some(&PORTS[..])));
    let bytes = v6(6, &PORTS);
    let headers = arriving(&bytes, bytes.len()).unwrap();
    assert_eq!((summary(&headers), headers.hop_limit), (SSH, 255));
    assert_eq!(headers.source.to_string(), "2001:db8::1");
    let packet = headers.packet(Direction::Ingress, InterfaceName::new("eth0").unwrap());
    assert_eq!(
        (packet.ports, packet.protocol, packet.state),
        (Some((40_000, 22)), Some(Protocol::TCP), ConntrackState::New)
    );
}

#[test]
fn the_transport_header_comes_after_ipv4_options() {
    for length in [4, 8, 40] {
        let mut options = vec![1; length];
        options[length - 1] = 0;
        assert_eq!(arrives(&v4(6, 0, &options, &PORTS)), Ok(SSH), "{length} bytes of options");
    }
    // A header that says 60 bytes in a packet of 28 has no room for a transport header, nor has one of 16.
    for (nibble, length) in [(15, 60), (4, 16), (0, 0)] {
        let mut bytes = v4(6, 0, &[], &PORTS);
        bytes[0] = 0x40 | nibble;
        assert_eq!(arrives(&bytes), Err(WireError::HeaderLength(length)));
    }
}

#[test]
fn total_length_decides_where_a_packet_ends() {
    let padded = [v4(6, 0, &[], &PORTS), vec![0xff; 18]].concat();
    let headers = packet(&padded).unwrap();
    assert_eq!(headers.transport, Some(&PORTS[..]), "what Ethernet added is not part of it");
    // Padding is never read as a transport header.
    let padded = [v4(6, 0, &[], &PORTS[..3]), vec![0xff; 18]].concat();
    assert_eq!(reads(&padded), Ok((Some(6), None, None)));
    let padded = [v6(6, &PORTS[..3]), vec![0xff; 18]].concat();
    assert_eq!(reads(&padded), Ok((Some(6), None, None)));
    for bytes in [v4(6, 0, &[], &PORTS), v6(6, &PORTS)] {
        let there = u32::try_from(bytes.len() - 1).unwrap();
        assert_eq!(reads(&bytes[..bytes.len() - 1]), Err(WireError::Length { said: there + 1, there }));
    }
    let mut short = v4(6, 0, &[], &PORTS);
    short[2..4].copy_from_slice(&19u16.to_be_bytes());
    seal(&mut short);
    assert_eq!(arrives(&short), Err(WireError::HeaderLength(20)), "a length within the header");
    let mut none = v4(6, 0, &[], &PORTS);
    none[2..4].fill(0);
    assert_eq!(reads(&none), Err(WireError::HeaderLength(20)));
}

#[test]
fn segments_that_were_put_together_may_be_longer_than_16_bits_say() {
    let mut v4 = [v4(6, 0, &[], &PORTS), vec![0; 70_000]].concat();
    v4[2..4].fill(0);
    assert_eq!(reads(&v4), Ok(SSH));
    v4[9] = 17;
    assert_eq!(reads(&v4), Err(WireError::HeaderLength(20)), "only TCP");
    let mut v6 = [v6(6, &PORTS), vec![0; 70_000]].concat();
    v6[4..6].fill(0);
    assert_eq!(reads(&v6), Ok(SSH));
}

#[test]
fn a_transport_header_that_ends_early_has_no_ports() {
    for length in 0..4 {
        for protocol in [6, 17, 33, 132, 136] {
            assert_eq!(arrives(&v4(protocol, 0, &[], &PORTS[..length])), Ok((Some(protocol), None, None)));
            assert_eq!(arrives(&v6(protocol, &PORTS[..length])), Ok((Some(protocol), None, None)));
        }
    }
    let icmp = |version: u8, length: usize| {
        let bytes = if version == 4 { v4(1, 0, &[], &[8, 3][..length]) } else { v6(58, &[128, 3][..length]) };
        packet(&bytes).unwrap().icmp()
    };
    assert_eq!((icmp(4, 2), icmp(6, 2)), (Some((8, 3)), Some((128, 3))));
    assert_eq!((icmp(4, 1), icmp(6, 1)), (None, None));
    // The number of one version's ICMP in the other is a protocol like any other.
    assert_eq!(packet(&v4(58, 0, &[], &[128, 0])).unwrap().icmp(), None);
    // A protocol without ports has words all the same.
    let gre = v4(47, 0, &[], &PORTS);
    assert_eq!((packet(&gre).unwrap().ports(), packet(&gre).unwrap().words()), (None, Some((40_000, 22))));
}

#[test]
fn only_the_first_fragment_has_a_transport_header() {
    let fragment = |flags| packet(&v4(6, flags, &[], &PORTS)).unwrap().fragment;
    assert_eq!(fragment(0x4000), None, "don't fragment");
    assert_eq!(fragment(0x2000), Some(Fragment { id: 0x1234, offset: 0, more: true }));
    assert_eq!(fragment(0x2003), Some(Fragment { id: 0x1234, offset: 24, more: true }));
    assert_eq!(fragment(0x1fff), Some(Fragment { id: 0x1234, offset: 65_528, more: false }));
    assert_eq!(reads(&v4(6, 0x2000, &[], &PORTS)), Ok((Some(6), Some((40_000, 22)), Some(0))));
    assert_eq!(reads(&v4(6, 0x0001, &[], &PORTS)), Ok((Some(6), None, Some(8))));

    let v6_fragment = |next: u8, word: u16| {
        let mut header = extension(FRAGMENT, next);
        header[2..4].copy_from_slice(&word.to_be_bytes());
        v6(FRAGMENT, &[header, PORTS.to_vec()].concat())
    };
    assert_eq!(reads(&v6_fragment(6, 1)), Ok((Some(6), Some((40_000, 22)), Some(0))));
    assert_eq!(packet(&v6_fragment(6, 1)).unwrap().fragment.unwrap().id, 9);
    assert_eq!(reads(&v6_fragment(6, 24)), Ok((Some(6), None, Some(24))));
    assert_eq!(reads(&v6_fragment(6, 24 | 1)), Ok((Some(6), None, Some(24))));
    assert_eq!(reads(&v6_fragment(59, 24)), Ok((Some(59), None, Some(24))), "no next header is a protocol");
    assert_eq!(reads(&v6_fragment(6, 0)), Ok(SSH), "one fragment that is all of it");
    assert_eq!(reads(&v6_fragment(6, 0b110)), Ok(SSH), "reserved bits say nothing");
    for next in [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION] {
        assert_eq!(reads(&v6_fragment(next, 24)), Ok((None, None, Some(24))), "the chain goes on where nobody sees it");
    }
}

#[test]
fn extension_headers_are_skipped_in_any_order_but_authentication() {
    let skipped = [HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT];
    let mut tried = 0;
    for first in skipped {
        assert_eq!(reads(&chained(&[first])), Ok(SSH), "{first}");
        for second in skipped {
            for third in skipped {
                for fourth in skipped {
                    let chain = [first, second, third, fourth];
                    assert_eq!(reads(&chained(&chain)), Ok(SSH), "{chain:?}");
                    tried += 1;
                }
            }
        }
        assert_eq!(reads(&chained(&[first, AUTHENTICATION])), Ok((Some(51), None, None)));
        assert_eq!(reads(&chained(&[AUTHENTICATION, first])), Ok((Some(51), None, None)));
    }
    assert_eq!(tried, 256);
    // A header that says that it is longer.
    let long = [vec![6, 1, 1, 12], vec![0; 12], PORTS.to_vec()].concat();
    assert_eq!(reads(&v6(DESTINATION, &long)), Ok(SSH));
    // What is none to the kernel: mobility, HIP, shim6, ESP.
    for next in [135, 139, 140, 50, 253] {
        assert_eq!(reads(&v6(next, &PORTS)), Ok((Some(next), None, None)));
    }
    assert_eq!(reads(&v6(59, &PORTS)), Ok((Some(59), None, None)));
}

#[test]
fn a_chain_that_breaks_off_has_no_protocol() {
    let broken = Ok((None, None, None));
    assert_eq!(reads(&v6(DESTINATION, &[])), broken, "nothing after the header");
    assert_eq!(reads(&v6(DESTINATION, &[6])), broken, "one byte");
    // Two bytes are enough to go on, wherever that leads.
    assert_eq!(reads(&v6(DESTINATION, &[6, 0])), Ok((Some(6), None, None)));
    assert_eq!(reads(&v6(DESTINATION, &[DESTINATION, 0])), broken);
    assert_eq!(reads(&v6(ROUTING, &[6, 0, 0])), broken, "a routing header has four bytes at least");
    assert_eq!(reads(&v6(ROUTING, &[6, 0, 0, 0])), Ok((Some(6), None, None)));
    assert_eq!(reads(&v6(FRAGMENT, &[6, 0, 0])), broken);
    assert_eq!(reads(&v6(AUTHENTICATION, &[6])), broken);
    // Beyond 65,535 bytes the kernel takes a chain for broken: 32 headers of 2,048 bytes.
    let long: Vec<u8> = (0..32).flat_map(|_| [vec![DESTINATION, 255, 1, 0], vec![0; 2044]].concat()).collect();
    let chain = |count: usize, next: u8| {
        let mut bytes = v6(DESTINATION, &[]);
        bytes.extend(&long[..count * 2048]);
        let last = bytes.len() - 2048;
        bytes[last] = next;
        bytes.extend(PORTS);
        let payload = bytes.len() - 40;
        bytes[4..6].copy_from_slice(&u16::try_from(payload).unwrap_or(0).to_be_bytes());
        bytes
    };
    assert_eq!(reads(&chain(31, 6)), Ok(SSH));
    let jumbo = {
        let mut bytes = chain(32, 6);
        bytes[6] = HOP_BY_HOP;
        let hop = [vec![DESTINATION, 0, JUMBO, 4], u32::try_from(bytes.len() - 40 + 8).unwrap().to_be_bytes().to_vec()];
        bytes.splice(40..40, hop.concat());
        bytes
    };
    assert_eq!(arrives(&jumbo), broken);
}

const JUMBO: u8 = 194;

#[test]
fn hop_by_hop_options_are_judged_before_any_rule() {
    let with = |options: &[u8]| {
        let mut header = vec![6, ((options.len() + 2) / 8 - 1) as u8];
        header.extend(options);
        arrives(&v6(HOP_BY_HOP, &[header, PORTS.to_vec()].concat()))
    };
    let discarded = Err(WireError::HopByHop);
    assert_eq!(with(&[1, 4, 0, 0, 0, 0]), Ok(SSH), "PadN");
    assert_eq!(with(&[0; 6]), Ok(SSH), "six times Pad1");
    assert_eq!(with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), discarded, "too much padding");
    assert_eq!(with(&[1, 4, 0, 0, 1, 0]), discarded, "padding that is not zero");
    assert_eq!(with(&[5, 2, 0, 0, 1, 0]), Ok(SSH), "router alert");
    assert_eq!(with(&[5, 3, 0, 0, 0, 0]), discarded, "router alert of another length");
    assert_eq!(with(&[5, 2, 0, 0, 5, 2]), discarded, "an option that ends outside");
    assert_eq!(with(&[5, 2, 0, 0, 0, 1]), discarded, "an option without a length");
    assert_eq!(with(&[0x1e, 4, 9, 9, 9, 9]), Ok(SSH), "unknown, to be skipped");
    for unknown in [0x5e, 0x9e, 0xde] {
        assert_eq!(with(&[unknown, 4, 9, 9, 9, 9]), discarded, "unknown, to be discarded");
    }
    assert_eq!(with(&[JUMBO, 4, 0, 0, 0, 1]), discarded, "a jumbo payload that is none");
    assert_eq!(with(&[7, 4, 0, 0, 0, 0]), discarded, "CALIPSO");
    let many: Vec<u8> = (0..9).flat_map(|_| [0x1e, 0]).chain([1, 2, 0, 0]).collect();
    assert_eq!(with(&many), discarded, "more than eight options");
    assert_eq!(with(&many[2..16]), Ok(SSH), "seven");
    assert_eq!(arrives(&v6(HOP_BY_HOP, &[6, 1, 1, 4, 0, 0, 0, 0])), discarded, "longer than the packet");
    // Behind another header they are options like any other, which no rule reads.
    let behind = [extension(DESTINATION, HOP_BY_HOP), vec![6, 0, 0xde, 4, 9, 9, 9, 9], PORTS.to_vec()].concat();
    assert_eq!(arrives(&v6(DESTINATION, &behind)), Ok(SSH));
}

#[test]
fn a_payload_length_of_zero_is_a_jumbo_payload_or_the_link_decides() {
    let hop = |payload: u32| [vec![6, 0, JUMBO, 4], payload.to_be_bytes().to_vec()].concat();
    let mut bytes = v6(HOP_BY_HOP, &[]);
    bytes.extend(hop(70_016));
    bytes.extend(PORTS);
    bytes.extend(vec![0; 70_000]);
    assert_eq!(arrives(&bytes), Ok(SSH));
    let there = u32::try_from(bytes.len()).unwrap();
    bytes.pop();
    assert_eq!(arrives(&bytes), Err(WireError::Length { said: there, there: there - 1 }));
    bytes[4..6].copy_from_slice(&16u16.to_be_bytes());
    assert_eq!(arrives(&bytes), Err(WireError::HopByHop), "both lengths");
    // Without the option the kernel goes by what the link delivered, padding included.
    let mut bytes = v6(HOP_BY_HOP, &[extension(HOP_BY_HOP, 6), PORTS.to_vec()].concat());
    bytes[4..6].fill(0);
    assert_eq!(arrives(&bytes), Ok(SSH));
}

#[test]
fn what_the_kernel_drops_on_arrival() {
    let mut bytes = v4(6, 0, &[], &PORTS);
    bytes[8] = 1;
    assert_eq!(reads(&bytes), Ok(SSH), "rules do not look at checksums");
    assert_eq!(arrives(&bytes), Err(WireError::Checksum));
    let address = |at: usize, address: &str| {
        let mut bytes = v6(6, &PORTS);
        bytes[at..at + 16].copy_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
        arrives(&bytes)
    };
    assert_eq!(address(8, "ff02::1"), Err(WireError::Address("source")));
    assert_eq!(address(24, "ff01::1"), Err(WireError::Address("destination")), "interface-local");
    assert_eq!(address(24, "ff00::1"), Err(WireError::Address("destination")), "reserved");
    assert_eq!(address(24, "ff02::1"), Ok(SSH));
    assert_eq!(arrives(&[]), Err(WireError::Short));
    assert_eq!(arrives(&[0x45]), Err(WireError::Short));
    assert_eq!(arrives(&[0x60; 39]), Err(WireError::Short));
    assert_eq!(arrives(&[0x50; 40]), Err(WireError::Version(5)));
}

#[test]
fn of_a_packet_that_was_not_captured_whole_only_what_is_there_is_said() {
    let cut = |bytes: &[u8], there: usize| beginning(&bytes[..there], bytes.len()).map(|headers| summary(&headers));
    let long = v4(6, 0, &[], &[PORTS.to_vec(), vec![0; 100]].concat());
    assert_eq!(cut(&long, 24), Ok(SSH));
    assert_eq!(cut(&long, 23), Err(WireError::Cut));
    assert_eq!(cut(&long, 19), Err(WireError::Cut));
    assert!(packet(&long[..24]).is_err() && beginning(&long[..24], long.len()).unwrap().cut);
    assert!(!packet(&long).unwrap().cut);
    let chain = chained(&[DESTINATION, ROUTING]);
    assert_eq!(cut(&chain, 49), Err(WireError::Cut), "who knows where the chain leads");
    assert_eq!(cut(&chain, 60), Ok(SSH));
    let esp = v4(50, 0, &[], &[0; 100]);
    assert_eq!(cut(&esp, 20), Ok((Some(50), None, None)), "nothing more is read of it");
    assert_eq!(beginning(&v4(6, 0, &[1, 1, 1, 0], &PORTS)[..22], 32).map(|_| ()), Err(WireError::Cut));
}

/// Bytes that often look like a packet: a version, small lengths, protocols that mean something.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => prop::sample::select(vec![0u8, 1, 4, 5, 6, 17, 43, 44, 50, 51, 58, 59, 60, 194, 255]), 1 => any::<u8>()];
    (prop::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60, 0x44]), prop::collection::vec(byte, 0..140), any::<bool>())
        .prop_map(|(first, mut rest, fits)| {
            rest.insert(0, first);
            let length = u16::try_from(rest.len()).unwrap();
            if fits && rest.len() >= 40 {
                let (at, said) = if first >> 4 == 4 { (2, length) } else { (4, length - 40) };
                rest[at..at + 2].copy_from_slice(&said.to_be_bytes());
            }
            rest
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_bytes_are_reading_ends_and_never_reads_beyond_them(bytes in hostile(), more in 0..200usize) {
        let whole = packet(&bytes);
        for headers in [whole.clone(), arriving(&bytes, bytes.len()), beginning(&bytes, bytes.len() + more), quoted(&bytes)].into_iter().flatten() {
            if let Some(transport) = headers.transport {
                prop_assert!(transport.len() <= bytes.len() - 20);
                prop_assert!(headers.protocol.is_some());
            }
            prop_assert!(headers.source.is_ipv4() == headers.destination.is_ipv4());
            prop_assert!(headers.fragment.is_none_or(|fragment| fragment.is_first() || headers.transport.is_none()));
        }
        // What arrives is read as any packet is, and a capture of all of it is all of it.
        if let Ok(headers) = arriving(&bytes, bytes.len()) {
            prop_assert_eq!(Ok(headers), whole.clone());
        }
        prop_assert_eq!(beginning(&bytes, 0), whole.clone());
        // A capture that has less of a packet says the same of it or that it cannot tell.
        if let Ok(headers) = &whole {
            for there in 0..bytes.len() {
                match beginning(&bytes[..there], bytes.len()) {
                    Ok(less) => prop_assert_eq!(summary(&less), summary(headers)),
                    Err(error) => prop_assert_eq!(error, WireError::Cut),
                }
            }
        }
    }
}
