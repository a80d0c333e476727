//! Other processes' changes of our table, by nf_tables multicast.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};

use crate::nft::netlink::{Commit, Touches};

/// Says that somebody else may have changed our table.
pub struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    /// The port of our own transactions.
    own: Option<u32>,
    touches: Touches,
}

/// Something to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touch {
    /// A transaction of somebody else's changed our table.
    By(Commit),
    /// Notifications were lost: the table has to be read.
    Overrun,
}

/// `NFNLGRP_NFTABLES` (kernel include/uapi/linux/netfilter/nfnetlink.h) as bind(2) takes groups: one bit each, from 1.
const GROUPS: u32 = 1 << (7 - 1);

/// Our own transactions are told to us, too: one of 100,000 elements in 14 MB of messages, which 64 MiB hold
/// (`nf_tables.md` section 3). What is not used takes no memory.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;

/// One datagram holds at most this many bytes of notifications (kernel `NLMSG_GOODSIZE`, with room to spare).
const BUFFER_BYTES: usize = 64 * 1024;

impl Watch {
    /// Subscribes in the network namespace of the calling thread; transactions from the port `own` are not told.
    ///
    /// # Errors
    /// When the socket cannot be opened; it takes CAP_NET_ADMIN.
    pub fn open(own: Option<u32>) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        // Without the privilege for more than net.core.rmem_max, overruns are more often.
        if setsockopt(&socket.socket_ref().as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            let _ = setsockopt(&socket.socket_ref().as_fd(), sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
        }
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER_BYTES), own, touches: Touches::default() })
    }

    /// Waits for the next change by somebody else. An overrun (`ENOBUFS`) is normal and is told as such, and so is a message that
    /// cannot be read. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn touched(&mut self) -> io::Result<Touch> {
        loop {
            self.buffer.clear();
            match poll_fn(|context| self.socket.poll_recv(context, &mut self.buffer)).await {
                Ok(()) => match self.touches.take(&self.buffer, self.own) {
                    Ok(None) => {}
                    Ok(Some(commit)) => return Ok(Touch::By(commit)),
                    Err(_) => return Ok(self.overrun()),
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(self.overrun()),
                Err(error) => return Err(error),
            }
        }
    }

    fn overrun(&mut self) -> Touch {
        self.touches.lost();
        Touch::Overrun
    }
}
