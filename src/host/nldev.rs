//! RDMA devices and their ports by RDMA netlink: what `rdma link` shows.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use netlink_sys::protocols::NETLINK_RDMA;

use super::ask::Asker;
use super::attribute::{Attributes, attribute};
use crate::net::device::{RdmaDevice, RdmaLinkLayer, RdmaNode, RdmaPort};
use crate::net::interface::InterfaceName;

/// include/uapi/rdma/rdma_netlink.h: the client, its commands, and their attributes.
const RDMA_NL_NLDEV: u16 = 5;
const RDMA_NLDEV_CMD_GET: u16 = 1;
const RDMA_NLDEV_CMD_PORT_GET: u16 = 5;
pub(super) const RDMA_NLDEV_ATTR_DEV_INDEX: u16 = 1;
const RDMA_NLDEV_ATTR_DEV_NAME: u16 = 2;
const RDMA_NLDEV_ATTR_PORT_INDEX: u16 = 3;
const RDMA_NLDEV_ATTR_NODE_GUID: u16 = 6;
const RDMA_NLDEV_ATTR_SUBNET_PREFIX: u16 = 8;
const RDMA_NLDEV_ATTR_PORT_STATE: u16 = 12;
const RDMA_NLDEV_ATTR_DEV_NODE_TYPE: u16 = 14;
const RDMA_NLDEV_ATTR_NDEV_NAME: u16 = 51;
const RDMA_NLDEV_ATTR_DEV_PROTOCOL: u16 = 67;

/// `RDMA_NL_GET_TYPE`.
pub(super) const fn message_type(command: u16) -> u16 {
    (RDMA_NL_NLDEV << 10) + command
}

/// The devices with their ports; none where RDMA is not loaded. Opening this family's socket would load it.
pub(super) fn devices(root: &Path) -> BTreeMap<String, RdmaDevice> {
    if !root.join("sys/class/infiniband").exists() {
        return BTreeMap::new();
    }
    ask().unwrap_or_default()
}

/// The index and name of each device; none where RDMA is not loaded.
pub(super) fn indexes(root: &Path) -> Vec<(u32, String)> {
    if !root.join("sys/class/infiniband").exists() {
        return Vec::new();
    }
    let ask = || {
        let mut asker = Asker::open(NETLINK_RDMA)?;
        let named = |payload: &[u8]| device(payload).map(|(index, device, _)| (index, device.name));
        asker.dump(message_type(RDMA_NLDEV_CMD_GET), &[], |message| named(message.payload))
    };
    ask().unwrap_or_else(|_: io::Error| Vec::new())
}

fn ask() -> io::Result<BTreeMap<String, RdmaDevice>> {
    let mut asker = Asker::open(NETLINK_RDMA)?;
    let found = asker.dump(message_type(RDMA_NLDEV_CMD_GET), &[], |message| device(message.payload))?;
    let mut devices = BTreeMap::new();
    for (index, mut device, layer) in found {
        let of_device = attribute(RDMA_NLDEV_ATTR_DEV_INDEX, &index.to_ne_bytes());
        // A device may be gone by now.
        if let Ok(ports) =
            asker.dump(message_type(RDMA_NLDEV_CMD_PORT_GET), &of_device, |message| port(message.payload))
        {
            device.ports = ports.into_iter().collect();
            for port in device.ports.values_mut() {
                port.link_layer = port.link_layer.or(layer);
            }
        }
        devices.insert(device.name.clone(), device);
    }
    Ok(devices)
}

/// The index and the device of an answer to `RDMA_NLDEV_CMD_GET` (kernel `fill_dev_info`, drivers/infiniband/core/nldev.c), and the link
/// layer of its ports, since Linux 5.2.
pub fn device(payload: &[u8]) -> Option<(u32, RdmaDevice, Option<RdmaLinkLayer>)> {
    let attributes = Attributes::of(payload);
    let index = attributes.u32(RDMA_NLDEV_ATTR_DEV_INDEX)?;
    let mut device = RdmaDevice::named(attributes.text(RDMA_NLDEV_ATTR_DEV_NAME).filter(|name| !name.is_empty())?);
    if let Some(node) = attributes.u8(RDMA_NLDEV_ATTR_DEV_NODE_TYPE).and_then(|node| RdmaNode::of(node.into())) {
        device.node = node;
    }
    device.node_guid = attributes.u64(RDMA_NLDEV_ATTR_NODE_GUID).filter(|guid| *guid != 0).map(guid);
    let layer = match attributes.text(RDMA_NLDEV_ATTR_DEV_PROTOCOL) {
        Some("ib" | "opa") => Some(RdmaLinkLayer::Infiniband),
        Some("roce" | "iw" | "usnic") => Some(RdmaLinkLayer::Ethernet),
        _ => None,
    };
    Some((index, device, layer))
}

/// The number and the port of an answer to `RDMA_NLDEV_CMD_PORT_GET` (kernel `fill_port_info`). The interface is one of our network
/// namespace, or none.
pub fn port(payload: &[u8]) -> Option<(u32, RdmaPort)> {
    let attributes = Attributes::of(payload);
    let number = attributes.u32(RDMA_NLDEV_ATTR_PORT_INDEX)?;
    // `enum ib_port_state`, include/rdma/ib_verbs.h; a number from later is as good as none.
    let state = match attributes.u8(RDMA_NLDEV_ATTR_PORT_STATE) {
        Some(1) => "DOWN",
        Some(2) => "INIT",
        Some(3) => "ARMED",
        Some(4) => "ACTIVE",
        Some(5) => "ACTIVE_DEFER",
        _ => "",
    };
    Some((
        number,
        RdmaPort {
            // Only InfiniBand has subnets.
            link_layer: attributes.u64(RDMA_NLDEV_ATTR_SUBNET_PREFIX).map(|_| RdmaLinkLayer::Infiniband),
            state: state.to_owned(),
            netdev: attributes.text(RDMA_NLDEV_ATTR_NDEV_NAME).and_then(InterfaceName::new),
            ..RdmaPort::default()
        },
    ))
}

/// A GUID in host order as sysfs writes it.
fn guid(number: u64) -> String {
    [48, 32, 16, 0].map(|shift| format!("{:04x}", number >> shift & 0xffff)).join(":")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn text(kind: u16, text: &str) -> Vec<u8> {
        attribute(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// Hexadecimal digits as bytes.
    fn recorded(digits: &str) -> Vec<u8> {
        digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// What Linux 6.12 answered with `rdma link add rxe0 type rxe netdev enp0s3`, where rdma(8) printed "link rxe0/1 state ACTIVE
    /// physical_state LINK_UP netdev enp0s3" and "0: rxe0: node_type ca node_guid 5054:00ff:fe00:000a".
    #[test]
    fn a_device_and_its_port_are_what_rdma_link_shows() {
        let (index, found, layer) = device(&recorded(
            "080001000000000009000200727865300000000008000300010000000c000400763c2201c00100000c0006000a0000feff005450\
             0c0007000a0000feff00545005000e00010000000500540000000000050065000100000009004300726f636500000000",
        ))
        .unwrap();
        assert_eq!((index, found.name.as_str(), found.node), (0, "rxe0", RdmaNode::Ca));
        assert_eq!(found.node_guid.as_deref(), Some("5054:00ff:fe00:000a"));
        assert_eq!(layer, Some(RdmaLinkLayer::Ethernet));
        let answer = recorded(
            "0800010000000000090002007278653000000000080003000100000005000c000400000005000d00050000000800320002000000\
             0b003300656e703073330000",
        );
        let (number, found) = port(&answer).unwrap();
        assert_eq!((number, found.state.as_str(), found.link_layer), (1, "ACTIVE", None));
        assert_eq!(found.netdev, InterfaceName::new("enp0s3"));
        let subnet = attribute(RDMA_NLDEV_ATTR_SUBNET_PREFIX, &0xfe80_0000_0000_0000u64.to_ne_bytes());
        assert_eq!(port(&[answer, subnet].concat()).unwrap().1.link_layer, Some(RdmaLinkLayer::Infiniband));
    }

    #[test]
    fn what_lacks_its_handle_is_nothing() {
        assert_eq!(device(&text(RDMA_NLDEV_ATTR_DEV_NAME, "mlx5_0")), None);
        assert_eq!(device(&attribute(RDMA_NLDEV_ATTR_DEV_INDEX, &0u32.to_ne_bytes())), None);
        assert_eq!(port(&text(RDMA_NLDEV_ATTR_NDEV_NAME, "eth0")), None);
        // A device without a GUID has zeros (EFA); an interface name that the kernel would not have is none.
        let odd = [
            attribute(RDMA_NLDEV_ATTR_PORT_INDEX, &1u32.to_ne_bytes()),
            text(RDMA_NLDEV_ATTR_NDEV_NAME, "a/b"),
            attribute(RDMA_NLDEV_ATTR_PORT_STATE, &[77]),
        ]
        .concat();
        assert_eq!(port(&odd), Some((1, RdmaPort::default())));
    }

    #[test]
    fn without_rdma_there_are_no_devices_and_no_module_is_loaded() {
        assert_eq!(devices(Path::new("/nonexistent")), BTreeMap::new());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = (device(&bytes), port(&bytes));
        }
    }
}
