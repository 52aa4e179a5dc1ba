//! An Ice Lake server with two CPUs, under Debian's full kernel: microcode, RAPL, thermal, PPIN, and the tools.

use guest_tests::assets;
use guest_tests::guest::{Answer, Folder, INTEL_HEADER, Initrd, IntelUpdate, Step};
use guest_tests::kernel::Flavour;
use libtest_mimic::{Failed, Trial};

use super::models::{log, no_complaint};
use super::shared::{
    Boot, Case, Runs, Seen, expect, expect_about, expect_early_update, expect_in, watts,
};

/// This module's tests.
pub(super) fn trials() -> Vec<Trial> {
    let mut trials = vec![Trial::test(
        "devices::the_intel_updates_of_these_tests_are_real_to_iucode_tool",
        iucode_tool_lists_the_update,
    )];
    trials.extend(BOOT.trials());
    trials
}

/// The model, with power and temperature that show clearly.
const CONFIG: &str = r#"
    model = "icelake-server"

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

    [[msr.device]]
    type = "thermal"
    source = "constant"
    celsius = 47.0
"#;

// Half as much again: an idle guest wakes up now and then, which under emulation takes a CPU a few per cent of its time.
const IDLE_WATTS: f64 = 60.0 + 2.0 * 5.0;
// One CPU of the two: a busy host may have no second one to give.
const BUSY_WATTS: f64 = 60.0 + 5.0 + 22.5;
/// The model's.
const DRAM_WATTS: f64 = 12.0;

const SIGNATURE: u32 = 0x606a6;
/// Platform 0 only.
const FLAGS: u32 = 1;
/// Newer than the model's revision.
const EARLY: u32 = 0x0d00_03f0;
/// Newer still.
const LATE: u32 = 0x0d00_03f8;

const fn update(revision: u32) -> IntelUpdate {
    IntelUpdate {
        revision,
        signature: SIGNATURE,
        flags: FLAGS,
    }
}

static BOOT: Boot = Boot {
    kernel: Flavour::Full,
    config: CONFIG,
    files,
    cases: &[
        Case {
            name: "an_early_intel_update_raises_the_revision_on_every_cpu",
            steps: || vec![Step::read_file("/proc/cpuinfo"), Step::KernelLog],
            check: early_update,
        },
        Case {
            name: "intel_updates_that_are_not_good_leave_the_revision_alone",
            steps: refused_updates,
            check: refused_updates_checked,
        },
        Case {
            name: "the_ppin_is_in_sysfs",
            steps: || {
                vec![Step::read_file(
                    "/sys/devices/system/cpu/cpu1/topology/ppin",
                )]
            },
            check: |seen| expect("ppin", seen.hex(0)?, 0x2b7e_1516_28ae_d2a6),
        },
        Case {
            name: "intel_rapl_msr_sees_the_configured_power_idle_and_busy",
            steps: energy,
            check: energy_checked,
        },
        Case {
            name: "power_limits_that_are_written_read_back",
            steps: power_limits,
            check: power_limits_checked,
        },
        Case {
            name: "x86_pkg_temp_thermal_reads_the_configured_temperature",
            steps: || {
                vec![
                    Step::load_module("x86_pkg_temp_thermal"),
                    Step::read_file("/sys/class/thermal/thermal_zone0/type"),
                    Step::read_file("/sys/class/thermal/thermal_zone0/temp"),
                ]
            },
            check: |seen| {
                seen.done(0)?;
                expect("type", seen.text(1)?.trim(), "x86_pkg_temp")?;
                expect("millidegrees", seen.number(2)?, 47_000)
            },
        },
        Case {
            name: "rdmsr_and_wrmsr_agree_with_the_devices_on_every_cpu",
            steps: tools,
            check: tools_checked,
        },
        Case {
            name: "turbostat_prints_frequencies_temperature_and_power",
            steps: || {
                vec![Step::execute([
                    "/bin/turbostat",
                    "--interval",
                    "1",
                    "--num_iterations",
                    "1",
                ])]
            },
            check: turbostat,
        },
        Case {
            name: "the_full_kernel_complains_of_no_msr_under_the_ice_lake_model",
            steps: log,
            check: no_complaint,
        },
    ],
    seen: Runs::new(),
};

fn files(initrd: &mut Initrd) -> Result<(), Failed> {
    let good = update(LATE).bytes();
    let mut bad_checksum = good.clone();
    bad_checksum[100] ^= 1;
    let other = IntelUpdate {
        signature: SIGNATURE + 1,
        ..update(LATE)
    };
    initrd.early_file(
        "kernel/x86/microcode/GenuineIntel.bin",
        &update(EARLY).bytes(),
    );
    let archive = initrd.tools()?.archive();
    for (path, bytes) in [
        (CHECKSUM, &bad_checksum[..]),
        (OTHER, &other.bytes()),
        (OLDER, &update(EARLY - 1).bytes()),
        (TRUNCATED, &good[..1024]),
        (GOOD, &good),
    ] {
        archive.file(path, 0o644, bytes);
    }
    Ok(())
}

const CHECKSUM: &str = "/updates/checksum";
const OTHER: &str = "/updates/other";
const OLDER: &str = "/updates/older";
const TRUNCATED: &str = "/updates/truncated";
const GOOD: &str = "/updates/good";

fn iucode_tool_lists_the_update() -> Result<(), Failed> {
    let folder = Folder::new()?;
    for revision in [EARLY, LATE] {
        let file = folder.file("update", update(revision).bytes())?;
        let mut command = assets::tool_command("iucode_tool")?;
        let output = command.args(["-tb", "-L"]).arg(file).output()?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() {
            return Err(format!("{}\n{said}", output.status).into());
        }
        let expected =
            format!("sig 0x000606a6, pf_mask 0x01, 2026-03-14, rev {revision:#x}, size 2048");
        expect_in(&said, &expected)?;
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
    expect(
        "microcode in /proc/cpuinfo",
        revisions,
        vec![&early, &early],
    )?;
    let log = seen.text(1)?;
    let before = format!("microcode updated early to revision {early}, date = 2026-03-14");
    expect_early_update(seen, &log, &before, 0x0d00_03d1, EARLY)?;
    expect_in(
        seen.stderr,
        &format!("microcode 0xd0003d1 -> {early}, dated 2026-03-14, 2048 bytes"),
    )
}

/// Byte 48 of each is what the loader gives the address of.
fn load(path: &str) -> Step {
    Step::WriteMsrAddress {
        cpu: 1,
        index: 0x79,
        path: path.to_owned(),
        offset: INTEL_HEADER,
    }
}

const REVISION: Step = Step::read_msr(1, 0x8b);

fn refused_updates() -> Vec<Step> {
    let mut steps = vec![Step::load_module("msr")];
    for path in [CHECKSUM, OTHER, OLDER, TRUNCATED] {
        steps.extend([load(path), REVISION]);
    }
    // Nothing is mapped in the first page, nor where an address is not canonical, nor at the end of everything.
    for address in [0x100, 0x8000_0000_0000_0000, u64::MAX - 7] {
        steps.extend([Step::write_msr(1, 0x79, address), REVISION]);
    }
    steps.extend([load(GOOD), REVISION]);
    steps
}

fn refused_updates_checked(seen: &Seen<'_>) -> Result<(), Failed> {
    seen.done(0)?;
    let fault = Answer::Errno(libc::EIO);
    let attempts = [
        ("bad checksum", Answer::Done, EARLY),
        ("wrong signature", Answer::Done, EARLY),
        ("older revision", Answer::Done, EARLY),
        ("truncated", fault.clone(), EARLY),
        ("address not mapped", fault.clone(), EARLY),
        ("address not canonical", fault.clone(), EARLY),
        ("address at the end", fault, EARLY),
        // By the same way, so that the refusals are the device's.
        ("good", Answer::Done, LATE),
    ];
    for (number, (what, answer, revision)) in attempts.iter().enumerate() {
        expect(what, seen.answers[1 + 2 * number], answer)?;
        let read = seen.value(2 + 2 * number)?;
        expect(what, read, u64::from(*revision) << 32)?;
    }
    for reason in [
        "its checksum is wrong",
        "it is for another processor, 0x606a7",
        "its revision 0xd0003ef is older than 0xd0003f0",
    ] {
        expect_in(seen.stderr, reason)?;
    }
    Ok(())
}

const PACKAGE: &str = "/sys/class/powercap/intel-rapl:0";
const DRAM: &str = "/sys/class/powercap/intel-rapl:0:0";

fn file(zone: &str, name: &str) -> Step {
    Step::read_file(&format!("{zone}/{name}"))
}

fn energy() -> Vec<Step> {
    let look = || {
        [
            Step::Uptime,
            file(PACKAGE, "energy_uj"),
            file(DRAM, "energy_uj"),
        ]
    };
    let mut steps = vec![
        Step::load_module("intel_rapl_msr"),
        file(PACKAGE, "name"),
        file(DRAM, "name"),
    ];
    steps.extend(look());
    steps.push(Step::Sleep { milliseconds: 3000 });
    steps.extend(look());
    steps.push(Step::Spin {
        cpu: 1,
        milliseconds: 3000,
    });
    steps.extend(look());
    steps
}

fn energy_checked(seen: &Seen<'_>) -> Result<(), Failed> {
    seen.done(0)?;
    expect("zone", seen.text(1)?.trim(), "package-0")?;
    expect("zone", seen.text(2)?.trim(), "dram")?;
    let power = |zone: usize, from: usize, to: usize| -> Result<f64, Failed> {
        let joules = |look: usize| Ok::<_, Failed>(seen.number(look + zone)? as f64 / 1e6);
        Ok(watts(
            [joules(from)?, joules(to)?],
            [seen.value(from)?, seen.value(to)?],
        ))
    };
    let (start, rested, worked) = (3, 7, 11);
    let idle = power(1, start, rested)?;
    let busy = power(1, rested, worked)?;
    expect_about("W of the package, idle", idle, IDLE_WATTS)?;
    expect_about("W of the package, busy", busy, BUSY_WATTS)?;
    expect_about("busy to idle", busy / idle, BUSY_WATTS / IDLE_WATTS)?;
    expect_about("W of the memory", power(2, start, worked)?, DRAM_WATTS)
}

fn power_limits() -> Vec<Step> {
    let limit = format!("{PACKAGE}/constraint_0_power_limit_uw");
    vec![
        Step::read_file(&limit),
        Step::write_file(&limit, "150000000"),
        Step::read_file(&limit),
        Step::read_msr(1, 0x610),
    ]
}

fn power_limits_checked(seen: &Seen<'_>) -> Result<(), Failed> {
    expect("limit at first, uW", seen.number(0)?, 270_000_000)?;
    seen.done(1)?;
    expect("limit, uW", seen.number(2)?, 150_000_000)?;
    // In eighths of a watt.
    expect("limit in the MSR", seen.value(3)? & 0x7fff, 150 * 8)
}

/// `MSR_MISC_FEATURE_CONTROL`, of which each core has one.
const PREFETCHERS: &str = "0x1a4";

fn tools() -> Vec<Step> {
    let read = |cpu: &str, msr: &str| Step::execute(["/bin/rdmsr", "-p", cpu, msr]);
    let write =
        |cpu: &str, msr: &str, value: &str| Step::execute(["/bin/wrmsr", "-p", cpu, msr, value]);
    vec![
        read("0", "0xce"),
        read("1", "0xce"),
        Step::read_msr(1, 0xce),
        write("0", PREFETCHERS, "0x3"),
        write("1", PREFETCHERS, "0xc"),
        read("0", PREFETCHERS),
        read("1", PREFETCHERS),
        Step::read_msr(0, 0x1a4),
        Step::read_msr(1, 0x1a4),
        // A reserved bit.
        write("1", PREFETCHERS, "0x10"),
        // No such MSR.
        read("1", "0x3fff"),
    ]
}

fn tools_checked(seen: &Seen<'_>) -> Result<(), Failed> {
    // The base ratio in bits 15:8.
    for step in [0, 1] {
        expect("base ratio", seen.hex(step)? >> 8 & 0xff, 23)?;
        expect("MSR_PLATFORM_INFO", seen.hex(step)?, seen.value(2)?)?;
    }
    for step in [3, 4] {
        seen.text(step)?;
    }
    for (tool, driver, value) in [(5, 7, 0x3), (6, 8, 0xc)] {
        expect("rdmsr", seen.hex(tool)?, value)?;
        expect("/dev/cpu", seen.value(driver)?, value)?;
    }
    for (step, message) in [(9, "cannot set MSR"), (10, "cannot read MSR")] {
        match seen.answers[step] {
            Answer::Exited { status, stderr, .. } if *status != 0 => expect_in(stderr, message)?,
            other => return Err(format!("step {step}: {other:?} instead of an error").into()),
        }
    }
    Ok(())
}

fn turbostat(seen: &Seen<'_>) -> Result<(), Failed> {
    let said = seen.text(0)?;
    for line in [
        "23 * 100.0 = 2300.0 MHz base frequency",
        "34 * 100.0 = 3400.0 MHz max turbo 4 active cores",
        "MSR_TURBO_RATIO_LIMIT",
        "(92 C)",
    ] {
        expect_in(&said, line)?;
    }
    let mut rows = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .skip_while(|row| !row.contains(&"PkgWatt"));
    // The row of the whole machine comes first.
    let (Some(header), Some(row)) = (rows.next(), rows.next()) else {
        return Err(format!("no table in:\n{said}").into());
    };
    let column = |name: &str| -> Result<f64, Failed> {
        let place = header.iter().position(|column| *column == name);
        let figure = place.and_then(|place| row.get(place)?.parse().ok());
        figure.ok_or_else(|| format!("no {name} in:\n{said}").into())
    };
    expect("PkgTmp", column("PkgTmp")?, 47.0)?;
    expect("CoreTmp", column("CoreTmp")?, 47.0)?;
    let power = column("PkgWatt")?;
    println!(
        "turbostat: {power} W of the package, {} W of the memory",
        column("RAMWatt")?
    );
    // turbostat itself keeps the CPUs busy now and then.
    if !(0.9 * IDLE_WATTS..=1.1 * BUSY_WATTS).contains(&power) {
        return Err(format!("PkgWatt: {power}\n{said}").into());
    }
    expect_about("RAMWatt", column("RAMWatt")?, DRAM_WATTS)
}
