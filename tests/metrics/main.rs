//! Metrics of the real daemon: read by its sockets, checked by promtool, scraped by a real Prometheus; the rules, the runbook and the
//! dashboard that come with it.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../lab/mod.rs"]
mod lab;

mod ask;
mod golden;
mod packaging;
mod prometheus;
mod served;
