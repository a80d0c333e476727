//! What outlives the process: numbered versions of the documents, which of them is confirmed, what waits for a confirmation, and
//! what an operator did in an emergency.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::selftest::{Probe, Tried};
use crate::nft::ir::{Chain, Ruleset};
use crate::policy::model::Policy;
use crate::policy::settings::NodeSettings;

/// The texts of documents, to decode them again later.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Texts {
    /// The policy documents, by a name that holds all that merging them needs.
    pub policy: BTreeMap<String, Arc<str>>,
    /// nodewall.toml.
    pub settings: Arc<str>,
}

impl Texts {
    /// SHA-256 over names and texts, in hexadecimal: whether two sets of documents are the same.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for text in [&*self.settings].into_iter().chain(self.policy.iter().flat_map(|(name, text)| [&**name, &**text]))
        {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Documents without errors, with the number of the generation that they make.
#[derive(Clone, PartialEq, Debug)]
pub struct Version {
    /// The generation's number.
    pub number: u64,
    /// Where they came from, for people: "files".
    pub origin: String,
    /// The documents.
    pub policy: Policy,
    /// The settings.
    pub settings: NodeSettings,
    /// What its self-test tries beside what is built in.
    pub probes: Vec<Probe>,
    /// Their texts.
    pub texts: Texts,
}

/// How documents come into force that go again unless they are confirmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    /// How long they have.
    pub term: Term,
    /// What confirms them.
    pub confirmation: Confirmation,
}

/// What confirms a generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Confirmation {
    /// Somebody, with `nodewall confirm`.
    Operator,
    /// Its self-test; somebody may do it before, too.
    SelfTest {
        /// What the probes said without it; `None` as long as nobody has asked them.
        before: Option<Vec<Tried>>,
    },
}

/// A time until which something holds, and how long that was to be: a clock that jumps back does not make it longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Term {
    /// Milliseconds since 1970-01-01 UTC.
    pub until: u64,
    /// Milliseconds.
    pub period: u64,
}

impl Term {
    /// From now on.
    pub fn new(now: u64, period: Duration) -> Self {
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        Self { until: now.saturating_add(period), period }
    }

    /// The whole of it.
    pub fn whole(self) -> Duration {
        Duration::from_millis(self.period)
    }

    /// What is left of it; `None` when it is over.
    pub fn left(self, now: u64) -> Option<Duration> {
        let left = self.until.saturating_sub(now).min(self.period);
        (left > 0).then(|| Duration::from_millis(left))
    }
}

/// A generation that is meant to be in force although the documents in place say something else.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pin {
    /// The generation.
    pub generation: u64,
    /// The digest of the documents in place. As soon as they are others, they count again.
    pub documents: String,
    /// Why, for people.
    pub why: String,
    /// Whether the documents in place were given up because nobody confirmed them.
    pub expired: bool,
}

/// A generation that goes unless somebody confirms it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The generation.
    pub generation: u64,
    /// The digest of the documents in place when it was applied.
    pub documents: String,
    /// How long it has.
    pub term: Term,
    /// What the probes of its self-test said without it; `None` when it has none and waits for somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Vec<Tried>>,
}

/// What an operator did in an emergency. It stands above all documents.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Emergency {
    /// Only essentials and failsafe may begin a flow.
    Panic {
        /// Who switched it on: "uid 0 (pid 123)".
        by: String,
        /// Why; may be empty.
        reason: String,
    },
    /// Everything is let through.
    BreakGlass {
        /// How long.
        term: Term,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// What is kept beside the generations.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// See [`Pin`].
    pub pin: Option<Pin>,
    /// See [`Pending`].
    pub pending: Option<Pending>,
    /// See [`Emergency`].
    pub emergency: Option<Emergency>,
    /// Policies that are over, by name and `expires` (seconds since 1970-01-01 UTC): they stay so when the clock goes back.
    pub expired: BTreeSet<(String, u64)>,
}

impl Emergency {
    /// A sentence for people.
    pub fn words(&self) -> String {
        let (what, by, reason) = match self {
            Self::Panic { by, reason } => ("PANIC: only essentials and failsafe are let through", by, reason),
            Self::BreakGlass { by, reason, .. } => ("BREAK-GLASS: everything is let through", by, reason),
        };
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        format!("{what}, by {by}{reason}")
    }
}

impl Record {
    /// Whether documents with this digest are replaced by this generation.
    pub(super) fn holds(&self, number: u64, documents: &str) -> bool {
        let pinned = self.pin.as_ref().is_some_and(|pin| pin.generation == number && pin.documents == documents);
        let pending = |pending: &Pending| pending.generation == number && pending.documents == documents;
        pinned || self.pending.as_ref().is_some_and(pending)
    }

    /// Why something else is in force than the documents in place say.
    pub(super) fn words(&self) -> Option<String> {
        if let Some(emergency) = &self.emergency {
            return Some(emergency.words());
        }
        let pin = self.pin.as_ref()?;
        Some(match pin.expired {
            true => format!("{}; generation {} is in force until the documents change", pin.why, pin.generation),
            false => format!("generation {} is in force until the documents change: {}", pin.generation, pin.why),
        })
    }
}

/// What was found on disk at the start.
#[derive(Clone, PartialEq, Debug)]
pub struct Memory {
    /// The record.
    pub record: Record,
    /// The number of the next new generation.
    pub next: u64,
    /// The confirmed generation.
    pub confirmed: Option<Version>,
    /// Whether that is an older one, because the one that was confirmed last is damaged.
    pub older: bool,
    /// The generation that the record's `pending`, else its `pin`, names.
    pub meant: Option<Version>,
    /// What is left of the record's `pending`; nothing after a reboot, which goes back to what is confirmed.
    pub pending_left: Option<Duration>,
    /// What is left of a break-glass; nothing after a reboot.
    pub emergency_left: Option<Duration>,
}

impl Default for Memory {
    fn default() -> Self {
        let record = Record::default();
        Self { record, next: 1, confirmed: None, older: false, meant: None, pending_left: None, emergency_left: None }
    }
}

/// Something to be kept on disk.
#[derive(Clone, PartialEq, Debug)]
pub enum Keep {
    /// A generation, with what it compiles to on this machine.
    Generation {
        /// Its number.
        number: u64,
        /// Where it came from.
        origin: String,
        /// Its documents.
        texts: Texts,
        /// What it comes to now.
        ruleset: Arc<Ruleset>,
        /// What a boot loads: the same, or less where a boot must not count on all of it.
        boot: Arc<Ruleset>,
    },
    /// The number of the generation that a boot loads.
    Confirmed(u64),
    /// The record.
    Record(Record),
}

/// Whether a boot with the one ruleset would do something else than with the other. Interfaces that come and go are elements
/// of the dispatch maps, and a boot has others anyway: those it knows by name go where they went, the rest goes by pattern or
/// counts as unknown until the daemon is there. Everything else (a chain for another role, the addresses of the cluster API, a
/// set) is what a boot stands on.
///
/// Chains on a device are not what a boot loads: the device may not be there yet.
pub(super) fn boots_otherwise(one: &Ruleset, other: &Ruleset) -> bool {
    let of_boot = |(_, chain): &(&String, &Chain)| chain.base.is_none_or(|base| base.device.is_none());
    let dispatch = |name: &str| name.contains("_interfaces/");
    !one.chains.iter().filter(of_boot).eq(other.chains.iter().filter(of_boot))
        || !one.sets.keys().eq(other.sets.keys())
        || one.sets.iter().any(|(name, set)| !dispatch(name) && other.sets.get(name) != Some(set))
}
