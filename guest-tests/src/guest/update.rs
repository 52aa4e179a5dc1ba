//! Microcode updates of both vendors' formats, whose data is nothing.

/// An Intel update (SDM vol. 3A, "Microcode Update Facilities").
#[derive(Clone, Copy, Debug)]
pub struct IntelUpdate {
    /// Its revision.
    pub revision: u32,
    /// CPUID.1:EAX of the processor.
    pub signature: u32,
    /// Bit N: for platform N.
    pub flags: u32,
}

/// The date of all of them as both vendors write it, in BCD, month, day and year: March 14th of 2026.
const DATE: u32 = 0x0314_2026;

/// The header's size in bytes, after which comes what the loader gives the address of.
pub const INTEL_HEADER: u32 = 48;

impl IntelUpdate {
    /// The update, 2048 bytes, with a checksum that is right.
    pub fn bytes(self) -> Vec<u8> {
        let (data, total) = (2000, 2048);
        let words = [
            1,
            self.revision,
            DATE,
            self.signature,
            0,
            1,
            self.flags,
            data,
            total,
        ];
        let mut bytes: Vec<u8> = words
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        bytes.resize(total as usize, 0);
        // Not all zero, so that cutting it short is noticed.
        bytes[2044..].copy_from_slice(&0x1234_5678u32.to_le_bytes());
        let sum = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .fold(0, u32::wrapping_add);
        bytes[16..20].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
        bytes
    }
}

/// An AMD patch, as Linux has its format (arch/x86/include/asm/microcode_amd.h).
#[derive(Clone, Copy, Debug)]
pub struct AmdUpdate {
    /// Its revision.
    pub revision: u32,
    /// The processor's id in the equivalence table.
    pub id: u16,
}

impl AmdUpdate {
    /// The patch alone, as the loader gives its address.
    pub fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(DATE.to_le_bytes());
        bytes.extend(self.revision.to_le_bytes());
        bytes.resize(24, 0);
        bytes.extend(self.id.to_le_bytes());
        // The size that Linux takes for family 19h at most is 5568 bytes.
        bytes.resize(1024, 0);
        bytes
    }

    /// A container with the patch, and with the equivalence of `signature` to the patch's id.
    pub fn container(self, signature: u32) -> Vec<u8> {
        const MAGIC: u32 = 0x0041_4d44;
        const EQUIVALENCES: u32 = 0;
        const PATCH: u32 = 1;
        const ENTRY: u32 = 16;
        let patch = self.bytes();
        let mut bytes = Vec::new();
        for word in [MAGIC, EQUIVALENCES, 2 * ENTRY, signature, 0, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(u32::from(self.id).to_le_bytes());
        // An entry of zeros ends the table.
        bytes.extend([0; ENTRY as usize]);
        for word in [PATCH, patch.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(patch);
        bytes
    }
}
