//! Which interfaces are treated alike: one chain for all interfaces of a role under the same policies, however many there are.

use std::collections::BTreeMap;

use super::point::Point;
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::policy::effective::{Effective, Pattern};
use crate::policy::guards::Withheld;
use crate::policy::model::Stage;
use crate::policy::selector::Labels;

/// Interfaces under the same failsafe entries, policies and default in one direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ClassKey {
    /// Their role, which names the chain and chooses the default.
    pub(super) role: Role,
    /// Indices into [`Effective::failsafe`].
    pub(super) failsafe: Vec<usize>,
    /// Per tier, indices of its policies that select them and govern the direction.
    pub(super) policies: Vec<Vec<usize>>,
    /// The essentials that are none on them.
    pub(super) withheld: Withheld,
}

/// The classes of one point and who belongs to them. Outside the host stage, where interfaces have defaults, an interface that no
/// policy governs has no chain.
pub(super) struct Classes {
    /// Chain name to class.
    pub(super) chains: BTreeMap<String, ClassKey>,
    /// Interfaces there are, with their chain.
    pub(super) interfaces: Vec<(InterfaceName, Option<String>)>,
    /// Patterns for interfaces there may be, in order, with their chain.
    pub(super) expected: Vec<(Pattern, Option<String>)>,
    /// The chain of everything else.
    pub(super) unknown: Option<String>,
}

/// Sorts the interfaces into classes. Loopback has none: it is accepted before.
pub(super) fn classes(effective: &Effective, point: Point) -> Classes {
    let mut names = Names { point, by_key: BTreeMap::new(), chains: BTreeMap::new() };
    let interfaces = effective
        .interfaces
        .iter()
        .filter(|interface| interface.role != Role::Loopback)
        .map(|interface| {
            let key = class_key(effective, point, interface.role, &interface.labels);
            let chain = names.chain(effective, key, interface.name.as_str());
            (interface.name.clone(), chain)
        })
        .collect();
    let expected = effective
        .expected
        .iter()
        .map(|expected| {
            let key = class_key(effective, point, expected.role, &expected.labels);
            let hint = match &expected.pattern {
                Pattern::Name(name) => name.to_string(),
                Pattern::Prefix(prefix) => format!("{prefix}any"),
                Pattern::Kind(kind) => kind.clone(),
            };
            (expected.pattern.clone(), names.chain(effective, key, &hint))
        })
        .collect();
    let key = class_key(effective, point, Role::Unknown, &effective.unknown);
    let unknown = names.chain(effective, key, "other");
    Classes { chains: names.chains, interfaces, expected, unknown }
}

fn class_key(effective: &Effective, point: Point, role: Role, labels: &Labels) -> ClassKey {
    let failsafe = effective
        .failsafe
        .iter()
        .enumerate()
        // Where no flows are known, the answers to what an entry lets through need a rule of their own.
        .filter(|(_, entry)| entry.direction == point.direction || point.stage == Stage::Untracked)
        .filter(|(_, entry)| entry.interfaces.matches(labels))
        .map(|(index, _)| index)
        .collect();
    let policies = effective
        .tiers
        .iter()
        .map(|tier| {
            tier.policies
                .iter()
                .enumerate()
                .filter(|(_, policy)| {
                    policy.stage == point.stage
                        && policy.rules(point.direction).is_some()
                        && policy.interfaces.matches(labels)
                })
                .map(|(index, _)| index)
                .collect()
        })
        .collect();
    let withheld = match point.direction {
        Direction::Ingress => effective.withheld(labels),
        Direction::Egress => Withheld::default(),
    };
    ClassKey { role, failsafe, policies, withheld }
}

struct Names {
    point: Point,
    by_key: BTreeMap<ClassKey, String>,
    chains: BTreeMap<String, ClassKey>,
}

impl Names {
    /// The chain of a class: `in_mgmt` for what an interface of the role gets that has no other label, so that the name does
    /// not depend on which interfaces there are; `in_mgmt.eth1` after its first interface for a class that differs from it.
    fn chain(&mut self, effective: &Effective, key: ClassKey, hint: &str) -> Option<String> {
        if self.point.stage != Stage::Host && key.policies.iter().all(Vec::is_empty) {
            return None;
        }
        if let Some(name) = self.by_key.get(&key) {
            return Some(name.clone());
        }
        let plain: Labels = [("role".to_owned(), key.role.name().to_owned())].into();
        let base = format!("{}_{}", self.point.prefix(), key.role);
        let mut name = base.clone();
        if key != class_key(effective, self.point, key.role, &plain) {
            let word: String =
                hint.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
            name = format!("{base}.{word}");
            let mut number = 2;
            while self.chains.contains_key(&name) {
                name = format!("{base}.{word}.{number}");
                number += 1;
            }
        }
        self.by_key.insert(key.clone(), name.clone());
        self.chains.insert(name.clone(), key);
        Some(name)
    }
}
