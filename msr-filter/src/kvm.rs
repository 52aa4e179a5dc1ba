//! The filter as KVM's own struct, and back.

use alloc::vec::Vec;
use core::slice;

use kvm_bindings::{
    KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_VALID_MASK, kvm_msr_filter, kvm_msr_filter_range,
};

use crate::{Access, FilterError, FilterRange, MsrFilter, Verdict};

impl MsrFilter {
    /// The filter as the struct that `KVM_X86_SET_MSR_FILTER` takes.
    pub fn to_kvm(&self) -> KvmFilter {
        let mut bitmaps: Vec<Vec<u8>> = self
            .ranges()
            .iter()
            .map(FilterRange::bitmap_bytes)
            .collect();
        let mut filter = kvm_msr_filter::default();
        if self.default_verdict() == Verdict::Deny {
            filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
        }
        let ranges = self.ranges().iter().zip(&mut bitmaps);
        for (raw, (range, bitmap)) in filter.ranges.iter_mut().zip(ranges) {
            *raw = kvm_msr_filter_range {
                flags: u32::from(range.access().bits()),
                nmsrs: range.span().len() as u32,
                base: range.span().first(),
                bitmap: bitmap.as_mut_ptr(),
            };
        }
        KvmFilter { filter, bitmaps }
    }

    /// The filter that KVM would get from `filter`: ranges over no MSR are left out, as KVM does.
    ///
    /// # Errors
    ///
    /// [`FromKvmError`] where KVM would refuse `filter`, or accept a range that never matches.
    ///
    /// # Safety
    ///
    /// Where a range has `nmsrs` of 1 to 12,288 and its bitmap is not null, the bitmap must point to
    /// `nmsrs` bits rounded up to whole 64-bit words, readable and not written to during the call.
    pub unsafe fn from_kvm(filter: &kvm_msr_filter) -> Result<Self, FromKvmError> {
        if filter.flags & !KVM_MSR_FILTER_VALID_MASK != 0 {
            return Err(FromKvmError::Flags {
                flags: filter.flags,
            });
        }
        let default = if filter.flags & KVM_MSR_FILTER_DEFAULT_DENY == 0 {
            Verdict::Allow
        } else {
            Verdict::Deny
        };
        let mut ranges = Vec::new();
        for (number, raw) in filter.ranges.iter().enumerate() {
            if raw.nmsrs == 0 {
                continue;
            }
            let access = u8::try_from(raw.flags).ok().and_then(Access::from_bits);
            let access = access.ok_or(FromKvmError::RangeFlags {
                range: number,
                flags: raw.flags,
            })?;
            if raw.nmsrs > FilterRange::MAX_MSRS {
                return Err(FromKvmError::Filter(FilterError::Length {
                    base: raw.base,
                    nmsrs: raw.nmsrs,
                }));
            }
            if raw.bitmap.is_null() {
                return Err(FromKvmError::NoBitmap { range: number });
            }
            let len = raw.nmsrs.div_ceil(64) as usize * 8;
            // SAFETY: the pointer is not null and `nmsrs` is from 1 to 12,288, for which the caller
            // vouches for as many readable bytes as `nmsrs` bits take in whole 64-bit words.
            let bitmap = unsafe { slice::from_raw_parts(raw.bitmap.cast_const(), len) };
            ranges.push(FilterRange::new(raw.base, access, raw.nmsrs, bitmap)?);
        }
        Ok(Self::new(default, ranges)?)
    }
}

/// A `kvm_msr_filter` and the bitmaps that it points to.
#[derive(Debug)]
pub struct KvmFilter {
    filter: kvm_msr_filter,
    /// Not moved or changed while the struct lives: `filter` points into their heap allocations.
    #[allow(dead_code)]
    bitmaps: Vec<Vec<u8>>,
}

impl KvmFilter {
    /// The struct. Its pointers are valid as long as `self` lives: don't copy it out. Nothing writes
    /// through them, the kernel neither.
    pub fn as_kvm(&self) -> &kvm_msr_filter {
        &self.filter
    }
}

/// What is wrong with a `kvm_msr_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FromKvmError {
    /// The filter's flags have bits that KVM doesn't know.
    #[error("the filter's flags {flags:#x} are not KVM_MSR_FILTER_DEFAULT_ALLOW or _DENY")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// A range's flags have bits that KVM doesn't know.
    #[error("the flags {flags:#x} of range {range} are not KVM_MSR_FILTER_READ, _WRITE or both")]
    RangeFlags {
        /// The position of the range.
        range: usize,
        /// Its flags.
        flags: u32,
    },
    /// A range has no bitmap.
    #[error("range {range} has no bitmap")]
    NoBitmap {
        /// The position of the range.
        range: usize,
    },
    /// KVM would refuse the filter for another reason.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

#[cfg(test)]
mod tests;
