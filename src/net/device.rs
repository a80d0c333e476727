//! What is behind interfaces, or has none: RDMA devices, accelerators, and PCI functions of network cards.

use std::collections::{BTreeMap, BTreeSet};

use super::interface::InterfaceName;
use super::pci::{Location, PciAddress};

/// An RDMA device (`rdma dev`, /sys/class/infiniband).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RdmaDevice {
    /// Its name ("mlx5_0", "rocep193s0f0"); what a number in it means is nobody's promise.
    pub name: String,
    /// What it is, as the kernel says (`enum rdma_node_type`).
    pub node: RdmaNode,
    /// The node GUID: of the whole device, not of a port. Lower case hexadecimal in fours with colons, as sysfs has it.
    pub node_guid: Option<String>,
    /// Whether it is software on top of an interface (rxe, siw).
    pub software: bool,
    /// The driver of the device that carries it ("mlx5_core", "efa").
    pub driver: Option<String>,
    /// Where it is; `None` for software and for what is not on PCI.
    pub location: Option<Location>,
    /// Its ports by number, from 1.
    pub ports: BTreeMap<u32, RdmaPort>,
}

/// What an RDMA device is (kernel `enum rdma_node_type`, include/rdma/ib_verbs.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RdmaNode {
    /// A channel adapter: InfiniBand or RoCE, by the port's link layer.
    Ca,
    /// A switch.
    Switch,
    /// A router.
    Router,
    /// An iWARP NIC.
    Rnic,
    /// A usNIC device.
    Usnic,
    /// None of these: EFA.
    Unspecified,
    /// A Slingshot NIC's device for user space (/dev/cxi0), which is none of the RDMA subsystem.
    Cxi,
}

impl RdmaNode {
    /// By the kernel's number.
    pub const fn of(number: u64) -> Option<Self> {
        match number {
            1 => Some(Self::Ca),
            2 => Some(Self::Switch),
            3 => Some(Self::Router),
            4 => Some(Self::Rnic),
            5 | 6 => Some(Self::Usnic),
            7 => Some(Self::Unspecified),
            _ => None,
        }
    }
}

/// A port of an RDMA device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RdmaPort {
    /// The link layer, where it is known.
    pub link_layer: Option<RdmaLinkLayer>,
    /// The state in capitals ("ACTIVE", "DOWN"); empty when it is not known.
    pub state: String,
    /// The interface of the port, as RDMA netlink says, else that of its first GID.
    pub netdev: Option<InterfaceName>,
    /// Other interfaces that have GIDs here: VLANs, macvlans, and the slaves of a bond.
    pub others: BTreeSet<InterfaceName>,
    /// The port GUID: the low half of its first GID. In the form of [`RdmaDevice::node_guid`].
    pub guid: Option<String>,
    /// The P_Keys of an InfiniBand port.
    pub pkeys: BTreeSet<u16>,
}

/// What is below RDMA on a port (`link_layer` in sysfs).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RdmaLinkLayer {
    /// InfiniBand.
    Infiniband,
    /// Ethernet: RoCE, iWARP.
    Ethernet,
}

/// What carries the traffic of an RDMA device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// InfiniBand.
    Infiniband,
    /// RoCE.
    Roce,
    /// iWARP.
    Iwarp,
    /// AWS SRD of an EFA.
    Srd,
    /// Slingshot.
    Slingshot,
    /// Something else.
    Other,
}

impl Protocol {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Infiniband => "InfiniBand",
            Self::Roce => "RoCEv2",
            Self::Iwarp => "iWARP",
            Self::Srd => "SRD",
            Self::Slingshot => "Slingshot",
            Self::Other => "RDMA",
        }
    }
}

impl RdmaDevice {
    /// A device of which only the name is known.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: RdmaNode::Unspecified,
            node_guid: None,
            software: false,
            driver: None,
            location: None,
            ports: BTreeMap::new(),
        }
    }

    /// What carries its traffic.
    pub fn protocol(&self) -> Protocol {
        let layer = self.ports.values().find_map(|port| port.link_layer);
        match (self.node, layer) {
            (RdmaNode::Rnic, _) => Protocol::Iwarp,
            (RdmaNode::Cxi, _) => Protocol::Slingshot,
            (RdmaNode::Ca, Some(RdmaLinkLayer::Infiniband)) => Protocol::Infiniband,
            (RdmaNode::Ca, Some(RdmaLinkLayer::Ethernet)) => Protocol::Roce,
            _ if self.driver.as_deref() == Some("efa") => Protocol::Srd,
            _ => Protocol::Other,
        }
    }

    /// The interfaces of its ports.
    pub fn netdevs(&self) -> impl Iterator<Item = &InterfaceName> {
        self.ports.values().flat_map(|port| port.netdev.iter().chain(&port.others))
    }

    /// The GUID of its first port that has one, else of the device: what stays with the card.
    pub fn guid(&self) -> Option<&str> {
        self.ports.values().find_map(|port| port.guid.as_deref()).or(self.node_guid.as_deref())
    }
}

/// An accelerator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpu {
    /// Where it is.
    pub location: Location,
    /// Who made it.
    pub vendor: GpuVendor,
    /// Its model, where the driver tells ("NVIDIA H100 80GB HBM3").
    pub model: Option<String>,
    /// The number of its device node (`Device Minor` of NVIDIA: /dev/nvidia3), where the driver tells.
    pub minor: Option<u32>,
    /// The kernel driver.
    pub driver: Option<String>,
}

/// Who made an accelerator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GpuVendor {
    /// NVIDIA, PCI vendor 10de.
    Nvidia,
    /// AMD, PCI vendor 1002.
    Amd,
    /// Intel's Gaudi, PCI vendor 1da3 (Habana Labs).
    Habana,
}

impl GpuVendor {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nvidia => "NVIDIA",
            Self::Amd => "AMD",
            Self::Habana => "Gaudi",
        }
    }
}

/// A PCI function of a network card, or a subfunction on one, that has no interface in this network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// Where it is.
    pub location: Location,
    /// The kernel driver; `None` when nothing drives it.
    pub driver: Option<String>,
    /// The physical function that this is a virtual one of, or a subfunction on.
    pub physfn: Option<PciAddress>,
    /// The PCI vendor and device ids.
    pub ids: (u16, u16),
    /// The RDMA devices on it.
    pub rdma: BTreeSet<String>,
}

/// Virtual functions of a physical one (SR-IOV).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sriov {
    /// How many there are (`sriov_numvfs`).
    pub vfs: u32,
    /// How many there can be (`sriov_totalvfs`).
    pub most: u32,
}

/// What a port of a switch in a NIC is for (devlink, `enum devlink_port_flavour`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// A port with a connector.
    Physical,
    /// The port that stands for a PF.
    PciPf,
    /// The port that stands for a VF.
    PciVf,
    /// The port that stands for an SF.
    PciSf,
    /// A function's own port: a VF or an SF itself.
    Virtual,
    /// Something of a switch that is not ours to know: CPU, DSA, unused.
    Other,
}

impl Flavour {
    /// By the kernel's number.
    pub const fn of(number: u16) -> Self {
        match number {
            0 => Self::Physical,
            3 => Self::PciPf,
            4 => Self::PciVf,
            5 => Self::Virtual,
            7 => Self::PciSf,
            _ => Self::Other,
        }
    }

    /// Whether such a port stands for another function: what is filtered there is that one's slow path.
    pub const fn is_representor(self) -> bool {
        matches!(self, Self::PciPf | Self::PciVf | Self::PciSf)
    }
}

/// A program that sees packets before us, or instead of us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ahead {
    /// An XDP program.
    Xdp,
    /// tc's hook for programs and filters (clsact, ingress).
    Tc,
}

impl Ahead {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::Tc => "tc",
        }
    }
}
