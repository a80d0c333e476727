//! What is kept of the states of nodes: as much as tells what is news. Decides, and does nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value as Json;

use crate::source::object::news::{News, news};
use crate::source::object::status::{Condition, DriftCount, HostStateStatus};

/// The conditions that news are of.
const CONDITIONS: [&str; 2] = ["Ready", "Degraded"];

/// A HostState, which has the name of its node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Subject {
    /// Its name.
    pub(super) name: String,
    /// Another one of the same name has another.
    pub(super) uid: String,
    /// `resourceVersion`.
    pub(super) version: String,
}

/// A status, as far as news are of it.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    drift: Option<DriftCount>,
}

/// The states, as they were seen last.
#[derive(Default)]
pub(super) struct Seen {
    held: BTreeMap<String, Held>,
    settled: bool,
}

struct Held {
    version: String,
    /// `None`: it said nothing yet, or nothing that is understood.
    status: Option<Status>,
}

impl Seen {
    /// What is news of an object that is seen. Before all were seen once, nothing is: who watched before told it.
    pub(super) fn see(&mut self, object: &Json) -> Option<(Subject, Vec<News>)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Json::as_str).map(str::to_owned);
        let name = text("/metadata/name")?;
        let version = text("/metadata/resourceVersion")?;
        let held = self.held.entry(name.clone()).or_insert(Held { version: String::new(), status: None });
        held.version.clone_from(&version);
        // One that cannot be read says nothing, and what was before stays.
        let Status { conditions, drift } = Status::deserialize(object.get("status")?).ok()?;
        let after = HostStateStatus { conditions, drift, ..HostStateStatus::default() };
        let told = match (self.settled, &mut held.status) {
            (false, _) => Vec::new(),
            (true, None) => news(None, &after),
            (true, Some(status)) => {
                // It is replaced below.
                let (conditions, drift) = (std::mem::take(&mut status.conditions), status.drift.take());
                news(Some(&HostStateStatus { conditions, drift, ..HostStateStatus::default() }), &after)
            }
        };
        held.status = Some(trimmed(after));
        (!told.is_empty()).then(|| (Subject { name, uid: text("/metadata/uid").unwrap_or_default(), version }, told))
    }

    /// Whether this version of a state was seen.
    pub(super) fn has(&self, name: &str, version: Option<&str>) -> bool {
        self.held.get(name).is_some_and(|held| Some(held.version.as_str()) == version)
    }

    /// These are all that there are, and all were seen.
    pub(super) fn settle(&mut self, names: &BTreeSet<String>) {
        self.settled = true;
        // Where one answer has nobody and the next one everybody, everybody would be new.
        if !names.is_empty() {
            self.held.retain(|name, _| names.contains(name));
        }
    }
}

/// A state without what makes no difference to what comes after it.
fn trimmed(status: HostStateStatus) -> Status {
    let kept = status.conditions.into_iter().filter(|condition| CONDITIONS.contains(&condition.kind.as_str()));
    let short = |condition: Condition| Condition {
        message: String::new(),
        last_transition_time: String::new(),
        observed_generation: None,
        ..condition
    };
    // Collected into place, it would keep the room for all of them.
    let mut conditions: Vec<Condition> = kept.map(short).collect();
    conditions.shrink_to_fit();
    Status { conditions, drift: status.drift }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn state(name: &str, version: u64, degraded: &str, drifts: u64) -> Json {
        let condition = |kind: &str, status: &str, reason: &str| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": format!("{reason} it is"),
                "lastTransitionTime": "2026-11-26T06:00:00Z",
            })
        };
        let amiss = if degraded == "AsWanted" { "False" } else { "True" };
        let conditions = [
            condition("Ready", "True", "PolicyInForce"),
            condition("InSync", "True", "InSync"),
            condition("Degraded", amiss, degraded),
            condition("Unconfirmed", "False", "Confirmed"),
        ];
        json!({
            "metadata": { "name": name, "uid": format!("u-{name}"), "resourceVersion": version.to_string() },
            "spec": { "node": name },
            "status": {
                "conditions": conditions,
                "drift": { "count": drifts, "last": format!("time {drifts}") },
                "interfaces": "what a version of tomorrow says",
            },
        })
    }

    fn reasons(told: Option<(Subject, Vec<News>)>) -> Vec<&'static str> {
        told.into_iter().flat_map(|(_, news)| news).map(|news| news.reason).collect()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_was_so_before_is_not_told_and_what_comes_is() {
        let mut seen = Seen::default();
        assert_eq!(seen.see(&state("a", 1, "PolicyRefused", 7)), None);
        assert_eq!(seen.see(&state("a", 2, "ClusterAway", 8)), None, "not before all were seen");
        assert!(seen.has("a", Some("2")) && !seen.has("a", Some("1")) && !seen.has("b", Some("2")));
        seen.settle(&names(&["a"]));
        assert_eq!(seen.see(&state("a", 3, "ClusterAway", 8)), None);
        let (subject, news) = seen.see(&state("a", 4, "AsWanted", 9)).unwrap();
        assert_eq!((subject.uid.as_str(), subject.version.as_str()), ("u-a", "4"));
        assert_eq!(news.iter().map(|news| news.reason).collect::<Vec<_>>(), ["DriftRepaired", "BackInOrder"]);
        assert!(news[0].note.contains("once, the last time at time 9"), "{}", news[0].note);
        // Of a node that comes later, what is amiss is told, and not what it counted before.
        assert_eq!(seen.see(&state("b", 5, "AsWanted", 9)), None);
        assert_eq!(reasons(seen.see(&state("c", 6, "PolicyRefused", 9))), ["PolicyRefused"]);
    }

    #[test]
    fn one_that_says_nothing_or_cannot_be_read_is_no_news() {
        let mut seen = Seen::default();
        seen.see(&state("a", 1, "AsWanted", 0));
        seen.settle(&names(&["a"]));
        let mut broken = state("a", 2, "AsWanted", 0);
        broken["status"]["conditions"] = json!("none");
        assert_eq!(seen.see(&broken), None);
        assert!(seen.has("a", Some("2")), "it is not asked for again");
        assert_eq!(seen.see(&json!({ "metadata": { "name": "b", "resourceVersion": "3" } })), None);
        assert_eq!(seen.see(&json!({})), None);
        assert_eq!(reasons(seen.see(&state("a", 4, "PolicyRefused", 0))), ["PolicyRefused"]);
    }

    #[test]
    fn who_is_gone_is_forgotten_and_an_answer_without_anybody_forgets_nobody() {
        let mut seen = Seen::default();
        seen.see(&state("a", 1, "PolicyRefused", 0));
        seen.see(&state("b", 1, "PolicyRefused", 0));
        seen.settle(&names(&[]));
        assert_eq!(seen.see(&state("a", 2, "PolicyRefused", 0)), None);
        seen.settle(&names(&["b"]));
        assert!(!seen.has("a", Some("2")) && seen.has("b", Some("1")));
        assert_eq!(reasons(seen.see(&state("a", 3, "PolicyRefused", 0))), ["PolicyRefused"]);
    }

    #[test]
    fn little_is_kept() {
        let mut seen = Seen::default();
        seen.see(&state("a", 1, "AsWanted", 0));
        let status = seen.held["a"].status.as_ref().unwrap();
        assert_eq!((status.conditions.len(), status.conditions.capacity()), (2, 2));
        assert!(status.conditions.iter().all(|condition| condition.message.is_empty()));
    }
}
