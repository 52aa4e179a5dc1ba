//! Memory types and ranges: PAT and MTRRs (SDM volume 3, chapter "Memory Cache Control"; APM volume 2, sections
//! 7.7 and 7.8).

use super::Show::Names;
use super::{Field, Layout, Show, address, bit, bits, shown};

const MTRR: &str = "Intel SDM volume 3, section \"Memory Type Range Registers (MTRRs)\"";
const PAT: &str = "Intel SDM volume 3, section \"Page Attribute Table (PAT)\"";

const TYPE: Show = Names(&[
    (0, "UC"),
    (1, "WC"),
    (4, "WT"),
    (5, "WP"),
    (6, "WB"),
    (7, "UC-"),
]);

const FIXED: &[Field] = &[
    shown("type0", 0, 7, TYPE),
    shown("type1", 8, 15, TYPE),
    shown("type2", 16, 23, TYPE),
    shown("type3", 24, 31, TYPE),
    shown("type4", 32, 39, TYPE),
    shown("type5", 40, 47, TYPE),
    shown("type6", 48, 55, TYPE),
    shown("type7", 56, 63, TYPE),
];

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::one(
        0xfe,
        MTRR,
        &[
            bits("variable-ranges", 0, 7),
            bit("fixed", 8),
            bit("write-combining", 10),
            bit("smrr", 11),
        ],
    ),
    Layout::many(
        0x200,
        10,
        2,
        MTRR,
        &[shown("type", 0, 7, TYPE), address("base", 12, 51)],
    ),
    Layout::many(
        0x201,
        10,
        2,
        MTRR,
        &[bit("valid", 11), address("mask", 12, 51)],
    ),
    Layout::one(0x250, MTRR, FIXED),
    Layout::many(0x258, 2, 1, MTRR, FIXED),
    Layout::many(0x268, 8, 1, MTRR, FIXED),
    Layout::one(
        0x277,
        PAT,
        &[
            shown("pa0", 0, 2, TYPE),
            shown("pa1", 8, 10, TYPE),
            shown("pa2", 16, 18, TYPE),
            shown("pa3", 24, 26, TYPE),
            shown("pa4", 32, 34, TYPE),
            shown("pa5", 40, 42, TYPE),
            shown("pa6", 48, 50, TYPE),
            shown("pa7", 56, 58, TYPE),
        ],
    ),
    Layout::one(
        0x2ff,
        MTRR,
        &[
            shown("default-type", 0, 7, TYPE),
            bit("fixed-enable", 10),
            bit("enable", 11),
        ],
    ),
    Layout::one(
        0x1f2,
        MTRR,
        &[shown("type", 0, 7, TYPE), address("base", 12, 31)],
    ),
    Layout::one(0x1f3, MTRR, &[bit("valid", 11), address("mask", 12, 31)]),
];
