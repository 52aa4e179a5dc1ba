//! `msr-vmm trace show`.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::thread;
use std::time::Duration;

use msr_trace::symbols::Symbols;
use msr_trace::{Csv, Follower, Header, Record, RowMaker, Selection};

use super::{ShowArgs, TopBy, open, symbols, top, unreadable};
use crate::cli::Failure;

/// How often a trace that is followed is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Prints a trace.
pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    if args.follow {
        return follow(args);
    }
    let mut trace = open(&args.file)?;
    let header = trace.header().clone();
    let symbols = symbols::load(&args.symbols, &header, trace.lstar())?;
    let query = args.query();
    if let Some(by) = args.top {
        let mut selection = query.select(&header);
        let mut totals = msr_trace::Totals::default();
        for record in trace.records() {
            let record = record.map_err(|error| unreadable(&args.file, &error))?;
            if selection.takes(&record, |rip| symbols.as_ref()?.function_name(rip)) {
                totals.add(&record);
            }
        }
        return top::print(&totals, by, args, symbols.as_ref());
    }
    let mut printer = Printer::new(args, &header, query.select(&header))?;
    let marks = trace.marks().into_iter();
    let marks: Vec<(u64, String)> = marks.map(|(time, text)| (time, text.to_owned())).collect();
    let mut marks = marks.into_iter().peekable();
    for record in trace.records() {
        let record = record.map_err(|error| unreadable(&args.file, &error))?;
        while let Some((time, text)) = marks.next_if(|(time, _)| *time < record.time) {
            printer.print_mark(time, &text)?;
        }
        if !printer.print(&record, symbols.as_ref())? {
            return printer.finish();
        }
    }
    for (time, text) in marks {
        printer.print_mark(time, &text)?;
    }
    printer.finish()
}

fn follow(args: &ShowArgs) -> Result<(), Failure> {
    let mut follower =
        Follower::open(&args.file).map_err(|error| unreadable(&args.file, &error))?;
    let header = follower.header().clone();
    let query = args.query();
    let mut printer = Printer::new(args, &header, query.select(&header))?;
    let mut names = symbols::load(&args.symbols, &header, None)?;
    loop {
        let records = follower
            .poll()
            .map_err(|error| unreadable(&args.file, &error))?;
        if let (Some(symbols), Some(lstar)) = (&mut names, follower.lstar()) {
            symbols.set_lstar(lstar);
        }
        for (time, text) in follower.take_marks() {
            printer.print_mark(time, &text)?;
        }
        for record in &records {
            if !printer.print(record, names.as_ref())? {
                return printer.finish();
            }
        }
        printer.flush()?;
        if records.is_empty() {
            if follower.ended() {
                return printer.finish();
            }
            thread::sleep(POLL);
        }
    }
}

/// Prints the records that are asked for.
struct Printer<'a> {
    args: &'a ShowArgs,
    selection: Selection<'a>,
    rows: RowMaker<'a>,
    /// When the recording began.
    start: u64,
    out: BufWriter<io::Stdout>,
    printed: usize,
}

impl<'a> Printer<'a> {
    fn new(
        args: &'a ShowArgs,
        header: &'a Header,
        selection: Selection<'a>,
    ) -> Result<Self, Failure> {
        let mut printer = Self {
            args,
            selection,
            rows: RowMaker::new(header),
            start: header.start,
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
            printed: 0,
        };
        if args.csv {
            let written = writeln!(printer.out, "{}", Csv::HEADER);
            heard(written)?;
        }
        Ok(printer)
    }

    /// Whether to go on: nobody may be there to read, or enough may have been printed.
    fn print(&mut self, record: &Record, symbols: Option<&Symbols>) -> Result<bool, Failure> {
        if self.args.limit.is_some_and(|limit| self.printed >= limit) {
            return Ok(false);
        }
        let function = |rip| symbols?.function_name(rip);
        if !self.selection.takes(record, function) {
            return Ok(true);
        }
        self.printed += 1;
        let row = self.rows.row(symbols, record);
        let written = if self.args.json {
            serde_json::to_writer(&mut self.out, &row)
                .map_err(io::Error::from)
                .and_then(|()| self.out.write_all(b"\n"))
        } else if self.args.csv {
            writeln!(self.out, "{}", Csv(&row))
        } else {
            writeln!(self.out, "{row}")
        };
        heard(written)
    }

    /// What was done to the VM from outside. A table of records has no row for it.
    fn print_mark(&mut self, time: u64, text: &str) -> Result<(), Failure> {
        let nanoseconds = time.saturating_sub(self.start);
        let written = if self.args.json {
            let line = serde_json::json!({ "time_ns": nanoseconds, "mark": text });
            writeln!(self.out, "{line}")
        } else if self.args.csv {
            Ok(())
        } else {
            let (seconds, micros) = (nanoseconds / 1_000_000_000, nanoseconds / 1000 % 1_000_000);
            writeln!(self.out, "{seconds:>5}.{micros:06} ------ {text}")
        };
        heard(written).map(drop)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        heard(self.out.flush()).map(drop)
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.flush()
    }
}

/// A reader that has seen enough is no error; a full disk is.
fn heard(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::fault(format!("cannot write the output: {error}"))),
    }
}

impl TopBy {
    /// The heading of the first column.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Msr | Self::Rate => "MSR",
            Self::Caller => "caller",
        }
    }
}
