//! `nodewall boot`: rules before the network, without policy, settings file or daemon.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::exit::{self, Exit};
use super::output::Output;
use crate::boot::{self, FailMode, Failed, InForce, Lockdown};
use crate::driver::Netlink;
use crate::net::addr::parse_prefix;

/// Arguments of `boot`. All of it can be left out: what a boot needs must not depend on a file that can be broken.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where the generations are
    #[arg(long, value_name = "DIR", default_value = STATE_DIRECTORY)]
    state_directory: PathBuf,
    /// What to do when no generation is in force in time: load the lockdown, or leave the host open
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Lockdown)]
    fail_mode: Mode,
    /// How long all of it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value = LIMIT, value_parser = seconds)]
    limit: Duration,
    #[command(flatten)]
    lockdown: LockdownArguments,
}

const STATE_DIRECTORY: &str = "/var/lib/nodewall";
const LIMIT: &str = "5s";

/// What an operator may choose about the lockdown.
#[derive(Args, Debug, Default)]
pub(super) struct LockdownArguments {
    /// A TCP port of SSH in the lockdown, instead of 22; may be repeated
    #[arg(long = "ssh-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ssh_ports: Vec<u16>,
    /// Who may come in by SSH in the lockdown, instead of anyone; may be repeated
    #[arg(long = "ssh-from", value_name = "PREFIX", value_parser = prefix)]
    ssh_from: Vec<IpNet>,
}

impl LockdownArguments {
    pub(super) fn lockdown(&self) -> Lockdown {
        Lockdown { ssh_ports: self.ssh_ports.clone(), ssh_from: self.ssh_from.clone() }
    }

    pub(super) fn given(&self) -> bool {
        !self.ssh_ports.is_empty() || !self.ssh_from.is_empty()
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Lockdown,
    Open,
}

/// A boot that waits longer than this for rules helps nobody.
const LONGEST_LIMIT_SECONDS: u64 = 60;

fn seconds(text: &str) -> Result<Duration, String> {
    let number: u64 =
        text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| "not a number of seconds".to_owned())?;
    match number {
        1..=LONGEST_LIMIT_SECONDS => Ok(Duration::from_secs(number)),
        _ => Err(format!("not between 1 and {LONGEST_LIMIT_SECONDS} seconds")),
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    parse_prefix(text).map_err(|error| error.to_string())
}

/// Whether a command line that clap refuses asks for a boot.
pub(super) fn asked(words: impl IntoIterator<Item = OsString>) -> bool {
    words.into_iter().nth(1).is_some_and(|word| word == "boot")
}

/// A boot whose command line cannot be read: with the defaults, as a slip in a drop-in of the unit must not leave the host open.
pub(super) fn run_anyway(output: &Output) -> Exit {
    output.message("going on with the defaults of `nodewall boot`");
    let arguments = Arguments {
        state_directory: PathBuf::from(STATE_DIRECTORY),
        fail_mode: Mode::Lockdown,
        limit: seconds(LIMIT).unwrap_or(Duration::from_secs(5)),
        lockdown: LockdownArguments::default(),
    };
    run(&arguments, output)
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Exit {
    let options = boot::Options {
        state_directory: arguments.state_directory.clone(),
        fail_mode: match arguments.fail_mode {
            Mode::Lockdown => FailMode::Lockdown,
            Mode::Open => FailMode::Open,
        },
        limit: arguments.limit,
        lockdown: arguments.lockdown.lockdown(),
    };
    // Messages come out as things happen: of a boot that then hangs, they are all there is.
    match boot::boot(&options, Netlink::open, |text| output.message(text)) {
        Ok(InForce::Already) => output.data("our table is in force already, and was left alone\n"),
        Ok(InForce::Generation { number, time, source }) => {
            output.data(&format!("in force: generation {number} of {time} ({source})\n"))
        }
        Ok(InForce::Lockdown) => output.data("in force: the lockdown\n"),
        Err(failed) => {
            output.message(&format!("nothing is in force: {}", exit::chain(&failed)));
            match &failed {
                Failed::Kernel(error) => exit::of_kernel(error),
                Failed::Time(_) | Failed::Thread(_) => Exit::Failure,
            }
        }
    }
}
