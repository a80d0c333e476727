//! What the kernel sends to messages, and dumps to [`Loaded`].

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::{Attributes, Malformed, Walk};
use super::constant::*;
use super::expression::{Used, read_rule};
use super::set::{Gathered, Read, read_set};
use crate::nft::TABLE_NAME;
use crate::nft::change::Loaded;
use crate::nft::ir::{BaseChain, Chain, ChainPolicy, Elements, Hook, Set};
use crate::nft::key::Datum;

/// One netlink message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Its type: a control message, or `NFNL_SUBSYS_NFTABLES << 8` and a `NFT_MSG_` number.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The sequence number of the request that it answers.
    pub sequence: u32,
    /// The port of the socket whose request it answers or, in a notification, whose transaction it is about.
    pub port: u32,
    /// What comes after the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Its `NFT_MSG_` number, if it is one of nf_tables.
    pub fn nft(&self) -> Option<u16> {
        (self.kind >> 8 == NFNL_SUBSYS_NFTABLES).then_some(self.kind & 0xff)
    }

    pub(super) fn attributes(&self) -> Result<Attributes<'a>, Malformed> {
        let Some(attributes) = self.payload.get(NFNETLINK_HEADER_LENGTH..) else {
            return Err(Malformed::new("a message is shorter than its header"));
        };
        Attributes::parse(attributes)
    }
}

/// The messages of one datagram.
///
/// # Errors
/// A length that lies.
pub fn messages(mut bytes: &[u8]) -> Result<Vec<Message<'_>>, Malformed> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<NLMSG_HEADER_LENGTH>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(payload) = bytes.get(NLMSG_HEADER_LENGTH..length) else {
            return Err(Malformed::new(format!("a message of {length} bytes in {}", bytes.len())));
        };
        found.push(Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            port: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
            payload,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    if bytes.is_empty() { Ok(found) } else { Err(Malformed::new("a message is shorter than its header")) }
}

/// The kernel's answer to one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acknowledgement {
    /// The message that it answers.
    pub sequence: u32,
    /// The error number; 0 for none.
    pub errno: i32,
    /// What the kernel says in words (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
}

/// Reads an error or acknowledgement; `None` if the message is something else. The end of a dump may carry an error too.
///
/// # Errors
/// A message that is too short.
pub fn acknowledgement(message: &Message<'_>) -> Result<Option<Acknowledgement>, Malformed> {
    if message.kind != NLMSG_ERROR && message.kind != NLMSG_DONE {
        return Ok(None);
    }
    let Some((code, rest)) = message.payload.split_first_chunk::<4>() else {
        return if message.kind == NLMSG_DONE {
            Ok(Some(Acknowledgement { sequence: message.sequence, errno: 0, text: None }))
        } else {
            Err(Malformed::new("an error message is shorter than its header"))
        };
    };
    let errno = i32::from_ne_bytes(*code).saturating_neg();
    let mut text = None;
    if message.kind == NLMSG_ERROR && message.flags & NLM_F_ACK_TLVS != 0 {
        // After the error comes the request's header, and, unless the answer is capped, the rest of the request.
        let length = match rest.first_chunk::<4>() {
            Some(length) if message.flags & NLM_F_CAPPED == 0 => u32::from_ne_bytes(*length) as usize,
            _ => NLMSG_HEADER_LENGTH,
        };
        let attributes = Attributes::parse(rest.get(length.next_multiple_of(4)..).unwrap_or_default())?;
        text = attributes.get(NLMSGERR_ATTR_MSG).map(super::attribute::text);
    }
    Ok(Some(Acknowledgement { sequence: message.sequence, errno, text }))
}

/// The generation id in a NEWGEN message.
///
/// # Errors
/// A message without one.
pub fn generation(message: &Message<'_>) -> Result<u32, Malformed> {
    message.attributes()?.u32(NFTA_GEN_ID)?.ok_or_else(|| Malformed::new("a generation without a number"))
}

/// Our table as its parts come in from several dumps, in any order.
#[derive(Debug, Default)]
pub struct Snapshot {
    exists: bool,
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, Read>,
    elements: BTreeMap<String, Gathered>,
    /// The rules as bytes: they are read when the anonymous sets are there.
    rules: Vec<(String, Vec<u8>)>,
    foreign: Vec<String>,
}

impl Snapshot {
    /// Takes in one message of a dump; what is not about our table is left aside.
    ///
    /// # Errors
    /// A message that is not as the kernel writes it.
    pub fn take(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let Some(kind) = message.nft() else { return Ok(()) };
        let family = message.payload.first().copied();
        if family != Some(NFPROTO_INET) {
            return Ok(());
        }
        let attributes = message.attributes()?;
        // The table's name is attribute 1 of every kind of message.
        if attributes.text(NFTA_TABLE_NAME) != TABLE_NAME {
            return Ok(());
        }
        match kind {
            NFT_MSG_NEWTABLE => {
                self.exists = true;
                let flags = attributes.u32(NFTA_TABLE_FLAGS)?.unwrap_or(0);
                if flags != 0 {
                    self.foreign.push(format!("table flags {flags:#x}"));
                }
            }
            NFT_MSG_NEWCHAIN => self.chain(&attributes)?,
            NFT_MSG_NEWRULE => {
                let body = message.payload.get(NFNETLINK_HEADER_LENGTH..).unwrap_or_default();
                self.rules.push((attributes.text(NFTA_RULE_CHAIN), body.to_vec()));
            }
            NFT_MSG_NEWSET => {
                let read = read_set(&attributes)?;
                self.sets.insert(read.name.clone(), read);
            }
            NFT_MSG_NEWSETELEM => {
                let list = attributes.get(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                self.elements.entry(attributes.text(NFTA_SET_ELEM_LIST_SET)).or_default().read(list)?;
            }
            NFT_MSG_NEWOBJ => self.foreign.push(format!("object {}", attributes.text(NFTA_OBJ_NAME))),
            NFT_MSG_NEWFLOWTABLE => {
                self.foreign.push(format!("flowtable {}", attributes.text(NFTA_FLOWTABLE_NAME)));
            }
            _ => {}
        }
        Ok(())
    }

    fn chain(&mut self, attributes: &Attributes<'_>) -> Result<(), Malformed> {
        let name = attributes.text(NFTA_CHAIN_NAME);
        let mut base = None;
        if attributes.get(NFTA_CHAIN_HOOK).is_some() {
            let hook = attributes.nested(NFTA_CHAIN_HOOK)?;
            let number = hook.u32(NFTA_HOOK_HOOKNUM)?.unwrap_or(u32::MAX);
            let priority = hook.u32(NFTA_HOOK_PRIORITY)?.unwrap_or(0) as i32;
            let kind = attributes.text(NFTA_CHAIN_TYPE);
            let policy = match attributes.u32(NFTA_CHAIN_POLICY)?.map(|policy| policy as i32) {
                Some(NF_DROP) => ChainPolicy::Drop,
                _ => ChainPolicy::Accept,
            };
            let devices = devices(&hook)?;
            match (Hook::ALL.into_iter().find(|hook| hook.number() == number), devices.as_slice()) {
                (Some(hook), [] | [_]) if kind == "filter" => {
                    base = Some(BaseChain { hook, priority, policy, device: devices.first().copied() });
                }
                (Some(_), [_, _, ..]) => self.foreign.push(format!("chain {name} on {} devices", devices.len())),
                _ => self.foreign.push(format!("chain {name} of type {kind} at hook {number}")),
            }
        }
        self.chains.insert(name, Chain { base, rules: Vec::new() });
        Ok(())
    }

    /// Whether our table was among what came in.
    pub fn exists(&self) -> bool {
        self.exists
    }

    /// The sets whose elements have to be read: all anonymous ones, since they are part of their rules, and those named
    /// ones that `wanted` says. What rules have put into a dynamic set is none of ours.
    pub fn sets_to_read(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let ours = |set: &Read| set.set.as_ref().is_ok_and(|set| set.dynamic.is_none());
        let readable = self.sets.values().filter(|set| ours(set) && (set.anonymous || wanted(&set.name)));
        readable.map(|set| set.name.clone()).collect()
    }

    /// The table, given the sets whose elements came in.
    ///
    /// # Errors
    /// A rule or an element that is not as the kernel writes it.
    pub fn finish(mut self, generation: u32, read: &[String]) -> Result<Loaded, Malformed> {
        let read: BTreeSet<&str> = read.iter().map(String::as_str).collect();
        let mut loaded = Loaded { generation, exists: self.exists, ..Loaded::default() };
        let mut anonymous: BTreeMap<String, Elements> = BTreeMap::new();
        let intervals: BTreeSet<String> =
            self.sets.values().filter(|set| set.interval).map(|set| set.name.clone()).collect();
        for (name, set) in self.sets {
            let mut shape = match set.set {
                Ok(shape) => shape,
                Err(words) => {
                    self.foreign.push(words);
                    continue;
                }
            };
            if read.contains(name.as_str()) {
                let (elements, foreign) = self.elements.remove(&name).unwrap_or_default().finish(&shape)?;
                shape.elements = elements;
                self.foreign.extend(foreign.into_iter().map(|words| format!("{words} in set {name}")));
            } else if shape.dynamic.is_none() {
                loaded.unread.push(name.clone());
            }
            if set.anonymous {
                anonymous.insert(name, shape.elements);
            } else {
                loaded.ruleset.sets.insert(name, shape);
            }
        }
        for (chain, body) in &self.rules {
            let used =
                |name: &str, _| Used { elements: anonymous.get(name).cloned(), interval: intervals.contains(name) };
            let (rule, state) = read_rule(&Attributes::parse(body)?, &used)?;
            self.chains.entry(chain.clone()).or_default().rules.push(rule);
            loaded.rules.entry(chain.clone()).or_default().push(state);
        }
        for name in self.chains.keys() {
            loaded.rules.entry(name.clone()).or_default();
        }
        loaded.ruleset.chains = self.chains.into();
        self.foreign.sort();
        self.foreign.dedup();
        loaded.foreign = self.foreign;
        Ok(loaded)
    }
}

/// The devices of a hook. The kernel names a single one in two ways, in older versions in one of them.
pub(super) fn devices(hook: &Attributes<'_>) -> Result<Vec<Datum>, Malformed> {
    let mut devices = Vec::new();
    for device in Walk::new(hook.get(NFTA_HOOK_DEVS).unwrap_or_default()) {
        let (kind, name) = device?;
        // Linux 6.16 has chains on all devices whose names begin alike, as nft writes them with a star.
        devices.push(padded_name(name, if kind == NFTA_DEVICE_NAME { b"" } else { b"*" }));
    }
    if devices.is_empty() {
        devices.extend(hook.get(NFTA_HOOK_DEV).map(|name| padded_name(name, b"")));
    }
    Ok(devices)
}

/// A name with something behind it as [`Datum::name`] pads it, without its terminator.
fn padded_name(name: &[u8], behind: &[u8]) -> Datum {
    let mut padded = [0; 16];
    let letters = name.iter().take_while(|byte| **byte != 0).chain(behind);
    for (byte, letter) in padded.iter_mut().zip(letters).take(15) {
        *byte = *letter;
    }
    Datum::new(&padded)
}

/// The elements that answer [`get_elements`](super::get_elements), in the payloads of one or more messages.
///
/// # Errors
/// An element that is not as the kernel writes it.
pub fn elements_of(payloads: &[Vec<u8>], set: &Set) -> Result<Elements, Malformed> {
    let mut gathered = Gathered::default();
    for payload in payloads {
        let attributes = Attributes::parse(payload.get(NFNETLINK_HEADER_LENGTH..).unwrap_or_default())?;
        gathered.read(attributes.get(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default())?;
    }
    gathered.finish(set).map(|(elements, _)| elements)
}
