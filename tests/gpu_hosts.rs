//! What was measured on GPU hosts and is easily got wrong, with real packets: Soft-RoCE must not be dropped on its way out, and frames
//! with stacked priority tags must not get past a deny.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lab::net::{Answer, Host, Probe, What, probe, wire};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};
use nodewall::config::Config;
use nodewall::net::interface::{Direction, Role};
use nodewall::policy::settings::{Default as InterfaceDefault, NodeSettings};

/// Nothing but policies decides what comes in; what goes out is decided by the default as well.
fn settings(egress: InterfaceDefault) -> NodeSettings {
    let mut settings = Config::shipped().settings;
    settings.failsafe = Vec::new();
    for role in Role::ALL {
        settings.defaults.insert((*role, Direction::Ingress), InterfaceDefault::Allow);
        settings.defaults.insert((*role, Direction::Egress), egress);
    }
    settings
}

fn load(node: &Host, policy: &str, settings: &NodeSettings) {
    node.put_in_force(&node.compiled(policy, settings));
}

fn ip(text: &str) -> IpAddr {
    text.split('/').next().unwrap().parse().unwrap()
}

// Soft-RoCE.

const ROCE: u16 = 4791;

/// rdma_rxe sends UDP to port 4791 from the kernel, and spins when a rule drops it on its way out. A tunnel on that port does the same:
/// what answers inside it is this host's kernel, without a process's socket. A process that sends there is denied all the same.
#[test]
fn no_policy_drops_what_the_kernel_sends_to_the_port_of_roce() {
    if !lab::may_run("no_policy_drops_what_the_kernel_sends_to_the_port_of_roce") {
        return;
    }
    let [node, peer, other] = [Host::new(), Host::new(), Host::new()];
    wire((&node, "rail0", &["10.0.0.5/24", "fd00::5/64"]), (&peer, "eth0", &["10.0.0.1/24", "fd00::1/64"]));
    wire((&node, "rail1", &["10.1.0.5/24", "fd01::5/64"]), (&other, "eth0", &["10.1.0.1/24", "fd01::1/64"]));
    let mut tunnelled = Vec::new();
    for (family, here, there) in [(4, "10.0.0.5", "10.0.0.1"), (6, "fd00::5", "fd00::1")] {
        for (host, device, near, far, end) in [(&node, "rail0", here, there, 5), (&peer, "eth0", there, here, 1)] {
            host.sh(&format!(
                "ip link add vx{family} type vxlan id {family} dstport {ROCE} local {near} remote {far} dev {device}; \
                 ip addr add 172.31.{family}.{end}/24 dev vx{family}; ip link set vx{family} up"
            ));
        }
        let [source, destination] = [1, 5].map(|end| ip(&format!("172.31.{family}.{end}")));
        tunnelled.push(Probe { from: peer.clone(), source, destination, what: What::Echo });
    }
    let _servers = other.serve(&[], &[ROCE]);
    let by_process: Vec<Probe> = [("10.1.0.5", "10.1.0.1"), ("fd01::5", "fd01::1")]
        .map(|(source, destination)| Probe {
            from: node.clone(),
            source: ip(source),
            destination: ip(destination),
            what: What::Udp(ROCE),
        })
        .into();
    for probes in [&tunnelled, &by_process] {
        probe(probes);
        assert_eq!(probe(probes), [Answer::Allowed; 2], "without rules");
    }

    let policy = |stage: &str, direction: &str, rules: &str| {
        format!("[[policy]]\nname = \"p\"\nstage = \"{stage}\"\ninterfaces = \"all()\"\n{direction} = [{rules}]\n")
    };
    let port = format!("{{ action = \"deny\", protocol = \"udp\", ports = [{ROCE}] }}");
    let reject = port.replace("deny", "reject");
    let everything = "{ action = \"deny\", protocol = \"udp\" }";
    let mut cases: Vec<(String, InterfaceDefault)> = ["host", "untracked"]
        .into_iter()
        .flat_map(|stage| [&port[..], &reject, everything].map(|rules| policy(stage, "egress", rules)))
        .map(|policy| (policy, InterfaceDefault::Allow))
        .collect();
    cases.push((String::new(), InterfaceDefault::Deny));
    let by_tier = "[[tier]]\nname = \"shut\"\norder = 1\ndefault = \"deny\"\n";
    cases.push((
        format!("{by_tier}{}", policy("host", "egress", "").replace("stage =", "tier = \"shut\"\nstage =")),
        InterfaceDefault::Allow,
    ));
    for (text, default) in cases {
        load(&node, &text, &settings(default));
        assert_eq!(probe(&tunnelled), [Answer::Allowed; 2], "the kernel's, out\n{text}");
        let answers = probe(&by_process);
        assert!(!answers.contains(&Answer::Allowed), "a process's, out: {answers:?}\n{text}");
    }
    // Where it arrives it can be denied, in every stage that sees it.
    for stage in ["untracked", "prednat", "host"] {
        load(&node, &policy(stage, "ingress", &port), &settings(InterfaceDefault::Allow));
        assert_eq!(probe(&tunnelled), [Answer::Denied; 2], "the kernel's, in, {stage}");
    }
}

// Stacked tags.

const LISTENER: u16 = 9999;

/// 802.1Q and 802.1ad (`ETH_P_8021Q`, `ETH_P_8021AD`; linux/if_ether.h).
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

/// Tags of VLAN 0, outermost first: a priority without a VLAN, which every host takes off.
const STACKS: [&[u16]; 7] = [&[], &[Q], &[Q, Q], &[Q, Q, Q], &[AD], &[AD, Q], &[Q, AD, Q]];

/// A rule at a device's ingress hook misses a frame with more than one such tag, which the kernel delivers all the same
/// (CVE-2021-27853 and others are of that kind). Ours stand where the tags are gone.
#[test]
fn stacked_priority_tags_carry_nothing_past_a_deny() {
    if !lab::may_run("stacked_priority_tags_carry_nothing_past_a_deny") {
        return;
    }
    let (node, peer) = (Host::new(), Host::new());
    wire((&node, "rail0", &["10.0.0.5/24", "fd00::5/64"]), (&peer, "eth0", &["10.0.0.1/24", "fd00::1/64"]));
    let heard = |about: &str| {
        let (here, there) = (node.enter(|| link("rail0")), peer.enter(|| link("eth0")));
        let mut heard = Vec::new();
        for (source, destination) in [("10.0.0.1", "10.0.0.5"), ("fd00::1", "fd00::5")] {
            let (source, destination) = (ip(source), ip(destination));
            let listener = node.enter(|| UdpSocket::bind(SocketAddr::new(destination, LISTENER)).unwrap());
            peer.enter(|| {
                let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
                for (number, stack) in STACKS.iter().enumerate() {
                    let mut frame = [here.addr().unwrap(), there.addr().unwrap()].concat();
                    for tag in *stack {
                        frame.extend([tag.to_be_bytes(), [0, 0]].concat());
                    }
                    frame.extend(datagram(source, destination, number as u8));
                    sendto(raw.as_raw_fd(), &frame, &there, MsgFlags::empty()).unwrap();
                }
            });
            // All of them have arrived when the last one has: one wire, one queue. What is denied takes a time-out to be sure of.
            listener.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut buffer = [0; 64];
            let mut numbers = Vec::new();
            while numbers.len() < STACKS.len()
                && let Ok((1, _)) = listener.recv_from(&mut buffer)
            {
                numbers.push(usize::from(buffer[0]));
            }
            heard.push(numbers);
        }
        println!("{about}: {heard:?}");
        heard
    };
    let all: Vec<usize> = (0..STACKS.len()).collect();
    assert_eq!(heard("without rules"), [all.clone(), all.clone()], "such frames do reach a socket");
    // What domain.md says of the other place for rules, so that this test is about something.
    node.nft(&format!(
        "table netdev early {{ chain ingress {{ type filter hook ingress device \"rail0\" priority 0; udp dport {LISTENER} drop; }}; }}"
    ));
    let past = heard("dropped at the device");
    assert!(past.iter().all(|numbers| numbers.contains(&2) && !numbers.contains(&0)), "{past:?}");
    node.sh("nft delete table netdev early");
    for stage in ["untracked", "prednat", "host"] {
        let policy = |action: &str| {
            format!(
                "[[policy]]\nname = \"p\"\nstage = \"{stage}\"\ninterfaces = \"name == 'rail0'\"\n\
                 ingress = [{{ action = \"{action}\", protocol = \"udp\", ports = [{LISTENER}] }}]\n"
            )
        };
        load(&node, &policy("allow"), &settings(InterfaceDefault::Allow));
        assert_eq!(heard("allowed"), [all.clone(), all.clone()], "{stage}");
        load(&node, &policy("deny"), &settings(InterfaceDefault::Allow));
        assert_eq!(heard("denied"), [vec![], vec![]] as [Vec<usize>; 2], "{stage}");
    }
    // Denials at the device itself stand a second time where the tags are gone.
    let everybody = "[[policy]]\nname = \"p\"\ninterfaces = \"all()\"\n\
                     ingress = [{ action = \"deny\", from = { cidrs = [\"10.0.0.0/24\", \"fd00::/64\"] } }]\n";
    let early = settings(InterfaceDefault::Allow);
    load(&node, everybody, &NodeSettings { early: Role::ALL.iter().copied().collect(), ..early });
    assert!(node.sh("nft list table inet nodewall").contains("hook ingress"));
    assert_eq!(heard("denied early"), [vec![], vec![]] as [Vec<usize>; 2]);
}

/// The link-layer address of an interface here, with its index.
fn link(name: &str) -> LinkAddr {
    let mut all = nix::ifaddrs::getifaddrs().unwrap().filter(|interface| interface.interface_name == name);
    all.find_map(|interface| interface.address?.as_link_addr().copied()).unwrap()
}

/// Ethertype, IP header, UDP header and one byte.
fn datagram(source: IpAddr, destination: IpAddr, byte: u8) -> Vec<u8> {
    let ports = [45_000u16, LISTENER, 9, 0].map(u16::to_be_bytes).concat();
    let mut udp = [ports, vec![byte]].concat();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // Without a UDP checksum, which IPv4 may do without.
            let mut header = vec![0x45, 0, 0, 20 + 9, 0, 0, 0, 0, 64, 17, 0, 0];
            header.extend([source.octets(), destination.octets()].concat());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            [vec![0x08, 0x00], header, udp].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            let pseudo = [&addresses[..], &[0, 0, 0, 9, 0, 0, 0, 17], &udp].concat();
            udp[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
            [vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 9, 17, 64], addresses, udp].concat()
        }
        _ => panic!("one family"),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
