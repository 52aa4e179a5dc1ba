//! The smallest VM: boots a kernel with its console on standard output, and says how it ended.
//!
//! ```text
//! cargo run --example smallest -- KERNEL [INITRD]
//! ```

use std::error::Error;
use std::io;
use std::process::ExitCode;

use msr_vmm::{Config, ShutdownReason, Vm};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smallest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut config = Config::default();
    config.vm.kernel = arguments.next().map(Into::into);
    config.vm.initrd = arguments.next().map(Into::into);

    let vm = Vm::builder(config)
        .console_output(io::stdout())
        .build()?
        .start()?;
    match vm.wait() {
        ShutdownReason::PowerOff => eprintln!("the guest switched itself off"),
        ShutdownReason::Reset => eprintln!("the guest reset itself"),
        ShutdownReason::DebugExit(status) => eprintln!("the guest ended with status {status}"),
        ShutdownReason::Stopped => eprintln!("the guest was stopped"),
        ShutdownReason::Fault(fault) => return Err(fault.to_string().into()),
    }
    Ok(())
}
