//! Any selector means the same host endpoints and the same network sets after a conversion as by Calico's grammar.

use std::collections::BTreeMap;

use nodewall::net::interface::Direction;
use nodewall::policy::selector::Selector;
use nodewall::source;
use nodewall::source::calico::convert;
use nodewall::source::object::convert::to_toml;
use nodewall::text::finding::Severity;
use nodewall::text::tree::Source;
use proptest::prelude::*;
use proptest::sample::select;

type Labels = BTreeMap<String, String>;

/// Calico's grammar (libcalico-go/lib/selector), with its meaning written down once more.
#[derive(Clone, Debug)]
enum Ast {
    All,
    Has(&'static str),
    Is(&'static str, &'static str),
    IsNot(&'static str, &'static str),
    In(&'static str, Vec<&'static str>),
    NotIn(&'static str, Vec<&'static str>),
    Contains(&'static str, &'static str),
    Starts(&'static str, &'static str),
    Ends(&'static str, &'static str),
    Not(Box<Ast>),
    And(Box<Ast>, Box<Ast>),
    Or(Box<Ast>, Box<Ast>),
}

impl Ast {
    fn text(&self) -> String {
        let braces = |values: &[&str]| values.iter().map(|value| format!("'{value}'")).collect::<Vec<_>>().join(",");
        match self {
            Self::All => "all()".to_owned(),
            Self::Has(key) => format!("has({key})"),
            Self::Is(key, value) => format!("{key} == '{value}'"),
            Self::IsNot(key, value) => format!("{key}!=\"{value}\""),
            Self::In(key, values) => format!("{key} in {{{}}}", braces(values)),
            Self::NotIn(key, values) => format!("{key} not in {{ {} }}", braces(values)),
            Self::Contains(key, value) => format!("{key} contains '{value}'"),
            Self::Starts(key, value) => format!("{key} starts with '{value}'"),
            Self::Ends(key, value) => format!("{key} ends with '{value}'"),
            Self::Not(inner) => format!("!({})", inner.text()),
            // Without parentheses where precedence says the same.
            Self::And(one, other) => {
                let part =
                    |part: &Self| if matches!(part, Self::Or(..)) { format!("({})", part.text()) } else { part.text() };
                format!("{} && {}", part(one), part(other))
            }
            Self::Or(one, other) => format!("{} || {}", one.text(), other.text()),
        }
    }

    fn holds(&self, labels: &Labels) -> bool {
        let value = |key: &str| labels.get(key).map(String::as_str);
        match self {
            Self::All => true,
            Self::Has(key) => value(key).is_some(),
            Self::Is(key, wanted) => value(key) == Some(wanted),
            Self::IsNot(key, wanted) => value(key) != Some(wanted),
            Self::In(key, wanted) => value(key).is_some_and(|value| wanted.contains(&value)),
            Self::NotIn(key, wanted) => !value(key).is_some_and(|value| wanted.contains(&value)),
            Self::Contains(key, part) => value(key).is_some_and(|value| value.contains(part)),
            Self::Starts(key, part) => value(key).is_some_and(|value| value.starts_with(part)),
            Self::Ends(key, part) => value(key).is_some_and(|value| value.ends_with(part)),
            Self::Not(inner) => !inner.holds(labels),
            Self::And(one, other) => one.holds(labels) && other.holds(labels),
            Self::Or(one, other) => one.holds(labels) || other.holds(labels),
        }
    }
}

/// Names of ours among them: a label of an endpoint is not one of our interface's.
const KEYS: [&str; 5] = ["a", "role", "name", "projectcalico.org/x-1", "in"];
const VALUES: [&str; 5] = ["", "x", "xy", "pod", "eth0"];

fn ast() -> impl Strategy<Value = Ast> {
    let key = || select(&KEYS[..]);
    let value = || select(&VALUES[..]);
    let values = || prop::collection::vec(select(&VALUES[..]), 1..3);
    let leaf = prop_oneof![
        Just(Ast::All),
        key().prop_map(Ast::Has),
        (key(), value()).prop_map(|(key, value)| Ast::Is(key, value)),
        (key(), value()).prop_map(|(key, value)| Ast::IsNot(key, value)),
        (key(), values()).prop_map(|(key, values)| Ast::In(key, values)),
        (key(), values()).prop_map(|(key, values)| Ast::NotIn(key, values)),
        (key(), value()).prop_map(|(key, value)| Ast::Contains(key, value)),
        (key(), value()).prop_map(|(key, value)| Ast::Starts(key, value)),
        (key(), value()).prop_map(|(key, value)| Ast::Ends(key, value)),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Ast::Not(Box::new(inner))),
            (inner.clone(), inner.clone()).prop_map(|(one, other)| Ast::And(Box::new(one), Box::new(other))),
            (inner.clone(), inner).prop_map(|(one, other)| Ast::Or(Box::new(one), Box::new(other))),
        ]
    })
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(
        select(&KEYS[..]).prop_map(str::to_owned),
        select(&VALUES[..]).prop_map(str::to_owned),
        0..4,
    )
}

/// Host endpoints of two nodes: on each, perhaps one for each of two interfaces and one for `*`.
fn endpoints() -> impl Strategy<Value = Vec<(&'static str, &'static str, Labels)>> {
    let places: Vec<(&str, &str)> =
        ["n1", "n2"].into_iter().flat_map(|node| ["eth0", "eth1", "*"].map(|name| (node, name))).collect();
    prop::sample::subsequence(places, 1..=6)
        .prop_flat_map(|places| (Just(places.clone()), prop::collection::vec(labels(), places.len())))
        .prop_map(|(places, labels)| {
            places.into_iter().zip(labels).map(|((node, name), labels)| (node, name, labels)).collect()
        })
}

fn object(kind: &str, name: &str, labels: &Labels, spec: &serde_json::Value) -> String {
    let value = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": { "name": name, "labels": labels }, "spec": spec,
    });
    format!("---\n{value}\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_policy_is_for_the_endpoints_that_it_selects(ast in ast(), endpoints in endpoints()) {
        let mut text = String::new();
        for (index, (node, interface, labels)) in endpoints.iter().enumerate() {
            let spec = serde_json::json!({ "node": node, "interfaceName": interface });
            text += &object("HostEndpoint", &format!("h{index}"), labels, &spec);
        }
        let spec = serde_json::json!({ "selector": ast.text(), "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Deny" }] });
        text += &object("GlobalNetworkPolicy", "p", &Labels::new(), &spec);
        let (documents, findings) = convert(&[Source::new("a.yaml", text)]);
        prop_assert!(findings.iter().all(|finding| finding.severity != Severity::Error), "{findings:?}");
        let loaded = source::decode_text("a.toml", &to_toml(&documents));
        prop_assert_eq!(&loaded.findings, &[]);
        let found: Vec<_> = loaded.policy.policies.iter().filter(|policy| policy.tier == "calico-default").collect();
        for node in ["n1", "n2", "n3"] {
            for interface in ["eth0", "eth1", "eth2", "cali1"] {
                let of = |name: &str| endpoints.iter().find(|(of, has, _)| *of == node && *has == name);
                let every = of(interface).is_none();
                let expected = of(interface).or_else(|| of("*")).is_some_and(|(_, _, labels)| ast.holds(labels));
                let role = if interface == "cali1" { "pod" } else { "mgmt" };
                let own: Labels = [("name".to_owned(), interface.to_owned()), ("role".to_owned(), role.to_owned())].into();
                let here: Labels = [("name".to_owned(), node.to_owned())].into();
                for direction in Direction::BOTH {
                    let meant = expected && !(direction == Direction::Egress && every && interface == "cali1");
                    let governs = found.iter().filter(|policy| {
                        let governed = match direction {
                            Direction::Ingress => policy.ingress.is_some(),
                            Direction::Egress => policy.egress.is_some(),
                        };
                        governed && policy.nodes.matches(&here) && policy.interfaces.matches(&own)
                    });
                    prop_assert_eq!(governs.count(), usize::from(meant), "{} {} {:?} {}", node, interface, direction, ast.text());
                }
            }
        }
    }

    #[test]
    fn a_rule_means_the_sets_that_it_selects_and_none_that_is_not_calicos(ast in ast(), sets in prop::collection::vec(labels(), 0..4)) {
        let spec = serde_json::json!({ "node": "n1", "interfaceName": "eth0" });
        let mut text = object("HostEndpoint", "h", &Labels::new(), &spec);
        for (index, labels) in sets.iter().enumerate() {
            text += &object("GlobalNetworkSet", &format!("s{index}"), labels, &serde_json::json!({ "nets": ["10.0.0.0/8"] }));
        }
        let rule = serde_json::json!({ "action": "Deny", "source": { "selector": ast.text(), "namespaceSelector": "global()" } });
        text += &object("GlobalNetworkPolicy", "p", &Labels::new(), &serde_json::json!({ "selector": "all()", "ingress": [rule] }));
        let (documents, findings) = convert(&[Source::new("a.yaml", text)]);
        prop_assert!(findings.iter().all(|finding| finding.severity != Severity::Error), "{findings:?}");
        let loaded = source::decode_text("a.toml", &to_toml(&documents));
        prop_assert_eq!(&loaded.findings, &[]);
        let policy = loaded.policy.policies.iter().find(|policy| policy.name == "p").unwrap();
        let from = policy.ingress.as_ref().unwrap()[0].from.as_ref().unwrap();
        let selector: &Selector = from.select.as_ref().unwrap();
        for (index, labels) in sets.iter().enumerate() {
            let set = &loaded.policy.sets[&format!("s{index}")];
            prop_assert_eq!(selector.matches(&set.labels), ast.holds(labels), "{} {:?}", selector, labels);
        }
        prop_assert!(!selector.matches(&Labels::new()), "{}", selector);
    }
}
