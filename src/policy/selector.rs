//! Label selectors with Calico's grammar (projectcalico/calico `libcalico-go/lib/selector`): `all()`, `has(k)`, `==`,
//! `!=`, `in {}`, `not in {}`, `contains`, `starts with`, `ends with`, `!`, `&&`, `||` and parentheses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How deep parentheses may be nested.
const MAX_DEPTH: usize = 32;

/// The longest label name (Calico's limit).
const MAX_LABEL_LENGTH: usize = 512;

/// The labels that a selector looks at.
pub type Labels = BTreeMap<String, String>;

/// What a selector can look at.
pub trait Labelled {
    /// The value of a label, if it is there.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// A parsed selector.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Selector {
    /// `all()`: everything.
    All,
    /// `has(k)`: the label is there, whatever its value.
    Has(String),
    /// `k == 'v'`.
    Equals(String, String),
    /// `k != 'v'`; true when the label is absent.
    NotEquals(String, String),
    /// `k in {'a', 'b'}`.
    In(String, BTreeSet<String>),
    /// `k not in {'a', 'b'}`; true when the label is absent.
    NotIn(String, BTreeSet<String>),
    /// `k contains 's'`.
    Contains(String, String),
    /// `k starts with 's'`.
    StartsWith(String, String),
    /// `k ends with 's'`.
    EndsWith(String, String),
    /// `!s`.
    Not(Box<Selector>),
    /// `a && b`.
    And(Vec<Selector>),
    /// `a || b`.
    Or(Vec<Selector>),
}

impl Selector {
    /// Whether the labels satisfy the selector.
    pub fn matches(&self, labels: &impl Labelled) -> bool {
        let value = |key: &String| labels.label(key);
        match self {
            Self::All => true,
            Self::Has(key) => value(key).is_some(),
            Self::Equals(key, wanted) => value(key) == Some(wanted.as_str()),
            Self::NotEquals(key, wanted) => value(key) != Some(wanted.as_str()),
            Self::In(key, wanted) => value(key).is_some_and(|found| wanted.contains(found)),
            Self::NotIn(key, wanted) => value(key).is_none_or(|found| !wanted.contains(found)),
            Self::Contains(key, part) => value(key).is_some_and(|found| found.contains(part.as_str())),
            Self::StartsWith(key, part) => value(key).is_some_and(|found| found.starts_with(part.as_str())),
            Self::EndsWith(key, part) => value(key).is_some_and(|found| found.ends_with(part.as_str())),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(labels)),
        }
    }
}

/// Why a text is not a selector, and where in the text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SelectorError {
    /// Byte offset of what is wrong.
    pub offset: usize,
    /// How many bytes are wrong; 0 at the end of the text.
    pub len: usize,
    /// What is wrong: lower case, no full stop.
    pub message: String,
}

impl Selector {
    /// Parses a selector. `!` binds tighter than `&&`, `&&` tighter than `||`. An empty text is not a selector: what is
    /// meant to select everything says `all()`.
    ///
    /// # Errors
    /// The first thing that does not fit the grammar.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, at: 0 };
        if parser.rest().is_empty() {
            return Err(parser.error_here("an empty selector; write all() to select everything"));
        }
        let selector = parser.alternatives(0)?;
        if !parser.rest().is_empty() {
            return Err(parser.unexpected("&&, || or the end"));
        }
        Ok(selector)
    }
}

impl fmt::Display for Selector {
    /// Prints text that [`Selector::parse`] reads back as the same selector. (A value that has both kinds of quotes
    /// has no text in this grammar; no parsed selector contains one.)
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => formatter.write_str("all()"),
            Self::Has(key) => write!(formatter, "has({key})"),
            Self::Equals(key, value) => write!(formatter, "{key} == {}", Quoted(value)),
            Self::NotEquals(key, value) => write!(formatter, "{key} != {}", Quoted(value)),
            Self::In(key, values) => write!(formatter, "{key} in {}", Braces(values)),
            Self::NotIn(key, values) => write!(formatter, "{key} not in {}", Braces(values)),
            Self::Contains(key, value) => write!(formatter, "{key} contains {}", Quoted(value)),
            Self::StartsWith(key, value) => write!(formatter, "{key} starts with {}", Quoted(value)),
            Self::EndsWith(key, value) => write!(formatter, "{key} ends with {}", Quoted(value)),
            Self::Not(inner) => match **inner {
                Self::All | Self::Has(_) => write!(formatter, "!{inner}"),
                _ => write!(formatter, "!({inner})"),
            },
            Self::And(parts) => joined(formatter, parts, " && ", "all()"),
            Self::Or(parts) => joined(formatter, parts, " || ", "!all()"),
        }
    }
}

/// Parts that are themselves `&&` or `||` get parentheses.
fn joined(formatter: &mut fmt::Formatter<'_>, parts: &[Selector], between: &str, none: &str) -> fmt::Result {
    if parts.is_empty() {
        return formatter.write_str(none);
    }
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            formatter.write_str(between)?;
        }
        match part {
            Selector::And(_) | Selector::Or(_) => write!(formatter, "({part})")?,
            _ => write!(formatter, "{part}")?,
        }
    }
    Ok(())
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('\'') { '"' } else { '\'' };
        write!(formatter, "{quote}{}{quote}", self.0)
    }
}

struct Braces<'a>(&'a BTreeSet<String>);

impl fmt::Display for Braces<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("{")?;
        for (index, value) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(formatter, "{comma}{}", Quoted(value))?;
        }
        formatter.write_str("}")
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    /// What is left, white space skipped.
    fn rest(&mut self) -> &'t str {
        let rest = self.text.get(self.at..).unwrap_or("");
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed
    }

    /// Takes a sign if it comes next.
    fn take(&mut self, sign: &str) -> bool {
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    /// Takes a word if it comes next and ends there.
    fn take_word(&mut self, word: &str) -> bool {
        let rest = self.rest();
        let found = rest.strip_prefix(word).is_some_and(|after| !after.starts_with(is_label_character));
        if found {
            self.at += word.len();
        }
        found
    }

    /// Takes one word, or two with any white space between them or none: "starts with", "startswith".
    fn take_words(&mut self, first: &str, second: &str) -> bool {
        let start = self.at;
        if self.take(first) && self.take_word(second) {
            return true;
        }
        self.at = start;
        false
    }

    fn error_here(&self, message: impl Into<String>) -> SelectorError {
        SelectorError { offset: self.at, len: 0, message: message.into() }
    }

    /// What comes next is not what should.
    fn unexpected(&mut self, wanted: &str) -> SelectorError {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return self.error_here(format!("the selector ends where {wanted} should follow"));
        };
        if first == '=' && !rest.starts_with("==") {
            return SelectorError { offset: self.at, len: 1, message: "= is not an operator; write ==".to_owned() };
        }
        let word = rest.find(|character| !is_label_character(character)).unwrap_or(rest.len());
        let len = if word == 0 { first.len_utf8() } else { word };
        let shown: String = rest.get(..len).unwrap_or("").chars().take(40).filter(|next| !next.is_control()).collect();
        SelectorError { offset: self.at, len, message: format!("found \"{shown}\" where {wanted} should follow") }
    }

    /// `a || b || c`
    fn alternatives(&mut self, depth: usize) -> Result<Selector, SelectorError> {
        let first = self.conjunction(depth)?;
        let mut parts = vec![first];
        while self.take("||") {
            parts.push(self.conjunction(depth)?);
        }
        Ok(if parts.len() > 1 { Selector::Or(parts) } else { parts.remove(0) })
    }

    /// `a && b && c`
    fn conjunction(&mut self, depth: usize) -> Result<Selector, SelectorError> {
        let first = self.negation(depth)?;
        let mut parts = vec![first];
        while self.take("&&") {
            parts.push(self.negation(depth)?);
        }
        Ok(if parts.len() > 1 { Selector::And(parts) } else { parts.remove(0) })
    }

    /// `!a`; two of them cancel out.
    fn negation(&mut self, depth: usize) -> Result<Selector, SelectorError> {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        let inner = self.single(depth)?;
        Ok(if negated { Selector::Not(Box::new(inner)) } else { inner })
    }

    /// `(a)`, `all()`, `has(k)` or a comparison.
    fn single(&mut self, depth: usize) -> Result<Selector, SelectorError> {
        if self.rest().starts_with('(') {
            if depth == MAX_DEPTH {
                let message = format!("parentheses nested more than {MAX_DEPTH} deep");
                return Err(SelectorError { offset: self.at, len: 1, message });
            }
            self.at += 1;
            let inner = self.alternatives(depth + 1)?;
            return if self.take(")") { Ok(inner) } else { Err(self.unexpected("&&, || or )")) };
        }
        let (key, start) = self.label("a label, all(), has(..) or (")?;
        if self.take("(") {
            return self.function(key, start);
        }
        let key = key.to_owned();
        if self.take("==") {
            Ok(Selector::Equals(key, self.quoted()?))
        } else if self.take("!=") {
            Ok(Selector::NotEquals(key, self.quoted()?))
        } else if self.take_words("not", "in") {
            Ok(Selector::NotIn(key, self.braces()?))
        } else if self.take_word("in") {
            Ok(Selector::In(key, self.braces()?))
        } else if self.take_word("contains") {
            Ok(Selector::Contains(key, self.quoted()?))
        } else if self.take_words("starts", "with") {
            Ok(Selector::StartsWith(key, self.quoted()?))
        } else if self.take_words("ends", "with") {
            Ok(Selector::EndsWith(key, self.quoted()?))
        } else {
            Err(self.unexpected("==, !=, in, not in, contains, starts with or ends with"))
        }
    }

    /// What follows `name(`.
    fn function(&mut self, name: &str, start: usize) -> Result<Selector, SelectorError> {
        let selector = match name {
            "all" => Selector::All,
            "has" => Selector::Has(self.label("a label")?.0.to_owned()),
            _ => {
                let message = match name {
                    "global" => "global() selects namespaces, and there are none here".to_owned(),
                    _ => format!("there is no {}(); write all() or has(label)", short(name)),
                };
                return Err(SelectorError { offset: start, len: name.len(), message });
            }
        };
        if self.take(")") { Ok(selector) } else { Err(self.unexpected(")")) }
    }

    /// A label name and where it starts.
    fn label(&mut self, wanted: &str) -> Result<(&'t str, usize), SelectorError> {
        let rest = self.rest();
        let len = rest.find(|character| !is_label_character(character)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.unexpected(wanted));
        }
        let start = self.at;
        if len > MAX_LABEL_LENGTH {
            let message = format!("a label name longer than {MAX_LABEL_LENGTH} characters");
            return Err(SelectorError { offset: start, len, message });
        }
        self.at += len;
        Ok((rest.get(..len).unwrap_or(""), start))
    }

    /// `'value'` or `"value"`; there are no escapes.
    fn quoted(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let quote = match rest.chars().next() {
            Some(quote @ ('\'' | '"')) => quote,
            _ => return Err(self.unexpected("a value in quotes")),
        };
        let body = rest.get(1..).unwrap_or("");
        let Some(len) = body.find(quote) else {
            let message = format!("this {quote} is not closed");
            return Err(SelectorError { offset: self.at, len: 1, message });
        };
        self.at += len + 2;
        Ok(body.get(..len).unwrap_or("").to_owned())
    }

    /// `{'a', 'b'}`
    fn braces(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if !self.take("{") {
            return Err(self.unexpected("{"));
        }
        let mut values = BTreeSet::new();
        while !self.take("}") {
            values.insert(self.quoted()?);
            if !self.take(",") && !self.rest().starts_with('}') {
                return Err(self.unexpected(", or }"));
            }
        }
        Ok(values)
    }
}

fn short(name: &str) -> String {
    name.chars().take(40).collect()
}

/// Calico: `[a-zA-Z0-9_./-]{1,512}`.
fn is_label_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '/' | '-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn parsed(text: &str) -> Selector {
        Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_operator_selects_what_calico_says() {
        let node = labels(&[("role", "rail"), ("name", "enp1s0"), ("a.b/c-d_e", "x\"y")]);
        for (text, expected) in [
            ("all()", true),
            (" all( ) ", true),
            ("has(role)", true),
            ("has( nope )", false),
            ("!has(nope)", true),
            ("! ! has(role)", true),
            ("role == 'rail'", true),
            ("role=='rail'", true),
            ("role == \"rail\"", true),
            ("nope == 'rail'", false),
            ("role != 'rail'", false),
            ("nope != 'rail'", true),
            ("role in {'mgmt', 'rail'}", true),
            ("role in{\"mgmt\",}", false),
            ("role in {}", false),
            ("role not in {'mgmt'}", true),
            ("nope not in {'mgmt'}", true),
            ("role notin {'rail'}", false),
            ("name contains 'p1'", true),
            ("nope contains ''", false),
            ("name starts with 'enp'", true),
            ("name startswith 'p1'", false),
            ("name ends   with 's0'", true),
            ("a.b/c-d_e == 'x\"y'", true),
            ("!role == 'rail'", false),
            ("has(nope) && has(nope) || has(role)", true),
            ("has(role) || has(nope) && has(nope)", true),
            ("(has(role) || has(nope)) && has(nope)", false),
            ("!has(role) || has(role)", true),
            ("!(has(role) || has(nope))", false),
        ] {
            assert_eq!(parsed(text).matches(&node), expected, "{text}");
        }
    }

    #[test]
    fn words_of_the_grammar_can_be_labels() {
        assert_eq!(parsed("in in {'x'}"), Selector::In("in".into(), BTreeSet::from(["x".into()])));
        assert_eq!(parsed("all == 'x'"), Selector::Equals("all".into(), "x".into()));
        assert_eq!(parsed("has contains 'x'"), Selector::Contains("has".into(), "x".into()));
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        for text in [
            "all()",
            "!all()",
            "!(!(a == 'b'))",
            "a == \"it's\" && b != 'x\"y'",
            "a in {'x', 'y'} || b not in {}",
            "(a == 'b' && (c == 'd' && has(e))) || (f ends with '' || g starts with 'x')",
            "!(a contains 'b' || has(c)) && !has(d)",
        ] {
            let selector = parsed(text);
            assert_eq!(parsed(&selector.to_string()), selector, "{text} -> {selector}");
        }
    }

    #[test]
    fn an_error_says_what_and_where() {
        for (text, offset, len, message) in [
            ("", 0, 0, "an empty selector; write all() to select everything"),
            ("  ", 2, 0, "an empty selector; write all() to select everything"),
            ("role = 'rail'", 5, 1, "= is not an operator; write =="),
            ("role == rail", 8, 4, "found \"rail\" where a value in quotes should follow"),
            ("role == 'rail", 8, 1, "this ' is not closed"),
            ("role ==", 7, 0, "the selector ends where a value in quotes should follow"),
            ("role in 'a'", 8, 1, "found \"'\" where { should follow"),
            ("role in {'a' 'b'}", 13, 1, "found \"'\" where , or } should follow"),
            ("role in {'a'", 12, 0, "the selector ends where , or } should follow"),
            (
                "role is 'a'",
                5,
                2,
                "found \"is\" where ==, !=, in, not in, contains, starts with or ends with should follow",
            ),
            (
                "all",
                3,
                0,
                "the selector ends where ==, !=, in, not in, contains, starts with or ends with should follow",
            ),
            ("any()", 0, 3, "there is no any(); write all() or has(label)"),
            ("global()", 0, 6, "global() selects namespaces, and there are none here"),
            ("has(a) has(b)", 7, 3, "found \"has\" where &&, || or the end should follow"),
            ("has(a) & has(b)", 7, 1, "found \"&\" where &&, || or the end should follow"),
            ("(has(a)", 7, 0, "the selector ends where &&, || or ) should follow"),
            ("has(a) &&", 9, 0, "the selector ends where a label, all(), has(..) or ( should follow"),
            ("a == 'é' && é", 13, 2, "found \"é\" where a label, all(), has(..) or ( should follow"),
        ] {
            let error = Selector::parse(text).unwrap_err();
            assert_eq!((error.offset, error.len, error.message.as_str()), (offset, len, message), "{text}");
        }
    }

    #[test]
    fn no_depth_overflows_the_stack() {
        assert!(Selector::parse(&format!("{}all(){}", "(".repeat(32), ")".repeat(32))).is_ok());
        for open in ["(", "!(", "((", "(!"] {
            assert!(Selector::parse(&open.repeat(200_000)).is_err());
        }
        assert!(Selector::parse(&format!("{}all()", "!".repeat(200_001))).is_ok());
        assert!(Selector::parse(&"a".repeat(513)).is_err());
    }
}
