//! MSR devices in a VMM of its own, on bare kvm-ioctls.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use msr_bus::{DeviceModel, Topology, VcpuId};
use msr_filter::{FilterSpec, Verdict};
use msr_kvm::{MsrConfig, MsrPlan, VmMsrs, host_cpu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The base of CS at reset.
const START: GuestAddress = GuestAddress(0xffff_0000);
/// Real mode: RDMSR of 0x17, WRMSR of what it gave to 0x400, HLT, RDMSR of 0x10 (the TSC), HLT.
const GUEST: &[u8] =
    b"\x66\xb9\x17\0\0\0\x0f\x32\x66\xb9\0\x04\0\0\x0f\x30\xf4\x66\xb9\x10\0\0\0\x0f\x32\xf4";
const CONFIG: &str = "unclaimed = 'ignore'
    device = [{ type = 'scratch', msr = 0x400 },
              { type = 'table', register = [{ msr = 0x17, value = '0x12345678_9abcdef0' }] }]";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vm = Kvm::new()?.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(START, 0x1000)])?;
    memory.write_slice(GUEST, START)?;
    let region = kvm_userspace_memory_region {
        guest_phys_addr: START.0,
        memory_size: 0x1000,
        userspace_addr: memory.get_host_address(START)? as u64,
        ..Default::default()
    };
    // SAFETY: `memory` is mapped for as long as the vCPU runs, and nothing has references into it.
    unsafe { vm.set_user_memory_region(region) }?;

    let plan = MsrPlan::builder(Topology::flat(1), host_cpu())
        .config(&toml::from_str::<MsrConfig>(CONFIG)?, DeviceModel::all())?
        .statistics()
        .build()?;
    let read = move |at, buf: &mut [u8]| memory.read_slice(buf, GuestAddress(at)).is_ok();
    let msrs = VmMsrs::install(&vm, plan, read)?;

    let mut fd = vm.create_vcpu(0)?;
    fd.set_regs(&Default::default())?;
    let mut vcpu = msrs.vcpu(VcpuId(0), &mut fd)?;
    for rules in [Verdict::Deny, Verdict::Allow].map(FilterSpec::new) {
        loop {
            match fd.run()? {
                VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => drop(vcpu.answer(&mut fd)),
                VcpuExit::Hlt => break,
                exit => return Err(format!("{exit:?}").into()),
            }
        }
        msrs.set_rules(&vm, &rules)?; // the claims stay denied
    }
    print!("{}", msrs.statistics().unwrap().table(msrs.bus()));
    Ok(())
}
