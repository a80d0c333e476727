//! Ranges that belong to lines: who gets an address that several lines name, and how a long list is cut into blocks.

use std::collections::{BTreeMap, BTreeSet};

/// Values from one to another, both included, and the line that they belong to.
pub(super) type Segment = (u128, u128, usize);

/// The ranges without their overlaps: what several lines have belongs to the first of them.
pub(super) fn first_wins(ranges: Vec<Segment>) -> Vec<Segment> {
    let mut events: Vec<(u128, bool, usize)> = Vec::with_capacity(ranges.len() * 2);
    for (start, end, line) in ranges {
        events.push((start, true, line));
        // What goes up to the last value never ends.
        events.extend(end.checked_add(1).map(|after| (after, false, line)));
    }
    events.sort_unstable();
    let mut segments: Vec<Segment> = Vec::new();
    let mut active: BTreeSet<usize> = BTreeSet::new();
    let mut since = 0;
    let mut emit = |start: u128, end: u128, line: usize| match segments.last_mut() {
        Some((_, last, same)) if *same == line && last.checked_add(1) == Some(start) => *last = end,
        _ => segments.push((start, end, line)),
    };
    for (point, opens, line) in events {
        if let Some(first) = active.first()
            && since < point
        {
            emit(since, point - 1, *first);
        }
        since = point;
        // An end sorts before a beginning at the same point, and a line's ranges do not touch each other.
        if opens {
            active.insert(line)
        } else {
            active.remove(&line)
        };
    }
    if let Some(first) = active.first() {
        emit(since, u128::MAX, *first);
    }
    segments
}

/// Which lines each value has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Lists {
    /// Disjoint segments, each with the index of its list.
    pub(super) segments: Vec<Segment>,
    /// The lists, each once: lines in order.
    pub(super) lists: Vec<Vec<usize>>,
    /// How many lines all lists have together.
    pub(super) pairs: usize,
}

/// How much longer than the result the way to it may be: values that neighbours share are looked at one by one.
const MOST_WORK_FOR_A_PAIR: usize = 16;

/// For each value all lines that name it, in order, up to the first that `ends` the evaluation. `None` if the lists were to have more than
/// so many lines together.
pub(super) fn lists(ranges: Vec<Segment>, most: usize, ends: impl Fn(usize) -> bool) -> Option<Lists> {
    let mut events: Vec<(u128, bool, usize)> = Vec::with_capacity(ranges.len() * 2);
    for (start, end, line) in ranges {
        events.push((start, true, line));
        events.extend(end.checked_add(1).map(|after| (after, false, line)));
    }
    events.sort_unstable();
    let mut found = Lists::default();
    let mut known: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    let mut active: BTreeSet<usize> = BTreeSet::new();
    let mut work = 0;
    let mut emit = |start: u128, end: u128, active: &BTreeSet<usize>| {
        let reached = active.iter().position(|line| ends(*line)).map_or(active.len(), |last| last + 1);
        let list: Vec<usize> = active.iter().take(reached).copied().collect();
        work += list.len();
        let index = *known.entry(list).or_insert_with_key(|list| {
            found.pairs += list.len();
            found.lists.push(list.clone());
            found.lists.len() - 1
        });
        match found.segments.last_mut() {
            Some((_, last, same)) if *same == index && last.checked_add(1) == Some(start) => *last = end,
            _ => found.segments.push((start, end, index)),
        }
        found.pairs <= most && work <= found.segments.len() + most.saturating_mul(MOST_WORK_FOR_A_PAIR)
    };
    let mut since = 0;
    for (point, opens, line) in events {
        if !active.is_empty() && since < point && !emit(since, point - 1, &active) {
            return None;
        }
        since = point;
        if opens {
            active.insert(line)
        } else {
            active.remove(&line)
        };
    }
    if !active.is_empty() && !emit(since, u128::MAX, &active) {
        return None;
    }
    Some(found)
}

/// A block of values with a common prefix, and what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Block {
    /// Its first value.
    pub(super) start: u128,
    /// Its last value.
    pub(super) end: u128,
    /// The length of the prefix.
    pub(super) prefix: u32,
    /// The segments in it, cut to it.
    pub(super) segments: Vec<Segment>,
}

/// Cuts segments of values of so many bits into blocks of at most `most` of them, along prefixes, so that what is added or taken away
/// in one block leaves the others as they are. Blocks without a segment are left out.
pub(super) fn cut(segments: &[Segment], bits: u32, most: usize) -> Vec<Block> {
    let last = u128::MAX.checked_shr(128 - bits).unwrap_or(0);
    let segments = segments.iter().map(|(start, end, line)| (*start, (*end).min(last), *line)).collect();
    let mut blocks = Vec::new();
    halve(Block { start: 0, end: last, prefix: 0, segments }, most, &mut blocks);
    blocks
}

fn halve(block: Block, most: usize, blocks: &mut Vec<Block>) {
    if block.segments.is_empty() {
        return;
    }
    if block.segments.len() <= most.max(1) || block.start == block.end {
        return blocks.push(block);
    }
    let middle = block.start + (block.end - block.start) / 2;
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for (start, end, line) in block.segments {
        if start <= middle {
            low.push((start, end.min(middle), line));
        }
        if end > middle {
            high.push((start.max(middle + 1), end, line));
        }
    }
    let prefix = block.prefix + 1;
    halve(Block { start: block.start, end: middle, prefix, segments: low }, most, blocks);
    halve(Block { start: middle + 1, end: block.end, prefix, segments: high }, most, blocks);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_several_lines_have_is_the_first_ones() {
        let ranges = vec![(10, 20, 1), (0, 30, 2), (15, 40, 0), (50, u128::MAX, 3), (60, 70, 1)];
        let expected = [(0, 9, 2), (10, 14, 1), (15, 40, 0), (50, 59, 3), (60, 70, 1), (71, u128::MAX, 3)];
        assert_eq!(first_wins(ranges), expected);
        assert_eq!(first_wins(vec![(5, 5, 0), (5, 5, 1), (6, 9, 0)]), [(5, 9, 0)]);
        assert_eq!(first_wins(Vec::new()), []);
    }

    #[test]
    fn each_value_has_the_lines_that_name_it_up_to_one_that_ends() {
        let ranges = || vec![(10, 20, 0), (15, 30, 1), (18, 18, 2), (31, 40, 1), (50, u128::MAX, 2)];
        let found = lists(ranges(), 100, |_| false).unwrap();
        let listed: Vec<_> =
            found.segments.iter().map(|(start, end, list)| (*start, *end, &found.lists[*list][..])).collect();
        let expected: [(u128, u128, &[usize]); 6] = [
            (10, 14, &[0]),
            (15, 17, &[0, 1]),
            (18, 18, &[0, 1, 2]),
            (19, 20, &[0, 1]),
            (21, 40, &[1]),
            (50, u128::MAX, &[2]),
        ];
        assert_eq!(listed, expected);
        assert_eq!(found.pairs, 1 + 2 + 3 + 1 + 1);
        assert_eq!(lists(ranges(), found.pairs - 1, |_| false), None);
        // As the first line ends, what is behind it is not reached, and neighbours become one.
        let found = lists(ranges(), 100, |line| line == 0).unwrap();
        assert_eq!(found.lists, [vec![0], vec![1], vec![2]]);
        assert_eq!(found.segments, [(10, 20, 0), (21, 40, 1), (50, u128::MAX, 2)]);
        assert_eq!(lists(Vec::new(), 0, |_| false), Some(Lists::default()));
    }

    #[test]
    fn every_value_is_in_one_block_of_at_most_so_many() {
        let segments: Vec<Segment> = (0..1000).map(|index| (index * 7, index * 7 + 3, index as usize)).collect();
        for most in [1, 10, 999, 1000] {
            let blocks = cut(&segments, 32, most);
            assert!(blocks.iter().all(|block| block.segments.len() <= most), "{most}");
            assert_eq!(blocks.len() == 1, most >= 1000);
            for value in 0..7100u128 {
                let there = |segments: &[Segment]| {
                    segments.iter().find(|(start, end, _)| (*start..=*end).contains(&value)).map(|(_, _, line)| *line)
                };
                let found: Vec<&Block> =
                    blocks.iter().filter(|block| (block.start..=block.end).contains(&value)).collect();
                assert!(found.len() <= 1);
                assert_eq!(found.first().and_then(|block| there(&block.segments)), there(&segments), "{value}");
            }
        }
    }

    #[test]
    fn all_there_is_stays_in_one_block_each() {
        let all = [(0, u128::MAX, 4)];
        assert_eq!(cut(&all, 128, 1)[0].segments, all);
        assert_eq!(
            cut(&all, 32, 1)[0],
            Block { start: 0, end: u128::from(u32::MAX), prefix: 0, segments: vec![(0, u128::from(u32::MAX), 4)] }
        );
    }
}
