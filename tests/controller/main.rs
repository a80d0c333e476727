//! `nodewall join` and `nodewall controller` as people run them, and the renewal of certificates, against an API server that knows who
//! asks.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod elect;
mod fleet;
mod join;
#[path = "../lab/mod.rs"]
mod lab;
mod run;
mod statuses;
