//! Many ranges in a message of one line.

use core::fmt;

use crate::MsrRange;

/// How many ranges a message lists; of more it says how many there are.
const LISTED: usize = 3;

/// Ranges as part of a sentence: each of a few, and of many how many there are and what they lie between.
///
/// ```
/// use msr_filter::{MsrRange, RangeSummary};
///
/// let mut ranges = vec![MsrRange::single(0x17), MsrRange::single(0xce)];
/// assert_eq!(RangeSummary(&ranges).to_string(), "0x17, 0xce");
/// ranges.extend((0x400..0x480).step_by(4).map(MsrRange::single));
/// assert_eq!(RangeSummary(&ranges).to_string(), "34 ranges in 0x17-0x47c");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RangeSummary<'a>(pub &'a [MsrRange]);

impl fmt::Display for RangeSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ranges) = self;
        if ranges.len() > LISTED {
            let first = ranges.iter().map(|range| range.first()).min().unwrap_or(0);
            let last = ranges.iter().map(|range| range.last()).max().unwrap_or(0);
            return write!(f, "{} ranges in {first:#x}-{last:#x}", ranges.len());
        }
        for (i, range) in ranges.iter().enumerate() {
            write!(f, "{}{range}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
