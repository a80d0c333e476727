//! What one nf_tables transaction changes, and what a table looks like when it is read back.

use std::collections::{BTreeMap, BTreeSet};

use super::ir::{BaseChain, Elements, Rule, Ruleset, Set};

/// One transaction: all of it or nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// The generation id it was planned against (`NFNL_BATCH_GENID`); the kernel refuses it with `ERESTART` when another
    /// transaction came between. `None` does not compare.
    pub generation: Option<u32>,
    /// The changes, in order.
    pub changes: Vec<Change>,
}

/// The generation id that a transaction makes of another one (nf_tables_commit: 0 is left out).
pub fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// One change to our table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Create the table; nothing if it is there.
    AddTable,
    /// Delete the table and everything in it; it must be there.
    DeleteTable,
    /// Create a chain without rules, or, for a base chain that is there, set its policy.
    AddChain {
        /// Its name.
        name: String,
        /// Hook, priority and policy of a base chain.
        base: Option<BaseChain>,
    },
    /// Delete a chain; it must be empty and nothing may jump to it at the end of the transaction.
    DeleteChain {
        /// Its name.
        name: String,
    },
    /// Delete all rules of a chain.
    FlushChain {
        /// Its name.
        name: String,
    },
    /// Add a rule.
    AddRule {
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
        /// Before the rule with this handle; at the end of the chain without one.
        before: Option<u64>,
        /// Of the named sets that it looks up, those with `flags interval` and keys that the kernel has in host byte order: it is
        /// told to turn such a key around before it looks it up there.
        interval_sets: BTreeSet<String>,
    },
    /// Delete a rule.
    DeleteRule {
        /// The chain.
        chain: String,
        /// The rule's handle.
        handle: u64,
    },
    /// Create a named set or map with its elements.
    AddSet {
        /// Its name.
        name: String,
        /// What it is and what is in it.
        set: Set,
    },
    /// Delete a named set; no rule may use it at the end of the transaction.
    DeleteSet {
        /// Its name.
        name: String,
    },
    /// Add elements to a named set.
    AddElements {
        /// The set's name.
        name: String,
        /// The set's shape; its `elements` are the ones to add.
        set: Set,
    },
    /// Delete elements of a named set.
    DeleteElements {
        /// The set's name.
        name: String,
        /// The set's shape; its `elements` are the ones to delete, each exactly as it is in the set.
        set: Set,
    },
}

impl Change {
    /// The rule comment ("kubelet#1 20-kubelet.toml:14") or the object it is about, for error messages.
    pub fn subject(&self) -> String {
        match self {
            Self::AddTable | Self::DeleteTable => format!("table {}", super::TABLE),
            Self::AddChain { name, .. } | Self::DeleteChain { name } | Self::FlushChain { name } => {
                format!("chain {name}")
            }
            Self::AddRule { chain, rule, .. } => match &rule.comment {
                Some(comment) => format!("rule {comment} in chain {chain}"),
                None => format!("a rule in chain {chain}"),
            },
            Self::DeleteRule { chain, handle } => format!("rule with handle {handle} in chain {chain}"),
            Self::AddSet { name, .. }
            | Self::DeleteSet { name }
            | Self::AddElements { name, .. }
            | Self::DeleteElements { name, .. } => format!("set {name}"),
        }
    }
}

/// Our table as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// The generation id at which all of it was read.
    pub generation: u32,
    /// Whether the table is there at all.
    pub exists: bool,
    /// What is in it. Sets that were not asked for have no elements; `unread` names them.
    pub ruleset: Ruleset,
    /// Handle and counter of every rule, in the order of the chain's rules.
    pub rules: BTreeMap<String, Vec<RuleState>>,
    /// Sets whose elements were not read.
    pub unread: Vec<String>,
    /// Things in our table that the IR has no words for ("flowtable ft", "set x of type mark"), each a drift.
    pub foreign: Vec<String>,
}

/// What the kernel keeps about a rule beside its expressions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RuleState {
    /// Its handle.
    pub handle: u64,
    /// Packets and bytes, if it has a counter.
    pub counter: Option<(u64, u64)>,
}

impl Set {
    /// The same set with other elements.
    #[must_use]
    pub fn with(&self, elements: Elements) -> Self {
        Self { key: self.key.clone(), interval: self.interval, map: self.map, dynamic: self.dynamic, elements }
    }
}
