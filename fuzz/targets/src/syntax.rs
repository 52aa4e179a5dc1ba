//! What people write on a command line: MSRs, accesses, verdicts, lists of MSRs, sizes of memory, disks.
//!
//! What is accepted is printed in a form that is accepted again and means the same.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use msr_filter::{Access, MsrList, MsrRange, Verdict};
use msr_vmm::config::MemorySize;
use msr_vmm::devices::virtio::block::DiskConfig;

fn round_trip<T>(text: &str)
where
    T: FromStr + Display + PartialEq + Debug,
    T::Err: Display,
{
    match text.parse::<T>() {
        Ok(value) => match value.to_string().parse::<T>() {
            Ok(again) => assert_eq!(value, again, "{text:?}"),
            Err(error) => panic!("{text:?} is accepted and printed as {value}: {error}"),
        },
        Err(error) => drop(error.to_string()),
    }
}

/// Reads `data`, where it is text, as each of them.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    round_trip::<MsrRange>(text);
    round_trip::<Verdict>(text);
    round_trip::<MemorySize>(text);
    round_trip::<DiskConfig>(text);
    if let Err(error) = text.parse::<Access>() {
        drop(error.to_string());
    }
    match text.parse::<MsrList>() {
        Ok(list) => {
            let spec = list.to_spec(Access::all(), Verdict::Allow);
            assert_eq!(spec.rules.len(), list.0.len());
        }
        Err(error) => drop(error.to_string()),
    }
}
