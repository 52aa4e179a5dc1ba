//! A guest with kvmclock learns that it was paused: KVM_KVMCLOCK_CTRL (Documentation/virt/kvm/api.rst), so that its watchdogs
//! do not take the pause for a lockup.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guest_tests::guest::{Folder, TinyKernel};
use iced_x86::code_asm::*;
use libtest_mimic::{Failed, Trial};
use msr_bus::{GeneralProtection, MsrAccess, MsrDevice, MsrRange};
use msr_vmm::config::{Config, MemorySize};
use msr_vmm::{RunningVm, Vm};

use super::listed;

pub(super) fn trials() -> Vec<Trial> {
    listed!("kvmclock": a_guest_with_kvmclock_learns_of_a_pause)
}

/// MSR_KVM_SYSTEM_TIME_NEW, and its bit that switches the clock on (Documentation/virt/kvm/x86/msr.rst).
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ENABLE: u32 = 1;
/// Where the guest has KVM write its time: 2 MiB, far from its code.
const TIME_INFO: u32 = 0x20_0000;
/// The offset of `flags` in pvclock_vcpu_time_info, and what KVM sets there after a pause.
const FLAGS: u32 = 29;
const GUEST_STOPPED: u64 = 1 << 1;
/// Where the guest writes the flags, again and again.
const TELL: u32 = 0x3f00;

/// How often the guest told its flags, and all that were ever set.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    times: u64,
    flags: u64,
}

#[derive(Default)]
struct Listener(Mutex<Told>);

impl Listener {
    fn told(&self) -> Told {
        *self.0.lock().expect("no holder panics")
    }
}

impl MsrDevice for Listener {
    fn name(&self) -> &str {
        "listener"
    }

    fn claims(&self) -> Vec<MsrRange> {
        vec![MsrRange::from(TELL)]
    }

    fn read(&self, _: &MsrAccess<'_>) -> Result<u64, GeneralProtection> {
        Err(GeneralProtection)
    }

    fn write(&self, _: &MsrAccess<'_>, value: u64) -> Result<(), GeneralProtection> {
        let mut told = self.0.lock().expect("no holder panics");
        told.times += 1;
        told.flags |= value;
        Ok(())
    }
}

/// A kernel that switches its kvmclock on and tells the flags for ever.
fn kernel() -> Result<TinyKernel, Failed> {
    let mut kernel = TinyKernel::new()?;
    let code = &mut kernel.0;
    code.mov(ecx, SYSTEM_TIME)?;
    code.mov(eax, TIME_INFO | ENABLE)?;
    code.xor(edx, edx)?;
    code.wrmsr()?;
    code.mov(ecx, TELL)?;
    code.mov(ebx, TIME_INFO + FLAGS)?;
    let mut again = code.create_label();
    code.set_label(&mut again)?;
    code.movzx(eax, byte_ptr(rbx))?;
    code.wrmsr()?;
    code.jmp(again)?;
    Ok(kernel)
}

/// Waits until `seen` holds of what the guest told.
fn wait(vm: &RunningVm, listener: &Listener, seen: impl Fn(Told) -> bool) -> Result<Told, Failed> {
    let start = Instant::now();
    loop {
        let told = listener.told();
        if seen(told) {
            return Ok(told);
        }
        if vm.shutdown_event().read().is_ok() {
            return Err(format!("the guest ended: {told:?}").into());
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(format!("30 s later: {told:?}").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_guest_with_kvmclock_learns_of_a_pause() -> Result<(), Failed> {
    let folder = Folder::new()?;
    let mut config = Config::default();
    config.vm.memory = MemorySize(32 << 20);
    config.vm.kernel = Some(folder.file("kernel", kernel()?.elf()?)?);
    let listener = Arc::new(Listener::default());
    let vm = Vm::builder(config).msr_device(listener.clone()).build()?;
    let vm = vm.start()?;

    let before = wait(&vm, &listener, |told| told.times > 100)?;
    if before.flags & GUEST_STOPPED != 0 {
        return Err(format!("it was told of a pause before there was one: {before:?}").into());
    }
    vm.pause()?;
    vm.resume();
    wait(&vm, &listener, |told| told.flags & GUEST_STOPPED != 0)?;
    Ok(())
}
