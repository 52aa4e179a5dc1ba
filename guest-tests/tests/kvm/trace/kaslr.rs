//! Kernels that unpack and move themselves: their callers keep their names.

use std::collections::BTreeMap;

use guest_tests::assets;
use guest_tests::guest::{Folder, Guest, Plan, Step, digest};
use guest_tests::kernel::{Flavour, Kernel, Release};
use libtest_mimic::{Failed, Trial};
use msr_trace::symbols::{Symbols, build_id};
use serde::Deserialize;

use super::{PREFIX, open, said};

/// The kernels: lz4, xz and twice zstd.
const KERNELS: [(Release, Flavour); 4] = [
    (Release::Bookworm, Flavour::Cloud),
    (Release::Bookworm, Flavour::Full),
    (Release::Trixie, Flavour::Cloud),
    (Release::Trixie, Flavour::Full),
];

pub(super) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (release, flavour) in KERNELS {
        let name = format!(
            "{PREFIX}{release}::{}_kaslr::callers_have_the_names_of_the_guests_own_kallsyms",
            flavour.name()
        );
        // A full kernel unpacks itself in half a minute of an emulated CPU: `make soak` has those.
        let trial = Trial::test(name, move || moved(release, flavour));
        trials.push(trial.with_ignored_flag(flavour == Flavour::Full));
    }
    let name = format!("{PREFIX}a_kernel_told_nokaslr_unpacks_itself_and_does_not_move");
    trials.push(Trial::test(name, told_nokaslr));
    trials
}

/// How often a guest is booted until its kernel has moved. Linux chooses among all multiples of 2 MiB at which the kernel
/// fits into 1 GiB (arch/x86/boot/compressed/kaslr.c), where it is linked among them: more than 400.
const BOOTS: usize = 3;

fn moved(release: Release, flavour: Flavour) -> Result<(), Failed> {
    let kernel = Unpacked::new(&assets::kernel_of(release, flavour)?)?;
    for _ in 0..BOOTS {
        if kernel.boot("")? != 0 {
            return Ok(());
        }
    }
    Err(format!("the kernel did not move in {BOOTS} boots").into())
}

fn told_nokaslr() -> Result<(), Failed> {
    let kernel = Unpacked::new(&assets::kernel()?)?;
    assert_eq!(kernel.boot("nokaslr")?, 0);
    Ok(())
}

/// A line of `trace show --json`.
#[derive(Deserialize)]
struct Line {
    rip: Option<String>,
    caller: Option<String>,
}

impl Line {
    fn rip(&self) -> Option<u64> {
        let digits = self.rip.as_ref()?.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    }
}

/// A bzImage, and what is in it.
struct Unpacked {
    kernel: Kernel,
    elf: Vec<u8>,
}

impl Unpacked {
    fn new(kernel: &Kernel) -> Result<Self, Failed> {
        let image = std::fs::read(kernel.image())?;
        let elf = if image.starts_with(b"\x7fELF") {
            image
        } else {
            msr_vmm::boot::unpack(&image)?
        };
        Ok(Self {
            kernel: kernel.with_image(kernel.bzimage()),
            elf,
        })
    }

    /// Boots it, compares the trace's names with what the guest says, and gives how far the kernel has moved.
    fn boot(&self, parameters: &str) -> Result<u64, Failed> {
        let folder = Folder::new()?;
        let path = folder.path("trace");
        let plan = Plan::new([Step::KallsymsDigest]);
        let outcome = Guest::with_kernel(&self.kernel, "", plan)?
            .kernel_parameters(parameters)
            .argument("--kaslr")
            .argument("--observe")
            .option("--trace", &path)
            .run()?;
        if outcome.status.code() != Some(0) {
            let (status, said) = (outcome.status, outcome.stderr);
            return Err(format!("{status}: {said}\n{}", outcome.console).into());
        }

        let trace = open(&path)?;
        assert_eq!(trace.total_lost(), 0, "{}", outcome.stderr);
        assert_eq!(trace.header().kernel.build_id, build_id(&self.elf));
        assert!(trace.header().kernel.build_id.is_some());

        let symbols = Symbols::load(&self.elf)?;
        let entry = symbols.syscall_entry().ok_or("no entry_SYSCALL_64")?;
        let lstar = trace.lstar().ok_or("IA32_LSTAR was not seen")?;
        let slide = lstar.wrapping_sub(entry);
        let moved = |address: u64| address.wrapping_add(slide);
        let functions = || {
            let all = symbols.functions().iter();
            all.map(|symbol| (moved(symbol.address), &*symbol.name))
        };
        let own = digest(functions());
        assert_eq!(
            outcome.report()?.text(0),
            Some(own.as_str()),
            "the guest's /proc/kallsyms, and the image's tables moved by {slide:#x}"
        );

        let mut by_address: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for (address, name) in functions() {
            by_address.entry(address).or_default().push(name);
        }
        let text = said(&[
            "trace".as_ref(),
            "show".as_ref(),
            "--json".as_ref(),
            path.as_path(),
        ])?;
        let (mut named, mut low) = (0, 0);
        let mut others = Vec::new();
        for line in text.lines() {
            let line: Line = serde_json::from_str(line)?;
            let rip = line.rip().ok_or("a record without an address")?;
            if rip < 1 << 63 {
                // Before the kernel has its own page tables.
                low += 1;
                continue;
            }
            let (address, names) = by_address
                .range(..=rip)
                .next_back()
                .ok_or_else(|| format!("{rip:#x} is below all functions"))?;
            let offset = rip - address;
            let right = |name: &&str| line.caller == Some(format!("{name}+{offset:#x}"));
            if names.iter().any(right) {
                named += 1;
            } else {
                others.push(format!("{rip:#x} {:?}, in {names:?}", line.caller));
            }
        }
        let all = named + others.len();
        println!(
            "{}: moved by {slide:#x}; {named} of {all} kernel addresses have the name of /proc/kallsyms \
             ({:.2} %), {low} low ones; {own}",
            self.kernel.version(),
            100.0 * named as f64 / all as f64
        );
        // A boot makes hundreds, and of the cloud kernel of 6.1 about ninety.
        assert!(all >= 50, "{all} addresses");
        assert!(100 * named >= 99 * all, "{others:#?}");
        Ok(slide)
    }
}
