//! The packets of a capture: a line each, and what decided how many.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::report::{PacketRecord, ReasonRecord};
use super::text::{self, addresses, audited, decided, paint, protocol_words, state_word};
use super::{Arguments, Vlans};
use crate::capture;
use crate::cli::exit::{self, Exit};
use crate::cli::output::Output;
use crate::cli::subject::Subject;
use crate::net::interface::{Direction, InterfaceName};
use crate::simulate::replay::{Answer, Replay, Skipped, Way};
use crate::simulate::words::{because, verdict};
use crate::simulate::{Exit as OutputInterface, Origin, Outcome, Packet};

/// By which interfaces the packets go.
pub(super) fn way(arguments: &Arguments, subject: &Subject, origin: Origin) -> Result<Way, String> {
    let kind = |name: &InterfaceName| match subject.facts.link(name.as_str()) {
        Some(link) => link.kind.clone(),
        None => arguments.kind.clone(),
    };
    let (interface, direction, exit) = match (&arguments.input, &arguments.output) {
        (Some(input), exit) => (input, Direction::Ingress, exit.as_ref()),
        (None, Some(output)) => (output, Direction::Egress, None),
        (None, None) => {
            return Err("say on which interface it was captured: --in IFACE, or --in and --out for forwarded packets"
                .to_owned());
        }
    };
    Ok(Way {
        interface: interface.clone(),
        kind: kind(interface),
        direction,
        exit: exit.map(|exit| OutputInterface { interface: exit.clone(), kind: kind(exit) }),
        local: subject.facts.local_addresses(),
        vlans: arguments.vlan.clone().map(|Vlans(tags)| tags).unwrap_or_default(),
        origin,
    })
}

/// Prints as many packets at a time.
const PART: usize = 64 << 10;

pub(super) fn run(file: &Path, subject: &Subject, way: Way, verbose: bool, output: &Output) -> Exit {
    let mut replay = Replay::new(&subject.effective, way);
    let mut summary = Summary::default();
    let mut records = Vec::new();
    let mut pending = String::new();
    let colored = output.colored(&io::stdout());
    let mut read_by_somebody = true;
    let result = capture::read(file, &mut |captured| {
        let (number, answer) = replay.next(captured);
        let line = Line::of(&answer);
        summary.count(&answer, &line);
        if output.json {
            records.push(Record::of(number, &answer, line));
            return true;
        }
        line.write(&mut pending, number, answer.outcome(), colored);
        if let (true, Answer::Decided(decided)) = (verbose, &answer) {
            text::steps(&mut pending, subject, &decided.packet, &decided.trace, colored);
            pending.push('\n');
        }
        if pending.len() >= PART {
            read_by_somebody = output.part(&std::mem::take(&mut pending));
        }
        read_by_somebody
    });
    let printed = if output.json {
        let Summary { packets, skipped, .. } = summary;
        let [accepted, dropped, rejected] = summary.outcomes;
        output.json(&Report {
            version: 1,
            file: file.display().to_string(),
            generation: subject.generation,
            packets: records,
            summary: SummaryRecord {
                packets,
                accepted,
                dropped,
                rejected,
                skipped,
                decided_by: summary.reasons.iter().map(|(key, count)| DecidedRecord::of(key, *count)).collect(),
            },
        })
    } else {
        pending.push_str(&summary.text());
        if let Some(number) = subject.generation {
            let _ = writeln!(pending, "under generation {number}");
        }
        if let Some(words) = &subject.emergency {
            let _ = writeln!(pending, "{words}");
        }
        output.data(&pending)
    };
    if let Err(error) = result {
        output.message(&format!("{}: {}", file.display(), exit::chain(&error)));
        return Exit::Failure;
    }
    let [_, dropped, rejected] = summary.outcomes;
    match printed {
        Exit::Ok if dropped + rejected > 0 => Exit::Failure,
        other => other,
    }
}

/// What is said about a packet.
struct Line {
    verdict: &'static str,
    /// "in", "out", "through", or nothing.
    way: &'static str,
    flow: String,
    state: &'static str,
    why: String,
    /// What policies in audit mode would have done.
    audited: Vec<String>,
}

impl Line {
    fn of(answer: &Answer<'_>) -> Self {
        let plain = |verdict, why| Self { verdict, way: "", flow: "-".to_owned(), state: "", why, audited: Vec::new() };
        match answer {
            Answer::Decided(answer) => {
                let (packet, trace) = (&answer.packet, &answer.trace);
                let mut why = decided(trace);
                if trace.decision.unsure {
                    why.push_str(" (rules ask which process sends it)");
                }
                Self {
                    verdict: verdict(trace.decision.outcome),
                    way: way_of(packet),
                    flow: format!("{} {}", protocol_words(packet), addresses(packet)),
                    state: state_word(packet.state),
                    why,
                    audited: audited(trace),
                }
            }
            Answer::Fragment { addresses: (source, destination), first } => {
                let (verdict, why) = match first {
                    Some((number, outcome)) => (verdict(*outcome), format!("with its first fragment, {number}")),
                    None => ("skipped", "its first fragment was not captured before it".to_owned()),
                };
                Self { flow: format!("fragment {source} -> {destination}"), ..plain(verdict, why) }
            }
            Answer::Malformed(error) => plain("dropped", format!("by the kernel, before any rule: {error}")),
            Answer::Skipped(skipped) => plain("skipped", skipped_words(skipped)),
        }
    }

    fn write(&self, out: &mut String, number: u64, outcome: Option<Outcome>, colored: bool) {
        let Self { verdict, way, flow, state, why, audited } = self;
        let audit: String = audited.iter().map(|words| format!("; audit: {words}")).collect();
        let shown = match outcome {
            Some(outcome) => paint(outcome, colored),
            None => (*verdict).to_owned(),
        };
        let pad = 8 - verdict.len().min(8);
        let _ = writeln!(out, "{number:>6}  {shown}{:pad$}  {way:<7}  {flow:<45}  {state:<11}  {why}{audit}", "");
    }
}

fn way_of(packet: &Packet) -> &'static str {
    match (packet.direction, &packet.forward) {
        (Direction::Egress, _) => "out",
        (Direction::Ingress, None) => "in",
        (Direction::Ingress, Some(_)) => "through",
    }
}

fn skipped_words(skipped: &Skipped) -> String {
    match skipped {
        Skipped::NotIp(why) => why.to_string(),
        Skipped::Vlan(tags) if tags.is_empty() => "no VLAN tag, and --vlan was given".to_owned(),
        Skipped::Vlan(tags) => {
            let tags: Vec<String> = tags.iter().map(u16::to_string).collect();
            let tags = tags.join(".");
            format!("VLAN {tags}: not for this interface; --vlan {tags} has these")
        }
        Skipped::ForOthers => "for another host".to_owned(),
        Skipped::Cut => "the capture has too little of it; capture with a larger snapshot length".to_owned(),
        Skipped::SplitHeader => "its transport header goes on in the next fragment".to_owned(),
    }
}

/// How many packets went which way.
#[derive(Default)]
struct Summary {
    packets: u64,
    /// Accepted, dropped, rejected.
    outcomes: [u64; 3],
    skipped: u64,
    /// By verdict and reason.
    reasons: BTreeMap<(&'static str, String), u64>,
}

impl Summary {
    fn count(&mut self, answer: &Answer<'_>, line: &Line) {
        self.packets += 1;
        match answer.outcome() {
            Some(Outcome::Accepted) => self.outcomes[0] += 1,
            Some(Outcome::Dropped) => self.outcomes[1] += 1,
            Some(Outcome::Rejected) => self.outcomes[2] += 1,
            None => self.skipped += 1,
        }
        let why = match answer {
            Answer::Fragment { first: Some(_), .. } => "with their first fragment".to_owned(),
            _ => line.why.clone(),
        };
        *self.reasons.entry((line.verdict, why)).or_default() += 1;
        for words in &line.audited {
            *self.reasons.entry(("audit", words.clone())).or_default() += 1;
        }
    }

    fn text(&self) -> String {
        let [accepted, dropped, rejected] = self.outcomes;
        let plural = if self.packets == 1 { "" } else { "s" };
        let mut out = format!(
            "\n{} packet{plural}: {accepted} accepted, {dropped} dropped, {rejected} rejected, {} skipped\n",
            self.packets, self.skipped
        );
        // Most first; the map keeps those of one number in order.
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((verdict, why), count) in reasons {
            let _ = writeln!(out, "{count:>6}  {verdict:<8}  {why}");
        }
        out
    }
}

/// What `simulate --pcap --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    file: String,
    generation: Option<u64>,
    packets: Vec<Record>,
    summary: SummaryRecord,
}

/// One packet of a capture.
#[derive(Serialize)]
struct Record {
    number: u64,
    /// "accepted", "dropped", "rejected" or "skipped".
    verdict: &'static str,
    why: String,
    /// What decided, where a policy did.
    reason: Option<ReasonRecord>,
    packet: Option<PacketRecord>,
    unsure: bool,
    /// What policies in audit mode would have done.
    audited: Vec<String>,
}

impl Record {
    fn of(number: u64, answer: &Answer<'_>, line: Line) -> Self {
        let (reason, packet, unsure) = match answer {
            Answer::Decided(decided) => {
                let decision = &decided.trace.decision;
                let reason = ReasonRecord::of(&because(&decided.trace, &decision.reason));
                (Some(reason), Some(PacketRecord::of(&decided.packet)), decision.unsure)
            }
            _ => (None, None, false),
        };
        Self { number, verdict: line.verdict, why: line.why, reason, packet, unsure, audited: line.audited }
    }
}

#[derive(Serialize)]
struct SummaryRecord {
    packets: u64,
    accepted: u64,
    dropped: u64,
    rejected: u64,
    skipped: u64,
    decided_by: Vec<DecidedRecord>,
}

#[derive(Serialize)]
struct DecidedRecord {
    verdict: &'static str,
    why: String,
    packets: u64,
}

impl DecidedRecord {
    fn of((verdict, why): &(&'static str, String), packets: u64) -> Self {
        Self { verdict, why: why.clone(), packets }
    }
}
