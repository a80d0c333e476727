//! Packets for every row of the table of flows and stages.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};

use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::Protocol;
use nodewall::simulate::{ConntrackState, Exit, Origin, Packet, Socket};

use super::lab::net::{Answer, Host, PATIENCE, Probe, What, probe};
use super::lab::services::Service;
use super::node::{
    ENDPOINT, GROUP_V4, GROUP_V6, HOST_PORTS, LOOPBACK, Lab, PLAIN, PLANS, PROXIES, Plan, ROCE, ip, services,
};
use super::page::{Form, Point};

/// What a rule has to name to match a packet, in one form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub what: What,
}

/// One packet and its answer.
#[derive(Clone, Debug)]
pub struct Try {
    pub probe: Probe,
    /// The packet as it is sent.
    pub sent: Head,
    /// The packet with the destination that DNAT gives it, where somebody does.
    pub translated: Option<Head>,
}

/// A row of the page, and packets of that kind.
#[derive(Clone, Debug)]
pub struct Flow {
    pub row: &'static str,
    /// The interfaces of the node by which its packets come and go.
    pub arrives: Option<&'static str>,
    pub leaves: Option<&'static str>,
    /// The interface by which its replies come.
    pub back: Option<&'static str>,
    pub tries: Vec<Try>,
}

/// The rows that have packets here.
pub const FLOWS: [&str; 22] = [
    "remote to host process",
    "remote to NodePort of a host process",
    "remote to local pod",
    "remote to NodePort of a local pod",
    "remote to load-balancer IP of a local pod",
    "remote to hostPort of a local pod",
    "remote to NodePort of a remote pod",
    "remote to remote, routed",
    "host process to remote",
    "host process to local pod",
    "host process to ClusterIP of a local pod",
    "host process to NodePort of its own host",
    "local pod to host process",
    "local pod to remote",
    "local pod to local pod",
    "local pod to ClusterIP of a local pod",
    "host to itself",
    "remote to broadcast or multicast",
    "Soft-RoCE arriving",
    "Soft-RoCE leaving",
    "pods of one bridge, with br_netfilter",
    "pods of one bridge, without it",
];

/// All flows, of both families.
pub fn flows(lab: &Lab) -> Vec<Flow> {
    let of_both = PLANS.each_ref().map(|plan| flows_of(lab, plan));
    for flows in &of_both {
        assert!(flows.iter().map(|flow| flow.row).eq(FLOWS), "what is here and what is said to be here");
    }
    of_both.into_iter().flatten().collect()
}

fn flows_of(lab: &Lab, plan: &Plan) -> Vec<Flow> {
    let Lab { node, remote, pods, bridged, .. } = lab;
    let [there, here, other] = [plan.remote, plan.node, plan.other].map(ip);
    let [one, two] = plan.pods.map(ip);
    let [gate_one, gate_two] = plan.here.map(ip);
    // Everything by its own address, or only what has ports.
    let plain = |from: &Host, source: IpAddr, destination: IpAddr| -> Vec<Try> {
        [What::Tcp(PLAIN), What::Udp(PLAIN), What::Echo].map(|what| Try::new(from, source, destination, what)).into()
    };
    let by = |from: &Host, source: IpAddr, to: IpAddr, port: u16, end: SocketAddr| -> Vec<Try> {
        let what: [fn(u16) -> What; 2] = [What::Tcp, What::Udp];
        what.map(|what| Try {
            translated: Some(Head { source, destination: end.ip(), what: what(end.port()) }),
            ..Try::new(from, source, to, what(port))
        })
        .into()
    };
    let both = |number: usize, get: &dyn Fn(&Service) -> Vec<Try>| -> Vec<Try> {
        PROXIES.iter().flat_map(|proxy| get(&services(plan, *proxy)[number])).collect()
    };
    let node_port = |number| both(number, &|service| by(remote, there, here, service.node_port, service.endpoint));
    let flow = |row, arrives, leaves, back, tries| Flow { row, arrives, leaves, back, tries };
    let (mgmt, peer, first, second) = (Some("mgmt0"), Some("peer0"), Some("cali1"), Some("cali2"));
    let endpoint = SocketAddr::new(one, ENDPOINT);
    let on_bridge = |bridge: usize| {
        let [from, to] = plan.bridged[bridge].map(ip);
        plain(&bridged[bridge][0], from, to)
    };
    vec![
        flow("remote to host process", mgmt, None, None, plain(remote, there, here)),
        flow("remote to NodePort of a host process", mgmt, None, None, node_port(1)),
        flow("remote to local pod", mgmt, first, first, plain(remote, there, one)),
        flow("remote to NodePort of a local pod", mgmt, first, first, node_port(0)),
        flow(
            "remote to load-balancer IP of a local pod",
            mgmt,
            first,
            first,
            both(0, &|service| by(remote, there, service.balancer, service.port, service.endpoint)),
        ),
        flow(
            "remote to hostPort of a local pod",
            mgmt,
            first,
            first,
            HOST_PORTS.iter().flat_map(|port| by(remote, there, here, *port, endpoint)).collect(),
        ),
        flow("remote to NodePort of a remote pod", mgmt, peer, peer, node_port(2)),
        flow("remote to remote, routed", mgmt, peer, peer, plain(remote, there, other)),
        flow("host process to remote", None, mgmt, mgmt, plain(node, here, there)),
        flow("host process to local pod", None, second, second, plain(node, gate_two, two)),
        flow(
            "host process to ClusterIP of a local pod",
            None,
            mgmt,
            first,
            both(0, &|service| by(node, here, service.cluster, service.port, service.endpoint)),
        ),
        flow(
            "host process to NodePort of its own host",
            None,
            None,
            first,
            both(3, &|service| by(node, here, here, service.node_port, service.endpoint)),
        ),
        flow("local pod to host process", first, None, None, plain(&pods[0], one, gate_one)),
        flow("local pod to remote", first, mgmt, mgmt, plain(&pods[0], one, there)),
        flow("local pod to local pod", second, first, first, plain(&pods[1], two, one)),
        flow(
            "local pod to ClusterIP of a local pod",
            second,
            first,
            first,
            both(0, &|service| by(&pods[1], two, service.cluster, service.port, service.endpoint)),
        ),
        flow(
            "host to itself",
            None,
            None,
            None,
            [ip(plan.loopback), here]
                .into_iter()
                .flat_map(|address| {
                    [What::Tcp(LOOPBACK), What::Udp(LOOPBACK)].map(|what| Try::new(node, address, address, what))
                })
                .collect(),
        ),
        flow(
            "remote to broadcast or multicast",
            mgmt,
            None,
            None,
            plan.groups
                .iter()
                .map(|group| {
                    let port = if there.is_ipv4() { GROUP_V4 } else { GROUP_V6 };
                    Try::new(remote, there, ip(group), What::Udp(port))
                })
                .collect(),
        ),
        flow("Soft-RoCE arriving", mgmt, None, None, vec![Try::roce(remote, plan.tunnels[0], there, here)]),
        flow("Soft-RoCE leaving", None, mgmt, None, vec![Try::roce(remote, plan.tunnels[1], here, ip(plan.roce))]),
        flow("pods of one bridge, with br_netfilter", Some("cni0"), Some("cni0"), Some("cni0"), on_bridge(0)),
        flow("pods of one bridge, without it", None, None, None, on_bridge(1)),
    ]
}

impl Try {
    fn new(from: &Host, source: IpAddr, destination: IpAddr, what: What) -> Self {
        let probe = Probe { from: from.clone(), source, destination, what };
        Self { probe, sent: Head { source, destination, what }, translated: None }
    }

    /// An echo through a tunnel, of which the packet from `source` to `destination` is looked at.
    fn roce(remote: &Host, tunnel: [&str; 2], source: IpAddr, destination: IpAddr) -> Self {
        let [there, here] = tunnel.map(ip);
        let probe = Probe { from: remote.clone(), source: there, destination: here, what: What::Echo };
        Self { probe, sent: Head { source, destination, what: What::Udp(ROCE) }, translated: None }
    }

    pub fn head(&self, form: Form) -> Option<Head> {
        match form {
            Form::Sent => Some(self.sent),
            Form::Translated => self.translated,
        }
    }

    fn is_group(&self) -> bool {
        matches!(self.sent.what, What::Udp(GROUP_V4 | GROUP_V6))
    }
}

impl Flow {
    /// The packet as the simulator takes it; `None` where it has no words for a packet that no stage sees.
    pub fn packet(&self, one: &Try) -> Option<Packet> {
        let name = |interface: &str| InterfaceName::new(interface).unwrap();
        let local = matches!(self.row, "host to itself" | "host process to NodePort of its own host");
        let (direction, interface) = match (self.arrives, self.leaves) {
            (Some(arrives), _) => (Direction::Ingress, arrives),
            (None, Some(leaves)) => (Direction::Egress, leaves),
            (None, None) if local => (Direction::Egress, "lo"),
            (None, None) => return None,
        };
        let leaves = self.leaves.filter(|_| direction == Direction::Ingress);
        let v4 = one.sent.source.is_ipv4();
        let (protocol, port) = match one.sent.what {
            What::Tcp(port) => (Protocol::TCP, Some(port)),
            What::Udp(port) => (Protocol::UDP, Some(port)),
            What::Echo => (if v4 { Protocol::ICMP } else { Protocol::ICMPV6 }, None),
        };
        let translated = one.translated.map(|head| match head.what {
            What::Tcp(port) | What::Udp(port) => (head.destination, port),
            What::Echo => panic!("only what has ports is translated"),
        });
        let by_process = direction == Direction::Egress && self.row != "Soft-RoCE leaving";
        Some(Packet {
            direction,
            interface: name(interface),
            kind: None,
            source: one.sent.source,
            destination: one.sent.destination,
            protocol: Some(protocol),
            ports: port.map(|port| (45_000, port)),
            icmp: port.is_none().then_some((if v4 { 8 } else { 128 }, 0)),
            hop_limit: 64,
            state: ConntrackState::New,
            forward: leaves.map(|leaves| Exit { interface: name(leaves), kind: None }),
            translated,
            origin: if by_process { Origin::Process(Socket::default()) } else { Origin::Kernel },
        })
    }
}

/// Sends all of them and returns their answers.
pub fn send(tries: &[&Try]) -> Vec<Answer> {
    let mut answers =
        probe(&tries.iter().filter(|one| !one.is_group()).map(|one| one.probe.clone()).collect::<Vec<_>>()).into_iter();
    tries.iter().map(|one| if one.is_group() { ask_group(&one.probe) } else { answers.next().unwrap() }).collect()
}

/// A datagram that somebody answers who was not named.
fn ask_group(probe: &Probe) -> Answer {
    let What::Udp(port) = probe.what else { panic!("groups are asked by UDP") };
    probe.from.enter(|| {
        let socket = UdpSocket::bind((probe.source, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let to = match probe.destination {
            IpAddr::V4(group) => SocketAddr::from((group, port)),
            IpAddr::V6(group) => {
                SocketAddr::V6(SocketAddrV6::new(group, port, 0, nix::net::if_::if_nametoindex("eth0").unwrap()))
            }
        };
        socket.send_to(b"nodewall", to).unwrap();
        if socket.recv_from(&mut [0; 64]).is_ok() { Answer::Allowed } else { Answer::Denied }
    })
}

impl Flow {
    /// The interface that counts at a point.
    pub fn interface(&self, (_, direction): Point) -> Option<&'static str> {
        match direction {
            Direction::Ingress => self.arrives,
            Direction::Egress => self.leaves,
        }
    }
}
