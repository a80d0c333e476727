//! Events as the control socket sends them and `monitor --json` prints them; version 1.

use serde::{Deserialize, Serialize};

use crate::text::time;
use crate::traffic::{Actor, Event};

/// The version of these records. Keys may be added within a version; none goes or changes its meaning.
pub const VERSION: u32 = 1;

/// One line that whoever watches gets.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    /// [`VERSION`].
    pub version: u32,
    /// Something that happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<EventRecord>,
    /// How many events this watcher missed before the next one, because it reads too slowly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// What was lost on the way to the daemon since its start; sent when it grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostRecord>,
}

/// What was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LostRecord {
    /// Logged packets that the daemon did not get or did not look at.
    pub packets: u64,
    /// How often the kernel had no room for events of connection tracking: each time some were lost, nobody knows how many.
    pub connections: u64,
}

/// One packet of the packet log, or the beginning of a connection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EventRecord {
    /// When: RFC 3339, UTC, with microseconds.
    pub time: String,
    /// "packet" or "connection".
    pub kind: String,
    /// "allowed", "denied", "rejected", "would-deny", "would-reject" or "logged".
    pub verdict: String,
    /// "ingress" or "egress".
    pub direction: String,
    /// The interface.
    pub interface: Option<String>,
    /// Its role.
    pub role: Option<String>,
    /// The interface by which a forwarded packet leaves.
    pub out: Option<String>,
    /// Source address.
    pub source: String,
    /// Destination address.
    pub destination: String,
    /// "tcp", "udp", "icmp", ..., or a number.
    pub protocol: Option<String>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
    /// ICMP type.
    pub icmp_type: Option<u8>,
    /// ICMP code.
    pub icmp_code: Option<u8>,
    /// Length in bytes, of a packet.
    pub length: Option<u32>,
    /// The other side's address.
    pub peer: String,
    /// What it is called: "set:ops", "node:gpu-17".
    pub names: Vec<String>,
    /// What decided: "kubelet#2", "tier node", "default", "essential ...", "no policy" or "unknown".
    pub rule: String,
    /// The policy, guard or failsafe entry, if one decided.
    pub policy: Option<String>,
    /// Its tier.
    pub tier: Option<String>,
    /// Where what decided is written: "FILE:LINE".
    pub place: Option<String>,
    /// The text of the rule's `log`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Who has the socket on this host.
    pub process: Option<ActorRecord>,
}

/// Who has a socket on this host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ActorRecord {
    /// The name of the process; empty where it is not known.
    pub name: String,
    /// The systemd service or scope.
    pub unit: Option<String>,
    /// The pod: "namespace/name", or its UID.
    pub pod: Option<String>,
    /// The user.
    pub user: Option<String>,
}

impl From<&Actor> for ActorRecord {
    fn from(actor: &Actor) -> Self {
        let Actor { process, unit, pod, user } = actor.clone();
        Self { name: process, unit, pod, user }
    }
}

impl EventRecord {
    /// The record of an event.
    pub fn of(event: &Event) -> Self {
        let names = event.names.iter().map(ToString::to_string).collect();
        Self {
            time: time::rfc3339_micros(event.time),
            kind: event.kind.name().to_owned(),
            verdict: event.verdict.name().to_owned(),
            direction: event.direction.to_string(),
            interface: event.interface.as_ref().map(ToString::to_string),
            role: event.role.map(|role| role.name().to_owned()),
            out: event.out.as_ref().map(ToString::to_string),
            source: event.source.to_string(),
            destination: event.destination.to_string(),
            protocol: event.protocol.map(|protocol| protocol.to_string()),
            source_port: event.ports.map(|(source, _)| source),
            destination_port: event.ports.map(|(_, destination)| destination),
            icmp_type: event.icmp.map(|(kind, _)| kind),
            icmp_code: event.icmp.map(|(_, code)| code),
            length: event.length,
            peer: event.peer().to_string(),
            names,
            rule: event.decider.to_string(),
            policy: event.decider.policy().map(str::to_owned),
            tier: event.tier.clone(),
            place: event.place.clone(),
            text: event.text.clone(),
            process: event.actor.as_ref().map(ActorRecord::from),
        }
    }
}
