use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::*;

const THR: PioAddressOffset = 0;
const IIR: PioAddressOffset = 2;
const IER_EMPTY: u8 = 1 << 1;
const IIR_EMPTY: u8 = 1 << 1;
const COM1: PioAddress = PioAddress(0x3f8);

/// A writer that takes a piece each time it is allowed to.
struct Gate {
    allowed: Receiver<()>,
    written: Sender<Vec<u8>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.allowed.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.written
            .send(bytes.to_vec())
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn console(output: impl Write + Send + 'static) -> Arc<Console> {
    let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    Console::new(irq, Box::new(output)).unwrap()
}

fn gated() -> (Arc<Console>, Sender<()>, Receiver<Vec<u8>>) {
    let (allow, allowed) = channel();
    let (written, pieces) = channel();
    (console(Gate { allowed, written }), allow, pieces)
}

fn read(console: &Console, register: PioAddressOffset) -> u8 {
    let mut byte = [0];
    console.pio_read(COM1, register, &mut byte);
    byte[0]
}

fn write(console: &Console, register: PioAddressOffset, byte: u8) {
    console.pio_write(COM1, register, &[byte]);
}

/// Writes as a driver does: as long as the transmitter is empty.
fn fill(console: &Console) -> usize {
    let mut count = 0;
    while read(console, LSR) & LSR_EMPTY == LSR_EMPTY {
        write(console, THR, b'x');
        count += 1;
        assert!(count < 1 << 20, "the queue is bounded");
    }
    count
}

#[test]
fn a_stuck_writer_makes_the_transmitter_busy_and_no_byte_is_lost() {
    let (console, allow, pieces) = gated();
    let count = fill(&console);
    write(&console, IER, IER_EMPTY);
    while read(&console, IIR) & IIR_EMPTY != 0 {}
    // The writer takes what it has in hand, then the queue: only then is there room, and an interrupt.
    let mut written = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    while read(&console, IIR) & IIR_EMPTY == 0 {
        assert!(Instant::now() < deadline, "no interrupt for the room");
        allow.send(()).unwrap();
        written += pieces.recv_timeout(Duration::from_secs(10)).unwrap().len();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(read(&console, LSR) & LSR_EMPTY, LSR_EMPTY);
    for _ in 0..4 {
        allow.send(()).unwrap();
    }
    console.close(Duration::from_secs(10));
    assert_eq!(
        written + pieces.try_iter().map(|p| p.len()).sum::<usize>(),
        count
    );
}

#[test]
fn a_guest_that_does_not_wait_loses_bytes_and_nothing_else() {
    let (console, _allow, _pieces) = gated();
    for _ in 0..1 << 18 {
        write(&console, THR, b'x');
    }
    assert_eq!(read(&console, LSR) & LSR_EMPTY, 0);
}

#[test]
fn output_reaches_a_slow_writer_before_the_console_is_closed() {
    let (console, allow, pieces) = gated();
    for byte in b"bye" {
        write(&console, THR, *byte);
    }
    for _ in 0..3 {
        allow.send(()).unwrap();
    }
    console.close(Duration::from_secs(10));
    assert_eq!(pieces.try_iter().flatten().collect::<Vec<_>>(), b"bye");
}

#[test]
fn a_writer_stuck_in_a_system_call_does_not_keep_the_console_from_closing() {
    let (_reader, writer) = io::pipe().unwrap();
    let console = console(writer);
    // More than a pipe takes and than is queued.
    for _ in 0..1 << 18 {
        write(&console, THR, b'x');
    }
    let start = Instant::now();
    console.close(Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn input_waits_for_the_driver_that_takes_it() {
    let console = console(io::sink());
    assert_eq!(console.input(b"early"), 0);
    assert!(console.input_taken().read().is_err());
    write(&console, IER, IER_RECEIVED);
    assert_eq!(console.input_taken().read().unwrap(), 1);
    assert_eq!(console.input(b"early"), 5);
    let taken: Vec<u8> = (0..5).map(|_| read(&console, THR)).collect();
    assert_eq!(taken, b"early");
    assert_eq!(console.input_taken().read().unwrap(), 1);
}

#[test]
fn input_beyond_the_fifo_is_left_to_be_offered_again() {
    let console = console(io::sink());
    write(&console, IER, IER_RECEIVED);
    let input = [b'i'; 100];
    let taken = console.input(&input);
    assert!(taken > 0 && taken < input.len());
    assert_eq!(console.input(&input[taken..]), 0);
    assert_eq!(
        (0..taken).filter(|_| read(&console, THR) == b'i').count(),
        taken
    );
    assert_eq!(console.input(&input[taken..]), input.len() - taken);
}

/// The state as a snapshot has it.
fn saved(console: &Console) -> ConsoleState {
    serde_json::from_value(serde_json::to_value(console.save()).unwrap()).unwrap()
}

#[test]
fn a_restored_console_has_the_registers_and_the_input_and_offers_room_for_more() {
    const SCRATCH: PioAddressOffset = 7;
    let before = console(io::sink());
    write(&before, IER, IER_RECEIVED);
    write(&before, SCRATCH, 0x5a);
    assert_eq!(before.input(b"typed"), 5);
    let after = console(io::sink());
    after.restore(&saved(&before)).unwrap();
    assert_eq!(read(&after, SCRATCH), 0x5a);
    // Without being asked: the driver has long enabled its interrupt.
    assert_eq!(after.input_taken().read().unwrap(), 1);
    let taken: Vec<u8> = (0..5).map(|_| read(&after, THR)).collect();
    assert_eq!(taken, b"typed");
    assert_eq!(after.input(b"more"), 4);
}

#[test]
fn a_guest_that_waited_for_a_stuck_writer_is_told_of_the_room_that_it_has_after_a_restore() {
    let (before, _allow, _pieces) = gated();
    write(&before, IER, IER_EMPTY);
    fill(&before);
    while read(&before, IIR) & IIR_EMPTY != 0 {}
    let after = console(io::sink());
    after.restore(&saved(&before)).unwrap();
    assert_eq!(read(&after, IIR) & IIR_EMPTY, IIR_EMPTY);
    assert_eq!(read(&after, LSR) & LSR_EMPTY, LSR_EMPTY);
}

#[test]
fn more_input_than_a_console_holds_is_refused() {
    let mut state = saved(&console(io::sink()));
    state.in_buffer = vec![0; 65];
    let error = console(io::sink()).restore(&state).unwrap_err();
    assert!(matches!(error, StateError::Registers(_)), "{error}");
}
