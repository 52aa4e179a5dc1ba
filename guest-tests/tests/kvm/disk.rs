//! virtio devices: how a driver reaches them, and a Debian system on a disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use guest_tests::assets;
use guest_tests::backend;
use guest_tests::guest::{BootError, Folder, Guest, Outcome, RunningGuest};
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use libtest_mimic::{Failed, Trial};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm::devices::virtio::entropy::Entropy;
use vmm::devices::virtio::{MmioDevice, Slot};

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    // A minute or two for each boot under emulation, and an image to be made first.
    let missing = assets::rootfs().is_none();
    vec![
        Trial::test(
            "disk::debian_takes_a_login_and_keeps_what_was_written",
            keeps_what_was_written,
        )
        .with_ignored_flag(missing),
        Trial::test(
            "disk::a_kick_does_not_leave_the_kernel",
            a_kick_does_not_leave_the_kernel,
        ),
    ]
}

const PROMPT: &str = "guest:~#";

fn keeps_what_was_written() -> Result<(), Failed> {
    let (folder, disk) = disk()?;
    let readonly = folder.file("readonly", [7; 4096])?;
    let mut guest = boot(&disk, &readonly)?;
    log_in(&mut guest)?;
    run(
        &mut guest,
        "mount | grep ' / '",
        "/dev/vda on / type ext4 (rw",
    )?;
    run(&mut guest, "cat /sys/block/vda/serial", "the-disk")?;
    run(
        &mut guest,
        "dd if=/dev/zero of=/dev/vdb count=1 conv=fsync; echo dd-$?",
        "dd-1",
    )?;
    run(
        &mut guest,
        "seq 100000 >numbers; sync; echo sync-$?",
        "sync-0",
    )?;
    power_off(guest)?;
    if std::fs::read(&readonly)? != [7; 4096] {
        return Err("the read-only disk was written".into());
    }

    let mut guest = boot(&disk, &readonly)?;
    log_in(&mut guest)?;
    // Of what seq wrote.
    run(
        &mut guest,
        "md5sum numbers",
        "dea9193b768319cbb4ff1a137ac03113",
    )?;
    power_off(guest)?;
    Ok(())
}

/// A disk that may be written to: in the outer VM the one there is, elsewhere a copy.
fn disk() -> Result<(Folder, PathBuf), Failed> {
    let folder = Folder::new()?;
    let image = assets::rootfs().ok_or("no image: run resources/make-rootfs.sh")?;
    if backend::in_outer_vm() {
        return Ok((folder, image));
    }
    let copy = folder.path("disk");
    let status = Command::new("cp")
        .arg("--sparse=always")
        .args([&image, &copy])
        .status()?;
    if !status.success() {
        return Err(format!("cp: {status}").into());
    }
    Ok((folder, copy))
}

fn boot(disk: &Path, readonly: &Path) -> Result<RunningGuest, Failed> {
    let guest = Guest::with_root_disk(&assets::kernel()?)?
        .option("--disk", format!("{},serial=the-disk", disk.display()))
        .option("--disk", format!("{},ro", readonly.display()))
        .option("--memory", "512");
    Ok(guest.start()?)
}

fn log_in(guest: &mut RunningGuest) -> Result<(), BootError> {
    guest.wait_for("guest login: ")?;
    guest.enter("root")?;
    guest.wait_for("Password: ")?;
    guest.enter("root")?;
    guest.wait_for(PROMPT)
}

fn run(guest: &mut RunningGuest, command: &str, expected: &str) -> Result<(), BootError> {
    guest.enter(command)?;
    guest.wait_for(expected)
}

fn power_off(mut guest: RunningGuest) -> Result<Outcome, Failed> {
    guest.enter("poweroff")?;
    let outcome = guest.wait()?;
    if outcome.status.code() != Some(0) {
        return Err(format!("{}: {}", outcome.status, outcome.console).into());
    }
    Ok(outcome)
}

/// Real-mode code: kicks queue 0, then queue 1, which there is not, then says so at a port.
const KICKS: [u8; 27] = [
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0x8e, 0xd8, // mov ds, ax
    0x66, 0xc7, 0x06, 0x50, 0x00, 0, 0, 0, 0, // mov dword [0x50], 0
    0x66, 0xc7, 0x06, 0x50, 0x00, 1, 0, 0, 0, // mov dword [0x50], 1
    0xe6, 0x80, // out 0x80, al
    0xf4, 0xf4, // hlt
];

fn a_kick_does_not_leave_the_kernel() -> Result<(), Failed> {
    const CODE: u64 = 0x1000;
    let vm = Kvm::new()?.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
    memory.write_slice(&KICKS, GuestAddress(CODE))?;
    let region = kvm_userspace_memory_region {
        memory_size: 0x1_0000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the memory stays mapped until after the VM is gone: it was made later than the VM, but
    // the vCPU, which alone uses it, is dropped before both.
    unsafe { vm.set_user_memory_region(region)? };
    vm.create_irq_chip()?;
    // Where real-mode code can reach it.
    let slot = Slot {
        index: 0,
        base: 0x2_0000,
        size: 0x1000,
        gsi: 16,
    };
    let _device = MmioDevice::new(&vm, Arc::new(memory.clone()), slot, Box::new(Entropy))?;

    let mut vcpu = vm.create_vcpu(0)?;
    let mut segments = vcpu.get_sregs()?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rflags: 2,
        ..Default::default()
    })?;
    let notify = slot.base + 0x50;
    match vcpu.run()? {
        VcpuExit::MmioWrite(address, [1, 0, 0, 0]) if address == notify => {}
        other => return Err(format!("first, instead of the kick of queue 1: {other:?}").into()),
    }
    match vcpu.run()? {
        VcpuExit::IoOut(0x80, _) => Ok(()),
        other => Err(format!("after the kicks: {other:?}").into()),
    }
}
