//! `nodewall interfaces --tree`: the machine as a picture to paste into a ticket.

use std::collections::{BTreeMap, BTreeSet};

use super::{gpu_name, speed};
use crate::net::facts::{Facts, Link};
use crate::net::interface::{Direction, Role};
use crate::net::pci::{Location, PciAddress, PciPath};
use crate::net::rail;
use crate::policy::coverage;
use crate::policy::effective::Effective;
use crate::policy::roles::rdma_of;

/// The machine: CPU sockets and NUMA nodes, root complexes, switches where something shares one, and what is there.
pub(super) fn draw(facts: &Facts, effective: &Effective) -> String {
    let machine = Machine { facts, effective, elsewhere: coverage::elsewhere(facts) };
    let mut top = machine.hardware();
    top.extend(machine.others());
    let name = if facts.node.is_empty() { "this host" } else { &facts.node };
    let mut out = format!("{name}\n");
    lines(&mut out, "", &top);
    out
}

/// A line with what is below it.
struct Branch {
    text: String,
    below: Vec<Branch>,
}

fn leaf(text: String) -> Branch {
    Branch { text, below: Vec::new() }
}

fn lines(out: &mut String, indent: &str, branches: &[Branch]) {
    for (number, branch) in branches.iter().enumerate() {
        let (here, further) = if number + 1 == branches.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        out.push_str(&format!("{indent}{here}{}\n", branch.text));
        lines(out, &format!("{indent}{further}"), &branch.below);
    }
}

/// Bridges with what is below them.
#[derive(Default)]
struct Bridge<'a> {
    bridges: BTreeMap<PciAddress, Bridge<'a>>,
    devices: BTreeSet<&'a PciPath>,
}

/// A root complex, in the order of the picture.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Root<'a> {
    /// Whether its NUMA node is not known; such come last.
    unknown: bool,
    socket: Option<u32>,
    numa: Option<u32>,
    name: &'a str,
}

struct Machine<'a> {
    facts: &'a Facts,
    effective: &'a Effective,
    elsewhere: BTreeMap<String, coverage::Coverage>,
}

impl<'a> Machine<'a> {
    /// What is on PCI, by socket, NUMA node and root complex.
    fn hardware(&self) -> Vec<Branch> {
        let mut roots: BTreeMap<Root<'a>, Bridge<'a>> = BTreeMap::new();
        for location in self.locations() {
            let socket = location.numa.and_then(|numa| self.facts.sockets.get(&numa).copied());
            let mut bridge = roots
                .entry(Root {
                    unknown: location.numa.is_none(),
                    socket,
                    numa: location.numa,
                    name: &location.path.root,
                })
                .or_default();
            for address in &location.path.bridges {
                bridge = bridge.bridges.entry(*address).or_default();
            }
            bridge.devices.insert(&location.path);
        }
        let mut sockets: Vec<Branch> = Vec::new();
        let mut last = None;
        for (Root { socket, numa, name, .. }, bridge) in &roots {
            if last != Some((socket, numa)) {
                last = Some((socket, numa));
                sockets.push(leaf(match (socket, numa) {
                    (Some(socket), Some(numa)) => format!("CPU socket {socket}, NUMA node {numa}"),
                    (None, Some(numa)) => format!("NUMA node {numa}"),
                    _ => "PCI, NUMA node not known".to_owned(),
                }));
            }
            if let Some(socket) = sockets.last_mut() {
                socket.below.push(Branch { text: format!("root complex {name}"), below: self.below(bridge) });
            }
        }
        sockets
    }

    /// Where there is anything to show.
    fn locations(&self) -> impl Iterator<Item = &'a Location> {
        let facts = self.facts;
        let links = facts.links.values().filter_map(|link| link.location.as_ref());
        let gpus = facts.gpus.values().map(|gpu| &gpu.location);
        let functions = facts.functions.values().map(|function| &function.location);
        let rdma = facts.rdma.values().filter_map(|device| device.location.as_ref());
        links.chain(gpus).chain(functions).chain(rdma)
    }

    fn below(&self, bridge: &Bridge<'a>) -> Vec<Branch> {
        let mut branches = Vec::new();
        for (address, inner) in &bridge.bridges {
            let below = self.below(inner);
            if below.len() < 2 {
                // A bridge with one thing below it is only the way there.
                branches.extend(below);
                continue;
            }
            let cards: BTreeSet<(u32, u8, u8)> =
                inner.devices.iter().map(|path| (path.address.domain, path.address.bus, path.address.device)).collect();
            let text = match cards.first() {
                Some((domain, bus, device)) if cards.len() == 1 && inner.bridges.is_empty() => {
                    format!("card {domain:04x}:{bus:02x}:{device:02x}")
                }
                _ => format!("PCIe switch {address}"),
            };
            branches.push(Branch { text, below });
        }
        branches.extend(bridge.devices.iter().map(|path| self.device(path.address)));
        branches
    }

    fn device(&self, address: PciAddress) -> Branch {
        if let Some(gpu) = self.facts.gpus.get(&address) {
            let model = gpu.model.as_deref().unwrap_or(gpu.vendor.name());
            return leaf(format!("GPU {address}  {}  {model}", gpu_name(self.facts, address)));
        }
        let links: Vec<&Link> = self.facts.links.values().filter(|link| at(link) == Some(address)).collect();
        let devices = self.facts.rdma.values().filter(|device| {
            device.location.as_ref().map(|location| location.path.address) == Some(address)
                && !links.iter().any(|link| rdma_of(self.facts, link) == Some(&device.name))
        });
        let mut below: Vec<Branch> = links.iter().map(|link| leaf(self.interface(link))).collect();
        below.extend(devices.map(|device| leaf(self.rdma(&device.name))));
        let on_it = self.facts.subfunctions.iter().filter(|(_, sub)| sub.location.path.address == address);
        below.extend(on_it.map(|(name, sub)| {
            let driver = sub.driver.as_deref().unwrap_or("no driver");
            let state = self.elsewhere.get(name).map(|coverage| format!("  {}", coverage.state.name()));
            leaf(format!("SF {name}  {driver}{}", state.unwrap_or_default()))
        }));
        let function = self.facts.functions.get(&address);
        let physfn =
            function.and_then(|function| function.physfn).or_else(|| links.iter().find_map(|link| link.physfn));
        let what = match physfn {
            Some(physfn) => format!("VF {address} of {physfn}"),
            None if links.iter().all(|link| link.bus.as_deref() == Some("usb")) && !links.is_empty() => {
                format!("USB {address}")
            }
            None => format!("NIC {address}"),
        };
        if let Some(function) = function {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let state = self.elsewhere.get(&address.to_string());
            let state = state.map(|coverage| format!("  {}", coverage.state.name())).unwrap_or_default();
            return Branch { text: format!("{what}  {driver}{state}"), below };
        }
        match below.as_slice() {
            [only] => leaf(format!("{what}  {}", only.text)),
            _ => Branch { text: what, below },
        }
    }

    /// An interface in a line: name, role or rail, speed, RDMA device, coverage.
    fn interface(&self, link: &Link) -> String {
        let found = self.effective.interfaces.iter().find(|found| found.index == link.index);
        let role = found.map_or(Role::Unknown, |found| found.role);
        let mut parts = vec![link.name.to_string()];
        match found.and_then(|found| found.labels.get("rail")) {
            Some(rail) if role == Role::Rail => parts.push(rail.clone()),
            Some(rail) => parts.push(format!("{rail} {role}")),
            None => parts.push(role.to_string()),
        }
        parts.extend(link.speed.map(speed));
        parts.extend(rdma_of(self.facts, link).map(|device| self.rdma(device)));
        let coverage = found.and_then(|found| found.coverage.get(&Direction::Ingress));
        parts.extend(coverage.map(|coverage| coverage.state.name().to_owned()));
        if !link.up {
            parts.push("down".to_owned());
        }
        parts.join("  ")
    }

    /// An RDMA device in a line: name, protocol, state, and how far rules reach when nothing else says it.
    fn rdma(&self, name: &str) -> String {
        let Some(device) = self.facts.rdma.get(name) else { return format!("RDMA {name}") };
        let states: Vec<&str> =
            device.ports.values().map(|port| port.state.as_str()).filter(|state| !state.is_empty()).collect();
        let mut text = format!("RDMA {name} {}", device.protocol().name());
        if !states.is_empty() {
            text.push_str(&format!(" {}", states.join(" ")));
        }
        if let Some(coverage) = self.elsewhere.get(name) {
            let rail = self.effective.rails.iter().find(|(_, rail)| rail.rdma == name);
            let rail = rail.map(|(number, _)| format!("  {}", rail::name(*number))).unwrap_or_default();
            text.push_str(&format!("{rail}  {}", coverage.state.name()));
        }
        text
    }

    /// What is not on PCI: software links with what they are made of, and pods' links as a number.
    fn others(&self) -> Vec<Branch> {
        let mut found = Vec::new();
        let mut pods = 0;
        for link in self.facts.links.values().filter(|link| at(link).is_none() && link.link_layer() != "loopback") {
            let interface = self.effective.interfaces.iter().find(|found| found.index == link.index);
            if link.kind.as_deref() == Some("veth") && interface.is_some_and(|found| found.role == Role::Pod) {
                pods += 1;
                continue;
            }
            let slaves = self.facts.links.values().filter(|slave| slave.master.as_ref() == Some(&link.name));
            let slaves: Vec<String> = slaves.map(|slave| slave.name.to_string()).collect();
            let on = match (&link.parent, slaves.as_slice()) {
                (Some(parent), _) => format!("  on {parent}"),
                (None, []) => String::new(),
                (None, slaves) => format!("  of {}", slaves.join(" ")),
            };
            let kind = link.kind.as_deref().or(link.bus.as_deref()).unwrap_or("device");
            found.push(leaf(format!("{kind} {}{on}", self.interface(link))));
        }
        if pods > 0 {
            found.push(leaf(super::count(pods, "link of a pod").replace("link of a pods", "links of pods")));
        }
        if found.is_empty() { found } else { vec![Branch { text: "not on PCI".to_owned(), below: found }] }
    }
}

/// The PCI function that carries a link.
fn at(link: &Link) -> Option<PciAddress> {
    link.location.as_ref().map(|location| location.path.address)
}
