//! A packet as people describe it: what they leave out is filled in, and said.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{ConntrackState, Exit, Origin, Packet};
use crate::net::addr::Family;
use crate::net::facts::Facts;
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::{ICMP_TYPES, ICMPV6_TYPES, Protocol, icmp_type, icmpv6_type};
use crate::policy::effective::{Addresses, Effective};
use crate::text::read::suggestion;

/// What somebody said about a packet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Question {
    /// The interface by which it comes in.
    pub input: Option<InterfaceName>,
    /// The interface by which it goes out.
    pub output: Option<InterfaceName>,
    /// The kind of such an interface that is not there.
    pub kind: Option<String>,
    /// Where it comes from.
    pub from: Option<Endpoint>,
    /// Where it goes to.
    pub to: Option<Endpoint>,
    /// Its protocol.
    pub protocol: Option<Protocol>,
    /// Its source port.
    pub source_port: Option<u16>,
    /// Its destination port.
    pub port: Option<u16>,
    /// Its ICMP type and code.
    pub icmp: Option<IcmpWords>,
    /// Its time to live or hop limit.
    pub hop_limit: Option<u8>,
    /// What connection tracking says of it.
    pub state: Option<ConntrackState>,
    /// Where somebody's DNAT sends it.
    pub translated: Option<Endpoint>,
    /// Who sends it.
    pub origin: Origin,
}

/// An address, with a port or without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Option<u16>,
}

/// An ICMP type as it was written, which may be a name, and a code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IcmpWords {
    /// Name or number.
    pub kind: String,
    /// The code.
    pub code: u8,
}

/// What is missing or does not fit, in a sentence that says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unclear(pub String);

/// Reads "10.0.0.1", "10.0.0.1:22", "fd00::1" or "[fd00::1]:22".
///
/// # Errors
/// Anything else.
pub fn endpoint(text: &str) -> Result<Endpoint, Unclear> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse() {
        return Ok(Endpoint { address, port: None });
    }
    match text.parse::<std::net::SocketAddr>() {
        Ok(socket) => Ok(Endpoint { address: socket.ip(), port: Some(socket.port()) }),
        Err(_) => Err(Unclear("write an address like 10.0.0.1, 10.0.0.1:22, fd00::1 or [fd00::1]:22".to_owned())),
    }
}

/// Reads a protocol's name or number.
///
/// # Errors
/// It is neither.
pub fn protocol(text: &str) -> Result<Protocol, Unclear> {
    if let Ok(number) = text.parse() {
        return Ok(Protocol(number));
    }
    Protocol::by_name(text).ok_or_else(|| {
        let names: Vec<&str> = Protocol::names().collect();
        let help = suggestion(text, &names);
        Unclear(if help.is_empty() { "write a protocol's name, or its number from 0 to 255".to_owned() } else { help })
    })
}

/// Reads "echo-request", "8", "destination-unreachable/4" or "3/4".
///
/// # Errors
/// The code is no number from 0 to 255.
pub fn icmp(text: &str) -> Result<IcmpWords, Unclear> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    let code = code.parse().map_err(|_| Unclear("write TYPE or TYPE/CODE, with a code from 0 to 255".to_owned()))?;
    Ok(IcmpWords { kind: kind.to_owned(), code })
}

/// The source port of a packet about which nobody said any: an ephemeral one.
const SOURCE_PORT: u16 = 40_000;
/// What most systems send with (IANA, "IP Option Numbers", recommends 64).
const HOP_LIMIT: u8 = 64;

/// The packet, and what was taken for granted, each in words.
///
/// # Errors
/// Too little was said, or things that do not go together.
pub fn packet(question: &Question, effective: &Effective, facts: &Facts) -> Result<(Packet, Vec<String>), Unclear> {
    let mut asked = Asked { question, effective, facts, taken: Vec::new() };
    let packet = asked.packet()?;
    Ok((packet, asked.taken))
}

struct Asked<'a> {
    question: &'a Question,
    effective: &'a Effective,
    facts: &'a Facts,
    taken: Vec<String>,
}

fn unclear<T>(text: impl Into<String>) -> Result<T, Unclear> {
    Err(Unclear(text.into()))
}

impl Asked<'_> {
    fn packet(&mut self) -> Result<Packet, Unclear> {
        let question = self.question;
        let (direction, interface, exit) = match (&question.input, &question.output) {
            (Some(input), None) => (Direction::Ingress, input, None),
            (Some(input), Some(output)) => (Direction::Ingress, input, Some(output)),
            (None, Some(output)) => (Direction::Egress, output, None),
            (None, None) => {
                return unclear(
                    "say by which interface: --in IFACE for a packet to this host, --out IFACE for one from it, both for one \
                     through it",
                );
            }
        };
        let family = self.family()?;
        let protocol = self.protocol(family)?;
        let (source, destination) = self.addresses(family)?;
        let ports = self.ports(protocol)?;
        let icmp = self.icmp(protocol, family)?;
        let translated = question.translated.map(|to| {
            let port = to.port.or(ports.map(|(_, port)| port)).unwrap_or_default();
            (to.address, port)
        });
        Ok(Packet {
            direction,
            interface: interface.clone(),
            kind: self.kind(interface),
            source,
            destination,
            protocol: Some(protocol),
            ports,
            icmp,
            hop_limit: question.hop_limit.unwrap_or(HOP_LIMIT),
            state: question.state.unwrap_or(ConntrackState::New),
            forward: exit.map(|exit| Exit { interface: exit.clone(), kind: self.kind(exit) }),
            translated,
            origin: question.origin.clone(),
        })
    }

    fn family(&self) -> Result<Family, Unclear> {
        let Question { from, to, translated, protocol, .. } = self.question;
        let families: BTreeSet<Family> = [from, to, translated]
            .into_iter()
            .flatten()
            .map(|end| if end.address.is_ipv4() { Family::V4 } else { Family::V6 })
            .collect();
        match (families.len(), families.first()) {
            (0, _) | (_, None) => Ok(if *protocol == Some(Protocol::ICMPV6) { Family::V6 } else { Family::V4 }),
            (1, Some(family)) => Ok(*family),
            _ => unclear("the addresses are of two IP versions; a packet has one"),
        }
    }

    fn protocol(&mut self, family: Family) -> Result<Protocol, Unclear> {
        let Question { protocol, icmp, .. } = self.question;
        let of_family = match family {
            Family::V4 => Protocol::ICMP,
            Family::V6 => Protocol::ICMPV6,
        };
        let protocol = match protocol {
            Some(protocol) => *protocol,
            None if icmp.is_some() => of_family,
            None if self.ports_given() => {
                self.taken.push("--proto tcp".to_owned());
                Protocol::TCP
            }
            None => {
                return unclear(
                    "say what it is: --proto tcp --dport 22, --proto icmp --icmp echo-request, --proto esp",
                );
            }
        };
        let is_icmp = |protocol| matches!(protocol, Protocol::ICMP | Protocol::ICMPV6);
        if is_icmp(protocol) && protocol != of_family {
            return unclear(format!("{protocol} does not go with these addresses: write {of_family}"));
        }
        if icmp.is_some() && !is_icmp(protocol) {
            return unclear(format!("--icmp does not go with {protocol}"));
        }
        Ok(protocol)
    }

    fn ports_given(&self) -> bool {
        let Question { from, to, source_port, port, .. } = self.question;
        let of_end = |end: &Option<Endpoint>| end.is_some_and(|end| end.port.is_some());
        source_port.is_some() || port.is_some() || of_end(from) || of_end(to)
    }

    fn ports(&mut self, protocol: Protocol) -> Result<Option<(u16, u16)>, Unclear> {
        if !protocol.has_ports() {
            return if self.ports_given() { unclear(format!("{protocol} has no ports")) } else { Ok(None) };
        }
        let Question { from, to, source_port, port, .. } = self.question;
        let one = |end: &Option<Endpoint>, port: &Option<u16>, what: &str| match (end.and_then(|end| end.port), *port) {
            (Some(one), Some(other)) if one != other => unclear(format!("the {what} port is given twice")),
            (one, other) => Ok(one.or(other)),
        };
        let source = one(from, source_port, "source")?;
        let Some(destination) = one(to, port, "destination")? else {
            return unclear(format!("say to which port: --dport N, or --to ADDR:PORT ({protocol} has ports)"));
        };
        let source = source.unwrap_or_else(|| {
            self.taken.push(format!("--sport {SOURCE_PORT}"));
            SOURCE_PORT
        });
        Ok(Some((source, destination)))
    }

    fn icmp(&self, protocol: Protocol, family: Family) -> Result<Option<(u8, u8)>, Unclear> {
        if !matches!(protocol, Protocol::ICMP | Protocol::ICMPV6) {
            return Ok(None);
        }
        let Some(IcmpWords { kind, code }) = &self.question.icmp else {
            return unclear(format!("say which {protocol}: --icmp TYPE or TYPE/CODE, like --icmp echo-request"));
        };
        let (named, known) = match family {
            Family::V4 => (icmp_type(kind), ICMP_TYPES),
            Family::V6 => (icmpv6_type(kind), ICMPV6_TYPES),
        };
        match named.or_else(|| kind.parse().ok()) {
            Some(kind) => Ok(Some((kind, *code))),
            None => {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                let help = suggestion(kind, &names);
                unclear(format!("\"{kind}\" is not a type of {protocol}; {help}"))
            }
        }
    }

    /// Source and destination; an end that nobody named is this host, if it is this host's end, or an address that is nothing to the
    /// policy.
    fn addresses(&mut self, family: Family) -> Result<(IpAddr, IpAddr), Unclear> {
        let Question { input, output, from, to, .. } = self.question;
        let (from, to) = (from.map(|end| end.address), to.map(|end| end.address));
        let source = match (from, input) {
            (Some(address), _) => address,
            (None, Some(_)) => self.take("--from", self.unremarkable(family, to)),
            (None, None) => {
                let own = output.as_ref().and_then(|name| self.own(name, family));
                let Some(own) = own else { return unclear("say from where: --from ADDR (this host's own address)") };
                self.take("--from", own)
            }
        };
        let destination = match (to, input, output) {
            (Some(address), ..) => address,
            (None, Some(name), None) => {
                let Some(own) = self.own(name, family) else {
                    return unclear(format!("say to where: --to ADDR ({name} has no address that is known)"));
                };
                self.take("--to", own)
            }
            (None, ..) => self.take("--to", self.unremarkable(family, Some(source))),
        };
        Ok((source, destination))
    }

    fn take(&mut self, option: &str, address: IpAddr) -> IpAddr {
        self.taken.push(format!("{option} {address}"));
        address
    }

    /// The interface's first address, one that is valid beyond the link if there is one.
    fn own(&self, name: &InterfaceName, family: Family) -> Option<IpAddr> {
        let addresses = self.facts.link(name.as_str())?.addresses.iter().map(ipnet::IpNet::addr);
        let local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let of_family = addresses.filter(|address| address.is_ipv4() == (family == Family::V4));
        of_family.min_by_key(local)
    }

    /// An address of documentation (RFC 5737, RFC 3849, RFC 9637) that as few rules as possible name.
    fn unremarkable(&self, family: Family, taken: Option<IpAddr>) -> IpAddr {
        let candidates: [IpAddr; 3] = match family {
            Family::V4 => {
                [[198, 51, 100, 77], [203, 0, 113, 77], [192, 0, 2, 77]].map(|octets| Ipv4Addr::from(octets).into())
            }
            Family::V6 => [[0x2001, 0xdb8, 0x77], [0x3fff, 0, 0x77], [0x2001, 0xdb8, 0x78]]
                .map(|[a, b, last]| Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, last).into()),
        };
        let policies = self.effective.tiers.iter().flat_map(|tier| &tier.policies);
        let rules = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
        let sets: Vec<&Addresses> = rules
            .chain(self.effective.failsafe.iter().map(|entry| &entry.rule))
            .flat_map(|rule| [&rule.from, &rule.to])
            .filter(|addresses| **addresses != Addresses::Any)
            .collect();
        let named = |address: &IpAddr| sets.iter().filter(|set| set.contains(*address)).count();
        let [first, ..] = candidates;
        candidates.into_iter().filter(|address| Some(*address) != taken).min_by_key(named).unwrap_or(first)
    }

    fn kind(&self, name: &InterfaceName) -> Option<String> {
        match self.facts.link(name.as_str()) {
            Some(link) => link.kind.clone(),
            None => self.question.kind.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
