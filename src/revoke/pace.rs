//! How fast flows are judged and ended: at full speed for a while, and then for as long as it takes, but never more than half of
//! the time. Time is passed in, as the time since the beginning.

use std::time::Duration;

/// How long the work goes on without a pause: 100,000 flows take less (`benches/revoke.rs`).
pub const BUDGET: Duration = Duration::from_secs(2);
/// How long it goes on between two pauses after that.
const SLICE: Duration = Duration::from_millis(20);

/// When to pause. It never says to stop: what is to be ended is ended.
#[derive(Clone, Debug)]
pub struct Pace {
    budget: Duration,
    /// When the slice under way began.
    slice: Duration,
}

impl Pace {
    /// At full speed for [`BUDGET`].
    pub const fn swift() -> Self {
        Self { budget: BUDGET, slice: BUDGET }
    }

    /// With pauses from the beginning.
    pub const fn gentle() -> Self {
        Self { budget: Duration::ZERO, slice: Duration::ZERO }
    }

    /// Whether the time at full speed is over.
    pub fn is_slow(&self, now: Duration) -> bool {
        now >= self.budget
    }

    /// How long to pause now: as long as the slice that it ends has taken. To be asked often, and with the pause in `now` the next
    /// time.
    pub fn pause(&mut self, now: Duration) -> Duration {
        let took = now.saturating_sub(self.slice);
        if !self.is_slow(now) || took < SLICE {
            return Duration::ZERO;
        }
        self.slice = now.saturating_add(took);
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Work in pieces of this length: how long it takes with its pauses, and the longest time without one after the budget.
    fn work(mut pace: Pace, piece: Duration, pieces: u32) -> (Duration, Duration) {
        let (mut now, mut busy, mut longest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for _ in 0..pieces {
            now += piece;
            busy = if pace.is_slow(now) { busy + piece } else { Duration::ZERO };
            longest = longest.max(busy);
            let pause = pace.pause(now);
            if !pause.is_zero() {
                busy = Duration::ZERO;
            }
            now += pause;
        }
        (now, longest)
    }

    #[test]
    fn what_fits_the_budget_has_no_pause_and_the_rest_takes_twice_its_time() {
        assert_eq!(work(Pace::swift(), MS, 1900), (1900 * MS, Duration::ZERO));
        let (took, longest) = work(Pace::swift(), MS, 6000);
        assert!((9960 * MS..=10_000 * MS).contains(&took), "{took:?}");
        assert!(longest <= 21 * MS, "{longest:?}");
        let (took, longest) = work(Pace::gentle(), MS, 1000);
        assert!((1960 * MS..=2000 * MS).contains(&took) && longest <= 20 * MS, "{took:?} {longest:?}");
    }

    #[test]
    fn pieces_longer_than_a_slice_are_paused_for_as_long_as_they_took() {
        let (took, longest) = work(Pace::gentle(), 300 * MS, 10);
        assert_eq!((took, longest), (6000 * MS, 300 * MS));
    }

    #[test]
    fn a_clock_that_stands_still_or_ends_is_no_trouble() {
        let mut pace = Pace::gentle();
        assert_eq!(pace.pause(Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.pause(Duration::MAX), Duration::MAX);
        assert_eq!(pace.pause(Duration::MAX), Duration::ZERO);
    }
}
