//! The console: a 16550A UART on COM1.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// An interrupt raised through an irqfd.
pub struct Irqfd(pub EventFd);

impl Trigger for Irqfd {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the event loop that the guest has taken all the input it was given.
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

type Uart = Serial<Irqfd, InputTaken, Box<dyn Write + Send>>;

/// A 16550A UART whose output goes to a writer and whose input comes from the event loop.
///
/// What the writer refuses is lost, as it is on a line with nobody at the other end: a guest is not stopped
/// because its console went away.
pub struct Console {
    uart: Mutex<Uart>,
    input_taken: EventFd,
}

impl Console {
    /// A UART that raises its interrupt through `irq` and writes to `output`.
    ///
    /// # Errors
    ///
    /// Where the process is out of file descriptors.
    pub fn new(irq: EventFd, output: Box<dyn Write + Send>) -> io::Result<Arc<Self>> {
        let input_taken = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let events = InputTaken(input_taken.try_clone()?);
        let uart = Mutex::new(Serial::with_events(Irqfd(irq), events, output));
        Ok(Arc::new(Self { uart, input_taken }))
    }

    /// Gives the guest as much of `input` as its receive buffer takes now, and returns how much that was.
    pub fn input(&self, input: &[u8]) -> usize {
        let mut uart = self.uart();
        let room = uart.fifo_capacity().min(input.len());
        // In loopback mode the UART takes nothing: what is typed then is lost, as on a real one.
        uart.enqueue_raw_bytes(&input[..room]).unwrap_or(room);
        room
    }

    /// Readable once the guest has taken all input.
    pub fn input_taken(&self) -> &EventFd {
        &self.input_taken
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        // The UART is consistent between its calls, so a panic elsewhere does not spoil it.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DevicePio for Console {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.uart().read(offset as u8);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let [byte] = data
            && let Err(error) = self.uart().write(offset as u8, *byte)
        {
            log::debug!("console: {error}");
        }
    }
}
