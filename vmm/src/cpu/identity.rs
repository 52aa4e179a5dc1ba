//! Family, model, stepping and brand string.

use super::leaves::{Leaves, Registers};

/// The leaves that hold the brand string, 16 bytes each.
const BRAND_LEAVES: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];
/// The longest brand string: the last of its 48 bytes is NUL.
pub(super) const BRAND_MAX: usize = 47;

/// The highest family: 15, and 8 bits more of the extended family.
pub(super) const FAMILY_MAX: u32 = 0xf + 0xff;
/// The highest stepping.
pub(super) const STEPPING_MAX: u32 = 0xf;
/// What leaf 1's EAX has of the signature: its reserved bits and type are kept.
const SIGNATURE: u32 = 0x0fff_0fff;

/// A CPU's family, model and stepping, with the extended family and model included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) family: u32,
    pub(super) model: u32,
    pub(super) stepping: u32,
}

impl Signature {
    pub(super) fn of(leaves: &Leaves) -> Self {
        Self::decode(leaves.get(1, 0).eax)
    }

    /// From leaf 1's EAX.
    pub(super) fn decode(eax: u32) -> Self {
        let family = eax >> 8 & 0xf;
        let model = eax >> 4 & 0xf;
        Self {
            family: if family == 0xf {
                0xf + (eax >> 20 & 0xff)
            } else {
                family
            },
            model: if has_extended_model(family) {
                model | (eax >> 16 & 0xf) << 4
            } else {
                model
            },
            stepping: eax & 0xf,
        }
    }

    /// As in leaf 1's EAX. The family is at most [`FAMILY_MAX`], the model at most [`model_max`] of it, the stepping at
    /// most [`STEPPING_MAX`].
    pub(super) fn encode(self) -> u32 {
        let family = self.family.min(0xf);
        let extended_family = self.family - family;
        extended_family << 20
            | (self.model >> 4) << 16
            | family << 8
            | (self.model & 0xf) << 4
            | self.stepping
    }

    /// Puts the signature into leaf 1, and 0x80000001 where AMD repeats it.
    pub(super) fn write(self, leaves: &mut Leaves, is_amd: bool) {
        let signature = self.encode();
        leaves.edit(1, 0, |entry| {
            entry.eax = entry.eax & !SIGNATURE | signature;
        });
        leaves.edit(0x8000_0001, 0, |entry| {
            entry.eax = if is_amd { signature } else { 0 };
        });
    }
}

/// The highest model number that a family can have.
pub(super) fn model_max(family: u32) -> u32 {
    if has_extended_model(family) {
        0xff
    } else {
        0xf
    }
}

/// Family 6 is Intel's exception: 15 and up have the extended model field in both manuals.
fn has_extended_model(family: u32) -> bool {
    family == 6 || family >= 0xf
}

/// Puts the brand string, at most [`BRAND_MAX`] bytes long, into its leaves.
pub(super) fn write_brand(leaves: &mut Leaves, brand: &str) {
    let mut text = [0; 48];
    let bytes = brand.as_bytes();
    let length = bytes.len().min(BRAND_MAX);
    text[..length].copy_from_slice(&bytes[..length]);
    let word = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
    for (leaf, at) in BRAND_LEAVES.into_iter().zip([0, 16, 32]) {
        leaves.set(
            leaf,
            Registers {
                eax: word(at),
                ebx: word(at + 4),
                ecx: word(at + 8),
                edx: word(at + 12),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_encoded_as_real_cpus_have_them() {
        for (family, model, stepping, eax) in [
            (6, 106, 6, 0x606a6),            // Ice Lake server
            (6, 85, 7, 0x50657),             // Cascade Lake
            (6, 0xf, 2, 0x6f2),              // Core 2
            (5, 2, 1, 0x521),                // Pentium
            (0xf, 4, 3, 0xf43),              // Pentium 4
            (0x17, 0x31, 0, 0x0083_0f10),    // Zen 2
            (0x19, 1, 1, 0x00a0_0f11),       // Zen 3
            (0x19, 0x11, 1, 0x00a1_0f11),    // Zen 4
            (0x10e, 0xff, 0xf, 0x0fff_0fff), // the highest
        ] {
            let signature = Signature {
                family,
                model,
                stepping,
            };
            assert_eq!(signature.encode(), eax, "{signature:x?}");
            assert_eq!(Signature::decode(eax), signature, "{eax:#x}");
        }
    }

    #[test]
    fn amd_repeats_the_signature_and_intel_does_not() {
        let mut leaves = Leaves::of(&[(1, 0, [0xf000_f000, 0, 0, 0]), (0x8000_0001, 0, [9; 4])]);
        let signature = Signature {
            family: 6,
            model: 106,
            stepping: 6,
        };
        signature.write(&mut leaves, false);
        assert_eq!(leaves.get(1, 0).eax, 0xf006_f6a6);
        assert_eq!(leaves.get(0x8000_0001, 0).eax, 0);
        signature.write(&mut leaves, true);
        assert_eq!(leaves.get(0x8000_0001, 0).eax, 0x606a6);
    }

    #[test]
    fn the_brand_string_is_padded_with_nul() {
        let mut leaves = Leaves::of(&[]);
        write_brand(&mut leaves, "Intel(R) Xeon(R) Gold 6338");
        assert_eq!(leaves.get(0x8000_0002, 0).eax.to_le_bytes(), *b"Inte");
        assert_eq!(leaves.get(0x8000_0003, 0).ecx.to_le_bytes(), *b"38\0\0");
        assert_eq!(leaves.get(0x8000_0004, 0), Registers::default());
    }
}
