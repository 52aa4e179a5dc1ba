//! msr-kvm's README as another VMM's author would use it.

use std::process::Command;

use guest_tests::assets;
use libtest_mimic::Trial;

use super::support::{Outcome, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::embedding": the_readmes_vmm_answers_by_two_devices_a_swapped_filter_and_counts)
}

fn the_readmes_vmm_answers_by_two_devices_a_swapped_filter_and_counts() -> Outcome {
    let output = Command::new(assets::example("embed")?).output()?;
    let text = String::from_utf8(output.stdout)?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            vec![
                "0x10",
                "IA32_TIME_STAMP_COUNTER",
                "1",
                "0",
                "0",
                "default",
                "(unclaimed)"
            ],
            vec!["last", "0x0:", "tsc=0"],
            vec!["0x17", "IA32_PLATFORM_ID", "1", "0", "0", "table"],
            vec!["last", "0x123456789abcdef0:", "platform-id=5"],
            vec!["0x400", "IA32_MC0_CTL", "0", "1", "0", "scratch"],
            vec!["last", "0x123456789abcdef0:", "enable=0x123456789abcdef0"],
        ],
        "{text}"
    );
    Ok(())
}
