//! A batch that was stored: checked to build our table and to touch nothing else, and numbered for a socket of today.

use super::attribute::{Attributes, Malformed, Walk};
use super::constant::*;
use super::decode::{Message, devices, messages};
use crate::nft::{TABLE, TABLE_NAME};

/// A stored batch that was found to be about our table only, ready to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replay {
    /// Everything from batch begin to batch end.
    pub bytes: Vec<u8>,
    /// The sequence number of the batch begin.
    first: u32,
    /// For each message, what it is about.
    subjects: Vec<String>,
}

impl Replay {
    /// What the message of this sequence number is about ("chain input"); `None` for a number of another batch.
    pub fn subject_of(&self, sequence: u32) -> Option<&str> {
        let index = usize::try_from(sequence.wrapping_sub(self.first)).ok()?;
        self.subjects.get(index).map(String::as_str)
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.subjects.len()
    }

    /// Whether there is no message; never so for what [`replay`] returns.
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }
}

/// Expressions that our rules are made of (nft(8) has names for all of them). None sends a packet elsewhere, changes more of one than its
/// mark, or names an object of another table.
const EXPRESSIONS: &[&str] = &[
    "bitwise",
    "byteorder",
    "cmp",
    "counter",
    "ct",
    "dynset",
    "immediate",
    "limit",
    "log",
    "lookup",
    "meta",
    "notrack",
    "payload",
    "range",
    "reject",
    "socket",
];

/// Checks a stored batch and numbers its messages from `first` on. Nothing of the stored headers is believed: the frame, the numbers
/// and the flags are written anew, and only the last change asks for an acknowledgement.
///
/// It must be what [`crate::plan::boot_batch`] wrote: the table made, deleted and made again, so that nothing of before is left, then
/// chains, sets, elements and rules, each of our table by name, with a base chain among them and none that takes a device.
///
/// # Errors
/// Anything else, in words; nothing of such a batch may be sent.
pub fn replay(stored: &[u8], first: u32) -> Result<Replay, Malformed> {
    let all = messages(stored)?;
    let [begin, changes @ .., end] = all.as_slice() else { return Err(wrong("it has no beginning and no end")) };
    if begin.kind != NFNL_MSG_BATCH_BEGIN || end.kind != NFNL_MSG_BATCH_END {
        return Err(wrong("it does not begin or does not end as a batch"));
    }
    let [NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE] = first_three(changes) else {
        return Err(wrong("it does not begin by making the table anew"));
    };
    let mut replay = Replay { bytes: Vec::with_capacity(stored.len()), first, subjects: Vec::new() };
    let mut hooked = false;
    replay.put(NFNL_MSG_BATCH_BEGIN, 0, &FRAME, format!("table {TABLE}"));
    for (index, message) in changes.iter().enumerate() {
        let change = Checked::of(message, index < 3)?;
        hooked |= change.hooked;
        let acknowledged = if index + 1 == changes.len() { NLM_F_ACK } else { 0 };
        let flags = message.flags & (NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND) | acknowledged;
        replay.put(message.kind, flags, message.payload, change.subject);
    }
    replay.put(NFNL_MSG_BATCH_END, 0, &FRAME, format!("table {TABLE}"));
    if hooked { Ok(replay) } else { Err(wrong("it has no base chain: nothing would be in force")) }
}

/// Family, version and resource of the messages around a batch: the resource names the subsystem, in network order.
const FRAME: [u8; NFNETLINK_HEADER_LENGTH] = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];

fn wrong(text: impl Into<String>) -> Malformed {
    Malformed::new(text)
}

fn first_three(changes: &[Message<'_>]) -> [u16; 3] {
    let kind = |index: usize| changes.get(index).and_then(Message::nft).unwrap_or(u16::MAX);
    [kind(0), kind(1), kind(2)]
}

impl Replay {
    fn put(&mut self, kind: u16, flags: u16, payload: &[u8], subject: String) {
        let sequence = self.first.wrapping_add(self.subjects.len() as u32);
        self.bytes.extend_from_slice(&((payload.len() + NLMSG_HEADER_LENGTH) as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.subjects.push(subject);
    }
}

/// A message that builds our table.
struct Checked {
    subject: String,
    /// Whether it is a base chain.
    hooked: bool,
}

impl Checked {
    fn of(message: &Message<'_>, opening: bool) -> Result<Self, Malformed> {
        let kind = message.nft().ok_or_else(|| wrong(format!("a message of type {} in it", message.kind)))?;
        // What our encoder writes; other attributes could name a table by its handle, or make one that does nothing.
        let (what, name, known): (_, _, &[u16]) = match kind {
            NFT_MSG_NEWTABLE if opening => ("table", NFTA_TABLE_NAME, &[NFTA_TABLE_NAME, NFTA_TABLE_FLAGS]),
            NFT_MSG_DELTABLE if opening => ("table", NFTA_TABLE_NAME, &[NFTA_TABLE_NAME]),
            NFT_MSG_NEWCHAIN => (
                "chain",
                NFTA_CHAIN_NAME,
                &[NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE],
            ),
            NFT_MSG_NEWRULE => (
                "a rule in chain",
                NFTA_RULE_CHAIN,
                &[NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA],
            ),
            NFT_MSG_NEWSET => (
                "set",
                NFTA_SET_NAME,
                &[
                    NFTA_SET_TABLE,
                    NFTA_SET_NAME,
                    NFTA_SET_FLAGS,
                    NFTA_SET_KEY_TYPE,
                    NFTA_SET_KEY_LEN,
                    NFTA_SET_DATA_TYPE,
                    NFTA_SET_DATA_LEN,
                    NFTA_SET_DESC,
                    NFTA_SET_ID,
                    NFTA_SET_TIMEOUT,
                    NFTA_SET_USERDATA,
                ],
            ),
            NFT_MSG_NEWSETELEM => (
                "set",
                NFTA_SET_ELEM_LIST_SET,
                &[
                    NFTA_SET_ELEM_LIST_TABLE,
                    NFTA_SET_ELEM_LIST_SET,
                    NFTA_SET_ELEM_LIST_ELEMENTS,
                    NFTA_SET_ELEM_LIST_SET_ID,
                ],
            ),
            other => return Err(wrong(format!("a change of kind {other} in it, which builds nothing"))),
        };
        // Without a family the kernel deletes tables of all families.
        let Some(([family, version, ..], body)) = message.payload.split_first_chunk::<NFNETLINK_HEADER_LENGTH>() else {
            return Err(wrong("a message is shorter than its header"));
        };
        if (*family, *version) != (NFPROTO_INET, 0) {
            return Err(wrong(format!("a {what} of family {family} in it, and ours is inet")));
        }
        let mut ours = false;
        for attribute in Walk::new(body) {
            let (number, value) = attribute?;
            if !known.contains(&number) {
                return Err(wrong(format!("a {what} with attribute {number} in it")));
            }
            // The table's name is attribute 1 of every kind of message. The kernel counts the last of several: all have to be ours.
            if number == NFTA_TABLE_NAME {
                let table = value.strip_suffix(b"\0").unwrap_or(value);
                if table != TABLE_NAME.as_bytes() {
                    return Err(wrong(format!("it names table inet {}", super::attribute::text(value).escape_debug())));
                }
                ours = true;
            }
        }
        if !ours {
            return Err(wrong(format!("a {what} without a table in it")));
        }
        let attributes = Attributes::parse(body)?;
        let mut hooked = false;
        match kind {
            NFT_MSG_NEWTABLE if attributes.u32(NFTA_TABLE_FLAGS)?.unwrap_or(0) != 0 => {
                return Err(wrong("it makes a table with flags, which could be one that does nothing"));
            }
            NFT_MSG_NEWCHAIN => {
                hooked = attributes.get(NFTA_CHAIN_HOOK).is_some();
                if hooked && attributes.text(NFTA_CHAIN_TYPE) != "filter" {
                    return Err(wrong("a base chain in it is not of type filter"));
                }
                if !devices(&attributes.nested(NFTA_CHAIN_HOOK)?)?.is_empty() {
                    return Err(wrong("a base chain in it takes a device, which may not be there"));
                }
            }
            NFT_MSG_NEWRULE => expressions(&attributes)?,
            _ => {}
        }
        let subject = match kind {
            NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE => format!("table {TABLE}"),
            _ => format!("{what} {}", attributes.text(name)),
        };
        Ok(Self { subject, hooked })
    }
}

fn expressions(rule: &Attributes<'_>) -> Result<(), Malformed> {
    for element in Walk::new(rule.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default()) {
        let expression = Attributes::parse(element?.1)?;
        let name = expression.text(NFTA_EXPR_NAME);
        if !EXPRESSIONS.contains(&name.as_str()) {
            return Err(wrong(format!("a rule in it has the expression \"{}\"", name.escape_debug())));
        }
        let data = expression.nested(NFTA_EXPR_DATA)?;
        if name == "meta" && data.get(NFTA_META_SREG).is_some() && data.u32(NFTA_META_KEY)? != Some(NFT_META_MARK) {
            return Err(wrong("a rule in it changes more of a packet than its mark"));
        }
        if name == "dynset" {
            let inner = data.nested(NFTA_DYNSET_EXPR)?.text(NFTA_EXPR_NAME);
            if inner != "limit" || data.get(NFTA_DYNSET_EXPRESSIONS).is_some() {
                return Err(wrong("a rule in it fills a set with something else than limits"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::collections::BTreeMap;

    use super::super::encode;
    use super::*;
    use crate::net::range::RangeSet;
    use crate::nft::change::{Batch, Change};
    use crate::nft::ir::*;
    use crate::nft::key::{DataType, Datum, Key, Side};

    fn changes() -> Vec<Change> {
        let base = BaseChain { hook: Hook::Input, priority: 0, policy: ChainPolicy::Drop, device: None };
        let ports = BTreeMap::from([(ElementKey::of([Datum::from(22u16)]), None)]);
        let lookup = Statement::Lookup {
            keys: vec![Key::Port(Some(crate::net::protocol::Protocol::TCP), Side::Destination)],
            negated: false,
            set: SetRef::Anonymous(Elements::Keys(ports.into())),
        };
        let set = Set {
            key: vec![DataType::Ipv4Addr],
            interval: true,
            map: false,
            dynamic: None,
            elements: Elements::V4(RangeSet::single(7)),
        };
        let limit = Limit { rate: 5, seconds: 60, burst: 5 };
        let meter = Statement::Meter { keys: vec![Key::Mark], set: "senders".to_owned(), limit };
        let dynamic = Some(Dynamic { timeout: 60, size: 100 });
        let none = Elements::Keys(Default::default());
        let senders = Set { key: vec![DataType::Mark], interval: false, map: false, dynamic, elements: none };
        let rule = Rule {
            statements: vec![lookup, meter, Statement::MarkSet(1), Statement::Verdict(Verdict::Accept)],
            comment: None,
        };
        vec![
            Change::AddTable,
            Change::DeleteTable,
            Change::AddTable,
            Change::AddChain { name: "input".to_owned(), base: Some(base) },
            Change::AddSet { name: "peers".to_owned(), set },
            Change::AddSet { name: "senders".to_owned(), set: senders },
            Change::AddRule { chain: "input".to_owned(), rule, before: None, interval_sets: Default::default() },
        ]
    }

    fn bytes(changes: Vec<Change>) -> Vec<u8> {
        encode(&Batch { generation: None, changes }, 0).bytes
    }

    #[test]
    fn what_the_encoder_writes_passes_and_is_numbered_anew() {
        let batch = Batch { generation: None, changes: changes() };
        let stored = encode(&batch, 0).bytes;
        let replayed = replay(&stored, u32::MAX - 2).unwrap();
        assert_eq!(replayed.bytes, encode(&batch, u32::MAX - 2).bytes, "only the numbers differ");
        assert_eq!(replayed.len(), messages(&stored).unwrap().len());
        let subjects: Vec<_> = (0..replayed.len() as u32 + 1)
            .map(|index| replayed.subject_of((u32::MAX - 2).wrapping_add(index)).unwrap_or("none"))
            .collect();
        assert_eq!(subjects[1], "table inet nodewall");
        assert_eq!(subjects[4], "chain input");
        assert_eq!(subjects[5], "set peers");
        assert!(subjects.contains(&"a rule in chain input"), "{subjects:?}");
        assert_eq!(subjects.last(), Some(&"none"));
        assert!(!replayed.is_empty());
    }

    #[test]
    fn numbers_flags_and_padding_of_the_file_do_not_matter() {
        let good = bytes(changes());
        let mut odd = good.clone();
        // Of the second message: an acknowledgement asked for, another number, another port.
        odd[20 + 6] |= NLM_F_ACK as u8;
        odd[20 + 8..20 + 16].copy_from_slice(&[9; 8]);
        assert_eq!(replay(&odd, 1), replay(&good, 1));
    }

    /// Every name of our table, one after the other, as that of another.
    #[test]
    fn a_batch_that_names_another_table_anywhere_is_refused() {
        let good = bytes(changes());
        let name = b"nodewall\0";
        let places: Vec<usize> =
            (0..good.len() - name.len()).filter(|at| good[*at..].starts_with(name.as_slice())).collect();
        assert!(places.len() >= 8, "{places:?}");
        for place in places {
            let mut hostile = good.clone();
            hostile[place..place + 8].copy_from_slice(b"filter\0\0");
            let error = replay(&hostile, 1).unwrap_err().to_string();
            assert_eq!(error, "it names table inet filter", "at {place}");
        }
    }

    /// Whatever a byte turns into, what passes still speaks of our table alone.
    #[test]
    fn no_flipped_byte_leads_elsewhere() {
        let good = bytes(changes());
        let mut passed = 0;
        for (at, change) in (0..good.len()).flat_map(|at| [1u8, 2, 4, 0x80, 0xff].map(|change| (at, change))) {
            let mut changed = good.clone();
            changed[at] ^= change;
            let Ok(replayed) = replay(&changed, 1) else { continue };
            passed += 1;
            let all = messages(&replayed.bytes).unwrap();
            for message in &all[1..all.len() - 1] {
                assert_eq!(message.payload[0], NFPROTO_INET, "byte {at} ^ {change}");
                let attributes = Attributes::parse(&message.payload[NFNETLINK_HEADER_LENGTH..]).unwrap();
                assert_eq!(attributes.text(NFTA_TABLE_NAME), TABLE_NAME, "byte {at} ^ {change}");
            }
        }
        assert!(passed > 100, "{passed}: most bytes are contents, which are the kernel's to judge");
    }

    #[test]
    fn whatever_else_is_in_it_is_refused() {
        let good = bytes(changes());
        let refused = |bytes: &[u8]| replay(bytes, 1).expect_err("refused").to_string();
        assert_eq!(refused(b""), "it has no beginning and no end");
        assert!(refused(&good[20..]).contains("does not begin"), "without its beginning");
        assert!(refused(&good[..good.len() - 20]).contains("does not end"), "without its end");
        for length in 0..good.len() {
            assert!(replay(&good[..length], 1).is_err(), "cut to {length} bytes");
        }
        // Twice the same: what comes after the first end would not be ours.
        assert!(replay(&[good.clone(), good.clone()].concat(), 1).is_err());

        let without = |index: usize| {
            let mut changes = changes();
            changes.remove(index);
            refused(&bytes(changes))
        };
        assert!(without(0).contains("making the table anew"));
        assert!(without(1).contains("making the table anew"));
        assert!(without(2).contains("making the table anew"));
        assert!(refused(&bytes(changes()[..3].to_vec())).contains("nothing would be in force"));

        let with = |change: Change| refused(&bytes([changes(), vec![change]].concat()));
        assert!(with(Change::DeleteTable).contains("builds nothing"));
        assert!(with(Change::DeleteChain { name: "input".to_owned() }).contains("builds nothing"));
        assert!(with(Change::FlushChain { name: "input".to_owned() }).contains("builds nothing"));
        let foreign = Rule { statements: vec![Statement::Foreign("x".to_owned())], comment: None };
        let change = Change::AddRule {
            chain: "input".to_owned(),
            rule: foreign,
            before: None,
            interval_sets: Default::default(),
        };
        assert!(with(change).contains("the expression \"foreign\""));

        let device = Some(Datum::name("eth0"));
        let base = BaseChain { hook: Hook::Ingress, priority: 0, policy: ChainPolicy::Accept, device };
        assert!(with(Change::AddChain { name: "early".to_owned(), base: Some(base) }).contains("takes a device"));
        // The mark is set in the last rule; another key of `meta set` than 3, and another expression than a limit in the set.
        let patched_in = |pattern: &[u8], at: usize, byte: u8| {
            let place = good.windows(pattern.len()).rposition(|window| window == pattern).unwrap();
            let mut bytes = good.clone();
            bytes[place + at] = byte;
            refused(&bytes)
        };
        let set_mark = [8, 0, 2, 0, 0, 0, 0, 3, 8, 0, 3, 0];
        assert!(patched_in(&set_mark, 7, 0x11).contains("more of a packet than its mark"));
        assert!(patched_in(b"limit\0", 0, b'L').contains("something else than limits"));

        // The first message after the frame is the table: 20 bytes of frame, 16 of header, family, version, resource.
        let patched = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            refused(&bytes)
        };
        assert!(patched(20 + 16, 0).contains("family 0"), "every family");
        assert!(patched(20 + 16, NFPROTO_IPV4).contains("family 2"));
        assert!(patched(20 + 5, 1).contains("making the table anew"), "another subsystem");
        // Name: 4 + 9 bytes, padded to 16; then the flags: 4 + 4.
        assert_eq!(&good[40..44], &[13, 0, 1, 0]);
        assert!(patched(40 + 16 + 7, 1).contains("with flags"), "dormant");
        assert!(patched(40 + 2, 4).contains("attribute 4"), "a table by its handle");
        assert!(patched(40 + 2, 2).contains("without a table"), "no name: the kernel takes all tables");
    }
}
