//! The console: a 16550A UART on COM1.

mod output;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::sandbox::ThreadFilters;
use output::{Feed, Output};

// The registers and bits this file needs to know (16550D data sheet, section 8).
const IER: PioAddressOffset = 1;
const IER_RECEIVED: u8 = 1 << 0;
const LCR_DIVISOR_LATCH: u8 = 1 << 7;
const LSR: PioAddressOffset = 5;
/// The transmitter's holding register, and the transmitter as a whole, are empty.
const LSR_EMPTY: u8 = 1 << 5 | 1 << 6;

/// An interrupt raised through an irqfd.
pub struct Irqfd(pub EventFd);

impl Trigger for Irqfd {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the event loop that the guest takes input.
struct InputTaken(EventFd);

impl SerialEvents for InputTaken {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // Full only at 2^64 - 2 unread events, and then the loop is awake anyway.
        let _ = self.0.write(1);
    }
}

type Uart = Serial<Irqfd, InputTaken, Feed>;

/// Why a console does not take a state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The process is out of file descriptors.
    #[error("cannot duplicate an eventfd: {0}")]
    Event(#[source] io::Error),
    /// No UART can have these registers.
    #[error("the state is no UART's: {0}")]
    Registers(#[source] vm_superio::serial::Error<io::Error>),
}

/// The UART's registers, saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// A 16550A UART whose output goes to a writer and whose input comes from the event loop.
///
/// The writer may be slow: a bounded queue is between the two, and when it is full the transmitter is not
/// empty, for which drivers wait. So a vCPU never waits for the writer, and can always be paused and
/// stopped. What the writer refuses is lost, as it is on a line with nobody at the other end: a guest is not
/// stopped because its console went away.
pub struct Console {
    uart: Arc<Mutex<Uart>>,
    output: Output,
    irq: EventFd,
    input_taken: EventFd,
    /// Input was offered before the guest's driver was there to take it.
    refused: AtomicBool,
}

impl Console {
    /// A UART that raises its interrupt through `irq` and writes to `output`.
    ///
    /// # Errors
    ///
    /// Where the process is out of file descriptors or threads.
    pub fn new(irq: EventFd, output: Box<dyn Write + Send>) -> io::Result<Arc<Self>> {
        let input_taken = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let events = InputTaken(input_taken.try_clone()?);
        let (queue, feed) = output::queue();
        let trigger = Irqfd(irq.try_clone()?);
        let uart = Arc::new(Mutex::new(Serial::with_events(trigger, events, feed)));
        let waiting = uart.clone();
        queue.start(output, move || announce_room(&mut lock(&waiting)))?;
        Ok(Arc::new(Self {
            uart,
            output: queue,
            irq,
            input_taken,
            refused: AtomicBool::new(false),
        }))
    }

    /// Has the thread that writes enter its filter, before it writes anything.
    pub fn confine(&self, filters: &ThreadFilters) {
        self.output.confine(filters);
    }

    /// Gives the guest as much of `input` as it takes now, and returns how much that was: nothing as long as
    /// its driver has not enabled the interrupt for it, because a driver that starts throws away what is
    /// there.
    pub fn input(&self, input: &[u8]) -> usize {
        let mut uart = lock(&self.uart);
        if uart.state().interrupt_enable & IER_RECEIVED == 0 {
            self.refused.store(true, Ordering::Relaxed);
            return 0;
        }
        let room = uart.fifo_capacity().min(input.len());
        // In loopback mode the UART takes nothing: what is typed then is lost, as on a real one.
        uart.enqueue_raw_bytes(&input[..room]).unwrap_or(room);
        room
    }

    /// The registers. What the guest has sent and the writer has not taken is not among them.
    pub fn save(&self) -> ConsoleState {
        let state = lock(&self.uart).state();
        ConsoleState {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }

    /// Takes the registers over.
    ///
    /// # Errors
    ///
    /// [`StateError`]; the registers are as they were then.
    pub fn restore(&self, state: &ConsoleState) -> Result<(), StateError> {
        let [baud_divisor_low, baud_divisor_high] = state.baud_divisor;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        };
        let trigger = Irqfd(self.irq.try_clone().map_err(StateError::Event)?);
        let events = InputTaken(self.input_taken.try_clone().map_err(StateError::Event)?);
        let uart = Serial::from_state(&state, trigger, events, self.output.feed());
        let mut uart = uart.map_err(StateError::Registers)?;
        // A guest that waits for room has it here, and nobody else would tell it.
        announce_room(&mut uart);
        *lock(&self.uart) = uart;
        // The guest may take input at once.
        self.refused.store(true, Ordering::Relaxed);
        let _ = self.input_taken.write(1);
        Ok(())
    }

    /// Readable once the guest takes more input.
    pub fn input_taken(&self) -> &EventFd {
        &self.input_taken
    }

    /// Has the rest of the output written. What the writer has not taken by the end of `patience` is lost.
    pub(crate) fn close(&self, patience: Duration) {
        self.output.close(patience);
    }
}

fn lock(uart: &Mutex<Uart>) -> MutexGuard<'_, Uart> {
    // The UART is consistent between its calls, so a panic elsewhere does not spoil it.
    uart.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Raises the interrupt for an empty transmitter, where the guest has enabled it: enabling it again does
/// that, here as in hardware.
fn announce_room(uart: &mut Uart) {
    let state = uart.state();
    if state.line_control & LCR_DIVISOR_LATCH == 0
        && let Err(error) = uart.write(IER as u8, state.interrupt_enable)
    {
        log::debug!("console: {error}");
    }
}

impl DevicePio for Console {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if let [byte] = data {
            *byte = lock(&self.uart).read(offset as u8);
            if offset == LSR && self.output.is_full() {
                *byte &= !LSR_EMPTY;
            }
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let [byte] = data else { return };
        let mut uart = lock(&self.uart);
        if let Err(error) = uart.write(offset as u8, *byte) {
            log::debug!("console: {error}");
        }
        if offset == IER && byte & IER_RECEIVED != 0 && self.refused.swap(false, Ordering::Relaxed)
        {
            uart.events().in_buffer_empty();
        }
    }
}
