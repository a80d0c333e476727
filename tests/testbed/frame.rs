//! From a shape to bytes: the packet, its fragments, and the frames in which they travel.

use std::net::{IpAddr, Ipv4Addr};

use nodewall::net::flow::{Detail, Tuple};
use nodewall::net::protocol::Protocol;

use super::node::{self, Link};
use super::shape::{Before, Fragments, Header, Lie, Options, Shape, Way, Whom, icmp_type};
use crate::generate::packet::Points;
use crate::lab::conntrack::{Entry, plain};

/// A packet with bytes.
#[derive(Clone, Debug)]
pub struct Built {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
    /// As it would be in one piece.
    pub whole: Vec<u8>,
    /// As it is sent.
    pub parts: Vec<Vec<u8>>,
    /// What becomes of the parts.
    pub together: Together,
    /// A flow that connection tracking has to know before.
    pub flow: Option<Entry>,
}

/// What fragments make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Together {
    /// It has none.
    Whole,
    /// The whole packet.
    Joined,
    /// The whole packet or nothing: whether the kernel takes such fragments is its own affair.
    JoinedOrNothing,
    /// Nothing, or something else than the packet.
    Unsaid,
}

/// The packet with an identification of its own: the IPv4 identification or IPv6 flow label.
pub fn build(shape: &Shape, points: &Points, id: u16) -> Built {
    let source = match (shape.way, points.address(shape.v4, shape.source)) {
        // raw(7): the kernel would fill in a source of zero.
        (Way::Out { .. }, IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        (_, source) => source,
    };
    let destination = points.address(shape.v4, shape.destination);
    let dhcp = [(67, 68), (68, 67), (546, 547), (547, 546)];
    let ports = match shape.dhcp {
        Some(choice) => dhcp[choice % dhcp.len()],
        None => (points.port(shape.ports.0), points.port(shape.ports.1)),
    };
    let (transport, error) = transport(shape, (source, destination), ports, id);
    let (whole, split) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (ipv4(shape, (source.octets(), destination.octets()), &transport, id), 0)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ipv6(shape, (source.octets(), destination.octets()), &transport, id)
        }
        _ => panic!("addresses of two families"),
    };
    let (parts, together) = match (shape.fragments, shape.lie) {
        (Fragments::No, _) => (vec![whole.clone()], Together::Whole),
        (_, Lie::None) if shape.v4 => fragments_v4(shape.fragments, &whole),
        (_, Lie::None) => fragments_v6(shape, &whole, split, id),
        _ => (vec![whole.clone()], Together::Whole),
    };
    // What the kernel makes of fragment headers in a packet that is not split is its own affair.
    let has = |header| shape.headers.contains(&header);
    let together = match together {
        // From this host to itself it goes in fragments as it came, and connection tracking has seen it before: nobody puts them
        // together again before the rules (`ipv6_defrag`).
        Together::Joined | Together::JoinedOrNothing if matches!(shape.way, Way::Out { .. }) => Together::Unsaid,
        _ if has(Header::FirstFragment) || has(Header::LaterFragment) => Together::Unsaid,
        _ if !shape.v4 && shape.protocol == number(Header::FirstFragment) => Together::Unsaid,
        // Reassembly looks behind an authentication header, which ends what rules can read.
        _ if has(Header::WholeFragment) && has(Header::Authentication) => Together::Unsaid,
        Together::Whole | Together::Joined if has(Header::WholeFragment) => Together::JoinedOrNothing,
        other => other,
    };
    let protocol = Protocol(shape.protocol);
    let flow = match shape.before {
        Before::Flow if protocol.has_ports() => Some(plain(protocol, source, ports.0, destination, ports.1)),
        Before::Flow => echo(shape, source, destination, id),
        Before::FlowOfError => error,
        Before::Nothing | Before::Itself => None,
    };
    Built { source, destination, ports, whole, parts, together, flow }
}

/// The frames, for a link.
pub fn frames(shape: &Shape, built: &Built, link: &Link) -> Vec<Vec<u8>> {
    let to = match shape.frame.to {
        // A macvlan gets what is for everybody later (`macvlan_broadcast_enqueue`), and packets have to stay in order.
        Whom::Everybody if link.kind == "macvlan" => link.mac,
        Whom::Node => link.mac,
        Whom::Everybody => [0xff; 6],
        Whom::SomebodyElse => [2, 0, 0, 0, 9, 9],
    };
    let ethertype: u16 = if shape.v4 { 0x0800 } else { 0x86dd };
    let frame = |part: &Vec<u8>| {
        let mut bytes = to.to_vec();
        bytes.extend([2, 0, 0, 0, 8, 8]);
        for (kind, vlan) in &shape.frame.tags {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((0x2000 | vlan).to_be_bytes());
        }
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(part);
        bytes.extend(1..=shape.frame.trailer);
        bytes
    };
    built.parts.iter().map(frame).collect()
}

fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        1 => matches!(kind, 3 | 4 | 5 | 11 | 12),
        _ => matches!(kind, 1..=4),
    }
}

fn echo(shape: &Shape, source: IpAddr, destination: IpAddr, id: u16) -> Option<Entry> {
    let (kind, code) = icmp_type(shape.icmp, shape.v4);
    let answer = match (shape.protocol, kind) {
        (1, 8) => 0,
        (58, 128) => 129,
        _ => return None,
    };
    let tuple = |source, destination, kind| Tuple {
        source,
        destination,
        protocol: Protocol(shape.protocol),
        detail: Detail::Icmp { kind, code, id },
    };
    Some((tuple(source, destination, kind), tuple(destination, source, answer), 0))
}

/// The header of the transport protocol with what comes after it; and the flow that an ICMP error is about.
fn transport(
    shape: &Shape,
    (source, destination): (IpAddr, IpAddr),
    ports: (u16, u16),
    id: u16,
) -> (Vec<u8>, Option<Entry>) {
    let mut payload: Vec<u8> = (0..shape.transport.payload).map(|index| (index ^ id) as u8).collect();
    if let [.., a, b, c, d] = payload.as_mut_slice() {
        // For who gets the data and no header.
        ([*a, *b], [*c, *d]) = (id.to_be_bytes(), id.to_be_bytes());
    }
    let mut bytes = Vec::new();
    let mut error = None;
    let flags = shape.transport.flags;
    // The length of UDP; of UDP-Lite, how much is in the checksum: not all, or connection tracking leaves out the pseudo header
    // (`nf_ip_checksum`) and calls it invalid.
    let covered = match shape.protocol {
        136 => 8 + shape.transport.payload / 2,
        _ => 8 + shape.transport.payload,
    };
    let mut sum_at = None;
    match shape.protocol {
        6 => {
            bytes.extend(ports.0.to_be_bytes());
            bytes.extend(ports.1.to_be_bytes());
            bytes.extend([0, 0, 0x10, 0, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
            sum_at = Some(16);
        }
        17 | 136 => {
            bytes.extend(ports.0.to_be_bytes());
            bytes.extend(ports.1.to_be_bytes());
            bytes.extend(covered.to_be_bytes());
            bytes.extend([0, 0]);
            sum_at = Some(6);
        }
        132 => {
            bytes.extend(ports.0.to_be_bytes());
            bytes.extend(ports.1.to_be_bytes());
            bytes.extend([0; 8]);
            // A chunk: INIT, DATA, COOKIE ECHO or whatever, its length with its header.
            let kind = [1, 0, 1, 10, 3, 6][usize::from(flags) % 6];
            bytes.extend([kind, 0]);
            bytes.extend((20 + shape.transport.payload).to_be_bytes());
            bytes.extend([0, 0, 0, 1, 0, 0, 0x40, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
        }
        33 => {
            bytes.extend(ports.0.to_be_bytes());
            bytes.extend(ports.1.to_be_bytes());
            // A header of 16 bytes, REQUEST, with short sequence numbers.
            bytes.extend([4, 0, 0, 0, flags >> 2 << 1 & 0x1e, 0, 0, 1, 0, 0, 0, 0]);
            sum_at = Some(6);
        }
        1 | 58 => {
            let (kind, code) = icmp_type(shape.icmp, shape.v4);
            bytes.extend([kind, code, 0, 0]);
            bytes.extend(id.to_be_bytes());
            bytes.extend([0, 1]);
            if is_error(shape.protocol, kind) {
                let (quote, flow) = quote(shape, (destination, source), (ports.1, ports.0));
                bytes.extend(quote);
                error = Some(flow);
            }
            sum_at = Some(2);
        }
        47 => bytes.extend([0, 0, 8, 0]),
        50 => bytes.extend([0, 0, 1, 0, 0, 0, 0, 1]),
        51 => {
            bytes.extend([17, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
            bytes.extend([0; 12]);
        }
        _ => {}
    }
    bytes.extend(payload);
    match (shape.protocol, sum_at) {
        (132, _) => {
            let sum = if shape.transport.sum { crc32c(&bytes) } else { 0xdead_beef };
            bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        }
        (protocol, Some(at)) => {
            let pseudo = if protocol == 1 { 0 } else { pseudo_header(source, destination, protocol, bytes.len()) };
            let summed = if protocol == 136 { &bytes[..usize::from(covered)] } else { &bytes[..] };
            let mut sum = checksum(pseudo, summed);
            if protocol == 17 && sum == 0 {
                sum = 0xffff;
            }
            if !shape.transport.sum {
                sum ^= 0x5555;
            }
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        _ => {}
    }
    if let Some(cut) = shape.transport.cut {
        bytes.truncate(usize::from(cut));
    }
    (bytes, error)
}

/// What an ICMP error quotes: the beginning of a packet from this host, and its flow.
fn quote(shape: &Shape, (source, destination): (IpAddr, IpAddr), ports: (u16, u16)) -> (Vec<u8>, Entry) {
    let protocol = if shape.icmp.is_multiple_of(3) { Protocol::TCP } else { Protocol::UDP };
    let mut bytes = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 60, 0, 1, 0, 0, 64, protocol.0, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(0, &header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 40, protocol.0, 64];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => panic!("addresses of two families"),
    };
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend([0, 40, 0, 0]);
    (bytes, plain(protocol, source, ports.0, destination, ports.1))
}

fn ipv4(shape: &Shape, (source, destination): ([u8; 4], [u8; 4]), transport: &[u8], id: u16) -> Vec<u8> {
    let options = options(shape.options);
    let mut header_length = 20 + options.len();
    let length = header_length + transport.len();
    let said = match shape.lie {
        Lie::Longer => length + 8,
        Lie::Shorter if id.is_multiple_of(2) => 16,
        Lie::Shorter => header_length + transport.len() / 2,
        _ => length,
    };
    match shape.lie {
        Lie::ShortHeader => header_length = 16,
        Lie::LongHeader => header_length = 60.min((length + 4) / 4 * 4),
        _ => {}
    }
    let version = if shape.lie == Lie::Version { 5 } else { 4 };
    let mut bytes = vec![version << 4 | (header_length / 4) as u8, service(shape)];
    bytes.extend((said as u16).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 0, shape.hop_limit, shape.protocol, 0, 0]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(options);
    sum_header(&mut bytes);
    if shape.lie == Lie::Checksum {
        bytes[10] ^= 0x55;
    }
    bytes.extend(transport);
    bytes
}

/// DSCP and ECN.
fn service(shape: &Shape) -> u8 {
    let way = match shape.way {
        Way::In { exit, .. } => node::way(exit),
        Way::Out { .. } => 0,
    };
    way | shape.ecn
}

fn options(options: Options) -> Vec<u8> {
    // Of this host, so that a source route can go on.
    let hop = [10, 0, 0, 2];
    match options {
        Options::None => vec![],
        Options::Padding => vec![1, 1, 1, 0],
        Options::RouterAlert => vec![148, 4, 0, 0],
        Options::RecordRoute => vec![7, 7, 4, 0, 0, 0, 0, 0],
        Options::Timestamp => vec![68, 8, 5, 0, 0, 0, 0, 0],
        Options::LooseRoute => [vec![131, 7, 4], hop.to_vec(), vec![0]].concat(),
        Options::StrictRoute => [vec![137, 7, 4], hop.to_vec(), vec![0]].concat(),
        Options::Full => vec![1; 40],
        Options::TooLong => vec![7, 39, 4, 0],
        Options::Unknown => vec![0x9e, 4, 1, 2],
    }
}

fn sum_header(header: &mut [u8]) {
    header[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(0, header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The packet, and how many of its bytes go into every fragment.
fn ipv6(shape: &Shape, (source, destination): ([u8; 16], [u8; 16]), transport: &[u8], id: u16) -> (Vec<u8>, usize) {
    let numbers: Vec<u8> = shape.headers.iter().map(|header| number(*header)).chain([shape.protocol]).collect();
    let split = shape.icmp % (shape.headers.len() + 1);
    let mut split_at = 40;
    let mut rest = Vec::new();
    for (index, header) in shape.headers.iter().enumerate() {
        if index == split {
            split_at = 40 + rest.len();
        }
        rest.extend(extension(*header, numbers[index + 1], id));
    }
    if split == shape.headers.len() {
        split_at = 40 + rest.len();
    }
    rest.extend(transport);
    let said = match shape.lie {
        Lie::Longer | Lie::LongHeader => rest.len() + 8,
        Lie::Shorter | Lie::ShortHeader => rest.len() / 2,
        Lie::NoPayload => 0,
        _ => rest.len(),
    };
    let version = if shape.lie == Lie::Version { 4 } else { 6 };
    let service = service(shape);
    let mut bytes = vec![version << 4 | service >> 4, service << 4, 0, 0];
    bytes[2..4].copy_from_slice(&id.to_be_bytes());
    bytes.extend((said as u16).to_be_bytes());
    bytes.extend([numbers[0], shape.hop_limit]);
    bytes.extend(source);
    bytes.extend(destination);
    bytes.extend(rest);
    (bytes, split_at)
}

/// Whether what is said to be a transport protocol is an extension header of IPv6 (RFC 8200 section 4), and its data read as one.
pub fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 59 | 60 | 135)
}

fn number(header: Header) -> u8 {
    match header {
        Header::HopByHop | Header::HopByHopDiscard => 0,
        Header::Destination | Header::LongDestination | Header::TooLong => 60,
        Header::Routing(..) => 43,
        Header::WholeFragment | Header::FirstFragment | Header::LaterFragment => 44,
        Header::Authentication => 51,
        Header::NoNext => 59,
        Header::Unknown => 253,
    }
}

fn extension(header: Header, next: u8, id: u16) -> Vec<u8> {
    let fragment = |word: u16| {
        let mut bytes = vec![next, 0];
        bytes.extend(word.to_be_bytes());
        bytes.extend((0x1000_0000 + u32::from(id)).to_be_bytes());
        bytes
    };
    match header {
        Header::HopByHop | Header::Destination | Header::NoNext | Header::Unknown => vec![next, 0, 1, 4, 0, 0, 0, 0],
        Header::HopByHopDiscard => vec![next, 0, 0x9e, 4, 0, 0, 0, 0],
        Header::LongDestination => {
            let mut bytes = vec![next, 2, 1, 20];
            bytes.resize(24, 0);
            bytes
        }
        Header::TooLong => vec![next, 255, 1, 4, 0, 0, 0, 0],
        Header::Routing(kind @ (0 | 2 | 4), left) => {
            let mut bytes = vec![next, 2, kind, left, 0, 0, 0, 0, 0xfd];
            bytes.resize(23, 0);
            bytes.push(2);
            bytes
        }
        Header::Routing(kind, left) => vec![next, 0, kind, left, 0, 0, 0, 0],
        Header::WholeFragment => fragment(0),
        Header::FirstFragment => fragment(1),
        Header::LaterFragment => fragment(64),
        Header::Authentication => {
            let mut bytes = vec![next, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
            bytes.resize(24, 0);
            bytes
        }
    }
}

/// Where the first of two fragments of `length` bytes ends; `None` if there is nothing to split.
fn first_size(size: u8, length: usize) -> Option<usize> {
    let first = usize::from(size) / 8 * 8;
    (first > 0 && first < length).then_some(first)
}

fn size_of(fragments: Fragments) -> u8 {
    match fragments {
        Fragments::No => 0,
        Fragments::InOrder(size)
        | Fragments::Backwards(size)
        | Fragments::Twice(size)
        | Fragments::OnlyFirst(size)
        | Fragments::OnlyLater(size)
        | Fragments::Overlap(size) => size,
    }
}

/// Which fragments are sent in which order, given one that makes a part of the data (from, to) and may spoil it.
fn ordered(
    fragments: Fragments,
    first: usize,
    length: usize,
    part: impl Fn(usize, usize, bool) -> Vec<u8>,
) -> (Vec<Vec<u8>>, Together) {
    let (one, two) = (part(0, first, false), part(first, length, false));
    match fragments {
        Fragments::No | Fragments::InOrder(_) => (vec![one, two], Together::Joined),
        Fragments::Backwards(_) => (vec![two, one], Together::Joined),
        Fragments::Twice(_) => (vec![one.clone(), one, two], Together::JoinedOrNothing),
        Fragments::OnlyFirst(_) => (vec![one], Together::Unsaid),
        Fragments::OnlyLater(_) => (vec![two], Together::Unsaid),
        Fragments::Overlap(_) => (vec![one, part(first - 8, length, true)], Together::Unsaid),
    }
}

fn fragments_v4(fragments: Fragments, whole: &[u8]) -> (Vec<Vec<u8>>, Together) {
    let header_length = usize::from(whole[0] & 0xf) * 4;
    let data = &whole[header_length..];
    let Some(first) = first_size(size_of(fragments), data.len()) else {
        return (vec![whole.to_vec()], Together::Whole);
    };
    ordered(fragments, first, data.len(), |from, to, spoil| {
        let mut bytes = whole[..header_length].to_vec();
        let more = if to < data.len() { 0x2000 } else { 0 };
        bytes[2..4].copy_from_slice(&((header_length + to - from) as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&(more | (from / 8) as u16).to_be_bytes());
        sum_header(&mut bytes);
        bytes.extend(data[from..to].iter().map(|byte| if spoil { !byte } else { *byte }));
        bytes
    })
}

fn fragments_v6(shape: &Shape, whole: &[u8], split: usize, id: u16) -> (Vec<Vec<u8>>, Together) {
    let data = &whole[split..];
    let Some(first) = first_size(size_of(shape.fragments), data.len()) else {
        return (vec![whole.to_vec()], Together::Whole);
    };
    // The number of the first header that is split goes into the fragment header, and that one's in its place.
    let before = shape.icmp % (shape.headers.len() + 1);
    let next = shape.headers.get(before).map_or(shape.protocol, |header| number(*header));
    let at = match before {
        0 => 6,
        _ => split - extension(shape.headers[before - 1], 0, id).len(),
    };
    let (parts, together) = ordered(shape.fragments, first, data.len(), |from, to, spoil| {
        let mut bytes = whole[..split].to_vec();
        bytes[at] = 44;
        let word = from as u16 | u16::from(to < data.len());
        bytes.extend([next, 0]);
        bytes.extend(word.to_be_bytes());
        bytes.extend((0x2000_0000 + u32::from(id)).to_be_bytes());
        bytes.extend(data[from..to].iter().map(|byte| if spoil { !byte } else { *byte }));
        let length = bytes.len() - 40;
        bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        bytes
    });
    // A first fragment without all headers, the transport header included, goes by the reassembly of connection tracking
    // (`nf_ct_frag6_gather`): rules see it as it is, and the others never. What comes before the fragment header may be in the way.
    let plain = shape.headers.is_empty() && !is_extension(shape.protocol) && (first >= 24 || shape.protocol == 17);
    (parts, if plain { together } else { Together::Unsaid })
}

/// The Internet checksum (RFC 1071).
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = [octets(source), octets(destination)].concat();
    let sum: u32 = words.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    sum + u32::from(protocol) + length as u32
}

/// CRC-32C (RFC 9260 appendix A).
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
