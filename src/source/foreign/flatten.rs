//! Chains with jumps to one list of decisions, of which the first that matches holds. Pure.
//!
//! A jump restricts what its target says to the packets of the jump; what the target does not decide meets the rules after it
//! anyway. A `return` takes packets out of the rest of a chain: where these can be taken away in one conjunction, they are, and
//! otherwise what comes after the chain is written for them first. Conditions that cannot be said make a rule that lets through
//! one that is left out, and a rule that denies one that denies more; a `return` that may or may not happen leaves the rules
//! after it that let through out, while those that deny stay, so that in either case nothing more gets through.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cube::{ALL_KINDS, Cube, NEW, OTHER, SHARED_LIMIT, TWO_LIMITS, UNTRACKED};
use super::model::{Base, Chain, Hook, Rule, Ruleset, Verdict};
use super::names::{Names, Pattern};
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;

/// The most decisions that come of one base chain: as many as an object has rules.
const MAX_DECISIONS: usize = 4096;
/// The most rules that are looked at for one base chain, over all the ways to them.
const MAX_STEPS: usize = 200_000;
/// How deep chains jump: the kernel goes no deeper than 16 (`NFT_JUMP_STACK_SIZE`), and what comes after a chain counts here as well.
const MAX_DEPTH: usize = 64;

/// What is done with packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Accept,
    Drop,
    Reject,
    Log(String),
}

/// What the first chain decides about packets.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Decision {
    /// The packets; without unknown conditions.
    pub(super) cube: Cube,
    /// What becomes of them.
    pub(super) action: Action,
    /// The rule that it came from.
    pub(super) place: Place,
    /// That rule as it was written.
    pub(super) text: String,
}

/// The decisions of a base chain, and what is to be said about them.
#[derive(Debug, Default)]
pub(super) struct Flat {
    /// In their order.
    pub(super) decisions: Vec<Decision>,
    /// What was left out or is wider.
    pub(super) findings: Vec<Finding>,
    /// Programs to whose chains it jumps.
    pub(super) owners: BTreeSet<&'static str>,
    /// What is not decided is left to these.
    pub(super) shared: bool,
}

/// Where packets go on after a chain.
struct After<'c, 'a> {
    chain: &'a Chain,
    next: usize,
    unknown: &'c BTreeSet<String>,
    up: Option<&'c After<'c, 'a>>,
}

/// Whether every packet that came to a chain is decided in it.
#[derive(PartialEq)]
enum End {
    Decided,
    GoesOn,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    base: &'a Base,
    /// Every packet that comes to it.
    all: Cube,
    /// What it does not decide is left to other programs, which forward.
    shared: bool,
    flat: Flat,
    told: BTreeSet<(Arc<str>, usize, String)>,
    /// Denials that would be of everything without what cannot be said: before which decision, where, and what that is.
    everything: Vec<(usize, Place, String)>,
    steps: usize,
    over: bool,
}

/// The decisions of a base chain in their order, its policy last. Where Docker and its like forward, the policy is theirs.
pub(super) fn flatten(ruleset: &Ruleset, base: &Base) -> Flat {
    let all = all(base);
    let flat = Flat::default();
    let shared = base.hook == Hook::Forward && has_owner(ruleset, base.chain);
    let mut walk = Walk {
        ruleset,
        base,
        all: all.clone(),
        shared,
        flat,
        told: BTreeSet::new(),
        everything: Vec::new(),
        steps: 0,
        over: false,
    };
    let Some(chain) = ruleset.chains.get(base.chain) else { return walk.flat };
    if walk.chain(chain, 0, all.clone(), None, 0) == End::GoesOn && !walk.is_shared() {
        walk.policy(&all);
    }
    for (at, place, words) in std::mem::take(&mut walk.everything) {
        let later = walk.flat.decisions.get(at..).unwrap_or_default();
        let finding = if shared || later.iter().any(|decision| decision.action == Action::Accept) {
            let message = format!("nodewall cannot say {words}, and without that the rule would deny everything");
            let help =
                "take the rule out of what is converted, and keep it where it is or write what it is for as a policy";
            Finding::error(Code::NotConverted, &place, message).help(help)
        } else {
            let message =
                format!("nodewall cannot say {words}: the rule is left out, as what comes to it is denied in any case");
            Finding::warning(Code::NotConverted, &place, message)
        };
        walk.flat.findings.push(finding);
    }
    if shared {
        // What nothing is denied after goes on to the others anyway.
        while walk.flat.decisions.last().is_some_and(|last| last.action == Action::Accept) {
            walk.flat.decisions.pop();
        }
        walk.flat.shared = true;
    }
    if walk.over {
        let message = format!(
            "chain {} comes to more than {MAX_DECISIONS} rules, because of what comes after chains that return",
            chain.name
        );
        walk.flat.findings.push(
            Finding::error(Code::NotConverted, &base.place, message)
                .help("write the `return`s as rules that decide, or convert a part"),
        );
    }
    walk.flat
}

/// Whether a chain goes to one of another program, by whatever way.
fn has_owner(ruleset: &Ruleset, chain: usize) -> bool {
    let (mut seen, mut next) = (BTreeSet::from([chain]), vec![chain]);
    while let Some(chain) = next.pop().and_then(|index| ruleset.chains.get(index)) {
        if chain.owner.is_some() {
            return true;
        }
        for rule in &chain.rules {
            if let Verdict::Jump(target) | Verdict::Goto(target) = rule.verdict
                && seen.insert(target)
            {
                next.push(target);
            }
        }
    }
    false
}

/// Every packet that comes to a base chain. The interface that a hook does not know has no name.
fn all(base: &Base) -> Cube {
    let nameless = || Names::any_of([Pattern::Exact(String::new())]);
    let mut all = Cube { kinds: kinds(base.hook, base.v6), ..Cube::of(base.v4, base.v6) };
    match base.hook {
        Hook::Prerouting | Hook::Input => all.output = nameless(),
        Hook::Output => all.input = nameless(),
        Hook::Forward | Hook::Postrouting => {}
    }
    all
}

/// What destinations a hook may see: of IPv4, nothing comes to a host but for itself, for a group, or for all.
pub(super) fn kinds(hook: Hook, v6: bool) -> u8 {
    if hook == Hook::Input && !v6 { ALL_KINDS & !OTHER } else { ALL_KINDS }
}

impl<'a> Walk<'a> {
    /// Whether other programs let through what they forward in the same chain.
    const fn is_shared(&self) -> bool {
        self.shared
    }

    fn policy(&mut self, cube: &Cube) {
        let rule = Rule {
            cube: Cube::full(),
            verdict: self.base.policy.clone(),
            place: self.base.place.clone(),
            text: self.base.text.clone(),
        };
        let action = match self.base.policy {
            // Others decide after nodewall.
            _ if self.shared => Action::Accept,
            Verdict::Accept => Action::Accept,
            Verdict::Reject => Action::Reject,
            _ => Action::Drop,
        };
        self.decide(cube.clone(), action, &rule);
    }

    /// Whether there is no more room.
    fn is_full(&mut self) -> bool {
        self.steps += 1;
        self.over |= self.steps > MAX_STEPS || self.flat.decisions.len() > MAX_DECISIONS;
        self.over
    }

    fn chain(&mut self, chain: &'a Chain, from: usize, cube: Cube, after: Option<&After<'_, 'a>>, depth: usize) -> End {
        let unknown = cube.unknown.clone();
        let (end, left) = self.rules(chain, from, cube, after, depth);
        // Those that may have returned are not decided.
        if left.unknown == unknown { end } else { End::GoesOn }
    }

    /// The end of a chain, and which packets are left there.
    fn rules(
        &mut self,
        chain: &'a Chain,
        from: usize,
        mut cube: Cube,
        after: Option<&After<'_, 'a>>,
        depth: usize,
    ) -> (End, Cube) {
        if depth > MAX_DEPTH {
            self.over = true;
            return (End::Decided, cube);
        }
        // Packets that have left the chain go on after it, whatever becomes of the others.
        let whole = cube.clone();
        let ended = |end: End, cube: &Cube| if *cube == whole { end } else { End::GoesOn };
        for (index, rule) in chain.rules.iter().enumerate().skip(from) {
            if self.is_full() {
                return (End::Decided, cube);
            }
            let matched = cube.and(&rule.cube);
            if matched.is_empty() {
                continue;
            }
            let all = matched == cube;
            match &rule.verdict {
                Verdict::Nothing => {}
                Verdict::Log(text) => self.decide(matched, Action::Log(text.clone()), rule),
                Verdict::Accept | Verdict::Drop | Verdict::Reject | Verdict::Other(_) => {
                    let action = match &rule.verdict {
                        Verdict::Accept => Action::Accept,
                        Verdict::Reject => Action::Reject,
                        Verdict::Other(words) => {
                            let message = format!("{words}: what it matches is denied");
                            self.tell(
                                &rule.place,
                                message,
                                "write in nodewall's policy what shall become of these packets",
                            );
                            Action::Drop
                        }
                        _ => Action::Drop,
                    };
                    self.decide(matched, action, rule);
                    if all {
                        return (ended(End::Decided, &cube), cube);
                    }
                }
                Verdict::Jump(target) | Verdict::Goto(target) => {
                    let Some(next) = self.ruleset.chains.get(*target) else { continue };
                    if let Some(owner) = next.owner {
                        self.leave(owner, next, rule);
                        continue;
                    }
                    let matched = one_limit(matched, next);
                    let is_jump = matches!(rule.verdict, Verdict::Jump(_));
                    let back = After { chain, next: index + 1, unknown: &cube.unknown, up: after };
                    let end = if is_jump {
                        self.chain(next, 0, matched.clone(), Some(&back), depth + 1)
                    } else {
                        self.chain(next, 0, matched.clone(), after, depth + 1)
                    };
                    if end == End::Decided && all {
                        return (ended(End::Decided, &cube), cube);
                    }
                    // After a goto, the rest of this chain is not asked.
                    if !is_jump && let Some(end) = self.returned(&mut cube, &matched, after, depth) {
                        return (ended(end, &cube), cube);
                    }
                }
                Verdict::Return => {
                    if let Some(end) = self.returned(&mut cube, &matched, after, depth) {
                        return (ended(end, &cube), cube);
                    }
                }
            }
        }
        (End::GoesOn, cube)
    }

    /// Takes packets that leave the chain out of what its rest is for; the end of the chain if none are left.
    fn returned(
        &mut self,
        cube: &mut Cube,
        matched: &Cube,
        after: Option<&After<'_, 'a>>,
        depth: usize,
    ) -> Option<End> {
        if *matched == *cube {
            if after.is_some() || self.is_shared() {
                return Some(End::GoesOn);
            }
            self.policy(matched);
            return Some(End::Decided);
        }
        let certain = matched.unknown == cube.unknown && matched.limit == cube.limit && matched.over == cube.over;
        if !certain {
            // It may return or not.
            cube.unknown.extend(matched.unknown.iter().cloned());
            if matched.limit != cube.limit || matched.over != cube.over {
                cube.unknown.insert("a limit on a return".to_owned());
            }
            return None;
        }
        let bare = Cube { unknown: BTreeSet::new(), limit: None, over: None, ..matched.clone() };
        match cube.without(&bare) {
            Some(left) if left.is_empty() => return Some(End::GoesOn),
            Some(left) => *cube = left,
            None => self.resume(after, matched, depth),
        }
        None
    }

    /// What comes after a chain, for these packets.
    fn resume(&mut self, after: Option<&After<'_, 'a>>, cube: &Cube, depth: usize) {
        let Some(After { chain, next, unknown, up }) = after else {
            self.policy(cube);
            return;
        };
        let cube = Cube { unknown: (*unknown).clone(), ..cube.clone() };
        if self.chain(chain, *next, cube.clone(), *up, depth + 1) == End::GoesOn {
            self.resume(*up, &cube, depth + 1);
        }
    }

    /// Notes a decision, as far as it can be said.
    fn decide(&mut self, mut cube: Cube, action: Action, rule: &Rule) {
        let untracked = &self.ruleset.untracked;
        let tracked_only = cube.states == NEW && untracked.iter().any(|other| !cube.and(other).is_empty());
        let untracked_only = cube.states == UNTRACKED && !untracked.is_empty();
        if action == Action::Accept && (tracked_only || untracked_only) || action != Action::Accept && untracked_only {
            cube.unknown.insert("whether `notrack` has met the packet".to_owned());
        }
        if self.base.hook != Hook::Output && (cube.users.take().is_some() | cube.groups.take().is_some()) {
            cube.unknown.insert("whose socket it is, of what comes in or goes through".to_owned());
        }
        if self.base.hook == Hook::Postrouting && !cube.input.is_any() {
            cube.input = Names::default();
            cube.unknown.insert("the interface on which a packet came that leaves".to_owned());
        }
        if cube.over.take().is_some() {
            cube.unknown.insert("being over a limit".to_owned());
        }
        if action != Action::Accept {
            cube.unknown.retain(|words| words != TWO_LIMITS && words != SHARED_LIMIT);
        }
        if cube.unknown.is_empty() {
            self.flat.decisions.push(Decision { cube, action, place: rule.place.clone(), text: rule.text.clone() });
            return;
        }
        let words = cube.unknown.iter().cloned().collect::<Vec<_>>().join("; ");
        match action {
            Action::Accept => {
                let message = format!("nodewall cannot say {words}: the rule is left out, so that less is allowed");
                self.tell(&rule.place, message, "allow what is needed of it in a policy of your own");
            }
            Action::Log(_) => {
                let message = format!("nodewall cannot say {words}: the rule is left out, so that less is logged");
                self.tell(&rule.place, message, "");
            }
            Action::Drop | Action::Reject => {
                cube.unknown.clear();
                // A limit on what is denied, of which more is denied now, would deny less again.
                cube.limit = None;
                if cube.covers(&self.all) {
                    let at = self.flat.decisions.len();
                    if self.told.insert((rule.place.file.clone(), rule.place.start, words.clone())) {
                        self.everything.push((at, rule.place.clone(), words));
                    }
                    return;
                }
                let message =
                    format!("nodewall cannot say {words}: the rule denies what it matches without that, which is more");
                self.tell(&rule.place, message, "narrow or remove it in what is converted");
                self.flat.decisions.push(Decision { cube, action, place: rule.place.clone(), text: rule.text.clone() });
            }
        }
    }

    fn leave(&mut self, owner: &'static str, chain: &Chain, rule: &Rule) {
        if self.flat.owners.insert(owner) {
            let message =
                format!("{} and what else {owner} writes stays where it is and goes on deciding there", chain.name);
            let help = "nodewall only restricts: what these rules deny stays denied, and what they let through needs nodewall's leave as well";
            self.tell(&rule.place, message, help);
        }
    }

    fn tell(&mut self, place: &Place, message: String, help: &str) {
        if self.told.insert((place.file.clone(), place.start, message.clone())) {
            self.flat.findings.push(Finding::warning(Code::NotConverted, place, message).help(help));
        }
    }
}

/// The packets of a jump with a limit: one bucket for one rule. More rules would each have their own.
fn one_limit(mut cube: Cube, target: &Chain) -> Cube {
    if target.rules.len() != 1 && (cube.limit.is_some() || cube.over.is_some()) {
        cube.unknown.insert(SHARED_LIMIT.to_owned());
    }
    cube
}
