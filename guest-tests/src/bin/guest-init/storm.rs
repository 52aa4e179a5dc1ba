//! Root's accesses at random, from every CPU at once: MSRs, ports, device memory, and the queues of devices that no driver has.
//!
//! What would end the guest itself is left out, so that it goes on for as long as it is to: MSRs that Linux lives by, the ports that
//! switch the machine off and those of its console, and memory that is Linux's. The guests of a few instructions in
//! `tests/hostile/storm` leave nothing out.

use std::arch::asm;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_tests::guest::{Answer, RESERVED};
use guest_tests::random::Random;
use msr_vmm::layout;

use crate::msr::{self, Msrs};

/// Kinds of accesses, by which they are counted.
const KINDS: usize = 5;
const MSR_READ: usize = 0;
const MSR_WRITE: usize = 1;
const PORT: usize = 2;
const MEMORY: usize = 3;
const QUEUE: usize = 4;

/// MSRs that Linux or KVM's own interface for it lives by: first and last.
const SPARED: &[(u32, u32)] = &[
    (0x10, 0x12),
    (0x1b, 0x1b),
    (0x3b, 0x3b),
    (0x174, 0x176),
    (0x1a0, 0x1a0),
    (0x1d9, 0x1d9),
    // MTRRs and PAT.
    (0x200, 0x2ff),
    (0x6a0, 0x6e0),
    // x2APIC.
    (0x800, 0x8ff),
    (0xda0, 0xda0),
    (0x4000_0000, 0x4000_ffff),
    (0x4b56_4d00, 0x4b56_4dff),
    // EFER, the entry points, the segments' bases.
    (0xc000_0080, 0xc000_0104),
];

/// Ports that end the guest when they are written, or that its console is at: first and last.
const SPARED_PORTS: &[(u16, u16)] = &[
    (0x20, 0x21),
    (0xa0, 0xa1),
    (layout::I8042 + 4, layout::I8042 + 4),
    (layout::COM1, layout::COM1 + 7),
    (0x4d0, 0x4d1),
    (layout::PM1A_CONTROL, layout::PM1A_CONTROL + 1),
    (layout::ACPI_RESET, layout::ACPI_RESET),
];

/// Does it for so long, and answers how many accesses of each kind there were.
pub(crate) fn storm(seed: u64, time: Duration) -> io::Result<Answer> {
    let counts: [AtomicU64; KINDS] = Default::default();
    let until = Instant::now() + time;
    msr::on_all(|cpu, msrs| {
        // Each thread has its own; ports are root's then, as with iopl(2).
        // SAFETY: the call takes no pointers.
        if unsafe { libc::syscall(libc::SYS_iopl, 3) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let memory = Memory::map()?;
        let mut random = Random::new(seed ^ u64::from(cpu) << 32);
        while Instant::now() < until {
            for _ in 0..50 {
                let kind = access(&mut random, msrs, &memory);
                counts[kind].fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(0)
    })?;
    let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
    Ok(Answer::Values((0..).zip(counts).collect()))
}

/// One access. A fault is the answer to most.
fn access(random: &mut Random, msrs: &Msrs, memory: &Memory) -> usize {
    match random.below(8) {
        0 | 1 => {
            let _ = msrs.read(random.msr());
            MSR_READ
        }
        2 => {
            let index = random.msr();
            if !SPARED
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&index))
            {
                let _ = msrs.write(index, random.value());
            }
            MSR_WRITE
        }
        3 => {
            let own = memory.reserved.at(random.below(0x1000));
            let address = if random.below(2) == 0 {
                own as u64
            } else {
                random.value()
            };
            let _ = msrs.write(random.of(&[0x79, 0xc001_0020]), address);
            MSR_WRITE
        }
        4 | 5 => {
            port(random);
            PORT
        }
        6 => {
            memory.devices(random);
            MEMORY
        }
        _ => {
            memory.queue(random);
            QUEUE
        }
    }
}

/// A port that is not spared in any byte of an access of four.
fn any_port(random: &mut Random) -> u16 {
    loop {
        let port = random.within(&[
            (u32::from(layout::I8042), 5),
            (0x40, 4),
            (u32::from(layout::RTC), 2),
            (u32::from(layout::PCI_CONFIG), 8),
            (u32::from(layout::PM1A_EVENT), 24),
            (0, 0xfffc),
        ]) as u16;
        let spared = |(first, last): &(u16, u16)| port <= *last && port + 3 >= *first;
        if !SPARED_PORTS.iter().any(spared) {
            return port;
        }
    }
}

/// One access of a port, or a string of them.
fn port(random: &mut Random) {
    let port = any_port(random);
    let mut value = random.next() as u32;
    let mut buffer = [0u32; 64];
    let count = random.below(64) as usize;
    // SAFETY: ports are this thread's by iopl(2), and what they do is the point; the strings stay within `buffer`.
    unsafe {
        match random.below(10) {
            0 => asm!("in al, dx", in("dx") port, inout("eax") value, options(nomem, nostack)),
            1 => asm!("in ax, dx", in("dx") port, inout("eax") value, options(nomem, nostack)),
            2 => asm!("in eax, dx", in("dx") port, inout("eax") value, options(nomem, nostack)),
            3 => asm!("out dx, al", in("dx") port, in("eax") value, options(nomem, nostack)),
            4 => asm!("out dx, ax", in("dx") port, in("eax") value, options(nomem, nostack)),
            5 => asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)),
            6 => {
                asm!("rep insb", in("dx") port, inout("rcx") count => _, inout("rdi") buffer.as_mut_ptr() => _, options(nostack));
            }
            7 => {
                asm!("rep insd", in("dx") port, inout("rcx") count => _, inout("rdi") buffer.as_mut_ptr() => _, options(nostack));
            }
            8 => {
                asm!("rep outsb", in("dx") port, inout("rcx") count => _, inout("rsi") buffer.as_ptr() => _, options(nostack));
            }
            _ => {
                asm!("rep outsw", in("dx") port, inout("rcx") count => _, inout("rsi") buffer.as_ptr() => _, options(nostack));
            }
        }
    }
    std::hint::black_box((value, &buffer));
}

/// Physical memory that is not Linux's.
struct Memory {
    /// The registers of two virtio devices.
    virtio: Mapped,
    /// Where nothing is.
    nothing: Mapped,
    /// Memory that the kernel was told to leave alone.
    reserved: Mapped,
}

impl Memory {
    fn map() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        Ok(Self {
            virtio: Mapped::new(&file, layout::VIRTIO_MMIO, 0x2000)?,
            nothing: Mapped::new(&file, layout::MMIO_HOLE, 0x1000)?,
            reserved: Mapped::new(&file, RESERVED.0, RESERVED.1)?,
        })
    }

    fn devices(&self, random: &mut Random) {
        let area = if random.below(4) == 0 {
            &self.nothing
        } else {
            &self.virtio
        };
        let (at, value) = (area.at(random.below(area.length - 8)), random.value());
        // SAFETY: it is within the mapping with its 8 bytes, is no memory of Rust's, and x86 needs no alignment.
        unsafe {
            match random.below(8) {
                0 => asm!("mov {0:l}, byte ptr [{1}]", out(reg) _, in(reg) at, options(nostack)),
                1 => asm!("mov {0:x}, word ptr [{1}]", out(reg) _, in(reg) at, options(nostack)),
                2 => asm!("mov {0:e}, dword ptr [{1}]", out(reg) _, in(reg) at, options(nostack)),
                3 => asm!("mov {0}, qword ptr [{1}]", out(reg) _, in(reg) at, options(nostack)),
                4 => asm!("mov byte ptr [{1}], {0:l}", in(reg) value, in(reg) at, options(nostack)),
                5 => asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack)),
                6 => {
                    asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack));
                }
                _ => asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) at, options(nostack)),
            }
        }
    }

    /// Starts a device with a queue that means anything, or changes one that is being served, and kicks it.
    fn queue(&self, random: &mut Random) {
        let device = random.below(2) * 0x1000;
        let place = RESERVED.0 as u32;
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
                (0x80, place + random.of(&[0, 0x10])),
                (0x90, place + random.of(&[0x1000, 0])),
                (0xa0, place + random.of(&[0x2000, 0x1000])),
                (0x44, 1),
                (0x70, 0b1111),
            ] {
                self.virtio.put(device + register, value);
            }
        }
        for _ in 0..random.below(4) {
            let at = 16 * random.below(8);
            // Buffers are in what is reserved, in devices, or nowhere; never in what is Linux's.
            let inside = place + random.below(RESERVED.1);
            let outside = u32::MAX - random.below(0x1000);
            let buffer = random.of(&[inside, layout::VIRTIO_MMIO as u32, outside]);
            self.reserved.put(at, buffer);
            self.reserved.put(at + 4, random.of(&[0, 0, u32::MAX]));
            // No buffer that begins there ends in what is Linux's.
            self.reserved.put(at + 8, random.of(&[1, 16, 512, 0x1000]));
            self.reserved
                .put(at + 12, random.below(8) | random.below(9) << 16);
        }
        self.reserved
            .put(0x1000, random.below(2) | random.below(0x1_0000) << 16);
        self.reserved
            .put(0x1004, random.below(8) | random.below(0x1_0000) << 16);
        self.virtio.put(device + 0x50, random.below(3));
    }
}

/// A part of physical memory.
struct Mapped {
    at: NonNull<u8>,
    length: u32,
}

impl Mapped {
    fn new(file: &File, address: u64, length: u32) -> io::Result<Self> {
        // SAFETY: a new mapping wherever there is room touches nothing that exists.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                address.cast_signed(),
            )
        };
        match NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED) {
            Some(at) => Ok(Self { at, length }),
            None => Err(io::Error::last_os_error()),
        }
    }

    fn at(&self, offset: u32) -> *mut u8 {
        self.at.as_ptr().wrapping_add(offset as usize)
    }

    /// Writes a word, at an offset that is a multiple of 4 and in the mapping.
    fn put(&self, offset: u32, value: u32) {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.length);
        // SAFETY: it is aligned and within the mapping, which is no memory of Rust's.
        unsafe { self.at(offset).cast::<u32>().write_volatile(value) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length as usize) };
    }
}
