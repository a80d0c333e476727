//! How far rules of ours reach on an interface: what is enforced, and what passes the kernel by (`domain.md` section 5.4).
//!
//! Nothing here claims more than is known: what shares a function with an RDMA device is never "enforced".

use std::collections::{BTreeMap, BTreeSet};

use super::roles::{rdma_of, represented, uplinks};
use crate::net::device::{Ahead, Function, Protocol, RdmaDevice};
use crate::net::facts::{Facts, Link};
use crate::net::interface::Direction;

/// How far rules reach.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    /// Packets take the kernel's path, and rules apply.
    Enforced,
    /// The same, and a hardware filter is proven to work: by a counter of the hardware that moved, or by the driver's report.
    EnforcedOffload,
    /// A hardware filter was asked for. That the kernel accepted it proves nothing.
    OffloadRequested,
    /// Packets never reach nftables.
    Bypassed,
    /// Rules apply to the interface's IP traffic, and an RDMA device shares it whose traffic passes them by.
    Partial,
    /// The function's interface is in another network namespace: a pod's.
    OutOfNetns,
    /// A tc or XDP program may redirect packets before rules see them.
    TcFirst,
    /// The kernel cannot do what was asked for on this device.
    KernelTooOld,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Enforced,
        Self::EnforcedOffload,
        Self::OffloadRequested,
        Self::Partial,
        Self::Bypassed,
        Self::OutOfNetns,
        Self::TcFirst,
        Self::KernelTooOld,
    ];

    /// Its name, as the label `coverage` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::EnforcedOffload => "enforced+offload",
            Self::OffloadRequested => "offload-requested",
            Self::Bypassed => "bypassed",
            Self::Partial => "partial",
            Self::OutOfNetns => "out-of-netns",
            Self::TcFirst => "bridge/tc-first",
            Self::KernelTooOld => "kernel-too-old",
        }
    }
}

/// How far rules reach in one direction, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// The word.
    pub state: State,
    /// The reason, for people.
    pub reason: String,
    /// The RDMA device that has to do with it.
    pub rdma: Option<String>,
}

impl Coverage {
    fn new(state: State, reason: impl Into<String>) -> Self {
        Self { state, reason: reason.into(), rdma: None }
    }

    /// What to tell about something of this name: "rail3 (enp193s0f0np0): PARTIAL - ...".
    pub fn sentence(&self, subject: &str) -> String {
        format!("{subject}: {} - {}", self.state.name().to_uppercase(), self.reason)
    }
}

/// What is known of rules at the device itself, beside those of the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AtDevice {
    /// A hardware filter, if one was asked for.
    pub offload: Option<Offload>,
    /// A chain at the device's hook is wanted and the kernel cannot have it (before Linux 6.16, while the device is away).
    pub unbound: bool,
}

/// How far a hardware filter is known to work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offload {
    /// It was asked for.
    Requested,
    /// A counter of the hardware moved, or the driver reports it.
    Proven,
}

/// How far rules reach on a link in a direction, by the stack's rules alone.
pub fn of_link(facts: &Facts, link: &Link, direction: Direction) -> Coverage {
    coverage(facts, link, direction, AtDevice::default())
}

/// How far rules reach on a link in a direction.
pub fn coverage(facts: &Facts, link: &Link, direction: Direction, device: AtDevice) -> Coverage {
    if let Some((rdma, protocol)) = below(facts, link, 0) {
        let reason = format!(
            "nftables rules enforced for IP traffic; RDMA device {rdma} ({}) bypasses the kernel: {}",
            protocol.name(),
            unfiltered(protocol)
        );
        return Coverage { rdma: Some(rdma.to_owned()), ..Coverage::new(State::Partial, reason) };
    }
    if let Some(port) = represented(link) {
        let reason = format!(
            "{port}: nftables rules enforced for what comes to this host from another function; \
             what the NIC's switch forwards by itself is NOT filtered by nodewall"
        );
        return Coverage::new(State::Partial, reason);
    }
    // On the way out, programs come behind us.
    if direction == Direction::Ingress
        && let Some(first) = ahead(facts, link)
    {
        return Coverage::new(State::TcFirst, first);
    }
    if device.unbound {
        let reason =
            "nftables rules enforced in the stack; this kernel cannot keep a chain on a device that comes and goes";
        return Coverage::new(State::KernelTooOld, reason);
    }
    match device.offload {
        Some(Offload::Proven) => Coverage::new(State::EnforcedOffload, "nftables rules enforced, and in hardware too"),
        Some(Offload::Requested) => Coverage::new(
            State::OffloadRequested,
            "nftables rules enforced; a hardware filter was asked for and is not proven",
        ),
        None => enforced(facts, link),
    }
}

fn enforced(facts: &Facts, link: &Link) -> Coverage {
    let software = rdma_of(facts, link).and_then(|name| facts.rdma.get(name)).filter(|device| device.software);
    let reason = match software {
        Some(device) => {
            format!("nftables rules enforced; RDMA device {} is software and sends through the kernel", device.name)
        }
        None => "nftables rules enforced".to_owned(),
    };
    Coverage { rdma: software.map(|device| device.name.clone()), ..Coverage::new(State::Enforced, reason) }
}

/// What nodewall does not filter, and who could.
const fn unfiltered(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Roce => {
            "UDP 4791 data and RDMA-CM ports (e.g. 4420, 20049) are NOT filtered by nodewall. \
             Enforce in the fabric (switch ACL / P_Key / DPU) or disable RoCE on this port."
        }
        Protocol::Infiniband => {
            "verbs and RDMA-CM ports (e.g. 4420, 20049) are NOT filtered by nodewall. Enforce in the fabric (P_Key)."
        }
        Protocol::Iwarp => {
            "TCP connections that the NIC carries and RDMA-CM ports (e.g. 4420, 20049) are NOT filtered by nodewall. \
             Enforce in the fabric (switch ACL) or do without iWARP on this port."
        }
        Protocol::Srd => "SRD is NOT filtered by nodewall. Enforce by the security group.",
        Protocol::Slingshot => "what libfabric sends by it is NOT filtered by nodewall. Enforce in the fabric.",
        Protocol::Other => "its traffic is NOT filtered by nodewall. Enforce in the fabric.",
    }
}

/// How many links are on top of each other at most.
const DEPTH: u32 = 8;

/// The hardware RDMA device that shares a link or what it stands on, and what carries its traffic: a VLAN's GIDs are on the port below.
fn below<'a>(facts: &'a Facts, link: &'a Link, depth: u32) -> Option<(&'a str, Protocol)> {
    if let Some(name) = rdma_of(facts, link) {
        // Of one that is only known to be there, the worst is assumed.
        let known = facts.rdma.get(name);
        return known
            .is_none_or(|device| !device.software)
            .then(|| (name, known.map_or(Protocol::Other, RdmaDevice::protocol)));
    }
    if depth >= DEPTH || !stands_on_parent(link) {
        return None;
    }
    below(facts, facts.link(link.parent.as_ref()?.as_str())?, depth + 1)
}

/// Whether packets of a link are those of its parent with the same hardware behind it. A tunnel's or a veth's are not.
fn stands_on_parent(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap"))
}

/// What sees packets of a link before us.
fn ahead(facts: &Facts, link: &Link) -> Option<String> {
    // Programs on a slave or a parent see its packets first.
    let on = |other: &&Link| {
        other.name == link.name
            || other.master.as_ref() == Some(&link.name)
            || stands_on_parent(link) && link.parent.as_ref() == Some(&other.name)
    };
    // Cilium's programs are attached by tcx since Linux 6.6, and only bpf(2) tells of that.
    if facts.link("cilium_host").is_some() && link.name.as_str() != "cilium_host" && uplinks(facts).contains(&link.name)
    {
        return Some(
            "nftables rules enforced for what gets there; Cilium's programs come first and may redirect packets"
                .to_owned(),
        );
    }
    let (program, place) =
        facts.links.values().filter(on).find_map(|other| Some((other.ahead.first()?, other.name.as_str())))?;
    let what = match program {
        Ahead::Xdp => "an XDP program",
        Ahead::Tc => "tc's hook",
    };
    Some(format!(
        "nftables rules enforced for what gets there; {what} on {place} comes first and may drop or redirect packets"
    ))
}

/// What has no interface here, by name, with how far rules reach there: RDMA devices, and functions of network cards.
pub fn elsewhere(facts: &Facts) -> BTreeMap<String, Coverage> {
    let mut found: BTreeMap<String, Coverage> = facts
        .functions
        .values()
        .filter_map(|function| Some((function.location.path.address.to_string(), of_function(function)?)))
        .collect();
    // With a function in another namespace, that is said of it and not of its RDMA device too.
    let told: BTreeSet<String> = found.values().filter_map(|coverage| coverage.rdma.clone()).collect();
    for device in facts.rdma.values().filter(|device| !device.software && !told.contains(&device.name)) {
        let has_link =
            facts.links.values().any(|link| below(facts, link, 0).is_some_and(|(name, _)| name == device.name));
        if !has_link {
            let protocol = device.protocol();
            let reason = format!("no interface; {} never reaches nftables: {}", protocol.name(), unfiltered(protocol));
            let coverage = Coverage { rdma: Some(device.name.clone()), ..Coverage::new(State::Bypassed, reason) };
            found.insert(device.name.clone(), coverage);
        }
    }
    found
}

/// Drivers that hand a function to user space: a virtual machine, or DPDK.
const USER_SPACE: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio", "mlx5-vfio-pci", "mlx5_vfio_pci"];

/// How far rules reach on a function without an interface here; nothing for one that nobody drives, and for one whose RDMA device is
/// told of by itself.
fn of_function(function: &Function) -> Option<Coverage> {
    let driver = function.driver.as_deref()?;
    let what = match function.physfn {
        Some(physfn) => format!("virtual function of {physfn}"),
        None => "network function".to_owned(),
    };
    if USER_SPACE.contains(&driver) {
        let reason = format!(
            "{what}, driver {driver}: a virtual machine or a program has it, and its packets never reach nftables"
        );
        return Some(Coverage::new(State::Bypassed, reason));
    }
    if !function.rdma.is_empty() && function.physfn.is_none() {
        return None;
    }
    let rdma = function.rdma.first().map(|name| format!(" and RDMA device {name}")).unwrap_or_default();
    let reason = format!(
        "left host netns - not protected; {what}, driver {driver}, has no interface in this network namespace, \
         and rules here see no packet of it{rdma}"
    );
    Some(Coverage { rdma: function.rdma.first().cloned(), ..Coverage::new(State::OutOfNetns, reason) })
}

/// How many there are of each state.
pub fn counts<'a>(all: impl IntoIterator<Item = &'a Coverage>) -> BTreeMap<State, usize> {
    let mut counts = BTreeMap::new();
    for coverage in all {
        *counts.entry(coverage.state).or_default() += 1;
    }
    counts
}
