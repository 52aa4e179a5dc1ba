//! The commands of docs/tracing.md, as they are written there.

use std::path::Path;
use std::process::Command;

use guest_tests::assets;
use guest_tests::guest::{Folder, Initrd, Plan, Report, Step};
use libtest_mimic::{Failed, Trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "trace::the_pages_commands_do_what_it_says",
        the_page,
    )]
}

const PAGE: &str = include_str!("../../../../docs/tracing.md");

/// The commands: lines indented by four spaces, but for those with a PID that only a reader knows.
fn commands() -> impl Iterator<Item = &'static str> {
    let lines = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("    msr-vmm "));
    lines.filter(|line| !line.contains("PID"))
}

fn the_page() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let kernel = assets::kernel()?;
    let plan = Plan::new([Step::KernelLog]);
    std::fs::copy(kernel.image(), folder.path("vmlinuz"))?;
    folder.file("initrd.img", Initrd::new(&plan, &kernel)?.finish())?;
    let mut runs = 0;
    for command in commands() {
        // The page leaves the console to the reader's kernel.
        let quiet = ["--cmdline", guest_tests::guest::COMMAND_LINE];
        let run = command.starts_with("run ");
        let output = Command::new(assets::msr_vmm()?)
            .args(command.split(' '))
            .args(quiet.iter().filter(|_| run))
            .current_dir(folder.path(""))
            .output()?;
        let (out, error) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        println!("msr-vmm {command}: {} lines", out.lines().count());
        if !output.status.success() {
            return Err(format!("{command}: {}: {error}", output.status).into());
        }
        if run {
            Report::parse(&plan, &out)?;
            runs += 1;
        }
        if command.contains("--top caller")
            && !out.contains("native_read_msr")
            && !out.contains("native_write_msr")
        {
            return Err(format!("no caller has its name: {out}{error}").into());
        }
    }
    assert_eq!(runs, 2);
    for file in ["boot.html", "boot.pftrace", "boot.parquet", "profile.toml"] {
        let size = std::fs::metadata(folder.path(file)).map_or(0, |metadata| metadata.len());
        println!("{file}: {size} bytes");
        assert!(
            size > 1000 && Path::new(file).extension().is_some(),
            "{file}: {size} bytes"
        );
    }
    Ok(())
}
