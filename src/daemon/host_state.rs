//! What a node says of itself in its cluster: from what the daemon knows to the status of a HostState, without a clock.
//!
//! Only what is an event on the node changes it. What other numbers `nodewall status` has at every moment are not in it, nor what pods
//! do to the links of this host: ten thousand nodes write this to one API server.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::status::{ClusterRecord, InterfaceRecord, Status};
use crate::net::facts::{Facts, Link};
use crate::net::interface::Role;
use crate::policy::meaning::Meaning;
use crate::source::object::status::{Condition, DriftCount, HostStateStatus, InterfaceState};

/// How many bytes the status has at most as JSON. The object has 8 KiB; the rest is for its metadata, and for what the server notes
/// about who owns which field.
pub const MOST: usize = 7168;
/// How many of these are for the hashes of policies: no more and no less on any node, so that nodes with the same policies have the
/// same ones.
const POLICIES: usize = 2048;
/// How many policies, interfaces, and addresses of an interface there are at most, as the definition has it.
const MOST_POLICIES: usize = 64;
const MOST_INTERFACES: usize = 64;
const MOST_ADDRESSES: usize = 32;
/// How many bytes a message and the last error have at most, as JSON.
const MESSAGE: usize = 240;
const ERROR: usize = 320;

/// A policy of ours is in force.
pub const READY: &str = "Ready";
/// The kernel has it.
pub const IN_SYNC: &str = "InSync";
/// Something else is in force than the newest documents say, or something that nodewall counts on is away.
pub const DEGRADED: &str = "Degraded";
/// What is in force goes unless it is confirmed.
pub const UNCONFIRMED: &str = "Unconfirmed";

/// What is known about this node.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What `nodewall status` shows without a look at the kernel; whether it is in sync is what the daemon knows.
    pub status: &'a Status,
    /// The links with their addresses.
    pub facts: &'a Facts,
    /// What the generation in force means; `None` when that is not known.
    pub meaning: Option<&'a Meaning>,
    /// What was said before.
    pub before: Option<&'a HostStateStatus>,
    /// RFC 3339: for what changes now.
    pub now: &'a str,
}

/// What there is to say. The same is said again as long as nothing happened.
pub fn compose(known: Known<'_>) -> HostStateStatus {
    let Known { status, facts, meaning, before, now } = known;
    let generation = i64::try_from(status.generation).unwrap_or(i64::MAX);
    let troubles = troubles(status);
    let told = before.and_then(|before| before.error.clone());
    let shown = shown(status, facts);
    // Coverage and drift are always there: before Kubernetes 1.22, a table of which somebody no longer says anything becomes null, which
    // its schema refuses.
    let mut said = HostStateStatus {
        version: status.daemon.clone(),
        mode: status.mode.clone(),
        generation: Some(generation),
        since: status.since.clone(),
        in_sync: status.in_sync,
        conditions: vec![ready(status), in_sync(status), degraded(&troubles), unconfirmed(status)],
        coverage: coverage(status, &shown),
        drift: Some(DriftCount {
            count: i64::try_from(status.drift_events).unwrap_or(i64::MAX),
            last: status.drift_last.as_ref().map(|drift| drift.time.clone()),
        }),
        error: troubles.first().map(|(_, message)| cut(message, ERROR)).or(told),
        ..HostStateStatus::default()
    };
    for condition in &mut said.conditions {
        now.clone_into(&mut condition.last_transition_time);
    }
    said.keep_times(before.map(|before| &before.conditions[..]).unwrap_or_default());
    match (meaning, before) {
        (Some(meaning), _) => mean(meaning, &mut said),
        // The same generation still means the same.
        (None, Some(before)) if before.generation == said.generation && status.generation != 0 => {
            let HostStateStatus { hash, policies, policies_omitted, defaults, failsafe, .. } = before.clone();
            said = HostStateStatus { hash, policies, policies_omitted, defaults, failsafe, ..said };
        }
        _ => {}
    }
    // Whether policies need their room or not, interfaces do not get it: theirs is not to depend on what others write.
    let without = HostStateStatus { policies: BTreeMap::new(), ..said.clone() };
    let used = size(&without) + POLICIES + r#","policies":{},"interfaces":[],"omitted":1000000"#.len();
    fill(&mut said, shown, MOST.saturating_sub(used));
    said
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(message, MESSAGE),
        last_transition_time: String::new(),
        observed_generation: None,
    }
}

fn ready(status: &Status) -> Condition {
    let why = status.reason.as_deref().unwrap_or_default();
    let audit = if status.mode.as_deref() == Some("audit") { "; audit only: nothing is denied" } else { "" };
    match (status.state.as_str(), status.generation) {
        ("panic", _) => condition(READY, "False", "Panic", "only essentials and failsafe are let through"),
        ("break-glass", _) => {
            let until = status.break_glass_until.as_deref().unwrap_or("it is ended");
            condition(READY, "False", "BreakGlass", &format!("everything is let through until {until}"))
        }
        ("waiting" | "applying", 0) => condition(READY, "False", "Starting", "nothing of ours is in force yet"),
        (_, 0) => condition(READY, "False", "NoPolicy", why),
        (_, generation) => {
            condition(READY, "True", "PolicyInForce", &format!("generation {generation} is in force{audit}"))
        }
    }
}

fn in_sync(status: &Status) -> Condition {
    match status.in_sync {
        Some(true) => condition(IN_SYNC, "True", "InSync", "the kernel has what is in force"),
        Some(false) => {
            let reason = if status.drift_storm { "Drifting" } else { "ApplyFailed" };
            condition(IN_SYNC, "False", reason, &status.drift.join("; "))
        }
        None => condition(IN_SYNC, "Unknown", "NotKnown", "what should be in force is not known yet"),
    }
}

fn degraded(troubles: &[(&'static str, String)]) -> Condition {
    match troubles.first() {
        None => condition(DEGRADED, "False", "AsWanted", "nothing is amiss"),
        Some((reason, _)) => {
            let messages: Vec<&str> = troubles.iter().map(|(_, message)| message.as_str()).collect();
            condition(DEGRADED, "True", reason, &messages.join("; "))
        }
    }
}

fn unconfirmed(status: &Status) -> Condition {
    match &status.confirm_until {
        None => condition(UNCONFIRMED, "False", "NoTrial", "nothing waits for a confirmation"),
        Some(until) => {
            let by_test = status.confirm_by.as_deref() == Some("self-test");
            let unless = if by_test { "its self-test passes" } else { "somebody confirms it" };
            condition(UNCONFIRMED, "True", "Trial", &format!("what is in force goes at {until} unless {unless}"))
        }
    }
}

/// What is amiss, the worst first: a word for programs, and for people.
fn troubles(status: &Status) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let why = status.reason.clone().unwrap_or_default();
    let refused = status.findings.iter().any(|finding| finding.severity == "error");
    let (is_degraded, is_out_of_sync) = (status.state == "degraded", status.in_sync == Some(false));
    if is_degraded && refused {
        found.push(("PolicyRefused", why));
    } else if is_degraded && !is_out_of_sync {
        found.push(("PolicyNotInForce", why));
    }
    if is_out_of_sync {
        found.push((if status.drift_storm { "Drifting" } else { "ApplyFailed" }, status.drift.join("; ")));
    }
    for ClusterRecord { name, invalid, .. } in &status.clusters {
        if !invalid.is_empty() {
            let objects = invalid.join(", ");
            found
                .push(("ObjectRefused", format!("cluster \"{name}\": the newest version cannot be used of {objects}")));
        }
    }
    // Not why: that may be another word at each attempt.
    for ClusterRecord { name, state, since, .. } in &status.clusters {
        let (reason, what) = match state.as_str() {
            "away" => ("ClusterAway", "does not answer"),
            "doubted" => ("ClusterDoubted", "says that there is nothing any more, which is not believed"),
            "partial" => ("ClusterPartial", "does not answer for all kinds of objects"),
            _ => continue,
        };
        found.push((reason, format!("cluster \"{name}\" {what}, since {since}; what it said before stays in force")));
    }
    if let Some(error) = &status.store_error {
        found.push(("NotKept", format!("not on disk: {error}")));
    }
    found
}

/// The interfaces that are shown, the most important first.
fn shown<'a>(status: &'a Status, facts: &'a Facts) -> Vec<(&'a InterfaceRecord, Option<&'a Link>)> {
    let role = |record: &InterfaceRecord| Role::by_name(&record.role).unwrap_or(Role::Unknown);
    let counts = |record: &&InterfaceRecord| !matches!(role(record), Role::Loopback | Role::Pod);
    let with_link = |record: &'a InterfaceRecord| (record, facts.links.get(&record.index));
    let mut shown: Vec<_> = status.interfaces.iter().filter(counts).map(with_link).collect();
    let rank = |role: Role| match role {
        Role::Mgmt => 0,
        Role::Rail => 1,
        Role::Fabric => 2,
        Role::Storage => 3,
        Role::Ipoib => 4,
        Role::Dpu => 5,
        Role::Bmc => 6,
        Role::Unknown => 7,
        Role::Overlay => 8,
        Role::Representor | Role::Pod | Role::Loopback => 9,
    };
    shown.sort_by_key(|(record, link)| (rank(role(record)), addresses(*link).is_empty(), record.name.clone()));
    shown
}

/// The addresses of a link by which others know this node.
fn addresses(link: Option<&Link>) -> Vec<String> {
    // kube-proxy in mode ipvs gives this one the addresses of all Services.
    let Some(link) = link.filter(|link| link.name.as_str() != "kube-ipvs0") else { return Vec::new() };
    let is_local = |net: &IpNet| match net.addr() {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    };
    let known = link.addresses.iter().filter(|net| !is_local(net));
    known.take(MOST_ADDRESSES).map(ToString::to_string).collect()
}

fn coverage(status: &Status, shown: &[(&InterfaceRecord, Option<&Link>)]) -> BTreeMap<String, i64> {
    let mut counts: BTreeMap<String, i64> =
        ["enforced", "partial", "bypassed"].map(|state| (state.to_owned(), 0)).into();
    let here = shown.iter().filter_map(|(record, _)| record.labels.get("coverage"));
    for state in here.chain(status.elsewhere.iter().map(|record| &record.state)) {
        *counts.entry(state.clone()).or_default() += 1;
    }
    counts
}

/// Adds what the policy means, as far as there is room.
fn mean(meaning: &Meaning, said: &mut HostStateStatus) {
    let Meaning { whole, policies, defaults, failsafe } = meaning;
    said.hash = Some(whole.clone());
    said.defaults = Some(defaults.clone());
    said.failsafe = Some(failsafe.clone());
    let mut left = POLICIES;
    let fits = |(name, hash): &&(String, String)| {
        // With colon and comma.
        let room = left.checked_sub(size(name) + size(hash) + 2);
        left = room.unwrap_or(left);
        room.is_some()
    };
    said.policies = policies.iter().take(MOST_POLICIES).take_while(fits).cloned().collect();
    let omitted = policies.len() - said.policies.len();
    said.policies_omitted = (omitted > 0).then(|| i64::try_from(omitted).unwrap_or(i64::MAX));
}

/// Adds interfaces as far as there is room.
fn fill(said: &mut HostStateStatus, shown: Vec<(&InterfaceRecord, Option<&Link>)>, mut left: usize) {
    let mut omitted = 0;
    for (record, link) in shown {
        let interface = InterfaceState {
            name: record.name.clone(),
            role: record.role.clone(),
            rail: record.labels.get("rail").cloned(),
            coverage: record.labels.get("coverage").cloned(),
            addresses: addresses(link),
        };
        let room = left.checked_sub(size(&interface) + 1).filter(|_| said.interfaces.len() < MOST_INTERFACES);
        match room {
            Some(room) => {
                left = room;
                said.interfaces.push(interface);
            }
            None => omitted += 1,
        }
    }
    said.omitted = (omitted > 0).then_some(omitted);
}

/// How many bytes something has as JSON.
fn size(what: &impl Serialize) -> usize {
    // What cannot be written has no room at all; none of these is such.
    serde_json::to_string(what).map_or(MOST, |text| text.len())
}

/// As much of a text as has room in so many bytes of JSON.
fn cut(text: &str, most: usize) -> String {
    let plain: String = text.chars().map(|next| if next.is_control() { ' ' } else { next }).collect();
    if size(&plain) <= most {
        return plain;
    }
    let mut kept = String::new();
    // Quotes and the dots.
    let mut left = most.saturating_sub(5);
    for next in plain.chars() {
        let bytes = if matches!(next, '"' | '\\') { 2 } else { next.len_utf8() };
        if bytes > left {
            break;
        }
        left -= bytes;
        kept.push(next);
    }
    kept + "..."
}
