//! Addresses and ports that no rule tells apart, so that one of each stands for all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::addr::AddrSet;
use crate::net::range::RangeSet;
use crate::net::splitmix;

/// Addresses that are in the same sets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Class {
    /// One of them.
    pub(super) example: IpAddr,
    /// All of them, of one family.
    pub(super) addresses: AddrSet,
}

/// The addresses of `world`, sorted by which of the sets they are in.
pub(super) fn of_addresses(world: &AddrSet, sets: &[&AddrSet]) -> Vec<Class> {
    let v4 = partition(&world.v4.wide(), &sets.iter().map(|set| set.v4.wide()).collect::<Vec<_>>());
    let v6 = partition(&world.v6.wide(), &sets.iter().map(|set| set.v6.wide()).collect::<Vec<_>>());
    let v4 = v4.into_iter().filter_map(|ranges| {
        let v4 = RangeSet::<u32>::narrowed(ranges);
        let (example, _) = *v4.ranges().first()?;
        Some(Class { example: Ipv4Addr::from_bits(example).into(), addresses: AddrSet { v4, v6: RangeSet::empty() } })
    });
    let v6 = v6.into_iter().filter_map(|ranges| {
        let (example, _) = *ranges.first()?;
        let addresses = AddrSet { v4: RangeSet::empty(), v6: ranges.into_iter().collect() };
        Some(Class { example: Ipv6Addr::from_bits(example).into(), addresses })
    });
    v4.chain(v6).collect()
}

/// These ports, sorted by which of the sets they are in.
pub(super) fn of_ports(world: &RangeSet<u16>, sets: &[&RangeSet<u16>]) -> Vec<RangeSet<u16>> {
    let kinds = partition(&world.wide(), &sets.iter().map(|set| set.wide()).collect::<Vec<_>>());
    kinds.into_iter().map(RangeSet::narrowed).collect()
}

/// Cuts `world` at the borders of the sets, and joins what is in the same of them. Which sets a piece is in is known by a sum of 128 bits
/// over their numbers: two pieces in different sets have the same one by chance in 2^128.
fn partition(world: &[(u128, u128)], sets: &[Vec<(u128, u128)>]) -> Vec<Vec<(u128, u128)>> {
    let mut borders: BTreeMap<u128, u128> = BTreeMap::new();
    for (number, ranges) in (1..).zip(std::iter::once(world).chain(sets.iter().map(Vec::as_slice))) {
        let mark = mark(number);
        for (start, end) in ranges {
            *borders.entry(*start).or_default() ^= mark;
            if let Some(after) = end.checked_add(1) {
                *borders.entry(after).or_default() ^= mark;
            }
        }
    }
    let mut kinds: BTreeMap<u128, Vec<(u128, u128)>> = BTreeMap::new();
    let mut order: Vec<u128> = Vec::new();
    let (mut sum, mut inside) = (0, world.iter().peekable());
    let mut starts = borders.keys().copied().skip(1);
    for (start, change) in &borders {
        sum ^= change;
        let end = starts.next().map_or(u128::MAX, |next| next - 1);
        while inside.next_if(|(_, last)| last < start).is_some() {}
        if inside.peek().is_some_and(|(first, _)| first <= start) {
            let kind = kinds.entry(sum).or_insert_with(|| {
                order.push(sum);
                Vec::new()
            });
            kind.push((*start, end));
        }
    }
    order.into_iter().filter_map(|sum| kinds.remove(&sum)).collect()
}

/// What stands for a set in the sum.
fn mark(number: u64) -> u128 {
    let [high, low] = [number, number ^ 0x5555_5555_5555_5555].map(|place| u128::from(splitmix::nth(0, place)));
    high << 64 | low
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn set(prefixes: &[&str]) -> AddrSet {
        prefixes.iter().map(|prefix| prefix.parse::<ipnet::IpNet>().unwrap()).collect()
    }

    #[test]
    fn addresses_in_the_same_sets_are_one_class() {
        let (a, b) = (set(&["10.0.0.0/8", "fd00::/8"]), set(&["10.1.0.0/16", "192.0.2.1/32"]));
        let classes = of_addresses(&AddrSet::full(), &[&a, &b]);
        let examples: Vec<String> = classes.iter().map(|class| class.example.to_string()).collect();
        assert_eq!(examples, ["0.0.0.0", "10.0.0.0", "10.1.0.0", "192.0.2.1", "::", "fd00::"]);
        assert_eq!(
            classes[1].addresses,
            set(&[
                "10.0.0.0/16",
                "10.2.0.0/15",
                "10.4.0.0/14",
                "10.8.0.0/13",
                "10.16.0.0/12",
                "10.32.0.0/11",
                "10.64.0.0/10",
                "10.128.0.0/9"
            ])
        );
        let inside = of_addresses(&a, &[&b]);
        assert_eq!(inside.len(), 3, "{inside:?}");
        assert_eq!(of_addresses(&AddrSet::full(), &[]).len(), 2, "a family each");
    }

    #[test]
    fn ports_in_the_same_sets_are_one_kind() {
        let (low, all) = (RangeSet::range(1, 1023), RangeSet::full());
        assert_eq!(of_ports(&all, &[]), std::slice::from_ref(&all));
        assert_eq!(of_ports(&all, &[&low, &all]), [low.complement(), low.clone()]);
        let http = RangeSet::single(80);
        assert_eq!(of_ports(&low, &[&http]), [low.difference(&http), http]);
    }

    proptest! {
        #[test]
        fn classes_are_all_of_the_world_once_and_no_set_cuts_one(
            world in proptest::collection::vec((0u32..64, 0u32..64), 0..4),
            sets in proptest::collection::vec(proptest::collection::vec((0u32..64, 0u32..64), 0..4), 0..5),
        ) {
            let v4 = |ranges: &Vec<(u32, u32)>| AddrSet { v4: ranges.iter().copied().collect(), v6: RangeSet::empty() };
            let (world, sets) = (v4(&world), sets.iter().map(v4).collect::<Vec<_>>());
            let classes = of_addresses(&world, &sets.iter().collect::<Vec<_>>());
            let mut together = AddrSet::default();
            for class in &classes {
                prop_assert!(class.addresses.contains(class.example));
                prop_assert!(together.is_disjoint(&class.addresses));
                together = together.union(&class.addresses);
                for set in &sets {
                    let cut = class.addresses.intersection(set);
                    prop_assert!(cut.is_empty() || cut == class.addresses);
                }
            }
            prop_assert_eq!(together, world);
            for (index, one) in classes.iter().enumerate() {
                for other in &classes[..index] {
                    prop_assert!(sets.iter().any(|set| set.contains(one.example) != set.contains(other.example)));
                }
            }
        }
    }
}
