//! `nodewall audit` against listeners that are known, and against real connections from every peer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

#[path = "../lab/mod.rs"]
mod lab;

mod listeners;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Command;

use lab::daemon::Node;
use lab::net::{Answer, Host, Probe, What, probe, wire};
use lab::{isolated, sh};
use listeners::{Listening, all, start};
use serde_json::Value;

/// Sets, roles, and rules of many kinds on three of them; the fourth has none.
const POLICY: &str = r#"
[[set]]
name = "admin"
cidrs = ["10.0.0.8/29", "fd00::8/125"]

[[set]]
name = "monitoring"
cidrs = ["10.0.0.64/26"]

[[set]]
name = "job-peers"
cidrs = ["10.1.0.0/28", "fd01::/124"]

[[interface]]
name = "front"
match = { name = "mgmt0" }
role = "mgmt"

[[interface]]
name = "rail"
match = { name = "rail0" }
role = "rail"

[[interface]]
name = "store"
match = { name = "nvme0" }
role = "storage"

[[interface]]
name = "pods"
match = { name = "cali0" }
role = "pod"

[[policy]]
name = "front"
order = 10
interfaces = "role == 'mgmt'"
ingress = [
  { action = "reject", from = { cidrs = ["10.0.0.12"] } },
  { action = "allow", from = { sets = ["admin"] }, protocol = "tcp", ports = [8265, "8000-8999", 10250] },
  { action = "allow", from = { sets = ["monitoring"] }, protocol = "tcp", ports = [9100, 9400] },
  { action = "allow", from = { sets = ["monitoring"] }, protocol = "udp", ports = [161] },
  { action = "allow", to = { cidrs = ["10.0.0.2"] }, protocol = "tcp", ports = [443] },
  { action = "allow", family = 6, protocol = "tcp", ports = [11434] },
  { action = "allow", from = { ports = ["1-1023"] }, protocol = "tcp", ports = [514] },
  { action = "allow", from = { cidrs = ["0.0.0.0/0"], except = { sets = ["monitoring"] } }, protocol = "udp", ports = [5353] },
  { action = "allow", protocol = "udplite", ports = [7000] },
]

[[policy]]
name = "rail"
order = 20
interfaces = "role == 'rail'"
ingress = [
  { action = "allow", from = { sets = ["job-peers"] }, protocol = "tcp" },
  { action = "allow", from = { sets = ["job-peers"] }, protocol = "udp", ports = [4791] },
]

[[policy]]
name = "store"
order = 30
mode = "audit"
interfaces = "role == 'storage'"
ingress = [{ action = "allow", protocol = "tcp" }]

[[policy]]
name = "pods"
order = 40
interfaces = "role == 'pod'"
ingress = [{ action = "deny", protocol = "tcp", ports = [10250, 10255] }]
"#;

/// A host on the other end of a wire, with its addresses and the role of the interface that the wire ends at.
struct Peer {
    host: Host,
    role: &'static str,
    addresses: Vec<IpAddr>,
}

/// The four wires of the node in this namespace.
fn peers() -> Vec<Peer> {
    let node = Host::this();
    let ends: [(&str, &str, &[&str], &[&str]); 4] = [
        (
            "mgmt0",
            "mgmt",
            &["10.0.0.2/24", "fd00::2/64"],
            &[
                "10.0.0.1/24",
                "10.0.0.9/24",
                "10.0.0.12/24",
                "10.0.0.70/24",
                "10.0.0.200/24",
                "fd00::9/64",
                "fd00::200/64",
            ],
        ),
        (
            "rail0",
            "rail",
            &["10.1.0.2/24", "fd01::20/64"],
            &["10.1.0.3/24", "10.1.0.99/24", "fd01::3/64", "fd01::99/64"],
        ),
        ("nvme0", "storage", &["10.2.0.2/24"], &["10.2.0.3/24"]),
        ("cali0", "pod", &["10.244.0.1/24"], &["10.244.0.5/24"]),
    ];
    let peer = |(name, role, here, there): (&str, &'static str, &[&str], &[&str])| {
        let host = Host::new();
        wire((&node, name, here), (&host, "up0", there));
        for (family, gateway) in [("-4", here.first()), ("-6", here.get(1))] {
            if let Some((gateway, _)) = gateway.and_then(|gateway| gateway.split_once('/')) {
                host.sh(&format!("ip {family} route add default via {gateway}"));
            }
        }
        let addresses = there.iter().map(|net| net.split_once('/').unwrap().0.parse().unwrap()).collect();
        Peer { host, role, addresses }
    };
    let peers = ends.map(peer).into();
    sh("ip route add default via 10.0.0.1");
    peers
}

/// The node's own addresses that others can send to.
const OWN: [&str; 6] = ["10.0.0.2", "10.1.0.2", "10.2.0.2", "10.244.0.1", "fd00::2", "fd01::20"];

/// The one of a set that a rule before those of the set rejects.
const LEFT_OUT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 12));

/// Whether the report says that this address gets in by an interface of this role.
fn is_said(listener: &Value, role: &str, from: IpAddr) -> bool {
    let listening = Listening::of_report(listener);
    let takes = listening.address.is_ipv4() == from.is_ipv4() || listening.both_families;
    takes && gets_in(&listener["reach"], role, from)
}

/// Whether this address is among those who get in by an interface of this role.
fn gets_in(reach: &Value, role: &str, from: IpAddr) -> bool {
    let sets: BTreeMap<&str, BTreeSet<IpAddr>> = [
        ("admin", vec!["10.0.0.9", "10.0.0.12", "fd00::9"]),
        ("monitoring", vec!["10.0.0.70"]),
        ("job-peers", vec!["10.1.0.3", "fd01::3"]),
    ]
    .map(|(name, members)| (name, members.iter().map(|member| member.parse().unwrap()).collect()))
    .into();
    let reached = reach.as_array().unwrap().iter().filter(|reach| reach["role"] == role);
    let mut peers = reached.flat_map(|reach| reach["from"].as_array().unwrap());
    peers.any(|peer| {
        let name = peer["name"].as_str();
        match peer["peer"].as_str().unwrap() {
            "anyone" => match name {
                None => true,
                Some("ipv4") => from.is_ipv4(),
                Some("ipv6") => from.is_ipv6(),
                other => panic!("{other:?}"),
            },
            "anyone-but" => {
                let mut but = peer["but"].as_array().unwrap().iter().map(|but| but.as_str().unwrap());
                !but.any(|name| match name.strip_prefix("part of ") {
                    Some(_) => from == LEFT_OUT,
                    None => sets[name].contains(&from),
                })
            }
            "set" => sets[name.unwrap()].contains(&from),
            "part-of-set" => sets[name.unwrap()].contains(&from) && from != LEFT_OUT,
            "prefix" => name.unwrap().parse::<ipnet::IpNet>().unwrap().contains(&from),
            other => panic!("{other}"),
        }
    })
}

/// What somebody can try: every address of the node.
fn tries(peer: &Peer, from: IpAddr, listening: &Listening) -> Vec<Probe> {
    let port = listening.port;
    let what = if listening.transport == "udp" { What::Udp(port) } else { What::Tcp(port) };
    let own = OWN.map(|own| own.parse::<IpAddr>().unwrap());
    let fits = own.into_iter().filter(|own| own.is_ipv4() == from.is_ipv4());
    fits.map(|destination| Probe { from: peer.host.clone(), source: from, destination, what }).collect()
}

#[test]
fn what_listens_is_listed_and_reached_as_it_says() {
    isolated("audit", || {
        let peers = peers();
        let processes = start(&all());
        let mut node = Node::new(&[("10-audit.toml", POLICY)]);
        node.run();
        // It is kept a moment after it is in force.
        for _ in 0..200 {
            if node.history().1 == Some(1) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // Without --policy-dir: under what is in force.
        let mut audit = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        let output = audit.args(["--json", "--config"]).arg(node.path("nodewall.toml")).arg("audit").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["version"], 1);
        assert_eq!((&report["policy"]["basis"], &report["policy"]["generation"]), (&"generation".into(), &1.into()));
        let found = report["listeners"].as_array().unwrap();
        let seen: BTreeSet<Listening> = found.iter().map(Listening::of_report).collect();
        let expected: BTreeSet<Listening> = all().into_iter().flat_map(|process| process.listening()).collect();
        assert!(expected.len() >= 30, "{}", expected.len());
        let more: Vec<_> = seen.difference(&expected).collect();
        let fewer: Vec<_> = expected.difference(&seen).collect();
        assert!(more.is_empty() && fewer.is_empty(), "more: {more:#?}\nfewer: {fewer:#?}");
        assert_eq!(found.len(), seen.len(), "each once");
        for listener in found {
            let pids: Vec<u64> = listener["processes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|process| process["pid"].as_u64().unwrap())
                .collect();
            let listening = Listening::of_report(listener);
            assert_eq!(pids, processes.pids(&listening), "{listening:?}");
        }
        // The probes have no UDP-Lite. A port of which there are several listeners may be answered by any of them.
        let mut ports: BTreeMap<(String, u16), Vec<&Value>> = BTreeMap::new();
        for listener in found.iter().filter(|listener| listener["transport"] != "udplite") {
            let listening = Listening::of_report(listener);
            ports.entry((listening.transport, listening.port)).or_default().push(listener);
        }
        let froms: Vec<(&Peer, IpAddr)> =
            peers.iter().flat_map(|peer| peer.addresses.iter().map(move |from| (peer, *from))).collect();
        let questions: Vec<(&Vec<&Value>, &Peer, IpAddr)> = ports
            .values()
            .flat_map(|listeners| froms.iter().map(move |(peer, from)| (listeners, *peer, *from)))
            .collect();
        let mut probes = Vec::new();
        let mut ends = Vec::new();
        for (listeners, peer, from) in &questions {
            probes.extend(tries(peer, *from, &Listening::of_report(listeners[0])));
            ends.push(probes.len());
        }
        let answers = probe(&probes);
        let (mut start, mut open, mut wrong) = (0, 0, Vec::new());
        for ((listeners, peer, from), end) in questions.iter().zip(ends) {
            let listening = Listening::of_report(listeners[0]);
            // A client with a port below 1024 is none of the probes, but may be anybody's.
            let low = listening.port == 514 && peer.role == "mgmt";
            let said = !low && listeners.iter().any(|listener| is_said(listener, peer.role, *from));
            let real = answers[start..end].contains(&Answer::Allowed);
            start = end;
            open += usize::from(real);
            if said != real {
                wrong.push(format!("{listening:?} by {} from {from}: said {said}, real {real}", peer.role));
            }
        }
        let asked = questions.len();
        assert!(wrong.is_empty(), "{wrong:#?}");
        println!("{asked} questions, {open} answered");
        assert!(asked > 300 && open > 40 && open < asked / 2, "both answers come: {asked} {open}");
        let syslog = found.iter().find(|listener| listener["port"] == 514).unwrap();
        assert!(syslog["reach"].to_string().contains("mgmt"), "by a port below 1024: {syslog:#}");
        // What is open and what is dangerous.
        let codes: Vec<(&str, &str)> = report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|finding| (finding["code"].as_str().unwrap(), finding["message"].as_str().unwrap()))
            .collect();
        let has = |code: &str, words: &str| codes.iter().any(|(known, text)| *known == code && text.contains(words));
        assert!(has("exposed-service", "Ray dashboard"), "pods reach it: {codes:#?}");
        assert!(has("exposed-service", "Ollama"), "{codes:#?}");
        assert!(has("service-too-wide", "kubelet, read-only"), "{codes:#?}");
        assert!(has("only-the-policy", "NCCL RAS"), "{codes:#?}");
        assert!(has("exposed-gpu-process", "mine"), "{codes:#?}");
        drop(processes);
    });
}

/// Ports of this host that lead to a pod: what the stages before and after the rewrite let through.
const PUBLISHING: &str = r#"
[[policy]]
name = "node-ports"
order = 5
stage = "prednat"
interfaces = "role == 'mgmt'"
ingress = [
  { action = "allow", from = { sets = ["admin"] }, protocol = "tcp", ports = [30080] },
  { action = "deny", protocol = "tcp", ports = [30080] },
]

[[policy]]
name = "to-pods"
order = 6
stage = "forward"
interfaces = "role == 'rail'"
ingress = [
  { action = "allow", from = { sets = ["job-peers"] }, protocol = "tcp", ports = [8080] },
  { action = "deny", protocol = "tcp", ports = [8080] },
]
"#;

#[test]
fn what_others_publish_is_reached_as_it_says() {
    isolated("audit-published", || {
        let peers = peers();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        sh("nft 'add table ip theirs; add chain ip theirs pre { type nat hook prerouting priority dstnat; }; \
            add rule ip theirs pre fib daddr type local tcp dport { 30080, 8443 } counter dnat to 10.244.0.5:8080 comment \"default/web:http\"; \
            add rule ip theirs pre iifname mgmt0 tcp dport 8444 redirect to :22'");
        let mut node = Node::new(&[("10-audit.toml", &format!("{POLICY}{PUBLISHING}"))]);
        node.run();
        let pod = peers.iter().find(|peer| peer.role == "pod").unwrap();
        let _servers = (pod.host.serve(&[8080], &[]), Host::this().serve(&[22], &[]));
        let report: Value = serde_json::from_str(&node.must(&["audit", "--json"])).unwrap();
        let published = report["published"].as_array().unwrap();
        let (mut asked, mut open) = (0, 0);
        for (port, target) in [(30080, "10.244.0.5:8080"), (8443, "10.244.0.5:8080"), (8444, "port 22 of this host")] {
            let has = |published: &&Value| {
                published["ports"].as_str().unwrap().split(',').any(|known| known == port.to_string())
            };
            let record = published.iter().find(has).unwrap_or_else(|| panic!("{port}: {published:#?}"));
            assert_eq!((&record["target"], &record["partly"]), (&target.into(), &false.into()), "{record:#}");
            for peer in peers.iter().filter(|peer| peer.role != "pod") {
                let probes: Vec<Probe> = peer
                    .addresses
                    .iter()
                    .filter(|from| from.is_ipv4())
                    .map(|from| Probe {
                        from: peer.host.clone(),
                        source: *from,
                        destination: "10.0.0.2".parse().unwrap(),
                        what: What::Tcp(port),
                    })
                    .collect();
                for (asking, answer) in probes.iter().zip(probe(&probes)) {
                    let said = gets_in(&record["reach"], peer.role, asking.source);
                    let real = answer == Answer::Allowed;
                    assert_eq!(said, real, "{port} by {} from {}: {record:#}", peer.role, asking.source);
                    asked += 1;
                    open += usize::from(real);
                }
            }
        }
        assert!(asked > 20 && open > 5 && open < asked, "both answers come: {asked} {open}");
        let text = node.must(&["audit"]);
        assert!(text.contains("to 10.244.0.5:8080"), "{text}");
    });
}

#[test]
fn more_exposure_than_before_is_told_and_less_is_not() {
    isolated("audit-diff", || {
        let _peers = peers();
        let node = Node::new(&[("10-audit.toml", POLICY)]);
        let one = all().into_iter().find(|process| process.name == "raylet").unwrap();
        let processes = start(std::slice::from_ref(&one));
        std::fs::write(node.path("before.json"), node.must(&["audit", "--json"])).unwrap();
        let before = node.path("before.json");
        let diff =
            |arguments: &[&str]| node.nodewall(&[&["audit", "--diff", before.to_str().unwrap()], arguments].concat());
        let (code, text, _) = diff(&[]);
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with("no more and no less than at "), "{text}");
        // Fewer may reach it.
        node.write("policy.d/10-audit.toml", &POLICY.replace("8265, \"8000-8999\"", "\"8000-8200\""));
        let (code, text, _) = diff(&[]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(text, "gone 0.0.0.0:8265/tcp (raylet) from mgmt: part of admin\n");
        // More may.
        node.write("policy.d/10-audit.toml", &POLICY.replace("ports = [8265, \"8000-8999\"", "ports = [52365, 8265"));
        let (code, text, _) = diff(&[]);
        assert_eq!((code, text.as_str()), (1, "new  0.0.0.0:52365/tcp (raylet) from mgmt: part of admin\n"));
        let (code, text, _) = diff(&["--json"]);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, &json["version"], &json["new"][0]["role"]), (1, &1.into(), &"mgmt".into()));
        // Something new listens.
        node.write("policy.d/10-audit.toml", POLICY);
        let another = start(&[listeners::Process { name: "nc", places: vec!["tcp:8444"], ..one.clone() }]);
        let (code, text, _) = diff(&[]);
        assert_eq!(code, 1);
        assert!(text.contains("new  0.0.0.0:8444/tcp (nc) from mgmt: part of admin\n"), "{text}");
        assert!(text.contains("from rail: job-peers") && text.contains("from pod: anyone"), "{text}");
        drop(another);
        assert_eq!(diff(&[]).0, 0);
        drop(processes);
        assert_eq!(diff(&[]).0, 0, "all gone");
        for (text, words) in
            [("{}", "not what `audit --json` prints"), ("{\"version\"", "not what `audit --json` prints")]
        {
            std::fs::write(&before, text).unwrap();
            let (code, _, stderr) = diff(&[]);
            assert!(code == 1 && stderr.contains("before.json:1: ") && stderr.contains(words), "{code} {stderr}");
        }
        std::fs::remove_file(&before).unwrap();
        let (code, _, stderr) = diff(&[]);
        assert!(code == 1 && stderr.contains("before.json: No such file"), "{code} {stderr}");
    });
}

#[test]
fn without_a_policy_everything_counts_as_open() {
    isolated("audit-nothing", || {
        let _peers = peers();
        let node = Node::new(&[]);
        let processes = start(&all());
        let mut audit = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        let output = audit.arg("--config").arg(node.path("nodewall.toml")).arg("audit").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(text.starts_with("nodewall has no policy in force here"), "{text}");
        assert!(text.contains(" 0 by some, 0 by nobody,"), "{text}");
        drop(processes);
    });
}
