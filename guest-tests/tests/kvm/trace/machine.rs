//! The guests of these tests: each release's kernels, with one vCPU and with two, booted twice each.
//!
//! The first boot is recorded by `--observe` and a profile is learnt from it. The second is under that profile, recorded by
//! `--trace-kernel`. Linux's own tracepoints are on in both, and both do the same.

use std::path::PathBuf;
use std::sync::OnceLock;

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Initrd, Outcome, Plan, Report, Step};
use guest_tests::kernel::{Flavour, Kernel, Release};
use libtest_mimic::Failed;
use msr_trace::{Header, Record};

use super::{msr_vmm, open, records};

/// One guest's boots, each made by the first test that asks for it.
pub(super) struct Machine {
    pub(super) release: Release,
    pub(super) flavour: Flavour,
    pub(super) cpus: u16,
    recorded: OnceLock<Result<Boot, String>>,
    learnt: OnceLock<Result<Learnt, String>>,
    under: OnceLock<Result<Boot, String>>,
}

pub(super) static MACHINES: [Machine; 6] = [
    Machine::new(Release::Bookworm, Flavour::Cloud, 1),
    Machine::new(Release::Bookworm, Flavour::Cloud, 2),
    Machine::new(Release::Bookworm, Flavour::Full, 1),
    Machine::new(Release::Bookworm, Flavour::Full, 2),
    // What differs with the number of vCPUs is the same in both releases.
    Machine::new(Release::Trixie, Flavour::Cloud, 2),
    Machine::new(Release::Trixie, Flavour::Full, 1),
];

/// A boot that was recorded.
pub(super) struct Boot {
    pub(super) report: Report,
    pub(super) header: Header,
    pub(super) lstar: Option<u64>,
    pub(super) records: Vec<Record>,
    /// The size of the blocks.
    pub(super) bytes: u64,
    trace: PathBuf,
    _folder: Folder,
}

/// A profile.
pub(super) struct Learnt {
    pub(super) text: String,
    /// What `learn` said.
    pub(super) said: String,
    pub(super) path: PathBuf,
    _folder: Folder,
}

/// What the guests do, by the number of the step.
pub(super) const TRACED: usize = 0;
pub(super) const KALLSYMS: usize = 1;
/// `rdmsr` of [`READ_BY_HAND`].
pub(super) const RDMSR: usize = 3;
pub(super) const TURBOSTAT: usize = RDMSR + READ_BY_HAND.len();
pub(super) const LOG: usize = TURBOSTAT + 1;
/// A read of [`NOT_LEARNT`], under the profile only.
pub(super) const DENIED: usize = LOG + 1;

/// `IA32_APIC_BASE` and `IA32_PAT`.
pub(super) const READ_BY_HAND: [&str; 2] = ["0x1b", "0x277"];
/// AMD's `VM_HSAVE_PA`, which KVM answers and only a hypervisor reads.
pub(super) const NOT_LEARNT: u32 = 0xc001_0117;

fn plan() -> Plan {
    let rdmsr = READ_BY_HAND.map(|index| Step::execute(["/bin/rdmsr", "-0", "-p", "0", index]));
    let turbostat = [
        "/bin/turbostat",
        "--interval",
        "0.2",
        "--num_iterations",
        "1",
    ];
    let before = [
        Step::TracedMsrs,
        Step::KallsymsDigest,
        Step::load_module("msr"),
    ];
    let after = [Step::execute(turbostat), Step::KernelLog];
    Plan::new(before.into_iter().chain(rdmsr).chain(after))
}

impl Machine {
    const fn new(release: Release, flavour: Flavour, cpus: u16) -> Self {
        Self {
            release,
            flavour,
            cpus,
            recorded: OnceLock::new(),
            learnt: OnceLock::new(),
            under: OnceLock::new(),
        }
    }

    /// How its tests' names go on after the module's.
    pub(super) fn name(&self) -> String {
        let (release, flavour) = (self.release, self.flavour.name());
        format!("{release}::{flavour}_vcpus_{}", self.cpus)
    }

    pub(super) fn kernel(&self) -> Result<Kernel, Failed> {
        Ok(assets::kernel_of(self.release, self.flavour)?)
    }

    /// The boot without a profile, recorded by `--observe`.
    pub(super) fn recorded(&self) -> Result<&Boot, Failed> {
        once(&self.recorded, || {
            self.boot(plan(), |guest| guest.argument("--observe"))
        })
    }

    /// The profile of that boot.
    pub(super) fn learnt(&self) -> Result<&Learnt, Failed> {
        once(&self.learnt, || {
            let trace = &self.recorded()?.trace;
            let folder = Folder::new()?;
            let path = folder.path("profile.toml");
            let output = msr_vmm(&["learn".as_ref(), trace.as_path(), "-o".as_ref(), &path])?;
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if !output.status.success() {
                return Err(format!("{}: {said}", output.status).into());
            }
            // Nothing of what was recorded is denied.
            super::said(&["learn".as_ref(), "--check".as_ref(), path.as_path(), trace])?;
            Ok(Learnt {
                text: std::fs::read_to_string(&path)?,
                said,
                path,
                _folder: folder,
            })
        })
    }

    /// The boot under that profile, recorded by `--trace-kernel`.
    pub(super) fn under(&self) -> Result<&Boot, Failed> {
        once(&self.under, || {
            let profile = &self.learnt()?.path;
            let mut plan = plan();
            plan.steps.push(Step::read_msr(0, NOT_LEARNT));
            self.boot(plan, |guest| {
                let guest = guest.option("--profile", profile.as_os_str());
                guest.argument("--trace-kernel")
            })
        })
    }

    fn boot(&self, plan: Plan, how: impl FnOnce(Guest) -> Guest) -> Result<Boot, Failed> {
        let kernel = self.kernel()?;
        let folder = Folder::new()?;
        let path = folder.path("trace");
        let mut initrd = Initrd::new(&plan, &kernel)?;
        initrd.tools()?;
        let guest = Guest::with_initrd(&kernel, "", plan, initrd)?
            .option("--cpus", self.cpus.to_string())
            .kernel_parameters("trace_event=msr:read_msr,msr:write_msr trace_buf_size=4M")
            .option("--trace", &path);
        let outcome: Outcome = how(guest).run()?;
        if outcome.status.code() != Some(0) {
            let (status, said) = (outcome.status, outcome.stderr);
            return Err(format!("{status}: {said}\n{}", outcome.console).into());
        }
        let report = outcome.report()?;
        let mut trace = open(&path)?;
        if trace.total_lost() != 0 {
            return Err(format!("{} lost: {}", trace.total_lost(), outcome.stderr).into());
        }
        Ok(Boot {
            report,
            header: trace.header().clone(),
            lstar: trace.lstar(),
            bytes: trace.blocks_length(),
            records: records(&mut trace)?,
            trace: path,
            _folder: folder,
        })
    }
}

/// The value, made by the first who asks. One that could not be made is the same error for all.
fn once<T>(
    value: &OnceLock<Result<T, String>>,
    make: impl FnOnce() -> Result<T, Failed>,
) -> Result<&T, Failed> {
    let made = value
        .get_or_init(|| make().map_err(|error| error.message().unwrap_or_default().to_owned()));
    made.as_ref().map_err(|error| error.as_str().into())
}
