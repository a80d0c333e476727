//! `nodewall status`: what is in force, from the daemon, or without one from the kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Options;
use super::exit::{self, Exit};
use super::host::AFTER_OURS;
use super::output::{Output, count};
use crate::config;
use crate::daemon::socket::{READERS, Refusal, Reply, Request};
use crate::daemon::status::{
    BaseChainRecord, ClusterRecord, DriftRecord, FindingRecord, RevocationRecord, SelfTestRecord, Status, TableRecord,
    TrafficRecord, VERSION,
};
use crate::driver::{self, Kernel, Netlink};
use crate::policy::coverage::{self, State};
use crate::source::Trust;

/// Longer than the daemon gives itself for an answer.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(25);
/// A status of 1,000 policies on 1,000 interfaces is a few megabytes.
const LONGEST_REPLY_BYTES: u64 = 256 * 1024 * 1024;

pub(super) fn run(options: &Options, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    let reply = match ask(&config.socket, &Request::new("status")) {
        Ok(reply) => reply,
        Err(error) if nobody_answers(&error) => return without_daemon(&config.socket, output),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            output.message(&format!(
                "not authorised: only root and group {READERS} may read {}",
                config.socket.display()
            ));
            return Exit::NotAuthorised;
        }
        Err(error) => {
            output.message(&format!("cannot ask the daemon on {}: {error}", config.socket.display()));
            return Exit::Failure;
        }
    };
    let status = match (reply.status, reply.error) {
        (Some(status), _) => status,
        (None, Some(Refusal { code, message })) => {
            output.message(&message);
            return if code == "not-authorised" { Exit::NotAuthorised } else { Exit::Failure };
        }
        (None, None) => {
            output.message("the daemon answered nothing");
            return Exit::Failure;
        }
    };
    let printed = show(&status, output);
    match status.state.as_str() {
        "degraded" | "panic" | "break-glass" => Exit::Degraded,
        _ if status.in_sync == Some(false) => Exit::Drift,
        _ => printed,
    }
}

/// Whether a daemon listens on this socket.
pub(super) fn daemon_answers(socket: &Path) -> bool {
    match UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

pub(super) fn nobody_answers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory)
}

pub(super) fn ask(socket: &Path, request: &Request) -> io::Result<Reply> {
    ask_for(socket, request, ANSWER_TIME)
}

/// Asks the daemon, and waits for so long for its answer.
pub(super) fn ask_for(socket: &Path, request: &Request, time: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    BufReader::new(stream.take(LONGEST_REPLY_BYTES)).read_until(b'\n', &mut reply)?;
    serde_json::from_slice(&reply).map_err(io::Error::other)
}

/// What the kernel alone can tell.
fn without_daemon(socket: &Path, output: &Output) -> Exit {
    output.message(&format!("the daemon is not running (nobody answers on {})", socket.display()));
    let loaded = Netlink::open().and_then(|mut kernel| kernel.load(&driver::Read::Everything));
    let mut status = Status { version: VERSION, state: "not-running".to_owned(), ..Status::default() };
    match &loaded {
        Ok(loaded) => status.table = Some(TableRecord::of(loaded)),
        Err(error) => {
            status.drift = vec![exit::chain(error)];
            output.message(&format!("cannot look at the kernel either: {}", exit::chain(error)));
        }
    }
    if output.json {
        output.json(&status);
    } else if let Some(table) = &status.table {
        output.data(&match table.exists {
            true => format!("the table it left is in force: {}\n", table_line(table)),
            false => "nothing of nodewall's is in force\n".to_owned(),
        });
    }
    Exit::NotRunning
}

fn show(status: &Status, output: &Output) -> Exit {
    if output.json {
        return output.json(status);
    }
    output.data(&text(status, output.colored(&io::stdout())))
}

/// "hub: in-sync since ..., 12 objects at revision 345".
fn cluster_line(cluster: &ClusterRecord) -> String {
    let ClusterRecord {
        name,
        state,
        since,
        revision,
        objects,
        elsewhere,
        nodes,
        invalid,
        certificate_until,
        error,
        report,
    } = cluster;
    let mut text = format!("{name}: {state}");
    if !since.is_empty() {
        let _ = write!(text, " since {since}");
    }
    let _ = write!(text, ", {}", count(*objects, "object"));
    if *elsewhere > 0 {
        let _ = write!(text, " and {elsewhere} for other nodes");
    }
    if let Some(nodes) = nodes {
        let _ = write!(text, ", {}", count(*nodes, "node"));
    }
    if *revision > 0 {
        let _ = write!(text, ", revision {revision}");
    }
    if !invalid.is_empty() {
        let _ = write!(text, "; not usable: {}", names(invalid));
    }
    if let Some(until) = certificate_until {
        let _ = write!(text, "; certificate until {until}");
    }
    if let Some(error) = error {
        let _ = write!(text, "; {error}");
    }
    if let Some(report) = report {
        let _ = write!(text, "; HostState {report}");
    }
    text
}

/// How many of each state there are, and where the reasons are.
fn coverage_line(counts: &BTreeMap<String, usize>) -> String {
    let all = coverage::counts_in_words(|state| counts.get(state.name()).copied().unwrap_or(0));
    if counts.iter().any(|(state, count)| *count > 0 && state != State::Enforced.name()) {
        return format!("{all} (`nodewall interfaces` says why)");
    }
    all
}

/// The first screen: the verdict in one line, then what it is about.
fn text(status: &Status, colored: bool) -> String {
    let paint = |text: &str, code: &str| if colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut out = String::new();
    let state = match status.state.as_str() {
        "in-force" if status.mode.as_deref() == Some("audit") => {
            paint("in force (audit: counts and logs, denies nothing)", "33")
        }
        "in-force" => paint("in force", "32"),
        "degraded" => paint("degraded", "31"),
        "unconfirmed" => paint("in force, unconfirmed", "33"),
        "panic" | "break-glass" => paint(&status.state.to_uppercase(), "31"),
        other => paint(other, "33"),
    };
    line(&mut out, "state", &state);
    if let Some(reason) = &status.reason {
        line(&mut out, "", reason);
    }
    if status.generation > 0 {
        let since = status.since.as_deref().map(|since| format!(" since {since}")).unwrap_or_default();
        let hash =
            status.hash.as_deref().and_then(|hash| hash.get(..12)).map(|hash| format!(", {hash}")).unwrap_or_default();
        line(&mut out, "generation", &format!("{}{since}{hash}", status.generation));
    }
    if let (Some(until), Some(seconds)) = (&status.confirm_until, status.confirm_seconds) {
        let back = status.confirmed.map(|number| format!(" to generation {number}")).unwrap_or_default();
        let unless = match status.confirm_by.as_deref() {
            Some("self-test") => "its self-test passes",
            _ => "`nodewall confirm` is run",
        };
        let text = format!("it goes back{back} in {seconds} s, at {until}, unless {unless}");
        line(&mut out, "confirm", &paint(&text, "33"));
    }
    if let Some(selftest) = &status.selftest {
        line(&mut out, "self-test", &selftest_line(selftest));
    }
    if let Some(until) = &status.break_glass_until {
        line(&mut out, "until", until);
    }
    if let Some(error) = &status.store_error {
        line(&mut out, "store", &paint(&format!("not on disk, a boot has an older policy: {error}"), "31"));
    }
    if let Some(error) = &status.metrics_error {
        line(&mut out, "metrics", &paint(&format!("cannot be read: {error}"), "33"));
    }
    for damage in &status.store_damages {
        line(&mut out, "store", &paint(&format!("passed over at the start: {damage}"), "33"));
    }
    match (status.in_sync, &status.table) {
        (Some(true), Some(table)) => line(&mut out, "kernel", &format!("in sync: {}", table_line(table))),
        (Some(false), _) => {
            line(&mut out, "kernel", &paint("DRIFT: it has something else than the policy in force", "31"))
        }
        (None, Some(table)) => line(&mut out, "kernel", &table_line(table)),
        (_, None) => line(&mut out, "kernel", "could not be looked at"),
    }
    for difference in &status.drift {
        line(&mut out, "", difference);
    }
    if let Some(last) = &status.drift_last {
        line(&mut out, "repairs", &drift_line(status.drift_events, last));
        if status.drift_storm {
            line(&mut out, "", &paint("another process keeps changing the table: repairs wait up to a second", "31"));
        }
    }
    if !status.coverage.is_empty() {
        line(&mut out, "coverage", &coverage_line(&status.coverage));
    }
    let idle: Vec<String> =
        status.units.iter().filter(|unit| unit.cgroups.is_empty()).map(|unit| unit.name.clone()).collect();
    if !idle.is_empty() {
        line(&mut out, "units", &format!("{} of {} do not run: {}", idle.len(), status.units.len(), names(&idle)));
    }
    if let Some(revocation) = &status.revocation {
        line(&mut out, "flows", &revocation_line(revocation));
    }
    if let Some(traffic) = &status.traffic {
        for (text, alright) in traffic_lines(traffic) {
            line(&mut out, "traffic", &if alright { text } else { paint(&text, "33") });
        }
    }
    for cluster in &status.clusters {
        let text = cluster_line(cluster);
        let unwritten = cluster.report.as_ref().is_some_and(|report| report.starts_with("not"));
        let fine = cluster.error.is_none() && !unwritten;
        let alright = cluster.state == "in-sync" && cluster.invalid.is_empty() && fine;
        line(&mut out, "cluster", &if alright { text } else { paint(&text, "33") });
    }
    for lack in status.kernel_lacks.iter().flatten() {
        let text = format!("{}: {}", lack.what, lack.help);
        line(&mut out, "lacks", &paint(&text, if lack.needed { "31" } else { "33" }));
    }
    let errors = status.findings.iter().filter(|finding| finding.severity == "error").count();
    let warnings = status.findings.len() - errors;
    if !status.findings.is_empty() {
        let counts = format!("{}, {}", count(errors, "error"), count(warnings, "warning"));
        line(&mut out, "findings", &format!("{counts} (`nodewall check` shows them in full)"));
        for finding in status.findings.iter().take(FINDINGS_SHOWN) {
            line(&mut out, "", &finding_line(finding));
        }
    }
    let rows = status
        .interfaces
        .iter()
        .map(|interface| [interface.name.clone(), interface.role.clone(), interface.why.clone()]);
    table(&mut out, ["INTERFACE", "ROLE", "WHY"], &[false; 3], rows.collect());
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let here = status.guards.iter().filter(|guard| !guard.interfaces.is_empty());
    let rows = here.map(|guard| [guard.name.clone(), number(guard.packets), interfaces(&guard.interfaces)]);
    table(&mut out, ["GUARD", "PACKETS", "INTERFACES"], &[false, true, false], rows.collect());
    let rows = status.policies.iter().map(|policy| {
        let until = policy.expires.as_ref().map(|at| format!("until {at}"));
        let notes: Vec<String> =
            (policy.mode == "audit").then(|| "audit".to_owned()).into_iter().chain(until).collect();
        let name = match notes.as_slice() {
            [] => policy.name.clone(),
            notes => format!("{} ({})", policy.name, notes.join(", ")),
        };
        [
            name,
            policy.tier.clone(),
            policy.rules.to_string(),
            number(policy.packets),
            interfaces(&policy.interfaces),
            policy.place.clone(),
        ]
    });
    table(
        &mut out,
        ["POLICY", "TIER", "RULES", "PACKETS", "INTERFACES", "FILE"],
        &[false, false, true, true, false, false],
        rows.collect(),
    );
    let rows = status.failsafe.iter().map(|entry| {
        [entry.name.clone(), entry.direction.clone(), number(entry.packets), interfaces(&entry.interfaces)]
    });
    table(&mut out, ["FAILSAFE", "DIRECTION", "PACKETS", "INTERFACES"], &[false, false, true, false], rows.collect());
    if !status.remarks.is_empty() {
        out.push_str("\nWhat else decides about packets (`nodewall check --host` says what that means):\n");
        for remark in &status.remarks {
            let _ = writeln!(out, "  {}", remark.message);
        }
    }
    let others: Vec<&BaseChainRecord> = status.other_chains.iter().flatten().collect();
    if !others.is_empty() {
        out.push_str("\nBase chains of others:\n");
        chain_rows(&mut out, &others);
        if others.iter().any(|chain| chain.after_ours) {
            out.push_str(AFTER_OURS);
        }
    }
    out
}

fn selftest_line(selftest: &SelfTestRecord) -> String {
    let number = selftest.generation.map(|number| format!("generation {number} ")).unwrap_or_default();
    let words = match selftest.state.as_str() {
        "waiting" => "a change waits for an address of this host or the end of an emergency".to_owned(),
        "before" => "a change waits until it is known what works without it".to_owned(),
        "running" => format!("{number}is tested, round {}", selftest.rounds.saturating_add(1)),
        "passed" => format!("{number}was confirmed by it"),
        "failed" => format!("{number}was given up"),
        _ => format!("{number}was decided about by somebody"),
    };
    if selftest.summary.is_empty() { words } else { format!("{words}; {}", selftest.summary) }
}

fn revocation_line(revocation: &RevocationRecord) -> String {
    let RevocationRecord { started, running, judged, ended, left, milliseconds } = revocation;
    let counts = format!("{judged} judged, {ended} ended");
    match (running, left) {
        (true, left) => {
            format!("{counts}, {left} left so far: the policy in force ends what it denies, since {started}")
        }
        (false, 0) => format!("{counts} by the policy in force, at {started} in {milliseconds} ms"),
        (false, left) => format!("{counts}, {left} left when it stopped, at {started}"),
    }
}

fn drift_line(events: u64, last: &DriftRecord) -> String {
    let who = match (&last.process, last.pid) {
        (Some(name), Some(pid)) => format!(" by {name} (process {pid})"),
        _ => String::new(),
    };
    let what = last.difference.first().map(String::as_str).unwrap_or_default();
    format!("{}, last at {}{who}: {what}", count(usize::try_from(events).unwrap_or(usize::MAX), "change"), last.time)
}

/// Base chains of others as a table.
pub(super) fn chain_rows(out: &mut String, chains: &[&BaseChainRecord]) {
    let rows = chains.iter().map(|chain| {
        [
            chain.hook.clone(),
            chain.priority.to_string(),
            chain.kind.clone(),
            format!("{} {} {}", chain.family, chain.table, chain.chain),
            chain.policy.clone(),
            chain.rules.to_string(),
            if chain.owners.is_empty() { "unknown".to_owned() } else { chain.owners.join(", ") },
            chain.drops.clone(),
            if chain.after_ours { "yes" } else { "no" }.to_owned(),
        ]
    });
    table(
        out,
        ["HOOK", "PRIORITY", "TYPE", "CHAIN", "POLICY", "RULES", "OWNER", "DROPS", "AFTER OURS"],
        &[false, true, false, false, false, true, false, false, false],
        rows.collect(),
    );
}

fn table_line(table: &TableRecord) -> String {
    let TableRecord { chains, rules, sets, elements, .. } = table;
    format!("{chains} chains, {rules} rules, {sets} sets with {elements} elements")
}

/// What is seen of packets and connections, and whether that is all of it. Nothing where nothing has happened.
fn traffic_lines(traffic: &TrafficRecord) -> Vec<(String, bool)> {
    let mut lines = Vec::new();
    if traffic.packets + traffic.connections > 0 {
        let seen = format!("{} packets logged, {} connections", traffic.packets, traffic.connections);
        let store = match traffic.store_bytes {
            0 => String::new(),
            bytes => format!("; {} KiB stored (`nodewall flows`)", bytes / 1024),
        };
        lines.push((format!("{seen}{store}"), true));
    }
    let number = |number: u64, what: &str| (number > 0).then(|| format!("{number} {what}"));
    let lost = [
        number(traffic.packets_lost, "logged packets lost"),
        number(traffic.connections_overruns, "times events of connections lost"),
        number(traffic.records_left_out, "records not stored"),
    ];
    let lost: Vec<String> = lost.into_iter().flatten().collect();
    if !lost.is_empty() {
        lines.push((lost.join(", "), false));
    }
    let errors = [&traffic.packets_error, &traffic.connections_error, &traffic.store_error];
    lines.extend(errors.into_iter().flatten().map(|error| (error.clone(), false)));
    lines
}

/// At most this many findings on the first screen.
const FINDINGS_SHOWN: usize = 5;

fn finding_line(finding: &FindingRecord) -> String {
    let FindingRecord { severity, code, message, file, line, .. } = finding;
    let place = if *line == 0 { file.clone() } else { format!("{file}:{line}") };
    format!("{place}: {severity}[{code}]: {message}")
}

/// At most this many names in a column.
const NAMES_SHOWN: usize = 4;

fn interfaces(interfaces: &[String]) -> String {
    if interfaces.is_empty() { "none here".to_owned() } else { names(interfaces) }
}

/// Names in a column: the first few, and how many more there are.
pub(super) fn names(names: &[String]) -> String {
    match names.len() {
        count if count <= NAMES_SHOWN => names.join(" "),
        count => format!("{} +{}", names.get(..NAMES_SHOWN).unwrap_or_default().join(" "), count - NAMES_SHOWN),
    }
}

// Writing to a String does not fail.
fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "{label:<11}{text}");
}

/// A table with aligned columns, after an empty line; nothing at all without rows.
pub(super) fn table<const N: usize>(out: &mut String, head: [&str; N], right: &[bool; N], rows: Vec<[String; N]>) {
    if rows.is_empty() {
        return;
    }
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    out.push('\n');
    for row in &rows {
        let cells: Vec<String> = (0..N)
            .map(|column| match right[column] {
                true => format!("{:>width$}", row[column], width = widths[column]),
                false => format!("{:<width$}", row[column], width = widths[column]),
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::{
        CgroupRecord, FailsafeRecord, FeatureRecord, InterfaceRecord, PolicyRecord, RemarkRecord, UnitRecord,
    };

    #[test]
    fn units_that_do_not_run_and_policies_that_end_are_shown() {
        let unit = |name: &str, cgroups: Vec<CgroupRecord>| UnitRecord { name: name.into(), cgroups };
        let policy = |name: &str, mode: &str, expires: Option<&str>| PolicyRecord {
            name: name.into(),
            tier: "default".into(),
            mode: mode.into(),
            expires: expires.map(str::to_owned),
            place: "10.toml:1:1".into(),
            ..Default::default()
        };
        let status = Status {
            state: "in-force".to_owned(),
            units: vec![
                unit("a.service", vec![CgroupRecord { level: 2, id: 7 }]),
                unit("b.service", Vec::new()),
                unit("c.slice", Vec::new()),
            ],
            policies: vec![
                policy("guests", "enforce", Some("2027-01-31T18:00:00Z")),
                policy("trial", "audit", Some("2027-02-01T00:00:00Z")),
            ],
            ..Status::default()
        };
        let expected = "\
state      in force
kernel     could not be looked at
units      2 of 3 do not run: b.service c.slice

POLICY                               TIER     RULES  PACKETS  INTERFACES  FILE
guests (until 2027-01-31T18:00:00Z)        default      0        -  none here   10.toml:1:1
trial (audit, until 2027-02-01T00:00:00Z)  default      0        -  none here   10.toml:1:1
";
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&text(&status, false)), words(expected));
    }

    #[test]
    fn the_first_screen_is_aligned_and_quiet() {
        let status = Status {
            version: VERSION,
            running: true,
            state: "in-force".to_owned(),
            mode: Some("enforce".to_owned()),
            generation: 3,
            since: Some("2026-11-23T21:09:54Z".to_owned()),
            hash: Some("0123456789abcdef".to_owned()),
            in_sync: Some(true),
            coverage: [("enforced", 1), ("partial", 8), ("bypassed", 0), ("out-of-netns", 2), ("kernel-too-old", 0)]
                .map(|(state, count)| (state.to_owned(), count))
                .into(),
            table: Some(TableRecord { exists: true, chains: 9, rules: 41, sets: 4, elements: 12 }),
            interfaces: vec![
                InterfaceRecord {
                    name: "eth0".into(),
                    role: "mgmt".into(),
                    why: "default route".into(),
                    ..Default::default()
                },
                InterfaceRecord {
                    name: "enp193s0f0np0".into(),
                    role: "rail".into(),
                    why: "[[interface]] rails".into(),
                    ..Default::default()
                },
            ],
            policies: vec![PolicyRecord {
                name: "kubelet".into(),
                tier: "platform".into(),
                mode: "enforce".into(),
                interfaces: ["a", "b", "c", "d", "e", "f"].map(str::to_owned).into(),
                rules: 2,
                packets: Some(1234),
                place: "20-kubelet.toml:5:1".into(),
                ..Default::default()
            }],
            failsafe: vec![FailsafeRecord {
                name: "ssh".into(),
                direction: "ingress".into(),
                interfaces: vec!["eth0".into()],
                packets: Some(7),
            }],
            ..Status::default()
        };
        let expected = "\
state      in force
generation 3 since 2026-11-23T21:09:54Z, 0123456789ab
kernel     in sync: 9 chains, 41 rules, 4 sets with 12 elements
coverage   enforced 1, partial 8, bypassed 0, out-of-netns 2 (`nodewall interfaces` says why)

INTERFACE      ROLE  WHY
eth0           mgmt  default route
enp193s0f0np0  rail  [[interface]] rails

POLICY   TIER      RULES  PACKETS  INTERFACES  FILE
kubelet  platform      2     1234  a b c d +2  20-kubelet.toml:5:1

FAILSAFE  DIRECTION  PACKETS  INTERFACES
ssh       ingress          7  eth0
";
        assert_eq!(text(&status, false), expected);
        let degraded = Status {
            state: "degraded".into(),
            reason: Some("10-x.toml:1:1: no".into()),
            in_sync: Some(false),
            drift: vec!["chain input is missing or was changed".into()],
            ..Status::default()
        };
        let expected = "\
state      degraded
           10-x.toml:1:1: no
kernel     DRIFT: it has something else than the policy in force
           chain input is missing or was changed
";
        assert_eq!(text(&degraded, false), expected);
        let drifted = Status {
            drift_events: 3,
            drift_last: Some(DriftRecord {
                time: "2026-11-23T21:09:54Z".into(),
                process: Some("nft".into()),
                pid: Some(7),
                difference: vec!["table inet nodewall is gone".into()],
                repair_ms: Some(3.2),
            }),
            other_chains: Some(vec![
                BaseChainRecord {
                    hook: "input".into(),
                    priority: -300,
                    kind: "filter".into(),
                    family: "ip".into(),
                    table: "t".into(),
                    chain: "early".into(),
                    policy: "accept".into(),
                    drops: "no".into(),
                    ..Default::default()
                },
                BaseChainRecord {
                    hook: "input".into(),
                    priority: 10,
                    kind: "filter".into(),
                    family: "inet".into(),
                    table: "firewalld".into(),
                    chain: "filter_INPUT".into(),
                    policy: "accept".into(),
                    rules: 4,
                    owners: vec!["firewalld".into()],
                    after_ours: true,
                    drops: "rules".into(),
                },
            ]),
            remarks: vec![RemarkRecord {
                code: "xdp".into(),
                message: "interface a has an XDP program".into(),
                help: "look".into(),
            }],
            kernel_lacks: Some(vec![FeatureRecord {
                feature: "fib".into(),
                state: "missing".into(),
                needed: false,
                what: "route lookups (fib)".into(),
                help: "without it checks are refused".into(),
            }]),
            revocation: Some(RevocationRecord {
                started: "2026-11-23T21:09:50Z".into(),
                running: true,
                judged: 70_000,
                ended: 200,
                left: 300,
                milliseconds: 2500,
            }),
            table: Some(TableRecord::default()),
            state: "in-force".into(),
            ..Status::default()
        };
        let expected = "\
state      in force
kernel     0 chains, 0 rules, 0 sets with 0 elements
repairs    3 changes, last at 2026-11-23T21:09:54Z by nft (process 7): table inet nodewall is gone
flows      70000 judged, 200 ended, 300 left so far: the policy in force ends what it denies, since 2026-11-23T21:09:50Z
lacks      route lookups (fib): without it checks are refused

What else decides about packets (`nodewall check --host` says what that means):
  interface a has an XDP program

Base chains of others:

HOOK   PRIORITY  TYPE    CHAIN                        POLICY  RULES  OWNER      DROPS  AFTER OURS
input      -300  filter  ip t early                   accept      0  unknown    no     no
input        10  filter  inet firewalld filter_INPUT  accept      4  firewalld  rules  yes

AFTER OURS: what such a chain drops is dropped, also where nodewall accepts it.
";
        assert_eq!(text(&drifted, false), expected);
        assert!(text(&degraded, true).contains("\x1b[31mdegraded\x1b[0m"));
    }
}
