//! A fleet: what its nodes say that they have in force, in groups that mean the same, and how these differ.
//!
//! `survey` sorts and compares, `api` knows what the documents of the API mean, `packets` says what a difference is to packets, and
//! `words` says all that to people.

pub mod api;
pub mod difference;
pub mod names;
pub mod packets;
pub mod survey;
pub mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::interface::Role;
use crate::policy::selector::Labels;

/// The nodes by name.
pub type Members = BTreeMap<String, Member>;

/// What an API says of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Its labels; `None` where there is no Node of this name.
    pub labels: Option<Labels>,
    /// The addresses that its Node has.
    pub addresses: Vec<IpAddr>,
    /// What nodewall says there; `None` where there is no HostState of this name.
    pub report: Option<Report>,
}

/// What nodewall says of a node: the status of a HostState, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The version of nodewall.
    pub version: Option<String>,
    /// "enforce" or "audit".
    pub mode: Option<String>,
    /// A hash of all that is in force.
    pub hash: Option<String>,
    /// A hash of each policy, by "tier/name".
    pub policies: BTreeMap<String, String>,
    /// How many policies there was no room for.
    pub omitted: u64,
    /// A hash of what is done with packets that no policy decides.
    pub defaults: Option<String>,
    /// A hash of the ways that no policy can close.
    pub failsafe: Option<String>,
    /// Ready, InSync, Degraded and Unconfirmed.
    pub conditions: Vec<Condition>,
    /// How often others changed our table.
    pub drifts: u64,
    /// When they did the last time (RFC 3339).
    pub drifted: Option<String>,
    /// When it was written the last time (RFC 3339), where the server tells.
    pub written: Option<String>,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

/// One thing that holds on a node or does not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Condition {
    /// "Ready", "InSync", "Degraded" or "Unconfirmed".
    pub kind: String,
    /// "True", "False" or "Unknown".
    pub status: String,
    /// One word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Since when (RFC 3339).
    pub since: String,
}

/// An interface of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its rail: "rail0".
    pub rail: Option<String>,
    /// How far rules reach there: "enforced", ...
    pub coverage: Option<String>,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
}

/// How it is with a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum State {
    /// A policy is in force, and nothing is amiss.
    InForce,
    /// A policy is in force, but not the newest, or the kernel has another.
    Degraded,
    /// No policy is in force, or that is not known.
    NotReady,
    /// Nothing of nodewall's is known there.
    Without,
}

impl Report {
    /// The condition of a kind.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    fn is(&self, kind: &str, status: &str) -> bool {
        self.condition(kind).is_some_and(|condition| condition.status == status)
    }
}

impl Member {
    /// How it is with it.
    pub fn state(&self) -> State {
        let Some(report) = &self.report else { return State::Without };
        if !report.is("Ready", "True") {
            return State::NotReady;
        }
        if report.is("Degraded", "True") || report.is("InSync", "False") { State::Degraded } else { State::InForce }
    }

    /// The labels that `nodes` selectors of policies look at, as far as the cluster knows them.
    pub fn labels_called(&self, name: &str) -> Labels {
        let mut labels = self.labels.clone().unwrap_or_default();
        labels.entry("name".to_owned()).or_insert_with(|| name.to_owned());
        labels
    }
}
