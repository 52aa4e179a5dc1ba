//! The registers of hypervisors (Documentation/virt/kvm/x86/msr.rst; Hyper-V Top Level Functional Specification).

use super::{Field, Layout, address, bit, bits, hex};

const KVM: &str = "Documentation/virt/kvm/x86/msr.rst";
const TLFS: &str = "Hyper-V Top Level Functional Specification";

const ENABLED_ADDRESS: &[Field] = &[bit("enable", 0), hex("address", 1, 63)];

pub(super) const LAYOUTS: &[Layout] = &[
    Layout::one(0x11, KVM, &[hex("address", 0, 63)]),
    Layout::one(0x12, KVM, ENABLED_ADDRESS),
    Layout::one(0x4b56_4d00, KVM, &[hex("address", 0, 63)]),
    Layout::one(0x4b56_4d01, KVM, ENABLED_ADDRESS),
    Layout::one(
        0x4b56_4d02,
        KVM,
        &[
            bit("enable", 0),
            bit("send-always", 1),
            bit("as-vmexit", 2),
            bit("by-interrupt", 3),
            address("address", 6, 63),
        ],
    ),
    Layout::one(
        0x4b56_4d03,
        KVM,
        &[bit("enable", 0), address("address", 6, 63)],
    ),
    Layout::one(
        0x4b56_4d04,
        KVM,
        &[bit("enable", 0), address("address", 2, 63)],
    ),
    Layout::one(0x4b56_4d05, KVM, &[bit("host-poll", 0)]),
    Layout::one(0x4b56_4d06, KVM, &[bits("vector", 0, 7)]),
    Layout::one(0x4b56_4d07, KVM, &[bit("ready", 0)]),
    Layout::one(0x4b56_4d08, KVM, &[bit("live-migration", 0)]),
    Layout::one(
        0x4000_0000,
        TLFS,
        &[
            bits("build", 0, 15),
            bits("service", 16, 23),
            bits("minor", 24, 31),
            bits("major", 32, 39),
            bits("os-id", 40, 47),
            hex("vendor", 48, 62),
            bit("open-source", 63),
        ],
    ),
    Layout::one(
        0x4000_0001,
        TLFS,
        &[bit("enable", 0), bit("locked", 1), address("page", 12, 63)],
    ),
    Layout::one(0x4000_0002, TLFS, &[bits("vp-index", 0, 31)]),
    Layout::one(
        0x4000_0021,
        TLFS,
        &[bit("enable", 0), address("page", 12, 63)],
    ),
    Layout::one(0x4000_0022, TLFS, &[bits("hertz", 0, 63)]),
    Layout::one(0x4000_0023, TLFS, &[bits("hertz", 0, 63)]),
    Layout::one(
        0x4000_0073,
        TLFS,
        &[bit("enable", 0), address("page", 12, 63)],
    ),
];
