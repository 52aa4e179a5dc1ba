//! Spans of time.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time, written with its unit: `"5s"`, `"1.5s"`, `"200ms"`, `"10m"`, `"1h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A text that is no span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no span of time of at most 1000h: write a number with ms, s, m or h, such as \"5s\""
)]
pub struct ParseSpanError(String);

/// The longest span.
const MAX: Duration = Duration::from_secs(1000 * 3600);
/// The units, with their milliseconds; the first that a text ends in is its.
const UNITS: [(&str, f64); 4] = [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3600e3)];

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseSpanError(text.to_owned());
        let unit = UNITS.iter().find_map(|(unit, milliseconds)| {
            let number = text.strip_suffix(unit)?;
            Some((number, milliseconds))
        });
        let (number, milliseconds) = unit.ok_or_else(wrong)?;
        // The standard library would take a sign, an exponent and "inf".
        let plain = |c: char| c.is_ascii_digit() || c == '.';
        let number: f64 = match number.trim_end() {
            number if number.chars().all(plain) => number.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let span = Duration::try_from_secs_f64(number * milliseconds / 1e3).map_err(|_| wrong())?;
        if span > MAX {
            return Err(wrong());
        }
        Ok(Self(span))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            write!(f, "{}ms", self.0.as_secs_f64() * 1e3)
        }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "title": "a span of time such as \"5s\", with ms, s, m or h",
            "pattern": "^[0-9.]+ *(ms|s|m|h)$",
        })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_number_and_a_unit() {
        for (text, milliseconds, shown) in [
            ("5s", 5000, "5s"),
            ("1.5s", 1500, "1500ms"),
            ("200ms", 200, "200ms"),
            ("0s", 0, "0s"),
            ("10m", 600_000, "600s"),
            ("1 h", 3_600_000, "3600s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(span.to_string(), shown);
            assert_eq!(shown.parse(), Ok(span));
        }
        for text in [
            "", "5", "s", "-5s", "+5s", "1e3s", "infs", "5 days", "1001h", "1.2.3s", "NaNs",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
