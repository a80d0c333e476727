//! What seeing costs: the daemon's share of a core while connections and denied packets come at a steady pace, with everything that it
//! sees switched on, beside the same with everything off; and under a flood, with its memory and what a repair takes meanwhile.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::daemon::Node;
use lab::net::{Host, wire};
use nix::sys::socket::{AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage, sendmmsg, socket};
use nodewall::driver::{Kernel, Netlink};

/// New connections and denied packets a second.
const A_SECOND: u32 = 1000;
/// How long each is measured.
const TIME: Duration = Duration::from_secs(10);

const POLICY: &str = r#"
[[policy]]
name = "services"
order = 20
interfaces = "all()"
ingress = [
  { action = "allow", protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "udp", ports = [7777] },
]
"#;

const OFF: &str =
    "[log]\ndenied = false\n[flows]\nstore = false\nconnections = false\nprocesses = false\njournal = false\n";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// User and system time of a process so far.
fn spent(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    // utime and stime, in USER_HZ (proc_pid_stat(5)).
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn resident_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn pid(node: &Node) -> u32 {
    let status = node.until("in force", |_, status| status["state"] == "in-force");
    status["pid"].as_u64().unwrap().try_into().unwrap()
}

/// Connections and denied datagrams, so many of each a second.
fn steady(client: &Host) {
    let (tcp, udp) = (SocketAddr::new(address("10.9.0.1"), 8080), SocketAddr::new(address("10.9.0.1"), 7777));
    client.enter(|| {
        let begun = Instant::now();
        let sender = UdpSocket::bind("10.9.0.2:0").unwrap();
        let mut done = 0;
        while begun.elapsed() < TIME {
            let due = (begun.elapsed().as_secs_f64() * f64::from(A_SECOND)) as u32;
            while done < due {
                let mut stream = TcpStream::connect(tcp).unwrap();
                sender.send_to(b"denied", udp).unwrap();
                // The server closes first, so that it has the socket that waits.
                let _ = stream.read(&mut [0; 8]);
                done += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(f64::from(done) > 0.9 * TIME.as_secs_f64() * f64::from(A_SECOND), "{done} connections: too slow");
    });
}

/// Denied datagrams as fast as one thread sends them; how many.
fn flood(client: &Host, stop: &AtomicBool) -> u64 {
    const BATCH: usize = 256;
    client.enter(|| {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let slices: Vec<[std::io::IoSlice<'_>; 1]> = (0..BATCH).map(|_| [std::io::IoSlice::new(b"flood")]).collect();
        let to = vec![Some(SockaddrStorage::from(SocketAddr::new(address("10.9.0.1"), 7777))); BATCH];
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            use std::os::fd::AsRawFd;
            let done = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &to, [], MsgFlags::empty());
            sent += done.map_or(0, Iterator::count) as u64;
        }
        sent
    })
}

/// From somebody's flush of our table to the repair's transaction.
fn repair(kernel: &mut Netlink) -> Duration {
    let before = kernel.generation().unwrap();
    let begun = Instant::now();
    lab::sh("nft flush chain inet nodewall input");
    while kernel.generation().unwrap().wrapping_sub(before) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(10), "no repair");
        std::thread::sleep(Duration::from_micros(200));
    }
    begun.elapsed()
}

fn main() {
    lab::isolated("bench traffic", || {
        let (here, client) = (Host::this(), Host::new());
        wire((&here, "mgmt0", &["10.9.0.1/24"]), (&client, "c0", &["10.9.0.2/24"]));
        here.sh("ip route add default via 10.9.0.2");
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        std::thread::spawn(move || while listener.accept().is_ok() {});
        let mut shares = Vec::new();
        for (what, settings) in [("everything off", OFF), ("as shipped", "")] {
            let mut node = Node::new(&[("10-services.toml", POLICY)]);
            node.write("nodewall.toml", &format!("{}{settings}", node.settings()));
            node.run();
            let pid = pid(&node);
            std::thread::sleep(Duration::from_secs(1));
            let before = spent(pid);
            steady(&client);
            // What is gathered is written a window later.
            std::thread::sleep(Duration::from_secs(11));
            let share = (spent(pid) - before).as_secs_f64() / TIME.as_secs_f64() * 100.0;
            let memory = resident_kib(pid);
            println!("{A_SECOND} connections/s and {A_SECOND} denied/s, {what}: {share:.1} % of a core, {memory} KiB");
            let (_, status) = node.status();
            println!("  {}", status["traffic"]);
            shares.push(share);
        }
        println!("seeing costs {:.1} % of a core more than not seeing", shares[1] - shares[0]);

        let mut node = Node::new(&[("10-services.toml", POLICY)]);
        node.run();
        let pid = pid(&node);
        let mut kernel = Netlink::open().unwrap();
        let idle: Vec<Duration> = (0..10)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(500));
                repair(&mut kernel)
            })
            .collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&client, &stop));
            std::thread::sleep(Duration::from_secs(1));
            let (before, begun) = (spent(pid), Instant::now());
            std::thread::sleep(TIME);
            let share = (spent(pid) - before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
            let mut repairs: Vec<Duration> = (0..10)
                .map(|_| {
                    std::thread::sleep(Duration::from_millis(500));
                    repair(&mut kernel)
                })
                .collect();
            let seconds = begun.elapsed().as_secs_f64() + 1.0;
            stop.store(true, Ordering::Relaxed);
            let rate = flooding.join().unwrap() as f64 / seconds;
            repairs.sort();
            let mut idle = idle;
            idle.sort();
            println!(
                "flood of {rate:.0} denied packets/s: {share:.1} % of a core, {} KiB; repair after a flush: median {:?}, worst {:?} \
                 (without the flood: {:?}, {:?}; both with the start of nft)",
                resident_kib(pid),
                repairs[5],
                repairs[9],
                idle[5],
                idle[9]
            );
        });
        println!("  {}", node.status().1["traffic"]);
    });
}
