//! How long a change by somebody else is in force: from its transaction to the last one of the daemon's repair, as a third process sees
//! the generation change; and what the kernel alone takes to load the same table again, which no repair can be faster than.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nodewall::driver::{Kernel, Netlink};
use nodewall::nft::change::{Batch, Change, Loaded};

/// How often each kind of change is made.
const ROUNDS: usize = 100;
/// How often the generation is looked at: a listener would make the kernel notify it, which takes longer than the repair.
const LOOK_EVERY: Duration = Duration::from_micros(100);
/// Longer than it takes until repairs are not spaced out.
const PAUSE: Duration = Duration::from_millis(250);

/// The daemon with a configuration of its own.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the daemon and waits until it is ready.
fn start(folder: &std::path::Path, policy: &str) -> Daemon {
    let policy_directory = folder.join("policy.d");
    std::fs::create_dir(&policy_directory).unwrap();
    std::fs::write(policy_directory.join("bench.toml"), policy).unwrap();
    let config = folder.join("nodewall.toml");
    let (socket, state) = (folder.join("nodewall.sock"), folder.join("state"));
    let settings = format!("socket = \"{}\"\nstate_directory = \"{}\"\n", socket.display(), state.display());
    std::fs::write(&config, settings).unwrap();
    let notify = folder.join("notify");
    let ready = UnixDatagram::bind(&notify).unwrap();
    ready.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.arg("--config").arg(&config).arg("--policy-dir").arg(&policy_directory).arg("run");
    let daemon = Daemon(command.env("NOTIFY_SOCKET", &notify).stderr(Stdio::null()).spawn().unwrap());
    let mut message = [0; 4096];
    loop {
        let length = ready.recv(&mut message).expect("the daemon says READY within a minute");
        if String::from_utf8_lossy(&message[..length]).contains("READY=1") {
            return daemon;
        }
    }
}

/// The time of every change of the generation, and by how many transactions it was.
fn transactions() -> mpsc::Receiver<(Instant, u32)> {
    let (told, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut kernel = Netlink::open().unwrap();
        let mut last = kernel.generation().unwrap();
        loop {
            std::thread::sleep(LOOK_EVERY);
            let now = kernel.generation().unwrap();
            let commits = now.wrapping_sub(std::mem::replace(&mut last, now));
            if commits > 0 && told.send((Instant::now(), commits)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The first and the last transaction of a change and its repair; `None` where a busy machine let us see both at once.
fn both(transactions: &mpsc::Receiver<(Instant, u32)>, quiet: Duration) -> Option<(Instant, Instant)> {
    let (first, commits) = transactions.recv_timeout(Duration::from_secs(10)).expect("a transaction");
    if commits > 1 {
        while transactions.recv_timeout(quiet).is_ok() {}
        return None;
    }
    let (mut last, _) = transactions.recv_timeout(Duration::from_secs(10)).expect("a repair");
    while let Ok((next, _)) = transactions.recv_timeout(quiet) {
        last = next;
    }
    Some((first, last))
}

fn milliseconds((first, last): (Instant, Instant)) -> f64 {
    (last - first).as_secs_f64() * 1e3
}

/// Median and 99th percentile.
fn percentiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// The median.
fn measure(what: &str, change: &[&str], transactions: &mpsc::Receiver<(Instant, u32)>) -> f64 {
    let mut times = Vec::new();
    while times.len() < ROUNDS {
        std::thread::sleep(PAUSE);
        while transactions.try_recv().is_ok() {}
        support::run("nft", change);
        times.extend(both(transactions, PAUSE).map(milliseconds));
    }
    tell(what, times)
}

fn tell(what: &str, times: Vec<f64>) -> f64 {
    let (median, late) = percentiles(times);
    support::figure(&format!("{what}: median"), median, "ms", "< 20", median < 20.0);
    support::figure(&format!("{what}: 99th percentile"), late, "ms", "< 100", late < 100.0);
    median
}

/// The second of two flushes, which comes as soon as the first one is repaired: what was loaded is being read back then.
fn measure_twice(what: &str, transactions: &mpsc::Receiver<(Instant, u32)>) {
    let flush = || support::run("nft", &["flush", "ruleset"]);
    let mut times = Vec::new();
    while times.len() < ROUNDS / 2 {
        std::thread::sleep(2 * PAUSE);
        while transactions.try_recv().is_ok() {}
        flush();
        both(transactions, Duration::from_millis(5));
        flush();
        times.extend(both(transactions, PAUSE).map(milliseconds));
    }
    tell(what, times);
}

/// What two transactions that load the table again take, sent as they are and heard by nobody.
fn floor(policy: &str) -> f64 {
    let ruleset = nodewall::compile::compile(&support::effective(policy));
    let whole = nodewall::plan::plan(&Loaded::default(), &ruleset).unwrap();
    let (sets, rules): (Vec<Change>, Vec<Change>) = whole.changes.into_iter().partition(|change| match change {
        Change::AddSet { set, .. } => set.interval,
        other => *other == Change::AddTable,
    });
    let batch = |changes| Batch { generation: None, changes };
    let (sets, rules) = (batch(sets), batch(rules));
    let (mut other, mut kernel) = (Netlink::open().unwrap(), Netlink::open().unwrap());
    kernel.commit_both(&sets, &rules).unwrap();
    let times = (0..ROUNDS).map(|_| {
        other.commit(&batch(vec![Change::DeleteTable])).unwrap();
        let start = Instant::now();
        kernel.commit_both(&sets, &rules).unwrap();
        let took = start.elapsed().as_secs_f64() * 1e3;
        std::thread::sleep(Duration::from_millis(50));
        took
    });
    let (median, _) = percentiles(times.collect());
    other.commit(&batch(vec![Change::DeleteTable])).unwrap();
    median
}

fn main() {
    support::enter_namespace();
    support::run("ip", &["link", "add", "mgmt0", "type", "veth", "peer", "name", "peer0"]);
    support::run("ip", &["addr", "add", "10.77.0.2/24", "dev", "mgmt0"]);
    support::run("ip", &["link", "set", "mgmt0", "up"]);
    support::run("ip", &["route", "add", "default", "via", "10.77.0.1"]);
    for prefixes in [100, 10_000] {
        let policy = support::fifty_rules(prefixes);
        let floor = floor(&policy);
        let folder = tempfile::tempdir().unwrap();
        let daemon = start(folder.path(), &policy);
        let transactions = transactions();
        println!("\n      {prefixes} prefixes: the kernel alone takes {floor:.2} ms to load the table again");
        let repair =
            measure(&format!("{prefixes} prefixes, `nft flush ruleset`"), &["flush", "ruleset"], &transactions);
        println!("      that is {:.1} times what the kernel alone takes", repair / floor);
        measure_twice(&format!("{prefixes} prefixes, another flush right after the repair"), &transactions);
        let insert = ["insert", "rule", "inet", "nodewall", "input", "accept"];
        measure(&format!("{prefixes} prefixes, a rule in front"), &insert, &transactions);
        drop(daemon);
        support::run("nft", &["flush", "ruleset"]);
    }
}
