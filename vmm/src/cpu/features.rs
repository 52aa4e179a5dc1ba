//! CPU features by the names that Linux gives them in the flags of /proc/cpuinfo
//! (arch/x86/include/asm/cpufeatures.h), for bits of CPUID that a configuration may hide or show.
//!
//! Not among them are what other keys and the topology decide (`hypervisor`, `ht`), and what KVM itself keeps up to date
//! (`osxsave`, `ospke`). Some bits have no name in Linux; theirs here are the manuals'.

use std::borrow::Cow;
use std::fmt;

use msr_bus::nearest;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::leaves::{Leaves, Registers};

/// A register that CPUID writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// The register of this name, in small letters.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "eax" => Eax,
            "ebx" => Ebx,
            "ecx" => Ecx,
            "edx" => Edx,
            _ => return None,
        })
    }

    /// The register among the four.
    pub(super) fn of(self, registers: &mut Registers) -> &mut u32 {
        match self {
            Eax => &mut registers.eax,
            Ebx => &mut registers.ebx,
            Ecx => &mut registers.ecx,
            Edx => &mut registers.edx,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Eax => "EAX",
            Ebx => "EBX",
            Ecx => "ECX",
            Edx => "EDX",
        })
    }
}

use Register::{Eax, Ebx, Ecx, Edx};

/// The named bits of one register.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static [(u32, &'static str)],
}

const fn word(
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static [(u32, &'static str)],
) -> Word {
    Word {
        leaf,
        subleaf,
        register,
        names,
    }
}

/// Every feature that has a name.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    word(1, 0, Ecx, &[
        (0, "pni"), (1, "pclmulqdq"), (2, "dtes64"), (3, "monitor"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"),
        (7, "est"), (8, "tm2"), (9, "ssse3"), (10, "cid"), (11, "sdbg"), (12, "fma"), (13, "cx16"), (14, "xtpr"),
        (15, "pdcm"), (17, "pcid"), (18, "dca"), (19, "sse4_1"), (20, "sse4_2"), (21, "x2apic"), (22, "movbe"),
        (23, "popcnt"), (24, "tsc_deadline_timer"), (25, "aes"), (26, "xsave"), (28, "avx"), (29, "f16c"),
        (30, "rdrand"),
    ]),
    word(1, 0, Edx, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"),
        (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"),
        (18, "pn"), (19, "clflush"), (21, "dts"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"),
        (26, "sse2"), (27, "ss"), (29, "tm"), (31, "pbe"),
    ]),
    word(6, 0, Eax, &[
        (0, "dtherm"), (1, "ida"), (2, "arat"), (4, "pln"), (6, "pts"), (7, "hwp"), (8, "hwp_notify"),
        (9, "hwp_act_window"), (10, "hwp_epp"), (11, "hwp_pkg_req"), (19, "hfi"),
    ]),
    word(6, 0, Ecx, &[(0, "aperfmperf"), (3, "epb")]),
    word(7, 0, Ebx, &[
        (0, "fsgsbase"), (1, "tsc_adjust"), (2, "sgx"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (7, "smep"),
        (8, "bmi2"), (9, "erms"), (10, "invpcid"), (11, "rtm"), (12, "cqm"), (14, "mpx"), (15, "rdt_a"),
        (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"),
        (23, "clflushopt"), (24, "clwb"), (25, "intel_pt"), (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"),
        (29, "sha_ni"), (30, "avx512bw"), (31, "avx512vl"),
    ]),
    word(7, 0, Ecx, &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (5, "waitpkg"), (6, "avx512_vbmi2"), (7, "shstk"), (8, "gfni"),
        (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"), (13, "tme"),
        (14, "avx512_vpopcntdq"), (16, "la57"), (22, "rdpid"), (24, "bus_lock_detect"), (25, "cldemote"),
        (27, "movdiri"), (28, "movdir64b"), (29, "enqcmd"), (30, "sgx_lc"),
    ]),
    word(7, 0, Edx, &[
        (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (4, "fsrm"), (8, "avx512_vp2intersect"), (10, "md_clear"),
        (14, "serialize"), (16, "tsxldtrk"), (18, "pconfig"), (19, "arch_lbr"), (20, "ibt"), (22, "amx_bf16"),
        (23, "avx512_fp16"), (24, "amx_tile"), (25, "amx_int8"), (26, "spec_ctrl"), (27, "intel_stibp"),
        (28, "flush_l1d"), (29, "arch_capabilities"), (30, "core_capabilities"), (31, "spec_ctrl_ssbd"),
    ]),
    word(7, 1, Eax, &[(4, "avx_vnni"), (5, "avx512_bf16"), (23, "avx_ifma"), (26, "lam")]),
    word(7, 1, Ebx, &[(0, "intel_ppin")]),
    word(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")]),
    word(0x8000_0001, 0, Ecx, &[
        (0, "lahf_lm"), (1, "cmp_legacy"), (2, "svm"), (3, "extapic"), (4, "cr8_legacy"), (5, "abm"), (6, "sse4a"),
        (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"), (10, "ibs"), (11, "xop"), (12, "skinit"),
        (13, "wdt"), (15, "lwp"), (16, "fma4"), (17, "tce"), (19, "nodeid_msr"), (21, "tbm"), (22, "topoext"),
        (23, "perfctr_core"), (24, "perfctr_nb"), (26, "bpext"), (27, "ptsc"), (28, "perfctr_llc"), (29, "mwaitx"),
    ]),
    word(0x8000_0001, 0, Edx, &[
        (11, "syscall"), (19, "mp"), (20, "nx"), (22, "mmxext"), (25, "fxsr_opt"), (26, "pdpe1gb"),
        (27, "rdtscp"), (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
    ]),
    word(0x8000_0007, 0, Edx, &[
        (7, "hw_pstate"), (8, "nonstop_tsc"), (9, "cpb"), (11, "proc_feedback"), (12, "acc_power"), (14, "rapl"),
    ]),
    word(0x8000_0008, 0, Ebx, &[
        (0, "clzero"), (1, "irperf"), (2, "xsaveerptr"), (4, "rdpru"), (9, "wbnoinvd"), (12, "amd_ibpb"),
        (14, "amd_ibrs"), (15, "amd_stibp"), (23, "amd_ppin"), (24, "amd_ssbd"), (25, "virt_ssbd"),
        (26, "amd_ssb_no"), (27, "cppc"), (28, "amd_psfd"), (31, "brs"),
    ]),
    word(0x8000_000a, 0, Edx, &[
        (0, "npt"), (1, "lbrv"), (2, "svm_lock"), (3, "nrip_save"), (4, "tsc_scale"), (5, "vmcb_clean"),
        (6, "flushbyasid"), (7, "decodeassists"), (10, "pausefilter"), (12, "pfthreshold"), (13, "avic"),
        (15, "v_vmsave_vmload"), (16, "vgif"),
    ]),
    word(0x8000_0021, 0, Eax, &[(8, "autoibrs")]),
];

/// A CPU feature that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u32,
}

/// Text that names no feature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no CPU feature `{name}`; {}", nearest.map_or("they are named as in the flags of /proc/cpuinfo".into(), |n| format!("did you mean `{n}`?")))]
pub struct UnknownFeature {
    /// The text.
    pub name: String,
    /// The feature whose name is most like it, if any is.
    pub nearest: Option<&'static str>,
}

impl Feature {
    /// Every feature that has a name.
    pub fn all() -> impl Iterator<Item = Self> {
        WORDS.iter().flat_map(|word| {
            word.names.iter().map(|&(bit, name)| Self {
                name,
                leaf: word.leaf,
                subleaf: word.subleaf,
                register: word.register,
                bit,
            })
        })
    }

    /// The feature of this name.
    ///
    /// # Errors
    ///
    /// [`UnknownFeature`], with the nearest name.
    pub fn by_name(name: &str) -> Result<Self, UnknownFeature> {
        Self::all()
            .find(|feature| feature.name == name)
            .ok_or_else(|| UnknownFeature {
                name: name.to_owned(),
                nearest: nearest(name, Self::all().map(|feature| feature.name)),
            })
    }

    /// The feature that a bit of CPUID is; `None` where it has no name.
    pub(crate) fn at(leaf: u32, subleaf: u32, register: Register, bit: u32) -> Option<Self> {
        Self::all().find(|feature| {
            (feature.leaf, feature.subleaf, feature.register, feature.bit)
                == (leaf, subleaf, register, bit)
        })
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Shows or hides the feature.
    pub(super) fn set(self, leaves: &mut Leaves, show: bool) {
        let mut registers = leaves.get(self.leaf, self.subleaf);
        let register = self.register.of(&mut registers);
        let before = *register;
        if show {
            *register |= 1 << self.bit;
        } else {
            *register &= !(1 << self.bit);
        }
        if *register == before {
            return;
        }
        // Leaves 7 and 0xd have subleaves.
        if matches!(self.leaf, 0x7 | 0xd) {
            leaves.set_subleaf(self.leaf, self.subleaf, registers);
        } else {
            leaves.set(self.leaf, registers);
        }
        if show {
            leaves.reach(self.leaf);
        }
    }
}

impl<'de> Deserialize<'de> for Feature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::by_name(&name).map_err(de::Error::custom)
    }
}

impl JsonSchema for Feature {
    fn schema_name() -> Cow<'static, str> {
        "Feature".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Self::all().map(|feature| feature.name).collect();
        json_schema!({ "type": "string", "title": "a CPU feature's name", "enum": names })
    }
}

impl Serialize for Feature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_feature_has_a_name_and_a_bit_of_its_own() {
        let all: Vec<Feature> = Feature::all().collect();
        assert!(all.len() > 150, "{}", all.len());
        let names: HashSet<_> = all.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), all.len());
        let bits: HashSet<_> = all
            .iter()
            .map(|f| (f.leaf, f.subleaf, f.register as u8, f.bit))
            .collect();
        assert_eq!(bits.len(), all.len());
        assert!(all.iter().all(|f| f.bit < 32));
    }

    #[test]
    fn hiding_clears_one_bit_and_showing_sets_it() {
        let mut leaves = Leaves::of(&[
            (0, 0, [7, 0, 0, 0]),
            (7, 0, [1, u32::MAX, 0, 0]),
            (7, 1, [0, 0, 0, 0]),
        ]);
        let avx2 = Feature::by_name("avx2").unwrap();
        avx2.set(&mut leaves, false);
        assert_eq!(leaves.get(7, 0).ebx, !(1 << 5));
        assert_eq!(leaves.get(7, 0).eax, 1);
        avx2.set(&mut leaves, true);
        assert_eq!(leaves.get(7, 0).ebx, u32::MAX);
        Feature::by_name("avx_vnni").unwrap().set(&mut leaves, true);
        assert_eq!(leaves.get(7, 1).eax, 1 << 4);
        assert_eq!(leaves.get(7, 0).eax, 1, "the other subleaf is as it was");
    }

    #[test]
    fn hiding_what_is_not_there_changes_nothing() {
        let mut leaves = Leaves::of(&[(0, 0, [7, 0, 0, 0])]);
        Feature::by_name("svm").unwrap().set(&mut leaves, false);
        assert_eq!(leaves.entries().len(), 1);
    }

    #[test]
    fn a_mistyped_name_is_refused_with_the_nearest() {
        let error = Feature::by_name("avx512_vnn").unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no CPU feature `avx512_vnn`; did you mean `avx512_vnni`?"
        );
        assert_eq!(Feature::by_name("~").unwrap_err().nearest, None);
    }
}
