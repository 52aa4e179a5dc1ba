//! A VMM killed in the middle of a write load loses nothing that the guest was told is on the disk.

use std::env;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_tests::guest::{Folder, Guest};
use libtest_mimic::Failed;

use super::ext4;

/// How many kills there are unless the environment variable `KILLS` says. Each takes a boot.
const KILLS: u32 = 3;

/// The longest that the load lasts, in milliseconds from the first record.
const LONGEST: u64 = 1500;

pub(super) fn what_was_fsynced_outlives_a_killed_vmm() -> Result<(), Failed> {
    let kills = from_environment("KILLS")?.map_or(Ok(KILLS), u32::try_from)?;
    let seed = match from_environment("SEED")? {
        Some(seed) => seed,
        None => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
    };
    println!("SEED={seed}");
    let folder = Folder::new()?;
    let image = ext4::make(&folder)?;
    let begin = Instant::now();
    let mut promised = 0;
    for kill in 1..=kills {
        let mut guest = Guest::new("vm.memory = 128", ext4::plan())?
            .option("--disk", &image)
            .start()?;
        guest.wait_for("fsynced ")?;
        // Knuth's multiplicative hash: the same moments for the same seed.
        let moment = (seed + u64::from(kill)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        thread::sleep(Duration::from_millis(moment % LONGEST));
        let console = guest.kill()?;

        let number = |word| {
            ext4::last_number(&console, word).ok_or_else(|| format!("no `{word} N`: {console}"))
        };
        let (found, fsynced) = (number("found")?, number("fsynced")?);
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

fn from_environment(name: &str) -> Result<Option<u64>, Failed> {
    match env::var(name) {
        Ok(value) => match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(format!("{name}={value}: {error}").into()),
        },
        Err(_) => Ok(None),
    }
}
