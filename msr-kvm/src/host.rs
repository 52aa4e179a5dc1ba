//! The host's CPU, as a guest sees it that is shown no other.

use std::arch::x86_64::{__cpuid_count, CpuidResult};

use msr_bus::{CpuIdentity, CpuVendor};

/// The identity of the CPU that this program runs on (CPUID leaves 0 and 1): what a guest's MSRs follow where its
/// CPUID is the host's. A vendor other than Intel counts as AMD where it is Hygon, which took AMD's MSRs over, and as
/// Intel otherwise.
pub fn host_cpu() -> CpuIdentity {
    let leaf = cpuid(0, 0);
    CpuIdentity {
        vendor: vendor([leaf.ebx, leaf.edx, leaf.ecx]),
        signature: cpuid(1, 0).eax,
    }
}

/// A leaf and subleaf of this program's CPU.
// A safe function from Rust 1.94 on; the oldest that is promised is older.
#[allow(unused_unsafe)]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    // SAFETY: every CPU of x86-64 has the instruction.
    unsafe { __cpuid_count(leaf, subleaf) }
}

/// The vendor of leaf 0's EBX, EDX and ECX.
fn vendor(registers: [u32; 3]) -> CpuVendor {
    let [a, b, c] = registers.map(u32::to_le_bytes);
    let text = [a, b, c].concat();
    if text == b"AuthenticAMD" || text == b"HygonGenuine" {
        CpuVendor::Amd
    } else {
        CpuVendor::Intel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vendor_is_the_registers_text() {
        let registers = |text: &[u8; 12]| {
            [0, 4, 8].map(|at| u32::from_le_bytes(text[at..at + 4].try_into().unwrap()))
        };
        assert_eq!(vendor(registers(b"GenuineIntel")), CpuVendor::Intel);
        assert_eq!(vendor(registers(b"AuthenticAMD")), CpuVendor::Amd);
        assert_eq!(vendor(registers(b"HygonGenuine")), CpuVendor::Amd);
    }
}
