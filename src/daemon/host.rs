//! What this machine is beside our table: what the kernel has, asked once, and who else decides about packets, asked for a status.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::status::{BaseChainRecord, FeatureRecord, RemarkRecord, Status};
use super::{Daemon, Input, log::message_id};
use crate::driver::{self, Netlink};
use crate::host::{advice, coexistence};
use crate::net::facts::Facts;
use crate::nft::feature::{Feature, Support};

/// Whether the kernel was asked what it has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Features {
    /// Not yet: the first ruleset goes before.
    #[default]
    Unasked,
    Asked,
    Known(Vec<FeatureRecord>),
}

impl Daemon {
    /// Asks the kernel once what it has, off the loop: it may load modules.
    pub(super) fn ask_features(&mut self) {
        if self.features != Features::Unasked {
            return;
        }
        self.features = Features::Asked;
        let inbox = self.inbox.clone();
        tokio::task::spawn_blocking(move || {
            // The loop is gone only when the process ends.
            let _ = inbox.send(Input::Features(driver::features()));
        });
    }

    pub(super) fn told_features(&mut self, found: Result<BTreeMap<Feature, Support>, driver::Error>) {
        let missing = match found {
            Ok(found) => FeatureRecord::missing(&found),
            Err(error) => return tracing::warn!("cannot ask the kernel what it has: {error}"),
        };
        if !missing.is_empty() {
            let words: Vec<String> = missing.iter().map(|lack| format!("{} ({})", lack.what, lack.help)).collect();
            let names: Vec<&str> = missing.iter().map(|lack| lack.feature.as_str()).collect();
            tracing::warn!(
                message_id = message_id::KERNEL_LACKS,
                features = names.join(" "),
                "the kernel lacks {}",
                words.join("; ")
            );
        }
        self.features = Features::Known(missing);
    }
}

/// Adds to a status who else decides about packets.
pub(super) async fn look_around(status: &mut Status, root: PathBuf, facts: Option<Facts>) {
    let (chains, mut remarks) = tokio::task::spawn_blocking(move || {
        // On a socket of its own: rules of others may be many, and neither a repair nor a change waits for them.
        let chains = Netlink::open().and_then(|mut netlink| driver::coexisting(&mut netlink));
        let mut remarks = coexistence::from_files(&root);
        remarks.extend(facts.iter().flat_map(|facts| advice::of(facts, &root)));
        (chains, remarks)
    })
    .await
    .unwrap_or_else(|_| (Ok(Vec::new()), Vec::new()));
    remarks.extend(coexistence::from_links().await.unwrap_or_default());
    status.other_chains = chains.ok().map(|chains| chains.iter().map(BaseChainRecord::of).collect());
    status.remarks = remarks.iter().map(RemarkRecord::of).collect();
}
