//! A fault of QEMU's that no guest can bring about: a CPU that is halted for ever with an interrupt pending.
//!
//! A halted CPU whose interrupts are enabled wakes when its local APIC has one pending that its priority lets through
//! (Intel SDM volume 3, section "Handling Fixed Interrupts"). With a thread for each CPU, QEMU 7.2 loses that once in some
//! hundred runs: the interrupt stands in the APIC, and the CPU sleeps on. Then what the program did is unknown, and the whole
//! run is repeated.

/// The CPU that sleeps on, in what QEMU's monitor says of registers (`info registers -a`) and local APICs (`info lapic`).
pub(super) fn lost_interrupt(registers: &str) -> Option<usize> {
    let cpus = registers.split("CPU#").skip(1);
    let apics = registers.split("dumping local APIC state for CPU ").skip(1);
    // The last CPU's part runs on into the APICs', which say neither RFL nor HLT.
    cpus.zip(apics)
        .position(|(cpu, apic)| sleeps(cpu) && is_pending(apic))
}

/// Whether a CPU is halted with its interrupts enabled.
fn sleeps(cpu: &str) -> bool {
    const INTERRUPT_FLAG: u32 = 1 << 9;
    let flags = word(cpu, "RFL=").and_then(|flags| u32::from_str_radix(flags, 16).ok());
    word(cpu, "HLT=") == Some("1") && flags.is_some_and(|flags| flags & INTERRUPT_FLAG != 0)
}

/// Whether a local APIC has an interrupt of a higher class than its processor's priority.
fn is_pending(apic: &str) -> bool {
    let requested = apic
        .lines()
        .find_map(|line| line.trim().strip_prefix("IRR"))
        .unwrap_or_default();
    let priority = word(apic, "PPR 0x").and_then(|ppr| u8::from_str_radix(ppr, 16).ok());
    // The lower half of a priority is a sub-class, which does not count.
    requested
        .split_whitespace()
        .filter_map(|vector| vector.parse::<u8>().ok())
        .any(|vector| priority.is_some_and(|priority| vector >> 4 > priority >> 4))
}

/// What follows `name`, up to the next blank.
fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_once(name)?.1.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU's monitor says of two CPUs, in short.
    fn registers(cpus: [(&str, &str); 2], apics: [(&str, &str); 2]) -> String {
        let mut text = String::new();
        for (number, (flags, halted)) in cpus.into_iter().enumerate() {
            text += &format!(
                "CPU#{number}\nRAX=ffffffff81a178a0\nRIP=ffffffff81a17a0b RFL={flags} [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT={halted}\n\n"
            );
        }
        for (number, (irr, ppr)) in apics.into_iter().enumerate() {
            text += &format!(
                "(qemu) dumping local APIC state for CPU {number} \n\nSPIV\t 0x000001ff APIC enabled, focus=off, spurious vec 255\nISR\t (none)\nIRR\t {irr} \n\nAPR 0x00 TPR 0x10 DFR 0x0f LDR 0x01 PPR {ppr}\n"
            );
        }
        text
    }

    #[test]
    fn a_cpu_that_sleeps_through_an_interrupt_is_found() {
        const ON: (&str, &str) = ("00000216", "1");
        const OFF: (&str, &str) = ("00000016", "1");
        const RUNS: (&str, &str) = ("00000216", "0");
        const NONE: (&str, &str) = ("(none)", "0x10");
        const TIMER: (&str, &str) = ("236 251", "0x10");
        for (cpus, apics, lost) in [
            ([ON, ON], [TIMER, NONE], Some(0)),
            ([ON, ON], [NONE, TIMER], Some(1)),
            ([ON, ON], [NONE, NONE], None),
            ([OFF, ON], [TIMER, NONE], None),
            ([RUNS, ON], [TIMER, NONE], None),
            // Of the priority's own class, and of a lower one.
            ([ON, ON], [("236", "0xe0"), NONE], None),
            ([ON, ON], [("48", "0xe0"), NONE], None),
        ] {
            let text = registers(cpus, apics);
            assert_eq!(lost_interrupt(&text), lost, "{text}");
        }
    }

    #[test]
    fn a_monitor_that_says_nothing_tells_of_no_fault() {
        assert_eq!(lost_interrupt("QEMU's monitor does not answer"), None);
        assert_eq!(lost_interrupt(""), None);
    }

    /// Of an outer VM that hung, without the registers that play no part.
    const SEEN: &str = "CPU#0
RIP=ffffffff81a17a0b RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=1
EFER=0000000000001d01
CPU#1
RIP=ffffffff81a17a0b RFL=00000216 [----AP-] CPL=0 II=0 A20=1 SMM=0 HLT=1
EFER=0000000000001d01
dumping local APIC state for CPU 0
LVTTHMR  0x00010000 active-hi edge  masked                      Fixed  (vec 0)
LVTT  0x000000ec active-hi edge                 one-shot     Fixed  (vec 236)
SPIV  0x000001ff APIC enabled, focus=off, spurious vec 255
ISR  (none)
IRR  236 251
APR 0x00 TPR 0x10 DFR 0x0f LDR 0x01 PPR 0x10
dumping local APIC state for CPU 1
LVTTHMR  0x00010000 active-hi edge  masked                      Fixed  (vec 0)
LVTT  0x000000ec active-hi edge                 one-shot     Fixed  (vec 236)
SPIV  0x000001ff APIC enabled, focus=off, spurious vec 255
ISR  (none)
IRR  (none)
APR 0x01 TPR 0x10 DFR 0x0f LDR 0x02 PPR 0x10";

    #[test]
    fn the_hang_that_was_seen_is_one() {
        assert_eq!(lost_interrupt(SEEN), Some(0));
        // Had it taken them:
        assert_eq!(lost_interrupt(&SEEN.replace("236 251", "(none)")), None);
    }
}
