//! Sockets that listen, as sock_diag(7) and the files in /proc/net tell of them, and the one socket that a packet is for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::ask::Asker;
use super::attribute::{Attributes, attribute};
use crate::net::protocol::Protocol;

/// One socket that listens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Listening {
    /// The protocol of its packets.
    pub protocol: Protocol,
    /// The addresses that it is bound to: several for SCTP only.
    pub addresses: Vec<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whether a socket of IPv6 takes IPv4 as well.
    pub both_families: bool,
    /// The index of the interface that it is bound to, or 0.
    pub device: u32,
    /// Its owner.
    pub uid: u32,
    /// Its number among the inodes of sockets.
    pub inode: u64,
}

// include/uapi/linux/sock_diag.h, include/uapi/linux/inet_diag.h, include/net/tcp_states.h, include/uapi/linux/in.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP_SYN_RECV: u8 = 3;
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_LOCALS: u16 = 12;
const INET_DIAG_CGROUP_ID: u16 = 21;
const IPPROTO_MPTCP: u32 = 262;
const ID_BYTES: usize = 48;
/// `struct inet_diag_msg` up to its attributes.
const MESSAGE_BYTES: usize = 72;
/// `struct sockaddr_storage`.
const SOCKADDR_BYTES: usize = 128;

/// What is asked for: a protocol with ports, the number that the kernel is asked by, and in which state such a socket waits for whoever
/// comes. A socket of MPTCP waits on one of TCP that no process has open; whose it is, only MPTCP tells. Go programs listen with it
/// unless told otherwise (Go 1.24 release notes, "net").
pub(super) const KINDS: &[(Protocol, u32, u8)] = &[
    (Protocol::TCP, Protocol::TCP.0 as u32, TCP_LISTEN),
    (Protocol::TCP, IPPROTO_MPTCP, TCP_LISTEN),
    (Protocol::UDP, Protocol::UDP.0 as u32, TCP_CLOSE),
    (Protocol::UDPLITE, Protocol::UDPLITE.0 as u32, TCP_CLOSE),
    (Protocol::SCTP, Protocol::SCTP.0 as u32, TCP_LISTEN),
];

/// The sockets of the calling thread's network namespace that listen in this way.
pub(super) fn ask((protocol, number, state): (Protocol, u32, u8)) -> io::Result<Vec<Listening>> {
    let mut asker = Asker::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        found.extend(asker.dump(SOCK_DIAG_BY_FAMILY, &request(family, number, state), |message| {
            listening(message.payload, protocol)
        })?);
    }
    Ok(found)
}

/// `struct inet_diag_req_v2` for all sockets of a family, protocol and state.
fn request(family: u8, protocol: u32, state: u8) -> Vec<u8> {
    // A number that is too large for its place is in the attribute, and only there.
    let mut bytes = vec![family, u8::try_from(protocol).unwrap_or(Protocol::TCP.0), 0, 0];
    bytes.extend((1_u32 << state).to_ne_bytes());
    bytes.extend([0; ID_BYTES]);
    if protocol > u32::from(u8::MAX) {
        bytes.extend(attribute(INET_DIAG_REQ_PROTOCOL, &protocol.to_ne_bytes()));
    }
    bytes
}

/// The socket of an answer (`struct inet_diag_msg`); `None` for one that is connected, has no port or is cut short.
pub fn listening(payload: &[u8], protocol: Protocol) -> Option<Listening> {
    let (head, attributes) = payload.split_first_chunk::<MESSAGE_BYTES>()?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let [family, state, ..] = *head;
    let port = u16::from_be_bytes([head[4], head[5]]);
    let remote = u16::from_be_bytes([head[6], head[7]]);
    if port == 0 || remote != 0 || !matches!(state, TCP_CLOSE | TCP_LISTEN) {
        return None;
    }
    let local: [u8; 16] = head[8..24].try_into().ok()?;
    let attributes = Attributes::of(attributes);
    let mut addresses: Vec<IpAddr> = attributes
        .get(INET_DIAG_LOCALS)
        .into_iter()
        .flat_map(|all| all.chunks(SOCKADDR_BYTES))
        .filter_map(sockaddr)
        .collect();
    if addresses.is_empty() {
        addresses.push(address(family, local)?);
    }
    Some(Listening {
        protocol,
        addresses,
        port,
        both_families: family == AF_INET6 && attributes.u8(INET_DIAG_SKV6ONLY) != Some(1),
        device: word(40),
        uid: word(64),
        inode: word(68).into(),
    })
}

/// The socket of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its owner.
    pub uid: u32,
    /// Its number among the inodes of sockets; 0 where no process has it: the connection is not accepted yet, or over.
    pub inode: u64,
    /// The number of the control group in which it was opened (Linux 5.9).
    pub cgroup: Option<u64>,
    /// Whether it is a whole socket: the kernel keeps less of a connection that is about to begin, or is over, and does not know its owner.
    pub whole: bool,
}

/// The socket by which this host has a flow, or that a packet with these ends would come to: of TCP and UDP. `None` where there is none.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn of_flow(
    asker: &mut Asker,
    protocol: Protocol,
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
) -> io::Result<Option<Held>> {
    match asker.one(SOCK_DIAG_BY_FAMILY, &exactly(protocol, local, remote), |message| held(message.payload)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        answer => answer,
    }
}

/// `struct inet_diag_req_v2` for one socket. What the kernel finds for IPv4 may be one of IPv6 that takes both.
fn exactly(protocol: Protocol, local: (IpAddr, u16), remote: (IpAddr, u16)) -> Vec<u8> {
    // For UDP, source and destination are those of a packet that comes ("swapped for historical reasons": `udp_dump_one`).
    let (source, destination) = if protocol == Protocol::TCP { (local, remote) } else { (remote, local) };
    let family = if local.0.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut bytes = vec![family, protocol.0, 0, 0];
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(destination.1.to_be_bytes());
    for address in [source.0, destination.0] {
        let octets = match address {
            IpAddr::V4(address) => [address.to_bits().to_be_bytes(), [0; 4], [0; 4], [0; 4]].concat(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        bytes.extend(octets);
    }
    // Any interface, any cookie.
    bytes.extend([0; 4]);
    bytes.extend([0xff; 8]);
    bytes
}

/// Whose the socket of an answer is (`struct inet_diag_msg`).
pub fn held(payload: &[u8]) -> Option<Held> {
    let (head, attributes) = payload.split_first_chunk::<MESSAGE_BYTES>()?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    Some(Held {
        uid: word(64),
        inode: word(68).into(),
        cgroup: Attributes::of(attributes).u64(INET_DIAG_CGROUP_ID),
        whole: !matches!(head[1], TCP_SYN_RECV | TCP_TIME_WAIT | TCP_NEW_SYN_RECV),
    })
}

fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        AF_INET6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// The address in a `struct sockaddr_in` or `struct sockaddr_in6`, and its port.
pub(super) fn sockaddr_port(bytes: &[u8]) -> Option<(IpAddr, u16)> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?).into());
    let v6 = || Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?).into());
    let address = match u8::try_from(family).ok()? {
        AF_INET => v4()?,
        AF_INET6 => v6()?,
        _ => return None,
    };
    Some((address, port))
}

fn sockaddr(bytes: &[u8]) -> Option<IpAddr> {
    sockaddr_port(bytes).map(|(address, _)| address)
}

/// The files in /proc/net with the sockets of a protocol, for a machine that cannot be asked. They tell neither of interfaces nor of
/// `IPV6_V6ONLY`, so that a socket of IPv6 counts for both families.
pub(super) const FILES: &[(&str, Protocol)] = &[
    ("tcp", Protocol::TCP),
    ("tcp6", Protocol::TCP),
    ("udp", Protocol::UDP),
    ("udp6", Protocol::UDP),
    ("udplite", Protocol::UDPLITE),
    ("udplite6", Protocol::UDPLITE),
];

/// The sockets that listen in a file of /proc/net (proc_pid_net(5)); a line that is none is passed over.
pub fn from_text(text: &str, protocol: Protocol) -> Vec<Listening> {
    let wanted = if protocol == Protocol::TCP { TCP_LISTEN } else { TCP_CLOSE };
    let socket = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (address, port) = hexadecimal(words.next()?)?;
        let (_, remote) = hexadecimal(words.next()?)?;
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        // Queues, timer, retransmissions, user, time-out, inode.
        let uid = words.nth(3)?.parse().ok()?;
        let inode = words.nth(1)?.parse().ok()?;
        (state == wanted && port != 0 && remote == 0).then_some(Listening {
            protocol,
            addresses: vec![address],
            port,
            both_families: address.is_ipv6(),
            device: 0,
            uid,
            inode,
        })
    };
    text.lines().filter_map(socket).collect()
}

/// `0100007F:0016`: the words of the address as this machine's numbers, and the port.
fn hexadecimal(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let words =
        address.as_bytes().chunks(8).map(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let address = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// An answer as the kernel writes it: a socket of IPv6 on this port in this state, with these attributes after it.
    fn answer(state: u8, ports: (u16, u16), address: Ipv6Addr, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![AF_INET6, state, 0, 0];
        bytes.extend(ports.0.to_be_bytes());
        bytes.extend(ports.1.to_be_bytes());
        bytes.extend(address.octets());
        bytes.extend([0; 16]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 20]);
        bytes.extend(1000_u32.to_ne_bytes());
        bytes.extend(4242_u32.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn a_socket_that_listens_is_read_and_one_that_is_connected_is_not() {
        let only_v6 = attribute(INET_DIAG_SKV6ONLY, &[1]);
        let any = Ipv6Addr::UNSPECIFIED;
        let found = listening(&answer(TCP_LISTEN, (8265, 0), any, &only_v6), Protocol::TCP).unwrap();
        let expected = Listening {
            protocol: Protocol::TCP,
            addresses: vec![any.into()],
            port: 8265,
            both_families: false,
            device: 7,
            uid: 1000,
            inode: 4242,
        };
        assert_eq!(found, expected);
        assert!(listening(&answer(TCP_LISTEN, (8265, 0), any, &[]), Protocol::TCP).unwrap().both_families);
        assert_eq!(listening(&answer(TCP_CLOSE, (53, 9), any, &[]), Protocol::UDP), None, "connected");
        assert_eq!(listening(&answer(TCP_CLOSE, (0, 0), any, &[]), Protocol::UDP), None, "no port");
        assert_eq!(listening(&answer(1, (22, 0), any, &[]), Protocol::TCP), None, "another state");
    }

    #[test]
    fn a_socket_of_sctp_has_all_its_addresses() {
        let mut storage = vec![0; 2 * SOCKADDR_BYTES];
        for (at, last) in [(0, 1), (SOCKADDR_BYTES, 2)] {
            storage[at..at + 2].copy_from_slice(&u16::from(AF_INET).to_ne_bytes());
            storage[at + 4..at + 8].copy_from_slice(&[10, 0, 0, last]);
        }
        let locals = attribute(INET_DIAG_LOCALS, &storage);
        let found = listening(&answer(TCP_LISTEN, (9, 0), Ipv6Addr::UNSPECIFIED, &locals), Protocol::SCTP).unwrap();
        assert_eq!(found.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);
    }

    #[test]
    fn the_files_of_procfs_tell_the_same() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             \x20  0: 0100007F:15B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000   108        0 12345 1 0000000000000000\n\
             \x20  1: 0200000A:9C40 0300000A:0016 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000\n";
        let found = from_text(text, Protocol::TCP);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((found[0].port, found[0].uid, found[0].inode, found[0].both_families), (5555, 108, 12345, false));
        let text =
            "   0: B80D0120000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 7 0 9 2";
        let found = from_text(text, Protocol::UDP);
        assert_eq!(found[0].addresses, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        assert!(found[0].both_families);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in ".{0,300}") {
            let _ = (listening(&bytes, Protocol::SCTP), held(&bytes));
            let _ = sockaddr_port(&bytes);
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let _ = from_text(&text, protocol);
            }
        }
    }
}
