//! How long a change by somebody else is in force: from the notification of its transaction to that of the daemon's repair, as a third
//! process sees both.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nodewall::driver::{Touch, Watch};

/// How often each kind of change is made.
const ROUNDS: usize = 100;
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

/// Every transaction on our table with the time of its notification and the name of the process.
fn transactions() -> mpsc::Receiver<(Instant, String)> {
    let (told, receiver) = mpsc::channel();
    let (listening, ready) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = Watch::open(None).unwrap();
            listening.send(()).unwrap();
            loop {
                let touch = watch.touched().await.unwrap();
                let Touch::By(commit) = touch else { panic!("notifications were lost") };
                if told.send((Instant::now(), commit.process.unwrap().name)).is_err() {
                    return;
                }
            }
        });
    });
    ready.recv().unwrap();
    receiver
}

fn measure(what: &str, change: &[&str], transactions: &mpsc::Receiver<(Instant, String)>) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            std::thread::sleep(PAUSE);
            while transactions.try_recv().is_ok() {}
            support::run("nft", change);
            let next = || transactions.recv_timeout(Duration::from_secs(10)).expect("a transaction");
            let (changed, by) = next();
            assert_eq!(by, "nft");
            let (repaired, by) = next();
            assert_ne!(by, "nft");
            (repaired - changed).as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let (median, late) = (times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    support::figure(&format!("{what}: median"), median, "ms", "< 20", median < 20.0);
    support::figure(&format!("{what}: 99th percentile"), late, "ms", "< 100", late < 100.0);
}

fn main() {
    support::enter_namespace();
    support::run("ip", &["link", "add", "mgmt0", "type", "veth", "peer", "name", "peer0"]);
    support::run("ip", &["addr", "add", "10.77.0.2/24", "dev", "mgmt0"]);
    support::run("ip", &["link", "set", "mgmt0", "up"]);
    support::run("ip", &["route", "add", "default", "via", "10.77.0.1"]);
    for prefixes in [100, 10_000] {
        let folder = tempfile::tempdir().unwrap();
        let daemon = start(folder.path(), &support::fifty_rules(prefixes));
        let transactions = transactions();
        println!();
        measure(&format!("{prefixes} prefixes, `nft flush ruleset`"), &["flush", "ruleset"], &transactions);
        let insert = ["insert", "rule", "inet", "nodewall", "input", "accept"];
        measure(&format!("{prefixes} prefixes, a rule in front"), &insert, &transactions);
        drop(daemon);
        support::run("nft", &["flush", "ruleset"]);
    }
}
