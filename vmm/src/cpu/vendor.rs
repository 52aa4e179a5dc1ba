//! The CPU's vendor, and the leaves that only one vendor's CPUs have.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::leaves::{Leaves, Registers};

/// Leaves 0x80000002 and up that Intel does not define begin after this one.
const INTEL_LAST_EXTENDED: u32 = 0x8000_0008;
/// The last leaf that every AMD CPU with topology extensions has.
const AMD_LAST_EXTENDED: u32 = 0x8000_001e;
/// The last basic leaf that AMD defines.
const AMD_LAST_BASIC: u32 = 0x10;
/// Basic leaves up to [`AMD_LAST_BASIC`] that AMD does not define: cache descriptors and caches by Intel's scheme, direct
/// cache access, Intel's performance monitoring.
const INTEL_ONLY: [u32; 4] = [0x2, 0x4, 0x9, 0xa];

/// Leaf 2: descriptors are in AL's place count 1, and the one descriptor says to look at leaf 4.
const CACHES_IN_LEAF_4: u32 = 0xff01;

// Leaf 0x80000001.
/// ECX on Intel: LAHF/SAHF in long mode, LZCNT, PREFETCHW.
const INTEL_EXTENDED_ECX: u32 = 1 << 0 | 1 << 5 | 1 << 8;
/// EDX on Intel: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const INTEL_EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// EDX on AMD repeats these of leaf 1's EDX.
const AMD_REPEATED_EDX: u32 = 0x0183_f3ff;
/// ECX on AMD: topology extensions, which leaves 0x8000001d and 0x8000001e are.
const AMD_TOPOEXT: u32 = 1 << 22;

/// Leaf 0x80000007, EDX: the TSC runs at one rate.
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000008, EBX on Intel: WBNOINVD.
const WBNOINVD: u32 = 1 << 9;

/// Caches for a CPU whose host describes none: leaf 4, subleaf by subleaf. 32 KiB and 32 KiB, 1 MiB, 16 MiB.
const DEFAULT_CACHES: [[u32; 4]; 4] = [
    [0x121, 0x01c0_003f, 63, 0],
    [0x122, 0x01c0_003f, 63, 0],
    [0x143, 0x03c0_003f, 1023, 0],
    [0x163, 0x03c0_003f, 16383, 0],
];

/// What CPUID leaf 0 gives as the vendor: 12 printable ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vendor([u8; 12]);

/// Text that is no vendor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no CPU vendor: 12 printable ASCII characters are, such as GenuineIntel or AuthenticAMD"
)]
pub struct VendorError(String);

impl Vendor {
    /// Intel.
    pub const INTEL: Self = Self(*b"GenuineIntel");
    /// AMD.
    pub const AMD: Self = Self(*b"AuthenticAMD");
    /// Hygon, whose CPUs are AMD's in all that matters here.
    pub const HYGON: Self = Self(*b"HygonGenuine");

    /// Whether leaves are as in AMD's manual.
    pub(super) fn is_amd(self) -> bool {
        self == Self::AMD || self == Self::HYGON
    }

    pub(super) fn of(leaves: &Leaves) -> Self {
        let registers = leaves.get(0, 0);
        Self::from_registers(registers.ebx, registers.edx, registers.ecx)
    }

    /// The vendor by leaf 0, the registers in the order of the text.
    pub(super) fn from_registers(ebx: u32, edx: u32, ecx: u32) -> Self {
        let mut text = [0; 12];
        for (part, register) in text.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            part.copy_from_slice(&register.to_le_bytes());
        }
        Self(text)
    }

    /// Puts the vendor into leaf 0, and 0x80000000 where AMD repeats it.
    pub(super) fn write(self, leaves: &mut Leaves) {
        let part = |at| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.0[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let repeated = if self.is_amd() {
            (part(0), part(8), part(4))
        } else {
            (0, 0, 0)
        };
        for (leaf, text) in [(0, (part(0), part(8), part(4))), (0x8000_0000, repeated)] {
            leaves.edit(leaf, 0, |entry| {
                (entry.ebx, entry.ecx, entry.edx) = text;
            });
        }
    }
}

impl JsonSchema for Vendor {
    fn schema_name() -> Cow<'static, str> {
        "Vendor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "title": "a vendor of 12 characters, such as \"GenuineIntel\" or \"AuthenticAMD\"",
            "minLength": 12,
            "maxLength": 12,
        })
    }
}

impl TryFrom<String> for Vendor {
    type Error = VendorError;

    fn try_from(text: String) -> Result<Self, VendorError> {
        let printable = text.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
        match text.as_bytes().try_into() {
            Ok(bytes) if printable => Ok(Self(bytes)),
            _ => Err(VendorError(text)),
        }
    }
}

impl From<Vendor> for String {
    fn from(vendor: Vendor) -> Self {
        vendor.to_string()
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vendor({self})")
    }
}

/// Gives `leaves`, of a CPU by another vendor, the shape that `vendor`'s have. Of an unknown vendor's nothing is known.
pub(super) fn convert(leaves: &mut Leaves, vendor: Vendor) {
    if vendor == Vendor::INTEL {
        to_intel(leaves);
    } else if vendor.is_amd() {
        to_amd(leaves);
    }
}

fn to_intel(leaves: &mut Leaves) {
    leaves.set(
        0x2,
        Registers {
            eax: CACHES_IN_LEAF_4,
            ..Registers::default()
        },
    );
    copy_caches(leaves, 0x8000_001d, 0x4);
    leaves.reach(0xb);

    leaves.end_at(INTEL_LAST_EXTENDED);
    leaves.edit(0x8000_0001, 0, |entry| {
        entry.ebx = 0;
        entry.ecx &= INTEL_EXTENDED_ECX;
        entry.edx &= INTEL_EXTENDED_EDX;
    });
    leaves.remove(0x8000_0005);
    leaves.edit(0x8000_0006, 0, |entry| {
        // L2 alone; L1's and L2's TLBs and L3 are AMD's.
        (entry.eax, entry.ebx, entry.edx) = (0, 0, 0);
    });
    leaves.edit(0x8000_0007, 0, |entry| {
        (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0);
        entry.edx &= INVARIANT_TSC;
    });
    leaves.edit(0x8000_0008, 0, |entry| {
        entry.ebx &= WBNOINVD;
        (entry.ecx, entry.edx) = (0, 0);
    });
}

fn to_amd(leaves: &mut Leaves) {
    copy_caches(leaves, 0x4, 0x8000_001d);
    for leaf in INTEL_ONLY {
        leaves.remove(leaf);
    }
    let last = leaves.last_basic().clamp(0xd, AMD_LAST_BASIC);
    leaves.end_at(last);

    leaves.reach(AMD_LAST_EXTENDED);
    let repeated = leaves.get(1, 0).edx & AMD_REPEATED_EDX;
    leaves.edit(0x8000_0001, 0, |entry| {
        entry.ecx |= AMD_TOPOEXT;
        entry.edx |= repeated;
    });
}

/// Describes the caches in leaf `to` as leaf `from` does: but for the count of cores, which the topology supplies, Intel's
/// scheme and AMD's agree.
fn copy_caches(leaves: &mut Leaves, from: u32, to: u32) {
    let mut caches: Vec<Registers> = (0..8)
        .map(|subleaf| leaves.get(from, subleaf))
        .take_while(|cache| cache.eax & 0x1f != 0)
        .collect();
    if caches.is_empty() {
        caches = DEFAULT_CACHES
            .map(|[eax, ebx, ecx, edx]| Registers { eax, ebx, ecx, edx })
            .to_vec();
    }
    leaves.remove(to);
    // The one after the last has type 0, which ends the list.
    caches.push(Registers::default());
    for (subleaf, mut cache) in (0..).zip(caches) {
        cache.eax &= 0x3fff;
        leaves.set_subleaf(to, subleaf, cache);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_12_printable_characters_are_a_vendor() {
        for vendor in [
            "GenuineIntel",
            "AuthenticAMD",
            "CentaurHauls",
            " Shanghai  x",
        ] {
            let parsed = Vendor::try_from(vendor.to_owned()).unwrap();
            assert_eq!(parsed.to_string(), vendor);
        }
        for text in ["Intel", "GenuineIntel ", "", "GenuineInte\n", "GenuineInté"] {
            let error = Vendor::try_from(text.to_owned()).unwrap_err();
            assert!(error.to_string().contains("12 printable"), "{error}");
        }
    }

    fn amd() -> Leaves {
        Leaves::of(&[
            (0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            (1, 0, [0x0080_0f12, 0, 0x8000_0000, 0x078b_fbff]),
            (
                0x8000_0000,
                0,
                [0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
            ),
            (
                0x8000_0001,
                0,
                [0x0080_0f12, 0x4000_0000, 0x0040_03f7, 0x2fd3_fbff],
            ),
            (0x8000_0005, 0, [1, 2, 3, 4]),
            (0x8000_0006, 0, [1, 2, 3, 4]),
            (0x8000_0007, 0, [1, 2, 3, 0x7ff]),
            (0x8000_0008, 0, [0x3030, 0x0100_7200, 0x4007, 5]),
            (0x8000_000a, 0, [1, 16, 0, 0xf]),
            (0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
            (0x8000_001d, 1, [0x0000_4122, 0x00c0_003f, 0xff, 0]),
            (0x8000_001d, 2, [0, 0, 0, 0]),
            (0x8000_001e, 0, [7, 7, 7, 7]),
        ])
    }

    #[test]
    fn an_amd_cpu_shown_as_intels_keeps_nothing_that_is_amds() {
        let mut leaves = amd();
        assert_eq!(Vendor::of(&leaves), Vendor::AMD);
        to_intel(&mut leaves);
        Vendor::INTEL.write(&mut leaves);
        assert_eq!(Vendor::of(&leaves), Vendor::INTEL);
        assert_eq!(
            leaves.get(0x8000_0000, 0),
            Registers {
                eax: 0x8000_0008,
                ..Registers::default()
            }
        );
        let extended = leaves.get(0x8000_0001, 0);
        assert_eq!(extended.ecx & (1 << 2 | 1 << 22), 0, "SVM, TOPOEXT");
        assert_eq!(extended.ecx, 0x121);
        assert_eq!(extended.edx, 0x2c10_0800);
        assert_eq!(leaves.get(0x8000_0005, 0), Registers::default());
        assert_eq!(leaves.get(0x8000_0007, 0).edx, 0x100);
        assert_eq!(leaves.get(0x8000_0008, 0).ebx, 0x200);
        for leaf in [0x8000_000a, 0x8000_001d, 0x8000_001e] {
            assert_eq!(leaves.get(leaf, 0), Registers::default(), "{leaf:#x}");
        }
        assert_eq!(leaves.get(2, 0).eax, 0xff01);
        assert_eq!(leaves.get(4, 0).eax, 0x121);
        assert_eq!(leaves.get(4, 1).ecx, 0xff);
        assert_eq!(leaves.get(4, 2).eax, 0);
    }

    #[test]
    fn an_intel_cpu_shown_as_amds_has_amds_cache_and_topology_leaves() {
        let mut leaves = Leaves::of(&[
            (0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            (1, 0, [0x606a6, 0, 0, 0x0f8b_fbff]),
            (2, 0, [0x00fe_ff01, 0, 0, 0]),
            (4, 0, [0x1c00_4121, 0x02c0_003f, 0x3f, 0]),
            (0xa, 0, [0x0704_0404, 0, 0, 0]),
            (0x1f, 0, [1, 2, 0x100, 0]),
            (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
            (0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        ]);
        to_amd(&mut leaves);
        Vendor::AMD.write(&mut leaves);
        assert_eq!(leaves.last_basic(), 0x10);
        for leaf in [2, 4, 0xa, 0x1f] {
            assert_eq!(leaves.get(leaf, 0), Registers::default(), "{leaf:#x}");
        }
        assert_eq!(leaves.get(0x8000_0000, 0).eax, 0x8000_001e);
        assert_eq!(leaves.get(0x8000_0000, 0).ebx, 0x6874_7541);
        assert_eq!(leaves.get(0x8000_0001, 0).ecx, 0x0040_0121);
        assert_eq!(leaves.get(0x8000_0001, 0).edx & 1, 1, "FPU, repeated");
        assert_eq!(leaves.get(0x8000_001d, 0).eax, 0x121);
    }

    #[test]
    fn a_host_that_describes_no_cache_gets_some() {
        let mut leaves = Leaves::of(&[(0, 0, [0xd, 0, 0, 0])]);
        copy_caches(&mut leaves, 0x8000_001d, 4);
        // Ways, partitions, line size and sets, each minus 1.
        let size = |r: Registers| {
            ((r.ebx >> 22) + 1) * ((r.ebx >> 12 & 0x3ff) + 1) * ((r.ebx & 0xfff) + 1) * (r.ecx + 1)
        };
        let sizes = [0, 1, 2, 3].map(|subleaf| size(leaves.get(4, subleaf)) >> 10);
        assert_eq!(sizes, [32, 32, 1024, 16384]);
        assert_eq!(leaves.get(4, 4).eax, 0);
    }
}
