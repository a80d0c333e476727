//! `nodewall disarm`: remove our table, and only that.

use serde::Serialize;

use super::Options;
use super::exit::{self, Exit};
use super::output::Output;
use super::status::daemon_answers;
use crate::config;
use crate::driver::{Error, Kernel, Netlink, Read};
use crate::nft;
use crate::nft::change::{Batch, Change};
use crate::source::Trust;

/// What `disarm --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    removed: bool,
    daemon_running: bool,
}

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    let daemon_running = daemon_answers(&config.socket);
    let removed = match Netlink::open().and_then(|mut kernel| remove(&mut kernel)) {
        Ok(removed) => removed,
        Err(error) => {
            output.message(&exit::chain(&error));
            return exit::of_kernel(&error);
        }
    };
    if daemon_running {
        output.message(
            "nodewall is running: it puts the table back at once; `systemctl stop nodewall` first keeps it away",
        );
    }
    if output.json {
        return output.json(&Report { version: 1, removed, daemon_running });
    }
    match removed {
        true => output.data(&format!("table {} removed; nodewall protects nothing now\n", nft::TABLE)),
        false => output.data(&format!("table {} was not there\n", nft::TABLE)),
    }
}

fn remove(kernel: &mut dyn Kernel) -> Result<bool, Error> {
    if !kernel.load(&Read::Only(Vec::new()))?.exists {
        return Ok(false);
    }
    kernel.commit(&Batch { generation: None, changes: vec![Change::DeleteTable] })?;
    Ok(true)
}
