//! Changes of RDMA devices, of ports that devlink knows, and of PCI functions. What a kernel does not have is not watched.

use std::future::{pending, poll_fn};
use std::io;
use std::path::{Path, PathBuf};
use std::task::Poll;

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT, NETLINK_RDMA};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::devlink;

/// `RDMA_NL_GROUP_NOTIFY` (include/uapi/rdma/rdma_netlink.h, since Linux 6.12: what `rdma monitor` listens to).
const RDMA_GROUP: u32 = 4;
/// The kernel's own events; udev's are group 2.
const UEVENT_GROUP: u32 = 1;
const BUFFER_BYTES: usize = 64 * 1024;

/// Says that a device may have changed.
pub(super) struct DeviceWatch {
    root: PathBuf,
    rdma: Option<TokioSocket>,
    devlink: Option<TokioSocket>,
    uevents: Option<TokioSocket>,
    buffer: Vec<u8>,
}

impl DeviceWatch {
    /// Subscribes to what there is.
    pub(super) fn open(root: &Path) -> Self {
        let devlink = devlink::group().and_then(|group| subscribe(NETLINK_GENERIC, group));
        let uevents = subscribe(NETLINK_KOBJECT_UEVENT, UEVENT_GROUP);
        let mut watch =
            Self { root: root.to_owned(), rdma: None, devlink, uevents, buffer: Vec::with_capacity(BUFFER_BYTES) };
        watch.look_for_rdma();
        watch
    }

    /// RDMA may be loaded later. Opening its socket before would load it.
    fn look_for_rdma(&mut self) {
        if self.rdma.is_none() && self.root.join("sys/class/infiniband").exists() {
            self.rdma = subscribe(NETLINK_RDMA, RDMA_GROUP);
        }
    }

    /// Waits for the next change; never comes back where there is nothing to listen to.
    pub(super) async fn changed(&mut self) {
        loop {
            let Self { rdma, devlink, uevents, buffer, .. } = self;
            if rdma.is_none() && devlink.is_none() && uevents.is_none() {
                pending::<()>().await;
            }
            let heard = poll_fn(|context| {
                for (socket, is_uevent) in [(&mut *rdma, false), (&mut *devlink, false), (&mut *uevents, true)] {
                    let Some(listening) = socket else { continue };
                    buffer.clear();
                    match listening.poll_recv(context, buffer) {
                        Poll::Pending => {}
                        Poll::Ready(Ok(())) if is_uevent => return Poll::Ready(is_of_interest(buffer)),
                        Poll::Ready(Ok(())) => return Poll::Ready(true),
                        Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {
                            return Poll::Ready(false);
                        }
                        Poll::Ready(Err(error)) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                            return Poll::Ready(true);
                        }
                        // A socket that is broken is one source less; links still tell most.
                        Poll::Ready(Err(_)) => {
                            *socket = None;
                            return Poll::Ready(true);
                        }
                    }
                }
                Poll::Pending
            })
            .await;
            if heard {
                self.look_for_rdma();
                return;
            }
        }
    }
}

fn subscribe(protocol: isize, group: u32) -> Option<TokioSocket> {
    let mut socket = TokioSocket::new(protocol).ok()?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0)).ok()?;
    socket.socket_mut().add_membership(group).ok()?;
    Some(socket)
}

/// Whether an event of the kernel's is about an RDMA device or a PCI function that came, went, or got another driver:
/// "add@/devices/...", then "SUBSYSTEM=infiniband" and others, each with a zero at its end (kernel lib/kobject_uevent.c).
pub fn is_of_interest(event: &[u8]) -> bool {
    let mut parts = event.split(|byte| *byte == 0);
    let action = parts.next().unwrap_or_default();
    let action = action.split(|byte| *byte == b'@').next().unwrap_or_default();
    let of = |subsystem: &[u8]| {
        event.split(|byte| *byte == 0).any(|part| part.strip_prefix(b"SUBSYSTEM=") == Some(subsystem))
    };
    match action {
        b"add" | b"remove" | b"bind" | b"unbind" | b"move" => of(b"infiniband") || of(b"pci"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_rdma_devices_and_pci_functions_are_of_interest() {
        let event = |action: &str, subsystem: &str| {
            format!("{action}@/devices/pci0000:3a/0000:3a:00.1\0ACTION={action}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0")
                .into_bytes()
        };
        for (action, subsystem, expected) in [
            ("add", "infiniband", true),
            ("remove", "infiniband", true),
            ("bind", "pci", true),
            ("unbind", "pci", true),
            ("change", "pci", false),
            ("add", "net", false),
            ("add", "pci_bus", false),
            ("add", "infiniband_verbs", false),
        ] {
            assert_eq!(is_of_interest(&event(action, subsystem)), expected, "{action} {subsystem}");
        }
        assert!(!is_of_interest(b"") && !is_of_interest(b"add@/x\0") && !is_of_interest(b"libudev\0SUBSYSTEM=pci\0"));
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_have_is_no_error_and_nothing_is_heard_of_it() {
        let mut watch = DeviceWatch::open(Path::new("/nonexistent"));
        assert!(watch.rdma.is_none(), "no socket that would load a module");
        watch.uevents = None;
        let heard = tokio::time::timeout(std::time::Duration::from_millis(50), watch.changed()).await;
        assert!(heard.is_err());
    }
}
