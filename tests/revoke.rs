//! Flows that a new policy denies end, and no others: real connections between namespaces, and tables full of entries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::conntrack::{inject, plain};
use lab::net::{Host, wire};
use lab::{isolated, may_run, sh};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use nodewall::config::Config;
use nodewall::driver::Conntrack;
use nodewall::host;
use nodewall::net::facts::{Facts, Link};
use nodewall::net::flow::{Detail, Flow, Tuple};
use nodewall::net::interface::InterfaceName;
use nodewall::net::protocol::Protocol;
use nodewall::policy::model::Mode;
use nodewall::policy::resolve::resolve;
use nodewall::revoke::{Judge, Revocation};
use nodewall::source;
use nodewall::text::finding::Severity;

/// What this policy ends on the machine of this thread's namespace.
fn revocation(policy: &str, mode: Mode) -> Revocation {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    revocation_on(&runtime.block_on(host::collect(Path::new("/"))).unwrap(), policy, mode)
}

fn revocation_on(facts: &Facts, policy: &str, mode: Mode) -> Revocation {
    let mut settings = Config::shipped().settings;
    settings.mode = mode;
    let sourced = source::decode_text("policy.toml", policy);
    let (effective, resolved) = resolve(&sourced.policy, &settings, facts);
    let errors: Vec<_> =
        sourced.findings.iter().chain(&resolved).filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    Revocation::new(Arc::new(effective), facts)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The original tuples of the entries there are.
fn entries() -> BTreeSet<(Tuple, u16)> {
    Conntrack::open().unwrap().flows(&mut |_| true).unwrap().iter().map(|flow| (flow.original, flow.zone)).collect()
}

/// A management link with the default route, a rail without, and a bridge for pods.
fn node() {
    sh("ip link add mgmt0 type veth peer name mgmt0p; ip link set mgmt0 up; ip link set mgmt0p up
        ip addr add 10.77.0.2/24 dev mgmt0; ip addr add fd77::2/64 dev mgmt0 nodad
        ip route add default via 10.77.0.1; ip -6 route add default via fd77::1
        ip link add rail0 type veth peer name rail0p; ip link set rail0 up; ip link set rail0p up
        ip addr add 10.88.0.2/24 dev rail0; ip route add 10.90.0.0/16 via 10.88.0.1
        ip link add cali1 type veth peer name cali1p; ip link set cali1 up; ip link set cali1p up
        ip route add 10.244.1.7/32 dev cali1");
}

const SERVICE: &str = r#"
[[interface]]
name = "rails"
match = { name = "rail*" }
role = "rail"
[[interface]]
name = "pods"
match = { name = "cali*" }
role = "pod"
[[policy]]
name = "service"
order = 1
interfaces = "role == 'mgmt'"
ingress = [
  { action = "allow", from = { cidrs = ["10.1.0.0/16", "fd01::/16"] }, protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "tcp", ports = [8080] },
  { action = "allow", icmp = { type = "echo-request" }, from = { cidrs = ["10.1.0.0/16"] } },
]
egress = [ { action = "reject", to = { cidrs = ["10.3.0.0/16"] } } ]
[[policy]]
name = "rails"
order = 2
interfaces = "role == 'rail'"
ingress = [ { action = "allow" } ]
"#;

#[test]
fn exactly_the_denied_half_of_50000_flows_ends() {
    isolated("half", || {
        node();
        let here = ip("10.77.0.2");
        let client = |second: u8, index: u32| IpAddr::from([10, second, (index >> 8) as u8, index as u8]);
        let (mut stay, mut end) = (Vec::new(), Vec::new());
        for index in 0..25_000 {
            stay.push(plain(Protocol::TCP, client(1, index), 40_000, here, 8080));
            end.push(plain(Protocol::TCP, client(2, index), 40_000, here, 8080));
        }
        inject(&stay);
        inject(&end);
        let before = entries();
        assert_eq!(before.len(), 50_000);

        let mut conntrack = Conntrack::open().unwrap();
        let audit = revocation(SERVICE, Mode::Audit);
        assert_eq!(conntrack.revoke(&audit, &mut |_| true).unwrap().ended, 0);
        let revocation = revocation(SERVICE, Mode::Enforce);
        assert!(conntrack.revoke(&revocation, &mut |_| false).unwrap().stopped);
        assert_eq!(entries(), before, "neither in audit mode nor when something newer is in force");

        let start = Instant::now();
        let revoked = conntrack.revoke(&revocation, &mut |_| true).unwrap();
        println!("{revoked:?} in {:?}", start.elapsed());
        assert_eq!((revoked.judged, revoked.ended), (50_000, 25_000));
        assert_eq!(entries(), stay.iter().map(|(original, _, zone)| (*original, *zone)).collect());
        assert_eq!(conntrack.revoke(&revocation, &mut |_| true).unwrap().ended, 0, "there is nothing left to end");
    });
}

#[test]
fn only_flows_that_are_denied_wherever_they_can_be_end() {
    isolated("kinds", || {
        node();
        let mgmt = ip("10.77.0.2");
        let (tcp, udp, sctp) = (Protocol::TCP, Protocol::UDP, Protocol(132));
        let (there, far) = (ip("10.1.0.9"), ip("10.2.0.9"));
        let echo = |protocol, kind, code| Detail::Icmp { kind, code, id: protocol };
        let ping = |source: IpAddr, destination: IpAddr| {
            let there = Tuple { source, destination, protocol: Protocol::ICMP, detail: echo(9, 8, 0) };
            let back =
                Tuple { source: destination, destination: source, protocol: Protocol::ICMP, detail: echo(9, 0, 0) };
            (there, back, 0)
        };
        let echo6 = |source: IpAddr, destination: IpAddr| {
            let icmp = |source, destination, kind| Tuple {
                source,
                destination,
                protocol: Protocol::ICMPV6,
                detail: echo(9, kind, 0),
            };
            (icmp(source, destination, 128), icmp(destination, source, 129), 0)
        };
        // To a cluster address, which is translated to an endpoint; the endpoint answers to `seen`.
        let service = |source: IpAddr, port: u16, endpoint: &str, seen: IpAddr| {
            let (original, _, zone) = plain(tcp, source, port, ip("10.96.0.9"), 443);
            let (back, _, _) = plain(tcp, ip(endpoint), 8080, seen, port);
            (original, back, zone)
        };
        let translated = |dport: u16, real: &str, real_port: u16| {
            let (original, _, zone) = plain(tcp, far, 41_000, mgmt, dport);
            let (back, _, _) = plain(tcp, ip(real), real_port, far, 41_000);
            (original, back, zone)
        };
        let end = [
            plain(tcp, far, 1, mgmt, 8080),
            plain(tcp, ip("fd02::9"), 1, ip("fd77::2"), 8080),
            // No policy allows it, and management denies by default.
            plain(udp, there, 1, mgmt, 9999),
            ping(far, mgmt),
            // From here, by what the egress rules say.
            plain(tcp, mgmt, 40_001, ip("10.3.0.9"), 443),
            // A port that is translated to one of ours that is denied.
            translated(30_080, "10.77.0.2", 8080),
            // A neighbour on the management network.
            plain(tcp, ip("10.77.0.3"), 1, mgmt, 8080),
            // Other protocols, which nothing allows.
            plain(sctp, far, 1, mgmt, 3868),
            echo6(ip("fd02::9"), ip("fd77::2")),
            // From here to a service whose endpoint is where nothing may go.
            service(mgmt, 40_003, "10.3.0.9", mgmt),
        ];
        let (mut other_zone, nobody) = (plain(tcp, far, 2, mgmt, 8080), ip("192.0.2.1"));
        other_zone.2 = 7;
        let stay = [
            plain(tcp, there, 1, mgmt, 8080),
            plain(tcp, ip("fd01::9"), 1, ip("fd77::2"), 8080),
            ping(there, mgmt),
            // SSH is failsafe.
            plain(tcp, far, 1, mgmt, 22),
            plain(tcp, mgmt, 40_002, far, 443),
            // The rail allows everything: its address, its network, and what is behind its gateway.
            plain(tcp, ip("10.88.0.3"), 1, ip("10.88.0.2"), 8080),
            plain(tcp, ip("10.88.0.3"), 1, mgmt, 8080),
            plain(tcp, ip("10.90.0.3"), 1, mgmt, 8080),
            // So does a pod's link, which has no address at all.
            plain(tcp, ip("10.244.1.7"), 1, mgmt, 8080),
            // Not ours: forwarded, and translated to a pod.
            plain(tcp, far, 1, nobody, 8080),
            translated(30_081, "10.244.1.7", 8080),
            // The same with the answers by way of this host (kube-proxy masquerades), and a pod's way out behind our address.
            service(far, 41_001, "10.244.1.7", mgmt),
            service(ip("10.244.1.7"), 41_002, "192.0.2.7", mgmt),
            // A pod's way to the API server on this host, and this host's to a pod.
            service(ip("10.244.1.7"), 41_003, "10.77.0.2", ip("10.244.1.7")),
            service(mgmt, 41_004, "10.244.1.7", mgmt),
            plain(sctp, ip("10.244.1.7"), 1, ip("10.244.1.8"), 3868),
            // To ourselves.
            plain(tcp, mgmt, 1, mgmt, 8080),
            plain(tcp, ip("127.0.0.1"), 1, mgmt, 8080),
            plain(tcp, ip("127.0.0.1"), 1, ip("127.0.0.9"), 8080),
            other_zone,
        ];
        inject(&end);
        inject(&stay);
        let mut conntrack = Conntrack::open().unwrap();
        let revocation = revocation(SERVICE, Mode::Enforce);
        let (denied, seen) = conntrack.denied(&revocation).unwrap();
        assert_eq!(seen, end.len() + stay.len());
        let denied: BTreeSet<_> = denied.iter().map(|flow| (flow.original, flow.zone)).collect();
        let wanted: BTreeSet<_> = end.iter().map(|(original, _, zone)| (*original, *zone)).collect();
        assert_eq!(denied, wanted);
        conntrack.revoke(&revocation, &mut |_| true).unwrap();
        assert_eq!(entries(), stay.iter().map(|(original, _, zone)| (*original, *zone)).collect());
    });
}

#[test]
fn a_flow_that_took_the_place_of_another_is_left_alone() {
    isolated("reused", || {
        let flow = plain(Protocol::UDP, ip("10.2.0.9"), 1, ip("10.77.0.2"), 53);
        inject(&[flow]);
        let mut conntrack = Conntrack::open().unwrap();
        let old: Vec<Flow> = conntrack.flows(&mut |_| true).unwrap();
        assert_eq!(conntrack.end(&old).unwrap(), 1);
        assert_eq!(conntrack.end(&old).unwrap(), 0, "it is gone");
        inject(&[flow]);
        let other = Flow { id: old[0].id ^ 1, ..old[0].clone() };
        assert_eq!(conntrack.end(&[other]).unwrap(), 0, "another id is another flow");
        assert_eq!(entries().len(), 1);
        // The same addresses and ports, now translated to a pod: not a flow of this host any more.
        let old = conntrack.flows(&mut |_| true).unwrap();
        assert_eq!(conntrack.end(&old).unwrap(), 1);
        let (_, back, _) = plain(Protocol::UDP, ip("10.2.0.9"), 1, ip("10.244.1.7"), 53);
        inject(&[(flow.0, back, 0)]);
        assert_eq!(conntrack.end(&old).unwrap(), 0);
        assert_eq!(entries().len(), 1);
        // Of many, those that are gone are counted as such, and the rest ends.
        let many: Vec<_> =
            (0..200).map(|port| plain(Protocol::UDP, ip("10.2.0.9"), port, ip("10.77.0.2"), 99)).collect();
        inject(&many);
        let all = conntrack.flows(&mut |flow| flow.original.ports().unwrap().1 == 99).unwrap();
        let third: Vec<Flow> = all.iter().step_by(3).cloned().collect();
        assert_eq!(conntrack.end(&third).unwrap(), third.len());
        assert_eq!(conntrack.end(&all).unwrap(), all.len() - third.len());
    });
}

/// So many flows that a policy denies, and as many that it allows.
fn both_kinds(count: u32) -> (Vec<lab::conntrack::Entry>, Vec<lab::conntrack::Entry>) {
    let client = |second: u8, index: u32| IpAddr::from([10, second, (index >> 8) as u8, index as u8]);
    let flows = |second: u8| {
        (0..count).map(|index| plain(Protocol::TCP, client(second, index), 40_000, ip("10.77.0.2"), 8080)).collect()
    };
    (flows(1), flows(2))
}

#[test]
fn the_work_says_how_far_it_is_and_stops_when_it_is_told_to() {
    isolated("progress", || {
        node();
        let (stay, end) = both_kinds(2000);
        inject(&stay);
        inject(&end);
        let mut conntrack = Conntrack::open().unwrap();
        let revocation = revocation(SERVICE, Mode::Enforce);
        let mut told = Vec::new();
        let stopped = conntrack
            .revoke(&revocation, &mut |revoked| {
                told.push(*revoked);
                revoked.ended < 300
            })
            .unwrap();
        assert!(stopped.stopped && (300..400).contains(&stopped.ended), "{stopped:?}");
        assert_eq!((stopped.judged, stopped.denied, stopped.left()), (4000, 2000, 2000 - stopped.ended));
        assert!(told.windows(2).all(|pair| pair[0].judged <= pair[1].judged && pair[0].ended <= pair[1].ended));
        assert!(told.len() > 4000 / 64, "asked {} times", told.len());
        let there = entries();
        assert_eq!(there.len(), 4000 - stopped.ended);
        assert!(
            stay.iter().all(|(original, _, zone)| there.contains(&(*original, *zone))),
            "what stays is not touched"
        );
        // While it judges, too.
        let stopped = conntrack.revoke(&revocation, &mut |revoked| revoked.judged < 500).unwrap();
        assert!(stopped.stopped && stopped.ended == 0 && (500..600).contains(&stopped.judged), "{stopped:?}");
        // In rounds of a hundred it comes to the same.
        let mut conntrack = conntrack.remembering(100);
        let left = there.len() - stay.len();
        let revoked = conntrack.revoke(&revocation, &mut |_| true).unwrap();
        assert_eq!((revoked.ended, revoked.left(), revoked.judged), (left, 0, there.len()));
        assert_eq!(entries(), stay.iter().map(|(original, _, zone)| (*original, *zone)).collect());
    });
}

#[test]
fn what_only_a_policy_in_audit_mode_denies_goes_on() {
    isolated("audit", || {
        node();
        let (allowed, denied) = both_kinds(10);
        inject(&allowed);
        inject(&denied);
        let before = entries();
        let audited = SERVICE.replace("name = \"service\"\n", "name = \"service\"\nmode = \"audit\"\n");
        assert!(audited.contains("audit"));
        let open = format!(
            "{audited}[[policy]]\nname = \"open\"\norder = 9\ninterfaces = \"all()\"\ningress = [{{ action = \"allow\" }}]\n"
        );
        let mut conntrack = Conntrack::open().unwrap();
        let revoked = conntrack.revoke(&revocation(&open, Mode::Enforce), &mut |_| true).unwrap();
        assert_eq!((revoked.judged, revoked.denied), (20, 0));
        assert_eq!(entries(), before);
    });
}

#[test]
fn flows_in_a_zone_of_one_direction_are_somebody_elses() {
    if !may_run("flows_in_a_zone_of_one_direction_are_somebody_elses") {
        return;
    }
    let (node, peer) = (Host::new(), Host::new());
    wire((&node, "mgmt0", &["10.77.0.2/24"]), (&peer, "eth0", &["10.77.0.3/24"]));
    node.sh("ip route add default via 10.77.0.3");
    node.sh("nft 'add table ip t; add chain ip t c { type filter hook prerouting priority -300; }; \
         add rule ip t c udp dport 5001 ct original zone set 7; add rule ip t c udp dport 5002 ct reply zone set 8; \
         add chain ip t i { type filter hook input priority 0; }; add rule ip t i ct state new counter'");
    let server = node.enter(|| [5001, 5002, 5003].map(|port| std::net::UdpSocket::bind(("10.77.0.2", port)).unwrap()));
    peer.enter(|| {
        let client = std::net::UdpSocket::bind("10.77.0.3:0").unwrap();
        for port in [5001, 5002, 5003] {
            client.send_to(b"x", ("10.77.0.2", port)).unwrap();
        }
    });
    for socket in &server {
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.recv(&mut [0]).unwrap();
    }
    node.enter(|| {
        let zones: BTreeSet<(u16, u16)> =
            entries().iter().map(|(tuple, zone)| (tuple.ports().unwrap().1, *zone)).collect();
        assert_eq!(zones, [(5001, 7), (5002, 8), (5003, 0)].into());
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.revoke(&revocation("", Mode::Enforce), &mut |_| true).unwrap().ended, 1);
        assert_eq!(entries().len(), 2);
    });
}

/// The daemon on a host, with its files in a temporary directory.
struct Daemon<'a> {
    host: &'a Host,
    folder: tempfile::TempDir,
    child: std::process::Child,
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Daemon<'a> {
    fn start(host: &'a Host, policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("policy.d")).unwrap();
        std::fs::write(at("policy.d/10.toml"), policy).unwrap();
        let settings =
            format!("socket = \"{}\"\nstate_directory = \"{}\"\n", at("socket").display(), at("state").display());
        std::fs::write(at("nodewall.toml"), settings).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let child = host.enter(|| {
            let mut command = command(folder.path(), &["run"]);
            command.stderr(std::process::Stdio::from(log)).spawn().unwrap()
        });
        let daemon = Self { host, folder, child };
        daemon.until("in force", |status| status["state"] == "in-force");
        daemon
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn nodewall(&self, arguments: &[&str]) -> String {
        let output = self.host.enter(|| command(self.folder.path(), arguments).output()).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn until(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let status = serde_json::from_str(&self.nodewall(&["status", "--json"])).unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come: {status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.arg("--config").arg(folder.join("nodewall.toml")).arg("--policy-dir").arg(folder.join("policy.d"));
    command.args(arguments);
    command
}

/// A policy for port 8080.
fn port_8080(action: &str) -> String {
    format!(
        "[[policy]]\nname = \"service\"\norder = 1\ninterfaces = \"all()\"\ningress = [{{ action = \"{action}\", protocol = \"tcp\", ports = [8080] }}]\n"
    )
}

#[test]
fn what_a_trial_let_in_ends_with_it_and_what_came_in_through_a_flush_ends_with_the_repair() {
    if !may_run("what_a_trial_let_in_ends_with_it") {
        return;
    }
    let (node, peer) = (Host::new(), Host::new());
    wire((&node, "mgmt0", &["10.77.0.2/24"]), (&peer, "eth0", &["10.77.0.3/24"]));
    node.sh("ip route add default via 10.77.0.3");
    let listener = node.enter(|| TcpListener::bind("10.77.0.2:8080").unwrap());
    let ssh = node.enter(|| TcpListener::bind("10.77.0.2:22").unwrap());
    let accepted = |client: &TcpStream, listener: &TcpListener| {
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        talks(client, &server).unwrap();
        server
    };
    // Others have connections tracked, too: without any such rule the kernel does not.
    node.sh(
        "nft 'add table ip t; add chain ip t c { type filter hook input priority 5; }; add rule ip t c ct state new'",
    );
    let daemon = Daemon::start(&node, &port_8080("deny"));
    let kept = connection(&peer, "10.77.0.3", "10.77.0.2:22");
    let kept_server = accepted(&kept, &ssh);

    let trial = daemon.folder.path().join("trial.toml");
    std::fs::write(&trial, port_8080("allow")).unwrap();
    let said = daemon.nodewall(&["apply", "--confirm", "3s", trial.to_str().unwrap()]);
    assert!(said.contains("unconfirmed"), "{said}{}", daemon.log());
    let tried = connection(&peer, "10.77.0.3", "10.77.0.2:8080");
    let tried_server = accepted(&tried, &listener);
    daemon.until("the end of the trial", |status| status["confirm_until"].is_null() && status["generation"] == 1);
    let status = daemon.until("the end of its flows", |status| status["revocation"]["ended"] == 1);
    assert_eq!((&status["revocation"]["running"], &status["revocation"]["left"]), (&false.into(), &0.into()));
    assert_eq!(talks(&tried_server, &tried), Err(ErrorKind::ConnectionAborted));
    assert_eq!(talks(&tried, &tried_server), Err(ErrorKind::ConnectionReset));
    talks(&kept, &kept_server).expect("failsafe goes on");

    // While the daemon cannot repair, somebody gets in.
    let pid = nix::unistd::Pid::from_raw(daemon.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    node.sh("nft delete table inet nodewall");
    let crept_in = connection(&peer, "10.77.0.3", "10.77.0.2:8080");
    let crept_in_server = accepted(&crept_in, &listener);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    daemon.until("the repair", |status| status["drift_events"] == 1);
    daemon.until("the end of what crept in", |_| daemon.log().matches("ended 1 of 2 flows").count() == 2);
    assert_eq!(talks(&crept_in_server, &crept_in), Err(ErrorKind::ConnectionAborted));
    talks(&kept, &kept_server).expect("failsafe goes on");
}

/// A connection from one of a host's addresses.
fn connection(host: &Host, source: &str, to: &str) -> TcpStream {
    let (source, to) = (SocketAddr::new(ip(source), 0), to.parse::<SocketAddr>().unwrap());
    host.enter(|| {
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(source)).unwrap();
        connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(to)).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream
    })
}

/// Says something and hears it at the other end.
fn talks(mut from: &TcpStream, mut to: &TcpStream) -> Result<(), ErrorKind> {
    from.write_all(b"x").map_err(|error| error.kind())?;
    let mut heard = [0];
    to.read_exact(&mut heard).map_err(|error| error.kind())
}

#[test]
fn a_connection_that_the_new_policy_denies_is_cut_and_another_goes_on() {
    if !may_run("a_connection_that_the_new_policy_denies_is_cut_and_another_goes_on") {
        return;
    }
    let (node, peer) = (Host::new(), Host::new());
    wire((&node, "mgmt0", &["10.77.0.2/24", "fd77::2/64"]), (&peer, "eth0", &["10.77.0.3/24", "10.77.0.4/24"]));
    node.sh("ip route add default via 10.77.0.3");
    let folder = tempfile::tempdir().unwrap();
    let run = |text: &str, settings: &str, more: &[&str]| {
        let config = folder.path().join("nodewall.toml");
        std::fs::write(&config, settings).unwrap();
        let file = folder.path().join("policy.toml");
        std::fs::write(
            &file,
            format!("[[policy]]\nname = \"service\"\norder = 1\ninterfaces = \"all()\"\ningress = [{text}]\n"),
        )
        .unwrap();
        let output = node.enter(|| {
            Command::new(env!("CARGO_BIN_EXE_nodewall"))
                .arg("--config")
                .arg(&config)
                .arg("apply")
                .arg(&file)
                .args(more)
                .output()
        });
        let output = output.unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap().matches("nodewall: ").count(), 0);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let policy = |text: &str, settings: &str| {
        let (code, said) = run(text, settings, &[]);
        assert_eq!(code, 0, "{said}");
        said
    };
    let anyone = r#"{ action = "allow", protocol = "tcp", ports = [8080, 8081] }"#;
    let one = r#"{ action = "allow", protocol = "tcp", ports = [8080], from = { cidrs = ["10.77.0.4"] } }"#;
    policy(anyone, "");
    // One server for IPv4 alone, and one for both families, whose sockets show IPv4 by mapped addresses.
    let listeners = node.enter(|| ["0.0.0.0:8080", "[::]:8081"].map(|end| TcpListener::bind(end).unwrap()));
    let accepted = |client: &TcpStream, listener: &TcpListener| {
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        talks(client, &server).unwrap();
        talks(&server, client).unwrap();
        server
    };
    let denied = connection(&peer, "10.77.0.3", "10.77.0.2:8080");
    let denied_server = accepted(&denied, &listeners[0]);
    let both = connection(&peer, "10.77.0.4", "10.77.0.2:8081");
    let both_server = accepted(&both, &listeners[1]);
    let allowed = connection(&peer, "10.77.0.4", "10.77.0.2:8080");
    let allowed_server = accepted(&allowed, &listeners[0]);
    let tracked = || node.enter(|| entries().len());
    assert_eq!(tracked(), 3);

    policy(one, "[conntrack]\nrevoke = false\n");
    talks(&denied, &denied_server).expect("not unless it is wanted");
    policy(anyone, "");
    policy(one, "mode = \"audit\"\n");
    talks(&denied, &denied_server).expect("nor in audit mode");
    policy(anyone, "");
    let (code, said) = run(one, "", &["--dry-run"]);
    assert!(code == 1 && said.ends_with(" changes; 2 live flows would end\n"), "{said}");
    assert!(said.contains("+ rule service#1 "), "{said}");
    let (code, said) = run(one, "[conntrack]\nrevoke = false\n", &["--dry-run", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["flows_ended"]), (1, &0.into()));
    talks(&denied, &denied_server).expect("a dry run ends nothing");
    assert_eq!(run(anyone, "", &["--dry-run"]), (0, "already in force: nothing would change\n".to_owned()));
    let said = policy(one, "");
    assert!(said.ends_with("2 flows ended\n"), "{said}");
    assert_eq!(tracked(), 1);
    for (client, server) in [(&denied, &denied_server), (&both, &both_server)] {
        // The server cannot take it up again either, which would be let through as egress.
        assert_eq!(talks(server, client), Err(ErrorKind::ConnectionAborted));
        assert_eq!(talks(client, server), Err(ErrorKind::ConnectionReset));
    }
    talks(&allowed, &allowed_server).unwrap();
    talks(&allowed_server, &allowed).unwrap();
    assert_eq!(tracked(), 1);
    // The listeners were never touched.
    let again = connection(&peer, "10.77.0.4", "10.77.0.2:8080");
    accepted(&again, &listeners[0]);
}

#[test]
fn a_connection_from_before_conntrack_is_not_mistaken_for_one_the_other_way() {
    if !may_run("a_connection_from_before_conntrack_is_not_mistaken_for_one_the_other_way") {
        return;
    }
    let (node, peer) = (Host::new(), Host::new());
    wire((&node, "mgmt0", &["10.77.0.2/24"]), (&peer, "eth0", &["10.77.0.3/24"]));
    node.sh("ip route add default via 10.77.0.3");
    let listener = peer.enter(|| TcpListener::bind("10.77.0.3:6443").unwrap());
    let client = connection(&node, "10.77.0.2", "10.77.0.3:6443");
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // Whatever makes the kernel track connections; it first sees a packet from the server.
    node.sh(
        "nft 'add table ip t; add chain ip t c { type filter hook input priority 0; }; add rule ip t c ct state new'",
    );
    talks(&server, &client).unwrap();
    node.enter(|| {
        let mut conntrack = Conntrack::open().unwrap();
        let flows = conntrack.flows(&mut |_| true).unwrap();
        assert_eq!((flows.len(), flows[0].original.source), (1, ip("10.77.0.3")), "the wrong way round");
        assert_eq!(conntrack.revoke(&revocation("", Mode::Enforce), &mut |_| true).unwrap().ended, 0);
    });
    talks(&client, &server).unwrap();
    talks(&server, &client).unwrap();
    node.enter(|| {
        let policy = "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\negress = [{ action = \"deny\" }]\n";
        let mut conntrack = Conntrack::open().unwrap();
        assert_eq!(conntrack.revoke(&revocation(policy, Mode::Enforce), &mut |_| true).unwrap().ended, 1);
    });
    assert_eq!(talks(&client, &server), Err(ErrorKind::ConnectionAborted));
}

/// lo, two uplinks with default routes of which the second is a rail, a bridge and its port. All by hand: no kernel.
fn uplinks() -> Facts {
    let link = |index: u32, name: &str, addresses: &[&str]| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        link.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (index, link)
    };
    let mut links = std::collections::BTreeMap::from([
        link(1, "lo", &["127.0.0.1/8", "10.5.5.5/32"]),
        link(2, "mgmt0", &["10.77.0.2/24", "fe80::2/64"]),
        link(3, "rail0", &["10.88.0.2/24", "fe80::3/64"]),
        link(4, "mgmt1", &["10.66.0.2/24"]),
        link(5, "port0", &["10.55.0.2/24"]),
    ]);
    links.get_mut(&1).unwrap().hardware = 772;
    links.get_mut(&2).unwrap().default_route = true;
    links.get_mut(&5).unwrap().master = InterfaceName::new("rail0");
    Facts { links, ..Facts::default() }
}

const UPLINKS: &str = r#"
[[interface]]
name = "rails"
match = { name = "rail*" }
role = "rail"
[[interface]]
name = "management"
match = { name = "mgmt*" }
role = "mgmt"
[[policy]]
name = "rails"
order = 2
interfaces = "role == 'rail'"
ingress = [ { action = "allow" } ]
[[policy]]
name = "by-source-port"
order = 3
interfaces = "role == 'mgmt'"
ingress = [ { action = "allow", protocol = "udp", from = { ports = ["5000"] } } ]
"#;

#[test]
fn the_interfaces_that_a_flow_can_use() {
    let tcp = |from: &str, to: &str| plain(Protocol::TCP, ip(from), 40_000, ip(to), 8080);
    let ended = |facts: &Facts, (original, reply, zone): (Tuple, Tuple, u16), status: u32, route: Option<u32>| {
        let revocation = revocation_on(facts, UPLINKS, Mode::Enforce);
        let mut route = |_: IpAddr, _: IpAddr| route;
        let flow = Flow { original, reply, zone, id: 1, status, picked_up: false };
        Judge::new(&revocation, &mut route).ends(&flow)
    };
    let facts = uplinks();
    let from_afar = tcp("192.0.2.9", "10.77.0.2");
    assert!(ended(&facts, from_afar, 0, Some(2)));
    assert!(!ended(&facts, from_afar, Flow::EXPECTED, Some(2)), "announced by another flow");
    assert!(!ended(&facts, from_afar, 0, Some(3)), "answered by the rail");
    assert!(!ended(&facts, from_afar, 0, Some(99)), "by an interface that is not known yet");
    assert!(!ended(&facts, from_afar, 0, None), "without a route it could be the rail");
    let mut second = facts.clone();
    second.links.get_mut(&3).unwrap().default_route = true;
    assert!(!ended(&second, from_afar, 0, Some(2)), "the other default route");
    second.links.get_mut(&3).unwrap().default_route = false;
    second.links.get_mut(&4).unwrap().default_route = true;
    assert!(ended(&second, from_afar, 0, Some(2)));
    let mut no_rail = facts.clone();
    no_rail.links.retain(|index, _| *index != 3);
    assert!(ended(&no_rail, from_afar, 0, None), "denied on every interface");
    assert!(!ended(&facts, tcp("10.88.0.9", "10.77.0.2"), 0, Some(2)), "in the rail's network");
    assert!(!ended(&facts, tcp("10.55.0.9", "10.55.0.2"), 0, Some(5)), "the rail is the master of its interface");
    assert!(ended(&facts, tcp("192.0.2.9", "10.5.5.5"), 0, Some(2)), "an address on loopback is reached by links");
    assert!(!ended(&facts, tcp("192.0.2.9", "10.5.5.6"), 0, Some(2)), "not an address of ours");
    // Link-local addresses are those of one link, whatever the routes say.
    assert!(ended(&facts, tcp("fe80::9", "fe80::2"), 0, None));
    assert!(!ended(&facts, tcp("fe80::9", "fe80::3"), 0, None));
    // One answer must not serve for two flows that a rule or an essential tells apart.
    let udp = |source, port| plain(Protocol::UDP, ip("192.0.2.9"), source, ip("10.77.0.2"), port);
    let revocation = revocation_on(&facts, UPLINKS, Mode::Enforce);
    let mut route = |_: IpAddr, _: IpAddr| Some(2);
    let mut judge = Judge::new(&revocation, &mut route);
    let mut ends =
        |(original, reply, zone)| judge.ends(&Flow { original, reply, zone, id: 1, status: 0, picked_up: false });
    assert!(ends(udp(5001, 99)) && !ends(udp(5000, 99)));
    assert!(ends(udp(66, 68)) && !ends(udp(67, 68)), "a DHCP server's answer");
}
