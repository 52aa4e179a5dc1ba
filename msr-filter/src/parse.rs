//! Ranges, access kinds and verdicts from text.

use alloc::{borrow::ToOwned, string::String};
use core::{fmt, str::FromStr};

use crate::{Access, EmptyRange, MsrRange, Verdict, names};

/// Text that is no MSR and no range of MSRs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRangeError {
    /// There is nothing to read, on one side of a `-` or at all.
    #[error("an MSR is missing in {text:?}: write an index such as 0x611, a name, or first-last")]
    Missing {
        /// The whole text.
        text: String,
    },
    /// A number has letters that are no digits, or does not fit 32 bits.
    #[error("{text:?} is no MSR index: write 0x0 to 0xffffffff, or the same in decimal")]
    BadNumber {
        /// The number as it was written.
        text: String,
    },
    /// No MSR has the name.
    #[error("no MSR is called {text:?}{}", Hint(*nearest))]
    UnknownName {
        /// The name as it was written.
        text: String,
        /// The known name most like it.
        nearest: Option<&'static str>,
    },
    /// The range ends before it starts.
    #[error(transparent)]
    Empty(#[from] EmptyRange),
}

struct Hint(Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; did you mean {name}?"),
            None => f.write_str("; a number can be given instead, such as 0x611"),
        }
    }
}

impl FromStr for MsrRange {
    type Err = ParseRangeError;

    /// Reads an index (`0x611`, or decimal `1553`), a name (see [`names::index`]), or two of either
    /// with a `-` between them for a range that includes both.
    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        let range = match text.split_once('-') {
            Some((first, last)) => Self::new(index(first, text)?, index(last, text)?)?,
            None => Self::single(index(text, text)?),
        };
        Ok(range)
    }
}

/// The index that `part` of `whole` stands for.
fn index(part: &str, whole: &str) -> Result<u32, ParseRangeError> {
    let part = part.trim();
    let bad_number = |_| ParseRangeError::BadNumber {
        text: part.to_owned(),
    };
    if part.is_empty() {
        return Err(ParseRangeError::Missing {
            text: whole.to_owned(),
        });
    }
    if !part.starts_with(|c: char| c.is_ascii_digit()) {
        return names::index(part).ok_or_else(|| ParseRangeError::UnknownName {
            text: part.to_owned(),
            nearest: names::nearest(part),
        });
    }
    match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        // `from_str_radix` takes a sign, which has no place after 0x.
        Some(digits) if !digits.starts_with('+') => {
            u32::from_str_radix(digits, 16).map_err(bad_number)
        }
        _ => part.parse().map_err(bad_number),
    }
}

/// Text that is no kind of access.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no kind of MSR access: write r, w or rw")]
pub struct ParseAccessError {
    /// The text as it was written.
    pub text: String,
}

impl FromStr for Access {
    type Err = ParseAccessError;

    /// Reads `r`, `w` or `rw`.
    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        match text {
            "r" => Ok(Self::READ),
            "w" => Ok(Self::WRITE),
            "rw" => Ok(Self::all()),
            _ => Err(ParseAccessError {
                text: text.to_owned(),
            }),
        }
    }
}

/// Text that is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no verdict: write allow or deny")]
pub struct ParseVerdictError {
    /// The text as it was written.
    pub text: String,
}

impl FromStr for Verdict {
    type Err = ParseVerdictError;

    /// Reads `allow` or `deny`.
    fn from_str(text: &str) -> Result<Self, ParseVerdictError> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(ParseVerdictError {
                text: text.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    fn range(first: u32, last: u32) -> MsrRange {
        MsrRange::new(first, last).unwrap()
    }

    #[test]
    fn numbers_names_and_ranges_of_both_are_read() {
        for (text, expected) in [
            ("0x611", range(0x611, 0x611)),
            ("0XFFFFFFFF", range(u32::MAX, u32::MAX)),
            ("16", range(16, 16)),
            ("0x600-0x63f", range(0x600, 0x63f)),
            (" 0x600 - 1599 ", range(0x600, 1599)),
            ("IA32_MC0_CTL-ia32_mc3_misc", range(0x400, 0x40f)),
            ("IA32_EFER-0xc0000084", range(0xc000_0080, 0xc000_0084)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_a_range_displays_reads_back_as_the_same_range() {
        for range in [MsrRange::ALL, MsrRange::single(0), range(0x600, 0x63f)] {
            assert_eq!(range.to_string().parse(), Ok(range));
        }
    }

    #[test]
    fn errors_name_the_wrong_part_and_the_nearest_right_name() {
        for (text, message) in [
            (
                "IA32_EFFER",
                r#"no MSR is called "IA32_EFFER"; did you mean IA32_EFER?"#,
            ),
            (
                "c0000080",
                r#"no MSR is called "c0000080"; a number can be given instead, such as 0x611"#,
            ),
            (
                "0x600-",
                r#"an MSR is missing in "0x600-": write an index such as 0x611, a name, or first-last"#,
            ),
            (
                "0x1_0000_0000",
                r#""0x1_0000_0000" is no MSR index: write 0x0 to 0xffffffff, or the same in decimal"#,
            ),
            (
                "0x100000000",
                r#""0x100000000" is no MSR index: write 0x0 to 0xffffffff, or the same in decimal"#,
            ),
            (
                "0x+1",
                r#""0x+1" is no MSR index: write 0x0 to 0xffffffff, or the same in decimal"#,
            ),
            ("0x20-0x10", "the MSR range 0x20-0x10 ends before it starts"),
        ] {
            let error = text.parse::<MsrRange>().unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        assert!("".parse::<MsrRange>().is_err());
        assert!("-".parse::<MsrRange>().is_err());
        assert!("1-2-3".parse::<MsrRange>().is_err());
    }

    #[test]
    fn access_and_verdict_read_what_they_display() {
        for access in [Access::READ, Access::WRITE, Access::all()] {
            assert_eq!(access.to_string().parse(), Ok(access));
        }
        for verdict in [Verdict::Allow, Verdict::Deny] {
            assert_eq!(verdict.to_string().parse(), Ok(verdict));
        }
        assert!("wr".parse::<Access>().is_err());
        assert!("".parse::<Access>().is_err());
        assert!("Deny".parse::<Verdict>().is_err());
    }
}
