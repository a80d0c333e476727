//! New connections every ten milliseconds, while everything happens to the daemon that can: it is started, reloaded, killed two hundred
//! times at any moment, fed bad policy, its disk filled, its table flushed and deleted. What is allowed goes through and what is denied
//! does not; between a flush by somebody else and its repair nothing of ours is there, and that time is measured.
//!
//! `NODEWALL_SEED=N` repeats a run's moments, as far as a kernel can be made to; it is printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::daemon::{Node, loaded, until_repaired};
use lab::dice::Dice;
use lab::net::{Host, wire};
use lab::{may_run, sh};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket, sockopt,
};

/// How often the daemon is killed.
const KILLS: usize = 200;
/// How often its table is flushed.
const FLUSHES: usize = 50;
/// The seed of a plain run.
const SEED: u64 = 20_261_123;

/// How often connections begin.
const EVERY: Duration = Duration::from_millis(10);
/// A connection that is let through is there by then; below the second after which TCP tries again.
const PATIENCE: Duration = Duration::from_millis(800);
/// What is not answered by then is denied. The packet that decides was sent, and dropped, at the beginning.
const SILENCE: Duration = Duration::from_millis(300);
/// How long after its beginning the packets of a connection meet the rules, on a busy machine.
const ON_THE_WAY: Duration = Duration::from_millis(100);

/// The port that is let in, and the one that is not.
const ALLOWED: u16 = 8080;
const DENIED: u16 = 10250;

const POLICY: &str = r#"
[[policy]]
name = "stable"
order = 100
interfaces = "all()"
ingress = [
  { action = "allow", protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "tcp", ports = [10250] },
]
"#;

/// Rules that are others each time, beside those that stay.
fn varying(dice: &mut Dice) -> String {
    let ports: Vec<String> = (0..1 + dice.below(6)).map(|_| format!("{}", 20_000 + dice.below(10_000))).collect();
    let prefixes: Vec<String> =
        (0..1 + dice.below(40)).map(|_| format!("\"10.1.{}.{}\"", dice.below(256), dice.below(256))).collect();
    format!(
        "[[set]]\nname = \"some\"\ncidrs = [{}]\n[[policy]]\nname = \"varying\"\norder = {}\ninterfaces = \"all()\"\ningress = [\n  {{ action = \"deny\", from = {{ sets = [\"some\"] }}, protocol = \"udp\", ports = [{}] }},\n]\n",
        prefixes.join(", "),
        110 + dice.below(20),
        ports.join(", ")
    )
}

/// A connection that has begun.
struct Attempt {
    socket: OwnedFd,
    port: u16,
    from: IpAddr,
    to: IpAddr,
    start: Instant,
    /// Whether the one before it was lost.
    again: bool,
}

/// When a connection began, and when it was known what became of it.
type Span = (Instant, Instant);

/// Lets the connections end however the test does.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What was seen of all connections.
#[derive(Default)]
struct Seen {
    let_through: usize,
    kept_out: usize,
    /// Denied ones that were let through.
    wrongly_allowed: Vec<Span>,
    /// Allowed ones that were not answered, and of which the next one was.
    lost: Vec<Span>,
    /// Allowed ones of which two in a row were not.
    wrongly_denied: Vec<Span>,
}

impl Attempt {
    fn begin(from: IpAddr, to: IpAddr, port: u16, again: bool) -> Self {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None).unwrap();
        // No TIME_WAIT: there are many of them.
        setsockopt(&socket, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0))).unwrap();
        let start = Instant::now();
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, port))) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => panic!("cannot connect: {error}"),
        }
        Self { socket, port, from, to, start, again }
    }

    /// Whether it was let through, once that is known.
    fn outcome(&self, ready: bool, now: Instant) -> Option<bool> {
        if ready {
            return Some(getsockopt(&self.socket, sockopt::SocketError).unwrap() == 0);
        }
        let limit = if self.port == ALLOWED { PATIENCE } else { SILENCE };
        (now - self.start > limit).then_some(false)
    }
}

/// Begins connections until it is told to stop, and waits for the last ones.
fn pulse(pairs: &[(IpAddr, IpAddr)], done: &AtomicBool) -> Seen {
    let (mut seen, mut attempts, mut next) = (Seen::default(), Vec::<Attempt>::new(), Instant::now());
    loop {
        let now = Instant::now();
        let stop = done.load(Ordering::Relaxed);
        if stop && attempts.is_empty() {
            return seen;
        }
        if now >= next && !stop {
            next = now + EVERY;
            for (from, to) in pairs {
                attempts.extend([ALLOWED, DENIED].map(|port| Attempt::begin(*from, *to, port, false)));
            }
        }
        let mut polled: Vec<PollFd<'_>> =
            attempts.iter().map(|attempt| PollFd::new(attempt.socket.as_fd(), PollFlags::POLLOUT)).collect();
        let wait = next.saturating_duration_since(Instant::now()).min(EVERY);
        poll(&mut polled, PollTimeout::try_from(wait).unwrap()).unwrap();
        let ready: Vec<bool> = polled.iter().map(|polled| polled.any().unwrap_or_default()).collect();
        let now = Instant::now();
        let mut again = Vec::new();
        for (index, ready) in ready.iter().enumerate().rev() {
            let Some(let_through) = attempts[index].outcome(*ready, now) else { continue };
            let attempt = attempts.swap_remove(index);
            match (attempt.port, let_through) {
                (ALLOWED, true) => {
                    seen.let_through += 1;
                    if attempt.again {
                        // The one before it was a packet lost, and no verdict.
                        continue;
                    }
                }
                (ALLOWED, false) if attempt.again => seen.wrongly_denied.push((attempt.start, now)),
                (ALLOWED, false) => {
                    seen.lost.push((attempt.start, attempt.start + ON_THE_WAY));
                    again.push(Attempt::begin(attempt.from, attempt.to, ALLOWED, true));
                }
                (_, false) => seen.kept_out += 1,
                (_, true) => seen.wrongly_allowed.push((attempt.start, now)),
            }
        }
        attempts.extend(again);
    }
}

#[test]
fn whatever_happens_to_the_daemon_connections_meet_the_policy() {
    if !may_run("endurance") {
        return;
    }
    let mut dice = Dice::from_environment(SEED);
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    sh("mount --make-rprivate /");
    let (host, peer) = (Host::new(), Host::new());
    wire((&host, "mgmt0", &["10.77.0.2/24", "fd77::2/64"]), (&peer, "eth0", &["10.77.0.1/24", "fd77::1/64"]));
    host.sh("ip route add default via 10.77.0.1");
    let _servers = host.serve(&[ALLOWED, DENIED], &[]);
    let mut node = Node::new(&[("10-stable.toml", POLICY), ("20-varying.toml", &varying(&mut dice))]);
    std::fs::create_dir(node.path("state")).unwrap();
    sh(&format!("mount -t tmpfs -o size=2m,mode=700 tmpfs {}", node.path("state").display()));
    host.enter(|| node.run());
    node.until("in force", |code, _| code == 0);
    let pairs: [(IpAddr, IpAddr); 2] =
        [("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2")].map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    let (seen, windows) = std::thread::scope(|scope| {
        let pulse = scope.spawn(|| peer.enter(|| pulse(&pairs, &done)));
        let _stop = Stop(&done);
        let windows = host.enter(|| {
            lives(&mut node, &mut dice);
            flushes(&mut node, &mut dice)
        });
        done.store(true, Ordering::Relaxed);
        (pulse.join().unwrap(), windows)
    });
    let state = node.path("state");
    node.kill();
    sh(&format!("umount -l {}", state.display()));
    let mut lengths: Vec<Duration> = windows.iter().map(|(start, end)| *end - *start).collect();
    lengths.sort();
    let log = node.log();
    let mut repairs: Vec<f64> =
        log.lines().filter_map(|line| line.split_once("repaired in ")?.1.split_once(" ms")?.0.parse().ok()).collect();
    repairs.sort_by(f64::total_cmp);
    println!(
        "{:?}: {} connections let through and {} kept out; {} kills; {} windows of {:?} to {:?} (median {:?}) from the start of nft(8) until seen repaired, {} repairs of {:.1} to {:.1} ms by the daemon's own clock; in the windows {} denied ones let through and {} packets of allowed ones lost",
        begin.elapsed(),
        seen.let_through,
        seen.kept_out,
        KILLS,
        windows.len(),
        lengths[0],
        lengths[lengths.len() - 1],
        lengths[lengths.len() / 2],
        repairs.len(),
        repairs[0],
        repairs[repairs.len() - 1],
        seen.wrongly_allowed.len(),
        seen.lost.len(),
    );
    let outside = |spans: &[Span]| -> Vec<Duration> {
        let inside = |span: &&Span| windows.iter().any(|window| window.0 <= span.1 && span.0 <= window.1);
        spans.iter().filter(|span| !inside(span)).map(|span| span.0 - begin).collect()
    };
    let nothing = Vec::<Duration>::new();
    assert_eq!(outside(&seen.wrongly_allowed), nothing, "wrongly allowed with the table in place\n{log}");
    assert_eq!(outside(&seen.lost), nothing, "lost with the table in place\n{log}");
    assert_eq!(outside(&seen.wrongly_denied), nothing, "wrongly denied\n{log}");
    assert!(seen.wrongly_denied.is_empty(), "wrongly denied in a window");
    assert!(seen.let_through > 1000 && seen.kept_out > 1000, "{} {}", seen.let_through, seen.kept_out);
}

/// The daemon is killed at any moment of its life, and what is around it changes.
fn lives(node: &mut Node, dice: &mut Dice) {
    let filler = node.path("state/filler");
    for kill in 0..KILLS {
        match dice.below(8) {
            0..=2 => node.write("policy.d/20-varying.toml", &varying(dice)),
            3 => {
                node.write("policy.d/30-bad.toml", "[[policy]]\nname = \"open\"\ninterfaces = \"all()\"\ncolour = 1\n")
            }
            4 => drop(std::fs::remove_file(node.path("policy.d/30-bad.toml"))),
            5 => sh(&format!("head -c 4M /dev/zero > {} 2>/dev/null || true", filler.display())).clear(),
            6 => drop(std::fs::remove_file(&filler)),
            _ => node.signal(Signal::SIGHUP),
        }
        std::thread::sleep(Duration::from_millis(dice.below(40)));
        node.kill();
        if kill % 25 == 24 {
            // Now and then it comes to its end, and the next one begins from there.
            let _ = std::fs::remove_file(node.path("policy.d/30-bad.toml"));
            let _ = std::fs::remove_file(&filler);
            node.run();
            node.until("in force", |code, _| code == 0);
        } else {
            node.start();
            std::thread::sleep(Duration::from_millis(dice.below(80)));
        }
    }
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended().code(), Some(0), "{}", node.log());
    node.run();
    node.until("in force", |code, _| code == 0);
}

/// Somebody else flushes and deletes our table, while the daemon is there and while it is not; from when to when it was away.
fn flushes(node: &mut Node, dice: &mut Dice) -> Vec<Span> {
    let (wanted, _) = loaded();
    let mut windows = Vec::new();
    for round in 0..FLUSHES + 10 {
        std::thread::sleep(Duration::from_millis(100 + dice.below(100)));
        let start = Instant::now();
        match round {
            0..FLUSHES => drop(sh("nft flush ruleset")),
            _ => drop(sh("nft delete table inet nodewall")),
        }
        until_repaired(node, &format!("flush {round}"), &wanted);
        windows.push((start, Instant::now()));
    }
    for _ in 0..3 {
        node.kill();
        let start = Instant::now();
        sh("nft flush ruleset");
        node.start();
        until_repaired(node, "a flush without a daemon", &wanted);
        windows.push((start, Instant::now()));
    }
    windows
}
