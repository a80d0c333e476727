//! The packets of a capture, one after the other, under a policy.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::decision::Outcome;
use super::evaluate::trace;
use super::flows::{Flows, Sight};
use super::link::{LinkType, NoPacket, Seen, frame};
use super::packet::{Exit, Origin, Packet};
use super::trace::{StageEnd, Step, Trace};
use super::wire::{Fragment, Headers, WireError, arriving, beginning};
use crate::net::addr::AddrSet;
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;
use crate::policy::effective::Effective;
use crate::policy::model::{Mode, Stage};

/// By which interfaces the packets of a capture go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Way {
    /// The interface by which packets come in, or by which they go out where `direction` is egress.
    pub interface: InterfaceName,
    /// Its kind.
    pub kind: Option<String>,
    /// Which way a packet goes of which the capture does not say it and that has none of this host's addresses.
    pub direction: Direction,
    /// The other interface, of packets that go through this host.
    pub exit: Option<Exit>,
    /// This host's own addresses: what comes from them is leaving. Empty if they are not known.
    pub local: AddrSet,
    /// The VLAN tags of the frames that count, outermost first; none for those without.
    pub vlans: Vec<u16>,
    /// Who sends what leaves this host.
    pub origin: Origin,
}

/// A frame of a capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Captured<'a> {
    /// What it begins with.
    pub link: LinkType,
    /// As much of it as was captured.
    pub bytes: &'a [u8],
    /// How long it was on the wire, in bytes.
    pub length: usize,
    /// Which way it went, if the capture file says so.
    pub seen: Option<Seen>,
}

/// What becomes of a frame.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer<'a> {
    /// The policy decides it.
    Decided(Box<Decided<'a>>),
    /// It is a fragment after the first of a packet: it goes the way of the first, with which the kernel reassembles it.
    Fragment {
        /// From where to where.
        addresses: (IpAddr, IpAddr),
        /// The number of the frame with the first fragment, and what became of that; `None` if it was not seen.
        first: Option<(u64, Outcome)>,
    },
    /// The kernel drops it before any rule is asked.
    Malformed(WireError),
    /// There is nothing to decide, or nobody can tell.
    Skipped(Skipped),
}

/// A packet with what became of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Decided<'a> {
    /// The packet.
    pub packet: Packet,
    /// What the policy says, step by step.
    pub trace: Trace<'a>,
}

/// Why a frame is not decided.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Skipped {
    /// It carries something else.
    NotIp(NoPacket),
    /// It belongs to the interface of these VLANs, or has none and a VLAN was asked for.
    Vlan(Vec<u16>),
    /// It was for another host, as the machine saw that captured it.
    ForOthers,
    /// The capture has only its beginning.
    Cut,
    /// Its transport header goes on in the next fragment.
    SplitHeader,
}

/// What a replay remembers.
pub struct Replay<'a> {
    effective: &'a Effective,
    way: Way,
    number: u64,
    flows: Flows,
    /// What became of first fragments: the recent ones, and those before them.
    fragments: [BTreeMap<FragmentKey, (u64, Outcome)>; 2],
}

/// What the fragments of one packet have in common; the protocol counts in IPv4 only (RFC 791, RFC 8200).
type FragmentKey = (IpAddr, IpAddr, u32, Option<Protocol>);

/// So many first fragments are remembered at least, and at most twice as many.
const FRAGMENTS_REMEMBERED: usize = 16_384;

impl<'a> Replay<'a> {
    /// Before the first packet: no flow is known.
    pub fn new(effective: &'a Effective, way: Way) -> Self {
        Self { effective, way, number: 0, flows: Flows::default(), fragments: Default::default() }
    }

    /// The next frame of the capture; its number, from 1, and what becomes of it.
    pub fn next(&mut self, captured: &Captured<'_>) -> (u64, Answer<'a>) {
        self.number += 1;
        (self.number, self.answer(captured))
    }

    fn answer(&mut self, captured: &Captured<'_>) -> Answer<'a> {
        let frame = match frame(captured.link, captured.bytes) {
            Ok(frame) => frame,
            Err(_) if captured.bytes.len() < MOST_LINK_HEADER && captured.bytes.len() < captured.length => {
                return Answer::Skipped(Skipped::Cut);
            }
            Err(why) => return Answer::Skipped(Skipped::NotIp(why)),
        };
        if frame.vlans != self.way.vlans {
            return Answer::Skipped(Skipped::Vlan(frame.vlans));
        }
        let seen = frame.seen.or(captured.seen);
        if seen == Some(Seen::ForOthers) {
            return Answer::Skipped(Skipped::ForOthers);
        }
        let length = captured.length.saturating_sub(frame.before);
        let read = beginning(frame.packet, length).and_then(|headers| {
            let leaving = self.leaves(&headers, seen);
            // What this host sends was put together by its own kernel.
            if leaving && self.way.exit.is_none() { Ok(headers) } else { arriving(frame.packet, length) }
        });
        match read {
            Ok(headers) => self.headers(&headers, seen),
            Err(WireError::Cut) => Answer::Skipped(Skipped::Cut),
            Err(error) => Answer::Malformed(error),
        }
    }

    /// Whether a packet leaves by [`Way::interface`].
    fn leaves(&self, headers: &Headers<'_>, seen: Option<Seen>) -> bool {
        match seen {
            Some(seen) => seen == Seen::Leaving,
            None if self.way.local.contains(headers.source) => true,
            None if self.way.local.contains(headers.destination) => false,
            None => self.way.direction == Direction::Egress,
        }
    }

    fn headers(&mut self, headers: &Headers<'_>, seen: Option<Seen>) -> Answer<'a> {
        if let Some(fragment) = headers.fragment {
            let key = key(headers, fragment);
            if !fragment.is_first() {
                let first = self.fragments.iter().find_map(|known| known.get(&key)).copied();
                return Answer::Fragment { addresses: (headers.source, headers.destination), first };
            }
            let readable = match headers.protocol {
                Some(protocol) if protocol.has_ports() => headers.words().is_some(),
                Some(Protocol::ICMP | Protocol::ICMPV6) => headers.icmp().is_some(),
                // After reassembly there is more of it, and the chain may go on.
                None => false,
                Some(_) => true,
            };
            if !readable {
                return Answer::Skipped(Skipped::SplitHeader);
            }
        }
        let sight = self.flows.see(headers);
        let packet = self.packet(headers, seen, sight);
        let trace = trace(self.effective, &packet);
        if trace.decision.outcome == Outcome::Accepted && !self.untracked(&trace) {
            self.flows.confirm(sight);
        }
        if let Some(fragment) = headers.fragment {
            if self.fragments[0].len() >= FRAGMENTS_REMEMBERED {
                let [recent, before] = &mut self.fragments;
                *before = std::mem::take(recent);
            }
            self.fragments[0].insert(key(headers, fragment), (self.number, trace.decision.outcome));
        }
        Answer::Decided(Box::new(Decided { packet, trace }))
    }

    /// Whether the packet was let through without connection tracking.
    fn untracked(&self, trace: &Trace<'_>) -> bool {
        let allowed = |step: &Step<'_>| matches!(step, Step::StageEnd(Stage::Untracked, StageEnd::Allowed));
        self.effective.mode == Mode::Enforce && trace.steps.iter().any(allowed)
    }

    fn packet(&self, headers: &Headers<'_>, seen: Option<Seen>, sight: Sight) -> Packet {
        let Way { interface, kind, exit, origin, .. } = &self.way;
        let packet = headers.packet(Direction::Ingress, interface.clone());
        let packet = Packet { kind: kind.clone(), state: sight.state, ..packet };
        let Some(exit) = exit else {
            if !self.leaves(headers, seen) {
                return packet;
            }
            return Packet { direction: Direction::Egress, origin: origin.clone(), ..packet };
        };
        // Captured on the first of the two interfaces: answers leave by it.
        let back = seen == Some(Seen::Leaving) || (seen.is_none() && sight.reply);
        if !back {
            return Packet { forward: Some(exit.clone()), ..packet };
        }
        let forward = Some(Exit { interface: interface.clone(), kind: kind.clone() });
        Packet { interface: exit.interface.clone(), kind: exit.kind.clone(), forward, ..packet }
    }
}

/// No link-layer header that is read here is longer, but for many VLAN tags.
const MOST_LINK_HEADER: usize = 64;

fn key(headers: &Headers<'_>, fragment: Fragment) -> FragmentKey {
    let protocol = headers.protocol.filter(|_| headers.source.is_ipv4());
    (headers.source, headers.destination, fragment.id, protocol)
}

impl Answer<'_> {
    /// What becomes of the packet, if it can be said.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Decided(decided) => Some(decided.trace.decision.outcome),
            Self::Fragment { first, .. } => first.map(|(_, outcome)| outcome),
            Self::Malformed(_) => Some(Outcome::Dropped),
            Self::Skipped(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
