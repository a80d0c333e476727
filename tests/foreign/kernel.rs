//! The kernel is the judge: the original rules are loaded, packets are sent, and what the kernel lets through is held against what
//! the converted policy says. Never more, and the same where nothing was said of the rules.
//!
//! `NODEWALL_SEED=N` repeats a run, and `NODEWALL_CASES=N` makes it longer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nodewall::config::Config;
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::Protocol;
use nodewall::policy::effective::Effective;
use nodewall::policy::model::Mode;
use nodewall::policy::resolve::resolve;
use nodewall::policy::settings::NodeSettings;
use nodewall::simulate::{ConntrackState, Exit, Origin, Outcome, Packet, Reason, decide};
use nodewall::source;
use nodewall::source::foreign::{Firewall, convert};
use nodewall::source::object::convert::to_toml;
use nodewall::text::finding::Severity;
use nodewall::text::render::line;
use nodewall::text::tree::Source;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::generate::{self, LINKS, Shape, Way};
use crate::lab;
use crate::lab::conntrack;
use crate::lab::dice::Dice;
use crate::lab::sh;
use crate::node::{Node, OWN_V4, OWN_V6, way};

/// How many rulesets of each firewall a plain run tries, and packets on each.
const CASES: u64 = 70;
const PACKETS: u16 = 60;

/// What is said of every conversion, or of a whole text, and changes no verdict here.
const ALWAYS: [&str; 3] =
    ["before any of these policies", "nothing here is about what comes in", "TCP flags are taken"];

/// The last word of each hook: what got there was let through. Ours only, of what the node sends.
const WITNESS: &str = "table inet witness {
  set in4 { typeof ip id; size 65535; flags dynamic; }
  set in6 { typeof ip6 flowlabel; size 65535; flags dynamic; }
  set pre4 { typeof ip id; size 65535; flags dynamic; }
  set pre6 { typeof ip6 flowlabel; size 65535; flags dynamic; }
  chain pre { type filter hook prerouting priority -2000; ip id != 0 update @pre4 { ip id }; ip6 flowlabel != 0 update @pre6 { ip6 flowlabel }; }
  chain input { type filter hook input priority 2000; ip id != 0 update @in4 { ip id }; ip6 flowlabel != 0 update @in6 { ip6 flowlabel }; }
  chain forward { type filter hook forward priority 2000; ip id != 0 update @in4 { ip id }; ip6 flowlabel != 0 update @in6 { ip6 flowlabel }; }
  chain output { type filter hook output priority 2000; meta skuid 0 ip id != 0 update @in4 { ip id }; meta skuid 0 ip6 flowlabel != 0 update @in6 { ip6 flowlabel }; }
}";

fn fed(command: &[&str], input: &str) -> String {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// The packet with its number where the witnesses look for it.
fn bytes(shape: &Shape, number: u16) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (shape.source.parse().unwrap(), shape.destination.parse().unwrap());
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (from, to) = (octets(source), octets(destination));
    let mut payload = match shape.protocol {
        6 => {
            let mut tcp = [shape.detail.0.to_be_bytes(), shape.detail.1.to_be_bytes()].concat();
            tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            tcp
        }
        17 => {
            let mut udp = [shape.detail.0.to_be_bytes(), shape.detail.1.to_be_bytes()].concat();
            udp.extend([0, 12, 0, 0]);
            udp.extend(b"test");
            udp
        }
        1 | 58 if shape.detail.0 == 137 => {
            let mut redirect = vec![137, 0, 0, 0, 0, 0, 0, 0];
            redirect.extend([&to[..], &to[..]].concat());
            redirect
        }
        1 | 58 => {
            let mut echo = vec![shape.detail.0 as u8, shape.detail.1 as u8, 0, 0];
            echo.extend(number.to_be_bytes());
            echo.extend([0, 1]);
            if shape.detail.0 == 13 {
                echo.extend([0; 12]);
            }
            echo
        }
        // GRE without anything.
        _ => vec![0, 0, 8, 0],
    };
    let length = (payload.len() as u32).to_be_bytes();
    let pseudo = [&from[..], &to[..], &length, &[0, 0, 0, shape.protocol]].concat();
    let at = match shape.protocol {
        6 => Some(16),
        17 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    };
    if let Some(at) = at {
        let sum = if shape.protocol == 1 { checksum(&[&payload]) } else { checksum(&[&pseudo, &payload]) };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let class = match shape.way {
        Way::In(_) => way(None),
        Way::Through(_, exit) => way(Some(exit)),
        Way::Out(_) => 0,
    };
    let mut packet = Vec::new();
    if shape.v6 {
        packet.extend((6 << 28 | u32::from(class) << 20 | u32::from(number)).to_be_bytes());
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([shape.protocol, if shape.detail.0 == 137 { 255 } else { 64 }]);
    } else {
        packet.extend([0x45, class]);
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend(number.to_be_bytes());
        packet.extend([0, 0, 64, shape.protocol, 0, 0]);
    }
    packet.extend(from);
    packet.extend(to);
    if !shape.v6 {
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// Which packets are in the witnesses' sets of this name.
fn numbers(name: &str, shapes: &[Shape]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for (set, v6) in [(format!("{name}4"), false), (format!("{name}6"), true)] {
        let listed = sh(&format!("nft -j list set inet witness {set}"));
        let json: serde_json::Value = serde_json::from_str(&listed).unwrap();
        for object in json["nftables"].as_array().unwrap() {
            for element in object["set"]["elem"].as_array().into_iter().flatten() {
                let number = element.as_u64().or_else(|| element["elem"]["val"].as_u64()).unwrap() as usize;
                if number >= 1 && shapes.get(number - 1).is_some_and(|shape| shape.v6 == v6) {
                    found.insert(number - 1);
                }
            }
        }
    }
    found
}

/// Sends all, and says which the witnesses saw.
fn seen(node: &Node, shapes: &[Shape]) -> BTreeSet<usize> {
    fed(&["nft", "-f", "-"], WITNESS);
    let raw = |domain| Socket::new(domain, Type::RAW, Some(255.into())).expect("a raw socket");
    let (raw4, raw6) = (raw(Domain::IPV4), raw(Domain::IPV6));
    for (number, shape) in (1_u16..).zip(shapes) {
        let packet = bytes(shape, number);
        match shape.way {
            Way::In(link) | Way::Through(link, _) => {
                let kind: [u8; 2] = if shape.v6 { [0x86, 0xdd] } else { [8, 0] };
                let frame = [&node.links[link].mac[..], &[2, 0, 0, 0, 9, 9], &kind, &packet].concat();
                node.inject(link, &frame);
            }
            Way::Out(link) => {
                let socket = if shape.v6 { &raw6 } else { &raw4 };
                socket.bind_device(Some(LINKS[link].as_bytes())).expect("a device");
                let to: IpAddr = shape.destination.parse().unwrap();
                // What rules deny is an error here.
                let _ = socket.send_to(&packet, &SockAddr::from(SocketAddr::new(to, 0)));
            }
        }
    }
    // What came to the first hook goes on to the last one at once.
    let arriving = |index: &usize| !matches!(shapes[*index].way, Way::Out(_));
    let arrived = |seen: &BTreeSet<usize>| (0..shapes.len()).filter(arriving).all(|index| seen.contains(&index));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !arrived(&numbers("pre", shapes)) {
        assert!(Instant::now() < deadline, "not all packets arrive");
    }
    let found = numbers("in", shapes);
    sh("nft flush ruleset");
    conntrack::flush();
    found
}

fn effective(toml: &str) -> Effective {
    let loaded = source::decode_text("converted.toml", toml);
    assert_eq!(loaded.findings, [], "{toml}");
    let link = |index: u32, name: &str, addresses: &[String]| Link {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        kind: (name != "lo").then(|| "veth".to_owned()),
        ..Link::named(index, InterfaceName::new(name).unwrap())
    };
    let own = ["127.0.0.1/8".to_owned(), "::1/128".to_owned(), format!("{OWN_V4}/32"), format!("{OWN_V6}/128")];
    let lo = Link { hardware: 772, ..link(1, "lo", &own) };
    let others = (2..).zip(LINKS).map(|(index, name)| link(index, name, &[]));
    let links = std::iter::once(lo).chain(others).map(|link| (link.index, link)).collect();
    let facts = Facts { node: "n1".to_owned(), links, ..Facts::default() };
    let settings = NodeSettings { mode: Mode::Enforce, failsafe: Vec::new(), ..Config::shipped().settings };
    resolve(&loaded.policy, &settings, &facts).0
}

fn packet(shape: &Shape) -> Packet {
    let name = |link: usize| InterfaceName::new(LINKS[link]).unwrap();
    let (direction, interface, forward) = match shape.way {
        Way::In(link) => (Direction::Ingress, name(link), None),
        Way::Through(link, exit) => (Direction::Ingress, name(link), Some(Exit { interface: name(exit), kind: None })),
        Way::Out(link) => (Direction::Egress, name(link), None),
    };
    let is_icmp = matches!(shape.protocol, 1 | 58);
    Packet {
        direction,
        interface,
        kind: None,
        source: shape.source.parse().unwrap(),
        destination: shape.destination.parse().unwrap(),
        protocol: Some(Protocol(shape.protocol)),
        ports: matches!(shape.protocol, 6 | 17).then_some(shape.detail),
        icmp: is_icmp.then_some((shape.detail.0 as u8, shape.detail.1 as u8)),
        hop_limit: if shape.detail.0 == 137 { 255 } else { 64 },
        state: if shape.protocol == 58 && shape.detail.0 == 137 {
            ConntrackState::Invalid
        } else {
            ConntrackState::New
        },
        forward,
        translated: None,
        origin: if direction == Direction::Egress {
            Origin::Process(nodewall::simulate::Socket::default())
        } else {
            Origin::Kernel
        },
    }
}

/// Packets of which no two are of one flow, and which get through without rules.
fn packets(node: &Node, dice: &mut Dice) -> Vec<Shape> {
    let (mut flows, mut shapes) = (BTreeSet::new(), Vec::new());
    for _ in 0..PACKETS {
        let shape = generate::shape(dice);
        let ends = [(shape.source.clone(), shape.detail.0), (shape.destination.clone(), shape.detail.1)];
        let mut ends: Vec<_> =
            if matches!(shape.protocol, 6 | 17) { ends.into() } else { ends.map(|(end, _)| (end, 0)).into() };
        ends.sort();
        if flows.insert((ends, shape.protocol)) {
            shapes.push(shape);
        }
    }
    let arrive = seen(node, &shapes);
    shapes.into_iter().enumerate().filter(|(index, _)| arrive.contains(index)).map(|(_, shape)| shape).collect()
}

/// What a run came to.
type Counts = BTreeMap<&'static str, u64>;

/// Holds one ruleset against its conversion: what is loaded, and what was read of it.
fn compare(
    node: &Node,
    dice: &mut Dice,
    counts: &mut Counts,
    firewall: Firewall,
    load: &dyn Fn() -> Vec<Source>,
) -> Result<(), String> {
    let shapes = packets(node, dice);
    let sources = load();
    let allowed = seen(node, &shapes);
    let (documents, findings) = convert(firewall, &sources);
    let mut count = |what: &'static str, times: u64| *counts.entry(what).or_insert(0) += times;
    let said: Vec<String> = findings.iter().map(line).collect();
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        count("refused", 1);
        return Ok(());
    }
    let reported = said.iter().filter(|line| !ALWAYS.iter().any(|always| line.contains(always))).count();
    count(if reported == 0 { "rulesets converted in full" } else { "rulesets with something reported" }, 1);
    let toml = to_toml(&documents);
    let effective = effective(&toml);
    for (index, shape) in shapes.iter().enumerate() {
        let decision = decide(&effective, &packet(shape));
        if matches!(decision.reason, Reason::Essential(_)) {
            count("packets of essentials", 1);
            continue;
        }
        count("packets", 1);
        let (ours, theirs) = (decision.outcome == Outcome::Accepted, allowed.contains(&index));
        count(if theirs { "packets that the original lets through" } else { "packets that the original denies" }, 1);
        let wrong = if ours && !theirs {
            "is let through, which the original denies"
        } else if !ours && theirs && reported == 0 {
            "is denied, which the original lets through, and nothing was reported"
        } else {
            if ours != theirs {
                count("packets denied in addition, as reported", 1);
            }
            continue;
        };
        let texts: String = sources.iter().map(|source| source.text.to_string()).collect();
        return Err(format!("{shape:?} {wrong}\n{decision:?}\n{toml}\n{}\n{texts}", said.join("\n")));
    }
    Ok(())
}

fn run(name: &'static str, firewall: Firewall, seed: u64, load: fn(&mut Dice, bool) -> Vec<Source>) {
    if !lab::may_run(name) {
        return;
    }
    let work = move || {
        let node = Node::new();
        node.host.step_into();
        let mut dice = Dice::from_environment(seed);
        let cases = std::env::var("NODEWALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
        let mut counts = Counts::new();
        for case in 0..cases {
            let odd = case % 4 == 3;
            // Rules and packets by dice of their own.
            let mut chosen = dice.clone();
            for _ in 0..=case % 7 + 1000 {
                chosen.below(2);
            }
            dice.below(2);
            let result = compare(&node, &mut dice, &mut counts, firewall, &|| load(&mut chosen.clone(), odd));
            if let Err(words) = result {
                panic!("case {case} of NODEWALL_SEED (plain: {seed}): {words}");
            }
        }
        println!("{name}: seed {seed} unless NODEWALL_SEED is set: {counts:#?}");
        assert!(counts.get("rulesets converted in full").is_some_and(|full| *full * 4 > cases), "{counts:?}");
        for what in ["packets that the original lets through", "packets that the original denies"] {
            assert!(counts.get(what).is_some_and(|some| *some > cases * 4), "{what}: {counts:?}");
        }
    };
    std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn what_iptables_denies_is_denied_and_what_it_lets_through_is_let_through() {
    run(
        "what_iptables_denies_is_denied_and_what_it_lets_through_is_let_through",
        Firewall::Iptables,
        20_261_126,
        |dice, odd| {
            let (v4, v6) = (generate::iptables(dice, false, odd), generate::iptables(dice, true, odd));
            fed(&["iptables-restore"], &v4);
            fed(&["ip6tables-restore"], &v6);
            vec![Source::new("rules.v4", v4), Source::new("rules.v6", v6)]
        },
    );
}

#[test]
fn what_nft_denies_is_denied_and_what_it_lets_through_is_let_through() {
    run("what_nft_denies_is_denied_and_what_it_lets_through_is_let_through", Firewall::Nft, 20_261_127, |dice, odd| {
        let text = generate::nft(dice, odd);
        fed(&["nft", "-f", "-"], &text);
        vec![Source::new("ruleset.json", sh("nft -j list ruleset"))]
    });
}
