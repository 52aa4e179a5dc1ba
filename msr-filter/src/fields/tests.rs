use alloc::collections::BTreeSet;
use alloc::string::ToString;
use std::vec::Vec;

use super::*;
use crate::names;

#[test]
fn fields_lie_in_the_register_in_order_and_do_not_overlap() {
    for layout in layouts() {
        let mut next = 0;
        for field in layout.fields {
            assert!(
                field.low >= next && field.high >= field.low && field.high < 64,
                "{:#x}: {}",
                layout.first,
                field.name
            );
            next = field.high + 1;
        }
        let names: BTreeSet<&str> = layout.fields.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), layout.fields.len(), "{:#x}", layout.first);
    }
}

#[test]
fn no_register_has_two_layouts_and_every_layout_has_a_source() {
    let indices: Vec<u32> = layouts().flat_map(Layout::indices).collect();
    let set: BTreeSet<u32> = indices.iter().copied().collect();
    assert_eq!(indices.len(), set.len());
    assert!(layouts().all(|layout| !layout.source.is_empty() && !layout.fields.is_empty()));
}

#[test]
fn more_than_a_hundred_forms_are_described_and_their_first_registers_have_names() {
    assert!(layouts().count() > 100);
    let unnamed: Vec<_> = layouts()
        .filter(|layout| names::name(layout.first).is_none())
        .map(|layout| std::format!("{:#x}", layout.first))
        .collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
}

#[test]
fn values_of_real_machines_decode_as_the_manuals_say() {
    for (index, value, text) in [
        // An Ice Lake server: 2.4 GHz base, 0.8 GHz the least that can be asked for.
        (
            0xce,
            0x8_0000_f0f8_1800,
            "max-non-turbo=24 ppin-cap=1 ratio-programmable=1 tdp-programmable=1 tjoffset-programmable=1 \
             cpuid-faulting=1 config-tdp-levels=0 max-efficiency=0 minimum=8",
        ),
        (
            0x606,
            0xa0e03,
            "power-unit=1/8W energy-unit=1/16384J time-unit=1/1024s",
        ),
        (
            0x1b,
            0xfee0_0d00,
            "bsp=1 x2apic-enable=1 apic-enable=1 base=0xfee00000",
        ),
        (
            0x277,
            0x0007_0406_0007_0406,
            "pa0=WB pa1=WT pa2=UC- pa3=UC pa4=WB pa5=WT pa6=UC- pa7=UC",
        ),
        (0x200, 0x8000_0000, "type=UC base=0x80000000"),
        (0x1a2, 0x64_0000, "tcc-activation=100C tcc-offset=0C"),
        (0x20, 0, ""),
    ] {
        let shown = decode(index, value).map_or_else(Default::default, |d| d.to_string());
        assert_eq!(shown, text, "{index:#x}");
    }
    let status = decode(0x19c, 0x8843_0000).unwrap();
    assert_eq!(status.field("below-target"), Some(0x43));
    assert_eq!(status.field("valid"), Some(1));
    assert_eq!(status.field("nothing"), None);
    let efer = decode(0xc000_0080, 0xd01).unwrap();
    let set: Vec<&str> = efer
        .fields()
        .filter(|(_, v)| *v == 1)
        .map(|(f, _)| f.name)
        .collect();
    assert_eq!(set, ["sce", "lme", "lma", "nxe"]);
}

#[test]
fn a_strided_layout_describes_its_registers_and_no_other() {
    let base = layout(0x200).unwrap();
    assert_eq!(layout(0x212), Some(base));
    assert_ne!(layout(0x201), Some(base));
    assert_eq!(layout(0x214), None);
    assert_eq!(
        described().filter(|range| range.first() == 0x611).count(),
        1
    );
}
