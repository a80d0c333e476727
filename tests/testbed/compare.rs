//! The three judges of one packet: the policy (`decide`), the rules (`travel`), and what the kernel did.

use std::collections::BTreeMap;

use nodewall::compile::rule_of;
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::nft::ir::{BaseChain, Hook, Reject, Ruleset};
use nodewall::policy::effective::{Addresses, Effective};
use nodewall::policy::model::{Mode, Stage, TierDefault};
use nodewall::simulate::ruleset::{End, run, travel};
use nodewall::simulate::view::View;
use nodewall::simulate::{
    ConntrackState, Exit, FailsafeStep, Origin, Outcome, Packet, RuleStep, Socket, StageEnd, Step, TierEnd, Trace,
    trace, wire,
};

use nodewall::simulate::wire::Headers;

use super::node::Node;
use super::observe::{Entry, Observed};
use super::report;
use super::witness::{Point, State};

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
    /// Something that is not ours did, between our chains: connection tracking, address translation, routing.
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

/// How far a packet got.
pub fn fate(observed: &Observed) -> Fate {
    let (early, tracked, before) = match observed.hook {
        Entry::Device if observed.at(Point::AfterIngress) => return Fate::Accepted,
        Entry::Device => return Fate::DroppedEarly,
        Entry::Network => (Point::AfterRaw, Point::AfterPrednat, observed.at_end.is_some()),
        Entry::Host => (Point::SentAfterRaw, Point::BeforeOutput, observed.at(Point::BeforeOutput)),
    };
    match () {
        () if observed.accepted() => Fate::Accepted,
        () if before => Fate::Dropped,
        () if observed.at(tracked) => Fate::Lost,
        () if observed.at(early) && (observed.state.is_none() || observed.hook == Entry::Host) => Fate::Lost,
        () => Fate::DroppedEarly,
    }
}

/// The two judges in the program, for one policy on one node.
pub struct Judge<'a> {
    node: &'a Node,
    effective: &'a Effective,
    ruleset: &'a Ruleset,
    /// The rules from reassembly on: what happens before that concerns fragments by themselves.
    reassembled: Ruleset,
    /// The rules of those before connection tracking.
    untracked: Ruleset,
}

impl<'a> Judge<'a> {
    pub fn new(node: &'a Node, effective: &'a Effective, ruleset: &'a Ruleset) -> Self {
        let only = |wanted: &dyn Fn(&BaseChain) -> bool| {
            let chains = ruleset.chains.iter().filter(|(_, chain)| chain.base.as_ref().is_none_or(wanted));
            Ruleset {
                chains: chains.map(|(name, chain)| (name.clone(), chain.clone())).collect(),
                sets: ruleset.sets.clone(),
            }
        };
        let reassembled = only(&|base| base.hook != Hook::Ingress);
        // Connection tracking is at -200.
        let untracked = only(&|base| base.hook != Hook::Ingress && base.priority < -200);
        Self { node, effective, ruleset, reassembled, untracked }
    }

    /// Asks both, and compares with what the kernel did.
    ///
    /// # Errors
    /// Where they differ, with everything that they said.
    pub fn judge(&self, observed: &Observed, known: &Known) -> Result<Judged, String> {
        let fate = fate(observed);
        let headers = read(&observed.bytes)?;
        let packet = self.packet(observed, &headers, known)?;
        let mut view = View::new(self.effective, &packet);
        view.mark = observed.mark;
        // Where the kernel reads what a policy does not.
        let unread = match observed.hook {
            Entry::Device => as_read_on_device(&mut view, &packet, &observed.bytes)?,
            Entry::Network | Entry::Host => as_rules_read(&mut view, &headers, &observed.bytes),
        };
        let told = trace(self.effective, &packet);
        let outcome = told.decision.outcome;
        let at = decided_at(&told);
        let run = |rules, hook, view: &View| run(rules, hook, view).map_err(|broken| broken.to_string());
        // What each judge says of the part of the way that the packet went: whether it agrees with the kernel, and what the rules did.
        let (by_policy, ran) = match (fate, observed.hook) {
            (_, Entry::Device) => {
                let ran = run(self.ruleset, Hook::Ingress, &View { output: None, ..view.clone() })?;
                // The chain before connection tracking gets what goes by here.
                (fate == Fate::Accepted || at == At::Arrival, ran)
            }
            (Fate::DroppedEarly | Fate::Lost, Entry::Network) => {
                let ran = run(&self.reassembled, Hook::Prerouting, &View { output: None, ..view.clone() })?;
                ((fate == Fate::DroppedEarly) == (at != At::End), ran)
            }
            (Fate::DroppedEarly | Fate::Lost, Entry::Host) => {
                let ran = run(&self.untracked, Hook::Output, &view)?;
                ((fate == Fate::DroppedEarly) == (at != At::End), ran)
            }
            (Fate::Dropped | Fate::Accepted, _) => {
                let ran = travel(&self.reassembled, &view).map_err(|broken| broken.to_string())?;
                ((fate == Fate::Accepted) == (outcome == Outcome::Accepted) && at == At::End, ran)
            }
        };
        let by_rules = (ran.end == End::Accepted) == matches!(fate, Fate::Accepted | Fate::Lost);
        let described = || {
            format!(
                "packet: {packet:?}\nmark {:#x}, seen at {:?}\nbytes: {}\nat its end: {}\npolicy: {:?}\n{}rules: \
                 {ran:?}\nview: {view:?}",
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
            let (policy, rules) = (words(by_policy), words(by_rules));
            return Err(format!("kernel: {fate:?}; the policy {policy}, the rules {rules}\n{}", described()));
        }
        let stopped = matches!(fate, Fate::Dropped | Fate::DroppedEarly);
        let reject = match ran.end {
            End::Rejected(reject) if stopped => Some(reject),
            _ => None,
        };
        if stopped
            && !unread
            && self.effective.mode == Mode::Enforce
            && (outcome == Outcome::Rejected) != reject.is_some()
        {
            return Err(format!("one rejects, the other drops\n{}", described()));
        }
        if ran.logged != observed.logged {
            return Err(format!("the kernel logs {:?}\n{}", observed.logged, described()));
        }
        let met = met(&told, observed, &packet);
        Ok(Judged { fate, outcome, counted: ran.counted, reject, packet, met })
    }

    /// What is said of a first fragment as it arrives, if our rules drop it, holds for the whole packet. Later ones do not say whether
    /// they belong to what essentials or failsafe let in (nodewall.toml(5), `early`).
    ///
    /// # Errors
    /// The policy would have let it in.
    pub fn arrives(&self, observed: &Observed, whole: &[u8]) -> Result<(), String> {
        if !read(&observed.bytes)?.fragment.is_some_and(|fragment| fragment.is_first()) {
            return Ok(());
        }
        let packet = self.packet(observed, &read(whole)?, &Known::default())?;
        let told = trace(self.effective, &packet);
        if decided_at(&told) == At::Arrival {
            return Ok(());
        }
        Err(format!("a fragment is dropped as it arrives, and the whole is not\n{packet:?}\n{}", report::trace(&told)))
    }

    /// The packet as the simulator has it.
    fn packet(&self, observed: &Observed, headers: &Headers<'_>, known: &Known) -> Result<Packet, String> {
        let node = self.node;
        let interface = |index: u32| InterfaceName::new(node.name_of(index)).unwrap();
        let kind = |index: u32| node.kind_of(index).map(str::to_owned);
        let (direction, index) = match observed.hook {
            Entry::Host => (Direction::Egress, observed.output),
            Entry::Device | Entry::Network => (Direction::Ingress, observed.input),
        };
        let mut packet = headers.packet(direction, interface(index));
        packet.kind = kind(index);
        packet.state = observed.state.map_or(ConntrackState::New, State::simulated);
        packet.origin = match (&known.socket, observed.owner) {
            (Some(socket), Some((uid, gid))) => {
                assert_eq!((socket.uid, socket.gid), (uid, gid), "the kernel knows another sender");
                Origin::Process(socket.clone())
            }
            (None, Some((uid, gid))) => Origin::Process(Socket { uid, gid, ..Socket::default() }),
            (_, None) => Origin::Kernel,
        };
        if direction == Direction::Ingress {
            // The peer is in another network namespace, and its sockets are none for this one's rules.
            packet.origin = Origin::Kernel;
        }
        packet.forward = match (direction, &observed.at_end, observed.output) {
            (Direction::Egress, ..) | (_, Some(_), 0) => None,
            (_, Some(_), output) => Some(Exit { interface: interface(output), kind: kind(output) }),
            (_, None, _) => known.exit.map(|name| {
                let link = node.links.iter().find(|link| link.name == name).unwrap();
                Exit { interface: InterfaceName::new(name).unwrap(), kind: Some(link.kind.to_owned()) }
            }),
        };
        if let Some(end) = &observed.at_end {
            let after = read(end)?;
            let goes_to = |headers: &Headers<'_>| (headers.destination, headers.ports().map_or(0, |(_, port)| port));
            packet.translated = Some(goes_to(&after)).filter(|after| *after != goes_to(headers));
        }
        Ok(packet)
    }
}

fn read(bytes: &[u8]) -> Result<Headers<'_>, String> {
    wire::packet(bytes).map_err(|error| format!("rules saw what is no packet: {error}: {}", hex(bytes)))
}

/// Where the policy drops a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// As it arrives.
    Arrival,
    /// In the stages untracked and prednat.
    Before,
    /// In the stages host and forward, or nowhere.
    End,
}

fn decided_at(told: &Trace<'_>) -> At {
    if told.decision.outcome == Outcome::Accepted {
        return At::End;
    }
    let last = told.steps.iter().rev().find_map(|step| match step {
        Step::Stage(stage, ..) => Some(*stage),
        _ => None,
    });
    match last {
        None => At::Arrival,
        Some(Stage::Untracked | Stage::Prednat) => At::Before,
        Some(Stage::Host | Stage::Forward) => At::End,
    }
}

/// What the policy did with a packet: every part of the language that had a hand in it.
fn met(trace: &Trace<'_>, observed: &Observed, packet: &Packet) -> Vec<&'static str> {
    let mut met: Vec<&'static str> = trace
        .steps
        .iter()
        .flat_map(|step| match step {
            Step::Stage(stage, ..) => vec![stage.name()],
            Step::StageEnd(_, StageEnd::Skipped) => vec!["stage skipped"],
            Step::Early => vec!["early"],
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

/// Gives the view the transport header as the kernel's expressions read it, to the byte. Whether that is more than a policy does:
/// the one field that is there of a header that breaks off in its second; and of fragments after the first, which come to rules as
/// they arrive, and inside of other fragments of IPv6, whatever is in the place of a header. That there is none is only known to
/// `nft_payload_eval`, not to `nft_payload_fast_eval` (net/netfilter/nf_tables_core.c), which reads short fields. In IPv6 nobody knows
/// where the place is (`ipv6_find_hdr`), and it is the beginning of the packet.
fn as_rules_read(view: &mut View, headers: &Headers<'_>, bytes: &[u8]) -> bool {
    view.words = headers.words();
    if headers.fragment.is_some_and(|fragment| !fragment.is_first()) {
        let at = if headers.source.is_ipv4() { usize::from(bytes[0] & 0xf) * 4 } else { 0 };
        view.words = None;
        view.icmp = None;
        view.broken_off = bytes[at..].iter().take(4).copied().collect();
        if let [a, b, c, d] = view.broken_off[..] {
            view.words = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
        }
        return true;
    }
    view.broken_off = headers.transport.filter(|there| there.len() < 4).unwrap_or_default().to_vec();
    headers.words().is_none() && headers.icmp().is_none() && !view.broken_off.is_empty()
}

/// The same on the device, where nobody has cut off what the link added behind the packet: rules read on there. The chain before
/// connection tracking gets the packet without.
fn as_read_on_device(view: &mut View, packet: &Packet, bytes: &[u8]) -> Result<bool, String> {
    let mut stretched = bytes.to_vec();
    let (field, length) = if packet.source.is_ipv4() { (2, bytes.len()) } else { (4, bytes.len() - 40) };
    stretched[field..field + 2].copy_from_slice(&(length as u16).to_be_bytes());
    let headers = read(&stretched)?;
    let unread = as_rules_read(view, &headers, &stretched);
    view.protocol = headers.protocol;
    if !unread {
        view.icmp = headers.icmp();
    }
    let same = (packet.protocol, packet.ports, packet.icmp) == (headers.protocol, headers.ports(), headers.icmp());
    Ok(unread || !same)
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
