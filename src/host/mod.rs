//! What this machine is: links, addresses and routes by rtnetlink, devices by sysfs, all below a root directory so that a
//! fixture can be another machine.

use std::path::Path;

use crate::net::facts::Facts;

/// What went wrong while looking at the machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// rtnetlink did not answer.
    #[error("cannot {attempt} by rtnetlink")]
    Netlink {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// The facts of this machine: rtnetlink for links, addresses and routes of this network namespace, sysfs below `root`.
pub async fn collect(root: &Path) -> Result<Facts, Error> {
    let _ = root;
    todo!()
}

/// The facts of another machine from a copy of its /sys and /proc below `root`.
pub fn collect_fixture(root: &Path) -> Facts {
    let _ = root;
    todo!()
}
