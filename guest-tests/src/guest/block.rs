//! A driver of a virtio-mmio disk, in a few instructions: one request at a time, and no interrupts.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msr_vmm::layout::VIRTIO_MMIO;

use super::tiny::TinyKernel;

/// Where the queue's parts and the request are. The machine's memory is zero there at first.
const DESCRIPTORS: u32 = 4 << 20;
const AVAILABLE: u32 = DESCRIPTORS + 0x1000;
const USED: u32 = DESCRIPTORS + 0x2000;
const HEADER: u32 = DESCRIPTORS + 0x3000;
const STATUS: u32 = DESCRIPTORS + 0x4000;
/// Where the request's sector is.
pub const BLOCK_DATA: u32 = DESCRIPTORS + 0x5000;

/// The size of a sector, in bytes.
const SECTOR: u32 = 512;

/// What is asked of a disk (Virtual I/O Device 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockRequest {
    /// Read a sector to [`BLOCK_DATA`].
    Read,
    /// Write the sector at [`BLOCK_DATA`].
    Write,
    /// Have it on stable storage.
    Flush,
}

impl TinyKernel {
    fn put(&mut self, address: u32, value: u32) -> Result<(), IcedError> {
        self.0.mov(edi, address)?;
        self.0.mov(eax, value)?;
        self.0.mov(dword_ptr(rdi), eax)
    }

    fn register(&mut self, offset: u32, value: u32) -> Result<(), IcedError> {
        self.put(VIRTIO_MMIO as u32 + offset, value)
    }

    /// Starts the first virtio device, with one queue of eight entries (section 4.2.2).
    pub fn start_block(&mut self) -> Result<&mut Self, IcedError> {
        for (offset, value) in [
            (0x70, 0),
            (0x70, 0b0011),
            // VIRTIO_F_VERSION_1 and nothing else.
            (0x24, 1),
            (0x20, 1),
            (0x24, 0),
            (0x20, 0),
            (0x70, 0b1011),
            (0x30, 0),
            (0x38, 8),
            (0x80, DESCRIPTORS),
            (0x90, AVAILABLE),
            (0xa0, USED),
            (0x44, 1),
            (0x70, 0b1111),
        ] {
            self.register(offset, value)?;
        }
        Ok(self)
    }

    /// Makes the request of this number, from 1, for `sector`, and prints its status as a digit: `0` for a success, `1` for
    /// an error. Of a device that wants to be reset it prints `reset` and switches the machine off.
    pub fn block(
        &mut self,
        number: u16,
        request: BlockRequest,
        sector: u32,
    ) -> Result<&mut Self, IcedError> {
        const NEXT: u32 = 1;
        const WRITABLE: u32 = 2;
        let [mut wait, mut done] = std::array::from_fn(|_| self.0.create_label());
        let (kind, data) = match request {
            BlockRequest::Read => (0, Some(NEXT | WRITABLE)),
            BlockRequest::Write => (1, Some(NEXT)),
            BlockRequest::Flush => (4, None),
        };
        self.put(HEADER, kind)?;
        self.put(HEADER + 8, sector)?;
        self.put(STATUS, 0xff)?;
        let mut chain = vec![(HEADER, 16, NEXT)];
        chain.extend(data.map(|flags| (BLOCK_DATA, SECTOR, flags)));
        chain.push((STATUS, 1, WRITABLE));
        for (place, (address, length, flags)) in (0u32..).zip(chain) {
            let at = DESCRIPTORS + 16 * place;
            self.put(at, address)?;
            self.put(at + 8, length)?;
            self.put(at + 12, flags | (place + 1) << 16)?;
        }
        // Every entry of the ring is descriptor 0; flags and index are one word.
        self.put(AVAILABLE, u32::from(number) << 16)?;
        self.register(0x50, 0)?;
        self.0.set_label(&mut wait)?;
        self.0.mov(edi, USED + 2)?;
        self.0.mov(ax, word_ptr(rdi))?;
        self.0.cmp(ax, i32::from(number))?;
        self.0.je(done)?;
        self.0.mov(edi, VIRTIO_MMIO as u32 + 0x70)?;
        self.0.mov(eax, dword_ptr(rdi))?;
        // DEVICE_NEEDS_RESET.
        self.0.test(eax, 0x40)?;
        self.0.jz(wait)?;
        self.print("reset\n")?.power_off()?;
        self.0.set_label(&mut done)?;
        self.0.mov(edi, STATUS)?;
        self.0.mov(al, byte_ptr(rdi))?;
        self.0.add(al, i32::from(b'0'))?;
        self.0.mov(dx, u32::from(msr_vmm::layout::COM1))?;
        self.0.out(dx, al)?;
        Ok(self)
    }
}
