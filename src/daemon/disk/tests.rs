//! Crashes at every write and between any two effects: what starts afterwards has in force what was confirmed or in force.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;
use crate::reconcile::{Confirmation, Documents, Done, Effect, Event, Phase, State, Term, Trial, step};

/// A disk in memory that loses power: after `power` operations everything fails, and what was not flushed may be gone.
#[derive(Clone, Default)]
struct MemoryDisk {
    /// Names and contents as a reader sees them.
    seen: BTreeMap<String, Vec<u8>>,
    /// As they are on the medium.
    flushed: BTreeMap<String, Vec<u8>>,
    power: Option<usize>,
    operations: usize,
}

impl MemoryDisk {
    /// Whether the power is still there for one more operation.
    fn operate(&mut self) -> io::Result<()> {
        if self.power == Some(self.operations) {
            return Err(io::Error::other("no power"));
        }
        self.operations += 1;
        Ok(())
    }

    /// The disk after the power has come back. Names that were not flushed are either there or not.
    fn after(&self, lucky: bool) -> Self {
        let files = if lucky { self.seen.clone() } else { self.flushed.clone() };
        Self { seen: files.clone(), flushed: files, power: None, operations: 0 }
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.seen.keys().cloned().collect())
    }

    fn read(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        let bytes = self.seen.get(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if bytes.len() > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes.clone())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Half of it may be there already when the power goes.
        self.seen.insert(name.to_owned(), bytes[..bytes.len() / 2].to_vec());
        self.operate()?;
        self.seen.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.operate()?;
        let bytes = self.seen.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        self.seen.insert(to.to_owned(), bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.operate()?;
        self.seen.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.operate()?;
        self.flushed = self.seen.clone();
        Ok(())
    }
}

/// Documents with one policy on one port, decoded from their texts as the store would decode them.
fn documents(port: u16, trial: bool) -> Documents {
    let text = format!(
        "[[policy]]\nname = \"p{port}\"\norder = 1\ninterfaces = \"all()\"\ningress = [{{ action = \"deny\", protocol = \"tcp\", ports = [{port}] }}]\n"
    );
    let texts = Texts { policy: [("000000 0 a.toml".to_owned(), text.into())].into(), settings: "".into() };
    let sourced = source::decode_kept(&texts.policy);
    assert!(sourced.findings.is_empty(), "{:?}", sourced.findings);
    let (config, _) = config::decode_text("nodewall.toml", "");
    let config::Config { settings, probes, .. } = config;
    let term = Term::new(now(), Duration::from_secs(100));
    let trial = trial.then_some(Trial { term, confirmation: Confirmation::Operator });
    Documents { policy: sourced.policy, settings, findings: Vec::new(), probes, texts, trial }
}

/// The same, confirmed by a self-test.
fn tested(port: u16) -> Documents {
    let mut documents = documents(port, true);
    documents.trial.as_mut().unwrap().confirmation = Confirmation::SelfTest { before: None };
    documents
}

fn facts() -> Facts {
    let mut link = Link::named(1, InterfaceName::new("eth0").unwrap());
    link.addresses = ["10.0.0.2/24".parse().unwrap()].into();
    Facts { links: [(1, link)].into(), ..Facts::default() }
}

/// The name of the one policy in a state that is in force, "" when none is.
fn in_force(state: &State) -> String {
    let target = state.in_force().and(state.summary());
    target.and_then(|summary| summary.policies.first()).map(|policy| policy.name.clone()).unwrap_or_default()
}

/// A host: the daemon's state, its disk, and the documents in place.
struct Host {
    state: State,
    store: Store<MemoryDisk>,
    /// What the kernel has: it outlives the daemon.
    kernel: String,
    table: bool,
    place: u16,
    /// How many effects are done before the daemon dies.
    life: Option<usize>,
    effects: usize,
}

/// The daemon is dead.
#[derive(Debug)]
struct Dead;

impl Host {
    fn new(store: Store<MemoryDisk>, place: u16, kernel: String) -> Self {
        let table = !kernel.is_empty();
        Self { state: State::default(), store, kernel, table, place, life: None, effects: 0 }
    }

    fn start(&mut self) -> Result<(), Dead> {
        let (memory, _) = remember(&self.store);
        self.happen(Event::KernelSeen { table: self.table })?;
        self.happen(Event::FactsChanged(facts()))?;
        self.happen(Event::Remembered(Box::new(memory)))?;
        self.happen(Event::DocumentsLoaded(documents(self.place, false)))
    }

    /// Does everything that an event leads to, in order, until nothing is left.
    fn happen(&mut self, event: Event) -> Result<(), Dead> {
        let mut events = vec![event];
        while !events.is_empty() {
            for effect in step(&mut self.state, events.remove(0)) {
                if self.life == Some(self.effects) {
                    return Err(Dead);
                }
                self.effects += 1;
                match effect {
                    Effect::Apply(_) => {
                        events.push(Event::Applied(Ok(Done { changes: 1 })));
                        self.table = true;
                        let mut after = self.state.clone();
                        step(&mut after, Event::Applied(Ok(Done { changes: 1 })));
                        self.kernel = in_force(&after);
                    }
                    Effect::SelfTest { ticket, .. } => {
                        events.push(Event::SelfTested { ticket, results: Vec::new(), now: now() });
                    }
                    Effect::Keep(ticket, what) => events.push(Event::Kept(ticket, write(&mut self.store, what))),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// What a host goes through, and what may be in force when it is cut short during each step and started again.
fn story(host: &mut Host, step: usize) -> Result<(), Dead> {
    match step {
        0 => host.start(),
        1 => {
            host.place = 2;
            host.happen(Event::DocumentsLoaded(documents(2, false)))
        }
        2 => host.happen(Event::ApplyRequested { documents: documents(3, true), elsewhere: Some("/x".to_owned()) }),
        3 => host.happen(Event::DeadlineDue),
        4 => host.happen(Event::ApplyRequested { documents: documents(4, true), elsewhere: Some("/x".to_owned()) }),
        5 => host.happen(Event::ConfirmRequested { by: "me".to_owned() }),
        6 => {
            let version = read(&host.store, Wanted::Number(1)).ok();
            host.happen(Event::RollbackRequested { version, by: "me".to_owned() })
        }
        7 => {
            host.place = 5;
            host.happen(Event::DocumentsLoaded(documents(5, false)))
        }
        _ => host.happen(Event::ApplyRequested { documents: tested(6), elsewhere: Some("/x".to_owned()) }),
    }
}

/// What may be in force after a restart during or after each step of the story.
const ALLOWED: [&[&str]; 9] = [
    &["p1"],
    // The documents in place are new; they come into force at the start at the latest.
    &["p2"],
    // On trial, or back.
    &["p2", "p3"],
    &["p2", "p3"],
    &["p2", "p4"],
    &["p4"],
    &["p4", "p1"],
    &["p5"],
    // On trial, back, or confirmed by itself.
    &["p5", "p6"],
];

/// What a boot may load then.
const BOOTS: [&[&str]; 9] =
    [&["", "p1"], &["p1", "p2"], &["p2"], &["p2"], &["p2"], &["p2", "p4"], &["p4", "p1"], &["p1", "p5"], &["p5", "p6"]];

fn boots(store: &Store<MemoryDisk>) -> String {
    let (generation, _) = store.confirmed();
    let version = generation.map(|generation| decode(&generation).unwrap());
    version.map(|version| version.policy.policies[0].name.clone()).unwrap_or_default()
}

/// Runs the story to the point where something fails, and starts the host again; how far it came.
fn cut(power: Option<usize>, life: Option<usize>, lucky: bool, reboot: bool) -> Option<usize> {
    let disk = MemoryDisk { power, ..MemoryDisk::default() };
    let mut host = Host::new(Store::new(disk), 1, String::new());
    host.life = life;
    for at in 0..ALLOWED.len() {
        let died = story(&mut host, at).is_err();
        let dark = power.is_some_and(|power| host.store.disk_mut().operations == power);
        if !died && !dark {
            continue;
        }
        let what = format!("step {at}, power {power:?}, life {life:?}, lucky {lucky}, reboot {reboot}");
        let disk = if dark { host.store.disk_mut().after(lucky) } else { host.store.disk_mut().clone() };
        let store = Store::new(disk);
        let booted = boots(&store);
        assert!(BOOTS[at].contains(&booted.as_str()), "{what}: a boot loads {booted:?}");
        let kernel = if reboot { booted } else { host.kernel.clone() };
        let mut again = Host::new(store, host.place, kernel);
        again.start().unwrap();
        let found = again.kernel.clone();
        assert!(ALLOWED[at].contains(&found.as_str()), "{what}: {found:?} is in force after the start");
        assert_eq!(found, in_force(&again.state), "{what}");
        assert!(matches!(again.state.phase(), Phase::InForce | Phase::Unconfirmed | Phase::Degraded), "{what}");
        // The disk agrees with the kernel, unless that is on trial.
        if again.state.record().pending.is_none() {
            assert_eq!(boots(&again.store), found, "{what}");
        } else {
            again.happen(Event::DeadlineDue).unwrap();
            assert_eq!(again.kernel, boots(&again.store), "{what}: after the deadline");
        }
        return Some(at);
    }
    None
}

#[test]
fn a_death_between_any_two_effects_leaves_what_was_confirmed_or_in_force() {
    let mut points = 0;
    for life in 0.. {
        let came = [false, true].map(|reboot| cut(None, Some(life), true, reboot));
        if came == [None, None] {
            break;
        }
        points += 1;
    }
    println!("{points} points");
    assert!(points > 30, "{points}");
}

#[test]
fn a_power_cut_at_any_operation_of_the_disk_leaves_what_was_confirmed_or_in_force() {
    let mut points = 0;
    for power in 0.. {
        let came = [false, true].map(|lucky| cut(Some(power), None, lucky, true));
        if came == [None, None] {
            break;
        }
        points += 1;
    }
    println!("{points} points");
    assert!(points > 40, "{points}");
}
