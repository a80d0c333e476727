//! Another machine from a copy of its /sys and /proc.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

use super::{devices, ports, sysfs};
use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;

/// The facts of another machine from a copy of its /sys and /proc below `root`. What is not there is not known; nothing of
/// this machine is looked at.
///
/// sysfs does not name the kind of every software device: `DEVTYPE` does for most; a veth is known by its peer's index, a
/// tun or tap by its flags. Alternative names are not in sysfs at all. /proc has IPv4 addresses without their
/// interfaces, so that each goes to the one with the connected route it is in, and what has none to the loopback device.
pub fn collect_fixture(root: &Path) -> Facts {
    let mut links: BTreeMap<u32, Link> = sysfs::names(&root.join("sys/class/net"))
        .iter()
        .filter_map(|name| link(root, name))
        .map(|link| (link.index, link))
        .collect();
    let names: BTreeMap<u32, InterfaceName> = links.iter().map(|(index, link)| (*index, link.name.clone())).collect();
    for link in links.values_mut() {
        let directory = sysfs::directory(root, link.name.as_str());
        let below = sysfs::number(&directory.join("iflink")).and_then(|index| u32::try_from(index).ok());
        // The index of a veth's peer counts in the peer's namespace, which is another one for every pod.
        if link.kind.as_deref() != Some("veth") {
            link.parent = below.filter(|index| *index != link.index).and_then(|index| names.get(&index).cloned());
        }
    }
    let routes = v4_routes(root);
    add_v4_addresses(root, &routes, &mut links);
    add_v6_addresses(root, &mut links);
    for name in routes
        .iter()
        .filter(|route| route.network.prefix_len() == 0)
        .map(|route| route.interface.clone())
        .chain(v6_default_routes(root))
    {
        if let Some(link) = links.values_mut().find(|link| link.name.as_str() == name) {
            link.default_route = true;
        }
    }
    let mut facts = Facts { node: sysfs::host_name(root), links, ports: ports::read(root), ..Facts::default() };
    devices::add(root, &mut facts, BTreeMap::new());
    facts
}

/// `IFF_UP` (netdevice(7)).
const IFF_UP: u64 = 1;

fn link(root: &Path, name: &str) -> Option<Link> {
    let directory = sysfs::directory(root, name);
    let index = u32::try_from(sysfs::number(&directory.join("ifindex"))?).ok()?;
    let mut link = Link::named(index, InterfaceName::new(name)?);
    link.kind = kind(&directory, index);
    link.hardware =
        sysfs::number(&directory.join("type")).and_then(|value| u16::try_from(value).ok()).unwrap_or(link.hardware);
    link.mac = sysfs::text(&directory.join("address"));
    link.master = sysfs::target_name(&directory.join("master")).and_then(|name| InterfaceName::new(&name));
    link.up = sysfs::number(&directory.join("flags")).is_some_and(|flags| flags & IFF_UP != 0);
    sysfs::add_device(root, &mut link);
    Some(link)
}

/// The rtnetlink kind as far as sysfs tells it.
fn kind(directory: &Path, index: u32) -> Option<String> {
    // A device of its own is hardware; "wlan" and the like are no rtnetlink kinds.
    if directory.join("device").exists() {
        return None;
    }
    let uevent = sysfs::text(&directory.join("uevent")).unwrap_or_default();
    if let Some(kind) = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")) {
        return Some(kind.trim().to_owned());
    }
    let has = |name: &str| directory.join(name).exists();
    let peer = sysfs::number(&directory.join("iflink")).is_some_and(|other| other != u64::from(index) && other != 0);
    match () {
        () if has("bridge") => Some("bridge"),
        () if has("bonding") => Some("bond"),
        () if has("tun_flags") => Some("tun"),
        () if peer => Some("veth"),
        () => None,
    }
    .map(str::to_owned)
}

/// One line of /proc/net/route.
struct V4Route {
    interface: String,
    network: Ipv4Net,
    connected: bool,
}

/// The routes of the main table: "Iface Destination Gateway Flags RefCnt Use Metric Mask ...", addresses as hexadecimal
/// numbers of the machine's byte order (kernel `fib_route_seq_show`); every machine nodewall runs on is little-endian.
fn v4_routes(root: &Path) -> Vec<V4Route> {
    let text = sysfs::text(&root.join("proc/net/route")).unwrap_or_default();
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(|bits| Ipv4Addr::from_bits(bits.swap_bytes()));
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let network = Ipv4Net::with_netmask(address(fields.get(1)?)?, address(fields.get(7)?)?).ok()?;
            let connected = *fields.get(2)? == "00000000";
            // RTF_UP and not RTF_REJECT: an unreachable default route leads nowhere.
            let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
            let usable = flags & 0x1 != 0 && flags & 0x200 == 0;
            usable.then(|| V4Route { interface: (*fields.first().unwrap_or(&"")).to_owned(), network, connected })
        })
        .collect()
}

/// The IPv4 addresses: the lines "/32 host LOCAL" of /proc/net/fib_trie, each below the line with its address.
fn add_v4_addresses(root: &Path, routes: &[V4Route], links: &mut BTreeMap<u32, Link>) {
    let text = sysfs::text(&root.join("proc/net/fib_trie")).unwrap_or_default();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        if let Some(written) = line.trim_start().strip_prefix("|-- ") {
            last = written.trim().parse().ok();
        }
        if !line.trim_start().starts_with("/32 host LOCAL") {
            continue;
        }
        let Some(address) = last else { continue };
        let route = routes
            .iter()
            .filter(|route| route.connected && route.network.prefix_len() > 0 && route.network.contains(&address))
            .max_by_key(|route| route.network.prefix_len());
        let (name, length) = match route {
            Some(route) => (Some(route.interface.as_str()), route.network.prefix_len()),
            None if address.is_loopback() => (None, 8),
            None => (None, 32),
        };
        let link = links.values_mut().find(|link| match name {
            Some(name) => link.name.as_str() == name,
            None => link.link_layer() == "loopback",
        });
        if let (Some(link), Ok(net)) = (link, IpNet::new(IpAddr::V4(address), length)) {
            link.addresses.insert(net);
        }
    }
}

fn v6(field: &str) -> Option<Ipv6Addr> {
    (field.len() == 32).then(|| u128::from_str_radix(field, 16).ok())?.map(Ipv6Addr::from_bits)
}

/// /proc/net/if_inet6: "ADDRESS INDEX LENGTH SCOPE FLAGS NAME", numbers in hexadecimal.
fn add_v6_addresses(root: &Path, links: &mut BTreeMap<u32, Link>) {
    let text = sysfs::text(&root.join("proc/net/if_inet6")).unwrap_or_default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, length, _, _, name] = fields.as_slice() else { continue };
        let net = v6(address)
            .zip(u8::from_str_radix(length, 16).ok())
            .and_then(|(address, length)| IpNet::new(IpAddr::V6(address), length).ok());
        let link = links.values_mut().find(|link| link.name.as_str() == *name);
        if let (Some(link), Some(net)) = (link, net) {
            link.addresses.insert(net);
        }
    }
}

/// The interfaces of default routes in /proc/net/ipv6_route: "DESTINATION LENGTH SOURCE LENGTH GATEWAY METRIC REFCNT USE
/// FLAGS NAME". The kernel lists its reject routes on "lo" there, too.
fn v6_default_routes(root: &Path) -> Vec<String> {
    let text = sysfs::text(&root.join("proc/net/ipv6_route")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [destination, length, _, _, _, _, _, _, flags, name] = fields.as_slice() else { return None };
            let flags = u32::from_str_radix(flags, 16).ok()?;
            let is_default = v6(destination)?.is_unspecified() && *length == "00";
            let usable = flags & 0x1 != 0 && flags & 0x200 == 0 && *name != "lo";
            (is_default && usable).then(|| (*name).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// A link on one line: what is known and not the default.
    fn line(link: &Link) -> String {
        let mut line = format!("{} {} {}", link.index, link.name, link.link_layer());
        let mut add = |label: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _ = write!(line, " {label}={value}");
            }
        };
        add("kind", link.kind.as_deref());
        add("driver", link.driver.as_deref());
        add("bus", link.bus.as_deref());
        add("pci", link.pci.as_deref());
        add("rdma", link.rdma.as_deref());
        add("mac", link.mac.as_deref());
        add("master", link.master.as_ref().map(InterfaceName::as_str));
        add("parent", link.parent.as_ref().map(InterfaceName::as_str));
        for address in &link.addresses {
            let _ = write!(line, " {address}");
        }
        let flags = [(!link.up, " down"), (link.default_route, " default")];
        flags.iter().filter(|(on, _)| *on).for_each(|(_, word)| line.push_str(word));
        line
    }

    #[track_caller]
    fn check(node: &str, expected: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(node);
        let facts = collect_fixture(&root);
        assert_eq!(facts.node, node);
        let lines: Vec<String> = facts.links.values().map(line).collect();
        assert_eq!(lines.join("\n"), expected.trim());
    }

    #[test]
    fn a_training_node() {
        check(
            "training-node",
            "
1 lo loopback mac=00:00:00:00:00:00 127.0.0.1/8 192.168.21.0/32 ::1/128
2 eno1 ethernet driver=igb bus=pci pci=0000:02:00.0 mac=3c:ec:ef:00:00:01 10.0.1.21/16 fd00::1:21/64 default
3 enp193s0f0np0 ethernet driver=mlx5_core bus=pci pci=0000:c1:00.0 rdma=mlx5_0 mac=b8:3f:d2:00:00:00 10.100.0.21/24
4 enp293s0f0np0 ethernet driver=mlx5_core bus=pci pci=0000:c2:00.0 rdma=mlx5_1 mac=b8:3f:d2:00:00:01 10.101.0.21/24
5 ens8f0 ethernet driver=mlx5_core bus=pci pci=0000:81:00.0 mac=b8:3f:d2:00:00:10 10.50.0.21/24
6 enx0a1b2c3d4e5f ethernet driver=cdc_ether bus=usb pci=0000:00:14.0 mac=0a:1b:2c:3d:4e:5f 169.254.3.1/24
7 docker0 ethernet kind=bridge mac=02:42:00:00:00:01 172.17.0.1/16 down
8 cali1a2b3c4d5e6 ethernet kind=veth mac=ee:ee:ee:ee:ee:ee
9 calif0e1d2c3b4a ethernet kind=veth mac=ee:ee:ee:ee:ee:ee
10 vxlan.calico ethernet kind=vxlan mac=66:00:00:00:00:01
",
        );
    }

    #[test]
    fn an_edge_node() {
        check(
            "edge-node",
            "
1 lo loopback mac=00:00:00:00:00:00 127.0.0.1/8 ::1/128
2 eth0 ethernet driver=nvethernet bus=platform mac=48:b0:2d:00:00:01 192.168.7.40/24 default
3 eth1 ethernet driver=virtio_net bus=virtio pci=0000:00:03.0 mac=48:b0:2d:00:00:02 10.20.0.4/24
4 wg0 other kind=wireguard 10.99.0.4/24
5 eth1.100 ethernet kind=vlan mac=48:b0:2d:00:00:02 parent=eth1 10.100.0.4/24
",
        );
    }

    #[test]
    fn a_root_without_anything_is_a_node_without_anything() {
        assert_eq!(collect_fixture(Path::new("/nonexistent")), Facts::default());
    }
}
