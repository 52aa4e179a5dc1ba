//! What goes wrong below a disk is the guest's to hear of, and no reason for the VMM to end. The entropy
//! device shares the boot.

use std::fs::{self, OpenOptions};

use guest_tests::guest::{Answer, Folder, Guest, Plan, Step};
use libtest_mimic::Failed;

const SIZE: u64 = 4 << 20;
const RANDOM_BYTES: usize = 32;

fn random() -> Step {
    Step::ReadBytes {
        path: "/dev/hwrng".to_owned(),
        count: RANDOM_BYTES,
    }
}

pub(super) fn a_truncated_image_is_an_io_error() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let image = folder.path("image");
    fs::File::create(&image)?.set_len(SIZE)?;
    let mut guest = Guest::new(
        "vm.entropy = true",
        Plan::new([
            Step::load_module("virtio_mmio"),
            Step::load_module("virtio_blk"),
            Step::load_module("virtio-rng"),
            Step::read_file("/sys/class/misc/hw_random/rng_current"),
            random(),
            random(),
            Step::Print {
                text: "cut it now".to_owned(),
            },
            Step::ReadLastBlockUntilError {
                disk: "/dev/vda".to_owned(),
            },
            // What the image still has.
            Step::ReadBytes {
                path: "/dev/vda".to_owned(),
                count: 8,
            },
        ]),
    )?
    .option("--disk", &image)
    .start()?;
    guest.wait_for("cut it now")?;
    OpenOptions::new()
        .write(true)
        .open(&image)?
        .set_len(SIZE / 2)?;

    let outcome = guest.wait()?;
    if outcome.status.code() != Some(0) || !outcome.stderr.contains("truncated") {
        return Err(format!("{}: {}", outcome.status, outcome.stderr).into());
    }
    let report = outcome.report()?;
    let source = report.text(3).unwrap_or_default();
    let random = [4, 5].map(|step| report.text(step).unwrap_or_default());
    let is_random = |text: &str| {
        // Of 32 random bytes, fewer than 4 differ from 0 once in 2^200 times.
        text.len() == 2 * RANDOM_BYTES && text.trim_matches('0').len() > 8
    };
    let ends = [7, 8].map(|step| report.answer(step));
    if !source.starts_with("virtio_rng")
        || !random.iter().all(|text| is_random(text))
        || random[0] == random[1]
        || ends[0] != Some(&Answer::Errno(libc::EIO))
        || ends[1] != Some(&Answer::Text("0".repeat(16)))
    {
        return Err(format!("{:#?}", report.steps()).into());
    }
    Ok(())
}
