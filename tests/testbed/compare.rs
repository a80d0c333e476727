//! The three judges of one packet: the policy (`decide`), the rules (`travel`), and what the kernel did.

use std::collections::BTreeMap;

use nodewall::compile::rule_of;
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::nft::ir::{Chain, Hook, Reject, Ruleset};
use nodewall::policy::effective::{Addresses, Effective};
use nodewall::policy::model::{Stage, TierDefault};
use nodewall::simulate::ruleset::{End, run, travel};
use nodewall::simulate::view::View;
use nodewall::simulate::{
    ConntrackState, Exit, FailsafeStep, Origin, Outcome, Packet, RuleStep, Socket, StageEnd, Step, TierEnd, Trace,
    trace, wire,
};

use super::node::Node;
use super::observe::Observed;
use super::report;
use super::witness::Point;

/// What is not to be seen in the packet itself.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The link by which it was meant to leave, for one that our early stages drop.
    pub exit: Option<&'static str>,
    /// The process that sent it.
    pub socket: Option<Socket>,
}

/// Where the kernel stopped a packet, or did not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// Our rules before routing, or `raw_output`, dropped it.
    DroppedEarly,
    /// Something that is not ours did, between our chains: connection tracking, routing.
    Lost,
    /// `input`, `forward` or `output` dropped it.
    Dropped,
    /// It went through.
    Accepted,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Judged {
    pub fate: Fate,
    /// What the policy says of it.
    pub outcome: Outcome,
    /// The rules that count it, by their comments.
    pub counted: Vec<String>,
    /// How its sender has to be told, if it is.
    pub reject: Option<Reject>,
    /// The packet as the simulator had it.
    pub packet: Packet,
    /// What the policy did with it, in a few words each.
    pub met: Vec<&'static str>,
}

pub fn fate(observed: &Observed) -> Fate {
    if observed.leaves() {
        return match () {
            () if observed.at(Point::AfterOutput) => Fate::Accepted,
            () if !observed.at(Point::SentAfterRaw) => Fate::DroppedEarly,
            () if !observed.at(Point::BeforeOutput) => Fate::Lost,
            () => Fate::Dropped,
        };
    }
    match () {
        () if observed.accepted() => Fate::Accepted,
        () if observed.at_end.is_some() => Fate::Dropped,
        () if observed.at(Point::AfterPrednat) => Fate::Lost,
        () if observed.at(Point::AfterRaw) && observed.state.is_none() => Fate::Lost,
        () => Fate::DroppedEarly,
    }
}

/// Asks all three.
///
/// # Errors
/// Where they differ, with everything that they said.
pub fn judge(
    node: &Node,
    effective: &Effective,
    ruleset: &Ruleset,
    observed: &Observed,
    known: &Known,
) -> Result<Judged, String> {
    let fate = fate(observed);
    let headers = wire::packet(&observed.bytes)
        .map_err(|error| format!("rules saw what is no packet: {error}: {}", hex(&observed.bytes)))?;
    let interface = |index: u32| InterfaceName::new(node.name_of(index)).unwrap();
    let kind = |index: u32| node.kind_of(index).map(str::to_owned);
    let (direction, index) = match observed.input {
        0 => (Direction::Egress, observed.output),
        input => (Direction::Ingress, input),
    };
    let mut packet = headers.packet(direction, interface(index));
    packet.kind = kind(index);
    packet.state = observed.state.map_or(ConntrackState::New, super::witness::State::simulated);
    packet.origin = match (&known.socket, observed.owner) {
        (Some(socket), Some((uid, gid))) => {
            assert_eq!((socket.uid, socket.gid), (uid, gid), "the kernel knows another sender");
            Origin::Process(socket.clone())
        }
        (None, Some((uid, gid))) => Origin::Process(Socket { uid, gid, ..Socket::default() }),
        (_, None) => Origin::Kernel,
    };
    packet.forward = match (&observed.at_end, observed.output) {
        (Some(_), 0) => None,
        (Some(_), output) => Some(Exit { interface: interface(output), kind: kind(output) }),
        (None, _) => known.exit.filter(|_| direction == Direction::Ingress).map(|name| {
            let link = node.links.iter().find(|link| link.name == name).unwrap();
            Exit { interface: InterfaceName::new(name).unwrap(), kind: Some(link.kind.to_owned()) }
        }),
    };
    if let Some(end) = &observed.at_end {
        let after = wire::packet(end).map_err(|error| format!("rules saw what is no packet: {error}"))?;
        let port = |headers: &wire::Headers<'_>| headers.ports().map_or(0, |(_, port)| port);
        if (after.destination, port(&after)) != (headers.destination, port(&headers)) {
            packet.translated = Some((after.destination, port(&after)));
        }
    }
    let mut view = View::new(effective, &packet);
    view.mark = observed.mark;
    // Where the kernel reads what a policy does not.
    let unread = as_rules_read(&mut view, &headers, &observed.bytes);
    let told = trace(effective, &packet);
    let outcome = told.decision.outcome;
    let last = told.steps.iter().rev().find_map(|step| match step {
        Step::Stage(stage, ..) => Some(*stage),
        _ => None,
    });
    let early = matches!(last, Some(Stage::Untracked | Stage::Prednat));
    let broken = |error: nodewall::simulate::ruleset::Broken| error.to_string();
    let whole = travel(ruleset, &view).map_err(broken)?;
    let first = match direction {
        Direction::Ingress => {
            let before = View { output: None, ..view.clone() };
            run(ruleset, Hook::Prerouting, &before).map_err(broken)?
        }
        Direction::Egress => {
            let early = Ruleset { chains: before_tracking(ruleset), sets: ruleset.sets.clone() };
            run(&early, Hook::Output, &view).map_err(broken)?
        }
    };
    let refused = |end: End| end != End::Accepted;
    // What each judge says of the part of the way that the packet went.
    let (by_policy, by_rules, ran) = match (fate, direction) {
        (Fate::DroppedEarly, Direction::Ingress) => {
            let by_policy = early && outcome != Outcome::Accepted;
            (by_policy, refused(first.end), &first)
        }
        (Fate::DroppedEarly, Direction::Egress) => (early && outcome != Outcome::Accepted, refused(whole.end), &whole),
        (Fate::Lost, Direction::Ingress) => {
            let by_policy = !(early && outcome != Outcome::Accepted);
            (by_policy, !refused(first.end), &first)
        }
        // Address translation drops errors with a wrong checksum (`nf_nat_icmpv6_reply_translation`).
        (Fate::Lost, Direction::Egress) => {
            let by_policy = !(early && outcome != Outcome::Accepted);
            (by_policy, !refused(first.end), &first)
        }
        (Fate::Dropped, _) => (outcome != Outcome::Accepted && !early, refused(whole.end), &whole),
        (Fate::Accepted, _) => (outcome == Outcome::Accepted, !refused(whole.end), &whole),
    };
    let described = || {
        format!(
            "packet: {packet:?}\nmark {:#x}, seen at {:?}\nbytes: {}\nat its end: {}\npolicy: {:?}\n{}rules: {ran:?}\nview: {view:?}",
            observed.mark,
            observed.seen,
            hex(&observed.bytes),
            observed.at_end.as_deref().map(hex).unwrap_or_default(),
            told.decision,
            report::trace(&told),
        )
    };
    let by_policy = by_policy || unread;
    if !by_policy || !by_rules {
        let words = |agrees: bool| if agrees { "agrees" } else { "differs" };
        return Err(format!(
            "kernel: {fate:?}; the policy {}, the rules {}\n{}",
            words(by_policy),
            words(by_rules),
            described()
        ));
    }
    if outcome == Outcome::Rejected && fate == Fate::Dropped && !unread && !matches!(whole.end, End::Rejected(_)) {
        return Err(format!("the policy rejects, the rules do not\n{}", described()));
    }
    if ran.logged != observed.logged {
        return Err(format!("the kernel logs {:?}\n{}", observed.logged, described()));
    }
    let reject = match ran.end {
        End::Rejected(reject) if matches!(fate, Fate::Dropped | Fate::DroppedEarly) => Some(reject),
        _ => None,
    };
    let met = met(&told, observed, &packet);
    Ok(Judged { fate, outcome, counted: ran.counted.clone(), reject, packet, met })
}

/// What the policy did with a packet: every part of the language that had a hand in it.
fn met(trace: &Trace<'_>, observed: &Observed, packet: &Packet) -> Vec<&'static str> {
    let mut met: Vec<&'static str> = trace
        .steps
        .iter()
        .flat_map(|step| match step {
            Step::Stage(stage, ..) => vec![stage.name()],
            Step::StageEnd(_, StageEnd::Skipped) => vec!["stage skipped"],
            Step::Essential(..) => vec!["essential"],
            Step::Failsafe(_, FailsafeStep::Accepted) => vec!["failsafe"],
            Step::TierEnd(_, TierEnd::Default(TierDefault::Deny)) => vec!["tier default"],
            Step::InterfaceDefault(..) => vec!["interface default"],
            Step::NodeAudit(_) => vec!["node-wide audit"],
            Step::Rule(_, RuleStep::Mismatch(_)) => Vec::new(),
            Step::Rule(rule, step) => {
                let did = match step {
                    RuleStep::Decided(Outcome::Accepted) => "allow",
                    RuleStep::Decided(Outcome::Dropped) => "deny",
                    RuleStep::Decided(Outcome::Rejected) => "reject",
                    RuleStep::Passed => "pass",
                    RuleStep::Logged => "log",
                    RuleStep::Audited(_) => "audit",
                    RuleStep::Mismatch(_) => "no match",
                };
                let limited = rule.limit.map(|limit| if limit.per_source { "limit per source" } else { "limit" });
                let process = rule.process.as_ref();
                let asks = |is: bool, word| is.then_some(word);
                let more = [
                    limited,
                    asks(process.is_some_and(|process| process.users.is_some()), "users"),
                    asks(process.is_some_and(|process| process.groups.is_some()), "groups"),
                    asks(process.is_some_and(|process| process.units.is_some()), "units"),
                    asks(rule.source_ports.is_some(), "source ports"),
                    asks(matches!(rule.from, Addresses::Named(..)) || matches!(rule.to, Addresses::Named(..)), "set"),
                ];
                more.into_iter().flatten().chain([did]).collect()
            }
            _ => Vec::new(),
        })
        .collect();
    met.extend(packet.translated.map(|_| "another destination by DNAT"));
    met.extend((observed.mark != 0).then_some("marked by others"));
    met.extend((!observed.logged.is_empty()).then_some("logged"));
    met.sort_unstable();
    met.dedup();
    met
}

/// The chains without the base chains at or after connection tracking.
fn before_tracking(ruleset: &Ruleset) -> BTreeMap<String, Chain> {
    let early = |chain: &Chain| chain.base.is_none_or(|base| base.priority < -200);
    ruleset.chains.iter().filter(|(_, chain)| early(chain)).map(|(name, chain)| (name.clone(), chain.clone())).collect()
}

/// Gives the view the transport header as the kernel's expressions read it, to the byte. Whether that is more than a policy does:
/// the one field that is there of a header that breaks off in its second; and in fragments after the first, which come to rules only
/// inside of other fragments of IPv6, what the kernel takes for a header. It remembers no place for one (`ipv6_find_hdr`), and that
/// it should not look is only known to `nft_payload_eval`, not to `nft_payload_fast_eval` (net/netfilter/nf_tables_core.c), which
/// reads short fields: it reads them from the beginning of the packet.
fn as_rules_read(view: &mut View, headers: &wire::Headers<'_>, bytes: &[u8]) -> bool {
    view.words = headers.words();
    if headers.fragment.is_some_and(|fragment| !fragment.is_first()) {
        view.words = Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])));
        view.icmp = Some((bytes[0], bytes[1]));
        return true;
    }
    view.broken_off = headers.transport.filter(|there| there.len() < 4).unwrap_or_default().to_vec();
    headers.words().is_none() && headers.icmp().is_none() && !view.broken_off.is_empty()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How often each comment counts.
pub fn sums(counted: impl IntoIterator<Item = String>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for comment in counted {
        *sums.entry(comment).or_insert(0) += 1;
    }
    sums
}

/// Comments whose sums differ: what the rules should have counted and what they did.
pub fn differences(expected: &BTreeMap<String, u64>, there: &BTreeMap<String, u64>) -> Vec<String> {
    let get = |sums: &BTreeMap<String, u64>, comment: &String| sums.get(comment).copied().unwrap_or(0);
    let comments: std::collections::BTreeSet<&String> = expected.keys().chain(there.keys()).collect();
    comments
        .into_iter()
        .filter(|comment| get(expected, comment) != get(there, comment))
        .map(|comment| {
            let words = if rule_of(comment).is_some() { "rule" } else { "" };
            format!("{words} {comment:?}: counted {} instead of {}", get(there, comment), get(expected, comment))
        })
        .collect()
}
