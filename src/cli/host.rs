//! `nodewall check --host`: what else on this machine decides about packets.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::exit::{self, Exit};
use super::output::Output;
use super::status::chain_rows;
use crate::daemon::status::BaseChainRecord;
use crate::driver::{self, Kernel, Netlink};
use crate::host::{self, coexistence};

/// What `check --host --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    /// `None` when the kernel could not be asked.
    base_chains: Option<Vec<BaseChainRecord>>,
    remarks: Vec<RemarkRecord>,
}

/// A remark.
#[derive(Serialize)]
struct RemarkRecord {
    code: &'static str,
    message: String,
    help: &'static str,
}

pub(super) fn run(root: Option<&Path>, strict: bool, output: &Output) -> Exit {
    let mut remarks = coexistence::from_files(root.unwrap_or(Path::new("/")));
    let mut chains = None;
    // A copy of another machine's files says nothing about its kernel.
    if root.is_none() {
        match links() {
            Ok(found) => remarks.extend(found),
            Err(error) => output.message(&exit::chain(&error)),
        }
        match Netlink::open().and_then(|mut kernel| kernel.chains()) {
            Ok(all) => {
                chains = Some(driver::others(&all).iter().map(BaseChainRecord::of).collect::<Vec<_>>());
            }
            Err(error) => output.message(&exit::chain(&error)),
        }
    }
    let printed = if output.json {
        let remarks: Vec<RemarkRecord> = remarks
            .iter()
            .map(|remark| RemarkRecord { code: remark.code, message: remark.message.clone(), help: remark.help })
            .collect();
        output.json(&Report { version: 1, base_chains: chains, remarks })
    } else {
        output.data(&text(chains.as_deref(), &remarks))
    };
    if strict && !remarks.is_empty() { Exit::Failure } else { printed }
}

fn links() -> Result<Vec<coexistence::Remark>, host::Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| host::Error::Netlink { attempt: "start a task for questions", source })?
        .block_on(coexistence::from_links())
}

fn text(chains: Option<&[BaseChainRecord]>, remarks: &[coexistence::Remark]) -> String {
    let mut out = String::new();
    for remark in remarks {
        // Writing to a String does not fail.
        let _ = writeln!(out, "warning[{}]: {}\n  help: {}", remark.code, remark.message, remark.help);
    }
    match chains {
        Some([]) => out.push_str("no base chains besides ours\n"),
        Some(chains) => {
            let all: Vec<&BaseChainRecord> = chains.iter().collect();
            if out.is_empty() {
                out.push_str("base chains besides ours:\n");
            }
            chain_rows(&mut out, &all);
            if chains.iter().any(|chain| chain.after_ours) {
                out.push_str("\nAFTER OURS: what such a chain drops is dropped, also where nodewall accepts it.\n");
            }
        }
        None => {}
    }
    if remarks.is_empty() && chains.is_none() {
        out.push_str("nothing else found\n");
    }
    out
}

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
        };
        let chains = [chain("prerouting", -300, "raw", "Calico", false), chain("input", 0, "filter", "ufw", true)];
        let remark = coexistence::Remark { code: "xdp", message: "interface a has one".to_owned(), help: "look" };
        let expected = "\
warning[xdp]: interface a has one
  help: look

HOOK        PRIORITY  TYPE    CHAIN            POLICY  RULES  OWNER   AFTER OURS
prerouting      -300  filter  ip raw INPUT     drop        3  Calico  no
input              0  filter  ip filter INPUT  drop        3  ufw     yes

AFTER OURS: what such a chain drops is dropped, also where nodewall accepts it.
";
        assert_eq!(text(Some(&chains), &[remark]), expected);
        assert_eq!(text(Some(&[]), &[]), "no base chains besides ours\n");
        assert_eq!(text(None, &[]), "nothing else found\n");
    }
}
