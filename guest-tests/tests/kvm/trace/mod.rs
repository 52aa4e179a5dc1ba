//! Traces of real guests: complete, in order, named, and enough to learn a profile from.

mod kaslr;
mod learn;
mod life;
mod linux;
mod live;
mod machine;
mod micro;
mod page;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output};

use guest_tests::assets;
use libtest_mimic::{Failed, Trial};
use msr_trace::{Record, Trace};

/// How the names of this module's tests begin.
pub(crate) const PREFIX: &str = "trace::";

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    [
        micro::trials(),
        live::trials(),
        linux::trials(),
        kaslr::trials(),
        learn::trials(),
        life::trials(),
        page::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Read = Trace<BufReader<File>>;

fn open(path: &Path) -> Result<Read, Failed> {
    Trace::open(path).map_err(|error| format!("{} {error}", path.display()).into())
}

fn records(trace: &mut Read) -> Result<Vec<Record>, Failed> {
    Ok(trace.records().collect::<Result<_, _>>()?)
}

/// Runs `msr-vmm` with these arguments.
fn msr_vmm<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<Output, Failed> {
    Ok(Command::new(assets::msr_vmm()?).args(arguments).output()?)
}

/// Runs `msr-vmm`, which must succeed, and gives its standard output.
fn said<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<String, Failed> {
    let output = msr_vmm(arguments)?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{}: {error}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
