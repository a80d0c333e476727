//! What compiled rules cost at most: for each interface, direction and stage, how much a new packet meets.

use crate::net::interface::{Direction, InterfaceName, Role};
use crate::nft::ir::{Ruleset, ct_state};
use crate::nft::key::{Datum, Key, Side};
use crate::nft::longest::{Known, Met, leads_to, longest};
use crate::policy::effective::{Effective, Pattern};
use crate::policy::model::Stage;

use super::point::{FORWARD_OUT, Point};

/// What a new packet meets in one stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The stage.
    pub stage: Stage,
    /// Ingress is by the interface on which a packet arrives, egress by the one by which it leaves. Of a forwarded packet one of them is
    /// given and the other one is the worst, and the whole of its way is counted in both.
    pub direction: Direction,
    /// The interfaces that are treated alike: names, and patterns for those that are not there.
    pub interfaces: Vec<String>,
    /// The chain in which what is special to them begins; `None` where there is none.
    pub class: Option<String>,
    /// How much it meets at most.
    pub met: Met,
}

/// An interface that there is, or that there may be.
struct Candidate {
    words: String,
    name: Datum,
    kind: Option<Datum>,
}

/// `ARPHRD_ETHER` (linux/if_arp.h), for every interface that is not loopback: the rules ask for nothing else.
const ETHERNET: u16 = 1;

/// The rows of a compiled policy, in the order of a packet's way; interfaces that are treated alike share one. Loopback has none: its
/// packets meet a rule or two.
pub fn stats(effective: &Effective, ruleset: &Ruleset) -> Vec<Row> {
    let candidates = candidates(effective);
    let mut rows: Vec<Row> = Vec::new();
    for point in Point::ALL {
        let base = if point.chain() == FORWARD_OUT { "forward" } else { point.chain() };
        if !ruleset.chains.contains_key(base) {
            continue;
        }
        let first = rows.len();
        for candidate in &candidates {
            let known = candidate.known(point.side());
            let Some(met) = longest(ruleset, base, &known) else { continue };
            let class = leads_to(ruleset, point.chain(), &known).map(str::to_owned);
            let alike = |row: &&mut Row| row.class == class && row.met == met;
            match rows[first..].iter_mut().find(alike) {
                Some(row) => row.interfaces.push(candidate.words.clone()),
                None => rows.push(Row {
                    stage: point.stage,
                    direction: point.direction,
                    interfaces: vec![candidate.words.clone()],
                    class,
                    met,
                }),
            }
        }
    }
    rows
}

fn candidates(effective: &Effective) -> Vec<Candidate> {
    let there = effective.interfaces.iter().filter(|interface| interface.role != Role::Loopback);
    let there = there.map(|interface| {
        let name = interface.name.as_str();
        // Its kind is not asked for: the dispatch map knows its name.
        Candidate { words: name.to_owned(), name: Datum::name(name), kind: None }
    });
    let expected = effective.expected.iter().map(|expected| match &expected.pattern {
        Pattern::Name(name) => Candidate { words: name.to_string(), name: Datum::name(name.as_str()), kind: None },
        Pattern::Prefix(prefix) => {
            Candidate { words: format!("{prefix}*"), name: unused(effective, prefix), kind: None }
        }
        Pattern::Kind(kind) => {
            Candidate { words: format!("kind {kind}"), name: unused(effective, ""), kind: Some(Datum::name(kind)) }
        }
    });
    let other = Candidate { words: "any other".to_owned(), name: unused(effective, ""), kind: None };
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
