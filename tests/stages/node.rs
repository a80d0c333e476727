//! A node of a cluster with everything around it that the table of flows and stages speaks of.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::Facts;
use nodewall::net::interface::{Direction, Role};
use nodewall::policy::effective::Effective;
use nodewall::policy::resolve::resolve;
use nodewall::policy::settings::{Default as InterfaceDefault, NodeSettings};
use nodewall::source;
use nodewall::text::finding::Severity;

use super::documents::Documents;
use super::flow::{Try, flows, send};
use super::lab::conntrack;
use super::lab::net::{Answer, Host, Servers, wire};
use super::lab::services::{Cluster, Service, portmap_iptables, portmap_nftables};

/// The addresses of one family.
pub struct Plan {
    /// Of a host behind the node's uplink, with its prefix length.
    pub remote: &'static str,
    /// Of the node there.
    pub node: &'static str,
    /// Of the node towards the other node.
    pub side: &'static str,
    /// Of the other node.
    pub other: &'static str,
    /// Of a pod on the other node.
    pub far: &'static str,
    /// Of the node and of pods on it.
    pub here: [&'static str; 2],
    pub pods: [&'static str; 2],
    /// All pods, and all services.
    pub pod_range: &'static str,
    pub service_range: &'static str,
    /// The first of ClusterIPs and load-balancer addresses; each service adds to it.
    pub clusters: &'static str,
    pub balancers: &'static str,
    /// Where nobody in particular listens: broadcast and multicast.
    pub groups: &'static [&'static str],
    pub loopback: &'static str,
    /// Of another host there, and of it and the node in a tunnel whose packets look like Soft-RoCE.
    pub roce: &'static str,
    pub tunnels: [[&'static str; 2]; 2],
    /// Of two bridges and their pods.
    pub bridges: [&'static str; 2],
    pub bridged: [[&'static str; 2]; 2],
}

pub const PLANS: [Plan; 2] = [
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

pub fn ip(text: &str) -> IpAddr {
    text.split('/').next().unwrap().parse().unwrap()
}

/// The address so many after another one.
fn after(address: IpAddr, more: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4) + u32::from(more))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) + u128::from(more))),
    }
}

/// What listens everywhere, what services are asked by, where their endpoints listen, where one of them does, and what only the host
/// itself asks.
pub const PLAIN: u16 = 80;
const SERVICE: u16 = 8000;
pub const ENDPOINT: u16 = 8080;
const OWN_ENDPOINT: u16 = 8082;
pub const LOOPBACK: u16 = 81;
/// Where groups are listened to, by family.
pub const GROUP_V4: u16 = 9998;
pub const GROUP_V6: u16 = 9997;
pub const ROCE: u16 = 4791;
/// hostPorts, by who made them.
pub const HOST_PORTS: [u16; 2] = [18_080, 18_081];

/// The ways in which kube-proxy writes its rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxy {
    Nftables,
    Iptables,
}

pub const PROXIES: [Proxy; 2] = [Proxy::Nftables, Proxy::Iptables];

/// The services of one family and one kube-proxy: to a pod here, to this host, to a pod elsewhere, and to the same pod for what
/// this host asks itself.
pub fn services(plan: &Plan, proxy: Proxy) -> [Service; 4] {
    let own = if proxy == Proxy::Nftables { 0 } else { 1 };
    let service = |number: u8, name, endpoint, port| Service {
        name,
        cluster: after(ip(plan.clusters), number * 2 + own),
        balancer: after(ip(plan.balancers), number * 2 + own),
        port: SERVICE,
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
pub struct Lab {
    pub node: Host,
    pub remote: Host,
    pub pods: [Host; 2],
    pub bridged: [[Host; 2]; 2],
    _other: Host,
    _servers: Vec<Servers>,
    _groups: Groups,
    facts: Facts,
}

impl Lab {
    pub fn new() -> Self {
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
            plan.translate(&node);
        }
        let ports = [PLAIN, ENDPOINT, OWN_ENDPOINT, LOOPBACK];
        let hosts = [&node, &remote, &other, &one, &two].into_iter().chain(bridged.as_flattened());
        let servers = hosts.map(|host| host.serve(&ports, &ports)).collect();
        let groups = Groups::new(&node);
        let facts = node.facts();
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

    /// Makes everybody ask again who is where.
    pub fn forget_neighbours(&self) {
        for host in [&self.node, &self.remote].into_iter().chain(&self.pods) {
            host.sh("ip -4 neigh flush all; ip -6 neigh flush all");
        }
    }

    pub fn kernel(&self) -> Netlink {
        self.node.enter(|| Netlink::open().unwrap())
    }

    /// Puts documents in force, with everything forgotten that was let through before.
    pub fn load(&self, kernel: &mut Netlink, documents: &Documents, settings: &NodeSettings) -> Effective {
        let text = documents.to_string();
        let sourced = source::decode_text("policy.toml", &text);
        let (effective, resolved) = resolve(&sourced.policy, settings, &self.facts);
        let errors: Vec<_> =
            sourced.findings.iter().chain(&resolved).filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{text}");
        driver::apply(kernel, &compile(&effective), None).unwrap();
        self.node.enter(conntrack::flush);
        effective
    }
}

/// Nothing but the policies decides.
pub fn settings() -> NodeSettings {
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
    fn translate(&self, node: &Host) {
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
