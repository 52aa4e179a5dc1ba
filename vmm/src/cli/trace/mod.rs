//! The commands about traces: `decode`, `trace`, `learn`, and the recording part of `run`.

mod args;
mod decode;
#[cfg(feature = "trace-tools")]
mod export;
mod learn;
#[cfg(feature = "trace-tools")]
mod live;
mod record;
mod recording;
mod show;
mod symbols;
mod top;

pub use args::{
    DecodeArgs, KindArg, LearnArgs, OutcomeArg, RecordArgs, ShowArgs, SymbolArgs, TopBy,
    TraceCommand,
};
#[cfg(feature = "trace-tools")]
pub use args::{ExportArgs, Format, ReportArgs, TopArgs};
pub(crate) use decode::decode;
#[cfg(feature = "trace-tools")]
pub(crate) use export::report;
pub(crate) use learn::learn;
#[cfg(feature = "trace-tools")]
pub(crate) use live::top;
pub(crate) use recording::{RunTrace, TraceOptions, tell};

use std::path::Path;

use msr_trace::{Ending, ReadError, Trace};

use crate::cli::Failure;

/// Does what a `msr-vmm trace` command says.
pub(crate) fn trace(command: &TraceCommand) -> Result<(), Failure> {
    match command {
        TraceCommand::Show(args) => show::show(args),
        #[cfg(feature = "trace-tools")]
        TraceCommand::Export(args) => export::export(args),
        TraceCommand::Record(args) => record::record(args),
    }
}

/// A trace that is open.
type Opened = Trace<std::io::BufReader<std::fs::File>>;

/// Opens a trace, and says on standard error what is missing from it.
fn open(path: &Path) -> Result<Opened, Failure> {
    let trace = Trace::open(path).map_err(|error| unreadable(path, &error))?;
    match trace.ending() {
        Ending::Whole => {}
        Ending::Unfinished => log::warn!(
            "{}: the recording has not ended, or its process was killed; read up to there",
            path.display()
        ),
        Ending::Broken(at) => log::warn!(
            "{}: the block at byte {at} is cut off or damaged; read up to there",
            path.display()
        ),
    }
    for (vcpu, source, lost) in trace.lost().filter(|(_, _, lost)| *lost > 0) {
        let source = match source {
            msr_trace::Source::Userspace => "exits",
            msr_trace::Source::Kernel => "KVM's tracepoints",
        };
        log::warn!(
            "{}: {lost} records of vCPU {vcpu} were lost ({source})",
            path.display()
        );
    }
    Ok(trace)
}

fn unreadable(path: &Path, error: &ReadError) -> Failure {
    Failure::usage(format!("{} {error}", path.display()))
}
