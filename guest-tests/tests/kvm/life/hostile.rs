//! Guests that try to hold up the program that runs them, or to make it grow.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_vmm::config::MemorySize;
use msr_vmm::{Config, RunningVm, ShutdownReason, Vm, layout};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("hostile":
        a_microcode_update_of_the_largest_size_holds_up_no_pause,
        a_vm_of_a_program_that_blocks_every_signal_pauses_and_ends,
        a_guest_that_hammers_the_reset_port_ends_once,
        a_guest_that_hammers_its_power_off_ends_once,
    )
}

fn start(kernel: &mut TinyKernel, devices: &str) -> Result<RunningVm, Failed> {
    let folder = Folder::new()?;
    let mut config: Config = toml::from_str(devices)?;
    config.vm.memory = MemorySize(32 << 20);
    config.vm.kernel = Some(folder.file("kernel", kernel.elf()?)?);
    Ok(Vm::builder(config).build()?.start()?)
}

/// Pauses and resumes the VM, and says how long the longest pause took to begin.
fn longest_pause(vm: &RunningVm, what: &str) -> Duration {
    const PAUSES: u32 = 20;
    let mut longest = Duration::ZERO;
    for _ in 0..PAUSES {
        thread::sleep(Duration::from_millis(20));
        let begin = Instant::now();
        vm.pause().expect("there is no disk");
        longest = longest.max(begin.elapsed());
        vm.resume();
    }
    println!("{what}: the longest of {PAUSES} pauses took {longest:?} to begin");
    longest
}

/// An update that is well formed and for another processor, so that all of it must be read to refuse it. Memory
/// is zero at first, so header and, if there is one, table are all there is to write. Intel's format.
fn load_updates_for_ever(table: bool) -> Result<TinyKernel, Failed> {
    const AT: u32 = 2 << 20;
    const HEADER: u32 = 48;
    // The most that is a multiple of 1024, with as many entries of 12 bytes as fit below 4 MiB.
    const TOTAL: u32 = 1365 * 3 * 1024;
    let data = if table { 4 } else { TOTAL - HEADER };
    let mut words = vec![
        (0, 1),
        (4, 7),
        // Signature, flags and checksum sum to 0, and so does each entry of zeros.
        (16, 1u32.wrapping_neg()),
        (20, 1),
        (24, 1),
        (28, data),
        (32, TOTAL),
        (HEADER, (1 + 7 + 1 + data + TOTAL).wrapping_neg()),
    ];
    if table {
        let entries = (TOTAL - HEADER - data - 20) / 12;
        words.extend([
            (HEADER + data, entries),
            (HEADER + data + 4, entries.wrapping_neg()),
        ]);
    }
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    for (offset, word) in words {
        code.mov(edi, AT + offset)?;
        code.mov(eax, word)?;
        code.mov(dword_ptr(rdi), eax)?;
    }
    let mut again = code.create_label();
    code.mov(eax, AT + HEADER)?;
    code.xor(edx, edx)?;
    code.mov(ecx, 0x79)?;
    code.set_label(&mut again)?;
    code.wrmsr()?;
    code.jmp(again)?;
    Ok(kernel)
}

/// That a call reads a bounded number of pages is the device's own test; here it is the VM that is looked at.
fn a_microcode_update_of_the_largest_size_holds_up_no_pause() -> Result<(), Failed> {
    for (table, what) in [
        (true, "a table of 349434 entries"),
        (false, "4 MiB of data"),
    ] {
        let vm = start(
            &mut load_updates_for_ever(table)?,
            "cpu = { vendor = 'GenuineIntel', family = 6, model = 106 }\n\
             [[msr.device]]\ntype = 'microcode'\nsignature = 0x606a6",
        )?;
        longest_pause(&vm, what);
        vm.stop();
        if !matches!(vm.wait(), ShutdownReason::Stopped) {
            return Err(format!("{what}: the guest ended").into());
        }
    }
    Ok(())
}

fn a_guest_that_hammers_the_reset_port_ends_once() -> Result<(), Failed> {
    match hammer(layout::ACPI_RESET, u32::from(layout::ACPI_RESET_VALUE))? {
        ShutdownReason::Reset => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn a_guest_that_hammers_its_power_off_ends_once() -> Result<(), Failed> {
    let off = 1 << 13 | u32::from(layout::ACPI_S5_SLEEP_TYPE) << 10;
    match hammer(layout::PM1A_CONTROL, off)? {
        ShutdownReason::PowerOff => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Why a guest ended that writes this to the port for ever, of which one reason was kept. The port is one or two bytes wide.
fn hammer(port: u16, value: u32) -> Result<ShutdownReason, Failed> {
    let mut kernel = TinyKernel::new()?;
    let mut again = kernel.0.create_label();
    kernel.0.mov(dx, u32::from(port))?;
    kernel.0.mov(eax, value)?;
    kernel.0.set_label(&mut again)?;
    if value > 0xff {
        kernel.0.out(dx, ax)?;
    } else {
        kernel.0.out(dx, al)?;
    }
    kernel.0.jmp(again)?;
    let vm = start(&mut kernel, "")?;
    thread::sleep(Duration::from_secs(1));
    // The event counts the reasons that were kept for whoever waits.
    let kept = vm.shutdown_event().read()?;
    if kept != 1 {
        return Err(format!("{kept} reasons were kept").into());
    }
    Ok(vm.wait())
}

/// Such programs take their signals from a signalfd, and every thread inherits the mask.
fn a_vm_of_a_program_that_blocks_every_signal_pauses_and_ends() -> Result<(), Failed> {
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        block_every_signal();
        // With the receiver gone the test has failed already.
        let _ = done.send(pause_and_end().map_err(|error| format!("{error:?}")));
    });
    // What hangs stays behind in its thread.
    let outcome = finished.recv_timeout(Duration::from_secs(20));
    Ok(outcome.map_err(|_| "it neither paused nor ended")??)
}

fn block_every_signal() {
    // SAFETY: an all-zero sigset_t is a valid value, sigfillset writes only to it, and pthread_sigmask reads it
    // and changes the calling thread's mask alone.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

fn pause_and_end() -> Result<(), Failed> {
    for stop in [true, false] {
        let vm = start(TinyKernel::new()?.spin()?, "")?;
        vm.pause()?;
        vm.resume();
        if stop {
            vm.stop();
            vm.wait();
        } else {
            drop(vm);
        }
    }
    Ok(())
}
