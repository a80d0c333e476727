//! Where the text of a rule is: in a file of this host, in the program, or elsewhere.

use crate::daemon::status::PolicyRecord;
use crate::policy::guards;

use super::model::RuleKey;

/// How many lines are shown before and after that of the rule.
const AROUND: usize = 4;

/// Where a text is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Whereabouts {
    /// In this file, at this line.
    File { path: String, line: usize },
    /// In the program, at this line of the guards' policy file.
    Guards { line: usize },
    /// Nowhere that could be read; why.
    Nowhere(String),
}

/// A text, or why there is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Source {
    /// The file; empty without one.
    pub(super) path: String,
    /// Lines with their numbers, and whether it is the rule's.
    pub(super) lines: Vec<(usize, bool, String)>,
    /// What is to be said instead or as well.
    pub(super) note: Option<String>,
}

/// Finds the text of a rule. Rules name their file without its directory; the policy knows the directory. `settings` is the path of
/// nodewall.toml.
pub(super) fn whereabouts(rule: &RuleKey, policies: &[PolicyRecord], settings: &str) -> Whereabouts {
    let nowhere = |why: &str| Whereabouts::Nowhere(why.to_owned());
    if rule.place.is_empty() {
        return nowhere("a default has no text: it is what holds where no rule decides");
    }
    let Some((file, line)) = rule.place.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)))
    else {
        return nowhere("its place has no line");
    };
    let path = match policies.iter().find(|policy| policy.name == rule.policy()) {
        Some(policy) => file_of(&policy.place),
        None => settings,
    };
    if path == guards::FILE {
        return Whereabouts::Guards { line };
    }
    if path.starts_with("cluster ") {
        return Whereabouts::Nowhere(format!("it comes from {path}"));
    }
    if path.rsplit('/').next() != Some(file) {
        return Whereabouts::Nowhere(format!("it is not known in which directory {file} is"));
    }
    Whereabouts::File { path: path.to_owned(), line }
}

/// The file of a place as `status` writes it: "FILE:LINE:COLUMN".
fn file_of(place: &str) -> &str {
    let mut file = place;
    for _ in 0..2 {
        match file.rsplit_once(':') {
            Some((rest, number)) if number.parse::<u32>().is_ok() => file = rest,
            _ => break,
        }
    }
    file
}

/// The lines around a rule's, of the text of its file or why it could not be read.
pub(super) fn source(whereabouts: &Whereabouts, text: Result<&str, &str>) -> Source {
    let (path, line) = match whereabouts {
        Whereabouts::File { path, line } => (path.clone(), *line),
        Whereabouts::Guards { line } => (guards::FILE.to_owned(), *line),
        Whereabouts::Nowhere(why) => {
            return Source { path: String::new(), lines: Vec::new(), note: Some(why.clone()) };
        }
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => return Source { note: Some(format!("cannot read {path}: {error}")), path, lines: Vec::new() },
    };
    let numbered = text.lines().enumerate().map(|(index, text)| (index + 1, text));
    let around = numbered.filter(|(number, _)| number.abs_diff(line) <= AROUND);
    let lines: Vec<(usize, bool, String)> =
        around.map(|(number, text)| (number, number == line, text.replace('\t', "    "))).collect();
    let note = (!lines.iter().any(|(_, is_it, _)| *is_it))
        .then(|| format!("{path} has no line {line} any more: it was changed since"));
    Source { path, lines, note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_in_files_and_what_is_in_none_is_said() {
        let policy = |name: &str, place: &str| PolicyRecord {
            name: name.into(),
            place: place.into(),
            ..PolicyRecord::default()
        };
        let policies = [
            policy("kubelet", "/etc/nodewall/policy.d/20-kubelet.toml:3:1"),
            policy("spoofing", &format!("{}:1:1", guards::FILE)),
            policy("hub", "cluster hub: HostPolicy/hub"),
        ];
        let found = |rule: &str, place: &str| {
            let rule = RuleKey { rule: rule.into(), place: place.into() };
            match whereabouts(&rule, &policies, "/etc/nodewall/nodewall.toml") {
                Whereabouts::File { path, line } => format!("{path} {line}"),
                Whereabouts::Guards { line } => format!("guards {line}"),
                Whereabouts::Nowhere(why) => why,
            }
        };
        assert_eq!(found("kubelet#2", "20-kubelet.toml:14"), "/etc/nodewall/policy.d/20-kubelet.toml 14");
        assert_eq!(found("failsafe:ssh#1", "nodewall.toml:3"), "/etc/nodewall/nodewall.toml 3");
        assert_eq!(found("spoofing#1", "built-in: guards:3"), "guards 3");
        assert_eq!(found("hub#1", "hub:1"), "it comes from cluster hub: HostPolicy/hub");
        assert_eq!(found("kubelet#2", "21-other.toml:1"), "it is not known in which directory 21-other.toml is");
        assert!(found("default of mgmt ingress", "").starts_with("a default has no text"));
        assert_eq!(found("kubelet#2", "20-kubelet.toml"), "its place has no line");
    }

    #[test]
    fn the_lines_around_the_rule_are_shown() {
        let place = Whereabouts::File { path: "a.toml".into(), line: 2 };
        let text: String = (1..=9).map(|number| format!("\tline {number}\n")).collect();
        let shown = source(&place, Ok(&text));
        assert_eq!(shown.lines.len(), 6);
        assert_eq!(shown.lines[1], (2, true, "    line 2".to_owned()));
        assert_eq!(shown.note, None);
        let note = |text| source(&place, text).note.unwrap_or_default();
        assert_eq!(note(Ok("one")), "a.toml has no line 2 any more: it was changed since");
        assert_eq!(note(Err("Permission denied")), "cannot read a.toml: Permission denied");
    }
}
