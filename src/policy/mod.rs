//! What the operator means: interfaces, sets, services, tiers, policies and rules as typed, checked values
//! (`policy.md` section 2), and what they come to on one node.

pub mod addresses;
mod boot;
pub mod clusters;
pub mod coverage;
pub mod early;
pub mod effective;
mod expected;
pub mod expiry;
pub mod guards;
mod l4;
pub mod local;
pub mod meaning;
pub mod model;
pub mod nodes;
pub mod parse;
mod ports;
pub mod preset;
pub mod processes;
pub mod rails;
pub mod resolve;
pub mod roles;
pub mod selector;
pub mod settings;
