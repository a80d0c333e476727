//! One flat rule -> the statements that test it.

use super::flat::{Flat, FlatCgroups, FlatL4, FlatProcess, Peer, PeerRanges};
use crate::net::addr::{AddrSet, Family, prefix_of_v4, prefix_of_v6};
use crate::net::protocol::{IcmpSet, PortSet, Protocol};
use crate::net::range::{Point, RangeSet};
use crate::nft::ir::{ElementKey, Elements, Reject, Ruleset, Set, SetRef, Statement, Value};
use crate::nft::key::{Datum, Key, Side};

/// The statements that hold for exactly the packets of the flat rule, cheapest first. Sets that they name are added to
/// the ruleset.
pub(super) fn conditions(flat: &Flat, ruleset: &mut Ruleset) -> Vec<Statement> {
    let mut statements = Vec::new();
    let said_by_icmp = matches!(flat.l4, FlatL4::Icmp(_) | FlatL4::Icmpv6(_));
    if let (Some(family), None, None, false) = (flat.family, &flat.from, &flat.to, said_by_icmp) {
        statements.push(Statement::Match { key: Key::NfProto, negated: false, value: Value::Is(nfproto(family)) });
    }
    statements.extend(transport(&flat.l4, flat.source_ports.as_ref()));
    for (peer, side) in [(&flat.from, Side::Source), (&flat.to, Side::Destination)] {
        if let Some(peer) = peer {
            statements.push(address(peer, side, ruleset));
        }
    }
    if let Some(process) = &flat.process {
        statements.extend(sender(process, ruleset));
    }
    statements
}

/// The process that sends the packet.
fn sender(process: &FlatProcess, ruleset: &mut Ruleset) -> Vec<Statement> {
    let mut statements = Vec::new();
    let accounts = [(Key::SocketUser, &process.users), (Key::SocketGroup, &process.groups)];
    statements.extend(accounts.into_iter().filter_map(|(key, ids)| Some(among(vec![key], ids.as_ref()?))));
    if let Some(FlatCgroups { set, level, ids }) = &process.cgroups {
        let elements = ids.iter().map(|id| (ElementKey::of([Datum::from_number(u128::from(*id), 8)]), None)).collect();
        let elements = Elements::Keys(elements);
        let key = vec![Key::SocketCgroup(*level).data_type()];
        ruleset.sets.entry(set.clone()).or_insert(Set { key, interval: false, map: false, dynamic: None, elements });
        let keys = vec![Key::SocketCgroup(*level)];
        statements.push(Statement::Lookup { keys, negated: false, set: SetRef::Named(set.clone()) });
    }
    statements
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6` (include/uapi/linux/netfilter.h).
fn nfproto(family: Family) -> Datum {
    Datum::from(match family {
        Family::V4 => 2u8,
        Family::V6 => 10u8,
    })
}

fn transport(l4: &FlatL4, source_ports: Option<&PortSet>) -> Vec<Statement> {
    let mut statements = Vec::new();
    // The one protocol that the rule is about, so that ports read "tcp dport" instead of "th dport".
    let mut protocol = None;
    match l4 {
        FlatL4::Any => {}
        FlatL4::Protocols(protocols) => {
            protocol = protocols.only().map(Protocol);
            if source_ports.is_none() || protocol.is_none() {
                statements.push(among(vec![Key::L4Proto], protocols));
            }
        }
        FlatL4::Ports(ports) => match ports.first_key_value() {
            Some((only, ports_of)) if ports.len() == 1 => {
                protocol = Some(*only);
                statements.push(among(vec![Key::Port(Some(*only), Side::Destination)], ports_of));
            }
            _ => {
                let elements = ports
                    .iter()
                    .flat_map(|(protocol, set)| {
                        let number = Datum::from(protocol.0);
                        set.ranges().iter().map(move |(start, end)| {
                            ElementKey(vec![(number, number), (Datum::from(*start), Datum::from(*end))])
                        })
                    })
                    .map(|key| (key, None))
                    .collect();
                statements.push(Statement::Lookup {
                    keys: vec![Key::L4Proto, Key::Port(None, Side::Destination)],
                    negated: false,
                    set: SetRef::Anonymous(Elements::Keys(elements)),
                });
            }
        },
        FlatL4::Icmp(types) => statements.push(icmp(Key::IcmpType, Key::IcmpCode, types)),
        FlatL4::Icmpv6(types) => statements.push(icmp(Key::Icmpv6Type, Key::Icmpv6Code, types)),
    }
    if let Some(ports) = source_ports {
        statements.push(among(vec![Key::Port(protocol, Side::Source)], ports));
    }
    statements
}

/// ICMP types, with codes only where not all codes are meant.
fn icmp(kind: Key, code: Key, types: &IcmpSet) -> Statement {
    if types.values().all(RangeSet::is_full) {
        return among(vec![kind], &types.keys().map(|kind| (*kind, *kind)).collect::<RangeSet<u8>>());
    }
    let elements = types
        .iter()
        .flat_map(|(number, codes)| {
            let number = Datum::from(*number);
            codes
                .ranges()
                .iter()
                .map(move |(start, end)| ElementKey(vec![(number, number), (Datum::from(*start), Datum::from(*end))]))
        })
        .map(|key| (key, None))
        .collect();
    Statement::Lookup { keys: vec![kind, code], negated: false, set: SetRef::Anonymous(Elements::Keys(elements)) }
}

/// One key against a set of numbers: a comparison when it is one value or one range, else an anonymous set.
pub(super) fn among<T: Point + Into<Datum>>(keys: Vec<Key>, values: &RangeSet<T>) -> Statement {
    if let ([key], [(start, end)]) = (keys.as_slice(), values.ranges()) {
        let value =
            if start == end { Value::Is((*start).into()) } else { Value::Range((*start).into(), (*end).into()) };
        return Statement::Match { key: *key, negated: false, value };
    }
    let elements =
        values.ranges().iter().map(|(start, end)| (ElementKey(vec![((*start).into(), (*end).into())]), None)).collect();
    Statement::Lookup { keys, negated: false, set: SetRef::Anonymous(Elements::Keys(elements)) }
}

fn address(peer: &Peer, side: Side, ruleset: &mut Ruleset) -> Statement {
    let (family, elements) = match &peer.addresses {
        PeerRanges::V4(ranges) => (Family::V4, Elements::V4(ranges.clone())),
        PeerRanges::V6(ranges) => (Family::V6, Elements::V6(ranges.clone())),
    };
    let key = Key::IpAddr(family, side);
    let Some(name) = &peer.set else {
        return match single(&peer.addresses) {
            Some(value) => Statement::Match { key, negated: false, value },
            None => Statement::Lookup { keys: vec![key], negated: false, set: SetRef::Anonymous(elements) },
        };
    };
    let name = set_name(name, &elements);
    ruleset.sets.entry(name.clone()).or_insert_with(|| Set {
        key: vec![key.data_type()],
        interval: elements.needs_interval(),
        map: false,
        dynamic: None,
        elements,
    });
    Statement::Lookup { keys: vec![key], negated: false, set: SetRef::Named(name) }
}

/// The sets in the kernel that hold these addresses under a name, one for each family that has some, and what is in each.
pub fn address_sets(name: &str, addresses: &AddrSet) -> impl Iterator<Item = (String, Elements)> {
    let both = [Elements::V4(addresses.v4.clone()), Elements::V6(addresses.v6.clone())];
    both.into_iter().filter(|elements| !elements.is_empty()).map(|elements| (set_name(name, &elements), elements))
}

/// Hosts go into a hash set and prefixes into an interval set, whose elements cost a walk of the tree. The kernel cannot turn one into
/// the other, so they have different names.
fn set_name(name: &str, elements: &Elements) -> String {
    let hosts = if elements.needs_interval() { "" } else { "/hosts" };
    let family = if matches!(elements, Elements::V6(_)) { "6" } else { "4" };
    format!("{name}{hosts}_{family}")
}

/// One literal address, prefix or range, which needs no set.
fn single(addresses: &PeerRanges) -> Option<Value> {
    match addresses {
        PeerRanges::V4(ranges) => match *ranges.ranges() {
            [(start, end)] => Some(match prefix_of_v4(start, end) {
                Some(net) if net.prefix_len() < 32 => Value::Prefix(start.into(), net.prefix_len()),
                Some(_) => Value::Is(start.into()),
                None => Value::Range(start.into(), end.into()),
            }),
            _ => None,
        },
        PeerRanges::V6(ranges) => match *ranges.ranges() {
            [(start, end)] => Some(match prefix_of_v6(start, end) {
                Some(net) if net.prefix_len() < 128 => Value::Prefix(start.into(), net.prefix_len()),
                Some(_) => Value::Is(start.into()),
                None => Value::Range(start.into(), end.into()),
            }),
            _ => None,
        },
    }
}

/// What a reject needs: TCP is answered with a reset, everything else with ICMP. `None` when the flat rule has no packet
/// of that kind.
pub(super) fn reject_parts(flat: &Flat) -> Vec<(Flat, Reject)> {
    let with = |l4: FlatL4| Flat { l4, ..flat.clone() };
    let tcp = Protocol::TCP.0;
    match &flat.l4 {
        FlatL4::Any => vec![
            (with(FlatL4::Protocols(RangeSet::single(tcp))), Reject::TcpReset),
            (flat.clone(), Reject::AdminProhibited),
        ],
        FlatL4::Protocols(protocols) if protocols.contains(tcp) => {
            let rest = protocols.difference(&RangeSet::single(tcp));
            let mut parts = vec![(with(FlatL4::Protocols(RangeSet::single(tcp))), Reject::TcpReset)];
            if !rest.is_empty() {
                parts.push((with(FlatL4::Protocols(rest)), Reject::AdminProhibited));
            }
            parts
        }
        FlatL4::Ports(ports) if ports.contains_key(&Protocol::TCP) => {
            let (of_tcp, rest): (Vec<_>, Vec<_>) =
                ports.clone().into_iter().partition(|(protocol, _)| *protocol == Protocol::TCP);
            let mut parts = vec![(with(FlatL4::Ports(of_tcp.into_iter().collect())), Reject::TcpReset)];
            if !rest.is_empty() {
                parts.push((with(FlatL4::Ports(rest.into_iter().collect())), Reject::AdminProhibited));
            }
            parts
        }
        _ => vec![(flat.clone(), Reject::AdminProhibited)],
    }
}
