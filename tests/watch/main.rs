//! `monitor` and `top`: against a control socket that plays a stream of events, in a real tmux, and with the real daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod daemon;
#[path = "../lab/mod.rs"]
mod lab;
mod monitor;
mod stand_in;
mod tmux;
mod top;
