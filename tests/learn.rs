//! A scripted day of a training node: what is drafted from it is valid, short, lets everything through but the scan, and says so
//! when the day is replayed under it; whoever orders, splits or disturbs the records gets the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use nodewall::config::{self, Config};
use nodewall::learn::text::About;
use nodewall::learn::verify::{Report, verify};
use nodewall::learn::{Apart, Draft, Gathered, Generalise, Ground, Options, draft, text};
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::node::{ClusterNodes, Node, NodeAddress};
use nodewall::net::protocol::Protocol;
use nodewall::net::splitmix::Dice;
use nodewall::policy::model::Policy;
use nodewall::policy::resolve::resolve;
use nodewall::source::{self, Sourced, Trust};
use nodewall::text::finding::Severity;
use nodewall::traffic::{Actor, Decider, Key, Record, Service, Verdict};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
/// 2026-11-25T00:00:00Z.
const MIDNIGHT: u64 = 1_795_564_800 * SECOND;
/// Records are of windows of ten seconds.
const WINDOW: u64 = 10 * SECOND;
const SCANNER: &str = "192.0.2.66";

/// The node: an uplink, a rail and a storage link; nine training nodes, of which it is the ninth.
fn facts() -> Facts {
    let link = |index: u32, name: &str, address: &str| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        link.addresses = [address.parse().unwrap()].into();
        link.default_route = index == 2;
        (index, link)
    };
    let node = |number: u8| {
        let address = |role, third| NodeAddress { role, address: [10, third, 0, number].into() };
        let node = Node {
            shared: Arc::new([("pool".to_owned(), "training".to_owned())].into()),
            own: BTreeMap::new(),
            addresses: [address(None, 10), address(Some(Role::Rail), 20)].into(),
        };
        (format!("gpu-{number}"), Arc::new(node))
    };
    let nodes: ClusterNodes = (101..=109).map(node).collect();
    Facts {
        node: "gpu-109".to_owned(),
        links: [
            link(2, "eth0", "10.10.0.109/24"),
            link(3, "rail0", "10.20.0.109/24"),
            link(4, "stor0", "10.30.0.109/24"),
        ]
        .into(),
        nodes: Arc::new([("training".to_owned(), Arc::new(nodes))].into()),
        ..Facts::default()
    }
}

/// The sets and interfaces that an operator has before the first rule.
const SETS: &str = r#"
[[set]]
name = "bastions"
cidrs = ["192.0.2.8/29"]
[[set]]
name = "control-plane"
cidrs = ["10.10.0.10", "10.10.0.11", "10.10.0.12"]
[[set]]
name = "monitoring"
cidrs = ["10.10.0.20", "10.10.0.21"]
[[set]]
name = "storage-servers"
cidrs = ["10.30.0.1", "10.30.0.2"]
[[set]]
name = "private"
cidrs = ["10.0.0.0/8"]
[[interface]]
name = "rails"
match = { name = "rail*" }
role = "rail"
[[interface]]
name = "storage"
match = { name = "stor*" }
role = "storage"
"#;

fn catalogue() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy.d/00-services.toml")).unwrap()
}

/// The documents of the node, and those of a draft.
fn documents(draft: Option<&str>) -> Sourced {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("00-services.toml", &catalogue());
    write("10-sets.toml", SETS);
    if let Some(text) = draft {
        write("50-learned.toml", text);
    }
    source::load_directories(&[directory.path().to_owned()], Trust::Anyone)
}

/// A node in audit mode, with the shipped failsafe but for SSH.
fn settings() -> Config {
    let (mut config, findings) = config::decode_text("nodewall.toml", "mode = \"audit\"\n");
    assert_eq!(findings, []);
    config.settings.failsafe.retain(|entry| entry.name != "ssh");
    config
}

/// Writes down a day.
struct Day {
    dice: Dice,
    records: Vec<Record>,
}

struct Talk<'a> {
    direction: Direction,
    interface: &'a str,
    role: Role,
    peer: &'a str,
    protocol: Protocol,
    service: Service,
    process: &'a str,
}

fn to<'a>(interface: &'a str, peer: &'a str, port: u16, process: &'a str) -> Talk<'a> {
    let role = match interface {
        "rail0" => Role::Rail,
        "stor0" => Role::Storage,
        _ => Role::Mgmt,
    };
    let service = Service::Port(port);
    Talk { direction: Direction::Ingress, interface, role, peer, protocol: Protocol::TCP, service, process }
}

impl Day {
    fn below(&mut self, most: u64) -> u64 {
        self.dice.roll() % most
    }

    /// Connections in one window; `packets` of each, both ways.
    fn talk(&mut self, at: u64, talk: &Talk<'_>, connections: u64, packets: u64) {
        let first = MIDNIGHT + at / WINDOW * WINDOW + self.below(WINDOW / 2);
        let last = first + self.below(WINDOW / 2);
        let verdict = if talk.direction == Direction::Ingress { Verdict::WouldDeny } else { Verdict::Allowed };
        let actor = Actor { process: talk.process.to_owned(), ..Actor::default() };
        let local: IpAddr = match talk.interface {
            "rail0" => "10.20.0.109",
            "stor0" => "10.30.0.109",
            _ => "10.10.0.109",
        }
        .parse()
        .unwrap();
        self.records.push(Record {
            key: Key {
                direction: talk.direction,
                interface: InterfaceName::new(talk.interface),
                role: Some(talk.role),
                peer: Some(talk.peer.parse().unwrap()),
                protocol: Some(talk.protocol),
                service: talk.service,
                verdict,
                decider: Decider::Default,
            },
            local: Some(local),
            names: BTreeSet::new(),
            tier: None,
            place: None,
            actors: if talk.process.is_empty() { BTreeSet::new() } else { [actor].into() },
            connections,
            packets: Some(packets * connections),
            bytes: Some(packets * connections * 400),
            first,
            last,
        });
    }

    /// The same again and again, every so often.
    fn all_day(&mut self, every: u64, talk: &Talk<'_>, packets: u64) {
        let mut at = self.below(every);
        while at < 24 * HOUR {
            self.talk(at, talk, 1, packets);
            at += every;
        }
    }
}

/// What is wanted of the day, as (interface, peer, protocol, service), and all of its records.
fn day(seed: u64) -> (Vec<Record>, BTreeSet<IpAddr>) {
    let mut day = Day { dice: Dice::new(seed), records: Vec::new() };
    let peers: Vec<String> = (101..=108).map(|number| format!("10.20.0.{number}")).collect();
    // Four jobs, each with a rendezvous, and NCCL's bootstrap and rings on whatever port is free, in both directions.
    for job in 0..4 {
        let begin = job * 5 * HOUR + HOUR;
        for peer in &peers {
            day.talk(begin, &to("rail0", peer, 29_500, "python3"), 1, 40);
            for _ in 0..12 {
                let port = 32_768 + u16::try_from(day.below(28_000)).unwrap();
                day.talk(begin, &to("rail0", peer, port, "python3"), 1, 5000);
                let port = 32_768 + u16::try_from(day.below(28_000)).unwrap();
                day.talk(begin, &Talk { direction: Direction::Egress, ..to("rail0", peer, port, "python3") }, 1, 5000);
            }
            let ping = Talk { protocol: Protocol::ICMP, service: Service::Icmp(8, 0), ..to("rail0", peer, 0, "") };
            day.talk(begin, &ping, 3, 2);
        }
    }
    for server in ["10.10.0.10", "10.10.0.11", "10.10.0.12"] {
        day.all_day(300 * SECOND, &to("eth0", server, 10_250, "kubelet"), 30);
    }
    for scraper in ["10.10.0.20", "10.10.0.21"] {
        day.all_day(60 * SECOND, &to("eth0", scraper, 9100, "node_exporter"), 14);
        day.all_day(60 * SECOND, &to("eth0", scraper, 9400, "dcgm-exporter"), 20);
        day.all_day(60 * SECOND, &to("eth0", scraper, 10_250, "kubelet"), 30);
    }
    for (bastion, times) in [("192.0.2.9", 9), ("192.0.2.10", 4), ("192.0.2.12", 1)] {
        for _ in 0..times {
            let at = day.below(24 * HOUR);
            day.talk(at, &to("eth0", bastion, 22, "sshd"), 1, 800);
        }
    }
    let out = |talk: Talk<'static>| Talk { direction: Direction::Egress, ..talk };
    let udp = |talk: Talk<'static>| Talk { protocol: Protocol::UDP, ..talk };
    for server in ["10.30.0.1", "10.30.0.2"] {
        day.all_day(4 * HOUR, &out(to("stor0", server, 2049, "")), 90_000);
    }
    day.all_day(30 * SECOND, &udp(out(to("eth0", "10.10.0.53", 53, "systemd-resolve"))), 2);
    day.all_day(HOUR, &udp(out(to("eth0", "10.10.0.54", 123, "chronyd"))), 2);
    let wanted = day.records.iter().filter_map(|record| record.key.peer).collect();
    // One scan: closed ports, and the open ones among them.
    for port in 1..=1024 {
        let (process, packets) = if port == 22 { ("sshd", 6) } else { ("", 2) };
        day.talk(13 * HOUR + u64::from(port) * SECOND / 20, &to("eth0", SCANNER, port, process), 1, packets);
    }
    for (port, process) in [(9100, "node_exporter"), (9400, "dcgm-exporter"), (10_250, "kubelet")] {
        day.talk(13 * HOUR, &to("eth0", SCANNER, port, process), 1, 6);
    }
    // One-offs: somebody looks at a dashboard that is not there, and somebody tries SSH once.
    day.talk(9 * HOUR, &to("eth0", "198.51.100.7", 8080, ""), 1, 2);
    day.talk(10 * HOUR, &to("eth0", "198.51.100.9", 22, "sshd"), 1, 12);
    day.talk(11 * HOUR, &to("eth0", "198.51.100.10", 9100, "node_exporter"), 1, 12);
    (day.records, wanted)
}

fn gathered<'r>(records: impl IntoIterator<Item = &'r Record>) -> Gathered {
    let mut gathered = Gathered::default();
    for record in records {
        gathered.push(record);
    }
    gathered
}

fn drafted(gathered: &Gathered, options: &Options) -> (Draft, String) {
    let (documents, config, facts) = (documents(None), settings(), facts());
    assert_eq!(documents.findings, []);
    let ground = Ground::new(&documents.policy, &config.settings, &facts);
    let draft = draft(gathered, &ground, options);
    let about = About { node: facts.node.clone(), ..About::default() };
    let text = text::render(&draft, gathered, options, &about);
    (draft, text)
}

/// What `check` would say, and what a replay of a day under the draft comes to.
fn replayed(text: &str, gathered: &Gathered, options: &Options) -> Report {
    let (sourced, config, facts) = (documents(Some(text)), settings(), facts());
    let (_, resolved) = resolve(&sourced.policy, &config.settings, &facts);
    let findings: Vec<_> =
        sourced.findings.iter().chain(&resolved).filter(|finding| finding.place.file.contains("learned")).collect();
    assert!(findings.is_empty(), "{findings:?}\n{text}");
    assert!(!sourced.findings.iter().any(|finding| finding.severity == Severity::Error), "{:?}", sourced.findings);
    let of_draft = names(&sourced.policy);
    verify(gathered, &sourced.policy, &of_draft, &config.settings, &facts, options)
}

fn names(policy: &Policy) -> BTreeSet<String> {
    policy
        .policies
        .iter()
        .filter(|policy| policy.place.file.contains("learned"))
        .map(|policy| policy.name.clone())
        .collect()
}

fn rules(draft: &Draft) -> usize {
    draft.policies.iter().flat_map(|policy| policy.rules.values()).map(Vec::len).sum()
}

#[test]
fn a_day_of_a_training_node_becomes_a_few_rules() {
    let (records, wanted) = day(1);
    let day = gathered(&records);
    let (draft, text) = drafted(&day, &Options::default());
    assert!(rules(&draft) < 20, "{} rules\n{text}", rules(&draft));
    for needed in [
        r#"from = { nodes = "pool == 'training'", role = "rail" }, services = ["nccl-peers", "ping", "torchrun"]"#,
        r#"from = { sets = ["control-plane", "monitoring"] }, services = ["kubelet"]"#,
        r#"from = { sets = ["monitoring"] }, services = ["dcgm-exporter", "node-exporter"]"#,
        r#"from = { sets = ["bastions"] }, services = ["ssh"]"#,
    ] {
        assert!(text.contains(needed), "{needed}\n{text}");
    }
    assert_eq!(rules(&draft), 4, "{text}");
    assert!(draft.sets.is_empty(), "{text}");
    let report = replayed(&text, &day, &Options::default());
    assert_eq!(report.surprises().collect::<Vec<_>>(), Vec::<&nodewall::learn::verify::Denied>::new());
    // Nobody whom the day is about is denied anything, and of the scan nothing gets through.
    let denied: BTreeSet<IpAddr> = report.denied.iter().filter_map(|denied| denied.flow.peer).collect();
    assert!(denied.is_disjoint(&wanted), "{denied:?}");
    let of_scan = report.denied.iter().filter(|denied| denied.flow.peer == Some(SCANNER.parse().unwrap()));
    assert!(of_scan.clone().all(|denied| denied.apart == Some(Apart::Scan)));
    assert_eq!(of_scan.count(), 1027);
    let all: u64 = records.iter().map(|record| record.connections).sum();
    let denied: u64 = report.denied.iter().map(|denied| denied.seen.connections).sum();
    assert_eq!((report.allowed + denied, report.unsure, denied), (all, 0, 1030));
    // What is left out is told.
    assert!(text.contains(&format!("from {SCANNER}")) && text.contains("198.51.100.9"), "{text}");
}

#[test]
fn what_the_node_begins_is_drafted_when_asked_for() {
    let (records, _) = day(1);
    let day = gathered(&records);
    let options = Options { egress: true, ..Options::default() };
    let (draft, text) = drafted(&day, &options);
    assert!(text.contains(r#"to = { sets = ["storage-servers"] }, services = ["nfs"]"#), "{text}");
    assert!(
        text.contains(r#"to = { nodes = "pool == 'training'", role = "rail" }, services = ["nccl-peers"]"#),
        "{text}"
    );
    // DNS and time are the failsafe's.
    assert!(!text.contains("chronyd") && rules(&draft) < 20, "{text}");
    // With everything else closed, the day goes on.
    let closed = text
        .replace("egress = [\n", "egress = [\n  ")
        .replace("]\n# To close", "  { action = \"deny\" },\n]\n# To close");
    assert_ne!(closed, text);
    let report = replayed(&closed, &day, &options);
    assert_eq!(report.surprises().count(), 0, "{closed}");
}

#[test]
fn without_a_rule_for_them_the_kubelet_s_clients_are_missed() {
    let (records, _) = day(1);
    let day = gathered(&records);
    let (_, text) = drafted(&day, &Options::default());
    let without = text.replace(r#"sets = ["control-plane", "monitoring"]"#, r#"sets = ["monitoring"]"#);
    let report = replayed(&without, &day, &Options::default());
    let missed: BTreeSet<String> = report.surprises().map(|denied| denied.flow.peer.unwrap().to_string()).collect();
    assert_eq!(missed, ["10.10.0.10", "10.10.0.11", "10.10.0.12"].map(str::to_owned).into());
}

#[test]
fn every_way_to_generalise_lets_the_day_through() {
    let (records, _) = day(3);
    let day = gathered(&records);
    for generalise in [Generalise::None, Generalise::Sets, Generalise::Prefixes(24, 64), Generalise::Prefixes(16, 48)] {
        let options = Options { generalise, ..Options::default() };
        let (draft, text) = drafted(&day, &options);
        let report = replayed(&text, &day, &options);
        assert_eq!(report.surprises().count(), 0, "{text}");
        assert!(rules(&draft) < 20, "{text}");
        let widest =
            draft.sets.iter().flat_map(|set| set.members.keys()).map(|net| net.prefix_len()).min().unwrap_or(32);
        assert!(generalise != Generalise::None || widest == 32, "{text}");
    }
}

#[test]
fn hostile_names_stay_in_their_comment() {
    let (mut records, _) = day(1);
    let hostile = [
        "\n[[policy]]\nname = \"open\"\ninterfaces = \"all()\"\ningress = [{ action = \"allow\" }]\n#",
        "\"]\r\n",
        "\u{2028}\u{202e}x",
        "a\0b",
        "'''",
        "\\u000a",
        "\u{7f}\u{85}",
    ];
    let (_, before) = drafted(&gathered(&records), &Options::default());
    for (number, record) in records.iter_mut().enumerate().filter(|(_, record)| !record.actors.is_empty()) {
        let name = hostile[number % hostile.len()].to_owned();
        record.actors = [Actor {
            process: name.clone(),
            unit: Some(format!("{name}.service")),
            pod: Some(name.clone()),
            user: Some(name),
        }]
        .into();
        if record.key.service == Service::Port(9100) {
            // One that has no name, so that it is called after its process.
            record.key.service = Service::Port(9900);
        }
    }
    let day = gathered(&records);
    let (_, text) = drafted(&day, &Options::default());
    assert!(text.is_ascii() && !text.chars().any(|next| next.is_control() && next != '\n'), "{text}");
    let written = documents(Some(&text)).policy;
    let plain = documents(Some(&before)).policy;
    assert_eq!(names(&written), names(&plain));
    assert_eq!(replayed(&text, &day, &Options::default()).surprises().count(), 0);
}

#[test]
fn a_draft_in_place_leaves_nothing_to_draft() {
    let (records, _) = day(2);
    let day = gathered(&records);
    let (_, text) = drafted(&day, &Options::default());
    let (sourced, config, facts) = (documents(Some(&text)), settings(), facts());
    let ground = Ground::new(&sourced.policy, &config.settings, &facts);
    assert_eq!(rules(&draft(&day, &ground, &Options::default())), 0);
}

/// A window cut in two: what it counts is in one half, what it carried in the other, as when a connection ends later.
fn split(record: &Record, dice: &mut Dice) -> Vec<Record> {
    if !dice.roll().is_multiple_of(4) || record.first == record.last {
        return vec![record.clone()];
    }
    let middle = record.first + (record.last - record.first) / 2;
    let begun = Record { packets: None, bytes: None, last: middle, ..record.clone() };
    let ended = Record { connections: 0, first: middle, actors: BTreeSet::new(), ..record.clone() };
    vec![begun, ended]
}

/// Without the lines that count everything.
fn body(text: &str) -> Vec<&str> {
    let whole = |line: &&str| !line.starts_with("# Seen from");
    text.split("\n# NOT INCLUDED").next().unwrap().lines().filter(whole).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn order_windows_and_noise_make_no_other_draft(seed in any::<u64>(), noise in 0_u32..60) {
        let (records, _) = day(7);
        let (_, expected) = drafted(&gathered(&records), &Options::default());
        let mut dice = Dice::new(seed);
        let mut other: Vec<Record> = records.iter().flat_map(|record| split(record, &mut dice)).collect();
        // Strangers, each with one port that nothing listens on, or one look at one that something does.
        for number in 0..noise {
            let peer = format!("203.0.{}.{}", number % 7, 1 + number);
            let mut day = Day { dice: Dice::new(dice.roll()), records: Vec::new() };
            let (port, process, packets) = match dice.roll() % 3 {
                0 => (22, "sshd", 9),
                1 => (9100, "node_exporter", 9),
                _ => (1 + (dice.roll() % 30_000) as u16, "", 2),
            };
            let at = dice.roll() % (20 * HOUR) + 2 * HOUR;
            day.talk(at, &to("eth0", &peer, port, process), 1, packets);
            other.extend(day.records);
        }
        for index in (1..other.len()).rev() {
            other.swap(index, (dice.roll() % (index as u64 + 1)) as usize);
        }
        let (_, text) = drafted(&gathered(&other), &Options::default());
        prop_assert_eq!(body(&text), body(&expected));
    }
}
