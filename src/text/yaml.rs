//! YAML text, and JSON, which is a part of it, to trees in which every key and every value knows where it stands.
//!
//! Read as Kubernetes reads it, or not at all: what YAML 1.1, which kubectl reads, and YAML 1.2 understand differently is an error.

use std::borrow::Cow;

use granit_parser::{Event, Parser, ScalarStyle};

use super::finding::{Code, Finding};
use super::place::Place;
use super::read::quoted;
use super::tree::{Entry, MAX_TEXT_BYTES, Node, Source, Span, Value};

/// How deep values may be nested. A policy in a list of objects needs 12; `managedFields` of an object somewhat more.
const MAX_NESTING: usize = 32;

/// The documents of a YAML text, those that hold nothing left out. A syntax error ends the text: what comes before it is given.
pub fn parse(source: &Source) -> (Vec<Node<'_>>, Vec<Finding>) {
    let mut builder = Builder { source, open: Vec::new(), documents: Vec::new(), findings: Vec::new() };
    if source.text.len() > MAX_TEXT_BYTES {
        let message = format!("larger than {} MiB", MAX_TEXT_BYTES / (1024 * 1024));
        return (Vec::new(), vec![Finding::error(Code::Unreadable, &Place::file(source.file.clone()), message)]);
    }
    for next in Parser::new_from_str(&source.text) {
        match next {
            Ok((event, at)) => {
                let range = at.byte_range().unwrap_or(0..0);
                if !builder.event(event, narrow(range)) {
                    break;
                }
            }
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(0);
                builder.report(narrow(at..at + 1), format!("not YAML: {}", error.info()), "");
                break;
            }
        }
    }
    (builder.documents, builder.findings)
}

fn narrow(range: std::ops::Range<usize>) -> Span {
    // Texts are at most MAX_TEXT_BYTES long.
    Span { start: range.start as u32, end: range.end as u32 }
}

/// A list or table that is not closed yet.
enum Open<'t> {
    List(Span, Vec<Node<'t>>),
    /// With the key that waits for its value.
    Table(Span, Vec<Entry<'t>>, Option<(Cow<'t, str>, Span)>),
}

struct Builder<'t> {
    source: &'t Source,
    open: Vec<Open<'t>>,
    documents: Vec<Node<'t>>,
    findings: Vec<Finding>,
}

impl<'t> Builder<'t> {
    fn report(&mut self, span: Span, message: impl Into<String>, help: &str) {
        self.findings.push(Finding::error(Code::Syntax, &self.source.place(span), message).help(help));
    }

    /// False when there is no sense in going on.
    fn event(&mut self, event: Event<'t>, span: Span) -> bool {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.plain(span, anchor, tag.is_some());
                if let Some(Open::Table(_, _, key @ None)) = self.open.last_mut() {
                    *key = Some((text, span));
                } else {
                    let value = self.scalar(text, style, span);
                    self.add(Node { value, span });
                }
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.plain(span, anchor, tag.is_some());
                self.open.push(Open::List(span, Vec::new()));
            }
            Event::MappingStart(_, anchor, tag) => {
                self.plain(span, anchor, tag.is_some());
                self.open.push(Open::Table(span, Vec::new(), None));
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.report(span, "an alias is not read here", "write out what it stands for");
                match self.open.last_mut() {
                    Some(Open::Table(_, _, key @ None)) => *key = Some((Cow::Borrowed(""), span)),
                    _ => self.add(Node { value: Value::Null, span }),
                }
            }
            _ => {}
        }
        if self.open.len() > MAX_NESTING {
            self.report(span, format!("nested more than {MAX_NESTING} deep"), "");
            return false;
        }
        // A key that is itself a list or a table has no place in an object.
        if let [.., Open::Table(_, _, None), _] = self.open.as_slice() {
            self.report(span, "a key must be text", "");
            return false;
        }
        true
    }

    /// Anchors and tags are not for configuration that people should understand.
    fn plain(&mut self, span: Span, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.report(span, "an anchor is not read here", "take `&...` away");
        }
        if tagged {
            self.report(span, "a tag is not read here", "take `!...` away");
        }
    }

    fn add(&mut self, node: Node<'t>) {
        match self.open.last_mut() {
            Some(Open::List(span, items)) => {
                span.end = span.end.max(node.span.end);
                items.push(node);
            }
            Some(Open::Table(span, entries, key)) => {
                if let Some((key, at)) = key.take() {
                    // A block mapping begins at its first key.
                    if entries.is_empty() && span.start == span.end {
                        span.start = at.start;
                    }
                    span.end = span.end.max(node.span.end);
                    entries.push(Entry { key, span: at, node });
                }
            }
            // A document without anything, like what comes after a last `---`.
            None if node.value == Value::Null => {}
            None => self.documents.push(node),
        }
    }

    fn close(&mut self, end: Span) {
        match self.open.pop() {
            Some(Open::List(mut span, items)) => {
                span.end = span.end.max(end.end);
                self.add(Node { value: Value::Array(items), span });
            }
            Some(Open::Table(mut span, entries, _)) => {
                span.end = span.end.max(if end.start == end.end { span.end } else { end.end });
                self.once(&entries);
                self.add(Node { value: Value::Table(entries), span });
            }
            None => {}
        }
    }

    /// No key stands twice: which one counts depends on who reads it.
    fn once(&mut self, entries: &[Entry<'t>]) {
        let mut keys: Vec<(&str, Span)> = entries.iter().map(|entry| (&*entry.key, entry.span)).collect();
        keys.sort_unstable();
        for pair in keys.windows(2) {
            if let [(first, earlier), (second, later)] = pair
                && first == second
            {
                let finding = Finding::error(Code::Syntax, &self.source.place(*later), "the same key twice")
                    .related(&self.source.place(*earlier), "the first time");
                self.findings.push(finding);
            }
        }
    }

    fn scalar(&mut self, text: Cow<'t, str>, style: ScalarStyle, span: Span) -> Value<'t> {
        if style != ScalarStyle::Plain {
            return Value::String(text);
        }
        match &*text {
            "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
            "true" | "True" | "TRUE" => return Value::Boolean(true),
            "false" | "False" | "FALSE" => return Value::Boolean(false),
            _ => {}
        }
        let lower = text.to_ascii_lowercase();
        if matches!(&*lower, "yes" | "no" | "on" | "off" | "y" | "n") {
            let message = format!("{} may be text or a boolean: that depends on who reads it", quoted(&text));
            self.report(span, message, "write true or false, or put it in quotes");
            return Value::String(text);
        }
        let digits = text.strip_prefix(['-', '+']).unwrap_or(&text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            if digits.len() > 1 && digits.starts_with('0') {
                let message = format!("{} may be octal or decimal: that depends on who reads it", quoted(&text));
                self.report(span, message, "write it without a leading 0, or put it in quotes");
            }
            return Value::Integer(text.trim_start_matches('+').parse().ok());
        }
        let other_base =
            |prefix: &str, radix| digits.strip_prefix(prefix).map(|rest| i64::from_str_radix(rest, radix).ok());
        if let Some(number @ Some(_)) = other_base("0x", 16).or_else(|| other_base("0o", 8)) {
            return Value::Integer(number.map(|number| if text.starts_with('-') { -number } else { number }));
        }
        if is_float(digits) { Value::Float } else { Value::String(text) }
    }
}

/// A number with a fraction or exponent, without its sign (YAML 1.2, section 10.3.2).
fn is_float(digits: &str) -> bool {
    if matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let numeric = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    numeric && digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') && digits.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::text::render::line;

    fn text_at(source: &Source, span: Span) -> &str {
        &source.text[span.start as usize..span.end as usize]
    }

    fn show(source: &Source, node: &Node<'_>, out: &mut Vec<String>) {
        let place = source.place(node.span);
        let value = match &node.value {
            Value::String(text) => format!("{text:?}"),
            Value::Integer(number) => format!("{number:?}"),
            Value::Boolean(value) => value.to_string(),
            other => other.kind().to_owned(),
        };
        out.push(format!("{}:{} {value}", place.line, place.column));
        match &node.value {
            Value::Array(items) => items.iter().for_each(|item| show(source, item, out)),
            Value::Table(entries) => {
                for entry in entries {
                    out.push(format!("{} =", text_at(source, entry.span)));
                    show(source, &entry.node, out);
                }
            }
            _ => {}
        }
    }

    fn shown(text: &str) -> Vec<String> {
        let source = Source::new("a.yaml", text);
        let (documents, findings) = parse(&source);
        assert_eq!(findings, [], "{text}");
        let mut out = Vec::new();
        documents.iter().for_each(|document| show(&source, document, &mut out));
        out
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let text = "---\n# said\nkind: Host\nspec:\n  ports:\n  - 22\n  - '8000-8010'\n  rules:\n    - action: allow\n      log: true\n---\n---\na: {b: [1, x], c: }\n";
        assert_eq!(
            shown(text),
            [
                "3:1 a table",
                "kind =",
                "3:7 \"Host\"",
                "spec =",
                "5:3 a table",
                "ports =",
                "6:5 a list",
                "6:5 Some(22)",
                "7:5 \"8000-8010\"",
                "rules =",
                "9:5 a list",
                "9:7 a table",
                "action =",
                "9:15 \"allow\"",
                "log =",
                "10:12 true",
                "13:1 a table",
                "a =",
                "13:4 a table",
                "b =",
                "13:8 a list",
                "13:9 Some(1)",
                "13:12 \"x\"",
                "c =",
                "13:17 null",
            ]
        );
        assert_eq!(
            shown("{\"a\": [1.5, -3, null, \"\\u00e9\"]}")[3..],
            ["1:8 a number with a fraction", "1:13 Some(-3)", "1:17 null", "1:23 \"é\""]
        );
        assert_eq!(shown("---\n"), Vec::<String>::new());
        assert_eq!(shown(""), Vec::<String>::new());
    }

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        for (text, wanted) in [
            ("2027-01-31T18:00:00Z", "\"2027-01-31T18:00:00Z\""),
            ("02:42:ac:11:00:02", "\"02:42:ac:11:00:02\""),
            ("10.0.0.0/8", "\"10.0.0.0/8\""),
            ("10.0.0.1", "\"10.0.0.1\""),
            ("0x10", "Some(16)"),
            ("1e3", "a number with a fraction"),
            ("99999999999999999999", "None"),
            ("~", "null"),
            ("'yes'", "\"yes\""),
            ("\"010\"", "\"010\""),
            ("Null", "null"),
            ("|-\n  a\n  b", "\"a\\nb\""),
        ] {
            let shown = shown(&format!("k: {text}"));
            assert_eq!(shown[2].split_once(' ').unwrap().1, wanted, "{text}");
        }
    }

    #[test]
    fn what_is_not_read_is_said() {
        for (text, wanted) in [
            ("a: &x 1\nb: *x\n", "a.yaml:2:4: error[syntax]: an alias is not read here"),
            ("a: &x 1\n", "an anchor is not read here"),
            ("a: !!str 1\n", "a tag is not read here"),
            ("a: 1\nb: 2\na: 3\n", "a.yaml:3:1: error[syntax]: the same key twice; the first time at a.yaml:1:1"),
            ("? [a]\n: 1\n", "a key must be text"),
            ("a: yes\n", "may be text or a boolean"),
            ("a: 0777\n", "may be octal or decimal"),
            ("a: [1\nb: 2\n", "not YAML: "),
            ("a:\n\t- 1\n", "not YAML: "),
        ] {
            let (_, findings) = parse(&Source::new("a.yaml", text));
            let lines: Vec<String> = findings.iter().map(line).collect();
            assert!(lines.iter().any(|line| line.contains(wanted)), "{text}: {lines:?}");
        }
    }

    #[test]
    fn nesting_is_limited_and_never_overflows_the_stack() {
        for depth in [33, 1000, 200_000] {
            for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
                let source = Source::new("a", format!("{}1{}", open.repeat(depth), close.repeat(depth)));
                assert_eq!(parse(&source).1.len(), 1, "{open} {depth}");
            }
        }
    }
}
