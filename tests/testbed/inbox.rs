//! Sockets on the node that take whatever is let through to this host: raw(7) ones, which get a packet before its protocol does.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use nodewall::net::protocol::Protocol;
use nodewall::simulate::Packet;

/// RFC 4443 section 2.1: smaller ICMPv6 types are errors.
const FIRST_OF_NO_ERROR: u8 = 128;

/// The sockets.
pub struct Inbox {
    sockets: Vec<(bool, SockProtocol, OwnedFd)>,
}

impl Inbox {
    /// Whether they take a packet.
    pub fn takes(packet: &Packet) -> bool {
        match packet.protocol {
            Some(Protocol::TCP | Protocol::UDP) => true,
            Some(Protocol::ICMP) => packet.source.is_ipv4(),
            Some(Protocol::ICMPV6) => {
                packet.icmp_of(Protocol::ICMPV6).is_some_and(|(kind, _)| kind >= FIRST_OF_NO_ERROR)
            }
            _ => false,
        }
    }

    /// In the network namespace of this thread.
    pub fn open() -> Self {
        let v4 = (AddressFamily::Inet, SockProtocol::Icmp);
        let v6 = (AddressFamily::Inet6, SockProtocol::IcmpV6);
        let each = [v4, v6]
            .into_iter()
            .flat_map(|(family, icmp)| [SockProtocol::Tcp, SockProtocol::Udp, icmp].map(|protocol| (family, protocol)));
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = |(family, protocol)| {
            let socket = socket(family, SockType::Raw, flags, protocol).expect("a raw socket");
            setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("a large buffer");
            (family == AddressFamily::Inet, protocol, socket)
        };
        Self { sockets: each.map(open).collect() }
    }

    /// The identifications of the packets that came since it was last asked: IPv4 by the header, IPv6, whose header such a socket does
    /// not get, by the end of the data.
    pub fn taken(&self) -> Vec<u16> {
        let mut taken = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        for (v4, protocol, socket) in &self.sockets {
            while let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                match &buffer[..length] {
                    // An ICMPv6 error ends with another packet's data.
                    [0..FIRST_OF_NO_ERROR, ..] if *protocol == SockProtocol::IcmpV6 => {}
                    [_, _, _, _, a, b, ..] if *v4 => taken.push(u16::from_be_bytes([*a, *b])),
                    [.., a, b, c, d] if !*v4 && (a, b) == (c, d) => taken.push(u16::from_be_bytes([*a, *b])),
                    _ => {}
                }
            }
        }
        taken
    }
}
