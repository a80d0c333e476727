//! What `top` knows: sums and rates from what the daemon told, without a clock, a terminal or a socket.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::meter::Meter;
use crate::daemon::status::{PolicyRecord, Status};
use crate::daemon::traffic::record::{EventRecord, Line, LostRecord};

/// How many peers are told apart; those not seen for longest are summed up.
pub(super) const MOST_PEERS: usize = 1024;
/// How many interfaces are told apart.
const MOST_INTERFACES: usize = 1024;
/// How many services and rules of one peer or interface are told apart.
const MOST_PARTS: usize = 24;
/// How many rules are kept of a status: beyond, nobody could look through them.
const MOST_RULES: usize = 20_000;
/// Of how many rules the last events are kept.
const MOST_REMEMBERED: usize = 256;
/// How many events are kept of each.
const LAST_EVENTS: usize = 32;

/// What became of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Allowed,
    Denied,
    Would,
}

impl Class {
    /// The class of a verdict; `None` where nothing was decided.
    pub(super) fn of(verdict: &str) -> Option<Self> {
        match verdict {
            "allowed" => Some(Self::Allowed),
            "denied" | "rejected" => Some(Self::Denied),
            "would-deny" | "would-reject" => Some(Self::Would),
            _ => None,
        }
    }
}

/// What is counted of events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Unit {
    /// Beginning connections and logged packets.
    #[default]
    Both,
    /// Beginning connections.
    Connections,
    /// Logged packets.
    Packets,
}

/// Three numbers: allowed, denied, and what would be denied without audit mode.
pub(super) type Three<T> = [T; 3];

/// Events of something: connections and packets by class.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    sums: [u64; 6],
    meter: Meter<6>,
}

impl Seen {
    fn add(&mut self, second: u64, kind: usize) {
        self.sums[kind] = self.sums[kind].saturating_add(1);
        self.meter.add(second, kind);
    }

    /// Sums are taken in; rates begin anew.
    fn absorb(&mut self, other: &Self) {
        for (sum, more) in self.sums.iter_mut().zip(other.sums) {
            *sum = sum.saturating_add(more);
        }
    }

    /// How many since the start.
    pub(super) fn sums(&self, unit: Unit) -> Three<u64> {
        three(self.sums, unit, u64::saturating_add)
    }

    /// How many a second.
    pub(super) fn rates(&self, unit: Unit, now: Duration) -> Three<f64> {
        three(self.meter.rates(now.as_secs()), unit, |one, two| one + two)
    }
}

fn three<T: Copy>(six: [T; 6], unit: Unit, add: impl Fn(T, T) -> T) -> Three<T> {
    let [a, b, c, d, e, f] = six;
    match unit {
        Unit::Connections => [a, b, c],
        Unit::Packets => [d, e, f],
        Unit::Both => [add(a, d), add(b, e), add(c, f)],
    }
}

/// A rule by its name and place: the rules of both directions are numbered from 1.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct RuleKey {
    /// "kubelet#2", "tier node", "default of mgmt ingress".
    pub(super) rule: String,
    /// "20-kubelet.toml:14", without the directory; empty for a default.
    pub(super) place: String,
}

impl RuleKey {
    /// The rule that decided about an event.
    fn of(event: &EventRecord) -> Self {
        if event.rule == "default" {
            let role = event.role.as_deref().unwrap_or("?");
            return Self { rule: format!("default of {role} {}", event.direction), place: String::new() };
        }
        let place = event.place.as_deref().unwrap_or_default();
        let place = place.rsplit('/').next().unwrap_or_default().to_owned();
        Self { rule: event.rule.clone(), place }
    }

    /// The policy, guard or failsafe entry; of defaults [`DEFAULTS`].
    pub(super) fn policy(&self) -> &str {
        match self.rule.rsplit_once('#') {
            Some((policy, number)) if number.parse::<u32>().is_ok() => policy,
            _ => DEFAULTS,
        }
    }
}

/// The name under which defaults of tiers and roles stand among the policies. No policy has a name with a space.
pub(super) const DEFAULTS: &str = "(no rule: defaults)";

/// Something that events are of: a peer or an interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Party {
    /// All of it.
    pub(super) seen: Seen,
    /// When the last event was, since the start.
    last: Duration,
    /// What it is called, or which role it has.
    pub(super) note: String,
    /// By service, in words.
    pub(super) services: BTreeMap<String, Seen>,
    /// By what decided.
    pub(super) rules: BTreeMap<RuleKey, Seen>,
    /// What was beyond [`MOST_PARTS`].
    pub(super) other_services: Seen,
    pub(super) other_rules: Seen,
}

impl Party {
    fn add(&mut self, now: Duration, kind: usize, service: &str, rule: &RuleKey) {
        let second = now.as_secs();
        self.last = now;
        self.seen.add(second, kind);
        part(&mut self.services, &mut self.other_services, service.to_owned()).add(second, kind);
        part(&mut self.rules, &mut self.other_rules, rule.clone()).add(second, kind);
    }
}

fn part<'a, K: Ord>(parts: &'a mut BTreeMap<K, Seen>, others: &'a mut Seen, key: K) -> &'a mut Seen {
    if parts.contains_key(&key) || parts.len() < MOST_PARTS { parts.entry(key).or_default() } else { others }
}

/// A rule's counter.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    /// What becomes of the packets.
    pub(super) verdict: String,
    raw: (u64, u64),
    /// Packets and bytes since the start of `top`.
    pub(super) sums: (u64, u64),
    /// Packets and bytes a second, between the last two looks.
    pub(super) rates: (f64, f64),
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// When the last status came, since the start.
    looked: Option<Duration>,
    /// The state of the daemon: "in-force", ...
    pub(super) state: String,
    /// The generation in force.
    pub(super) generation: u64,
    /// "enforce" or "audit", node-wide.
    pub(super) mode: String,
    /// The policies, guards first.
    pub(super) policies: Vec<PolicyRecord>,
    /// What rules counted, by rule and verdict.
    pub(super) rules: BTreeMap<(RuleKey, String), Counter>,
    /// How many rules of the status are not among them.
    pub(super) rules_left_out: usize,
    /// Peers by address.
    pub(super) peers: BTreeMap<String, Party>,
    /// Those that are not among them any more.
    pub(super) other_peers: Seen,
    /// How many peers had to make room.
    pub(super) peers_left_out: u64,
    /// Interfaces by name.
    pub(super) interfaces: BTreeMap<String, Party>,
    /// The last events of rules, the newest last.
    last: BTreeMap<RuleKey, VecDeque<EventRecord>>,
    /// How many events were seen.
    pub(super) events: u64,
    /// How many were missed because nobody took them in time.
    pub(super) missed: u64,
    /// What was lost before that.
    pub(super) lost: LostRecord,
}

impl Model {
    /// Takes in a status that came at `now`, since the start.
    pub(super) fn status(&mut self, now: Duration, status: &Status) {
        let passed = self.looked.map(|looked| now.saturating_sub(looked).as_secs_f64());
        self.looked = Some(now);
        self.state.clone_from(&status.state);
        self.mode = status.mode.clone().unwrap_or_default();
        self.generation = status.generation;
        self.policies = status.guards.iter().chain(&status.policies).cloned().collect();
        // A look at the kernel that failed tells nothing of rules.
        if status.table.is_none() {
            return;
        }
        self.rules_left_out = status.rules.len().saturating_sub(MOST_RULES);
        let mut before = std::mem::take(&mut self.rules);
        for record in status.rules.iter().take(MOST_RULES) {
            let key = (RuleKey { rule: record.rule.clone(), place: record.place.clone() }, record.verdict.clone());
            let raw = (record.packets, record.bytes);
            let mut counter = before.remove(&key).unwrap_or_else(|| Counter {
                verdict: record.verdict.clone(),
                // Of a rule that is new since the last look, all that it counted is.
                raw: if passed.is_some() { (0, 0) } else { raw },
                ..Counter::default()
            });
            let more = (grown(counter.raw.0, raw.0), grown(counter.raw.1, raw.1));
            counter.raw = raw;
            counter.sums = (counter.sums.0.saturating_add(more.0), counter.sums.1.saturating_add(more.1));
            counter.rates = match passed {
                Some(seconds) if seconds > 0.0 => (more.0 as f64 / seconds, more.1 as f64 / seconds),
                _ => (0.0, 0.0),
            };
            self.rules.insert(key, counter);
        }
    }

    /// Takes in a line of the stream that came at `now`, since the start.
    pub(super) fn line(&mut self, now: Duration, line: &Line) {
        self.missed = self.missed.saturating_add(line.missed.unwrap_or(0));
        if let Some(lost) = line.lost {
            self.lost = lost;
        }
        if let Some(event) = &line.event {
            self.event(now, event);
        }
    }

    fn event(&mut self, now: Duration, event: &EventRecord) {
        self.events = self.events.saturating_add(1);
        let rule = RuleKey::of(event);
        if let Some(class) = Class::of(&event.verdict) {
            let kind = class as usize + if event.kind == "connection" { 0 } else { 3 };
            let service = service(event);
            self.peer(now, event).add(now, kind, &service, &rule);
            let interface = event.interface.as_deref().or(event.out.as_deref()).unwrap_or("-");
            if self.interfaces.contains_key(interface) || self.interfaces.len() < MOST_INTERFACES {
                let party = self.interfaces.entry(interface.to_owned()).or_default();
                party.note = event.role.clone().unwrap_or_default();
                party.add(now, kind, &service, &rule);
            }
        }
        self.remember(rule, event);
    }

    /// The peer of an event, with its newest names. A new one may take the place of the one not seen for longest.
    fn peer(&mut self, now: Duration, event: &EventRecord) -> &mut Party {
        if !self.peers.contains_key(&event.peer) && self.peers.len() >= MOST_PEERS {
            let oldest = self.peers.iter().min_by_key(|(_, party)| party.last).map(|(name, _)| name.clone());
            if let Some(gone) = oldest.and_then(|name| self.peers.remove(&name)) {
                self.other_peers.absorb(&gone.seen);
                self.peers_left_out = self.peers_left_out.saturating_add(1);
            }
        }
        let party = self.peers.entry(event.peer.clone()).or_default();
        party.last = now;
        party.note = event.names.join(" ");
        party
    }

    fn remember(&mut self, rule: RuleKey, event: &EventRecord) {
        if !self.last.contains_key(&rule) && self.last.len() >= MOST_REMEMBERED {
            let newest = |events: &VecDeque<EventRecord>| events.back().map(|event| event.time.clone());
            let oldest = self.last.iter().min_by_key(|(_, events)| newest(events)).map(|(rule, _)| rule.clone());
            if let Some(oldest) = oldest {
                self.last.remove(&oldest);
            }
        }
        let events = self.last.entry(rule).or_default();
        if events.len() >= LAST_EVENTS {
            events.pop_front();
        }
        events.push_back(event.clone());
    }

    /// The last events of a rule, the newest first.
    pub(super) fn last_events(&self, rule: &RuleKey) -> impl Iterator<Item = &EventRecord> {
        self.last.get(rule).into_iter().flat_map(|events| events.iter().rev())
    }

    /// The rules of a policy with their counters.
    pub(super) fn rules_of<'a>(&'a self, policy: &'a str) -> impl Iterator<Item = (&'a RuleKey, &'a Counter)> {
        let of = self.rules.iter().filter(move |((rule, _), _)| rule.policy() == policy);
        of.map(|((rule, _), counter)| (rule, counter))
    }

    /// The counters of a rule: one for each thing that becomes of packets.
    pub(super) fn counters_of<'a>(&'a self, rule: &'a RuleKey) -> impl Iterator<Item = &'a Counter> {
        self.rules.iter().filter(move |((known, _), _)| known == rule).map(|(_, counter)| counter)
    }

    /// What is missing of the events, in words; empty if nothing is.
    pub(super) fn losses(&self) -> String {
        let LostRecord { packets, connections } = self.lost;
        let parts = [
            (self.missed, format!("{} missed here", self.missed)),
            (packets, format!("{packets} packets lost before the daemon")),
            (connections, format!("connections lost {connections} times")),
        ];
        let parts: Vec<String> = parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, words)| words).collect();
        parts.join(", ")
    }

    /// Packets a second by class, of all rules.
    pub(super) fn totals(&self) -> Three<f64> {
        add_up(self.rules.values()).0
    }
}

/// Rates and sums of counters by class.
pub(super) fn add_up<'a>(counters: impl Iterator<Item = &'a Counter>) -> (Three<f64>, Three<u64>) {
    let (mut rates, mut sums) = ([0.0; 3], [0_u64; 3]);
    for counter in counters {
        if let Some(class) = Class::of(&counter.verdict) {
            rates[class as usize] += counter.rates.0;
            sums[class as usize] = sums[class as usize].saturating_add(counter.sums.0);
        }
    }
    (rates, sums)
}

/// By how much a counter grew. A rule that was replaced counts from nothing.
const fn grown(before: u64, now: u64) -> u64 {
    if now >= before { now - before } else { now }
}

/// "in tcp 10250", "out icmp 8/0", "in tcp".
fn service(event: &EventRecord) -> String {
    let protocol = event.protocol.as_deref().unwrap_or("?");
    let direction = if event.direction == "egress" { "out" } else { "in" };
    match (event.destination_port, event.icmp_type, event.icmp_code) {
        (Some(port), ..) => format!("{direction} {protocol} {port}"),
        (None, Some(kind), Some(code)) => format!("{direction} {protocol} {kind}/{code}"),
        _ => format!("{direction} {protocol}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::rules::RuleRecord;
    use crate::daemon::status::TableRecord;

    pub(in crate::cli::top) const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Rules as "RULE PLACE VERDICT PACKETS".
    pub(in crate::cli::top) fn status(rules: &[&str]) -> Status {
        let rules = rules.iter().map(|line| {
            let mut words = line.rsplitn(4, ' ');
            let packets: u64 = words.next().unwrap().parse().unwrap();
            let verdict = words.next().unwrap().to_owned();
            let place = words.next().unwrap().trim_matches('-').to_owned();
            let rule = words.next().unwrap().to_owned();
            RuleRecord { rule, place, verdict, packets, bytes: packets * 60 }
        });
        let policy = |name: &str, place: &str, mode: &str| PolicyRecord {
            name: name.to_owned(),
            tier: "platform".to_owned(),
            mode: mode.to_owned(),
            interfaces: vec!["eth0".to_owned()],
            place: place.to_owned(),
            ..PolicyRecord::default()
        };
        Status {
            version: 1,
            state: "in-force".to_owned(),
            generation: 12,
            mode: Some("enforce".to_owned()),
            table: Some(TableRecord { exists: true, ..TableRecord::default() }),
            policies: vec![
                policy("kubelet", "/etc/nodewall/policy.d/20-kubelet.toml:3:1", "enforce"),
                policy("nccl", "/etc/nodewall/policy.d/30-nccl.toml:1:1", "audit"),
            ],
            rules: rules.collect(),
            ..Status::default()
        }
    }

    pub(in crate::cli::top) fn event(verdict: &str, kind: &str, peer: &str, port: u16) -> EventRecord {
        EventRecord {
            time: "2026-11-26T08:20:19.123456Z".into(),
            kind: kind.into(),
            verdict: verdict.into(),
            direction: "ingress".into(),
            interface: Some("eth0".into()),
            role: Some("mgmt".into()),
            source: peer.into(),
            destination: "10.0.0.5".into(),
            protocol: Some("tcp".into()),
            source_port: Some(40000),
            destination_port: Some(port),
            peer: peer.into(),
            rule: "kubelet#2".into(),
            policy: Some("kubelet".into()),
            place: Some("20-kubelet.toml:14".into()),
            ..EventRecord::default()
        }
    }

    pub(in crate::cli::top) fn of(event: EventRecord) -> Line {
        Line { version: 1, event: Some(event), ..Line::default() }
    }

    #[test]
    fn counters_become_rates_and_sums_since_the_start() {
        let mut model = Model::default();
        model.status(at(0), &status(&["kubelet#1 a:1 allowed 100", "kubelet#2 a:2 denied 7"]));
        assert_eq!(model.totals(), [0.0; 3]);
        model.status(
            at(2),
            &status(&["kubelet#1 a:1 allowed 110", "kubelet#2 a:2 denied 8", "nccl#1 b:1 would-deny 4"]),
        );
        assert_eq!(model.totals(), [5.0, 0.5, 2.0]);
        // Another policy came: the first rule was replaced, the second one is gone.
        model.status(at(4), &status(&["kubelet#1 a:1 allowed 3", "nccl#1 b:1 would-deny 4"]));
        assert_eq!(add_up(model.rules.values()), ([1.5, 0.0, 0.0], [13, 0, 4]));
        // Nothing is known of the kernel: what was known is kept.
        model.status(at(6), &Status { table: None, rules: Vec::new(), ..status(&[]) });
        assert_eq!(model.rules.len(), 2);
        assert_eq!(model.rules_of("nccl").count(), 1);
    }

    #[test]
    fn the_same_number_in_both_directions_is_two_rules() {
        let mut model = Model::default();
        model.status(at(0), &status(&["kubelet#1 a:1 allowed 1", "kubelet#1 a:9 allowed 1", "kubelet#1 a:9 denied 1"]));
        assert_eq!(model.rules_of("kubelet").count(), 3);
        assert_eq!(model.counters_of(&RuleKey { rule: "kubelet#1".into(), place: "a:9".into() }).count(), 2);
    }

    #[test]
    fn events_are_of_peers_interfaces_services_and_rules() {
        let mut model = Model::default();
        for second in 0..5 {
            model.line(at(second), &of(event("denied", "packet", "10.0.7.9", 10250)));
            model.line(at(second), &of(event("allowed", "connection", "10.0.7.9", 22)));
        }
        model.line(at(4), &of(event("would-reject", "connection", "10.0.7.8", 22)));
        model.line(at(4), &of(event("logged", "packet", "10.0.7.7", 22)));
        model.line(at(4), &Line { version: 1, missed: Some(3), ..Line::default() });
        let lost = LostRecord { packets: 5, connections: 1 };
        model.line(at(4), &Line { version: 1, lost: Some(lost), ..Line::default() });
        assert_eq!((model.events, model.missed, model.lost), (12, 3, lost));
        let peer = &model.peers["10.0.7.9"];
        assert_eq!(peer.seen.sums(Unit::Both), [5, 5, 0]);
        assert_eq!(peer.seen.sums(Unit::Packets), [0, 5, 0]);
        assert_eq!(peer.seen.rates(Unit::Connections, at(5)), [1.0, 0.0, 0.0]);
        assert_eq!(peer.services.keys().collect::<Vec<_>>(), ["in tcp 10250", "in tcp 22"]);
        assert_eq!(model.interfaces["eth0"].seen.sums(Unit::Both), [5, 5, 1]);
        assert!(!model.peers.contains_key("10.0.7.7"), "what was not decided is no peer's");
        let rule = RuleKey { rule: "kubelet#2".into(), place: "20-kubelet.toml:14".into() };
        assert_eq!(model.last_events(&rule).map(|event| &*event.verdict).next(), Some("logged"));
        assert_eq!(model.last_events(&rule).count(), 12);
    }

    #[test]
    fn memory_is_bounded_whoever_sends_what() {
        let mut model = Model::default();
        let flood = 3 * MOST_PEERS;
        for number in 0..flood {
            let peer = format!("10.{}.{}.1", number / 256, number % 256);
            let mut event = event("denied", "packet", &peer, 22);
            event.rule = format!("p{number}#1");
            event.interface = Some(format!("if{number}"));
            model.line(at(number as u64 / 100), &of(event));
        }
        for port in 0..1000 {
            model.line(at(100), &of(event("denied", "packet", "10.0.0.9", port)));
        }
        assert_eq!((model.peers.len(), model.last.len()), (MOST_PEERS, MOST_REMEMBERED));
        assert_eq!(model.interfaces.len(), MOST_INTERFACES);
        let all = model.peers.values().map(|party| party.seen.sums(Unit::Both)[1]).sum::<u64>();
        assert_eq!(all + model.other_peers.sums(Unit::Both)[1], flood as u64 + 1000);
        assert_eq!(model.peers["10.0.0.9"].services.len(), MOST_PARTS);
        assert_eq!(model.peers["10.0.0.9"].other_services.sums(Unit::Both)[1], 1000 - MOST_PARTS as u64);
        assert!(model.last.values().all(|events| events.len() <= LAST_EVENTS));
    }

    #[test]
    fn defaults_are_found_by_role_and_direction() {
        let mut denied = event("denied", "packet", "10.0.7.9", 1);
        (denied.rule, denied.place, denied.policy) = ("default".into(), None, None);
        let mut model = Model::default();
        model.line(at(0), &of(denied));
        model.status(at(0), &status(&["default of mgmt ingress - denied 1"]));
        let (rule, _) = model.rules_of(DEFAULTS).next().unwrap();
        assert_eq!(model.last_events(rule).count(), 1);
    }
}
