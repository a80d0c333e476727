//! Limits with real packets: how many come through, whose packets share a bucket, and what becomes of those that find no room for one.
//!
//! Rates are of a day where a bucket must not fill again during a test, and where it must, the time that it really took counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lab::net::{Answer, Host, Probe, What, probe, wire};
use nix::sys::socket::{setsockopt, sockopt};
use nodewall::config::Config;
use nodewall::net::interface::{Direction, Role};
use nodewall::policy::settings::Default as InterfaceDefault;

/// Where the node listens.
const PORTS: [u16; 3] = [7000, 7001, 7002];
/// How long nothing more has to come before it is taken for all.
const QUIET: Duration = Duration::from_millis(150);

/// The addresses of one wire: the node's, and those of whom is at its other end.
struct Wire {
    interface: &'static str,
    here: [&'static str; 2],
    there: &'static [&'static str],
}

const WIRES: [Wire; 2] = [
    Wire {
        interface: "rail0",
        here: ["10.0.0.5/24", "fd00::5/64"],
        there: &["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24", "fd00::1/64", "fd00::2/64"],
    },
    Wire { interface: "stor0", here: ["10.1.0.5/24", "fd01::5/64"], there: &["10.1.0.1/24", "fd01::1/64"] },
];

struct Bench {
    node: Host,
    peers: Vec<Host>,
    ears: Vec<UdpSocket>,
}

impl Bench {
    fn new() -> Self {
        let node = Host::new();
        let peers: Vec<Host> = WIRES.iter().map(|_| Host::new()).collect();
        for (of, peer) in WIRES.iter().zip(&peers) {
            wire((&node, of.interface, &of.here), (peer, "eth0", of.there));
        }
        let ears = node.enter(|| PORTS.map(|port| ear(SocketAddr::new("::".parse().unwrap(), port)))).into();
        let bench = Self { node, peers, ears };
        // Everybody knows everybody, so that no packet waits for a neighbour, nor for a link that has just come up.
        let start = Instant::now();
        while sources().into_iter().any(|source| bench.through(source, PORTS[0], 1) != 1) {
            assert!(start.elapsed() < Duration::from_secs(20), "without rules");
        }
        bench
    }

    /// Puts rules in force for what comes in by all interfaces; what they do not say is let through.
    fn load(&self, rules: &str) {
        self.load_documents(&policy("p", "host", rules));
    }

    fn load_documents(&self, text: &str) {
        let mut settings = Config::shipped().settings;
        settings.failsafe = Vec::new();
        for (role, direction) in Role::ALL.iter().flat_map(|role| Direction::BOTH.map(|side| (*role, side))) {
            settings.defaults.insert((role, direction), InterfaceDefault::Allow);
        }
        self.node.put_in_force(&self.node.compiled(text, &settings));
    }

    /// Sends datagrams from an address to a port of the node, each from a port of its own, so that each is a flow of its own.
    fn send(&self, source: &str, port: u16, datagrams: usize) {
        let (of, peer) = WIRES.iter().zip(&self.peers).find(|(of, _)| of.there.contains(&source)).unwrap();
        let here = of.here.map(ip).into_iter().find(|here| here.is_ipv4() == ip(source).is_ipv4()).unwrap();
        peer.enter(|| {
            for _ in 0..datagrams {
                let socket = UdpSocket::bind(SocketAddr::new(ip(source), 0)).unwrap();
                socket.send_to(b"one", SocketAddr::new(here, port)).unwrap();
            }
        });
    }

    /// How many datagrams came since, by source.
    fn heard(&self) -> BTreeMap<IpAddr, usize> {
        let mut heard = BTreeMap::new();
        let mut last = Instant::now();
        while last.elapsed() < QUIET {
            let mut buffer = [0; 16];
            for ear in &self.ears {
                while let Ok((_, peer)) = ear.recv_from(&mut buffer) {
                    last = Instant::now();
                    *heard.entry(peer.ip().to_canonical()).or_insert(0) += 1;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        heard
    }

    /// How many came of so many.
    fn through(&self, source: &str, port: u16, datagrams: usize) -> usize {
        self.send(source, port, datagrams);
        self.heard().values().sum()
    }
}

fn policy(name: &str, stage: &str, rules: &str) -> String {
    format!(
        "[[policy]]\nname = \"{name}\"\nstage = \"{stage}\"\norder = {}\ninterfaces = \"all()\"\ningress = [\n{rules}\n]\n",
        name.len()
    )
}

fn ear(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    socket
}

fn ip(text: &str) -> IpAddr {
    text.split('/').next().unwrap().parse().unwrap()
}

fn sources() -> Vec<&'static str> {
    WIRES.iter().flat_map(|of| of.there.iter().copied()).collect()
}

#[test]
fn a_burst_ends_after_its_last_packet_and_the_next_rule_is_asked() {
    if !lab::may_run("a_burst_ends_after_its_last_packet_and_the_next_rule_is_asked") {
        return;
    }
    let bench = Bench::new();
    let deny = "{ action = \"deny\", protocol = \"udp\" },";
    for burst in [1, 2, 7, 50] {
        let limit = format!("limit = {{ rate = \"1/day\", burst = {burst} }}");
        bench.load(&format!("{{ action = \"allow\", protocol = \"udp\", {limit} }},\n{deny}"));
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], burst + 20), burst);
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 20), 0, "there is no second burst of {burst}");
        let denial = format!("{{ action = \"deny\", protocol = \"udp\", {limit} }},");
        bench.load_documents(&policy("denial", "host", &denial));
        assert_eq!(bench.through("fd00::1/64", PORTS[0], burst + 20), 20, "denied up to {burst}");
    }
    // Five, where nothing is said.
    bench.load(&format!("{{ action = \"allow\", protocol = \"udp\", limit = {{ rate = \"1/day\" }} }},\n{deny}"));
    assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 20), 5);
}

#[test]
fn a_bucket_fills_again_with_time_and_no_faster() {
    if !lab::may_run("a_bucket_fills_again_with_time_and_no_faster") {
        return;
    }
    let bench = Bench::new();
    for per in ["", ", per = \"source\""] {
        bench.load(&format!(
            "{{ action = \"allow\", protocol = \"udp\", limit = {{ rate = \"60/minute\", burst = 3{per} }} }},\n\
             {{ action = \"deny\", protocol = \"udp\" }},"
        ));
        let start = Instant::now();
        let at_once = bench.through("10.0.0.1/24", PORTS[0], 10);
        let since = usize::try_from(start.elapsed().as_secs()).unwrap();
        assert!((3..=3 + since + 1).contains(&at_once), "{at_once} in {since} s");
        // Three seconds fill it, and ten do not fill it more.
        std::thread::sleep(Duration::from_millis(3_200));
        let start = Instant::now();
        let later = bench.through("10.0.0.1/24", PORTS[0], 10);
        let since = usize::try_from(start.elapsed().as_secs()).unwrap();
        assert!((3..=3 + since + 1).contains(&later), "{later} in {since} s");
    }
}

#[test]
fn each_source_has_a_bucket_of_its_own() {
    if !lab::may_run("each_source_has_a_bucket_of_its_own") {
        return;
    }
    let bench = Bench::new();
    let rules = |per: &str| {
        format!(
            "{{ action = \"allow\", protocol = \"udp\", limit = {{ rate = \"1/day\", burst = 4{per} }} }},\n\
             {{ action = \"deny\", protocol = \"udp\" }},"
        )
    };
    bench.load(&rules(", per = \"source\""));
    for source in sources() {
        // Its ports are of one bucket.
        for port in PORTS {
            bench.send(source, port, 3);
        }
    }
    assert_eq!(bench.heard(), sources().into_iter().map(|source| (ip(source), 4)).collect());
    bench.load(&rules(""));
    for source in sources() {
        bench.send(source, PORTS[0], 3);
    }
    assert_eq!(bench.heard().values().sum::<usize>(), 4, "together, without");
}

/// A rule is many rules in the kernel: of each family, for each kind of match, in the chain of each class of interfaces, and behind maps.
#[test]
fn all_parts_of_a_rule_share_its_bucket() {
    if !lab::may_run("all_parts_of_a_rule_share_its_bucket") {
        return;
    }
    let bench = Bench::new();
    let sets = "[[set]]\nname = \"peers\"\ncidrs = [\"10.0.0.0/8\", \"fd00::/15\"]\n\n\
                [[service]]\nname = \"s\"\nports = [\"udp/7000\", \"udp/7001-7100\", \"tcp/7000\", \"icmp/echo-request\"]\n";
    let matches = [
        "services = [\"s\"]",
        "protocol = \"udp\", from = { sets = [\"peers\"] }, ports = [7000, 7001, 7002]",
        "protocol = \"udp\", from = { cidrs = [\"10.0.0.0/16\", \"10.1.0.1\", \"fd00::/16\", \"fd01::/16\"], ports = [\"1-65535\"] }",
        "not = { protocol = \"tcp\" }",
    ];
    // Alone, and among so many others that they become a map.
    let others: String =
        (1..20).map(|n| format!("{{ action = \"allow\", protocol = \"udp\", ports = [{n}] }},\n")).collect();
    // A bucket outlives a change of its rule, so that each policy has another name.
    let mut names = (1..).map(|number| format!("p{number}"));
    for others in ["", &others] {
        for matched in matches {
            for log in ["", ", log = true"] {
                let limited =
                    format!("{{ action = \"allow\", {matched}, limit = {{ rate = \"1/day\", burst = 6 }}{log} }},");
                let rules = format!("{others}{limited}\n{others}{{ action = \"deny\", protocol = \"udp\" }},");
                bench.load_documents(&format!("{sets}{}", policy(&names.next().unwrap(), "host", &rules)));
                for source in sources() {
                    for port in PORTS {
                        bench.send(source, port, 1);
                    }
                }
                let heard = bench.heard();
                assert_eq!(heard.values().sum::<usize>(), 6, "{matched}: {heard:?}\n{rules}");
            }
        }
    }
    // Interfaces of other roles have chains of their own.
    let roles = "[[interface]]\nname = \"storage\"\nmatch = { name = \"stor*\" }\nrole = \"storage\"\n\n";
    for stage in ["host", "prednat", "untracked"] {
        let rules = "{ action = \"allow\", protocol = \"udp\", limit = { rate = \"1/day\", burst = 6 } },\n\
                     { action = \"deny\", protocol = \"udp\" },";
        bench.load_documents(&format!("{roles}{}", policy(&names.next().unwrap(), stage, rules)));
        for source in sources() {
            bench.send(source, PORTS[0], 3);
        }
        assert_eq!(bench.heard().values().sum::<usize>(), 6, "{stage}");
    }
}

/// Many rules with limits are told apart by maps; a packet comes by the limit of each that matches once, and goes on when it is over.
#[test]
fn each_of_many_rules_has_its_bucket_and_what_is_over_it_goes_on() {
    if !lab::may_run("each_of_many_rules_has_its_bucket_and_what_is_over_it_goes_on") {
        return;
    }
    let bench = Bench::new();
    let deny = "{ action = \"deny\", protocol = \"udp\" },";
    // By ports, with ranges that overlap: each port has the buckets of all ranges that it is in, one after the other.
    let limited = |ports: &str, burst: usize| {
        format!(
            "{{ action = \"allow\", protocol = \"udp\", ports = [{ports}], limit = {{ rate = \"1/day\", burst = {burst} }} }},\n"
        )
    };
    let others: String = (1..30).map(|port| limited(&port.to_string(), 1)).collect();
    let rules = [
        &limited("7000", 2),
        &others,
        &limited("\"6000-7001\"", 3),
        &limited("7002, 7000", 4),
        &limited("\"1-65535\"", 5),
        deny,
    ];
    bench.load(&rules.concat());
    assert_eq!(bench.through("10.0.0.1/24", 7000, 30), 2 + 3 + 4 + 5);
    assert_eq!(bench.through("fd00::1/64", 7001, 30), 0, "another port took them all");
    bench.load_documents(&policy("again", "host", &rules.concat()));
    assert_eq!(bench.through("fd00::1/64", 7002, 30), 4 + 5);
    assert_eq!(bench.through("10.0.0.1/24", 7001, 30), 3);
    assert_eq!(bench.through("10.0.0.1/24", 7000, 30), 2);
    // By sources, each with what is over it.
    let of = |last: u32, burst: u32| {
        let matched = format!("from = {{ cidrs = [\"10.0.0.{last}\", \"fd00::{last}\"] }}, protocol = \"udp\"");
        let limit = format!("limit = {{ rate = \"1/day\", burst = {burst} }}");
        format!("{{ action = \"allow\", {matched}, {limit} }},\n{{ action = \"deny\", {matched} }},\n")
    };
    let rules: String = (1..20).map(|last| of(last, last)).collect();
    bench.load_documents(&policy("sources", "host", &rules));
    for source in sources() {
        bench.send(source, PORTS[0], 5);
    }
    let expected = |source: &&str| match ip(source) {
        IpAddr::V4(v4) if v4.octets()[1] == 0 => usize::from(v4.octets()[3]),
        IpAddr::V6(v6) if v6.segments()[0] == 0xfd00 => 0,
        _ => 5,
    };
    let mut heard = bench.heard();
    // Both families have one bucket: IPv4 came first.
    heard.retain(|_, count| *count > 0);
    let expected: BTreeMap<IpAddr, usize> =
        sources().iter().map(|source| (ip(source), expected(source))).filter(|(_, count)| *count > 0).collect();
    assert_eq!(heard, expected);
}

/// Under audit a limit counts as it would if it were enforced: in one bucket for the rule, of which no packet sees anything.
#[test]
fn a_limit_under_audit_counts_as_if_it_were_enforced_and_changes_nothing() {
    if !lab::may_run("a_limit_under_audit_counts_as_if_it_were_enforced_and_changes_nothing") {
        return;
    }
    let bench = Bench::new();
    let sets = "[[set]]\nname = \"peers\"\ncidrs = [\"10.0.0.0/8\", \"fd00::/15\"]\n\n";
    let counted = |rule: &str| -> usize {
        let table = bench.node.sh("nft list table inet nodewall");
        let lines = table.lines().filter(|line| line.contains(&format!("comment \"{rule} ")));
        let counts =
            lines.filter_map(|line| line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<usize>().ok());
        counts.sum()
    };
    let mut number = 0;
    for stage in ["host", "prednat", "untracked"] {
        for (per, within) in [("", 6), (", per = \"source\"", 6 * sources().len())] {
            for log in ["", ", log = true"] {
                number += 1;
                let name = format!("audited{number}");
                let limit = format!("limit = {{ rate = \"1/day\", burst = 6{per} }}");
                let rules = format!(
                    "{{ action = \"log\", protocol = \"udp\", {limit} }},\n\
                     {{ action = \"deny\", protocol = \"udp\", ports = [7000, \"7001-7100\"], from = {{ sets = [\"peers\"] }}, {limit}{log} }},\n\
                     {{ action = \"deny\", protocol = \"udp\" }},"
                );
                let text = policy(&name, stage, &rules).replace("stage =", "mode = \"audit\"\nstage =");
                bench.load_documents(&format!("{sets}{text}"));
                for source in sources() {
                    for port in PORTS {
                        bench.send(source, port, 4);
                    }
                }
                let sent = sources().len() * PORTS.len() * 4;
                assert_eq!(bench.heard().values().sum::<usize>(), sent, "{stage}: nothing is changed");
                let counts = [1, 2, 3].map(|rule| counted(&format!("{name}#{rule}")));
                assert_eq!(counts, [within, within, sent - within], "{stage}{per}{log}");
            }
        }
    }
}

#[test]
fn rejects_and_passes_have_limits_too() {
    if !lab::may_run("rejects_and_passes_have_limits_too") {
        return;
    }
    let bench = Bench::new();
    let probes = |what: What| -> Vec<Probe> {
        let probe = Probe { from: bench.peers[0].clone(), source: ip("10.0.0.1"), destination: ip("10.0.0.5"), what };
        vec![probe; 10]
    };
    let count = |answers: Vec<Answer>, wanted: Answer| answers.into_iter().filter(|answer| *answer == wanted).count();
    let limit = "limit = { rate = \"1/day\", burst = 3 }";
    bench.load(&format!("{{ action = \"reject\", {limit} }},\n{{ action = \"deny\" }},"));
    let answers = probe(&[probes(What::Udp(PORTS[0])), probes(What::Tcp(PORTS[0]))].concat());
    assert_eq!(count(answers, Answer::Rejected), 3, "of both kinds of rejects together");
    // What is passed is decided by the next tier, what is over the limit by the next rule.
    let next = "[[policy]]\nname = \"next\"\ntier = \"baseline\"\ninterfaces = \"all()\"\ningress = []\n";
    bench.load_documents(&format!(
        "{}{next}",
        policy(
            "p",
            "host",
            &format!("{{ action = \"pass\", protocol = \"udp\", {limit} }},\n{{ action = \"deny\" }},")
        )
    ));
    assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 10), 3);
}

#[test]
fn what_is_established_costs_nothing() {
    if !lab::may_run("what_is_established_costs_nothing") {
        return;
    }
    let bench = Bench::new();
    let listener = bench.node.enter(|| TcpListener::bind("10.0.0.5:7000").unwrap());
    bench.load(
        "{ action = \"allow\", protocol = \"tcp\", limit = { rate = \"1/day\", burst = 2, per = \"source\" } },\n\
         { action = \"reject\", protocol = \"tcp\" },",
    );
    let connect = || bench.peers[0].enter(|| TcpStream::connect("10.0.0.5:7000"));
    let mut pairs = Vec::new();
    for _ in 0..2 {
        pairs.push((connect().unwrap(), listener.accept().unwrap().0));
    }
    for (near, far) in &mut pairs {
        for _ in 0..20 {
            near.write_all(b"more").unwrap();
            let mut buffer = [0; 4];
            far.read_exact(&mut buffer).unwrap();
        }
    }
    assert!(connect().is_err());
    for (near, far) in &mut pairs {
        far.write_all(b"back").unwrap();
        near.read_exact(&mut [0; 4]).unwrap();
    }
}

/// A new policy beside it leaves a bucket as it is, and another deed of the rule does; another limit is another bucket.
#[test]
fn what_a_bucket_has_left_survives_changes_elsewhere() {
    if !lab::may_run("what_a_bucket_has_left_survives_changes_elsewhere") {
        return;
    }
    let bench = Bench::new();
    for per in ["", ", per = \"source\""] {
        let limited = |burst: usize| {
            policy(
                "p",
                "host",
                &format!(
                    "{{ action = \"allow\", protocol = \"udp\", limit = {{ rate = \"1/day\", burst = {burst}{per} }} }},\n\
                     {{ action = \"deny\", protocol = \"udp\" }},"
                ),
            )
        };
        bench.load_documents(&limited(4));
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 3), 3);
        let other = policy("other", "host", "{ action = \"deny\", protocol = \"tcp\", ports = [9] },");
        bench.load_documents(&format!("{}{other}", limited(4)));
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 10), 1, "{per}");
        bench.load_documents(&limited(4).replace("allow", "reject"));
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 10), 0, "{per}");
        bench.load_documents(&limited(4));
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 10), 0, "{per}");
        bench.load_documents(&format!("{}{other}", limited(9)));
        assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 20), 9, "{per}");
    }
}

/// 65,536 sources of a family have buckets; whoever comes then is over the limit, and those who have one keep it.
#[test]
fn a_source_without_room_for_a_bucket_is_over_its_limit() {
    if !lab::may_run("a_source_without_room_for_a_bucket_is_over_its_limit") {
        return;
    }
    const ROOM: usize = 65_536;
    let bench = Bench::new();
    let limited = |action: &str, then: &str| {
        policy(
            action,
            "untracked",
            &format!(
                "{{ action = \"{action}\", protocol = \"udp\", limit = {{ rate = \"1/day\", burst = 2, per = \"source\" }} }},\n\
                 {{ action = \"{then}\", protocol = \"udp\" }},"
            ),
        )
    };
    // Any address of this network is the peer's: it may send from all of them, and sees nothing come back.
    let peer = &bench.peers[0];
    peer.sh("ip -6 route add local fd00:1::/32 dev lo; echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind");
    let crowd = |first: usize, count: usize| {
        let mut heard = 0;
        let start = Instant::now();
        let mut sent = 0;
        while sent < count {
            let now = (count - sent).min(2048);
            peer.enter(|| {
                for number in first + sent..first + sent + now {
                    let source = format!("fd00:1::{:x}:{:x}", number >> 16, number & 0xffff);
                    let socket = UdpSocket::bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
                    socket.send_to(b"one", "[fd00::5]:7000").unwrap();
                }
            });
            sent += now;
            let mut buffer = [0; 16];
            while bench.ears[0].recv_from(&mut buffer).is_ok() {
                heard += 1;
            }
        }
        println!("{count} sources in {:?}", start.elapsed());
        heard + bench.heard().values().sum::<usize>()
    };
    bench.load_documents(&limited("allow", "deny"));
    assert_eq!(crowd(0, ROOM), ROOM);
    assert_eq!(crowd(ROOM, 500), 0, "no room");
    assert_eq!(crowd(1000, 500), 500, "the second of two");
    assert_eq!(crowd(1000, 500), 0, "over the limit");
    assert_eq!(bench.through("10.0.0.1/24", PORTS[0], 5), 2, "the other family has room of its own");
    // Where a deny has the limit, the next rule is asked about those without room as well.
    bench.load_documents(&limited("deny", "allow"));
    assert_eq!(crowd(0, ROOM), 0);
    assert_eq!(crowd(ROOM, 500), 500);
}
