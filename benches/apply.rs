//! Applying: a full ruleset and single elements, by netlink against the nft program, in the same run and namespace.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fmt::Write as _;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion};
use nodewall::compile::compile;
use nodewall::driver::{self, Kernel, Netlink, Read};
use nodewall::nft::change::{Batch, Change};
use nodewall::nft::ir::{Elements, Ruleset, Set};
use nodewall::nft::key::DataType;
use nodewall::nft::text;

const SIZES: [usize; 4] = [100, 1_000, 10_000, 100_000];

/// Replaces the whole table in one batch, as a first apply over another firewall's leftovers would.
fn replacing(ruleset: &Ruleset) -> Batch {
    let current = nodewall::nft::change::Loaded::default();
    let plan = nodewall::plan::plan(&current, ruleset).expect("an empty table differs");
    let mut changes = vec![Change::AddTable, Change::DeleteTable];
    changes.extend(plan.changes);
    Batch { generation: None, changes }
}

fn full_apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("full-apply");
    group.sample_size(10).measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_millis(500));
    for size in SIZES {
        let effective = support::effective(&support::fifty_rules(size));
        let ruleset = compile(&effective);
        let rendered = text::render(&ruleset);
        let mut kernel = Netlink::open().unwrap();
        group.bench_function(BenchmarkId::new("compile", size), |bencher| bencher.iter(|| compile(&effective)));
        group.bench_function(BenchmarkId::new("netlink", size), |bencher| {
            bencher.iter_batched(|| replacing(&ruleset), |batch| kernel.commit(&batch).unwrap(), BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("netlink-and-read-back", size), |bencher| {
            bencher.iter_batched(
                || replacing(&ruleset),
                |batch| {
                    kernel.commit(&batch).unwrap();
                    let loaded = kernel.load(&Read::Everything).unwrap();
                    assert!(loaded.ruleset == ruleset, "read back something else");
                },
                BatchSize::LargeInput,
            );
        });
        group.bench_function(BenchmarkId::new("nft", size), |bencher| bencher.iter(|| support::nft(&rendered)));
    }
    group.finish();
}

/// A live interval set of 10,000 prefixes, and one prefix more.
fn one_prefix(criterion: &mut Criterion) {
    let mut kernel = Netlink::open().unwrap();
    let ranges = |count: u32| -> Elements {
        Elements::V4((0..count).map(|index| (0x0a00_0000 + index * 8, 0x0a00_0003 + index * 8)).collect())
    };
    let set =
        Set { key: vec![DataType::Ipv4Addr], interval: true, map: false, dynamic: None, elements: ranges(10_000) };
    let mut ruleset = Ruleset::default();
    ruleset.sets.insert("big".to_owned(), set.clone());
    kernel.commit(&replacing(&ruleset)).unwrap();
    let known = kernel.load(&Read::Everything).unwrap();
    let one = set.with(Elements::V4([(0xc000_0200, 0xc000_0203)].into_iter().collect()));
    let change = |change| Batch { generation: None, changes: vec![change] };
    let add = change(Change::AddElements { name: "big".to_owned(), set: one.clone() });
    let delete = change(Change::DeleteElements { name: "big".to_owned(), set: one });
    let mut group = criterion.benchmark_group("one-prefix");
    group.sample_size(20).measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_millis(500));
    group.bench_function("netlink", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                let start = std::time::Instant::now();
                kernel.commit(&add).unwrap();
                total += start.elapsed();
                kernel.commit(&delete).unwrap();
            }
            total
        });
    });
    group.bench_function("nft", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                let start = std::time::Instant::now();
                support::run("nft", &["add", "element", "inet", "nodewall", "big", "{ 192.0.2.0/30 }"]);
                total += start.elapsed();
                kernel.commit(&delete).unwrap();
            }
            total
        });
    });
    // The whole way of a changed policy: believe what was read last, plan, commit, verify.
    let mut grown = ruleset.clone();
    if let Some(set) = grown.sets.get_mut("big") {
        set.elements = match (&set.elements, &add.changes[0]) {
            (Elements::V4(before), Change::AddElements { set: more, .. }) => match &more.elements {
                Elements::V4(more) => Elements::V4(before.union(more)),
                other => other.clone(),
            },
            (other, _) => other.clone(),
        };
    }
    let mut known = Some(known);
    group.bench_function("plan-commit-verify", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                let start = std::time::Instant::now();
                let applied = driver::apply(&mut kernel, &grown, known.as_ref()).unwrap();
                total += start.elapsed();
                known = Some(driver::apply(&mut kernel, &ruleset, Some(&applied.loaded)).unwrap().loaded);
            }
            total
        });
    });
    group.finish();
}

fn main() {
    // First, since it asks cargo where to write, which asks the network where there is one.
    let mut criterion = Criterion::default().configure_from_args();
    support::enter_namespace();
    full_apply(&mut criterion);
    one_prefix(&mut criterion);
    criterion.final_summary();

    println!();
    let full = support::medians("full-apply");
    let at = |what: &str, size: usize| full.get(&format!("{what}/{size}")).copied().unwrap_or(f64::NAN);
    for size in SIZES {
        let ratio = at("nft", size) / at("netlink", size);
        let wanted = match size {
            100 => 10.0,
            100_000 => 2.0,
            _ => 1.0,
        };
        let mut what = String::new();
        write!(what, "full apply, 50 rules + {size} prefixes: nft -f / netlink").unwrap();
        support::figure(&what, ratio, "x", &format!(">= {wanted}"), ratio >= wanted);
        let share = at("compile", size) / at("netlink", size);
        support::figure(&format!("  compile / netlink apply at {size}"), share, "x", "< 0.5", share < 0.5);
        let read_back = at("nft", size) / at("netlink-and-read-back", size);
        support::figure(&format!("  nft -f / netlink apply and full read-back at {size}"), read_back, "x", "-", true);
    }
    let one = support::medians("one-prefix");
    let ratio = one["nft"] / one["netlink"];
    support::figure(
        "one prefix into a live set of 10,000: nft add element / netlink",
        ratio,
        "x",
        ">= 10",
        ratio >= 10.0,
    );
    let ratio = one["nft"] / one["plan-commit-verify"];
    support::figure("  the same with planning and verifying", ratio, "x", ">= 10", ratio >= 10.0);
}
