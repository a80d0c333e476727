//! `nodewall simulate`: what happens to a packet, and why.

mod capture;
mod process;
mod report;
mod text;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Options;
use super::exit::Exit;
use super::output::Output;
use super::subject::{self, Subject};
use crate::config;
use crate::net::interface::InterfaceName;
use crate::net::protocol::Protocol;
use crate::simulate::question::{self, Endpoint, IcmpWords, Question};
use crate::simulate::{ConntrackState, Origin, Outcome, Packet, trace};
use crate::source::Trust;

/// Arguments of `simulate`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Policy files and directories instead of the policy directories
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The interface by which the packet comes in; with --out, it goes through this host
    #[arg(long = "in", value_name = "IFACE", value_parser = interface)]
    input: Option<InterfaceName>,
    /// The interface by which it goes out; without --in, this host sends it
    #[arg(long = "out", value_name = "IFACE", value_parser = interface)]
    output: Option<InterfaceName>,
    /// The kind of such an interface that is not there ("veth")
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    #[command(flatten)]
    packet: PacketArguments,
    #[command(flatten)]
    process: process::Arguments,
    /// Every packet of a capture (pcap or pcapng), one line each, and a summary
    #[arg(long, value_name = "FILE", conflicts_with = "packet")]
    pcap: Option<PathBuf>,
    /// Of a capture, the packets with this VLAN tag ("100", "100.7") instead of those without
    #[arg(long, value_name = "ID", requires = "pcap", conflicts_with = "packet", value_parser = vlans)]
    vlan: Option<Vlans>,
    /// Under the generation in force, as the daemon left it on disk, instead of the documents
    #[arg(long, conflicts_with_all = ["paths", "policy_directories"])]
    loaded: bool,
    /// Every step: stages, tiers, policies, rules, and why each did not match
    #[arg(short, long)]
    verbose: bool,
}

/// What is said about one packet.
#[derive(Args, Debug)]
#[group(id = "packet", multiple = true)]
struct PacketArguments {
    /// Where it comes from; by default this host's own address, or one that is nothing to the policy
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = question::endpoint)]
    from: Option<Endpoint>,
    /// Where it goes to; by default this host's own address, or one that is nothing to the policy
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = question::endpoint)]
    to: Option<Endpoint>,
    /// Its protocol, by name or number; tcp when there are ports
    #[arg(long, value_name = "PROTO", value_parser = question::protocol)]
    proto: Option<Protocol>,
    /// Its source port, by default 40000
    #[arg(long, value_name = "N")]
    sport: Option<u16>,
    /// Its destination port
    #[arg(long, value_name = "N")]
    dport: Option<u16>,
    /// Its ICMP type by name or number, and code (0)
    #[arg(long, value_name = "TYPE[/CODE]", value_parser = question::icmp)]
    icmp: Option<IcmpWords>,
    /// Its time to live or hop limit, by default 64
    #[arg(long, value_name = "N")]
    hop_limit: Option<u8>,
    /// What connection tracking says of it
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    /// Where somebody's DNAT sends it
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = question::endpoint)]
    dnat: Option<Endpoint>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    New,
    Established,
    Related,
    Invalid,
    Untracked,
}

impl From<State> for ConntrackState {
    fn from(state: State) -> Self {
        match state {
            State::New => Self::New,
            State::Established => Self::Established,
            State::Related => Self::Related,
            State::Invalid => Self::Invalid,
            State::Untracked => Self::Untracked,
        }
    }
}

fn interface(name: &str) -> Result<InterfaceName, &'static str> {
    InterfaceName::new(name)
        .ok_or("not a name that an interface can have: 1 to 15 bytes without '/', ':' and white space")
}

/// VLAN tags, outermost first.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Vlans(Vec<u16>);

fn vlans(text: &str) -> Result<Vlans, &'static str> {
    let tag = |text: &str| text.parse().ok().filter(|tag| (1..=4094).contains(tag));
    let tags = text.split('.').map(tag).collect::<Option<_>>();
    tags.map(Vlans).ok_or("write a VLAN's number from 1 to 4094, or several from the outermost on, like 100.7")
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let found = match arguments.loaded {
        true => {
            subject::loaded(options, output).and_then(|subject| subject.ok_or_else(|| nothing_left(options, output)))
        }
        false => subject::documents(options, &arguments.paths, output),
    };
    let subject = match found {
        Ok(subject) => subject,
        Err(exit) => return exit,
    };
    let mut taken = Vec::new();
    let origin = match process::origin(arguments, options.root.as_deref(), &mut taken) {
        Ok(origin) => origin,
        Err(why) => return wrong(&why, output),
    };
    if let Some(file) = &arguments.pcap {
        return match capture::way(arguments, &subject, origin) {
            Ok(way) => capture::run(file, &subject, way, arguments.verbose, output),
            Err(why) => wrong(&why, output),
        };
    }
    let (packet, more) = match question::packet(&question(arguments, origin), &subject.effective, &subject.facts) {
        Ok(answer) => answer,
        Err(why) => return wrong(&why.to_string(), output),
    };
    // In the order of the packet's fields.
    taken.splice(0..0, more);
    single(&subject, &packet, &taken, arguments.verbose, output)
}

fn nothing_left(options: &Options, output: &Output) -> Exit {
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    output.message(&format!("{}: the daemon left no generation there", config.state_directory.display()));
    Exit::Failure
}

fn wrong(why: &str, output: &Output) -> Exit {
    output.message(why);
    Exit::Usage
}

fn question(arguments: &Arguments, origin: Origin) -> Question {
    let PacketArguments { from, to, proto, sport, dport, icmp, hop_limit, state, dnat } = &arguments.packet;
    Question {
        input: arguments.input.clone(),
        output: arguments.output.clone(),
        kind: arguments.kind.clone(),
        from: *from,
        to: *to,
        protocol: *proto,
        source_port: *sport,
        port: *dport,
        icmp: icmp.clone(),
        hop_limit: *hop_limit,
        state: state.map(ConntrackState::from),
        translated: *dnat,
        origin,
    }
}

fn single(subject: &Subject, packet: &Packet, taken: &[String], verbose: bool, output: &Output) -> Exit {
    let trace = trace(&subject.effective, packet);
    let printed = if output.json {
        output.json(&report::Report::of(subject, packet, &trace, taken))
    } else {
        let colored = output.colored(&std::io::stdout());
        output.data(&text::of(subject, packet, &trace, taken, verbose, colored))
    };
    match printed {
        Exit::Ok if trace.decision.outcome != Outcome::Accepted => Exit::Failure,
        other => other,
    }
}
