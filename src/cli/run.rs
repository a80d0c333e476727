//! `nodewall run`: the daemon.

use std::path::PathBuf;
use std::time::Duration;

use super::Options;
use super::exit::{self, Exit};
use super::output::Output;
use crate::daemon;
use crate::driver::Netlink;

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let kernel = match Netlink::open() {
        Ok(kernel) => Box::new(kernel),
        Err(error) => {
            output.message(&exit::chain(&error));
            return exit::of_kernel(&error);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A thread that has read the files has nothing more to do; one that lingers is a wake-up later.
        .thread_keep_alive(Duration::from_millis(50))
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output.message(&format!("cannot start the loop: {error}"));
            return Exit::Failure;
        }
    };
    let options = daemon::Options {
        whereabouts: options.whereabouts(&[]),
        root: options.root.clone().unwrap_or_else(|| PathBuf::from("/")),
    };
    let ended = runtime.block_on(daemon::run(options, kernel));
    // Reading a file that hangs must not keep the process from ending.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            output.message(&exit::chain(&error));
            match &error {
                daemon::Error::Kernel(error) => exit::of_kernel(error),
                daemon::Error::InUse(_) | daemon::Error::System { .. } => Exit::Failure,
            }
        }
    }
}
