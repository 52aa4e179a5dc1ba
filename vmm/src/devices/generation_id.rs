//! The virtual machine generation identifier: 16 bytes by which a guest learns that it is another machine than a moment ago.
//!
//! VMs that are restored from one snapshot, or one VM that is restored twice, have the same random state in memory. The
//! identifier changes with each restore, and an ACPI notification says so; Linux (drivers/virt/vmgenid.c, from 5.18 on) then mixes it
//! into its random number generator and reseeds it. Between the guest's first instruction after a restore and that, random numbers
//! may still be those of another clone.
//!
//! Sources: Microsoft, "Virtual Machine Generation ID" (2012); QEMU, docs/specs/vmgenid.rst.
//!
//! The identifier is in a page of its own that the memory map reserves. The DSDT has a device `VM_Gen_Counter` with the
//! identifier's address, and an ACPI event device (ACPI 6.5, section 5.6.9) whose interrupt notifies it.

use std::io;

use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout;

/// Gives the guest a new identifier, random as a UUID of version 4 is (RFC 9562, section 5.4).
pub(crate) fn renew(memory: &impl Bytes<GuestAddress, E = GuestMemoryError>) -> io::Result<()> {
    let mut identifier = [0; 16];
    // Up to 256 bytes come whole, once the host has its entropy, for which a signal can end the wait (getrandom(2)).
    loop {
        // SAFETY: the kernel writes at most as many bytes as there are.
        let got = unsafe { libc::getrandom(identifier.as_mut_ptr().cast(), identifier.len(), 0) };
        if got == identifier.len() as isize {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    identifier[7] = identifier[7] & 0x0f | 0x40;
    identifier[8] = identifier[8] & 0x3f | 0x80;
    memory
        .write_slice(&identifier, GuestAddress(layout::GENERATION_ID))
        .map_err(io::Error::other)
}

/// Tells the guest that it has another identifier: one edge of the event device's interrupt. A guest without a driver for it does not
/// notice.
pub(crate) fn notify(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    vm.set_irq_line(layout::GENERATION_IRQ, true)?;
    vm.set_irq_line(layout::GENERATION_IRQ, false)
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn each_identifier_is_another_uuid_in_a_page_that_has_nothing_else() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let mut seen = Vec::new();
        for _ in 0..10 {
            renew(&memory).unwrap();
            let identifier: u128 = memory
                .read_obj(GuestAddress(layout::GENERATION_ID))
                .unwrap();
            let bytes = identifier.to_le_bytes();
            assert_eq!((bytes[7] >> 4, bytes[8] >> 6), (4, 2), "{identifier:x}");
            assert!(!seen.contains(&identifier));
            seen.push(identifier);
        }
        let mut page = [0u8; 4096];
        memory
            .read_slice(&mut page, GuestAddress(layout::GENERATION_ID_PAGE))
            .unwrap();
        let at = (layout::GENERATION_ID - layout::GENERATION_ID_PAGE) as usize;
        assert!(page[..at].iter().chain(&page[at + 16..]).all(|b| *b == 0));
    }
}
