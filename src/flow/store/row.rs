//! A record as a row: small numbers in place, strings in a table of their own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::Protocol;
use crate::traffic::{Actor, Decider, Key, PeerName, Record, Service, Verdict};

/// How many strings a row has.
pub(super) const TEXTS: usize = 7;

/// A record in the form of the table. Numbers have the width of SQLite's, which is less than those of a record by one bit; what is
/// more is the most there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) first: i64,
    /// From the first to the last, in microseconds.
    pub(super) span: i64,
    pub(super) direction: i64,
    pub(super) verdict: i64,
    pub(super) protocol: Option<i64>,
    /// A port, or 65536 + 256 * type + code, or -1 for many; nothing for the protocol as a whole.
    pub(super) service: Option<i64>,
    pub(super) peer: Option<Vec<u8>>,
    pub(super) local: Option<Vec<u8>>,
    pub(super) connections: i64,
    pub(super) packets: Option<i64>,
    pub(super) bytes: Option<i64>,
    /// Role, interface, decider, tier, place, names, actors.
    pub(super) texts: [Option<Arc<str>>; TEXTS],
}

/// A longer string is left out: nothing that people name is, and one row must fit into a transaction.
const LONGEST: usize = 4096;
/// ICMP types come after the ports.
const ICMP: i64 = 65_536;
const MANY: i64 = -1;

impl Row {
    /// The row of a record.
    pub(super) fn of(record: &Record) -> Self {
        let Record { key, local, names, tier, place, actors, connections, packets, bytes, first, last } = record;
        let Key { direction, interface, role, peer, protocol, service, verdict, decider } = key;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let actors: Vec<_> =
            actors.iter().map(|actor| (&actor.process, &actor.unit, &actor.pod, &actor.user)).collect();
        let first = wide(*first);
        Self {
            first,
            span: wide(*last).saturating_sub(first),
            direction: i64::from(*direction == Direction::Egress),
            verdict: number_of(*verdict),
            protocol: protocol.map(|protocol| protocol.0.into()),
            service: match service {
                Service::Port(port) => Some((*port).into()),
                Service::Icmp(kind, code) => Some(ICMP + i64::from(*kind) * 256 + i64::from(*code)),
                Service::Many => Some(MANY),
                Service::Whole => None,
            },
            peer: peer.map(octets),
            local: local.map(octets),
            connections: wide(*connections),
            packets: packets.map(wide),
            bytes: bytes.map(wide),
            texts: [
                role.map(|role| role.name().into()),
                interface.as_ref().map(|interface| interface.as_str().into()),
                Some(short(decider.to_string().into()).unwrap_or_else(|| Decider::Unknown.to_string().into())),
                tier.as_deref().map(Arc::from).and_then(short),
                place.as_deref().map(Arc::from).and_then(short),
                (!names.is_empty()).then(|| json(&names)).and_then(short),
                (!actors.is_empty()).then(|| json(&actors)).and_then(short),
            ],
        }
    }

    /// The record of a row; nothing when it is not one that was written.
    pub(super) fn record(&self) -> Option<Record> {
        let [role, interface, decider, tier, place, names, actors] = &self.texts;
        let names: Vec<String> = read(names.as_deref())?;
        let actors: Vec<ActorText> = read(actors.as_deref())?;
        let key = Key {
            direction: match self.direction {
                0 => Direction::Ingress,
                1 => Direction::Egress,
                _ => return None,
            },
            interface: known(interface.as_deref(), InterfaceName::new)?,
            role: known(role.as_deref(), Role::by_name)?,
            peer: known(self.peer.as_deref(), address)?,
            protocol: known(self.protocol, |number| u8::try_from(number).ok().map(Protocol))?,
            service: match self.service {
                None => Service::Whole,
                Some(MANY) => Service::Many,
                Some(number) if number < ICMP => Service::Port(u16::try_from(number).ok()?),
                Some(number) => {
                    let [kind, code] = u16::try_from(number - ICMP).ok()?.to_be_bytes();
                    Service::Icmp(kind, code)
                }
            },
            verdict: verdict_of(self.verdict)?,
            decider: Decider::parse(decider.as_deref()?)?,
        };
        let first = u64::try_from(self.first).ok()?;
        Some(Record {
            key,
            local: known(self.local.as_deref(), address)?,
            names: names.iter().map(|name| PeerName::parse(name)).collect::<Option<BTreeSet<_>>>()?,
            tier: tier.as_deref().map(str::to_owned),
            place: place.as_deref().map(str::to_owned),
            actors: actors.into_iter().map(|(process, unit, pod, user)| Actor { process, unit, pod, user }).collect(),
            connections: u64::try_from(self.connections).ok()?,
            packets: known(self.packets, |number| u64::try_from(number).ok())?,
            bytes: known(self.bytes, |number| u64::try_from(number).ok())?,
            first,
            last: first.checked_add(u64::try_from(self.span).ok()?)?,
        })
    }
}

/// Process, unit, pod and user.
type ActorText = (String, Option<String>, Option<String>, Option<String>);

/// What is not there is known not to be; what is there and makes no sense is not.
fn known<T, U>(written: Option<T>, meaning: impl FnOnce(T) -> Option<U>) -> Option<Option<U>> {
    match written {
        None => Some(None),
        Some(written) => meaning(written).map(Some),
    }
}

fn short(text: Arc<str>) -> Option<Arc<str>> {
    (text.len() <= LONGEST).then_some(text)
}

fn wide(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// These numbers are on disks: a new verdict gets a new one.
const fn number_of(verdict: Verdict) -> i64 {
    match verdict {
        Verdict::Allowed => 0,
        Verdict::Denied => 1,
        Verdict::Rejected => 2,
        Verdict::WouldDeny => 3,
        Verdict::WouldReject => 4,
        Verdict::Logged => 5,
    }
}

fn verdict_of(number: i64) -> Option<Verdict> {
    Verdict::ALL.into_iter().find(|verdict| number_of(*verdict) == number)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Lists of strings have a text in JSON always.
fn json(value: &impl serde::Serialize) -> Arc<str> {
    serde_json::to_string(value).unwrap_or_default().into()
}

fn read<T: serde::de::DeserializeOwned + Default>(text: Option<&str>) -> Option<T> {
    text.map_or_else(|| Some(T::default()), |text| serde_json::from_str(text).ok())
}
