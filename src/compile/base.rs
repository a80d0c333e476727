//! What every packet meets before policy: loopback, connection tracking, guards and essentials (`policy.md` section 3.1).
//! The order of the rules is a safety property: established flows first, so that no policy can cut them; guards next, so that no
//! policy can open them; neighbour discovery before any policy, since without it IPv6 has not even a failsafe.

use std::collections::BTreeMap;

use super::emit::among;
use crate::net::addr::Family;
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::nft::ir::{Chain, ElementKey, Elements, Rule, SetRef, Statement, Value, Verdict, ct_state};
use crate::nft::key::{Datum, Key, Side};

/// `ARPHRD_LOOPBACK` (include/uapi/linux/if_arp.h): the device, whatever its name.
const LOOPBACK_TYPE: u16 = 772;
/// RFC 4861 section 7.1: discovery from beyond the link has a smaller hop limit and is not to be believed.
const DISCOVERY_HOP_LIMIT: u8 = 255;

/// A rule from statements, a verdict and a comment.
pub(super) fn rule(statements: Vec<Statement>, verdict: Verdict, comment: &str) -> Rule {
    let mut statements = statements;
    statements.push(Statement::Verdict(verdict));
    Rule { statements, comment: Some(comment.to_owned()) }
}

fn counted(mut statements: Vec<Statement>, verdict: Verdict, comment: &str) -> Rule {
    statements.push(Statement::Counter);
    rule(statements, verdict, comment)
}

fn is(key: Key, value: impl Into<Datum>) -> Statement {
    Statement::Match { key, negated: false, value: Value::Is(value.into()) }
}

fn within(key: Key, start: impl Into<Datum>, length: u8) -> Statement {
    Statement::Match { key, negated: false, value: Value::Prefix(start.into(), length) }
}

fn vmap(key: Key, elements: impl IntoIterator<Item = (Datum, Verdict)>) -> Statement {
    let elements: BTreeMap<ElementKey, Option<Verdict>> =
        elements.into_iter().map(|(value, verdict)| (ElementKey::of([value]), Some(verdict))).collect();
    Statement::Vmap { keys: vec![key], map: SetRef::Anonymous(Elements::Keys(elements)) }
}

/// The name of the chain with the essentials of a direction.
pub(super) const fn essentials_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "essential_in",
        Direction::Egress => "essential_out",
    }
}

/// The rules at the start of `input` or `output`. `deny` is the verdict of the guards: drop, or accept under node-wide audit.
pub(super) fn preamble(direction: Direction, drop_invalid: bool, deny: &Verdict) -> Vec<Rule> {
    let side = match direction {
        Direction::Ingress => Side::Source,
        Direction::Egress => Side::Destination,
    };
    let mut rules = vec![rule(vec![is(Key::InterfaceType(side), LOOPBACK_TYPE)], Verdict::Accept, "loopback")];
    let followed = [ct_state::ESTABLISHED, ct_state::RELATED].map(|state| (Datum::from(state), Verdict::Accept));
    let states = vmap(Key::CtState, followed);
    rules.push(Rule { statements: vec![states], comment: Some("established flows".to_owned()) });
    if drop_invalid {
        let invalid = Statement::Match { key: Key::CtState, negated: false, value: Value::Flags(ct_state::INVALID) };
        rules.push(counted(vec![invalid], deny.clone(), "conntrack state invalid"));
    }
    if direction == Direction::Ingress {
        // CVE-2020-8558: with route_localnet set, neighbours reach what listens on 127.0.0.1 only.
        for side in [Side::Destination, Side::Source] {
            let v4 = within(Key::IpAddr(Family::V4, side), 0x7f00_0000u32, 8);
            rules.push(counted(vec![v4], deny.clone(), "loopback address from outside"));
            let v6 = is(Key::IpAddr(Family::V6, side), 1u128);
            rules.push(counted(vec![v6], deny.clone(), "loopback address from outside"));
        }
    }
    let jump = Verdict::Jump(essentials_name(direction).to_owned());
    let carriers = [Protocol::ICMP, Protocol::UDP, Protocol::ICMPV6];
    let carriers = carriers.map(|protocol| (Datum::from(protocol.0), jump.clone()));
    rules.push(Rule { statements: vec![vmap(Key::L4Proto, carriers)], comment: Some("essentials".to_owned()) });
    rules
}

/// What a host cannot do without, whatever its policy.
pub(super) fn essentials(direction: Direction) -> Chain {
    let types = |numbers: &[u8]| -> RangeSet<u8> { numbers.iter().map(|number| (*number, *number)).collect() };
    let ports = |source: u16, destination: u16| {
        [Side::Source, Side::Destination]
            .into_iter()
            .zip([source, destination])
            .map(|(side, port)| is(Key::Port(Some(Protocol::UDP), side), port))
    };
    let accept = |statements: Vec<Statement>, comment: &str| counted(statements, Verdict::Accept, comment);
    let (discovery, membership): (&[u8], &[u8]) = match direction {
        // Router and neighbour solicitations and advertisements; multicast listener queries and reports.
        Direction::Ingress => (&[133, 134, 135, 136], &[130, 131, 132, 143]),
        Direction::Egress => (&[133, 135, 136], &[131, 132, 143]),
    };
    let v4 = is(Key::NfProto, 2u8);
    let mut dhcp = vec![v4];
    let mut dhcp6 = Vec::new();
    match direction {
        Direction::Ingress => {
            dhcp.extend(ports(67, 68));
            dhcp6.extend(ports(547, 546));
            dhcp6.push(within(Key::IpAddr(Family::V6, Side::Source), 0xfe80u128 << 112, 10));
        }
        Direction::Egress => {
            dhcp.extend(ports(68, 67));
            dhcp6.push(is(Key::NfProto, 10u8));
            dhcp6.extend(ports(546, 547));
        }
    }
    let hop_limit = is(Key::HopLimit, DISCOVERY_HOP_LIMIT);
    let rules = vec![
        accept(vec![among(vec![Key::Icmpv6Type], &types(discovery)), hop_limit], "neighbour discovery (RFC 4861)"),
        accept(vec![among(vec![Key::Icmpv6Type], &types(membership))], "multicast listener discovery (RFC 3810)"),
        accept(vec![is(Key::IcmpType, 3u8), is(Key::IcmpCode, 4u8)], "path MTU discovery (RFC 1191)"),
        accept(vec![is(Key::Icmpv6Type, 2u8)], "path MTU discovery (RFC 8201)"),
        accept(dhcp, "DHCPv4 client (RFC 2131)"),
        accept(dhcp6, "DHCPv6 client (RFC 8415)"),
    ];
    Chain { base: None, rules }
}
