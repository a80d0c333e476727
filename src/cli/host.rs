//! `nodewall check --host`: what else on this machine decides about packets, and what the kernel has.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::examine;
use super::exit::{self, Exit};
use super::output::Output;
use super::status::chain_rows;
use crate::daemon::status::{BaseChainRecord, FeatureRecord, RemarkRecord};
use crate::driver::{self, Netlink};
use crate::host::{self, advice, coexistence};
use crate::nft::feature::{Feature, Support};

/// What `check --host --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    /// `None` when the kernel could not be asked.
    base_chains: Option<Vec<BaseChainRecord>>,
    remarks: Vec<RemarkRecord>,
    /// `None` when the kernel could not be asked, which takes CAP_NET_ADMIN.
    features: Option<Vec<FeatureRecord>>,
}

pub(super) fn run(root: Option<&Path>, strict: bool, output: &Output) -> Exit {
    let below = root.unwrap_or(Path::new("/"));
    let mut remarks = coexistence::from_files(below);
    remarks.extend(advice::of(&examine::links(root, output), below));
    let (mut chains, mut features) = (None, None);
    // A copy of another machine's files says nothing about its kernel.
    if root.is_none() {
        match links() {
            Ok(found) => remarks.extend(found),
            Err(error) => output.message(&exit::chain(&error)),
        }
        match Netlink::open().and_then(|mut netlink| driver::coexisting(&mut netlink)) {
            Ok(all) => chains = Some(all.iter().map(BaseChainRecord::of).collect::<Vec<_>>()),
            Err(error) => output.message(&exit::chain(&error)),
        }
        match driver::features() {
            Ok(found) => features = Some(found),
            Err(error) => {
                let error = exit::chain(&error);
                output.message(&format!("{error}; what the kernel lacks is not known (it takes CAP_NET_ADMIN to ask)"));
            }
        }
    }
    let remarks: Vec<RemarkRecord> = remarks.iter().map(RemarkRecord::of).collect();
    let missing = features.as_ref().map(FeatureRecord::missing).unwrap_or_default();
    let printed = if output.json {
        let all = |found: BTreeMap<Feature, Support>| {
            found.iter().map(|(feature, support)| FeatureRecord::of(*feature, *support)).collect()
        };
        output.json(&Report { version: 1, base_chains: chains, remarks: remarks.clone(), features: features.map(all) })
    } else {
        output.data(&text(chains.as_deref(), &remarks, features.as_ref()))
    };
    if missing.iter().any(|lack| lack.needed) {
        Exit::KernelLacks
    } else if strict && !(remarks.is_empty() && missing.is_empty()) {
        Exit::Failure
    } else {
        printed
    }
}

fn links() -> Result<Vec<coexistence::Remark>, host::Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| host::Error::Netlink { attempt: "start a task for questions", source })?
        .block_on(coexistence::from_links())
}

fn text(
    chains: Option<&[BaseChainRecord]>,
    remarks: &[RemarkRecord],
    features: Option<&BTreeMap<Feature, Support>>,
) -> String {
    let mut out = String::new();
    for FeatureRecord { needed, what, help, .. } in features.map(FeatureRecord::missing).unwrap_or_default() {
        let severity = if needed { "error" } else { "warning" };
        // Writing to a String does not fail.
        let _ = writeln!(out, "{severity}[kernel-lacks]: the kernel lacks {what}\n  help: {help}");
    }
    for remark in remarks {
        let _ = writeln!(out, "warning[{}]: {}\n  help: {}", remark.code, remark.message, remark.help);
    }
    if let Some(features) = features {
        let unknown: Vec<&str> = features
            .iter()
            .filter(|(_, support)| matches!(support, Support::Unknown(_)))
            .map(|(feature, _)| feature.words())
            .collect();
        if !unknown.is_empty() {
            let _ = writeln!(out, "the kernel does not say whether it has: {}", unknown.join(", "));
        }
        let present = features.values().filter(|support| **support == Support::Present).count();
        let _ = writeln!(out, "kernel: {present} of {} features that nodewall uses", features.len());
    }
    match chains {
        Some([]) => out.push_str("no base chains besides ours\n"),
        Some(chains) => {
            let all: Vec<&BaseChainRecord> = chains.iter().collect();
            chain_rows(&mut out, &all);
            if chains.iter().any(|chain| chain.after_ours) {
                out.push_str(AFTER_OURS);
            }
        }
        None => {}
    }
    if remarks.is_empty() && chains.is_none() {
        out.push_str("nothing else found\n");
    }
    out
}

/// What the last column means.
pub(super) const AFTER_OURS: &str =
    "\nAFTER OURS: what such a chain drops is dropped, also where nodewall accepts it.\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_come_first_and_chains_in_a_table() {
        let chain = |hook: &str, priority, table: &str, owner: &str, after_ours| BaseChainRecord {
            hook: hook.to_owned(),
            priority,
            kind: "filter".to_owned(),
            family: "ip".to_owned(),
            table: table.to_owned(),
            chain: "INPUT".to_owned(),
            policy: "drop".to_owned(),
            rules: 3,
            owners: vec![owner.to_owned()],
            after_ours,
            drops: "policy".to_owned(),
        };
        let chains = [chain("prerouting", -300, "raw", "Calico", false), chain("input", 0, "filter", "ufw", true)];
        let remark = RemarkRecord { code: "xdp".into(), message: "interface a has one".into(), help: "look".into() };
        let expected = "\
warning[xdp]: interface a has one
  help: look

HOOK        PRIORITY  TYPE    CHAIN            POLICY  RULES  OWNER   DROPS   AFTER OURS
prerouting      -300  filter  ip raw INPUT     drop        3  Calico  policy  no
input              0  filter  ip filter INPUT  drop        3  ufw     policy  yes

AFTER OURS: what such a chain drops is dropped, also where nodewall accepts it.
";
        assert_eq!(text(Some(&chains), &[remark], None), expected);
        assert_eq!(text(Some(&[]), &[], None), "no base chains besides ours\n");
        assert_eq!(text(None, &[], None), "nothing else found\n");
    }

    #[test]
    fn what_the_kernel_lacks_is_said_with_what_that_means_and_where_it_comes_from() {
        let mut found: BTreeMap<Feature, Support> =
            Feature::ALL.into_iter().map(|feature| (feature, Support::Present)).collect();
        assert_eq!(
            text(Some(&[]), &[], Some(&found)),
            "kernel: 23 of 23 features that nodewall uses\nno base chains besides ours\n"
        );
        found.insert(Feature::Conntrack, Support::Missing(2));
        found.insert(Feature::SocketCgroup, Support::Missing(2));
        found.insert(Feature::Fib, Support::Unknown(Some(12)));
        let expected = "\
error[kernel-lacks]: the kernel lacks matches of connection states (ct)
  help: without it nodewall does not work; it comes with CONFIG_NFT_CT; `modprobe nft_ct`
warning[kernel-lacks]: the kernel lacks matches of a socket's control group (socket cgroupv2)
  help: without it rules for units are refused; it comes with CONFIG_NFT_SOCKET and CONFIG_SOCK_CGROUP_DATA of Linux 5.13; `modprobe nft_socket`
the kernel does not say whether it has: route lookups (fib)
kernel: 20 of 23 features that nodewall uses
no base chains besides ours
";
        assert_eq!(text(Some(&[]), &[], Some(&found)), expected);
    }
}
