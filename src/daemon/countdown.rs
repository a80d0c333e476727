//! When the journal is told again that a generation waits for its confirmation.

use std::time::Duration;

use tokio::time::Instant;

/// The moments that are still to come, the last one first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Countdown(Vec<Instant>);

/// So long before its end the journal is told for the last time.
const LAST_CALL: Duration = Duration::from_secs(10);
/// Two moments that are nearer to each other, or to the beginning or the end, are one.
const APART: Duration = Duration::from_secs(5);

impl Countdown {
    /// From now on.
    pub(super) fn new(now: Instant, left: Duration) -> Self {
        Self(moments(left).into_iter().rev().map(|after| now + after).collect())
    }

    /// The next moment.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.last().copied()
    }

    /// The next moment has come.
    pub(super) fn told(&mut self) {
        self.0.pop();
    }
}

/// After half of the time, and shortly before the end.
fn moments(left: Duration) -> Vec<Duration> {
    let (half, last) = (left / 2, left.saturating_sub(LAST_CALL));
    let mut moments = Vec::new();
    if half >= APART {
        moments.push(half);
    }
    if last >= half + APART {
        moments.push(last);
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_time_and_ten_seconds_and_no_more() {
        for (left, expected) in [
            (3600, vec![1800, 3590]),
            (120, vec![60, 110]),
            (60, vec![30, 50]),
            (30, vec![15, 20]),
            (24, vec![12]),
            (10, vec![5]),
            (9, vec![]),
            (0, vec![]),
        ] {
            let expected: Vec<Duration> = expected.into_iter().map(Duration::from_secs).collect();
            assert_eq!(moments(Duration::from_secs(left)), expected, "{left}");
        }
        let now = Instant::now();
        let mut countdown = Countdown::new(now, Duration::from_secs(60));
        let mut told = Vec::new();
        while let Some(moment) = countdown.next() {
            told.push((moment - now).as_secs());
            countdown.told();
        }
        assert_eq!(told, [30, 50]);
    }
}
