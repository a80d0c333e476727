//! `nodewall controller`: what one for a whole cluster does.

use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::Exit;
use super::output::Output;
use crate::{controller, daemon, host};

/// Arguments of `controller`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// How to reach the API server, if not as the ServiceAccount of the pod in which this runs
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the Lease
    #[arg(long, value_name = "NAME", default_value = "nodewall")]
    namespace: String,
    /// The Lease whose holder works, where several run
    #[arg(long, value_name = "NAME", default_value = "nodewall-controller")]
    lease: String,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Exit {
    daemon::start_log();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.message(&format!("cannot start the loop: {error}"));
            return Exit::Failure;
        }
    };
    let options = controller::Options {
        kubeconfig: arguments.kubeconfig.clone(),
        namespace: arguments.namespace.clone(),
        lease: arguments.lease.clone(),
        host: host::name(Path::new("/")),
        intervals: controller::Intervals::default(),
    };
    let ended = runtime.block_on(controller::run(options));
    // A name server that does not answer is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Exit::Ok,
        Err(why) => {
            output.message(&why);
            Exit::Failure
        }
    }
}
