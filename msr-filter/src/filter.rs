//! The filter as KVM gets it, and KVM's own way of reading it.

use alloc::vec::Vec;

use crate::{Access, MsrRange, Verdict};

/// One range of a filter: some kinds of access to consecutive MSRs, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRange {
    base: u32,
    /// From 1 to [`FilterRange::MAX_MSRS`], and such that `base + nmsrs` does not overflow.
    nmsrs: u32,
    /// Not empty.
    access: Access,
    /// Bit `i` of the little-endian bit string is MSR `base + i`; 1 allows. Whole 64-bit words,
    /// because the kernel copies `BITS_TO_LONGS(nmsrs) * 8` bytes.
    bitmap: Vec<u64>,
}

/// What KVM would refuse in a filter, or accept without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// A range for no kind of access.
    #[error("the filter range at {base:#x} is for no kind of access")]
    NoAccess {
        /// The first MSR of the range.
        base: u32,
    },
    /// A range over no MSR, or over more than KVM takes.
    #[error("the filter range at {base:#x} spans {nmsrs} MSRs, and KVM takes 1 to 12288")]
    Length {
        /// The first MSR of the range.
        base: u32,
        /// How many it spans.
        nmsrs: u32,
    },
    /// A range that reaches index 0xffffffff or beyond. KVM computes its end in 32 bits and then finds
    /// no index in it.
    #[error(
        "the filter range of {nmsrs} MSRs at {base:#x} would end past 0xfffffffe and never match"
    )]
    Wraps {
        /// The first MSR of the range.
        base: u32,
        /// How many it spans.
        nmsrs: u32,
    },
    /// A bitmap with too few bits, or with bytes to spare.
    #[error("the filter range at {base:#x} has a bitmap of {len} bytes instead of {expected}")]
    BitmapLength {
        /// The first MSR of the range.
        base: u32,
        /// The length of the bitmap, in bytes.
        len: usize,
        /// What KVM reads: a bit for each MSR, in whole 64-bit words.
        expected: usize,
    },
    /// More ranges than a filter can have.
    #[error("the filter has {count} ranges, and KVM takes at most 16")]
    TooManyRanges {
        /// How many ranges there are.
        count: usize,
    },
    /// A default of deny with nothing allowed or denied explicitly.
    #[error("KVM refuses a filter that denies by default and has no range")]
    DenyWithoutRanges,
}

impl FilterRange {
    /// The most MSRs a range can span: KVM takes bitmaps of up to 0x600 bytes
    /// (`KVM_MSR_FILTER_MAX_BITMAP_SIZE`).
    pub const MAX_MSRS: u32 = 0x600 * 8;

    /// The range over `nmsrs` MSRs from `base` on, for the kinds in `access`. Bit `i % 8` of byte `i / 8` of
    /// `bitmap` is MSR `base + i`, 1 allows; it is as long as KVM reads, whole 64-bit words.
    ///
    /// # Errors
    ///
    /// [`FilterError`] where KVM would refuse the range or never match it.
    pub fn new(base: u32, access: Access, nmsrs: u32, bitmap: &[u8]) -> Result<Self, FilterError> {
        if access.is_empty() {
            return Err(FilterError::NoAccess { base });
        }
        if !(1..=Self::MAX_MSRS).contains(&nmsrs) {
            return Err(FilterError::Length { base, nmsrs });
        }
        if base.checked_add(nmsrs).is_none() {
            return Err(FilterError::Wraps { base, nmsrs });
        }
        let expected = nmsrs.div_ceil(64) as usize * 8;
        if bitmap.len() != expected {
            return Err(FilterError::BitmapLength {
                base,
                len: bitmap.len(),
                expected,
            });
        }
        let words = bitmap.chunks_exact(8);
        let words = words.map(|word| u64::from_le_bytes(word.try_into().expect("chunks of 8")));
        let mut range = Self {
            base,
            nmsrs,
            access,
            bitmap: words.collect(),
        };
        range.clear_padding();
        Ok(range)
    }

    /// A range over `span`, which a range must be able to have, for the kinds in `access`, with every
    /// bit clear (all denied).
    pub(crate) fn denying(span: MsrRange, access: Access) -> Self {
        let nmsrs = u32::try_from(span.len()).expect("the compiler spans at most MAX_MSRS");
        debug_assert!(nmsrs <= Self::MAX_MSRS && span.last() < u32::MAX && !access.is_empty());
        Self {
            base: span.first(),
            nmsrs,
            access,
            bitmap: alloc::vec![0; nmsrs.div_ceil(64) as usize],
        }
    }

    /// Sets the verdict of the indices in `part`, which must lie in the range.
    pub(crate) fn set(&mut self, part: MsrRange, verdict: Verdict) {
        let (first, last) = (part.first() - self.base, part.last() - self.base);
        let (first_word, last_word) = (first as usize / 64, last as usize / 64);
        for word in first_word..=last_word {
            let mut mask = u64::MAX;
            if word == first_word {
                mask &= u64::MAX << (first % 64);
            }
            if word == last_word {
                mask &= u64::MAX >> (63 - last % 64);
            }
            match verdict {
                Verdict::Allow => self.bitmap[word] |= mask,
                Verdict::Deny => self.bitmap[word] &= !mask,
            }
        }
    }

    /// Clears the bits past the last MSR, so that equal ranges are equal values.
    fn clear_padding(&mut self) {
        if let Some(word) = self.bitmap.last_mut() {
            *word &= u64::MAX >> (63 - (self.nmsrs - 1) % 64);
        }
    }

    /// The MSRs the range spans.
    pub fn span(&self) -> MsrRange {
        MsrRange::new(self.base, self.base + (self.nmsrs - 1)).expect("nmsrs is at least 1")
    }

    /// The kinds of access the range decides.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The bitmap, in 64-bit words: bit `i % 64` of word `i / 64` is MSR `base + i`, 1 allows. Bits past
    /// the last MSR are 0.
    pub fn bitmap(&self) -> &[u64] {
        &self.bitmap
    }

    /// The bitmap as KVM reads it: bit `i % 8` of byte `i / 8` is MSR `base + i`, padded to a multiple of 8
    /// bytes.
    pub fn bitmap_bytes(&self) -> Vec<u8> {
        self.bitmap
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// How many of its MSRs the range allows.
    pub fn allowed(&self) -> u32 {
        self.bitmap.iter().map(|word| word.count_ones()).sum()
    }

    /// The verdict for `index`, if the range spans it and decides `access`.
    pub fn verdict(&self, index: u32, access: Access) -> Option<Verdict> {
        let bit = index
            .checked_sub(self.base)
            .filter(|bit| *bit < self.nmsrs)?;
        self.access.intersects(access).then(|| self.bit(bit))
    }

    fn bit(&self, bit: u32) -> Verdict {
        if self.bitmap[bit as usize / 64] >> (bit % 64) & 1 == 1 {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }

    /// The longest parts of the range that have one verdict, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (MsrRange, Verdict)> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let first = from;
            let verdict = (first < self.nmsrs).then(|| self.bit(first))?;
            from = (first + 1..self.nmsrs)
                .find(|bit| self.bit(*bit) != verdict)
                .unwrap_or(self.nmsrs);
            let run = MsrRange::new(self.base + first, self.base + (from - 1));
            Some((run.expect("a run has its first bit at least"), verdict))
        })
    }
}

/// A filter that KVM accepts: at most 16 ranges, tried in order, and a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrFilter {
    default: Verdict,
    ranges: Vec<FilterRange>,
}

impl MsrFilter {
    /// The most ranges a filter can have (`KVM_MSR_FILTER_MAX_RANGES`).
    pub const MAX_RANGES: usize = 16;

    /// The filter of just these ranges, in this order. [`FilterSpec::compile`](crate::FilterSpec::compile)
    /// finds better ones.
    ///
    /// # Errors
    ///
    /// [`FilterError`] where KVM would refuse the filter.
    pub fn new(default: Verdict, ranges: Vec<FilterRange>) -> Result<Self, FilterError> {
        if ranges.len() > Self::MAX_RANGES {
            return Err(FilterError::TooManyRanges {
                count: ranges.len(),
            });
        }
        if ranges.is_empty() && default == Verdict::Deny {
            return Err(FilterError::DenyWithoutRanges);
        }
        Ok(Self { default, ranges })
    }

    /// A filter from the compiler, which knows the limits.
    pub(crate) fn from_parts(default: Verdict, ranges: Vec<FilterRange>) -> Self {
        debug_assert!(ranges.len() <= Self::MAX_RANGES);
        debug_assert!(default == Verdict::Allow || !ranges.is_empty());
        Self { default, ranges }
    }

    /// The filter that lets every access through, which is KVM's state before any filter is set.
    pub fn allow_all() -> Self {
        Self {
            default: Verdict::Allow,
            ranges: Vec::new(),
        }
    }

    /// The verdict where no range decides.
    pub fn default_verdict(&self) -> Verdict {
        self.default
    }

    /// The ranges, in the order in which KVM tries them.
    pub fn ranges(&self) -> &[FilterRange] {
        &self.ranges
    }

    /// What KVM decides for one access, by its own algorithm (`kvm_msr_allowed` in
    /// arch/x86/kvm/x86.c): x2APIC indices are always allowed; else the first range that spans
    /// `index` and has the kind in its flags decides by its bit; else the default.
    ///
    /// `access` is one kind, READ or WRITE.
    pub fn verdict(&self, index: u32, access: Access) -> Verdict {
        self.explain(index, access).0
    }
}

#[cfg(test)]
mod tests;
