//! The cluster API's addresses from a kubeconfig, as far as they are written as addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

/// The address and TCP port of every `server:` URL of a kubeconfig whose host is an IP address, sorted. A host by name is left
/// out: a firewall that asks DNS before it stands is open to whoever answers. Reads lines, not YAML: one value of
/// one well-known key is all that is wanted, in block style or in JSON.
pub fn api_servers(text: &str) -> Vec<(IpAddr, u16)> {
    text.lines()
        .flat_map(|line| line.split([',', '{', '}']))
        .filter_map(server)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The address of `server: https://10.0.0.10:6443`, with or without quotes.
fn server(item: &str) -> Option<(IpAddr, u16)> {
    let item = item.trim().trim_start_matches("- ").trim_start();
    let (key, value) = item.split_once(':')?;
    let unquoted = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    if unquoted(key) != "server" {
        return None;
    }
    let value = value.split(" #").next().unwrap_or_default();
    let url = unquoted(value);
    let (rest, port) = match url.split_once("://")? {
        ("https", rest) => (rest, 443),
        ("http", rest) => (rest, 80),
        _ => return None,
    };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (host, written) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']')?;
            (IpAddr::V6(host.parse::<Ipv6Addr>().ok()?), after.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host.parse().ok()?, Some(port)),
            None => (authority.parse().ok()?, None),
        },
    };
    let port = match written {
        Some(digits) => digits.parse().ok()?,
        None => port,
    };
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_and_names_are_not_looked_up() {
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<String> = api_servers(text).iter().map(|(host, port)| format!("{host} {port}")).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: LS0t\n    server: https://10.0.0.10:6443\n  name: a\n",
            &["10.0.0.10 6443"],
        );
        check("- server: 'https://[fd00::10]:6443/prefix' # vip\n", &["fd00::10 6443"]);
        check("    server: \"https://10.0.0.10\"\n", &["10.0.0.10 443"]);
        check("{\"clusters\":[{\"cluster\":{\"server\":\"https://10.0.0.10:6443\",\"x\":1}}]}", &["10.0.0.10 6443"]);
        check("server: https://api.example.org:6443\n", &[]);
        check("# server: https://10.0.0.10:6443\ntls-server-name: https://10.0.0.10:1\n", &[]);
        check("server: https://10.0.0.10:99999\nserver: ftp://10.0.0.1\nserver:\nserver: https://[fd00::1\n", &[]);
    }
}
