use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;

#[test]
fn indices_rise_and_have_one_primary_name_each() {
    for pair in BY_INDEX.windows(2) {
        assert!(pair[0].0 < pair[1].0, "{pair:x?}");
    }
}

#[test]
fn every_name_leads_back_to_its_index_in_any_case() {
    for (at, name) in all() {
        assert_eq!(index(name), Some(at), "{name}");
        assert_eq!(index(&name.to_lowercase()), Some(at), "{name}");
    }
}

#[test]
fn names_differ_by_more_than_case_and_interchangeable_prefix() {
    let mut seen = BTreeMap::new();
    for (at, name) in all() {
        let other = *seen.entry(stem(name).to_lowercase()).or_insert(at);
        assert_eq!(other, at, "{name} is also a name of {other:#x}");
    }
}

#[test]
fn aliases_belong_to_indices_with_a_primary_name() {
    for (at, alias) in ALIASES {
        assert!(name(*at).is_some(), "{alias}");
    }
}

#[test]
fn names_fit_the_comparison_and_are_plain_identifiers() {
    for (_, name) in all() {
        assert!(name.len() <= 64);
        assert!(!name.starts_with(|c: char| c.is_ascii_digit()), "{name}");
        assert!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
            "{name}"
        );
    }
}

/// Spot checks against the manuals, over every table and family.
#[test]
fn well_known_registers_have_their_manual_names() {
    for (at, expected) in [
        (0x1b, "IA32_APIC_BASE"),
        (0xc8, "IA32_PMC7"),
        (0x20f, "IA32_MTRR_PHYSMASK7"),
        (0x288, "IA32_MC8_CTL2"),
        (0x417, "IA32_MC5_MISC"),
        (0x473, "IA32_MC28_MISC"),
        (0x6cf, "MSR_LASTBRANCH_15_TO_IP"),
        (0x817, "IA32_X2APIC_ISR7"),
        (0x827, "IA32_X2APIC_IRR7"),
        (0x4000_00b3, "HV_X64_MSR_STIMER1_COUNT"),
        (0x4b56_4d03, "MSR_KVM_STEAL_TIME"),
        (0xc000_0080, "IA32_EFER"),
        (0xc000_2011, "MSR_AMD64_SMCA_MC1_STATUS"),
        (0xc001_0206, "MSR_F15H_PERF_CTL3"),
        (0xc001_0015, "MSR_K7_HWCR"),
    ] {
        assert_eq!(name(at), Some(expected));
    }
    assert_eq!(name(0x13), None);
    assert!(iter().len() >= 400);
}

#[test]
fn the_kernels_and_amds_spellings_resolve() {
    for (spelling, at) in [
        ("MSR_EFER", 0xc000_0080),
        ("efer", 0xc000_0080),
        ("MSR_IA32_MPERF", 0xe7),
        ("SYSENTER_CS", 0x174),
        ("MSR_PM_ENABLE", 0x770),
        ("MSR_MTRRcap", 0xfe),
        ("MSR_K7_HWCR", 0xc001_0015),
        ("HWCR", 0xc001_0015),
        ("MSR_PLATFORM_ID", 0x17),
        ("MSR_STAR", 0xc000_0081),
    ] {
        assert_eq!(index(spelling), Some(at), "{spelling}");
    }
    assert_eq!(index("MSR_NO_SUCH_THING"), None);
    assert_eq!(index(""), None);
    assert_eq!(index("MSR_"), None);
}

#[test]
fn the_nearest_name_is_offered_for_slips_only() {
    for (slip, meant) in [
        ("MSR_PGK_ENERGY_STATUS", "MSR_PKG_ENERGY_STATUS"),
        ("IA32_PLATFROM_ID", "IA32_PLATFORM_ID"),
        ("ia32_efr", "IA32_EFER"),
        ("MSR_PLATFORM_INF", "MSR_PLATFORM_INFO"),
    ] {
        assert_eq!(nearest(slip), Some(meant));
    }
    for nonsense in ["", "x", "completely different", &"A".repeat(10_000)] {
        assert_eq!(nearest(nonsense), None, "{nonsense:.20}");
    }
}

#[test]
fn distance_counts_each_kind_of_slip_once() {
    let slips: Vec<_> = ["EFER", "EFR", "EFFER", "EFAR", "EEFR", "RE"]
        .iter()
        .map(|slip| distance::within(slip, "efer", 4))
        .collect();
    assert_eq!(
        slips,
        [Some(0), Some(1), Some(1), Some(1), Some(1), Some(3)]
    );
    assert_eq!(distance::within("EFER", "STAR", 2), None);
}
