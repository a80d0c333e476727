//! Logged packets as lines of the journal.

use std::fmt::Write;

use crate::daemon::log::message_id;
use crate::net::interface::Direction;
use crate::traffic::Event;
use crate::traffic::tell::LeftOut;

/// One line for one packet.
pub(super) fn tell(event: &Event) {
    let message_id = match event.verdict {
        verdict if verdict.denies() => message_id::DENIED,
        verdict if verdict.is_audited() => message_id::WOULD_DENY,
        _ => message_id::LOGGED,
    };
    let names: Vec<String> = event.names.iter().map(ToString::to_string).collect();
    let actor = event.actor.as_ref();
    tracing::info!(
        message_id,
        verdict = event.verdict.name(),
        direction = %event.direction,
        iface = event.interface.as_ref().map(|name| name.as_str()),
        role = event.role.map(|role| role.name()),
        out = event.out.as_ref().map(|name| name.as_str()),
        source = %event.source,
        destination = %event.destination,
        protocol = event.protocol.map(|protocol| protocol.to_string()),
        source_port = event.ports.map(|(source, _)| source),
        destination_port = event.ports.map(|(_, destination)| destination),
        icmp_type = event.icmp.map(|(kind, _)| kind),
        icmp_code = event.icmp.map(|(_, code)| code),
        length = event.length,
        peer = %event.peer(),
        peer_names = (!names.is_empty()).then(|| names.join(" ")),
        rule = %event.decider,
        policy = event.decider.policy(),
        tier = event.tier.as_deref(),
        place = event.place.as_deref(),
        text = (!event.text.is_empty()).then_some(event.text.as_str()),
        process = actor.map(|actor| actor.process.as_str()).filter(|name| !name.is_empty()),
        unit = actor.and_then(|actor| actor.unit.as_deref()),
        pod = actor.and_then(|actor| actor.pod.as_deref()),
        user = actor.and_then(|actor| actor.user.as_deref()),
        "{}",
        words(event)
    );
}

/// "denied: tcp 10.0.0.9:51234 > 10.0.0.1:22 on eth0 by ssh#2 (20-ssh.toml:14), from set:dev".
fn words(event: &Event) -> String {
    let verdict = event.verdict.name().replace('-', " ");
    let mut text = format!("{verdict}: ");
    let end = |address: std::net::IpAddr, port: Option<u16>| match (address, port) {
        (address, None) => address.to_string(),
        (address, Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
    };
    if let Some(protocol) = event.protocol {
        let _ = write!(text, "{protocol} ");
    }
    if let Some((kind, code)) = event.icmp {
        let _ = write!(text, "type {kind} code {code} ");
    }
    let source = end(event.source, event.ports.map(|(source, _)| source));
    let destination = end(event.destination, event.ports.map(|(_, destination)| destination));
    let _ = write!(text, "{source} > {destination}");
    if let Some(interface) = &event.interface {
        let _ = write!(text, " on {interface}");
    }
    let _ = write!(text, " by {}", event.decider);
    if let Some(place) = &event.place {
        let _ = write!(text, " ({})", place.rsplit('/').next().unwrap_or(place));
    }
    if !event.names.is_empty() {
        let way = if event.direction == Direction::Ingress { "from" } else { "to" };
        let names: Vec<String> = event.names.iter().map(ToString::to_string).collect();
        let _ = write!(text, ", {way} {}", names.join(" "));
    }
    if let Some(actor) = &event.actor {
        let who = actor.unit.as_deref().or(actor.pod.as_deref()).unwrap_or(&actor.process);
        if !who.is_empty() {
            let _ = write!(text, ", {who}");
        }
    }
    if !event.text.is_empty() {
        let _ = write!(text, ": {}", event.text);
    }
    text
}

/// What had no line.
pub(super) fn tell_left_out(left_out: &[LeftOut]) {
    for LeftOut { by, packets } in left_out {
        let message_id = message_id::LEFT_OUT;
        match by {
            Some(by) => {
                let verdict = by.verdict.name();
                tracing::info!(
                    message_id,
                    packets,
                    verdict,
                    rule = %by.decider,
                    policy = by.decider.policy(),
                    "{packets} more packets {} by {} in the last minute; `nodewall flows` has them",
                    verdict.replace('-', " "),
                    by.decider
                );
            }
            None => tracing::info!(message_id, packets, "{packets} more packets by other rules in the last minute"),
        }
    }
}

/// What goes on is not seen, or not kept.
pub(super) fn tell_blind(what: &str) {
    tracing::warn!(message_id = message_id::BLIND, "{what}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::net::interface::{InterfaceName, Role};
    use crate::net::protocol::Protocol;
    use crate::policy::effective::RuleId;
    use crate::traffic::{Actor, Decider, Kind, PeerName, Verdict};

    #[test]
    fn a_line_says_who_what_where_and_why() {
        let mut event = Event {
            time: 0,
            kind: Kind::Packet,
            direction: Direction::Ingress,
            interface: InterfaceName::new("eth0"),
            role: Some(Role::Mgmt),
            out: None,
            source: "2001:db8::9".parse().unwrap(),
            destination: "2001:db8::1".parse().unwrap(),
            protocol: Some(Protocol::TCP),
            ports: Some((51234, 22)),
            icmp: None,
            length: Some(60),
            names: [PeerName::Set("dev".into())].into(),
            verdict: Verdict::Denied,
            decider: Decider::Rule(RuleId { policy: "ssh".into(), number: 2 }),
            tier: None,
            place: Some("/etc/nodewall/policy.d/20-ssh.toml:14".to_owned()),
            text: "no".to_owned(),
            actor: Some(Actor { unit: Some("ssh.service".to_owned()), ..Actor::default() }),
        };
        let line = "denied: tcp [2001:db8::9]:51234 > [2001:db8::1]:22 on eth0 by ssh#2 (20-ssh.toml:14), from set:dev, \
                    ssh.service: no";
        assert_eq!(words(&event), line);
        event = Event {
            protocol: Some(Protocol::ICMP),
            ports: None,
            icmp: Some((8, 0)),
            direction: Direction::Egress,
            verdict: Verdict::WouldDeny,
            decider: Decider::Default,
            place: None,
            text: String::new(),
            actor: None,
            ..event
        };
        let line = "would deny: icmp type 8 code 0 2001:db8::9 > 2001:db8::1 on eth0 by default, to set:dev";
        assert_eq!(words(&event), line);
    }
}
