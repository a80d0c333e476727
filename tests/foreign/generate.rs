//! Rules of iptables and nft, and packets, by chance: from few addresses and ports, so that they meet.

use std::fmt::Write as _;

use crate::lab::dice::Dice;

pub(crate) const LINKS: [&str; 4] = ["eth0", "eth1", "ib0", "cali1"];
const PORTS: [u16; 8] = [22, 53, 80, 443, 1000, 5000, 8080, 30_000];

pub(crate) fn one<T: Copy>(dice: &mut Dice, list: &[T]) -> T {
    list[dice.below(list.len() as u64) as usize]
}

fn chance(dice: &mut Dice, percent: u64) -> bool {
    dice.below(100) < percent
}

/// Addresses that packets come from and go to.
pub(crate) fn address(dice: &mut Dice, v6: bool) -> String {
    let (net, host) = (dice.below(3), dice.below(12));
    if v6 { format!("fd01:{net}::{host:x}") } else { format!("10.{}.0.{host}", net + 1) }
}

fn prefix(dice: &mut Dice, v6: bool) -> String {
    let (net, host) = (dice.below(3), dice.below(12));
    match (dice.below(5), v6) {
        (0, false) => "10.0.0.2".to_owned(),
        (0, true) => "fd00::2".to_owned(),
        (1, false) => format!("10.{}.0.{}", net + 1, host),
        (1, true) => format!("fd01:{net}::{host:x}"),
        (2, false) => format!("10.{}.0.{}/30", net + 1, host / 4 * 4),
        (2, true) => format!("fd01:{net}::{:x}/126", host / 4 * 4),
        (3, false) => format!("10.{}.0.0/16", net + 1),
        (3, true) => format!("fd01:{net}::/32"),
        (_, false) => "10.0.0.0/8".to_owned(),
        (_, true) => "fc00::/7".to_owned(),
    }
}

fn link(dice: &mut Dice, wildcard: char) -> String {
    match dice.below(6) {
        0 => format!("eth{wildcard}"),
        1 => format!("c{wildcard}"),
        _ => one(dice, &LINKS).to_owned(),
    }
}

fn ports(dice: &mut Dice) -> String {
    let first = one(dice, &PORTS);
    if chance(dice, 25) { format!("{first}:{}", first + 600) } else { first.to_string() }
}

/// `iptables-restore`'s or `ip6tables-restore`'s input: three base chains and three of their own. With `odd`, also matches that nodewall
/// has no word for.
pub(crate) fn iptables(dice: &mut Dice, v6: bool, odd: bool) -> String {
    let (mut heads, mut rules) = (String::new(), String::new());
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        let policy = one(dice, &["DROP", "ACCEPT"]);
        let _ = writeln!(heads, ":{chain} {policy} [0:0]");
    }
    heads += ":A - [0:0]\n:B - [0:0]\n:C - [0:0]\n";
    for (chain, next) in [("INPUT", 0), ("FORWARD", 0), ("OUTPUT", 0), ("A", 1), ("B", 2), ("C", 3)] {
        for _ in 0..2 + dice.below(4) {
            let mut rule = format!("-A {chain}");
            let not = |dice: &mut Dice| if chance(dice, 20) { " !" } else { "" };
            if chance(dice, 30) {
                let _ = write!(rule, "{} -s {}", not(dice), prefix(dice, v6));
            }
            if chance(dice, 20) {
                let _ = write!(rule, "{} -d {}", not(dice), prefix(dice, v6));
            }
            if chance(dice, 20) && chain != "OUTPUT" && chain != "C" {
                let _ = write!(rule, "{} -i {}", not(dice), link(dice, '+'));
            }
            if chance(dice, 12) && matches!(chain, "FORWARD" | "OUTPUT") {
                let _ = write!(rule, "{} -o {}", not(dice), link(dice, '+'));
            }
            match dice.below(7) {
                0 | 1 => {
                    let protocol = one(dice, &["tcp", "udp"]);
                    let which = one(dice, &["--dport", "--dport", "--sport"]);
                    let _ = write!(rule, " -p {protocol} -m {protocol}{} {which} {}", not(dice), ports(dice));
                }
                2 => {
                    let protocol = one(dice, &["tcp", "udp"]);
                    let _ = write!(
                        rule,
                        " -p {protocol} -m multiport{} --dports {},{}",
                        not(dice),
                        ports(dice),
                        one(dice, &PORTS)
                    );
                }
                3 if v6 => {
                    let _ = write!(
                        rule,
                        " -p ipv6-icmp -m icmp6 --icmpv6-type {}",
                        one(dice, &["128", "137", "1/4", "135"])
                    );
                }
                3 => {
                    let _ =
                        write!(rule, " -p icmp -m icmp{} --icmp-type {}", not(dice), one(dice, &["8", "13", "3/3"]));
                }
                4 => {
                    let _ = write!(
                        rule,
                        "{} -p {}",
                        not(dice),
                        one(dice, &["tcp", "udp", "47", if v6 { "ipv6-icmp" } else { "icmp" }])
                    );
                }
                _ => {}
            }
            match dice.below(12) {
                0 | 1 => {
                    let _ = write!(
                        rule,
                        " -m conntrack{} --ctstate {}",
                        not(dice),
                        one(dice, &["NEW", "RELATED,ESTABLISHED", "INVALID", "NEW,UNTRACKED", "UNTRACKED"])
                    );
                }
                2 => {
                    let _ = write!(
                        rule,
                        " -m addrtype{} --dst-type {}",
                        not(dice),
                        one(dice, &["LOCAL", "MULTICAST", "LOCAL,MULTICAST"])
                    );
                }
                3 if odd => {
                    let _ = write!(rule, " -m length{} --length {}", not(dice), one(dice, &["0:45", "46:70"]));
                }
                4 if chain == "OUTPUT" => {
                    let _ = write!(rule, " -m owner --uid-owner {}", one(dice, &["0", "999"]));
                }
                _ => {}
            }
            let lower: &[&str] = ["A", "B", "C"].get(next..).unwrap_or(&[]);
            let target = match dice.below(10) {
                0..=2 => "-j ACCEPT".to_owned(),
                3 | 4 => "-j DROP".to_owned(),
                5 => "-j REJECT".to_owned(),
                6 => "-j RETURN".to_owned(),
                _ if lower.is_empty() => "-j ACCEPT".to_owned(),
                7 => format!("-g {}", one(dice, lower)),
                _ => format!("-j {}", one(dice, lower)),
            };
            let _ = writeln!(rules, "{rule} {target}");
        }
    }
    let tool = if v6 { "ip6tables-save" } else { "iptables-save" };
    format!("# Generated by {tool} v1.8.9\n*filter\n{heads}{rules}COMMIT\n")
}

/// A file of nft: a table of both versions with sets, maps and chains, base chains of several hooks and priorities, and at times a table
/// of one version beside it.
pub(crate) fn nft(dice: &mut Dice, odd: bool) -> String {
    let mut text = String::from("table inet t {\n");
    for (name, v6) in [("s4", false), ("s6", true)] {
        let kind = if v6 { "ipv6_addr" } else { "ipv4_addr" };
        let (first, second) = (prefix(dice, v6), prefix(dice, v6));
        let _ = writeln!(
            text,
            "set {name} {{ type {kind}; flags interval; auto-merge; elements = {{ {first}, {second} }} }}"
        );
    }
    let _ = writeln!(
        text,
        "set ports {{ type inet_service; flags interval; auto-merge; elements = {{ {}, 79-90 }} }}",
        one(dice, &PORTS)
    );
    let _ = writeln!(
        text,
        "set pairs {{ type ipv4_addr . inet_service; elements = {{ {} . {}, {} . {} }} }}",
        address(dice, false),
        one(dice, &PORTS[..4]),
        address(dice, false),
        one(dice, &PORTS[4..])
    );
    for (chain, next) in [("c", 3), ("b", 2), ("a", 1)] {
        let _ = writeln!(text, "chain {chain} {{");
        rules(dice, &mut text, next, chain, odd);
        text += "}\n";
    }
    for (chain, hook, priority) in [
        ("input", "input", "0"),
        ("late", "input", "10"),
        ("forward", "forward", "0"),
        ("output", "output", "0"),
        ("early", "prerouting", "-300"),
    ] {
        if !matches!(chain, "input" | "forward" | "output") && chance(dice, 60) {
            continue;
        }
        let policy = if chain == "early" { "accept" } else { one(dice, &["drop", "accept"]) };
        let _ = writeln!(text, "chain {chain} {{ type filter hook {hook} priority {priority}; policy {policy};");
        rules(dice, &mut text, 0, chain, odd);
        text += "}\n";
    }
    text += "}\n";
    if chance(dice, 30) {
        let (family, v6) = if chance(dice, 50) { ("ip", false) } else { ("ip6", true) };
        let word = family;
        let _ = writeln!(
            text,
            "table {family} other {{ chain input {{ type filter hook input priority 5; policy {};\n{word} saddr {} {}\n}}\n}}",
            one(dice, &["drop", "accept"]),
            prefix(dice, v6),
            one(dice, &["drop", "accept"])
        );
    }
    text
}

fn rules(dice: &mut Dice, text: &mut String, next: usize, chain: &str, odd: bool) {
    let lower: &[&str] = ["a", "b", "c"].get(next..).unwrap_or(&[]);
    for _ in 0..2 + dice.below(4) {
        let mut rule = String::new();
        let not = |dice: &mut Dice| if chance(dice, 20) { "!= " } else { "" };
        if chance(dice, 20) && !matches!(chain, "output") {
            let _ = write!(rule, "iifname {}\"{}\" ", not(dice), link(dice, '*'));
        } else if chance(dice, 10) && matches!(chain, "output" | "forward") {
            let _ = write!(rule, "oifname {}{{ \"{}\", \"{}\" }} ", not(dice), LINKS[0], one(dice, &LINKS[1..]));
        }
        let v6 = chance(dice, 50);
        let (word, set) = if v6 { ("ip6", "@s6") } else { ("ip", "@s4") };
        match dice.below(8) {
            0 => {
                let _ = write!(rule, "{word} saddr {}{} ", not(dice), prefix(dice, v6));
            }
            1 => {
                let _ = write!(rule, "{word} daddr {}{} ", not(dice), prefix(dice, v6));
            }
            2 => {
                let _ = write!(rule, "{word} saddr {}{set} ", not(dice));
            }
            3 => {
                let _ = write!(rule, "meta nfproto {} ", if v6 { "ipv6" } else { "ipv4" });
            }
            4 => {
                let _ = write!(
                    rule,
                    "fib daddr type {}{} ",
                    not(dice),
                    one(dice, &["local", "multicast", "{ local, multicast }"])
                );
            }
            _ => {}
        }
        let mut ended = false;
        match dice.below(10) {
            0 => {
                let _ = write!(rule, "{} dport {}{} ", one(dice, &["tcp", "udp"]), not(dice), one(dice, &PORTS));
            }
            1 => {
                let _ = write!(
                    rule,
                    "{} {} {}@ports ",
                    one(dice, &["tcp", "udp"]),
                    one(dice, &["sport", "dport"]),
                    not(dice)
                );
            }
            2 => {
                let _ =
                    write!(rule, "meta l4proto {{ tcp, udp }} th dport {{ {}, 500-1200 }} ", one(dice, &PORTS[..4]));
            }
            3 if !v6 => rule += "ip saddr . tcp dport @pairs ",
            4 => {
                let _ = write!(
                    rule,
                    "udp dport vmap {{ {} : accept, 500-1200 : drop, 5000 : {} }}",
                    one(dice, &PORTS[..4]),
                    one(dice, &["return", "accept", "drop"])
                );
                ended = true;
            }
            5 => {
                let _ = write!(rule, "icmp type {{ echo-request, timestamp-request }} ");
            }
            6 => {
                let _ = write!(
                    rule,
                    "icmpv6 type {} ",
                    one(dice, &["echo-request", "nd-redirect", "{ echo-request, nd-redirect }"])
                );
            }
            7 => {
                let _ = write!(rule, "meta l4proto {}{} ", not(dice), one(dice, &["tcp", "udp", "47", "ipv6-icmp"]));
            }
            _ => {}
        }
        if ended {
            let _ = writeln!(text, "{rule}");
            continue;
        }
        match dice.below(8) {
            0 => {
                let _ = write!(
                    rule,
                    "ct state {} ",
                    one(dice, &["new", "established,related", "invalid", "{ new, untracked }"])
                );
            }
            1 if odd => {
                let _ = write!(rule, "meta length {} ", one(dice, &["< 46", "46-70"]));
            }
            2 if chain == "output" => {
                let _ = write!(rule, "meta skuid {} ", one(dice, &["0", "999"]));
            }
            _ => {}
        }
        let is_early = chain == "early" || next > 0;
        let verdict = match dice.below(10) {
            0..=2 => "accept".to_owned(),
            3 | 4 => "drop".to_owned(),
            5 if is_early => "drop".to_owned(),
            5 => "reject".to_owned(),
            6 => "return".to_owned(),
            _ if lower.is_empty() => "accept".to_owned(),
            7 => format!("goto {}", one(dice, lower)),
            _ => format!("jump {}", one(dice, lower)),
        };
        let _ = writeln!(text, "{rule}{verdict}");
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Way {
    /// It arrives on this link and is for the node.
    In(usize),
    /// It goes through, from a link to another.
    Through(usize, usize),
    /// The node sends it by this link.
    Out(usize),
}

/// A packet.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Shape {
    pub way: Way,
    pub v6: bool,
    pub source: String,
    pub destination: String,
    pub protocol: u8,
    /// Source and destination port, or type and code.
    pub detail: (u16, u16),
}

pub(crate) fn shape(dice: &mut Dice) -> Shape {
    let v6 = chance(dice, 50);
    let (first, second) = (dice.below(4) as usize, dice.below(4) as usize);
    let way = match dice.below(6) {
        0..=2 => Way::In(first),
        3 | 4 => Way::Through(first, second),
        _ => Way::Out(first),
    };
    let own = if v6 { "fd00::2" } else { "10.0.0.2" };
    let group = if v6 { "ff02::1" } else { "224.0.0.1" };
    let other = address(dice, v6);
    let (source, destination) = match way {
        Way::In(_) => (other, if chance(dice, 15) { group } else { own }.to_owned()),
        Way::Through(..) => (other, address(dice, v6)),
        Way::Out(_) => (own.to_owned(), other),
    };
    let protocol = match dice.below(10) {
        0..=3 => 6,
        4..=6 => 17,
        7 => 47,
        _ if v6 => 58,
        _ => 1,
    };
    let detail = match protocol {
        6 | 17 => {
            let port = one(dice, &PORTS) + one(dice, &[0, 0, 0, 1, 300]);
            let sport = if chance(dice, 30) { one(dice, &PORTS) } else { 1024 + dice.below(60_000) as u16 };
            (sport, port)
        }
        58 if way != Way::Out(first) && !matches!(way, Way::Through(..)) && chance(dice, 40) => (137, 0),
        58 => (128, 0),
        1 => (one(dice, &[8, 13]), 0),
        _ => (0, 0),
    };
    Shape { way, v6, source, destination, protocol, detail }
}
