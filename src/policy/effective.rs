//! What the policy comes to on this node at this moment: names looked up, sets filled, tiers in order. The compiler
//! turns it into rules, the simulator evaluates it; neither has to look anything up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::addresses::Named;
use super::coverage::Coverage;
use super::model::{Action, Limit, Mode, Stage, TierDefault};
use super::rails::Rail;
use super::selector::{Labels, Selector};
use super::settings::{Default, LogSettings};
use crate::net::addr::{AddrSet, Family};
use crate::net::facts::Cgroup;
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::protocol::{L4Match, PortSet};
use crate::net::rail::Rails;
use crate::net::range::RangeSet;
use crate::text::place::Place;

/// The policy of one node, ready to be compiled or simulated.
#[derive(Clone, PartialEq, Debug)]
pub struct Effective {
    /// The node-wide mode.
    pub mode: Mode,
    /// The interfaces there are, sorted by name.
    pub interfaces: Vec<Interface>,
    /// The rails that are there, by number.
    pub rails: BTreeMap<u32, Rail>,
    /// What is to be remembered of rails for the next start.
    pub remembered: Rails,
    /// How an interface that is not in `interfaces` is recognised, first match wins; what none matches has
    /// [`Effective::unknown`]'s labels.
    pub expected: Vec<Expected>,
    /// The labels of an interface about which nothing is known: role "unknown".
    pub unknown: Labels,
    /// Failsafe entries, in order. They hold before every tier.
    pub failsafe: Vec<EffectiveFailsafe>,
    /// The tiers in order of evaluation.
    pub tiers: Vec<EffectiveTier>,
    /// What the names of [`Addresses::Named`] stand for, so that a change of a set is known to be one of them.
    pub named: Arc<Named>,
    /// What each role does with what no policy decided; every role and direction is there.
    pub defaults: BTreeMap<(Role, Direction), Default>,
    /// The roles whose deny sets hold as a packet arrives ([`super::early`]).
    pub early: BTreeSet<Role>,
    /// The bit of the packet mark by which a stage tells later ones that it accepted.
    pub accept_mark: u32,
    /// Whether packets in conntrack state "invalid" are dropped.
    pub drop_invalid: bool,
    /// How packets are logged.
    pub log: LogSettings,
}

/// An interface with its role and labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: InterfaceName,
    /// Its interface index.
    pub index: u32,
    /// Its role.
    pub role: Role,
    /// How the role was found, for people: "default route", "[[interface]] rails (10-nics.toml:3)".
    pub why: String,
    /// Built-in labels and its own.
    pub labels: Labels,
    /// How far rules reach on it.
    pub coverage: BTreeMap<Direction, Coverage>,
}

/// How an interface that was not there yet is recognised from its first packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// What is looked at.
    pub pattern: Pattern,
    /// Its role.
    pub role: Role,
    /// The labels it is taken to have.
    pub labels: Labels,
}

/// What the kernel can look at without having been told about an interface.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pattern {
    /// This name.
    Name(InterfaceName),
    /// A name that starts like this (`iifname "cali*"`).
    Prefix(String),
    /// The rtnetlink kind (`iifkind "veth"`).
    Kind(String),
}

/// A failsafe entry with its peers looked up.
#[derive(Clone, PartialEq, Debug)]
pub struct EffectiveFailsafe {
    /// Its short name.
    pub name: String,
    /// To this host or from it.
    pub direction: Direction,
    /// The interfaces it holds on.
    pub interfaces: Selector,
    /// What it lets through: an allow rule.
    pub rule: EffectiveRule,
    /// The answers to that, in the other direction: allow rules with the id of `rule`. They count where no flows are known.
    pub replies: Vec<EffectiveRule>,
}

impl EffectiveFailsafe {
    /// What it lets through in a direction: its rule, or in the other direction the answers, which only a stage without flows has to
    /// ask for.
    pub fn rules(&self, direction: Direction) -> &[EffectiveRule] {
        if direction == self.direction { std::slice::from_ref(&self.rule) } else { &self.replies }
    }
}

/// A tier with the policies that exist on this node.
#[derive(Clone, PartialEq, Debug)]
pub struct EffectiveTier {
    /// Its name.
    pub name: String,
    /// What happens at its end.
    pub default: TierDefault,
    /// Its policies in order of evaluation; they may select no interface.
    pub policies: Vec<EffectivePolicy>,
}

/// A policy with its rules looked up.
#[derive(Clone, PartialEq, Debug)]
pub struct EffectivePolicy {
    /// Its name.
    pub name: String,
    /// Where it is evaluated.
    pub stage: Stage,
    /// The time from which on it no longer exists, in seconds since 1970-01-01 UTC.
    pub expires: Option<u64>,
    /// Enforce or audit (the policy's own; the node-wide mode comes on top).
    pub mode: Mode,
    /// The interfaces it applies to.
    pub interfaces: Selector,
    /// Its rules for packets to this host, if it governs them.
    pub ingress: Option<Vec<EffectiveRule>>,
    /// Its rules for packets from this host, if it governs them.
    pub egress: Option<Vec<EffectiveRule>>,
    /// Where it was written.
    pub place: Place,
}

impl EffectivePolicy {
    /// Its rules for a direction, if it governs that direction.
    pub fn rules(&self, direction: Direction) -> Option<&[EffectiveRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// A rule whose every part is looked up. All conditions must hold.
#[derive(Clone, PartialEq, Debug)]
pub struct EffectiveRule {
    /// The policy and the rule's number in its direction, from 1.
    pub id: RuleId,
    /// Where it was written.
    pub place: Place,
    /// What it does.
    pub action: Action,
    /// The packet's source address.
    pub from: Addresses,
    /// The packet's destination address.
    pub to: Addresses,
    /// Protocol, destination ports, ICMP types.
    pub l4: L4Match,
    /// Source ports; only packets of protocols with ports can match then.
    pub source_ports: Option<PortSet>,
    /// Only this IP version.
    pub family: Option<Family>,
    /// Only packets of these local processes.
    pub process: Option<ProcessMatch>,
    /// How often it matches at most.
    pub limit: Option<Limit>,
    /// Log what matches: the text, which may be empty.
    pub log: Option<String>,
}

/// The local processes a rule looks for; each condition that is there must hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, std::default::Default)]
pub struct ProcessMatch {
    /// The owner of the socket (`meta skuid`). Empty when none of the names is known here: then nothing matches.
    pub users: Option<RangeSet<u32>>,
    /// The group of the socket (`meta skgid`).
    pub groups: Option<RangeSet<u32>>,
    /// The control groups of the socket.
    pub units: Option<Units>,
}

/// The control groups of systemd units and slices that run now.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Units {
    /// The name that their set has in the kernel (without the level); says which units, not which control groups.
    pub name: String,
    /// The control groups; none while no unit runs, and then nothing matches.
    pub cgroups: BTreeSet<Cgroup>,
}

/// Names a rule for people and for counters: `kubelet#2`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleId {
    /// The policy's name, or `failsafe:NAME`.
    pub policy: Arc<str>,
    /// The rule's number in its direction, from 1.
    pub number: u32,
}

impl std::fmt::Display for RuleId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}#{}", self.policy, self.number)
    }
}

/// The addresses a rule looks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Addresses {
    /// Any address of any family.
    Any,
    /// Literal addresses of the rule itself: compiled in place.
    Literal(AddrSet),
    /// The contents of one or more sets under the name that they have in the kernel (without the family suffix),
    /// so that a change of contents is a change of elements. May be empty: then nothing matches.
    Named(String, AddrSet),
}

impl Addresses {
    /// Whether `address` is among them.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(set) | Self::Named(_, set) => set.contains(address),
        }
    }
}
