//! Stored batches to the kernel, without anything between the disk and the socket but a check of what they name.

use nix::errno::Errno;

use super::{ERESTART, Error, Netlink, refused};
use crate::nft::TABLE;
use crate::nft::netlink::replay;

impl Netlink {
    /// Commits the bytes of a stored batch ([`crate::plan::boot_batch`]): our table is then what they say, whatever it was before.
    /// They are checked first; what names anything but our table is not sent.
    ///
    /// # Errors
    /// [`Error::Batch`] for bytes that are not such a batch, and the kernel's; the table is then as it was.
    pub fn commit_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let batch = replay(bytes, self.sequence).map_err(|malformed| Error::Batch(malformed.to_string()))?;
        self.take_sequence(batch.len());
        self.send(&batch.bytes)?;
        let (errors, lost) = self.answers(|sequence| batch.subject_of(sequence).is_some())?;
        match (errors.first(), lost) {
            (None, false) => Ok(()),
            // Only errors are so many that they do not fit the buffer.
            (None, true) => {
                Err(Error::Refused { subject: format!("table {TABLE} (its reasons were lost)"), errno: Errno::ENOBUFS })
            }
            (Some(answer), _) if answer.errno == ERESTART => Err(Error::Contended),
            (Some(answer), _) => Err(refused(batch.subject_of(answer.sequence).unwrap_or(TABLE).to_owned(), answer)),
        }
    }
}
