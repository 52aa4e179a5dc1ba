//! Counts, sorted: `msr-vmm trace show --top`.

use std::cmp::Reverse;
use std::fmt::Write;

use msr_filter::names;
use msr_trace::symbols::Symbols;
use msr_trace::{Count, Totals};
use serde_json::json;

use super::{ShowArgs, TopBy};
use crate::cli::Failure;

/// Prints the counts, the highest first.
pub(super) fn print(
    totals: &Totals,
    by: TopBy,
    args: &ShowArgs,
    symbols: Option<&Symbols>,
) -> Result<(), Failure> {
    let mut lines: Vec<(String, Count)> = match by {
        TopBy::Msr | TopBy::Rate => totals
            .by_msr()
            .into_iter()
            .map(|(index, count)| {
                (
                    format!("{index:#010x} {}", names::name(index).unwrap_or("-")),
                    count,
                )
            })
            .collect(),
        TopBy::Caller => totals
            .by_caller(|rip| {
                let name = symbols.and_then(|symbols| symbols.function_name(rip));
                name.map_or_else(|| msr_trace::caller(symbols, rip), str::to_owned)
            })
            .into_iter()
            .collect(),
    };
    lines.sort_by_key(|(_, count)| {
        Reverse(if by == TopBy::Rate {
            count.peak
        } else {
            count.total()
        })
    });
    lines.truncate(args.limit.unwrap_or(usize::MAX));
    let mut text = String::new();
    // Writing to a string does not fail.
    if args.json {
        for (key, count) in &lines {
            let line = json!({ "key": key, "reads": count.reads, "writes": count.writes,
                               "faults": count.faults, "peak_per_second": count.peak });
            let _ = writeln!(text, "{line}");
        }
    } else {
        let _ = writeln!(
            text,
            "{:<44}{:>10}{:>10}{:>10}{:>12}",
            by.title(),
            "reads",
            "writes",
            "faults",
            "peak/s"
        );
        for (key, count) in &lines {
            let _ = writeln!(
                text,
                "{key:<44}{:>10}{:>10}{:>10}{:>12}",
                count.reads, count.writes, count.faults, count.peak
            );
        }
    }
    crate::cli::print(&text)
}
