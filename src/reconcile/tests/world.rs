//! A host in memory for the state machine: a kernel, a disk, a clock and those who ask for things; and what must hold there at
//! every moment. Effects are done one by one, in any order that the real threads could do them in, and a crash may come between.
//!
//! * What goes to the kernel is a policy without errors, an emergency that is on, or the lockdown while there never was a policy; one
//!   at a time; and a trial only with its deadline on disk ([`World::send`]).
//! * Every request has one answer, nobody else has one, and what is answered with a yes is in force and on disk: a panic that was
//!   answered is not lost by a crash ([`World::answered`]).
//! * When nothing is under way, the kernel has what the newest valid documents say, or what stands in their place: a pin, a trial whose
//!   time is not over, an emergency; on the newest facts ([`World::check`]).
//! * What a boot would load was in force once, never waits for its confirmation, and is what is in force as soon as the disk takes it
//!   ([`World::perform`], [`World::check_disk`]).
//! * After a crash at any moment all of this holds again, and what then waits for a confirmation goes when nobody gives it
//!   ([`World::crashes`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;

/// A disk for the world: what the daemon keeps, and what it finds there at a start.
pub(crate) trait Shelf: Clone {
    /// Writes one thing.
    fn keep(&mut self, keep: Keep, here: &Here) -> Result<(), String>;
    /// What a start finds.
    fn remember(&self, here: &Here) -> Memory;
    /// The generation of this number.
    fn version(&self, number: u64) -> Option<Version>;
    /// The numbers that there are, ascending.
    fn numbers(&self) -> Vec<u64>;
    /// What a boot loads; nothing: the lockdown.
    fn boots(&self) -> Option<Arc<Ruleset>>;
    /// The record.
    fn record(&self) -> Record;
    /// The next write fails, somewhere in the middle of it.
    fn fails(&mut self, dice: &mut Dice);
    /// Everything stops after so many more operations; whether there can be such a thing.
    fn cut(&mut self, operations: usize) -> bool;
    /// Whether it has come to that.
    fn dark(&self) -> bool;
    /// The disk as the next start finds it: after a reboot, what was not flushed is there or not.
    fn after_crash(&mut self, reboot: bool, dice: &mut Dice);
}

/// When and where something is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Here {
    /// Which start of the host this is.
    pub(crate) boot: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) now: u64,
}

/// What a ruleset is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Meaning {
    /// The policy of these documents, on some facts.
    Policy(usize),
    /// Panic with the settings of these documents.
    Panic(usize),
    /// Break-glass with them.
    BreakGlass(usize),
    /// The lockdown with them.
    Lockdown(usize),
}

/// What the kernel has in the place of our table.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// The lockdown that a boot loads when it finds no generation.
    BootLockdown,
    /// This.
    Ruleset(Arc<Ruleset>),
}

/// The documents that operators of the world write, and every ruleset that may ever be in its kernel.
pub(crate) struct Book {
    pub(crate) documents: Vec<Documents>,
    facts: Vec<Facts>,
    digests: Vec<String>,
    /// Which documents have no errors.
    valid: Vec<bool>,
    rulesets: Vec<(Arc<Ruleset>, Meaning, usize)>,
}

impl Book {
    pub(crate) fn new(documents: Vec<Documents>) -> Self {
        let facts = vec![facts(&["eth0"]), facts(&["eth0", "cali1"]), facts(&["rail0"])];
        let valid = documents.iter().map(|documents| first_error(&documents.findings).is_none()).collect();
        let mut rulesets: Vec<(Arc<Ruleset>, Meaning, usize)> = Vec::new();
        let term = Term { until: 0, period: 0 };
        let (by, reason) = (String::new(), String::new());
        let emergencies =
            [Emergency::Panic { by: by.clone(), reason: reason.clone() }, Emergency::BreakGlass { term, by, reason }];
        for (which, Documents { policy, settings, .. }) in documents.iter().enumerate() {
            for (at, facts) in facts.iter().enumerate() {
                let mut add = |effective: &Effective, meaning| {
                    let ruleset = Arc::new(compile(effective));
                    let other = rulesets.iter().find(|(known, ..)| *known == ruleset);
                    assert_eq!(other.map(|(_, meaning, facts)| (*meaning, *facts)), None, "is the same as {meaning:?}");
                    rulesets.push((ruleset, meaning, at));
                };
                add(&resolve(policy, settings, facts).0, Meaning::Policy(which));
                add(&emergency::effective(&emergencies[0], settings, facts), Meaning::Panic(which));
                add(&emergency::effective(&emergencies[1], settings, facts), Meaning::BreakGlass(which));
                add(&resolve(&Policy::with_builtin_tiers(), settings, facts).0, Meaning::Lockdown(which));
            }
        }
        let digests = documents.iter().map(|documents| documents.texts.digest()).collect();
        Self { documents, facts, digests, valid, rulesets }
    }

    fn ruleset(&self, meaning: Meaning, facts: usize) -> Arc<Ruleset> {
        let found = self.rulesets.iter().find(|(_, other, at)| (*other, *at) == (meaning, facts));
        Arc::clone(&found.unwrap_or_else(|| panic!("no ruleset for {meaning:?}")).0)
    }

    pub(crate) fn meaning(&self, ruleset: &Arc<Ruleset>) -> Meaning {
        let found = self.rulesets.iter().find(|(known, ..)| Arc::ptr_eq(known, ruleset) || known == ruleset);
        found.unwrap_or_else(|| panic!("a ruleset that nobody asked for: {ruleset:#?}")).1
    }

    fn which(&self, texts: &Texts) -> usize {
        let found = self.documents.iter().position(|documents| documents.texts == *texts);
        found.unwrap_or_else(|| panic!("documents that nobody wrote: {texts:?}"))
    }
}

/// Something that happens to a host. Numbers choose among what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// Other documents are put in place.
    Documents(usize),
    /// From now on documents in place have to be confirmed within this many milliseconds, or need not be.
    Trial(Option<u64>),
    /// The interfaces change.
    Facts(usize),
    /// Somebody removes our table, or only touches it.
    Foreign {
        removed: bool,
    },
    /// `nodewall apply --confirm`, of documents elsewhere or of those in place.
    Apply {
        elsewhere: Option<usize>,
        trial: Option<u64>,
    },
    Confirm,
    /// To the generation before, or what is confirmed.
    Rollback(usize),
    Panic(bool),
    BreakGlass(Option<u64>),
    /// Milliseconds go by.
    Wait(u64),
    /// The kernel refuses the next transactions.
    KernelRefuses(u32),
    /// The disk refuses the next writes.
    DiskRefuses(u32),
    /// The daemon dies and comes back after so many milliseconds.
    Crash(u64),
    /// The host does.
    Reboot(u64),
}

/// How much of what an operation leads to is done before the next one comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// All of it.
    Split,
    /// Nothing: all of it at the end.
    Squashed,
    /// Some.
    Mixed,
}

/// Who waits for an answer, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    Apply(usize),
    Confirm(u64),
    Rollback(usize),
    Panic(bool),
    BreakGlass(bool),
}

#[derive(Clone, Debug)]
struct Flight {
    ruleset: Arc<Ruleset>,
    /// What the kernel said, once it has done it.
    done: Option<Result<Done, String>>,
}

#[derive(Clone, Debug)]
struct Ticket {
    number: u64,
    items: VecDeque<Keep>,
    failed: Option<String>,
}

/// One thing that happens by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// The kernel commits or refuses.
    Commit,
    /// Its answer arrives.
    Applied,
    /// The disk writes one thing.
    Write,
    /// Its answer arrives.
    Kept,
}

/// splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) % most.max(1) as u64) as usize
    }
}

#[derive(Clone)]
pub(crate) struct World<S> {
    book: Arc<Book>,
    pub(crate) state: State,
    pub(crate) shelf: S,
    pub(crate) kernel: Held,
    clock: u64,
    boot: u32,
    /// The documents in place.
    place: usize,
    trial: Option<u64>,
    facts: usize,
    flight: Option<Flight>,
    tickets: VecDeque<Ticket>,
    retry_at: Option<u64>,
    deadline_at: Option<u64>,
    break_glass_at: Option<u64>,
    looking: bool,
    request: Option<Request>,
    /// Whether kernel or disk refused something since it was asked.
    trouble: bool,
    kernel_refuses: u32,
    disk_refuses: u32,
    /// The documents that should be in force, were there no emergency.
    meant: Option<usize>,
    /// The documents that were in force or in place so far.
    been: BTreeSet<usize>,
    numbers: BTreeMap<u64, usize>,
    /// The numbers that the disk was told to be confirmed.
    confirmed: BTreeSet<u64>,
    /// Whether this process had a policy in force.
    better: bool,
    pub(crate) dice: Dice,
    /// Copies of the world before every effect and every turn.
    boundaries: Option<Vec<World<S>>>,
    /// What the last operations were, for whoever reads a failure.
    pub(crate) story: Vec<String>,
}

/// Long enough for every pause between attempts, and shorter than every deadline of a story.
const PATIENCE_MS: u64 = 30_000;

impl<S: Shelf> World<S> {
    /// A host that has never run the daemon, with the first documents in place.
    pub(crate) fn new(book: Arc<Book>, shelf: S, seed: u64) -> Self {
        Self {
            book,
            state: State::default(),
            shelf,
            kernel: Held::BootLockdown,
            clock: 1_000_000,
            boot: 1,
            place: 0,
            trial: None,
            facts: 0,
            flight: None,
            tickets: VecDeque::new(),
            retry_at: None,
            deadline_at: None,
            break_glass_at: None,
            looking: false,
            request: None,
            trouble: false,
            kernel_refuses: 0,
            disk_refuses: 0,
            meant: None,
            been: BTreeSet::new(),
            numbers: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            better: false,
            dice: Dice(seed),
            boundaries: None,
            story: Vec::new(),
        }
    }

    /// From now on, copies are taken before every effect and every turn.
    pub(crate) fn watch(&mut self) {
        self.boundaries = Some(Vec::new());
    }

    pub(crate) fn boundaries(&mut self) -> Vec<World<S>> {
        self.boundaries.take().unwrap_or_default()
    }

    fn boundary(&mut self) {
        if let Some(mut boundaries) = self.boundaries.take() {
            boundaries.push(self.clone());
            self.boundaries = Some(boundaries);
        }
    }

    /// Copies of the world that stopped at every operation of what the disk does next.
    fn boundaries_of_a_write(&mut self) {
        let Some(mut boundaries) = self.boundaries.take() else { return };
        for operations in 0.. {
            let mut stopped = self.clone();
            if !stopped.shelf.cut(operations) {
                break;
            }
            stopped.write();
            if !stopped.shelf.dark() {
                break;
            }
            boundaries.push(stopped);
        }
        self.boundaries = Some(boundaries);
    }

    fn here(&self) -> Here {
        Here { boot: format!("boot {}", self.boot), now: self.clock }
    }

    /// A trial that an operator ends; those that a self-test ends have tests of their own.
    fn trial(&self, period: u64) -> Trial {
        let term = Term::new(self.clock, Duration::from_millis(period));
        Trial { term, confirmation: Confirmation::Operator }
    }

    fn place_documents(&self) -> Documents {
        let trial = self.trial.map(|period| self.trial(period));
        Documents { trial, ..self.book.documents[self.place].clone() }
    }

    /// The daemon starts. What it finds out comes in any order that the loop allows for.
    pub(crate) fn start(&mut self) {
        self.happen(Event::KernelSeen { table: self.kernel != Held::Nothing });
        let facts = Event::FactsChanged(self.book.facts[self.facts].clone());
        let other = (self.facts + 1) % self.book.facts.len();
        let before = Event::FactsChanged(self.book.facts[other].clone());
        let memory = Event::Remembered(Box::new(self.shelf.remember(&self.here())));
        let documents = Event::DocumentsLoaded(self.place_documents());
        let order = match self.dice.below(4) {
            0 => vec![facts, memory, documents],
            1 => vec![memory, facts, documents],
            2 => vec![before, memory, facts, documents],
            _ => vec![memory, documents, facts],
        };
        if self.book.valid[self.place] {
            self.been.insert(self.place);
        }
        for event in order {
            self.happen(event);
        }
    }

    /// The daemon dies, or the host with it, and comes back.
    pub(crate) fn crash(&mut self, reboot: bool, after: u64) {
        self.shelf.after_crash(reboot, &mut self.dice);
        self.state = State::default();
        (self.flight, self.request, self.looking, self.better) = (None, None, false, false);
        (self.retry_at, self.deadline_at, self.break_glass_at) = (None, None, None);
        self.tickets.clear();
        self.clock += after;
        if reboot {
            self.boot += 1;
            let loads = self.shelf.boots();
            self.kernel = loads.map_or(Held::BootLockdown, Held::Ruleset);
        }
        // Should the documents in place be bad, what is confirmed is the last good.
        let memory = self.shelf.remember(&self.here());
        self.meant = memory.confirmed.map(|version| self.book.which(&version.texts));
        self.start();
    }

    /// Something is done to the host.
    pub(crate) fn does(&mut self, op: Op) {
        self.story.push(format!("{op:?}"));
        match op {
            Op::Documents(which) => {
                self.place = which % self.book.documents.len();
                if self.book.valid[self.place] {
                    self.been.insert(self.place);
                }
                self.happen(Event::DocumentsLoaded(self.place_documents()));
            }
            Op::Trial(trial) => self.trial = trial,
            Op::Facts(which) => {
                self.facts = which % self.book.facts.len();
                self.happen(Event::FactsChanged(self.book.facts[self.facts].clone()));
            }
            Op::Foreign { removed } => {
                if removed {
                    self.kernel = Held::Nothing;
                }
                self.happen(Event::Drifted);
            }
            Op::Wait(time) => self.wait(time),
            Op::KernelRefuses(times) => self.kernel_refuses = times,
            Op::DiskRefuses(times) => self.disk_refuses = times,
            Op::Crash(after) => self.crash(false, after),
            Op::Reboot(after) => self.crash(true, after),
            // One at a time: the daemon refuses the next one by itself.
            _ if self.request.is_some() => {}
            Op::Apply { elsewhere, trial } => {
                let elsewhere = elsewhere.map(|which| which % self.book.documents.len());
                let which = elsewhere.unwrap_or(self.place);
                if self.book.valid[which] {
                    self.been.insert(which);
                }
                let trial = trial.map(|period| self.trial(period));
                let documents = Documents { trial, ..self.book.documents[which].clone() };
                let elsewhere = elsewhere.map(|_| "/elsewhere".to_owned());
                self.asks(Request::Apply(which), Event::ApplyRequested { documents, elsewhere });
            }
            Op::Confirm => {
                self.asks(Request::Confirm(self.state.generation()), Event::ConfirmRequested { by: "me".to_owned() })
            }
            Op::Rollback(which) => {
                let numbers = self.shelf.numbers();
                let version = match self.state.record().pending {
                    Some(_) => None,
                    None => match numbers.get(which % numbers.len().max(1)).and_then(|n| self.shelf.version(*n)) {
                        Some(version) => Some(version),
                        // The daemon says so by itself.
                        None => return,
                    },
                };
                let back = version.as_ref().or(self.state.confirmed.as_ref());
                let Some(back) = back.map(|version| self.book.which(&version.texts)) else { return };
                self.asks(Request::Rollback(back), Event::RollbackRequested { version, by: "me".to_owned() });
            }
            Op::Panic(on) => {
                let emergency = on.then(|| Emergency::Panic { by: "me".to_owned(), reason: String::new() });
                let event = Event::EmergencyRequested { emergency, by: "me".to_owned() };
                self.asks(Request::Panic(on), event);
            }
            Op::BreakGlass(time) => {
                let emergency = time.map(|period| Emergency::BreakGlass {
                    term: Term::new(self.clock, Duration::from_millis(period)),
                    by: "me".to_owned(),
                    reason: "x".to_owned(),
                });
                let event = Event::EmergencyRequested { emergency, by: "me".to_owned() };
                self.asks(Request::BreakGlass(time.is_some()), event);
            }
        }
    }

    fn asks(&mut self, request: Request, event: Event) {
        let refused = self.flight.as_ref().is_some_and(|flight| matches!(flight.done, Some(Err(_))));
        let failed = self.tickets.iter().any(|ticket| ticket.failed.is_some());
        (self.request, self.trouble) = (Some(request), refused || failed);
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        let name = std::env::var_os("NODEWALL_TRACE").map(|_| format!("{event:?}"));
        let effects = step(&mut self.state, event);
        if let Some(name) = name {
            let kept: Vec<&Effect> = effects.iter().filter(|effect| matches!(effect, Effect::Keep(..))).collect();
            println!("{name:.60}: {:?}, {kept:.200?}", words(&effects));
        }
        if let Some(version) = &self.state.good {
            self.numbers.insert(version.number, self.book.which(&version.texts));
        }
        for effect in effects {
            self.boundary();
            self.perform(effect);
        }
        self.boundary();
        self.meant = self.meant();
    }

    /// The documents that should be in force by all that was said and answered, emergencies apart: those that wait for their
    /// confirmation, else those that somebody or the lack of a confirmation put in the place of the ones in place, else the ones
    /// in place, and while these have errors the last ones that should have been.
    fn meant(&self) -> Option<usize> {
        let of = |number: &u64| self.numbers.get(number).copied();
        let record = self.state.record();
        if let Some(pending) = &record.pending {
            return of(&pending.generation);
        }
        let digest = &self.book.digests[self.place];
        let valid = self.book.valid[self.place];
        if let Some(pin) = &record.pin
            && (!valid || pin.documents == *digest)
        {
            return of(&pin.generation);
        }
        // Until the documents in place are read, nobody knows.
        let read = self.state.documents == *digest;
        if valid && read { Some(self.place) } else { self.meant }
    }

    fn perform(&mut self, effect: Effect) {
        let clock = self.clock;
        let at = |after: Duration| clock + after.as_millis() as u64;
        match effect {
            Effect::Apply(ruleset) | Effect::Repair(ruleset) => self.send(ruleset),
            Effect::Look => self.looking = true,
            Effect::Retry(after) => self.retry_at = Some(at(after)),
            Effect::ForgetRetry => self.retry_at = None,
            Effect::Deadline(after) => self.deadline_at = after.map(at),
            Effect::BreakGlass(after) => self.break_glass_at = after.map(at),
            Effect::Keep(number, items) => {
                for item in &items {
                    if let Keep::Confirmed(number) = item {
                        let pending = self.state.record().pending.as_ref().map(|pending| pending.generation);
                        assert_ne!(pending, Some(*number), "a boot would load what waits for its confirmation");
                    }
                }
                self.tickets.push_back(Ticket { number, items: items.into(), failed: None });
            }
            Effect::Answer(answer) => self.answered(answer),
            // No policy of the book expires.
            Effect::Expiry(at) => assert_eq!(at, None),
            Effect::SelfTest { .. } => panic!("a self-test that nobody asked for"),
            Effect::ChangeMembers { .. } | Effect::Reload => panic!("no set of the book changes"),
            Effect::Ready | Effect::Report(_) => {}
        }
    }

    /// The kernel is to have this.
    fn send(&mut self, ruleset: Arc<Ruleset>) {
        assert!(self.flight.is_none(), "two transactions at once");
        let record = self.state.record();
        let meaning = self.book.meaning(&ruleset);
        match (meaning, &record.emergency) {
            (Meaning::Policy(which), emergency) => {
                assert!(self.book.valid[which], "documents with errors on their way to the kernel");
                assert!(
                    emergency.is_none() || self.state.failed.is_some(),
                    "a policy on its way to the kernel while {emergency:?} is on"
                );
                let there = self.state.in_force.as_ref().is_some_and(|old| self.book.meaning(&old.ruleset) == meaning);
                let trial = record.pending.as_ref().filter(|pending| self.numbers[&pending.generation] == which);
                if let (Some(trial), false) = (trial, there) {
                    let on_disk = self.shelf.record().pending.map(|pending| (pending.generation, pending.term));
                    let wanted = Some((trial.generation, trial.term));
                    assert_eq!(on_disk, wanted, "on its way to the kernel before its deadline is on disk");
                }
            }
            (Meaning::Panic(_), Some(Emergency::Panic { .. })) => {}
            (Meaning::BreakGlass(_), Some(Emergency::BreakGlass { .. })) => {}
            // What was in force comes back while the kernel refuses what should be.
            (Meaning::Panic(_), _) if self.state.failed.is_some() => {}
            (Meaning::Lockdown(_), emergency) => {
                assert!(!self.better, "a lockdown in the place of a policy");
                assert!(emergency.is_none() || self.state.failed.is_some(), "a lockdown instead of {emergency:?}");
            }
            (meaning, emergency) => panic!("{meaning:?} on its way to the kernel while {emergency:?} is on"),
        }
        self.flight = Some(Flight { ruleset, done: None });
    }

    /// Every answer is somebody's, and what is said to be done is in force and survives a crash.
    fn answered(&mut self, answer: Result<String, String>) {
        let request = self.request.take().unwrap_or_else(|| panic!("nobody asked: {answer:?}"));
        let record = self.state.record();
        let text = match answer {
            Ok(text) => text,
            Err(why) => {
                let open = matches!(record.emergency, Some(Emergency::BreakGlass { .. }));
                let right = match request {
                    Request::Apply(_) | Request::Confirm(_) | Request::Rollback(_) => true,
                    Request::BreakGlass(true) if !open => true,
                    Request::Panic(_) | Request::BreakGlass(_) => self.trouble || why.starts_with("neither "),
                };
                assert!(right, "{request:?} is answered: {why}");
                return;
            }
        };
        let on_disk = self.shelf.record();
        let number = on_disk.pending.map(|pending| pending.generation).or(on_disk.pin.map(|pin| pin.generation));
        let number = number.or(self.shelf.boots().and(self.state.confirmed()));
        let kept = match request {
            Request::Apply(which) | Request::Rollback(which) => number.is_some_and(|n| self.numbers[&n] == which),
            Request::Confirm(number) => self.confirmed.contains(&number),
            Request::Panic(_) | Request::BreakGlass(_) => on_disk.emergency == record.emergency,
        };
        assert!(
            kept,
            "{:?} {:?} {:?} {request:?} is answered \"{text}\" and not on disk",
            self.shelf.record(),
            self.state.confirmed(),
            self.numbers
        );
        // Somebody may have removed it since, or something newer is there already.
        let (Held::Ruleset(ruleset), None) = (&self.kernel, &self.flight) else { return };
        let meaning = self.book.meaning(ruleset);
        let right = match request {
            Request::Apply(which) | Request::Rollback(which) => meaning == Meaning::Policy(which),
            Request::Confirm(_) => true,
            Request::Panic(on) => matches!(meaning, Meaning::Panic(_)) == on,
            Request::BreakGlass(on) => matches!(meaning, Meaning::BreakGlass(_)) == on,
        };
        assert!(right, "{request:?} is answered \"{text}\" while {meaning:?} is in force");
    }

    fn turns(&self) -> Vec<Turn> {
        let mut turns = Vec::new();
        turns.extend(self.flight.as_ref().map(|f| if f.done.is_some() { Turn::Applied } else { Turn::Commit }));
        let written = |ticket: &Ticket| ticket.items.is_empty() || ticket.failed.is_some();
        turns.extend(self.tickets.front().map(|t| if written(t) { Turn::Kept } else { Turn::Write }));
        turns
    }

    /// One thing happens by itself; whether there was one.
    fn turn(&mut self) -> bool {
        if std::mem::take(&mut self.looking) {
            self.happen(Event::KernelSeen { table: self.kernel != Held::Nothing });
            return true;
        }
        let turns = self.turns();
        if turns.is_empty() {
            return false;
        }
        self.boundary();
        let turn = turns[self.dice.below(turns.len())];
        if turn == Turn::Write {
            self.boundaries_of_a_write();
        }
        match turn {
            Turn::Commit => self.commit(),
            Turn::Applied => {
                if let Some(Flight { done: Some(done), .. }) = self.flight.take() {
                    self.happen(Event::Applied(done));
                }
            }
            Turn::Write => self.write(),
            Turn::Kept => {
                if let Some(Ticket { number, failed, .. }) = self.tickets.pop_front() {
                    self.happen(Event::Kept(number, failed.map_or(Ok(()), Err)));
                }
            }
        }
        true
    }

    fn commit(&mut self) {
        let Some(flight) = &mut self.flight else { return };
        if self.kernel_refuses > 0 {
            self.kernel_refuses -= 1;
            self.trouble = true;
            flight.done = Some(Err("the kernel refused".to_owned()));
            return;
        }
        let new = Held::Ruleset(Arc::clone(&flight.ruleset));
        flight.done = Some(Ok(Done { changes: usize::from(self.kernel != new) }));
        let meaning = self.book.meaning(&flight.ruleset);
        self.better = self.better || matches!(meaning, Meaning::Policy(_));
        self.kernel = new;
    }

    fn write(&mut self) {
        let here = self.here();
        let Some(ticket) = self.tickets.front_mut() else { return };
        if self.disk_refuses > 0 {
            self.disk_refuses -= 1;
            self.shelf.fails(&mut self.dice);
        }
        if let Some(item) = ticket.items.pop_front() {
            let number = if let Keep::Confirmed(number) = &item { Some(*number) } else { None };
            match self.shelf.keep(item, &here) {
                Ok(()) => self.confirmed.extend(number),
                Err(error) => {
                    self.trouble = true;
                    ticket.failed = Some(error);
                }
            }
        }
    }

    /// Some of what is under way comes to its end.
    pub(crate) fn go_on(&mut self, turns: usize) {
        for _ in 0..turns {
            if self.shelf.dark() || !self.turn() {
                return;
            }
        }
    }

    /// Everything that is under way comes to its end, with all attempts that it takes; deadlines stay where they are.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.shelf.dark() {
                return;
            }
            if self.turn() {
                continue;
            }
            match self.retry_at.take() {
                Some(at) => {
                    self.wait(at.saturating_sub(self.clock));
                    self.happen(Event::RetryDue);
                }
                None => return,
            }
        }
        panic!("it does not settle");
    }

    /// Time goes by; what is due meanwhile is due.
    fn wait(&mut self, time: u64) {
        self.clock += time;
        if self.deadline_at.is_some_and(|at| at <= self.clock) {
            self.deadline_at = None;
            self.happen(Event::DeadlineDue);
        }
        if self.break_glass_at.is_some_and(|at| at <= self.clock) {
            self.break_glass_at = None;
            self.happen(Event::BreakGlassDue);
        }
    }

    /// What must hold when nothing is under way.
    pub(crate) fn check(&mut self) {
        let record = self.state.record().clone();
        assert_eq!(self.request, None, "nobody was told");
        // An unconfirmed generation does not outlive its deadline.
        if let Some(pending) = &record.pending {
            assert!(pending.term.until > self.clock, "{pending:?} is over, and it is {}", self.clock);
            assert!(self.deadline_at.is_some_and(|at| at <= pending.term.until), "no timer for {pending:?}");
            let digest = self.book.digests[self.place].clone();
            assert!(!self.book.valid[self.place] || pending.documents == digest, "newer documents are ignored");
        }
        if let Some(Emergency::BreakGlass { term, .. }) = &record.emergency {
            assert!(term.until > self.clock, "break-glass is over");
            assert!(self.break_glass_at.is_some_and(|at| at <= term.until), "no timer for {term:?}");
        }
        assert_ne!(self.state.phase(), Phase::Applying, "nothing is under way");
        // The kernel has what it should.
        let which = self.meant.unwrap_or(self.place);
        let meaning = match (&record.emergency, self.meant) {
            (Some(Emergency::Panic { .. }), _) => Meaning::Panic(which),
            (Some(Emergency::BreakGlass { .. }), _) => Meaning::BreakGlass(which),
            (None, Some(which)) => Meaning::Policy(which),
            (None, None) if self.state.in_force.is_none() => {
                // What was found is better than a lockdown.
                assert_ne!(self.kernel, Held::Nothing, "nothing of ours is in force");
                return;
            }
            (None, None) => Meaning::Lockdown(which),
        };
        let Held::Ruleset(found) = &self.kernel else { panic!("{:?} instead of {meaning:?}", self.kernel) };
        assert_eq!(self.book.meaning(found), meaning, "is in force");
        assert!(**found == *self.book.ruleset(meaning, self.facts), "{meaning:?} is in force for other interfaces");
    }

    /// What must hold on disk, once it takes what it is given: what is in force is what a boot loads, unless it is an emergency or
    /// waits for its confirmation.
    pub(crate) fn check_disk(&mut self) {
        self.disk_refuses = 0;
        // The unasked look of every minute.
        for _ in 0..2 {
            self.happen(Event::Drifted);
            self.settle();
        }
        self.check();
        let record = self.state.record().clone();
        let mut on_disk = self.shelf.record();
        if record.emergency.is_some() && record.pin.is_none() {
            // It belongs to documents that are not in place any more, and goes with the next generation.
            on_disk.pin = None;
        }
        assert_eq!(on_disk, record, "the record on disk");
        if let Some(loads) = self.shelf.boots() {
            let Meaning::Policy(which) = self.book.meaning(&loads) else { panic!("a boot loads no policy") };
            assert!(self.been.contains(&which), "a boot loads what was never in force");
        }
        let (Held::Ruleset(found), None, None) = (&self.kernel, &record.emergency, &record.pending) else { return };
        // What was only found is on disk or not, and nobody knows what it was made of.
        if let (Meaning::Policy(_), Some(_)) = (self.book.meaning(found), &self.state.in_force) {
            assert_eq!(self.state.not_kept(), None);
            let loads = self.shelf.boots().unwrap_or_else(|| panic!("a boot loads the lockdown"));
            assert_eq!(self.book.meaning(&loads), self.book.meaning(found), "a boot loads something else");
            assert!(!life::boots_otherwise(&loads, found), "a boot loads it for other interfaces");
        }
    }

    /// Lets a story happen, and checks after it.
    pub(crate) fn lives(&mut self, story: &[Op], pace: Pace) {
        self.start();
        if pace == Pace::Split {
            self.settle();
        }
        for op in story {
            self.does(*op);
            match pace {
                Pace::Split => {
                    self.settle();
                    self.check();
                }
                Pace::Squashed => {}
                Pace::Mixed => {
                    let turns = self.dice.below(8);
                    self.go_on(turns);
                }
            }
            if self.shelf.dark() {
                return;
            }
        }
        self.settle();
        if !self.shelf.dark() {
            self.check();
        }
    }

    /// The same after a crash at this very moment, and what must hold then; with what goes on after the start.
    pub(crate) fn crashes(mut self, reboot: bool) {
        let confirmed = |world: &Self| world.shelf.boots().map(|ruleset| world.book.meaning(&ruleset));
        let before = (self.kernel.clone(), confirmed(&self));
        self.story.push(format!("a crash, reboot {reboot}; in force {:?}", self.state.generation()));
        // Whatever refused is over, or nothing could be said about what a start does.
        (self.kernel_refuses, self.disk_refuses) = (0, 0);
        self.crash(reboot, 10);
        self.settle();
        self.check();
        let found = self.kernel.clone();
        if let Held::Ruleset(ruleset) = &found
            && let Meaning::Policy(which) = self.book.meaning(ruleset)
        {
            assert!(self.been.contains(&which), "after {before:?}, {which} was never in force");
        }
        self.check_disk();
        // Whatever still waits for a confirmation goes when nobody gives it.
        if let Some(at) = self.deadline_at {
            self.wait(at.saturating_sub(self.clock) + PATIENCE_MS);
            self.settle();
            self.check();
            self.check_disk();
            assert_eq!(self.state.record().pending, None);
        }
    }
}
