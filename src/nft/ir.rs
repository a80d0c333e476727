//! The IR: one table's chains, rules and sets, in the words of nft(8). Equal values are equal rulesets: counters and
//! handles are not part of it.

use std::collections::BTreeMap;

use super::key::{DataType, Datum, Key};
use crate::net::range::RangeSet;
use crate::net::shared::Shared;

/// Everything in our table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ruleset {
    /// The named sets and verdict maps by name.
    pub sets: BTreeMap<String, Set>,
    /// The chains by name. Rulesets that differ in their sets only share them.
    pub chains: Shared<BTreeMap<String, Chain>>,
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chain {
    /// Where the kernel enters it; `None` for a chain that rules jump to.
    pub base: Option<BaseChain>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// What makes a chain a base chain of type filter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BaseChain {
    /// The hook.
    pub hook: Hook,
    /// The priority among the base chains at that hook; lower goes first.
    pub priority: i32,
    /// What happens at its end.
    pub policy: ChainPolicy,
    /// The interface of a chain at [`Hook::Ingress`], as [`Datum::name`]; `None` at every other hook.
    pub device: Option<Datum>,
}

/// A netfilter hook of the inet family (`enum nf_inet_hooks`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// As it arrives on one interface, before reassembly and connection tracking (Linux 5.10; `NF_INET_INGRESS`). IPv4 and IPv6 only:
    /// what still has a VLAN tag at this point goes by (kernel nft_chain_filter.c `nft_do_chain_inet_ingress`).
    Ingress,
    /// Before routing.
    Prerouting,
    /// To a local socket.
    Input,
    /// Through this host.
    Forward,
    /// From a local socket.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// Its number in the kernel.
    pub const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Ingress => 5,
        }
    }

    /// Its name in nft(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// Every hook.
    pub const ALL: [Self; 6] =
        [Self::Ingress, Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];
}

/// What a base chain does with a packet that reaches its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ChainPolicy {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}

/// A rule: statements from left to right; a match that fails ends it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
    /// The comment (`NFTA_RULE_USERDATA`), at most 127 bytes.
    pub comment: Option<String>,
}

/// One statement of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// `KEY VALUE`, `KEY != VALUE`
    Match {
        /// What is looked at.
        key: Key,
        /// `!=` instead of `==`.
        negated: bool,
        /// What it is compared with.
        value: Value,
    },
    /// `KEY . KEY @set`, `KEY { ... }`, and with `!=`
    Lookup {
        /// What is looked up; more than one is a concatenation.
        keys: Vec<Key>,
        /// `!=` instead of `==`.
        negated: bool,
        /// Where.
        set: SetRef,
    },
    /// `KEY . KEY vmap @map`, `KEY vmap { ... }`
    Vmap {
        /// What is looked up.
        keys: Vec<Key>,
        /// Where.
        map: SetRef,
    },
    /// `counter`
    Counter,
    /// `limit rate N/second burst N packets`
    Limit(Limit),
    /// `update @set { ip saddr limit rate N/second burst N packets }`: a bucket for each key, kept in a dynamic set. It ends the
    /// rule when the key's bucket is empty, or when the set is full (kernel nft_dynset.c).
    Meter {
        /// What has a bucket of its own.
        keys: Vec<Key>,
        /// The dynamic set.
        set: String,
        /// Each bucket.
        limit: Limit,
    },
    /// `notrack`: no conntrack entry; only in prerouting and output before conntrack (priority below -200).
    Notrack,
    /// `meta mark set meta mark | BITS`
    MarkSet(u32),
    /// `meta mark set meta mark & ~BITS`
    MarkClear(u32),
    /// `log prefix "..." group N`
    Log {
        /// The prefix, at most 127 bytes.
        prefix: String,
        /// The NFLOG group.
        group: u16,
    },
    /// `reject with tcp reset` or `reject with icmpx admin-prohibited`
    Reject(Reject),
    /// A verdict; nothing after it runs.
    Verdict(Verdict),
    /// Something in the kernel that we never emit, in words: only read back, never sent, equal to nothing we compile.
    Foreign(String),
}

/// A token bucket (nft(8) "LIMIT STATEMENT").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Limit {
    /// Packets...
    pub rate: u32,
    /// ...in so many seconds: 1, 60, 3600 or 86,400 (`/second`, `/minute`, `/hour`, `/day`).
    pub seconds: u32,
    /// Packets at once.
    pub burst: u32,
}

/// What makes a set dynamic: rules put elements into it, and they time out (`flags dynamic,timeout`). What is in it is never part
/// of the ruleset, neither when it is compared nor when it is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dynamic {
    /// Seconds after which an element that no packet updates is gone.
    pub timeout: u32,
    /// The most elements; a packet whose key does not fit ends the rule.
    pub size: u32,
}

/// What a single key is compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Value {
    /// One value.
    Is(Datum),
    /// A prefix of so many bits (`ip saddr 10.0.0.0/8`); of interface names whole bytes, those before the `*`.
    Prefix(Datum, u8),
    /// An inclusive range.
    Range(Datum, Datum),
    /// Any of these bits (`ct state established,related`, `meta mark & 0x10 != 0`).
    Flags(u32),
}

/// A named set, or one that is written into the rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SetRef {
    /// `@name`
    Named(String),
    /// `{ ... }`: the kernel names it, and it goes with its rule.
    Anonymous(Elements),
}

/// A named set or verdict map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// The types of its key; more than one is a concatenation.
    pub key: Vec<DataType>,
    /// `flags interval`: elements may be ranges.
    pub interval: bool,
    /// Whether its elements carry verdicts.
    pub map: bool,
    /// Whether rules fill it; `elements` is empty then.
    pub dynamic: Option<Dynamic>,
    /// What is in it.
    pub elements: Elements,
}

/// What is in a set. Address sets are kept as ranges, since they may be large.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elements {
    /// `ipv4_addr` ranges.
    V4(RangeSet<u32>),
    /// `ipv6_addr` ranges.
    V6(RangeSet<u128>),
    /// Anything else, and every map: key to verdict (`None` in a plain set). Keys must not overlap.
    Keys(Shared<BTreeMap<ElementKey, Option<Verdict>>>),
}

impl Elements {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.ranges().len(),
            Self::V6(ranges) => ranges.ranges().len(),
            Self::Keys(keys) => keys.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an element is a range, so that the set needs `flags interval`.
    pub fn needs_interval(&self) -> bool {
        match self {
            Self::V4(ranges) => !ranges.is_discrete(),
            Self::V6(ranges) => !ranges.is_discrete(),
            Self::Keys(keys) => keys.keys().any(|key| key.0.iter().any(|(start, end)| start != end)),
        }
    }
}

/// The key of an element: an inclusive range per field, `(v, v)` for a single value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ElementKey(pub Vec<(Datum, Datum)>);

impl ElementKey {
    /// A key of single values.
    pub fn of(values: impl IntoIterator<Item = Datum>) -> Self {
        Self(values.into_iter().map(|value| (value, value)).collect())
    }
}

/// What happens to the packet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// It leaves our base chain; later base chains still see it.
    Accept,
    /// It is gone.
    Drop,
    /// Back to the rule after the jump.
    Return,
    /// On in another chain, and back.
    Jump(String),
    /// On in another chain for good.
    Goto(String),
}

/// How a rejected packet is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reject {
    /// `reject with tcp reset`; the rule must match TCP only.
    TcpReset,
    /// `reject with icmpx admin-prohibited`: ICMP or ICMPv6 by the packet's family.
    AdminProhibited,
}

/// `ct state` bits (kernel `NF_CT_STATE_BIT`, include/net/netfilter/nf_conntrack_common.h).
pub mod ct_state {
    /// `invalid`
    pub const INVALID: u32 = 1;
    /// `established`
    pub const ESTABLISHED: u32 = 2;
    /// `related`
    pub const RELATED: u32 = 4;
    /// `new`
    pub const NEW: u32 = 8;
    /// `untracked`
    pub const UNTRACKED: u32 = 64;
}
