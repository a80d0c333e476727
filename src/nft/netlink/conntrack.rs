//! Connection tracking entries: the kernel's messages to [`Flow`] and [`ConnectionEvent`], and the requests to list and to end them. It
//! stands here because conntrack speaks the same nfnetlink as nf_tables: one header, one kind of attribute.
//!
//! The layout is that of include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attribute::{Attributes, Malformed, Writer};
use super::constant::{
    CTA_COUNTERS_BYTES, CTA_COUNTERS_ORIG, CTA_COUNTERS_PACKETS, CTA_COUNTERS_REPLY, CTA_ID, CTA_IP_V4_DST,
    CTA_IP_V4_SRC, CTA_IP_V6_DST, CTA_IP_V6_SRC, CTA_PROTO_DST_PORT, CTA_PROTO_ICMP_CODE, CTA_PROTO_ICMP_ID,
    CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_CODE, CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT, CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, CTA_STATUS, CTA_TIMESTAMP,
    CTA_TIMESTAMP_START, CTA_TIMESTAMP_STOP, CTA_TUPLE_IP, CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_TUPLE_REPLY,
    CTA_TUPLE_ZONE, CTA_ZONE, IP_CT_TCP_FLAG_BE_LIBERAL, IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW,
    NFNL_SUBSYS_CTNETLINK, NFPROTO_IPV4, NFPROTO_IPV6, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST,
};
use super::decode::Message;
use super::encode::{finish, header};
use crate::net::flow::{Detail, Flow, Tuple};
use crate::net::protocol::Protocol;

/// What the kernel tells when a connection begins or ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionEvent {
    /// Which of the two.
    pub kind: Phase,
    /// The connection, as it is then.
    pub flow: Flow,
    /// How many packets there were, both ways; `None` where the kernel does not count (`net.netfilter.nf_conntrack_acct`) and at the
    /// beginning, when it does not say so.
    pub packets: Option<u64>,
    /// How many bytes, from the IP headers on; likewise.
    pub bytes: Option<u64>,
    /// When it began, in microseconds since 1970-01-01 UTC; `None` where the kernel does not note it
    /// (`net.netfilter.nf_conntrack_timestamp`) and at the beginning, when it does not say so.
    pub began_micros: Option<u64>,
    /// When it ended; likewise.
    pub ended_micros: Option<u64>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Its first packet got through.
    Began,
    /// It is forgotten: it is over, or nothing was heard of it for long enough, or somebody deleted it.
    Ended,
}

/// A request for every entry of both families.
pub fn list_flows(sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    let start = header(&mut writer, kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0, 0);
    finish(&mut writer, start);
    writer.bytes
}

/// Appends the request to end exactly this flow, so that one that took its place meanwhile is left alone (the kernel says `ENOENT`
/// then): the kernel looks it up by the tuple of the answers, which shows how it is translated, and compares its id, which is made
/// of the original tuple and the entry's place in memory (nf_ct_get_id). That it worked is said only if it is `acknowledged`.
pub fn end_flow(bytes: &mut Vec<u8>, flow: &Flow, sequence: u32, acknowledged: bool) {
    let mut writer = Writer { bytes: std::mem::take(bytes) };
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
    let family = if flow.original.source.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
    let flags = if acknowledged { NLM_F_REQUEST | NLM_F_ACK } else { NLM_F_REQUEST };
    let start = header(&mut writer, kind, flags, sequence, family, 0);
    // Without a tuple the request would end every flow.
    put_tuple(&mut writer, CTA_TUPLE_REPLY, &flow.reply);
    if flow.zone != 0 {
        writer.put_u16(CTA_ZONE, flow.zone);
    }
    writer.put_u32(CTA_ID, flow.id);
    finish(&mut writer, start);
    *bytes = writer.bytes;
}

fn put_tuple(writer: &mut Writer, kind: u16, tuple: &Tuple) {
    writer.nest(kind, |writer| {
        writer.nest(CTA_TUPLE_IP, |writer| {
            let ends =
                [(tuple.source, CTA_IP_V4_SRC, CTA_IP_V6_SRC), (tuple.destination, CTA_IP_V4_DST, CTA_IP_V6_DST)];
            for (address, v4, v6) in ends {
                match address {
                    IpAddr::V4(address) => writer.put(v4, &address.octets()),
                    IpAddr::V6(address) => writer.put(v6, &address.octets()),
                }
            }
        });
        writer.nest(CTA_TUPLE_PROTO, |writer| {
            writer.put(CTA_PROTO_NUM, &[tuple.protocol.0]);
            match tuple.detail {
                Detail::Ports(source, destination) => {
                    writer.put_u16(CTA_PROTO_SRC_PORT, source);
                    writer.put_u16(CTA_PROTO_DST_PORT, destination);
                }
                Detail::Icmp { kind, code, id } => {
                    let [id_kind, type_kind, code_kind] = icmp_attributes(tuple.protocol);
                    writer.put_u16(id_kind, id);
                    writer.put(type_kind, &[kind]);
                    writer.put(code_kind, &[code]);
                }
                Detail::None => {}
            }
        });
    });
}

/// Identifier, type and code.
fn icmp_attributes(protocol: Protocol) -> [u16; 3] {
    if protocol == Protocol::ICMPV6 {
        [CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, CTA_PROTO_ICMPV6_CODE]
    } else {
        [CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE]
    }
}

/// The flow in a message; `None` if the message is about something else.
///
/// # Errors
/// Attributes that are missing, or not what the kernel writes.
pub fn flow(message: &Message<'_>) -> Result<Option<Flow>, Malformed> {
    if message.kind != NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW {
        return Ok(None);
    }
    read(&message.attributes()?).map(Some)
}

/// The beginning or the end of a connection in a message; `None` if the message is about something else, a change in between among
/// them.
///
/// # Errors
/// Attributes that are missing, or not what the kernel writes.
pub fn connection_event(message: &Message<'_>) -> Result<Option<ConnectionEvent>, Malformed> {
    // A change in between is NEW as well, without the flag (`ctnetlink_conntrack_event`, net/netfilter/nf_conntrack_netlink.c).
    let kind = match (message.kind ^ NFNL_SUBSYS_CTNETLINK << 8, message.flags & NLM_F_CREATE) {
        (IPCTNL_MSG_CT_NEW, NLM_F_CREATE) => Phase::Began,
        (IPCTNL_MSG_CT_DELETE, _) => Phase::Ended,
        _ => return Ok(None),
    };
    let attributes = message.attributes()?;
    let (sent, answered) = (attributes.nested(CTA_COUNTERS_ORIG)?, attributes.nested(CTA_COUNTERS_REPLY)?);
    let both = |kind| match (sent.u64(kind)?, answered.u64(kind)?) {
        (Some(sent), Some(answered)) => Ok(Some(sent.saturating_add(answered))),
        (sent, answered) => Ok(sent.or(answered)),
    };
    let times = attributes.nested(CTA_TIMESTAMP)?;
    // Nanoseconds.
    let micros = |kind| times.u64(kind).map(|time| time.map(|time| time / 1000));
    Ok(Some(ConnectionEvent {
        kind,
        flow: read(&attributes)?,
        packets: both(CTA_COUNTERS_PACKETS)?,
        bytes: both(CTA_COUNTERS_BYTES)?,
        began_micros: micros(CTA_TIMESTAMP_START)?,
        ended_micros: micros(CTA_TIMESTAMP_STOP)?,
    }))
}

fn read(attributes: &Attributes<'_>) -> Result<Flow, Malformed> {
    let (original, reply) = (attributes.nested(CTA_TUPLE_ORIG)?, attributes.nested(CTA_TUPLE_REPLY)?);
    // A zone may hold for one direction only, and is told with that one then (`ct original zone set 1`).
    let zones = [attributes.u16(CTA_ZONE)?, original.u16(CTA_TUPLE_ZONE)?, reply.u16(CTA_TUPLE_ZONE)?];
    Ok(Flow {
        original: tuple(&original)?,
        reply: tuple(&reply)?,
        zone: zones.into_iter().flatten().find(|zone| *zone != 0).unwrap_or(0),
        id: attributes.u32(CTA_ID)?.ok_or_else(|| Malformed::new("a flow without an id"))?,
        status: attributes.u32(CTA_STATUS)?.unwrap_or(0),
        picked_up: picked_up(attributes)?,
    })
}

/// The kernel is liberal with the windows of connections whose beginning it did not see (`tcp_new`,
/// net/netfilter/nf_conntrack_proto_tcp.c), and of no others.
fn picked_up(attributes: &Attributes<'_>) -> Result<bool, Malformed> {
    let tcp = attributes.nested(CTA_PROTOINFO)?.nested(CTA_PROTOINFO_TCP)?;
    let flags = tcp.get(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL).and_then(|flags| flags.first());
    Ok(flags.is_some_and(|flags| flags & IP_CT_TCP_FLAG_BE_LIBERAL != 0))
}

fn tuple(attributes: &Attributes<'_>) -> Result<Tuple, Malformed> {
    let addresses = attributes.nested(CTA_TUPLE_IP)?;
    let (source, destination) = if addresses.get(CTA_IP_V4_SRC).is_some() {
        let address = |kind| addresses.bytes::<4>(kind).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
        (address(CTA_IP_V4_SRC)?, address(CTA_IP_V4_DST)?)
    } else {
        let address = |kind| addresses.bytes::<16>(kind).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
        (address(CTA_IP_V6_SRC)?, address(CTA_IP_V6_DST)?)
    };
    let transport = attributes.nested(CTA_TUPLE_PROTO)?;
    let [number] = transport.bytes::<1>(CTA_PROTO_NUM)?;
    let protocol = Protocol(number);
    let [id_kind, type_kind, code_kind] = icmp_attributes(protocol);
    let detail = if let Some(source) = transport.u16(CTA_PROTO_SRC_PORT)? {
        let destination = u16::from_be_bytes(transport.bytes(CTA_PROTO_DST_PORT)?);
        Detail::Ports(source, destination)
    } else if transport.get(type_kind).is_some() {
        let ([kind], [code]) = (transport.bytes(type_kind)?, transport.bytes(code_kind)?);
        Detail::Icmp { kind, code, id: transport.u16(id_kind)?.unwrap_or(0) }
    } else {
        Detail::None
    };
    Ok(Tuple { source, destination, protocol, detail })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::decode::messages;
    use super::*;

    fn tuple_of(source: &str, destination: &str, protocol: Protocol, detail: Detail) -> Tuple {
        Tuple { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, detail }
    }

    fn examples() -> Vec<Flow> {
        let echo = |kind| Detail::Icmp { kind, code: 0, id: 77 };
        let pairs = [
            (
                tuple_of("10.0.0.1", "10.0.0.2", Protocol::TCP, Detail::Ports(40_000, 22)),
                tuple_of("10.0.0.3", "10.0.0.1", Protocol::TCP, Detail::Ports(2222, 40_000)),
            ),
            (
                tuple_of("10.0.0.1", "10.0.0.2", Protocol::ICMP, echo(8)),
                tuple_of("10.0.0.2", "10.0.0.1", Protocol::ICMP, echo(0)),
            ),
            (
                tuple_of("fd00::1", "fd00::2", Protocol::ICMPV6, echo(128)),
                tuple_of("fd00::2", "fd00::1", Protocol::ICMPV6, echo(129)),
            ),
            (
                tuple_of("fd00::1", "fd00::2", Protocol(50), Detail::None),
                tuple_of("fd00::2", "fd00::1", Protocol(50), Detail::None),
            ),
        ];
        (0..)
            .zip(pairs)
            .map(|(zone, (original, reply))| Flow {
                original,
                reply,
                zone,
                id: 0x1234_5678,
                status: 0x1a,
                picked_up: zone == 0,
            })
            .collect()
    }

    /// A message as the kernel writes it.
    fn bytes(flow: &Flow) -> Vec<u8> {
        message(IPCTNL_MSG_CT_NEW, 0, flow, |_| {})
    }

    /// One of this kind, with more attributes.
    fn message(kind: u16, flags: u16, flow: &Flow, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        let start = header(&mut writer, NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, 1, NFPROTO_IPV4, 0);
        put_tuple(&mut writer, CTA_TUPLE_ORIG, &flow.original);
        put_tuple(&mut writer, CTA_TUPLE_REPLY, &flow.reply);
        writer.put_u32(CTA_STATUS, flow.status);
        writer.put_u16(CTA_ZONE, flow.zone);
        writer.put_u32(CTA_ID, flow.id);
        if flow.original.protocol == Protocol::TCP {
            let flags = if flow.picked_up { IP_CT_TCP_FLAG_BE_LIBERAL | 0x03 } else { 0x03 };
            writer.nest(CTA_PROTOINFO, |writer| {
                writer.nest(CTA_PROTOINFO_TCP, |writer| writer.put(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[flags, 0]));
            });
        }
        more(&mut writer);
        finish(&mut writer, start);
        writer.bytes
    }

    /// An end, with everything that the kernel can say of it.
    fn ending(flow: &Flow) -> Vec<u8> {
        message(IPCTNL_MSG_CT_DELETE, 0, flow, |writer| {
            for (kind, packets, bytes) in [(CTA_COUNTERS_ORIG, 7, 800), (CTA_COUNTERS_REPLY, 5, 60_000)] {
                writer.nest(kind, |writer| {
                    writer.put_u64(CTA_COUNTERS_PACKETS, packets);
                    writer.put_u64(CTA_COUNTERS_BYTES, bytes);
                });
            }
            writer.nest(CTA_TIMESTAMP, |writer| {
                writer.put_u64(CTA_TIMESTAMP_START, 1_764_145_219_000_001_999);
                writer.put_u64(CTA_TIMESTAMP_STOP, 1_764_145_229_000_002_000);
            });
        })
    }

    #[test]
    fn beginnings_and_ends_are_told_and_what_is_between_is_not() {
        for flow in examples() {
            let event = |bytes: &[u8]| connection_event(&messages(bytes).unwrap()[0]).unwrap();
            let began = ConnectionEvent {
                kind: Phase::Began,
                flow: flow.clone(),
                packets: None,
                bytes: None,
                began_micros: None,
                ended_micros: None,
            };
            // NLM_F_EXCL comes with it.
            assert_eq!(event(&message(IPCTNL_MSG_CT_NEW, NLM_F_CREATE | 0x200, &flow, |_| {})), Some(began.clone()));
            assert_eq!(event(&bytes(&flow)), None, "an update");
            let ended = ConnectionEvent {
                kind: Phase::Ended,
                packets: Some(12),
                bytes: Some(60_800),
                began_micros: Some(1_764_145_219_000_001),
                ended_micros: Some(1_764_145_229_000_002),
                ..began.clone()
            };
            assert_eq!(event(&ending(&flow)), Some(ended));
            let uncounted = ConnectionEvent { kind: Phase::Ended, ..began };
            assert_eq!(event(&message(IPCTNL_MSG_CT_DELETE, 0, &flow, |_| {})), Some(uncounted));
            assert_eq!(event(&message(IPCTNL_MSG_CT_GET, NLM_F_CREATE, &flow, |_| {})), None);
        }
    }

    #[test]
    fn every_kind_of_flow_is_read() {
        for example in examples() {
            let bytes = bytes(&example);
            let messages = messages(&bytes).unwrap();
            assert_eq!(flow(&messages[0]), Ok(Some(example)));
        }
    }

    #[test]
    fn a_zone_of_one_direction_is_a_zone() {
        let example = &examples()[0];
        let zoned = |direction| {
            let mut writer = Writer::default();
            let start = header(&mut writer, NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW, 0, 1, NFPROTO_IPV4, 0);
            for (kind, tuple) in [(CTA_TUPLE_ORIG, &example.original), (CTA_TUPLE_REPLY, &example.reply)] {
                let tuple_start = writer.bytes.len();
                put_tuple(&mut writer, kind, tuple);
                if kind == direction {
                    writer.put_u16(CTA_TUPLE_ZONE, 5);
                    let length = (writer.bytes.len() - tuple_start) as u16;
                    writer.bytes[tuple_start..tuple_start + 2].copy_from_slice(&length.to_ne_bytes());
                }
            }
            writer.put_u32(CTA_ID, 1);
            finish(&mut writer, start);
            flow(&messages(&writer.bytes).unwrap()[0]).unwrap().unwrap().zone
        };
        assert_eq!([CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, 0].map(zoned), [5, 5, 0]);
    }

    #[test]
    fn the_request_to_end_a_flow_names_its_tuple_zone_and_id() {
        for example in examples() {
            let mut bytes = Vec::new();
            end_flow(&mut bytes, &example, 5, false);
            end_flow(&mut bytes, &example, 6, true);
            let messages = messages(&bytes).unwrap();
            assert_eq!(messages.iter().map(|message| message.sequence).collect::<Vec<_>>(), [5, 6]);
            assert_eq!(messages.iter().map(|message| message.flags & NLM_F_ACK).collect::<Vec<_>>(), [0, NLM_F_ACK]);
            for message in &messages {
                assert_eq!(message.kind, NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE);
                let attributes = message.attributes().unwrap();
                assert!(attributes.get(CTA_TUPLE_ORIG).is_none());
                assert_eq!(tuple(&attributes.nested(CTA_TUPLE_REPLY).unwrap()), Ok(example.reply));
                assert_eq!(attributes.u32(CTA_ID), Ok(Some(example.id)));
                assert_eq!(attributes.u16(CTA_ZONE), Ok((example.zone != 0).then_some(example.zone)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Whatever is flipped or cut off, the answer is a flow or an error.
        #[test]
        fn no_bytes_make_the_reader_panic(
            which in 0usize..4,
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            end in any::<prop::sample::Index>(),
            cut in any::<bool>(),
            ended in any::<bool>(),
        ) {
            let example = &examples()[which];
            let mut bytes = if ended { ending(example) } else { bytes(example) };
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            if let Ok(messages) = messages(&bytes) {
                for message in messages {
                    let _ = (flow(&message), connection_event(&message));
                }
            }
            // And with a frame that is right around what is not.
            if bytes.len() > 20 {
                let framed = |kind, flags| Message { kind, flags, sequence: 1, port: 0, payload: &bytes[16..] };
                let _ = flow(&framed(NFNL_SUBSYS_CTNETLINK << 8, 0));
                let _ = connection_event(&framed(NFNL_SUBSYS_CTNETLINK << 8, NLM_F_CREATE));
                let _ = connection_event(&framed(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, 0));
            }
        }
    }
}
