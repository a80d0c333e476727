//! Matches and targets of iptables inside rules of nf_tables (kernel nft_compat): the structures of include/uapi/linux/netfilter/xt_*.h
//! and nf_nat.h, whose numbers are in host order unless they say otherwise.

use super::super::attribute::{Attributes, Malformed, text};
use super::{Field, Operand, RTN_LOCAL, Reader, Rewrite, Step};
use crate::net::addr::Family;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;

// include/uapi/linux/netfilter/nf_tables_compat.h; those of targets have the same numbers.
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_REV: u16 = 2;
const NFTA_MATCH_INFO: u16 = 3;

/// `XT_TCP_INV_DSTPT` and `XT_UDP_INV_DSTPT`.
const INV_DSTPT: u8 = 0x02;
/// Bits of `xt_multiport_v1.flags`.
const XT_MULTIPORT_DESTINATION: u8 = 1;
/// `XT_ADDRTYPE_INVERT_SOURCE` and so on.
const XT_ADDRTYPE_INVERT_DEST: u32 = 2;
const XT_ADDRTYPE_LIMIT_IFACE: u32 = 4 | 8;
/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`.
const MAP_IPS: u32 = 1;
const PROTO_SPECIFIED: u32 = 2;

/// What a match asks.
pub(super) fn matches(reader: &mut Reader, data: &Attributes<'_>) -> Result<(), Malformed> {
    let info = data.get(NFTA_MATCH_INFO).unwrap_or_default();
    let revision = data.u32(NFTA_MATCH_REV)?.unwrap_or(0);
    let asks = &mut reader.steps;
    match (data.text(NFTA_MATCH_NAME).as_str(), revision) {
        ("comment", _) => {
            // nft's own comment, where there is one, is the same.
            let comment = text(info);
            reader.comment = reader.comment.take().or(Some(comment).filter(|comment| !comment.is_empty()));
        }
        ("statistic" | "limit" | "hashlimit", _) => {}
        // `XT_RECENT_SET` in `xt_recent_mtinfo.check_set`, not inverted: it notes the source, and matches.
        ("recent", 0 | 1) if info.get(8..10) == Some(&[2, 0]) => {}
        ("tcp", 0) => transport(asks, Protocol::TCP, info, tcp_asks_more),
        ("udp", 0) => transport(asks, Protocol::UDP, info, |info| byte(info, 8).is_none_or(|bits| bits & 1 != 0)),
        ("sctp", 0) => {
            asks.push(Step::Only(Field::Protocol, RangeSet::single(u128::from(Protocol::SCTP.0))));
            asks.extend(sctp(info).unwrap_or_else(|| vec![Step::Asks]));
        }
        ("multiport", 0 | 1) => asks.push(multiport(info, revision == 1).unwrap_or(Step::Asks)),
        ("addrtype", 0 | 1) => addrtype(asks, info, revision == 1),
        _ => asks.push(Step::Asks),
    }
    Ok(())
}

fn byte(info: &[u8], at: usize) -> Option<u8> {
    info.get(at).copied()
}

fn half(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?))
}

fn word(info: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?))
}

/// `struct xt_tcp` and `xt_udp` begin alike: source ports and destination ports, first and last.
fn transport(asks: &mut Vec<Step>, protocol: Protocol, info: &[u8], more: impl Fn(&[u8]) -> bool) {
    asks.push(Step::Only(Field::Protocol, RangeSet::single(u128::from(protocol.0))));
    let inversion = if protocol == Protocol::TCP { byte(info, 11) } else { byte(info, 8) };
    let (Some(first), Some(last), Some(inversion)) = (half(info, 4), half(info, 6), inversion) else {
        asks.push(Step::Asks);
        return;
    };
    let ports = RangeSet::range(u128::from(first), u128::from(last));
    asks.push(Step::Only(Field::Port, if inversion & INV_DSTPT == 0 { ports } else { ports.complement() }));
    if more(info) || (half(info, 0), half(info, 2)) != (Some(0), Some(u16::MAX)) {
        asks.push(Step::Asks);
    }
}

/// Whether a TCP option or flags are asked for, or something is inverted that is no destination port.
fn tcp_asks_more(info: &[u8]) -> bool {
    let [option, mask, _, inversion] = [8, 9, 10, 11].map(|at| byte(info, at).unwrap_or(u8::MAX));
    option != 0 || mask != 0 || inversion & !INV_DSTPT != 0
}

/// `struct xt_sctp_info`: destination ports come first, and flags say what of it is asked for (`XT_SCTP_DEST_PORTS` is 2).
fn sctp(info: &[u8]) -> Option<Vec<Step>> {
    let (first, last) = (half(info, 0)?, half(info, 2)?);
    let (asked, inverted) = (word(info, 284)?, word(info, 288)?);
    let ports = RangeSet::range(u128::from(first), u128::from(last));
    let mut steps = Vec::new();
    if asked & 2 != 0 {
        steps.push(Step::Only(Field::Port, if inverted & 2 == 0 { ports } else { ports.complement() }));
    }
    if asked & !2 != 0 {
        steps.push(Step::Asks);
    }
    Some(steps)
}

/// `struct xt_multiport` and `xt_multiport_v1`: ports, some of which with the next one make a range.
fn multiport(info: &[u8], ranges: bool) -> Option<Step> {
    let (direction, count) = (byte(info, 0)?, usize::from(byte(info, 1)?));
    if direction != XT_MULTIPORT_DESTINATION || count > 15 {
        return None;
    }
    let (mut ports, mut index) = (Vec::new(), 0);
    while index < count {
        let port = u128::from(half(info, 2 + 2 * index)?);
        let is_range = ranges && byte(info, 32 + index)? != 0;
        if is_range {
            index += 1;
            ports.push((port, u128::from(half(info, 2 + 2 * index)?)));
        } else {
            ports.push((port, port));
        }
        index += 1;
    }
    let ports: RangeSet<u128> = ports.into_iter().collect();
    let inverted = ranges && byte(info, 47)? != 0;
    Some(Step::Only(Field::Port, if inverted { ports.complement() } else { ports }))
}

/// `struct xt_addrtype_info` and `xt_addrtype_info_v1`: bits of the kinds of source and destination address.
fn addrtype(asks: &mut Vec<Step>, info: &[u8], flags: bool) {
    let inversion = if flags { word(info, 4).map(|flags| flags & XT_ADDRTYPE_INVERT_DEST) } else { word(info, 8) };
    let (Some(source), Some(kinds), Some(inversion)) = (half(info, 0), half(info, 2), inversion) else {
        asks.push(Step::Asks);
        return;
    };
    let limited = flags && word(info, 4).is_none_or(|flags| flags & XT_ADDRTYPE_LIMIT_IFACE != 0);
    if source != 0 || limited {
        asks.push(Step::Asks);
    }
    let local = kinds & 1 << RTN_LOCAL != 0;
    if kinds != 0 && local != (inversion != 0) {
        asks.push(Step::Local(true));
    } else if kinds != 0 && !(limited && inversion != 0) {
        // "Not one of this interface's" may still be one of this host's.
        asks.push(Step::Local(false));
    }
}

/// The rewrite of a target; `None` for one that rewrites no destination.
pub(super) fn target(family: Option<Family>, data: &Attributes<'_>) -> Result<Option<Rewrite>, Malformed> {
    let info = data.get(NFTA_MATCH_INFO).unwrap_or_default();
    let revision = data.u32(NFTA_MATCH_REV)?.unwrap_or(0);
    // The first revisions for IPv4 have a list of one range in a form of its own (`nf_nat_ipv4_multi_range_compat`).
    let old = revision == 0 && family == Some(Family::V4);
    Ok(match data.text(NFTA_MATCH_NAME).as_str() {
        "DNAT" if revision <= 2 => Some(range(family, info, old).unwrap_or_else(unknown)),
        "DNAT" | "NETMAP" => Some(unknown()),
        "REDIRECT" => {
            let read = (revision == 0).then(|| range(family, info, old)).flatten();
            let ports = read.map_or(Some((Operand::Unknown, Operand::Unknown)), |read| read.ports);
            Some(Rewrite { here: true, addresses: None, ports })
        }
        _ => None,
    })
}

/// A rewrite that is not understood.
fn unknown() -> Rewrite {
    Rewrite { addresses: Some((Operand::Unknown, Operand::Unknown)), ..Rewrite::default() }
}

/// `struct nf_nat_range` and `nf_nat_range2`, or the older list of one: flags, addresses, ports; addresses and ports in network order.
fn range(family: Option<Family>, info: &[u8], old: bool) -> Option<Rewrite> {
    let size = if family? == Family::V4 { 4 } else { 16 };
    let (flags, addresses, step) = if old { (word(info, 4)?, 8, 4) } else { (word(info, 0)?, 4, 16) };
    let bytes = |at: usize, size: usize| Some(Operand::Bytes(info.get(at..at + size)?.to_vec()));
    let ports = addresses + 2 * step;
    Some(Rewrite {
        here: false,
        addresses: if flags & MAP_IPS == 0 {
            None
        } else {
            Some((bytes(addresses, size)?, bytes(addresses + step, size)?))
        },
        ports: if flags & PROTO_SPECIFIED == 0 { None } else { Some((bytes(ports, 2)?, bytes(ports + 2, 2)?)) },
    })
}
