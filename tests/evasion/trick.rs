//! The tricks: ways to write a packet that some filter, somewhere, once read otherwise than the host behind it.
#![allow(unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nodewall::net::protocol::Protocol;

use super::frame::{
    AD, Ext, IP, IPV6, Ip4, Ip6, Q, Shot, chain, ether, fragment, fragments, fragments_with, plain, reseal,
};

/// A port that no rule names.
const OTHER_PORT: u16 = 7;

type Alter = Box<dyn Fn(&mut Shot) + Send + Sync>;
type Wrap = Box<dyn Fn(&Shot) -> Vec<Vec<u8>> + Send + Sync>;

/// A trick.
pub struct Trick {
    pub name: String,
    /// For packets of one family only.
    pub v4: Option<bool>,
    /// For packets of one protocol only.
    pub protocol: Option<Protocol>,
    /// The addresses are not what rules about them name: a policy that goes by addresses does not deny it.
    pub spoofs: bool,
    /// It is for others than a host behind the node, or taken apart by that host itself.
    pub local: bool,
    /// A policy that allows everybody else does not have to let it through: the node drops it before it asks, connection tracking does
    /// not put it together, or it is not what the rules are about until somebody has taken it apart.
    pub odd: bool,
    /// What is done to the first segment.
    pub alter: Alter,
    /// What is done to the packets that carry the segments: the frames.
    pub wrap: Wrap,
}

impl Trick {
    pub fn applies(&self, v4: bool, protocol: Protocol) -> bool {
        self.v4.is_none_or(|of| of == v4) && self.protocol.is_none_or(|of| of == protocol)
    }

    fn only_v4(mut self) -> Self {
        self.v4 = Some(true);
        self
    }

    fn only_v6(mut self) -> Self {
        self.v4 = Some(false);
        self
    }

    fn only(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    fn spoofing(mut self) -> Self {
        self.spoofs = true;
        self
    }

    fn local(mut self) -> Self {
        self.local = true;
        self
    }

    fn odd(mut self) -> Self {
        self.odd = true;
        self
    }
}

fn framed(shot: &Shot, packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let kind = if shot.v4() { IP } else { IPV6 };
    packets.iter().map(|packet| ether(&shot.macs, &[], kind, packet)).collect()
}

fn new(name: impl Into<String>, alter: Alter, wrap: Wrap) -> Trick {
    Trick { name: name.into(), v4: None, protocol: None, spoofs: false, local: false, odd: false, alter, wrap }
}

/// What happens to the frames.
fn frames(name: impl Into<String>, wrap: impl Fn(&Shot) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Trick {
    new(name, Box::new(|_| {}), Box::new(wrap))
}

/// What happens to the packets, each in a frame.
fn packets(name: impl Into<String>, wrap: impl Fn(&Shot) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Trick {
    frames(name, move |shot| framed(shot, wrap(shot)))
}

/// What happens to the segment, in a packet without tricks; the checksum is made to hold again.
fn segment(name: &str, protocol: Protocol, alter: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Trick {
    let alter: Alter = Box::new(move |shot| {
        alter(&mut shot.segment);
        shot.seal();
    });
    new(name, alter, Box::new(|shot| framed(shot, vec![plain(shot).1]))).only(protocol)
}

/// The same without a checksum that holds.
fn unsealed(name: &str, protocol: Protocol, alter: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Trick {
    let alter: Alter = Box::new(move |shot| alter(&mut shot.segment));
    new(name, alter, Box::new(|shot| framed(shot, vec![plain(shot).1]))).only(protocol)
}

/// Another source or destination.
fn addresses(name: &str, alter: impl Fn(&mut Shot) + Send + Sync + 'static) -> Trick {
    let alter: Alter = Box::new(move |shot| {
        alter(shot);
        shot.seal();
    });
    new(name, alter, Box::new(|shot| framed(shot, vec![plain(shot).1]))).spoofing()
}

/// All of them.
pub fn tricks() -> Vec<Trick> {
    let mut all = vec![packets("none", |shot| vec![plain(shot).1])];
    all.extend(links());
    all.extend(addressing());
    all.extend(fragmenting());
    all.extend(internet());
    all.extend(options());
    all.extend(headers());
    all.extend(transport());
    all
}

fn links() -> Vec<Trick> {
    let tagged = |name: &str, tags: &'static [(u16, u16)]| {
        frames(name, move |shot| {
            let (kind, packet) = plain(shot);
            vec![ether(&shot.macs, tags, kind, &packet)]
        })
    };
    let mut all = vec![
        tagged("VLAN 0", &[(Q, 0)]),
        tagged("VLAN 0 with priority 7", &[(Q, 0xe000)]),
        tagged("VLAN 0 twice", &[(Q, 0), (Q, 0)]),
        tagged("VLAN 0 three times", &[(Q, 0), (Q, 0), (Q, 0)]),
        tagged("VLAN 0 of 802.1ad", &[(AD, 0)]),
        tagged("VLAN 0 in VLAN 0 of 802.1ad", &[(AD, 0), (Q, 0)]),
        tagged("VLAN 0 of 802.1ad in VLAN 0", &[(Q, 0), (AD, 0)]),
        tagged("VLAN 7", &[(Q, 7)]),
        tagged("VLAN 7 in VLAN 0", &[(Q, 0), (Q, 7)]),
        tagged("VLAN 0 in VLAN 7", &[(Q, 7), (Q, 0)]),
        tagged("VLAN 7 in VLAN 7 of 802.1ad", &[(AD, 7), (Q, 7)]),
    ];
    all.push(frames("a fragment in each kind of tag", |shot| {
        let kind = if shot.v4() { IP } else { IPV6 };
        let tags: [&[(u16, u16)]; 3] = [&[], &[(Q, 0)], &[(Q, 0), (Q, 0)]];
        let parts = fragments(shot, &[], &[8, 16]);
        parts.iter().zip(tags.iter().cycle()).map(|(part, tags)| ether(&shot.macs, tags, kind, part)).collect()
    }));
    all.push(frames("to everybody on the link", |shot| {
        let (kind, packet) = plain(shot);
        vec![ether(&[&[255; 6], &shot.macs[6..]].concat(), &[], kind, &packet)]
    }));
    all.push(frames("in LLC and SNAP", |shot| {
        let (kind, packet) = plain(shot);
        let body = [&[0xaa, 0xaa, 3, 0, 0, 0][..], &kind.to_be_bytes(), &packet].concat();
        vec![ether(&shot.macs, &[], body.len() as u16, &body)]
    }));
    all.push(frames("under the other family's EtherType", |shot| {
        let (kind, packet) = plain(shot);
        vec![ether(&shot.macs, &[], if kind == IP { IPV6 } else { IP }, &packet)]
    }));
    all.push(frames("with bytes behind the packet", |shot| {
        let (kind, packet) = plain(shot);
        vec![ether(&shot.macs, &[], kind, &[&packet[..], &[0x5a; 40]].concat())]
    }));
    all
}

fn addressing() -> Vec<Trick> {
    let v4 = |name: &str, source: [u8; 4]| addresses(name, move |shot| shot.source = source.into()).only_v4();
    let v6 = |name: &str, source: &str| {
        let source: Ipv6Addr = source.parse().unwrap();
        addresses(name, move |shot| shot.source = source.into()).only_v6()
    };
    vec![
        addresses("from its own address", |shot| shot.source = shot.destination),
        addresses("from its own other address", |shot| shot.source = shot.via),
        v4("from 127.0.0.1", [127, 0, 0, 1]).odd(),
        v4("from 0.0.0.0", [0, 0, 0, 0]),
        v4("from a broadcast address", [255, 255, 255, 255]),
        v4("from a group", [224, 0, 0, 1]),
        v4("from nowhere", [240, 0, 0, 1]),
        v6("from ::1", "::1"),
        v6("from ::", "::"),
        v6("from a group", "ff02::1"),
        v6("from an IPv4-mapped address", "::ffff:10.0.0.99"),
        v6("from an IPv4-mapped address of its own", "::ffff:10.0.0.5"),
        v6("from an IPv4-compatible address", "::10.0.0.99"),
        v6("from a translated address", "64:ff9b::a00:63"),
        v6("from a link-local address", "fe80::99"),
        addresses("to everybody", |shot| shot.destination = Ipv4Addr::BROADCAST.into()).only_v4().local(),
        addresses("to everybody in the subnet", |shot| shot.destination = IpAddr::from([10, 0, 0, 255]))
            .only_v4()
            .local(),
        addresses("to all hosts", |shot| {
            shot.destination = if shot.v4() { IpAddr::from([224, 0, 0, 1]) } else { "ff02::1".parse().unwrap() };
        })
        .local(),
        addresses("to 127.0.0.1", |shot| shot.destination = Ipv4Addr::LOCALHOST.into()).only_v4().odd().local(),
        addresses("to ::1", |shot| shot.destination = Ipv6Addr::LOCALHOST.into()).only_v6(),
        addresses("to its IPv4-mapped address", |shot| shot.destination = "::ffff:10.0.0.5".parse().unwrap()).only_v6(),
        addresses("to its IPv4-compatible address", |shot| shot.destination = "::10.0.0.5".parse().unwrap()).only_v6(),
    ]
}

fn reversed(mut parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    parts.reverse();
    parts
}

const EIGHTS: [usize; 9] = [8, 16, 24, 32, 40, 48, 56, 64, 72];

fn fragmenting() -> Vec<Trick> {
    vec![
        packets("fragments of 8 bytes", |shot| fragments(shot, &[], &EIGHTS)),
        packets("fragments of 8 bytes, last first", |shot| reversed(fragments(shot, &[], &EIGHTS))),
        packets("fragments of 8 bytes, each twice", |shot| {
            fragments(shot, &[], &EIGHTS).into_iter().flat_map(|part| [part.clone(), part]).collect()
        }),
        packets("fragments of 8 bytes, all twice", |shot| {
            let parts = fragments(shot, &[], &EIGHTS);
            [parts.clone(), parts].concat()
        }),
        packets("fragments of 8 bytes, out of order", |shot| {
            let parts = fragments(shot, &[], &EIGHTS);
            let (even, odd): (Vec<_>, Vec<_>) = parts.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
            odd.into_iter().chain(even).map(|(_, part)| part).collect()
        }),
        packets("a first fragment of 8 bytes", |shot| fragments(shot, &[], &[8])),
        packets("a first fragment of 8 bytes, last", |shot| reversed(fragments(shot, &[], &[8]))),
        packets("a first fragment of 16 bytes", |shot| fragments(shot, &[], &[16])),
        packets("a first fragment of 24 bytes", |shot| fragments(shot, &[], &[24])),
        packets("overlap: another port first", |shot| {
            let [bait, tail] = [(0, 16), (8, shot.segment.len())];
            let end = shot.segment.len();
            vec![
                fragment(&shot.for_port(OTHER_PORT), &[], bait.0, bait.1, true),
                fragment(shot, &[], 0, 16, true),
                fragment(shot, &[], tail.0, tail.1, false),
                fragment(shot, &[], 16, end, false),
            ]
        }),
        packets("overlap: another port last", |shot| {
            let end = shot.segment.len();
            vec![
                fragment(shot, &[], 16, end, false),
                fragment(shot, &[], 0, 16, true),
                fragment(&shot.for_port(OTHER_PORT), &[], 0, 16, true),
            ]
        }),
        packets("overlap: another port in the same place", |shot| {
            let end = shot.segment.len();
            vec![
                fragment(&shot.for_port(OTHER_PORT), &[], 0, 8, true),
                fragment(shot, &[], 0, 8, true),
                fragment(shot, &[], 8, end, false),
            ]
        }),
        packets("overlap: the tail within the head", |shot| {
            let end = shot.segment.len();
            vec![
                fragment(shot, &[], 0, end, true),
                fragment(shot, &[], 8, 16, true),
                fragment(shot, &[], 8, end, false),
            ]
        }),
        packets("overlap: the head over the tail", |shot| {
            let end = shot.segment.len();
            vec![fragment(shot, &[], 8, end, false), fragment(shot, &[], 0, end, true)]
        }),
        packets("a gap that is never filled", |shot| {
            let end = shot.segment.len();
            vec![fragment(shot, &[], 0, 8, true), fragment(shot, &[], 16, end, false)]
        }),
        packets("no last fragment", |shot| vec![fragment(shot, &[], 0, 24, true)]),
        packets("no first fragment", |shot| vec![fragment(shot, &[], 8, shot.segment.len(), false)]),
        packets("the whole as a later fragment", |shot| {
            // Offset 8 with the transport header at its beginning, which a filter must not take for one.
            let whole = [vec![0; 8], shot.segment.clone()].concat();
            let shifted = Shot { segment: whole, ..shot.clone() };
            vec![fragment(&shifted, &[], 8, shifted.segment.len(), false)]
        }),
        packets("the whole, and a later fragment", |shot| {
            let end = shot.segment.len();
            vec![fragment(shot, &[], 0, end, false), fragment(shot, &[], 8, end, false)]
        }),
        packets("beyond 65535 bytes", |shot| {
            let mut parts = fragments(shot, &[], &[8]);
            let mut far = fragment(shot, &[], 8, 16, false);
            let at = if shot.v4() { 6 } else { 42 };
            let field = if shot.v4() { 0x1fffu16 } else { 0xfff8 };
            far[at..at + 2].copy_from_slice(&field.to_be_bytes());
            if shot.v4() {
                reseal(&mut far);
            }
            parts.insert(1, far);
            parts
        }),
        packets("a later fragment of another protocol", |shot| {
            let other =
                Shot { protocol: Protocol(if shot.protocol == Protocol::TCP { 17 } else { 6 }), ..shot.clone() };
            let end = shot.segment.len();
            vec![fragment(shot, &[], 0, 8, true), fragment(&other, &[], 8, end, false)]
        }),
        packets("a first fragment of another protocol", |shot| {
            let other =
                Shot { protocol: Protocol(if shot.protocol == Protocol::TCP { 17 } else { 6 }), ..shot.clone() };
            let end = shot.segment.len();
            vec![fragment(&other, &[], 0, 8, true), fragment(shot, &[], 8, end, false), fragment(shot, &[], 0, 8, true)]
        }),
    ]
}

/// A packet of the other family, or of the same, in one.
fn tunnelled(name: &str, protocol: u8, inner: impl Fn(&Shot) -> Vec<u8> + Send + Sync + 'static) -> Trick {
    packets(name, move |shot| {
        let outer = Shot { protocol: Protocol(protocol), segment: inner(shot), ..shot.clone() };
        vec![plain(&outer).1]
    })
}

fn internet() -> Vec<Trick> {
    let v4 = |name: &str, change: fn(&mut Ip4)| {
        packets(name, move |shot| {
            let mut packet = Ip4::of(shot);
            change(&mut packet);
            vec![packet.bytes()]
        })
        .only_v4()
    };
    let bytes4 = |name: &str, change: fn(&mut Vec<u8>)| {
        packets(name, move |shot| {
            let mut bytes = Ip4::of(shot).bytes();
            change(&mut bytes);
            vec![bytes]
        })
        .only_v4()
    };
    let bytes6 = |name: &str, change: fn(&mut Vec<u8>)| {
        packets(name, move |shot| {
            let mut bytes = Ip6::of(shot, &[]).bytes();
            change(&mut bytes);
            vec![bytes]
        })
        .only_v6()
    };
    let length = |bytes: &mut Vec<u8>, at: usize, by: i16| {
        let said = u16::from_be_bytes([bytes[at], bytes[at + 1]]).wrapping_add_signed(by);
        bytes[at..at + 2].copy_from_slice(&said.to_be_bytes());
        if at == 2 {
            reseal(bytes);
        }
    };
    vec![
        v4("TTL 0", |packet| packet.ttl = 0),
        v4("TTL 1", |packet| packet.ttl = 1),
        v4("TTL 255", |packet| packet.ttl = 255),
        v4("the reserved bit", |packet| packet.fragment = 0x8000),
        v4("not to be fragmented", |packet| packet.fragment = 0x4000),
        bytes4("a bad header checksum", |bytes| bytes[10] ^= 0x55),
        bytes4("IP version 5", |bytes| {
            bytes[0] = 0x55;
            reseal(bytes);
        }),
        bytes4("a header of 16 bytes", |bytes| {
            bytes[0] = 0x44;
            reseal(bytes);
        }),
        bytes4("a header longer than the packet", |bytes| {
            bytes[0] = 0x4f;
            bytes.truncate(44);
            bytes[3] = 44;
            reseal(bytes);
        }),
        packets("a total length that cuts the packet short", move |shot| {
            let mut bytes = Ip4::of(shot).bytes();
            length(&mut bytes, 2, -8);
            vec![bytes]
        })
        .only_v4(),
        packets("a total length beyond the frame", move |shot| {
            let mut bytes = Ip4::of(shot).bytes();
            length(&mut bytes, 2, 8);
            vec![bytes]
        })
        .only_v4(),
        bytes4("a total length of nothing", |bytes| {
            bytes[2..4].fill(0);
            reseal(bytes);
        }),
        bytes4("every bit of the service field", |bytes| {
            bytes[1] = 0xff;
            reseal(bytes);
        }),
        packets("not to be fragmented, in fragments", |shot| {
            let mut parts = fragments(shot, &[], &[8, 16]);
            for part in &mut parts {
                part[6] |= 0x40;
                reseal(part);
            }
            parts
        })
        .only_v4(),
        packets("hop limit 0", |shot| vec![Ip6 { hop_limit: 0, ..Ip6::of(shot, &[]) }.bytes()]).only_v6(),
        packets("hop limit 1", |shot| vec![Ip6 { hop_limit: 1, ..Ip6::of(shot, &[]) }.bytes()]).only_v6(),
        packets("hop limit 255", |shot| vec![Ip6 { hop_limit: 255, ..Ip6::of(shot, &[]) }.bytes()]).only_v6(),
        bytes6("IP version 4", |bytes| bytes[0] = 0x40),
        bytes6("every bit of class and label", |bytes| bytes[..4].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff])),
        bytes6("a payload length of nothing", |bytes| bytes[4..6].fill(0)),
        packets("a payload length that cuts the packet short", move |shot| {
            let mut bytes = Ip6::of(shot, &[]).bytes();
            length(&mut bytes, 4, -8);
            vec![bytes]
        })
        .only_v6(),
        packets("a payload length beyond the frame", move |shot| {
            let mut bytes = Ip6::of(shot, &[]).bytes();
            length(&mut bytes, 4, 8);
            vec![bytes]
        })
        .only_v6(),
        tunnelled("in another packet of IPv4", 4, |shot| plain(shot).1).only_v4(),
        tunnelled("in another packet of IPv6", 41, |shot| plain(shot).1).only_v6(),
        tunnelled("in GRE", 47, |shot| {
            let (kind, packet) = plain(shot);
            [&[0, 0][..], &kind.to_be_bytes(), &packet].concat()
        }),
        tunnelled("in ESP", 50, |shot| [&[0, 0, 1, 0, 0, 0, 0, 1][..], &shot.segment].concat()),
        tunnelled("behind an authentication header", 51, |shot| {
            chain(&[Ext::Authentication], shot.protocol.0, &shot.segment).1
        })
        .only_v4(),
        packets("with UDP's number where there is no UDP", |shot| {
            vec![
                plain(&Shot {
                    protocol: Protocol(if shot.protocol == Protocol::UDP { 6 } else { 17 }),
                    ..shot.clone()
                })
                .1,
            ]
        }),
    ]
}

/// Four bytes of an address.
fn quad(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(_) => panic!("{address} is not of IPv4"),
    }
}

fn options() -> Vec<Trick> {
    let of = |name: &str, options: &'static [u8]| {
        packets(name, move |shot| {
            let mut padded = options.to_vec();
            padded.resize(options.len().next_multiple_of(4), 0);
            vec![Ip4 { options: padded, ..Ip4::of(shot) }.bytes()]
        })
        .only_v4()
    };
    // A source route (RFC 791): the next hop stands in the destination, and the last one at the end of the list.
    let routed = |name: &str, kind: u8| {
        packets(name, move |shot| {
            let options = [vec![kind, 7, 4], quad(shot.destination), vec![0]].concat();
            let IpAddr::V4(destination) = shot.via else { panic!("{shot:?}") };
            vec![Ip4 { options, destination, ..Ip4::of(shot) }.bytes()]
        })
        .only_v4()
    };
    let over = |name: &str, kind: u8| {
        packets(name, move |shot| {
            let options = [vec![kind, 7, 8], quad(shot.via), vec![0]].concat();
            vec![Ip4 { options, ..Ip4::of(shot) }.bytes()]
        })
        .only_v4()
    };
    const NOPS: [u8; 40] = [1; 40];
    static LONG_TIMESTAMP: [u8; 40] = {
        let mut option = [0; 40];
        option[0] = 68;
        option[1] = 40;
        option[2] = 5;
        option
    };
    static LONG_UNKNOWN: [u8; 40] = {
        let mut option = [0xaa; 40];
        option[0] = 0x9e;
        option[1] = 40;
        option
    };
    static LONG_RECORD: [u8; 40] = {
        let mut option = [0; 40];
        option[0] = 7;
        option[1] = 39;
        option[2] = 4;
        option
    };
    let in_fragments = |name: &str, cuts: &'static [usize], last_first: bool| {
        packets(name, move |shot| {
            let parts = fragments(shot, &NOPS, cuts);
            if last_first { reversed(parts) } else { parts }
        })
        .only_v4()
    };
    vec![
        of("one NOP", &[1, 0, 0, 0]),
        of("40 bytes of NOP", &NOPS),
        of("40 bytes of the end of options", &[0; 40]),
        of("router alert", &[148, 4, 0, 0]),
        of(
            "router alert and 36 bytes of NOP",
            &[
                148, 4, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                1, 1, 1, 1, 1, 1,
            ],
        ),
        of("timestamp", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        of("40 bytes of timestamps", &LONG_TIMESTAMP),
        of("record route", &[7, 7, 4, 0, 0, 0, 0]),
        of("39 bytes of record route", &LONG_RECORD),
        of("security", &[130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        of("stream identifier", &[136, 4, 0, 1]),
        of("40 bytes of an unknown option", &LONG_UNKNOWN),
        of("an option of length 0", &[7, 0, 4, 0]),
        of("an option longer than its header", &[7, 40, 4, 0]),
        of("an option that reads like ports", &[0x9e, 8, 0x27, 0x0f, 0x27, 0x0f, 0x27, 0x0f]),
        routed("a loose source route through another of its addresses", 131),
        routed("a strict source route through another of its addresses", 137),
        over("a loose source route at its end", 131),
        over("a strict source route at its end", 137),
        in_fragments("40 bytes of NOP in each fragment", &EIGHTS, false),
        in_fragments("40 bytes of NOP in each fragment, last first", &EIGHTS, true),
        packets("40 bytes of NOP in the first fragment only", |shot| {
            let end = shot.segment.len();
            vec![fragment(shot, &NOPS, 0, 8, true), fragment(shot, &[], 8, end, false)]
        })
        .only_v4(),
        packets("40 bytes of NOP in the last fragment only", |shot| {
            let end = shot.segment.len();
            vec![fragment(shot, &[], 0, 8, true), fragment(shot, &NOPS, 8, end, false)]
        })
        .only_v4(),
    ]
}

fn ext(name: impl Into<String>, headers: impl Fn(&Shot) -> Vec<Ext> + Send + Sync + 'static) -> Trick {
    packets(name, move |shot| vec![Ip6::of(shot, &headers(shot)).bytes()]).only_v6()
}

fn sixteen(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V6(v6) => v6.octets().to_vec(),
        IpAddr::V4(_) => panic!("{address} is not of IPv6"),
    }
}

/// A routing header whose route is at its end; the addresses of types 0 and 2, and the segments of type 4 (RFC 8754).
fn ended(kind: u8, shot: &Shot) -> Ext {
    let head = if kind == 4 { vec![0, 0, 0, 0] } else { vec![0; 4] };
    Ext::Routing(kind, 0, [head, sixteen(shot.destination)].concat())
}

/// A routing header with one segment to go, for a packet whose destination is the hop before.
fn going(name: &str, kind: u8) -> Trick {
    packets(name, move |shot| {
        // Of type 4 the first segment is the last one in the list, and what goes before says which is the last entry.
        let (head, list) = match kind {
            4 => (vec![1, 0, 0, 0], [sixteen(shot.destination), sixteen(shot.via)].concat()),
            _ => (vec![0; 4], sixteen(shot.destination)),
        };
        let IpAddr::V6(destination) = shot.via else { panic!("{shot:?}") };
        let header = Ext::Routing(kind, 1, [head, list].concat());
        vec![Ip6 { destination, ..Ip6::of(shot, &[header]) }.bytes()]
    })
    .only_v6()
}

/// Every order of some things.
fn orders<T: Clone>(things: &[T]) -> Vec<Vec<T>> {
    if things.is_empty() {
        return vec![Vec::new()];
    }
    (0..things.len())
        .flat_map(|first| {
            let mut rest = things.to_vec();
            let first = rest.remove(first);
            orders(&rest).into_iter().map(move |order| [vec![first.clone()], order].concat())
        })
        .collect()
}

fn headers() -> Vec<Trick> {
    let nothing = || Ext::Destination(Vec::new());
    let atomic = |shot: &Shot| Ext::Fragment(0, false, shot.ident);
    let mut all = vec![
        ext("hop-by-hop options", |_| vec![Ext::HopByHop(Vec::new())]),
        ext("hop-by-hop options of 256 bytes", |_| vec![Ext::HopByHop([vec![0x1e, 250], vec![0; 250]].concat())]),
        ext("hop-by-hop options of one byte each", |_| vec![Ext::HopByHop(vec![0; 6])]),
        ext("hop-by-hop options with router alert", |_| vec![Ext::HopByHop(vec![5, 2, 0, 0])]),
        ext("hop-by-hop options twice", |_| vec![Ext::HopByHop(Vec::new()), Ext::HopByHop(Vec::new())]),
        ext("hop-by-hop options not first", |_| vec![Ext::Destination(Vec::new()), Ext::HopByHop(Vec::new())]),
        ext("an unknown hop-by-hop option to be skipped", |_| vec![Ext::HopByHop(vec![0x1e, 2, 0, 0])]),
        ext("an unknown hop-by-hop option to be refused", |_| vec![Ext::HopByHop(vec![0x9e, 2, 0, 0])]),
        ext("destination options", move |_| vec![nothing()]),
        ext("destination options of 256 bytes", |_| vec![Ext::Destination([vec![0x1e, 250], vec![0; 250]].concat())]),
        ext("destination options with a home address", |shot| {
            vec![Ext::Destination([vec![201, 16], sixteen(shot.via)].concat())]
        }),
        ext("destination options with a tunnel limit", |_| vec![Ext::Destination(vec![4, 1, 0])]),
        ext("destination options that read like ports", |_| {
            vec![Ext::Destination(vec![0x1e, 4, 0x27, 0x0f, 0x27, 0x0f])]
        }),
        ext("an authentication header", |_| vec![Ext::Authentication]),
        ext("no next header", |_| vec![Ext::NoNext]),
        ext("no next header behind destination options", |_| vec![Ext::Destination(Vec::new()), Ext::NoNext]),
        ext("an atomic fragment", move |shot| vec![atomic(shot)]),
        ext("an atomic fragment twice", move |shot| vec![atomic(shot), atomic(shot)]),
        ext("an atomic fragment with its reserved bits", move |shot| vec![Ext::Fragment(0b110, false, shot.ident)]),
        ext("a first fragment without others in an atomic one", |shot| {
            vec![Ext::Fragment(0, false, shot.ident), Ext::Fragment(0, true, shot.ident)]
        }),
        ext("a later fragment without others in an atomic one", |shot| {
            vec![Ext::Fragment(0, false, shot.ident), Ext::Fragment(8, false, shot.ident)]
        }),
        ext("a later fragment in a first one", |shot| {
            vec![Ext::Fragment(0, true, shot.ident), Ext::Fragment(8, false, shot.ident)]
        }),
    ];
    for count in [2, 4, 7, 8, 9, 16, 40] {
        all.push(ext(format!("destination options, {count} headers"), move |_| {
            vec![Ext::Destination(Vec::new()); count]
        }));
        all.push(ext(format!("atomic fragments, {count} headers"), move |shot| {
            vec![Ext::Fragment(0, false, shot.ident); count]
        }));
    }
    for kind in [0, 1, 2, 3, 4, 5, 253] {
        all.push(ext(format!("a routing header of type {kind} at its end"), move |shot| vec![ended(kind, shot)]));
        all.push(going(&format!("a routing header of type {kind} through another of its addresses"), kind));
    }
    all.push(ext("a routing header that is longer than the packet", |_| vec![Ext::Routing(0, 200, vec![0; 4])]));
    all.push(
        packets("a packet in a segment-routing header", |shot| {
            let inner = Ip6::of(shot, &[]).bytes();
            let (next, payload) = chain(&[ended(4, shot)], 41, &inner);
            vec![Ip6 { next, payload, ..Ip6::of(shot, &[]) }.bytes()]
        })
        .only_v6()
        .local()
        .odd(),
    );
    all.push(
        packets("a jumbogram", |shot| {
            let length = 8 + shot.segment.len() as u32;
            let headers = [Ext::HopByHop([vec![0xc2, 4], length.to_be_bytes().to_vec()].concat())];
            let mut bytes = Ip6::of(shot, &headers).bytes();
            bytes[4..6].fill(0);
            vec![bytes]
        })
        .only_v6(),
    );
    all.push(
        packets("a jumbogram with another length as well", |shot| {
            let length = 8 + shot.segment.len() as u32;
            vec![Ip6::of(shot, &[Ext::HopByHop([vec![0xc2, 4], length.to_be_bytes().to_vec()].concat())]).bytes()]
        })
        .only_v6(),
    );
    let kinds = ["hop-by-hop", "destination", "routing", "fragment"];
    for order in orders(&kinds) {
        // Linux 6.18 with connection tracking loses a fragment header behind some others.
        let odd = order[0] == "hop-by-hop" && order[1] != "fragment";
        let trick = ext(order.join(", "), move |shot| {
            let header = |kind: &&str| match *kind {
                "hop-by-hop" => Ext::HopByHop(Vec::new()),
                "destination" => Ext::Destination(Vec::new()),
                "routing" => ended(4, shot),
                _ => Ext::Fragment(0, false, shot.ident),
            };
            order.iter().map(header).collect()
        });
        all.push(if odd { trick.odd() } else { trick });
    }
    all.extend(nested());
    all
}

/// Fragments with headers around, within and between.
fn nested() -> Vec<Trick> {
    let of = |name: &str, before: Vec<Ext>, inside: Vec<Ext>, cuts: &'static [usize], last_first: bool| {
        packets(name, move |shot| {
            let parts = fragments_with(shot, &before, &inside, cuts);
            if last_first { reversed(parts) } else { parts }
        })
        .only_v6()
    };
    let option = || vec![Ext::Destination(Vec::new())];
    let hops = || vec![Ext::HopByHop(Vec::new())];
    // A packet in fragments, of which each is in fragments.
    let twice = |name: &str, cuts: &'static [usize], again: &'static [usize]| {
        packets(name, move |shot| {
            let inner = fragments_with(shot, &[], &[], cuts);
            let packet = |(number, part): (usize, &Vec<u8>)| {
                // What is behind the IPv6 header is the fragment header with its part.
                let ident = shot.ident ^ (number as u32 + 1) << 20;
                let part = Shot { protocol: Protocol(44), segment: part[40..].to_vec(), ident, ..shot.clone() };
                fragments_with(&part, &[], &[], again)
            };
            inner.iter().enumerate().flat_map(packet).collect()
        })
        .only_v6()
    };
    vec![
        of("fragments behind hop-by-hop options", hops(), vec![], &EIGHTS, false),
        of("fragments behind destination options", option(), vec![], &EIGHTS, true).odd(),
        of("destination options in the first of fragments", vec![], option(), &[16], false),
        of("destination options that fill the first fragment", vec![], option(), &[8], false),
        of("destination options that fill the last of fragments", vec![], option(), &[8], true),
        of(
            "destination options cut in two",
            vec![],
            vec![Ext::Destination(vec![0x1e, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
            &[8],
            false,
        ),
        of("hop-by-hop options in fragments", vec![], hops(), &[16], false),
        of("an atomic fragment in fragments", vec![], vec![Ext::Fragment(0, false, 1)], &[16], false),
        of("an atomic fragment that fills the first fragment", vec![], vec![Ext::Fragment(0, false, 1)], &[8], false),
        of("fragments in atomic ones", vec![Ext::Fragment(0, false, 1)], vec![], &[16], false),
        of("fragments in atomic ones, last first", vec![Ext::Fragment(0, false, 1)], vec![], &[16], true),
        twice("fragments in fragments", &[16], &[16]),
        twice("fragments in fragments, a first one of 8 bytes", &[8], &[8]),
        twice("fragments in one fragment each", &[8, 16], &[]),
        packets("destination options in fragments in fragments", |shot| {
            // The transport header is in the second of the inner fragments, of which a filter sees the first one only as such.
            let inner = fragments_with(shot, &[], &[Ext::Destination(Vec::new())], &[8]);
            let packet = |(number, part): (usize, &Vec<u8>)| {
                let ident = shot.ident ^ (number as u32 + 1) << 20;
                let part = Shot { protocol: Protocol(44), segment: part[40..].to_vec(), ident, ..shot.clone() };
                fragments_with(&part, &[], &[], &[8])
            };
            inner.iter().enumerate().flat_map(packet).collect()
        })
        .only_v6(),
        packets("later fragments in atomic ones, the first one bare", |shot| {
            let end = shot.segment.len();
            let part = Shot { segment: shot.segment[8..end].to_vec(), ..shot.clone() };
            let hidden = Ip6::of(&part, &[Ext::Fragment(0, false, 1), Ext::Fragment(8, false, shot.ident)]);
            vec![fragment(shot, &[], 0, 8, true), hidden.bytes()]
        })
        .only_v6(),
        packets("destination options in later fragments only", |shot| {
            let end = shot.segment.len();
            let part = Shot { segment: shot.segment[8..end].to_vec(), ..shot.clone() };
            let later = Ip6::of(&part, &[Ext::Destination(Vec::new()), Ext::Fragment(8, false, shot.ident)]);
            vec![fragment(shot, &[], 0, 8, true), later.bytes()]
        })
        .only_v6(),
    ]
}

/// TCP's flags (RFC 9293).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;

fn transport() -> Vec<Trick> {
    let (tcp, udp, lite, sctp) = (Protocol::TCP, Protocol::UDP, Protocol::UDPLITE, Protocol::SCTP);
    let flags = |name: &str, flags: u8| segment(name, tcp, move |segment| segment[13] = flags);
    let mut all = vec![
        flags("SYN and FIN", SYN | FIN).odd(),
        flags("SYN and PSH", SYN | PSH).odd(),
        flags("SYN and RST", SYN | RST).odd(),
        flags("SYN and URG", SYN | URG).odd(),
        flags("SYN with congestion bits", SYN | 0xc0),
        flags("ACK first", ACK).odd(),
        flags("ACK and PSH first", ACK | PSH).odd(),
        flags("SYN and ACK first", SYN | ACK).odd(),
        flags("FIN", FIN).odd(),
        flags("FIN and ACK", FIN | ACK).odd(),
        flags("no flag", 0).odd(),
        flags("every flag", 0xff).odd(),
        flags("RST", RST).odd(),
        segment("a reserved bit of TCP", tcp, |segment| segment[12] |= 0x0e),
        segment("data in SYN", tcp, |segment| segment.extend(b"a byte that comes early")),
        segment("urgent data in SYN", tcp, |segment| {
            segment[13] |= URG;
            segment[18..20].copy_from_slice(&4u16.to_be_bytes());
            segment.extend(b"urgent");
        })
        .odd(),
        segment("an urgent pointer without URG", tcp, |segment| segment[18] = 9),
        segment("a TCP header of 16 bytes", tcp, |segment| segment[12] = 0x40).odd(),
        segment("a TCP header longer than the packet", tcp, |segment| segment[12] = 0xf0).odd(),
        segment("40 bytes of TCP options", tcp, |segment| {
            segment.resize(20, 0);
            segment.extend([1; 40]);
            segment[12] = 0xf0;
        }),
        segment("a TCP option of length 0", tcp, |segment| segment[20..24].copy_from_slice(&[2, 0, 5, 0xb4])).odd(),
        segment("a window of nothing", tcp, |segment| segment[14..16].fill(0)),
        segment("a fast-open cookie", tcp, |segment| {
            segment.truncate(20);
            segment.extend([34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]);
            segment[12] = 0x80;
            segment.extend(b"data that a cookie lets in");
        }),
        unsealed("a bad checksum of TCP", tcp, |segment| segment[16] ^= 0x55).odd(),
        unsealed("a bad checksum of UDP", udp, |segment| segment[6] ^= 0x55).odd(),
        unsealed("no checksum of UDP", udp, |segment| segment[6..8].fill(0)).odd(),
        unsealed("a bad checksum of UDPLite", lite, |segment| segment[6] ^= 0x55).odd(),
        unsealed("a bad checksum of SCTP", sctp, |segment| segment[8] ^= 0x55).odd(),
        segment("a UDP length of nothing", udp, |segment| segment[4..6].fill(0)).odd(),
        segment("a UDP length of its header", udp, |segment| segment[4..6].copy_from_slice(&8u16.to_be_bytes())).odd(),
        segment("a UDP length beyond the packet", udp, |segment| segment[4..6].copy_from_slice(&999u16.to_be_bytes()))
            .odd(),
        segment("UDP without data", udp, |segment| {
            segment.truncate(8);
            segment[4..6].copy_from_slice(&8u16.to_be_bytes());
        }),
        unsealed("a segment of one byte less than a UDP header", udp, |segment| segment.truncate(7)).odd(),
        segment("a coverage of one byte", lite, |segment| segment[4..6].copy_from_slice(&1u16.to_be_bytes())).odd(),
        segment("a coverage beyond the packet", lite, |segment| segment[4..6].copy_from_slice(&999u16.to_be_bytes()))
            .odd(),
        segment("ABORT before INIT", sctp, |segment| segment[12] = 6).odd(),
        segment("DATA before INIT", sctp, |segment| segment[12] = 0).odd(),
        segment("an INIT with a tag", sctp, |segment| segment[4] = 9).odd(),
        segment("ECHO with a code", Protocol::ICMP, |segment| segment[1] = 7),
        segment("ECHO with a code", Protocol::ICMPV6, |segment| segment[1] = 7),
        unsealed("a bad checksum of ICMP", Protocol::ICMP, |segment| segment[2] ^= 0x55).odd(),
        unsealed("a bad checksum of ICMPv6", Protocol::ICMPV6, |segment| segment[2] ^= 0x55).odd(),
    ];
    // Coverage of the header only is what UDPLite is there for: the checksum is of eight bytes.
    all.push(
        new(
            "a coverage of the header only",
            Box::new(|shot| {
                let rest = shot.segment.split_off(8);
                shot.segment[4..6].copy_from_slice(&8u16.to_be_bytes());
                let pseudo = pseudo_length(shot, 8 + rest.len());
                shot.segment[6..8].fill(0);
                let sum = super::frame::checksum(&[&pseudo[..], &shot.segment].concat()).to_be_bytes();
                shot.segment[6..8].copy_from_slice(&sum);
                shot.segment.extend(rest);
            }),
            Box::new(|shot| framed(shot, vec![plain(shot).1])),
        )
        .only(lite),
    );
    all
}

/// The pseudo header of UDPLite (RFC 3828 section 3.2): with the length of the whole, whatever is covered.
fn pseudo_length(shot: &Shot, length: usize) -> Vec<u8> {
    let addresses = match (shot.source, shot.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
        _ => panic!("one family"),
    };
    [addresses, (length as u32).to_be_bytes().to_vec(), vec![0, 0, 0, shot.protocol.0]].concat()
}
