//! Every MSR access of a guest, recorded and made sense of.
//!
//! A VMM's vCPU threads push [`Record`]s into a [`Recorder`], which never blocks them; a thread of a [`Recording`] writes them to a
//! file. A [`Trace`] reads such a file back, also one whose writer was killed, in the order of time and in bounded memory. The
//! rest turns records into answers: [`Query`] selects, [`Row`] shows one with the MSR's name, fields, caller and
//! rule, [`Totals`] counts. With features: `symbols` names the guest's functions, `learn` derives a filter that allows what
//! was used, `perfetto` and `parquet` carry a trace to other programs, `report` makes a page of it.
//!
//! The crate knows nothing of KVM: whoever sees accesses can record them.
//!
//! ```
//! use msr_trace::{Answerer, Header, Kind, Reason, Record, Trace, TraceWriter};
//!
//! let mut file = Vec::new();
//! let mut writer = TraceWriter::new(&mut file, &Header { vcpus: 1, ..Header::default() })?;
//! let record = Record {
//!     time: 5,
//!     vcpu: 0,
//!     index: 0xce,
//!     kind: Kind::Read,
//!     value: 0x1800,
//!     rip: None,
//!     fault: false,
//!     injected: false,
//!     answerer: Answerer::Device(Reason::Filter),
//! };
//! writer.record(&record)?;
//! writer.finish()?;
//!
//! let mut trace = Trace::new(std::io::Cursor::new(file))?;
//! let read: Vec<Record> = trace.records().collect::<Result<_, _>>()?;
//! assert_eq!(read, [record]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod follow;
pub mod format;
mod header;
#[cfg(feature = "learn")]
pub mod learn;
mod note;
mod query;
mod read;
mod record;
mod recorder;
mod row;
pub mod symbols;
mod totals;
mod write;

#[cfg(any(feature = "perfetto", feature = "parquet"))]
pub mod export;
#[cfg(feature = "report")]
pub mod report;

pub use error::ReadError;
pub use follow::Follower;
pub use header::{Claim, Header, Host, Kernel, NotSeen, OBSERVER, Policy, PolicyRule};
pub use note::Note;
pub use query::{AnswererClass, Query, Selection};
pub use read::{Ending, Records, Trace};
pub use record::{Answerer, Kind, Reason, Record, Source};
pub use recorder::{MARKS, RING, Recorder, Recording, Summary};
pub use row::{Csv, Row, RowMaker, caller};
pub use totals::{Count, Totals};
pub use write::{FLUSH_INTERVAL, TraceWriter};
