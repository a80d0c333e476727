//! What is known about this node, as plain data: collected by `host`, read by everything that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::addr::AddrSet;
use super::device::{Ahead, Flavour, Function, Gpu, RdmaDevice, Sriov};
use super::interface::InterfaceName;
use super::node::Nodes;
use super::pci::{Location, PciAddress};
use super::ports::HostPorts;
use super::rail::Rails;

/// A node at one moment. A fixture of another machine is one of these too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// The host name.
    pub node: String,
    /// The node's own labels, from nodewall.toml or the cluster.
    pub labels: BTreeMap<String, String>,
    /// The links of this network namespace by interface index.
    pub links: BTreeMap<u32, Link>,
    /// The RDMA devices by name.
    pub rdma: BTreeMap<String, RdmaDevice>,
    /// The accelerators by PCI address.
    pub gpus: BTreeMap<PciAddress, Gpu>,
    /// The PCI functions of network cards that have no link here.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Subfunctions of network cards that have no link here, by their names on the auxiliary bus ("mlx5_core.sf.4").
    pub subfunctions: BTreeMap<String, Function>,
    /// The CPU socket (`physical_package_id`) of each NUMA node.
    pub sockets: BTreeMap<u32, u32>,
    /// The rails as they were numbered before, from the state directory.
    pub rails: Rails,
    /// The cluster API servers this host is configured to talk to (address, TCP port), learned from its kubeconfig.
    pub api_servers: BTreeSet<(IpAddr, u16)>,
    /// The nodes of clusters.
    pub nodes: Arc<Nodes>,
    /// The numbers of the users that the policy names and this node knows.
    pub users: BTreeMap<String, u32>,
    /// The numbers of the groups that the policy names and this node knows.
    pub groups: BTreeMap<String, u32>,
    /// The control groups of the systemd units and slices that the policy names, while they run.
    pub units: BTreeMap<String, BTreeSet<Cgroup>>,
    /// The ports that this host gives out by itself.
    pub ports: HostPorts,
}

/// A control group of the unified hierarchy (cgroup v2), as `socket cgroupv2` of nft(8) sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cgroup {
    /// How deep it is: 1 for "system.slice", 2 for "system.slice/sshd.service".
    pub level: u8,
    /// Its id: the inode number of its directory (kernel `cgroup_id`).
    pub id: u64,
}

impl Facts {
    /// The addresses of this host, on all its interfaces.
    pub fn local_addresses(&self) -> AddrSet {
        self.links.values().flat_map(|link| link.addresses.iter().map(IpNet::addr)).collect()
    }

    /// The link of this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name.as_str() == name)
    }
}

/// One network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The interface index (`ifindex`).
    pub index: u32,
    /// The current name.
    pub name: InterfaceName,
    /// Alternative names (`ip link property add altname`), sorted.
    pub altnames: Vec<String>,
    /// The rtnetlink kind (`IFLA_INFO_KIND`: "veth", "bond", "vxlan"); `None` for a hardware device.
    pub kind: Option<String>,
    /// The kernel driver (`device/driver` in sysfs).
    pub driver: Option<String>,
    /// The bus (`device/subsystem` in sysfs: "pci", "usb", "virtio").
    pub bus: Option<String>,
    /// The PCI address ("0000:c1:00.0") of the device or its nearest PCI ancestor.
    pub pci: Option<String>,
    /// The RDMA device that shares this link's function ("mlx5_0").
    pub rdma: Option<String>,
    /// The ARP hardware type (`/sys/class/net/IF/type`: 1 Ethernet, 32 InfiniBand, 772 loopback).
    pub hardware: u16,
    /// The hardware address in colon notation, if it has one.
    pub mac: Option<String>,
    /// The name of the bond, bridge or VRF that it is part of.
    pub master: Option<InterfaceName>,
    /// The name of the link below (`IFLA_LINK`) in this namespace: the parent of a VLAN or macvlan.
    pub parent: Option<InterfaceName>,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether a default route (either family) leaves through it.
    pub default_route: bool,
    /// Where the device behind it is; `None` for software and for what is not on PCI.
    pub location: Option<Location>,
    /// The speed in Mbit/s, where the driver tells.
    pub speed: Option<u32>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// The physical function that this is a virtual one of (SR-IOV).
    pub physfn: Option<PciAddress>,
    /// Its virtual functions, if it can have any.
    pub sriov: Option<Sriov>,
    /// The switch that it is a port of (`phys_switch_id`).
    pub switch: Option<String>,
    /// Which port of that switch (`phys_port_name`: "p0", "pf1vf2", "pf0sf88").
    pub port: Option<String>,
    /// What that port is for, by devlink.
    pub flavour: Option<Flavour>,
    /// The P_Key of an IPoIB link.
    pub pkey: Option<u16>,
    /// What sees packets before us here, as far as rtnetlink tells.
    pub ahead: BTreeSet<Ahead>,
    /// Its addresses with prefix lengths, sorted.
    pub addresses: BTreeSet<IpNet>,
}

impl Link {
    /// The link layer as the `link` label and `match.link` say it: "ethernet", "infiniband", "loopback" or "other".
    pub fn link_layer(&self) -> &'static str {
        match self.hardware {
            1 => "ethernet",
            32 => "infiniband",
            772 => "loopback",
            _ => "other",
        }
    }

    /// The port GUID of an IPoIB link: bytes 12 to 20 of its hardware address (Documentation/infiniband/ipoib.rst), in the form
    /// of [`RdmaDevice::node_guid`].
    pub fn port_guid(&self) -> Option<String> {
        let bytes: Vec<&str> = self.mac.as_deref()?.split(':').collect();
        let guid = (self.hardware == 32).then(|| bytes.get(12..20)).flatten()?;
        Some(guid.chunks(2).map(|pair| pair.concat()).collect::<Vec<_>>().join(":"))
    }

    /// A link of this index and name about which nothing else is known: a start for fixtures.
    pub fn named(index: u32, name: InterfaceName) -> Self {
        Self {
            index,
            name,
            altnames: Vec::new(),
            kind: None,
            driver: None,
            bus: None,
            pci: None,
            rdma: None,
            hardware: 1,
            mac: None,
            master: None,
            parent: None,
            up: true,
            default_route: false,
            location: None,
            speed: None,
            mtu: None,
            physfn: None,
            sriov: None,
            switch: None,
            port: None,
            flavour: None,
            pkey: None,
            ahead: BTreeSet::new(),
            addresses: BTreeSet::new(),
        }
    }
}
