//! Where something stands in a file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A stretch of a file's text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// The file as it was named: a path.
    pub file: Arc<str>,
    /// The line of the first byte, from 1; 0 for the file as a whole.
    pub line: u32,
    /// The column of the first character on that line, in characters from 1; 0 for the file as a whole.
    pub column: u32,
    /// Byte offset of the first byte.
    pub start: usize,
    /// Byte offset after the last byte.
    pub end: usize,
}

impl Place {
    /// A file as a whole.
    pub fn file(file: impl Into<Arc<str>>) -> Self {
        Self { file: file.into(), line: 0, column: 0, start: 0, end: 0 }
    }

    /// The bytes it covers.
    pub fn span(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The last component of the file's path and the line, as kernel rule comments carry it:
    /// "20-kubelet.toml:14"; without the line for the file as a whole.
    pub fn short(&self) -> String {
        let base = self.file.rsplit('/').next().unwrap_or(&self.file);
        if self.line == 0 { base.to_owned() } else { format!("{base}:{}", self.line) }
    }
}

impl fmt::Display for Place {
    /// `file:line:column`, or `file` for the file as a whole.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            formatter.write_str(&self.file)
        } else {
            write!(formatter, "{}:{}:{}", self.file, self.line, self.column)
        }
    }
}
