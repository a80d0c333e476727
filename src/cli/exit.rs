//! Exit codes: LSB's where it has one, one meaning each (`operators.md` section 2).

use std::io;
use std::process::ExitCode;

use nix::errno::Errno;

use crate::driver;

macro_rules! exits {
    ($($(#[$doc:meta])* $variant:ident = $code:literal: $words:literal),* $(,)?) => {
        /// How a subcommand ended.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Exit { $($(#[$doc])* $variant = $code),* }

        /// Every exit code with what it means, as help and manual have it.
        pub(super) const ALL: &[(u8, &str)] = &[$(($code, $words)),*];
    };
}

exits! {
    /// Done, and all is well.
    Ok = 0: "done, and all is well",
    /// A negative answer, or a failure without a code of its own.
    Failure = 1: "a negative answer (`check --strict` with warnings, `diff` with a difference, `simulate` of a packet that is dropped, \
        `audit --diff` with a new exposure, `audit-report` of a policy that is not ready, `fleet status` of a fleet that is not as it is \
        meant, `learn verify` of a draft that denies what is in use), or a failure without a code of its own",
    /// Wrong usage.
    Usage = 2: "wrong usage",
    /// The daemon is not running.
    NotRunning = 3: "nodewall is not running",
    /// The kernel or the daemon says that this user may not.
    NotAuthorised = 4: "not authorised",
    /// The policy or nodewall.toml is invalid.
    InvalidPolicy = 5: "the policy or nodewall.toml is invalid",
    /// The kernel lacks a feature.
    KernelLacks = 6: "the kernel lacks a feature",
    /// It was in force, was not confirmed, and is gone again.
    RolledBack = 7: "`apply --wait`: the change was not confirmed and is gone again",
    /// The kernel has something else than the policy in force.
    Drift = 8: "drift: the kernel has something else than the policy in force",
    /// The newest policy is not the one in force.
    Degraded = 9: "degraded: the newest policy is not the one in force",
}

/// What `nodewall --help` ends with.
pub(super) fn help() -> String {
    let lines: Vec<String> = ALL.iter().map(|(code, words)| format!("  {code}  {words}")).collect();
    format!("Exit codes:\n{}", lines.join("\n"))
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
