//! The lockdown: the rules of a host of which nothing is known but that it has to be reachable to be mended.

use ipnet::IpNet;

use crate::compile::compile;
use crate::config::Config;
use crate::net::facts::Facts;
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::nft::ir::Ruleset;
use crate::policy::model::{Entity, Policy, ServicePort};
use crate::policy::resolve::resolve;
use crate::policy::selector::Selector;

/// The port of SSH (RFC 4251 has 22 assigned by IANA).
pub const SSH_PORT: u16 = 22;

/// What an operator may choose about the lockdown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lockdown {
    /// The TCP ports of SSH; none means [`SSH_PORT`], as a lockdown without a way in would lock out for good.
    pub ssh_ports: Vec<u16>,
    /// Who may come in by SSH; none means anyone.
    pub ssh_from: Vec<IpNet>,
}

impl Lockdown {
    /// Its rules, the same on every host: on every interface but loopback the essentials and SSH come in, what was asked for comes
    /// back, and everything goes out, since a host whose names, users or disks come over the network cannot be mended without. No
    /// interface is known and none is trusted by its kind or name.
    pub fn ruleset(&self) -> Ruleset {
        let mut settings = Config::shipped().settings;
        for entry in settings.failsafe.iter_mut().filter(|entry| entry.direction == Direction::Ingress) {
            let ports = if self.ssh_ports.is_empty() { &[SSH_PORT][..] } else { &self.ssh_ports };
            let ports = ports.iter().map(|port| (*port, *port)).collect::<RangeSet<u16>>();
            entry.ports = vec![ServicePort::Ports(Protocol::TCP, ports)];
            entry.interfaces = Selector::All;
            if !self.ssh_from.is_empty() {
                entry.peers = Some(Entity { cidrs: self.ssh_from.clone(), ..Entity::default() });
            }
        }
        // Shipped settings and no policy: there is nothing in them to be found fault with.
        let (mut effective, _) = resolve(&Policy::default(), &settings, &Facts::default());
        effective.expected.clear();
        compile(&effective)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nft::text::render;

    #[test]
    fn every_interface_is_alike_and_has_ssh() {
        let ruleset = Lockdown::default().ruleset();
        let classes: Vec<&String> = ruleset.chains.keys().filter(|name| name.starts_with("in_")).collect();
        assert_eq!(classes, ["in_unknown"]);
        let text = render(&ruleset);
        assert!(text.contains("tcp dport 22 counter accept"), "{text}");
        assert!(!text.contains("iifkind"), "no kind is trusted: {text}");
        assert!(text.contains("policy drop") && text.contains("DHCPv4 client"), "{text}");
    }

    #[test]
    fn ports_and_peers_of_ssh_are_the_operators() {
        let lockdown = Lockdown {
            ssh_ports: vec![2222, 22],
            ssh_from: ["10.0.0.0/8", "fd00::/8"].map(|prefix| prefix.parse().unwrap()).into(),
        };
        let text = render(&lockdown.ruleset());
        for wanted in ["22, 2222", "10.0.0.0/8", "fd00::/8"] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
}
