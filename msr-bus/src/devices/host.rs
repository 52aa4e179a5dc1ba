//! What devices that show host values need to know of the host.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

/// The host's online CPUs, in ascending order.
///
/// # Errors
///
/// What reading `/sys/devices/system/cpu/online` gives, and `InvalidData` where it holds no CPU list.
pub(super) fn online_cpus() -> io::Result<Vec<u32>> {
    let list = fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_cpu_list(&list).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "/sys/devices/system/cpu/online holds no list of CPUs",
        )
    })
}

/// The shortest time between two looks at the host, in nanoseconds, from `key` in seconds.
///
/// # Errors
///
/// What is wrong with it, in words.
pub(super) fn period(key: &str, seconds: f64) -> Result<u64, String> {
    if (0.001..=3600.0).contains(&seconds) {
        Ok((seconds * 1e9).round() as u64)
    } else {
        Err(format!(
            "{key}: {seconds} s is not between 0.001 and 3600 s"
        ))
    }
}

/// The number that a file of sysfs shows now. The file stays open, so that a read is one system call.
///
/// # Errors
///
/// What the read gives, and `InvalidData` where the file holds no number.
pub(super) fn read_number<T: FromStr>(file: &File) -> io::Result<T> {
    let mut text = [0; 24];
    let length = file.read_at(&mut text, 0)?;
    let number = str::from_utf8(&text[..length]).ok();
    number
        .and_then(|number| number.trim_end().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it holds no number"))
}

/// The kernel's format for sets of CPUs, "0-3,8" (Documentation/admin-guide/cputopology.rst).
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    /// Linux's largest NR_CPUS.
    const MOST: u32 = 8192;
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_list_is_numbers_and_ranges() {
        for (list, cpus) in [
            ("0\n", Some(vec![0])),
            ("0-3,8", Some(vec![0, 1, 2, 3, 8])),
            ("", None),
            ("3-1", None),
            ("0-4294967295", None),
            ("0,x", None),
        ] {
            assert_eq!(parse_cpu_list(list), cpus, "{list:?}");
        }
    }
}
