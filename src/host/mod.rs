//! What this machine is: links, addresses and routes by rtnetlink, devices by sysfs, all below a root directory so that a
//! fixture can be another machine.

mod fixture;
mod kubeconfig;
mod netlink;
mod sysfs;
mod watch;

use std::path::Path;

use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;

pub use fixture::collect_fixture;
pub use kubeconfig::{KubeconfigError, api_servers};
pub use watch::Watch;

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
/// [`Facts::labels`] and [`Facts::api_servers`] stay empty: they come from settings and from the kubeconfig.
///
/// # Errors
/// When rtnetlink does not answer; a sysfs file that cannot be read only leaves its fact out.
pub async fn collect(root: &Path) -> Result<Facts, Error> {
    let mut links = netlink::links().await?;
    // A message that the rtnetlink crate cannot decode is one link less, without an error; such a link is still there, and
    // its name and type are better known from sysfs than not at all.
    for (index, name) in netlink::names() {
        if !links.contains_key(&index)
            && let Some(name) = InterfaceName::new(&name)
        {
            let mut link = Link::named(index, name);
            if let Some(hardware) = sysfs::hardware(root, &link) {
                link.hardware = hardware;
            }
            links.insert(index, link);
        }
    }
    netlink::add_addresses(&mut links).await?;
    netlink::add_default_routes(&mut links).await?;
    for link in links.values_mut() {
        sysfs::add_device(root, link);
    }
    Ok(Facts { node: sysfs::host_name(root), links, ..Facts::default() })
}
