//! Decisions as policies of nodewall: which stage asks them, what rules say, and in which order. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::{Map, Value as Json, json};

use super::cube::{ALL_KINDS, BROADCAST, Cube, LOCAL, MULTICAST, NEW, OTHER, UNTRACKED, has_ports, icmp_types};
use super::flatten::{Action, Decision, Flat, flatten, kinds};
use super::model::{Base, Hook, Ruleset};
use super::names::Names;
use crate::net::addr::AddrSet;
use crate::net::protocol::Protocol;
use crate::net::range::RangeSet;
use crate::policy::model::Limit;
use crate::source::calico::{nets, ports, protocol};
use crate::source::object::Kind;
use crate::source::object::convert::Document;
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;

/// The order of the first tier: behind those that are built in.
const FIRST_ORDER: usize = 20_000;
/// The most rules that one of theirs may become.
const MOST_RULES: usize = 256;
/// From how many prefixes on they are a set of their own.
const LONG_LIST: usize = 16;
/// The longest text of a log.
const LONGEST_LOG: usize = 48;
/// The longest comment.
const LONGEST_COMMENT: usize = 160;
/// The most pairs of rules that are compared to write IPv4 and IPv6 together.
const MOST_PAIRS: usize = 4_000_000;
/// ICMPv6 redirects (RFC 4861 section 4.5): to connection tracking they are related or invalid, and never new
/// (`nf_conntrack_icmpv6_redirect`, net/netfilter/nf_conntrack_proto_icmpv6.c); nodewall's essentials do not have them.
const REDIRECT: u8 = 137;

/// Where a base chain's decisions are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    HostIngress,
    HostEgress,
    Prednat,
    ForwardIngress,
    ForwardEgress,
}

impl At {
    const fn stage(self) -> &'static str {
        match self {
            Self::HostIngress | Self::HostEgress => "host",
            Self::Prednat => "prednat",
            Self::ForwardIngress | Self::ForwardEgress => "forward",
        }
    }

    const fn direction(self) -> &'static str {
        match self {
            Self::HostIngress | Self::Prednat | Self::ForwardIngress => "ingress",
            Self::HostEgress | Self::ForwardEgress => "egress",
        }
    }
}

/// A rule with the interfaces that it is for.
#[derive(Clone, Debug)]
struct Said {
    interfaces: Names,
    v4: bool,
    v6: bool,
    rule: Map<String, Json>,
    place: Place,
}

/// The policies that come of rules.
pub(super) fn documents(ruleset: &Ruleset, system: &str) -> (Vec<Document>, Vec<Finding>) {
    let mut writer = Writer {
        ruleset,
        system,
        sets: BTreeMap::new(),
        used: BTreeSet::new(),
        findings: Vec::new(),
        tiers: Vec::new(),
        policies: Vec::new(),
    };
    // Every hook has to let a packet through, so that what leaves may be asked first what `allow` would end.
    for hook in [Hook::Prerouting, Hook::Postrouting, Hook::Input, Hook::Forward, Hook::Output] {
        writer.hook(hook);
    }
    writer.finish()
}

struct Writer<'a> {
    ruleset: &'a Ruleset,
    system: &'a str,
    /// Sets of our own making, by what they hold.
    sets: BTreeMap<AddrSet, String>,
    /// Sets that rules name.
    used: BTreeSet<AddrSet>,
    findings: Vec<Finding>,
    tiers: Vec<(String, Place)>,
    policies: Vec<(String, Document)>,
}

/// Base chains of one hook and priority that see different families: the two halves of one chain, as iptables has them.
type Halves<'a> = Vec<(&'a Base, Flat)>;

impl Writer<'_> {
    fn hook(&mut self, hook: Hook) {
        let mut bases: Vec<&Base> = self.ruleset.bases.iter().filter(|base| base.hook == hook).collect();
        bases.sort_by_key(|base| base.priority);
        let mut tiers: Vec<Halves<'_>> = Vec::new();
        for base in bases {
            let flat = flatten(self.ruleset, base);
            let other_half = tiers.last_mut().filter(|halves| {
                halves.iter().all(|(other, _)| {
                    other.priority == base.priority && !(other.v4 && base.v4) && !(other.v6 && base.v6)
                })
            });
            match other_half {
                Some(halves) => halves.push((base, flat)),
                None => tiers.push(vec![(base, flat)]),
            }
        }
        // What lets everything through is not needed where that is so anyway: everywhere but on the way in.
        let denies = |halves: &Halves<'_>| {
            halves
                .iter()
                .flat_map(|(_, flat)| &flat.decisions)
                .any(|decision| matches!(decision.action, Action::Drop | Action::Reject) && !decision.cube.is_empty())
        };
        let families =
            |halves: &Halves<'_>| (halves.iter().any(|(base, _)| base.v4), halves.iter().any(|(base, _)| base.v6));
        let every = tiers.iter().map(families).fold((false, false), |all, some| (all.0 | some.0, all.1 | some.1));
        let counts = |halves: &Halves<'_>| {
            let has_errors =
                halves.iter().flat_map(|(_, flat)| &flat.findings).any(|finding| finding.severity == Severity::Error);
            denies(halves) || has_errors
        };
        // On the way in, something has to let through what is let through.
        if hook != Hook::Input || tiers.iter().any(counts) {
            tiers.retain(counts);
        } else {
            tiers.drain(..tiers.len().saturating_sub(1));
        }
        for (_, flat) in tiers.iter().flatten() {
            self.findings.extend(flat.findings.iter().cloned());
        }
        let last = tiers.len().saturating_sub(1);
        for (index, halves) in tiers.iter().enumerate() {
            let number = if index == 0 { String::new() } else { format!("-{}", index + 1) };
            let name = format!("{}-{}{number}", self.system, hook.name());
            let is_last = index == last;
            let ats: &[At] = match hook {
                Hook::Prerouting => &[At::Prednat],
                Hook::Input => &[At::HostIngress],
                Hook::Output => &[At::HostEgress],
                Hook::Postrouting => &[At::HostEgress, At::ForwardEgress],
                Hook::Forward => &[],
            };
            let here = families(halves);
            let left = (every.0 && !here.0, every.1 && !here.1);
            let lists: Vec<(At, Vec<Said>)> = if hook == Hook::Forward {
                self.forward(halves, is_last)
            } else {
                ats.iter()
                    .map(|at| {
                        let allow =
                            if is_last && *at != At::Prednat && hook != Hook::Postrouting { "allow" } else { "pass" };
                        (*at, self.list(halves, *at, allow))
                    })
                    .collect()
            };
            let place = halves.first().map_or_else(|| Place::file(self.system), |(base, _)| base.place.clone());
            for (at, mut list) in lists {
                if hook == Hook::Input && is_last && (left.0 || left.1) {
                    // Families that only earlier chains see are let through by them.
                    let mut rule = Map::from_iter([("action".to_owned(), Json::from("allow"))]);
                    rule.insert("family".to_owned(), if left.0 { 4 } else { 6 }.into());
                    list.push(Said {
                        interfaces: Names::default(),
                        v4: left.0,
                        v6: left.1,
                        rule,
                        place: place.clone(),
                    });
                }
                self.write(&name, at, list, &place);
            }
        }
    }

    /// The rules of both halves, together where they say the same.
    fn list(&mut self, halves: &Halves<'_>, at: At, allow: &str) -> Vec<Said> {
        let mut lists = halves
            .iter()
            .map(|(base, flat)| self.half(&flat.decisions, at, allow, base))
            .collect::<Vec<_>>()
            .into_iter();
        let first = lists.next().unwrap_or_default();
        let mut all = lists.fold(first, together);
        while all.last().is_some_and(|said| said.rule.get("action").is_some_and(|action| action == "pass")) {
            all.pop();
        }
        all
    }

    fn half(&mut self, decisions: &[Decision], at: At, allow: &str, base: &Base) -> Vec<Said> {
        let mut list = Vec::new();
        for decision in decisions {
            let names = if at.direction() == "ingress" { &decision.cube.input } else { &decision.cube.output };
            let interfaces = names.without_loopback();
            if interfaces.is_empty() {
                continue;
            }
            let Some(decision) = &self.asked(decision) else { continue };
            let word = match &decision.action {
                Action::Accept => allow,
                Action::Drop => "deny",
                Action::Reject => "reject",
                Action::Log(_) => "log",
            };
            match self.rules(decision, word, base.hook) {
                Ok(rules) => list.extend(rules.into_iter().map(|rule| Said {
                    interfaces: interfaces.clone(),
                    v4: decision.cube.v4,
                    v6: decision.cube.v6,
                    rule,
                    place: decision.place.clone(),
                })),
                Err(words) => self.cannot(decision, &words),
            }
        }
        list
    }

    /// The decision about packets that nodewall asks its policies about, whatever connection tracking says of them. Without `notrack`, none
    /// of those is untracked: the ICMPv6 that connection tracking passes by is let through before any policy.
    fn asked(&self, decision: &Decision) -> Option<Decision> {
        let redirect = Cube { icmpv6: icmp_types(REDIRECT, None), ..Cube::protocol(Protocol::ICMPV6) };
        let redirects = Cube::of(false, true).and(&redirect);
        let mut decision = decision.clone();
        if decision.cube.states == UNTRACKED && self.ruleset.untracked.is_empty() {
            return None;
        }
        if decision.cube.states == NEW && !decision.cube.and(&redirects).is_empty() {
            decision.cube.icmpv6 = decision.cube.icmpv6.difference(&redirects.icmpv6);
        }
        (!decision.cube.is_empty()).then_some(decision)
    }

    /// What is forwarded is asked about by the interface on which it arrives, then by the one by which it leaves, and each
    /// sees one of them only.
    fn forward(&mut self, halves: &Halves<'_>, is_last: bool) -> Vec<(At, Vec<Said>)> {
        let allow = if is_last { "allow" } else { "pass" };
        let all: Vec<&Decision> = halves.iter().flat_map(|(_, flat)| &flat.decisions).collect();
        let (any_in, any_out) =
            (all.iter().any(|one| !one.cube.input.is_any()), all.iter().any(|one| !one.cube.output.is_any()));
        if !any_out {
            return vec![(At::ForwardIngress, self.list(halves, At::ForwardIngress, allow))];
        }
        if !any_in {
            return vec![(At::ForwardEgress, self.list(halves, At::ForwardEgress, allow))];
        }
        let accepts: Vec<&&Decision> = all.iter().filter(|one| one.action == Action::Accept).collect();
        let same = |of: fn(&Cube) -> &Names| {
            // Where others decide what is not decided here, that must not be denied.
            if halves.iter().any(|(_, flat)| flat.shared) {
                return None;
            }
            let first = accepts.first().map(|one| of(&one.cube).clone())?;
            let same = accepts.iter().all(|one| *of(&one.cube) == first) && !first.is_any();
            same.then_some(first)
        };
        for (of, at, other) in [
            (Cube::leaves as fn(&Cube) -> &Names, At::ForwardIngress, At::ForwardEgress),
            (Cube::arrives as fn(&Cube) -> &Names, At::ForwardEgress, At::ForwardIngress),
        ] {
            let Some((only, others)) = same(of).and_then(|only| only.complement().map(|others| (only, others))) else {
                continue;
            };
            // Nothing gets through by any other interface, which the other side says.
            let narrowed = self.one_sided(halves, of, Some(&only));
            let list = self.list(&narrowed, at, allow);
            let mut closed = Vec::new();
            for (base, _) in halves {
                let mut rule = Map::from_iter([("action".to_owned(), Json::from("deny"))]);
                if !(base.v4 && base.v6) {
                    rule.insert("family".to_owned(), if base.v4 { 4 } else { 6 }.into());
                }
                rule.insert("comment".to_owned(), "nothing is let through here".into());
                let said =
                    Said { interfaces: others.clone(), v4: base.v4, v6: base.v6, rule, place: base.place.clone() };
                closed = together(closed, vec![said]);
            }
            return vec![(at, list), (other, closed)];
        }
        let by_out = accepts.iter().filter(|one| !one.cube.output.is_any()).count();
        let by_in = accepts.iter().filter(|one| !one.cube.input.is_any()).count();
        let (of, at) = if by_out <= by_in {
            (Cube::leaves as fn(&Cube) -> &Names, At::ForwardIngress)
        } else {
            (Cube::arrives as fn(&Cube) -> &Names, At::ForwardEgress)
        };
        let narrowed = self.one_sided(halves, of, None);
        vec![(at, self.list(&narrowed, at, allow))]
    }

    /// The same decisions without this interface. What gets through only by `only` is decided for that.
    fn one_sided<'b>(&mut self, halves: &Halves<'b>, of: fn(&Cube) -> &Names, only: Option<&Names>) -> Halves<'b> {
        let mut narrowed = Vec::new();
        for (base, flat) in halves {
            let mut decisions = Vec::new();
            for decision in &flat.decisions {
                let names = of(&decision.cube);
                let mut wide = decision.clone();
                let other = if std::ptr::eq(names, &decision.cube.input) {
                    &mut wide.cube.input
                } else {
                    &mut wide.cube.output
                };
                *other = Names::default();
                let meets = only.map(|only| names.intersection(only));
                let as_said = names.is_any() || meets.as_ref() == only && only.is_some();
                if as_said {
                    decisions.push(wide);
                } else if meets.is_some_and(|meets| meets.is_empty()) {
                    // Denied by the other side.
                } else {
                    match decision.action {
                        Action::Accept => self
                            .cannot(decision, "the interfaces on which and by which a packet goes through, together"),
                        Action::Log(_) => {}
                        Action::Drop | Action::Reject => {
                            let message = "nodewall cannot say the interfaces on which and by which a packet goes through, together: the rule denies by one of them, which is more";
                            self.findings.push(Finding::warning(Code::NotConverted, &decision.place, message));
                            decisions.push(wide);
                        }
                    }
                }
            }
            let flat = Flat { decisions, findings: Vec::new(), owners: flat.owners.clone(), shared: flat.shared };
            narrowed.push((*base, flat));
        }
        narrowed
    }

    /// Notes that a decision cannot be said: what lets through is left out, and nothing that denies may be.
    fn cannot(&mut self, decision: &Decision, words: &str) {
        let finding = match decision.action {
            Action::Accept => Finding::warning(
                Code::NotConverted,
                &decision.place,
                format!("nodewall cannot say {words}: the rule is left out, so that less is allowed"),
            ),
            Action::Log(_) => Finding::warning(
                Code::NotConverted,
                &decision.place,
                format!("nodewall cannot say {words}: the rule is left out, so that less is logged"),
            ),
            Action::Drop | Action::Reject => Finding::error(
                Code::NotConverted,
                &decision.place,
                format!("nodewall cannot say {words}, and without the rule more would be allowed"),
            )
            .help("write it as simpler rules, or take it out of what is converted"),
        };
        self.findings.push(finding);
    }

    /// The rules that mean a decision.
    fn rules(&mut self, decision: &Decision, word: &str, hook: Hook) -> Result<Vec<Map<String, Json>>, String> {
        let cube = &decision.cube;
        let one = |set: &AddrSet| {
            let full = (set.v4.is_full(), set.v6.is_full());
            full == (true, true) || full == (false, false)
        };
        // A family of which all is meant, beside one of which some is, takes a rule for each.
        let any_kind = cube.kinds == ALL_KINDS;
        let is_one = one(&cube.source) && one(&cube.destination) && any_kind;
        let families: Vec<(bool, bool)> =
            if cube.v4 && cube.v6 && !is_one { vec![(true, false), (false, true)] } else { vec![(cube.v4, cube.v6)] };
        let mut rules = Vec::new();
        for (v4, v6) in families {
            let mut cube = Cube { v4, v6, ..cube.clone() };
            cube.tidy();
            let from = self.entity(&cube.source, (v4, v6), None)?;
            // IPv6 has no broadcasts.
            let every = if v4 { kinds(hook, false) } else { ALL_KINDS & !BROADCAST };
            let of = cube.kinds & every;
            if of == 0 {
                continue;
            }
            let to = self.entity(&cube.destination, (v4, v6), (!any_kind && of != every).then_some((of, every)))?;
            for part in transports(&cube)? {
                let mut from = from.clone();
                if !cube.sports.is_full() {
                    from.insert("ports".to_owned(), ports(&cube.sports));
                }
                let mut rule = Map::from_iter([("action".to_owned(), Json::from(word))]);
                let has_list = |entity: &Map<String, Json>| entity.contains_key("cidrs") || entity.contains_key("sets");
                let told = has_list(&from) || has_list(&to) && !to.contains_key("local") || part.contains_key("icmp");
                for (key, entity) in [("from", from), ("to", to.clone())] {
                    if !entity.is_empty() {
                        rule.insert(key.to_owned(), Json::Object(entity));
                    }
                }
                let mut not = None;
                for (key, value) in part {
                    if key == "not" { not = Some(value) } else { drop(rule.insert(key, value)) }
                }
                if v4 != v6 && !told {
                    rule.insert("family".to_owned(), if v4 { 4 } else { 6 }.into());
                }
                rule.extend(not.map(|not| ("not".to_owned(), not)));
                let accounts = |names: &BTreeSet<String>| -> Json {
                    names
                        .iter()
                        .map(|name| name.parse::<u32>().map_or_else(|_| Json::from(name.as_str()), Json::from))
                        .collect()
                };
                rule.extend(cube.users.as_ref().map(|users| ("users".to_owned(), accounts(users))));
                rule.extend(cube.groups.as_ref().map(|groups| ("groups".to_owned(), accounts(groups))));
                rule.extend(cube.limit.map(|limit| ("limit".to_owned(), self::limit(limit))));
                if let Action::Log(text) = &decision.action {
                    let text = log_text(text);
                    rule.insert("log".to_owned(), if text.is_empty() { Json::from(true) } else { text.into() });
                }
                rule.insert("comment".to_owned(), comment(decision).into());
                rules.push(rule);
                if rules.len() > MOST_RULES {
                    return Err("what would take more than 256 rules".to_owned());
                }
            }
        }
        if cube.limit.is_some() && rules.len() > 1 && decision.action == Action::Accept {
            return Err("a limit on what takes several rules, of which each would have its own".to_owned());
        }
        Ok(rules)
    }

    /// The entity of addresses; empty for any. Of kinds of destinations, some of all that there may be here.
    fn entity(
        &mut self,
        set: &AddrSet,
        (v4, v6): (bool, bool),
        kinds: Option<(u8, u8)>,
    ) -> Result<Map<String, Json>, String> {
        let of_families = |set: &AddrSet| AddrSet {
            v4: if v4 { set.v4.clone() } else { RangeSet::empty() },
            v6: if v6 { set.v6.clone() } else { RangeSet::empty() },
        };
        let (all, set) = (of_families(&AddrSet::full()), of_families(set));
        let Some((kinds, every)) = kinds else {
            return Ok(if set == all { Map::new() } else { self.addresses(&set, &all) });
        };
        let rest = every & (BROADCAST | OTHER);
        let with_rest = kinds & rest == rest;
        if !with_rest && kinds & rest != 0 {
            return Err("broadcast addresses apart from those of other hosts".to_owned());
        }
        let multicast = of_families(&multicast());
        let (local, groups) = (kinds & LOCAL != 0, kinds & MULTICAST != 0);
        if set == all {
            let mut parts = Map::new();
            if local != with_rest {
                parts.insert("local".to_owned(), true.into());
            }
            if groups != with_rest {
                parts.insert("cidrs".to_owned(), nets(&prefixes(&multicast)));
            }
            return Ok(if with_rest { Map::from_iter([("except".to_owned(), parts.into())]) } else { parts });
        }
        let groups = if groups { set.intersection(&multicast) } else { AddrSet::default() };
        let others = if local || with_rest { set.difference(&multicast) } else { AddrSet::default() };
        if others.is_empty() || local && with_rest {
            return Ok(self.addresses(&groups.union(&others), &all));
        }
        if !groups.is_empty() {
            return Err("multicast groups and addresses of this host by their kind in one list".to_owned());
        }
        let own = json!({ "local": true });
        // What is in both is a list without what is not local.
        let except = if local { json!({ "cidrs": nets(&prefixes(&all)), "except": own }) } else { own };
        Ok(Map::from_iter([("cidrs".to_owned(), nets(&prefixes(&others))), ("except".to_owned(), except)]))
    }

    /// A list of addresses, by what is in it or what is not, whichever is shorter; a long one as a set.
    fn addresses(&mut self, set: &AddrSet, all: &AddrSet) -> Map<String, Json> {
        let (within, without) = (prefixes(set), prefixes(&all.difference(set)));
        let (is_except, list) =
            if without.len() < within.len() && !without.is_empty() { (true, without) } else { (false, within) };
        let listed = if is_except { all.difference(set) } else { set.clone() };
        let known = self.ruleset.sets.get(&listed).cloned();
        let name = known.or_else(|| {
            let next = format!("{}-{}", self.system, self.sets.len() + 1);
            (list.len() > LONG_LIST).then(|| self.sets.entry(listed.clone()).or_insert(next).clone())
        });
        let value = match name {
            Some(name) => {
                self.used.insert(listed);
                ("sets".to_owned(), json!([name]))
            }
            None => ("cidrs".to_owned(), nets(&list)),
        };
        let entity = Map::from_iter([value]);
        if is_except { Map::from_iter([("except".to_owned(), Json::Object(entity))]) } else { entity }
    }

    /// Writes a list as policies: one for each run of rules with the same interfaces.
    fn write(&mut self, tier: &str, at: At, list: Vec<Said>, place: &Place) {
        let mut runs: Vec<(Names, Vec<Json>, Place)> = Vec::new();
        for said in list {
            match runs.last_mut() {
                Some((interfaces, rules, _)) if *interfaces == said.interfaces => rules.push(Json::Object(said.rule)),
                _ => runs.push((said.interfaces, vec![Json::Object(said.rule)], said.place)),
            }
        }
        if runs.is_empty() {
            return;
        }
        if !self.tiers.iter().any(|(name, _)| name == tier) {
            self.tiers.push((tier.to_owned(), place.clone()));
        }
        for (interfaces, rules, place) in runs {
            let number = self.policies.iter().filter(|(of, _)| of == tier).count();
            let name = if number == 0 { tier.to_owned() } else { format!("{tier}-part-{}", number + 1) };
            let mut fields = Map::from_iter([
                ("tier".to_owned(), Json::from(tier)),
                ("order".to_owned(), (10 * (number + 1)).into()),
                ("interfaces".to_owned(), interfaces.selector().to_string().into()),
            ]);
            if at.stage() != "host" {
                fields.insert("stage".to_owned(), at.stage().into());
            }
            fields.insert(at.direction().to_owned(), rules.into());
            self.policies.push((tier.to_owned(), Document { kind: Kind::HostPolicy, name, fields, place }));
        }
    }

    fn finish(self) -> (Vec<Document>, Vec<Finding>) {
        let mut documents = Vec::new();
        let place = self.ruleset.bases.first().map_or_else(|| Place::file(self.system), |base| base.place.clone());
        for (addresses, name) in self.ruleset.sets.iter().chain(&self.sets) {
            if self.used.contains(addresses) {
                let fields = Map::from_iter([("cidrs".to_owned(), nets(&prefixes(addresses)))]);
                documents.push(Document {
                    kind: Kind::HostNetworkSet,
                    name: name.clone(),
                    fields,
                    place: place.clone(),
                });
            }
        }
        for (index, (name, place)) in self.tiers.into_iter().enumerate() {
            let fields = Map::from_iter([
                ("order".to_owned(), Json::from(FIRST_ORDER + 10 * index)),
                ("default".to_owned(), "pass".into()),
            ]);
            documents.push(Document { kind: Kind::HostTier, name, fields, place });
        }
        documents.extend(self.policies.into_iter().map(|(_, policy)| policy));
        (documents, self.findings)
    }
}

impl Cube {
    fn arrives(&self) -> &Names {
        &self.input
    }

    fn leaves(&self) -> &Names {
        &self.output
    }
}

/// Addresses of multicast groups (RFC 5771, RFC 4291 section 2.7).
fn multicast() -> AddrSet {
    AddrSet { v4: RangeSet::range(0xe000_0000, 0xefff_ffff), v6: RangeSet::range(0xff << 120, u128::MAX) }
}

/// The fewest prefixes that hold exactly these addresses.
fn prefixes(set: &AddrSet) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for (start, end) in set.v4.ranges() {
        nets.extend(ipnet::Ipv4Subnets::new((*start).into(), (*end).into(), 0).map(IpNet::from));
    }
    for (start, end) in set.v6.ranges() {
        nets.extend(ipnet::Ipv6Subnets::new((*start).into(), (*end).into(), 0).map(IpNet::from));
    }
    nets
}

/// What is said of protocols, ports and ICMP types: one rule each.
fn transports(cube: &Cube) -> Result<Vec<Map<String, Json>>, String> {
    let with_ports = !cube.sports.is_full() || !cube.dports.is_full();
    if with_ports && !has_ports(&cube.protocols) {
        return Err("ports of protocols that have none".to_owned());
    }
    let typed = |number: u8| match Protocol(number) {
        Protocol::ICMP => !cube.icmp.is_full(),
        Protocol::ICMPV6 => !cube.icmpv6.is_full(),
        _ => false,
    };
    let numbers: Vec<u8> = (0..=u8::MAX).filter(|number| cube.protocols.contains(*number)).collect();
    let redirects: RangeSet<u16> = RangeSet::full().difference(&cube.icmpv6);
    if numbers.len() > 16 && redirects == icmp_types(REDIRECT, None) {
        // The one type of many protocols that is apart, by its name: a number needs its protocol.
        let rest = Cube { icmpv6: RangeSet::full(), ..cube.clone() };
        let mut parts = transports(&rest)?;
        for part in &mut parts {
            let not = part.entry("not").or_insert_with(|| json!({}));
            if let Json::Object(not) = not {
                not.insert("icmp".to_owned(), json!({ "type": "nd-redirect" }));
            }
        }
        return Ok(parts);
    }
    let is_typed = numbers.iter().any(|number| typed(*number));
    if cube.protocols.is_full() && !is_typed {
        return Ok(vec![Map::new()]);
    }
    if numbers.len() == 255 && !is_typed {
        let missing = (0..=u8::MAX).find(|number| !cube.protocols.contains(*number)).unwrap_or_default();
        let not = json!({ "protocol": protocol(Protocol(missing)) });
        return Ok(vec![Map::from_iter([("not".to_owned(), not)])]);
    }
    if numbers.len() > 16 {
        return Err("all protocols but some".to_owned());
    }
    let mut parts = Vec::new();
    for number in numbers {
        let mut part = Map::from_iter([("protocol".to_owned(), protocol(Protocol(number)))]);
        if !cube.dports.is_full() {
            part.insert("ports".to_owned(), ports(&cube.dports));
        }
        if !typed(number) {
            parts.push(part);
            continue;
        }
        let types = if Protocol(number) == Protocol::ICMP { &cube.icmp } else { &cube.icmpv6 };
        let all: RangeSet<u16> = RangeSet::full();
        let (within, without) = (icmp_list(types), icmp_list(&all.difference(types)));
        if let ([one], true) = (without.as_slice(), within.len() > 1) {
            part.insert("not".to_owned(), json!({ "icmp": one }));
            parts.push(part);
            continue;
        }
        for one in within {
            let mut part = part.clone();
            part.insert("icmp".to_owned(), one);
            parts.push(part);
        }
    }
    Ok(parts)
}

/// ICMP types and codes, each as a condition.
fn icmp_list(types: &RangeSet<u16>) -> Vec<Json> {
    let mut list = Vec::new();
    for (start, end) in types.ranges() {
        let mut at = Some(*start);
        while let Some(next) = at.filter(|next| next <= end) {
            let last = next | 0xff;
            if next & 0xff == 0 && last <= *end {
                list.push(json!({ "type": next >> 8 }));
                at = last.checked_add(1);
            } else {
                list.push(json!({ "type": next >> 8, "code": next & 0xff }));
                at = next.checked_add(1);
            }
        }
    }
    list
}

fn limit(limit: Limit) -> Json {
    let unit = match limit.seconds {
        60 => "minute",
        3600 => "hour",
        86_400 => "day",
        _ => "second",
    };
    let mut said = Map::from_iter([
        ("rate".to_owned(), Json::from(format!("{}/{unit}", limit.rate))),
        ("burst".to_owned(), limit.burst.into()),
    ]);
    if limit.per_source {
        said.insert("per".to_owned(), "source".into());
    }
    said.into()
}

/// A text that a log may have.
fn log_text(text: &str) -> String {
    let kept: String = text.chars().filter(|next| (*next == ' ' || next.is_ascii_graphic()) && *next != '"').collect();
    kept.trim().trim_end_matches(':').chars().take(LONGEST_LOG).collect()
}

/// Where a rule came from, for its comment.
fn comment(decision: &Decision) -> String {
    let place = &decision.place;
    let at = if place.line > 0 { format!("{}:{}", place.file, place.line) } else { place.file.to_string() };
    let text = format!("{at}: {}", decision.text);
    let mut cut: String = text.chars().filter(|next| !next.is_control()).take(LONGEST_COMMENT).collect();
    if cut.len() < text.len() {
        cut.push_str("...");
    }
    cut
}

/// Rules of IPv4 and of IPv6 in one list, each in its order, and as one rule where both say the same.
fn together(one: Vec<Said>, other: Vec<Said>) -> Vec<Said> {
    let disjoint = |one: &Said, other: &Said| !(one.v4 && other.v4 || one.v6 && other.v6);
    let body = |said: &Said| {
        let mut rule = said.rule.clone();
        rule.shift_remove("family");
        rule.shift_remove("comment");
        rule
    };
    let same = |one: &Said, other: &Said| {
        let alike = one.interfaces == other.interfaces && disjoint(one, other);
        alike
            && one.rule.contains_key("family")
            && other.rule.contains_key("family")
            && !one.rule.contains_key("limit")
            && body(one) == body(other)
    };
    let (rows, columns) = (one.len(), other.len());
    if rows == 0 || columns == 0 || rows.saturating_mul(columns) > MOST_PAIRS {
        return one.into_iter().chain(other).collect();
    }
    // The longest common subsequence, from the end.
    let mut longest = vec![0_u16; (rows + 1) * (columns + 1)];
    let at = |row: usize, column: usize| row * (columns + 1) + column;
    let mut pairs = vec![false; rows * columns];
    for row in (0..rows).rev() {
        for column in (0..columns).rev() {
            let is_same = same(&one[row], &other[column]);
            pairs[row * columns + column] = is_same;
            longest[at(row, column)] = if is_same {
                longest[at(row + 1, column + 1)] + 1
            } else {
                longest[at(row + 1, column)].max(longest[at(row, column + 1)])
            };
        }
    }
    let (mut row, mut column) = (0, 0);
    let mut all = Vec::new();
    while row < rows && column < columns {
        if pairs[row * columns + column] {
            let mut said = one[row].clone();
            said.rule.shift_remove("family");
            let words = |said: &Said| said.rule.get("comment").and_then(Json::as_str).unwrap_or_default().to_owned();
            let (mine, theirs) = (words(&one[row]), words(&other[column]));
            let joined = if mine == theirs { mine } else { format!("{mine}; {theirs}") };
            said.rule.insert("comment".to_owned(), joined.into());
            (said.v4, said.v6) = (true, true);
            all.push(said);
            (row, column) = (row + 1, column + 1);
        } else if longest[at(row + 1, column)] >= longest[at(row, column + 1)] {
            all.push(one[row].clone());
            row += 1;
        } else {
            all.push(other[column].clone());
            column += 1;
        }
    }
    all.extend(one.into_iter().skip(row));
    all.extend(other.into_iter().skip(column));
    all
}
