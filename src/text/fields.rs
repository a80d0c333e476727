//! An object that came without a text, from an API server, as a tree like that of a file: its places are paths of fields.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value as Json;

use super::finding::{Code, Finding};
use super::place::Place;
use super::tree::{Entry, FIELD_SEPARATOR, Node, Source, Span, Value};

/// How deep an object may be nested. A policy needs 10 (`spec`, `ingress`, a rule, `from`, `except`, `except`, `sets`); what nests
/// deeper is not ours.
const MAX_NESTING: usize = 32;

/// The tree of a JSON value. Places in it are `name` with the path of the field: "HostPolicy/kubelet spec.ingress\[0\].ports".
///
/// # Errors
/// A finding when it is nested too deeply to be looked at.
pub fn tree(name: &str, value: &Json) -> Result<(Source, Node<'static>), Box<Finding>> {
    let mut lines = Lines::default();
    let mut path = String::new();
    let node = lines.node(value, &mut path, 0).ok_or_else(|| {
        let message = format!("nested more than {MAX_NESTING} deep");
        Box::new(Finding::error(Code::Syntax, &Place::file(name), message))
    })?;
    Ok((Source::of_fields(name, lines.text), node))
}

/// The lines `PATH = VALUE` so far.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn node(&mut self, value: &Json, path: &mut String, depth: usize) -> Option<Node<'static>> {
        if depth > MAX_NESTING {
            return None;
        }
        let start = self.text.len();
        self.text.push_str(path);
        let length = path.len();
        let plain = match value {
            Json::Array(items) => {
                self.text.push('\n');
                let mut nodes = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    // Writing to a String does not fail.
                    let _ = write!(path, "[{index}]");
                    nodes.push(self.node(item, path, depth + 1)?);
                    path.truncate(length);
                }
                return Some(Node { value: Value::Array(nodes), span: span(start, start + length) });
            }
            Json::Object(fields) => {
                self.text.push('\n');
                let mut entries = Vec::with_capacity(fields.len());
                for (key, value) in fields {
                    push(path, key);
                    let line = self.text.len();
                    let node = self.node(value, path, depth + 1)?;
                    entries.push(Entry { key: Cow::Owned(key.clone()), span: span(line, line + path.len()), node });
                    path.truncate(length);
                }
                return Some(Node { value: Value::Table(entries), span: span(start, start + length) });
            }
            Json::String(text) => Value::String(Cow::Owned(text.clone())),
            Json::Bool(value) => Value::Boolean(*value),
            Json::Null => Value::Null,
            Json::Number(number) if number.is_f64() => Value::Float,
            Json::Number(number) => Value::Integer(number.as_i64()),
        };
        self.text.push_str(FIELD_SEPARATOR);
        let at = self.text.len();
        let _ = write!(self.text, "{value}");
        let end = self.text.len();
        self.text.push('\n');
        Some(Node { value: plain, span: span(at, end) })
    }
}

/// Adds a key to a path: `.key`, or `["a.b/c"]` where that would be unclear.
fn push(path: &mut String, key: &str) {
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        let _ = write!(path, "[{}]", Json::String(key.to_owned()));
    }
}

fn span(start: usize, end: usize) -> Span {
    // An API server takes objects of a few MiB at most.
    Span { start: u32::try_from(start).unwrap_or(u32::MAX), end: u32::try_from(end).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use serde_json::json;

    #[test]
    fn a_place_in_an_object_is_the_path_of_a_field() {
        let object = json!({
            "kind": "HostPolicy",
            "spec": { "ingress": [{ "ports": [22, "a = b"] }], "labels": { "example.org/x": null } },
        });
        let (source, root) = tree("HostPolicy/ssh", &object).unwrap();
        let mut places = Vec::new();
        collect(&source, &root, &mut places);
        assert_eq!(
            places,
            [
                "HostPolicy/ssh a table",
                "HostPolicy/ssh kind a string",
                "HostPolicy/ssh spec a table",
                "HostPolicy/ssh spec.ingress a list",
                "HostPolicy/ssh spec.ingress[0] a table",
                "HostPolicy/ssh spec.ingress[0].ports a list",
                "HostPolicy/ssh spec.ingress[0].ports[0] an integer",
                "HostPolicy/ssh spec.ingress[0].ports[1] a string",
                "HostPolicy/ssh spec.labels a table",
                "HostPolicy/ssh spec.labels[\"example.org/x\"] null",
            ]
        );
    }

    fn collect(source: &Source, node: &Node<'_>, places: &mut Vec<String>) {
        places.push(format!("{} {}", source.place(node.span), node.value.kind()));
        match &node.value {
            Value::Array(items) => items.iter().for_each(|item| collect(source, item, places)),
            Value::Table(entries) => entries.iter().for_each(|entry| collect(source, &entry.node, places)),
            _ => {}
        }
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused() {
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        assert!(tree("x", &deep).unwrap_err().message.contains("nested"));
    }
}
