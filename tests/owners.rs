//! Who has a socket: real processes in control groups of their own, asked about by the ends of flows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::may_run;
use lab::net::{Host, wire};
use nodewall::host::cgroup;
use nodewall::host::owner::Owners;
use nodewall::net::protocol::Protocol;
use nodewall::traffic::Actor;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A directory of our own at the root of the machine's control groups; gone with the test, with what is in it.
struct Groups(PathBuf);

impl Groups {
    /// `None`, with a word, where there are none to write to.
    fn new(name: &str) -> Option<Self> {
        let path = cgroup::find(Path::new("/"))
            .map(|root| root.join(format!("nodewalltest{}{name}.slice", std::process::id())));
        let made = path.filter(|path| std::fs::create_dir(path).is_ok());
        if made.is_none() {
            assert!(std::env::var_os("CI").is_none(), "a hierarchy of cgroup v2 that can be written is needed");
            println!("SKIPPED {name}: no hierarchy of cgroup v2 that can be written");
        }
        made.map(Self)
    }

    fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        fn remove(path: &Path) {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            let _ = std::fs::remove_dir(path);
        }
        remove(&self.0);
    }
}

/// A process with one socket.
struct Process {
    child: Child,
    /// The port of its socket.
    port: u16,
}

/// What it does with it.
const SCRIPT: &str = r#"
use Socket qw(:all);
my ($group, $name, $what, $address, $port) = @ARGV;
open(my $procs, '>', "$group/cgroup.procs") or die $!;
print $procs $$;
close($procs) or die $!;
$0 = $name;
$| = 1;
my $v6 = $address =~ /:/;
my $end = $v6 ? pack_sockaddr_in6($port, inet_pton(AF_INET6, $address)) : pack_sockaddr_in($port, inet_aton($address));
my $stream = $what =~ /tcp/;
socket(my $socket, $v6 ? AF_INET6 : AF_INET, $stream ? SOCK_STREAM : SOCK_DGRAM, 0) or die $!;
if ($what =~ /connect/) { connect($socket, $end) or die $! } else { bind($socket, $end) or die $! }
listen($socket, 64) or die $! if $what eq 'tcp';
my $own = getsockname($socket);
my ($number) = $v6 ? unpack_sockaddr_in6($own) : unpack_sockaddr_in($own);
print "$number\n";
my @accepted;
while ($what eq 'tcp') { accept(my $peer, $socket) or die $!; push @accepted, $peer; print "accepted\n"; }
sleep 600;
"#;

impl Process {
    /// In this control group, by this name: `what` is "tcp" and "udp" for those that wait, "tcp connect" and "udp connect".
    fn new(host: &Host, group: &Path, name: &str, what: &str, address: &str, port: u16) -> Self {
        let mut command = Command::new("perl");
        command.args(["-e", SCRIPT]).arg(group).args([name, what, address, &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = host.enter(move || command.spawn()).expect("perl starts");
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{name}: {line}"));
        Self { child, port }
    }

    /// Waits until it has accepted a connection.
    fn accepted(&mut self) {
        let mut line = String::new();
        BufReader::with_capacity(1, self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "accepted\n");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn actor(process: &str, unit: &str) -> Option<Actor> {
    let user = Some("root".to_owned());
    Some(Actor { process: process.to_owned(), unit: Some(unit.to_owned()), pod: None, user })
}

const V4: [&str; 2] = ["10.1.0.1", "10.1.0.2"];
const V6: [&str; 2] = ["fd01::1", "fd01::2"];

/// A node and a client with a wire between.
fn hosts() -> (Host, Host) {
    let (node, client) = (Host::new(), Host::new());
    wire((&node, "n0", &["10.1.0.1/24", "fd01::1/64"]), (&client, "c0", &["10.1.0.2/24", "fd01::2/64"]));
    (node, client)
}

#[test]
fn whoever_listens_has_connected_or_was_connected_to_is_named_with_its_unit() {
    if !may_run("owners") {
        return;
    }
    let Some(groups) = Groups::new("a") else { return };
    let (node, client) = hosts();
    let [server, resolver, worker] =
        ["server.service", "resolver.service", "worker.service"].map(|unit| groups.make(unit));
    // One socket of IPv6 for both families.
    let mut tcp = Process::new(&node, &server, "nw-server", "tcp", "::", 0);
    let udp = Process::new(&node, &resolver, "nw-resolver", "udp", "::", 0);
    let only_v4 = Process::new(&node, &server, "nw-server", "tcp", "10.1.0.1", 0);
    let there = groups.make("there.service");
    let mut owners = node.enter(|| Owners::open(Path::new("/"))).unwrap();
    for [here, far] in [V4, V6] {
        let (here_ip, far_ip) = (ip(here), ip(far));
        let listening = actor("nw-server", "server.service");
        let mut of = |protocol, port, far_port| owners.of_flow(protocol, (here_ip, port), (far_ip, far_port));
        // A packet that is denied, or the first of a connection.
        assert_eq!(of(Protocol::TCP, tcp.port, 40_000), listening, "{here}");
        assert_eq!(of(Protocol::UDP, udp.port, 40_000), actor("nw-resolver", "resolver.service"), "{here}");
        assert_eq!(of(Protocol::TCP, only_v4.port, 40_000).is_some(), here_ip.is_ipv4());
        // Nobody is there, or nobody can tell.
        for (protocol, port) in [(Protocol::TCP, 9), (Protocol::UDP, 9), (Protocol::UDP, tcp.port), (Protocol::ICMP, 0)]
        {
            assert_eq!(of(protocol, port, 40_000), None, "{protocol} {port}");
        }
        // A connection from elsewhere.
        let stream = client.enter(|| TcpStream::connect(SocketAddr::new(here_ip, tcp.port))).unwrap();
        tcp.accepted();
        let port = stream.local_addr().unwrap().port();
        assert_eq!(of(Protocol::TCP, tcp.port, port), listening, "{here}");

        // Connections from here.
        let answers = Process::new(&client, &there, "nw-there", "tcp", far, 0);
        let out = Process::new(&node, &worker, "nw-worker", "tcp connect", far, answers.port);
        assert_eq!(of(Protocol::TCP, out.port, answers.port), actor("nw-worker", "worker.service"), "{here}");
        let out = Process::new(&node, &worker, "nw-worker", "udp connect", far, 53);
        assert_eq!(of(Protocol::UDP, out.port, 53), actor("nw-worker", "worker.service"), "{here}");
        assert_eq!(of(Protocol::UDP, out.port, 54), None, "it takes packets from its peer only");
    }
    let mapped = |text: &str| IpAddr::V6(format!("::ffff:{text}").parse().unwrap());
    let found = owners.of_flow(Protocol::TCP, (mapped(V4[0]), tcp.port), (mapped(V4[1]), 40_000));
    assert_eq!(found, actor("nw-server", "server.service"));
}

#[test]
fn among_processes_of_a_unit_the_one_with_the_socket_is_found_and_remembered() {
    if !may_run("owners in one unit") {
        return;
    }
    let Some(groups) = Groups::new("b") else { return };
    let (node, client) = hosts();
    let unit = groups.make("mixed.service");
    let there = groups.make("there.service");
    let mut one = Process::new(&node, &unit, "nw-one", "tcp", "::", 0);
    let other = Process::new(&node, &unit, "nw-other", "tcp", "::", 0);
    let answers = Process::new(&client, &there, "nw-there", "tcp", V4[1], 0);
    let out = Process::new(&node, &unit, "nw-out", "tcp connect", V4[1], answers.port);
    let mut owners = node.enter(|| Owners::open(Path::new("/"))).unwrap();
    let stream = client.enter(|| TcpStream::connect((ip(V4[0]), one.port))).unwrap();
    one.accepted();
    let from = stream.local_addr().unwrap().port();
    let now = Instant::now();
    let mut at = |seconds, port, far| {
        let now = now + Duration::from_secs(seconds);
        owners.of_flow_at(now, Protocol::TCP, (ip(V4[0]), port), (ip(V4[1]), far))
    };
    assert_eq!(at(0, one.port, from), actor("nw-one", "mixed.service"), "by who listens");
    assert_eq!(at(0, other.port, 5), actor("nw-other", "mixed.service"));
    assert_eq!(at(0, out.port, answers.port), actor("nw-out", "mixed.service"));
    // Over, and another one in its place: of what is remembered, nothing is for another socket.
    let port = other.port;
    drop(other);
    assert_eq!(at(0, port, 5), None);
    let again = Process::new(&node, &unit, "nw-again", "tcp", "::", port);
    assert_eq!(at(2, port, 5), actor("nw-again", "mixed.service"));
    drop(again);

    // A control group that comes later is found a second later.
    let later = groups.make("later.service");
    let late = Process::new(&node, &later, "nw-late", "udp", "::", 0);
    let mut late_at = |seconds| {
        let now = now + Duration::from_secs(seconds);
        owners.of_flow_at(now, Protocol::UDP, (ip(V6[0]), late.port), (ip(V6[1]), 5))
    };
    assert_eq!(late_at(3), actor("nw-late", "later.service"));
}

#[test]
fn a_pod_on_the_hosts_network_is_named_and_a_look_up_is_cheap() {
    if !may_run("owners in pods") {
        return;
    }
    let Some(groups) = Groups::new("c") else { return };
    let (node, _client) = hosts();
    let uid = "01234567-89ab-cdef-0123-456789abcdef";
    let container = "0123456789abcdef".repeat(4);
    let slice = format!("kubepods-burstable-pod{}.slice/cri-containerd-{container}.scope", uid.replace('-', "_"));
    let server = Process::new(&node, &groups.make(&slice), "nw-exporter", "tcp", "::", 0);
    let mut owners = node.enter(|| Owners::open(Path::new("/"))).unwrap();
    let mut ask = || owners.of_flow(Protocol::TCP, (ip(V4[0]), server.port), (ip(V4[1]), 40_000));
    let wanted =
        Actor { process: "nw-exporter".into(), unit: None, pod: Some(uid.to_owned()), user: Some("root".to_owned()) };
    assert_eq!(ask(), Some(wanted.clone()));
    let (start, count) = (Instant::now(), 5000);
    for _ in 0..count {
        assert_eq!(ask().as_ref(), Some(&wanted));
    }
    println!("a look-up takes {:.1} microseconds", start.elapsed().as_secs_f64() * 1e6 / f64::from(count));
}
