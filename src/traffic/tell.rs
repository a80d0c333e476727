//! What of the packet log the journal is told: the first of what is alike at once, the rest as a number, and of each rule not too much.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::event::Event;
use super::record::{Decider, Service, Verdict};
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;

/// How long what is alike is put together.
pub const ALIKE_MICROS: u64 = 60_000_000;
/// How many lines a rule may have at once, ...
const BURST: u32 = 20;
/// ... and how long it takes until it may have one more.
const REFILL_MICROS: u64 = 1_000_000;
/// How many kinds are told apart; more are only counted.
const MOST_KINDS: usize = 4096;
/// How many rules have a measure of their own.
const MOST_RULES: usize = 1024;

/// What makes packets alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Likeness {
    by: By,
    direction: Direction,
    peer: IpAddr,
    protocol: Option<Protocol>,
    service: Service,
}

/// Whose lines are measured together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct By {
    /// What decided.
    pub decider: Decider,
    /// What became of it.
    pub verdict: Verdict,
}

/// How many lines a rule may have now.
#[derive(Clone, Copy, Debug)]
struct Measure {
    left: u32,
    since: u64,
    /// Packets that were told by no line since the last summary.
    silent: u64,
}

/// What was told, and what has to be told.
#[derive(Clone, Debug, Default)]
pub struct Teller {
    kinds: BTreeMap<Likeness, u64>,
    rules: BTreeMap<By, Measure>,
    /// Packets of rules that have no measure of their own.
    silent_others: u64,
    /// All packets that had no line, since the start.
    silent: u64,
    summary_at: Option<u64>,
}

/// What was left out of a rule's packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// Whose; `None`: of rules that were too many to be told apart.
    pub by: Option<By>,
    /// How many.
    pub packets: u64,
}

impl Teller {
    /// Whether this packet gets a line; times are those of events.
    pub fn tells(&mut self, event: &Event) -> bool {
        let now = event.time;
        let by = By { decider: event.decider.clone(), verdict: event.verdict };
        self.summary_at.get_or_insert(now.saturating_add(ALIKE_MICROS));
        if !self.rules.contains_key(&by) && self.rules.len() >= MOST_RULES {
            self.silent_others = self.silent_others.saturating_add(1);
            self.silent = self.silent.saturating_add(1);
            return false;
        }
        let measure = self.rules.entry(by.clone()).or_insert(Measure { left: BURST, since: now, silent: 0 });
        let gained = now.saturating_sub(measure.since) / REFILL_MICROS;
        if gained > 0 {
            measure.left = BURST.min(measure.left.saturating_add(u32::try_from(gained).unwrap_or(BURST)));
            measure.since = now;
        }
        let likeness = Likeness {
            by,
            direction: event.direction,
            peer: event.peer(),
            protocol: event.protocol,
            service: event.service(),
        };
        let told = self.kinds.get(&likeness).is_some_and(|until| now < *until);
        if told || measure.left == 0 || (self.kinds.len() >= MOST_KINDS && !self.kinds.contains_key(&likeness)) {
            measure.silent = measure.silent.saturating_add(1);
            self.silent = self.silent.saturating_add(1);
            return false;
        }
        measure.left -= 1;
        self.kinds.insert(likeness, now.saturating_add(ALIKE_MICROS));
        true
    }

    /// When there is a summary to be told; `None` as long as nothing was left out.
    pub fn summary_at(&self) -> Option<u64> {
        self.summary_at
    }

    /// What was left out since the last time, the rules with most first, and a new beginning.
    pub fn summary(&mut self, now: u64) -> Vec<LeftOut> {
        self.summary_at = None;
        self.kinds.retain(|_, until| now < *until);
        let mut left_out: Vec<LeftOut> = self
            .rules
            .iter()
            .filter(|(_, measure)| measure.silent > 0)
            .map(|(by, measure)| LeftOut { by: Some(by.clone()), packets: measure.silent })
            .collect();
        left_out.sort_by(|one, other| other.packets.cmp(&one.packets).then_with(|| one.by.cmp(&other.by)));
        let others = std::mem::take(&mut self.silent_others);
        left_out.extend((others > 0).then_some(LeftOut { by: None, packets: others }));
        self.rules.retain(|_, measure| {
            measure.silent = 0;
            measure.left < BURST && now.saturating_sub(measure.since) < u64::from(BURST) * REFILL_MICROS
        });
        left_out
    }

    /// How many packets had no line of their own, since the start.
    pub const fn silent(&self) -> u64 {
        self.silent
    }
}
