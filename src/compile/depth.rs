//! How deep the kernel finds a ruleset: it counts every jump and goto on the way from a base chain, and refuses a ruleset in which a way
//! has more than so many, whether a packet can go it or not (`nft_chain_validate`).

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::ir::{Elements, Rule, Ruleset, SetRef, Statement, Verdict};

/// The most jumps and gotos on one way from a base chain (`NFT_JUMP_STACK_SIZE`, include/net/netfilter/nf_tables.h, less the base chain).
const MOST: usize = 15;

/// Whether the kernel finds it shallow enough. A loop is none.
pub(super) fn fits(ruleset: &Ruleset) -> bool {
    let mut walk = Walk { ruleset, known: BTreeMap::new(), open: BTreeSet::new() };
    let mut bases = ruleset.chains.iter().filter(|(_, chain)| chain.base.is_some());
    bases.all(|(name, _)| walk.below(name).is_some_and(|depth| depth <= MOST))
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    known: BTreeMap<&'a str, usize>,
    open: BTreeSet<&'a str>,
}

impl<'a> Walk<'a> {
    /// How many jumps and gotos follow each other from this chain on; `None` for a loop.
    fn below(&mut self, chain: &'a str) -> Option<usize> {
        if let Some(known) = self.known.get(chain) {
            return Some(*known);
        }
        if !self.open.insert(chain) {
            return None;
        }
        let rules = self.ruleset.chains.get(chain).map(|chain| chain.rules.as_slice()).unwrap_or_default();
        let next: BTreeSet<&str> = rules.iter().flat_map(|rule| self.targets(rule)).collect();
        let mut deepest = 0;
        for target in next {
            deepest = deepest.max(1 + self.below(target)?);
        }
        self.open.remove(chain);
        self.known.insert(chain, deepest);
        Some(deepest)
    }

    /// Where a rule leads: by its verdict, or by those of its map.
    fn targets(&self, rule: &'a Rule) -> BTreeSet<&'a str> {
        let of = |verdict: &'a Verdict| match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain.as_str()),
            Verdict::Accept | Verdict::Drop | Verdict::Return => None,
        };
        let of_elements = |elements: &'a Elements| -> BTreeSet<&'a str> {
            match elements {
                Elements::Keys(keys) => keys.values().flatten().filter_map(of).collect(),
                Elements::V4(_) | Elements::V6(_) => BTreeSet::new(),
            }
        };
        let of_statement = |statement: &'a Statement| match statement {
            Statement::Verdict(verdict) => of(verdict).into_iter().collect(),
            Statement::Vmap { map: SetRef::Anonymous(elements), .. } => of_elements(elements),
            Statement::Vmap { map: SetRef::Named(name), .. } => {
                self.ruleset.sets.get(name).map(|set| of_elements(&set.elements)).unwrap_or_default()
            }
            _ => BTreeSet::new(),
        };
        rule.statements.iter().flat_map(of_statement).collect()
    }
}
