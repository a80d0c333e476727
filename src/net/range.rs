//! Sorted, disjoint, merged ranges of integers: the one shape in which ports, addresses and ICMP types are computed with.
//!
//! The kernel rejects overlapping intervals (`nft_rbtree.c`, `-EEXIST`), so an overlap has to disappear before
//! anything is sent; it does so here, by construction.

use std::fmt::Debug;
use std::sync::Arc;

/// An integer type that a [`RangeSet`] can hold.
pub trait Point: Copy + Ord + Debug {
    /// The smallest value.
    const MIN: Self;
    /// The largest value.
    const MAX: Self;
    /// The value after this one, or `None` at the end.
    fn next(self) -> Option<Self>;
    /// The value before this one, or `None` at the start.
    fn previous(self) -> Option<Self>;
}

macro_rules! point {
    ($($integer:ty),*) => {$(
        impl Point for $integer {
            const MIN: Self = <$integer>::MIN;
            const MAX: Self = <$integer>::MAX;
            fn next(self) -> Option<Self> { self.checked_add(1) }
            fn previous(self) -> Option<Self> { self.checked_sub(1) }
        }
    )*};
}
point!(u8, u16, u32, u128);

/// A set of integers as inclusive ranges, sorted, disjoint and never adjacent. Cloning is cheap: the ranges are shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RangeSet<T>(Arc<[(T, T)]>);

impl<T: Point> Default for RangeSet<T> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T: Point> FromIterator<(T, T)> for RangeSet<T> {
    /// Ranges in any order, overlapping or not; one whose start lies after its end holds nothing.
    fn from_iter<I: IntoIterator<Item = (T, T)>>(ranges: I) -> Self {
        let mut sorted: Vec<(T, T)> = ranges.into_iter().filter(|(start, end)| start <= end).collect();
        sorted.sort_unstable();
        let mut kept = 0;
        for index in 0..sorted.len() {
            let (start, end) = sorted[index];
            if kept > 0 {
                let last = &mut sorted[kept - 1];
                if last.1.next().is_none_or(|after| start <= after) {
                    last.1 = last.1.max(end);
                    continue;
                }
            }
            sorted[kept] = (start, end);
            kept += 1;
        }
        sorted.truncate(kept);
        Self(sorted.into())
    }
}

impl<T: Point + Into<u128>> RangeSet<T> {
    /// The ranges as those of the widest integer, for what is done to several types alike.
    pub fn wide(&self) -> Vec<(u128, u128)> {
        self.ranges().iter().map(|(start, end)| ((*start).into(), (*end).into())).collect()
    }
}

impl<T: Point + TryFrom<u128>> RangeSet<T> {
    /// What [`Self::wide`] has widened, again as a set; what does not fit ends at the largest value.
    pub fn narrowed(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let narrow = |value: u128| T::try_from(value).unwrap_or(T::MAX);
        ranges.into_iter().map(|(start, end)| (narrow(start), narrow(end))).collect()
    }
}

impl<T: Point> RangeSet<T> {
    /// The set that holds nothing.
    pub fn empty() -> Self {
        Self(Arc::new([]))
    }

    /// The set that holds every value of the type.
    pub fn full() -> Self {
        Self(Arc::new([(T::MIN, T::MAX)]))
    }

    /// The set of one value.
    pub fn single(value: T) -> Self {
        Self(Arc::new([(value, value)]))
    }

    /// The set of one inclusive range; empty when `start` lies after `end`.
    pub fn range(start: T, end: T) -> Self {
        std::iter::once((start, end)).collect()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every value of the type is in the set.
    pub fn is_full(&self) -> bool {
        *self.0 == [(T::MIN, T::MAX)]
    }

    /// The ranges, ascending; never overlapping and never adjacent.
    pub fn ranges(&self) -> &[(T, T)] {
        &self.0
    }

    /// The only value, if the set holds exactly one.
    pub fn only(&self) -> Option<T> {
        match *self.0 {
            [(start, end)] if start == end => Some(start),
            _ => None,
        }
    }

    /// Whether every range is a single value, so that a hash set can hold it.
    pub fn is_discrete(&self) -> bool {
        self.0.iter().all(|(start, end)| start == end)
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: T) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= value);
        after > 0 && value <= self.0[after - 1].1
    }

    /// The values in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if other.is_empty() {
            return self.clone();
        }
        if self.is_empty() {
            return other.clone();
        }
        self.0.iter().chain(other.0.iter()).copied().collect()
    }

    /// The values in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut left, mut right) = (0, 0);
        let mut out = Vec::new();
        while left < self.0.len() && right < other.0.len() {
            let (a, b) = (self.0[left], other.0[right]);
            let (start, end) = (a.0.max(b.0), a.1.min(b.1));
            if start <= end {
                out.push((start, end));
            }
            if a.1 <= b.1 {
                left += 1;
            } else {
                right += 1;
            }
        }
        Self(out.into())
    }

    /// The values that are not in the set.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut out = Vec::with_capacity(self.0.len() + 1);
        let mut start = Some(T::MIN);
        for (low, high) in self.0.iter() {
            if let (Some(from), Some(to)) = (start, low.previous())
                && from <= to
            {
                out.push((from, to));
            }
            start = high.next();
        }
        if let Some(from) = start {
            out.push((from, T::MAX));
        }
        Self(out.into())
    }

    /// The values in this set that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        if other.is_empty() || self.is_empty() {
            return self.clone();
        }
        self.intersection(&other.complement())
    }

    /// Whether the two sets have no value in common.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        let (mut left, mut right) = (0, 0);
        while left < self.0.len() && right < other.0.len() {
            let (a, b) = (self.0[left], other.0[right]);
            if a.0.max(b.0) <= a.1.min(b.1) {
                return false;
            }
            if a.1 <= b.1 {
                left += 1;
            } else {
                right += 1;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u8, u8)]) -> RangeSet<u8> {
        ranges.iter().copied().collect()
    }

    #[test]
    fn overlapping_and_adjacent_ranges_become_one() {
        assert_eq!(set(&[(5, 9), (1, 4), (8, 12), (20, 20)]).ranges(), [(1, 12), (20, 20)]);
        assert_eq!(set(&[(0, 255), (3, 4)]).ranges(), [(0, 255)]);
        assert_eq!(set(&[(9, 3)]).ranges(), []);
    }

    /// Every operation against the plain definition, for every pair drawn from a small universe of ranges.
    #[test]
    fn set_algebra_is_pointwise() {
        let samples: Vec<RangeSet<u8>> = vec![
            set(&[]),
            set(&[(0, 255)]),
            set(&[(0, 0)]),
            set(&[(255, 255)]),
            set(&[(0, 10), (20, 30)]),
            set(&[(5, 25), (40, 255)]),
            set(&[(10, 10), (12, 12), (14, 19)]),
        ];
        for a in &samples {
            for b in &samples {
                for value in 0..=255u8 {
                    let (in_a, in_b) = (a.contains(value), b.contains(value));
                    assert_eq!(a.union(b).contains(value), in_a || in_b);
                    assert_eq!(a.intersection(b).contains(value), in_a && in_b);
                    assert_eq!(a.difference(b).contains(value), in_a && !in_b);
                    assert_eq!(a.complement().contains(value), !in_a);
                }
                assert_eq!(a.is_disjoint(b), a.intersection(b).is_empty());
            }
            assert_eq!(a.complement().complement(), *a);
        }
    }
}
