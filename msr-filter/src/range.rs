//! Ranges of MSR indices.

use core::fmt;

/// An inclusive, never empty range of MSR indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsrRange {
    first: u32,
    last: u32,
}

/// The error of a range whose end lies before its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the MSR range {first:#x}-{last:#x} ends before it starts")]
pub struct EmptyRange {
    /// The first index asked for.
    pub first: u32,
    /// The last index asked for, smaller than `first`.
    pub last: u32,
}

impl MsrRange {
    /// The indices of the x2APIC registers, 0x800 to 0x8ff, which KVM never filters
    /// (Documentation/virt/kvm/api.rst, section "`KVM_X86_SET_MSR_FILTER`").
    pub const X2APIC: Self = Self {
        first: 0x800,
        last: 0x8ff,
    };

    /// Every index there is.
    pub const ALL: Self = Self {
        first: 0,
        last: u32::MAX,
    };

    /// The indices from `first` to `last`, both included.
    ///
    /// # Errors
    ///
    /// [`EmptyRange`] where `last` is smaller than `first`.
    pub const fn new(first: u32, last: u32) -> Result<Self, EmptyRange> {
        if last < first {
            Err(EmptyRange { first, last })
        } else {
            Ok(Self { first, last })
        }
    }

    /// The range that holds `index` alone.
    pub const fn single(index: u32) -> Self {
        Self {
            first: index,
            last: index,
        }
    }

    /// The lowest index of the range.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The highest index of the range.
    pub const fn last(self) -> u32 {
        self.last
    }

    /// How many indices the range holds, from 1 to 2^32.
    #[allow(clippy::len_without_is_empty, clippy::cast_lossless)]
    pub const fn len(self) -> u64 {
        (self.last - self.first) as u64 + 1
    }

    /// Whether `index` lies in the range.
    pub const fn contains(self, index: u32) -> bool {
        self.first <= index && index <= self.last
    }

    /// The indices that both ranges hold, if any.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }
}

impl From<u32> for MsrRange {
    fn from(index: u32) -> Self {
        Self::single(index)
    }
}

impl fmt::Display for MsrRange {
    /// Writes `0x611` for a single index and `0x600-0x63f` for more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{:#x}", self.first)
        } else {
            write!(f, "{:#x}-{:#x}", self.first, self.last)
        }
    }
}
