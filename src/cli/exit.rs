//! Exit codes: LSB's where it has one, one meaning each (`operators.md` section 2).

use std::io;
use std::process::ExitCode;

use nix::errno::Errno;

use crate::driver;

/// How a subcommand ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// Done, and all is well.
    Ok = 0,
    /// A negative answer, or a failure without a code of its own.
    Failure = 1,
    /// Wrong usage.
    Usage = 2,
    /// The daemon is not running.
    NotRunning = 3,
    /// The kernel or the daemon says that this user may not.
    NotAuthorised = 4,
    /// The policy or nodewall.toml is invalid.
    InvalidPolicy = 5,
    /// The kernel lacks a feature.
    KernelLacks = 6,
    /// It was in force, was not confirmed, and is gone again.
    RolledBack = 7,
    /// The kernel has something else than the policy in force.
    Drift = 8,
    /// The newest policy is not the one in force.
    Degraded = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The exit code for what the kernel said.
pub(super) fn of_kernel(error: &driver::Error) -> Exit {
    match error {
        driver::Error::Socket { source, .. } => of_io(source),
        driver::Error::Refused { errno, .. } => of_errno(*errno),
        driver::Error::NoDevice { .. }
        | driver::Error::Contended
        | driver::Error::Answer(_)
        | driver::Error::Batch(_)
        | driver::Error::Differs(_) => Exit::Failure,
    }
}

fn of_io(error: &io::Error) -> Exit {
    error.raw_os_error().map_or(Exit::Failure, |number| of_errno(Errno::from_raw(number)))
}

fn of_errno(errno: Errno) -> Exit {
    match errno {
        Errno::EPERM | Errno::EACCES => Exit::NotAuthorised,
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOSYS => Exit::KernelLacks,
        _ => Exit::Failure,
    }
}

/// An error with all its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
