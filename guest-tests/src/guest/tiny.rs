//! Kernels of a few instructions: ELF files that `msr-vmm` enters by the 64-bit boot protocol. They need
//! nothing of KVM but integer instructions, so they run where Linux does not, and in milliseconds.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the code is loaded and entered. The boot page tables map it, and the zero page is in RSI.
pub const ADDRESS: u64 = 0x10_0000;

/// The port of the console's UART.
const COM1: u32 = 0x3f8;

/// A kernel under construction: instructions, with some ready-made.
pub struct TinyKernel(pub CodeAssembler);

impl TinyKernel {
    /// A kernel that does nothing yet.
    ///
    /// # Errors
    ///
    /// Those of the assembler, here as below, which would be the caller's fault.
    pub fn new() -> Result<Self, IcedError> {
        CodeAssembler::new(64).map(Self)
    }

    /// Writes to the console without looking whether it is ready. Clobbers AL and DX.
    pub fn print(&mut self, text: &str) -> Result<&mut Self, IcedError> {
        self.0.mov(dx, COM1)?;
        for byte in text.bytes() {
            self.0.mov(al, u32::from(byte))?;
            self.0.out(dx, al)?;
        }
        Ok(self)
    }

    /// Switches the machine off by ACPI S5.
    pub fn power_off(&mut self) -> Result<&mut Self, IcedError> {
        self.0.mov(dx, u32::from(msr_vmm::layout::PM1A_CONTROL))?;
        self.0.mov(
            ax,
            1 << 13 | u32::from(msr_vmm::layout::ACPI_S5_SLEEP_TYPE) << 10,
        )?;
        self.0.out(dx, ax)?;
        self.spin()
    }

    /// Executes for ever.
    pub fn spin(&mut self) -> Result<&mut Self, IcedError> {
        let mut here = self.0.create_label();
        self.0.set_label(&mut here)?;
        self.0.jmp(here)?;
        Ok(self)
    }

    /// Executes for ever with interrupts off, as a kernel that hangs does.
    pub fn hang(&mut self) -> Result<&mut Self, IcedError> {
        self.0.cli()?;
        self.spin()
    }

    /// Halts for ever.
    pub fn halt(&mut self) -> Result<&mut Self, IcedError> {
        let mut here = self.0.create_label();
        self.0.set_label(&mut here)?;
        self.0.hlt()?;
        self.0.jmp(here)?;
        Ok(self)
    }

    /// Writes to the console for ever, as fast as it can; with `polite`, only when the UART has room.
    pub fn chatter(&mut self, polite: bool) -> Result<&mut Self, IcedError> {
        let mut again = self.0.create_label();
        self.0.set_label(&mut again)?;
        if polite {
            self.0.mov(dx, COM1 + 5)?;
            self.0.in_(al, dx)?;
            self.0.test(al, 1 << 5)?;
            self.0.jz(again)?;
        }
        self.0.mov(dx, COM1)?;
        self.0.mov(al, u32::from(b'x'))?;
        self.0.out(dx, al)?;
        self.0.jmp(again)?;
        Ok(self)
    }

    /// Enables the UART's receive interrupt (which no table serves) and echoes what is typed, for ever: but
    /// `q` switches the machine off, and `f` is a triple fault.
    pub fn echo(&mut self) -> Result<&mut Self, IcedError> {
        let [mut next, mut full, mut off, mut fault] =
            std::array::from_fn(|_| self.0.create_label());
        self.0.mov(dx, COM1 + 1)?;
        self.0.mov(al, 1)?;
        self.0.out(dx, al)?;
        self.0.set_label(&mut next)?;
        self.0.mov(dx, COM1 + 5)?;
        self.0.in_(al, dx)?;
        self.0.test(al, 1 << 0)?;
        self.0.jz(next)?;
        self.0.mov(dx, COM1)?;
        self.0.in_(al, dx)?;
        self.0.mov(bl, al)?;
        self.0.cmp(bl, i32::from(b'q'))?;
        self.0.je(off)?;
        self.0.cmp(bl, i32::from(b'f'))?;
        self.0.je(fault)?;
        self.0.mov(dx, COM1 + 5)?;
        self.0.set_label(&mut full)?;
        self.0.in_(al, dx)?;
        self.0.test(al, 1 << 5)?;
        self.0.jz(full)?;
        self.0.mov(dx, COM1)?;
        self.0.mov(al, bl)?;
        self.0.out(dx, al)?;
        self.0.jmp(next)?;
        self.0.set_label(&mut off)?;
        self.power_off()?;
        self.0.set_label(&mut fault)?;
        self.triple_fault()
    }

    /// Loads an interrupt table without entries and executes an undefined instruction: a triple fault. The
    /// stack must be as at entry.
    pub fn triple_fault(&mut self) -> Result<&mut Self, IcedError> {
        // A limit of 0 and a base of 0.
        self.0.push(0)?;
        self.0.push(0)?;
        self.0.lidt(qword_ptr(rsp))?;
        self.0.ud2()?;
        Ok(self)
    }

    /// The ELF file.
    pub fn elf(&mut self) -> Result<Vec<u8>, IcedError> {
        let code = self.0.assemble(ADDRESS)?;
        Ok(elf(&code))
    }
}

/// An ELF64 executable of one segment (System V ABI, "ELF Header" and "Program Header").
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = Vec::new();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // 64-bit, little-endian, version 1.
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_X86_64.
    put(&2u16.to_le_bytes());
    put(&62u16.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&ADDRESS.to_le_bytes());
    // The program headers come next; there are no sections.
    put(&64u64.to_le_bytes());
    put(&0u64.to_le_bytes());
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    // PT_LOAD, readable, writable and executable.
    put(&1u32.to_le_bytes());
    put(&7u32.to_le_bytes());
    let size = code.len() as u64;
    for word in [HEADERS, ADDRESS, ADDRESS, size, size, 0x1000] {
        put(&word.to_le_bytes());
    }
    put(code);
    file
}
