//! A VMM killed in the middle of a write load loses nothing that the guest was told is on the disk.

use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, Guest};
use guest_tests::settings;
use libtest_mimic::Failed;

use super::ext4;

/// How many kills there are unless the environment variable `KILLS` says. Each takes a boot.
const KILLS: u32 = 10;

/// How many records a guest is left to write, at the most, and how many milliseconds more.
const MOST_RECORDS: u64 = 16;
const LONGEST: u64 = 500;

pub(super) fn what_was_fsynced_outlives_a_killed_vmm() -> Result<(), Failed> {
    let kills = settings::number("KILLS")?.map_or(Ok(KILLS), u32::try_from)?;
    let seed = settings::seed()?;
    let folder = Folder::new()?;
    let image = ext4::make(&folder)?;
    let begin = Instant::now();
    let mut promised = 0;
    for kill in 1..=kills {
        let mut guest = Guest::new("vm.memory = 128", ext4::plan())?
            .option("--disk", &image)
            .start()?;
        guest.wait_for("fsynced ")?;
        let found = number(&guest.console(), "found")?;
        // Knuth's multiplicative hash: the same moments for the same seed.
        let moment = (seed + u64::from(kill)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        guest.wait_for(&format!("fsynced {}\r", found + 1 + moment % MOST_RECORDS))?;
        thread::sleep(Duration::from_millis(moment / MOST_RECORDS % LONGEST));
        let fsynced = number(&guest.kill()?, "fsynced")?;

        // The guest's own recovery, of the kill before.
        if found < promised {
            return Err(format!("kill {kill}: the guest found {found} of {promised}").into());
        }
        promised = fsynced;
        let recovered = ext4::recovered_records(&image, &folder)?;
        if recovered < promised {
            return Err(format!("kill {kill}: {recovered} of {promised} are there").into());
        }
        println!("kill {kill}: {promised} records fsynced, {recovered} recovered, checks clean");
    }
    println!(
        "{kills} kills in {:.0?}: {promised} records fsynced, none lost",
        begin.elapsed()
    );
    Ok(())
}

fn number(console: &str, word: &str) -> Result<u64, String> {
    ext4::last_number(console, word).ok_or_else(|| format!("no `{word} N`: {console}"))
}
