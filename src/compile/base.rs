//! What every packet meets before policy: loopback, connection tracking, guards and essentials (`policy.md` section 3.1).
//! The order of the rules is a safety property: established flows first, so that no policy can cut them; guards next, so that no
//! policy can open them; neighbour discovery before any policy, since without it IPv6 has not even a failsafe.

use std::collections::BTreeMap;

use super::emit::among;
use super::point::Point;
use crate::net::addr::Family;
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::nft::ir::{Chain, ElementKey, Elements, Rule, SetRef, Statement, Value, Verdict, ct_state};
use crate::nft::key::{Datum, Key, Side};
use crate::policy::guards::Withheld;
use crate::policy::model::{Mode, Stage};

/// `ARPHRD_LOOPBACK` (include/uapi/linux/if_arp.h): the device, whatever its name.
const LOOPBACK_TYPE: u16 = 772;
/// RoCEv2's port (`ROCE_V2_UDP_DPORT`, include/rdma/ib_verbs.h).
const ROCE_V2_PORT: u16 = 4791;
/// RFC 4861 section 7.1: discovery from beyond the link has a smaller hop limit and is not to be believed.
const DISCOVERY_HOP_LIMIT: u8 = 255;
/// ICMPv6 router advertisement (RFC 4861 section 4.2).
const ROUTER_ADVERTISEMENT: u8 = 134;
/// The chains of essentials that guards withhold from some interfaces ([`Withheld`]).
const ESSENTIAL_DHCP: &str = "essential_dhcp";
const ESSENTIAL_ADVERTISEMENTS: &str = "essential_advertisements";

/// The comment of the rule against what connection tracking calls invalid.
pub(super) const INVALID: &str = "conntrack state invalid";
/// The comment of the rules against addresses of 127.0.0.0/8 and ::1 from elsewhere.
pub(super) const LOOPBACK_ADDRESS: &str = "loopback address from outside";

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
    Statement::Vmap { keys: vec![key], map: SetRef::Anonymous(Elements::Keys(elements.into())) }
}

/// The name of the chain with the essentials of a point.
pub(super) const fn essentials_name(point: Point) -> &'static str {
    match (point.stage, point.direction) {
        (Stage::Forward, _) => "essential_forward",
        (_, Direction::Ingress) => "essential_in",
        (_, Direction::Egress) => "essential_out",
    }
}

/// What of the stages there are before this point, and of the packet mark by which they tell that they let a packet through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Marks {
    /// The bit.
    pub(super) bit: u32,
    /// Whether this is the first of our chains that a packet meets and others read the mark.
    pub(super) clear: bool,
    /// Whether an earlier stage may have set it.
    pub(super) read: bool,
}

/// The rules at the start of the first chain of a point, before any interface is looked at.
pub(super) fn preamble(point: Point, marks: Marks, drop_invalid: bool, deny: &Verdict) -> Vec<Rule> {
    let mut rules = Vec::new();
    if point.base(Mode::Enforce).is_none() {
        return rules;
    }
    let marked = Statement::Match { key: Key::Mark, negated: false, value: Value::Flags(marks.bit) };
    if marks.clear {
        // Nobody else tells our stages what to skip: a process with CAP_NET_RAW may set marks, too.
        let statements = vec![marked.clone(), Statement::MarkClear(marks.bit)];
        rules.push(Rule { statements, comment: Some("the mark is set by our stages only".to_owned()) });
    }
    let allowed = rule(vec![marked], Verdict::Accept, "allowed by an earlier stage");
    if point.stage != Stage::Forward {
        rules.push(loopback(point));
    }
    if marks.read && point.stage != Stage::Host {
        rules.push(allowed.clone());
    }
    if point.stage != Stage::Untracked {
        let followed = [ct_state::ESTABLISHED, ct_state::RELATED].map(|state| (Datum::from(state), Verdict::Accept));
        let states = vmap(Key::CtState, followed);
        rules.push(Rule { statements: vec![states], comment: Some("established flows".to_owned()) });
    }
    if point.stage == Stage::Host {
        rules.extend(guards(point, drop_invalid, deny));
        // What is dropped before anything else is dropped whatever an earlier stage said.
        if marks.read {
            rules.push(allowed);
        }
        rules.push(essentials_jump(point));
    }
    rules
}

/// What this host sends to itself.
pub(super) fn loopback(point: Point) -> Rule {
    rule(vec![is(Key::InterfaceType(point.side()), LOOPBACK_TYPE)], Verdict::Accept, "loopback")
}

/// What is dropped before any policy is asked.
pub(super) fn guards(point: Point, drop_invalid: bool, deny: &Verdict) -> Vec<Rule> {
    let mut rules = Vec::new();
    if drop_invalid && point.stage != Stage::Untracked {
        let invalid = Statement::Match { key: Key::CtState, negated: false, value: Value::Flags(ct_state::INVALID) };
        rules.push(counted(vec![invalid], deny.clone(), INVALID));
    }
    if point.direction == Direction::Ingress {
        // CVE-2020-8558: with route_localnet set, neighbours reach what listens on 127.0.0.1 only.
        for side in [Side::Destination, Side::Source] {
            let v4 = within(Key::IpAddr(Family::V4, side), 0x7f00_0000u32, 8);
            rules.push(counted(vec![v4], deny.clone(), LOOPBACK_ADDRESS));
            let v6 = is(Key::IpAddr(Family::V6, side), 1u128);
            rules.push(counted(vec![v6], deny.clone(), LOOPBACK_ADDRESS));
        }
    }
    rules
}

/// The visit to the essentials.
pub(super) fn essentials_jump(point: Point) -> Rule {
    let jump = Verdict::Jump(essentials_name(point).to_owned());
    let carriers: &[Protocol] = match point.stage {
        Stage::Forward => &[Protocol::ICMP, Protocol::ICMPV6],
        _ => &[Protocol::ICMP, Protocol::UDP, Protocol::ICMPV6],
    };
    let carriers = carriers.iter().map(|protocol| (Datum::from(protocol.0), jump.clone()));
    Rule { statements: vec![vmap(Key::L4Proto, carriers)], comment: Some("essentials".to_owned()) }
}

/// The visit to the essentials that are some only on other interfaces, where an interface has them.
pub(super) fn withheld_jump(has: Withheld) -> Option<Rule> {
    let jump = |chain: &str| Verdict::Jump(chain.to_owned());
    let dhcp = has.dhcp.then(|| (Datum::from(Protocol::UDP.0), jump(ESSENTIAL_DHCP)));
    let advertisements = has.advertisements.then(|| (Datum::from(Protocol::ICMPV6.0), jump(ESSENTIAL_ADVERTISEMENTS)));
    let carriers: Vec<_> = dhcp.into_iter().chain(advertisements).collect();
    let carried =
        || Rule { statements: vec![vmap(Key::L4Proto, carriers.clone())], comment: Some("essentials".to_owned()) };
    (!carriers.is_empty()).then(carried)
}

/// The chains of essentials that guards withhold from some interfaces.
pub(super) fn withheld_essentials(withheld: Withheld) -> Vec<(&'static str, Chain)> {
    let chain = |rules| Chain { base: None, rules };
    let dhcp = withheld.dhcp.then(|| (ESSENTIAL_DHCP, chain(dhcp_client(Direction::Ingress))));
    let advertisements = withheld.advertisements.then(|| {
        let (kind, hop_limit) = (is(Key::Icmpv6Type, ROUTER_ADVERTISEMENT), is(Key::HopLimit, DISCOVERY_HOP_LIMIT));
        let rule = counted(vec![kind, hop_limit], Verdict::Accept, "router discovery (RFC 4861)");
        (ESSENTIAL_ADVERTISEMENTS, chain(vec![rule]))
    });
    dhcp.into_iter().chain(advertisements).collect()
}

/// Leases that this host asks for.
fn dhcp_client(direction: Direction) -> Vec<Rule> {
    let ports = |source: u16, destination: u16| {
        [Side::Source, Side::Destination]
            .into_iter()
            .zip([source, destination])
            .map(|(side, port)| is(Key::Port(Some(Protocol::UDP), side), port))
    };
    let mut dhcp = vec![is(Key::NfProto, 2u8)];
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
    vec![
        counted(dhcp, Verdict::Accept, "DHCPv4 client (RFC 2131)"),
        counted(dhcp6, Verdict::Accept, "DHCPv6 client (RFC 8415)"),
    ]
}

/// What a host cannot do without, whatever its policy, but for what is withheld from some interfaces.
pub(super) fn essentials(point: Point, withheld: Withheld) -> Chain {
    let types = |numbers: &[u8]| -> RangeSet<u8> { numbers.iter().map(|number| (*number, *number)).collect() };
    let accept = |statements: Vec<Statement>, comment: &str| counted(statements, Verdict::Accept, comment);
    let path_mtu = vec![
        accept(vec![is(Key::IcmpType, 3u8), is(Key::IcmpCode, 4u8)], "path MTU discovery (RFC 1191)"),
        accept(vec![is(Key::Icmpv6Type, 2u8)], "path MTU discovery (RFC 8201)"),
    ];
    if point.stage == Stage::Forward {
        return Chain { base: None, rules: path_mtu };
    }
    let (discovery, membership): (&[u8], &[u8]) = match point.direction {
        // Router and neighbour solicitations and advertisements; multicast listener queries and reports.
        Direction::Ingress if withheld.advertisements => (&[133, 135, 136], &[130, 131, 132, 143]),
        Direction::Ingress => (&[133, ROUTER_ADVERTISEMENT, 135, 136], &[130, 131, 132, 143]),
        Direction::Egress => (&[133, 135, 136], &[131, 132, 143]),
    };
    let hop_limit = is(Key::HopLimit, DISCOVERY_HOP_LIMIT);
    let mut rules = vec![
        accept(vec![among(vec![Key::Icmpv6Type], &types(discovery)), hop_limit], "neighbour discovery (RFC 4861)"),
        accept(vec![among(vec![Key::Icmpv6Type], &types(membership))], "multicast listener discovery (RFC 3810)"),
    ];
    rules.extend(path_mtu);
    if point.direction == Direction::Egress || !withheld.dhcp {
        rules.extend(dhcp_client(point.direction));
    }
    if point.direction == Direction::Egress {
        // rdma_rxe spins when its packets are dropped on the way out. It sends from the kernel, where no socket has a user; what a
        // process sends to that port is left to the policy.
        let roce = is(Key::Port(Some(Protocol::UDP), Side::Destination), ROCE_V2_PORT);
        let of_process = Statement::Match { key: Key::SocketUser, negated: true, value: Value::Is(u32::MAX.into()) };
        rules.push(rule(vec![roce.clone(), of_process], Verdict::Return, "UDP of a process, whatever its port"));
        rules.push(accept(vec![roce], "Soft-RoCE is decided where it arrives"));
    }
    Chain { base: None, rules }
}
