//! Which Events tell what happens to nodes: one where many say the same, and few of one that says it again and again. Decides, and does
//! nothing; times are from a monotonic clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::event::Event;
use super::seen::Subject;
use crate::source::object::Kind;
use crate::source::object::news::{News, Weight};

/// A reason is told of a node once in this time.
const PAUSE: Duration = Duration::from_secs(300);
/// More nodes than this with the same are one Event.
const FEW: usize = 5;
/// So many Events about single nodes, and so many about several, have the same reason at a time; what is more becomes one.
const MOST: usize = 10;
/// So many nodes are named in a note, as long as their names are no longer than this together, in bytes.
const NAMED: usize = 3;
const NAMES: usize = 300;

/// An Event to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Report {
    /// What it is about: the first one of those that the note speaks of.
    pub(super) subject: Subject,
    /// `type`.
    pub(super) weight: Weight,
    /// `reason`.
    pub(super) reason: &'static str,
    /// `note`.
    pub(super) note: String,
}

impl Report {
    /// The Event; `now` is RFC 3339 with whole seconds.
    pub(super) fn event(&self, now: &str, instance: &str) -> Json {
        let Subject { name, uid, version } = &self.subject;
        let event = Event {
            kind: Kind::HostState,
            name,
            uid,
            version,
            key: &format!("{version}\n{}\n{}", self.reason, self.note),
            weight: self.weight,
            reason: self.reason,
            action: "Watch",
            note: &self.note,
        };
        let mut body = event.body(now, instance);
        body["related"] = json!({ "apiVersion": "v1", "kind": "Node", "name": name });
        body
    }
}

/// What was told, by node and reason.
#[derive(Default)]
pub(super) struct Events {
    told: BTreeMap<(String, &'static str), Told>,
}

/// What became of a reason of a node since it was told.
struct Told {
    at: Duration,
    /// How often it happened again.
    missed: u64,
    /// The last time, unless the contrary happened after it.
    last: Option<(Subject, News)>,
}

/// What is to be told of one node, and how often it happened.
struct Item {
    subject: Subject,
    news: News,
    times: u64,
}

impl Events {
    /// What to tell of changes, and of those that had to wait.
    pub(super) fn round(&mut self, changes: Vec<(Subject, Vec<News>)>, now: Duration) -> Vec<Report> {
        let mut items = Vec::new();
        for (subject, told) in changes {
            for news in told {
                items.extend(self.happened(subject.clone(), news, now));
            }
        }
        for told in self.told.values_mut().filter(|told| told.at + PAUSE <= now) {
            if let Some((subject, news)) = told.last.take() {
                items.push(Item { subject, news, times: std::mem::take(&mut told.missed) });
                told.at = now;
            }
        }
        self.told.retain(|_, told| told.missed > 0 || now < told.at + PAUSE);
        together(items)
    }

    /// These are all nodes that there are.
    pub(super) fn settle(&mut self, names: &BTreeSet<String>) {
        self.told.retain(|(name, _), _| names.contains(name));
    }

    fn happened(&mut self, subject: Subject, news: News, now: Duration) -> Option<Item> {
        for reason in contraries(news.reason).iter().filter(|reason| **reason != news.reason) {
            if let Some(told) = self.told.get_mut(&(subject.name.clone(), *reason)) {
                told.last = None;
            }
        }
        let key = (subject.name.clone(), news.reason);
        let missed = match self.told.get_mut(&key) {
            Some(told) if now < told.at + PAUSE => {
                told.missed += 1;
                told.last = Some((subject, news));
                return None;
            }
            Some(told) => told.missed,
            None => 0,
        };
        self.told.insert(key, Told { at: now, missed: 0, last: None });
        Some(Item { subject, news, times: missed + 1 })
    }
}

/// The reasons of which the last one holds.
fn contraries(reason: &str) -> &'static [&'static str] {
    match reason {
        "Ready" | "NotReady" => &["Ready", "NotReady"],
        "PolicyRefused" | "Degraded" | "BackInOrder" => &["PolicyRefused", "Degraded", "BackInOrder"],
        _ => &[],
    }
}

/// Puts together what many say.
fn together(items: Vec<Item>) -> Vec<Report> {
    let mut reasons: BTreeMap<&str, BTreeMap<String, Vec<Item>>> = BTreeMap::new();
    for item in items {
        reasons.entry(item.news.reason).or_default().entry(kind(&item.news)).or_default().push(item);
    }
    let mut reports = Vec::new();
    for groups in reasons.into_values() {
        let (mut large, mut rest): (Vec<_>, Vec<_>) = groups.into_values().partition(|group| group.len() > FEW);
        large.sort_by_key(|group| Reverse(group.len()));
        rest.extend(large.drain(large.len().min(MOST)..));
        reports.extend(large.into_iter().filter_map(|group| of_many(group, "")));
        let rest: Vec<Item> = rest.into_iter().flatten().collect();
        if rest.len() > MOST {
            reports.extend(of_many(rest, " of different kinds, the first"));
        } else {
            reports.extend(rest.into_iter().map(of_one));
        }
    }
    reports
}

/// What is the same in notes that say the same: of drift everything, else all but the numbers and times.
fn kind(news: &News) -> String {
    if news.reason == "DriftRepaired" {
        return String::new();
    }
    let mut kind = String::new();
    for next in news.note.chars() {
        match next.is_ascii_digit() {
            true if kind.ends_with('#') => {}
            true => kind.push('#'),
            false => kind.push(next),
        }
    }
    kind
}

fn of_one(item: Item) -> Report {
    let Item { subject, news: News { weight, reason, note }, times } = item;
    let again = if times > 1 { format!(" ({times} times since the last Event of it)") } else { String::new() };
    Report { subject, weight, reason, note: note + &again }
}

fn of_many(mut items: Vec<Item>, how: &str) -> Option<Report> {
    items.sort_by(|one, other| one.subject.cmp(&other.subject));
    let mut names = String::new();
    for (index, item) in items.iter().take(NAMED).enumerate() {
        let name = &item.subject.name;
        if index > 0 && names.len() + name.len() > NAMES {
            break;
        }
        names += &format!("{name}, ");
    }
    let count = items.len();
    let times: u64 = items.iter().map(|item| item.times).sum();
    let often = if times > items.len() as u64 { format!(" ({times} times in all)") } else { String::new() };
    let Item { subject, news: News { weight, reason, note }, .. } = items.into_iter().next()?;
    Some(Report { subject, weight, reason, note: format!("{count} nodes: {names}...: {reason}{how}: {note}{often}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str, version: u64) -> Subject {
        Subject { name: name.to_owned(), uid: format!("u-{name}"), version: version.to_string() }
    }

    fn news(reason: &'static str, note: &str) -> News {
        let weight = if matches!(reason, "Ready" | "BackInOrder") { Weight::Normal } else { Weight::Warning };
        News { weight, reason, note: note.to_owned() }
    }

    fn change(name: &str, reason: &'static str, note: &str) -> (Subject, Vec<News>) {
        (subject(name, 1), vec![news(reason, note)])
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn notes(reports: &[Report]) -> Vec<String> {
        reports.iter().map(|report| format!("{}: {}: {}", report.subject.name, report.reason, report.note)).collect()
    }

    #[test]
    fn more_than_five_with_the_same_are_one_event_and_five_are_five() {
        let all = |count: u64| {
            (1..=count).map(|number| {
                change(&format!("gpu-{number}"), "PolicyRefused", &format!("line {number}: no set \"x\""))
            })
        };
        assert_eq!(Events::default().round(all(5).collect(), at(0)).len(), 5);
        let told = Events::default().round(all(6).rev().collect(), at(0));
        assert_eq!(
            notes(&told),
            ["gpu-1: PolicyRefused: 6 nodes: gpu-1, gpu-2, gpu-3, ...: PolicyRefused: line 1: no set \"x\""]
        );
        // Another reason, and another note of the same reason, are other Events.
        let mut mixed: Vec<_> = all(6).collect();
        mixed.push(change("gpu-7", "PolicyRefused", "no tier \"y\""));
        mixed.push(change("gpu-8", "Degraded", "ClusterAway: no answer"));
        let told = notes(&Events::default().round(mixed, at(0)));
        assert_eq!(told.len(), 3);
        assert_eq!(told[0], "gpu-8: Degraded: ClusterAway: no answer");
        assert_eq!(told[2], "gpu-7: PolicyRefused: no tier \"y\"");
    }

    #[test]
    fn drift_of_many_is_one_however_often_each_had_it() {
        let drift =
            |number: u64| change(&format!("gpu-{number}"), "DriftRepaired", ["once", "3 times"][number as usize % 2]);
        assert_eq!(Events::default().round((0..9).map(drift).collect(), at(0)).len(), 1);
    }

    #[test]
    fn a_fleet_of_which_each_says_something_else_is_still_one_event() {
        let letter = |number: u32| char::from_u32(0x4e00 + number).unwrap_or_default().to_string();
        let all = (0..10_000).map(|number| change(&format!("gpu-{number:05}"), "Degraded", &letter(number)));
        let told = Events::default().round(all.collect(), at(0));
        assert_eq!(told.len(), 1);
        assert!(told[0].note.starts_with(
            "10000 nodes: gpu-00000, gpu-00001, gpu-00002, ...: Degraded of different kinds, the first: "
        ));
        // Those that many have are told each, up to ten, the largest ones.
        let group = |number: u32| {
            (0..=5 + number).map(move |node| change(&format!("n-{number}-{node}"), "Degraded", &letter(number)))
        };
        let told = Events::default().round((0..12).flat_map(group).collect(), at(0));
        assert_eq!(told.len(), 11, "{:?}", notes(&told));
        assert!(told[0].note.starts_with("17 nodes: n-11-0, ") && told[10].note.starts_with("13 nodes: n-0-0, "));
    }

    #[test]
    fn a_node_that_flaps_has_one_event_of_each_reason_in_five_minutes_and_the_last_word_is_the_last() {
        let mut events = Events::default();
        let mut told = Vec::new();
        for second in (0..300).step_by(20) {
            told.extend(events.round(vec![change("a", "NotReady", "Panic: closed")], at(second)));
            told.extend(events.round(vec![change("a", "Ready", "open")], at(second + 10)));
        }
        assert_eq!(notes(&told), ["a: NotReady: Panic: closed", "a: Ready: open"]);
        // It stays as it is: that it is so is told, and the contrary is not.
        assert_eq!(notes(&events.round(Vec::new(), at(300))), [""; 0]);
        let told = events.round(Vec::new(), at(310));
        assert_eq!(notes(&told), ["a: Ready: open (14 times since the last Event of it)"]);
        assert_eq!(notes(&events.round(Vec::new(), at(2000))), [""; 0]);
        let told = events.round(vec![change("a", "NotReady", "Panic: closed")], at(2001));
        assert_eq!(notes(&told), ["a: NotReady: Panic: closed (15 times since the last Event of it)"]);
        let told = events.round(vec![change("b", "NotReady", "Panic: closed")], at(2001));
        assert_eq!(told.len(), 1, "another node is another");
    }

    #[test]
    fn what_many_say_again_is_counted() {
        let mut events = Events::default();
        let all =
            || (0..10).map(|number| change(&format!("gpu-{number}"), "DriftRepaired", "once")).collect::<Vec<_>>();
        let told: Vec<usize> = [0, 10, 20].map(|second| events.round(all(), at(second)).len()).into();
        assert_eq!(told, [1, 0, 0]);
        let told = events.round(Vec::new(), at(300));
        assert_eq!(
            notes(&told),
            ["gpu-0: DriftRepaired: 10 nodes: gpu-0, gpu-1, gpu-2, ...: DriftRepaired: once (20 times in all)"]
        );
    }

    #[test]
    fn nothing_is_kept_of_who_is_gone_or_was_quiet_for_long() {
        let mut events = Events::default();
        events.round(vec![change("a", "Ready", ""), change("b", "Ready", "")], at(0));
        events.round(vec![change("a", "Ready", ""), change("b", "Ready", "")], at(1));
        events.settle(&BTreeSet::from(["b".to_owned()]));
        assert_eq!(events.told.len(), 1);
        assert_eq!(events.round(Vec::new(), at(301)).len(), 1);
        events.round(Vec::new(), at(601));
        assert!(events.told.is_empty());
    }

    #[test]
    fn an_event_is_about_the_state_and_names_the_node_and_is_the_same_when_it_is_sent_again() {
        let report = |reason, version| Report {
            subject: subject("gpu-1", version),
            weight: Weight::Warning,
            reason,
            note: "é".repeat(900),
        };
        let event = report("NotReady", 7).event("2026-11-26T06:00:00Z", "pod_1");
        assert_eq!(event["metadata"], report("NotReady", 7).event("2026-11-26T07:00:00Z", "pod_2")["metadata"]);
        assert_ne!(event["metadata"], report("Ready", 7).event("2026-11-26T06:00:00Z", "pod_1")["metadata"]);
        assert_ne!(event["metadata"], report("NotReady", 8).event("2026-11-26T06:00:00Z", "pod_1")["metadata"]);
        assert_eq!(event["eventTime"], "2026-11-26T06:00:00.000000Z");
        assert_eq!(event["regarding"]["kind"], "HostState");
        assert_eq!(event["related"], json!({ "apiVersion": "v1", "kind": "Node", "name": "gpu-1" }));
        assert!(event["note"].as_str().is_some_and(|note| note.len() <= 1024 && note.ends_with("...")));
    }

    #[test]
    fn long_names_leave_room_for_what_happened() {
        let all = (0..6).map(|number| change(&format!("{number}{}", "n".repeat(250)), "NotReady", "Panic: closed"));
        let told = Events::default().round(all.collect(), at(0));
        assert!(told[0].note.len() < 500 && told[0].note.ends_with("NotReady: Panic: closed"), "{}", told[0].note);
    }
}
