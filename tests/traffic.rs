//! The real daemon and what goes on: real connections and packets, found again in the store, in the journal's words and by who watches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::daemon::{Node, PATIENCE};
use lab::isolated;
use lab::net::{Answer, Host, Probe, What, probe, wire};
use nodewall::flow::store::{self, Reader};
use nodewall::host::cgroup;
use nodewall::net::interface::Direction;
use nodewall::traffic::{Record, Service};
use serde_json::Value;

const POLICY: &str = r#"
[[set]]
name = "clients"
cidrs = ["10.9.0.0/24", "fd09::/64"]

[[set]]
name = "storage"
cidrs = ["10.9.0.2", "fd09::2"]

[[policy]]
name = "watched"
order = 10
interfaces = "all()"
mode = "audit"
ingress = [{ action = "deny", protocol = "tcp", ports = [8081] }]

[[policy]]
name = "services"
order = 20
interfaces = "all()"
ingress = [
  { action = "allow", from = { sets = ["clients"] }, protocol = "tcp", ports = [8080, 8081] },
  { action = "reject", protocol = "udp", ports = [5000] },
  { action = "deny", protocol = "tcp", ports = [9000], log = "not here" },
]
egress = [
  { action = "allow", to = { sets = ["storage"] }, protocol = "tcp", ports = [2049] },
  { action = "deny", protocol = "tcp", ports = [2050] },
]
"#;

/// So many of each kind, of IPv4 and IPv6.
const EACH: usize = 36;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A control group of a unit's name, if there is a hierarchy that can be written.
struct Unit(PathBuf, String);

impl Unit {
    fn new() -> Option<Self> {
        let name = format!("nodewall-test-{}.service", std::process::id());
        let path = cgroup::find(Path::new("/"))?.join(&name);
        fs::create_dir(&path).ok()?;
        Some(Self(path, name))
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A node on a wire with a client, and a daemon with this policy and these settings.
fn running(policy: &str, settings: &str) -> (Node, Host, Host) {
    let (here, client) = (Host::this(), Host::new());
    wire((&here, "mgmt0", &["10.9.0.1/24", "fd09::1/64"]), (&client, "c0", &["10.9.0.2/24", "fd09::2/64"]));
    here.sh("ip route add default via 10.9.0.2");
    let mut node = Node::new(&[("10-services.toml", policy)]);
    node.write("nodewall.toml", &format!("{}{settings}", node.settings()));
    node.run();
    node.until("in force, and seen", |_, status| {
        let traffic = &status["traffic"];
        status["state"] == "in-force" && traffic["packets_error"].is_null() && traffic["accounting"] == true
    });
    (node, here, client)
}

fn records(node: &Node) -> Vec<Record> {
    let mut records = Vec::new();
    let Ok(reader) = Reader::open(&store::directory(&node.path("state"))) else { return records };
    reader
        .records(0, u64::MAX, &mut |record| {
            records.push(record);
            ControlFlow::Continue(())
        })
        .unwrap();
    records
}

/// What a record says without times, addresses of this host and numbers of packets.
fn said(record: &Record) -> (Direction, String, String, String, String, String) {
    let service = match record.key.service {
        Service::Port(port) => format!("{}/{port}", record.key.protocol.unwrap()),
        other => format!("{other:?}"),
    };
    let place = record.place.as_deref().unwrap_or_default();
    (
        record.key.direction,
        record.key.peer.unwrap().to_string(),
        service,
        record.key.verdict.name().to_owned(),
        record.key.decider.to_string(),
        place.rsplit('/').next().unwrap().to_owned(),
    )
}

/// Connections by what is said of them.
fn counted(records: &[Record]) -> BTreeMap<(Direction, String, String, String, String, String), u64> {
    let mut counted = BTreeMap::new();
    for record in records {
        *counted.entry(said(record)).or_default() += record.connections;
    }
    counted
}

#[test]
fn five_hundred_connections_are_all_found_with_peer_rule_and_process() {
    isolated("traffic", || {
        let (node, here, client) = running(POLICY, "[flows]\nwindow = \"1s\"\n");
        let Some(unit) = Unit::new() else {
            assert!(std::env::var_os("CI").is_none(), "a hierarchy of cgroup v2 that can be written is needed");
            println!("SKIPPED: no hierarchy of cgroup v2 that can be written");
            return;
        };
        let _servers = (here.serve(&[8080, 8081, 9000], &[5000]), client.serve(&[2049, 2050], &[]));
        let mut probes = Vec::new();
        let mut wanted: BTreeMap<(Direction, String, String, String, String, String), u64> = BTreeMap::new();
        let mut expect = |direction, peer: &str, service: &str, verdict: &str, rule: &str, line: u32| {
            let place = format!("10-services.toml:{line}");
            let said = (direction, peer.to_owned(), service.to_owned(), verdict.to_owned(), rule.to_owned(), place);
            wanted.insert(said, EACH as u64);
        };
        for (node, peer) in [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")] {
            let kinds = [What::Tcp(8080), What::Tcp(8081), What::Udp(5000), What::Tcp(9000)];
            for what in kinds {
                let probe = Probe { from: client.clone(), source: ip(peer), destination: ip(node), what };
                probes.extend(std::iter::repeat_n(probe, EACH));
            }
            expect(Direction::Ingress, peer, "tcp/8080", "allowed", "services#1", 22);
            expect(Direction::Ingress, peer, "tcp/8081", "allowed", "services#1", 22);
            expect(Direction::Ingress, peer, "tcp/8081", "would-deny", "watched#1", 15);
            expect(Direction::Ingress, peer, "udp/5000", "rejected", "services#2", 23);
            expect(Direction::Ingress, peer, "tcp/9000", "denied", "services#3", 24);
            expect(Direction::Egress, peer, "tcp/2049", "allowed", "services#1", 27);
            expect(Direction::Egress, peer, "tcp/2050", "denied", "services#2", 28);
        }
        // From this host, by a process in a control group of its own.
        let script = format!(
            "import socket, time
held = []
for peer in ('10.9.0.2', 'fd09::2'):
    for port in (2049, 2050):
        for _ in range({EACH}):
            one = socket.socket(socket.AF_INET6 if ':' in peer else socket.AF_INET)
            one.settimeout(0.01 if port == 2050 else 5)
            try: one.connect((peer, port))
            except OSError: pass
            # A connection that is over at once has nobody any more when it is looked at.
            held.append(one)
time.sleep(1)
"
        );
        let mut child = Command::new("sh")
            .args(["-c", &format!("echo $$ > {}/cgroup.procs; exec python3 -", unit.0.display())])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let answers = probe(&probes);
        assert!(child.wait().unwrap().success());
        let allowed = answers.iter().filter(|answer| **answer == Answer::Allowed).count();
        assert_eq!(allowed, EACH * 4, "{answers:?}");

        let deadline = Instant::now() + PATIENCE;
        let found = loop {
            let found = records(&node);
            let counted = counted(&found);
            if wanted.iter().all(|(said, number)| counted.get(said) == Some(number)) {
                break found;
            }
            assert!(Instant::now() < deadline, "wanted {wanted:#?}\nfound {counted:#?}\n{}", node.log());
            std::thread::sleep(Duration::from_millis(100));
        };
        let total: u64 = counted(&found).values().sum();
        assert_eq!(total, 14 * EACH as u64, "and nothing else: {:#?}", counted(&found));
        for record in &found {
            assert_eq!(record.key.interface.as_ref().unwrap().as_str(), "mgmt0", "{record:?}");
            let names: Vec<String> = record.names.iter().map(ToString::to_string).collect();
            assert_eq!(names, ["set:clients", "set:storage"], "{record:?}");
            assert_eq!(record.tier.as_deref(), Some("default"), "{record:?}");
            let ours = record.key.direction == Direction::Egress && record.connections > 0;
            if ours {
                let actors: Vec<_> = record.actors.iter().collect();
                assert_eq!(actors.len(), 1, "{record:?}");
                assert_eq!((actors[0].process.as_str(), actors[0].unit.as_deref()), ("python3", Some(&*unit.1)));
                assert_eq!(actors[0].user.as_deref(), Some("root"));
            }
        }
        // What the connections carried is known once they have ended; the kernel forgets closed ones after a while.
        let journal = node.log();
        for words in ["denied: tcp ", "rejected: udp ", "would deny: tcp ", "(10-services.toml:24), from set:clients"] {
            assert!(journal.contains(words), "{words} is not in:\n{journal}");
        }
        let (_, status) = node.status();
        assert_eq!(status["traffic"]["packets_lost"], 0, "{:#}", status["traffic"]);
        assert_eq!(status["traffic"]["connections_overruns"], 0, "{:#}", status["traffic"]);
    });
}

#[test]
fn who_watches_hears_of_each_event_at_once() {
    isolated("watching traffic", || {
        let (node, here, client) = running(POLICY, "[flows]\nstore = false\njournal = false\n");
        let _servers = here.serve(&[8080], &[]);
        let mut stream = UnixStream::connect(node.path("run/nodewall.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"{\"version\":1,\"request\":\"watch\"}\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut event = |from: &Host, what, wanted: [(&str, Value); 6]| {
            // The first may come before we are among those who watch.
            loop {
                probe(&[Probe { from: from.clone(), source: ip("10.9.0.2"), destination: ip("10.9.0.1"), what }]);
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                if let Some(Ok(line)) = lines.next() {
                    let line: Value = serde_json::from_str(&line).unwrap();
                    assert_eq!(line["version"], 1);
                    let event = &line["event"];
                    if wanted.iter().all(|(key, value)| event[key] == *value) {
                        return event.clone();
                    }
                    assert_ne!(event["verdict"], "unknown", "{line:#}");
                }
            }
        };
        let allowed = event(
            &client,
            What::Tcp(8080),
            [
                ("kind", "connection".into()),
                ("verdict", "allowed".into()),
                ("direction", "ingress".into()),
                ("rule", "services#1".into()),
                ("destination_port", 8080.into()),
                ("interface", "mgmt0".into()),
            ],
        );
        assert_eq!(allowed["names"], serde_json::json!(["set:clients", "set:storage"]));
        let denied = event(
            &client,
            What::Tcp(9000),
            [
                ("kind", "packet".into()),
                ("verdict", "denied".into()),
                ("direction", "ingress".into()),
                ("rule", "services#3".into()),
                ("destination_port", 9000.into()),
                ("text", "not here".into()),
            ],
        );
        assert_eq!(denied["length"], 60);
        assert!(denied["place"].as_str().unwrap().ends_with("10-services.toml:24"), "{denied:#}");
        assert!(!node.path("state/flows").exists(), "nothing is stored");
        assert!(!node.log().contains("denied: tcp"), "nothing is told to the journal");
    });
}

/// Sends datagrams that are denied, as fast as it goes, so many.
fn flood(from: &Host, source: IpAddr, to: std::net::SocketAddr, number: usize) {
    from.enter(|| {
        use nix::sys::socket::{AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockType, SockaddrStorage};
        use nix::sys::socket::{bind, sendmmsg, socket};
        use std::os::fd::AsRawFd;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(std::net::SocketAddr::new(source, 0))).unwrap();
        const BATCH: usize = 256;
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let slices: Vec<[std::io::IoSlice<'_>; 1]> = (0..BATCH).map(|_| [std::io::IoSlice::new(b"flood")]).collect();
        let to = vec![Some(SockaddrStorage::from(to)); BATCH];
        for _ in 0..number.div_ceil(BATCH) {
            // A full queue is as good.
            let _ = sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &to, [], MsgFlags::empty());
        }
    });
}

/// The resident memory of the daemon in KiB.
fn resident(status: &Value) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", status["pid"])).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_flood_changes_no_verdict_takes_little_memory_and_what_was_not_seen_is_counted() {
    isolated("flooded", || {
        // Everything is logged, so that the reader is flooded, too.
        let settings = "[log]\nrate = 100000\nburst = 100000\n[flows]\nwindow = \"1s\"\n";
        let (node, here, client) = running(POLICY, settings);
        let _servers = here.serve(&[8080, 9000], &[]);
        const DATAGRAMS: usize = 400_000;
        let to = std::net::SocketAddr::new(ip("10.9.0.1"), 7777);
        let most = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&client, ip("10.9.0.2"), to, DATAGRAMS));
            let mut most = 0;
            while !flooding.is_finished() {
                let probe_of =
                    |what| Probe { from: client.clone(), source: ip("10.9.0.2"), destination: to.ip(), what };
                let answers = probe(&[probe_of(What::Tcp(8080)), probe_of(What::Tcp(9000))]);
                assert_eq!(answers, [Answer::Allowed, Answer::Denied]);
                most = most.max(resident(&node.status().1));
            }
            most
        });
        assert!(most < 64 << 10, "{most} KiB");
        let counter = || {
            let table = here.sh("nft list table inet nodewall");
            let lines = table.lines().filter(|line| line.contains("default of mgmt ingress: deny\""));
            let packets = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
            lines.filter_map(packets).sum::<u64>()
        };
        // One more, by which the reader learns how many came before it.
        flood(&client, ip("10.9.0.2"), to, 1);
        let denied = counter();
        assert!(denied > DATAGRAMS as u64 / 2, "{denied} of {DATAGRAMS} datagrams arrived");
        let status = node.until("all that was logged is read or counted", |_, status| {
            let traffic = &status["traffic"];
            let number = |key: &str| traffic[key].as_u64().unwrap();
            number("packets") + number("packets_lost") >= denied.min(100_000)
        });
        println!("{denied} denied, {most} KiB; {:#}", status["traffic"]);
    });
}

#[test]
fn what_was_gathered_is_kept_when_the_daemon_ends() {
    isolated("last window", || {
        let (mut node, _here, client) = running(POLICY, "[flows]\nwindow = \"5m\"\n");
        let what = What::Tcp(9000);
        probe(&[Probe { from: client.clone(), source: ip("10.9.0.2"), destination: ip("10.9.0.1"), what }]);
        node.until("it was seen", |_, status| status["traffic"]["packets"].as_u64() > Some(0));
        assert_eq!(records(&node), Vec::new());
        node.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(node.ended().success());
        let found = records(&node);
        assert_eq!(found.iter().map(|record| record.key.service).collect::<Vec<_>>(), [Service::Port(9000)]);
    });
}
