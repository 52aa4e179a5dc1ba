//! Random rules and accesses, reproducible by their seed.

use msr_bus::SplitMix64;
use msr_filter::{Access, FilterSpec, MsrFilter, MsrRange, Rule, Verdict};

pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// A number from 0 to `limit - 1`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn verdict(&mut self) -> Verdict {
        if self.one_in(2) {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }

    /// An index, most often from where MSRs are.
    pub(super) fn index(&mut self) -> u32 {
        const WINDOWS: [(u32, u64); 8] = [
            (0, 0x2000),
            (0x7c0, 0x180),
            (0x4000_0000, 0x200),
            (0x4b56_4d00, 0x100),
            (0xc000_0000, 0x2000),
            (0xc001_0000, 0x2000),
            (0xffff_ff00, 0x100),
            (0, 1 << 32),
        ];
        let (start, len) = WINDOWS[self.below(WINDOWS.len() as u64) as usize];
        start + self.below(len) as u32
    }

    fn rule(&mut self) -> Rule {
        let first = self.index();
        // Mostly a few MSRs; at times more than one range of a filter can span.
        let most = if self.one_in(8) { 0x8000 } else { 0x40 };
        let last = first.saturating_add(self.below(most) as u32);
        let access = [Access::READ, Access::WRITE, Access::all()][self.below(3) as usize];
        let range = MsrRange::new(first, last).expect("last is not below first");
        Rule::new(range, access, self.verdict())
    }

    /// Rules that some filter expresses, and that filter.
    pub(super) fn filter(&mut self) -> (FilterSpec, MsrFilter) {
        loop {
            let rules = 1 + self.below(24);
            let default = self.verdict();
            let spec = (0..rules).fold(FilterSpec::new(default), |spec, _| spec.rule(self.rule()));
            if let Ok(filter) = spec.compile() {
                return (spec, filter);
            }
        }
    }
}
