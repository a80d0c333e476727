//! `nodewall panic` and `nodewall break-glass`: what an operator does in an emergency.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Options;
use super::exit::Exit;
use super::order;
use super::output::Output;
use crate::config::{self, duration};
use crate::daemon::socket::Request;
use crate::source::Trust;

/// Arguments of `panic`.
#[derive(Args, Debug)]
pub(super) struct Panic {
    /// Whether it is on from now on
    #[arg(value_enum, value_name = "on|off")]
    switch: Switch,
    /// Why, for the journal
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// On or off.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    On,
    Off,
}

/// Arguments of `break-glass`.
#[derive(Args, Debug)]
pub(super) struct BreakGlass {
    /// For how long ("15m")
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse, requires = "reason", required_unless_present = "end")]
    time: Option<Duration>,
    /// Why, for the journal
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// End it now
    #[arg(long, conflicts_with = "time")]
    end: bool,
}

pub(super) fn panic(options: &Options, arguments: &Panic, output: &Output) -> Exit {
    let on = Some(arguments.switch == Switch::On);
    send(options, &Request { on, reason: arguments.reason.clone(), ..Request::new("panic") }, output)
}

pub(super) fn break_glass(options: &Options, arguments: &BreakGlass, output: &Output) -> Exit {
    let seconds = arguments.time.map(|time| time.as_secs());
    send(options, &Request { seconds, reason: arguments.reason.clone(), ..Request::new("break-glass") }, output)
}

fn send(options: &Options, request: &Request, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    order::send(&config.socket, request, output)
}
