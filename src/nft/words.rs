//! What the two readable spellings share: nft's names for values, and how a range of a set element is written.

use super::key::{DataType, Datum};
use crate::net::addr::{prefix_of_v4, prefix_of_v6};
use crate::net::protocol::{icmp_type_name, icmpv6_type_name};

/// How a field of a set element is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Span {
    /// One value.
    Single(Datum),
    /// An address prefix and its length in bits, or a name prefix and its length in bytes.
    Prefix(Datum, u8),
    /// Anything else.
    Range(Datum, Datum),
}

/// The shortest spelling of `start..=end`; nft prints set elements so.
pub(super) fn span(data_type: DataType, start: Datum, end: Datum) -> Span {
    if start == end {
        return Span::Single(start);
    }
    let length = match data_type {
        DataType::Ipv4Addr => prefix_of_v4(start.number() as u32, end.number() as u32).map(|net| net.prefix_len()),
        DataType::Ipv6Addr => prefix_of_v6(start.number(), end.number()).map(|net| net.prefix_len()),
        DataType::Ifname => name_prefix(start, end),
        _ => None,
    };
    length.map_or(Span::Range(start, end), |length| Span::Prefix(start, length))
}

/// How many bytes come before the `*` when the range is all the names that begin alike.
fn name_prefix(start: Datum, end: Datum) -> Option<u8> {
    let same = start.bytes().iter().zip(end.bytes()).take_while(|(one, other)| one == other).count();
    let rest_is = |datum: &Datum, byte: u8| datum.bytes().iter().skip(same).all(|next| *next == byte);
    (rest_is(&start, 0) && rest_is(&end, 0xff)).then_some(same as u8)
}

/// The word for so many seconds behind the rate of a limit; `None` for what the IR has no limits in.
pub(super) const fn unit(seconds: u32) -> Option<&'static str> {
    match seconds {
        1 => Some("second"),
        60 => Some("minute"),
        3600 => Some("hour"),
        86_400 => Some("day"),
        _ => None,
    }
}

/// Seconds as nft(8) prints a time: `1m30s`.
pub(super) fn duration(seconds: u32) -> String {
    let mut left = seconds;
    let mut text = String::new();
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if left >= length {
            text += &format!("{}{unit}", left / length);
            left %= length;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// nft's name for a value, protocols apart: nft takes those from `/etc/protocols` ([`protocol_name`]). All of them are the
/// same in nft 1.0.2 to 1.1.x, as name to read and as name printed.
pub(super) fn symbol(data_type: DataType, value: u128) -> Option<&'static str> {
    let octet = u8::try_from(value).ok();
    match data_type {
        DataType::NfProto => find(&[("ipv4", 2), ("ipv6", 10)], value),
        DataType::IcmpType => octet.and_then(icmp_type_name),
        DataType::Icmpv6Type => octet.and_then(icmpv6_type_name),
        DataType::IcmpCode => find(ICMP_CODES, value),
        DataType::Icmpv6Code => find(ICMPV6_CODES, value),
        DataType::IfaceType => find(HARDWARE_TYPES, value),
        DataType::CtState => find(CT_STATES, value),
        DataType::Ipv4Addr
        | DataType::Ipv6Addr
        | DataType::InetProto
        | DataType::InetService
        | DataType::Ifname
        | DataType::Integer
        | DataType::Mark
        | DataType::Uid
        | DataType::Gid
        | DataType::Cgroup => None,
    }
}

fn find(table: &[(&'static str, u128)], value: u128) -> Option<&'static str> {
    table.iter().find(|(_, known)| *known == value).map(|(name, _)| *name)
}

/// nft(8) "ICMP CODE TYPE".
const ICMP_CODES: &[(&str, u128)] = &[
    ("net-unreachable", 0),
    ("host-unreachable", 1),
    ("prot-unreachable", 2),
    ("port-unreachable", 3),
    ("frag-needed", 4),
    ("net-prohibited", 9),
    ("host-prohibited", 10),
    ("admin-prohibited", 13),
];

/// nft(8) "ICMPV6 CODE TYPE".
const ICMPV6_CODES: &[(&str, u128)] = &[
    ("no-route", 0),
    ("admin-prohibited", 1),
    ("addr-unreachable", 3),
    ("port-unreachable", 4),
    ("policy-fail", 5),
    ("reject-route", 6),
];

/// The ARP hardware types (linux/if_arp.h) that nft names; InfiniBand (32) is not among them.
const HARDWARE_TYPES: &[(&str, u128)] =
    &[("ether", 1), ("ppp", 512), ("ipip", 768), ("ipip6", 769), ("loopback", 772), ("sit", 776), ("ipgre", 778)];

/// The bits of `ct state`, lowest first: the order in which nft prints them.
pub(super) const CT_STATES: &[(&str, u128)] =
    &[("invalid", 1), ("established", 2), ("related", 4), ("new", 8), ("untracked", 64)];

/// The bits of a mask, lowest first, each with its name if it has one.
pub(super) fn flags(mask: u32) -> impl Iterator<Item = (u32, Option<&'static str>)> {
    (0..u32::BITS).map(|bit| 1 << bit).filter(move |bit| mask & bit != 0).map(|bit| (bit, find(CT_STATES, bit.into())))
}

/// The name of an IP protocol in the `/etc/protocols` of Debian and Ubuntu (package netbase), which nft prints.
pub(super) fn protocol_name(number: u128) -> Option<&'static str> {
    find(PROTOCOLS, number)
}

/// The number of an IP protocol by the name in `/etc/protocols`, aliases of other distributions included.
pub(super) fn protocol_number(name: &str) -> Option<u128> {
    let aliases = [("hopopt", 0), ("ipv4", 4), ("icmpv6", 58), ("ospfigp", 89)];
    PROTOCOLS.iter().chain(&aliases).find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The protocol names that every nft reads, even on a machine without `/etc/protocols`.
pub(super) fn portable_protocol_name(number: u128) -> Option<&'static str> {
    find(
        &[
            ("icmp", 1),
            ("igmp", 2),
            ("tcp", 6),
            ("udp", 17),
            ("dccp", 33),
            ("gre", 47),
            ("esp", 50),
            ("ah", 51),
            ("icmpv6", 58),
            ("sctp", 132),
            ("udplite", 136),
        ],
        number,
    )
}

const PROTOCOLS: &[(&str, u128)] = &[
    ("ip", 0),
    ("icmp", 1),
    ("igmp", 2),
    ("ggp", 3),
    ("ipencap", 4),
    ("st", 5),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("pup", 12),
    ("udp", 17),
    ("hmp", 20),
    ("xns-idp", 22),
    ("rdp", 27),
    ("iso-tp4", 29),
    ("dccp", 33),
    ("xtp", 36),
    ("ddp", 37),
    ("idpr-cmtp", 38),
    ("ipv6", 41),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    ("idrp", 45),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("skip", 57),
    ("ipv6-icmp", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("rspf", 73),
    ("vmtp", 81),
    ("eigrp", 88),
    ("ospf", 89),
    ("ax.25", 93),
    ("ipip", 94),
    ("etherip", 97),
    ("encap", 98),
    ("pim", 103),
    ("ipcomp", 108),
    ("vrrp", 112),
    ("l2tp", 115),
    ("isis", 124),
    ("sctp", 132),
    ("fc", 133),
    ("mobility-header", 135),
    ("udplite", 136),
    ("mpls-in-ip", 137),
    ("manet", 138),
    ("hip", 139),
    ("shim6", 140),
    ("wesp", 141),
    ("rohc", 142),
    ("ethernet", 143),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_range_is_written_as_a_prefix_where_it_is_one() {
        let v4 = |text: &str| Datum::from(text.parse::<std::net::Ipv4Addr>().unwrap().to_bits());
        let (ten, end) = (v4("10.0.0.0"), v4("10.255.255.255"));
        assert_eq!(span(DataType::Ipv4Addr, ten, end), Span::Prefix(ten, 8));
        assert_eq!(span(DataType::Ipv4Addr, ten, v4("10.0.0.2")), Span::Range(ten, v4("10.0.0.2")));
        assert_eq!(span(DataType::Ipv4Addr, v4("0.0.0.0"), v4("255.255.255.255")), Span::Prefix(v4("0.0.0.0"), 0));
        assert_eq!(
            span(DataType::InetService, 0u16.into(), 1u16.into()),
            Span::Range(0u16.into(), 1u16.into()),
            "a prefix is written for addresses only"
        );
        let mut last = *b"eth\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(span(DataType::Ifname, Datum::name("eth"), Datum::new(&last)), Span::Prefix(Datum::name("eth"), 3));
        last[15] = 0;
        let range = Span::Range(Datum::name("eth"), Datum::new(&last));
        assert_eq!(span(DataType::Ifname, Datum::name("eth"), Datum::new(&last)), range);
    }

    #[test]
    fn protocol_names_lead_back_to_their_numbers() {
        for number in 0..=255 {
            for name in [protocol_name(number), portable_protocol_name(number)].into_iter().flatten() {
                assert_eq!(protocol_number(name), Some(number), "{name}");
            }
        }
    }

    #[test]
    fn times_are_written_as_nft_lists_them() {
        let written = [0, 1, 60, 90, 3600, 86_400, 90_061].map(duration);
        assert_eq!(written, ["0s", "1s", "1m", "1m30s", "1h", "1d", "1d1h1m1s"]);
    }

    #[test]
    fn flags_come_lowest_bit_first() {
        let names: Vec<_> = flags(8 | 2 | 1024).collect();
        assert_eq!(names, [(2, Some("established")), (8, Some("new")), (1024, None)]);
    }
}
