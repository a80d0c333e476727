//! Virtual servers of IPVS: kube-proxy's IPVS mode and others publish ports by them. A packet for an address of this host meets them
//! after our input chains, without a rule of nf_tables.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::net::addr::{AddrSet, Family};
use crate::net::protocol::{PortSet, Protocol};
use crate::net::published::{Interfaces, Published, Target, Via};

/// The virtual servers of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ipvs {
    /// Those at addresses of this host that have somewhere to send to, sorted.
    pub published: Vec<Published>,
    /// What could not be read, in words.
    pub unread: Vec<String>,
}

/// The dummy link to which kube-proxy's IPVS mode gives the addresses of services.
const KUBE_IPVS: &str = "sys/class/net/kube-ipvs0";

/// The virtual servers below `root` of a host with these addresses. In kube-proxy's IPVS mode the addresses of a cluster's services are
/// among these: they are the host's own there.
pub fn published(root: &Path, own: &AddrSet) -> Ipvs {
    let path = root.join("proc/net/ip_vs");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mut found = parse(&text, own);
            if root.join(KUBE_IPVS).exists() {
                found.published.iter_mut().for_each(|published| published.owner = Some("kube-proxy"));
            }
            found
        }
        // The kernel has no IPVS.
        Err(error) if error.kind() == ErrorKind::NotFound => Ipvs::default(),
        Err(error) => Ipvs { unread: vec![format!("{}: {error}", path.display())], ..Ipvs::default() },
    }
}

/// /proc/net/ip_vs (kernel net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_info_seq_show`): a line for each virtual server, and after it one with
/// an arrow for each of the servers that it sends to.
pub fn parse(text: &str, own: &AddrSet) -> Ipvs {
    let mut found = Ipvs::default();
    let mut current: Option<Published> = None;
    let mut used = false;
    // Three lines of headings.
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["->", end, ..] => {
                let Some(published) = &mut current else { continue };
                let target = match address(end) {
                    Some((address, port)) => Target::There(Some(address), Some((port, port))),
                    None => Target::There(None, None),
                };
                published.target = if std::mem::replace(&mut used, true) { Target::Several } else { target };
            }
            ["FWM", mark, ..] => {
                found.published.extend(current.take().filter(|_| used));
                found.unread.push(format!(
                    "IPVS has a virtual server for packets with mark 0x{mark}: their ports are not known"
                ));
            }
            [protocol, end, ..] => {
                found.published.extend(current.take().filter(|_| used));
                used = false;
                match (Protocol::by_name(protocol), address(end)) {
                    (Some(protocol), Some((address, port))) => {
                        current = own.contains(address).then(|| server(protocol, address, port));
                    }
                    _ => found
                        .unread
                        .push(format!("a virtual server of IPVS in a form that we do not know: {}", line.trim())),
                }
            }
            _ => {}
        }
    }
    found.published.extend(current.filter(|_| used));
    found.published.sort();
    found
}

fn server(protocol: Protocol, address: IpAddr, port: u16) -> Published {
    Published {
        protocol: Some(protocol),
        // Port 0 stands for all, of clients that came before to another port.
        ports: if port == 0 { PortSet::full() } else { PortSet::single(port) },
        family: Some(if address.is_ipv4() { Family::V4 } else { Family::V6 }),
        addresses: Some([address].into_iter().collect()),
        interfaces: Interfaces::default(),
        target: Target::Several,
        owner: None,
        comment: None,
        via: Via::Ipvs,
        partly: false,
    }
}

/// "0A4D0002:7580", or "[fd77:0000:0000:0000:0000:0000:0000:0002]:7580".
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => IpAddr::V6(v6.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok().filter(|_| address.len() == 8)?)),
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> 0A4D0001:192B      Masq    1      0          0
TCP  0A4D0002:7580 rr
  -> 0AF40002:1F90      Masq    1      0          0
UDP  0A4D0002:7581 rr persistent 10800
  -> 0AF40002:0035      Masq    1      0          0
  -> 0AF40003:0035      Masq    1      0          0
SCTP 0A4D0002:7582 rr
TCP  [fd77:0000:0000:0000:0000:0000:0000:0002]:7580 rr
  -> [fd44:0000:0000:0000:0000:0000:0000:0002]:1F90      Masq    1      0          0
FWM  00000007 wlc
  -> 0AF40002:0000      Route   1      0          0
";

    fn own() -> AddrSet {
        let addresses: Vec<IpAddr> = ["10.77.0.2", "fd77::2"].iter().map(|text| text.parse().unwrap()).collect();
        addresses.into_iter().collect()
    }

    #[test]
    fn virtual_servers_at_addresses_of_this_host_that_lead_somewhere_are_published() {
        let found = parse(TEXT, &own());
        let lines: Vec<String> = found
            .published
            .iter()
            .map(|published| {
                let protocol = published.protocol.unwrap();
                format!("{protocol} {} -> {}", published.ports.only().unwrap(), published.target)
            })
            .collect();
        assert_eq!(
            lines,
            ["tcp 30080 -> 10.244.0.2:8080", "tcp 30080 -> [fd44::2]:8080", "udp 30081 -> several endpoints"]
        );
        assert_eq!(
            found.unread,
            ["IPVS has a virtual server for packets with mark 0x00000007: their ports are not known"]
        );
    }

    #[test]
    fn what_is_not_there_or_not_known_is_told() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(published(root.path(), &own()), Ipvs::default());
        fs::create_dir_all(root.path().join("proc/net")).unwrap();
        fs::write(root.path().join("proc/net/ip_vs"), TEXT).unwrap();
        assert!(published(root.path(), &own()).published.iter().all(|published| published.owner.is_none()));
        fs::create_dir_all(root.path().join(KUBE_IPVS)).unwrap();
        let found = published(root.path(), &own());
        assert!(found.published.iter().all(|published| published.owner == Some("kube-proxy")));
        let odd = TEXT.replace("TCP  0A600001:01BB", "QUIC 0A600001:01BB");
        assert_eq!(parse(&odd, &own()).unread.len(), 2);
    }

    #[test]
    fn any_text_comes_to_an_end() {
        for end in 0..TEXT.len() {
            for insert in ["", ":", "->", "\n", "\u{e9}", "[", "FWM"] {
                let _ = parse(&format!("{}{insert}{}", &TEXT[..end], &TEXT[end..]), &own());
            }
        }
    }
}
