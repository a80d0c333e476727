//! The kernel is the judge: generated policies and packets, valid, odd and hostile, decided by `simulate::decide`, by the compiled
//! rules in the interpreter, and by the kernel itself, with the same end, the same counters and the same log.
//!
//! `NODEWALL_SEED=N` repeats a run, `NODEWALL_CASES=N` makes it longer; both are printed. `make oracle` runs the long one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod generate;
mod lab;
mod testbed;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use generate::Trial;
use generate::policy::effective;
use nodewall::compile::compile;
use nodewall::nft::text;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError};
use testbed::bed::Bed;
use testbed::report;
use testbed::shape::shape;

/// How many packets are tried on each policy.
const PACKETS: usize = 48;
/// How many policies a plain run tries.
const CASES: u32 = 110;

fn compare(cases: u32) {
    let Trial { seed, cases, mut runner } = Trial::of(cases);
    println!("seed {seed}, {cases} policies, {PACKETS} packets each");
    let bed = RefCell::new(Bed::new());
    let seen: RefCell<BTreeMap<String, u64>> = RefCell::new(BTreeMap::new());
    let count = |what: String, times: usize| *seen.borrow_mut().entry(what).or_insert(0) += times as u64;
    let start = Instant::now();
    let case = (effective(), prop::collection::vec(shape(), 1..2 * PACKETS));
    let result = runner.run(&case, |(effective, shapes)| {
        let outcomes = bed.borrow_mut().run(&effective, &shapes).map_err(TestCaseError::fail)?;
        count("sent".to_owned(), outcomes.sent);
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
        Ok(())
    });
    println!("{:#?} in {:?}", seen.borrow(), start.elapsed());
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (effective, shapes))) => {
            let ruleset = compile(&bed.borrow().fit(&effective));
            panic!(
                "seed {seed}: {reason}\n\npolicy:\n{}\n\npackets: {shapes:#?}\n\nrules:\n{}",
                report::policy(&effective),
                text::render(&ruleset)
            );
        }
        Err(abort) => panic!("seed {seed}: {abort}"),
    }
}

#[test]

fn policy_rules_and_kernel_agree() {
    if !lab::may_run("policy_rules_and_kernel_agree") {
        return;
    }
    std::thread::spawn(|| compare(CASES)).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
