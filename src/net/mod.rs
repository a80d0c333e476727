//! Shared words: protocols, ports, addresses, interface names, and [`facts::Facts`] about this node as plain data.

pub mod addr;
pub mod device;
pub mod facts;
pub mod flow;
pub mod interface;
pub mod listener;
pub mod node;
pub mod pci;
pub mod ports;
pub mod protocol;
pub mod published;
pub mod rail;
pub mod range;
pub mod shared;
pub mod splitmix;
