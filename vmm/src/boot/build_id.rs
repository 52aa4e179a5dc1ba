//! The build ID of a kernel that has been loaded, from its notes: which kernel a trace is of.

use std::fs::File;
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::elf;
use super::unpack::Unpacker;
use crate::memory::GuestMemoryMmap;

/// `NT_GNU_BUILD_ID`, of the owner "GNU" (gABI, "Note Section"; binutils' `ld --build-id`).
const BUILD_ID: u32 = 3;
/// The most that is looked at. A kernel's notes take some hundred bytes.
const MOST: u64 = 64 << 10;

/// Where a kernel's notes are.
#[derive(Debug)]
pub(super) enum Notes {
    /// In guest memory: the address, and how many bytes.
    Loaded(GuestAddress, u64),
    /// In the payload of a bzImage, which the guest is to unpack: the file, and the payload's bytes in it.
    Packed(File, Range<u64>),
}

impl Notes {
    /// The build ID among the notes, in hexadecimal digits. Notes that are packed take as long as unpacking half of the kernel.
    pub(super) fn build_id(&self, memory: &GuestMemoryMmap) -> Option<String> {
        match self {
            Self::Loaded(address, size) => {
                let mut notes = vec![0; (*size).min(MOST) as usize];
                memory.read_slice(&mut notes, *address).ok()?;
                in_notes(&notes)
            }
            Self::Packed(file, payload) => {
                let mut unpacker = Unpacker::of_file(file, payload.clone()).ok()?;
                let claimed = unpacker.claimed();
                let notes = elf::read_notes(unpacker.stream(), claimed, MOST).ok()??;
                in_notes(&notes)
            }
        }
    }
}

fn in_notes(mut notes: &[u8]) -> Option<String> {
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (name_size, size, kind) = (word(0) as usize, word(4) as usize, word(8));
        let name = rest.get(..name_size)?;
        let rest = rest.get(name_size.next_multiple_of(4)..)?;
        let contents = rest.get(..size)?;
        if name == b"GNU\0" && kind == BUILD_ID {
            return Some(contents.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = rest.get(size.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn note(name: &[u8], kind: u32, contents: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, contents.len() as u32, kind] {
            note.extend(word.to_le_bytes());
        }
        for part in [name, contents] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_id_is_found_among_other_notes_and_broken_ones_give_none() {
        let xen = note(b"Xen\0", 18, &[1; 7]);
        let gnu = note(b"GNU\0", 3, &[0xab, 0x01, 0xff]);
        let notes = [xen.clone(), gnu].concat();
        assert_eq!(in_notes(&notes).as_deref(), Some("ab01ff"));
        for cut in 0..notes.len() - 1 {
            assert_eq!(in_notes(&notes[..cut]), None, "{cut}");
        }
        let mut huge = xen;
        huge[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(in_notes(&huge), None);
    }
}
