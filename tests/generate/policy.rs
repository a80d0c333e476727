//! Policies over the whole language, as they are when names are looked up: few names, addresses and ports, so that rules overlap.

use std::collections::BTreeMap;

use nodewall::net::addr::{AddrSet, Family};
use nodewall::net::facts::Cgroup;
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::protocol::{IcmpSet, L4Detail, L4Match, PortSet, Protocol};
use nodewall::net::range::RangeSet;
use nodewall::policy::effective::{
    Addresses, Effective, EffectiveFailsafe, EffectivePolicy, EffectiveRule, EffectiveTier, Expected, Interface,
    Pattern, ProcessMatch, RuleId, Units,
};
use nodewall::policy::guards;
use nodewall::policy::model::{Action, Limit, Mode, Stage, TierDefault};
use nodewall::policy::selector::{Labels, Selector};
use nodewall::policy::settings::{Default as InterfaceDefault, LogSettings};
use nodewall::text::place::Place;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// Interface names: those that policies know, and some that they do not.
pub const NAMES: [&str; 9] = ["lo", "eth0", "eth1", "ib0", "cali1", "cali12", "cal", "veth9", "eth"];
pub const KINDS: [&str; 4] = ["veth", "bond", "vxlan", "macvlan"];
pub const ROLES: [Role; 5] = [Role::Mgmt, Role::Rail, Role::Pod, Role::Storage, Role::Unknown];
pub const PROTOCOLS: [u8; 9] = [6, 17, 132, 33, 1, 58, 47, 50, 136];
pub const ICMP_TYPES: [u8; 10] = [0, 2, 3, 8, 128, 130, 134, 135, 137, 143];
/// Few distinct addresses, so that rules overlap and packets hit them.
pub const POOL_V4: u32 = 0x0a00_0000;
pub const POOL_V6: u128 = 0xfd00 << 112;

pub fn effective() -> impl Strategy<Value = Effective> {
    let mode = prop_oneof![6 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    let tier = (any::<bool>(), prop::collection::vec(policy(), 0..4)).prop_map(|(deny, policies)| EffectiveTier {
        name: String::new(),
        default: if deny { TierDefault::Deny } else { TierDefault::Pass },
        policies,
    });
    let replies = prop::collection::vec(rule(), 0..2);
    let entry = (select(Direction::BOTH.to_vec()), selector(), rule(), replies).prop_map(
        |(direction, interfaces, rule, replies)| {
            // Failsafe entries have no limits (nodewall.toml(5)).
            let rule = EffectiveRule { action: Action::Allow, limit: None, ..rule };
            let replies = replies
                .into_iter()
                .map(|reply| EffectiveRule { action: Action::Allow, log: rule.log.clone(), limit: None, ..reply })
                .collect();
            EffectiveFailsafe { name: String::new(), direction, interfaces, rule, replies }
        },
    );
    let tiers = prop::collection::vec(tier, 0..4);
    let failsafe = prop::collection::vec(entry, 0..3);
    let defaults = prop::collection::vec(any::<bool>(), Role::ALL.len() * 2);
    let mark = select(vec![0x10u32, 0x1, 0x400, 0x8000_0000]);
    let early = prop_oneof![1 => Just(Vec::new()), 5 => subsequence(ROLES.to_vec(), 1..=ROLES.len())];
    // The first policies as guards, which decide about essentials.
    let guards = prop_oneof![2 => Just(&[][..]), 1 => Just(&NAMES_OF_GUARDS[..1]), 1 => Just(&NAMES_OF_GUARDS[..])];
    let rest = (any::<bool>(), any::<bool>(), mark, early, guards);
    (mode, interfaces(), expected(), failsafe, tiers, defaults, rest).prop_map(
        |(mode, interfaces, expected, failsafe, tiers, defaults, rest)| {
            let (drop_invalid, team, accept_mark, early, guards) = rest;
            let defaults = Role::ALL
                .iter()
                .flat_map(|role| Direction::BOTH.map(|direction| (*role, direction)))
                .zip(defaults)
                .map(|(key, allow)| (key, if allow { InterfaceDefault::Allow } else { InterfaceDefault::Deny }))
                .collect();
            let unknown = labels(Role::Unknown, team);
            let log = LogSettings { group: 1, denied: false, rate: 10, burst: 5 };
            let mut effective = Effective {
                rails: std::collections::BTreeMap::new(),
                remembered: std::collections::BTreeMap::new(),
                early: early.into_iter().collect(),
                mode,
                interfaces,
                expected,
                unknown,
                failsafe,
                tiers,
                named: std::sync::Arc::default(),
                defaults,
                accept_mark,
                drop_invalid,
                log,
            };
            name_everything(&mut effective);
            name_guards(&mut effective, guards);
            effective
        },
    )
}

/// The guards that have a say about essentials.
const NAMES_OF_GUARDS: [&str; 2] = [guards::ADVERTISEMENTS, guards::DHCP_SERVER];

/// Gives the first policies the names of guards, and what makes those decide.
fn name_guards(effective: &mut Effective, names: &[&str]) {
    let Some(tier) = effective.tiers.first_mut().filter(|_| !names.is_empty()) else { return };
    tier.name = guards::TIER.to_owned();
    for (policy, name) in tier.policies.iter_mut().zip(names) {
        policy.name = (*name).to_owned();
        (policy.stage, policy.mode) = (Stage::Host, Mode::Enforce);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
            rule.id.policy = (*name).into();
        }
    }
}

/// Names are unique in a valid policy, so they are given at the end.
pub fn name_everything(effective: &mut Effective) {
    for (index, entry) in effective.failsafe.iter_mut().enumerate() {
        entry.name = format!("entry{index}");
        for rule in entry.replies.iter_mut().chain([&mut entry.rule]) {
            rule.id = RuleId { policy: format!("failsafe:entry{index}").into(), number: 1 };
        }
    }
    for (tier_index, tier) in effective.tiers.iter_mut().enumerate() {
        tier.name = format!("tier{tier_index}");
        for (policy_index, policy) in tier.policies.iter_mut().enumerate() {
            policy.name = format!("policy{tier_index}-{policy_index}");
            for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
                for (number, rule) in (1..).zip(rules.iter_mut()) {
                    rule.id = RuleId { policy: policy.name.as_str().into(), number };
                }
            }
        }
    }
}

pub fn labels(role: Role, team: bool) -> Labels {
    let mut labels = Labels::from([("role".to_owned(), role.name().to_owned())]);
    if team {
        labels.insert("team".to_owned(), "blue".to_owned());
    }
    labels
}

pub fn interfaces() -> impl Strategy<Value = Vec<Interface>> {
    prop::collection::btree_map(0..6usize, (select(ROLES.to_vec()), any::<bool>()), 0..5).prop_map(|chosen| {
        let interface = |(index, (role, team)): (usize, (Role, bool))| {
            let role = if NAMES[index] == "lo" { Role::Loopback } else { role };
            Interface {
                name: InterfaceName::new(NAMES[index]).unwrap(),
                index: index as u32 + 1,
                role,
                why: "generated".to_owned(),
                labels: labels(role, team),
                coverage: std::collections::BTreeMap::new(),
            }
        };
        let mut interfaces: Vec<Interface> = chosen.into_iter().map(interface).collect();
        interfaces.sort_by(|one, other| one.name.cmp(&other.name));
        interfaces
    })
}

pub fn expected() -> impl Strategy<Value = Vec<Expected>> {
    let pattern = prop_oneof![
        select(NAMES[1..].to_vec()).prop_map(|name| Pattern::Name(InterfaceName::new(name).unwrap())),
        select(vec!["cali", "eth", "c", "veth", "cali12"]).prop_map(|prefix| Pattern::Prefix(prefix.to_owned())),
        select(KINDS.to_vec()).prop_map(|kind| Pattern::Kind(kind.to_owned())),
    ];
    let one = (pattern, select(ROLES.to_vec()), any::<bool>()).prop_map(|(pattern, role, team)| Expected {
        pattern,
        role,
        labels: labels(role, team),
    });
    prop::collection::vec(one, 0..4)
}

pub fn selector() -> impl Strategy<Value = Selector> {
    let role = || select(ROLES.to_vec()).prop_map(|role| role.name().to_owned());
    let roles = || prop::collection::btree_set(role(), 0..4);
    let part = || select(vec!["m", "a", "il", "ge", "pod", ""]).prop_map(str::to_owned);
    let key = || "role".to_owned();
    let leaf = prop_oneof![
        12 => Just(Selector::All),
        6 => role().prop_map(move |role| Selector::Equals(key(), role)),
        3 => role().prop_map(move |role| Selector::NotEquals(key(), role)),
        3 => Just(Selector::Has("team".to_owned())),
        1 => Just(Selector::Has("rack".to_owned())),
        1 => roles().prop_map(move |roles| Selector::In(key(), roles)),
        1 => roles().prop_map(move |roles| Selector::NotIn(key(), roles)),
        1 => part().prop_map(move |part| Selector::Contains(key(), part)),
        1 => part().prop_map(move |part| Selector::StartsWith(key(), part)),
        1 => part().prop_map(move |part| Selector::EndsWith(key(), part)),
        1 => Just(Selector::NotEquals("team".to_owned(), "blue".to_owned())),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            4 => inner.clone(),
            1 => inner.clone().prop_map(|inner| Selector::Not(Box::new(inner))),
            1 => prop::collection::vec(inner.clone(), 1..3).prop_map(Selector::And),
            1 => prop::collection::vec(inner, 1..3).prop_map(Selector::Or),
        ]
    })
}

pub fn policy() -> impl Strategy<Value = EffectivePolicy> {
    let rules = || prop::option::weighted(0.8, rules());
    let mode = prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Audit)];
    let stage = prop_oneof![
        3 => Just(Stage::Host), 1 => Just(Stage::Forward), 1 => Just(Stage::Prednat), 1 => Just(Stage::Untracked)
    ];
    // A few rules of one process, or each of another.
    let processes = prop_oneof![
        3 => Just(Vec::new()),
        5 => process().prop_map(|process| vec![process; 3]),
        1 => prop::collection::vec(process(), 20),
        4 => prop::collection::vec((0..7u32).prop_map(of_user), 20),
        4 => prop::collection::vec((0..7u32).prop_map(of_group), 20),
        4 => prop::collection::vec((0..6u64).prop_map(of_unit), 20),
    ];
    (mode, stage, selector(), rules(), rules(), processes).prop_map(
        |(mode, stage, interfaces, ingress, egress, processes)| EffectivePolicy {
            name: String::new(),
            stage,
            expires: None,
            mode,
            interfaces,
            ingress,
            egress: egress.filter(|_| stage != Stage::Prednat).map(|mut rules| {
                if stage == Stage::Host {
                    let step = if processes.len() > 3 { 1 } else { 2 };
                    for (rule, process) in rules.iter_mut().step_by(step).zip(processes) {
                        rule.process = Some(process);
                    }
                }
                rules
            }),
            place: Place::file("generated.toml"),
        },
    )
}

fn of_user(id: u32) -> ProcessMatch {
    ProcessMatch { users: Some(RangeSet::single(id)), ..ProcessMatch::default() }
}

fn of_group(id: u32) -> ProcessMatch {
    ProcessMatch { groups: Some(RangeSet::range(id, id + 1)), ..ProcessMatch::default() }
}

/// Units that are started by the same slice.
fn of_unit(id: u64) -> ProcessMatch {
    let units = Units { name: format!("unit/2.{id}"), cgroups: [cgroup((2, id))].into() };
    ProcessMatch { units: Some(units), ..ProcessMatch::default() }
}

/// Few users, groups and control groups, so that packets hit them.
pub fn process() -> impl Strategy<Value = ProcessMatch> {
    // Mostly one of the three: each is missed by most packets.
    (0..4u8).prop_flat_map(process_of)
}

/// Of users, of groups, of units, or of users with the others.
fn process_of(kind: u8) -> impl Strategy<Value = ProcessMatch> {
    let ids = || {
        prop::option::of(prop::collection::vec((0..6u32, 0..8u32), 0..4).prop_map(|ranges| {
            ranges.into_iter().map(|(start, length)| (start, start + length)).collect::<RangeSet<u32>>()
        }))
    };
    let units = prop::option::of(prop::collection::btree_set((1..4u8, 0..3u64), 0..4).prop_map(|chosen| {
        let name =
            format!("unit/{}", chosen.iter().map(|(level, id)| format!("{level}.{id}")).collect::<Vec<_>>().join("_"));
        Units { name, cgroups: chosen.into_iter().map(cgroup).collect() }
    }));
    (ids(), ids(), units)
        .prop_map(move |(users, groups, units)| ProcessMatch {
            users: users.filter(|_| matches!(kind, 0 | 3)),
            groups: groups.filter(|_| kind == 1 || kind == 3),
            units: units.filter(|_| kind >= 2),
        })
        .prop_filter("something is asked for", |process| *process != ProcessMatch::default())
}

pub fn cgroup((level, id): (u8, u64)) -> Cgroup {
    Cgroup { level, id: u64::from(level) << 40 | id }
}

/// A mix of everything, or many rules of the shapes that the compiler turns into maps, with now and then another between.
pub fn rules() -> impl Strategy<Value = Vec<EffectiveRule>> {
    let deciding = || {
        let action = select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Reject, Action::Pass]);
        (rule(), action).prop_map(|(rule, action)| EffectiveRule { action, source_ports: None, ..rule })
    };
    let no_peer = |rule: EffectiveRule| EffectiveRule { from: Addresses::Any, to: Addresses::Any, ..rule };
    let with_ports = || {
        let one =
            (select(PROTOCOLS[..4].to_vec()), ports()).prop_map(|(n, ports)| (Protocol(n), L4Detail::Ports(ports)));
        prop::collection::btree_map(0..2u8, one, 1..3).prop_map(|many| L4Match::Only(many.into_values().collect()))
    };
    let by_port = (deciding(), with_ports()).prop_map(move |(rule, l4)| EffectiveRule { l4, ..no_peer(rule) });
    let by_port_and_more = (deciding(), with_ports(), prop::option::of(ports()))
        .prop_map(|(rule, l4, source_ports)| EffectiveRule { l4, source_ports, ..rule });
    let peer = || prop_oneof![3 => literal().prop_map(Addresses::Literal), 1 => addresses()];
    let from_peer = (deciding(), peer()).prop_map(|(rule, from)| EffectiveRule {
        from,
        to: Addresses::Any,
        l4: L4Match::Any,
        ..rule
    });
    let to_peer = (deciding(), peer()).prop_map(|(rule, to)| EffectiveRule {
        from: Addresses::Any,
        to,
        l4: L4Match::Any,
        ..rule
    });
    // What is told apart by what it asks for, whatever else it asks for.
    let pair = || {
        (rule(), narrow(), peer(), any::<bool>()).prop_map(|(rule, one, other, turned)| {
            let (from, to) = if turned { (other, one) } else { (one, other) };
            EffectiveRule { from, to, ..rule }
        })
    };
    let pairs_from = (rule(), narrow(), peer()).prop_map(|(rule, from, to)| EffectiveRule { from, to, ..rule });
    let pairs_to = (rule(), narrow(), peer()).prop_map(|(rule, to, from)| EffectiveRule { from, to, ..rule });
    let source_ports = || {
        let any = prop_oneof![2 => with_ports(), 1 => Just(L4Match::Any), 1 => l4()];
        (rule(), any, ports()).prop_map(|(rule, l4, ports)| EffectiveRule { l4, source_ports: Some(ports), ..rule })
    };
    let limited = (rule(), with_ports(), any::<bool>()).prop_map(|(rule, l4, limited)| EffectiveRule {
        l4,
        limit: limited.then_some(Limit { rate: 1, seconds: 60, burst: 3, per_source: rule.log.is_some() }),
        ..rule
    });
    let ports = prop_oneof![16 => by_port, 8 => by_port_and_more, 1 => rule()];
    let sources = prop_oneof![24 => from_peer, 1 => rule()];
    let destinations = prop_oneof![24 => to_peer, 1 => rule()];
    let deny_set = addresses().prop_map(|from| EffectiveRule { from, ..deny_everything() });
    prop_oneof![
        3 => prop::collection::vec(deny_set, 1..5),
        4 => prop::collection::vec(rule(), 0..7),
        3 => prop::collection::vec(ports, 6..16),
        1 => prop::collection::vec(sources, 8..20),
        1 => prop::collection::vec(destinations, 8..20),
        1 => prop::collection::vec(pair(), 8..30),
        1 => prop::collection::vec(pairs_from, 8..30),
        1 => prop::collection::vec(pairs_to, 8..30),
        1 => prop::collection::vec(source_ports(), 8..20),
        1 => prop::collection::vec(limited, 8..20),
        1 => prop::collection::vec(prop_oneof![20 => source_ports(), 1 => rule()], 20..40),
    ]
}

pub fn deny_everything() -> EffectiveRule {
    EffectiveRule {
        id: RuleId { policy: "unnamed".into(), number: 1 },
        place: Place::file("generated.toml"),
        action: Action::Deny,
        from: Addresses::Any,
        to: Addresses::Any,
        l4: L4Match::Any,
        source_ports: None,
        family: None,
        process: None,
        limit: None,
        log: None,
    }
}

pub fn rule() -> impl Strategy<Value = EffectiveRule> {
    let action = prop_oneof![
        5 => Just(Action::Allow),
        4 => Just(Action::Deny),
        2 => Just(Action::Reject),
        2 => Just(Action::Pass),
        2 => Just(Action::Log),
    ];
    let family = prop_oneof![6 => Just(None), 1 => Just(Some(Family::V4)), 1 => Just(Some(Family::V6))];
    let log = prop_oneof![4 => Just(None), 1 => Just(Some(String::new())), 1 => Just(Some("word".to_owned()))];
    let limit = (1..100u32, select(vec![1u32, 60, 3600, 86_400]), 1..50u32, any::<bool>())
        .prop_map(|(rate, seconds, burst, per_source)| Limit { rate, seconds, burst, per_source });
    let limit = prop::option::weighted(0.12, limit);
    (action, addresses(), addresses(), l4(), prop::option::weighted(0.15, ports()), family, log, limit).prop_map(
        |(action, from, to, l4, source_ports, family, log, limit)| EffectiveRule {
            id: RuleId { policy: "unnamed".into(), number: 1 },
            place: Place::file("generated.toml"),
            action,
            from,
            to,
            l4,
            source_ports,
            family,
            process: None,
            limit,
            log,
        },
    )
}

/// One address of each family or a few.
fn narrow() -> impl Strategy<Value = Addresses> {
    let one = || (0..24u8, prop_oneof![5 => Just(0u8), 1 => 0..4u8]);
    (one(), one()).prop_map(|((v4, more4), (v6, more6))| {
        let (v4, v6) = (POOL_V4 + u32::from(v4), POOL_V6 + u128::from(v6));
        Addresses::Literal(AddrSet {
            v4: RangeSet::range(v4, v4 + u32::from(more4)),
            v6: RangeSet::range(v6, v6 + u128::from(more6)),
        })
    })
}

pub fn literal() -> impl Strategy<Value = AddrSet> {
    let v4 = prop::collection::vec((0..24u32, 0..9u32), 0..3);
    let v6 = prop::collection::vec((0..24u128, 0..9u128), 0..3);
    let of_pool = (v4, v6).prop_map(|(v4, v6)| AddrSet {
        v4: v4.into_iter().map(|(start, length)| (POOL_V4 + start, POOL_V4 + start + length)).collect(),
        v6: v6.into_iter().map(|(start, length)| (POOL_V6 + start, POOL_V6 + start + length)).collect(),
    });
    prop_oneof![
        8 => of_pool,
        1 => Just(AddrSet { v4: RangeSet::full(), v6: RangeSet::empty() }),
        1 => Just(AddrSet { v4: RangeSet::empty(), v6: RangeSet::full() }),
        1 => Just(AddrSet::full()),
    ]
}

/// Two rules that name the same set mean the same contents, so the named sets are fixed.
pub fn named() -> Vec<(&'static str, AddrSet)> {
    let v4 = |start: u32, end: u32| RangeSet::range(POOL_V4 + start, POOL_V4 + end);
    let v6 = |start: u128, end: u128| RangeSet::range(POOL_V6 + start, POOL_V6 + end);
    vec![
        ("peers", AddrSet { v4: v4(1, 1).union(&v4(5, 9)), v6: v6(2, 6) }),
        ("monitoring", AddrSet { v4: v4(4, 4).union(&v4(20, 20)), v6: RangeSet::empty() }),
        ("control-plane", AddrSet { v4: RangeSet::empty(), v6: v6(0, 0).union(&v6(9, 9)) }),
        ("nobody", AddrSet::default()),
    ]
}

pub fn addresses() -> impl Strategy<Value = Addresses> {
    prop_oneof![
        3 => Just(Addresses::Any),
        2 => literal().prop_map(Addresses::Literal),
        2 => select(named()).prop_map(|(name, set)| Addresses::Named(name.to_owned(), set)),
    ]
}

pub fn ports() -> impl Strategy<Value = PortSet> {
    let one = prop_oneof![
        4 => (20..40u16).prop_map(|port| (port, port)),
        2 => (20..40u16, 0..8u16).prop_map(|(start, length)| (start, start + length)),
        1 => Just((0, 0)),
        1 => Just((65_535, 65_535)),
        1 => Just((1024, 65_535)),
        1 => Just((0, 65_535)),
    ];
    prop::collection::vec(one, 0..4).prop_map(|ranges| ranges.into_iter().collect())
}

pub fn icmp_types() -> impl Strategy<Value = IcmpSet> {
    let codes = prop_oneof![
        3 => Just(RangeSet::full()),
        2 => (0..5u8).prop_map(RangeSet::single),
        1 => (0..5u8).prop_map(|start| RangeSet::range(start, start + 2)),
        1 => Just(RangeSet::empty()),
    ];
    prop::collection::btree_map(select(ICMP_TYPES.to_vec()), codes, 0..4)
}

pub fn l4() -> impl Strategy<Value = L4Match> {
    let detail = || {
        (select(PROTOCOLS.to_vec()), any::<bool>(), ports(), icmp_types()).prop_map(|(number, all, ports, icmp)| {
            let protocol = Protocol(number);
            let detail = match protocol {
                _ if all => L4Detail::All,
                Protocol::ICMP | Protocol::ICMPV6 => L4Detail::Icmp(icmp),
                _ if protocol.has_ports() => L4Detail::Ports(ports),
                _ => L4Detail::All,
            };
            (protocol, detail)
        })
    };
    // `not { protocol }` comes out as every other protocol.
    let all_but = (select(PROTOCOLS.to_vec()), detail()).prop_map(|(left_out, (protocol, detail))| {
        let mut protocols: BTreeMap<Protocol, L4Detail> =
            (0..=255).map(|number| (Protocol(number), L4Detail::All)).collect();
        protocols.insert(protocol, detail);
        protocols.remove(&Protocol(left_out));
        L4Match::Only(protocols)
    });
    prop_oneof![
        3 => Just(L4Match::Any),
        6 => detail().prop_map(|one| L4Match::Only([one].into())),
        4 => prop::collection::vec(detail(), 0..5).prop_map(|many| L4Match::Only(many.into_iter().collect())),
        1 => all_but,
    ]
}
