//! Ten thousand policies of ten rules over two thousand sets of a hundred prefixes: what Felix's largest benchmark has, and more rules.
//! How long it takes from text to kernel, and how long one member of one set takes from its file to the kernel's commit; each beside
//! the nft program on the same ruleset in the same run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nodewall::compile::{self, compile};
use nodewall::driver::{self, Netlink, Watch};
use nodewall::net::range::RangeSet;
use nodewall::nft::ir::Elements;
use nodewall::nft::text;

const POLICIES: usize = 10_000;
const RULES: usize = 10;
const SETS: usize = 2_000;
const PREFIXES: usize = 100;
/// How many policies stand in one file; each set has one of its own.
const POLICIES_OF_A_FILE: usize = 100;
/// How often a member of a set comes or goes.
const ROUNDS: usize = 200;
/// How often the nft program does the same.
const ROUNDS_OF_NFT: usize = 10;

/// A member of a set. No two are neighbours and become one range.
fn member(set: usize, index: usize) -> String {
    let number = (set * (PREFIXES + 1) + index) as u32;
    format!("{}/28", std::net::Ipv4Addr::from_bits(0x0a00_0000 + number * 32))
}

fn set(set: usize, members: usize) -> String {
    let mut text = format!("[[set]]\nname = \"set-{set}\"\ncidrs = [\n");
    for index in 0..members {
        writeln!(text, "  \"{}\",", member(set, index)).unwrap();
    }
    text.push_str("]\n");
    text
}

fn policy(policy: usize) -> String {
    let mut text = format!(
        "[[policy]]\nname = \"policy-{policy}\"\norder = {policy}\ninterfaces = \"role == 'mgmt'\"\ningress = [\n"
    );
    for rule in 0..RULES {
        let set = (policy * RULES + rule * 211) % SETS;
        let port = 1024 + (policy * 7 + rule * 1301) % 20_000;
        writeln!(
            text,
            "  {{ action = \"allow\", from = {{ sets = [\"set-{set}\"] }}, protocol = \"tcp\", ports = [{port}] }},"
        )
        .unwrap();
    }
    text.push_str("]\n");
    text
}

/// Milliseconds.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64() * 1e3)
}

fn percentile(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * part) as usize]
}

/// Changes one member of one set after the other, each in its file; the times until the kernel has committed it.
fn churn(directory: &Path) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut watch = runtime.block_on(async { Watch::open(None).unwrap() });
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let number = round * 7 % SETS;
        let text = set(number, PREFIXES + 1);
        let temporary = directory.join("written");
        // As configuration management writes: beside it, and then in its place.
        std::fs::write(&temporary, text).unwrap();
        let start = Instant::now();
        std::fs::rename(&temporary, directory.join(format!("set-{number:04}.toml"))).unwrap();
        let touched = async { tokio::time::timeout(Duration::from_secs(60), watch.touched()).await };
        runtime.block_on(touched).expect("a change of a member is in the kernel within a minute").unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(20));
    }
    times
}

fn main() {
    support::enter_namespace();
    let texts: Vec<String> = (0..SETS).map(|number| set(number, PREFIXES)).chain((0..POLICIES).map(policy)).collect();
    let text = texts.concat();
    let (sourced, parse) = timed(|| nodewall::source::decode_text("bench.toml", &text));
    assert!(sourced.findings.is_empty());
    let (effective, resolve) = timed(|| support::resolve(&sourced.policy));
    let (ruleset, compiling) = timed(|| compile(&effective));
    println!("{:?}", compile::size(&ruleset));
    let rendered = text::render(&ruleset);
    let mut kernel = Netlink::open().unwrap();
    let (mut applied, apply) = timed(|| driver::apply(&mut kernel, &ruleset, None).unwrap());
    assert!(applied.changes > 0);
    let commits = (0..ROUNDS).map(|round| {
        let name = format!("set-{round}_4");
        let mut new = ruleset.clone();
        if let Some(Elements::V4(members)) = new.sets.get_mut(&name).map(|set| &mut set.elements) {
            *members = members.union(&RangeSet::range(1, 16));
        }
        timed(|| driver::change_members(&mut kernel, &new, &[name].into(), &mut applied.loaded).unwrap()).1
    });
    let mut commits: Vec<f64> = commits.collect();
    let nft_times = (0..ROUNDS_OF_NFT).map(|round| {
        let element = format!("add element inet nodewall set-{round}_4 {{ {} }}\n", member(round, PREFIXES));
        timed(|| support::nft(&element)).1
    });
    let mut nft_times: Vec<f64> = nft_times.collect();
    support::nft("delete table inet nodewall\n");
    let (_, nft) = timed(|| support::nft(&rendered));
    support::nft("delete table inet nodewall\n");
    drop((applied, sourced, effective, ruleset));

    support::run("ip", &["link", "add", "mgmt0", "type", "veth", "peer", "name", "peer0"]);
    support::run("ip", &["addr", "add", "10.77.0.2/24", "dev", "mgmt0"]);
    support::run("ip", &["link", "set", "mgmt0", "up"]);
    support::run("ip", &["route", "add", "default", "via", "10.77.0.1"]);
    let files = (0..SETS).map(|number| (format!("set-{number:04}.toml"), set(number, PREFIXES))).chain(
        (0..POLICIES / POLICIES_OF_A_FILE).map(|file| {
            let first = file * POLICIES_OF_A_FILE;
            (format!("policies-{file:03}.toml"), (first..first + POLICIES_OF_A_FILE).map(policy).collect())
        }),
    );
    let (daemon, start) = timed(|| support::daemon::start(files));
    std::thread::sleep(Duration::from_secs(5));
    let mut times = churn(&daemon.policies());
    let resident = daemon.status("VmRSS") as f64 / 1024.0;
    drop(daemon);

    println!();
    let wall = |what: &str, value: f64| println!("      {what:<66} {value:>9.1} ms");
    wall("documents to policy", parse);
    wall("policy to effective policy", resolve);
    wall("effective policy to rules", compiling);
    wall("rules in the kernel, and read back", apply);
    wall("the nft program: the same rules from their text", nft);
    wall("the daemon from its start to READY", start);
    println!("      {:<66} {resident:>9.1} MiB", format!("its resident memory after {ROUNDS} changes"));
    let reference = percentile(&mut nft_times, 0.5);
    let median = percentile(&mut times, 0.5);
    wall("one member: commit, and looked up, median", percentile(&mut commits, 0.5));
    wall("one member, file to commit: 95th percentile", percentile(&mut times, 0.95));
    wall("the nft program: one element of one set, median", reference);
    support::figure("one member, file to commit: median", median, "ms", "< 5", median < 5.0);
    support::figure("  of the nft program's time", median / reference, "", "< 1", median < reference);
    let whole = (parse + resolve + compiling + apply) / nft;
    support::figure("everything from text to kernel, of the nft program's time", whole, "", "< 3", whole < 3.0);
}
