//! Hop-by-hop options, which the kernel judges before the first rule (`ipv6_parse_hopopts`, net/ipv6/exthdrs.c).

use super::{IPV6_HEADER, LONGEST, Skb, WireError, too_long};

/// How many options that are not padding the kernel puts up with, unless `net.ipv6.max_hbh_opts_number` says otherwise.
const MOST_OPTIONS: usize = 8;
/// More bytes of padding in a row than this align nothing (RFC 4942 section 2.1.9.5).
const MOST_PADDING: usize = 7;

/// Option types (IANA, "Destination Options and Hop-by-Hop Options").
const PAD1: u8 = 0;
const PADN: u8 = 1;
const ROUTER_ALERT: u8 = 5;
const CALIPSO: u8 = 7;
const IOAM: u8 = 49;
const JUMBO: u8 = 194;

/// The packet without what comes after it, if a jumbo option says where it ends; `said` is the payload length of its header.
///
/// # Errors
/// The kernel discards it.
pub(super) fn checked(skb: Skb<'_>, said: usize) -> Result<Skb<'_>, WireError> {
    let [_, length] = skb.get(IPV6_HEADER)?.ok_or(WireError::HopByHop)?;
    let end = IPV6_HEADER + (usize::from(length) + 1) * 8;
    if end > skb.length {
        return Err(WireError::HopByHop);
    }
    let mut whole = skb;
    let (mut at, mut padding, mut options) = (IPV6_HEADER + 2, 0, 0);
    while at < end {
        let [kind] = skb.get(at)?.ok_or(WireError::HopByHop)?;
        if kind == PAD1 {
            padding += 1;
            if padding > MOST_PADDING {
                return Err(WireError::HopByHop);
            }
            at += 1;
            continue;
        }
        let Some([_, length]) = skb.get(at)?.filter(|_| at + 2 <= end) else { return Err(WireError::HopByHop) };
        let after = at + 2 + usize::from(length);
        if after > end {
            return Err(WireError::HopByHop);
        }
        if kind == PADN {
            padding += after - at;
            let mut zero = true;
            for byte in at + 2..after {
                zero &= skb.get(byte)? == Some([0]);
            }
            if padding > MOST_PADDING || !zero {
                return Err(WireError::HopByHop);
            }
        } else {
            options += 1;
            if options > MOST_OPTIONS || !kept(kind, length, at) {
                return Err(WireError::HopByHop);
            }
            if kind == JUMBO {
                whole = jumbo(skb, at, said)?;
            }
            padding = 0;
        }
        at = after;
    }
    Ok(whole)
}

/// Whether a host that knows no more than the kernel does by default goes on after an option.
fn kept(kind: u8, length: u8, at: usize) -> bool {
    match kind {
        ROUTER_ALERT => length == 2,
        JUMBO => length == 4 && at & 3 == 2,
        IOAM => at & 3 == 0,
        // Labels of a domain of interpretation that nobody has set up.
        CALIPSO => false,
        // The two highest bits say what to do with one that is not known: 0 is to skip it (RFC 8200 section 4.2).
        other => other >> 6 == 0,
    }
}

/// `ipv6_hop_jumbo`: the option's own length is that of a packet that is longer than its header could say.
fn jumbo(skb: Skb<'_>, at: usize, said: usize) -> Result<Skb<'_>, WireError> {
    let payload = skb.get(at + 2)?.map(u32::from_be_bytes).ok_or(WireError::HopByHop)?;
    let payload = usize::try_from(payload).unwrap_or(usize::MAX);
    if payload <= LONGEST || said != 0 {
        return Err(WireError::HopByHop);
    }
    let length = payload.saturating_add(IPV6_HEADER);
    if length > skb.length {
        return Err(too_long(length, skb.length));
    }
    Ok(skb.trimmed(length))
}
