//! Which flows a policy should allow, and which are set apart: scans, one-offs, what nobody answered, what was denied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Options;
use super::gather::{Flow, Gathered, Seen};
use super::ground::{Ground, Standing};
use super::peers::Names;
use crate::net::interface::{Direction, Role};
use crate::net::protocol::Protocol;
use crate::simulate::Reason;
use crate::traffic::Service;

/// Why a flow is not proposed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Apart {
    /// The peer tried many ports that nothing answered.
    Scan,
    /// More peers or services than were told apart.
    Flood,
    /// Too seldom to be a habit.
    OneOff,
    /// Nothing answered, or nothing listened.
    Unanswered,
    /// An enforcing policy denied it.
    Denied,
    /// This rule says that it is denied.
    ByRule(String),
    /// It goes through this host, to or from another one.
    Through,
    /// The interface, or any other of its role, is gone.
    NoInterface,
    /// More peers than anybody would review.
    TooMany,
}

impl Apart {
    /// The name for scripts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Flood => "flood",
            Self::OneOff => "one-off",
            Self::Unanswered => "unanswered",
            Self::Denied => "denied",
            Self::ByRule(_) => "denied-by-rule",
            Self::Through => "forwarded",
            Self::NoInterface => "no-interface",
            Self::TooMany => "too-many",
        }
    }
}

/// What is to be done about a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// The policy lets it through already.
    Covered,
    /// This host may begin it by default, and nobody asked for egress.
    NotAsked,
    /// It should be allowed; what denies it today, if anything does.
    Wanted(Option<Reason>),
    /// It is set apart.
    Apart(Apart),
}

/// A flow with its fate.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub(super) flow: &'a Flow,
    pub(super) seen: &'a Seen,
    /// The role that counts today.
    pub(super) role: Option<Role>,
    pub(super) fate: Fate,
    /// Whether it is one of those at ports that change from job to job.
    pub(super) moving: bool,
}

/// So many services that nothing answered make a scan.
const SCAN: usize = 10;
/// What a scanner asks for so many times as often as for anything else, it has another reason for.
const MUCH_MORE: u64 = 4;
/// What lasts that long is no one-off, even if it is one connection: an hour, in microseconds.
const LONG: u64 = 3600 * 1_000_000;
/// Ephemeral ports of one peer, in both directions, that make it one of a job.
const MOVING_OF_PEER: usize = 3;
/// Ephemeral ports in all that make a job, and not a service at an odd port.
const MOVING: usize = 5;

/// Judges every flow, in order.
pub(super) fn triage<'a>(
    gathered: &'a Gathered,
    ground: &Ground<'_>,
    names: &Names<'_>,
    options: &Options,
) -> Vec<Judged<'a>> {
    let moving = moving(gathered, ground);
    let scanners = scanners(gathered, ground, &moving);
    let judge = |(flow, seen): (&'a Flow, &'a Seen)| {
        let role = ground.role(flow);
        let moving = moving.has(flow, ground);
        let fate = fate(flow, seen, ground, options);
        let fate = match fate {
            Fate::Wanted(reason) => match set_apart(flow, seen, moving, &scanners, options) {
                Some(apart) => Fate::Apart(apart),
                None => Fate::Wanted(reason),
            },
            settled => settled,
        };
        Judged { flow, seen, role, fate, moving }
    };
    let mut judged: Vec<Judged<'a>> = gathered.flows().iter().map(judge).collect();
    habits(&mut judged, names, options);
    judged
}

/// What the policy of today, and the record, say.
fn fate(flow: &Flow, seen: &Seen, ground: &Ground<'_>, options: &Options) -> Fate {
    if flow.peer.is_none() || matches!(flow.service, Service::Many) || flow.protocol.is_none() {
        return Fate::Wanted(None);
    }
    if seen.connections == 0 && seen.through > 0 {
        return Fate::Apart(Apart::Through);
    }
    let denied = seen.connections == 0 && seen.denied > 0 && !options.denied;
    match ground.standing(flow, seen) {
        Standing::Covered => Fate::Covered,
        Standing::Nowhere => Fate::Apart(Apart::NoInterface),
        Standing::Never => Fate::Apart(Apart::ByRule("essentials".to_owned())),
        Standing::ByDefault if flow.direction == Direction::Egress && !options.egress => Fate::NotAsked,
        Standing::Rule(id) if !options.denied => Fate::Apart(Apart::ByRule(id.to_string())),
        _ if denied => Fate::Apart(Apart::Denied),
        Standing::ByDefault => Fate::Wanted(None),
        Standing::Open(reason) => Fate::Wanted(Some(reason)),
        Standing::Rule(id) => Fate::Wanted(Some(Reason::Rule(id))),
    }
}

/// Why a flow that the policy says nothing about should not be proposed, apart from being seldom.
fn set_apart(
    flow: &Flow,
    seen: &Seen,
    moving: bool,
    scanners: &BTreeMap<IpAddr, u64>,
    options: &Options,
) -> Option<Apart> {
    let Some(peer) = flow.peer else { return Some(Apart::Flood) };
    let scanned = scanners.get(&peer).filter(|_| flow.direction == Direction::Ingress);
    if flow.service == Service::Many || flow.protocol.is_none() {
        return Some(if scanned.is_some() { Apart::Scan } else { Apart::Flood });
    }
    // What was denied had no chance to be answered.
    let asked_for = options.denied && seen.connections == 0;
    let answer = answer(flow, seen);
    if let Some(usual) = scanned {
        let regular = seen.connections >= usual.saturating_mul(MUCH_MORE).max(MUCH_MORE) && seen.span() >= LONG;
        if answer == Answer::No || !(regular || moving) {
            return Some(Apart::Scan);
        }
    }
    (answer == Answer::No && !asked_for).then_some(Apart::Unanswered)
}

/// Whether somebody answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Yes,
    No,
    Unknown,
}

fn answer(flow: &Flow, seen: &Seen) -> Answer {
    if flow.direction == Direction::Ingress && !seen.actors.is_empty() && seen.connections > 0 {
        return Answer::Yes;
    }
    if seen.connections == 0 {
        return Answer::No;
    }
    // A SYN and a reset are two packets, and a SYN that nobody answers is sent again; a connection has at least its beginning and
    // its end. Of datagrams, the second one is an answer as a rule.
    let least = if flow.protocol == Some(Protocol::TCP) { 4 } else { 2 };
    match seen.packets {
        Some(packets) if packets >= seen.connections.saturating_mul(least) => Answer::Yes,
        Some(_) => Answer::No,
        None => Answer::Unknown,
    }
}

/// Who scans this host, and how often such a peer usually asks for a service that does not answer.
fn scanners(gathered: &Gathered, ground: &Ground<'_>, moving: &Moving) -> BTreeMap<IpAddr, u64> {
    let mut silent: BTreeMap<IpAddr, BTreeMap<(Option<Protocol>, Service), u64>> = BTreeMap::new();
    let mut scanners = BTreeMap::new();
    for (flow, seen) in gathered.flows() {
        let (Direction::Ingress, Some(peer)) = (flow.direction, flow.peer) else { continue };
        if seen.through > 0 {
            continue;
        }
        let counts = match answer(flow, seen) {
            Answer::Yes => false,
            Answer::No => true,
            // One that asks for ten services of which nothing is known is taken for a scanner rather than for a friend.
            Answer::Unknown => !moving.has(flow, ground),
        };
        if counts && flow.service == Service::Many {
            scanners.insert(peer, 1);
        } else if counts {
            let times = silent.entry(peer).or_default().entry((flow.protocol, flow.service)).or_default();
            *times = times.saturating_add(seen.all());
        }
    }
    for (peer, services) in silent.iter().filter(|(_, services)| services.len() >= SCAN) {
        let mut times: Vec<u64> = services.values().copied().collect();
        times.sort_unstable();
        scanners.insert(*peer, times.get(times.len() / 2).copied().unwrap_or(1).max(1));
    }
    scanners
}

fn is_ephemeral(flow: &Flow, ground: &Ground<'_>) -> bool {
    matches!(flow.service, Service::Port(port) if ground.ephemeral.contains(port))
}

/// Peers whose ports change: NCCL, Gloo, MPI, Ray's workers.
#[derive(Clone, Debug, Default)]
struct Moving {
    peers: BTreeSet<(Option<Role>, Option<Protocol>, IpAddr)>,
}

impl Moving {
    fn has(&self, flow: &Flow, ground: &Ground<'_>) -> bool {
        let Some(peer) = flow.peer else { return false };
        moves(flow, ground) && self.peers.contains(&(ground.role(flow), flow.protocol, peer))
    }
}

/// Whether a flow goes to a port that nobody chose.
fn moves(flow: &Flow, ground: &Ground<'_>) -> bool {
    let Service::Port(port) = flow.service else { return false };
    is_ephemeral(flow, ground)
        && flow.protocol.is_some_and(|protocol| !super::services::is_fixed(ground.policy, protocol, port))
}

/// What is known of the ephemeral ports that a peer and this host had to do with.
#[derive(Clone, Debug, Default)]
struct Ports {
    all: BTreeSet<(Direction, u16)>,
    answered: usize,
}

impl Ports {
    /// Whether they are those of a job: answered, or, where nobody can tell, asked for by both sides.
    fn are_of_a_job(&self) -> bool {
        let directions: BTreeSet<Direction> = self.all.iter().map(|(direction, _)| *direction).collect();
        self.all.len() >= MOVING_OF_PEER && (self.answered * 2 >= self.all.len() || directions.len() == 2)
    }
}

fn moving(gathered: &Gathered, ground: &Ground<'_>) -> Moving {
    let mut ports: BTreeMap<(Option<Role>, Option<Protocol>), BTreeMap<IpAddr, Ports>> = BTreeMap::new();
    for (flow, seen) in gathered.flows() {
        let (Some(peer), Service::Port(port)) = (flow.peer, flow.service) else { continue };
        let answer = answer(flow, seen);
        if moves(flow, ground) && answer != Answer::No {
            let of_role = ports.entry((ground.role(flow), flow.protocol)).or_default();
            let ports = of_role.entry(peer).or_default();
            let new = ports.all.insert((flow.direction, port));
            ports.answered += usize::from(new && answer == Answer::Yes);
        }
    }
    let mut peers = BTreeSet::new();
    for ((role, protocol), of_role) in ports {
        let members = of_role.iter().filter(|(_, ports)| ports.are_of_a_job());
        let all: BTreeSet<_> = members.clone().flat_map(|(_, ports)| &ports.all).collect();
        if all.len() >= MOVING {
            peers.extend(members.map(|(peer, _)| (role, protocol, *peer)));
        }
    }
    Moving { peers }
}

/// Sets apart what is too seldom. What is rare of one peer may be a habit of those with whom it shares a name.
fn habits(judged: &mut [Judged<'_>], names: &Names<'_>, options: &Options) {
    let key = |judged: &Judged<'_>| {
        let Flow { direction, protocol, service, .. } = judged.flow;
        let service = if judged.moving { None } else { Some(*service) };
        (*direction, judged.role, *protocol, service)
    };
    let tries =
        |seen: &Seen| if options.denied { seen.connections.saturating_add(seen.denied) } else { seen.connections };
    let mut of_peer = BTreeMap::new();
    let mut of_circle = BTreeMap::new();
    let circle = |peer: Option<IpAddr>| peer.and_then(|peer| names.circle(peer));
    for one in judged.iter().filter(|one| matches!(one.fate, Fate::Wanted(_))) {
        let (times, long) = of_peer.entry((key(one), one.flow.peer)).or_insert((0_u64, false));
        *times = times.saturating_add(tries(one.seen));
        *long |= one.seen.span() >= LONG;
        if let Some(circle) = circle(one.flow.peer) {
            let times = of_circle.entry((key(one), circle)).or_insert(0_u64);
            *times = times.saturating_add(tries(one.seen));
        }
    }
    // A name counts where the policy may be widened to it.
    let by_name = options.generalise != super::Generalise::None;
    for one in judged.iter_mut().filter(|one| matches!(one.fate, Fate::Wanted(_))) {
        let (times, long) = of_peer.get(&(key(one), one.flow.peer)).copied().unwrap_or_default();
        let shared = circle(one.flow.peer).and_then(|circle| of_circle.get(&(key(one), circle)).copied());
        let habit = times >= options.seen || long || (by_name && shared.is_some_and(|times| times >= options.seen));
        if !habit {
            one.fate = Fate::Apart(Apart::OneOff);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::traffic::{Actor, Decider, Key, Record, Verdict};

    /// Connections of a peer to a TCP port on "eth0", let through by audit mode; nothing is known of sockets and packets.
    pub(in crate::learn) fn record(peer: &str, port: u16, connections: u64) -> Record {
        Record {
            key: Key {
                direction: Direction::Ingress,
                interface: crate::net::interface::InterfaceName::new("eth0"),
                role: Some(Role::Mgmt),
                peer: Some(peer.parse().unwrap()),
                protocol: Some(Protocol::TCP),
                service: Service::Port(port),
                verdict: Verdict::WouldDeny,
                decider: Decider::Default,
            },
            local: Some("10.0.0.5".parse().unwrap()),
            names: BTreeSet::new(),
            tier: None,
            place: None,
            actors: BTreeSet::new(),
            connections,
            packets: None,
            bytes: None,
            first: 1_000_000,
            last: 2_000_000,
        }
    }

    /// The same, answered by a process of this name.
    pub(in crate::learn) fn answered(peer: &str, port: u16, connections: u64, process: &str) -> Record {
        let actors = [Actor { process: process.to_owned(), ..Actor::default() }].into();
        Record { actors, packets: Some(connections * 12), ..record(peer, port, connections) }
    }
}
