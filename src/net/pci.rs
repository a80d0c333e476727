//! PCI addresses, the chain of bridges above a device, and how near two devices are by it.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: `DDDD:BB:DD.F`; the domain may have more digits (VMD). Ordered as lspci(8) lists them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    /// The domain, also called segment.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, below 32.
    pub device: u8,
    /// The function of the device, below 8.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a PCI address such as 0000:c1:00.0")]
pub struct NotAnAddress;

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let (domain, rest) = text.split_once(':').ok_or(NotAnAddress)?;
        let (bus, rest) = rest.split_once(':').ok_or(NotAnAddress)?;
        let (device, function) = rest.split_once('.').ok_or(NotAnAddress)?;
        let hex = |text: &str, least: usize, most: usize| {
            let digits = (least..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u32::from_str_radix(text, 16).ok()).flatten().ok_or(NotAnAddress)
        };
        let below = |value: u32, limit: u8| u8::try_from(value).ok().filter(|value| *value < limit).ok_or(NotAnAddress);
        Ok(Self {
            domain: hex(domain, 4, 8)?,
            bus: u8::try_from(hex(bus, 2, 2)?).map_err(|_| NotAnAddress)?,
            device: below(hex(device, 2, 2)?, 32)?,
            function: below(hex(function, 1, 1)?, 8)?,
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        // Through `pad`, so that a width holds for the whole.
        formatter.pad(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
    }
}

/// A device's place in the PCI hierarchy: its root complex, the bridges on the way, and itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PciPath {
    /// The host bridge as sysfs names it: "pci0000:c0".
    pub root: String,
    /// The bridges from the root port to the device, in order.
    pub bridges: Vec<PciAddress>,
    /// The device.
    pub address: PciAddress,
}

impl PciPath {
    /// The last PCI device on a path of sysfs ("/sys/devices/pci0000:c0/0000:c0:01.1/0000:c1:00.0/net/eth0"): of virtio, USB and
    /// auxiliary devices it is the PCI function that carries them. `None` for what is not on PCI.
    pub fn of(path: &str) -> Option<Self> {
        let mut root = None;
        let mut chain: Vec<PciAddress> = Vec::new();
        for part in path.split('/') {
            if part.strip_prefix("pci").is_some_and(|rest| rest.contains(':')) {
                // A controller that has a domain of its own (VMD) is a new root.
                root = Some(part.to_owned());
                chain.clear();
            } else if root.is_some() {
                // Below the function there are only names of other kinds: "virtio2", "usb1", "net".
                match part.parse() {
                    Ok(address) => chain.push(address),
                    Err(_) if chain.is_empty() => {}
                    Err(_) => break,
                }
            }
        }
        let address = chain.pop()?;
        Some(Self { root: root?, bridges: chain, address })
    }

    /// How many bridges both paths begin with.
    fn shared(&self, other: &Self) -> usize {
        if self.root != other.root {
            return 0;
        }
        self.bridges.iter().zip(&other.bridges).take_while(|(left, right)| left == right).count()
    }
}

/// A device's place on the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    /// By PCI.
    pub path: PciPath,
    /// The NUMA node; `None` where the firmware does not say (sysfs has -1).
    pub numa: Option<u32>,
}

/// How near two devices are, nearest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proximity {
    /// Below the same root port, so through a PCIe switch or on the same card: what NCCL and nvidia-smi call PIX and PXB.
    Switch,
    /// At the same host bridge (PHB).
    Root,
    /// At the same NUMA node (NODE).
    Numa,
    /// Through the link between processors, or not known (SYS).
    System,
}

impl Proximity {
    /// What people are told.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Switch => "same PCIe switch",
            Self::Root => "same root complex",
            Self::Numa => "same NUMA node",
            Self::System => "across the system",
        }
    }

    /// The name for scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Root => "root",
            Self::Numa => "numa",
            Self::System => "system",
        }
    }
}

/// How far it is from one device to another: the class, then the bridges on the way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Distance {
    /// The class.
    pub proximity: Proximity,
    /// The bridges that only one of them is below.
    pub bridges: usize,
}

impl Location {
    /// The distance to another device.
    pub fn distance(&self, other: &Self) -> Distance {
        let shared = self.path.shared(&other.path);
        let proximity = match () {
            // A root port has one link: what is below it shares a switch, or a card.
            () if shared > 0 => Proximity::Switch,
            () if self.path.root == other.path.root => Proximity::Root,
            () if self.numa.is_some() && self.numa == other.numa => Proximity::Numa,
            () => Proximity::System,
        };
        Distance { proximity, bridges: self.path.bridges.len() + other.path.bridges.len() - 2 * shared }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(path: &str, numa: Option<u32>) -> Location {
        Location { path: PciPath::of(path).unwrap(), numa }
    }

    #[test]
    fn addresses_are_told_from_other_parts_of_a_path() {
        for good in ["0000:c1:00.0", "10000:01:00.1", "0000:00:1f.6"] {
            assert_eq!(good.parse::<PciAddress>().unwrap().to_string(), good);
        }
        for bad in [
            "pci0000:c0",
            "0000:c1:00",
            "c1:00.0",
            "usb1",
            "0000:c1:00.00",
            "virtio2",
            "mlx5_core.sf.4",
            "0000:c1:20.0",
        ] {
            assert_eq!(bad.parse::<PciAddress>(), Err(NotAnAddress), "{bad}");
        }
        assert!("0001:00:00.0".parse::<PciAddress>().unwrap() < "10000:00:00.0".parse().unwrap());
    }

    #[test]
    fn a_path_ends_at_the_function_that_carries_the_device() {
        let virtio = PciPath::of("/sys/devices/pci0000:00/0000:00:03.0/virtio2").unwrap();
        assert_eq!((virtio.address.to_string().as_str(), virtio.bridges.len()), ("0000:00:03.0", 0));
        let usb = PciPath::of("/sys/devices/pci0000:00/0000:00:14.0/usb1/1-11/1-11:2.0/net/enx0").unwrap();
        assert_eq!(usb.address.to_string(), "0000:00:14.0");
        let vmd = PciPath::of("/sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:01.0/10000:e1:00.0").unwrap();
        assert_eq!((vmd.root.as_str(), vmd.bridges.len()), ("pci10000:e0", 1));
        assert_eq!(PciPath::of("/sys/devices/platform/soc/eth"), None);
        assert_eq!(PciPath::of("/sys/devices/virtual/net/bond0"), None);
    }

    #[test]
    fn the_nearest_is_below_the_same_switch_then_at_the_same_root_then_at_the_same_node() {
        let gpu = at("/sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0", Some(0));
        let rail = at("/sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0", Some(0));
        let cascaded = at(
            "/sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:1a:00.0/0000:1b:00.0/0000:1c:00.0",
            Some(0),
        );
        let root = at("/sys/devices/pci0000:15/0000:15:02.0/0000:20:00.0", Some(0));
        let node = at("/sys/devices/pci0000:26/0000:26:01.0/0000:27:00.0", Some(0));
        let far = at("/sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0", Some(1));
        let unsaid = at("/sys/devices/pci0000:90/0000:90:01.0/0000:91:00.0", None);
        let found: Vec<Distance> =
            [&rail, &cascaded, &root, &node, &far, &unsaid].map(|other| gpu.distance(other)).into();
        let proximities: Vec<Proximity> = found.iter().map(|distance| distance.proximity).collect();
        assert_eq!(
            proximities,
            [
                Proximity::Switch,
                Proximity::Switch,
                Proximity::Root,
                Proximity::Numa,
                Proximity::System,
                Proximity::System
            ]
        );
        assert!(found[0] < found[1], "one switch is nearer than two");
        assert_eq!(unsaid.distance(&unsaid.clone()).proximity, Proximity::Switch);
    }
}
