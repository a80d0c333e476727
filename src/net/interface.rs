//! Network interface names and the roles that interfaces play on a GPU node.

use std::fmt;

/// The name of a network interface: 1 to 15 bytes (`IFNAMSIZ` less the terminator), no '/', no white space
/// (kernel `dev_valid_name`, net/core/dev.c).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name, if the kernel would accept it; `None` otherwise.
    pub fn new(name: &str) -> Option<Self> {
        let valid = !name.is_empty()
            && name.len() <= 15
            && name != "."
            && name != ".."
            && !name
                .bytes()
                .any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace() || byte == 0x0b);
        valid.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

macro_rules! roles {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// What an interface is for (`policy.md` section 2); detected, or said by `[[interface]]`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Role { $($(#[$doc])* $variant),* }

        impl Role {
            /// Every role, in the order of the manual.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name that policies use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

roles! {
    /// The uplink that carries the default route: ssh, kubelet, cluster traffic.
    Mgmt = "mgmt",
    /// An RDMA NIC paired with a GPU.
    Rail = "rail",
    /// An RDMA NIC without a GPU of its own.
    Fabric = "fabric",
    /// IP over InfiniBand.
    Ipoib = "ipoib",
    /// A link to file or block servers.
    Storage = "storage",
    /// The USB or Ethernet link to the board management controller.
    Bmc = "bmc",
    /// The link to a DPU's own processor (tmfifo).
    Dpu = "dpu",
    /// The host's side of a pod or container link.
    Pod = "pod",
    /// A tunnel of the cluster network.
    Overlay = "overlay",
    /// A representor of another function in switchdev mode.
    Representor = "representor",
    /// The loopback device.
    Loopback = "loopback",
    /// Anything not recognised; new inbound traffic is denied.
    Unknown = "unknown",
}

impl Role {
    /// The role of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Which way a packet goes, seen from this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// To this host.
    Ingress,
    /// From this host.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The key that policies use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
