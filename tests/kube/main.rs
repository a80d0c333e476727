//! Documents from the API of Kubernetes: the contract of the source with a server, every fault that real ones were seen with, and
//! the daemon between such a server and the kernel.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calico;
mod contract;
mod daemon;
mod faults;
mod fleet;
mod follower;
#[path = "../lab/mod.rs"]
mod lab;
mod nodes;
mod report;
mod server;
mod stand_in;
