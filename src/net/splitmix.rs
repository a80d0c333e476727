//! Numbers that look random and are the same every time: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
//! generators, 2014). They spread things out; they keep no secret.

/// The number at a place of the sequence that a seed has; the first place is 1.
pub const fn nth(seed: u64, place: u64) -> u64 {
    let mut bits = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A sequence, number after number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dice {
    seed: u64,
    rolls: u64,
}

impl Dice {
    /// The sequence that a seed has, from its beginning.
    pub const fn new(seed: u64) -> Self {
        Self { seed, rolls: 0 }
    }

    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.rolls = self.rolls.wrapping_add(1);
        nth(self.seed, self.rolls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of seed 0 (splitmix64.c of Vigna, 2015).
    #[test]
    fn the_sequence_is_the_published_one() {
        assert_eq!([1, 2].map(|place| nth(0, place)), [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn dice_follow_the_sequence_from_its_first_place() {
        let mut dice = Dice::new(0);
        assert_eq!([dice.roll(), dice.roll()], [nth(0, 1), nth(0, 2)]);
    }
}
