//! The limits within which filters exist.

use crate::{FilterRange, MsrFilter, MsrRange};

/// KVM's limits, as values so that the search for the smallest filter can be proven by trying every
/// filter of a space small enough for that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// The most MSRs that a range spans.
    pub(crate) max_msrs: u32,
    /// The most ranges of a filter.
    pub(crate) max_ranges: usize,
    /// Indices that are allowed whatever the filter says.
    pub(crate) unfiltered: Option<MsrRange>,
    /// The highest index there is. No range reaches it: KVM computes `base + nmsrs` in 32 bits, which
    /// for such a range is 0, and no index is below that.
    pub(crate) top: u32,
}

impl Geometry {
    /// The limits of arch/x86/kvm/x86.c.
    pub(crate) const KVM: Self = Self {
        max_msrs: FilterRange::MAX_MSRS,
        max_ranges: MsrFilter::MAX_RANGES,
        unfiltered: Some(MsrRange::X2APIC),
        top: u32::MAX,
    };
}
