//! The devices behind ports that need no KVM, by accesses of every width at every offset: the UART, the real-time clock, PCI's
//! configuration space, the i8042, and the ports by which a guest ends or says how far it is.
//!
//! Bytes that are read come from the device or stay as they were. The guest ends only by the ports that are there for it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use arbitrary::{Arbitrary, Unstructured};
use msr_vmm::cpu::PciFunction;
use msr_vmm::devices::boot_timer::BootTimer;
use msr_vmm::devices::debug_exit::DebugExit;
use msr_vmm::devices::pci::PciConfigSpace;
use msr_vmm::devices::power::{I8042, ResetRegister};
use msr_vmm::devices::rtc::Rtc;
use msr_vmm::devices::serial::Console;
use msr_vmm::models::ModelName;
use msr_vmm::{BootTiming, Config, ShutdownReason, shutdown_channel};
use vm_device::DevicePio;
use vm_device::bus::PioAddress;
use vmm_sys_util::eventfd::EventFd;

#[derive(Arbitrary)]
enum Step<'a> {
    Read {
        device: u8,
        offset: u8,
        width: u8,
    },
    Write {
        device: u8,
        offset: u8,
        data: [u8; 8],
        width: u8,
    },
    Input(&'a [u8]),
}

thread_local! {
    /// The functions of a model that has some: the host bridge of a client.
    static FUNCTIONS: Vec<PciFunction> = {
        let name = ModelName::new("haswell-client");
        let config = Config::load(None, Some(&name)).expect("a model that comes with the program");
        assert!(!config.cpu.pci.is_empty());
        config.cpu.pci
    };
}

/// The widths that an exit can have: IN and OUT of 1, 2 and 4 bytes, and what string forms make of them.
fn width(byte: u8) -> usize {
    usize::from(byte % 9)
}

/// Runs the steps in `data`.
pub fn run(data: &[u8]) {
    let irq = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let console = Console::new(irq, Box::new(io::sink())).expect("a thread");
    let (shutdown, ended) = shutdown_channel().expect("an eventfd");
    let pci = FUNCTIONS.with(|functions| PciConfigSpace::new(functions));
    // Each with its number of ports. Those by which the guest ends are last.
    let devices: [(&dyn DevicePio, u8); 7] = [
        (&*console, 8),
        (&Rtc::new(), 2),
        (&pci, 8),
        (&BootTimer(Arc::new(BootTiming::new(Instant::now()))), 1),
        (&I8042::new(shutdown.clone()), 5),
        (&ResetRegister(shutdown.clone()), 1),
        (&DebugExit(shutdown), 4),
    ];
    let may_end = |device: usize| device >= 4;
    let mut u = Unstructured::new(data);
    while !u.is_empty() {
        let Ok(step) = Step::arbitrary(&mut u) else {
            return;
        };
        match step {
            Step::Read {
                device,
                offset,
                width: w,
            } => {
                let (device, ports) = devices[usize::from(device) % devices.len()];
                let mut data = [0; 8];
                device.pio_read(
                    PioAddress(0),
                    u16::from(offset % ports),
                    &mut data[..width(w)],
                );
                assert!(data[width(w)..].iter().all(|byte| *byte == 0));
                assert!(ended.try_receive().is_none(), "a read ends the guest");
            }
            Step::Write {
                device,
                offset,
                data,
                width: w,
            } => {
                let number = usize::from(device) % devices.len();
                let (device, ports) = devices[number];
                device.pio_write(PioAddress(0), u16::from(offset % ports), &data[..width(w)]);
                match ended.try_receive() {
                    None => {}
                    Some(ShutdownReason::DebugExit(status)) => assert!(status % 2 == 1),
                    Some(reason) => assert!(may_end(number), "{reason:?} by device {number}"),
                }
            }
            Step::Input(bytes) => assert!(console.input(bytes) <= bytes.len()),
        }
    }
}
