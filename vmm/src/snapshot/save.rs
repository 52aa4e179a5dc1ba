//! Making a snapshot of a running VM.

use std::path::Path;
use std::sync::Arc;

use msr_bus::{LiveKeys, VcpuId};
use msr_kvm::state::{MsrStatePlan, TscOffsets};

use super::draft::{Draft, write_error};
use super::error::SnapshotError;
use super::file::{Body, msr_plan};
use super::machine::{Devices, KvmState};
use super::vcpu::VcpuState;
use super::{disks, memory};
use crate::config::Config;
use crate::running::RunningVm;

impl RunningVm {
    /// Saves the VM in a new folder, and gives how many bytes of its memory are not zero.
    ///
    /// The VM stands still meanwhile, and goes on afterwards unless it was paused before. A guest that goes on writes to its
    /// disks, which are no longer those of the snapshot then: pause it first, and end it, to carry on from there.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the folder is not there then.
    pub fn snapshot(&self, folder: &Path) -> Result<u64, SnapshotError> {
        let draft = Draft::new(folder)?;
        let file = draft.memory()?;
        self.pause();
        let saved = self.save().and_then(|body| {
            let written = memory::write(&self.save_context().memory, &file);
            Ok((body, written.map_err(write_error(folder))?))
        });
        self.resume();
        let (body, written) = saved?;
        draft.commit(&body, &file)?;
        Ok(written)
    }

    fn save(&self) -> Result<Body, SnapshotError> {
        let save_context = self.save_context();
        let config = self.current_config().ok_or(SnapshotError::Filter)?;
        let plan = self.plan_msrs()?;
        // The first vCPU last: the others go on by its TSC, which is then ahead of theirs.
        let mut vcpus = Vec::new();
        for id in (0..self.vcpus()).rev() {
            let plan = Arc::clone(&plan);
            let saved = self.on_vcpu(VcpuId(id), move |vcpu| VcpuState::save(&vcpu.fd, &plan))?;
            vcpus.push(saved?);
        }
        vcpus.reverse();
        Ok(Body {
            cpuid: save_context.cpuid.clone(),
            tsc_khz: save_context.tsc_khz,
            disks: disks::identify(&config.vm)?,
            config,
            kvm: KvmState::save(self.fd())?,
            vcpus,
            tsc_offsets: self.tsc_offsets()?,
            live: self.msr_plan().live.iter().map(LiveKeys::changes).collect(),
            devices: self.devices().save(),
        })
    }

    /// The configuration with the filter's rules of now; nothing if those are unknown.
    fn current_config(&self) -> Option<Config> {
        let mut config = self.save_context().config.clone();
        let vm = &mut config.vm;
        let disks = vm.disks.iter_mut().map(|disk| &mut disk.path);
        for path in disks.chain(&mut vm.kernel).chain(&mut vm.initrd) {
            // It fails where the folder that the process is in has been removed.
            if let Ok(absolute) = std::path::absolute(&*path) {
                *path = absolute;
            }
        }
        config.msr.filter = self.filter_in_force().rules.clone()?;
        Some(config)
    }

    fn plan_msrs(&self) -> Result<Arc<MsrStatePlan>, SnapshotError> {
        let save_context = self.save_context().clone();
        let bus = self.msr_bus().clone();
        let plan = self.on_vcpu(VcpuId(0), move |vcpu| {
            msr_plan(&save_context.kvm, &vcpu.fd, &bus)
        })?;
        Ok(Arc::new(plan?))
    }

    /// The offset of each vCPU is its thread's to ask for.
    fn tsc_offsets(&self) -> Result<TscOffsets, SnapshotError> {
        let mut offsets = Vec::new();
        for id in 0..self.vcpus() {
            offsets.push(self.on_vcpu(VcpuId(id), |vcpu| TscOffsets::offset(&vcpu.fd))??);
        }
        Ok(TscOffsets::of(offsets))
    }

    pub(super) fn devices(&self) -> Devices<'_> {
        Devices {
            console: self.console(),
            power: self.power(),
            rtc: &self.save_context().rtc,
            pci: &self.save_context().pci,
            virtio: self.virtio(),
            bus: self.msr_bus(),
        }
    }
}
