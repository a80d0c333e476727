//! What a packet is to be like, before it has bytes: addresses and ports as choices among a policy's own edges, and everything that is
//! odd about it by name.

use nodewall::net::addr::Family;
use nodewall::net::interface::Direction;
use nodewall::net::protocol::Protocol;
use proptest::prelude::*;
use proptest::sample::select;

use super::node::{EXITS, LINK_COUNT};
use super::people::{PEOPLE, People};
use crate::generate::packet::{Aim, Points, within};
use crate::generate::policy::{ICMP_TYPES, PROTOCOLS};

/// A packet to be sent.
#[derive(Clone, Debug)]
pub struct Shape {
    pub way: Way,
    pub v4: bool,
    /// Whether a rule of the policy says what of the rest is other than chosen: addresses, protocol, ports.
    pub aim: Option<usize>,
    /// Choices: source, destination, source port, destination port, ICMP type and code.
    pub source: usize,
    pub destination: usize,
    pub ports: (usize, usize),
    /// The ports of a DHCP message instead.
    pub dhcp: Option<usize>,
    pub icmp: usize,
    pub protocol: u8,
    pub hop_limit: u8,
    /// What others' rules do with it (see the witnesses): 1 and 2 another destination, 3 a mark.
    pub ecn: u8,
    /// IPv4 options.
    pub options: Options,
    /// IPv6 extension headers, in order.
    pub headers: Vec<Header>,
    pub fragments: Fragments,
    pub transport: Transport,
    pub lie: Lie,
    pub frame: Frame,
    pub before: Before,
}

/// Where it comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It arrives on a link, and leaves by one of the exits if it is not for this host.
    In { link: usize, exit: Option<usize> },
    /// It is sent by a process; without a link, to this host itself.
    Out { link: Option<usize>, person: usize, mark: u32, by: By },
}

/// Who makes a packet from this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// A raw socket: it may be anything.
    Raw,
    /// An ordinary socket, of UDP or TCP.
    Socket,
}

/// IPv4 options.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Options {
    None,
    Padding,
    RouterAlert,
    RecordRoute,
    Timestamp,
    /// Its next hop is of this host.
    LooseRoute,
    StrictRoute,
    /// As many as there is room for.
    Full,
    /// One that says that it is longer than the header.
    TooLong,
    Unknown,
}

/// An IPv6 extension header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Header {
    HopByHop,
    /// With an option that one who does not know it has to discard the packet for.
    HopByHopDiscard,
    Destination,
    /// 24 bytes of padding.
    LongDestination,
    /// Routing header of this type with so many segments left.
    Routing(u8, u8),
    /// A fragment header that says that this is all.
    WholeFragment,
    /// One that says that more comes.
    FirstFragment,
    /// One that says that something came before.
    LaterFragment,
    Authentication,
    /// Nothing that is said to follow is to be read.
    NoNext,
    /// A number that no extension header has.
    Unknown,
    /// A header that says that it is longer than the packet.
    TooLong,
}

/// Whether it comes in fragments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fragments {
    /// It is whole.
    No,
    /// All of them, in order, so many bytes in the first (rounded to eight).
    InOrder(u8),
    /// The last one first.
    Backwards(u8),
    /// The first one twice.
    Twice(u8),
    /// Only the first.
    OnlyFirst(u8),
    /// Only the second.
    OnlyLater(u8),
    /// The second says other things about the end of the first.
    Overlap(u8),
}

/// The transport header and what comes after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    /// TCP flags, the type of an SCTP chunk.
    pub flags: u8,
    /// The checksum is right.
    pub sum: bool,
    /// Only so many bytes of it are there.
    pub cut: Option<u8>,
    /// How many bytes come after the header.
    pub payload: u16,
}

/// What the IP header says that is not so.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lie {
    None,
    Version,
    /// IPv4: a header of 16 bytes.
    ShortHeader,
    /// IPv4: a header that is longer than the packet.
    LongHeader,
    /// More bytes than there are.
    Longer,
    /// Fewer bytes than the IP header has, or than the packet needs.
    Shorter,
    /// IPv4: another checksum.
    Checksum,
    /// IPv6: a payload of no bytes.
    NoPayload,
}

/// The Ethernet frame.
#[derive(Clone, Debug)]
pub struct Frame {
    pub to: Whom,
    /// VLAN tags, outermost first: EtherType and VLAN.
    pub tags: Vec<(u16, u16)>,
    /// Bytes after the packet.
    pub trailer: u8,
}

/// The hardware address it is sent to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Whom {
    Node,
    Everybody,
    SomebodyElse,
}

/// What came before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Before {
    Nothing,
    /// Its flow is known, and has seen packets both ways.
    Flow,
    /// The flow that it is an error about is known, if it is an ICMP error.
    FlowOfError,
    /// The same packet.
    Itself,
}

impl Shape {
    /// The shape with what the rule says that it aims at.
    pub fn aimed(&self, points: &Points, people: &People) -> Self {
        let mut shape = self.clone();
        let Some(choice) = self.aim else { return shape };
        let ours = |direction: &Direction| match self.way {
            Way::In { exit: None, .. } => *direction == Direction::Ingress,
            Way::In { .. } => true,
            Way::Out { .. } => *direction == Direction::Egress,
        };
        let aims: Vec<&Aim> =
            points.rules.iter().filter(|(direction, _)| ours(direction)).map(|(_, aim)| aim).collect();
        let Some(aim) = aims.get(choice % aims.len().max(1)) else { return shape };
        if let (Way::Out { person, .. }, Some(process)) = (&mut shape.way, &aim.process) {
            // Another than the one that was chosen, if that does not fit.
            let fits = |number: &usize| people.all[*number].is(process);
            *person = (*person..PEOPLE).chain(0..*person).find(fits).unwrap_or(*person);
        }
        // Options and extension headers are of one family; so what has some keeps it.
        if let Some(family) = aim.family.filter(|_| self.options == Options::None && self.headers.is_empty()) {
            shape.v4 = family == Family::V4;
        }
        let source_port = within(&aim.source_ports, self.ports.0);
        let mut port = None;
        if let Some(one) = aim.protocols.get(self.ports.1 % aim.protocols.len().max(1)) {
            shape.protocol = one.protocol.0;
            // ICMP mostly in its family.
            match one.protocol {
                Protocol::ICMP | Protocol::ICMPV6 if self.icmp.is_multiple_of(8) => {}
                Protocol::ICMP if self.headers.is_empty() => shape.v4 = true,
                Protocol::ICMPV6 if self.options == Options::None => shape.v4 = false,
                _ => {}
            }
            port = within(&one.ports, self.ports.1);
            if let Some(wanted) = one.icmp.get(self.icmp % one.icmp.len().max(1)) {
                shape.icmp = (0..10_000).find(|icmp| icmp_type(*icmp, shape.v4) == *wanted).unwrap_or(self.icmp);
            }
        }
        let [source, destination] = if shape.v4 { &aim.v4 } else { &aim.v6 };
        shape.source = within(source, self.source).unwrap_or(self.source);
        shape.destination = within(destination, self.destination).unwrap_or(self.destination);
        if source_port.is_some() || port.is_some() {
            shape.dhcp = None;
        }
        shape.ports = (source_port.unwrap_or(self.ports.0), port.unwrap_or(self.ports.1));
        shape
    }
}

/// The ICMP type and code of a choice.
pub fn icmp_type(choice: usize, v4: bool) -> (u8, u8) {
    if choice.is_multiple_of(3) {
        return (if v4 { 8 } else { 128 }, 0);
    }
    (ICMP_TYPES[choice % ICMP_TYPES.len()], (choice / 16 % 7) as u8)
}

/// SYN, by far the most of those that begin something.
const SYN: u8 = 0x02;
const TCP_FLAGS: [u8; 8] = [0x10, 0x10, 0x12, 0x04, 0x01, 0x00, 0x3f, 0x06];

pub fn shape() -> impl Strategy<Value = Shape> {
    let choice = || 0..1_000_000usize;
    let protocol = prop_oneof![
        6 => Just(6u8), 6 => Just(17u8), 2 => Just(1u8), 2 => Just(58u8), 5 => select(PROTOCOLS.to_vec()),
        1 => select(vec![0u8, 2, 4, 41, 43, 44, 51, 59, 60, 89, 103, 112, 135, 255]), 1 => any::<u8>()
    ];
    let hop_limit = prop_oneof![4 => Just(64u8), 3 => Just(255u8), 1 => Just(1u8), 1 => Just(0u8), 1 => 2..255u8];
    let ecn = prop_oneof![10 => Just(0u8), 2 => Just(1u8), 2 => Just(2u8), 1 => Just(3u8)];
    let dhcp = prop::option::weighted(0.08, choice());
    let aim = prop::option::weighted(0.7, choice());
    let numbers = (aim, choice(), choice(), (choice(), choice()), dhcp, choice());
    let ip = (protocol, hop_limit, ecn, options(), headers(), lie());
    (way(), any::<bool>(), numbers, ip, fragments(), transport(), frame(), before()).prop_map(
        |(way, v4, numbers, ip, fragments, transport, frame, before)| {
            let (aim, source, destination, ports, dhcp, icmp) = numbers;
            let (protocol, hop_limit, ecn, options, headers, lie) = ip;
            // ICMP is mostly that of the family.
            let protocol = match protocol {
                58 if v4 && icmp % 8 != 0 => 1,
                1 if !v4 && icmp % 8 != 0 => 58,
                other => other,
            };
            let headers = if v4 { Vec::new() } else { headers };
            // What a local process with CAP_NET_RAW says that is no packet at all is not for rules to judge.
            let lie = if matches!(way, Way::Out { .. }) { Lie::None } else { lie };
            let options = if v4 { options } else { Options::None };
            Shape {
                way,
                v4,
                aim,
                source,
                destination,
                ports,
                dhcp,
                icmp,
                protocol,
                hop_limit,
                ecn,
                options,
                headers,
                fragments,
                transport,
                lie,
                frame,
                before,
            }
        },
    )
}

fn way() -> impl Strategy<Value = Way> {
    let exit = prop_oneof![3 => Just(None), 2 => (0..EXITS).prop_map(Some)];
    let into = (0..LINK_COUNT, exit).prop_map(|(link, exit)| Way::In { link, exit });
    let link = prop_oneof![8 => (0..LINK_COUNT).prop_map(Some), 1 => Just(None)];
    let mark = prop_oneof![6 => Just(0u32), 1 => Just(u32::MAX), 1 => Just(0x10u32)];
    let by = prop_oneof![5 => Just(By::Raw), 1 => Just(By::Socket)];
    let out = (link, 0..PEOPLE, mark, by).prop_map(|(link, person, mark, by)| Way::Out { link, person, mark, by });
    prop_oneof![3 => into, 1 => out]
}

fn options() -> impl Strategy<Value = Options> {
    use Options::{
        Full, LooseRoute, None, Padding, RecordRoute, RouterAlert, StrictRoute, Timestamp, TooLong, Unknown,
    };
    let some = vec![Padding, RouterAlert, RecordRoute, Timestamp, LooseRoute, StrictRoute, Full, TooLong, Unknown];
    prop_oneof![5 => Just(None), 1 => select(some)]
}

fn headers() -> impl Strategy<Value = Vec<Header>> {
    let header = prop_oneof![
        4 => Just(Header::HopByHop),
        1 => Just(Header::HopByHopDiscard),
        4 => Just(Header::Destination),
        1 => Just(Header::LongDestination),
        2 => (select(vec![0u8, 2, 4, 253]), 0..3u8).prop_map(|(kind, left)| Header::Routing(kind, left)),
        2 => Just(Header::WholeFragment),
        1 => Just(Header::FirstFragment),
        1 => Just(Header::LaterFragment),
        1 => Just(Header::Authentication),
        1 => Just(Header::NoNext),
        1 => Just(Header::Unknown),
        1 => Just(Header::TooLong),
    ];
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(header, 1..5)]
}

fn fragments() -> impl Strategy<Value = Fragments> {
    let size = || prop_oneof![2 => Just(8u8), 1 => Just(16u8), 2 => 8..80u8];
    prop_oneof![
        14 => Just(Fragments::No),
        2 => size().prop_map(Fragments::InOrder),
        1 => size().prop_map(Fragments::Backwards),
        1 => size().prop_map(Fragments::Twice),
        1 => size().prop_map(Fragments::OnlyFirst),
        1 => size().prop_map(Fragments::OnlyLater),
        1 => size().prop_map(Fragments::Overlap),
    ]
}

fn transport() -> impl Strategy<Value = Transport> {
    let payload = prop_oneof![6 => 8..40u16, 1 => Just(0u16), 1 => 40..1200u16];
    let cut = prop_oneof![16 => Just(None), 1 => (0..21u8).prop_map(Some)];
    let flags = prop_oneof![3 => Just(SYN), 1 => select(TCP_FLAGS.to_vec())];
    (flags, prop::bool::weighted(0.95), cut, payload).prop_map(|(flags, sum, cut, payload)| Transport {
        flags,
        sum,
        cut,
        payload,
    })
}

fn lie() -> impl Strategy<Value = Lie> {
    use Lie::{Checksum, LongHeader, Longer, NoPayload, None, ShortHeader, Shorter, Version};
    let some = vec![Version, ShortHeader, LongHeader, Longer, Shorter, Checksum, NoPayload];
    prop_oneof![24 => Just(None), 1 => select(some)]
}

fn frame() -> impl Strategy<Value = Frame> {
    let tag = (select(vec![0x8100u16, 0x8100, 0x88a8]), prop_oneof![5 => Just(0u16), 1 => Just(7u16)]);
    let tags = prop_oneof![8 => Just(Vec::new()), 1 => prop::collection::vec(tag, 1..4)];
    let to = prop_oneof![16 => Just(Whom::Node), 1 => Just(Whom::Everybody), 1 => Just(Whom::SomebodyElse)];
    let trailer = prop_oneof![6 => Just(0u8), 1 => 1..40u8];
    (to, tags, trailer).prop_map(|(to, tags, trailer)| Frame { to, tags, trailer })
}

fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        16 => Just(Before::Nothing), 1 => Just(Before::Flow), 2 => Just(Before::FlowOfError), 1 => Just(Before::Itself)
    ]
}
