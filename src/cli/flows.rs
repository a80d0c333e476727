//! `nodewall flows`: what went on at this node, from the store on disk, so it needs no daemon.

pub(super) mod asked;
pub(super) mod report;
pub(super) mod text;

use std::ops::ControlFlow;

use clap::{ArgAction, Args};

use super::Options;
use super::exit::Exit;
use super::output::Output;
use crate::config::{self, Config};
use crate::daemon::clock;
use crate::flow::store::{self, Error, Reader};
use crate::net::interface::{Direction, InterfaceName};
use crate::source::Trust;
use crate::traffic::query::{Filter, Flows, PeerFilter};
use crate::traffic::seen::Seen;
use crate::traffic::{Record, Verdict};

/// So many flows are told apart; more are "others". Twice as many are in memory at most, with about a KiB each.
const MOST_FLOWS: usize = 10_000;
/// So many lines fit what people read.
const LINES: usize = 40;

/// Arguments of `flows`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// From when on: a duration until now ("90s", "30m", "1h") or an RFC 3339 time
    #[arg(long, value_name = "TIME", default_value = "1h")]
    since: String,
    /// Until when, likewise; by default, now
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// What was denied or rejected
    #[arg(long)]
    denied: bool,
    /// What only audit mode let through
    #[arg(long)]
    audited: bool,
    /// What ended in this verdict: allowed, denied, rejected, would-deny, would-reject or logged; may be repeated
    #[arg(long, value_name = "VERDICT", action = ArgAction::Append, value_parser = verdict)]
    verdict: Vec<Verdict>,
    /// The other side: a set, a node, an address or a prefix
    #[arg(long, value_name = "SET|NODE|CIDR", value_parser = peer)]
    peer: Option<PeerFilter>,
    /// What was asked for: a service of the policy, "tcp/22", "udp/30000-32767", "icmp", or a port
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// The interface
    #[arg(long, value_name = "IFACE", value_parser = interface)]
    interface: Option<InterfaceName>,
    /// What decided: a policy, a rule ("kubelet#2"), or "default"
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// Who began: `in`, the other side; `out`, this host
    #[arg(long, value_name = "in|out", value_parser = direction)]
    direction: Option<Direction>,
    /// So many flows at most, 0 for all; by default 40, and with --json all
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

fn verdict(text: &str) -> Result<Verdict, String> {
    Verdict::named(text).ok_or_else(|| {
        let names = Verdict::ALL.map(Verdict::name);
        format!("write one of {}", names.join(", "))
    })
}

fn peer(text: &str) -> Result<PeerFilter, String> {
    PeerFilter::parse(text).map_err(|error| error.to_string())
}

fn interface(text: &str) -> Result<InterfaceName, &'static str> {
    InterfaceName::new(text)
        .ok_or("not a name that an interface can have: 1 to 15 bytes without '/', ':' and white space")
}

fn direction(text: &str) -> Result<Direction, &'static str> {
    match text {
        "in" | "ingress" => Ok(Direction::Ingress),
        "out" | "egress" => Ok(Direction::Egress),
        _ => Err("write in or out"),
    }
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let (config, ..) = config::load(&options.config, Trust::Anyone);
    let filter = match filter(options, arguments) {
        Ok(filter) => filter,
        Err(why) => {
            output.message(&why);
            return Exit::Usage;
        }
    };
    let found = match look(&config, &filter, |_| true) {
        Ok(found) => found,
        Err(error) => return refused(&config, &error, output),
    };
    if output.json {
        output.json(&report::Report::of(&filter, &found, arguments.limit.filter(|limit| *limit > 0)))
    } else {
        let limit = match arguments.limit {
            None => LINES,
            Some(0) => usize::MAX,
            Some(limit) => limit,
        };
        output.data(&text::of(&filter, &found, limit))
    }
}

/// What the store has.
pub(super) struct Found {
    pub(super) flows: Flows,
    /// So many rows could not be read.
    pub(super) damaged: u64,
    pub(super) seen: Seen,
}

/// Looks up what a filter asks for, as far as it is `wanted`.
pub(super) fn look(config: &Config, filter: &Filter, wanted: impl Fn(&Record) -> bool) -> Result<Found, Error> {
    let reader = Reader::open(&store::directory(&config.state_directory))?;
    let mut flows = Flows::new(MOST_FLOWS);
    let scan = reader.records(filter.since, filter.until, &mut |record| {
        if filter.matches(&record) && wanted(&record) {
            flows.add(record);
        }
        ControlFlow::Continue(())
    })?;
    let seen = reader.seen(filter.since, filter.until)?;
    Ok(Found { flows, damaged: scan.damaged, seen })
}

/// Says why there is nothing.
pub(super) fn refused(config: &Config, error: &Error, output: &Output) -> Exit {
    match error {
        Error::Missing { .. } if !config.flows.store => {
            output.message("no flows are stored: [flows] store is false in nodewall.toml");
        }
        Error::Missing { .. } => output.message(&format!("{error}: the daemon has written none there yet")),
        _ if error.is_denied() => {
            output.message(&format!("{error}; root and the group {} may", store::READERS));
            return Exit::NotAuthorised;
        }
        _ => output.message(&error.to_string()),
    }
    Exit::Failure
}

fn filter(options: &Options, arguments: &Arguments) -> Result<Filter, String> {
    let now = clock::micros();
    let mut verdicts: std::collections::BTreeSet<Verdict> = arguments.verdict.iter().copied().collect();
    let of = |wanted: fn(Verdict) -> bool| Verdict::ALL.into_iter().filter(move |verdict| wanted(*verdict));
    if arguments.denied {
        verdicts.extend(of(Verdict::denies));
    }
    if arguments.audited {
        verdicts.extend(of(Verdict::is_audited));
    }
    let since = asked::time(&arguments.since, now).map_err(|why| format!("--since: {why}"))?;
    let until = match &arguments.until {
        Some(text) => asked::time(text, now).map_err(|why| format!("--until: {why}"))?,
        // What happens in the next window is not left out because a clock is a little behind.
        None => now.saturating_add(1),
    };
    if since >= until {
        return Err("--since is not before --until".to_owned());
    }
    let service = arguments.service.as_deref().map(|text| asked::service(options, text)).transpose()?;
    Ok(Filter {
        since,
        until,
        verdicts,
        peer: arguments.peer.clone(),
        service,
        interface: arguments.interface.clone(),
        policy: arguments.policy.clone(),
        direction: arguments.direction,
    })
}
