//! Connection tracking entries made by hand (`IPCTNL_MSG_CT_NEW`), and all of them forgotten, in the network namespace of this thread.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nodewall::net::flow::{Detail, Tuple};
use nodewall::net::protocol::Protocol;

const NESTED: u16 = 1 << 15;

/// An entry to make: both directions, and the zone.
pub type Entry = (Tuple, Tuple, u16);

/// A flow without address translation.
pub fn plain(protocol: Protocol, source: IpAddr, sport: u16, destination: IpAddr, dport: u16) -> Entry {
    let there = Tuple { source, destination, protocol, detail: Detail::Ports(sport, dport) };
    let back = Tuple { source: destination, destination: source, protocol, detail: Detail::Ports(dport, sport) };
    (there, back, 0)
}

/// Makes the entries; each must be new.
pub fn inject(entries: &[Entry]) {
    let answers = Conntrack::open().add(entries);
    assert!(answers.iter().all(|code| *code == 0), "the kernel does not take an entry: {answers:?}");
}

/// Forgets every flow of the namespace of this thread.
pub fn flush() {
    Conntrack::open().flush();
}

/// A socket for more than one injection.
pub struct Conntrack(Socket);

impl Conntrack {
    /// In the network namespace of this thread.
    pub fn open() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).expect("a socket");
        socket.bind_auto().expect("an address");
        Self(socket)
    }

    /// Makes the entries; the kernel's error for each, 0 for none.
    pub fn add(&self, entries: &[Entry]) -> Vec<i32> {
        let mut answers = Vec::new();
        for entries in entries.chunks(32) {
            let bytes: Vec<u8> = entries.iter().flat_map(message).collect();
            self.0.send(&bytes, 0).expect("sent");
            answers.extend(entries.iter().map(|_| self.answer()));
        }
        answers
    }

    /// Forgets every entry of the namespace.
    pub fn flush(&self) {
        // IPCTNL_MSG_CT_DELETE for any family; REQUEST, ACK.
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend((1u16 << 8 | 2).to_ne_bytes());
        bytes.extend(5u16.to_ne_bytes());
        bytes.extend([0; 12]);
        self.0.send(&bytes, 0).expect("sent");
        assert_eq!(self.answer(), 0, "the kernel does not forget its entries");
    }

    fn answer(&self) -> i32 {
        let mut buffer = Vec::with_capacity(4096);
        self.0.recv(&mut buffer, 0).expect("an answer");
        i32::from_ne_bytes(buffer[16..20].try_into().unwrap())
    }
}
fn message((original, reply, zone): &Entry) -> Vec<u8> {
    let family = if original.source.is_ipv4() { 2 } else { 10 };
    let mut payload = vec![family, 0, 0, 0];
    payload.extend(attribute(1 | NESTED, &tuple(original)));
    payload.extend(attribute(2 | NESTED, &tuple(reply)));
    // IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED, which it has to have by then; and an hour to live.
    payload.extend(attribute(3, &14u32.to_be_bytes()));
    payload.extend(attribute(7, &3600u32.to_be_bytes()));
    if *zone != 0 {
        payload.extend(attribute(18, &zone.to_be_bytes()));
    }
    let mut bytes = Vec::new();
    bytes.extend(((payload.len() + 16) as u32).to_ne_bytes());
    bytes.extend((1u16 << 8).to_ne_bytes());
    // REQUEST, ACK, EXCL, CREATE
    bytes.extend((0x1u16 | 0x4 | 0x200 | 0x400).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn tuple(tuple: &Tuple) -> Vec<u8> {
    let mut addresses = Vec::new();
    for (address, v4, v6) in [(tuple.source, 1, 3), (tuple.destination, 2, 4)] {
        addresses.extend(match address {
            IpAddr::V4(address) => attribute(v4, &address.octets()),
            IpAddr::V6(address) => attribute(v6, &address.octets()),
        });
    }
    let mut transport = attribute(1, &[tuple.protocol.0]);
    match tuple.detail {
        Detail::Ports(source, destination) => {
            transport.extend(attribute(2, &source.to_be_bytes()));
            transport.extend(attribute(3, &destination.to_be_bytes()));
        }
        Detail::Icmp { kind, code, id } => {
            let first = if tuple.protocol == Protocol::ICMPV6 { 7 } else { 4 };
            transport.extend(attribute(first, &id.to_be_bytes()));
            transport.extend(attribute(first + 1, &[kind]));
            transport.extend(attribute(first + 2, &[code]));
        }
        Detail::None => {}
    }
    [attribute(1 | NESTED, &addresses), attribute(2 | NESTED, &transport)].concat()
}
