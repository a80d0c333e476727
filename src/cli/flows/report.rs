//! What `flows --json` prints; version 1. Keys may be added within a version; none goes or changes its meaning.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Found;
use crate::daemon::traffic::record::ActorRecord;
use crate::text::time::rfc3339_micros;
use crate::traffic::query::{Filter, Sum, service_words};
use crate::traffic::seen::Seen;
use crate::traffic::{Record, Service};

/// The whole.
#[derive(Serialize)]
pub(super) struct Report {
    version: u32,
    since: String,
    until: String,
    /// What was seen of that time.
    seen: SeenRecord,
    /// Rows of the store that could not be read and were passed over.
    damaged: u64,
    total: SumRecord,
    verdicts: BTreeMap<&'static str, SumRecord>,
    /// Flows that are not listed, by --limit.
    not_listed: usize,
    /// What flows come to that were too many to tell apart.
    others: SumRecord,
    flows: Vec<FlowRecord>,
}

/// When somebody watched, and what was lost.
#[derive(Serialize)]
pub(in crate::cli) struct SeenRecord {
    spans: Vec<SpanRecord>,
    left_out_records: u64,
    lost_packets: u64,
    lost_connection_events: u64,
}

#[derive(Serialize)]
struct SpanRecord {
    from: String,
    until: String,
}

/// Numbers that were added up.
#[derive(Serialize)]
pub(in crate::cli) struct SumRecord {
    connections: u64,
    packets: u64,
    bytes: u64,
    /// Connections whose packets and bytes nobody counted.
    uncounted_connections: u64,
    first: Option<String>,
    last: Option<String>,
}

/// What went on between a peer and a service.
#[derive(Serialize)]
pub(in crate::cli) struct FlowRecord {
    verdict: &'static str,
    direction: &'static str,
    interface: Option<String>,
    role: Option<&'static str>,
    /// The other side's address; null: more than were told apart.
    peer: Option<String>,
    names: Vec<String>,
    local: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    /// "tcp/22", "icmp/echo-request", "esp", "udp/many".
    service: String,
    rule: String,
    policy: Option<String>,
    tier: Option<String>,
    place: Option<String>,
    processes: Vec<ActorRecord>,
    connections: u64,
    packets: Option<u64>,
    bytes: Option<u64>,
    first: String,
    last: String,
}

impl Report {
    pub(super) fn of(filter: &Filter, found: &Found, limit: Option<usize>) -> Self {
        let sorted = found.flows.sorted();
        let listed = limit.unwrap_or(usize::MAX).min(sorted.len());
        Self {
            version: 1,
            since: rfc3339_micros(filter.since),
            until: rfc3339_micros(filter.until),
            seen: SeenRecord::of(&found.seen),
            damaged: found.damaged,
            total: SumRecord::of(&found.flows.total()),
            verdicts: found.flows.verdicts.iter().map(|(verdict, sum)| (verdict.name(), SumRecord::of(sum))).collect(),
            not_listed: sorted.len() - listed,
            others: SumRecord::of(&found.flows.others),
            flows: sorted.into_iter().take(listed).map(FlowRecord::of).collect(),
        }
    }
}

impl SeenRecord {
    pub(in crate::cli) fn of(seen: &Seen) -> Self {
        let span = |span: &crate::traffic::seen::Span| SpanRecord {
            from: rfc3339_micros(span.from),
            until: rfc3339_micros(span.until),
        };
        Self {
            spans: seen.spans.iter().map(span).collect(),
            left_out_records: seen.left_out,
            lost_packets: seen.lost_packets,
            lost_connection_events: seen.lost_connections,
        }
    }
}

impl SumRecord {
    pub(in crate::cli) fn of(sum: &Sum) -> Self {
        Self {
            connections: sum.connections,
            packets: sum.packets,
            bytes: sum.bytes,
            uncounted_connections: sum.uncounted,
            first: sum.first.map(rfc3339_micros),
            last: sum.last.map(rfc3339_micros),
        }
    }
}

impl FlowRecord {
    pub(in crate::cli) fn of(record: &Record) -> Self {
        let key = &record.key;
        let (port, icmp) = match key.service {
            Service::Port(port) => (Some(port), None),
            Service::Icmp(kind, code) => (None, Some((kind, code))),
            Service::Whole | Service::Many => (None, None),
        };
        Self {
            verdict: key.verdict.name(),
            direction: key.direction.name(),
            interface: key.interface.as_ref().map(ToString::to_string),
            role: key.role.map(|role| role.name()),
            peer: key.peer.map(|peer| peer.to_string()),
            names: record.names.iter().map(ToString::to_string).collect(),
            local: record.local.map(|local| local.to_string()),
            protocol: key.protocol.map(|protocol| protocol.to_string()),
            port,
            icmp_type: icmp.map(|(kind, _)| kind),
            icmp_code: icmp.map(|(_, code)| code),
            service: service_words(key.protocol, key.service),
            rule: key.decider.to_string(),
            policy: key.decider.policy().map(str::to_owned),
            tier: record.tier.clone(),
            place: record.place.clone(),
            processes: record.actors.iter().map(ActorRecord::from).collect(),
            connections: record.connections,
            packets: record.packets,
            bytes: record.bytes,
            first: rfc3339_micros(record.first),
            last: rfc3339_micros(record.last),
        }
    }
}
