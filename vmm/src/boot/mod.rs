//! From a kernel image to a vCPU that is about to execute its first instruction.
//!
//! The kernel is entered by the 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): in long
//! mode with paging on, RSI holding the address of the zero page. A bzImage is unpacked on the host and the ELF file
//! inside it booted: the guest is spared the work, and the kernel runs where it is linked. For KASLR
//! ([`BootSource::kaslr`]) the bzImage's own code is loaded and entered instead, which unpacks the kernel in the guest and
//! chooses where it runs. An ELF file needs no Linux in it: whatever is linked for physical addresses from 1 MiB on is
//! entered the same way. A 32-bit ELF file is a Multiboot kernel, and entered as such: see `multiboot.rs`.
//!
//! Guest memory must be fresh (all zero): what is zero in the kernel is not written.

mod build_id;
mod bzimage;
mod cmdline;
mod e820;
mod elf;
mod elf32;
mod initrd;
mod kernel;
mod loading;
mod memory;
mod multiboot;
mod paging;
mod read;
pub mod registers;
mod unpack;
mod zero_page;

use std::path::{Path, PathBuf};

use initrd::Initrd;
use kernel::Kernel;
use vm_memory::GuestAddress;

use crate::layout;
use crate::memory::GuestMemoryMmap;

pub use bzimage::BzImageError;
pub use cmdline::CmdlineError;
pub use elf::ElfError;
pub use initrd::InitrdError;
pub use kernel::KernelError;
pub(crate) use loading::Loading;
pub use multiboot::MultibootError;
pub use unpack::{Compression, UnpackError, unpack};

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootSource<'a> {
    /// The kernel: an ELF file or a bzImage.
    pub kernel: &'a Path,
    /// Whether the kernel, a bzImage, unpacks itself and chooses where it runs (KASLR), and is not unpacked here.
    pub kaslr: bool,
    /// The initial RAM disk, handed to the kernel as it is.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// Where the boot vCPU begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The physical address of the first instruction.
    pub address: GuestAddress,
    /// How it is entered.
    pub protocol: Protocol,
}

/// How a kernel is entered, and with what in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux' 64-bit boot protocol.
    Linux64 {
        /// The physical address of the zero page, for RSI.
        zero_page: GuestAddress,
    },
    /// Multiboot: 32-bit protected mode without paging.
    Multiboot {
        /// The physical address of the Multiboot information, for EBX.
        info: GuestAddress,
    },
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel image is not one, or not one for this guest.
    #[error("kernel {}: {error}", path.display())]
    Kernel {
        /// The image's path.
        path: PathBuf,
        /// What is wrong with it.
        error: KernelError,
    },
    /// The initial RAM disk cannot be loaded.
    #[error("initrd {}: {error}", path.display())]
    Initrd {
        /// The RAM disk's path.
        path: PathBuf,
        /// What is wrong with it.
        error: InitrdError,
    },
    /// The kernel cannot take this command line.
    #[error("kernel command line: {0}")]
    Cmdline(#[from] CmdlineError),
    /// The guest has less memory than booting needs, whatever the kernel.
    #[error("cannot write the boot data at {address:#x}: {error}")]
    Memory {
        /// The first address written.
        address: u64,
        /// What the memory says.
        error: vm_memory::GuestMemoryError,
    },
}

/// Loads the kernel with everything it is handed: initial RAM disk, command line, zero page, and the page tables and
/// descriptor table it starts on. `rsdp` is the address of the ACPI tables' root, where there are any.
///
/// # Errors
///
/// [`BootError`], which names the file.
pub fn load(
    memory: &GuestMemoryMmap,
    source: &BootSource<'_>,
    rsdp: Option<GuestAddress>,
) -> Result<Entry, BootError> {
    Images::load(memory, source.kernel, source.kaslr, source.initrd)?.write_boot_data(
        memory,
        source.cmdline,
        rsdp,
    )
}

/// The files in guest memory, and where. All else that the kernel is handed takes no time to write.
#[derive(Debug)]
pub(crate) struct Images {
    kernel: Kernel,
    path: PathBuf,
    initrd: Option<Initrd>,
}

impl Images {
    /// Loads kernel and initial RAM disk.
    pub(crate) fn load(
        memory: &GuestMemoryMmap,
        kernel_path: &Path,
        kaslr: bool,
        initrd: Option<&Path>,
    ) -> Result<Self, BootError> {
        let kernel =
            kernel::load(memory, kernel_path, kaslr).map_err(|error| BootError::Kernel {
                path: kernel_path.to_owned(),
                error,
            })?;
        let initrd = initrd.map(|path| {
            initrd::load(memory, path, &kernel).map_err(|error| BootError::Initrd {
                path: path.to_owned(),
                error,
            })
        });
        Ok(Self {
            initrd: initrd.transpose()?,
            kernel,
            path: kernel_path.to_owned(),
        })
    }

    /// The kernel's GNU build ID, in hexadecimal digits, where it has one. For a kernel that unpacks itself this unpacks it
    /// as far as its notes.
    pub(crate) fn build_id(&self, memory: &GuestMemoryMmap) -> Option<String> {
        self.kernel.notes.as_ref()?.build_id(memory)
    }

    /// Whether the kernel is entered by Linux' boot protocol, and takes a command line as Linux does.
    pub(crate) fn is_linux(&self) -> bool {
        !self.kernel.is_multiboot
    }

    /// Writes what the kernel is handed.
    pub(crate) fn write_boot_data(
        &self,
        memory: &GuestMemoryMmap,
        cmdline: &str,
        rsdp: Option<GuestAddress>,
    ) -> Result<Entry, BootError> {
        cmdline::check(cmdline, &self.kernel)?;
        let base_memory = (layout::EBDA >> 10) as u16;
        write(memory, &base_memory.to_le_bytes(), layout::BASE_MEMORY_SIZE)?;
        if self.kernel.is_multiboot {
            let info = multiboot::write(memory, &self.path, cmdline, self.initrd)?;
            return Ok(Entry {
                address: self.kernel.entry,
                protocol: Protocol::Multiboot { info },
            });
        }
        cmdline::write(memory, cmdline)?;
        let zero_page = zero_page::write(memory, &self.kernel, self.initrd, rsdp)?;
        paging::write(memory)?;
        Ok(Entry {
            address: self.kernel.entry,
            protocol: Protocol::Linux64 { zero_page },
        })
    }
}

/// Writes boot data to guest memory.
fn write(memory: &GuestMemoryMmap, data: &[u8], address: u64) -> Result<(), BootError> {
    use vm_memory::Bytes;
    memory
        .write_slice(data, GuestAddress(address))
        .map_err(|error| BootError::Memory { address, error })
}

#[cfg(test)]
mod tests;
