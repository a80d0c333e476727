//! The table of flows and stages in nodewall-policy(5), row by row with real packets: which stage sees a flow, with which addresses
//! and on which interface, what an allow skips, and how a reject is answered. A row of the page without packets fails, and packets
//! without a row do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod documents;
mod flow;
#[path = "../lab/mod.rs"]
mod lab;
mod node;
mod page;

use std::collections::{BTreeMap, BTreeSet};

use documents::{Documents, elsewhere, on, reply_rule, rule};
use flow::{FLOWS, Flow, Try, flows, send};
use lab::net::{Answer, What};
use node::{Lab, PLAIN, settings};
use nodewall::driver::Netlink;
use nodewall::net::interface::Direction;
use nodewall::net::protocol::Protocol;
use nodewall::net::range::RangeSet;
use nodewall::policy::model::{Mode, ServicePort, Stage};
use nodewall::policy::selector::Selector;
use nodewall::policy::settings::{Failsafe, NodeSettings};
use nodewall::simulate::{Outcome, decide};
use nodewall::text::place::Place;
use page::{Form, POINTS, Point, Row, rows};

/// A laboratory, its kernel, and what it has seen.
struct Bench {
    lab: Lab,
    kernel: Netlink,
    flows: Vec<Flow>,
    rows: BTreeMap<String, Row>,
    /// Whether the simulator is asked, too: it takes the packet that begins a flow.
    simulated: bool,
    wrong: Vec<String>,
    sent: usize,
}

impl Bench {
    fn new() -> Self {
        let lab = Lab::new();
        let (kernel, flows) = (lab.kernel(), flows(&lab));
        Self { lab, kernel, flows, rows: rows(), simulated: true, wrong: Vec::new(), sent: 0 }
    }

    fn row(&self, flow: &Flow) -> &Row {
        self.rows.get(flow.row).unwrap_or_else(|| panic!("nodewall-policy(5) has no row {:?}", flow.row))
    }

    /// Puts documents in force, sends what something is expected of, and compares. Where there is one thing to expect, it is what
    /// the simulator says as well.
    fn expect(
        &mut self,
        about: &str,
        documents: &Documents,
        settings: &NodeSettings,
        expected: impl Fn(&Flow, &Row, &Try) -> Option<Vec<Answer>>,
    ) {
        let effective = self.lab.load(&mut self.kernel, documents, settings);
        let mut tries = Vec::new();
        for flow in &self.flows {
            let row = self.row(flow);
            tries.extend(flow.tries.iter().filter_map(|one| Some((flow, one, expected(flow, row, one)?))));
        }
        let answers = send(&tries.iter().map(|(_, one, _)| *one).collect::<Vec<_>>());
        let mut wrong = Vec::new();
        for ((flow, one, expected), answer) in tries.iter().zip(answers) {
            if !expected.contains(&answer) {
                wrong.push(format!("{about}: {}: {answer:?}, not {expected:?}: {:?}", flow.row, one.sent));
            }
            let (Some(packet), [expected]) = (flow.packet(one), &expected[..]) else { continue };
            let decision = decide(&effective, &packet);
            if self.simulated && (decision.outcome == Outcome::Accepted) != (*expected == Answer::Allowed) {
                wrong.push(format!("{about}: {}: simulated, {decision:?}, not {expected:?}: {packet:?}", flow.row));
            }
        }
        self.sent += tries.len();
        self.wrong.extend(wrong);
    }

    /// Rules for what these points see, in the form and on the interface in which they see it.
    fn where_seen(&self, action: &str, points: &[Point]) -> Documents {
        let mut documents = Documents::default();
        for flow in &self.flows {
            for (point, form) in self.row(flow).seen.iter().filter(|(point, _)| points.contains(point)) {
                let interface = flow.interface(*point).unwrap_or_else(|| panic!("{} has no interface there", flow.row));
                for head in flow.tries.iter().filter_map(|one| one.head(*form)) {
                    documents.add(*point, on(interface), rule(action, &head));
                }
            }
        }
        documents
    }

    fn finish(self) {
        println!("{} packets", self.sent);
        assert!(self.wrong.is_empty(), "{} of {}:\n{}", self.wrong.len(), self.sent, self.wrong.join("\n"));
    }
}

const UNTRACKED: [Point; 2] = [(Stage::Untracked, Direction::Ingress), (Stage::Untracked, Direction::Egress)];
const PREDNAT: Point = (Stage::Prednat, Direction::Ingress);
const ENDS: [Point; 4] = [
    (Stage::Host, Direction::Ingress),
    (Stage::Host, Direction::Egress),
    (Stage::Forward, Direction::Ingress),
    (Stage::Forward, Direction::Egress),
];

const ALLOWED: [Answer; 1] = [Answer::Allowed];
const DENIED: [Answer; 1] = [Answer::Denied];

#[test]
fn every_row_of_the_page_has_packets_and_the_other_way_round() {
    let on_page: BTreeSet<String> = rows().into_keys().collect();
    assert_eq!(on_page, FLOWS.into_iter().map(str::to_owned).collect());
}

/// A deny where the page says that a flow is seen, with these addresses and on this interface, keeps it out; a deny anywhere else
/// changes nothing.
#[test]
fn each_stage_sees_what_the_page_says() {
    if !lab::may_run("each_stage_sees_what_the_page_says") {
        return;
    }
    let mut bench = Bench::new();
    let settings = settings();
    for (point, word) in POINTS {
        let (mut there, mut not_there) = (Documents::default(), Documents::default());
        for flow in &bench.flows {
            let seen = bench.row(flow).seen.get(&point).copied();
            for one in &flow.tries {
                for form in [Form::Sent, Form::Translated] {
                    let Some(head) = one.head(form) else { continue };
                    let deny = rule("deny", &head);
                    if seen == Some(form) {
                        let interface =
                            flow.interface(point).unwrap_or_else(|| panic!("{} has no interface there", flow.row));
                        there.add(point, on(interface), &deny);
                        not_there.add(point, elsewhere(interface), &deny);
                    } else {
                        not_there.add(point, "all()", &deny);
                    }
                }
            }
        }
        bench.expect(&format!("deny in {word}"), &there, &settings, |_, row, _| {
            Some(if row.seen.contains_key(&point) { DENIED } else { ALLOWED }.into())
        });
        bench.expect(&format!("deny in {word} of what it does not see"), &not_there, &settings, |_, _, _| {
            Some(ALLOWED.into())
        });
    }
    bench.finish();
}

/// Replies are seen by the untracked stage and by no other.
#[test]
fn replies_are_seen_before_connection_tracking_only() {
    if !lab::may_run("replies_are_seen_before_connection_tracking_only") {
        return;
    }
    let mut bench = Bench { simulated: false, ..Bench::new() };
    let settings = settings();
    for (point, word) in POINTS {
        let (mut there, mut not_there) = (Documents::default(), Documents::default());
        for flow in &bench.flows {
            let replies = bench.row(flow).replies;
            let seen = replies.filter(|(direction, _)| (Stage::Untracked, *direction) == point);
            for one in &flow.tries {
                for form in [Form::Sent, Form::Translated] {
                    let Some(head) = one.head(form) else { continue };
                    let deny = reply_rule("deny", &head);
                    let interface = match point.1 {
                        Direction::Ingress => flow.back,
                        Direction::Egress => flow.arrives,
                    };
                    match (seen, interface) {
                        (Some((_, as_seen)), Some(interface)) if as_seen == form => {
                            there.add(point, on(interface), &deny);
                            not_there.add(point, elsewhere(interface), &deny);
                        }
                        (Some((_, as_seen)), None) if as_seen == form => panic!("{} has no interface there", flow.row),
                        _ => not_there.add(point, "all()", &deny),
                    }
                }
            }
        }
        bench.expect(&format!("deny replies in {word}"), &there, &settings, |_, row, _| {
            let seen = row.replies.is_some_and(|(direction, _)| (Stage::Untracked, direction) == point);
            Some(if seen { DENIED } else { ALLOWED }.into())
        });
        bench.expect(&format!("deny replies in {word} that it does not see"), &not_there, &settings, |_, _, _| {
            Some(ALLOWED.into())
        });
    }
    bench.finish();
}

/// An allow in an early stage skips the later ones; one in the ingress half of the forward stage does not skip the egress half.
#[test]
fn an_early_allow_skips_later_stages() {
    if !lab::may_run("an_early_allow_skips_later_stages") {
        return;
    }
    let mut bench = Bench::new();
    let mut documents = bench.where_seen("deny", &ENDS);
    for flow in bench.flows.iter().filter(|flow| flow.arrives.is_some()) {
        for one in &flow.tries {
            documents.add(PREDNAT, "all()", rule("allow", &one.sent));
        }
    }
    // The bit is whichever the settings say.
    for accept_mark in [0x10, 0x8000_0000] {
        let settings = NodeSettings { accept_mark, ..settings() };
        bench.expect("allow in Pi, deny after", &documents, &settings, |_, row, _| {
            row.seen.contains_key(&PREDNAT).then(|| ALLOWED.into())
        });
    }

    let mut documents = bench.where_seen("deny", &[&ENDS[..], &[PREDNAT]].concat());
    for flow in &bench.flows {
        for one in &flow.tries {
            for point in UNTRACKED {
                documents.add(point, "all()", rule("allow", &one.sent));
                documents.add(point, "all()", reply_rule("allow", &one.sent));
            }
        }
    }
    bench.expect("allow in Ui and Uo, deny after", &documents, &settings(), |_, row, one| {
        // What is not tracked is not translated either.
        let expected = if one.translated.is_some() { &[Answer::Denied, Answer::Rejected][..] } else { &ALLOWED };
        UNTRACKED.iter().any(|point| row.seen.contains_key(point)).then(|| expected.into())
    });

    let [_, _, arrives, leaves] = ENDS;
    let mut documents = bench.where_seen("deny", &[leaves]);
    for flow in &bench.flows {
        let form = bench.row(flow).seen.get(&arrives).copied();
        for head in flow.tries.iter().filter_map(|one| one.head(form?)) {
            documents.add(arrives, "all()", rule("allow", &head));
        }
    }
    bench.expect("allow in Fi, deny in Fo", &documents, &settings(), |_, row, _| {
        row.seen.contains_key(&leaves).then(|| DENIED.into())
    });
    bench.finish();
}

/// Only our stages say what a later one skips: the mark of somebody else, or of a process, is taken off or not looked at.
#[test]
fn a_mark_that_is_not_ours_skips_nothing() {
    if !lab::may_run("a_mark_that_is_not_ours_skips_nothing") {
        return;
    }
    let mut bench = Bench::new();
    // Before everything of ours; other bits stay with the packet, and who looks for them finds them.
    bench.lab.node.nft(
        "table inet marker {
            chain prerouting { type filter hook prerouting priority -400; meta mark set 0x110; }
            chain output { type filter hook output priority -400; meta mark set 0x110; }
            chain postrouting { type filter hook postrouting priority 200; meta mark & 0x100 == 0 drop; }
        }",
    );
    let elsewhere = "{ action = \"allow\", from = { cidrs = [\"192.0.2.1\"] } }";
    for early in [&[PREDNAT][..], &UNTRACKED, &[PREDNAT, UNTRACKED[0], UNTRACKED[1]]] {
        let mut documents = bench.where_seen("deny", &ENDS);
        for point in early {
            documents.add(*point, "all()", elsewhere);
        }
        bench.expect(&format!("marks before {early:?}"), &documents, &settings(), |_, row, _| {
            let seen = ENDS.iter().any(|point| row.seen.contains_key(point));
            Some(if seen { DENIED } else { ALLOWED }.into())
        });
    }
    bench.finish();
}

/// A reject is answered in every stage but one: what the untracked stage rejects has no flow, so that its answer is a packet of no
/// flow, which the host stage drops unless it is told otherwise.
#[test]
fn rejects_are_answered_where_the_page_says() {
    if !lab::may_run("rejects_are_answered_where_the_page_says") {
        return;
    }
    let mut bench = Bench::new();
    let answered = |flow: &Flow| match flow.row {
        // Nobody is told what was sent to a group, and what asks through a tunnel does not hear of it.
        "remote to broadcast or multicast" | "Soft-RoCE arriving" => DENIED.into(),
        _ => vec![Answer::Rejected],
    };
    let [arrives, leaves] = UNTRACKED;
    for (point, word) in POINTS {
        let documents = bench.where_seen("reject", &[point]);
        bench.expect(&format!("reject in {word}"), &documents, &settings(), |flow, row, one| {
            // A bridge sends resets by itself, past this host's output.
            let reset = flow.row == "pods of one bridge, with br_netfilter" && matches!(one.sent.what, What::Tcp(_));
            let silent = point == arrives && !reset;
            row.seen.contains_key(&point).then(|| if silent { DENIED.into() } else { answered(flow) })
        });
    }
    let mut documents = bench.where_seen("reject", &[arrives]);
    bench.expect(
        "reject in Ui, invalid packets not dropped",
        &documents,
        &NodeSettings { drop_invalid: false, ..settings() },
        |flow, row, _| row.seen.contains_key(&arrives).then(|| answered(flow)),
    );
    for flow in &bench.flows {
        for one in &flow.tries {
            documents.add(leaves, "all()", reply_rule("allow", &one.sent));
        }
    }
    documents.add(leaves, "all()", "{ action = \"allow\", icmp = { type = \"destination-unreachable\" } }");
    bench.expect("reject in Ui, answers allowed in Uo", &documents, &settings(), |flow, row, _| {
        row.seen.contains_key(&arrives).then(|| answered(flow))
    });
    bench.finish();
}

/// A policy in audit mode, and a node in audit mode, change nothing in any stage: not even that addresses are translated, which they
/// are only where connections are tracked.
#[test]
fn audit_changes_nothing_in_any_stage_and_counts() {
    if !lab::may_run("audit_changes_nothing_in_any_stage_and_counts") {
        return;
    }
    let mut bench = Bench::new();
    let points = POINTS.map(|(point, _)| point);
    for action in ["deny", "reject", "allow"] {
        let documents = bench.where_seen(action, &points);
        let watching = Documents { mode: "audit", ..documents.clone() };
        let node_wide = NodeSettings { mode: Mode::Audit, ..settings() };
        for (about, documents, settings) in
            [("policies", &watching, settings()), ("the node", &documents, node_wide), ("both", &watching, settings())]
        {
            bench.expect(&format!("{action} while {about} in audit"), documents, &settings, |_, _, _| {
                Some(ALLOWED.into())
            });
            let counted = bench.lab.node.sh("nft list table inet nodewall");
            for order in 0..documents.rules.len() {
                let of_policy = |line: &&str| line.contains(&format!("comment \"p{order}#"));
                let lines: Vec<&str> = counted.lines().filter(of_policy).collect();
                let some =
                    lines.iter().any(|line| line.contains("counter packets") && !line.contains("counter packets 0 "));
                // With the node in audit a packet that an early stage would have denied goes past the later ones, as it would
                // never have come there.
                assert!(some || about == "the node", "{action}, {about}: policy p{order} counted nothing: {lines:#?}");
            }
        }
    }
    bench.finish();
}

/// A failsafe for what listens everywhere, both ways.
fn with_failsafe() -> NodeSettings {
    let entry = |direction: Direction| Failsafe {
        name: format!("plain-{}", direction.name()),
        direction,
        ports: vec![
            ServicePort::Ports(Protocol::TCP, RangeSet::single(PLAIN)),
            ServicePort::Icmp(Protocol::ICMP, [(8, RangeSet::full())].into()),
            ServicePort::Icmp(Protocol::ICMPV6, [(128, RangeSet::full())].into()),
        ],
        peers: None,
        interfaces: Selector::All,
        cluster_api: false,
        place: Place::file("main.rs"),
    };
    NodeSettings { failsafe: Direction::BOTH.map(entry).into(), ..settings() }
}

/// What failsafe lets through no stage can stop, and in an early stage it skips no other.
#[test]
fn failsafe_holds_in_every_stage() {
    if !lab::may_run("failsafe_holds_in_every_stage") {
        return;
    }
    let mut bench = Bench::new();
    let settings = with_failsafe();
    for (point, word) in POINTS {
        let documents = bench.where_seen("deny", &[point]);
        bench.expect(&format!("deny in {word} behind a failsafe"), &documents, &settings, |_, row, one| {
            let form = *row.seen.get(&point)?;
            let safe = one.head(form).is_some_and(|head| matches!(head.what, What::Tcp(PLAIN) | What::Echo));
            Some(if safe { ALLOWED } else { DENIED }.into())
        });
    }
    bench.finish();
}

/// A stage that denies everything in both directions leaves a host that finds its neighbours, and whose failsafe works: also where
/// answers are asked about like everything else.
#[test]
fn nobody_is_locked_out_by_a_stage_that_denies_everything() {
    if !lab::may_run("nobody_is_locked_out_by_a_stage_that_denies_everything") {
        return;
    }
    let mut bench = Bench::new();
    for stage in Stage::ALL {
        let mut documents = Documents::default();
        for (point, _) in POINTS.into_iter().filter(|((of, _), _)| *of == stage) {
            documents.add(point, "all()", "{ action = \"deny\" }");
        }
        bench.lab.forget_neighbours();
        bench.expect(
            &format!("everything denied in {}", stage.name()),
            &documents,
            &with_failsafe(),
            |flow, row, one| {
                let safe = matches!(one.sent.what, What::Tcp(PLAIN) | What::Echo) && one.translated.is_none();
                let seen = row.seen.keys().any(|(of, _)| *of == stage);
                match (safe, seen) {
                    (true, _) => Some(ALLOWED.into()),
                    // What asks through a tunnel is not what is denied.
                    (false, true) if flow.row != "Soft-RoCE leaving" => Some(DENIED.into()),
                    _ => None,
                }
            },
        );
    }
    bench.finish();
}
