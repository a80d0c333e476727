//! What two policies treat otherwise is what asking about packets one by one finds.

use std::net::IpAddr;

use nodewall::config::Config;
use nodewall::exposure::contrast::{Contrast, Traffic, contrast};
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::Protocol;
use nodewall::net::splitmix;
use nodewall::policy::effective::Effective;
use nodewall::policy::resolve::resolve;
use nodewall::simulate::{ConntrackState, Origin, Outcome, Packet, decide};
use nodewall::source;

const COMMON: &str = r#"
[[interface]]
name = "a"
match = { name = "eth0" }
role = "mgmt"
[[interface]]
name = "b"
match = { name = "eth1" }
role = "rail"
[[set]]
name = "dev"
cidrs = ["10.0.0.0/28", "fd00::/124"]
[[policy]]
name = "common"
order = 10
interfaces = "all()"
ingress = [
  { action = "deny", from = { cidrs = ["10.0.0.4/30"] } },
  { action = "allow", protocol = "tcp", ports = [22] },
]
"#;

const POLICIES: &[&str] = &[
    "",
    r#"
[[policy]]
name = "x"
order = 20
interfaces = "role == 'mgmt'"
ingress = [
  { action = "allow", from = { sets = ["dev"] }, protocol = "tcp", ports = ["8-12"] },
  { action = "allow", from = { ports = [40] }, protocol = "udp", ports = [9] },
]
egress = [{ action = "deny", to = { cidrs = ["10.0.0.8/29"] }, family = 4 }]
"#,
    r#"
[[policy]]
name = "x"
order = 5
interfaces = "all()"
ingress = [
  { action = "reject", from = { cidrs = ["10.0.0.2", "fd00::8/125"] }, protocol = "tcp" },
  { action = "allow", from = { sets = ["dev"] }, to = { cidrs = ["10.9.0.2"] }, protocol = "udp" },
  { action = "allow", protocol = "icmp", icmp = { type = "timestamp-request" } },
  { action = "allow", protocol = "esp" },
]
"#,
    r#"
[[tier]]
name = "last"
order = 2000
default = "deny"
[[policy]]
name = "x"
tier = "last"
order = 1
interfaces = "role == 'rail'"
egress = [{ action = "allow", to = { sets = ["dev"] }, protocol = "tcp" }]
"#,
    r#"
[[policy]]
name = "x"
order = 1
stage = "prednat"
interfaces = "role == 'mgmt'"
ingress = [
  { action = "deny", from = { cidrs = ["10.0.0.0/29"] }, protocol = "tcp", ports = [22] },
  { action = "allow", from = { cidrs = ["fd00::/125"] }, protocol = "udp", ports = [9] },
]
[[policy]]
name = "y"
order = 2
stage = "untracked"
interfaces = "all()"
ingress = [{ action = "allow", from = { sets = ["dev"] }, protocol = "udp", ports = [7] }]
egress = [{ action = "allow", to = { sets = ["dev"] }, protocol = "udp" }]
"#,
    r#"
[[policy]]
name = "x"
order = 1
mode = "audit"
interfaces = "all()"
ingress = [{ action = "deny" }]
[[policy]]
name = "y"
order = 2
interfaces = "role == 'rail'"
ingress = [{ action = "pass", from = { sets = ["dev"] } }, { action = "allow", protocol = "tcp", ports = ["7-9"] }]
"#,
];

fn facts() -> Facts {
    let link = |index: u32, name: &str, addresses: &[&str]| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        link.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (index, link)
    };
    let links = [link(2, "eth0", &["10.9.0.1/24", "10.9.0.2/24", "fd09::1/64"]), link(3, "eth1", &["10.8.0.1/24"])];
    Facts { links: links.into(), ..Facts::default() }
}

fn effective(policy: &str) -> Effective {
    let sourced = source::decode_text("policy.toml", &format!("{COMMON}{policy}"));
    assert_eq!(sourced.findings, []);
    resolve(&sourced.policy, &Config::shipped().settings, &facts()).0
}

/// Whether a contrast is about a packet of this kind with this peer, by this role.
fn says(contrast: &Contrast, packet: &Packet, peer: IpAddr, role: &str, names_esp: bool) -> bool {
    let protocol = packet.protocol.unwrap();
    let carries = |traffic: &Traffic| match traffic {
        Traffic::Ports(of, ports) => *of == protocol && ports.contains(packet.ports.unwrap().1),
        Traffic::Icmp(of, kind) => *of == protocol && packet.icmp.unwrap().0 == *kind,
        Traffic::Protocol(of) => {
            let types = |other: &Traffic| matches!(other, Traffic::Icmp(of, kind) if *of == protocol && packet.icmp.is_some_and(|icmp| icmp.0 == *kind));
            *of == protocol && !contrast.what.iter().any(types)
        }
        Traffic::Others => {
            protocol == Protocol(99)
                || (protocol == Protocol(50) && !(names_esp && packet.direction == Direction::Ingress))
        }
    };
    let zone = contrast.zones.iter().any(|zone| zone.starts_with(role));
    contrast.direction == packet.direction
        && zone
        && contrast.addresses.contains(peer)
        && contrast.what.iter().any(carries)
}

#[test]
fn every_packet_that_two_policies_treat_otherwise_is_in_a_contrast_and_no_other_is() {
    let mut rolls = 0;
    let mut roll = |below: u64| {
        rolls += 1;
        splitmix::nth(7, rolls) % below
    };
    let mut differing = 0;
    for one in POLICIES {
        for other in POLICIES {
            let names_esp = one.contains("esp") || other.contains("esp");
            let (first, second) = (effective(one), effective(other));
            let found = contrast(&first, &second, &facts(), &[]);
            assert_eq!(found.is_empty(), one == other, "{one}\n{other}\n{found:?}");
            for _ in 0..1500 {
                let v4 = roll(3) > 0;
                let peer: IpAddr = match v4 {
                    true => format!("10.0.0.{}", roll(20)).parse().unwrap(),
                    false => format!("fd00::{:x}", 1 + roll(20)).parse().unwrap(),
                };
                let (interface, role) = if v4 && roll(2) == 0 { ("eth1", "rail") } else { ("eth0", "mgmt") };
                let own: Vec<IpAddr> = match (interface, v4) {
                    ("eth1", _) => vec![[10, 8, 0, 1].into()],
                    (_, true) => vec![[10, 9, 0, 1].into(), [10, 9, 0, 2].into()],
                    (_, false) => vec!["fd09::1".parse().unwrap()],
                };
                let protocol =
                    [Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol(50), Protocol(99)][roll(5) as usize];
                // 13 and 17 are asked for by no essential.
                let (port, kind) = ([7, 8, 9, 12, 13, 22, 40][roll(7) as usize], [13, 17][roll(2) as usize]);
                let direction = Direction::BOTH[roll(2) as usize];
                if protocol == Protocol::ICMP && !v4 {
                    continue;
                }
                let packet = |own: IpAddr, from: u16| Packet {
                    direction,
                    interface: InterfaceName::new(interface).unwrap(),
                    kind: None,
                    source: if direction == Direction::Ingress { peer } else { own },
                    destination: if direction == Direction::Ingress { own } else { peer },
                    protocol: Some(protocol),
                    ports: protocol.has_ports().then_some((from, port)),
                    icmp: (protocol == Protocol::ICMP).then_some((kind, 0)),
                    hop_limit: 64,
                    state: ConntrackState::New,
                    forward: None,
                    translated: None,
                    origin: Origin::Kernel,
                };
                // It is reached where one address and one source port is enough.
                let reached = |effective: &Effective| {
                    own.iter().any(|own| {
                        [40, 50_000]
                            .iter()
                            .any(|from| decide(effective, &packet(*own, *from)).outcome == Outcome::Accepted)
                    })
                };
                let (one_lets, other_lets) = (reached(&first), reached(&second));
                differing += usize::from(one_lets != other_lets);
                let example = packet(own[0], 50_000);
                let said = |allows: bool| {
                    found.iter().any(|contrast| {
                        contrast.first_allows == allows && says(contrast, &example, peer, role, names_esp)
                    })
                };
                assert_eq!(
                    (said(true), said(false)),
                    (one_lets && !other_lets, other_lets && !one_lets),
                    "{example:?}\n{one}\n{other}\n{found:#?}"
                );
            }
        }
    }
    assert!(differing > 1000, "only {differing} packets were treated otherwise");
}
