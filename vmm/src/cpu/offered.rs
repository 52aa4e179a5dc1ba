//! Features that the guest is shown and this host's KVM does not offer.
//!
//! `KVM_GET_SUPPORTED_CPUID` says what KVM can give a guest. A configuration may show more, for features that consist of MSRs
//! and that MSR devices implement. Whatever else is shown is a promise that nobody keeps: the guest's kernel enables state or
//! executes instructions that are not there. [`find`] compares what is shown with what is offered, bit by bit, and says
//! what will come of each difference.
//!
//! Looked at are the registers of CPUID that hold feature flags; sizes, counts and identifiers promise nothing of this kind.

use std::fmt;

use super::features::{Feature, Register};
use super::leaves::Leaves;

use Register::{Eax, Ebx, Ecx, Edx};

/// A feature that the guest is shown although KVM does not offer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unoffered {
    /// The feature, or the bit's place where it has no name.
    pub name: String,
    /// What will come of it.
    pub effect: Effect,
    place: Place,
}

/// What comes of showing a feature that is not there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Effect {
    /// A kernel enables the feature's state in XCR0 or `IA32_XSS` at boot.
    State,
    /// A kernel enables the feature in CR4 or `IA32_EFER` at boot.
    Control,
    /// The feature is performance counters, which KVM does not have.
    Counters,
    /// The feature consists of MSRs, and neither a device nor an initial value stands for this one.
    Msr(u32),
    /// The feature consists of instructions, or is a promise of how the CPU behaves.
    Instructions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: u32,
}

/// The registers whose bits are feature flags (Intel SDM volume 2, table 3-8; AMD APM volume 3, appendix E). Only the bits of
/// the mask are.
const FLAGS: [(u32, u32, Register, u32); 25] = [
    (0x1, 0, Ecx, u32::MAX),
    (0x1, 0, Edx, u32::MAX),
    (0x6, 0, Eax, u32::MAX),
    (0x6, 0, Ecx, 0b1001),
    (0x7, 0, Ebx, u32::MAX),
    (0x7, 0, Ecx, !(0x1f << 17)),
    (0x7, 0, Edx, u32::MAX),
    (0x7, 1, Eax, u32::MAX),
    (0x7, 1, Ebx, u32::MAX),
    (0x7, 1, Ecx, u32::MAX),
    (0x7, 1, Edx, u32::MAX),
    (0x7, 2, Edx, u32::MAX),
    // The state components of XCR0, and of IA32_XSS.
    (0xd, 0, Eax, u32::MAX),
    (0xd, 0, Edx, u32::MAX),
    (0xd, 1, Eax, u32::MAX),
    (0xd, 1, Ecx, u32::MAX),
    (0x8000_0001, 0, Ecx, u32::MAX),
    (0x8000_0001, 0, Edx, u32::MAX),
    (0x8000_0007, 0, Ebx, u32::MAX),
    (0x8000_0007, 0, Edx, u32::MAX),
    (0x8000_0008, 0, Ebx, u32::MAX),
    (0x8000_000a, 0, Edx, u32::MAX),
    (0x8000_001f, 0, Eax, u32::MAX),
    (0x8000_0021, 0, Eax, u32::MAX),
    (0x8000_0022, 0, Eax, u32::MAX),
];

/// Features that a kernel turns on in CR4 or `IA32_EFER` as it finds them (Linux, arch/x86/kernel/cpu/common.c and head_64.S).
const CONTROL: &[&str] = &[
    "vme", "de", "pse", "pae", "pge", "mce", "pcid", "fsgsbase", "smep", "smap", "umip", "pku",
    "la57", "shstk", "ibt", "lam", "xsave", "nx", "syscall", "lm", "svm", "fxsr_opt", "autoibrs",
    "vmx", "smx",
];

/// Features whose state a kernel enables in XCR0 or `IA32_XSS`.
const STATE: &[&str] = &[
    "avx", "avx512f", "mpx", "amx_tile", "amx_bf16", "amx_int8", "xfd", "xsaves",
];

/// Features that consist of MSRs, and which those are: whoever has one of the first has the feature (Intel SDM volume 4,
/// table 2-2; AMD's PPR). Those without MSRs promise nothing that could be missing: turbo is the processor's affair, the
/// thermal monitors act by themselves, and the debug store is unavailable by `IA32_MISC_ENABLE`.
const BY_MSRS: &[(&str, &[u32])] = &[
    ("dtherm", &[0x19c]),
    ("ida", &[]),
    ("arat", &[]),
    ("pln", &[0x19b]),
    ("pts", &[0x1b1]),
    ("hwp", &[0x770, 0x771, 0x774]),
    ("hwp_notify", &[0x773]),
    ("hwp_act_window", &[0x774]),
    ("hwp_epp", &[0x774]),
    ("hwp_pkg_req", &[0x772]),
    ("hfi", &[0x17d0, 0x17d1]),
    ("aperfmperf", &[0xe7, 0xe8]),
    ("epb", &[0x1b0]),
    ("est", &[0x198, 0x199]),
    ("tm", &[]),
    ("tm2", &[]),
    ("acpi", &[0x19a]),
    ("dts", &[]),
    ("dtes64", &[]),
    ("ds_cpl", &[]),
    ("cid", &[]),
    ("xtpr", &[]),
    ("pbe", &[]),
    ("pdcm", &[0x345]),
    ("arch_capabilities", &[0x10a]),
    ("core_capabilities", &[0xcf]),
    ("spec_ctrl", &[0x48, 0x49]),
    ("intel_stibp", &[0x48]),
    ("spec_ctrl_ssbd", &[0x48]),
    ("flush_l1d", &[0x10b]),
    ("tsc_adjust", &[0x3b]),
    ("intel_pt", &[0x570]),
    ("arch_lbr", &[0x14ce]),
    ("cqm", &[0xc8d, 0xc8e]),
    ("rdt_a", &[0xc8f]),
    ("tme", &[0x981, 0x982]),
    ("intel_ppin", &[0x4e, 0x4f]),
    ("hw_pstate", &[0xc001_0061, 0xc001_0064]),
    ("cpb", &[]),
    ("proc_feedback", &[]),
    ("acc_power", &[0xc001_007a]),
    ("rapl", &[0xc001_0299, 0xc001_029b]),
    ("cppc", &[0xc001_02b0]),
    ("amd_ppin", &[0xc001_02f0]),
    ("amd_ibpb", &[0x49]),
    ("amd_ibrs", &[0x48]),
    ("amd_stibp", &[0x48]),
    ("amd_ssbd", &[0x48]),
    ("virt_ssbd", &[0xc001_011f]),
    ("perfctr_core", &[0xc001_0200]),
    ("perfctr_nb", &[0xc001_0240]),
    ("perfctr_llc", &[0xc001_0230]),
    ("ptsc", &[0xc001_0280]),
    ("ibs", &[0xc001_1030]),
    ("osvw", &[0xc001_0140]),
    ("nodeid_msr", &[0xc001_100c]),
    ("bpext", &[0xc001_1027]),
    ("wdt", &[0xc001_0074]),
    ("lwp", &[0xc000_0105]),
];

/// The leaf of Intel's performance monitoring; EAX 7:0 is its version, and 0 means none.
const PERFORMANCE_MONITORING: u32 = 0xa;
const PERFORMANCE_MONITORING_VERSION: u32 = 0xff;

/// What `shown` has and `offered` lacks. `has_msr` says whether a device or an initial value stands for an MSR.
pub(super) fn find(
    offered: &Leaves,
    shown: &Leaves,
    has_msr: &dyn Fn(u32) -> bool,
) -> Vec<Unoffered> {
    let mut found = Vec::new();
    for (leaf, subleaf, register, mask) in FLAGS {
        let bits = |leaves: &Leaves| *register.of(&mut leaves.get(leaf, subleaf));
        let more = bits(shown) & !bits(offered) & mask;
        for bit in (0..32).filter(|bit| more >> bit & 1 == 1) {
            let feature = Feature::at(leaf, subleaf, register, bit);
            let Some(effect) = effect(leaf, register, feature.as_ref(), has_msr) else {
                continue;
            };
            let place = Place {
                leaf,
                subleaf,
                register,
                bits: 1 << bit,
            };
            found.push(Unoffered {
                name: feature.map_or_else(|| place.to_string(), |f| f.name().to_owned()),
                effect,
                place,
            });
        }
    }
    let version = |leaves: &Leaves| {
        leaves.get(PERFORMANCE_MONITORING, 0).eax & PERFORMANCE_MONITORING_VERSION
    };
    if version(shown) > version(offered) {
        found.push(Unoffered {
            name: format!("performance monitoring version {}", version(shown)),
            effect: Effect::Counters,
            place: Place {
                leaf: PERFORMANCE_MONITORING,
                subleaf: 0,
                register: Eax,
                bits: u32::MAX,
            },
        });
    }
    found
}

fn effect(
    leaf: u32,
    register: Register,
    feature: Option<&Feature>,
    has_msr: &dyn Fn(u32) -> bool,
) -> Option<Effect> {
    let name = feature.map_or("", Feature::name);
    if leaf == 0xd && (register != Eax || name.is_empty()) || STATE.contains(&name) {
        return Some(Effect::State);
    }
    if CONTROL.contains(&name) {
        return Some(Effect::Control);
    }
    if leaf == 0x8000_0022 {
        return Some(Effect::Counters);
    }
    match BY_MSRS.iter().find(|(other, _)| *other == name) {
        Some((_, msrs)) => msrs
            .iter()
            .find(|msr| !has_msr(**msr))
            .map(|msr| Effect::Msr(*msr)),
        None => Some(Effect::Instructions),
    }
}

impl Unoffered {
    /// Takes the feature out of what the guest is shown: the bits become as `offered` has them.
    pub(super) fn hide(&self, offered: &Leaves, shown: &mut Leaves) {
        let Place {
            leaf,
            subleaf,
            register,
            bits,
        } = self.place;
        if leaf == PERFORMANCE_MONITORING {
            shown.remove(leaf);
            if offered.get(leaf, 0).eax != 0 {
                shown.set(leaf, offered.get(leaf, 0));
            }
            return;
        }
        let kept = *register.of(&mut offered.get(leaf, subleaf)) & bits;
        shown.edit_registers(leaf, subleaf, |registers| {
            let value = register.of(registers);
            *value = *value & !bits | kept;
        });
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CPUID {:#x}.{} {} bit {}",
            self.leaf,
            self.subleaf,
            self.register,
            self.bits.trailing_zeros()
        )
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State => f.write_str(
                "a kernel enables their state by XSETBV or IA32_XSS, which is #GP: Linux hangs or panics as it boots",
            ),
            Self::Control => f.write_str(
                "a kernel turns them on in CR4 or IA32_EFER, which is #GP: Linux hangs or panics as it boots",
            ),
            Self::Counters => f.write_str("their counters' MSRs are #GP: Linux has no hardware counters"),
            Self::Msr(index) => match msr_filter::names::name(*index) {
                Some(name) => write!(f, "no device answers {name} ({index:#x}), so it is as KVM has it, or #GP"),
                None => write!(f, "no device answers MSR {index:#x}, so it is as KVM has it, or #GP"),
            },
            Self::Instructions => f.write_str(
                "a program that relies on them gets #UD, or whatever the host's CPU does in their place",
            ),
        }
    }
}

/// Features by what comes of them: a line for each effect.
pub struct ByEffect<'a>(pub &'a [Unoffered]);

impl ByEffect<'_> {
    /// The lines.
    pub fn lines(&self) -> Vec<String> {
        let mut effects: Vec<&Effect> = self.0.iter().map(|u| &u.effect).collect();
        effects.sort();
        effects.dedup();
        let line = |effect: &Effect| {
            let names = self.0.iter().filter(|u| u.effect == *effect);
            let names: Vec<&str> = names.map(|u| u.name.as_str()).collect();
            format!("{}: {effect}", names.join(", "))
        };
        effects.into_iter().map(line).collect()
    }
}

impl fmt::Display for ByEffect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> Leaves {
        Leaves::of(&[
            (0, 0, [0xd, 0, 0, 0]),
            (1, 0, [0, 0, 1 << 26, 0]),
            (7, 0, [1, 1 << 5, 0, 0]),
            (0xd, 0, [0x7, 0, 0, 0]),
            (0xd, 1, [0, 0, 0, 0]),
        ])
    }

    fn found(edit: impl FnOnce(&mut Leaves), msrs: &[u32]) -> Vec<(String, Effect)> {
        let mut shown = offered();
        edit(&mut shown);
        find(&offered(), &shown, &|msr| msrs.contains(&msr))
            .into_iter()
            .map(|u| (u.name, u.effect))
            .collect()
    }

    fn show(names: &[&str]) -> impl FnOnce(&mut Leaves) {
        let features: Vec<_> = names
            .iter()
            .map(|name| Feature::by_name(name).unwrap())
            .collect();
        move |leaves| features.into_iter().for_each(|f| f.set(leaves, true))
    }

    #[test]
    fn what_is_offered_is_not_told() {
        assert_eq!(found(show(&["avx2"]), &[]), []);
        assert_eq!(found(|_| (), &[]), []);
    }

    #[test]
    fn each_feature_is_told_with_what_comes_of_it() {
        let told = found(show(&["amx_tile", "sgx", "la57", "dtherm", "ida"]), &[]);
        let expected = [
            ("dtherm", Effect::Msr(0x19c)),
            ("sgx", Effect::Instructions),
            ("la57", Effect::Control),
            ("amx_tile", Effect::State),
        ];
        assert_eq!(
            told,
            expected.map(|(name, effect)| (name.to_owned(), effect))
        );
    }

    #[test]
    fn a_feature_whose_msrs_a_device_answers_is_there() {
        assert_eq!(
            found(show(&["dtherm", "aperfmperf"]), &[0x19c, 0xe7, 0xe8]),
            []
        );
        assert_eq!(
            found(show(&["aperfmperf"]), &[0xe7]),
            [("aperfmperf".to_owned(), Effect::Msr(0xe8))]
        );
    }

    #[test]
    fn state_components_and_counters_are_features_without_a_name() {
        let told = found(
            |leaves| {
                leaves.edit(0xd, 0, |entry| entry.eax |= 1 << 17);
                leaves.set(
                    0xa,
                    crate::cpu::leaves::Registers {
                        eax: 0x0802,
                        ..Default::default()
                    },
                );
            },
            &[],
        );
        assert_eq!(
            told[0],
            ("CPUID 0xd.0 EAX bit 17".to_owned(), Effect::State)
        );
        assert_eq!(
            told[1],
            (
                "performance monitoring version 2".to_owned(),
                Effect::Counters
            )
        );
    }

    #[test]
    fn what_is_hidden_is_as_offered_and_nothing_else_changes() {
        let mut shown = offered();
        show(&["amx_tile", "avx2", "sgx"])(&mut shown);
        shown.set(
            0xa,
            crate::cpu::leaves::Registers {
                eax: 0x0802,
                ..Default::default()
            },
        );
        for feature in find(&offered(), &shown, &|_| false) {
            feature.hide(&offered(), &mut shown);
        }
        assert_eq!(find(&offered(), &shown, &|_| false), []);
        assert_eq!(shown.get(7, 0), offered().get(7, 0));
        assert_eq!(shown.get(0xa, 0).eax, 0);
    }

    #[test]
    fn features_of_one_effect_share_a_line() {
        let mut shown = offered();
        show(&["amx_tile", "amx_int8", "sgx"])(&mut shown);
        let found = find(&offered(), &shown, &|_| false);
        let lines = ByEffect(&found).lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("amx_tile, amx_int8: ") && lines[0].contains("#GP"));
        assert!(lines[1].starts_with("sgx: ") && lines[1].contains("#UD"));
    }
}
