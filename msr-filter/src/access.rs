//! The kinds of MSR access.

use core::fmt;

bitflags::bitflags! {
    /// Kinds of MSR access: RDMSR, WRMSR, or both.
    ///
    /// The bits are those of `KVM_MSR_FILTER_READ` and `KVM_MSR_FILTER_WRITE`
    /// (Documentation/virt/kvm/api.rst, section "`KVM_X86_SET_MSR_FILTER`").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Access: u8 {
        /// The guest executes RDMSR.
        const READ = 1;
        /// The guest executes WRMSR.
        const WRITE = 2;
    }
}

impl fmt::Display for Access {
    /// Writes `r`, `w`, `rw`, or `-` for no access at all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(
            match (self.contains(Self::READ), self.contains(Self::WRITE)) {
                (true, true) => "rw",
                (true, false) => "r",
                (false, true) => "w",
                (false, false) => "-",
            },
        )
    }
}
