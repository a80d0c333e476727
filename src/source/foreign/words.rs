//! Words that several firewalls have in common: protocols, ICMP types, rates, prefixes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::cube::{IcmpTypes, icmp_types};
use crate::net::addr::AddrSet;
use crate::net::protocol::{ICMP_TYPES, ICMPV6_TYPES, PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::policy::model::Limit;

/// Protocols by the names of /etc/protocols where nft(8) has another one or none. Not `ipip`, which is 4 to one and 94 to the other.
const PROTOCOLS: &[(&str, u8)] = &[
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("ipencap", 4),
    ("ipv6", 41),
    ("rsvp", 46),
    ("l2tp", 115),
    ("ipcomp", 108),
    ("comp", 108),
    ("mh", 135),
    ("ipv6-mh", 135),
    ("mobility-header", 135),
    ("ospfigp", 89),
    ("etherip", 97),
];

/// The protocol of a name or number.
pub(super) fn protocol(text: &str) -> Option<Protocol> {
    let text = text.to_ascii_lowercase();
    if let Ok(number) = text.parse() {
        return Some(Protocol(number));
    }
    if text == "ipip" {
        return None;
    }
    let known = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, number)| Protocol(*number));
    known.or_else(|| Protocol::by_name(&text))
}

/// ICMP types with a code, by the names of iptables.
const CODES: &[(&str, u8, u8)] = &[
    ("network-unreachable", 3, 0),
    ("host-unreachable", 3, 1),
    ("protocol-unreachable", 3, 2),
    ("port-unreachable", 3, 3),
    ("fragmentation-needed", 3, 4),
    ("source-route-failed", 3, 5),
    ("network-unknown", 3, 6),
    ("host-unknown", 3, 7),
    ("network-prohibited", 3, 9),
    ("host-prohibited", 3, 10),
    ("tos-network-unreachable", 3, 11),
    ("tos-host-unreachable", 3, 12),
    ("communication-prohibited", 3, 13),
    ("host-precedence-violation", 3, 14),
    ("precedence-cutoff", 3, 15),
    ("network-redirect", 5, 0),
    ("host-redirect", 5, 1),
    ("tos-network-redirect", 5, 2),
    ("tos-host-redirect", 5, 3),
    ("ttl-zero-during-transit", 11, 0),
    ("ttl-zero-during-reassembly", 11, 1),
    ("ip-header-bad", 12, 0),
    ("required-option-missing", 12, 1),
];

/// ICMPv6 types with a code, by the names of ip6tables.
const CODES_V6: &[(&str, u8, u8)] = &[
    ("no-route", 1, 0),
    ("communication-prohibited", 1, 1),
    ("beyond-scope", 1, 2),
    ("address-unreachable", 1, 3),
    ("port-unreachable", 1, 4),
    ("failed-policy", 1, 5),
    ("reject-route", 1, 6),
    ("ttl-zero-during-transit", 3, 0),
    ("ttl-zero-during-reassembly", 3, 1),
    ("bad-header", 4, 0),
    ("unknown-header-type", 4, 1),
    ("unknown-option", 4, 2),
];

/// Other names of types in iptables, ip6tables and firewalld.
const OTHER_TYPES: &[(&str, u8)] = &[("ping", 8), ("pong", 0), ("ttl-exceeded", 11)];
const OTHER_TYPES_V6: &[(&str, u8)] = &[
    ("ping", 128),
    ("pong", 129),
    ("ttl-exceeded", 3),
    ("router-solicitation", 133),
    ("router-advertisement", 134),
    ("neighbour-solicitation", 135),
    ("neighbor-solicitation", 135),
    ("neighbour-advertisement", 136),
    ("neighbor-advertisement", 136),
    ("redirect", 137),
    ("mld-listener-reduction", 132),
];

/// ICMP or ICMPv6 types: a name, a number, or a number with a code. Everything for `any`.
pub(super) fn icmp(text: &str, v6: bool) -> Option<IcmpTypes> {
    if text == "any" || !v6 && text == "255" {
        return Some(RangeSet::full());
    }
    let (kind, code) = match text.split_once('/') {
        Some((kind, code)) => (kind, Some(code.parse().ok()?)),
        None => (text, None),
    };
    if let Ok(kind) = kind.parse() {
        return Some(icmp_types(kind, code));
    }
    let (codes, types, others) =
        if v6 { (CODES_V6, ICMPV6_TYPES, OTHER_TYPES_V6) } else { (CODES, ICMP_TYPES, OTHER_TYPES) };
    let with_code = codes.iter().find(|(name, ..)| *name == kind);
    if let (Some((_, kind, own)), None) = (with_code, code) {
        return Some(icmp_types(*kind, Some(*own)));
    }
    let kind = types.iter().chain(others).find(|(name, _)| *name == kind)?.1;
    Some(icmp_types(kind, code))
}

/// `10/second`, `5/min`, `3/h`: packets in a unit of time.
pub(super) fn rate(text: &str) -> Option<(u32, u32)> {
    let (number, unit) = text.split_once('/')?;
    let number: u32 = number.parse().ok().filter(|number| (1..=1_000_000).contains(number))?;
    let units = [("second", 1), ("minute", 60), ("hour", 3600), ("day", 86_400)];
    let short = !unit.is_empty() && unit.bytes().all(|byte| byte.is_ascii_lowercase());
    units.iter().find(|(name, _)| short && name.starts_with(unit)).map(|(_, seconds)| (number, *seconds))
}

/// A limit, if it is one that nodewall has.
pub(super) fn limit(rate: (u32, u32), burst: u32, per_source: bool) -> Option<Limit> {
    let fits = (1..=65_535).contains(&burst) && (1..=1_000_000).contains(&rate.0);
    fits.then_some(Limit { rate: rate.0, seconds: rate.1, burst, per_source })
}

/// So many in so many seconds as a limit: never more in the long run, and so many at once.
pub(super) fn at_most(number: u32, seconds: u32, per_source: bool) -> Option<Limit> {
    let units = [1, 60, 3600, 86_400];
    let rate = units.iter().find_map(|unit| {
        let rate = u64::from(number) * unit / u64::from(seconds.max(1));
        // The first unit in which little is lost by rounding down.
        let whole = rate > 0 && (u64::from(number) * unit).is_multiple_of(u64::from(seconds.max(1)));
        (whole || rate >= 100 || rate > 0 && *unit == 86_400).then_some((u32::try_from(rate).ok()?, *unit as u32))
    })?;
    limit(rate, number, per_source)
}

/// An address, a prefix, or an address with a netmask, host bits or not: what the kernel makes of it.
pub(super) fn prefix(text: &str) -> Option<IpNet> {
    let Some((address, mask)) = text.split_once('/') else {
        return Some(IpNet::from(text.parse::<IpAddr>().ok()?));
    };
    let address: IpAddr = address.parse().ok()?;
    let length = match mask.parse::<u8>() {
        Ok(length) => length,
        Err(_) => ipnet::ip_mask_to_prefix(mask.parse().ok()?).ok()?,
    };
    Some(IpNet::new(address, length).ok()?.trunc())
}

/// Only these addresses of their family, and none of the other.
pub(super) fn addresses(nets: impl IntoIterator<Item = IpNet>) -> AddrSet {
    nets.into_iter().collect()
}

/// A port or a range of ports, `8000:8010` or `8000-8010`; names of the few services that people write by name.
pub(super) fn port_range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let named =
            [("ssh", 22), ("domain", 53), ("http", 80), ("ntp", 123), ("https", 443), ("bootps", 67), ("bootpc", 68)];
        text.parse().ok().or_else(|| named.iter().find(|(name, _)| *name == text).map(|(_, number)| *number))
    };
    match text.split_once([':', '-']) {
        Some(("", end)) => Some((0, number(end)?)),
        Some((start, "")) => Some((number(start)?, u16::MAX)),
        Some((start, end)) => Some((number(start)?, number(end)?)),
        None => number(text).map(|port| (port, port)),
    }
}

/// Ports, separated by commas.
pub(super) fn ports(text: &str) -> Option<PortSet> {
    text.split(',').map(port_range).collect::<Option<Vec<_>>>().map(|ranges| ranges.into_iter().collect())
}

/// Whether a name is one that an interface can have, and a selector can hold.
pub(super) fn is_interface(name: &str) -> bool {
    !name.is_empty() && name.len() <= 15 && name.chars().all(|next| next.is_ascii_graphic() && !"'\"/*+".contains(next))
}
