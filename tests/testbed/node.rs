//! The node under test: a network namespace with links to a peer, on which any packet may come in and go anywhere.
//!
//! Where a packet goes is said by what no rule looks at: its DSCP chooses whether it is for this host or leaves it, and by which
//! link; its ECN bits whether somebody else's rules translate its destination or put marks on it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage, recvfrom,
    sendto, setsockopt, socket, sockopt,
};

use crate::lab::net::Host;
use crate::lab::sh;

/// A link of the node: its name, and whether it is a macvlan; the others are veths.
pub struct Link {
    /// Its name on the node.
    pub name: &'static str,
    /// Its kind (`IFLA_INFO_KIND`).
    pub kind: &'static str,
    /// Its index on the node.
    pub index: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Where the peer sends what is to arrive on it.
    peer: SockaddrStorage,
    /// The index of the peer's end.
    peer_index: usize,
}

/// Names and kinds of the links. Policies know some of them and not others (`generate::policy::NAMES`).
const LINKS: [(&str, &str); 8] = [
    ("eth0", "veth"),
    ("eth1", "veth"),
    ("ib0", "veth"),
    ("cali1", "veth"),
    ("cali12", "veth"),
    ("veth9", "veth"),
    ("cal", "macvlan"),
    ("eth", "veth"),
];
/// How many links there are.
pub const LINK_COUNT: usize = LINKS.len();
/// The first of them lead out of the node for forwarded packets, too.
pub const EXITS: usize = 7;

/// Addresses that the node itself has.
pub const OWN_V4: &str = "10.0.0.2";
/// Its IPv6 address.
pub const OWN_V6: &str = "fd00::2";

/// The node and its peer.
pub struct Node {
    /// The node's namespace.
    pub host: Host,
    /// The peer's.
    pub peer: Host,
    /// The links, as in [`LINKS`].
    pub links: Vec<Link>,
    wire: OwnedFd,
    arrivals: OwnedFd,
}

/// The DSCP field (with room for ECN) of a packet that is for this host, or leaves it by a link.
pub const fn way(exit: Option<usize>) -> u8 {
    match exit {
        None => 4,
        Some(0) => 0,
        Some(exit) => 4 + 4 * exit as u8,
    }
}

impl Node {
    /// A new node; without rules, but for those of the witnesses nobody has made yet.
    pub fn new() -> Self {
        let (host, peer) = (Host::new(), Host::new());
        let path = peer.path();
        let mut links = String::new();
        for (number, (name, kind)) in LINKS.iter().enumerate() {
            let under = if *kind == "veth" { name } else { "under" };
            links += &format!("link add {under} address {} type veth peer name p{number} netns {path}\n", mac(number));
            if *kind != "veth" {
                // Frames for a macvlan are for another address than that of the link under it.
                links += &format!("link set {under} address 02:00:00:00:01:00 arp off up\n");
                links += &format!("link add {name} link {under} address {} type macvlan mode private\n", mac(number));
            }
            links += &format!("link set {name} addrgenmode none arp off\nlink set {name} up\n");
        }
        links += &format!("addr add {OWN_V4}/32 dev lo\naddr add {OWN_V6}/128 dev lo nodad\n");
        let routes = ["-4", "-6"].map(|family| {
            let mut links = String::from("rule add pref 10 iif lo lookup 90\n");
            // Answers leave by different links.
            let parts: &[(&str, &str)] = match family {
                "-4" => {
                    &[("default", "eth0"), ("10.0.0.0/29", "eth1"), ("10.0.0.8/29", "ib0"), ("10.0.0.16/29", "cali1")]
                }
                _ => &[("default", "eth0"), ("fd00::/125", "eth1"), ("fd00::8/125", "ib0"), ("fd00::10/125", "cal")],
            };
            for (prefix, link) in parts {
                links += &format!("route add {prefix} dev {link} table 90\n");
            }
            links += &format!("rule add pref 20 tos {:#x} lookup 91\n", way(None));
            links += "route add local default dev lo table 91\n";
            for (number, (name, _)) in LINKS.iter().enumerate() {
                links += &format!("route add default dev {name} table {}\n", 100 + number);
                links += &format!("rule add pref 5 oif {name} lookup {}\n", 100 + number);
                if number > 0 && number < EXITS {
                    let dscp = way(Some(number));
                    links += &format!("rule add pref 20 tos {dscp:#x} lookup {}\n", 100 + number);
                }
            }
            links += "rule add pref 30 lookup 100\n";
            (family, links)
        });
        peer.enter(|| set(&[("ipv6/conf/default/disable_ipv6", "1"), ("ipv6/conf/all/disable_ipv6", "1")]));
        host.enter(|| {
            set(&SETTINGS);
            ip_batch("", &links);
            for (family, routes) in &routes {
                ip_batch(family, routes);
            }
            // What a link was given when it came to be counts as well.
            let names = LINKS.iter().map(|(name, _)| *name).chain(["under"]);
            for name in names {
                for (setting, value) in [("rp_filter", "0"), ("send_redirects", "0"), ("accept_local", "1")] {
                    let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/{setting}"), value);
                }
            }
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/under/disable_ipv6", "1");
        });
        let script: String = (0..LINKS.len()).map(|number| format!("link set p{number} arp off up\n")).collect();
        let (ends, wire, arrivals) = peer.enter(|| {
            ip_batch("", &script);
            let ends: Vec<SockaddrStorage> = (0..LINKS.len()).map(|number| end_of(&format!("p{number}"))).collect();
            let open = |protocol| socket(AddressFamily::Packet, SockType::Raw, flags(), protocol).expect("a socket");
            let arrivals = open(Some(SockProtocol::EthAll));
            setsockopt(&arrivals, sockopt::RcvBufForce, &(64 << 20)).expect("a large buffer");
            (ends, open(None), arrivals)
        });
        let indices = host.enter(|| LINKS.map(|(name, _)| nix::net::if_::if_nametoindex(name).expect("a link")));
        let links = LINKS.iter().zip(ends).zip(indices).enumerate().map(|(number, (((name, kind), peer), index))| {
            let peer_index = peer.as_link_addr().map_or(0, LinkAddr::ifindex);
            Link { name, kind, index, mac: octets(number), peer, peer_index }
        });
        let links = links.collect();
        Self { links, host, peer, wire, arrivals }
    }

    /// Sends a frame so that it arrives on a link.
    pub fn inject(&self, link: usize, frame: &[u8]) {
        let to: &dyn SockaddrLike = &self.links[link].peer;
        match sendto(self.wire.as_raw_fd(), frame, to, MsgFlags::empty()) {
            Ok(_) => {}
            Err(errno) => panic!("a frame of {} bytes on {}: {errno}", frame.len(), self.links[link].name),
        }
    }

    /// What has arrived at the peer since it was last asked: by which link, and the frame.
    pub fn arrived(&self) -> Vec<(usize, Vec<u8>)> {
        let mut found = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = recvfrom::<LinkAddr>(self.arrivals.as_raw_fd(), &mut buffer) {
            let Some(from) = from else { continue };
            // PACKET_OUTGOING (linux/if_packet.h): what the peer itself has sent.
            if from.pkttype() == 4 {
                continue;
            }
            if let Some(link) = self.links.iter().position(|link| link.peer_index == from.ifindex()) {
                found.push((link, buffer[..length].to_vec()));
            }
        }
        found
    }

    /// The name of an interface of the node.
    pub fn name_of(&self, index: u32) -> &'static str {
        match self.links.iter().find(|link| link.index == index) {
            Some(link) => link.name,
            None if index == 1 => "lo",
            None => "under",
        }
    }

    /// Its kind.
    pub fn kind_of(&self, index: u32) -> Option<&'static str> {
        match self.links.iter().find(|link| link.index == index) {
            Some(link) => Some(link.kind),
            None if index == 1 => None,
            None => Some("veth"),
        }
    }
}

fn flags() -> SockFlag {
    SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK
}

fn octets(number: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, number as u8 + 1]
}

fn mac(number: usize) -> String {
    octets(number).map(|octet| format!("{octet:02x}")).join(":")
}

/// A link-layer address that leads out by an interface of this namespace.
fn end_of(name: &str) -> SockaddrStorage {
    let mut all = getifaddrs().expect("the interfaces");
    let end = all
        .find_map(|one| one.address.filter(|address| one.interface_name == name && address.as_link_addr().is_some()));
    end.expect("the peer's end of a link")
}

fn ip_batch(family: &str, text: &str) {
    let file = std::env::temp_dir().join(format!("nodewall-links-{}-{}", std::process::id(), nix::unistd::gettid()));
    std::fs::write(&file, text).expect("a temporary file");
    sh(&format!("ip {family} -batch {}", file.display()));
    let _ = std::fs::remove_file(file);
}

/// Everything that would keep an odd packet from getting to the rules is off, and so is everything that the node says unasked.
const SETTINGS: [(&str, &str); 25] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_local", "1"),
    ("ipv4/conf/default/accept_local", "1"),
    ("ipv4/conf/all/route_localnet", "1"),
    ("ipv4/conf/default/route_localnet", "1"),
    ("ipv4/conf/all/accept_source_route", "1"),
    ("ipv4/conf/default/accept_source_route", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/tcp_syn_retries", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/mldv2_unsolicited_report_interval", "0"),
    ("ipv6/auto_flowlabels", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/icmp_echo_ignore_broadcasts", "0"),
    ("ipv4/ipfrag_time", "5"),
    ("ipv6/ip6frag_time", "5"),
    ("netfilter/nf_conntrack_frag6_timeout", "5"),
];

fn set(settings: &[(&str, &str)]) {
    for (name, value) in settings {
        // Some are global on some kernels, and then they are not ours to set.
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
}
