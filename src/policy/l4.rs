//! Protocol, ports, services, ICMP and `not` of one rule -> the set of transport headers that it matches.

use std::collections::BTreeMap;

use super::model::{IcmpMatch, Not, Rule, ServicePort};
use crate::net::addr::Family;
use crate::net::protocol::{IcmpSet, L4Detail, L4Match, PortSet, Protocol};
use crate::net::range::RangeSet;

/// What the rule matches of the transport header, its services given as what they listen on.
pub(super) fn l4_of_rule(rule: &Rule, services: Option<&[ServicePort]>) -> L4Match {
    let ports = match (&rule.ports, rule.to.as_ref().and_then(|to| to.ports.as_ref())) {
        (Some(ports), _) | (None, Some(ports)) => Some(ports),
        (None, None) => None,
    };
    let matched = match services {
        Some(services) => l4_of_services(services),
        None => l4_of_parts(rule.protocol, ports, rule.icmp.as_ref(), rule.family),
    };
    match &rule.not {
        Some(not) => subtract(matched, not, rule.protocol, rule.family),
        None => matched,
    }
}

/// The union of services.
pub(super) fn l4_of_services(services: &[ServicePort]) -> L4Match {
    let mut protocols: BTreeMap<Protocol, L4Detail> = BTreeMap::new();
    for service in services {
        let (protocol, detail) = match service {
            ServicePort::Ports(protocol, ports) => (*protocol, L4Detail::Ports(ports.clone())),
            ServicePort::Icmp(protocol, types) => (*protocol, L4Detail::Icmp(types.clone())),
            ServicePort::Protocol(protocol) => (*protocol, L4Detail::All),
        };
        let joined = match protocols.remove(&protocol) {
            Some(earlier) => unite(earlier, detail),
            None => detail,
        };
        protocols.insert(protocol, joined);
    }
    L4Match::Only(protocols)
}

/// What answers to such packets look like: each a match and the source ports with it. Of ICMP, only what asks has answers.
pub(super) fn answers(matched: &L4Match) -> Vec<(L4Match, Option<PortSet>)> {
    let L4Match::Only(protocols) = matched else { return vec![(L4Match::Any, None)] };
    let mut by_ports: BTreeMap<Option<PortSet>, BTreeMap<Protocol, L4Detail>> = BTreeMap::new();
    for (protocol, detail) in protocols {
        let (ports, answer) = match detail {
            L4Detail::All => (None, L4Detail::All),
            L4Detail::Ports(ports) => (Some(ports.clone()), L4Detail::All),
            L4Detail::Icmp(types) => {
                let answers = types.keys().filter_map(|kind| icmp_answer(*protocol, *kind));
                (None, L4Detail::Icmp(answers.map(|kind| (kind, RangeSet::full())).collect()))
            }
        };
        if !matches!(&answer, L4Detail::Icmp(types) if types.is_empty()) {
            by_ports.entry(ports).or_default().insert(*protocol, answer);
        }
    }
    by_ports.into_iter().map(|(ports, protocols)| (L4Match::Only(protocols), ports)).collect()
}

/// The type that answers a type: echoes and RFC 792's other questions; echoes and node information (RFC 4620) of ICMPv6.
fn icmp_answer(protocol: Protocol, kind: u8) -> Option<u8> {
    match (protocol, kind) {
        (Protocol::ICMP, 8) => Some(0),
        (Protocol::ICMP, 13 | 15 | 17) | (Protocol::ICMPV6, 128 | 139) => Some(kind + 1),
        _ => None,
    }
}

fn l4_of_parts(
    protocol: Option<Protocol>,
    ports: Option<&PortSet>,
    icmp: Option<&IcmpMatch>,
    family: Option<Family>,
) -> L4Match {
    let only = |protocol: Protocol, detail: L4Detail| L4Match::Only([(protocol, detail)].into());
    match (protocol, ports, icmp) {
        (None, _, None) => L4Match::Any,
        (Some(protocol), Some(ports), _) => only(protocol, L4Detail::Ports(ports.clone())),
        (Some(protocol), None, None) => only(protocol, L4Detail::All),
        (_, _, Some(icmp)) => L4Match::Only(icmp_details(icmp, protocol, family)),
    }
}

/// `icmp {}` by protocol: of the two families those that the rule's protocol and `family` leave.
fn icmp_details(icmp: &IcmpMatch, protocol: Option<Protocol>, family: Option<Family>) -> BTreeMap<Protocol, L4Detail> {
    [(Protocol::ICMP, Family::V4, &icmp.v4), (Protocol::ICMPV6, Family::V6, &icmp.v6)]
        .into_iter()
        .filter(|(number, version, types)| {
            !types.is_empty()
                && protocol.is_none_or(|wanted| wanted == *number)
                && family.is_none_or(|wanted| wanted == *version)
        })
        .map(|(number, _, types)| (number, L4Detail::Icmp(types.clone())))
        .collect()
}

fn unite(left: L4Detail, right: L4Detail) -> L4Detail {
    match (left, right) {
        (L4Detail::Ports(left), L4Detail::Ports(right)) => L4Detail::Ports(left.union(&right)),
        (L4Detail::Icmp(mut left), L4Detail::Icmp(right)) => {
            for (number, codes) in right {
                let joined = left.get(&number).map_or_else(|| codes.clone(), |earlier| earlier.union(&codes));
                left.insert(number, joined);
            }
            L4Detail::Icmp(left)
        }
        // Ports and ICMP types never share a protocol; what is left has the whole protocol on one side.
        _ => L4Detail::All,
    }
}

/// Takes away what `not` names. What it names is positive, so a packet whose header cannot be read is never taken away by
/// ports or types, and never matched by what is left of them.
fn subtract(matched: L4Match, not: &Not, protocol: Option<Protocol>, family: Option<Family>) -> L4Match {
    let mut protocols = match matched {
        L4Match::Any => (0..=u8::MAX).map(|number| (Protocol(number), L4Detail::All)).collect(),
        L4Match::Only(protocols) => protocols,
    };
    if let Some(unwanted) = not.protocol {
        protocols.remove(&unwanted);
    }
    if let (Some(ports), Some(protocol)) = (&not.ports, protocol) {
        protocols.entry(protocol).and_modify(|detail| {
            let before = match &*detail {
                L4Detail::Ports(before) => before.clone(),
                _ => PortSet::full(),
            };
            *detail = L4Detail::Ports(before.difference(ports));
        });
    }
    if let Some(icmp) = &not.icmp {
        for (number, unwanted) in icmp_details(icmp, protocol, family) {
            let L4Detail::Icmp(unwanted) = unwanted else { continue };
            protocols.entry(number).and_modify(|detail| {
                let before = match &*detail {
                    L4Detail::Icmp(before) => before.clone(),
                    _ => (0..=u8::MAX).map(|kind| (kind, RangeSet::full())).collect(),
                };
                *detail = L4Detail::Icmp(icmp_difference(before, &unwanted));
            });
        }
    }
    L4Match::Only(protocols)
}

fn icmp_difference(from: IcmpSet, unwanted: &IcmpSet) -> IcmpSet {
    from.into_iter()
        .map(|(kind, codes)| {
            let left = unwanted.get(&kind).map_or_else(|| codes.clone(), |gone| codes.difference(gone));
            (kind, left)
        })
        .filter(|(_, codes)| !codes.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_from_the_ports_that_were_asked_and_echoes_from_nowhere_in_particular() {
        let only = |details: &[(Protocol, L4Detail)]| L4Match::Only(details.iter().cloned().collect());
        let ports = |port| L4Detail::Ports(PortSet::single(port));
        let types = |numbers: &[u8]| L4Detail::Icmp(numbers.iter().map(|kind| (*kind, RangeSet::full())).collect());
        let asked = only(&[
            (Protocol::TCP, ports(53)),
            (Protocol::UDP, ports(53)),
            (Protocol::SCTP, ports(36_412)),
            (Protocol(50), L4Detail::All),
            (Protocol::ICMP, types(&[8, 3])),
            (Protocol::ICMPV6, types(&[1])),
        ]);
        assert_eq!(
            answers(&asked),
            [
                (only(&[(Protocol::ICMP, types(&[0])), (Protocol(50), L4Detail::All)]), None),
                (only(&[(Protocol::TCP, L4Detail::All), (Protocol::UDP, L4Detail::All)]), Some(PortSet::single(53))),
                (only(&[(Protocol::SCTP, L4Detail::All)]), Some(PortSet::single(36_412))),
            ]
        );
        assert_eq!(answers(&L4Match::Any), [(L4Match::Any, None)]);
    }
}
