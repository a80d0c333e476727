//! Boots on kernels that block, refuse and lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::*;
use crate::store::Generation;

/// A kernel that remembers what it was given.
#[derive(Clone, Default)]
struct Double {
    /// What is in force.
    table: Arc<Mutex<Option<Vec<u8>>>>,
    /// How long it takes to open, the first times.
    slow: Arc<Mutex<Vec<Duration>>>,
    /// Batches that it refuses.
    refuses: Vec<Vec<u8>>,
}

impl Table for Double {
    fn in_force(&mut self) -> Result<bool, driver::Error> {
        Ok(self.table.lock().unwrap().is_some())
    }

    fn commit_bytes(&mut self, bytes: &[u8]) -> Result<(), driver::Error> {
        if self.refuses.iter().any(|refused| refused == bytes) {
            return Err(driver::Error::Refused { subject: "chain input".to_owned(), errno: Errno::EOPNOTSUPP });
        }
        *self.table.lock().unwrap() = Some(bytes.to_vec());
        Ok(())
    }
}

impl Double {
    fn opener(&self) -> impl Fn() -> Result<Self, driver::Error> + Clone + Send + 'static {
        let double = self.clone();
        move || {
            let slow = double.slow.lock().unwrap().pop();
            thread::sleep(slow.unwrap_or_default());
            Ok(double.clone())
        }
    }

    fn in_force(&self) -> Option<Vec<u8>> {
        self.table.lock().unwrap().clone()
    }
}

fn generation(number: u64) -> Generation {
    Generation {
        number,
        time: "2026-11-23T20:00:00Z".to_owned(),
        source: "files".to_owned(),
        hash: String::new(),
        policy: [].into(),
        settings: String::new(),
        batch: format!("batch {number}").into_bytes(),
    }
}

/// A state directory with these generations, the last of them confirmed.
fn state(numbers: &[u64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::new(Directory::open(folder.path()).unwrap());
    for number in numbers {
        store.write(&generation(*number)).unwrap();
        store.confirm(*number).unwrap();
    }
    folder
}

fn options(state: &Path, fail_mode: FailMode, limit: Duration) -> Options {
    Options { state_directory: state.to_owned(), fail_mode, limit, lockdown: Lockdown::default() }
}

const PLENTY: Duration = Duration::from_secs(60);

/// The outcome and what was reported.
fn run(options: &Options, double: &Double) -> (Result<InForce, Failed>, String) {
    let mut told = Vec::new();
    let result = boot(options, double.opener(), |text| told.push(text.to_owned()));
    (result, told.join("\n"))
}

fn lockdown() -> Vec<u8> {
    boot_batch(&Lockdown::default().ruleset())
}

#[test]
fn the_confirmed_generation_is_loaded_and_not_a_newer_one() {
    let state = state(&[1, 2]);
    Store::new(Directory::existing(state.path())).write(&generation(3)).unwrap();
    let double = Double::default();
    let (result, told) = run(&options(state.path(), FailMode::Lockdown, PLENTY), &double);
    assert!(matches!(result, Ok(InForce::Generation { number: 2, .. })), "{result:?}");
    assert_eq!((double.in_force(), told.as_str()), (Some(b"batch 2".to_vec()), ""));
}

#[test]
fn what_is_in_force_is_left_alone() {
    let state = state(&[1]);
    let double = Double::default();
    *double.table.lock().unwrap() = Some(b"there".to_vec());
    let (result, _) = run(&options(state.path(), FailMode::Lockdown, PLENTY), &double);
    assert!(matches!(result, Ok(InForce::Already)), "{result:?}");
    assert_eq!(double.in_force(), Some(b"there".to_vec()));
}

#[test]
fn a_generation_that_the_kernel_refuses_makes_way_for_an_older_one_and_then_for_the_lockdown() {
    let state = state(&[1, 2, 3]);
    let mut double = Double { refuses: vec![b"batch 3".to_vec()], ..Double::default() };
    let (result, told) = run(&options(state.path(), FailMode::Lockdown, PLENTY), &double);
    assert!(matches!(result, Ok(InForce::Generation { number: 2, .. })), "{result:?}");
    assert!(told.contains("generation 3 cannot be loaded: the kernel refused chain input: EOPNOTSUPP"), "{told}");

    double = Double { refuses: (1..=3).map(|number| generation(number).batch).collect(), ..Double::default() };
    let (result, told) = run(&options(state.path(), FailMode::Open, PLENTY), &double);
    assert!(matches!(result, Ok(InForce::Lockdown)), "the fail mode is for time that is up: {result:?}");
    assert_eq!((double.in_force(), told.lines().count()), (Some(lockdown()), 4), "{told}");

    double.refuses.push(lockdown());
    *double.table.lock().unwrap() = None;
    let (result, _) = run(&options(state.path(), FailMode::Lockdown, PLENTY), &double);
    assert!(matches!(result, Err(Failed::Kernel(_))), "{result:?}");
}

#[test]
fn generations_without_a_confirmed_one_are_reported_and_not_loaded() {
    let state = state(&[1, 2]);
    for spoilt in ["2 0000000000000000\n", "", "two"] {
        std::fs::write(state.path().join("confirmed"), spoilt).unwrap();
        let double = Double::default();
        let (result, told) = run(&options(state.path(), FailMode::Lockdown, PLENTY), &double);
        assert!(matches!(result, Ok(InForce::Lockdown)), "{spoilt:?}: {result:?}");
        assert!(told.contains("none of the 2 generations"), "{told}");
    }
}

/// A kernel call that blocks, for ever as far as this test goes.
#[test]
fn a_blocked_kernel_ends_in_the_fail_mode_within_the_limit() {
    let limit = Duration::from_secs(2);
    let for_ever = Duration::from_secs(3600);
    let state = state(&[1]);
    let timed = |fail_mode, slow: &[Duration]| {
        let double = Double { slow: Arc::new(Mutex::new(slow.to_vec())), ..Double::default() };
        let start = Instant::now();
        let (result, told) = run(&options(state.path(), fail_mode, limit), &double);
        let took = start.elapsed();
        assert!(took < limit + Duration::from_millis(500), "{took:?}");
        (result, told, double.in_force())
    };
    // The first call blocks and the second does not: the lockdown.
    let (result, told, in_force) = timed(FailMode::Lockdown, &[for_ever]);
    assert!(matches!(result, Ok(InForce::Lockdown)), "{result:?}");
    assert!(told.contains("no generation is in force: no rules were in force after 1."), "{told}");
    assert_eq!(in_force, Some(lockdown()));
    // Every call blocks: an error, in time.
    let (result, _, in_force) = timed(FailMode::Lockdown, &[for_ever, for_ever]);
    assert!(matches!(result, Err(Failed::Time(_))), "{result:?}");
    assert_eq!(in_force, None);
    // Fail mode open: nothing more is tried.
    let (result, told, in_force) = timed(FailMode::Open, &[for_ever]);
    assert!(matches!(result, Err(Failed::Time(_))), "{result:?}");
    assert!(told.contains("fail mode open"), "{told}");
    assert_eq!(in_force, None);
}

#[test]
fn a_thread_that_dies_is_a_failure_and_no_wait() {
    let start = Instant::now();
    let result: Result<(), Failed> = bounded(start + PLENTY, &mut |_| {}, |_| panic!("of the test"));
    assert!(matches!(result, Err(Failed::Thread(_))), "{result:?}");
    assert!(start.elapsed() < PLENTY / 2);
}
