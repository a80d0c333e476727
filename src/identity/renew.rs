//! When a certificate is renewed: decides, and does nothing. Times are seconds since 1970-01-01 UTC, randomness comes from the caller.

use std::time::Duration;

use super::certificate::Lifetime;

/// The first pause after an attempt that came to nothing; each is twice the one before...
const FIRST_PAUSE: u64 = 10;
/// ... up to this: there is time, and each attempt is a request to a server that has other nodes, too. In seconds.
const LONGEST_PAUSE: u64 = 3600;

/// When to renew: after two thirds of the time, spread over another twelfth, so that nodes that joined together do not come together.
pub fn due(lifetime: &Lifetime, dice: u64) -> u64 {
    let length = lifetime.until.saturating_sub(lifetime.from);
    let after = length - length / 3;
    lifetime.from.saturating_add(after).saturating_add(dice % (length / 12 + 1))
}

/// How long to wait after this many attempts in a row that came to nothing.
pub fn pause(failures: u32, dice: u64) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    // From 3/4 of it to all of it.
    Duration::from_secs(doubled - dice % (doubled / 4 + 1))
}

/// How much there is to worry about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Worry {
    /// Nothing.
    None,
    /// Less than a sixth of the time is left: it should have been renewed.
    Ending,
    /// The time is over: the node is nobody any more.
    Over,
}

/// Whether somebody has to look.
pub fn worry(lifetime: &Lifetime, now: u64) -> Worry {
    let (length, left) = (lifetime.until.saturating_sub(lifetime.from), lifetime.until.saturating_sub(now));
    if left == 0 {
        Worry::Over
    } else if left < length / 6 {
        Worry::Ending
    } else {
        Worry::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Lifetime = Lifetime { from: 1000, until: 1000 + 120_000 };

    #[test]
    fn it_is_due_at_two_thirds_and_never_so_late_that_it_is_a_worry() {
        assert_eq!(due(&LIFE, 0), 1000 + 80_000);
        for dice in [1, 9999, 10_000, 10_001, u64::MAX] {
            let due = due(&LIFE, dice);
            assert!((81_000..=91_000).contains(&due), "{due}");
            assert_eq!(worry(&LIFE, due), Worry::None);
        }
        assert_ne!(due(&LIFE, 5), due(&LIFE, 6));
    }

    #[test]
    fn a_lifetime_that_is_none_is_due_at_once_and_over() {
        for life in [Lifetime { from: 5, until: 5 }, Lifetime { from: 9, until: 5 }] {
            assert_eq!((due(&life, 3), worry(&life, life.from)), (life.from, Worry::Over));
        }
        assert_eq!(due(&Lifetime { from: u64::MAX, until: u64::MAX }, 0), u64::MAX);
    }

    #[test]
    fn the_last_sixth_is_a_worry_and_the_end_is_the_end() {
        let worries = [
            (0, Worry::None),
            (101_000, Worry::None),
            (101_001, Worry::Ending),
            (120_999, Worry::Ending),
            (121_000, Worry::Over),
        ];
        for (now, wanted) in worries {
            assert_eq!(worry(&LIFE, now), wanted, "{now}");
        }
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let longest: Vec<u64> = (1..=12).map(|failures| pause(failures, 0).as_secs()).collect();
        assert_eq!(longest, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]);
        assert_eq!(pause(0, 0), pause(1, 0));
        for dice in [1, 900, u64::MAX] {
            let pause = pause(u32::MAX, dice).as_secs();
            assert!((2700..=3600).contains(&pause), "{pause}");
        }
    }
}
