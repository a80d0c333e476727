//! `nodewall monitor`: what goes on, one line an event, as it happens.

mod filter;
pub(super) mod text;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use nix::sys::signal::Signal;

use super::Options;
use super::exit::Exit;
use super::output::Output;
use super::watch::{self, Error, Stream, Told};
use crate::config;
use crate::daemon::traffic::record::Line;
use crate::source::Trust;
use crate::traffic::Verdict;
use filter::{Filter, Peer};
use text::Columns;

/// Arguments of `monitor`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Only what was denied or rejected
    #[arg(long)]
    denied: bool,
    /// Only what was let through by audit mode alone
    #[arg(long)]
    audited: bool,
    /// Only this verdict: allowed, denied, rejected, would-deny, would-reject or logged; may be repeated
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = verdict)]
    verdicts: Vec<Verdict>,
    /// Only peers of this set or node ("ops", "set:ops", "node:gpu-17"), or with such an address; may be repeated
    #[arg(long = "peer", value_name = "SET|NODE|CIDR", value_parser = Peer::parse)]
    peers: Vec<Peer>,
    /// Only what comes or leaves by this interface; may be repeated
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Only what this policy decided, or this rule ("kubelet#2"); may be repeated
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<String>,
    /// Only connections that begin
    #[arg(long, conflicts_with = "packets")]
    connections: bool,
    /// Only packets of the packet log
    #[arg(long)]
    packets: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::named(text).ok_or_else(|| {
        let known = Verdict::ALL.map(Verdict::name).join(", ");
        format!("not a verdict; use one of {known}")
    })
}

impl Arguments {
    fn filter(&self) -> Filter {
        let mut verdicts: Vec<Verdict> = self.verdicts.clone();
        verdicts.extend(Verdict::ALL.into_iter().filter(|verdict| self.denied && verdict.denies()));
        verdicts.extend(Verdict::ALL.into_iter().filter(|verdict| self.audited && verdict.is_audited()));
        Filter {
            verdicts: verdicts.iter().map(|verdict| verdict.name()).collect(),
            peers: self.peers.clone(),
            interfaces: self.interfaces.clone(),
            policies: self.policies.clone(),
            kind: match (self.connections, self.packets) {
                (true, _) => Some(crate::traffic::Kind::Connection),
                (_, true) => Some(crate::traffic::Kind::Packet),
                _ => None,
            },
        }
    }
}

/// What is printed at once at most, in bytes.
const LONGEST_PART: usize = 64 * 1024;

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let (config, _, _) = config::load(&options.config, Trust::Anyone);
    let ending = Arc::new(AtomicBool::new(false));
    let opened = Stream::open(&config.socket).and_then(|stream| Ok((end_on_signals(&stream, &ending)?, stream)));
    let mut stream = match opened {
        Ok(((), stream)) => stream,
        Err(error) => return error.tell(&config.socket, output),
    };
    match follow(&mut stream, arguments, output) {
        Ok(()) => Exit::Ok,
        // It was closed by ourselves.
        Err(_) if ending.load(Ordering::Acquire) => Exit::Ok,
        Err(error) => error.tell(&config.socket, output),
    }
}

/// SIGINT and SIGTERM end the stream, and with it the command; a second one ends the process although nobody takes what it prints.
fn end_on_signals(stream: &Stream, ending: &Arc<AtomicBool>) -> io::Result<()> {
    let (closer, ending) = (stream.closer()?, Arc::clone(ending));
    watch::on_signals(&[Signal::SIGINT, Signal::SIGTERM], move |told| match told {
        Told::ToEnd => {
            ending.store(true, Ordering::Release);
            closer.close();
        }
        Told::Again => std::process::exit(Exit::Ok as i32),
    })
}

/// Prints events until there were enough of them, nobody reads them any more, or there are no more.
fn follow(stream: &mut Stream, arguments: &Arguments, output: &Output) -> Result<(), Error> {
    let mut printer =
        Printer { filter: arguments.filter(), columns: Columns::new(output.colored(&io::stdout())), json: output.json };
    let mut left = arguments.count;
    let mut part = String::new();
    loop {
        let answer = stream.next();
        let (line, text) = match answer {
            Ok(line) => line,
            Err(error) => {
                output.part(&part);
                return Err(error);
            }
        };
        if printer.print(&mut part, &line, text)
            && let Some(left) = &mut left
        {
            *left -= 1;
        }
        let enough = left == Some(0);
        if enough || part.len() > LONGEST_PART || !stream.has_more() {
            // A reader that has seen enough and closed the pipe (`| head`) is no failure.
            if (!part.is_empty() && !output.part(&part)) || enough {
                return Ok(());
            }
            part.clear();
        }
    }
}

/// How lines are printed.
struct Printer {
    filter: Filter,
    columns: Columns,
    json: bool,
}

impl Printer {
    /// Adds what is to be printed of a line; whether it had an event that is wanted. What was missed and lost is told whatever is wanted:
    /// nobody knows what it was.
    fn print(&mut self, out: &mut String, line: &Line, text: &str) -> bool {
        let wanted = line.event.as_ref().filter(|event| self.filter.wants(event));
        let anything = wanted.is_some() || line.missed.is_some() || line.lost.is_some();
        if self.json {
            if anything {
                text::json(out, text);
            }
            return wanted.is_some();
        }
        if let Some(missed) = line.missed {
            self.columns.missed(out, missed);
        }
        if let Some(lost) = &line.lost {
            self.columns.lost(out, lost);
        }
        if let Some(event) = wanted {
            self.columns.event(out, event);
        }
        wanted.is_some()
    }
}
