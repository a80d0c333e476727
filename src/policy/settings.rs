//! What nodewall.toml says that changes a verdict: mode, failsafe, defaults, logging.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Entity, Mode, ServicePort};
use super::selector::{Labels, Selector};
use crate::net::interface::{Direction, Role};
use crate::text::place::Place;

/// The settings of this node.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeSettings {
    /// The node-wide mode: [`Mode::Audit`] turns everything into counting and logging.
    pub mode: Mode,
    /// What this node is called in its cluster; `None`: as the host.
    pub node: Option<String>,
    /// Labels of this node, for `nodes` selectors.
    pub labels: Labels,
    /// Ways in and out that no policy can close.
    pub failsafe: Vec<Failsafe>,
    /// What an interface does with packets that no policy decided; missing entries as shipped
    /// (see [`NodeSettings::default_for`]).
    pub defaults: BTreeMap<(Role, Direction), Default>,
    /// The roles on whose interfaces the deny sets at the head of the policy hold as a packet arrives ([`super::early`]).
    pub early: BTreeSet<Role>,
    /// The bit of the packet mark by which a stage tells later ones that it accepted.
    pub accept_mark: u32,
    /// Whether packets in conntrack state "invalid" are dropped.
    pub drop_invalid: bool,
    /// Whether flows end that a new generation would not let begin.
    pub revoke: bool,
    /// How packets are logged.
    pub log: LogSettings,
}

/// The mark bit as shipped: one that Calico (the upper 16 bits), Cilium (0x0f00), kube-proxy (0xc000), Tailscale (0xff0000) and
/// the AWS VPC CNI (0x80) leave alone.
pub const ACCEPT_MARK: u32 = 0x10;

/// What an interface does with a new packet that no policy decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Default {
    /// The packet may go on.
    Allow,
    /// The packet is dropped.
    Deny,
}

/// Where the packet log goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// The NFLOG group (`nfnetlink_log`).
    pub group: u16,
    /// Whether what is denied is logged, also by rules that do not ask for it and by the defaults of tiers and interfaces.
    pub denied: bool,
    /// How many packets a second each rule logs at most.
    pub rate: u32,
    /// How many it logs at once before the rate counts.
    pub burst: u32,
}

/// One entry of `[failsafe]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Failsafe {
    /// A short name for comments and status: "ssh".
    pub name: String,
    /// To this host or from it.
    pub direction: Direction,
    /// What is let through: destination ports.
    pub ports: Vec<ServicePort>,
    /// The other side; `None` is anyone.
    pub peers: Option<Entity>,
    /// The interfaces it holds on.
    pub interfaces: Selector,
    /// The other side is the cluster API: `resolve` fills in the addresses and TCP ports of `Facts::api_servers`; `ports` is
    /// empty and `peers` is `None` then, which must not be taken for "every port, anyone".
    pub cluster_api: bool,
    /// Where it was written.
    pub place: Place,
}

impl NodeSettings {
    /// What a role's interfaces do by default: as set, else as shipped (`policy.md` section 3.4): ingress deny,
    /// egress allow, everything on pod, overlay and loopback allowed.
    pub fn default_for(&self, role: Role, direction: Direction) -> Default {
        if let Some(set) = self.defaults.get(&(role, direction)) {
            return *set;
        }
        match (role, direction) {
            (Role::Pod | Role::Overlay | Role::Loopback, _) | (_, Direction::Egress) => Default::Allow,
            (_, Direction::Ingress) => Default::Deny,
        }
    }
}
