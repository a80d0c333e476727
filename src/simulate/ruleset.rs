//! What a compiled ruleset does with a packet: an interpreter of the nft IR with the kernel's meaning (nf_tables_core.c,
//! `nft_do_chain`), the judge between the policy and the rules it was compiled to.

use super::view::View;
use crate::nft::ir::{
    BaseChain, ChainPolicy, ElementKey, Elements, Hook, Reject, Rule, Ruleset, SetRef, Statement, Value, Verdict,
    ct_state,
};
use crate::nft::key::{Datum, Key};
use crate::nft::longest::Met;

/// How many jumps may be open at once (`NFT_JUMP_STACK_SIZE`, include/net/netfilter/nf_tables.h).
const DEEPEST: usize = 16;
/// Where others rewrite destinations (nft(8): `dstnat`).
const DNAT_PRIORITY: i32 = -100;

/// What a ruleset did with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// What happens to the packet.
    pub end: End,
    /// The comments of the rules whose counter counted it, in order; a rule without a comment counts as "".
    pub counted: Vec<String>,
    /// The prefixes of the `log` statements that it reached, in order. Limits and meters always let it through.
    pub logged: Vec<String>,
    /// How much it met.
    pub met: Met,
}

/// How a packet leaves a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Every base chain accepted it.
    Accepted,
    /// It is gone.
    Dropped,
    /// It is gone and its sender told.
    Rejected(Reject),
}

/// A ruleset that the kernel would have refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    /// A jump or goto to a chain that is not there.
    #[error("no chain \"{0}\"")]
    Chain(String),
    /// A lookup in a set that is not there.
    #[error("no set \"{0}\"")]
    Set(String),
    /// A set that does not fit what is looked up in it: other types, or a verdict map where a set should be or the reverse.
    #[error("set \"{0}\" does not fit its lookup")]
    Fit(String),
    /// A value whose length is not that of its key.
    #[error("a value of another length than its key in a rule with comment \"{0}\"")]
    Length(String),
    /// More than 16 jumps deep, or a loop.
    #[error("chain \"{0}\" is reached by a loop or by more than 16 jumps")]
    Depth(String),
    /// A statement that is not ours.
    #[error("foreign statement \"{0}\"")]
    Foreign(String),
}

/// Runs the base chains of every hook that a packet passes, in the kernel's order, as far as it gets. What rules of ours set on
/// its way (the packet mark, no tracking) later chains see.
///
/// # Errors
/// Whatever the kernel would not have loaded: see [`Broken`].
pub fn travel(ruleset: &Ruleset, view: &View) -> Result<Run, Broken> {
    let mut whole = Run { end: End::Accepted, counted: Vec::new(), logged: Vec::new(), met: Met::default() };
    let mut carried = view.clone();
    for hook in view.hooks() {
        let (run, after) = at_hook(ruleset, *hook, carried.at(*hook))?;
        whole.counted.extend(run.counted);
        whole.logged.extend(run.logged);
        whole.met = whole.met.then(run.met, 0);
        whole.end = run.end;
        if run.end != End::Accepted {
            break;
        }
        (carried.mark, carried.state) = (after.mark, after.state);
    }
    Ok(whole)
}

/// Runs the base chains at one hook over a packet, lowest priority first.
///
/// # Errors
/// Whatever the kernel would not have loaded: see [`Broken`].
pub fn run(ruleset: &Ruleset, hook: Hook, view: &View) -> Result<Run, Broken> {
    Ok(at_hook(ruleset, hook, view.clone())?.0)
}

fn at_hook(ruleset: &Ruleset, hook: Hook, view: View) -> Result<(Run, View), Broken> {
    let device = |base: &BaseChain| match (&base.device, &view.input) {
        (None, _) => true,
        (Some(wanted), Some(there)) => wanted.as_name() == there.name,
        (Some(_), None) => false,
    };
    let mut bases: Vec<_> = ruleset
        .chains
        .iter()
        .filter_map(|(name, chain)| {
            chain.base.filter(|base| base.hook == hook && device(base)).map(|base| (base, name))
        })
        .collect();
    bases.sort_by_key(|(base, _)| base.priority);
    let mut interpreter = Interpreter { ruleset, view, counted: Vec::new(), logged: Vec::new(), met: Met::default() };
    for (base, name) in bases {
        if hook == Hook::Output && base.priority > DNAT_PRIORITY {
            interpreter.view.translate();
        }
        let end = match interpreter.base(name)? {
            Some(end) => end,
            None if base.policy == ChainPolicy::Drop => End::Dropped,
            None => End::Accepted,
        };
        if end != End::Accepted {
            return Ok(interpreter.finish(end));
        }
    }
    Ok(interpreter.finish(End::Accepted))
}

struct Interpreter<'a> {
    ruleset: &'a Ruleset,
    view: View,
    counted: Vec<String>,
    logged: Vec<String>,
    met: Met,
}

/// What a rule came to.
enum Step {
    /// The next rule.
    Next,
    /// A verdict.
    Verdict(Verdict),
    /// A reject, which ends everything.
    Reject(Reject),
}

impl<'a> Interpreter<'a> {
    fn finish(self, end: End) -> (Run, View) {
        (Run { end, counted: self.counted, logged: self.logged, met: self.met }, self.view)
    }

    /// Runs a base chain; `None` when its end is reached or it returns, so that its policy holds.
    fn base(&mut self, name: &'a str) -> Result<Option<End>, Broken> {
        let mut rules = self.rules(name)?.iter();
        let mut stack = Vec::new();
        // Gotos open no level, so that only a count notices a ring of them.
        let mut gotos = 0;
        loop {
            let Some(rule) = rules.next() else {
                match stack.pop() {
                    Some(caller) => rules = caller,
                    None => return Ok(None),
                }
                continue;
            };
            let verdict = match self.rule(rule)? {
                Step::Next => continue,
                Step::Reject(reject) => return Ok(Some(End::Rejected(reject))),
                Step::Verdict(verdict) => verdict,
            };
            match verdict {
                Verdict::Accept => return Ok(Some(End::Accepted)),
                Verdict::Drop => return Ok(Some(End::Dropped)),
                Verdict::Return => match stack.pop() {
                    Some(caller) => rules = caller,
                    None => return Ok(None),
                },
                Verdict::Jump(chain) => {
                    if stack.len() == DEEPEST {
                        return Err(Broken::Depth(chain));
                    }
                    stack.push(std::mem::replace(&mut rules, self.rules(&chain)?.iter()));
                    self.met.depth = self.met.depth.max(stack.len());
                }
                Verdict::Goto(chain) => {
                    gotos += 1;
                    if gotos > self.ruleset.chains.len() * DEEPEST {
                        return Err(Broken::Depth(chain));
                    }
                    rules = self.rules(&chain)?.iter();
                }
            }
        }
    }

    fn rules(&mut self, chain: &str) -> Result<&'a [Rule], Broken> {
        let found = self.ruleset.chains.get(chain).ok_or_else(|| Broken::Chain(chain.to_owned()))?;
        self.met.chains += 1;
        Ok(&found.rules)
    }

    fn rule(&mut self, rule: &Rule) -> Result<Step, Broken> {
        self.met.rules += 1;
        for statement in &rule.statements {
            match statement {
                Statement::Match { key, negated, value } => {
                    let Some(read) = self.view.read(*key) else { return Ok(Step::Next) };
                    let equal = compare(&read, value)
                        .ok_or_else(|| Broken::Length(rule.comment.clone().unwrap_or_default()))?;
                    if equal == *negated {
                        return Ok(Step::Next);
                    }
                }
                Statement::Lookup { keys, negated, set } => {
                    let Some(read) = self.read_all(keys) else { return Ok(Step::Next) };
                    let found = match self.find(&read, set)? {
                        Found::Verdict(_) => return Err(Broken::Fit(name_of(set))),
                        Found::Element => true,
                        Found::Nothing => false,
                    };
                    if found == *negated {
                        return Ok(Step::Next);
                    }
                }
                Statement::Vmap { keys, map } => {
                    let Some(read) = self.read_all(keys) else { return Ok(Step::Next) };
                    match self.find(&read, map)? {
                        Found::Verdict(verdict) => return Ok(Step::Verdict(verdict)),
                        Found::Element => return Err(Broken::Fit(name_of(map))),
                        // nft_lookup.c: a miss is NFT_BREAK.
                        Found::Nothing => return Ok(Step::Next),
                    }
                }
                Statement::Counter => self.counted.push(rule.comment.clone().unwrap_or_default()),
                Statement::Limit(_) => {}
                Statement::Meter { keys, set, .. } => {
                    let fits = self.ruleset.sets.get(set).ok_or_else(|| Broken::Set(set.clone()))?;
                    if fits.dynamic.is_none()
                        || !fits.key.iter().eq(keys.iter().map(|key| key.data_type()).collect::<Vec<_>>().iter())
                    {
                        return Err(Broken::Fit(set.clone()));
                    }
                    if self.read_all(keys).is_none() {
                        return Ok(Step::Next);
                    }
                    self.met.lookups += 1;
                }
                Statement::Notrack => self.view.state = ct_state::UNTRACKED,
                Statement::MarkSet(bits) => self.view.mark |= bits,
                Statement::MarkClear(bits) => self.view.mark &= !bits,
                Statement::Log { prefix, .. } => self.logged.push(prefix.clone()),
                Statement::Reject(reject) => return Ok(Step::Reject(*reject)),
                Statement::Verdict(verdict) => return Ok(Step::Verdict(verdict.clone())),
                Statement::Foreign(words) => return Err(Broken::Foreign(words.clone())),
            }
        }
        Ok(Step::Next)
    }

    fn read_all(&self, keys: &[Key]) -> Option<Vec<Datum>> {
        keys.iter().map(|key| self.view.read(*key)).collect()
    }

    fn find(&mut self, read: &[Datum], set: &SetRef) -> Result<Found, Broken> {
        self.met.lookups += 1;
        let misfit = || Broken::Fit(name_of(set));
        let elements = match set {
            SetRef::Anonymous(elements) => elements,
            SetRef::Named(name) => {
                let set = self.ruleset.sets.get(name).ok_or_else(|| Broken::Set(name.clone()))?;
                let sizes = set.key.iter().map(|data_type| data_type.size());
                if !sizes.eq(read.iter().map(|datum| datum.bytes().len())) {
                    return Err(misfit());
                }
                &set.elements
            }
        };
        match (elements, read) {
            (Elements::V4(ranges), [address]) if address.bytes().len() == 4 => {
                let number = u32::try_from(address.number()).map_err(|_| misfit())?;
                Ok(if ranges.contains(number) { Found::Element } else { Found::Nothing })
            }
            (Elements::V6(ranges), [address]) if address.bytes().len() == 16 => {
                Ok(if ranges.contains(address.number()) { Found::Element } else { Found::Nothing })
            }
            (Elements::V4(_) | Elements::V6(_), _) => Err(misfit()),
            (Elements::Keys(keys), _) => {
                for (key, verdict) in keys {
                    if covers(key, read).ok_or_else(misfit)? {
                        return Ok(verdict.clone().map_or(Found::Element, Found::Verdict));
                    }
                }
                Ok(Found::Nothing)
            }
        }
    }
}

enum Found {
    Nothing,
    Element,
    Verdict(Verdict),
}

fn name_of(set: &SetRef) -> String {
    match set {
        SetRef::Named(name) => name.clone(),
        SetRef::Anonymous(_) => "{ ... }".to_owned(),
    }
}

/// Whether every field lies in its range; `None` if a field has another length or there are more or fewer of them.
fn covers(key: &ElementKey, read: &[Datum]) -> Option<bool> {
    if key.0.len() != read.len() {
        return None;
    }
    let mut all = true;
    for ((start, end), datum) in key.0.iter().zip(read) {
        all &= within(datum, start, end)?;
    }
    Some(all)
}

/// Whether the value compares equal; `None` if its length is not the key's.
fn compare(read: &Datum, value: &Value) -> Option<bool> {
    match value {
        Value::Is(wanted) => same_length(read, wanted).then(|| read == wanted),
        Value::Prefix(wanted, bits) => {
            let width = u32::try_from(read.bytes().len() * 8).ok()?;
            let shift = width.checked_sub(u32::from(*bits)).filter(|_| same_length(read, wanted))?;
            // A shift by all 128 bits is a prefix of length 0: everything.
            let high = |number: u128| number.checked_shr(shift).unwrap_or(0);
            Some(high(read.number()) == high(wanted.number()))
        }
        Value::Range(start, end) => within(read, start, end),
        Value::Flags(bits) => Some(read.number() & u128::from(*bits) != 0),
    }
}

fn within(read: &Datum, start: &Datum, end: &Datum) -> Option<bool> {
    (same_length(read, start) && same_length(read, end)).then(|| (start.bytes()..=end.bytes()).contains(&read.bytes()))
}

fn same_length(one: &Datum, other: &Datum) -> bool {
    one.bytes().len() == other.bytes().len()
}

#[cfg(test)]
mod tests;
