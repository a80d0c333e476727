//! The objects of the policy language after parsing and type-checking, before names are looked up.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::nodes::NodePeers;
use super::selector::Selector;
use crate::net::addr::Family;
use crate::net::interface::Role;
use crate::net::protocol::{IcmpSet, PortSet, Protocol};
use crate::text::place::Place;

/// All documents of all sources, merged. Names are unique per kind; references may still point nowhere.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Policy {
    /// `[[interface]]`, in the order in which the first match wins.
    pub interfaces: Vec<InterfaceOverride>,
    /// `[[set]]` by name.
    pub sets: BTreeMap<String, NamedSet>,
    /// `[[service]]` by name.
    pub services: BTreeMap<String, Service>,
    /// `[[tier]]` by name; the built-in ones are always there (see [`Policy::with_builtin_tiers`]).
    pub tiers: BTreeMap<String, Tier>,
    /// `[[policy]]`, in no particular order.
    pub policies: Vec<HostPolicy>,
    /// `[[expect]]` about sets, in the order in which they were loaded.
    pub expected_sets: Vec<ExpectedSet>,
}

/// Where built-in tiers stand: in no file.
pub(super) const BUILT_IN: &str = "built-in";

impl Policy {
    /// No documents: only the built-in tiers.
    pub fn with_builtin_tiers() -> Self {
        let tiers = [("platform", 100), ("default", 1000), ("baseline", 10_000)]
            .into_iter()
            .map(|(name, order)| {
                let place = Place::file(BUILT_IN);
                (name.to_owned(), Tier { name: name.to_owned(), order, default: TierDefault::Pass, place })
            })
            .collect();
        Self { tiers, ..Self::default() }
    }
}

/// `[[interface]]`: overrides what detection says about the interfaces it matches.
#[derive(Clone, PartialEq, Debug)]
pub struct InterfaceOverride {
    /// Its name as a document.
    pub name: String,
    /// What an interface must be; every condition that is there must hold.
    pub matches: InterfaceMatch,
    /// The role it gets; `None` keeps the detected one.
    pub role: Option<Role>,
    /// Labels it gets.
    pub labels: BTreeMap<String, String>,
    /// Whether its packets never reach nftables, which nothing on the host tells: Onload, DPDK, AF_XDP (`coverage = "bypassed"`).
    pub bypassed: bool,
    /// Where it was written.
    pub place: Place,
}

/// `match` of `[[interface]]`. `name` is a glob (`*`, `?`, `[...]`); the others are exact.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InterfaceMatch {
    /// The interface's name or one of its alternative names, as a glob.
    pub name: Option<String>,
    /// The rtnetlink kind.
    pub kind: Option<String>,
    /// The kernel driver.
    pub driver: Option<String>,
    /// The bus.
    pub bus: Option<String>,
    /// The PCI address.
    pub pci: Option<String>,
    /// The RDMA device.
    pub rdma: Option<String>,
    /// The link layer: "ethernet", "infiniband", "loopback" or "other".
    pub link: Option<String>,
    /// The hardware address, lower case with colons.
    pub mac: Option<String>,
    /// The name of the bond, bridge or VRF it belongs to.
    pub master: Option<String>,
}

/// `[[set]]`: addresses that belong together.
#[derive(Clone, PartialEq, Debug)]
pub struct NamedSet {
    /// Its name.
    pub name: String,
    /// Labels for `select`.
    pub labels: BTreeMap<String, String>,
    /// Its addresses and prefixes; may overlap as written.
    pub cidrs: Vec<IpNet>,
    /// Where it was written.
    pub place: Place,
}

/// `[[expect]]` with `set`: somebody else has to define this set, and until then rules let nobody in by it.
#[derive(Clone, PartialEq, Debug)]
pub struct ExpectedSet {
    /// What is expected, in words.
    pub name: String,
    /// The name of the set.
    pub set: String,
    /// What it could hold, for the reader.
    pub example: Vec<IpNet>,
    /// Whether the policy is refused while it is not there; otherwise that is a warning.
    pub enforce: bool,
    /// Where it was written.
    pub place: Place,
}

/// `[[service]]`: named ports.
#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// What it listens on.
    pub ports: Vec<ServicePort>,
    /// How it is carried.
    pub transport: Transport,
    /// Where it was written.
    pub place: Place,
}

/// One entry of a service's `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServicePort {
    /// "tcp/10250", "udp/30000-32767".
    Ports(Protocol, PortSet),
    /// "icmp/echo-request", "icmpv6/128".
    Icmp(Protocol, IcmpSet),
    /// "esp", "47": the whole protocol.
    Protocol(Protocol),
}

/// How a service is carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// By the kernel's IP stack, where nftables sees it.
    #[default]
    Ip,
    /// By RDMA-CM: the number is a service id inside the RDMA transport, not a port that nftables could match.
    Rdma,
}

/// `[[tier]]`: a group of policies that is evaluated before those with a higher order.
#[derive(Clone, PartialEq, Debug)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// Its place among the tiers; lower goes first.
    pub order: i64,
    /// What happens to a packet that an enforcing policy of the tier governed and none decided.
    pub default: TierDefault,
    /// Where it was written.
    pub place: Place,
}

/// What a tier does with what none of its policies decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TierDefault {
    /// The packet is denied.
    Deny,
    /// The next tier goes on.
    Pass,
}

/// Whether a policy decides or only counts and logs what it would have decided.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It counts and logs.
    Audit,
}

/// Where on a packet's way through the kernel a policy is evaluated (`policy.md` section 3); in the kernel's order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Stage {
    /// Before connection tracking, both directions, without state: what it allows is not tracked (`notrack`).
    Untracked,
    /// Ingress before any DNAT: NodePorts, hostPorts and load-balancer addresses as the sender wrote them.
    Prednat,
    /// To and from this host's own sockets.
    #[default]
    Host,
    /// Through this host: ingress by the interface it arrives on, then egress by the one it leaves by.
    Forward,
}

impl Stage {
    /// Every stage, in the kernel's order.
    pub const ALL: [Self; 4] = [Self::Untracked, Self::Prednat, Self::Host, Self::Forward];

    /// The word of the policy language.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untracked => "untracked",
            Self::Prednat => "prednat",
            Self::Host => "host",
            Self::Forward => "forward",
        }
    }
}

/// `[[policy]]`: rules for the selected interfaces.
#[derive(Clone, PartialEq, Debug)]
pub struct HostPolicy {
    /// Its name.
    pub name: String,
    /// The name of its tier.
    pub tier: String,
    /// Its place in the tier; lower goes first, none last.
    pub order: Option<i64>,
    /// The interfaces it applies to.
    pub interfaces: Selector,
    /// The nodes it exists on.
    pub nodes: Selector,
    /// Where it is evaluated.
    pub stage: Stage,
    /// Enforce or audit.
    pub mode: Mode,
    /// The time from which on it no longer exists, in seconds since 1970-01-01 UTC.
    pub expires: Option<u64>,
    /// Whether it may name what never reaches nftables (`acknowledge = "bypass"`).
    pub acknowledges_bypass: bool,
    /// Its rules for packets to this host; `None` when it does not govern that direction.
    pub ingress: Option<Vec<Rule>>,
    /// Its rules for packets from this host; `None` when it does not govern that direction.
    pub egress: Option<Vec<Rule>>,
    /// Where it was written.
    pub place: Place,
    /// Where its `tier` was written, or the policy itself.
    pub tier_place: Place,
}

/// What a rule does with a packet that matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// The packet may go on.
    Allow,
    /// The packet is dropped.
    Deny,
    /// The packet is dropped and its sender told (TCP reset, ICMP administratively prohibited).
    Reject,
    /// The next tier decides.
    Pass,
    /// Logged; evaluation goes on with the next rule.
    Log,
}

impl Action {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Allow, Self::Deny, Self::Reject, Self::Pass, Self::Log];

    /// The word of the policy language.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Reject => "reject",
            Self::Pass => "pass",
            Self::Log => "log",
        }
    }
}

/// One rule of a policy.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Where the packet comes from; `None` is any address.
    pub from: Option<Entity>,
    /// Where the packet goes to; `None` is any address.
    pub to: Option<Entity>,
    /// The protocol.
    pub protocol: Option<Protocol>,
    /// Destination ports; only with a protocol that has ports.
    pub ports: Option<PortSet>,
    /// Names of services, each with its place.
    pub services: Vec<(String, Place)>,
    /// ICMP types of `icmp {}`, by family: (IPv4, IPv6). `None` when the rule has no `icmp`.
    pub icmp: Option<IcmpMatch>,
    /// Only this IP version.
    pub family: Option<Family>,
    /// What is taken away.
    pub not: Option<Not>,
    /// The local process that sends the packet; only in egress of stage `host`.
    pub process: Option<LocalProcess>,
    /// How often it matches at most.
    pub limit: Option<Limit>,
    /// Log what matches: the text, which may be empty.
    pub log: Option<String>,
    /// A word to the reader.
    pub comment: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// `icmp { type, code }`: the types that match in ICMP and in ICMPv6. A number counts for the protocol that the
/// rule names; a name without a protocol counts in each family that knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IcmpMatch {
    /// ICMP types and codes.
    pub v4: IcmpSet,
    /// ICMPv6 types and codes.
    pub v6: IcmpSet,
}

/// `not { protocol, ports, icmp }`: each is taken away from what the rule matches on its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Not {
    /// This protocol.
    pub protocol: Option<Protocol>,
    /// These destination ports (of the rule's protocol).
    pub ports: Option<PortSet>,
    /// These ICMP types.
    pub icmp: Option<IcmpMatch>,
}

/// `users`, `groups` and `units`: each that is there must hold; an empty list is one that was not written.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LocalProcess {
    /// One of these users owns the socket.
    pub users: Vec<(Account, Place)>,
    /// The socket has one of these groups.
    pub groups: Vec<(Account, Place)>,
    /// The socket belongs to one of these systemd units or slices, or to something in them: "sshd.service",
    /// "system.slice/ollama.service".
    pub units: Vec<(String, Place)>,
}

/// A user or group.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Account {
    /// Its number.
    Id(u32),
    /// Its name, looked up on this node.
    Name(String),
}

/// `limit { rate, burst, per }`: a token bucket; the rule matches while there are tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Limit {
    /// So many packets...
    pub rate: u32,
    /// ...in so many seconds: 1, 60, 3600 or 86,400.
    pub seconds: u32,
    /// So many packets at once before the rate counts.
    pub burst: u32,
    /// Each source address has a bucket of its own.
    pub per_source: bool,
}

/// `from` or `to`: the parts are united, then `except` is taken away.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Entity {
    /// Literal addresses and prefixes.
    pub cidrs: Vec<IpNet>,
    /// Names of sets, each with its place.
    pub sets: Vec<(String, Place)>,
    /// Every set whose labels match.
    pub select: Option<Selector>,
    /// Nodes of clusters.
    pub nodes: Option<NodePeers>,
    /// This host's own addresses.
    pub local: bool,
    /// Ports: source ports in `from`, destination ports in `to`.
    pub ports: Option<PortSet>,
    /// What is taken away.
    pub except: Option<Box<Entity>>,
    /// Where it was written.
    pub place: Option<Place>,
}

impl Entity {
    /// Whether it names addresses at all; one with nothing but `ports` or `except` starts from every address.
    pub fn names_addresses(&self) -> bool {
        let plain = !self.cidrs.is_empty() || self.local;
        plain || !self.sets.is_empty() || self.select.is_some() || self.nodes.is_some()
    }

    /// Whether it names nodes of clusters, in what it takes away as well.
    pub fn names_nodes(&self) -> bool {
        self.nodes.is_some() || self.except.as_ref().is_some_and(|except| except.names_nodes())
    }

    /// Notes that it was written in this cluster.
    pub fn written_in(&mut self, cluster: &str) {
        if let Some(nodes) = &mut self.nodes {
            nodes.cluster = Some(cluster.to_owned());
        }
        if let Some(except) = &mut self.except {
            except.written_in(cluster);
        }
    }
}
