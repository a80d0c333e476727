//! One packet's fate as text: the verdict and what decided it, then the packet, then, if asked for, every step.

use std::fmt::Write as _;

use crate::cli::subject::Subject;
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::{Protocol, icmp_type_name, icmpv6_type_name};
use crate::policy::effective::RuleId;
use crate::policy::model::Stage;
use crate::simulate::words::{Because, Line, Part, because, parts, recognised, verdict};
use crate::simulate::{ConntrackState, Origin, Outcome, Packet, Reason, RuleStep, Step, Trace, recognise};
use crate::text::place::Place;
use crate::text::render::source_line;

/// The whole answer.
pub(super) fn of(
    subject: &Subject,
    packet: &Packet,
    trace: &Trace<'_>,
    taken: &[String],
    verbose: bool,
    colored: bool,
) -> String {
    let mut out = String::new();
    let decision = &trace.decision;
    let reason = because(trace, &decision.reason);
    row(&mut out, &paint(decision.outcome, colored), verdict(decision.outcome).len(), &decided(trace));
    if let Some(source) = reason.place().and_then(|place| source_line(&subject.texts, place)) {
        label(&mut out, "", source.trim_end_matches(','));
    }
    label(&mut out, "packet", &packet_words(packet));
    interfaces(&mut out, subject, packet);
    for words in audited(trace) {
        label(&mut out, "audit", &words);
    }
    for id in &decision.logged {
        let place = logged_at(trace, id).map(|place| format!(", {}", at(place))).unwrap_or_default();
        label(&mut out, "log", &format!("{id}{place}"));
    }
    if decision.unsure {
        let text = "rules ask which process sends it, and nobody said: --user, --group, --unit or --kernel";
        label(&mut out, "unsure", text);
    }
    if !taken.is_empty() {
        label(&mut out, "taken", &taken.join(", "));
    }
    if let Some(number) = subject.generation {
        label(&mut out, "under", &format!("generation {number}"));
    }
    if let Some(words) = &subject.emergency {
        label(&mut out, "", words);
    }
    if verbose {
        out.push('\n');
        steps(&mut out, subject, packet, trace, colored);
    }
    out
}

/// What decided, or would have if the node were not in audit mode.
pub(super) fn decided(trace: &Trace<'_>) -> String {
    let by = decided_by(&because(trace, &trace.decision.reason));
    match node_audit(trace) {
        Some(outcome) => format!("in audit mode; it would be {}: {by}", verdict(outcome)),
        None => by,
    }
}

/// What the node's audit mode let through.
fn node_audit(trace: &Trace<'_>) -> Option<Outcome> {
    trace.steps.iter().find_map(|step| match step {
        Step::NodeAudit(outcome) => Some(*outcome),
        _ => None,
    })
}

/// What policies in audit mode would have done; of the node's own audit mode [`decided`] tells.
pub(super) fn audited(trace: &Trace<'_>) -> Vec<String> {
    let all = &trace.decision.audited;
    let of_policies = all.len() - usize::from(node_audit(trace).is_some());
    let words = |(reason, outcome): &(Reason, Outcome)| {
        format!("would be {}: {}", verdict(*outcome), decided_by(&because(trace, reason)))
    };
    all.iter().take(of_policies).map(words).collect()
}

/// What decided, with its place.
fn decided_by(reason: &Because<'_>) -> String {
    match reason.place() {
        Some(place) => format!("{}, {}", reason.words, at(place)),
        None => reason.words.clone(),
    }
}

/// `file:line`.
fn at(place: &Place) -> String {
    format!("{}:{}", place.file, place.line)
}

fn logged_at<'a>(trace: &Trace<'a>, id: &RuleId) -> Option<&'a Place> {
    let place = trace.steps.iter().find_map(|step| match step {
        Step::Rule(rule, RuleStep::Logged) if rule.id == *id => Some(&rule.place),
        _ => None,
    });
    place.filter(|place| place.line > 0)
}

/// `tcp 10.0.0.9:40000 -> 10.0.0.1:22, new`.
pub(super) fn packet_words(packet: &Packet) -> String {
    let mut words = format!("{} {}", protocol_words(packet), addresses(packet));
    let _ = write!(words, ", {}", state_word(packet.state));
    if packet.hop_limit != 64 {
        let _ = write!(words, ", hop limit {}", packet.hop_limit);
    }
    if let Some((address, port)) = packet.translated {
        let _ = write!(words, ", by DNAT to {}", end(address, packet.ports().map(|_| port)));
    }
    words
}

pub(super) fn addresses(packet: &Packet) -> String {
    let ports = packet.ports();
    let (source, destination) =
        (end(packet.source, ports.map(|(port, _)| port)), end(packet.destination, ports.map(|(_, port)| port)));
    format!("{source} -> {destination}")
}

fn end(address: std::net::IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

pub(super) fn protocol_words(packet: &Packet) -> String {
    let Some(protocol) = packet.protocol else { return "no readable protocol".to_owned() };
    let icmp = packet.icmp_of(protocol).map(|(kind, code)| {
        let name = if protocol == Protocol::ICMP { icmp_type_name(kind) } else { icmpv6_type_name(kind) };
        let name = name.map_or_else(|| kind.to_string(), str::to_owned);
        if code == 0 { name } else { format!("{name}/{code}") }
    });
    match (protocol.name(), icmp) {
        (Some(name), Some(icmp)) => format!("{name} {icmp}"),
        (Some(name), None) => name.to_owned(),
        (None, _) => format!("protocol {}", protocol.0),
    }
}

pub(super) const fn state_word(state: ConntrackState) -> &'static str {
    match state {
        ConntrackState::New => "new",
        ConntrackState::Established => "established",
        ConntrackState::Related => "related",
        ConntrackState::Invalid => "invalid",
        ConntrackState::Untracked => "untracked",
    }
}

fn interfaces(out: &mut String, subject: &Subject, packet: &Packet) {
    let effective = &subject.effective;
    let way =
        |name: &InterfaceName, kind: Option<&str>| format!("{name}, {}", recognised(&recognise(effective, name, kind)));
    let sender = match &packet.origin {
        Origin::Kernel => ", from the kernel".to_owned(),
        Origin::Process(socket) => format!(", from user {} in group {}", socket.uid, socket.gid),
        Origin::Unknown => String::new(),
    };
    let first = way(&packet.interface, packet.kind.as_deref());
    match (packet.direction, &packet.forward) {
        (Direction::Egress, _) => label(out, "out", &format!("{first}{sender}")),
        (Direction::Ingress, None) => label(out, "in", &first),
        (Direction::Ingress, Some(exit)) => {
            label(out, "in", &first);
            label(out, "out", &way(&exit.interface, exit.kind.as_deref()));
        }
    }
}

/// How wide the first column is.
const LABEL: usize = 10;

fn label(out: &mut String, label: &str, text: &str) {
    row(out, label, label.len(), text);
}

/// A label that takes so much room, and text.
fn row(out: &mut String, label: &str, width: usize, text: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{label}{:pad$}{text}", "", pad = LABEL.saturating_sub(width));
}

/// The verdict, green or red.
pub(super) fn paint(outcome: Outcome, colored: bool) -> String {
    painted(verdict(outcome), outcome, colored)
}

fn painted(text: &str, outcome: Outcome, colored: bool) -> String {
    let code = if outcome == Outcome::Accepted { "32" } else { "31" };
    if colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A step on its way to a table.
struct Cells {
    what: String,
    result: String,
    outcome: Option<Outcome>,
    place: String,
    source: String,
}

/// Every step, one on a line.
pub(super) fn steps(out: &mut String, subject: &Subject, packet: &Packet, trace: &Trace<'_>, colored: bool) {
    let mut rows = Vec::new();
    for part in parts(trace) {
        rows.extend(heading(&part, packet));
        // Who the interface is, was said above.
        let lines = part.lines.iter().filter(|line| line.kind != "interface");
        rows.extend(lines.map(|line| cells(line, &part, subject)));
    }
    let width = |cell: fn(&Cells) -> &str| rows.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0);
    let (what, result, place) = (width(|row| &row.what), width(|row| &row.result), width(|row| &row.place));
    for row in &rows {
        let shown = match row.outcome {
            Some(outcome) => painted(&row.result, outcome, colored),
            None => row.result.clone(),
        };
        let pad = result - row.result.chars().count();
        let text = format!("{:<what$}  {shown}{:pad$}  {:<place$}  {}", row.what, "", row.place, row.source);
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

fn heading(part: &Part<'_>, packet: &Packet) -> Option<Cells> {
    let (stage, direction, interface) = part.stage?;
    let by = match (stage, direction, &packet.forward) {
        (Stage::Forward, Direction::Egress, Some(exit)) => &exit.interface,
        _ => &packet.interface,
    };
    let what = format!("stage {} {direction}", stage.name());
    Some(Cells {
        what,
        result: format!("{by} ({})", interface.role),
        outcome: None,
        place: String::new(),
        source: String::new(),
    })
}

fn cells(line: &Line<'_>, part: &Part<'_>, subject: &Subject) -> Cells {
    let depth = match line.kind {
        "policy" => 2,
        "rule" if part.stage.is_none() => 1,
        "rule" => 3,
        // A tier's end belongs to it; the stage's does not.
        "end" if !line.name.is_empty() => 2,
        _ => usize::from(part.stage.is_some()),
    };
    let name = match line.kind {
        "rule" => line.name.clone(),
        "end" if !line.name.is_empty() => "end of the tier".to_owned(),
        "end" => "end of the stage".to_owned(),
        kind if line.name.is_empty() => kind.to_owned(),
        kind => format!("{kind} {}", line.name),
    };
    let source = line.place.filter(|_| line.kind == "rule").and_then(|place| source_line(&subject.texts, place));
    Cells {
        what: format!("{:indent$}{name}", "", indent = depth * 2),
        result: line.result.clone(),
        outcome: line.outcome,
        place: line.place.map(Place::short).unwrap_or_default(),
        source: source.unwrap_or_default().trim_end_matches(',').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;
    use crate::net::facts::{Facts, Link};
    use crate::net::range::RangeSet;
    use crate::policy::effective::ProcessMatch;
    use crate::policy::resolve::resolve;
    use crate::simulate::{Socket, trace};
    use crate::source::{Sourced, decode_text};

    #[test]
    fn a_rule_that_asks_for_a_process_makes_the_answer_unsure_until_somebody_says_which() {
        let policy =
            "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\negress = [ { action = \"deny\" } ]\n";
        let sourced = decode_text("policy.toml", policy);
        let links = [(2, Link::named(2, InterfaceName::new("eth0").unwrap()))].into();
        let facts = Facts { links, ..Facts::default() };
        let (mut effective, _) = resolve(&sourced.policy, &Config::shipped().settings, &facts);
        for rule in
            effective.tiers.iter_mut().flat_map(|tier| &mut tier.policies).flat_map(|policy| policy.egress.iter_mut())
        {
            rule[0].process = Some(ProcessMatch { users: Some(RangeSet::single(1000)), ..ProcessMatch::default() });
        }
        let Sourced { policy, texts, .. } = sourced;
        let subject = Subject { policy, effective, facts, texts, generation: Some(7), emergency: None };
        let answer = |origin| {
            let packet = Packet {
                direction: Direction::Egress,
                interface: InterfaceName::new("eth0").unwrap(),
                kind: None,
                source: "10.0.0.1".parse().unwrap(),
                destination: "10.0.0.9".parse().unwrap(),
                protocol: Some(Protocol(47)),
                ports: None,
                icmp: None,
                hop_limit: 1,
                state: ConntrackState::New,
                forward: None,
                translated: None,
                origin,
            };
            of(&subject, &packet, &trace(&subject.effective, &packet), &[], false, false)
        };
        let expected = "\
accepted  default of unknown egress: allow
packet    gre 10.0.0.1 -> 10.0.0.9, new, hop limit 1
out       eth0, unknown: not recognised
unsure    rules ask which process sends it, and nobody said: --user, --group, --unit or --kernel
under     generation 7
";
        assert_eq!(answer(Origin::Unknown), expected);
        let expected = "\
dropped   p#1 (deny), policy.toml:5
          egress = [ { action = \"deny\" } ]
packet    gre 10.0.0.1 -> 10.0.0.9, new, hop limit 1
out       eth0, unknown: not recognised, from user 1000 in group 7
under     generation 7
";
        assert_eq!(answer(Origin::Process(Socket { uid: 1000, gid: 7, ..Socket::default() })), expected);
        assert!(answer(Origin::Kernel).contains("from the kernel\nunder"));
    }
}
