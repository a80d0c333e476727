//! Flows: what is read of packets and connections, and the store of what they added up to.

pub mod store;
