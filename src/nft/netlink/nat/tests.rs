//! Rules and sets on bytes, as the kernel lists them, and on bytes that nobody lists.
#![allow(clippy::unwrap_used)]
use super::super::attribute::Writer;
use super::super::decode::messages;
use super::super::encode::{finish, header};
use super::*;

/// What the inside of one expression is, by its name.
type Expression<'a> = (&'a str, &'a dyn Fn(&mut Writer));

/// A rule as the kernel lists it.
fn message(family: u8, expressions: &[Expression<'_>]) -> Vec<u8> {
    let mut writer = Writer::default();
    let start = header(&mut writer, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE, 0, 1, family, 0);
    writer.put_text(NFTA_RULE_TABLE, "nat");
    writer.put_text(NFTA_RULE_CHAIN, "PREROUTING");
    writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
        for (name, fill) in expressions {
            list.nest(NFTA_LIST_ELEM, |expression| {
                expression.put_text(NFTA_EXPR_NAME, name);
                expression.nest(NFTA_EXPR_DATA, fill);
            });
        }
    });
    finish(&mut writer, start);
    writer.bytes
}

fn read(family: u8, expressions: &[Expression<'_>]) -> NatRule {
    nat_rule(&messages(&message(family, expressions)).unwrap()[0]).unwrap().unwrap()
}

fn payload(base: u32, offset: u32, size: u32) -> impl Fn(&mut Writer) {
    move |data: &mut Writer| {
        data.put_u32(NFTA_PAYLOAD_DREG, NFT_REG_1);
        data.put_u32(NFTA_PAYLOAD_BASE, base);
        data.put_u32(NFTA_PAYLOAD_OFFSET, offset);
        data.put_u32(NFTA_PAYLOAD_LEN, size);
    }
}

fn meta(key: u32) -> impl Fn(&mut Writer) {
    move |data: &mut Writer| {
        data.put_u32(NFTA_META_KEY, key);
        data.put_u32(NFTA_META_DREG, NFT_REG_1);
    }
}

fn cmp(operation: u32, bytes: &[u8]) -> impl Fn(&mut Writer) {
    move |data: &mut Writer| {
        data.put_u32(NFTA_CMP_SREG, NFT_REG_1);
        data.put_u32(NFTA_CMP_OP, operation);
        data.nest(NFTA_CMP_DATA, |value| value.put(NFTA_DATA_VALUE, bytes));
    }
}

fn mask(bytes: &[u8]) -> impl Fn(&mut Writer) {
    move |data: &mut Writer| {
        data.put_u32(NFTA_BITWISE_SREG, NFT_REG_1);
        data.put_u32(NFTA_BITWISE_DREG, NFT_REG_1);
        data.put_u32(NFTA_BITWISE_LEN, bytes.len() as u32);
        data.nest(NFTA_BITWISE_MASK, |value| value.put(NFTA_DATA_VALUE, bytes));
        data.nest(NFTA_BITWISE_XOR, |value| value.put(NFTA_DATA_VALUE, &vec![0; bytes.len()]));
    }
}

fn extension(name: &str, revision: u32, info: &[u8]) -> impl Fn(&mut Writer) {
    move |data: &mut Writer| {
        // NFTA_MATCH_NAME, NFTA_MATCH_REV and NFTA_MATCH_INFO; those of targets are the same.
        data.put_text(1, name);
        data.put_u32(2, revision);
        data.put(3, info);
    }
}

fn only(field: Field, from: u128, to: u128) -> Step {
    Step::Only(field, RangeSet::range(from, to))
}

const TRANSPORT: u32 = NFT_PAYLOAD_TRANSPORT_HEADER;
const NETWORK: u32 = NFT_PAYLOAD_NETWORK_HEADER;
const V4: Field = Field::Address(Family::V4);

#[test]
fn comparisons_become_ranges_of_what_they_ask_for() {
    let steps = |base, offset, bytes: &[u8], bits: Option<&[u8]>, operation| {
        let size = bytes.len() as u32;
        let (load, masked, compare) =
            (payload(base, offset, size), mask(bits.unwrap_or_default()), cmp(operation, bytes));
        let mut expressions: Vec<Expression<'_>> = vec![("payload", &load)];
        if bits.is_some() {
            expressions.push(("bitwise", &masked));
        }
        expressions.push(("cmp", &compare));
        read(NFPROTO_IPV4, &expressions).steps
    };
    let equal = |base, offset, bytes: &[u8]| steps(base, offset, bytes, None, NFT_CMP_EQ);
    assert_eq!(equal(TRANSPORT, 2, &[0, 80]), [only(Field::Port, 80, 80)]);
    assert_eq!(equal(NETWORK, 9, &[6]), [only(Field::Protocol, 6, 6)]);
    assert_eq!(equal(NETWORK, 16, &[10, 77, 0, 2]), [only(V4, 0x0a4d_0002, 0x0a4d_0002)]);
    // A prefix of whole bytes is a shorter comparison.
    assert_eq!(equal(NETWORK, 16, &[10]), [only(V4, 0x0a00_0000, 0x0aff_ffff)]);
    assert_eq!(
        steps(NETWORK, 16, &[10, 64, 0, 0], Some(&[255, 192, 0, 0]), NFT_CMP_EQ),
        [only(V4, 0x0a40_0000, 0x0a7f_ffff)]
    );
    // Both ports, and source and destination address; of a source nothing is known.
    assert_eq!(equal(TRANSPORT, 0, &[0, 1, 0, 80]), [only(Field::Port, 80, 80), Step::Asks]);
    assert_eq!(equal(NETWORK, 12, &[1, 1, 1, 1, 10, 77, 0, 2]), [only(V4, 0x0a4d_0002, 0x0a4d_0002), Step::Asks]);
    // A mask with holes is no range.
    assert_eq!(steps(TRANSPORT, 2, &[0, 80], Some(&[0xff, 0x0f]), NFT_CMP_EQ), [Step::Asks]);
    assert_eq!(
        steps(TRANSPORT, 2, &[0, 80], None, NFT_CMP_NEQ),
        [Step::Only(Field::Port, RangeSet::single(80).complement())]
    );
    // The opposite of two conditions is none that is known.
    assert_eq!(steps(TRANSPORT, 0, &[0, 1, 0, 80], None, NFT_CMP_NEQ), [Step::Asks]);
    assert_eq!(steps(TRANSPORT, 2, &[0, 80], None, NFT_CMP_LT), [only(Field::Port, 0, 79)]);
    assert_eq!(steps(TRANSPORT, 2, &[0, 80], None, NFT_CMP_GTE), [only(Field::Port, 80, u128::MAX)]);
    assert_eq!(steps(TRANSPORT, 0, &[0, 80], None, NFT_CMP_LTE), [Step::Asks], "a source port");
}

#[test]
fn the_network_header_is_read_only_where_the_ip_version_is_known() {
    let (load, compare) = (payload(NETWORK, 16, 4), cmp(NFT_CMP_EQ, &[10, 77, 0, 2]));
    assert_eq!(read(NFPROTO_INET, &[("payload", &load), ("cmp", &compare)]).steps, [Step::Asks]);
    let (version, four) = (meta(NFT_META_NFPROTO), cmp(NFT_CMP_EQ, &[NFPROTO_IPV4]));
    assert_eq!(
        read(NFPROTO_INET, &[("meta", &version), ("cmp", &four), ("payload", &load), ("cmp", &compare)]).steps,
        [Step::Family(Family::V4), only(V4, 0x0a4d_0002, 0x0a4d_0002)]
    );
}

#[test]
fn registers_that_something_unknown_may_have_written_hold_nothing_known() {
    let (load, compare) = (payload(TRANSPORT, 2, 2), cmp(NFT_CMP_EQ, &[0, 80]));
    assert_eq!(
        read(NFPROTO_IPV4, &[("payload", &load), ("osf", &|_| {}), ("cmp", &compare)]).steps,
        [Step::Asks, Step::Asks]
    );
    let mark = meta(NFT_META_MARK);
    assert_eq!(read(NFPROTO_IPV4, &[("payload", &load), ("meta", &mark), ("cmp", &compare)]).steps, [Step::Asks]);
}

fn port(number: u16) -> [u8; 2] {
    number.to_ne_bytes()
}

#[test]
fn matches_of_iptables_are_read() {
    let steps = |name: &'static str, revision, info: &[u8]| {
        read(NFPROTO_IPV4, &[("match", &extension(name, revision, info))]).steps
    };
    let tcp = |sources: [u16; 2], option, inversion: u8| {
        [&port(sources[0])[..], &port(sources[1]), &port(80), &port(90), &[option, 0, 0, inversion]].concat()
    };
    let protocol = only(Field::Protocol, 6, 6);
    assert_eq!(steps("tcp", 0, &tcp([0, 65535], 0, 0)), [protocol.clone(), only(Field::Port, 80, 90)]);
    assert_eq!(
        steps("tcp", 0, &tcp([0, 65535], 0, 2)),
        [protocol.clone(), Step::Only(Field::Port, RangeSet::range(80, 90).complement())]
    );
    for more in [tcp([1, 65535], 0, 0), tcp([0, 65535], 3, 0), tcp([0, 65535], 0, 1)] {
        assert_eq!(steps("tcp", 0, &more), [protocol.clone(), only(Field::Port, 80, 90), Step::Asks]);
    }
    let udp = [&port(0)[..], &port(65535), &port(53), &port(53), &[0, 0]].concat();
    assert_eq!(steps("udp", 0, &udp), [only(Field::Protocol, 17, 17), only(Field::Port, 53, 53)]);

    let mut multiport = vec![0; 48];
    multiport[..2].copy_from_slice(&[1, 3]);
    multiport[2..8].copy_from_slice(&[port(1), port(3), port(7)].concat());
    multiport[32] = 1;
    let ports: RangeSet<u128> = [(1, 3), (7, 7)].into_iter().collect();
    assert_eq!(steps("multiport", 1, &multiport), [Step::Only(Field::Port, ports.clone())]);
    multiport[47] = 1;
    assert_eq!(steps("multiport", 1, &multiport), [Step::Only(Field::Port, ports.complement())]);
    multiport[0] = 0;
    assert_eq!(steps("multiport", 1, &multiport), [Step::Asks], "source ports");

    let addrtype = |source: u16, kinds: u16, flags: u32| {
        [&source.to_ne_bytes()[..], &kinds.to_ne_bytes(), &flags.to_ne_bytes()].concat()
    };
    assert_eq!(steps("addrtype", 1, &addrtype(0, 4, 0)), [Step::Local(true)]);
    assert_eq!(steps("addrtype", 1, &addrtype(0, 4, 2)), [Step::Local(false)]);
    assert_eq!(steps("addrtype", 1, &addrtype(0, 2, 0)), [Step::Local(false)]);
    assert_eq!(steps("addrtype", 1, &addrtype(0, 2, 2)), [Step::Local(true)]);
    assert_eq!(steps("addrtype", 1, &addrtype(4, 0, 0)), [Step::Asks]);
    assert_eq!(steps("addrtype", 1, &addrtype(0, 4, 4)), [Step::Asks, Step::Local(true)]);
    assert_eq!(steps("addrtype", 1, &addrtype(0, 4, 4 | 2)), [Step::Asks]);

    assert_eq!(steps("statistic", 0, &[]), []);
    assert_eq!(steps("mark", 1, &[0; 12]), [Step::Asks]);
    assert_eq!(steps("tcp", 1, &tcp([0, 65535], 0, 0)), [Step::Asks], "of a revision that is not there yet");
    let commented = read(NFPROTO_IPV4, &[("match", &extension("comment", 0, b"shop/web:p80\0\0\0"))]);
    assert_eq!((commented.comment.as_deref(), commented.steps), (Some("shop/web:p80"), vec![]));
}

#[test]
fn targets_of_iptables_are_read() {
    let rewrite = |family, name: &'static str, revision, info: &[u8]| match read(
        family,
        &[("target", &extension(name, revision, info))],
    )
    .steps
    .as_slice()
    {
        [Step::Rewrite(rewrite)] => Some(rewrite.clone()),
        [] => None,
        other => unreachable!("{other:?}"),
    };
    let operand = |bytes: &[u8]| Operand::Bytes(bytes.to_vec());
    let (address, last) = ([10, 0, 0, 1], [10, 0, 0, 9]);
    let ports = [&8080u16.to_be_bytes()[..], &8081u16.to_be_bytes()].concat();
    let old = [&1u32.to_ne_bytes()[..], &3u32.to_ne_bytes(), &address, &last, &ports].concat();
    let wide = |bytes: &[u8]| [bytes, &vec![0; 16 - bytes.len()]].concat();
    let new = |flags: u32| [&flags.to_ne_bytes()[..], &wide(&address), &wide(&last), &ports, &[0; 4]].concat();
    let wanted = Rewrite {
        here: false,
        addresses: Some((operand(&address), operand(&last))),
        ports: Some((operand(&ports[..2]), operand(&ports[2..]))),
    };
    assert_eq!(rewrite(NFPROTO_IPV4, "DNAT", 0, &old), Some(wanted.clone()));
    assert_eq!(rewrite(NFPROTO_IPV4, "DNAT", 2, &new(3)), Some(wanted.clone()));
    assert_eq!(rewrite(NFPROTO_IPV4, "DNAT", 1, &new(1)), Some(Rewrite { ports: None, ..wanted.clone() }));
    assert_eq!(rewrite(NFPROTO_IPV4, "DNAT", 2, &new(2)), Some(Rewrite { addresses: None, ..wanted.clone() }));
    let here = Rewrite { here: true, addresses: None, ..wanted };
    assert_eq!(rewrite(NFPROTO_IPV4, "REDIRECT", 0, &old), Some(here.clone()));
    assert_eq!(rewrite(NFPROTO_IPV6, "REDIRECT", 0, &new(2)), Some(here));
    assert_eq!(rewrite(NFPROTO_IPV4, "MASQUERADE", 0, &old), None);
    // What is not understood rewrites all the same.
    for odd in [rewrite(NFPROTO_IPV4, "DNAT", 3, &new(3)), rewrite(NFPROTO_IPV4, "DNAT", 2, &[0; 3])] {
        assert_eq!(odd.unwrap().addresses, Some((Operand::Unknown, Operand::Unknown)));
    }
}

/// The elements of a set with ranges of one field: a start, an end, and a start without one.
#[test]
fn ranges_of_a_set_are_put_together() {
    let element = |bytes: &'static [u8], flags| {
        move |list: &mut Writer| {
            list.nest(NFTA_LIST_ELEM, |element| {
                element.nest(NFTA_SET_ELEM_KEY, |key| key.put(NFTA_DATA_VALUE, bytes));
                element.put_u32(NFTA_SET_ELEM_FLAGS, flags);
            });
        }
    };
    let mut writer = Writer::default();
    writer.bytes.extend([0; NFNETLINK_HEADER_LENGTH]);
    writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
        element(&[0xff, 0], 0)(list);
        element(&[0, 111], NFT_SET_ELEM_INTERVAL_END)(list);
        element(&[0, 100], 0)(list);
        element(&[0, 0], NFT_SET_ELEM_INTERVAL_END)(list);
    });
    let shape = SetShape { name: "ports".to_owned(), key_size: 2, interval: true, dynamic: false };
    let keys: Vec<_> =
        elements(&[writer.bytes.clone()], &shape).unwrap().into_iter().map(|element| element.keys.unwrap()).collect();
    assert_eq!(keys, [(vec![0, 100], vec![0, 110]), (vec![0xff, 0], vec![0xff, 0xff])]);
    mutate(&writer.bytes, |bytes| {
        let _ = elements(&[bytes.to_vec()], &shape);
    });
}

/// Every byte of a text as several others, and every end.
fn mutate(whole: &[u8], mut read: impl FnMut(&[u8])) {
    for index in 0..whole.len() {
        read(&whole[..index]);
        for value in [0, 1, 2, 4, 8, 0x10, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.to_vec();
            bytes[index] = value;
            read(&bytes);
        }
    }
}

#[test]
fn malformed_rules_are_errors_or_rules() {
    let registers = |first: u16, last: u16| {
        move |data: &mut Writer| {
            data.put_u32(NFTA_NAT_TYPE, NFT_NAT_DNAT);
            data.put_u32(first, NFT_REG_1);
            data.put_u32(last, NFT_REG32_00 + 4);
        }
    };
    let lookup = |data: &mut Writer| {
        data.put_text(NFTA_LOOKUP_SET, "ports");
        data.put_u32(NFTA_LOOKUP_SREG, NFT_REG_1);
        data.put_u32(NFTA_LOOKUP_DREG, NFT_REG_1);
    };
    let range = |data: &mut Writer| {
        data.put_u32(NFTA_RANGE_SREG, NFT_REG_1);
        data.nest(NFTA_RANGE_FROM_DATA, |value| value.put(NFTA_DATA_VALUE, &[0, 1]));
        data.nest(NFTA_RANGE_TO_DATA, |value| value.put(NFTA_DATA_VALUE, &[0, 9]));
    };
    let whole = message(
        NFPROTO_IPV4,
        &[
            ("payload", &payload(NETWORK, 12, 8)),
            ("bitwise", &mask(&[255, 255, 0, 0, 255, 255, 255, 240])),
            ("cmp", &cmp(NFT_CMP_EQ, &[1, 1, 0, 0, 10, 77, 0, 0])),
            ("payload", &payload(TRANSPORT, 2, 2)),
            ("range", &range),
            ("lookup", &lookup),
            ("match", &extension("multiport", 1, &[1; 48])),
            ("match", &extension("addrtype", 1, &[4; 8])),
            ("target", &extension("DNAT", 2, &[3; 44])),
            ("nat", &registers(NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN)),
        ],
    );
    mutate(&whole, |bytes| {
        for message in messages(bytes).unwrap_or_default() {
            let _ = nat_rule(&message);
            let _ = set_shape(&message);
        }
    });
}
