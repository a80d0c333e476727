//! What a survey found, in words.

use ipnet::IpNet;

use super::State;
use super::api::Api;
use super::difference::{Behind, Pair, PolicyDifference};
use super::survey::{Group, Survey};
use crate::exposure::contrast::{Contrast, Traffic};
use crate::exposure::peers::Peer;
use crate::net::interface::Direction;
use crate::net::protocol::{PortSet, Protocol, icmp_type_name, icmpv6_type_name};

/// Sets of more prefixes than these are only named.
const MOST_PREFIXES: usize = 2;
/// More ranges of ports than these are only counted.
const MOST_PORTS: usize = 6;

/// "512 nodes: 509 in force, 2 degraded, 1 without nodewall; 3 differ in what their policy means".
pub fn whole(survey: &Survey) -> String {
    let Survey { nodes, states, differ, behind, groups, .. } = survey;
    if *nodes == 0 {
        return "no nodes".to_owned();
    }
    let words = [
        (State::InForce, "in force"),
        (State::Degraded, "degraded"),
        (State::NotReady, "not ready"),
        (State::Without, "without nodewall"),
    ];
    let counts: Vec<String> =
        words.iter().filter_map(|(state, word)| states.get(state).map(|count| format!("{count} {word}"))).collect();
    let plural = if *nodes == 1 { "" } else { "s" };
    let mut text = format!("{nodes} node{plural}: {}", counts.join(", "));
    if !groups.is_empty() {
        text += &match differ {
            0 => "; none differs in what its policy means".to_owned(),
            1 => "; 1 differs in what its policy means".to_owned(),
            differ => format!("; {differ} differ in what their policy means"),
        };
    }
    match behind {
        0 => {}
        1 => text += "; 1 has something else in force than the API says for it",
        behind => text += &format!("; {behind} have something else in force than the API says for them"),
    }
    text
}

/// How a group differs from the one that stands for its kind of nodes, line by line.
pub fn difference(group: &Group, api: &Api) -> Vec<String> {
    let Some(difference) = &group.difference else { return Vec::new() };
    let mut lines = Vec::new();
    if group.hash.is_none() {
        lines.push("does not say what is in force".to_owned());
        return lines;
    }
    let pair = |what: &str, pair: &Option<Pair>| {
        pair.as_ref().map(|(here, there)| {
            let shown = |side: &Option<String>| side.clone().unwrap_or_else(|| "not known".to_owned());
            format!("{what} ({} here, {} there)", shown(here), shown(there))
        })
    };
    lines.extend(pair("has another mode", &difference.mode));
    lines.extend(difference.policies.iter().map(|policy| policy_line(policy, api)));
    lines.extend(pair("has other defaults: what is done with packets that no policy decides", &difference.defaults));
    lines.extend(pair("has another failsafe", &difference.failsafe));
    if difference.is_of_no_part() && difference.untold == 0 {
        lines.push("has the same policies in another order, or with another default of their tiers".to_owned());
    } else if difference.untold > 0 {
        let more = difference.untold;
        lines.push(format!("{more} more policies are not told apart: there is no room for them in a HostState"));
    }
    lines
}

fn policy_line(policy: &PolicyDifference, api: &Api) -> String {
    let PolicyDifference { name, here, there, api: apis, is_apis } = policy;
    let no_object = "which is in no object of the API: a local file, or converted";
    match (here, there) {
        (Some(here), None) => match (apis, is_apis.0) {
            (None, _) if api.known => format!("has policy {name} besides, {no_object}"),
            (Some(apis), false) => {
                format!(
                    "has policy {name} besides, in an older or local version (its hash {here}; the API's is {apis})"
                )
            }
            _ => format!("has policy {name} besides"),
        },
        (None, Some(there)) => match (apis, is_apis.1) {
            (None, _) if api.known => format!("lacks policy {name}, {no_object}"),
            (Some(apis), false) => {
                format!(
                    "lacks policy {name}, of which the others have an older or local version (its hash {there}; the API's is {apis})"
                )
            }
            _ => format!("lacks policy {name}"),
        },
        (Some(here), Some(there)) => match (apis, is_apis) {
            (Some(apis), (false, true)) => {
                format!("has an older or local version of policy {name} (its hash {here}; the API's is {apis})")
            }
            (Some(apis), (true, false)) => {
                format!("has the API's version of policy {name} ({apis}), the others an older or local one ({there})")
            }
            (Some(apis), _) => {
                format!("has another version of policy {name} (its hash {here}; {there} there; the API's is {apis})")
            }
            (None, _) => format!("has another version of policy {name} (its hash {here}; {there} there)"),
        },
        (None, None) => format!("policy {name}"),
    }
}

/// What nodes of a group do not have as the API says it for them.
pub fn behind(behind: &Behind) -> String {
    let Behind { name, here, api } = behind;
    match here {
        None => format!("policy {name} of the API is for them and not in force"),
        Some(here) => {
            format!("policy {name} is in force in an older or local version (its hash {here}; the API's is {api})")
        }
    }
}

/// "from set dev (10.0.9.0/24) to tcp/8888 on mgmt: allowed in group 1, denied here".
pub fn contrast(contrast: &Contrast, reference: usize, api: &Api) -> String {
    let Contrast { direction, what, peers, first_allows, zones, addresses: _ } = contrast;
    let peers: Vec<String> = peers.iter().map(|peer| peer_name(peer, api)).collect();
    let (peers, what, zones) = (peers.join(", "), traffic(what), zones.join(", "));
    let there = format!("in group {}", reference + 1);
    let verdict = match first_allows {
        true => format!("allowed {there}, denied here"),
        false => format!("denied {there}, allowed here"),
    };
    match direction {
        Direction::Ingress => format!("from {peers} to {what} on {zones}: {verdict}"),
        Direction::Egress => format!("to {what} of {peers} by {zones}: {verdict}"),
    }
}

fn peer_name(peer: &Peer, api: &Api) -> String {
    let name = match peer {
        Peer::Set(name) => name,
        Peer::Prefix(net) => return prefix(net),
        other => return other.to_string(),
    };
    let cidrs = api.policy.sets.get(name).map(|set| &set.cidrs[..]).unwrap_or_default();
    match cidrs.len() {
        1..=MOST_PREFIXES => {
            let shown: Vec<String> = cidrs.iter().map(prefix).collect();
            format!("set {name} ({})", shown.join(", "))
        }
        _ => format!("set {name}"),
    }
}

/// An address without the length of the whole of it.
fn prefix(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// "tcp/8888, udp/53"; "any port" where all of TCP and UDP is meant.
pub fn traffic(what: &[Traffic]) -> String {
    let all = |protocol: Protocol| {
        what.iter().any(|one| matches!(one, Traffic::Ports(of, ports) if *of == protocol && is_all(ports)))
    };
    if all(Protocol::TCP) && all(Protocol::UDP) && what.contains(&Traffic::Others) {
        return "anything".to_owned();
    }
    what.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn is_all(ports: &PortSet) -> bool {
    ports.union(&PortSet::single(0)).is_full()
}

fn one(traffic: &Traffic) -> String {
    match traffic {
        Traffic::Ports(protocol, ports) if is_all(ports) => name(*protocol),
        Traffic::Ports(protocol, ports) => {
            let range = |(first, last): &(u16, u16)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            let shown: Vec<String> = ports.ranges().iter().take(MOST_PORTS).map(range).collect();
            let more = match ports.ranges().len() - shown.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}/{}{more}", name(*protocol), shown.join(","))
        }
        Traffic::Icmp(protocol, kind) => {
            let known = if *protocol == Protocol::ICMP { icmp_type_name(*kind) } else { icmpv6_type_name(*kind) };
            let kind = known.map_or_else(|| kind.to_string(), str::to_owned);
            format!("{}/{kind}", name(*protocol))
        }
        Traffic::Protocol(protocol) => name(*protocol),
        Traffic::Others => "other protocols".to_owned(),
    }
}

fn name(protocol: Protocol) -> String {
    protocol.name().map_or_else(|| format!("protocol {}", protocol.0), str::to_owned)
}
