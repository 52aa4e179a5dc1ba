//! Performance counters (SDM volume 3, chapter "Performance Monitoring"; APM volume 2, section 13.2).

use super::{Field, Layout, bit, bits, hex};

const SDM: &str = "Intel SDM volume 3, chapter \"Performance Monitoring\"";
const APM: &str = "AMD64 APM volume 2, section 13.2";

const AMD_SELECT: &[Field] = &[
    hex("event", 0, 7),
    hex("umask", 8, 15),
    bit("user", 16),
    bit("os", 17),
    bit("edge", 18),
    bit("int", 20),
    bit("enable", 22),
    bit("invert", 23),
    bits("cmask", 24, 31),
    hex("event-high", 32, 35),
    bit("guest-only", 40),
    bit("host-only", 41),
];

const GLOBAL: &[Field] = &[
    hex("counters", 0, 7),
    hex("fixed", 32, 35),
    bit("perf-metrics", 48),
    bit("trace-topa", 55),
    bit("lbr-frozen", 58),
    bit("counters-frozen", 59),
    bit("uncore-overflow", 61),
    bit("buffer-overflow", 62),
    bit("changed", 63),
];

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::many(0xc1, 8, 1, SDM, &[bits("count", 0, 47)]),
    Layout::many(
        0x186,
        8,
        1,
        SDM,
        &[
            hex("event", 0, 7),
            hex("umask", 8, 15),
            bit("user", 16),
            bit("os", 17),
            bit("edge", 18),
            bit("pin-control", 19),
            bit("int", 20),
            bit("any-thread", 21),
            bit("enable", 22),
            bit("invert", 23),
            bits("cmask", 24, 31),
        ],
    ),
    Layout::many(0x309, 4, 1, SDM, &[bits("count", 0, 47)]),
    Layout::one(
        0x345,
        SDM,
        &[
            bits("lbr-format", 0, 5),
            bit("pebs-trap", 6),
            bit("pebs-archreg", 7),
            bits("pebs-format", 8, 11),
            bit("freeze-while-smm", 12),
            bit("full-width-write", 13),
            bit("pebs-baseline", 14),
            bit("perf-metrics", 15),
            bit("pebs-to-pt", 16),
        ],
    ),
    Layout::one(
        0x38d,
        SDM,
        &[
            bits("fixed0-enable", 0, 1),
            bit("fixed0-pmi", 3),
            bits("fixed1-enable", 4, 5),
            bit("fixed1-pmi", 7),
            bits("fixed2-enable", 8, 9),
            bit("fixed2-pmi", 11),
            bits("fixed3-enable", 12, 13),
            bit("fixed3-pmi", 15),
        ],
    ),
    Layout::one(0x38e, SDM, GLOBAL),
    Layout::one(0x38f, SDM, GLOBAL),
    Layout::one(0x390, SDM, GLOBAL),
    Layout::one(0x3f1, SDM, &[hex("counters", 0, 7), hex("fixed", 32, 35)]),
    Layout::many(0x4c1, 8, 1, SDM, &[bits("count", 0, 47)]),
    Layout::many(0xc001_0000, 4, 1, APM, AMD_SELECT),
    Layout::many(0xc001_0004, 4, 1, APM, &[bits("count", 0, 47)]),
    Layout::many(0xc001_0200, 6, 2, APM, AMD_SELECT),
    Layout::many(0xc001_0201, 6, 2, APM, &[bits("count", 0, 47)]),
];
