//! A guest whose every access is known.

use guest_tests::guest::{Folder, Guest, TinyKernel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_trace::{Answerer, Ending, Kind, Reason};

use super::{open, records};

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "trace::a_known_list_of_accesses_is_in_the_trace_record_for_record",
        record_for_record,
    )]
}

pub(super) const SCRATCH: u32 = 0xc001_1f00;
/// Nobody has it.
const UNKNOWN: u32 = 0x3fff;

pub(super) const CONFIG: &str = "\
[msr]
unclaimed = \"ignore\"

[[msr.device]]
type = \"scratch\"
msr = 0xc0011f00
";

/// Writes 1 to `times` to the scratch register, reads each back, and touches what nobody has: three accesses a time.
pub(super) fn kernel(times: u64) -> Result<TinyKernel, IcedError> {
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    let mut again = code.create_label();
    code.xor(esi, esi)?;
    code.set_label(&mut again)?;
    code.inc(esi)?;
    code.mov(ecx, SCRATCH)?;
    code.mov(eax, esi)?;
    code.xor(edx, edx)?;
    code.wrmsr()?;
    code.rdmsr()?;
    code.mov(ecx, UNKNOWN)?;
    code.rdmsr()?;
    code.cmp(esi, times as u32)?;
    code.jne(again)?;
    Ok(kernel)
}

fn record_for_record() -> Result<(), Failed> {
    const TIMES: u64 = 500;
    let mut kernel = kernel(TIMES)?;
    kernel.power_off()?;
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let config = folder.file("config.toml", CONFIG)?;
    let guest = Guest::tiny(&mut kernel)?;
    let outcome = guest
        .option("--config", config)
        .option("--trace", &path)
        .run()?;
    if outcome.status.code() != Some(0) {
        return Err(format!("{}: {}", outcome.status, outcome.stderr).into());
    }
    let mut trace = open(&path)?;
    assert_eq!(trace.ending(), Ending::Whole);
    assert_eq!(trace.total_lost(), 0);
    let seen = records(&mut trace)?;
    assert_eq!(seen.len() as u64, 3 * TIMES);
    let device = Answerer::Device(Reason::Filter);
    let nobody = Answerer::Fallback(Reason::Unknown);
    for (number, three) in (1..).zip(seen.chunks(3)) {
        let brief: Vec<_> = three
            .iter()
            .map(|r| (r.index, r.kind, r.value, r.fault, r.answerer))
            .collect();
        let expected = [
            (SCRATCH, Kind::Write, number, false, device),
            (SCRATCH, Kind::Read, number, false, device),
            (UNKNOWN, Kind::Read, 0, false, nobody),
        ];
        assert_eq!(brief, expected);
        // WRMSR and RDMSR are two bytes each, and `mov ecx, imm32` between them five.
        let rips: Vec<u64> = three.iter().filter_map(|record| record.rip).collect();
        assert_eq!(rips, [rips[0], rips[0] + 2, rips[0] + 9]);
    }
    assert!(seen.is_sorted_by_key(|record| record.time));
    Ok(())
}
