//! One packet's fate as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::text::state_word;
use crate::cli::subject::Subject;
use crate::net::interface::{Direction, InterfaceName};
use crate::policy::model::{Mode, Stage};
use crate::simulate::words::{self, Because, Line, because, parts, verdict};
use crate::simulate::{How, Origin, Packet, Recognised, RuleStep, Step, Trace, recognise};

/// What `simulate --json` prints.
#[derive(Serialize)]
pub(super) struct Report {
    version: u32,
    verdict: &'static str,
    reason: ReasonRecord,
    packet: PacketRecord,
    interface: InterfaceRecord,
    /// Of a forwarded packet, the interface by which it leaves.
    exit: Option<InterfaceRecord>,
    mode: &'static str,
    /// What would have decided if it were not for audit.
    audited: Vec<AuditRecord>,
    logged: Vec<RuleRecord>,
    /// Whether the answer may be another for some process.
    unsure: bool,
    /// What was taken for granted.
    taken: Vec<String>,
    /// The generation of the policy, with `--loaded`.
    generation: Option<u64>,
    emergency: Option<String>,
    stages: Vec<StageRecord>,
}

/// What decided.
#[derive(Serialize)]
pub(super) struct ReasonRecord {
    kind: &'static str,
    words: String,
    #[serde(flatten)]
    rule: Option<RuleRecord>,
}

#[derive(Serialize)]
struct RuleRecord {
    policy: String,
    rule: u32,
    action: &'static str,
    file: Option<String>,
    line: Option<u32>,
}

#[derive(Serialize)]
struct AuditRecord {
    verdict: &'static str,
    reason: ReasonRecord,
}

/// A packet.
#[derive(Serialize)]
pub(super) struct PacketRecord {
    direction: &'static str,
    interface: String,
    exit: Option<String>,
    source: String,
    destination: String,
    protocol: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    hop_limit: u8,
    state: &'static str,
    dnat: Option<String>,
    sender: SenderRecord,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum SenderRecord {
    Kernel,
    Process { user: u32, group: u32 },
    Unknown,
}

#[derive(Serialize)]
struct InterfaceRecord {
    name: String,
    role: &'static str,
    /// "interface" where it is one of the node's, "pattern" where one expects it, "unknown".
    known_by: &'static str,
    why: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StageRecord {
    /// Absent for what concerns the packet as a whole.
    stage: Option<&'static str>,
    direction: Option<&'static str>,
    interface: Option<String>,
    steps: Vec<StepRecord>,
}

#[derive(Serialize)]
struct StepRecord {
    kind: &'static str,
    name: String,
    result: String,
    verdict: Option<&'static str>,
    file: Option<String>,
    line: Option<u32>,
}

impl Report {
    /// The whole answer.
    pub(super) fn of(subject: &Subject, packet: &Packet, trace: &Trace<'_>, taken: &[String]) -> Self {
        let decision = &trace.decision;
        let logged = trace.steps.iter().filter_map(|step| match step {
            Step::Rule(rule, RuleStep::Logged) => {
                let reason = Because { kind: "rule", words: String::new(), rule: Some(*rule) };
                RuleRecord::of(&reason)
            }
            _ => None,
        });
        let stages = parts(trace).into_iter().map(|part| StageRecord {
            stage: part.stage.map(|(stage, ..)| stage.name()),
            direction: part.stage.map(|(_, direction, _)| direction.name()),
            interface: part.stage.map(|(stage, direction, _)| match (stage, direction, &packet.forward) {
                (Stage::Forward, Direction::Egress, Some(exit)) => exit.interface.to_string(),
                _ => packet.interface.to_string(),
            }),
            steps: part.lines.iter().map(StepRecord::of).collect(),
        });
        let interface = |name: &InterfaceName, kind: Option<&str>| {
            InterfaceRecord::of(name, &recognise(&subject.effective, name, kind))
        };
        Self {
            version: 1,
            verdict: verdict(decision.outcome),
            reason: ReasonRecord::of(&because(trace, &decision.reason)),
            packet: PacketRecord::of(packet),
            interface: interface(&packet.interface, packet.kind.as_deref()),
            exit: packet.forward.as_ref().map(|exit| interface(&exit.interface, exit.kind.as_deref())),
            mode: match subject.effective.mode {
                Mode::Enforce => "enforce",
                Mode::Audit => "audit",
            },
            audited: decision
                .audited
                .iter()
                .map(|(reason, outcome)| AuditRecord {
                    verdict: verdict(*outcome),
                    reason: ReasonRecord::of(&because(trace, reason)),
                })
                .collect(),
            logged: logged.collect(),
            unsure: decision.unsure,
            taken: taken.to_vec(),
            generation: subject.generation,
            emergency: subject.emergency.clone(),
            stages: stages.collect(),
        }
    }
}

impl ReasonRecord {
    pub(super) fn of(reason: &Because<'_>) -> Self {
        Self { kind: reason.kind, words: reason.words.clone(), rule: RuleRecord::of(reason) }
    }
}

impl RuleRecord {
    fn of(reason: &Because<'_>) -> Option<Self> {
        let rule = reason.rule?;
        Some(Self {
            policy: rule.id.policy.to_string(),
            rule: rule.id.number,
            action: rule.action.name(),
            file: reason.place().map(|place| place.file.to_string()),
            line: reason.place().map(|place| place.line),
        })
    }
}

impl PacketRecord {
    pub(super) fn of(packet: &Packet) -> Self {
        let icmp = packet.protocol.and_then(|protocol| packet.icmp_of(protocol));
        Self {
            direction: packet.direction.name(),
            interface: packet.interface.to_string(),
            exit: packet.forward.as_ref().map(|exit| exit.interface.to_string()),
            source: packet.source.to_string(),
            destination: packet.destination.to_string(),
            protocol: packet.protocol.map(|protocol| protocol.0),
            source_port: packet.ports().map(|(port, _)| port),
            destination_port: packet.ports().map(|(_, port)| port),
            icmp_type: icmp.map(|(kind, _)| kind),
            icmp_code: icmp.map(|(_, code)| code),
            hop_limit: packet.hop_limit,
            state: state_word(packet.state),
            dnat: packet.translated.map(|(address, port)| match packet.ports() {
                Some(_) => std::net::SocketAddr::new(address, port).to_string(),
                None => address.to_string(),
            }),
            sender: match &packet.origin {
                Origin::Kernel => SenderRecord::Kernel,
                Origin::Process(socket) => SenderRecord::Process { user: socket.uid, group: socket.gid },
                Origin::Unknown => SenderRecord::Unknown,
            },
        }
    }
}

impl InterfaceRecord {
    fn of(name: &InterfaceName, recognised: &Recognised<'_>) -> Self {
        Self {
            name: name.to_string(),
            role: recognised.role.name(),
            known_by: match recognised.how {
                How::Known(_) => "interface",
                How::Expected(_) => "pattern",
                How::Unknown => "unknown",
            },
            why: words::recognised(recognised),
            labels: recognised.labels.clone(),
        }
    }
}

impl StepRecord {
    fn of(line: &Line<'_>) -> Self {
        Self {
            kind: line.kind,
            name: line.name.clone(),
            result: line.result.clone(),
            verdict: line.outcome.map(verdict),
            file: line.place.map(|place| place.file.to_string()),
            line: line.place.map(|place| place.line),
        }
    }
}
