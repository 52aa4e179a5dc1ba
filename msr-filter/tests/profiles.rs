//! The profiles that come with the project: they read, fit, and keep their promises. That Linux boots
//! under them is proven by booting it, in `guest-tests`.

use std::{fs, path::Path};

use msr_filter::{
    Access, FilterConfig, FilterSpec, LINUX_BOOT, LINUX_BOOT_INTEL, MsrFilter, Verdict,
};

fn profile(name: &str) -> (FilterConfig, FilterSpec, MsrFilter) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../resources/profiles")
        .join(name)
        .with_extension("toml");
    let text = fs::read_to_string(&path).expect("the profile is part of the project");
    let config: FilterConfig = toml::from_str(&text).expect("the profile reads");
    let spec = FilterSpec::from(&config);
    let filter = spec.compile().expect("the profile fits KVM's limits");
    (config, spec, filter)
}

/// The MSRs of which `filter`, which denies by default, allows some access.
fn allowed(spec: &FilterSpec, filter: &MsrFilter) -> usize {
    assert_eq!(spec.default, Verdict::Deny);
    let mut msrs: Vec<u32> = spec
        .rules
        .iter()
        .flat_map(|rule| rule.range.first()..=rule.range.last())
        .filter(|index| {
            let kinds = [Access::READ, Access::WRITE];
            kinds
                .iter()
                .any(|kind| filter.verdict(*index, *kind) == Verdict::Allow)
        })
        .collect();
    msrs.sort_unstable();
    msrs.dedup();
    msrs.len()
}

#[test]
fn every_rule_says_why_and_nothing_in_a_profile_is_without_effect() {
    for name in ["linux-guest", "kvm-pv-only", "deny-writes"] {
        let (config, spec, filter) = profile(name);
        for rule in &config.rules {
            let reason = rule.reason.as_deref().unwrap_or_default();
            assert!(reason.ends_with('.'), "{name}: {rule:?}");
        }
        assert_eq!(spec.warnings(), [], "{name}");
        for (index, access) in LINUX_BOOT.iter().chain(LINUX_BOOT_INTEL) {
            for kind in access.iter() {
                assert_eq!(
                    filter.verdict(*index, kind),
                    Verdict::Allow,
                    "{name} {index:#x} {kind}"
                );
            }
        }
    }
}

#[test]
fn linux_guest_allows_fewer_than_150_msrs() {
    let (_, spec, filter) = profile("linux-guest");
    let allowed = allowed(&spec, &filter);
    println!(
        "linux-guest allows {allowed} MSRs in {} ranges",
        filter.ranges().len()
    );
    assert!(allowed < 150, "{allowed}");
}

#[test]
fn kvm_pv_only_allows_nothing_that_linux_guest_denies() {
    let (_, _, tight) = profile("kvm-pv-only");
    let (_, _, guest) = profile("linux-guest");
    assert_eq!(
        tight.difference(&guest),
        FilterSpec::new(Verdict::Deny).compile()
    );
    assert!(!tight.same_meaning(&guest));
}

#[test]
fn deny_writes_leaves_every_read_alone() {
    let (_, _, filter) = profile("deny-writes");
    let changes = MsrFilter::allow_all().diff(&filter);
    assert!(!changes.is_empty());
    for change in changes {
        assert_eq!((change.access, change.to), (Access::WRITE, Verdict::Deny));
    }
    // A write that configures the processor, one of the guest's own, and one KVM would ignore.
    for (index, verdict) in [
        (0x1fc, Verdict::Deny),
        (0xc000_0102, Verdict::Allow),
        (0xc001_0020, Verdict::Deny),
    ] {
        assert_eq!(filter.verdict(index, Access::WRITE), verdict, "{index:#x}");
    }
}
