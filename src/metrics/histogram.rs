//! How often something took how long.

use std::time::Duration;

/// Observations in buckets of fixed upper bounds.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram {
    /// The upper bounds in seconds, ascending; above the last there is one more bucket.
    bounds: &'static [f64],
    /// How many fell into each bucket alone, the one above all bounds last.
    counts: Vec<u64>,
    /// The sum of all, exact.
    sum: Duration,
}

/// Bounds for what the kernel and we do: from 1 ms to 10 s.
pub const WORK: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Histogram {
    /// Nothing observed yet.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: Duration::ZERO }
    }

    /// Takes in one observation.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.iter().position(|bound| seconds <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        self.sum = self.sum.saturating_add(took);
    }

    /// Upper bound and how many were no larger; the last is infinity.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().scan(0u64, |sum, count| {
            *sum = sum.saturating_add(*count);
            Some(*sum)
        }))
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The sum of all, in seconds.
    pub const fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::new(&[0.01, 0.1]);
        for milliseconds in [10, 11, 100, 101] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(0.01, 1), (0.1, 3), (f64::INFINITY, 4)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 0.222));
    }
}
