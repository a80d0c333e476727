//! Per packet: what a policy costs a flow, against hand-written rules between the same pair of namespaces.
//!
//! The sender's `send` runs the whole path, the receiver's input chain included, on its own core (veth, softirq), so the
//! time per packet less that of a reference is what the rules cost.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use criterion::Criterion;
use nodewall::driver::{self, Netlink};

const PACKETS_PER_ROUND: u64 = 2_000;
const PORT: u16 = 9_999;
const POLICIES: usize = 1_000;

/// A sender's socket in another namespace that is joined to this one, and the receiver's here.
struct Pair {
    sender: UdpSocket,
    _sink: UdpSocket,
}

fn pair() -> Pair {
    // The node's namespace is this thread's. The peer's lives as long as its socket.
    let node = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let peer = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        support::run("ip", &["link", "add", "peer0", "type", "veth", "peer", "name", "mgmt0"]);
        support::run("ip", &["addr", "add", "10.77.0.1/24", "dev", "peer0"]);
        support::run("ip", &["link", "set", "peer0", "up"]);
        support::run("ip", &["link", "set", "lo", "up"]);
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&node));
        support::run("ip", &["link", "set", "mgmt0", "netns", &path]);
        nix::sched::setns(node.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        support::run("ip", &["addr", "add", "10.77.0.2/24", "dev", "mgmt0"]);
        support::run("ip", &["link", "set", "mgmt0", "up"]);
        support::run("ip", &["route", "add", "default", "via", "10.77.0.1"]);
        nix::sched::setns(here.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind("10.77.0.1:4000").unwrap()
    });
    let sender = peer.join().unwrap();
    let sink = UdpSocket::bind(("10.77.0.2", PORT)).unwrap();
    sender.connect(("10.77.0.2", PORT)).unwrap();
    sender.send(b"warm up the neighbour cache").unwrap();
    Pair { sender, _sink: sink }
}

/// Nanoseconds for `rounds` packets, sent in bursts; the sink fills up and drops, which costs every case the same.
fn send(pair: &Pair, rounds: u64) -> Duration {
    let mut total = Duration::ZERO;
    let payload = [0u8; 18];
    for _ in 0..rounds {
        let start = Instant::now();
        for _ in 0..PACKETS_PER_ROUND {
            let _ = pair.sender.send(&payload);
        }
        total += start.elapsed();
    }
    total
}

/// A name and what it loads.
type Case = (&'static str, fn(&mut Netlink));

/// Policies that differ in port and peers; none but the last is about the traffic.
fn policies(count: usize) -> String {
    let mut text = String::new();
    for index in 0..count {
        let (third, fourth, port) = (index / 250, index % 250, 10_000 + index);
        write!(
            text,
            "[[policy]]\nname = \"p{index}\"\norder = {}\ninterfaces = \"role == 'mgmt'\"\ningress = [{{ action = \"allow\", from = {{ cidrs = [\"10.9.{third}.{fourth}\"] }}, protocol = \"udp\", ports = [{port}] }}]\n",
            index + 1
        )
        .unwrap();
    }
    write!(
        text,
        "[[policy]]\nname = \"traffic\"\norder = 100000\ninterfaces = \"role == 'mgmt'\"\ningress = [{{ action = \"allow\", from = {{ cidrs = [\"10.77.0.0/24\"] }}, protocol = \"udp\", ports = [{PORT}] }}]\n"
    )
    .unwrap();
    text
}

/// Our ruleset for `count` policies.
fn ours(kernel: &mut Netlink, count: usize) {
    let ruleset = nodewall::compile::compile(&support::effective(&policies(count)));
    driver::apply(kernel, &ruleset, None).unwrap();
}

/// Our ruleset without policies, with `count` rules of the same kind written by hand before the one that accepts.
fn linear(kernel: &mut Netlink, count: usize) {
    ours(kernel, 0);
    let mut text = String::from("add chain inet nodewall hand\n");
    for index in 0..count {
        let (third, fourth, port) = (index / 250, index % 250, 10_000 + index);
        writeln!(text, "add rule inet nodewall hand ip saddr 10.9.{third}.{fourth} udp dport {port} counter accept")
            .unwrap();
    }
    writeln!(text, "insert rule inet nodewall in_mgmt jump hand").unwrap();
    support::nft(&text);
}

fn main() {
    // First, since it asks cargo where to write, which asks the network where there is one.
    let mut criterion = Criterion::default().configure_from_args();
    support::enter_namespace();
    let pair = pair();
    let mut kernel = Netlink::open().unwrap();
    let mut group = criterion.benchmark_group("packet");
    group.sample_size(30).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(300));
    // A flow without a reply stays new for conntrack, so each of its packets is judged in full.
    let cases: [Case; 4] = [
        ("new-1-policy", |kernel| ours(kernel, 0)),
        ("new-1001-policies", |kernel| ours(kernel, POLICIES)),
        ("new-10-linear-rules", |kernel| linear(kernel, 10)),
        ("new-1000-linear-rules", |kernel| linear(kernel, POLICIES)),
    ];
    for (name, load) in cases {
        load(&mut kernel);
        group.bench_function(name, |bencher| bencher.iter_custom(|rounds| send(&pair, rounds)));
        support::run("nft", &["delete", "table", "inet", "nodewall"]);
    }
    // One reply makes the flow established.
    for (name, count) in [("established-1-policy", 0), ("established-1001-policies", POLICIES)] {
        ours(&mut kernel, count);
        pair.sender.send(b"ping").unwrap();
        pair._sink.send_to(b"pong", "10.77.0.1:4000").unwrap();
        group.bench_function(name, |bencher| bencher.iter_custom(|rounds| send(&pair, rounds)));
        support::run("nft", &["delete", "table", "inet", "nodewall"]);
    }
    group.finish();
    criterion.final_summary();

    println!();
    let medians = support::medians("packet");
    let ns = |name: &str| medians.get(name).copied().unwrap_or(f64::NAN) / PACKETS_PER_ROUND as f64;
    let (ours, linear) = (ns("new-1001-policies") - ns("new-1-policy"), ns("new-10-linear-rules") - ns("new-1-policy"));
    support::figure(
        "new flow: what 1,000 more policies add",
        ours,
        "ns",
        &format!("< {linear:.0} (10 linear rules)"),
        ours < linear,
    );
    let long = ns("new-1000-linear-rules") - ns("new-1-policy");
    support::figure("  what 1,000 linear rules add", long, "ns", "-", true);
    let established = ns("established-1001-policies") / ns("established-1-policy");
    support::figure(
        "established flow: 1,001 policies / 1 policy",
        established,
        "x",
        "0.95..1.05",
        (0.95..1.05).contains(&established),
    );
}
