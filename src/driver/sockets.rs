//! Ending TCP sockets of this host (NETLINK_SOCK_DIAG, sock_diag(7); what `ss -K` does).
//!
//! A connection whose conntrack entry is gone is not over: the next segment that this host sends makes a new entry, in the
//! direction from this host (`nf_conntrack_tcp_loose`), and its answers count as established. So the socket goes first,
//! with a reset to the other side while the entry still lets that through.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::Error;
use super::socket::{Answer, Netlink, refused};
use crate::net::protocol::Protocol;

/// The sockets of the network namespace in which it is opened.
#[derive(Debug)]
pub(super) struct Sockets(Netlink);

/// What tells a socket from an earlier or later one of the same addresses and ports.
pub(super) type Cookie = [u8; COOKIE_BYTES];
/// The sockets of connections.
pub(super) type Cookies = HashMap<Ends, Cookie>;

/// One TCP connection as its socket on this host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Ends {
    pub(super) local: (IpAddr, u16),
    pub(super) remote: (IpAddr, u16),
}

// include/uapi/linux/sock_diag.h, include/uapi/linux/inet_diag.h, include/net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NO_COOKIE: [u8; 8] = [0xff; 8];
const TCP_LISTEN: u8 = 10;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
/// Where `struct inet_diag_sockid` begins in an answer: after family, state, timer and retransmissions.
const ANSWER_ID: usize = 4;
const ID_BYTES: usize = 48;
const COOKIE_BYTES: usize = 8;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl Sockets {
    pub(super) fn open() -> Result<Self, Error> {
        Netlink::speaking(NETLINK_SOCK_DIAG).map(Self)
    }

    /// Ends the connection; whether there was one. The kernel takes a listening socket for an answer when no connection
    /// fits, so that it is looked at first, and ended by its cookie.
    pub(super) fn end(&mut self, ends: &Ends) -> Result<bool, Error> {
        let sequence = self.0.take_sequence(1);
        self.0.send(&request(SOCK_DIAG_BY_FAMILY, ends, NO_COOKIE, sequence))?;
        let mut cookie = None;
        let answer = self.0.answer(sequence, &mut |message| {
            if message.kind == SOCK_DIAG_BY_FAMILY {
                cookie = cookie_of(message.payload, ends);
            }
            Ok(())
        })?;
        let (Answer::Complete, Some(cookie)) = (answer, cookie) else { return Ok(false) };
        self.end_by(ends, cookie)
    }

    /// Ends the connection if it is still the one with this cookie; whether it was.
    pub(super) fn end_by(&mut self, ends: &Ends, cookie: Cookie) -> Result<bool, Error> {
        let sequence = self.0.take_sequence(1);
        self.0.send(&request(SOCK_DESTROY, ends, cookie, sequence))?;
        Ok(matches!(self.0.answer(sequence, &mut |_| Ok(()))?, Answer::Complete))
    }

    /// What the kernel says to the order to end a connection: an error number, 0 for none.
    pub(super) fn end_errno(&mut self, ends: &Ends) -> Result<i32, Error> {
        let sequence = self.0.take_sequence(1);
        self.0.send(&request(SOCK_DESTROY, ends, NO_COOKIE, sequence))?;
        Ok(match self.0.answer(sequence, &mut |_| Ok(()))? {
            Answer::Complete | Answer::Interrupted => 0,
            Answer::Error(answer) => answer.errno,
        })
    }

    /// Of these connections, those that there are.
    pub(super) fn cookies(&mut self, wanted: &HashSet<Ends>) -> Result<Cookies, Error> {
        let mut found = Cookies::new();
        for family in [AF_INET, AF_INET6] {
            let sequence = self.0.take_sequence(1);
            self.0.send(&list(family, sequence))?;
            let answer = self.0.answer(sequence, &mut |message| {
                if message.kind == SOCK_DIAG_BY_FAMILY
                    && let Some((ends, cookie)) = connection(message.payload)
                    && wanted.contains(&ends)
                {
                    found.insert(ends, cookie);
                }
                Ok(())
            })?;
            match answer {
                Answer::Complete => {}
                Answer::Interrupted => return Err(Error::Contended),
                Answer::Error(answer) => return Err(refused("to show the sockets".to_owned(), &answer)),
            }
        }
        Ok(found)
    }
}

/// `struct inet_diag_sockid`.
fn id(ends: &Ends, cookie: [u8; COOKIE_BYTES]) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    bytes[0..2].copy_from_slice(&ends.local.1.to_be_bytes());
    bytes[2..4].copy_from_slice(&ends.remote.1.to_be_bytes());
    for (start, address) in [(4, ends.local.0), (20, ends.remote.0)] {
        match address {
            IpAddr::V4(address) => bytes[start..start + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes[start..start + 16].copy_from_slice(&address.octets()),
        }
    }
    bytes[ID_BYTES - COOKIE_BYTES..].copy_from_slice(&cookie);
    bytes
}

/// A netlink message with `struct inet_diag_req_v2` about one connection.
fn request(kind: u16, ends: &Ends, cookie: Cookie, sequence: u32) -> Vec<u8> {
    let family = if ends.local.0.is_ipv4() { AF_INET } else { AF_INET6 };
    message(kind, NLM_F_REQUEST | NLM_F_ACK, family, &id(ends, cookie), sequence)
}

/// The same about all of a family.
fn list(family: u8, sequence: u32) -> Vec<u8> {
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, &[0; ID_BYTES], sequence)
}

fn message(kind: u16, flags: u16, family: u8, id: &[u8; ID_BYTES], sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    bytes.extend_from_slice(&((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, Protocol::TCP.0, 0, 0]);
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(id);
    bytes
}

/// The connection in a `struct inet_diag_msg`, if it is no listener, and its cookie.
fn connection(payload: &[u8]) -> Option<(Ends, Cookie)> {
    let (family, state) = (*payload.first()?, *payload.get(1)?);
    let id = payload.get(ANSWER_ID..ANSWER_ID + ID_BYTES)?;
    let address = |start: usize| match family {
        AF_INET => id.get(start..start + 4)?.first_chunk::<4>().copied().map(IpAddr::from),
        // A socket for both families shows an IPv4 connection by mapped addresses (RFC 4291 section 2.5.5.2).
        _ => id.get(start..start + 16)?.first_chunk::<16>().copied().map(|bytes| IpAddr::from(bytes).to_canonical()),
    };
    let port = |start: usize| id.get(start..start + 2)?.first_chunk::<2>().copied().map(u16::from_be_bytes);
    let ends = Ends { local: (address(4)?, port(0)?), remote: (address(20)?, port(2)?) };
    let cookie = id.last_chunk().copied()?;
    (state != TCP_LISTEN).then_some((ends, cookie))
}

/// The cookie in a `struct inet_diag_msg`, if it is the connection wanted and no listener.
fn cookie_of(payload: &[u8], wanted: &Ends) -> Option<Cookie> {
    connection(payload).filter(|(found, _)| found == wanted).map(|(_, cookie)| cookie)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ends(local: &str, remote: &str) -> Ends {
        Ends { local: (local.parse().unwrap(), 22), remote: (remote.parse().unwrap(), 40_000) }
    }

    fn answer(family: u8, state: u8, ends: &Ends) -> Vec<u8> {
        let mut bytes = vec![family, state, 0, 0];
        bytes.extend_from_slice(&id(ends, [7; COOKIE_BYTES]));
        bytes
    }

    #[test]
    fn only_the_connection_itself_has_a_cookie() {
        let v4 = ends("10.0.0.1", "10.0.0.2");
        let mapped = ends("::ffff:10.0.0.1", "::ffff:10.0.0.2");
        assert_eq!(cookie_of(&answer(AF_INET, 1, &v4), &v4), Some([7; 8]));
        assert_eq!(cookie_of(&answer(AF_INET6, 1, &mapped), &v4), Some([7; 8]));
        assert_eq!(cookie_of(&answer(AF_INET, TCP_LISTEN, &v4), &v4), None);
        assert_eq!(cookie_of(&answer(AF_INET, 1, &ends("10.0.0.1", "10.0.0.3")), &v4), None);
        let whole = answer(AF_INET, 1, &v4);
        assert!((0..whole.len()).all(|end| cookie_of(&whole[..end], &v4).is_none()));
    }
}
