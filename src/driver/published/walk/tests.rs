//! Ways through tables that no agent makes, and what cannot be read of them.
#![allow(clippy::unwrap_used)]
use super::*;

fn rule(chain: &str, steps: Vec<Step>) -> NatRule {
    NatRule { chain: chain.to_owned(), comment: None, steps }
}

fn port(number: u128) -> Step {
    Step::Only(Field::Port, RangeSet::single(number))
}

fn to(chain: &str) -> Step {
    Step::Verdict(Verdict::Jump(chain.to_owned()))
}

fn redirect() -> Step {
    Step::Rewrite(Rewrite { here: true, addresses: None, ports: None })
}

/// What rules of table inet t publish from chain "p" on.
fn walked(rules: Vec<NatRule>, sets: &mut dyn FnMut(&str) -> Option<Content>) -> Exposed {
    let mut chains: BTreeMap<String, Vec<NatRule>> = BTreeMap::new();
    for rule in rules {
        chains.entry(rule.chain.clone()).or_default().push(rule);
    }
    let table = Table { family: TableFamily::Inet, name: "t", owner: None, chains: &chains };
    walk_within(50_000, &table, &["p".to_owned()], &AddrSet::default(), sets)
}

fn ports(exposed: &Exposed) -> Vec<(&[(u16, u16)], bool)> {
    exposed.published.iter().map(|published| (published.ports.ranges(), published.partly)).collect()
}

#[test]
fn chains_in_circles_and_far_away_come_to_an_end() {
    let circle = vec![
        rule("p", vec![to("a")]),
        rule("a", vec![to("b")]),
        rule("b", vec![to("a")]),
        rule("b", vec![port(80), redirect()]),
    ];
    let exposed = walked(circle, &mut |_| None);
    assert_eq!(ports(&exposed), [(&[(80, 80)][..], false)]);
    assert_eq!(exposed.unread, Vec::<String>::new());
    // Each chain leads to the next one many times over.
    let mut tree = vec![rule("p", vec![to("0")])];
    for depth in 0..100 {
        tree.extend((0..10).map(|_| rule(&depth.to_string(), vec![to(&(depth + 1).to_string())])));
    }
    let unread = walked(tree, &mut |_| None).unread;
    assert!(unread.iter().any(|what| what.contains("steps")), "{unread:?}");
    assert!(unread.iter().any(|what| what.contains("jumps")), "{unread:?}");
}

#[test]
fn what_cannot_be_read_makes_the_answer_wider_and_is_told() {
    let lookup = |to| Step::Lookup {
        set: "s".to_owned(),
        key: vec![Part { size: 2, what: What::Field(Field::Port) }],
        negated: false,
        to,
    };
    let exposed = walked(vec![rule("p", vec![lookup(To::Nothing), redirect()])], &mut |_| None);
    assert_eq!(ports(&exposed), [(&[(0, 65535)][..], true)]);
    let exposed = walked(vec![rule("p", vec![lookup(To::Verdict)])], &mut |_| None);
    assert_eq!(exposed.unread, ["table inet t: set s, whose verdicts lead on, cannot be read"]);
    // A set with keys of another size than what the rule has loaded.
    let element = Element { keys: Some((vec![0; 8], vec![0; 8])), verdict: None, data: None, comment: None };
    let shape = SetShape { name: "s".to_owned(), key_size: 8, interval: false, dynamic: false };
    let content = || Some(Content { shape: shape.clone(), elements: vec![element.clone()] });
    let exposed = walked(vec![rule("p", vec![lookup(To::Nothing), redirect()])], &mut |_| content());
    assert_eq!(ports(&exposed), [(&[(0, 65535)][..], true)]);
    // What rules put into a set says nothing about later.
    let dynamic = || {
        let element = Element { keys: Some((vec![0, 80], vec![0, 80])), ..element.clone() };
        Some(Content { shape: SetShape { dynamic: true, key_size: 2, ..shape.clone() }, elements: vec![element] })
    };
    let exposed = walked(vec![rule("p", vec![lookup(To::Nothing), redirect()])], &mut |_| dynamic());
    assert_eq!(ports(&exposed), [(&[(0, 65535)][..], true)]);
}

#[test]
fn one_way_that_is_understood_is_enough() {
    let rules =
        vec![rule("p", vec![port(80), to("a")]), rule("a", vec![Step::Asks, redirect()]), rule("a", vec![redirect()])];
    assert_eq!(ports(&walked(rules, &mut |_| None)), [(&[(80, 80)][..], false)]);
}

#[test]
fn the_service_of_a_chain_is_told_by_its_name() {
    let of = |chain| service(Some("kube-proxy"), chain).map(|name| name.to_string());
    assert_eq!(of("external-ULMVA6XW-ns1/svc1/tcp/p80").as_deref(), Some("ns1/svc1:p80"));
    assert_eq!(of("service-ULMVA6XW-ns1/svc1/tcp/").as_deref(), Some("ns1/svc1"));
    assert_eq!(of("endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"), None);
    assert_eq!(service(Some("Docker"), "external-ULMVA6XW-ns1/svc1/tcp/p80"), None);
}
