//! When a change by somebody else is repaired, and when the table is looked at unasked. Time is passed in, as the time since the
//! daemon's start.

use std::time::Duration;

use crate::net::splitmix;

/// What a repair weighs: as many a second as this divides it into go on for ever without a pause.
const WEIGHT: Duration = Duration::from_millis(200);
/// A repair weighs at least this many times what it took, so that at most half of the time is spent on them.
const SHARE: u32 = 2;
/// What may be owed before there is a pause: 20 repairs at once.
const ALLOWANCE: Duration = Duration::from_secs(4);
/// The longest pause: for no longer than this, and the repair itself, is a change by somebody else in force.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Spaces out the repairs when another process keeps changing our table. A change now and then is repaired at once; each repair adds
/// to a debt that time pays off, and with too much of it the next one waits.
#[derive(Clone, Debug, Default)]
pub struct Damper {
    /// When the debt is paid off.
    paid: Duration,
}

impl Damper {
    /// How long a repair waits of which the need is seen now; never more than [`LONGEST_PAUSE`].
    pub fn pause(&self, now: Duration) -> Duration {
        self.paid.saturating_sub(now).saturating_sub(ALLOWANCE).min(LONGEST_PAUSE)
    }

    /// A repair is done, and took so long.
    pub fn repaired(&mut self, now: Duration, took: Duration) {
        let weight = took.saturating_mul(SHARE).max(WEIGHT);
        let most = now.saturating_add(ALLOWANCE).saturating_add(LONGEST_PAUSE);
        self.paid = self.paid.max(now).saturating_add(weight).min(most);
    }

    /// Whether somebody keeps changing our table, so that repairs have to wait.
    pub fn is_storm(&self, now: Duration) -> bool {
        self.pause(now) > Duration::ZERO
    }
}

/// How often the table is looked at unasked.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The time until the next unasked look, the number `round`: [`LOOK_EVERY`], a tenth more or less, so that the nodes of a cluster that
/// started together do not all look at once.
pub fn until_next_look(seed: u64, round: u64) -> Duration {
    let most = LOOK_EVERY / 5;
    let part = splitmix::nth(seed, round) % 1000;
    LOOK_EVERY - most / 2 + most * u32::try_from(part).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The pauses when somebody changes the table again so soon after each repair.
    fn fight(after: Duration, took: Duration, rounds: usize) -> Vec<Duration> {
        let (mut damper, mut now) = (Damper::default(), Duration::from_secs(5));
        (0..rounds)
            .map(|_| {
                now += after;
                let pause = damper.pause(now);
                now += pause + took;
                damper.repaired(now, took);
                pause
            })
            .collect()
    }

    #[test]
    fn a_change_now_and_then_is_repaired_at_once() {
        assert!(fight(250 * MS, 2 * MS, 1000).iter().all(Duration::is_zero));
        assert!(fight(MS, 2 * MS, 20).iter().all(Duration::is_zero), "20 in a row");
    }

    #[test]
    fn somebody_who_keeps_changing_it_is_answered_five_times_a_second() {
        let pauses = fight(MS, 2 * MS, 500);
        let last = pauses[499];
        assert!((180 * MS..=200 * MS).contains(&last), "{last:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
    }

    #[test]
    fn dear_repairs_take_at_most_half_of_the_time_or_a_second_of_pause() {
        let pauses = fight(MS, 600 * MS, 100);
        assert!((500 * MS..=700 * MS).contains(&pauses[99]), "{:?}", pauses[99]);
        assert!(fight(MS, 5000 * MS, 100)[99] >= LONGEST_PAUSE - MS);
    }

    #[test]
    fn a_storm_is_over_as_soon_as_it_is_and_forgotten_a_little_later() {
        let mut damper = Damper::default();
        let now = Duration::from_secs(100);
        for _ in 0..10_000 {
            damper.repaired(now, Duration::ZERO);
        }
        assert!(damper.is_storm(now));
        assert_eq!(damper.pause(now), LONGEST_PAUSE);
        assert!(!damper.is_storm(now + LONGEST_PAUSE));
        assert!(damper.pause(Duration::ZERO) <= LONGEST_PAUSE, "a clock that goes back");
        damper.repaired(Duration::MAX, Duration::MAX);
        assert_eq!(damper.pause(Duration::MAX), Duration::ZERO);
    }

    #[test]
    fn unasked_looks_are_a_minute_apart_and_not_all_at_once() {
        let times: Vec<Duration> = (0..1000).map(|round| until_next_look(7, round)).collect();
        let (least, most) = (*times.iter().min().unwrap_or(&LOOK_EVERY), *times.iter().max().unwrap_or(&LOOK_EVERY));
        assert!(least >= 54_000 * MS && most <= 66_000 * MS && most - least > 10_000 * MS, "{least:?} {most:?}");
        assert_ne!(until_next_look(1, 0), until_next_look(2, 0));
        assert_eq!(until_next_look(1, 3), until_next_look(1, 3));
    }
}
