//! A trace as one page: `msr-vmm report`.
//!
//! The page is one HTML file that loads nothing: data as JSON, uPlot 1.6.32 (MIT, assets/uPlot.LICENSE) for the plots over time, the rest plain
//! HTML. Its size does not grow with the trace: time is cut into [`BINS`] parts, and values over time are thinned to
//! [`POINTS`].

mod data;

use std::fmt::Write;
use std::io::{Read, Seek};

pub use data::{BINS, POINTS};

use crate::error::ReadError;
use crate::read::Trace;
use crate::symbols::Symbols;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");
const UPLOT: &str = include_str!("assets/uPlot.iife.min.js");
const UPLOT_STYLE: &str = include_str!("assets/uPlot.min.css");

/// The page of a trace, with the learnt profile's text if there is one.
///
/// # Errors
///
/// [`ReadError`].
pub fn page<R: Read + Seek>(
    trace: &mut Trace<R>,
    symbols: Option<&Symbols>,
    profile: Option<&str>,
) -> Result<String, ReadError> {
    let data = data::collect(trace, symbols, profile)?;
    // What a guest's kernel calls its functions must not end the script.
    let json = serde_json::to_string(&data)
        .map_err(|error| ReadError::Io(error.into()))?
        .replace('<', "\\u003c");
    let mut page = String::with_capacity(PAGE.len() + json.len() + UPLOT.len() + SCRIPT.len());
    let mut rest = PAGE;
    for (mark, text) in [
        ("/*UPLOT_STYLE*/", UPLOT_STYLE),
        ("/*STYLE*/", STYLE),
        ("/*DATA*/", &json),
        ("/*UPLOT*/", UPLOT),
        ("/*SCRIPT*/", SCRIPT),
    ] {
        // The marks are in the page, in this order; a test reads what comes out.
        let (before, after) = rest.split_once(mark).unwrap_or((rest, ""));
        let _ = write!(page, "{before}{text}");
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::{Answerer, Header, Kind, Reason, Record, TraceWriter};

    #[test]
    fn the_page_holds_the_figures_of_the_trace_and_loads_nothing() {
        let mut file = Vec::new();
        let header = Header {
            vcpus: 1,
            start: 1000,
            ..Header::default()
        };
        let mut writer = TraceWriter::new(&mut file, &header).unwrap();
        for n in 0..5000u64 {
            let index = if n % 5 == 0 { 0x611 } else { 0x10 };
            let record = Record {
                time: 1000 + n * 1_000_000,
                vcpu: 0,
                index,
                kind: if n % 2 == 0 { Kind::Read } else { Kind::Write },
                value: n,
                rip: Some(0xffff_ffff_8100_0000),
                fault: n % 100 == 0,
                injected: false,
                answerer: Answerer::Device(Reason::Filter),
            };
            writer.record(&record).unwrap();
        }
        writer.finish().unwrap();
        let map = "ffffffff81000000 T a</script>b\n";
        let symbols = Symbols::from_text(map);
        let mut trace = Trace::new(Cursor::new(file)).unwrap();
        let page = page(&mut trace, Some(&symbols), Some("default = \"deny\"\n")).unwrap();
        assert!(page.len() < 2 << 20);
        let json = page
            .split_once("id=\"data\">")
            .unwrap()
            .1
            .split_once("</script>")
            .unwrap()
            .0;
        let data: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(data["records"], 5000);
        assert_eq!(data["faults"], 50);
        let rapl = data["msrs"]
            .as_array()
            .unwrap()
            .iter()
            .find(|m| m["index"] == 0x611)
            .unwrap();
        assert_eq!(
            rapl["reads"].as_u64().unwrap() + rapl["writes"].as_u64().unwrap(),
            1000
        );
        assert_eq!(data["callers"][0]["name"], "a</script>b");
        let bins: u64 = data["timeline"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|class| class["counts"].as_array().unwrap())
            .map(|n| n.as_u64().unwrap())
            .sum();
        assert_eq!(bins, 5000);
        assert_eq!(
            data["sensors"][0]["points"].as_array().unwrap().len(),
            500 - 50
        );
        for loads in ["src=", "href=\"http", "@import", "/*DATA*/", "/*SCRIPT*/"] {
            assert!(!page.contains(loads), "{loads}");
        }
    }
}
