//! TOML text to a tree in which every key and every value knows where it stands.

use std::borrow::Cow;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::finding::{Code, Finding};
use super::place::Place;

/// The largest text that is parsed, in bytes: far beyond a set of 100,000 prefixes (2 MB), and small enough for a host
/// that has better things to do with its memory.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;

/// How deep arrays and inline tables may be nested. A policy needs 6 (`ingress`, rule, `from`, `except`, `sets`).
const MAX_NESTING: usize = 16;

/// How many parts a dotted key may have. No key of ours has more than 3.
const MAX_KEY_PARTS: usize = 8;

/// How many syntax errors of one file are told; what follows is mostly the echo of the first.
const MAX_SYNTAX_ERRORS: usize = 20;

/// A stretch of bytes of one text; half the size of a `Range<usize>`, as a tree has one per value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// After the last byte.
    pub end: u32,
}

/// A text with its name, able to say where a byte stands.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name that places carry: a path, or for an object of a cluster its kind and name.
    pub file: Arc<str>,
    /// The text.
    pub text: Arc<str>,
    /// The byte offset at which each line starts.
    lines: Vec<u32>,
    /// How many characters there are before every [`CHECKPOINT_BYTES`]th byte: a column is counted from here, so that a
    /// file written on one line costs no more than another.
    characters: Vec<u32>,
    /// Whether each line is a field of an object, `PATH = VALUE`: then a place is the path.
    fields: bool,
}

/// What stands between the path and the value on the line of a field.
pub(super) const FIELD_SEPARATOR: &str = " = ";

/// How far apart the points are at which characters are counted beforehand.
const CHECKPOINT_BYTES: usize = 1024;

impl Source {
    /// A text of this name.
    pub fn new(file: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at as u32 + 1);
        let lines = std::iter::once(0).chain(starts).collect();
        let mut before = 0;
        let characters = text.as_bytes().chunks(CHECKPOINT_BYTES).map(|chunk| {
            let here = before;
            before += count_characters(chunk);
            here
        });
        let characters = characters.collect();
        Self { file: file.into(), text, lines, characters, fields: false }
    }

    /// An object that came without a text, as one line for each field: `spec.ingress[0].ports[1] = 22`. Its places are the
    /// object's name with the path of the field.
    pub(super) fn of_fields(file: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        Self { fields: true, ..Self::new(file, text) }
    }

    /// The line (from 1) of a byte.
    pub fn line(&self, offset: u32) -> u32 {
        self.lines.partition_point(|start| *start <= offset).max(1) as u32
    }

    /// The place of a span.
    pub fn place(&self, span: Span) -> Place {
        let start = floor(&self.text, span.start as usize);
        let end = floor(&self.text, span.end as usize).max(start);
        let line = self.line(start as u32);
        let line_start = self.lines.get(line as usize - 1).copied().unwrap_or(0) as usize;
        if self.fields {
            let field = self.text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
            let path = field.split_once(FIELD_SEPARATOR).map_or(field, |(path, _)| path);
            return Place::file(if path.is_empty() { self.file.to_string() } else { format!("{} {path}", self.file) });
        }
        let column = self.characters_before(start).saturating_sub(self.characters_before(line_start)) + 1;
        Place { file: self.file.clone(), line, column, start, end }
    }

    /// How many characters start before a byte.
    fn characters_before(&self, offset: usize) -> u32 {
        let checkpoint = (offset / CHECKPOINT_BYTES).min(self.characters.len().saturating_sub(1));
        let counted = self.characters.get(checkpoint).copied().unwrap_or(0);
        let rest = self.text.as_bytes().get(checkpoint * CHECKPOINT_BYTES..offset).unwrap_or_default();
        counted + count_characters(rest)
    }

    /// Where `length` bytes at `offset` of a string's value stand, given the span of the string as it is written: with
    /// its quotes, its escapes counted as they are written.
    pub fn inside(&self, string: Span, offset: usize, length: usize) -> Span {
        let base = string.start as usize;
        let Some(raw) = self.text.get(base..string.end as usize) else { return string };
        let written = written_offsets(raw, offset, offset + length.max(1));
        Span { start: (base + written.0) as u32, end: (base + written.1) as u32 }
    }
}

/// Every byte of UTF-8 but the continuation bytes starts a character.
fn count_characters(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u32
}

/// The last character boundary at or before `offset`.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// Byte offsets in a string of TOML or YAML as written for two byte offsets in its value.
fn written_offsets(raw: &str, from: usize, to: usize) -> (usize, usize) {
    // Only YAML has strings without quotes; a block of lines is marked as a whole.
    let quote = match raw.as_bytes().first() {
        Some(b'"' | b'\'') if raw.starts_with("\"\"\"") || raw.starts_with("'''") => 3,
        Some(b'"' | b'\'') => 1,
        Some(b'|' | b'>') => return (0, raw.len()),
        _ => 0,
    };
    let escapes = raw.starts_with('"');
    let body_end = raw.len().saturating_sub(quote).max(quote);
    let mut at = quote;
    if quote == 3 {
        // TOML drops a newline right after the opening quotes.
        at += raw
            .get(at..)
            .map_or(0, |rest| if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) });
    }
    let mut value = 0;
    let (mut start, mut end) = (None, None);
    while at < body_end {
        let Some(rest) = raw.get(at..body_end) else { break };
        let Some(first) = rest.chars().next() else { break };
        let (written, decoded) =
            if escapes && first == '\\' { escape_lengths(rest) } else { (first.len_utf8(), first.len_utf8()) };
        if decoded > 0 {
            if value >= from && start.is_none() {
                start = Some(at);
            }
            if value >= to {
                end = Some(at);
                break;
            }
        }
        value += decoded;
        at += written;
    }
    let start = start.unwrap_or(body_end);
    (start.min(raw.len()), end.unwrap_or(body_end).max(start).min(raw.len()))
}

/// How long an escape is as written and in the value.
fn escape_lengths(text: &str) -> (usize, usize) {
    let digits = match text.as_bytes().get(1) {
        Some(b'x') => 2,
        Some(b'u') => 4,
        Some(b'U') => 8,
        Some(b' ' | b'\t' | b'\r' | b'\n') => {
            let rest = text.get(1..).unwrap_or("");
            return (1 + rest.len() - rest.trim_start().len(), 0);
        }
        _ => return (2, 1),
    };
    let code = text.get(2..2 + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
    (2 + digits, code.map_or(1, char::len_utf8))
}

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Node<'t> {
    /// The value.
    pub value: Value<'t>,
    /// Where; a table with a header of its own stands at the header.
    pub span: Span,
}

/// A value of TOML, or of YAML and JSON, which have nulls instead of dates.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'t> {
    /// Nothing: `null`, or a key of YAML without a value.
    Null,
    /// Text.
    String(Cow<'t, str>),
    /// A whole number; `None` when it does not fit 64 bits.
    Integer(Option<i64>),
    /// A number with a fraction or exponent.
    Float,
    /// True or false.
    Boolean(bool),
    /// A date, a time or both, as written.
    Datetime(toml::value::Datetime),
    /// Values in order.
    Array(Vec<Node<'t>>),
    /// Keys and values, in the order in which they are written.
    Table(Vec<Entry<'t>>),
}

impl Value<'_> {
    /// What it is, for people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float => "a number with a fraction",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// A key with its value.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry<'t> {
    /// The key.
    pub key: Cow<'t, str>,
    /// Where the key stands.
    pub span: Span,
    /// Its value.
    pub node: Node<'t>,
}

/// Parses TOML. Syntax errors come as findings, several at once; the tree is what could be understood, `None` when
/// the text is too large or too deeply nested to be looked at.
pub fn parse(source: &Source) -> (Option<Node<'_>>, Vec<Finding>) {
    if source.text.len() > MAX_TEXT_BYTES {
        let message = format!("larger than {} MiB", MAX_TEXT_BYTES / (1024 * 1024));
        return (None, vec![Finding::error(Code::Unreadable, &Place::file(source.file.clone()), message)]);
    }
    if let Some((at, message)) = too_deep(&source.text) {
        let place = source.place(Span { start: at as u32, end: at as u32 + 1 });
        return (None, vec![Finding::error(Code::Syntax, &place, message)]);
    }
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let mut findings: Vec<Finding> = Vec::new();
    for error in errors {
        let range = error.span().unwrap_or(0..0);
        let span =
            Span { start: range.start.min(u32::MAX as usize) as u32, end: range.end.min(u32::MAX as usize) as u32 };
        let place = source.place(span);
        // One line is one mistake: the parser often reports what follows from it too.
        if findings.iter().any(|known| known.place.line == place.line) {
            continue;
        }
        if findings.len() == MAX_SYNTAX_ERRORS {
            break;
        }
        findings.push(Finding::error(Code::Syntax, &place, format!("not TOML: {}", error.message())));
    }
    let root = Spanned::new(table.span(), DeValue::Table(table.into_inner()));
    (Some(node(root)), findings)
}

fn narrow(range: std::ops::Range<usize>) -> Span {
    // Texts are at most MAX_TEXT_BYTES long.
    Span { start: range.start as u32, end: range.end as u32 }
}

fn node(spanned: Spanned<DeValue<'_>>) -> Node<'_> {
    let span = narrow(spanned.span());
    let value = match spanned.into_inner() {
        DeValue::String(text) => Value::String(text),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(date) => Value::Datetime(date),
        DeValue::Array(items) => Value::Array(items.into_iter().map(node).collect()),
        DeValue::Table(table) => {
            let mut entries: Vec<Entry<'_>> = table
                .into_iter()
                .map(|(key, value)| Entry { span: narrow(key.span()), key: key.into_inner(), node: node(value) })
                .collect();
            entries.sort_by_key(|entry| entry.span);
            Value::Table(entries)
        }
    };
    Node { value, span }
}

/// Where brackets are nested, or keys dotted, deeper than any document needs. The parser has a limit for each alone; their
/// product would still be a tree too deep to walk on a small stack.
fn too_deep(text: &str) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut dots) = (0, 0_usize, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'#' => at += line_length(bytes, at),
            b'"' | b'\'' => {
                at += string_length(bytes, at);
                continue;
            }
            b'[' | b'{' => {
                (depth, dots) = (depth + 1, 0);
                if depth > MAX_NESTING {
                    return Some((at, format!("nested more than {MAX_NESTING} deep")));
                }
            }
            b']' | b'}' => (depth, dots) = (depth.saturating_sub(1), 0),
            b',' | b'=' | b'\n' => dots = 0,
            b'.' => {
                dots += 1;
                if dots >= MAX_KEY_PARTS {
                    return Some((at, format!("a key of more than {MAX_KEY_PARTS} parts")));
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// How many bytes there are up to the next newline.
fn line_length(bytes: &[u8], at: usize) -> usize {
    bytes.iter().skip(at).position(|byte| *byte == b'\n').unwrap_or(bytes.len() - at).saturating_sub(1)
}

/// How long the string that starts here is, its quotes included. An unclosed one ends with its line, or with the text.
fn string_length(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some(&quote) = rest.first() else { return 1 };
    let triple = rest.starts_with(&[quote; 3]);
    let mut index = if triple { 3 } else { 1 };
    while let Some(&byte) = rest.get(index) {
        match byte {
            b'\\' if quote == b'"' => index += 1,
            b'\n' if !triple => return index,
            _ if byte == quote && !triple => return index + 1,
            _ if byte == quote && rest.get(index..).is_some_and(|tail| tail.starts_with(&[quote; 3])) => {
                // Up to two more quotes belong to the string's value.
                let extra = rest.iter().skip(index + 3).take(2).take_while(|next| **next == quote).count();
                return index + 3 + extra;
            }
            _ => {}
        }
        index += 1;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn text_at(source: &Source, span: Span) -> &str {
        &source.text[span.start as usize..span.end as usize]
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let source = Source::new("a.toml", "'é' = 'x'\n[[policy]]\nname = \"ssh\"\nports = [22,\n  70000]\n");
        let (root, findings) = parse(&source);
        assert_eq!(findings, []);
        let Value::Table(entries) = root.unwrap().value else { panic!("no table") };
        let Value::Array(policies) = &entries[1].node.value else { panic!("no array") };
        assert_eq!(text_at(&source, policies[0].span), "[[policy]]");
        let Value::Table(fields) = &policies[0].value else { panic!("no table") };
        assert_eq!(text_at(&source, fields[0].span), "name");
        assert_eq!(text_at(&source, fields[0].node.span), "\"ssh\"");
        let Value::Array(ports) = &fields[1].node.value else { panic!("no array") };
        assert_eq!(source.place(ports[1].span).to_string(), "a.toml:5:3");
        assert_eq!(source.place(entries[0].node.span).to_string(), "a.toml:1:7");
    }

    #[test]
    fn columns_are_characters_however_long_the_line() {
        let text = format!("é\n{}x", "漢é1".repeat(2000));
        let source = Source::new("a", text.as_str());
        for (at, _) in text.char_indices() {
            let line_start = if at > 2 { 3 } else { 0 };
            let expected = text[line_start..at].chars().count() as u32 + 1;
            assert_eq!(source.place(Span { start: at as u32, end: at as u32 }).column, expected, "{at}");
        }
    }

    #[test]
    fn several_syntax_errors_come_at_once() {
        let source = Source::new("a.toml", "a = \nb = 1\nc = [1 2]\nd = \"x\ne = 1\n");
        let (_, findings) = parse(&source);
        let lines: Vec<u32> = findings.iter().map(|finding| finding.place.line).collect();
        assert_eq!(lines, [1, 3, 4]);
    }

    #[test]
    fn nesting_is_limited_and_never_overflows_the_stack() {
        for (open, close) in [("[", "]"), ("{a=", "}"), ("{a.a.a.a.a.a.a=", "}"), ("[[", "]]"), ("[{a=", "}]")] {
            for depth in [17, 1000, 200_000] {
                let text = format!("a = {}1{}", open.repeat(depth), close.repeat(depth));
                let source = Source::new("a", text);
                let (root, findings) = parse(&source);
                assert!(root.is_none() && findings.len() == 1, "{open} {depth}");
            }
        }
        for text in [format!("a{} = 1", ".a".repeat(100_000)), format!("[a{}]", ".a".repeat(100_000))] {
            assert!(parse(&Source::new("a", text)).0.is_none());
        }
        let fine = "a = [[[[1]]]] # [[[[[[[[[[[[[[[[[[[[[[[[[[[\nb = '[[[[[[[[[[[[[[[[[[[[[[[[[['\nc = \"\"\"[[[[[[[[[[[[\n[[[[[[[[[[[[[\"\"\"\n[a1.b.c]\n";
        let source = Source::new("a", fine);
        let (root, findings) = parse(&source);
        assert!(root.is_some() && findings.is_empty(), "{findings:?}");
    }

    #[test]
    fn a_place_inside_a_string_counts_quotes_and_escapes() {
        let check = |text: &str, offset, length, expected: &str| {
            let source = Source::new("a", format!("k = {text}"));
            let span = Span { start: 4, end: source.text.len() as u32 };
            assert_eq!(text_at(&source, source.inside(span, offset, length)), expected, "{text}");
        };
        check("\"abc\"", 1, 1, "b");
        check("'abc'", 2, 1, "c");
        check("'abc'", 3, 1, "");
        check("\"a\\tbc\"", 2, 2, "bc");
        check("\"\\u00e9bc\"", 2, 1, "b");
        check("\"\"\"\nab\"\"\"", 0, 1, "a");
        check("\"\"\"a\\\n   b\"\"\"", 1, 1, "b");
        check("\"é=\"", 2, 1, "=");
        check("plain text", 6, 4, "text");
        check("|-\n  a block", 2, 3, "|-\n  a block");
    }
}
