//! What is dangerous about what can be reached.

use super::Reach;
use super::known::{Known, MeantFor};
use super::peers::Peer;
use crate::net::listener::{Holders, Listener, Transport};

/// Something that somebody should do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Which kind.
    pub kind: Kind,
    /// What it is about, in words.
    pub message: String,
    /// What to do.
    pub help: String,
    /// The preset that closes it.
    pub preset: Option<&'static str>,
}

/// The kinds of findings, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A known service that anybody can reach.
    Exposed,
    /// A service that should not be there at all, or only on loopback, can be reached by some.
    TooWide,
    /// A process with a GPU that anybody can reach.
    GpuExposed,
    /// A service for this host alone listens on other addresses; only the policy keeps it closed.
    OnlyThePolicy,
}

impl Kind {
    /// The code for scripts.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Exposed => "exposed-service",
            Self::TooWide => "service-too-wide",
            Self::GpuExposed => "exposed-gpu-process",
            Self::OnlyThePolicy => "only-the-policy",
        }
    }

    /// "error" or "warning".
    pub const fn severity(self) -> &'static str {
        match self {
            Self::Exposed | Self::TooWide => "error",
            Self::GpuExposed | Self::OnlyThePolicy => "warning",
        }
    }
}

/// What there is to say about a listener and from where it is reached.
pub fn of_listener(listener: &Listener, reach: &[Reach]) -> Option<Finding> {
    let known = Known::of(listener);
    let endpoint = &listener.endpoint;
    let subject = match known {
        Some(known) => format!("{} on {}", known.name, place(listener)),
        None => place(listener),
    };
    let wide = !endpoint.address.is_loopback();
    let finding = of_reach(known, &subject, reach);
    if finding.is_some() {
        return finding;
    }
    match known {
        Some(known) if reach.is_empty() && wide && matches!(known.meant_for, MeantFor::ThisHost | MeantFor::Nobody) => {
            Some(Finding {
                kind: Kind::OnlyThePolicy,
                message: format!("{subject} is kept closed by the policy alone: {}", known.reason),
                help: match known.meant_for {
                    MeantFor::Nobody => "switch it off".to_owned(),
                    _ => "let it listen on 127.0.0.1".to_owned(),
                },
                preset: known.preset,
            })
        }
        None if holds_gpu(listener) => {
            let zones = anybody(reach);
            (!zones.is_empty()).then(|| Finding {
                kind: Kind::GpuExposed,
                message: format!(
                    "{subject}, a process that holds a GPU, can be reached by {}",
                    zones.join(", and by ")
                ),
                help: "allow those who need it, by a set, or let it listen on 127.0.0.1".to_owned(),
                preset: None,
            })
        }
        _ => None,
    }
}

/// What there is to say about a port that others publish.
pub fn of_published(known: Option<&'static Known>, subject: &str, reach: &[Reach]) -> Option<Finding> {
    let subject = known.map_or_else(|| subject.to_owned(), |known| format!("{} on {subject}", known.name));
    of_reach(known, &subject, reach)
}

fn of_reach(known: Option<&'static Known>, subject: &str, reach: &[Reach]) -> Option<Finding> {
    let known = known?;
    let zones = anybody(reach);
    let closes = |whom: &str| match known.preset {
        Some(preset) => format!("`nodewall preset enable {preset}` closes it{whom}"),
        None => format!("deny it{whom}"),
    };
    let (kind, message, help) = match known.meant_for {
        MeantFor::Some(set) if !zones.is_empty() => (
            Kind::Exposed,
            format!("{subject} can be reached by {}: {}", zones.join(", and by "), known.reason),
            closes(&format!(" for all but set {set}")),
        ),
        MeantFor::ThisHost | MeantFor::Nobody if !reach.is_empty() => (
            if zones.is_empty() { Kind::TooWide } else { Kind::Exposed },
            format!("{subject} can be reached by {}: {}", all(reach).join(", and by "), known.reason),
            match known.meant_for {
                MeantFor::Nobody => format!("switch it off; {}", closes("")),
                _ => format!("let it listen on 127.0.0.1; {}", closes("")),
            },
        ),
        _ => return None,
    };
    Some(Finding { kind, message, help, preset: known.preset })
}

/// "anyone on mgmt", of each zone where that is so.
fn anybody(reach: &[Reach]) -> Vec<String> {
    let anyone = |reach: &&Reach| reach.peers.iter().any(Peer::is_anyone);
    reach.iter().filter(anyone).map(words).collect()
}

fn all(reach: &[Reach]) -> Vec<String> {
    reach.iter().map(words).collect()
}

/// "admin, part of pods on mgmt"
fn words(reach: &Reach) -> String {
    let peers: Vec<String> = reach.peers.iter().map(ToString::to_string).collect();
    format!("{} on {}", peers.join(", "), reach.zone())
}

/// "0.0.0.0:8265/tcp (gcs_server, process 812)"
fn place(listener: &Listener) -> String {
    let endpoint = &listener.endpoint;
    let socket = match endpoint.transport {
        Transport::Ip(_) => std::net::SocketAddr::new(endpoint.address, endpoint.port).to_string(),
        Transport::RdmaCm => format!("{} port {}", endpoint.address, endpoint.port),
    };
    let who = match &listener.holders {
        Holders::Processes(processes) => match processes.first() {
            Some(process) => format!(" ({}, process {})", process.name, process.pid),
            None => String::new(),
        },
        Holders::Kernel(_) => " (the kernel)".to_owned(),
        Holders::Unknown => String::new(),
    };
    format!("{socket}/{}{who}", endpoint.transport.name())
}

fn holds_gpu(listener: &Listener) -> bool {
    listener.holders.processes().iter().any(crate::net::listener::Process::holds_gpu)
}
