//! What a packet meets does not grow with the number of rules: a thousand rules of a kind are as long a way as a hundred, whatever the rules
//! ask for. The kernel takes them, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "lab/mod.rs"]
mod lab;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use lab::net::{Host, wire};
use nodewall::compile::compile;
use nodewall::compile::stats::{Place, stats};
use nodewall::config::Config;
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::{Cgroup, Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::nft::ir::Ruleset;
use nodewall::nft::longest::Met;
use nodewall::policy::effective::Effective;
use nodewall::policy::model::Stage;
use nodewall::policy::resolve::resolve;
use nodewall::source;
use nodewall::text::finding::Severity;

/// A node with a thousand services.
fn node() -> Facts {
    let mut link = Link::named(2, InterfaceName::new("mgmt0").unwrap());
    link.default_route = true;
    let unit = |number: u64| {
        let level = 2 + (number / 500) as u8;
        (format!("u{number}.service"), [Cgroup { level, id: 5_000 + number }].into())
    };
    Facts { node: "n".to_owned(), links: [(2, link)].into(), units: (0..1000).map(unit).collect(), ..Facts::default() }
}

/// Kinds of rules: a direction, and the rule of a number.
type Kind = (&'static str, Direction, fn(u32) -> String);

const LIMIT: &str = "limit = { rate = \"5/minute\", burst = 10, per = \"source\" }";

fn v4(number: u32) -> String {
    format!("10.{}.{}.7", number / 250, number % 250)
}

fn v6(number: u32) -> String {
    format!("fd00::{number:x}")
}

const KINDS: [Kind; 15] = [
    ("source ports", Direction::Ingress, |n| {
        format!("{{ action = \"allow\", protocol = \"udp\", from = {{ ports = [{}] }} }}", n + 1)
    }),
    ("source ports of a port", Direction::Ingress, |n| {
        format!(
            "{{ action = \"deny\", protocol = \"tcp\", ports = [443], from = {{ ports = [\"{}-{}\"] }} }}",
            n * 3,
            n * 3 + 5
        )
    }),
    ("source ports of several protocols", Direction::Ingress, |n| {
        let protocol = ["tcp", "udp", "sctp"][n as usize % 3];
        format!("{{ action = \"reject\", protocol = \"{protocol}\", from = {{ ports = [{n}] }} }}")
    }),
    ("pairs of addresses", Direction::Ingress, |n| {
        let (from, to) = ((v4(n), v6(n)), (v4(n * 7 % 1000), v6(n * 7 % 1000)));
        format!(
            "{{ action = \"allow\", from = {{ cidrs = [\"{}\", \"{}\"] }}, to = {{ cidrs = [\"{}\", \"{}\"] }} }}",
            from.0, from.1, to.0, to.1
        )
    }),
    ("pairs of sets", Direction::Ingress, |n| {
        format!(
            "{{ action = \"allow\", from = {{ sets = [\"s{n}\"] }}, to = {{ sets = [\"s{}\"] }}, log = true }}",
            (n + 9) % 1000
        )
    }),
    ("one source, many destinations", Direction::Egress, |n| {
        format!(
            "{{ action = \"deny\", from = {{ cidrs = [\"10.0.0.0/8\"] }}, to = {{ cidrs = [\"{}\"] }}, protocol = \"tcp\" }}",
            v4(n)
        )
    }),
    ("users", Direction::Egress, |n| format!("{{ action = \"allow\", users = [{n}] }}")),
    ("groups and ports", Direction::Egress, |n| {
        format!("{{ action = \"deny\", groups = [{}], protocol = \"tcp\", ports = [{}] }}", n % 500, 1000 + n)
    }),
    ("units", Direction::Egress, |n| format!("{{ action = \"allow\", units = [\"u{n}.service\"] }}")),
    ("units of a destination", Direction::Egress, |n| {
        format!(
            "{{ action = \"allow\", units = [\"u{n}.service\"], to = {{ cidrs = [\"192.0.2.0/24\"] }}, log = true }}"
        )
    }),
    ("limits of ports", Direction::Ingress, |n| {
        format!("{{ action = \"allow\", protocol = \"tcp\", ports = [{}], limit = {{ rate = 5 }} }}", n + 1)
    }),
    ("limits of ports and what is over them", Direction::Ingress, |n| {
        let limit = if n % 2 == 0 { format!(", {LIMIT}") } else { String::new() };
        format!(
            "{{ action = \"{}\", protocol = \"udp\", ports = [{}]{limit} }}",
            ["allow", "deny"][n as usize % 2],
            n / 2 + 1
        )
    }),
    ("limits of sources", Direction::Ingress, |n| {
        format!("{{ action = \"deny\", from = {{ cidrs = [\"{}\", \"{}\"] }}, {LIMIT} }}", v4(n), v6(n))
    }),
    ("logs of ports", Direction::Ingress, |n| {
        format!("{{ action = \"log\", protocol = \"tcp\", ports = [{}] }}", n + 1)
    }),
    ("limits with peers and ports between", Direction::Ingress, |n| match n % 7 {
        0 => format!("{{ action = \"allow\", protocol = \"tcp\", ports = [{}], limit = {{ rate = 5 }} }}", n + 1),
        _ => format!(
            "{{ action = \"allow\", protocol = \"tcp\", ports = [{}], from = {{ cidrs = [\"{}\"] }} }}",
            n + 1,
            v4(n)
        ),
    }),
];

fn effective(direction: Direction, rules: &[String]) -> Effective {
    let sets: String = (0..1000)
        .map(|n| format!("[[set]]\nname = \"s{n}\"\ncidrs = [\"{}/31\", \"{}\"]\n", v4(n).replace(".7", ".6"), v6(n)))
        .collect();
    let direction = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let text = format!(
        "{sets}[[policy]]\nname = \"p\"\ninterfaces = \"all()\"\n{direction} = [\n{},\n{{ action = \"deny\" }},\n]\n",
        rules.join(",\n")
    );
    let sourced = source::decode_text("policy.toml", &text);
    let (effective, resolved) = resolve(&sourced.policy, &Config::shipped().settings, &node());
    let errors: Vec<_> =
        sourced.findings.iter().chain(&resolved).filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    effective
}

fn met(effective: &Effective, direction: Direction) -> (Ruleset, Met) {
    let ruleset = compile(effective);
    let rows = stats(effective, &ruleset);
    let of =
        rows.iter().filter(|row| row.there && row.direction == direction && row.place == Place::Stage(Stage::Host));
    let met = of.map(|row| row.met).fold(Met::default(), Met::or);
    (ruleset, met)
}

/// What else a packet meets: guards, essentials, failsafe and the end. Then at most a map for each protocol, and what they lead to.
const MOST_RULES: usize = 60;

#[test]
fn a_thousand_rules_of_a_kind_are_no_longer_a_way_than_a_hundred() {
    for (name, direction, rule) in KINDS {
        let of = |count: u32| met(&effective(direction, &(0..count).map(rule).collect::<Vec<_>>()), direction).1;
        let (hundred, thousand) = (of(100), of(1000));
        println!("{name}: {hundred:?}, {thousand:?}");
        // Long lists are cut into shards, which takes a rule and a chain more for each key.
        assert!(
            thousand.rules <= hundred.rules + 4 && thousand.rules <= MOST_RULES,
            "{name}: {hundred:?} {thousand:?}"
        );
        assert!(thousand.lookups <= hundred.lookups + 4 && thousand.depth <= 8, "{name}: {hundred:?} {thousand:?}");
    }
}

/// Several kinds one after the other take so much each.
#[test]
fn kinds_one_after_the_other_are_as_long_as_each_of_them() {
    for side in [Direction::Ingress, Direction::Egress] {
        let kinds: Vec<&Kind> = KINDS.iter().filter(|(_, direction, _)| *direction == side).collect();
        let of = |count: u32| {
            let rules: Vec<String> = kinds.iter().flat_map(|(_, _, rule)| (0..count).map(rule)).collect();
            met(&effective(side, &rules), side).1
        };
        let (fifty, all) = (of(50), of(500));
        println!("{side:?}: {fifty:?}, {all:?}");
        assert!(all.rules <= fifty.rules + 4 * kinds.len() && all.depth <= 8, "{fifty:?} {all:?}");
    }
}

#[test]
fn the_kernel_takes_many_rules_of_each_kind() {
    lab::isolated("the_kernel_takes_many_rules_of_each_kind", || {
        let mut kernel = Netlink::open().unwrap();
        let mut known = None;
        for (name, direction, rule) in KINDS {
            let (ruleset, _) = met(&effective(direction, &(0..150).map(rule).collect::<Vec<_>>()), direction);
            // Reads it back and compares.
            let applied =
                driver::apply(&mut kernel, &ruleset, known.as_ref()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(driver::apply(&mut kernel, &ruleset, None).unwrap().changes, 0, "{name}");
            known = Some(applied.loaded);
        }
    });
}

/// The kernel bounds how many chains lead to each other. Where telling rules apart would take more, it is left alone, and the ruleset loads.
#[test]
fn many_tiers_are_no_deeper_than_the_kernel_takes() {
    lab::isolated("many_tiers_are_no_deeper_than_the_kernel_takes", || {
        let mut kernel = Netlink::open().unwrap();
        for (action, tiers) in
            [("pass", 1), ("pass", 3), ("pass", 4), ("pass", 5), ("allow", 5), ("allow", 7), ("allow", 9)]
        {
            // Each tier passes on from as deep in its maps as there is, to the next one.
            let tier = |tier: u32| {
                let pairs = (0..12).map(|n| {
                    format!(
                        "{{ action = \"{action}\", from = {{ cidrs = [\"10.0.{tier}.{n}\"], ports = [{}] }}, to = {{ cidrs = [\"10.1.0.{n}\"] }}, \
                         protocol = \"tcp\", limit = {{ rate = 5 }} }},\n",
                        n * 3
                    )
                });
                format!(
                    "[[tier]]\nname = \"t{tier}\"\norder = {tier}\ndefault = \"pass\"\n\n[[policy]]\nname = \"p{tier}\"\n\
                     tier = \"t{tier}\"\ninterfaces = \"all()\"\ningress = [\n{}]\n",
                    pairs.collect::<String>()
                )
            };
            let text: String = (1..=tiers).map(tier).collect();
            let sourced = source::decode_text("policy.toml", &text);
            let (effective, resolved) = resolve(&sourced.policy, &Config::shipped().settings, &node());
            let mut findings = sourced.findings.iter().chain(&resolved);
            assert!(findings.all(|finding| finding.severity != Severity::Error), "{text}");
            let (ruleset, met) = met(&effective, Direction::Ingress);
            println!("{tiers} tiers of {action}: {met:?}");
            assert!(
                met.rules < 60 || (action, tiers) >= ("pass", 4) || tiers > 7,
                "{tiers} tiers of {action}: {met:?}"
            );
            driver::apply(&mut kernel, &ruleset, None)
                .unwrap_or_else(|error| panic!("{tiers} tiers of {action}: {error}"));
        }
    });
}

/// The kernel finds a process's user and group, a source port and a pair of addresses in a map of ranges as it does in a rule.
#[test]
fn packets_find_their_rules_in_maps_of_ranges() {
    if !lab::may_run("packets_find_their_rules_in_maps_of_ranges") {
        return;
    }
    let (node, peer) = (Host::new(), Host::new());
    wire((&node, "rail0", &["10.0.0.5/24", "fd00::5/64"]), (&peer, "eth0", &["10.0.0.1/24", "fd00::1/64"]));
    let ears =
        [(&node, "[::]:7000"), (&peer, "[::]:7000")].map(|(host, end)| host.enter(|| UdpSocket::bind(end).unwrap()));
    let heard = |ear: &UdpSocket, patience: u64| {
        ear.set_read_timeout(Some(Duration::from_millis(patience))).unwrap();
        ear.recv_from(&mut [0; 16]).is_ok()
    };
    let load = |direction: &str, rules: &[String]| {
        let text = format!(
            "[[policy]]\nname = \"p\"\ninterfaces = \"all()\"\n{direction} = [\n{},\n{{ action = \"deny\" }},\n]\n",
            rules.join(",\n")
        );
        let ruleset = node.compiled(&text, &Config::shipped().settings);
        assert!(ruleset.sets.iter().any(|(name, set)| set.map && !name.contains("_interfaces/")), "{text}");
        node.put_in_force(&ruleset);
    };
    let from_node = |uid: u32, gid: u32| {
        let shell = "echo one >/dev/udp/10.0.0.1/7000";
        node.enter(|| Command::new("bash").args(["-c", shell]).uid(uid).gid(gid).output().unwrap());
    };
    from_node(0, 0);
    assert!(heard(&ears[1], 5_000), "without rules");
    // In a byte order that is not the kernel's, these would be found elsewhere or not at all.
    let ranges = |word: &str| -> Vec<String> {
        let pair = |n: u32| format!("{{ action = \"allow\", {word} = [{}, {}] }}", 1_000 + 256 * n, 1_001 + 256 * n);
        (0..10).map(pair).collect()
    };
    for word in ["users", "groups"] {
        load("egress", &ranges(word));
        for (id, allowed) in
            [(999, false), (1_000, true), (1_001, true), (1_002, false), (3_304, true), (3_306, false), (0, false)]
        {
            let (uid, gid) = if word == "users" { (id, 1_001) } else { (1_001, id) };
            from_node(uid, gid);
            assert_eq!(heard(&ears[1], if allowed { 5_000 } else { 150 }), allowed, "{word} {id}");
        }
    }
    let from_peer = |source: &str, port: u16, to: &str| {
        let end = |text: &str, port| SocketAddr::new(text.parse::<IpAddr>().unwrap(), port);
        let socket = peer.enter(|| UdpSocket::bind(end(source, port)).unwrap());
        socket.send_to(b"one", end(to, 7000)).unwrap();
    };
    let ports: Vec<String> = (0..10)
        .map(|n| {
            format!(
                "{{ action = \"allow\", protocol = \"udp\", from = {{ ports = [\"{}-{}\"] }} }}",
                5_000 + n * 300,
                5_010 + n * 300
            )
        })
        .collect();
    load("ingress", &ports);
    for (port, allowed) in [(4_999, false), (5_000, true), (5_010, true), (5_011, false), (7_705, true), (7_711, false)]
    {
        for (source, to) in [("10.0.0.1", "10.0.0.5"), ("fd00::1", "fd00::5")] {
            from_peer(source, port, to);
            assert_eq!(heard(&ears[0], if allowed { 5_000 } else { 150 }), allowed, "source port {port}");
        }
    }
    let pairs: Vec<String> = (0..10)
        .map(|n| {
            let to = if n == 0 { "\"10.0.0.4/31\", \"fd00::4/126\"" } else { "\"10.0.0.6\", \"fd00::9\"" };
            format!("{{ action = \"allow\", from = {{ cidrs = [\"10.0.0.{n}/32\", \"fd00::{n}\"] }}, to = {{ cidrs = [{to}] }} }}")
        })
        .collect();
    for (first, allowed) in [("10.0.0.0/31\", \"fd00::/127", true), ("10.0.0.2/31\", \"fd00::2/127", false)] {
        let mut pairs = pairs.clone();
        pairs[0] = pairs[0].replace("10.0.0.0/32\", \"fd00::0", first);
        load("ingress", &pairs);
        for (source, to) in [("10.0.0.1", "10.0.0.5"), ("fd00::1", "fd00::5")] {
            from_peer(source, 6_000, to);
            assert_eq!(heard(&ears[0], if allowed { 5_000 } else { 150 }), allowed, "{source} to {to} with {first}");
        }
    }
}
