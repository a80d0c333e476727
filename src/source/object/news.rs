//! Which Events a change of a node's state deserves. The node writes none: it needs no right to do so, and ten thousand nodes that say
//! the same at once are one line where somebody counts them. Whoever watches HostState does that.

use super::status::{Condition, HostStateStatus};

/// How many characters of a note are told: the API takes 1,024 bytes (`NoteLengthLimit`, pkg/apis/core/validation/events.go), and what
/// other nodes write need not be ASCII.
const LONGEST_NOTE: usize = 256;

/// "Normal" or "Warning", as an Event has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// Good to know.
    Normal,
    /// Somebody may have to do something.
    Warning,
}

impl Weight {
    /// The word in `type` of an Event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// An Event about a HostState.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// `type` of the Event.
    pub weight: Weight,
    /// `reason` of the Event, one word for programs: "DriftRepaired", "PolicyRefused", "Degraded", "BackInOrder", "NotReady", "Ready".
    pub reason: &'static str,
    /// `note` of the Event, for people; below the 1,024 bytes that the API takes.
    pub note: String,
}

/// What happened between two states of a node, in the order in which to tell it. What was so before anything was known of the node is
/// told only where it is amiss.
pub fn news(before: Option<&HostStateStatus>, after: &HostStateStatus) -> Vec<News> {
    let mut told = Vec::new();
    let mut tell = |weight, reason, note: String| {
        told.push(News { weight, reason, note: note.chars().take(LONGEST_NOTE).collect() });
    };
    let known = before.is_some();
    if let Some((count, last)) = drifted(before, after) {
        let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
        let last = last.map(|last| format!(", the last time at {last}")).unwrap_or_default();
        let note = format!("somebody else changed the table of nodewall {times}{last}; it was repaired");
        tell(Weight::Warning, "DriftRepaired", note);
    }
    let (was, is) = (before.and_then(|before| find(before, "Ready")), find(after, "Ready"));
    if let Some(is) = is.filter(|is| changed(was, is)) {
        match is.status.as_str() {
            "True" if known => tell(Weight::Normal, "Ready", is.message.clone()),
            // A node that starts says so once, and then that it is ready.
            "False" if is.reason != "Starting" => {
                tell(Weight::Warning, "NotReady", format!("{}: {}", is.reason, is.message));
            }
            _ => {}
        }
    }
    let (was, is) = (before.and_then(|before| find(before, "Degraded")), find(after, "Degraded"));
    let was_amiss = was.is_some_and(|was| was.status == "True");
    match is {
        Some(is) if is.status == "True" && (!was_amiss || was.is_some_and(|was| was.reason != is.reason)) => {
            let refused = matches!(is.reason.as_str(), "PolicyRefused" | "ObjectRefused");
            let (reason, note) = match refused {
                true => ("PolicyRefused", is.message.clone()),
                false => ("Degraded", format!("{}: {}", is.reason, is.message)),
            };
            tell(Weight::Warning, reason, note);
        }
        Some(is) if is.status == "False" && was_amiss => {
            let what = was.map(|was| was.reason.as_str()).unwrap_or_default();
            tell(Weight::Normal, "BackInOrder", format!("it was {what}: {}", is.message));
        }
        _ => {}
    }
    told
}

fn find<'a>(state: &'a HostStateStatus, kind: &str) -> Option<&'a Condition> {
    state.conditions.iter().find(|condition| condition.kind == kind)
}

fn changed(was: Option<&Condition>, is: &Condition) -> bool {
    was.is_none_or(|was| was.status != is.status || was.reason != is.reason)
}

/// How often others changed the table between two states, and when the last time. A daemon that was started anew counts from nothing.
fn drifted<'a>(before: Option<&HostStateStatus>, after: &'a HostStateStatus) -> Option<(i64, Option<&'a str>)> {
    let (was, is) = (before?.drift.as_ref(), after.drift.as_ref()?);
    let (counted, last) = was.map_or((0, None), |was| (was.count, was.last.as_ref()));
    let more = if is.count >= counted { is.count - counted } else { is.count };
    (more > 0 && is.last.as_ref() != last).then_some((more, is.last.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::super::status::DriftCount;
    use super::*;

    fn state(conditions: &[(&str, &str, &str)], drifts: i64) -> HostStateStatus {
        let condition = |(kind, status, reason): &(&str, &str, &str)| Condition {
            kind: (*kind).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: format!("{reason} it is"),
            last_transition_time: String::new(),
            observed_generation: None,
        };
        HostStateStatus {
            conditions: conditions.iter().map(condition).collect(),
            drift: Some(DriftCount { count: drifts, last: (drifts > 0).then(|| format!("time {drifts}")) }),
            ..HostStateStatus::default()
        }
    }

    fn told(before: Option<&HostStateStatus>, after: &HostStateStatus) -> Vec<(&'static str, &'static str)> {
        news(before, after).into_iter().map(|news| (news.weight.name(), news.reason)).collect()
    }

    const GOOD: [(&str, &str, &str); 2] = [("Ready", "True", "PolicyInForce"), ("Degraded", "False", "AsWanted")];

    #[test]
    fn nothing_is_told_of_a_node_that_is_and_stays_in_order() {
        let good = state(&GOOD, 3);
        assert_eq!(told(None, &good), []);
        assert_eq!(told(Some(&good), &good), []);
        let other_generation = HostStateStatus { generation: Some(7), ..good.clone() };
        assert_eq!(told(Some(&good), &other_generation), []);
    }

    #[test]
    fn drift_is_told_with_how_often() {
        let news = news(Some(&state(&GOOD, 3)), &state(&GOOD, 5));
        assert_eq!(news.len(), 1);
        assert_eq!((news[0].weight, news[0].reason), (Weight::Warning, "DriftRepaired"));
        assert!(news[0].note.contains("2 times, the last time at time 5"), "{}", news[0].note);
        // A daemon that was started anew has none, and then one.
        assert_eq!(told(Some(&state(&GOOD, 5)), &state(&GOOD, 0)), []);
        assert_eq!(told(Some(&state(&GOOD, 5)), &state(&GOOD, 1)), [("Warning", "DriftRepaired")]);
    }

    #[test]
    fn trouble_and_its_end_are_told_once_each() {
        let (good, mut bad) = (state(&GOOD, 0), state(&[GOOD[0], ("Degraded", "True", "PolicyRefused")], 0));
        assert_eq!(told(Some(&good), &bad), [("Warning", "PolicyRefused")]);
        assert_eq!(told(None, &bad), [("Warning", "PolicyRefused")], "as long as nothing else is known");
        let same = bad.clone();
        bad.conditions[1].message = "another line".to_owned();
        assert_eq!(told(Some(&same), &bad), []);
        let worse = state(&[GOOD[0], ("Degraded", "True", "ClusterAway")], 0);
        assert_eq!(told(Some(&bad), &worse), [("Warning", "Degraded")]);
        assert_eq!(told(Some(&worse), &good), [("Normal", "BackInOrder")]);
    }

    #[test]
    fn a_node_that_starts_is_no_trouble_and_one_that_is_in_panic_is() {
        let good = state(&GOOD, 0);
        let starting = state(&[("Ready", "False", "Starting"), GOOD[1]], 0);
        assert_eq!(told(Some(&good), &starting), []);
        assert_eq!(told(Some(&starting), &good), [("Normal", "Ready")]);
        let panic = state(&[("Ready", "False", "Panic"), GOOD[1]], 0);
        assert_eq!(told(Some(&good), &panic), [("Warning", "NotReady")]);
        assert_eq!(told(Some(&panic), &good), [("Normal", "Ready")]);
    }
}
