//! The least that every other test builds on.

use kvm_ioctls::{Kvm, VcpuExit};
use libtest_mimic::{Failed, Trial};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test("smoke::a_vcpu_runs_to_hlt", a_vcpu_runs_to_hlt)]
}

fn a_vcpu_runs_to_hlt() -> Result<(), Failed> {
    let vm = Kvm::new()?.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)])?;
    // nop; hlt
    memory.write_slice(&[0x90, 0xf4], GuestAddress(0))?;
    let region = kvm_bindings::kvm_userspace_memory_region {
        memory_size: 0x1000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the memory is mapped for longer than the VM, which is dropped first.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut segments = vcpu.get_sregs()?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = 0;
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    match vcpu.run()? {
        VcpuExit::Hlt => {}
        exit => return Err(format!("{exit:?} instead of Hlt").into()),
    }
    let rip = vcpu.get_regs()?.rip;
    if rip == 2 {
        Ok(())
    } else {
        Err(format!("stopped at {rip:#x}").into())
    }
}
