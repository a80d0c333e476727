//! What goes on at this node, as values: events of the packet log and of connection tracking, and the records that they add up to.
//!
//! ```text
//!  NFLOG ──────┐                      ┌─> tell ──> journal          (Event)
//!  conntrack ──┼─> scene ─> Event ────┼─> `monitor`, `top`
//!  sockets ────┘   policy, facts      └─> window ──> store          (Record)
//!                                                      └─> `flows`, `learn`, `audit-report`
//! ```

pub mod event;
pub mod names;
pub mod query;
pub mod readiness;
pub mod record;
pub mod scene;
pub mod seen;
pub mod tell;
#[cfg(test)]
mod tests;
pub mod window;

pub use event::{Event, Kind};
pub use record::{Actor, Decider, Key, PeerName, Record, Service, Verdict};
