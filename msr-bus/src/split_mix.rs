//! Chance that can be had again.

/// The generator SplitMix64, by its state (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014;
/// <https://prng.di.unimi.it/splitmix64.c>). Every seed is good, also numbers that follow each other.
///
/// The same seed gives the same numbers in every version: faults and scenarios promise that.
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next number.
    #[expect(
        clippy::should_implement_trait,
        reason = "it has no end, and no use for an iterator's adaptors"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// The next number as one from 0 up to, but not including, 1.
    pub fn fraction(&mut self) -> f64 {
        fraction(self.next())
    }
}

/// A number of 64 bits as one from 0 up to, but not including, 1: the bits that the fraction of a double has room for.
pub(crate) fn fraction(number: u64) -> f64 {
    (number >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The author's own first numbers for the seed 1234567.
    #[test]
    fn the_generator_is_the_one_that_it_is_called() {
        let mut random = SplitMix64(1_234_567);
        let numbers = [0; 3].map(|_| random.next());
        assert_eq!(
            numbers,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn a_fraction_is_below_1() {
        assert_eq!(fraction(0), 0.0);
        assert!(fraction(u64::MAX) < 1.0);
    }
}
