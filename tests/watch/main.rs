//! `monitor` and `top` against a control socket that plays a stream of events.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod monitor;
mod stand_in;
mod tmux;
mod top;
