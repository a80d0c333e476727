//! Other firewalls' rulesets, as those programs write them: whose they are, and which of their drops come after our accept.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::process::Command;

use lab::{isolated, sh};
use nodewall::driver::{Netlink, coexisting};
use serde_json::Value;

/// The base chains of others: hook, priority, table and chain, owners, how it drops, and whether that is after ours.
fn chains() -> Vec<String> {
    coexisting(&mut Netlink::open().unwrap())
        .unwrap()
        .iter()
        .map(|chain| {
            format!(
                "{} {} {} {}/{} {} {}{}",
                chain.base.hook,
                chain.base.priority,
                chain.family.name(),
                chain.table,
                chain.name,
                if chain.owners.is_empty() { "unknown".to_owned() } else { chain.owners.join("+") },
                chain.drops.name(),
                if chain.after_ours { " AFTER" } else { "" }
            )
        })
        .collect()
}

/// Our table, as far as it matters here: chains at input, forward and output.
fn ours() {
    sh("nft 'add table inet nodewall; \
        add chain inet nodewall input { type filter hook input priority 0; policy drop; }; \
        add chain inet nodewall output { type filter hook output priority 0; }'");
}

fn load(rules: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.nft");
    std::fs::write(&file, rules).unwrap();
    sh(&format!("nft -f {}", file.display()));
}

/// kube-proxy in nftables mode (pkg/proxy/nftables/proxier.go), cut to what decides here.
const KUBE_PROXY: &str = r"
table ip kube-proxy {
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-input { type filter hook input priority -110; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }
  chain filter-forward { type filter hook forward priority -110; ct state new jump service-endpoints-check; }
  chain filter-output { type filter hook output priority -110; ct state new jump service-endpoints-check; }
  chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump firewall-check; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; }
  chain nodeport-endpoints-check { ip daddr 10.77.0.2 meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @service-ips; }
  chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
  chain reject-chain { reject; }
}";

/// firewalld 1.x (src/firewall/core/nftables.py), zone public.
const FIREWALLD: &str = r#"
table inet firewalld {
  chain mangle_PREROUTING { type filter hook prerouting priority -140; policy accept; jump mangle_PREROUTING_ZONES; }
  chain mangle_PREROUTING_ZONES { }
  chain filter_PREROUTING { type filter hook prerouting priority 10; policy accept; icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept; meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }
  chain filter_INPUT { type filter hook input priority 10; policy accept; ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop; jump filter_INPUT_ZONES; reject with icmpx admin-prohibited; }
  chain filter_FORWARD { type filter hook forward priority 10; policy accept; reject with icmpx admin-prohibited; }
  chain filter_OUTPUT { type filter hook output priority 10; policy accept; ct state { established, related } accept; oifname "lo" accept; jump filter_OUTPUT_POLICIES; }
  chain filter_INPUT_ZONES { goto filter_IN_public; }
  chain filter_IN_public { tcp dport 22 accept; }
  chain filter_OUTPUT_POLICIES { }
}"#;

/// Calico in nftables mode (felix/rules, one table for each family), cut.
const CALICO: &str = r#"
table ip calico {
  chain filter-INPUT { type filter hook input priority 0; policy accept; jump filter-cali-INPUT; }
  chain filter-cali-INPUT { ct state established,related accept; iifname "cali*" goto filter-cali-wl-to-host; jump filter-cali-from-host-endpoint; meta mark & 0x10000 == 0x10000 accept; }
  chain filter-cali-wl-to-host { accept; }
  chain filter-cali-from-host-endpoint { iifname "eth0" goto filter-cali-fh-eth0; }
  chain filter-cali-fh-eth0 { drop; }
  chain raw-PREROUTING { type filter hook prerouting priority -300; policy accept; jump raw-cali-PREROUTING; }
  chain raw-cali-PREROUTING { meta mark set 0; }
}"#;

/// Docker 29 with the nftables back end (libnetwork/drivers/bridge/internal/nftabler), cut; Tailscale in nftables mode
/// (util/linuxfw/nftables_runner.go); libvirt's nftables back end.
const OTHERS: &str = r#"
table ip docker-bridges {
  chain filter-FORWARD { type filter hook forward priority 0; policy accept; oifname "docker0" jump filter-forward-in__docker0; }
  chain filter-forward-in__docker0 { ct state established,related accept; counter drop; }
  chain nat-PREROUTING { type nat hook prerouting priority -100; policy accept; fib daddr type local counter; }
  chain raw-PREROUTING { type filter hook prerouting priority -300; policy accept; ip daddr 172.17.0.2 iifname != "docker0" drop; }
}
table ip filter {
  chain INPUT { type filter hook input priority 0; policy accept; jump ts-input; }
  chain ts-input { iifname "lo" ip saddr 100.101.102.103 accept; ip saddr 100.64.0.0/10 iifname != "tailscale0" drop; }
}
table ip libvirt_network {
  chain forward { type filter hook forward priority 0; policy accept; counter; }
}"#;

#[test]
fn rulesets_of_nft_programs_are_known_by_owner_and_their_drops_by_place() {
    isolated("nft", || {
        ours();
        load(KUBE_PROXY);
        load(FIREWALLD);
        load(CALICO);
        load(OTHERS);
        // Of tables with a chain behind ours, the rules of all chains are known.
        assert_eq!(
            chains(),
            [
                "prerouting -300 ip calico/raw-PREROUTING Calico no",
                "prerouting -300 ip docker-bridges/raw-PREROUTING Docker maybe",
                "prerouting -140 inet firewalld/mangle_PREROUTING firewalld no",
                "prerouting -110 ip kube-proxy/filter-prerouting kube-proxy maybe",
                "prerouting -100 ip docker-bridges/nat-PREROUTING Docker maybe",
                "prerouting -100 ip kube-proxy/nat-prerouting kube-proxy maybe",
                "prerouting 10 inet firewalld/filter_PREROUTING firewalld rules",
                // Before ours: what it drops we never see, and what it accepts we still decide.
                "input -110 ip kube-proxy/filter-input kube-proxy maybe",
                "input 0 ip calico/filter-INPUT Calico rules AFTER",
                "input 0 ip filter/INPUT Tailscale rules AFTER",
                "input 10 inet firewalld/filter_INPUT firewalld rules AFTER",
                "forward -110 ip kube-proxy/filter-forward kube-proxy maybe",
                "forward 0 ip docker-bridges/filter-FORWARD Docker maybe",
                "forward 0 ip libvirt_network/forward libvirt maybe",
                "forward 10 inet firewalld/filter_FORWARD firewalld rules",
                "output -110 ip kube-proxy/filter-output kube-proxy maybe",
                "output -100 ip kube-proxy/nat-output kube-proxy maybe",
                "output -90 ip kube-proxy/filter-output-post-dnat kube-proxy maybe",
                // Jumps to a chain without rules: nothing is dropped.
                "output 10 inet firewalld/filter_OUTPUT firewalld no",
                "postrouting 100 ip kube-proxy/nat-postrouting kube-proxy no",
            ]
        );
        // The same check behind kube-proxy's priority: its maps may lead to its reject chain.
        sh("nft 'add chain ip kube-proxy late { type filter hook input priority 5; }; \
            add rule ip kube-proxy late ct state new jump service-endpoints-check'");
        assert!(chains().contains(&"input 5 ip kube-proxy/late kube-proxy rules AFTER".to_owned()), "{:#?}", chains());
    });
}

#[test]
fn rulesets_of_iptables_programs_are_known_by_the_chains_that_they_share_tables_with() {
    isolated("iptables-nft", || {
        ours();
        // As ufw, Docker, kube-proxy, Cilium and fail2ban do, by the program that they run.
        for line in [
            "-P INPUT ACCEPT",
            "-N ufw-before-input",
            "-A INPUT -j ufw-before-input",
            "-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A ufw-before-input -p udp --dport 68 -j ACCEPT",
            "-N KUBE-FIREWALL",
            "-A INPUT -j KUBE-FIREWALL",
            "-N CILIUM_INPUT",
            "-A INPUT -m comment --comment 'cilium-feeder: CILIUM_INPUT' -j CILIUM_INPUT",
            "-A CILIUM_INPUT -m mark --mark 0x200/0xf00 -j ACCEPT",
            "-N DOCKER-USER",
            "-P FORWARD DROP",
            "-A FORWARD -j DOCKER-USER",
            "-A OUTPUT -j KUBE-FIREWALL",
        ] {
            sh(&format!("iptables-nft {line}"));
        }
        sh("iptables-nft -t nat -N KUBE-SERVICES; iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES");
        sh("ip6tables-nft -N ts-input; ip6tables-nft -A INPUT -j ts-input; ip6tables-nft -A ts-input -j LOG");
        let found = |wanted: &str| {
            let chains = chains();
            assert!(chains.iter().any(|chain| chain == wanted), "{wanted} is not among {chains:#?}");
        };
        found("input 0 ip filter/INPUT Cilium+Docker+kube-proxy+ufw no");
        found("forward 0 ip filter/FORWARD Cilium+Docker+kube-proxy+ufw policy");
        found("output 0 ip filter/OUTPUT Cilium+Docker+kube-proxy+ufw no");
        found("input 0 ip6 filter/INPUT Tailscale no");
        assert!(chains().iter().any(|chain| chain.starts_with("prerouting -100 ip nat/PREROUTING kube-proxy")));
        // kube-proxy guards 127.0.0.0/8 (pkg/proxy/iptables, KUBE-FIREWALL), by a rule two jumps away.
        sh(
            "iptables-nft -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        );
        found("input 0 ip filter/INPUT Cilium+Docker+kube-proxy+ufw rules AFTER");
        found("output 0 ip filter/OUTPUT Cilium+Docker+kube-proxy+ufw rules AFTER");
        sh(
            "iptables-nft -F KUBE-FIREWALL; iptables-nft -N f2b-sshd; iptables-nft -A INPUT -p tcp --dport 22 -j f2b-sshd; \
            iptables-nft -A f2b-sshd -s 192.0.2.7 -j REJECT --reject-with icmp-port-unreachable",
        );
        found("input 0 ip filter/INPUT Cilium+Docker+fail2ban+kube-proxy+ufw rules AFTER");
        sh("iptables-nft -F f2b-sshd; iptables-nft -A f2b-sshd -j NFQUEUE --queue-num 1");
        found("input 0 ip filter/INPUT Cilium+Docker+fail2ban+kube-proxy+ufw maybe AFTER");
    });
}

#[test]
fn legacy_iptables_flushing_files_and_hooks_in_front_are_remarked_on() {
    isolated("remarks", || {
        let report = || -> Value {
            let output =
                Command::new(env!("CARGO_BIN_EXE_nodewall")).args(["check", "--host", "--json"]).output().unwrap();
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let remarked = |code: &str| -> Vec<String> {
            let report = report();
            let remarks = report["remarks"].as_array().unwrap().clone();
            let of_code = remarks.iter().filter(|remark| remark["code"] == code);
            of_code.map(|remark| remark["message"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(remarked("legacy-iptables"), Vec::<String>::new());
        sh("iptables-legacy -t filter -A INPUT -p tcp --dport 1 -j DROP; ip6tables-legacy -t mangle -L >/dev/null");
        assert_eq!(
            remarked("legacy-iptables"),
            [
                "legacy iptables tables are loaded for IPv4: filter",
                "legacy iptables tables are loaded for IPv6: mangle",
            ]
        );
        sh("ip link add a0 type veth peer name a1; tc qdisc add dev a0 ingress");
        sh("echo 1 > /proc/sys/net/ipv4/conf/a1/route_localnet");
        assert_eq!(remarked("tc"), ["interface a0 has tc's ingress hook, which may hold programs or filters"]);
        assert_eq!(remarked("route-localnet"), ["route_localnet is set for a1"]);
        let features = report()["features"].as_array().unwrap().len();
        assert_eq!(features, nodewall::nft::feature::Feature::ALL.len());
    });
}
