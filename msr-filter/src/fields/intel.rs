//! Other registers of Intel's processors (SDM volume 4, tables 2-20, 2-39 and the tables of later generations).

use super::{Layout, bit, bits, hex};

const MODEL: &str = "Intel SDM volume 4, tables 2-20 and 2-39";
const T2_2: &str = "Intel SDM volume 4, table 2-2";
const VMX: &str = "Intel SDM volume 3, appendix A \"VMX Capability Reporting Facility\"";

/// A VMX capability: what may be 0, and what may be 1.
const ALLOWED: &[super::Field] = &[hex("must-be-1", 0, 31), hex("may-be-1", 32, 63)];

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::one(
        0x33,
        MODEL,
        &[
            bit("uc-lock-gp", 28),
            bit("split-lock-ac", 29),
            bit("lock-disable", 31),
        ],
    ),
    Layout::one(0x34, MODEL, &[bits("smi-count", 0, 31)]),
    Layout::one(
        0x35,
        MODEL,
        &[bits("threads", 0, 15), bits("cores", 16, 31)],
    ),
    Layout::one(0x4e, MODEL, &[bit("lock", 0), bit("enable", 1)]),
    Layout::one(0x4f, MODEL, &[hex("ppin", 0, 63)]),
    Layout::one(
        0x7c,
        T2_2,
        &[bit("partial", 0), bit("auth-fail", 1), bit("post-bios", 3)],
    ),
    Layout::one(0x13c, MODEL, &[bits("aes-config", 0, 1)]),
    Layout::one(0x17f, MODEL, &[bit("memerror-log-enable", 1)]),
    Layout::one(
        0x1a4,
        MODEL,
        &[
            bit("l2-prefetcher-disable", 0),
            bit("l2-adjacent-disable", 1),
            bit("dcu-prefetcher-disable", 2),
            bit("dcu-ip-prefetcher-disable", 3),
        ],
    ),
    Layout::one(0xe1, T2_2, &[bit("c02-disable", 0), hex("max-time", 2, 31)]),
    Layout::one(
        0x480,
        VMX,
        &[
            hex("revision", 0, 30),
            bits("region-size", 32, 44),
            bit("32-bit-addresses", 48),
            bit("dual-monitor", 49),
            bits("memory-type", 50, 53),
            bit("ins-outs-info", 54),
            bit("true-controls", 55),
        ],
    ),
    Layout::many(0x481, 4, 1, VMX, ALLOWED),
    Layout::one(0x48b, VMX, ALLOWED),
    Layout::many(0x48d, 4, 1, VMX, ALLOWED),
    Layout::one(
        0x570,
        "Intel SDM volume 3, chapter \"Intel Processor Trace\"",
        &[
            bit("enable", 0),
            bit("cyc", 1),
            bit("os", 2),
            bit("user", 3),
            bit("cr3-filter", 7),
            bit("topa", 8),
            bit("mtc", 9),
            bit("tsc", 10),
            bit("dis-retc", 11),
            bit("branch", 13),
        ],
    ),
    Layout::one(
        0xc8f,
        "Intel SDM volume 3, section \"Cache Monitoring and Allocation\"",
        &[bits("rmid", 0, 9), bits("clos", 32, 63)],
    ),
    Layout::one(0x1c4, T2_2, &[hex("xfd", 0, 63)]),
];
