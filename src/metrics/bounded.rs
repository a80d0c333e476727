//! Counts by key of which there are never more than so many.

use std::collections::{BTreeMap, BTreeSet};

/// Counts that only grow, for at most so many keys; what has no room is counted together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bounded<K, const N: usize> {
    most: usize,
    counts: BTreeMap<K, [u64; N]>,
    /// What was counted for keys without room.
    rest: [u64; N],
    /// How many keys were refused since room was made the last time.
    cut: BTreeSet<K>,
}

impl<K: Ord + Clone, const N: usize> Bounded<K, N> {
    /// No key yet, and room for this many.
    pub const fn new(most: usize) -> Self {
        Self { most, counts: BTreeMap::new(), rest: [0; N], cut: BTreeSet::new() }
    }

    /// Adds to the counts of a key.
    pub fn add(&mut self, key: &K, more: [u64; N]) {
        let room = self.counts.len() < self.most;
        let counts = match self.counts.get_mut(key) {
            Some(counts) => counts,
            None if room => self.counts.entry(key.clone()).or_insert([0; N]),
            None => {
                // Who makes up keys must not make us remember them.
                if self.cut.len() < self.most {
                    self.cut.insert(key.clone());
                }
                &mut self.rest
            }
        };
        for (count, more) in counts.iter_mut().zip(more) {
            *count = count.saturating_add(more);
        }
    }

    /// When there is no room, forgets keys that are not wanted any more, so that those that are can have series of their own.
    pub fn make_room(&mut self, wanted: impl Fn(&K) -> bool) {
        if self.cut.is_empty() {
            return;
        }
        self.counts.retain(|key, _| wanted(key));
        self.cut.clear();
    }

    /// Key and counts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &[u64; N])> {
        self.counts.iter()
    }

    /// What was counted for keys without room; `None` when there never was one.
    pub fn rest(&self) -> Option<&[u64; N]> {
        (self.rest != [0; N] || !self.cut.is_empty()).then_some(&self.rest)
    }

    /// How many keys have no room.
    pub fn cut(&self) -> usize {
        self.cut.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_counted_together() {
        let mut counts: Bounded<&str, 1> = Bounded::new(2);
        for (key, more) in [("a", 1), ("b", 2), ("c", 4), ("a", 8), ("d", 16)] {
            counts.add(&key, [more]);
        }
        assert_eq!(counts.iter().collect::<Vec<_>>(), [(&"a", &[9]), (&"b", &[2])]);
        assert_eq!((counts.rest(), counts.cut()), (Some(&[20]), 2));
        counts.make_room(|key| *key != "b");
        counts.add(&"c", [1]);
        assert_eq!(counts.iter().collect::<Vec<_>>(), [(&"a", &[9]), (&"c", &[1])]);
        assert_eq!((counts.rest(), counts.cut()), (Some(&[20]), 0), "what was counted together stays so");
    }
}
