//! What listens on this host, and who: plain data, collected by `host`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::interface::InterfaceName;
use super::protocol::Protocol;

/// What a listener is asked by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// Packets of this protocol: TCP, UDP, UDP-Lite or SCTP.
    Ip(Protocol),
    /// The RDMA connection manager, which `ss` knows nothing of: over hardware it passes the kernel's IP stack by, over Soft-RoCE and
    /// IPoIB its packets are UDP and IP.
    RdmaCm,
}

impl Transport {
    /// The name for people and scripts: "tcp", "udp", "rdma-cm".
    pub fn name(self) -> String {
        match self {
            Self::Ip(protocol) => protocol.to_string(),
            Self::RdmaCm => "rdma-cm".to_owned(),
        }
    }
}

/// A place at which something can be reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Endpoint {
    /// What it is asked by.
    pub transport: Transport,
    /// The port.
    pub port: u16,
    /// The address that it is bound to; the unspecified one is any address of its family.
    pub address: IpAddr,
    /// Whether a socket of IPv6 takes IPv4 as well (no `IPV6_V6ONLY`).
    pub both_families: bool,
    /// The interface that it is bound to (`SO_BINDTODEVICE`), or whose link-local address it has.
    pub device: Option<InterfaceName>,
}

/// An endpoint with who is behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listener {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The owner of the socket.
    pub uid: Option<u32>,
    /// Who holds it.
    pub holders: Holders,
    /// The RDMA devices of an RDMA-CM listener.
    pub rdma: BTreeSet<String>,
}

/// Who holds a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holders {
    /// These processes, by process id.
    Processes(Vec<Process>),
    /// No process: the kernel itself (NFS, WireGuard, VXLAN, Soft-RoCE), by a name where it tells one.
    Kernel(Option<String>),
    /// Not known: the processes of others can be looked into by root only.
    Unknown,
}

impl Holders {
    /// The processes that are known.
    pub fn processes(&self) -> &[Process] {
        match self {
            Self::Processes(processes) => processes,
            Self::Kernel(_) | Self::Unknown => &[],
        }
    }
}

/// A process.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Process {
    /// Its id, as this host counts.
    pub pid: u32,
    /// Its name, at most 15 bytes (proc_pid_comm(5)).
    pub name: String,
    /// The words of its command line: the program and up to two more, as far as they are no options.
    pub words: Vec<String>,
    /// Who runs it.
    pub uid: Option<u32>,
    /// Where it belongs.
    pub home: Home,
    /// The device files of GPUs and RDMA devices that it has open.
    pub devices: BTreeSet<String>,
}

impl Process {
    /// Whether it holds a GPU: a device file of NVIDIA's, AMD's or Habana's drivers.
    pub fn holds_gpu(&self) -> bool {
        self.devices.iter().any(|device| !device.starts_with("/dev/infiniband/"))
    }

    /// Whether it holds an RDMA device.
    pub fn holds_rdma(&self) -> bool {
        self.devices.iter().any(|device| device.starts_with("/dev/infiniband/"))
    }
}

/// Where a process belongs, by its control group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Home {
    /// The systemd service or scope.
    pub unit: Option<String>,
    /// The pod.
    pub pod: Option<Pod>,
    /// The container's id.
    pub container: Option<String>,
}

/// A pod of Kubernetes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its namespace and name, where the node tells.
    pub name: Option<(String, String)>,
}
