//! Machine checks (SDM volume 3, chapter "Machine-Check Architecture"; APM volume 2, chapter 9).

use super::{Layout, bit, bits, hex};

const GLOBAL: &str = "Intel SDM volume 3, section \"Machine-Check Global Control MSRs\"";
const BANK: &str = "Intel SDM volume 3, section \"Error-Reporting Register Banks\"";

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::one(
        0x179,
        GLOBAL,
        &[
            bits("banks", 0, 7),
            bit("ctl", 8),
            bit("ext", 9),
            bit("cmci", 10),
            bit("tes", 11),
            bits("ext-count", 16, 23),
            bit("ser", 24),
            bit("emc", 25),
            bit("elog", 26),
            bit("lmce", 27),
        ],
    ),
    Layout::one(
        0x17a,
        GLOBAL,
        &[
            bit("ripv", 0),
            bit("eipv", 1),
            bit("mcip", 2),
            bit("lmce", 3),
        ],
    ),
    Layout::one(0x17b, GLOBAL, &[hex("enable", 0, 63)]),
    Layout::many(
        0x280,
        32,
        1,
        BANK,
        &[bits("threshold", 0, 14), bit("cmci-enable", 30)],
    ),
    Layout::many(0x400, 32, 4, BANK, &[hex("enable", 0, 63)]),
    Layout::many(
        0x401,
        32,
        4,
        BANK,
        &[
            hex("mca-code", 0, 15),
            hex("model-code", 16, 31),
            bits("corrected-count", 38, 52),
            bit("ar", 55),
            bit("s", 56),
            bit("pcc", 57),
            bit("addrv", 58),
            bit("miscv", 59),
            bit("en", 60),
            bit("uc", 61),
            bit("over", 62),
            bit("val", 63),
        ],
    ),
    Layout::many(0x402, 32, 4, BANK, &[hex("address", 0, 63)]),
    Layout::many(
        0x403,
        32,
        4,
        BANK,
        &[
            bits("address-lsb", 0, 5),
            bits("address-mode", 6, 8),
            hex("misc", 9, 63),
        ],
    ),
];
