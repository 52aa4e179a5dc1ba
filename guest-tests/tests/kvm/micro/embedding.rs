//! msr-kvm as another VMM's author would use it: the README's program, and what the lives of VMs and vCPUs there ask of it.

use std::process::Command;
use std::thread;

use guest_tests::assets;
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use libtest_mimic::Trial;
use msr_bus::{DeviceModel, Topology, VcpuId};
use msr_kvm::{MsrConfig, MsrPlan, VcpuMsrs, VmMsrs, VmMsrsError, host_cpu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::support::{Outcome, trials};

pub(super) fn trials() -> Vec<Trial> {
    trials!("micro::embedding":
        the_readmes_vmm_answers_by_two_devices_a_swapped_filter_and_counts,
        vcpus_come_later_and_move_between_threads,
        vms_of_one_process_share_nothing,
    )
}

fn the_readmes_vmm_answers_by_two_devices_a_swapped_filter_and_counts() -> Outcome {
    let output = Command::new(assets::example("embed")?).output()?;
    let text = String::from_utf8(output.stdout)?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [
            vec![
                "0x10",
                "IA32_TIME_STAMP_COUNTER",
                "1",
                "0",
                "0",
                "default",
                "(unclaimed)"
            ],
            vec!["last", "0x0:", "tsc=0"],
            vec!["0x17", "IA32_PLATFORM_ID", "1", "0", "0", "table"],
            vec!["last", "0x123456789abcdef0:", "platform-id=5"],
            vec!["0x400", "IA32_MC0_CTL", "0", "1", "0", "scratch"],
            vec!["last", "0x123456789abcdef0:", "enable=0x123456789abcdef0"],
        ],
        "{text}"
    );
    Ok(())
}

/// The base of CS at reset.
const START: GuestAddress = GuestAddress(0xffff_0000);
/// Real mode, at 0: WRMSR, HLT; at 3: RDMSR, HLT.
const GUEST: &[u8] = b"\x0f\x30\xf4\x0f\x32\xf4";
/// The device's MSR, of which each vCPU has its own.
const MSR: u32 = 0x400;

/// A VM that has room for four vCPUs and none yet.
struct Machine {
    vm: VmFd,
    msrs: VmMsrs,
    // Dropped after the VM, which has it mapped.
    _memory: GuestMemoryMmap,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Machine {
    fn new(reset: u32) -> Result<Self, AnyError> {
        let vm = Kvm::new()?.create_vm()?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(START, 0x1000)])?;
        memory.write_slice(GUEST, START)?;
        let region = kvm_userspace_memory_region {
            guest_phys_addr: START.0,
            memory_size: 0x1000,
            userspace_addr: memory.get_host_address(START)? as u64,
            ..Default::default()
        };
        // SAFETY: the memory is mapped for longer than the VM, which is dropped first, and nothing has references into it.
        unsafe { vm.set_user_memory_region(region) }?;
        let device = format!("device = [{{ type = 'scratch', msr = {MSR}, reset = {reset} }}]");
        let plan = MsrPlan::builder(Topology::flat(4), host_cpu())
            .config(&toml::from_str::<MsrConfig>(&device)?, DeviceModel::all())?
            .build()?;
        let msrs = VmMsrs::install(&vm, plan, msr_kvm::NoMemory)?;
        Ok(Self {
            vm,
            msrs,
            _memory: memory,
        })
    }

    fn vcpu(&self, number: u32) -> Result<Vcpu, AnyError> {
        let mut fd = self.vm.create_vcpu(number.into())?;
        let msrs = self.msrs.vcpu(VcpuId(number), &mut fd)?;
        Ok(Vcpu { fd, msrs })
    }
}

struct Vcpu {
    fd: VcpuFd,
    msrs: VcpuMsrs,
}

impl Vcpu {
    /// Executes the code at `rip` to its HLT and gives EAX.
    fn run(&mut self, rip: u64, eax: u32) -> Result<u32, AnyError> {
        let registers = kvm_regs {
            rip,
            rax: eax.into(),
            rcx: MSR.into(),
            rflags: 2,
            ..Default::default()
        };
        self.fd.set_regs(&registers)?;
        loop {
            match self.fd.run()? {
                VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_) => {
                    self.msrs.answer(&mut self.fd).ok_or("no MSR exit")?;
                }
                VcpuExit::Hlt => return Ok(self.fd.get_regs()?.rax as u32),
                exit => return Err(format!("{exit:?}").into()),
            }
        }
    }

    fn write(&mut self, value: u32) -> Result<(), AnyError> {
        self.run(0, value).map(drop)
    }

    fn read(&mut self) -> Result<u32, AnyError> {
        self.run(3, 0)
    }

    /// The same by a thread of its own.
    fn on_another_thread<R: Send>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<R, AnyError> + Send,
    ) -> Result<R, AnyError> {
        thread::scope(|scope| scope.spawn(|| act(self)).join()).expect("the thread does not panic")
    }
}

fn vcpus_come_later_and_move_between_threads() -> Result<(), AnyError> {
    let machine = Machine::new(7)?;
    let mut first = machine.vcpu(0)?;
    first.write(10)?;
    // Hotplug: the VM has run when its last vCPU is made.
    let mut last = machine.vcpu(3)?;
    assert_eq!(last.on_another_thread(Vcpu::read)?, 7);
    last.on_another_thread(|vcpu| vcpu.write(13))?;
    assert_eq!(last.read()?, 13);
    assert_eq!(first.on_another_thread(Vcpu::read)?, 10);
    let mut beyond = machine.vm.create_vcpu(4)?;
    match machine.msrs.vcpu(VcpuId(4), &mut beyond) {
        Err(VmMsrsError::OutsideTopology { id, vcpus }) => assert_eq!((id.0, vcpus), (4, 4)),
        other => panic!("{other:?}"),
    }
    Ok(())
}

fn vms_of_one_process_share_nothing() -> Result<(), AnyError> {
    let machines = (1..=3).map(Machine::new).collect::<Result<Vec<_>, _>>()?;
    let run = |(machine, number): (&Machine, u32)| {
        let mut vcpu = machine.vcpu(0)?;
        let reset = vcpu.read()?;
        // All at a time, each with values that no other writes.
        for round in 0..200 {
            let value = number << 16 | round;
            vcpu.write(value)?;
            assert_eq!(vcpu.read()?, value);
        }
        Ok::<u32, AnyError>(reset)
    };
    let resets = thread::scope(|scope| {
        let threads: Vec<_> = machines
            .iter()
            .zip(1..)
            .map(|m| scope.spawn(move || run(m)))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("the thread does not panic"))
            .collect::<Result<Vec<_>, _>>()
    })?;
    assert_eq!(resets, [1, 2, 3]);
    Ok(())
}
