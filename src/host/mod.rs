//! What this machine is: links, addresses and routes by rtnetlink, devices by sysfs, accounts by the name service, units by their
//! control groups; all below a root directory, so that a fixture can be another machine.

pub mod accounts;
pub mod advice;
mod ask;
pub mod attribute;
pub mod cgroup;
mod cgroup_paths;
mod cgroup_watch;
pub mod coexistence;
pub mod device_watch;
mod devices;
pub mod devlink;
pub mod diag;
mod fixture;
pub mod ipvs;
pub mod listeners;
mod netlink;
pub mod nldev;
pub mod owner;
mod ports;
mod processes;
pub mod rdma_cm;
mod sysfs;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::net::facts::{Facts, Link};
use crate::net::interface::InterfaceName;
use crate::policy::local::LocalNames;
use accounts::Looked;

pub use cgroup_watch::{CgroupWatch, Scanner};
pub use fixture::collect_fixture;
pub use watch::{Changed, Watch};

/// What went wrong while looking at the machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// rtnetlink did not answer.
    #[error("cannot {attempt} by rtnetlink")]
    Netlink {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// The facts of this machine: rtnetlink for links, addresses and routes of this network namespace, RDMA netlink, devlink and sysfs below
/// `root` for devices.
/// [`Facts::labels`] and [`Facts::api_servers`] stay empty: they come from settings and from the kubeconfig. So do accounts and
/// units: which ones matter, the documents say ([`add_local`]).
///
/// # Errors
/// When rtnetlink does not answer; a sysfs file that cannot be read only leaves its fact out.
pub async fn collect(root: &Path) -> Result<Facts, Error> {
    collect_again(root, None).await
}

/// The same, after what was known before. When only links have come and gone that are software, nothing is asked about devices: some of
/// it takes a command of a card's firmware, and a node that starts pods has such changes all the time.
///
/// # Errors
/// As [`collect`].
pub async fn collect_again(root: &Path, known: Option<Facts>) -> Result<Facts, Error> {
    let mut links = netlink::links().await?;
    // A message that the rtnetlink crate cannot decode is one link less, without an error; such a link is still there, and
    // its name and type are better known from sysfs than not at all.
    for (index, name) in netlink::names() {
        if !links.contains_key(&index)
            && let Some(name) = InterfaceName::new(&name)
        {
            let mut link = Link::named(index, name);
            if let Some(hardware) = sysfs::hardware(root, &link) {
                link.hardware = hardware;
            }
            links.insert(index, link);
        }
    }
    netlink::add_addresses(&mut links).await?;
    netlink::add_default_routes(&mut links).await?;
    netlink::add_tc_hooks(&mut links).await?;
    let root = root.to_owned();
    // A driver may take its time to tell a speed, and there are many small files.
    let devices = tokio::task::spawn_blocking(move || add_devices(&root, links, known)).await;
    devices.map_err(|error| Error::Netlink { attempt: "look at devices", source: io::Error::other(error) })
}

/// What the host is called (`kernel.hostname`), or nothing.
pub fn name(root: &Path) -> String {
    sysfs::host_name(root)
}

/// What is known of the links and of the devices behind them.
fn add_devices(root: &Path, mut links: BTreeMap<u32, Link>, known: Option<Facts>) -> Facts {
    let node = sysfs::host_name(root);
    if let Some(known) = known.filter(|known| same_hardware(&known.links, &links)) {
        for (index, link) in &mut links {
            match known.links.get(index) {
                Some(before) if is_same(before, link) => same_device(before, link),
                _ => sysfs::add_device(root, link),
            }
        }
        let Facts { rdma, gpus, functions, subfunctions, sockets, .. } = known;
        let ports = ports::read(root);
        return Facts { node, links, rdma, gpus, functions, subfunctions, sockets, ports, ..Facts::default() };
    }
    for link in links.values_mut() {
        sysfs::add_device(root, link);
    }
    if links.values().any(|link| link.location.is_some()) {
        for (index, port) in devlink::ports() {
            if let Some(link) = links.get_mut(&index).filter(|link| link.name.as_str() == port.name) {
                link.flavour = Some(port.flavour);
            }
        }
    }
    let mut facts = Facts { node, links, ports: ports::read(root), ..Facts::default() };
    devices::add(root, &mut facts, nldev::devices(root));
    facts
}

/// Kinds of links that have no device and that no RDMA device is told to be on.
const SOFTWARE_KINDS: &[&str] = &["veth", "netkit", "bridge", "vxlan", "geneve", "wireguard", "tun"];

/// Whether two sets of links differ at most in links that are software.
fn same_hardware(before: &BTreeMap<u32, Link>, now: &BTreeMap<u32, Link>) -> bool {
    let software = |link: Option<&Link>| {
        link.is_none_or(|link| {
            let kind = link.kind.as_deref().is_some_and(|kind| SOFTWARE_KINDS.contains(&kind));
            kind && link.location.is_none() && link.rdma.is_none()
        })
    };
    let indexes: BTreeSet<u32> = before.keys().chain(now.keys()).copied().collect();
    indexes.into_iter().all(|index| match (before.get(&index), now.get(&index)) {
        (Some(before), Some(now)) if is_same(before, now) => true,
        (before, now) => software(before) && software(now),
    })
}

/// Whether this is still the same link, as far as rtnetlink tells.
fn is_same(before: &Link, now: &Link) -> bool {
    before.name == now.name && before.kind == now.kind && before.hardware == now.hardware && before.mac == now.mac
}

/// What is behind a link that is still the same.
fn same_device(before: &Link, link: &mut Link) {
    let Link { driver, bus, pci, rdma, location, speed, physfn, sriov, switch, port, flavour, .. } = before.clone();
    *link = Link { driver, bus, pci, rdma, location, speed, physfn, sriov, switch, port, flavour, ..link.clone() };
}

/// Adds what a policy needs to know of accounts and units to the facts of the machine below `root`; what there is to say about it.
/// A name service that does not answer within `limit` knows nobody.
pub fn add_local(facts: &mut Facts, root: &Path, names: &LocalNames, limit: Duration) -> Vec<String> {
    let mut troubles = BTreeSet::new();
    if names.has_accounts() {
        let accounts = accounts::look_up_within(limit, root, names);
        for (name, looked) in accounts.users.iter().chain(&accounts.groups) {
            if let Looked::Failed(why) = looked {
                troubles.insert(format!("cannot look up the account \"{name}\": {why}"));
            }
        }
        (facts.users, facts.groups) = (accounts::found(&accounts.users), accounts::found(&accounts.groups));
    }
    if !names.units.is_empty() {
        match cgroup::find(root) {
            Some(hierarchy) => {
                let scan = cgroup::scan(&hierarchy, &names.units);
                facts.units = scan.units;
                troubles.extend(scan.incomplete);
            }
            None => drop(troubles.insert("no hierarchy of cgroup v2 is mounted".to_owned())),
        }
    }
    troubles.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs ip(8) in the calling thread's network namespace.
    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    /// Runs a test in a network namespace of its own.
    fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn links_addresses_and_routes_are_this_namespaces() {
        in_namespace(|| async {
            ip("link set lo up");
            ip("link add mgmt0 type veth peer name peer0");
            ip("link property add dev mgmt0 altname management-network-port0");
            ip("link add br0 type bridge");
            ip("link set peer0 master br0");
            ip("link add rail0 type veth peer name peer1");
            ip("link add link rail0 name mac0 type macvlan");
            ip("addr add 10.77.0.2/24 dev mgmt0");
            ip("addr add 10.99.0.1 peer 10.99.0.2/32 dev rail0");
            ip("addr add fd77::2/64 dev mgmt0 nodad");
            for link in ["mgmt0", "peer0", "rail0", "peer1"] {
                ip(&format!("link set {link} up"));
            }
            let facts = collect(Path::new("/")).await.unwrap();
            assert!(facts.links.values().all(|link| !link.default_route));

            ip("route add default nexthop via 10.77.0.1 nexthop dev rail0");
            ip("-6 route add default via fd77::1 dev mgmt0");
            ip("route add default dev peer1 table 100");
            let facts = collect(Path::new("/")).await.unwrap();
            let link = |name: &str| facts.link(name).unwrap();
            let mgmt = link("mgmt0");
            assert_eq!(mgmt.kind.as_deref(), Some("veth"));
            assert_eq!(mgmt.altnames, ["management-network-port0"]);
            assert!(mgmt.up && mgmt.default_route);
            assert_eq!((mgmt.hardware, mgmt.mac.as_ref().unwrap().len()), (1, 17));
            for address in ["10.77.0.2/24", "fd77::2/64"] {
                assert!(mgmt.addresses.contains(&address.parse().unwrap()), "{address}");
            }
            let own: Vec<String> =
                link("rail0").addresses.iter().filter(|net| net.addr().is_ipv4()).map(ToString::to_string).collect();
            assert_eq!(own, ["10.99.0.1/32"], "ours, not the peer's");
            assert!(link("rail0").default_route, "the second path");
            assert!(!link("peer1").default_route, "another table");
            assert_eq!(link("peer0").master, InterfaceName::new("br0"));
            assert_eq!(link("mac0").parent, InterfaceName::new("rail0"));
            assert!(!link("mac0").up);
            assert_eq!(link("lo").link_layer(), "loopback");
            assert_eq!((&link("mgmt0").driver, &link("mgmt0").pci), (&None, &None));
        });
    }

    #[test]
    fn what_is_asked_again_is_what_would_have_been_found() {
        in_namespace(|| async {
            ip("link add a0 type veth peer name a1");
            let before = collect(Path::new("/")).await.unwrap();
            for change in [
                "link add b0 type veth peer name b1",
                "link add br0 type bridge",
                "link set b0 master br0",
                "link set b1 name b2",
                "link set a0 address 02:00:00:00:00:07",
                "link add link a0 name m0 type macvlan",
                "addr add 10.5.0.1/24 dev a0",
                "link del b2",
            ] {
                ip(change);
                let again = collect_again(Path::new("/"), Some(before.clone())).await.unwrap();
                assert_eq!(again, collect(Path::new("/")).await.unwrap(), "{change}");
            }
        });
    }

    #[test]
    fn devices_are_asked_about_when_hardware_comes_goes_or_changes() {
        let link = |index: u32, name: &str, kind: Option<&str>| {
            let mut link = Link::named(index, InterfaceName::new(name).unwrap());
            link.kind = kind.map(str::to_owned);
            link.location = kind.is_none().then(|| crate::net::pci::Location {
                path: crate::net::pci::PciPath::of("/sys/devices/pci0000:c0/0000:c1:00.0").unwrap(),
                numa: None,
            });
            (index, link)
        };
        let before: BTreeMap<u32, Link> = [link(2, "eth0", None), link(3, "veth1", Some("veth"))].into();
        let with = |more: (u32, Link)| before.clone().into_iter().chain([more]).collect::<BTreeMap<u32, Link>>();
        assert!(same_hardware(&before, &before.clone()));
        assert!(same_hardware(&before, &with(link(4, "veth2", Some("veth")))));
        assert!(same_hardware(&before, &[link(2, "eth0", None)].into()), "a pod is gone");
        assert!(same_hardware(&before, &[link(2, "eth0", None), link(3, "other", Some("veth"))].into()), "renamed");
        assert!(!same_hardware(&before, &with(link(4, "eth1", None))));
        assert!(!same_hardware(&before, &with(link(4, "bond0", Some("bond")))), "RDMA devices may be on it");
        assert!(!same_hardware(&before, &[link(3, "veth1", Some("veth"))].into()), "a function left for a pod");
        assert!(!same_hardware(&before, &with(link(2, "rail0", None))), "a NIC has another name");
    }

    #[test]
    fn every_change_that_matters_is_noticed_and_pod_routes_are_not() {
        in_namespace(|| async {
            ip("link add a0 type veth peer name a1");
            ip("link set a0 up");
            ip("link set a1 up");
            let mut watch = Watch::open(Path::new("/")).unwrap();
            while tokio::time::timeout(Duration::from_millis(1500), watch.changed()).await.is_ok() {}
            for change in [
                "link add b0 type veth peer name b1",
                "link set b0 name b2",
                "addr add 10.5.0.1/24 dev a0",
                "route add default via 10.5.0.2",
                "addr add fd05::1/64 dev a0 nodad",
                "link del b2",
            ] {
                ip(change);
                let noticed = tokio::time::timeout(Duration::from_secs(1), watch.changed()).await;
                assert!(noticed.is_ok(), "{change}");
                while tokio::time::timeout(Duration::from_millis(100), watch.changed()).await.is_ok() {}
            }
            ip("route add 10.6.0.1/32 dev a0");
            let noticed = tokio::time::timeout(Duration::from_millis(300), watch.changed()).await;
            assert!(noticed.is_err(), "a pod's route");
        });
    }
}
