//! `msr-vmm trace export` and `msr-vmm report`: traces for other programs, and for people who would rather look.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use msr_trace::RowMaker;
use msr_trace::export::parquet::Parquet;
use msr_trace::export::perfetto::Perfetto;
use msr_trace::learn::Lesson;

use super::args::{ExportArgs, Format, ReportArgs};
use super::{open, symbols, unreadable};
use crate::cli::Failure;

/// Writes a trace in another format.
pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let mut trace = open(&args.file)?;
    let header = trace.header().clone();
    let symbols = symbols::load(&args.symbols, &header, trace.lstar())?;
    let symbols = symbols.as_ref();
    let cannot = |error: &dyn std::fmt::Display| unwritable(&args.output, error);
    let out = File::create(&args.output).map_err(|error| cannot(&error))?;
    let format = args
        .format
        .or_else(|| Format::of(&args.output))
        .ok_or_else(|| {
            let name = args.output.display();
            Failure::usage(format!(
                "{name}: which format? --format, or a name that ends in .pftrace or .parquet"
            ))
        })?;
    match format {
        Format::Perfetto => {
            let mut to =
                Perfetto::new(BufWriter::new(out), &header).map_err(|error| cannot(&error))?;
            for record in trace.records() {
                let record = record.map_err(|error| unreadable(&args.file, &error))?;
                to.record(&record, symbols)
                    .map_err(|error| cannot(&error))?;
            }
            for (time, text) in trace.marks() {
                to.mark(time, text).map_err(|error| cannot(&error))?;
            }
            to.finish().map_err(|error| cannot(&error))
        }
        Format::Parquet => {
            let mut to = Parquet::new(out, header.wall_time).map_err(|error| cannot(&error))?;
            let mut rows = RowMaker::new(&header);
            for record in trace.records() {
                let record = record.map_err(|error| unreadable(&args.file, &error))?;
                to.row(&rows.row(symbols, &record))
                    .map_err(|error| cannot(&error))?;
            }
            to.finish().map_err(|error| cannot(&error))
        }
    }
}

/// Writes the page of a trace.
pub(crate) fn report(args: &ReportArgs) -> Result<(), Failure> {
    let mut trace = open(&args.file)?;
    let symbols = symbols::load(&args.symbols, trace.header(), trace.lstar())?;
    let mut lesson = Lesson::default();
    let profile = match lesson.learn(&mut trace, symbols.as_ref(), false) {
        Ok(()) => Some(lesson.profile().text),
        Err(error) => {
            log::info!("no profile is in the page: the trace {error}");
            None
        }
    };
    let page = msr_trace::report::page(&mut trace, symbols.as_ref(), profile.as_deref());
    let page = page.map_err(|error| unreadable(&args.file, &error))?;
    fs::write(&args.output, page).map_err(|error: io::Error| unwritable(&args.output, &error))
}

fn unwritable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::fault(format!("{}: {error}", path.display()))
}
