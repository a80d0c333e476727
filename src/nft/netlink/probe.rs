//! Asks the kernel for everything that nodewall may use, in a batch that never comes into force: it has no end, which is how nft(8)
//! checks a file. The kernel works on each message, answers it, and forgets all of it (nfnetlink_rcv_batch: without
//! `NFNL_MSG_BATCH_END` it aborts). The tables are dormant, so that no base chain is hooked in meanwhile either.
//!
//! A module that is there and not loaded is loaded by the kernel, as a rule that needs it would do.

use std::collections::BTreeMap;

use super::attribute::Writer;
use super::constant::*;
use super::decode::Acknowledgement;
use super::encode::{finish, header};
use crate::nft::feature::{Feature, Support};

/// A batch of questions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Probe {
    /// Everything, from batch begin on.
    pub bytes: Vec<u8>,
    /// The sequence number of the batch begin.
    first: u32,
    /// What each message asks about; `None` for the batch begin.
    asked: Vec<Option<Asked>>,
}

/// What a message asks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Asked {
    feature: Feature,
    /// What has to be there for an answer to mean anything.
    on: Option<Feature>,
}

// Error numbers of Linux (include/uapi/asm-generic/errno-base.h, errno.h).
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;
const ENOSYS: i32 = 38;
const EPROTONOSUPPORT: i32 = 93;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;

/// What an answer says.
fn support(errno: i32) -> Support {
    match errno {
        0 => Support::Present,
        ENOENT | EINVAL | ERANGE | ENOSYS | EPROTONOSUPPORT | EOPNOTSUPP | EAFNOSUPPORT => Support::Missing(errno),
        _ => Support::Unknown(Some(errno)),
    }
}

impl Probe {
    /// How many messages there are, each of which is answered.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Whether there is no message; never so for what [`probe`] returns.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// The place of a sequence number in the batch; `None` for a number of another one.
    pub fn index_of(&self, sequence: u32) -> Option<usize> {
        usize::try_from(sequence.wrapping_sub(self.first)).ok().filter(|index| *index < self.asked.len())
    }

    /// What the answers say about every feature that was asked for. One that several messages are about is there if each of them
    /// worked.
    pub fn read(&self, answers: &[Acknowledgement]) -> BTreeMap<Feature, Support> {
        let mut found: BTreeMap<Feature, Support> = BTreeMap::new();
        for (index, asked) in self.asked.iter().enumerate() {
            let Some(Asked { feature, on }) = asked else { continue };
            let answer = answers.iter().find(|answer| self.index_of(answer.sequence) == Some(index));
            let said = match answer {
                Some(answer) => support(answer.errno),
                None => Support::Unknown(None),
            };
            let base = on.and_then(|on| found.get(&on).copied()).unwrap_or(Support::Present);
            let said = if base == Support::Present { said } else { Support::Unknown(None) };
            let worst = found.entry(*feature).or_insert(said);
            if *worst == Support::Present {
                *worst = said;
            }
        }
        found
    }
}

// include/uapi/linux/netfilter/nf_tables.h, what only a probe needs
const NFT_TABLE_F_DORMANT: u32 = 0x1;
const NFTA_HOOK_DEV: u16 = 3;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFT_META_SKUID: u32 = 10;
const NFT_META_SKGID: u32 = 11;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const NFTA_SOCKET_KEY: u16 = 1;
const NFTA_SOCKET_DREG: u16 = 2;
const NFTA_SOCKET_LEVEL: u16 = 3;
const NFT_SOCKET_CGROUPV2: u32 = 3;
const NFTA_EXTHDR_DREG: u16 = 1;
const NFTA_EXTHDR_TYPE: u16 = 2;
const NFTA_EXTHDR_OFFSET: u16 = 3;
const NFTA_EXTHDR_LEN: u16 = 4;
const NFTA_EXTHDR_FLAGS: u16 = 5;
const NFTA_EXTHDR_OP: u16 = 6;
const NFT_EXTHDR_F_PRESENT: u32 = 1;
const NFT_EXTHDR_OP_IPV6: u32 = 0;
const NFT_EXTHDR_OP_IPV4: u32 = 2;
/// Router alert (RFC 2113), one of the options that the kernel knows.
const IPOPT_RA: u8 = 148;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_SET_ID: u16 = 2;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFTA_DYNSET_EXPR: u16 = 7;
const NFT_DYNSET_OP_UPDATE: u32 = 1;
/// A minute, in milliseconds.
const TIMEOUT: u64 = 60_000;

/// nft's numbers of its data types (include/datatype.h).
const TYPE_IPADDR: u32 = 7;
const TYPE_INET_SERVICE: u32 = 13;

const IPV4_SOURCE_OFFSET: u32 = 12;
const IPV4_BYTES: u32 = 4;

/// All questions about nf_tables, in tables of the given name, which nobody should have; `first` is the sequence number of the first
/// message.
pub fn probe(table: &str, first: u32) -> Probe {
    let mut batch = Batch::begin(table, first, None);
    batch.table(Feature::Inet, NFPROTO_INET);
    batch.chain(Feature::Inet, NFPROTO_INET, "input", Some((1, None)));
    batch.chain(Feature::Inet, NFPROTO_INET, "rules", None);
    let rules: [(Feature, &[Expression]); 14] = [
        (
            Feature::Conntrack,
            &[("ct", |data| {
                data.put_u32(NFTA_CT_KEY, NFT_CT_STATE);
                data.put_u32(NFTA_CT_DREG, NFT_REG_1);
            })],
        ),
        (
            Feature::Counter,
            &[("counter", |data| {
                data.put_u64(NFTA_COUNTER_BYTES, 0);
                data.put_u64(NFTA_COUNTER_PACKETS, 0);
            })],
        ),
        (Feature::Limit, &[("limit", limit)]),
        (
            Feature::Log,
            &[("log", |data| {
                data.put_u16(NFTA_LOG_GROUP, 0);
                data.put_text(NFTA_LOG_PREFIX, "probe");
            })],
        ),
        (
            Feature::Reject,
            &[("reject", |data| {
                data.put_u32(NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH);
                data.put(NFTA_REJECT_ICMP_CODE, &[NFT_REJECT_ICMPX_ADMIN_PROHIBITED]);
            })],
        ),
        (Feature::InterfaceKind, &[("meta", |data| meta(data, NFT_META_IIFKIND))]),
        (Feature::InterfaceKind, &[("meta", |data| meta(data, NFT_META_OIFKIND))]),
        (Feature::SocketOwner, &[("meta", |data| meta(data, NFT_META_SKUID))]),
        (Feature::SocketOwner, &[("meta", |data| meta(data, NFT_META_SKGID))]),
        (
            Feature::SocketCgroup,
            &[("socket", |data| {
                data.put_u32(NFTA_SOCKET_KEY, NFT_SOCKET_CGROUPV2);
                data.put_u32(NFTA_SOCKET_DREG, NFT_REG_1);
                data.put_u32(NFTA_SOCKET_LEVEL, 1);
            })],
        ),
        (
            Feature::Fib,
            &[("fib", |data| {
                data.put_u32(NFTA_FIB_DREG, NFT_REG_1);
                data.put_u32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
                data.put_u32(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
            })],
        ),
        (Feature::Notrack, &[("notrack", |_| {})]),
        (Feature::HeaderOptions, &[("exthdr", |data| option(data, NFT_EXTHDR_OP_IPV4, IPOPT_RA))]),
        // Hop-by-hop options.
        (Feature::HeaderOptions, &[("exthdr", |data| option(data, NFT_EXTHDR_OP_IPV6, 0))]),
    ];
    for (feature, expressions) in rules {
        batch.rule(feature, expressions);
    }
    batch.set(Feature::IntervalSets, "ranges", NFT_SET_INTERVAL, address);
    batch.elements(
        Feature::IntervalSets,
        "ranges",
        &[
            |element| key(element, NFTA_SET_ELEM_KEY, &[10, 0, 0, 0]),
            |element| {
                key(element, NFTA_SET_ELEM_KEY, &[11, 0, 0, 0]);
                element.put_u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            },
        ],
    );
    batch.set(Feature::RangeConcatenations, "fields", NFT_SET_INTERVAL | NFT_SET_CONCAT, |set| {
        set.put_u32(NFTA_SET_KEY_TYPE, TYPE_IPADDR << 6 | TYPE_INET_SERVICE);
        set.put_u32(NFTA_SET_KEY_LEN, 8);
        set.nest(NFTA_SET_DESC, |desc| {
            desc.nest(NFTA_SET_DESC_CONCAT, |fields| {
                for bytes in [IPV4_BYTES, 2] {
                    fields.nest(NFTA_LIST_ELEM, |field| field.put_u32(NFTA_SET_FIELD_LEN, bytes));
                }
            });
        });
    });
    batch.elements(
        Feature::RangeConcatenations,
        "fields",
        &[|element| {
            key(element, NFTA_SET_ELEM_KEY, &[10, 0, 0, 0, 0, 80, 0, 0]);
            key(element, NFTA_SET_ELEM_KEY_END, &[10, 255, 255, 255, 0, 90, 0, 0]);
        }],
    );
    batch.set(Feature::VerdictMaps, "map", NFT_SET_MAP, |set| {
        address(set);
        set.put_u32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT);
        set.put_u32(NFTA_SET_DATA_LEN, 0);
    });
    batch.elements(
        Feature::VerdictMaps,
        "map",
        &[|element| {
            key(element, NFTA_SET_ELEM_KEY, &[10, 0, 0, 1]);
            element.nest(NFTA_SET_ELEM_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |verdict| verdict.put_u32(NFTA_VERDICT_CODE, NF_ACCEPT.cast_unsigned()));
            });
        }],
    );
    let id = batch.set(Feature::DynamicSets, "sources", NFT_SET_TIMEOUT | NFT_SET_EVAL, |set| {
        address(set);
        set.put_u64(NFTA_SET_TIMEOUT, TIMEOUT);
    });
    batch.dynamic(Feature::DynamicSets, "sources", id);
    batch.table(Feature::NetdevIngress, NFPROTO_NETDEV);
    // Every network namespace has a loopback interface.
    batch.chain(Feature::NetdevIngress, NFPROTO_NETDEV, "ingress", Some((0, Some("lo"))));
    batch.probe
}

/// A batch that is planned against a generation which is not the current one: a kernel that knows generations refuses it at its
/// first message, and one that does not works on its second.
pub fn stale(table: &str, generation: u32, first: u32) -> Probe {
    let mut batch = Batch::begin(table, first, Some(generation.wrapping_add(1 << 30)));
    batch.table(Feature::BatchGeneration, NFPROTO_INET);
    batch.probe
}

/// `ERESTART` (include/linux/errno.h).
const ERESTART: i32 = 85;

/// What the answers to [`stale`] say.
pub fn read_stale(probe: &Probe, answers: &[Acknowledgement]) -> Support {
    let answer = |wanted: usize| answers.iter().find(|answer| probe.index_of(answer.sequence) == Some(wanted));
    match (answer(0).map(|answer| answer.errno), answer(1).map(|answer| answer.errno)) {
        (Some(ERESTART), _) => Support::Present,
        (_, Some(0)) => Support::Missing(0),
        (Some(errno), _) | (None, Some(errno)) => Support::Unknown(Some(errno)),
        (None, None) => Support::Unknown(None),
    }
}

const ULOG_CONFIG: u16 = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG;
/// A group that nobody reads. The question changes nothing, whoever does.
const ULOG_GROUP: u16 = u16::MAX;
/// `IPCTNL_MSG_CT_GET_STATS` (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const CONNTRACK_STATS: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 5;

/// A request to the log's reader that asks for nothing. The answer is `ENODEV` where there is one, and `EINVAL` where the kernel has
/// nobody who understands it.
pub fn ask_log_reader(sequence: u32) -> Vec<u8> {
    request(ULOG_CONFIG, ULOG_GROUP, sequence)
}

/// A request for how many connections are tracked.
pub fn ask_conntrack(sequence: u32) -> Vec<u8> {
    request(CONNTRACK_STATS, 0, sequence)
}

/// What the answer to a request outside a batch says; nfnetlink answers `EINVAL` for a subsystem that it does not have.
pub fn read_subsystem(errno: i32) -> Support {
    if errno == EINVAL { Support::Missing(errno) } else { Support::Present }
}

/// What the answer to an order to end a connection that there is not says.
pub fn read_socket_destroy(errno: i32) -> Support {
    match errno {
        ENOENT | 0 => Support::Present,
        EOPNOTSUPP | EINVAL => Support::Missing(errno),
        _ => Support::Unknown(Some(errno)),
    }
}

fn request(kind: u16, resource: u16, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let start = header(&mut writer, kind, NLM_F_REQUEST | NLM_F_ACK, sequence, NFPROTO_UNSPEC, resource);
    finish(&mut writer, start);
    writer.bytes
}

/// An expression's name and its attributes.
type Expression = (&'static str, fn(&mut Writer));

fn meta(data: &mut Writer, key: u32) {
    data.put_u32(NFTA_META_KEY, key);
    data.put_u32(NFTA_META_DREG, NFT_REG_1);
}

fn limit(data: &mut Writer) {
    data.put_u64(NFTA_LIMIT_RATE, 10);
    data.put_u64(NFTA_LIMIT_UNIT, 1);
    data.put_u32(NFTA_LIMIT_BURST, 5);
    data.put_u32(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS);
    data.put_u32(NFTA_LIMIT_FLAGS, 0);
}

fn option(data: &mut Writer, op: u32, kind: u8) {
    data.put_u32(NFTA_EXTHDR_DREG, NFT_REG_1);
    data.put(NFTA_EXTHDR_TYPE, &[kind]);
    data.put_u32(NFTA_EXTHDR_OFFSET, 0);
    data.put_u32(NFTA_EXTHDR_LEN, 1);
    data.put_u32(NFTA_EXTHDR_FLAGS, NFT_EXTHDR_F_PRESENT);
    data.put_u32(NFTA_EXTHDR_OP, op);
}

fn address(set: &mut Writer) {
    set.put_u32(NFTA_SET_KEY_TYPE, TYPE_IPADDR);
    set.put_u32(NFTA_SET_KEY_LEN, IPV4_BYTES);
}

fn key(element: &mut Writer, kind: u16, value: &[u8]) {
    element.nest(kind, |key| key.put(NFTA_DATA_VALUE, value));
}

/// One expression of a list, or inside another.
fn put(writer: &mut Writer, kind: u16, name: &str, fill: impl FnOnce(&mut Writer)) {
    writer.nest(kind, |expression| {
        expression.put_text(NFTA_EXPR_NAME, name);
        expression.nest(NFTA_EXPR_DATA, fill);
    });
}

/// A batch in the making.
struct Batch<'a> {
    probe: Probe,
    table: &'a str,
    sets: u32,
}

impl<'a> Batch<'a> {
    fn begin(table: &'a str, first: u32, generation: Option<u32>) -> Self {
        let mut writer = Writer::default();
        let start = header(&mut writer, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, first, 0, NFNL_SUBSYS_NFTABLES);
        if let Some(generation) = generation {
            writer.put_u32(NFNL_BATCH_GENID, generation);
        }
        finish(&mut writer, start);
        Self { probe: Probe { bytes: writer.bytes, first, asked: vec![None] }, table, sets: 0 }
    }

    fn message(&mut self, feature: Feature, kind: u16, family: u8, fill: impl FnOnce(&mut Writer)) {
        let sequence = self.probe.first.wrapping_add(self.probe.asked.len() as u32);
        let mut writer = Writer { bytes: std::mem::take(&mut self.probe.bytes) };
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
        let start = header(&mut writer, kind, flags, sequence, family, 0);
        // The table's name is attribute 1 of every kind of message.
        writer.put_text(NFTA_TABLE_NAME, self.table);
        fill(&mut writer);
        finish(&mut writer, start);
        self.probe.bytes = writer.bytes;
        let on = match feature {
            Feature::Inet | Feature::NetdevIngress => None,
            // Each source has a limit of its own.
            Feature::DynamicSets => Some(Feature::Limit),
            _ => Some(Feature::Inet),
        };
        self.probe.asked.push(Some(Asked { feature, on }));
    }

    fn table(&mut self, feature: Feature, family: u8) {
        self.message(feature, NFT_MSG_NEWTABLE, family, |writer| writer.put_u32(NFTA_TABLE_FLAGS, NFT_TABLE_F_DORMANT));
    }

    fn chain(&mut self, feature: Feature, family: u8, name: &str, base: Option<(u32, Option<&str>)>) {
        self.message(feature, NFT_MSG_NEWCHAIN, family, |writer| {
            writer.put_text(NFTA_CHAIN_NAME, name);
            if let Some((number, device)) = base {
                writer.nest(NFTA_CHAIN_HOOK, |hook| {
                    hook.put_u32(NFTA_HOOK_HOOKNUM, number);
                    hook.put_u32(NFTA_HOOK_PRIORITY, 0);
                    if let Some(device) = device {
                        hook.put_text(NFTA_HOOK_DEV, device);
                    }
                });
                writer.put_u32(NFTA_CHAIN_POLICY, NF_ACCEPT.cast_unsigned());
                writer.put_text(NFTA_CHAIN_TYPE, "filter");
            }
        });
    }

    fn rule(&mut self, feature: Feature, expressions: &[Expression]) {
        self.message(feature, NFT_MSG_NEWRULE, NFPROTO_INET, |writer| {
            writer.put_text(NFTA_RULE_CHAIN, "rules");
            writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
                for (name, fill) in expressions {
                    put(list, NFTA_LIST_ELEM, name, fill);
                }
            });
        });
    }

    /// A set; its id within the batch.
    fn set(&mut self, feature: Feature, name: &str, flags: u32, fill: impl FnOnce(&mut Writer)) -> u32 {
        self.sets += 1;
        let id = self.sets;
        self.message(feature, NFT_MSG_NEWSET, NFPROTO_INET, |writer| {
            writer.put_text(NFTA_SET_NAME, name);
            writer.put_u32(NFTA_SET_FLAGS, flags);
            fill(writer);
            writer.put_u32(NFTA_SET_ID, id);
        });
        id
    }

    fn elements(&mut self, feature: Feature, set: &str, elements: &[fn(&mut Writer)]) {
        self.message(feature, NFT_MSG_NEWSETELEM, NFPROTO_INET, |writer| {
            writer.put_text(NFTA_SET_ELEM_LIST_SET, set);
            writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                for fill in elements {
                    list.nest(NFTA_LIST_ELEM, fill);
                }
            });
        });
    }

    /// A rule that adds a packet's source to a set, each with a limit of its own.
    fn dynamic(&mut self, feature: Feature, set: &str, id: u32) {
        self.message(feature, NFT_MSG_NEWRULE, NFPROTO_INET, |writer| {
            writer.put_text(NFTA_RULE_CHAIN, "rules");
            writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
                put(list, NFTA_LIST_ELEM, "payload", |data| {
                    data.put_u32(NFTA_PAYLOAD_DREG, NFT_REG_1);
                    data.put_u32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
                    data.put_u32(NFTA_PAYLOAD_OFFSET, IPV4_SOURCE_OFFSET);
                    data.put_u32(NFTA_PAYLOAD_LEN, IPV4_BYTES);
                });
                put(list, NFTA_LIST_ELEM, "dynset", |data| {
                    data.put_text(NFTA_DYNSET_SET_NAME, set);
                    data.put_u32(NFTA_DYNSET_SET_ID, id);
                    data.put_u32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                    data.put_u32(NFTA_DYNSET_SREG_KEY, NFT_REG_1);
                    data.put_u64(NFTA_DYNSET_TIMEOUT, TIMEOUT);
                    put(data, NFTA_DYNSET_EXPR, "limit", limit);
                });
            });
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::decode::messages;
    use super::*;

    /// The answers of a kernel that refuses the messages for which `errno` says so.
    fn answers(probe: &Probe, errno: impl Fn(Feature, usize) -> i32) -> Vec<Acknowledgement> {
        let mut count: BTreeMap<Feature, usize> = BTreeMap::new();
        let answered = probe.asked.iter().enumerate().filter_map(|(index, asked)| {
            let feature = asked.as_ref()?.feature;
            let nth = count.entry(feature).or_default();
            *nth += 1;
            let sequence = probe.first.wrapping_add(index as u32);
            Some(Acknowledgement { sequence, errno: errno(feature, *nth), text: None })
        });
        answered.collect()
    }

    #[test]
    fn the_batch_has_no_end_and_numbers_that_wrap() {
        let batch = probe("nodewall-probe", u32::MAX - 3);
        let messages = messages(&batch.bytes).unwrap();
        assert_eq!(messages.len(), batch.len());
        assert_eq!(messages[0].kind, NFNL_MSG_BATCH_BEGIN);
        assert!(messages.iter().all(|message| message.kind != NFNL_MSG_BATCH_END), "it must never come into force");
        for (index, message) in messages.iter().enumerate() {
            assert_eq!(batch.index_of(message.sequence), Some(index));
            assert!(index == 0 || message.flags & NLM_F_ACK != 0);
            let table = message.attributes().unwrap().text(NFTA_TABLE_NAME);
            assert!(index == 0 || table == "nodewall-probe", "{table}");
        }
        assert_eq!(batch.index_of(batch.first.wrapping_sub(1)), None);
    }

    #[test]
    fn what_the_kernel_refuses_is_missing_and_the_rest_is_there() {
        let batch = probe("p", 7);
        let all = batch.read(&answers(&batch, |_, _| 0));
        assert!(all.values().all(|support| *support == Support::Present));
        assert_eq!(all.len() + 6, Feature::ALL.len(), "six features are asked for in other ways");
        // Of a feature with two messages, the second counts, too.
        let lacking = batch.read(&answers(&batch, |feature, nth| match (feature, nth) {
            (Feature::SocketCgroup, _) => ENOENT,
            (Feature::NetdevIngress, 2) => EOPNOTSUPP,
            (Feature::Limit, _) => 12,
            _ => 0,
        }));
        let others: Vec<(Feature, Support)> =
            lacking.into_iter().filter(|(_, support)| *support != Support::Present).collect();
        assert_eq!(
            others,
            [
                (Feature::Limit, Support::Unknown(Some(12))),
                (Feature::DynamicSets, Support::Unknown(None)),
                (Feature::SocketCgroup, Support::Missing(ENOENT)),
                (Feature::NetdevIngress, Support::Missing(EOPNOTSUPP)),
            ]
        );
    }

    #[test]
    fn without_a_table_nothing_is_known_about_what_would_be_in_it() {
        let batch = probe("p", 1);
        let found = batch.read(&answers(&batch, |feature, _| match feature {
            Feature::Inet => EAFNOSUPPORT,
            Feature::NetdevIngress => 0,
            _ => ENOENT,
        }));
        assert_eq!(found[&Feature::Inet], Support::Missing(EAFNOSUPPORT));
        assert_eq!(found[&Feature::Conntrack], Support::Unknown(None));
        assert_eq!(found[&Feature::NetdevIngress], Support::Present);
        assert!(batch.read(&[]).values().all(|support| *support == Support::Unknown(None)));
    }

    #[test]
    fn a_stale_batch_is_refused_at_once_or_not_at_all() {
        let batch = stale("p", u32::MAX, 9);
        let answer = |sequence, errno| Acknowledgement { sequence, errno, text: None };
        assert_eq!(read_stale(&batch, &[answer(9, ERESTART)]), Support::Present);
        assert_eq!(read_stale(&batch, &[answer(10, 0)]), Support::Missing(0));
        assert_eq!(read_stale(&batch, &[answer(9, 1)]), Support::Unknown(Some(1)));
        assert_eq!(read_stale(&batch, &[]), Support::Unknown(None));
    }
}
