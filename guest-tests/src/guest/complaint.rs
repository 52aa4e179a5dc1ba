//! What a Linux guest's log complains of.

/// What Linux says when something is wrong with its CPUs, clocks, MSRs or disks.
const WORDS: [&str; 10] = [
    "lockup",
    " stall",
    "Marking clocksource",
    "TSC unstable due to clocksource",
    "unchecked MSR access",
    "I/O error",
    "EXT4-fs error",
    "Oops",
    "WARNING: CPU",
    "Kernel panic",
];

/// What is not the VMM's doing: QEMU's CPU models have an XSAVE area of another size than TCG (`CPUID` leaf 0xd), which
/// Linux finds at every boot in the outer VM.
const KNOWN: &str = "fpu__init_system_xstate";

/// The first line of a kernel's log that complains, if one does.
pub fn complaint(log: &str) -> Option<&str> {
    let complains = |line: &&str| WORDS.iter().any(|words| line.contains(words));
    let mut lines = log.lines().filter(complains);
    lines.find(|line| !line.contains(KNOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_found_and_what_qemu_causes_is_none() {
        let clean = "[0.1] clocksource: Switched to clocksource kvm-clock\n[0.2] installing\n";
        let known =
            "[0.3] WARNING: CPU: 0 PID: 0 at fpu/xstate.c:606 fpu__init_system_xstate+0x85a\n";
        let line = "[9.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s!";
        assert_eq!(complaint(&format!("{clean}{known}")), None);
        assert_eq!(complaint(&format!("{clean}{known}{line}\n")), Some(line));
    }
}
