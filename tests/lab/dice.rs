//! Chance that repeats itself: the same seed, the same numbers.

/// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The seed of `NODEWALL_SEED`, else this one; it is printed, so that a run can be repeated.
    pub fn from_environment(plain: u64) -> Self {
        let seed = std::env::var("NODEWALL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(plain);
        println!("seed {seed}");
        Self(seed)
    }

    /// A number below `most`.
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % most.max(1)
    }

    /// Changes a few places of some bytes: bits, bytes, pieces that are cut out, doubled or replaced by what tends to hurt.
    pub fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        const HURT: [&[u8]; 12] = [
            b"0",
            b"-1",
            b"18446744073709551615",
            b"1e999",
            b"null",
            b"\"",
            b"\\u0000",
            b"\\ud800",
            b"[",
            b"{",
            b"\n",
            b"\xff",
        ];
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() as u64 + 1) as usize;
            let end = (at + self.below(24) as usize).min(bytes.len());
            match self.below(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                4 => drop(bytes.splice(at..end, HURT[self.below(HURT.len() as u64) as usize].iter().copied())),
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}
