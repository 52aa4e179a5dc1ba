//! Sets of pages.

use std::ops::Range;

/// The size of a page, in bytes.
pub(in crate::snapshot) const PAGE: u64 = 4096;

/// Pages of a region, counted from its start, in the form of KVM's dirty log: one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::snapshot) struct Pages(pub(super) Vec<u64>);

impl Pages {
    /// None of `count` pages.
    pub(super) fn none_of(count: u64) -> Self {
        Self(vec![0; count.div_ceil(64) as usize])
    }

    pub(super) fn insert(&mut self, page: u64) {
        self.0[(page / 64) as usize] |= 1 << (page % 64);
    }

    pub(super) fn insert_range(&mut self, pages: Range<u64>) {
        for page in pages {
            self.insert(page);
        }
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        let word = self.0.get((page / 64) as usize);
        word.is_some_and(|word| word & 1 << (page % 64) != 0)
    }

    /// Adds those of `other`.
    pub(in crate::snapshot) fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    /// How many there are.
    pub(in crate::snapshot) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The runs of adjacent pages, in bytes from the region's start.
    pub(in crate::snapshot) fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = self.next(page, 0)?;
            let end = self.next(start, !0).unwrap_or(self.0.len() as u64 * 64);
            page = end;
            Some(start * PAGE..end * PAGE)
        })
    }

    /// The first page from `page` on that is there, or with `invert` of all ones, that is not.
    fn next(&self, page: u64, invert: u64) -> Option<u64> {
        let first = (page / 64) as usize;
        let mut mask = !0 << (page % 64);
        for (number, word) in self.0.iter().enumerate().skip(first) {
            let bits = (word ^ invert) & mask;
            if bits != 0 {
                return Some(number as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            mask = !0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_pages_and_no_two_touch(pages in prop::collection::btree_set(0u64..300, 0..200)) {
            let mut set = Pages::none_of(300);
            pages.iter().for_each(|page| set.insert(*page));
            prop_assert_eq!(set.count(), pages.len() as u64);
            let runs: Vec<_> = set.runs().collect();
            let listed: Vec<u64> = runs.iter().flat_map(|run| run.start / PAGE..run.end / PAGE).collect();
            prop_assert_eq!(listed, pages.into_iter().collect::<Vec<_>>());
            prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
        }
    }

    #[test]
    fn a_run_may_reach_the_end_and_sets_of_other_lengths_are_added() {
        let mut set = Pages::none_of(64);
        set.insert_range(62..64);
        let mut runs = set.runs();
        assert_eq!(runs.next(), Some(62 * PAGE..64 * PAGE));
        assert_eq!(runs.next(), None);
        let mut other = Pages::default();
        other.add(&set);
        assert_eq!(other, set);
        assert!(set.contains(63) && !set.contains(61) && !set.contains(1000));
    }
}
