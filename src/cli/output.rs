//! Printing: data to stdout, messages to stderr, colours where they are wanted, and a closed pipe that is no failure.

use std::env;
use std::io::{self, IsTerminal, Write};

use crate::source::Texts;
use crate::text::finding::Finding;
use crate::text::render;

use super::Color;
use super::exit::Exit;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    color: Color,
    pub(super) json: bool,
}

impl Output {
    pub(super) fn new(color: Color, json: bool) -> Self {
        Self { color, json }
    }

    /// Prints data. A reader that has seen enough and closed the pipe (`| head`) is no failure.
    pub(super) fn data(&self, text: &str) -> Exit {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Exit::Ok,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Err(error) => {
                self.message(&format!("cannot write to stdout: {error}"));
                Exit::Failure
            }
        }
    }

    /// Prints a part of the data; false when nobody reads it any more.
    pub(super) fn part(&self, text: &str) -> bool {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    }

    /// Prints JSON with a line end.
    pub(super) fn json(&self, value: &impl serde::Serialize) -> Exit {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.data(&format!("{text}\n")),
            Err(error) => {
                self.message(&format!("cannot write JSON: {error}"));
                Exit::Failure
            }
        }
    }

    /// Prints a message to stderr.
    pub(super) fn message(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "nodewall: {text}");
    }

    /// Prints findings to stderr.
    pub(super) fn findings(&self, findings: &[Finding], texts: &Texts) {
        let text = render::render(findings, texts, self.colored(&io::stderr()));
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Whether to use colours on a stream.
    pub(super) fn colored(&self, stream: &impl IsTerminal) -> bool {
        match self.color {
            Color::Always => true,
            Color::Never => false,
            // https://no-color.org: present and not empty, whatever the value.
            Color::Auto => env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && stream.is_terminal(),
        }
    }
}

/// A number of things in words: "1 flow", "2 flows".
pub(super) fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}
