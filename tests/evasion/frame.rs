//! Frames made by hand, byte by byte: what a stack would never send is there to be sent as well.
#![allow(unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nodewall::net::protocol::Protocol;

/// EtherTypes (linux/if_ether.h).
pub const IP: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
pub const Q: u16 = 0x8100;
pub const AD: u16 = 0x88a8;

/// IPv4's "more fragments", in the field of the fragment offset (RFC 791).
const MORE: u16 = 0x2000;

/// What is to arrive, before anybody plays tricks with it.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Destination and source, as an Ethernet header has them.
    pub macs: [u8; 12],
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Another address of a host on the way, for source routes.
    pub via: IpAddr,
    /// The transport header and what is in it, with a checksum that holds.
    pub protocol: Protocol,
    pub segment: Vec<u8>,
    /// Tells the fragments of one packet from those of another.
    pub ident: u32,
}

impl Shot {
    pub fn v4(&self) -> bool {
        self.destination.is_ipv4()
    }

    /// The same with other ports' bytes, as if it were for `port`; the checksum is left as it is.
    pub fn for_port(&self, port: u16) -> Self {
        let mut other = self.clone();
        other.segment[2..4].copy_from_slice(&port.to_be_bytes());
        other
    }

    /// Sets the checksum of the transport header.
    pub fn seal(&mut self) {
        seal(self.protocol, self.source, self.destination, &mut self.segment);
    }
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC-32C, SCTP's checksum (RFC 9260 appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn seal(protocol: Protocol, source: IpAddr, destination: IpAddr, segment: &mut [u8]) {
    let at = match protocol {
        Protocol::TCP => 16,
        Protocol::UDP | Protocol::UDPLITE => 6,
        Protocol::ICMP | Protocol::ICMPV6 => 2,
        Protocol::SCTP => {
            segment[8..12].fill(0);
            let crc = crc32c(segment).to_le_bytes();
            return segment[8..12].copy_from_slice(&crc);
        }
        other => panic!("no checksum of {other}"),
    };
    segment[at..at + 2].fill(0);
    let length = (segment.len() as u32).to_be_bytes();
    let pseudo = match protocol {
        Protocol::ICMP => Vec::new(),
        _ => [octets(source), octets(destination), length.to_vec(), vec![0, 0, 0, protocol.0]].concat(),
    };
    let sum = checksum(&[&pseudo[..], segment].concat()).to_be_bytes();
    segment[at..at + 2].copy_from_slice(&sum);
}

/// An Ethernet frame, with tags (EtherType and VLAN), outermost first.
pub fn ether(macs: &[u8], tags: &[(u16, u16)], kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = macs.to_vec();
    for (tag, vlan) in tags {
        frame.extend([tag.to_be_bytes(), vlan.to_be_bytes()].concat());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

/// An IPv4 header with its options, and what follows it.
#[derive(Clone, Debug)]
pub struct Ip4 {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub ttl: u8,
    pub ident: u16,
    /// The flags with the fragment offset.
    pub fragment: u16,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Ip4 {
    pub fn of(shot: &Shot) -> Self {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (shot.source, shot.destination) else {
            panic!("{shot:?} is not of IPv4");
        };
        let (protocol, payload) = (shot.protocol.0, shot.segment.clone());
        let ident = shot.ident as u16;
        Self { source, destination, protocol, ttl: 64, ident, fragment: 0, options: Vec::new(), payload }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = ((header + self.payload.len()) as u16).to_be_bytes();
        let mut bytes = vec![0x40 | (header / 4) as u8, 0, total[0], total[1]];
        bytes.extend([self.ident.to_be_bytes(), self.fragment.to_be_bytes()].concat());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend([self.source.octets(), self.destination.octets()].concat());
        bytes.extend(&self.options);
        reseal(&mut bytes);
        [bytes, self.payload.clone()].concat()
    }
}

/// The checksum of an IPv4 header, which is as long as it says.
pub fn reseal(bytes: &mut [u8]) {
    let length = (usize::from(bytes[0] & 15) * 4).min(bytes.len());
    bytes[10..12].fill(0);
    let sum = checksum(&bytes[..length]).to_be_bytes();
    bytes[10..12].copy_from_slice(&sum);
}

/// An IPv6 extension header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ext {
    HopByHop(Vec<u8>),
    Destination(Vec<u8>),
    /// Type, segments left, and the rest of the header.
    Routing(u8, u8, Vec<u8>),
    /// Offset in bytes, whether more come, and the identification.
    Fragment(u16, bool, u32),
    /// RFC 4302, with an empty digest.
    Authentication,
    /// RFC 8200 section 4.7.
    NoNext,
}

impl Ext {
    fn number(&self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Destination(_) => 60,
            Self::Routing(..) => 43,
            Self::Fragment(..) => 44,
            Self::Authentication => 51,
            Self::NoNext => 59,
        }
    }

    fn bytes(&self, next: u8) -> Vec<u8> {
        let options = |head: Vec<u8>, rest: &[u8]| {
            let mut bytes = [head, rest.to_vec()].concat();
            // PadN, or Pad1 where there is room for one byte only (RFC 8200 section 4.2).
            let pad = bytes.len().next_multiple_of(8) - bytes.len();
            bytes.extend(match pad {
                0 => Vec::new(),
                1 => vec![0],
                _ => [vec![1, (pad - 2) as u8], vec![0; pad - 2]].concat(),
            });
            bytes[1] = (bytes.len() / 8 - 1) as u8;
            bytes
        };
        match self {
            Self::HopByHop(rest) | Self::Destination(rest) => options(vec![next, 0], rest),
            Self::Routing(kind, left, rest) => {
                let mut bytes = [vec![next, 0, *kind, *left], rest.clone()].concat();
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes[1] = (bytes.len() / 8 - 1) as u8;
                bytes
            }
            Self::Fragment(offset, more, ident) => {
                let field = (offset | u16::from(*more)).to_be_bytes();
                [vec![next, 0, field[0], field[1]], ident.to_be_bytes().to_vec()].concat()
            }
            Self::Authentication => {
                let mut bytes = vec![next, 4, 0, 0];
                bytes.resize(24, 7);
                bytes
            }
            Self::NoNext => Vec::new(),
        }
    }
}

/// A chain of extension headers before a payload: the number of the first header, and the bytes.
pub fn chain(headers: &[Ext], protocol: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    headers.iter().rev().fold((protocol, payload.to_vec()), |(next, bytes), header| {
        (header.number(), [header.bytes(next), bytes].concat())
    })
}

/// An IPv6 header and what follows it.
#[derive(Clone, Debug)]
pub struct Ip6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub next: u8,
    pub hop_limit: u8,
    pub payload: Vec<u8>,
}

impl Ip6 {
    /// With these extension headers.
    pub fn of(shot: &Shot, headers: &[Ext]) -> Self {
        let (IpAddr::V6(source), IpAddr::V6(destination)) = (shot.source, shot.destination) else {
            panic!("{shot:?} is not of IPv6");
        };
        let (next, payload) = chain(headers, shot.protocol.0, &shot.segment);
        Self { source, destination, next, hop_limit: 64, payload }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((self.payload.len() as u16).to_be_bytes());
        bytes.extend([self.next, self.hop_limit]);
        bytes.extend([self.source.octets(), self.destination.octets()].concat());
        bytes.extend(&self.payload);
        bytes
    }
}

/// The packet without a trick.
pub fn plain(shot: &Shot) -> (u16, Vec<u8>) {
    if shot.v4() { (IP, Ip4::of(shot).bytes()) } else { (IPV6, Ip6::of(shot, &[]).bytes()) }
}

/// One fragment: which part of the payload, and whether more are said to come.
pub fn fragment(shot: &Shot, options: &[u8], from: usize, to: usize, more: bool) -> Vec<u8> {
    if shot.v4() {
        let whole = Ip4::of(shot);
        let field = (from / 8) as u16 | if more { MORE } else { 0 };
        let payload = whole.payload[from..to].to_vec();
        Ip4 { fragment: field, options: options.to_vec(), payload, ..whole }.bytes()
    } else {
        let part = Shot { segment: shot.segment[from..to].to_vec(), ..shot.clone() };
        Ip6::of(&part, &[Ext::Fragment(from as u16, more, shot.ident)]).bytes()
    }
}

/// All fragments, cut at these places, which are multiples of eight.
pub fn fragments(shot: &Shot, options: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let end = shot.segment.len();
    let mut edges: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < end).collect();
    edges.insert(0, 0);
    edges.push(end);
    edges.windows(2).map(|edge| fragment(shot, options, edge[0], edge[1], edge[1] < end)).collect()
}

/// IPv6 fragments of a packet that has headers before the fragment header, in what is fragmented, or both.
pub fn fragments_with(shot: &Shot, before: &[Ext], inside: &[Ext], cuts: &[usize]) -> Vec<Vec<u8>> {
    let (next, whole) = chain(inside, shot.protocol.0, &shot.segment);
    let mut edges: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < whole.len()).collect();
    edges.insert(0, 0);
    edges.push(whole.len());
    let piece = |edge: &[usize]| {
        let header = Ext::Fragment(edge[0] as u16, edge[1] < whole.len(), shot.ident);
        let headers = [before, &[header]].concat();
        let part = Shot { protocol: Protocol(next), segment: whole[edge[0]..edge[1]].to_vec(), ..shot.clone() };
        Ip6::of(&part, &headers).bytes()
    };
    edges.windows(2).map(piece).collect()
}
