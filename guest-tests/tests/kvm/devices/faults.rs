//! A storm of injected faults: Debian with two CPUs reads thermal, power and microcode registers of which many accesses are #GP or
//! have a flipped bit. It boots, its drivers and readers run, and it powers off; what it complains of is printed. The same seed
//! gives the same faults in another boot.

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Plan, Step};
use guest_tests::kernel::{Flavour, Release};
use libtest_mimic::{Failed, Trial};
use msr_trace::{Kind, Record, Trace};

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "devices::faults::debian_survives_a_storm_and_a_seed_gives_the_same_one_again",
        storm,
    )]
}

/// The MSRs that get faults. The two rules of a group speak of the same accesses, so that the marks on those of a vCPU are a function
/// of the seed alone, however the accesses of different vCPUs and groups lie in time.
const GROUPS: [(&str, &[u32]); 3] = [
    ("thermal", &[0x19b, 0x19c, 0x1b1, 0x1b2]),
    ("RAPL", &[0x606, 0x610, 0x611, 0x619]),
    ("microcode", &[0x8b]),
];

fn config() -> String {
    let mut config = r#"
        model = "icelake-server"
        vm.cpus = 2
        [[msr.device]]
        type = "thermal"
    "#
    .to_owned();
    for (_, msrs) in GROUPS {
        for (kind, probability) in [("gp", 0.25), ("flip", 0.25)] {
            config += &format!(
                "[[msr.fault]]\nmsrs = {msrs:?}\nkind = \"{kind}\"\nprobability = {probability}\nseed = 12\n"
            );
        }
    }
    config
}

/// How often each register is read on each CPU.
const ROUNDS: usize = 12;

fn plan() -> Plan {
    let mut steps = vec![
        Step::load_module("msr"),
        Step::load_module("x86_pkg_temp_thermal"),
        Step::load_module("coretemp"),
        Step::load_module("intel_rapl_msr"),
    ];
    for _ in 0..ROUNDS {
        for cpu in [0, 1] {
            for (_, msrs) in GROUPS {
                steps.extend(msrs.iter().map(|msr| Step::read_msr(cpu, *msr)));
            }
        }
    }
    steps.push(Step::KernelLog);
    Plan::new(steps)
}

/// Boots Debian through the storm, and gives the records of the MSRs that are in it.
fn boot() -> Result<Vec<Record>, Failed> {
    let kernel = assets::kernel_of(Release::Bookworm, Flavour::Full)?;
    let folder = Folder::new()?;
    let path = folder.path("trace");
    let guest = Guest::with_kernel(&kernel, &config(), plan())?;
    let outcome = guest
        .option("--trace", &path)
        .argument("--msr-stats")
        .run()?;
    if !outcome.status.success() {
        let (status, said) = (outcome.status, outcome.stderr);
        return Err(format!("{status}: {said}\n{}", outcome.console).into());
    }
    let report = outcome.report()?;
    let last = report.steps().len() - 1;
    let log = report.text(last).ok_or("no kernel log")?;
    for words in ["Kernel panic", "Oops", "lockup", " stall"] {
        if let Some(line) = log.lines().find(|line| line.contains(words)) {
            return Err(format!("Debian did not take it well: {line}").into());
        }
    }
    println!("what Debian complained of:");
    let words = [
        "unchecked MSR",
        "WARNING",
        "rror",
        "fail",
        "microcode",
        "rapl",
        "thermal",
    ];
    for line in log
        .lines()
        .filter(|line| words.iter().any(|w| line.contains(w)))
    {
        println!("  {line}");
    }
    let refused = (0..last).filter(|step| report.faulted(*step)).count();
    println!("{refused} of the readers' {} reads were refused", last - 4);
    if refused == 0 {
        return Err("no reader saw a #GP".into());
    }
    let mut trace = Trace::open(&path)?;
    let records = trace.records().collect::<Result<Vec<Record>, _>>()?;
    let injected = records.iter().filter(|record| record.injected).count();
    for words in [
        "MSR accesses go wrong on purpose: 6 rules",
        &format!("accesses that went wrong on purpose: {injected}\n"),
    ] {
        if !outcome.stderr.contains(words) {
            return Err(format!("no {words:?} in {}", outcome.stderr).into());
        }
    }
    let stormy = |index: u32| GROUPS.iter().any(|(_, msrs)| msrs.contains(&index));
    let strange = records.iter().find(|r| r.injected && !stormy(r.index));
    if let Some(record) = strange {
        return Err(format!("no rule speaks of {record:?}, which is marked").into());
    }
    Ok(records.into_iter().filter(|r| stormy(r.index)).collect())
}

/// Whether each access of a vCPU to a group was marked, in order.
fn marks(records: &[Record], vcpu: u16, msrs: &[u32]) -> Vec<bool> {
    let of = records
        .iter()
        .filter(|r| r.vcpu == vcpu && msrs.contains(&r.index));
    of.map(|record| record.injected).collect()
}

fn storm() -> Result<(), Failed> {
    let (first, second) = (boot()?, boot()?);
    for (name, msrs) in GROUPS {
        let injected = |fault: bool| {
            let of = first
                .iter()
                .filter(|r| msrs.contains(&r.index) && r.injected);
            of.filter(|r| r.fault == fault).count()
        };
        println!(
            "{name}: {} #GPs and {} flipped bits",
            injected(true),
            injected(false)
        );
        // An eighth of what the readers alone make, where a quarter and three sixteenths are to be expected.
        let least = ROUNDS * 2 * msrs.len() / 8;
        if injected(true) < least || injected(false) < least {
            return Err(format!("{name}: fewer than {least} of a kind").into());
        }
        for vcpu in [0, 1] {
            let (a, b) = (marks(&first, vcpu, msrs), marks(&second, vcpu, msrs));
            // Timers of Linux's own read some of them a few times more or less.
            let both = a.len().min(b.len());
            println!("{name}, vCPU {vcpu}: {} and {} accesses", a.len(), b.len());
            if both < ROUNDS * msrs.len() || a[..both] != b[..both] {
                return Err(
                    format!("{name}, vCPU {vcpu}: not the same faults:\n{a:?}\n{b:?}").into(),
                );
            }
        }
    }
    let reads = first.iter().filter(|r| r.kind == Kind::Read).count();
    println!(
        "{} accesses in the storm, {reads} of them reads",
        first.len()
    );
    Ok(())
}
