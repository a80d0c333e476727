//! When a node writes its state: at once the first time, then on change, and never so that ten thousand of them are a storm. Decides, and
//! does nothing. Times are those since some start, randomness comes from the caller.

use std::time::Duration;

/// How far apart things are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReportPace {
    /// News waits up to this, by the dice: a new policy of the fleet is news to all nodes at one moment.
    pub gather: Duration,
    /// At least so long after one write comes the next...
    pub between: Duration,
    /// ...and up to this later.
    pub spread: Duration,
    /// What was written is written again after this time without a change, in case somebody deleted it...
    pub refresh: Duration,
    /// ...and up to this later.
    pub refresh_spread: Duration,
    /// After a failure, the first pause; each is twice the one before.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
    /// A pause gets up to this on top, so that nodes which all found the server away do not all come back at once.
    pub back_spread: Duration,
    /// How long to wait where the server does not know the kind or gives no right to write it.
    pub refused: Duration,
    /// How long an answer may take.
    pub answer: Duration,
}

impl ReportPace {
    /// As shipped. Of ten thousand nodes to which nothing happens, come 32 requests a second (two every 10 to 11 minutes of each); when all
    /// have news at one moment, 1,000 a second for ten seconds, and when all have news all the time, 900 a second.
    pub const SHIPPED: Self = Self {
        gather: Duration::from_secs(10),
        between: Duration::from_secs(10),
        spread: Duration::from_millis(2500),
        refresh: Duration::from_secs(600),
        refresh_spread: Duration::from_secs(60),
        first_pause: Duration::from_secs(1),
        longest_pause: Duration::from_secs(60),
        back_spread: Duration::from_secs(10),
        refused: Duration::from_secs(300),
        answer: Duration::from_secs(15),
    };
}

/// What a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is written.
    Written,
    /// The server, or the way to it, is in trouble.
    Failed,
    /// The server does not know the kind, or gives no right.
    Refused,
}

/// When to write next.
#[derive(Clone, Debug)]
pub struct Damping {
    pace: ReportPace,
    /// When a change may be written.
    next: Duration,
    /// When to write without one.
    refresh: Duration,
    /// Failures in a row.
    failures: u32,
}

impl Damping {
    /// Nothing is written yet.
    pub const fn new(pace: ReportPace) -> Self {
        Self { pace, next: Duration::ZERO, refresh: Duration::ZERO, failures: 0 }
    }

    /// When to write; `differs` says whether there is something else to say than what was written.
    pub fn due(&self, differs: bool) -> Duration {
        // What failed is to be written whether it differs or not.
        if differs || self.failures > 0 { self.next } else { self.refresh.max(self.next) }
    }

    /// Whether a refresh is due, which says everything again: also that there is such an object.
    pub fn is_refresh(&self, now: Duration) -> bool {
        self.failures > 0 || now >= self.refresh
    }

    /// There is something else to say from now on than what was written.
    pub fn changed(&mut self, now: Duration, dice: u64) {
        self.next = self.next.max(now + part(self.pace.gather, dice));
    }

    /// A write was answered now.
    pub fn answered(&mut self, outcome: Outcome, now: Duration, dice: u64) {
        let ReportPace { between, spread, refresh, refresh_spread, back_spread, refused, .. } = self.pace;
        match outcome {
            Outcome::Written => {
                self.failures = 0;
                self.next = now + between + part(spread, dice);
                self.refresh = now + refresh + part(refresh_spread, dice.rotate_left(16));
            }
            Outcome::Failed => {
                self.failures = self.failures.saturating_add(1);
                self.next = now + self.pause() + part(back_spread, dice);
            }
            Outcome::Refused => {
                self.failures = self.failures.saturating_add(1);
                self.next = now + refused + part(back_spread, dice);
            }
        }
    }

    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        self.pace.first_pause.saturating_mul(1 << doublings).min(self.pace.longest_pause)
    }
}

/// A part of a time, by the dice.
fn part(whole: Duration, dice: u64) -> Duration {
    let thousandth = u32::try_from(dice % 1001).unwrap_or(0);
    whole.saturating_mul(thousandth) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::splitmix;

    const SECOND: Duration = Duration::from_secs(1);

    fn damping() -> Damping {
        Damping::new(ReportPace::SHIPPED)
    }

    #[test]
    fn the_first_write_is_at_once_and_the_next_ten_seconds_later() {
        let mut damping = damping();
        assert_eq!(damping.due(true), Duration::ZERO);
        let mut times = Vec::new();
        for round in 0..1000 {
            damping.answered(Outcome::Written, 5 * SECOND, splitmix::nth(1, round));
            times.push(damping.due(true) - 5 * SECOND);
        }
        let (least, most) = (*times.iter().min().unwrap_or(&SECOND), *times.iter().max().unwrap_or(&SECOND));
        assert!(
            least >= 10 * SECOND && most <= SECOND.mul_f64(12.5) && most - least > 2 * SECOND,
            "{least:?} {most:?}"
        );
    }

    #[test]
    fn changes_without_end_are_one_write_in_ten_seconds() {
        let (mut damping, mut now, mut writes) = (damping(), Duration::ZERO, 0);
        let mut last: Option<Duration> = None;
        for tick in 0..360_000 {
            now = Duration::from_millis(10) * tick;
            if now >= damping.due(true) {
                assert!(last.is_none_or(|last| now - last >= 10 * SECOND), "{last:?} {now:?}");
                (writes, last) = (writes + 1, Some(now));
                damping.answered(Outcome::Written, now, splitmix::nth(2, u64::from(tick)));
            }
        }
        assert!((288..=361).contains(&writes), "{writes} in {now:?}");
    }

    #[test]
    fn news_to_all_nodes_at_one_moment_are_not_written_at_one_moment() {
        let mut seconds = std::collections::BTreeMap::<u64, u32>::new();
        for node in 0..10_000 {
            let mut damping = damping();
            damping.answered(Outcome::Written, SECOND, splitmix::nth(node, 1));
            damping.changed(100 * SECOND, splitmix::nth(node, 2));
            *seconds.entry(damping.due(true).as_secs()).or_default() += 1;
        }
        assert!(seconds.keys().all(|second| (100..=110).contains(second)), "{seconds:?}");
        assert!(seconds.values().all(|nodes| *nodes < 1200), "{seconds:?}");
    }

    #[test]
    fn without_a_change_it_is_written_again_after_ten_minutes() {
        let mut damping = damping();
        damping.answered(Outcome::Written, SECOND, 7);
        assert!(!damping.is_refresh(600 * SECOND));
        let again = damping.due(false);
        assert!((601 * SECOND..=661 * SECOND).contains(&again), "{again:?}");
        assert!(damping.is_refresh(again));
    }

    #[test]
    fn a_server_that_is_away_is_asked_ever_less_often_and_not_by_all_at_once() {
        let mut damping = damping();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            damping.answered(Outcome::Failed, SECOND, 0);
            pauses.push((damping.due(false) - SECOND).as_secs());
            assert!(damping.is_refresh(SECOND), "what became of the object is not known");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        damping.answered(Outcome::Written, SECOND, 0);
        assert_eq!(damping.due(true), 11 * SECOND);

        // Ten thousand nodes find it away at one moment: whenever it is back, no second has a fifth of them.
        for failures in [1, 4, 10] {
            let mut seconds = std::collections::BTreeMap::<u64, u32>::new();
            for node in 0..10_000 {
                let mut damping = Damping::new(ReportPace::SHIPPED);
                for round in 0..failures {
                    damping.answered(Outcome::Failed, SECOND, splitmix::nth(node, round));
                }
                *seconds.entry(damping.due(true).as_secs()).or_default() += 1;
            }
            let most = seconds.values().max().copied().unwrap_or_default();
            assert!(most < 2000 && seconds.len() >= 10, "{failures}: {seconds:?}");
        }
    }

    #[test]
    fn a_refusal_is_asked_about_every_five_minutes() {
        let mut damping = damping();
        damping.answered(Outcome::Refused, SECOND, 1000);
        assert_eq!(damping.due(true), 311 * SECOND);
        damping.answered(Outcome::Refused, SECOND, 0);
        assert_eq!(damping.due(true), 301 * SECOND);
        damping.answered(Outcome::Written, SECOND, 0);
        assert_eq!(damping.due(true), 11 * SECOND);
    }
}
