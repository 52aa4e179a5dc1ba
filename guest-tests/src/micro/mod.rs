//! Micro guests: a list of MSR accesses goes in, what the guest and userspace saw of each comes out.
//!
//! A guest is a loop of some twenty instructions over a table of accesses in its memory, in long mode or
//! in real mode, with a #GP handler that notes the fault and goes on with the next access. It needs no
//! instruction that KVM would have to emulate and cannot, so that it runs on every KVM there is.
//! MSR exits are answered by the product's own code.
//!
//! ```no_run
//! use guest_tests::micro::{MicroVm, Op};
//! use msr_bus::MsrBus;
//!
//! let mut vm = MicroVm::long_mode().bus(MsrBus::builder().build()?).build()?;
//! let run = vm.run(&[Op::Read(0x1b), Op::Write(0xce, 1)])?;
//! println!("{:?} {:?}", run.seen, run.exits);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod code;
mod error;
mod kernel;
mod machine;
mod memory;
mod record;
mod registers;
mod vcpu;

pub use code::Mode;
pub use code::{AccessLoop, DONE_PORT};
pub use error::MicroError;
pub use kernel::{KERNEL_ADDRESS, write_kernel};
pub use machine::{Builder, MicroVm};
pub use record::{Fault, Op, Outcome, Seen};
pub use vcpu::{MicroVcpu, Run};
