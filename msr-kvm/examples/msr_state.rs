//! Saves the MSRs of one KVM vCPU and restores them in another, with no VMM around either.
//!
//! ```text
//! cargo run --example msr_state
//! ```

use std::error::Error;
use std::process::ExitCode;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use msr_kvm::state::MsrStatePlan;

const IA32_LSTAR: u32 = 0xc000_0082;

/// IA32_LSTAR = 0x1234, in real mode: mov ecx, 0xc0000082; mov eax, 0x1234; xor edx, edx; wrmsr; hlt.
const CODE: &[u8] = b"\x66\xb9\x82\x00\x00\xc0\x66\xb8\x34\x12\x00\x00\x66\x31\xd2\x0f\x30\xf4";

#[repr(align(4096))]
struct Page([u8; 4096]);

/// A VM with one page of memory and one vCPU. The page must outlive it.
fn vcpu(kvm: &Kvm, page: &mut Page) -> Result<(VmFd, VcpuFd), Box<dyn Error>> {
    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    page.0[..CODE.len()].copy_from_slice(CODE);
    let region = kvm_userspace_memory_region {
        memory_size: 4096,
        userspace_addr: page.0.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the page is mapped, and `run` keeps it until the vCPU is gone.
    unsafe { vm.set_user_memory_region(region)? };
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let (mut sregs, mut regs) = (vcpu.get_sregs()?, vcpu.get_regs()?);
    (sregs.cs.base, sregs.cs.selector, regs.rip) = (0, 0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    Ok((vm, vcpu))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msr_state: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let kvm = Kvm::new()?;
    let (mut page, mut other) = (Page([0; 4096]), Page([0; 4096]));
    let (_vm, mut first) = vcpu(&kvm, &mut page)?;
    let (_other_vm, second) = vcpu(&kvm, &mut other)?;
    if !matches!(first.run()?, VcpuExit::Hlt) {
        return Err("the guest did not halt".into());
    }
    let plan = MsrStatePlan::new(&kvm, &first, |_| false)?;
    let mut state = plan.save(&first)?;
    plan.restore(&second, &state)?;
    let restored = plan.save(&second)?.value(IA32_LSTAR);
    println!(
        "{} MSRs restored, IA32_LSTAR is {restored:x?}",
        state.msrs.len()
    );

    // No address of 57 bits.
    state.set(IA32_LSTAR, 1 << 56);
    match plan.restore(&second, &state) {
        Err(error) => println!("{error}"),
        Ok(_) => return Err("KVM takes any address".into()),
    }
    Ok(())
}
