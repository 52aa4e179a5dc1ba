//! Frequency, temperature and power as Intel has them (SDM volume 3, chapter "Power and Thermal Management";
//! the model-specific ones in volume 4, table 2-20 "Intel microarchitecture code name Sandy Bridge" and table 2-39,
//! which later generations keep).

use super::Show::{Fraction, Names};
use super::{Field, Layout, bit, bits, shown, unit};

const THERMAL: &str = "Intel SDM volume 3, chapter \"Power and Thermal Management\"";
const RAPL: &str =
    "Intel SDM volume 3, section \"Platform Specific Power Management Support\" (RAPL)";
const MODEL: &str = "Intel SDM volume 4, tables 2-20 and 2-39";

const THERM_STATUS: &[Field] = &[
    bit("thermal", 0),
    bit("thermal-log", 1),
    bit("prochot", 2),
    bit("prochot-log", 3),
    bit("critical", 4),
    bit("critical-log", 5),
    bit("threshold1", 6),
    bit("threshold1-log", 7),
    bit("threshold2", 8),
    bit("threshold2-log", 9),
    bit("power-limit", 10),
    bit("power-limit-log", 11),
    bit("current-limit", 12),
    bit("current-limit-log", 13),
    bit("cross-domain-limit", 14),
    bit("cross-domain-limit-log", 15),
    unit("below-target", 16, 22, "C"),
    unit("resolution", 27, 30, "C"),
    bit("valid", 31),
];

const THERM_INTERRUPT: &[Field] = &[
    bit("high", 0),
    bit("low", 1),
    bit("prochot", 2),
    bit("forcepr", 3),
    bit("critical", 4),
    unit("threshold1", 8, 14, "C"),
    bit("threshold1-enable", 15),
    unit("threshold2", 16, 22, "C"),
    bit("threshold2-enable", 23),
    bit("power-limit", 24),
    bit("hw-feedback", 25),
];

const POWER_LIMIT: &[Field] = &[
    bits("limit1", 0, 14),
    bit("enable1", 15),
    bit("clamp1", 16),
    bits("window1", 17, 23),
    bits("limit2", 32, 46),
    bit("enable2", 47),
    bit("clamp2", 48),
    bits("window2", 49, 55),
    bit("lock", 63),
];

/// The plane limits PP0 and PP1, and DRAM's: one limit.
const PLANE_LIMIT: &[Field] = &[
    bits("limit", 0, 14),
    bit("enable", 15),
    bit("clamp", 16),
    bits("window", 17, 23),
    bit("lock", 31),
];

const ENERGY: &[Field] = &[bits("energy", 0, 31)];

const POWER_INFO: &[Field] = &[
    bits("thermal-spec-power", 0, 14),
    bits("minimum-power", 16, 30),
    bits("maximum-power", 32, 46),
    bits("maximum-window", 48, 53),
];

const PERF_STATUS: &[Field] = &[bits("throttled-time", 0, 31)];

const HWP_REQUEST: &[Field] = &[
    bits("minimum", 0, 7),
    bits("maximum", 8, 15),
    bits("desired", 16, 23),
    bits("energy-preference", 24, 31),
    bits("activity-window", 32, 41),
    bit("package-control", 42),
];

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::one(
        0xce,
        MODEL,
        &[
            bits("max-non-turbo", 8, 15),
            bit("ppin-cap", 23),
            bit("ratio-programmable", 28),
            bit("tdp-programmable", 29),
            bit("tjoffset-programmable", 30),
            bit("cpuid-faulting", 31),
            bits("config-tdp-levels", 33, 34),
            bits("max-efficiency", 40, 47),
            bits("minimum", 48, 55),
        ],
    ),
    Layout::one(
        0xe2,
        MODEL,
        &[
            bits("pkg-cstate-limit", 0, 3),
            bit("io-mwait-redirection", 10),
            bit("lock", 15),
            bit("c3-auto-demotion", 25),
            bit("c1-auto-demotion", 26),
            bit("c3-undemotion", 27),
            bit("c1-undemotion", 28),
            bit("pkg-demotion", 29),
            bit("pkg-undemotion", 30),
        ],
    ),
    Layout::one(0x198, THERMAL, &[bits("ratio", 8, 15), bits("vid", 32, 47)]),
    Layout::one(
        0x199,
        THERMAL,
        &[bits("ratio", 8, 15), bit("turbo-disengage", 32)],
    ),
    Layout::one(0x19a, THERMAL, &[bits("duty", 0, 3), bit("enable", 4)]),
    Layout::one(0x19b, THERMAL, THERM_INTERRUPT),
    Layout::one(0x19c, THERMAL, THERM_STATUS),
    Layout::one(
        0x1a2,
        MODEL,
        &[
            unit("tcc-activation", 16, 23, "C"),
            unit("tcc-offset", 24, 29, "C"),
        ],
    ),
    Layout::one(
        0x1aa,
        MODEL,
        &[
            bit("eist-hw-coordination-disable", 0),
            bit("hwp-out-of-band", 8),
            bit("power-budget-from-pcode", 18),
        ],
    ),
    Layout::one(
        0x1ad,
        MODEL,
        &[
            bits("turbo0", 0, 7),
            bits("turbo1", 8, 15),
            bits("turbo2", 16, 23),
            bits("turbo3", 24, 31),
            bits("turbo4", 32, 39),
            bits("turbo5", 40, 47),
            bits("turbo6", 48, 55),
            bits("turbo7", 56, 63),
        ],
    ),
    Layout::one(0x1b1, THERMAL, THERM_STATUS),
    Layout::one(0x1b2, THERMAL, THERM_INTERRUPT),
    Layout::one(
        0x1fc,
        MODEL,
        &[
            bit("prochot-bidirectional", 0),
            bit("c1e", 1),
            bit("sapm-imc-c2", 2),
            bit("race-to-halt-disable", 20),
        ],
    ),
    Layout::many(0x3f8, 3, 1, MODEL, &[bits("residency", 0, 63)]),
    Layout::many(0x3fc, 3, 1, MODEL, &[bits("residency", 0, 63)]),
    Layout::one(0x60d, MODEL, &[bits("residency", 0, 63)]),
    Layout::many(
        0x60a,
        3,
        1,
        MODEL,
        &[
            bits("limit", 0, 9),
            shown(
                "unit",
                10,
                12,
                Names(&[
                    (0, "1ns"),
                    (1, "32ns"),
                    (2, "1024ns"),
                    (3, "32768ns"),
                    (4, "1048576ns"),
                    (5, "33554432ns"),
                ]),
            ),
            bit("valid", 15),
        ],
    ),
    Layout::one(
        0x606,
        RAPL,
        &[
            shown("power-unit", 0, 3, Fraction("W")),
            shown("energy-unit", 8, 12, Fraction("J")),
            shown("time-unit", 16, 19, Fraction("s")),
        ],
    ),
    Layout::one(0x610, RAPL, POWER_LIMIT),
    Layout::one(0x611, RAPL, ENERGY),
    Layout::one(0x613, RAPL, PERF_STATUS),
    Layout::one(0x614, RAPL, POWER_INFO),
    Layout::one(0x618, RAPL, PLANE_LIMIT),
    Layout::one(0x619, RAPL, ENERGY),
    Layout::one(0x61b, RAPL, PERF_STATUS),
    Layout::one(0x61c, RAPL, POWER_INFO),
    Layout::one(
        0x620,
        MODEL,
        &[bits("max-ratio", 0, 6), bits("min-ratio", 8, 14)],
    ),
    Layout::one(0x638, RAPL, PLANE_LIMIT),
    Layout::one(0x639, RAPL, ENERGY),
    Layout::one(0x63a, RAPL, &[bits("policy", 0, 4)]),
    Layout::one(0x640, RAPL, PLANE_LIMIT),
    Layout::one(0x641, RAPL, ENERGY),
    Layout::one(0x642, RAPL, &[bits("policy", 0, 4)]),
    Layout::one(0x648, MODEL, &[bits("tdp-ratio", 0, 7)]),
    Layout::many(
        0x649,
        2,
        1,
        MODEL,
        &[
            bits("package-tdp", 0, 14),
            bits("ratio", 16, 23),
            bits("maximum-power", 32, 46),
            bits("minimum-power", 47, 62),
        ],
    ),
    Layout::one(0x64b, MODEL, &[bits("level", 0, 1), bit("lock", 31)]),
    Layout::one(
        0x64c,
        MODEL,
        &[bits("max-non-turbo", 0, 7), bit("lock", 31)],
    ),
    Layout::one(0x64d, RAPL, ENERGY),
    Layout::one(
        0x64f,
        MODEL,
        &[
            bit("prochot", 0),
            bit("thermal", 1),
            bit("residency", 4),
            bit("average-thermal", 5),
            bit("vr-thermal", 6),
            bit("vr-tdc", 7),
            bit("other", 8),
            bit("pl1", 10),
            bit("pl2", 11),
            bit("max-turbo", 12),
            bit("transition-attenuation", 13),
        ],
    ),
    Layout::one(0x770, THERMAL, &[bit("hwp-enable", 0)]),
    Layout::one(
        0x771,
        THERMAL,
        &[
            bits("highest", 0, 7),
            bits("guaranteed", 8, 15),
            bits("most-efficient", 16, 23),
            bits("lowest", 24, 31),
        ],
    ),
    Layout::one(0x772, THERMAL, HWP_REQUEST),
    Layout::one(
        0x773,
        THERMAL,
        &[
            bit("guaranteed-change", 0),
            bit("excursion", 1),
            bit("highest-change", 2),
        ],
    ),
    Layout::one(0x774, THERMAL, HWP_REQUEST),
    Layout::one(
        0x777,
        THERMAL,
        &[
            bit("guaranteed-changed", 0),
            bit("excursion", 2),
            bit("highest-changed", 3),
        ],
    ),
];
