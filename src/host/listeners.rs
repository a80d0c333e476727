//! What listens on this host: sockets by sock_diag, RDMA-CM listeners by RDMA netlink, and who holds them by /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::accounts;
use super::diag::{self, Listening};
use super::processes::{self, Found};
use super::rdma_cm::{self, CmListener};
use super::sysfs;
use crate::net::facts::Facts;
use crate::net::interface::InterfaceName;
use crate::net::listener::{Endpoint, Holders, Listener, Transport};
use crate::net::protocol::Protocol;

/// What listens, and what there is to know with it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listeners {
    /// Each endpoint once, in order: sockets that share one (`SO_REUSEPORT`) are one listener.
    pub all: Vec<Listener>,
    /// The names of users by id, as far as /etc/passwd tells.
    pub users: BTreeMap<u32, String>,
    /// The interfaces by which packets to 127.0.0.0/8 get in (sysctl `route_localnet`).
    pub loopback_open: BTreeSet<InterfaceName>,
    /// What is not known, and why.
    pub troubles: Vec<String>,
}

/// What listens in this network namespace; below another root, what the copy of that machine's /proc tells.
pub fn listeners(root: &Path, facts: &Facts) -> Listeners {
    let mut troubles = Vec::new();
    let sockets =
        if root == Path::new("/") { asked(&mut troubles) } else { in_files(&root.join("proc/net"), |_| true).concat() };
    let managed = if root == Path::new("/") { rdma_cm::listeners(root) } else { Vec::new() };
    let inodes = sockets.iter().map(|socket| socket.inode).collect();
    let pids = managed.iter().filter_map(|listener| listener.pid).collect();
    let found = processes::find(root, &inodes, &pids);
    let names: BTreeMap<u32, InterfaceName> =
        facts.links.iter().map(|(index, link)| (*index, link.name.clone())).collect();
    let all = merged(sockets, managed, &found, &names);
    if all.iter().any(|listener| listener.holders == Holders::Unknown) {
        let words = "some processes are not known: only root of the whole machine sees those of everybody";
        troubles.push(words.to_owned());
    }
    let loops = |name: &InterfaceName| {
        let of = |name: &str| sysfs::number(&root.join("proc/sys/net/ipv4/conf").join(name).join("route_localnet"));
        of("all") == Some(1) || of(name.as_str()) == Some(1)
    };
    let loopback_open = names.values().filter(|name| loops(name)).cloned().collect();
    Listeners { all, users: accounts::names_in(&root.join("etc/passwd")), loopback_open, troubles }
}

/// The sockets of this network namespace. Asking about a protocol would load its module, so that only those are asked about that the
/// kernel has.
fn asked(troubles: &mut Vec<String>) -> Vec<Listening> {
    let known = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    let has = |protocol: Protocol, number: u32| {
        let name = match (protocol, number) {
            (Protocol::TCP, number) if number != u32::from(Protocol::TCP.0) => "MPTCP",
            (Protocol::SCTP, _) => "SCTP",
            (Protocol::UDPLITE, _) => "UDP-Lite",
            _ => return true,
        };
        known.lines().any(|line| line.split_ascii_whitespace().next() == Some(name))
    };
    let mut sockets = Vec::new();
    for kind in diag::KINDS.iter().filter(|(protocol, number, _)| has(*protocol, *number)) {
        match diag::ask(*kind) {
            Ok(found) => sockets.extend(found),
            // A kernel without the module that tells of this protocol.
            Err(error) => match of_this_thread(kind.0) {
                Some(found) => sockets.extend(found),
                None => troubles.push(format!("cannot list the sockets of {}: {error}", kind.0)),
            },
        }
    }
    sockets
}

/// What the files of this thread's network namespace tell of a protocol.
fn of_this_thread(protocol: Protocol) -> Option<Vec<Listening>> {
    let found = in_files(Path::new("/proc/thread-self/net"), |of| of == protocol);
    (!found.is_empty()).then(|| found.into_iter().flatten().collect())
}

/// What the files of these protocols in a directory like /proc/net tell, a list for each that can be read.
fn in_files(directory: &Path, wanted: impl Fn(Protocol) -> bool) -> Vec<Vec<Listening>> {
    let read = |(file, protocol): &(&str, Protocol)| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        Some(diag::from_text(&text, *protocol))
    };
    diag::FILES.iter().filter(|(_, protocol)| wanted(*protocol)).filter_map(read).collect()
}

/// What is known of an endpoint so far.
#[derive(Default)]
struct Gathered {
    uid: Option<u32>,
    pids: BTreeSet<u32>,
    kernel: Option<String>,
    rdma: BTreeSet<String>,
}

/// One listener for each endpoint.
fn merged(
    sockets: Vec<Listening>,
    managed: Vec<CmListener>,
    found: &Found,
    names: &BTreeMap<u32, InterfaceName>,
) -> Vec<Listener> {
    let mut endpoints: BTreeMap<Endpoint, Gathered> = BTreeMap::new();
    for socket in sockets {
        for address in &socket.addresses {
            let endpoint = Endpoint {
                transport: Transport::Ip(socket.protocol),
                port: socket.port,
                // What listens on ::ffff:10.0.0.1 gets packets of IPv4.
                address: address.to_canonical(),
                both_families: socket.both_families && *address == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
                device: names.get(&socket.device).cloned(),
            };
            let gathered = endpoints.entry(endpoint).or_default();
            gathered.uid = gathered.uid.or(Some(socket.uid));
            gathered.pids.extend(found.by_inode.get(&socket.inode).into_iter().flatten());
        }
    }
    for CmListener { address, port, rdma, pid, kernel } in managed {
        let endpoint = Endpoint {
            transport: Transport::RdmaCm,
            port,
            address: address.to_canonical(),
            both_families: address == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
            device: None,
        };
        let gathered = endpoints.entry(endpoint).or_default();
        gathered.rdma.insert(rdma);
        gathered.pids.extend(pid);
        gathered.kernel = gathered.kernel.take().or(kernel);
    }
    endpoints.into_iter().map(|(endpoint, gathered)| listener(endpoint, gathered, found)).collect()
}

fn listener(endpoint: Endpoint, gathered: Gathered, found: &Found) -> Listener {
    let Gathered { uid, pids, kernel, rdma } = gathered;
    let processes: Vec<_> = pids.iter().filter_map(|pid| found.processes.get(pid).cloned()).collect();
    let holders = match (kernel, processes.is_empty()) {
        (_, false) => Holders::Processes(processes),
        (Some(name), true) => Holders::Kernel(Some(name)),
        (None, true) if found.complete && endpoint.transport != Transport::RdmaCm => Holders::Kernel(None),
        (None, true) => Holders::Unknown,
    };
    let uid = uid.or_else(|| holders.processes().first().and_then(|process| process.uid));
    Listener { endpoint, uid, holders, rdma }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::listener::Process;

    fn socket(address: &str, inode: u64) -> Listening {
        Listening {
            protocol: Protocol::TCP,
            addresses: address.parse().into_iter().collect(),
            port: 8000,
            both_families: address == "::",
            device: 0,
            uid: 7,
            inode,
        }
    }

    #[test]
    fn sockets_of_one_endpoint_are_one_listener_with_all_who_hold_them() {
        let process = |pid| (pid, Process { pid, name: format!("p{pid}"), ..Process::default() });
        let found = Found {
            by_inode: [(1, [10].into()), (2, [11, 12].into())].into(),
            processes: [10, 11, 12].map(process).into(),
            complete: true,
        };
        // A listener of MPTCP has a socket of TCP that nobody has open.
        let sockets = vec![
            socket("::", 9),
            socket("::", 1),
            socket("::", 2),
            socket("127.0.0.1", 5),
            socket("::ffff:10.0.0.1", 1),
        ];
        let all = merged(sockets, Vec::new(), &found, &BTreeMap::new());
        let seen: Vec<(String, bool, Vec<u32>)> = all
            .iter()
            .map(|listener| {
                let pids = listener.holders.processes().iter().map(|process| process.pid).collect();
                (listener.endpoint.address.to_string(), listener.endpoint.both_families, pids)
            })
            .collect();
        let expected = [
            ("10.0.0.1".to_owned(), false, vec![10]),
            ("127.0.0.1".to_owned(), false, vec![]),
            ("::".to_owned(), true, vec![10, 11, 12]),
        ];
        assert_eq!(seen, expected);
        assert_eq!(all[1].holders, Holders::Kernel(None));
        let some = Found { complete: false, ..Found::default() };
        assert_eq!(merged(vec![socket("::", 1)], Vec::new(), &some, &BTreeMap::new())[0].holders, Holders::Unknown);
    }
}
