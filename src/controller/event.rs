//! An Event as the API wants it (events.k8s.io/v1), about an object that has no namespace.

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::REPORTER;
use crate::source::object::news::Weight;
use crate::source::object::{API_VERSION, Kind};

/// The longest texts that the API lets through, in bytes.
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;

/// What an Event says.
pub(super) struct Event<'a> {
    /// The kind of the object, and which one it is.
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
    pub(super) version: &'a str,
    /// What makes it another Event than others about the object: who says it again says it in the same one.
    pub(super) key: &'a str,
    pub(super) weight: Weight,
    pub(super) reason: &'a str,
    /// What was done that it came to this, one word for programs.
    pub(super) action: &'a str,
    /// For people; cut to what the API takes.
    pub(super) note: &'a str,
}

impl Event<'_> {
    /// The object; `now` is RFC 3339 with whole seconds.
    pub(super) fn body(&self, now: &str, instance: &str) -> Json {
        let kind = self.kind.name();
        let sum: [u8; 32] = Sha256::digest(format!("{kind}\n{}\n{}\n{}", self.name, self.uid, self.key)).into();
        let sum: String = sum[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let start = self.name.get(..200).unwrap_or(self.name).trim_end_matches(['.', '-']);
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": format!("{start}.{sum}"), "namespace": "default" },
            // With microseconds, as the API wants it.
            "eventTime": format!("{}.000000Z", now.trim_end_matches('Z')),
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": kind,
                "name": self.name,
                "uid": self.uid,
                "resourceVersion": self.version,
            },
            "type": self.weight.name(),
            "reason": self.reason,
            "action": self.action,
            "note": cut(self.note, LONGEST_NOTE),
            "reportingController": REPORTER,
            "reportingInstance": cut(instance, LONGEST_INSTANCE),
        })
    }
}

/// The beginning of a text, with a sign that there is more.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most.saturating_sub("...".len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abc...");
        assert_eq!(cut(&"é".repeat(10), 10), "ééé...");
    }
}
