//! A netlink socket on which the kernel tells things without being asked for each: never blocking, bounded, losses noticed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};

use super::Error;
use crate::nft::netlink::{acknowledgement, messages};

/// The socket.
pub(super) struct Inbox {
    socket: Socket,
    /// What it is for, for errors.
    what: &'static str,
    buffer: Vec<u8>,
    sequence: u32,
    overruns: u64,
}

/// What [`Inbox::next`] found.
pub(super) enum Next<'a> {
    /// A datagram.
    Datagram(&'a [u8]),
    /// The kernel had no room since the last call: things are missing here.
    Overrun,
    /// There is nothing now.
    Nothing,
}

/// One datagram is smaller: the kernel's `NLMSG_GOODSIZE`, or what [`super::PacketLog`] asks for.
const DATAGRAM_BYTES: usize = 64 << 10;
/// The kernel answers a request before the send returns; a wait means that something is broken.
const PATIENCE_MILLISECONDS: u16 = 1000;
/// How many datagrams may come before the answer to a request.
const MOST_BEFORE_ANSWER: usize = 4096;

impl Inbox {
    /// A socket in the network namespace of the calling thread, in which it stays; in these groups, one bit each, and with room for
    /// about so many bytes. The kernel counts what it takes in memory, its own headers included, and doubles the number (socket(7)).
    pub(super) fn open(what: &'static str, groups: u32, room_bytes: usize) -> Result<Self, Error> {
        let failed = |attempt| move |source: io::Error| Error::Socket { attempt, what, source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed("open a socket for"))?;
        // Nobody but the kernel may send to a socket that is connected to it (`netlink_getsockbyportid`).
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect a socket for"))?;
        // Without it, losses would go unnoticed.
        socket.set_no_enobufs(false).map_err(failed("set up a socket for"))?;
        // More than net.core.rmem_max takes CAP_NET_ADMIN; without it, overruns are more often.
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &room_bytes).is_err() {
            let _ = setsockopt(&socket.as_fd(), sockopt::RcvBuf, &room_bytes);
        }
        let mut address = SocketAddr::new(0, 0);
        socket.get_address(&mut address).map_err(failed("set up a socket for"))?;
        // A socket that has an address is bound to it again with groups (netlink_bind); only now, so that there is room when things come.
        if groups != 0 {
            socket.bind(&SocketAddr::new(address.port_number(), groups)).map_err(failed("listen to"))?;
        }
        Ok(Self { socket, what, buffer: vec![0; DATAGRAM_BYTES], sequence: 0, overruns: 0 })
    }

    /// How often the kernel had no room.
    pub(super) const fn overruns(&self) -> u64 {
        self.overruns
    }

    /// The next thing, without waiting.
    ///
    /// # Errors
    /// When the socket is broken.
    pub(super) fn next(&mut self) -> Result<Next<'_>, Error> {
        loop {
            // With MSG_TRUNC the length is that of the datagram even where the buffer was too small for it.
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    if let Some(datagram) = self.buffer.get(..length) {
                        return Ok(Next::Datagram(datagram));
                    }
                    self.overruns += 1;
                    return Ok(Next::Overrun);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Next::Nothing),
                Err(Errno::ENOBUFS) => {
                    self.overruns += 1;
                    return Ok(Next::Overrun);
                }
                Err(errno) => return Err(self.failed("read", errno)),
            }
        }
    }

    /// Sends the request that `encode` makes for a sequence number, and waits for the kernel's answer: an error number, 0 for none. What
    /// else comes before it is left aside.
    ///
    /// # Errors
    /// When the socket is broken, or nothing is answered within a second.
    pub(super) fn ask(&mut self, encode: impl FnOnce(u32) -> Vec<u8>) -> Result<i32, Error> {
        self.sequence += 1;
        let sequence = self.sequence;
        let bytes = encode(sequence);
        while let Err(errno) = send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()) {
            if errno != Errno::EINTR {
                return Err(self.failed("ask for", errno));
            }
        }
        for _ in 0..MOST_BEFORE_ANSWER {
            match self.next()? {
                Next::Datagram(datagram) => {
                    let answers = messages(datagram).unwrap_or_default();
                    let own = answers.iter().filter(|answer| answer.sequence == sequence);
                    let answered = own.filter_map(|answer| acknowledgement(answer).ok().flatten()).next();
                    if let Some(answer) = answered {
                        return Ok(answer.errno);
                    }
                }
                Next::Overrun => {}
                Next::Nothing => {
                    let ready = poll(
                        &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
                        PollTimeout::from(PATIENCE_MILLISECONDS),
                    );
                    if matches!(ready, Ok(0)) {
                        break;
                    }
                }
            }
        }
        Err(self.failed("ask for", Errno::ETIMEDOUT))
    }

    fn failed(&self, attempt: &'static str, errno: Errno) -> Error {
        Error::Socket { attempt, what: self.what, source: errno.into() }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
