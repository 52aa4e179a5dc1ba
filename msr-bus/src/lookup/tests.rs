use proptest::prelude::*;

use super::*;

fn linear(claims: &[(MsrRange, Owner)], index: u32) -> Option<Owner> {
    claims
        .iter()
        .find(|(range, _)| range.contains(index))
        .map(|(_, owner)| *owner)
}

/// Indices where mistakes hide: in the real windows, at page borders, at both ends of the index space.
fn index() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..0x2000,
        0xc000_0000u32..0xc001_2000,
        (0u32..0x1000, 0u32..3).prop_map(|(page, off)| ((page << PAGE_BITS) | off).wrapping_sub(1)),
        Just(0u32),
        Just(u32::MAX),
        Just(u32::MAX - 1),
        any::<u32>(),
    ]
}

/// Disjoint claims in ascending order: between every second pair of cuts, some of them adjacent.
fn claims() -> impl Strategy<Value = Vec<(MsrRange, Owner)>> {
    let cuts = prop::collection::btree_set(index(), 0..60);
    (cuts, any::<bool>(), any::<u64>()).prop_map(|(cuts, end, adjacent)| {
        let mut cuts: Vec<u64> = cuts.into_iter().map(u64::from).collect();
        if end {
            cuts.push(1 << 32);
        }
        let gaps = cuts.windows(2).enumerate();
        gaps.filter(|(i, _)| i % 2 == 0 || adjacent >> (i % 64) & 1 == 1)
            .map(|(i, pair)| {
                let range = MsrRange::new(pair[0] as u32, (pair[1] - 1) as u32).unwrap();
                (range, i as Owner)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_owner_is_the_one_a_linear_scan_finds(
        claims in claims(),
        indices in prop::collection::vec(index(), 50),
    ) {
        let lookup = Lookup::new(&claims);
        let borders = claims.iter().flat_map(|(range, _)| {
            let (first, last) = (range.first(), range.last());
            [first.wrapping_sub(1), first, first / 2 + last / 2, last, last.wrapping_add(1)]
        });
        for index in borders.chain(indices).chain([0, u32::MAX]) {
            prop_assert_eq!(lookup.owner(index), linear(&claims, index), "{:#x}", index);
        }
    }
}

#[test]
fn a_lookup_without_claims_finds_nobody() {
    let lookup = Lookup::new(&[]);
    for index in [0, 1, 0xff, 0x100, u32::MAX] {
        assert_eq!(lookup.owner(index), None);
    }
}

#[test]
fn one_claim_of_everything_owns_everything() {
    let lookup = Lookup::new(&[(MsrRange::ALL, 7)]);
    for index in [0, 1, 0xff, 0x100, 0x8000_0000, u32::MAX] {
        assert_eq!(lookup.owner(index), Some(7));
    }
}

#[test]
fn a_narrow_claim_between_wide_ones_on_the_same_page_is_found() {
    let range = |first, last| MsrRange::new(first, last).unwrap();
    let claims = [
        (range(0, 0x2_0010), 0),
        (range(0x2_0011, 0x2_0012), 1),
        (range(0x2_0014, u32::MAX), 2),
    ];
    let lookup = Lookup::new(&claims);
    for (index, owner) in [
        (0x2_0010, Some(0)),
        (0x2_0011, Some(1)),
        (0x2_0012, Some(1)),
        (0x2_0013, None),
        (0x2_0014, Some(2)),
        (0x2_00ff, Some(2)),
    ] {
        assert_eq!(lookup.owner(index), owner, "{index:#x}");
    }
}

#[test]
fn memory_is_bounded_by_the_number_of_claims_whatever_they_span() {
    // As many ranges as 100 KB of TOML name, of 65,536 MSRs each.
    let claims: Vec<_> = (0..4096u32)
        .map(|i| (MsrRange::new(i << 16, i << 16 | 0xffff).unwrap(), 0))
        .collect();
    let lookup = Lookup::new(&claims);
    assert!(lookup.pages.is_empty());
    for length in [1, 32, 63, 64, 65] {
        let claims: Vec<_> = (0..4096u32)
            .map(|i| {
                (
                    MsrRange::new(i << 8 | 7, (i << 8 | 7) + length - 1).unwrap(),
                    0,
                )
            })
            .collect();
        let lookup = Lookup::new(&claims);
        assert!(lookup.pages.len() <= 3 * claims.len(), "{length}");
    }
}

#[test]
fn a_wide_claim_takes_no_memory_for_its_pages() {
    assert!(Lookup::new(&[(MsrRange::ALL, 0)]).pages.is_empty());
}
