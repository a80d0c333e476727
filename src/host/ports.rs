//! The ports that this host gives out by itself: sysctls, and what a control plane node's API server was told.

use std::fs;
use std::path::Path;

use super::sysfs;
use crate::net::ports::{HostPorts, NODE_PORTS};
use crate::net::protocol::PortSet;

/// What a kubelet leaves on every node that it runs on, below the root: any of them will do.
const KUBELET: [&str; 3] = ["var/lib/kubelet/config.yaml", "etc/kubernetes/kubelet.conf", "var/lib/kubelet/kubeconfig"];
/// Where kubeadm keeps the API server's command line, on control plane nodes only. kube-proxy is not told the range.
const API_SERVER: &str = "etc/kubernetes/manifests/kube-apiserver.yaml";
/// The longest manifest that is looked at, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// The ports of the machine below `root`.
pub(super) fn read(root: &Path) -> HostPorts {
    HostPorts { ephemeral: ephemeral(root), node_ports: node_ports(root) }
}

fn ephemeral(root: &Path) -> Option<PortSet> {
    let sysctls = root.join("proc/sys/net/ipv4");
    let range = sysfs::text(&sysctls.join("ip_local_port_range"))?;
    let (first, last) = range.split_once(char::is_whitespace)?;
    let range = PortSet::range(first.trim().parse().ok()?, last.trim().parse().ok()?);
    let reserved = sysfs::text(&sysctls.join("ip_local_reserved_ports")).unwrap_or_default();
    let reserved: PortSet = reserved.split(',').filter_map(ports).collect();
    Some(range.difference(&reserved))
}

/// "8080" or "30000-32767".
fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// The NodePort range, on a node of a cluster.
fn node_ports(root: &Path) -> Option<(u16, u16)> {
    let manifest = root.join(API_SERVER);
    let small = fs::metadata(&manifest).is_ok_and(|file| file.is_file() && file.len() <= MAX_MANIFEST);
    let told = small.then(|| fs::read_to_string(&manifest).ok()).flatten().and_then(|text| told(&text));
    let node = || small || KUBELET.iter().any(|file| root.join(file).exists());
    told.or_else(|| node().then_some(NODE_PORTS))
}

/// The range in the command line of a manifest: `--service-node-port-range=30000-32767`, or "30000+500" (k8s.io/apimachinery,
/// util/net PortRange).
fn told(manifest: &str) -> Option<(u16, u16)> {
    let (_, value) = manifest.split_once("--service-node-port-range=")?;
    let value = value.split(|next: char| !next.is_ascii_digit() && next != '-' && next != '+').next()?;
    match value.split_once('+') {
        Some((first, more)) => {
            let (first, more) = (first.parse::<u16>().ok()?, more.parse::<u16>().ok()?);
            Some((first, first.checked_add(more)?))
        }
        None => ports(value).filter(|(first, last)| first <= last && *first > 0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn ephemeral_ports_are_the_range_without_the_reserved() {
        let range = "proc/sys/net/ipv4/ip_local_port_range";
        let reserved = "proc/sys/net/ipv4/ip_local_reserved_ports";
        for (files, expected) in [
            (&[][..], None),
            (&[(range, "32768\t60999\n")], Some(&[(32_768, 60_999)][..])),
            (&[(range, "32768\t60999\n"), (reserved, "\n")], Some(&[(32_768, 60_999)])),
            (
                &[(range, "10000 65000\n"), (reserved, "9000-10009,50000,65000\n")],
                Some(&[(10_010, 49_999), (50_001, 64_999)]),
            ),
            (&[(range, "nonsense\n")], None),
        ] {
            let root = machine(files);
            assert_eq!(read(root.path()).ephemeral.map(|ports| ports.ranges().to_vec()), expected.map(<[_]>::to_vec));
        }
    }

    #[test]
    fn node_ports_are_there_on_nodes_of_a_cluster_and_the_api_servers_where_it_is() {
        let kubelet = ("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\n");
        let api = |arguments: &'static str| [("etc/kubernetes/manifests/kube-apiserver.yaml", arguments)];
        for (files, expected) in [
            (&[][..], None),
            (&[kubelet], Some((30_000, 32_767))),
            (&api("    - kube-apiserver\n"), Some((30_000, 32_767))),
            (&api("    - --service-node-port-range=20000-22767\n    - --x\n"), Some((20_000, 22_767))),
            (&api("    - \"--service-node-port-range=20000+10\"\n"), Some((20_000, 20_010))),
            (&api("    - --service-node-port-range=65000+1000\n"), Some((30_000, 32_767))),
        ] {
            assert_eq!(read(machine(files).path()).node_ports, expected, "{files:?}");
        }
    }
}
