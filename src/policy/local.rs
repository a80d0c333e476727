//! The accounts and systemd units that rules name: which ones, and what they come to on this node.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::effective::{ProcessMatch, Units};
use super::model::{Account, HostPolicy, LocalProcess, Policy, Rule};
use super::resolve::labels_of_node;
use super::settings::NodeSettings;
use crate::net::facts::Facts;
use crate::net::range::RangeSet;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;

/// The names that somebody has to look up on this node before the policy that has them is resolved: [`Facts::users`],
/// [`Facts::groups`] and [`Facts::units`] are about these.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalNames {
    /// Users.
    pub users: BTreeSet<String>,
    /// Groups.
    pub groups: BTreeSet<String>,
    /// Systemd units, slices and paths of control groups.
    pub units: BTreeSet<String>,
}

impl LocalNames {
    /// Those of a policy, on whichever node it is meant for.
    pub fn of(policy: &Policy) -> Self {
        let mut names = Self::default();
        let account = |account: &Account| match account {
            Account::Name(name) => Some(name.clone()),
            Account::Id(_) => None,
        };
        for process in policy.policies.iter().flat_map(rules).filter_map(|rule| rule.process.as_ref()) {
            names.users.extend(process.users.iter().filter_map(|(user, _)| account(user)));
            names.groups.extend(process.groups.iter().filter_map(|(group, _)| account(group)));
            names.units.extend(process.units.iter().map(|(unit, _)| unit.clone()));
        }
        names
    }

    /// Takes in those of another policy.
    pub fn add(&mut self, other: Self) {
        self.users.extend(other.users);
        self.groups.extend(other.groups);
        self.units.extend(other.units);
    }

    /// Whether there is an account to look up.
    pub fn has_accounts(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }
}

fn rules(policy: &HostPolicy) -> impl Iterator<Item = &Rule> {
    policy.ingress.iter().chain(&policy.egress).flatten()
}

/// What the local process of a rule comes to, and a warning for every account that this node does not know. A list of which no name
/// is known matches nothing.
pub(super) fn process_match(process: &LocalProcess, facts: &Facts, findings: &mut Vec<Finding>) -> ProcessMatch {
    let mut accounts = |kind: &str, database: &str, list: &[(Account, Place)]| -> Option<RangeSet<u32>> {
        let known = if kind == "user" { &facts.users } else { &facts.groups };
        let number = |(account, place): &(Account, Place)| match account {
            Account::Id(number) => Some(*number),
            Account::Name(name) => {
                let found = known.get(name).copied();
                if found.is_none() {
                    let message = format!("this node knows no {kind} \"{name}\", so the name matches nothing");
                    let help = format!("compare it with `getent {database}`; a number needs no look-up");
                    let finding = Finding::warning(Code::UnknownAccount, place, message);
                    findings.push(finding.label(format!("no such {kind}")).help(help));
                }
                found
            }
        };
        (!list.is_empty()).then(|| list.iter().filter_map(number).map(|number| (number, number)).collect())
    };
    let users = accounts("user", "passwd", &process.users);
    let groups = accounts("group", "group", &process.groups);
    let units = (!process.units.is_empty()).then(|| {
        let names: BTreeSet<&str> = process.units.iter().map(|(name, _)| name.as_str()).collect();
        let cgroups = names.iter().filter_map(|name| facts.units.get(*name)).flatten().copied().collect();
        Units { name: kernel_name(&names), cgroups }
    });
    ProcessMatch { users, groups, units }
}

/// What `check` says about units that do not run: as likely as not it is a typing error. The daemon follows units and says
/// nothing, since at the start of a host none of them runs.
pub fn not_running(policy: &Policy, settings: &NodeSettings, facts: &Facts) -> Vec<Finding> {
    let node = labels_of_node(settings, facts);
    let here = policy.policies.iter().filter(|policy| policy.nodes.matches(&node));
    here.flat_map(rules)
        .filter_map(|rule| rule.process.as_ref())
        .flat_map(|process| &process.units)
        .filter(|(name, _)| facts.units.get(name).is_none_or(BTreeSet::is_empty))
        .map(|(name, place)| {
            let message = format!("no unit \"{name}\" runs here now, so the name matches nothing until it does");
            Finding::warning(Code::NotRunning, place, message)
                .label("no such control group")
                .help("compare it with `systemctl status` and `systemd-cgls`")
        })
        .collect()
}

/// What the kernel names of sets of control groups begin with; names of documents have no '/'.
const SET_PREFIX: &str = "units/";
/// The names of units are cut here: the whole is a little more, with the digest and a level behind it.
const LONGEST_UNITS: usize = 56;

/// The name of the set of some units: their names where they are few and made of what nft(8) takes in an identifier, else
/// their beginning and a digest. No unit is named like a digest, as every one has a dot in its name or a '/'.
fn kernel_name(names: &BTreeSet<&str>) -> String {
    let plain = |next: char| next.is_ascii_alphanumeric() || matches!(next, '.' | '_' | '-');
    let exact = names.iter().all(|name| name.chars().all(plain));
    let joined = names.iter().copied().collect::<Vec<_>>().join("/");
    if exact && joined.len() <= LONGEST_UNITS {
        return format!("{SET_PREFIX}{joined}");
    }
    let readable: String = joined.chars().take(LONGEST_UNITS).map(|c| if plain(c) { c } else { '_' }).collect();
    let mut hash = Sha256::new();
    for name in names {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
    }
    let digest: String = hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{SET_PREFIX}{readable}/{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(units: &[&str]) -> String {
        kernel_name(&units.iter().copied().collect())
    }

    #[test]
    fn sets_are_named_after_their_units_and_differently_for_different_units() {
        assert_eq!(name(&["ollama.service"]), "units/ollama.service");
        assert_eq!(name(&["b.service", "a.service"]), "units/a.service/b.service");
        let odd = ["a.slice/b.service", "a@1.service", "a:1.service", "a_1.service/", "a\\x2d1.service"];
        let long: String = "x".repeat(200) + ".service";
        let longer: String = "x".repeat(201) + ".service";
        let mut all: Vec<String> = odd.iter().map(|unit| name(&[unit])).collect();
        all.extend([name(&[&long]), name(&[&longer]), name(&["a.slice", "b.service"])]);
        for name in &all {
            assert!(name.len() <= 80, "{name}");
            let fits = |next: char| next.is_ascii_alphanumeric() || matches!(next, '.' | '_' | '-' | '/');
            assert!(name.starts_with("units/") && name.chars().all(fits), "{name}");
        }
        let distinct: BTreeSet<&String> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
    }
}
