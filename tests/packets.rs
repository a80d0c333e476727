//! The kernel is the judge: an operator's policy, loaded as the daemon loads it, and real packets; what becomes of each is
//! what `simulate::decide` says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::net::{Answer, Host, Probe, Servers, What, probe, wire};
use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::Facts;
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::Protocol;
use nodewall::nft::change::Loaded;
use nodewall::policy::effective::Effective;
use nodewall::policy::resolve::resolve;
use nodewall::simulate::{ConntrackState, Origin, Outcome, Packet, Socket, decide};
use nodewall::source;
use nodewall::text::finding::Severity;

/// Roles that the lab's veth pairs cannot show by their hardware.
const INTERFACES: &str = r#"
[[interface]]
name  = "rails"
match = { name = "rail*" }
role  = "rail"

[[interface]]
name  = "storage"
match = { name = "stor*" }
role  = "storage"

[[set]]
name  = "control-plane"
cidrs = ["10.0.0.10", "fd00::10"]

[[set]]
name  = "training"
cidrs = ["10.100.0.0/26", "fd00:100::/112"]

[[service]]
name  = "kubelet"
ports = ["tcp/10250"]
"#;

const DAY: &str = r#"
[[policy]]
name       = "kubelet"
tier       = "platform"
order      = 100
interfaces = "role in {'mgmt', 'pod'}"
ingress = [
  { action = "allow", from = { sets = ["control-plane"] }, services = ["kubelet"] },
  { action = "deny",  services = ["kubelet"], log = true },
]

[[policy]]
name       = "rails"
order      = 200
interfaces = "role == 'rail'"
ingress = [
  { action = "allow", from = { sets = ["training"] }, protocol = "tcp" },
  { action = "allow", from = { sets = ["training"] }, protocol = "udp", ports = [4791] },
  { action = "allow", from = { sets = ["training"] }, icmp = { type = "echo-request" } },
  { action = "reject", protocol = "udp", ports = [53] },
  { action = "reject", protocol = "tcp", ports = [80] },
  { action = "deny" },
]
egress = [
  { action = "allow", to = { sets = ["training"] } },
  { action = "deny" },
]

[[policy]]
name       = "front"
order      = 300
interfaces = "role == 'mgmt'"
ingress = [
  { action = "deny",   from = { cidrs = ["10.0.0.77"] } },
  { action = "allow",  protocol = "tcp", ports = [80, "30000-32767"], family = 4 },
  { action = "reject", protocol = "tcp", ports = ["30000-32767"], family = 6 },
  { action = "allow",  from = { cidrs = ["10.0.0.0/28"] }, icmp = { type = "echo-request" } },
  { action = "reject", protocol = "udp", ports = [9999] },
]
egress = [
  { action = "reject", to = { cidrs = ["10.0.0.77"] }, protocol = "tcp", ports = [4420] },
  { action = "deny",   to = { cidrs = ["10.0.0.77", "fd00::77"] }, not = { ports = [22] }, protocol = "tcp" },
  { action = "reject", to = { cidrs = ["fd00::77"] }, protocol = "udp" },
]

[[policy]]
name       = "storage"
order      = 400
interfaces = "role == 'storage'"
ingress = [{ action = "deny", protocol = "udp" }, { action = "pass" }]
egress = [
  { action = "allow", protocol = "tcp", ports = [4420] },
  { action = "reject", protocol = "tcp" },
  { action = "deny", protocol = "udp", not = { ports = [4791] } },
]

[[policy]]
name       = "pods"
order      = 500
interfaces = "role == 'pod'"
ingress = [
  { action = "deny", protocol = "tcp", ports = [22] },
  { action = "reject", protocol = "udp", ports = [4791] },
]
"#;

/// The same node with other rules for some of the same packets.
const NIGHT: &str = r#"
[[policy]]
name       = "kubelet"
tier       = "platform"
order      = 100
interfaces = "all()"
ingress = [
  { action = "allow", from = { sets = ["control-plane"] }, services = ["kubelet"] },
  { action = "reject", services = ["kubelet"] },
]

[[policy]]
name       = "rails-closed"
order      = 200
interfaces = "role == 'rail'"
ingress = [
  { action = "allow", from = { sets = ["training"] }, protocol = "tcp", ports = [22, 4420] },
  { action = "allow", from = { sets = ["training"] }, icmp = { type = "echo-request" } },
  { action = "reject", protocol = "tcp", ports = [80] },
  { action = "deny" },
]

[[policy]]
name       = "front"
order      = 300
interfaces = "role == 'mgmt'"
ingress = [
  { action = "deny",   from = { cidrs = ["10.0.0.77"] } },
  { action = "allow",  protocol = "tcp", ports = [80], family = 4 },
  { action = "reject", protocol = "udp", ports = [9999] },
]

[[policy]]
name       = "pods"
order      = 500
interfaces = "role == 'pod'"
ingress = [{ action = "deny", protocol = "tcp", ports = [22, 31000] }]
"#;

const TCP_PORTS: [u16; 5] = [22, 80, 4420, 10250, 31000];
const UDP_PORTS: [u16; 3] = [53, 4791, 9999];

/// An interface of the node, its addresses there, and those of the hosts behind it.
struct Side {
    interface: &'static str,
    here: &'static [&'static str],
    there: &'static [&'static str],
}

const SIDES: [Side; 4] = [
    Side {
        interface: "mgmt0",
        here: &["10.0.0.5/24", "fd00::5/64"],
        there: &["10.0.0.1/24", "10.0.0.10/24", "10.0.0.77/24", "fd00::1/64", "fd00::10/64", "fd00::77/64"],
    },
    Side {
        interface: "rail0",
        here: &["10.100.0.5/24", "fd00:100::5/64"],
        there: &["10.100.0.1/24", "10.100.0.66/24", "fd00:100::1/64", "fd00:100::1:66/64"],
    },
    Side { interface: "stor0", here: &["10.50.0.5/24", "fd00:50::5/64"], there: &["10.50.0.1/24", "fd00:50::1/64"] },
    Side {
        interface: "cali12345",
        here: &["169.254.1.1/24", "fd00:244::1/64"],
        there: &["169.254.1.7/24", "fd00:244::7/64"],
    },
];

/// The node, the hosts behind its interfaces, and all their servers.
struct Lab {
    node: Host,
    behind: Vec<Host>,
    _servers: Vec<Servers>,
}

impl Lab {
    fn new() -> Self {
        let node = Host::new();
        let behind: Vec<Host> = SIDES.iter().map(|_| Host::new()).collect();
        for (side, host) in SIDES.iter().zip(&behind) {
            wire((&node, side.interface, side.here), (host, "eth0", side.there));
        }
        node.sh("ip route add default via 10.0.0.1; ip -6 route add default via fd00::1");
        let servers = behind.iter().chain([&node]).map(|host| host.serve(&TCP_PORTS, &UDP_PORTS)).collect();
        let lab = Self { node, behind, _servers: servers };
        lab.warm_up();
        lab
    }

    /// Makes neighbours known to each other, so that a probe is about its own packet only; and shows that without rules
    /// everything is allowed.
    fn warm_up(&self) {
        let (echoes, others): (Vec<Probe>, Vec<Probe>) =
            self.probes().into_iter().map(|(_, probe)| probe).partition(|probe| probe.what == What::Echo);
        probe(&echoes);
        for probes in [echoes, others] {
            for (probe, answer) in probes.iter().zip(lab::net::probe(&probes)) {
                assert_eq!(answer, Answer::Allowed, "the lab itself, without rules: {probe:?}");
            }
        }
    }

    fn facts(&self) -> Facts {
        self.node.facts()
    }

    fn kernel(&self) -> Netlink {
        self.node.enter(|| Netlink::open().unwrap())
    }

    /// Every host to the node and the node to every host, on every port and by echo.
    fn probes(&self) -> Vec<(Packet, Probe)> {
        let what = TCP_PORTS.map(What::Tcp).into_iter().chain(UDP_PORTS.map(What::Udp)).chain([What::Echo]);
        let mut probes = Vec::new();
        for (side, host) in SIDES.iter().zip(&self.behind) {
            for there in side.there.iter().map(|text| address(text)) {
                let here = side.here.iter().map(|text| address(text)).find(|here| here.is_ipv4() == there.is_ipv4());
                let here = here.unwrap();
                for what in what.clone() {
                    let ends = [(Direction::Ingress, host, there, here), (Direction::Egress, &self.node, here, there)];
                    for (direction, from, source, destination) in ends {
                        let probe = Probe { from: from.clone(), source, destination, what };
                        probes.push((packet(direction, side.interface, &probe), probe));
                    }
                }
            }
        }
        probes
    }
}

fn address(text: &str) -> IpAddr {
    text.split('/').next().unwrap().parse().unwrap()
}

fn packet(direction: Direction, interface: &str, probe: &Probe) -> Packet {
    let (protocol, port) = match probe.what {
        What::Tcp(port) => (Protocol::TCP, Some(port)),
        What::Udp(port) => (Protocol::UDP, Some(port)),
        What::Echo if probe.source.is_ipv4() => (Protocol::ICMP, None),
        What::Echo => (Protocol::ICMPV6, None),
    };
    Packet {
        direction,
        interface: InterfaceName::new(interface).unwrap(),
        kind: Some("veth".to_owned()),
        source: probe.source,
        destination: probe.destination,
        protocol: Some(protocol),
        ports: port.map(|port| (45_000, port)),
        icmp: port.is_none().then_some((if protocol == Protocol::ICMP { 8 } else { 128 }, 0)),
        hop_limit: 64,
        state: ConntrackState::New,
        forward: None,
        translated: None,
        // The probe is a process of root's.
        origin: if direction == Direction::Egress { Origin::Process(Socket::default()) } else { Origin::Kernel },
    }
}

fn effective(policy: &str, facts: &Facts) -> Effective {
    let sourced = source::decode_text("policy.toml", &format!("{INTERFACES}{policy}"));
    let (effective, resolved) = resolve(&sourced.policy, &Config::shipped().settings, facts);
    let errors: Vec<_> =
        sourced.findings.iter().chain(&resolved).filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    effective
}

fn expected(effective: &Effective, packet: &Packet) -> Answer {
    match decide(effective, packet).outcome {
        Outcome::Accepted => Answer::Allowed,
        Outcome::Dropped => Answer::Denied,
        Outcome::Rejected => Answer::Rejected,
    }
}

#[test]
fn packets_go_where_the_policy_says() {
    if !lab::may_run("packets_go_where_the_policy_says") {
        return;
    }
    let lab = Lab::new();
    let probes = lab.probes();
    assert!(probes.len() >= 200, "{} probes", probes.len());
    let sent: Vec<Probe> = probes.iter().map(|(_, probe)| probe.clone()).collect();
    let facts = lab.facts();
    let mut kernel = lab.kernel();
    for (name, policy) in [("day", DAY), ("night", NIGHT), ("no policy", "")] {
        let effective = effective(policy, &facts);
        driver::apply(&mut kernel, &compile(&effective), None).unwrap();
        let answers = probe(&sent);
        let mut count = BTreeMap::new();
        let mut wrong = Vec::new();
        for ((packet, _), answer) in probes.iter().zip(answers) {
            let expected = expected(&effective, packet);
            *count.entry(format!("{expected:?}")).or_insert(0) += 1;
            if answer != expected {
                wrong.push(format!(
                    "{answer:?} instead of {expected:?}: {packet:?}, {:?}",
                    decide(&effective, packet).reason
                ));
            }
        }
        println!("{name}: {} probes, {count:?}", sent.len());
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
        assert!(policy.is_empty() || count.values().all(|count| *count >= 10) && count.len() == 3, "{name}: {count:?}");
    }
}

#[test]
fn a_swap_is_never_seen_by_a_packet_that_both_policies_treat_alike() {
    if !lab::may_run("a_swap_is_never_seen_by_a_packet_that_both_policies_treat_alike") {
        return;
    }
    let lab = Lab::new();
    let facts = lab.facts();
    let (day, night) = (effective(DAY, &facts), effective(NIGHT, &facts));
    let rulesets = [compile(&day), compile(&night)];
    let mut kernel = lab.kernel();
    let mut loaded: Option<Loaded> = Some(driver::apply(&mut kernel, &rulesets[0], None).unwrap().loaded);
    let (mut stable, mut changing) = (Vec::new(), 0);
    for (packet, probe) in lab.probes() {
        let answers = (expected(&day, &packet), expected(&night, &packet));
        if answers.0 == answers.1 {
            stable.push((answers.0, probe));
        } else {
            changing += 1;
        }
    }
    assert!(changing > 20, "the two policies differ in {changing} probes only");
    // Silence takes its time; what is answered goes round by itself, and often.
    let (silent, answered): (Vec<_>, Vec<_>) =
        stable.iter().cloned().partition(|(answer, _)| *answer == Answer::Denied);
    let done = AtomicBool::new(false);
    let judge = |kind: &[(Answer, Probe)]| {
        let traffic: Vec<Probe> = kind.iter().map(|(_, probe)| probe.clone()).collect();
        let (mut sent, mut wrong) = (0, Vec::new());
        while !done.load(Ordering::Relaxed) {
            for ((expected, probe), answer) in kind.iter().zip(lab::net::probe(&traffic)) {
                sent += 1;
                if answer != *expected {
                    wrong.push(format!("{answer:?} instead of {expected:?}: {probe:?}"));
                }
            }
        }
        (sent, wrong)
    };
    let (sent, wrong) = std::thread::scope(|scope| {
        let judges = [scope.spawn(|| judge(&silent)), scope.spawn(|| judge(&answered))];
        let start = Instant::now();
        for swap in 1..=100 {
            let ruleset = &rulesets[swap % 2];
            loaded = Some(driver::apply(&mut kernel, ruleset, loaded.as_ref()).unwrap().loaded);
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        println!("100 swaps in {:?}", start.elapsed());
        let heard = judges.map(|judge| judge.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let [(silence, mut wrong), (answers, more)] = heard;
        wrong.extend(more);
        println!("{silence} probes that stay unanswered, {answers} that are answered");
        (silence + answers, wrong)
    });
    println!("{sent} probes of {} kinds", stable.len());
    assert!(wrong.is_empty(), "{} of {sent}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sent >= stable.len());
}
