//! Sets and maps of any table, as far as looking something up in them goes.

use super::super::attribute::{Attributes, Malformed, Walk, Writer};
use super::super::base_chain::Family as TableFamily;
use super::super::constant::*;
use super::super::decode::Message;
use super::super::encode::{finish, header};
use super::super::expression::{comment, verdict_of};
use crate::nft::ir::Verdict;

/// What a set is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetShape {
    /// Its name.
    pub name: String,
    /// How many bytes its key has, each part filled up to four.
    pub key_size: usize,
    /// Its elements may be ranges.
    pub interval: bool,
    /// Rules put elements into it, or these go away by themselves: what is in it now says little.
    pub dynamic: bool,
}

/// An element: a key, or a range of keys, and what a map has for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element {
    /// The first key and the last one, in each part; `None` for what stands for all that are not there.
    pub keys: Option<(Vec<u8>, Vec<u8>)>,
    /// The verdict of a map.
    pub verdict: Option<Verdict>,
    /// The data of a map of something else.
    pub data: Option<Vec<u8>>,
    /// Its comment.
    pub comment: Option<String>,
}

fn request(kind: u16, family: TableFamily, sequence: u32, texts: &[(u16, &str)]) -> Vec<u8> {
    let mut writer = Writer::default();
    let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
    let start = header(&mut writer, kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, family.number(), 0);
    for (attribute, text) in texts {
        writer.put_text(*attribute, text);
    }
    finish(&mut writer, start);
    writer.bytes
}

/// A request for all sets of a table, without what is in them.
pub fn list_sets(family: TableFamily, table: &str, sequence: u32) -> Vec<u8> {
    request(NFT_MSG_GETSET, family, sequence, &[(NFTA_SET_TABLE, table)])
}

/// A request for what is in a set.
pub fn list_elements(family: TableFamily, table: &str, set: &str, sequence: u32) -> Vec<u8> {
    let texts = [(NFTA_SET_ELEM_LIST_TABLE, table), (NFTA_SET_ELEM_LIST_SET, set)];
    request(NFT_MSG_GETSETELEM, family, sequence, &texts)
}

/// The set in a message; `None` when it is about something else.
///
/// # Errors
/// A message that is not as the kernel writes it.
pub fn set_shape(message: &Message<'_>) -> Result<Option<SetShape>, Malformed> {
    if message.nft() != Some(NFT_MSG_NEWSET) {
        return Ok(None);
    }
    let attributes = message.attributes()?;
    let flags = attributes.u32(NFTA_SET_FLAGS)?.unwrap_or(0);
    Ok(Some(SetShape {
        name: attributes.text(NFTA_SET_NAME),
        key_size: attributes.u32(NFTA_SET_KEY_LEN)?.unwrap_or(0) as usize,
        interval: flags & NFT_SET_INTERVAL != 0,
        dynamic: flags & (NFT_SET_EVAL | NFT_SET_TIMEOUT) != 0,
    }))
}

/// What a message has of a set's elements, as the kernel keeps them.
struct Raw {
    end: bool,
    element: Element,
}

/// The elements of a set, given the payloads of the messages that the kernel answered with.
///
/// # Errors
/// A payload that is not as the kernel writes it.
pub fn elements(payloads: &[Vec<u8>], shape: &SetShape) -> Result<Vec<Element>, Malformed> {
    let mut raw = Vec::new();
    for payload in payloads {
        let attributes = Attributes::parse(payload.get(NFNETLINK_HEADER_LENGTH..).unwrap_or_default())?;
        for element in Walk::new(attributes.get(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default()) {
            raw.push(read(&Attributes::parse(element?.1)?)?);
        }
    }
    let ranged = |raw: &Raw| raw.element.keys.as_ref().is_some_and(|(first, last)| first != last);
    if !shape.interval || raw.iter().any(ranged) {
        return Ok(raw.into_iter().filter(|raw| !raw.end).map(|raw| raw.element).collect());
    }
    Ok(spans(raw))
}

fn read(element: &Attributes<'_>) -> Result<Raw, Malformed> {
    let flags = element.u32(NFTA_SET_ELEM_FLAGS)?.unwrap_or(0);
    let keys = if flags & NFT_SET_ELEM_CATCHALL != 0 {
        None
    } else {
        let first = element.nested(NFTA_SET_ELEM_KEY)?.need(NFTA_DATA_VALUE)?;
        let last = match element.get(NFTA_SET_ELEM_KEY_END) {
            Some(data) => Attributes::parse(data)?.need(NFTA_DATA_VALUE)?,
            None => first,
        };
        Some((first.to_vec(), last.to_vec()))
    };
    let data = element.nested(NFTA_SET_ELEM_DATA)?;
    let verdict = data.get(NFTA_DATA_VERDICT).map(verdict_of).transpose()?.and_then(Result::ok);
    Ok(Raw {
        end: flags & NFT_SET_ELEM_INTERVAL_END != 0,
        element: Element {
            keys,
            verdict,
            data: data.get(NFTA_DATA_VALUE).map(<[u8]>::to_vec),
            comment: element.get(NFTA_SET_ELEM_USERDATA).and_then(comment),
        },
    })
}

/// Ranges of a single field, which the kernel keeps as their start and the first key after them.
fn spans(mut raw: Vec<Raw>) -> Vec<Element> {
    let key = |raw: &Raw| raw.element.keys.as_ref().map(|(first, _)| first.clone());
    raw.sort_by_cached_key(|raw| (key(raw), !raw.end));
    let (mut found, mut open): (Vec<Element>, Option<Element>) = (Vec::new(), None);
    for raw in raw {
        let Some(start) = key(&raw) else {
            found.push(raw.element);
            continue;
        };
        if let Some(mut before) = open.take() {
            if let Some((_, last)) = &mut before.keys {
                *last = before_this(&start);
            }
            found.push(before);
        }
        open = (!raw.end).then_some(raw.element);
    }
    if let Some(mut before) = open {
        if let Some((_, last)) = &mut before.keys {
            last.fill(0xff);
        }
        found.push(before);
    }
    found
}

/// The key before this one, as a number of its length; that of zero is zero.
fn before_this(key: &[u8]) -> Vec<u8> {
    let mut before = key.to_vec();
    if before.iter().any(|byte| *byte != 0) {
        for byte in before.iter_mut().rev() {
            let borrow = *byte == 0;
            *byte = byte.wrapping_sub(1);
            if !borrow {
                break;
            }
        }
    }
    before
}
