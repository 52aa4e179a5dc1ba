//! The devices behind ports that need no KVM: the UART and the real-time clock, by accesses of every width at every
//! offset.

use std::io;

use arbitrary::{Arbitrary, Unstructured};
use msr_vmm::devices::rtc::Rtc;
use msr_vmm::devices::serial::Console;
use vm_device::DevicePio;
use vm_device::bus::PioAddress;
use vmm_sys_util::eventfd::EventFd;

#[derive(Arbitrary)]
enum Step<'a> {
    Read {
        rtc: bool,
        offset: u8,
        width: u8,
    },
    Write {
        rtc: bool,
        offset: u8,
        data: [u8; 8],
        width: u8,
    },
    Input(&'a [u8]),
}

/// The widths that an exit can have: IN and OUT of 1, 2 and 4 bytes, and what string forms make of them.
fn width(byte: u8) -> usize {
    usize::from(byte % 9)
}

/// Runs the steps in `data`.
pub fn run(data: &[u8]) {
    let irq = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let console = Console::new(irq, Box::new(io::sink())).expect("a thread");
    let rtc = Rtc::new();
    let mut u = Unstructured::new(data);
    while !u.is_empty() {
        let Ok(step) = Step::arbitrary(&mut u) else {
            return;
        };
        let device =
            |is_rtc| -> (&dyn DevicePio, u8) { if is_rtc { (&rtc, 2) } else { (&*console, 8) } };
        match step {
            Step::Read {
                rtc,
                offset,
                width: w,
            } => {
                let (device, ports) = device(rtc);
                let mut data = [0; 8];
                device.pio_read(
                    PioAddress(0),
                    u16::from(offset % ports),
                    &mut data[..width(w)],
                );
            }
            Step::Write {
                rtc,
                offset,
                data,
                width: w,
            } => {
                let (device, ports) = device(rtc);
                device.pio_write(PioAddress(0), u16::from(offset % ports), &data[..width(w)]);
            }
            Step::Input(bytes) => assert!(console.input(bytes) <= bytes.len()),
        }
    }
}
