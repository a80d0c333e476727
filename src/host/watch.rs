//! Changes of links, addresses and default routes, by rtnetlink multicast, and of the devices behind them.

use std::future::poll_fn;
use std::io;
use std::path::Path;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::device_watch::DeviceWatch;

/// Says that something about links, addresses, default routes or devices changed; what it was, is for [`super::collect`] to see.
pub struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    devices: DeviceWatch,
}

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Links, addresses or default routes.
    Links,
    /// Devices: what is known of them is out of date.
    Devices,
}

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`
/// (kernel include/uapi/linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// One datagram holds at most this many bytes of notifications (kernel `NLMSG_GOODSIZE`, with a margin for links with many
/// virtual functions).
const BUFFER_BYTES: usize = 64 * 1024;

impl Watch {
    /// Subscribes in the network namespace of the calling thread; call it before the first [`super::collect`], so that
    /// nothing falls between.
    ///
    /// # Errors
    /// When rtnetlink's socket cannot be opened; needs no privilege. RDMA netlink, devlink and events of devices are listened to where
    /// they are to be had. `root` has the /sys that tells whether RDMA is loaded.
    pub fn open(root: &Path) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER_BYTES), devices: DeviceWatch::open(root) })
    }

    /// Waits for the next change, and says of what. Everything that is queued by then counts as one change, and so does an overrun
    /// (`ENOBUFS`): then something happened that nobody will tell us about. Routes that are no default routes are no
    /// change, as a cluster network adds and removes one per pod.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn changed(&mut self) -> io::Result<Changed> {
        let mut changed = false;
        loop {
            self.buffer.clear();
            // Only the first read waits; what is queued behind it is taken with it.
            let received = if changed {
                self.socket.socket_ref().recv(&mut self.buffer, 0).map(|_| ())
            } else {
                tokio::select! {
                    received = poll_fn(|context| self.socket.poll_recv(context, &mut self.buffer)) => received,
                    () = self.devices.changed() => return Ok(Changed::Devices),
                }
            };
            match received {
                Ok(()) => changed |= is_of_interest(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Changed::Links),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => changed = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Bytes of `struct nlmsghdr` (netlink(7)): length, type, flags, sequence, port.
const HEADER_BYTES: usize = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// Whether a datagram has a message about anything but a route to somewhere in particular. `rtm_dst_len` is the second byte
/// of `struct rtmsg` (rtnetlink(7)).
fn is_of_interest(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_at_checked(HEADER_BYTES) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let is_route = matches!(kind, RTM_NEWROUTE | RTM_DELROUTE);
        if !is_route || rest.get(HEADER_BYTES + 1) == Some(&0) {
            return true;
        }
        let aligned = length.next_multiple_of(4);
        if aligned < HEADER_BYTES {
            return true;
        }
        rest = rest.get(aligned..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, prefix_length: u8) -> Vec<u8> {
        let mut bytes = 28u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([2, prefix_length]);
        bytes.extend([0; 10]);
        bytes
    }

    #[test]
    fn pod_routes_are_no_change_and_default_routes_are() {
        assert!(!is_of_interest(&message(RTM_NEWROUTE, 32)));
        assert!(is_of_interest(&message(RTM_DELROUTE, 0)));
        assert!(is_of_interest(&message(16, 24)), "a link");
        assert!(is_of_interest(&[message(RTM_NEWROUTE, 32), message(RTM_NEWROUTE, 0)].concat()));
        assert!(!is_of_interest(&[message(RTM_NEWROUTE, 32), message(RTM_DELROUTE, 24)].concat()));
        assert!(!is_of_interest(&[]));
    }
}
