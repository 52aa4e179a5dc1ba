//! The local APIC's timer in TSC-deadline mode (Intel SDM, volume 3, section 11.5.4.1).

use kvm_bindings::kvm_lapic_state;

const ISR: usize = 0x100;
const IRR: usize = 0x200;
const LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE: u32 = 0b11 << 17;
const LVT_TSC_DEADLINE: u32 = 0b10 << 17;

fn register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let byte = |n: usize| lapic.regs[offset + n].cast_unsigned();
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

/// Whether the timer counts to a TSC deadline.
pub(super) fn is_used(lapic: &kvm_lapic_state) -> bool {
    register(lapic, LVT_TIMER) & LVT_MODE == LVT_TSC_DEADLINE
}

/// Whether a guest whose deadline reads as 0 may wait for an interrupt that is nowhere: the timer is unmasked and its
/// interrupt is neither requested nor in service. An idle guest that switched its timer off looks the same, and
/// gets one tick that it did not ask for.
pub(super) fn may_be_lost(lapic: &kvm_lapic_state) -> bool {
    let timer = register(lapic, LVT_TIMER);
    let vector = timer & 0xff;
    let (word, bit) = ((vector / 32) as usize * 0x10, 1 << (vector % 32));
    let underway = [IRR, ISR].map(|base| register(lapic, base + word) & bit != 0);
    is_used(lapic) && timer & LVT_MASKED == 0 && underway == [false; 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(registers: &[(usize, u32)]) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (offset, value) in registers {
            for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
                lapic.regs[offset + n] = byte.cast_signed();
            }
        }
        lapic
    }

    #[test]
    fn a_deadline_is_lost_where_the_timer_waits_and_no_interrupt_is_underway() {
        let timer = LVT_TSC_DEADLINE | 0xec;
        for (registers, lost) in [
            (vec![(LVT_TIMER, timer)], true),
            (vec![(LVT_TIMER, timer | LVT_MASKED)], false),
            // Periodic.
            (vec![(LVT_TIMER, 1 << 17 | 0xec)], false),
            // Vector 0xec is bit 12 of the eighth word.
            (vec![(LVT_TIMER, timer), (IRR + 0x70, 1 << 12)], false),
            (vec![(LVT_TIMER, timer), (ISR + 0x70, 1 << 12)], false),
            (vec![(LVT_TIMER, timer), (IRR + 0x70, 1 << 13)], true),
        ] {
            assert_eq!(may_be_lost(&lapic(&registers)), lost, "{registers:x?}");
        }
    }
}
