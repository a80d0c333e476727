//! A batch to the bytes of one sendmsg.

use super::attribute::Writer;
use super::constant::*;
use super::expression::put_rule;
use super::set::{Shape, chunks, put_list, put_set};
use crate::nft::TABLE_NAME;
use crate::nft::change::{Batch, Change};
use crate::nft::ir::{ChainPolicy, Elements, Set, SetRef, Statement};
use crate::nft::key::{DataType, Datum, Key};

/// A batch as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Encoded {
    /// Everything from batch begin to batch end.
    pub bytes: Vec<u8>,
    /// The sequence number of the first message, the batch begin.
    first: u32,
    /// For each message, which change it belongs to.
    owners: Vec<Option<usize>>,
    /// The one message that asks for an acknowledgement: the last before the batch end. Every message before it is
    /// answered only if it fails, so that acknowledgements never fill the socket's buffer.
    pub last: u32,
}

impl Encoded {
    /// The index of the change that the message of this sequence number belongs to; `None` for the batch's frame.
    pub fn change_of(&self, sequence: u32) -> Option<usize> {
        self.owners.get(usize::try_from(sequence.wrapping_sub(self.first)).ok()?).copied().flatten()
    }

    /// Whether the sequence number is one of this batch.
    pub fn contains(&self, sequence: u32) -> bool {
        usize::try_from(sequence.wrapping_sub(self.first)).is_ok_and(|index| index < self.owners.len())
    }

    /// How many messages there are: the next free sequence number is `first + len`.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether there is no message; never so for what [`encode`] returns.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }
}

/// A request outside a batch (get, dump). `kind` is a `NFT_MSG_` number, `texts` its string attributes.
pub fn request(kind: u16, flags: u16, sequence: u32, texts: &[(u16, &str)]) -> Vec<u8> {
    let mut writer = Writer::default();
    let start = header(&mut writer, NFNL_SUBSYS_NFTABLES << 8 | kind, flags | NLM_F_REQUEST, sequence, NFPROTO_INET, 0);
    for (attribute, text) in texts {
        writer.put_text(*attribute, text);
    }
    finish(&mut writer, start);
    writer.bytes
}

/// A dump request about the tables of every family.
pub fn request_of_all_families(kind: u16, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let start =
        header(&mut writer, NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_DUMP | NLM_F_REQUEST, sequence, NFPROTO_UNSPEC, 0);
    finish(&mut writer, start);
    writer.bytes
}

/// A request that looks up the elements of a small set by their keys (`NFT_MSG_GETSETELEM` without a dump).
pub fn get_elements(name: &str, set: &Set, sequence: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
    let start = header(&mut writer, kind, NLM_F_REQUEST | NLM_F_ACK, sequence, NFPROTO_INET, 0);
    let mut first = true;
    chunks(&Shape::of(set), &set.elements, |list| {
        if std::mem::take(&mut first) {
            put_list(&mut writer, name, None, list);
        }
    });
    finish(&mut writer, start);
    writer.bytes
}

/// The whole batch; `first` is the sequence number of its first message.
pub fn encode(batch: &Batch, first: u32) -> Encoded {
    let mut encoder = Encoder { writer: Writer::default(), first, owners: Vec::new(), last_start: 0, set_id: 0 };
    encoder.frame(NFNL_MSG_BATCH_BEGIN, batch.generation);
    for (index, change) in batch.changes.iter().enumerate() {
        encoder.change(index, change);
    }
    let acknowledged = encoder.last_start + FLAGS_OFFSET;
    if let Some(flags) = encoder.writer.bytes.get_mut(acknowledged..acknowledged + 2) {
        let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&asked.to_ne_bytes());
    }
    let last = first.wrapping_add(encoder.owners.len().saturating_sub(1) as u32);
    encoder.frame(NFNL_MSG_BATCH_END, None);
    Encoded { bytes: encoder.writer.bytes, first, owners: encoder.owners, last }
}

/// Where the flags are in a message's header.
const FLAGS_OFFSET: usize = 6;

/// Appends a netlink and a nfnetlink header; [`finish`] fills in the length.
pub(super) fn header(writer: &mut Writer, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> usize {
    let start = writer.bytes.len();
    writer.bytes.extend_from_slice(&[0; 4]);
    writer.bytes.extend_from_slice(&kind.to_ne_bytes());
    writer.bytes.extend_from_slice(&flags.to_ne_bytes());
    writer.bytes.extend_from_slice(&sequence.to_ne_bytes());
    writer.bytes.extend_from_slice(&[0; 4]);
    writer.bytes.extend_from_slice(&[family, 0]);
    writer.bytes.extend_from_slice(&resource.to_be_bytes());
    start
}

pub(super) fn finish(writer: &mut Writer, start: usize) {
    let length = (writer.bytes.len() - start) as u32;
    writer.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

struct Encoder {
    writer: Writer,
    first: u32,
    owners: Vec<Option<usize>>,
    /// Where the last message begins.
    last_start: usize,
    set_id: u32,
}

impl Encoder {
    fn frame(&mut self, kind: u16, generation: Option<u32>) {
        let sequence = self.sequence();
        self.last_start = header(&mut self.writer, kind, NLM_F_REQUEST, sequence, 0, NFNL_SUBSYS_NFTABLES);
        if let Some(generation) = generation {
            self.writer.put_u32(NFNL_BATCH_GENID, generation);
        }
        finish(&mut self.writer, self.last_start);
        self.owners.push(None);
    }

    fn sequence(&self) -> u32 {
        self.first.wrapping_add(self.owners.len() as u32)
    }

    fn message(&mut self, owner: usize, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) {
        let sequence = self.sequence();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        let start = header(&mut self.writer, kind, flags | NLM_F_REQUEST, sequence, NFPROTO_INET, 0);
        fill(&mut self.writer);
        finish(&mut self.writer, start);
        self.last_start = start;
        self.owners.push(Some(owner));
    }

    fn change(&mut self, owner: usize, change: &Change) {
        match change {
            Change::AddTable => self.message(owner, NFT_MSG_NEWTABLE, NLM_F_CREATE, |writer| {
                writer.put_text(NFTA_TABLE_NAME, TABLE_NAME);
                writer.put_u32(NFTA_TABLE_FLAGS, 0);
            }),
            Change::DeleteTable => {
                self.message(owner, NFT_MSG_DELTABLE, 0, |writer| writer.put_text(NFTA_TABLE_NAME, TABLE_NAME));
            }
            Change::AddChain { name, base } => self.message(owner, NFT_MSG_NEWCHAIN, NLM_F_CREATE, |writer| {
                writer.put_text(NFTA_CHAIN_TABLE, TABLE_NAME);
                writer.put_text(NFTA_CHAIN_NAME, name);
                if let Some(base) = base {
                    writer.nest(NFTA_CHAIN_HOOK, |hook| {
                        hook.put_u32(NFTA_HOOK_HOOKNUM, base.hook.number());
                        hook.put_u32(NFTA_HOOK_PRIORITY, base.priority as u32);
                        if let Some(device) = &base.device {
                            hook.put(NFTA_HOOK_DEV, &terminated(device));
                        }
                    });
                    let policy = match base.policy {
                        ChainPolicy::Accept => NF_ACCEPT,
                        ChainPolicy::Drop => NF_DROP,
                    };
                    writer.put_u32(NFTA_CHAIN_POLICY, policy as u32);
                    writer.put_text(NFTA_CHAIN_TYPE, "filter");
                }
            }),
            Change::DeleteChain { name } => self.message(owner, NFT_MSG_DELCHAIN, 0, |writer| {
                writer.put_text(NFTA_CHAIN_TABLE, TABLE_NAME);
                writer.put_text(NFTA_CHAIN_NAME, name);
            }),
            Change::FlushChain { name } => self.message(owner, NFT_MSG_DELRULE, 0, |writer| {
                writer.put_text(NFTA_RULE_TABLE, TABLE_NAME);
                writer.put_text(NFTA_RULE_CHAIN, name);
            }),
            Change::DeleteRule { chain, handle } => self.message(owner, NFT_MSG_DELRULE, 0, |writer| {
                writer.put_text(NFTA_RULE_TABLE, TABLE_NAME);
                writer.put_text(NFTA_RULE_CHAIN, chain);
                writer.put_u64(NFTA_RULE_HANDLE, *handle);
            }),
            Change::AddRule { chain, rule, before, interval_sets } => {
                let mut ids = Vec::new();
                for statement in &rule.statements {
                    if let Some((keys, elements, map)) = anonymous(statement) {
                        let key: Vec<DataType> = keys.iter().map(|key| key.data_type()).collect();
                        let interval = elements.needs_interval();
                        ids.push(self.anonymous_set(
                            owner,
                            &Shape { key: &key, interval, map, dynamic: None },
                            elements,
                        ));
                    }
                }
                let flags = NLM_F_CREATE | if before.is_none() { NLM_F_APPEND } else { 0 };
                self.message(owner, NFT_MSG_NEWRULE, flags, |writer| {
                    writer.put_text(NFTA_RULE_TABLE, TABLE_NAME);
                    writer.put_text(NFTA_RULE_CHAIN, chain);
                    if let Some(handle) = before {
                        writer.put_u64(NFTA_RULE_POSITION, *handle);
                    }
                    put_rule(writer, rule, &ids, &|name| interval_sets.contains(name));
                });
            }
            Change::AddSet { name, set } => {
                self.set_id += 1;
                let id = self.set_id;
                self.message(owner, NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL, |writer| {
                    put_set(writer, name, &Shape::of(set), id, None);
                });
                self.elements(owner, NFT_MSG_NEWSETELEM, name, None, &Shape::of(set), &set.elements);
            }
            Change::DeleteSet { name } => self.message(owner, NFT_MSG_DELSET, 0, |writer| {
                writer.put_text(NFTA_SET_TABLE, TABLE_NAME);
                writer.put_text(NFTA_SET_NAME, name);
            }),
            Change::AddElements { name, set } => {
                self.elements(owner, NFT_MSG_NEWSETELEM, name, None, &Shape::of(set), &set.elements);
            }
            Change::DeleteElements { name, set } => {
                self.elements(owner, NFT_MSG_DELSETELEM, name, None, &Shape::of(set), &set.elements);
            }
        }
    }

    /// A set that goes with its rule: the kernel names it, the batch knows it by its id.
    fn anonymous_set(&mut self, owner: usize, shape: &Shape<'_>, elements: &Elements) -> u32 {
        self.set_id += 1;
        let id = self.set_id;
        let name = anonymous_name(shape.map);
        self.message(owner, NFT_MSG_NEWSET, NLM_F_CREATE, |writer| {
            put_set(writer, name, shape, id, Some(elements.len()));
        });
        self.elements(owner, NFT_MSG_NEWSETELEM, name, Some(id), shape, elements);
        id
    }

    fn elements(
        &mut self,
        owner: usize,
        kind: u16,
        name: &str,
        id: Option<u32>,
        shape: &Shape<'_>,
        elements: &Elements,
    ) {
        let flags = if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
        chunks(shape, elements, |list| {
            self.message(owner, kind, flags, |writer| put_list(writer, name, id, list));
        });
    }
}

/// A name's bytes as the kernel takes a string.
fn terminated(name: &Datum) -> Vec<u8> {
    name.bytes().iter().copied().take_while(|byte| *byte != 0).chain([0]).collect()
}

/// The pattern that the kernel makes an anonymous set's name of.
pub(super) const fn anonymous_name(map: bool) -> &'static str {
    if map { "__map%d" } else { "__set%d" }
}

/// The keys and elements of a statement with an anonymous set, and whether it is a map.
pub(super) fn anonymous(statement: &Statement) -> Option<(&[Key], &Elements, bool)> {
    match statement {
        Statement::Lookup { keys, set: SetRef::Anonymous(elements), .. } => Some((keys, elements, false)),
        Statement::Vmap { keys, map: SetRef::Anonymous(elements) } => Some((keys, elements, true)),
        _ => None,
    }
}
