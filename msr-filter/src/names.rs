//! The names that manuals and kernels give to MSRs.
//!
//! An index has one primary name: Intel's (SDM volume 4) where both vendors have the register, the
//! Linux kernel's for AMD's own. Other names of the same index resolve as well.
//!
//! ```
//! use msr_filter::names;
//!
//! assert_eq!(names::name(0x611), Some("MSR_PKG_ENERGY_STATUS"));
//! assert_eq!(names::index("msr_pkg_energy_status"), Some(0x611));
//! // One register, by Intel's name, the kernel's and AMD's.
//! for name in ["IA32_BIOS_SIGN_ID", "MSR_IA32_UCODE_REV", "PATCH_LEVEL"] {
//!     assert_eq!(names::index(name), Some(0x8b));
//! }
//! assert_eq!(names::nearest("MSR_PGK_ENERGY_STATUS"), Some("MSR_PKG_ENERGY_STATUS"));
//! ```

mod aliases;
mod amd;
mod distance;
mod intel;
#[cfg(test)]
mod tests;
mod virt;

use self::aliases::ALIASES;

/// An index and a name of it.
type Entry = (u32, &'static str);

/// The entries of a family of MSRs: `numbered!(0x400, 4, "IA32_MC", "_CTL", [0 1])` is 0x400
/// `IA32_MC0_CTL` and 0x404 `IA32_MC1_CTL`.
macro_rules! numbered {
    ($first:expr, $stride:expr, $prefix:literal, $suffix:literal, [$($n:literal)*]) => {
        &[$(($first + $stride * $n, concat!($prefix, $n, $suffix))),*]
    };
}
use numbered;

const SINGLES: [&[Entry]; 3] = [intel::SINGLES, amd::SINGLES, virt::SINGLES];
const SERIES: [&[&[Entry]]; 3] = [intel::SERIES, amd::SERIES, virt::SERIES];

const COUNT: usize = {
    let mut count = 0;
    let mut group = 0;
    while group < SINGLES.len() {
        count += SINGLES[group].len();
        let mut series = 0;
        while series < SERIES[group].len() {
            count += SERIES[group][series].len();
            series += 1;
        }
        group += 1;
    }
    count
};

/// Every primary name, by index. Put together when the crate is compiled, so that the sources may
/// keep families together.
static BY_INDEX: [Entry; COUNT] = {
    let mut table = [(0, ""); COUNT];
    let mut len = 0;
    let mut group = 0;
    while group < SINGLES.len() {
        len = merge(&mut table, len, SINGLES[group]);
        let mut series = 0;
        while series < SERIES[group].len() {
            len = merge(&mut table, len, SERIES[group][series]);
            series += 1;
        }
        group += 1;
    }
    table
};

/// Merges `more`, which is sorted, into the first `len` entries of `table`, which are, and returns
/// how many there are now. From the back, so that nothing is moved twice.
const fn merge(table: &mut [Entry; COUNT], len: usize, more: &[Entry]) -> usize {
    let (mut old, mut new) = (len, more.len());
    while new > 0 {
        if old > 0 && table[old - 1].0 > more[new - 1].0 {
            table[old + new - 1] = table[old - 1];
            old -= 1;
        } else {
            table[old + new - 1] = more[new - 1];
            new -= 1;
        }
    }
    len + more.len()
}

/// The primary name of `index`, or `None` for an MSR that the tables don't have.
pub fn name(index: u32) -> Option<&'static str> {
    let at = BY_INDEX
        .binary_search_by_key(&index, |(index, _)| *index)
        .ok()?;
    Some(BY_INDEX[at].1)
}

/// The index of the MSR called `name`, without regard to case.
///
/// A name that the tables have wins. Else the prefixes `MSR_`, `IA32_` and `MSR_IA32_` are
/// interchangeable, because the manuals and the kernel disagree on them: `MSR_IA32_MPERF`, `MPERF` and
/// `IA32_MPERF` are one register.
pub fn index(name: &str) -> Option<u32> {
    let exact = all().find(|(_, known)| known.eq_ignore_ascii_case(name));
    let found = exact.or_else(|| {
        let stem = stem(name);
        all().find(|(_, known)| self::stem(known).eq_ignore_ascii_case(stem))
    });
    found.map(|(index, _)| index)
}

/// The known name that is most like `name`, for "did you mean"; `None` where none is alike enough.
pub fn nearest(name: &str) -> Option<&'static str> {
    // A third of the letters wrong is still a slip of the keyboard; more is another word.
    let limit = name.len() / 3;
    all()
        .filter_map(|(_, known)| Some((distance::within(name, known, limit)?, known)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Every MSR that has a name, as its index and primary name, in the order of the indices.
pub fn iter() -> impl ExactSizeIterator<Item = (u32, &'static str)> {
    BY_INDEX.iter().copied()
}

fn all() -> impl Iterator<Item = Entry> {
    BY_INDEX.iter().chain(ALIASES).copied()
}

fn stem(name: &str) -> &str {
    ["MSR_", "IA32_"].iter().fold(name, |rest, prefix| {
        match rest.split_at_checked(prefix.len()) {
            Some((head, tail)) if head.eq_ignore_ascii_case(prefix) => tail,
            _ => rest,
        }
    })
}
