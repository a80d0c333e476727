//! What goes on at this node, as values: events of the packet log and of connection tracking, and the records that they add up to.
//!
//! ```text
//!  NFLOG ──────┐  flow: Logged, Connection   ┌─> journal, `monitor`, `top`   (Event)
//!  conntrack ──┴──────────> window ──────────┤
//!  policy, facts, sockets ──┘                └─> store, `flows`, `learn`, `audit-report`   (Record)
//! ```

pub mod event;
pub mod query;
pub mod readiness;
pub mod record;
pub mod seen;

pub use event::{Event, Kind};
pub use record::{Actor, Decider, Key, PeerName, Record, Service, Verdict};
