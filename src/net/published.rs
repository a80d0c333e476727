//! Ports that others publish on this host: what comes to them is sent on by a rewrite of its destination, so that no socket of this
//! host shows them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::addr::{AddrSet, Family};
use super::protocol::{PortSet, Protocol};

/// Ports of this host that lead elsewhere, or to other ports of it, while packets are on their way in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Published {
    /// The protocol; `None` for any.
    pub protocol: Option<Protocol>,
    /// The destination ports as the peer sees them; all of them where nothing asks for a port.
    pub ports: PortSet,
    /// The IP version; `None` for both.
    pub family: Option<Family>,
    /// The addresses of this host for which it holds; `None` for all of them, loopback possibly apart.
    pub addresses: Option<AddrSet>,
    /// The interfaces over which it holds.
    pub interfaces: Interfaces,
    /// Where the packets go.
    pub target: Target,
    /// Who made it, as far as names tell.
    pub owner: Option<&'static str>,
    /// What its maker says about it: for kube-proxy "namespace/service:port", of others the comment as it is.
    pub comment: Option<String>,
    /// Where it is written: the chain whose rule asks for the port.
    pub via: Via,
    /// Something on the way to it is not understood, so that it may hold for fewer packets than this says; never for more.
    pub partly: bool,
}

/// Interfaces by their names; one that ends in `*` stands for all that begin so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Interfaces {
    /// Only over these; `None` for no such condition.
    pub only: Option<BTreeSet<String>>,
    /// Not over these.
    pub except: BTreeSet<String>,
}

impl Interfaces {
    /// Whether it holds over every interface.
    pub fn is_any(&self) -> bool {
        self.only.is_none() && self.except.is_empty()
    }

    /// Whether it holds over the interface of this name.
    pub fn admits(&self, name: &str) -> bool {
        let among = |patterns: &BTreeSet<String>| patterns.iter().any(|pattern| covers(pattern, name));
        self.only.as_ref().is_none_or(among) && !among(&self.except)
    }

    /// Adds the condition that it is over one of these; whether any is left.
    pub fn restrict(&mut self, patterns: BTreeSet<String>) -> bool {
        let both = match &self.only {
            None => patterns,
            Some(before) => {
                let pairs = before.iter().flat_map(|one| patterns.iter().map(move |other| (one, other)));
                pairs
                    .filter_map(|(one, other)| {
                        let narrower = if covers(one, other) { Some(other) } else { None };
                        narrower.or_else(|| covers(other, one).then_some(one)).cloned()
                    })
                    .collect()
            }
        };
        let left: BTreeSet<String> =
            both.into_iter().filter(|name| !self.except.iter().any(|pattern| covers(pattern, name))).collect();
        let any = !left.is_empty();
        self.only = Some(left);
        any
    }

    /// Adds the condition that it is over none of these; whether any is left.
    pub fn exclude(&mut self, patterns: BTreeSet<String>) -> bool {
        self.except.extend(patterns);
        match self.only.take() {
            Some(only) => self.restrict(only),
            None => !self.except.contains("*"),
        }
    }

    /// Whether some interface may be among both.
    pub fn meets(&self, other: &Self) -> bool {
        let mut both = self.clone();
        let left = other.only.clone().is_none_or(|only| both.restrict(only));
        left && both.exclude(other.except.clone())
    }
}

/// Whether every name that `inner` stands for is one that `outer` stands for.
fn covers(outer: &str, inner: &str) -> bool {
    outer.strip_suffix('*').map_or(outer == inner, |start| inner.starts_with(start))
}

/// Where a published port leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// To this host, at these ports, first and last; `None` for the port that the packet came for.
    Here(Option<(u16, u16)>),
    /// To this address, `None` where the rule's is not understood or is one of many, and to these ports, first and last; `None` for the
    /// port that the packet came for.
    There(Option<IpAddr>, Option<(u16, u16)>),
    /// To one of several, by turns or by what is not read here.
    Several,
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |ports: &(u16, u16)| match ports {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        match self {
            Self::Here(None) => formatter.write_str("this host"),
            Self::Here(Some(ports)) => write!(formatter, "port {} of this host", range(ports)),
            Self::There(None, None) => formatter.write_str("another address"),
            Self::There(None, Some(ports)) => write!(formatter, "port {} of another address", range(ports)),
            Self::There(Some(address), None) => write!(formatter, "{address}"),
            Self::There(Some(address), Some((first, last))) if first == last => {
                write!(formatter, "{}", SocketAddr::new(*address, *first))
            }
            Self::There(Some(address), Some(ports)) => write!(formatter, "ports {} of {address}", range(ports)),
            Self::Several => formatter.write_str("several endpoints"),
        }
    }
}

/// By what a port is published.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Via {
    /// A chain of nf_tables.
    Chain {
        /// The family of its table, as nft(8) names it.
        family: &'static str,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// A virtual server of IPVS.
    Ipvs,
}

impl fmt::Display for Via {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain { family, table, chain } => write!(formatter, "table {family} {table}, chain {chain}"),
            Self::Ipvs => formatter.write_str("IPVS"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn conditions_on_interfaces_add_up() {
        let mut some = Interfaces::default();
        assert!(some.is_any() && some.admits("eth0"));
        assert!(some.restrict(names("eth* ib0")));
        assert!(some.exclude(names("eth1")));
        assert!(some.admits("eth0") && some.admits("ib0") && !some.admits("eth1") && !some.admits("docker0"));
        assert!(some.restrict(names("eth0 eth1 docker0")));
        assert_eq!(some.only, Some(names("eth0")));
        assert!(!some.exclude(names("e*")));
        assert!(!Interfaces::default().exclude(names("*")));
    }

    #[test]
    fn conditions_meet_where_one_interface_may_be_among_both() {
        let only = |text| Interfaces { only: Some(names(text)), ..Interfaces::default() };
        let except = |text| Interfaces { except: names(text), ..Interfaces::default() };
        assert!(only("docker0").meets(&Interfaces::default()));
        assert!(!only("docker0").meets(&except("docker0")));
        assert!(!except("docker*").meets(&only("docker0")));
        assert!(only("docker*").meets(&except("docker0")));
        assert!(except("docker0").meets(&except("eth0")));
    }

    #[test]
    fn targets_are_said_in_words() {
        let address = Some(IpAddr::from([10, 0, 0, 1]));
        for (target, words) in [
            (Target::Here(None), "this host"),
            (Target::Here(Some((80, 80))), "port 80 of this host"),
            (Target::There(address, Some((80, 80))), "10.0.0.1:80"),
            (Target::There(address, Some((80, 90))), "ports 80-90 of 10.0.0.1"),
            (Target::There(address, None), "10.0.0.1"),
            (Target::There(None, Some((1, 2))), "port 1-2 of another address"),
            (Target::Several, "several endpoints"),
        ] {
            assert_eq!(target.to_string(), words);
        }
    }
}
