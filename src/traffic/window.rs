//! Events put together: what a stretch of time comes to, in bounded memory whatever arrives.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::event::{Event, Kind};
use super::record::{Decider, Key, Record, Service, Verdict};
use super::scene::Explained;

/// The most keys of one window that are told apart.
pub const MOST_KEYS: usize = 8192;
/// How many more there may be for what is not told apart by service or peer.
const MOST_FOLDED: usize = 1024;
/// How many source ports are remembered for each key, so that a packet that is sent again is no other connection.
const MOST_PORTS: usize = 1024;

/// What goes on in one stretch of time.
#[derive(Clone, Debug, Default)]
pub struct Window {
    gathered: BTreeMap<Key, Gathered>,
    /// The ports of the window before: packets are sent again for seconds.
    before: BTreeMap<Key, Ports>,
}

/// The source ports of a key, each with whether connection tracking has told of its connection.
type Ports = BTreeMap<u16, bool>;

#[derive(Clone, Debug)]
struct Gathered {
    record: Record,
    ports: Ports,
}

impl Window {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty()
    }

    /// Something happened. A packet of the log and the event of its connection count as one connection.
    pub fn add(&mut self, event: &Event) {
        let key = Key {
            direction: event.direction,
            interface: event.interface.clone(),
            role: event.role,
            peer: Some(event.peer()),
            protocol: event.protocol,
            service: event.service(),
            verdict: event.verdict,
            decider: event.decider.clone(),
        };
        let port = event.ports.map_or(0, |(source, _)| source);
        let key = self.told_apart(key);
        let known = self.before.get(&key).is_some_and(|ports| ports.contains_key(&port));
        let Gathered { record, ports } = self.gathered.entry(key).or_insert_with_key(|key| Gathered {
            record: Record {
                key: key.clone(),
                local: Some(event.local()),
                names: event.names.clone(),
                tier: event.tier.clone(),
                place: event.place.clone(),
                actors: event.actor.iter().cloned().collect(),
                connections: 0,
                packets: None,
                bytes: None,
                first: event.time,
                last: event.time,
            },
            ports: Ports::new(),
        });
        record.first = record.first.min(event.time);
        record.last = record.last.max(event.time);
        if let Some(actor) = &event.actor
            && record.actors.len() < Record::MOST_ACTORS
        {
            record.actors.insert(actor.clone());
        }
        let begins = event.kind == Kind::Connection;
        let told = ports.get(&port).copied();
        let counts = match (begins, told) {
            // The packet of the same connection was there first, or it comes after.
            (true, Some(false)) | (false, Some(_)) => false,
            (true, Some(true)) => true,
            (_, None) => begins || !known,
        };
        record.connections = record.connections.saturating_add(u64::from(counts));
        if told.is_some() || ports.len() < MOST_PORTS {
            ports.insert(port, begins || told.unwrap_or(false));
        }
        // What connections carry is known when they end.
        if event.kind == Kind::Packet && (event.verdict.denies() || event.verdict == Verdict::Logged) {
            record.packets = Some(record.packets.unwrap_or(0).saturating_add(1));
            record.bytes = Some(record.bytes.unwrap_or(0).saturating_add(event.length.unwrap_or(0).into()));
        }
    }

    /// A connection has ended that carried so many packets and bytes; `time` in microseconds since 1970-01-01 UTC.
    pub fn ended(&mut self, explained: &Explained, packets: u64, bytes: u64, time: u64) {
        let (local, remote) = explained.first.ends();
        let (name, role) = explained.interface.clone().unzip();
        let answer = &explained.answer;
        let key = self.told_apart(Key {
            direction: explained.first.direction,
            interface: name,
            role,
            peer: Some(remote),
            protocol: Some(explained.first.protocol),
            service: Service::of(explained.first.ports, explained.first.icmp),
            verdict: answer.verdict,
            decider: answer.decider.clone(),
        });
        let record = Record {
            key: key.clone(),
            local: Some(local),
            names: explained.names.clone(),
            tier: answer.tier.clone(),
            place: answer.place.clone(),
            actors: std::collections::BTreeSet::new(),
            connections: 0,
            packets: Some(packets),
            bytes: Some(bytes),
            first: time,
            last: time,
        };
        match self.gathered.get_mut(&key) {
            Some(gathered) => gathered.record.add(&record),
            None => {
                self.gathered.insert(key, Gathered { record, ports: Ports::new() });
            }
        }
    }

    /// What it came to; the next window begins.
    pub fn take(&mut self) -> Vec<Record> {
        let mut records = Vec::with_capacity(self.gathered.len());
        self.before.clear();
        for (key, Gathered { record, ports }) in std::mem::take(&mut self.gathered) {
            records.push(record);
            if !ports.is_empty() {
                self.before.insert(key, ports);
            }
        }
        records
    }

    /// The key under which something counts: where there are too many, services of a peer are not told apart, then peers are not,
    /// then rules are not.
    fn told_apart(&self, mut key: Key) -> Key {
        let full = |most: usize| self.gathered.len() >= most;
        if !full(MOST_KEYS) || self.gathered.contains_key(&key) {
            return key;
        }
        key.service = Service::Many;
        key.protocol = None;
        if !full(MOST_KEYS + MOST_FOLDED) || self.gathered.contains_key(&key) {
            return key;
        }
        key.peer = None::<IpAddr>;
        if !full(MOST_KEYS + 2 * MOST_FOLDED) || self.gathered.contains_key(&key) {
            return key;
        }
        // Six verdicts in two directions.
        Key { decider: Decider::Unknown, interface: None, role: None, ..key }
    }
}
