//! The TSC's frequency, as CPUID and the kernel's command line tell it.

use super::leaves::{Leaves, Registers};

/// The clock of KVM's local APIC timer, in Hz. Where leaf 0x15 has a crystal's frequency, the local APIC timer runs at it
/// (Intel SDM, volume 3, "APIC Timer"), so this has to be the crystal's.
const CRYSTAL_HZ: u32 = 1_000_000_000;
/// The bus clock of leaf 0x16, in MHz: what MSRs count ratios in.
const BUS_MHZ: u32 = 100;

/// Puts the TSC's frequency into leaf 0x15, and the nominal frequencies, in MHz, into leaf 0x16. These are Intel's leaves.
pub(super) fn write(
    leaves: &mut Leaves,
    tsc_khz: u32,
    base_mhz: Option<u16>,
    max_mhz: Option<u16>,
) {
    let (denominator, numerator) = tsc_ratio(tsc_khz);
    leaves.set(
        0x15,
        Registers {
            eax: denominator,
            ebx: numerator,
            ecx: CRYSTAL_HZ,
            edx: 0,
        },
    );
    let base = base_mhz
        .map_or((tsc_khz + 500) / 1000, u32::from)
        .min(0xffff);
    leaves.set(
        0x16,
        Registers {
            eax: base,
            ebx: max_mhz.map_or(base, u32::from),
            ecx: BUS_MHZ,
            edx: 0,
        },
    );
    leaves.reach(0x16);
}

/// The ratio of the TSC to the crystal, as (denominator, numerator), as near as a guest can use it: Linux multiplies the
/// numerator by the crystal's frequency in kHz in 32 bits (arch/x86/kernel/tsc.c, `native_calibrate_tsc`). It is off by
/// less than 1 in 1,000,000 for most frequencies, and by 1 in 8,000 for those a little beside a simple ratio.
fn tsc_ratio(tsc_khz: u32) -> (u32, u32) {
    const CRYSTAL_KHZ: u64 = CRYSTAL_HZ as u64 / 1000;
    const NUMERATOR_MAX: u64 = u32::MAX as u64 / CRYSTAL_KHZ;
    let tsc_khz = u64::from(tsc_khz);
    let mut best = (1, tsc_khz.div_ceil(CRYSTAL_KHZ));
    let mut best_error = best.1 * CRYSTAL_KHZ - tsc_khz;
    for denominator in 1..=NUMERATOR_MAX {
        let numerator = (tsc_khz * denominator + CRYSTAL_KHZ / 2) / CRYSTAL_KHZ;
        if numerator == 0 {
            continue;
        }
        if numerator > NUMERATOR_MAX {
            break;
        }
        let error = (numerator * CRYSTAL_KHZ).abs_diff(tsc_khz * denominator);
        // Both errors are of their own denominator.
        if error * best.0 < best_error * denominator {
            best = (denominator, numerator);
            best_error = error;
        }
    }
    // Neither is more than `NUMERATOR_MAX`.
    (best.0 as u32, best.1 as u32)
}

/// What a Linux that is not shown a hypervisor needs on its command line to keep time by the TSC.
///
/// Without kvmclock and a PM timer, the TSC is its only clock: its frequency cannot be measured by an emulated PIT, and it
/// must not be checked against the jiffies that an emulated timer counts. CPUID has the frequency too, but less exactly
/// and on Intel only.
pub(super) fn kernel_parameters(tsc_khz: u32) -> String {
    format!("tsc_early_khz={tsc_khz} tsc=reliable")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As arch/x86/kernel/tsc.c has it, in its 32 bits.
    fn linux_tsc_khz(leaves: &Leaves) -> u32 {
        let leaf = leaves.get(0x15, 0);
        (leaf.ecx / 1000).checked_mul(leaf.ebx).unwrap() / leaf.eax
    }

    fn leaves(tsc_khz: u32) -> Leaves {
        let mut leaves = Leaves::of(&[(0, 0, [0xd, 0, 0, 0])]);
        write(&mut leaves, tsc_khz, None, None);
        leaves
    }

    #[test]
    fn the_base_and_highest_frequencies_can_be_the_models() {
        let mut leaves = leaves(2_596_136);
        assert_eq!(leaves.last_basic(), 0x16);
        let nominal = leaves.get(0x16, 0);
        assert_eq!((nominal.eax, nominal.ebx, nominal.ecx), (2596, 2596, 100));
        write(&mut leaves, 2_596_136, Some(2000), Some(3200));
        let nominal = leaves.get(0x16, 0);
        assert_eq!((nominal.eax, nominal.ebx, nominal.ecx), (2000, 3200, 100));
    }

    #[test]
    fn exact_ratios_are_exact() {
        for tsc_khz in [1_000_000, 2_000_000, 2_500_000, 2_100_000, 3_700_000] {
            assert_eq!(linux_tsc_khz(&leaves(tsc_khz)), tsc_khz);
        }
    }

    #[test]
    fn the_command_line_has_the_frequency_and_no_watchdog() {
        assert_eq!(
            kernel_parameters(2_596_136),
            "tsc_early_khz=2596136 tsc=reliable"
        );
    }

    proptest! {
        #[test]
        fn the_guest_computes_the_tscs_frequency(tsc_khz in 500_000u32..4_000_000) {
            let error = linux_tsc_khz(&leaves(tsc_khz)).abs_diff(tsc_khz);
            prop_assert!(error <= tsc_khz / 8000 + 1, "{error} kHz off");
        }

        #[test]
        fn no_frequency_is_divided_by_zero(tsc_khz in any::<u32>()) {
            prop_assert!(tsc_ratio(tsc_khz).0 != 0);
        }
    }
}
