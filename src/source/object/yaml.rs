//! Writes YAML: a document for each value, for people and for kubectl.

use serde_json::Value as Json;

/// Words that some readers take for something else than text (YAML 1.1).
const NOT_TEXT: [&str; 10] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "~"];

/// The values as the documents of one text.
pub(super) fn write(documents: &[Json]) -> String {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        block(&mut text, document, 0);
    }
    text
}

/// A value at the start of a line.
fn block(out: &mut String, value: &Json, indent: usize) {
    match value {
        Json::Object(fields) if !fields.is_empty() => {
            for (index, (key, value)) in fields.iter().enumerate() {
                // The first key of an item stands behind its dash.
                if index > 0 || !out.ends_with("- ") {
                    out.push_str(&" ".repeat(indent));
                }
                scalar(out, key);
                out.push(':');
                match value {
                    Json::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, value, indent + 2);
                    }
                    Json::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        block(out, value, indent);
                    }
                    _ => {
                        out.push(' ');
                        inline(out, value);
                        out.push('\n');
                    }
                }
            }
        }
        Json::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 || !out.ends_with("- ") {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str("- ");
                block(out, item, indent + 2);
            }
        }
        _ => {
            inline(out, value);
            out.push('\n');
        }
    }
}

/// A value on the rest of a line: text, a number, or something empty.
fn inline(out: &mut String, value: &Json) {
    match value {
        Json::String(text) => scalar(out, text),
        other => out.push_str(&other.to_string()),
    }
}

/// Text: without quotes where nobody can take it for something else, otherwise in the quotes and with the escapes of JSON.
fn scalar(out: &mut String, text: &str) {
    let safe = |next: char| next.is_ascii_alphanumeric() || " _-./".contains(next);
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && !text.ends_with(' ')
        && text.chars().all(safe)
        && !NOT_TEXT.contains(&&*text.to_ascii_lowercase());
    if plain {
        out.push_str(text);
        return;
    }
    for next in Json::from(text).to_string().chars() {
        // What JSON may have as it is and YAML may not (YAML 1.2 section 5.1; 1.1 has more line breaks).
        match u32::from(next) {
            code @ (0x7f..=0x9f | 0x2028 | 0x2029 | 0xfeff | 0xfffe | 0xffff) => {
                out.push_str(&format!("\\u{code:04x}"))
            }
            _ => out.push(next),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::json;
    use super::*;
    use crate::text::tree::Source;
    use crate::text::yaml::parse;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Json> {
        let text = prop_oneof![
            ".*",
            "[a-z]{1,5}",
            "[\u{7f}-\u{a0}\u{2028}\u{2029}\u{feff}\u{fffe}\u{ffff} a]{1,3}",
            "(yes|No|on|null|~|0x1f|1e3|010|12:30:00|2027-01-01|- a|a: b|#|'|\"|%a|\\{)"
        ];
        let leaf = prop_oneof![
            text.prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<bool>().prop_map(Json::from),
            Just(Json::Null)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
                prop::collection::btree_map(".{0,6}", inner, 0..4)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(values in prop::collection::vec(value(), 1..3)) {
            let values: Vec<Json> = values.into_iter().filter(|value| *value != Json::Null).collect();
            let source = Source::new("a.yaml", write(&values));
            let (nodes, findings) = parse(&source);
            prop_assert_eq!(&findings, &[], "{}", source.text);
            let read: Vec<Json> = nodes.iter().map(json).collect();
            prop_assert_eq!(read, values, "{}", source.text);
        }
    }
}
