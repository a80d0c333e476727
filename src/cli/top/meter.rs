//! Rates of what happens now and then: how often a second, over the last few whole seconds.

/// Over how many whole seconds a rate is the mean. The second that is not over yet does not count.
pub(super) const WINDOW: u64 = 5;
const SLOTS: usize = WINDOW as usize + 1;

/// Counts of `N` kinds of things.
#[derive(Clone, Debug)]
pub(super) struct Meter<const N: usize> {
    /// The newest second that a slot stands for.
    second: u64,
    slots: [[u32; N]; SLOTS],
}

impl<const N: usize> Default for Meter<N> {
    fn default() -> Self {
        Self { second: 0, slots: [[0; N]; SLOTS] }
    }
}

impl<const N: usize> Meter<N> {
    /// One more of this kind in this second since the start. Seconds do not go back.
    pub(super) fn add(&mut self, second: u64, kind: usize) {
        self.forget(second);
        if let Some(count) = self.slots[slot(self.second)].get_mut(kind) {
            *count = count.saturating_add(1);
        }
    }

    /// Empties the slots of the seconds in which nothing happened.
    fn forget(&mut self, second: u64) {
        for passed in self.second + 1..=second.min(self.second.saturating_add(SLOTS as u64)) {
            self.slots[slot(passed)] = [0; N];
        }
        if second > self.second.saturating_add(SLOTS as u64) {
            self.slots = [[0; N]; SLOTS];
        }
        self.second = self.second.max(second);
    }

    /// How many a second there were of each kind, in this second since the start.
    pub(super) fn rates(&self, second: u64) -> [f64; N] {
        let mut now = self.clone();
        now.forget(second);
        let over = second.min(WINDOW);
        let mut sums = [0_u64; N];
        for passed in second - over..second {
            for (sum, count) in sums.iter_mut().zip(now.slots[slot(passed)]) {
                *sum += u64::from(count);
            }
        }
        sums.map(|sum| sum as f64 / over.max(1) as f64)
    }
}

/// The slot of a second.
const fn slot(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_whole_seconds_and_fade() {
        let mut meter = Meter::<2>::default();
        assert_eq!(meter.rates(0), [0.0, 0.0]);
        for second in 0..8 {
            for _ in 0..10 {
                meter.add(second, 0);
            }
        }
        meter.add(7, 1);
        // The seconds up to now, and not the one that is not over.
        for (second, rates) in [(7, [10.0, 0.0]), (8, [10.0, 0.2]), (10, [6.0, 0.2]), (12, [2.0, 0.2]), (13, [0.0; 2])]
        {
            assert_eq!(meter.rates(second), rates, "{second}");
        }
        assert_eq!(meter.rates(1_000_000), [0.0, 0.0]);
        meter.add(1_000_000, 0);
        assert_eq!(meter.rates(1_000_001), [0.2, 0.0]);
        let mut young = Meter::<1>::default();
        young.add(0, 0);
        young.add(1, 0);
        assert_eq!(young.rates(2), [1.0]);
    }
}
