//! `nodewall rollback`: go back to an earlier generation.

use clap::Args;

use super::Options;
use super::exit::Exit;
use super::order;
use super::output::Output;
use crate::config;
use crate::daemon::socket::Request;
use crate::source::Trust;

/// Arguments of `rollback`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The generation, as `history` lists it; without it, the confirmed one while another waits for its confirmation, else
    /// the one before
    #[arg(value_name = "N")]
    generation: Option<u64>,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    order::send(&config.socket, &Request { generation: arguments.generation, ..Request::new("rollback") }, output)
}
