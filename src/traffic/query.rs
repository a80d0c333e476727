//! Questions to records: which of them, what they come to, and a summary for people.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::record::{Key, PeerName, Record, Service, Verdict};
use crate::net::addr::{PrefixError, parse_prefix};
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;
use crate::policy::model::ServicePort;

/// Which records somebody asks for; what is not said does not matter.
#[derive(Clone, PartialEq, Debug)]
pub struct Filter {
    /// The beginning of the time, in microseconds since 1970-01-01 UTC.
    pub since: u64,
    /// Its end, which is no part of it.
    pub until: u64,
    /// These verdicts; any, if there are none.
    pub verdicts: BTreeSet<Verdict>,
    /// The other side.
    pub peer: Option<PeerFilter>,
    /// What is asked for.
    pub service: Option<ServiceFilter>,
    /// The interface.
    pub interface: Option<InterfaceName>,
    /// A policy ("kubelet"), one of its rules ("kubelet#2"), or another decider by its words ("default", "tier platform").
    pub policy: Option<String>,
    /// Who began.
    pub direction: Option<Direction>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            since: 0,
            until: u64::MAX,
            verdicts: BTreeSet::new(),
            peer: None,
            service: None,
            interface: None,
            policy: None,
            direction: None,
        }
    }
}

/// The other side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerFilter {
    /// A set or a node of this name.
    Name(String),
    /// The addresses of a prefix.
    Prefix(IpNet),
}

impl PeerFilter {
    /// Reads "10.0.0.0/8", "10.0.0.1", or the name of a set or a node, which may say which it is: "set:ops", "node:gpu-17".
    ///
    /// # Errors
    /// It looks like a prefix and is none.
    pub fn parse(text: &str) -> Result<Self, PrefixError> {
        match parse_prefix(text) {
            Ok(prefix) => Ok(Self::Prefix(prefix)),
            Err(PrefixError::Syntax(_)) if !text.contains('/') => Ok(Self::Name(text.to_owned())),
            Err(error) => Err(error),
        }
    }

    fn matches(&self, record: &Record) -> bool {
        match self {
            Self::Prefix(prefix) => record.key.peer.is_some_and(|peer| prefix.contains(&peer)),
            Self::Name(wanted) => record.names.iter().any(|name| {
                let (PeerName::Set(bare) | PeerName::Node(bare)) = name;
                **bare == **wanted || name.to_string() == *wanted
            }),
        }
    }
}

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceFilter {
    /// This port, whatever the protocol.
    Port(u16),
    /// One of these.
    Ports(Vec<ServicePort>),
}

impl ServiceFilter {
    fn matches(&self, key: &Key) -> bool {
        match self {
            Self::Port(port) => key.service == Service::Port(*port),
            Self::Ports(ports) => ports.iter().any(|port| serves(port, key)),
        }
    }
}

/// Whether what a record is about is a part of this.
fn serves(port: &ServicePort, key: &Key) -> bool {
    match (port, key.service) {
        (ServicePort::Protocol(protocol), _) => key.protocol == Some(*protocol),
        (ServicePort::Ports(protocol, ports), Service::Port(port)) => {
            key.protocol == Some(*protocol) && ports.contains(port)
        }
        (ServicePort::Icmp(protocol, types), Service::Icmp(kind, code)) => {
            key.protocol == Some(*protocol) && types.get(&kind).is_some_and(|codes| codes.contains(code))
        }
        _ => false,
    }
}

impl Filter {
    /// Whether a record is asked for.
    pub fn matches(&self, record: &Record) -> bool {
        let key = &record.key;
        record.last >= self.since
            && record.first < self.until
            && (self.verdicts.is_empty() || self.verdicts.contains(&key.verdict))
            && self.peer.as_ref().is_none_or(|peer| peer.matches(record))
            && self.service.as_ref().is_none_or(|service| service.matches(key))
            && self.interface.as_ref().is_none_or(|interface| key.interface.as_ref() == Some(interface))
            && self.direction.is_none_or(|direction| direction == key.direction)
            && self
                .policy
                .as_deref()
                .is_none_or(|policy| key.decider.policy() == Some(policy) || key.decider.to_string() == policy)
    }
}

/// Numbers that add up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    /// Connections that began or were tried.
    pub connections: u64,
    /// Packets, as far as they were counted.
    pub packets: u64,
    /// Bytes, likewise.
    pub bytes: u64,
    /// Connections in records whose packets and bytes nobody counted.
    pub uncounted: u64,
    /// The first of them, in microseconds since 1970-01-01 UTC.
    pub first: Option<u64>,
    /// The last of them.
    pub last: Option<u64>,
}

impl Sum {
    /// Takes a record in.
    pub fn add(&mut self, record: &Record) {
        self.connections = self.connections.saturating_add(record.connections);
        self.packets = self.packets.saturating_add(record.packets.unwrap_or(0));
        self.bytes = self.bytes.saturating_add(record.bytes.unwrap_or(0));
        if record.packets.is_none() {
            self.uncounted = self.uncounted.saturating_add(record.connections);
        }
        self.first = Some(self.first.map_or(record.first, |first| first.min(record.first)));
        self.last = Some(self.last.map_or(record.last, |last| last.max(record.last)));
    }
}

/// What records come to: one for each key, and sums.
///
/// Memory is bounded: of more than twice `most` keys, the half with the fewest connections goes into [`Flows::others`]. A key that
/// comes back afterwards is counted from then on. The sums by verdict are of all records whatever happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flows {
    most: usize,
    kept: BTreeMap<Key, Record>,
    /// The sums by verdict.
    pub verdicts: BTreeMap<Verdict, Sum>,
    /// What keys come to that were too many to tell apart.
    pub others: Sum,
}

impl Flows {
    /// None yet; so many keys, and for a time twice as many, will be told apart.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), kept: BTreeMap::new(), verdicts: BTreeMap::new(), others: Sum::default() }
    }

    /// Takes a record in.
    pub fn add(&mut self, record: Record) {
        self.verdicts.entry(record.key.verdict).or_default().add(&record);
        match self.kept.get_mut(&record.key) {
            Some(known) => known.add(&record),
            None => {
                if self.kept.len() >= self.most.saturating_mul(2) {
                    self.let_go();
                }
                self.kept.insert(record.key.clone(), record);
            }
        }
    }

    fn let_go(&mut self) {
        let mut all: Vec<Record> = std::mem::take(&mut self.kept).into_values().collect();
        all.sort_by(most_first);
        for other in all.drain(self.most.min(all.len())..) {
            self.others.add(&other);
        }
        self.kept = all.into_iter().map(|record| (record.key.clone(), record)).collect();
    }

    /// How many keys are told apart.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether no record was taken in.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// One record for each key, in no order that matters.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.kept.values()
    }

    /// One record for each key, those with the most connections first.
    pub fn sorted(&self) -> Vec<&Record> {
        let mut all: Vec<&Record> = self.kept.values().collect();
        all.sort_by(|one, two| most_first(one, two));
        all
    }

    /// The sums of the keys that are told apart, by what a function says of them, most connections first.
    pub fn by<K: Ord>(&self, group: impl Fn(&Record) -> K) -> Vec<(K, Sum)> {
        let mut sums: BTreeMap<K, Sum> = BTreeMap::new();
        for record in self.kept.values() {
            sums.entry(group(record)).or_default().add(record);
        }
        let mut sums: Vec<(K, Sum)> = sums.into_iter().collect();
        sums.sort_by_key(|(_, sum)| std::cmp::Reverse((sum.connections, sum.packets)));
        sums
    }

    /// The sum of everything.
    pub fn total(&self) -> Sum {
        let mut total = Sum::default();
        for sum in self.verdicts.values() {
            total.connections = total.connections.saturating_add(sum.connections);
            total.packets = total.packets.saturating_add(sum.packets);
            total.bytes = total.bytes.saturating_add(sum.bytes);
            total.uncounted = total.uncounted.saturating_add(sum.uncounted);
            total.first = total.first.into_iter().chain(sum.first).min();
            total.last = total.last.max(sum.last);
        }
        total
    }
}

fn most_first(one: &Record, two: &Record) -> std::cmp::Ordering {
    two.connections.cmp(&one.connections).then_with(|| two.last.cmp(&one.last)).then_with(|| one.key.cmp(&two.key))
}

/// A peer for people: its names, else its address, else that there are many.
pub fn peer_words(record: &Record) -> String {
    let names: Vec<String> = record.names.iter().map(ToString::to_string).collect();
    match (record.key.peer, names.is_empty()) {
        (Some(peer), true) => peer.to_string(),
        (Some(peer), false) => format!("{peer} ({})", names.join(" ")),
        (None, _) => "many".to_owned(),
    }
}

/// A service for people, in the words of policies: "tcp/22", "icmp/echo-request", "esp", "tcp/many".
pub fn service_words(protocol: Option<Protocol>, service: Service) -> String {
    use crate::net::protocol::{icmp_type_name, icmpv6_type_name};
    let name = protocol.map_or_else(|| "any".to_owned(), |protocol| protocol.to_string());
    match service {
        Service::Port(port) => format!("{name}/{port}"),
        Service::Icmp(kind, code) => {
            let known = if protocol == Some(Protocol::ICMPV6) { icmpv6_type_name(kind) } else { icmp_type_name(kind) };
            let kind = known.map_or_else(|| kind.to_string(), str::to_owned);
            if code == 0 { format!("{name}/{kind}") } else { format!("{name}/{kind}/{code}") }
        }
        Service::Whole => name,
        Service::Many => format!("{name}/many"),
    }
}

/// Whether a peer is known by name.
pub fn is_named(record: &Record) -> bool {
    !record.names.is_empty()
}

/// A peer as it is summed up: its names, else its address.
pub fn peer_group(record: &Record) -> (BTreeSet<PeerName>, Option<IpAddr>) {
    (record.names.clone(), if record.names.is_empty() { record.key.peer } else { None })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::net::interface::Role;
    use crate::policy::effective::RuleId;
    use crate::policy::parse::service_port;
    use crate::traffic::Decider;

    fn record(peer: &str, protocol: Protocol, service: Service, verdict: Verdict, connections: u64) -> Record {
        Record {
            key: Key {
                direction: Direction::Ingress,
                interface: InterfaceName::new("eth0"),
                role: Some(Role::Mgmt),
                peer: Some(peer.parse().unwrap()),
                protocol: Some(protocol),
                service,
                verdict,
                decider: Decider::Rule(RuleId { policy: "kubelet".into(), number: 2 }),
            },
            local: None,
            names: [PeerName::Set("ops".into()), PeerName::Node("gpu-1".into())].into(),
            tier: None,
            place: None,
            actors: BTreeSet::new(),
            connections,
            packets: (connections > 1).then_some(connections * 2),
            bytes: (connections > 1).then_some(connections * 100),
            first: 1000,
            last: 2000,
        }
    }

    #[test]
    fn a_filter_takes_what_is_asked_for() {
        let ssh = record("10.0.0.7", Protocol::TCP, Service::Port(22), Verdict::Denied, 1);
        let service = |text: &str| ServiceFilter::Ports(vec![service_port(text).unwrap()]);
        let all = Filter::default();
        let peer = |text: &str| Filter { peer: Some(PeerFilter::parse(text).unwrap()), ..all.clone() };
        let asks = |service: ServiceFilter| Filter { service: Some(service), ..all.clone() };
        let policy = |text: &str| Filter { policy: Some(text.to_owned()), ..all.clone() };
        let table = [
            (all.clone(), true),
            (Filter { since: 2000, ..all.clone() }, true),
            (Filter { since: 2001, ..all.clone() }, false),
            (Filter { until: 1001, ..all.clone() }, true),
            (Filter { until: 1000, ..all.clone() }, false),
            (Filter { verdicts: [Verdict::Denied, Verdict::Rejected].into(), ..all.clone() }, true),
            (Filter { verdicts: [Verdict::Allowed].into(), ..all.clone() }, false),
            (Filter { interface: InterfaceName::new("eth0"), ..all.clone() }, true),
            (Filter { interface: InterfaceName::new("eth1"), ..all.clone() }, false),
            (Filter { direction: Some(Direction::Egress), ..all.clone() }, false),
            (peer("10.0.0.0/24"), true),
            (peer("10.0.0.7"), true),
            (peer("10.0.1.0/24"), false),
            (peer("ops"), true),
            (peer("set:ops"), true),
            (peer("node:ops"), false),
            (peer("gpu-1"), true),
            (peer("dev"), false),
            (asks(service("tcp/22")), true),
            (asks(service("tcp/20-30")), true),
            (asks(service("udp/22")), false),
            (asks(service("tcp")), true),
            (asks(service("icmp")), false),
            (asks(ServiceFilter::Port(22)), true),
            (asks(ServiceFilter::Port(23)), false),
            (policy("kubelet"), true),
            (policy("kubelet#2"), true),
            (policy("kubelet#3"), false),
            (policy("kube"), false),
        ];
        for (filter, wanted) in table {
            assert_eq!(filter.matches(&ssh), wanted, "{filter:?}");
        }
        let ping = record("10.0.0.7", Protocol::ICMP, Service::Icmp(8, 0), Verdict::Denied, 1);
        assert!(asks(service("icmp/echo-request")).matches(&ping) && asks(service("icmp")).matches(&ping));
        assert!(!asks(service("icmp/echo-reply")).matches(&ping));
        assert!(PeerFilter::parse("10.0.0.1/24").is_err() && PeerFilter::parse("10.0.0.0/99").is_err());
    }

    #[test]
    fn records_of_one_key_are_one_and_the_most_come_first() {
        let mut flows = Flows::new(100);
        flows.add(record("10.0.0.1", Protocol::TCP, Service::Port(22), Verdict::Denied, 2));
        flows.add(record("10.0.0.2", Protocol::TCP, Service::Port(22), Verdict::Allowed, 1));
        flows.add(record("10.0.0.1", Protocol::TCP, Service::Port(22), Verdict::Denied, 3));
        let sorted: Vec<_> = flows.sorted().iter().map(|record| (record.connections, record.packets)).collect();
        assert_eq!(sorted, [(5, Some(10)), (1, None)]);
        let total = flows.total();
        assert_eq!((total.connections, total.packets, total.bytes, total.uncounted), (6, 10, 500, 1));
        let by: Vec<_> =
            flows.by(|record| record.key.verdict).into_iter().map(|(key, sum)| (key, sum.connections)).collect();
        assert_eq!(by, [(Verdict::Denied, 5), (Verdict::Allowed, 1)]);
    }

    #[test]
    fn more_keys_than_are_told_apart_lose_the_least_and_no_sum() {
        let mut flows = Flows::new(50);
        for round in 0..10u32 {
            for peer in 0..100u32 {
                let address = std::net::Ipv4Addr::from(round * 1000 + peer).to_string();
                flows.add(record(&address, Protocol::UDP, Service::Port(53), Verdict::Denied, 1));
            }
            flows.add(record("192.0.2.1", Protocol::TCP, Service::Port(22), Verdict::Denied, 10));
        }
        assert!(flows.len() <= 100);
        assert_eq!(flows.sorted()[0].connections, 100, "who comes often stays");
        assert_eq!(flows.verdicts[&Verdict::Denied].connections, 1100);
        let kept: u64 = flows.records().map(|record| record.connections).sum();
        assert_eq!(kept + flows.others.connections, 1100);
    }

    #[test]
    fn services_have_the_words_of_policies() {
        for (protocol, service, words) in [
            (Some(Protocol::TCP), Service::Port(22), "tcp/22"),
            (Some(Protocol::ICMP), Service::Icmp(8, 0), "icmp/echo-request"),
            (Some(Protocol::ICMPV6), Service::Icmp(1, 4), "icmpv6/destination-unreachable/4"),
            (Some(Protocol(50)), Service::Whole, "esp"),
            (None, Service::Many, "any/many"),
        ] {
            assert_eq!(service_words(protocol, service), words);
        }
    }
}
