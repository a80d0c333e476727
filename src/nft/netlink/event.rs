//! What the kernel's notifications say about our table: which transactions changed it, and whose they were.
//!
//! The messages about a transaction's objects come first, its `NFT_MSG_NEWGEN` last (kernel nf_tables_commit); both carry the
//! port of the socket that committed it, by which our own are known.

use super::attribute::Malformed;
use super::constant::{
    NFPROTO_INET, NFT_MSG_NEWGEN, NFTA_GEN_ID, NFTA_GEN_PROC_NAME, NFTA_GEN_PROC_PID, NFTA_TABLE_NAME,
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
}

/// Follows the notifications, datagram by datagram.
#[derive(Clone, Debug, Default)]
pub struct Touches {
    /// Whether the foreign transaction that is being told of changed our table.
    touched: bool,
}

impl Touches {
    /// Takes in a datagram; the first transaction that it ends and that changed our table, if there is one. What comes from the
    /// port `own` is left aside.
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
                let touched = std::mem::take(&mut self.touched);
                if touched && found.is_none() {
                    found = Some(commit(&message)?);
                }
            } else if !self.touched {
                self.touched = is_ours(&message)?;
            }
        }
        Ok(found)
    }

    /// Forgets a half-told transaction: messages were lost.
    pub fn lost(&mut self) {
        self.touched = false;
    }
}

/// Whether a message is about something in our table. The table's name is attribute 1 of every object's message.
fn is_ours(message: &Message<'_>) -> Result<bool, Malformed> {
    if message.payload.first() != Some(&NFPROTO_INET) {
        return Ok(false);
    }
    Ok(message.attributes()?.text(NFTA_TABLE_NAME) == TABLE_NAME)
}

fn commit(message: &Message<'_>) -> Result<Commit, Malformed> {
    let attributes = message.attributes()?;
    let generation =
        attributes.u32(NFTA_GEN_ID)?.ok_or_else(|| Malformed::new("a notification without a generation"))?;
    let name: String = attributes
        .text(NFTA_GEN_PROC_NAME)
        .chars()
        .map(|letter| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' })
        .collect();
    let process = attributes.u32(NFTA_GEN_PROC_PID)?.map(|pid| Process { pid, name });
    Ok(Commit { generation, process })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attribute::Writer;
    use super::super::constant::{
        NFNL_SUBSYS_NFTABLES, NFPROTO_IPV4, NFT_MSG_DELRULE, NFT_MSG_DELTABLE, NFT_MSG_NEWSETELEM,
    };
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
        assert_eq!(
            told,
            [Commit { generation: 4, process: process("nft") }, Commit { generation: 9, process: process("a??b") }]
        );
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
        let mut touches = Touches { touched: true };
        assert!(touches.take(&nameless, None).is_err());
        assert!(touches.take(&[0; 7], None).is_err());
    }
}
