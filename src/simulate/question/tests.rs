//! What people say about a packet, and what is made of it.

#![allow(clippy::unwrap_used)]

use super::super::tests::{name, node, policy, rule, tier};
use super::*;
use crate::net::addr::AddrSet;
use crate::net::facts::Link;
use crate::policy::effective::EffectiveRule;
use crate::policy::model::{Action, TierDefault};

fn facts() -> Facts {
    let link = |index, interface: &str, kind: Option<&str>, addresses: &[&str]| {
        let mut link = Link::named(index, name(interface));
        link.kind = kind.map(str::to_owned);
        link.addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (index, link)
    };
    let links =
        [link(2, "eth0", None, &["10.0.0.5/24", "fd00::5/64", "fe80::5/64"]), link(3, "bond0", Some("bond"), &[])];
    Facts { links: links.into(), ..Facts::default() }
}

/// The options of the command line, as it reads them.
fn question(words: &str) -> Question {
    let mut question = Question::default();
    let mut words = words.split(' ');
    while let (Some(option), Some(value)) = (words.next(), words.next()) {
        match option {
            "--in" => question.input = Some(name(value)),
            "--out" => question.output = Some(name(value)),
            "--kind" => question.kind = Some(value.to_owned()),
            "--from" => question.from = Some(endpoint(value).unwrap()),
            "--to" => question.to = Some(endpoint(value).unwrap()),
            "--dnat" => question.translated = Some(endpoint(value).unwrap()),
            "--proto" => question.protocol = Some(protocol(value).unwrap()),
            "--sport" => question.source_port = Some(value.parse().unwrap()),
            "--dport" => question.port = Some(value.parse().unwrap()),
            "--icmp" => question.icmp = Some(icmp(value).unwrap()),
            other => unreachable!("{other}"),
        }
    }
    question
}

/// The packet in words, and what was taken for granted; or what is unclear.
fn asked(words: &str) -> Result<(String, String), String> {
    let (packet, taken) = packet(&question(words), &node(Vec::new()), &facts()).map_err(|error| error.to_string())?;
    let protocol = packet.protocol.unwrap();
    let mut text =
        format!("{} {} {protocol} {} -> {}", packet.direction, packet.interface, packet.source, packet.destination);
    for part in [
        packet.ports.map(|(source, port)| format!(" {source}>{port}")),
        packet.icmp.map(|(kind, code)| format!(" {kind}/{code}")),
        packet.kind.map(|kind| format!(" kind {kind}")),
        packet.forward.map(|exit| format!(" by {} {:?}", exit.interface, exit.kind)),
        packet.translated.map(|(address, port)| format!(" to {address} {port}")),
    ] {
        text.push_str(&part.unwrap_or_default());
    }
    Ok((text, taken.join(", ")))
}

fn check(words: &str, packet: &str, taken: &str) {
    assert_eq!(asked(words), Ok((packet.to_owned(), taken.to_owned())), "{words}");
}

#[test]
fn what_is_not_said_is_taken_for_granted_and_said() {
    check(
        "--in eth0 --dport 22",
        "ingress eth0 tcp 198.51.100.77 -> 10.0.0.5 40000>22",
        "--proto tcp, --from 198.51.100.77, --to 10.0.0.5, --sport 40000",
    );
    check(
        "--in eth0 --from fd00::9 --dport 22",
        "ingress eth0 tcp fd00::9 -> fd00::5 40000>22",
        "--proto tcp, --to fd00::5, --sport 40000",
    );
    check(
        "--out eth0 --to [fd00::9]:53 --proto udp --sport 5000",
        "egress eth0 udp fd00::5 -> fd00::9 5000>53",
        "--from fd00::5",
    );
    check("--out eth0 --proto esp", "egress eth0 esp 10.0.0.5 -> 198.51.100.77", "--from 10.0.0.5, --to 198.51.100.77");
    check(
        "--in eth0 --out cali7 --kind veth --to 10.0.0.5:80 --dnat 10.1.0.9:8080",
        "ingress eth0 tcp 198.51.100.77 -> 10.0.0.5 40000>80 by cali7 Some(\"veth\") to 10.1.0.9 8080",
        "--proto tcp, --from 198.51.100.77, --sport 40000",
    );
    check(
        "--out eth0 --to 10.96.0.1:443 --dnat 10.0.0.9:6443",
        "egress eth0 tcp 10.0.0.5 -> 10.96.0.1 40000>443 to 10.0.0.9 6443",
        "--proto tcp, --from 10.0.0.5, --sport 40000",
    );
    check(
        "--in eth0 --out bond0 --proto tcp --dport 80 --dnat 10.1.0.9",
        "ingress eth0 tcp 198.51.100.77 -> 203.0.113.77 40000>80 by bond0 Some(\"bond\") to 10.1.0.9 80",
        "--from 198.51.100.77, --to 203.0.113.77, --sport 40000",
    );
    check(
        "--in cali7 --kind veth --to 10.0.0.5 --proto 47",
        "ingress cali7 gre 198.51.100.77 -> 10.0.0.5 kind veth",
        "--from 198.51.100.77",
    );
}

#[test]
fn icmp_is_that_of_the_ip_version() {
    check(
        "--in eth0 --icmp echo-request",
        "ingress eth0 icmp 198.51.100.77 -> 10.0.0.5 8/0",
        "--from 198.51.100.77, --to 10.0.0.5",
    );
    check(
        "--in eth0 --to fd00::5 --icmp packet-too-big",
        "ingress eth0 icmpv6 2001:db8::77 -> fd00::5 2/0",
        "--from 2001:db8::77",
    );
    check(
        "--in eth0 --proto icmpv6 --icmp 135/3",
        "ingress eth0 icmpv6 2001:db8::77 -> fd00::5 135/3",
        "--from 2001:db8::77, --to fd00::5",
    );
    check("--in eth0 --icmp 3/4 --from 10.0.0.9", "ingress eth0 icmp 10.0.0.9 -> 10.0.0.5 3/4", "--to 10.0.0.5");
}

#[test]
fn what_is_unclear_says_what_to_do() {
    for (words, message) in [
        (
            "--dport 22",
            "say by which interface: --in IFACE for a packet to this host, --out IFACE for one from it, both for one through it",
        ),
        ("--in eth0", "say what it is: --proto tcp --dport 22, --proto icmp --icmp echo-request, --proto esp"),
        ("--in eth0 --proto tcp", "say to which port: --dport N, or --to ADDR:PORT (tcp has ports)"),
        ("--in eth0 --proto icmp", "say which icmp: --icmp TYPE or TYPE/CODE, like --icmp echo-request"),
        ("--in eth0 --icmp echo-requst", "\"echo-requst\" is not a type of icmp; did you mean \"echo-request\"?"),
        ("--in eth0 --icmp packet-too-big", "\"packet-too-big\" is not a type of icmp; it can be: address-mask-reply"),
        ("--in eth0 --proto icmpv6 --icmp 1 --from 10.0.0.9", "icmpv6 does not go with these addresses: write icmp"),
        ("--in eth0 --proto tcp --dport 1 --icmp 8", "--icmp does not go with tcp"),
        ("--in eth0 --from 10.0.0.9 --to fd00::5 --dport 1", "the addresses are of two IP versions; a packet has one"),
        ("--in eth0 --to 10.0.0.5:22 --dport 23", "the destination port is given twice"),
        ("--in eth0 --proto gre --dport 23", "gre has no ports"),
        ("--in bond0 --dport 22", "say to where: --to ADDR (bond0 has no address that is known)"),
        ("--out bond0 --to 10.0.0.9:22", "say from where: --from ADDR (this host's own address)"),
    ] {
        let error = asked(words).unwrap_err();
        assert!(error.starts_with(message), "{words}: {error}");
    }
    for text in ["10.0.0", "10.0.0.1:", "10.0.0.1:70000", "fd00::1:22:", "host", "[fd00::1", "10.0.0.0/8", ":22"] {
        assert!(endpoint(text).is_err(), "{text}");
    }
    assert_eq!(endpoint("[fd00::1]").unwrap(), endpoint("fd00::1").unwrap());
    assert!(icmp("8/256").is_err() && icmp("8/").is_err());
    assert_eq!(protocol("tpc").unwrap_err().to_string(), "did you mean \"tcp\"?");
    assert!(protocol("256").is_err());
}

#[test]
fn an_address_that_the_policy_names_is_not_unremarkable() {
    let named = |cidr: &str| {
        let from = Addresses::Literal(AddrSet::from_iter([cidr.parse::<ipnet::IpNet>().unwrap()]));
        EffectiveRule { from, ..rule(Action::Deny) }
    };
    let effective = |cidrs: &[&str]| {
        let rules: Vec<EffectiveRule> = cidrs.iter().map(|cidr| named(cidr)).collect();
        node(vec![tier("default", TierDefault::Pass, vec![policy("p", &rules)])])
    };
    let source =
        |cidrs: &[&str]| packet(&question("--in eth0 --dport 1"), &effective(cidrs), &facts()).unwrap().0.source;
    assert_eq!(source(&["198.51.100.0/24"]).to_string(), "203.0.113.77");
    assert_eq!(source(&["198.51.100.0/24", "203.0.113.0/24"]).to_string(), "192.0.2.77");
    assert_eq!(source(&["0.0.0.0/0"]).to_string(), "198.51.100.77", "a rule for everybody tells nobody apart");
}
