//! Multiboot kernels and the debug-exit port, with kernels of a few 32-bit instructions.

use guest_tests::guest::{Folder, Guest, Outcome};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};

use crate::Test;

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 3] = [
        (
            "multiboot::a_kernel_at_4_mib_gets_its_module_and_ends_with_its_own_status",
            || runs(0x40_0000),
        ),
        ("multiboot::a_kernel_below_1_mib_does_too", || runs(0x8000)),
        (
            "multiboot::a_32_bit_kernel_without_a_header_or_over_the_boot_data_is_refused",
            refused,
        ),
    ];
    tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, test))
        .collect()
}

const COM1: u32 = 0x3f8;
const DEBUG_EXIT: u32 = 0xf4;
/// Headers of the file: ELF's, one program header, and room up to the segment.
const HEADERS: u32 = 0x60;

/// A kernel that prints its module and its command line, and ends with 5; with 6 where EAX does not hold the magic number,
/// and with 7 where there is not one module.
fn kernel(address: u32) -> Result<Vec<u8>, Failed> {
    let mut code = CodeAssembler::new(32)?;
    let mut module = code.create_label();
    let mut printed = code.create_label();
    let mut text = code.create_label();
    let mut end = code.create_label();
    code.mov(esi, 6)?;
    code.cmp(eax, 0x2bad_b002u32 as i32)?;
    code.jne(end)?;
    code.mov(esi, 7)?;
    // mods_count, mods_addr: the first module's start and end.
    code.cmp(dword_ptr(ebx + 20), 1)?;
    code.jne(end)?;
    code.mov(edi, dword_ptr(ebx + 24))?;
    code.mov(ecx, dword_ptr(edi + 4))?;
    code.mov(edi, dword_ptr(edi))?;
    code.mov(edx, COM1)?;
    code.set_label(&mut module)?;
    code.cmp(edi, ecx)?;
    code.jae(printed)?;
    code.mov(al, byte_ptr(edi))?;
    code.out(dx, al)?;
    code.inc(edi)?;
    code.jmp(module)?;
    // cmdline, to its NUL.
    code.set_label(&mut printed)?;
    code.mov(edi, dword_ptr(ebx + 16))?;
    code.mov(esi, 5)?;
    code.set_label(&mut text)?;
    code.mov(al, byte_ptr(edi))?;
    code.test(al, al)?;
    code.je(end)?;
    code.out(dx, al)?;
    code.inc(edi)?;
    code.jmp(text)?;
    code.set_label(&mut end)?;
    code.mov(eax, esi)?;
    code.mov(edx, DEBUG_EXIT)?;
    code.out(dx, eax)?;
    let mut here = code.create_label();
    code.set_label(&mut here)?;
    code.jmp(here)?;

    // The Multiboot header comes first in the segment, and the entry point behind it.
    let entry = address + 12;
    let code = code.assemble(entry.into())?;
    let size = code.len() as u32 + 12;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |words: &[u32]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    // ET_EXEC and EM_386; version; entry; program headers at 52; no sections.
    put(&[3 << 16 | 2, 1, entry, 52, 0, 0]);
    // Sizes of the header and of one program header; one of those.
    put(&[32 << 16 | 52, 1, 0]);
    // PT_LOAD: offset, addresses, sizes, flags, alignment.
    put(&[1, HEADERS, address, address, size, size + 0x100, 7, 0x1000]);
    file.resize(HEADERS as usize, 0);
    for word in [0x1bad_b002, 3, 0u32.wrapping_sub(0x1bad_b002 + 3)] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    Ok(file)
}

fn boot(image: &[u8]) -> Result<Outcome, Failed> {
    let folder = Folder::new()?;
    let image = folder.file("kernel", image)?;
    let module = folder.file("module", "a module\n")?;
    let guest = Guest::bare(&image)?
        .option("--initrd", module)
        .option("--cmdline", "one two")
        .option("--memory", "32")
        .option("--debug-exit", "0xf4");
    Ok(guest.run()?)
}

fn runs(address: u32) -> Result<(), Failed> {
    let outcome = boot(&kernel(address)?)?;
    let console = outcome.console.replace('\r', "");
    if outcome.status.code() != Some(5 << 1 | 1)
        || !console.starts_with("a module\n")
        || !console.trim_end().ends_with("kernel one two")
    {
        return Err(format!("{outcome:#?}").into());
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let mut headless = kernel(0x40_0000)?;
    headless[HEADERS as usize] ^= 1;
    for (image, words) in [
        (headless, "without a Multiboot header"),
        (kernel(0x9_0000)?, "the boot data and the area of the BIOS"),
    ] {
        let outcome = boot(&image)?;
        if outcome.status.code() != Some(2) || !outcome.stderr.contains(words) {
            return Err(format!("no {words:?} in {outcome:#?}").into());
        }
    }
    Ok(())
}
