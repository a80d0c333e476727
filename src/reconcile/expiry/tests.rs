//! What the clock does to the state machine, forwards, backwards and over a restart.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::tests::settings;
use super::super::{Documents, Done, Event, Keep, Memory, Record, Texts, step};
use super::*;
use crate::compile::compile;
use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;
use crate::net::protocol::Protocol;
use crate::nft::ir::Ruleset;
use crate::nft::text;
use crate::policy::model::{Action, HostPolicy, Mode, Policy, Rule, Stage};
use crate::policy::resolve::resolve;
use crate::policy::selector::Selector;
use crate::text::place::Place;

fn rule(action: Action) -> Rule {
    Rule {
        action,
        from: None,
        to: None,
        protocol: Some(Protocol::TCP),
        ports: None,
        services: Vec::new(),
        icmp: None,
        family: None,
        not: None,
        process: None,
        limit: None,
        log: None,
        comment: None,
        place: Place::file("10.toml"),
    }
}

/// Documents with these policies, each of which lets TCP in until its time.
fn documents(policies: &[(&str, Option<u64>)]) -> Documents {
    let mut policy = Policy::with_builtin_tiers();
    policy.policies = (1..)
        .zip(policies)
        .map(|(order, (name, expires))| HostPolicy {
            name: (*name).to_owned(),
            tier: "default".to_owned(),
            order: Some(order),
            interfaces: Selector::All,
            nodes: Selector::All,
            stage: Stage::Host,
            mode: Mode::Enforce,
            expires: *expires,
            acknowledges_bypass: false,
            ingress: Some(vec![rule(Action::Allow)]),
            egress: None,
            place: Place::file("10.toml"),
            tier_place: Place::file("10.toml"),
        })
        .collect();
    let texts =
        Texts { policy: [("10.toml".to_owned(), Arc::from(format!("{policies:?}")))].into(), ..Texts::default() };
    Documents { policy, settings: settings(), findings: Vec::new(), texts, trial: None, probes: Vec::new() }
}

/// The machine with what it asked for last.
struct Node {
    state: State,
    /// The names of the policies in the newest ruleset.
    sent: Vec<String>,
    /// The time it wants to be woken at.
    alarm: Option<u64>,
    /// The policies it said are over.
    told: Vec<String>,
    /// What is on disk.
    record: Record,
    boot: Option<Arc<Ruleset>>,
}

impl Node {
    /// A host that starts at this time, with this record on disk.
    fn start(now: u64, record: Record, policies: &[(&str, Option<u64>)]) -> Self {
        let mut node = Self {
            state: State::default(),
            sent: Vec::new(),
            alarm: None,
            told: Vec::new(),
            record: record.clone(),
            boot: None,
        };
        node.at(now, Event::KernelSeen { table: false });
        node.at(now, Event::Remembered(Box::new(Memory { record, ..Memory::default() })));
        let link = Link::named(1, InterfaceName::new("eth0").unwrap());
        node.at(now, Event::FactsChanged(Facts { links: [(1, link)].into(), ..Facts::default() }));
        node.at(now, Event::DocumentsLoaded(documents(policies)));
        node
    }

    fn at(&mut self, now: u64, event: Event) {
        self.clock(now);
        self.take(event);
    }

    fn clock(&mut self, now: u64) {
        self.take(Event::Clock(now));
    }

    fn take(&mut self, event: Event) {
        for effect in step(&mut self.state, event) {
            match effect {
                Effect::Apply(ruleset) => {
                    let text = text::render(&ruleset);
                    self.sent = ["a", "b", "c"].map(str::to_owned).into();
                    self.sent.retain(|name| text.contains(&format!("{name}#1 10.toml")));
                    self.take(Event::Applied(Ok(Done { changes: 1 })));
                }
                Effect::Expiry(at) => self.alarm = at,
                Effect::Report(Report::Expired { policy, .. }) => self.told.push(policy),
                Effect::Keep(ticket, what) => {
                    for keep in what {
                        match keep {
                            Keep::Record(record) => self.record = record,
                            Keep::Generation { boot, .. } => self.boot = Some(boot),
                            Keep::Confirmed(_) => {}
                        }
                    }
                    self.take(Event::Kept(ticket, Ok(())));
                }
                _ => {}
            }
        }
    }
}

#[test]
fn each_policy_goes_at_its_time_and_the_alarm_is_set_for_the_next() {
    let mut node = Node::start(50, Record::default(), &[("a", None), ("b", Some(100)), ("c", Some(200))]);
    assert_eq!((&node.sent[..], node.alarm), (&["a", "b", "c"].map(str::to_owned)[..], Some(100)));
    node.clock(99);
    assert_eq!((node.sent.len(), node.alarm), (3, Some(100)), "not yet");
    node.clock(100);
    assert_eq!((&node.sent[..], node.alarm), (&["a", "c"].map(str::to_owned)[..], Some(200)));
    assert_eq!(node.told, ["b"]);
    assert_eq!(node.state.findings().iter().filter(|finding| finding.code == Code::Expired).count(), 1);
    node.clock(250);
    assert_eq!((&node.sent[..], node.alarm), (&["a".to_owned()][..], None));
    assert_eq!(node.told, ["b", "c"], "each once");
}

#[test]
fn a_clock_that_jumps_ahead_ends_all_that_is_over_at_once() {
    let mut node = Node::start(50, Record::default(), &[("a", Some(150)), ("b", Some(100)), ("c", Some(200))]);
    node.clock(199);
    assert_eq!((&node.sent[..], node.alarm), (&["c".to_owned()][..], Some(200)));
}

#[test]
fn a_clock_that_goes_back_brings_nothing_back() {
    let policies = [("a", None), ("b", Some(100)), ("c", Some(200))];
    let mut node = Node::start(150, Record::default(), &policies);
    assert_eq!(node.sent, ["a", "c"], "over before the start");
    node.clock(10);
    node.at(10, Event::FactsChanged(Facts::default()));
    node.at(10, Event::DocumentsLoaded(documents(&policies)));
    assert_eq!((&node.sent[..], node.alarm), (&["a", "c"].map(str::to_owned)[..], Some(200)));
    assert_eq!(node.told, ["b"]);

    // Nor does a start of the host with a clock that has forgotten the time.
    let again = Node::start(0, node.record.clone(), &policies);
    assert_eq!((&again.sent[..], again.alarm), (&["a", "c"].map(str::to_owned)[..], Some(200)));
    assert!(again.told.is_empty(), "it has been told before");

    // Another time is another policy.
    node.at(10, Event::DocumentsLoaded(documents(&[("a", None), ("b", Some(101)), ("c", Some(200))])));
    assert_eq!((&node.sent[..], node.alarm), (&["a", "b", "c"].map(str::to_owned)[..], Some(101)));
}

#[test]
fn what_no_version_has_any_more_is_forgotten() {
    let mut node = Node::start(150, Record::default(), &[("a", None), ("b", Some(100))]);
    assert_eq!(node.record.expired, BTreeSet::from([("b".to_owned(), 100)]));
    node.at(150, Event::DocumentsLoaded(documents(&[("a", None)])));
    // The generation before is still the confirmed one when the new documents are judged.
    node.at(150, Event::DocumentsLoaded(documents(&[("a", None), ("c", Some(300))])));
    assert_eq!(node.record.expired, BTreeSet::new());
    assert_eq!(node.alarm, Some(300));
}

#[test]
fn documents_without_a_time_call_the_alarm_off() {
    let mut node = Node::start(50, Record::default(), &[("a", Some(100))]);
    assert_eq!(node.alarm, Some(100));
    node.at(50, Event::DocumentsLoaded(documents(&[("a", None)])));
    assert_eq!((node.sent.len(), node.alarm), (1, None));
}

#[test]
fn what_a_boot_loads_has_no_opening_that_may_be_over_and_is_written_anew_when_it_is() {
    let documents = documents(&[("a", None), ("b", Some(100))]);
    let mut node = Node::start(50, Record::default(), &[("a", None), ("b", Some(100))]);
    let boots_with = |node: &Node| text::render(node.boot.as_ref().unwrap());
    assert!(boots_with(&node).contains("a#1 10.toml") && !boots_with(&node).contains("b#1 10.toml"));
    let facts = node.state.facts.clone().unwrap();
    let (effective, _) = resolve(&documents.policy, &documents.settings, &facts);
    assert_eq!(boots_with(&node), text::render(&compile(&effective.at_boot().unwrap())));
    node.clock(100);
    assert!(!boots_with(&node).contains("b#1 10.toml"));
}
