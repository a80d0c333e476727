//! A draft as a policy file for people: what it is, what each rule is for, and what it leaves out.
//!
//! Names of processes, units and pods are whatever others chose: they stand in comments only, and there as plain ASCII.

use std::collections::BTreeMap;
use std::fmt::Write;

use ipnet::IpNet;

use super::Options;
use super::draft::{Draft, Evidence, LeftOut, NewPolicy, NewRule};
use super::gather::Gathered;
use super::triage::Apart;
use crate::net::interface::Direction;
use crate::text::time;

/// What there is to say of a draft beside the draft.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct About {
    /// The node.
    pub node: String,
    /// Logged packets that were lost on the way meanwhile.
    pub lost_packets: u64,
    /// How often events of connections were lost.
    pub lost_connections: u64,
    /// Records that were not kept.
    pub lost_records: u64,
}

/// More lines than these of one reason are only counted.
const MOST_LINES: usize = 40;
/// More processes than these are only counted.
const MOST_PROCESSES: usize = 4;
/// More peers than these are only counted.
const MOST_PEERS: usize = 4;

/// The policy file.
pub fn render(draft: &Draft, gathered: &Gathered, options: &Options, about: &About) -> String {
    let mut text = head(draft, gathered, options, about);
    for set in &draft.sets {
        let _ = write!(text, "\n[[set]]\nname = \"{}\"\ncidrs = [\n", set.name);
        for (net, connections) in &set.members {
            let _ = writeln!(text, "  \"{}\", # {}", address(net), count(*connections, "connection"));
        }
        text.push_str("]\n");
    }
    for service in &draft.services {
        let ports: Vec<String> = service.ports.iter().map(|port| format!("\"{port}\"")).collect();
        let _ = write!(text, "\n[[service]]\nname = \"{}\"\nports = [{}]\n", service.name, ports.join(", "));
    }
    for policy in &draft.policies {
        self::policy(&mut text, policy);
    }
    left_out(&mut text, &draft.left_out);
    text
}

fn head(draft: &Draft, gathered: &Gathered, options: &Options, about: &About) -> String {
    let rules: usize = draft.policies.iter().flat_map(|policy| policy.rules.values()).map(Vec::len).sum();
    let mut text = format!(
        "# Drafted by `nodewall learn draft` for the node {}. NOT LIVE: nothing reads it where it is.\n\
         # Review it, try it with `nodewall learn verify`, then copy it to /etc/nodewall/policy.d.\n#\n",
        clean(&about.node)
    );
    match gathered.first.zip(gathered.last) {
        Some((first, last)) => {
            let _ = writeln!(
                text,
                "# Seen from {} to {}: {} in {}.",
                when(first),
                when(last),
                count(gathered.connections, "connection"),
                count(gathered.records, "record")
            );
        }
        None => text.push_str("# Nothing was seen.\n"),
    }
    let _ = writeln!(
        text,
        "# {} were let through by the policy that is there, which is not repeated here.",
        count(draft.covered, "connection")
    );
    match (about.lost_packets, about.lost_connections, about.lost_records, gathered.folded) {
        (0, 0, 0, 0) => text.push_str("# Nothing was lost meanwhile.\n"),
        (packets, connections, records, folded) => {
            let _ = writeln!(
                text,
                "# Not all was seen: {} lost, events of connections lost {}, {} not kept, {} not told apart.\n# What is missing here may be among those.",
                count(packets, "logged packet"),
                count(connections, "time"),
                count(records, "record"),
                count(folded, "record")
            );
        }
    }
    let egress = if options.egress { ", with what this host begins (--egress)" } else { "" };
    let denied = if options.denied { ", with what was denied (--denied)" } else { "" };
    let _ = writeln!(
        text,
        "# Asked for: peers widened as far as {} (--generalise), seen at least {} (--seen){egress}{denied}.",
        options.generalise,
        count(options.seen, "time")
    );
    let _ = writeln!(text, "# {}; what is not included stands at the end.", count(rules as u64, "rule"));
    if rules > 0 {
        text.push_str(
            "#\n# mode = \"audit\" counts what the rules would allow and changes nothing. Write \"enforce\" before, or when, the node's own mode\n\
             # in nodewall.toml becomes \"enforce\": a policy in audit mode lets nothing in by itself.\n",
        );
    }
    text
}

fn policy(text: &mut String, policy: &NewPolicy) {
    let _ = write!(
        text,
        "\n[[policy]]\nname = \"{}\"\ntier = \"{}\"\norder = {}\n",
        policy.name, policy.tier, policy.order
    );
    let roles: Vec<String> = policy.roles.iter().map(|role| format!("'{role}'")).collect();
    let interfaces = match roles.as_slice() {
        [role] => format!("role == {role}"),
        roles => format!("role in {{{}}}", roles.join(", ")),
    };
    let _ = write!(text, "mode = \"audit\"\ninterfaces = \"{interfaces}\"\n");
    for (direction, rules) in &policy.rules {
        let _ = writeln!(text, "{direction} = [");
        for rule in rules {
            let _ = writeln!(text, "  # {}", evidence(&rule.evidence));
            if !rule.unseen.is_empty() {
                let _ = writeln!(text, "  # not seen, and let through as well: {}", some(&rule.unseen, MOST_PEERS));
            }
            let _ = writeln!(text, "  {},", self::rule(*direction, rule));
        }
        text.push_str("]\n");
        if *direction == Direction::Egress {
            text.push_str("# To close everything else, end the list with { action = \"deny\", log = true }, or set the default of the role.\n");
        }
    }
}

fn rule(direction: Direction, rule: &NewRule) -> String {
    let list = |names: &mut dyn Iterator<Item = &String>| {
        names.map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
    };
    let mut parts = Vec::new();
    if !rule.sets.is_empty() {
        parts.push(format!("sets = [{}]", list(&mut rule.sets.iter())));
    }
    if let Some((selector, role)) = &rule.nodes {
        parts.push(format!("nodes = \"{selector}\""));
        parts.extend(role.map(|role| format!("role = \"{role}\"")));
    }
    let side = if direction == Direction::Ingress { "from" } else { "to" };
    let services = list(&mut rule.services.iter());
    format!("{{ action = \"allow\", {side} = {{ {} }}, services = [{services}] }}", parts.join(", "))
}

/// "3 peers, 1024 connections, from ... to ...; sshd".
fn evidence(evidence: &Evidence) -> String {
    let mut text =
        format!("{}, {}", count(evidence.peers.len() as u64, "peer"), count(evidence.connections, "connection"));
    if let Some((first, last)) = evidence.first.zip(evidence.last) {
        let _ = write!(text, ", {} to {}", when(first), when(last));
    }
    let processes: Vec<String> = evidence.processes.iter().map(|name| clean(name)).collect();
    if !processes.is_empty() {
        let _ = write!(text, "; {}", some(&processes, MOST_PROCESSES));
    }
    text
}

fn left_out(text: &mut String, left_out: &[LeftOut]) {
    let mut by_reason: BTreeMap<&Apart, Vec<&LeftOut>> = BTreeMap::new();
    for one in left_out {
        by_reason.entry(&one.why).or_default().push(one);
    }
    if !by_reason.is_empty() {
        text.push_str("\n# NOT INCLUDED\n");
    }
    for (why, lines) in by_reason {
        let _ = writeln!(text, "#\n# {}:", reason(why));
        for line in lines.iter().take(MOST_LINES) {
            let _ = writeln!(text, "#   {}", line_of(line));
        }
        if lines.len() > MOST_LINES {
            let _ = writeln!(text, "#   and {} more", lines.len() - MOST_LINES);
        }
    }
}

/// Why something is left out, in a sentence without its end.
pub fn reason(why: &Apart) -> String {
    match why {
        Apart::Scan => "scans: the peer tried many ports that nothing answered".to_owned(),
        Apart::Flood => "more peers or services than were told apart".to_owned(),
        Apart::OneOff => "one-offs, seen too seldom to be a habit".to_owned(),
        Apart::Unanswered => "nobody answered, or nothing listened".to_owned(),
        Apart::Denied => "denied by a policy in force (--denied proposes it)".to_owned(),
        Apart::ByRule(rule) => format!("{} says that it is denied (--denied proposes it)", clean(rule)),
        Apart::Through => "goes through this host: rules of the stage \"forward\" are for you to write".to_owned(),
        Apart::NoInterface => "the interface is gone".to_owned(),
        Apart::TooMany => {
            "more peers than anybody would review: widen --generalise, or write the rule yourself".to_owned()
        }
    }
}

fn line_of(line: &LeftOut) -> String {
    let peers: Vec<String> = line.evidence.peers.iter().map(ToString::to_string).collect();
    let way = if line.direction == Direction::Ingress { "from" } else { "to" };
    let who = if peers.is_empty() { "many".to_owned() } else { some(&peers, MOST_PEERS) };
    let role = line.role.map(|role| format!(" on {role}")).unwrap_or_default();
    let more = if line.more > 0 { format!(" and {} more", line.more) } else { String::new() };
    format!("{way} {who}{role}: {}{more}; {}", line.services.join(", "), evidence(&line.evidence))
}

fn some(words: &[String], most: usize) -> String {
    let shown = words.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    match words.len() > most {
        true => format!("{shown} and {} more", words.len() - most),
        false => shown,
    }
}

fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn when(micros: u64) -> String {
    time::rfc3339(micros / 1_000_000)
}

/// An address alone, or a prefix.
fn address(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// Foreign text for a comment: printable ASCII, short.
pub fn clean(text: &str) -> String {
    let plain = |next: char| if next.is_ascii_graphic() || next == ' ' { next } else { '?' };
    text.chars().take(64).map(plain).collect()
}
