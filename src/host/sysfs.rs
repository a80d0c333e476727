//! Devices of links by sysfs below a root directory. Every reading may fail by itself: a file that is not there, is not
//! readable, or answers `EINVAL` (unused table entries do) only leaves its fact out.

use std::fs;
use std::path::{Path, PathBuf};

use crate::net::facts::Link;

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

/// Adds what sysfs knows about the device behind a link: driver, bus, PCI address, RDMA device.
pub(super) fn add_device(root: &Path, link: &mut Link) {
    let directory = directory(root, link.name.as_str());
    if !is_the_same(&directory, link) {
        return;
    }
    let device = directory.join("device");
    link.driver = target_name(&device.join("driver"));
    link.bus = target_name(&device.join("subsystem"));
    link.pci = fs::canonicalize(&device).ok().and_then(|path| nearest_pci_address(&path));
    link.rdma = names(&device.join("infiniband")).into_iter().next().or_else(|| software_rdma(root, link));
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

/// The PCI address nearest to the end of a device's path: its own, or its parent's for virtio, auxiliary and USB devices.
fn nearest_pci_address(path: &Path) -> Option<String> {
    path.iter().rev().filter_map(|part| part.to_str()).find(|part| is_pci_address(part)).map(str::to_owned)
}

/// Whether a text is a PCI address: `DDDD:BB:DD.F` in hexadecimal; the domain may have more digits (VMD).
fn is_pci_address(text: &str) -> bool {
    let hex = |text: &str, least: usize, most: usize| {
        (least..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut parts = text.splitn(3, ':');
    let (Some(domain), Some(bus), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else {
        return false;
    };
    hex(domain, 4, 8) && hex(bus, 2, 2) && hex(device, 2, 2) && hex(function, 1, 1)
}

/// The RDMA device that software (rxe, siw) put on a link: it has no PCI function to share, its `parent` names the link.
fn software_rdma(root: &Path, link: &Link) -> Option<String> {
    let devices = root.join("sys/class/infiniband");
    names(&devices)
        .into_iter()
        .find(|device| text(&devices.join(device).join("parent")).as_deref() == Some(link.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_are_told_from_other_path_parts() {
        for good in ["0000:c1:00.0", "10000:01:00.1", "0000:00:1f.6"] {
            assert!(is_pci_address(good), "{good}");
        }
        for bad in ["pci0000:c0", "0000:c1:00", "c1:00.0", "usb1", "0000:c1:00.00", "virtio2", "mlx5_core.sf.4"] {
            assert!(!is_pci_address(bad), "{bad}");
        }
        let path = Path::new("/sys/devices/pci0000:00/0000:00:03.0/virtio2");
        assert_eq!(nearest_pci_address(path).as_deref(), Some("0000:00:03.0"));
        let path = Path::new("/sys/devices/pci0000:c0/0000:c0:01.1/0000:c1:00.1");
        assert_eq!(nearest_pci_address(path).as_deref(), Some("0000:c1:00.1"));
        assert_eq!(nearest_pci_address(Path::new("/sys/devices/platform/soc/eth")), None);
    }
}
