//! What the ports of NICs with a switch inside are for, by devlink (generic netlink).

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use netlink_sys::protocols::NETLINK_GENERIC;

use super::ask::Asker;
use super::attribute::{Attributes, attribute};
use crate::net::device::Flavour;

/// include/uapi/linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
/// Bytes of `struct genlmsghdr`: command, version, two reserved.
const GENL_HEADER_BYTES: usize = 4;

/// include/uapi/linux/devlink.h
const DEVLINK: &str = "devlink";
const DEVLINK_GROUP: &str = "config";
const DEVLINK_CMD_PORT_GET: u8 = 5;
const DEVLINK_ATTR_PORT_NETDEV_IFINDEX: u16 = 6;
const DEVLINK_ATTR_PORT_NETDEV_NAME: u16 = 7;
const DEVLINK_ATTR_PORT_FLAVOUR: u16 = 77;

/// A generic netlink family as this kernel numbers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Family {
    /// The message type.
    pub id: u16,
    /// The multicast groups by name.
    pub groups: BTreeMap<String, u32>,
}

/// A port that has an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What the port is for.
    pub flavour: Flavour,
}

/// devlink as this kernel has it. It is built in or not there at all (CONFIG_NET_DEVLINK), and asking for a family that is not there
/// makes the kernel look for a module: once is enough.
fn family() -> Option<&'static Family> {
    static FAMILY: OnceLock<Option<Family>> = OnceLock::new();
    FAMILY.get_or_init(|| ask_family(DEVLINK).ok().flatten()).as_ref()
}

/// A family by name.
fn ask_family(name: &str) -> io::Result<Option<Family>> {
    let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    payload.extend(attribute(CTRL_ATTR_FAMILY_NAME, &[name.as_bytes(), &[0]].concat()));
    Asker::open(NETLINK_GENERIC)?.one(GENL_ID_CTRL, &payload, |message| read_family(message.payload))
}

/// The number of the group that is told of changes.
pub(super) fn group() -> Option<u32> {
    family()?.groups.get(DEVLINK_GROUP).copied()
}

/// The ports that have an interface in this network namespace, by its index; none without devlink.
pub(super) fn ports() -> BTreeMap<u32, Port> {
    let ask = |family: &Family| -> io::Result<Vec<Port>> {
        let payload = [DEVLINK_CMD_PORT_GET, 1, 0, 0];
        Asker::open(NETLINK_GENERIC)?.dump(family.id, &payload, |message| read_port(message.payload))
    };
    let ports = family().and_then(|family| ask(family).ok()).unwrap_or_default();
    ports.into_iter().map(|port| (port.index, port)).collect()
}

/// The family in an answer to `CTRL_CMD_GETFAMILY`.
pub fn read_family(payload: &[u8]) -> Option<Family> {
    let attributes = Attributes::of(payload.get(GENL_HEADER_BYTES..)?);
    let groups = Attributes::of(attributes.get(CTRL_ATTR_MCAST_GROUPS).unwrap_or_default());
    let groups = groups.iter().filter_map(|(_, group)| {
        let group = Attributes::of(group);
        Some((group.text(CTRL_ATTR_MCAST_GRP_NAME)?.to_owned(), group.u32(CTRL_ATTR_MCAST_GRP_ID)?))
    });
    Some(Family { id: attributes.u16(CTRL_ATTR_FAMILY_ID)?, groups: groups.collect() })
}

/// The port in an answer to `DEVLINK_CMD_PORT_GET`, if it has an interface here.
pub fn read_port(payload: &[u8]) -> Option<Port> {
    let attributes = Attributes::of(payload.get(GENL_HEADER_BYTES..)?);
    Some(Port {
        index: attributes.u32(DEVLINK_ATTR_PORT_NETDEV_IFINDEX)?,
        name: attributes.text(DEVLINK_ATTR_PORT_NETDEV_NAME)?.to_owned(),
        flavour: Flavour::of(attributes.u16(DEVLINK_ATTR_PORT_FLAVOUR)?),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernel_says_how_it_numbers_a_family() {
        let ethtool = ask_family("ethtool").unwrap().unwrap();
        assert!(ethtool.id > GENL_ID_CTRL && ethtool.groups.contains_key("monitor"), "{ethtool:?}");
        assert!(ask_family("nodewall").is_err(), "there is no such family");
        let nothing = ports();
        assert!(family().is_some() || nothing.is_empty());
    }

    /// What `devlink port show` prints as "pci/0000:5a:00.0/1: type eth netdev enp90s0f0r1 flavour pcivf pfnum 0 vfnum 1", put together
    /// from devlink_nl_port_fill.
    #[test]
    fn a_port_with_an_interface_says_what_it_is_for() {
        let text = |kind: u16, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
        let port = |flavour: u16, netdev: bool| {
            let mut bytes = vec![7, 1, 0, 0];
            bytes.extend(text(1, "pci"));
            bytes.extend(text(2, "0000:5a:00.0"));
            bytes.extend(attribute(3, &1u32.to_ne_bytes()));
            bytes.extend(attribute(4, &2u16.to_ne_bytes()));
            if netdev {
                bytes.extend(attribute(DEVLINK_ATTR_PORT_NETDEV_IFINDEX, &9u32.to_ne_bytes()));
                bytes.extend(text(DEVLINK_ATTR_PORT_NETDEV_NAME, "enp90s0f0r1"));
            }
            bytes.extend(attribute(DEVLINK_ATTR_PORT_FLAVOUR, &flavour.to_ne_bytes()));
            bytes.extend(attribute(127, &0u16.to_ne_bytes()));
            bytes.extend(attribute(128, &1u16.to_ne_bytes()));
            bytes
        };
        for (number, flavour) in [
            (0, Flavour::Physical),
            (3, Flavour::PciPf),
            (4, Flavour::PciVf),
            (5, Flavour::Virtual),
            (7, Flavour::PciSf),
            (99, Flavour::Other),
        ] {
            let expected = Port { index: 9, name: "enp90s0f0r1".to_owned(), flavour };
            assert_eq!(read_port(&port(number, true)), Some(expected), "{number}");
        }
        assert_eq!(read_port(&port(4, false)), None, "its interface is elsewhere, or it has none");
        assert_eq!(read_port(&[]), None);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = (read_family(&bytes), read_port(&bytes));
        }
    }
}
