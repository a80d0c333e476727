//! `nodewall completions`: what shells need to complete our command line, and the hidden `complete` that they ask.
//!
//! The scripts know nothing of commands and options: they hand the words of the line to `nodewall complete`, which takes them apart by
//! what clap knows ([`words`]) and looks for values on this host and in the configuration ([`values`]). Whatever goes wrong there, a shell
//! gets no candidates, no message and no wait.

mod values;
mod words;

use std::ffi::OsString;
use std::panic;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::exit::Exit;
use super::output::Output;
use values::Candidates;

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    const fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("completions/nodewall.bash"),
            Self::Zsh => include_str!("completions/nodewall.zsh"),
            Self::Fish => include_str!("completions/nodewall.fish"),
        }
    }
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Exit {
    output.data(arguments.shell.script())
}

/// Arguments of `complete`.
#[derive(Args, Debug)]
pub(super) struct Line {
    /// The words of the command line after the program's name, up to the one that is being written
    #[arg(value_name = "WORD", last = true)]
    words: Vec<OsString>,
}

/// Whoever pressed a key does not wait longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What could be written at the end of a line. Where looking takes too long, as on a file system that hangs, the look is left behind.
pub(super) fn complete(line: &Line, output: &Output) -> Exit {
    panic::set_hook(Box::new(|_| ()));
    let words: Vec<String> = line.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (tell, told) = mpsc::sync_channel(1);
    let looking = thread::Builder::new().name("complete".to_owned()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _ = tell.send(values::candidates(&super::command(), &words));
    });
    let found = match looking {
        Ok(_) => told.recv_timeout(PATIENCE).unwrap_or_default(),
        Err(_) => Candidates::default(),
    };
    output.data(&found.to_string());
    Exit::Ok
}
