//! The real daemon against others who change its table: every kind of change is found and repaired, and what is not ours is left alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::daemon::{Node, PATIENCE, loaded, management_link, until_repaired};
use lab::net::{Answer, Host, Probe, What, probe, wire};
use lab::{isolated, may_run, sh};
use nix::sys::signal::Signal;
use nodewall::driver::{Kernel, Netlink, Read};
use nodewall::nft::ir::ChainPolicy;
use serde_json::Value;

/// How many denied probes are in the air.
const DENIED_AT_ONCE: u32 = 16;

const POLICY: &str = r#"
[[set]]
name = "control-plane"
cidrs = ["10.0.0.10", "10.0.1.0/24", "fd00::10"]

[[policy]]
name = "kubelet"
order = 100
interfaces = "role in {'mgmt', 'pod'}"
ingress = [
  { action = "allow", from = { sets = ["control-plane"] }, protocol = "tcp", ports = [10250] },
  { action = "allow", protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "tcp", ports = [10250] },
]
"#;

/// A node with a daemon that is ready.
fn running(policy: &str) -> Node {
    let mut node = Node::new(&[("20-kubelet.toml", policy)]);
    node.run();
    node
}

#[test]
fn every_kind_of_tampering_is_repaired_and_told() {
    isolated("tampering", || {
        management_link();
        sh("nft 'add table ip theirs; add set ip theirs s { type ipv4_addr; }; \
            add chain ip theirs c { type filter hook input priority 5; }; add rule ip theirs c counter'");
        let theirs = || sh("nft list table ip theirs | sed 's/packets .*//'");
        let before = theirs();
        let node = running(POLICY);
        let (wanted, foreign) = loaded();
        assert_eq!(foreign, Vec::<String>::new());
        let set = wanted
            .sets
            .keys()
            .find(|name| name.starts_with("control-plane") && name.ends_with("4"))
            .unwrap_or_else(|| panic!("no set of addresses in {:?}", wanted.sets.keys()));
        let whole = Netlink::open().unwrap().load(&Read::Everything).unwrap();
        let (chain, handle, comment) = whole
            .ruleset
            .chains
            .iter()
            .find_map(|(name, chain)| {
                let comment = |index: usize| chain.rules[index].comment.clone().unwrap_or_default();
                let index = (0..chain.rules.len()).find(|index| comment(*index).starts_with("kubelet#3 "))?;
                Some((name.clone(), whole.rules[name][index].handle, comment(index)))
            })
            .unwrap();
        let other_policy = match wanted.chains["input"].base.unwrap().policy {
            ChainPolicy::Accept => "drop",
            ChainPolicy::Drop => "accept",
        };
        let tamperings = [
            (
                "a rule with its comment kept",
                format!(
                    "replace rule inet nodewall {chain} handle {handle} tcp dport 10250 counter accept comment \"{comment}\""
                ),
            ),
            ("an element more", format!("add element inet nodewall {set} {{ 10.9.9.9 }}")),
            ("an element less", format!("delete element inet nodewall {set} {{ 10.0.0.10 }}")),
            (
                "another policy",
                format!(
                    "add chain inet nodewall input {{ type filter hook input priority 0; policy {other_policy}; }}"
                ),
            ),
            ("a flushed chain", "flush chain inet nodewall input".to_owned()),
            ("a rule in front", "insert rule inet nodewall input accept".to_owned()),
            ("a chain of theirs", "add chain inet nodewall mine; add rule inet nodewall mine drop".to_owned()),
            (
                "a base chain of theirs",
                "add chain inet nodewall mine { type filter hook input priority -5; policy drop; }".to_owned(),
            ),
            (
                "a set of theirs",
                "add set inet nodewall mine { type ipv4_addr; }; add element inet nodewall mine { 10.1.1.1 }"
                    .to_owned(),
            ),
            ("an object of theirs", "add counter inet nodewall mine".to_owned()),
            ("a dormant table", "add table inet nodewall { flags dormant; }".to_owned()),
            ("a deleted table", "delete table inet nodewall".to_owned()),
            ("a removed chain", "flush chain inet nodewall input; delete chain inet nodewall input".to_owned()),
        ];
        let mut times = Vec::new();
        let mut events = 0;
        for (what, tampering) in tamperings {
            sh(&format!("nft '{tampering}'"));
            times.push(until_repaired(&node, what, &wanted));
            events += 1;
            let status = node
                .until(what, |_, status| status["in_sync"] == true && status["drift_events"].as_u64() == Some(events));
            assert_eq!(status["drift_last"]["process"], "nft", "{what}: {status:#}");
            assert!(!status["drift_last"]["difference"].as_array().unwrap().is_empty(), "{what}");
            assert!(status["drift_last"]["repair_ms"].as_f64().unwrap() < 1000.0 * PATIENCE.as_secs_f64());
            assert_eq!(status["generation"], 1, "{what}: a repair is no new generation");
        }
        assert_eq!(theirs(), before, "another table is never touched");
        times.sort();
        println!("from the end of nft(8) until seen repaired: {times:?}");
        let log = node.log();
        assert!(log.contains("nft (process ") && log.contains("changed table inet nodewall, repaired in"), "{log}");
        // Ours, and other tables, are nobody's drift.
        sh("nft add element ip theirs s '{ 10.2.2.2 }'; ip link add pod0 type veth peer name pod0p");
        let status = node.until("the link", |_, status| status["interfaces"].to_string().contains("\"pod0\""));
        assert_eq!(status["drift_events"].as_u64().unwrap(), events);
        let with_the_link = loaded().0;
        let chains_with_the_link: Vec<&String> = with_the_link.chains.keys().collect();
        // `nft flush ruleset` takes what is theirs, and only they put it back.
        sh("nft flush ruleset");
        node.until("after the flush", |_, status| {
            status["in_sync"] == true && status["drift_events"].as_u64().unwrap() == events + 1
        });
        assert_eq!(loaded().0.chains.keys().collect::<Vec<_>>(), chains_with_the_link);
        assert!(!sh("nft list tables").contains("theirs"));
    });
}

#[test]
fn what_a_change_of_policy_mends_by_the_way_is_told_as_well() {
    isolated("by-the-way", || {
        management_link();
        let node = running(POLICY);
        let set = loaded().0.sets.into_keys().find(|name| name.starts_with("control-plane") && name.ends_with('4'));
        let set = set.expect("a set of addresses");
        // The daemon finds both when it goes on, in whatever order: policy first leaves the repair nothing to do.
        for events in 1..=10u64 {
            node.signal(Signal::SIGSTOP);
            sh(&format!("nft delete element inet nodewall {set} {{ 10.0.0.10 }}"));
            let policy = POLICY.replace("[8080]", &format!("[8080, {}]", 9000 + events));
            std::fs::write(node.path("policy.d/20-kubelet.toml"), policy).unwrap();
            node.signal(Signal::SIGCONT);
            node.until("told", |_, status| {
                status["in_sync"] == true
                    && status["generation"].as_u64() == Some(1 + events)
                    && status["drift_events"].as_u64() == Some(events)
                    && status["drift_last"]["process"] == "nft"
                    && status["drift_last"]["difference"].to_string().contains("lacks 1 elements")
            });
        }
    });
}

/// A policy with a set that is too large to be read before every repair.
fn large() -> String {
    let prefixes: Vec<String> =
        (0..3000u32).map(|index| format!("\"{}/30\"", std::net::Ipv4Addr::from(0x0a00_0000 + index * 8))).collect();
    format!(
        "[[set]]\nname = \"big\"\ncidrs = [{}]\n{}",
        prefixes.join(","),
        POLICY.replace("sets = [\"control-plane\"]", "sets = [\"control-plane\", \"big\"]")
    )
}

/// Says that something is over, whatever way it ended.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn large_sets_are_repaired_too_and_nothing_is_missed_while_we_do_not_listen() {
    isolated("large", || {
        management_link();
        sh("nft 'add table ip theirs; add set ip theirs s { type ipv4_addr; }'");
        let node = running(&large());
        let (wanted, _) = loaded();
        let set = wanted.sets.iter().find(|(_, set)| set.elements.len() > 2500).map(|(name, _)| name.clone()).unwrap();
        let tamperings = [
            format!("add element inet nodewall {set} {{ 11.0.0.0/30 }}"),
            format!("delete element inet nodewall {set} {{ 10.0.0.0/30 }}"),
            format!("flush set inet nodewall {set}"),
            "insert rule inet nodewall input accept".to_owned(),
            "delete table inet nodewall".to_owned(),
        ];
        for (events, tampering) in (1..).zip(tamperings) {
            sh(&format!("nft '{tampering}'"));
            until_repaired(&node, &tampering, &wanted);
            node.until(&tampering, |_, status| {
                status["in_sync"] == true && status["drift_events"].as_u64() == Some(events)
            });
        }
        // Somebody else commits all the time: some of it while the table is loaded again, and nobody listens.
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when something here fails, which would otherwise wait for that thread for ever.
            let _ends = Ends(&done);
            scope.spawn(|| {
                let script =
                    "for i in $(seq 40); do nft add element ip theirs s { 10.1.1.$i }; nft flush set ip theirs s; done";
                while !done.load(Ordering::Relaxed) {
                    sh(script);
                }
            });
            for round in 0..8 {
                sh("nft delete table inet nodewall");
                // At a moment at which the repair is under way, or just over.
                std::thread::sleep(Duration::from_millis(round * 2));
                let _ = std::process::Command::new("nft")
                    .arg("insert rule inet nodewall input accept")
                    .stderr(std::process::Stdio::null())
                    .status();
                until_repaired(&node, &format!("round {round}"), &wanted);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        node.until("the end", |_, status| status["in_sync"] == true);
        assert_eq!(loaded().0, wanted);
    });
}

#[test]
fn an_agent_that_keeps_flushing_is_answered_within_a_second_and_named() {
    isolated("storm", || {
        management_link();
        let node = running(POLICY);
        let (wanted, _) = loaded();
        let mut longest = Duration::ZERO;
        for round in 0..45 {
            sh("nft delete table inet nodewall");
            longest = longest.max(until_repaired(&node, &format!("flush {round}"), &wanted));
        }
        println!("longest until seen repaired in a storm: {longest:?}");
        // A change during a repair is mended with it.
        let status = node.until("the end", |_, status| status["in_sync"] == true && status["drift_storm"] == false);
        assert!(status["drift_events"].as_u64().unwrap() > 25, "{status:#}");
        let log = node.log();
        assert!(log.contains("keeps changing table inet nodewall"), "{log}");
        assert!(log.lines().filter(|line| line.contains("repaired in")).count() < 45, "not a line each:\n{log}");
    });
}

#[test]
fn what_was_found_and_is_not_ours_by_doing_is_left_as_it_is() {
    isolated("found", || {
        management_link();
        sh("nft 'add table inet nodewall; add chain inet nodewall input { type filter hook input priority 0; }'");
        let node = running("this is not toml");
        sh("nft add rule inet nodewall input tcp dport 1 drop");
        let status = node.until("degraded", |_, status| status["state"] == "degraded");
        assert_eq!(status["drift_events"], 0);
        std::thread::sleep(Duration::from_millis(300));
        assert!(sh("nft list table inet nodewall").contains("dport 1 drop"));
        // But it has to be there: without it the host would be open.
        sh("nft flush ruleset");
        node.until("the lockdown", |_, status| status["reason"].as_str().unwrap_or_default().contains("lockdown"));
        assert!(sh("nft list table inet nodewall").contains("failsafe:ssh#1"));
        // As soon as something of ours is in force, it is kept.
        std::fs::write(node.path("policy.d/20-kubelet.toml"), POLICY).unwrap();
        node.until("in force", |_, status| status["state"] == "in-force");
        let (wanted, _) = loaded();
        sh("nft flush ruleset");
        until_repaired(&node, "a flush", &wanted);
    });
}

#[test]
fn probes_through_twenty_flushes_are_never_wrongly_denied_and_wrongly_allowed_only_until_the_repair() {
    if !may_run("probes through flushes") {
        return;
    }
    let (host, peer) = (Host::new(), Host::new());
    wire((&host, "mgmt0", &["10.77.0.2/24", "fd77::2/64"]), (&peer, "eth0", &["10.77.0.1/24", "fd77::1/64"]));
    host.sh("ip route add default via 10.77.0.1");
    let _servers = host.serve(&[8080, 10250], &[]);
    let node = host.enter(|| running(POLICY));
    let probes = |port: u16| -> Vec<Probe> {
        [("10.77.0.1", "10.77.0.2"), ("fd77::1", "fd77::2")]
            .map(|(source, destination)| Probe {
                from: peer.clone(),
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                what: What::Tcp(port),
            })
            .into()
    };
    assert_eq!(probe(&probes(8080)), [Answer::Allowed, Answer::Allowed]);
    assert_eq!(probe(&probes(10250)), [Answer::Denied, Answer::Denied]);
    let done = AtomicBool::new(false);
    let (windows, wrong_allowed, (tries, lost)) = std::thread::scope(|scope| {
        let allowed = scope.spawn(|| {
            let (mut tries, mut lost) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                if probe(&probes(8080)) != [Answer::Allowed, Answer::Allowed] {
                    // The kernel takes the rules out of a chain a moment before the chain itself, and its policy is drop: whoever
                    // flushes can lose a packet that is just then on its way. The next one must come through, as TCP's second does.
                    lost.push((start, Instant::now()));
                    assert_eq!(probe(&probes(8080)), [Answer::Allowed, Answer::Allowed], "wrongly denied");
                }
                tries += 1;
            }
            (tries, lost)
        });
        // A denied probe waits long for its answer: several, one after the other, so that one is always about to be sent.
        let denied: Vec<_> = (0..DENIED_AT_ONCE)
            .map(|number| {
                let (done, probes) = (&done, &probes);
                scope.spawn(move || {
                    std::thread::sleep(lab::net::PATIENCE * number / DENIED_AT_ONCE);
                    // When a probe that should be denied began and had its answer.
                    let mut wrong = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        if probe(&probes(10250)).contains(&Answer::Allowed) {
                            wrong.push((start, Instant::now()));
                        }
                    }
                    wrong
                })
            })
            .collect();
        let windows = host.enter(|| {
            let (wanted, _) = loaded();
            (0..20)
                .map(|round| {
                    let start = Instant::now();
                    sh("nft flush ruleset");
                    until_repaired(&node, &format!("flush {round}"), &wanted);
                    let end = Instant::now();
                    std::thread::sleep(Duration::from_millis(100));
                    (start, end)
                })
                .collect::<Vec<_>>()
        });
        done.store(true, Ordering::Relaxed);
        let denied: Vec<_> = denied.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (windows, denied, allowed.join().unwrap())
    });
    for (what, probes) in [("wrongly allowed", &wrong_allowed), ("lost", &lost)] {
        for (start, end) in probes {
            let inside = windows.iter().any(|(flush, repaired)| flush <= end && start <= repaired);
            assert!(inside, "{what} with the table in place");
        }
    }
    assert_eq!(probe(&probes(10250)), [Answer::Denied, Answer::Denied]);
    let mut lengths: Vec<Duration> = windows.iter().map(|(start, end)| *end - *start).collect();
    lengths.sort();
    println!(
        "{tries} rounds of allowed probes, {} with a packet lost, {} of denied ones let through; from the start of nft(8) until seen repaired: {lengths:?}",
        lost.len(),
        wrong_allowed.len()
    );
    assert!(lengths[lengths.len() / 2] < Duration::from_secs(1), "{lengths:?}");
}

#[test]
fn what_else_decides_is_listed_by_hook_and_owner_whatever_its_size() {
    isolated("coexistence", || {
        management_link();
        sh("tc qdisc add dev mgmt0 clsact; echo 1 > /proc/sys/net/ipv4/conf/mgmt0/route_localnet");
        let mut rules = String::from(
            "table ip filter {\n chain ufw-before-input { }\n chain KUBE-FIREWALL { }\n \
             chain INPUT { type filter hook input priority 0; policy drop; }\n}\n\
             table inet firewalld {\n chain filter_INPUT { type filter hook input priority 10; policy accept;\n",
        );
        for rule in 0..5000 {
            rules.push_str(&format!("  tcp dport {} accept\n", rule + 1));
        }
        rules.push_str(" }\n}\ntable ip raw { chain PREROUTING { type filter hook prerouting priority -300; }; }\n");
        let node = running(POLICY);
        std::fs::write(node.path("others.nft"), rules).unwrap();
        sh(&format!("nft -f {}", node.path("others.nft").display()));
        let start = Instant::now();
        let report: Value = serde_json::from_str(&node.must(&["check", "--host", "--json"])).unwrap();
        println!("`check --host` beside 5,000 rules: {:?}", start.elapsed());
        let chains: Vec<String> = report["base_chains"]
            .as_array()
            .unwrap()
            .iter()
            .map(|chain| {
                let owners: Vec<&str> =
                    chain["owners"].as_array().unwrap().iter().map(|owner| owner.as_str().unwrap()).collect();
                format!(
                    "{} {} {} {} {} {} {} {}",
                    chain["hook"].as_str().unwrap(),
                    chain["priority"],
                    chain["table"].as_str().unwrap(),
                    chain["policy"].as_str().unwrap(),
                    chain["rules"],
                    owners.join("+"),
                    chain["drops"].as_str().unwrap(),
                    chain["after_ours"]
                )
            })
            .collect();
        assert_eq!(
            chains,
            [
                "prerouting -300 raw accept 0 iptables-nft no false",
                "input 0 filter drop 0 kube-proxy+ufw policy true",
                "input 10 firewalld accept 5000 firewalld no false",
            ]
        );
        let codes: Vec<&str> =
            report["remarks"].as_array().unwrap().iter().map(|remark| remark["code"].as_str().unwrap()).collect();
        assert!(codes.contains(&"tc") && codes.contains(&"route-localnet"), "{report:#}");
        let text = node.must(&["status"]);
        assert!(text.contains("Base chains of others") && text.contains("AFTER OURS: "), "{text}");
        assert!(text.contains("inet firewalld filter_INPUT") && text.contains("ip raw PREROUTING"), "{text}");
        assert!(text.contains("interface mgmt0 has tc's clsact hook"), "{text}");
        assert_eq!(node.status().1["drift_events"], 0);
    });
}
