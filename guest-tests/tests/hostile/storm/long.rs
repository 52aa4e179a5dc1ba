//! The first vCPU's program: random accesses in long mode, for ever or up to an end.
//!
//! Before each access R15 has the address of the next one. Every exception goes to one handler, which takes the stack back
//! and goes on there.

use guest_tests::guest::TinyKernel;
use guest_tests::random::Random;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msr_vmm::layout;

use super::real;

/// How many accesses a round has.
const ACCESSES: u32 = 1500;
/// What both vCPUs can reach: a page that is a microcode update, a queue and a buffer.
pub(super) const SHARED: u32 = 0x5_0000;
/// Where the interrupt table is: beyond what a device writes of a request that begins in the shared page, at most 64 KiB.
const IDT: u32 = 0x7_0000;
const STACK: u32 = 0x8_0000;
/// A descriptor table, an available ring and a used ring.
const QUEUE: u32 = 4 << 20;
/// The local APIC's registers.
const APIC_ICR: u32 = layout::LOCAL_APIC + 0x300;

/// How a guest ends itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Never,
    PowerOff,
    Reset,
    KeyboardReset,
    TripleFault,
    NoMemory,
}

impl Ending {
    /// All that are ends.
    pub(super) const ALL: [Self; 5] = [
        Self::PowerOff,
        Self::Reset,
        Self::KeyboardReset,
        Self::TripleFault,
        Self::NoMemory,
    ];
}

/// The kernel that does it on two vCPUs.
pub(super) fn kernel(random: &mut Random, ending: Ending) -> Result<TinyKernel, IcedError> {
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    code.mov(esp, STACK)?;
    let (mut handler, mut round) = (code.create_label(), code.create_label());
    interrupt_table(code, handler)?;
    copy_and_start(code, &real::program(random)?)?;
    code.mov(rbx, random.next() | 1)?;
    code.set_label(&mut round)?;
    // Xorshift (Marsaglia, 2003): values differ from round to round.
    for (left, by) in [(true, 13), (false, 7), (true, 17)] {
        code.mov(rax, rbx)?;
        if left {
            code.shl(rax, by)?;
        } else {
            code.shr(rax, by)?;
        }
        code.xor(rbx, rax)?;
    }
    // Early, as a round may take seconds on a busy host.
    let ends_at = random.below(ACCESSES / 5);
    for number in 0..ACCESSES {
        let mut next = code.create_label();
        code.lea(r15, qword_ptr(next))?;
        if number == ends_at {
            end(code, ending)?;
        } else {
            access(code, random)?;
        }
        code.set_label(&mut next)?;
        code.nop()?;
    }
    code.jmp(round)?;
    code.set_label(&mut handler)?;
    code.mov(esp, STACK)?;
    code.jmp(r15)?;
    Ok(kernel)
}

/// All vectors go to `handler` (Intel SDM, volume 3, "64-Bit Mode IDT").
fn interrupt_table(code: &mut CodeAssembler, handler: CodeLabel) -> Result<(), IcedError> {
    let mut again = code.create_label();
    code.lea(rdx, qword_ptr(handler))?;
    code.mov(edi, IDT)?;
    code.mov(ecx, 256)?;
    code.set_label(&mut again)?;
    code.mov(word_ptr(rdi), dx)?;
    // The code segment of the boot protocol, and an interrupt gate.
    code.mov(word_ptr(rdi + 2), 0x10)?;
    code.mov(word_ptr(rdi + 4), 0x8e00)?;
    code.mov(eax, edx)?;
    code.shr(eax, 16)?;
    code.mov(word_ptr(rdi + 6), ax)?;
    code.mov(qword_ptr(rdi + 8), 0)?;
    code.add(rdi, 16)?;
    code.dec(ecx)?;
    code.jnz(again)?;
    code.sub(rsp, 16)?;
    code.mov(word_ptr(rsp), 256 * 16 - 1)?;
    code.mov(qword_ptr(rsp + 2), IDT as i32)?;
    code.lidt(qword_ptr(rsp))
}

/// Puts the other vCPU's program where it runs, and wakes that vCPU.
fn copy_and_start(code: &mut CodeAssembler, program: &real::Program) -> Result<(), IcedError> {
    let (mut bytes, mut over) = (code.create_label(), code.create_label());
    code.jmp(over)?;
    code.set_label(&mut bytes)?;
    for piece in program.code.chunks(16) {
        code.db(piece)?;
    }
    code.set_label(&mut over)?;
    code.lea(rsi, qword_ptr(bytes))?;
    code.mov(edi, real::ADDRESS)?;
    code.mov(ecx, program.code.len() as u32)?;
    code.rep().movsb()?;
    // The interrupt table of real mode.
    let mut again = code.create_label();
    code.xor(edi, edi)?;
    code.mov(ecx, 256)?;
    code.set_label(&mut again)?;
    code.mov(
        dword_ptr(rdi),
        (real::ADDRESS >> 4 << 16 | program.handler) as i32,
    )?;
    code.add(rdi, 4)?;
    code.dec(ecx)?;
    code.jnz(again)?;
    for command in [0x500, 0x600 | real::ADDRESS >> 12] {
        code.mov(edi, APIC_ICR)?;
        // All but itself, asserted.
        code.mov(eax, 0b11 << 18 | 1 << 14 | command)?;
        code.mov(dword_ptr(rdi), eax)?;
    }
    Ok(())
}

fn end(code: &mut CodeAssembler, ending: Ending) -> Result<(), IcedError> {
    let (port, value) = match ending {
        Ending::Never => return code.nop(),
        Ending::PowerOff => (
            layout::PM1A_CONTROL,
            1 << 13 | u32::from(layout::ACPI_S5_SLEEP_TYPE) << 10,
        ),
        Ending::Reset => (layout::ACPI_RESET, u32::from(layout::ACPI_RESET_VALUE)),
        Ending::KeyboardReset => (layout::I8042 + 4, 0xfe),
        Ending::TripleFault => {
            code.sub(rsp, 16)?;
            code.mov(qword_ptr(rsp), 0)?;
            code.mov(qword_ptr(rsp + 8), 0)?;
            code.lidt(qword_ptr(rsp))?;
            return code.ud2();
        }
        Ending::NoMemory => {
            code.mov(eax, 512 << 20)?;
            return code.jmp(rax);
        }
    };
    code.mov(dx, u32::from(port))?;
    code.mov(eax, value)?;
    if value > 0xff {
        code.out(dx, ax)
    } else {
        code.out(dx, al)
    }
}

/// EDX:EAX get a value, which in half of the cases is another in each round.
fn value(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let value = random.value();
    code.mov(eax, value as u32)?;
    code.mov(edx, (value >> 32) as u32)?;
    if random.below(2) == 0 {
        code.xor(eax, ebx)?;
    }
    Ok(())
}

fn access(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    match random.below(12) {
        0 | 1 => {
            code.mov(ecx, random.msr())?;
            code.rdmsr()
        }
        2 | 3 => {
            code.mov(ecx, random.msr())?;
            value(code, random)?;
            code.wrmsr()
        }
        4 => microcode(code, random),
        5 => port(code, random),
        6 => string(code, random),
        7 | 8 => mmio(code, random),
        9 => queue(code, random),
        10 => interrupt(code, random),
        _ => {
            code.mov(
                eax,
                random.within(&[(0, 0x20), (0x4000_0000, 8), (0x8000_0000, 0x20)]),
            )?;
            code.mov(ecx, random.below(4))?;
            // It writes EBX, which has the values.
            code.mov(r8, rbx)?;
            code.cpuid()?;
            code.mov(rbx, r8)
        }
    }
}

/// An update at an address of every kind. At the shared one a header is right but for its checksum, which the other vCPU
/// changes while it is read.
fn microcode(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let address = match random.below(8) {
        0..=2 => u64::from(SHARED) + 48,
        3 => u64::MAX - u64::from(random.below(0x1000)),
        4 => layout::VIRTIO_MMIO + u64::from(random.below(0x1000)),
        5 => u64::from(layout::LOCAL_APIC),
        // The memory's end, and beyond it.
        6 => (32 << 20) - 0x800 + u64::from(random.below(0x1000)),
        _ => random.value(),
    };
    if random.below(2) == 0 {
        for (offset, word) in [
            (0, 1),
            (4, random.next() as u32),
            (12, 0x606a6),
            (20, 1),
            (24, 1),
            (28, random.of(&[0, 2000, 0x3f_fc00, u32::MAX])),
            (32, random.of(&[0, 2048, 0x40_0000, u32::MAX])),
        ] {
            code.mov(edi, SHARED + offset)?;
            code.mov(eax, word)?;
            code.mov(dword_ptr(rdi), eax)?;
        }
    }
    code.mov(rax, address)?;
    code.mov(rdx, rax)?;
    code.shr(rdx, 32)?;
    code.mov(ecx, random.of(&[0x79u32, 0xc001_0020]))?;
    code.wrmsr()
}

/// A port, but for those that end the guest.
pub(super) fn any_port(random: &mut Random) -> u16 {
    loop {
        let port = random.within(&[
            (u32::from(layout::COM1), 8),
            (0x20, 2),
            (0x40, 4),
            (0x60, 5),
            (u32::from(layout::RTC), 2),
            (0xa0, 2),
            (0x4d0, 2),
            (u32::from(layout::PCI_CONFIG), 8),
            (u32::from(layout::PM1A_EVENT), 16),
            (0, 0x1_0000),
        ]) as u16;
        let near = |ending: u16| port <= ending + 1 && port + 3 >= ending;
        if ![layout::PM1A_CONTROL, layout::ACPI_RESET, layout::I8042 + 4]
            .into_iter()
            .any(near)
            && port < 0xfffc
        {
            return port;
        }
    }
}

fn port(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    value(code, random)?;
    access_port(code, random)
}

/// An access of any width to any port, with what is in RAX.
pub(super) fn access_port(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    code.mov(dx, u32::from(any_port(random)))?;
    match random.below(6) {
        0 => code.in_(al, dx),
        1 => code.in_(ax, dx),
        2 => code.in_(eax, dx),
        3 => code.out(dx, al),
        4 => code.out(dx, ax),
        _ => code.out(dx, eax),
    }
}

/// A place in memory, in a device, or nowhere.
fn place(random: &mut Random) -> u32 {
    random.within(&[
        (QUEUE, 0x6000),
        (SHARED, 0x1000),
        (8 << 20, 8 << 20),
        ((32 << 20) - 0x100, 0x200),
        (layout::VIRTIO_MMIO as u32, 0x3000),
        (0xc000_0000, 0x3e00_0000),
    ])
}

fn string(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let at = place(random);
    // What would overwrite more than the guest can spare is written out, not read in.
    code.mov(edi, if at < 1 << 20 { QUEUE } else { at })?;
    code.mov(esi, at)?;
    code.mov(ecx, random.of(&[0, 1, 7, 300, 5000]))?;
    code.mov(dx, u32::from(any_port(random)))?;
    match random.below(6) {
        0 => code.rep().insb(),
        1 => code.rep().insw(),
        2 => code.rep().insd(),
        3 => code.rep().outsb(),
        4 => code.rep().outsw(),
        _ => code.rep().outsd(),
    }
}

fn mmio(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    value(code, random)?;
    let nowhere = 0xc000_0000 + (random.below(0x3e00) << 12);
    let device = random.of(&[
        layout::VIRTIO_MMIO as u32,
        layout::VIRTIO_MMIO as u32 + 0x1000,
        layout::LOCAL_APIC,
        layout::IO_APIC,
        nowhere,
    ]);
    let offset = match random.below(3) {
        0 => random.below(0x1000),
        1 => random.below(0x40) * 4,
        _ => random.below(0x40) * 16,
    };
    code.mov(edi, device + offset)?;
    match random.below(8) {
        0 => code.mov(al, byte_ptr(rdi)),
        1 => code.mov(ax, word_ptr(rdi)),
        2 => code.mov(eax, dword_ptr(rdi)),
        3 => code.mov(rax, qword_ptr(rdi)),
        // A command of the APIC may be one that stops the other vCPU, or this one.
        _ if device == layout::LOCAL_APIC && (0x300..0x320).contains(&offset) => code.nop(),
        4 => code.mov(byte_ptr(rdi), al),
        5 => code.mov(word_ptr(rdi), ax),
        6 => code.mov(dword_ptr(rdi), eax),
        _ => code.mov(qword_ptr(rdi), rax),
    }
}

/// Starts a device with a queue that means anything, or changes one that is being served, and kicks it.
fn queue(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let device = layout::VIRTIO_MMIO as u32 + random.below(2) * 0x1000;
    let mut put = |address: u32, value: u32| -> Result<(), IcedError> {
        code.mov(edi, address)?;
        code.mov(eax, value)?;
        code.mov(dword_ptr(rdi), eax)
    };
    if random.below(3) == 0 {
        for (register, value) in [
            (0x70, 0),
            (0x70, 0b0011),
            (0x24, 1),
            (0x20, 1),
            (0x24, 0),
            (0x20, random.of(&[0, u32::MAX, 0x3000_0000])),
            (0x70, 0b1011),
            (0x30, 0),
            (0x38, random.of(&[1, 8, 128, 3, 0x1_0000])),
            (0x80, random.of(&[QUEUE, QUEUE + 0x10, (32 << 20) - 32])),
            (0x90, random.of(&[QUEUE + 0x1000, QUEUE])),
            (0xa0, random.of(&[QUEUE + 0x2000, QUEUE + 0x1000])),
            (0x44, 1),
            (0x70, 0b1111),
        ] {
            put(device + register, value)?;
        }
    }
    for _ in 0..random.below(4) {
        let at = QUEUE + 16 * random.below(8);
        put(at, place(random))?;
        put(at + 4, random.of(&[0, 0, 0, u32::MAX]))?;
        put(at + 8, random.of(&[1, 16, 512, 0x1000, 0xffff_ffff]))?;
        // Flags, and the next one, which may be this one.
        put(at + 12, random.below(8) | random.below(9) << 16)?;
    }
    put(
        QUEUE + 0x1000,
        random.below(2) | random.below(0x1_0000) << 16,
    )?;
    put(
        QUEUE + 0x1004,
        random.below(8) | random.below(0x1_0000) << 16,
    )?;
    put(device + 0x50, random.below(3))
}

/// Interrupts for the other vCPU, which it has disabled, and timers for both.
fn interrupt(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    let (register, value) = match random.below(5) {
        // Fixed, lowest priority, NMI or INIT, and the start of it all.
        0 => (
            0x300,
            0b11 << 18 | 1 << 14 | random.of(&[0, 1, 4, 5]) << 8 | random.below(256),
        ),
        1 => (0x300, 0b11 << 18 | 1 << 14 | 0x600 | real::ADDRESS >> 12),
        2 => (0x320, random.below(3) << 17 | 1 << 16 | random.below(256)),
        3 => (0x380, random.next() as u32 >> random.below(32)),
        _ => (0x3e0, random.below(16)),
    };
    code.mov(edi, layout::LOCAL_APIC + register)?;
    code.mov(eax, value)?;
    code.mov(dword_ptr(rdi), eax)
}
