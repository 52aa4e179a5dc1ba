use std::{ptr, string::ToString};

use super::*;
use crate::{FilterSpec, MsrRange, Rule};

fn example() -> MsrFilter {
    FilterSpec::new(Verdict::Deny)
        .rule(Rule::new(
            MsrRange::new(0x10, 0x99).unwrap(),
            Access::READ,
            Verdict::Allow,
        ))
        .rule(Rule::new(0xc000_0080, Access::all(), Verdict::Allow))
        .compile()
        .unwrap()
}

/// SAFETY of the calls below: the bitmaps are those of a live `KvmFilter` or of a local array of the
/// right length, or null.
fn from_kvm(raw: &kvm_msr_filter) -> Result<MsrFilter, FromKvmError> {
    // SAFETY: see above.
    unsafe { MsrFilter::from_kvm(raw) }
}

#[test]
fn the_struct_has_what_the_kernel_reads() {
    let raw = example().to_kvm();
    let raw = raw.as_kvm();
    assert_eq!(raw.flags, 1);
    let [reads, both] = [raw.ranges[0], raw.ranges[1]];
    assert_eq!((reads.base, reads.nmsrs, reads.flags), (0x10, 0x8a, 1));
    assert_eq!((both.base, both.nmsrs, both.flags), (0xc000_0080, 1, 3));
    assert!(raw.ranges[2..].iter().all(|range| range.nmsrs == 0));
    // SAFETY: 0x8a bits take three words of 8 bytes, and `raw` is alive.
    let bitmap = unsafe { slice::from_raw_parts(reads.bitmap, 24) };
    assert_eq!(bitmap[..17], [0xff; 17]);
    assert_eq!(bitmap[17..], [0x03, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_filter_comes_back_from_the_struct() {
    for filter in [example(), MsrFilter::allow_all()] {
        let raw = filter.to_kvm();
        assert_eq!(from_kvm(raw.as_kvm()), Ok(filter));
    }
}

#[test]
fn ranges_over_nothing_are_skipped_whatever_else_they_say() {
    let mut filter = kvm_msr_filter::default();
    filter.ranges[3].flags = 0xff;
    filter.ranges[3].base = 0x10;
    assert_eq!(from_kvm(&filter), Ok(MsrFilter::allow_all()));
}

#[test]
fn what_the_kernel_refuses_is_refused() {
    let mut bitmap = [0u64; 192];
    let mut with = |flags, nmsrs, base| {
        let mut filter = kvm_msr_filter::default();
        filter.ranges[2] = kvm_msr_filter_range {
            flags,
            nmsrs,
            base,
            bitmap: bitmap.as_mut_ptr().cast(),
        };
        filter
    };
    let mut unknown = with(3, 1, 0);
    unknown.flags = 2;
    let mut null = with(3, 1, 0);
    null.ranges[2].bitmap = ptr::null_mut();
    let deny = kvm_msr_filter {
        flags: 1,
        ..Default::default()
    };
    for (raw, message) in [
        (
            unknown,
            "the filter's flags 0x2 are not KVM_MSR_FILTER_DEFAULT_ALLOW or _DENY",
        ),
        (
            with(4, 1, 0),
            "the flags 0x4 of range 2 are not KVM_MSR_FILTER_READ, _WRITE or both",
        ),
        (
            with(0x101, 1, 0),
            "the flags 0x101 of range 2 are not KVM_MSR_FILTER_READ, _WRITE or both",
        ),
        (
            with(0, 1, 0x10),
            "the filter range at 0x10 is for no kind of access",
        ),
        (
            with(3, 12289, 0),
            "the filter range at 0x0 spans 12289 MSRs, and KVM takes 1 to 12288",
        ),
        (null, "range 2 has no bitmap"),
        (
            with(1, 2, 0xffff_fffe),
            "the filter range of 2 MSRs at 0xfffffffe would end past 0xfffffffe and never match",
        ),
        (
            deny,
            "KVM refuses a filter that denies by default and has no range",
        ),
    ] {
        assert_eq!(from_kvm(&raw).unwrap_err().to_string(), message);
    }
    assert!(from_kvm(&with(3, 12288, 0)).is_ok());
}
