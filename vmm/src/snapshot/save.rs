//! Making a snapshot of a running VM.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use msr_bus::{LiveKeys, VcpuId};
use msr_kvm::state::{MsrStatePlan, TscOffsets};
use vm_memory::GuestMemoryBackend;

use super::disks;
use super::draft::{Draft, write_error};
use super::error::SnapshotError;
use super::file::{Body, msr_plan};
use super::machine::{Devices, KvmState};
use super::memory::{Contents, DirtyLog, Image, PAGE, Pages};
use super::vcpu::VcpuState;
use crate::config::Config;
use crate::memory::GuestMemoryMmap;
use crate::running::{RunningVm, lock};

/// Less than this is not worth a dirty log: it is written in a few milliseconds.
const SMALL: u64 = 16 << 20;
/// How often what the guest has written meanwhile is written again before it is paused.
const REWRITES: usize = 3;

/// What a snapshot has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// How many bytes of the guest's memory are not in holes.
    pub memory: u64,
    /// How many of them were written while the guest stood still.
    pub in_pause: u64,
    /// How long the guest had to stand still for it. One that was paused before has stood still for longer.
    pub pause: Duration,
}

impl RunningVm {
    /// Saves the VM in a new folder.
    ///
    /// Memory is written while the guest runs, where KVM logs what it writes meanwhile. For that and for the rest of the state the VM
    /// stands still, and goes on afterwards unless it was paused before. A guest that goes on writes to its
    /// disks, which are no longer those of the snapshot then: pause it first, and end it, to carry on from there.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the folder is not there then.
    pub fn snapshot(&self, folder: &Path) -> Result<Saved, SnapshotError> {
        let _one_at_a_time = lock(&self.save_context().saving);
        let memory = &self.save_context().memory;
        let draft = Draft::new(folder)?;
        let written = write_error(folder);
        let mut image = Image::new(draft.memory()?, memory).map_err(&written)?;
        let contents = Contents::open();
        let log = if self.is_paused() {
            None
        } else {
            self.save_beside(folder, &mut image, &contents)?
        };
        // Asking for every MSR that there may be takes longer than reading those that there are.
        let plan = self.plan_msrs()?;
        let begin = Instant::now();
        self.pause()?;
        let saved = self.save(plan).and_then(|body| {
            // After the vCPUs' state, asking for which may make KVM write to memory.
            let left = match &log {
                Some(log) => log.last()?,
                None => in_use(memory, &contents).map_err(&written)?,
            };
            for (region, pages) in left.iter().enumerate() {
                image.put_still(memory, region, pages).map_err(&written)?;
            }
            Ok((body, bytes(&left)))
        });
        self.resume();
        let pause = begin.elapsed();
        drop(log);
        let (body, in_pause) = saved?;
        let memory = image.written();
        draft.commit(body, image)?;
        Ok(Saved {
            memory,
            // Pages of zeros are looked at, and not written.
            in_pause: in_pause.min(memory),
            pause,
        })
    }

    /// Writes memory while the guest runs, unless there is little or KVM does not log what the guest writes. What is in the log
    /// is to be written again.
    fn save_beside(
        &self,
        folder: &Path,
        image: &mut Image,
        contents: &Contents,
    ) -> Result<Option<DirtyLog<'_>>, SnapshotError> {
        let memory = &self.save_context().memory;
        let written = write_error(folder);
        if bytes(&in_use(memory, contents).map_err(&written)?) <= SMALL {
            return Ok(None);
        }
        let Some(log) = DirtyLog::begin(self)? else {
            return Ok(None);
        };
        // A page that comes into use after this is in the log.
        let mut pages = in_use(memory, contents).map_err(&written)?;
        let mut before = u64::MAX;
        for rewrite in 0..=REWRITES {
            if rewrite != 0 {
                pages = log.fetch()?;
            }
            for (region, pages) in pages.iter().enumerate() {
                image.put_moving(memory, region, pages).map_err(&written)?;
            }
            let now = bytes(&pages);
            // Little is left, or the guest writes as fast as it is saved.
            if now <= SMALL || now > before / 2 {
                break;
            }
            before = now;
        }
        Ok(Some(log))
    }

    fn save(&self, plan: Arc<MsrStatePlan>) -> Result<Body, SnapshotError> {
        let save_context = self.save_context();
        let config = self.current_config().ok_or(SnapshotError::Filter)?;
        // The first vCPU last: the others go on by its TSC, which is then ahead of theirs.
        let mut vcpus = Vec::new();
        for id in (0..self.vcpus()).rev() {
            let plan = Arc::clone(&plan);
            let saved = self.on_vcpu(VcpuId(id), move |vcpu| VcpuState::save(&vcpu.fd, &plan))?;
            vcpus.push(saved?);
        }
        vcpus.reverse();
        // There is at least one.
        let clock = self.save_clock(&vcpus[0])?;
        Ok(Body {
            cpuid: save_context.cpuid.clone(),
            tsc_khz: save_context.tsc_khz,
            disks: disks::identify(&config.vm)?,
            config,
            kvm: KvmState::save(self.fd(), clock)?,
            vcpus,
            tsc_offsets: self.tsc_offsets()?,
            live: self.msr_plan().live.iter().map(LiveKeys::changes).collect(),
            devices: self.devices().save(),
            // Of what is not written yet.
            checksums_crc32: 0,
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
        // Where they were is not saved, and from the start they would do again what is done.
        config.msr.scenarios.clear();
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

/// The pages of each region that may be other than zero now.
fn in_use(memory: &GuestMemoryMmap, contents: &Contents) -> io::Result<Vec<Pages>> {
    memory.iter().map(|region| contents.of(region)).collect()
}

fn bytes(pages: &[Pages]) -> u64 {
    PAGE * pages.iter().map(Pages::count).sum::<u64>()
}
