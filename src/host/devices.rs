//! RDMA devices, accelerators, PCI functions of network cards and CPU sockets, by sysfs and procfs below a root directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::sysfs::{location, names, number, number32, pci_target, target_name, text};
use crate::net::device::{Function, Gpu, GpuVendor, RdmaDevice, RdmaLinkLayer, RdmaNode, RdmaPort};
use crate::net::facts::Facts;
use crate::net::interface::InterfaceName;
use crate::net::pci::PciAddress;

/// A GID table has 256 entries on mlx5, of which the first few are used: two for each address, in the order in which those came.
const GIDS_READ: u32 = 64;
/// A P_Key table has 128 entries, of which the first few are used.
const PKEYS_READ: u32 = 128;

/// Adds what there is besides links. `rdma` is what RDMA netlink said of devices and ports, which is nothing in a fixture, on an older
/// kernel and without RDMA: then sysfs has to do.
pub(super) fn add(root: &Path, facts: &mut Facts, rdma: BTreeMap<String, RdmaDevice>) {
    facts.rdma = rdma;
    for name in names(&root.join("sys/class/infiniband")) {
        let device = facts.rdma.entry(name.clone()).or_insert_with(|| RdmaDevice::named(&name));
        add_rdma(root, device);
    }
    add_cxi(root, facts);
    add_pci(root, facts);
    add_subfunctions(root, facts);
    facts.sockets = sockets(root);
    name_rdma(facts);
}

/// What sysfs knows of an RDMA device and RDMA netlink did not say.
fn add_rdma(root: &Path, device: &mut RdmaDevice) {
    let directory = root.join("sys/class/infiniband").join(&device.name);
    // "1: CA"
    let coded = |path: &Path| text(path)?.split(':').next()?.trim().parse().ok();
    if let Some(node) = coded(&directory.join("node_type")).and_then(RdmaNode::of) {
        device.node = node;
    }
    device.node_guid =
        device.node_guid.take().or_else(|| text(&directory.join("node_guid"))).filter(|guid| !is_zero(guid));
    let carrier = directory.join("device");
    device.driver = target_name(&carrier.join("driver"));
    device.location = location(&carrier);
    device.software = std::fs::canonicalize(&directory).is_ok_and(|path| {
        path.ancestors().any(|part| part.ends_with("devices/virtual/infiniband")) || directory.join("parent").exists()
    });
    // A device of software is on the interface that it names, whatever its GIDs are: on a port of a bond they are the bond's.
    let parent = text(&directory.join("parent")).and_then(|name| InterfaceName::new(&name));
    for number in names(&directory.join("ports")).iter().filter_map(|name| name.parse().ok()) {
        let port = device.ports.entry(number).or_default();
        port.netdev = port.netdev.take().or_else(|| parent.clone());
        add_port(&directory.join(format!("ports/{number}")), port);
    }
}

fn add_port(directory: &Path, port: &mut RdmaPort) {
    port.link_layer = match text(&directory.join("link_layer")).as_deref() {
        Some("InfiniBand") => Some(RdmaLinkLayer::Infiniband),
        Some("Ethernet") => Some(RdmaLinkLayer::Ethernet),
        _ => port.link_layer,
    };
    if port.state.is_empty() {
        // "4: ACTIVE"
        let state = text(&directory.join("state")).unwrap_or_default();
        state.rsplit(':').next().unwrap_or_default().trim().clone_into(&mut port.state);
    }
    port.guid = text(&directory.join("gids/0")).and_then(|gid| guid_of(&gid));
    if port.link_layer == Some(RdmaLinkLayer::Infiniband) {
        let keys = (0..PKEYS_READ).map_while(|index| number(&directory.join(format!("pkeys/{index}"))));
        port.pkeys = keys.filter_map(|key| u16::try_from(key).ok()).filter(|key| key & 0x7fff != 0).collect();
    }
    // An entry that is not used answers EINVAL, one that is not there ENOENT.
    let mut netdevs = (0..GIDS_READ)
        .take_while(|index| directory.join(format!("gids/{index}")).exists())
        .filter_map(|index| text(&directory.join(format!("gid_attrs/ndevs/{index}"))))
        .filter_map(|name| InterfaceName::new(&name));
    let first = netdevs.next();
    if port.netdev.is_none() {
        port.netdev.clone_from(&first);
    }
    port.others = first.into_iter().chain(netdevs).filter(|name| Some(name) != port.netdev.as_ref()).collect();
}

/// Slingshot's devices for user space (HewlettPackard/shs-libcxi: /sys/class/cxi_user/cxi0/device is the NIC): libfabric's provider
/// sends by them as verbs do by an RDMA device.
fn add_cxi(root: &Path, facts: &mut Facts) {
    let class = root.join("sys/class/cxi_user");
    for name in names(&class) {
        let carrier = class.join(&name).join("device");
        let mut device = RdmaDevice { node: RdmaNode::Cxi, ..RdmaDevice::named(&name) };
        device.driver = target_name(&carrier.join("driver"));
        device.location = location(&carrier);
        let address = device.location.as_ref().map(|location| location.path.address);
        let link = facts
            .links
            .values()
            .find(|link| address.is_some() && link.location.as_ref().map(|at| at.path.address) == address);
        let netdev = link.map(|link| link.name.clone());
        device.ports.insert(1, RdmaPort { netdev, ..RdmaPort::default() });
        facts.rdma.insert(name, device);
    }
}

/// The low half of a GID in fours with colons; nothing when it is zero.
fn guid_of(gid: &str) -> Option<String> {
    let groups: Vec<&str> = gid.split(':').collect();
    let low = groups.get(4..8)?.join(":");
    (!is_zero(&low)).then_some(low)
}

/// Whether a GUID is that of a device without one.
fn is_zero(guid: &str) -> bool {
    guid.bytes().all(|byte| matches!(byte, b'0' | b':'))
}

/// Accelerators and network cards among the PCI functions (classes of the PCI Code and ID Assignment Specification).
fn add_pci(root: &Path, facts: &mut Facts) {
    let devices = root.join("sys/bus/pci/devices");
    let with_link: BTreeSet<PciAddress> =
        facts.links.values().filter_map(|link| link.pci.as_deref()?.parse().ok()).collect();
    let amd = kfd(root);
    for name in names(&devices) {
        let directory = devices.join(&name);
        let (Ok(address), Some(class)) = (name.parse::<PciAddress>(), number(&directory.join("class"))) else {
            continue;
        };
        let id = |file: &str| number(&directory.join(file)).and_then(|id| u16::try_from(id).ok()).unwrap_or_default();
        let vendor = match (id("vendor"), class >> 16, class >> 8) {
            // Display controllers; 0x12 are processing accelerators.
            (0x10de, 0x03, _) => Some(GpuVendor::Nvidia),
            (0x1002, 0x03 | 0x12, _) if amd.is_empty() || amd.contains(&address) => Some(GpuVendor::Amd),
            (0x1da3, 0x12, _) => Some(GpuVendor::Habana),
            _ => None,
        };
        // Network controllers, 0x0207 of InfiniBand among them.
        let is_nic = class >> 16 == 0x02;
        if vendor.is_none() && (!is_nic || with_link.contains(&address)) {
            continue;
        }
        let Some(location) = location(&directory) else { continue };
        let driver = target_name(&directory.join("driver"));
        if let Some(vendor) = vendor {
            let (model, minor) = if vendor == GpuVendor::Nvidia { nvidia(root, address) } else { (None, None) };
            facts.gpus.insert(address, Gpu { location, vendor, model, minor, driver });
        } else {
            let rdma = names(&directory.join("infiniband")).into_iter().collect();
            let (physfn, ids) = (pci_target(&directory.join("physfn")), (id("vendor"), id("device")));
            facts.functions.insert(address, Function { location, driver, physfn, ids, rdma });
        }
    }
}

/// Subfunctions (Documentation/networking/device_drivers/ethernet/mellanox/mlx5/switchdev.rst: "mlx5_core.sf.4" on the auxiliary bus) whose
/// interface is not in this network namespace.
fn add_subfunctions(root: &Path, facts: &mut Facts) {
    let devices = root.join("sys/bus/auxiliary/devices");
    for name in names(&devices).into_iter().filter(|name| name.contains(".sf.")) {
        let directory = devices.join(&name);
        let Some(location) = location(&directory).filter(|_| names(&directory.join("net")).is_empty()) else {
            continue;
        };
        let driver = target_name(&directory.join("driver"));
        let rdma = names(&directory.join("infiniband")).into_iter().collect();
        let physfn = Some(location.path.address);
        facts.subfunctions.insert(name, Function { location, driver, physfn, ids: (0, 0), rdma });
    }
}

/// What NVIDIA's driver says of one of its GPUs: lines "Model:" and "Device Minor:" (`domain.md` section 7).
fn nvidia(root: &Path, address: PciAddress) -> (Option<String>, Option<u32>) {
    let path = root.join(format!("proc/driver/nvidia/gpus/{address}/information"));
    let text = text(&path).unwrap_or_default();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    (value("Model:").map(str::to_owned), value("Device Minor:").and_then(|minor| minor.parse().ok()))
}

/// The GPUs of AMD's compute driver by PCI address: nodes of its topology that have SIMDs. `location_id` is bus, device and function
/// as in PCI (kernel drivers/gpu/drm/amd/amdkfd/kfd_topology.c). None where that driver is not loaded.
fn kfd(root: &Path) -> BTreeSet<PciAddress> {
    let nodes = root.join("sys/class/kfd/kfd/topology/nodes");
    let gpus = names(&nodes).into_iter().filter_map(|node| {
        let properties = text(&nodes.join(node).join("properties"))?;
        let value = |key: &str| -> Option<u32> {
            properties.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        };
        let (place, domain) = (value("location_id")?, value("domain").unwrap_or_default());
        let (bus, device, function) = ((place >> 8 & 0xff) as u8, (place >> 3 & 0x1f) as u8, (place & 0x7) as u8);
        (value("simd_count")? > 0).then_some(PciAddress { domain, bus, device, function })
    });
    gpus.collect()
}

/// The CPU socket of each NUMA node: that of its first processor.
fn sockets(root: &Path) -> BTreeMap<u32, u32> {
    let nodes = root.join("sys/devices/system/node");
    names(&nodes)
        .into_iter()
        .filter_map(|name| {
            let node = name.strip_prefix("node")?.parse().ok()?;
            // "0-51,104-155"; a node of memory alone has none.
            let cpus = text(&nodes.join(&name).join("cpulist"))?;
            let first: u32 = cpus.split([',', '-']).next()?.parse().ok()?;
            let cpu = format!("sys/devices/system/cpu/cpu{first}/topology/physical_package_id");
            Some((node, number32(&root.join(cpu))?))
        })
        .collect()
}

/// Names the RDMA device of each link by what the devices themselves say: a bond has no function to share with one, and of several
/// devices on one function only this tells which is whose.
fn name_rdma(facts: &mut Facts) {
    let mut devices = std::mem::take(&mut facts.rdma);
    for device in devices.values_mut() {
        let here =
            |name: &InterfaceName| device.location.as_ref().is_none_or(|at| is_on(facts, name, at.path.address, 0));
        for port in device.ports.values_mut() {
            port.netdev = port.netdev.take().filter(&here);
            port.others.retain(&here);
        }
        for netdev in device.ports.values().filter_map(|port| port.netdev.as_ref()) {
            if let Some(link) = facts.links.values_mut().find(|link| link.name == *netdev) {
                link.rdma = Some(device.name.clone());
            }
        }
    }
    // The port of an IPoIB link is the one with its GUID. Every port of a card has the same node GUID, so that is no match.
    let ports: Vec<(&str, &str)> = devices
        .values()
        .flat_map(|device| device.ports.values().filter_map(|port| Some((port.guid.as_deref()?, device.name.as_str()))))
        .collect();
    for link in facts.links.values_mut() {
        if let Some(guid) = link.port_guid()
            && let Some((_, device)) = ports.iter().find(|(port, _)| *port == guid)
        {
            link.rdma = Some((*device).to_owned());
        }
    }
    for link in facts.links.values() {
        // An IPoIB link shares the function, and its GIDs name none.
        let port = link.port_guid().and_then(|guid| {
            let device = devices.get_mut(link.rdma.as_deref()?)?;
            device.ports.values_mut().find(|port| port.guid.as_ref() == Some(&guid))
        });
        if let Some(port) = port {
            match &port.netdev {
                Some(netdev) if *netdev != link.name => drop(port.others.insert(link.name.clone())),
                _ => port.netdev = Some(link.name.clone()),
            }
        }
    }
    facts.rdma = devices;
}

/// How many links are on top of each other at most: a VLAN on a bond on a port, and some more.
const DEPTH: u32 = 8;

/// Whether a link of this name is on a PCI function, by itself or by what it is made of. sysfs gives a name without its network
/// namespace: a function in a pod may have the name of a link here.
fn is_on(facts: &Facts, name: &InterfaceName, function: PciAddress, depth: u32) -> bool {
    let Some(link) = facts.links.values().find(|link| link.name == *name) else { return false };
    link.location.as_ref().is_some_and(|at| at.path.address == function)
        || depth < DEPTH
            && (link.parent.as_ref().is_some_and(|parent| is_on(facts, parent, function, depth + 1))
                || facts
                    .links
                    .values()
                    .any(|below| below.master.as_ref() == Some(name) && is_on(facts, &below.name, function, depth + 1)))
}
