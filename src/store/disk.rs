//! The few file operations that the store takes, as a trait: the real directory, and one in memory that can lose power.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory of small files.
pub trait Disk: Send {
    /// The names of the files there are.
    fn list(&self) -> io::Result<Vec<String>>;
    /// The contents of a file of at most `limit` bytes.
    fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>>;
    /// Creates or truncates a file and writes all of it, then flushes it to the medium (fsync).
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file a name, in place of the one that has it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Flushes the names to the medium (fsync of the directory).
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory, created with mode 0700 if it is not there: policies say what an attacker would like to know.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// The directory as it is, for reading.
    pub fn existing(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        let path = self.path.join(name);
        // Whatever else has that name must not hold up a boot: a FIFO would.
        let metadata = std::fs::symlink_metadata(&path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() > limit as u64 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any generation"));
        }
        std::fs::read(path)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(self.path.join(name))?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&mut self) -> io::Result<()> {
        std::fs::File::open(&self.path)?.sync_all()
    }
}
