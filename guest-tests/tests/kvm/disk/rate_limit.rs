//! A Linux guest whose disk and random numbers are limited.

use std::fs;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, Guest, Plan, Step};
use libtest_mimic::Failed;

use crate::life::control::{ensure, said};

/// 1 MiB in a second, and 256 KiB at once.
const BYTES: u64 = 256 << 10;
/// 40 requests in a second, and ten at once.
const OPERATIONS: u64 = 10;
/// Random bytes at once, and in each refill: 640 in a second.
const RANDOM: u64 = 64;
/// What the driver of virtio-rng and the core of hwrng may have ready from before.
const RANDOM_AHEAD: u64 = 128;
const REFILL_MS: u64 = 250;
const RANDOM_REFILL_MS: u64 = 100;

/// How long `amount` takes at least: what the bucket has at once, and the rest at its rate.
fn least(amount: u64, size: u64, refill_ms: u64) -> u64 {
    (amount - size) * refill_ms * 1_000_000 / size
}

pub(super) fn a_limited_disk_and_limited_random_numbers_take_their_time() -> Result<(), Failed> {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 40;
    const SMALL: usize = 4096;
    const SMALL_READS: usize = 90;
    const RANDOM_READS: usize = 20;
    let folder = Folder::new()?;
    let image = folder.path("image");
    fs::File::create(&image)?.set_len(4 << 20)?;
    let reads = |path: &str, piece, times| Step::TimeReads {
        path: path.to_owned(),
        piece,
        times,
    };
    let config = format!(
        "[vm]\nentropy = true\n\
         [vm.entropy_rate_limiter]\nbandwidth = {{ size = {RANDOM}, refill_time = {RANDOM_REFILL_MS} }}\n\
         [[vm.disk]]\npath = {image:?}\nreadonly = true\n\
         rate_limiter.bandwidth = {{ size = {BYTES}, refill_time = {REFILL_MS} }}\n\
         rate_limiter.ops = {{ size = {OPERATIONS}, refill_time = {REFILL_MS} }}\n"
    );
    let socket = folder.path("socket");
    let mut guest = Guest::new(
        &config,
        Plan::new([
            Step::load_module("virtio_mmio"),
            Step::load_module("virtio_blk"),
            Step::load_module("virtio-rng"),
            Step::Print {
                text: "reading".to_owned(),
            },
            reads("/dev/vda", PIECE, PIECES),
            reads("/dev/vda", SMALL, SMALL_READS),
            reads("/dev/hwrng", RANDOM as usize, RANDOM_READS),
        ]),
    )?
    .option("--control", &socket)
    .start()?;
    guest.wait_for("reading")?;
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let begin = Instant::now();
        said(&socket, &["pause"])?;
        longest = longest.max(begin.elapsed());
        said(&socket, &["resume"])?;
    }
    println!(
        "the longest of 5 pauses of a guest that waits for its disk: {longest:.0?}, with the start of the client"
    );
    let outcome = guest.wait()?;
    ensure(outcome.status.code() == Some(0), &outcome.stderr)?;
    let report = outcome.report()?;
    let bytes = (PIECE * PIECES) as u64;
    let random = RANDOM * RANDOM_READS as u64 - RANDOM_AHEAD;
    for (step, what, least) in [
        (4, "bytes", least(bytes, BYTES, REFILL_MS)),
        (
            5,
            "operations",
            least(SMALL_READS as u64, OPERATIONS, REFILL_MS),
        ),
        (6, "random bytes", least(random, RANDOM, RANDOM_REFILL_MS)),
    ] {
        let took = report.value(step);
        let Some(took) = took else {
            return Err(format!("{what}: {:?}", report.answer(step)).into());
        };
        println!(
            "{what}: {:.2} s, and at least {:.2}",
            took as f64 / 1e9,
            least as f64 / 1e9
        );
        ensure(took >= least, what)?;
    }
    Ok(())
}
