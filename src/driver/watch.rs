//! Other processes' changes of our table, by nf_tables multicast.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};
use nix::sys::socket::{NetlinkAddr, bind, setsockopt, sockopt};
use tokio::sync::Notify;

use crate::nft::netlink::{Commit, Touches};

/// Says that somebody else may have changed our table.
pub struct Watch {
    socket: TokioSocket,
    ear: Ear,
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

/// Stops a [`Watch`] from listening for the time of a transaction of our own. The kernel makes a message of every element that a
/// transaction adds as long as anybody listens, which takes it longer than adding them (`nf_tables.md` section 3).
#[derive(Clone, Debug)]
pub struct Ear {
    /// Another descriptor of the watch's socket.
    socket: Arc<OwnedFd>,
    /// Its port.
    port: u32,
    missed: Arc<Missed>,
}

/// What was not heard.
#[derive(Debug, Default)]
struct Missed {
    /// Somebody else's transaction may have come while nobody listened.
    something: Notify,
    /// The kernel did not take us in again.
    shut_out: AtomicBool,
}

/// `NFNLGRP_NFTABLES` (kernel include/uapi/linux/netfilter/nfnetlink.h) as bind(2) takes groups: one bit each, from 1.
const GROUPS: u32 = 1 << (7 - 1);

/// What is told while the loop is busy has to wait here. Bursts of others' are large: 100,000 elements are 14 MB of messages, which
/// 64 MiB hold (`nf_tables.md` section 3). What is not used takes no memory.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;

/// One datagram holds at most this many bytes of notifications (kernel `NLMSG_GOODSIZE`, with room to spare).
const BUFFER_BYTES: usize = 64 * 1024;

/// Subscribes and unsubscribes: whether that works.
///
/// # Errors
/// When it does not.
pub(super) fn subscribe() -> io::Result<()> {
    Socket::new(NETLINK_NETFILTER)?.bind(&SocketAddr::new(0, GROUPS))
}

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
        let mut address = SocketAddr::new(0, 0);
        socket.socket_ref().get_address(&mut address)?;
        let another = socket.socket_ref().as_fd().try_clone_to_owned()?;
        let ear = Ear { socket: Arc::new(another), port: address.port_number(), missed: Arc::default() };
        Ok(Self { socket, ear, buffer: Vec::with_capacity(BUFFER_BYTES), own, touches: Touches::default() })
    }

    /// What a kernel stops this from listening with while it commits ([`super::Kernel::hush`]).
    pub fn ear(&self) -> Ear {
        self.ear.clone()
    }

    /// Waits for the next change by somebody else. An overrun (`ENOBUFS`) is normal and is told as such, and so is a message that
    /// cannot be read. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn touched(&mut self) -> io::Result<Touch> {
        loop {
            self.buffer.clear();
            let received = tokio::select! {
                () = self.ear.missed.something.notified() => {
                    if self.ear.missed.shut_out.load(Ordering::Relaxed) {
                        return Err(io::Error::other("the kernel does not take us in again"));
                    }
                    return Ok(self.overrun());
                }
                received = poll_fn(|context| self.socket.poll_recv(context, &mut self.buffer)) => received,
            };
            match received {
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

impl Ear {
    /// Nothing is heard from now on; whether that worked.
    pub(super) fn close(&self) -> bool {
        self.subscribe(0).is_ok()
    }

    /// Listens again.
    pub(super) fn open(&self) {
        if self.subscribe(GROUPS).is_err() {
            self.missed.shut_out.store(true, Ordering::Relaxed);
            self.missed();
        }
    }

    /// A socket that has an address is bound to it again with other groups (netlink_bind).
    fn subscribe(&self, groups: u32) -> nix::Result<()> {
        bind(self.socket.as_raw_fd(), &NetlinkAddr::new(self.port, groups))
    }

    /// Somebody else may have changed something meanwhile: the table has to be read.
    pub(super) fn missed(&self) {
        self.missed.something.notify_one();
    }
}
