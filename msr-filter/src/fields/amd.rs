//! AMD's registers (APM volume 2, appendix A; PPR for AMD Family 17h Model 31h and for Family 19h Model 01h,
//! section 2.1.14 "MSR Registers").

use super::Show::Fraction;
use super::{Field, Layout, address, bit, bits, hex, shown};

const APM: &str = "AMD64 APM volume 2, appendix A";
const PPR: &str = "AMD PPR Family 17h Model 31h, section \"MSR Registers\"";
const PPR19: &str = "AMD PPR Family 19h Model 01h, section \"MSR Registers\"";

const IORR_MASK: &[Field] = &[bit("valid", 11), address("mask", 12, 51)];

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::one(0xc000_00e7, APM, &[bits("mperf", 0, 63)]),
    Layout::one(0xc000_00e8, APM, &[bits("aperf", 0, 63)]),
    Layout::one(0xc000_00e9, PPR, &[bits("instructions", 0, 63)]),
    Layout::one(
        0xc000_0104,
        "AMD64 APM volume 2, section 15.30.5",
        &[hex("fraction", 0, 31), bits("integer", 32, 39)],
    ),
    Layout::one(
        0xc001_0010,
        APM,
        &[
            bit("mtrr-fix-dram", 18),
            bit("mtrr-fix-dram-mod", 19),
            bit("mtrr-var-dram", 20),
            bit("tom2", 21),
            bit("tom2-force-wb", 22),
            bit("smee", 23),
            bit("snp", 24),
            bit("vmpl", 25),
            bit("hmke", 26),
        ],
    ),
    Layout::one(
        0xc001_0015,
        PPR,
        &[
            bit("smm-lock", 0),
            bit("tlb-cache-dis", 3),
            bit("invd-wbinvd", 4),
            bit("allow-ferr-on-ne", 8),
            bit("mon-mwait-dis", 9),
            bit("mon-mwait-user", 10),
            bit("smi-sp-cyc-dis", 13),
            bit("rsm-sp-cyc-dis", 14),
            bit("wrap32-dis", 17),
            bit("mc-status-wr-en", 18),
            bit("io-cfg-gp-fault", 20),
            bit("lock-tsc-to-currp0", 21),
            bit("tsc-freq-sel", 24),
            bit("cpb-dis", 25),
            bit("eff-freq-cnt-mwait", 26),
            bit("eff-freq-ro-lock", 27),
            bit("irperf-en", 30),
            bit("cpuid-user-dis", 35),
        ],
    ),
    Layout::one(
        0xc001_0016,
        APM,
        &[
            bit("wr-dram", 3),
            bit("rd-dram", 4),
            address("base", 12, 51),
        ],
    ),
    Layout::one(0xc001_0017, APM, IORR_MASK),
    Layout::one(
        0xc001_0018,
        APM,
        &[
            bit("wr-dram", 3),
            bit("rd-dram", 4),
            address("base", 12, 51),
        ],
    ),
    Layout::one(0xc001_0019, APM, IORR_MASK),
    Layout::one(0xc001_001a, APM, &[address("top-of-memory", 23, 51)]),
    Layout::one(0xc001_001d, APM, &[address("top-of-memory2", 23, 51)]),
    Layout::one(
        0xc001_001f,
        "AMD BKDG Family 10h, \"NB_CFG1\"; zero or absent since Family 17h",
        &[bit("cf8-ext-cfg", 46), bit("init-apic-id-cpuid-lo", 54)],
    ),
    Layout::one(
        0xc001_0020,
        "AMD64 APM volume 2, \"Microcode Patches\"",
        &[hex("patch-address", 0, 63)],
    ),
    Layout::one(
        0xc001_0055,
        "AMD BKDG Family 10h, \"Interrupt Pending Message\"",
        &[
            hex("io-port", 0, 15),
            hex("io-data", 16, 23),
            bit("int-pending", 25),
            bit("smi-on-cmp-halt", 27),
            bit("c1e-on-cmp-halt", 28),
        ],
    ),
    Layout::one(
        0xc001_0058,
        PPR,
        &[
            bit("enable", 0),
            bits("bus-range", 2, 5),
            address("base", 20, 51),
        ],
    ),
    Layout::one(
        0xc001_0061,
        PPR,
        &[bits("current-limit", 0, 2), bits("maximum", 4, 6)],
    ),
    Layout::one(0xc001_0062, PPR, &[bits("command", 0, 2)]),
    Layout::one(0xc001_0063, PPR, &[bits("current", 0, 2)]),
    Layout::many(
        0xc001_0064,
        8,
        1,
        PPR,
        &[
            bits("fid", 0, 7),
            bits("did", 8, 13),
            bits("vid", 14, 21),
            bits("idd-value", 22, 29),
            bits("idd-div", 30, 31),
            bit("enable", 63),
        ],
    ),
    Layout::one(0xc001_0073, PPR, &[hex("io-base", 0, 15)]),
    Layout::one(0xc001_0111, APM, &[address("base", 17, 31)]),
    Layout::one(0xc001_0112, APM, &[address("base", 17, 51)]),
    Layout::one(
        0xc001_0113,
        APM,
        &[
            bit("a-valid", 0),
            bit("t-valid", 1),
            bit("a-close", 2),
            bit("t-close", 3),
            bits("a-type", 8, 10),
            bits("t-type", 12, 14),
            address("mask", 17, 51),
        ],
    ),
    Layout::one(
        0xc001_0114,
        "AMD64 APM volume 2, section 15.30.1",
        &[
            bit("dpd", 0),
            bit("r-init", 1),
            bit("dis-a20m", 2),
            bit("lock", 3),
            bit("svm-disable", 4),
        ],
    ),
    Layout::one(
        0xc001_0115,
        "AMD64 APM volume 2, section 15.30.3",
        &[hex("ignne", 0, 31)],
    ),
    Layout::one(
        0xc001_0117,
        "AMD64 APM volume 2, section 15.30.4",
        &[address("hsave", 12, 51)],
    ),
    Layout::one(
        0xc001_011f,
        "AMD64 APM volume 2, \"Speculation Control MSRs\"",
        &[bit("ssbd", 2)],
    ),
    Layout::one(
        0xc001_0131,
        "AMD64 APM volume 2, sections 15.34 to 15.36",
        &[
            bit("sev", 0),
            bit("sev-es", 1),
            bit("sev-snp", 2),
            bit("vtom", 3),
            bit("reflect-vc", 4),
            bit("restricted-injection", 5),
            bit("alternate-injection", 6),
            bit("debug-swap", 7),
        ],
    ),
    Layout::one(
        0xc001_0140,
        "AMD64 APM volume 2, appendix A: OSVW_ID_Length",
        &[bits("length", 0, 15)],
    ),
    Layout::one(
        0xc001_0141,
        "AMD64 APM volume 2, appendix A: OSVW Status",
        &[hex("status", 0, 63)],
    ),
    Layout::one(
        0xc001_0299,
        PPR,
        &[
            shown("power-unit", 0, 3, Fraction("W")),
            shown("energy-unit", 8, 12, Fraction("J")),
            shown("time-unit", 16, 19, Fraction("s")),
        ],
    ),
    Layout::one(0xc001_029a, PPR, &[bits("energy", 0, 31)]),
    Layout::one(0xc001_029b, PPR, &[bits("energy", 0, 31)]),
    Layout::one(
        0xc001_02b0,
        PPR19,
        &[
            bits("lowest", 0, 7),
            bits("lowest-nonlinear", 8, 15),
            bits("nominal", 16, 23),
            bits("highest", 24, 31),
        ],
    ),
    Layout::one(0xc001_02b1, PPR19, &[bit("cppc-enable", 0)]),
    Layout::one(
        0xc001_02b3,
        PPR19,
        &[
            bits("maximum", 0, 7),
            bits("minimum", 8, 15),
            bits("desired", 16, 23),
            bits("energy-preference", 24, 31),
        ],
    ),
    Layout::one(0xc001_02f0, PPR, &[bit("lock", 0), bit("enable", 1)]),
    Layout::one(0xc001_02f1, PPR, &[hex("ppin", 0, 63)]),
    Layout::many(
        0xc001_1002,
        4,
        1,
        "AMD PPR Family 17h Model 31h: CPUID feature overrides",
        &[hex("ecx-or-ebx", 0, 31), hex("edx-or-eax", 32, 63)],
    ),
    Layout::one(
        0xc001_1020,
        "AMD PPR Family 17h Model 31h: LS_CFG; bit 10 is SSBD on Family 17h (Linux arch/x86/kernel/cpu/amd.c)",
        &[bit("ssbd-family17h", 10)],
    ),
    Layout::one(
        0xc001_1029,
        "AMD64 APM volume 2, \"LFENCE serialization\": DE_CFG",
        &[bit("lfence-serialize", 1), bit("zen2-fp-backup-fix", 9)],
    ),
];
