//! The zero page: what the kernel is told of the machine (Documentation/arch/x86/zero-page.rst).

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use super::initrd::Initrd;
use super::kernel::Kernel;
use super::{BootError, cmdline, e820};
use crate::layout;
use crate::memory::GuestMemoryMmap;

/// `type_of_loader` of a boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The boot protocol that an ELF file is entered by: the first to have every field used here.
const PROTOCOL: u16 = 0x20e;

/// Writes the zero page and gives its address.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    rsdp: Option<GuestAddress>,
) -> Result<GuestAddress, BootError> {
    let params = build(memory, kernel, initrd, rsdp);
    super::write(memory, params.as_slice(), layout::ZERO_PAGE)?;
    Ok(GuestAddress(layout::ZERO_PAGE))
}

fn build(
    memory: &GuestMemoryMmap,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    rsdp: Option<GuestAddress>,
) -> boot_params {
    let mut params = boot_params {
        hdr: kernel.header.unwrap_or_else(elf_header),
        acpi_rsdp_addr: rsdp.map_or(0, |address| address.0),
        ..boot_params::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some(Initrd { address, size }) = initrd {
        // Below `initrd_addr_max`, a 32-bit field, so the upper halves (`ext_ramdisk_*`) are zero.
        params.hdr.ramdisk_image = address.0 as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    let map = e820::map(memory);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = (*entry).into();
        params.e820_entries += 1;
    }
    params
}

/// The setup header for a kernel that comes without one.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: PROTOCOL,
        cmdline_size: cmdline::LENGTH_MAX as u32,
        ..setup_header::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(header: Option<setup_header>) -> boot_params {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let kernel = Kernel {
            entry: GuestAddress(0x100_0000),
            end: 0x200_0000,
            header,
            notes: None,
            is_multiboot: false,
        };
        let initrd = Initrd {
            address: GuestAddress(0x3ff_0000),
            size: 0xfedc,
        };
        build(&memory, &kernel, Some(initrd), Some(GuestAddress(0xe_0000)))
    }

    fn u32_at(params: &boot_params, at: usize) -> u32 {
        u32::from_le_bytes(params.as_slice()[at..at + 4].try_into().unwrap())
    }

    /// The offsets are those of boot.rst and zero-page.rst.
    #[test]
    fn the_kernel_finds_everything_where_the_protocol_has_it() {
        let params = params(None);
        let bytes = params.as_slice();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(u32_at(&params, 0x70), 0xe_0000, "acpi_rsdp_addr");
        assert_eq!(bytes[0x1e8], 4, "e820_entries");
        assert_eq!(bytes[0x1ef], 0, "sentinel");
        assert_eq!(bytes[0x1fe..0x200], [0x55, 0xaa], "boot_flag");
        assert_eq!(&bytes[0x202..0x206], b"HdrS");
        assert_eq!(bytes[0x210], 0xff, "type_of_loader");
        assert_eq!(bytes[0x211] & 1, 1, "loadflags.LOADED_HIGH");
        assert_eq!(u32_at(&params, 0x218), 0x3ff_0000, "ramdisk_image");
        assert_eq!(u32_at(&params, 0x21c), 0xfedc, "ramdisk_size");
        assert_eq!(u32_at(&params, 0x228), 0x2_0000, "cmd_line_ptr");
        assert_eq!(u32_at(&params, 0x238), 2047, "cmdline_size");
        assert_eq!(u32_at(&params, 0x2d0 + 8), 0x9_fc00, "e820_table[0].size");
        assert_eq!(u32_at(&params, 0x2d0 + 60), 0x10_0000, "e820_table[3].addr");
    }

    #[test]
    fn a_bzimages_own_header_is_kept() {
        let header = setup_header {
            version: 0x20f,
            kernel_alignment: 0x20_0000,
            xloadflags: 0x3f,
            ..setup_header::default()
        };
        let params = params(Some(header));
        assert_eq!(u32_at(&params, 0x230), 0x20_0000, "kernel_alignment");
        assert_eq!(u32_at(&params, 0x206) & 0xffff, 0x20f, "version");
    }
}
