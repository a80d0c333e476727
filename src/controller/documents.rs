//! What is said in an object of what nodewall makes of it: its status, and an Event when it is refused. Decides, and does nothing.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::event::{Event, cut};
use crate::config::Config;
use crate::net::facts::Facts;
use crate::policy::resolve::resolve;
use crate::source::guards;
use crate::source::object::news::Weight;
use crate::source::object::status::{Condition, DocumentStatus};
use crate::source::object::{API_VERSION, Kind, decode, read};
use crate::text::finding::{Code, Finding, Severity};

/// The longest texts that the definitions of the objects let through, in bytes: a character is one at least.
const LONGEST_MESSAGE: usize = 4096;
const LONGEST_CONDITION: usize = 1024;

/// The condition of every document: it is valid by itself.
const ACCEPTED: &str = "Accepted";
/// The condition of policies, with the word of the Gateway API: whatever it names is in the cluster.
const RESOLVED: &str = "ResolvedRefs";

/// What is to be said of an object.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Said {
    /// Its status.
    pub(super) status: DocumentStatus,
    /// Whether that is something else than what its status says now.
    pub(super) differs: bool,
    /// Whether it is refused, for people: what is wrong with it.
    pub(super) refused: Option<String>,
}

/// Names in policies that nothing in the cluster has, by what the policy is called ("HostPolicy/web"). All that depends on a node is left
/// out: what its files say, which interfaces it has, and which policies are for it.
pub(super) fn unresolved<'o>(objects: impl IntoIterator<Item = &'o Json>) -> BTreeMap<String, String> {
    let numbered = |(index, object): (usize, &Json)| {
        let mut object = object.clone();
        // Policies for different nodes may well have the same order.
        if object["kind"] == Kind::HostPolicy.name()
            && let Some(spec) = object["spec"].as_object_mut()
        {
            spec.insert("order".to_owned(), json!(index));
        }
        object
    };
    let objects: Vec<Json> = objects.into_iter().enumerate().map(numbered).collect();
    let shipped = Config::shipped();
    let mut policy = decode(&objects).policy;
    policy.guard(guards::shipped(), &shipped.guards);
    let (_, findings) = resolve(&policy, &shipped.settings, &Facts::default());
    let mut found: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for finding in findings {
        if finding.code == Code::UnknownName && finding.severity == Severity::Error {
            let called = finding.place.file.split(' ').next().unwrap_or_default().to_owned();
            found.entry(called).or_default().push(finding);
        }
    }
    found.into_iter().map(|(called, findings)| (called, message(&findings))).collect()
}

/// What is to be said of an object as the API gives it, with what [`unresolved`] says of it; `now` is RFC 3339.
pub(super) fn say(object: &Json, unresolved: Option<&str>, now: &str) -> Said {
    let before: DocumentStatus =
        object.get("status").cloned().and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
    let findings = match read(object) {
        Ok(object) => object.findings,
        Err(findings) => findings,
    };
    let accepted = findings.iter().all(|finding| finding.severity != Severity::Error);
    let observed_generation = object.pointer("/metadata/generation").and_then(Json::as_i64);
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let old = before.conditions.iter().find(|condition| condition.kind == kind);
        // That it does not hold for another reason now is no transition.
        let since = old.filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: cut(message, LONGEST_CONDITION),
            last_transition_time: since.unwrap_or_else(|| now.to_owned()),
            observed_generation,
        }
    };
    let mut message = message(&findings);
    let mut conditions = vec![match accepted {
        true => condition(ACCEPTED, true, "Accepted", "it is a policy document"),
        false => condition(ACCEPTED, false, "Invalid", &message),
    }];
    if accepted && object["kind"] == Kind::HostPolicy.name() {
        conditions.push(match unresolved {
            None => condition(RESOLVED, true, "ResolvedRefs", "the cluster has all that it names"),
            Some(names) => {
                let told = format!("{names}\nthe policy holds only on nodes whose own files have that");
                message = [message.as_str(), told.as_str()].join("\n").trim().to_owned();
                condition(RESOLVED, false, "UnknownName", &told)
            }
        });
    }
    let status = DocumentStatus {
        accepted: Some(accepted),
        message: (!message.is_empty()).then(|| cut(&message, LONGEST_MESSAGE)),
        observed_generation,
        conditions,
    };
    Said { differs: status != before, refused: (!accepted).then_some(message), status }
}

/// The object that says so by server-side apply.
pub(super) fn applied(object: &Json, status: &DocumentStatus) -> Json {
    json!({
        "apiVersion": API_VERSION,
        "kind": object.get("kind"),
        // Another one of the same name is another one.
        "metadata": { "name": object.pointer("/metadata/name"), "uid": object.pointer("/metadata/uid") },
        "status": status,
    })
}

/// The Event that says that an object of a kind is refused: of one generation of it there is one, as its name says.
pub(super) fn refusal(kind: Kind, object: &Json, why: &str, now: &str, instance: &str) -> Json {
    let text = |pointer: &str| object.pointer(pointer).and_then(Json::as_str).unwrap_or_default();
    let generation = object.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default();
    let event = Event {
        kind,
        name: text("/metadata/name"),
        uid: text("/metadata/uid"),
        version: text("/metadata/resourceVersion"),
        key: &generation.to_string(),
        weight: Weight::Warning,
        reason: "PolicyRefused",
        action: "Judge",
        note: why,
    };
    event.body(now, instance)
}

/// Findings as one text: "spec.ingress\[0\].ports: what is wrong; what to do", the errors first.
fn message(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity != Severity::Error);
    let texts = sorted.into_iter().map(|finding| {
        // The object knows what it is called.
        let field = finding.place.file.split_once(' ').map(|(_, field)| format!("{field}: ")).unwrap_or_default();
        let help = if finding.help.is_empty() { String::new() } else { format!("; {}", finding.help) };
        format!("{field}{}{help}", finding.message)
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn say_of(object: &Json, now: &str) -> Said {
        say(object, None, now)
    }

    fn set(cidr: &str, generation: i64) -> Json {
        json!({
            "apiVersion": API_VERSION,
            "kind": "HostNetworkSet",
            "metadata": { "name": "store", "uid": "u-1", "generation": generation, "resourceVersion": "7", "managedFields": [{}] },
            "spec": { "cidrs": [cidr] },
        })
    }

    fn with(mut object: Json, status: &DocumentStatus) -> Json {
        object["status"] = json!(status);
        object
    }

    #[test]
    fn what_was_said_is_not_said_again_and_a_new_generation_is() {
        let first = say_of(&set("10.0.0.0/8", 1), "t1");
        assert_eq!((first.differs, first.status.accepted, first.refused.as_deref()), (true, Some(true), None));
        assert_eq!(first.status.conditions[0].last_transition_time, "t1");
        let again = say_of(&with(set("10.0.0.0/8", 1), &first.status), "t2");
        assert!(!again.differs, "{again:?}");
        let next = say_of(&with(set("10.1.0.0/16", 2), &first.status), "t3");
        assert_eq!((next.differs, next.status.observed_generation), (true, Some(2)));
        assert_eq!(next.status.conditions[0].last_transition_time, "t1", "it was accepted all the time");
        let bad = say_of(&with(set("10.1.0.0/99", 3), &next.status), "t4");
        assert_eq!((bad.status.accepted, bad.status.conditions[0].status.as_str()), (Some(false), "False"));
        assert_eq!(bad.status.conditions[0].last_transition_time, "t4");
        let message = bad.status.message.clone().unwrap();
        assert!(message.starts_with("spec.cidrs[0]: "), "{message}");
        assert_eq!(bad.refused.as_deref(), Some(message.as_str()));
        assert!(!say_of(&with(set("10.1.0.0/99", 3), &bad.status), "t5").differs);
    }

    #[test]
    fn names_that_the_cluster_does_not_have_are_told_on_whatever_node_they_matter() {
        let policy = |name: &str, set: &str| {
            json!({
                "apiVersion": API_VERSION,
                "kind": "HostPolicy",
                "metadata": { "name": name, "generation": 1 },
                "spec": {
                    "order": 10, "interfaces": "all()", "nodes": format!("pool == '{name}'"),
                    "egress": [{ "action": "deny", "to": { "sets": [set] } }],
                },
            })
        };
        let mut lost = policy("lost", "store");
        lost["spec"]["tier"] = json!("nowhere");
        let objects = [set("10.0.0.0/8", 1), policy("good", "store"), policy("typo", "stroe"), lost];
        let found = unresolved(&objects);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["HostPolicy/lost", "HostPolicy/typo"]);
        let of = |object: &Json, called: &str| say(object, found.get(called).map(String::as_str), "t");
        let good = of(&objects[1], "HostPolicy/good").status;
        assert_eq!((good.message, good.conditions[1].status.as_str()), (None, "True"));
        let typo = of(&objects[2], "HostPolicy/typo");
        assert_eq!((typo.refused, typo.status.accepted), (None, Some(true)), "a node's files may have it");
        let (kind, why) = (&typo.status.conditions[1].kind, &typo.status.conditions[1].message);
        assert_eq!(kind, "ResolvedRefs");
        assert!(
            why.starts_with("spec.egress[0].to.sets[0]: there is no set \"stroe\"; did you mean \"store\"?"),
            "{why}"
        );
        assert!(
            of(&objects[3], "HostPolicy/lost")
                .status
                .message
                .is_some_and(|message| message.contains("no tier \"nowhere\""))
        );
        assert_eq!(unresolved(&[json!({}), json!({ "kind": "HostPolicy", "spec": 7 })]), BTreeMap::new());
    }

    #[test]
    fn what_somebody_else_wrote_into_it_is_put_right() {
        let mut object = set("10.0.0.0/8", 1);
        let good = say_of(&object, "t1").status;
        object["status"] = json!({ "accepted": false, "conditions": "none" });
        assert_eq!(say_of(&object, "t1"), Said { status: good, differs: true, refused: None });
    }

    #[test]
    fn an_event_is_the_same_for_the_same_generation_only() {
        let event = |generation| refusal(Kind::HostNetworkSet, &set("x", generation), "why", "t", "pod_1");
        assert_eq!(event(1)["metadata"], event(1)["metadata"]);
        assert_ne!(event(1)["metadata"]["name"], event(2)["metadata"]["name"]);
        assert_eq!(event(1)["regarding"]["name"], "store");
        assert_eq!(event(1)["reportingController"], "nodewall.dev/controller");
        let name = event(1)["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(crate::text::name::is_node_name(&name), "{name}");
    }

    #[test]
    fn long_texts_are_cut_to_what_the_definitions_let_through() {
        let object = set(&"9".repeat(6000), 1);
        let said = say_of(&object, "t");
        assert!(said.status.message.unwrap().len() <= LONGEST_MESSAGE);
        assert!(said.status.conditions[0].message.len() <= LONGEST_CONDITION);
    }
}
