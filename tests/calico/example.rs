//! Reads the examples, and gives the node that their packets meet.

use std::fs;
use std::net::IpAddr;

use nodewall::config::Config;
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::net::protocol::Protocol;
use nodewall::policy::effective::Effective;
use nodewall::policy::model::{Mode, Policy};
use nodewall::policy::resolve::resolve;
use nodewall::policy::settings::NodeSettings;
use nodewall::simulate::{ConntrackState, Exit, Origin, Packet};

pub(crate) struct Example {
    pub title: String,
    /// Its objects, as Calico writes them.
    pub yaml: String,
    /// Words of each finding, in order.
    pub findings: Vec<String>,
    pub packets: Vec<Asked>,
    /// Whether its policy file is written down.
    pub golden: bool,
}

pub(crate) struct Asked {
    pub text: String,
    pub node: String,
    pub packet: Packet,
    pub allowed: bool,
    pub logged: bool,
    pub audited: bool,
}

/// Every example of every file.
pub(crate) fn all() -> Vec<Example> {
    let mut files: Vec<_> = fs::read_dir("tests/calico/examples").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let texts = files.iter().filter(|path| path.extension().is_some_and(|is| is == "txt"));
    let texts: Vec<String> = texts.map(|path| fs::read_to_string(path).unwrap()).collect();
    texts.iter().flat_map(|text| text.split("\n=== ").skip(1)).map(example).collect()
}

fn example(text: &str) -> Example {
    let (title, rest) = text.split_once('\n').unwrap();
    let (title, golden) = title.strip_suffix(" (golden)").map_or((title, false), |title| (title, true));
    let mut example =
        Example { title: title.to_owned(), yaml: String::new(), findings: Vec::new(), packets: Vec::new(), golden };
    for line in rest.lines() {
        if let Some(endpoint) = line.strip_prefix("endpoint ") {
            example.yaml += &self::endpoint(endpoint);
        } else if let Some(said) = line.strip_prefix("finding ") {
            example.findings.push(said.to_owned());
        } else if ["in ", "out ", "through "].iter().any(|first| line.starts_with(first)) {
            example.packets.push(asked(line));
        } else {
            // Parts that are left out of an example are left out here: kind and version are always these.
            example.yaml += line;
            example.yaml.push('\n');
        }
    }
    example
}

/// `NAME NODE INTERFACE [labels={..}] [profiles=[..]] [ips=[..]]` as an object.
fn endpoint(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, node, interface, more @ ..] = words.as_slice() else { panic!("{line}") };
    let part = |key: &str| {
        more.iter().find_map(|word| word.strip_prefix(key)).map(|value| value.replace(',', ", ").replace(':', ": "))
    };
    let labels = part("labels=").unwrap_or_else(|| "{}".to_owned());
    let profiles = part("profiles=").map(|list| format!("  profiles: {list}\n")).unwrap_or_default();
    let ips = more
        .iter()
        .find_map(|word| word.strip_prefix("ips="))
        .map(|list| format!("  expectedIPs: {list}\n"))
        .unwrap_or_default();
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata:\n  name: {name}\n  labels: {labels}\nspec:\n  \
         interfaceName: \"{interface}\"\n  node: {node}\n{profiles}{ips}"
    )
}

/// `in eth0 FROM[>TO] WHAT VERDICT ...`, `out eth0 [FROM]>TO ..`, `through eth0>eth1 FROM>TO ..`.
pub(crate) fn asked(line: &str) -> Asked {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [way, interface, ends, what, verdict, more @ ..] = words.as_slice() else { panic!("{line}") };
    let name = |text: &str| InterfaceName::new(text).unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|_| panic!("{line}"));
    let (from, to) = ends.split_once('>').unwrap_or((ends, ""));
    let own = |other: &str| if other.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
    let source = address(if from.is_empty() { own(to) } else { from });
    let destination = address(if to.is_empty() { own(from) } else { to });
    let (interface, exit) =
        interface.split_once('>').map_or((*interface, None), |(first, second)| (first, Some(second)));
    let (protocol, detail) = what.split_once('/').map_or((*what, None), |(protocol, detail)| (protocol, Some(detail)));
    let protocol = Protocol::by_name(protocol).unwrap_or_else(|| Protocol(protocol.parse().unwrap()));
    let option = |key: &str| more.iter().find_map(|word| word.strip_prefix(key));
    let source_port = option("sport=").map_or(40_000, |port| port.parse().unwrap());
    let ports = detail.filter(|_| protocol.has_ports()).map(|port| (source_port, port.parse().unwrap()));
    let icmp = detail.filter(|_| !protocol.has_ports()).map(|detail| {
        let (kind, code) = detail.split_once('.').unwrap_or((detail, "0"));
        (kind.parse().unwrap(), code.parse().unwrap())
    });
    for word in more {
        let known = ["node=", "sport=", "dnat="].iter().any(|key| word.starts_with(key));
        assert!(known || ["established", "log", "audit"].contains(word), "{line}");
    }
    assert!(["allow", "deny"].contains(verdict), "{line}");
    let translated = option("dnat=").map(|to| {
        let (address, port) = to.rsplit_once(':').unwrap();
        (address.parse().unwrap(), port.parse().unwrap())
    });
    let is_out = *way == "out";
    let packet = Packet {
        direction: if is_out { Direction::Egress } else { Direction::Ingress },
        interface: name(interface),
        kind: None,
        source,
        destination,
        protocol: Some(protocol),
        ports,
        icmp,
        hop_limit: 64,
        state: if more.contains(&"established") { ConntrackState::Established } else { ConntrackState::New },
        forward: exit.map(|exit| Exit { interface: name(exit), kind: None }),
        translated,
        origin: if is_out { Origin::Process(nodewall::simulate::Socket::default()) } else { Origin::Kernel },
    };
    Asked {
        text: line.to_owned(),
        node: option("node=").unwrap_or("n1").to_owned(),
        packet,
        allowed: *verdict == "allow",
        logged: more.contains(&"log"),
        audited: more.contains(&"audit"),
    }
}

/// A node with an uplink, a second interface and a pod, whose own settings let nothing through ahead of the policies.
pub(crate) fn node(name: &str, policy: &Policy) -> Effective {
    let link = |index: u32, name: &str, addresses: &[&str]| Link {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..Link::named(index, InterfaceName::new(name).unwrap())
    };
    let lo = Link { hardware: 772, ..link(1, "lo", &["127.0.0.1/8", "::1/128"]) };
    let eth0 = Link { default_route: true, ..link(2, "eth0", &["192.0.2.1/24", "2001:db8::1/64"]) };
    let eth1 = link(3, "eth1", &["10.1.0.1/24"]);
    let pod = Link { kind: Some("veth".to_owned()), ..link(4, "cali1", &[]) };
    let links = [lo, eth0, eth1, pod].into_iter().map(|link| (link.index, link)).collect();
    let facts = Facts { node: name.to_owned(), links, ..Facts::default() };
    let settings = NodeSettings { mode: Mode::Enforce, failsafe: Vec::new(), ..Config::shipped().settings };
    resolve(policy, &settings, &facts).0
}
