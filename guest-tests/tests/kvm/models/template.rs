//! Linux under a model made of a Firecracker CPU template.

use guest_tests::guest::{Answer, Guest, Plan, Step};
use libtest_mimic::Failed;
use msr_vmm::models::import::firecracker;

/// A template of this test's own. The entry points of SYSENTER and SYSCALL are given as Firecracker's dumps give them, and
/// Linux writes its own over them; the microcode revision is given in part; `IA32_ARCH_CAPABILITIES` whole, with the
/// feature that announces it. Of CPUID a feature with a name is hidden, and a leaf without names is given.
const TEMPLATE: &str = r#"{
    "cpuid_modifiers": [
        {"leaf": "0x5", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "eax", "bitmap": "0b00000000000000000000000001000000"},
            {"register": "ecx", "bitmap": "0b00000000000000000000000000000011"}]},
        {"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [
            {"register": "ebx", "bitmap": "0b0xxxxxxxxxxxxxxxxxx"},
            {"register": "edx", "bitmap": "0bxx1xxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}
    ],
    "msr_modifiers": [
        {"addr": "0x174", "bitmap": "0b0000000000000000000000000000000000000000000000000000000000000000"},
        {"addr": "0xc0000081", "bitmap": "0b0000000000000000000000000000000000000000000000000000000000000000"},
        {"addr": "0xc0000082", "bitmap": "0b0000000000000000000000000000000000000000000000000000000000000000"},
        {"addr": "0x8b", "bitmap": "0b0000000000000000000000000000101xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},
        {"addr": "0x10a", "bitmap": "0b0000000000000000000000000000000000000000000000000000000001101011"}
    ]
}"#;

const REVISION: u32 = 0x8b;
const ARCH_CAPABILITIES: u32 = 0x10a;
const LSTAR: u32 = 0xc000_0082;

pub(super) fn linux() -> Result<(), Failed> {
    let mut model = firecracker::import(TEMPLATE)?.model;
    // A summary is a model's; this is to be a configuration.
    model.summary.clear();
    let config = format!("{}\n[vm]\nmemory = 256\n", toml::to_string(&model)?);
    let cpuid = |leaf| Step::Cpuid {
        cpu: 0,
        leaf,
        subleaf: 0,
    };
    let plan = Plan::new([
        Step::load_module("msr"),
        Step::read_msr(0, REVISION),
        Step::write_msr(0, REVISION, 0x77),
        Step::read_msr(0, REVISION),
        Step::read_msr(0, ARCH_CAPABILITIES),
        Step::write_msr(0, ARCH_CAPABILITIES, 0),
        Step::read_msr(0, LSTAR),
        cpuid(5),
        cpuid(7),
    ]);
    let outcome = Guest::new(&config, plan)?.run()?;
    let report = outcome.report()?;
    let answers: Vec<&Answer> = report.steps().iter().map(|(_, answer)| answer).collect();
    let problem = |what: &str| Err(format!("{what}: {answers:#x?}\n{}", outcome.stderr).into());
    // The seven bits that were given; KVM drops the guest's write.
    let (Answer::Value(before), Answer::Done, Answer::Value(after)) =
        (answers[1], answers[2], answers[3])
    else {
        return problem("the microcode revision");
    };
    if before >> 33 != 0b101 || before != after {
        return problem("the microcode revision is not as given");
    }
    if *answers[4] != Answer::Value(0b110_1011) || *answers[5] != Answer::Errno(libc::EIO) {
        return problem("IA32_ARCH_CAPABILITIES is not as given, or can be written");
    }
    // A canonical address in the kernel's half.
    if !matches!(answers[6], Answer::Value(entry) if entry >> 47 == 0x1_ffff) {
        return problem("Linux's entry point is not in IA32_LSTAR");
    }
    let (Answer::Cpuid([0x40, _, 0x3, _]), Answer::Cpuid([_, ebx, _, edx])) =
        (answers[7], answers[8])
    else {
        return problem("leaf 5 is not as given");
    };
    if ebx >> 18 & 1 != 0 || edx >> 29 & 1 != 1 {
        return problem("the features of leaf 7 are not as given");
    }
    Ok(())
}
