//! Plain lists of MSRs, as tools print them and people paste them.

use alloc::{string::ToString, vec::Vec};
use core::{fmt, str::FromStr};

use crate::{Access, FilterSpec, MsrRange, ParseRangeError, Rule, Verdict, names};

/// MSRs, one entry a line.
///
/// An entry is anything that [`MsrRange`] parses. What follows a `#` is a comment, and empty lines are
/// skipped.
///
/// ```
/// use msr_filter::{Access, MsrList, Verdict};
///
/// let list: MsrList = "0x10\nIA32_EFER  # long mode\n\n0x600-0x63f\n".parse()?;
/// let spec = list.to_spec(Access::all(), Verdict::Allow);
/// assert_eq!(spec.verdict(0xc000_0080, Access::READ), Verdict::Allow);
/// assert_eq!(spec.verdict(0x11, Access::READ), Verdict::Deny);
/// # Ok::<(), msr_filter::ParseListError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MsrList(pub Vec<MsrRange>);

/// A line of a list that is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct ParseListError {
    /// The number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub source: ParseRangeError,
}

impl MsrList {
    /// The rules that give `verdict` to accesses of these kinds to the listed MSRs, and the other verdict
    /// to everything else.
    pub fn to_spec(&self, access: Access, verdict: Verdict) -> FilterSpec {
        let rules = self
            .0
            .iter()
            .map(|range| Rule::new(*range, access, verdict));
        FilterSpec {
            default: verdict.opposite(),
            rules: rules.collect(),
        }
    }
}

impl FromStr for MsrList {
    type Err = ParseListError;

    fn from_str(text: &str) -> Result<Self, ParseListError> {
        let mut entries = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let entry = text.split('#').next().unwrap_or_default().trim();
            if !entry.is_empty() {
                let range = entry.parse();
                entries.push(range.map_err(|source| ParseListError { line, source })?);
            }
        }
        Ok(Self(entries))
    }
}

impl fmt::Display for MsrList {
    /// Writes what `FromStr` reads, with the names of single MSRs as comments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for range in &self.0 {
            match names::name(range.first()).filter(|_| range.len() == 1) {
                Some(name) => writeln!(f, "{:<10} # {name}", range.to_string())?,
                None => writeln!(f, "{range}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn a_list_reads_back_as_written() {
        let list = MsrList(vec![
            MsrRange::single(0x611),
            MsrRange::new(0x600, 0x63f).unwrap(),
            MsrRange::single(0x12345),
        ]);
        assert_eq!(
            list.to_string(),
            "0x611      # MSR_PKG_ENERGY_STATUS\n0x600-0x63f\n0x12345\n"
        );
        assert_eq!(list.to_string().parse(), Ok(list));
    }

    #[test]
    fn the_error_says_which_line() {
        let error = "0x10\r\n# all fine\n\nIA32_EFFER"
            .parse::<MsrList>()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"line 4: no MSR is called "IA32_EFFER"; did you mean IA32_EFER?"#
        );
    }

    #[test]
    fn nothing_is_an_empty_list() {
        assert_eq!(" \n# nothing\n".parse(), Ok(MsrList::default()));
    }
}
