//! String instructions on ports: each repetition is an access of its own.

use guest_tests::guest::{Guest, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_vmm::layout;

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("ports":
        string_instructions_reach_every_device_access_by_access,
    )
}

fn string_instructions_reach_every_device_access_by_access() -> Result<(), Failed> {
    const BUFFER: u32 = 2 << 20;
    const TEXT: u32 = BUFFER + 0x100;
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    code.cld()?;
    // The RTC's register D, "the battery is good", the UART's line status, "nothing to send", and the i8042's status, "nothing
    // to read".
    for (port, at) in [
        (layout::RTC + 1, 0),
        (layout::COM1 + 5, 4),
        (layout::I8042 + 4, 12),
    ] {
        code.mov(dx, u32::from(layout::RTC))?;
        code.mov(al, 0xd)?;
        code.out(dx, al)?;
        code.mov(dx, u32::from(port))?;
        code.mov(edi, BUFFER + at)?;
        code.mov(ecx, 3)?;
        code.rep().insb()?;
    }
    // PM1 control, "ACPI is enabled", in words.
    code.mov(dx, u32::from(layout::PM1A_CONTROL))?;
    code.mov(edi, BUFFER + 8)?;
    code.mov(ecx, 2)?;
    code.rep().insw()?;
    // All sixteen bytes in hexadecimal, sent by one instruction.
    let mut next = code.create_label();
    code.mov(esi, BUFFER)?;
    code.mov(edi, TEXT)?;
    code.mov(ecx, 16)?;
    code.set_label(&mut next)?;
    for shift in [4, 0] {
        code.mov(al, byte_ptr(rsi))?;
        code.shr(al, shift)?;
        code.and(al, 0xf)?;
        // Every digit in here is at most 9.
        code.add(al, i32::from(b'0'))?;
        code.mov(byte_ptr(rdi), al)?;
        code.inc(rdi)?;
    }
    code.inc(rsi)?;
    code.dec(ecx)?;
    code.jnz(next)?;
    code.mov(al, u32::from(b'\n'))?;
    code.mov(byte_ptr(rdi), al)?;
    code.mov(dx, u32::from(layout::COM1))?;
    code.mov(esi, TEXT)?;
    code.mov(ecx, 33)?;
    code.rep().outsb()?;
    // Two writes to PM1 control: the second is the one that switches off.
    let off = 1 << 13 | u32::from(layout::ACPI_S5_SLEEP_TYPE) << 10;
    code.mov(esi, BUFFER)?;
    code.mov(eax, off << 16)?;
    code.mov(dword_ptr(rsi), eax)?;
    code.mov(dx, u32::from(layout::PM1A_CONTROL))?;
    code.mov(ecx, 2)?;
    code.rep().outsw()?;
    let outcome = Guest::tiny(kernel.spin()?)?.run()?;
    if !outcome.status.success() || outcome.console != "80808000606060000100010000000000\n" {
        return Err(format!(
            "{}\n{}\n{}",
            outcome.status, outcome.console, outcome.stderr
        )
        .into());
    }
    Ok(())
}
