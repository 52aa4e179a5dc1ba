//! Finds out how a QEMU of a version that nobody tried has to be used: boots a Linux guest in an outer VM, with the
//! paging that versions near it take, then with the other.
//!
//! What was found is kept under `target/outer-vm`, so that it is looked for once. A trial tells a paging that never works
//! from one that does; one that fails now and then may pass, which `docs/test-bed.md` is for.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::choice::{Choice, Reason};
use super::error::OuterError;
use super::outer::OuterVm;
use super::watch::Progress;
use crate::assets;
use crate::guest::{COMMAND_LINE, Initrd, Plan, Step};
use crate::kernel::Kernel;

/// Boot of the outer VM and of the guest take about 10 s together.
const LIMIT: Duration = Duration::from_secs(60);

/// Outer VMs that are started at the same time wait for the one trial.
static ONE_TRIAL: Mutex<()> = Mutex::new(());

/// The same choice where it proves right, or with the other paging.
pub(super) fn confirm(guess: Choice, kernel: &Kernel) -> Result<Choice, OuterError> {
    let _one = ONE_TRIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept(&guess);
    let known = fs::read_to_string(&kept).ok();
    let with = |paging| Choice {
        paging,
        reason: Reason::Tried,
        ..guess.clone()
    };
    if let Some(paging) = known.and_then(|text| text.trim().parse().ok()) {
        return Ok(with(paging));
    }
    let mut failures = String::new();
    for paging in [guess.paging, guess.paging.other()] {
        Progress(None).say(format_args!(
            "QEMU {} was never tried: does a guest boot with {paging} paging?",
            guess.version
        ));
        match boots(with(paging), kernel) {
            Ok(0) => {
                // Not kept, it is looked for again.
                let _ = fs::create_dir_all(kept.parent().unwrap_or(&kept))
                    .and_then(|()| fs::write(&kept, format!("{paging}\n")));
                return Ok(with(paging));
            }
            Ok(status) => failures += &format!("with {paging} paging: status {status}\n"),
            Err(error) => failures += &format!("with {paging} paging: {error}\n"),
        }
    }
    Err(OuterError::NoGuestBoots {
        version: guess.version,
        failures,
    })
}

/// Whether a guest boots to its init and switches itself off; the status is 0 then.
fn boots(choice: Choice, kernel: &Kernel) -> Result<u8, OuterError> {
    let initrd = Initrd::new(&Plan::new([Step::KernelRelease]), kernel)
        .map_err(|error| OuterError::Trial(error.to_string()))?;
    let arguments = ["run", "--memory", "256", "--kernel", "/vmlinuz"];
    let more = ["--initrd", "/initrd", "--cmdline", COMMAND_LINE];
    let mut vm = OuterVm::new(["/bin/msr-vmm"].into_iter().chain(arguments).chain(more));
    vm.file("/bin/msr-vmm", assets::msr_vmm()?)
        .file("/vmlinuz", kernel.image())
        .contents("/initrd", initrd.finish())
        .choice(choice)
        .hide_output()
        .limit(LIMIT);
    vm.run(kernel)
}

/// Where the finding for a version is kept.
fn kept(choice: &Choice) -> PathBuf {
    let name: String = choice
        .version
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '_'
            }
        })
        .collect();
    assets::target_directory().join("outer-vm").join(name)
}
