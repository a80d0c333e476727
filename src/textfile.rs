//! Reads a text file that an operator wrote, whatever lies at its path: bounded, never waiting, and only from those who may write it;
//! and writes one as a whole.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::tree::MAX_TEXT_BYTES;

/// Whether files must be owned by root and not writable by others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// They must: what the daemon and `apply` enforce.
    Required,
    /// Any readable file will do: `check` and `render`.
    Anyone,
}

/// Why there is no text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unread {
    /// Nothing is there.
    Missing,
    /// Something is there that is not used; the finding says why.
    Refused(Box<Finding>),
}

/// The name that places give a file.
pub fn name(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

/// Writes a file in place of another or of none: it is there as a whole or not at all, also after a crash.
///
/// # Errors
/// Its directory is not there, or cannot be written.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A name with a dot in front is no policy file.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // Gone already if it was renamed.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Gives a file to a group. One that is its already is left alone, as the daemon's unit lets it make files of that group and change none.
///
/// # Errors
/// The file system's.
pub fn give_group(path: &Path, group: nix::unistd::Gid) -> io::Result<()> {
    if fs::metadata(path)?.gid() == group.as_raw() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, None, Some(group.as_raw()))
}

/// Reads a file. What is not a regular file is not read (a FIFO would wait for ever), nor is one larger than
/// [`MAX_TEXT_BYTES`], nor one that is not UTF-8.
///
/// # Errors
/// [`Unread`].
pub fn read(path: &Path, trust: Trust) -> Result<String, Unread> {
    let refuse =
        |code, message: String| Unread::Refused(Box::new(Finding::error(code, &Place::file(name(path)), message)));
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return Err(Unread::Missing);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(refuse(Code::Unreadable, "a link to a file that does not exist".to_owned()));
        }
        Err(error) => return Err(refuse(Code::Unreadable, format!("cannot be read: {}", reason(&error)))),
    };
    let metadata =
        file.metadata().map_err(|error| refuse(Code::Unreadable, format!("cannot be read: {}", reason(&error))))?;
    if !metadata.is_file() {
        return Err(refuse(Code::Unreadable, format!("{}, not a regular file", kind(&metadata))));
    }
    if trust == Trust::Required {
        trusted(path, &metadata)?;
    }
    if metadata.len() > MAX_TEXT_BYTES as u64 {
        let message = format!("{} bytes, more than the {} MiB that are read", metadata.len(), MAX_TEXT_BYTES >> 20);
        return Err(refuse(Code::Unreadable, message));
    }
    let bytes = read_at_most(&mut file, metadata.len())
        .map_err(|error| refuse(Code::Unreadable, format!("cannot be read: {}", reason(&error))))?;
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(refuse(Code::Unreadable, format!("more than the {} MiB that are read", MAX_TEXT_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| Unread::Refused(Box::new(not_utf8(path, &error))))
}

/// Whether a directory is one in which only root can put files.
///
/// # Errors
/// A finding that says why not.
pub fn trusted_directory(directory: &Path) -> Result<(), Box<Finding>> {
    let place = Place::file(name(directory));
    match fs::metadata(directory) {
        Ok(metadata) => match untrusted(&metadata) {
            None => Ok(()),
            Some(why) => Err(Box::new(
                Finding::error(Code::Untrusted, &place, format!("the directory is {why}"))
                    .help("files in it are not used; it must be owned by root and not writable by group or others"),
            )),
        },
        Err(error) => {
            Err(Box::new(Finding::error(Code::Unreadable, &place, format!("cannot be read: {}", reason(&error)))))
        }
    }
}

/// What went wrong, for people: the kind of error, without Rust's "(os error 13)".
pub fn reason(error: &std::io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.to_string(), |number| nix::errno::Errno::from_raw(number).desc().to_lowercase())
}

/// The file itself, and the directory in which it really lies.
fn trusted(path: &Path, metadata: &Metadata) -> Result<(), Unread> {
    if let Some(why) = untrusted(metadata) {
        let finding = Finding::error(Code::Untrusted, &Place::file(name(path)), format!("the file is {why}"))
            .help("it is not used; a policy file must be owned by root and not writable by group or others");
        return Err(Unread::Refused(Box::new(finding)));
    }
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match real.parent() {
        Some(directory) => trusted_directory(directory).map_err(|mut finding| {
            finding.message = format!("{} ({})", finding.message, directory.display());
            finding.place = Place::file(name(path));
            Unread::Refused(finding)
        }),
        None => Ok(()),
    }
}

/// Who else than root could have written it.
fn untrusted(metadata: &Metadata) -> Option<String> {
    if metadata.uid() != 0 {
        return Some(format!("owned by user {}, not by root", metadata.uid()));
    }
    match metadata.mode() & 0o022 {
        0 => None,
        0o002 => Some("writable by others".to_owned()),
        0o020 => Some("writable by its group".to_owned()),
        _ => Some("writable by its group and by others".to_owned()),
    }
}

/// Reads the file; one that grows meanwhile is still read no further than one byte past the limit.
fn read_at_most(file: &mut File, expected: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(expected as usize);
    file.take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn not_utf8(path: &Path, error: &std::string::FromUtf8Error) -> Finding {
    let start = error.utf8_error().valid_up_to();
    let before = error.as_bytes().get(..start).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() as u32 + 1;
    let place = Place { file: name(path), line, column, start, end: start + 1 };
    let bad = error.as_bytes().get(start).copied().unwrap_or_default();
    Finding::error(Code::Unreadable, &place, format!("not UTF-8: byte 0x{bad:02x}")).help("save the file as UTF-8")
}

fn kind(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}
