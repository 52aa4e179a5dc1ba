//! The built-in CPU models: what they have is there, nothing else is, and Linux does not complain.

use guest_tests::guest::{Answer, Step};
use guest_tests::kernel::Flavour;
use libtest_mimic::{Failed, Trial};

use super::baseline;
use super::shared::{Boot, Case, Runs, Seen, expect, expect_no_complaint};

/// This module's tests.
pub(super) fn trials() -> Vec<Trial> {
    [&ICE_LAKE, &HASWELL, &ZEN_3, &HASWELL_FULL]
        .into_iter()
        .flat_map(Boot::trials)
        .collect()
}

/// `MSR_K7_HWCR`, which KVM has for every guest, whoever makes its CPU.
const HWCR: u32 = 0xc001_0015;

static ICE_LAKE: Boot = Boot {
    kernel: Flavour::Cloud,
    config: "model = \"icelake-server\"\n[vm]\nmemory = 256\n",
    files: |_| Ok(()),
    cases: &[
        Case {
            name: "an_ice_lake_guest_reads_what_the_baseline_says_and_nothing_else",
            steps: loaded_scan,
            check: |seen| {
                seen.done(0)?;
                baseline::compare(
                    seen.release,
                    &seen.answers[1..],
                    include_str!("../../baselines/icelake-server.txt"),
                )
            },
        },
        Case {
            name: "an_msr_that_kvm_has_and_the_model_lacks_is_eio_under_the_ice_lake_model",
            steps: || {
                vec![
                    Step::read_msr(0, HWCR),
                    Step::write_msr(0, HWCR, 0),
                    Step::read_msr(0, 0x11),
                ]
            },
            check: |seen| {
                // What the host has is proven by the Zen 3 model, which leaves the same register to KVM.
                let refused = Answer::Errno(libc::EIO);
                expect("answers", seen.answers.as_slice(), &[&refused; 3])
            },
        },
        Case {
            name: "linux_complains_of_no_msr_under_the_ice_lake_model",
            steps: log,
            check: no_complaint,
        },
    ],
    seen: Runs::new(),
};

static HASWELL: Boot = Boot {
    kernel: Flavour::Cloud,
    config: "model = \"haswell-client\"\n[vm]\nmemory = 256\n",
    files: |_| Ok(()),
    cases: &[
        Case {
            name: "a_haswell_guest_reads_what_the_baseline_says_and_nothing_else",
            steps: loaded_scan,
            check: |seen| {
                seen.done(0)?;
                baseline::compare(
                    seen.release,
                    &seen.answers[1..],
                    include_str!("../../baselines/haswell-client.txt"),
                )
            },
        },
        Case {
            name: "linux_complains_of_no_msr_under_the_haswell_model",
            steps: log,
            check: no_complaint,
        },
    ],
    seen: Runs::new(),
};

static ZEN_3: Boot = Boot {
    kernel: Flavour::Cloud,
    config: "model = \"zen3-server\"\n[vm]\nmemory = 256\n",
    files: |_| Ok(()),
    cases: &[
        Case {
            name: "a_zen_3_guest_reads_what_the_baseline_says_and_nothing_else",
            steps: loaded_scan,
            check: |seen| {
                seen.done(0)?;
                baseline::compare(
                    seen.release,
                    &seen.answers[1..],
                    include_str!("../../baselines/zen3-server.txt"),
                )
            },
        },
        Case {
            name: "an_msr_that_the_zen_3_model_leaves_to_kvm_is_readable",
            steps: || vec![Step::read_msr(0, HWCR)],
            check: |seen| seen.value(0).map(drop),
        },
        Case {
            name: "linux_complains_of_no_msr_under_the_zen_3_model",
            steps: log,
            check: no_complaint,
        },
    ],
    seen: Runs::new(),
};

static HASWELL_FULL: Boot = Boot {
    kernel: Flavour::Full,
    config: "model = \"haswell-client\"\n[vm]\nmemory = 512\n",
    files: |_| Ok(()),
    cases: &[Case {
        name: "the_full_kernel_complains_of_no_msr_under_the_haswell_model",
        steps: log,
        check: no_complaint,
    }],
    seen: Runs::new(),
};

fn loaded_scan() -> Vec<Step> {
    let mut steps = vec![Step::load_module("msr")];
    steps.extend(baseline::scan());
    steps
}

pub(super) fn log() -> Vec<Step> {
    vec![Step::KernelLog]
}

pub(super) fn no_complaint(seen: &Seen<'_>) -> Result<(), Failed> {
    expect_no_complaint(&seen.text(0)?)
}
