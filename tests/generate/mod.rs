//! Generated policies and packets, for every test that compares judges of them.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod packet;
pub mod policy;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The seed of a plain run.
const SEED: u64 = 20_260_731;

/// A run that `NODEWALL_SEED=N` repeats and `NODEWALL_CASES=N` makes longer.
pub struct Trial {
    pub seed: u64,
    pub cases: u32,
    pub runner: TestRunner,
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

impl Trial {
    /// A run of so many cases, unless the environment says otherwise.
    pub fn of(cases: u32) -> Self {
        let seed = number("NODEWALL_SEED").unwrap_or(SEED);
        Self::with(seed, number("NODEWALL_CASES").map_or(cases, |cases| u32::try_from(cases).expect("NODEWALL_CASES")))
    }

    /// A run with this seed.
    pub fn with(seed: u64, cases: u32) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        // A minute, so that a failure is told before the test's time is over.
        let (max_shrink_iters, max_shrink_time) = (20_000, 60_000);
        let failure_persistence = None;
        let config = Config { cases, failure_persistence, max_shrink_iters, max_shrink_time, ..Config::default() };
        Self { seed, cases, runner: TestRunner::new_with_rng(config, rng) }
    }
}
