//! What of this host can be reached, from where, and what of that is dangerous: listeners and published ports held against a policy.

mod classes;
pub mod contrast;
pub mod finding;
pub mod known;
pub mod peers;
pub mod reach;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::net::addr::{AddrSet, Family};
use crate::net::facts::Facts;
use crate::net::interface::{InterfaceName, Role};
use crate::net::listener::{Endpoint, Listener, Transport};
use crate::net::protocol::{PortSet, Protocol};
use crate::net::published::{Published, Target, Via};
use crate::policy::effective::Effective;
use crate::policy::model::{NamedSet, Policy};
use crate::simulate::Exit;
use peers::{Named, Peer};
use reach::{Door, Ground, Zone};

/// From where something can be reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Reach {
    /// The role of the interfaces.
    pub role: Role,
    /// Their names, sorted.
    pub interfaces: Vec<InterfaceName>,
    /// Whether they are all of the role: the policy treats these alike.
    pub whole_role: bool,
    /// Who can reach it there.
    pub peers: Vec<Peer>,
}

impl Reach {
    /// "mgmt", or "mgmt (eth0, eth1)" where others of the role are treated otherwise.
    pub fn zone(&self) -> String {
        if self.whole_role {
            return self.role.to_string();
        }
        let names: Vec<&str> = self.interfaces.iter().map(InterfaceName::as_str).take(MOST_NAMES).collect();
        let more = self.interfaces.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} ({}{more})", self.role, names.join(", "))
    }
}

/// More interfaces than these are only counted: a node has a hundred of pods.
const MOST_NAMES: usize = 3;

/// What is needed besides the policy to say who reaches what.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    /// The host.
    pub facts: &'a Facts,
    /// The sets of the documents.
    pub sets: Vec<Named>,
    /// The interfaces by which packets to 127.0.0.0/8 get in (sysctl `route_localnet`).
    pub loopback_open: &'a BTreeSet<InterfaceName>,
    /// The interfaces by which this host sends to addresses of others.
    pub ways: BTreeMap<IpAddr, InterfaceName>,
}

/// The sets of documents by name.
pub fn sets(policy: &Policy) -> Vec<Named> {
    let named = |(name, set): (&String, &NamedSet)| Named {
        name: name.clone(),
        addresses: set.cidrs.iter().copied().collect(),
    };
    policy.sets.iter().map(named).collect()
}

/// A policy that can be asked about listeners and published ports.
#[derive(Clone, Debug)]
pub struct Exposure<'a> {
    ground: Ground<'a>,
    around: Surroundings<'a>,
}

impl<'a> Exposure<'a> {
    /// Gets ready.
    pub fn new(effective: &'a Effective, around: Surroundings<'a>) -> Self {
        Self { ground: Ground::new(effective, around.facts), around }
    }

    /// Every zone there is, with nobody in it.
    pub fn zones(&self) -> Vec<Reach> {
        self.ground.zones().iter().map(|zone| self.reach(zone, Vec::new())).collect()
    }

    /// From where a listener can be reached.
    pub fn of_listener(&self, listener: &Listener) -> Vec<Reach> {
        match listener.endpoint.transport {
            Transport::Ip(protocol) => self.through(&self.doors(&listener.endpoint, protocol)),
            Transport::RdmaCm => self.by_rdma(listener),
        }
    }

    /// The places of a socket: any address of this host that it takes, or 127.0.0.0/8 where that is open.
    fn doors(&self, endpoint: &Endpoint, protocol: Protocol) -> Vec<Door> {
        let Endpoint { port, address, both_families, device, .. } = endpoint;
        let door = |addresses: BTreeSet<IpAddr>, device: Option<InterfaceName>| Door {
            protocol,
            port: *port,
            addresses,
            device,
            target: reach::Target::Socket,
        };
        if address.is_loopback() {
            let through = self.around.loopback_open.iter().filter(|_| address.is_ipv4());
            return through.map(|interface| door([*address].into(), Some(interface.clone()))).collect();
        }
        let own = self.ground.own();
        let addresses = if address.is_unspecified() {
            own.filter(|own| own.is_ipv4() == address.is_ipv4() || *both_families).collect()
        } else if address.is_multicast() {
            [*address].into()
        } else {
            own.filter(|own| own == address).collect()
        };
        vec![door(addresses, device.clone())]
    }

    /// An RDMA-CM listener is behind the RDMA devices: over software its packets are UDP that rules see.
    fn by_rdma(&self, listener: &Listener) -> Vec<Reach> {
        let mut all = Vec::new();
        for device in listener.rdma.iter().filter_map(|name| self.around.facts.rdma.get(name)) {
            for link in device.ports.values().filter_map(|port| port.netdev.as_ref()) {
                let zones = self.ground.zones().iter().filter(|zone| zone.interfaces.contains(link));
                if device.software {
                    let addresses = self.around.facts.link(link.as_str()).into_iter();
                    let addresses = addresses.flat_map(|link| link.addresses.iter().map(ipnet::IpNet::addr)).collect();
                    all.extend(self.through(&[Door {
                        protocol: Protocol::UDP,
                        port: ROCE_V2_PORT,
                        addresses,
                        device: Some(link.clone()),
                        target: reach::Target::Socket,
                    }]));
                } else {
                    all.extend(zones.map(|zone| self.reach(zone, vec![Peer::Fabric])));
                }
            }
        }
        all.sort();
        all.dedup();
        all
    }

    /// From where published ports can be reached: those of them together of which that is the same.
    pub fn of_published(&self, published: &Published) -> Vec<(PortSet, Vec<Reach>)> {
        let protocols = published.protocol.map_or(vec![Protocol::TCP, Protocol::UDP], |protocol| vec![protocol]);
        let fits = |own: &IpAddr| {
            let family = published.family.is_none_or(|family| (family == Family::V4) == own.is_ipv4());
            family && published.addresses.as_ref().is_none_or(|wanted| wanted.contains(*own))
        };
        let addresses: BTreeSet<IpAddr> = self.ground.own().filter(fits).collect();
        let mut kinds = vec![published.ports.clone()];
        for protocol in &protocols {
            kinds = kinds.iter().flat_map(|ports| self.ground.unlike_ports(*protocol, ports)).collect();
        }
        let mut found: Vec<(PortSet, Vec<Reach>)> = Vec::new();
        for kind in kinds {
            let Some((port, _)) = kind.ranges().first().copied() else { continue };
            let mut doors = Vec::new();
            for (protocol, device) in protocols
                .iter()
                .flat_map(|protocol| self.interfaces(published).into_iter().map(move |device| (*protocol, device)))
            {
                // IPVS acts after our rules for packets to this host.
                let target = match published.via {
                    Via::Ipvs => reach::Target::Socket,
                    Via::Chain { .. } => self.target(&published.target, port, &addresses),
                };
                doors.push(Door { protocol, port, addresses: addresses.clone(), device, target });
            }
            let reach = self.through(&doors);
            match found.iter_mut().find(|(_, known)| *known == reach) {
                Some((ports, _)) => *ports = ports.union(&kind),
                None => found.push((kind, reach)),
            }
        }
        found
    }

    /// The interfaces over which it is published; one `None` for all.
    fn interfaces(&self, published: &Published) -> Vec<Option<InterfaceName>> {
        if published.interfaces.is_any() {
            return vec![None];
        }
        let names = self.ground.zones().iter().flat_map(|zone| &zone.interfaces);
        names.filter(|name| published.interfaces.admits(name.as_str())).map(|name| Some(name.clone())).collect()
    }

    fn target(&self, target: &Target, port: u16, own: &BTreeSet<IpAddr>) -> reach::Target {
        let first = |ports: &Option<(u16, u16)>| ports.map_or(port, |(first, _)| first);
        match target {
            Target::Here(ports) => match own.first() {
                Some(address) => reach::Target::Here(*address, first(ports)),
                None => reach::Target::Socket,
            },
            Target::There(Some(address), ports) if own.contains(address) => reach::Target::Here(*address, first(ports)),
            Target::There(Some(address), ports) => match self.around.ways.get(address) {
                Some(interface) => {
                    let link = self.around.facts.link(interface.as_str());
                    let kind = link.and_then(|link| link.kind.clone());
                    reach::Target::There(*address, first(ports), Exit { interface: interface.clone(), kind })
                }
                None => reach::Target::Elsewhere,
            },
            Target::There(None, _) | Target::Several => reach::Target::Elsewhere,
        }
    }

    /// Who gets through one of the doors, zone by zone.
    fn through(&self, doors: &[Door]) -> Vec<Reach> {
        let of_zone = |zone: &Zone| {
            let (mut reached, mut world) = (AddrSet::default(), AddrSet::default());
            for door in doors {
                reached = reached.union(&self.ground.reached(zone, door));
                world = world.union(&self.ground.world(zone, door));
            }
            let peers = peers::name(&reached, &world, &self.around.sets);
            (!peers.is_empty()).then(|| self.reach(zone, peers))
        };
        self.ground.zones().iter().filter_map(of_zone).collect()
    }

    fn reach(&self, zone: &Zone, peers: Vec<Peer>) -> Reach {
        let whole_role = self.ground.zones().iter().filter(|other| other.role == zone.role).count() == 1;
        Reach { role: zone.role, interfaces: zone.interfaces.clone(), whole_role, peers }
    }
}

/// Where RoCEv2 goes to (`ROCE_V2_UDP_DPORT`, include/rdma/ib_verbs.h).
const ROCE_V2_PORT: u16 = 4791;
