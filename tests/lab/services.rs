//! The rules of others that rewrite destinations, as they load them: kube-proxy in nftables and in iptables mode, and CNI's portmap
//! plugin in both of its modes. One of our stages has to see a packet before these rules, and others after them.
//!
//! After kubernetes `pkg/proxy/nftables/proxier.go` and `pkg/proxy/iptables/proxier.go`, and containernetworking/plugins
//! `plugins/meta/portmap/portmap_{iptables,nftables}.go`: hooks, priorities, chains, sets, marks and the order of rules are theirs.
//! Hashes in the names of chains are not computed.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use super::net::Host;

/// What kube-proxy of a node knows about it, for one family.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// The address whose NodePorts are served (`--nodeport-addresses`).
    pub node: IpAddr,
    /// The addresses of pods, as a prefix: what comes from there needs no masquerading.
    pub pods: &'static str,
    /// The addresses of services, as a prefix.
    pub services: &'static str,
}

/// A service with one endpoint, for TCP and UDP.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name; upper case letters, as the hashes in the names of chains are made of it.
    pub name: &'static str,
    /// Its ClusterIP.
    pub cluster: IpAddr,
    /// Its load-balancer address, which no interface has.
    pub balancer: IpAddr,
    /// Its port at both.
    pub port: u16,
    /// Its port at the node's address.
    pub node_port: u16,
    /// Where it leads.
    pub endpoint: SocketAddr,
}

const TRANSPORTS: [&str; 2] = ["tcp", "udp"];

impl Cluster {
    fn is_v4(&self) -> bool {
        self.node.is_ipv4()
    }

    /// The table that kube-proxy's nftables mode keeps.
    pub fn kube_proxy_nftables(&self, services: &[Service]) -> String {
        let (ip, address) = if self.is_v4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
        let Self { node, pods, services: range } = self;
        let (mut addresses, mut ports, mut chains) = (Vec::new(), Vec::new(), String::new());
        for Service { name, cluster, balancer, port, node_port, endpoint } in services {
            let to = endpoint.ip();
            for transport in TRANSPORTS {
                let base = format!("{:X<8}-shop/{}/{transport}/p{port}", name, name.to_lowercase());
                let place = format!("{base}__{}/{}", to.to_string().replace(':', "."), endpoint.port());
                addresses.push(format!("{cluster} . {transport} . {port} : goto service-{base}"));
                addresses.push(format!("{balancer} . {transport} . {port} : goto external-{base}"));
                ports.push(format!("{transport} . {node_port} : goto external-{base}"));
                chains.push_str(&format!(
                    "chain service-{base} {{\n\
                     {ip} daddr {cluster} {ip} saddr != {pods} jump mark-for-masquerade\n\
                     numgen random mod 1 vmap {{ 0 : goto endpoint-{place} }}\n}}\n\
                     chain external-{base} {{\njump mark-for-masquerade\ngoto service-{base}\n}}\n\
                     chain endpoint-{place} {{\n\
                     {ip} saddr {to} jump mark-for-masquerade\nmeta l4proto {transport} dnat to {endpoint}\n}}\n"
                ));
            }
        }
        let clusters: Vec<String> = services.iter().map(|service| service.cluster.to_string()).collect();
        let (clusters, addresses, ports) = (clusters.join(", "), addresses.join(", "), ports.join(", "));
        format!(
            "table {ip} kube-proxy {{\n\
             comment \"rules for kube-proxy\"\n\
             set cluster-ips {{ type {address}; comment \"Active ClusterIPs\"; elements = {{ {clusters} }} }}\n\
             set nodeport-ips {{ type {address}; comment \"IPs that accept NodePort traffic\"; elements = {{ {node} }} }}\n\
             map firewall-ips {{ type {address} . inet_proto . inet_service : verdict; }}\n\
             map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
             map no-endpoint-services {{ type {address} . inet_proto . inet_service : verdict; }}\n\
             map service-ips {{ type {address} . inet_proto . inet_service : verdict; elements = {{ {addresses} }} }}\n\
             map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {ports} }} }}\n\
             chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}\n\
             chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump firewall-check; }}\n\
             chain filter-forward {{ type filter hook forward priority 0; \
             ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}\n\
             chain filter-input {{ type filter hook input priority 0; \
             ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}\n\
             chain filter-output {{ type filter hook output priority 0; \
             ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
             chain cluster-ips-check {{ {ip} daddr @cluster-ips reject; {ip} daddr {{ {range} }} drop; }}\n\
             chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
             chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}\n\
             chain masquerading {{ meta mark & 0x4000 == 0 return; meta mark set meta mark ^ 0x4000; masquerade fully-random; }}\n\
             chain nodeport-endpoints-check {{ {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}\n\
             chain reject-chain {{ reject; }}\n\
             chain services {{ {ip} daddr . meta l4proto . th dport vmap @service-ips; \
             {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports; }}\n\
             chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
             {chains}}}\n"
        )
    }

    /// What kube-proxy's iptables mode gives to iptables-restore.
    pub fn kube_proxy_iptables(&self, services: &[Service]) -> String {
        let Self { pods, .. } = self;
        let (mut names, mut rules) = (Vec::new(), String::new());
        let mut add = |rule: String| {
            rules.push_str("-A ");
            rules.push_str(&rule);
            rules.push('\n');
        };
        for Service { name, cluster, balancer, port, node_port, endpoint } in services {
            for transport in TRANSPORTS {
                let hash = format!("{:X<16}", format!("{name}{}", transport.to_uppercase()));
                let (svc, ext, sep) =
                    (format!("KUBE-SVC-{hash}"), format!("KUBE-EXT-{hash}"), format!("KUBE-SEP-{hash}"));
                let about = format!("shop/{}:p{port}", name.to_lowercase());
                let says = |text: &str| format!("-m comment --comment \"{about}{text}\"");
                let of = |address: &IpAddr| format!("-m {transport} -p {transport} -d {address} --dport {port}");
                add(format!("KUBE-NODEPORTS {} -m {transport} -p {transport} --dport {node_port} -j {ext}", says("")));
                add(format!("KUBE-SERVICES {} {} -j {svc}", says(" cluster IP"), of(cluster)));
                add(format!("KUBE-SERVICES {} {} -j {ext}", says(" loadbalancer IP"), of(balancer)));
                add(format!("{ext} {} -j KUBE-MARK-MASQ", says(" masquerade external destinations")));
                add(format!("{ext} -j {svc}"));
                add(format!("{sep} {} -s {} -j KUBE-MARK-MASQ", says(""), endpoint.ip()));
                add(format!("{sep} {} -m {transport} -p {transport} -j DNAT --to-destination {endpoint}", says("")));
                add(format!("{svc} {} {} ! -s {pods} -j KUBE-MARK-MASQ", says(" cluster IP"), of(cluster)));
                add(format!("{svc} {} -j {sep}", says(&format!(" -> {endpoint}"))));
                names.extend([svc, ext, sep]);
            }
        }
        add(String::from(
            "KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
             -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        ));
        let declared: String = names.iter().map(|name| format!(":{name} - [0:0]\n")).collect();
        format!(
            "*filter\n\
             :KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n\
             -A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n-A FORWARD -j KUBE-FORWARD\n\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
             -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             COMMIT\n\
             *nat\n\
             :KUBE-MARK-MASQ - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n{declared}\
             -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
             -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
             -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
             -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
             {rules}COMMIT\n"
        )
    }
}

/// What the portmap plugin gives to iptables for a hostPort of a pod (`backend: iptables`).
pub fn portmap_iptables(pod: SocketAddr, host_port: u16) -> String {
    let (inside, local) = match pod.ip() {
        IpAddr::V4(_) => (24, true),
        IpAddr::V6(_) => (64, false),
    };
    let (mut entries, mut rules) = (String::new(), String::new());
    for transport in TRANSPORTS {
        entries.push_str(&format!(
            "-A CNI-HOSTPORT-DNAT -m comment --comment \"dnat name: pods id: 1\" -m multiport -p {transport} \
             --destination-ports {host_port} -j CNI-DN-bfd599665540dd91d5d28\n"
        ));
        let base = format!("-A CNI-DN-bfd599665540dd91d5d28 -p {transport} --dport {host_port}");
        rules.push_str(&format!("{base} -s {}/{inside} -j CNI-HOSTPORT-SETMARK\n", pod.ip()));
        if local {
            rules.push_str(&format!("{base} -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK\n"));
        }
        rules.push_str(&format!("{base} -j DNAT --to-destination {pod}\n"));
    }
    format!(
        "*nat\n\
         :CNI-DN-bfd599665540dd91d5d28 - [0:0]\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n\
         :CNI-HOSTPORT-SETMARK - [0:0]\n\
         -I POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
         -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n\
         -A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n\
         {entries}{rules}COMMIT\n"
    )
}

/// The table that the portmap plugin keeps for a hostPort of a pod (`backend: nftables`).
pub fn portmap_nftables(pod: SocketAddr, host_port: u16) -> String {
    let (ip, address) = (if pod.is_ipv4() { "ip" } else { "ip6" }, pod.ip());
    let ports: String =
        TRANSPORTS.map(|transport| format!("{transport} dport {host_port} dnat to {pod} comment \"1\"\n")).concat();
    let local =
        if pod.is_ipv4() { format!("ip saddr 127.0.0.1 ip daddr {address} masquerade\n") } else { String::new() };
    format!(
        "table {ip} cni_hostport {{\n\
         comment \"CNI portmap plugin\"\n\
         chain prerouting {{ type nat hook prerouting priority -100; jump hostip_hostports; jump hostports; }}\n\
         chain output {{ type nat hook output priority -100; jump hostip_hostports; fib daddr type local jump hostports; }}\n\
         chain masquerading {{ type nat hook postrouting priority 100;\n\
         {ip} saddr {address} {ip} daddr {address} masquerade\n{local}}}\n\
         chain hostip_hostports {{ }}\n\
         chain hostports {{\n{ports}}}\n}}\n"
    )
}

impl Host {
    /// Gives a program inside the host some input; it must succeed.
    pub fn feed(&self, command: &[&str], input: &str) {
        self.enter(|| {
            let mut child = Command::new(command[0])
                .args(&command[1..])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup.sh installs what tests take"));
            child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
            let output = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{command:?}: {said}\n{input}");
        });
    }

    /// Loads a text by the nft program.
    pub fn nft(&self, text: &str) {
        self.feed(&["nft", "-f", "-"], text);
    }

    /// Adds a text of iptables-save's form to what iptables or ip6tables has, in its nf_tables form.
    pub fn iptables(&self, v4: bool, text: &str) {
        let program = if v4 { "iptables-nft-restore" } else { "ip6tables-nft-restore" };
        self.feed(&[program, "--noflush"], text);
    }
}
