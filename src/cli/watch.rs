//! What goes on, as the daemon tells it line by line: the stream behind `monitor` and `top`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::exit::Exit;
use super::output::Output;
use super::status::nobody_answers;
use crate::daemon::socket::{READERS, Refusal, Reply, Request};
use crate::daemon::traffic::record::{Line, VERSION};

/// A daemon that does not take a request for so long hangs.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// The longest line: far more than an event with all its names takes.
const LONGEST_LINE_BYTES: u64 = 256 * 1024;

/// Why there are no more events.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The daemon closed the stream: it was stopped, or starts again.
    #[error("the daemon closed the stream of events: it was stopped or started again")]
    Closed,
    /// The daemon does not want to tell.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// What it sends is not understood.
    #[error("cannot read what the daemon sends: {0}")]
    Line(String),
    /// The system refused.
    #[error("cannot ask the daemon: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// What to tell the user, and how to end.
    pub(super) fn explain(&self, socket: &Path) -> (String, Exit) {
        let socket = socket.display();
        match self {
            Self::Closed => (self.to_string(), Exit::NotRunning),
            Self::Refused(refusal) if refusal.code == "not-authorised" => (self.to_string(), Exit::NotAuthorised),
            Self::Io(error) if nobody_answers(error) => {
                (format!("the daemon is not running (nobody answers on {socket})"), Exit::NotRunning)
            }
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                (format!("not authorised: only root and group {READERS} may read {socket}"), Exit::NotAuthorised)
            }
            Self::Io(error) => (format!("cannot ask the daemon on {socket}: {error}"), Exit::Failure),
            Self::Refused(_) | Self::Line(_) => (self.to_string(), Exit::Failure),
        }
    }

    /// Tells the user, and says how to end.
    pub(super) fn tell(&self, socket: &Path, output: &Output) -> Exit {
        let (words, exit) = self.explain(socket);
        output.message(&words);
        exit
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Stream {
    reader: BufReader<UnixStream>,
    text: Vec<u8>,
}

/// Ends a [`Stream`] from another thread.
#[derive(Debug)]
pub(super) struct Closer(UnixStream);

impl Closer {
    /// Whoever reads gets [`Error::Closed`].
    pub(super) fn close(&self) {
        // It may be closed by the daemon already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Stream {
    /// Asks the daemon to tell from now on.
    pub(super) fn open(socket: &Path) -> Result<Self, Error> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(REQUEST_TIME))?;
        let mut line = serde_json::to_vec(&Request::new("watch")).map_err(io::Error::other)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Self { reader: BufReader::new(stream), text: Vec::new() })
    }

    /// What ends it from another thread.
    pub(super) fn closer(&self) -> io::Result<Closer> {
        self.reader.get_ref().try_clone().map(Closer)
    }

    /// Waits for the next line: what it says, and its text without the line end.
    pub(super) fn next(&mut self) -> Result<(Line, &str), Error> {
        self.text.clear();
        (&mut self.reader).take(LONGEST_LINE_BYTES).read_until(b'\n', &mut self.text)?;
        if self.text.is_empty() {
            return Err(Error::Closed);
        }
        // A daemon that ends may do so in the middle of a line.
        let Some(text) = self.text.strip_suffix(b"\n") else {
            let whole = self.text.len() as u64 == LONGEST_LINE_BYTES;
            return Err(if whole { Error::Line("a line does not end".to_owned()) } else { Error::Closed });
        };
        let text = std::str::from_utf8(text).map_err(|error| Error::Line(error.to_string()))?;
        parse(text).map(|line| (line, text))
    }

    /// Whether a whole line is there already.
    pub(super) fn has_more(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }
}

/// Reads one line of the stream. Pure.
fn parse(text: &str) -> Result<Line, Error> {
    let line: Line = serde_json::from_str(text).map_err(|error| Error::Line(error.to_string()))?;
    if line.event.is_none()
        && line.missed.is_none()
        && line.lost.is_none()
        && let Ok(Reply { error: Some(refusal), .. }) = serde_json::from_str(text)
    {
        return Err(Error::Refused(refusal));
    }
    if line.version != VERSION {
        return Err(Error::Line(format!(
            "its events have version {}, and this nodewall knows {VERSION}",
            line.version
        )));
    }
    Ok(line)
}

/// What a command that goes on until it is told to end should do then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Told {
    /// To end: SIGINT or SIGTERM.
    ToEnd,
    /// To end although it has not ended yet.
    Again,
}

/// Calls `then` in a thread of its own, once for each of these signals, instead of what they do otherwise. Has to be called before there are
/// other threads.
pub(super) fn on_signals(signals: &[Signal], mut then: impl FnMut(Told) + Send + 'static) -> io::Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut told = Told::ToEnd;
        while set.wait().is_ok() {
            then(told);
            told = Told::Again;
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_refusals_and_strangers_are_told_apart() {
        assert_eq!(parse(r#"{"version":1,"missed":3}"#).unwrap().missed, Some(3));
        let event = parse(r#"{"version":1,"event":{"verdict":"denied","later":1},"other":2}"#).unwrap().event;
        assert_eq!(event.unwrap().verdict, "denied");
        // Nothing to say is nothing wrong: a daemon may send it to see whether somebody reads.
        assert_eq!(parse(r#"{"version":1}"#).unwrap(), Line { version: 1, ..Line::default() });
        let words = |text: &str| parse(text).unwrap_err().explain(Path::new("/run/x"));
        for (text, expected, exit) in [
            (
                r#"{"version":1,"error":{"code":"not-authorised","message":"only root may"}}"#,
                "only root may",
                Exit::NotAuthorised,
            ),
            (r#"{"version":1,"error":{"code":"unavailable","message":"too many"}}"#, "too many", Exit::Failure),
            (
                r#"{"version":2,"event":{}}"#,
                "cannot read what the daemon sends: its events have version 2, and this nodewall knows 1",
                Exit::Failure,
            ),
        ] {
            assert_eq!(words(text), (expected.to_owned(), exit));
        }
        assert_eq!(words("nonsense").1, Exit::Failure);
    }
}
