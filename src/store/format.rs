//! The file of one generation: a line that names the format, a line of JSON, the sections' bytes, a checksum over all.
//! Reading is strict: anything else than exactly what was written is refused, and says why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The format that this version writes and reads.
const FORMAT: u32 = 1;
const MAGIC: &str = "nodewall generation";
/// A SHA-256 in bytes.
const CHECKSUM: usize = 32;
/// A generation larger than this is not ours: 100,000 prefixes take about 8 MiB.
pub(super) const LARGEST_FILE: usize = 256 << 20;

/// A policy that was in force, with everything to bring it back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generation {
    /// Its number; later ones are larger.
    pub number: u64,
    /// When it came into force, RFC 3339 in UTC.
    pub time: String,
    /// Where it came from, for people: "files", "rollback to 12".
    pub source: String,
    /// SHA-256 of the rendered ruleset, in hexadecimal.
    pub hash: String,
    /// The documents it was made of: file name to text.
    pub policy: BTreeMap<String, String>,
    /// The settings it was made with.
    pub settings: String,
    /// The netlink batch that puts it in force on an empty or any other table of ours, for a boot without a parser.
    pub batch: Vec<u8>,
}

/// Why bytes are not a generation.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// It ends before its end.
    #[error("the file is truncated")]
    Truncated,
    /// It does not begin like one.
    #[error("not a generation file")]
    NotOurs,
    /// It was written by a later version.
    #[error("written in format {0}, and this version reads format {FORMAT}")]
    Newer(u32),
    /// Bits have changed since it was written.
    #[error("the checksum does not match")]
    Checksum,
    /// The checksum is right and the contents are not.
    #[error("the contents are not consistent: {0}")]
    Inconsistent(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    number: u64,
    time: String,
    source: String,
    hash: String,
    policy: BTreeMap<String, usize>,
    settings: usize,
    batch: usize,
}

/// The bytes of a generation's file.
pub fn encode(generation: &Generation) -> Vec<u8> {
    let header = Header {
        number: generation.number,
        time: generation.time.clone(),
        source: generation.source.clone(),
        hash: generation.hash.clone(),
        policy: generation.policy.iter().map(|(name, text)| (name.clone(), text.len())).collect(),
        settings: generation.settings.len(),
        batch: generation.batch.len(),
    };
    // A header of strings and numbers always has a JSON form.
    let header = serde_json::to_string(&header).unwrap_or_default();
    let mut bytes = format!("{MAGIC} {FORMAT}\n{header}\n").into_bytes();
    for text in generation.policy.values() {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(generation.settings.as_bytes());
    bytes.extend_from_slice(&generation.batch);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// The generation in a file's bytes.
///
/// # Errors
/// Whatever [`encode`] did not write: see [`FormatError`].
pub fn decode(bytes: &[u8]) -> Result<Generation, FormatError> {
    let (first, rest) = line(bytes).ok_or(FormatError::NotOurs)?;
    let format = first.strip_prefix(MAGIC).and_then(|format| format.trim().parse::<u32>().ok());
    match format.ok_or(FormatError::NotOurs)? {
        FORMAT => {}
        other => return Err(FormatError::Newer(other)),
    }
    let signed = bytes.len().checked_sub(CHECKSUM).ok_or(FormatError::Truncated)?;
    let (contents, checksum) = bytes.split_at(signed);
    if Sha256::digest(contents).as_slice() != checksum {
        return Err(FormatError::Checksum);
    }
    let (header, rest) = line(&rest[..rest.len().saturating_sub(CHECKSUM)]).ok_or(FormatError::Truncated)?;
    let header: Header = serde_json::from_str(header).map_err(|error| FormatError::Inconsistent(error.to_string()))?;
    let mut rest = rest;
    let mut take = |length: usize| {
        let (section, after) = rest.split_at_checked(length).ok_or(FormatError::Truncated)?;
        rest = after;
        Ok(section)
    };
    let text = |section: &[u8]| {
        String::from_utf8(section.to_vec()).map_err(|error| FormatError::Inconsistent(error.to_string()))
    };
    let mut policy = BTreeMap::new();
    for (name, length) in header.policy {
        policy.insert(name, text(take(length)?)?);
    }
    let settings = text(take(header.settings)?)?;
    let batch = take(header.batch)?.to_vec();
    if !rest.is_empty() {
        return Err(FormatError::Inconsistent(format!("{} bytes too many", rest.len())));
    }
    let Header { number, time, source, hash, .. } = header;
    Ok(Generation { number, time, source, hash, policy, settings, batch })
}

/// The bytes of the record's file: a checksum, the text, a line end.
pub fn encode_record(text: &str) -> Vec<u8> {
    format!("{} {text}\n", hexadecimal(text)).into_bytes()
}

/// The text in the bytes of the record's file.
///
/// # Errors
/// Whatever [`encode_record`] did not write.
pub fn decode_record(bytes: &[u8]) -> Result<String, FormatError> {
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Checksum)?;
    let text = text.strip_suffix('\n').ok_or(FormatError::Truncated)?;
    let (digest, text) = text.split_once(' ').ok_or(FormatError::NotOurs)?;
    if hexadecimal(text) != digest {
        return Err(FormatError::Checksum);
    }
    Ok(text.to_owned())
}

/// SHA-256 in hexadecimal.
fn hexadecimal(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> Generation {
        Generation {
            number: 7,
            time: "2026-11-23T20:00:00Z".to_owned(),
            source: "files".to_owned(),
            hash: "ab".repeat(32),
            policy: [("a.toml".to_owned(), "x = 1\n".to_owned()), ("b.toml".to_owned(), String::new())].into(),
            settings: "mode = \"audit\"\n".to_owned(),
            batch: (0..=255).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(decode(&encode(&sample())).unwrap(), sample());
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_noticed() {
        let bytes = encode(&sample());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x10;
            assert!(decode(&changed).is_err(), "byte {index}");
        }
    }

    #[test]
    fn a_later_format_says_so() {
        assert_eq!(decode(b"nodewall generation 9\nwhatever"), Err(FormatError::Newer(9)));
    }
}
