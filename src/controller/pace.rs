//! How fast the controller writes: so many writes a second on the average, and some more at once. Decides, and does nothing.

use std::time::Duration;

/// The average. 10,000 objects that all have to be written once take half an hour then, and the API server notices nothing of it.
const EVERY: Duration = Duration::from_millis(200);
/// How many may come at once: what people change by hand has its answer at once.
const BURST: u32 = 20;

/// How many writes there may be, by a monotonic clock.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pace {
    /// When all that was written is worked off.
    clear: Duration,
}

impl Pace {
    /// Counts one more write; how long to wait before it.
    pub(super) fn next(&mut self, now: Duration) -> Duration {
        let wait = (self.clear + EVERY).saturating_sub(now + EVERY * BURST);
        self.clear = self.clear.max(now) + EVERY;
        wait
    }
}

/// A time, or up to a tenth more: so that what happens again and again does not happen with everything else.
pub(super) fn spread(time: Duration, dice: u64) -> Duration {
    let most = u64::try_from((time / 10).as_micros()).unwrap_or(u64::MAX).saturating_add(1);
    time + Duration::from_micros(dice % most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_time_is_never_shorter_and_a_tenth_longer_at_most() {
        let ten = Duration::from_secs(10);
        assert_eq!(spread(ten, 0), ten);
        assert_eq!(spread(ten, 1_000_000), Duration::from_secs(11));
        assert_eq!(spread(ten, 1_000_001), ten);
        assert_eq!(spread(Duration::ZERO, 7), Duration::ZERO);
    }

    #[test]
    fn a_burst_goes_at_once_and_then_five_a_second() {
        let mut pace = Pace::default();
        let now = Duration::from_secs(1000);
        let waits: Vec<u128> = (0..24).map(|_| pace.next(now).as_millis()).collect();
        assert_eq!(waits[..20], [0; 20]);
        assert_eq!(waits[20..], [200, 400, 600, 800]);
        // After a rest there is a burst again.
        let later = now + Duration::from_secs(60);
        assert!((0..20).all(|_| pace.next(later).is_zero()));
        assert_eq!(pace.next(later), Duration::from_millis(200));
    }
}
