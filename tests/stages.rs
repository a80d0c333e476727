//! The table of flows and stages in nodewall-policy(5), row by row with real packets: which stage sees a flow, with which addresses
//! and on which interface, what an allow skips, and how a reject is answered. A row of the page without packets fails, and packets
//! without a row do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lab::net::{Answer, Host, PATIENCE, Probe, Servers, What, probe, wire};
use lab::services::{Cluster, Service, portmap_iptables, portmap_nftables};
use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::Facts;
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::protocol::Protocol;
use nodewall::net::range::RangeSet;
use nodewall::policy::effective::Effective;
use nodewall::policy::model::{Mode, ServicePort, Stage};
use nodewall::policy::resolve::resolve;
use nodewall::policy::selector::Selector;
use nodewall::policy::settings::{Default as InterfaceDefault, Failsafe, NodeSettings};
use nodewall::simulate::{ConntrackState, Exit, Origin, Outcome, Packet, Socket, decide};
use nodewall::source;
use nodewall::text::finding::Severity;
use nodewall::text::place::Place;

// The page.

/// A column of the table.
type Point = (Stage, Direction);

/// The columns, from left to right: the header of the page says the same.
const POINTS: [(Point, &str); 7] = [
    ((Stage::Untracked, Direction::Ingress), "Ui"),
    ((Stage::Untracked, Direction::Egress), "Uo"),
    ((Stage::Prednat, Direction::Ingress), "Pi"),
    ((Stage::Host, Direction::Ingress), "Hi"),
    ((Stage::Host, Direction::Egress), "Ho"),
    ((Stage::Forward, Direction::Ingress), "Fi"),
    ((Stage::Forward, Direction::Egress), "Fo"),
];

/// With which addresses a packet is seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Form {
    /// As the sender wrote them.
    Sent,
    /// With the destination that somebody's DNAT gave it; of a reply, with the source that answers.
    Translated,
}

/// What the page says of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    /// Who sees its packets, and how.
    seen: BTreeMap<Point, Form>,
    /// Which direction of the untracked stage sees its replies, and how.
    replies: Option<(Direction, Form)>,
}

/// The rows of the page; those that it calls derived have no test.
fn rows() -> BTreeMap<String, Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/nodewall-policy.5");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n.Sh FLOWS AND STAGES\n").nth(1).expect("the section is there");
    let table = section.split(".Bl -column ").nth(1).expect("a table").split("\n.El\n").next().unwrap();
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(".It ")).map(|line| line.split(" Ta "));
    // Some words are macros unless something says that they are not.
    let header: Vec<&str> = lines.next().expect("a header").map(|word| word.trim_start_matches("\\&")).collect();
    let columns: Vec<&str> = POINTS.iter().map(|(_, word)| *word).collect();
    assert_eq!((header[1..8].to_vec(), header[8]), (columns, "Replies"));
    let form = |word: &str| match word {
        "S" => Form::Sent,
        "D" => Form::Translated,
        other => panic!("{other:?} is no cell of the table"),
    };
    let mut rows = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.collect();
        assert_eq!(cells.len(), 9, "{cells:?}");
        if cells[0].ends_with("(derived)") {
            continue;
        }
        let seen = POINTS.iter().zip(&cells[1..8]).filter(|(_, word)| **word != "-");
        let seen = seen.map(|((point, _), word)| (*point, form(word))).collect();
        let replies = (cells[8] != "-").then(|| match cells[8].split_once(' ') {
            Some(("in", word)) => (Direction::Ingress, form(word)),
            Some(("out", word)) => (Direction::Egress, form(word)),
            _ => panic!("{:?} is no cell for replies", cells[8]),
        });
        assert!(rows.insert(cells[0].to_owned(), Row { seen, replies }).is_none(), "{} is there twice", cells[0]);
    }
    rows
}

// The laboratory.

/// The addresses of one family.
struct Plan {
    /// Of a host behind the node's uplink, with its prefix length.
    remote: &'static str,
    /// Of the node there.
    node: &'static str,
    /// Of the node towards the other node.
    side: &'static str,
    /// Of the other node.
    other: &'static str,
    /// Of a pod on the other node.
    far: &'static str,
    /// Of the node and of pods on it.
    here: [&'static str; 2],
    pods: [&'static str; 2],
    /// All pods, and all services.
    pod_range: &'static str,
    service_range: &'static str,
    /// The first of ClusterIPs and load-balancer addresses; each service adds to it.
    clusters: &'static str,
    balancers: &'static str,
    /// Where nobody in particular listens: broadcast and multicast.
    groups: &'static [&'static str],
    loopback: &'static str,
    /// Of another host there, and of it and the node in a tunnel whose packets look like Soft-RoCE.
    roce: &'static str,
    tunnels: [[&'static str; 2]; 2],
    /// Of two bridges and their pods.
    bridges: [&'static str; 2],
    bridged: [[&'static str; 2]; 2],
}

const PLANS: [Plan; 2] = [
    Plan {
        remote: "10.0.0.1/24",
        node: "10.0.0.5/24",
        side: "10.1.0.5/24",
        other: "10.1.0.6/24",
        far: "10.244.2.7/32",
        here: ["10.244.1.1/24", "10.244.3.1/24"],
        pods: ["10.244.1.7/24", "10.244.3.7/24"],
        pod_range: "10.244.0.0/16",
        service_range: "10.96.0.0/12",
        clusters: "10.96.0.20",
        balancers: "198.51.100.20",
        groups: &["10.0.0.255", "239.1.2.3"],
        loopback: "127.0.0.1",
        roce: "10.0.0.2/24",
        tunnels: [["172.31.4.1/24", "172.31.4.5/24"], ["172.31.5.1/24", "172.31.5.5/24"]],
        bridges: ["10.244.5.1/24", "10.244.6.1/24"],
        bridged: [["10.244.5.7/24", "10.244.5.8/24"], ["10.244.6.7/24", "10.244.6.8/24"]],
    },
    Plan {
        remote: "fd00::1/64",
        node: "fd00::5/64",
        side: "fd01::5/64",
        other: "fd01::6/64",
        far: "fd44:2::7/128",
        here: ["fd44:1::1/64", "fd44:3::1/64"],
        pods: ["fd44:1::7/64", "fd44:3::7/64"],
        pod_range: "fd44::/16",
        service_range: "fd96::/108",
        clusters: "fd96::20",
        balancers: "2001:db8::20",
        groups: &["ff02::4e57"],
        loopback: "::1",
        roce: "fd00::2/64",
        tunnels: [["172.31.6.1/24", "172.31.6.5/24"], ["172.31.7.1/24", "172.31.7.5/24"]],
        bridges: ["fd44:5::1/64", "fd44:6::1/64"],
        bridged: [["fd44:5::7/64", "fd44:5::8/64"], ["fd44:6::7/64", "fd44:6::8/64"]],
    },
];

fn ip(text: &str) -> IpAddr {
    text.split('/').next().unwrap().parse().unwrap()
}

/// The address so many after another one.
fn after(address: IpAddr, more: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4) + u32::from(more))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) + u128::from(more))),
    }
}

/// What listens everywhere, where a service's endpoint listens, where the endpoint of another service does, and what only the host
/// itself asks.
const PLAIN: u16 = 80;
const ENDPOINT: u16 = 8080;
const OWN_ENDPOINT: u16 = 8082;
const LOOPBACK: u16 = 81;
/// Where groups are listened to, by family.
const GROUP_V4: u16 = 9998;
const GROUP_V6: u16 = 9997;
const ROCE: u16 = 4791;
/// hostPorts, by who made them.
const HOST_PORTS: [u16; 2] = [18_080, 18_081];

/// The ways in which kube-proxy writes its rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Proxy {
    Nftables,
    Iptables,
}

const PROXIES: [Proxy; 2] = [Proxy::Nftables, Proxy::Iptables];

/// The services of one family and one kube-proxy: to a pod here, to this host, to a pod elsewhere, and to the same pod for what
/// this host asks itself.
fn services(plan: &Plan, proxy: Proxy) -> [Service; 4] {
    let own = if proxy == Proxy::Nftables { 0 } else { 1 };
    let service = |number: u8, name, endpoint, port| Service {
        name,
        cluster: after(ip(plan.clusters), number * 2 + own),
        balancer: after(ip(plan.balancers), number * 2 + own),
        port: PLAIN,
        node_port: 30_080 + u16::from(number * 2 + own),
        endpoint: SocketAddr::new(ip(endpoint), port),
    };
    [
        service(0, "POD", plan.pods[0], ENDPOINT),
        service(1, "HOST", plan.node, ENDPOINT),
        service(2, "FAR", plan.far, ENDPOINT),
        service(3, "OWN", plan.pods[0], OWN_ENDPOINT),
    ]
}

/// A node with an uplink, two pods and a link to another node; kube-proxy in both of its modes, each with services of its own, and
/// hostPorts by both of portmap's.
struct Lab {
    node: Host,
    remote: Host,
    pods: [Host; 2],
    bridged: [[Host; 2]; 2],
    _other: Host,
    _servers: Vec<Servers>,
    _groups: Groups,
    facts: Facts,
}

impl Lab {
    fn new() -> Self {
        let [node, remote, other, one, two] = std::array::from_fn(|_| Host::new());
        let addresses = |get: fn(&Plan) -> &'static str| PLANS.each_ref().map(get);
        wire((&node, "mgmt0", &addresses(|plan| plan.node)), (&remote, "eth0", &addresses(|plan| plan.remote)));
        let bridged = bridges(&node);
        wire((&node, "peer0", &addresses(|plan| plan.side)), (&other, "eth0", &addresses(|plan| plan.other)));
        wire((&node, "cali1", &addresses(|plan| plan.here[0])), (&one, "eth0", &addresses(|plan| plan.pods[0])));
        wire((&node, "cali2", &addresses(|plan| plan.here[1])), (&two, "eth0", &addresses(|plan| plan.pods[1])));
        node.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        for plan in &PLANS {
            let [gateway, side, next] = [plan.remote, plan.side, plan.other].map(ip);
            node.sh(&format!("ip route add default via {gateway}; ip route add {} via {next}", plan.far));
            remote.sh(&format!("ip addr add {} dev eth0 nodad; ip route add default via {}", plan.roce, ip(plan.node)));
            other.sh(&format!("ip addr add {} dev lo; ip route add default via {side}", plan.far));
            for (pod, here) in [&one, &two].into_iter().zip(plan.here) {
                pod.sh(&format!("ip route add default via {}", ip(here)));
            }
            tunnels(plan, &node, &remote);
            plan.load(&node);
        }
        let ports = [PLAIN, ENDPOINT, OWN_ENDPOINT, LOOPBACK];
        let hosts = [&node, &remote, &other, &one, &two].into_iter().chain(bridged.as_flattened());
        let servers = hosts.map(|host| host.serve(&ports, &ports)).collect();
        let groups = Groups::new(&node);
        let facts = node.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(nodewall::host::collect(Path::new("/sys"))).unwrap()
        });
        let pods = [one, two];
        let lab = Self { node, remote, pods, bridged, _other: other, _servers: servers, _groups: groups, facts };
        lab.warm_up();
        lab
    }

    /// Makes neighbours known to each other, and shows that everything is answered without rules of ours.
    fn warm_up(&self) {
        let flows = flows(self);
        let tries: Vec<&Try> = flows.iter().flat_map(|flow| &flow.tries).collect();
        send(&tries);
        for (one, answer) in tries.iter().zip(send(&tries)) {
            assert_eq!(answer, Answer::Allowed, "the lab itself, without rules: {one:?}");
        }
    }

    fn kernel(&self) -> Netlink {
        self.node.enter(|| Netlink::open().unwrap())
    }

    /// Puts documents in force, with everything forgotten that was let through before.
    fn load(&self, kernel: &mut Netlink, documents: &Documents, settings: &NodeSettings) -> Effective {
        let text = documents.to_string();
        let sourced = source::decode_text("policy.toml", &text);
        let (effective, resolved) = resolve(&sourced.policy, settings, &self.facts);
        let errors: Vec<_> =
            sourced.findings.iter().chain(&resolved).filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{text}");
        driver::apply(kernel, &compile(&effective), None).unwrap();
        self.node.enter(lab::conntrack::flush);
        effective
    }
}

/// Nothing but the policies decides.
fn settings() -> NodeSettings {
    let mut settings = Config::shipped().settings;
    settings.failsafe = Vec::new();
    let keys = Role::ALL.iter().flat_map(|role| Direction::BOTH.map(|direction| (*role, direction)));
    settings.defaults = keys.map(|key| (key, InterfaceDefault::Allow)).collect();
    settings
}

/// Two tunnels whose packets are what rdma_rxe's are: UDP to port 4791 both ways, sent by the kernel. Their far ends ask, and what
/// answers inside is the kernel, too.
fn tunnels(plan: &Plan, node: &Host, remote: &Host) {
    let family = if ip(plan.node).is_ipv4() { 4 } else { 6 };
    for ((number, [there, here]), far) in (0..).zip(plan.tunnels).zip([plan.remote, plan.roce]) {
        let name = format!("vx{family}{number}");
        let ends = [(node, "mgmt0", plan.node, far, here), (remote, "eth0", far, plan.node, there)];
        for (host, device, near, far, inside) in ends {
            host.sh(&format!(
                "ip link add {name} type vxlan id {family}{number} dstport {ROCE} local {} remote {} dev {device}; \
                 ip addr add {inside} dev {name}; ip link set {name} up",
                ip(near),
                ip(far)
            ));
        }
    }
}

/// Two bridges with two pods each; what passes the first is shown to the stages (`br_netfilter`), what passes the second is not.
fn bridges(node: &Host) -> [[Host; 2]; 2] {
    node.sh(
        "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables; echo 0 >/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    );
    std::array::from_fn(|bridge| {
        node.sh(&format!(
            "ip link add cni{bridge} type bridge nf_call_iptables {shown} nf_call_ip6tables {shown}; ip link set cni{bridge} up",
            shown = 1 - bridge
        ));
        for plan in &PLANS {
            node.sh(&format!("ip addr add {} dev cni{bridge} nodad", plan.bridges[bridge]));
        }
        std::array::from_fn(|pod| {
            let host = Host::new();
            let addresses = PLANS.each_ref().map(|plan| plan.bridged[bridge][pod]);
            wire((node, &format!("veth{bridge}{pod}"), &[]), (&host, "eth0", &addresses));
            node.sh(&format!("ip link set veth{bridge}{pod} master cni{bridge}"));
            host
        })
    })
}

impl Plan {
    /// What others do to packets on a node of a cluster.
    fn load(&self, node: &Host) {
        let cluster = Cluster { node: ip(self.node), pods: self.pod_range, services: self.service_range };
        let v4 = cluster.node.is_ipv4();
        node.nft(&cluster.kube_proxy_nftables(&services(self, Proxy::Nftables)));
        node.iptables(v4, &cluster.kube_proxy_iptables(&services(self, Proxy::Iptables)));
        let pod = SocketAddr::new(ip(self.pods[0]), ENDPOINT);
        node.iptables(v4, &portmap_iptables(pod, HOST_PORTS[0]));
        node.nft(&portmap_nftables(pod, HOST_PORTS[1]));
        // What leaves the cluster has the node's address, as flannel and Calico do it.
        let (ip, range) = (if v4 { "ip" } else { "ip6" }, self.pod_range);
        node.nft(&format!(
            "table {ip} cni {{ chain postrouting {{ type nat hook postrouting priority 100; \
             {ip} saddr {range} {ip} daddr != {range} masquerade; }}; }}"
        ));
    }
}

/// Listeners for broadcast and multicast, which answer whom they hear.
struct Groups {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Groups {
    fn new(node: &Host) -> Self {
        let sockets = node.enter(|| {
            let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, GROUP_V4)).unwrap();
            let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, GROUP_V6)).unwrap();
            for plan in &PLANS {
                for group in plan.groups.iter().map(|group| ip(group)).filter(IpAddr::is_multicast) {
                    match (group, ip(plan.node)) {
                        (IpAddr::V4(group), IpAddr::V4(here)) => v4.join_multicast_v4(&group, &here).unwrap(),
                        (IpAddr::V6(group), _) => {
                            v6.join_multicast_v6(&group, nix::net::if_::if_nametoindex("mgmt0").unwrap()).unwrap();
                        }
                        _ => panic!("a plan is of one family"),
                    }
                }
            }
            [v4, v6]
        });
        let stop = Arc::new(AtomicBool::new(false));
        let threads = sockets.map(|socket| {
            let stop = Arc::clone(&stop);
            socket.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..length], peer);
                    }
                }
            })
        });
        Self { stop, threads: threads.into() }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

// Flows and packets.

/// What a rule has to name to match a packet, in one form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    source: IpAddr,
    destination: IpAddr,
    what: What,
}

/// One packet and its answer.
#[derive(Clone, Debug)]
struct Try {
    probe: Probe,
    /// The packet as it is sent.
    sent: Head,
    /// The packet with the destination that DNAT gives it, where somebody does.
    translated: Option<Head>,
}

/// A row of the page, and packets of that kind.
#[derive(Clone, Debug)]
struct Flow {
    row: &'static str,
    /// The interfaces of the node by which its packets come and go.
    arrives: Option<&'static str>,
    leaves: Option<&'static str>,
    /// The interface by which its replies come.
    back: Option<&'static str>,
    tries: Vec<Try>,
}

fn flows(lab: &Lab) -> Vec<Flow> {
    PLANS.iter().flat_map(|plan| flows_of(lab, plan)).collect()
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

    fn head(&self, form: Form) -> Option<Head> {
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
    fn packet(&self, one: &Try) -> Option<Packet> {
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
fn send(tries: &[&Try]) -> Vec<Answer> {
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

// Policies.

/// Rules by stage, direction and the interfaces that they are for.
#[derive(Clone, Default)]
struct Documents {
    mode: &'static str,
    rules: BTreeMap<(Point, String), BTreeSet<String>>,
}

impl Documents {
    fn add(&mut self, point: Point, interfaces: impl Into<String>, rule: impl Into<String>) {
        self.rules.entry((point, interfaces.into())).or_default().insert(rule.into());
    }
}

impl std::fmt::Display for Documents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = if self.mode.is_empty() { "enforce" } else { self.mode };
        for (order, (((stage, direction), interfaces), rules)) in self.rules.iter().enumerate() {
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            writeln!(
                formatter,
                "[[policy]]\nname = \"p{order}\"\norder = {order}\nmode = \"{mode}\"\nstage = \"{}\"\ninterfaces = \"{interfaces}\"\n{} = [\n  {},\n]\n",
                stage.name(),
                direction.name(),
                rules.join(",\n  "),
            )?;
        }
        Ok(())
    }
}

/// A rule for just this packet.
fn rule(action: &str, head: &Head) -> String {
    let Head { source, destination, what } = head;
    let what = match what {
        What::Tcp(port) => format!("protocol = \"tcp\", ports = [{port}]"),
        What::Udp(port) => format!("protocol = \"udp\", ports = [{port}]"),
        What::Echo => "icmp = { type = \"echo-request\" }".to_owned(),
    };
    format!(
        "{{ action = \"{action}\", from = {{ cidrs = [\"{source}\"] }}, to = {{ cidrs = [\"{destination}\"] }}, {what} }}"
    )
}

/// A rule for the answers to it, whoever gets them.
fn reply_rule(action: &str, head: &Head) -> String {
    let Head { destination, what, .. } = head;
    match what {
        What::Tcp(port) => {
            format!(
                "{{ action = \"{action}\", from = {{ cidrs = [\"{destination}\"], ports = [{port}] }}, protocol = \"tcp\" }}"
            )
        }
        What::Udp(port) => {
            format!(
                "{{ action = \"{action}\", from = {{ cidrs = [\"{destination}\"], ports = [{port}] }}, protocol = \"udp\" }}"
            )
        }
        What::Echo => {
            format!(
                "{{ action = \"{action}\", from = {{ cidrs = [\"{destination}\"] }}, icmp = {{ type = \"echo-reply\" }} }}"
            )
        }
    }
}

impl Flow {
    /// The interface that counts at a point.
    fn interface(&self, (_, direction): Point) -> Option<&'static str> {
        match direction {
            Direction::Ingress => self.arrives,
            Direction::Egress => self.leaves,
        }
    }
}

fn on(interface: &str) -> String {
    format!("name == '{interface}'")
}

fn elsewhere(interface: &str) -> String {
    format!("name != '{interface}'")
}

/// A laboratory, its kernel, and what it has seen.
struct Bench {
    lab: Lab,
    kernel: Netlink,
    flows: Vec<Flow>,
    rows: BTreeMap<String, Row>,
    /// Whether the simulator is asked, too: it takes the packet that begins a flow.
    simulated: bool,
    wrong: Vec<String>,
    sent: usize,
}

impl Bench {
    fn new() -> Self {
        let lab = Lab::new();
        let (kernel, flows) = (lab.kernel(), flows(&lab));
        Self { lab, kernel, flows, rows: rows(), simulated: true, wrong: Vec::new(), sent: 0 }
    }

    fn row(&self, flow: &Flow) -> &Row {
        self.rows.get(flow.row).unwrap_or_else(|| panic!("nodewall-policy(5) has no row {:?}", flow.row))
    }

    /// Puts documents in force, sends what something is expected of, and compares. Where there is one thing to expect, it is what
    /// the simulator says as well.
    fn expect(
        &mut self,
        about: &str,
        documents: &Documents,
        settings: &NodeSettings,
        expected: impl Fn(&Flow, &Row, &Try) -> Option<Vec<Answer>>,
    ) {
        let effective = self.lab.load(&mut self.kernel, documents, settings);
        let mut tries = Vec::new();
        for flow in &self.flows {
            let row = self.row(flow);
            tries.extend(flow.tries.iter().filter_map(|one| Some((flow, one, expected(flow, row, one)?))));
        }
        let answers = send(&tries.iter().map(|(_, one, _)| *one).collect::<Vec<_>>());
        let mut wrong = Vec::new();
        for ((flow, one, expected), answer) in tries.iter().zip(answers) {
            if !expected.contains(&answer) {
                wrong.push(format!("{about}: {}: {answer:?}, not {expected:?}: {:?}", flow.row, one.sent));
            }
            let (Some(packet), [expected]) = (flow.packet(one), &expected[..]) else { continue };
            let decision = decide(&effective, &packet);
            if self.simulated && (decision.outcome == Outcome::Accepted) != (*expected == Answer::Allowed) {
                wrong.push(format!("{about}: {}: simulated, {decision:?}, not {expected:?}: {packet:?}", flow.row));
            }
        }
        self.sent += tries.len();
        self.wrong.extend(wrong);
    }

    /// Rules for what these points see, in the form and on the interface in which they see it.
    fn where_seen(&self, action: &str, points: &[Point]) -> Documents {
        let mut documents = Documents::default();
        for flow in &self.flows {
            for (point, form) in self.row(flow).seen.iter().filter(|(point, _)| points.contains(point)) {
                let interface = flow.interface(*point).unwrap_or_else(|| panic!("{} has no interface there", flow.row));
                for head in flow.tries.iter().filter_map(|one| one.head(*form)) {
                    documents.add(*point, on(interface), rule(action, &head));
                }
            }
        }
        documents
    }

    fn finish(self) {
        println!("{} packets", self.sent);
        assert!(self.wrong.is_empty(), "{} of {}:\n{}", self.wrong.len(), self.sent, self.wrong.join("\n"));
    }
}

const UNTRACKED: [Point; 2] = [(Stage::Untracked, Direction::Ingress), (Stage::Untracked, Direction::Egress)];
const PREDNAT: Point = (Stage::Prednat, Direction::Ingress);
const ENDS: [Point; 4] = [
    (Stage::Host, Direction::Ingress),
    (Stage::Host, Direction::Egress),
    (Stage::Forward, Direction::Ingress),
    (Stage::Forward, Direction::Egress),
];

const ALLOWED: [Answer; 1] = [Answer::Allowed];
const DENIED: [Answer; 1] = [Answer::Denied];

#[test]
fn every_row_of_the_page_has_packets_and_the_other_way_round() {
    let on_page: BTreeSet<String> = rows().into_keys().collect();
    // The names stand in `flows_of`, which takes a laboratory.
    let text = include_str!("stages.rs");
    let body = text.split("fn flows_of(").nth(1).unwrap().split("\nimpl Try {").next().unwrap();
    let tested: BTreeSet<String> = body
        .split("flow(")
        .skip(1)
        .filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next())
        .map(str::to_owned)
        .collect();
    assert_eq!(on_page, tested);
    assert!(tested.len() >= 20, "{tested:?}");
}

/// A deny where the page says that a flow is seen, with these addresses and on this interface, keeps it out; a deny anywhere else
/// changes nothing.
#[test]
fn each_stage_sees_what_the_page_says() {
    if !lab::may_run("each_stage_sees_what_the_page_says") {
        return;
    }
    let mut bench = Bench::new();
    let settings = settings();
    for (point, word) in POINTS {
        let (mut there, mut not_there) = (Documents::default(), Documents::default());
        for flow in &bench.flows {
            let seen = bench.row(flow).seen.get(&point).copied();
            for one in &flow.tries {
                for form in [Form::Sent, Form::Translated] {
                    let Some(head) = one.head(form) else { continue };
                    let deny = rule("deny", &head);
                    if seen == Some(form) {
                        let interface =
                            flow.interface(point).unwrap_or_else(|| panic!("{} has no interface there", flow.row));
                        there.add(point, on(interface), &deny);
                        not_there.add(point, elsewhere(interface), &deny);
                    } else {
                        not_there.add(point, "all()", &deny);
                    }
                }
            }
        }
        bench.expect(&format!("deny in {word}"), &there, &settings, |_, row, _| {
            Some(if row.seen.contains_key(&point) { DENIED } else { ALLOWED }.into())
        });
        bench.expect(&format!("deny in {word} of what it does not see"), &not_there, &settings, |_, _, _| {
            Some(ALLOWED.into())
        });
    }
    bench.finish();
}

/// Replies are seen by the untracked stage and by no other.
#[test]
fn replies_are_seen_before_connection_tracking_only() {
    if !lab::may_run("replies_are_seen_before_connection_tracking_only") {
        return;
    }
    let mut bench = Bench { simulated: false, ..Bench::new() };
    let settings = settings();
    for (point, word) in POINTS {
        let (mut there, mut not_there) = (Documents::default(), Documents::default());
        for flow in &bench.flows {
            let replies = bench.row(flow).replies;
            let seen = replies.filter(|(direction, _)| (Stage::Untracked, *direction) == point);
            for one in &flow.tries {
                for form in [Form::Sent, Form::Translated] {
                    let Some(head) = one.head(form) else { continue };
                    let deny = reply_rule("deny", &head);
                    let interface = match point.1 {
                        Direction::Ingress => flow.back,
                        Direction::Egress => flow.arrives,
                    };
                    match (seen, interface) {
                        (Some((_, as_seen)), Some(interface)) if as_seen == form => {
                            there.add(point, on(interface), &deny);
                            not_there.add(point, elsewhere(interface), &deny);
                        }
                        (Some((_, as_seen)), None) if as_seen == form => panic!("{} has no interface there", flow.row),
                        _ => not_there.add(point, "all()", &deny),
                    }
                }
            }
        }
        bench.expect(&format!("deny replies in {word}"), &there, &settings, |_, row, _| {
            let seen = row.replies.is_some_and(|(direction, _)| (Stage::Untracked, direction) == point);
            Some(if seen { DENIED } else { ALLOWED }.into())
        });
        bench.expect(&format!("deny replies in {word} that it does not see"), &not_there, &settings, |_, _, _| {
            Some(ALLOWED.into())
        });
    }
    bench.finish();
}

/// An allow in an early stage skips the later ones; one in the ingress half of the forward stage does not skip the egress half.
#[test]
fn an_early_allow_skips_later_stages() {
    if !lab::may_run("an_early_allow_skips_later_stages") {
        return;
    }
    let mut bench = Bench::new();
    let mut documents = bench.where_seen("deny", &ENDS);
    for flow in bench.flows.iter().filter(|flow| flow.arrives.is_some()) {
        for one in &flow.tries {
            documents.add(PREDNAT, "all()", rule("allow", &one.sent));
        }
    }
    // The bit is whichever the settings say.
    for accept_mark in [0x10, 0x8000_0000] {
        let settings = NodeSettings { accept_mark, ..settings() };
        bench.expect("allow in Pi, deny after", &documents, &settings, |_, row, _| {
            row.seen.contains_key(&PREDNAT).then(|| ALLOWED.into())
        });
    }

    let mut documents = bench.where_seen("deny", &[&ENDS[..], &[PREDNAT]].concat());
    for flow in &bench.flows {
        for one in &flow.tries {
            for point in UNTRACKED {
                documents.add(point, "all()", rule("allow", &one.sent));
                documents.add(point, "all()", reply_rule("allow", &one.sent));
            }
        }
    }
    bench.expect("allow in Ui and Uo, deny after", &documents, &settings(), |_, row, one| {
        // What is not tracked is not translated either.
        let expected = if one.translated.is_some() { &[Answer::Denied, Answer::Rejected][..] } else { &ALLOWED };
        UNTRACKED.iter().any(|point| row.seen.contains_key(point)).then(|| expected.into())
    });

    let [_, _, arrives, leaves] = ENDS;
    let mut documents = bench.where_seen("deny", &[leaves]);
    for flow in &bench.flows {
        let form = bench.row(flow).seen.get(&arrives).copied();
        for head in flow.tries.iter().filter_map(|one| one.head(form?)) {
            documents.add(arrives, "all()", rule("allow", &head));
        }
    }
    bench.expect("allow in Fi, deny in Fo", &documents, &settings(), |_, row, _| {
        row.seen.contains_key(&leaves).then(|| DENIED.into())
    });
    bench.finish();
}

/// Only our stages say what a later one skips: the mark of somebody else, or of a process, is taken off or not looked at.
#[test]
fn a_mark_that_is_not_ours_skips_nothing() {
    if !lab::may_run("a_mark_that_is_not_ours_skips_nothing") {
        return;
    }
    let mut bench = Bench::new();
    // Before everything of ours; other bits stay with the packet, and who looks for them finds them.
    bench.lab.node.nft(
        "table inet marker {
            chain prerouting { type filter hook prerouting priority -400; meta mark set 0x110; }
            chain output { type filter hook output priority -400; meta mark set 0x110; }
            chain postrouting { type filter hook postrouting priority 200; meta mark & 0x100 == 0 drop; }
        }",
    );
    let elsewhere = "{ action = \"allow\", from = { cidrs = [\"192.0.2.1\"] } }";
    for early in [&[PREDNAT][..], &UNTRACKED, &[PREDNAT, UNTRACKED[0], UNTRACKED[1]]] {
        let mut documents = bench.where_seen("deny", &ENDS);
        for point in early {
            documents.add(*point, "all()", elsewhere);
        }
        bench.expect(&format!("marks before {early:?}"), &documents, &settings(), |_, row, _| {
            let seen = ENDS.iter().any(|point| row.seen.contains_key(point));
            Some(if seen { DENIED } else { ALLOWED }.into())
        });
    }
    bench.finish();
}

/// A reject is answered in every stage but one: what the untracked stage rejects has no flow, so that its answer is a packet of no
/// flow, which the host stage drops unless it is told otherwise.
#[test]
fn rejects_are_answered_where_the_page_says() {
    if !lab::may_run("rejects_are_answered_where_the_page_says") {
        return;
    }
    let mut bench = Bench::new();
    let answered = |flow: &Flow| match flow.row {
        // Nobody is told what was sent to a group, and what asks through a tunnel does not hear of it.
        "remote to broadcast or multicast" | "Soft-RoCE arriving" => DENIED.into(),
        _ => vec![Answer::Rejected],
    };
    let [arrives, leaves] = UNTRACKED;
    for (point, word) in POINTS {
        let documents = bench.where_seen("reject", &[point]);
        bench.expect(&format!("reject in {word}"), &documents, &settings(), |flow, row, one| {
            // A bridge sends resets by itself, past this host's output.
            let reset = flow.row == "pods of one bridge, with br_netfilter" && matches!(one.sent.what, What::Tcp(_));
            let silent = point == arrives && !reset;
            row.seen.contains_key(&point).then(|| if silent { DENIED.into() } else { answered(flow) })
        });
    }
    let mut documents = bench.where_seen("reject", &[arrives]);
    bench.expect(
        "reject in Ui, invalid packets not dropped",
        &documents,
        &NodeSettings { drop_invalid: false, ..settings() },
        |flow, row, _| row.seen.contains_key(&arrives).then(|| answered(flow)),
    );
    for flow in &bench.flows {
        for one in &flow.tries {
            documents.add(leaves, "all()", reply_rule("allow", &one.sent));
        }
    }
    documents.add(leaves, "all()", "{ action = \"allow\", icmp = { type = \"destination-unreachable\" } }");
    bench.expect("reject in Ui, answers allowed in Uo", &documents, &settings(), |flow, row, _| {
        row.seen.contains_key(&arrives).then(|| answered(flow))
    });
    bench.finish();
}

/// A policy in audit mode, and a node in audit mode, change nothing in any stage: not even that addresses are translated, which they
/// are only where connections are tracked.
#[test]
fn audit_changes_nothing_in_any_stage_and_counts() {
    if !lab::may_run("audit_changes_nothing_in_any_stage_and_counts") {
        return;
    }
    let mut bench = Bench::new();
    let points = POINTS.map(|(point, _)| point);
    for action in ["deny", "reject", "allow"] {
        let documents = bench.where_seen(action, &points);
        let watching = Documents { mode: "audit", ..documents.clone() };
        let node_wide = NodeSettings { mode: Mode::Audit, ..settings() };
        for (about, documents, settings) in
            [("policies", &watching, settings()), ("the node", &documents, node_wide), ("both", &watching, settings())]
        {
            bench.expect(&format!("{action} while {about} in audit"), documents, &settings, |_, _, _| {
                Some(ALLOWED.into())
            });
            let counted = bench.lab.node.sh("nft list table inet nodewall");
            for order in 0..documents.rules.len() {
                let of_policy = |line: &&str| line.contains(&format!("comment \"p{order}#"));
                let lines: Vec<&str> = counted.lines().filter(of_policy).collect();
                let some =
                    lines.iter().any(|line| line.contains("counter packets") && !line.contains("counter packets 0 "));
                // With the node in audit a packet that an early stage would have denied goes past the later ones, as it would
                // never have come there.
                assert!(some || about == "the node", "{action}, {about}: policy p{order} counted nothing: {lines:#?}");
            }
        }
    }
    bench.finish();
}

/// What failsafe lets through no stage can stop, and of an early stage it skips nothing else.
#[test]
fn failsafe_holds_in_every_stage() {
    if !lab::may_run("failsafe_holds_in_every_stage") {
        return;
    }
    let mut bench = Bench::new();
    let entry = |direction: Direction| Failsafe {
        name: format!("plain-{}", direction.name()),
        direction,
        ports: vec![ServicePort::Ports(Protocol::TCP, RangeSet::single(PLAIN))],
        peers: None,
        interfaces: Selector::All,
        cluster_api: false,
        place: Place::file("stages.rs"),
    };
    let settings = NodeSettings { failsafe: Direction::BOTH.map(entry).into(), ..settings() };
    for (point, word) in POINTS {
        let documents = bench.where_seen("deny", &[point]);
        bench.expect(&format!("deny in {word} behind a failsafe"), &documents, &settings, |_, row, one| {
            let form = *row.seen.get(&point)?;
            let safe = one.head(form).is_some_and(|head| head.what == What::Tcp(PLAIN));
            Some(if safe { ALLOWED } else { DENIED }.into())
        });
    }
    bench.finish();
}
