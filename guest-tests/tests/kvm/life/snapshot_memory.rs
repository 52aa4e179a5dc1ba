//! Memory that is saved beside a running guest: nothing that the guest or its devices write meanwhile is lost, in a VM that was
//! booted and in one that was restored. Damage to a snapshot's memory is found when asked.
//!
//! The guests look for what is lost themselves, all the time, and fault when they find it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::assets;
use guest_tests::guest::{Folder, TinyKernel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_bus::VcpuId;
use msr_vmm::config::Config;
use msr_vmm::layout::VIRTIO_MMIO;
use msr_vmm::snapshot::Snapshot;
use msr_vmm::{RunningVm, ShutdownReason, Vm, VmBuilder};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("snapshot_memory":
        what_a_guest_writes_while_it_is_saved_is_not_lost,
        what_a_device_writes_while_the_guest_is_saved_is_not_lost,
        damage_to_the_memory_is_found_and_named_when_asked,
    )
}

/// A scratch register that counts the guest's rounds.
const ROUNDS: u32 = 0x3f00;
/// How often a running guest is saved, and each time restored.
const SNAPSHOTS: usize = 5;
/// What the guest fills at first, and does not touch again: as much as takes time to save.
const FILL_FROM: u64 = 64 << 20;
const FILL: u64 = 96 << 20;
const TIMEOUT: Duration = Duration::from_secs(120);

/// Where the second guest's virtqueue is, and what the device writes.
const QUEUE: u64 = 0x30_0000;
const AVAILABLE: u64 = QUEUE + 0x1000;
const USED: u64 = QUEUE + 0x2000;
const BUFFER: u64 = QUEUE + 0x3000;
const COPY: u64 = QUEUE + 0x4000;

/// A kernel that fills memory and then does `what`, which jumps to `wrong` where it finds something lost.
fn guest(
    what: impl FnOnce(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>,
) -> Result<Vec<u8>, Failed> {
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    let mut wrong = code.create_label();
    let mut fill = code.create_label();
    code.mov(rdi, FILL_FROM)?;
    code.set_label(&mut fill)?;
    code.mov(qword_ptr(rdi), rdi)?;
    code.add(rdi, 64)?;
    code.cmp(rdi, (FILL_FROM + FILL) as i32)?;
    code.jb(fill)?;
    what(code, wrong)?;
    code.set_label(&mut wrong)?;
    kernel.triple_fault()?;
    Ok(kernel.elf()?)
}

/// Writes R12 to the register of rounds.
fn tell_round(code: &mut CodeAssembler) -> Result<(), IcedError> {
    code.mov(ecx, ROUNDS)?;
    code.mov(eax, r12d)?;
    code.xor(edx, edx)?;
    code.wrmsr()
}

/// Counts in each page of 32 MiB, and looks each time that the page has the count of the round before.
fn counts_in_every_page(code: &mut CodeAssembler, wrong: CodeLabel) -> Result<(), IcedError> {
    const FROM: u64 = 16 << 20;
    const TO: i32 = 48 << 20;
    let (mut round, mut page) = (code.create_label(), code.create_label());
    code.xor(r12d, r12d)?;
    code.set_label(&mut round)?;
    code.mov(rdi, FROM)?;
    code.set_label(&mut page)?;
    code.cmp(qword_ptr(rdi), r12)?;
    code.jne(wrong)?;
    code.inc(qword_ptr(rdi))?;
    code.add(rdi, 4096)?;
    code.cmp(rdi, TO)?;
    code.jb(page)?;
    code.inc(r12)?;
    tell_round(code)?;
    code.jmp(round)
}

/// Has a virtio entropy device fill a page again and again, copies each filling, and looks for a while whether they agree. The
/// page and the used ring are written by the device alone, so KVM's log of dirty pages never has them.
fn reads_random_pages(code: &mut CodeAssembler, wrong: CodeLabel) -> Result<(), IcedError> {
    let mut set = |offset: u64, value: u64| -> Result<(), IcedError> {
        code.mov(rbx, VIRTIO_MMIO + offset)?;
        code.mov(dword_ptr(rbx), value as u32)
    };
    // Virtio 1.2, sections 3.1.1 and 4.2.3: status, VIRTIO_F_VERSION_1, queue 0.
    for (offset, value) in [
        (0x70, 0),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 0xb),
        (0x30, 0),
        (0x38, 8),
        (0x80, QUEUE),
        (0x84, 0),
        (0x90, AVAILABLE),
        (0x94, 0),
        (0xa0, USED),
        (0xa4, 0),
        (0x44, 1),
        (0x70, 0xf),
    ] {
        set(offset, value)?;
    }
    // One descriptor: 4 KiB, for the device to write. No interrupts.
    code.mov(rdi, QUEUE)?;
    code.mov(rax, BUFFER)?;
    code.mov(qword_ptr(rdi), rax)?;
    code.mov(dword_ptr(rdi + 8), 4096u32)?;
    code.mov(dword_ptr(rdi + 12), 2u32)?;
    code.mov(rdi, AVAILABLE)?;
    code.mov(word_ptr(rdi), 1u32)?;
    code.xor(r12d, r12d)?;

    let [mut round, mut wait, mut copy, mut look, mut compare] =
        std::array::from_fn(|_| code.create_label());
    code.set_label(&mut round)?;
    code.inc(r12)?;
    code.mov(rdi, AVAILABLE)?;
    code.mov(word_ptr(rdi + 2), r12w)?;
    code.mov(rbx, VIRTIO_MMIO + 0x50)?;
    code.mov(dword_ptr(rbx), 0u32)?;
    code.mov(rdi, USED)?;
    code.set_label(&mut wait)?;
    code.cmp(word_ptr(rdi + 2), r12w)?;
    code.jne(wait)?;
    code.mov(rsi, BUFFER)?;
    code.mov(rdi, COPY)?;
    code.xor(ecx, ecx)?;
    code.set_label(&mut copy)?;
    code.mov(rax, qword_ptr(rsi + rcx * 8))?;
    code.mov(qword_ptr(rdi + rcx * 8), rax)?;
    code.inc(ecx)?;
    code.cmp(ecx, 512)?;
    code.jb(copy)?;
    code.mov(r13d, 200u32)?;
    code.set_label(&mut look)?;
    code.xor(ecx, ecx)?;
    code.set_label(&mut compare)?;
    code.mov(rax, qword_ptr(rsi + rcx * 8))?;
    code.cmp(rax, qword_ptr(rdi + rcx * 8))?;
    code.jne(wrong)?;
    code.inc(ecx)?;
    code.cmp(ecx, 512)?;
    code.jb(compare)?;
    code.dec(r13d)?;
    code.jnz(look)?;
    tell_round(code)?;
    code.jmp(round)
}

fn start(folder: &Folder, kernel: Vec<u8>) -> Result<RunningVm, Failed> {
    let mut config: Config = toml::from_str(&format!(
        "vm.memory = 192\nvm.entropy = true\n[[msr.device]]\ntype = \"scratch\"\nmsr = \"{ROUNDS:#x}\"\n"
    ))?;
    config.vm.kernel = Some(folder.file("kernel", kernel)?);
    Ok(Vm::builder(config).build()?.start()?)
}

fn restore(snapshot: &Path) -> Result<RunningVm, Failed> {
    let snapshot = Snapshot::read(snapshot)?;
    snapshot.verify()?;
    Ok(VmBuilder::restore(snapshot).build()?.start()?)
}

fn rounds(vm: &RunningVm) -> Result<u64, Failed> {
    Ok(vm.read_msr(VcpuId(0), ROUNDS)?.value.ok_or("#GP")?)
}

/// Waits until the guest has done ten more rounds, each of which looks for what is lost. Gives how many it has done.
fn goes_on(vm: &RunningVm) -> Result<u64, Failed> {
    let (begin, from) = (Instant::now(), rounds(vm)?);
    loop {
        // A guest that has faulted has no vCPU to ask.
        let now = rounds(vm)?;
        if now > from + 10 {
            return Ok(now);
        }
        if begin.elapsed() > TIMEOUT {
            return Err(format!("the guest does not go on from round {now}").into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn end(vm: RunningVm) -> Result<(), Failed> {
    vm.stop();
    match vm.wait() {
        ShutdownReason::Stopped => Ok(()),
        reason => Err(format!("the guest has found something: {reason:?}").into()),
    }
}

/// Saves a guest that runs, and whoever is restored from that, and sees all of them go on.
fn nothing_is_lost(kernel: Vec<u8>) -> Result<(), Failed> {
    let folder = Folder::new()?;
    let mut vm = start(&folder, kernel)?;
    for number in 0..SNAPSHOTS {
        goes_on(&vm)?;
        let snapshot = folder.path(&number.to_string());
        let saved = vm.snapshot(&snapshot)?;
        // Else nothing is shown here: the guest would have stood still for all of it.
        if saved.memory < FILL || saved.in_pause > saved.memory / 2 || saved.in_pause == 0 {
            return Err(format!("it was not saved beside the guest: {saved:?}").into());
        }
        println!("snapshot_memory: {saved:?}");
        goes_on(&vm)?;
        end(vm)?;
        vm = restore(&snapshot)?;
        goes_on(&vm)?;
    }
    end(vm)
}

fn what_a_guest_writes_while_it_is_saved_is_not_lost() -> Result<(), Failed> {
    nothing_is_lost(guest(counts_in_every_page)?)
}

fn what_a_device_writes_while_the_guest_is_saved_is_not_lost() -> Result<(), Failed> {
    nothing_is_lost(guest(reads_random_pages)?)
}

fn damage_to_the_memory_is_found_and_named_when_asked() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let vm = start(&folder, guest(counts_in_every_page)?)?;
    goes_on(&vm)?;
    let snapshot = folder.path("snapshot");
    vm.snapshot(&snapshot)?;
    end(vm)?;
    let verified = |expected: &str| -> Result<(), Failed> {
        let output = Command::new(assets::msr_vmm()?)
            .args(["restore", "--verify"])
            .arg(&snapshot)
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        if output.status.code() == Some(2) && output.stdout.is_empty() && said.contains(expected) {
            return Ok(());
        }
        Err(format!("{}, not `{expected}`: {said}", output.status).into())
    };
    let path = |name: &str| -> PathBuf { snapshot.join(name) };
    let memory = File::options()
        .read(true)
        .write(true)
        .open(path("memory"))?;
    let mut byte = [0];
    memory.read_exact_at(&mut byte, FILL_FROM + 0x5001)?;
    memory.write_all_at(&[byte[0] ^ 4], FILL_FROM + 0x5001)?;
    // Not where a hole was.
    memory.write_all_at(&[1], 62 << 20)?;
    verified(
        "2 pages of 4 KiB have other checksums than when they were saved, at the guest's addresses 0x3e00000-0x3e00fff, 0x4005000-0x4005fff",
    )?;
    // Restoring does not read it, and so does not mind.
    end(VmBuilder::restore(Snapshot::read(&snapshot)?)
        .build()?
        .start()?)?;

    memory.write_all_at(&byte, FILL_FROM + 0x5001)?;
    memory.write_all_at(&[0], 62 << 20)?;
    end(restore(&snapshot)?)?;
    let checksums = fs::read(path("checksums"))?;
    let mut other = checksums.clone();
    other[0] ^= 1;
    fs::write(path("checksums"), other)?;
    verified("its checksum is")?;
    fs::write(path("checksums"), &checksums[1..])?;
    verified("bytes, and should have 196608")?;
    fs::remove_file(path("checksums"))?;
    verified("No such file")
}
