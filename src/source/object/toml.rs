//! Writes policy files: a table for each document, rules one to a line, as people write them.

use serde_json::{Map, Value as Json};

/// The longest line that a list of plain values stays on.
const LONGEST_LINE: usize = 100;

/// A policy file with these documents: the name of the table, and its fields.
pub(super) fn write<'d>(documents: impl IntoIterator<Item = (&'static str, &'d Map<String, Json>)>) -> String {
    let mut text = String::new();
    for (table, fields) in documents {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("[[{table}]]\n"));
        for (key, value) in fields {
            let line = format!("{} = {}", self::key(key), inline(value));
            let items = value
                .as_array()
                .filter(|items| items.len() > 1 && line.len() > LONGEST_LINE || items.iter().any(Json::is_object));
            match items {
                Some(items) => {
                    text.push_str(&format!("{} = [\n", self::key(key)));
                    items.iter().for_each(|item| text.push_str(&format!("  {},\n", inline(item))));
                    text.push_str("]\n");
                }
                None => {
                    text.push_str(&line);
                    text.push('\n');
                }
            }
        }
    }
    text
}

fn inline(value: &Json) -> String {
    match value {
        Json::String(text) => string(text),
        Json::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Json::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Json::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{} = {}", key(name), inline(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

fn key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare { key.to_owned() } else { string(key) }
}

/// A basic string. JSON's escapes are TOML's, which also wants one for DEL.
fn string(text: &str) -> String {
    Json::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::super::json;
    use super::*;
    use crate::text::tree::{Source, Value, parse};
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_document_is_written_as_people_write_it() {
        let policy = json!({
            "name": "ssh", "order": 1, "ingress": [{ "action": "allow", "from": { "sets": ["a"] } }], "egress": [],
        });
        let set = json!({ "name": "a", "labels": { "a.b/c": "d\"" }, "cidrs": vec!["2001:db8:1111:2222::/64"; 4] });
        let documents = [("policy", policy.as_object().unwrap()), ("set", set.as_object().unwrap())];
        assert_eq!(
            write(documents),
            r#"[[policy]]
name = "ssh"
order = 1
ingress = [
  { action = "allow", from = { sets = ["a"] } },
]
egress = []

[[set]]
name = "a"
labels = { "a.b/c" = "d\"" }
cidrs = [
  "2001:db8:1111:2222::/64",
  "2001:db8:1111:2222::/64",
  "2001:db8:1111:2222::/64",
  "2001:db8:1111:2222::/64",
]
"#
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_the_same(name in ".*", key in ".*") {
            let fields: Map<String, Json> = [(key.clone(), Json::from(name.clone()))].into_iter().collect();
            let source = Source::new("a.toml", write([("set", &fields)]));
            let (root, findings) = parse(&source);
            prop_assert_eq!(findings, []);
            let Value::Table(tables) = &root.unwrap().value else { panic!("no table") };
            prop_assert_eq!(json(&tables[0].node), json!([{ key: name }]));
        }
    }
}
