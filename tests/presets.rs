//! The presets, the sets that they expect, and the ports that a host gives out: what `check` says, what is denied meanwhile, and
//! `nodewall preset` itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::exposure::known::{MeantFor, SERVICES};
use nodewall::exposure::peers::Peer;
use nodewall::exposure::{self, Exposure, Surroundings};
use nodewall::net::addr::AddrSet;
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::listener::{self, Endpoint, Holders, Listener};
use nodewall::net::ports::HostPorts;
use nodewall::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use nodewall::nft::text;
use nodewall::policy::effective::{Addresses, Effective, EffectiveRule};
use nodewall::policy::model::{Action, Policy, ServicePort, Stage};
use nodewall::policy::preset::{self, Kind, Preset};
use nodewall::policy::resolve::resolve;
use nodewall::policy::settings::{Default as InterfaceDefault, NodeSettings};
use nodewall::simulate::{ConntrackState, Origin, Outcome, Packet, Socket, decide};
use nodewall::source;
use nodewall::text::finding::{Code, Finding, Severity};
use nodewall::text::render::line;
use serde_json::Value;

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A machine with an interface of each role; the presets know them by role.
const ROLES: [(&str, &str); 8] = [
    ("rail0", "rail"),
    ("fab0", "fabric"),
    ("ib0", "ipoib"),
    ("stor0", "storage"),
    ("bmc0", "bmc"),
    ("dpu0", "dpu"),
    ("pod0", "pod"),
    ("vx0", "overlay"),
];

fn node() -> Facts {
    let link = |index: u32, name: &str| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        link.default_route = name == "mgmt0";
        link.addresses = [format!("10.9.{index}.1/24").parse().unwrap()].into();
        (index, link)
    };
    let names = ["mgmt0"].into_iter().chain(ROLES.map(|(name, _)| name));
    Facts { links: (2..).zip(names).map(|(index, name)| link(index, name)).collect(), ..Facts::default() }
}

fn roles() -> String {
    ROLES
        .iter()
        .map(|(name, role)| {
            format!("[[interface]]\nname = \"{name}\"\nmatch = {{ name = \"{name}\" }}\nrole = \"{role}\"\n")
        })
        .collect()
}

/// What the presets expect, with an address of its own for each, so that a packet comes from one of them only.
fn sets(presets: &[&Preset]) -> BTreeMap<String, String> {
    let texts: String = presets.iter().map(|preset| preset.text).collect();
    let mut names = BTreeSet::new();
    for part in texts.split("{ set = \"").skip(1) {
        names.insert(part.split_once('"').unwrap().0.to_owned());
    }
    (1..).zip(names).map(|(index, name): (u8, String)| (name, format!("192.0.2.{index}"))).collect()
}

fn written(sets: &BTreeMap<String, String>) -> String {
    sets.iter().map(|(name, address)| format!("[[set]]\nname = \"{name}\"\ncidrs = [\"{address}\"]\n")).collect()
}

/// Presets beside the catalogue and other documents, as files of one directory; every finding.
fn resolved(presets: &[&Preset], more: &str, settings: &NodeSettings) -> (Policy, Effective, Vec<Finding>) {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(at("config/policy.d/00-services.toml"), folder.path().join("00-services.toml")).unwrap();
    fs::write(folder.path().join("10-node.toml"), roles() + more).unwrap();
    for preset in presets {
        fs::write(folder.path().join(preset.file_name()), preset.copy()).unwrap();
    }
    let sourced = source::load_directories(&[folder.path().to_owned()], source::Trust::Anyone);
    let (effective, resolved) = resolve(&sourced.policy, settings, &node());
    let mut findings: Vec<Finding> = sourced.findings.into_iter().chain(resolved).collect();
    findings.retain(|finding| finding.code != Code::OpenFailsafe);
    (sourced.policy, effective, findings)
}

fn settings() -> NodeSettings {
    Config::shipped().settings
}

/// Nothing but policies decides, and everything that none of them decides is let through.
fn open_settings() -> NodeSettings {
    let mut settings = settings();
    settings.failsafe.clear();
    for role in Role::ALL {
        for direction in Direction::BOTH {
            settings.defaults.insert((*role, direction), InterfaceDefault::Allow);
        }
    }
    settings
}

fn lines(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(line).collect()
}

#[test]
fn every_preset_is_clean_once_its_sets_are_there_and_compiles() {
    for preset in preset::ALL {
        let sets = written(&sets(&[preset]));
        let (policy, effective, findings) = resolved(&[preset], &sets, &settings());
        assert_eq!(lines(&findings), Vec::<String>::new(), "{}", preset.name);
        let written = preset.text.matches("[[policy]]").count();
        assert!(written > 0 && policy.policies.len() == written, "{}", preset.name);
        assert_eq!(effective.tiers.iter().map(|tier| tier.policies.len()).sum::<usize>(), written, "{}", preset.name);
        assert!(policy.policies.iter().all(|policy| policy.name.starts_with(&format!("preset-{}", preset.name))));
        let rendered = text::render(&compile(&effective));
        assert!(rendered.contains(&format!("preset-{}", preset.name)), "{}:\n{rendered}", preset.name);
        // Short enough to be read before it is enabled.
        let most = if preset.kind == Kind::Node { 70 } else { 40 };
        assert!(preset.text.lines().count() <= most, "{}", preset.name);
        assert!(preset.text.lines().all(|line| line.len() <= 170), "{}", preset.name);
    }
}

/// Whatever machine it is. Only what names RoCE is refused where a NIC does RoCE itself, which no rule sees.
#[test]
fn every_preset_goes_with_every_machine() {
    let machines = fs::read_dir(at("tests/fixtures")).unwrap().map(|entry| entry.unwrap().path());
    let machines: Vec<PathBuf> = machines.filter(|path| path.is_dir()).collect();
    assert!(machines.len() >= 8);
    let mut refused = BTreeSet::new();
    for machine in machines {
        let facts = nodewall::host::collect_fixture(&machine);
        for preset in preset::ALL {
            let paths = [at("config/policy.d"), at("config/presets").join(format!("{}.toml", preset.name))];
            let sourced = source::load_paths(&paths, source::Trust::Anyone);
            let (effective, findings) = resolve(&sourced.policy, &settings(), &facts);
            compile(&effective);
            let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
            refused.extend(errors.map(|error| (preset.name, error.code)));
            let other: Vec<&Finding> = findings
                .iter()
                .filter(|finding| finding.severity == Severity::Warning)
                .filter(|finding| !matches!(finding.code, Code::OpenFailsafe | Code::MissingSet | Code::SelectsNothing))
                .collect();
            assert!(other.is_empty(), "{} {}: {other:#?}", machine.display(), preset.name);
        }
    }
    assert_eq!(
        refused.into_iter().map(|(name, code)| format!("{name} {}", code.name())).collect::<Vec<_>>(),
        ["roce-soft bypassed"]
    );
}

#[test]
fn all_files_of_presets_are_presets() {
    let mut files: Vec<String> = fs::read_dir(at("config/presets"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut known: Vec<String> = preset::ALL.iter().map(|preset| format!("{}.toml", preset.name)).collect();
    files.sort();
    known.sort();
    assert_eq!(files, known);
}

/// Any choice of presets goes together: names and orders are apart.
#[test]
fn all_presets_together_are_without_errors() {
    let all: Vec<&Preset> = preset::ALL.iter().collect();
    let (_, _, findings) = resolved(&all, &written(&sets(&all)), &settings());
    assert_eq!(lines(&findings), Vec::<String>::new());
    let (_, _, findings) = resolved(&all, "", &settings());
    assert!(findings.iter().all(|finding| finding.code == Code::MissingSet && finding.severity == Severity::Warning));
    assert_eq!(
        findings.len(),
        sets(&all).len(),
        "one finding for each set, whoever expects it: {:?}",
        lines(&findings)
    );
}

/// While its sets are missing, each preset says so, and what it would let in from them is denied, whatever the default of the role.
#[test]
fn without_its_sets_a_preset_lets_nobody_in() {
    for preset in preset::ALL {
        let sets = sets(&[preset]);
        let settings = NodeSettings { failsafe: Vec::new(), ..settings() };
        let (_, effective, findings) = resolved(&[preset], "", &settings);
        let names: Vec<&str> = findings.iter().filter_map(|finding| finding.message.split('"').nth(1)).collect();
        assert_eq!(
            names.iter().copied().collect::<BTreeSet<_>>(),
            sets.keys().map(String::as_str).collect(),
            "{}",
            preset.name
        );
        for finding in &findings {
            assert_eq!((finding.code, finding.severity), (Code::MissingSet, Severity::Warning), "{}", line(finding));
            assert!(finding.help.contains("name = \"") && finding.help.contains("cidrs = [\""), "{}", finding.help);
        }
        let (_, with, _) = resolved(&[preset], &written(&sets), &settings);
        let open: Vec<Packet> = allowed(&with, &sets).map(|(_, packet)| packet).collect();
        assert_eq!(open.is_empty(), sets.is_empty(), "{}", preset.name);
        for packet in open {
            assert_eq!(decide(&with, &packet).outcome, Outcome::Accepted, "{}: {packet:?}", preset.name);
            let outcome = decide(&effective, &packet).outcome;
            // Egress is open by default where a preset says nothing of it.
            let untouched =
                packet.direction == Direction::Egress && matches!(preset.name, "roce-soft" | "inference-edge");
            assert!(outcome != Outcome::Accepted || untouched, "{}: {packet:?}", preset.name);
        }
    }
}

/// A packet for each rule that allows something to or from a set: the first interface, address, protocol and port that it names.
fn allowed<'a>(
    effective: &'a Effective,
    sets: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (&'a EffectiveRule, Packet)> {
    let policies = effective.tiers.iter().flat_map(|tier| &tier.policies).filter(|policy| policy.stage == Stage::Host);
    policies.flat_map(move |policy| {
        let interface = effective.interfaces.iter().find(|found| policy.interfaces.matches(&found.labels)).unwrap();
        let rules = [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)];
        rules
            .into_iter()
            .flat_map(|(direction, rules)| rules.iter().flatten().map(move |rule| (direction, rule)))
            .filter_map(move |(direction, rule)| {
                let peer = if direction == Direction::Ingress { &rule.from } else { &rule.to };
                let (Action::Allow, Addresses::Named(_, peer)) = (rule.action, peer) else { return None };
                let peer = first_of(peer, sets);
                let here: IpAddr = "10.9.2.1".parse().unwrap();
                let (protocol, port, icmp) = first_l4(&rule.l4)?;
                let (source, destination) = if direction == Direction::Ingress { (peer, here) } else { (here, peer) };
                let packet = Packet {
                    direction,
                    interface: interface.name.clone(),
                    kind: None,
                    source,
                    destination,
                    protocol: Some(protocol),
                    ports: port.map(|port| (40_000, port)),
                    icmp,
                    hop_limit: 64,
                    state: ConntrackState::New,
                    forward: None,
                    translated: None,
                    origin: Origin::Process(Socket { uid: 1000, ..Socket::default() }),
                };
                Some((rule, packet))
            })
    })
}

fn first_of(addresses: &AddrSet, sets: &BTreeMap<String, String>) -> IpAddr {
    let mut all = sets.values().map(|address| address.parse::<IpAddr>().unwrap());
    all.find(|address| addresses.contains(*address)).unwrap()
}

/// Protocol, destination port, ICMP type and code.
type Transport = (Protocol, Option<u16>, Option<(u8, u8)>);

/// `None` for ICMPv6, which no IPv4 packet has.
fn first_l4(l4: &L4Match) -> Option<Transport> {
    let L4Match::Only(protocols) = l4 else { return Some((Protocol::TCP, Some(443), None)) };
    let (protocol, detail) = protocols.iter().next().unwrap();
    match detail {
        _ if *protocol == Protocol::ICMPV6 => None,
        L4Detail::All if *protocol == Protocol::ICMP => Some((*protocol, None, Some((8, 0)))),
        L4Detail::All => Some((*protocol, protocol.has_ports().then_some(45_000), None)),
        L4Detail::Ports(ports) => Some((*protocol, Some(ports.ranges()[0].0), None)),
        L4Detail::Icmp(types) => Some((*protocol, None, Some((*types.keys().next().unwrap(), 0)))),
    }
}

/// What one preset allows, another that is enabled beside it does not take away: denials of a preset are for its own ports.
#[test]
fn presets_do_not_take_from_each_other_what_they_allow() {
    let all: Vec<&Preset> = preset::ALL.iter().collect();
    let sets = sets(&all);
    let (_, effective, _) = resolved(&all, &written(&sets), &settings());
    let mut looked_at = 0;
    for (rule, packet) in allowed(&effective, &sets) {
        // The edge node's is the only policy that says something about all that goes out, and is in audit mode.
        let decision = decide(&effective, &packet);
        assert_eq!(decision.outcome, Outcome::Accepted, "{} is kept from {packet:?}", rule.id);
        looked_at += 1;
    }
    assert!(looked_at > 50, "{looked_at}");
}

/// A stranger comes in by no port of any service that a preset of a node or a stack is about, even where the default is to allow.
#[test]
fn a_stranger_comes_in_by_no_service_of_a_preset() {
    for preset in preset::ALL {
        let (policy, effective, _) = resolved(&[preset], &written(&sets(&[preset])), &open_settings());
        let ingress = policy.policies.iter().filter(|policy| policy.stage == Stage::Host);
        for (interfaces, rules) in ingress.filter_map(|policy| Some((&policy.interfaces, policy.ingress.as_ref()?))) {
            let services = rules.iter().filter(|rule| rule.action == Action::Deny).flat_map(|rule| &rule.services);
            for (service, _) in services {
                for interface in effective.interfaces.iter().filter(|found| interfaces.matches(&found.labels)) {
                    let port = &policy.services[service].ports[0];
                    let (protocol, ports) = match port {
                        ServicePort::Ports(protocol, ports) => (*protocol, Some((40_000, ports.ranges()[0].0))),
                        ServicePort::Protocol(protocol) => (*protocol, None),
                        ServicePort::Icmp(..) => continue,
                    };
                    let packet = Packet {
                        direction: Direction::Ingress,
                        interface: interface.name.clone(),
                        kind: None,
                        source: "203.0.113.9".parse().unwrap(),
                        destination: "10.9.2.1".parse().unwrap(),
                        protocol: Some(protocol),
                        ports,
                        icmp: None,
                        hop_limit: 64,
                        state: ConntrackState::New,
                        forward: None,
                        translated: None,
                        origin: Origin::Kernel,
                    };
                    let outcome = decide(&effective, &packet).outcome;
                    assert_ne!(outcome, Outcome::Accepted, "{}: {service} on {}", preset.name, interface.name);
                }
            }
        }
    }
}

/// What `audit` says of a dangerous service: the preset that it names lets in whom it says, and nobody else.
#[test]
fn what_an_audit_advises_closes_the_service() {
    let facts = node();
    let loopback_open = BTreeSet::new();
    let mut closed = 0;
    for known in SERVICES {
        let Some(name) = known.preset else { continue };
        let preset = preset::find(name).unwrap_or_else(|| panic!("{}: no preset {name}", known.name));
        let sets = sets(&[preset]);
        if let MeantFor::Some(set) = known.meant_for {
            assert!(sets.contains_key(set), "{}: preset {name} asks for no set {set}", known.name);
        }
        let (policy, effective, _) = resolved(&[preset], &written(&sets), &open_settings());
        let around = Surroundings {
            facts: &facts,
            sets: exposure::sets(&policy),
            loopback_open: &loopback_open,
            ways: BTreeMap::new(),
        };
        let exposure = Exposure::new(&effective, around);
        for port in known.ports() {
            let listener = Listener {
                endpoint: Endpoint {
                    transport: listener::Transport::Ip(known.protocol()),
                    port,
                    address: "0.0.0.0".parse().unwrap(),
                    both_families: false,
                    device: None,
                },
                uid: None,
                holders: Holders::Unknown,
                rdma: BTreeSet::new(),
            };
            let reach = exposure.of_listener(&listener);
            let mgmt = reach.iter().find(|reach| reach.role == Role::Mgmt).map(|reach| &reach.peers);
            let who = format!("{} at {port} with preset {name}: {mgmt:?}", known.name);
            assert!(mgmt.is_none_or(|peers| !peers.iter().any(Peer::is_anyone)), "{who}");
            match known.meant_for {
                MeantFor::Some(set) => {
                    let peers = mgmt.unwrap_or_else(|| panic!("{who}"));
                    assert!(peers.contains(&Peer::Set(set.to_owned())), "{who}");
                }
                MeantFor::ThisHost | MeantFor::Nobody => {}
            }
            closed += 1;
        }
    }
    assert!(closed >= 25, "{closed}");
}

/// The metadata service: root gets there, a server's user does not, pods do not by way of this host.
#[test]
fn the_metadata_service_is_roots() {
    let (_, effective, _) = resolved(&[preset::find("imds").unwrap()], "", &settings());
    let packet = |uid: u32, to: &str| Packet {
        direction: Direction::Egress,
        interface: InterfaceName::new("mgmt0").unwrap(),
        kind: None,
        source: if to.contains(':') { "fd00::5" } else { "10.9.2.1" }.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: Some(Protocol::TCP),
        ports: Some((40_000, 80)),
        icmp: None,
        hop_limit: 64,
        state: ConntrackState::New,
        forward: None,
        translated: None,
        origin: Origin::Process(Socket { uid, ..Socket::default() }),
    };
    for address in ["169.254.169.254", "fd00:ec2::254"] {
        assert_eq!(decide(&effective, &packet(0, address)).outcome, Outcome::Accepted);
        assert_ne!(decide(&effective, &packet(1000, address)).outcome, Outcome::Accepted);
    }
    let other = decide(&effective, &packet(1000, "192.0.2.1")).outcome;
    assert_eq!(other, Outcome::Accepted, "nothing else is meant");
    let pod = Packet {
        direction: Direction::Ingress,
        interface: InterfaceName::new("pod0").unwrap(),
        source: "10.244.0.9".parse().unwrap(),
        forward: Some(nodewall::simulate::Exit { interface: InterfaceName::new("mgmt0").unwrap(), kind: None }),
        origin: Origin::Kernel,
        ..packet(0, "169.254.169.254")
    };
    assert_ne!(decide(&effective, &pod).outcome, Outcome::Accepted);
}

/// Ports by hand from the sources that the catalogue names, so that a slip of the hand in either is found.
const PORTS: [(&str, &str); 46] = [
    // kubernetes.io "Ports and Protocols"
    ("kube-apiserver", "tcp/6443"),
    ("etcd", "tcp/2379-2380"),
    ("kubelet", "tcp/10250"),
    ("kube-scheduler", "tcp/10259"),
    ("kube-controller-manager", "tcp/10257"),
    ("nodeports", "tcp/30000-32767 udp/30000-32767"),
    // Microsoft's threat matrix for Kubernetes, MS-TA9030
    ("kubelet-read-only", "tcp/10255"),
    // kube-proxy's types.go
    ("kube-proxy-metrics", "tcp/10249"),
    ("kube-proxy-health", "tcp/10256"),
    // Calico's FelixConfiguration; RFC 2003
    ("calico", "tcp/179 tcp/5473 udp/4789 udp/51820-51821"),
    ("ipip", "4"),
    // Cilium's system_requirements.rst; RFC 8926
    ("cilium", "tcp/4240 tcp/4244-4245 tcp/4250 udp/8472 udp/51871"),
    ("cilium-metrics", "tcp/9962-9964"),
    ("geneve", "udp/6081"),
    ("flannel", "udp/8472"),
    // RFC 7348
    ("vxlan", "udp/4789"),
    // DCGM's HostEngineCommandLine.cpp, dcgm-exporter's app.go, nv_fm_agent.h, IMEX's configuration template, NCCL's ras
    ("dcgm", "tcp/5555"),
    ("dcgm-exporter", "tcp/9400"),
    ("fabric-manager", "tcp/6666 tcp/16000"),
    ("imex", "tcp/50000 tcp/50005"),
    ("nccl-ras", "tcp/28028"),
    // ROCm/device-metrics-exporter
    ("amd-metrics-exporter", "tcp/5000-5001"),
    ("node-exporter", "tcp/9100"),
    // torch's c10d rendezvous; docs.vllm.ai
    ("torchrun", "tcp/29400 tcp/29500"),
    ("vllm", "tcp/8000"),
    ("vllm-kv", "tcp/14579"),
    // Documentation/networking/ip-sysctl.rst
    ("nccl-peers", "tcp/32768-60999"),
    // docs.ray.io
    ("ray", "tcp/6379 tcp/8265 tcp/10001 tcp/52365"),
    // SchedMD's network.shtml
    ("slurm", "tcp/6817-6820"),
    // Triton's documentation, SGLang's compose file, Ollama's FAQ, jupyter-server(1)
    ("triton", "tcp/8000-8001"),
    ("triton-metrics", "tcp/8002"),
    ("sglang", "tcp/30000"),
    ("ollama", "tcp/11434"),
    ("jupyter", "tcp/8888"),
    // RFC 8881, nvme-tcp.h, Lustre Operations Manual, IBM, BeeGFS, Red Hat Ceph Storage
    ("nfs", "tcp/2049"),
    ("nvme-tcp", "tcp/4420 tcp/8009"),
    ("lustre", "tcp/988"),
    ("gpfs", "tcp/1191"),
    ("beegfs", "tcp/8003-8006 tcp/8008 udp/8003-8006 udp/8008"),
    ("ceph", "tcp/3300 tcp/6789 tcp/6800-7300"),
    // ib_verbs.h, rdma-core, SHARP's installation guide
    ("roce-soft", "udp/4791"),
    ("iwarp", "tcp/3935 udp/3935"),
    ("ibacm", "tcp/6125"),
    ("sharp-client", "tcp/6126"),
    // RFC 8267
    ("nfs-rdma", "tcp/20049"),
    ("imds", "tcp/80"),
];

#[test]
fn the_catalogue_has_the_ports_of_its_sources() {
    let (policy, _, _) = resolved(&[], "", &settings());
    for (service, expected) in PORTS {
        let mut by_protocol: BTreeMap<Protocol, PortSet> = BTreeMap::new();
        let mut found = Vec::new();
        for port in &policy.services[service].ports {
            match port {
                ServicePort::Ports(protocol, ports) => {
                    let all = by_protocol.entry(*protocol).or_default();
                    *all = all.union(ports);
                }
                ServicePort::Protocol(protocol) => found.push(protocol.0.to_string()),
                ServicePort::Icmp(protocol, _) => found.push(protocol.to_string()),
            }
        }
        for (protocol, ports) in by_protocol {
            found.extend(ports.ranges().iter().map(|(first, last)| match first == last {
                true => format!("{protocol}/{first}"),
                false => format!("{protocol}/{first}-{last}"),
            }));
        }
        assert_eq!(found.join(" "), expected, "{service}");
    }
    for name in ["nfs-rdma", "nvme-rdma", "iser"] {
        let rule = format!(
            "[[policy]]\nname = \"p\"\ninterfaces = \"all()\"\ningress = [{{ action = \"allow\", services = [\"{name}\"] }}]\n"
        );
        let (_, _, findings) = resolved(&[], &rule, &settings());
        assert!(findings.iter().any(|finding| finding.severity == Severity::Error
            && finding.message == format!("service \"{name}\" is carried by RDMA-CM")));
    }
}

// Sets that are expected.

/// What there is to say about a rule, with [[expect]] for a set that may not be there.
fn said(rule: &str, more: &str) -> Vec<String> {
    let policy = format!(
        "[[expect]]\nname = \"who admins are\"\nset = \"admin\"\nmode = \"warn\"\n\n[[policy]]\nname = \"p\"\ninterfaces = \"all()\"\ningress = [{rule}]\n{more}"
    );
    let (_, effective, findings) = resolved(&[], &policy, &settings());
    let errors = findings.iter().any(|finding| finding.severity == Severity::Error);
    assert_eq!(effective.tiers.iter().all(|tier| tier.policies.is_empty()), errors);
    findings.iter().map(|finding| format!("{}: {}", finding.code.name(), finding.message)).collect()
}

#[test]
fn a_set_that_is_missing_closes_what_is_allowed_and_may_not_open_what_is_denied() {
    let missing = "missing-set: the set \"admin\" is missing: who admins are";
    let unknown = "unknown-name: there is no set \"admin\"";
    let admin = "{ sets = [\"admin\"] }";
    let except = format!("{{ except = {admin} }}");
    for (action, from, expected) in [
        ("allow", admin, &[missing][..]),
        ("allow", &except, &[missing, unknown]),
        ("deny", admin, &[missing, unknown]),
        ("deny", &except, &[missing]),
        ("reject", admin, &[missing, unknown]),
        ("pass", admin, &[missing, unknown]),
        ("log", admin, &[missing]),
    ] {
        let rule = format!("{{ action = \"{action}\", from = {from} }}");
        assert_eq!(said(&rule, ""), expected, "{rule}");
        let filled = "[[set]]\nname = \"admin\"\ncidrs = [\"192.0.2.1\"]\n";
        assert_eq!(said(&rule, filled), Vec::<String>::new(), "{rule}");
    }
    let empty = "[[set]]\nname = \"admin\"\ncidrs = []\n";
    let allow = format!("{{ action = \"allow\", from = {admin} }}");
    assert_eq!(said(&allow, empty), ["missing-set: the set \"admin\" holds nothing: who admins are"]);
    let other = "{ action = \"allow\", from = { sets = [\"admin\", \"admn\"] } }";
    assert_eq!(said(other, ""), [missing, "unknown-name: there is no set \"admn\""], "nobody expects that one");
}

#[test]
fn one_finding_says_what_to_write_for_all_who_expect_a_set() {
    let expect = |name: &str, more: &str| format!("[[expect]]\nname = \"{name}\"\nset = \"admin\"\n{more}\n");
    let two =
        expect("a", "mode = \"warn\"") + &expect("b", "mode = \"warn\"\nexample = [\"10.0.0.1\", \"10.1.0.0/16\"]");
    let (_, _, findings) = resolved(&[], &two, &settings());
    let [finding] = &findings[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.severity, finding.related.len()), (Severity::Warning, 1));
    assert_eq!(
        finding.help,
        "write a [[set]] with name = \"admin\" and cidrs = [\"10.0.0.1\", \"10.1.0.0/16\"], with your own addresses; until then the rules that need it let nobody in or out"
    );
    // Without a mode it is one that stops a generation.
    for mode in ["", "mode = \"enforce\""] {
        let (_, _, findings) = resolved(&[], &expect("a", mode), &settings());
        let [finding] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!((finding.severity, finding.code), (Severity::Error, Code::MissingSet));
    }
}

// Ports that the host gives out.

#[test]
fn ports_that_the_host_gives_out_are_said() {
    let ports = |ephemeral: &[(u16, u16)], node_ports| HostPorts {
        ephemeral: Some(ephemeral.iter().copied().collect()),
        node_ports,
    };
    let plain = ports(&[(32_768, 60_999)], None);
    let cluster = ports(&[(32_768, 50_000), (50_002, 60_999)], Some((30_000, 32_767)));
    let said = |rule: &str, ports: &HostPorts, stage: &str| {
        let text = format!(
            "[[policy]]\nname = \"p\"\nstage = \"{stage}\"\ninterfaces = \"role == 'mgmt'\"\ningress = [{{ {rule} }}]\n"
        );
        let sourced = source::decode_text("p.toml", &text);
        assert_eq!(sourced.findings, []);
        let facts = Facts { ports: ports.clone(), ..node() };
        let (_, findings) = resolve(&sourced.policy, &settings(), &facts);
        let about_ports =
            findings.iter().filter(|finding| matches!(finding.code, Code::EphemeralPort | Code::NodePort));
        about_ports.map(|finding| format!("{}; {}", finding.message, finding.help)).collect::<Vec<_>>()
    };
    let allow = |more: &str| format!("action = \"allow\", protocol = \"tcp\", {more}");
    let range = "anyone may come to tcp/40000-60999, from which this host makes connections itself; give the rule `from`: the peers that may come to whatever listens there";
    assert_eq!(said(&allow("ports = [\"40000-65535\"]"), &plain, "host"), [range]);
    assert_eq!(
        said(&allow("ports = [50001]"), &plain, "host"),
        [
            "anyone may come to tcp/50001, from which this host makes connections itself; give the rule `from`, or add 50001 to net.ipv4.ip_local_reserved_ports"
        ]
    );
    for (rule, ports, stage) in [
        (allow("ports = [50001]"), &cluster, "host"),
        (allow("ports = [\"40000-65535\"], from = { cidrs = [\"10.0.0.0/8\"] }"), &plain, "host"),
        (allow("ports = [\"40000-65535\"]").replace("allow", "deny"), &plain, "host"),
        (allow("ports = [\"40000-65535\"]"), &plain, "forward"),
        (allow("ports = [8000]"), &plain, "host"),
        ("action = \"allow\"".to_owned(), &plain, "host"),
        (allow("ports = [30000]"), &plain, "host"),
        (allow("ports = [\"30000-32767\"]"), &cluster, "host"),
        (allow("ports = [30080]"), &cluster, "prednat"),
        (allow("ports = [\"1-32767\"]"), &cluster, "host"),
    ] {
        assert_eq!(said(&rule, ports, stage), Vec::<String>::new(), "{rule} {stage}");
    }
    assert_eq!(
        said(&allow("ports = [30000]"), &cluster, "host"),
        [
            "tcp/30000 is in the NodePort range; a Service that gets this port takes its packets: let the listener have another port; for a NodePort, write a policy of stage \"prednat\""
        ]
    );
}

// The command.

/// Exit code, stdout and stderr.
fn nodewall(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "nodewall.toml", "--policy-dir", "vendor.d", "--policy-dir", "policy.d"])
        .arg("--root")
        .arg(at("tests/fixtures/training-node"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nodewall.toml"), "").unwrap();
    fs::create_dir(folder.path().join("vendor.d")).unwrap();
    fs::create_dir(folder.path().join("policy.d")).unwrap();
    fs::copy(at("config/policy.d/00-services.toml"), folder.path().join("vendor.d/00-services.toml")).unwrap();
    folder
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn list_says_which_presets_there_are_and_show_prints_one() {
    let here = folder();
    let (code, stdout, stderr) = nodewall(here.path(), &["preset", "list"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("PRESET"), "{stdout}");
    for preset in preset::ALL {
        let row = stdout.lines().find(|row| row.starts_with(&format!("{} ", preset.name))).unwrap();
        assert!(row.contains(preset.kind.name()) && row.ends_with(&preset.summary()), "{row}");
    }
    let listed = json(&nodewall(here.path(), &["preset", "list", "--json"]).1);
    assert_eq!((&listed["version"], &listed["directory"]), (&1.into(), &"policy.d".into()));
    let rows = listed["presets"].as_array().unwrap();
    assert_eq!(rows.len(), preset::ALL.len());
    assert_eq!(
        rows[0],
        serde_json::json!({
            "name": "training", "kind": "node", "state": "disabled", "summary": preset::ALL[0].summary(),
        })
    );
    let (code, stdout, _) = nodewall(here.path(), &["preset", "show", "triton"]);
    assert_eq!((code, stdout.as_str()), (0, preset::find("triton").unwrap().text));
    let (code, stdout, stderr) = nodewall(here.path(), &["preset", "show", "trition"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(stderr, "nodewall: there is no preset \"trition\"; did you mean \"triton\"?\n");
    let stderr = nodewall(here.path(), &["preset", "enable", "nothing-like-it"]).2;
    assert_eq!(stderr, "nodewall: there is no preset \"nothing-like-it\"; `nodewall preset list` has them all\n");
}

#[test]
fn enable_copies_a_preset_and_says_what_it_asks_for() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        println!("SKIPPED enable_copies_a_preset_and_says_what_it_asks_for: needs root");
        return;
    }
    let here = folder();
    let copy = here.path().join("policy.d/50-preset-triton.toml");
    let triton = preset::find("triton").unwrap();
    let state = || {
        let listed = json(&nodewall(here.path(), &["preset", "list", "--json"]).1);
        let rows = listed["presets"].as_array().unwrap().clone();
        rows.iter().find(|row| row["name"] == "triton").unwrap()["state"].as_str().unwrap().to_owned()
    };
    let file = "policy.d/50-preset-triton.toml";
    let (code, stdout, _) = nodewall(here.path(), &["preset", "enable", "triton", "--dry-run"]);
    assert_eq!((code, stdout), (0, format!("triton would be enabled: {file}\n")));
    assert!(!copy.exists() && state() == "disabled");

    let (code, stdout, stderr) = nodewall(here.path(), &["preset", "enable", "triton", "--color", "never"]);
    assert_eq!((code, stdout), (0, format!("triton enabled: {file}\n")), "{stderr}");
    assert!(
        stderr.contains("warning[missing-set]: the set \"clients\" is missing: triton: who sends requests"),
        "{stderr}"
    );
    assert!(stderr.contains("write a [[set]] with name = \"monitoring\" and cidrs = [\"192.0.2.32\"]"), "{stderr}");
    assert!(!stderr.contains("open-failsafe"), "that is not about the preset: {stderr}");
    assert_eq!(fs::read_to_string(&copy).unwrap(), triton.copy());
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(here.path().join("policy.d")).unwrap().count(), 1, "nothing is left behind");
    assert_eq!(state(), "enabled");
    let (code, stdout, _) = nodewall(here.path(), &["check", "--color", "never"]);
    assert_eq!(code, 0, "it is a warning: {stdout}");
    assert!(stdout.contains("warning[missing-set]: the set \"clients\" is missing"), "{stdout}");

    let sets =
        "[[set]]\nname = \"clients\"\ncidrs = [\"10.0.0.1\"]\n[[set]]\nname = \"monitoring\"\ncidrs = [\"10.0.0.2\"]\n";
    fs::write(here.path().join("policy.d/10-sets.toml"), sets).unwrap();
    let (code, stdout, stderr) = nodewall(here.path(), &["preset", "enable", "triton"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "triton is enabled already\n", ""));

    // What somebody edited is theirs.
    fs::write(&copy, triton.copy().replace("5300", "10")).unwrap();
    assert_eq!(state(), "edited");
    for arguments in [&["preset", "enable", "triton"][..], &["preset", "enable", "triton", "--disable"]] {
        let (code, stdout, stderr) = nodewall(here.path(), arguments);
        assert_eq!((code, stdout.as_str()), (1, ""));
        assert_eq!(
            stderr,
            format!("nodewall: {file} was edited, and is left as it is: remove it or give it another name first\n")
        );
        assert!(fs::read_to_string(&copy).unwrap().contains("order = 10\n"));
    }
    fs::remove_file(&copy).unwrap();
    symlink("/dev/null", &copy).unwrap();
    assert_eq!(nodewall(here.path(), &["preset", "enable", "triton"]).0, 1, "a mask is left alone");
    assert!(fs::symlink_metadata(&copy).unwrap().is_symlink());
    fs::remove_file(&copy).unwrap();

    // The copy of another version is brought up to this one's.
    let older = Preset { text: "# Triton, as it was.\n", ..*triton };
    fs::write(&copy, older.copy()).unwrap();
    assert_eq!(state(), "outdated");
    let done = json(&nodewall(here.path(), &["preset", "enable", "triton", "--json"]).1);
    assert_eq!(
        done,
        serde_json::json!({
            "version": 1, "name": "triton", "file": file, "change": "written", "dry_run": false,
        })
    );
    assert_eq!(fs::read_to_string(&copy).unwrap(), triton.copy());

    let (code, stdout, stderr) = nodewall(here.path(), &["preset", "enable", "triton", "--disable"]);
    assert_eq!((code, stdout, stderr.as_str()), (0, format!("triton disabled: {file}\n"), ""));
    assert!(!copy.exists());
    let (code, stdout, _) = nodewall(here.path(), &["preset", "enable", "triton", "--disable"]);
    assert_eq!((code, stdout.as_str()), (0, "triton is not enabled\n"));
}

#[test]
fn enable_tells_of_a_policy_that_cannot_be_and_of_rights_that_are_missing() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        println!("SKIPPED enable_tells_of_a_policy_that_cannot_be_and_of_rights_that_are_missing: needs root");
        return;
    }
    let here = folder();
    let clash =
        "[[policy]]\nname = \"mine\"\ntier = \"platform\"\norder = 5100\ninterfaces = \"all()\"\ningress = []\n";
    fs::write(here.path().join("policy.d/20-mine.toml"), clash).unwrap();
    let (code, _, stderr) = nodewall(here.path(), &["preset", "enable", "kubelet", "--color", "never"]);
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("error[duplicate-order]"), "{stderr}");
    assert!(stderr.ends_with("nodewall: kubelet is not enabled: the policy would have errors with it\n"), "{stderr}");
    assert_eq!(fs::read_dir(here.path().join("policy.d")).unwrap().count(), 1, "nothing is changed");
    // Errors that are there already are no reason, and are said.
    fs::write(here.path().join("policy.d/30-other.toml"), "x = 1\n").unwrap();
    let (code, stdout, stderr) = nodewall(here.path(), &["preset", "enable", "nfs", "--color", "never"]);
    assert_eq!((code, stdout.as_str()), (0, "nfs enabled: policy.d/50-preset-nfs.toml\n"));
    assert!(stderr.contains("error[unknown-key]"), "{stderr}");
    assert_eq!(nodewall(here.path(), &["preset", "enable", "nfs", "--disable"]).0, 0);

    let away = here.path().join("elsewhere");
    let (code, _, stderr) = nodewall(here.path(), &["--policy-dir", "elsewhere", "preset", "enable", "nfs"]);
    assert_eq!(code, 1);
    assert_eq!(stderr, "nodewall: there is no directory elsewhere; create it first\n");
    assert!(!away.exists());

    // A copy of the binary that anybody may run.
    let binary = here.path().join("nodewall");
    fs::copy(env!("CARGO_BIN_EXE_nodewall"), &binary).unwrap();
    fs::set_permissions(here.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let run = |more: &str| {
        let script = format!(
            "cd {}; setpriv --reuid=65534 --regid=65534 --clear-groups ./nodewall --config nodewall.toml --policy-dir policy.d preset {more}",
            here.path().display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = run("enable nfs");
    assert_eq!(
        (code, stderr.as_str()),
        (4, "nodewall: only root may enable or disable a preset; --dry-run says what would be done\n")
    );
    assert_eq!(run("enable nfs --dry-run").0, 0);
    assert_eq!(run("list").0, 0);
    assert!(!here.path().join("policy.d/50-preset-nfs.toml").exists());
}

/// The daemon takes what `preset enable` wrote, says what is missing, and lets clients in once somebody says who they are.
#[test]
fn the_daemon_says_which_sets_are_missing_until_they_are_there() {
    lab::isolated("the_daemon_says_which_sets_are_missing_until_they_are_there", || {
        lab::daemon::management_link();
        let services = fs::read_to_string(at("config/policy.d/00-services.toml")).unwrap();
        let mut node = lab::daemon::Node::new(&[("00-services.toml", &services)]);
        node.run();
        let missing = |status: &Value| {
            let findings = status["findings"].as_array().unwrap().iter();
            let missing = findings.filter(|finding| finding["code"] == "missing-set");
            missing.map(|finding| finding["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (code, _, stderr) = node.nodewall(&["preset", "enable", "triton"]);
        assert_eq!(code, 0, "{stderr}");
        node.until("both sets are said to be missing", |code, status| code == 0 && missing(status).len() == 2);
        let screen = node.nodewall(&["status", "--color", "never"]).1;
        assert!(screen.contains("the set \"clients\" is missing"), "{screen}");
        let rules = || lab::sh("nft list table inet nodewall");
        assert!(!rules().contains("preset-triton#1") && rules().contains("preset-triton#3"), "{}", rules());
        let sets = "[[set]]\nname = \"clients\"\ncidrs = [\"10.77.0.9\"]\n[[set]]\nname = \"monitoring\"\ncidrs = [\"10.77.0.8\"]\n";
        node.write("policy.d/10-sets.toml", sets);
        node.until("nothing is missing", |code, status| code == 0 && missing(status).is_empty());
        assert!(rules().contains("preset-triton#1"), "{}", rules());
        assert_eq!(node.nodewall(&["preset", "enable", "triton", "--disable"]).0, 0);
        node.until("the preset is gone", |_, _| !rules().contains("preset-triton"));
    });
}
