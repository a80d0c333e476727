//! `nodewall interfaces`: what each interface is and why, what is behind it, and how far rules reach there.

mod tree;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::examine::{Examined, examine};
use super::exit::Exit;
use super::output::{Output, count};
use super::status::{names, table};
use crate::daemon::documents;
use crate::net::device::{RdmaDevice, RdmaLinkLayer};
use crate::net::facts::{Facts, Link};
use crate::net::interface::{Direction, Role};
use crate::net::pci::{Location, PciAddress, Proximity};
use crate::net::rail;
use crate::policy::coverage::{self, Coverage, State};
use crate::policy::effective::{Effective, Interface};
use crate::policy::rails::nearest_gpu;
use crate::policy::roles::rdma_of;
use crate::source::Trust;

/// Arguments of `interfaces`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Draw the machine instead: CPU sockets, PCIe switches, GPUs, NICs, rails and RDMA devices
    #[arg(long, conflicts_with = "json")]
    tree: bool,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let Examined { facts, effective, findings, documents } = examine(options, &[], Trust::Anyone, output);
    if documents::errors(&findings) > 0 {
        output
            .message("the policy has errors (`nodewall check` shows them); roles and policies are by what is without");
    }
    if options.root.is_none() && hidden(&documents.config.state_directory) {
        output.message("the numbers of rails that the daemon remembers cannot be read; they may be others");
    }
    let report = Report::of(&facts, &effective);
    if output.json {
        output.json(&report)
    } else if arguments.tree {
        output.data(&tree::draw(&facts, &effective))
    } else {
        output.data(&report.text())
    }
}

/// Whether a directory is there and not ours to read.
fn hidden(directory: &Path) -> bool {
    directory.read_dir().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// What `interfaces --json` prints.
#[derive(Serialize)]
struct Report {
    version: u32,
    /// The host name.
    node: String,
    interfaces: Vec<InterfaceRecord>,
    rails: Vec<RailRecord>,
    gpus: Vec<GpuRecord>,
    rdma: Vec<RdmaRecord>,
    /// What has no interface here: RDMA devices, and functions of network cards.
    elsewhere: Vec<ElsewhereRecord>,
    /// How many interfaces and things elsewhere are in each state, by the way in.
    coverage: BTreeMap<&'static str, usize>,
}

#[derive(Serialize)]
struct InterfaceRecord {
    name: String,
    index: u32,
    role: &'static str,
    /// How the role was found.
    why: String,
    rail: Option<String>,
    labels: BTreeMap<String, String>,
    up: bool,
    addresses: Vec<String>,
    speed_mbps: Option<u32>,
    mtu: Option<u32>,
    mac: Option<String>,
    kind: Option<String>,
    driver: Option<String>,
    bus: Option<String>,
    pci: Option<String>,
    numa: Option<u32>,
    master: Option<String>,
    parent: Option<String>,
    rdma: Option<String>,
    pkey: Option<String>,
    switch: Option<String>,
    port: Option<String>,
    physfn: Option<String>,
    vfs: Option<u32>,
    gpu: Option<NearRecord>,
    policies: Vec<String>,
    coverage: BTreeMap<&'static str, CoverageRecord>,
}

#[derive(Serialize)]
struct NearRecord {
    /// "gpu0": the number counts in the order of PCI addresses.
    name: String,
    pci: String,
    proximity: &'static str,
}

#[derive(Serialize)]
struct CoverageRecord {
    state: &'static str,
    reason: String,
    rdma: Option<String>,
}

#[derive(Serialize)]
struct RailRecord {
    name: String,
    /// Whether its NIC is there; one that is not keeps its number.
    there: bool,
    pci: String,
    guid: Option<String>,
    rdma: Option<String>,
    gpu: Option<NearRecord>,
}

#[derive(Serialize)]
struct GpuRecord {
    name: String,
    pci: String,
    vendor: &'static str,
    model: Option<String>,
    driver: Option<String>,
    minor: Option<u32>,
    numa: Option<u32>,
}

#[derive(Serialize)]
struct RdmaRecord {
    name: String,
    protocol: &'static str,
    software: bool,
    driver: Option<String>,
    pci: Option<String>,
    numa: Option<u32>,
    node_guid: Option<String>,
    ports: Vec<PortRecord>,
}

#[derive(Serialize)]
struct PortRecord {
    number: u32,
    state: String,
    link_layer: Option<&'static str>,
    netdev: Option<String>,
    guid: Option<String>,
    pkeys: Vec<String>,
}

#[derive(Serialize)]
struct ElsewhereRecord {
    /// The name of an RDMA device, or a PCI address.
    name: String,
    #[serde(flatten)]
    coverage: CoverageRecord,
}

impl From<Coverage> for CoverageRecord {
    fn from(Coverage { state, reason, rdma }: Coverage) -> Self {
        Self { state: state.name(), reason, rdma }
    }
}

impl Report {
    fn of(facts: &Facts, effective: &Effective) -> Self {
        let pairs = || effective.interfaces.iter().filter_map(|found| Some((found, facts.links.get(&found.index)?)));
        let elsewhere = coverage::elsewhere(facts);
        let ingress: Vec<Coverage> =
            pairs().filter_map(|(found, _)| found.coverage.get(&Direction::Ingress).cloned()).collect();
        let counts = coverage::counts(ingress.iter().chain(elsewhere.values()));
        let mut interfaces: Vec<InterfaceRecord> =
            pairs().map(|(found, link)| InterfaceRecord::of(facts, effective, found, link)).collect();
        interfaces.sort_by_cached_key(InterfaceRecord::order);
        Self {
            version: 1,
            node: facts.node.clone(),
            interfaces,
            rails: rails(facts, effective),
            gpus: gpus(facts),
            rdma: facts.rdma.values().map(RdmaRecord::of).collect(),
            elsewhere: elsewhere
                .into_iter()
                .map(|(name, coverage)| ElsewhereRecord { name, coverage: coverage.into() })
                .collect(),
            coverage: counts.into_iter().map(|(state, count)| (state.name(), count)).collect(),
        }
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{}: {}, {}, {}\n",
            if self.node.is_empty() { "this host" } else { &self.node },
            count(self.interfaces.len(), "interface"),
            count(self.gpus.len(), "GPU"),
            count(self.rdma.len(), "RDMA device"),
        );
        let states = coverage::counts_in_words(|state| self.coverage.get(state.name()).copied().unwrap_or_default());
        // Writing to a String does not fail.
        let _ = writeln!(out, "coverage: {states}");
        table(
            &mut out,
            [
                "NAME",
                "ROLE",
                "RAIL",
                "COVERAGE",
                "SPEED",
                "DRIVER",
                "RDMA",
                "NUMA",
                "GPU",
                "ADDRESSES",
                "POLICIES",
                "WHY",
            ],
            &[false, false, false, false, true, false, false, true, false, false, false, false],
            self.interfaces.iter().map(InterfaceRecord::row).collect(),
        );
        let missing = self.rails.iter().filter(|rail| !rail.there);
        let missing =
            missing.map(|rail| format!("{}: its NIC at {} is not there; the number stays free", rail.name, rail.pci));
        let seen = self.interfaces.iter().filter_map(InterfaceRecord::sentence);
        let unseen = self.elsewhere.iter().map(|found| sentence(&found.name, &found.coverage));
        let lines: Vec<String> = missing.chain(seen).chain(unseen).collect();
        if !lines.is_empty() {
            let _ = write!(out, "\n{}\n", lines.join("\n"));
        }
        out
    }
}

fn sentence(subject: &str, CoverageRecord { state, reason, .. }: &CoverageRecord) -> String {
    coverage::sentence(subject, state, reason)
}

impl InterfaceRecord {
    fn of(facts: &Facts, effective: &Effective, found: &Interface, link: &Link) -> Self {
        let text = |value: &Option<String>| value.clone();
        let policies = effective.tiers.iter().flat_map(|tier| &tier.policies);
        let policies = policies.filter(|policy| policy.interfaces.matches(&found.labels));
        Self {
            name: found.name.to_string(),
            index: found.index,
            role: found.role.name(),
            why: found.why.clone(),
            rail: found.labels.get("rail").cloned(),
            labels: found.labels.clone(),
            up: link.up,
            addresses: link.addresses.iter().map(ToString::to_string).collect(),
            speed_mbps: link.speed,
            mtu: link.mtu,
            mac: text(&link.mac),
            kind: text(&link.kind),
            driver: text(&link.driver),
            bus: text(&link.bus),
            pci: text(&link.pci),
            numa: place(facts, link).and_then(|place| place.numa),
            master: link.master.as_ref().map(ToString::to_string),
            parent: link.parent.as_ref().map(ToString::to_string),
            rdma: rdma_of(facts, link).map(str::to_owned),
            pkey: link.pkey.map(|key| format!("{key:#06x}")),
            switch: text(&link.switch),
            port: text(&link.port),
            physfn: link.physfn.map(|address| address.to_string()),
            vfs: link.sriov.map(|sriov| sriov.vfs),
            gpu: place(facts, link).and_then(|place| near(facts, place)),
            policies: policies.map(|policy| policy.name.clone()).collect(),
            coverage: found.coverage.iter().map(|(way, coverage)| (way.name(), coverage.clone().into())).collect(),
        }
    }

    /// By role in the order of the manual, rails by their number, then by name.
    fn order(&self) -> (usize, usize, String, String) {
        let role = Role::ALL.iter().take_while(|role| role.name() != self.role).count();
        // "rail10" comes after "rail9".
        let rail = self.rail.clone().unwrap_or_default();
        (role, rail.len(), rail, self.name.clone())
    }

    fn way(&self, direction: Direction) -> &CoverageRecord {
        &self.coverage[direction.name()]
    }

    fn row(&self) -> [String; 12] {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let some = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let (into, out) = (self.way(Direction::Ingress).state, self.way(Direction::Egress).state);
        let near = self.gpu.as_ref().filter(|gpu| gpu.proximity != Proximity::System.name());
        let down = if self.up { "" } else { " (down)" };
        [
            format!("{}{down}", self.name),
            self.role.to_owned(),
            or_dash(self.rail.clone()),
            if into == out { into.to_owned() } else { format!("{into} in, {out} out") },
            or_dash(self.speed_mbps.map(speed)),
            or_dash(self.driver.clone().or_else(|| self.kind.clone())),
            or_dash(self.rdma.clone()),
            or_dash(self.numa.map(|numa| numa.to_string())),
            or_dash(near.map(|gpu| format!("{} {}", gpu.name, gpu.proximity))),
            some(names(&self.addresses)),
            some(names(&self.policies)),
            self.why.clone(),
        ]
    }

    /// What is to be said about an interface on which rules do not reach everything.
    fn sentence(&self) -> Option<String> {
        let coverage = self.way(Direction::Ingress);
        let subject = match &self.rail {
            Some(rail) => format!("{rail} ({})", self.name),
            None => self.name.clone(),
        };
        (coverage.state != State::Enforced.name()).then(|| sentence(&subject, coverage))
    }
}

/// Where an interface is: its device, else its RDMA device, as of a bond.
fn place<'a>(facts: &'a Facts, link: &'a Link) -> Option<&'a Location> {
    link.location.as_ref().or_else(|| facts.rdma.get(rdma_of(facts, link)?)?.location.as_ref())
}

/// A speed in Mbit/s as people say it: "400G".
fn speed(mbps: u32) -> String {
    match mbps {
        0..1000 => format!("{mbps}M"),
        _ if mbps.is_multiple_of(1000) => format!("{}G", mbps / 1000),
        _ => format!("{:.1}G", f64::from(mbps) / 1000.0),
    }
}

/// "gpu0" for the first by PCI address, as nvidia-smi(1) numbers them.
fn gpu_name(facts: &Facts, address: PciAddress) -> String {
    format!("gpu{}", facts.gpus.keys().take_while(|other| **other < address).count())
}

fn near(facts: &Facts, place: &Location) -> Option<NearRecord> {
    let (address, distance) = nearest_gpu(facts, place)?;
    Some(NearRecord { name: gpu_name(facts, address), pci: address.to_string(), proximity: distance.proximity.name() })
}

fn rails(facts: &Facts, effective: &Effective) -> Vec<RailRecord> {
    let rails = effective.remembered.iter().map(|(number, slot)| {
        let rail = effective.rails.get(number);
        RailRecord {
            name: rail::name(*number),
            there: rail.is_some(),
            pci: slot.pci.to_string(),
            guid: slot.guid.clone(),
            rdma: rail.map(|rail| rail.rdma.clone()),
            gpu: rail.and_then(|rail| rail.gpu).map(|(address, distance)| NearRecord {
                name: gpu_name(facts, address),
                pci: address.to_string(),
                proximity: distance.proximity.name(),
            }),
        }
    });
    rails.collect()
}

fn gpus(facts: &Facts) -> Vec<GpuRecord> {
    let gpus = facts.gpus.iter().map(|(address, gpu)| GpuRecord {
        name: gpu_name(facts, *address),
        pci: address.to_string(),
        vendor: gpu.vendor.name(),
        model: gpu.model.clone(),
        driver: gpu.driver.clone(),
        minor: gpu.minor,
        numa: gpu.location.numa,
    });
    gpus.collect()
}

impl RdmaRecord {
    fn of(device: &RdmaDevice) -> Self {
        let location = device.location.as_ref();
        Self {
            name: device.name.clone(),
            protocol: device.protocol().name(),
            software: device.software,
            driver: device.driver.clone(),
            pci: location.map(|location| location.path.address.to_string()),
            numa: location.and_then(|location| location.numa),
            node_guid: device.node_guid.clone(),
            ports: device
                .ports
                .iter()
                .map(|(number, port)| PortRecord {
                    number: *number,
                    state: port.state.clone(),
                    link_layer: port.link_layer.map(|layer| match layer {
                        RdmaLinkLayer::Infiniband => "infiniband",
                        RdmaLinkLayer::Ethernet => "ethernet",
                    }),
                    netdev: port.netdev.as_ref().map(ToString::to_string),
                    guid: port.guid.clone(),
                    pkeys: port.pkeys.iter().map(|key| format!("{key:#06x}")).collect(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_said_as_people_say_them() {
        for (mbps, words) in [(100, "100M"), (1000, "1G"), (2500, "2.5G"), (400_000, "400G")] {
            assert_eq!(speed(mbps), words);
        }
    }
}
