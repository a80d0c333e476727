//! Ports that a rule lets in and that this host gives out by itself: to its own connections, or to Services of Kubernetes.

use super::effective::{Addresses, EffectiveRule};
use super::model::{Action, Stage};
use crate::net::ports::HostPorts;
use crate::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use crate::text::finding::{Code, Finding};

/// What there is to say about the ingress rules of a policy.
pub(super) fn clashes(stage: Stage, ingress: Option<&[EffectiveRule]>, ports: &HostPorts) -> Vec<Finding> {
    // What is forwarded, or rewritten by a DNAT first, does not come to a listener of this host by that port.
    if !matches!(stage, Stage::Host | Stage::Untracked) {
        return Vec::new();
    }
    let allowed = ingress.unwrap_or_default().iter().filter(|rule| rule.action == Action::Allow);
    allowed.flat_map(|rule| ephemeral(rule, ports).into_iter().chain(node_port(rule, ports))).collect()
}

/// Anyone may come to ports from which this host makes connections: to whatever socket happens to have one of them.
fn ephemeral(rule: &EffectiveRule, ports: &HostPorts) -> Option<Finding> {
    let given_out = ports.ephemeral.as_ref()?;
    let anyone = match &rule.from {
        Addresses::Any => true,
        Addresses::Literal(set) | Addresses::Named(_, set) => set.is_full(),
    };
    let clash = port_ranges(rule).find(|(_, open)| anyone && !open.intersection(given_out).is_empty());
    let (protocol, open) = clash?;
    let message = format!(
        "anyone may come to {}/{}, from which this host makes connections itself",
        protocol_name(protocol),
        words(&open.intersection(given_out))
    );
    let help = match open.only() {
        Some(port) => format!("give the rule `from`, or add {port} to net.ipv4.ip_local_reserved_ports"),
        None => "give the rule `from`: the peers that may come to whatever listens there".to_owned(),
    };
    let finding = Finding::warning(Code::EphemeralPort, &rule.place, message);
    Some(finding.label(format!("the ephemeral ports are {}", words(given_out))).help(help))
}

/// A listener on a port that Kubernetes may give to a Service: kube-proxy then takes its packets before this rule.
fn node_port(rule: &EffectiveRule, ports: &HostPorts) -> Option<Finding> {
    let (first, last) = ports.node_ports?;
    let range = PortSet::range(first, last);
    let clash = port_ranges(rule).find_map(|(protocol, open)| {
        let both = open.intersection(&range);
        // A rule for all of the range means the NodePorts themselves.
        (!both.is_empty() && both != range).then_some((protocol, both))
    });
    let (protocol, both) = clash?;
    let message = format!("{}/{} is in the NodePort range", protocol_name(protocol), words(&both));
    Some(
        Finding::warning(Code::NodePort, &rule.place, message)
            .label(format!("NodePorts are {first}-{last}"))
            .help("a Service that gets this port takes its packets: let the listener have another port; for a NodePort, write a policy of stage \"prednat\""),
    )
}

/// The ports that a rule names, by protocol; those of a protocol as a whole are not a choice of ports.
fn port_ranges(rule: &EffectiveRule) -> impl Iterator<Item = (Protocol, &PortSet)> {
    let protocols = match &rule.l4 {
        L4Match::Only(protocols) => Some(protocols.iter()),
        L4Match::Any => None,
    };
    protocols.into_iter().flatten().filter_map(|(protocol, detail)| match detail {
        L4Detail::Ports(ports) if !ports.is_full() => Some((*protocol, ports)),
        _ => None,
    })
}

fn protocol_name(protocol: Protocol) -> String {
    protocol.name().map_or_else(|| protocol.0.to_string(), str::to_owned)
}

/// Ports as people write them: "32768-60999", "5000, 30000".
fn words(ports: &PortSet) -> String {
    let range = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    // More are no help in a sentence.
    let mut all: Vec<String> = ports.ranges().iter().take(4).map(range).collect();
    if ports.ranges().len() > all.len() {
        all.push("...".to_owned());
    }
    all.join(", ")
}
