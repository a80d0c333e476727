//! Takes a tree apart and collects everything that is wrong with it: unknown and missing keys, wrong types, bad values.

use super::finding::{Code, Finding, Severity};
use super::place::Place;
use super::tree::{Entry, Node, Source, Span, Value};

/// How many findings of one text are kept; the last one then says how many more there are.
const MAX_FINDINGS: usize = 200;

/// Reads nodes of one text and collects findings. A read that fails has reported why and returns `None`.
#[derive(Debug)]
pub struct Reader<'t> {
    source: &'t Source,
    findings: Vec<Finding>,
    errors: usize,
    dropped: usize,
}

impl<'t> Reader<'t> {
    /// A reader that has found nothing yet.
    pub fn new(source: &'t Source) -> Self {
        Self { source, findings: Vec::new(), errors: 0, dropped: 0 }
    }

    /// The text.
    pub fn source(&self) -> &'t Source {
        self.source
    }

    /// How many errors there are so far; a document is good when the number is the same after it as before.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Everything that was found.
    pub fn into_findings(mut self) -> Vec<Finding> {
        if let (true, Some(last)) = (self.dropped > 0, self.findings.last_mut()) {
            last.help = format!("there are {} more findings in this file; mend these first", self.dropped);
        }
        self.findings
    }

    /// The place of a span.
    pub fn place(&self, span: Span) -> Place {
        self.source.place(span)
    }

    /// Keeps a finding.
    pub fn report(&mut self, finding: Finding) {
        if finding.severity == Severity::Error {
            self.errors += 1;
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.dropped += 1;
        }
    }

    /// Keeps an error.
    pub fn error(&mut self, code: Code, span: Span, message: impl Into<String>) {
        self.report(Finding::error(code, &self.place(span), message));
    }

    /// Keeps an error with advice.
    pub fn error_with_help(&mut self, code: Code, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.report(Finding::error(code, &self.place(span), message).help(help));
    }

    /// Text.
    pub fn string<'n>(&mut self, node: &'n Node<'t>, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::String(text) => Some(text),
            other => self.wrong_type(node, what, "a string", other),
        }
    }

    /// True or false.
    pub fn boolean(&mut self, node: &Node<'t>, what: &str) -> Option<bool> {
        match &node.value {
            Value::Boolean(value) => Some(*value),
            other => self.wrong_type(node, what, "true or false", other),
        }
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, node: &Node<'t>, what: &str, least: i64, most: i64) -> Option<i64> {
        let Value::Integer(value) = &node.value else {
            return self.wrong_type(node, what, "an integer", &node.value);
        };
        match value {
            Some(value) if (least..=most).contains(value) => Some(*value),
            _ => {
                self.error(Code::Value, node.span, format!("{what} must be from {least} to {most}"));
                None
            }
        }
    }

    /// A list.
    pub fn list<'n>(&mut self, node: &'n Node<'t>, what: &str) -> Option<&'n [Node<'t>]> {
        match &node.value {
            Value::Array(items) => Some(items),
            other => {
                let message = format!("{what} must be a list, not {}", other.kind());
                let help = match other {
                    Value::Table(_) => "",
                    Value::Null => "write [] for a list without anything, or leave the key out",
                    _ => "put it in square brackets",
                };
                self.error_with_help(Code::Type, node.span, message, help);
                None
            }
        }
    }

    /// A table.
    pub fn table<'n>(&mut self, node: &'n Node<'t>, what: &str) -> Option<Fields<'n, 't>> {
        match &node.value {
            Value::Table(entries) => Some(Fields { span: node.span, entries, asked: Vec::new() }),
            other => self.wrong_type(node, what, "a table", other),
        }
    }

    /// One of a few words.
    pub fn word<W: Copy>(&mut self, node: &Node<'t>, what: &str, words: &[(&str, W)]) -> Option<W> {
        let text = self.string(node, what)?;
        if let Some((_, word)) = words.iter().find(|(name, _)| *name == text) {
            return Some(*word);
        }
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let message = format!("{} is not {} {what}", quoted(text), article(what));
        self.error_with_help(Code::Value, node.span, message, suggestion(text, &names));
        None
    }

    fn wrong_type<T>(&mut self, node: &Node<'t>, what: &str, wanted: &str, found: &Value<'t>) -> Option<T> {
        self.error(Code::Type, node.span, format!("{what} must be {wanted}, not {}", found.kind()));
        None
    }
}

/// The entries of a table. Every key that exists has to be asked for; [`Fields::finish`] reports the others.
#[derive(Debug)]
pub struct Fields<'n, 't> {
    /// Where the table stands.
    pub span: Span,
    entries: &'n [Entry<'t>],
    asked: Vec<&'static str>,
}

impl<'n, 't> Fields<'n, 't> {
    /// The value of a key, if it is there.
    pub fn get(&mut self, key: &'static str) -> Option<&'n Node<'t>> {
        Some(&self.entry(key)?.node)
    }

    /// The key with its value, if it is there.
    pub fn entry(&mut self, key: &'static str) -> Option<&'n Entry<'t>> {
        self.asked.push(key);
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The value of a key that must be there; `what` says what the table is.
    pub fn need(&mut self, reader: &mut Reader<'t>, key: &'static str, what: &str) -> Option<&'n Node<'t>> {
        let found = self.get(key);
        if found.is_none() {
            reader.error(Code::MissingKey, self.span, format!("{what} has no `{key}`"));
        }
        found
    }

    /// Whether the table has no entry at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries: for tables whose keys are the operator's own, like labels.
    pub fn entries(&self) -> &'n [Entry<'t>] {
        self.entries
    }

    /// Reports every key that nobody asked for, with the nearest one that exists.
    pub fn finish(self, reader: &mut Reader<'t>, what: &str) {
        for entry in self.entries {
            if self.asked.iter().any(|key| entry.key == *key) {
                continue;
            }
            let message = format!("{} is not a key of {what}", quoted(&entry.key));
            reader.error_with_help(Code::UnknownKey, entry.span, message, suggestion(&entry.key, &self.asked));
        }
    }
}

/// Text of an operator inside a message: quoted, without control characters, cut when long.
pub fn quoted(text: &str) -> String {
    let mut short = String::new();
    for character in text.chars().take(80) {
        match character.is_control() {
            true => short.extend(character.escape_default()),
            false => short.push(character),
        }
    }
    if text.chars().nth(80).is_some() {
        short.push_str("...");
    }
    format!("\"{short}\"")
}

/// What could have been meant: the nearest of the known words, or all of them when none is near.
pub fn suggestion(text: &str, known: &[&str]) -> String {
    if text.len() <= 64
        && let Some(nearest) = nearest(text, known.iter().copied())
    {
        return format!("did you mean \"{nearest}\"?");
    }
    let mut words: Vec<&str> = known.to_vec();
    words.sort_unstable();
    words.dedup();
    format!("it can be: {}", words.join(", "))
}

/// The known word that is nearest to a text, if one is near enough to be a typing error.
pub fn nearest<'k>(text: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = text.to_ascii_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&lower, &word.to_ascii_lowercase()), word))
        .filter(|(distance, word)| *distance <= 1 + word.len().min(lower.len()) / 4)
        .min()
        .map(|(_, word)| word)
}

fn article(what: &str) -> &'static str {
    if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::tree::parse;
    use super::*;

    #[test]
    fn all_mistakes_are_found_in_one_run() {
        let source = Source::new("x.toml", "nme = 'a'\nport = 'b'\nkind = 'vech'\nextra = 1\n");
        let (root, syntax) = parse(&source);
        assert_eq!(syntax, []);
        let root = root.unwrap();
        let mut reader = Reader::new(&source);
        let mut fields = reader.table(&root, "a thing").unwrap();
        assert!(fields.need(&mut reader, "name", "a thing").is_none());
        let port = fields.get("port").unwrap();
        assert_eq!(reader.integer(port, "port", 0, 65535), None);
        let kind = fields.get("kind").unwrap();
        assert_eq!(reader.word(kind, "kind", &[("veth", 1), ("vlan", 2)]), None);
        fields.finish(&mut reader, "a thing");
        let found: Vec<String> =
            reader.into_findings().iter().map(|f| format!("{} {} | {}", f.place, f.message, f.help)).collect();
        assert_eq!(
            found,
            [
                "x.toml:1:1 a thing has no `name` | ",
                "x.toml:2:8 port must be an integer, not a string | ",
                "x.toml:3:8 \"vech\" is not a kind | did you mean \"veth\"?",
                "x.toml:1:1 \"nme\" is not a key of a thing | did you mean \"name\"?",
                "x.toml:4:1 \"extra\" is not a key of a thing | it can be: kind, name, port",
            ]
        );
    }

    #[test]
    fn a_flood_of_findings_is_counted_not_kept() {
        let source = Source::new("x.toml", "");
        let mut reader = Reader::new(&source);
        for _ in 0..100_000 {
            reader.error(Code::Value, Span::default(), "bad");
        }
        assert_eq!(reader.errors(), 100_000);
        let findings = reader.into_findings();
        assert_eq!(findings.len(), MAX_FINDINGS);
        assert!(findings.last().unwrap().help.contains("99800 more"));
    }
}
