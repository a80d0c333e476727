//! The kernel is the judge: generated policies and packets, valid, odd and hostile, decided by `simulate::trace`, by the compiled
//! rules in the interpreter, and by the kernel itself, with the same end, the same counters and the same log.
//!
//! `NODEWALL_SEED=N` repeats a run, `NODEWALL_CASES=N` makes it longer; both are printed. With `NODEWALL_PAIRS=N` there is one run after
//! the other, each with a seed of its own, until so many packets have met a policy: `make oracle` does that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod generate;
mod lab;
mod testbed;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use generate::Trial;
use generate::policy::effective;
use nodewall::compile::compile;
use nodewall::nft::text;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError};
use testbed::bed::{Bed, Outcomes};
use testbed::report;
use testbed::shape::shape;

/// How many packets are tried on each policy, on average.
const PACKETS: usize = 48;
/// How many policies a plain run tries.
const CASES: u32 = 250;
/// How many pairs of policy and packet a plain run has at least.
const PAIRS: u64 = 5000;
/// How many policies each run of a long series tries.
const ROUND: u32 = 500;

/// How often what was met.
type Seen = BTreeMap<String, u64>;

/// One run; what was seen, or why it failed.
fn run(bed: &RefCell<Bed>, Trial { seed, cases, mut runner }: Trial) -> Result<Seen, String> {
    let seen = RefCell::new(Seen::from([("policies".to_owned(), u64::from(cases))]));
    let case = (effective(), prop::collection::vec(shape(), 1..2 * PACKETS));
    let result = runner.run(&case, |(effective, shapes)| {
        let outcomes = bed.borrow_mut().run(&effective, &shapes).map_err(TestCaseError::fail)?;
        count(&mut seen.borrow_mut(), &outcomes);
        Ok(())
    });
    match result {
        Ok(()) => Ok(seen.into_inner()),
        Err(TestError::Fail(reason, (effective, shapes))) => {
            let ruleset = text::render(&compile(&bed.borrow().fit(&effective)));
            let policy = report::policy(&effective);
            Err(format!("seed {seed}: {reason}\n\npolicy:\n{policy}\n\npackets: {shapes:#?}\n\nrules:\n{ruleset}"))
        }
        Err(abort) => Err(format!("seed {seed}: {abort}")),
    }
}

fn count(seen: &mut Seen, outcomes: &Outcomes) {
    let mut count = |what: String, times: usize| *seen.entry(what).or_insert(0) += times as u64;
    count("pairs".to_owned(), outcomes.sent);
    count("arrived".to_owned(), outcomes.taken);
    count("never at a rule".to_owned(), outcomes.unseen);
    for (judged, index) in &outcomes.judged {
        let whose = if index.is_some() { "sent" } else { "answer" };
        count(format!("{whose} {:?} {:?}", judged.packet.direction, judged.fate), 1);
        for word in &judged.met {
            count(format!("met {word}"), 1);
        }
        count(format!("state {:?}", judged.packet.state), 1);
    }
}

/// What has to be met in a run, or agreement would say little: every action, every stage, every part of the language, and each way in
/// which a packet may end.
const MET: [&str; 33] = [
    "met allow",
    "met another destination by DNAT",
    "met audit",
    "met deny",
    "met early",
    "met essential",
    "met failsafe",
    "met forward",
    "met groups",
    "met host",
    "met interface default",
    "met limit",
    "met limit per source",
    "met log",
    "met logged",
    "met marked by others",
    "met node-wide audit",
    "met pass",
    "met prednat",
    "met reject",
    "met set",
    "met source ports",
    "met stage skipped",
    "met tier default",
    "met untracked",
    "met users",
    "sent Egress Accepted",
    "sent Egress Dropped",
    "sent Egress DroppedEarly",
    "sent Ingress Accepted",
    "sent Ingress Dropped",
    "sent Ingress DroppedEarly",
    "sent Ingress Lost",
];

fn plain() {
    let trial = Trial::of(CASES);
    println!("seed {}, {} policies, {PACKETS} packets each", trial.seed, trial.cases);
    let (start, cases) = (Instant::now(), trial.cases);
    let seen = run(&RefCell::new(Bed::new()), trial).unwrap_or_else(|words| panic!("{words}"));
    println!("{seen:#?} in {:?}", start.elapsed());
    if cases >= CASES {
        let missed: Vec<&str> = MET.into_iter().filter(|what| !seen.contains_key(*what)).collect();
        assert!(missed.is_empty(), "not met: {missed:?}");
        assert!(seen["pairs"] >= PAIRS, "only {} packets", seen["pairs"]);
    }
}

/// Run after run on one node, until there were so many pairs.
fn series(pairs: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let first = generate::number("NODEWALL_SEED").unwrap_or_else(|| {
        // Far from those of processes that begin at the same time, and short enough to be typed.
        (now.as_secs() & 0xf_ffff) << 28 | u64::from(std::process::id() & 0xffff) << 12
    });
    let bed = RefCell::new(Bed::new());
    let (start, mut all) = (Instant::now(), Seen::new());
    // The harness has begun a line.
    println!();
    for seed in first.. {
        let seen = run(&bed, Trial::with(seed, ROUND)).unwrap_or_else(|words| {
            panic!("oracle: disagreement; NODEWALL_SEED={seed} NODEWALL_CASES={ROUND} repeats it\n{words}")
        });
        for (what, times) in seen {
            *all.entry(what).or_insert(0) += times;
        }
        let (done, seconds) = (all["pairs"], start.elapsed().as_secs_f64());
        let rate = done as f64 / seconds;
        println!(
            "oracle: seed {seed} agrees; {done} of {pairs} pairs, {} policies, {rate:.0} pairs/s",
            all["policies"]
        );
        if done >= pairs {
            println!("{all:#?}");
            let seeds = seed - first + 1;
            let policies = all["policies"];
            println!(
                "oracle: {done} pairs, {policies} policies, seeds {first} to {seed} ({seeds}), 0 disagreements, {seconds:.0} s"
            );
            return;
        }
    }
}

#[test]
fn policy_rules_and_kernel_agree() {
    if !lab::may_run("policy_rules_and_kernel_agree") {
        return;
    }
    // The thread goes to the node and stays there.
    let work = || match generate::number("NODEWALL_PAIRS") {
        Some(pairs) => series(pairs),
        None => plain(),
    };
    std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
