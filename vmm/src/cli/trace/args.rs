//! The command lines of the commands about traces.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;
use msr_filter::MsrRange;
use msr_trace::{AnswererClass, Kind, Query};

use crate::cli::completions::candidates;

/// What `msr-vmm decode` takes.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// The MSR, by index (0xce) or name (MSR_PLATFORM_INFO).
    #[arg(value_name = "MSR", add = ArgValueCandidates::new(candidates::msrs))]
    pub msr: MsrRange,
    /// Its value, in decimal or with 0x in hexadecimal.
    #[arg(value_name = "VALUE", value_parser = number)]
    pub value: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The commands of `msr-vmm trace`.
#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Print a trace's records, or counts of them.
    Show(Box<ShowArgs>),
    /// Write a trace in a format of other programs: Perfetto or Parquet.
    #[cfg(feature = "trace-tools")]
    Export(ExportArgs),
    /// Record the MSR accesses that KVM answers for a VM of any VMM, from KVM's tracepoints. Ends with the VM, or by
    /// Ctrl-C.
    Record(RecordArgs),
}

/// What `msr-vmm trace export` takes.
#[cfg(feature = "trace-tools")]
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The trace.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The file to write: .pftrace for Perfetto, .parquet for Parquet.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The format, where the file's name does not say it.
    #[arg(long)]
    pub format: Option<Format>,
    #[command(flatten)]
    pub(crate) symbols: SymbolArgs,
}

/// Formats of other programs.
#[cfg(feature = "trace-tools")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Perfetto's protobuf.
    Perfetto,
    /// Apache Parquet.
    Parquet,
}

#[cfg(feature = "trace-tools")]
impl Format {
    /// The format that a file's name says.
    pub(crate) fn of(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "pftrace" | "perfetto-trace" => Some(Self::Perfetto),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// What `msr-vmm report` takes.
#[cfg(feature = "trace-tools")]
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The trace.
    #[arg(value_name = "TRACE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The page to write.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    #[command(flatten)]
    pub(crate) symbols: SymbolArgs,
}

/// What `msr-vmm top` takes.
#[cfg(feature = "trace-tools")]
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The trace, which `msr-vmm run --trace` writes meanwhile.
    #[arg(value_name = "TRACE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Where functions' names come from.
#[derive(Clone, Debug, Default, Args)]
pub struct SymbolArgs {
    /// Where the guest kernel's symbols are: its image (bzImage or vmlinux), a System.map, or the guest's own
    /// /proc/kallsyms, saved. Unless given, the image that the trace names, if it is still there.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub symbols: Option<PathBuf>,
}

/// What `msr-vmm trace show` takes.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The trace.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Only these MSRs: an index, a name or a range. Can be given several times, as can --vcpu, --by and --function.
    #[arg(long, value_name = "MSR", add = ArgValueCandidates::new(candidates::msrs))]
    pub msr: Vec<MsrRange>,
    /// Only this vCPU.
    #[arg(long, value_name = "N")]
    pub vcpu: Vec<u16>,
    /// Only reads, or only writes.
    #[arg(long, value_name = "read|write")]
    pub kind: Option<KindArg>,
    /// Only accesses that got a value, or only those that faulted (#GP).
    #[arg(long, value_name = "ok|fault")]
    pub outcome: Option<OutcomeArg>,
    /// Only what this one answered: kernel, unclaimed, device (any of them), or a device's name.
    #[arg(long, value_name = "WHO")]
    pub by: Vec<AnswererClass>,
    /// Only accesses from this function of the guest's kernel.
    #[arg(long, value_name = "NAME")]
    pub function: Vec<String>,
    /// Only from this time on, in seconds since the start.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub from: Option<u64>,
    /// Only up to this time.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub to: Option<u64>,
    /// Only where the value is another than at the last access of the same kind, MSR and vCPU.
    #[arg(long)]
    pub only_changes: bool,
    /// Print counts instead of records: by msr, by caller, or msr by its rate in the busiest second.
    #[arg(long, value_name = "BY", num_args = 0..=1, default_missing_value = "msr", conflicts_with_all = ["csv", "follow"])]
    pub top: Option<TopBy>,
    /// Print at most this many lines.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON Lines: an object a line.
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print comma-separated values with a line of names.
    #[arg(long)]
    pub csv: bool,
    /// Go on as the trace grows, until its recording ends.
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub(crate) symbols: SymbolArgs,
}

impl ShowArgs {
    /// The predicates.
    pub(crate) fn query(&self) -> Query {
        Query {
            msrs: self.msr.clone(),
            vcpus: self.vcpu.clone(),
            kind: self.kind.map(|kind| match kind {
                KindArg::Read => Kind::Read,
                KindArg::Write => Kind::Write,
            }),
            faulted: self.outcome.map(|outcome| outcome == OutcomeArg::Fault),
            answerers: self.by.clone(),
            functions: self.function.clone(),
            from: self.from,
            to: self.to,
            only_changes: self.only_changes,
        }
    }
}

/// Kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// What became of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutcomeArg {
    /// A value.
    Ok,
    /// #GP.
    Fault,
}

/// What counts are by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopBy {
    /// The MSR.
    Msr,
    /// The function that made the access.
    Caller,
    /// The MSR, sorted by the most accesses in a second.
    Rate,
}

/// What `msr-vmm trace record` takes.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The process that runs the VM.
    #[arg(long, value_name = "PID")]
    pub pid: u32,
    /// The trace to write.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
}

/// What `msr-vmm learn` takes.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// The traces, any number of runs. All are read with the same symbols if --symbols is given.
    #[arg(value_name = "TRACE", required = true, value_hint = ValueHint::FilePath)]
    pub traces: Vec<PathBuf>,
    /// The profile to write; standard output unless given.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Add what this profile does not allow yet to its text, instead of starting anew.
    #[arg(long, value_name = "PROFILE", value_hint = ValueHint::FilePath)]
    pub merge: Option<PathBuf>,
    /// Print what this profile (a file, or one that comes with the program) would have denied of what the traces hold, and write none. Status 1
    /// if there is anything.
    #[arg(long, value_name = "PROFILE", conflicts_with_all = ["output", "merge"])]
    pub check: Option<PathBuf>,
    /// Learn from a trace although records of it were lost.
    #[arg(long)]
    pub with_losses: bool,
    #[command(flatten)]
    pub(crate) symbols: SymbolArgs,
}

fn number(text: &str) -> Result<u64, String> {
    let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(&hex.replace('_', ""), 16),
        None => text.replace('_', "").parse(),
    };
    value.map_err(|_| "a 64-bit value is wanted, such as 24 or 0x80000f0f81800".to_owned())
}

/// Seconds as nanoseconds.
fn seconds(text: &str) -> Result<u64, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds is wanted".to_owned())?;
    let nanos = seconds * 1e9;
    if (0.0..1e19).contains(&nanos) {
        Ok(nanos as u64)
    } else {
        Err("a number of seconds from 0 on is wanted".to_owned())
    }
}
