//! Events as lines for people, and as JSON that a terminal survives.

use std::fmt::Write as _;

use crate::cli::output::count;
use crate::daemon::traffic::record::{ActorRecord, EventRecord, LostRecord};
use crate::text::plain::{is_plain, plain};

/// How many columns are aligned; what comes after them is as long as it is.
const ALIGNED: usize = 9;
/// The widest that a column is made for the sake of the lines after it, in characters. Addresses of IPv6 go beyond it.
const WIDEST: [usize; ALIGNED] = [15, 12, 3, 24, 4, 8, 48, 32, 40];
/// As many names of a peer are shown.
const NAMES_SHOWN: usize = 3;

/// Lines with columns as wide as the widest so far.
#[derive(Debug)]
pub(super) struct Columns {
    colored: bool,
    widths: [usize; ALIGNED],
}

impl Columns {
    /// No line was printed.
    pub(super) fn new(colored: bool) -> Self {
        // The words of these are known beforehand.
        Self { colored, widths: [15, 12, 3, 0, 4, 0, 0, 0, 0] }
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.colored && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Adds the line of an event.
    pub(super) fn event(&mut self, out: &mut String, event: &EventRecord) {
        let cells = cells(event);
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let width = cell.chars().count();
            if let Some(widest) = self.widths.get_mut(column) {
                *widest = (*widest).max(width.min(WIDEST[column]));
            }
            let pad = self.widths.get(column).copied().unwrap_or(0).saturating_sub(width);
            let code = match column {
                0 | 4 => DIM,
                1 => color(&event.verdict),
                7 | 8 => BOLD,
                _ => "",
            };
            line.push_str(&self.paint(cell, code));
            line.push_str(&" ".repeat(pad + 1));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }

    /// Adds a line that says how many events were missed before the next one.
    pub(super) fn missed(&self, out: &mut String, missed: u64) {
        let missed = count(usize::try_from(missed).unwrap_or(usize::MAX), "event");
        self.note(out, &format!("{missed} missed here, as this reader is too slow"));
    }

    /// Adds a line that says what was lost.
    pub(super) fn lost(&self, out: &mut String, lost: &LostRecord) {
        let LostRecord { packets, connections } = lost;
        let times = if *connections == 1 { "time" } else { "times" };
        let packets = count(usize::try_from(*packets).unwrap_or(usize::MAX), "logged packet");
        let note = format!("lost since the daemon's start: {packets}, and {connections} {times} beginning connections");
        self.note(out, &note);
    }

    fn note(&self, out: &mut String, text: &str) {
        out.push_str(&self.paint(&format!("-- {text}"), YELLOW));
        out.push('\n');
    }
}

const DIM: &str = "2";
const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

/// The colour of a verdict, as an SGR parameter.
fn color(verdict: &str) -> &'static str {
    match verdict {
        "denied" | "rejected" => RED,
        "would-deny" | "would-reject" => YELLOW,
        "allowed" => GREEN,
        _ => CYAN,
    }
}

/// The columns of an event: time, verdict, direction, interface, what it is of, protocol, from where to where, who the peer is, what decided,
/// and the rest.
fn cells(event: &EventRecord) -> [String; ALIGNED + 1] {
    let interface = match (event.interface.as_deref(), event.out.as_deref()) {
        (Some(name), Some(out)) => format!("{name}>{out}"),
        (Some(name), None) | (None, Some(name)) => name.to_owned(),
        (None, None) => "-".to_owned(),
    };
    let direction = match event.direction.as_str() {
        "egress" => "out",
        _ if event.out.is_some() => "fwd",
        _ => "in",
    };
    let what = match event.kind.as_str() {
        "connection" => "new".to_owned(),
        _ => event.length.map_or_else(|| "-".to_owned(), |length| length.to_string()),
    };
    let source = endpoint(&event.source, event.source_port);
    let destination = endpoint(&event.destination, event.destination_port);
    // Without the directory, as the kernel's comments have it.
    let place = event.place.as_deref().and_then(|place| place.rsplit('/').next());
    let place = place.map(|place| format!(" {place}")).unwrap_or_default();
    let rest: Vec<String> =
        [event.process.as_ref().map(process), (!event.text.is_empty()).then(|| quoted(&event.text))]
            .into_iter()
            .flatten()
            .collect();
    [
        time(&event.time).to_owned(),
        event.verdict.clone(),
        direction.to_owned(),
        interface,
        what,
        protocol(event),
        format!("{source} > {destination}"),
        names(&event.names),
        format!("{}{place}", event.rule),
        rest.join(" "),
    ]
    .map(|cell| plain(&cell).into_owned())
}

/// The time of day, in UTC.
fn time(rfc3339: &str) -> &str {
    rfc3339.split_once('T').map_or(rfc3339, |(_, time)| time.trim_end_matches('Z'))
}

/// "10.0.0.5:22", "[fd00::5]:22", "10.0.0.5".
pub(in crate::cli) fn endpoint(address: &str, port: Option<u16>) -> String {
    match port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

fn protocol(event: &EventRecord) -> String {
    let name = event.protocol.as_deref().unwrap_or("-");
    match (event.icmp_type, event.icmp_code) {
        (Some(kind), Some(code)) => format!("{name} {kind}/{code}"),
        _ => name.to_owned(),
    }
}

/// The first few names of a peer, and how many more there are.
fn names(names: &[String]) -> String {
    match names.len() {
        0 => "-".to_owned(),
        count if count <= NAMES_SHOWN => names.join(","),
        count => format!("{},+{}", names.get(..NAMES_SHOWN).unwrap_or_default().join(","), count - NAMES_SHOWN),
    }
}

/// "sshd (ssh.service, user root)".
pub(in crate::cli) fn process(actor: &ActorRecord) -> String {
    let ActorRecord { name, unit, pod, user } = actor;
    let name = if name.is_empty() { "?" } else { name };
    let of: Vec<String> =
        [pod.as_ref().map(|pod| format!("pod {pod}")), unit.clone(), user.as_ref().map(|user| format!("user {user}"))]
            .into_iter()
            .flatten()
            .collect();
    if of.is_empty() { name.to_owned() } else { format!("{name} ({})", of.join(", ")) }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// Adds the text of a JSON value with a line end. What a terminal would obey is escaped as JSON does, so that it means the same; control
/// characters below U+0020 are escaped in any JSON.
pub(super) fn json(out: &mut String, text: &str) {
    for character in text.chars() {
        if is_plain(character) || character < ' ' {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn packet() -> EventRecord {
        EventRecord {
            time: "2026-11-26T08:20:19.123456Z".into(),
            kind: "packet".into(),
            verdict: "denied".into(),
            direction: "ingress".into(),
            interface: Some("eth0".into()),
            source: "10.0.7.9".into(),
            destination: "10.0.0.5".into(),
            protocol: Some("tcp".into()),
            source_port: Some(40122),
            destination_port: Some(10250),
            length: Some(60),
            peer: "10.0.7.9".into(),
            names: vec!["node:gpu-17".into(), "set:ops".into()],
            rule: "kubelet#2".into(),
            policy: Some("kubelet".into()),
            place: Some("/etc/nodewall/policy.d/20-kubelet.toml:14".into()),
            text: "no: not you".into(),
            process: Some(ActorRecord {
                name: "kubelet".into(),
                unit: Some("kubelet.service".into()),
                pod: None,
                user: Some("root".into()),
            }),
            ..EventRecord::default()
        }
    }

    #[test]
    fn lines_are_aligned_as_far_as_is_known() {
        let ping = EventRecord {
            time: "2026-11-26T08:20:20.000001Z".into(),
            kind: "connection".into(),
            verdict: "allowed".into(),
            direction: "egress".into(),
            interface: None,
            source: "fd00::5".into(),
            destination: "fd00::1".into(),
            protocol: Some("icmpv6".into()),
            icmp_type: Some(128),
            icmp_code: Some(0),
            rule: "essential ping".into(),
            ..EventRecord::default()
        };
        let forwarded = EventRecord {
            out: Some("cni0".into()),
            verdict: "would-reject".into(),
            names: ["set:a", "set:b", "set:c", "set:d"].map(str::to_owned).into(),
            process: None,
            text: String::new(),
            source: "fd00::1".into(),
            ..packet()
        };
        let mut out = String::new();
        let mut columns = Columns::new(false);
        columns.event(&mut out, &packet());
        columns.event(&mut out, &ping);
        columns.missed(&mut out, 17);
        columns.lost(&mut out, &LostRecord { packets: 5, connections: 1 });
        columns.event(&mut out, &forwarded);
        columns.event(&mut out, &EventRecord::default());
        assert_eq!(
            out,
            "\
08:20:19.123456 denied       in  eth0 60   tcp 10.0.7.9:40122 > 10.0.0.5:10250 node:gpu-17,set:ops kubelet#2 20-kubelet.toml:14 kubelet (kubelet.service, user root) \"no: not you\"
08:20:20.000001 allowed      out -    new  icmpv6 128/0 fd00::5 > fd00::1               -                   essential ping
-- 17 events missed here, as this reader is too slow
-- lost since the daemon's start: 5 logged packets, and 1 time beginning connections
08:20:19.123456 would-reject fwd eth0>cni0 60   tcp      [fd00::1]:40122 > 10.0.0.5:10250 set:a,set:b,set:c,+1 kubelet#2 20-kubelet.toml:14
                             in  -         -    -         >                               -
"
        );
    }

    #[test]
    fn colours_are_verdicts_and_nothing_from_outside_reaches_the_terminal() {
        let mut event = packet();
        event.text = "\x1b[2J\u{9b}x".into();
        event.process = Some(ActorRecord { name: "a\nb\x1b]0;t\x07".into(), ..ActorRecord::default() });
        event.verdict = "denied\r".into();
        event.names = vec!["set:\u{202e}a".into()];
        let (mut plain, mut colored) = (String::new(), String::new());
        Columns::new(false).event(&mut plain, &event);
        assert!(plain.trim_end_matches('\n').chars().all(is_plain), "{plain:?}");
        assert!(plain.contains("a\\nb\\u{1b}]0;t\\u{7} \"\\u{1b}[2J\\u{9b}x\""), "{plain}");
        Columns::new(true).event(&mut colored, &packet());
        assert!(colored.contains("\x1b[31mdenied\x1b[0m"), "{colored:?}");
    }

    #[test]
    fn json_means_the_same_and_has_nothing_that_a_terminal_obeys() {
        let text = serde_json::json!({ "a": "x\u{9b}\u{7f}\u{e0001}é\n" }).to_string();
        let mut out = String::new();
        json(&mut out, &text);
        assert_eq!(out, "{\"a\":\"x\\u009b\\u007f\\udb40\\udc01é\\n\"}\n");
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_str(&out).unwrap());
        assert_eq!(before, after);
    }
}
