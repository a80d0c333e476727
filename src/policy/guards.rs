//! Guards: built-in policies that hold on every node unless nodewall.toml switches them off or a document of the same name takes
//! their place, and which essentials they have a say about.

use std::collections::BTreeSet;

use super::effective::Effective;
use super::model::{Account, HostPolicy, LocalProcess, Mode, Policy, Rule, Stage, Tier, TierDefault};
use super::selector::Labels;
use crate::net::interface::Direction;
use crate::text::place::Place;

/// The tier of the guards. Only a tier with an order below [`ORDER`] goes before it.
pub const TIER: &str = "guards";
/// The order of the tier.
pub const ORDER: i64 = 0;
/// The file of the places of guards, which is in the program and on no disk.
pub const FILE: &str = "built-in: guards";

/// Who may ask the cloud's metadata service.
pub const METADATA: &str = "guard-metadata";
/// No routers and no redirects on links that have none.
pub const ADVERTISEMENTS: &str = "guard-router-advertisements";
/// No DHCP servers on links that have none.
pub const DHCP_SERVER: &str = "guard-dhcp-server";
/// What goes over the link to the BMC.
pub const BMC: &str = "guard-bmc";
/// What goes over the link to a DPU.
pub const DPU: &str = "guard-dpu";
/// The names of all guards.
pub const NAMES: [&str; 5] = [METADATA, ADVERTISEMENTS, DHCP_SERVER, BMC, DPU];

/// `[guards]` of nodewall.toml.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Guards {
    /// The guards that are switched off, by name.
    pub off: BTreeSet<String>,
    /// Who may ask the cloud's metadata service; `None`: as shipped.
    pub metadata: Option<Agents>,
}

/// Users and units, of which one is enough.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Agents {
    /// Users.
    pub users: Vec<(Account, Place)>,
    /// Systemd units and slices, and what is in them.
    pub units: Vec<(String, Place)>,
}

impl Agents {
    /// One process match for users and one for units: in one rule, both would have to hold.
    fn processes(&self) -> Vec<LocalProcess> {
        let users = LocalProcess { users: self.users.clone(), ..LocalProcess::default() };
        let units = LocalProcess { units: self.units.clone(), ..LocalProcess::default() };
        [users, units].into_iter().filter(|process| *process != LocalProcess::default()).collect()
    }
}

impl Policy {
    /// Puts the guards before everything else, but for those that are off and those whose name a document has.
    pub fn guard(&mut self, shipped: &[HostPolicy], guards: &Guards) {
        self.tiers.entry(TIER.to_owned()).or_insert_with(|| Tier {
            name: TIER.to_owned(),
            order: ORDER,
            default: TierDefault::Pass,
            place: Place::file(FILE),
        });
        for guard in shipped {
            let replaced = self.policies.iter().any(|policy| policy.name == guard.name);
            if replaced || guards.off.contains(&guard.name) {
                continue;
            }
            let mut guard = guard.clone();
            if let (METADATA, Some(agents)) = (guard.name.as_str(), &guards.metadata) {
                guard.egress = guard.egress.map(|rules| of_agents(rules, agents));
            }
            self.policies.push(guard);
        }
    }
}

/// The rules with other processes in those that name any.
fn of_agents(rules: Vec<Rule>, agents: &Agents) -> Vec<Rule> {
    let processes = agents.processes();
    let each = |rule: Rule| match &rule.process {
        None => vec![rule],
        Some(_) => processes.iter().map(|process| Rule { process: Some(process.clone()), ..rule.clone() }).collect(),
    };
    rules.into_iter().flat_map(each).collect()
}

/// Whether what stands there is a guard as shipped.
pub fn is_built_in(place: &Place) -> bool {
    *place.file == *FILE
}

/// Essentials that are none on an interface, because a guard decides about them there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Withheld {
    /// Router advertisements.
    pub advertisements: bool,
    /// Answers of DHCP servers.
    pub dhcp: bool,
}

impl Withheld {
    fn or(self, other: Self) -> Self {
        Self { advertisements: self.advertisements || other.advertisements, dhcp: self.dhcp || other.dhcp }
    }

    /// Those of `self` that are not among `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self { advertisements: self.advertisements && !other.advertisements, dhcp: self.dhcp && !other.dhcp }
    }
}

impl Effective {
    /// What is no essential on an interface with these labels. A guard in audit mode changes no verdict.
    pub fn withheld(&self, labels: &Labels) -> Withheld {
        let guards = self.tiers.iter().filter(|tier| tier.name == TIER).flat_map(|tier| &tier.policies);
        let guards = guards.filter(|guard| {
            let decides = guard.stage == Stage::Host && guard.mode == Mode::Enforce;
            decides && guard.rules(Direction::Ingress).is_some() && guard.interfaces.matches(labels)
        });
        guards.fold(Withheld::default(), |withheld, guard| Withheld {
            advertisements: withheld.advertisements || guard.name == ADVERTISEMENTS,
            dhcp: withheld.dhcp || guard.name == DHCP_SERVER,
        })
    }

    /// What is no essential on some interface there is or may be.
    pub fn withheld_anywhere(&self) -> Withheld {
        let there = self.interfaces.iter().map(|interface| &interface.labels);
        let expected = self.expected.iter().map(|expected| &expected.labels);
        let labels = there.chain(expected).chain(std::iter::once(&self.unknown));
        labels.map(|labels| self.withheld(labels)).fold(Withheld::default(), Withheld::or)
    }
}
