//! Generations on disk: the last ones that were in force, and which of them is confirmed.
//!
//! A file is written under another name, flushed, renamed, and the directory flushed, so a power cut at any point leaves the old
//! file or the new one. What cannot be read is reported and passed over; nothing here ever decides to have less in force.

mod disk;
mod format;

use std::io;

pub use disk::{Directory, Disk};
pub use format::{FormatError, Generation, decode, decode_record, encode, encode_record};

/// How many generations are kept.
const KEPT: usize = 20;
/// The file that names the confirmed generation.
const CONFIRMED: &str = "confirmed";
/// The file of what is to be remembered beside the generations.
const RECORD: &str = "record";
/// The file of the numbers of rails.
const RAILS: &str = "rails";
/// The file of the confirmed generation is shorter than this: a number and its check.
const LARGEST_CONFIRMED: usize = 64;
/// A record larger than this is not ours.
const LARGEST_RECORD: usize = 1 << 20;
/// What a file is called until it is whole.
const TEMPORARY: &str = ".new";

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {attempt} {file}: {source}")]
    Disk {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{file}: {source}")]
    Format {
        /// Which.
        file: String,
        /// Why.
        source: FormatError,
    },
}

/// One line of the history.
#[derive(Debug)]
pub struct Entry {
    /// The generation's number.
    pub number: u64,
    /// The generation, or why it cannot be used.
    pub generation: Result<Generation, Error>,
}

/// The store in one directory.
#[derive(Clone, Debug)]
pub struct Store<D> {
    disk: D,
}

impl<D: Disk> Store<D> {
    /// The store on a disk.
    pub fn new(disk: D) -> Self {
        Self { disk }
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The disk, for tests that cut its power.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// The numbers of the generations there are, ascending, readable or not.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn numbers(&self) -> Result<Vec<u64>, Error> {
        let names = self.disk.list().map_err(failed("list", "the generations"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The number after the last.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn next_number(&self) -> Result<u64, Error> {
        Ok(self.numbers()?.last().map_or(1, |last| last.saturating_add(1)))
    }

    /// One generation.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is not what was written.
    pub fn read(&self, number: u64) -> Result<Generation, Error> {
        let file = file_of(number);
        let bytes = self.disk.read(&file, format::LARGEST_FILE).map_err(failed("read", &file))?;
        let generation = decode(&bytes).map_err(|source| Error::Format { file: file.clone(), source })?;
        if generation.number != number {
            let source = FormatError::Inconsistent(format!("it holds generation {}", generation.number));
            return Err(Error::Format { file, source });
        }
        Ok(generation)
    }

    /// All generations, newest first, unusable ones with their reason.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn history(&self) -> Result<Vec<Entry>, Error> {
        let numbers = self.numbers()?;
        Ok(numbers.into_iter().rev().map(|number| Entry { number, generation: self.read(number) }).collect())
    }

    /// Writes a generation and forgets the oldest beyond those kept; the confirmed one is never forgotten.
    ///
    /// # Errors
    /// It is not on the medium; what was there before is untouched.
    pub fn write(&mut self, generation: &Generation) -> Result<(), Error> {
        self.replace(&file_of(generation.number), &encode(generation))?;
        let confirmed = self.confirmed_number();
        let numbers = self.numbers()?;
        let surplus = numbers.len().saturating_sub(KEPT);
        let needed = |number: u64| Some(number) == confirmed || number == generation.number;
        for number in numbers.into_iter().take(surplus).filter(|number| !needed(*number)) {
            let file = file_of(number);
            self.disk.remove(&file).map_err(failed("remove", &file))?;
        }
        Ok(())
    }

    /// Names the generation that a boot loads.
    ///
    /// # Errors
    /// It is not on the medium; the old one is still named.
    pub fn confirm(&mut self, number: u64) -> Result<(), Error> {
        // The text is checked by its form; it is shorter than a sector and replaced whole.
        self.replace(CONFIRMED, format!("{number} {}\n", seal(number)).as_bytes())
    }

    /// The number of the confirmed generation, if one is named.
    pub fn confirmed_number(&self) -> Option<u64> {
        self.named().ok().flatten()
    }

    /// What the file of the confirmed generation says; nothing when there is none.
    fn named(&self) -> Result<Option<u64>, Error> {
        let bytes = match self.disk.read(CONFIRMED, LARGEST_CONFIRMED) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", CONFIRMED)(error)),
        };
        let number = std::str::from_utf8(&bytes).ok().and_then(|text| {
            let (number, sealed) = text.trim_end().split_once(' ')?;
            let number = number.parse().ok()?;
            (seal(number) == sealed).then_some(number)
        });
        number.map(Some).ok_or_else(|| Error::Format { file: CONFIRMED.to_owned(), source: FormatError::Checksum })
    }

    /// The generation that a boot loads: the confirmed one, else, when that file is damaged, the newest older one that is
    /// whole. With what was passed over and why.
    pub fn confirmed(&self) -> (Option<Generation>, Vec<Error>) {
        let mut passed = Vec::new();
        let confirmed = match self.named() {
            Ok(Some(confirmed)) => confirmed,
            Ok(None) => return (None, passed),
            Err(error) => return (None, vec![error]),
        };
        let mut numbers = match self.numbers() {
            Ok(numbers) => numbers,
            Err(error) => return (None, vec![error]),
        };
        numbers.retain(|number| *number <= confirmed);
        for number in numbers.into_iter().rev() {
            match self.read(number) {
                Ok(generation) => return (Some(generation), passed),
                Err(error) => passed.push(error),
            }
        }
        (None, passed)
    }

    /// Writes what is to be remembered beside the generations.
    ///
    /// # Errors
    /// It is not on the medium; what was there before is untouched.
    pub fn remember(&mut self, text: &str) -> Result<(), Error> {
        self.replace(RECORD, &encode_record(text))
    }

    /// Writes the numbers of rails.
    ///
    /// # Errors
    /// They are not on the medium; what was there before is untouched.
    pub fn keep_rails(&mut self, text: &str) -> Result<(), Error> {
        self.replace(RAILS, &encode_record(text))
    }

    /// The numbers of rails as last written; nothing when none were.
    ///
    /// # Errors
    /// They cannot be read, or are not what was written.
    pub fn rails(&self) -> Result<Option<String>, Error> {
        self.record(RAILS)
    }

    /// Writes what a cluster says.
    ///
    /// # Errors
    /// It is not on the medium; what was there before is untouched.
    pub fn keep_cluster(&mut self, cluster: &str, text: &str) -> Result<(), Error> {
        self.replace(&file_of_cluster(cluster), &encode_record(text))
    }

    /// Writes who the nodes of a cluster are.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep_nodes(&mut self, cluster: &str, text: &str) -> Result<(), Error> {
        self.keep_cluster(&nodes_of(cluster), text)
    }

    /// Who the nodes of a cluster were when that was last written; nothing when nothing was.
    ///
    /// # Errors
    /// The disk's, and a damaged file.
    pub fn nodes(&self, cluster: &str) -> Result<Option<String>, Error> {
        self.cluster(&nodes_of(cluster))
    }

    /// What a cluster said when it was last written; nothing when nothing was.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn cluster(&self, cluster: &str) -> Result<Option<String>, Error> {
        self.record_within(&file_of_cluster(cluster), format::LARGEST_FILE)
    }

    /// What was last remembered; nothing when nothing was.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn remembered(&self) -> Result<Option<String>, Error> {
        self.record(RECORD)
    }

    fn record(&self, file: &str) -> Result<Option<String>, Error> {
        self.record_within(file, LARGEST_RECORD)
    }

    fn record_within(&self, file: &str, limit: usize) -> Result<Option<String>, Error> {
        let bytes = match self.disk.read(file, limit) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", file)(error)),
        };
        decode_record(&bytes).map(Some).map_err(|source| Error::Format { file: file.to_owned(), source })
    }

    fn replace(&mut self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        let temporary = format!("{file}{TEMPORARY}");
        if let Err(error) = self.disk.write(&temporary, bytes) {
            // Half a generation must not keep the last bytes of a full disk from what is smaller and matters more.
            let _ = self.disk.remove(&temporary);
            return Err(failed("write", &temporary)(error));
        }
        self.disk.rename(&temporary, file).map_err(failed("rename", &temporary))?;
        self.disk.sync().map_err(failed("flush", "the directory of generations"))
    }
}

fn failed(attempt: &'static str, file: &str) -> impl FnOnce(io::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::Disk { attempt, file, source }
}

fn file_of(number: u64) -> String {
    format!("{number:020}.generation")
}

/// The name of a cluster has no plus.
fn nodes_of(cluster: &str) -> String {
    format!("{cluster}+nodes")
}

/// The name of a cluster has no slash and does not begin with a dot.
fn file_of_cluster(cluster: &str) -> String {
    format!("{cluster}.cluster")
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".generation")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A check on the one number in the file of the confirmed generation.
fn seal(number: u64) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(format!("nodewall confirmed {number}")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
