//! What is said in an object of what nodewall makes of it: its status, and an Event when it is refused. Decides, and does nothing.

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::REPORTER;
use crate::source::object::status::{Condition, DocumentStatus};
use crate::source::object::{API_VERSION, read};
use crate::text::finding::{Finding, Severity};

/// The longest texts that the definitions of the objects and of Events let through, in bytes: a character is one at least.
const LONGEST_MESSAGE: usize = 4096;
const LONGEST_CONDITION: usize = 1024;
const LONGEST_NOTE: usize = 1024;

/// The condition of every document.
const ACCEPTED: &str = "Accepted";

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

/// What is to be said of an object as the API gives it; `now` is RFC 3339.
pub(super) fn say(object: &Json, now: &str) -> Said {
    let before: DocumentStatus =
        object.get("status").cloned().and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
    let findings = match read(object) {
        Ok(object) => object.findings,
        Err(findings) => findings,
    };
    let accepted = findings.iter().all(|finding| finding.severity != Severity::Error);
    let message = message(&findings);
    let observed_generation = object.pointer("/metadata/generation").and_then(Json::as_i64);
    let (status, reason) = if accepted { ("True", "Accepted") } else { ("False", "Invalid") };
    let told = if accepted { "it is a policy document" } else { message.as_str() };
    let old = before.conditions.iter().find(|condition| condition.kind == ACCEPTED);
    // That it is refused for another reason now is no transition.
    let since = old.filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    let condition = Condition {
        kind: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: cut(told, LONGEST_CONDITION),
        last_transition_time: since.unwrap_or_else(|| now.to_owned()),
        observed_generation,
    };
    let status = DocumentStatus {
        accepted: Some(accepted),
        message: (!message.is_empty()).then(|| cut(&message, LONGEST_MESSAGE)),
        observed_generation,
        conditions: vec![condition],
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

/// The Event that says that an object is refused: of one generation of it there is one, as its name says.
pub(super) fn refusal(object: &Json, why: &str, now: &str, instance: &str) -> Json {
    let text = |pointer: &str| object.pointer(pointer).and_then(Json::as_str).unwrap_or_default();
    let generation = object.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default();
    let (kind, name, uid) = (text("/kind"), text("/metadata/name"), text("/metadata/uid"));
    let sum: [u8; 32] = Sha256::digest(format!("{kind}\n{name}\n{uid}\n{generation}")).into();
    let sum: String = sum[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let start = name.get(..200).unwrap_or(name).trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{start}.{sum}"), "namespace": "default" },
        // With microseconds, as the API wants it.
        "eventTime": format!("{}.000000Z", now.trim_end_matches('Z')),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "name": name,
            "uid": uid,
            "resourceVersion": text("/metadata/resourceVersion"),
        },
        "type": "Warning",
        "reason": "PolicyRefused",
        "action": "Judge",
        "note": cut(why, LONGEST_NOTE),
        "reportingController": REPORTER,
        "reportingInstance": cut(instance, 128),
    })
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

/// The beginning of a text, with a sign that there is more.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most.saturating_sub("...".len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

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
        let first = say(&set("10.0.0.0/8", 1), "t1");
        assert_eq!((first.differs, first.status.accepted, first.refused.as_deref()), (true, Some(true), None));
        assert_eq!(first.status.conditions[0].last_transition_time, "t1");
        let again = say(&with(set("10.0.0.0/8", 1), &first.status), "t2");
        assert!(!again.differs, "{again:?}");
        let next = say(&with(set("10.1.0.0/16", 2), &first.status), "t3");
        assert_eq!((next.differs, next.status.observed_generation), (true, Some(2)));
        assert_eq!(next.status.conditions[0].last_transition_time, "t1", "it was accepted all the time");
        let bad = say(&with(set("10.1.0.0/99", 3), &next.status), "t4");
        assert_eq!((bad.status.accepted, bad.status.conditions[0].status.as_str()), (Some(false), "False"));
        assert_eq!(bad.status.conditions[0].last_transition_time, "t4");
        let message = bad.status.message.clone().unwrap();
        assert!(message.starts_with("spec.cidrs[0]: "), "{message}");
        assert_eq!(bad.refused.as_deref(), Some(message.as_str()));
        assert!(!say(&with(set("10.1.0.0/99", 3), &bad.status), "t5").differs);
    }

    #[test]
    fn what_somebody_else_wrote_into_it_is_put_right() {
        let mut object = set("10.0.0.0/8", 1);
        let good = say(&object, "t1").status;
        object["status"] = json!({ "accepted": false, "conditions": "none" });
        assert_eq!(say(&object, "t1"), Said { status: good, differs: true, refused: None });
    }

    #[test]
    fn an_event_is_the_same_for_the_same_generation_only() {
        let event = |generation| refusal(&set("x", generation), "why", "t", "pod_1");
        assert_eq!(event(1)["metadata"], event(1)["metadata"]);
        assert_ne!(event(1)["metadata"]["name"], event(2)["metadata"]["name"]);
        assert_eq!(event(1)["regarding"]["name"], "store");
        assert_eq!(event(1)["reportingController"], "nodewall.dev/controller");
        let name = event(1)["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(crate::text::name::is_node_name(&name), "{name}");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abc...");
        assert_eq!(cut(&"é".repeat(10), 10), "ééé...");
        let object = set(&"9".repeat(6000), 1);
        let said = say(&object, "t");
        assert!(said.status.message.unwrap().len() <= LONGEST_MESSAGE);
        assert!(said.status.conditions[0].message.len() <= LONGEST_CONDITION);
    }
}
