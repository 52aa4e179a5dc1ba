//! A Zen 3 server with two CPUs, under Debian's full kernel: microcode, RAPL, PPIN.

use guest_tests::guest::{AmdUpdate, Answer, Initrd, Step};
use guest_tests::kernel::Flavour;
use libtest_mimic::{Failed, Trial};

use super::models::{log, no_complaint};
use super::shared::{
    Boot, Case, Runs, Seen, expect, expect_about, expect_early_update, expect_in, watts,
};

/// This module's tests.
pub(super) fn trials() -> Vec<Trial> {
    BOOT.trials()
}

const CONFIG: &str = r#"
    model = "zen3-server"

    [vm]
    cpus = 2
    memory = 512

    # The addresses of updates that processes give are their own: with SMAP nothing the kernel does may read there.
    [cpu]
    hide = ["smap"]

    [[msr.device]]
    type = "rapl"
    package_watts = 60.0
    idle_watts = 5.0
    busy_watts = 22.5
"#;

// Half as much again: an idle guest wakes up now and then, which under emulation takes a CPU a few per cent of its time.
const IDLE_WATTS: f64 = 60.0 + 2.0 * 5.0;
// One CPU of the two: a busy host may have no second one to give.
const BUSY_WATTS: f64 = 60.0 + 5.0 + 22.5;

/// CPUID.1:EAX of family 25, model 1, stepping 1, and the id that stands for it in patches.
const SIGNATURE: u32 = 0x00a0_0f11;
const ID: u16 = 0xa011;
/// Newer than the model's revision.
const EARLY: u32 = 0x0a00_11f0;
/// Newer still.
const LATE: u32 = 0x0a00_11f8;

static BOOT: Boot = Boot {
    kernel: Flavour::Full,
    config: CONFIG,
    files,
    cases: &[
        Case {
            name: "an_early_amd_update_raises_the_revision_on_every_cpu",
            steps: || vec![Step::read_file("/proc/cpuinfo"), Step::KernelLog],
            check: early_update,
        },
        Case {
            name: "amd_updates_that_are_not_good_leave_the_revision_alone",
            steps: refused_updates,
            check: refused_updates_checked,
        },
        Case {
            name: "the_amd_ppin_is_in_sysfs",
            steps: || {
                vec![Step::read_file(
                    "/sys/devices/system/cpu/cpu1/topology/ppin",
                )]
            },
            check: |seen| expect("ppin", seen.hex(0)?, 0x02ae_8944_a625_578e),
        },
        Case {
            name: "rdmsr_sees_the_configured_power_of_an_amd_package",
            steps: energy,
            check: energy_checked,
        },
        Case {
            name: "the_full_kernel_complains_of_no_msr_under_the_zen_3_model",
            steps: log,
            check: no_complaint,
        },
    ],
    seen: Runs::new(),
};

const OTHER: &str = "/updates/other";
const OLDER: &str = "/updates/older";
const TRUNCATED: &str = "/updates/truncated";
const CHECKSUM: &str = "/updates/checksum";
const GOOD: &str = "/updates/good";

fn files(initrd: &mut Initrd) -> Result<(), Failed> {
    let patch = |revision, id| AmdUpdate { revision, id };
    initrd.early_file(
        "kernel/x86/microcode/AuthenticAMD.bin",
        &patch(EARLY, ID).container(SIGNATURE),
    );
    let good = patch(LATE, ID).bytes();
    let mut checksum = good.clone();
    // The header's checksum, of no data.
    checksum[12] = 1;
    let archive = initrd.tools()?.archive();
    for (path, bytes) in [
        (OTHER, &patch(LATE, ID + 1).bytes()[..]),
        (OLDER, &patch(EARLY - 1, ID).bytes()),
        (TRUNCATED, &good[..32]),
        (CHECKSUM, &checksum),
        (GOOD, &good),
    ] {
        archive.file(path, 0o644, bytes);
    }
    Ok(())
}

fn early_update(seen: &Seen<'_>) -> Result<(), Failed> {
    let cpuinfo = seen.text(0)?;
    let revisions: Vec<&str> = cpuinfo
        .lines()
        .filter(|line| line.starts_with("microcode"))
        .filter_map(|line| line.split(':').nth(1))
        .map(str::trim)
        .collect();
    let early = format!("{EARLY:#x}");
    let log = seen.text(1)?;
    expect(
        "microcode in /proc/cpuinfo",
        revisions,
        vec![&early, &early],
    )
    .map_err(|error| format!("{error:?}\n{log}"))?;
    let before = format!("microcode updated early to new patch_level={EARLY:#010x}");
    expect_early_update(seen, &log, &before, 0x0a00_11de, EARLY)?;
    expect_in(
        seen.stderr,
        &format!("microcode 0xa0011de -> {early}, dated 2026-03-14, 64 bytes"),
    )
}

fn load(path: &str) -> Step {
    Step::WriteMsrAddress {
        cpu: 1,
        index: 0xc001_0020,
        path: path.to_owned(),
        offset: 0,
    }
}

const REVISION: Step = Step::read_msr(1, 0x8b);

fn refused_updates() -> Vec<Step> {
    let mut steps = vec![Step::load_module("msr")];
    for path in [CHECKSUM, OTHER, OLDER, TRUNCATED] {
        steps.extend([load(path), REVISION]);
    }
    steps.extend([Step::write_msr(1, 0xc001_0020, 0x100), REVISION]);
    steps.extend([load(GOOD), REVISION]);
    steps
}

fn refused_updates_checked(seen: &Seen<'_>) -> Result<(), Failed> {
    seen.done(0)?;
    let fault = Answer::Errno(libc::EIO);
    let attempts = [
        ("bad checksum", Answer::Done, EARLY),
        ("wrong id", Answer::Done, EARLY),
        ("older revision", Answer::Done, EARLY),
        ("truncated", fault.clone(), EARLY),
        ("address not mapped", fault, EARLY),
        // By the same way, so that the refusals are the device's.
        ("good", Answer::Done, LATE),
    ];
    for (number, (what, answer, revision)) in attempts.iter().enumerate() {
        expect(what, seen.answers[1 + 2 * number], answer)?;
        expect(what, seen.value(2 + 2 * number)?, u64::from(*revision))?;
    }
    for reason in [
        "its checksum is wrong",
        "it is for another processor, 0xa012",
        "its revision 0xa0011ef is older than 0xa0011f0",
    ] {
        expect_in(seen.stderr, reason)?;
    }
    Ok(())
}

fn energy() -> Vec<Step> {
    let look = || [Step::Uptime, Step::read_msr(1, 0xc001_029b)];
    let rdmsr = |msr| Step::execute(["/bin/rdmsr", "-p", "1", msr]);
    let mut steps = vec![rdmsr("0xc0010299")];
    steps.extend(look());
    steps.push(Step::Sleep { milliseconds: 3000 });
    steps.extend(look());
    steps.push(Step::Spin {
        cpu: 1,
        milliseconds: 3000,
    });
    steps.extend(look());
    // What rdmsr reads lies between two looks of the driver's.
    steps.push(rdmsr("0xc001029b"));
    steps.extend(look());
    steps
}

fn energy_checked(seen: &Seen<'_>) -> Result<(), Failed> {
    // A unit of energy is 1/2^N J, with N in bits 12:8.
    let unit = (1u64 << (seen.hex(0)? >> 8 & 0x1f)) as f64;
    let power = |from: usize, to: usize| -> Result<f64, Failed> {
        let joules = |look: usize| Ok::<_, Failed>(seen.value(look + 1)? as f64 / unit);
        Ok(watts(
            [joules(from)?, joules(to)?],
            [seen.value(from)?, seen.value(to)?],
        ))
    };
    if !(seen.value(8)?..=seen.value(11)?).contains(&seen.hex(9)?) {
        return Err(format!("rdmsr: {:?}", seen.answers[9]).into());
    }
    let (idle, busy) = (power(1, 4)?, power(4, 7)?);
    expect_about("W of the package, idle", idle, IDLE_WATTS)?;
    expect_about("W of the package, busy", busy, BUSY_WATTS)?;
    expect_about("busy to idle", busy / idle, BUSY_WATTS / IDLE_WATTS)
}
