//! What the kernel's notifications say about our table: which transactions changed it, and whose they were.
//!
//! The messages about a transaction's objects come first, its `NFT_MSG_NEWGEN` last (kernel nf_tables_commit); both carry the
//! port of the socket that committed it, by which our own are known.

use std::collections::BTreeSet;

use super::attribute::Malformed;
use super::constant::{
    NFPROTO_INET, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM, NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWGEN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFTA_GEN_ID, NFTA_GEN_PROC_NAME,
    NFTA_GEN_PROC_PID, NFTA_SET_ELEM_LIST_SET, NFTA_SET_NAME, NFTA_TABLE_NAME,
};
use super::decode::{Message, messages};
use crate::nft::TABLE_NAME;

/// A process as the kernel names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its number, as the machine's first process counts.
    pub pid: u32,
    /// Its name of up to 15 bytes (`comm`), with everything that is not printable ASCII as `?`: any process may choose it.
    pub name: String,
}

/// A transaction of somebody else's that changed our table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// The generation id that it made.
    pub generation: u32,
    /// Who committed it, where the kernel tells.
    pub process: Option<Process>,
    /// The sets that it was about.
    pub sets: TouchedSets,
}

/// The sets of which the contents may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TouchedSets {
    /// Only these, maybe none: a transaction that is about rules leaves the elements of sets alone.
    These(BTreeSet<String>),
    /// Nobody knows: all of them.
    Any,
}

impl TouchedSets {
    /// No set.
    pub const NONE: Self = Self::These(BTreeSet::new());

    /// Those of both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::These(mut one), Self::These(other)) if one.len() + other.len() <= SETS_NAMED => {
                one.extend(other);
                Self::These(one)
            }
            _ => Self::Any,
        }
    }
}

/// How many sets are named one by one; somebody who touches more than that may have touched all.
const SETS_NAMED: usize = 64;

/// Follows the notifications, datagram by datagram.
#[derive(Clone, Debug, Default)]
pub struct Touches {
    /// What the foreign transaction that is being told of changed in our table; `None`: nothing so far.
    touched: Option<TouchedSets>,
}

impl Touches {
    /// Takes in a datagram; the first transaction that it ends and that changed our table, if there is one, with the sets of all
    /// of them. What comes from the port `own` is left aside.
    ///
    /// # Errors
    /// Bytes that are not as the kernel writes them.
    pub fn take(&mut self, datagram: &[u8], own: Option<u32>) -> Result<Option<Commit>, Malformed> {
        let mut found = None;
        for message in messages(datagram)? {
            let Some(kind) = message.nft() else { continue };
            if own == Some(message.port) {
                continue;
            }
            if kind == NFT_MSG_NEWGEN {
                if let Some(sets) = self.touched.take() {
                    let commit = commit(&message, sets)?;
                    found = Some(match found {
                        None => commit,
                        Some(Commit { generation, process, sets }) => {
                            Commit { generation, process, sets: sets.or(commit.sets) }
                        }
                    });
                }
            } else if is_ours(&message)? {
                let sets = sets_of(kind, &message)?;
                self.touched = Some(self.touched.take().unwrap_or(TouchedSets::NONE).or(sets));
            }
        }
        Ok(found)
    }

    /// Forgets a half-told transaction: messages were lost.
    pub fn lost(&mut self) {
        self.touched = None;
    }
}

/// Whether a message is about something in our table. The table's name is attribute 1 of every object's message.
fn is_ours(message: &Message<'_>) -> Result<bool, Malformed> {
    if message.payload.first() != Some(&NFPROTO_INET) {
        return Ok(false);
    }
    Ok(message.attributes()?.text(NFTA_TABLE_NAME) == TABLE_NAME)
}

/// The sets that a message of our table is about.
fn sets_of(kind: u16, message: &Message<'_>) -> Result<TouchedSets, Malformed> {
    let named = |attribute| Ok(TouchedSets::These([message.attributes()?.text(attribute)].into()));
    match kind {
        NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => named(NFTA_SET_ELEM_LIST_SET),
        NFT_MSG_NEWSET | NFT_MSG_DELSET => named(NFTA_SET_NAME),
        // A chain that goes takes no element with it; deleting a chain that a map leads to is refused.
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE | NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => Ok(TouchedSets::NONE),
        _ => Ok(TouchedSets::Any),
    }
}

fn commit(message: &Message<'_>, sets: TouchedSets) -> Result<Commit, Malformed> {
    let attributes = message.attributes()?;
    let generation =
        attributes.u32(NFTA_GEN_ID)?.ok_or_else(|| Malformed::new("a notification without a generation"))?;
    let name: String = attributes
        .text(NFTA_GEN_PROC_NAME)
        .chars()
        .map(|letter| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' })
        .collect();
    let process = attributes.u32(NFTA_GEN_PROC_PID)?.map(|pid| Process { pid, name });
    Ok(Commit { generation, process, sets })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attribute::Writer;
    use super::super::constant::{NFNL_SUBSYS_NFTABLES, NFPROTO_IPV4, NFT_MSG_DELTABLE, NFT_MSG_NEWSETELEM};
    use super::*;

    fn message(kind: u16, port: u32, family: u8, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.bytes.extend([0; 4]);
        writer.bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | kind).to_ne_bytes());
        writer.bytes.extend([0; 6]);
        writer.bytes.extend(port.to_ne_bytes());
        writer.bytes.extend([family, 0, 0, 0]);
        fill(&mut writer);
        let length = (writer.bytes.len() as u32).to_ne_bytes();
        writer.bytes[..4].copy_from_slice(&length);
        writer.bytes
    }

    fn about(kind: u16, port: u32, family: u8, table: &str) -> Vec<u8> {
        message(kind, port, family, |writer| writer.put_text(NFTA_TABLE_NAME, table))
    }

    fn generation(port: u32, number: u32, name: &str) -> Vec<u8> {
        message(NFT_MSG_NEWGEN, port, 0, |writer| {
            writer.put_u32(NFTA_GEN_ID, number);
            writer.put_u32(NFTA_GEN_PROC_PID, 77);
            writer.put_text(NFTA_GEN_PROC_NAME, name);
        })
    }

    const OURS: u32 = 5;
    const THEIRS: u32 = 9;

    fn take(datagrams: &[Vec<u8>]) -> Vec<Commit> {
        let mut touches = Touches::default();
        datagrams.iter().filter_map(|datagram| touches.take(datagram, Some(OURS)).unwrap()).collect()
    }

    #[test]
    fn foreign_transactions_on_our_table_are_told_with_their_process() {
        let told = take(&[
            about(NFT_MSG_DELRULE, THEIRS, NFPROTO_INET, "nodewall"),
            about(NFT_MSG_DELTABLE, THEIRS, NFPROTO_INET, "nodewall"),
            generation(THEIRS, 4, "nft"),
            // Ours, a foreign table, our name in another family, and a transaction that changed nothing.
            about(NFT_MSG_NEWSETELEM, OURS, NFPROTO_INET, "nodewall"),
            generation(OURS, 5, "nodewall"),
            about(NFT_MSG_NEWSETELEM, THEIRS, NFPROTO_INET, "kube-proxy"),
            generation(THEIRS, 6, "kube-proxy"),
            about(NFT_MSG_NEWSETELEM, THEIRS, NFPROTO_IPV4, "nodewall"),
            generation(THEIRS, 7, "nft"),
            generation(THEIRS, 8, "nft"),
            [about(NFT_MSG_DELTABLE, THEIRS, NFPROTO_INET, "nodewall"), generation(THEIRS, 9, "a\n\u{1b}b")].concat(),
        ]);
        let process = |name: &str| Some(Process { pid: 77, name: name.to_owned() });
        let gone = |generation, name| Commit { generation, process: process(name), sets: TouchedSets::Any };
        assert_eq!(told, [gone(4, "nft"), gone(9, "a??b")]);
    }

    #[test]
    fn the_sets_of_a_transaction_are_named() {
        let in_set = |kind, attribute, set: &str| {
            message(kind, THEIRS, NFPROTO_INET, |writer| {
                writer.put_text(NFTA_TABLE_NAME, "nodewall");
                writer.put_text(attribute, set);
            })
        };
        let rule = || about(NFT_MSG_DELRULE, THEIRS, NFPROTO_INET, "nodewall");
        let sets = |datagrams: &[Vec<u8>]| take(datagrams).pop().unwrap().sets;
        let these = |names: &[&str]| TouchedSets::These(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(sets(&[rule(), generation(THEIRS, 4, "nft")]), TouchedSets::NONE);
        let element = in_set(NFT_MSG_DELSETELEM, NFTA_SET_ELEM_LIST_SET, "a");
        let set = in_set(NFT_MSG_NEWSET, NFTA_SET_NAME, "b");
        assert_eq!(sets(&[element.clone(), rule(), set, generation(THEIRS, 4, "nft")]), these(&["a", "b"]));
        // Two transactions in one datagram are one answer.
        let two = [rule(), generation(THEIRS, 4, "nft"), element, generation(THEIRS, 5, "nft")].concat();
        assert_eq!(
            take(&[two]),
            [Commit { generation: 4, process: Some(Process { pid: 77, name: "nft".to_owned() }), sets: these(&["a"]) }]
        );
        let many: Vec<Vec<u8>> = (0..100)
            .map(|number| in_set(NFT_MSG_DELSET, NFTA_SET_NAME, &format!("s{number}")))
            .chain([generation(THEIRS, 4, "nft")])
            .collect();
        assert_eq!(sets(&many), TouchedSets::Any);
    }

    #[test]
    fn our_commit_between_a_foreign_one_does_not_hide_it_and_a_loss_forgets_the_half() {
        let mut touches = Touches::default();
        let touched = about(NFT_MSG_DELRULE, THEIRS, NFPROTO_INET, "nodewall");
        assert_eq!(touches.take(&touched, Some(OURS)).unwrap(), None);
        assert_eq!(touches.take(&generation(OURS, 2, "nodewall"), Some(OURS)).unwrap(), None);
        assert!(touches.take(&generation(THEIRS, 3, "nft"), Some(OURS)).unwrap().is_some());
        assert_eq!(touches.take(&touched, Some(OURS)).unwrap(), None);
        touches.lost();
        assert_eq!(touches.take(&generation(THEIRS, 4, "kube-proxy"), Some(OURS)).unwrap(), None);
    }

    #[test]
    fn malformed_bytes_are_errors_or_nothing_and_never_more() {
        let whole = [about(NFT_MSG_DELTABLE, THEIRS, NFPROTO_INET, "nodewall"), generation(THEIRS, 9, "nft")].concat();
        for end in 0..whole.len() {
            // A cut message, or only the first one.
            let told = Touches::default().take(&whole[..end], None);
            assert!(!matches!(told, Ok(Some(_))), "{end}: {told:?}");
        }
        for index in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[index] = value;
                let _ = Touches::default().take(&bytes, None);
            }
        }
        let nameless = message(NFT_MSG_NEWGEN, THEIRS, 0, |writer| writer.put(NFTA_GEN_ID, &[1, 2]));
        let mut touches = Touches { touched: Some(TouchedSets::NONE) };
        assert!(touches.take(&nameless, None).is_err());
        assert!(touches.take(&[0; 7], None).is_err());
    }
}
