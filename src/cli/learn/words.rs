//! Numbers, services and processes in words.

use crate::learn::{Flow, Seen, text};
use crate::simulate::Reason;
use crate::traffic::Service;

/// "1 record", "2 records".
pub(super) fn number(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// "tcp/22", "icmp/8", "esp", "many".
pub(super) fn service(flow: &Flow) -> String {
    let protocol = flow.protocol.map_or_else(|| "any".to_owned(), |protocol| protocol.to_string());
    match flow.service {
        Service::Port(port) => format!("{protocol}/{port}"),
        Service::Icmp(kind, _) => format!("{protocol}/{kind}"),
        Service::Whole => protocol,
        Service::Many => format!("{protocol}, many"),
    }
}

/// The processes of this host, without what could mislead a terminal.
pub(super) fn processes(seen: &Seen) -> Vec<String> {
    let named = seen.actors.iter().map(|actor| text::clean(&actor.process)).filter(|name| !name.is_empty());
    let mut names: Vec<String> = named.collect();
    names.dedup();
    names
}

/// What denies, as records have it.
pub(super) fn decider(reason: &Reason) -> String {
    match reason {
        Reason::Rule(id) => id.to_string(),
        Reason::TierDefault(tier) => format!("tier {tier}"),
        Reason::InterfaceDefault => "default".to_owned(),
        Reason::Essential(words) => format!("essential {words}"),
        Reason::NoPolicy => "no policy".to_owned(),
    }
}
