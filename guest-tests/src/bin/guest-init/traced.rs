//! What Linux's own tracepoints say of its MSR accesses.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};

use guest_tests::guest::TracedMsr;
use guest_tests::init;

/// Where tracefs is mounted.
const TRACEFS: &str = "/sys/kernel/tracing";

/// Stops the tracing and gives what it recorded.
pub(crate) fn msrs() -> io::Result<String> {
    if !fs::exists(format!("{TRACEFS}/trace"))? {
        init::mount("tracefs", TRACEFS)?;
    }
    fs::write(format!("{TRACEFS}/tracing_on"), "0")?;
    let mut text = String::new();
    for line in BufReader::new(File::open(format!("{TRACEFS}/trace"))?).lines() {
        if let Some(access) = TracedMsr::from_trace(&line?)
            && !(0x800..0x900).contains(&access.index)
        {
            text += &format!("{access}\n");
        }
    }
    Ok(text)
}
