use std::{string::ToString, vec, vec::Vec};

use super::*;

fn one(access: Access) -> FilterRange {
    FilterRange::new(0x10, access, 1, &[0; 8]).unwrap()
}

#[test]
fn what_kvm_refuses_in_a_range_is_refused() {
    let new = FilterRange::new;
    for (range, error) in [
        (
            new(0x10, Access::empty(), 1, &[0; 8]),
            "the filter range at 0x10 is for no kind of access",
        ),
        (
            new(0x10, Access::READ, 0, &[]),
            "the filter range at 0x10 spans 0 MSRs, and KVM takes 1 to 12288",
        ),
        (
            new(0x10, Access::READ, 12289, &[0; 1544]),
            "the filter range at 0x10 spans 12289 MSRs, and KVM takes 1 to 12288",
        ),
        (
            new(u32::MAX, Access::READ, 1, &[0; 8]),
            "the filter range of 1 MSRs at 0xffffffff would end past 0xfffffffe and never match",
        ),
        (
            new(0x10, Access::READ, 1, &[0]),
            "the filter range at 0x10 has a bitmap of 1 bytes instead of 8",
        ),
        (
            new(0x10, Access::READ, 65, &[0; 8]),
            "the filter range at 0x10 has a bitmap of 8 bytes instead of 16",
        ),
    ] {
        assert_eq!(range.unwrap_err().to_string(), error);
    }
    assert!(new(0x10, Access::READ, 12288, &[0; 1536]).is_ok());
    assert!(new(u32::MAX - 1, Access::READ, 1, &[0; 8]).is_ok());
}

#[test]
fn what_kvm_refuses_in_a_filter_is_refused() {
    let new = MsrFilter::new;
    assert_eq!(
        new(Verdict::Deny, vec![]),
        Err(FilterError::DenyWithoutRanges)
    );
    assert_eq!(new(Verdict::Allow, vec![]), Ok(MsrFilter::allow_all()));
    let ranges = |count| (0..count).map(|_| one(Access::READ)).collect::<Vec<_>>();
    assert!(new(Verdict::Deny, ranges(16)).is_ok());
    let error = new(Verdict::Deny, ranges(17)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the filter has 17 ranges, and KVM takes at most 16"
    );
}

#[test]
fn bits_are_taken_from_the_lowest_of_the_first_byte_on() {
    let mut bytes = [0; 16];
    bytes[0] = 0b1000_0001;
    bytes[8] = 1;
    let range = FilterRange::new(0x100, Access::all(), 66, &bytes).unwrap();
    let allowed: Vec<u32> = (0..0x200)
        .filter(|i| range.verdict(*i, Access::READ) == Some(Verdict::Allow))
        .collect();
    assert_eq!(allowed, [0x100, 0x107, 0x140]);
    assert_eq!(range.allowed(), 3);
    assert_eq!(range.verdict(0xff, Access::READ), None);
    assert_eq!(range.verdict(0x141, Access::READ), Some(Verdict::Deny));
    assert_eq!(range.verdict(0x142, Access::READ), None);
    assert_eq!(range.bitmap_bytes(), bytes);
}

#[test]
fn bits_past_the_last_msr_mean_nothing() {
    let noisy = FilterRange::new(0x100, Access::all(), 3, &[0xff; 8]).unwrap();
    let clean = FilterRange::new(0x100, Access::all(), 3, &[7, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(noisy, clean);
    assert_eq!(noisy.allowed(), 3);
}

#[test]
fn runs_are_as_long_as_the_verdict_stays() {
    let range = FilterRange::new(0x10, Access::all(), 5, &[0b01100, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let runs: Vec<_> = range
        .runs()
        .map(|(part, verdict)| (part.first(), part.last(), verdict))
        .collect();
    assert_eq!(
        runs,
        [
            (0x10, 0x11, Verdict::Deny),
            (0x12, 0x13, Verdict::Allow),
            (0x14, 0x14, Verdict::Deny)
        ]
    );
}

#[test]
fn setting_a_part_leaves_the_rest() {
    for (first, last) in [(0, 0), (3, 66), (64, 127), (0, 199), (199, 199)] {
        let span = MsrRange::new(1000, 1199).unwrap();
        let part = MsrRange::new(1000 + first, 1000 + last).unwrap();
        let mut range = FilterRange::denying(span, Access::READ);
        range.set(part, Verdict::Allow);
        for index in 1000..1200 {
            let allowed = range.verdict(index, Access::READ) == Some(Verdict::Allow);
            assert_eq!(allowed, part.contains(index), "{part} {index:#x}");
        }
        range.set(part, Verdict::Deny);
        assert_eq!(range.allowed(), 0);
    }
}

#[test]
fn read_only_range_leaves_writes_to_the_default() {
    let filter = MsrFilter::new(Verdict::Allow, vec![one(Access::READ)]).unwrap();
    assert_eq!(filter.verdict(0x10, Access::READ), Verdict::Deny);
    assert_eq!(filter.verdict(0x10, Access::WRITE), Verdict::Allow);
}

#[test]
fn the_first_range_that_matches_decides() {
    let allows = FilterRange::new(0x10, Access::WRITE, 1, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let filter = MsrFilter::new(Verdict::Deny, vec![allows, one(Access::all())]).unwrap();
    assert_eq!(filter.verdict(0x10, Access::READ), Verdict::Deny);
    assert_eq!(filter.verdict(0x10, Access::WRITE), Verdict::Allow);
}

#[test]
fn x2apic_is_allowed_whatever_the_ranges_say() {
    let range = FilterRange::new(0x7ff, Access::all(), 0x102, &[0; 40]).unwrap();
    let filter = MsrFilter::new(Verdict::Deny, vec![range]).unwrap();
    for (index, verdict) in [
        (0x7ff, Verdict::Deny),
        (0x800, Verdict::Allow),
        (0x8ff, Verdict::Allow),
        (0x900, Verdict::Deny),
    ] {
        assert_eq!(filter.verdict(index, Access::WRITE), verdict, "{index:#x}");
    }
}
