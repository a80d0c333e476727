//! Nobody gets a byte to a listening socket that the policy denies, whatever he does to his packets: fragments, IPv4 options, IPv6
//! extension headers, tags, odd addresses and odd segments, each against rules of every kind in every stage.
//!
//! What is proved has two sides. Under a policy that denies, no socket notices anything. Under the same policy with allow for deny, and
//! with everything else denied, the sockets notice what they notice without rules: so the trick does work on this kernel, and the rule
//! is about these packets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bench;
mod frame;
#[path = "../lab/mod.rs"]
mod lab;
mod trick;

use std::collections::{BTreeMap, BTreeSet};

use bench::{Bench, Place, Reached, TARGETS, Target};
use nodewall::config::Config;
use nodewall::net::interface::{Direction, Role};
use nodewall::policy::settings::{Default as InterfaceDefault, NodeSettings};
use trick::{Trick, tricks};

const SETS: &str = r#"
[[set]]
name = "attackers"
cidrs = ["10.0.0.98/31", "fd00::98/125"]

[[set]]
name = "targets"
cidrs = ["10.0.0.5", "10.1.0.7", "fd00::5", "fd01::7"]
"#;

/// Rules that are about all packets to the port where everything listens, or about all of some kind.
struct Kind {
    name: &'static str,
    /// The rules, with ACTION for what they do.
    rules: String,
    /// Of which targets.
    about: fn(Target) -> bool,
    /// Whether they name addresses, so that packets with others are none of theirs.
    by_address: bool,
}

fn has_ports((_, protocol): Target) -> bool {
    protocol.has_ports()
}

impl Kind {
    /// Its rules alone, with this action.
    fn policy(&self, point: Point, action: &str) -> String {
        format!("{} = [\n{}]\n", point.head(), self.rules.replace("ACTION", action))
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |name, rules: String, about| Kind { name, rules, about, by_address: false };
    let everything: fn(Target) -> bool = |_| true;
    let of_each = |protocols: &[&str], rest: &str| {
        protocols
            .iter()
            .map(|protocol| format!("{{ action = \"ACTION\", protocol = \"{protocol}\"{rest} }},\n"))
            .collect()
    };
    const WITH_PORTS: [&str; 4] = ["tcp", "udp", "sctp", "udplite"];
    let each = |rest: &str| -> String { of_each(&WITH_PORTS, rest) };
    let one = |rest: &str| format!("{{ action = \"ACTION\"{rest} }},\n");
    let address = |name, rest: &str| Kind { name, rules: one(rest), about: everything, by_address: true };
    let many = (9990..=9999).map(|port| each(&format!(", ports = [{port}]"))).collect();
    let peers = (90..100).map(|last| one(&format!(", from = {{ cidrs = [\"10.0.0.{last}\", \"fd00::{last}\"] }}")));
    let pairs = (90..100).map(|last| {
        one(&format!(", from = {{ cidrs = [\"10.0.0.{last}\", \"fd00::{last}\"] }}, to = {{ sets = [\"targets\"] }}"))
    });
    let sources = (0..10).map(|number| {
        let (from, to) = (number * 6_000, number * 6_000 + 5_999);
        each(&format!(", ports = [9999], from = {{ ports = [\"{from}-{to}\"] }}"))
    });
    vec![
        kind("a port", each(", ports = [9999]"), has_ports),
        kind("a range of ports", each(", ports = [\"9000-9999\"]"), has_ports),
        kind("ports and source ports", each(", ports = [9999], from = { ports = [\"1024-65535\"] }"), has_ports),
        kind("all but some ports", each(", not = { ports = [7] }"), has_ports),
        kind("many ports", many, has_ports),
        kind("many source ports", sources.collect(), has_ports),
        kind("protocols", of_each(&["tcp", "udp", "132", "136", "icmp", "icmpv6"], ""), everything),
        kind("all but a protocol", one(", not = { protocol = 47 }"), everything),
        kind("types of ICMP", one(", icmp = { type = \"echo-request\" }"), |(_, protocol)| !protocol.has_ports()),
        kind("families", one(", family = 4") + &one(", family = 6"), everything),
        kind("everything", one(""), everything),
        address("a set of sources", ", from = { sets = [\"attackers\"] }"),
        address("prefixes of sources", ", from = { cidrs = [\"10.0.0.0/8\", \"fd00::/16\"] }"),
        address(
            "all but some sources",
            ", from = { cidrs = [\"0.0.0.0/0\", \"::/0\"], except = { cidrs = [\"10.0.0.1\", \"fd00::1\"] } }",
        ),
        address("a set of destinations", ", to = { sets = [\"targets\"] }"),
        Kind { name: "many sources", rules: peers.collect(), about: everything, by_address: true },
        Kind { name: "many pairs", rules: pairs.collect(), about: everything, by_address: true },
        Kind {
            name: "sources and ports",
            rules: each(", from = { sets = [\"attackers\"] }, ports = [9999]"),
            about: has_ports,
            by_address: true,
        },
    ]
}

/// Where a policy stands.
#[derive(Clone, Copy)]
struct Point {
    stage: &'static str,
    direction: &'static str,
    interface: &'static str,
    place: Place,
}

impl Point {
    /// A policy up to its direction.
    fn head(self) -> String {
        let Self { stage, direction, interface, .. } = self;
        format!(
            "{SETS}\n[[policy]]\nname = \"p\"\nstage = \"{stage}\"\ninterfaces = \"name == '{interface}'\"\n{direction}"
        )
    }
}

/// Nothing but policies and a default decides; what connection tracking calls invalid is left to them, too.
fn settings(ingress: InterfaceDefault) -> NodeSettings {
    let mut settings = Config::shipped().settings;
    settings.failsafe = Vec::new();
    settings.drop_invalid = false;
    for role in Role::ALL {
        settings.defaults.insert((*role, Direction::Ingress), ingress);
        settings.defaults.insert((*role, Direction::Egress), InterfaceDefault::Allow);
    }
    settings
}

fn load(bench: &Bench, policy: &str, settings: &NodeSettings) {
    bench.node.put_in_force(&bench.node.compiled(policy, settings));
}

fn unload(bench: &Bench) {
    bench.node.sh("nft delete table inet nodewall 2>/dev/null || true");
    bench.node.enter(lab::conntrack::flush);
}

/// A bench, the tricks, and what they do where there is no rule.
struct Trial {
    bench: Bench,
    tricks: Vec<Trick>,
    bare: BTreeMap<Place, Reached>,
    wrong: Vec<String>,
}

impl Trial {
    fn new(places: &[Place]) -> Self {
        Self::on(Bench::new(), places)
    }

    fn on(bench: Bench, places: &[Place]) -> Self {
        let mut trial = Self { bench, tricks: tricks(), bare: BTreeMap::new(), wrong: Vec::new() };
        for place in places {
            let bare = trial.bench.play(*place, &TARGETS, &trial.tricks);
            for target in TARGETS {
                let reached = bare.keys().filter(|(of, _)| *of == target).count();
                // Without rules the sockets are reached, and by more than what plays no trick: else this test would not be able to fail.
                assert!(bare.contains_key(&(target, "none".to_owned())) && reached > 20, "{target:?}: {bare:#?}");
            }
            trial.bare.insert(*place, bare);
        }
        trial
    }

    /// The tricks that a policy is about.
    fn spoofs(&self, name: &str) -> bool {
        self.tricks.iter().any(|trick| trick.name == name && trick.spoofs)
    }

    fn is_odd(&self, name: &str) -> bool {
        self.tricks.iter().any(|trick| trick.name == name && trick.odd)
    }

    /// Nothing is noticed.
    fn denied(&mut self, about: &str, place: Place, targets: &[Target], by_address: bool) {
        for (target, name) in self.leaks(place, targets, by_address) {
            self.wrong.push(format!("denied, {about}: {target:?} by {name:?}"));
        }
    }

    /// What is noticed, and by which trick.
    fn leaks(&mut self, place: Place, targets: &[Target], by_address: bool) -> Vec<(Target, String)> {
        let reached = self.bench.play(place, targets, &self.tricks);
        reached.into_keys().filter(|(_, name)| !(by_address && self.spoofs(name))).collect()
    }

    /// What is noticed without rules is noticed.
    fn allowed(&mut self, about: &str, place: Place, targets: &[Target], by_address: bool) {
        let reached = self.bench.play(place, targets, &self.tricks);
        for ((target, name), how) in &self.bare[&place] {
            let left_out = !targets.contains(target) || self.is_odd(name) || (by_address && self.spoofs(name));
            let noticed = reached.get(&(*target, name.clone()));
            if !left_out && noticed != Some(how) {
                self.wrong.push(format!("allowed, {about}: {target:?} by {name:?}: {noticed:?}, not {how:?}"));
            }
        }
    }

    /// Every kind of rule at a point, both ways.
    fn everything_at(&mut self, point: Point) {
        let Point { stage, direction, place, .. } = point;
        for kind in kinds() {
            let targets: Vec<Target> = TARGETS.into_iter().filter(|target| (kind.about)(*target)).collect();
            let about = format!("{} {direction} of {stage}", kind.name);
            load(&self.bench, &kind.policy(point, "deny"), &settings(InterfaceDefault::Allow));
            self.denied(&about, place, &targets, kind.by_address);
            let mut allow = format!("{} = [\n{}", point.head(), kind.rules.replace("ACTION", "allow"));
            allow.push_str("{ action = \"deny\" },\n]\n");
            if stage == "untracked" {
                // Without connection tracking the answers want a rule of their own.
                allow.push_str("egress = [{ action = \"allow\" }]\n");
            }
            load(&self.bench, &allow, &settings(InterfaceDefault::Deny));
            self.allowed(&about, place, &targets, kind.by_address);
        }
    }

    fn finish(self) {
        assert!(self.wrong.is_empty(), "{}:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

fn at(stage: &'static str, direction: &'static str) -> Point {
    match (stage, direction) {
        ("forward", "egress") => Point { stage, direction, interface: "pod0", place: Place::Behind },
        ("forward", _) => Point { stage, direction, interface: "rail0", place: Place::Behind },
        _ => Point { stage, direction, interface: "rail0", place: Place::Node },
    }
}

#[test]
fn no_trick_gets_past_a_deny_in_stage_host() {
    if lab::may_run("no_trick_gets_past_a_deny_in_stage_host") {
        let mut trial = Trial::new(&[Place::Node]);
        trial.everything_at(at("host", "ingress"));
        trial.finish();
    }
}

#[test]
fn no_trick_gets_past_a_deny_in_stage_prednat() {
    if lab::may_run("no_trick_gets_past_a_deny_in_stage_prednat") {
        let mut trial = Trial::new(&[Place::Node]);
        trial.everything_at(at("prednat", "ingress"));
        trial.finish();
    }
}

#[test]
fn no_trick_gets_past_a_deny_in_stage_untracked() {
    if lab::may_run("no_trick_gets_past_a_deny_in_stage_untracked") {
        let mut trial = Trial::new(&[Place::Node]);
        trial.everything_at(at("untracked", "ingress"));
        trial.finish();
    }
}

#[test]
fn no_trick_gets_past_a_deny_in_stage_forward() {
    if lab::may_run("no_trick_gets_past_a_deny_in_stage_forward") {
        let mut trial = Trial::new(&[Place::Behind]);
        trial.everything_at(at("forward", "ingress"));
        trial.everything_at(at("forward", "egress"));
        trial.finish();
    }
}

/// The same in early stages, of what is for a host behind.
#[test]
fn no_trick_gets_past_a_deny_in_an_early_stage_to_a_host_behind() {
    if lab::may_run("no_trick_gets_past_a_deny_in_an_early_stage_to_a_host_behind") {
        let mut trial = Trial::new(&[Place::Behind]);
        for stage in ["prednat", "untracked"] {
            let point = Point { place: Place::Behind, ..at(stage, "ingress") };
            for kind in
                kinds().into_iter().filter(|kind| ["a port", "a set of sources", "everything"].contains(&kind.name))
            {
                let targets: Vec<Target> = TARGETS.into_iter().filter(|target| (kind.about)(*target)).collect();
                load(&trial.bench, &kind.policy(point, "deny"), &settings(InterfaceDefault::Allow));
                trial.denied(&format!("{} of {stage}", kind.name), point.place, &targets, kind.by_address);
            }
        }
        trial.finish();
    }
}

/// Where somebody has switched source routes on, rules that name destinations go by what is written in the packet when they see it, as
/// nodewall-policy(5) says; all others hold.
#[test]
fn source_routes_hide_a_destination_and_nothing_else() {
    if !lab::may_run("source_routes_hide_a_destination_and_nothing_else") {
        return;
    }
    let bench = Bench::new();
    bench.follow_routes();
    let mut trial = Trial::on(bench, &[Place::Node, Place::Behind]);
    let routed = |name: &str| name.ends_with("through another of its addresses");
    for place in [Place::Node, Place::Behind] {
        let followed = trial.bare[&place].keys().filter(|(_, name)| routed(name)).count();
        assert!(followed >= 10, "{place:?}: {followed}");
    }
    for stage in ["host", "prednat", "untracked", "forward"] {
        let point = at(stage, "ingress");
        let by_destination = ["a set of destinations", "many pairs"];
        let others = ["a port", "many source ports", "types of ICMP", "everything", "a set of sources"];
        let asked = |kind: &Kind| by_destination.contains(&kind.name) || others.contains(&kind.name);
        for kind in kinds().into_iter().filter(asked) {
            let targets: Vec<Target> = TARGETS.into_iter().filter(|target| (kind.about)(*target)).collect();
            let about = format!("{} of {stage}", kind.name);
            load(&trial.bench, &kind.policy(point, "deny"), &settings(InterfaceDefault::Allow));
            if !by_destination.contains(&kind.name) {
                trial.denied(&about, point.place, &targets, kind.by_address);
                continue;
            }
            let leaks = trial.leaks(point.place, &targets, true);
            let (expected, others): (Vec<_>, Vec<_>) = leaks.into_iter().partition(|(_, name)| routed(name));
            trial.wrong.extend(others.iter().map(|leak| format!("{about}: {leak:?}")));
            // IPv4's are followed before the host stage is asked; IPv6's are followed by who is the next on the way.
            let families: BTreeSet<bool> = expected.iter().map(|((v4, _), _)| *v4).collect();
            let page = match stage {
                "host" => BTreeSet::from([false]),
                "forward" => BTreeSet::new(),
                _ => BTreeSet::from([false, true]),
            };
            assert_eq!(families, page, "{about}: {expected:?}");
        }
    }
    trial.finish();
}

/// Deny sets at the device, and a policy that says nothing where the default is to deny.
#[test]
fn no_trick_gets_past_an_early_deny_or_a_default() {
    if lab::may_run("no_trick_gets_past_an_early_deny_or_a_default") {
        let mut trial = Trial::new(&[Place::Node, Place::Behind]);
        let deny = format!(
            "{SETS}\n[[policy]]\nname = \"p\"\ninterfaces = \"all()\"\n\
             ingress = [{{ action = \"deny\", from = {{ sets = [\"attackers\"] }} }}]\n"
        );
        let early = NodeSettings { early: Role::ALL.iter().copied().collect(), ..settings(InterfaceDefault::Allow) };
        load(&trial.bench, &deny, &early);
        assert!(trial.bench.node.sh("nft list table inet nodewall").contains("hook ingress"));
        for place in [Place::Node, Place::Behind] {
            trial.denied("early", place, &TARGETS, true);
        }
        load(&trial.bench, "", &settings(InterfaceDefault::Deny));
        trial.denied("by default", Place::Node, &TARGETS, false);
        load(&trial.bench, "", &settings(InterfaceDefault::Allow));
        trial.allowed("by default", Place::Node, &TARGETS, false);
        trial.allowed("by default", Place::Behind, &TARGETS, false);
        let by_tier = "[[tier]]\nname = \"shut\"\norder = 1\ndefault = \"deny\"\n\n\
                       [[policy]]\nname = \"p\"\ntier = \"shut\"\ninterfaces = \"all()\"\ningress = []\n";
        load(&trial.bench, by_tier, &settings(InterfaceDefault::Allow));
        trial.denied("by a tier", Place::Node, &TARGETS, false);
        trial.finish();
    }
}

/// What the tricks are worth: by the kernel alone, and against rules as they are written in a hurry, which read at fixed places of the
/// packet where the interface takes it. The table is printed.
#[test]
fn the_tricks_reach_sockets_and_get_past_naive_rules() {
    if !lab::may_run("the_tricks_reach_sockets_and_get_past_naive_rules") {
        return;
    }
    let mut trial = Trial::new(&[Place::Node, Place::Behind]);
    println!("{} tricks; N reaches the node's sockets, B those of a host behind it", trial.tricks.len());
    for trick in &trial.tricks {
        let places = [(Place::Node, 'N'), (Place::Behind, 'B')];
        let cells: Vec<String> = TARGETS
            .into_iter()
            .filter(|(v4, protocol)| trick.applies(*v4, *protocol))
            .map(|target| {
                let there = |place: &Place| trial.bare[place].contains_key(&(target, trick.name.clone()));
                let reached: String =
                    places.iter().filter(|(place, _)| there(place)).map(|(_, letter)| letter).collect();
                let family = if target.0 { 4 } else { 6 };
                format!("{}{family}:{}", target.1, if reached.is_empty() { "-" } else { &reached })
            })
            .collect();
        println!("{:64} {}", trick.name, cells.join(" "));
    }
    unload(&trial.bench);
    trial.bench.node.nft(
        "table netdev naive { chain ingress { type filter hook ingress device \"rail0\" priority 0; \
         ether type ip @nh,176,16 9999 drop; ether type ip6 @nh,336,16 9999 drop; }; }",
    );
    let reached = trial.bench.play(Place::Node, &TARGETS[..4], &trial.tricks);
    let past: BTreeSet<&str> = reached.keys().map(|(_, name)| name.as_str()).collect();
    println!("past naive rules: {past:?}");
    for name in ["VLAN 0 twice", "40 bytes of NOP", "destination options", "hop-by-hop options", "an atomic fragment"] {
        assert!(past.contains(name), "{name}: {past:?}");
    }
    assert!(!past.contains("none"));
}
