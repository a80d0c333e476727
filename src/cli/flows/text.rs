//! Flows for people: a table, sums, and what is not in them.

use std::fmt::Write as _;

use super::Found;
use crate::cli::status::table;
use crate::net::interface::Direction;
use crate::text::time::rfc3339;
use crate::traffic::query::{Filter, Flows, Sum, peer_group, peer_words, service_words};
use crate::traffic::readiness::duration;
use crate::traffic::seen::Seen;
use crate::traffic::{Actor, Record};

/// A pause that is shorter is a restart.
const TOLERANCE: u64 = 60_000_000;
/// So many peers and services are summed up.
const MOST_SUMS: usize = 5;

pub(super) fn of(filter: &Filter, found: &Found, limit: usize) -> String {
    let mut out = String::new();
    let flows = &found.flows;
    if flows.is_empty() {
        // Writing to a String does not fail.
        let _ = writeln!(out, "no flows from {} until {}", at(filter.since), at(filter.until));
    } else {
        let sorted = flows.sorted();
        let rows: Vec<_> = sorted.iter().take(limit).map(|record| row(record)).collect();
        let head =
            ["VERDICT", "DIR", "INTERFACE", "PEER", "SERVICE", "RULE", "CONNS", "PACKETS", "BYTES", "LAST", "PROCESS"];
        let mut right = [false; 11];
        right[6..9].fill(true);
        let mut lines = String::new();
        table(&mut lines, head, &right, rows);
        // The table begins with an empty line, for those who have something above it.
        out.push_str(lines.trim_start_matches('\n'));
        if sorted.len() > limit {
            let _ = writeln!(out, "... and {} more; --limit 0 shows all", sorted.len() - limit);
        }
        sums(&mut out, flows);
    }
    said(&mut out, filter, found);
    out
}

fn row(record: &Record) -> [String; 11] {
    let key = &record.key;
    [
        key.verdict.name().to_owned(),
        if key.direction == Direction::Ingress { "in" } else { "out" }.to_owned(),
        key.interface.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        peer_words(record),
        service_words(key.protocol, key.service),
        rule(record),
        record.connections.to_string(),
        record.packets.map_or_else(|| "-".to_owned(), |packets| packets.to_string()),
        record.bytes.map_or_else(|| "-".to_owned(), bytes),
        at(record.last),
        processes(record),
    ]
}

/// "kubelet#2 (20-kubelet.toml:14)".
pub(in crate::cli) fn rule(record: &Record) -> String {
    match &record.place {
        Some(place) => format!("{} ({place})", record.key.decider),
        None => record.key.decider.to_string(),
    }
}

/// Processes with the unit or pod that they belong to; at most two.
pub(in crate::cli) fn processes(record: &Record) -> String {
    let word = |actor: &Actor| {
        let process = if actor.process.is_empty() { "?" } else { &actor.process };
        match actor.pod.as_ref().or(actor.unit.as_ref()) {
            Some(home) => format!("{process} ({home})"),
            None => process.to_owned(),
        }
    };
    let mut words: Vec<String> = record.actors.iter().take(2).map(word).collect();
    if record.actors.len() > 2 {
        words.push(format!("and {} more", record.actors.len() - 2));
    }
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn sums(out: &mut String, flows: &Flows) {
    let total = flows.total();
    let by = flows.verdicts.iter().map(|(verdict, sum)| format!("{} {}", sum.connections, verdict.name()));
    let flow = if flows.len() == 1 { "flow" } else { "flows" };
    let _ = writeln!(
        out,
        "\n{} {flow}, {}: {}; {} packets, {}",
        flows.len(),
        connections(&total),
        by.collect::<Vec<_>>().join(", "),
        total.packets,
        bytes(total.bytes)
    );
    let peers = flows.by(peer_group).into_iter().map(|((names, address), sum)| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let name = if names.is_empty() {
            address.map_or_else(|| "many".to_owned(), |address| address.to_string())
        } else {
            names.join(" ")
        };
        (name, sum)
    });
    most(out, "peers", peers.collect());
    let services = flows.by(|record| service_words(record.key.protocol, record.key.service));
    most(out, "services", services);
}

fn most(out: &mut String, what: &str, sums: Vec<(String, Sum)>) {
    let words: Vec<String> =
        sums.iter().take(MOST_SUMS).map(|(name, sum)| format!("{name} {}", sum.connections)).collect();
    let more = sums.len().saturating_sub(MOST_SUMS);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let _ = writeln!(out, "{what} by connections: {}{more}", words.join(", "));
}

/// What is not in the numbers.
fn said(out: &mut String, filter: &Filter, found: &Found) {
    let total = found.flows.total();
    if total.uncounted > 0 {
        let _ = writeln!(
            out,
            "packets and bytes of {} are not counted: net.netfilter.nf_conntrack_acct was off, or they have not ended",
            connections(&Sum { connections: total.uncounted, ..Sum::default() })
        );
    }
    if found.flows.others.connections > 0 {
        let _ = writeln!(
            out,
            "{} of flows that were too many to tell apart are in the sums by verdict only",
            connections(&found.flows.others)
        );
    }
    watched(out, filter.since, filter.until, &found.seen);
    if found.damaged > 0 {
        let _ = writeln!(out, "{} records are damaged and were passed over", found.damaged);
    }
}

/// Whether somebody watched, and what was lost.
pub(in crate::cli) fn watched(out: &mut String, since: u64, until: u64, seen: &Seen) {
    let Some(begun) = seen.since() else {
        let _ = writeln!(out, "nobody recorded flows in that time");
        return;
    };
    if begun > since.saturating_add(TOLERANCE) {
        let _ = writeln!(out, "flows are known since {} only", at(begun));
    }
    let gaps = seen.gaps(begun.max(since), until, TOLERANCE);
    if let Some(longest) = gaps.iter().max_by_key(|gap| gap.until - gap.from) {
        let pauses = if gaps.len() == 1 { "1 pause".to_owned() } else { format!("{} pauses", gaps.len()) };
        let length = duration(longest.until - longest.from);
        let _ =
            writeln!(out, "{pauses} in which nobody recorded flows, the longest of {length} from {}", at(longest.from));
    }
    if seen.lost_something() {
        let _ = writeln!(
            out,
            "lost: {} records left out, {} logged packets, events of connections {} times",
            seen.left_out, seen.lost_packets, seen.lost_connections
        );
    }
}

pub(in crate::cli) fn connections(sum: &Sum) -> String {
    match sum.connections {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(count) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

pub(in crate::cli) fn at(micros: u64) -> String {
    rfc3339(micros / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit() {
        for (count, words) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
        {
            assert_eq!(bytes(count), words);
        }
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB".replace("16777216.0", "16777215.9"));
    }
}
