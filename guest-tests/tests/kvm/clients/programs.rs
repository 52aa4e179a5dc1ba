//! The programs, and how they end on the real processors.
//!
//! What of a program needs hardware other than the processor's MSRs fails here for a reason that is said with it. The models leave
//! performance counters out, so that programs which are nothing but a way to count are not here: likwid-perfctr, perf.

use std::sync::OnceLock;

use super::Seen;

/// A model and the programs that its guest runs.
pub(super) struct Model {
    pub(super) name: &'static str,
    pub(super) programs: &'static [Program],
    pub(super) seen: Seen,
}

/// A program and what is expected of it.
#[derive(Clone, Copy)]
pub(super) struct Program {
    /// The test's name.
    pub(super) name: &'static str,
    pub(super) argv: &'static [&'static str],
    /// When it is ended, where it does not end by itself.
    pub(super) seconds: Option<&'static str>,
    pub(super) status: i32,
    /// What it says.
    pub(super) shows: &'static [&'static str],
}

impl Program {
    /// One that runs until it is ended: timeout(1) then gives 124.
    const fn until(self, seconds: &'static str) -> Self {
        Self {
            seconds: Some(seconds),
            status: 124,
            ..self
        }
    }

    /// One that fails, on the real processor or for lack of other hardware.
    const fn fails(self, status: i32) -> Self {
        Self { status, ..self }
    }
}

const fn program(
    name: &'static str,
    argv: &'static [&'static str],
    shows: &'static [&'static str],
) -> Program {
    Program {
        name,
        argv,
        seconds: None,
        status: 0,
        shows,
    }
}

/// A turbostat of one second.
const fn turbostat(shows: &'static [&'static str]) -> Program {
    const ARGV: &[&str] = &["turbostat", "--interval", "1", "--num_iterations", "1"];
    program("turbostat", ARGV, shows)
}

const fn cpupower_monitor(shows: &'static [&'static str]) -> Program {
    program(
        "cpupower_monitor",
        &["cpupower", "monitor", "-i", "1"],
        shows,
    )
}

const fn x86info(shows: &'static [&'static str]) -> Program {
    program("x86info", &["x86info", "-a"], shows)
}

const fn likwid_topology(shows: &'static [&'static str]) -> Program {
    program("likwid_topology", &["likwid-topology"], shows)
}

/// By direct accesses, as there is no daemon.
const fn likwid_powermeter(shows: &'static [&'static str]) -> Program {
    const ARGV: &[&str] = &["likwid-powermeter", "-M", "0", "-i"];
    program("likwid_powermeter", ARGV, shows)
}

/// It lists the switches in `IA32_MISC_ENABLE` and `MSR_MISC_FEATURE_CONTROL`, and always ends with 1.
const LIKWID_FEATURES: Program = program(
    "likwid_features",
    &["likwid-features", "-l", "-c", "0"],
    &[
        "HW_PREFETCHER         on",
        "FAST_STRINGS          on",
        "SPEEDSTEP             on",
        "XD_BIT                on",
    ],
)
.fails(1);

const POWERTOP: Program = program(
    "powertop",
    &["powertop", "--csv=/tmp/powertop.csv", "--time=1"],
    &["Taking 1 measurement", "PowerTOP outputting"],
);

/// It goes on for ever, and writes the frequencies of the cores into its log.
const I7Z: Program = program(
    "i7z",
    &["i7z", "--nogui", "--write", "l", "--logfile", "/tmp/i7z"],
    &[],
)
.until("3");

/// A daemon; it waits for errors.
const RASDAEMON: Program = program(
    "rasdaemon",
    &["rasdaemon", "--foreground"],
    &["Enabled event mce:mce_record"],
)
.until("5");

const STRESS_NG: Program = program(
    "stress_ng",
    &[
        "stress-ng",
        "--temp-path",
        "/tmp",
        "--cpu",
        "1",
        "--timeout",
        "1",
        "--metrics",
        "--tz",
    ],
    &["successful run completed"],
);

const S_TUI: Program = program("s_tui", &["s-tui", "--json"], &["Frequency"]);

const CPUPOWER_FREQUENCY: Program = program(
    "cpupower_frequency_info",
    &["cpupower", "frequency-info"],
    &["analyzing CPU"],
);

/// Intel's energy/performance bias.
const CPUPOWER_INFO: Program = program("cpupower_info", &["cpupower", "info"], &["perf-bias: 6"]);

const POLICY: Program = program(
    "x86_energy_perf_policy",
    &["x86_energy_perf_policy"],
    &["cpu0: EPB 6"],
);

/// A Core i7-4770.
static HASWELL: [Program; 15] = [
    turbostat(&["6:60:3", "Core", "GFXWatt"]),
    POLICY,
    CPUPOWER_FREQUENCY,
    CPUPOWER_INFO,
    cpupower_monitor(&["C7", "PC2", "PC7", "unco"]),
    // For Xeons only.
    program(
        "intel_speed_select",
        &["intel-speed-select", "--info"],
        &["CPU model:60"],
    ),
    POWERTOP,
    likwid_topology(&["Intel Core Haswell processor"]),
    likwid_powermeter(&[
        "Base clock:\t3400.00 MHz",
        "Info for RAPL domain PKG",
        "Thermal Spec Power: 84 Watt",
    ]),
    LIKWID_FEATURES,
    x86info(&["i7-4770"]),
    I7Z,
    RASDAEMON,
    STRESS_NG,
    S_TUI,
];

/// A Xeon Platinum 8380.
static ICE_LAKE: [Program; 15] = [
    turbostat(&["6:106:6", "RAMWatt"]),
    POLICY,
    CPUPOWER_FREQUENCY,
    CPUPOWER_INFO,
    cpupower_monitor(&["Mperf", "dram"]),
    // Its drivers talk to a mailbox on PCI, which is not there.
    program(
        "intel_speed_select",
        &["intel-speed-select", "--info"],
        &["CPU model:106"],
    ),
    POWERTOP,
    likwid_topology(&["Intel Icelake SP processor"]),
    // It looks for the uncore's PCI devices, and without them reads a file that it could not open (5.4.1, mmio_validDevice). With
    // them it dies all the same, on the real processor too if that is the only one: it then goes up hwloc's tree from the
    // device to a socket, and the devices of a machine with one socket are not below it (hwloc_pci_init).
    likwid_powermeter(&["to find pci devices failed"]).fails(128 + 11),
    LIKWID_FEATURES,
    x86info(&["Platinum 8380"]),
    I7Z,
    RASDAEMON,
    STRESS_NG,
    S_TUI,
];

/// An EPYC 7763.
static ZEN_3: [Program; 14] = [
    turbostat(&["25:1:1", "CorWatt", "PkgWatt"]),
    // For Intel's processors, and silent on others.
    program("x86_energy_perf_policy", POLICY.argv, &[]),
    CPUPOWER_FREQUENCY,
    cpupower_monitor(&["RAPL", "pack", "core"]),
    program(
        "intel_speed_select",
        &["intel-speed-select", "--info"],
        &["CPU model:1"],
    ),
    POWERTOP,
    likwid_topology(&["AMD K19 (Zen3) architecture"]),
    // On the real processor too: by direct accesses this version (5.4.1) wants the uncore's PCI devices of every processor that has
    // an uncore, and knows none of AMD's (its access_x86_init and access_x86_pci_init).
    likwid_powermeter(&["Cannot get access to RAPL counters"]).fails(1),
    program(
        "likwid_features",
        LIKWID_FEATURES.argv,
        &["only available on Intel platforms"],
    ),
    // It does not know the family, and prints the microcode's revision and the P-states all the same.
    x86info(&["Microcode patch level: 0xa0011de", "Pstate-P2"]),
    program("i7z", I7Z.argv, &["designed to be an intel proc utility"]).fails(1),
    RASDAEMON,
    STRESS_NG,
    S_TUI,
];

const fn model(name: &'static str, programs: &'static [Program]) -> Model {
    Model {
        name,
        programs,
        seen: OnceLock::new(),
    }
}

pub(super) static MODELS: [Model; 3] = [
    model("haswell-client", &HASWELL),
    model("icelake-server", &ICE_LAKE),
    model("zen3-server", &ZEN_3),
];
