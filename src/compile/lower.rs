//! Lines in order -> the rules of a chain, with long runs turned into one lookup.
//!
//! Two shapes grow with a policy: rules that differ in their destination ports, and rules that differ in their peers. A run of
//! the first becomes a verdict map over (protocol, port) that jumps to a chain with just the lines that can match that port,
//! in their order and without the port: the lines evaluated for the one value, so nothing about their meaning changes. A run of
//! the second becomes a verdict map over the address whose overlaps are settled here, first line first.
//!
//! Lines that ask for more than that, or have a limit, are told apart by whatever they all ask for (`branch`): a map over that key
//! leads to the lines of each value, which are lowered in turn.

use std::collections::{BTreeMap, BTreeSet};

use super::branch::{Dimension, Map};
use super::emit::{conditions, reject_parts};
use super::flat::{Flat, FlatL4, Peer, PeerRanges};
use super::{depth, names, shards};
use crate::net::addr::Family;
use crate::net::protocol::{PortSet, Protocol};
use crate::net::range::RangeSet;
use crate::nft::ir::{Chain, Dynamic, ElementKey, Elements, Limit, Rule, Ruleset, Set, SetRef, Statement, Verdict};
use crate::nft::key::{Datum, Key, Side};
use crate::policy::model;
use crate::policy::settings::LogSettings;

/// From how many lines on a lookup is used: a lookup in a small hash costs about as much as this many linear rules
/// (`nf_tables.md` section 4: 100 ns against 17 ns each).
const FEWEST_LINES_FOR_A_LOOKUP: usize = 6;
/// The same for lines that look at named sets: up to here each keeps its set, so that a change of what is in it is a change of its
/// elements and of nothing else. Such a lookup takes 0.1 to 0.5 µs.
const FEWEST_SETS_FOR_A_LOOKUP: usize = 12;
/// Ranges of up to this many ports become single keys of the map; wider ones stay rules of their own behind it, since range
/// concatenations are dear (pipapo, 1 µs a lookup).
const WIDEST_PORT_RANGE_IN_A_MAP: u32 = 16;
/// Bounds on one port map: keys, and (key, line) pairs.
const MOST_PORT_KEYS: usize = 65_536;
/// A map may always have so many pairs, and beyond that this many times as many as there are lines.
const MOST_PORT_PAIRS: usize = 65_536;
const MOST_PORT_PAIRS_OF_A_LINE: usize = 4;
/// A set with more ranges than this stays a set of its own, so that a change of its contents stays a change of its elements.
pub(super) const MOST_RANGES_OF_A_PEER_IN_A_MAP: usize = 16_384;
/// How many ranges all address maps of a ruleset may have together: 100,000 take the kernel about 300 ms to load. What does not fit
/// is looked up set by set.
const MOST_RANGES_IN_MAPS: usize = 500_000;
/// How many ranges one interval map has at most: a change goes through all of it (`nf_tables.md` section 2: 0.3 ms at 1,000).
const MOST_RANGES_OF_A_SHARD: usize = 512;
/// How often lines that were told apart are told apart again. Each time takes up to two levels of the kernel's sixteen
/// (`NFT_JUMP_STACK_SIZE`), of which each tier takes one as well.
const MOST_BRANCHES: usize = 2;
/// In how many lists of one map a line stands at most, on average: the first time, and where lines are told apart again. What is all over
/// each other is looked at in smaller runs.
const MOST_PLACES_OF_A_LINE: usize = 16;
const MOST_PLACES_OF_A_LINE_AGAIN: usize = 4;

/// The most sources that have a bucket of one rule: about 16 MiB of the kernel's memory. A source beyond them is over its limit.
const MOST_BUCKETS: u32 = 65_536;
/// The most values of the key in which packets are alike ([`Point::alike`](super::point::Point::alike)).
const MOST_ALIKE: u32 = 8;
/// The longest time that a bucket is kept, in seconds: a day.
const LONGEST_KEPT_BUCKET: u32 = 86_400;

/// One flat rule and what it does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Line {
    /// When.
    pub(super) flat: Flat,
    /// What.
    pub(super) effect: Effect,
    /// The kernel comment: rule and place.
    pub(super) comment: String,
    /// Log with this prefix as well.
    pub(super) log: Option<String>,
    /// The rule in the words of a chain name: "kubelet-2".
    pub(super) slug: String,
    /// How often it matches at most.
    pub(super) limit: Option<Limited>,
}

/// The limit of a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Limited {
    limit: Limit,
    /// Each source address has a bucket of its own.
    per_source: bool,
}

impl Line {
    /// Whether no line after it is reached.
    pub(super) fn ends(&self) -> bool {
        self.effect != Effect::Continue && self.limit.is_none() && self.flat.is_always()
    }
}

impl Limited {
    /// What the policy says.
    pub(super) const fn of(limit: &model::Limit) -> Self {
        let model::Limit { rate, seconds, burst, per_source } = *limit;
        Self { limit: Limit { rate, seconds, burst }, per_source }
    }

    /// In the words of a name: "10-m-20".
    fn word(self) -> String {
        let Limit { rate, seconds, burst } = self.limit;
        let unit = match seconds {
            1 => "s",
            60 => "m",
            3600 => "h",
            _ => "d",
        };
        format!("{rate}-{unit}-{burst}")
    }

    /// How long a bucket in a set is kept after its last packet: until it is full again, and a minute at least.
    fn kept(self) -> u32 {
        let Limit { rate, seconds, burst } = self.limit;
        let full = u64::from(burst).saturating_mul(u64::from(seconds)) / u64::from(rate.max(1)) + 1;
        u32::try_from(full).unwrap_or(u32::MAX).clamp(60, LONGEST_KEPT_BUCKET)
    }
}

/// What a line does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Effect {
    /// Ends the evaluation of this list.
    Verdict(Verdict),
    /// Drops and tells the sender.
    Reject,
    /// Only counts and logs.
    Continue,
}

/// What a ruleset has only so much of.
pub(super) struct Room {
    /// How many ranges may still go into maps.
    ranges: usize,
    /// How often lines that were told apart are told apart again, the first time included.
    branches: usize,
    /// Whether any were.
    branched: bool,
    /// The named sets of which something is in them.
    mapped: BTreeSet<String>,
}

impl Room {
    /// For a ruleset whose lines are told apart up to so many times.
    const fn new(branches: usize) -> Self {
        Self { ranges: MOST_RANGES_IN_MAPS, branches, branched: false, mapped: BTreeSet::new() }
    }

    /// The first of these rulesets that the kernel does not find too deep; where telling lines apart makes it so, packets meet more rules
    /// instead. And the named sets of which something is in its maps.
    pub(super) fn fitting(mut compile: impl FnMut(&mut Self) -> Ruleset) -> (Ruleset, BTreeSet<String>) {
        for branches in (1..=MOST_BRANCHES).rev() {
            let mut room = Self::new(branches);
            let ruleset = compile(&mut room);
            if !room.branched || depth::fits(&ruleset) {
                return (ruleset, room.mapped);
            }
        }
        let mut room = Self::new(0);
        let ruleset = compile(&mut room);
        (ruleset, room.mapped)
    }
}

/// What lowering writes into.
pub(super) struct Target<'a> {
    /// Gets sets, maps and sub-chains.
    pub(super) ruleset: &'a mut Ruleset,
    /// How packets are logged.
    pub(super) log: LogSettings,
    /// What names of chains begin with that rules of one point share.
    pub(super) prefix: &'static str,
    /// A key of which all packets here have the same value.
    pub(super) alike: Key,
    /// How much of what is bounded may still be used.
    pub(super) room: &'a mut Room,
}

impl Target<'_> {
    /// The rules of the chain `chain` that evaluate `lines` in order. Chains and maps that this takes are named after it.
    pub(super) fn lower(&mut self, chain: &str, lines: &[Line]) -> Vec<Rule> {
        self.list(chain, lines, self.room.branches)
    }

    /// The same, where lines are told apart so many times yet.
    fn list(&mut self, chain: &str, lines: &[Line], branches: usize) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut maps = 0;
        let mut rest = until_unconditional(lines);
        // What is in no port map, from where the last one ended.
        let mut others: &[Line] = rest;
        let mut waiting = 0;
        while !rest.is_empty() {
            let length = rest.iter().take_while(|line| in_port_run(line)).count();
            let (run, after) = rest.split_at(length);
            let keyed: Vec<&Line> = run.iter().filter(|line| matches!(line.flat.l4, FlatL4::Ports(_))).collect();
            // Where some of the lines with ports have limits, one map over the ports alone does for all.
            let asking = match branches {
                0 => 0,
                _ => rest.iter().take_while(|line| matches!(line.flat.l4, FlatL4::Ports(_))).count(),
            };
            let mixed = asking > 2 * length && asking >= FEWEST_LINES_FOR_A_LOOKUP;
            if !mixed
                && let Some(by_key) =
                    (keyed.len() >= FEWEST_LINES_FOR_A_LOOKUP).then(|| lines_by_port(&keyed)).flatten()
            {
                rules.extend(self.by_address(&suffixed(chain, maps), &others[..waiting], branches));
                maps += 1;
                rules.push(self.port_map(chain, maps, &keyed, &by_key, branches));
                let behind: Vec<Line> = run.iter().filter_map(behind_the_map).collect();
                rules.extend(self.by_address(chain, &behind, branches));
                (rest, others, waiting) = (after, after, 0);
                continue;
            }
            // What ended the run goes along, so that a run of peers is not cut where a run of ports would be.
            let next = rest[length..].iter().take_while(|line| !in_port_run(line)).count();
            let along = if mixed { asking } else { length + next };
            (rest, waiting) = (&rest[along..], waiting + along);
        }
        rules.extend(self.by_address(&suffixed(chain, maps), &others[..waiting], branches));
        rules
    }

    /// The lines one by one, for chains that must not leave by a detour: a `return` has to return from the chain itself.
    pub(super) fn linear(&mut self, lines: &[Line]) -> Vec<Rule> {
        lines.iter().flat_map(|line| self.line(line, Within::TheRule)).collect()
    }

    /// The map over (protocol, port), its chains, and the rule that looks up.
    fn port_map(&mut self, chain: &str, number: usize, keyed: &[&Line], by_key: &PortKeys, branches: usize) -> Rule {
        let mut chains: BTreeMap<Vec<Line>, String> = BTreeMap::new();
        let mut elements = BTreeMap::new();
        for ((protocol, port), indices) in by_key {
            let lines: Vec<Line> = indices.iter().map(|index| at_port(keyed[*index], *protocol)).collect();
            let lines = until_unconditional(&lines).to_vec();
            let name = match chains.get(&lines) {
                Some(name) => name.clone(),
                None => {
                    let name = self.free_chain(format!("{chain}.{protocol}-{port}"));
                    let rules = self.by_address(&name, &lines, branches);
                    self.ruleset.chains.insert(name.clone(), Chain { base: None, rules });
                    chains.insert(lines, name.clone());
                    name
                }
            };
            let key = ElementKey::of([Datum::from(protocol.0), Datum::from(*port)]);
            elements.insert(key, Some(Verdict::Jump(name)));
        }
        let keys = vec![Key::L4Proto, Key::Port(None, Side::Destination)];
        let map = self.add_map(suffixed(&format!("{chain}.ports"), number - 1), &keys, Elements::Keys(elements.into()));
        Rule { statements: vec![Statement::Vmap { keys, map: SetRef::Named(map) }], comment: None }
    }

    /// Lines in order; runs that look at nothing but one side's address become maps, and other runs are told apart by a key.
    fn by_address(&mut self, chain: &str, lines: &[Line], branches: usize) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut rest = lines;
        while let Some(first) = rest.first() {
            let side = only_peer(first).map(|(side, _)| side);
            let alike = |line: &&Line| side.is_some() && only_peer(line).map(|(side, _)| side) == side;
            let run = rest.iter().take_while(alike).count();
            // Where others come between that ask for more than the address, one map does for all.
            let asking = side
                .map_or(0, |side| rest.iter().take_while(|line| Dimension::Address(side).is_asked(&line.flat)).count());
            if (run < FEWEST_LINES_FOR_A_LOOKUP || asking > 2 * run)
                && let Some((taken, branched)) = self.branch(chain, rest, branches)
            {
                rules.extend(branched);
                rest = &rest[taken..];
                continue;
            }
            let Some(side) = side else {
                rules.extend(self.line(first, Within::AChain));
                rest = &rest[1..];
                continue;
            };
            let (run, after) = rest.split_at(run);
            // The families are disjoint, so each may be settled by itself.
            for family in [Family::V4, Family::V6] {
                let of_family: Vec<&Line> = run.iter().filter(|line| line.flat.family == Some(family)).collect();
                if let Some(ranges) = worth_a_map(&of_family).filter(|ranges| *ranges <= self.room.ranges) {
                    self.room.ranges -= ranges;
                    let named = of_family.iter().filter_map(|line| only_peer(line)?.1.set.clone());
                    self.room.mapped.extend(named);
                    rules.push(self.address_map(chain, side, family, &of_family));
                } else {
                    rules.extend(of_family.into_iter().flat_map(|line| self.line(line, Within::AChain)));
                }
            }
            rest = after;
        }
        rules
    }

    /// The map over one side's address, a chain per rule that counts and decides, and the rule that looks up.
    fn address_map(&mut self, chain: &str, side: Side, family: Family, lines: &[&Line]) -> Rule {
        let mut chains: BTreeMap<Identity, String> = BTreeMap::new();
        let mut verdicts = Vec::new();
        let mut ranges = Vec::new();
        for line in lines {
            let Some((_, peer)) = only_peer(line) else { continue };
            let bare =
                Line { flat: Flat { family: None, from: None, to: None, ..line.flat.clone() }, ..(*line).clone() };
            let identity = (bare.effect.clone(), bare.comment.clone(), bare.log.clone());
            let name = match chains.get(&identity) {
                Some(name) => name.clone(),
                None => {
                    let wanted = format!("{chain}.{}", line.slug);
                    let rules = self.line(&bare, Within::AChain);
                    let same = self.ruleset.chains.get(&wanted).is_some_and(|there| there.rules == rules);
                    let name = if same { wanted } else { self.free_chain(wanted) };
                    self.ruleset.chains.insert(name.clone(), Chain { base: None, rules });
                    chains.insert(identity, name.clone());
                    name
                }
            };
            let index = verdicts.len();
            verdicts.push(Verdict::Goto(name));
            match &peer.addresses {
                PeerRanges::V4(set) => {
                    ranges
                        .extend(set.ranges().iter().map(|(start, end)| (u128::from(*start), u128::from(*end), index)));
                }
                PeerRanges::V6(set) => ranges.extend(set.ranges().iter().map(|(start, end)| (*start, *end, index))),
            }
        }
        let what = match side {
            Side::Source => "sources",
            Side::Destination => "destinations",
        };
        let (suffix, bits) = match family {
            Family::V4 => ("_4", 32),
            Family::V6 => ("_6", 128),
        };
        let segments = shards::first_wins(ranges);
        self.map_of(&format!("{chain}.{what}{suffix}"), Key::IpAddr(family, side), bits, &segments, &verdicts)
    }

    /// The rule that looks a key up in a map of segments, each with the index of its verdict. A large map is cut into smaller ones behind
    /// one that finds them, so that a change of one value costs the kernel little: it goes through all of an interval map at every change.
    fn map_of(&mut self, name: &str, key: Key, bits: u32, segments: &[shards::Segment], verdicts: &[Verdict]) -> Rule {
        let keys = vec![key];
        let size = key.data_type().size();
        let element =
            |start: u128, end: u128| ElementKey(vec![(Datum::from_number(start, size), Datum::from_number(end, size))]);
        let mut blocks = shards::cut(segments, bits, MOST_RANGES_OF_A_SHARD);
        let map_of = |segments: &[shards::Segment]| {
            let elements =
                segments.iter().map(|(start, end, index)| (element(*start, *end), verdicts.get(*index).cloned()));
            Elements::Keys(elements.collect())
        };
        if blocks.len() <= 1 {
            let segments = blocks.pop().map(|block| block.segments).unwrap_or_default();
            let map = self.add_map(name.to_owned(), &keys, map_of(&segments));
            return Rule { statements: vec![Statement::Vmap { keys, map: SetRef::Named(map) }], comment: None };
        }
        let mut finder = BTreeMap::new();
        for block in &blocks {
            let map = self.add_map(name.to_owned(), &keys, map_of(&block.segments));
            let statements = vec![Statement::Vmap { keys: keys.clone(), map: SetRef::Named(map) }];
            // Who is in none of the block's ranges comes back for the rules behind.
            let shard = self.shared_chain(
                &format!("{name}.{:x}-{}", block.start, block.prefix),
                vec![Rule { statements, comment: None }],
            );
            finder.insert(element(block.start, block.end), Some(Verdict::Jump(shard)));
        }
        let map = self.add_map(format!("{name}.shards"), &keys, Elements::Keys(finder.into()));
        Rule { statements: vec![Statement::Vmap { keys, map: SetRef::Named(map) }], comment: None }
    }

    /// The rules for a run at the beginning of the lines that all ask for one thing, and how many lines that are; `None` where there is
    /// no such run.
    fn branch(&mut self, chain: &str, lines: &[Line], branches: usize) -> Option<(usize, Vec<Rule>)> {
        let first = lines.first().filter(|_| branches > 0)?;
        let most = if branches == self.room.branches { MOST_PLACES_OF_A_LINE } else { MOST_PLACES_OF_A_LINE_AGAIN };
        let mut ways: Vec<(usize, Dimension)> = Dimension::of(first)
            .into_iter()
            .map(|way| (lines.iter().take_while(|line| way.is_asked(&line.flat)).count(), way))
            .filter(|(length, _)| *length >= FEWEST_LINES_FOR_A_LOOKUP)
            .collect();
        ways.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        let longest = ways.first()?.0;
        let mut run = longest;
        while run >= FEWEST_LINES_FOR_A_LOOKUP {
            let mut too_large = false;
            let mut best: Option<(usize, Vec<Map>)> = None;
            for (_, way) in ways.iter().filter(|(length, _)| *length >= run) {
                let Some(maps) = way.maps(&lines[..run], run * most) else {
                    too_large = true;
                    continue;
                };
                let ranges: usize = maps.iter().map(|map| map.lists.segments.len()).sum();
                // A packet that still meets most of them is little better off.
                let apart = maps.iter().all(|map| is_small(map) || map.tells_apart());
                if ranges > self.room.ranges || !apart || maps.iter().all(is_small) {
                    continue;
                }
                let left = maps.iter().map(Map::longest).max().unwrap_or(0);
                if best.as_ref().is_none_or(|(least, _)| left < *least) {
                    best = Some((left, maps));
                }
                if left < FEWEST_LINES_FOR_A_LOOKUP {
                    break;
                }
            }
            if let Some((_, maps)) = best {
                let rules = maps.iter().flat_map(|map| self.branch_map(chain, map, &lines[..run], branches - 1));
                return Some((run, rules.collect()));
            }
            let shorter = ways.iter().map(|(length, _)| *length).filter(|length| *length < run).max();
            let half = if too_large { run / 2 } else { 0 };
            run = half.max(shorter.unwrap_or(0));
        }
        // Not every line of a long run is tried again: that would take as long as the run is long, each time.
        let hopeless = longest / 8;
        (hopeless >= FEWEST_LINES_FOR_A_LOOKUP).then(|| {
            let rules = lines[..hopeless].iter().flat_map(|line| self.line(line, Within::AChain)).collect();
            (hopeless, rules)
        })
    }

    /// The chains of a map that tells these lines apart, and the rule that looks up.
    fn branch_map(&mut self, chain: &str, map: &Map, lines: &[Line], branches: usize) -> Vec<Rule> {
        if let (true, Key::IpAddr(family, _)) = (is_small(map), map.key) {
            let of_family = lines.iter().filter(|line| line.flat.family == Some(family));
            return of_family.flat_map(|line| self.line(line, Within::AChain)).collect();
        }
        let name = format!("{chain}.{}", map.word);
        let mut verdicts = Vec::new();
        for list in &map.lists.lists {
            let lines: Vec<Line> = list.iter().filter_map(|index| map.lines.get(*index)).cloned().collect();
            let words: Vec<&str> = lines.iter().map(|line| line.slug.as_str()).collect();
            let chain = self.free_chain(format!("{name}-{}", names::digest_text(&words.join("\n"))));
            // The name is taken before others of the same words ask for it.
            self.ruleset.chains.insert(chain.clone(), Chain { base: None, rules: Vec::new() });
            let rules = self.list(&chain, &lines, branches);
            self.ruleset.chains.insert(chain.clone(), Chain { base: None, rules });
            let ends = lines.last().is_some_and(Line::ends);
            verdicts.push(if ends { Verdict::Goto(chain) } else { Verdict::Jump(chain) });
        }
        self.room.ranges = self.room.ranges.saturating_sub(map.lists.segments.len());
        self.room.branched = true;
        self.room.mapped.extend(map.sets.iter().cloned());
        vec![self.map_of(&name, map.key, map.bits(), &map.lists.segments, &verdicts)]
    }

    /// One line, linear.
    fn line(&mut self, line: &Line, within: Within) -> Vec<Rule> {
        match line.limit {
            Some(limited) => self.limited(line, limited, within),
            None => {
                let Line { effect, comment, .. } = line;
                let log = self.logged(line);
                let mut rules = Vec::new();
                let mut rule = |statements: Vec<Statement>, comment: &str| {
                    rules.push(Rule { statements, comment: Some(comment.to_owned()) });
                };
                if *effect == Effect::Continue {
                    let mut statements = self.conditions(&line.flat);
                    statements.extend(self.record(line));
                    rule(statements, comment);
                    return rules;
                }
                if let Some(log) = log {
                    // The limit would gate the verdict if both stood in one rule.
                    let mut statements = self.conditions(&line.flat);
                    statements.extend(log);
                    rule(statements, &format!("{comment} log"));
                }
                match effect {
                    Effect::Verdict(verdict) => {
                        let mut statements = self.conditions(&line.flat);
                        statements.extend([Statement::Counter, Statement::Verdict(verdict.clone())]);
                        rule(statements, comment);
                    }
                    Effect::Reject => {
                        for (flat, reject) in reject_parts(&line.flat) {
                            let mut statements = self.conditions(&flat);
                            statements.extend([Statement::Counter, Statement::Reject(reject)]);
                            rule(statements, comment);
                        }
                    }
                    Effect::Continue => {}
                }
                rules
            }
        }
    }

    /// Logs what comes there, but not more often than the settings want.
    fn logged(&self, line: &Line) -> Option<[Statement; 2]> {
        let LogSettings { group, rate, burst, .. } = self.log;
        let prefix = line.log.clone()?;
        Some([Statement::Limit(Limit { rate, seconds: 1, burst }), Statement::Log { prefix, group }])
    }

    /// Counts, logs and goes on.
    fn record(&self, line: &Line) -> Vec<Statement> {
        [Statement::Counter].into_iter().chain(self.logged(line).into_iter().flatten()).collect()
    }

    /// A line that matches only within its limit, in a bucket that all lines of its rule share.
    fn limited(&mut self, line: &Line, limited: Limited, within: Within) -> Vec<Rule> {
        match within {
            Within::AChain => vec![self.limited_visit(line, limited)],
            Within::TheRule => self.limited_in_place(line, limited),
        }
    }

    /// What it does stands in a chain, and the limit before it in another one, which all lines of the rule visit.
    fn limited_visit(&mut self, line: &Line, limited: Limited) -> Rule {
        let name = self.limit_name(line);
        let deed = self.deed(&name, line, Within::AChain);
        let rule = |statements: Vec<Statement>| Rule { statements, comment: Some(line.comment.clone()) };
        // What is over its limit comes back from the chain.
        let gates = if limited.per_source {
            self.meters_of_sources(&name, limited).into_iter().map(|(_, meter)| meter).collect()
        } else {
            vec![Statement::Limit(limited.limit)]
        };
        let gates = gates.into_iter().map(|gate| rule(vec![gate, deed.clone()])).collect();
        let visit = Statement::Verdict(Verdict::Jump(self.shared_chain(&name, gates)));
        let mut statements = self.conditions(&line.flat);
        statements.push(visit);
        rule(statements)
    }

    /// A `return` of the deed has to leave the chain of this very rule, and what is over the limit has to go on in it: no chain may stand
    /// between, and the lines share a bucket by sharing the set that it is in.
    fn limited_in_place(&mut self, line: &Line, limited: Limited) -> Vec<Rule> {
        let name = self.limit_name(line);
        let gates: Vec<(Option<Family>, Statement)> = if limited.per_source {
            let meters = self.meters_of_sources(&name, limited).into_iter();
            let own = meters.filter(|(family, _)| line.flat.has_packets_of(*family));
            own.map(|(family, meter)| (Some(family), meter)).collect()
        } else {
            vec![(None, self.meter(&format!("{name}/{}", limited.word()), self.alike, MOST_ALIKE, limited))]
        };
        let deed = match line.effect {
            // It goes on after it as well.
            Effect::Continue => self.record(line),
            _ => vec![self.deed(&name, line, Within::TheRule)],
        };
        gates
            .into_iter()
            .map(|(family, gate)| {
                // The key of a meter says which family it is.
                let said = family.is_some() && line.flat.from.is_none() && line.flat.to.is_none();
                let flat = Flat { family: line.flat.family.filter(|_| !said), ..line.flat.clone() };
                let mut statements = self.conditions(&flat);
                statements.push(gate);
                statements.extend(deed.iter().cloned());
                Rule { statements, comment: Some(line.comment.clone()) }
            })
            .collect()
    }

    fn limit_name(&self, line: &Line) -> String {
        format!("limit_{}/{}", self.prefix, line.slug)
    }

    /// The way to a chain that does what a line does, whatever the packet.
    fn deed(&mut self, name: &str, line: &Line, within: Within) -> Statement {
        let always = Flat { family: None, from: None, to: None, l4: FlatL4::Any, source_ports: None, process: None };
        let deed = self.line(&Line { flat: always, limit: None, ..line.clone() }, within);
        Statement::Verdict(Verdict::Goto(self.shared_chain(&format!("{name}.within"), deed)))
    }

    /// The meters of which one lets a packet through whose source is within the limit: one for each family.
    fn meters_of_sources(&mut self, name: &str, limited: Limited) -> Vec<(Family, Statement)> {
        let word = limited.word();
        [(Family::V4, "_4"), (Family::V6, "_6")]
            .into_iter()
            .map(|(family, suffix)| {
                let key = Key::IpAddr(family, Side::Source);
                (family, self.meter(&format!("{name}/{word}{suffix}"), key, MOST_BUCKETS, limited))
            })
            .collect()
    }

    /// A bucket for each value of the key, in a set. A bucket keeps the limit that it was made with, so that the set's name says the limit.
    fn meter(&mut self, set: &str, key: Key, size: u32, limited: Limited) -> Statement {
        self.ruleset.sets.entry(set.to_owned()).or_insert_with(|| Set {
            key: vec![key.data_type()],
            interval: false,
            map: false,
            dynamic: Some(Dynamic { timeout: limited.kept(), size }),
            elements: match key {
                Key::IpAddr(Family::V4, _) => Elements::V4(RangeSet::empty()),
                Key::IpAddr(Family::V6, _) => Elements::V6(RangeSet::empty()),
                _ => Elements::Keys(Default::default()),
            },
        });
        Statement::Meter { keys: vec![key], set: set.to_owned(), limit: limited.limit }
    }

    /// The chain of these rules, under this name or one like it.
    fn shared_chain(&mut self, wanted: &str, rules: Vec<Rule>) -> String {
        let name = free(wanted, |name| self.ruleset.chains.get(name).is_some_and(|there| there.rules != rules));
        self.ruleset.chains.insert(name.clone(), Chain { base: None, rules });
        name
    }

    /// Adds a map under a name that says what is in it, to the letter: a packet that is half-way through the old rules when
    /// new ones come into force goes on in the old rules with the sets as they are now (`nft_do_chain` reads the generation
    /// once, a lookup each time), so old rules have to keep their own maps.
    fn add_map(&mut self, wanted: String, keys: &[Key], elements: Elements) -> String {
        let wanted = format!("{wanted}/{}", names::digest(&elements));
        let name = free(&wanted, |name| self.ruleset.sets.contains_key(name));
        let set = Set {
            key: keys.iter().map(|key| key.data_type()).collect(),
            interval: elements.needs_interval(),
            map: true,
            dynamic: None,
            elements,
        };
        self.ruleset.sets.insert(name.clone(), set);
        name
    }

    /// The statements of a flat rule. Sets that are written into a rule go with the rule at once, and a packet that is half-way
    /// through it finds them empty (see [`Target::add_map`]); a named set stays until nothing can be on its way any more.
    fn conditions(&mut self, flat: &Flat) -> Vec<Statement> {
        let mut statements = conditions(flat, self.ruleset);
        for statement in &mut statements {
            let Statement::Lookup { keys, set, .. } = statement else { continue };
            let SetRef::Anonymous(elements) = set else { continue };
            let elements = elements.clone();
            let name = names::of_elements(keys, &elements);
            let key = keys.iter().map(|key| key.data_type()).collect();
            *set = SetRef::Named(name.clone());
            let interval = elements.needs_interval();
            self.ruleset.sets.entry(name).or_insert(Set { key, interval, map: false, dynamic: None, elements });
        }
        statements
    }

    fn free_chain(&self, wanted: String) -> String {
        free(&wanted, |name| self.ruleset.chains.contains_key(name))
    }
}

/// Where the deed of a limited line may stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Within {
    /// In a chain that is visited: it decides, or comes back to the line after.
    AChain,
    /// Nowhere else: it returns from the chain of the line itself.
    TheRule,
}

/// From how many lines on a lookup is used, some of which look at named sets or not.
const fn fewest(named: bool) -> usize {
    if named { FEWEST_SETS_FOR_A_LOOKUP } else { FEWEST_LINES_FOR_A_LOOKUP }
}

/// Whether a map has so few lines that one after the other is as good.
fn is_small(map: &Map) -> bool {
    map.lines.len() < fewest(!map.sets.is_empty())
}

/// What makes two per-rule chains the same.
type Identity = (Effect, String, Option<String>);

/// For each exact (protocol, port): the lines that can match it, by index, in order.
type PortKeys = BTreeMap<(Protocol, u16), Vec<usize>>;

/// `wanted`, or `wanted.2`, `wanted.3`, … if taken.
fn free(wanted: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut name = wanted.to_owned();
    let mut number = 2;
    while taken(&name) {
        name = format!("{wanted}.{number}");
        number += 1;
    }
    name
}

fn suffixed(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}.{}", number + 1) }
}

/// The lines up to and with the first that always matches and always decides: none after it can be reached.
fn until_unconditional(lines: &[Line]) -> &[Line] {
    let reached = lines.iter().position(Line::ends);
    reached.map_or(lines, |index| &lines[..=index])
}

/// Whether a line may be part of a run that becomes a port map: it looks at destination ports and decides, or it is about
/// protocols without ports, which changes nothing for a packet that the map knows.
fn in_port_run(line: &Line) -> bool {
    // A packet would come by its limit twice: in the map's chain, and behind it.
    if line.limit.is_some() {
        return false;
    }
    match &line.flat.l4 {
        FlatL4::Ports(_) => line.effect != Effect::Continue,
        FlatL4::Icmp(_) | FlatL4::Icmpv6(_) => true,
        FlatL4::Protocols(protocols) => {
            (0..=u8::MAX).all(|number| !Protocol(number).has_ports() || !protocols.contains(number))
        }
        FlatL4::Any => false,
    }
}

fn width((start, end): (u16, u16)) -> u32 {
    u32::from(end) - u32::from(start) + 1
}

/// The keys of the port map, or `None` when it would be too large or hold nothing.
fn lines_by_port(keyed: &[&Line]) -> Option<PortKeys> {
    let mut keys = PortKeys::new();
    for line in keyed {
        let FlatL4::Ports(ports) = &line.flat.l4 else { continue };
        for (protocol, set) in ports {
            let narrow = set.ranges().iter().filter(|range| width(**range) <= WIDEST_PORT_RANGE_IN_A_MAP);
            for port in narrow.flat_map(|(start, end)| *start..=*end) {
                keys.entry((*protocol, port)).or_default();
            }
            if keys.len() > MOST_PORT_KEYS {
                return None;
            }
        }
    }
    let mut pairs = 0;
    for (index, line) in keyed.iter().enumerate() {
        let FlatL4::Ports(ports) = &line.flat.l4 else { continue };
        for (protocol, set) in ports {
            for (start, end) in set.ranges() {
                for (_, lines) in keys.range_mut((*protocol, *start)..=(*protocol, *end)) {
                    lines.push(index);
                    pairs += 1;
                }
            }
        }
        if pairs > MOST_PORT_PAIRS.max(keyed.len() * MOST_PORT_PAIRS_OF_A_LINE) {
            return None;
        }
    }
    (!keys.is_empty()).then_some(keys)
}

/// The line for a packet whose protocol and port are known to match it.
fn at_port(line: &Line, protocol: Protocol) -> Line {
    // A source port is read as the protocol's, and a reject needs to know whether it answers TCP.
    let needs_protocol = line.flat.source_ports.is_some() || line.effect == Effect::Reject;
    let l4 = if needs_protocol { FlatL4::Protocols(RangeSet::single(protocol.0)) } else { FlatL4::Any };
    Line { flat: Flat { l4, ..line.flat.clone() }, ..line.clone() }
}

/// What is left of a line of a run for packets that are not in its port map.
fn behind_the_map(line: &Line) -> Option<Line> {
    let FlatL4::Ports(ports) = &line.flat.l4 else { return Some(line.clone()) };
    let wide: BTreeMap<Protocol, PortSet> = ports
        .iter()
        .map(|(protocol, set)| {
            let wide = set.ranges().iter().copied().filter(|range| width(*range) > WIDEST_PORT_RANGE_IN_A_MAP);
            (*protocol, wide.collect::<PortSet>())
        })
        .filter(|(_, set)| !set.is_empty())
        .collect();
    let flat = Flat { l4: FlatL4::Ports(wide.clone()), ..line.flat.clone() };
    (!wide.is_empty()).then(|| Line { flat, ..line.clone() })
}

/// The one address that a deciding line looks at, if it looks at nothing else.
fn only_peer(line: &Line) -> Option<(Side, &Peer)> {
    let Flat { family: _, from, to, l4, source_ports, process } = &line.flat;
    let others = *l4 != FlatL4::Any || source_ports.is_some() || process.is_some() || line.limit.is_some();
    if others || line.effect == Effect::Continue {
        return None;
    }
    match (from, to) {
        (Some(peer), None) => Some((Side::Source, peer)),
        (None, Some(peer)) => Some((Side::Destination, peer)),
        _ => None,
    }
}

/// How many ranges an address map of these lines takes, if one is worth it.
fn worth_a_map(lines: &[&Line]) -> Option<usize> {
    let sizes = || lines.iter().filter_map(|line| only_peer(line)).map(|(_, peer)| peer.addresses.len());
    let named = lines.iter().filter_map(|line| only_peer(line)).any(|(_, peer)| peer.set.is_some());
    let worth = lines.len() >= fewest(named) && sizes().all(|size| size <= MOST_RANGES_OF_A_PEER_IN_A_MAP);
    worth.then(|| sizes().sum())
}
