//! Ports that others publish, as they write them: kube-proxy in each of its modes, CNI's portmap plugin, Docker, Podman, firewalld and
//! plain nft. What is listed is what a peer can connect to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lab::may_run;
use lab::net::{Answer, Host, Probe, What, probe, wire};
use lab::services::{Cluster, Service, portmap_iptables, portmap_nftables};
use nodewall::driver::{Exposed, Netlink, published};
use nodewall::net::addr::Family;

/// What is published on a host.
fn exposed(host: &Host) -> Exposed {
    let own = host.facts().local_addresses();
    host.enter(|| published(&mut Netlink::open().unwrap(), &own).unwrap())
}

/// The same in lines: protocol and ports, for which addresses, over which interfaces, where to, by whom, and what is said about it.
fn lines(host: &Host) -> Vec<String> {
    let exposed = exposed(host);
    assert_eq!(exposed.unread, Vec::<String>::new());
    exposed.published.iter().map(line).collect()
}

fn line(published: &nodewall::net::published::Published) -> String {
    let mut line = published.protocol.map_or("any".to_owned(), |protocol| protocol.to_string());
    for (first, last) in published.ports.ranges().iter().filter(|_| !published.ports.is_full()) {
        let _ = if first == last { write!(line, " {first}") } else { write!(line, " {first}-{last}") };
    }
    match published.family {
        Some(Family::V4) => line.push_str(" v4"),
        Some(Family::V6) => line.push_str(" v6"),
        None => {}
    }
    if let Some(addresses) = &published.addresses {
        let v4 = addresses.v4.ranges().iter().map(|(first, _)| IpAddr::V4((*first).into()));
        let v6 = addresses.v6.ranges().iter().map(|(first, _)| IpAddr::V6((*first).into()));
        let all: Vec<String> = v4.chain(v6).map(|address| address.to_string()).collect();
        let _ = write!(line, " at {}", all.join("+"));
    }
    if let Some(only) = &published.interfaces.only {
        let _ = write!(line, " over {}", only.iter().cloned().collect::<Vec<_>>().join("+"));
    }
    if !published.interfaces.except.is_empty() {
        let except: Vec<String> = published.interfaces.except.iter().cloned().collect();
        let _ = write!(line, " not over {}", except.join("+"));
    }
    let _ = write!(line, " -> {}", published.target);
    let _ = write!(line, " [{}", published.owner.unwrap_or("?"));
    if let Some(comment) = &published.comment {
        let _ = write!(line, ": {comment}");
    }
    let _ = write!(line, "] {}", published.via);
    if published.partly {
        line.push_str(" PARTLY");
    }
    line
}

/// A peer, a node and a pod behind it, in both IP versions.
struct Place {
    peer: Host,
    node: Host,
    pod: Host,
}

impl Place {
    fn new() -> Self {
        let (peer, node, pod) = (Host::new(), Host::new(), Host::new());
        wire(
            (&node, "eth0", &["10.77.0.2/24", "10.77.0.3/24", "fd77::2/64"]),
            (&peer, "eth0", &["10.77.0.1/24", "fd77::1/64"]),
        );
        wire((&node, "pod0", &["10.244.0.1/24", "fd44::1/64"]), (&pod, "eth0", &["10.244.0.2/24", "fd44::2/64"]));
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
        pod.sh("ip route add default via 10.244.0.1; ip route add default via fd44::1");
        Self { peer, node, pod }
    }

    /// What the peer is answered by TCP at a port of the node.
    fn tries(&self, destination: &str, port: u16) -> Answer {
        let destination: IpAddr = destination.parse().unwrap();
        let source = if destination.is_ipv4() { "10.77.0.1" } else { "fd77::1" };
        let tried =
            Probe { from: self.peer.clone(), source: source.parse().unwrap(), destination, what: What::Tcp(port) };
        probe(&[tried])[0]
    }
}

const V4: Cluster = Cluster {
    node: IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 2)),
    pods: "10.244.0.0/16",
    services: "10.96.0.0/16",
};

fn v6() -> Cluster {
    Cluster { node: "fd77::2".parse().unwrap(), pods: "fd44::/48", services: "fd96::/112" }
}

fn web(v4: bool) -> Service {
    let at = |v4_text: &str, v6_text: &str| if v4 { v4_text } else { v6_text }.parse().unwrap();
    let endpoint: SocketAddr = if v4 { "10.244.0.2:8080" } else { "[fd44::2]:8080" }.parse().unwrap();
    Service {
        name: "WEB",
        cluster: at("10.96.0.10", "fd96::10"),
        balancer: at("192.0.2.10", "2001:db8::10"),
        port: 80,
        node_port: 30_080,
        endpoint,
    }
}

#[test]
fn node_ports_of_kube_proxy_s_nftables_mode_are_listed_and_answer() {
    if !may_run("kube-proxy-nft") {
        return;
    }
    let place = Place::new();
    place.node.nft(&V4.kube_proxy_nftables(&[web(true)]));
    place.node.nft(&v6().kube_proxy_nftables(&[web(false)]));
    let wanted = |protocol: &str| {
        [
            format!(
                "{protocol} 30080 v4 at 10.77.0.2 -> 10.244.0.2:8080 [kube-proxy: shop/web:p80] table ip kube-proxy, chain services"
            ),
            format!(
                "{protocol} 30080 v6 at fd77::2 -> [fd44::2]:8080 [kube-proxy: shop/web:p80] table ip6 kube-proxy, chain services"
            ),
        ]
    };
    assert_eq!(lines(&place.node), [wanted("tcp"), wanted("udp")].concat());
    let _servers = place.pod.serve(&[8080], &[8080]);
    for (address, port, answer) in [
        ("10.77.0.2", 30_080, Answer::Allowed),
        ("fd77::2", 30_080, Answer::Allowed),
        // Neither the port of the service nor that of the pod is one of the node's, nor is the NodePort at the other address.
        ("10.77.0.2", 80, Answer::Rejected),
        ("10.77.0.2", 8080, Answer::Rejected),
        ("10.77.0.3", 30_080, Answer::Rejected),
    ] {
        assert_eq!(place.tries(address, port), answer, "{address} {port}");
    }
}

#[test]
fn node_ports_of_kube_proxy_s_iptables_mode_are_listed_and_answer() {
    if !may_run("kube-proxy-iptables") {
        return;
    }
    let place = Place::new();
    place.node.iptables(true, &V4.kube_proxy_iptables(&[web(true)]));
    place.node.iptables(false, &v6().kube_proxy_iptables(&[web(false)]));
    let wanted = |protocol: &str| {
        [
            format!(
                "{protocol} 30080 v4 -> 10.244.0.2:8080 [kube-proxy: shop/web:p80] table ip nat, chain KUBE-NODEPORTS"
            ),
            format!(
                "{protocol} 30080 v6 -> [fd44::2]:8080 [kube-proxy: shop/web:p80] table ip6 nat, chain KUBE-NODEPORTS"
            ),
        ]
    };
    assert_eq!(lines(&place.node), [wanted("tcp"), wanted("udp")].concat());
    let _servers = place.pod.serve(&[8080], &[8080]);
    for (address, port, answer) in [
        ("10.77.0.2", 30_080, Answer::Allowed),
        ("10.77.0.3", 30_080, Answer::Allowed),
        ("fd77::2", 30_080, Answer::Allowed),
        ("10.77.0.2", 30_081, Answer::Rejected),
        ("10.77.0.2", 80, Answer::Rejected),
    ] {
        assert_eq!(place.tries(address, port), answer, "{address} {port}");
    }
}

/// Several endpoints by turns, affinity to a client, and a policy that only endpoints on this node are for outsiders.
#[test]
fn what_leads_to_several_endpoints_is_one_line() {
    if !may_run("endpoints") {
        return;
    }
    let place = Place::new();
    place.node.iptables(
        true,
        "*nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-EXT-A - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SVL-A - [0:0]\n\
         :KUBE-SEP-1 - [0:0]\n:KUBE-SEP-2 - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-SERVICES -d 10.96.0.10/32 -p sctp -m comment --comment \"shop/web:p80 cluster IP\" -m sctp --dport 80 -j KUBE-SVC-A\n\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         -A KUBE-NODEPORTS -d 127.0.0.0/8 -p sctp -m comment --comment \"shop/web:p80\" -m sctp --dport 30081 -j KUBE-EXT-A\n\
         -A KUBE-NODEPORTS -p sctp -m comment --comment \"shop/web:p80\" -m sctp --dport 30080 -j KUBE-EXT-A\n\
         -A KUBE-EXT-A -s 10.244.0.0/16 -j KUBE-SVC-A\n\
         -A KUBE-EXT-A -m addrtype --src-type LOCAL -j KUBE-SVC-A\n\
         -A KUBE-EXT-A -j KUBE-SVL-A\n\
         -A KUBE-SVC-A -m recent --name KUBE-SEP-1 --rcheck --seconds 10800 --reap --rsource -j KUBE-SEP-1\n\
         -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1\n\
         -A KUBE-SVC-A -j KUBE-SEP-2\n\
         -A KUBE-SVL-A -j KUBE-SEP-1\n\
         -A KUBE-SEP-1 -p sctp -m recent --name KUBE-SEP-1 --set --rsource -m sctp -j DNAT --to-destination 10.244.0.2:80\n\
         -A KUBE-SEP-2 -p sctp -m sctp -j DNAT --to-destination 10.244.0.3:80\n\
         COMMIT\n",
    );
    place.node.nft(
        "table ip kube-proxy {\n\
         map service-nodeports { type inet_proto . inet_service : verdict; elements = { tcp . 30090 : goto external-ABCDEFGH-shop/db/tcp/ } }\n\
         set affinity-1 { type ipv4_addr; flags dynamic,timeout; timeout 3h; }\n\
         chain nat-prerouting { type nat hook prerouting priority -100; jump services; }\n\
         chain services { ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @service-nodeports; }\n\
         chain external-ABCDEFGH-shop/db/tcp/ { ip saddr 10.244.0.0/16 goto service-ABCDEFGH-shop/db/tcp/; \
         goto service-ABCDEFGH-shop/db/tcp/; }\n\
         chain service-ABCDEFGH-shop/db/tcp/ { ip saddr @affinity-1 goto endpoint-1; \
         numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }; }\n\
         chain endpoint-1 { update @affinity-1 { ip saddr }; meta l4proto tcp dnat to 10.244.0.2:80; }\n\
         chain endpoint-2 { meta l4proto tcp dnat to 10.244.0.3:80; }\n}\n",
    );
    assert_eq!(
        lines(&place.node),
        [
            "tcp 30090 v4 -> several endpoints [kube-proxy: shop/db] table ip kube-proxy, chain services",
            "sctp 30080 v4 -> several endpoints [kube-proxy: shop/web:p80] table ip nat, chain KUBE-NODEPORTS",
            "sctp 30081 v4 at 127.0.0.1 -> several endpoints [kube-proxy: shop/web:p80] table ip nat, chain KUBE-NODEPORTS",
        ]
    );
}

#[test]
fn host_ports_of_the_portmap_plugin_are_listed_and_answer() {
    if !may_run("portmap") {
        return;
    }
    let pod: SocketAddr = "10.244.0.2:8080".parse().unwrap();
    let pod6: SocketAddr = "[fd44::2]:8080".parse().unwrap();
    let with_nft = Place::new();
    with_nft.node.nft(&portmap_nftables(pod, 8443));
    with_nft.node.nft(&portmap_nftables(pod6, 8443));
    let with_iptables = Place::new();
    with_iptables.node.iptables(true, &portmap_iptables(pod, 8443));
    with_iptables.node.iptables(false, &portmap_iptables(pod6, 8443));
    for (place, v4, v6) in [
        (
            with_nft,
            "[CNI plugins: 1] table ip cni_hostport, chain hostports",
            "[CNI plugins: 1] table ip6 cni_hostport, chain hostports",
        ),
        (
            with_iptables,
            "[CNI plugins: dnat name: pods id: 1] table ip nat, chain CNI-HOSTPORT-DNAT",
            "[CNI plugins: dnat name: pods id: 1] table ip6 nat, chain CNI-HOSTPORT-DNAT",
        ),
    ] {
        let wanted: Vec<String> = ["tcp", "udp"]
            .into_iter()
            .flat_map(|protocol| {
                [
                    format!("{protocol} 8443 v4 -> 10.244.0.2:8080 {v4}"),
                    format!("{protocol} 8443 v6 -> [fd44::2]:8080 {v6}"),
                ]
            })
            .collect();
        assert_eq!(lines(&place.node), wanted);
        let _servers = place.pod.serve(&[8080], &[8080]);
        for (address, port, answer) in [
            ("10.77.0.2", 8443, Answer::Allowed),
            ("fd77::2", 8443, Answer::Allowed),
            ("10.77.0.2", 8080, Answer::Rejected),
        ] {
            assert_eq!(place.tries(address, port), answer, "{address} {port}");
        }
    }
}

/// Docker's iptables and nftables back ends (libnetwork/drivers/bridge), netavark's (src/firewall/varktables/types.rs and nft.rs) and
/// firewalld's forward ports (src/firewall/core/nftables.py).
#[test]
fn published_ports_of_containers_and_forwarded_ports_are_listed_and_answer() {
    if !may_run("containers") {
        return;
    }
    let place = Place::new();
    place.node.sh("ip link add docker0 type bridge; ip link set docker0 up");
    place.node.iptables(
        true,
        "*nat\n\
         :DOCKER - [0:0]\n:NETAVARK-HOSTPORT-DNAT - [0:0]\n:NETAVARK-DN-1D8721804F16F - [0:0]\n:NETAVARK-HOSTPORT-SETMARK - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A DOCKER -i docker0 -j RETURN\n\
         -A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 10.244.0.2:8080\n\
         -A DOCKER -d 10.77.0.3/32 ! -i docker0 -p tcp -m tcp --dport 9001 -j DNAT --to-destination 10.244.0.2:8080\n\
         -A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 9002 -j DNAT --to-destination 10.244.0.2:8080\n\
         -A DOCKER -d 10.99.9.9/32 ! -i docker0 -p tcp -m tcp --dport 9003 -j DNAT --to-destination 10.244.0.2:8080\n\
         -A NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 9100:9101 -m comment --comment \"dnat name: podman id: 5\" \
         -j NETAVARK-DN-1D8721804F16F\n\
         -A NETAVARK-DN-1D8721804F16F -s 10.244.0.0/24 -p tcp -m tcp --dport 9100:9101 -j NETAVARK-HOSTPORT-SETMARK\n\
         -A NETAVARK-DN-1D8721804F16F -p tcp -m tcp --dport 9100:9101 -j DNAT --to-destination 10.244.0.2:8080-8081/9100\n\
         -A NETAVARK-HOSTPORT-SETMARK -j MARK --or-mark 0x2000\n\
         COMMIT\n",
    );
    place.node.nft(
        "table ip docker-bridges {\n\
         map nat-prerouting-and-output { type ifname : verdict; }\n\
         chain nat-prerouting { type nat hook prerouting priority -100; policy accept; fib daddr type local counter jump published; }\n\
         chain published { iifname != \"docker0\" tcp dport 9200 counter dnat to 10.244.0.2:8080 comment \"DNAT\"; }\n\
         }\n\
         table inet netavark {\n\
         chain PREROUTING { type nat hook prerouting priority -100; policy accept; fib daddr type local jump NETAVARK-HOSTPORT-DNAT; }\n\
         chain NETAVARK-HOSTPORT-DNAT { tcp dport 9300 jump nv_2f259bab_10_88_0_0_nm16_dnat; }\n\
         chain nv_2f259bab_10_88_0_0_nm16_dnat { ip saddr 10.244.0.0/24 tcp dport 9300 meta mark set meta mark | 0x2000; \
         tcp dport 9300 dnat ip to 10.244.0.2:8080; }\n\
         }\n\
         table inet firewalld {\n\
         chain nat_PREROUTING { type nat hook prerouting priority -90; policy accept; jump nat_PREROUTING_ZONES; }\n\
         chain nat_PREROUTING_ZONES { iifname \"eth0\" goto nat_PRE_public; goto nat_PRE_trusted; }\n\
         chain nat_PRE_public { jump nat_PRE_public_allow; }\n\
         chain nat_PRE_public_allow { meta nfproto ipv4 tcp dport 9400 dnat ip to 10.244.0.2:8080; tcp dport 9401 redirect to :8500; }\n\
         chain nat_PRE_trusted { }\n\
         }\n",
    );
    assert_eq!(
        lines(&place.node),
        [
            "tcp 9000 v4 not over docker0 -> 10.244.0.2:8080 [Docker] table ip nat, chain DOCKER",
            "tcp 9001 v4 at 10.77.0.3 not over docker0 -> 10.244.0.2:8080 [Docker] table ip nat, chain DOCKER",
            "tcp 9002 v4 at 127.0.0.1 not over docker0 -> 10.244.0.2:8080 [Docker] table ip nat, chain DOCKER",
            "tcp 9100-9101 v4 -> ports 8080-8081 of 10.244.0.2 [Podman: dnat name: podman id: 5] table ip nat, chain NETAVARK-HOSTPORT-DNAT",
            "tcp 9200 v4 not over docker0 -> 10.244.0.2:8080 [Docker: DNAT] table ip docker-bridges, chain published",
            "tcp 9300 v4 -> 10.244.0.2:8080 [Podman] table inet netavark, chain NETAVARK-HOSTPORT-DNAT",
            "tcp 9400 v4 over eth0 -> 10.244.0.2:8080 [firewalld] table inet firewalld, chain nat_PRE_public_allow",
            "tcp 9401 over eth0 -> port 8500 of this host [firewalld] table inet firewalld, chain nat_PRE_public_allow",
        ]
    );
    let _pod = place.pod.serve(&[8080, 8081], &[]);
    let _node = place.node.serve(&[8500], &[]);
    for (address, port, answer) in [
        ("10.77.0.2", 9000, Answer::Allowed),
        ("10.77.0.2", 9001, Answer::Rejected),
        ("10.77.0.3", 9001, Answer::Allowed),
        ("10.77.0.2", 9003, Answer::Rejected),
        ("10.77.0.2", 9100, Answer::Allowed),
        ("10.77.0.2", 9101, Answer::Allowed),
        ("10.77.0.2", 9102, Answer::Rejected),
        ("10.77.0.2", 9200, Answer::Allowed),
        ("10.77.0.2", 9300, Answer::Allowed),
        ("10.77.0.2", 9400, Answer::Allowed),
        ("10.77.0.2", 9401, Answer::Allowed),
        ("fd77::2", 9401, Answer::Allowed),
        ("fd77::2", 9400, Answer::Rejected),
    ] {
        assert_eq!(place.tries(address, port), answer, "{address} {port}");
    }
}

/// Each way of nft(8) to say which packets, and where to.
#[test]
fn plain_rules_of_nft_are_understood() {
    if !may_run("plain") {
        return;
    }
    let place = Place::new();
    place.node.sh("ip addr add 10.77.0.2/24 dev lo 2>/dev/null || true");
    let table = |rules: &str| {
        format!(
            "table inet t {{\n\
             set ports {{ type inet_service; flags interval; elements = {{ 100-110, 120 }} }}\n\
             set both {{ type inet_proto . inet_service; elements = {{ tcp . 53, udp . 53 }} }}\n\
             set names {{ type ifname; elements = {{ eth0, eth1 }} }}\n\
             map leads {{ type ipv4_addr . inet_service : verdict; flags interval; \
             elements = {{ 10.77.0.0/24 . 7000-7010 : jump on, 10.9.0.0/16 . 7100 : jump on }} }}\n\
             chain on {{ dnat ip to 10.244.0.2; }}\n\
             chain p {{ type nat hook prerouting priority dstnat;\n{rules}\n}}\n}}\n"
        )
    };
    let all = "table inet t, chain p";
    for (rule, wanted) in [
        ("tcp dport 80 redirect to :8080", &[format!("tcp 80 -> port 8080 of this host [?] {all}")][..]),
        (
            "meta l4proto { tcp, udp } th dport { 80, 443, 1000-1010 } dnat ip to 10.244.0.2",
            &[
                format!("tcp 80 443 1000-1010 v4 -> 10.244.0.2 [?] {all}"),
                format!("udp 80 443 1000-1010 v4 -> 10.244.0.2 [?] {all}"),
            ],
        ),
        ("udp dport @ports dnat ip6 to [fd44::2]:53", &[format!("udp 100-110 120 v6 -> [fd44::2]:53 [?] {all}")]),
        ("udp dport != @ports redirect", &[format!("udp 0-99 111-119 121-65535 -> this host [?] {all}")]),
        ("tcp dport >= 60000 redirect to :1-9", &[format!("tcp 60000-65535 -> port 1-9 of this host [?] {all}")]),
        ("tcp dport != 1-60000 redirect", &[format!("tcp 0 60001-65535 -> this host [?] {all}")]),
        (
            "meta l4proto . th dport @both redirect",
            &[format!("tcp 53 -> this host [?] {all}"), format!("udp 53 -> this host [?] {all}")],
        ),
        (
            "ip daddr 10.77.0.2 tcp dport 22 redirect to :2222 comment \"ssh of old\"",
            &[format!("tcp 22 v4 at 10.77.0.2 -> port 2222 of this host [?: ssh of old] {all}")],
        ),
        // Neighbours in a header are one comparison to the kernel.
        (
            "ip saddr 192.0.2.1 ip daddr 10.77.0.3 tcp sport 1 tcp dport 22 redirect",
            &[format!("tcp 22 v4 at 10.77.0.3 -> this host [?] {all} PARTLY")],
        ),
        ("ip daddr 10.77.0.0/24 tcp dport 22 redirect", &[format!("tcp 22 v4 at 10.77.0.2 -> this host [?] {all}")]),
        ("ip daddr 10.0.0.0/8 tcp dport 22 redirect", &[format!("tcp 22 v4 -> this host [?] {all}")]),
        ("ip daddr 10.64.0.0/11 udp dport 1 redirect", &[format!("udp 1 v4 at 10.77.0.2 -> this host [?] {all}")]),
        ("ip6 daddr fd77::/16 tcp dport 22 redirect", &[format!("tcp 22 v6 at fd77::2 -> this host [?] {all}")]),
        ("ip daddr 10.99.0.1 tcp dport 22 redirect", &[]),
        ("ip6 daddr != fd77::2 fib daddr type != local tcp dport 22 redirect", &[]),
        ("fib daddr type { local, broadcast } tcp dport 22 redirect", &[format!("tcp 22 -> this host [?] {all}")]),
        ("fib daddr . iif type local tcp dport 22 redirect", &[format!("tcp 22 -> this host [?] {all} PARTLY")]),
        ("iifname \"eth*\" tcp dport 22 redirect", &[format!("tcp 22 over eth* -> this host [?] {all}")]),
        ("iifname @names tcp dport 22 redirect", &[format!("tcp 22 over eth0+eth1 -> this host [?] {all}")]),
        ("iifname != { eth0, lo } tcp dport 22 redirect", &[format!("tcp 22 not over eth0+lo -> this host [?] {all}")]),
        ("iif eth0 tcp dport 22 redirect", &[format!("tcp 22 -> this host [?] {all} PARTLY")]),
        ("meta mark 7 tcp dport 22 redirect", &[format!("tcp 22 -> this host [?] {all} PARTLY")]),
        ("tcp flags syn tcp dport 22 redirect", &[format!("tcp 22 -> this host [?] {all} PARTLY")]),
        ("ct state new tcp dport 22 limit rate 1/second counter redirect", &[format!("tcp 22 -> this host [?] {all}")]),
        ("iifname eth0 dnat ip to 10.244.0.2", &[format!("any v4 over eth0 -> 10.244.0.2 [?] {all}")]),
        ("udp dport 5 dnat ip to 10.244.0.2-10.244.0.9", &[format!("udp 5 v4 -> another address [?] {all}")]),
        (
            "meta nfproto ipv4 dnat ip to tcp dport map { 80 : 10.244.0.2, 90 : 10.244.0.3 }",
            &[format!("tcp 80 v4 -> 10.244.0.2 [?] {all}"), format!("tcp 90 v4 -> 10.244.0.3 [?] {all}")],
        ),
        (
            "dnat ip addr . port to tcp dport map { 80 : 10.244.0.2 . 8080, 90 : 10.244.0.3 . 9090 }",
            &[format!("tcp 80 v4 -> 10.244.0.2:8080 [?] {all}"), format!("tcp 90 v4 -> 10.244.0.3:9090 [?] {all}")],
        ),
        (
            "meta l4proto tcp ip daddr . tcp dport vmap @leads",
            &[format!("tcp 7000-7010 v4 at 10.77.0.2 -> 10.244.0.2 [?] {all}")],
        ),
        (
            "tcp dport vmap { 1-9 : jump on, 12 : drop, 13 : goto on }",
            &[format!("tcp 1-9 13 v4 -> 10.244.0.2 [?] {all}")],
        ),
        // What leaves before may be all that a later rule is for.
        ("tcp dport 22 accept\ntcp dport 22-23 redirect", &[format!("tcp 22-23 -> this host [?] {all} PARTLY")]),
        ("tcp dport 22 accept\ntcp dport 23 redirect", &[format!("tcp 23 -> this host [?] {all}")]),
        (
            "iifname eth0 return\niifname != eth0 tcp dport 9 redirect",
            &[format!("tcp 9 not over eth0 -> this host [?] {all}")],
        ),
        ("tcp dport 9 counter\nsnat_is_not_here", &[]),
    ] {
        let rule = rule.replace("\nsnat_is_not_here", "");
        place.node.nft(&format!("flush ruleset\n{}", table(&rule)));
        assert_eq!(lines(&place.node), wanted, "{rule}");
    }
}

/// Our own table, other hooks and rules that rewrite sources publish nothing.
#[test]
fn what_publishes_nothing_is_not_listed() {
    if !may_run("nothing") {
        return;
    }
    let place = Place::new();
    assert_eq!(exposed(&place.node), Exposed::default());
    place.node.nft(
        "table inet nodewall {\nchain p { type nat hook prerouting priority -100; tcp dport 1 redirect to :2; }\n}\n\
         table ip t {\nchain o { type nat hook output priority -100; tcp dport 1 redirect to :2; }\n\
         chain post { type nat hook postrouting priority 100; masquerade; }\n\
         chain filter { type filter hook prerouting priority -100; tcp dport 1 accept; }\n\
         chain unused { tcp dport 1 redirect; }\n\
         chain empty { type nat hook prerouting priority -100; }\n}\n",
    );
    assert_eq!(exposed(&place.node), Exposed::default());
}

/// A cluster with thousands of services, of which each fifth has a NodePort.
#[test]
fn thousands_of_services_are_read_in_little_time() {
    const SERVICES: u32 = 2000;
    if !may_run("thousands") {
        return;
    }
    let place = Place::new();
    let (mut names, mut rules, mut ports, mut addresses, mut chains) =
        (String::new(), String::new(), Vec::new(), Vec::new(), String::new());
    for number in 0..SERVICES {
        let cluster = IpAddr::from((0x0a60_0000 + number).to_be_bytes());
        let (service, port) = (format!("service-ABCDEFGH-shop/s{number}/tcp/web"), 30_000 + number / 5);
        let _ = write!(names, ":KUBE-SVC-{number} - [0:0]\n:KUBE-EXT-{number} - [0:0]\n");
        let _ = writeln!(rules, "-A KUBE-SERVICES -d {cluster}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{number}");
        let _ = writeln!(rules, "-A KUBE-EXT-{number} -j KUBE-SVC-{number}");
        let _ = writeln!(chains, "chain external-{service} {{ goto {service}; }}");
        let mut vmap = Vec::new();
        for endpoint in 0..3 {
            let _ = writeln!(names, ":KUBE-SEP-{number}-{endpoint} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{number} -m statistic --mode random --probability 0.3 -j KUBE-SEP-{number}-{endpoint}"
            );
            let _ = writeln!(
                rules,
                "-A KUBE-SEP-{number}-{endpoint} -p tcp -m tcp -j DNAT --to-destination 10.244.0.{}:8080",
                endpoint + 2
            );
            let _ = writeln!(
                chains,
                "chain e{number}-{endpoint} {{ meta l4proto tcp dnat to 10.244.0.{}:8080; }}",
                endpoint + 2
            );
            vmap.push(format!("{endpoint} : goto e{number}-{endpoint}"));
        }
        let _ = writeln!(chains, "chain {service} {{ numgen random mod 3 vmap {{ {} }}; }}", vmap.join(", "));
        addresses.push(format!("{cluster} . tcp . 80 : goto {service}"));
        if number % 5 == 0 {
            let _ = writeln!(rules, "-A KUBE-NODEPORTS -p tcp -m tcp --dport {port} -j KUBE-EXT-{number}");
            ports.push(format!("tcp . {port} : goto external-{service}"));
        }
    }
    place.node.iptables(
        true,
        &format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n{names}-A PREROUTING -j KUBE-SERVICES\n{rules}\
             -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
        ),
    );
    let start = Instant::now();
    let found = exposed(&place.node);
    println!("iptables mode, {} ports of {SERVICES} services: {:?}", found.published.len(), start.elapsed());
    assert_eq!((found.published.len(), found.unread), (400, Vec::new()));
    place.node.sh("nft flush ruleset");
    place.node.nft(&format!(
        "table ip kube-proxy {{\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {} }} }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {} }} }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; \
         fib daddr type local meta l4proto . th dport vmap @service-nodeports; }}\n{chains}}}\n",
        addresses.join(", "),
        ports.join(", ")
    ));
    let again = Instant::now();
    let found = exposed(&place.node);
    println!("nftables mode: {:?}", again.elapsed());
    assert_eq!((found.published.len(), found.unread), (400, Vec::new()));
    // Well under a second where nothing else runs and the compiler was let optimise; the machine of a test is neither.
    assert!(again.elapsed() < Duration::from_secs(20));
}
