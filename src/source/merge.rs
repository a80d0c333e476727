//! Documents of many texts to one policy: what has a higher standing replaces what has the same name below, and the same
//! name or order twice is a finding.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Documents;
use crate::policy::model::{ExpectedSet, HostPolicy, InterfaceOverride, NamedSet, Policy, Service, Tier};
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;

/// Documents with their standing: those of a later directory have a higher one.
pub(super) type Level = usize;

/// Merges documents, given in the order in which they were loaded. Of two documents of the same kind and name, the one of higher
/// standing is used; of the same standing, the first, with a finding at the second. The built-in tiers are below all.
pub(super) fn merge(loaded: Vec<(Level, Documents)>) -> (Policy, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut broken = BTreeSet::new();
    let (mut interfaces, mut sets, mut services) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tiers, mut policies, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for (level, documents) in loaded {
        broken.extend(documents.broken.into_iter().map(|(kind, name)| (kind, name, level)));
        interfaces.extend(documents.interfaces.into_iter().map(|document| (level, document)));
        sets.extend(documents.sets.into_iter().map(|document| (level, document)));
        services.extend(documents.services.into_iter().map(|document| (level, document)));
        tiers.extend(documents.tiers.into_iter().map(|document| (level, document)));
        policies.extend(documents.policies.into_iter().map(|document| (level, document)));
        expected.extend(documents.expected_sets.into_iter().map(|document| (level, document)));
    }
    // The administrator's word on an interface comes before the package's: first match wins.
    interfaces.sort_by_key(|(level, _)| std::cmp::Reverse(*level));

    let mut policy = Policy::with_builtin_tiers();
    policy.interfaces = unique(interfaces, "interface", &broken, &mut findings);
    policy.sets = by_name(unique(sets, "set", &broken, &mut findings));
    policy.services = by_name(unique(services, "service", &broken, &mut findings));
    policy.tiers.extend(by_name(unique(tiers, "tier", &broken, &mut findings)));
    policy.policies = unique_order(unique(policies, "policy", &broken, &mut findings), &mut findings);
    policy.expected_sets = unique(expected, "expect", &broken, &mut findings);
    (policy, findings)
}

/// A document with a name.
trait Named {
    fn name(&self) -> &str;
    fn place(&self) -> &Place;
}

macro_rules! named {
    ($($document:ty),*) => {$(
        impl Named for $document {
            fn name(&self) -> &str { &self.name }
            fn place(&self) -> &Place { &self.place }
        }
    )*};
}
named!(InterfaceOverride, NamedSet, Service, Tier, HostPolicy, ExpectedSet);

/// The documents that count.
fn unique<T: Named>(
    documents: Vec<(Level, T)>,
    kind: &'static str,
    broken: &BTreeSet<(&'static str, String, Level)>,
    findings: &mut Vec<Finding>,
) -> Vec<T> {
    let mut highest: BTreeMap<String, Level> = BTreeMap::new();
    let good = documents.iter().map(|(level, document)| (document.name().to_owned(), *level));
    let bad = broken.iter().filter(|(of, ..)| *of == kind).map(|(_, name, level)| (name.clone(), *level));
    for (name, level) in good.chain(bad) {
        let entry = highest.entry(name).or_insert(level);
        *entry = level.max(*entry);
    }
    let mut first: BTreeMap<String, Place> = BTreeMap::new();
    let mut kept = Vec::new();
    for (level, document) in documents {
        let name = document.name();
        if highest.get(name).is_some_and(|highest| *highest > level) {
            continue;
        }
        if let Some(earlier) = first.get(name) {
            let message = format!("the name \"{name}\" is taken by another {kind}");
            let finding = Finding::error(Code::DuplicateName, document.place(), message)
                .related(earlier, format!("the first {kind} \"{name}\""))
                .help("rename one of them; the first is used");
            findings.push(finding);
            continue;
        }
        first.insert(name.to_owned(), document.place().clone());
        kept.push(document);
    }
    kept
}

fn by_name<T: Named>(documents: Vec<T>) -> BTreeMap<String, T> {
    documents.into_iter().map(|document| (document.name().to_owned(), document)).collect()
}

/// The policies whose order in their tier no earlier one has.
fn unique_order(policies: Vec<HostPolicy>, findings: &mut Vec<Finding>) -> Vec<HostPolicy> {
    let mut first: BTreeMap<(String, Option<i64>), (String, Place)> = BTreeMap::new();
    let mut kept = Vec::new();
    for policy in policies {
        let key = (policy.tier.clone(), policy.order);
        if let Some((name, earlier)) = first.get(&key) {
            let order = match policy.order {
                Some(order) => format!("order {order}"),
                None => "no order".to_owned(),
            };
            let message = format!(
                "policies \"{name}\" and \"{}\" both have {order} in tier \"{}\", so that it is unclear which goes first",
                policy.name, policy.tier
            );
            let finding = Finding::error(Code::DuplicateOrder, &policy.place, message)
                .related(earlier, format!("policy \"{name}\""))
                .help(format!("give them different orders; \"{name}\" is used"));
            findings.push(finding);
            continue;
        }
        first.insert(key, (policy.name.clone(), policy.place.clone()));
        kept.push(policy);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::super::document::decode;
    use super::*;
    use crate::text::render::line;
    use crate::text::tree::Source;

    fn merged(texts: &[(Level, &str)]) -> (Policy, Vec<String>) {
        let loaded = texts.iter().enumerate().map(|(index, (level, text))| {
            let (documents, _) = decode(&Source::new(format!("{index}.toml"), *text));
            (*level, documents)
        });
        let (policy, findings) = merge(loaded.collect());
        (policy, findings.iter().map(line).collect())
    }

    fn policy(name: &str, order: &str) -> String {
        format!("[[policy]]\nname = \"{name}\"\n{order}\ninterfaces = \"all()\"\ningress = []\n")
    }

    #[test]
    fn interfaces_of_a_higher_standing_match_first() {
        let interface = |name: &str, role: &str| {
            format!("[[interface]]\nname = \"{name}\"\nmatch = {{ name = \"*\" }}\nrole = \"{role}\"\n")
        };
        let vendor = interface("a", "rail") + &interface("b", "rail");
        let admin = interface("c", "mgmt") + &interface("b", "mgmt");
        let (policy, findings) = merged(&[(0, &vendor), (1, &admin)]);
        let found: Vec<String> = policy
            .interfaces
            .iter()
            .map(|each| format!("{} {}", each.name, each.role.map_or("", |role| role.name())))
            .collect();
        assert_eq!(found, ["c mgmt", "b mgmt", "a rail"]);
        assert!(findings.is_empty());
    }

    #[test]
    fn the_same_order_is_an_error_over_all_files_and_the_same_name_within_a_standing() {
        let (first, second) = (policy("a", "order = 5"), policy("b", "order = 5"));
        let (policies, findings) = merged(&[(0, &first), (1, &second)]);
        assert_eq!(policies.policies.len(), 1);
        assert!(findings.len() == 1 && findings[0].starts_with("1.toml:1:1: error[duplicate-order]"), "{findings:?}");
        assert!(findings[0].contains("0.toml:1:1"), "{findings:?}");

        let again = policy("a", "order = 6");
        let (policies, findings) = merged(&[(0, &first), (0, &again)]);
        assert_eq!(policies.policies[0].order, Some(5));
        assert!(findings.len() == 1 && findings[0].starts_with("1.toml:1:1: error[duplicate-name]"), "{findings:?}");

        let (policies, findings) = merged(&[(0, &first), (1, &again)]);
        assert_eq!((policies.policies.len(), policies.policies[0].order, findings.len()), (1, Some(6), 0));
    }

    #[test]
    fn what_is_broken_hides_what_it_replaces() {
        let (first, broken) = (policy("a", "order = 5"), policy("a", "order = \"x\""));
        assert!(merged(&[(0, &first), (1, &broken)]).0.policies.is_empty());
        assert_eq!(merged(&[(0, &broken), (1, &first)]).0.policies.len(), 1);
        let syntax = format!("{first}\nx = \n");
        assert!(merged(&[(0, &first), (1, &syntax)]).0.policies.is_empty());
    }
}
