//! Records added up over the whole time, by who, what and where, in bounded memory.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;
use crate::traffic::{Actor, Decider, Record, Service, Verdict};

/// What belongs together, whatever became of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Flow {
    /// Who began: the peer, or this host.
    pub direction: Direction,
    /// The role of the interface.
    pub role: Option<Role>,
    /// The interface.
    pub interface: Option<InterfaceName>,
    /// The other side; `None`: more than were told apart.
    pub peer: Option<IpAddr>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// What was asked for.
    pub service: Service,
}

/// How it was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Connections that were let through, by a rule or by audit mode.
    pub connections: u64,
    /// Connections that were tried and stopped.
    pub denied: u64,
    /// Connections through this host, to or from another one.
    pub through: u64,
    /// Packets of those that were let through, both ways; `None` where nobody counted.
    pub packets: Option<u64>,
    /// The first, in microseconds since 1970-01-01 UTC.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Who on this host had the sockets: the first [`Record::MOST_ACTORS`] in order.
    pub actors: BTreeSet<Actor>,
    /// This host's address, the lowest if there were several.
    pub local: Option<IpAddr>,
}

impl Seen {
    /// Takes another one in.
    pub fn add(&mut self, other: &Self) {
        let fresh = *self == Self::default();
        self.first = if fresh { other.first } else { self.first.min(other.first) };
        self.last = self.last.max(other.last);
        self.connections = self.connections.saturating_add(other.connections);
        self.denied = self.denied.saturating_add(other.denied);
        self.through = self.through.saturating_add(other.through);
        self.packets = match (self.packets, other.packets) {
            (Some(one), Some(two)) => Some(one.saturating_add(two)),
            (one, two) => one.or(two),
        };
        // The lowest ones, so that it does not depend on the order in which they come.
        self.actors.extend(other.actors.iter().cloned());
        while self.actors.len() > Record::MOST_ACTORS {
            self.actors.pop_last();
        }
        self.local = match (self.local, other.local) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
    }

    /// From the first to the last, in microseconds.
    pub const fn span(&self) -> u64 {
        self.last.saturating_sub(self.first)
    }

    /// All connections, whatever became of them.
    pub const fn all(&self) -> u64 {
        self.connections.saturating_add(self.denied).saturating_add(self.through)
    }

    fn of(record: &Record) -> Self {
        let (mut connections, mut denied, mut through) = (0, 0, 0);
        let stopped = record.key.verdict.denies();
        let place = match (stopped, &record.key.decider) {
            (true, _) => &mut denied,
            (false, Decider::Nothing) => &mut through,
            (false, _) => &mut connections,
        };
        *place = record.connections;
        Self {
            connections,
            denied,
            through,
            packets: record.packets.filter(|_| !stopped),
            first: record.first,
            last: record.last,
            actors: record.actors.clone(),
            local: record.local,
        }
    }
}

/// Records, added up.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Gathered {
    flows: BTreeMap<Flow, Seen>,
    /// How many records there were.
    pub records: u64,
    /// How many connections they stand for.
    pub connections: u64,
    /// The first of all, in microseconds since 1970-01-01 UTC; `None` without a record.
    pub first: Option<u64>,
    /// The last of all.
    pub last: Option<u64>,
    /// How many records were put together with others because there was too much to tell apart.
    pub folded: u64,
}

/// How many flows are told apart: some 100 MB. Ports are given up first, then peers.
const MOST_FLOWS: usize = 400_000;
/// From here on not even peers are told apart.
const MOST_PEERS: usize = 500_000;

impl Gathered {
    /// Takes a record in.
    pub fn push(&mut self, record: &Record) {
        self.push_within(record, MOST_FLOWS, MOST_PEERS);
    }

    fn push_within(&mut self, record: &Record, most_flows: usize, most_peers: usize) {
        self.records += 1;
        // A rule that only logs says nothing of what became of the packet; what decided has a record of its own.
        if record.key.verdict == Verdict::Logged {
            return;
        }
        self.connections = self.connections.saturating_add(record.connections);
        self.first = Some(self.first.map_or(record.first, |first| first.min(record.first)));
        self.last = Some(self.last.map_or(record.last, |last| last.max(record.last)));
        let key = &record.key;
        let mut flow = Flow {
            direction: key.direction,
            role: key.role,
            interface: key.interface.clone(),
            peer: key.peer,
            protocol: key.protocol,
            service: key.service,
        };
        let known =
            |flows: &BTreeMap<Flow, Seen>, flow: &Flow, most: usize| flows.len() < most || flows.contains_key(flow);
        if !known(&self.flows, &flow, most_flows) {
            self.folded += 1;
            flow.service = Service::Many;
            flow.protocol = None;
            if !known(&self.flows, &flow, most_peers) {
                flow.peer = None;
            }
        }
        self.flows.entry(flow).or_default().add(&Seen::of(record));
    }

    /// The flows in order.
    pub const fn flows(&self) -> &BTreeMap<Flow, Seen> {
        &self.flows
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::triage::tests::record;
    use super::*;

    #[test]
    fn verdicts_of_one_flow_are_counted_apart_and_actors_do_not_depend_on_the_order() {
        let mut records = Vec::new();
        for (verdict, connections) in
            [(Verdict::WouldDeny, 3), (Verdict::Allowed, 2), (Verdict::Denied, 7), (Verdict::Logged, 9)]
        {
            let mut one = record("10.0.0.1", 22, connections);
            one.key.verdict = verdict;
            one.packets = Some(10);
            records.push(one);
        }
        for number in 0..20 {
            let mut one = record("10.0.0.1", 22, 0);
            one.actors = [Actor { process: format!("p{number:02}"), ..Actor::default() }].into();
            records.push(one);
        }
        let gather = |records: &mut dyn Iterator<Item = &Record>| {
            let mut gathered = Gathered::default();
            records.for_each(|record| gathered.push(record));
            gathered
        };
        let forth = gather(&mut records.iter());
        assert_eq!(forth, gather(&mut records.iter().rev()));
        let (_, seen) = forth.flows().first_key_value().unwrap();
        assert_eq!((seen.connections, seen.denied, seen.packets), (5, 7, Some(20)));
        assert_eq!(seen.actors.first().unwrap().process, "p00");
        assert_eq!(seen.actors.len(), Record::MOST_ACTORS);
        assert_eq!((forth.records, forth.connections), (24, 12));
    }

    #[test]
    fn too_much_to_tell_apart_takes_no_more_memory() {
        let mut gathered = Gathered::default();
        for port in 1..=100 {
            gathered.push_within(&record("10.0.0.1", port, 1), 10, 12);
        }
        for last in 2..=100 {
            gathered.push_within(&record(&format!("10.0.0.{last}"), 22, 1), 10, 12);
        }
        assert_eq!(gathered.flows().len(), 13);
        assert_eq!(gathered.connections, 199);
        assert_eq!(gathered.flows().values().map(|seen| seen.connections).sum::<u64>(), 199);
    }
}
