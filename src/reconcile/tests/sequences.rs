//! The state machine on sequences of what can happen to a host, in every pace and with a crash between any two effects.
//!
//! `NODEWALL_SEED=N` repeats a run, `NODEWALL_CASES=N` makes it longer; both are printed.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::world::{Book, Dice, Here, Op, Pace, Shelf, World};
use super::*;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::policy::model::ServicePort;
use crate::policy::settings::Failsafe;

/// The seed of a plain run.
const SEED: u64 = 20_261_123;

/// A disk that keeps what it is given.
#[derive(Clone, Default)]
struct Paper {
    generations: BTreeMap<u64, (Version, Arc<Ruleset>)>,
    confirmed: Option<u64>,
    boot: String,
    record: Record,
    fails: bool,
    book: Arc<Vec<Documents>>,
}

impl Shelf for Paper {
    fn keep(&mut self, keep: Keep, here: &Here) -> Result<(), String> {
        if std::mem::take(&mut self.fails) {
            return Err("the disk is full".to_owned());
        }
        match keep {
            Keep::Generation { number, origin, texts, ruleset, boot } => {
                assert_eq!(ruleset, boot, "nothing in the book is another thing to a boot");
                let documents = self.book.iter().find(|documents| documents.texts == texts).unwrap();
                let Documents { policy, settings, probes, .. } = documents.clone();
                self.generations.insert(number, (Version { number, origin, policy, settings, probes, texts }, ruleset));
            }
            Keep::Confirmed(number) => self.confirmed = Some(number),
            Keep::Record(record) => (self.boot, self.record) = (here.boot.clone(), record),
        }
        Ok(())
    }

    fn remember(&self, here: &Here) -> Memory {
        let record = self.record.clone();
        let number = record.pending.as_ref().map(|pending| pending.generation);
        let number = number.or(record.pin.as_ref().map(|pin| pin.generation));
        let term = match &record.emergency {
            Some(Emergency::BreakGlass { term, .. }) => Some(*term),
            _ => None,
        };
        let left = |term: Option<Term>| term.filter(|_| self.boot == here.boot).and_then(|term| term.left(here.now));
        Memory {
            next: self.generations.keys().last().map_or(1, |last| last + 1),
            confirmed: self.confirmed.and_then(|number| self.version(number)),
            older: false,
            meant: number.and_then(|number| self.version(number)),
            pending_left: left(record.pending.as_ref().map(|pending| pending.term)),
            emergency_left: left(term),
            record,
        }
    }

    fn version(&self, number: u64) -> Option<Version> {
        Some(self.generations.get(&number)?.0.clone())
    }

    fn numbers(&self) -> Vec<u64> {
        self.generations.keys().copied().collect()
    }

    fn boots(&self) -> Option<Arc<Ruleset>> {
        Some(Arc::clone(&self.generations.get(&self.confirmed?)?.1))
    }

    fn record(&self) -> Record {
        self.record.clone()
    }

    fn fails(&mut self, _: &mut Dice) {
        self.fails = true;
    }

    fn cut(&mut self, _: usize) -> bool {
        false
    }

    fn dark(&self) -> bool {
        false
    }

    fn after_crash(&mut self, _: bool, _: &mut Dice) {}
}

/// Four sets of documents without errors and two with; the settings of each are others, too.
fn written() -> Vec<Documents> {
    let good = ["a", "b", "c", "d"].map(documents);
    let all = good.into_iter().chain(["e", "f"].map(bad)).zip(5..);
    all.map(|(mut documents, group)| {
        // Whatever is logged or let in by an emergency says whose settings it has.
        documents.settings.log.group = group;
        let entry = Failsafe {
            name: "ssh".to_owned(),
            direction: Direction::Ingress,
            ports: vec![ServicePort::Ports(Protocol::TCP, RangeSet::single(2000 + group))],
            peers: None,
            interfaces: Selector::All,
            cluster_api: false,
            place: place("nodewall.toml"),
        };
        documents.settings.failsafe.push(entry);
        documents.texts.settings = Arc::from(format!("{group}"));
        documents
    })
    .collect()
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let period = || prop::sample::select(vec![60_000u64, 120_000]);
    let time = prop::sample::select(vec![1_000u64, 61_000, 300_000]);
    let after = || prop::sample::select(vec![10u64, 5_000, 61_000]);
    prop_oneof![
        6 => (0..6usize).prop_map(Op::Documents),
        1 => prop::option::of(period()).prop_map(Op::Trial),
        3 => (0..3usize).prop_map(Op::Facts),
        2 => any::<bool>().prop_map(|removed| Op::Foreign { removed }),
        4 => (prop::option::weighted(0.8, 0..6usize), prop::option::weighted(0.8, period()))
            .prop_map(|(elsewhere, trial)| Op::Apply { elsewhere, trial }),
        3 => Just(Op::Confirm),
        2 => (0..20usize).prop_map(Op::Rollback),
        2 => any::<bool>().prop_map(Op::Panic),
        2 => prop::option::of(period()).prop_map(Op::BreakGlass),
        3 => time.prop_map(Op::Wait),
        2 => (1..3u32).prop_map(Op::KernelRefuses),
        2 => (1..3u32).prop_map(Op::DiskRefuses),
        1 => after().prop_map(Op::Crash),
        1 => after().prop_map(Op::Reboot),
    ]
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs a property on so many cases, with the seed and the smallest sequence that breaks it in the message.
pub(crate) fn property<S: Strategy>(what: &str, cases: u32, strategy: &S, holds: impl Fn(S::Value)) {
    let seed = number("NODEWALL_SEED").unwrap_or(SEED);
    let cases = number("NODEWALL_CASES").map_or(cases, |cases| u32::try_from(cases).unwrap());
    println!("{what}: seed {seed}, {cases} sequences");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let result = TestRunner::new_with_rng(config, rng).run(strategy, |value| {
        holds(value);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("seed {seed}: {failure}");
    }
}

fn book() -> (Arc<Book>, Paper) {
    let documents = written();
    let paper = Paper { book: Arc::new(documents.clone()), ..Paper::default() };
    (Arc::new(Book::new(documents)), paper)
}

#[test]
fn whatever_happens_in_whatever_pace_the_kernel_has_what_it_should() {
    let (book, paper) = book();
    let story = (prop::collection::vec(op(), 1..24), any::<u64>());
    property("paces", 80, &story, |(story, seed)| {
        let reversed: Vec<Op> = story.iter().rev().copied().collect();
        for story in [&story, &reversed] {
            for pace in [Pace::Split, Pace::Squashed, Pace::Mixed] {
                let mut world = World::new(Arc::clone(&book), paper.clone(), seed);
                world.lives(story, pace);
                world.check_disk();
            }
        }
    });
}

#[test]
fn a_crash_between_any_two_effects_leaves_what_was_confirmed_or_in_force() {
    let (book, paper) = book();
    let points = Cell::new(0);
    let story = (prop::collection::vec(op(), 1..16), any::<u64>(), any::<bool>());
    property("crashes", 24, &story, |(story, seed, reversed)| {
        let story: Vec<Op> = if reversed { story.into_iter().rev().collect() } else { story };
        for pace in [Pace::Split, Pace::Mixed] {
            let mut world = World::new(Arc::clone(&book), paper.clone(), seed);
            world.watch();
            world.lives(&story, pace);
            for (at, boundary) in world.boundaries().into_iter().enumerate() {
                points.set(points.get() + 1);
                boundary.crashes(at.is_multiple_of(2) == seed.is_multiple_of(2));
            }
        }
    });
    println!("{} crash points", points.get());
    assert!(points.get() > 1000, "{}", points.get());
}

/// Where nobody asks for anything, and no time is over, the pace makes no difference to the end.
#[test]
fn the_end_does_not_depend_on_how_much_is_done_in_between() {
    let (book, paper) = book();
    let op = prop_oneof![
        6 => (0..6usize).prop_map(Op::Documents),
        4 => (0..3usize).prop_map(Op::Facts),
        2 => any::<bool>().prop_map(|removed| Op::Foreign { removed }),
        1 => (1..3u32).prop_map(Op::KernelRefuses),
        1 => (1..3u32).prop_map(Op::DiskRefuses),
    ];
    let before = prop::option::of(prop::sample::select(vec![
        Op::Panic(true),
        Op::BreakGlass(Some(900_000)),
        Op::Apply { elsewhere: Some(3), trial: Some(900_000) },
    ]));
    let story = (before, prop::collection::vec(op, 1..24), any::<u64>());
    property("ends", 60, &story, |(before, mut story, seed)| {
        if matches!(before, Some(Op::Apply { .. })) {
            // A trial that cannot be written is given up, and which one that is depends on how far it came.
            story.retain(|op| !matches!(op, Op::DiskRefuses(_)));
        }
        let reversed: Vec<Op> = story.iter().rev().copied().collect();
        for story in [story, reversed] {
            let ends = [Pace::Split, Pace::Squashed, Pace::Mixed].map(|pace| {
                let mut world = World::new(Arc::clone(&book), paper.clone(), seed);
                world.lives(&before.into_iter().collect::<Vec<_>>(), Pace::Split);
                for op in &story {
                    world.does(*op);
                    match pace {
                        Pace::Split => world.settle(),
                        Pace::Squashed => {}
                        Pace::Mixed => {
                            let turns = world.dice.below(8);
                            world.go_on(turns);
                        }
                    }
                }
                world.settle();
                world.check_disk();
                let boots = world.shelf.boots().map(|ruleset| book.meaning(&ruleset));
                (world.kernel.clone(), world.state.phase(), boots, world.state.record().pending.is_some())
            });
            for end in &ends[1..] {
                assert!(*end == ends[0], "{:?} or {:?}", end.1, ends[0].1);
            }
        }
    });
}
