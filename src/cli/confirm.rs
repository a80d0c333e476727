//! `nodewall confirm`: keep what was applied under `--confirm`.

use super::Options;
use super::exit::Exit;
use super::order;
use super::output::Output;
use crate::config;
use crate::daemon::socket::Request;
use crate::source::Trust;

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    order::send(&config.socket, &Request::new("confirm"), output)
}
