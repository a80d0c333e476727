//! How far rules of ours reach on an interface: what is enforced, and what passes the kernel by (`domain.md` section 5.4).
//!
//! Nothing here claims more than is known: what shares a function with an RDMA device is never "enforced".

use std::collections::{BTreeMap, BTreeSet};

use super::effective::Interface;
use super::model::InterfaceOverride;
use super::roles::{rdma_of, represented, uplinks};
use super::selector::Labels;
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
        sentence(subject, self.state.name(), &self.reason)
    }
}

/// The sentence about something of which state and reason are known by their words.
pub fn sentence(subject: &str, state: &str, reason: &str) -> String {
    format!("{subject}: {} - {reason}", state.to_uppercase())
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

/// How far rules reach where somebody says that they do not.
pub fn declared(said: &InterfaceOverride) -> Coverage {
    let (name, place) = (&said.name, said.place.short());
    let reason = format!("declared by [[interface]] {name} ({place}): its packets never reach nftables");
    Coverage::new(State::Bypassed, reason)
}

/// An interface on which traffic passes the kernel by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unseen {
    /// What to call it: "rail3 (enp193s0f0np0)".
    pub subject: String,
    /// Its labels.
    pub labels: Labels,
    /// Why: "RDMA device mlx5_3 carries it".
    pub why: String,
}

/// The interfaces whose RoCE packets, udp/4791, never reach nftables.
pub fn roce(facts: &Facts, interfaces: &[Interface]) -> Vec<Unseen> {
    let unseen = |interface: &Interface| {
        let (name, labels) = (interface.name.as_str(), &interface.labels);
        let link = facts.links.get(&interface.index).filter(|link| link.name == interface.name)?;
        let state = interface.coverage.get(&Direction::Ingress).map(|coverage| coverage.state);
        let why = match below(facts, link, 0) {
            _ if state == Some(State::Bypassed) => "nothing on it reaches nftables".to_owned(),
            Some((device, Protocol::Roce)) => format!("RDMA device {device} carries it"),
            // Of one that is only known to be there, the worst is assumed.
            Some((device, _)) if !facts.rdma.contains_key(device) => format!("RDMA device {device} may carry it"),
            _ => return None,
        };
        let subject = labels.get("rail").map_or_else(|| name.to_owned(), |rail| format!("{rail} ({name})"));
        Some(Unseen { subject, labels: labels.clone(), why })
    };
    interfaces.iter().filter_map(unseen).collect()
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
    let may_be_uplink = link.default_route || link.master.is_some();
    if may_be_uplink && facts.link("cilium_host").is_some() && uplinks(facts).contains(&link.name) {
        let reason =
            "nftables rules enforced for what gets there; Cilium's programs come first and may redirect packets";
        return Some(reason.to_owned());
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
    let functions = facts.functions.iter().map(|(address, function)| {
        let what = match function.physfn {
            Some(physfn) => format!("virtual function of {physfn}"),
            None => "network function".to_owned(),
        };
        (address.to_string(), of_function(function, &what))
    });
    let subfunctions = facts.subfunctions.iter().map(|(name, function)| {
        let what = format!("subfunction of {}", function.location.path.address);
        (name.clone(), of_function(function, &what))
    });
    let mut found: BTreeMap<String, Coverage> =
        functions.chain(subfunctions).filter_map(|(name, coverage)| Some((name, coverage?))).collect();
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
fn of_function(function: &Function, what: &str) -> Option<Coverage> {
    let driver = function.driver.as_deref()?;
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

/// How many there are of each state; every state is there.
pub fn counts<'a>(all: impl IntoIterator<Item = &'a Coverage>) -> BTreeMap<State, usize> {
    let mut counts: BTreeMap<State, usize> = State::ALL.map(|state| (state, 0)).into();
    for coverage in all {
        *counts.entry(coverage.state).or_default() += 1;
    }
    counts
}

/// The counts in words: "enforced 3, partial 8, bypassed 0". Those of which one would want to know that there is none are always told.
pub fn counts_in_words(count: impl Fn(State) -> usize) -> String {
    let told = |state: &State| count(*state) > 0 || matches!(state, State::Enforced | State::Partial | State::Bypassed);
    let states = State::ALL.into_iter().filter(told);
    states.map(|state| format!("{} {}", state.name(), count(state))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::net::device::{Flavour, RdmaLinkLayer, RdmaNode, RdmaPort};
    use crate::net::interface::InterfaceName;
    use crate::net::pci::{Location, PciPath};

    fn link(index: u32, name: &str, change: impl FnOnce(&mut Link)) -> (u32, Link) {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        change(&mut link);
        (index, link)
    }

    fn device(name: &str, node: RdmaNode, layer: Option<RdmaLinkLayer>, software: bool) -> (String, RdmaDevice) {
        let port = RdmaPort { link_layer: layer, ..RdmaPort::default() };
        (name.to_owned(), RdmaDevice { node, software, ports: [(1, port)].into(), ..RdmaDevice::named(name) })
    }

    fn node() -> Facts {
        let ethernet = Some(RdmaLinkLayer::Ethernet);
        let named = |name: &str| Some(InterfaceName::new(name).unwrap());
        let links = [
            link(1, "lo", |link| link.hardware = 772),
            link(2, "eno1", |link| link.default_route = true),
            link(3, "rail3", |link| link.rdma = Some("mlx5_3".to_owned())),
            link(4, "rail3.7", |link| (link.kind, link.parent) = (Some("vlan".to_owned()), named("rail3"))),
            link(5, "iw0", |link| link.rdma = Some("irdma0".to_owned())),
            link(6, "soft0", |link| link.rdma = Some("rxe0".to_owned())),
            link(7, "odd0", |link| link.rdma = Some("nobody-knows".to_owned())),
            link(8, "xdp0", |link| link.ahead = [Ahead::Xdp].into()),
            link(9, "pf0vf1", |link| link.flavour = Some(Flavour::PciVf)),
            link(10, "vx0", |link| (link.kind, link.parent) = (Some("vxlan".to_owned()), named("rail3"))),
            link(11, "bond0", |link| link.kind = Some("bond".to_owned())),
            link(12, "slave0", |link| (link.master, link.ahead) = (named("bond0"), [Ahead::Tc].into())),
            link(13, "both0", |link| (link.rdma, link.ahead) = (Some("mlx5_3".to_owned()), [Ahead::Tc].into())),
        ];
        let rdma = [
            device("mlx5_3", RdmaNode::Ca, ethernet, false),
            device("irdma0", RdmaNode::Rnic, ethernet, false),
            device("rxe0", RdmaNode::Ca, ethernet, true),
        ];
        Facts { links: links.into(), rdma: rdma.into(), ..Facts::default() }
    }

    fn states(facts: &Facts, name: &str) -> [State; 2] {
        Direction::BOTH.map(|direction| of_link(facts, facts.link(name).unwrap(), direction).state)
    }

    #[test]
    fn only_what_the_kernel_sees_is_enforced() {
        use State::{Enforced, Partial, TcFirst};
        let facts = node();
        for (name, expected) in [
            ("lo", [Enforced; 2]),
            ("eno1", [Enforced; 2]),
            ("rail3", [Partial; 2]),
            ("rail3.7", [Partial; 2]),
            ("iw0", [Partial; 2]),
            ("soft0", [Enforced; 2]),
            ("odd0", [Partial; 2]),
            ("xdp0", [TcFirst, Enforced]),
            ("pf0vf1", [Partial; 2]),
            ("vx0", [Enforced; 2]),
            ("bond0", [TcFirst, Enforced]),
            ("slave0", [TcFirst, Enforced]),
            ("both0", [Partial; 2]),
        ] {
            assert_eq!(states(&facts, name), expected, "{name}");
        }
        assert_eq!(
            states(&Facts { rdma: [].into(), ..facts.clone() }, "soft0"),
            [Partial; 2],
            "of what nobody knows, the worst"
        );
    }

    #[test]
    fn where_cilium_is_its_programs_come_first_on_the_uplink() {
        let mut facts = node();
        facts.links.extend([link(20, "cilium_host", |link| link.kind = Some("veth".to_owned()))]);
        assert_eq!(states(&facts, "eno1"), [State::TcFirst, State::Enforced]);
        assert_eq!(states(&facts, "soft0"), [State::Enforced; 2]);
    }

    #[test]
    fn what_is_bypassed_is_said_with_the_device_and_who_could_filter_it() {
        let facts = node();
        let said = |name: &str, subject: &str| {
            of_link(&facts, facts.link(name).unwrap(), Direction::Ingress).sentence(subject)
        };
        // The words of domain.md section 5.4.
        assert_eq!(
            said("rail3", "rail3 (enp193s0f0np0)"),
            "rail3 (enp193s0f0np0): PARTIAL - nftables rules enforced for IP traffic; RDMA device mlx5_3 (RoCEv2) bypasses the kernel: \
             UDP 4791 data and RDMA-CM ports (e.g. 4420, 20049) are NOT filtered by nodewall. Enforce in the fabric (switch ACL / P_Key / \
             DPU) or disable RoCE on this port."
        );
        assert!(
            said("iw0", "iw0").contains("irdma0 (iWARP) bypasses the kernel: TCP connections that the NIC carries")
        );
        assert!(said("soft0", "soft0").ends_with("RDMA device rxe0 is software and sends through the kernel"));
    }

    #[test]
    fn a_hardware_filter_is_believed_when_it_is_proven() {
        let facts = node();
        let of = |name: &str, device| coverage(&facts, facts.link(name).unwrap(), Direction::Ingress, device).state;
        let asked = AtDevice { offload: Some(Offload::Requested), unbound: false };
        assert_eq!(of("eno1", asked), State::OffloadRequested);
        assert_eq!(of("eno1", AtDevice { offload: Some(Offload::Proven), ..asked }), State::EnforcedOffload);
        assert_eq!(of("eno1", AtDevice { offload: None, unbound: true }), State::KernelTooOld);
        assert_eq!(of("rail3", asked), State::Partial, "what the RDMA engine took, no filter of the NIC's sees");
    }

    #[test]
    fn what_has_no_interface_is_told_of_too() {
        let mut facts = node();
        let at = |address: &str| Location {
            path: PciPath::of(&format!("/sys/devices/pci0000:3a/{address}")).unwrap(),
            numa: None,
        };
        let physfn = Some("0000:3a:00.0".parse().unwrap());
        let mut function = |address: &str, driver: Option<&str>, physfn, rdma: &[&str]| {
            let location = at(address);
            let driver = driver.map(str::to_owned);
            let rdma = rdma.iter().map(|name| (*name).to_owned()).collect();
            let function = Function { driver, physfn, ids: (0x15b3, 0x101e), rdma, location };
            facts.functions.insert(function.location.path.address, function);
        };
        function("0000:3a:00.1", Some("mlx5_core"), physfn, &["mlx5_9"]);
        function("0000:3a:00.2", Some("vfio-pci"), physfn, &[]);
        function("0000:3a:00.3", None, physfn, &[]);
        function("0000:3a:00.4", Some("mlx5_core"), None, &["mlx5_8"]);
        function("0000:3a:00.5", Some("ice"), None, &[]);
        let sub = Function {
            driver: Some("mlx5_core.sf".to_owned()),
            ..facts.functions[&"0000:3a:00.5".parse().unwrap()].clone()
        };
        facts.subfunctions.insert("mlx5_core.sf.4".to_owned(), Function { physfn, ..sub });
        facts.rdma.extend(
            ["mlx5_8", "mlx5_9"].map(|name| device(name, RdmaNode::Ca, Some(RdmaLinkLayer::Infiniband), false)),
        );
        let found = elsewhere(&facts);
        let found: Vec<(&str, State)> = found.iter().map(|(name, coverage)| (name.as_str(), coverage.state)).collect();
        assert_eq!(
            found,
            [
                ("0000:3a:00.1", State::OutOfNetns),
                ("0000:3a:00.2", State::Bypassed),
                ("0000:3a:00.5", State::OutOfNetns),
                ("mlx5_8", State::Bypassed),
                ("mlx5_core.sf.4", State::OutOfNetns),
            ]
        );
    }
}
