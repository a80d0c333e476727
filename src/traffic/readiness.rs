//! Whether a policy in audit mode is ready to be enforced, judged by what it would have denied.

use std::fmt;

use super::query::Sum;
use super::seen::Seen;
use crate::text::time::rfc3339;

const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
/// Less is too little: a node does not do everything every hour, and most of what it does at least once a day. The store keeps a day
/// by default, of which restarts and windows take a little.
pub const LEAST_WATCHED: u64 = 20 * HOUR;
/// A pause that is shorter is a restart.
pub const LONGEST_PAUSE: u64 = 60 * SECOND;
/// What was there in this time goes on.
pub const LATELY: u64 = HOUR;

/// How the policy stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is in audit mode itself.
    Audit,
    /// The whole node is in audit mode (`mode` in nodewall.toml).
    NodeWide,
    /// It denies.
    Enforced,
}

/// What the judgement is about. Times are in microseconds since 1970-01-01 UTC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence<'a> {
    /// The time of the judgement.
    pub now: u64,
    /// The beginning of the time that was looked at.
    pub since: u64,
    /// How the policy stands.
    pub standing: Standing,
    /// What was seen of the time that was looked at.
    pub seen: &'a Seen,
    /// Rows of the store that could not be read.
    pub damaged: u64,
    /// What it would have denied of peers that are sets or nodes, other than by rules that say whom they deny.
    pub named: Sum,
    /// The same of other addresses.
    pub unnamed: Sum,
    /// What rules would have denied that say whom they deny.
    pub meant: Sum,
}

/// Why a policy is not ready, or what to know if it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It is enforced already.
    Enforced,
    /// Nobody watched in that time.
    Unwatched,
    /// Somebody watched for so short a time, in microseconds.
    Short(u64),
    /// So many pauses, the longest of so many microseconds.
    Gaps(usize, u64),
    /// Something was lost on the way.
    Lost(Seen),
    /// So many rows of the store are damaged.
    Damaged(u64),
    /// It would have denied so many connections of peers that have names, the last at this time.
    Named(u64, u64),
    /// It would have denied so many connections of other addresses in the last hour.
    Unnamed(u64),
    /// It would have denied so many connections of other addresses, the last at this time, and none in the last hour.
    Over(u64, u64),
    /// It would have denied so many connections by rules that say whom they deny.
    Meant(u64),
}

impl Reason {
    /// Whether it speaks against enforcing the policy.
    pub const fn is_against(&self) -> bool {
        !matches!(self, Self::Enforced | Self::Over(..) | Self::Meant(_))
    }
}

/// A judgement with its reasons.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// Nothing speaks against enforcing it. False for a policy that is enforced.
    pub ready: bool,
    /// Everything there is to say.
    pub reasons: Vec<Reason>,
}

/// Judges.
pub fn judge(evidence: &Evidence<'_>) -> Judgement {
    let Evidence { now, since, standing, seen, damaged, named, unnamed, meant } = evidence;
    if *standing == Standing::Enforced {
        return Judgement { ready: false, reasons: vec![Reason::Enforced] };
    }
    let mut reasons = Vec::new();
    match seen.since() {
        None => reasons.push(Reason::Unwatched),
        Some(begun) => {
            let watched = seen.watched();
            if watched < LEAST_WATCHED {
                reasons.push(Reason::Short(watched));
            }
            let gaps = seen.gaps(begun.max(*since), *now, LONGEST_PAUSE);
            let longest = gaps.iter().map(|gap| gap.until - gap.from).max();
            reasons.extend(longest.map(|longest| Reason::Gaps(gaps.len(), longest)));
        }
    }
    if seen.lost_something() {
        reasons.push(Reason::Lost(Seen { spans: Vec::new(), ..(*seen).clone() }));
    }
    if *damaged > 0 {
        reasons.push(Reason::Damaged(*damaged));
    }
    if let Some(last) = named.last {
        reasons.push(Reason::Named(named.connections, last));
    }
    match unnamed.last {
        Some(last) if last.saturating_add(LATELY) > *now => reasons.push(Reason::Unnamed(unnamed.connections)),
        Some(last) => reasons.push(Reason::Over(unnamed.connections, last)),
        None => {}
    }
    if meant.last.is_some() {
        reasons.push(Reason::Meant(meant.connections));
    }
    Judgement { ready: !reasons.iter().any(Reason::is_against), reasons }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = |count: u64| match count {
            1 => "1 connection".to_owned(),
            _ => format!("{count} connections"),
        };
        match self {
            Self::Enforced => formatter.write_str("it is enforced already"),
            Self::Unwatched => {
                formatter.write_str("nobody watched in that time: is the daemon running, with [flows] store?")
            }
            Self::Short(watched) => write!(
                formatter,
                "only {} were watched, and {} are wanted: what happens once a day was not seen",
                duration(*watched),
                duration(LEAST_WATCHED)
            ),
            Self::Gaps(count, longest) => {
                let gaps = if *count == 1 { "1 pause".to_owned() } else { format!("{count} pauses") };
                write!(formatter, "{gaps} in which nobody watched, the longest of {}", duration(*longest))
            }
            Self::Lost(seen) => write!(
                formatter,
                "not all was seen: {} records left out, {} logged packets lost, events of connections lost {} times",
                seen.left_out, seen.lost_packets, seen.lost_connections
            ),
            Self::Damaged(rows) => write!(formatter, "{rows} records are damaged and were passed over"),
            Self::Named(count, last) => write!(
                formatter,
                "it would have denied {} of sets and nodes, the last at {}: allow them, or say in a rule that they are meant",
                connections(*count),
                rfc3339(last / SECOND)
            ),
            Self::Unnamed(count) => write!(
                formatter,
                "it would have denied {} of unknown addresses, some in the last hour: find out who they are",
                connections(*count)
            ),
            Self::Over(count, last) => write!(
                formatter,
                "it would have denied {} of unknown addresses, the last at {}, and none since",
                connections(*count),
                rfc3339(last / SECOND)
            ),
            Self::Meant(count) => {
                write!(
                    formatter,
                    "it would have denied {} by rules that say whom they deny, as meant",
                    connections(*count)
                )
            }
        }
    }
}

/// A stretch of microseconds for people, in its two largest units.
pub fn duration(micros: u64) -> String {
    let seconds = micros / SECOND;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, 0) => format!("{hours}h"),
        (0, ..) => format!("{hours}h {minutes}m"),
        (_, 0, _) => format!("{days}d"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen::Span;
    use super::*;

    const NOW: u64 = 1_795_468_194 * SECOND;

    fn watched(hours: u64) -> Seen {
        Seen { spans: vec![Span { from: NOW - hours * HOUR, until: NOW - 5 * SECOND }], ..Seen::default() }
    }

    fn sum(connections: u64, ago: u64) -> Sum {
        Sum { connections, last: Some(NOW - ago), ..Sum::default() }
    }

    #[test]
    fn a_policy_is_ready_when_nothing_speaks_against_it() {
        let day = watched(24);
        let fine = Evidence {
            now: NOW,
            since: NOW - 24 * HOUR,
            standing: Standing::Audit,
            seen: &day,
            damaged: 0,
            named: Sum::default(),
            unnamed: Sum::default(),
            meant: Sum::default(),
        };
        let (short, none) = (watched(2), Seen::default());
        let lost = Seen { lost_packets: 3, ..day.clone() };
        let mut paused = day.clone();
        paused.spans[0].until -= 2 * HOUR;
        paused.spans.push(Span { from: NOW - HOUR, until: NOW - SECOND });
        let mut restarted = day.clone();
        restarted.spans[0].until -= HOUR;
        restarted.spans.push(Span { from: NOW - HOUR, until: NOW - SECOND });
        let table = [
            ("nothing to deny", fine.clone(), true, vec![]),
            ("node-wide", Evidence { standing: Standing::NodeWide, ..fine.clone() }, true, vec![]),
            ("enforced", Evidence { standing: Standing::Enforced, ..fine.clone() }, false, vec![Reason::Enforced]),
            ("unwatched", Evidence { seen: &none, ..fine.clone() }, false, vec![Reason::Unwatched]),
            ("two hours", Evidence { seen: &short, ..fine.clone() }, false, vec![Reason::Short(2 * HOUR - 5 * SECOND)]),
            ("a pause", Evidence { seen: &paused, ..fine.clone() }, false, vec![Reason::Gaps(1, HOUR + 5 * SECOND)]),
            ("a restart", Evidence { seen: &restarted, ..fine.clone() }, true, vec![]),
            (
                "losses",
                Evidence { seen: &lost, ..fine.clone() },
                false,
                vec![Reason::Lost(Seen { lost_packets: 3, ..Seen::default() })],
            ),
            ("damage", Evidence { damaged: 2, ..fine.clone() }, false, vec![Reason::Damaged(2)]),
            (
                "a node of ours, long ago",
                Evidence { named: sum(4, 9 * HOUR), ..fine.clone() },
                false,
                vec![Reason::Named(4, NOW - 9 * HOUR)],
            ),
            ("strangers now", Evidence { unnamed: sum(4, HOUR / 2), ..fine.clone() }, false, vec![Reason::Unnamed(4)]),
            (
                "strangers long ago",
                Evidence { unnamed: sum(4, 2 * HOUR), ..fine.clone() },
                true,
                vec![Reason::Over(4, NOW - 2 * HOUR)],
            ),
            ("as meant", Evidence { meant: sum(9, 0), ..fine }, true, vec![Reason::Meant(9)]),
        ];
        for (what, evidence, ready, reasons) in table {
            assert_eq!(judge(&evidence), Judgement { ready, reasons }, "{what}");
        }
    }

    #[test]
    fn durations_are_short() {
        for (seconds, words) in
            [(5, "5s"), (65, "1m 5s"), (3600, "1h"), (5400, "1h 30m"), (86_400, "1d"), (93_600, "1d 2h")]
        {
            assert_eq!(duration(seconds * SECOND), words);
        }
    }
}
