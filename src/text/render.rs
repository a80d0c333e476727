//! Findings as text for people, with the source line and a marker, and as one line each for logs.

use std::collections::BTreeMap;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::finding::{Finding, Severity};
use super::place::Place;

/// A source line longer than this many bytes is not shown; nobody could read it.
const LONGEST_LINE_SHOWN: usize = 2000;

/// Findings for people, in the order of [`sorted`]: message, source line with a marker, related places, advice. The file of a place is
/// looked up in `texts`; a file that is not there is only named. `color` adds ANSI colours.
pub fn render(findings: &[Finding], texts: &BTreeMap<Arc<str>, Arc<str>>, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for finding in sorted(findings) {
        let level = match finding.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(finding.message.as_str()).id(finding.code.name());
        let mut group = at_place(Group::with_title(title), &finding.place, &finding.label, texts, true);
        for (place, words) in &finding.related {
            group = at_place(group, place, words, texts, false);
        }
        if !finding.help.is_empty() {
            group = group.element(Level::HELP.message(finding.help.as_str()));
        }
        let text = renderer.render(&[group]);
        // The renderer pads some lines; what is printed and kept in files has no trailing blanks.
        for line in text.lines() {
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

/// A finding as one line: `file:line:column: error[code]: message; help`.
pub fn line(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut text = format!("{}: {severity}[{}]: {}", finding.place, finding.code.name(), finding.message);
    for (place, words) in &finding.related {
        text.push_str(&format!("; {words} at {place}"));
    }
    if !finding.help.is_empty() {
        text.push_str("; ");
        text.push_str(&finding.help);
    }
    text.replace(['\n', '\r'], " ")
}

/// The first line of a place, without the white space around it; `None` for a file as a whole and for one that is not in `texts`.
pub fn source_line<'a>(texts: &'a BTreeMap<Arc<str>, Arc<str>>, place: &Place) -> Option<&'a str> {
    let (line, ..) = window(texts.get(&place.file)?, place)?;
    Some(line.trim())
}

/// Findings in the order in which they are printed: by file, position, then severity and code; the same one twice only once.
pub fn sorted(findings: &[Finding]) -> Vec<&Finding> {
    let key = |finding: &Finding| (finding.place.clone(), std::cmp::Reverse(finding.severity), finding.code);
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| a.message.cmp(&b.message)));
    sorted.dedup();
    sorted
}

/// Adds the line of a place with a marker, or only the name where there is no text to show.
fn at_place<'a>(
    group: Group<'a>,
    place: &'a Place,
    words: &'a str,
    texts: &'a BTreeMap<Arc<str>, Arc<str>>,
    primary: bool,
) -> Group<'a> {
    let Some((shown, start, end)) = texts.get(&place.file).and_then(|text| window(text, place)) else {
        let mut origin = Origin::path(&*place.file);
        if place.line > 0 {
            origin = origin.line(place.line as usize).char_column(place.column as usize);
        }
        let group = group.element(origin);
        return if words.is_empty() { group } else { group.element(Level::NOTE.message(words)) };
    };
    let kind = if primary { AnnotationKind::Primary } else { AnnotationKind::Context };
    let mut annotation = kind.span(start..end);
    if !words.is_empty() {
        annotation = annotation.label(words);
    }
    group.element(Snippet::source(shown).line_start(place.line as usize).path(&*place.file).annotation(annotation))
}

/// The line of a place, and the marker's bytes in it: only that line, as the renderer's work grows with the text it is
/// given. A place over several lines is marked to the end of its first.
fn window<'a>(text: &'a str, place: &Place) -> Option<(&'a str, usize, usize)> {
    if place.line == 0 {
        return None;
    }
    let before = text.get(..place.start)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text.get(line_start..)?.split('\n').next()?;
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.len() > LONGEST_LINE_SHOWN {
        return None;
    }
    let start = (place.start - line_start).min(line.len());
    let end = place.end.saturating_sub(line_start).clamp(start, line.len());
    (line.is_char_boundary(start) && line.is_char_boundary(end)).then_some((line, start, end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::finding::Code;
    use super::super::tree::{Source, Span};
    use super::*;

    fn texts(source: &Source) -> BTreeMap<Arc<str>, Arc<str>> {
        [(source.file.clone(), source.text.clone())].into()
    }

    #[test]
    fn a_finding_shows_its_line_with_a_marker() {
        let source = Source::new("10-x.toml", "a = 1\n  ports = [22, 70000]\n");
        let at = |text: &str| {
            let start = source.text.find(text).unwrap() as u32;
            source.place(Span { start, end: start + text.len() as u32 })
        };
        let finding = Finding::error(Code::Value, &at("70000"), "70000 is not a port")
            .label("here")
            .help("ports go from 0 to 65535")
            .related(&at("a"), "first seen");
        assert_eq!(
            line(&finding),
            "10-x.toml:2:16: error[value]: 70000 is not a port; first seen at 10-x.toml:1:1; ports go from 0 to 65535"
        );
        let plain = render(&[finding.clone(), finding.clone()], &texts(&source), false);
        assert!(plain.contains("error[value]: 70000 is not a port\n"), "{plain}");
        assert!(plain.contains("10-x.toml:2:16\n"), "{plain}");
        assert!(plain.contains("2 |   ports = [22, 70000]\n"), "{plain}");
        assert!(plain.contains("^^^^^ here\n"), "{plain}");
        assert!(plain.contains("help: ports go from 0 to 65535"), "{plain}");
        assert!(!plain.contains('\u{1b}'));
        assert_eq!(plain.matches("error[value]").count(), 1);
        assert_eq!(source_line(&texts(&source), &finding.place), Some("ports = [22, 70000]"));
        assert_eq!(source_line(&texts(&source), &Place::file("10-x.toml")), None);
        assert!(render(&[finding], &texts(&source), true).contains('\u{1b}'));
    }

    #[test]
    fn a_file_as_a_whole_is_only_named() {
        let finding = Finding::error(Code::Unreadable, &Place::file("/etc/x.toml"), "is a directory");
        assert_eq!(line(&finding), "/etc/x.toml: error[unreadable]: is a directory");
        let plain = render(&[finding], &BTreeMap::new(), false);
        assert!(plain.contains("/etc/x.toml\n"), "{plain}");
    }

    #[test]
    fn places_beyond_the_text_do_no_harm() {
        let source = Source::new("x", "é");
        for (start, end) in [(0, 1), (1, 2), (1, 1), (2, 2), (2, 9), (9, 3)] {
            let place = Place { file: "x".into(), line: 1, column: 1, start, end };
            let text = render(&[Finding::error(Code::Value, &place, "m")], &texts(&source), false);
            assert!(text.contains("error[value]: m"));
        }
    }
}
