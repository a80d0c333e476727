//! Questions to a netlink family that answers at once, with a limit on the time that they take.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::attribute::{Message, message, messages};

/// The kernel answers before the send returns; a wait means that something is broken.
const PATIENCE_SECONDS: i64 = 1;
/// A dump fills datagrams of up to 32 KiB (netlink_dump).
const DATAGRAM_BYTES: usize = 64 * 1024;
/// How often a dump is begun again that a change interrupted.
const ATTEMPTS: usize = 5;

/// netlink(7).
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A socket for questions.
pub(super) struct Asker {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Asker {
    /// A socket in the calling thread's network namespace. Needs no privilege.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; DATAGRAM_BYTES] })
    }

    /// What is read from each message of a dump.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.ask(kind, NLM_F_REQUEST | NLM_F_DUMP, payload, &mut read)? {
                return Ok(found);
            }
        }
        Err(io::Error::other("it changes faster than it can be read"))
    }

    /// What is read from the one answer to a question.
    pub(super) fn one<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        Ok(self.ask(kind, NLM_F_REQUEST, payload, read)?.and_then(|found| found.into_iter().next()))
    }

    /// The answers; `None` when a dump was interrupted.
    fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        self.sequence += 1;
        self.socket.send(&message(kind, flags, self.sequence, payload), 0)?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                length => length?,
            };
            for message in messages(&self.buffer[..length]).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                    NLMSG_ERROR => {
                        let code = message.payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(Some(found)) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => found.extend(read(&message)),
                }
            }
            // A question that is no dump has one answer, and no end.
            if flags & NLM_F_DUMP == 0 {
                return Ok(Some(found));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use netlink_sys::protocols::NETLINK_ROUTE;

    use super::*;

    /// include/uapi/linux/rtnetlink.h
    const RTM_NEWLINK: u16 = 16;
    const RTM_GETLINK: u16 = 18;

    #[test]
    fn a_dump_is_all_of_it_and_a_refusal_is_an_error() {
        let mut asker = Asker::open(NETLINK_ROUTE).unwrap();
        let links = asker.dump(RTM_GETLINK, &[0; 16], |message| (message.kind == RTM_NEWLINK).then_some(())).unwrap();
        assert_eq!(links.len(), nix::net::if_::if_nameindex().unwrap().iter().count());
        let refused = asker.one(0xfff0, &[], |_| Some(())).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EOPNOTSUPP), "{refused}");
        // The end of one answer is not taken for that of the next.
        assert_eq!(asker.dump(RTM_GETLINK, &[0; 16], |_| Some(())).unwrap().len(), links.len());
    }
}
