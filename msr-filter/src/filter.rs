//! The filter as KVM gets it, and KVM's own way of reading it.

use alloc::vec::Vec;

use crate::{Access, MsrRange, Verdict};

/// One range of a filter: some kinds of access to consecutive MSRs, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterRange {
    base: u32,
    nmsrs: u32,
    access: Access,
    /// Bit `i` of the little-endian bit string is MSR `base + i`; 1 allows. Whole 64-bit words,
    /// because the kernel copies `BITS_TO_LONGS(nmsrs) * 8` bytes.
    bitmap: Vec<u64>,
}

impl FilterRange {
    /// The most MSRs a range can span: KVM takes bitmaps of up to 0x600 bytes
    /// (`KVM_MSR_FILTER_MAX_BITMAP_SIZE`).
    pub const MAX_MSRS: u32 = 0x600 * 8;

    /// A range over `span` for the kinds in `access`, with every bit clear (all denied).
    pub(crate) fn denying(span: MsrRange, access: Access) -> Self {
        let nmsrs = u32::try_from(span.len()).expect("the compiler spans at most MAX_MSRS");
        debug_assert!(nmsrs <= Self::MAX_MSRS && !access.is_empty());
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

    /// The MSRs the range spans.
    pub fn span(&self) -> MsrRange {
        MsrRange::new(self.base, self.base + (self.nmsrs - 1)).expect("nmsrs is at least 1")
    }

    /// The kinds of access the range decides.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The bitmap, in 64-bit words: bit `i % 64` of word `i / 64` is MSR `base + i`, 1 allows.
    pub fn bitmap(&self) -> &[u64] {
        &self.bitmap
    }

    /// The verdict for `index`, if the range spans it and decides `access`.
    pub fn verdict(&self, index: u32, access: Access) -> Option<Verdict> {
        let bit = index
            .checked_sub(self.base)
            .filter(|bit| *bit < self.nmsrs)?;
        self.access.intersects(access).then(|| {
            if self.bitmap[bit as usize / 64] >> (bit % 64) & 1 == 1 {
                Verdict::Allow
            } else {
                Verdict::Deny
            }
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

    pub(crate) fn from_parts(default: Verdict, ranges: Vec<FilterRange>) -> Self {
        debug_assert!(ranges.len() <= Self::MAX_RANGES);
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
        if MsrRange::X2APIC.contains(index) {
            return Verdict::Allow;
        }
        self.ranges
            .iter()
            .find_map(|range| range.verdict(index, access))
            .unwrap_or(self.default)
    }
}
