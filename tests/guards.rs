//! The guards: what they come to with settings and documents, and real packets that meet them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::net::{Host, Servers, wire};
use nodewall::compile::compile;
use nodewall::config;
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::Facts;
use nodewall::policy::effective::Effective;
use nodewall::policy::guards::{NAMES, TIER};
use nodewall::policy::resolve::resolve;
use nodewall::source;
use nodewall::text::finding::Severity;
use socket2::{Domain, Protocol, Socket, Type};

/// Roles that veth pairs cannot show by their hardware, and a policy that lets everything through.
const OPEN: &str = r#"
[[interface]]
name  = "rails"
match = { name = "rail*" }
role  = "rail"

[[interface]]
name  = "bmc"
match = { name = "bmc*" }
role  = "bmc"

[[interface]]
name  = "dpu"
match = { name = "dpu*" }
role  = "dpu"

[[policy]]
name       = "open"
order      = 1
interfaces = "all()"
ingress    = [{ action = "allow" }]
egress     = [{ action = "allow" }]
"#;

/// What arrives in spite of a busy machine, and what is not to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(300);

fn effective(settings: &str, policy: &str, facts: &Facts) -> Effective {
    let (config, mut findings) = config::decode_text("nodewall.toml", settings);
    let mut sourced = source::decode_text("policy.toml", policy);
    sourced.policy.guard(source::guards::shipped(), &config.guards);
    let (effective, resolved) = resolve(&sourced.policy, &config.settings, facts);
    findings.extend(sourced.findings.into_iter().chain(resolved));
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:#?}");
    let built_in = |finding: &&nodewall::text::finding::Finding| finding.place.to_string().contains("guards");
    assert_eq!(findings.iter().find(built_in), None);
    effective
}

/// The names of the guards in force, each with the file that it is from.
fn guards(effective: &Effective) -> Vec<(String, String)> {
    let tier = effective.tiers.first().unwrap();
    assert_eq!(tier.name, TIER, "the guards go first");
    tier.policies.iter().map(|guard| (guard.name.clone(), guard.place.file.to_string())).collect()
}

#[test]
fn all_guards_hold_but_those_that_are_off_or_replaced() {
    let of = |settings: &str, policy: &str| guards(&effective(settings, policy, &Facts::default()));
    let shipped = |names: &[&str]| -> Vec<(String, String)> {
        names.iter().map(|name| ((*name).to_owned(), "built-in: guards".to_owned())).collect()
    };
    assert_eq!(of("", ""), shipped(&NAMES));
    assert_eq!(of("[guards]\noff = [\"guard-bmc\", \"guard-dpu\"]\n", ""), shipped(&NAMES[..3]));
    let own = "[[policy]]\nname = \"guard-metadata\"\ntier = \"guards\"\norder = 5\ninterfaces = \"all()\"\n\
               egress = [{ action = \"pass\" }]\n";
    let with_own = of("", own);
    assert_eq!(with_own[0], ("guard-metadata".to_owned(), "policy.toml".to_owned()));
    assert_eq!(with_own[1..], shipped(&NAMES[1..]));
}

#[test]
fn what_the_guards_withhold_from_the_essentials_goes_with_them() {
    let rail = "[[interface]]\nname = \"rails\"\nmatch = { name = \"rail*\" }\nrole = \"rail\"\n";
    let chains = |settings: &str| -> Vec<String> {
        let ruleset = compile(&effective(settings, rail, &Facts::default()));
        ruleset.chains.keys().filter(|name| name.starts_with("essential_")).cloned().collect()
    };
    let always = ["essential_in", "essential_out"];
    assert_eq!(chains("[guards]\noff = [\"guard-router-advertisements\", \"guard-dhcp-server\"]\n"), always);
    let without_dhcp = chains("[guards]\noff = [\"guard-dhcp-server\"]\n");
    assert_eq!(without_dhcp, ["essential_advertisements", "essential_in", "essential_out"]);
}

/// A node with a management link, a rail, a BMC and a DPU, and what is behind each; `10.N.0.5` is the node's address on link N.
struct Lab {
    node: Host,
    behind: Vec<Host>,
    _servers: Vec<Servers>,
}

const LINKS: [&str; 4] = ["mgmt0", "rail0", "bmc0", "dpu0"];

impl Lab {
    fn new() -> Self {
        let node = Host::new();
        let behind: Vec<Host> = LINKS.iter().map(|_| Host::new()).collect();
        for ((link, host), number) in LINKS.iter().zip(&behind).zip(1..) {
            let (here, there) = (format!("10.{number}.0.5/24"), format!("10.{number}.0.1/24"));
            let metadata = ["169.254.169.254/32", "fd00:ec2::254/64"].into_iter().filter(|_| number == 1);
            let there: Vec<&str> = metadata.chain([there.as_str()]).collect();
            let ula = ["fd00:ec2::5/64"].into_iter().filter(|_| number == 1);
            let here: Vec<&str> = ula.chain([here.as_str()]).collect();
            wire((&node, link, &here), (host, "eth0", &there));
        }
        node.sh("ip route add default via 10.1.0.1; ip route add 169.254.169.254/32 dev mgmt0");
        let servers = behind.iter().chain([&node]).map(|host| host.serve(&[22, 80, 443], &[])).collect();
        Self { node, behind, _servers: servers }
    }

    fn load(&self, settings: &str) {
        let ruleset = compile(&effective(settings, OPEN, &self.node.facts()));
        self.node.enter(|| driver::apply(&mut Netlink::open().unwrap(), &ruleset, None).unwrap());
    }

    /// Whether a user of a host comes through to a TCP port.
    fn connects(&self, host: &Host, user: u32, address: &str, port: u16) -> bool {
        let shell = format!("exec 3<>/dev/tcp/{address}/{port}");
        let arguments = ["2", "bash", "-c", &shell];
        let run = || Command::new("timeout").args(arguments).uid(user).gid(user).output().unwrap().status;
        host.enter(run).success()
    }

    /// A router advertisement to the node's link-local address on a link.
    fn advertise(&self, link: usize) {
        let words = self.node.sh(&format!("ip -6 -o addr show dev {} scope link", LINKS[link]));
        let address = words.split_whitespace().find(|word| word.starts_with("fe80")).unwrap();
        let address = address.split('/').next().unwrap().parse().unwrap();
        self.behind[link].enter(|| {
            let socket = Socket::new(Domain::IPV6, Type::from(nix::libc::SOCK_RAW), Some(Protocol::ICMPV6)).unwrap();
            socket.set_unicast_hops_v6(255).unwrap();
            let index = nix::net::if_::if_nametoindex("eth0").unwrap();
            // RFC 4861 section 4.2: hop limit 64, a router for 1800 seconds, nothing about timers.
            let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
            let to = SocketAddrV6::new(address, 0, 0, index).into();
            // The kernel gives a link that came up its addresses when it gets round to it.
            let until = Instant::now() + PATIENCE;
            while let Err(error) = socket.send_to(&message, &to) {
                assert!(Instant::now() < until, "{error}");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }

    /// Whether the node has learned a router on a link, within a time.
    fn learns(&self, link: usize, within: Duration) -> bool {
        let until = Instant::now() + within;
        let command = format!("ip -6 route show default dev {} proto ra", LINKS[link]);
        while self.node.sh(&command).trim().is_empty() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Whether the answer of a DHCP server on a link gets to the client on the node.
    fn leased(&self, link: usize) -> bool {
        let number = link + 1;
        let client = self.node.enter(|| UdpSocket::bind("0.0.0.0:68").unwrap());
        let server = self.behind[link].enter(|| UdpSocket::bind(format!("10.{number}.0.1:67")).unwrap());
        let to: SocketAddr = format!("10.{number}.0.5:68").parse().unwrap();
        let until = Instant::now() + PATIENCE;
        // Before the neighbours know each other a packet may be lost; what is denied is denied every time.
        for attempt in 0.. {
            server.send_to(b"offer", to).unwrap();
            client.set_read_timeout(Some(SILENCE)).unwrap();
            if client.recv(&mut [0; 16]).is_ok() {
                return true;
            }
            if attempt == 2 || Instant::now() > until {
                break;
            }
        }
        false
    }
}

#[test]
fn routers_and_dhcp_servers_are_heard_on_the_management_link_and_not_on_a_rail() {
    if !lab::may_run("routers_and_dhcp_servers_are_heard_on_the_management_link_and_not_on_a_rail") {
        return;
    }
    let lab = Lab::new();
    for link in ["mgmt0", "rail0"] {
        lab.node.sh(&format!("echo 2 > /proc/sys/net/ipv6/conf/{link}/accept_ra"));
    }
    lab.load("");
    lab.advertise(1);
    lab.advertise(0);
    assert!(lab.learns(0, PATIENCE), "essential on the management link");
    assert!(!lab.learns(1, SILENCE), "the guard drops it on the rail");
    assert!(lab.leased(0), "essential on the management link");
    assert!(!lab.leased(1), "the guard drops it on the rail");

    lab.load("[guards]\noff = [\"guard-router-advertisements\", \"guard-dhcp-server\"]\n");
    lab.advertise(1);
    assert!(lab.learns(1, PATIENCE), "switched off");
    assert!(lab.leased(1), "switched off");
}

#[test]
fn the_metadata_service_is_for_root_or_whom_the_settings_name() {
    if !lab::may_run("the_metadata_service_is_for_root_or_whom_the_settings_name") {
        return;
    }
    let lab = Lab::new();
    let who = |address: &str| [0, 65534, 4711].map(|user| lab.connects(&lab.node, user, address, 80));
    for (settings, expected) in [
        ("[guards]\noff = [\"guard-metadata\"]\n", [true, true, true]),
        ("", [true, false, false]),
        ("[guards]\nmetadata = { users = [4711] }\n", [false, false, true]),
        ("[guards]\nmetadata = {}\n", [false, false, false]),
        ("mode = \"audit\"\n", [true, true, true]),
    ] {
        lab.load(settings);
        assert_eq!(who("169.254.169.254"), expected, "{settings}");
        assert_eq!(who("fd00:ec2::254"), expected, "{settings}");
        assert_eq!(who("10.1.0.1"), [true, true, true], "other addresses: {settings}");
    }
}

#[test]
fn to_the_bmc_goes_redfish_from_root_and_to_the_dpu_ssh_from_root() {
    if !lab::may_run("to_the_bmc_goes_redfish_from_root_and_to_the_dpu_ssh_from_root") {
        return;
    }
    let lab = Lab::new();
    let out = |address: &str| {
        let ports = [22, 80, 443];
        [0, 65534].map(|user| ports.map(|port| lab.connects(&lab.node, user, address, port)))
    };
    let comes_in = |link: usize| lab.connects(&lab.behind[link], 0, &format!("10.{}.0.5", link + 1), 80);
    lab.load("");
    assert_eq!(out("10.3.0.1"), [[false, false, true], [false, false, false]], "the BMC");
    assert_eq!(out("10.4.0.1"), [[true, false, false], [false, false, false]], "the DPU");
    assert_eq!([1, 2, 3].map(comes_in), [true, false, false], "rail, BMC and DPU");
    lab.load("[guards]\noff = [\"guard-bmc\"]\n");
    assert_eq!(out("10.3.0.1"), [[true; 3]; 2], "switched off");
    assert_eq!([1, 2, 3].map(comes_in), [true, true, false], "rail, BMC and DPU");
}
