//! Rails: which RDMA NIC is which, remembered from one start to the next.

use std::collections::BTreeMap;

use super::pci::PciAddress;

/// Rails by number: `rail0` is number 0.
pub type Rails = BTreeMap<u32, Slot>;

/// What a rail's NIC is known by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slot {
    /// Its PCI address. Addresses behind a card that is dead may be others after the next boot.
    pub pci: PciAddress,
    /// The GUID of its port: stays with the card.
    pub guid: Option<String>,
    /// The accelerator that it is paired with.
    pub gpu: Option<PciAddress>,
}

/// The name of a rail.
pub fn name(number: u32) -> String {
    format!("rail{number}")
}
