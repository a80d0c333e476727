//! `nodewall reload`: have the daemon read everything again, and say what came of it. What `systemctl reload nodewall` runs.

use std::time::Duration;

use super::Options;
use super::exit::Exit;
use super::order;
use super::output::Output;
use crate::config;
use crate::daemon::socket::{RELOAD_TIME, Request};
use crate::source::Trust;

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    // The daemon's own words come first, also when it gives up.
    let time = RELOAD_TIME + Duration::from_secs(2);
    order::send_for(&config.socket, &Request::new("reload"), time, output)
}
