//! The cluster API's addresses from a kubeconfig, without a YAML parser: only the `server:` lines are looked at.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

/// The largest kubeconfig that is read; they hold certificates, so a few hundred kilobytes are usual for many clusters.
const LARGEST_BYTES: u64 = 4 * 1024 * 1024;

/// Why a kubeconfig says nothing.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It cannot be read.
    #[error("cannot read the kubeconfig {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It names its servers by host name, and an answer of DNS is nothing a failsafe may rest on.
    #[error(
        "the kubeconfig {path} names its server by host name ({host}); name its addresses as peers of a failsafe entry"
    )]
    HostName {
        /// The file.
        path: String,
        /// The first host name.
        host: String,
    },
}

/// The (address, TCP port) of every `server: https://ADDRESS[:PORT]` line.
///
/// # Errors
/// When the file cannot be read, or when it has servers and not one of them is an address.
pub fn api_servers(path: &Path) -> Result<BTreeSet<(IpAddr, u16)>, KubeconfigError> {
    let read = || -> io::Result<String> {
        let length = std::fs::metadata(path)?.len();
        if length > LARGEST_BYTES {
            return Err(io::Error::other(format!("it has {length} bytes, more than {LARGEST_BYTES}")));
        }
        std::fs::read_to_string(path)
    };
    let text = read().map_err(|source| KubeconfigError::Read { path: path.display().to_string(), source })?;
    let (servers, host_names) = parse(&text);
    match host_names.into_iter().next() {
        Some(host) if servers.is_empty() => Err(KubeconfigError::HostName { path: path.display().to_string(), host }),
        _ => Ok(servers),
    }
}

fn parse(text: &str) -> (BTreeSet<(IpAddr, u16)>, Vec<String>) {
    let (mut servers, mut host_names) = (BTreeSet::new(), Vec::new());
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches("- ").trim();
        let Some(value) = line.strip_prefix("server:") else { continue };
        let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        let (default_port, rest) = match value.split_once("://") {
            Some(("https", rest)) => (443, rest),
            Some(("http", rest)) => (80, rest),
            _ => continue,
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        match host_and_port(authority, default_port) {
            Some(server) => {
                servers.insert(server);
            }
            None => host_names.push(authority.to_owned()),
        }
    }
    (servers, host_names)
}

fn host_and_port(authority: &str, default_port: u16) -> Option<(IpAddr, u16)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port = port.strip_prefix(':').map_or(Some(default_port), |port| port.parse().ok())?;
        return Some((IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, default_port),
    };
    Some((host.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_by_address() {
        let text = "clusters:\n- cluster:\n    server: https://10.0.0.10:6443\n  name: a\n- cluster: \n    \
                    server: \"https://[fd00::10]:6443/k8s\" # hub\n- cluster:\n    server: https://10.0.0.11\n\
                    - cluster:\n    server: https://api.example:6443\n";
        let (servers, names) = parse(text);
        let servers: Vec<String> = servers.iter().map(|(address, port)| format!("{address} {port}")).collect();
        assert_eq!(servers, ["10.0.0.10 6443", "10.0.0.11 443", "fd00::10 6443"]);
        assert_eq!(names, ["api.example:6443"]);
    }

    #[test]
    fn odd_lines_do_no_harm() {
        for text in [
            "server:",
            "server: https://",
            "server: https://[",
            "server: https://[::1",
            "server: x",
            "server: https://1.2.3.4:99999",
        ] {
            assert!(parse(text).0.is_empty(), "{text}");
        }
    }
}
