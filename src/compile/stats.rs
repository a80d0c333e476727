//! What compiled rules cost at most: for each interface, direction and stage, how much a new packet meets.

use crate::net::interface::{Direction, InterfaceName, Role};
use crate::nft::ir::{Ruleset, ct_state};
use crate::nft::key::{Datum, Key, Side};
use crate::nft::longest::{Known, Met, leads_to, longest};
use crate::policy::effective::{Effective, Pattern};
use crate::policy::model::Stage;

use super::early;
use super::point::{FORWARD_OUT, Point};

/// Where packets are held against rules, in the kernel's order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// The deny sets of early roles in an interface's ingress hook.
    EarlyHook,
    /// The same once more before connection tracking.
    Early,
    /// A stage.
    Stage(Stage),
}

impl Place {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EarlyHook => "early-hook",
            Self::Early => "early",
            Self::Stage(stage) => stage.name(),
        }
    }
}

/// What a new packet meets in one place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The place.
    pub place: Place,
    /// Ingress is by the interface on which a packet arrives, egress by the one by which it leaves. Of a forwarded packet one of them is
    /// given and the other one is the worst, and the whole of its way is counted in both.
    pub direction: Direction,
    /// Whether these are interfaces that are there. The rules know their names; others are recognised by one pattern after the other,
    /// which takes longer.
    pub there: bool,
    /// The interfaces that are treated alike: names, or patterns for those that are not there.
    pub interfaces: Vec<String>,
    /// The chain in which what is special to them begins; `None` where there is none.
    pub class: Option<String>,
    /// How much it meets at most, on whichever of them.
    pub met: Met,
}

/// An interface that there is, or that there may be.
struct Candidate {
    there: bool,
    words: String,
    name: Datum,
    kind: Option<Datum>,
}

/// `ARPHRD_ETHER` (linux/if_arp.h), for every interface that is not loopback: the rules ask for nothing else.
const ETHERNET: u16 = 1;

/// The rows of a compiled policy, in the order of a packet's way; interfaces that are treated alike share one. Loopback has none: its
/// packets meet a rule or two.
pub fn stats(effective: &Effective, ruleset: &Ruleset) -> Vec<Row> {
    let early = [Place::EarlyHook, Place::Early].map(|place| (place, Direction::Ingress));
    let stages = Point::ALL.map(|point| (Place::Stage(point.stage), point.direction));
    let candidates = candidates(effective);
    let mut rows: Vec<Row> = Vec::new();
    for (place, direction) in early.into_iter().chain(stages) {
        let first = rows.len();
        for candidate in &candidates {
            let (base, dispatch) = chains(place, direction, &candidate.words);
            let side = match direction {
                Direction::Ingress => Side::Source,
                Direction::Egress => Side::Destination,
            };
            let known = candidate.known(side);
            // A place where nothing of ours is has no chain.
            let Some(met) = longest(ruleset, &base, &known) else { continue };
            // What no policy of the ingress side governs goes on by the interface by which it leaves.
            let class = leads_to(ruleset, &dispatch, &known).filter(|chain| *chain != FORWARD_OUT);
            let class = class.map(str::to_owned);
            let alike = |row: &&mut Row| row.class == class && row.there == candidate.there;
            match rows[first..].iter_mut().find(alike) {
                Some(row) => {
                    row.interfaces.push(candidate.words.clone());
                    row.met = row.met.or(met);
                }
                None => rows.push(Row {
                    place,
                    direction,
                    there: candidate.there,
                    interfaces: vec![candidate.words.clone()],
                    class,
                    met,
                }),
            }
        }
    }
    rows
}

/// The chain by which the kernel comes there, and the one that asks which interface it is.
fn chains(place: Place, direction: Direction, interface: &str) -> (String, String) {
    match place {
        Place::EarlyHook => (early::hook_chain(interface), early::hook_chain(interface)),
        Place::Early => (early::CHAIN.to_owned(), early::CHAIN.to_owned()),
        Place::Stage(stage) => {
            let dispatch = Point { stage, direction }.chain();
            let base =
                if dispatch == FORWARD_OUT { Point { stage, direction: Direction::Ingress }.chain() } else { dispatch };
            (base.to_owned(), dispatch.to_owned())
        }
    }
}

fn candidates(effective: &Effective) -> Vec<Candidate> {
    let there = effective.interfaces.iter().filter(|interface| interface.role != Role::Loopback);
    let there = there.map(|interface| {
        let name = interface.name.as_str();
        // Its kind is not asked for: the dispatch map knows its name.
        Candidate { there: true, words: name.to_owned(), name: Datum::name(name), kind: None }
    });
    let later = |words, name, kind| Candidate { there: false, words, name, kind };
    let expected = effective.expected.iter().filter_map(|expected| match &expected.pattern {
        Pattern::Name(name) if effective.interfaces.iter().any(|interface| interface.name == *name) => None,
        Pattern::Name(name) => Some(later(name.to_string(), Datum::name(name.as_str()), None)),
        Pattern::Prefix(prefix) => Some(later(format!("{prefix}*"), unused(effective, prefix), None)),
        Pattern::Kind(kind) => Some(later(format!("kind {kind}"), unused(effective, ""), Some(Datum::name(kind)))),
    });
    let other = later("any other".to_owned(), unused(effective, ""), None);
    there.chain(expected).chain([other]).collect()
}

/// A name that begins like this and that no interface and no longer pattern has.
fn unused(effective: &Effective, prefix: &str) -> Datum {
    let taken = |name: &str| {
        let names = effective.interfaces.iter().any(|interface| interface.name.as_str() == name);
        names
            || effective.expected.iter().any(|expected| match &expected.pattern {
                Pattern::Name(known) => known.as_str() == name,
                Pattern::Prefix(other) => other.len() > prefix.len() && name.starts_with(other.as_str()),
                Pattern::Kind(_) => false,
            })
    };
    let free = ('!'..='~')
        .map(|last| format!("{prefix}{last}"))
        .find(|name| InterfaceName::new(name).is_some() && !taken(name));
    Datum::name(&free.unwrap_or_else(|| prefix.to_owned()))
}

impl Candidate {
    fn known(&self, side: Side) -> Known {
        [
            (Key::InterfaceName(side), Some(self.name)),
            (Key::InterfaceKind(side), self.kind),
            (Key::InterfaceType(side), Some(ETHERNET.into())),
            (Key::CtState, Some(ct_state::NEW.into())),
        ]
        .into()
    }
}
