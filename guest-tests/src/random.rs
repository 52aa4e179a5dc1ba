//! Random numbers for hostile guests, the same for the same seed.

use msr_bus::SplitMix64;

/// Where what is random comes from.
#[derive(Debug)]
pub struct Random(SplitMix64);

impl Random {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    /// The next number.
    #[expect(
        clippy::should_implement_trait,
        reason = "it has no end, and no use for an iterator's adaptors"
    )]
    pub fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// A number from 0 to `limit - 1`.
    pub fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    /// One of these, of which there is at least one.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// A place in one of these ranges, each as likely as another: where it begins, and how long it is.
    pub fn within(&mut self, ranges: &[(u32, u32)]) -> u32 {
        let (start, length) = self.of(ranges);
        start.wrapping_add(self.below(length))
    }

    /// Any number, and often one that means something.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.next() & 0xffff,
            4 => self.next() & 0xffff_ffff,
            // Pages of memory, of devices, and of nothing.
            5 => u64::from(self.below(1 << 20)) << 12,
            6 => u64::MAX << self.below(64),
            _ => self.next(),
        }
    }

    /// The index of an MSR, most often from where MSRs are.
    pub fn msr(&mut self) -> u32 {
        self.within(&[
            (0, 0x2000),
            (0x600, 0x60),
            (0x7c0, 0x180),
            (0x4000_0000, 0x200),
            (0x4b56_4d00, 0x10),
            (0xc000_0000, 0x2000),
            (0xc001_0000, 0x2000),
            (0xffff_ff00, 0x100),
            (0, u32::MAX),
        ])
    }
}
