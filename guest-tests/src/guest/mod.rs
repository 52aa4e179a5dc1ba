//! What a Linux guest of the tests does, and what it reports.
//!
//! A test states a [`Plan`] of typed steps. An [`Initrd`] holds it next to the init that follows it
//! (`src/bin/guest-init`) and to the modules that it loads. The init answers each step with a
//! [`Line`] on the console, and [`Report`] puts the plan and the answers in that console's text
//! together again:
//!
//! ```
//! use guest_tests::guest::{Answer, Line, Plan, Report, Step};
//!
//! let plan = Plan::new([Step::read_msr(0, 0x17)]);
//! // What the guest's console showed:
//! let console = format!(
//!     "[    0.5] Run /init as init process\r\n{}\r\n{}\r\n{}\r\n",
//!     Line::Up,
//!     Line::Answer(0, Answer::Value(0x4_0000_0000_0000)),
//!     Line::End,
//! );
//! let report = Report::parse(&plan, &console)?;
//! assert_eq!(report.value(0), Some(0x4_0000_0000_0000));
//! # Ok::<(), guest_tests::guest::ReportError>(())
//! ```

mod block;
mod boot;
mod check;
mod complaint;
mod initrd;
mod plan;
mod record;
mod report;
mod restored;
mod terminal;
mod tiny;
mod traced;
mod update;
mod watch;

pub use block::{BLOCK_DATA, BlockRequest};
pub use boot::{BootError, COMMAND_LINE, Folder, Guest, Outcome, RunningGuest};
pub use check::{CHECK_ARGUMENT, Check};
pub use complaint::complaint;
pub(crate) use initrd::DISK_MODULES;
pub use initrd::{Initrd, InitrdError, MODULES_PATH, ORDER_PATH, PLAN_PATH};
pub use plan::{End, Plan, RESERVED, Step};
pub use record::{RECORD_LEN, intact_records, record};
pub use report::{Answer, Line, Report, ReportError};
pub use restored::RestoredGuest;
pub use terminal::{OnTerminal, Settings};
pub use tiny::{ADDRESS as TINY_ADDRESS, TinyKernel};
pub use traced::{TracedMsr, digest, functions_digest};
pub use update::{AmdUpdate, INTEL_HEADER, IntelUpdate};
