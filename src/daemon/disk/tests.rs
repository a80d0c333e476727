//! Crashes at every operation of the disk and between any two effects, with the store as it is: what starts afterwards has in force
//! what was confirmed or in force, and so has a boot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;

use super::*;
use crate::nft::ir::Ruleset;
use crate::reconcile::Documents;
use crate::reconcile::tests::sequences::{op, property};
use crate::reconcile::tests::world::{Book, Dice, Here, Op, Pace, Shelf, World};

/// A disk in memory that loses power: after `power` operations everything fails, and what was not flushed may be gone.
#[derive(Clone, Default)]
struct MemoryDisk {
    /// Names and contents as a reader sees them.
    seen: BTreeMap<String, Vec<u8>>,
    /// As they are on the medium.
    flushed: BTreeMap<String, Vec<u8>>,
    power: Option<usize>,
    /// How many operations are done before one fails for want of space.
    full: Option<usize>,
    operations: usize,
}

impl MemoryDisk {
    /// Whether the power is still there for one more operation, and the space.
    fn operate(&mut self) -> io::Result<()> {
        if self.is_dark() {
            return Err(io::Error::other("no power"));
        }
        self.operations += 1;
        match self.full {
            Some(0) => {
                self.full = None;
                Err(io::ErrorKind::StorageFull.into())
            }
            more => {
                self.full = more.map(|more| more - 1);
                Ok(())
            }
        }
    }

    fn is_dark(&self) -> bool {
        self.power.is_some_and(|power| power <= self.operations)
    }

    /// The disk after the power has come back: of every name that was not flushed, what was there before or what was to be there.
    fn after(&self, dice: &mut Dice) -> Self {
        let names: std::collections::BTreeSet<&String> = self.seen.keys().chain(self.flushed.keys()).collect();
        let pick = |name: &&String| {
            let files = if dice.below(2) == 0 { &self.seen } else { &self.flushed };
            Some(((*name).clone(), files.get(*name)?.clone()))
        };
        let files: BTreeMap<String, Vec<u8>> = names.iter().filter_map(pick).collect();
        Self { seen: files.clone(), flushed: files, ..Self::default() }
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

/// Documents with one policy on one port, decoded from their texts as the store decodes them; an unknown key is an error.
fn documents(port: u16, key: &str) -> Documents {
    let text = format!(
        "{key}[[policy]]\nname = \"p{port}\"\norder = 1\ninterfaces = \"all()\"\ningress = [{{ action = \"deny\", protocol = \"tcp\", ports = [{port}] }}]\n"
    );
    let settings = format!(
        "[[failsafe.entry]]\nname = \"ssh\"\ndirection = \"ingress\"\nports = [\"tcp/{}\"]\ninterfaces = \"all()\"\n",
        2000 + port
    );
    let (config, settings_findings) = config::decode_text("nodewall.toml", &settings);
    assert!(settings_findings.iter().all(|finding| finding.severity == Severity::Warning), "{settings_findings:?}");
    let texts = Texts { policy: [("000000 0 a.toml".to_owned(), text.into())].into(), settings: settings.into() };
    let mut sourced = source::decode_kept(&texts.policy);
    sourced.policy.guard(source::guards::shipped(), &config.guards);
    assert_eq!(key.is_empty(), sourced.findings.is_empty(), "{:?}", sourced.findings);
    Documents {
        policy: sourced.policy,
        settings: config.settings,
        findings: sourced.findings,
        texts,
        trial: None,
        probes: config.probes,
    }
}

/// The store as the daemon has it, for the world of the state machine.
#[derive(Clone)]
struct Stored {
    store: Store<MemoryDisk>,
    /// What generations hold as bytes, by the digest of its text.
    rulesets: BTreeMap<String, Arc<Ruleset>>,
}

impl Stored {
    fn new() -> Self {
        Self { store: Store::new(MemoryDisk::default()), rulesets: BTreeMap::new() }
    }
}

fn moment(here: &Here) -> Moment {
    Moment { boot: here.boot.clone(), now: here.now }
}

impl Shelf for Stored {
    fn keep(&mut self, keep: Keep, here: &Here) -> Result<(), String> {
        if let Keep::Generation { ruleset, .. } = &keep {
            self.rulesets.insert(kernel::hash(ruleset), Arc::clone(ruleset));
        }
        write(&mut self.store, vec![keep], &moment(here))
    }

    fn remember(&self, here: &Here) -> Memory {
        let (memory, troubles) = remember(&self.store, &moment(here));
        // What a full disk did not take is not there; but a crash damages nothing.
        assert!(troubles.iter().all(|trouble| trouble.ends_with(".generation: entity not found")), "{troubles:?}");
        memory
    }

    fn version(&self, number: u64) -> Option<Version> {
        read(&self.store, Wanted::Number(number)).ok()
    }

    fn numbers(&self) -> Vec<u64> {
        self.store.numbers().unwrap()
    }

    fn boots(&self) -> Option<Arc<Ruleset>> {
        let (generation, passed) = self.store.confirmed();
        assert!(passed.is_empty(), "{passed:?}");
        Some(Arc::clone(&self.rulesets[&generation?.hash]))
    }

    fn record(&self) -> Record {
        let text = self.store.remembered().unwrap();
        text.map(|text| serde_json::from_str::<Remembered>(&text).unwrap().record).unwrap_or_default()
    }

    fn fails(&mut self, dice: &mut Dice) {
        self.store.disk_mut().full = Some(dice.below(3));
    }

    fn cut(&mut self, operations: usize) -> bool {
        let disk = self.store.disk_mut();
        disk.power = Some(disk.operations + operations);
        true
    }

    fn dark(&self) -> bool {
        self.store.disk().is_dark()
    }

    fn after_crash(&mut self, reboot: bool, dice: &mut Dice) {
        let disk = self.store.disk_mut();
        (disk.power, disk.full) = (None, None);
        if reboot {
            *disk = disk.after(dice);
        }
    }
}

/// At least so many points at which something stops, in a plain run.
const POINTS: usize = 1000;

/// What is in the kernel and what is on disk agree after every start: on a generation that was confirmed or in force, and never on
/// one whose time for a confirmation is over. The daemon dies, or the host does, before every effect, before every turn of the
/// kernel's and the disk's threads, and at every operation of a write.
#[test]
fn whatever_stops_wherever_kernel_and_disk_agree_after_the_next_start() {
    let written = (1..5).map(|port| documents(port, "")).chain([documents(5, "colour = 1\n"), documents(6, "x = 1\n")]);
    let book = Arc::new(Book::new(written.collect()));
    let (points, cuts) = (Cell::new(0), Cell::new(0));
    let story = (prop::collection::vec(op(), 4..16), any::<u64>());
    property("the store", 6, &story, |(story, seed)| {
        for pace in [Pace::Split, Pace::Mixed] {
            let mut world = World::new(Arc::clone(&book), Stored::new(), seed);
            world.watch();
            world.lives(&story, pace);
            world.check_disk();
            for (at, boundary) in world.boundaries().into_iter().enumerate() {
                points.set(points.get() + 1);
                cuts.set(cuts.get() + usize::from(boundary.shelf.dark()));
                boundary.crashes(at.is_multiple_of(2) == seed.is_multiple_of(2));
            }
        }
    });
    println!("{} points, {} of them in the middle of a write", points.get(), cuts.get());
    assert!(points.get() >= POINTS && cuts.get() > 100, "{} {}", points.get(), cuts.get());
}

/// What an operator goes through, with nothing left to chance.
#[test]
fn a_day_of_trials_ways_back_and_emergencies_stops_at_every_point() {
    let book = Arc::new(Book::new((1..6).map(|port| documents(port, "")).collect()));
    let elsewhere = |which| Op::Apply { elsewhere: Some(which), trial: Some(60_000) };
    let day = [
        Op::Documents(1),
        elsewhere(2),
        Op::Wait(61_000),
        elsewhere(3),
        Op::Confirm,
        Op::Rollback(0),
        Op::Documents(4),
        Op::Panic(true),
        Op::Crash(5),
        Op::Panic(false),
        Op::BreakGlass(Some(60_000)),
        Op::Wait(61_000),
        elsewhere(2),
        Op::Reboot(10),
    ];
    let mut points = 0;
    let mut world = World::new(Arc::clone(&book), Stored::new(), 1);
    world.watch();
    world.lives(&day, Pace::Split);
    for boundary in world.boundaries() {
        for reboot in [false, true] {
            points += 1;
            boundary.clone().crashes(reboot);
        }
    }
    println!("{points} points");
    assert!(points > 300, "{points}");
}
