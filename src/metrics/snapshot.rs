//! The numbers at one moment; `None` and empty where something is not known.

use std::collections::BTreeMap;

use super::bounded::Bounded;
use super::histogram::Histogram;
use super::verdicts::Verdicts;

/// Everything that is shown.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// The version of the daemon.
    pub version: &'static str,
    /// The policy.
    pub policy: Policy,
    /// What rules counted.
    pub verdicts: Verdicts,
    /// Changes and repairs.
    pub work: Work,
    /// The clusters that documents come from.
    pub clusters: Vec<Cluster>,
    /// Findings of the newest documents, by severity.
    pub findings: BTreeMap<&'static str, u64>,
    /// How far rules reach: of how many interfaces and devices, by state.
    pub coverage: BTreeMap<&'static str, u64>,
    /// What can be reached of this host; `None` while nobody looked or could look.
    pub exposed: Option<Exposed>,
    /// The packet log and the flow records.
    pub log: Option<Log>,
    /// The daemon itself.
    pub process: Process,
    /// Serving all this.
    pub serving: Serving,
}

/// What is in force, and how that is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Policy {
    /// The state in one word, and every word that there is.
    pub state: &'static str,
    /// Every word that `state` can be.
    pub states: Vec<&'static str>,
    /// "enforce" or "audit".
    pub mode: Option<&'static str>,
    /// The generation in force; 0: none of the documents', which is the lockdown or an emergency.
    pub generation: u64,
    /// What a boot loads.
    pub confirmed: Option<u64>,
    /// Since when it is in force, in seconds since 1970.
    pub since: Option<f64>,
    /// How long the generation in force has to be confirmed, in seconds.
    pub unconfirmed_left: Option<f64>,
    /// Whether the disk does not have what a boot should load.
    pub store_error: bool,
    /// How many things on disk were found damaged at the start.
    pub store_damages: u64,
    /// Whether the table in the kernel could be read.
    pub kernel_read: bool,
    /// What the kernel lacks: feature, and whether nothing works without it. `None` while that is not known.
    pub kernel_lacks: Option<Vec<(String, bool)>>,
}

/// Changes and repairs of the kernel's table.
#[derive(Clone, PartialEq, Debug)]
pub struct Work {
    /// How long applies took.
    pub applies: Histogram,
    /// What they came to: "changed", "unchanged", "failed".
    pub results: BTreeMap<&'static str, u64>,
    /// From the notification of a change by somebody else to its repair.
    pub repairs: Histogram,
    /// How many such changes there were.
    pub drifts: u64,
    /// Whether somebody keeps at it.
    pub storm: bool,
    /// How late the loop comes to what is due.
    pub lag: Histogram,
}

impl Default for Work {
    fn default() -> Self {
        let new = || Histogram::new(super::histogram::WORK);
        Self { applies: new(), results: BTreeMap::new(), repairs: new(), drifts: 0, storm: false, lag: new() }
    }
}

/// A cluster.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// "connecting", "in-sync", "partial", "away" or "doubted".
    pub state: String,
    /// For how many seconds.
    pub state_age: Option<f64>,
    /// How many of its objects count here.
    pub objects: u64,
    /// How many cannot be used.
    pub invalid: u64,
    /// How many nodes it has.
    pub nodes: Option<u64>,
    /// Until when this node's certificate holds, in seconds since 1970.
    pub certificate_until: Option<f64>,
    /// Whether the last write of this node's HostState went well.
    pub report_written: Option<bool>,
    /// How many seconds ago that was.
    pub report_age: Option<f64>,
}

/// The states that a cluster can be in.
pub const CLUSTER_STATES: [&str; 5] = ["connecting", "in-sync", "partial", "away", "doubted"];

/// What can be reached.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Exposed {
    /// How many sockets and published ports, by who reaches them: "anyone", "some", "nobody", "loopback".
    pub sockets: BTreeMap<String, u64>,
    /// How many findings, by code and severity.
    pub findings: BTreeMap<(String, String), u64>,
    /// How many seconds ago it was looked.
    pub age: f64,
    /// How long that took, in seconds.
    pub took: f64,
}

/// The most series of logged events.
pub const MOST_LOG_SERIES: usize = 2_000;

/// What a logged event is counted by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LogSeries {
    /// The interface; "*" where it is not known.
    pub interface: String,
    /// "ingress" or "egress".
    pub direction: &'static str,
    /// The policy, as in verdicts; "unknown" where it is not known.
    pub policy: String,
    /// "allowed", "denied", "rejected", "would-deny", "would-reject" or "logged".
    pub verdict: &'static str,
}

/// The packet log and the flow records since the daemon's start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// Logged packets by interface.
    pub events: Bounded<LogSeries, 1>,
    /// What was lost.
    pub losses: Losses,
}

impl Default for Log {
    fn default() -> Self {
        Self { events: Bounded::new(MOST_LOG_SERIES), losses: Losses::default() }
    }
}

/// What the packet log, connection tracking, the journal and the store did without since the daemon's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Losses {
    /// Logged packets that the daemon did not get or did not look at.
    pub packets: u64,
    /// How often the kernel had no room for events of connection tracking.
    pub connection_overruns: u64,
    /// Lines that the journal was spared.
    pub journal_suppressed: u64,
    /// Records that the store did not take.
    pub store_left_out: u64,
    /// Events that somebody who watches was too slow for.
    pub watchers_missed: u64,
}

/// The process.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Process {
    /// Resident memory in bytes.
    pub resident: Option<u64>,
    /// User and system time in seconds.
    pub cpu: Option<f64>,
    /// How many threads.
    pub threads: Option<u64>,
    /// How many open files.
    pub files: Option<u64>,
    /// When it started, in seconds since 1970.
    pub started: Option<f64>,
}

/// The way here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Serving {
    /// Requests by outcome: "served", "unauthorised", "not-found", "bad-method", "unavailable".
    pub requests: BTreeMap<&'static str, u64>,
    /// Connections that were not let in: "busy", "handshake".
    pub refused: BTreeMap<&'static str, u64>,
}
