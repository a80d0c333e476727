//! The ports that a host gives out by itself: to connections that it makes, and to Services of Kubernetes.

use super::protocol::PortSet;

/// What is known of them; collected by `host`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPorts {
    /// Ports from which connections of this host are made when they ask for none: `net.ipv4.ip_local_port_range`, without
    /// `net.ipv4.ip_local_reserved_ports` (Documentation/networking/ip-sysctl.rst). `None` where that cannot be read.
    pub ephemeral: Option<PortSet>,
    /// The NodePort range of the cluster that this host is a node of, first and last. `None` on other hosts.
    pub node_ports: Option<(u16, u16)>,
}

/// The NodePort range of a cluster whose API server was not told another one (`--service-node-port-range`).
pub const NODE_PORTS: (u16, u16) = (30_000, 32_767);
