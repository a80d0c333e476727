//! The report for people.

use std::fmt::Write as _;

use super::report::{Basis, ListenerRecord, PolicyRecord, PublishedRecord, ReachRecord, Report};
use crate::cli::output::count;
use crate::cli::status::table;

pub(super) fn of(report: &Report) -> String {
    let mut out = format!("{}\n", held_against(&report.policy));
    let [anybody, some, nobody, here] = report.counts();
    // Writing to a String does not fail.
    let _ = writeln!(
        out,
        "{}: {anybody} reached by anyone, {some} by some, {nobody} by nobody, {here} on loopback only",
        count(anybody + some + nobody + here, "open port")
    );
    for finding in &report.findings {
        let _ =
            write!(out, "\n{}[{}]: {}\n  help: {}\n", finding.severity, finding.code, finding.message, finding.help);
    }
    let listeners = report.listeners.iter().map(listener);
    let published = report.published.iter().map(published);
    table(
        &mut out,
        ["LISTENS ON", "SERVICE", "PROCESS", "BELONGS TO", "USER", "GPU", "REACHED FROM"],
        &[false; 7],
        listeners.chain(published).collect(),
    );
    out
}

/// What the report is about, in one sentence.
pub(super) fn held_against(policy: &PolicyRecord) -> String {
    if let Some(emergency) = &policy.emergency {
        return format!("under {emergency}");
    }
    let basis = match (policy.basis, policy.generation) {
        (Basis::Generation, Some(number)) => format!("under generation {number}, which is in force"),
        (Basis::Generation, None) => "under the policy in force".to_owned(),
        (Basis::Documents, _) => "under these documents".to_owned(),
        (Basis::Nothing, _) => {
            return "nodewall has no policy in force here: whatever listens can be reached, as far as nodewall goes"
                .to_owned();
        }
    };
    if policy.mode == "audit" { format!("{basis}, in audit mode: nothing is denied") } else { basis }
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

fn listener(listener: &ListenerRecord) -> [String; 7] {
    let place = match listener.rdma.as_slice() {
        [] => listener.place(),
        devices => format!("{} on {}", listener.place(), devices.join(", ")),
    };
    [
        place,
        or_dash(listener.service.clone()),
        listener.who(),
        or_dash(listener.home()),
        or_dash(listener.user.clone()),
        if listener.gpu { "yes" } else { "-" }.to_owned(),
        reached(&listener.reach, listener.address.is_loopback()),
    ]
}

fn published(published: &PublishedRecord) -> [String; 7] {
    let comment = published.comment.as_ref().map(|comment| format!(" {comment}")).unwrap_or_default();
    let owner = published.owner.as_deref().unwrap_or(&published.via);
    [
        published.place(),
        or_dash(published.service.clone()),
        format!("to {}", published.target),
        format!("{owner}{comment}"),
        "-".to_owned(),
        "-".to_owned(),
        reached(&published.reach, false),
    ]
}

/// "mgmt: admin, monitoring; rail: anyone"
pub(super) fn reached(reach: &[ReachRecord], loopback: bool) -> String {
    if reach.is_empty() {
        return if loopback { "this host" } else { "nobody" }.to_owned();
    }
    let zone = |reach: &ReachRecord| format!("{}: {}", reach.zone, reach.peers());
    reach.iter().map(zone).collect::<Vec<_>>().join("; ")
}
