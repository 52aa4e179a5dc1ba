//! A kick goes from the guest to the device without a word to the vCPU loop.

use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use libtest_mimic::Failed;
use msr_vmm::devices::virtio::entropy::Entropy;
use msr_vmm::devices::virtio::{MmioDevice, Slot};
use msr_vmm::memory::GuestMemoryMmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Real-mode code: kicks queue 0, then queue 1, which there is not, then says so at a port.
const KICKS: [u8; 27] = [
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0x8e, 0xd8, // mov ds, ax
    0x66, 0xc7, 0x06, 0x50, 0x00, 0, 0, 0, 0, // mov dword [0x50], 0
    0x66, 0xc7, 0x06, 0x50, 0x00, 1, 0, 0, 0, // mov dword [0x50], 1
    0xe6, 0x80, // out 0x80, al
    0xf4, 0xf4, // hlt
];

pub(super) fn a_kick_does_not_leave_the_kernel() -> Result<(), Failed> {
    const CODE: u64 = 0x1000;
    let vm = Kvm::new()?.create_vm()?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
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
    let memory_of_device = Arc::new(memory.clone());
    let _device = MmioDevice::new(&vm, memory_of_device, slot, Box::new(Entropy::new(None)))?;

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
