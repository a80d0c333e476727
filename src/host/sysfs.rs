//! Devices of links by sysfs below a root directory. Every reading may fail by itself: a file that is not there, is not
//! readable, or answers `EINVAL` (unused table entries do) only leaves its fact out.

use std::fs;
use std::path::{Path, PathBuf};

use crate::net::device::Sriov;
use crate::net::facts::Link;
use crate::net::pci::{Location, PciAddress, PciPath};

/// The directory of a link in sysfs.
pub(super) fn directory(root: &Path, name: &str) -> PathBuf {
    root.join("sys/class/net").join(name)
}

/// The text of a file without white space at its ends; `None` when it cannot be read or is empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number in a file, decimal or with 0x.
pub(super) fn number(path: &Path) -> Option<u64> {
    let text = text(path)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The last component of where a symbolic link points.
pub(super) fn target_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The names in a directory, sorted.
pub(super) fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// The host name (`kernel.hostname`), or nothing.
pub(super) fn host_name(root: &Path) -> String {
    text(&root.join("proc/sys/kernel/hostname")).unwrap_or_default()
}

/// The ARP hardware type of a link that sysfs and we mean alike.
pub(super) fn hardware(root: &Path, link: &Link) -> Option<u16> {
    let directory = directory(root, link.name.as_str());
    is_the_same(&directory, link).then(|| number(&directory.join("type")))?.and_then(|value| u16::try_from(value).ok())
}

/// Adds what sysfs knows about a link and the device behind it.
pub(super) fn add_device(root: &Path, link: &mut Link) {
    let directory = directory(root, link.name.as_str());
    if !is_the_same(&directory, link) {
        return;
    }
    let device = directory.join("device");
    let behind = device.exists();
    link.driver = target_name(&device.join("driver"));
    link.bus = target_name(&device.join("subsystem"));
    link.location = location(&device);
    link.pci = link.location.as_ref().map(|location| location.path.address.to_string());
    // Of what is software (rxe, siw), the RDMA device itself says on which link it is (`super::devices`).
    link.rdma = names(&device.join("infiniband")).into_iter().next();
    link.physfn = pci_target(&device.join("physfn"));
    link.sriov = number32(&device.join("sriov_totalvfs"))
        .map(|most| Sriov { vfs: number32(&device.join("sriov_numvfs")).unwrap_or_default(), most });
    // What has no cable has a made-up speed (veth), or none.
    if behind || link.kind.as_deref() == Some("bond") {
        link.speed = number32(&directory.join("speed"));
    }
    link.mtu = link.mtu.or_else(|| number32(&directory.join("mtu")));
    link.switch = link.switch.take().or_else(|| text(&directory.join("phys_switch_id")));
    link.port = link.port.take().or_else(|| text(&directory.join("phys_port_name")));
    link.pkey = link.pkey.or_else(|| number(&directory.join("pkey")).and_then(|key| u16::try_from(key).ok()));
}

/// The number in a file as far as it fits; a driver that does not know a speed writes -1.
pub(super) fn number32(path: &Path) -> Option<u32> {
    number(path).and_then(|value| u32::try_from(value).ok())
}

/// Where a device is that sysfs has at this path, a link to it or itself.
pub(super) fn location(device: &Path) -> Option<Location> {
    let device = fs::canonicalize(device).ok()?;
    let path = PciPath::of(device.to_str()?)?;
    // virtio, USB and auxiliary devices have no node of their own; the function that carries them has.
    let address = path.address.to_string();
    let function = device.ancestors().find(|part| part.ends_with(&address))?;
    Some(Location { numa: number32(&function.join("numa_node")), path })
}

/// The PCI address that a symbolic link points to.
pub(super) fn pci_target(path: &Path) -> Option<PciAddress> {
    target_name(path)?.parse().ok()
}

/// Whether this directory is about this link. sysfs shows the network namespace in which it was mounted, which need not be
/// ours: then an `eth0` may be there that is somebody else's.
fn is_the_same(directory: &Path, link: &Link) -> bool {
    let same_index = number(&directory.join("ifindex")) == Some(u64::from(link.index));
    let same_address = match (&link.mac, text(&directory.join("address"))) {
        (Some(ours), Some(theirs)) => *ours == theirs,
        _ => true,
    };
    same_index && same_address
}
