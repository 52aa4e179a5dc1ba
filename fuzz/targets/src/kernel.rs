//! Kernel images, initrds and command lines, on their way into guest memory.
//!
//! Nothing but the input decides what is taken: a kernel that loads has its entry point in memory.

use arbitrary::{Arbitrary, Unstructured};
use msr_vmm::boot::{self, BootSource};
use msr_vmm::memory::GuestMemoryMmap;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::memfd::MemoryFile;

#[derive(Arbitrary)]
struct Around<'a> {
    /// Memory in pages beyond the first MiB.
    pages: u8,
    initrd: u16,
    cmdline: &'a str,
    kaslr: bool,
}

/// The last bytes of `data` say how much memory there is and what else is loaded; the others are the image.
pub fn run(data: &[u8]) {
    let (image, rest) = data.split_at(data.len() - data.len().min(32));
    let Ok(around) = Around::arbitrary(&mut Unstructured::new(rest)) else {
        return;
    };
    load(image, &around);
}

fn load(image: &[u8], around: &Around<'_>) {
    let size = (1 << 20) + usize::from(around.pages) * (32 << 10);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
    let kernel = MemoryFile::new(image);
    let initrd = MemoryFile::new(&vec![0xa5; usize::from(around.initrd)]);
    let initrd = (around.initrd != 0).then(|| initrd.path());
    let source = BootSource {
        kernel: &kernel.path(),
        kaslr: around.kaslr,
        initrd: initrd.as_deref(),
        cmdline: around.cmdline,
    };
    match boot::load(&memory, &source, None) {
        Ok(entry) => assert!(memory.address_in_range(entry.address), "{entry:?}"),
        Err(error) => drop(error.to_string()),
    }
}
